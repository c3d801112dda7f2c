//! CRC-32C (Castagnoli), Kafka's checksum of batches and producer snapshots.

use super::batch::CRC_FROM;
use super::peek;

/// The CRC-32C of some bytes.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// The same, of bytes that come in pieces.
pub(crate) struct Crc32c(crc_fast::Digest);

impl Crc32c {
    pub(crate) fn new() -> Self {
        Self(crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi))
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn finish(&self) -> u32 {
        // The algorithm has 32 bits, the type of the library has room for more.
        self.0.finalize() as u32
    }
}

/// The CRC-32C of bytes that follow others, of which `before` is the CRC, where `whole` is that of both.
pub(crate) fn crc32c_behind(before: u32, whole: u32, bytes: u64) -> u32 {
    // Modulo the polynomial, as many zero bits behind `before` as there are bits behind it: x^(8 * bytes), by its squares.
    let mut power = ONE >> 8;
    let mut shifted = before;
    let mut left = bytes;
    while left > 0 {
        if left & 1 == 1 {
            shifted = multiply(power, shifted);
        }
        power = multiply(power, power);
        left >>= 1;
    }
    shifted ^ whole
}

/// The polynomial of CRC-32C and the number one, with the highest power in the lowest bit.
const POLYNOMIAL: u32 = 0x82f6_3b78;
const ONE: u32 = 1 << 31;

fn multiply(factor: u32, mut other: u32) -> u32 {
    let mut product = 0;
    let mut bits = factor;
    while bits != 0 {
        if bits & ONE != 0 {
            product ^= other;
        }
        bits <<= 1;
        other = if other & 1 == 1 { other >> 1 ^ POLYNOMIAL } else { other >> 1 };
    }
    product
}

/// Whether the CRC of a batch holds, whatever its attributes say. The bytes are exactly those of the batch.
pub(crate) fn crc_holds(batch: &[u8]) -> bool {
    let stored = batch.get(17..21).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes);
    let whole = peek(batch).is_ok_and(|peek| peek.size_bytes == batch.len());
    whole && stored == batch.get(CRC_FROM..).map(crc32c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_add_up() {
        let mut crc = Crc32c::new();
        crc.update(b"1234");
        crc.update(b"56789");
        assert_eq!(crc.finish(), 0xe306_9283);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn the_sum_of_what_stands_behind_follows_from_two_others() {
        let bytes: Vec<u8> = (0..70_000_u32).map(|n| (n.wrapping_mul(n) >> 5) as u8).collect();
        for (at, end) in [(0, 0), (0, 9), (5, 5), (5, 6), (1, 256), (300, 65_837), (3, 70_000)] {
            let found = crc32c_behind(crc32c(&bytes[..at]), crc32c(&bytes[..end]), (end - at) as u64);
            assert_eq!(found, crc32c(&bytes[at..end]), "{at}..{end}");
        }
    }
}
