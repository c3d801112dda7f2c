//! What a key index keeps of one record: a hash, an offset and a place, in 16 bytes. PURE.
//!
//! ```text
//! high u64:  hash 56 bits | bits 32 to 39 of the offset      low u64:  bits 0 to 31 of the offset | position u32
//! ```
//! The offset is relative to a base that whoever keeps entries knows. Entries are ordered by hash, then by offset. The
//! position is where the batch begins in its segment: a hint, and no part of what makes two entries equal.

/// Bits of a hash that are kept.
pub(crate) const HASH_BITS: u32 = 56;
/// Bits of a relative offset.
pub(crate) const OFFSET_BITS: u32 = 40;
/// The position of a batch whose place is not known. A segment has less than 2^31 bytes.
pub(crate) const NO_POSITION: u32 = u32::MAX - 1;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeyEntry {
    high: u64,
    low: u64,
}

impl KeyEntry {
    /// No record: before no entry.
    pub(crate) const EMPTY: Self = Self { high: u64::MAX, low: u64::MAX };

    /// `None` if the relative offset needs more than its bits.
    #[inline]
    pub(crate) fn new(hash: u64, relative_offset: u64, position: u32) -> Option<Self> {
        let fits = relative_offset >> OFFSET_BITS == 0;
        let high = hash << (u64::BITS - HASH_BITS) | relative_offset >> 32;
        fits.then_some(Self { high, low: relative_offset << 32 | u64::from(position) })
    }

    /// The entry of an offset, with a base for it and a position that may be too large to be one.
    #[inline]
    pub(crate) fn at(hash: u64, base: i64, offset: i64, position: u64) -> Option<Self> {
        let relative = u64::try_from(offset.checked_sub(base)?).ok()?;
        let position = u32::try_from(position).ok().filter(|&position| position < NO_POSITION);
        Self::new(hash, relative, position.unwrap_or(NO_POSITION))
    }

    /// From its two words.
    pub(crate) fn from_words(high: u64, low: u64) -> Self {
        Self { high, low }
    }

    /// Its two words.
    pub(crate) fn words(self) -> (u64, u64) {
        (self.high, self.low)
    }

    #[inline]
    pub(crate) fn hash(self) -> u64 {
        self.high >> (u64::BITS - HASH_BITS)
    }

    #[inline]
    pub(crate) fn relative_offset(self) -> u64 {
        (self.high & ((1 << (OFFSET_BITS - 32)) - 1)) << 32 | self.low >> 32
    }

    /// Where the batch begins in its segment, if that is known.
    #[inline]
    pub(crate) fn position(self) -> Option<u32> {
        Some(self.low as u32).filter(|&position| position < NO_POSITION)
    }

    /// The same record at another place.
    #[inline]
    pub(crate) fn with_position(self, position: u32) -> Self {
        Self { high: self.high, low: self.low & !u64::from(u32::MAX) | u64::from(position) }
    }

    #[inline]
    pub(crate) fn is_empty(self) -> bool {
        self == Self::EMPTY
    }

    /// Whether both are of one record.
    #[inline]
    pub(crate) fn is_same_record(self, other: Self) -> bool {
        self.high == other.high && self.low >> 32 == other.low >> 32
    }

    /// Whether this one's record comes before another one's.
    #[inline]
    pub(crate) fn is_before(self, other: Self) -> bool {
        (self.high, self.low >> 32) < (other.high, other.low >> 32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_keeps_what_it_is_made_of() {
        let check = |hash: u64, offset: u64, position: u32| {
            let entry = KeyEntry::new(hash, offset, position).unwrap();
            let known = Some(position).filter(|&position| position != NO_POSITION);
            assert_eq!(
                (entry.hash(), entry.relative_offset(), entry.position()),
                (hash & (u64::MAX >> 8), offset, known)
            );
            let (high, low) = entry.words();
            assert_eq!(KeyEntry::from_words(high, low), entry);
            assert!(
                !entry.is_empty() && !KeyEntry::EMPTY.is_before(entry) && entry.is_same_record(entry.with_position(3))
            );
        };
        check(0, 0, 0);
        check(u64::MAX, (1 << OFFSET_BITS) - 1, NO_POSITION);
        check(0x0123_4567_89ab_cdef, 0x12_3456_789a, i32::MAX as u32);
        assert_eq!(KeyEntry::new(1, 1 << OFFSET_BITS, 0), None);
        assert_eq!(KeyEntry::at(1, 100, 99, 0), None);
        assert_eq!(KeyEntry::at(1, i64::MIN, i64::MAX, 0), None);
        assert_eq!(KeyEntry::at(1, 100, 107, u64::MAX).unwrap().position(), None);
        assert_eq!(KeyEntry::at(1, 100, 107, 9), KeyEntry::new(1, 7, 9));
    }

    #[test]
    fn entries_are_ordered_by_hash_and_then_by_offset() {
        let entry = |hash, offset, position| KeyEntry::new(hash, offset, position).unwrap();
        assert!(entry(1, 900, 0).is_before(entry(2, 5, 0)));
        assert!(entry(2, 5, 900).is_before(entry(2, 6, 0)));
        assert!(entry(2, 1 << 33, 0).is_before(entry(2, (1 << 33) + 1, 0)));
        assert!(!entry(2, 5, 0).is_before(entry(2, 5, 9)), "the place does not count");
        assert!(!entry(2, 5, 0).is_same_record(entry(3, 5, 0)) && !entry(2, 5, 0).is_same_record(entry(2, 6, 0)));
    }
}
