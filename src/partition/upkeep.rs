//! One bounded step of upkeep of one log: what waits for its seal, and space that nobody used.

use std::sync::Arc;

use super::space_ahead::SpaceAhead;
use super::writer::PanicGuard;
use super::{Log, TRIM_AFTER_MS};
use crate::error::Result;
use crate::segment::{Segment, State};
use crate::sync::atomic::Ordering;

/// A segment that got its seal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sealed {
    pub(crate) base: i64,
    pub(crate) next: i64,
    pub(crate) bytes: u64,
}

/// What one step of upkeep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct UpkeepStep {
    pub(crate) sealed: Option<Sealed>,
    pub(crate) trimmed: bool,
}

impl Log {
    /// One bounded step of upkeep: one seal, space that was taken too early. A seal reads a whole segment, and calls `between`
    /// now and then, as others wait for their syncs.
    pub(crate) fn upkeep(&self, between: &mut dyn FnMut()) -> Result<UpkeepStep> {
        let mut step = UpkeepStep::default();
        if self.env.read_only || self.is_closed() {
            return Ok(step);
        }
        let now = self.monotonic_ms();
        let seal = match self.oldest_closed() {
            Some(segment) => match self.compute_seal(&segment, between) {
                // It was taken out of the log while it was read, and its files with it.
                Err(_) if !self.holds(&segment) => None,
                seal => Some((seal?, segment)),
            },
            None => None,
        };
        let Some(mut writer) = self.writer.try_lock() else { return Ok(step) };
        if self.is_closed() || self.poison_error().is_some() {
            return Ok(step);
        }
        let _guard = PanicGuard(self);
        // Compaction may have put another of the same base offset in its place.
        if let Some((seal, segment)) = seal.filter(|(_, segment)| self.holds(segment)) {
            self.commit_seal(&mut writer, &segment, seal)?;
            let (base, next, bytes) = (segment.base_offset(), segment.next_offset(), segment.bytes());
            step.sealed = Some(Sealed { base, next, bytes });
        }
        let is_idle = self.note_activity(now);
        let idle = now.saturating_sub(self.last_append_ms.load(Ordering::Relaxed));
        if writer.active.log().allocated_to() > writer.active.bytes() && is_idle && idle >= TRIM_AFTER_MS {
            writer.active.log().trim()?;
            writer.space_ahead = SpaceAhead::default();
            step.trimmed = true;
        }
        Ok(step)
    }

    /// Whether the log still has this segment, and it waits for its seal.
    fn holds(&self, segment: &Arc<Segment>) -> bool {
        let set = self.snapshot();
        segment.state() == State::Closed && set.segments.iter().any(|one| Arc::ptr_eq(one, segment))
    }

    /// Whether nothing was appended since the last call that saw something new.
    fn note_activity(&self, now_ms: u64) -> bool {
        let written = self.written_bytes.load(Ordering::Acquire);
        let seen = self.seen_bytes.swap(written, Ordering::AcqRel);
        if seen != written {
            self.last_append_ms.store(now_ms, Ordering::Relaxed);
        }
        seen == written
    }
}
