//! The facade over what threads share: locks, atomics and the one thread.
//!
//! No other module names `parking_lot`, `std::sync::atomic` or `std::thread::spawn`, so that all of it can be exchanged in
//! one place. As a rule it is a list of re-exports and costs nothing. Under `--cfg topiclog_shuttle` the same names lead to
//! `shuttle`, whose scheduler decides at each of these calls which thread goes on: `tests/it/schedules.rs`.
//!
//! `Arc`, `Weak` and `OnceLock` come from `std` in either case. Counting references orders nothing that the schedules look
//! at, and `shuttle` has no other `Arc`; what runs inside a `get_or_init` of this crate makes values and takes no lock, so
//! that no thread can be stopped there while another waits for it.

#[cfg(not(topiclog_shuttle))]
mod real {
    pub(crate) use std::sync::atomic;
    pub(crate) use std::thread;

    pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};
}

#[cfg(not(topiclog_shuttle))]
pub(crate) use real::*;
#[cfg(topiclog_shuttle)]
pub(crate) use scheduled::*;

/// A value that has its cache lines for itself: what one thread writes at each append should not lie beside what others
/// read, or write, at each of their reads. Two lines, because processors fetch them in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct OwnLines<T>(pub(crate) T);

impl<T> std::ops::Deref for OwnLines<T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        &self.0
    }
}

/// For tables of the whole process. They outlive every schedule, which `shuttle`'s locks must not, and are held for one
/// look-up that calls nothing; so they stay what they are.
#[cfg(unix)]
pub(crate) type ProcessMutex<T> = parking_lot::Mutex<T>;

/// `shuttle`'s types with the interface of `parking_lot`: no poisoning, and a wait that borrows its guard.
///
/// Its locks are not fair and its waits never time out, and each atomic access counts as sequentially consistent: what
/// hangs on a weaker ordering is not found here.
#[cfg(topiclog_shuttle)]
mod scheduled {
    use std::fmt;
    use std::ops::{Deref, DerefMut};
    use std::sync::{LockResult, PoisonError, TryLockError, TryLockResult};
    use std::time::Duration;

    pub(crate) use shuttle::sync::atomic;
    pub(crate) mod thread {
        pub(crate) use shuttle::thread::*;

        /// Time does not pass in a schedule: whoever waits for it lets others go first.
        pub(crate) fn park_timeout(_time: std::time::Duration) {
            yield_now();
        }
    }

    fn unpoisoned<G>(result: LockResult<G>) -> G {
        result.unwrap_or_else(PoisonError::into_inner)
    }

    fn if_free<G>(result: TryLockResult<G>) -> Option<G> {
        match result {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(error)) => Some(error.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    #[derive(Default)]
    pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(shuttle::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            MutexGuard(Some(unpoisoned(self.0.lock())))
        }

        pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            if_free(self.0.try_lock()).map(|guard| MutexGuard(Some(guard)))
        }
    }

    impl<T: fmt::Debug> fmt::Debug for Mutex<T> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.fmt(f)
        }
    }

    /// Empty only while [`Condvar::wait`] has the guard.
    #[derive(Debug)]
    pub(crate) struct MutexGuard<'a, T>(Option<shuttle::sync::MutexGuard<'a, T>>);

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            match &self.0 {
                Some(guard) => guard,
                None => unreachable!("a guard that waits is borrowed"),
            }
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            match &mut self.0 {
                Some(guard) => guard,
                None => unreachable!("a guard that waits is borrowed"),
            }
        }
    }

    #[derive(Debug, Default)]
    pub(crate) struct Condvar(shuttle::sync::Condvar);

    impl Condvar {
        pub(crate) fn new() -> Self {
            Self::default()
        }

        pub(crate) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
            guard.0 = guard.0.take().map(|guard| unpoisoned(self.0.wait(guard)));
        }

        pub(crate) fn wait_for<T>(&self, guard: &mut MutexGuard<'_, T>, _time: Duration) {
            self.wait(guard);
        }

        pub(crate) fn notify_one(&self) {
            self.0.notify_one();
        }

        pub(crate) fn notify_all(&self) {
            self.0.notify_all();
        }
    }

    #[derive(Default)]
    pub(crate) struct RwLock<T>(shuttle::sync::RwLock<T>);

    impl<T> RwLock<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(shuttle::sync::RwLock::new(value))
        }

        pub(crate) fn read(&self) -> shuttle::sync::RwLockReadGuard<'_, T> {
            unpoisoned(self.0.read())
        }

        pub(crate) fn write(&self) -> shuttle::sync::RwLockWriteGuard<'_, T> {
            unpoisoned(self.0.write())
        }

        pub(crate) fn try_write(&self) -> Option<shuttle::sync::RwLockWriteGuard<'_, T>> {
            if_free(self.0.try_write())
        }
    }

    impl<T: fmt::Debug> fmt::Debug for RwLock<T> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.fmt(f)
        }
    }
}
