//! The conformance suites, run over every back end of this crate.
#![cfg(feature = "testing")]

use std::path::Path;

use topiclog::io::{CrashProfile, DiskVfs, FaultVfs, Image, MemoryVfs, OpenMode, Vfs, VfsFile};
use topiclog::testing::vfs_suite;

use crate::support::directory_with_windows;
use crate::support::simulate::{Random, seed};

#[test]
fn disk() {
    let root = directory_with_windows("disk");
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

fn path(random: &mut Random) -> String {
    let directory = ["", "a/", "b/", "a/c/"][random.below(4)];
    format!("{directory}{}", ["a", "b", "c", "f", "g"][random.below(5)])
}

/// One random call, and what came of it as far as back ends agree on that.
fn step(vfs: &dyn Vfs, root: &Path, random: &mut Random) -> String {
    let (path, other) = (root.join(path(random)), root.join(path(random)));
    let (position, bytes) = (random.below(9000) as u64, vec![random.below(256) as u8; random.below(3000)]);
    let on_file = |act: &dyn Fn(&dyn VfsFile) -> std::io::Result<()>| {
        vfs.open(&path, OpenMode::Write).and_then(|file| act(&*file).map(|()| file.len().unwrap()))
    };
    let result = match random.below(12) {
        0 | 1 => vfs.open(&path, OpenMode::CreateNew).map(|_| 0),
        2 => vfs.open(&path, OpenMode::Create).and_then(|file| file.len()),
        3..=5 => on_file(&|file| file.write_at(&bytes, position).map(drop)),
        6 => on_file(&|file| file.set_len(position)),
        7 => on_file(&|file| file.sync_data()),
        8 => vfs.create_dir(&path).map(|()| 0),
        9 => vfs.rename(&path, &other).map(|()| 0),
        10 => vfs.remove_file(&path).or_else(|_| vfs.remove_dir(&path)).map(|()| 0),
        _ => vfs.sync_dir(&path).map(|()| 0),
    };
    result.map_or_else(|_| "refused".to_owned(), |bytes| bytes.to_string())
}

#[test]
fn the_back_ends_agree() {
    let first = seed("back ends", 0);
    for seed in first..first + 60 {
        let directory = tempfile::tempdir().unwrap();
        let (disk, memory, simulated) = (DiskVfs::new(), MemoryVfs::new(), FaultVfs::new());
        let root = Path::new("/");
        let mut random = [Random(seed), Random(seed), Random(seed)];
        for number in 0..150 {
            let on_disk = step(&disk, directory.path(), &mut random[0]);
            let at = format!("TOPICLOG_SEED={seed}, step {number}");
            assert_eq!(step(&memory, root, &mut random[1]), on_disk, "{at}");
            assert_eq!(step(&simulated, root, &mut random[2]), on_disk, "{at}");
        }
        let expected = Image::copy_from(&disk, directory.path()).unwrap();
        assert_eq!(Image::copy_from(&memory, root).unwrap().hash(), expected.hash(), "seed {seed}");
        assert_eq!(simulated.image().hash(), expected.hash(), "seed {seed}");

        // What is visible and what is durable are both among the states; once all is synced there is only one.
        let mut profile = CrashProfile::strict();
        profile.subsets_of_blocks_max = 4;
        profile.subsets_of_names_max = 4;
        let states: Vec<_> = simulated.crash_states(&profile).map(|state| state.hash).collect();
        assert!(states.contains(&expected.hash()) && states.contains(&simulated.durable_image().hash()), "seed {seed}");
        let synced = || {
            for directory in expected.directories().chain([""]) {
                simulated.sync_dir(&root.join(directory)).unwrap();
            }
            for (file, _) in expected.files() {
                simulated.open(&root.join(file), OpenMode::Write).unwrap().sync_all().unwrap();
            }
        };
        synced();
        // Files and directories that were removed may still hold changes; they are in no image.
        assert_eq!(simulated.durable_image().hash(), expected.hash(), "seed {seed}");
        let states: Vec<_> = simulated.crash_states(&profile).map(|state| state.hash).collect();
        assert_eq!(states, [expected.hash()], "seed {seed}");
    }
}
