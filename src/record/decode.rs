//! How the body of a batch is uncompressed, within limits that are known before anything is allocated.

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;

use crate::planted::{Bug, is};

use super::batch::{BATCH_HEADER_BYTES, BatchError, BatchHeader, BatchView};
use super::compress::{self, Compression};
use super::stored::SharedBytes;

/// What a reader allows a body to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeLimits {
    /// The most bytes that one body may decompress to; 16 MiB unless set, and never more than 2147483647.
    pub decompressed_bytes_max: usize,
}

impl Default for DecodeLimits {
    fn default() -> Self {
        Self { decompressed_bytes_max: 16 * 1024 * 1024 }
    }
}

impl DecodeLimits {
    fn bytes_max(self) -> usize {
        if is(Bug::DecompressUnlimited) {
            return i32::MAX as usize;
        }
        self.decompressed_bytes_max.min(i32::MAX as usize)
    }
}

/// The uncompressed body of a batch that is known to hold: a slice of it, or a fresh buffer.
///
/// # Errors
/// If the body cannot be decompressed within the limits.
pub fn decode_body(header: &BatchHeader, batch: &Bytes, limits: &DecodeLimits) -> Result<Bytes, BatchError> {
    match decode(header, batch, limits)? {
        Decoded::InPlace(range) => Ok(batch.slice(range)),
        Decoded::Anew(body) => Ok(body.into()),
    }
}

/// [`decode_body`] of bytes that are only looked at.
pub(crate) fn decode_slice<'a>(
    header: &BatchHeader,
    batch: &'a [u8],
    limits: &DecodeLimits,
) -> Result<Cow<'a, [u8]>, BatchError> {
    match decode(header, batch, limits)? {
        Decoded::InPlace(range) => Ok(Cow::Borrowed(batch.get(range).unwrap_or_default())),
        Decoded::Anew(body) => Ok(Cow::Owned(body)),
    }
}

/// [`decode_body`] of bytes that are shared in our own way.
pub(crate) fn decode_shared(
    header: &BatchHeader,
    batch: &SharedBytes,
    limits: &DecodeLimits,
) -> Result<SharedBytes, BatchError> {
    match decode(header, batch, limits)? {
        Decoded::InPlace(range) => Ok(batch.slice(range)),
        Decoded::Anew(body) => Ok(Bytes::from(body).into()),
    }
}

/// [`decode_shared`] of a batch that is not needed as a whole any more.
pub(crate) fn decode_taking(
    header: &BatchHeader,
    batch: SharedBytes,
    limits: &DecodeLimits,
) -> Result<SharedBytes, BatchError> {
    match decode(header, &batch, limits)? {
        Decoded::InPlace(range) => Ok(batch.into_slice(range)),
        Decoded::Anew(body) => Ok(Bytes::from(body).into()),
    }
}

enum Decoded {
    /// A range of the batch, which is no longer than it.
    InPlace(Range<usize>),
    Anew(Vec<u8>),
}

#[inline]
fn decode(header: &BatchHeader, batch: &[u8], limits: &DecodeLimits) -> Result<Decoded, BatchError> {
    let end = header.size_bytes();
    if end < BATCH_HEADER_BYTES || batch.len() < end {
        return Err(BatchError::Truncated { needed: end, available: batch.len() });
    }
    match header.compression() {
        Compression::None => Ok(Decoded::InPlace(BATCH_HEADER_BYTES..end)),
        codec => {
            let mut body = Vec::new();
            let compressed = batch.get(BATCH_HEADER_BYTES..end).unwrap_or_default();
            compress::decompress(codec, compressed, &mut body, limits.bytes_max())?;
            Ok(Decoded::Anew(body))
        }
    }
}

/// A buffer that compressed bodies are decompressed into, one after the other.
#[derive(Debug, Default)]
pub struct Decompressor {
    limits: DecodeLimits,
    buffer: Vec<u8>,
}

impl Decompressor {
    /// A buffer with these limits.
    pub fn new(limits: DecodeLimits) -> Self {
        Self { limits, buffer: Vec::new() }
    }

    /// The uncompressed body of a batch, in the batch itself or in the buffer.
    pub(super) fn body<'b>(&'b mut self, view: &BatchView<'b>) -> Result<&'b [u8], BatchError> {
        match view.header().compression() {
            Compression::None => Ok(view.body()),
            codec => {
                self.buffer.clear();
                compress::decompress(codec, view.body(), &mut self.buffer, self.limits.bytes_max())?;
                Ok(&self.buffer)
            }
        }
    }
}
