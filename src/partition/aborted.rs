//! Which transactions were aborted: known from the open on, or, of a broker's directory, found out at the first question.

use std::sync::{Arc, OnceLock};

use super::foreign::replay_file;
use super::kafka_state::Producers;
use crate::error::{Error, Result};
use crate::record::BatchHeader;
use crate::segment::Segment;
use crate::segment::txn_index::AbortedTxn;
use crate::sync::Mutex;

/// The aborted transactions of a log. Cheap to clone; what one clone found out all of them know.
#[derive(Clone, Debug)]
pub(crate) struct Aborted(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Rising by producer, then by the offset of the marker.
    found: OnceLock<Vec<AbortedTxn>>,
    /// What the files beside the log say, where they may not say all.
    told: Vec<AbortedTxn>,
    /// Held while the batches are read, so that they are read once.
    finding: Mutex<()>,
}

impl Aborted {
    /// All of them.
    pub(crate) fn known(aborted: Vec<AbortedTxn>) -> Self {
        let found = OnceLock::from(sorted(aborted));
        Self(Arc::new(Inner { found, told: Vec::new(), finding: Mutex::new(()) }))
    }

    /// Those that files tell of; the batches tell the rest, and are read when somebody asks.
    pub(crate) fn told_in_part(told: Vec<AbortedTxn>) -> Self {
        Self(Arc::new(Inner { found: OnceLock::new(), told, finding: Mutex::new(()) }))
    }

    /// All of them, rising by producer and marker.
    ///
    /// # Errors
    /// [`Error::Io`] if the batches could not be read; the next question tries again.
    pub(crate) fn all(&self, segments: &[Arc<Segment>]) -> Result<&[AbortedTxn]> {
        if let Some(found) = self.0.found.get() {
            return Ok(found);
        }
        let _finding = self.0.finding.lock();
        if self.0.found.get().is_none() {
            let found = sorted(ask_batches(segments, &self.0.told)?);
            return Ok(self.0.found.get_or_init(|| found));
        }
        Ok(self.0.found.get().map_or(&[], Vec::as_slice))
    }

    /// Whether a batch belongs to one. A transaction of a producer spans from its first offset to its marker, and transactions
    /// of one producer do not overlap: so a batch in the span of an aborted one is part of it (Kafka's filter, without its
    /// heap).
    pub(crate) fn has(&self, segments: &[Arc<Segment>], header: &BatchHeader) -> Result<bool> {
        if !header.is_transactional() || header.producer_id < 0 {
            return Ok(false);
        }
        let all = self.all(segments)?;
        // The first of the producer whose marker lies behind the batch.
        let at =
            all.partition_point(|txn| (txn.producer_id, txn.last_offset) <= (header.producer_id, header.last_offset()));
        let next = all.get(at).filter(|txn| txn.producer_id == header.producer_id);
        Ok(next.is_some_and(|txn| txn.first_offset <= header.last_offset()))
    }

    /// The one that the marker of a producer at this offset ended.
    pub(crate) fn ended_at(
        &self,
        segments: &[Arc<Segment>],
        producer_id: i64,
        marker: i64,
    ) -> Result<Option<AbortedTxn>> {
        let all = self.all(segments)?;
        let at = all.binary_search_by_key(&(producer_id, marker), |txn| (txn.producer_id, txn.last_offset));
        Ok(at.ok().and_then(|at| all.get(at)).copied())
    }
}

fn sorted(mut aborted: Vec<AbortedTxn>) -> Vec<AbortedTxn> {
    aborted.sort_by_key(|txn| (txn.producer_id, txn.last_offset));
    aborted
}

/// Goes through all batches. They have checksums, and the files beside the log have none; behind a damaged batch the files are
/// all there is.
fn ask_batches(segments: &[Arc<Segment>], told: &[AbortedTxn]) -> Result<Vec<AbortedTxn>> {
    let (mut aborted, mut producers, mut is_whole) = (Vec::new(), Producers::default(), true);
    for segment in segments {
        let base = segment.base_offset();
        let file = segment.log().file();
        let scan = file.with(|file| replay_file(file, base, i64::MIN, &mut producers, &mut aborted));
        let scan = scan.map_err(|error| Error::io("read", segment.log().path(), error))?;
        is_whole &= scan.position >= segment.bytes();
    }
    let mut all = if is_whole { Vec::new() } else { told.to_vec() };
    all.extend(aborted);
    // One marker, one transaction; what a file says of it comes first.
    all.sort_by_key(|txn| txn.last_offset);
    all.dedup_by_key(|txn| txn.last_offset);
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{BatchSpec, BatchView, RecordRef, encode_batch};

    fn txn(producer_id: i64, first_offset: i64, last_offset: i64) -> AbortedTxn {
        AbortedTxn { producer_id, first_offset, last_offset, last_stable_offset: last_offset + 1 }
    }

    /// The header of a batch of one record.
    fn header(producer_id: i64, base_offset: i64, transactional: bool) -> BatchHeader {
        let spec = BatchSpec { producer: Some((producer_id, 0, 0)), transactional, ..BatchSpec::new(base_offset) };
        let mut bytes = Vec::new();
        encode_batch(&mut bytes, &spec, [RecordRef::new(None, Some(b"v"))]).unwrap();
        *BatchView::parse(&bytes).unwrap().header()
    }

    /// Told of as the markers come, of two producers in turn.
    fn sample() -> (Vec<AbortedTxn>, Aborted) {
        let all = vec![txn(7, 3, 10), txn(5, 0, 12), txn(7, 20, 25), txn(5, 13, 30), txn(7, 40, 41)];
        (all.clone(), Aborted::known(all))
    }

    #[test]
    fn a_batch_is_found_as_by_looking_at_all_transactions() {
        let (all, aborted) = sample();
        let mut found = 0;
        for producer_id in 4..9 {
            for offset in 0..50 {
                let spans = |txn: &AbortedTxn| {
                    txn.producer_id == producer_id && txn.first_offset <= offset && offset < txn.last_offset
                };
                let expected = all.iter().any(spans);
                let has = |transactional| aborted.has(&[], &header(producer_id, offset, transactional)).unwrap();
                assert_eq!((has(true), has(false)), (expected, false), "{producer_id} {offset}");
                found += usize::from(expected);
            }
        }
        assert_eq!(found, 7 + 12 + 5 + 17 + 1);
    }

    #[test]
    fn a_marker_leads_to_the_transaction_that_it_ended() {
        let (all, aborted) = sample();
        for txn in all {
            assert_eq!(aborted.ended_at(&[], txn.producer_id, txn.last_offset).unwrap(), Some(txn));
            assert_eq!(aborted.ended_at(&[], txn.producer_id + 1, txn.last_offset).unwrap(), None);
            assert_eq!(aborted.ended_at(&[], txn.producer_id, txn.last_offset - 1).unwrap(), None);
        }
    }
}
