//! Whether a position still means what it meant when it was taken.

use super::Partition;
use crate::error::{Error, Result};
use crate::ids::Offset;
use crate::position::PartitionPosition;

/// Where an epoch ended: where the next one began; `None` if it is the newest. `Err` if the log has never been so far.
fn end_of(epochs: &[(i32, i64)], epoch: i32) -> std::result::Result<Option<i64>, ()> {
    let behind = epochs.partition_point(|&(known, _)| known <= epoch);
    match (epochs.get(behind), epochs.last()) {
        (Some(&(_, start)), _) => Ok(Some(start)),
        (None, Some(&(newest, _))) if newest == epoch => Ok(None),
        (None, _) => Err(()),
    }
}

impl Partition {
    /// Checks a position against the log: that it can be read on from there, and that what lies below is what was read. The
    /// topic's identity is not looked at.
    ///
    /// # Errors
    /// [`Error::PositionLost`] if the leader epoch of the position did not reach that far in this log, or is one that it never
    /// had; [`Error::OffsetOutOfRange`] if the log begins behind it or ends before it; [`Error::Closed`].
    ///
    /// ```
    /// use topiclog::{Error, PartitionPosition, Record, Store, TopicConfig};
    /// let store = Store::in_memory()?;
    /// let partition = store.create_topic("orders", TopicConfig::default())?.partition(0)?;
    /// partition.append(Record::of_value("placed"))?;
    /// partition.check_position(&PartitionPosition::new(1).leader_epoch(0))?;
    /// let ahead = partition.check_position(&PartitionPosition::new(1).leader_epoch(7));
    /// assert!(matches!(ahead, Err(Error::PositionLost { .. })));
    /// # store.close()?;
    /// # Ok::<(), topiclog::Error>(())
    /// ```
    pub fn check_position(&self, at: &PartitionPosition) -> Result<()> {
        self.log.check_open()?;
        self.check_epoch(at)?;
        let (start, end) = (self.start(), self.end());
        if at.next_offset() < start || at.next_offset() > end {
            return Err(Error::OffsetOutOfRange { partition: self.id().clone(), asked: at.next_offset(), start, end });
        }
        Ok(())
    }

    /// The leader epoch of what lies before an offset, whether it is a record, a marker or nothing any more; `None` where the
    /// epochs are not known to be complete.
    pub(crate) fn epoch_before(&self, offset: Offset) -> Option<i32> {
        let epochs = self.log.snapshot().epochs.clone()?;
        let behind = epochs.partition_point(|&(_, start)| start < offset.get());
        Some(epochs.get(behind.checked_sub(1)?)?.0)
    }

    /// Whether the leader epoch of a position came that far in this log.
    pub(crate) fn check_epoch(&self, at: &PartitionPosition) -> Result<()> {
        let lost = |why: String| Err(Error::PositionLost { partition: self.id().clone(), why });
        // Where a broker's epochs are not known to be complete, nothing can be said.
        let epochs = self.log.snapshot().epochs.clone();
        let (Some(epoch), Some(epochs)) = (at.known_leader_epoch(), epochs) else { return Ok(()) };
        let offset = at.next_offset().get();
        match end_of(&epochs, epoch) {
            Err(()) => lost(format!("this log has never come to leader epoch {epoch}")),
            Ok(Some(end)) if offset > end => {
                lost(format!("leader epoch {epoch} ended at offset {end}, and it says {offset}"))
            }
            Ok(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::end_of;

    fn check(epoch: i32, expected: Result<Option<i64>, ()>) {
        assert_eq!(end_of(&[(2, 0), (3, 10), (7, 25)], epoch), expected, "{epoch}");
    }

    #[test]
    fn an_epoch_ends_where_the_next_one_begins() {
        check(2, Ok(Some(10)));
        check(3, Ok(Some(25)));
        // Nothing was written in these, or it was before the log begins.
        check(5, Ok(Some(25)));
        check(0, Ok(Some(0)));
        check(7, Ok(None));
        check(8, Err(()));
        assert_eq!(end_of(&[], 0), Err(()));
    }

    /// A broker that was started and wrote nothing had an epoch that begins at the log end; the one above it took its place.
    #[test]
    fn an_epoch_without_a_batch_ends_where_the_one_before_it_does() {
        assert_eq!(end_of(&[(0, 0), (3, 200)], 2), Ok(Some(200)));
        assert_eq!(end_of(&[(0, 0), (3, 200)], 3), Ok(None));
    }
}
