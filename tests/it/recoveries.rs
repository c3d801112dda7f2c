//! What recovery keeps, cuts and refuses, and what reads do with damage: one promise, one small test.

use std::path::Path;
use std::sync::Arc;

use topiclog::clock::ManualClock;
use topiclog::io::{Fault, FaultPlan, FaultVfs, Image, OpKind, SyncFailure, Vfs, errno};
use topiclog::record::{Compression, DecodeLimits};
use topiclog::{
    AppendOptions, Durability, Error, Partition, ReadLevel, ReadOptions, Record, Repair, Store, TopicConfig, Upkeep,
    verify_on,
};

use crate::support::oracle::crc32c;
use crate::support::simulate::profile;

const T0: i64 = 1_700_000_000_000;
const FIRST_LOG: &str = "s/t-0/00000000000000000000.log";

fn machine() -> FaultVfs {
    let vfs = FaultVfs::new();
    vfs.create_dir(Path::new("/s")).unwrap();
    vfs.sync_everything();
    vfs
}

fn try_open(vfs: &FaultVfs, clock: &Arc<ManualClock>, read_only: bool) -> topiclog::Result<Store> {
    let clock: Arc<ManualClock> = Arc::clone(clock);
    let builder = Store::builder().vfs(Arc::new(vfs.clone())).clock(clock).upkeep(Upkeep::Manual).id_seed(3);
    builder.read_only(read_only).open("/s")
}

fn open(vfs: &FaultVfs) -> Store {
    try_open(vfs, &Arc::new(ManualClock::new(T0)), false).unwrap()
}

fn partition(store: &Store) -> Partition {
    store.topic("t").unwrap().partition(0).unwrap()
}

fn config(durability: Durability) -> TopicConfig {
    TopicConfig::default().durability(durability).index_interval_bytes(1).preallocate_bytes(0)
}

/// A record whose value tells its offset; each is a batch of its own.
fn record(offset: i64) -> Record {
    Record::of_value(format!("value {offset}").repeat(3 + offset as usize % 5)).timestamp_ms(T0 + offset)
}

fn append(partition: &Partition, count: i64) {
    for _ in 0..count {
        partition.append(record(partition.end().get())).unwrap();
    }
}

/// How many records there are; each is the one that was appended, found in every way.
fn count_good(partition: &Partition) -> Result<i64, String> {
    let reader = partition.reader(0, &ReadOptions::new().level(ReadLevel::Latest)).map_err(|e| e.to_string())?;
    let mut count = 0;
    for found in reader {
        let found = found.map_err(|error| error.to_string())?;
        assert_eq!((found.offset().get(), found.value()), (count, record(count).value()), "iterated");
        count += 1;
    }
    for offset in (0..count).rev() {
        let found = partition.record(offset).map_err(|error| format!("offset {offset}: {error}"))?;
        assert_eq!(found.unwrap().value(), record(offset).value(), "looked up at {offset}");
        let found = partition.offset_for_timestamp(T0 + offset).map_err(|error| format!("time {offset}: {error}"))?;
        assert_eq!(found.unwrap().offset.get(), offset, "by time");
    }
    Ok(count)
}

/// Where each batch of a log begins and how long it is.
fn batches(log: &[u8]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(length) = log.get(at + 8..at + 12) {
        let size = u32::from_be_bytes(length.try_into().unwrap()) as usize + 12;
        if size < 61 || at + size > log.len() {
            break;
        }
        found.push((at, size));
        at += size;
    }
    found
}

fn files(image: &Image, end: &str) -> Vec<String> {
    image.files().map(|(path, _)| path.to_owned()).filter(|path| path.ends_with(end)).collect()
}

/// What a power cut at this moment is certain to leave, opened.
fn after_power_cut(vfs: &FaultVfs) -> Store {
    open(&FaultVfs::from_image(&vfs.durable_image()))
}

/// A store that was closed with records and then killed with more: the floor lies between them.
fn killed_above_its_floor(below: i64, above: i64) -> FaultVfs {
    let vfs = machine();
    let store = open(&vfs);
    store.create_topic("t", config(Durability::Sync)).unwrap();
    append(&partition(&store), below);
    store.close().unwrap();
    drop(store);
    let store = open(&vfs);
    append(&partition(&store), above);
    drop(store);
    vfs.kill();
    vfs.sync_everything();
    vfs
}

/// Bytes below the floor were synced: whatever is wrong with them is damage, which is told of and never cut away.
#[test]
fn what_lies_below_the_floor_is_never_cut() {
    let image = killed_above_its_floor(6, 3).image();
    let log = image.read(FIRST_LOG).unwrap();
    let (at, size) = batches(&log)[5];
    let floor = at + size;
    let mut told = 0;
    for position in (0..floor).step_by(7) {
        let flipped = {
            let mut changed = image.clone();
            changed.patch(FIRST_LOG, position as u64, &[log[position] ^ 0x10]).unwrap();
            changed
        };
        let short = {
            let mut changed = image.clone();
            changed.set_len(FIRST_LOG, position as u64).unwrap();
            changed
        };
        for damaged in [flipped, short] {
            let vfs = FaultVfs::from_image(&damaged);
            let clock = Arc::new(ManualClock::new(T0));
            match try_open(&vfs, &clock, false) {
                Ok(store) => {
                    let cuts = |repair: &Repair| matches!(repair, Repair::TailCut { .. });
                    assert!(!store.recovery_report().repairs().any(cuts), "{position}: cut");
                    assert!(partition(&store).end().get() >= 6, "{position}: ends at {}", partition(&store).end());
                    let read = count_good(&partition(&store));
                    assert!(read.is_err(), "{position}: {read:?}");
                }
                Err(error) => assert!(matches!(error, Error::Corrupt { .. }), "{position}: {error}"),
            }
            let (before, after) = (damaged.read(FIRST_LOG).unwrap(), vfs.image().read(FIRST_LOG).unwrap());
            assert_eq!(after.get(..before.len().min(floor)), before.get(..before.len().min(floor)), "{position}");
            told += 1;
        }
    }
    assert!(told > 100, "{told} damaged stores");
}

/// A recovery with a tail to cut may be interrupted at every step, and again: what was whole stays, what was cut is in
/// quarantine byte for byte, and nothing is left to repair.
#[test]
fn a_recovery_that_cuts_may_be_interrupted_anywhere() {
    let vfs = killed_above_its_floor(2, 4);
    let mut image = vfs.image();
    let log = image.read(FIRST_LOG).unwrap();
    let (at, size) = batches(&log)[4];
    image.patch(FIRST_LOG, (at + size - 1) as u64, &[!log[at + size - 1]]).unwrap();
    let cut = image.read(FIRST_LOG).unwrap()[at..].to_vec();
    let check = |image: &Image, what: &str| {
        let vfs = FaultVfs::from_image(image);
        let store = try_open(&vfs, &Arc::new(ManualClock::new(T0)), false).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(count_good(&partition(&store)), Ok(4), "{what}");
        let kept = files(&vfs.image(), ".bin");
        let held: Vec<_> = kept.iter().map(|path| vfs.image().read(path).unwrap()).collect();
        assert!(held.contains(&cut), "{what}: {kept:?}");
        drop(store);
        vfs.kill();
        let before = vfs.durable_image();
        let vfs = FaultVfs::from_image(&before);
        drop(open(&vfs));
        assert_eq!(vfs.image().hash(), before.hash(), "{what}: the second open changed something");
    };
    check(&image, "not interrupted");
    let mut states = 0;
    for stop in 0.. {
        let vfs = FaultVfs::from_image(&image);
        vfs.stop_after(stop);
        let is_done = try_open(&vfs, &Arc::new(ManualClock::new(T0)), false).is_ok();
        for state in vfs.crash_states(&profile(stop)) {
            check(&state.image, &format!("stopped after {stop}: {state}"));
            states += 1;
        }
        if is_done {
            break;
        }
    }
    assert!(states >= 80, "{states} states");
    // The directory of an earlier quarantine is no obstacle to the next.
    let vfs = FaultVfs::from_image(&image);
    for round in 0..3 {
        let store = open(&vfs);
        append(&partition(&store), 1);
        drop(store);
        vfs.kill();
        let log = vfs.image().read(FIRST_LOG).unwrap();
        vfs.patch(FIRST_LOG, log.len() as u64 - 1, &[!log[log.len() - 1]]).unwrap();
        assert_eq!(partition(&open(&vfs)).end().get(), 4, "round {round}");
        vfs.kill();
    }
}

/// An `Os` topic with many closed segments, the first of them torn in the middle.
fn torn_among_many() -> (FaultVfs, usize) {
    let vfs = machine();
    let store = open(&vfs);
    store.create_topic("t", config(Durability::Os).segment_bytes(700)).unwrap();
    append(&partition(&store), 24);
    drop(store);
    vfs.kill();
    vfs.sync_everything();
    let log = vfs.image().read(FIRST_LOG).unwrap();
    let (at, size) = batches(&log)[2];
    vfs.patch(FIRST_LOG, (at + size - 3) as u64, &[!log[at + size - 3]]).unwrap();
    (vfs, at)
}

/// The segments behind a torn one are moved away whole.
#[test]
fn segments_behind_a_torn_one_are_kept_in_quarantine() {
    let (vfs, at) = torn_among_many();
    let before = vfs.image();
    let logs: Vec<String> = files(&before, ".log").into_iter().filter(|path| path != FIRST_LOG).collect();
    assert!(logs.iter().filter(|path| before.read(path).unwrap().len() > 200).count() >= 3, "{logs:?}");
    assert_eq!(count_good(&partition(&open(&vfs))), Ok(2));
    let after = vfs.image();
    for path in logs {
        let kept = path.replace("t-0/", "t-0/quarantine/");
        assert_eq!(after.read(&kept), before.read(&path), "{path}");
        assert_eq!(after.read(&path).filter(|_| !path.ends_with("00000002.log")), None, "{path}");
    }
    let bins = files(&after, ".bin");
    assert_eq!(bins.len(), 1, "{bins:?}");
    assert_eq!(after.read(&bins[0]).unwrap(), before.read(FIRST_LOG).unwrap()[at..]);
}

/// An index file outlives a kill, and the log that it belongs to may be cut after that. Nothing looks at what is in it when
/// it is loaded next, here or in a broker, so it must not name batches that are gone.
#[test]
fn no_index_names_a_batch_that_was_cut() {
    let (vfs, _) = torn_among_many();
    assert!(vfs.image().read(FIRST_LOG.replace(".log", ".index")).unwrap().len() > 16);
    drop(open(&vfs));
    for append_more in [false, true] {
        if append_more {
            vfs.kill();
            append(&partition(&open(&vfs)), 2);
        }
        let image = vfs.image();
        for path in files(&image, ".log").iter().filter(|path| !path.contains("quarantine")) {
            let log = batches(&image.read(path).unwrap());
            let index = image.read(path.replace(".log", ".index")).unwrap_or_default();
            for entry in index.chunks_exact(8).filter(|entry| **entry != [0; 8]) {
                let position = u32::from_be_bytes(entry[4..].try_into().unwrap()) as usize;
                assert!(log.iter().any(|(at, _)| *at == position), "{path}: an entry names position {position}");
            }
        }
    }
}

/// A whole batch with an attribute that this version does not know was written by a later one: it is no torn tail.
#[test]
fn a_batch_of_a_later_version_is_refused_and_not_cut() {
    let mut image = killed_above_its_floor(2, 3).image();
    let log = image.read(FIRST_LOG).unwrap();
    let (at, size) = batches(&log)[3];
    let mut batch = log[at..at + size].to_vec();
    batch[21] |= 0x80;
    let crc = crc32c(&batch[21..]).to_be_bytes();
    batch[17..21].copy_from_slice(&crc);
    image.patch(FIRST_LOG, at as u64, &batch).unwrap();
    let vfs = FaultVfs::from_image(&image);
    let refused = try_open(&vfs, &Arc::new(ManualClock::new(T0)), false);
    assert!(matches!(refused, Err(Error::Unsupported { .. })), "{refused:?}");
    assert_eq!(vfs.image().read(FIRST_LOG), image.read(FIRST_LOG));
}

/// The kernel may report a failed sync once, give the pages up and still show them: to sync them again succeeds and
/// writes nothing. What a recovery shows from the cache has to be written again before it counts as durable.
#[test]
fn a_tail_that_a_failed_sync_gave_up_is_written_again() {
    for failure in [SyncFailure::LostAtDrop, SyncFailure::OpenHandles] {
        let vfs = machine();
        let store = open(&vfs);
        store.create_topic("t", config(Durability::Sync)).unwrap();
        append(&partition(&store), 2);
        vfs.inject(FaultPlan::new(Fault::Sync(errno::EIO, failure)).on(OpKind::SyncData).in_class("log"));
        assert!(matches!(partition(&store).append(record(2)), Err(Error::OutcomeUnknown { .. })));
        drop(store);
        vfs.kill();
        let shown = count_good(&partition(&open(&vfs))).unwrap();
        assert_eq!(shown, 3, "the cache still has it");
        assert_eq!(count_good(&partition(&after_power_cut(&vfs))), Ok(shown), "{failure:?}");
    }
}

/// An append that failed and could not be cut off again may be on the disk: its offset goes to nobody else.
#[test]
fn an_append_that_could_not_be_cut_back_keeps_its_offset() {
    let vfs = machine();
    let store = open(&vfs);
    store.create_topic("t", config(Durability::Sync)).unwrap();
    let partition = partition(&store);
    append(&partition, 1);
    vfs.inject(FaultPlan::new(Fault::Short(30)).on(OpKind::Write).in_class("log"));
    vfs.inject(FaultPlan::new(Fault::Error(errno::EIO)).on(OpKind::Write).in_class("log").at_call(2));
    vfs.inject(FaultPlan::new(Fault::Error(errno::EIO)).on(OpKind::SetLen).in_class("log"));
    let failed = partition.append(record(1)).unwrap_err();
    assert!(matches!(failed, Error::OutcomeUnknown { offset, .. } if offset.get() == 1), "{failed}");
    for _ in 0..2 {
        let refused = partition.append(record(1));
        assert!(matches!(refused, Err(Error::Poisoned { .. })), "{refused:?}");
    }
}

/// A reader beside holds maps of the file. A recovery then builds a new file and leaves the mapped one as it is.
#[test]
fn nothing_is_repaired_in_place_while_a_reader_is_there() {
    let vfs = killed_above_its_floor(3, 4);
    let clock = Arc::new(ManualClock::new(T0));
    let reader = try_open(&vfs, &clock, true).unwrap();
    assert_eq!(count_good(&partition(&reader)), Ok(7));
    let begun = vfs.trace().len();
    let store = open(&vfs);
    let changes = [OpKind::Write, OpKind::SetLen, OpKind::Allocate];
    let touched: Vec<_> = vfs.trace()[begun..]
        .iter()
        .filter(|done| changes.contains(&done.op) && done.path.ends_with(".log"))
        .map(|done| (done.op, done.position))
        .collect();
    assert_eq!(touched, [], "the mapped file was changed");
    assert!(vfs.trace()[begun..].iter().any(|done| done.path.ends_with(".log.cleaned")), "a copy was made");
    assert_eq!((count_good(&partition(&store)), count_good(&partition(&reader))), (Ok(7), Ok(7)));
    drop((store, reader));
    vfs.kill();
    assert_eq!(count_good(&partition(&after_power_cut(&vfs))), Ok(7));
}

/// The floor says what is on the disk, so it is written after the sync and not before.
#[test]
fn the_floor_never_runs_ahead_of_the_data() {
    let start = |stop: Option<u64>| {
        let vfs = machine();
        let clock = Arc::new(ManualClock::new(T0));
        let store = try_open(&vfs, &clock, false).unwrap();
        store.create_topic("t", config(Durability::Sync)).unwrap();
        append(&partition(&store), 2);
        clock.advance_ms(6000);
        let begun = vfs.operations();
        if let Some(stop) = stop {
            vfs.stop_after(stop);
        }
        partition(&store).append(record(2)).ok();
        let floors = vfs.trace()[begun as usize..].iter().filter(|done| done.path.ends_with(".floor")).count();
        (vfs, begun, floors)
    };
    let (vfs, begun, floors) = start(None);
    assert!(floors >= 2, "the append moved the floor");
    let mut states = 0;
    for stop in begun..=vfs.operations() {
        let (vfs, ..) = start(Some(stop));
        for state in vfs.crash_states(&profile(stop)) {
            let opened = try_open(&FaultVfs::from_image(&state.image), &Arc::new(ManualClock::new(T0)), false);
            let store = opened.unwrap_or_else(|error| panic!("stopped after {stop}: {state}: {error}"));
            assert!(count_good(&partition(&store)).unwrap() >= 2, "stopped after {stop}: {state}");
            states += 1;
        }
    }
    assert!(states >= 8, "{states} states");
}

/// A topic is there or not, whatever the crash leaves of its files and of the list of topics.
#[test]
fn a_topic_is_made_whole_or_not_at_all() {
    let start = |stop: Option<u64>| {
        let vfs = machine();
        let store = open(&vfs);
        store.create_topic("before", config(Durability::Sync)).unwrap();
        let begun = vfs.operations();
        if let Some(stop) = stop {
            vfs.stop_after(stop);
        }
        let is_made = store.create_topic("t", config(Durability::Sync)).is_ok();
        (vfs, begun, is_made)
    };
    let (vfs, begun, _) = start(None);
    let mut states = 0;
    for stop in begun..=vfs.operations() {
        let (vfs, _, is_made) = start(Some(stop));
        for state in vfs.crash_states(&profile(stop)) {
            let opened = try_open(&FaultVfs::from_image(&state.image), &Arc::new(ManualClock::new(T0)), false);
            let store = opened.unwrap_or_else(|error| panic!("stopped after {stop}: {state}: {error}"));
            assert!(store.topic("before").is_ok(), "stopped after {stop}: {state}");
            assert!(!is_made || store.topic("t").is_ok(), "stopped after {stop}: {state}");
            states += 1;
        }
    }
    assert!(states > 50, "{states} states");
}

/// Sealed segments and an active one, closed in order; an index entry for every batch but the first.
fn closed_in_segments() -> Image {
    let vfs = machine();
    let store = open(&vfs);
    store.create_topic("t", config(Durability::Sync).segment_bytes(1500)).unwrap();
    append(&partition(&store), 40);
    while !store.tick().unwrap().is_idle() {}
    assert_eq!(partition(&store).stats().indexes_rebuilt, 0, "the indexes of a log that nobody touched are right");
    assert_eq!(count_good(&partition(&store)), Ok(40));
    assert_eq!(partition(&store).stats().indexes_rebuilt, 0, "and are found right when they are followed");
    store.close().unwrap();
    let image = vfs.image();
    let report = verify_on(&vfs, Path::new("/s")).unwrap();
    let damages: Vec<_> = report.damages().collect();
    assert!(damages.is_empty(), "{damages:?}");
    image
}

#[test]
fn the_indexes_of_an_undamaged_log_hold() {
    let image = closed_in_segments();
    let store = open(&FaultVfs::from_image(&image));
    assert_eq!(count_good(&partition(&store)), Ok(40));
    assert_eq!(partition(&store).stats().indexes_rebuilt, 0);
}

/// An index may be well-formed and wrong: nothing vouches for it. The batch that an entry leads to tells, and the entries
/// are made anew; nobody gets to see a wrong record, or an error where the log is fine.
#[test]
fn an_index_entry_that_leads_astray_is_found_out_at_the_batch() {
    let image = closed_in_segments();
    let indexes = files(&image, ".index");
    assert!(indexes.len() >= 3, "{indexes:?}");
    let (mut cases, mut rebuilt) = (0, 0);
    for path in indexes {
        let bytes = image.read(&path).unwrap();
        let entries: Vec<(u32, u32)> = bytes
            .chunks_exact(8)
            .map(|entry| {
                let word = |at: usize| u32::from_be_bytes(entry[at..at + 4].try_into().unwrap());
                (word(0), word(4))
            })
            .collect();
        for (nth, &(offset, position)) in entries.iter().enumerate() {
            let other = entries[(nth + 1) % entries.len()];
            let wrong = [
                (offset + 1, position),
                (offset - 1, position),
                (offset, other.1),
                (offset, position + 1),
                (offset, position - 1),
            ];
            for (offset, position) in wrong {
                let mut damaged = image.clone();
                let entry: Vec<u8> = [offset.to_be_bytes(), position.to_be_bytes()].concat();
                damaged.patch(&path, nth as u64 * 8, &entry).unwrap();
                let store = open(&FaultVfs::from_image(&damaged));
                let read = count_good(&partition(&store));
                assert_eq!(read, Ok(40), "{path}: entry {nth} says {offset} at {position}");
                rebuilt += partition(&store).stats().indexes_rebuilt;
                cases += 1;
            }
        }
    }
    assert!(cases > 100 && rebuilt > cases / 2, "{cases} wrong entries, {rebuilt} indexes made anew");
}

/// Damage that was found once is found again: a block or batch counts as checked only after it was.
#[test]
fn damage_is_told_of_at_every_read() {
    let image = closed_in_segments();
    let logs = files(&image, ".log");
    let mut cases = 0;
    for path in logs {
        let log = image.read(&path).unwrap();
        let base: i64 = path.rsplit('/').next().unwrap()[..20].parse().unwrap();
        for (nth, &(at, size)) in batches(&log).iter().enumerate() {
            let mut damaged = image.clone();
            damaged.patch(&path, (at + size - 5) as u64, &[log[at + size - 5] ^ 2]).unwrap();
            let store = open(&FaultVfs::from_image(&damaged));
            let partition = partition(&store);
            let offset = base + nth as i64;
            for round in 0..3 {
                let found = partition.record(offset);
                assert!(matches!(found, Err(Error::Corrupt { .. })), "{path}, offset {offset}, {round}: {found:?}");
                let read = partition.read(offset, usize::MAX, 1).map(|fetched| fetched.records.len());
                assert!(matches!(read, Err(Error::Corrupt { .. })), "{path}, offset {offset}, {round}: {read:?}");
            }
            cases += 1;
        }
    }
    assert_eq!(cases, 40);
}

/// The number of records in a header is not to be believed: a read makes room for what it was asked for.
#[test]
fn a_read_of_one_record_has_room_for_few() {
    let store = Store::in_memory().unwrap();
    let topic = store.create_topic("t", TopicConfig::default()).unwrap();
    let many: Vec<Record> = (0..20_000).map(|_| Record::of_value("")).collect();
    let partition = topic.partition(0).unwrap();
    partition.append_batch(&many).unwrap();
    let fetched = partition.read(7, usize::MAX, 1).unwrap();
    assert_eq!((fetched.records.len(), fetched.next_offset.get()), (1, 8));
    assert!(fetched.records.capacity() <= 64, "room for {}", fetched.records.capacity());
}

#[test]
fn a_reader_never_decompresses_more_than_it_allows() {
    let store = Store::in_memory().unwrap();
    let topic = store.create_topic("t", TopicConfig::default()).unwrap();
    let partition = topic.partition(0).unwrap();
    let codecs = Compression::ALL.into_iter().filter(|codec| *codec != Compression::None && codec.is_built_in());
    for codec in codecs {
        let options = AppendOptions::new().compression(codec);
        let placed = partition.append_batch_with(&[Record::of_value(vec![0; 300_000])], &options).unwrap();
        let read = |limit: usize| {
            let limits = DecodeLimits { decompressed_bytes_max: limit };
            let fetched = partition.read_with(placed.offset, usize::MAX, 1, &ReadOptions::new().limits(limits));
            fetched.map(|fetched| fetched.records.len())
        };
        assert_eq!(read(301_000).unwrap(), 1, "{codec}");
        for limit in [0, 1000, 299_999] {
            let error = read(limit).unwrap_err();
            assert!(matches!(error, Error::Invalid { .. }), "{codec}: {error}");
            assert!(error.to_string().contains(&format!("more than {limit} bytes")), "{codec}: {error}");
        }
    }
}

/// All of them in turn, for those who plant bugs.
#[cfg(topiclog_planted)]
pub(crate) fn all() {
    a_read_of_one_record_has_room_for_few();
    a_reader_never_decompresses_more_than_it_allows();
    an_append_that_could_not_be_cut_back_keeps_its_offset();
    a_tail_that_a_failed_sync_gave_up_is_written_again();
    a_batch_of_a_later_version_is_refused_and_not_cut();
    segments_behind_a_torn_one_are_kept_in_quarantine();
    no_index_names_a_batch_that_was_cut();
    nothing_is_repaired_in_place_while_a_reader_is_there();
    the_indexes_of_an_undamaged_log_hold();
    damage_is_told_of_at_every_read();
    the_floor_never_runs_ahead_of_the_data();
    a_topic_is_made_whole_or_not_at_all();
    what_lies_below_the_floor_is_never_cut();
    an_index_entry_that_leads_astray_is_found_out_at_the_batch();
    a_recovery_that_cuts_may_be_interrupted_anywhere();
}
