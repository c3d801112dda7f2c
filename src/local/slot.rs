//! One partition that a consumer reads: where it is, and the reader that stands there.

use crate::client::Records;
use crate::clock::Clock;
use crate::error::Result;
use crate::ids::{TopicPartition, Uuid};
use crate::partition::{Isolation, Partition, ReadOptions, Reader};
use crate::position::PartitionPosition;
use crate::record::RecordList;

/// A partition with the next offset to hand out, once it has one.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) partition: Partition,
    /// That of the partition, with a name of its own: each append counts references to the one that the partition has, and each
    /// poll would wait for the processor that did so last.
    id: TopicPartition,
    pub(super) topic_id: Uuid,
    /// `None` until it was sought: nothing is handed out before.
    position: Option<i64>,
    /// Leader epoch of what lies before the position.
    leader_epoch: Option<i32>,
    /// Wall clock of the last move, by polls or by seeks.
    pub(super) moved_at_ms: i64,
    pub(super) is_paused: bool,
    reader: Option<Reader>,
}

/// Room for so many records is taken ahead at most.
const RECORDS_AHEAD_MAX: usize = 10_000;

/// What a poll may still take.
#[derive(Debug)]
pub(super) struct Budget {
    pub(super) records: usize,
    pub(super) bytes: usize,
}

impl Budget {
    pub(super) fn is_spent(&self) -> bool {
        self.records == 0 || self.bytes == 0
    }
}

impl Slot {
    pub(super) fn new(partition: Partition, topic_id: Uuid) -> Self {
        Self {
            id: partition.id().with_own_name(),
            partition,
            topic_id,
            position: None,
            leader_epoch: None,
            moved_at_ms: -1,
            is_paused: false,
            reader: None,
        }
    }

    pub(super) fn id(&self) -> &TopicPartition {
        &self.id
    }

    pub(super) fn position(&self) -> Option<PartitionPosition> {
        let at = PartitionPosition::new(self.position?).topic_id(self.topic_id);
        Some(self.leader_epoch.map_or(at, |epoch| at.leader_epoch(epoch)))
    }

    /// Reads on there. What it means was checked.
    pub(super) fn move_to(&mut self, at: &PartitionPosition, now_ms: i64) {
        (self.position, self.leader_epoch) = (Some(at.next_offset().get()), at.known_leader_epoch());
        (self.reader, self.moved_at_ms) = (None, now_ms);
    }

    /// Hands out what is there, as far as the budget goes. What was found before an error is handed out first.
    pub(super) fn take(&mut self, taken: &mut Records, budget: &mut Budget, clock: &dyn Clock) -> Result<()> {
        let Some(position) = self.position else { return Ok(()) };
        if self.is_paused {
            return Ok(());
        }
        let reader = match &mut self.reader {
            Some(reader) => reader,
            none => none.insert(self.partition.reader(position, &ReadOptions::new().isolation(Isolation::Committed))?),
        };
        let end = self.partition.end().get();
        let ahead = usize::try_from(end.saturating_sub(position)).unwrap_or(0);
        let mut records = RecordList::with_capacity(ahead.min(budget.records).min(RECORDS_AHEAD_MAX));
        let (mut ended, mut has_ended) = (Ok(()), false);
        while !budget.is_spent() {
            let before = records.len();
            let bytes = reader.take_at_hand(&mut records, before.saturating_add(budget.records), budget.bytes);
            budget.records -= records.len() - before;
            budget.bytes = budget.bytes.saturating_sub(bytes);
            // What came since the poll began is for the next one.
            if budget.is_spent() || records.last().is_some_and(|last| last.offset().get() + 1 >= end) {
                break;
            }
            // The first of the next batch, or one that takes more to decode.
            match reader.next() {
                None => {
                    has_ended = true;
                    break;
                }
                Some(Ok(record)) => {
                    budget.records -= 1;
                    budget.bytes = budget.bytes.saturating_sub(record.key_and_value_bytes());
                    records.push(record);
                }
                Some(Err(error)) => {
                    // A failed reader goes on failing; the next poll asks the log anew.
                    self.reader = None;
                    ended = Err(error);
                    break;
                }
            }
        }
        if let Some(last) = records.last() {
            self.position = Some(last.offset().get() + 1);
            self.moved_at_ms = clock.now_ms();
            self.leader_epoch = Some(last.leader_epoch()).filter(|&epoch| epoch >= 0);
        }
        if has_ended
            && let Some(end) = self.reader.as_ref().map(Reader::position)
            && self.position != Some(end.get())
        {
            // Markers and gaps at the end are behind it as well. They may be of a later epoch than the record before them, which
            // then has not come so far.
            self.position = Some(end.get());
            self.leader_epoch = self.partition.epoch_before(end);
        }
        taken.push(&self.id, records);
        ended
    }
}
