//! One test binary: the crate as its users see it.
#![allow(clippy::disallowed_methods, reason = "tests read fixtures as plain files")]
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test stops at the first surprise and says why")]

#[macro_use]
mod tell;

mod adoption;
#[cfg(all(feature = "gzip", feature = "snappy", feature = "lz4", feature = "zstd"))]
mod adoption_crashes;
mod api;
mod cleaner_pitfalls;
mod cleaner_rules;
mod codec_props;
mod compaction;
mod compaction_by_index;
mod compaction_crashes;
mod compaction_model;
mod consumers;
#[cfg(feature = "testing")]
mod consumers_go_on;
mod consumers_model;
mod crashes;
#[cfg(all(feature = "gzip", feature = "snappy", feature = "lz4", feature = "zstd"))]
mod damage_kafka;
mod damage_sweeps;
mod damage_times;
mod durability;
mod golden;
mod group_coordinator;
mod group_crashes;
mod group_kills;
mod group_rules;
mod groups;
mod interop;
mod kafka_compaction;
mod kafka_dirs;
mod kafka_variants;
mod kernel;
mod key_index;
mod key_index_open;
mod keyed_model;
mod kills;
mod lags;
mod layers;
mod members;
mod names;
mod old_formats;
mod own_format;
mod processes;
mod producers;
mod recoveries;
mod regressions;
mod simulator;
mod suites;
mod support;
mod test_store;
mod tools;
mod topics;
mod upkeep_events;
mod upkeep_rules;
mod vectors;
mod waits;
