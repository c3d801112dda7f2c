//! What is committed: an offset with its note, how durable, and the records that say so. PURE.

use super::schema::{Key, OffsetCommitValue};
use crate::client::OffsetAndMetadata;
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::ids::{TopicPartition, Uuid};
use crate::partition::{Durability, Partition};
use crate::record::{AsRecord, RecordRef};

/// Longest name of a group, in bytes: Kafka's record schema holds no longer one.
pub(super) const GROUP_BYTES_MAX: usize = i16::MAX as usize;
/// Longest metadata of a commit, in bytes (Kafka's `offset.metadata.max.bytes`).
const METADATA_BYTES_MAX: usize = 4096;

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

pub(super) fn value(offset: &OffsetAndMetadata, topic_id: Uuid, now_ms: Timestamp) -> OffsetCommitValue {
    OffsetCommitValue {
        offset: offset.offset().get(),
        leader_epoch: offset.known_leader_epoch().unwrap_or(-1),
        metadata: offset.note().to_owned(),
        commit_timestamp_ms: now_ms,
        expire_timestamp_ms: -1,
        topic_id: Some(topic_id),
    }
}

pub(super) fn key<'a>(group: &'a str, place: &'a TopicPartition) -> Key<'a> {
    let partition = i32::try_from(place.partition.get()).unwrap_or(i32::MAX);
    Key::OffsetCommit { group, topic: place.topic.as_str(), partition }
}

/// One offset that is to be committed, and the record that says so.
#[derive(Debug)]
pub(super) struct Commit<'a> {
    pub(super) group: &'a str,
    /// Of this version of the store's topics.
    pub(super) partition: Partition,
    pub(super) topics_version: u64,
    pub(super) value: OffsetCommitValue,
    /// The record's key, and behind it its value.
    encoded: Vec<u8>,
    key_end: usize,
}

impl<'a> Commit<'a> {
    pub(super) fn new(group: &'a str, (topics_version, partition): (u64, Partition), value: OffsetCommitValue) -> Self {
        let encoded = key(group, partition.id()).encode_behind(Vec::with_capacity(128));
        let key_end = encoded.len();
        let encoded = value.encode_behind(encoded);
        Self { group, partition, topics_version, value, encoded, key_end }
    }

    pub(super) fn place(&self) -> &TopicPartition {
        self.partition.id()
    }
}

impl AsRecord for Commit<'_> {
    fn as_record(&self) -> RecordRef<'_> {
        RecordRef::new(self.encoded.get(..self.key_end), self.encoded.get(self.key_end..))
    }
}

pub(super) fn check_offset(offset: &OffsetAndMetadata) -> Result<()> {
    if offset.offset().get() < 0 {
        return Err(Error::invalid("committed offset", "must not be negative"));
    }
    if offset.note().len() > METADATA_BYTES_MAX {
        return Err(Error::invalid("commit metadata", format!("must have at most {METADATA_BYTES_MAX} bytes")));
    }
    if offset.known_leader_epoch().is_some_and(|epoch| epoch < 0) {
        return Err(Error::invalid("leader epoch", "must not be negative"));
    }
    Ok(())
}

pub(super) fn check_group(group: &str) -> Result<()> {
    if group.is_empty() || group.len() > GROUP_BYTES_MAX {
        return Err(Error::invalid("group", format!("must have 1 to {GROUP_BYTES_MAX} bytes")));
    }
    Ok(())
}
