//! The facade over the lock types of `parking_lot`.
//!
//! No other module names a lock type, so that they can be exchanged in one place.

pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};
