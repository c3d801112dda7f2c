//! The topics that a broker keeps for itself, and what they are configured to be.

use crate::topic::{CleanupPolicy, TopicConfig};

/// Where groups keep their offsets.
pub(crate) const OFFSETS_TOPIC: &str = "__consumer_offsets";
/// Where a broker keeps the state of transactions. Nothing here writes to it.
const TRANSACTIONS_TOPIC: &str = "__transaction_state";
/// Kafka's `offsets.topic.segment.bytes` and `transaction.state.log.segment.bytes`.
const SEGMENT_BYTES: u32 = 100 << 20;

/// What a topic is unless somebody says otherwise: in those of a broker only the last record of each key counts.
pub(crate) fn config_of(topic: &str) -> TopicConfig {
    match topic {
        OFFSETS_TOPIC | TRANSACTIONS_TOPIC => {
            TopicConfig::default().segment_bytes(SEGMENT_BYTES).cleanup_policy(CleanupPolicy::Compact)
        }
        _ => TopicConfig::default(),
    }
}
