//! Damage done to every file of a store: whatever is hit, a record is right, or there is an error or a repair to read of.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use topiclog::clock::ManualClock;
use topiclog::io::{FaultVfs, Image};
use topiclog::{
    AppendOptions, Compression, Durability, Error, Partition, ReadLevel, ReadOptions, Record, RecoveryReport, Repair,
    Store, StoredRecord, TopicConfig, Upkeep, verify_on,
};

use crate::support::simulate::Random;

const ROOT: &str = "/s";
const T0: i64 = 1_700_000_000_000;

/// What became of a damaged store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    /// An unused or derived byte; everything is as before.
    Harmless,
    /// Made anew, and said so.
    Rebuilt,
    /// Records above the floor are gone.
    TailCut,
    /// A typed error, from the open or from a read.
    Detected,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Shown {
    offset: i64,
    timestamp: i64,
    key: Vec<u8>,
    value: Vec<u8>,
    headers: usize,
}

impl Shown {
    fn of(record: &StoredRecord) -> Self {
        Self {
            offset: record.offset().get(),
            timestamp: record.timestamp_ms(),
            key: record.key().unwrap_or_default().to_vec(),
            value: record.value().unwrap_or_default().to_vec(),
            headers: record.headers().len(),
        }
    }
}

/// A store to damage, and what it held.
struct Victim {
    name: &'static str,
    image: Image,
    records: Vec<Shown>,
    /// Nothing below this offset may be lost without an error.
    floor: i64,
    /// What an open reports and rebuilds when nothing is damaged.
    calm: (usize, u64),
    /// The disk at earlier moments.
    history: Vec<Image>,
    /// Each timestamp of the records, and those beside it.
    times: Vec<i64>,
}

/// A damaged store is asked for one of so many times, so that all of them have their turn.
const TURNS: u64 = 32;

fn open(disk: &FaultVfs, read_only: bool) -> topiclog::Result<Store> {
    let builder = Store::builder().vfs(Arc::new(disk.clone())).clock(Arc::new(ManualClock::new(T0)));
    builder.upkeep(Upkeep::Manual).id_seed(7).open_files_max(4).read_only(read_only).open(ROOT)
}

fn append_some(partition: &Partition, records: &mut Vec<Shown>, batches: usize) {
    for batch in 0..batches {
        let base = partition.end().get();
        let made: Vec<Record> = (0..1 + batch as i64 % 4).map(|index| record_at(base + index)).collect();
        let is_packed = cfg!(feature = "lz4") && batch == 3;
        let codec = if is_packed { Compression::Lz4 } else { Compression::None };
        partition.append_batch_with(&made, &AppendOptions::new().compression(codec)).unwrap();
        for (record, offset) in made.iter().zip(base..) {
            records.push(Shown {
                offset,
                timestamp: record.timestamp().unwrap(),
                key: record.key().unwrap_or_default().to_vec(),
                value: record.value().unwrap_or_default().to_vec(),
                headers: record.headers().len(),
            });
        }
    }
}

/// Times go up with steps back.
fn record_at(offset: i64) -> Record {
    let value = format!("value {offset} {}", "x".repeat(20 + (offset * 37 % 90) as usize));
    let record = Record::keyed(format!("key {}", offset % 5), value);
    let record = record.timestamp_ms(T0 + offset * 10 - offset % 3 * 25);
    if offset % 2 == 0 { record.header("h", offset.to_string()) } else { record }
}

impl Victim {
    /// Sealed segments, a closed one that is not, an active one; closed in order, or killed with records behind the floor.
    fn new(name: &'static str, durability: Durability, is_clean: bool) -> Self {
        let config = TopicConfig::default().durability(durability).segment_bytes(4096).index_interval_bytes(300);
        let config = config.batch_bytes_max(2048).max_unsynced_bytes(2048).preallocate_bytes(0);
        let disk = FaultVfs::new();
        let mut records = Vec::new();
        let mut history = Vec::new();
        let store = open(&disk, false).unwrap();
        let partition = store.create_topic("t", config).unwrap().partition(0).unwrap();
        for _ in 0..4 {
            append_some(&partition, &mut records, 12);
            assert!(store.tick().is_ok());
            history.push(disk.image());
        }
        store.close().unwrap();
        history.push(disk.image());
        drop((store, partition));
        let store = open(&disk, false).unwrap();
        let partition = store.topic("t").unwrap().partition(0).unwrap();
        append_some(&partition, &mut records, if is_clean { 9 } else { 20 });
        history.push(disk.image());
        if is_clean {
            store.close().unwrap();
        }
        drop((store, partition));
        let image = disk.image();
        let times: BTreeSet<i64> =
            records.iter().flat_map(|shown| [shown.timestamp - 1, shown.timestamp, shown.timestamp + 1]).collect();
        let times = times.into_iter().collect();
        let mut victim = Self { name, image, records, floor: 0, calm: (0, 0), history, times };
        let store = open(&FaultVfs::from_image(&victim.image), false).unwrap();
        let report = store.recovery_report();
        assert_eq!(report.is_unclean(), !is_clean, "{report:?}");
        victim.floor = report.partitions[0].floor.get();
        let partition = store.topic("t").unwrap().partition(0).unwrap();
        assert_eq!(partition.end().get(), victim.records.len() as i64);
        let mut errors = 0;
        victim.check_reads(&partition, 0, &mut errors).unwrap();
        victim.calm = (report.repairs().count(), partition.stats().indexes_rebuilt);
        let bytes: u64 = victim.image.files().map(|(_, bytes)| bytes).sum();
        let files = victim.image.files().count();
        tell!("{name}: {files} files, {bytes} bytes, {} records, floor {}", victim.records.len(), victim.floor);
        victim
    }

    fn all() -> Vec<Self> {
        vec![
            Self::new("closed in order", Durability::Sync, true),
            Self::new("killed, Sync", Durability::Sync, false),
            Self::new("killed, Os", Durability::Os, false),
        ]
    }

    /// Opens it, reads it in three ways, and says which class it is in.
    fn class_of(&self, image: &Image) -> Result<Class, String> {
        let disk = FaultVfs::from_image(image);
        let store = match open(&disk, false) {
            Ok(store) => store,
            Err(error) => {
                is_typed(&error)?;
                nothing_changed(image, &disk.image())?;
                drop(disk);
                self.judge_read_only(image)?;
                return Ok(Class::Detected);
            }
        };
        let report = store.recovery_report().clone();
        let partition = match store.topic("t").and_then(|topic| topic.partition(0)) {
            Ok(partition) => partition,
            Err(_) if tells_of_a_stranger(&report) => {
                let again = store.create_topic("t", TopicConfig::default());
                return if again.is_err() { Ok(Class::Detected) } else { Err("made anew over what is there".into()) };
            }
            Err(error) => return Err(format!("the topic is gone: {error}")),
        };
        let mut errors = 0;
        let end = self.check_reads(&partition, image.hash(), &mut errors)?;
        if end < self.floor {
            return Err(format!("ends at {end}, below the floor {}: {report:?}", self.floor));
        }
        let cuts = report.repairs().any(|repair| matches!(repair, Repair::TailCut { .. }));
        let now = (report.repairs().count(), partition.stats().indexes_rebuilt);
        Ok(match () {
            () if errors > 0 => Class::Detected,
            () if cuts || end < self.records.len() as i64 => Class::TailCut,
            () if now != self.calm => Class::Rebuilt,
            () => Class::Harmless,
        })
    }

    /// A read-only open after a refused one: it shows nothing wrong, and says what is missing.
    fn judge_read_only(&self, image: &Image) -> Result<(), String> {
        let disk = FaultVfs::from_image(image);
        let opened = open(&disk, true);
        if disk.image().hash() != image.hash() {
            return Err("a read-only open wrote".into());
        }
        let Ok(store) = opened else { return Ok(()) };
        let Ok(partition) = store.topic("t").and_then(|topic| topic.partition(0)) else { return Ok(()) };
        let mut errors = 0;
        let end =
            self.check_reads(&partition, image.hash(), &mut errors).map_err(|error| format!("read-only: {error}"))?;
        if end < self.floor && errors == 0 && store.recovery_report().repairs().next().is_none() {
            return Err(format!("read-only: ends at {end} and reports nothing"));
        }
        Ok(())
    }

    /// `turn` says for which of the times it is asked.
    fn check_reads(&self, partition: &Partition, turn: u64, errors: &mut usize) -> Result<i64, String> {
        let end = partition.end().get();
        if partition.start().get() != 0 || end > self.records.len() as i64 {
            return Err(format!("shows {}..{end} of {}", partition.start(), self.records.len()));
        }
        let held = &self.records[..end as usize];
        let options = ReadOptions::new().level(ReadLevel::Latest);
        let mut reader = partition.reader(0, &options).map_err(|error| error.to_string())?;
        let mut seen = 0;
        for found in reader.by_ref() {
            match found {
                Ok(record) => {
                    same(held.get(seen), &record, "iteration")?;
                    seen += 1;
                }
                Err(error) => {
                    is_typed(&error)?;
                    *errors += 1;
                    break;
                }
            }
        }
        if *errors == 0 && seen != held.len() {
            return Err(format!("iteration shows {seen} of {end} records and no error"));
        }
        self.check_offsets(partition, held, errors)?;
        self.check_times(partition, held, turn, errors)?;
        Ok(end)
    }

    fn check_offsets(&self, partition: &Partition, held: &[Shown], errors: &mut usize) -> Result<(), String> {
        let step = (self.records.len() / 12).max(1);
        for expected in held.iter().rev().step_by(step) {
            let options = ReadOptions::new().level(ReadLevel::Latest);
            match partition.read_with(expected.offset, 1, 1, &options) {
                Ok(fetched) => match fetched.records.first() {
                    Some(record) => same(Some(expected), record, "by offset")?,
                    None => return Err(format!("by offset: nothing at {}", expected.offset)),
                },
                Err(error) => {
                    is_typed(&error)?;
                    *errors += 1;
                }
            }
        }
        Ok(())
    }

    fn check_times(&self, partition: &Partition, held: &[Shown], turn: u64, errors: &mut usize) -> Result<(), String> {
        for &time in self.times.iter().skip((turn % TURNS) as usize).step_by(TURNS as usize) {
            let expected = held.iter().find(|record| record.timestamp >= time);
            match partition.offset_for_timestamp(time) {
                Ok(found) => {
                    let found = found.map(|found| (found.offset.get(), found.timestamp_ms));
                    if found != expected.map(|record| (record.offset, record.timestamp)) {
                        return Err(format!("by time {time}: {found:?}, expected {expected:?}"));
                    }
                }
                Err(error) => {
                    is_typed(&error)?;
                    *errors += 1;
                }
            }
        }
        let most = held.iter().map(|record| record.timestamp).max();
        let expected = held.iter().find(|record| Some(record.timestamp) == most).map(|record| record.offset);
        match partition.max_timestamp() {
            Ok(found) if found.map(|found| found.offset.get()) == expected => Ok(()),
            Ok(found) => Err(format!("largest time: {found:?}, expected {expected:?}")),
            Err(error) => {
                *errors += 1;
                is_typed(&error)
            }
        }
    }
}

fn same(expected: Option<&Shown>, record: &StoredRecord, how: &str) -> Result<(), String> {
    let shown = Shown::of(record);
    if expected == Some(&shown) { Ok(()) } else { Err(format!("{how}: SILENT {shown:?}, expected {expected:?}")) }
}

pub(crate) fn is_typed(error: &Error) -> Result<(), String> {
    match error {
        Error::Corrupt { .. } | Error::NeedsAdopt { .. } | Error::Unsupported { .. } => Ok(()),
        other => Err(format!("not an error for damage: {} {other}", other.code())),
    }
}

/// The newest list of topics is lost; the older one does not have this topic, but its directory is there.
fn tells_of_a_stranger(report: &RecoveryReport) -> bool {
    report.store.iter().any(|repair| matches!(repair, Repair::Stranger { path } if path.ends_with("t-0")))
}

/// An open that fails leaves everything as it was, but for lock files and copies in quarantine.
fn nothing_changed(before: &Image, after: &Image) -> Result<(), String> {
    let is_free = |path: &str| path.ends_with(".lock") || path.ends_with(".follow") || path.contains("/quarantine/");
    let contents = |image: &Image| -> BTreeMap<String, Vec<u8>> {
        let paths = image.files().map(|(path, _)| path.to_owned()).filter(|path| !is_free(path));
        paths.map(|path| (path.clone(), image.read(&path).unwrap())).collect()
    };
    if before.hash() == after.hash() {
        return Ok(());
    }
    let (before, after) = (contents(before), contents(after));
    if before == after {
        return Ok(());
    }
    let changed = |path: &&String| before.get(*path) != after.get(*path);
    Err(format!("a refused open changed {:?}", before.keys().chain(after.keys()).find(changed)))
}

/// A store to damage that knows what it held.
pub(crate) trait Judged: Sync {
    fn name(&self) -> &str;
    fn image(&self) -> &Image;
    /// The disk at earlier moments.
    fn history(&self) -> &[Image];
    /// The class that a damaged image of it is in. The text says what is shown that was never there.
    fn judge(&self, image: &Image) -> Result<Class, String>;
}

impl Judged for Victim {
    fn name(&self) -> &str {
        self.name
    }
    fn image(&self) -> &Image {
        &self.image
    }
    fn history(&self) -> &[Image] {
        &self.history
    }
    fn judge(&self, image: &Image) -> Result<Class, String> {
        self.class_of(image)
    }
}

/// Counts of one sweep.
#[derive(Default)]
struct Tally {
    classes: BTreeMap<Class, u64>,
    failures: Vec<String>,
}

impl Tally {
    fn merge(&mut self, other: Self) {
        other.classes.into_iter().for_each(|(class, count)| *self.classes.entry(class).or_default() += count);
        self.failures.extend(other.failures);
    }

    fn finish(self, name: &str, started: Instant, floor: u64) {
        let count = self.classes.values().sum::<u64>() + self.failures.len() as u64;
        let seconds = started.elapsed().as_secs_f64();
        tell!("{name}: {count}, {} failures, {seconds:.1} s, {:?}", self.failures.len(), self.classes);
        self.failures.iter().take(15).for_each(|failure| tell!("  {failure}"));
        assert!(self.failures.is_empty(), "{} failures", self.failures.len());
        assert!(count >= floor, "{name}: {count} is below the floor of {floor}");
    }
}

/// One way to damage one victim; the text says which.
pub(crate) type Case<'a> = Box<dyn Fn(&mut Image) -> String + Send + Sync + 'a>;

/// Judges all cases on all processors.
pub(crate) fn sweep<V: Judged>(name: &str, floor: u64, victims: &[V], cases: impl Fn(&V) -> Vec<Case<'_>>) {
    let started = Instant::now();
    let mut tally = Tally::default();
    for victim in victims {
        let cases = cases(victim);
        let next = AtomicUsize::new(0);
        let work = || {
            let mut tally = Tally::default();
            while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                let mut image = victim.image().clone();
                let what = case(&mut image);
                match catch_unwind(AssertUnwindSafe(|| victim.judge(&image))) {
                    Ok(Ok(class)) => *tally.classes.entry(class).or_default() += 1,
                    Ok(Err(problem)) => tally.failures.push(format!("{}: {what}: {problem}", victim.name())),
                    Err(_) => tally.failures.push(format!("{}: {what}: panic", victim.name())),
                }
            }
            tally
        };
        let workers = std::thread::available_parallelism().map_or(2, usize::from);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
            threads.into_iter().for_each(|thread| tally.merge(thread.join().unwrap()));
        });
    }
    tally.finish(name, started, floor);
}

/// Every file that holds something.
pub(crate) fn files(image: &Image) -> Vec<(String, Vec<u8>)> {
    image.files().map(|(path, _)| (path.to_owned(), image.read(path).unwrap())).collect()
}

/// Each byte of each file changed in three ways.
pub(crate) fn flips<V: Judged>(victim: &V) -> Vec<Case<'_>> {
    let mut cases: Vec<Case<'_>> = Vec::new();
    for (path, bytes) in files(victim.image()) {
        for (position, &byte) in bytes.iter().enumerate() {
            for changed in [byte ^ (1 << (position % 8)), byte ^ 0xff, 0] {
                if changed != byte {
                    let path = path.clone();
                    cases.push(Box::new(move |image| {
                        image.patch(&path, position as u64, &[changed]).unwrap();
                        format!("{path}[{position}] {byte:#x} became {changed:#x}")
                    }));
                }
            }
        }
    }
    cases
}

#[test]
fn a_flipped_byte_is_never_shown() {
    sweep("byte flips", 190_000, &Victim::all(), flips);
}

/// Each file cut at each byte, and made longer.
pub(crate) fn lengths<V: Judged>(victim: &V) -> Vec<Case<'_>> {
    let mut cases: Vec<Case<'_>> = Vec::new();
    for (path, bytes) in files(victim.image()) {
        for length in 0..bytes.len() {
            let path = path.clone();
            cases.push(Box::new(move |image| {
                image.set_len(&path, length as u64).unwrap();
                format!("{path} cut to {length}")
            }));
        }
        let mut random = Random(bytes.len() as u64);
        for more in (1..=96).chain((97..4096).step_by(61)) {
            let garbage: Vec<u8> = (0..more).map(|_| random.below(256) as u8).collect();
            let doubled = bytes[bytes.len().saturating_sub(more)..].to_vec();
            for (kind, tail) in [("garbage", garbage), ("zeros", vec![0; more]), ("its tail again", doubled)] {
                let (path, at) = (path.clone(), bytes.len() as u64);
                cases.push(Box::new(move |image| {
                    image.patch(&path, at, &tail).unwrap();
                    format!("{path} longer by {more}: {kind}")
                }));
            }
        }
    }
    cases
}

#[test]
fn a_cut_or_longer_file_is_never_taken_for_whole() {
    sweep("cut and extended", 110_000, &Victim::all(), lengths);
}

/// Files removed, emptied, copied, as of earlier moments and in each other's place; blocks of them zeroed or moved.
pub(crate) fn surgery<V: Judged>(victim: &V) -> Vec<Case<'_>> {
    let mut cases: Vec<Case<'_>> = Vec::new();
    let all = files(victim.image());
    for (path, bytes) in &all {
        cases.push(replace(path, None, "removed".into()));
        cases.push(replace(path, Some(Vec::new()), "emptied".into()));
        let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
        let other_base = name.split_once('.').filter(|(base, _)| base.len() == 20);
        let mut copies = vec![format!("{path}.bak"), format!("{path}.tmp"), format!("s/{name}.copy")];
        copies.extend(other_base.map(|(_, suffix)| format!("{directory}/00000000000000009999.{suffix}")));
        copies.extend(other_base.map(|(_, suffix)| format!("{directory}/00000000000000000001.{suffix}")));
        copies.extend([format!("s/t-1/{name}"), format!("s/{name}-0/{name}")]);
        for copy in copies {
            cases.push(replace(&copy, Some(bytes.clone()), format!("a copy of {path}")));
        }
        for (age, older) in victim.history().iter().enumerate() {
            if let Some(old) = older.read(path).filter(|old| old != bytes) {
                cases.push(replace(path, Some(old), format!("as of moment {age}")));
            }
        }
        for size in [512, 4096] {
            blocks(&mut cases, path, bytes, size);
        }
    }
    for (index, (one, _)) in all.iter().enumerate() {
        for (other, _) in &all[index + 1..] {
            // With the log goes what says how much of it was synced: nothing can tell that from a torn write.
            if one.ends_with(".log") && (other.ends_with("topiclog.floor") || other.contains("topiclog.partition.")) {
                continue;
            }
            let (one, other) = (one.clone(), other.clone());
            cases.push(Box::new(move |image| {
                let (ours, theirs) = (image.read(&one).unwrap(), image.read(&other).unwrap());
                image.write(&one, &theirs).unwrap();
                image.write(&other, &ours).unwrap();
                format!("{one} swapped with {other}")
            }));
        }
    }
    cases
}

#[test]
fn files_removed_swapped_copied_or_moved_about_are_noticed() {
    sweep("file surgery", 3_000, &Victim::all(), surgery);
}

fn replace<'a>(path: &str, bytes: Option<Vec<u8>>, what: String) -> Case<'a> {
    let path = path.to_owned();
    Box::new(move |image| {
        match &bytes {
            Some(bytes) => image.write(&path, bytes).unwrap(),
            None => assert!(image.remove(&path)),
        }
        format!("{path} {what}")
    })
}

/// Each block zeroed, and put in the place of some others.
fn blocks(cases: &mut Vec<Case<'_>>, path: &str, bytes: &[u8], size: usize) {
    let parts: Vec<&[u8]> = bytes.chunks(size).collect();
    for (index, part) in parts.iter().enumerate() {
        let mut contents = vec![(vec![0; part.len()], "zeroed".to_owned())];
        for step in 1..=12 {
            let other = (index + step) % parts.len();
            let moved = &parts[other][..parts[other].len().min(part.len())];
            contents.push((moved.to_vec(), format!("replaced by block {other}")));
        }
        for (content, how) in contents {
            if content[..] != part[..content.len()] {
                let path = path.to_owned();
                cases.push(Box::new(move |image| {
                    image.patch(&path, (index * size) as u64, &content).unwrap();
                    format!("{path}, block {index} of {size} bytes {how}")
                }));
            }
        }
    }
}

#[test]
fn every_flip_in_a_sealed_segment_is_damage_to_a_verification() {
    let started = Instant::now();
    let victim = Victim::new("closed in order", Durability::Sync, true);
    let is_sealed = |path: &str| victim.image.read(path.replace(".log", ".seal")).is_some();
    let logs: Vec<_> =
        files(&victim.image).into_iter().filter(|(path, _)| path.ends_with(".log") && is_sealed(path)).collect();
    assert!(logs.len() >= 2, "{} sealed segments", logs.len());
    let (mut count, mut missed) = (0, 0);
    for (path, bytes) in logs {
        for (position, byte) in bytes.iter().enumerate() {
            let disk = FaultVfs::from_image(&victim.image);
            disk.patch(&path, position as u64, &[byte ^ (1 << (position % 8))]).unwrap();
            let report = verify_on(&disk, Path::new(ROOT)).unwrap();
            count += 1;
            missed +=
                u64::from(!report.damages().any(|finding| finding.path.ends_with(path.rsplit('/').next().unwrap())));
        }
    }
    tell!("verified flips: {count}, {missed} failures, {:.1} s", started.elapsed().as_secs_f64());
    assert!(missed == 0 && count >= 8_000, "{missed} of {count}");
}

#[test]
fn a_look_up_by_time_sees_what_was_appended_after_a_clean_reopen() {
    let disk = FaultVfs::new();
    let store = open(&disk, false).unwrap();
    let topic = store.create_topic("t", TopicConfig::default()).unwrap();
    topic.append(Record::of_value("old").timestamp_ms(T0)).unwrap();
    store.close().unwrap();
    let store = open(&disk, false).unwrap();
    let partition = store.topic("t").unwrap().partition(0).unwrap();
    partition.append(Record::of_value("new").timestamp_ms(T0 + 10)).unwrap();
    for time in [T0 - 1, T0 + 1, T0 + 10] {
        let found = partition.offset_for_timestamp(time).unwrap().unwrap();
        assert_eq!(found.offset.get(), i64::from(time > T0), "{time}");
    }
    assert_eq!(partition.max_timestamp().unwrap().unwrap().offset.get(), 1);
}
