//! The conformance suites, run over every back end of this crate.
#![cfg(feature = "testing")]

use std::path::Path;

use topiclog::io::{DiskVfs, MemoryVfs};
use topiclog::testing::vfs_suite;

#[test]
fn disk() {
    let root = tempfile::tempdir().unwrap();
    vfs_suite::run(&DiskVfs::new(), root.path());
}

#[test]
fn memory() {
    vfs_suite::run(&MemoryVfs::new(), Path::new("/"));
}
