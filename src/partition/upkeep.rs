//! One bounded step of upkeep of one log: what waits for a sync, what waits for its seal, space that nobody used.

use super::space_ahead::SpaceAhead;
use super::writer::PanicGuard;
use super::{Durability, Log, TRIM_AFTER_MS};
use crate::error::Result;
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
    pub(crate) synced_bytes: u64,
    pub(crate) sealed: Option<Sealed>,
    pub(crate) trimmed: bool,
}

impl Log {
    /// One bounded step of upkeep: windows of `Interval`, the floor, one seal, space that was taken too early.
    pub(crate) fn upkeep(&self) -> Result<UpkeepStep> {
        let mut step = UpkeepStep::default();
        if self.env.read_only || self.is_closed() {
            return Ok(step);
        }
        let settings = self.settings();
        let now = self.monotonic_ms();
        let since_sync = now.saturating_sub(self.last_sync_ms.load(Ordering::Relaxed));
        let window = match settings.durability {
            Durability::Interval { bytes, ms } => Some((bytes, ms)),
            Durability::Sync => Some((1 << 20, 50)),
            Durability::Os => None,
        };
        let unsynced = self.unsynced_bytes();
        if let Some((bytes, ms)) = window
            && unsynced > 0
            && (unsynced >= bytes || since_sync >= ms)
        {
            self.sync_to(self.end_offset()).map_err(|source| self.sync_failed(&source))?;
            step.synced_bytes = unsynced;
        }
        let seal = match self.oldest_closed() {
            Some(segment) => Some((self.compute_seal(&segment)?, segment)),
            None => None,
        };
        let Some(mut writer) = self.writer.try_lock() else { return Ok(step) };
        if self.is_closed() || self.poison_error().is_some() {
            return Ok(step);
        }
        let _guard = PanicGuard(self);
        if let Some((seal, segment)) = seal {
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
