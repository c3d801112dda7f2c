//! The codecs: [`Compression`], and bodies to compressed bytes and back.
//!
//! Each codec is behind a feature of its name. What is written is what Kafka's Java client reads; what is read is
//! capped while it grows, so that a small body cannot become a large one. Knows nothing of headers or records.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::Error;

use super::batch::BatchError;

/// How the records of a batch are compressed: all of them together, the header stays plain.
///
/// ```
/// use topiclog::record::Compression;
/// let codec: Compression = "lz4".parse()?;
/// assert_eq!((codec, codec.id(), codec.to_string()), (Compression::Lz4, 3, "lz4".to_owned()));
/// assert!(Compression::None.is_built_in());
/// # Ok::<(), topiclog::Error>(())
/// ```
#[doc(alias = "compression.type")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "&'static str")]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// One gzip member. Feature `gzip`.
    Gzip,
    /// Snappy blocks in the framing of the Java client. Feature `snappy`.
    Snappy,
    /// One LZ4 frame of independent blocks. Feature `lz4`.
    Lz4,
    /// One Zstandard frame. Feature `zstd`.
    Zstd,
}

impl Compression {
    /// All codecs, by id.
    pub const ALL: [Compression; 5] =
        [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];

    /// The number in the batch's attributes.
    pub const fn id(self) -> u8 {
        match self {
            Compression::None => 0,
            Compression::Gzip => 1,
            Compression::Snappy => 2,
            Compression::Lz4 => 3,
            Compression::Zstd => 4,
        }
    }

    /// The codec of a number, `None` if there is none.
    #[inline]
    pub const fn from_id(id: u8) -> Option<Self> {
        match id {
            0 => Some(Compression::None),
            1 => Some(Compression::Gzip),
            2 => Some(Compression::Snappy),
            3 => Some(Compression::Lz4),
            4 => Some(Compression::Zstd),
            _ => None,
        }
    }

    /// Kafka's name, which is also that of the feature.
    pub const fn name(self) -> &'static str {
        match self {
            Compression::None => "none",
            Compression::Gzip => "gzip",
            Compression::Snappy => "snappy",
            Compression::Lz4 => "lz4",
            Compression::Zstd => "zstd",
        }
    }

    /// Whether this build can compress and decompress it.
    pub const fn is_built_in(self) -> bool {
        match self {
            Compression::None => true,
            Compression::Gzip => cfg!(feature = "gzip"),
            Compression::Snappy => cfg!(feature = "snappy"),
            Compression::Lz4 => cfg!(feature = "lz4"),
            Compression::Zstd => cfg!(feature = "zstd"),
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Compression {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self, Error> {
        match name {
            "none" | "uncompressed" => Ok(Compression::None),
            "gzip" => Ok(Compression::Gzip),
            "snappy" => Ok(Compression::Snappy),
            "lz4" => Ok(Compression::Lz4),
            "zstd" => Ok(Compression::Zstd),
            _ => Err(Error::config("compression.type", "must be none, gzip, snappy, lz4 or zstd")),
        }
    }
}

impl TryFrom<String> for Compression {
    type Error = Error;
    fn try_from(name: String) -> Result<Self, Error> {
        name.parse()
    }
}

impl From<Compression> for &'static str {
    fn from(codec: Compression) -> &'static str {
        codec.name()
    }
}

/// Appends the compressed form of `body` to `out`. `level` is the codec's own; gzip and zstd know one.
pub(super) fn compress(
    codec: Compression,
    level: Option<i32>,
    body: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), BatchError> {
    match codec {
        Compression::None => {
            out.extend_from_slice(body);
            Ok(())
        }
        #[cfg(feature = "gzip")]
        Compression::Gzip => gzip::compress(level, body, out),
        #[cfg(feature = "snappy")]
        Compression::Snappy => snappy::compress(body, out),
        #[cfg(feature = "lz4")]
        Compression::Lz4 => lz4::compress(body, out),
        #[cfg(feature = "zstd")]
        Compression::Zstd => zstandard::compress(level, body, out),
        #[allow(unreachable_patterns, reason = "with all features there is no codec left")]
        _ => {
            let _unused_without_codecs = level;
            Err(BatchError::CodecNotBuiltIn(codec))
        }
    }
}

/// Appends the uncompressed form of `body` to `out`, which never grows by more than `limit` bytes. The whole of `body`
/// must be used up.
pub(super) fn decompress(codec: Compression, body: &[u8], out: &mut Vec<u8>, limit: usize) -> Result<(), BatchError> {
    match codec {
        Compression::None if body.len() > limit => Err(BatchError::DecompressedTooLarge { limit }),
        Compression::None => {
            out.extend_from_slice(body);
            Ok(())
        }
        #[cfg(feature = "gzip")]
        Compression::Gzip => gzip::decompress(body, out, limit),
        #[cfg(feature = "snappy")]
        Compression::Snappy => snappy::decompress(body, out, limit),
        #[cfg(feature = "lz4")]
        Compression::Lz4 => lz4::decompress(body, out, limit),
        #[cfg(feature = "zstd")]
        Compression::Zstd => zstandard::decompress(body, out, limit),
        #[allow(unreachable_patterns, reason = "with all features there is no codec left")]
        _ => Err(BatchError::CodecNotBuiltIn(codec)),
    }
}

#[cfg(any(feature = "gzip", feature = "snappy", feature = "lz4", feature = "zstd"))]
#[cold]
fn failed(codec: Compression, why: impl fmt::Display) -> BatchError {
    BatchError::Decompress { codec, why: why.to_string().into() }
}

/// Reads all that `source` gives into `out`, up to the limit.
#[cfg(any(feature = "gzip", feature = "zstd"))]
fn read_capped(
    source: &mut impl std::io::Read,
    out: &mut Vec<u8>,
    limit: usize,
) -> std::io::Result<Result<(), BatchError>> {
    use std::io::Read as _;
    let before = out.len();
    // One byte more than allowed tells an exact fit from too much.
    let cap = (limit as u64).saturating_add(1);
    source.take(cap).read_to_end(out)?;
    let fits = out.len().saturating_sub(before) <= limit;
    Ok(if fits { Ok(()) } else { Err(BatchError::DecompressedTooLarge { limit }) })
}

#[cfg(feature = "gzip")]
mod gzip {
    //! One RFC 1952 member. Its time, system and flags tell nothing and are not looked at.

    use std::io::Write as _;

    use super::{BatchError, Compression, failed, read_capped};

    /// Java's `Deflater` and zlib both take -1 as their default, 6.
    const LEVEL_DEFAULT: u32 = 6;

    pub(super) fn compress(level: Option<i32>, body: &[u8], out: &mut Vec<u8>) -> Result<(), BatchError> {
        let level = match level {
            None | Some(-1) => LEVEL_DEFAULT,
            Some(level @ 1..=9) => level.unsigned_abs(),
            Some(_) => return Err(BatchError::Unencodable { what: "the gzip level must be -1 or 1 to 9" }),
        };
        let mut encoder = flate2::write::GzEncoder::new(out, flate2::Compression::new(level));
        let written = encoder.write_all(body).and_then(|()| encoder.try_finish());
        written.map_err(|error| failed(Compression::Gzip, error))
    }

    pub(super) fn decompress(body: &[u8], out: &mut Vec<u8>, limit: usize) -> Result<(), BatchError> {
        let mut decoder = flate2::bufread::GzDecoder::new(body);
        read_capped(&mut decoder, out, limit).map_err(|error| failed(Compression::Gzip, error))??;
        match decoder.into_inner() {
            [] => Ok(()),
            _ => Err(failed(Compression::Gzip, "bytes follow the member")),
        }
    }
}

#[cfg(feature = "snappy")]
mod snappy {
    //! Two framings: blocks in the stream of the xerial library, as the Java client writes, and one bare block, as
    //! librdkafka writes.
    //!
    //! ```text
    //!  0  82 53 4e 41 50 50 59 00   magic; without it the whole body is one bare block
    //!  8  00 00 00 01               version, big-endian
    //! 12  00 00 00 01               oldest version that can read it
    //! 16  i32 length, block         repeated; a length that is the start of the magic repeats the 16 bytes
    //! ```

    use super::{BatchError, Compression, failed};

    const MAGIC: [u8; 8] = *b"\x82SNAPPY\0";
    /// The first half of the magic, where a length is expected.
    const MAGIC_AS_LENGTH: [u8; 4] = *b"\x82SNA";
    const HEADER: [u8; 16] = *b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01";
    /// What the Java client puts into a block. A reader takes any size.
    const BLOCK_BYTES: usize = 32 * 1024;

    pub(super) fn compress(body: &[u8], out: &mut Vec<u8>) -> Result<(), BatchError> {
        let mut encoder = snap::raw::Encoder::new();
        let mut block = vec![0; snap::raw::max_compress_len(body.len().min(BLOCK_BYTES))];
        out.extend_from_slice(&HEADER);
        for plain in body.chunks(BLOCK_BYTES) {
            let size = encoder.compress(plain, &mut block).map_err(|error| failed(Compression::Snappy, error))?;
            // A block of 32 KiB never compresses to more than fits an i32.
            out.extend_from_slice(&(size as u32).to_be_bytes());
            out.extend_from_slice(block.get(..size).unwrap_or_default());
        }
        Ok(())
    }

    pub(super) fn decompress(body: &[u8], out: &mut Vec<u8>, limit: usize) -> Result<(), BatchError> {
        let mut left = limit;
        if !body.starts_with(&MAGIC) {
            return block(body, out, &mut left, limit);
        }
        let mut rest = body.get(HEADER.len()..).ok_or_else(|| failed(Compression::Snappy, "the header is cut"))?;
        while let Some((length, after)) = rest.split_first_chunk::<4>() {
            if *length == MAGIC_AS_LENGTH {
                // Streams that were put one after the other.
                rest = rest.get(HEADER.len()..).ok_or_else(|| failed(Compression::Snappy, "the header is cut"))?;
                continue;
            }
            let length = usize::try_from(i32::from_be_bytes(*length)).ok();
            let (compressed, after) = length
                .and_then(|length| after.split_at_checked(length))
                .ok_or_else(|| failed(Compression::Snappy, "a block does not end within the body"))?;
            block(compressed, out, &mut left, limit)?;
            rest = after;
        }
        match rest {
            [] => Ok(()),
            _ => Err(failed(Compression::Snappy, "bytes follow the last block")),
        }
    }

    /// One raw block. Its length is read, and held against what is left of the limit, before room is made for it.
    fn block(compressed: &[u8], out: &mut Vec<u8>, left: &mut usize, limit: usize) -> Result<(), BatchError> {
        let length = snap::raw::decompress_len(compressed).map_err(|error| failed(Compression::Snappy, error))?;
        *left = left.checked_sub(length).ok_or(BatchError::DecompressedTooLarge { limit })?;
        let start = out.len();
        out.resize(start.saturating_add(length), 0);
        let room = out.get_mut(start..).unwrap_or_default();
        let written = snap::raw::Decoder::new().decompress(compressed, room);
        match written.map_err(|error| failed(Compression::Snappy, error))? {
            written if written == length => Ok(()),
            _ => Err(failed(Compression::Snappy, "a block is shorter than it says")),
        }
    }
}

#[cfg(feature = "lz4")]
mod lz4 {
    //! One LZ4 frame with independent blocks of 64 KiB, no sizes, no checksums but the header's.
    //!
    //! ```text
    //! 04 22 4d 18   magic, little-endian like all of the frame
    //! 60 40 82      version 1 and independent blocks; 64 KiB; checksum of the two
    //! u32, block    repeated; bit 31 of the size: stored as it is
    //! 00 00 00 00   end
    //! ```
    //!
    //! A reader takes larger blocks, a content size and checksums. Like Kafka's it refuses linked blocks and
    //! dictionaries; it also refuses a frame without its end, and bytes after it.

    use std::io::{BufRead as _, Write as _};

    use lz4_flex::frame::{BlockMode, BlockSize, FrameDecoder, FrameEncoder, FrameInfo};

    use super::{BatchError, Compression, failed};

    const MAGIC: [u8; 4] = 0x184d_2204_u32.to_le_bytes();
    const INDEPENDENT_BLOCKS: u8 = 0x20;
    const BLOCK_CHECKSUMS: u8 = 0x10;
    const CONTENT_SIZE: u8 = 0x08;
    const CONTENT_CHECKSUM: u8 = 0x04;
    const DICTIONARY: u8 = 0x01;
    const STORED: u32 = 0x8000_0000;

    pub(super) fn compress(body: &[u8], out: &mut Vec<u8>) -> Result<(), BatchError> {
        let info = FrameInfo::new().block_mode(BlockMode::Independent).block_size(BlockSize::Max64KB);
        let mut encoder = FrameEncoder::with_frame_info(info, out);
        encoder.write_all(body).map_err(|error| failed(Compression::Lz4, error))?;
        encoder.try_finish().map_err(|error| failed(Compression::Lz4, error))
    }

    pub(super) fn decompress(body: &[u8], out: &mut Vec<u8>, limit: usize) -> Result<(), BatchError> {
        check_frame(body).map_err(|why| failed(Compression::Lz4, why))?;
        let mut decoder = FrameDecoder::new(body);
        let mut left = limit;
        loop {
            // No more than one block is uncompressed before it is held against the limit.
            let block = decoder.fill_buf().map_err(|error| failed(Compression::Lz4, error))?;
            if block.is_empty() {
                break;
            }
            left = left.checked_sub(block.len()).ok_or(BatchError::DecompressedTooLarge { limit })?;
            out.extend_from_slice(block);
            let taken = block.len();
            decoder.consume(taken);
        }
        // The decoder takes a block that becomes nothing for the end.
        match decoder.get_ref() {
            [] => Ok(()),
            _ => Err(failed(Compression::Lz4, "an empty block")),
        }
    }

    /// Walks the frame by its sizes: it must be of the kind that Kafka reads, and end where the body ends.
    fn check_frame(body: &[u8]) -> Result<(), &'static str> {
        let cut = "the frame is cut";
        let (magic, rest) = body.split_first_chunk::<4>().ok_or(cut)?;
        if *magic != MAGIC {
            return Err("not a frame");
        }
        let (&flags, _) = rest.split_first().ok_or(cut)?;
        if flags & INDEPENDENT_BLOCKS == 0 {
            return Err("linked blocks, which Kafka does not read");
        }
        if flags & DICTIONARY != 0 {
            return Err("a dictionary, which Kafka does not read");
        }
        // Flags, block size and header checksum, and a content size of 8 bytes.
        let descriptor_bytes = if flags & CONTENT_SIZE == 0 { 3 } else { 11 };
        let checksum_bytes = if flags & BLOCK_CHECKSUMS == 0 { 0 } else { 4_usize };
        let mut rest = rest.get(descriptor_bytes..).ok_or(cut)?;
        loop {
            let (size, after) = rest.split_first_chunk::<4>().ok_or(cut)?;
            let size = u32::from_le_bytes(*size);
            if size == 0 {
                rest = after;
                break;
            }
            let skipped = ((size & !STORED) as usize).checked_add(checksum_bytes).ok_or(cut)?;
            rest = after.get(skipped..).ok_or(cut)?;
        }
        let trailer_bytes = if flags & CONTENT_CHECKSUM == 0 { 0 } else { 4 };
        if rest.len() == trailer_bytes { Ok(()) } else { Err("bytes follow the frame, or its checksum is cut") }
    }
}

#[cfg(feature = "zstd")]
mod zstandard {
    //! Standard frames without dictionary, written as one without a content size, as the Java client streams it.
    //!
    //! A decoder of streams keeps the frame's window in memory. From level 20 on the Java client asks for one of 32 to 128 MiB,
    //! whatever the size of the batch: such a frame is decompressed in one piece, and what comes out is its window.

    use std::cell::RefCell;
    use std::io::{self, Write as _};

    use zstd::zstd_safe::zstd_sys::ZSTD_ErrorCode as Code;
    use zstd::zstd_safe::{CCtx, CParameter, DCtx, ResetDirective};

    use super::{BatchError, Compression, failed, read_capped};

    /// The codec's own default, which is also Kafka's.
    const LEVEL_DEFAULT: i32 = 3;
    /// The largest window that is kept in memory, and that is asked for: 8 MiB.
    const WINDOW_LOG_MAX: u32 = 23;
    /// A context with more memory than this is not kept: enough to decompress frames of all levels below 17, and to compress at the
    /// lower ones.
    const CONTEXT_BYTES_MAX: usize = 5 << 20;
    /// What is first tried as the size of a frame that is decompressed in one piece.
    const PIECE_BYTES: usize = 1 << 20;

    pub(super) fn compress(level: Option<i32>, body: &[u8], out: &mut Vec<u8>) -> Result<(), BatchError> {
        let level = level.unwrap_or(LEVEL_DEFAULT);
        if !zstd::compression_level_range().contains(&level) {
            return Err(BatchError::Unencodable { what: "the zstd level is out of range" });
        }
        let written = with_context(|context: &mut CCtx<'static>| {
            let mut encoder = zstd::stream::write::Encoder::with_context(out, context);
            encoder.set_parameter(CParameter::CompressionLevel(level))?;
            // The highest levels would take a window that readers, even Kafka's, have to keep in memory.
            encoder.window_log(WINDOW_LOG_MAX.min(window_log(level)))?;
            encoder.write_all(body)?;
            encoder.finish()
        });
        written.map(|_| ()).map_err(|error| failed(Compression::Zstd, error))
    }

    /// 0 leaves the window to the level; from 17 on levels take up to 128 MiB.
    fn window_log(level: i32) -> u32 {
        if level < 17 { 0 } else { WINDOW_LOG_MAX }
    }

    pub(super) fn decompress(body: &[u8], out: &mut Vec<u8>, limit: usize) -> Result<(), BatchError> {
        let before = out.len();
        match with_context(|context: &mut DCtx<'static>| {
            let mut decoder = zstd::stream::read::Decoder::with_context(body, context);
            decoder.window_log_max(WINDOW_LOG_MAX)?;
            read_capped(&mut decoder, out, limit)
        }) {
            Ok(read) => read,
            Err(error) if is(&error, Code::ZSTD_error_frameParameter_windowTooLarge) => {
                out.truncate(before);
                decompress_in_one_piece(body, out, limit)
            }
            Err(error) => Err(failed(Compression::Zstd, error)),
        }
    }

    type Kept<C> = RefCell<Option<C>>;

    thread_local! {
        /// What compressed, and what decompressed, the batch before. To make one for each takes longer than a small batch does, as
        /// the memory of its window is taken anew each time.
        pub(super) static COMPRESSOR: Kept<CCtx<'static>> = const { RefCell::new(None) };
        pub(super) static DECOMPRESSOR: Kept<DCtx<'static>> = const { RefCell::new(None) };
    }

    /// What both have in common.
    trait Context: Sized + 'static {
        fn try_create() -> Option<Self>;
        /// Forgets the frame that it is in, and how it was set; whether that could be done.
        fn forget(&mut self) -> bool;
        fn memory_bytes(&self) -> usize;
        /// Looks at what this thread has kept; `None` where the thread is about to end.
        fn kept<R>(look: impl FnOnce(&Kept<Self>) -> R) -> Option<R>;
    }

    macro_rules! context {
        ($context:ident, $kept:ident) => {
            impl Context for $context<'static> {
                fn try_create() -> Option<Self> {
                    $context::try_create()
                }

                fn forget(&mut self) -> bool {
                    self.reset(ResetDirective::SessionAndParameters).is_ok()
                }

                fn memory_bytes(&self) -> usize {
                    self.sizeof()
                }

                fn kept<R>(look: impl FnOnce(&Kept<Self>) -> R) -> Option<R> {
                    $kept.try_with(look).ok()
                }
            }
        };
    }

    context!(CCtx, COMPRESSOR);
    context!(DCtx, DECOMPRESSOR);

    /// Lets a call work with the context that this thread has kept, or with a new one.
    fn with_context<C: Context, R>(call: impl FnOnce(&mut C) -> io::Result<R>) -> io::Result<R> {
        let kept = C::kept(RefCell::take).flatten();
        let mut context = kept.or_else(C::try_create).ok_or(io::ErrorKind::OutOfMemory)?;
        let result = call(&mut context);
        if context.forget() && context.memory_bytes() <= CONTEXT_BYTES_MAX {
            C::kept(|kept| kept.replace(Some(context)));
        }
        result
    }

    fn is(error: &io::Error, code: Code) -> bool {
        let of_codec = error.get_ref().and_then(|error| error.downcast_ref::<zstd::Error>());
        of_codec.is_some_and(|error| error.is(code))
    }

    /// Room is made in steps, as frames need not say how large they become.
    fn decompress_in_one_piece(body: &[u8], out: &mut Vec<u8>, limit: usize) -> Result<(), BatchError> {
        let mut decompressor = zstd::bulk::Decompressor::new().map_err(|error| failed(Compression::Zstd, error))?;
        let before = out.len();
        let mut room = PIECE_BYTES.min(limit);
        loop {
            out.resize(before.saturating_add(room), 0);
            match decompressor.decompress_to_buffer(body, out.get_mut(before..).unwrap_or_default()) {
                Ok(written) => {
                    out.truncate(before.saturating_add(written));
                    return Ok(());
                }
                Err(error) if !is(&error, Code::ZSTD_error_dstSize_tooSmall) => {
                    return Err(failed(Compression::Zstd, error));
                }
                Err(_) if room >= limit => return Err(BatchError::DecompressedTooLarge { limit }),
                Err(_) => room = room.saturating_mul(2).min(limit),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_kafkas() {
        for codec in Compression::ALL {
            assert_eq!(codec.name().parse::<Compression>().unwrap(), codec);
            assert_eq!(Compression::from_id(codec.id()), Some(codec));
            let text = serde_json::to_string(&codec).unwrap();
            assert_eq!(text, format!("\"{codec}\""));
            assert_eq!(serde_json::from_str::<Compression>(&text).unwrap(), codec);
        }
        assert_eq!(Compression::from_id(5), None);
        assert_eq!("uncompressed".parse::<Compression>().unwrap(), Compression::None);
        assert!("GZIP".parse::<Compression>().is_err());
    }

    #[cfg(any(feature = "gzip", feature = "snappy", feature = "lz4", feature = "zstd"))]
    mod built_in {
        use super::*;

        fn packed(codec: Compression, body: &[u8]) -> Vec<u8> {
            let mut out = Vec::new();
            compress(codec, None, body, &mut out).unwrap();
            out
        }

        fn unpacked(codec: Compression, body: &[u8], limit: usize) -> Result<Vec<u8>, BatchError> {
            let mut out = b"before".to_vec();
            decompress(codec, body, &mut out, limit)?;
            Ok(out.split_off(6))
        }

        fn codecs() -> impl Iterator<Item = Compression> {
            Compression::ALL.into_iter().filter(|codec| codec.is_built_in())
        }

        fn is_damage(outcome: Result<Vec<u8>, BatchError>) -> bool {
            matches!(outcome, Err(BatchError::Decompress { .. }))
        }

        /// Bytes that compress, over several blocks.
        fn sample() -> Vec<u8> {
            (0..200_000_u32).map(|index| (index / 7 % 251) as u8).collect()
        }

        #[test]
        fn the_limit_is_exact() {
            let sample = sample();
            for codec in codecs() {
                let packed = packed(codec, &sample);
                assert_eq!(unpacked(codec, &packed, sample.len()).unwrap(), sample, "{codec}");
                let limit = sample.len() - 1;
                assert_eq!(unpacked(codec, &packed, limit), Err(BatchError::DecompressedTooLarge { limit }), "{codec}");
                assert_eq!(unpacked(codec, &packed, 0), Err(BatchError::DecompressedTooLarge { limit: 0 }), "{codec}");
            }
        }

        #[test]
        fn a_bomb_is_stopped() {
            let zeros = vec![0; 64 << 20];
            let limit = 1 << 20;
            for codec in codecs() {
                let packed = packed(codec, &zeros);
                let mut out = Vec::new();
                let stopped = decompress(codec, &packed, &mut out, limit);
                assert_eq!(stopped, Err(BatchError::DecompressedTooLarge { limit }), "{codec}");
                assert!(out.capacity() <= 8 * limit, "{codec}: {}", out.capacity());
            }
        }

        #[test]
        fn cut_or_followed_streams_are_refused() {
            let sample = sample();
            for codec in codecs().filter(|&codec| codec != Compression::None) {
                let packed = packed(codec, &sample);
                for cut in [1, 3, packed.len() / 2, packed.len() - 9] {
                    assert!(is_damage(unpacked(codec, &packed[..packed.len() - cut], 1 << 20)), "{codec} less {cut}");
                }
                let mut followed = packed.clone();
                followed.extend_from_slice(b"xy");
                assert!(is_damage(unpacked(codec, &followed, 1 << 20)), "{codec}");
            }
        }

        #[cfg(feature = "gzip")]
        #[test]
        fn gzip_is_one_member_as_java_writes_it() {
            let packed = packed(Compression::Gzip, b"a");
            assert_eq!(packed[..10], [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff]);
            let two = [&packed[..], &packed[..]].concat();
            assert!(is_damage(unpacked(Compression::Gzip, &two, 100)));
            let mut out = Vec::new();
            for level in [-1, 1, 9] {
                assert_eq!(compress(Compression::Gzip, Some(level), b"a", &mut out), Ok(()));
            }
            for level in [-2, 0, 10] {
                let refused = compress(Compression::Gzip, Some(level), b"a", &mut out);
                assert!(matches!(refused, Err(BatchError::Unencodable { .. })));
            }
        }

        #[cfg(feature = "snappy")]
        #[test]
        fn snappy_in_both_framings() {
            let codec = Compression::Snappy;
            let block = snap::raw::Encoder::new().compress_vec(b"hello").unwrap();
            assert_eq!(unpacked(codec, &block, 5).unwrap(), b"hello");
            let stream = packed(codec, b"hello");
            assert_eq!(stream[..16], *b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01");
            // Two streams, one after the other.
            let twice = [&stream[..], &stream[..]].concat();
            assert_eq!(unpacked(codec, &twice, 10).unwrap(), b"hellohello");
            assert_eq!(unpacked(codec, &twice, 9), Err(BatchError::DecompressedTooLarge { limit: 9 }));
            // A negative block length, and a header that is cut.
            let negative = [&stream[..16], &[0xff; 4], &stream[20..]].concat();
            assert!(is_damage(unpacked(codec, &negative, 100)));
            assert!(is_damage(unpacked(codec, &stream[..12], 100)));
            // A length of 4 GiB in five bytes is refused before room is made for it.
            assert!(unpacked(codec, &[0xff, 0xff, 0xff, 0xff, 0x0f, 0], 1 << 20).is_err());
        }

        #[cfg(feature = "lz4")]
        #[test]
        fn lz4_frames_are_as_kafkas() {
            let codec = Compression::Lz4;
            let frame = [4, 0x22, 0x4d, 0x18, 0x60, 0x40, 0x82, 1, 0, 0, 0x80, b'a', 0, 0, 0, 0];
            assert_eq!(packed(codec, b"a"), frame);
            assert_eq!(unpacked(codec, &frame, 1).unwrap(), b"a");
            // A wrong checksum of the header, a reserved bit, a missing end.
            for (at, byte) in [(6, 0x83), (4, 0x62), (10, 0x81)] {
                let mut changed = frame;
                changed[at] = byte;
                assert!(is_damage(unpacked(codec, &changed, 100)), "byte {at}");
            }
            assert!(is_damage(unpacked(codec, &frame[..12], 100)));
        }

        #[cfg(feature = "lz4")]
        #[test]
        fn lz4_options_that_kafka_reads_or_refuses() {
            use std::io::Write as _;

            use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};

            let sample = sample();
            let frame = |info: FrameInfo| {
                let mut encoder = FrameEncoder::with_frame_info(info, Vec::new());
                encoder.write_all(&sample).unwrap();
                encoder.finish().unwrap()
            };
            let independent = FrameInfo::new().block_mode(BlockMode::Independent);
            for info in [
                independent.clone().block_size(BlockSize::Max4MB),
                independent.clone().block_size(BlockSize::Max64KB).block_checksums(true),
                independent.clone().content_checksum(true),
                independent.clone().content_size(Some(sample.len() as u64)),
            ] {
                assert_eq!(unpacked(Compression::Lz4, &frame(info), 1 << 20).unwrap(), sample);
            }
            let linked = frame(FrameInfo::new().block_mode(BlockMode::Linked).block_size(BlockSize::Max64KB));
            assert!(is_damage(unpacked(Compression::Lz4, &linked, 1 << 20)));
        }

        #[cfg(feature = "zstd")]
        #[test]
        fn zstd_without_a_size_and_with_a_small_window() {
            let codec = Compression::Zstd;
            let sample = sample();
            assert_eq!(packed(codec, &sample)[..6], [0x28, 0xb5, 0x2f, 0xfd, 0, 0x58]);
            // Our own highest level stays within the window that we read.
            let mut out = Vec::new();
            compress(codec, Some(22), &sample, &mut out).unwrap();
            assert_eq!(unpacked(codec, &out, 1 << 20).unwrap(), sample);
            let refused = compress(codec, Some(23), b"a", &mut out);
            assert!(matches!(refused, Err(BatchError::Unencodable { .. })));
            // A frame with its size is read as well.
            let sized = zstd::bulk::compress(&sample, 3).unwrap();
            assert_eq!(unpacked(codec, &sized, 1 << 20).unwrap(), sample);
        }

        /// A frame as the Java client streams it at its highest levels.
        #[cfg(feature = "zstd")]
        fn with_window(window_log: u32, body: &[u8]) -> Vec<u8> {
            let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
            encoder.window_log(window_log).unwrap();
            std::io::Write::write_all(&mut encoder, body).unwrap();
            encoder.finish().unwrap()
        }

        /// Once a correct batch was called damaged for its window, and once it would have taken as much memory as that.
        #[cfg(feature = "zstd")]
        #[test]
        fn a_zstd_frame_with_a_large_window_takes_no_more_memory_than_what_comes_out() {
            let codec = Compression::Zstd;
            let large: Vec<u8> = sample().into_iter().cycle().take(5 << 20).collect();
            for window_log in [24, 25, 27] {
                for body in [&b"a"[..], &sample(), &large] {
                    let frame = with_window(window_log, body);
                    for limit in [body.len(), body.len() + 1, 16 << 20] {
                        let mut out = Vec::new();
                        decompress(codec, &frame, &mut out, limit).unwrap();
                        assert!(out == body, "window 2^{window_log}, {} bytes, limit {limit}", body.len());
                        let most = limit.min(2 * body.len() + PIECE);
                        assert!(out.capacity() <= 8 + 2 * most, "{}", out.capacity());
                    }
                    let limit = body.len() - 1;
                    assert_eq!(unpacked(codec, &frame, limit), Err(BatchError::DecompressedTooLarge { limit }));
                    assert!(is_damage(unpacked(codec, &frame[..frame.len() - 1], 16 << 20)));
                    let mut changed = frame;
                    changed.extend_from_slice(b"xy");
                    assert!(is_damage(unpacked(codec, &changed, 16 << 20)));
                }
            }
            // Of one piece, with its size: the window is what comes out.
            let large: Vec<u8> = large.into_iter().cycle().take(9 << 20).collect();
            let sized = zstd::bulk::compress(&large, 3).unwrap();
            assert!(unpacked(codec, &sized, 16 << 20).unwrap() == large);
        }

        /// The context of a thread has decompressed other frames, to their end or not.
        #[cfg(feature = "zstd")]
        #[test]
        fn a_zstd_context_knows_nothing_of_the_frame_before_and_stays_small() {
            let codec = Compression::Zstd;
            let sample = sample();
            let at_level = |level| {
                let mut out = Vec::new();
                compress(codec, Some(level), &sample, &mut out).unwrap();
                out
            };
            let kept_bytes =
                || zstandard::DECOMPRESSOR.with_borrow(|kept| kept.as_ref().map(|context| context.sizeof()));
            let frame = packed(codec, &sample);
            let is_read = || assert!(unpacked(codec, &frame, 1 << 20).unwrap() == sample);
            is_read();
            let bytes = kept_bytes().unwrap();
            assert!((2 << 20..3 << 20).contains(&bytes), "{bytes}");
            for damaged in [&frame[..frame.len() / 2], &frame[5..], b"", b"x", &with_window(27, b"a")[..9]] {
                assert!(unpacked(codec, damaged, 1 << 20).is_err() || damaged.is_empty());
                is_read();
            }
            let limit = 1000;
            assert_eq!(unpacked(codec, &frame, limit), Err(BatchError::DecompressedTooLarge { limit }));
            is_read();
            assert!(unpacked(codec, &at_level(16), 1 << 20).unwrap() == sample && kept_bytes().unwrap() < 5 << 20);
            assert!(unpacked(codec, &at_level(19), 1 << 20).unwrap() == sample && kept_bytes().is_none());
            is_read();
            assert_eq!(kept_bytes(), Some(bytes));
        }

        /// The context of a thread has compressed other bodies, at other levels.
        #[cfg(feature = "zstd")]
        #[test]
        fn what_zstd_makes_of_a_body_does_not_depend_on_what_the_thread_has_compressed_before() {
            let sample = sample();
            let at_level = |level| {
                let mut out = Vec::new();
                compress(Compression::Zstd, Some(level), &sample, &mut out).unwrap();
                out
            };
            let levels = [3, 1, 16, 3, 19, -5, 22, 9, 3];
            let alone = |level| std::thread::scope(|scope| scope.spawn(move || at_level(level)).join().unwrap());
            let kept_bytes = || zstandard::COMPRESSOR.with_borrow(|kept| kept.as_ref().map(|context| context.sizeof()));
            for level in levels {
                assert!(at_level(level) == alone(level), "{level}");
                assert!(kept_bytes().is_none_or(|bytes| bytes <= 5 << 20), "{level}");
                assert_eq!(kept_bytes().is_some(), level <= 3, "{level}: {:?}", kept_bytes());
            }
        }

        /// What is first tried for a frame in one piece.
        #[cfg(feature = "zstd")]
        const PIECE: usize = 1 << 20;
    }
}
