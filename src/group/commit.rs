//! What is committed: an offset with its note, how durable, and the records that say so. PURE.

use super::schema::{Key, OffsetCommitValue};
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::ids::{Offset, TopicPartition, Uuid};
use crate::partition::Durability;
use crate::record::Record;

/// Longest metadata of a commit, in bytes (Kafka's `offset.metadata.max.bytes`).
const METADATA_BYTES_MAX: usize = 4096;

/// How far a group has come, as it is committed.
///
/// ```
/// use topiclog::group::NewOffset;
/// let next = NewOffset::new(42).leader_epoch(7).metadata("batch 9");
/// assert_eq!(next.offset().get(), 42);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewOffset {
    offset: i64,
    leader_epoch: Option<i32>,
    metadata: String,
}

impl NewOffset {
    /// The next offset to read: one past the last record that was processed.
    pub fn new(offset: impl Into<Offset>) -> Self {
        Self { offset: offset.into().get(), leader_epoch: None, metadata: String::new() }
    }

    /// The leader epoch of the last record that was processed.
    #[must_use]
    pub fn leader_epoch(mut self, leader_epoch: i32) -> Self {
        self.leader_epoch = Some(leader_epoch);
        self
    }

    /// A note of at most 4,096 bytes.
    #[must_use]
    pub fn metadata(mut self, metadata: impl Into<String>) -> Self {
        self.metadata = metadata.into();
        self
    }

    /// The next offset to read.
    pub fn offset(&self) -> Offset {
        self.offset.into()
    }
}

/// What one commit does differently from the others.
#[derive(Clone, Copy, Debug, Default)]
pub struct CommitOptions {
    pub(super) durability: Option<Durability>,
}

impl CommitOptions {
    /// At the durability of `__consumer_offsets`, which is `Sync` where this library made it.
    pub fn new() -> Self {
        Self::default()
    }

    /// At this durability.
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = Some(durability);
        self
    }
}

impl NewOffset {
    pub(super) fn value(&self, topic_id: Uuid, now_ms: Timestamp) -> OffsetCommitValue {
        OffsetCommitValue {
            offset: self.offset,
            leader_epoch: self.leader_epoch.unwrap_or(-1),
            metadata: self.metadata.clone(),
            commit_timestamp_ms: now_ms,
            expire_timestamp_ms: -1,
            topic_id: Some(topic_id),
        }
    }
}

pub(super) fn key<'a>(group: &'a str, place: &'a TopicPartition) -> Key<'a> {
    let partition = i32::try_from(place.partition.get()).unwrap_or(i32::MAX);
    Key::OffsetCommit { group, topic: place.topic.as_str(), partition }
}

pub(super) fn record(group: &str, place: &TopicPartition, value: &OffsetCommitValue) -> Record {
    Record::keyed(key(group, place).encode(), value.encode())
}

pub(super) fn check_offset(offset: &NewOffset) -> Result<()> {
    if offset.offset < 0 {
        return Err(Error::invalid("committed offset", "must not be negative"));
    }
    if offset.metadata.len() > METADATA_BYTES_MAX {
        return Err(Error::invalid("commit metadata", format!("must have at most {METADATA_BYTES_MAX} bytes")));
    }
    if offset.leader_epoch.is_some_and(|epoch| epoch < 0) {
        return Err(Error::invalid("leader epoch", "must not be negative"));
    }
    Ok(())
}
