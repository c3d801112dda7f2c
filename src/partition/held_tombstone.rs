//! Which tombstone of a partition stays for its readers alone. Whoever commits how far readers are asks this each time, and
//! keeps it without the partition, whose files it would keep open.

use std::ops::Range;
use std::sync::Arc;

use crate::sync::atomic::{AtomicI64, Ordering};

/// See the module. Clones are of the same partition.
#[derive(Clone, Debug)]
pub(crate) struct HeldTombstone(Arc<AtomicI64>);

impl HeldTombstone {
    pub(crate) fn new(offset: Option<i64>) -> Self {
        Self(Arc::new(AtomicI64::new(offset.unwrap_or(i64::MAX))))
    }

    /// The offset of the first one; `i64::MAX` if there is none.
    pub(crate) fn offset(&self) -> i64 {
        self.0.load(Ordering::Acquire)
    }

    pub(crate) fn set(&self, offset: Option<i64>) {
        self.0.store(offset.unwrap_or(i64::MAX), Ordering::Release);
    }

    /// Whether a reader that moves so far passes it.
    #[inline]
    pub(crate) fn is_passed(&self, moved: Range<i64>) -> bool {
        moved.contains(&self.offset())
    }
}
