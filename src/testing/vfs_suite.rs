//! What every [`Vfs`] does. [`run`] is one test of an implementation, each check a function of its own below it.
#![allow(clippy::unwrap_used, reason = "a suite is test code: a failed check ends the test")]

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use crate::io::{EntryKind, LockKind, OpenMode, Vfs, VfsFile, VfsWindow};

/// Runs every check, each in an empty directory of its own below `root`, which must exist.
///
/// # Panics
/// If the file system does not do what [`Vfs`] asks for.
pub fn run(vfs: &dyn Vfs, root: &Path) {
    let checks: &[(&str, Check)] = &[
        ("open", open_modes),
        ("missing", missing_is_not_found),
        ("read", reads_stop_at_the_end),
        ("write", writes_past_the_end_leave_zeros),
        ("length", lengths),
        ("long", chunks_meet),
        ("sparse", long_files_of_nothing),
        ("allocate", allocation_keeps_what_is_there),
        ("begin_sync", a_sync_that_has_begun_changes_nothing),
        ("window", windows_write_into_the_file),
        ("rename", rename_replaces),
        ("rename_directory", rename_of_directories),
        ("remove", removal),
        ("list", listing),
        ("modified", modification_times),
        ("locks", locks_exclude),
        ("map", maps_stay),
        ("tail", a_mapped_tail_shows_what_is_written_later),
        ("sync", syncs_succeed),
        ("threads", threads_share_a_file),
    ];
    for (name, check) in checks {
        let directory = root.join(name);
        vfs.create_dir(&directory).unwrap();
        check(vfs, &directory);
    }
}

/// A check, and the empty directory that it has for itself.
type Check = fn(&dyn Vfs, &Path);

fn put(vfs: &dyn Vfs, path: &Path, bytes: &[u8]) -> Arc<dyn VfsFile> {
    let file = vfs.open(path, OpenMode::CreateNew).unwrap();
    write_all(&*file, bytes, 0);
    file
}

fn write_all(file: &dyn VfsFile, bytes: &[u8], position: u64) {
    crate::io::write_all_at(file, bytes, position).unwrap();
}

fn content(file: &dyn VfsFile) -> Vec<u8> {
    let mut buffer = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
    crate::io::read_exact_at(file, &mut buffer, 0).unwrap();
    buffer
}

fn read(vfs: &dyn Vfs, path: &Path) -> Vec<u8> {
    content(&*vfs.open(path, OpenMode::Read).unwrap())
}

fn names(vfs: &dyn Vfs, directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = vfs.list(directory).unwrap().into_iter().map(|entry| entry.name).collect();
    names.sort();
    names
}

fn kind<T>(result: std::io::Result<T>) -> ErrorKind {
    result.err().expect("this should have been refused").kind()
}

fn open_modes(vfs: &dyn Vfs, directory: &Path) {
    let path = directory.join("f");
    let file = put(vfs, &path, b"abc");
    assert_eq!(kind(vfs.open(&path, OpenMode::CreateNew)), ErrorKind::AlreadyExists);
    for mode in [OpenMode::Read, OpenMode::Write, OpenMode::Create] {
        let again = vfs.open(&path, mode).unwrap();
        assert_eq!(content(&*again), b"abc", "{mode:?} left it as it was");
    }
    write_all(&*vfs.open(&path, OpenMode::Write).unwrap(), b"x", 1);
    assert_eq!(content(&*file), b"axc", "one handle sees what another wrote");
    assert!(vfs.open(&path, OpenMode::Read).unwrap().write_at(b"x", 0).is_err(), "opened for reading");
    write_all(&*vfs.open(&directory.join("new"), OpenMode::Create).unwrap(), b"y", 0);
    for mode in [OpenMode::Read, OpenMode::Write, OpenMode::CreateNew, OpenMode::Create] {
        assert!(vfs.open(directory, mode).is_err(), "a directory is not a file");
    }
}

fn missing_is_not_found(vfs: &dyn Vfs, directory: &Path) {
    let missing = directory.join("missing");
    let below = missing.join("f");
    for path in [&missing, &below] {
        assert_eq!(kind(vfs.open(path, OpenMode::Read)), ErrorKind::NotFound);
        assert_eq!(kind(vfs.open(path, OpenMode::Write)), ErrorKind::NotFound);
        assert_eq!(kind(vfs.remove_file(path)), ErrorKind::NotFound);
        assert_eq!(kind(vfs.remove_dir(path)), ErrorKind::NotFound);
        assert_eq!(kind(vfs.rename(path, &directory.join("to"))), ErrorKind::NotFound);
        assert_eq!(kind(vfs.list(path)), ErrorKind::NotFound);
        assert_eq!(kind(vfs.sync_dir(path)), ErrorKind::NotFound);
    }
    assert_eq!(kind(vfs.open(&below, OpenMode::CreateNew)), ErrorKind::NotFound);
    assert_eq!(kind(vfs.create_dir(&below)), ErrorKind::NotFound, "parents are not created");
    assert_eq!(kind(vfs.lock(&below, LockKind::Exclusive)), ErrorKind::NotFound);
    put(vfs, &directory.join("f"), b"");
    assert!(vfs.open(&directory.join("f").join("g"), OpenMode::Read).is_err(), "a file is not a directory");
}

fn reads_stop_at_the_end(vfs: &dyn Vfs, directory: &Path) {
    let file = put(vfs, &directory.join("f"), b"abcdef");
    let mut buffer = [9; 4];
    assert_eq!(crate::io::read_full_at(&*file, &mut buffer, 4).unwrap(), 2);
    assert_eq!(buffer, [b'e', b'f', 9, 9], "what lies behind is not touched");
    assert_eq!(file.read_at(&mut buffer, 6).unwrap(), 0);
    assert_eq!(file.read_at(&mut buffer, 1 << 40).unwrap(), 0);
    assert_eq!(file.read_at(&mut [], 0).unwrap(), 0);
}

fn writes_past_the_end_leave_zeros(vfs: &dyn Vfs, directory: &Path) {
    let file = put(vfs, &directory.join("f"), b"ab");
    write_all(&*file, b"c", 5);
    assert_eq!(content(&*file), b"ab\0\0\0c");
    write_all(&*file, b"BXX", 1);
    assert_eq!(content(&*file), b"aBXX\0c");
    assert_eq!(file.write_at(b"", 100).unwrap(), 0);
    assert_eq!(file.len().unwrap(), 6, "writing nothing extends nothing");
}

fn lengths(vfs: &dyn Vfs, directory: &Path) {
    let path = directory.join("f");
    let file = put(vfs, &path, &[7; 10]);
    file.set_len(4).unwrap();
    file.set_len(6).unwrap();
    assert_eq!(content(&*file), [7, 7, 7, 7, 0, 0], "what was cut off does not come back");
    assert_eq!(vfs.list(directory).unwrap()[0].bytes, 6);
    file.set_len(0).unwrap();
    assert_eq!(read(vfs, &path), b"");
}

fn chunks_meet(vfs: &dyn Vfs, directory: &Path) {
    let bytes: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
    let file = vfs.open(&directory.join("f"), OpenMode::CreateNew).unwrap();
    for (number, part) in bytes.chunks(777).enumerate() {
        write_all(&*file, part, number as u64 * 777);
    }
    assert_eq!(content(&*file), bytes);
    let mut middle = vec![0; 100_000];
    crate::io::read_exact_at(&*file, &mut middle, 33_333).unwrap();
    assert_eq!(middle, bytes[33_333..133_333]);
    let mut beyond = vec![0; 10];
    assert_eq!(kind(crate::io::read_exact_at(&*file, &mut beyond, 299_995)), ErrorKind::UnexpectedEof);
}

fn long_files_of_nothing(vfs: &dyn Vfs, directory: &Path) {
    let file = put(vfs, &directory.join("f"), b"");
    file.set_len(5 << 30).unwrap();
    write_all(&*file, b"end", 5 << 30);
    let mut buffer = [1; 8];
    crate::io::read_exact_at(&*file, &mut buffer, (5 << 30) - 5).unwrap();
    assert_eq!(&buffer, b"\0\0\0\0\0end");
    assert!(file.write_at(b"x", u64::MAX).is_err());
}

fn allocation_keeps_what_is_there(vfs: &dyn Vfs, directory: &Path) {
    let file = put(vfs, &directory.join("f"), b"abc");
    file.allocate(0, 2).unwrap();
    assert_eq!(content(&*file), b"abc");
    file.allocate(2, 10_000).unwrap();
    file.allocate(0, 0).unwrap();
    let after = content(&*file);
    // Doing nothing is allowed.
    assert!(after.len() == 3 || after.len() == 10_002);
    assert!(after.starts_with(b"abc") && after[3..].iter().all(|byte| *byte == 0));
}

fn a_sync_that_has_begun_changes_nothing(vfs: &dyn Vfs, directory: &Path) {
    let bytes: Vec<u8> = (0..300_000u32).map(|index| index as u8).collect();
    let file = put(vfs, &directory.join("f"), &bytes);
    for (position, length) in [(0, 0), (0, 300_000), (5_000, 70_000), (299_999, 1), (299_999, u64::MAX), (u64::MAX, 1)]
    {
        file.begin_sync(position, length);
        assert!(content(&*file) == bytes, "{length} bytes from {position}");
    }
    file.begin_sync(0, 300_000);
    write_all(&*file, b"later", 4_094);
    file.sync_data().unwrap();
    assert_eq!(&content(&*file)[4_093..4_100], [&bytes[4_093..4_094], b"later", &bytes[4_099..4_100]].concat());
}

fn windows_write_into_the_file(vfs: &dyn Vfs, directory: &Path) {
    let file = put(vfs, &directory.join("f"), b"published");
    file.set_len(1_300_000).unwrap();
    for (position, bytes, what) in
        [(1_300_000, 1, "beyond the end"), (u64::MAX, 1, "beyond any end"), (0, 0, "nothing")]
    {
        assert!(!matches!(file.window(position, bytes), Ok(Some(_))), "{what}");
    }
    let map = file.map(9).unwrap();
    // To have none is allowed.
    let Some(mut window) = file.window(9, 1_200_000).unwrap() else { return };
    let mut expected = b"published".to_vec();
    for nth in 0..1000_u32 {
        let bytes = nth.to_be_bytes().repeat(1 + nth as usize % 99);
        window.write(&bytes, expected.len() as u64).unwrap();
        expected.extend_from_slice(&bytes);
        if nth % 7 == 0 {
            // Both ways of writing see each other. Now and then much is written beside the window, which leaves it alone.
            let bytes = b"positional".repeat(if nth % 203 == 0 { 14_000 } else { 1 });
            write_all(&*file, &bytes, expected.len() as u64);
            expected.extend_from_slice(&bytes);
        }
    }
    let end = expected.len() as u64;
    assert!(
        window.write(b"x", 8).is_err()
            && window.write(b"x", 1_200_009).is_err()
            && window.write(b"x", u64::MAX).is_err()
    );
    assert!(window.write(&[1; 1_200_001], 9).is_err());
    window.write(b"end", 1_200_006).unwrap();
    file.sync_data().unwrap();
    drop(window);
    if let Some(map) = map {
        assert_eq!(&map.bytes()[..], b"published");
    }
    let after = content(&*file);
    assert!(after[..expected.len()] == expected);
    assert!(after[expected.len()..1_200_006].iter().all(|byte| *byte == 0));
    assert_eq!(&after[1_200_006..1_200_010], b"end\0");
    file.set_len(end).unwrap();
    assert_eq!(content(&*file).len() as u64, end);
}

fn rename_replaces(vfs: &dyn Vfs, directory: &Path) {
    let (old, new) = (directory.join("old"), directory.join("new"));
    put(vfs, &new, b"replaced");
    let replaced = vfs.open(&new, OpenMode::Read).unwrap();
    let moved = put(vfs, &old, b"moved");
    vfs.rename(&old, &new).unwrap();
    assert_eq!(names(vfs, directory), ["new"]);
    assert_eq!(read(vfs, &new), b"moved");
    assert_eq!(content(&*replaced), b"replaced", "an open file outlives its name");
    write_all(&*moved, b"M", 0);
    assert_eq!(read(vfs, &new), b"Moved");
    vfs.rename(&new, &new).unwrap();
    assert_eq!(read(vfs, &new), b"Moved");
    vfs.create_dir(&old).unwrap();
    assert!(vfs.rename(&new, &old).is_err(), "a file does not replace a directory");
    assert!(vfs.rename(&old, &new).is_err(), "nor the other way round");
}

fn rename_of_directories(vfs: &dyn Vfs, directory: &Path) {
    let (a, b) = (directory.join("a"), directory.join("b"));
    vfs.create_dir(&a).unwrap();
    put(vfs, &a.join("f"), b"x");
    vfs.rename(&a, &b).unwrap();
    assert_eq!(read(vfs, &b.join("f")), b"x");
    assert!(vfs.rename(&b, &b.join("c")).is_err(), "a directory does not move into itself");
    vfs.rename(&b.join("f"), &directory.join("f")).unwrap();
    assert_eq!(names(vfs, directory), ["b", "f"]);
    assert_eq!(names(vfs, &b), [""; 0]);
}

fn removal(vfs: &dyn Vfs, directory: &Path) {
    let below = directory.join("d");
    vfs.create_dir(&below).unwrap();
    assert_eq!(kind(vfs.create_dir(&below)), ErrorKind::AlreadyExists);
    let path = below.join("f");
    let file = put(vfs, &path, b"abc");
    assert_eq!(kind(vfs.remove_dir(&below)), ErrorKind::DirectoryNotEmpty);
    assert!(vfs.remove_file(&below).is_err() && vfs.remove_dir(&path).is_err());
    vfs.remove_file(&path).unwrap();
    assert_eq!(kind(vfs.open(&path, OpenMode::Read)), ErrorKind::NotFound);
    assert_eq!(content(&*file), b"abc", "an open file outlives its name");
    write_all(&*file, b"d", 3);
    put(vfs, &path, b"another");
    assert_eq!(content(&*file), b"abcd");
    vfs.remove_file(&path).unwrap();
    vfs.remove_dir(&below).unwrap();
    assert_eq!(kind(vfs.list(&below)), ErrorKind::NotFound);
}

fn listing(vfs: &dyn Vfs, directory: &Path) {
    assert_eq!(vfs.list(directory).unwrap(), []);
    vfs.create_dir(&directory.join("d")).unwrap();
    put(vfs, &directory.join("d").join("deeper"), b"");
    put(vfs, &directory.join("f"), b"abc");
    let mut entries = vfs.list(directory).unwrap();
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    let seen: Vec<_> = entries.iter().map(|entry| (entry.name.as_str(), entry.kind, entry.bytes)).collect();
    assert_eq!(seen, [("d", EntryKind::Directory, 0), ("f", EntryKind::File, 3)]);
    assert!(vfs.list(&directory.join("f")).is_err());
}

fn modification_times(vfs: &dyn Vfs, directory: &Path) {
    let file = put(vfs, &directory.join("f"), b"abc");
    for ms in [1_700_000_000_000, 0, 1_234] {
        file.set_modified(ms).unwrap();
        assert_eq!(vfs.list(directory).unwrap()[0].modified_ms, ms);
    }
    // A file keeps its time under another name, and when it is synced.
    file.sync_all().unwrap();
    vfs.rename(&directory.join("f"), &directory.join("g")).unwrap();
    assert_eq!(vfs.list(directory).unwrap()[0].modified_ms, 1_234);
    write_all(&*file, b"x", 0);
    assert_ne!(vfs.list(directory).unwrap()[0].modified_ms, 1_234);
}

fn locks_exclude(vfs: &dyn Vfs, directory: &Path) {
    let path = directory.join("lock");
    let lock = |kind| vfs.lock(&path, kind);
    let first = match lock(LockKind::Exclusive) {
        Err(error) if error.kind() == ErrorKind::Unsupported => return,
        first => first.unwrap(),
    };
    assert_eq!(names(vfs, directory), ["lock"]);
    assert_eq!(kind(lock(LockKind::Exclusive)), ErrorKind::WouldBlock);
    assert_eq!(kind(lock(LockKind::Shared)), ErrorKind::WouldBlock);
    let other = vfs.lock(&directory.join("other"), LockKind::Exclusive).unwrap();
    drop(first);
    let shared = (lock(LockKind::Shared).unwrap(), lock(LockKind::Shared).unwrap());
    assert_eq!(kind(lock(LockKind::Exclusive)), ErrorKind::WouldBlock);
    match lock(LockKind::Broker) {
        Err(error) => assert_eq!(error.kind(), ErrorKind::Unsupported),
        Ok(broker) => {
            assert_eq!(kind(lock(LockKind::Broker)), ErrorKind::WouldBlock);
            // Opening and closing the file elsewhere does not let go of it.
            drop(vfs.open(&path, OpenMode::Write).unwrap());
            assert_eq!(kind(lock(LockKind::Broker)), ErrorKind::WouldBlock);
            drop(broker);
            lock(LockKind::Broker).unwrap();
        }
    }
    drop(shared);
    let last = lock(LockKind::Exclusive).unwrap();
    assert_eq!(kind(lock(LockKind::Exclusive)), ErrorKind::WouldBlock);
    drop((last, other));
    drop(lock(LockKind::Exclusive).unwrap());
}

fn maps_stay(vfs: &dyn Vfs, directory: &Path) {
    let path = directory.join("f");
    let bytes: Vec<u8> = (0..100_000_u32).map(|n| (n % 253) as u8).collect();
    let file = put(vfs, &path, &bytes);
    let Some(map) = file.map(99_000).unwrap() else { return };
    assert_eq!(map.bytes()[..], bytes[..99_000]);
    map.populate(0, 99_000).unwrap();
    map.populate(5_000, 1).unwrap();
    map.populate(99_000, 0).unwrap();
    assert!(map.populate(98_999, 2).is_err() && map.populate(u64::MAX, 2).is_err());
    write_all(&*file, b"behind it", 99_500);
    let slice = map.bytes().slice(90_000..);
    drop(map);
    drop(file);
    let again = vfs.open(&path, OpenMode::Read).unwrap().map(100).unwrap().unwrap();
    vfs.rename(&path, &directory.join("g")).unwrap();
    vfs.remove_file(&directory.join("g")).unwrap();
    assert_eq!(slice[..], bytes[90_000..99_000]);
    assert_eq!(again.bytes()[..], bytes[..100]);
    let empty = put(vfs, &path, b"");
    assert!(empty.map(0).unwrap().unwrap().bytes().is_empty());
    assert!(empty.map(1).is_err(), "nothing can be mapped that is not there");
}

fn a_mapped_tail_shows_what_is_written_later(vfs: &dyn Vfs, directory: &Path) {
    let path = directory.join("f");
    let file = put(vfs, &path, b"published");
    assert!(!matches!(file.map_tail(0, 0), Ok(Some(_))) && !matches!(file.map_tail(u64::MAX, 2), Ok(Some(_))));
    // To have none is allowed.
    let Some(tail) = file.map_tail(5, 1_000_000).unwrap() else { return };
    let mut shown = vec![tail.bytes(5, 9).unwrap()];
    assert_eq!(shown[0][..], b"shed"[..]);
    assert!(tail.bytes(9, 9).unwrap().is_empty());
    for (position, end) in [(4, 9), (9, 8), (5, 1_000_006), (2_000_000, 2_000_001), (5, u64::MAX), (u64::MAX, u64::MAX)]
    {
        assert!(tail.bytes(position, end).is_err(), "{position} to {end} is not inside");
    }
    assert!(tail.bytes(5, 500_000).is_err(), "the file ends before");
    let mut expected = b"published".to_vec();
    let mut write = |bytes: Vec<u8>, window: Option<&mut dyn VfsWindow>| {
        let position = expected.len() as u64;
        match window {
            Some(window) => window.write(&bytes, position).unwrap(),
            None => write_all(&*file, &bytes, position),
        }
        expected.extend_from_slice(&bytes);
        let found = tail.bytes(position, expected.len() as u64).unwrap();
        assert!(found == bytes, "{} bytes from {position}", bytes.len());
        assert!(tail.bytes(5, expected.len() as u64).unwrap() == expected[5..]);
        shown.push(found);
        expected.len() as u64
    };
    for nth in 0..100_usize {
        write(vec![nth as u8; 1 + nth * 37 % 3000], None);
    }
    // Longer than what was written, cut to that, and longer again, as it goes with space that is taken ahead.
    file.set_len(900_000).unwrap();
    if let Some(mut window) = file.window(300_000, 600_000).unwrap() {
        write(vec![7; 200_000], None);
        for nth in 0..50_u8 {
            write(vec![nth; 999], Some(&mut *window));
        }
    }
    let end = write(b"before the cut".to_vec(), None);
    file.set_len(end).unwrap();
    write(b"behind the cut".to_vec(), None);
    file.sync_data().unwrap();
    drop((tail, file));
    vfs.remove_file(&path).unwrap();
    assert!(shown.concat() == expected[5..], "what was handed out stays");
}

fn syncs_succeed(vfs: &dyn Vfs, directory: &Path) {
    let file = put(vfs, &directory.join("f"), b"abc");
    file.sync_data().unwrap();
    file.sync_all().unwrap();
    vfs.sync_dir(directory).unwrap();
}

fn threads_share_a_file(vfs: &dyn Vfs, directory: &Path) {
    let file = put(vfs, &directory.join("f"), b"");
    std::thread::scope(|scope| {
        for thread in 0..4_u8 {
            let file = &file;
            scope.spawn(move || {
                for round in 0..50_u64 {
                    write_all(&**file, &[thread + 1; 100], (round * 4 + u64::from(thread)) * 100);
                }
            });
        }
    });
    let content = content(&*file);
    let whole =
        content.chunks(100).enumerate().all(|(n, part)| part.iter().all(|byte| usize::from(*byte) == n % 4 + 1));
    assert!(content.len() == 20_000 && whole);
}
