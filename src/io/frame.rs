//! The frame around the files that are ours: it says what the file is, which version and generation it has, and proves
//! that every byte is what was written. PURE: bytes in, bytes out.
//!
//! ```text
//!  0        8      10        12           20             24         28           32             32+n       36+n
//!  +--------+------+---------+------------+--------------+----------+------------+----- .. -----+----------+
//!  | magic  | kind | version | generation | payload_len  | reserved | header_crc |   payload    |   crc    |
//!  | 8 B    | u16  | u16     | u64        | u32, here n  | u32, 0   | u32        |   n bytes    |   u32    |
//!  +--------+------+---------+------------+--------------+----------+------------+----- .. -----+----------+
//! ```
//!
//! All numbers are big-endian. `magic` is the eight letters `topiclog`. `header_crc` is the CRC-32 of bytes 0 to 27, so
//! that a damaged length is known before the payload is looked at; `crc` is the CRC-32 of everything before it. Nothing
//! may follow.
//!
//! It knows neither which kinds there are nor what a payload means.

/// What every frame begins with.
const MAGIC: &[u8; 8] = b"topiclog";
const HEADER_BYTES: usize = 32;
const CRC_BYTES: usize = 4;

/// What a frame adds to its payload, in bytes.
pub(crate) const OVERHEAD_BYTES: usize = HEADER_BYTES + CRC_BYTES;

/// A frame whose checks all held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    /// The version of the payload's format.
    pub(crate) version: u16,
    /// Which of several copies is the newest.
    pub(crate) generation: u64,
    /// What the frame is around.
    pub(crate) payload: &'a [u8],
}

/// Why bytes are not a frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    /// The bytes are not what was written, or were never a frame of this kind.
    #[error("{what}")]
    Damaged {
        /// What is wrong with them.
        what: String,
    },
    /// The header is sound, and says that a newer version of this crate wrote the payload.
    #[error("version {found}, of which at most {max} is known")]
    NewerVersion {
        /// The version in the header.
        found: u16,
        /// The newest one that is understood.
        max: u16,
    },
}

/// Puts a payload into a frame.
///
/// # Panics
/// If the payload is 4 GiB or longer; the files of this format are limited to a small part of that.
pub(crate) fn encode(kind: u16, version: u16, generation: u64, payload: &[u8]) -> Vec<u8> {
    let payload_bytes = u32::try_from(payload.len()).expect("payloads are limited far below 4 GiB before this");
    let mut frame = Vec::with_capacity(OVERHEAD_BYTES + payload.len());
    frame.extend_from_slice(MAGIC);
    frame.extend_from_slice(&kind.to_be_bytes());
    frame.extend_from_slice(&version.to_be_bytes());
    frame.extend_from_slice(&generation.to_be_bytes());
    frame.extend_from_slice(&payload_bytes.to_be_bytes());
    frame.extend_from_slice(&0_u32.to_be_bytes());
    frame.extend_from_slice(&crc32fast::hash(&frame).to_be_bytes());
    frame.extend_from_slice(payload);
    frame.extend_from_slice(&crc32fast::hash(&frame).to_be_bytes());
    frame
}

/// Checks a frame and takes it apart. Allocates nothing but the text of an error.
pub(crate) fn decode(
    bytes: &[u8],
    kind: u16,
    version_max: u16,
    payload_bytes_max: usize,
) -> Result<Frame<'_>, FrameError> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return damaged(format!("{} bytes are shorter than a header", bytes.len()));
    };
    if !header.starts_with(MAGIC) {
        return damaged("it does not begin with `topiclog`");
    }
    let (covered, header_crc) = header.split_at(HEADER_BYTES - CRC_BYTES);
    let is_unchecked = crate::planted::is(crate::planted::Bug::ManifestChecksumSkipped);
    if crc32fast::hash(covered).to_be_bytes() != *header_crc && !is_unchecked {
        return damaged("the checksum of the header does not fit");
    }
    let found_kind = u16::from_be_bytes(field(header, 8));
    if found_kind != kind {
        return damaged(format!("it is of kind {found_kind}, expected was {kind}"));
    }
    let version = u16::from_be_bytes(field(header, 10));
    if version > version_max {
        return Err(FrameError::NewerVersion { found: version, max: version_max });
    }
    let generation = u64::from_be_bytes(field(header, 12));
    let payload_bytes = u32::from_be_bytes(field(header, 20)) as usize;
    if u32::from_be_bytes(field(header, 24)) != 0 {
        return damaged("reserved bytes are not zero");
    }
    if payload_bytes > payload_bytes_max {
        return damaged(format!("{payload_bytes} bytes of payload, of which at most {payload_bytes_max} are allowed"));
    }
    let Some((payload, crc)) = rest.split_at_checked(payload_bytes) else {
        return damaged(format!("it ends within its {payload_bytes} bytes of payload"));
    };
    let Ok(crc) = <[u8; CRC_BYTES]>::try_from(crc) else {
        return damaged(format!("{} bytes follow the payload, not {CRC_BYTES}", crc.len()));
    };
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(header);
    hasher.update(payload);
    if hasher.finalize().to_be_bytes() != crc && !is_unchecked {
        return damaged("the checksum does not fit");
    }
    Ok(Frame { version, generation, payload })
}

fn damaged<T>(what: impl Into<String>) -> Result<T, FrameError> {
    Err(FrameError::Damaged { what: what.into() })
}

/// `N` bytes of the header. A position that the header does not have gives zeros; there is none.
fn field<const N: usize>(header: &[u8; HEADER_BYTES], position: usize) -> [u8; N] {
    header.get(position..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The worked example: kind 2, version 1, generation 258, payload `{}`.
    #[rustfmt::skip]
    const EXAMPLE: [u8; 38] = [
        b't', b'o', b'p', b'i', b'c', b'l', b'o', b'g',
        0, 2,
        0, 1,
        0, 0, 0, 0, 0, 0, 1, 2,
        0, 0, 0, 2,
        0, 0, 0, 0,
        0xf0, 0x46, 0x41, 0xcd,
        b'{', b'}',
        0xe8, 0x1d, 0x8a, 0x06,
    ];

    #[test]
    fn worked_example() {
        assert_eq!(encode(2, 1, 258, b"{}"), EXAMPLE);
        assert_eq!(decode(&EXAMPLE, 2, 1, 2).unwrap(), Frame { version: 1, generation: 258, payload: b"{}" });
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let frame = encode(1, 1, 7, b"some payload");
        for bit in 0..frame.len() * 8 {
            let mut flipped = frame.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(decode(&flipped, 1, 1, 100), Err(FrameError::Damaged { .. })), "bit {bit}");
        }
    }

    #[test]
    fn every_other_length_is_noticed() {
        let mut frame = encode(1, 1, 7, b"some payload");
        for bytes in 0..frame.len() {
            assert!(decode(&frame[..bytes], 1, 1, 100).is_err(), "{bytes} bytes");
        }
        frame.push(0);
        assert!(decode(&frame, 1, 1, 100).is_err());
    }

    #[test]
    fn a_newer_version_is_not_damage() {
        let frame = encode(1, 3, 7, b"x");
        assert_eq!(decode(&frame, 1, 2, 100), Err(FrameError::NewerVersion { found: 3, max: 2 }));
        assert!(matches!(decode(&frame, 2, 3, 100), Err(FrameError::Damaged { .. })), "another kind");
        assert!(matches!(decode(&frame, 1, 3, 0), Err(FrameError::Damaged { .. })), "over the limit");
    }

    proptest! {
        #[test]
        fn round_trip(kind: u16, version: u16, generation: u64, payload: Vec<u8>) {
            let frame = encode(kind, version, generation, &payload);
            prop_assert_eq!(frame.len(), payload.len() + OVERHEAD_BYTES);
            let decoded = decode(&frame, kind, version, payload.len());
            prop_assert_eq!(decoded, Ok(Frame { version, generation, payload: &payload }));
        }

        #[test]
        fn garbage_is_refused(garbage: Vec<u8>) {
            prop_assert!(decode(&garbage, 1, 1, 1 << 20).is_err());
        }
    }

    /// The example with one byte of its header changed, and the checksums made right again.
    fn with_header_byte(at: usize, byte: u8) -> Vec<u8> {
        let mut frame = EXAMPLE.to_vec();
        frame[at] = byte;
        let header_crc = crc32fast::hash(&frame[..28]).to_be_bytes();
        frame[28..32].copy_from_slice(&header_crc);
        let crc = crc32fast::hash(&frame[..34]).to_be_bytes();
        frame[34..].copy_from_slice(&crc);
        frame
    }

    #[test]
    fn what_the_checksums_vouch_for_is_judged_all_the_same() {
        let refused = |frame: &[u8]| match decode(frame, 2, 1, 100) {
            Err(FrameError::Damaged { what }) => what,
            other => panic!("{other:?}"),
        };
        assert!(refused(&with_header_byte(0, b'T')).contains("begin"));
        assert!(refused(&with_header_byte(9, 3)).contains("kind 3"));
        assert!(refused(&with_header_byte(27, 1)).contains("reserved"));
        assert!(refused(&with_header_byte(23, 1)).contains("follow"));
        assert!(refused(&with_header_byte(23, 3)).contains("follow"));
        assert!(refused(&with_header_byte(23, 9)).contains("ends within"));
        assert!(refused(&with_header_byte(20, 0x7f)).contains("at most 100"));
        assert!(decode(&with_header_byte(12, 0xff), 2, 1, 100).is_ok(), "any generation is one");
    }
}
