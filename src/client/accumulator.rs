//! What a producer has taken and not yet stored: batches per partition, in order, within bounded bytes. PURE.
//!
//! Of one partition at most one batch is under way at a time, the oldest: so its records are stored in the order in which they
//! were taken. Whoever sends takes a batch out, and says when it is done.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::delivery::BatchOutcome;
use crate::ids::TopicPartition;
use crate::record::Record;

/// What bounds it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// A batch of so many bytes is full.
    pub(super) batch_bytes: usize,
    /// A batch that is not full is sent after so long.
    pub(super) linger: Duration,
    /// Bytes of everything that waits or is under way.
    pub(super) buffer_bytes: usize,
}

/// Records of one partition that are stored together.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) to: TopicPartition,
    /// In the order in which batches were begun, of all partitions.
    pub(super) number: u64,
    pub(super) records: Vec<Record>,
    pub(super) bytes: usize,
    since: Duration,
    pub(super) outcome: Arc<BatchOutcome>,
}

/// The batches of one partition.
#[derive(Debug, Default)]
struct Queue {
    /// Take no more records, and are to be sent.
    closed: VecDeque<Batch>,
    /// Behind them.
    open: Option<Batch>,
    under_way: Option<u64>,
}

impl Queue {
    fn close(&mut self) {
        self.closed.extend(self.open.take());
    }

    /// The oldest that waits.
    fn first(&self) -> Option<&Batch> {
        self.closed.front().or(self.open.as_ref())
    }

    fn take_first(&mut self) -> Option<Batch> {
        self.closed.pop_front().or_else(|| self.open.take())
    }
}

/// Which batch is to be sent.
#[derive(Clone, Copy, Debug)]
pub(super) enum Want<'a> {
    /// One that is full or has waited long enough.
    Due,
    /// One up to this number.
    UpTo(u64),
    /// The next of this partition, up to this number.
    Of(&'a TopicPartition, u64),
}

/// Where a record went.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) outcome: Arc<BatchOutcome>,
    pub(super) number: u64,
    /// Its place in the batch.
    pub(super) index: usize,
    /// There is something new for whoever sends.
    pub(super) is_news: bool,
}

#[derive(Debug)]
pub(super) struct Accumulator {
    bounds: Bounds,
    queues: BTreeMap<TopicPartition, Queue>,
    next_number: u64,
    /// Of what waits and what is under way.
    bytes: usize,
    records: usize,
    /// Who waits for room, the first first. While somebody does, nothing lingers.
    turns: VecDeque<u64>,
    next_turn: u64,
}

impl Accumulator {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            queues: BTreeMap::new(),
            next_number: 0,
            bytes: 0,
            records: 0,
            turns: VecDeque::new(),
            next_turn: 0,
        }
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.bytes.saturating_add(bytes) <= self.bounds.buffer_bytes
    }

    /// Whether a record may be taken that has this turn, or none yet.
    pub(super) fn may_add(&self, bytes: usize, turn: Option<u64>) -> bool {
        self.turns.front().copied() == turn && self.has_room(bytes)
    }

    /// Somebody waits for room, behind those that do already.
    pub(super) fn queue_up(&mut self) -> u64 {
        let turn = self.next_turn;
        self.next_turn = turn.wrapping_add(1);
        self.turns.push_back(turn);
        turn
    }

    pub(super) fn leave_queue(&mut self, turn: u64) {
        self.turns.retain(|&other| other != turn);
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn records(&self) -> usize {
        self.records
    }

    /// Takes a record for which there is room.
    pub(super) fn add(&mut self, to: &TopicPartition, record: Record, bytes: usize, now: Duration) -> Taken {
        (self.bytes, self.records) = (self.bytes.saturating_add(bytes), self.records.saturating_add(1));
        let batch_bytes = self.bounds.batch_bytes;
        let queue = match self.queues.get_mut(to) {
            Some(queue) => queue,
            None => self.queues.entry(to.clone()).or_default(),
        };
        if queue.open.as_ref().is_some_and(|batch| batch.bytes.saturating_add(bytes) > batch_bytes) {
            queue.close();
        }
        let begins_one = queue.open.is_none();
        let batch = queue.open.get_or_insert_with(|| {
            let number = self.next_number;
            self.next_number = number.saturating_add(1);
            Batch { to: to.clone(), number, records: Vec::new(), bytes: 0, since: now, outcome: Arc::default() }
        });
        let (outcome, number, index) = (Arc::clone(&batch.outcome), batch.number, batch.records.len());
        batch.records.push(record);
        batch.bytes = batch.bytes.saturating_add(bytes);
        let is_full = batch.bytes >= batch_bytes;
        if is_full {
            queue.close();
        }
        Taken { outcome, number, index, is_news: begins_one || is_full }
    }

    /// Takes the oldest batch out that is wanted. Its partition sends no other until [`done`](Self::done).
    pub(super) fn take(&mut self, want: Want<'_>, now: Duration) -> Option<Batch> {
        let wanted = |queue: &Queue| {
            let first = queue.first().filter(|_| queue.under_way.is_none())?.number;
            let is_wanted = match want {
                Want::Due => !queue.closed.is_empty() || self.lingers_until(queue).is_some_and(|until| now >= until),
                Want::UpTo(number) | Want::Of(_, number) => first <= number,
            };
            is_wanted.then_some(first)
        };
        let place = match want {
            Want::Of(place, _) => self.queues.get(place).and_then(wanted).map(|_| place.clone()),
            Want::Due | Want::UpTo(_) => {
                let ready = self.queues.iter().filter_map(|(place, queue)| Some((wanted(queue)?, place)));
                ready.min().map(|(_, place)| place.clone())
            }
        }?;
        let queue = self.queues.get_mut(&place)?;
        let batch = queue.take_first()?;
        queue.under_way = Some(batch.number);
        Some(batch)
    }

    /// Until when the open batch waits for more records. Not at all while somebody waits for room.
    fn lingers_until(&self, queue: &Queue) -> Option<Duration> {
        let since = queue.open.as_ref()?.since;
        Some(if self.turns.is_empty() { since.saturating_add(self.bounds.linger) } else { since })
    }

    /// A batch that was taken out is stored, or given up.
    pub(super) fn done(&mut self, to: &TopicPartition, bytes: usize, records: usize) {
        self.release(bytes, records);
        if let Some(queue) = self.queues.get_mut(to) {
            queue.under_way = None;
            if queue.first().is_none() {
                self.queues.remove(to);
            }
        }
    }

    fn release(&mut self, bytes: usize, records: usize) {
        (self.bytes, self.records) = (self.bytes.saturating_sub(bytes), self.records.saturating_sub(records));
    }

    /// Lets no batch take more records. The number of the last that was begun.
    pub(super) fn close_batches(&mut self) -> Option<u64> {
        self.queues.values_mut().for_each(Queue::close);
        self.next_number.checked_sub(1)
    }

    /// Whether every batch up to this number is done.
    pub(super) fn is_done(&self, number: u64) -> bool {
        let first = |queue: &Queue| queue.under_way.or_else(|| Some(queue.first()?.number));
        self.queues.values().filter_map(first).all(|first| first > number)
    }

    /// When the next open batch has lingered that nothing is before; `None` if there is none.
    pub(super) fn next_due(&self) -> Option<Duration> {
        let waiting = self.queues.values().filter(|queue| queue.under_way.is_none());
        waiting.filter_map(|queue| self.lingers_until(queue)).min()
    }

    /// Takes everything out that nobody sends.
    pub(super) fn abandon(&mut self) -> Vec<Batch> {
        self.close_batches();
        let abandoned: Vec<Batch> = self.queues.values_mut().flat_map(|queue| queue.closed.drain(..)).collect();
        self.queues.retain(|_, queue| queue.under_way.is_some());
        abandoned.iter().for_each(|batch| self.release(batch.bytes, batch.records.len()));
        abandoned
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::TopicName;

    const LINGER: Duration = Duration::from_millis(5);

    fn place(partition: u32) -> TopicPartition {
        TopicPartition::new(TopicName::new("t").unwrap(), partition)
    }

    fn new() -> Accumulator {
        Accumulator::new(Bounds { batch_bytes: 100, linger: LINGER, buffer_bytes: 1000 })
    }

    fn add(to: &mut Accumulator, partition: u32, bytes: usize, now_ms: u64) -> u64 {
        to.add(&place(partition), Record::of_value("x"), bytes, Duration::from_millis(now_ms)).number
    }

    /// The number, and how many records it has, of the next batch that is due.
    fn due(from: &mut Accumulator, now_ms: u64) -> Option<(u64, usize)> {
        let batch = from.take(Want::Due, Duration::from_millis(now_ms))?;
        Some((batch.number, batch.records.len()))
    }

    #[test]
    fn a_batch_is_due_when_it_is_full_when_it_lingered_and_when_somebody_waits_for_room() {
        let mut waits = new();
        add(&mut waits, 0, 50, 0);
        assert_eq!((due(&mut waits, 4), waits.next_due()), (None, Some(LINGER)));
        assert_eq!(due(&mut waits, 5), Some((0, 1)));
        let mut full = new();
        add(&mut full, 0, 50, 0);
        add(&mut full, 0, 50, 0);
        assert_eq!(due(&mut full, 0), Some((0, 2)));
        let mut overtaken = new();
        add(&mut overtaken, 0, 50, 0);
        assert_eq!(add(&mut overtaken, 0, 60, 0), 1, "it does not fit into the first");
        assert_eq!((due(&mut overtaken, 0), due(&mut overtaken, 0)), (Some((0, 1)), None));
        let mut pressed = new();
        add(&mut pressed, 0, 1, 0);
        pressed.queue_up();
        assert_eq!(due(&mut pressed, 0), Some((0, 1)));
    }

    #[test]
    fn of_one_partition_one_batch_is_under_way_and_the_oldest_of_all_goes_first() {
        let mut all = new();
        for partition in [1, 0, 0, 1] {
            add(&mut all, partition, 100, 0);
        }
        assert_eq!((due(&mut all, 0), due(&mut all, 0), due(&mut all, 0)), (Some((0, 1)), Some((1, 1)), None));
        assert_eq!((all.is_done(0), all.next_due()), (false, None), "nothing that could be sent");
        all.done(&place(1), 100, 1);
        assert_eq!((all.is_done(0), all.is_done(1), all.bytes(), all.records()), (true, false, 300, 3));
        assert_eq!(due(&mut all, 0), Some((3, 1)));
        all.done(&place(0), 100, 1);
        all.done(&place(1), 100, 1);
        assert_eq!(all.take(Want::UpTo(1), LINGER).map(|batch| batch.number), None);
        assert_eq!(all.take(Want::Of(&place(0), 2), Duration::ZERO).map(|batch| batch.number), Some(2));
        all.done(&place(0), 100, 1);
        assert!(all.is_done(3) && all.queues.is_empty());
    }

    #[test]
    fn bytes_are_counted_until_they_are_stored() {
        let mut all = new();
        assert!(all.has_room(1000) && !all.has_room(1001));
        add(&mut all, 0, 600, 0);
        assert!(!all.has_room(401));
        let batch = all.take(Want::Due, Duration::ZERO).unwrap();
        assert!(!all.has_room(401), "it is under way");
        add(&mut all, 0, 400, 0);
        assert_eq!(all.abandon().len(), 1);
        assert_eq!((all.bytes(), all.records()), (600, 1));
        all.done(&batch.to, batch.bytes, 1);
        assert!(all.has_room(1000));
    }
}
