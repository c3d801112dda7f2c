//! Maps of files: read-only ones, handed out as [`Bytes`], of what is there or of what still grows, and windows to write
//! into. The only file of the crate with
//! `unsafe` in it.
//!
//! It knows a file and a length. It does not know who may write the file; that promise is the caller's
//! ([`VfsFile::map`](super::VfsFile::map), [`VfsFile::window`](super::VfsFile::window)), and the crate keeps it by never
//! changing or cutting published bytes, and by dropping a window before it cuts its file.
#![allow(unsafe_code, reason = "mapping a file is unsafe by nature; this is the one file where it is done")]

use std::fs::File;
use std::io;
#[cfg(target_os = "linux")]
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
#[cfg(target_os = "linux")]
use std::sync::{OnceLock, Weak};

use bytes::Bytes;
#[cfg(target_os = "linux")]
use memmap2::MmapRaw;
use memmap2::{Mmap, MmapOptions};

use super::VfsMap;
#[cfg(target_os = "linux")]
use super::{VfsTail, VfsWindow};
#[cfg(target_os = "linux")]
use crate::sync::atomic::{AtomicUsize, Ordering};

/// Maps `[0, bytes)` of a file for reading. The file must be at least that long: a page past its end could not be read
/// and would kill the process with a signal.
pub(super) fn map_file(file: &File, bytes: u64) -> io::Result<FileMap> {
    if bytes == 0 {
        return Ok(FileMap { bytes: Bytes::new(), map: None });
    }
    let file_bytes = file.metadata()?.len();
    if file_bytes < bytes {
        let what = format!("cannot map {bytes} bytes of a file of {file_bytes}");
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
    }
    let length = usize::try_from(bytes)
        .ok()
        .filter(|length| isize::try_from(*length).is_ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "more than the address space holds"))?;
    // SAFETY: the map is read-only and private to this type; it leaves only as `&[u8]` inside `Bytes`, whose owner keeps
    // the mapping alive, and the map owns its pages independently of the descriptor. What remains is that the bytes must
    // not change and the file must not be cut below `bytes` while it lives: that is the promise in the contract of
    // `VfsFile::map`. The crate keeps it by mapping published bytes only, which it never overwrites or cuts (see
    // "published bytes never change" in the manual); other programs writing the directory are outside the contract.
    let map = unsafe { MmapOptions::new().len(length).map(file)? };
    let map = Arc::new(map);
    Ok(FileMap { bytes: Bytes::from_owner(Owner(Arc::clone(&map))), map: Some(map) })
}

/// What keeps the mapping alive inside `Bytes`.
struct Owner(Arc<Mmap>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// A map of the first bytes of a file.
#[derive(Debug)]
pub(super) struct FileMap {
    bytes: Bytes,
    /// `None` for a map of nothing: the operating system refuses to make one.
    map: Option<Arc<Mmap>>,
}

impl VfsMap for FileMap {
    fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    fn populate(&self, position: u64, bytes: u64) -> io::Result<bool> {
        let end = position.checked_add(bytes).filter(|end| *end <= self.bytes.len() as u64);
        if end.is_none() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the range is not inside the map"));
        }
        match &self.map {
            Some(map) if bytes > 0 => populate(map, position, bytes),
            _ => Ok(true),
        }
    }
}

#[cfg(target_os = "linux")]
fn populate(map: &Mmap, position: u64, bytes: u64) -> io::Result<bool> {
    use nix::libc::{EINVAL, ENOSYS};
    // Both fit: the range was found to lie inside the map.
    let (position, bytes) = (position as usize, bytes as usize);
    loop {
        // The range is widened to whole pages by `advise_range`.
        match map.advise_range(memmap2::Advice::PopulateRead, position, bytes) {
            Ok(()) => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A kernel before 5.14 does not know the advice.
            Err(error) if matches!(error.raw_os_error(), Some(EINVAL | ENOSYS)) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn populate(_: &Mmap, _: u64, _: u64) -> io::Result<bool> {
    Ok(false)
}

/// A part of a file that is mapped for reading, and may be mapped before it is written.
#[cfg(target_os = "linux")]
#[derive(Debug)]
pub(super) struct FileTail {
    map: Arc<MmapRaw>,
    /// Position in the file of the first mapped byte.
    start: u64,
    /// Below this, counted from the start, all pages were read in.
    populated: AtomicUsize,
}

/// Pages are at least as large, and a whole number of these.
#[cfg(target_os = "linux")]
const PAGE_BYTES: u64 = 4096;

/// Maps `[position, position + bytes)` of a file for reading, whether the file is that long or not; `None` if the kernel cannot
/// make pages ready ahead (before 5.14), so that a failure would be a signal and no error.
#[cfg(target_os = "linux")]
pub(super) fn map_tail(file: &File, position: u64, bytes: u64) -> io::Result<Option<FileTail>> {
    let is_possible = bytes > 0 && position.checked_add(bytes).is_some_and(|end| i64::try_from(end).is_ok());
    let length = usize::try_from(bytes).ok().filter(|length| is_possible && isize::try_from(*length).is_ok());
    let length = length.ok_or(io::ErrorKind::InvalidInput)?;
    // Nothing of it is touched before `bytes` has read it in.
    let map = MmapOptions::new().offset(position).len(length).map_raw_read_only(file)?;
    let tail = FileTail { map: Arc::new(map), start: position, populated: AtomicUsize::new(0) };
    match tail.populate_to(1) {
        Err(error) if matches!(error.raw_os_error(), Some(nix::libc::EINVAL | nix::libc::ENOSYS)) => Ok(None),
        // Any other failure may only mean that the file ends before.
        Ok(()) | Err(_) => Ok(Some(tail)),
    }
}

#[cfg(target_os = "linux")]
impl FileTail {
    /// Reads in whatever lies before `end`, counted from the start. The page in which the file ends is there then, and what is
    /// written to it later shows in it.
    fn populate_to(&self, end: usize) -> io::Result<()> {
        loop {
            let populated = self.populated.load(Ordering::Acquire);
            if end <= populated {
                return Ok(());
            }
            match self.map.advise_range(memmap2::Advice::PopulateRead, populated, end - populated) {
                Ok(()) => {
                    let page_end = (self.start + end as u64).next_multiple_of(PAGE_BYTES) - self.start;
                    self.populated.fetch_max(page_end as usize, Ordering::AcqRel);
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(target_os = "linux")]
impl VfsTail for FileTail {
    #[inline]
    fn bytes(&self, position: u64, end: u64) -> io::Result<Bytes> {
        let from_start = |position: u64| position.checked_sub(self.start).and_then(|at| usize::try_from(at).ok());
        let inside = from_start(position).zip(from_start(end));
        let Some((at, end)) = inside.filter(|(at, end)| at <= end && *end <= self.map.len()) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the bytes are not inside the mapping"));
        };
        self.populate_to(end)?;
        Ok(Bytes::from_owner(TailSlice { map: Arc::clone(&self.map), at, length: end - at }))
    }
}

/// What keeps the mapping alive inside `Bytes`: a part of it that was read in.
#[cfg(target_os = "linux")]
struct TailSlice {
    map: Arc<MmapRaw>,
    at: usize,
    length: usize,
}

#[cfg(target_os = "linux")]
impl AsRef<[u8]> for TailSlice {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `at + length` was found to lie inside the map, which `self` keeps alive, and its pages were read in, so that the
        // file reaches that far. That nobody changes these bytes or cuts the file below them while this lives is the promise in
        // the contract of `VfsTail::bytes`: the crate asks for published bytes only. What is written behind them, through other
        // mappings or calls, is not part of the slice.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().add(self.at), self.length) }
    }
}

/// A part of a file that is mapped for writing.
#[cfg(target_os = "linux")]
#[derive(Debug)]
pub(super) struct FileWindow {
    map: MmapRaw,
    /// To make its pages by; gone once the file was closed.
    file: Weak<File>,
    /// Position in the file of the first mapped byte.
    start: u64,
    /// Below this, counted from the start, the pages are there and may be written without asking the file system, or nothing
    /// is to be written any more.
    populated: usize,
}

/// How much of a window is made ready at once: a longer piece would make the append that meets it wait longer.
#[cfg(target_os = "linux")]
const POPULATE_BYTES: u64 = 128 << 10;

/// What is written where pages are to be.
#[cfg(target_os = "linux")]
static ZEROS: OnceLock<Box<[u8]>> = OnceLock::new();

/// Maps `[position, position + bytes)` of a file for writing; `None` if the kernel cannot make pages ready ahead (before
/// 5.14), so that a failure would be a signal and no error.
#[cfg(target_os = "linux")]
pub(super) fn map_window(file: &Arc<File>, position: u64, bytes: u64) -> io::Result<Option<FileWindow>> {
    let end = position.checked_add(bytes).filter(|end| bytes > 0 && i64::try_from(*end).is_ok());
    let length = usize::try_from(bytes).ok().filter(|length| isize::try_from(*length).is_ok());
    let (Some(end), Some(length)) = (end, length) else { return Err(io::ErrorKind::InvalidInput.into()) };
    if file.metadata()?.len() < end {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the window reaches beyond the end of the file"));
    }
    let map = MmapOptions::new().offset(position).len(length).map_raw(&**file)?;
    let mut window = FileWindow { map, file: Arc::downgrade(file), start: position, populated: 0 };
    match window.populate_to(1) {
        Ok(()) => Ok(Some(window)),
        Err(error) if matches!(error.raw_os_error(), Some(nix::libc::EINVAL | nix::libc::ENOSYS)) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(target_os = "linux")]
impl FileWindow {
    fn populate_to(&mut self, end: usize) -> io::Result<()> {
        while self.populated < end {
            let position = self.start + self.populated as u64;
            // Up to where such pieces of the file begin, so that the page cache takes few large pieces of memory for it.
            let piece = (POPULATE_BYTES - position % POPULATE_BYTES) as usize;
            let bytes = piece.min(self.map.len() - self.populated);
            // Nothing that counts lies from here on. One write makes pages at a fraction of what a fault for each costs, which would
            // find out from the file system that there is nothing to be read.
            if let Some(file) = self.file.upgrade() {
                let zeros = ZEROS.get_or_init(|| vec![0; POPULATE_BYTES as usize].into());
                file.write_all_at(zeros.get(..bytes).unwrap_or_default(), position)?;
            }
            match self.map.advise_range(memmap2::Advice::PopulateWrite, self.populated, bytes) {
                Ok(()) => self.populated += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(target_os = "linux")]
impl VfsWindow for FileWindow {
    #[inline]
    fn write(&mut self, bytes: &[u8], position: u64) -> io::Result<()> {
        let at = position.checked_sub(self.start).and_then(|at| usize::try_from(at).ok());
        let inside = at.and_then(|at| Some((at, at.checked_add(bytes.len())?)));
        let Some((at, end)) = inside.filter(|(_, end)| *end <= self.map.len()) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the bytes are not inside the window"));
        };
        if end > self.populated {
            // What lies before this write may have been written positionally since.
            self.populated = self.populated.max(at);
            self.populate_to(end)?;
        }
        // SAFETY: `at + bytes.len()` was found to lie inside the map, which is writable and lives as long as `self`. The
        // source is no part of it, as nobody is ever given a reference into it. `&mut self` keeps other writers of this
        // window away; that there is no second window, and that the file is not cut below it, is the promise in the
        // contract of `VfsFile::window`. Read-only maps of the file hand out published bytes only, which are never written.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.map.as_mut_ptr().add(at), bytes.len()) };
        Ok(())
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "the map is tested on real files")]
mod tests {
    use super::*;

    #[test]
    fn slices_outlive_the_map_and_the_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        std::fs::write(&path, vec![7; 10_000]).unwrap();
        let file = File::open(&path).unwrap();
        let map = map_file(&file, 9_999).unwrap();
        let slice = map.bytes().slice(9_000..);
        assert!(map.populate(5_000, 4_999).unwrap() || !cfg!(target_os = "linux"));
        drop((map, file));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(slice, vec![7; 999]);
    }

    #[test]
    fn a_shortened_file_is_an_error_of_populate() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        std::fs::write(&path, vec![7; 100_000]).unwrap();
        let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let map = map_file(&file, 100_000).unwrap();
        file.set_len(1_000).unwrap();
        if cfg!(target_os = "linux") {
            assert!(map.populate(50_000, 4_096).is_err());
        }
    }

    #[test]
    fn nothing_and_too_much() {
        let file = tempfile::tempfile().unwrap();
        let map = map_file(&file, 0).unwrap();
        assert!(map.bytes().is_empty() && map.populate(0, 0).unwrap());
        assert_eq!(map.populate(0, 1).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(map_file(&file, 1).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    /// A file of so many bytes, all 7, and a window of it; none before Linux 5.14.
    #[cfg(target_os = "linux")]
    fn window_of(length: usize, position: u64, bytes: u64) -> Option<(tempfile::NamedTempFile, Arc<File>, FileWindow)> {
        let named = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(named.path(), vec![7; length]).unwrap();
        let file = std::fs::OpenOptions::new().read(true).write(true).open(named.path()).map(Arc::new).unwrap();
        let window = map_window(&file, position, bytes).unwrap()?;
        Some((named, file, window))
    }

    #[cfg(target_os = "linux")]
    fn check_content(named: &tempfile::NamedTempFile, expected: &[u8]) {
        let content = std::fs::read(named.path()).unwrap();
        let differs = content.iter().zip(expected).position(|(there, expected)| there != expected);
        assert_eq!((content.len(), differs), (expected.len(), None));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_window_is_filled_with_zeros_from_its_writes_on_and_by_pieces() {
        const PIECE: usize = POPULATE_BYTES as usize;
        let Some((named, file, mut window)) = window_of(PIECE * 4, 1000, PIECE as u64 * 3) else { return };
        let mut expected = vec![7; PIECE * 4];
        expected[1000..PIECE].fill(0);
        check_content(&named, &expected);
        let mut write = |bytes: &[u8], position: usize| window.write(bytes, position as u64);
        write(b"ready", 1000).unwrap();
        expected[1000..1005].copy_from_slice(b"ready");
        check_content(&named, &expected);
        // Written beside it meanwhile, to beyond what is ready.
        file.write_all_at(b"beside", PIECE as u64 - 3).unwrap();
        expected[PIECE - 3..PIECE + 3].copy_from_slice(b"beside");
        write(b"behind", PIECE + 3).unwrap();
        expected[PIECE + 3..PIECE * 2].fill(0);
        expected[PIECE + 3..PIECE + 9].copy_from_slice(b"behind");
        check_content(&named, &expected);
        // Over the end of a piece, to the end of the window, which is none of a piece.
        write(&[1; PIECE + 1000], PIECE * 2).unwrap();
        expected[PIECE * 2..PIECE * 3 + 1000].fill(1);
        check_content(&named, &expected);
        for (position, bytes) in [(999, 1), (PIECE * 3 + 1000, 1), (PIECE * 3, 1001), (usize::MAX, 1)] {
            let refused = write(&vec![2; bytes], position).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidInput, "{bytes} bytes at {position}");
        }
        check_content(&named, &expected);
    }

    /// The pool closes files; the window of one makes its pages without zeros then, and is written all the same.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_window_outlives_the_handle_of_its_file() {
        const PIECE: usize = POPULATE_BYTES as usize;
        let Some((named, file, mut window)) = window_of(PIECE * 3, 0, PIECE as u64 * 2) else { return };
        drop(file);
        assert!(window.file.upgrade().is_none(), "the window keeps the file open");
        window.write(b"ready", 10).unwrap();
        window.write(b"new", PIECE as u64 * 2 - 3).unwrap();
        let mut expected = vec![7; PIECE * 3];
        expected[..PIECE].fill(0);
        expected[10..15].copy_from_slice(b"ready");
        expected[PIECE * 2 - 3..PIECE * 2].copy_from_slice(b"new");
        check_content(&named, &expected);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn no_window_of_nothing_or_of_what_is_not_in_the_file() {
        let file = tempfile::tempfile().map(Arc::new).unwrap();
        file.set_len(10).unwrap();
        let check = |position, bytes, kind| assert_eq!(map_window(&file, position, bytes).unwrap_err().kind(), kind);
        check(0, 0, io::ErrorKind::InvalidInput);
        check(u64::MAX, 1, io::ErrorKind::InvalidInput);
        check(0, 11, io::ErrorKind::UnexpectedEof);
        check(10, 1, io::ErrorKind::UnexpectedEof);
    }
}
