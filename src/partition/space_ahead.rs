//! How much zeroed space is taken ahead of the log, and when.

use super::Durability;
use super::writer::Writer;

/// Without syncs, space is taken once this part of a step was appended.
const BEGIN_AT: u64 = 64;

/// What says how much space is taken ahead, since the file was opened, rolled or trimmed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SpaceAhead {
    appended_bytes: u64,
    /// `Sync` appends: the first alone is no reason to take space.
    sync_appends: u64,
    /// The disk had no room: not asked again before so much was appended.
    not_before_bytes: u64,
}

impl Writer {
    /// Takes zeroed space ahead of the log. A sync then need not write the file's length, so that the second `Sync` append
    /// takes a whole step; others write faster into it, and take as much as they have appended, so that a quiet partition
    /// takes none and none takes much more than it needs.
    #[inline]
    pub(super) fn take_space_ahead(&mut self, bytes: u64, durability: Durability) {
        let ahead = &mut self.space_ahead;
        ahead.appended_bytes += bytes;
        ahead.sync_appends += u64::from(durability == Durability::Sync);
        if self.active.bytes() + bytes > self.active.log().allocated_to() {
            self.take_space_now(bytes, durability);
        }
    }

    fn take_space_now(&mut self, bytes: u64, durability: Durability) {
        let (ahead, settings) = (&mut self.space_ahead, &self.settings);
        let step = match durability {
            Durability::Sync if ahead.sync_appends < 2 => 0,
            Durability::Sync => settings.preallocate_bytes,
            _ if ahead.appended_bytes < settings.preallocate_bytes / BEGIN_AT => 0,
            _ => settings.preallocate_bytes.min(ahead.appended_bytes),
        };
        if step == 0 || ahead.appended_bytes < ahead.not_before_bytes {
            return;
        }
        let end = self.active.bytes() + bytes;
        if end > settings.segment_bytes {
            return;
        }
        let to = (end + step).min(settings.segment_bytes);
        if !self.active.log().allocate(to) {
            ahead.not_before_bytes = ahead.appended_bytes + settings.preallocate_bytes / BEGIN_AT;
        }
    }
}
