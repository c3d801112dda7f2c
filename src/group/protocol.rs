//! What members of a classic `consumer` group tell each other through the coordinator, which does not look inside:
//! subscriptions and assignments, in Kafka's bytes. PURE.
//!
//! Subscription: int16 version (0 to 3), array of topics, bytes of the user, (1) array of (topic, array of int32) owned,
//! (2) int32 generation, (3) nullable string rack. Assignment: int16 version, array of (topic, array of int32), bytes of the
//! user. Newer versions are read as the newest known.

use std::collections::BTreeMap;

use super::wire::{Decoded, FieldReader, FieldWriter, STRING_BYTES_MAX, SchemaError};

/// What a member wants to read, and what it reads now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subscription {
    /// The topics.
    pub topics: Vec<String>,
    /// Bytes that an assignor of the user's own may carry here.
    pub user_data: Option<Vec<u8>>,
    /// The partitions that the member has, by topic.
    pub owned: BTreeMap<String, Vec<i32>>,
    /// The generation in which it got them, -1 if unknown.
    pub generation: i32,
    /// Where the member is.
    pub rack: Option<String>,
}

fn partitions(fields: &mut FieldReader<'_>) -> Decoded<BTreeMap<String, Vec<i32>>> {
    let by_topic =
        fields.elements(6, |fields| Ok((fields.string()?.to_owned(), fields.elements(4, FieldReader::int32)?)))?;
    Ok(by_topic.into_iter().collect())
}

fn fits(text: &str) -> bool {
    text.len() <= STRING_BYTES_MAX
}

fn put_partitions(fields: &mut FieldWriter, by_topic: &BTreeMap<String, Vec<i32>>) {
    let by_topic: Vec<_> = by_topic.iter().filter(|(topic, _)| fits(topic)).collect();
    fields.count(Some(by_topic.len()));
    for (topic, partitions) in by_topic {
        fields.string(topic);
        fields.count(Some(partitions.len()));
        partitions.iter().for_each(|&partition| fields.int32(partition));
    }
}

fn known_version(fields: &mut FieldReader<'_>) -> Decoded<i16> {
    match fields.int16()? {
        version if version < 0 => Err(SchemaError::Malformed("a version is negative")),
        version => Ok(version.min(3)),
    }
}

impl Subscription {
    /// Reads the bytes of a member. `None` if they are not Kafka's.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Self::decode(bytes).ok()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Decoded<Self> {
        let mut fields = FieldReader::new(bytes);
        let version = known_version(&mut fields)?;
        Ok(Self {
            topics: fields.elements(2, |fields| fields.string().map(str::to_owned))?,
            user_data: fields.nullable_bytes()?.map(<[u8]>::to_vec),
            owned: if version >= 1 { partitions(&mut fields)? } else { BTreeMap::new() },
            generation: if version >= 2 { fields.int32()? } else { -1 },
            rack: if version >= 3 { fields.nullable_string()?.map(str::to_owned) } else { None },
        })
    }

    /// The bytes: version 1, or 3 if there is something that only it can say. Names of more than 32,767 bytes are left out: no
    /// topic has one, and there is no room for them.
    pub fn encode(&self) -> Vec<u8> {
        let topics: Vec<&String> = self.topics.iter().filter(|topic| fits(topic)).collect();
        let rack = self.rack.as_ref().filter(|rack| fits(rack));
        let is_short = self.generation <= 0 && rack.is_none() && self.owned.is_empty();
        let mut fields = FieldWriter::of_version(if is_short { 1 } else { 3 }, false);
        fields.count(Some(topics.len()));
        topics.into_iter().for_each(|topic| fields.string(topic));
        fields.nullable_bytes(self.user_data.as_deref());
        put_partitions(&mut fields, &self.owned);
        if !is_short {
            fields.int32(self.generation);
            fields.nullable_string(rack.map(String::as_str));
        }
        fields.into_bytes()
    }
}

/// What a member is to read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignment {
    /// The partitions, by topic.
    pub partitions: BTreeMap<String, Vec<i32>>,
    /// Bytes that an assignor of the user's own may carry here.
    pub user_data: Option<Vec<u8>>,
}

impl Assignment {
    /// These partitions.
    pub fn of(partitions: impl IntoIterator<Item = (String, Vec<i32>)>) -> Self {
        Self { partitions: partitions.into_iter().collect(), user_data: None }
    }

    /// Reads the bytes of a leader. `None` if they are not Kafka's.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Self::decode(bytes).ok()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Decoded<Self> {
        let mut fields = FieldReader::new(bytes);
        known_version(&mut fields)?;
        Ok(Self { partitions: partitions(&mut fields)?, user_data: fields.nullable_bytes()?.map(<[u8]>::to_vec) })
    }

    /// The bytes: version 1. Names of more than 32,767 bytes are left out, as in a [`Subscription`].
    pub fn encode(&self) -> Vec<u8> {
        let mut fields = FieldWriter::of_version(1, false);
        put_partitions(&mut fields, &self.partitions);
        fields.nullable_bytes(self.user_data.as_deref());
        fields.into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_member_says_is_read_back() {
        let short = Subscription { topics: vec!["a".into(), "b".into()], generation: -1, ..Subscription::default() };
        assert_eq!(Subscription::decode(&short.encode()), Ok(short));
        let long = Subscription {
            topics: vec!["a".into()],
            user_data: Some(vec![1, 2]),
            owned: [("a".to_owned(), vec![0, 5])].into(),
            generation: 7,
            rack: Some("r".into()),
        };
        assert_eq!(Subscription::decode(&long.encode()), Ok(long.clone()));
        let mut newer = long.encode();
        newer[1] = 9;
        assert_eq!(Subscription::decode(&newer), Ok(long.clone()), "read as the newest known");
        for length in 0..newer.len() {
            assert!(Subscription::decode(&newer[..length]).is_err(), "{length}");
        }
        let named = Subscription { topics: vec!["é".repeat(20_000), "a".into()], ..Subscription::default() };
        assert_eq!(Subscription::decode(&named.encode()).map(|said| said.topics), Ok(vec!["a".to_owned()]));
        let assignment = Assignment::of([("a".to_owned(), vec![0, 1])]);
        assert_eq!(Assignment::decode(&assignment.encode()), Ok(assignment));
    }
}
