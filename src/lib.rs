#![doc = include_str!("../README.md")]

mod cleaner;
mod error;
mod ids;
mod key_index;
mod partition;
mod position;
mod retention;
mod segment;
mod store;
mod sync;
mod topic;

#[cfg(topiclog_planted)]
#[doc(hidden)]
pub mod planted;
#[cfg(not(topiclog_planted))]
mod planted;

pub mod client;
pub mod clock;
pub mod group;
pub mod io;
mod local;
pub mod manual;
pub mod record;
#[cfg(feature = "testing")]
pub mod testing;

#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;

pub use cleaner::CompactionCounts;
pub use client::{Consumer, Producer};
pub use error::{Error, Result};
pub use ids::{Offset, PartitionId, TopicName, TopicPartition, Uuid};
pub use key_index::expiry::EXPIRES_AT_HEADER;
pub use key_index::{KeyCounts, KeyIndexStats, Latest, RecordCount};
pub use partition::append_options::AppendOptions;
pub use partition::repair::{PartitionReport, Repair};
pub use partition::writer::RecordMetadata;
pub use partition::{
    Batch, Durability, Fetched, Isolation, Partition, PartitionStats, ReadLevel, ReadOptions, Reader, TimestampedOffset,
};
pub use position::{PartitionPosition, Position};
pub use record::{
    AsRecord, Compression, Header, Record, RecordList, RecordRef, StoredRecord, StoredRef, TimestampType,
};
pub use retention::RetentionRule;
pub use segment::cursor::Verify;
pub use segment::log_file::ReadPath;
pub use store::adopt::{AdoptOptions, AdoptReport, AdoptedPartition};
pub use store::verify::{Finding, Severity, VerifyReport, verify, verify_on};
pub use store::{RecoveryReport, Store, StoreBuilder, TickReport, Upkeep, UpkeepEvent};
pub use topic::{CleanupPolicy, Topic, TopicConfig, UpkeepStats, murmur2};
