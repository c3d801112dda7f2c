//! The offset store on the simulated disk, with members and without: whatever is cut off or fails, an acknowledged commit
//! holds, none is half there, and a group goes on.
//!
//! The model knows for each group and partition what was acknowledged as durable, and what was tried since: one of these is
//! what must be found.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use topiclog::client::{OffsetAndMetadata, Reset};
use topiclog::clock::ManualClock;
use topiclog::group::{CommitOptions, Groups};
use topiclog::io::{CrashProfile, Fault, FaultPlan, FaultVfs, Image, SyncFailure, errno};
use topiclog::{
    CleanupPolicy, Consumer, Durability, Error, Record, Store, TopicConfig, TopicName, TopicPartition, Upkeep,
};

use crate::support::simulate::{Random, Sweep, seed};

const T0: i64 = 1_700_000_000_000;
const OFFSETS: &str = "__consumer_offsets";
/// Groups whose readers are assigned what they read; the last commits both partitions at once.
const ASSIGNED: [&str; 3] = ["a", "b", "both"];
/// A group that has members.
const JOINED: &str = "joined";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Append,
    Commit(Durability),
    CommitBoth(Durability),
    Forget,
    Poll,
    CommitPolled,
    Rejoin,
    Tick,
}

const OPS: [Op; 11] = [
    Op::Append,
    Op::Commit(Durability::Sync),
    Op::Commit(Durability::Os),
    Op::CommitBoth(Durability::Sync),
    Op::CommitBoth(Durability::Os),
    Op::Forget,
    Op::Poll,
    Op::Poll,
    Op::CommitPolled,
    Op::Rejoin,
    Op::Tick,
];

/// What may be found of one group in one partition.
#[derive(Clone, Debug, Default)]
struct Known {
    durable: Option<i64>,
    /// What was tried since.
    later: Vec<Option<i64>>,
}

impl Known {
    fn allows(&self, found: Option<i64>) -> bool {
        found == self.durable || self.later.contains(&found)
    }
}

type Model = BTreeMap<(&'static str, TopicPartition), Known>;

struct Run {
    disk: FaultVfs,
    clock: Arc<ManualClock>,
    places: Vec<TopicPartition>,
    model: Model,
    members: Vec<Consumer>,
    opened: Option<(Store, Groups)>,
    random: Random,
}

fn open(disk: &FaultVfs, clock: &Arc<ManualClock>) -> topiclog::Result<(Store, Groups)> {
    let builder = Store::builder().vfs(Arc::new(disk.clone())).clock(Arc::clone(clock) as _).upkeep(Upkeep::Manual);
    let store = builder.id_seed(7).open("/s")?;
    let groups = Groups::open(&store)?;
    Ok((store, groups))
}

/// A disk with two partitions to read, and segments of offsets that hold few commits.
fn base() -> Image {
    let disk = FaultVfs::new();
    let (store, _) = open(&disk, &Arc::new(ManualClock::new(T0))).unwrap();
    let topic = store.create_topic("t", TopicConfig::default().partitions(2).durability(Durability::Os)).unwrap();
    for partition in topic.partitions() {
        (0..5).for_each(|_| drop(partition.append(Record::of_value("x")).unwrap()));
    }
    let config = TopicConfig::default().cleanup_policy(CleanupPolicy::Compact).segment_bytes(700);
    store.create_topic(OFFSETS, config.min_cleanable_dirty_ratio(0.0).delete_retention_ms(0)).unwrap();
    store.close().unwrap();
    disk.durable_image()
}

impl Run {
    fn new(image: &Image, seed: u64) -> Self {
        let places = (0..2).map(|number| TopicPartition::new(TopicName::new("t").unwrap(), number)).collect();
        let mut run = Self {
            disk: FaultVfs::from_image(image),
            clock: Arc::new(ManualClock::new(T0)),
            places,
            model: Model::new(),
            members: Vec::new(),
            opened: None,
            random: Random(seed),
        };
        run.reopen(image);
        run
    }

    /// Goes on with this disk.
    fn reopen(&mut self, image: &Image) {
        self.members.clear();
        self.opened = None;
        self.disk = FaultVfs::from_image(image);
        self.opened = Some(open(&self.disk, &self.clock).unwrap());
    }

    fn known(&mut self, group: &'static str, place: &TopicPartition) -> &mut Known {
        self.model.entry((group, place.clone())).or_default()
    }

    /// Notes what was tried and how it ended.
    fn note(
        &mut self,
        group: &'static str,
        tried: &[(TopicPartition, Option<i64>)],
        durability: Durability,
        outcome: Result<(), Error>,
    ) {
        let is_cut_off = self.disk.has_stopped();
        for (place, value) in tried {
            let known = self.known(group, place);
            match &outcome {
                Ok(()) if durability == Durability::Sync => *known = Known { durable: *value, later: Vec::new() },
                // Who knows what reached the disk before it stopped.
                Ok(()) | Err(Error::OutcomeUnknown { .. }) => known.later.push(*value),
                Err(_) if is_cut_off => known.later.push(*value),
                Err(error) => assert!(is_typed(error), "{error:?}"),
            }
        }
    }

    fn step(&mut self, op: Op) {
        let Some((store, groups)) = self.opened.clone() else { return };
        let place = self.places[self.random.below(2)].clone();
        let offset = self.random.below(6) as i64;
        match op {
            Op::Append => {
                let partition = store.topic("t").unwrap().partition(place.partition).unwrap();
                drop(partition.append(Record::of_value("y")));
            }
            Op::Commit(durability) => {
                let group = ASSIGNED[self.random.below(2)];
                self.commit(&groups, group, &[(place, offset)], durability);
            }
            Op::CommitBoth(durability) => {
                let both: Vec<_> = self.places.iter().map(|place| (place.clone(), offset)).collect();
                self.commit(&groups, "both", &both, durability);
            }
            Op::Forget => {
                let group = ASSIGNED[self.random.below(2)];
                let outcome = groups.delete_offsets(group, std::slice::from_ref(&place));
                // What is not there is not written down as gone.
                let was_there = self.known(group, &place).clone();
                if !(outcome.is_ok() && was_there.durable.is_none() && was_there.later.is_empty()) {
                    self.note(group, &[(place, None)], Durability::Sync, outcome);
                }
            }
            Op::Poll => {
                self.fill_members(&store);
                let nth = self.random.below(2);
                if let Some(member) = self.members.get_mut(nth) {
                    drop(member.poll(Duration::ZERO));
                }
            }
            Op::CommitPolled => self.commit_polled(),
            Op::Rejoin => drop(self.members.pop()),
            Op::Tick => {
                self.clock.advance_ms(20_000);
                drop(store.tick());
            }
        }
    }

    fn commit(
        &mut self,
        groups: &Groups,
        group: &'static str,
        offsets: &[(TopicPartition, i64)],
        durability: Durability,
    ) {
        let options = CommitOptions::new().durability(durability);
        let said: Vec<_> =
            offsets.iter().map(|(place, offset)| (place.clone(), OffsetAndMetadata::new(*offset))).collect();
        let outcome = groups.commit_all(&[(group, &said)], &options);
        let tried: Vec<_> = offsets.iter().map(|(place, offset)| (place.clone(), Some(*offset))).collect();
        self.note(group, &tried, durability, outcome);
    }

    /// As many members as there are partitions.
    fn fill_members(&mut self, store: &Store) {
        while self.members.len() < 2 {
            let builder = Consumer::builder(store).group(JOINED).topic("t").reset(Reset::Earliest).records_max(1);
            match builder.max_poll_interval_ms(3_600_000).open() {
                Ok(member) => self.members.push(member),
                Err(error) => {
                    assert!(is_typed(&error), "{error:?}");
                    return;
                }
            }
        }
    }

    fn commit_polled(&mut self) {
        let nth = self.random.below(2);
        let Some(member) = self.members.get_mut(nth) else { return };
        let position = member.positions();
        let tried: Vec<_> = position.iter().map(|(id, at)| (id.clone(), Some(at.next_offset().get()))).collect();
        let outcome = member.commit();
        if !matches!(outcome, Err(Error::Fenced { .. })) {
            // What had not moved was not committed once more, and stands already.
            let model = &self.model;
            let stands = |place: &TopicPartition, value: &Option<i64>| {
                let known = model.get(&(JOINED, place.clone()));
                known.is_some_and(|known| known.later.is_empty() && known.durable == *value)
            };
            let moved: Vec<_> = tried.into_iter().filter(|(place, value)| !stands(place, value)).collect();
            self.note(JOINED, &moved, Durability::Sync, outcome);
        }
    }

    /// What is found is one of what may be found; then it is what stands. A group goes on from there.
    fn check(&mut self, image: &Image) -> Result<(), String> {
        let disk = FaultVfs::from_image(image);
        let (store, groups) = open(&disk, &self.clock).map_err(|error| format!("{error:?}"))?;
        for ((group, place), known) in &mut self.model {
            let found = groups.committed(group, place).map_err(|error| format!("{error:?}"))?.map(|found| found.offset);
            if !known.allows(found) {
                return Err(format!("{group} in {place}: {found:?} of {known:?}"));
            }
            *known = Known { durable: found, later: Vec::new() };
        }
        let of_both: Vec<_> = self.places.iter().map(|place| self.model.get(&("both", place.clone()))).collect();
        if of_both[0].map(|known| known.durable) != of_both[1].map(|known| known.durable) {
            return Err(format!("half a commit: {of_both:?}"));
        }
        let builder = Consumer::builder(&store).group(JOINED).topic("t").reset(Reset::Earliest);
        let mut member = builder.records_max(1).open().map_err(|error| format!("{error:?}"))?;
        member.poll(Duration::ZERO).map_err(|error| format!("to go on: {error:?}"))?;
        for place in &self.places {
            let from = self.model.get(&(JOINED, place.clone())).and_then(|known| known.durable).unwrap_or(0);
            let at = member.position(place).map_err(|error| format!("{error:?}"))?.get();
            if at != from && at != from + 1 {
                return Err(format!("{JOINED} goes on at {at} in {place}, {from} was committed"));
            }
        }
        Ok(())
    }
}

/// What a caller may be told when the disk fails.
fn is_typed(error: &Error) -> bool {
    let code = error.code();
    ["io", "no_space", "too_many_files", "outcome_unknown", "poisoned", "sync_failed", "fenced"].contains(&code)
}

fn script(random: &mut Random, count: usize) -> Vec<Op> {
    (0..count).map(|_| OPS[random.below(OPS.len())]).collect()
}

#[test]
fn every_crash_beside_commits_and_members_leaves_what_was_acknowledged() {
    let seed = seed("crashes of groups", 21);
    let image = base();
    let mut random = Random(seed);
    let mut sweep = Sweep::new("crash states of groups", 20_000);
    while !sweep.is_over() {
        let (script, run_seed) = (script(&mut random, 12), random.below(1 << 30) as u64);
        let mut whole = Run::new(&image, run_seed);
        let first = whole.disk.operations();
        script.iter().for_each(|op| whole.step(*op));
        for stop in first..=whole.disk.operations() {
            let mut run = Run::new(&image, run_seed);
            run.disk.stop_after(stop);
            script.iter().for_each(|op| run.step(*op));
            run.members.clear();
            run.opened = None;
            for state in run.disk.crash_states(&CrashProfile::ordered()).take(6) {
                sweep.count += 1;
                let model = run.model.clone();
                let what = format!("seed {run_seed}, {script:?}, stopped after {stop}, {:?}", state.image.hash());
                sweep.guard(&what, || run.check(&state.image));
                run.model = model;
            }
            if sweep.is_over() {
                break;
            }
        }
    }
    sweep.finish(20_000);
}

#[test]
fn groups_go_on_from_one_power_cut_to_the_next() {
    let seed = seed("power cuts of groups", 22);
    let image = base();
    let mut random = Random(seed);
    let mut sweep = Sweep::new("power cuts of groups", 6_000);
    while !sweep.is_over() {
        let run_seed = random.below(1 << 30) as u64;
        let mut run = Run::new(&image, run_seed);
        let mut done = Vec::new();
        for _ in 0..12 {
            let script = script(&mut random, 10);
            script.iter().for_each(|op| run.step(*op));
            done.push(script);
            let states: Vec<_> = run.disk.crash_states(&CrashProfile::ordered()).take(8).collect();
            let left = states[random.below(states.len())].image.clone();
            sweep.count += 1;
            let what = format!("seed {run_seed}, {done:?}");
            if sweep.guard(&what, || run.check(&left)).is_none() {
                break;
            }
            run.reopen(&left);
        }
    }
    sweep.finish(6_000);
}

#[test]
fn a_fault_beside_commits_and_members_costs_nothing_that_was_acknowledged() {
    let seed = seed("faults of groups", 23);
    let faults = [
        Fault::Error(errno::EIO),
        Fault::Error(errno::ENOSPC),
        Fault::Error(errno::EMFILE),
        Fault::Short(1),
        Fault::Short(40),
        Fault::Sync(errno::EIO, SyncFailure::LostAtDrop),
        Fault::Sync(errno::EIO, SyncFailure::Reverted),
    ];
    let image = base();
    let mut random = Random(seed);
    let mut sweep = Sweep::new("faults of groups", 12_000);
    let mut hits = 0;
    while !sweep.is_over() {
        let (script, run_seed) = (script(&mut random, 12), random.below(1 << 30) as u64);
        let mut whole = Run::new(&image, run_seed);
        let first = whole.disk.calls();
        script.iter().for_each(|op| whole.step(*op));
        let calls = whole.disk.calls() - first;
        for (call, fault) in (1..=calls).flat_map(|call| faults.map(|fault| (call, fault))) {
            if sweep.is_over() {
                break;
            }
            sweep.count += 1;
            let sticky = call % 3 == 0;
            let what = format!("seed {run_seed}, {script:?}, {fault:?} at {call}, sticky {sticky}");
            sweep.guard(&what, || {
                let mut run = Run::new(&image, run_seed);
                let plan = FaultPlan::new(fault).at_call(call);
                run.disk.inject(if sticky { plan.sticky() } else { plan });
                script.iter().for_each(|op| run.step(*op));
                hits += u64::from(run.disk.faults_hit() > 0);
                run.disk.clear_faults();
                run.members.clear();
                run.opened = None;
                run.disk.drop_caches();
                let left = run.disk.durable_image();
                run.check(&left)
            });
        }
    }
    tell!("faults of groups: {hits} were met");
    assert!(hits * 2 > sweep.count, "only {hits} of {} were met", sweep.count);
    sweep.finish(12_000);
}
