//! Time: the wall clock that stamps records, and a monotonic clock for intervals.
//!
//! Nothing else in the crate asks the operating system for the time, so a [`ManualClock`] decides what every timer,
//! roll and upkeep step sees.

pub(crate) mod deadline;
pub(crate) mod notify;

use std::fmt;
use std::time::Duration;

use crate::sync::atomic::{AtomicI64, Ordering};

/// Milliseconds since 1970-01-01 UTC, as Kafka stores them. `-1` means "none".
pub type Timestamp = i64;

/// Where time comes from.
pub trait Clock: Send + Sync + fmt::Debug {
    /// The wall clock, in milliseconds since 1970-01-01 UTC. It may jump.
    fn now_ms(&self) -> Timestamp;
    /// Time since some fixed point. It never goes back; intervals are measured with it.
    fn monotonic(&self) -> Duration;
    /// Whether time passes only when somebody says so. Nothing is waited for on such a clock: there is nobody for whom it
    /// would pass meanwhile.
    fn is_manual(&self) -> bool {
        false
    }
}

/// The clocks of the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that asks the operating system")]
    fn now_ms(&self) -> Timestamp {
        let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        since_epoch.map_or(0, |elapsed| Timestamp::try_from(elapsed.as_millis()).unwrap_or(Timestamp::MAX))
    }

    #[expect(clippy::disallowed_methods, reason = "this is the one place that asks the operating system")]
    fn monotonic(&self) -> Duration {
        static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
        START.get_or_init(std::time::Instant::now).elapsed()
    }
}

/// A clock that moves only when it is told to, for tests.
///
/// ```
/// use topiclog::clock::{Clock, ManualClock};
/// let clock = ManualClock::new(1_700_000_000_000);
/// clock.advance_ms(500);
/// assert_eq!(clock.now_ms(), 1_700_000_000_500);
/// ```
#[derive(Debug)]
pub struct ManualClock {
    wall_ms: AtomicI64,
    monotonic_ms: AtomicI64,
}

impl ManualClock {
    /// A clock that stands at this wall time.
    pub fn new(wall_ms: Timestamp) -> Self {
        Self { wall_ms: AtomicI64::new(wall_ms), monotonic_ms: AtomicI64::new(0) }
    }

    /// Lets time pass: both clocks move forward.
    pub fn advance_ms(&self, by_ms: u32) {
        self.wall_ms.fetch_add(i64::from(by_ms), Ordering::SeqCst);
        self.monotonic_ms.fetch_add(i64::from(by_ms), Ordering::SeqCst);
    }

    /// Sets the wall clock alone, as an administrator or a time server would: forwards or back.
    pub fn jump_to_ms(&self, wall_ms: Timestamp) {
        self.wall_ms.store(wall_ms, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now_ms(&self) -> Timestamp {
        self.wall_ms.load(Ordering::SeqCst)
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.monotonic_ms.load(Ordering::SeqCst).try_into().unwrap_or(0))
    }

    fn is_manual(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_of_the_wall_clock_does_not_move_the_other() {
        let clock = ManualClock::new(1000);
        clock.advance_ms(50);
        clock.jump_to_ms(-7);
        assert_eq!((clock.now_ms(), clock.monotonic()), (-7, Duration::from_millis(50)));
        clock.advance_ms(3);
        assert_eq!((clock.now_ms(), clock.monotonic()), (-4, Duration::from_millis(53)));
    }

    #[test]
    fn the_systems_clocks_go_forward() {
        let (wall, monotonic) = (SystemClock.now_ms(), SystemClock.monotonic());
        assert!(wall > 1_700_000_000_000, "after 2023, in milliseconds");
        assert!(SystemClock.monotonic() >= monotonic);
    }
}
