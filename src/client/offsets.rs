//! What is committed for a partition: an offset with its note.

use std::collections::BTreeMap;

use crate::ids::{Offset, TopicPartition, Uuid};

/// How far a group has come in a partition, as it is committed.
///
/// ```
/// use topiclog::client::OffsetAndMetadata;
/// let next = OffsetAndMetadata::new(42).leader_epoch(7).metadata("batch 9");
/// assert_eq!((next.offset().get(), next.note()), (42, "batch 9"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OffsetAndMetadata {
    offset: i64,
    leader_epoch: Option<i32>,
    topic_id: Option<Uuid>,
    metadata: String,
}

impl OffsetAndMetadata {
    /// The next offset to read: one past the last record that was processed.
    pub fn new(offset: impl Into<Offset>) -> Self {
        Self { offset: offset.into().get(), leader_epoch: None, topic_id: None, metadata: String::new() }
    }

    /// The leader epoch of the last record that was processed.
    #[must_use]
    pub fn leader_epoch(mut self, leader_epoch: i32) -> Self {
        self.leader_epoch = Some(leader_epoch);
        self
    }

    /// The identity of the topic that was read: a commit for another topic of the same name is refused then.
    #[must_use]
    pub fn topic_id(mut self, topic_id: Uuid) -> Self {
        self.topic_id = Some(topic_id);
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

    /// The leader epoch, if there is one.
    pub fn known_leader_epoch(&self) -> Option<i32> {
        self.leader_epoch
    }

    /// The topic's identity, if it was said.
    pub fn known_topic_id(&self) -> Option<Uuid> {
        self.topic_id
    }

    /// The note.
    pub fn note(&self) -> &str {
        &self.metadata
    }
}

/// Committed offsets, or ones to commit, by partition.
pub type Offsets = BTreeMap<TopicPartition, OffsetAndMetadata>;
