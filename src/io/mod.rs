//! The storage seam: every file access of the crate goes through [`Vfs`] and [`VfsFile`].
//!
//! Three back ends stand behind it: [`DiskVfs`], [`MemoryVfs`] and [`FaultVfs`], the simulated disk that loses, tears
//! and reorders what was not synced. This module knows files and bytes; it does not know what a batch, a segment or a
//! topic is.
//!
//! Paths are whatever the back end takes; the crate only ever joins plain file names to a root.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use crate::clock::Timestamp;

mod content;
mod disk;
mod fault;
pub(crate) mod frame;
mod locks;
mod map;
mod memory;
pub(crate) mod replace;
mod tree;

pub use disk::DiskVfs;
pub use fault::*;
pub use memory::MemoryVfs;

/// How [`Vfs::open`] opens a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// For reading; the file must exist.
    Read,
    /// For reading and writing; the file must exist.
    Write,
    /// For reading and writing; the file must not exist and is created empty. Its directory entry is not yet synced.
    CreateNew,
    /// For reading and writing; created empty if it is not there, left as it is if it is.
    Create,
}

/// What a directory entry is. A symbolic link is reported as such and never followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// Anything else: a link, a pipe, a device. Never opened.
    Other,
}

/// One entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// The plain name. Names that are not UTF-8 come with replacement characters; the crate never made them.
    pub name: String,
    /// What it is.
    pub kind: EntryKind,
    /// Length in bytes; 0 for a directory.
    pub bytes: u64,
    /// Last modification, milliseconds since 1970.
    pub modified_ms: Timestamp,
}

/// Which of the two lock protocols [`Vfs::lock`] takes. They do not see each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockKind {
    /// `flock(2)` as [`std::fs::File::try_lock`] takes it, exclusive; also refused if this process holds it already.
    Exclusive,
    /// `flock(2)`, shared.
    Shared,
    /// A POSIX record lock over the whole file, bound to the open file (`F_OFD_SETLK`): what Kafka's `FileChannel` lock
    /// conflicts with. Where the platform has none (all but Linux), [`DiskVfs`] takes nothing and says nothing.
    Broker,
}

/// A lock that is held until this is dropped.
pub trait VfsLock: Send + Sync + fmt::Debug {}

/// A file system: the seam between this crate and the disk.
///
/// An implementation is as strict or as lenient as POSIX: what was written is readable at once, but is on the disk only
/// after a successful [`VfsFile::sync_data`], and a new or renamed file can be found after a power cut only after
/// [`Vfs::sync_dir`] of its directory.
///
/// Error kinds matter: a missing file is [`io::ErrorKind::NotFound`], an existing one
/// [`io::ErrorKind::AlreadyExists`], a full disk [`io::ErrorKind::StorageFull`], a lock that another holds
/// [`io::ErrorKind::WouldBlock`], a back end or file system without locks [`io::ErrorKind::Unsupported`].
pub trait Vfs: Send + Sync + fmt::Debug {
    /// Opens a regular file. Never follows a link in the last part of the path, never opens anything but a regular file.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn VfsFile>>;
    /// The entries of a directory, in no particular order, without `.` and `..`.
    fn list(&self, directory: &Path) -> io::Result<Vec<DirEntry>>;
    /// Creates a directory whose parent exists, readable by its owner only.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Renames a file or directory; an existing file at `to` is replaced atomically.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes an empty directory.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
    /// Makes the entries of a directory durable. It does not sync the files themselves.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Takes a lock on a file (created if it is not there) without waiting.
    fn lock(&self, path: &Path, kind: LockKind) -> io::Result<Box<dyn VfsLock>>;
}

/// An open file. All positions are absolute; there is no cursor.
#[expect(clippy::len_without_is_empty, reason = "nobody asks whether a file is empty")]
pub trait VfsFile: Send + Sync + fmt::Debug {
    /// Reads at a position into the buffer. Fewer bytes than asked for may come; 0 only at the end of the file.
    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize>;
    /// Writes at a position. Fewer bytes than given may be written; the caller goes on with the rest.
    fn write_at(&self, bytes: &[u8], position: u64) -> io::Result<usize>;
    /// The length of the file in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Cuts or extends the file with zeros. The crate never cuts below what a map covers, or a tail has handed out; it may cut
    /// what a tail covers besides, and extend the file again.
    fn set_len(&self, bytes: u64) -> io::Result<()>;
    /// Makes the data durable, and the length as far as reading the data needs it (`fdatasync`).
    fn sync_data(&self) -> io::Result<()>;
    /// Makes data and all attributes durable (`fsync`).
    fn sync_all(&self) -> io::Result<()>;
    /// Asks the back end to begin to write a range to the disk, without waiting for it: a hint for speed before a sync of
    /// much, which then finds most of it done. It promises nothing, and whatever fails is reported by the sync.
    fn begin_sync(&self, position: u64, bytes: u64) {
        let _ = (position, bytes);
    }
    /// Takes zeroed space for `[position, position + bytes)`; the file becomes at least that long. A back end that
    /// cannot may do nothing: it is a hint for speed.
    fn allocate(&self, position: u64, bytes: u64) -> io::Result<()>;
    /// Maps `[0, bytes)` of the file for reading, without a copy. `Ok(None)` if this back end cannot map: the caller
    /// then reads positionally. The caller promises that nobody changes those bytes or cuts the file below them while
    /// the mapping, or a slice of its bytes, lives.
    fn map(&self, bytes: u64) -> io::Result<Option<Box<dyn VfsMap>>>;
    /// Maps `[position, position + bytes)` of the file for reading while it grows: the range may reach beyond the end that the
    /// file has. While the mapping lives the file is written, through windows as well, extended, and cut below the end of the
    /// range: what was written is seen in the mapping all the same. `Ok(None)` if this back end cannot do that: the caller then
    /// reads positionally.
    fn map_tail(&self, position: u64, bytes: u64) -> io::Result<Option<Box<dyn VfsTail>>> {
        let _ = (position, bytes);
        Ok(None)
    }
    /// Maps `[position, position + bytes)` of the file for writing. `Ok(None)` if this back end or file system cannot, or
    /// cannot promise that a write into space that [`allocate`](Self::allocate) took finds its room: the caller then
    /// writes positionally. The range must lie inside the file. The caller promises to drop the window before it cuts the file
    /// below the window's end, that no other window of the range is written at the same time, and that nothing which lies
    /// behind its start, or behind a write into it, counts by then: opening it and each write may fill that with zeros.
    fn window(&self, position: u64, bytes: u64) -> io::Result<Option<Box<dyn VfsWindow>>> {
        let _ = (position, bytes);
        Ok(None)
    }
    /// Sets the modification time.
    fn set_modified(&self, modified_ms: Timestamp) -> io::Result<()>;
}

/// A part of a file that is mapped for writing: what is written is at once what [`VfsFile::read_at`] reads, is kept if the
/// process dies, and becomes durable by [`VfsFile::sync_data`] of the file, as if it had been written by
/// [`VfsFile::write_at`].
pub trait VfsWindow: Send + Sync + fmt::Debug {
    /// Writes all bytes at a position of the file. They must lie inside the window. After an error nothing of them is
    /// there, and the window is of no more use.
    fn write(&mut self, bytes: &[u8], position: u64) -> io::Result<()>;
}

/// A read-only mapping of the first bytes of a file.
pub trait VfsMap: Send + Sync + fmt::Debug {
    /// The mapped bytes; slices of it keep the mapping alive.
    fn bytes(&self) -> &Bytes;
    /// Reads the pages of a range in, so that a bad sector or a shortened file is an error here and not a signal later.
    /// `Ok(false)` if the platform cannot: the caller then reads the range once positionally.
    fn populate(&self, position: u64, bytes: u64) -> io::Result<bool>;
}

/// A read-only mapping of a part of a file that grows.
pub trait VfsTail: Send + Sync + fmt::Debug {
    /// The bytes `[position, end)` of the file, without a copy; they keep the mapping alive. They are read in here, so that a bad
    /// sector or a file that ends before them is an error and not a signal later. An error as well if they do not lie inside the
    /// mapping. The caller promises that they are all written, and that nobody changes them or cuts the file below `end` while
    /// they live.
    fn bytes(&self, position: u64, end: u64) -> io::Result<Bytes>;
}

/// Reads exactly `buffer.len()` bytes, or fails with [`io::ErrorKind::UnexpectedEof`].
pub(crate) fn read_exact_at(file: &dyn VfsFile, buffer: &mut [u8], position: u64) -> io::Result<()> {
    let read = read_full_at(file, buffer, position)?;
    if read == buffer.len() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// Reads until the buffer is full or the file ends; returns how many bytes came.
pub(crate) fn read_full_at(file: &dyn VfsFile, buffer: &mut [u8], position: u64) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, position.saturating_add(done as u64)) {
            Ok(0) => break,
            Ok(read) => done += read.min(rest.len()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Writes all bytes, going on after short writes. Returns how many were written together with the error, so that the
/// caller knows what to cut back; a write of zero bytes is an error and not a loop.
pub(crate) fn write_all_at(file: &dyn VfsFile, bytes: &[u8], position: u64) -> Result<(), (usize, io::Error)> {
    let mut done = 0;
    while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
        match file.write_at(rest, position.saturating_add(done as u64)) {
            Ok(0) => return Err((done, io::ErrorKind::WriteZero.into())),
            Ok(_) if crate::planted::is(crate::planted::Bug::ShortWriteIgnored) => return Ok(()),
            Ok(written) => done += written.min(rest.len()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err((done, error)),
        }
    }
    Ok(())
}

/// Reads a whole small file, refusing one that is longer than `bytes_max` before allocating for it.
pub(crate) fn read_small(vfs: &dyn Vfs, path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let file = vfs.open(path, OpenMode::Read)?;
    let bytes = file.len()?;
    if bytes > bytes_max {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{bytes} bytes, expected at most {bytes_max}")));
    }
    let mut buffer = vec![0; usize::try_from(bytes).unwrap_or(0)];
    let read = read_full_at(&*file, &mut buffer, 0)?;
    buffer.truncate(read);
    Ok(buffer)
}
