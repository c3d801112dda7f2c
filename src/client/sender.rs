//! Stores what a producer has taken: on its thread, or on the thread of whoever waits for it.
//!
//! The lock is held to take a batch out and to say that it is done, never while the place stores it.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use super::accumulator::{Accumulator, Batch, Taken, Want};
use super::delivery::{BatchOutcome, Part};
use super::producer::{ProducerStats, SendFailure};
use super::targets::{Target, Targets};
use super::{Produce, SendOptions, sender_thread};
use crate::clock::Clock;
use crate::clock::deadline::Deadline;
use crate::error::{Error, Result};
use crate::ids::{Offset, TopicPartition};
use crate::partition::writer::RecordMetadata;
use crate::record::Record;
use crate::sync::{Condvar, Mutex, MutexGuard};

/// As many failures are kept until somebody asks; the others are counted.
const FAILURES_MAX: usize = 1000;
const ANY: Want<'static> = Want::UpTo(u64::MAX);

pub(super) struct Sender {
    place: Arc<dyn Produce>,
    clock: Arc<dyn Clock>,
    options: SendOptions,
    targets: Targets,
    /// There is no thread.
    is_by_hand: bool,
    state: Mutex<State>,
    /// A batch is done, or there is something for the thread to look at.
    changed: Condvar,
}

struct State {
    batches: Accumulator,
    has_thread: bool,
    /// Takes no more records.
    is_closed: bool,
    stored: u64,
    failed: u64,
    failures: Vec<SendFailure>,
    /// The first since the last flush.
    first_failure: Option<Error>,
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

fn no_longer(what: &str) -> Error {
    Error::Closed { what: what.to_owned() }
}

impl Sender {
    pub(super) fn new(
        place: Arc<dyn Produce>,
        clock: Arc<dyn Clock>,
        options: SendOptions,
        batches: Accumulator,
        is_by_hand: bool,
    ) -> Self {
        let state = State {
            batches,
            has_thread: false,
            is_closed: false,
            stored: 0,
            failed: 0,
            failures: Vec::new(),
            first_failure: None,
        };
        let (targets, state, changed) = (Targets::default(), Mutex::new(state), Condvar::new());
        Self { place, clock, options, targets, is_by_hand, state, changed }
    }

    pub(super) fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    pub(super) fn stats(&self) -> ProducerStats {
        let state = self.state.lock();
        ProducerStats {
            waiting_records: state.batches.records(),
            waiting_bytes: state.batches.bytes(),
            stored_records: state.stored,
            failed_records: state.failed,
        }
    }

    /// The first failure since this was asked last.
    pub(super) fn first_failure(&self) -> Option<Error> {
        self.state.lock().first_failure.take()
    }

    pub(super) fn route(&self, topic: &str, record: &Record) -> Result<(TopicPartition, Arc<Target>)> {
        self.targets.route(&*self.place, topic, record)
    }

    pub(super) fn take_failures(&self) -> Vec<SendFailure> {
        std::mem::take(&mut self.state.lock().failures)
    }

    /// Takes a record into its batch. Waits for room for so long, if it may; nothing lingers meanwhile. Who came first has
    /// room first, however much it needs.
    pub(super) fn add(
        self: &Arc<Self>,
        to: &TopicPartition,
        record: Record,
        bytes: usize,
        max_block: Option<Duration>,
    ) -> Result<Taken> {
        let mut now = self.clock.monotonic();
        let mut state = self.state.lock();
        if state.is_closed {
            return Err(no_longer("the producer"));
        }
        if !self.is_by_hand && !state.has_thread {
            sender_thread::start(self)?;
            state.has_thread = true;
        }
        if !state.batches.may_add(bytes, None) {
            let turn = state.batches.queue_up();
            // The thread may be asleep over batches that linger. Told once: those who wait must not wake each other for ever.
            self.changed.notify_all();
            let waited;
            (state, waited) = self.wait_for_room(state, turn, bytes, max_block);
            state.batches.leave_queue(turn);
            // The next in turn may have room as well.
            self.changed.notify_all();
            waited?;
            now = self.clock.monotonic();
        }
        let taken = state.batches.add(to, record, bytes, now);
        if taken.is_news {
            self.changed.notify_all();
        }
        Ok(taken)
    }

    /// Returns when it is the turn of this one and there is room.
    fn wait_for_room<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        turn: u64,
        bytes: usize,
        max_block: Option<Duration>,
    ) -> (MutexGuard<'a, State>, Result<()>) {
        let deadline = Deadline::after(&*self.clock, max_block.unwrap_or_default());
        // Without a thread there is nobody else who could make room.
        let makes_room = self.is_by_hand && max_block.is_some();
        loop {
            if state.is_closed {
                return (state, Err(no_longer("the producer")));
            }
            if state.batches.may_add(bytes, Some(turn)) {
                return (state, Ok(()));
            }
            let batch = if makes_room { state.batches.take(ANY, Duration::ZERO) } else { None };
            let left = deadline.left(&*self.clock);
            if let Some(batch) = batch {
                drop(state);
                self.store(batch);
                state = self.state.lock();
            } else if left.is_zero() {
                let what = format!("for room for {bytes} bytes in the buffer of a producer: the record was not taken");
                return (state, Err(Error::Timeout { what }));
            } else {
                self.changed.wait_for(&mut state, left);
            }
        }
    }

    /// Stores the next batch that is due, on this thread. How many records it had; `None` if there was none.
    pub(super) fn send_due(&self) -> Option<usize> {
        let batch = self.state.lock().batches.take(Want::Due, self.clock.monotonic())?;
        Some(self.store(batch))
    }

    fn store(&self, batch: Batch) -> usize {
        let Batch { to, records, bytes, outcome, .. } = batch;
        let count = records.len();
        let parts = self.store_parts(&to, records);
        self.targets.learn(&to.topic, &parts);
        {
            let mut state = self.state.lock();
            state.batches.done(&to, bytes, count);
            state.count(&to, &parts);
            // Told under the lock, so that who looked just now is not asleep before it is woken.
            outcome.tell(parts);
        }
        outcome.wake_tasks();
        self.changed.notify_all();
        count
    }

    /// One record that breaks a rule does not take the others of its batch along: a batch that is refused for what is in it is
    /// sent again in halves. Nothing of it was stored, and the order stays.
    fn store_parts(&self, to: &TopicPartition, records: Vec<Record>) -> Vec<Part> {
        let mut parts = Vec::new();
        let mut left = vec![(0, records)];
        while let Some((first, records)) = left.pop() {
            let count = records.len();
            let again = if count > 1 { records.clone() } else { Vec::new() };
            match (self.send_to_place(to, records), again) {
                (Err(Error::Invalid { .. }), mut again) if count > 1 => {
                    let half = count.div_ceil(2);
                    let second = again.split_off(half);
                    left.push((first + half, second));
                    left.push((first, again));
                }
                (outcome, _) => parts.push(Part { first, count, outcome }),
            }
        }
        parts
    }

    /// A place that panics is one that fails: whoever waits is told, and nobody hangs.
    fn send_to_place(&self, to: &TopicPartition, records: Vec<Record>) -> Result<RecordMetadata> {
        let send = AssertUnwindSafe(|| self.place.send(to, records, &self.options));
        catch_unwind(send).unwrap_or_else(|_| {
            let source = std::io::Error::other("the place panicked while it stored a batch");
            Err(Error::OutcomeUnknown { partition: to.clone(), offset: Offset::new(-1), source })
        })
    }

    /// Sends what is wanted on this thread, or waits while others do, until this is so. False if the time is over.
    fn help(&self, want: Want<'_>, deadline: Deadline, is_so: impl Fn(&State) -> bool) -> bool {
        let mut state = self.state.lock();
        loop {
            if is_so(&state) {
                return true;
            }
            // What is wanted is told by its number, whatever the time.
            if let Some(batch) = state.batches.take(want, Duration::ZERO) {
                drop(state);
                self.store(batch);
                state = self.state.lock();
                continue;
            }
            let left = deadline.left(&*self.clock);
            if left.is_zero() {
                return false;
            }
            self.changed.wait_for(&mut state, left);
        }
    }

    /// Returns once a batch is done, or after so long; sends it, and what is before it in its partition, if nobody does.
    pub(super) fn finish(&self, to: &TopicPartition, number: u64, outcome: &BatchOutcome, timeout: Duration) {
        let deadline = Deadline::after(&*self.clock, timeout);
        self.help(Want::Of(to, number), deadline, |_| outcome.is_told());
    }

    /// Sends everything that was taken so far, with the help of this thread, and waits for its outcome.
    pub(super) fn flush(&self, timeout: Duration) -> Result<()> {
        let deadline = Deadline::after(&*self.clock, timeout);
        let last = self.state.lock().batches.close_batches();
        self.changed.notify_all();
        if let Some(last) = last
            && !self.help(Want::UpTo(last), deadline, |state| state.batches.is_done(last))
        {
            let what = "until everything that was sent is stored: it is still tried".to_owned();
            return Err(Error::Timeout { what });
        }
        self.place.flush(deadline.left(&*self.clock))
    }

    /// Takes no more records.
    pub(super) fn close(&self) {
        self.state.lock().is_closed = true;
        self.changed.notify_all();
    }

    /// Gives everything up that nobody sends yet, and takes no more.
    pub(super) fn abandon(&self, why: &str) {
        let abandoned = {
            let mut state = self.state.lock();
            state.is_closed = true;
            let abandoned = state.batches.abandon();
            for batch in &abandoned {
                let parts = vec![Part { first: 0, count: batch.records.len(), outcome: Err(no_longer(why)) }];
                state.count(&batch.to, &parts);
                batch.outcome.tell(parts);
            }
            abandoned
        };
        abandoned.iter().for_each(|batch| batch.outcome.wake_tasks());
        self.changed.notify_all();
    }

    /// What the thread does: sends what is due until nothing more can come.
    pub(super) fn run(&self) {
        let mut state = self.state.lock();
        loop {
            if state.is_closed && state.batches.records() == 0 {
                return;
            }
            let now = self.clock.monotonic();
            if let Some(batch) = state.batches.take(Want::Due, now) {
                drop(state);
                self.store(batch);
                state = self.state.lock();
                continue;
            }
            match state.batches.next_due() {
                Some(due) => {
                    self.changed.wait_for(&mut state, due.saturating_sub(now));
                }
                None => self.changed.wait(&mut state),
            }
        }
    }
}

impl State {
    fn count(&mut self, to: &TopicPartition, parts: &[Part]) {
        for Part { count, outcome, .. } in parts {
            match outcome {
                Ok(_) => self.stored = self.stored.saturating_add(*count as u64),
                Err(error) => {
                    self.failed = self.failed.saturating_add(*count as u64);
                    self.first_failure.get_or_insert_with(|| error.duplicate());
                    if self.failures.len() < FAILURES_MAX {
                        let error = error.duplicate();
                        self.failures.push(SendFailure { partition: to.clone(), records: *count, error });
                    }
                }
            }
        }
    }
}
