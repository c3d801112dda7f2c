//! Waiting for what a poll may find.

use std::time::Duration;

use crate::clock::notify;

/// Hears when there may be something new. Made before one looks, it misses nothing that comes after.
///
/// With feature `async` it can be awaited, on any runtime.
#[derive(Debug)]
pub struct Listener(notify::Listener);

impl Listener {
    pub(crate) fn new(listener: notify::Listener) -> Self {
        Self(listener)
    }

    /// Returns once something may have come since this listener was made or last waited, at the latest after `timeout`. It may
    /// return early: look again.
    pub fn wait(&mut self, timeout: Duration) {
        self.0.wait(timeout);
    }

    /// [`wait`](Self::wait) for a task: wakes it once something may have come.
    #[cfg(feature = "async")]
    pub fn poll_wait(&mut self, context: &mut std::task::Context<'_>) -> std::task::Poll<()> {
        self.0.poll_wait(context)
    }
}
