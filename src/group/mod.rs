//! Consumer groups: how far each has come, kept in `__consumer_offsets` in Kafka's records.
//!
//! [`Groups`] is the offset store of an open [`Store`](crate::Store). The records are those of a Kafka broker, so that a
//! broker's directory shows its groups here, and a broker that opens one of ours finds them. This module knows topics and
//! partitions by name only; where a topic's log begins and ends, [`Groups::lag`] asks the store.

mod assign;
mod commit;
mod commit_again;
mod commit_batch;
mod coordinator;
mod lag;
mod load;
pub(crate) mod members;
pub(crate) mod membership;
mod offset_store;
mod offsets;
mod protocol;
pub(crate) mod schema;
mod shards;
mod waits;
mod wire;

pub use assign::Assignor;
pub use commit::CommitOptions;
pub use coordinator::{GroupCoordinator, GroupState, JoinRequest, Joined, Refusal, Replies, Reply, RequestId};
pub use membership::{Answer, GroupDescription, MemberDescription};
pub use offset_store::Groups;
pub use offsets::CommittedOffset;
pub use protocol::{Assignment, Subscription};

/// Reads any bytes as keys and values, and folds them.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(bytes: &[u8]) {
    use schema::{GroupMetadataValue, Key, OffsetCommitValue};
    if let Ok(value) = OffsetCommitValue::decode(bytes) {
        // Only version 1 says when a commit ends, and it is no longer written.
        let written = OffsetCommitValue { expire_timestamp_ms: -1, ..value };
        assert_eq!(OffsetCommitValue::decode(&written.encode()), Ok(written));
    }
    if let Ok(value) = GroupMetadataValue::decode(bytes) {
        let again = value.encode().and_then(|written| GroupMetadataValue::decode(&written));
        assert_eq!(again.map(|again| again.members.len()), Ok(value.members.len()));
    }
    if let Some(said) = Subscription::from_bytes(bytes) {
        assert_eq!(Subscription::from_bytes(&said.encode()).map(|again| again.topics), Some(said.topics));
    }
    if let Some(assigned) = Assignment::from_bytes(bytes) {
        assert_eq!(Assignment::from_bytes(&assigned.encode()), Some(assigned));
    }
    let mut table = offsets::GroupTable::default();
    let mut rest = bytes;
    // Each record: who wrote it, the length of the key, the length of the value (255 for null), then both.
    for offset in 0.. {
        let Some((&[producer, key, value], behind)) = rest.split_first_chunk::<3>() else { break };
        let Some((key, behind)) = behind.split_at_checked(key.into()) else { break };
        let (value, behind) = match value {
            255 => (None, behind),
            _ => match behind.split_at_checked(value.into()) {
                Some((value, behind)) => (Some(value), behind),
                None => break,
            },
        };
        rest = behind;
        match producer {
            0..128 => {
                if let Ok(key) = Key::decode(key) {
                    assert!(Key::decode(&key.encode()).is_ok());
                }
                table.apply(offset, (producer > 3).then_some(i64::from(producer)), key, value).ok();
            }
            _ => table.end_transaction(i64::from(producer & 127), producer & 1 == 0),
        }
    }
    drop(table.over(1 << 40, 1, std::iter::empty()));
}

#[cfg(test)]
mod tests {
    #[test]
    fn any_bytes_are_read_or_refused() {
        let vectors = include_str!("../../tests/fixtures/vectors/kafka_examples.json");
        let examples: std::collections::BTreeMap<String, String> = serde_json::from_str(vectors).unwrap();
        let mut seen = 0;
        for (_, hex) in examples.iter().filter(|(name, _)| name.contains("Offset") || name.contains("Group")) {
            let digits = hex.as_bytes().chunks(2);
            let bytes: Vec<u8> =
                digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect();
            for at in 0..bytes.len() {
                for flip in 1..=255_u8 {
                    let mut damaged = bytes.clone();
                    damaged[at] ^= flip;
                    super::fuzz(&damaged);
                    let mut record = vec![flip, 18, 255];
                    record.extend_from_slice(&damaged);
                    super::fuzz(&record);
                }
            }
            seen += 1;
        }
        assert!(seen >= 10, "{seen} examples");
    }
}
