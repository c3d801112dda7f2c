//! The locks of a file system that lives in memory: who holds what on which file. The two protocols do not see each
//! other, as on a disk.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use super::{LockKind, VfsLock};
use crate::sync::Mutex;

/// All locks of one file system, by the number of the file.
#[derive(Clone, Debug, Default)]
pub(crate) struct LockTable {
    holders: Arc<Mutex<Holders>>,
}

#[derive(Debug, Default)]
struct Holders {
    next: u64,
    /// The file, the kind, and by its own number which lock it is.
    held: HashMap<u64, (u64, LockKind)>,
}

impl LockTable {
    /// Takes a lock, or fails with [`io::ErrorKind::WouldBlock`].
    pub(crate) fn lock(&self, file: u64, kind: LockKind) -> io::Result<Box<dyn VfsLock>> {
        let mut holders = self.holders.lock();
        if holders.held.values().any(|(other, held)| *other == file && conflict(*held, kind)) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let number = holders.next;
        holders.next += 1;
        holders.held.insert(number, (file, kind));
        Ok(Box::new(MemoryLock { table: self.clone(), number }))
    }

    /// Lets go of everything, as the end of the process would.
    pub(crate) fn release_all(&self) {
        self.holders.lock().held.clear();
    }
}

fn conflict(held: LockKind, wanted: LockKind) -> bool {
    match (held, wanted) {
        (LockKind::Broker, LockKind::Broker) => true,
        (LockKind::Broker, _) | (_, LockKind::Broker) => false,
        (LockKind::Shared, LockKind::Shared) => false,
        (LockKind::Exclusive | LockKind::Shared, LockKind::Exclusive | LockKind::Shared) => true,
    }
}

#[derive(Debug)]
struct MemoryLock {
    table: LockTable,
    number: u64,
}

impl VfsLock for MemoryLock {}

impl Drop for MemoryLock {
    fn drop(&mut self) {
        self.table.holders.lock().held.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_keeps_whom_out() {
        use LockKind::{Broker, Exclusive, Shared};
        for (held, wanted, is_free) in [
            (Exclusive, Exclusive, false),
            (Exclusive, Shared, false),
            (Shared, Exclusive, false),
            (Shared, Shared, true),
            (Broker, Broker, false),
            (Broker, Exclusive, true),
            (Exclusive, Broker, true),
        ] {
            let table = LockTable::default();
            let lock = table.lock(1, held).unwrap();
            assert_eq!(table.lock(1, wanted).is_ok(), is_free, "{held:?}, then {wanted:?}");
            assert!(table.lock(2, wanted).is_ok(), "another file");
            drop(lock);
            assert!(table.lock(1, wanted).is_ok(), "{held:?} is gone");
        }
    }

    #[test]
    fn the_end_of_a_process_lets_go_of_everything() {
        let table = LockTable::default();
        let old = table.lock(1, LockKind::Exclusive).unwrap();
        table.release_all();
        let new = table.lock(1, LockKind::Exclusive).unwrap();
        drop(old);
        assert!(table.lock(1, LockKind::Shared).is_err(), "the old handle does not take the new lock along");
        drop(new);
    }
}
