//! A producer: takes records at once, and stores them in batches, in order per partition.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::Connect;
use super::delivery::Delivery;
use super::producer_builder::ProducerBuilder;
use super::sender::Sender;
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::ids::TopicPartition;
use crate::record::Record;

/// What a record, or a header, takes of the buffer besides its bytes.
const OVERHEAD_BYTES: usize = 64;

/// Some records that were not stored.
#[derive(Debug)]
#[non_exhaustive]
pub struct SendFailure {
    /// Where they were to go.
    pub partition: TopicPartition,
    /// How many there were.
    pub records: usize,
    /// Why. After any error but [`Error::OutcomeUnknown`] they will never appear.
    pub error: Error,
}

/// Counts of a producer, in records and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProducerStats {
    /// Records that were taken and are not stored yet.
    pub waiting_records: usize,
    /// What these take of the buffer, in bytes.
    pub waiting_bytes: usize,
    /// Records that were stored.
    pub stored_records: u64,
    /// Records that were not.
    pub failed_records: u64,
}

/// Sends records to the topics of a place. [`send`](Self::send) takes a record at once; it is stored with others of its partition
/// when they are a full batch, when they have lingered, or when somebody waits for one of them.
///
/// Records of a partition are stored in the order in which they were sent, by one thread or by several. Nothing is sent twice: a
/// batch that failed has failed, and those behind it are sent all the same, so who needs an order without gaps waits for each
/// answer or looks at it. What a producer holds is in memory: a kill takes what was not yet answered. Memory is bounded by
/// [`buffer_bytes`](ProducerBuilder::buffer_bytes), beyond which a send waits. To be shared between threads.
///
/// A thread of its own sends what is due; by hand ([`ProducerBuilder::by_hand`]), and where the clock of the place is moved by
/// hand, [`step`](Self::step) does. Dropping a producer neither waits nor writes: what was not sent is given up, and its
/// [`Delivery`] says so. [`close`](Self::close) sends it first.
///
/// ```
/// use std::time::Duration;
/// use topiclog::{Producer, Record, Store, TopicConfig};
/// let store = Store::in_memory()?;
/// store.create_topic("orders", TopicConfig::default().partitions(4))?;
/// let producer = Producer::new(&store)?;
/// for number in 0..100 {
///     drop(producer.send("orders", Record::keyed(format!("order-{number}"), "placed"))?);
/// }
/// let last = producer.send("orders", Record::keyed("order-7", "paid"))?;
/// println!("it is at {}", last.wait()?.position());
/// producer.close(Duration::from_secs(10))?;
/// assert_eq!(producer.stats().stored_records, 101);
/// # Ok::<(), topiclog::Error>(())
/// ```
pub struct Producer {
    sender: Arc<Sender>,
    max_block: Duration,
    buffer_bytes: usize,
}

impl fmt::Debug for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl Producer {
    /// Says how a producer is to send.
    pub fn builder(at: &dyn Connect) -> ProducerBuilder<'_> {
        ProducerBuilder::new(at)
    }

    /// With all defaults; see [`builder`](Self::builder).
    ///
    /// # Errors
    /// As [`ProducerBuilder::open`].
    pub fn new(at: &dyn Connect) -> Result<Self> {
        Self::builder(at).open()
    }

    pub(super) fn of(sender: Sender, max_block: Duration, buffer_bytes: usize) -> Self {
        Self { sender: Arc::new(sender), max_block, buffer_bytes }
    }

    /// Takes a record. It goes to the partition that it names; else by its partition key, or its key, with Kafka's murmur2; with
    /// neither, to one partition for a while and then to the next. A record without a time gets the time of this call.
    ///
    /// Waits while the buffer is full, at most for [`ProducerBuilder::max_block_ms`]; by hand it then stores others first.
    ///
    /// Durable when this returns: nothing. The [`Delivery`] tells, and so do [`flush`](Self::flush) and
    /// [`close`](Self::close).
    ///
    /// # Errors
    /// The record was not taken: [`Error::UnknownTopic`], also for a partition that is not there; [`Error::Invalid`] for a name
    /// that is none, or a record that the buffer could never hold; [`Error::Timeout`] if there was no room in time;
    /// [`Error::Closed`]; [`Error::Io`] if the thread could not be started.
    pub fn send(&self, topic: &str, record: Record) -> Result<Delivery> {
        self.take(topic, record, Some(self.max_block))
    }

    /// [`send`](Self::send) that never waits: without room it is [`Error::Timeout`] at once.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn try_send(&self, topic: &str, record: Record) -> Result<Delivery> {
        self.take(topic, record, None)
    }

    fn take(&self, topic: &str, record: Record, max_block: Option<Duration>) -> Result<Delivery> {
        let bytes = buffer_bytes_of(&record);
        if bytes > self.buffer_bytes {
            let limit =
                format!("must take at most the {} bytes of the buffer, this one takes {bytes}", self.buffer_bytes);
            return Err(Error::invalid("record", limit));
        }
        let (to, target) = self.sender.route(topic, &record)?;
        let now_ms = self.sender.clock().now_ms();
        let (record, time) = stamped(record, now_ms);
        let taken = self.sender.add(&to, record, bytes, max_block)?;
        let timestamp = target.keeps_times.then_some(time);
        Ok(Delivery::new(Arc::clone(&self.sender), to, (taken.outcome, taken.number, taken.index), timestamp))
    }

    /// Stores what is due now, on this thread: full batches, and those that have lingered. How many records these were. Not
    /// needed beside the thread, and harmless.
    ///
    /// Durable when this returns: what was stored, as the producer or its topic says.
    pub fn step(&self) -> usize {
        std::iter::from_fn(|| self.sender.send_due()).sum()
    }

    /// Stores everything that was taken before this call, on this thread and its own, and waits for the outcome of all of it.
    ///
    /// Durable when this returns: all of it, as the producer or its topic says.
    ///
    /// # Errors
    /// The first failure since the last flush, of whichever record; [`take_failures`](Self::take_failures) has the others.
    /// [`Error::Timeout`] if other threads were not done in time: everything goes on then.
    pub fn flush(&self, timeout: Duration) -> Result<()> {
        // What failed is still to be told once everything has its outcome.
        self.sender.flush(timeout)?;
        self.sender.first_failure().map_or(Ok(()), Err)
    }

    /// What was not stored since this was asked last, at most 1,000 of them, in the order in which it failed.
    pub fn take_failures(&self) -> Vec<SendFailure> {
        self.sender.take_failures()
    }

    /// Counts.
    pub fn stats(&self) -> ProducerStats {
        self.sender.stats()
    }

    /// Takes no more records, stores those that were taken, and ends the thread. What is not stored in time is given up: its
    /// [`Delivery`] says so, and so does a second call.
    ///
    /// Durable when this returns: everything that was taken, as the producer or its topic says.
    ///
    /// # Errors
    /// As [`flush`](Self::flush).
    pub fn close(&self, timeout: Duration) -> Result<()> {
        self.sender.close();
        let flushed = self.flush(timeout);
        self.sender.abandon("the producer, before the record was sent");
        flushed
    }
}

impl Drop for Producer {
    /// Gives up what was not sent. It neither waits nor writes.
    fn drop(&mut self) {
        self.sender.abandon("the producer, which was dropped before the record was sent");
    }
}

/// The record with the time that it has, or gets.
fn stamped(record: Record, now_ms: Timestamp) -> (Record, Timestamp) {
    match record.timestamp() {
        Some(time) => (record, time),
        None => (record.timestamp_ms(now_ms), now_ms),
    }
}

/// What a record takes of the buffer.
fn buffer_bytes_of(record: &Record) -> usize {
    let length = |part: Option<&[u8]>| part.map_or(0, <[u8]>::len);
    let with_overhead = |one: usize, other: usize| one.saturating_add(other).saturating_add(OVERHEAD_BYTES);
    let headers =
        record.headers().iter().map(|header| with_overhead(header.name_bytes().len(), length(header.value())));
    headers.fold(with_overhead(length(record.key()), length(record.value())), usize::saturating_add)
}
