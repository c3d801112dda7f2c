//! Durability levels, group commit and poison.
//!
//! The first waiter syncs for all: whoever finds no sync under way runs one, everybody else waits for it and looks again.
//! After one failed sync nothing is synced or written any more: the kernel may have dropped the pages and call the next
//! sync a success.

use std::io;

use serde::{Deserialize, Serialize};

use crate::error::copy_io_error;
use crate::sync::{Condvar, Mutex};

/// What an append promises when it returns. Set per topic, and per append if need be.
///
/// | level | returns when | survives a kill | survives a power cut |
/// |---|---|---|---|
/// | `Os` | the write returned | yes | what was synced since |
/// | `Interval` | as `Os`; synced behind | yes | all but two windows |
/// | `Sync` | an `fdatasync` that covers it returned | yes | yes |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Durability {
    /// The bytes are in the page cache. They survive a kill of the process, not a power cut.
    Os,
    /// As `Os`, and synced behind: at the latest when a window of so many bytes, or so many milliseconds, is full. A
    /// power cut takes at most two windows.
    Interval {
        /// Bytes of one window; at least 4 KiB.
        bytes: u64,
        /// Milliseconds of one window; kept by `Store::tick` or the upkeep thread.
        ms: u64,
    },
    /// Synced before it returns, one `fdatasync` for all who wait. The default.
    #[default]
    Sync,
}

impl Durability {
    /// Kafka has no such level; this is the window that most want: 1 MiB or 50 ms.
    pub const INTERVAL: Durability = Durability::Interval { bytes: 1 << 20, ms: 50 };
}

/// Who syncs, who waits, and whether it ever failed.
#[derive(Debug)]
pub(crate) struct GroupCommit {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug)]
struct State {
    durable_end: i64,
    in_progress: bool,
    waiters: usize,
    failed: Option<io::Error>,
}

impl GroupCommit {
    pub(crate) fn new(durable_end: i64) -> Self {
        let state = State { durable_end, in_progress: false, waiters: 0, failed: None };
        Self { state: Mutex::new(state), ended: Condvar::new() }
    }

    /// Returns once everything below `end` is durable, or once a sync failed. `sync` makes durable all that was
    /// published before it was called and returns the end of that; it runs in one thread at a time, without the lock.
    pub(crate) fn wait_for(&self, end: i64, mut sync: impl FnMut() -> io::Result<i64>) -> io::Result<()> {
        let mut state = self.state.lock();
        loop {
            if state.durable_end >= end {
                return Ok(());
            }
            if let Some(error) = &state.failed {
                return Err(copy_io_error(error));
            }
            if state.in_progress {
                state.waiters += 1;
                self.ended.wait(&mut state);
                state.waiters -= 1;
                continue;
            }
            state.in_progress = true;
            drop(state);
            // A panic in `sync` must not leave the others waiting for ever.
            let mut outcome = Outcome { group: self, result: None };
            outcome.result = Some(sync());
            drop(outcome);
            state = self.state.lock();
        }
    }

    /// Notes what was made durable while the writer was held (at a roll, at the cap), or that it failed.
    pub(crate) fn note(&self, result: io::Result<i64>) {
        let mut state = self.state.lock();
        Self::settle(&mut state, result);
        self.ended.notify_all();
    }

    /// The sync that failed.
    pub(crate) fn failure(&self) -> Option<io::Error> {
        self.state.lock().failed.as_ref().map(copy_io_error)
    }

    fn settle(state: &mut State, result: io::Result<i64>) {
        match result {
            Ok(end) => state.durable_end = state.durable_end.max(end),
            Err(error) => {
                state.failed.get_or_insert(error);
            }
        }
    }
}

/// Ends a sync, however it went.
struct Outcome<'a> {
    group: &'a GroupCommit,
    result: Option<io::Result<i64>>,
}

impl Drop for Outcome<'_> {
    fn drop(&mut self) {
        let result = self.result.take().unwrap_or_else(|| Err(io::Error::other("the sync panicked")));
        let mut state = self.group.state.lock();
        state.in_progress = false;
        GroupCommit::settle(&mut state, result);
        if state.waiters > 0 {
            self.group.ended.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_covers_what_was_published_before_it() {
        let group = GroupCommit::new(0);
        let mut syncs = 0;
        group
            .wait_for(5, || {
                syncs += 1;
                Ok(9)
            })
            .unwrap();
        group.wait_for(9, || panic!("already durable")).unwrap();
        assert_eq!((syncs, group.state.lock().durable_end), (1, 9));
    }

    #[test]
    fn after_a_failed_sync_no_other_is_tried() {
        let group = GroupCommit::new(0);
        assert!(group.wait_for(1, || Err(io::Error::from_raw_os_error(5))).is_err());
        let error = group.wait_for(1, || panic!("a second sync")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(5));
    }

    #[test]
    fn a_panic_in_a_sync_leaves_nobody_waiting() {
        let group = GroupCommit::new(0);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            group.wait_for(1, || panic!("on purpose")).ok();
        }));
        assert!(panicked.is_err());
        assert!(group.wait_for(1, || panic!("a second sync")).is_err());
        assert!(group.wait_for(0, || panic!("already durable")).is_ok());
    }

    #[test]
    fn what_a_roll_synced_counts_for_those_who_wait() {
        let group = GroupCommit::new(3);
        group.note(Ok(7));
        group.note(Ok(5));
        assert!(group.wait_for(7, || panic!("already durable")).is_ok());
        group.note(Err(io::Error::from_raw_os_error(28)));
        group.note(Err(io::Error::from_raw_os_error(5)));
        assert_eq!(group.wait_for(8, || panic!("it failed")).unwrap_err().raw_os_error(), Some(28), "the first error");
        assert!(group.wait_for(7, || panic!("already durable")).is_ok(), "what was durable stays so");
    }

    #[test]
    fn many_waiters_share_one_sync() {
        let group = GroupCommit::new(0);
        let syncs = std::sync::atomic::AtomicUsize::new(0);
        let sync = || {
            syncs.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            std::thread::park_timeout(std::time::Duration::from_millis(20));
            Ok(100)
        };
        std::thread::scope(|scope| {
            for end in 1..=8 {
                let (group, sync) = (&group, &sync);
                scope.spawn(move || group.wait_for(end, sync).unwrap());
            }
        });
        assert_eq!(syncs.into_inner(), 1);
    }
}
