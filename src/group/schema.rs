//! The records of `__consumer_offsets`, byte for byte as Kafka lays them out. PURE.
//!
//! A key is an int16 record type and its fields, a value an int16 version and its fields; a null value deletes.
//!
//! | type | key | value |
//! |---|---|---|
//! | 0, 1 | string group, string topic, int32 partition | [`OffsetCommitValue`], versions 0 to 4 |
//! | 2 | string group | [`GroupMetadataValue`], versions 0 to 4 |
//! | 3 | string group | newer group protocol: that the group exists |
//! | others | | passed over |
//!
//! Offset commit, version 4: offset int64, leader epoch int32, metadata string, commit timestamp int64, then tagged fields,
//! of which tag 0 is the topic's id. Group `g1`, topic `orders`, partition 3, offset 42, epoch 7 at T0:
//! key `0001 0002 6731 0006 6f7264657273 00000003`, value `0004 000000000000002a 00000007 01 0000018bcfe56800 00`.
//!
//! Written are what Kafka 4.3 writes: key type 1 with value version 4, key type 2 with value version 3. It does not know what
//! a record means for those before it.

use super::wire::{Decoded, FieldReader, FieldWriter, SchemaError};
use crate::ids::Uuid;

const OFFSET_COMMIT: i16 = 1;
const GROUP_METADATA: i16 = 2;
const CONSUMER_GROUP_METADATA: i16 = 3;
const VERSION_MAX: i16 = 4;

/// What a record is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Key<'a> {
    /// How far a group has come in a partition.
    OffsetCommit { group: &'a str, topic: &'a str, partition: i32 },
    /// The state of a classic group.
    Group { group: &'a str },
    /// That a group of the newer protocol exists.
    ConsumerGroup { group: &'a str },
    /// Of no concern here.
    Other(i16),
}

impl<'a> Key<'a> {
    pub(crate) fn decode(bytes: &'a [u8]) -> Decoded<Self> {
        let mut fields = FieldReader::new(bytes);
        Ok(match fields.int16()? {
            0 | OFFSET_COMMIT => {
                Key::OffsetCommit { group: fields.string()?, topic: fields.string()?, partition: fields.int32()? }
            }
            GROUP_METADATA => Key::Group { group: fields.string()? },
            CONSUMER_GROUP_METADATA => Key::ConsumerGroup { group: fields.string()? },
            other => Key::Other(other),
        })
    }

    /// Key types that are not written here are written as their number alone.
    pub(crate) fn encode(&self) -> Vec<u8> {
        self.encode_behind(Vec::with_capacity(64))
    }

    /// The same, behind bytes that are there already.
    pub(crate) fn encode_behind(&self, bytes: Vec<u8>) -> Vec<u8> {
        match self {
            Key::OffsetCommit { group, topic, partition } => {
                let mut fields = FieldWriter::behind(bytes, OFFSET_COMMIT, false);
                fields.string(group);
                fields.string(topic);
                fields.int32(*partition);
                fields.into_bytes()
            }
            Key::Group { group } => {
                let mut fields = FieldWriter::behind(bytes, GROUP_METADATA, false);
                fields.string(group);
                fields.into_bytes()
            }
            Key::ConsumerGroup { group } => {
                let mut fields = FieldWriter::behind(bytes, CONSUMER_GROUP_METADATA, false);
                fields.string(group);
                fields.into_bytes()
            }
            Key::Other(number) => FieldWriter::behind(bytes, *number, false).into_bytes(),
        }
    }
}

/// The value of an offset commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OffsetCommitValue {
    pub(crate) offset: i64,
    /// -1 for none.
    pub(crate) leader_epoch: i32,
    pub(crate) metadata: String,
    pub(crate) commit_timestamp_ms: i64,
    /// -1 for none; only version 1 has it.
    pub(crate) expire_timestamp_ms: i64,
    pub(crate) topic_id: Option<Uuid>,
}

fn version_of(fields: &mut FieldReader<'_>, what: &'static str) -> Decoded<i16> {
    match fields.int16()? {
        version @ 0..=VERSION_MAX => Ok(version),
        version => Err(SchemaError::Version { what, version }),
    }
}

impl OffsetCommitValue {
    /// Reads versions 0 to 4. Bytes behind the last field are passed over, as Kafka does.
    pub(crate) fn decode(bytes: &[u8]) -> Decoded<Self> {
        let mut fields = FieldReader::new(bytes);
        let version = version_of(&mut fields, "an offset commit")?;
        fields.set_flexible(version >= 4);
        let offset = fields.int64()?;
        let leader_epoch = if version >= 3 { fields.int32()? } else { -1 };
        let metadata = fields.string()?.to_owned();
        let commit_timestamp_ms = fields.int64()?;
        let expire_timestamp_ms = if version == 1 { fields.int64()? } else { -1 };
        let mut topic_id = None;
        fields.tagged_fields(|tag, bytes| {
            if tag == 0 {
                let id = bytes.try_into().map_err(|_| SchemaError::Malformed("a topic id has not 16 bytes"))?;
                topic_id = Some(Uuid::from_bytes(id));
            }
            Ok(())
        })?;
        Ok(Self { offset, leader_epoch, metadata, commit_timestamp_ms, expire_timestamp_ms, topic_id })
    }

    /// Version 4.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn encode(&self) -> Vec<u8> {
        self.encode_behind(Vec::new())
    }

    /// Behind bytes that are there already.
    pub(crate) fn encode_behind(&self, bytes: Vec<u8>) -> Vec<u8> {
        let mut fields = FieldWriter::behind(bytes, 4, true);
        fields.int64(self.offset);
        fields.int32(self.leader_epoch);
        fields.string(&self.metadata);
        fields.int64(self.commit_timestamp_ms);
        match &self.topic_id {
            None => fields.unsigned_varint(0),
            Some(id) => {
                fields.unsigned_varint(1);
                fields.unsigned_varint(0);
                fields.unsigned_varint(16);
                fields.raw(id.as_bytes());
            }
        }
        fields.into_bytes()
    }
}

/// The value of a classic group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct GroupMetadataValue {
    /// Empty for a group that only commits.
    pub(crate) protocol_type: String,
    pub(crate) generation: i32,
    pub(crate) protocol: Option<String>,
    pub(crate) leader: Option<String>,
    /// -1 for unknown.
    pub(crate) state_timestamp_ms: i64,
    pub(crate) members: Vec<MemberMetadata>,
}

/// A member of a classic group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MemberMetadata {
    pub(crate) member_id: String,
    pub(crate) group_instance_id: Option<String>,
    pub(crate) client_id: String,
    pub(crate) client_host: String,
    pub(crate) rebalance_timeout_ms: i32,
    pub(crate) session_timeout_ms: i32,
    pub(crate) subscription: Vec<u8>,
    pub(crate) assignment: Vec<u8>,
}

/// Lengths of member id, client id, host, subscription and assignment, and a time-out: no member takes less.
const MEMBER_BYTES_MIN: usize = 9;

impl GroupMetadataValue {
    /// Reads versions 0 to 4.
    pub(crate) fn decode(bytes: &[u8]) -> Decoded<Self> {
        let mut fields = FieldReader::new(bytes);
        let version = version_of(&mut fields, "a group's metadata")?;
        fields.set_flexible(version >= 4);
        let owned = |text: Option<&str>| text.map(str::to_owned);
        let protocol_type = fields.string()?.to_owned();
        let generation = fields.int32()?;
        let protocol = owned(fields.nullable_string()?);
        let leader = owned(fields.nullable_string()?);
        let state_timestamp_ms = if version >= 2 { fields.int64()? } else { -1 };
        let members = fields.elements(MEMBER_BYTES_MIN, |fields| {
            let member = MemberMetadata {
                member_id: fields.string()?.to_owned(),
                group_instance_id: if version >= 3 { owned(fields.nullable_string()?) } else { None },
                client_id: fields.string()?.to_owned(),
                client_host: fields.string()?.to_owned(),
                rebalance_timeout_ms: if version >= 1 { fields.int32()? } else { -1 },
                session_timeout_ms: fields.int32()?,
                subscription: fields.nullable_bytes()?.unwrap_or_default().to_vec(),
                assignment: fields.nullable_bytes()?.unwrap_or_default().to_vec(),
            };
            fields.tagged_fields(|_, _| Ok(()))?;
            Ok(member)
        })?;
        fields.tagged_fields(|_, _| Ok(()))?;
        Ok(Self { protocol_type, generation, protocol, leader, state_timestamp_ms, members })
    }

    /// Version 3.
    ///
    /// # Errors
    /// A name is longer than the record holds.
    pub(crate) fn encode(&self) -> Decoded<Vec<u8>> {
        let mut fields = FieldWriter::of_version(3, false);
        fields.string(&self.protocol_type);
        fields.int32(self.generation);
        fields.nullable_string(self.protocol.as_deref());
        fields.nullable_string(self.leader.as_deref());
        fields.int64(self.state_timestamp_ms);
        fields.count(Some(self.members.len()));
        for member in &self.members {
            fields.string(&member.member_id);
            fields.nullable_string(member.group_instance_id.as_deref());
            fields.string(&member.client_id);
            fields.string(&member.client_host);
            fields.int32(member.rebalance_timeout_ms);
            fields.int32(member.session_timeout_ms);
            fields.nullable_bytes(Some(&member.subscription));
            fields.nullable_bytes(Some(&member.assignment));
        }
        fields.finish()
    }
}

/// The partition of `__consumer_offsets` that a group's records are in: Java's `String.hashCode` of its name, absolute
/// (and 0 for the one number that has no absolute value), modulo the number of partitions.
pub(crate) fn partition_for_group(group: &str, partitions: u32) -> u32 {
    let hash = java_hash(group);
    let absolute = if hash == i32::MIN { 0 } else { hash.unsigned_abs() };
    absolute % partitions.max(1)
}

fn java_hash(text: &str) -> i32 {
    text.encode_utf16().fold(0_i32, |hash, unit| hash.wrapping_mul(31).wrapping_add(i32::from(unit)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: i64 = 1_700_000_000_000;

    fn example(name: &str) -> Vec<u8> {
        let text = include_str!("../../tests/fixtures/vectors/kafka_examples.json");
        let examples: std::collections::BTreeMap<String, String> = serde_json::from_str(text).unwrap();
        let pairs = examples[name].as_bytes().chunks(2);
        pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }

    fn commit(leader_epoch: i32, expire_timestamp_ms: i64) -> OffsetCommitValue {
        let metadata = String::new();
        OffsetCommitValue {
            offset: 42,
            leader_epoch,
            metadata,
            commit_timestamp_ms: T0,
            expire_timestamp_ms,
            topic_id: None,
        }
    }

    #[test]
    fn keys_are_kafkas() {
        let bytes = example("OffsetCommitKey v1");
        let key = Key::OffsetCommit { group: "g1", topic: "orders", partition: 3 };
        assert_eq!((Key::decode(&bytes), key.encode()), (Ok(key), bytes.clone()));
        let mut older = bytes;
        older[1] = 0;
        assert!(
            matches!(Key::decode(&older), Ok(Key::OffsetCommit { partition: 3, .. })),
            "type 0 is laid out the same"
        );
        let bytes = example("GroupMetadataKey v2");
        let key = Key::Group { group: "g1" };
        assert_eq!((Key::decode(&bytes), key.encode()), (Ok(key), bytes.clone()));
        assert_eq!(Key::decode(&[0, 16, 1, 2, 3]), Ok(Key::Other(16)), "newer types are passed over");
        assert!(Key::decode(&[0]).is_err() && Key::decode(&[0, 1, 0, 2, b'g']).is_err());
    }

    #[test]
    fn every_version_of_an_offset_commit_is_read_and_the_newest_written() {
        let check = |name: &str, expected: OffsetCommitValue| {
            assert_eq!(OffsetCommitValue::decode(&example(name)), Ok(expected), "{name}");
        };
        check("OffsetCommitValue v0", commit(-1, -1));
        check("OffsetCommitValue v1", commit(-1, T0 + 86_400_000));
        check("OffsetCommitValue v2", commit(-1, -1));
        check("OffsetCommitValue v3", commit(7, -1));
        check("OffsetCommitValue v4", commit(7, -1));
        assert_eq!(commit(7, -1).encode(), example("OffsetCommitValue v4"));
    }

    #[test]
    fn a_commit_carries_the_id_of_its_topic() {
        // As Kafka 4.3.1 wrote it.
        let hex = "0004000000000000001600000000 07706f6c6c2030000001a20ad5d498010010a4581eeff91543c981658bd5d26a6e15";
        let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
        let bytes: Vec<u8> =
            digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect();
        let value = OffsetCommitValue::decode(&bytes).unwrap();
        assert_eq!((value.offset, value.leader_epoch, value.metadata.as_str()), (22, 0, "poll 0"));
        assert_eq!(value.topic_id.unwrap().as_bytes()[..4], [0xa4, 0x58, 0x1e, 0xef]);
        assert_eq!(value.encode(), bytes);
    }

    #[test]
    fn a_newer_version_is_told_from_damage() {
        let mut bytes = example("OffsetCommitValue v4");
        for (version, is_newer) in [(5_i16, true), (-1, true), (4, false)] {
            bytes[..2].copy_from_slice(&version.to_be_bytes());
            assert_eq!(matches!(OffsetCommitValue::decode(&bytes), Err(SchemaError::Version { .. })), is_newer);
        }
        for length in 0..bytes.len() {
            let cut = OffsetCommitValue::decode(&bytes[..length]);
            assert!(matches!(cut, Err(SchemaError::Malformed(_))), "{length}");
        }
    }

    fn group() -> GroupMetadataValue {
        let member = MemberMetadata {
            member_id: "m-1".into(),
            group_instance_id: None,
            client_id: "c".into(),
            client_host: "/127.0.0.1".into(),
            rebalance_timeout_ms: 300_000,
            session_timeout_ms: 45_000,
            subscription: super::super::protocol::Subscription { topics: vec!["orders".into()], ..Default::default() }
                .encode(),
            assignment: super::super::protocol::Assignment::of([("orders".into(), vec![0, 1])]).encode(),
        };
        GroupMetadataValue {
            protocol_type: "consumer".into(),
            generation: 4,
            protocol: Some("range".into()),
            leader: Some("m-1".into()),
            state_timestamp_ms: T0,
            members: vec![member],
        }
    }

    #[test]
    fn group_metadata_is_kafkas() {
        let bytes = example("GroupMetadataValue v3");
        assert_eq!(GroupMetadataValue::decode(&bytes), Ok(group()));
        assert_eq!(group().encode(), Ok(bytes));
        assert_eq!(GroupMetadataValue::decode(&example("GroupMetadataValue v4")), Ok(group()));
        let empty = GroupMetadataValue { state_timestamp_ms: T0, ..GroupMetadataValue::default() };
        let bytes = example("GroupMetadataValue v3 empty group");
        assert_eq!((GroupMetadataValue::decode(&bytes), empty.encode()), (Ok(empty.clone()), Ok(bytes)));
        for length in 0..example("GroupMetadataValue v4").len() {
            assert!(GroupMetadataValue::decode(&example("GroupMetadataValue v4")[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn groups_go_to_the_partition_that_java_gives_them() {
        for (group, hash, partition) in [
            ("", 0, 0),
            ("g1", 3242, 42),
            ("my-group", -1_906_497_762, 12),
            ("payments", 1_382_682_413, 13),
            ("console-consumer-12345", 158_455_506, 6),
            ("группа", 1_749_938_458, 8),
            ("polygenelubricants", i32::MIN, 0),
        ] {
            assert_eq!((java_hash(group), partition_for_group(group, 50)), (hash, partition), "{group}");
        }
    }
}
