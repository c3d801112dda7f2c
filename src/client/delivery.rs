//! What has become of a record that a producer took.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::sender::Sender;
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::ids::TopicPartition;
use crate::partition::writer::RecordMetadata;

/// What has become of some records of a batch, which were stored together or not at all.
#[derive(Debug)]
pub(super) struct Part {
    /// Place of the first in the batch.
    pub(super) first: usize,
    pub(super) count: usize,
    pub(super) outcome: Result<RecordMetadata>,
}

/// What has become of a batch. Told once.
#[derive(Debug, Default)]
pub(super) struct BatchOutcome {
    parts: OnceLock<Vec<Part>>,
    /// Wakes tasks.
    #[cfg(feature = "async")]
    told: event_listener::Event,
}

impl BatchOutcome {
    pub(super) fn tell(&self, parts: Vec<Part>) {
        self.parts.set(parts).ok();
    }

    /// Not under a lock: a task may run at once.
    pub(super) fn wake_tasks(&self) {
        #[cfg(feature = "async")]
        self.told.notify(usize::MAX);
    }

    pub(super) fn is_told(&self) -> bool {
        self.parts.get().is_some()
    }
}

/// The answer to one record: where it is, once it is stored. Dropping it loses the answer and nothing else.
///
/// With feature `async` it is a future as well, on any runtime. A future stores nothing itself: the producer's thread does, or
/// whoever calls [`Producer::step`](super::Producer::step) or [`Producer::flush`](super::Producer::flush).
///
/// ```
/// use topiclog::{Producer, Record, Store, TopicConfig};
/// let store = Store::in_memory()?;
/// store.create_topic("orders", TopicConfig::default())?;
/// let producer = Producer::new(&store)?;
/// let first = producer.send("orders", Record::of_value("placed"))?;
/// let second = producer.send("orders", Record::of_value("paid"))?;
/// assert_eq!((second.wait()?.offset.get(), first.wait()?.offset.get()), (1, 0));
/// # Ok::<(), topiclog::Error>(())
/// ```
#[must_use = "a send may fail after it returned: wait for it, or flush the producer and look at what that returns"]
pub struct Delivery {
    to: TopicPartition,
    sender: Arc<Sender>,
    batch: Arc<BatchOutcome>,
    number: u64,
    index: usize,
    /// The record's own time, where it keeps it.
    timestamp: Option<Timestamp>,
    #[cfg(feature = "async")]
    listener: Option<event_listener::EventListener>,
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery").field("to", &self.to).field("is_done", &self.is_done()).finish_non_exhaustive()
    }
}

impl Delivery {
    pub(super) fn new(
        sender: Arc<Sender>,
        to: TopicPartition,
        (batch, number, index): (Arc<BatchOutcome>, u64, usize),
        timestamp: Option<Timestamp>,
    ) -> Self {
        Self {
            to,
            sender,
            batch,
            number,
            index,
            timestamp,
            #[cfg(feature = "async")]
            listener: None,
        }
    }

    /// The partition that the record goes to.
    pub fn partition(&self) -> &TopicPartition {
        &self.to
    }

    /// Whether the answer is there.
    pub fn is_done(&self) -> bool {
        self.batch.is_told()
    }

    /// Waits for the answer. What this record waits for is sent now, by this thread if no other does, and does not linger.
    ///
    /// Durable when this returns: the record, as the producer says, or else its topic.
    ///
    /// # Errors
    /// Those of [`Produce::send`](super::Produce::send): after any but [`Error::OutcomeUnknown`] the record will never appear.
    /// [`Error::Closed`] if the producer was dropped, or closed in too short a time, before the record was sent.
    pub fn wait(&self) -> Result<RecordMetadata> {
        self.wait_for(Duration::MAX)
    }

    /// [`wait`](Self::wait), for at most so long while another thread sends.
    ///
    /// # Errors
    /// [`Error::Timeout`], and then the record may still be stored: ask again. As [`wait`](Self::wait).
    pub fn wait_for(&self, timeout: Duration) -> Result<RecordMetadata> {
        self.sender.finish(&self.to, self.number, &self.batch, timeout);
        self.answer()
            .unwrap_or_else(|| Err(Error::Timeout { what: format!("until a record is stored in {}", self.to) }))
    }

    /// The answer, if it is there.
    pub fn answer(&self) -> Option<Result<RecordMetadata>> {
        let parts = self.batch.parts.get()?;
        let mine = |part: &&Part| (part.first..part.first.saturating_add(part.count)).contains(&self.index);
        let part = parts.iter().find(mine)?;
        Some(match &part.outcome {
            Err(error) => Err(error.duplicate()),
            Ok(batch) => {
                let ahead = i64::try_from(self.index.saturating_sub(part.first)).unwrap_or(i64::MAX);
                let offset = batch.offset.get().saturating_add(ahead);
                let timestamp_ms = self.timestamp.unwrap_or(batch.timestamp_ms);
                let next = offset.saturating_add(1);
                Ok(RecordMetadata { offset: offset.into(), next_offset: next.into(), timestamp_ms, ..batch.clone() })
            }
        })
    }
}

#[cfg(feature = "async")]
impl Future for Delivery {
    type Output = Result<RecordMetadata>;

    fn poll(mut self: std::pin::Pin<&mut Self>, context: &mut std::task::Context<'_>) -> std::task::Poll<Self::Output> {
        use std::task::{Poll, ready};
        loop {
            if let Some(answer) = self.answer() {
                self.listener = None;
                return Poll::Ready(answer);
            }
            let batch = Arc::clone(&self.batch);
            match &mut self.listener {
                // Enlisted before the next look, so that an answer between the two is not missed.
                None => self.listener = Some(batch.told.listen()),
                Some(listener) => {
                    ready!(std::pin::Pin::new(listener).poll(context));
                    self.listener = None;
                }
            }
        }
    }
}
