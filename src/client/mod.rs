//! The seam between what uses topics and where they are: producer and consumer, as Kafka has them.
//!
//! [`Connect`] is the door to a place: a [`Store`](crate::Store) on disk or in memory, or anything else that implements it.
//! [`Produce`] and [`Consume`] are what passes through it: bytes only, object safe, no codec, no retry, no choice of a
//! partition. [`Producer`] and [`Consumer`] stand above them and are the same everywhere. This module does not know stores.

mod accumulator;
mod consumer;
mod consumer_builder;
mod delivery;
mod listener;
mod offsets;
mod producer;
mod producer_builder;
mod records;
mod sender;
mod sender_thread;
#[cfg(feature = "async")]
mod stream;
mod targets;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::{Clock, Timestamp};
use crate::error::{Error, Result};
use crate::ids::{Offset, TopicName, TopicPartition, Uuid};
use crate::partition::Durability;
use crate::partition::writer::RecordMetadata;
use crate::position::Position;
use crate::record::{Compression, Record, StoredRecord};
use crate::topic::TopicConfig;

pub use consumer::{Consumer, Rebalance, ResetPosition};
pub use consumer_builder::{ConsumerBuilder, Reset};
pub use delivery::Delivery;
pub use listener::Listener;
pub use offsets::{OffsetAndMetadata, Offsets};
pub use producer::{Producer, ProducerStats, SendFailure};
pub use producer_builder::ProducerBuilder;
pub use records::{ConsumedRecord, ConsumedRef, IntoIter, Iter, Records};
#[cfg(feature = "async")]
pub use stream::ConsumerStream;

/// What a place tells of a topic.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TopicInfo {
    /// Its identity, where the place tells it.
    pub id: Option<Uuid>,
    /// How many partitions it has.
    pub partitions: u32,
    /// Its configuration, where the place tells it.
    pub config: Option<TopicConfig>,
}

impl TopicInfo {
    /// A topic of so many partitions.
    pub fn new(id: Option<Uuid>, partitions: u32, config: Option<TopicConfig>) -> Self {
        Self { id, partitions, config }
    }
}

/// What a place can do beyond what every place can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// [`Connect::latest`] answers.
    pub latest: bool,
    /// Produce transactions.
    pub transactions: bool,
    /// [`OffsetSpec::TombstoneFloor`] answers.
    pub tombstone_floor: bool,
    /// [`Consume::lag`] answers.
    pub lag: bool,
}

impl Capabilities {
    /// None of them.
    pub fn none() -> Self {
        Self::default()
    }

    /// What a store of this library can do.
    pub fn of_store() -> Self {
        Self { latest: true, transactions: false, tombstone_floor: true, lag: true }
    }
}

/// Where topics live. Implemented by [`Store`](crate::Store), and by an `Arc` of any implementation.
///
/// ```
/// use std::sync::Arc;
/// use topiclog::client::Connect;
/// use topiclog::{Store, TopicConfig, TopicName};
/// let at: Arc<dyn Connect> = Arc::new(Store::in_memory()?);
/// let orders = TopicName::new("orders")?;
/// at.create_topic(&orders, &TopicConfig::default().partitions(4))?;
/// assert_eq!(at.describe_topic(&orders)?.partitions, 4);
/// # Ok::<(), topiclog::Error>(())
/// ```
pub trait Connect: Send + Sync {
    /// What is known of a topic.
    ///
    /// # Errors
    /// [`Error::UnknownTopic`]; [`Error::Closed`].
    fn describe_topic(&self, topic: &TopicName) -> Result<TopicInfo>;

    /// The names of all topics, in order.
    ///
    /// # Errors
    /// [`Error::Closed`].
    fn topics(&self) -> Result<Vec<TopicName>>;

    /// Creates a topic.
    ///
    /// # Errors
    /// [`Error::TopicExists`], [`Error::Config`], [`Error::ReadOnly`], [`Error::Closed`].
    fn create_topic(&self, topic: &TopicName, config: &TopicConfig) -> Result<TopicInfo>;

    /// Opens the producing side.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for options that this place does not have; [`Error::ReadOnly`], [`Error::Closed`].
    fn produce(&self, options: ProducerOptions) -> Result<Arc<dyn Produce>>;

    /// Opens the consuming side: for a member of a group, a reader with a group's name, or nobody.
    ///
    /// # Errors
    /// [`Error::Config`] for options that contradict each other; [`Error::Closed`].
    fn consume(&self, options: ConsumerOptions) -> Result<Box<dyn Consume>>;

    /// The newest record of a key.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the place has no key index; those of a read.
    fn latest(&self, from: &TopicPartition, key: &[u8]) -> Result<Option<StoredRecord>> {
        let _ = key;
        Err(Error::unsupported(format!("the newest record of a key of {from}: this place has no key index")))
    }

    /// What this place can do beyond the rest of this trait.
    fn capabilities(&self) -> Capabilities;

    /// Where the time of this place comes from.
    fn clock(&self) -> Arc<dyn Clock>;
}

impl<C: Connect + ?Sized> Connect for Arc<C> {
    fn describe_topic(&self, topic: &TopicName) -> Result<TopicInfo> {
        (**self).describe_topic(topic)
    }

    fn topics(&self) -> Result<Vec<TopicName>> {
        (**self).topics()
    }

    fn create_topic(&self, topic: &TopicName, config: &TopicConfig) -> Result<TopicInfo> {
        (**self).create_topic(topic, config)
    }

    fn produce(&self, options: ProducerOptions) -> Result<Arc<dyn Produce>> {
        (**self).produce(options)
    }

    fn consume(&self, options: ConsumerOptions) -> Result<Box<dyn Consume>> {
        (**self).consume(options)
    }

    fn latest(&self, from: &TopicPartition, key: &[u8]) -> Result<Option<StoredRecord>> {
        (**self).latest(from, key)
    }

    fn capabilities(&self) -> Capabilities {
        (**self).capabilities()
    }

    fn clock(&self) -> Arc<dyn Clock> {
        (**self).clock()
    }
}

/// How to produce.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ProducerOptions {
    /// The name of a transactional producer (Kafka's `transactional.id`).
    pub transactional_id: Option<String>,
}

impl ProducerOptions {
    /// Without transactions.
    pub fn new() -> Self {
        Self::default()
    }

    /// With transactions under this name.
    #[doc(alias = "transactional.id")]
    #[must_use]
    pub fn transactional_id(mut self, id: &str) -> Self {
        self.transactional_id = Some(id.to_owned());
        self
    }
}

/// How one send is to be stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SendOptions {
    /// What holds before the send is answered; `None` for what the topic says.
    pub durability: Option<Durability>,
    /// The codec; `None` for what the topic says.
    pub compression: Option<Compression>,
    /// The log end offset that the partition must have; otherwise nothing is stored and the send is [`Error::Conflict`]. Only a
    /// store can do it.
    pub expected_offset: Option<Offset>,
}

impl SendOptions {
    /// As the topic says.
    pub fn new() -> Self {
        Self::default()
    }

    /// At this durability.
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = Some(durability);
        self
    }

    /// With this codec.
    #[must_use]
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression = Some(compression);
        self
    }

    /// Only if the log ends there.
    #[must_use]
    pub fn expected_offset(mut self, offset: impl Into<Offset>) -> Self {
        self.expected_offset = Some(offset.into());
        self
    }
}

/// How a transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a transaction ends in one of two ways")]
pub enum TransactionResult {
    /// All of it holds.
    Commit,
    /// None of it does.
    Abort,
}

/// A member of a group, as it stands in one generation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupMetadata {
    /// The group.
    pub group: String,
    /// The generation.
    pub generation: i32,
    /// The member's id.
    pub member_id: String,
    /// Its static name (Kafka's `group.instance.id`).
    pub group_instance_id: Option<String>,
}

impl GroupMetadata {
    /// A member in a generation.
    pub fn new(group: &str, generation: i32, member_id: &str, group_instance_id: Option<&str>) -> Self {
        Self {
            group: group.to_owned(),
            generation,
            member_id: member_id.to_owned(),
            group_instance_id: group_instance_id.map(str::to_owned),
        }
    }
}

/// The producing side of a place. Shared between threads.
pub trait Produce: Send + Sync {
    /// What is known of a topic; a producer chooses partitions by it.
    ///
    /// # Errors
    /// As [`Connect::describe_topic`].
    fn describe_topic(&self, topic: &TopicName) -> Result<TopicInfo>;

    /// Stores records in a partition, in order, as one batch. Outside a transaction all of them are there, or none.
    ///
    /// Durable when this returns: what the options say.
    ///
    /// # Errors
    /// After any error but [`Error::OutcomeUnknown`] the records will never appear.
    fn send(&self, to: &TopicPartition, records: Vec<Record>, options: &SendOptions) -> Result<RecordMetadata>;

    /// Waits for what was sent to be as durable as was asked.
    ///
    /// # Errors
    /// [`Error::Timeout`].
    fn flush(&self, timeout: Duration) -> Result<()>;

    /// Begins a transaction.
    ///
    /// # Errors
    /// [`Error::Unsupported`] without [`Capabilities::transactions`].
    fn begin_transaction(&self) -> Result<()>;

    /// Commits offsets of a group with the open transaction.
    ///
    /// # Errors
    /// As [`begin_transaction`](Self::begin_transaction).
    fn send_offsets(&self, offsets: &Offsets, group: &GroupMetadata) -> Result<()>;

    /// Ends the open transaction.
    ///
    /// # Errors
    /// As [`begin_transaction`](Self::begin_transaction).
    fn end_transaction(&self, result: TransactionResult) -> Result<()>;
}

/// How to consume.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConsumerOptions {
    /// The group in whose name offsets are committed, and which a subscription joins (Kafka's `group.id`).
    pub group: Option<String>,
    /// The static name of this member (Kafka's `group.instance.id`): it comes back under it without a rebalance.
    pub group_instance_id: Option<String>,
    /// What the group is told of this client (Kafka's `client.id`).
    pub client_id: String,
    /// The assignors that this member knows, the best first, by Kafka's names.
    pub assignors: Vec<String>,
    /// A member that has not polled for so long is taken for dead, in milliseconds.
    pub max_poll_interval_ms: u64,
    /// Most records of one poll.
    pub records_max: usize,
    /// Most bytes of keys and values of one poll; one record is always taken.
    pub bytes_max: usize,
    /// The durability of commits; `None` for what the place does by itself.
    pub commit_durability: Option<Durability>,
}

impl Default for ConsumerOptions {
    fn default() -> Self {
        Self {
            group: None,
            group_instance_id: None,
            client_id: "topiclog".to_owned(),
            assignors: vec!["range".to_owned(), "cooperative-sticky".to_owned()],
            max_poll_interval_ms: 300_000,
            records_max: 500,
            bytes_max: 50 << 20,
            commit_durability: None,
        }
    }
}

/// What a member subscribes to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TopicFilter {
    /// These topics.
    Names(Vec<TopicName>),
    /// Every topic whose whole name this regular expression matches, also those that come later. Topics that begin with
    /// `__` are left out.
    Pattern(String),
}

/// What a poll brings.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Polled {
    /// Records, those of one partition in order. None if none came in time.
    Records(Records),
    /// These partitions are this member's from now on. They have no position until [`Consume::seek`] gives them one.
    Assigned(Vec<TopicPartition>),
    /// These partitions are about to go to others. Until the next poll their offsets can be committed.
    Revoked(Vec<TopicPartition>),
    /// These partitions have gone: this member was taken for dead, and they may be another's.
    Lost(Vec<TopicPartition>),
}

/// Which offset of a partition is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OffsetSpec {
    /// The log start.
    Earliest,
    /// The end of what a reader of committed records sees.
    Latest,
    /// The first record that is at least as new as this, in milliseconds since 1970-01-01 UTC; the end where there is none.
    Timestamp(Timestamp),
    /// Past the highest tombstone that compaction ever dropped.
    TombstoneFloor,
}

/// How far a reader is behind in a partition, as a reader of committed records sees it. Computed when it is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lag {
    /// Records that still exist beyond the position: no gaps of compaction, no markers, nothing aborted.
    pub records: u64,
    /// Offsets between the position, or the log start if that is higher, and the end of what can be read.
    pub offsets: u64,
    /// Bytes of the batches, as stored, that hold these records.
    pub bytes: u64,
    /// How old the next unread record is, in milliseconds; 0 if there is none.
    pub time_ms: u64,
    /// For how long the position has not moved although there was something to read, in milliseconds; 0 if there is nothing.
    /// It tells "behind and not moving" from "busy".
    pub stalled_for_ms: u64,
}

impl Lag {
    /// The sum of both; of times the longer one.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            records: self.records.saturating_add(other.records),
            offsets: self.offsets.saturating_add(other.offsets),
            bytes: self.bytes.saturating_add(other.bytes),
            time_ms: self.time_ms.max(other.time_ms),
            stalled_for_ms: self.stalled_for_ms.max(other.stalled_for_ms),
        }
    }
}

/// The consuming side of a place. One thread at a time.
///
/// It reads committed records only. A group is joined by polling after [`subscribe`](Self::subscribe); whoever calls
/// [`assign`](Self::assign) reads what it says, without a group or beside it.
pub trait Consume: Send {
    /// Joins the group with these topics, at the next poll, and gives up what was read before.
    ///
    /// # Errors
    /// [`Error::Config`] without a group; [`Error::UnknownTopic`]; [`Error::Invalid`] for a pattern that is none.
    fn subscribe(&mut self, topics: &TopicFilter) -> Result<()>;

    /// Reads these partitions, from these offsets, and nothing else.
    ///
    /// # Errors
    /// As [`seek`](Self::seek); [`Error::UnknownTopic`]. What was read before is still read then.
    fn assign(&mut self, from: &Position) -> Result<()>;

    /// The next records, or what has become of the assignment. Returns at once if there is either, or with no records after
    /// `timeout`. Where the clock is moved by hand it never waits.
    ///
    /// # Errors
    /// [`Error::OffsetOutOfRange`] if the log start has passed a position, and the others of a read; nothing is passed over.
    /// [`Error::Closed`], at once, if the place is closed or a topic deleted; [`Error::Poisoned`] where there is nothing to read and
    /// a log that is read takes no more.
    fn poll(&mut self, timeout: Duration) -> Result<Polled>;

    /// Reads on at these offsets, in partitions that are read.
    ///
    /// # Errors
    /// [`Error::PositionLost`] if a position no longer means what it meant, [`Error::OffsetOutOfRange`] if the log does not
    /// reach there, [`Error::Invalid`] for a partition that is not read. Nothing has moved then.
    fn seek(&mut self, to: &Position) -> Result<()>;

    /// Leaves partitions out of polls.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a partition that is not read.
    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<()>;

    /// Takes paused partitions up again, where they were left.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a partition that is not read.
    fn resume(&mut self, partitions: &[TopicPartition]) -> Result<()>;

    /// What is read now, with the next offsets to be polled. A partition that was assigned and not sought yet is not named.
    fn position(&self) -> Position;

    /// The partitions that are read, in order.
    fn assignment(&self) -> Vec<TopicPartition>;

    /// Commits offsets of the group: all of them, or none.
    ///
    /// Durable when this returns: what the options of the consumer say.
    ///
    /// # Errors
    /// [`Error::Fenced`] once the generation is over; [`Error::Config`] without a group.
    fn commit(&mut self, offsets: &Offsets) -> Result<()>;

    /// What the group has committed for these partitions; those without are left out, and so are offsets that were committed
    /// for another topic of the same name.
    ///
    /// # Errors
    /// Those of reading the offsets.
    fn committed(&mut self, partitions: &[TopicPartition]) -> Result<Offsets>;

    /// Where these partitions begin, end, or were at a time.
    ///
    /// # Errors
    /// [`Error::UnknownTopic`]; [`Error::Unsupported`] for what this place does not tell.
    fn offsets(&mut self, partitions: &[TopicPartition], which: OffsetSpec) -> Result<Position>;

    /// How far a position is behind in a partition.
    ///
    /// # Errors
    /// [`Error::Unsupported`] without [`Capabilities::lag`]; those of a read.
    fn lag(&mut self, partition: &TopicPartition, position: Offset) -> Result<Lag> {
        let _ = position;
        Err(Error::unsupported(format!("lag in {partition}: this place does not tell it")))
    }

    /// As whom this consumer stands in its group; `None` while it is not a member.
    fn group_metadata(&self) -> Option<GroupMetadata>;

    /// Begins to listen for what a poll may find.
    fn listen(&self) -> Listener;

    /// Leaves the group. Dropping does it too, without waiting and without I/O.
    ///
    /// # Errors
    /// [`Error::Timeout`]; those of writing that the member has left.
    fn close(&mut self, timeout: Duration) -> Result<()>;
}

impl fmt::Debug for dyn Connect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connect").field("capabilities", &self.capabilities()).finish_non_exhaustive()
    }
}
