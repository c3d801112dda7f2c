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
}
