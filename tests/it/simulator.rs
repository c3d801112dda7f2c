//! The simulated disk is trusted by every crash test, so it is tested first.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use topiclog::clock::ManualClock;
use topiclog::io::{
    CrashProfile, CrashRule, DiskVfs, Fault, FaultPlan, FaultVfs, Image, LockKind, MemoryVfs, OpKind, OpenMode,
    SyncFailure, Vfs, VfsFile, errno,
};

const MODES: [SyncFailure; 3] = [SyncFailure::LostAtDrop, SyncFailure::Reverted, SyncFailure::OpenHandles];

fn create(disk: &FaultVfs, path: &str) -> Arc<dyn VfsFile> {
    disk.open(Path::new(path), OpenMode::CreateNew).unwrap()
}

/// A file that is on the disk, name and all.
fn durable(disk: &FaultVfs, path: &str, bytes: &[u8]) -> Arc<dyn VfsFile> {
    let file = create(disk, path);
    file.write_at(bytes, 0).unwrap();
    file.sync_data().unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    file
}

fn images(disk: &FaultVfs) -> Vec<Image> {
    disk.crash_states(&CrashProfile::strict()).map(|state| state.image).collect()
}

/// Everything that a path may hold after a power cut.
fn possible(disk: &FaultVfs, path: &str) -> BTreeSet<Option<Vec<u8>>> {
    images(disk).iter().map(|image| image.read(path)).collect()
}

fn read(disk: &FaultVfs, path: &str) -> Vec<u8> {
    disk.image().read(path).unwrap()
}

fn some(bytes: &[u8]) -> Option<Vec<u8>> {
    Some(bytes.to_vec())
}

#[test]
fn what_is_synced_is_in_every_state() {
    let disk = FaultVfs::new();
    durable(&disk, "/f", b"abc");
    assert_eq!(images(&disk).len(), 1);
    assert_eq!(disk.durable_image().read("f"), some(b"abc"));
}

#[test]
fn an_unsynced_write_may_be_lost() {
    let disk = FaultVfs::new();
    durable(&disk, "/f", b"abc").write_at(b"xy", 1).unwrap();
    assert_eq!(read(&disk, "/f"), b"axy", "but is visible at once");
    assert_eq!(possible(&disk, "/f"), BTreeSet::from([some(b"abc"), some(b"axy")]));
}

#[test]
fn a_synced_file_may_lose_its_name() {
    let disk = FaultVfs::new();
    let file = create(&disk, "/f");
    file.write_at(b"abc", 0).unwrap();
    file.sync_all().unwrap();
    assert_eq!(possible(&disk, "/f"), BTreeSet::from([None, some(b"abc")]));
    disk.sync_dir(Path::new("/")).unwrap();
    assert_eq!(possible(&disk, "/f"), BTreeSet::from([some(b"abc")]));
}

#[test]
fn a_synced_name_may_lose_its_data() {
    let disk = FaultVfs::new();
    create(&disk, "/f").write_at(b"abc", 0).unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    let stale = [0xa5; 3];
    // Without length, with length and no data, with the data of somebody else, and whole.
    let all = BTreeSet::from([some(b""), some(&[0; 3]), some(&stale), some(b"abc")]);
    assert_eq!(possible(&disk, "/f"), all);
}

#[test]
fn a_directory_is_synced_alone() {
    let disk = FaultVfs::new();
    disk.create_dir(Path::new("/d")).unwrap();
    let file = create(&disk, "/d/f");
    file.sync_all().unwrap();
    disk.sync_dir(Path::new("/d")).unwrap();
    assert!(images(&disk).iter().any(|image| image.directories().next().is_none()), "the directory has no name yet");
    disk.sync_dir(Path::new("/")).unwrap();
    assert_eq!(possible(&disk, "/d/f"), BTreeSet::from([some(b"")]));
}

#[test]
fn a_rename_leaves_old_new_or_both() {
    let disk = FaultVfs::new();
    durable(&disk, "/f", b"old");
    durable(&disk, "/f.tmp", b"new");
    disk.rename(Path::new("/f.tmp"), Path::new("/f")).unwrap();
    let states: BTreeSet<_> = images(&disk).iter().map(|image| (image.read("f"), image.read("f.tmp"))).collect();
    let expected = [(some(b"old"), some(b"new")), (some(b"new"), None), (some(b"new"), some(b"new"))];
    assert_eq!(states, BTreeSet::from(expected));
    disk.sync_dir(Path::new("/")).unwrap();
    assert_eq!(images(&disk).len(), 1);
}

#[test]
fn a_rename_between_directories_is_never_neither() {
    for first in ["/a", "/b"] {
        let disk = FaultVfs::new();
        disk.create_dir(Path::new("/a")).unwrap();
        disk.create_dir(Path::new("/b")).unwrap();
        create(&disk, "/a/f").write_at(b"x", 0).unwrap();
        disk.sync_everything();
        disk.rename(Path::new("/a/f"), Path::new("/b/f")).unwrap();
        disk.sync_dir(Path::new(first)).unwrap();
        assert!(
            images(&disk).iter().all(|image| image.read("a/f").is_some() || image.read("b/f").is_some()),
            "{first}"
        );
        disk.sync_dir(Path::new("/a")).unwrap();
        disk.sync_dir(Path::new("/b")).unwrap();
        assert_eq!(possible(&disk, "/b/f"), BTreeSet::from([some(b"x")]), "{first}");
        assert_eq!(possible(&disk, "/a/f"), BTreeSet::from([None]), "{first}");
    }
}

#[test]
fn removal_may_be_undone() {
    let disk = FaultVfs::new();
    durable(&disk, "/f", b"abc");
    disk.remove_file(Path::new("/f")).unwrap();
    assert_eq!(possible(&disk, "/f"), BTreeSet::from([None, some(b"abc")]));
}

#[test]
fn writes_are_torn_at_sectors() {
    let disk = FaultVfs::new();
    durable(&disk, "/f", &[1; 100]).write_at(&[2; 2000], 100).unwrap();
    let states = possible(&disk, "/f");
    for cut in [512, 1024, 1536, 2048] {
        let arrived = [[1; 100].to_vec(), vec![2; cut - 100]].concat();
        let zero = [&arrived[..], &vec![0; 2100 - cut]].concat();
        let stale = [&arrived[..], &vec![1; 2100 - cut]].concat();
        assert!(states.contains(&Some(arrived)), "{cut} absent");
        assert!(states.contains(&Some(zero)), "{cut} zero");
        let near = |state: &Option<Vec<u8>>| state.as_ref().is_some_and(|state| state[cut..].starts_with(&[1; 52]));
        assert!(states.contains(&Some(stale)) || states.iter().any(near), "{cut} stale");
    }
}

#[test]
fn blocks_arrive_in_any_order() {
    let disk = FaultVfs::new();
    let file = durable(&disk, "/f", &[0; 2048]);
    for block in 0..4_u8 {
        file.write_at(&[block + 1; 512], u64::from(block) * 512).unwrap();
    }
    let states: BTreeSet<_> =
        possible(&disk, "/f").into_iter().flatten().map(|f| [0, 1, 2, 3].map(|block| f[block * 512] != 0)).collect();
    assert_eq!(states.len(), 16);
}

#[test]
fn one_file_may_be_ahead_of_another() {
    let disk = FaultVfs::new();
    let (a, b) = (durable(&disk, "/a", b"0"), durable(&disk, "/b", b"0"));
    a.write_at(b"1", 0).unwrap();
    b.write_at(b"1", 0).unwrap();
    let states: BTreeSet<_> = images(&disk).iter().map(|image| (image.read("a"), image.read("b"))).collect();
    assert_eq!(states.len(), 4);
}

#[test]
fn states_come_once_and_in_the_same_order() {
    let run = || {
        let disk = FaultVfs::new();
        for name in ["/a", "/b", "/c"] {
            let file = create(&disk, name);
            file.write_at(&vec![7; 30_000], 0).unwrap();
            file.write_at(&[8; 6000], 3000).unwrap();
        }
        disk.rename(Path::new("/a"), Path::new("/d")).unwrap();
        let states: Vec<_> = disk.crash_states(&CrashProfile::strict()).map(|state| (state.rule, state.hash)).collect();
        (states, disk.trace_hash())
    };
    let (states, trace) = run();
    assert_eq!((states.clone(), trace), run());
    let distinct: BTreeSet<_> = states.iter().map(|(_, hash)| *hash).collect();
    assert_eq!(distinct.len(), states.len());
    let rules: BTreeMap<CrashRule, usize> = states.iter().fold(BTreeMap::new(), |mut rules, (rule, _)| {
        *rules.entry(*rule).or_default() += 1;
        rules
    });
    assert_eq!(rules.len(), 8, "every rule found something of its own: {rules:?}");
    let ordered = || {
        let disk = FaultVfs::new();
        durable(&disk, "/f", b"x").write_at(b"y", 0).unwrap();
        disk.crash_states(&CrashProfile::kill_only()).count()
    };
    assert_eq!(ordered(), 1);
}

#[test]
fn an_image_is_started_killed_and_compared() {
    let disk = FaultVfs::new();
    disk.create_dir(Path::new("/t-0")).unwrap();
    create(&disk, "/t-0/f").write_at(b"abc", 0).unwrap();
    let image = disk.image();
    let again = FaultVfs::from_image(&image);
    assert_eq!(again.durable_image().hash(), image.hash());
    let file = again.open(Path::new("/t-0/f"), OpenMode::Write).unwrap();
    file.write_at(b"X", 0).unwrap();
    assert_eq!(image.read("t-0/f"), some(b"abc"), "copies are apart");
    assert_ne!(again.image().hash(), image.hash());
    file.write_at(b"a", 0).unwrap();
    assert_eq!(again.image().hash(), image.hash(), "equal content, equal hash");
    assert_eq!(image.files().collect::<Vec<_>>(), [("t-0/f", 3)]);
    let root = tempfile::tempdir().unwrap();
    image.copy_to(&DiskVfs::new(), root.path()).unwrap();
    assert_eq!(Image::copy_from(&DiskVfs::new(), root.path()).unwrap().hash(), image.hash());
}

#[test]
fn images_are_edited() {
    let mut image = Image::new();
    image.write("/a/b/f", b"abc").unwrap();
    image.patch("a/b/f", 5, b"x").unwrap();
    assert_eq!(image.read("a/b/f"), some(b"abc\0\0x"));
    image.set_len("a/b/f", 2).unwrap();
    assert_eq!(image.read("a/b/f"), some(b"ab"));
    assert!(
        image.write("a/b", b"").is_err() && image.write("a/b/f/g", b"").is_err() && image.write("../x", b"").is_err()
    );
    assert_eq!(image.patch("a/none", 0, b"x").unwrap_err().kind(), ErrorKind::NotFound);
    assert!(image.remove("a/b") && !image.remove("a/b"));
    assert_eq!(image.directories().collect::<Vec<_>>(), ["a"]);
}

#[test]
fn a_kill_ends_handles_and_locks_and_keeps_the_cache() {
    let disk = FaultVfs::new();
    let file = durable(&disk, "/f", b"abc");
    file.write_at(b"d", 3).unwrap();
    let map = file.map(4).unwrap().unwrap();
    let lock = disk.lock(Path::new("/lock"), LockKind::Exclusive).unwrap();
    disk.kill();
    assert!(file.len().is_err() && file.write_at(b"x", 0).is_err());
    let second = disk.lock(Path::new("/lock"), LockKind::Exclusive).unwrap();
    drop((lock, file));
    assert_eq!(disk.lock(Path::new("/lock"), LockKind::Exclusive).unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(disk.descriptors(), 1);
    drop(second);
    assert_eq!(read(&disk, "/f"), b"abcd");
    assert!(possible(&disk, "/f").contains(&some(b"abc")), "and what was not synced can still be lost");
    disk.open(Path::new("/f"), OpenMode::Write).unwrap().set_len(0).unwrap();
    assert_eq!(map.bytes()[..], *b"abcd");
}

/// What a window may do to what lies behind a write into it, it does.
#[test]
fn a_window_fills_with_zeros_what_lies_behind_its_writes() {
    let disk = FaultVfs::new();
    let file = durable(&disk, "/f", &[7; 1000]);
    let mut expected = [7; 1000];
    let check = |expected: &[u8]| assert_eq!(read(&disk, "/f"), expected);
    let mut window = file.window(100, 800).unwrap().unwrap();
    expected[100..256].fill(0);
    check(&expected);
    window.write(b"ready", 200).unwrap();
    expected[200..205].copy_from_slice(b"ready");
    check(&expected);
    // Positional writes go by it, and are left alone by a write that lies behind them, not by one that does not.
    file.write_at(&[8; 300], 300).unwrap();
    expected[300..600].fill(8);
    window.write(b"new", 598).unwrap();
    expected[598..768].fill(0);
    expected[598..601].copy_from_slice(b"new");
    check(&expected);
    window.write(&[9; 200], 700).unwrap();
    expected[700..900].fill(9);
    check(&expected);
}

#[test]
fn the_zeros_of_a_window_may_be_lost_as_any_write_and_may_be_all_that_is_kept() {
    let disk = FaultVfs::new();
    let file = durable(&disk, "/f", &[7; 600]);
    let mut window = file.window(0, 600).unwrap().unwrap();
    file.sync_data().unwrap();
    window.write(b"new", 300).unwrap();
    let only_before = [vec![0; 256], vec![7; 344]].concat();
    let mut zeros = only_before.clone();
    zeros[300..512].fill(0);
    let mut all = zeros.clone();
    all[300..303].copy_from_slice(b"new");
    let possible = possible(&disk, "/f");
    for state in [&only_before, &zeros, &all] {
        assert!(possible.contains(&some(state)), "{state:?}");
    }
    // So may the machine stop in between: each is an operation, and the second is then not done.
    let before = disk.operations();
    disk.stop_after(before + 1);
    assert!(window.write(b"lost", 510).is_err() && disk.has_stopped());
    all[512..600].fill(0);
    assert_eq!((read(&disk, "/f"), disk.operations()), (all, before + 1));
}

#[test]
fn the_machine_stops_between_operations() {
    let script = |disk: &FaultVfs| -> std::io::Result<()> {
        let file = disk.open(Path::new("/f"), OpenMode::CreateNew)?;
        file.write_at(b"abc", 0)?;
        file.sync_data()?;
        disk.sync_dir(Path::new("/"))
    };
    let whole = FaultVfs::new();
    script(&whole).unwrap();
    assert_eq!(whole.operations(), 4);
    for stop in 0..4 {
        let disk = FaultVfs::new();
        disk.stop_after(stop);
        script(&disk).unwrap_err();
        assert!(disk.has_stopped() && disk.list(Path::new("/")).is_err());
        assert_eq!(disk.operations(), stop);
        assert_eq!(disk.trace(), whole.trace()[..stop as usize]);
    }
}

#[test]
fn faults_hit_the_call_they_wait_for() {
    let disk = FaultVfs::new();
    let (log, index) = (create(&disk, "/0.log"), create(&disk, "/0.index"));
    disk.inject(FaultPlan::new(Fault::Error(errno::ENOSPC)).on(OpKind::Write).in_class("log").at_call(2));
    index.write_at(b"a", 0).unwrap();
    log.write_at(b"a", 0).unwrap();
    index.write_at(b"b", 1).unwrap();
    assert_eq!(log.write_at(b"b", 1).unwrap_err().kind(), ErrorKind::StorageFull);
    log.write_at(b"b", 1).unwrap();
    assert_eq!(read(&disk, "/0.log"), b"ab");
    disk.inject(FaultPlan::new(Fault::Error(errno::EIO)).on(OpKind::Read).sticky());
    for _ in 0..3 {
        assert_eq!(log.read_at(&mut [0], 0).unwrap_err().raw_os_error(), Some(errno::EIO));
    }
    disk.clear_faults();
    log.read_at(&mut [0], 0).unwrap();
    assert_eq!(disk.faults_hit(), 4);
    let sites = disk.sites_seen();
    let site = &sites[&(OpKind::Read, "log".to_owned())];
    assert_eq!((site.calls, site.errors[&errno::EIO]), (4, 3));
    assert_eq!(sites[&(OpKind::Write, "log".to_owned())].errors, BTreeMap::from([(errno::ENOSPC, 1)]));
    assert!(sites[&(OpKind::Write, "index".to_owned())].errors.is_empty());
}

#[test]
fn every_kind_of_call_can_fail() {
    let disk = FaultVfs::new();
    let (f, d) = (Path::new("/f"), Path::new("/d"));
    let file = durable(&disk, "/f", b"abc");
    let map = file.map(3).unwrap().unwrap();
    file.set_len(9).unwrap();
    let tail = file.map_tail(0, 99).unwrap().unwrap();
    let mut window = file.window(3, 6).unwrap().unwrap();
    let mut call = |op: OpKind| match op {
        OpKind::Open => disk.open(f, OpenMode::Read).map(drop),
        OpKind::Create => disk.open(d, OpenMode::CreateNew).map(drop),
        OpKind::List => disk.list(Path::new("/")).map(drop),
        OpKind::CreateDir => disk.create_dir(d),
        OpKind::Rename => disk.rename(f, d),
        OpKind::RemoveFile => disk.remove_file(f),
        OpKind::RemoveDir => disk.remove_dir(d),
        OpKind::SyncDir => disk.sync_dir(Path::new("/")),
        OpKind::Lock => disk.lock(f, LockKind::Exclusive).map(drop),
        OpKind::Read => file.read_at(&mut [0], 0).map(drop),
        OpKind::Write => file.write_at(b"x", 5).map(drop),
        OpKind::Len => file.len().map(drop),
        OpKind::SetLen => file.set_len(9),
        OpKind::SyncData => file.sync_data(),
        OpKind::SyncAll => file.sync_all(),
        OpKind::Allocate => file.allocate(0, 100),
        OpKind::Map => file.map(1).map(drop),
        OpKind::Populate => map.populate(0, 1).map(drop),
        OpKind::MapTail => file.map_tail(0, 9).map(drop),
        OpKind::ReadTail => tail.bytes(0, 1).map(drop),
        OpKind::Window => file.window(0, 1).map(drop),
        OpKind::WindowWrite => window.write(b"x", 5),
        OpKind::SetModified => file.set_modified(1),
    };
    use OpKind::*;
    let all = [
        Open,
        Create,
        List,
        CreateDir,
        Rename,
        RemoveFile,
        RemoveDir,
        SyncDir,
        Lock,
        Read,
        Write,
        Len,
        SetLen,
        SyncData,
        SyncAll,
        Allocate,
        Map,
        Populate,
        MapTail,
        ReadTail,
        Window,
        WindowWrite,
        SetModified,
    ];
    let before = (disk.image().hash(), disk.operations());
    for op in all {
        for number in [errno::EIO, errno::ENOSPC, errno::EMFILE, errno::EACCES, errno::EINTR] {
            disk.inject(FaultPlan::new(Fault::Error(number)).on(op));
            assert_eq!(call(op).unwrap_err().raw_os_error(), Some(number), "{op:?}");
        }
    }
    assert_eq!((disk.image().hash(), disk.operations()), before, "a call that failed did nothing");
}

#[test]
fn short_and_flipped() {
    let disk = FaultVfs::new();
    let file = durable(&disk, "/f", b"abcd");
    disk.inject(FaultPlan::new(Fault::Short(3)));
    assert_eq!(file.write_at(b"efgh", 4).unwrap(), 3);
    disk.inject(FaultPlan::new(Fault::Short(0)));
    assert_eq!(file.write_at(b"x", 7).unwrap(), 0);
    let mut buffer = [0; 7];
    disk.inject(FaultPlan::new(Fault::Short(0)));
    assert_eq!(file.read_at(&mut buffer, 0).unwrap(), 1, "only the end of the file gives nothing");
    disk.inject(FaultPlan::new(Fault::FlipBit(8)));
    assert_eq!(file.read_at(&mut buffer, 0).unwrap(), 7);
    assert_eq!(&buffer, b"accdefg");
    disk.inject(FaultPlan::new(Fault::FlipBit(0)));
    assert_eq!(file.map(2).unwrap().unwrap().bytes()[..], *b"`b");
    assert_eq!(file.map(2).unwrap().unwrap().bytes()[..], *b"ab");
    disk.patch("/f", 0, b"Z").unwrap();
    assert_eq!(disk.durable_image().read("/f"), some(b"Zbcd"));
}

#[test]
fn failed_syncs_lose_data_in_three_ways() {
    for mode in MODES {
        let disk = FaultVfs::new();
        let file = durable(&disk, "/f", b"old");
        let other = disk.open(Path::new("/f"), OpenMode::Write).unwrap();
        file.write_at(b"new", 0).unwrap();
        disk.inject(FaultPlan::new(Fault::Sync(errno::EIO, mode)).on(OpKind::SyncData));
        assert_eq!(file.sync_data().unwrap_err().raw_os_error(), Some(errno::EIO));
        let visible = if mode == SyncFailure::Reverted { b"old" } else { b"new" };
        assert_eq!(read(&disk, "/f"), visible, "{mode:?}");
        let later = disk.open(Path::new("/f"), OpenMode::Write).unwrap();
        later.sync_data().unwrap();
        assert_eq!(other.sync_data().is_err(), mode == SyncFailure::OpenHandles, "{mode:?}");
        other.sync_data().unwrap();
        file.sync_data().unwrap();
        assert!(possible(&disk, "/f").contains(&some(b"old")), "{mode:?}: the later syncs wrote nothing");
        later.write_at(b"!", 3).unwrap();
        later.sync_data().unwrap();
        assert_eq!(disk.durable_image().read("/f"), some(b"old!"), "{mode:?}: only what came later");
        disk.drop_caches();
        assert_eq!(read(&disk, "/f"), b"old!", "{mode:?}");
        assert_eq!(images(&disk).len(), 1, "{mode:?}");
    }
}

#[test]
fn a_plain_sync_error_leaves_all_to_the_next() {
    let disk = FaultVfs::new();
    let file = durable(&disk, "/f", b"old");
    file.write_at(b"new", 0).unwrap();
    disk.inject(FaultPlan::new(Fault::Error(errno::EIO)).on(OpKind::SyncData));
    file.sync_data().unwrap_err();
    file.sync_data().unwrap();
    assert_eq!(disk.durable_image().read("/f"), some(b"new"));
}

#[test]
fn quotas() {
    let disk = FaultVfs::new();
    let file = durable(&disk, "/f", &[1; 90]);
    disk.set_bytes_max(Some(100));
    assert_eq!(file.write_at(&[2; 20], 85).unwrap(), 15, "short first");
    assert_eq!(file.write_at(&[2; 5], 100).unwrap_err().kind(), ErrorKind::StorageFull);
    assert_eq!(file.set_len(101).unwrap_err().kind(), ErrorKind::StorageFull);
    assert_eq!(file.allocate(0, 101).unwrap_err().kind(), ErrorKind::StorageFull);
    file.write_at(&[3; 100], 0).unwrap();
    file.set_len(50).unwrap();
    assert_eq!(file.write_at(&[2; 5], 50).unwrap(), 5);
    disk.set_descriptors_max(Some(2));
    let second = disk.open(Path::new("/f"), OpenMode::Read).unwrap();
    assert_eq!(disk.open(Path::new("/f"), OpenMode::Read).unwrap_err().raw_os_error(), Some(errno::EMFILE));
    drop(second);
    disk.open(Path::new("/f"), OpenMode::Read).unwrap();
}

#[test]
fn a_change_below_a_live_map_fails_the_test() {
    let fails = |action: &dyn Fn(&dyn VfsFile)| {
        let disk = FaultVfs::new();
        let file = durable(&disk, "/f", b"abcdef");
        let slice = file.map(4).unwrap().unwrap().bytes().slice(1..2);
        let failed = catch_unwind(AssertUnwindSafe(|| action(&*file))).is_err();
        drop(slice);
        // The lock is free, and without the map everything is allowed.
        action(&*file);
        failed
    };
    assert!(fails(&|file| _ = file.write_at(b"X", 3).unwrap()));
    assert!(fails(&|file| _ = file.write_at(b"bX", 1).unwrap()));
    assert!(fails(&|file| file.set_len(3).unwrap()));
    assert!(!fails(&|file| _ = file.write_at(b"dXX", 3).unwrap()), "the same bytes, and new ones behind the map");
    assert!(!fails(&|file| file.set_len(4).unwrap()));
    assert!(!fails(&|file| file.set_len(400).unwrap()));
}

#[test]
fn times_come_from_the_clock() {
    let disk = FaultVfs::new();
    let clock = Arc::new(ManualClock::new(5_000));
    disk.set_clock(clock.clone());
    let file = create(&disk, "/f");
    let modified = || disk.list(Path::new("/")).unwrap()[0].modified_ms;
    assert_eq!(modified(), 5_000);
    clock.advance_ms(10);
    file.write_at(b"x", 0).unwrap();
    assert_eq!(modified(), 5_010);
}

/// Not a rule but a number to notice changes by: what the strict profile finds for a typical append and roll.
#[test]
fn a_typical_step_has_many_states() {
    let disk = FaultVfs::new();
    disk.create_dir(Path::new("/t-0")).unwrap();
    let log = create(&disk, "/t-0/0.log");
    log.write_at(&[1; 3000], 0).unwrap();
    disk.sync_everything();
    log.write_at(&[2; 1000], 3000).unwrap();
    create(&disk, "/t-0/1.log").write_at(&[3; 700], 0).unwrap();
    create(&disk, "/t-0/manifest.0.tmp").write_at(&[4; 300], 0).unwrap();
    disk.rename(Path::new("/t-0/manifest.0.tmp"), Path::new("/t-0/manifest.0")).unwrap();
    let states = disk.crash_states(&CrashProfile::strict()).count();
    assert!((100..1000).contains(&states), "{states} states");
    let kept = disk.crash_states(&CrashProfile::ordered()).count();
    assert!(kept < states / 4, "{kept} of {states}");
}

#[test]
#[ignore = "prints what one simulated open costs"]
#[expect(clippy::disallowed_methods, reason = "it measures")]
fn cost() {
    let mut image = Image::new();
    for n in 0..10 {
        image.write(format!("/t-0/{n:020}.log"), &vec![n; 4096]).unwrap();
    }
    let rounds = 10_000;
    let start = std::time::Instant::now();
    for _ in 0..rounds {
        let disk = FaultVfs::from_image(&image.clone());
        let mut buffer = vec![0; 4096];
        for entry in disk.list(Path::new("/t-0")).unwrap() {
            let file = disk.open(&Path::new("/t-0").join(entry.name), OpenMode::Read).unwrap();
            assert_eq!(file.read_at(&mut buffer, 0).unwrap(), 4096);
        }
    }
    println!("copy, start, list, open and read 10 files of 4 KiB: {:?}", start.elapsed() / rounds);
    let disk = FaultVfs::from_image(&image);
    for n in 0..10 {
        let path = format!("/t-0/{n:020}.log");
        disk.open(Path::new(&path), OpenMode::Write).unwrap().write_at(&[9; 700], 4096).unwrap();
    }
    let start = std::time::Instant::now();
    let states = disk.crash_states(&CrashProfile::strict()).count();
    println!("{states} crash states, each {:?}", start.elapsed() / states as u32);
    for vfs in [&MemoryVfs::new() as &dyn Vfs, &FaultVfs::new()] {
        let file = vfs.open(Path::new("/f"), OpenMode::CreateNew).unwrap();
        let start = std::time::Instant::now();
        for n in 0..100_000 {
            file.write_at(&[7; 100], n * 100).unwrap();
        }
        println!("{vfs:?}: an append of 100 B: {:?}", start.elapsed() / 100_000);
    }
}
