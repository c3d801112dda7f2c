//! What one append does differently from its topic.

use super::Durability;
use crate::clock::Timestamp;
use crate::ids::Offset;
use crate::record::Compression;

/// What one append does differently from its topic.
///
/// ```
/// use topiclog::{AppendOptions, Durability, Record, Store, TopicConfig};
/// let store = Store::in_memory()?;
/// let topic = store.create_topic("clicks", TopicConfig::default())?;
/// topic.append_with(Record::of_value("click"), &AppendOptions::new().durability(Durability::Os))?;
/// # store.close()?;
/// # Ok::<(), topiclog::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct AppendOptions {
    durability: Option<Durability>,
    compression: Option<Compression>,
    expected_offset: Option<i64>,
}

impl AppendOptions {
    /// As the topic says.
    pub fn new() -> Self {
        Self::default()
    }

    /// Another durability than the topic's.
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = Some(durability);
        self
    }

    /// Another codec than the topic's.
    #[must_use]
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression = Some(compression);
        self
    }

    /// The log end offset that the partition must have; otherwise nothing is appended and the call is
    /// [`Error::Conflict`](crate::Error::Conflict).
    ///
    /// ```
    /// use topiclog::{AppendOptions, Error, Record, Store, TopicConfig};
    /// let store = Store::in_memory()?;
    /// let orders = store.create_topic("orders", TopicConfig::default())?;
    /// let only_first = AppendOptions::new().expected_offset(0);
    /// orders.append_with(Record::of_value("a"), &only_first)?;
    /// let late = orders.append_with(Record::of_value("b"), &only_first);
    /// assert!(matches!(late, Err(Error::Conflict { end, .. }) if end.get() == 1));
    /// # store.close()?;
    /// # Ok::<(), topiclog::Error>(())
    /// ```
    #[must_use]
    pub fn expected_offset(mut self, offset: impl Into<Offset>) -> Self {
        self.expected_offset = Some(offset.into().get());
        self
    }

    pub(crate) fn spec(&self) -> AppendSpec {
        AppendSpec {
            durability: self.durability,
            compression: self.compression,
            expected_offset: self.expected_offset,
            ..AppendSpec::default()
        }
    }
}

/// How one append is to be done.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct AppendSpec {
    pub(crate) durability: Option<Durability>,
    pub(crate) compression: Option<Compression>,
    pub(crate) expected_offset: Option<i64>,
    /// The keys were read from the log, where a broker may have put longer ones than are appended here.
    pub(crate) has_keys_of_the_log: bool,
    /// The time, where the caller has just looked.
    pub(crate) now_ms: Option<Timestamp>,
}
