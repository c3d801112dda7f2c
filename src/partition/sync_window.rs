//! How much may wait for a sync behind an append, how long, and who syncs then: the windows of the durability levels, and
//! the cap by which recovery tells rot from a torn tail.
//!
//! It asks for syncs; how one is run and shared is known to the [group commit](super::sync) and the log.

use std::sync::Arc;

use super::settings::LogSettings;
use super::writer::{Placed, Writer};
use super::{Durability, Log};
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::planted::{Bug, is};
use crate::sync::atomic::Ordering;

/// What an append waits for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Awaited {
    /// How many bytes may wait for a sync; any number if there is no bound.
    pub(super) window_bytes: Option<u64>,
    /// So many keys wait for the key index that upkeep is to be woken.
    pub(super) keys_wait: bool,
}

impl Awaited {
    /// Whether it waits for its own sync.
    pub(crate) fn is_sync(self) -> bool {
        self.window_bytes == Some(0)
    }
}

/// What may wait for a sync behind an append: so many bytes, and so long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SyncWindow {
    /// 0 if the append waits for its own sync.
    pub(super) bytes: u64,
    pub(super) ms: u64,
}

impl SyncWindow {
    /// `None` if nobody syncs behind it.
    #[inline]
    pub(super) fn behind(append: Durability, settings: &LogSettings) -> Option<Self> {
        match append {
            Durability::Sync => Some(Self { bytes: 0, ms: u64::MAX }),
            Durability::Interval { bytes, ms } => Some(Self { bytes, ms }),
            Durability::Os => Self::of_os(settings),
        }
    }

    /// An `Os` append to a topic of a stronger level is synced behind, within the limits of [`Durability::INTERVAL`].
    pub(super) fn of_os(settings: &LogSettings) -> Option<Self> {
        (settings.durability != Durability::Os).then_some(Self { bytes: 1 << 20, ms: 50 })
    }
}

impl Writer {
    /// How many bytes of the active segment may wait for a sync, as its manifest says.
    #[inline]
    pub(super) fn promised_cap(&self) -> Option<u64> {
        self.manifest.segments.last().and_then(|active| active.max_unsynced_bytes)
    }
}

impl Log {
    /// What has to happen after the bytes were published, before the caller may be told.
    #[inline]
    pub(crate) fn acknowledge(&self, awaited: Awaited, placed: &Placed) -> Result<()> {
        if awaited.keys_wait {
            (self.env.wake_upkeep)(0);
        }
        awaited.window_bytes.map_or(Ok(()), |window_bytes| self.keep_window(window_bytes, placed))
    }

    /// At most `window_bytes` may wait for a sync.
    fn keep_window(&self, window_bytes: u64, placed: &Placed) -> Result<()> {
        if window_bytes == 0 {
            let synced = self.sync_to(placed.next_offset);
            if is(Bug::FailedSyncIsDefinite) {
                return synced.map_err(|source| Error::io("sync", &self.directory, source));
            }
            return synced.map_err(|source| Error::OutcomeUnknown {
                partition: self.id.clone(),
                offset: placed.offset.into(),
                source,
            });
        }
        let unsynced = self.unsynced_bytes();
        if unsynced < window_bytes {
            return Ok(());
        }
        if self.env.has_upkeep && unsynced < window_bytes.saturating_mul(2) {
            self.sync_due_ms.store(0, Ordering::Release);
            (self.env.wake_upkeep)(0);
            return Ok(());
        }
        // The record is in the page cache, as its level promises; a failed sync poisons the log and is reported by the
        // next call, as it would be if the upkeep thread had run it.
        self.sync_to(placed.next_offset).ok();
        Ok(())
    }

    /// Something was appended that is to be synced within so many milliseconds.
    #[cold]
    pub(super) fn note_window(&self, ms: u64) {
        self.window_ms.fetch_min(ms, Ordering::SeqCst);
        self.sync_due_ms.fetch_min(self.monotonic_ms().saturating_add(ms), Ordering::SeqCst);
        if self.env.has_upkeep {
            (self.env.wake_upkeep)(ms.max(1));
        }
    }

    /// How long what was appended may still wait for a sync; `None` if nobody has to sync behind it, or none is tried any more.
    pub(crate) fn sync_due_in(&self) -> Option<u64> {
        let due_ms = self.sync_due_ms.load(Ordering::SeqCst);
        let is_due = due_ms != u64::MAX && self.unsynced_bytes() > 0 && !self.poisoned.load(Ordering::Acquire);
        is_due.then(|| due_ms.saturating_sub(self.monotonic_ms()))
    }

    /// Syncs what was appended, if it has waited as long as it may. Returns how many bytes that were.
    pub(crate) fn sync_if_due(&self) -> Result<u64> {
        if self.env.read_only || self.is_closed() || self.sync_due_in() != Some(0) {
            return Ok(0);
        }
        let unsynced = self.unsynced_bytes();
        self.sync_to(self.end_offset()).map_err(|source| self.sync_failed(&source))?;
        Ok(unsynced)
    }

    /// On `Sync` and `Interval` topics at most `max_unsynced_bytes` wait for a sync: that is what lets recovery tell rot
    /// from a torn tail.
    pub(super) fn keep_cap(&self, settings: &LogSettings, bytes: u64) -> Result<()> {
        let Some(cap) = settings.unsynced_cap() else { return Ok(()) };
        let unsynced = self.unsynced_bytes();
        if unsynced == 0 || unsynced + bytes <= cap {
            return Ok(());
        }
        self.sync_to(self.end_offset()).map_err(|source| self.sync_failed(&source))
    }

    /// What may wait for a sync was altered. Recovery judges a segment by what the manifest says of it, so the new bound holds
    /// from a segment on that says so.
    #[cold]
    pub(super) fn promise_cap(&self, writer: &mut Writer, now_ms: Timestamp) -> Result<()> {
        let settings = Arc::clone(&writer.settings);
        if writer.active.bytes() > 0 {
            return self.roll(writer, &settings, now_ms);
        }
        let mut manifest = writer.manifest.clone();
        if let Some(active) = manifest.segments.last_mut() {
            active.max_unsynced_bytes = settings.unsynced_cap();
        }
        self.commit_manifest(writer, manifest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Record;
    use crate::store::Store;
    use crate::topic::TopicConfig;

    fn settings() -> LogSettings {
        TopicConfig::default().log_settings()
    }

    #[test]
    fn how_much_may_wait_for_a_sync() {
        let topic = |durability| LogSettings { durability, ..settings() };
        let window =
            |append, of_topic| SyncWindow::behind(append, &topic(of_topic)).map(|window| (window.bytes, window.ms));
        let interval = Durability::Interval { bytes: 4096, ms: 9 };
        assert_eq!(window(Durability::Sync, Durability::Os), Some((0, u64::MAX)));
        assert_eq!(window(interval, Durability::Sync), Some((4096, 9)));
        assert_eq!(window(interval, Durability::Os), Some((4096, 9)));
        assert_eq!(window(Durability::Os, Durability::Os), None, "nobody syncs behind");
        assert_eq!(window(Durability::Os, Durability::Sync), Some((1 << 20, 50)));
        assert_eq!(window(Durability::Os, interval), Some((1 << 20, 50)));
    }

    /// Somebody may append while the sync fails that would have covered it: upkeep would else ask for another without a pause.
    #[test]
    fn nothing_is_due_behind_a_failed_sync() {
        let store = Store::in_memory().unwrap();
        let config = TopicConfig::default().durability(Durability::INTERVAL);
        let partition = store.create_topic("t", config).unwrap().partition(0).unwrap();
        partition.append(Record::of_value("v")).unwrap();
        let log = &partition.log;
        assert!(log.sync_due_in().is_some());
        log.poison("sync: it failed");
        log.note_window(0);
        assert_eq!((log.sync_due_in(), log.sync_if_due().unwrap()), (None, 0));
    }
}
