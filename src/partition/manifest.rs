//! The partition manifest (`topiclog.partition.{0,1}`): the authority on which segments exist.
//!
//! JSON in the checksummed frame of [`crate::io::frame`]; generation g lies in slot g mod 2. No Kafka checkpoint, index
//! or file name overrules it. It changes at roll, seal, recovery and clean close, when the log start moves and when
//! compaction replaces segments. Version 2 added what compaction and retention need; version 1 is read as it is.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::ids::Uuid;
use crate::io::replace::TwoSlots;
use crate::segment::{FileCheck, SegmentFacts, State};

/// Slots are called this, with `.0` and `.1`.
pub(crate) const NAME: &str = "topiclog.partition";

/// The two copies in a partition's directory.
pub(crate) fn slots(directory: &Path) -> TwoSlots<'_> {
    TwoSlots { directory, name: NAME, kind: 2, version: 2, payload_bytes_max: 16 << 20 }
}

/// What the manifest says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    pub(crate) store_id: Uuid,
    pub(crate) topic_id: Uuid,
    pub(crate) partition: u32,
    /// First offset that may be read.
    pub(crate) log_start: i64,
    /// Leader epochs: `(epoch, first offset)`, both rising.
    pub(crate) epochs: Vec<(i32, i64)>,
    /// Rising by base offset; the last one is the active segment.
    pub(crate) segments: Vec<SegmentEntry>,
    /// Segments behind a cut, on their way into quarantine: the next open goes on with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) removing: Vec<i64>,
    /// Below this offset compaction has been (Kafka's `cleaner-offset-checkpoint`).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) clean_end: i64,
    /// Past the highest tombstone that compaction dropped.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) tombstone_floor: i64,
    /// When compaction has tombstones or markers to drop although nothing was appended, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) next_horizon_ms: Option<i64>,
    /// The first tombstone whose time is over and that stays for its readers alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) held_tombstone: Option<i64>,
    /// The snapshot of the producers, where a broker wrote to this log; ours change nothing of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) producers: Option<FileCheck>,
    /// Segments that are no longer listed, and whose files are on their way out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pending: Option<Pending>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out a reference")]
fn is_zero(offset: &i64) -> bool {
    *offset == 0
}

/// A change of the set of segments that holds, and whose renames may not have all happened yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pending {
    /// Base offsets of the segments that go.
    pub(crate) replace: Vec<i64>,
    /// Base offset of the segment that compaction made of them; none if they were deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) by: Option<i64>,
}

/// One segment in the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SegmentEntry {
    pub(crate) base: i64,
    pub(crate) state: EntryState,
    /// Published bytes; of an active segment only as of the last clean state.
    pub(crate) bytes: u64,
    /// One past the last offset, likewise.
    pub(crate) next: i64,
    pub(crate) batches: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) max_timestamp: Option<i64>,
    /// Checksum of the whole log, once sealed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) crc32: Option<u32>,
    /// The offset index of the active segment as the last close wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) index: Option<FileCheck>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) time_index: Option<FileCheck>,
    /// The index of aborted transactions, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) txn_index: Option<FileCheck>,
    /// Whether all bytes of a closed segment were synced when it was listed as closed.
    #[serde(default)]
    pub(crate) synced: bool,
    /// The cap on unsynced bytes under which it was written; none on an `Os` topic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) max_unsynced_bytes: Option<u64>,
    /// A broker wrote it, or it was compacted: offsets may have gaps.
    #[serde(default)]
    pub(crate) foreign: bool,
    /// Wall time when it was closed, in milliseconds: no record in it arrived later, whatever its timestamp says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) closed_ms: Option<i64>,
}

/// [`State`] as the manifest spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum EntryState {
    Active,
    Closed,
    Sealed,
}

impl From<EntryState> for State {
    fn from(state: EntryState) -> Self {
        match state {
            EntryState::Active => State::Active,
            EntryState::Closed => State::Closed,
            EntryState::Sealed => State::Sealed,
        }
    }
}

impl SegmentEntry {
    /// A new, empty, active segment.
    pub(crate) fn empty(base: i64, max_unsynced_bytes: Option<u64>) -> Self {
        Self {
            base,
            state: EntryState::Active,
            bytes: 0,
            next: base,
            batches: 0,
            max_timestamp: Some(-1),
            crc32: None,
            index: None,
            time_index: None,
            txn_index: None,
            synced: false,
            max_unsynced_bytes,
            foreign: false,
            closed_ms: None,
        }
    }

    pub(crate) fn facts(&self) -> SegmentFacts {
        SegmentFacts {
            base_offset: self.base,
            state: self.state.into(),
            bytes: self.bytes,
            next_offset: self.next,
            batches: self.batches,
            max_timestamp: self.max_timestamp,
            is_foreign: self.foreign,
            crc32: self.crc32,
            index: self.index,
            time_index: self.time_index,
        }
    }
}

impl Manifest {
    /// The manifest of a new, empty partition.
    pub(crate) fn empty(store_id: Uuid, topic_id: Uuid, partition: u32, max_unsynced_bytes: Option<u64>) -> Self {
        Self {
            store_id,
            topic_id,
            partition,
            log_start: 0,
            epochs: vec![(0, 0)],
            segments: vec![SegmentEntry::empty(0, max_unsynced_bytes)],
            removing: Vec::new(),
            clean_end: 0,
            tombstone_floor: 0,
            next_horizon_ms: None,
            held_tombstone: None,
            producers: None,
            pending: None,
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a manifest has string keys only, so JSON can hold it")
    }

    /// Parses a payload and checks what its parts promise each other. The text says what is wrong.
    pub(crate) fn decode(payload: &[u8]) -> Result<Self, String> {
        let manifest: Self = serde_json::from_slice(payload).map_err(|error| error.to_string())?;
        manifest.check()?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), String> {
        let (last, older) = self.segments.split_last().ok_or("no segment is listed")?;
        if last.state != EntryState::Active || older.iter().any(|entry| entry.state == EntryState::Active) {
            return Err("exactly the last segment must be active".into());
        }
        let in_order = |pair: &[SegmentEntry]| matches!(pair, [a, b] if a.base < b.base && a.next <= b.base);
        if !self.segments.windows(2).all(in_order) {
            return Err("the segments are not in order".into());
        }
        if self.removing.iter().any(|base| self.segments.iter().any(|entry| entry.base == *base)) {
            return Err("a segment is listed and being removed".into());
        }
        if let Some(pending) = &self.pending {
            let stays = |base: &i64| self.segments.iter().any(|entry| entry.base == *base) && pending.by != Some(*base);
            if pending.replace.is_empty() || pending.replace.iter().any(stays) {
                return Err("a segment is listed and being replaced".into());
            }
            if pending.by.is_some_and(|by| !pending.replace.contains(&by)) {
                return Err("a segment replaces others without taking the place of one".into());
            }
        }
        if self.clean_end < 0 || self.tombstone_floor < 0 {
            return Err("a bound of compaction is negative".into());
        }
        if self.segments.iter().any(|entry| entry.base < 0 || entry.next < entry.base) {
            return Err("a segment ends before it begins".into());
        }
        if self.segments.iter().any(|entry| entry.bytes > i32::MAX as u64) {
            return Err("a segment has more than 2^31-1 bytes".into());
        }
        let rises = |pair: &[(i32, i64)]| matches!(pair, [a, b] if a.0 < b.0 && a.1 < b.1);
        if self.epochs.is_empty() || !self.epochs.windows(2).all(rises) {
            return Err("the leader epochs do not rise".into());
        }
        if self.epochs.iter().any(|&(epoch, start)| epoch < 0 || start < 0) || self.log_start < 0 {
            return Err("an epoch or offset is negative".into());
        }
        Ok(())
    }

    /// The active segment. There always is one.
    pub(crate) fn active(&self) -> Option<&SegmentEntry> {
        self.segments.last()
    }

    /// The newest leader epoch.
    pub(crate) fn epoch(&self) -> i32 {
        self.epochs.last().map_or(0, |&(epoch, _)| epoch)
    }

    /// Begins a new leader epoch at an offset (Kafka's epoch cache: entries at or behind it go). The last of all epochs, which
    /// only a broker's log can have come to, goes on.
    pub(crate) fn begin_epoch(&mut self, at: i64) {
        let epoch = self.epoch().saturating_add(1);
        self.epochs.retain(|&(_, start)| start < at);
        if self.epochs.last().is_none_or(|&(last, _)| last < epoch) {
            self.epochs.push((epoch, at));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Manifest {
        let mut manifest = Manifest::empty(Uuid::from_bytes([1; 16]), Uuid::from_bytes([2; 16]), 3, Some(8));
        let mut sealed = SegmentEntry::empty(0, None);
        (sealed.state, sealed.next, sealed.crc32) = (EntryState::Sealed, 10, Some(7));
        manifest.segments = vec![sealed, SegmentEntry::empty(10, None)];
        manifest
    }

    fn check_refused(change: impl FnOnce(&mut Manifest)) {
        let mut manifest = sample();
        change(&mut manifest);
        assert!(Manifest::decode(&manifest.encode()).is_err(), "{manifest:?}");
    }

    #[test]
    fn a_manifest_is_read_back() {
        assert_eq!(Manifest::decode(&sample().encode()), Ok(sample()));
    }

    #[test]
    fn a_contradiction_is_refused() {
        check_refused(|manifest| manifest.segments.clear());
        check_refused(|manifest| manifest.segments.reverse());
        check_refused(|manifest| manifest.segments[0].state = EntryState::Active);
        check_refused(|manifest| manifest.segments[0].next = 11);
        check_refused(|manifest| manifest.segments[1].next = 3);
        check_refused(|manifest| manifest.epochs.clear());
        check_refused(|manifest| manifest.epochs = vec![(1, 0), (1, 5)]);
        check_refused(|manifest| manifest.log_start = -1);
    }

    #[test]
    fn an_unknown_field_of_a_newer_format_is_refused() {
        let text = String::from_utf8(sample().encode()).unwrap().replacen('{', "{\"surprise\":1,", 1);
        assert!(Manifest::decode(text.as_bytes()).is_err());
    }

    #[test]
    fn a_new_epoch_replaces_one_without_records() {
        let mut manifest = sample();
        manifest.begin_epoch(5);
        manifest.begin_epoch(5);
        assert_eq!(manifest.epochs, [(0, 0), (2, 5)]);
        manifest.begin_epoch(0);
        assert_eq!(manifest.epochs, [(3, 0)]);
    }

    #[test]
    fn a_segment_is_not_both_listed_and_on_its_way_out() {
        let mut manifest = sample();
        manifest.removing = vec![20, 30];
        assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest));
        check_refused(|manifest| manifest.removing = vec![10]);
    }

    #[test]
    fn numbers_that_no_log_has_are_refused() {
        check_refused(|manifest| manifest.segments[0].bytes = 1 << 31);
        check_refused(|manifest| manifest.segments[0].base = -1);
        check_refused(|manifest| manifest.segments[0].next = -1);
        check_refused(|manifest| manifest.epochs = vec![(-1, 0)]);
        check_refused(|manifest| manifest.epochs = vec![(0, 0), (1, 0)]);
        check_refused(|manifest| manifest.epochs = vec![(0, -4)]);
    }

    #[test]
    fn epochs_go_up_for_ever_and_never_wrap() {
        let mut manifest = sample();
        for (at, epoch) in [(3, 1), (9, 2), (12, 3)] {
            manifest.begin_epoch(at);
            assert_eq!(manifest.epoch(), epoch);
        }
        assert_eq!(manifest.epochs, [(0, 0), (1, 3), (2, 9), (3, 12)]);
        manifest.epochs = vec![(i32::MAX, 0)];
        manifest.begin_epoch(5);
        assert_eq!(
            (manifest.epochs.as_slice(), manifest.check()),
            (&[(i32::MAX, 0)][..], Ok(())),
            "it can be read back"
        );
    }

    #[test]
    fn a_new_partition_has_one_empty_active_segment() {
        let manifest = Manifest::empty(Uuid::from_bytes([1; 16]), Uuid::from_bytes([2; 16]), 0, Some(8));
        assert_eq!(manifest.check(), Ok(()));
        let active = manifest.active().unwrap();
        assert_eq!((active.base, active.bytes, active.next, active.state), (0, 0, 0, EntryState::Active));
        let facts = active.facts();
        assert_eq!((facts.state, facts.max_timestamp, facts.crc32), (State::Active, Some(-1), None));
        assert_eq!((manifest.epoch(), active.max_unsynced_bytes), (0, Some(8)));
    }
}
