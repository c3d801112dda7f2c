//! Upkeep by hand, until there is nothing left to do; with key indexes, or without.

use std::cell::Cell;

use topiclog::{Store, StoreBuilder, TickReport};

thread_local! {
    static HAS_KEY_INDEX: Cell<bool> = const { Cell::new(true) };
}

/// Runs tests in which compaction has no key index to go by, as where the memory for it is spent.
pub(crate) fn without_key_index(tests: impl FnOnce()) {
    HAS_KEY_INDEX.set(false);
    tests();
    HAS_KEY_INDEX.set(true);
}

pub(crate) fn has_key_index() -> bool {
    HAS_KEY_INDEX.get()
}

/// Stores of tests that run both ways.
pub(crate) fn with_or_without_key_index(builder: StoreBuilder) -> StoreBuilder {
    if has_key_index() { builder } else { builder.key_index_memory_bytes(0) }
}

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
