//! How a producer is to send.

use std::fmt;
use std::time::Duration;

use super::accumulator::{Accumulator, Bounds};
use super::producer::Producer;
use super::sender::Sender;
use super::{Connect, ProducerOptions, SendOptions};
use crate::error::{Error, Result};
use crate::partition::Durability;
use crate::record::Compression;

/// How a producer is to send. Each setting has Kafka's default where Kafka has one.
///
/// ```
/// use topiclog::{Durability, Producer, Record, Store, TopicConfig};
/// let store = Store::in_memory()?;
/// store.create_topic("clicks", TopicConfig::default())?;
/// let producer = Producer::builder(&store).linger_ms(50).durability(Durability::Os).open()?;
/// drop(producer.send("clicks", Record::of_value("click"))?);
/// producer.flush(std::time::Duration::MAX)?;
/// # Ok::<(), topiclog::Error>(())
/// ```
#[must_use]
pub struct ProducerBuilder<'a> {
    at: &'a dyn Connect,
    options: ProducerOptions,
    send: SendOptions,
    batch_bytes: usize,
    linger_ms: u64,
    buffer_bytes: usize,
    max_block_ms: u64,
    is_by_hand: bool,
}

impl fmt::Debug for ProducerBuilder<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("ProducerBuilder");
        debug.field("batch_bytes", &self.batch_bytes).field("linger_ms", &self.linger_ms);
        debug.field("buffer_bytes", &self.buffer_bytes).finish_non_exhaustive()
    }
}

impl<'a> ProducerBuilder<'a> {
    pub(super) fn new(at: &'a dyn Connect) -> Self {
        Self {
            at,
            options: ProducerOptions::new(),
            send: SendOptions::new(),
            batch_bytes: 16 << 10,
            linger_ms: 5,
            buffer_bytes: 32 << 20,
            max_block_ms: 60_000,
            is_by_hand: false,
        }
    }

    /// A batch of so many bytes is full, and sent at once; 16 KiB by default. A larger record is a batch of its own.
    #[doc(alias = "batch.size")]
    pub fn batch_bytes(mut self, bytes: usize) -> Self {
        self.batch_bytes = bytes;
        self
    }

    /// A batch that is not full is sent after so long, in milliseconds; 5 by default. With 0 it waits only while another batch
    /// of its partition is stored.
    #[doc(alias = "linger.ms")]
    pub fn linger_ms(mut self, ms: u64) -> Self {
        self.linger_ms = ms;
        self
    }

    /// Most bytes of records that were taken and are not stored; 32 MiB by default. A record counts 64 bytes more than it has,
    /// and so does each header; what small records take of the memory is about 200 more. While a batch is stored the encoder has
    /// its bytes a second time.
    #[doc(alias = "buffer.memory")]
    pub fn buffer_bytes(mut self, bytes: usize) -> Self {
        self.buffer_bytes = bytes;
        self
    }

    /// How long a send waits for room in the buffer, in milliseconds; 60,000 by default.
    #[doc(alias = "max.block.ms")]
    pub fn max_block_ms(mut self, ms: u64) -> Self {
        self.max_block_ms = ms;
        self
    }

    /// What holds before a record is answered; by default what its topic says.
    #[doc(alias = "acks")]
    pub fn durability(mut self, durability: Durability) -> Self {
        self.send = self.send.durability(durability);
        self
    }

    /// The codec; by default what the topic says.
    #[doc(alias = "compression.type")]
    pub fn compression(mut self, compression: Compression) -> Self {
        self.send = self.send.compression(compression);
        self
    }

    /// Without a thread: what is due is stored by [`Producer::step`], by whoever waits for a record, and by a send that finds no
    /// room. So it is where the clock of the place is moved by hand.
    pub fn by_hand(mut self) -> Self {
        self.is_by_hand = true;
        self
    }

    /// Opens it. Nothing is allocated or started before the first send.
    ///
    /// # Errors
    /// [`Error::Config`] for a buffer of no bytes; those of [`Connect::produce`].
    pub fn open(self) -> Result<Producer> {
        if self.buffer_bytes == 0 || self.batch_bytes == 0 {
            return Err(Error::config("buffer.memory and batch.size", "must not be 0"));
        }
        let clock = self.at.clock();
        let is_by_hand = self.is_by_hand || clock.is_manual();
        let linger = Duration::from_millis(self.linger_ms);
        let bounds = Bounds { batch_bytes: self.batch_bytes, linger, buffer_bytes: self.buffer_bytes };
        let sender =
            Sender::new(self.at.produce(self.options)?, clock, self.send, Accumulator::new(bounds), is_by_hand);
        Ok(Producer::of(sender, Duration::from_millis(self.max_block_ms), self.buffer_bytes))
    }
}
