//! Damage done to a broker's directories: taken over, where checksums of ours cover every byte, and bare, where only
//! Kafka's do, and what passes unseen is counted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use topiclog::clock::ManualClock;
use topiclog::io::{Fault, FaultPlan, FaultVfs, Image, OpKind, errno};
use topiclog::{
    AdoptOptions, Error, Isolation, Partition, ReadLevel, ReadOptions, Record, Repair, Store, StoredRecord, Upkeep,
};

use crate::damage_sweeps::{Class, Judged, files, flips, is_typed, lengths, surgery, sweep};
use crate::kafka_dirs::fixtures;

const ROOT: &str = "/s";
const T0: i64 = 1_700_000_000_000;

/// A record as it is shown: offset, leader epoch, time, key, value, number of headers.
type Shown = (i64, i32, i64, Option<Vec<u8>>, Option<Vec<u8>>, usize);

fn shown(record: &StoredRecord) -> Shown {
    let (key, value) = (record.key().map(<[u8]>::to_vec), record.value().map(<[u8]>::to_vec));
    (record.offset().get(), record.leader_epoch(), record.timestamp_ms(), key, value, record.headers().len())
}

/// What one partition shows when nothing is damaged.
struct Held {
    topic: String,
    partition: u32,
    start: i64,
    end: i64,
    stable: i64,
    committed: Vec<Shown>,
    uncommitted: Vec<Shown>,
    /// What is found by each time of the log and by those beside it; by none, the latest.
    by_time: Vec<(Option<i64>, Option<Found>)>,
    turn: AtomicUsize,
}

const TURNS: usize = 8;

/// An offset, and the time of what is there.
type Found = (i64, i64);

/// Looks up by time, or for the latest.
fn find(partition: &Partition, time: Option<i64>) -> topiclog::Result<Option<Found>> {
    let found = match time {
        Some(time) => partition.offset_for_timestamp(time)?,
        None => partition.max_timestamp()?,
    };
    Ok(found.map(|found| (found.offset.get(), found.timestamp_ms)))
}

const ISOLATIONS: [Isolation; 2] = [Isolation::Committed, Isolation::Uncommitted];

fn options(isolation: Isolation) -> ReadOptions {
    ReadOptions::new().level(ReadLevel::Latest).isolation(isolation)
}

impl Held {
    fn of(partition: &Partition) -> Self {
        let read = |isolation| -> Vec<Shown> {
            let reader = partition.reader(partition.start(), &options(isolation)).unwrap();
            reader.map(|record| shown(&record.unwrap())).collect()
        };
        let uncommitted = read(Isolation::Uncommitted);
        let times: BTreeSet<i64> = uncommitted.iter().flat_map(|shown| [shown.2 - 1, shown.2, shown.2 + 1]).collect();
        let times = times.into_iter().map(Some).chain([None]);
        Self {
            turn: AtomicUsize::new(0),
            by_time: times.map(|time| (time, find(partition, time).unwrap())).collect(),
            topic: partition.id().topic.to_string(),
            partition: partition.id().partition.get(),
            start: partition.start().get(),
            end: partition.end().get(),
            stable: partition.last_stable_offset().get(),
            committed: read(Isolation::Committed),
            uncommitted,
        }
    }

    fn records(&self, isolation: Isolation) -> &[Shown] {
        if isolation == Isolation::Committed { &self.committed } else { &self.uncommitted }
    }

    /// Whether two disks have the same files of it.
    fn is_same(&self, one: &Image, other: &Image) -> bool {
        let directory = format!("s/{}-{}/", self.topic, self.partition);
        let files = |image: &Image| -> Vec<(String, Vec<u8>)> {
            let paths = image.files().map(|(path, _)| path).filter(|path| path.starts_with(&directory));
            paths.map(|path| (path.to_owned(), image.read(path).unwrap())).collect()
        };
        files(one) == files(other)
    }

    /// Reads it again. True if all is as before; false if there was an error or `may_miss` and a part is not there.
    fn check(&self, store: &Store, may_miss: bool) -> Result<bool, String> {
        let partition = match store.topic(&self.topic).and_then(|topic| topic.partition(self.partition)) {
            Ok(partition) => partition,
            Err(_) if may_miss => return Ok(false),
            Err(error) => return is_typed(&error).map(|()| false),
        };
        if may_miss && partition.start().get() != self.start {
            return Ok(false);
        }
        let mut is_whole = true;
        for isolation in ISOLATIONS {
            is_whole &= self.check_records(&partition, isolation, may_miss)?;
        }
        is_whole &= self.check_offsets(&partition, may_miss)?;
        let bounds = (partition.start().get(), partition.end().get(), partition.last_stable_offset().get());
        if bounds != (self.start, self.end, self.stable) {
            let expected = (self.start, self.end, self.stable);
            return if may_miss { Ok(false) } else { Err(format!("{}: {bounds:?}, not {expected:?}", self.topic)) };
        }
        Ok(is_whole)
    }

    fn check_records(&self, partition: &Partition, isolation: Isolation, may_miss: bool) -> Result<bool, String> {
        let expected = self.records(isolation);
        let reader = match partition.reader(partition.start(), &options(isolation)) {
            Ok(reader) => reader,
            Err(error) => return is_typed(&error).map(|()| false),
        };
        let mut seen = 0;
        for found in reader {
            match found {
                Ok(record) if expected.get(seen) == Some(&shown(&record)) => seen += 1,
                Ok(record) => {
                    let (found, expected) = (shown(&record), expected.get(seen));
                    return Err(format!("{} {isolation:?}: SILENT {found:?}, expected {expected:?}", self.topic));
                }
                Err(error) => return is_typed(&error).map(|()| false),
            }
        }
        match seen == expected.len() {
            true => Ok(true),
            false if may_miss => Ok(false),
            false => Err(format!("{} {isolation:?}: {seen} of {} and no error", self.topic, expected.len())),
        }
    }

    /// Each call asks for an eighth of the times, and for the latest: in turns, as there are many calls.
    fn check_times(&self, store: &Store, may_miss: bool) -> Result<bool, String> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let partition = match store.topic(&self.topic).and_then(|topic| topic.partition(self.partition)) {
            Ok(partition) => partition,
            Err(_) => return Ok(false),
        };
        let mut is_whole = true;
        let in_turn = self.by_time.iter().skip(turn % TURNS).step_by(TURNS);
        for (time, expected) in in_turn.chain(self.by_time.last()) {
            match find(&partition, *time) {
                Ok(found) if found == *expected => {}
                // It is not shown any more, nor what comes behind it.
                Ok(found)
                    if may_miss
                        && expected.is_some_and(|(offset, _)| offset >= partition.end().get())
                        && (found.is_none() || time.is_none()) =>
                {
                    is_whole = false;
                }
                Ok(found) => {
                    return Err(format!("{}: SILENT by time {time:?} {found:?}, expected {expected:?}", self.topic));
                }
                Err(error) => {
                    is_typed(&error)?;
                    is_whole = false;
                }
            }
        }
        Ok(is_whole)
    }

    fn check_offsets(&self, partition: &Partition, may_miss: bool) -> Result<bool, String> {
        let mut is_whole = true;
        for expected in self.uncommitted.iter().rev().step_by(11) {
            match partition.record(expected.0) {
                Ok(Some(record)) if shown(&record) == *expected => {}
                Ok(None) | Err(Error::OffsetOutOfRange { .. }) if may_miss => is_whole = false,
                Ok(None) => return Err(format!("{}: nothing at {}", self.topic, expected.0)),
                Ok(Some(record)) => {
                    return Err(format!(
                        "{}: SILENT by offset {:?}, expected {expected:?}",
                        self.topic,
                        shown(&record)
                    ));
                }
                Err(error) => {
                    is_typed(&error)?;
                    is_whole = false;
                }
            }
        }
        Ok(is_whole)
    }
}

/// A broker's directories in one image, as they are or taken over.
struct Directory {
    name: &'static str,
    image: Image,
    history: Vec<Image>,
    held: Vec<Held>,
    is_read_only: bool,
    /// What an open reports when nothing is damaged.
    calm: String,
}

fn open(disk: &FaultVfs, read_only: bool) -> topiclog::Result<Store> {
    let builder = Store::builder().vfs(Arc::new(disk.clone())).clock(Arc::new(ManualClock::new(T0)));
    builder.upkeep(Upkeep::Manual).id_seed(7).open_files_max(6).read_only(read_only).open(ROOT)
}

/// What a broker left of these partitions.
pub(crate) fn of_broker(state: &str, partitions: &[&str]) -> Image {
    let mut image = Image::new();
    for entry in std::fs::read_dir(fixtures().join(state)).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_file() {
            image.write(format!("s/{name}"), &std::fs::read(&path).unwrap()).unwrap();
        } else if partitions.contains(&&*name) {
            for file in std::fs::read_dir(&path).unwrap() {
                let file = file.unwrap().path();
                let within = file.file_name().unwrap().to_str().unwrap();
                image.write(format!("s/{name}/{within}"), &std::fs::read(&file).unwrap()).unwrap();
            }
        }
    }
    image
}

fn logs(image: &Image) -> Vec<(String, Vec<u8>)> {
    files(image).into_iter().filter(|(path, _)| path.ends_with(".log") && !path.contains("/quarantine/")).collect()
}

impl Directory {
    fn new(name: &'static str, history: Vec<Image>, is_read_only: bool) -> Self {
        let image = history.last().cloned().unwrap();
        let store = open(&FaultVfs::from_image(&image), is_read_only).unwrap();
        let mut held = Vec::new();
        for topic in store.topics() {
            held.extend(store.topic(topic.as_str()).unwrap().partitions().map(Held::of));
        }
        let calm = format!("{:?}", store.recovery_report());
        let records: usize = held.iter().map(|held| held.uncommitted.len()).sum();
        let (count, bytes) = (image.files().count(), image.files().map(|(_, bytes)| bytes).sum::<u64>());
        tell!("{name}: {count} files, {bytes} bytes, {records} records");
        Self { name, image, history, held, is_read_only, calm }
    }

    fn bare() -> Self {
        let partitions = [
            "transactions-0",
            "open_transaction-0",
            "compacted_tx-0",
            "compacted-0",
            "records_deleted-0",
            "codec.lz4-0",
        ];
        Self::new("bare", vec![of_broker("clean", &partitions)], true)
    }

    /// With aborted transactions, an open one, records of ours behind them, and closed in order.
    fn adopted() -> Self {
        let disk = FaultVfs::from_image(&of_broker("killed", &["transactions-0", "open_transaction-0"]));
        let builder = Store::builder().vfs(Arc::new(disk.clone())).clock(Arc::new(ManualClock::new(T0))).id_seed(7);
        builder.adopt(ROOT, &AdoptOptions::new().broker_is_gone(true)).unwrap();
        let mut history = vec![disk.image()];
        let store = open(&disk, false).unwrap();
        for nth in 0..6 {
            store.topic("transactions").unwrap().append(Record::of_value(format!("ours {nth}"))).unwrap();
        }
        history.push(disk.image());
        store.close().unwrap();
        drop(store);
        history.push(disk.image());
        let directory = Self::new("adopted", history, false);
        let of = |topic: &str| directory.held.iter().find(|held| held.topic == topic).unwrap();
        let transactions = of("transactions");
        assert!(transactions.uncommitted.len() >= transactions.committed.len() + 10, "some were aborted");
        assert!(of("open_transaction").stable < of("open_transaction").end, "one is still open");
        directory
    }
}

impl Judged for Directory {
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
        let disk = FaultVfs::from_image(image);
        let store = match open(&disk, self.is_read_only) {
            Ok(store) => store,
            Err(error) => {
                is_typed(&error)?;
                // One partition may be recovered before another is refused; no log gets shorter by that.
                if logs(image) != logs(&disk.image()) {
                    return Err("a refused open changed a log".into());
                }
                if !self.is_read_only
                    && let Ok(store) = open(&FaultVfs::from_image(image), true)
                {
                    let check = |held: &Held| held.check(&store, true).map_err(|error| format!("read-only: {error}"));
                    self.held.iter().try_for_each(|held| check(held).map(drop))?;
                }
                return Ok(Class::Detected);
            }
        };
        let is_told = format!("{:?}", store.recovery_report()) != self.calm;
        // A broker's directory has no floor: what is cut from its end is told of, and no error.
        let may_miss = is_told && self.is_read_only;
        let mut is_whole = true;
        for held in &self.held {
            is_whole &= held.check(&store, may_miss)?;
            // The others have nothing new to say.
            if !held.is_same(&self.image, image) {
                is_whole &= held.check_times(&store, may_miss)?;
            }
        }
        Ok(match (is_whole, is_told) {
            (false, _) => Class::Detected,
            (true, true) => Class::Rebuilt,
            (true, false) => Class::Harmless,
        })
    }
}

#[test]
fn no_byte_of_an_adopted_directory_is_wrong_unseen() {
    sweep("adopted, flips", 40_000, &[Directory::adopted()], |victim| flips(victim).into_iter().step_by(2).collect());
}

#[test]
fn no_file_of_an_adopted_directory_is_short_long_or_lost_unseen() {
    sweep("adopted, lengths", 30_000, &[Directory::adopted()], |victim| {
        lengths(victim).into_iter().step_by(2).collect()
    });
    sweep("adopted, surgery", 2_000, &[Directory::adopted()], surgery);
}

/// What a changed byte of a broker's log belongs to.
fn field(log: &[u8], position: usize) -> &'static str {
    let mut batch = 0;
    while let Some(length) = log.get(batch + 8..batch + 12) {
        let next = batch + 12 + u32::from_be_bytes(length.try_into().unwrap()) as usize;
        if position < next {
            return match position - batch {
                0..8 => "log: base offset",
                8..12 => "log: batch length",
                12..16 => "log: leader epoch",
                16 => "log: magic",
                17..21 => "log: CRC",
                _ => "log: covered by the CRC",
            };
        }
        batch = next;
    }
    unreachable!("a clean log is batches to its end")
}

/// Kafka's checksum leaves a part of each batch out, and most of its small files have none. What may pass unseen there is
/// counted, and is no more than that.
#[test]
fn of_a_bare_directory_only_what_no_checksum_covers_passes_unseen() {
    let directory = Directory::bare();
    let mut counts: BTreeMap<(String, &str), u64> = BTreeMap::new();
    let mut unseen = Vec::new();
    for (path, bytes) in files(&directory.image) {
        for (position, &byte) in bytes.iter().enumerate() {
            let kind = match path.rsplit_once('.') {
                Some((_, "log")) => field(&bytes, position).to_owned(),
                Some((base, suffix)) if base.ends_with(|last: char| last.is_ascii_digit()) => format!(".{suffix}"),
                _ => path.rsplit('/').next().unwrap_or_default().to_owned(),
            };
            let mut image = directory.image.clone();
            image.patch(&path, position as u64, &[byte ^ (1 << (position % 8))]).unwrap();
            let outcome = match directory.judge(&image) {
                Ok(Class::Harmless) => "harmless",
                Ok(_) => "told",
                Err(problem) => {
                    unseen.push((kind.clone(), format!("{path}[{position}]: {problem}")));
                    "unseen"
                }
            };
            *counts.entry((kind, outcome)).or_default() += 1;
        }
    }
    for ((kind, outcome), count) in &counts {
        tell!("bare, {kind}: {count} {outcome}");
    }
    let is_open = |kind: &str| matches!(kind, "log: base offset" | "log: leader epoch" | "log-start-offset-checkpoint");
    let surprises: Vec<_> = unseen.iter().filter(|(kind, _)| !is_open(kind)).collect();
    surprises.iter().take(12).for_each(|(kind, problem)| tell!("  {kind}: {}", &problem[..problem.len().min(300)]));
    assert!(surprises.is_empty(), "{} surprises", surprises.len());
    let total: u64 = counts.values().sum();
    let (share, count) = (unseen.len() as f64 * 100.0 / total as f64, unseen.len());
    tell!("bare: {total} flips, {count} unseen, {share:.2} %");
    assert!(total >= 40_000, "{total}");
}

fn rebuilt(store: &Store) -> usize {
    let repairs = store.recovery_report().partitions.iter().flat_map(|partition| &partition.repairs);
    repairs.filter(|repair| matches!(repair, Repair::SideFileRebuilt { .. })).count()
}

/// The index of aborted transactions was believed as it was, or as it was not there: records of aborted transactions were
/// handed out to readers of committed ones. It is compared with its checksum, and made anew from the batches.
#[test]
fn a_lost_or_wrong_index_of_aborted_transactions_is_made_anew() {
    let directory = Directory::adopted();
    let index = "s/transactions-0/00000000000000000064.txnindex";
    let original = directory.image.read(index).unwrap();
    let damages: [fn(&mut Vec<u8>); 3] = [|bytes| bytes[9] ^= 1, |bytes| bytes.truncate(34), Vec::clear];
    let damaged = damages.map(|damage| {
        let mut image = directory.image.clone();
        let mut bytes = original.clone();
        damage(&mut bytes);
        image.write(index, &bytes).unwrap();
        image
    });
    let mut removed = directory.image.clone();
    assert!(removed.remove(index));
    for image in damaged.iter().chain([&removed]) {
        for read_only in [true, false] {
            let disk = FaultVfs::from_image(image);
            let store = open(&disk, read_only).unwrap();
            let report = store.recovery_report();
            assert!(!report.is_unclean() && rebuilt(&store) == 1, "{report:?}");
            assert!(directory.held.iter().all(|held| held.check(&store, false) == Ok(true)));
            drop(store);
            assert_eq!(disk.image().read(index) == Some(original.clone()), !read_only);
            assert_eq!(rebuilt(&open(&disk, false).unwrap()), usize::from(read_only));
        }
    }
}

/// A log without an index of aborted transactions, and nearly every one is, was read from end to end before an open returned.
/// Whoever asks first has it read; an error is his, and the next one asks again.
#[test]
fn an_open_for_reading_leaves_the_batches_to_whoever_asks_for_transactions() {
    let image = of_broker("clean", &["transactions-0"]);
    let opened = || {
        let disk = FaultVfs::from_image(&image);
        let store = open(&disk, true).unwrap();
        (disk, store.topic("transactions").unwrap().partition(0).unwrap(), store)
    };
    let read = |partition: &Partition, isolation| -> topiclog::Result<Vec<Shown>> {
        let reader = partition.reader(partition.start(), &options(isolation))?;
        reader.map(|record| record.map(|record| shown(&record))).collect()
    };
    let (disk, partition, _store) = opened();
    let reads = || disk.sites_seen()[&(OpKind::Read, "log".to_owned())].calls;
    let mut before = reads();
    let mut cost = |isolation| {
        let records = read(&partition, isolation).unwrap();
        let calls = reads() - before;
        before += calls;
        (records, calls)
    };
    let (uncommitted, _) = cost(Isolation::Uncommitted);
    let ((first, first_cost), (second, second_cost)) = (cost(Isolation::Committed), cost(Isolation::Committed));
    assert!(first == second && first.len() < uncommitted.len(), "some were aborted");
    assert!(first_cost >= second_cost + 5, "{first_cost} and {second_cost} reads of 5 segments");
    let mut failures = 0;
    for call in 1..=first_cost {
        let (disk, partition, _store) = opened();
        disk.inject(FaultPlan::new(Fault::Error(errno::EIO)).on(OpKind::Read).in_class("log").at_call(call));
        match read(&partition, Isolation::Committed) {
            // A reader that cannot read ahead reads what it needs.
            Ok(records) => assert!(records == first, "read {call} of {first_cost}"),
            Err(error) => {
                assert!(matches!(error, Error::Io { .. }), "read {call} of {first_cost}: {error}");
                failures += 1;
            }
        }
        assert!(read(&partition, Isolation::Committed).unwrap() == first, "read {call} of {first_cost}, again");
    }
    assert!(failures >= 5, "{failures} of {first_cost} failed reads were told of: there are 5 segments");
}
