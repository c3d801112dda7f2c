//! Compaction and retention on the simulated disk: every disk that a crash could leave opens, and holds what it must.
//!
//! The oracle is the list of what was appended: a record that is found is the one that was appended at its offset, and a
//! table made of what is found equals the table made of everything up to the log end.

use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::Arc;

use topiclog::clock::ManualClock;
use topiclog::io::{CrashRule, CrashState, Fault, FaultPlan, FaultVfs, Image, errno};
use topiclog::{CleanupPolicy, Durability, Partition, ReadLevel, ReadOptions, Record, Store, TopicConfig, Upkeep};

use crate::support::simulate::{Random, Sweep, profile};

const T0: i64 = 1_700_000_000_000;
const ROOT: &str = "/s";

/// Key and value of a record.
type Row = (Vec<u8>, Option<Vec<u8>>);

/// What was appended, by offset.
#[derive(Clone, Debug, Default)]
struct Appended {
    rows: Vec<Row>,
    /// Below this offset everything was acknowledged as durable.
    synced: usize,
    /// The log start is at most this.
    start_max: i64,
}

/// What is done to the store after it was filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    /// Upkeep until there is nothing to do.
    Settle,
    /// A day passes, and upkeep.
    Age,
    Append,
    Delete,
    Close,
}

struct Run {
    disk: FaultVfs,
    clock: Arc<ManualClock>,
    appended: Appended,
    store: Option<Store>,
    random: Random,
    keys: usize,
    files_max: usize,
}

/// So few open files that most are closed, and synced for that, while others are used; and so many that none is.
const FILES_MAX: [usize; 2] = [64, 4];

fn open(disk: &FaultVfs, clock: &Arc<ManualClock>, files_max: usize) -> topiclog::Result<Store> {
    let builder = Store::builder().vfs(Arc::new(disk.clone())).clock(Arc::clone(clock) as _).upkeep(Upkeep::Manual);
    builder.id_seed(7).open_files_max(files_max).open(ROOT)
}

fn config(durability: Durability, policy: CleanupPolicy) -> TopicConfig {
    TopicConfig::default()
        .durability(durability)
        .cleanup_policy(policy)
        .segment_bytes(600)
        .batch_bytes_max(600)
        .max_unsynced_bytes(4096)
        .preallocate_bytes(0)
        .min_cleanable_dirty_ratio(0.0)
        .delete_retention_ms(1000)
        .retention_ms(if policy == CleanupPolicy::Compact { -1 } else { 3 * 86_400_000 })
}

fn partition(store: &Store) -> Option<Partition> {
    store.topic("t").ok()?.partition(0).ok()
}

impl Run {
    fn new(image: &Image, appended: &Appended, seed: u64) -> Self {
        let (disk, clock) = (FaultVfs::from_image(image), Arc::new(ManualClock::new(T0)));
        Self {
            disk,
            clock,
            appended: appended.clone(),
            store: None,
            random: Random(seed),
            keys: 5,
            files_max: FILES_MAX[seed as usize % 2],
        }
    }

    fn act(&mut self, act: Act) {
        if self.store.is_none() {
            self.store = open(&self.disk, &self.clock, self.files_max).ok();
        }
        let Some(store) = self.store.clone() else { return };
        match act {
            Act::Settle => self.settle(&store),
            Act::Age => {
                self.clock.advance_ms(86_400_000);
                self.settle(&store);
            }
            Act::Append => (0..6).for_each(|_| self.append(&store)),
            Act::Delete => {
                let Some(partition) = partition(&store) else { return };
                let to = partition.start().get() + (partition.end().get() - partition.start().get()) / 3;
                self.appended.start_max = self.appended.start_max.max(to);
                partition.delete_records(to).ok();
            }
            Act::Close => {
                if store.close().is_ok() {
                    self.appended.synced = self.appended.rows.len();
                }
                self.store = None;
            }
        }
    }

    fn settle(&mut self, store: &Store) {
        for _ in 0..200 {
            match store.tick() {
                Ok(report) if report.is_idle() => return,
                Ok(_) => {}
                Err(_) => return,
            }
            if let Some(partition) = partition(store) {
                self.appended.start_max = self.appended.start_max.max(partition.start().get());
                self.appended.synced = self.appended.synced.max(partition.durable_end().get() as usize);
            }
        }
    }

    fn append(&mut self, store: &Store) {
        let Some(partition) = partition(store) else { return };
        let number = self.appended.rows.len();
        let key = format!("k{}", self.random.below(self.keys)).into_bytes();
        let value = (self.random.below(5) > 0).then(|| format!("{number}-{}", "v".repeat(60)).into_bytes());
        let record = Record::new(Some(key.clone().into()), value.clone().map(Into::into));
        match partition.append(record) {
            Ok(metadata) => {
                assert_eq!(metadata.offset.get(), number as i64);
                self.appended.rows.push((key, value));
                self.appended.synced = self.appended.synced.max(partition.durable_end().get() as usize);
            }
            Err(topiclog::Error::OutcomeUnknown { .. }) => self.appended.rows.push((key, value)),
            Err(_) => {}
        }
    }
}

/// A store with some segments of records, all of it on the disk.
fn filled(durability: Durability, policy: CleanupPolicy, seed: u64, before: &[Act]) -> (Image, Appended) {
    let mut run = Run::new(&Image::new(), &Appended::default(), seed);
    let store = open(&run.disk, &run.clock, run.files_max).unwrap();
    store.create_topic("t", config(durability, policy)).unwrap();
    run.store = Some(store);
    for _ in 0..4 {
        run.act(Act::Append);
    }
    before.iter().for_each(|act| run.act(*act));
    run.disk.sync_everything();
    run.appended.synced = run.appended.rows.len();
    (run.disk.image(), run.appended)
}

type Table = BTreeMap<Vec<u8>, Vec<u8>>;

fn fold<'a>(rows: impl Iterator<Item = &'a Row>) -> Table {
    let mut table = Table::new();
    for (key, value) in rows {
        match value {
            Some(value) => table.insert(key.clone(), value.clone()),
            None => table.remove(key),
        };
    }
    table
}

/// What recovery made of disks and was looked at already.
#[derive(Default)]
struct Seen {
    recovered: HashSet<(u64, u64)>,
}

/// Opens a disk and compares it with what was appended.
fn check(
    image: &Image,
    appended: &Appended,
    kept: usize,
    policy: CleanupPolicy,
    seen: &mut Seen,
) -> Result<(), String> {
    let disk = FaultVfs::from_image(image);
    let clock = Arc::new(ManualClock::new(T0 + 1));
    let store = open(&disk, &clock, FILES_MAX[1]).map_err(|error| format!("open: {error}"))?;
    let end = check_records(&store, appended, kept, policy)?;
    disk.kill();
    drop(store);
    let recovered = disk.durable_image();
    // Many disks become the same one by recovery, but for the times of their files, and what follows depends on little but that and
    // this.
    let mut question = DefaultHasher::new();
    (&appended.rows[..end as usize], appended.start_max, policy as u8).hash(&mut question);
    if seen.recovered.insert((recovered.hash(), question.finish())) {
        check_recovered(&recovered, appended, end, policy)?;
    }
    Ok(())
}

/// A second open repairs nothing; upkeep and appends go on.
fn check_recovered(image: &Image, appended: &Appended, end: i64, policy: CleanupPolicy) -> Result<(), String> {
    let (disk, clock) = (FaultVfs::from_image(image), Arc::new(ManualClock::new(T0 + 1)));
    let store = open(&disk, &clock, FILES_MAX[1]).map_err(|error| format!("second open: {error}"))?;
    if let Some(repair) = store.recovery_report().repairs().next() {
        return Err(format!("the second open repaired {repair:?}"));
    }
    let left =
        image.files().find(|(path, _)| [".cleaned", ".swap", ".deleted", ".tmp"].iter().any(|end| path.ends_with(end)));
    if let Some((path, _)) = left {
        return Err(format!("{path} is left over"));
    }
    let report = topiclog::verify_on(&disk, Path::new(ROOT)).map_err(|error| format!("verify: {error}"))?;
    if let Some(damage) = report.damages().next() {
        return Err(format!("verify: {damage:?}"));
    }
    for _ in 0..200 {
        if store.tick().map_err(|error| format!("upkeep after recovery: {error}"))?.is_idle() {
            break;
        }
    }
    let partition = partition(&store).ok_or("the partition is gone")?;
    let appended_at = partition.append(Record::keyed("again", "v")).map_err(|error| format!("append: {error}"))?;
    if appended_at.offset.get() != end {
        return Err(format!("after recovery {} was assigned, expected {end}", appended_at.offset));
    }
    let mut more = appended.clone();
    more.rows.truncate(usize::try_from(end).unwrap_or(0));
    more.rows.push((b"again".to_vec(), Some(b"v".to_vec())));
    check_records(&store, &more, 0, policy)?;
    Ok(())
}

fn check_records(store: &Store, appended: &Appended, kept: usize, policy: CleanupPolicy) -> Result<i64, String> {
    let partition = partition(store).ok_or("the partition is gone")?;
    let end = partition.end().get();
    if (end as usize) < kept || end as usize > appended.rows.len() {
        return Err(format!("ends at {end}, {kept} of {} were durable", appended.rows.len()));
    }
    let start = partition.start().get();
    if start > appended.start_max.max(0) && policy == CleanupPolicy::Compact {
        return Err(format!("starts at {start}, at most {} was asked for", appended.start_max));
    }
    let options = ReadOptions::new().level(ReadLevel::Latest);
    let mut found: Vec<(i64, Row)> = Vec::new();
    for record in partition.reader(start, &options).map_err(|error| error.to_string())? {
        let record = record.map_err(|error| format!("read: {error}"))?;
        let row = (record.key().unwrap_or_default().to_vec(), record.value().map(<[u8]>::to_vec));
        let offset = record.offset().get();
        if appended.rows.get(offset as usize) != Some(&row) {
            return Err(format!("offset {offset} is not what was appended there"));
        }
        if found.last().is_some_and(|last| last.0 >= offset) {
            return Err(format!("offset {offset} comes twice, or too late"));
        }
        found.push((offset, row));
    }
    let everything = appended.rows.iter().take(end as usize).skip(start as usize);
    let expected = fold(everything);
    let table = fold(found.iter().map(|(_, row)| row));
    if policy == CleanupPolicy::Delete {
        if found.len() as i64 != end - start {
            return Err(format!("{} records from {start} to {end}", found.len()));
        }
    } else if table != expected {
        let keys: Vec<String> =
            expected.keys().chain(table.keys()).map(|key| String::from_utf8_lossy(key).into_owned()).collect();
        return Err(format!("the table differs, keys {keys:?}, {} of {} records", found.len(), end));
    }
    for (offset, row) in &found {
        let looked_up = partition.record(*offset).map_err(|error| format!("look-up of {offset}: {error}"))?;
        if looked_up.is_none_or(|record| record.value().map(<[u8]>::to_vec) != row.1) {
            return Err(format!("the look-up of {offset} found something else"));
        }
    }
    Ok(end)
}

const SCRIPTS: [&[Act]; 9] = [
    &[Act::Settle],
    &[Act::Settle, Act::Append, Act::Settle],
    &[Act::Settle, Act::Append, Act::Age],
    &[Act::Append, Act::Age, Act::Age],
    &[Act::Delete],
    &[Act::Settle, Act::Delete],
    &[Act::Settle, Act::Close],
    &[Act::Close, Act::Settle, Act::Append],
    &[Act::Append, Act::Settle, Act::Delete, Act::Settle],
];

const POLICIES: [CleanupPolicy; 3] = [CleanupPolicy::Compact, CleanupPolicy::Delete, CleanupPolicy::CompactAndDelete];

/// What is done to which store, and by how many operations the disk stops.
struct Crash<'a> {
    image: &'a Image,
    appended: &'a Appended,
    policy: CleanupPolicy,
    script: &'static [Act],
    seed: u64,
    stop: u64,
    end: u64,
}

/// A store, its policy and the seed that filled it.
type Filled = ((Image, Appended), CleanupPolicy, u64);

/// One of each policy for each seed.
fn stores(seeds: u64) -> Vec<Filled> {
    let mut stores = Vec::new();
    for seed in 1..=seeds {
        let durability = if seed % 3 == 2 { Durability::Os } else { Durability::Sync };
        stores.extend(POLICIES.map(|policy| (filled(durability, policy, seed, &[]), policy, seed)));
    }
    stores
}

/// Every place where a script can be stopped, in an order of its own, so that however many states are asked for there are some of
/// every kind.
fn crashes<'a>(sweep: &mut Sweep, stores: &'a [Filled]) -> Vec<Crash<'a>> {
    let mut crashes = Vec::new();
    for ((image, appended), policy, seed) in stores {
        for script in SCRIPTS {
            let whole = Crash { image, appended, policy: *policy, script, seed: *seed, stop: u64::MAX, end: 0 };
            let Some(end) = sweep.guard(whole.what(), || Ok(whole.run().disk.operations())) else { continue };
            crashes.extend((0..=end).map(|stop| Crash { stop, end, ..whole }));
        }
    }
    let mut random = Random(11);
    for at in (1..crashes.len()).rev() {
        crashes.swap(at, random.below(at + 1));
    }
    crashes
}

/// Of three seeds there are some 75,000 states.
pub(crate) fn crash_sweep(states: u64, seeds: u64) -> Sweep {
    let mut sweep = Sweep::new("crash states of compaction and retention", states);
    let (stores, mut seen) = (stores(seeds), Seen::default());
    crashes(&mut sweep, &stores).iter().for_each(|crash| crash.sweep(&mut sweep, &mut seen));
    sweep
}

/// The recovery from a crash is stopped as well, at each of its operations; most of all that of an exchange of segments.
fn recovery_sweep(states: u64) -> Sweep {
    let mut sweep = Sweep::new("crashes inside recovery from compaction", states);
    let (stores, mut seen) = (stores(3), Seen::default());
    for crash in crashes(&mut sweep, &stores) {
        let Some(run) = sweep.guard(crash.what(), || Ok(crash.run())) else { continue };
        let is_exchange = |path: &str| [".cleaned", ".swap", ".deleted"].iter().any(|end| path.ends_with(end));
        let states = run.disk.crash_states(&profile(crash.stop));
        let states: Vec<_> = states.filter(|state| state.image.files().any(|(path, _)| is_exchange(path))).collect();
        for state in states.iter().step_by(states.len().div_ceil(2).max(1)) {
            if sweep.is_over() {
                return sweep;
            }
            crash.stop_recovery(&mut sweep, &mut seen, state, &run.appended);
        }
    }
    sweep
}

impl Crash<'_> {
    fn what(&self) -> String {
        format!("{:?} {:?} seed {} stopped after {} of {}", self.policy, self.script, self.seed, self.stop, self.end)
    }

    fn run(&self) -> Run {
        let mut run = Run::new(self.image, self.appended, self.seed + 100);
        run.disk.stop_after(self.stop);
        self.script.iter().for_each(|act| run.act(*act));
        run
    }

    /// How many records must be there after a crash.
    fn kept(state: &CrashState, appended: &Appended) -> usize {
        let kept = if state.rule == CrashRule::Everything { appended.rows.len() } else { appended.synced };
        // An append that was under way when the disk stopped was never acknowledged.
        kept.min(appended.rows.len())
    }

    fn stop_recovery(&self, sweep: &mut Sweep, seen: &mut Seen, state: &CrashState, appended: &Appended) {
        let kept = Self::kept(state, appended);
        for stop in 0.. {
            let disk = FaultVfs::from_image(&state.image);
            disk.stop_after(disk.operations() + stop);
            let opened = open(&disk, &Arc::new(ManualClock::new(T0 + 1)), FILES_MAX[0]).is_ok();
            for again in disk.crash_states(&profile(stop)) {
                if sweep.is_over() {
                    return;
                }
                if sweep.is_new(again.hash, kept as u64) {
                    let what = format!("{}: {state}; recovery stopped after {stop}: {again}", self.what());
                    sweep.guard(&what, || check(&again.image, appended, kept, self.policy, seen));
                }
            }
            if opened {
                return;
            }
        }
    }

    fn sweep(&self, sweep: &mut Sweep, seen: &mut Seen) {
        let what = self.what();
        let Some(run) = sweep.guard(&what, || Ok(self.run())) else { return };
        for state in run.disk.crash_states(&profile(self.stop)) {
            if sweep.is_over() {
                return;
            }
            let kept = Self::kept(&state, &run.appended);
            if sweep.is_new(state.hash, kept as u64) {
                let what = format_args!("{what}: {state}");
                sweep.guard(what, || check(&state.image, &run.appended, kept, self.policy, seen));
            }
        }
    }
}

pub(crate) fn fault_sweep(faults: u64) -> Sweep {
    let mut sweep = Sweep::new("faults in compaction and retention", faults);
    let mut seen = Seen::default();
    for policy in POLICIES {
        let (image, appended) = filled(Durability::Sync, policy, 4, &[]);
        for script in SCRIPTS {
            let mut calls = Run::new(&image, &appended, 9);
            script.iter().for_each(|act| calls.act(*act));
            let calls = calls.disk.operations();
            for number in [errno::EIO, errno::ENOSPC, errno::EMFILE] {
                for call in 0..calls + 40 {
                    if sweep.is_over() {
                        return sweep;
                    }
                    let sticky = call % 2 == 1;
                    let what = format!("{policy:?} {script:?} errno {number} at {call}, sticky {sticky}");
                    sweep.count += 1;
                    sweep.guard(&what, || {
                        let mut run = Run::new(&image, &appended, 9);
                        let plan = FaultPlan::new(Fault::Error(number)).at_call(call);
                        run.disk.inject(if sticky { plan.sticky() } else { plan });
                        script.iter().for_each(|act| run.act(*act));
                        run.disk.clear_faults();
                        run.store = None;
                        run.disk.kill();
                        check(&run.disk.image(), &run.appended, run.appended.synced, policy, &mut seen)
                    });
                }
            }
        }
    }
    sweep
}

#[test]
fn every_crash_in_compaction_and_retention_leaves_a_log_that_holds() {
    crash_sweep(250_000, 13).finish(250_000);
}

#[test]
fn a_crash_inside_the_recovery_from_one_in_compaction_changes_nothing() {
    recovery_sweep(20_000).finish(20_000);
}

#[test]
fn a_fault_in_compaction_or_retention_costs_nothing() {
    fault_sweep(6_000).finish(6_000);
}
