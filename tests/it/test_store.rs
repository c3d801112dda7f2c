//! What a service's own tests are given, and the places where a service runs.
#![cfg(feature = "testing")]

use std::sync::Arc;
use std::time::Duration;

use topiclog::client::{Connect, ConsumedRecord, Reset};
use topiclog::io::MemoryVfs;
use topiclog::testing::{Crash, Failure, TestStore, client_suite};
use topiclog::{
    AppendOptions, CleanupPolicy, Consumer, Durability, Error, Record, Repair, Store, StoredRecord, Topic, TopicConfig,
    Upkeep,
};

#[test]
fn a_place_on_disk_does_what_the_seam_says() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path().join("s")).unwrap();
    client_suite::run(&store, "disk");
    store.close().unwrap();
}

#[test]
fn a_place_in_memory_does_what_the_seam_says() {
    // With the clock of the system, and with one that is moved by hand.
    let store = Store::builder().vfs(Arc::new(MemoryVfs::new())).upkeep(Upkeep::Manual).open("/s").unwrap();
    let at: Arc<dyn Connect> = Arc::new(store);
    client_suite::run(&at, "memory");
    client_suite::run(&TestStore::new().unwrap(), "test");
}

fn topic(at: &TestStore, config: TopicConfig) -> Topic {
    at.store().create_topic("t", config).unwrap()
}

fn text(record: &StoredRecord) -> &str {
    std::str::from_utf8(record.value().unwrap()).unwrap()
}

fn values(records: &[ConsumedRecord]) -> Vec<&str> {
    records.iter().map(|one| text(&one.record)).collect()
}

fn poll(consumer: &mut Consumer) -> Vec<ConsumedRecord> {
    consumer.poll(Duration::ZERO).unwrap().into_iter().collect()
}

fn join(at: &TestStore) -> Consumer {
    Consumer::builder(at).group("g").topic("t").reset(Reset::Earliest).open().unwrap()
}

#[test]
fn records_come_again_to_members_that_run_and_to_ones_that_come_later() {
    let at = TestStore::new().unwrap();
    let topic = topic(&at, TopicConfig::default());
    ["a", "b", "c"].iter().for_each(|&value| drop(topic.append(Record::of_value(value)).unwrap()));
    let mut running = join(&at);
    assert_eq!(running.poll(Duration::ZERO).unwrap().len(), 3);
    running.commit().unwrap();
    assert_eq!(at.redeliver("g", 2).unwrap(), 2);
    assert_eq!(values(&poll(&mut running)), ["b", "c"]);
    running.commit().unwrap();
    running.close().unwrap();
    assert_eq!(at.redeliver("g", 9).unwrap(), 3, "no more than there are");
    assert_eq!(values(&poll(&mut join(&at))), ["a", "b", "c"]);
    assert_eq!(at.redeliver("nobody", 1).unwrap(), 0);
}

#[test]
fn a_failed_append_is_not_published_and_a_failed_sync_needs_a_reopen() {
    let at = TestStore::new().unwrap();
    let topic = topic(&at, TopicConfig::default());
    topic.append(Record::of_value("a")).unwrap();
    at.fail_next(Failure::Append);
    assert!(matches!(topic.append(Record::of_value("b")), Err(Error::NoSpace { .. })));
    topic.append(Record::of_value("c")).unwrap();
    at.fail_next(Failure::Sync);
    assert!(matches!(topic.append(Record::of_value("d")), Err(Error::OutcomeUnknown { .. })));
    assert!(matches!(topic.append(Record::of_value("e")), Err(Error::Poisoned { .. })));
    at.crash(Crash::LoseUnsynced).unwrap();
    assert_eq!(values(&at.published("t").unwrap()), ["a", "c"]);
    at.store().topic("t").unwrap().append(Record::of_value("f")).unwrap();
    assert!(topic.append(Record::of_value("g")).is_err(), "a handle of before the crash is dead");
    assert_eq!(values(&at.published("t").unwrap()), ["a", "c", "f"]);
}

fn check_crash(crash: Crash, expected: &[&str], is_cut: bool) {
    let at = TestStore::new().unwrap();
    let topic = topic(&at, TopicConfig::default());
    topic.append(Record::of_value("synced")).unwrap();
    let long = "x".repeat(3000);
    topic.append_with(Record::of_value(long.clone()), &AppendOptions::new().durability(Durability::Os)).unwrap();
    at.crash(crash).unwrap();
    let left = at.published("t").unwrap();
    let shown: Vec<&str> =
        values(&left).into_iter().map(|value| if value == long { "unsynced" } else { value }).collect();
    assert_eq!(shown, expected, "{crash:?}");
    let store = at.store();
    let cut = store.recovery_report().repairs().find(|repair| matches!(repair, Repair::TailCut { .. }));
    assert_eq!(cut.is_some(), is_cut, "{crash:?}: {cut:?}");
}

#[test]
fn a_crash_leaves_what_it_says() {
    check_crash(Crash::Kill, &["synced", "unsynced"], false);
    check_crash(Crash::LoseUnsynced, &["synced"], false);
    check_crash(Crash::TornTail, &["synced"], true);
}

#[test]
fn time_passes_when_it_is_told_to_and_upkeep_does_what_is_due() {
    let at = TestStore::new().unwrap();
    let config = TopicConfig::default().cleanup_policy(CleanupPolicy::Compact).segment_ms(1000);
    let topic = topic(&at, config.min_cleanable_dirty_ratio(0.0));
    for round in 0..3 {
        topic.append(Record::keyed("k", format!("{round}"))).unwrap();
        topic.append(Record::keyed("gone", "x")).unwrap();
    }
    topic.append(Record::tombstone("gone")).unwrap();
    assert_eq!(at.upkeep().unwrap(), 1, "the key index is made");
    assert_eq!(at.upkeep().unwrap(), 0, "nothing is due yet");
    assert_eq!(at.published("t").unwrap().len(), 7);
    at.advance(Duration::from_secs(60));
    assert!(at.upkeep().unwrap() > 0);
    assert_eq!(at.published("t").unwrap().len(), 2, "the newest of each key");
    let latest = at.latest("t").unwrap();
    assert_eq!(latest.len(), 1);
    assert_eq!(latest[&b"k"[..]].value(), Some(&b"2"[..]));
    at.advance(Duration::from_secs(60 * 60 * 24 * 50));
    at.reopen().unwrap();
    assert_eq!(at.latest("t").unwrap().len(), 1);
}
