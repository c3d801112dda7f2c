//! Scripts on the simulated disk, the disks that a crash leaves, and what is asked of each.

use std::collections::HashSet;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use topiclog::clock::ManualClock;
use topiclog::io::{CrashProfile, CrashRule, FaultVfs, Image};
use topiclog::{ReadLevel, Record};

use super::ops::{Flavour, Op, Runner, hold_follow, open, read_all, settle};
use super::oracle::{Claim, Model, good_part};

/// The seed of a random test: what `TOPICLOG_SEED` says, or its own. Printed, so that a failure can be had again.
pub(crate) fn seed(of: &str, own: u64) -> u64 {
    let given = std::env::var("TOPICLOG_SEED").ok();
    let given = given.map(|text| text.parse().unwrap_or_else(|_| panic!("TOPICLOG_SEED is {text:?}, and no number")));
    let seed = given.unwrap_or(own);
    tell!("{of}: TOPICLOG_SEED={seed}");
    seed
}

/// Counts, failures and time of one sweep.
pub(crate) struct Sweep {
    name: &'static str,
    started: Instant,
    pub(crate) count: u64,
    pub(crate) failures: Vec<String>,
    /// No more than this many are looked at.
    pub(crate) count_max: u64,
    seen: HashSet<(u64, u64)>,
    images: HashSet<u64>,
}

impl Sweep {
    pub(crate) fn new(name: &'static str, count_max: u64) -> Self {
        let started = Instant::now();
        Self { name, started, count: 0, failures: Vec::new(), count_max, seen: HashSet::new(), images: HashSet::new() }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.count >= self.count_max || self.failures.len() >= 20
    }

    pub(crate) fn fail(&mut self, what: String) {
        self.failures.push(what);
    }

    /// Runs a check; a panic is a failure like any other.
    pub(crate) fn guard<R>(&mut self, what: impl Display, call: impl FnOnce() -> Result<R, String>) -> Option<R> {
        match catch_unwind(AssertUnwindSafe(call)) {
            Ok(Ok(value)) => return Some(value),
            Ok(Err(problem)) => self.fail(format!("{what}: {problem}")),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default();
                self.fail(format!("{what}: panic: {text}"));
            }
        }
        None
    }

    /// Whether this disk has not been asked this before.
    pub(crate) fn is_new(&mut self, image: u64, question: u64) -> bool {
        if self.images.insert(image) {
            self.count += 1;
        }
        self.seen.insert((image, question))
    }

    pub(crate) fn finish(self, floor: u64) {
        let seconds = self.started.elapsed().as_secs_f64();
        tell!("{}: {}, {} failures, {seconds:.1} s", self.name, self.count, self.failures.len());
        self.failures.iter().take(12).for_each(|failure| tell!("  {failure}"));
        assert!(self.failures.is_empty(), "{} failures", self.failures.len());
        assert!(self.count >= floor, "{}: {} is below the floor of {floor}", self.name, self.count);
    }
}

/// A disk to start from, what it holds, and the number of the next record.
#[derive(Clone)]
pub(crate) struct Base {
    pub(crate) flavour: Flavour,
    pub(crate) image: Image,
    pub(crate) model: Model,
    pub(crate) counter: u64,
}

impl Base {
    /// A store after a script; everything is on the disk.
    pub(crate) fn after(flavour: Flavour, ops: &[Op]) -> Self {
        let mut runner = Runner::new(&Image::new(), &Model::default(), flavour, 0);
        runner.reopen();
        ops.iter().for_each(|op| runner.apply(*op));
        assert!(runner.problems.is_empty(), "{:?}", runner.problems);
        runner.disk.sync_everything();
        runner.model.topics.values_mut().for_each(|topic| topic.log.synced_to(i64::MAX));
        let (image, counter) = (runner.disk.image(), runner.counter());
        Self { flavour, image, model: runner.model, counter }
    }

    /// New, with sealed segments, and killed with a torn one.
    pub(crate) fn all() -> Vec<Self> {
        use Op::*;
        let scripts: [&[Op]; 3] =
            [&[], &[Large, Small, Large, Batch, Reopen], &[Create, Small, Large, Large, Small, Small, Tick]];
        Flavour::ALL.into_iter().flat_map(|flavour| scripts.map(|script| Self::after(flavour, script))).collect()
    }

    /// An `Os` topic that was killed with its first segment torn, for the second time: what lies behind goes into
    /// quarantine, and the recovery before had begun a copy.
    pub(crate) fn torn() -> Self {
        use Op::*;
        let mut base = Self::after(Flavour::Os, &[Large, Small, Batch, Large, Batch, Large, Small, Large]);
        let (first, bytes) = log_files(&base.image, "t").swap_remove(0);
        assert_eq!(first, 0);
        base.image.patch("s/t-0/00000000000000000000.log", bytes.len() as u64 - 100, &[0xa5; 40]).unwrap();
        base.image.write("s/t-0/00000000000000000000.log.cleaned", &bytes[..100]).unwrap();
        let left = good_part(&log_files(&base.image, "t")).len() as i64;
        let topic = base.model.topics.get_mut("t").unwrap();
        assert!(left > 0 && left < topic.log.end());
        topic.log.settle(left);
        base
    }

    pub(crate) fn runner(&self) -> Runner {
        Runner::new(&self.image, &self.model, self.flavour, self.counter)
    }
}

/// The log files of a topic's first partition, by base offset.
fn log_files(image: &Image, topic: &str) -> Vec<(i64, Vec<u8>)> {
    let prefix = format!("s/{topic}-0/");
    let files = image.files().filter_map(|(path, _)| {
        let base = path.strip_prefix(&prefix)?.strip_suffix(".log")?.parse().ok()?;
        Some((base, image.read(path)?))
    });
    files.collect()
}

fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::new(1_700_000_500_000))
}

/// Opens a disk and compares it with the oracle; returns what holds and the disk after that.
pub(crate) fn verify(image: &Image, model: &Model, survives: Claim, deep: bool) -> Result<Model, String> {
    let disk = FaultVfs::from_image(image);
    let held = image.hash().is_multiple_of(2).then(|| hold_follow(&disk));
    let store = open(&disk, &clock(), false).map_err(|error| format!("open: {error}"))?;
    let settled = settle(&store, model, survives)?;
    for (name, topic) in &settled.topics {
        let expected = good_part(&log_files(image, name));
        if expected.len() as i64 != topic.log.end() {
            return Err(format!("{name}: ends at {}, the disk holds {} good records", topic.log.end(), expected.len()));
        }
    }
    drop(held);
    if deep {
        disk.kill();
        drop(store);
        verify_second_open(&disk, &settled)?;
    }
    Ok(settled)
}

/// A second open repairs nothing; appends go on and survive the next crash.
fn verify_second_open(disk: &FaultVfs, settled: &Model) -> Result<(), String> {
    let before = disk.durable_image();
    let disk = FaultVfs::from_image(&before);
    let store = open(&disk, &clock(), false).map_err(|error| format!("second open: {error}"))?;
    if let Some(repair) = store.recovery_report().repairs().next() {
        return Err(format!("the second open repaired {repair:?}"));
    }
    if disk.image().hash() != before.hash() {
        return Err("the second open changed the disk".into());
    }
    let left = before.files().find(|(path, _)| path.ends_with(".tmp") || path.ends_with(".cleaned"));
    if let Some((path, _)) = left {
        return Err(format!("{path} is left over"));
    }
    if let Some(path) = before.directories().find(|path| path.ends_with("-delete")) {
        return Err(format!("{path} is left over"));
    }
    settle(&store, settled, Claim::Synced)?;
    for (name, topic) in &settled.topics {
        let options = topiclog::AppendOptions::new().durability(topiclog::Durability::Sync);
        let appended = store.topic(name).and_then(|handle| handle.append_with(Record::of_value("again"), &options));
        let appended = appended.map_err(|error| format!("append after recovery: {error}"))?;
        if appended.offset.get() != topic.log.end() {
            return Err(format!("after recovery {} was assigned, expected {}", appended.offset, topic.log.end()));
        }
    }
    let third = FaultVfs::from_image(&disk.durable_image());
    let store = open(&third, &clock(), false).map_err(|error| format!("third open: {error}"))?;
    for (name, topic) in &settled.topics {
        let partition = store.topic(name).and_then(|handle| handle.partition(0)).map_err(|error| error.to_string())?;
        let records = read_all(&partition, ReadLevel::Latest).map_err(|error| error.to_string())?;
        let (last, old) = records.split_last().ok_or("the append after recovery is lost")?;
        topic.log.check(old, Claim::Synced)?;
        if last.1.value != b"again" {
            return Err("the append after recovery is lost".into());
        }
    }
    Ok(())
}

pub(crate) fn survives(rule: CrashRule) -> Claim {
    if rule == CrashRule::Everything { Claim::Acked } else { Claim::Synced }
}

/// Fewer of each kind than the strictest profile, all kinds.
pub(crate) fn profile(seed: u64) -> CrashProfile {
    let mut profile = CrashProfile::strict();
    profile.seed = seed;
    (profile.random, profile.prefixes_max, profile.torn_prefixes) = (4, 64, 2);
    (profile.cuts_max, profile.subsets_of_blocks_max, profile.subsets_of_names_max) = (8, 5, 4);
    profile
}

/// Crashes a script at every operation of its last step (the earlier ones belong to shorter scripts), and looks at every
/// disk that this could leave.
pub(crate) fn crash_script(sweep: &mut Sweep, base: &Base, ops: &[Op]) {
    let Some((last, before)) = ops.split_last() else { return };
    let start = |stop: Option<u64>| {
        let mut runner = base.runner();
        before.iter().for_each(|op| runner.apply(*op));
        let begun = runner.disk.operations();
        if let Some(stop) = stop {
            runner.disk.stop_after(stop);
        }
        runner.apply(*last);
        (begun, runner)
    };
    let what = format!("{:?} {ops:?}", base.flavour);
    let Some((begun, whole)) = sweep.guard(&what, || Ok(start(None))) else { return };
    whole.problems.iter().for_each(|problem| sweep.fail(format!("{what}: {problem}")));
    let end = whole.disk.operations();
    for stop in begun..=end {
        let what = format!("{what} stopped after {stop} of {begun}..={end}");
        let Some((_, runner)) = sweep.guard(&what, || Ok(start(Some(stop)))) else { return };
        runner.problems.iter().for_each(|problem| sweep.fail(format!("{what}: {problem}")));
        let question = runner.model.fingerprint();
        for state in runner.disk.crash_states(&profile(stop)) {
            let survives = survives(state.rule);
            if sweep.is_over() {
                return;
            }
            if !sweep.is_new(state.hash, question ^ survives as u64) {
                continue;
            }
            let deep = state.hash.is_multiple_of(8);
            sweep.guard(format_args!("{what}: {state}"), || verify(&state.image, &runner.model, survives, deep));
        }
    }
}

/// Crashes the recovery of a disk at every operation; the outcome must be that of one recovery.
pub(crate) fn crash_recovery(sweep: &mut Sweep, what: &str, image: &Image, model: &Model, survives: Claim) {
    let Some(once) = sweep.guard(what, || verify(image, model, survives, false)) else { return };
    for copies in [false, true] {
        for stop in 0.. {
            let disk = FaultVfs::from_image(image);
            let held = copies.then(|| hold_follow(&disk));
            disk.stop_after(disk.operations() + stop);
            let opened = open(&disk, &clock(), false).is_ok();
            drop(held);
            for state in disk.crash_states(&profile(stop)) {
                if sweep.is_over() {
                    return;
                }
                if sweep.is_new(state.hash, once.fingerprint()) {
                    let what = format!("{what}; recovery stopped after {stop}, copies {copies}: {state}");
                    let deep = state.hash.is_multiple_of(8);
                    sweep.guard(&what, || {
                        let again = verify(&state.image, model, survives, deep)?;
                        let same = again.fingerprint() == once.fingerprint();
                        if same { Ok(()) } else { Err("another outcome than without the second crash".into()) }
                    });
                }
            }
            if opened {
                break;
            }
        }
    }
}

/// Numbers from a seed.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.0 >> 33) as usize % end
    }
}
