//! A file system that does some calls in its own way, and has the others done by one below it.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use topiclog::io::{DirEntry, LockKind, MemoryVfs, OpenMode, Vfs, VfsFile, VfsLock, VfsMap};

/// The calls that can be another's.
pub(crate) trait Layer: Send + Sync {
    fn open(&self, below: &MemoryVfs, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn VfsFile>> {
        below.open(path, mode)
    }

    fn lock(&self, below: &MemoryVfs, path: &Path, kind: LockKind) -> io::Result<Box<dyn VfsLock>> {
        below.lock(path, kind)
    }
}

/// The layer, over memory.
#[derive(Clone)]
pub(crate) struct Layered<L>(pub(crate) MemoryVfs, pub(crate) L);

impl<L> fmt::Debug for Layered<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Layered")
    }
}

impl<L: Layer> Vfs for Layered<L> {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn VfsFile>> {
        self.1.open(&self.0, path, mode)
    }
    fn list(&self, directory: &Path) -> io::Result<Vec<DirEntry>> {
        self.0.list(directory)
    }
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.0.create_dir(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.0.remove_file(path)
    }
    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.0.remove_dir(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.0.sync_dir(path)
    }
    fn lock(&self, path: &Path, kind: LockKind) -> io::Result<Box<dyn VfsLock>> {
        self.1.lock(&self.0, path, kind)
    }
}

/// Files without maps; each read says first how much it asks for.
#[derive(Clone)]
pub(crate) struct WatchedReads(pub(crate) Arc<dyn Fn(usize) + Send + Sync>);

struct WatchedFile(Arc<dyn VfsFile>, WatchedReads);

impl Layer for WatchedReads {
    fn open(&self, below: &MemoryVfs, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn VfsFile>> {
        Ok(Arc::new(WatchedFile(below.open(path, mode)?, self.clone())))
    }
}

impl fmt::Debug for WatchedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WatchedFile")
    }
}

impl VfsFile for WatchedFile {
    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        (self.1.0)(buffer.len());
        self.0.read_at(buffer, position)
    }
    fn write_at(&self, bytes: &[u8], position: u64) -> io::Result<usize> {
        self.0.write_at(bytes, position)
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.0.set_len(bytes)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
    fn sync_all(&self) -> io::Result<()> {
        self.0.sync_all()
    }
    fn allocate(&self, position: u64, bytes: u64) -> io::Result<()> {
        self.0.allocate(position, bytes)
    }
    fn map(&self, _bytes: u64) -> io::Result<Option<Box<dyn VfsMap>>> {
        Ok(None)
    }
    fn set_modified(&self, modified_ms: i64) -> io::Result<()> {
        self.0.set_modified(modified_ms)
    }
}
