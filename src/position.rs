//! A position: the next offset to read of some partitions, with what tells whether it still means the same records.
//!
//! Every write returns one, everything that reads can wait for it, and it can be stored. It knows nothing of logs: whether a
//! position is still good is for the log to say.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::ids::{Offset, TopicPartition, Uuid};

/// The next offset to read of one partition.
///
/// ```
/// use topiclog::PartitionPosition;
/// let next = PartitionPosition::new(42).leader_epoch(3);
/// assert_eq!(next.next_offset().get(), 42);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionPosition {
    next_offset: i64,
    leader_epoch: Option<i32>,
    topic_id: Option<Uuid>,
}

impl PartitionPosition {
    /// Everything below this offset was read, or written.
    pub fn new(next_offset: impl Into<Offset>) -> Self {
        Self { next_offset: next_offset.into().get(), leader_epoch: None, topic_id: None }
    }

    /// The leader epoch of the last record below it. With it, a log that was cut since is noticed. A negative epoch is
    /// Kafka's "none".
    #[must_use]
    pub fn leader_epoch(mut self, leader_epoch: i32) -> Self {
        self.leader_epoch = Some(leader_epoch).filter(|&epoch| epoch >= 0);
        self
    }

    /// The topic's identity. With it, a topic that was deleted and made again since is noticed.
    #[must_use]
    pub fn topic_id(mut self, topic_id: Uuid) -> Self {
        self.topic_id = Some(topic_id);
        self
    }

    /// The next offset to read.
    pub fn next_offset(&self) -> Offset {
        self.next_offset.into()
    }

    /// The leader epoch of the last record below it, if it is known.
    pub fn known_leader_epoch(&self) -> Option<i32> {
        self.leader_epoch
    }

    /// The topic's identity, if it is known.
    pub fn known_topic_id(&self) -> Option<Uuid> {
        self.topic_id
    }

    fn is_of_the_topic_of(&self, other: &Self) -> bool {
        !matches!((self.topic_id, other.topic_id), (Some(one), Some(two)) if one != two)
    }
}

/// The next offsets to read of some partitions.
///
/// It is what a write returns ([`RecordMetadata::position`](crate::RecordMetadata::position)), what can be waited for, and
/// what a reader that keeps its own state stores beside it. As text it is
/// `topic-partition@next_offset[/leader_epoch][#topic_id]`, separated by commas; `serde` writes that text.
///
/// ```
/// use topiclog::{Position, Record, Store, TopicConfig};
/// let store = Store::in_memory()?;
/// let orders = store.create_topic("orders", TopicConfig::default())?;
/// let mut seen = Position::new();
/// let placed = orders.append(Record::of_value("placed"))?.position();
/// assert!(!seen.covers(&placed));
/// seen.merge(&placed);
/// assert!(seen.covers(&placed));
/// let stored = seen.to_string();
/// assert!(stored.starts_with("orders-0@1/0#"));
/// assert_eq!(stored.parse::<Position>()?, seen);
/// # store.close()?;
/// # Ok::<(), topiclog::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Position {
    partitions: BTreeMap<TopicPartition, PartitionPosition>,
}

impl Position {
    /// Of no partition: covered by every other.
    pub fn new() -> Self {
        Self::default()
    }

    /// Of one partition.
    pub fn of(partition: TopicPartition, at: PartitionPosition) -> Self {
        Self { partitions: BTreeMap::from([(partition, at)]) }
    }

    /// Sets one partition, whatever it was.
    pub fn set(&mut self, partition: TopicPartition, at: PartitionPosition) {
        self.partitions.insert(partition, at);
    }

    /// Leaves a partition out. Returns what it was.
    pub fn remove(&mut self, partition: &TopicPartition) -> Option<PartitionPosition> {
        self.partitions.remove(partition)
    }

    /// One partition; `None` if this position does not name it.
    pub fn get(&self, partition: &TopicPartition) -> Option<&PartitionPosition> {
        self.partitions.get(partition)
    }

    /// All partitions, in order of topic and number.
    pub fn iter(&self) -> impl Iterator<Item = (&TopicPartition, &PartitionPosition)> {
        self.partitions.iter()
    }

    /// How many partitions it names.
    pub fn len(&self) -> usize {
        self.partitions.len()
    }

    /// Whether it names none.
    pub fn is_empty(&self) -> bool {
        self.partitions.is_empty()
    }

    /// Goes on to where both are covered: of each partition the higher offset. Where the other is of a topic that was made
    /// again under the same name, it replaces what was said of the old one.
    pub fn merge(&mut self, other: &Position) {
        for (partition, at) in &other.partitions {
            match self.partitions.get_mut(partition) {
                Some(known) if known.is_of_the_topic_of(at) && known.next_offset > at.next_offset => {}
                Some(known) => *known = *at,
                None => drop(self.partitions.insert(partition.clone(), *at)),
            }
        }
    }

    /// Whether everything below the other position is below this one: it names all its partitions, of the same topics, at
    /// offsets at least as high.
    pub fn covers(&self, other: &Position) -> bool {
        other.partitions.iter().all(|(partition, at)| {
            let known = self.partitions.get(partition);
            known.is_some_and(|known| known.is_of_the_topic_of(at) && known.next_offset >= at.next_offset)
        })
    }
}

impl FromIterator<(TopicPartition, PartitionPosition)> for Position {
    fn from_iter<I: IntoIterator<Item = (TopicPartition, PartitionPosition)>>(partitions: I) -> Self {
        Self { partitions: partitions.into_iter().collect() }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, (partition, at)) in self.partitions.iter().enumerate() {
            let separator = if nth == 0 { "" } else { "," };
            write!(f, "{separator}{partition}@{}", at.next_offset)?;
            if let Some(epoch) = at.leader_epoch {
                write!(f, "/{epoch}")?;
            }
            if let Some(id) = at.topic_id {
                write!(f, "#{id}")?;
            }
        }
        Ok(())
    }
}

impl FromStr for Position {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refused = || {
            let form = "must be topic-partition@next_offset[/leader_epoch][#topic_id], separated by commas";
            Error::invalid("position", form)
        };
        let mut position = Self::new();
        for part in text.split(',').filter(|_| !text.is_empty()) {
            let (name, at) = part.split_once('@').ok_or_else(refused)?;
            let partition = TopicPartition::from_directory_name(name).ok_or_else(refused)?;
            let (at, id) = match at.split_once('#') {
                Some((at, id)) => (at, Some(Uuid::parse(id)?)),
                None => (at, None),
            };
            let (offset, epoch) = match at.split_once('/') {
                Some((offset, epoch)) => (offset, Some(epoch.parse::<i32>().map_err(|_| refused())?)),
                None => (at, None),
            };
            let next_offset: i64 = offset.parse().map_err(|_| refused())?;
            if next_offset < 0 || epoch.is_some_and(|epoch| epoch < 0) || position.get(&partition).is_some() {
                return Err(refused());
            }
            position.set(partition, PartitionPosition { next_offset, leader_epoch: epoch, topic_id: id });
        }
        Ok(position)
    }
}

impl TryFrom<String> for Position {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Position> for String {
    fn from(position: Position) -> String {
        position.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "AQEBAQEBAQEBAQEBAQEBAQ";

    fn position(text: &str) -> Position {
        text.parse().unwrap()
    }

    fn check_merge(first: &str, second: &str, expected: &str) {
        let mut merged = position(first);
        merged.merge(&position(second));
        assert_eq!(merged.to_string(), expected, "{first} with {second}");
        assert!(merged.covers(&position(second)));
    }

    #[test]
    fn a_position_is_read_back_from_its_text() {
        for text in ["", "t-0@5", "t-0@5/0", "t-0@5#AQEBAQEBAQEBAQEBAQEBAQ", "a-b-1@0/7#AQEBAQEBAQEBAQEBAQEBAQ,t-0@9"] {
            assert_eq!(position(text).to_string(), text);
            let json = serde_json::to_string(&position(text)).unwrap();
            assert_eq!(json, format!("\"{text}\""));
            assert_eq!(serde_json::from_str::<Position>(&json).unwrap(), position(text));
        }
    }

    #[test]
    fn other_text_is_refused() {
        let bad = [
            "t@5", "t-0", "t-0@", "t-0@-1", "t-0@x", "t-0@5/", "t-0@5/-1", "t-0@5#", "t-0@5#x", "t-01@5", ",", "t-0@5,",
        ];
        for text in bad.into_iter().chain(["../t-0@5", "t-0@5,t-0@6", "t-0@99999999999999999999"]) {
            let read = text.parse::<Position>();
            assert!(matches!(read, Err(Error::Invalid { .. })), "{text}: {read:?}");
        }
    }

    #[test]
    fn what_is_merged_covers_both() {
        check_merge("", "t-0@5", "t-0@5");
        check_merge("t-0@5", "", "t-0@5");
        check_merge("t-0@5", "t-1@3", "t-0@5,t-1@3");
        check_merge("t-0@5", "t-0@3", "t-0@5");
        check_merge("t-0@5", "t-0@7", "t-0@7");
        // An epoch that is learned for the same offset is kept.
        check_merge("t-0@5", &format!("t-0@5/2#{ID}"), &format!("t-0@5/2#{ID}"));
    }

    #[test]
    fn a_topic_that_was_made_again_replaces_the_old_one_and_does_not_cover_it() {
        let (old, new) = (format!("t-0@9#{ID}"), "t-0@2#AgICAgICAgICAgICAgICAg");
        check_merge(&old, new, new);
        assert!(!position(new).covers(&position(&old)) && !position(&old).covers(&position(new)));
    }

    #[test]
    fn a_position_covers_what_is_not_ahead_of_it() {
        let all = position("t-0@5,t-1@3");
        for (other, expected) in [("", true), ("t-0@5", true), ("t-0@6", false), ("t-2@0", false), ("t-1@0/3", true)] {
            assert_eq!(all.covers(&position(other)), expected, "{other}");
        }
    }
}
