//! What tests are made of: directories as a broker leaves them (`broker`); and for crashes what a log may hold (`oracle`),
//! what is done to it (`ops`), and the disks that a crash leaves (`simulate`); a file system over another (`layered`), and upkeep
//! until it rests (`upkeep`). Here is only what says that a test does without something.

pub(crate) mod broker;
pub(crate) mod layered;
pub(crate) mod ops;
pub(crate) mod oracle;
pub(crate) mod simulate;
pub(crate) mod upkeep;

use std::path::Path;

use topiclog::io::{DiskVfs, OpenMode, Vfs};

/// Says that a test is not run, or not as it is meant to be: a failure where `TOPICLOG_REQUIRE_TOOLS` is `1`.
pub(crate) fn skipped(test: &str, why: &str) {
    tell!("SKIP {test}: {why}");
    assert!(std::env::var("TOPICLOG_REQUIRE_TOOLS").as_deref() != Ok("1"), "{test} must not be skipped: {why}");
}

/// For a test that is about windows into files below a directory, and passes without them.
pub(crate) fn expect_windows(test: &str, directory: &Path) {
    let file = DiskVfs::new().open(&directory.join("windows"), OpenMode::CreateNew).unwrap();
    file.set_len(4096).unwrap();
    if cfg!(target_os = "linux") && file.window(0, 4096).unwrap().is_none() {
        skipped(test, "the file system of the temporary directory gives no window, or the kernel is older than 5.14");
    }
}
