//! The facade over the lock types: `parking_lot` in production, `shuttle` where schedules are explored.
//!
//! No other module names a lock type, so that every interleaving can be put under a scheduler.

#[cfg(not(topiclog_shuttle))]
pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};
