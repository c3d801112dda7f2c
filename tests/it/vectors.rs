//! Every byte vector of Kafka's has a check: batches in `golden`, and here the files beside the log and the records of groups,
//! read as Kafka left them and, where Kafka's bytes are determined, written as Kafka writes them.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use topiclog::client::OffsetAndMetadata;
use topiclog::clock::ManualClock;
use topiclog::group::{GroupState, Groups};
use topiclog::io::{MemoryVfs, Vfs};
use topiclog::record::{
    BatchBuilder, BatchError, BatchSpec, BatchView, Compression, DecodeLimits, Record, RecordRef, decode_body,
    encode_batch,
};
use topiclog::{AdoptOptions, Isolation, Partition, ReadOptions, Store, StoreBuilder, TopicConfig, Upkeep};

use crate::golden::{self, example, examples, take_asked};
use crate::support::broker::{T0, get, put};

/// As many as the file has had; a shorter one has lost some.
const VECTORS: usize = 37;

/// What asks for vectors and holds the library to them.
const CHECKS: [fn(); 17] = [
    golden::a_plain_batch,
    golden::b_transactional_batch,
    golden::c_and_d_markers,
    golden::e_and_g_cleaned_batches,
    golden::f_tombstones,
    golden::z_the_same_records_in_every_codec,
    golden::legacy_entries_are_stepped_over_and_refused,
    an_lz4_frame,
    indexes_of_a_segment,
    an_index_of_aborted_transactions,
    producer_snapshots,
    an_offset_checkpoint,
    files_of_an_empty_store,
    leader_epochs,
    the_id_of_a_topic,
    committed_offsets,
    members_of_groups,
];

#[test]
fn every_vector_has_a_check_that_holds() {
    take_asked();
    CHECKS.iter().for_each(|check| check());
    let asked = take_asked();
    let unasked: Vec<_> = examples().into_keys().filter(|name| !asked.contains(name)).collect();
    tell!("vectors: {} checked, {} without a check", asked.len(), unasked.len());
    assert!(unasked.is_empty(), "without a check: {unasked:?}");
    assert!(asked.len() >= VECTORS, "{} vectors", asked.len());
}

fn an_lz4_frame() {
    let frame = example("LZ4 empty-ish frame");
    let mut batch = example("Z compressed lz4")[..61].to_vec();
    batch[57..61].fill(0);
    batch.extend_from_slice(&frame);
    batch[8..12].copy_from_slice(&(49 + frame.len() as u32).to_be_bytes());
    let crc = crc_fast::crc32_iscsi(&batch[21..]).to_be_bytes();
    batch[17..21].copy_from_slice(&crc);
    let header = *BatchView::parse(&batch).unwrap().header();
    let body = decode_body(&header, &Bytes::from(batch), &DecodeLimits::default());
    if !Compression::Lz4.is_built_in() {
        assert_eq!(body.unwrap_err(), BatchError::CodecNotBuiltIn(Compression::Lz4));
        return;
    }
    assert_eq!(body.unwrap(), "a");

    // What cannot be made smaller is framed as the one letter is: the same head and end, and a block that is stored.
    let of = |compression: Compression| {
        let mut batch = BatchBuilder::new(BatchSpec { compression, ..BatchSpec::new(0) });
        batch.push(Record::of_value("a").timestamp_ms(T0)).unwrap();
        batch.finish().unwrap().split_off(61)
    };
    let plain = of(Compression::None);
    let block_bytes = (0x8000_0000 | plain.len() as u32).to_le_bytes();
    let expected = [&frame[..7], &block_bytes, &plain, &frame[frame.len() - 4..]].concat();
    assert_eq!(of(Compression::Lz4), expected);
}

/// A broker's directory in memory, with such files.
fn directory_of(files: &[(&str, &[u8])]) -> Arc<MemoryVfs> {
    let vfs = Arc::new(MemoryVfs::new());
    vfs.create_dir(Path::new("/data")).unwrap();
    for (name, bytes) in files {
        let path = Path::new("/data").join(name);
        vfs.create_dir(path.parent().unwrap()).ok();
        put(&*vfs, &path, bytes);
    }
    vfs
}

fn file(vfs: &MemoryVfs, name: &str) -> Vec<u8> {
    get(vfs, &Path::new("/data").join(name))
}

fn builder(vfs: &Arc<MemoryVfs>) -> StoreBuilder {
    let clock = Arc::new(ManualClock::new(T0));
    Store::builder().vfs(Arc::clone(vfs) as _).clock(clock).upkeep(Upkeep::Manual)
}

fn open(vfs: &Arc<MemoryVfs>) -> Store {
    builder(vfs).open("/data").unwrap()
}

/// Takes the directory over, and opens it.
fn adopted(vfs: &Arc<MemoryVfs>) -> Store {
    let config = TopicConfig::default().index_interval_bytes(4096);
    let options = AdoptOptions::new().broker_is_gone(true).config("t", config);
    builder(vfs).adopt("/data", &options).unwrap();
    open(vfs)
}

fn only_partition(store: &Store) -> Partition {
    store.topic("t").unwrap().partition(0).unwrap()
}

/// A batch of records of one time whose last value is so long that the batch is; any length at all if that is 0.
fn batch(base_offset: i64, count: usize, time: i64, size_bytes: usize) -> Bytes {
    let of = |filler: usize| {
        let mut batch = BatchBuilder::new(BatchSpec::new(base_offset));
        for nth in 1..=count {
            let value = "x".repeat(if nth == count { filler } else { 0 });
            batch.push(Record::of_value(value).timestamp_ms(time)).unwrap();
        }
        batch.finish().unwrap()
    };
    (0..=size_bytes).map(of).find(|batch| size_bytes == 0 || batch.len() == size_bytes).unwrap()
}

fn indexes_of_a_segment() {
    let (index, time_index) = (example("index entries"), example("timeindex entries"));
    let log = [batch(100, 50, T0, 4200), batch(150, 1, T0 + 5, 4300), batch(151, 80, T0 + 90, 0)].concat();
    let vfs = directory_of(&[("t-0/00000000000000000100.log", &log)]);
    let store = adopted(&vfs);
    assert_eq!(file(&vfs, "t-0/00000000000000000100.index"), index);
    assert_eq!(file(&vfs, "t-0/00000000000000000100.timeindex"), time_index);
    let partition = only_partition(&store);
    for offset in [100, 149, 150, 151, 230] {
        assert_eq!(partition.record(offset).unwrap().unwrap().offset().get(), offset);
    }
    for (time, offset) in [(T0, 100), (T0 + 1, 150), (T0 + 5, 150), (T0 + 6, 151), (T0 + 90, 151)] {
        assert_eq!(partition.offset_for_timestamp(time).unwrap().unwrap().offset.get(), offset);
    }
    assert_eq!(partition.offset_for_timestamp(T0 + 91).unwrap(), None);
}

fn offsets(partition: &Partition, isolation: Isolation) -> Vec<i64> {
    let reader = partition.reader(partition.start(), &ReadOptions::new().isolation(isolation)).unwrap();
    reader.map(|record| record.unwrap().offset().get()).collect()
}

fn an_index_of_aborted_transactions() {
    let index = example("txnindex entry");
    let (log, name) = ("t-0/00000000000000000200.log", "t-0/00000000000000000200.txnindex");
    // Read: an empty snapshot behind the marker says that nothing has to be replayed.
    let log_bytes = [example("B txn"), example("D abort"), batch(204, 1, T0, 0)].concat();
    let snapshot = example("producer snapshot, empty");
    let vfs = directory_of(&[(log, &log_bytes), (name, &index), ("t-0/00000000000000000204.snapshot", &snapshot)]);
    let partition = only_partition(&adopted(&vfs));
    assert_eq!(offsets(&partition, Isolation::Uncommitted), [200, 201, 202, 204]);
    assert_eq!(offsets(&partition, Isolation::Committed), [204]);
    // Written: a lost one is made anew.
    let vfs = directory_of(&[(log, &log_bytes)]);
    let partition = only_partition(&adopted(&vfs));
    assert_eq!(file(&vfs, name), index);
    assert_eq!(offsets(&partition, Isolation::Committed), [204]);
}

fn producer_snapshots() {
    let (open, committed) = (example("producer snapshot, one open txn"), example("producer snapshot, after commit"));
    let empty = example("producer snapshot, empty");
    let (data, marker) = (example("B txn"), example("C commit"));
    let log = "t-0/00000000000000000200.log";
    let check = |files: &[(&str, &[u8])], end: i64, expected: &[u8]| {
        let vfs = directory_of(files);
        adopted(&vfs);
        assert_eq!(file(&vfs, &format!("t-0/{end:020}.snapshot")), expected);
    };
    check(&[(log, &batch(200, 1, T0, 0))], 201, &empty);
    check(&[(log, &data)], 203, &open);
    check(&[(log, &[&data[..], &marker].concat())], 204, &committed);
    // The data is gone: only the snapshot says what the marker ends.
    let log = "t-0/00000000000000000203.log";
    check(&[(log, &marker), ("t-0/00000000000000000203.snapshot", &open)], 204, &committed);
    check(&[("t-0/00000000000000000204.log", &[]), ("t-0/00000000000000000204.snapshot", &committed)], 204, &committed);
}

fn an_offset_checkpoint() {
    let checkpoint = example("offset checkpoint");
    let (first, second) = (batch(1000, 234, T0, 0), batch(98_765_432_108, 1, T0, 0));
    let vfs = directory_of(&[
        ("orders-0/00000000000000001000.log", &first),
        ("orders-11/00000000098765432108.log", &second),
        ("log-start-offset-checkpoint", &checkpoint),
    ]);
    let store = adopted(&vfs);
    let starts: Vec<_> = store.topic("orders").unwrap().partitions().map(|one| one.start().get()).collect();
    assert_eq!(starts, [1234, 98_765_432_109]);
    store.close().unwrap();
    for name in ["log-start-offset-checkpoint", "recovery-point-offset-checkpoint", "replication-offset-checkpoint"] {
        assert_eq!(file(&vfs, name), checkpoint, "{name}");
    }
}

fn files_of_an_empty_store() {
    let (checkpoint, marker) = (example("empty checkpoint"), example("clean shutdown"));
    let vfs = Arc::new(MemoryVfs::new());
    open(&vfs).close().unwrap();
    for name in ["log-start-offset-checkpoint", "recovery-point-offset-checkpoint", "replication-offset-checkpoint"] {
        assert_eq!(file(&vfs, name), checkpoint, "{name}");
    }
    assert_eq!(file(&vfs, ".kafka_cleanshutdown"), marker);

    // The marker is what a broker's directory is taken over by, and an empty checkpoint is nothing to be told of.
    let log = ("t-0/00000000000000000000.log", &batch(0, 1, T0, 0)[..]);
    let checkpoint = ("log-start-offset-checkpoint", &checkpoint[..]);
    let adopt = |files: &[(&str, &[u8])]| builder(&directory_of(files)).adopt("/data", &AdoptOptions::new());
    assert_eq!(adopt(&[log, checkpoint]).unwrap_err().code(), "needs_adopt");
    let report = adopt(&[log, checkpoint, (".kafka_cleanshutdown", &marker)]).unwrap();
    assert_eq!((report.partitions.len(), report.notes), (1, vec![]));
}

fn leader_epochs() {
    let epochs = example("leader-epoch-checkpoint");
    let of = |base: i64, epoch: i32| {
        let mut batch = BatchBuilder::new(BatchSpec { leader_epoch: epoch, ..BatchSpec::new(base) });
        batch.push(Record::of_value("v").timestamp_ms(T0)).unwrap();
        batch.finish().unwrap()
    };
    let log = [of(0, 0), of(100, 2), of(1024, 5)].concat();
    let name = "t-0/leader-epoch-checkpoint";
    let vfs = directory_of(&[("t-0/00000000000000000000.log", &log), (name, &epochs)]);
    let store = adopted(&vfs);
    // One more: that of the appends from now on.
    let text = String::from_utf8(epochs.to_vec()).unwrap();
    let expected = format!("{}6 1025\n", text.replacen("\n3\n", "\n4\n", 1));
    assert_eq!(file(&vfs, name), expected.as_bytes());
    let found = offsets(&only_partition(&store), Isolation::Uncommitted);
    assert_eq!(found, [0, 100, 1024], "every epoch belongs to its batch");
}

fn the_id_of_a_topic() {
    let metadata = example("partition.metadata");
    let text = String::from_utf8(metadata.to_vec()).unwrap();
    let name = "t-0/partition.metadata";
    // A broker of another version may end the line; what is written does not.
    for given in [text.clone(), format!("{text}\n")] {
        let log = ("t-0/00000000000000000000.log", &batch(0, 1, T0, 0)[..]);
        let vfs = directory_of(&[log, (name, given.as_bytes())]);
        let store = adopted(&vfs);
        assert!(text.ends_with(&format!("topic_id: {}", store.topic("t").unwrap().id())), "{text}");
        assert_eq!(file(&vfs, name), metadata);
    }
}

/// A store whose partition of offsets holds one record.
fn with_group_record(key: &[u8], value: &[u8]) -> Store {
    let mut log = Vec::new();
    let record = RecordRef::new(Some(key), Some(value)).at_ms(T0);
    encode_batch(&mut log, &BatchSpec::new(0), [record]).unwrap();
    adopted(&directory_of(&[("__consumer_offsets-0/00000000000000000000.log", &log)]))
}

fn committed_offsets() {
    let key = example("OffsetCommitKey v1");
    let newest = example("OffsetCommitValue v4");
    for (version, epoch, expires) in
        [(0, None, None), (1, None, Some(T0 + 86_400_000)), (2, None, None), (3, Some(7), None), (4, Some(7), None)]
    {
        let store = with_group_record(&key, &example(&format!("OffsetCommitValue v{version}")));
        let found = Groups::open(&store).unwrap().offsets("g1").unwrap();
        let [(partition, committed)] = &found[..] else { panic!("{found:?}") };
        assert_eq!(partition.to_string(), "orders-3");
        let seen = (committed.offset, committed.leader_epoch, &*committed.metadata, committed.commit_timestamp_ms);
        assert_eq!(seen, (42, epoch, "", T0), "version {version}");
        assert_eq!((committed.expire_timestamp_ms, committed.topic_id), (expires, None), "version {version}");
    }

    let store = open(&Arc::new(MemoryVfs::new()));
    let topic = store.create_topic("orders", TopicConfig::default().partitions(4)).unwrap();
    let place = topic.partition(3).unwrap();
    place.append_batch(&vec![Record::of_value("v"); 42]).unwrap();
    let groups = Groups::open(&store).unwrap();
    let offset = OffsetAndMetadata::new(42).leader_epoch(7);
    groups.commit("g1", &[(place.id().clone(), offset)]).unwrap();
    let number = groups.partition_of("g1").unwrap();
    let partition = store.topic("__consumer_offsets").unwrap().partition(number).unwrap();
    let written: Vec<_> = partition.read_from(0).map(Result::unwrap).collect();
    let record = written.iter().find(|record| record.key() == Some(&key[..])).expect("a record with Kafka's key");
    // As the vector, which has no tagged field where ours is the topic's id: one field, its tag, and 16 bytes.
    let (plain, without_tags) = newest.split_at(newest.len() - 1);
    assert_eq!(without_tags, [0]);
    let expected = [plain, &[1, 0, 16], topic.id().as_bytes()].concat();
    assert_eq!(record.value(), Some(&expected[..]));
}

/// What an administrator sees of them; the unit tests of the schema compare every field, and write the same bytes.
fn members_of_groups() {
    let key = example("GroupMetadataKey v2");
    for name in ["GroupMetadataValue v3", "GroupMetadataValue v4"] {
        let groups = Groups::open(&with_group_record(&key, &example(name))).unwrap();
        assert_eq!(groups.list().unwrap(), ["g1"]);
        let described = groups.describe("g1").unwrap().unwrap();
        let seen = (described.state, described.generation, &*described.protocol_type, described.protocol.as_deref());
        assert_eq!(seen, (GroupState::Stable, 4, "consumer", Some("range")), "{name}");
        let [member] = &described.members[..] else { panic!("{described:?}") };
        let seen = (&*member.member_id, &*member.client_id, &*member.client_host, &member.group_instance_id);
        assert_eq!(seen, ("m-1", "c", "/127.0.0.1", &None), "{name}");
        let vector = example(name);
        assert!(vector.windows(member.assignment.len()).any(|part| part == member.assignment), "{name}");
    }
    let groups = Groups::open(&with_group_record(&key, &example("GroupMetadataValue v3 empty group"))).unwrap();
    let described = groups.describe("g1").unwrap().unwrap();
    assert_eq!((described.state, described.generation, described.members.len()), (GroupState::Empty, 0, 0));
}
