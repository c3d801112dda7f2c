//! The conformance suites, run over every back end of this crate.
#![cfg(feature = "testing")]

use std::path::Path;

use topiclog::io::{DiskVfs, FaultVfs, MemoryVfs};
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

#[test]
fn simulated() {
    let vfs = FaultVfs::new();
    vfs_suite::run(&vfs, Path::new("/"));
    assert_eq!(vfs.descriptors(), 0, "every handle was given back");
}

#[test]
fn simulated_without_maps() {
    let vfs = FaultVfs::new();
    vfs.set_maps(false, false);
    vfs_suite::run(&vfs, Path::new("/"));
}
