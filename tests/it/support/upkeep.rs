//! Upkeep by hand, until there is nothing left to do.

use topiclog::{Store, TickReport};

/// Ticks until there is nothing to do. What was done in all.
#[track_caller]
pub(crate) fn settle(store: &Store) -> TickReport {
    let mut all = TickReport::default();
    for _ in 0..10_000 {
        let step = store.tick().unwrap();
        if step.is_idle() {
            return all;
        }
        all.sealed_segments += step.sealed_segments;
        all.rolled_segments += step.rolled_segments;
        all.deleted_segments += step.deleted_segments;
        all.deleted_bytes += step.deleted_bytes;
        all.compacted_bytes += step.compacted_bytes;
        all.compactions += step.compactions;
        all.tombstones_dropped += step.tombstones_dropped;
        all.expired_keys += step.expired_keys;
    }
    panic!("upkeep never comes to rest");
}
