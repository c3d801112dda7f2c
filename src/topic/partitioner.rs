//! Which partition a record goes to: Kafka's default partitioner.

use crate::sync::atomic::{AtomicU64, Ordering};

/// Kafka's murmur2, 32 bits, seed 0x9747b28c.
///
/// ```
/// assert_eq!(topiclog::murmur2(b"foobar"), (-790_332_482_i32).cast_unsigned());
/// ```
pub fn murmur2(key: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ key.len() as u32;
    let mut words = key.chunks_exact(4);
    for word in words.by_ref() {
        let mut k = word.try_into().map_or(0, u32::from_le_bytes).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let tail = words.remainder();
    if !tail.is_empty() {
        for (index, &byte) in tail.iter().enumerate() {
            hash ^= u32::from(byte) << (8 * index);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

/// The partition of a key, as every Kafka client with the default partitioner chooses it.
#[inline]
pub(crate) fn partition_for_key(key: &[u8], partitions: u32) -> u32 {
    (murmur2(key) & 0x7fff_ffff) % partitions.max(1)
}

/// Records without a key stay on one partition until so many bytes went there (Kafka's `batch.size`), then go on.
const STICKY_BYTES: u64 = 16_384;

/// Chooses partitions for records without a key.
#[derive(Debug)]
pub(crate) struct Sticky {
    /// Bytes handed out so far; the partition follows from it, so that one atomic is all there is.
    bytes: AtomicU64,
}

impl Sticky {
    pub(crate) fn new() -> Self {
        Self { bytes: AtomicU64::new(0) }
    }

    /// The partition for a record of about so many bytes.
    pub(crate) fn next(&self, record_bytes: usize, partitions: u32) -> u32 {
        let before = self.bytes.fetch_add(record_bytes as u64 + 1, Ordering::Relaxed);
        // Where no partition can be read there is none to choose, and whoever appends to it is told so.
        ((before / STICKY_BYTES) % u64::from(partitions.max(1))) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(key: &[u8], hash: i32, of_6: u32, of_50: u32) {
        assert_eq!(murmur2(key), hash.cast_unsigned(), "{key:?}");
        assert_eq!(partition_for_key(key, 6), of_6, "{key:?}");
        assert_eq!(partition_for_key(key, 50), of_50, "{key:?}");
    }

    #[test]
    fn the_hash_is_kafkas() {
        check(b"", 275_646_681, 3, 31);
        check(b"a", -1_563_381_124, 4, 24);
        check(b"21", -973_932_308, 0, 40);
        check(b"abc", 479_470_107, 3, 7);
        check(b"foobar", -790_332_482, 0, 16);
        check(b"key-0", 29_210_041, 1, 41);
        check(b"orders", -1_029_842_276, 0, 22);
        check(&[0, 1, 2, 3, 4, 5, 6, 7], 970_650_281, 5, 31);
        check(&[0xff, 0xfe, 0xfd], 998_637_092, 2, 42);
        check(b"user-1234567", 928_168_879, 1, 29);
    }

    #[test]
    fn records_without_a_key_stay_together_and_reach_every_partition() {
        let sticky = Sticky::new();
        let chosen: Vec<u32> = (0..1000).map(|_| sticky.next(999, 4)).collect();
        let changes = chosen.windows(2).filter(|pair| pair[0] != pair[1]).count();
        assert!(changes <= 62, "{changes} changes");
        assert!((0..4).all(|partition| chosen.contains(&partition)));
    }

    /// What Kafka's own test of its hash expects.
    #[test]
    fn the_hash_is_that_of_kafkas_test() {
        let check = |key: &str, hash: i32| assert_eq!(murmur2(key.as_bytes()), hash.cast_unsigned(), "{key}");
        check("21", -973_932_308);
        check("foobar", -790_332_482);
        check("a-little-bit-long-string", -985_981_536);
        check("a-little-bit-longer-string", -1_486_304_829);
        check("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971);
        check("abc", 479_470_107);
    }

    #[test]
    fn keys_reach_every_partition_and_always_the_same() {
        for partitions in [1, 2, 3, 50, 1024] {
            let mut reached = vec![0; partitions as usize];
            for number in 0..20_000 {
                let key = format!("key-{number}");
                let partition = partition_for_key(key.as_bytes(), partitions);
                assert_eq!(partition, partition_for_key(key.as_bytes(), partitions));
                reached[partition as usize] += 1;
            }
            let mean = 20_000 / partitions;
            assert!(reached.iter().all(|&count| count > mean / 4), "{partitions}: {reached:?}");
        }
    }

    #[test]
    fn a_record_of_a_whole_batch_moves_on_and_one_partition_is_enough() {
        let sticky = Sticky::new();
        let chosen: Vec<u32> = (0..6).map(|_| sticky.next(STICKY_BYTES as usize, 3)).collect();
        assert_eq!(chosen, [0, 1, 2, 0, 1, 2]);
        let sticky = Sticky::new();
        assert!((0..100).all(|_| sticky.next(1 << 20, 1) == 0));
    }
}
