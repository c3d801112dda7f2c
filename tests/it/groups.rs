//! Committed offsets: those of directories by a real Kafka, and our own.

use std::fs;
use std::path::Path;

use std::sync::Arc;

use topiclog::client::OffsetAndMetadata;
use topiclog::clock::ManualClock;
use topiclog::group::{CommitOptions, CommittedOffset, Groups};
use topiclog::io::{CrashProfile, Fault, FaultPlan, FaultVfs, MemoryVfs, OpKind, SyncFailure, errno};
use topiclog::{CleanupPolicy, Durability, Error, Record, Store, TopicConfig, TopicPartition, Upkeep};

use crate::kafka_dirs::{copy_of, fixtures, tree};
use crate::support::broker::T0;

/// Every group's offsets as `groups.jsonl` spells them.
fn lines(store: &Store) -> Vec<serde_json::Value> {
    let groups = Groups::open(store).unwrap();
    let mut lines = Vec::new();
    for group in groups.list().unwrap() {
        for (partition, committed) in groups.offsets(&group).unwrap() {
            lines.push(serde_json::json!({
                "group": group,
                "partition": partition.to_string(),
                "offset": committed.offset,
                "leader_epoch": committed.leader_epoch,
                "metadata": &*committed.metadata,
            }));
        }
    }
    lines
}

fn expected(state: &str) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(fixtures().join(format!("{state}.expected/groups.jsonl"))).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn read_only(root: &Path) -> Store {
    Store::builder().read_only(true).upkeep(Upkeep::Manual).open(root).unwrap()
}

#[test]
fn a_brokers_groups_are_shown_as_kafka_shows_them() {
    for state in ["clean", "killed"] {
        let root = fixtures().join(state);
        let before = tree(&root);
        let store = read_only(&root);
        assert_eq!(lines(&store), expected(state), "{state}");
        store.close().unwrap();
        assert!(before == tree(&root), "{state}: reading changed the directory");
    }
}

#[test]
fn adopted_groups_are_the_same_and_go_on() {
    use topiclog::{AdoptOptions, Offset, PartitionId, TopicName};
    for state in ["clean", "killed"] {
        let (_guard, root) = copy_of(state);
        Store::adopt(&root, &AdoptOptions::new().broker_is_gone(true)).unwrap();
        let store = Store::builder().upkeep(Upkeep::Manual).open(&root).unwrap();
        assert_eq!(lines(&store), expected(state), "{state}");
        let place = TopicPartition::new(TopicName::new("rolled").unwrap(), PartitionId::new(0));
        let groups = Groups::open(&store).unwrap();
        groups
            .commit("group-classic", &[(place.clone(), OffsetAndMetadata::new(Offset::new(9)).metadata("ours"))])
            .unwrap();
        groups.delete("group-manual").unwrap();
        let mut after = expected(state);
        after.retain(|line| line["group"] != "group-manual");
        let at = after.iter().position(|line| line["group"] == "group-consumer").unwrap();
        after.insert(
            at,
            serde_json::json!({
                "group": "group-classic", "partition": "rolled-0", "offset": 9, "leader_epoch": null, "metadata": "ours",
            }),
        );
        assert_eq!(lines(&store), after, "{state}: at once");
        store.close().unwrap();
        drop((store, groups));
        let store = read_only(&root);
        assert_eq!(lines(&store), after, "{state}: reopened");
        store.close().unwrap();
    }
}

/// A broker's `__consumer_offsets` with a transaction of every fate, and records of types that are passed over.
#[test]
fn a_brokers_transactions_are_held_let_through_or_dropped() {
    use topiclog::record::{BatchSpec, EndMarker, RecordRef, encode_batch, encode_end_marker};
    let mut log = Vec::new();
    let mut next = 0_i64;
    let key = |group: &str| [&[0, 1, 0, group.len() as u8], group.as_bytes(), &[0, 1, b't', 0, 0, 0, 0]].concat();
    let value = |offset: u8| [&[0, 3], &[0_u8; 7][..], &[offset], &[0xff; 4], &[0, 0], &[0; 8]].concat();
    let mut put = |producer: Option<i64>, key: Vec<u8>, value: Option<Vec<u8>>| {
        let producer = producer.map(|id| (id, 0, i32::try_from(next).unwrap()));
        let spec = BatchSpec { producer, transactional: producer.is_some(), ..BatchSpec::new(next) };
        encode_batch(&mut log, &spec, [RecordRef::new(Some(&key), value.as_deref()).at_ms(T0)]).unwrap();
        next += 1;
        if key[1] == 99 {
            let marker = EndMarker {
                base_offset: next,
                leader_epoch: 0,
                timestamp_ms: T0,
                producer_id: i64::from(key[2]),
                producer_epoch: 0,
                commit: key[3] == 1,
                coordinator_epoch: 0,
            };
            encode_end_marker(&mut log, &marker).unwrap();
            next += 1;
        }
    };
    // Passed over itself; the marker of a producer follows it.
    let end = |producer: u8, is_committed: bool| vec![0, 99, producer, u8::from(is_committed)];
    put(None, key("plain"), Some(value(1)));
    put(Some(1), key("committed"), Some(value(2)));
    put(Some(2), key("aborted"), Some(value(3)));
    put(Some(3), key("open"), Some(value(4)));
    put(Some(2), key("plain"), Some(value(9)));
    put(None, vec![0, 3, 0, 5, b'n', b'e', b'w', b'e', b'r'], Some(vec![0, 0, 0, 0, 0, 1, 0]));
    put(None, end(1, true), Some(vec![7]));
    put(None, end(2, false), None);
    put(None, key("gone"), Some(value(5)));
    put(None, key("gone"), None);
    put(None, key("after"), Some(value(6)));
    let directory = tempfile::tempdir().unwrap();
    for (name, bytes) in [("__consumer_offsets-0", &log[..]), ("t-0", &[])] {
        let partition = directory.path().join(name);
        fs::create_dir(&partition).unwrap();
        fs::write(partition.join("00000000000000000000.log"), bytes).unwrap();
    }
    let store = read_only(directory.path());
    let groups = Groups::open(&store).unwrap();
    assert_eq!(groups.list().unwrap(), ["after", "committed", "newer", "plain"]);
    let shown: Vec<_> = lines(&store)
        .iter()
        .map(|line| (line["group"].as_str().unwrap().to_owned(), line["offset"].as_i64().unwrap()))
        .collect();
    assert_eq!(shown, [("after".to_owned(), 6), ("committed".to_owned(), 2), ("plain".to_owned(), 1)]);
}

/// Whoever reads on there would begin in the wrong place.
#[test]
fn a_record_that_cannot_be_read_is_told_with_its_offset() {
    use topiclog::record::{BatchSpec, RecordRef, encode_batch};
    let good_key = [0, 1, 0, 1, b'g', 0, 1, b't', 0, 0, 0, 0];
    let check = |key: Option<&[u8]>, value: &[u8], code: &str| {
        let mut log = Vec::new();
        let tombstone = RecordRef::new(Some(&good_key), None);
        encode_batch(&mut log, &BatchSpec::new(0), [tombstone.at_ms(T0), RecordRef::new(key, Some(value)).at_ms(T0)])
            .unwrap();
        let directory = tempfile::tempdir().unwrap();
        let partition = directory.path().join("__consumer_offsets-0");
        fs::create_dir(&partition).unwrap();
        fs::write(partition.join("00000000000000000000.log"), log).unwrap();
        let store = read_only(directory.path());
        let error = Groups::open(&store).unwrap().list().unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        match error {
            Error::Corrupt { offsets, .. } => assert_eq!(offsets, Some((1.into(), 2.into()))),
            other => assert!(other.to_string().contains("offset 1"), "{other}"),
        }
    };
    check(Some(&good_key), &[0, 9, 1], "unsupported");
    check(Some(&good_key), &[0, 3, 1], "corrupt");
    check(Some(&[0]), &[0, 3], "corrupt");
    check(Some(&[0, 1, 0, 1, b'g', 0, 1, b'/', 0, 0, 0, 0]), &[&[0, 0][..], &[0; 18]].concat(), "corrupt");
    check(None, &[0, 3], "corrupt");
}

fn open(disk: &FaultVfs) -> Store {
    let clock = Arc::new(ManualClock::new(T0));
    Store::builder().vfs(Arc::new(disk.clone())).clock(clock).upkeep(Upkeep::Manual).id_seed(7).open("/s").unwrap()
}

/// A topic `t` of two partitions with ten records each.
fn with_topic(store: &Store) -> [TopicPartition; 2] {
    let topic = store.ensure_topic("t", TopicConfig::default().partitions(2)).unwrap();
    [0, 1].map(|number: u32| {
        let partition = topic.partition(number).unwrap();
        let records: Vec<Record> = (0..10).map(|_| Record::of_value("v")).collect();
        partition.append_batch(&records).unwrap();
        partition.id().clone()
    })
}

fn offset_of(found: Option<CommittedOffset>) -> Option<i64> {
    found.map(|found| found.offset)
}

#[test]
fn handles_of_one_store_see_each_others_commits_and_a_reopen_sees_them_all() {
    let disk = FaultVfs::new();
    let store = open(&disk);
    let [first, second] = with_topic(&store);
    let (groups, others) = (Groups::open(&store).unwrap(), Groups::open(&store).unwrap());
    assert!(groups.list().unwrap().is_empty());
    assert!(store.topic("__consumer_offsets").is_err(), "nothing is made before it is needed");
    let next = OffsetAndMetadata::new(4).leader_epoch(0).metadata("n\u{e9}e");
    groups.commit("g", &[(first.clone(), next), (second.clone(), OffsetAndMetadata::new(7))]).unwrap();
    assert_eq!(store.topic("__consumer_offsets").unwrap().partition_count(), 4);
    let topic_id = store.topic("t").unwrap().id();
    let check = |groups: &Groups| {
        let found = groups.committed("g", &first).unwrap().unwrap();
        assert_eq!((found.offset, found.leader_epoch, &*found.metadata), (4, Some(0), "n\u{e9}e"));
        assert_eq!((found.commit_timestamp_ms, found.topic_id), (T0, Some(topic_id)));
        assert_eq!(offset_of(groups.committed("g", &second).unwrap()), Some(7));
        assert_eq!(groups.list().unwrap(), ["g"]);
        assert_eq!(groups.lag(&second, 7).unwrap().records, 3);
    };
    check(&groups);
    check(&others);
    store.close().unwrap();
    drop((store, others));
    check(&Groups::open(&open(&disk)).unwrap());
    assert!(matches!(groups.commit("g", &[(first.clone(), OffsetAndMetadata::new(5))]), Err(Error::Closed { .. })));
    assert!(matches!(groups.list(), Err(Error::Closed { .. })));
}

#[test]
fn a_commit_that_breaks_a_rule_is_refused_and_changes_nothing() {
    let store = open(&FaultVfs::new());
    let [place, _] = with_topic(&store);
    let groups = Groups::open(&store).unwrap();
    let check = |group: &str, offsets: &[(TopicPartition, OffsetAndMetadata)], code: &str| {
        assert_eq!(groups.commit(group, offsets).unwrap_err().code(), code);
        assert!(groups.list().unwrap().is_empty());
    };
    let at = |offset: i64| (place.clone(), OffsetAndMetadata::new(offset));
    check("", &[at(1)], "invalid");
    check(&"g".repeat(1 << 15), &[at(1)], "invalid");
    check("g", &[], "invalid");
    check("g", &[at(1), at(-1)], "invalid");
    check("g", &[(place.clone(), OffsetAndMetadata::new(1).metadata("m".repeat(4097)))], "invalid");
    check("g", &[(place.clone(), OffsetAndMetadata::new(1).leader_epoch(-2))], "invalid");
    let nowhere = TopicPartition::new(place.topic.clone(), 9);
    check("g", &[at(1), (nowhere, OffsetAndMetadata::new(1))], "unknown_topic");
}

#[test]
fn groups_of_one_partition_commit_together_and_others_are_refused() {
    let store = open(&FaultVfs::new());
    let [place, _] = with_topic(&store);
    let groups = Groups::open(&store).unwrap();
    let of = |number: u32| {
        let names = (0..100).map(|n| format!("g{n}"));
        names.filter(|name| groups.partition_of(name).unwrap() == number).collect::<Vec<_>>()
    };
    let (here, there) = (of(1), of(2));
    let (three, eight) = ([(place.clone(), OffsetAndMetadata::new(3))], [(place.clone(), OffsetAndMetadata::new(8))]);
    let options = CommitOptions::new();
    let mixed = groups.commit_all(&[(&here[0], &three), (&there[0], &eight)], &options);
    assert!(matches!(mixed, Err(Error::Invalid { .. })), "no batch can hold both");
    assert!(groups.list().unwrap().is_empty());
    groups.commit_all(&[(&here[0], &three), (&here[1], &eight)], &options).unwrap();
    let partition = store.topic("__consumer_offsets").unwrap().partition(1_u32).unwrap();
    assert_eq!((partition.end().get(), partition.stats().batches), (2, 1), "one batch");
    assert_eq!(offset_of(groups.committed(&here[1], &place).unwrap()), Some(8));
}

/// A store in memory, as it was left there.
fn open_at(vfs: &MemoryVfs, clock: &Arc<ManualClock>) -> Store {
    let builder = Store::builder().vfs(Arc::new(vfs.clone())).clock(Arc::clone(clock) as Arc<_>);
    builder.upkeep(Upkeep::Manual).id_seed(7).open("/s").unwrap()
}

#[test]
fn deletions_and_expiry_leave_what_they_do_not_name() {
    let vfs = MemoryVfs::new();
    let clock = Arc::new(ManualClock::new(T0));
    let open = || open_at(&vfs, &clock);
    let store = open();
    let [first, second] = with_topic(&store);
    let groups = Groups::open(&store).unwrap();
    let both = [(first.clone(), OffsetAndMetadata::new(1)), (second.clone(), OffsetAndMetadata::new(2))];
    ["a", "b", "c"].iter().for_each(|group| groups.commit(group, &both).unwrap());
    groups.delete_offsets("a", std::slice::from_ref(&first)).unwrap();
    groups.delete("b").unwrap();
    groups.delete("nobody").unwrap();
    clock.advance_ms(1000);
    groups.commit("c", &[(second.clone(), OffsetAndMetadata::new(5))]).unwrap();
    assert_eq!(groups.expire(1001).unwrap(), 0);
    assert_eq!(groups.expire(1000).unwrap(), 2, "of a its second, of c its first");
    assert!(matches!(groups.expire(-1), Err(Error::Invalid { .. })));
    let check = |groups: &Groups| {
        assert_eq!(groups.list().unwrap(), ["c"]);
        assert_eq!(groups.offsets("c").unwrap().len(), 1);
        assert_eq!(offset_of(groups.committed("c", &second).unwrap()), Some(5));
    };
    check(&groups);
    store.close().unwrap();
    check(&Groups::open(&open()).unwrap());
}

/// Commits, and compactions of what they supersede, cut by the loss of power at every operation.
#[test]
fn no_acknowledged_commit_is_lost_and_none_is_half_there() {
    let base = FaultVfs::new();
    let store = open(&base);
    let [first, second] = with_topic(&store);
    store.close().unwrap();
    drop(store);
    let image = base.durable_image();
    let run = |disk: &FaultVfs| {
        let (mut acknowledged, mut tried) = (0, 0);
        let clock = Arc::new(ManualClock::new(T0));
        let builder = Store::builder().vfs(Arc::new(disk.clone())).clock(clock).upkeep(Upkeep::Manual).id_seed(7);
        let Ok(store) = builder.open("/s") else { return (0, 0) };
        let Ok(groups) = Groups::open(&store) else { return (0, 0) };
        for at in 1..=4 {
            tried = at;
            let offsets = [(first.clone(), OffsetAndMetadata::new(at)), (second.clone(), OffsetAndMetadata::new(at))];
            if groups.commit("g", &offsets).is_err() {
                break;
            }
            acknowledged = at;
        }
        (acknowledged, tried)
    };
    let whole = FaultVfs::from_image(&image);
    assert_eq!(run(&whole), (4, 4));
    let mut states = 0;
    for stop in 0..=whole.operations() {
        let disk = FaultVfs::from_image(&image);
        disk.stop_after(stop);
        let (acknowledged, tried) = run(&disk);
        for state in disk.crash_states(&CrashProfile::ordered()).take(12) {
            states += 1;
            let store = open(&FaultVfs::from_image(&state.image));
            let groups = Groups::open(&store).unwrap();
            let found = [&first, &second].map(|place| offset_of(groups.committed("g", place).unwrap()).unwrap_or(0));
            assert_eq!(found[0], found[1], "stopped after {stop}: half a commit");
            assert!(found[0] >= acknowledged && found[0] <= tried, "stopped after {stop}: {found:?}, {acknowledged}");
        }
    }
    tell!("groups: {states} crash states of {} operations", whole.operations());
    assert!(states > 100, "{states}");
}

#[test]
fn a_commit_whose_sync_failed_moves_nothing_and_says_so() {
    let disk = FaultVfs::new();
    let store = open(&disk);
    let [place, _] = with_topic(&store);
    let groups = Groups::open(&store).unwrap();
    groups.commit("g", &[(place.clone(), OffsetAndMetadata::new(1))]).unwrap();
    let failure = Fault::Sync(errno::EIO, SyncFailure::LostAtDrop);
    disk.inject(FaultPlan::new(failure).on(OpKind::SyncData).in_class("log"));
    let failed = groups.commit("g", &[(place.clone(), OffsetAndMetadata::new(2))]);
    assert!(matches!(failed, Err(Error::OutcomeUnknown { .. })), "{failed:?}");
    assert_eq!(offset_of(groups.committed("g", &place).unwrap()), Some(1));
    assert!(matches!(groups.commit("g", &[(place, OffsetAndMetadata::new(3))]), Err(Error::Poisoned { .. })));
}

/// A deletion once found nothing to delete, and said that it was done: the commit was there after the next open.
#[test]
fn what_may_have_been_committed_is_not_said_to_be_deleted() {
    let disk = FaultVfs::new();
    let store = open(&disk);
    let [place, _] = with_topic(&store);
    let groups = Groups::open(&store).unwrap();
    groups.delete_offsets("g", std::slice::from_ref(&place)).unwrap();
    disk.inject(FaultPlan::new(Fault::Error(errno::EIO)).on(OpKind::SyncData).in_class("log"));
    let failed = groups.commit("g", &[(place.clone(), OffsetAndMetadata::new(2))]);
    assert!(matches!(failed, Err(Error::OutcomeUnknown { .. })), "{failed:?}");
    let deleted = [groups.delete_offsets("g", &[place]), groups.delete("g")];
    assert!(deleted.iter().all(|deleted| matches!(deleted, Err(Error::Poisoned { .. }))), "{deleted:?}");
}

/// A group that had not come to a tombstone when the store was closed still holds it after the next open, before anybody has
/// looked at the groups.
#[test]
fn tombstones_wait_for_groups_that_have_not_come_to_them() {
    let vfs = MemoryVfs::new();
    let clock = Arc::new(ManualClock::new(T0));
    let open = || open_at(&vfs, &clock);
    let settle = |store: &Store| while !store.tick().unwrap().is_idle() {};
    let store = open();
    let config = TopicConfig::default().cleanup_policy(CleanupPolicy::Compact).delete_retention_ms(1000).segment_ms(1);
    let topic = store.create_topic("users", config.min_cleanable_dirty_ratio(0.0)).unwrap();
    let partition = topic.partition(0_u32).unwrap();
    for record in [Record::keyed("a", "1"), Record::tombstone("a"), Record::keyed("b", "2")] {
        topic.append(record).unwrap();
    }
    let groups = Groups::open(&store).unwrap();
    let commit =
        |groups: &Groups, offset: i64| groups.commit("g", &[(partition.id().clone(), OffsetAndMetadata::new(offset))]);
    commit(&groups, 1).unwrap();
    clock.advance_ms(5000);
    topic.append(Record::keyed("c", "3")).unwrap();
    settle(&store);
    clock.advance_ms(5000);
    settle(&store);
    let partition_end = partition.end().get();
    let has_tombstone = |store: &Store| {
        let partition = store.topic("users").unwrap().partition(0_u32).unwrap();
        partition.read_from(partition.start()).any(|record| record.unwrap().is_tombstone())
    };
    assert!(has_tombstone(&store), "the group has not come to it");
    store.close().unwrap();
    let store = open();
    clock.advance_ms(5000);
    settle(&store);
    assert!(has_tombstone(&store), "nobody has looked at the groups");
    let groups = Groups::open(&store).unwrap();
    settle(&store);
    assert!(has_tombstone(&store), "the group is where it was");
    // As far as compaction has been: what waited is looked at again.
    commit(&groups, partition_end).unwrap();
    settle(&store);
    assert!(!has_tombstone(&store), "the group has passed it");
}

#[test]
fn a_commit_at_os_is_not_synced() {
    let disk = FaultVfs::new();
    let store = open(&disk);
    let [place, _] = with_topic(&store);
    let groups = Groups::open(&store).unwrap();
    let commit = |offset: i64, options: &CommitOptions| {
        groups.commit_all(&[("g", &[(place.clone(), OffsetAndMetadata::new(offset))])], options).unwrap();
        let number = groups.partition_of("g").unwrap();
        let partition = store.topic("__consumer_offsets").unwrap().partition(number).unwrap();
        (partition.durable_end().get(), partition.end().get())
    };
    assert_eq!(commit(1, &CommitOptions::new()), (1, 1));
    assert_eq!(commit(2, &CommitOptions::new().durability(Durability::Os)), (1, 2));
    assert_eq!(commit(3, &CommitOptions::new()), (3, 3));
}

/// A store with a topic, in which each of these groups has committed 1; closed in order.
fn closed_with(root: &Path, groups: &[String]) -> TopicPartition {
    let store = Store::builder().upkeep(Upkeep::Manual).open(root).unwrap();
    let place = store.create_topic("t", TopicConfig::default()).unwrap().partition(0_u32).unwrap().id().clone();
    let committed = Groups::open(&store).unwrap();
    groups.iter().for_each(|group| committed.commit(group, &[(place.clone(), OffsetAndMetadata::new(1))]).unwrap());
    store.close().unwrap();
    place
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|nth| format!("group {nth}")).collect()
}

/// The groups of such a partition were once missing, without a word.
#[test]
fn a_partition_of_the_offsets_that_cannot_be_read_is_an_error_and_no_missing_group() {
    let directory = tempfile::tempdir().unwrap();
    let place = closed_with(directory.path(), &names(20));
    // Shorter than what was synced.
    let log = directory.path().join("__consumer_offsets-2/00000000000000000000.log");
    fs::write(&log, &fs::read(&log).unwrap()[..10]).unwrap();
    let store = read_only(directory.path());
    let groups = Groups::open(&store).unwrap();
    let is_told = |error: Error| error.to_string().contains("__consumer_offsets-2");
    assert!(is_told(groups.list().unwrap_err()));
    let mut unreadable = 0;
    for group in names(20) {
        let is_there = groups.partition_of(&group).unwrap() == 2;
        unreadable += usize::from(is_there);
        match groups.committed(&group, &place) {
            Ok(found) => assert!(!is_there && offset_of(found) == Some(1), "{group}"),
            Err(error) => assert!(is_there && is_told(error), "{group}"),
        }
        match groups.offsets(&group) {
            Ok(found) => assert!(!is_there && found.len() == 1, "{group}"),
            Err(error) => assert!(is_there && is_told(error), "{group}"),
        }
    }
    assert!((1..20).contains(&unreadable), "{unreadable}");
}

/// A broker of a larger cluster has some partitions only; how many there are in all can then but be guessed.
#[test]
fn a_group_is_found_in_whatever_partition_of_the_offsets_it_is() {
    let (whole, part) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let place = closed_with(whole.path(), &names(40));
    let store = read_only(whole.path());
    let of_four: Vec<u32> =
        names(40).iter().map(|group| Groups::open(&store).unwrap().partition_of(group).unwrap()).collect();
    store.close().unwrap();
    for name in ["t-0", "__consumer_offsets-0", "__consumer_offsets-1", "__consumer_offsets-2"] {
        let (from, to) = (whole.path().join(name), part.path().join(name));
        fs::create_dir(&to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            if !entry.file_name().to_str().unwrap().starts_with("topiclog.") {
                fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
            }
        }
    }
    let store = read_only(part.path());
    let groups = Groups::open(&store).unwrap();
    let mut elsewhere = 0;
    for (group, there) in names(40).iter().zip(of_four) {
        elsewhere += usize::from(there < 3 && groups.partition_of(group).unwrap() != there);
        let expected = (there < 3).then_some(1);
        assert_eq!(offset_of(groups.committed(group, &place).unwrap()), expected, "{group}");
        assert_eq!(groups.offsets(group).unwrap().len(), usize::from(there < 3), "{group}");
    }
    assert!(elsewhere > 0, "none is where its name does not say");
}

/// The tombstone of such a group alone is what a broker refuses to load.
#[test]
fn a_group_of_the_newer_protocol_keeps_what_its_broker_wrote() {
    use topiclog::AdoptOptions;
    let (_guard, root) = copy_of("clean");
    Store::adopt(&root, &AdoptOptions::new().broker_is_gone(true)).unwrap();
    let store = Store::builder().upkeep(Upkeep::Manual).open(&root).unwrap();
    let groups = Groups::open(&store).unwrap();
    let ends = || -> Vec<i64> {
        let offsets = store.topic("__consumer_offsets").unwrap();
        offsets.partitions().map(|partition| partition.end().get()).collect()
    };
    let before = ends();
    let refused = groups.delete("group-consumer");
    assert!(matches!(refused, Err(Error::Unsupported { .. })), "{refused:?}");
    assert_eq!(ends(), before, "nothing was written");
    assert_eq!(lines(&store), expected("clean"), "and nothing is seen to have changed");
    let places: Vec<TopicPartition> =
        groups.offsets("group-consumer").unwrap().into_iter().map(|(place, _)| place).collect();
    assert!(!places.is_empty());
    groups.delete_offsets("group-consumer", &places).unwrap();
    assert!(groups.offsets("group-consumer").unwrap().is_empty());
    assert_ne!(ends(), before, "it is the log that says so");
    assert!(groups.list().unwrap().contains(&"group-consumer".to_owned()), "the group itself stays");
}

/// Kafka takes commits of a group without a name; it once kept all others from expiring.
#[test]
fn a_group_without_a_name_expires_and_can_be_deleted() {
    let vfs = MemoryVfs::new();
    let clock = Arc::new(ManualClock::new(T0));
    let open = || open_at(&vfs, &clock);
    let store = open();
    let [place, _] = with_topic(&store);
    let commit = |store: &Store| {
        Groups::open(store).unwrap().commit("g", &[(place.clone(), OffsetAndMetadata::new(1))]).unwrap()
    };
    commit(&store);
    let copied_without_name = |store: &Store| {
        let offsets = store.topic("__consumer_offsets").unwrap();
        let partition = offsets.partition(Groups::open(store).unwrap().partition_of("g").unwrap()).unwrap();
        let record = partition.read_from(0).next().unwrap().unwrap();
        // Version 1, a name of one byte, then topic and partition.
        let key = record.key().unwrap();
        assert_eq!(key[..5], [0, 1, 0, 1, b'g']);
        let key = [&[0, 1, 0, 0][..], &key[5..]].concat();
        // Java's hash of an empty name is 0.
        let nameless = offsets.partition(0_u32).unwrap();
        nameless.append(Record::keyed(key, record.value().unwrap().to_vec())).unwrap();
    };
    copied_without_name(&store);
    store.close().unwrap();
    drop(store);

    let store = open();
    let groups = Groups::open(&store).unwrap();
    assert_eq!(groups.list().unwrap(), ["", "g"]);
    assert_eq!(offset_of(groups.committed("", &place).unwrap()), Some(1));
    assert!(matches!(groups.commit("", &[(place.clone(), OffsetAndMetadata::new(2))]), Err(Error::Invalid { .. })));
    groups.delete("").unwrap();
    assert_eq!(groups.list().unwrap(), ["g"]);
    copied_without_name(&store);
    store.close().unwrap();
    drop((store, groups));

    clock.advance_ms(100_000);
    let store = open();
    assert_eq!(Groups::open(&store).unwrap().expire(1000).unwrap(), 2);
    assert!(Groups::open(&store).unwrap().list().unwrap().is_empty());
}
