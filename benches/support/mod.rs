//! What the benches that compare share: where files go, how often a thing is done, and numbers of a batch read by hand.

pub(crate) mod raw;

use std::fs::{self, File};
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

/// Memory of this process that is not a file's.
pub(crate) fn resident_anonymous_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[allow(unsafe_code, reason = "the raw limit is a map; nobody writes to the file while it is mapped")]
pub(crate) fn map(file: &File) -> memmap2::Mmap {
    // SAFETY: the store was closed, and nothing else changes the file.
    unsafe { memmap2::Mmap::map(file) }.unwrap()
}
