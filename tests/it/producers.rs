//! Producers: what they take is stored in order, within their bounds, and answered.
#![cfg(feature = "testing")]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use topiclog::client::{
    Capabilities, Connect, Consume, ConsumerOptions, GroupMetadata, Offsets, Produce, ProducerOptions, SendOptions,
    TopicInfo, TransactionResult,
};
use topiclog::clock::{Clock, SystemClock};
use topiclog::record::{Record, TimestampType};
use topiclog::testing::{Crash, Failure, TestStore};
use topiclog::{
    CleanupPolicy, Durability, Error, Producer, ReadLevel, ReadOptions, RecordMetadata, Result, Store, TopicConfig,
    TopicName, TopicPartition,
};

use crate::support::simulate::{Random, seed};

const LONG: Duration = Duration::from_secs(60);

fn with_topic(config: TopicConfig) -> TestStore {
    let at = TestStore::new().unwrap();
    at.create_topic(&TopicName::new("t").unwrap(), &config).unwrap();
    at
}

fn value(number: usize) -> Record {
    Record::of_value(format!("{number}"))
}

fn log_of(store: &Store, partition: u32) -> Vec<(i64, String)> {
    let partition = store.topic("t").unwrap().partition(partition).unwrap();
    let reader = partition.reader(0, &ReadOptions::new().level(ReadLevel::Latest)).unwrap();
    let shown = |value: Option<&[u8]>| String::from_utf8(value.unwrap_or_default().to_vec()).unwrap();
    reader.map(|record| record.unwrap()).map(|record| (record.offset().get(), shown(record.value()))).collect()
}

fn batches(store: &Store) -> u64 {
    store.topic("t").unwrap().partition(0).unwrap().stats().batches
}

#[test]
fn a_full_batch_is_stored_by_the_next_step_and_another_when_it_has_lingered() {
    let at = with_topic(TopicConfig::default());
    let producer = Producer::builder(&at).batch_bytes(3 * 65).linger_ms(50).open().unwrap();
    let sent: Vec<_> = (0..4).map(|number| producer.send("t", value(number)).unwrap()).collect();
    assert_eq!((producer.step(), batches(&at.store())), (3, 1), "three records of 1 byte are full");
    assert!(sent[..3].iter().all(|delivery| delivery.is_done()) && !sent[3].is_done());
    at.advance(Duration::from_millis(49));
    assert_eq!(producer.step(), 0);
    at.advance(Duration::from_millis(1));
    assert_eq!((producer.step(), batches(&at.store())), (1, 2));
    for (number, delivery) in sent.iter().enumerate() {
        let placed = delivery.answer().unwrap().unwrap();
        assert_eq!((placed.offset.get(), placed.next_offset.get()), (number as i64, number as i64 + 1));
    }
    assert_eq!(producer.stats().stored_records, 4);
}

#[test]
fn who_waits_for_a_record_sends_it_and_what_is_before_it() {
    let at = with_topic(TopicConfig::default());
    let producer = Producer::builder(&at).batch_bytes(65).linger_ms(1_000_000).open().unwrap();
    let sent: Vec<_> = (0..3).map(|number| producer.send("t", value(number)).unwrap()).collect();
    assert_eq!(sent[1].wait().unwrap().offset.get(), 1);
    assert!(sent[0].is_done() && !sent[2].is_done());
    assert_eq!(sent[2].wait_for(Duration::ZERO).unwrap().offset.get(), 2);
}

#[test]
fn records_go_where_a_topic_would_put_them_and_keep_their_times() {
    let at = with_topic(TopicConfig::default().partitions(5));
    let topic = at.store().topic("t").unwrap();
    let producer = Producer::new(&at).unwrap();
    let sent: Vec<_> = (0..50)
        .map(|number| {
            let record = match number % 3 {
                0 => Record::keyed(format!("k{number}"), "x"),
                1 => Record::of_value("x").partition_key(format!("p{number}")),
                _ => Record::of_value("x").to_partition(number % 5),
            };
            let expected = topic.partition_for(&record);
            (producer.send("t", record.timestamp_ms(1000 + i64::from(number))).unwrap(), expected, number)
        })
        .collect();
    producer.flush(LONG).unwrap();
    for (delivery, expected, number) in sent {
        let placed = delivery.wait().unwrap();
        assert_eq!((placed.partition, placed.timestamp_ms), (expected, 1000 + i64::from(number)));
        let stored = topic.partition(expected).unwrap().record(placed.offset).unwrap().unwrap();
        assert_eq!(stored.timestamp_ms(), placed.timestamp_ms);
    }
    // Without a key they stay together for a while, and reach all.
    let sent: Vec<u32> = (0..200)
        .map(|_| producer.send("t", Record::of_value(vec![0; 1000])).unwrap().partition().partition.get())
        .collect();
    let changes = sent.windows(2).filter(|pair| pair[0] != pair[1]).count();
    assert!((5..30).contains(&changes), "{changes}");
}

#[test]
fn where_the_topic_stamps_appends_the_answer_has_that_time() {
    let config = TopicConfig::default().timestamp_type(TimestampType::LogAppendTime);
    let at = with_topic(config);
    let producer = Producer::new(&at).unwrap();
    let delivery = producer.send("t", value(0).timestamp_ms(5)).unwrap();
    at.advance(Duration::from_secs(1));
    assert_eq!(delivery.wait().unwrap().timestamp_ms, at.clock().now_ms());
}

#[test]
fn threads_keep_their_order_in_each_partition_and_offsets_are_those_of_the_log() {
    let seed = seed("producers", 31);
    const THREADS: usize = 3;
    const EACH: usize = 600;
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    store.create_topic("t", TopicConfig::default().partitions(3).durability(Durability::Os)).unwrap();
    let producer = Producer::builder(&store).batch_bytes(2000).linger_ms(1).buffer_bytes(20_000).open().unwrap();
    let placed: Vec<Vec<(String, RecordMetadata)>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let producer = &producer;
                scope.spawn(move || {
                    let mut random = Random(seed + thread as u64);
                    let mut sent = Vec::new();
                    for number in 0..EACH {
                        let text = format!("{thread} {number} {:.<1$}", "", random.below(300));
                        let to = random.below(3) as u32;
                        let delivery = producer.send("t", Record::of_value(text.clone()).to_partition(to)).unwrap();
                        assert!(producer.stats().waiting_bytes <= 20_000);
                        if random.below(50) == 0 {
                            delivery.wait().unwrap();
                        }
                        sent.push((text, delivery));
                    }
                    sent.into_iter().map(|(text, delivery)| (text, delivery.wait().unwrap())).collect()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    producer.close(LONG).unwrap();
    assert_eq!(producer.stats().stored_records, (THREADS * EACH) as u64);
    assert_eq!(producer.stats().waiting_bytes, 0);
    for of_thread in &placed {
        let mut last = [-1; 3];
        for (text, metadata) in of_thread {
            let partition = metadata.partition.get() as usize;
            assert!(metadata.offset.get() > last[partition], "{text:?} was overtaken");
            last[partition] = metadata.offset.get();
        }
    }
    for partition in 0..3 {
        for (offset, text) in log_of(&store, partition) {
            let found = placed.iter().flatten().find(|(sent, _)| *sent == text).unwrap();
            assert_eq!((found.1.partition.get(), found.1.offset.get()), (partition, offset));
        }
    }
    let batches: u64 = (0..3).map(|number| store.topic("t").unwrap().partition(number).unwrap().stats().batches).sum();
    assert!(batches < (THREADS * EACH) as u64 / 2, "{batches} batches");
    store.close().unwrap();
}

#[test]
fn the_thread_stores_what_has_lingered_without_another_call() {
    let store = Store::in_memory().unwrap();
    store.create_topic("t", TopicConfig::default()).unwrap();
    let producer = Producer::builder(&store).linger_ms(1).open().unwrap();
    let delivery = producer.send("t", value(0)).unwrap();
    store
        .wait_readable(&topiclog::Position::of(delivery.partition().clone(), topiclog::PartitionPosition::new(1)), LONG)
        .unwrap();
    while !delivery.is_done() {
        std::thread::yield_now();
    }
    drop(producer);
    store.close().unwrap();
}

/// A place in front of a store whose sends stop until they are let through.
struct Gate {
    store: Store,
    open: Mutex<bool>,
    opened: Condvar,
    sends: AtomicUsize,
    is_met: AtomicBool,
    panics: AtomicBool,
}

struct Gated(Arc<Gate>, Arc<dyn Produce>);

impl Gate {
    fn new() -> Arc<Self> {
        let store = Store::in_memory().unwrap();
        store.create_topic("t", TopicConfig::default().partitions(2)).unwrap();
        let (open, opened) = (Mutex::new(false), Condvar::new());
        Arc::new(Self {
            store,
            open,
            opened,
            sends: AtomicUsize::new(0),
            is_met: AtomicBool::new(false),
            panics: AtomicBool::new(false),
        })
    }

    fn set(&self, open: bool) {
        *self.open.lock().unwrap() = open;
        self.opened.notify_all();
    }

    /// Until a send stands before it.
    fn wait_met(&self) {
        while !self.is_met.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
    }
}

/// An `Arc` of the gate is the place.
#[derive(Clone)]
struct Place(Arc<Gate>);

impl Connect for Place {
    fn describe_topic(&self, topic: &TopicName) -> Result<TopicInfo> {
        self.0.store.describe_topic(topic)
    }

    fn topics(&self) -> Result<Vec<TopicName>> {
        Ok(self.0.store.topics())
    }

    fn create_topic(&self, topic: &TopicName, config: &TopicConfig) -> Result<TopicInfo> {
        Connect::create_topic(&self.0.store, topic, config)
    }

    fn produce(&self, options: ProducerOptions) -> Result<Arc<dyn Produce>> {
        Ok(Arc::new(Gated(Arc::clone(&self.0), self.0.store.produce(options)?)))
    }

    fn consume(&self, options: ConsumerOptions) -> Result<Box<dyn Consume>> {
        self.0.store.consume(options)
    }

    fn capabilities(&self) -> Capabilities {
        self.0.store.capabilities()
    }

    fn clock(&self) -> Arc<dyn Clock> {
        Arc::new(SystemClock)
    }
}

impl Produce for Gated {
    fn describe_topic(&self, topic: &TopicName) -> Result<TopicInfo> {
        self.0.store.describe_topic(topic)
    }

    fn send(&self, to: &TopicPartition, records: Vec<Record>, options: &SendOptions) -> Result<RecordMetadata> {
        self.0.sends.fetch_add(1, Ordering::AcqRel);
        self.0.is_met.store(true, Ordering::Release);
        let mut open = self.0.open.lock().unwrap();
        while !*open {
            open = self.0.opened.wait(open).unwrap();
        }
        drop(open);
        assert!(!self.0.panics.load(Ordering::Acquire), "a place that panics");
        self.1.send(to, records, options)
    }

    fn flush(&self, timeout: Duration) -> Result<()> {
        self.1.flush(timeout)
    }

    fn begin_transaction(&self) -> Result<()> {
        self.1.begin_transaction()
    }

    fn send_offsets(&self, offsets: &Offsets, group: &GroupMetadata) -> Result<()> {
        self.1.send_offsets(offsets, group)
    }

    fn end_transaction(&self, result: TransactionResult) -> Result<()> {
        self.1.end_transaction(result)
    }
}

fn is_timeout<T>(outcome: &Result<T>) -> bool {
    matches!(outcome, Err(Error::Timeout { .. }))
}

#[test]
fn a_full_buffer_lets_senders_wait_and_takes_nothing_that_it_has_no_room_for() {
    let gate = Gate::new();
    let place = Place(Arc::clone(&gate));
    let builder = Producer::builder(&place).linger_ms(0).buffer_bytes(400).max_block_ms(20);
    let producer = builder.open().unwrap();
    let record = || Record::of_value(vec![b'x'; 36]);
    let sent: Vec<_> = (0..4).map(|_| producer.send("t", record()).unwrap()).collect();
    gate.wait_met();
    assert_eq!(producer.stats().waiting_bytes, 400);
    assert!(is_timeout(&producer.try_send("t", record())));
    assert!(is_timeout(&producer.send("t", record())), "after 20 ms");
    assert!(is_timeout(&sent[3].wait_for(Duration::from_millis(5))));
    assert!(is_timeout(&producer.flush(Duration::from_millis(5))));
    assert_eq!((producer.stats().waiting_records, gate.sends.load(Ordering::Acquire)), (4, 1));
    let patient = Producer::builder(&Place(Arc::clone(&gate))).linger_ms(3_600_000).buffer_bytes(100).open().unwrap();
    std::thread::scope(|scope| {
        drop(patient.send("t", record()).unwrap());
        // Nothing lingers while somebody waits for room.
        let waiting = scope.spawn(|| patient.send("t", record()).map(|delivery| delivery.is_done()));
        gate.set(true);
        waiting.join().unwrap().unwrap();
    });
    producer.flush(LONG).unwrap();
    patient.close(LONG).unwrap();
    assert_eq!((producer.stats().stored_records, patient.stats().stored_records), (4, 2));
}

#[test]
fn who_waits_for_room_is_not_overtaken_by_those_who_need_less() {
    const BUFFER_BYTES: usize = 40_000;
    let gate = Gate::new();
    let place = Place(Arc::clone(&gate));
    let producer = Producer::builder(&place).linger_ms(0).buffer_bytes(BUFFER_BYTES).open().unwrap();
    drop(producer.send("t", value(0)).unwrap());
    gate.wait_met();
    std::thread::scope(|scope| {
        // It needs the whole buffer.
        let waiting = scope.spawn(|| {
            let large = Record::of_value(vec![b'x'; BUFFER_BYTES - 64]);
            producer.send("t", large).unwrap().wait()
        });
        let is_refused = (0..600).any(|_| {
            std::thread::sleep(Duration::from_millis(5));
            is_timeout(&producer.try_send("t", value(1)))
        });
        assert!(is_refused && producer.stats().waiting_bytes + 65 <= BUFFER_BYTES, "{:?}", producer.stats());
        gate.set(true);
        waiting.join().unwrap().unwrap();
    });
    producer.close(LONG).unwrap();
}

#[test]
fn by_hand_a_send_that_finds_no_room_stores_others_first() {
    let at = with_topic(TopicConfig::default());
    let producer = Producer::builder(&at).buffer_bytes(200).linger_ms(1_000_000).open().unwrap();
    let sent: Vec<_> = (0..10).map(|number| producer.send("t", value(number)).unwrap()).collect();
    assert!(sent[0].is_done() && producer.stats().waiting_bytes <= 200);
    assert!(is_timeout(&producer.try_send("t", Record::of_value("x".repeat(130)))));
    producer.flush(LONG).unwrap();
    assert_eq!(log_of(&at.store(), 0), (0..10).map(|number| (number, number.to_string())).collect::<Vec<_>>());
}

#[test]
fn what_can_never_be_sent_is_refused_before_it_is_taken() {
    let at = with_topic(TopicConfig::default().partitions(2));
    let producer = Producer::builder(&at).buffer_bytes(1000).open().unwrap();
    let check = |topic: &str, record: Record, code: &str| {
        let refused = producer.send(topic, record).map(drop).unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
        assert_eq!(producer.stats(), Default::default());
    };
    check("t", Record::of_value(vec![0; 937]), "invalid");
    check("t", Record::of_value("").header("h", vec![0; 937]), "invalid");
    check("t", value(0).to_partition(2), "unknown_topic");
    check("u", value(0), "unknown_topic");
    check("../t", value(0), "invalid");
    let config = |builder: topiclog::client::ProducerBuilder<'_>| builder.open().map(drop).unwrap_err().code();
    assert_eq!(config(Producer::builder(&at).buffer_bytes(0)), "config");
    assert_eq!(config(Producer::builder(&at).batch_bytes(0)), "config");
}

#[test]
fn one_record_that_is_refused_does_not_take_the_others_of_its_batch_along() {
    // A compacted topic takes no record without a key.
    for bad in 0..7 {
        let at = with_topic(TopicConfig::default().cleanup_policy(CleanupPolicy::Compact));
        let producer = Producer::new(&at).unwrap();
        let send = |number: usize| {
            let record = if number == bad { value(number) } else { Record::keyed("k", number.to_string()) };
            producer.send("t", record.to_partition(0)).unwrap()
        };
        let sent: Vec<_> = (0..7).map(send).collect();
        assert_eq!(producer.flush(LONG).unwrap_err().code(), "invalid");
        let expected: Vec<String> = (0..7).filter(|number| *number != bad).map(|number| number.to_string()).collect();
        assert_eq!(log_of(&at.store(), 0).into_iter().map(|(_, value)| value).collect::<Vec<_>>(), expected);
        for (number, delivery) in sent.iter().enumerate() {
            let answer = delivery.wait();
            assert_eq!(answer.is_err(), number == bad, "{answer:?}");
            let before = i64::from(number > bad);
            assert!(answer.is_err() || answer.unwrap().offset.get() == number as i64 - before);
        }
        let failures = producer.take_failures();
        assert_eq!(failures.iter().map(|failure| failure.records).collect::<Vec<_>>(), [1]);
        producer.flush(LONG).unwrap();
    }
}

#[test]
fn a_failure_reaches_each_record_of_the_batch_and_who_flushes_or_closes() {
    let at = with_topic(TopicConfig::default());
    let producer = Producer::builder(&at).batch_bytes(130).open().unwrap();
    let sent: Vec<_> = (0..4).map(|number| producer.send("t", value(number)).unwrap()).collect();
    at.fail_next(Failure::Append);
    let code = |outcome: Result<()>| outcome.unwrap_err().code();
    assert_eq!(code(producer.flush(LONG)), "no_space");
    let codes: Vec<_> = sent.iter().map(|delivery| delivery.wait().map(drop).map_err(|error| error.code())).collect();
    assert_eq!(codes, [Err("no_space"), Err("no_space"), Ok(()), Ok(())], "those behind are sent all the same");
    producer.flush(LONG).unwrap();
    let stats = producer.stats();
    assert_eq!((stats.stored_records, stats.failed_records, stats.waiting_bytes), (2, 2, 0));
    at.fail_next(Failure::Sync);
    let unknown = producer.send("t", value(4)).unwrap();
    assert_eq!(code(producer.close(LONG)), "outcome_unknown");
    assert_eq!(unknown.wait().map(drop).unwrap_err().code(), "outcome_unknown");
    assert_eq!(producer.send("t", value(5)).map(drop).unwrap_err().code(), "closed");
    producer.close(LONG).unwrap();
    assert_eq!(producer.take_failures().len(), 2);
    assert_eq!(producer.take_failures().len(), 0);
}

#[test]
fn a_topic_that_was_made_again_with_other_partitions_is_looked_up_again() {
    let at = with_topic(TopicConfig::default().partitions(8));
    let store = at.store();
    let producer = Producer::new(&at).unwrap();
    let send_all =
        || (0..20).map(|number| producer.send("t", Record::keyed(format!("{number}"), "x"))).collect::<Vec<_>>();
    send_all().into_iter().for_each(|sent| drop(sent.unwrap()));
    producer.flush(LONG).unwrap();
    for partitions in [3, 8] {
        store.delete_topic("t").unwrap();
        store.create_topic("t", TopicConfig::default().partitions(partitions)).unwrap();
        send_all().into_iter().for_each(drop);
        // What was chosen by the old topic may have no place in the new one.
        drop(producer.flush(LONG));
        let sent = send_all();
        producer.flush(LONG).unwrap();
        let topic = store.topic("t").unwrap();
        for (number, sent) in sent.into_iter().enumerate() {
            let expected = topic.partition_for(Record::keyed(format!("{number}"), "x"));
            assert_eq!(sent.unwrap().wait().unwrap().partition, expected);
        }
    }
}

#[test]
fn a_place_that_panics_hangs_nobody() {
    let gate = Gate::new();
    gate.set(true);
    let place = Place(Arc::clone(&gate));
    let producer = Producer::builder(&place).open().unwrap();
    gate.panics.store(true, Ordering::Release);
    let lost = producer.send("t", value(0)).unwrap();
    assert_eq!(lost.wait().map(drop).unwrap_err().code(), "outcome_unknown");
    gate.panics.store(false, Ordering::Release);
    drop(producer.send("t", value(1)).unwrap());
    assert_eq!(producer.flush(LONG).unwrap_err().code(), "outcome_unknown");
    producer.close(LONG).unwrap();
    assert_eq!((producer.stats().stored_records, producer.stats().failed_records), (1, 1));
}

/// The failure was once told in place of the time-out, as if everything had its outcome.
#[test]
fn a_flush_that_is_not_done_says_so_and_keeps_the_failure_for_the_next() {
    let gate = Gate::new();
    gate.set(true);
    gate.panics.store(true, Ordering::Release);
    let place = Place(Arc::clone(&gate));
    let producer = Producer::builder(&place).linger_ms(0).open().unwrap();
    assert!(producer.send("t", value(0)).unwrap().wait().is_err());
    gate.panics.store(false, Ordering::Release);
    gate.set(false);
    drop(producer.send("t", value(1)).unwrap());
    while gate.sends.load(Ordering::Acquire) < 2 {
        std::thread::yield_now();
    }
    assert!(is_timeout(&producer.flush(Duration::from_millis(5))));
    gate.set(true);
    assert_eq!(producer.flush(LONG).unwrap_err().code(), "outcome_unknown");
    producer.flush(LONG).unwrap();
}

#[test]
fn a_close_stores_what_was_taken_and_gives_up_what_does_not_come_in_time() {
    let store = Store::in_memory().unwrap();
    store.create_topic("t", TopicConfig::default()).unwrap();
    let producer = Producer::builder(&store).linger_ms(3_600_000).open().unwrap();
    let sent: Vec<_> = (0..100).map(|number| producer.send("t", value(number)).unwrap()).collect();
    producer.close(LONG).unwrap();
    assert!(sent.iter().all(|delivery| matches!(delivery.answer(), Some(Ok(_)))));
    assert_eq!(log_of(&store, 0).len(), 100);
    store.close().unwrap();

    let gate = Gate::new();
    let producer = Producer::builder(&Place(Arc::clone(&gate))).batch_bytes(65).linger_ms(0).open().unwrap();
    let sent: Vec<_> = (0..3).map(|number| producer.send("t", value(number).to_partition(0)).unwrap()).collect();
    gate.wait_met();
    assert!(is_timeout(&producer.close(Duration::from_millis(10))));
    assert_eq!(sent[1].wait().unwrap_err().code(), "closed");
    gate.set(true);
    assert_eq!(sent[0].wait().unwrap().offset.get(), 0, "it was under way");
    assert_eq!(log_of(&gate.store, 0).len(), 1);
}

#[test]
fn a_producer_that_is_dropped_gives_up_what_was_not_sent_and_says_so() {
    let at = with_topic(TopicConfig::default());
    let producer = Producer::builder(&at).batch_bytes(65).open().unwrap();
    let sent: Vec<_> = (0..2).map(|number| producer.send("t", value(number)).unwrap()).collect();
    sent[0].wait().unwrap();
    drop(producer);
    assert_eq!(sent[1].wait().unwrap_err().code(), "closed");
    assert_eq!(log_of(&at.store(), 0).len(), 1);
    at.crash(Crash::LoseUnsynced).unwrap();
    assert_eq!(log_of(&at.store(), 0).len(), 1, "what was answered holds");
}

#[test]
#[cfg(feature = "async")]
fn answers_are_futures_on_tokio_and_on_smol() {
    let store = Store::in_memory().unwrap();
    store.create_topic("t", TopicConfig::default()).unwrap();
    let producer = Arc::new(Producer::builder(&store).linger_ms(2).open().unwrap());
    let program = |from: usize| {
        let producer = Arc::clone(&producer);
        async move {
            let sent: Vec<_> = (from..from + 3).map(|number| producer.send("t", value(number)).unwrap()).collect();
            for delivery in sent {
                delivery.await.unwrap();
            }
            producer.send("t", value(99)).unwrap().await.unwrap().offset.get()
        }
    };
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    assert_eq!(tokio.block_on(async { tokio::spawn(program(0)).await.unwrap() }), 3);
    let smol = async_executor::Executor::new();
    assert_eq!(futures_lite::future::block_on(smol.run(program(4))), 7);
    producer.close(LONG).unwrap();
    store.close().unwrap();
}
