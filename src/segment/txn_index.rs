//! The aborted-transaction index (`.txnindex`).
//!
//! ```text
//! entry, 34 bytes big-endian:
//! version int16 = 0 | producerId int64 | firstOffset int64 | lastOffset int64 | lastStableOffset int64
//! ```
//! One entry for each aborted transaction, in the segment that holds its abort marker (Kafka: AbortedTxn).

/// Bytes of one entry on disk.
pub(crate) const ENTRY_BYTES: usize = 34;

/// A control batch without its record, as a broker's cleaner leaves it.
const SHORTEST_MARKER_BYTES: u64 = 61;

/// The most bytes that the index of a log can have: there is a marker in it for each entry. No more than 64 MiB are read.
pub(crate) fn bytes_max(log_bytes: u64) -> u64 {
    (log_bytes / SHORTEST_MARKER_BYTES + 1).saturating_mul(ENTRY_BYTES as u64).min(64 << 20)
}

/// An aborted transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AbortedTxn {
    pub(crate) producer_id: i64,
    /// First offset of the transaction.
    pub(crate) first_offset: i64,
    /// Offset of the abort marker.
    pub(crate) last_offset: i64,
    /// Last stable offset right after the marker.
    pub(crate) last_stable_offset: i64,
}

/// Encodes entries as the file holds them.
pub(crate) fn encode(entries: &[AbortedTxn]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(entries.len() * ENTRY_BYTES);
    for entry in entries {
        bytes.extend_from_slice(&0_i16.to_be_bytes());
        for field in [entry.producer_id, entry.first_offset, entry.last_offset, entry.last_stable_offset] {
            bytes.extend_from_slice(&field.to_be_bytes());
        }
    }
    bytes
}

/// Reads the entries of a file. The text says what is wrong. A trailing partial entry is passed over, as Kafka does.
pub(crate) fn decode(bytes: &[u8], base_offset: i64) -> Result<Vec<AbortedTxn>, String> {
    let mut entries: Vec<AbortedTxn> = Vec::with_capacity(bytes.len() / ENTRY_BYTES);
    for chunk in bytes.chunks_exact(ENTRY_BYTES) {
        let (version, rest) = chunk.split_first_chunk::<2>().ok_or("shorter than an entry")?;
        if i16::from_be_bytes(*version) != 0 {
            return Err(format!("entry version {}", i16::from_be_bytes(*version)));
        }
        let mut fields = rest.chunks_exact(8).map(|field| field.try_into().map_or(0, i64::from_be_bytes));
        let mut field = || fields.next().unwrap_or(0);
        let entry = AbortedTxn {
            producer_id: field(),
            first_offset: field(),
            last_offset: field(),
            last_stable_offset: field(),
        };
        let rises = entries.last().is_none_or(|last| entry.last_offset > last.last_offset);
        if entry.last_offset < base_offset || !rises || entry.first_offset > entry.last_offset {
            return Err(format!("entry for offsets {} to {} is out of order", entry.first_offset, entry.last_offset));
        }
        entries.push(entry);
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_kafkas() {
        let entry = AbortedTxn { producer_id: 4242, first_offset: 200, last_offset: 203, last_stable_offset: 204 };
        let bytes = encode(&[entry]);
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "0000000000000000109200000000000000c800000000000000cb00000000000000cc");
        assert_eq!(decode(&bytes, 200), Ok(vec![entry]));
        assert_eq!(decode(&bytes[..33], 200), Ok(vec![]));
        assert!(decode(&bytes, 204).is_err());
        assert!(decode(&[bytes.clone(), bytes].concat(), 0).is_err());
    }
}
