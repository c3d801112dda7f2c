//! Reading as a consumer, on an open store.
//!
//! It knows groups and partitions. It does not know files, nor how a commit is stored.

mod consumer;

pub use consumer::{ConsumedRecord, Consumer, ConsumerBuilder, Reset};
