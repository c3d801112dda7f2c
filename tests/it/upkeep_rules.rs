//! What upkeep promises beside its work: how long a step takes, how much it reads, and that one partition, or a wrong clock, holds
//! up no other.

use std::sync::Arc;

use topiclog::clock::ManualClock;
use topiclog::io::{FaultVfs, Vfs};
use topiclog::{AppendOptions, CleanupPolicy, Durability, Record, Store, StoreBuilder, TopicConfig, Upkeep};

use crate::support::upkeep::settle;

const T0: i64 = 1_700_000_000_000;

struct Bench {
    disk: FaultVfs,
    clock: Arc<ManualClock>,
    store: Store,
}

impl Bench {
    fn with(change: impl FnOnce(StoreBuilder) -> StoreBuilder) -> Self {
        let (disk, clock) = (FaultVfs::new(), Arc::new(ManualClock::new(T0)));
        let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
        let builder = Store::builder().vfs(vfs).clock(Arc::clone(&clock) as _).upkeep(Upkeep::Manual);
        let store = change(builder).open("/s").unwrap();
        Self { disk, clock, store }
    }

    fn new() -> Self {
        Self::with(|builder| builder)
    }
}

fn compacted() -> TopicConfig {
    TopicConfig::default()
        .cleanup_policy(CleanupPolicy::Compact)
        .durability(Durability::Os)
        .min_cleanable_dirty_ratio(0.0)
        .delete_retention_ms(0)
}

#[test]
fn a_batch_in_which_a_key_comes_again_and_again_is_read_once() {
    let bench = Bench::new();
    let topic = bench.store.create_topic("t", compacted()).unwrap();
    // Made before the append, so that the index hears of the keys as they come.
    assert!(topic.get("k0").unwrap().is_none());
    let batch: Vec<Record> = (0..4000).map(|n| Record::keyed(format!("k{}", n % 3), format!("{n}"))).collect();
    topic.append_all(&batch, &AppendOptions::new()).unwrap();
    let before = bench.disk.calls();
    assert_eq!(topic.get("k0").unwrap().unwrap().value(), Some(&b"3999"[..]));
    let calls = bench.disk.calls() - before;
    assert!(calls < 100, "{calls} calls of the disk for one batch");
    let stats = topic.key_index_stats(0).unwrap().unwrap();
    assert_eq!((stats.entries, stats.waiting), (3, 0), "nothing was left to be compared");
}

#[test]
fn the_keys_that_expire_in_one_step_are_ended_by_one_batch_and_one_sync() {
    let bench = Bench::new();
    let config = compacted().durability(Durability::Sync).expire_after_ms(1000);
    let topic = bench.store.create_topic("t", config).unwrap();
    let batch: Vec<Record> = (0..500).map(|n| Record::keyed(format!("k{n}"), "v")).collect();
    topic.append_all(&batch, &AppendOptions::new()).unwrap();
    settle(&bench.store);
    bench.clock.advance_ms(900);
    topic.append(Record::keyed("k7", "newer")).unwrap();
    bench.clock.advance_ms(101);
    let before = bench.disk.operations();
    let ended = settle(&bench.store).expired_keys;
    let operations = bench.disk.operations() - before;
    assert_eq!(ended, 499);
    assert!(operations < 20, "{operations} writes and syncs for 499 keys");
    assert_eq!(topic.get("k7").unwrap().unwrap().value(), Some(&b"newer"[..]), "the newer record lives on");
    let partition = topic.partition(0).unwrap();
    let ends: Vec<_> = partition.read_from(501).map(Result::unwrap).collect();
    assert!(ends.len() == 499 && ends.iter().all(|record| record.is_tombstone() && record.key() != Some(b"k7")));
}
