//! The form of records without headers whose numbers are short, as most are.
//!
//! What stands before the key is then at most eight bytes, so that it is one store. Records of one batch often have the same
//! lengths and the same time: the form of one is then that of the next, but for the offset.

use super::varint::{self, zigzag64};

/// Zigzag-mapped numbers from here on take more than two bytes.
const SHORT: u64 = 0x4000;

/// Where a record's parts go, and the numbers between them. See `body.rs` for the format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ShortForm {
    /// For which records it is right.
    shape: Shape,
    /// The first offset delta for which it is right, and how many are.
    offsets_from: u32,
    offsets: u32,
    /// All before the key, but for the offset delta.
    front: u64,
    /// Where the offset delta goes, in bits.
    offset_shift: u32,
    key_at: u32,
    value_length: u16,
    value_length_bytes: u32,
    /// The size of the record.
    bytes: usize,
}

/// What the form of a record depends on, apart from its offset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Shape {
    timestamp_delta: i64,
    /// -1 for null, as that of the value.
    key_length: i64,
    value_length: i64,
}

#[inline(always)]
fn length(part: Option<&[u8]>) -> i64 {
    part.map_or(-1, |part| part.len() as i64)
}

impl Shape {
    #[inline(always)]
    fn of(timestamp_delta: i64, key: Option<&[u8]>, value: Option<&[u8]>) -> Self {
        Self { timestamp_delta, key_length: length(key), value_length: length(value) }
    }
}

impl ShortForm {
    /// Makes this the form of such a record, if it is not. False if its numbers are too long.
    #[inline(always)]
    pub(super) fn become_that_of(
        &mut self,
        offset_delta: i32,
        timestamp_delta: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
    ) -> bool {
        let is_that = timestamp_delta == self.shape.timestamp_delta && self.is_that_of(offset_delta, key, value);
        is_that || self.become_new(offset_delta, Shape::of(timestamp_delta, key, value))
    }

    /// Whether this is the form of such a record, if its time is that of the record whose form it became.
    #[inline(always)]
    pub(super) fn is_that_of(&self, offset_delta: i32, key: Option<&[u8]>, value: Option<&[u8]>) -> bool {
        length(key) == self.shape.key_length
            && length(value) == self.shape.value_length
            && offset_delta.cast_unsigned().wrapping_sub(self.offsets_from) < self.offsets
    }

    #[inline(never)]
    fn become_new(&mut self, offset_delta: i32, shape: Shape) -> bool {
        let new = Self::new(offset_delta, shape);
        *self = new.unwrap_or_default();
        new.is_some()
    }

    fn new(offset_delta: i32, shape: Shape) -> Option<Self> {
        let short = |number: i64| Some(zigzag64(number)).filter(|raw| *raw < SHORT).map(varint::short);
        let (offsets_from, offsets) = match offset_delta {
            0..64 => (0, 64),
            64..0x2000 => (64, 0x2000 - 64),
            _ => return None,
        };
        let (_, offset_bytes) = short(i64::from(offset_delta))?;
        let (time, time_bytes) = short(shape.timestamp_delta)?;
        let (key_length, 1) = short(shape.key_length)? else { return None };
        let (value_length, value_length_bytes) = short(shape.value_length)?;
        // The attributes, the length of the key and the number of headers are a byte each.
        let numbers_bytes = time_bytes.wrapping_add(offset_bytes).wrapping_add(value_length_bytes).wrapping_add(3);
        let length =
            i64::from(numbers_bytes).wrapping_add(shape.key_length.max(0)).wrapping_add(shape.value_length.max(0));
        let (length_bits, length_bytes) = short(length)?;
        // Behind the length come the attributes, which are 0.
        let time_at = length_bytes.wrapping_add(1);
        let offset_at = time_at.wrapping_add(time_bytes);
        let key_length_at = offset_at.wrapping_add(offset_bytes);
        let at = |bits: u64, byte: u32| bits.wrapping_shl(byte.wrapping_mul(8));
        Some(Self {
            shape,
            offsets_from,
            offsets,
            front: length_bits | at(time, time_at) | at(key_length, key_length_at),
            offset_shift: offset_at.wrapping_mul(8),
            key_at: key_length_at.wrapping_add(1),
            value_length: value_length as u16,
            value_length_bytes,
            bytes: usize::try_from(length).ok()?.wrapping_add(length_bytes as usize),
        })
    }

    /// How many bytes the record has.
    #[inline(always)]
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// How much room [`write`](Self::write) needs: a number is one store however long it is, and what that writes too much is
    /// written over.
    #[inline(always)]
    pub(super) fn room_bytes(&self) -> usize {
        self.bytes.wrapping_add(8)
    }

    /// Writes the record whose form this is. `None` if it is not, or has too little room.
    #[inline(always)]
    pub(super) fn write(
        &self,
        room: &mut [u8],
        offset_delta: i32,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
    ) -> Option<()> {
        let (offset, _) = varint::short(u64::from(offset_delta.cast_unsigned()) << 1);
        let front = self.front | offset.wrapping_shl(self.offset_shift);
        *room.first_chunk_mut()? = front.to_le_bytes();
        let mut room = room.get_mut(self.key_at as usize..)?;
        if let Some(key) = key {
            let (key_room, behind) = room.split_at_mut_checked(key.len())?;
            key_room.copy_from_slice(key);
            room = behind;
        }
        *room.first_chunk_mut()? = self.value_length.to_le_bytes();
        let value = value.unwrap_or_default();
        let (value_room, behind) =
            room.get_mut(self.value_length_bytes as usize..)?.split_at_mut_checked(value.len())?;
        value_room.copy_from_slice(value);
        // No headers.
        *behind.first_mut()? = 0;
        Some(())
    }
}
