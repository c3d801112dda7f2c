//! A file system that does some calls in its own way, and has the others done by one below it.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use topiclog::io::{DirEntry, LockKind, MemoryVfs, OpenMode, Vfs, VfsFile, VfsLock};

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
