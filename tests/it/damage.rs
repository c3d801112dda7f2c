//! Damage anywhere in any file: what is shown was appended, or the damage is told of. Never silence.
//!
//! The quick form of `damage_sweeps`, for those who plant bugs: one small store, closed and killed.
//!
//! Each damaged store lands in one class: *harmless* (the same records, nothing reported), *rebuilt* (the same records,
//! something repaired or made anew), *cut* (a tail above the floor of a store that was not closed went) or *detected* (a typed
//! error). Anything else is silent, and fails.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use topiclog::clock::ManualClock;
use topiclog::io::{FaultVfs, Image, Vfs};
use topiclog::{Durability, Partition, ReadLevel, ReadOptions, Record, Store, TopicConfig, Upkeep};

const T0: i64 = 1_700_000_000_000;

fn open(vfs: &FaultVfs) -> topiclog::Result<Store> {
    let clock = Arc::new(ManualClock::new(T0));
    Store::builder().vfs(Arc::new(vfs.clone())).clock(clock).upkeep(Upkeep::Manual).id_seed(9).open("/s")
}

/// A store as it was left, and what is in it.
struct Case {
    image: Image,
    /// An earlier state of the same store.
    older: Image,
    /// Offset, timestamp and value of each record.
    records: Vec<(i64, i64, Vec<u8>)>,
    /// Records below this offset were known to be synced: no recovery may cut them.
    floor: i64,
}

/// Sealed segments, a closed one and an active one; batches of one and of several records.
fn case(is_clean: bool) -> Case {
    let vfs = FaultVfs::new();
    vfs.create_dir(Path::new("/s")).unwrap();
    vfs.sync_everything();
    let store = open(&vfs).unwrap();
    let config = TopicConfig::default()
        .durability(Durability::Sync)
        .segment_bytes(1200)
        .index_interval_bytes(100)
        .batch_bytes_max(1000)
        .preallocate_bytes(512);
    let partition = store.create_topic("t", config).unwrap().partition(0).unwrap();
    let mut records: Vec<(i64, i64, Vec<u8>)> = Vec::new();
    let append = |records: &mut Vec<(i64, i64, Vec<u8>)>, count: i64| {
        let first = records.len() as i64;
        let batch: Vec<Record> = (first..first + count)
            .map(|offset| {
                let (time, value) = (T0 + (offset * 37) % 101, format!("value-{offset}").repeat(3).into_bytes());
                records.push((offset, time, value.clone()));
                Record::keyed(format!("k{offset}"), value).timestamp_ms(time).header("h", "x")
            })
            .collect();
        partition.append_batch(&batch).unwrap();
    };
    for round in 0..14 {
        append(&mut records, 1 + round % 4);
    }
    while !store.tick().unwrap().is_idle() {}
    let older = vfs.image();
    for round in 0..10 {
        append(&mut records, 1 + round % 3);
    }
    // The active segment begins where everything before it was synced at the roll.
    let active = vfs.image().files().filter(|(path, _)| path.ends_with(".log")).map(|(path, _)| path.to_owned()).max();
    let floor = active.unwrap().rsplit('/').next().unwrap()[..20].parse().unwrap();
    if is_clean {
        store.close().unwrap();
    }
    drop((store, partition));
    vfs.kill();
    let floor = if is_clean { records.len() as i64 } else { floor };
    Case { image: vfs.image(), older, records, floor }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    Harmless,
    Rebuilt,
    Cut,
    Detected,
}

/// Asks for times before anything was read, and so checked. False if an answer was an error.
fn judge_times(partition: &Partition, held: &[(i64, i64, Vec<u8>)]) -> Result<bool, String> {
    let latest = held.iter().map(|record| record.1).max();
    let mut asked: Vec<_> =
        [T0, T0 + 50, T0 + 100].map(|time| (Some(time), partition.offset_for_timestamp(time))).into();
    asked.extend(latest.into_iter().flat_map(|latest| {
        [(Some(latest), partition.offset_for_timestamp(latest)), (None, partition.max_timestamp())]
    }));
    let mut holds = true;
    for (time, found) in asked {
        let expected = held.iter().find(|record| Some(record.1) >= time.or(latest)).map(|record| record.0);
        match found {
            Ok(found) if found.map(|found| found.offset.get()) == expected => {}
            Ok(found) => return Err(format!("time {time:?}: {found:?} and not {expected:?}")),
            Err(_) => holds = false,
        }
    }
    Ok(holds)
}

/// Opens a damaged store, reads it in every way and says which class it is in; the text says what is silent.
fn judge(case: &Case, image: &Image) -> Result<Class, String> {
    let vfs = FaultVfs::from_image(image);
    let Ok(store) = open(&vfs) else { return Ok(Class::Detected) };
    let Ok(partition) = store.topic("t").and_then(|topic| topic.partition(0)) else {
        return if store.topics().is_empty() { Err("the topic is gone".into()) } else { Ok(Class::Detected) };
    };
    let report = store.recovery_report();
    let (start, end) = (partition.start().get(), partition.end().get());
    if start != 0 {
        return Err(format!("begins at {start}"));
    }
    let times_hold = judge_times(&partition, case.records.get(..end as usize).ok_or("a record from nowhere")?)?;
    let mut seen = 0;
    let reader =
        partition.reader(0, &ReadOptions::new().level(ReadLevel::Latest)).map_err(|error| error.to_string())?;
    for record in reader {
        let Ok(record) = record else { return Ok(Class::Detected) };
        let Some((offset, time, value)) = case.records.get(seen) else { return Err("a record from nowhere".into()) };
        let found = (record.offset().get(), record.timestamp_ms(), record.value(), record.leader_epoch());
        if found != (*offset, *time, Some(&value[..]), 0) {
            return Err(format!("offset {offset} shows something else"));
        }
        seen += 1;
    }
    if seen as i64 != end {
        return Err(format!("{seen} records shown, the end is {end}"));
    }
    for (offset, _, value) in case.records.iter().take(seen) {
        match partition.record(*offset) {
            Ok(Some(record)) if record.value() == Some(&value[..]) => {}
            Ok(_) => return Err(format!("the look-up of offset {offset} shows something else")),
            Err(_) => return Ok(Class::Detected),
        }
    }
    if !times_hold {
        return Ok(Class::Detected);
    }
    if seen < case.records.len() {
        // A tail that is simply not there looks like one that was never written; above the floor nobody can tell.
        let is_above = seen as i64 >= case.floor && report.is_unclean();
        return if is_above { Ok(Class::Cut) } else { Err(format!("{seen} of {} records", case.records.len())) };
    }
    let rebuilt = partition.stats().indexes_rebuilt > 0;
    let repaired = report.repairs().next().is_some() || report.is_unclean();
    Ok(if rebuilt || repaired { Class::Rebuilt } else { Class::Harmless })
}

struct Sweep {
    name: &'static str,
    classes: BTreeMap<Class, u64>,
    silent: Vec<String>,
    started: Instant,
}

impl Sweep {
    fn new(name: &'static str) -> Self {
        Self { name, classes: BTreeMap::new(), silent: Vec::new(), started: Instant::now() }
    }

    fn take(&mut self, case: &Case, image: &Image, what: impl Fn() -> String) {
        let judged = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| judge(case, image)));
        match judged {
            Ok(Ok(class)) => *self.classes.entry(class).or_default() += 1,
            Ok(Err(why)) => self.silent.push(format!("{}: {why}", what())),
            Err(_) => self.silent.push(format!("{}: a panic", what())),
        }
    }

    fn finish(self, least: u64) {
        let count = self.classes.values().sum::<u64>() + self.silent.len() as u64;
        let seconds = self.started.elapsed().as_secs_f64();
        tell!("{}: {count}, {} failures, {seconds:.1} s, {:?}", self.name, self.silent.len(), self.classes);
        self.silent.iter().take(12).for_each(|silent| tell!("  {silent}"));
        assert!(self.silent.is_empty(), "{} silent", self.silent.len());
        assert!(count >= least, "only {count} of {least}");
    }
}

fn files(image: &Image) -> Vec<(String, u64)> {
    image.files().map(|(path, bytes)| (path.to_owned(), bytes)).collect()
}

#[test]
pub(crate) fn no_changed_byte_is_passed_over_in_silence() {
    let mut sweep = Sweep::new("byte flips");
    for is_clean in [true, false] {
        let case = case(is_clean);
        for (path, bytes) in files(&case.image) {
            let content = case.image.read(&path).unwrap();
            for position in 0..bytes {
                let byte = content[position as usize];
                for (nth, changed) in [byte ^ (1 << (position % 8)), !byte, 0].into_iter().enumerate() {
                    // The floor's pages are zeros but for their entries, and so is space that was taken ahead.
                    if changed == byte || (byte == 0 && position % 64 > 0 && nth == 1 && position > 300) {
                        continue;
                    }
                    let mut image = case.image.clone();
                    image.patch(&path, position, &[changed]).unwrap();
                    sweep.take(&case, &image, || {
                        format!("clean {is_clean}: {path} at {position}: {byte:02x} to {changed:02x}")
                    });
                }
            }
        }
    }
    sweep.finish(44_000);
}

#[test]
pub(crate) fn no_other_length_is_passed_over_in_silence() {
    let mut sweep = Sweep::new("lengths");
    for is_clean in [true, false] {
        let case = case(is_clean);
        for (path, bytes) in files(&case.image) {
            let content = case.image.read(&path).unwrap();
            for length in 0..bytes {
                let mut image = case.image.clone();
                image.set_len(&path, length).unwrap();
                sweep.take(&case, &image, || format!("clean {is_clean}: {path} cut to {length}"));
            }
            for more in [1, 7, 61, 64, 512, 4096] {
                for tail in [vec![0; more], vec![0xa5; more], content.iter().copied().cycle().take(more).collect()] {
                    let mut image = case.image.clone();
                    let all: Vec<u8> = content.iter().copied().chain(tail).collect();
                    image.write(&path, &all).unwrap();
                    sweep.take(&case, &image, || format!("clean {is_clean}: {path} with {more} more"));
                }
            }
        }
    }
    sweep.finish(22_000);
}

#[test]
pub(crate) fn no_exchanged_file_is_passed_over_in_silence() {
    let mut sweep = Sweep::new("file surgery");
    for is_clean in [true, false] {
        let case = case(is_clean);
        let all = files(&case.image);
        for (path, bytes) in &all {
            let content = case.image.read(path).unwrap();
            let mut take = |what: &str, change: &dyn Fn(&mut Image)| {
                let mut image = case.image.clone();
                change(&mut image);
                sweep.take(&case, &image, || format!("clean {is_clean}: {path} {what}"));
            };
            take("removed", &|image| assert!(image.remove(path)));
            take("emptied", &|image| image.write(path, &[]).unwrap());
            if let Some(old) = case.older.read(path) {
                take("older", &|image| image.write(path, &old).unwrap());
            }
            let block = 64;
            for start in (0..*bytes).step_by(block) {
                let end = (start as usize + block).min(content.len());
                take("block zeroed", &|image| image.patch(path, start, &vec![0; end - start as usize]).unwrap());
                let other = content.get(..end - start as usize).unwrap_or_default();
                take("block moved", &|image| image.patch(path, start, other).unwrap());
            }
            for (other, _) in &all {
                if other != path {
                    let theirs = case.image.read(other).unwrap();
                    take("exchanged", &|image| {
                        image.write(path, &theirs).unwrap();
                        image.write(other, &content).unwrap();
                    });
                    take("overwritten", &|image| image.write(path, &theirs).unwrap());
                }
            }
        }
    }
    sweep.finish(4_000);
}
