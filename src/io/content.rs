//! What is in a file that lives in memory: bytes in chunks, shared between copies until one of them is written.
//!
//! A copy costs one reference count, so a simulated disk can be copied thousands of times a second; zeros that were never
//! written take no space, so a file may be as long as the format allows. PURE.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, OnceLock};

/// Large enough that a file of a gigabyte has few chunks, small enough to be copied at each first write after a sync.
const CHUNK_BYTES: u64 = 64 * 1024;

/// The bytes of one file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Content {
    bytes: u64,
    /// By their number. What is not there, or past the end of a chunk, is zero; no chunk holds a byte past the end.
    chunks: Arc<BTreeMap<u64, Arc<Chunk>>>,
}

/// A piece of a file.
#[derive(Debug, Default)]
pub(crate) struct Chunk {
    bytes: Vec<u8>,
    /// Made when first asked for, forgotten at each write.
    hash: OnceLock<u64>,
}

impl Clone for Chunk {
    fn clone(&self) -> Self {
        // Room for what the write that causes the copy is about to add.
        let mut bytes = Vec::with_capacity(self.bytes.len() + self.bytes.len() / 4);
        bytes.extend_from_slice(&self.bytes);
        Self { bytes, hash: OnceLock::new() }
    }
}

impl Content {
    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let mut content = Self::default();
        content.write(bytes, 0);
        content
    }

    /// The length in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Reads up to the end; returns how much that was.
    pub(crate) fn read(&self, buffer: &mut [u8], position: u64) -> usize {
        let available = self.bytes.saturating_sub(position);
        let wanted = buffer.len().min(usize::try_from(available).unwrap_or(usize::MAX));
        let mut rest = &mut buffer[..wanted];
        let mut position = position;
        while !rest.is_empty() {
            let (number, within) = (position / CHUNK_BYTES, (position % CHUNK_BYTES) as usize);
            let take = rest.len().min(CHUNK_BYTES as usize - within);
            let (part, after) = rest.split_at_mut(take);
            let there = self.chunks.get(&number).and_then(|chunk| chunk.bytes.get(within..)).unwrap_or(&[]);
            let copied = there.len().min(take);
            part[..copied].copy_from_slice(&there[..copied]);
            part[copied..].fill(0);
            position += take as u64;
            rest = after;
        }
        wanted
    }

    /// All bytes.
    pub(crate) fn to_vec(&self) -> Vec<u8> {
        self.range(0, self.bytes)
    }

    /// `[position, position + bytes)`, as far as it is there.
    pub(crate) fn range(&self, position: u64, bytes: u64) -> Vec<u8> {
        let bytes = bytes.min(self.bytes.saturating_sub(position));
        let mut buffer = vec![0; usize::try_from(bytes).unwrap_or(0)];
        self.read(&mut buffer, position);
        buffer
    }

    /// Writes all bytes, which must end at most at [`Content::BYTES_MAX`].
    pub(crate) fn write(&mut self, bytes: &[u8], position: u64) {
        let mut rest = bytes;
        let mut at = position;
        while !rest.is_empty() {
            let (number, within) = (at / CHUNK_BYTES, (at % CHUNK_BYTES) as usize);
            let (part, after) = rest.split_at(rest.len().min(CHUNK_BYTES as usize - within));
            let chunk = Arc::make_mut(Arc::make_mut(&mut self.chunks).entry(number).or_default());
            chunk.hash = OnceLock::new();
            let end = within + part.len();
            if chunk.bytes.len() == within {
                chunk.bytes.extend_from_slice(part);
            } else {
                if chunk.bytes.len() < end {
                    chunk.bytes.resize(end, 0);
                }
                chunk.bytes[within..end].copy_from_slice(part);
            }
            at += part.len() as u64;
            rest = after;
        }
        if !bytes.is_empty() {
            self.bytes = self.bytes.max(at);
        }
    }

    /// Cuts, or extends with zeros.
    pub(crate) fn set_bytes(&mut self, bytes: u64) {
        if bytes < self.bytes {
            let chunks = Arc::make_mut(&mut self.chunks);
            chunks.split_off(&bytes.div_ceil(CHUNK_BYTES));
            if let Some(chunk) = chunks.get_mut(&(bytes / CHUNK_BYTES)) {
                let within = (bytes % CHUNK_BYTES) as usize;
                if chunk.bytes.len() > within {
                    let chunk = Arc::make_mut(chunk);
                    chunk.hash = OnceLock::new();
                    chunk.bytes.truncate(within);
                }
            }
        }
        self.bytes = bytes;
    }

    /// The first bytes as they are now, whatever is written later; without a copy where one chunk holds them all.
    pub(crate) fn snapshot(&self, bytes: u64) -> Snapshot {
        match self.chunks.get(&0) {
            Some(chunk) if chunk.bytes.len() as u64 >= bytes => Snapshot::Shared(Arc::clone(chunk), bytes as usize),
            _ => Snapshot::Copied(self.range(0, bytes)),
        }
    }

    /// A hash of length and bytes: equal contents have equal ones, however they came to be.
    pub(crate) fn hash(&self) -> u64 {
        let mut hash = mix(self.bytes ^ 0x9e37_79b9_7f4a_7c15);
        for (number, chunk) in self.chunks.iter() {
            let of_chunk = *chunk.hash.get_or_init(|| hash_bytes(&chunk.bytes));
            // A chunk of zeros counts as one that is not there.
            if of_chunk != 0 {
                hash = mix(hash ^ mix(of_chunk.wrapping_add(*number)));
            }
        }
        hash
    }

    /// The longest file.
    pub(crate) const BYTES_MAX: u64 = i64::MAX as u64;

    /// The error for a write or a length past [`Content::BYTES_MAX`].
    pub(crate) fn check_end(position: u64, bytes: u64) -> io::Result<u64> {
        position.checked_add(bytes).filter(|end| *end <= Self::BYTES_MAX).ok_or(io::ErrorKind::FileTooLarge.into())
    }
}

/// Bytes that no later write changes.
#[derive(Debug)]
pub(crate) enum Snapshot {
    Shared(Arc<Chunk>, usize),
    Copied(Vec<u8>),
}

impl AsRef<[u8]> for Snapshot {
    fn as_ref(&self) -> &[u8] {
        match self {
            Snapshot::Shared(chunk, bytes) => &chunk.bytes[..*bytes],
            Snapshot::Copied(bytes) => bytes,
        }
    }
}

/// Scrambles 64 bits so that each depends on all.
pub(crate) fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A hash that does not see zeros at the end, and is 0 for nothing but zeros.
fn hash_bytes(bytes: &[u8]) -> u64 {
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    // Four chains side by side, because each step of one waits for the one before.
    let mut lanes = [1_u64, 2, 3, 4];
    let absorb = |lane: &mut u64, word: &[u8; 8]| {
        *lane = (lane.rotate_left(29) ^ u64::from_le_bytes(*word)).wrapping_mul(0x9fb2_1c65_1e98_df25);
    };
    let (words, rest) = bytes[..end].as_chunks::<8>();
    let (groups, more) = words.as_chunks::<4>();
    for group in groups {
        lanes.iter_mut().zip(group).for_each(|(lane, word)| absorb(lane, word));
    }
    let mut tail = [0; 8];
    tail[..rest.len()].copy_from_slice(rest);
    lanes.iter_mut().zip(more.iter().chain([&tail])).for_each(|(lane, word)| absorb(lane, word));
    let hash = lanes.into_iter().fold(0, |hash, lane| mix(hash ^ lane));
    if end == 0 { 0 } else { mix(hash ^ end as u64) | 1 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Write(u32, Vec<u8>),
        Length(u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..200_000_u32, proptest::collection::vec(0..3_u8, 0..300)).prop_map(|(at, bytes)| Step::Write(at, bytes)),
            (0..200_000_u32).prop_map(Step::Length),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn like_a_vector(steps in proptest::collection::vec(step(), 0..20)) {
            let (mut content, mut model) = (Content::default(), Vec::new());
            for step in steps {
                let (before, before_model) = (content.clone(), model.clone());
                match step {
                    Step::Write(at, bytes) => {
                        content.write(&bytes, at.into());
                        let end = at as usize + bytes.len();
                        if !bytes.is_empty() {
                            model.resize(model.len().max(end), 0);
                            model[at as usize..end].copy_from_slice(&bytes);
                        }
                    }
                    Step::Length(bytes) => {
                        content.set_bytes(bytes.into());
                        model.resize(bytes as usize, 0);
                    }
                }
                prop_assert_eq!(content.to_vec(), &model[..]);
                prop_assert_eq!(before.to_vec(), &before_model[..], "a copy changed");
                prop_assert_eq!(content.hash(), Content::from_bytes(&model).hash());
                prop_assert_eq!(content.hash() == before.hash(), model == before_model);
            }
        }
    }

    #[test]
    fn a_long_file_of_nothing_is_small() {
        let mut content = Content::default();
        content.set_bytes(1 << 40);
        content.write(b"x", (1 << 41) - 1);
        assert_eq!((content.bytes(), content.chunks.len()), (1 << 41, 1));
        assert_eq!(content.range((1 << 41) - 2, 10), b"\0x");
    }
}
