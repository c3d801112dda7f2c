//! What the benches that compare share: where files go, how often a thing is done, and numbers of a batch read by hand.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// How often both sides of a comparison run, in turn.
pub(crate) const ROUNDS: usize = 9;

/// An empty directory for a bench.
pub(crate) fn directory(name: &str) -> PathBuf {
    let base = std::env::var_os("TOPICLOG_BENCH_DIR").map_or_else(|| PathBuf::from("target/bench-data"), PathBuf::from);
    let directory = base.join(name);
    fs::remove_dir_all(&directory).ok();
    fs::create_dir_all(&directory).unwrap();
    directory
}

pub(crate) fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

#[inline]
pub(crate) fn varint(bytes: &[u8], at: &mut usize) -> i64 {
    let (mut value, mut shift) = (0u64, 0);
    loop {
        let byte = bytes[*at];
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return (value >> 1) as i64 ^ -((value & 1) as i64);
        }
        shift += 7;
    }
}
