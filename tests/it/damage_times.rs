//! Look-ups by time, and reads from within a batch, where no seal vouches for what the headers of the batches say.

use std::path::Path;
use std::sync::Arc;

use topiclog::clock::ManualClock;
use topiclog::io::{FaultVfs, MemoryVfs, Vfs};
use topiclog::record::{BATCH_HEADER_BYTES, BatchHeader};
use topiclog::{Durability, Error, Partition, ReadPath, Record, Store, TopicConfig, Upkeep};

use crate::support::broker::{BrokerLog, T0, get, kv, path, put};

/// Where each batch of a log begins, and how long it is.
fn batches(log: &[u8]) -> Vec<(usize, BatchHeader)> {
    let mut found = Vec::new();
    let mut position = 0;
    while position < log.len() {
        let header = BatchHeader::decode(&log[position..]).unwrap();
        found.push((position, header));
        position += header.size_bytes();
    }
    found
}

/// What is asked of a partition: the first record of at least a time, the latest record, the first record from an offset on.
#[derive(Clone, Copy, Debug)]
enum Ask {
    Time(i64),
    Latest,
    From(i64),
}

impl Ask {
    /// Every time of the log and those beside it, and every offset.
    fn all(times: &[i64], end: i64) -> Vec<Self> {
        let times = times.iter().flat_map(|time| [time - 1, *time, time + 1]).map(Self::Time);
        times.chain([Self::Latest]).chain((0..end).map(Self::From)).collect()
    }

    fn of(self, partition: &Partition) -> topiclog::Result<Option<(i64, i64)>> {
        let found = match self {
            Self::Time(time) => partition.offset_for_timestamp(time)?,
            Self::Latest => partition.max_timestamp()?,
            Self::From(offset) => {
                let record = partition.read_from(offset).next().transpose()?;
                return Ok(record.map(|record| (record.offset().get(), record.timestamp_ms())));
            }
        };
        Ok(found.map(|found| (found.offset.get(), found.timestamp_ms)))
    }
}

/// Asks all of it, each of a store that was opened for it, after each flip of a bit that a CRC covers. An answer is the one that
/// it was before, or the damage is told of.
fn check(name: &str, asks: &[Ask], log: &[u8], ask: impl Fn(&[u8], Ask) -> topiclog::Result<Option<(i64, i64)>>) {
    let expected: Vec<_> = asks.iter().map(|&one| ask(log, one).unwrap()).collect();
    let (mut flips, mut told) = (0, 0);
    for (begin, header) in batches(log) {
        // All that is behind the CRC; every bit of the header, one of each byte of the records.
        let positions =
            (begin + 21..begin + BATCH_HEADER_BYTES).flat_map(|position| (0..8).map(move |bit| (position, bit)));
        let records = begin + BATCH_HEADER_BYTES..begin + header.size_bytes();
        for (position, bit) in positions.chain(records.map(|position| (position, position % 8))) {
            flips += 1;
            let mut damaged = log.to_vec();
            damaged[position] ^= 1 << bit;
            for (&one, expected) in asks.iter().zip(&expected) {
                match ask(&damaged, one) {
                    Ok(found) => assert_eq!(found, *expected, "{name}: {one:?} with byte {position} changed"),
                    // An attribute that has no meaning yet is looked at before the CRC is.
                    Err(Error::Corrupt { .. } | Error::Unsupported { .. }) => told += 1,
                    Err(error) => panic!("{name}: {one:?} with byte {position} changed: {error}"),
                }
            }
        }
    }
    tell!("{name}: {flips} flips, {} questions each, {told} told of", asks.len());
    assert!(flips >= 1300 && told >= flips, "{flips} flips, {told} told of");
}

/// A broker's directory: a compacted segment whose last record is the latest, and an empty one behind it.
fn broker_log() -> BrokerLog {
    let (a, b) = (kv("a", "1"), kv("b", "2"));
    BrokerLog::new(0).batch(0, &[a]).batch(1, &[a, b, a, b]).batch(9, &[a, b]).batch(20, &[b]).roll(30)
}

#[test]
fn no_header_of_a_brokers_segment_is_believed_unchecked() {
    let vfs = MemoryVfs::new();
    broker_log().write(&vfs);
    let log = get(&vfs, &path(0, "log"));
    let index: Vec<u8> = (batches(&log).iter().skip(1))
        .flat_map(|(position, header)| [header.last_offset() as u32, *position as u32].map(u32::to_be_bytes))
        .flatten()
        .collect();
    let times: Vec<i64> = [0, 1, 2, 3, 4, 9, 10, 20].map(|offset| T0 + offset).to_vec();
    for (read_path, has_index) in [(ReadPath::Mapped, false), (ReadPath::Mapped, true), (ReadPath::Positional, true)] {
        if has_index {
            put(&vfs, &path(0, "index"), &index);
        }
        let ask = |log: &[u8], ask: Ask| {
            put(&vfs, &path(0, "log"), log);
            let builder = Store::builder().vfs(Arc::new(vfs.clone())).upkeep(Upkeep::Manual).reads(read_path);
            let store = builder.read_only(true).open("/data").unwrap();
            ask.of(&store.topic("t").unwrap().partition(0).unwrap())
        };
        let name = format!("a broker's segment, {read_path:?}, index: {has_index}");
        check(&name, &Ask::all(&times, 21), &log, ask);
    }
}

/// What lies below the floor is not looked at by a recovery.
#[test]
fn no_header_of_a_segment_without_a_seal_is_believed_unchecked() {
    const LOG: &str = "/s/t-0/00000000000000000000.log";
    let open = |vfs: &FaultVfs| {
        let builder = Store::builder().vfs(Arc::new(vfs.clone())).clock(Arc::new(ManualClock::new(T0)));
        builder.upkeep(Upkeep::Manual).id_seed(3).open("/s")
    };
    let vfs = FaultVfs::new();
    vfs.create_dir(Path::new("/s")).unwrap();
    let store = open(&vfs).unwrap();
    let config = TopicConfig::default().durability(Durability::Sync).preallocate_bytes(0).index_interval_bytes(1);
    let partition = store.create_topic("t", config).unwrap().partition(0).unwrap();
    let times = [T0 + 5, T0 + 3, T0 + 70, T0 + 20, T0 + 60];
    for &time in &times {
        partition.append(Record::of_value("value").timestamp_ms(time)).unwrap();
    }
    store.close().unwrap();
    let synced = vfs.image().read(LOG).unwrap();
    let store = open(&vfs).unwrap();
    store.topic("t").unwrap().append(Record::of_value("behind the floor").timestamp_ms(T0 + 30)).unwrap();
    drop((store, partition));
    vfs.kill();
    let image = vfs.image();
    check("below the floor", &Ask::all(&times, 6), &synced, |log, ask| {
        let vfs = FaultVfs::from_image(&image);
        vfs.patch(LOG, 0, log).unwrap();
        let store = open(&vfs)?;
        ask.of(&store.topic("t").unwrap().partition(0).unwrap())
    });
}

/// A damaged batch below the floor keeps the indexes from being made; it costs no append, and is told of at the close.
#[test]
fn a_segment_with_a_damaged_batch_is_rolled_and_closed_all_the_same() {
    const LOG: &str = "/s/t-0/00000000000000000000.log";
    let open = |vfs: &FaultVfs| {
        Store::builder().vfs(Arc::new(vfs.clone())).upkeep(Upkeep::Manual).id_seed(3).open("/s").unwrap()
    };
    for rolls in [false, true] {
        let vfs = FaultVfs::new();
        let store = open(&vfs);
        let config = TopicConfig::default().preallocate_bytes(0).segment_bytes(1000);
        let topic = store.create_topic("t", config).unwrap();
        (0..3).for_each(|nth| drop(topic.append(Record::of_value("value").timestamp_ms(T0 + nth)).unwrap()));
        store.close().unwrap();
        let store = open(&vfs);
        store.topic("t").unwrap().append(Record::of_value("value").timestamp_ms(T0)).unwrap();
        drop((store, topic));
        vfs.kill();
        let at = vfs.image().read(LOG).unwrap().len() as u64 / 4 - 1;
        vfs.patch(LOG, at, b"?").unwrap();

        let store = open(&vfs);
        let topic = store.topic("t").unwrap();
        let partition = topic.partition(0).unwrap();
        topic.append(Record::of_value(vec![b'x'; if rolls { 900 } else { 9 }]).timestamp_ms(T0)).unwrap();
        assert_eq!(partition.stats().segments, if rolls { 2 } else { 1 });
        assert!(matches!(partition.offset_for_timestamp(T0), Err(Error::Corrupt { .. })));
        assert!(matches!(store.close(), Err(Error::Corrupt { .. })));
        drop((store, topic, partition));

        let store = open(&vfs);
        assert!(!store.recovery_report().is_unclean(), "{:?}", store.recovery_report());
        let partition = store.topic("t").unwrap().partition(0).unwrap();
        assert!(matches!(partition.offset_for_timestamp(T0), Err(Error::Corrupt { .. })));
        assert_eq!(partition.read_from(1).filter(Result::is_ok).count(), 4, "the others are read");
    }
}
