//! What tests are made of: directories as a broker leaves them (`broker`); and for crashes what a log may hold (`oracle`),
//! what is done to it (`ops`), and the disks that a crash leaves (`simulate`); a file system over another (`layered`), and upkeep
//! until it rests (`upkeep`). Here is only what says that a test does without something.

pub(crate) mod broker;
pub(crate) mod layered;
pub(crate) mod ops;
pub(crate) mod oracle;
pub(crate) mod simulate;
pub(crate) mod upkeep;

use tempfile::TempDir;
use topiclog::io::{DiskVfs, OpenMode, Vfs};

/// Says that a test is not run, or not as it is meant to be: a failure where `TOPICLOG_REQUIRE_TOOLS` is `1`.
pub(crate) fn skipped(test: &str, why: &str) {
    tell!("SKIP {test}: {why}");
    assert!(std::env::var("TOPICLOG_REQUIRE_TOOLS").as_deref() != Ok("1"), "{test} must not be skipped: {why}");
}

/// A directory for a test that is about windows into files, and passes without them: of whatever file system gives some.
pub(crate) fn directory_with_windows(test: &str) -> TempDir {
    let gives_some = |directory: &TempDir| {
        let file = DiskVfs::new().open(&directory.path().join("windows"), OpenMode::CreateNew).unwrap();
        file.set_len(4096).unwrap();
        file.window(0, 4096).unwrap().is_some()
    };
    let in_memory = || tempfile::tempdir_in("/dev/shm").ok().filter(gives_some);
    let usual = tempfile::tempdir().unwrap();
    if !cfg!(target_os = "linux") || gives_some(&usual) {
        return usual;
    }
    in_memory().unwrap_or_else(|| {
        skipped(test, "no file system at hand gives a window, or the kernel is older than 5.14");
        usual
    })
}
