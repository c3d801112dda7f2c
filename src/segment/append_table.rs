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

    #[test]
    fn blocks_follow_each_other_without_a_gap() {
        let check = |index: usize, place: (usize, usize)| assert_eq!(locate(index), place, "{index}");
        check(0, (0, 0));
        check(63, (0, 63));
        check(64, (1, 0));
        check(191, (1, 127));
        check(192, (2, 0));
        check(447, (2, 255));
        check(448, (3, 0));
    }

    #[test]
    fn an_idle_table_takes_no_memory_and_a_full_block_no_more_than_it_needs() {
        let table = AppendTable::new();
        assert_eq!((table.memory_bytes(), table.get(0)), (0, 0));
        (0..64).for_each(|entry| assert!(table.push(entry)));
        assert_eq!(table.memory_bytes(), 64 * 8);
        assert!(table.push(64));
        assert_eq!(table.memory_bytes(), (64 + 128) * 8);
    }

    #[test]
    fn a_reader_beside_sees_only_what_was_put() {
        let table = AppendTable::new();
        std::thread::scope(|scope| {
            scope.spawn(|| (1..=5000).for_each(|entry| assert!(table.push(entry))));
            while table.len() < 5000 {
                let len = table.len();
                for index in len.saturating_sub(70)..len {
                    assert_eq!(table.get(index), index as u64 + 1);
                }
            }
        });
    }
}
