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
