//! A table of 64-bit entries that one writer extends while readers search it without a lock.
//!
//! Blocks double in size, so that an idle partition pays nothing and no entry ever moves.

use std::sync::OnceLock;

use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

const FIRST_BLOCK: usize = 64;
const BLOCKS: usize = 20; // 64 * (2^20 - 1) entries, far more than an index of 2^31 bytes can hold.

/// Append-only entries; see the module.
#[derive(Debug)]
pub(crate) struct AppendTable {
    /// Block `b` holds `FIRST_BLOCK << b` entries. A block below `len` is always there.
    blocks: [OnceLock<Box<[AtomicU64]>>; BLOCKS],
    /// Entries that readers may look at. Stored with `Release` after the entry itself.
    len: AtomicUsize,
}

impl AppendTable {
    pub(crate) fn new() -> Self {
        Self { blocks: [const { OnceLock::new() }; BLOCKS], len: AtomicUsize::new(0) }
    }

    pub(crate) fn len(&self) -> usize {
        self.len.load(Ordering::Acquire)
    }

    /// Adds an entry. Only one thread may call this at a time; the writer lock of the partition sees to that. Returns
    /// false if the table is full.
    pub(crate) fn push(&self, entry: u64) -> bool {
        let len = self.len.load(Ordering::Relaxed);
        let (block, at) = locate(len);
        let Some(slot) = self.blocks.get(block) else { return false };
        let entries = slot.get_or_init(|| (0..FIRST_BLOCK << block).map(|_| AtomicU64::new(0)).collect());
        let Some(cell) = entries.get(at) else { return false };
        cell.store(entry, Ordering::Relaxed);
        self.len.store(len + 1, Ordering::Release);
        true
    }

    /// The entry at an index below [`len`](Self::len); 0 beyond it.
    #[inline]
    pub(crate) fn get(&self, index: usize) -> u64 {
        let (block, at) = locate(index);
        let entries = self.blocks.get(block).and_then(OnceLock::get);
        entries.and_then(|entries| entries.get(at)).map_or(0, |cell| cell.load(Ordering::Relaxed))
    }

    /// Bytes of memory that the blocks take.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.blocks.iter().filter_map(OnceLock::get).map(|block| block.len() * 8).sum()
    }
}

#[inline]
fn locate(index: usize) -> (usize, usize) {
    let shifted = index / FIRST_BLOCK + 1;
    let block = shifted.ilog2() as usize;
    (block, index + FIRST_BLOCK - (FIRST_BLOCK << block))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_is_found_where_it_was_put() {
        let table = AppendTable::new();
        for entry in 0..10_000u64 {
            assert!(table.push(entry * 3));
        }
        assert_eq!(table.len(), 10_000);
        for entry in 0..10_000u64 {
            assert_eq!(table.get(entry as usize), entry * 3);
        }
        assert_eq!(table.get(1 << 40), 0);
    }
}
