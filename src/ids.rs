//! Names and numbers: what a topic, a partition, an offset and a store are called.
//!
//! Knows nothing of bytes or files. A name that exists as a [`TopicName`] is a legal Kafka topic name, so that a path
//! made from it can neither leave the store's directory nor collide with one of Kafka's directory suffixes.

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A record offset: the place of a record in its partition, counted in records from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Offset(i64);

impl Offset {
    /// The first offset of every partition.
    pub const ZERO: Offset = Offset(0);

    /// Makes an offset. Kafka's offsets are never negative; a negative one is simply out of every range.
    pub const fn new(offset: i64) -> Self {
        Self(offset)
    }

    /// The number.
    pub const fn get(self) -> i64 {
        self.0
    }
}

impl From<i64> for Offset {
    fn from(offset: i64) -> Self {
        Self(offset)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of a partition within its topic, from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PartitionId(u32);

impl PartitionId {
    /// Makes a partition number.
    pub const fn new(partition: u32) -> Self {
        Self(partition)
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl From<u32> for PartitionId {
    fn from(partition: u32) -> Self {
        Self(partition)
    }
}

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A legal Kafka topic name: 1 to 249 characters of `[a-zA-Z0-9._-]`, neither `.` nor `..`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TopicName(Arc<str>);

/// Kafka's longest topic name, in characters.
pub(crate) const TOPIC_NAME_MAX: usize = 249;

/// So that a map by names is looked up by text. Order and hash are those of the text.
impl std::borrow::Borrow<str> for TopicName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl TopicName {
    /// Checks a name.
    ///
    /// # Errors
    /// [`Error::Invalid`] says which rule the name breaks.
    ///
    /// ```
    /// use topiclog::TopicName;
    /// assert!(TopicName::new("orders.v1").is_ok());
    /// assert!(TopicName::new("../orders").is_err());
    /// ```
    pub fn new(name: &str) -> Result<Self> {
        let refuse = |limit: &str| Err(Error::invalid("topic name", limit));
        if name.is_empty() {
            return refuse("must not be empty");
        }
        if name.len() > TOPIC_NAME_MAX {
            return refuse("must have at most 249 characters");
        }
        if name == "." || name == ".." {
            return refuse("must not be \".\" or \"..\"");
        }
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if !name.bytes().all(legal) {
            return refuse("may hold only a-z, A-Z, 0-9, \".\", \"_\" and \"-\"");
        }
        Ok(Self(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for TopicName {
    type Error = Error;
    fn try_from(name: String) -> Result<Self> {
        Self::new(&name)
    }
}

impl From<TopicName> for String {
    fn from(name: TopicName) -> String {
        name.0.as_ref().to_owned()
    }
}

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for TopicName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// One partition of one topic; also the name of its directory, `<topic>-<partition>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    /// The topic.
    pub topic: TopicName,
    /// The partition's number.
    pub partition: PartitionId,
}

impl TopicPartition {
    /// Names a partition.
    pub fn new(topic: TopicName, partition: impl Into<PartitionId>) -> Self {
        Self { topic, partition: partition.into() }
    }

    /// The same, with a name that shares no count of references with others.
    pub(crate) fn with_own_name(&self) -> Self {
        Self { topic: TopicName((*self.topic.0).into()), partition: self.partition }
    }

    /// Kafka's directory name, `<topic>-<partition>`.
    pub fn directory_name(&self) -> String {
        format!("{}-{}", self.topic, self.partition)
    }

    /// Reads a directory name back. `None` if it is not exactly what [`directory_name`](Self::directory_name) makes:
    /// the partition is what follows the last `-`, in decimal without leading zeros.
    pub fn from_directory_name(name: &str) -> Option<Self> {
        let (topic, digits) = name.rsplit_once('-')?;
        let partition: u32 = digits.parse().ok()?;
        let parsed = Self::new(TopicName::new(topic).ok()?, partition);
        (i32::try_from(partition).is_ok() && parsed.directory_name() == name).then_some(parsed)
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

/// A 16-byte identity, written as Kafka writes it: base64url without padding, 22 characters.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Uuid([u8; 16]);

impl Uuid {
    /// An identity of these bytes, in network order.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The bytes, in network order.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Makes a version 4 identity of 16 random bytes, as Kafka does: never one whose text begins with `-`.
    pub(crate) fn from_random(mut bytes: [u8; 16]) -> Self {
        bytes[6] = (bytes[6] & 0x0f) | 0x40;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        // The first six bits make the first character; 62 is `-`.
        if bytes[0] >> 2 == 62 {
            bytes[0] ^= 0x80;
        }
        Self(bytes)
    }

    /// Reads Kafka's text form.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the text does not decode to exactly 16 bytes.
    pub fn parse(text: &str) -> Result<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok();
        let bytes: Option<[u8; 16]> = bytes.and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| Error::invalid("uuid", "must be 22 characters of base64url"))
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Uuid({self})")
    }
}

impl TryFrom<String> for Uuid {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        Self::parse(&text)
    }
}

impl From<Uuid> for String {
    fn from(id: Uuid) -> String {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_kafkas_and_leave_no_directory() {
        let good = ["a", "A.b_c-9", "...", "-", "_", &"x".repeat(249), "orders-0", "a..b"];
        for name in good {
            assert_eq!(TopicName::new(name).unwrap().as_str(), name);
        }
        let bad = ["", ".", "..", "a/b", "a\\b", "a b", "a\0", "ä", "a\n", "a:b", "a*", &"x".repeat(250)];
        for name in bad {
            assert!(matches!(TopicName::new(name), Err(Error::Invalid { .. })), "{name:?}");
        }
    }

    #[test]
    fn directories_are_read_back_and_only_what_we_would_make() {
        for (topic, partition) in [("orders", 0), ("a-b-7", 12), ("-", 3), ("x", i32::MAX as u32)] {
            let id = TopicPartition::new(TopicName::new(topic).unwrap(), partition);
            assert_eq!(TopicPartition::from_directory_name(&id.directory_name()), Some(id));
        }
        for name in [
            "orders",
            "orders-",
            "-0",
            "orders-00",
            "orders-01",
            "orders-+1",
            "orders-1 ",
            "orders--1",
            "orders-x",
            "orders-2147483648",
            "orders-4294967296",
            "or/ders-0",
            "orders-0.abc-delete",
            "..-0",
        ] {
            let expected = (name == "orders--1").then(|| TopicPartition::new(TopicName::new("orders-").unwrap(), 1));
            assert_eq!(TopicPartition::from_directory_name(name), expected, "{name}");
        }
    }

    #[test]
    fn identities_are_written_as_kafka_writes_them() {
        let id = Uuid::from_bytes([0xfb, 0xf0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]);
        assert_eq!(id.to_string(), "-_ABAgMEBQYHCAkKCwwNDg");
        assert_eq!(Uuid::parse("-_ABAgMEBQYHCAkKCwwNDg").unwrap(), id);
        assert_eq!(Uuid::parse("-_ABAgMEBQYHCAkKCwwNDg==").unwrap(), id);
        for bad in ["", "AAAA", "-_ABAgMEBQYHCAkKCwwND", "-_ABAgMEBQYHCAkKCwwNDg0", "+/ABAgMEBQYHCAkKCwwNDg"] {
            assert!(Uuid::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_random_identity_is_of_version_4_and_begins_with_no_dash() {
        for first in 0..=255 {
            let id = Uuid::from_random([first; 16]);
            assert_eq!((id.as_bytes()[6] >> 4, id.as_bytes()[8] >> 6), (4, 2));
            assert!(!id.to_string().starts_with('-'), "{id}");
        }
    }

    #[test]
    fn names_in_a_manifest_are_checked_when_they_are_read() {
        assert!(serde_json::from_str::<TopicName>("\"orders\"").is_ok());
        assert!(serde_json::from_str::<TopicName>("\"../orders\"").is_err());
        assert!(serde_json::from_str::<Uuid>("\"short\"").is_err());
    }
}
