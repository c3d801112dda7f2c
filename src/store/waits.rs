//! Waiting until a store has come to a position: until it can be read, or would survive a power cut.
//!
//! A wait looks first, and again whenever the store's bell rings; it makes nothing happen itself. Each has a future beside it
//! (feature `async`) that knows no runtime and no time-out: whoever polls it has both.

use std::time::Duration;

use super::Store;
use crate::clock::deadline::Deadline;
use crate::error::{Error, Result};
use crate::ids::TopicPartition;
use crate::partition::{Isolation, Partition, ReadOptions};
use crate::position::{PartitionPosition, Position};

/// Looks whether something is there; `false` for not yet.
pub(crate) type Look = Box<dyn Fn(&Store) -> Result<bool> + Send + Sync>;

impl Store {
    /// Waits until `look` is satisfied, at most so long. With a clock that is moved by hand it looks once.
    pub(crate) fn wait_until(&self, what: &str, timeout: Duration, look: &Look) -> Result<()> {
        let clock = self.clock();
        let deadline = Deadline::after(&*clock, timeout);
        let mut listener = None;
        loop {
            self.check_open()?;
            if look(self)? {
                return Ok(());
            }
            let left = deadline.left(&*clock);
            if left.is_zero() || clock.is_manual() {
                return Err(Error::Timeout { what: what.to_owned() });
            }
            match &mut listener {
                // What came before somebody listened was not heard: look again first.
                None => listener = Some(self.bell().listen()),
                Some(listener) => listener.wait(left),
            }
        }
    }

    /// [`wait_until`](Self::wait_until) as a future.
    #[cfg(feature = "async")]
    pub(crate) fn until(&self, look: Look) -> impl Future<Output = Result<()>> + Send + use<> {
        let store = self.clone();
        let mut listener = store.bell().listen();
        std::future::poll_fn(move |context| {
            loop {
                store.check_open()?;
                if look(&store)? {
                    return std::task::Poll::Ready(Ok(()));
                }
                std::task::ready!(listener.poll_wait(context));
            }
        })
    }

    /// The partition of a position, which must be of the topic that is there now, and of its log.
    fn partition_at(&self, id: &TopicPartition, at: &PartitionPosition) -> Result<Partition> {
        let topic = self.topic(id.topic.as_str())?;
        if at.known_topic_id().is_some_and(|known| known != topic.id()) {
            let why = "the topic was deleted and made again".to_owned();
            return Err(Error::PositionLost { partition: id.clone(), why });
        }
        let partition = topic.partition(id.partition)?;
        partition.check_epoch(at)?;
        Ok(partition)
    }

    /// Checks that a position is of the topics and logs that are there now. How far they reach is not looked at.
    pub(crate) fn check_not_lost(&self, position: &Position) -> Result<()> {
        position.iter().try_for_each(|(id, at)| self.partition_at(id, at).map(drop))
    }

    fn has_come_to(&self, position: &Position, end: impl Fn(&Partition) -> i64) -> Result<bool> {
        for (id, at) in position.iter() {
            let partition = self.partition_at(id, at)?;
            if end(&partition) < at.next_offset().get() {
                return more_can_come(&partition).map(|()| false);
            }
        }
        Ok(true)
    }

    /// Whether everything below a position can be read by a reader of committed records.
    pub(crate) fn is_readable(&self, position: &Position) -> Result<bool> {
        let options = ReadOptions::new().isolation(Isolation::Committed);
        self.has_come_to(position, |partition| partition.log.bound(&options))
    }

    /// Waits until everything below a position would survive a power cut. It syncs nothing: appends at `Sync`, the upkeep of
    /// `Interval` topics and [`Topic::flush`](crate::Topic::flush) do.
    ///
    /// # Errors
    /// [`Error::Timeout`]; at once: [`Error::PositionLost`] if the log was cut or the topic made again since the position was
    /// taken, [`Error::Poisoned`] if a sync failed, [`Error::UnknownTopic`] once the topic is deleted, [`Error::Closed`] once the
    /// store is closed.
    ///
    /// ```
    /// use std::time::Duration;
    /// use topiclog::{AppendOptions, Durability, Error, Record, Store, TopicConfig};
    /// let store = Store::in_memory()?;
    /// let orders = store.create_topic("orders", TopicConfig::default())?;
    /// let at = orders.append_with(Record::of_value("a"), &AppendOptions::new().durability(Durability::Os))?.position();
    /// assert!(matches!(store.wait_durable(&at, Duration::ZERO), Err(Error::Timeout { .. })));
    /// orders.flush()?;
    /// store.wait_durable(&at, Duration::ZERO)?;
    /// # store.close()?;
    /// # Ok::<(), topiclog::Error>(())
    /// ```
    pub fn wait_durable(&self, position: &Position, timeout: Duration) -> Result<()> {
        self.wait_until(&format!("until {position} is durable"), timeout, &durable(position))
    }

    /// Waits until everything below a position can be read by a reader of committed records.
    ///
    /// # Errors
    /// As [`wait_durable`](Self::wait_durable).
    ///
    /// ```
    /// use std::time::Duration;
    /// use topiclog::{Error, PartitionPosition, Position, Record, Store, TopicConfig};
    /// let store = Store::in_memory()?;
    /// let orders = store.create_topic("orders", TopicConfig::default())?;
    /// let first = Position::of(orders.partition(0)?.id().clone(), PartitionPosition::new(1));
    /// assert!(matches!(store.wait_readable(&first, Duration::ZERO), Err(Error::Timeout { .. })));
    /// orders.append(Record::of_value("a"))?;
    /// store.wait_readable(&first, Duration::ZERO)?;
    /// # store.close()?;
    /// # Ok::<(), topiclog::Error>(())
    /// ```
    pub fn wait_readable(&self, position: &Position, timeout: Duration) -> Result<()> {
        self.wait_until(&format!("until {position} can be read"), timeout, &readable(position))
    }

    /// [`wait_durable`](Self::wait_durable) as a future, without a time-out.
    ///
    /// # Errors
    /// As [`wait_durable`](Self::wait_durable), but for `Timeout`.
    #[cfg(feature = "async")]
    pub fn wait_durable_async(&self, position: &Position) -> impl Future<Output = Result<()>> + Send + use<> {
        self.until(durable(position))
    }

    /// [`wait_readable`](Self::wait_readable) as a future, without a time-out.
    ///
    /// # Errors
    /// As [`wait_durable`](Self::wait_durable), but for `Timeout`.
    #[cfg(feature = "async")]
    pub fn wait_readable_async(&self, position: &Position) -> impl Future<Output = Result<()>> + Send + use<> {
        self.until(readable(position))
    }
}

fn durable(position: &Position) -> Look {
    let position = position.clone();
    Box::new(move |store| store.has_come_to(&position, |partition| partition.durable_end().get()))
}

fn readable(position: &Position) -> Look {
    let position = position.clone();
    Box::new(move |store| store.is_readable(&position))
}

/// A poisoned log never gets any further.
pub(crate) fn more_can_come(partition: &Partition) -> Result<()> {
    partition.log.poison_error().map_or(Ok(()), Err)
}
