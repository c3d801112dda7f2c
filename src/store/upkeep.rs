//! Upkeep: the same bounded step, by hand or on one thread.

use std::sync::Weak;
use std::time::Duration;

use super::{Signal, Store, StoreInner};
use crate::error::{Error, Result};
use crate::partition::Durability;
use crate::sync::atomic::Ordering;

/// What one [`Store::tick`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TickReport {
    /// Bytes that were synced because their window was over.
    pub synced_bytes: u64,
    /// Closed segments that got their seal.
    pub sealed_segments: usize,
    /// Partitions that gave preallocated space back.
    pub trimmed: usize,
}

impl TickReport {
    /// Whether there was nothing to do.
    pub fn is_idle(&self) -> bool {
        *self == Self::default()
    }
}

/// How long the thread sleeps when no window asks for less.
const IDLE_WAIT: Duration = Duration::from_secs(1);

impl Store {
    /// One bounded step of upkeep over every partition: windows of `Interval` that are over are synced, the recovery floor
    /// moves, one closed segment of each partition is sealed, preallocated space that was not used for a minute is given
    /// back. With [`Upkeep::Manual`](super::Upkeep::Manual) call it as often as the windows ask; beside the thread it does
    /// no harm.
    ///
    /// # Errors
    /// The first that a partition met; the others had their step all the same.
    ///
    /// ```
    /// use topiclog::Store;
    /// let store = Store::in_memory()?;
    /// assert!(store.tick()?.is_idle());
    /// # store.close()?;
    /// # Ok::<(), topiclog::Error>(())
    /// ```
    pub fn tick(&self) -> Result<TickReport> {
        self.inner.check_open()?;
        self.inner.tick()
    }

    /// What the upkeep thread met since the last call, if anything. [`Store::close`] returns it as well.
    pub fn take_upkeep_error(&self) -> Option<Error> {
        self.inner.upkeep_error.lock().take()
    }
}

impl StoreInner {
    fn tick(&self) -> Result<TickReport> {
        let mut report = TickReport::default();
        let mut first_error = None;
        let topics: Vec<_> = self.topics.read().values().cloned().collect();
        for partition in topics.iter().flat_map(|topic| topic.partitions.values()) {
            match partition.log.upkeep() {
                Ok(step) => {
                    report.synced_bytes += step.synced_bytes;
                    report.sealed_segments += step.sealed;
                    report.trimmed += usize::from(step.trimmed);
                }
                Err(error) => {
                    first_error.get_or_insert(error);
                }
            }
        }
        first_error.map_or(Ok(report), Err)
    }

    /// How long the thread may sleep: half of the shortest window.
    fn wait(&self) -> Duration {
        let topics = self.topics.read();
        let windows = topics.values().map(|topic| match topic.config.read().durability_level() {
            Durability::Interval { ms, .. } => Duration::from_millis((ms / 2).max(1)),
            Durability::Sync | Durability::Os => IDLE_WAIT,
        });
        windows.min().unwrap_or(IDLE_WAIT)
    }

    pub(super) fn start_upkeep(self: &std::sync::Arc<Self>) -> Result<()> {
        let weak = std::sync::Arc::downgrade(self);
        let signal = std::sync::Arc::clone(&self.signal);
        let spawned =
            crate::sync::thread::Builder::new().name("topiclog-upkeep".into()).spawn(move || run(&weak, &signal));
        let thread = spawned.map_err(|error| Error::io("start the upkeep thread of", &self.root, error))?;
        *self.upkeep_thread.lock() = Some(thread);
        Ok(())
    }
}

/// Holds no handle of the store while it sleeps, so that the last one dropped ends it.
fn run(store: &Weak<StoreInner>, signal: &Signal) {
    loop {
        let Some(inner) = store.upgrade() else { return };
        if inner.closed.load(Ordering::Acquire) {
            return;
        }
        if let Err(error) = inner.tick() {
            inner.upkeep_error.lock().get_or_insert(error);
        }
        let wait = inner.wait();
        drop(inner);
        if signal.wait(wait) {
            return;
        }
    }
}

impl Signal {
    /// There is something to do.
    pub(crate) fn wake(&self) {
        let mut state = self.state.lock();
        state.woken = true;
        self.changed.notify_one();
    }

    pub(super) fn stop(&self) {
        let mut state = self.state.lock();
        state.stop = true;
        self.changed.notify_all();
    }

    /// Sleeps until woken or until the time is over; true if the thread has to end.
    fn wait(&self, time: Duration) -> bool {
        let mut state = self.state.lock();
        if !state.woken && !state.stop {
            self.changed.wait_for(&mut state, time);
        }
        state.woken = false;
        state.stop
    }
}
