//! How long is left of a wait.

use std::time::Duration;

use super::Clock;

/// When a wait is over. One of no length asks no clock: who polls in a circle has no time for that.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    end: Option<Duration>,
}

impl Deadline {
    pub(crate) fn after(clock: &dyn Clock, timeout: Duration) -> Self {
        let end = (!timeout.is_zero()).then(|| clock.monotonic().saturating_add(timeout));
        Self { end }
    }

    /// Nothing, once it is over.
    pub(crate) fn left(self, clock: &dyn Clock) -> Duration {
        self.end.map_or(Duration::ZERO, |end| end.saturating_sub(clock.monotonic()))
    }
}
