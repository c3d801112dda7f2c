//! A consumer as a stream (feature `async`).

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_core::Stream;

use super::{ConsumedRecord, Consumer, Listener, OffsetAndMetadata, Offsets};
use crate::error::Result;

/// The records of a consumer, one after the other, on any runtime. It never ends by itself; an error does not end it either: the
/// next item is what the next poll brings.
///
/// While there is nothing it waits without a thread and without a timer; appends, commits and rebalances wake it, and the upkeep
/// of the store does so about each second, so that a member that waits stays one. (With
/// [`Upkeep::Manual`](crate::Upkeep::Manual) whoever calls [`Store::tick`](crate::Store::tick) does.) A poll for more reads pages
/// that may not be in memory, and a rebalance writes its outcome: where even that must not block a task's thread, poll the
/// [`Consumer`] on a thread of its own.
///
/// ```
/// # use std::future::poll_fn;
/// # use std::pin::pin;
/// # use std::task::{Context, Poll, Waker};
/// use futures_core::Stream;
/// use topiclog::{Consumer, Record, Store, TopicConfig};
/// let store = Store::in_memory()?;
/// let orders = store.create_topic("orders", TopicConfig::default())?;
/// orders.append(Record::of_value("placed"))?;
/// let mut billing = pin!(Consumer::join(&store, "billing", ["orders"])?.into_stream());
/// let context = &mut Context::from_waker(Waker::noop());
/// let Poll::Ready(Some(Ok(first))) = billing.as_mut().poll_next(context) else { panic!("it is there") };
/// assert_eq!(first.record.value(), Some(&b"placed"[..]));
/// billing.commit()?;
/// assert!(billing.as_mut().poll_next(context).is_pending());
/// # Ok::<(), topiclog::Error>(())
/// ```
#[derive(Debug)]
pub struct ConsumerStream {
    consumer: Consumer,
    waiting: VecDeque<ConsumedRecord>,
    /// What was handed out and not committed.
    passed: Offsets,
    listener: Option<Listener>,
}

impl Consumer {
    /// Hands the records out as a stream.
    #[must_use]
    pub fn into_stream(mut self) -> ConsumerStream {
        self.take_given_up();
        ConsumerStream { consumer: self, waiting: VecDeque::new(), passed: Offsets::new(), listener: None }
    }
}

impl ConsumerStream {
    /// Commits what the stream has handed out. The consumer's own [`commit`](Consumer::commit) would commit what still waits in
    /// the stream as well.
    ///
    /// Durable when this returns: as [`Consumer::commit`] says.
    ///
    /// # Errors
    /// As [`Consumer::commit`].
    pub fn commit(&mut self) -> Result<()> {
        if self.passed.is_empty() {
            return Ok(());
        }
        // What went to others meanwhile is not this member's to commit.
        let owned = self.consumer.assignment();
        self.passed.retain(|id, _| owned.binary_search(id).is_ok());
        if !self.passed.is_empty() {
            self.consumer.commit_offsets(&self.passed)?;
        }
        self.passed.clear();
        Ok(())
    }

    /// The consumer. Records that wait in the stream are handed out all the same, whatever is sought.
    pub fn consumer(&mut self) -> &mut Consumer {
        &mut self.consumer
    }
}

impl Stream for ConsumerStream {
    type Item = Result<ConsumedRecord>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Some(record) = this.waiting.pop_front() {
                let next = OffsetAndMetadata::new(record.record.offset().get() + 1);
                let epoch = record.record.leader_epoch();
                let next = if epoch < 0 { next } else { next.leader_epoch(epoch) };
                this.passed.insert(record.partition.clone(), next);
                return Poll::Ready(Some(Ok(record)));
            }
            // Made before the look, so that nothing comes between them.
            let listener = this.listener.get_or_insert_with(|| this.consumer.listen());
            let polled = this.consumer.poll(Duration::ZERO);
            // Another may have come further with what this member had, and has it again.
            let given_up = this.consumer.take_given_up();
            this.passed.retain(|id, _| !given_up.contains(id));
            match polled {
                Err(error) => return Poll::Ready(Some(Err(error))),
                Ok(records) if records.is_empty() => ready!(listener.poll_wait(context)),
                Ok(records) => this.waiting.extend(records),
            }
        }
    }
}
