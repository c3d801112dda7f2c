//! Random members of one group over topics that come, go and come again, with static names, patterns, commits by poll, dropped
//! and killed members and writes that fail once: everything is delivered, and no commit goes back or ahead.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use topiclog::client::{Records, Reset};
use topiclog::clock::ManualClock;
use topiclog::group::Groups;
use topiclog::io::{Fault, FaultPlan, FaultVfs, OpKind, errno};
use topiclog::{Consumer, Durability, Error, Record, Store, TopicConfig, TopicPartition, Upkeep, Uuid};

use crate::support::simulate::{Random, seed};

const INTERVAL_MS: u32 = 900;
const NAMES: [&str; 3] = ["a", "b", "c"];

/// A partition of one topic, and of no other of its name.
type Place = (Uuid, u32);

struct Run {
    disk: FaultVfs,
    clock: Arc<ManualClock>,
    store: Store,
    random: Random,
    members: Vec<Option<Consumer>>,
    /// Offsets that somebody got.
    delivered: BTreeMap<Place, BTreeSet<i64>>,
    committed: BTreeMap<Place, i64>,
    /// Records that were polled, the same ones again included.
    got: usize,
    /// What was done, for whoever looks for the reason of a failure.
    done: Vec<String>,
}

fn open(disk: &FaultVfs, clock: &Arc<ManualClock>) -> Store {
    let builder = Store::builder().vfs(Arc::new(disk.clone())).clock(Arc::clone(clock) as _);
    builder.upkeep(Upkeep::Manual).open("/s").unwrap()
}

impl Run {
    fn new(seed: u64) -> Self {
        let (disk, clock) = (FaultVfs::new(), Arc::new(ManualClock::new(1_700_000_000_000)));
        let store = open(&disk, &clock);
        let (delivered, committed) = (BTreeMap::new(), BTreeMap::new());
        let members = (0..3).map(|_| None).collect();
        Self { disk, clock, store, random: Random(seed), members, delivered, committed, got: 0, done: Vec::new() }
    }

    fn check(&self, holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
        if holds { Ok(()) } else { Err(format!("{}: {}", self.done.join(" "), what())) }
    }

    fn step(&mut self) -> Result<(), String> {
        let which = self.random.below(self.members.len());
        let name = NAMES[self.random.below(NAMES.len())];
        match self.random.below(40) {
            0..=11 => self.poll(which)?,
            12..=17 => self.append(name),
            18..=21 => self.join(which),
            22..=24 => self.commit(which)?,
            25 => self.leave(which, false),
            26 => self.leave(which, true),
            27..=30 => {
                let ms = [1, INTERVAL_MS / 3, INTERVAL_MS, 3 * INTERVAL_MS][self.random.below(4)];
                self.done.push(format!("advance({ms})"));
                self.clock.advance_ms(ms);
            }
            31..=34 => self.make(name),
            35 => {
                self.done.push(format!("delete({name})"));
                self.store.delete_topic(name).ok();
            }
            36..=37 => {
                self.done.push("fail-next".to_owned());
                self.disk.inject(FaultPlan::new(Fault::Error(errno::ENOSPC)).on(OpKind::Write).in_class("log"));
            }
            38 => {
                self.done.push("remove-members".to_owned());
                Groups::open(&self.store).unwrap().remove_members("g").ok();
            }
            _ => self.kill(),
        }
        self.look_at_commits()
    }

    fn make(&mut self, name: &str) {
        let partitions = 1 + self.random.below(3) as u32;
        self.done.push(format!("make({name},{partitions})"));
        let config = TopicConfig::default().durability(Durability::Os).partitions(partitions);
        self.store.create_topic(name, config).ok();
    }

    fn append(&mut self, name: &str) {
        let Ok(topic) = self.store.topic(name) else { return };
        self.done.push(format!("append({name})"));
        for partition in topic.partitions() {
            for _ in 0..1 + self.random.below(4) {
                partition.append(Record::of_value("x")).ok();
            }
        }
    }

    fn join(&mut self, which: usize) {
        if self.members[which].is_some() {
            return;
        }
        let builder = Consumer::builder(&self.store).group("g").pattern(".").reset(Reset::Earliest);
        let builder = builder.max_poll_interval_ms(u64::from(INTERVAL_MS)).records_max(1 + self.random.below(5));
        let (is_static, commits) = (self.random.below(3) == 0, self.random.below(2) == 0);
        let builder = if is_static { builder.group_instance_id(&format!("s{which}")) } else { builder };
        let builder = if commits { builder.commit_with_poll() } else { builder };
        self.done.push(format!("join({which},static:{is_static},commits:{commits})"));
        self.members[which] = Some(builder.open().unwrap());
    }

    fn leave(&mut self, which: usize, closes: bool) {
        let Some(member) = self.members[which].take() else { return };
        self.done.push(format!("leave({which},closes:{closes})"));
        if closes {
            member.close().ok();
        }
    }

    fn kill(&mut self) {
        self.done.push("kill".to_owned());
        self.members.iter_mut().for_each(|member| *member = None);
        self.disk.clear_faults();
        let image = self.disk.image();
        self.disk.kill();
        self.disk = FaultVfs::from_image(&image);
        self.store = open(&self.disk, &self.clock);
    }

    fn poll(&mut self, which: usize) -> Result<(), String> {
        let hit = self.disk.faults_hit();
        let Some(member) = &mut self.members[which] else { return Ok(()) };
        let polled = member.poll(Duration::ZERO);
        let owned = member.assignment();
        self.done.push(format!("poll({which}:{:?},{})", polled.as_ref().map(Records::len), owned.len()));
        match polled {
            Ok(records) => {
                self.got += records.len();
                for one in &records {
                    // A topic that was deleted since cannot be asked for its id.
                    let Ok(topic) = self.store.topic(one.partition.topic.as_str()) else { continue };
                    let place = (topic.id(), one.partition.partition.get());
                    self.delivered.entry(place).or_default().insert(one.record.offset().get());
                }
                Ok(())
            }
            // Its name was taken while it was away.
            Err(Error::Fenced { .. }) => {
                self.members[which] = None;
                Ok(())
            }
            Err(error) => self.check(self.disk.faults_hit() > hit, || format!("poll: {error}")),
        }
    }

    fn commit(&mut self, which: usize) -> Result<(), String> {
        let hit = self.disk.faults_hit();
        let Some(member) = &mut self.members[which] else { return Ok(()) };
        let committed = member.commit();
        self.done.push(format!("commit({which}:{})", committed.is_ok()));
        match committed {
            Ok(()) | Err(Error::Fenced { .. }) => Ok(()),
            Err(error) => self.check(self.disk.faults_hit() > hit, || format!("commit: {error}")),
        }
    }

    /// What the group has committed: never back, and never ahead of what was delivered.
    fn look_at_commits(&mut self) -> Result<(), String> {
        for (id, committed) in Groups::open(&self.store).unwrap().offsets("g").map_err(|error| error.to_string())? {
            let Some(topic_id) = committed.topic_id else { continue };
            let place = (topic_id, id.partition.get());
            let before = self.committed.insert(place, committed.offset).unwrap_or(0);
            self.check(committed.offset >= before, || format!("{id} went from {before} to {}", committed.offset))?;
            let delivered = self.delivered.get(&place);
            let all = (0..committed.offset).all(|offset| delivered.is_some_and(|offsets| offsets.contains(&offset)));
            self.check(all, || format!("{id} is committed at {}: {delivered:?} was delivered", committed.offset))?;
        }
        Ok(())
    }

    /// With nothing in the way any more, everything comes to somebody, and is committed.
    fn finish(&mut self) -> Result<(), String> {
        self.done.push("finish".to_owned());
        self.disk.clear_faults();
        self.join(0);
        let (done, mut quiet) = (self.done.len(), 0);
        while quiet < 40 {
            // Those that are away are out in time.
            self.clock.advance_ms(INTERVAL_MS / 10);
            let before = self.got;
            for which in 0..self.members.len() {
                self.poll(which)?;
                self.commit(which)?;
            }
            quiet = if self.got == before { quiet + 1 } else { 0 };
            self.join(0);
            self.look_at_commits()?;
            self.done.truncate(done);
        }
        for name in NAMES {
            let Ok(topic) = self.store.topic(name) else { continue };
            for partition in topic.partitions() {
                let place = (topic.id(), partition.id().partition.get());
                let end = partition.end().get();
                let committed = self.committed.get(&place).copied().unwrap_or(0);
                let owners = self.owners(partition.id());
                self.check(committed == end && owners == 1, || {
                    format!("{} ends at {end}, {committed} is committed, {owners} read it", partition.id())
                })?;
            }
        }
        Ok(())
    }

    fn owners(&self, id: &TopicPartition) -> usize {
        self.members.iter().flatten().filter(|member| member.assignment().contains(id)).count()
    }
}

#[test]
fn everything_is_delivered_and_no_commit_goes_back_or_ahead_whatever_happens_to_members_and_topics() {
    let first = seed("consumers", 1);
    let (mut runs, mut delivered) = (0, 0);
    for seed in first..first + 300 {
        let mut run = Run::new(seed);
        NAMES.iter().for_each(|name| run.make(name));
        let outcome = (0..200).try_for_each(|_| run.step()).and_then(|()| run.finish());
        if let Err(what) = outcome {
            panic!("TOPICLOG_SEED={seed} {what}");
        }
        runs += 1;
        delivered += run.delivered.values().map(BTreeSet::len).sum::<usize>();
    }
    tell!("consumers: {runs} runs, {delivered} records delivered");
    assert!(delivered > 20 * runs, "{delivered}");
}
