//! Kafka's variable-length integers: base-128 groups, least significant first, zigzag-mapped when signed.
//!
//! ```text
//! value     0   -1    1    63   -64   64      300     8192       i32::MAX         i32::MIN
//! bytes    00   01   02    7e    7f   80 01   d8 04   80 80 01   fe ff ff ff 0f   ff ff ff ff 0f
//! ```
//!
//! A varint (32 bits) has at most 5 bytes, a varlong (64 bits) at most 10, and bits beyond the width are refused.
//! Longer forms than the shortest are read, as Kafka reads them.

/// The most bytes that a varint takes.
pub(crate) const VARINT_BYTES_MAX: usize = 5;
/// The most bytes that a varlong takes.
pub(crate) const VARLONG_BYTES_MAX: usize = 10;

/// Reads a varint at `at` and moves `at` past it. `None` if it is cut short, too long or too large.
#[inline(always)]
pub(crate) fn read_i32(bytes: &[u8], at: &mut usize) -> Option<i32> {
    let first = u32::from(*bytes.get(*at)?);
    if first < 0x80 {
        *at = at.wrapping_add(1);
        return Some(unzigzag(first));
    }
    let second = u32::from(*bytes.get(at.wrapping_add(1))?);
    if second < 0x80 {
        *at = at.wrapping_add(2);
        return Some(unzigzag((first & 0x7f) | (second << 7)));
    }
    let value = read_long_form(bytes, at, VARINT_BYTES_MAX)?;
    u32::try_from(value).ok().map(unzigzag)
}

/// Reads a varlong at `at` and moves `at` past it. `None` if it is cut short, too long or too large.
#[inline(always)]
pub(crate) fn read_i64(bytes: &[u8], at: &mut usize) -> Option<i64> {
    let first = u64::from(*bytes.get(*at)?);
    if first < 0x80 {
        *at = at.wrapping_add(1);
        return Some(unzigzag64(first));
    }
    let second = u64::from(*bytes.get(at.wrapping_add(1))?);
    if second < 0x80 {
        *at = at.wrapping_add(2);
        return Some(unzigzag64((first & 0x7f) | (second << 7)));
    }
    read_long_form(bytes, at, VARLONG_BYTES_MAX).map(unzigzag64)
}

#[cold]
#[inline(never)]
fn read_long_form(bytes: &[u8], at: &mut usize, bytes_max: usize) -> Option<u64> {
    let mut value = 0_u64;
    let mut shift = 0_u32;
    for (index, &byte) in bytes.get(*at..)?.iter().take(bytes_max).enumerate() {
        let group = u64::from(byte & 0x7f);
        // The tenth byte of a varlong has room for one bit only.
        let placed = group.checked_shl(shift)?;
        if placed >> shift != group {
            return None;
        }
        value |= placed;
        if byte < 0x80 {
            *at = at.wrapping_add(index).wrapping_add(1);
            return Some(value);
        }
        shift = shift.wrapping_add(7);
    }
    None
}

/// What a zigzag-mapped number stands for.
#[inline(always)]
pub(crate) fn unzigzag(raw: u32) -> i32 {
    ((raw >> 1) ^ (raw & 1).wrapping_neg()).cast_signed()
}

#[inline(always)]
fn unzigzag64(raw: u64) -> i64 {
    ((raw >> 1) ^ (raw & 1).wrapping_neg()).cast_signed()
}

/// What a number is mapped to, so that small negative ones are small.
#[inline(always)]
pub(crate) fn zigzag64(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

/// How many bytes the shortest form takes. A varint and a varlong of the same value are the same bytes.
#[inline(always)]
pub(crate) fn size_of(value: i64) -> usize {
    let raw = zigzag64(value);
    if raw < 0x80 {
        return 1;
    }
    // Each started group of seven bits is a byte: (bits + 6) / 7, written so that it is a multiplication.
    let bits = u64::BITS.wrapping_sub(raw.leading_zeros()) as usize;
    bits.wrapping_mul(9).wrapping_add(64) / 64
}

/// Appends the shortest form. A varint and a varlong of the same value are the same bytes.
#[inline(always)]
pub(crate) fn write(out: &mut Vec<u8>, value: i64) {
    let raw = zigzag64(value);
    if raw < 0x80 {
        out.push(raw as u8);
    } else if raw < 0x4000 {
        out.extend_from_slice(&[raw as u8 | 0x80, (raw >> 7) as u8]);
    } else {
        write_long_form(out, raw);
    }
}

#[cold]
#[inline(never)]
fn write_long_form(out: &mut Vec<u8>, mut raw: u64) {
    while raw >= 0x80 {
        out.push(raw as u8 | 0x80);
        raw >>= 7;
    }
    out.push(raw as u8);
}

/// What a zigzag-mapped number below 0x4000 is written as: its bytes, least significant first, and how many they are.
#[inline(always)]
pub(crate) fn short(raw: u64) -> (u64, u32) {
    // The second group begins at bit 8 instead of bit 7, and the first says that there is one.
    let second = u64::from(raw >= 0x80);
    (raw.wrapping_add(raw >> 7 << 7).wrapping_add(second << 7), 1_u32.wrapping_add(second as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(value: i64) -> Vec<u8> {
        let mut bytes = Vec::new();
        write(&mut bytes, value);
        if zigzag64(value) < 0x4000 {
            let (bits, length) = short(zigzag64(value));
            assert_eq!(bits.to_le_bytes()[..length as usize], bytes);
            assert_eq!(bits >> (8 * length), 0, "nothing behind it");
        }
        bytes
    }

    #[test]
    fn varints_of_the_format_page() {
        let table: [(i32, &[u8]); 11] = [
            (0, &[0x00]),
            (-1, &[0x01]),
            (1, &[0x02]),
            (63, &[0x7e]),
            (-64, &[0x7f]),
            (64, &[0x80, 0x01]),
            (300, &[0xd8, 0x04]),
            (8191, &[0xfe, 0x7f]),
            (8192, &[0x80, 0x80, 0x01]),
            (i32::MAX, &[0xfe, 0xff, 0xff, 0xff, 0x0f]),
            (i32::MIN, &[0xff, 0xff, 0xff, 0xff, 0x0f]),
        ];
        for (value, bytes) in table {
            let mut at = 0;
            assert_eq!(read_i32(bytes, &mut at), Some(value));
            assert_eq!(at, bytes.len());
            assert_eq!(written(i64::from(value)), bytes);
            assert_eq!(size_of(i64::from(value)), bytes.len());
        }
    }

    #[test]
    fn varlongs_of_the_format_page() {
        let table: [(i64, &[u8]); 4] = [
            (1_700_000_000_000, &[0x80, 0xa0, 0xab, 0xfe, 0xf9, 0x62]),
            (-1000, &[0xcf, 0x0f]),
            (i64::MAX, &[0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]),
            (i64::MIN, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]),
        ];
        for (value, bytes) in table {
            let mut at = 0;
            assert_eq!(read_i64(bytes, &mut at), Some(value));
            assert_eq!(at, bytes.len());
            assert_eq!(written(value), bytes);
            assert_eq!(size_of(value), bytes.len());
        }
    }

    #[test]
    fn sizes_agree_with_the_writer_at_every_width() {
        for bit in 0..63 {
            for value in [1_i64 << bit, (1_i64 << bit) - 1, -(1_i64 << bit), -(1_i64 << bit) - 1] {
                let bytes = written(value);
                assert_eq!(size_of(value), bytes.len(), "{value}");
                assert_eq!(read_i64(&bytes, &mut 0), Some(value));
            }
        }
    }

    #[test]
    fn long_and_overflowing_forms() {
        // Not the shortest form, but within five bytes: Kafka reads it.
        assert_eq!(read_i32(&[0x82, 0x80, 0x80, 0x80, 0x00], &mut 0), Some(1));
        // A sixth byte, a bit above 32, and an end in the middle.
        assert_eq!(read_i32(&[0x80, 0x80, 0x80, 0x80, 0x80, 0x00], &mut 0), None);
        assert_eq!(read_i32(&[0xff, 0xff, 0xff, 0xff, 0x1f], &mut 0), None);
        assert_eq!(read_i32(&[0x80], &mut 0), None);
        assert_eq!(read_i32(&[0x80, 0x80], &mut 0), None);
        assert_eq!(read_i32(&[], &mut 0), None);
        let mut tenth = [0xff; 10];
        tenth[9] = 0x02;
        assert_eq!(read_i64(&tenth, &mut 0), None);
        assert_eq!(read_i64(&[0x80; 11], &mut 0), None);
    }

    #[test]
    fn numbers_that_follow_each_other_are_read_one_by_one() {
        let numbers = [0, -1, 63, 64, -65, 8191, 8192, i64::from(i32::MAX), i64::from(i32::MIN), i64::MAX, i64::MIN];
        let mut bytes = Vec::new();
        numbers.iter().for_each(|&number| write(&mut bytes, number));
        let mut at = 0;
        for number in numbers {
            assert_eq!(read_i64(&bytes, &mut at), Some(number));
        }
        assert_eq!((at, read_i64(&bytes, &mut at)), (bytes.len(), None));
    }

    #[test]
    fn a_number_that_cannot_be_read_is_not_passed() {
        for bad in [&[][..], &[0x80], &[0x80, 0x80], &[0xff; 5], &[0xff; 11]] {
            let mut at = 0;
            assert_eq!((read_i32(bad, &mut at), at), (None, 0), "{bad:?}");
        }
        let mut at = 7;
        assert_eq!((read_i64(&[1, 2], &mut at), at), (None, 7), "beyond the end");
    }

    #[test]
    fn a_varint_takes_no_number_of_more_than_32_bits() {
        for number in [i64::from(i32::MAX) + 1, i64::from(i32::MIN) - 1, i64::MAX] {
            let bytes = written(number);
            assert_eq!(read_i32(&bytes, &mut 0), None, "{number}");
            assert_eq!(read_i64(&bytes, &mut 0), Some(number));
        }
    }

    #[test]
    fn the_short_form_of_every_number_that_has_one_is_what_is_written() {
        for raw in 0..0x4000 {
            written(i64::from(unzigzag(raw)));
        }
        assert_eq!(short(0x3fff), (0x7fff, 2));
    }
}
