//! topiclog: an embeddable topic log.

mod error;
mod ids;
mod sync;

pub mod clock;
pub mod io;
pub mod record;
#[cfg(feature = "testing")]
pub mod testing;

pub use error::{Error, Result};
pub use ids::{Offset, PartitionId, TopicName, TopicPartition, Uuid};
