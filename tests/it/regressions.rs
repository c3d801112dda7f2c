//! Every bug that was found, as the smallest test that tells its story.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use topiclog::clock::ManualClock;
use topiclog::io::{Fault, FaultPlan, FaultVfs, LockKind, MemoryVfs, OpKind, OpenMode, Vfs, VfsLock, errno};
use topiclog::{AppendOptions, Durability, Error, Partition, Record, Store, TopicConfig, Upkeep};

use crate::support::directory_with_windows;
use crate::support::layered::{Layer, Layered, WatchedReads};

/// A file system without locks.
struct WithoutLocks;

impl Layer for WithoutLocks {
    fn lock(&self, _: &MemoryVfs, _: &Path, _: LockKind) -> io::Result<Box<dyn VfsLock>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[test]
fn a_file_system_without_locks_is_used_only_with_consent() {
    let vfs = Arc::new(Layered(MemoryVfs::new(), WithoutLocks));
    let builder = || Store::builder().vfs(Arc::clone(&vfs) as Arc<dyn Vfs>).upkeep(Upkeep::Manual);
    let refused = builder().open("/s").unwrap_err();
    assert!(matches!(refused, Error::LockUnsupported { .. }), "{refused}");
    assert!(refused.to_string().contains("without_locks"), "{refused}");
    let store = builder().without_locks().open("/s").unwrap();
    store.create_topic("t", TopicConfig::default()).unwrap().append(Record::of_value("v")).unwrap();
    store.close().unwrap();
    let store = builder().read_only(true).open("/s").unwrap();
    assert_eq!(store.topic("t").unwrap().partition(0).unwrap().end().get(), 1);
}

#[test]
fn without_a_free_descriptor_the_error_says_so_and_nothing_is_lost() {
    let vfs = machine();
    let store = open(&vfs);
    store.create_topic("t", TopicConfig::default()).unwrap().append(Record::of_value("v")).unwrap();
    store.close().unwrap();
    vfs.inject(FaultPlan::new(Fault::Error(errno::EMFILE)).on(OpKind::Open));
    let refused = Store::builder().vfs(Arc::new(vfs.clone())).upkeep(Upkeep::Manual).open("/s").unwrap_err();
    assert!(matches!(refused, Error::TooManyFiles { .. }), "{refused}");
    vfs.clear_faults();
    assert_eq!(open(&vfs).topic("t").unwrap().partition(0).unwrap().end().get(), 1);
}

/// What an error is for is known only once something provoked it.
#[test]
fn some_test_expects_every_error() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = std::fs::read_to_string(root.join("src/error.rs")).unwrap();
    let code = source.split("pub fn code").nth(1).unwrap().split("pub(crate) fn").next().unwrap();
    let variants: Vec<&str> =
        code.lines().filter_map(|line| line.trim().strip_prefix("Error::")?.split(" {").next()).collect();
    assert!(variants.len() >= 19, "{variants:?}");
    let tests: String = std::fs::read_dir(root.join("tests/it"))
        .unwrap()
        .filter_map(|entry| std::fs::read_to_string(entry.unwrap().path()).ok())
        .collect();
    for variant in variants {
        let is_expected = tests.contains(&format!("Error::{variant} {{"));
        assert!(is_expected, "no test expects {variant}");
    }
}

fn machine() -> FaultVfs {
    let vfs = FaultVfs::new();
    vfs.create_dir(Path::new("/s")).unwrap();
    vfs.sync_everything();
    vfs
}

fn open(vfs: &FaultVfs) -> Store {
    let clock = Arc::new(ManualClock::new(1_700_000_000_000));
    Store::builder().vfs(Arc::new(vfs.clone())).clock(clock).upkeep(Upkeep::Manual).id_seed(5).open("/s").unwrap()
}

/// A roll without a free descriptor is put off, and the old segment goes on. Once the manifest that closes the old segment
/// had been renamed, and only the sync of the directory found no descriptor, it went on all the same: what was acknowledged
/// then lay behind the end that the manifest stated, and the next open did not see it.
#[test]
fn a_roll_that_may_have_been_committed_is_not_put_off() {
    let mut failed = 0;
    for call in 1..12 {
        let vfs = machine();
        let store = open(&vfs);
        let config = TopicConfig::default().segment_bytes(400).durability(Durability::Sync);
        let topic = store.create_topic("t", config).unwrap();
        for _ in 0..3 {
            topic.append(Record::of_value(vec![b'x'; 50])).unwrap();
        }
        vfs.inject(FaultPlan::new(Fault::Error(errno::EMFILE)).on(OpKind::SyncDir).at_call(call));
        let acknowledged = (0..4).filter(|_| topic.append(Record::of_value(vec![b'y'; 50])).is_ok()).count();
        drop((store, topic));
        failed += usize::from(vfs.faults_hit() > 0);
        vfs.clear_faults();
        vfs.kill();
        let partition = open(&vfs).topic("t").unwrap().partition(0).unwrap();
        assert!(partition.end().get() >= 3 + acknowledged as i64, "call {call}: {acknowledged} were acknowledged");
    }
    assert!(failed > 1, "{failed} of the calls failed");
}

/// A failed sync that reverted the file's length once hid what lay before it: a positional read asked for more than was
/// needed and found the file too short.
#[test]
fn what_is_durable_can_be_read_beside_what_was_lost() {
    let vfs = machine();
    let store = open(&vfs);
    let partition = store.create_topic("t", TopicConfig::default()).unwrap().partition(0).unwrap();
    partition.append(Record::of_value("kept")).unwrap();
    let lost = Fault::Sync(errno::EIO, topiclog::io::SyncFailure::Reverted);
    vfs.inject(FaultPlan::new(lost).on(OpKind::SyncData).in_class("log"));
    assert!(matches!(partition.append(Record::of_value("lost")), Err(Error::OutcomeUnknown { .. })));
    assert_eq!(partition.record(0).unwrap().unwrap().value(), Some(&b"kept"[..]));
}

/// After a clean open the time index was loaded at the first question by time. If a later record had been appended before
/// that, the loaded maximum took the place of the greater one, and the record could not be found by its time.
#[test]
fn a_record_appended_before_the_first_question_by_time_is_found() {
    let vfs = machine();
    let store = open(&vfs);
    let topic = store.create_topic("t", TopicConfig::default()).unwrap();
    topic.append(Record::of_value("old").timestamp_ms(1000)).unwrap();
    store.close().unwrap();
    let store = open(&vfs);
    let partition = store.topic("t").unwrap().partition(0).unwrap();
    partition.append(Record::of_value("new").timestamp_ms(2000)).unwrap();
    assert_eq!(partition.offset_for_timestamp(500).unwrap().unwrap().offset.get(), 0);
    assert_eq!(partition.offset_for_timestamp(1500).unwrap().unwrap().offset.get(), 1);
    assert_eq!(partition.max_timestamp().unwrap().unwrap().timestamp_ms, 2000);
}

/// A torn segment of an `Os` topic takes the segments behind it into quarantine. They once moved before the manifest said
/// so, and an open that was interrupted in between left a manifest that listed files which were gone.
#[test]
fn segments_behind_a_torn_one_move_only_after_the_manifest_lets_them_go() {
    let vfs = machine();
    let store = open(&vfs);
    let config = TopicConfig::default().segment_bytes(400).durability(Durability::Os);
    let topic = store.create_topic("t", config).unwrap();
    for _ in 0..8 {
        topic.append(Record::of_value(vec![b'x'; 100])).unwrap();
    }
    drop((store, topic));
    vfs.kill();
    let mut image = vfs.image();
    image.patch("/s/t-0/00000000000000000000.log", 100, &[0xff; 30]).unwrap();
    let mut stopped = 0;
    for stop in 1..200 {
        let vfs = FaultVfs::from_image(&image);
        vfs.stop_after(stop);
        let clock = Arc::new(ManualClock::new(1_700_000_000_000));
        let builder = Store::builder().vfs(Arc::new(vfs.clone())).clock(clock).upkeep(Upkeep::Manual).id_seed(5);
        drop(builder.open("/s"));
        stopped += usize::from(vfs.has_stopped());
        let vfs = FaultVfs::from_image(&vfs.image());
        let partition = open(&vfs).topic("t").unwrap().partition(0).unwrap();
        assert!(partition.read_from(0).all(|record| record.is_ok()), "stopped after {stop}");
    }
    assert!(stopped > 20, "a recovery was stopped {stopped} times");
}

/// A move into quarantine that failed between the log of a segment and its index was taken for finished by the next open:
/// the index stayed behind, and as nobody synced the move, a power cut brought the log back into a manifest that no longer
/// knew it.
#[test]
fn a_move_into_quarantine_that_was_interrupted_is_finished() {
    let vfs = machine();
    let store = open(&vfs);
    let config = TopicConfig::default().segment_bytes(400).durability(Durability::Os);
    let topic = store.create_topic("t", config).unwrap();
    for _ in 0..8 {
        topic.append(Record::of_value(vec![b'x'; 100])).unwrap();
    }
    drop((store, topic));
    vfs.kill();
    vfs.sync_everything();
    vfs.patch("/s/t-0/00000000000000000000.log", 100, &[0xff; 30]).unwrap();
    vfs.inject(FaultPlan::new(Fault::Error(errno::EIO)).on(OpKind::Rename).in_class("index"));
    let clock = Arc::new(ManualClock::new(1_700_000_000_000));
    let builder = Store::builder().vfs(Arc::new(vfs.clone())).clock(clock).upkeep(Upkeep::Manual).id_seed(5);
    assert!(matches!(builder.open("/s"), Err(Error::Io { op: "rename", .. })));
    vfs.kill();
    drop(open(&vfs));
    let indexes: Vec<_> = vfs.image().files().map(|(path, _)| path.to_owned()).collect();
    let orphan = |path: &&String| path.ends_with(".index") && !indexes.contains(&path.replace(".index", ".log"));
    assert_eq!(indexes.iter().find(orphan), None);
    let vfs = FaultVfs::from_image(&vfs.durable_image());
    assert!(open(&vfs).topic("t").unwrap().partition(0).unwrap().read_from(0).all(|record| record.is_ok()));
}

/// A topic was put on the list of topics before its partitions were opened. When that failed, the call returned an error
/// and yet the topic was there: it could neither be had nor be made again.
#[test]
fn a_topic_whose_creation_failed_can_be_created_again() {
    let is_new = |call: u64| {
        let vfs = machine();
        let store = open(&vfs);
        vfs.inject(FaultPlan::new(Fault::Error(errno::EMFILE)).at_call(call));
        let created = store.create_topic("t", TopicConfig::default());
        let is_hit = vfs.faults_hit() > 0;
        vfs.clear_faults();
        if created.is_err() {
            assert!(matches!(store.topic("t"), Err(Error::UnknownTopic { .. })), "call {call}");
            match store.ensure_topic("t", TopicConfig::default()) {
                // Whether the list of topics was replaced could not be told; nothing goes on before a reopen.
                Err(Error::Closed { .. }) => {}
                again => drop(again.unwrap_or_else(|error| panic!("call {call}: {error}"))),
            }
        }
        is_hit
    };
    let calls = (1..500).take_while(|call| is_new(*call)).count();
    assert!((20..400).contains(&calls), "{calls} calls");
}

/// What a failed creation left was taken for the topic of the same name whose deletion was not finished, and only the open
/// after the next one swept it.
#[test]
fn a_failed_creation_after_a_failed_deletion_is_swept_at_once() {
    let mut swept = 0;
    for call in 1..60 {
        let vfs = machine();
        let store = open(&vfs);
        store.create_topic("t", TopicConfig::default()).unwrap();
        vfs.inject(FaultPlan::new(Fault::Error(errno::EIO)).on(OpKind::List).at_call(call).sticky());
        let deleted = store.delete_topic("t");
        let created = store.create_topic("t", TopicConfig::default());
        vfs.clear_faults();
        drop(store);
        vfs.kill();
        swept += usize::from(deleted.is_err() && created.is_err());
        drop(open(&vfs));
        vfs.kill();
        let second = open(&vfs);
        assert_eq!(second.recovery_report().repairs().next(), None, "call {call}");
        if deleted.is_ok() && created.is_ok() {
            break;
        }
    }
    assert!(swept >= 2, "{swept}");
}

/// The newest store manifest was lost and the one before it did not know the topic: it was gone without a word. Now a
/// writer refuses, and a reader is shown it.
#[test]
fn a_topic_that_only_a_lost_manifest_listed_is_not_gone() {
    let vfs = machine();
    let store = open(&vfs);
    store.create_topic("t", TopicConfig::default()).unwrap().append(Record::of_value("v")).unwrap();
    store.close().unwrap();
    drop(store);
    vfs.kill();
    let mut image = vfs.image();
    assert!(image.remove("/s/topiclog.manifest.0"));
    let builder = || Store::builder().vfs(Arc::new(FaultVfs::from_image(&image))).upkeep(Upkeep::Manual);
    assert!(matches!(builder().open("/s"), Err(Error::Corrupt { .. })));
    let store = builder().read_only(true).open("/s").unwrap();
    let partition = store.topic("t").unwrap().partition(0).unwrap();
    assert_eq!(partition.record(0).unwrap().unwrap().value(), Some(&b"v"[..]));
}

/// A segment that had rotted between its last append and its seal was sealed as it was: from then on the seal vouched for
/// the damaged bytes, and reads gave them out. Now sealing checks each batch, says so once, and leaves the segment unsealed.
#[test]
fn a_seal_does_not_vouch_for_what_was_damaged_before_it() {
    for (durability, by_tick) in [(Durability::Sync, true), (Durability::Os, true), (Durability::Os, false)] {
        let vfs = machine();
        let store = open(&vfs);
        let config = TopicConfig::default().segment_bytes(300).durability(durability);
        let topic = store.create_topic("t", config).unwrap();
        for _ in 0..6 {
            topic.append(Record::of_value(vec![b'x'; 100])).unwrap();
        }
        vfs.patch("/s/t-0/00000000000000000000.log", 120, b"?").unwrap();
        if by_tick {
            assert!(matches!(store.tick(), Err(Error::Corrupt { .. })));
            assert_eq!(store.tick().unwrap().sealed_segments, 1, "the next one is sealed all the same");
            store.close().unwrap();
        } else {
            assert!(matches!(store.close(), Err(Error::Corrupt { .. })));
        }
        drop((store, topic));
        let store = open(&vfs);
        assert!(!store.recovery_report().is_unclean());
        let partition = store.topic("t").unwrap().partition(0).unwrap();
        assert!(matches!(partition.record(0), Err(Error::Corrupt { .. })));
        assert_eq!(partition.end().get(), 6);
        assert_eq!(partition.read_from(2).filter(|record| record.is_ok()).count(), 4, "nothing behind it is lost");
        assert!(matches!(store.tick(), Err(Error::Corrupt { .. })), "each open tells of it once");
    }
}

/// All of them in turn, for those who plant bugs.
#[cfg(topiclog_planted)]
pub(crate) fn all() {
    a_roll_that_may_have_been_committed_is_not_put_off();
    what_is_durable_can_be_read_beside_what_was_lost();
    a_record_appended_before_the_first_question_by_time_is_found();
    segments_behind_a_torn_one_move_only_after_the_manifest_lets_them_go();
    a_move_into_quarantine_that_was_interrupted_is_finished();
    a_topic_whose_creation_failed_can_be_created_again();
    a_failed_creation_after_a_failed_deletion_is_swept_at_once();
    a_topic_that_only_a_lost_manifest_listed_is_not_gone();
    a_seal_does_not_vouch_for_what_was_damaged_before_it();
    a_recovery_of_a_long_torn_tail_may_stop_anywhere();
    offsets_at_the_end_of_their_range_are_no_panic();
}

/// A reader that had begun before its segment was sealed marked blocks of the new map as read in, and others took the mark to
/// mean that they had been compared with the seal: damaged bytes were handed out.
#[test]
fn who_reads_without_the_seal_speaks_for_nobody_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::builder().upkeep(Upkeep::Manual).open(directory.path()).unwrap();
    let config = TopicConfig::default().durability(Durability::Os).segment_bytes(900_000).preallocate_bytes(0);
    let partition = store.create_topic("t", config).unwrap().partition(0).unwrap();
    let put = |numbers: std::ops::Range<u8>| {
        for number in numbers {
            partition.append(Record::of_value(vec![number; 10_000])).unwrap();
        }
    };
    put(0..10);
    let mut reader = partition.read_from(0);
    reader.by_ref().take(10).for_each(|record| drop(record.unwrap()));
    put(10..100);
    // From here on it reads positionally, and meanwhile the segment is sealed.
    reader.next().unwrap().unwrap();
    assert_eq!(store.tick().unwrap().sealed_segments, 1);
    let (seen, damaged) = (60, 62);
    while reader.position().get() <= seen {
        reader.next().unwrap().unwrap();
    }
    let log = directory.path().join("t-0/00000000000000000000.log");
    let mut bytes = std::fs::read(&log).unwrap();
    let value = bytes.windows(5000).position(|window| window == [damaged as u8; 5000]).unwrap();
    let same_block = bytes.windows(5000).position(|window| window == [seen as u8; 5000]).unwrap();
    assert_eq!(value / 65_536, same_block / 65_536);
    bytes[value + 100] ^= 1;
    // In place: the maps are of this file.
    std::io::Write::write_all(&mut std::fs::OpenOptions::new().write(true).open(&log).unwrap(), &bytes).unwrap();
    let refused = partition.record(damaged).unwrap_err();
    assert!(matches!(refused, Error::Corrupt { .. }), "{refused}");
}

/// Notes the most that was asked for at once.
fn largest_read(largest: &Arc<AtomicUsize>) -> WatchedReads {
    let largest = Arc::clone(largest);
    WatchedReads(Arc::new(move |bytes| _ = largest.fetch_max(bytes, Ordering::Relaxed)))
}

/// Nothing vouches for the length of a batch before all of it was read: one wrong bit once had a read, and the seal of the
/// segment, hold all that follows in memory.
#[test]
fn a_wrong_length_takes_no_memory() {
    let largest = Arc::new(AtomicUsize::new(0));
    let memory = MemoryVfs::new();
    let vfs = Arc::new(Layered(memory.clone(), largest_read(&largest)));
    let store = Store::builder().vfs(vfs).upkeep(Upkeep::Manual).open("/s").unwrap();
    let config = TopicConfig::default().durability(Durability::Os).segment_bytes(60 << 20).batch_bytes_max(4 << 20);
    let partition = store.create_topic("t", config).unwrap().partition(0).unwrap();
    for _ in 0..62 {
        partition.append(Record::of_value(vec![7; 1 << 20])).unwrap();
    }
    let log = memory.open("/s/t-0/00000000000000000000.log".as_ref(), OpenMode::Write).unwrap();
    // The third byte of the length of the first batch, whose others are those of 1 MiB: it says 49 MiB.
    log.write_at(&[3], 8).unwrap();
    largest.store(0, Ordering::Relaxed);
    assert!(matches!(partition.record(0), Err(Error::Corrupt { .. })));
    assert!(store.tick().is_err() && partition.stats().segments == 2);
    let largest = largest.load(Ordering::Relaxed);
    assert!(largest <= 4 << 20, "{largest} bytes at once");
}

/// The bound of what waits for a sync was lifted at once, while recovery went on judging the segment by the bound that it was
/// begun with: what a power cut took from the middle looked like damage of what had been synced, and the store did not open.
#[test]
fn after_the_level_was_lowered_a_torn_tail_is_no_rot() {
    let check = |segment_bytes: u32, altered: TopicConfig| {
        let vfs = machine();
        let store = open(&vfs);
        let config = TopicConfig::default().segment_bytes(segment_bytes).batch_bytes_max(4096).max_unsynced_bytes(8192);
        let topic = store.create_topic("t", config).unwrap();
        topic.append(Record::of_value("synced")).unwrap();
        let altered = altered.segment_bytes(segment_bytes).batch_bytes_max(4096);
        store.alter_topic("t", altered).unwrap();
        let partition = topic.partition(0).unwrap();
        let os = topiclog::AppendOptions::new().durability(Durability::Os);
        for _ in 0..30 {
            partition.append_batch_with(&[Record::of_value(vec![7; 1000])], &os).unwrap();
        }
        drop((store, topic, partition));
        vfs.kill();
        // A page in the middle of what was not synced has never reached the disk.
        let logs = vfs.list("/s/t-0".as_ref()).unwrap().into_iter().map(|entry| entry.name);
        let torn = logs.filter(|name| name.ends_with(".log")).find_map(|name| {
            let log = vfs.open(&Path::new("/s/t-0").join(name), OpenMode::Write).unwrap();
            let mut bytes = vec![0; log.len().unwrap() as usize];
            log.read_at(&mut bytes, 0).unwrap();
            let value = bytes.windows(1000).position(|window| window == [7; 1000])?;
            log.write_at(&[0; 512], value as u64 + 100).unwrap();
            Some(())
        });
        torn.unwrap();
        let store = open(&vfs);
        let partition = store.topic("t").unwrap().partition(0).unwrap();
        assert_eq!(partition.record(0).unwrap().unwrap().value(), Some(&b"synced"[..]));
        assert_eq!(partition.end().get(), 1);
    };
    for segment_bytes in [1 << 20, 5000] {
        check(segment_bytes, TopicConfig::default().durability(Durability::Os).max_unsynced_bytes(8192));
        check(1 << 20, TopicConfig::default().max_unsynced_bytes(64 << 10));
    }
}

/// The other way round: what is synced from now on must not pass for a tail that a power cut may have torn.
#[test]
fn after_the_level_was_raised_damage_is_told() {
    let vfs = machine();
    let store = open(&vfs);
    let config = TopicConfig::default().batch_bytes_max(4096).max_unsynced_bytes(8192);
    let topic = store.create_topic("t", config.clone().durability(Durability::Os)).unwrap();
    topic.append(Record::of_value("early")).unwrap();
    store.alter_topic("t", config.durability(Durability::Sync)).unwrap();
    for _ in 0..30 {
        topic.append(Record::of_value(vec![7; 1000])).unwrap();
    }
    assert_eq!(topic.partition(0).unwrap().stats().segments, 2);
    drop((store, topic));
    vfs.kill();
    let log = vfs.open("/s/t-0/00000000000000000001.log".as_ref(), OpenMode::Write).unwrap();
    log.write_at(&[0; 512], 1500).unwrap();
    let refused = Store::builder().vfs(Arc::new(vfs.clone())).upkeep(Upkeep::Manual).open("/s").unwrap_err();
    assert!(matches!(refused, Error::Corrupt { .. }), "{refused}");
}

/// A step of upkeep once synced one partition and then read a whole segment for its seal, while the others waited.
#[test]
fn nobody_waits_for_a_sync_while_a_segment_is_sealed() {
    let clock = Arc::new(ManualClock::new(0));
    let waiting: Arc<OnceLock<Partition>> = Arc::default();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let at_read = {
        let (clock, waiting, seen) = (Arc::clone(&clock), Arc::clone(&waiting), Arc::clone(&seen));
        move |bytes: usize| {
            if let Some(waiting) = waiting.get()
                && bytes == 1 << 20
            {
                clock.advance_ms(10);
                seen.lock().unwrap().push(waiting.durable_end().get());
            }
        }
    };
    let vfs = Arc::new(Layered(MemoryVfs::new(), WatchedReads(Arc::new(at_read))));
    let store = Store::builder().vfs(vfs).clock(clock).upkeep(Upkeep::Manual).open("/s").unwrap();
    let config = TopicConfig::default().durability(Durability::Os).segment_bytes(30 << 20);
    let long = store.create_topic("a", config).unwrap();
    for _ in 0..61 {
        long.append(Record::of_value(vec![7; 1 << 19])).unwrap();
    }
    let topic = store.create_topic("b", TopicConfig::default().durability(Durability::INTERVAL)).unwrap();
    topic.append(Record::of_value("waits")).unwrap();
    waiting.set(topic.partition(0).unwrap()).ok();
    assert_eq!(store.tick().unwrap().sealed_segments, 1);
    let seen = seen.lock().unwrap();
    // Looked at after every 8 MiB, so that its 50 ms are over by the first look at the latest.
    assert!(seen.len() > 20 && seen[4] == 0 && seen[9] == 1, "{seen:?}");
}

/// The sticky partitioner once divided by their number.
#[test]
fn a_record_for_a_topic_of_which_nothing_can_be_read_is_refused() {
    let vfs = machine();
    let store = open(&vfs);
    store.create_topic("t", TopicConfig::default()).unwrap().append(Record::of_value("v")).unwrap();
    store.close().unwrap();
    vfs.remove_file("/s/t-0/00000000000000000000.log".as_ref()).unwrap();
    let builder = Store::builder().vfs(Arc::new(vfs.clone())).upkeep(Upkeep::Manual).read_only(true);
    let topic = builder.open("/s").unwrap().topic("t").unwrap();
    for record in [Record::of_value("v"), Record::keyed("k", "v")] {
        assert!(topic.append(record).is_err());
    }
}

/// They once named records that no reader was shown: such as wait for their sync, or lie below the log start.
#[test]
fn look_ups_by_time_find_what_readers_see() {
    let store = open(&machine());
    let partition = store.create_topic("t", TopicConfig::default()).unwrap().partition(0).unwrap();
    let os = topiclog::AppendOptions::new().durability(Durability::Os);
    let put = |time: i64| {
        partition.append_batch_with(&[Record::of_value("v").timestamp_ms(time)], &os).unwrap();
    };
    let check = |from: i64, first: Option<i64>, latest: Option<(i64, i64)>| {
        let found = partition.offset_for_timestamp(from).unwrap();
        assert_eq!(found.map(|found| found.offset.get()), first);
        let most = partition.max_timestamp().unwrap();
        assert_eq!(most.map(|most| (most.offset.get(), most.timestamp_ms)), latest);
    };
    put(9000);
    check(0, None, Some((0, 9000)));
    partition.flush().unwrap();
    check(0, Some(0), Some((0, 9000)));
    put(1000);
    put(2000);
    partition.flush().unwrap();
    put(9500);
    check(9001, None, Some((3, 9500)));
    partition.flush().unwrap();
    check(9001, Some(3), Some((3, 9500)));
    put(3000);
    partition.flush().unwrap();
    partition.delete_records(4).unwrap();
    check(0, Some(4), Some((4, 3000)));
}

/// Only the entries made since the open once counted, so that the files grew to twice their size.
#[test]
fn an_index_is_as_full_after_a_reopen_as_before() {
    let until_rolled = |reopened_after: usize| {
        let vfs = machine();
        let mut store = open(&vfs);
        let config = TopicConfig::default().index_interval_bytes(0).segment_index_bytes(240);
        store.create_topic("t", config).unwrap();
        (1..100).find(|&count| {
            let partition = store.topic("t").unwrap().partition(0).unwrap();
            partition.append(Record::of_value("v")).unwrap();
            let has_rolled = partition.stats().segments > 1;
            if count == reopened_after {
                store.close().unwrap();
                store = open(&vfs);
            }
            has_rolled
        })
    };
    let whole = until_rolled(0);
    assert!(whole.is_some_and(|count| count > 10), "{whole:?}");
    for reopened_after in [1, 5, 10] {
        let count = until_rolled(reopened_after);
        // The batch behind a reopen begins an interval of its own.
        assert!(
            count.is_some_and(|count| count.abs_diff(whole.unwrap()) <= 1),
            "{reopened_after}: {count:?}, {whole:?}"
        );
    }
}

/// The log with a torn tail of more than 64 MiB was itself renamed into quarantine before its good part had its name: a
/// recovery that stopped in between could never be gone on with.
#[test]
fn a_recovery_of_a_long_torn_tail_may_stop_anywhere() {
    let vfs = machine();
    let store = open(&vfs);
    let config = TopicConfig::default().durability(Durability::Os).segment_bytes(200 << 20).batch_bytes_max(4 << 20);
    let partition = store.create_topic("t", config).unwrap().partition(0).unwrap();
    partition.append(Record::of_value("kept")).unwrap();
    let first = vfs.image().read("s/t-0/00000000000000000000.log").unwrap();
    let position = 12 + u32::from_be_bytes(first[8..12].try_into().unwrap()) as usize;
    for _ in 0..17 {
        partition.append(Record::of_value(vec![b'x'; (4 << 20) - 1000])).unwrap();
    }
    drop((store, partition));
    vfs.kill();
    vfs.patch("/s/t-0/00000000000000000000.log", position as u64 + 200, b"?").unwrap();
    let image = vfs.image();
    let log = image.read("s/t-0/00000000000000000000.log").unwrap();
    let stopped = |op, call| {
        let vfs = FaultVfs::from_image(&image);
        vfs.inject(FaultPlan::new(Fault::Error(errno::EIO)).on(op).at_call(call));
        let builder = Store::builder().vfs(Arc::new(vfs.clone())).upkeep(Upkeep::Manual).id_seed(5);
        let was_stopped = builder.open("/s").is_err();
        vfs.clear_faults();
        vfs.kill();
        let store = open(&vfs);
        let partition = store.topic("t").unwrap().partition(0).unwrap();
        assert_eq!(partition.end().get(), 1, "{op:?} {call}");
        assert_eq!(partition.record(0).unwrap().unwrap().value(), Some(&b"kept"[..]));
        let after = vfs.image();
        let kept: Vec<_> = after.files().filter(|(path, _)| path.contains("/quarantine/")).collect();
        let kept: Vec<_> = kept.iter().filter(|(path, _)| path.ends_with(".bin")).collect();
        assert_eq!(kept.len(), 1, "{op:?} {call}: {kept:?}");
        assert!(after.read(kept[0].0).unwrap() == log[position..], "{op:?} {call}: what was cut is kept");
        was_stopped
    };
    for (op, at_least) in [(OpKind::Rename, 3), (OpKind::SyncDir, 4)] {
        let calls = (1..40).take_while(|call| stopped(op, *call)).count();
        assert!((at_least..39).contains(&calls), "{op:?}: {calls}");
    }
}

/// The offset of an index entry was added up without a look at where offsets end. The name of a file and its index may say
/// anything.
#[test]
fn offsets_at_the_end_of_their_range_are_no_panic() {
    use topiclog::record::{BatchBuilder, BatchSpec};
    for base in [i64::MAX, i64::MAX - 1, i64::MAX - 40, i64::MAX - i64::from(u32::MAX)] {
        for relative in [1, 30, u32::MAX / 2, u32::MAX] {
            let vfs = machine();
            vfs.create_dir(Path::new("/s/t-0")).unwrap();
            let put = |suffix: &str, bytes: &[u8]| {
                let path = format!("/s/t-0/{base:020}.{suffix}");
                vfs.open(Path::new(&path), OpenMode::Create).unwrap().write_at(bytes, 0).unwrap();
            };
            let mut log = Vec::new();
            for offset in [base, base.saturating_add(20)] {
                let mut builder = BatchBuilder::new(BatchSpec::new(0));
                builder.push(Record::of_value("v").timestamp_ms(1000)).unwrap();
                let mut batch = builder.finish().unwrap().to_vec();
                batch[..8].copy_from_slice(&offset.to_be_bytes());
                log.extend_from_slice(&batch);
            }
            put("log", &log);
            put("index", &[relative.to_be_bytes(), (log.len() as u32 / 2).to_be_bytes()].concat());
            put("timeindex", &[&1000_i64.to_be_bytes()[..], &relative.to_be_bytes()].concat());
            let builder = Store::builder().vfs(Arc::new(vfs.clone())).upkeep(Upkeep::Manual).read_only(true);
            let store = builder.open("/s").unwrap();
            if let Ok(partition) = store.topic("t").and_then(|topic| topic.partition(0)) {
                for offset in [base, base.saturating_add(20), i64::MAX - 1] {
                    drop(partition.record(offset));
                }
                drop((partition.max_timestamp(), partition.offset_for_timestamp(999)));
            }
            topiclog::verify_on(&vfs, Path::new("/s")).unwrap();
        }
    }
}

/// An index was read as long as it was, up to half a gigabyte of it, whatever its log could have. And a verification that met a
/// longer one ended there.
#[test]
fn an_index_that_no_such_log_can_have_takes_no_memory() {
    let largest = Arc::new(AtomicUsize::new(0));
    let memory = MemoryVfs::new();
    let vfs = Arc::new(Layered(memory.clone(), largest_read(&largest)));
    let open = || Store::builder().vfs(Arc::clone(&vfs) as Arc<dyn Vfs>).upkeep(Upkeep::Manual).open("/s").unwrap();
    let store = open();
    let config = TopicConfig::default().segment_bytes(2000).index_interval_bytes(1).preallocate_bytes(0);
    let topic = store.create_topic("t", config).unwrap();
    (0..40).for_each(|nth| drop(topic.append(Record::of_value(vec![nth; 100]).timestamp_ms(1000)).unwrap()));
    assert!(topic.partition(0).unwrap().stats().segments >= 3);
    store.close().unwrap();
    let names = memory.list("/s/t-0".as_ref()).unwrap().into_iter().map(|entry| entry.name);
    let names: Vec<_> = names.filter(|name| name.ends_with("index") || name.ends_with(".snapshot")).collect();
    for name in &names {
        memory.open(&Path::new("/s/t-0").join(name), OpenMode::Write).unwrap().set_len(70 << 20).unwrap();
    }
    largest.store(0, Ordering::Relaxed);
    let report = topiclog::verify_on(&*vfs, Path::new("/s")).unwrap();
    let is_told = |name: &String| report.damages().any(|finding| finding.path.ends_with(name));
    assert!(names.len() >= 9 && names.iter().all(is_told), "{report:?}");
    let partition = open().topic("t").unwrap().partition(0).unwrap();
    for nth in 0..40 {
        assert_eq!(partition.record(i64::from(nth)).unwrap().unwrap().value(), Some(&[nth; 100][..]));
    }
    assert_eq!(partition.offset_for_timestamp(1000).unwrap().unwrap().offset.get(), 0);
    let largest = largest.load(Ordering::Relaxed);
    assert!(largest <= 2 << 20, "{largest} bytes at once");
}

/// It was copied as it was when the segment was closed, and got a checksum of its own. Our own reads compare an entry with its
/// batch; a broker trusts it, and would pass records over.
#[test]
fn a_wrong_entry_of_an_index_is_not_handed_on() {
    const INDEX: &str = "/s/t-0/00000000000000000000.index";
    let size = Record::of_value(vec![b'x'; 100]);
    for (is_clean, more) in [(true, 1), (true, 20), (false, 1), (false, 20)] {
        let vfs = machine();
        let store = open(&vfs);
        let config = TopicConfig::default().segment_bytes(2000).index_interval_bytes(1).preallocate_bytes(0);
        let topic = store.create_topic("t", config).unwrap();
        (0..6).for_each(|_| drop(topic.append(&size).unwrap()));
        store.close().unwrap();
        if !is_clean {
            let store = open(&vfs);
            store.topic("t").unwrap().append(&size).unwrap();
            vfs.kill();
        }
        let index = vfs.image().read(INDEX).unwrap();
        assert_eq!(index.len(), 5 * 8);
        // Still behind the entry before and ahead of the one that follows.
        vfs.patch(INDEX, 2 * 8 + 7, &[index[2 * 8 + 7] + 1]).unwrap();
        let store = open(&vfs);
        let topic = store.topic("t").unwrap();
        (0..more).for_each(|_| drop(topic.append(&size).unwrap()));
        assert_eq!(topic.partition(0).unwrap().stats().segments > 1, more > 1);
        store.close().unwrap();
        let report = topiclog::verify_on(&vfs, Path::new("/s")).unwrap();
        assert_eq!(report.damages().count(), 0, "clean {is_clean}, {more} more: {report:?}");
    }
}

/// Each close left one more.
#[test]
fn a_partition_that_is_opened_again_and_again_keeps_a_bounded_number_of_files() {
    let files = |vfs: &FaultVfs| -> Vec<(String, u64)> {
        let image = vfs.image();
        let files = image.files().filter(|(path, _)| path.starts_with("s/t-0/"));
        files.map(|(path, bytes)| (path.rsplit('/').next().unwrap().to_owned(), bytes)).collect()
    };
    let snapshots = |vfs: &FaultVfs| -> Vec<i64> {
        files(vfs).iter().filter_map(|(name, _)| name.strip_suffix(".snapshot")?.parse().ok()).collect()
    };
    let vfs = machine();
    open(&vfs).create_topic("t", TopicConfig::default().segment_bytes(1500).preallocate_bytes(0)).unwrap();
    for nth in 1..=10 {
        let store = open(&vfs);
        assert_eq!(store.recovery_report().repairs().count(), 0, "{:?}", store.recovery_report());
        store.topic("t").unwrap().append(Record::of_value("v")).unwrap();
        store.close().unwrap();
        assert_eq!(snapshots(&vfs), [nth], "the one at the log end");
        let blocks: u64 = files(&vfs).iter().map(|(_, bytes)| bytes.next_multiple_of(4096)).sum();
        assert!(blocks <= 64 << 10, "{blocks} bytes: {:?}", files(&vfs));
    }
    // Those at the bases of segments stay.
    let store = open(&vfs);
    let topic = store.topic("t").unwrap();
    topic.append(Record::of_value("v")).unwrap();
    (0..3).for_each(|_| drop(topic.append(Record::of_value(vec![b'x'; 1200])).unwrap()));
    let bases: Vec<i64> = files(&vfs).iter().filter_map(|(name, _)| name.strip_suffix(".log")?.parse().ok()).collect();
    assert_eq!(bases, [0, 11, 12, 13]);
    assert_eq!(snapshots(&vfs), [10, 11, 12, 13], "none goes before the next close or open");
    drop((store, topic));
    vfs.kill();

    // One that an earlier version, or a crash, left is told of once.
    let store = open(&vfs);
    let swept = |store: &Store| {
        let repairs: Vec<_> = store.recovery_report().repairs().cloned().collect();
        repairs.iter().filter(|repair| matches!(repair, topiclog::Repair::Swept { .. })).count()
    };
    assert_eq!((snapshots(&vfs), swept(&store)), (vec![11, 12, 13], 1));
    store.close().unwrap();
    assert_eq!(snapshots(&vfs), [11, 12, 13, 14]);
    assert_eq!(swept(&open(&vfs)), 0);
}

/// Whatever call to the disk fails, or whenever the process ends: a loader finds a snapshot at or below the log end.
#[test]
fn there_is_always_a_snapshot_of_the_producers_once_there_was_one() {
    let vfs = machine();
    let store = open(&vfs);
    store.create_topic("t", TopicConfig::default()).unwrap().append(Record::of_value("v")).unwrap();
    store.close().unwrap();
    let image = vfs.image();
    let mut stops = 0;
    for call in 1..60 {
        for fault in [Fault::Error(errno::EIO), Fault::Error(errno::ENOSPC)] {
            let vfs = FaultVfs::from_image(&image);
            let store = open(&vfs);
            store.topic("t").unwrap().append(Record::of_value("v")).unwrap();
            vfs.inject(FaultPlan::new(fault).at_call(call));
            stops += usize::from(store.close().is_err());
            vfs.clear_faults();
            drop(store);
            for image in [vfs.image(), vfs.durable_image()] {
                let has_one = image.files().any(|(path, _)| path.ends_with(".snapshot"));
                assert!(has_one, "call {call}");
            }
        }
    }
    tell!("closes that failed: {stops}");
    assert!(stops >= 20, "{stops}");
}

/// One that would become larger than what a reader allows was decompressed up to 256 MiB, and called damaged above that.
#[cfg(feature = "gzip")]
#[test]
fn a_batch_that_is_too_large_to_be_looked_into_is_no_damage() {
    let vfs = machine();
    let store = open(&vfs);
    let topic = store.create_topic("t", TopicConfig::default()).unwrap();
    let how = topiclog::AppendOptions::new().compression(topiclog::Compression::Gzip);
    let sizes = [(16 << 20) - 100, 16 << 20, 17 << 20];
    for bytes in sizes {
        topic.append_with(Record::of_value(vec![0; bytes]), &how).unwrap();
    }
    store.close().unwrap();
    let report = topiclog::verify_on(&vfs, Path::new("/s")).unwrap();
    let told: Vec<_> = report.findings.iter().filter(|found| found.what.contains("records not looked into")).collect();
    assert_eq!((report.damages().count(), told.len(), report.records), (0, 1, 3), "{report:?}");
    let partition = open(&vfs).topic("t").unwrap().partition(0).unwrap();
    for (offset, bytes) in (0..).zip(sizes) {
        match partition.read(offset, 1, 1) {
            Ok(fetched) => assert!(bytes < 16 << 20 && fetched.records[0].value().unwrap().len() == bytes),
            Err(error) => assert!(bytes >= 16 << 20 && error.to_string().contains("ReadOptions::limits"), "{error}"),
        }
    }
}

/// What was mapped for small appends was filled with zeros from where it had come to, over batches that had been written
/// beside it meanwhile: large ones, and those that were synced at once.
#[test]
fn what_is_written_beside_a_window_is_not_lost_to_it() {
    let directory = directory_with_windows("what_is_written_beside_a_window_is_not_lost_to_it");
    let store = Store::open(directory.path().join("store")).unwrap();
    let topic = store.create_topic("t", TopicConfig::default().durability(Durability::Os)).unwrap();
    let partition = topic.partition(0).unwrap();
    let mut values = Vec::new();
    let mut append = |bytes: usize, count: usize, durability| {
        for _ in 0..count {
            let value = vec![b'a' + (values.len() % 26) as u8; bytes];
            let options = AppendOptions::new().durability(durability);
            partition.append_batch_with(&[Record::of_value(value.clone())], &options).unwrap();
            values.push(value);
        }
    };
    // Enough that the space which is taken ahead is long.
    append(1000, 5000, Durability::Os);
    for (bytes, count, durability) in [(200_000, 1, Durability::Os), (1000, 300, Durability::Sync)] {
        for _ in 0..10 {
            append(1000, 30, Durability::Os);
            append(bytes, count, durability);
        }
    }
    append(1000, 1, Durability::Os);
    let read: Vec<Vec<u8>> = partition.read_from(0).map(|record| record.unwrap().value().unwrap().to_vec()).collect();
    assert!(read == values, "{} of {}", read.len(), values.len());
    store.close().unwrap();
}
