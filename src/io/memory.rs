//! A file system in memory: [`MemoryVfs`], for event logs in tests and for stores that need not outlive the process.
//!
//! It keeps nothing when it is dropped, loses nothing before that, and does not simulate a disk;
//! [`FaultVfs`](super::FaultVfs) does.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::content::Content;
use super::locks::LockTable;
use super::tree::{Entry, Tree};
use super::{DirEntry, EntryKind, LockKind, OpenMode, Vfs, VfsFile, VfsLock, VfsMap};
use crate::clock::{Clock, Timestamp};
use crate::sync::RwLock;
use crate::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// A file system in memory. A clone is another handle of the same one.
///
/// ```
/// use std::path::Path;
/// use topiclog::io::{MemoryVfs, OpenMode, Vfs};
///
/// let vfs = MemoryVfs::new();
/// let file = vfs.open(Path::new("/f"), OpenMode::CreateNew)?;
/// file.write_at(b"hello", 0)?;
/// assert_eq!(vfs.list(Path::new("/"))?[0].bytes, 5);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct MemoryVfs {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    tree: RwLock<Tree<Arc<MemoryFile>>>,
    locks: LockTable,
    /// Without one, each change has the next number as its time.
    clock: Option<Arc<dyn Clock>>,
    changes: AtomicI64,
    next_file: AtomicU64,
}

impl MemoryVfs {
    /// An empty file system with nothing but the root directory.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same, with modification times from a clock. Without one they only count upwards.
    pub fn with_clock(clock: Arc<dyn Clock>) -> Self {
        Self { shared: Arc::new(Shared { clock: Some(clock), ..Shared::default() }) }
    }
}

impl fmt::Debug for MemoryVfs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryVfs").finish_non_exhaustive()
    }
}

impl Shared {
    fn now_ms(&self) -> Timestamp {
        match &self.clock {
            Some(clock) => clock.now_ms(),
            None => self.changes.fetch_add(1, Ordering::Relaxed),
        }
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<MemoryFile>> {
        if matches!(mode, OpenMode::Read | OpenMode::Write) {
            return self.tree.read().file(path);
        }
        let mut tree = self.tree.write();
        match tree.file(path) {
            Ok(_) if mode == OpenMode::CreateNew => Err(io::ErrorKind::AlreadyExists.into()),
            Ok(file) => Ok(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let place = tree.place(path)?;
                let file = Arc::new(MemoryFile {
                    number: self.next_file.fetch_add(1, Ordering::Relaxed),
                    content: RwLock::default(),
                    modified_ms: AtomicI64::new(self.now_ms()),
                });
                tree.add_file(&place, Arc::clone(&file));
                Ok(file)
            }
            Err(error) if error.kind() == io::ErrorKind::IsADirectory && mode == OpenMode::CreateNew => {
                Err(io::ErrorKind::AlreadyExists.into())
            }
            Err(error) => Err(error),
        }
    }
}

impl Vfs for MemoryVfs {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn VfsFile>> {
        let file = self.shared.open(path, mode)?;
        Ok(Arc::new(Handle { shared: Arc::clone(&self.shared), file, writable: mode != OpenMode::Read }))
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<DirEntry>> {
        let tree = self.shared.tree.read();
        let names = tree.names(tree.directory(directory)?).ok_or(io::ErrorKind::NotFound)?;
        let entry = |(name, entry): (&String, &Entry<Arc<MemoryFile>>)| match entry {
            Entry::File(file) => DirEntry {
                name: name.clone(),
                kind: EntryKind::File,
                bytes: file.content.read().bytes(),
                modified_ms: file.modified_ms.load(Ordering::Relaxed),
            },
            Entry::Directory(_) => {
                DirEntry { name: name.clone(), kind: EntryKind::Directory, bytes: 0, modified_ms: 0 }
            }
        };
        Ok(names.iter().map(entry).collect())
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.shared.tree.write().create_directory(path).map(drop)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.shared.tree.write().rename(from, to).map(drop)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.shared.tree.write().remove_file(path).map(drop)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.shared.tree.write().remove_directory(path).map(drop)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.shared.tree.read().directory(path).map(drop)
    }

    fn lock(&self, path: &Path, kind: LockKind) -> io::Result<Box<dyn VfsLock>> {
        let file = self.shared.open(path, OpenMode::Create)?;
        self.shared.locks.lock(file.number, kind)
    }
}

struct MemoryFile {
    /// Names it in the table of locks.
    number: u64,
    content: RwLock<Content>,
    modified_ms: AtomicI64,
}

/// An open file.
struct Handle {
    shared: Arc<Shared>,
    file: Arc<MemoryFile>,
    writable: bool,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryFile").field("number", &self.file.number).finish_non_exhaustive()
    }
}

impl Handle {
    fn change(&self, change: impl FnOnce(&mut Content)) -> io::Result<()> {
        if !self.writable {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        change(&mut self.file.content.write());
        self.file.modified_ms.store(self.shared.now_ms(), Ordering::Relaxed);
        Ok(())
    }
}

impl VfsFile for Handle {
    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        Ok(self.file.content.read().read(buffer, position))
    }

    fn write_at(&self, bytes: &[u8], position: u64) -> io::Result<usize> {
        Content::check_end(position, bytes.len() as u64)?;
        self.change(|content| content.write(bytes, position))?;
        Ok(bytes.len())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.content.read().bytes())
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        Content::check_end(0, bytes)?;
        self.change(|content| content.set_bytes(bytes))
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync_all(&self) -> io::Result<()> {
        Ok(())
    }

    fn allocate(&self, position: u64, bytes: u64) -> io::Result<()> {
        let end = Content::check_end(position, bytes)?;
        if bytes == 0 {
            return Ok(());
        }
        self.change(|content| content.set_bytes(end.max(content.bytes())))
    }

    /// Its bytes do not lie in one piece, so there is nothing to map.
    fn map(&self, _bytes: u64) -> io::Result<Option<Box<dyn VfsMap>>> {
        Ok(None)
    }

    fn set_modified(&self, modified_ms: Timestamp) -> io::Result<()> {
        self.file.modified_ms.store(modified_ms, Ordering::Relaxed);
        Ok(())
    }
}
