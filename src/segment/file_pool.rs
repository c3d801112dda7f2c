//! Open files within a bound, so that thousands of partitions fit a descriptor limit of 1,024.
//!
//! A [`PooledFile`] is opened when it is used and may be closed again when others need the room. One with bytes that
//! were not synced is synced before it is closed: a descriptor opened later might never hear of a failed write-back.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, Weak};

use crate::error::copy_io_error;
use crate::io::{OpenMode, Vfs, VfsFile};
use crate::planted::{Bug, is};
use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Mutex, RwLock};

/// The open files of one store.
#[derive(Debug)]
pub(crate) struct FilePool {
    vfs: Arc<dyn Vfs>,
    open_files_max: usize,
    /// Files that were opened, in the order in which they are looked at for closing.
    queue: Mutex<Vec<Weak<PooledFile>>>,
    open: AtomicUsize,
}

/// A file that is open only while it is needed; see the module.
#[derive(Debug)]
pub(crate) struct PooledFile {
    me: Weak<PooledFile>,
    pool: Arc<FilePool>,
    path: PathBuf,
    /// Where the file is now, once another has its name.
    moved_to: OnceLock<PathBuf>,
    mode: OpenMode,
    handle: RwLock<Option<Arc<dyn VfsFile>>>,
    /// Set at each use, cleared when the pool passes by: a file is closed at the second visit without a use.
    used: AtomicBool,
    /// Writes that completed, and how many of them a successful sync covered.
    writes: AtomicU64,
    synced_writes: AtomicU64,
    /// The first sync that failed. No second sync of this file is tried: the kernel may say Ok after losing the data.
    failed: Mutex<Option<io::Error>>,
    has_failed: AtomicBool,
}

impl FilePool {
    pub(crate) fn new(vfs: Arc<dyn Vfs>, open_files_max: usize) -> Arc<Self> {
        let open_files_max = open_files_max.max(4);
        Arc::new(Self { vfs, open_files_max, queue: Mutex::new(Vec::new()), open: AtomicUsize::new(0) })
    }

    pub(crate) fn vfs(&self) -> &Arc<dyn Vfs> {
        &self.vfs
    }

    /// How many files are open now.
    pub(crate) fn open_files(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Whether one more file would close another.
    pub(crate) fn is_full(&self) -> bool {
        self.open.load(Ordering::Relaxed) >= self.open_files_max
    }

    /// Names a file; it is opened at its first use.
    pub(crate) fn file(self: &Arc<Self>, path: PathBuf, mode: OpenMode) -> Arc<PooledFile> {
        Arc::new_cyclic(|me| PooledFile {
            me: Weak::clone(me),
            pool: Arc::clone(self),
            path,
            moved_to: OnceLock::new(),
            mode,
            handle: RwLock::new(None),
            used: AtomicBool::new(false),
            writes: AtomicU64::new(0),
            synced_writes: AtomicU64::new(0),
            failed: Mutex::new(None),
            has_failed: AtomicBool::new(false),
        })
    }

    /// Closes files that were not used lately until there is room for one more.
    fn make_room(&self) {
        if self.open.load(Ordering::Relaxed) < self.open_files_max {
            return;
        }
        let mut queue = self.queue.lock();
        let visits = queue.len().saturating_mul(2);
        for _ in 0..visits {
            if self.open.load(Ordering::Relaxed) < self.open_files_max || queue.is_empty() {
                return;
            }
            let candidate = queue.remove(0);
            let Some(file) = candidate.upgrade() else { continue };
            if file.used.swap(false, Ordering::Relaxed) || !file.try_close() {
                queue.push(candidate);
            }
        }
    }
}

impl PooledFile {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the file another name, for whoever still reads it: the one it had is wanted for a new file. Once only.
    pub(crate) fn move_to(&self, path: PathBuf) -> io::Result<()> {
        // Held, so that nobody opens the old name in between and finds the new file there.
        let _handle = self.handle.write();
        self.pool.vfs.rename(&self.path, &path)?;
        self.moved_to.set(path).ok();
        Ok(())
    }

    /// The file has another name than its segment gives it. Said before the file is used.
    pub(crate) fn is_at(&self, path: PathBuf) {
        self.moved_to.set(path).ok();
    }

    /// Runs one call on the open file, opening it first if need be.
    #[inline]
    pub(crate) fn with<R>(&self, call: impl FnOnce(&dyn VfsFile) -> io::Result<R>) -> io::Result<R> {
        for _ in 0..3 {
            let handle = self.handle.read();
            if let Some(file) = handle.as_ref() {
                self.used.store(true, Ordering::Relaxed);
                return call(&**file);
            }
            drop(handle);
            // Used under the lock again, so that nobody closes it between this and the call.
            self.open()?;
        }
        call(&*self.open()?)
    }

    /// Like [`with`](Self::with), for a call that writes: the file then counts as not synced. After a sync that failed nothing
    /// is written any more. The partition's writer lock is held by whoever calls this.
    #[inline]
    pub(crate) fn write_with<R>(&self, call: impl FnOnce(&dyn VfsFile) -> R) -> io::Result<R> {
        if let Some(error) = self.failed_sync() {
            return Err(error);
        }
        self.with(|file| {
            // One thread at a time writes, so that a load and a store are enough. Counted before the write as well, so
            // that the file cannot be closed unsynced in between.
            let writes = self.writes.load(Ordering::Relaxed);
            self.writes.store(writes + 1, Ordering::Release);
            let outcome = call(file);
            self.writes.store(writes + 2, Ordering::Release);
            Ok(outcome)
        })
    }

    fn open(&self) -> io::Result<Arc<dyn VfsFile>> {
        // A file is created once; opening it again after it was closed must find it there.
        let mode = if self.mode == OpenMode::CreateNew { OpenMode::Write } else { self.mode };
        self.open_as(mode)
    }

    /// Creates the file now; it must not exist.
    pub(crate) fn create(&self) -> io::Result<()> {
        self.open_as(OpenMode::CreateNew).map(drop)
    }

    fn open_as(&self, mode: OpenMode) -> io::Result<Arc<dyn VfsFile>> {
        self.pool.make_room();
        let file = {
            let mut handle = self.handle.write();
            if let Some(file) = handle.as_ref() {
                return Ok(Arc::clone(file));
            }
            let file = self.pool.vfs.open(self.moved_to.get().unwrap_or(&self.path), mode)?;
            *handle = Some(Arc::clone(&file));
            file
        };
        self.used.store(true, Ordering::Relaxed);
        self.pool.open.fetch_add(1, Ordering::Relaxed);
        // After the handle's lock is free again: the pool takes the two the other way round.
        self.pool.queue.lock().push(Weak::clone(&self.me));
        Ok(file)
    }

    /// Whether there are writes that no sync covered.
    pub(crate) fn is_unsynced(&self) -> bool {
        self.writes.load(Ordering::Acquire) != self.synced_writes.load(Ordering::Acquire)
    }

    /// The sync that failed, also one that the pool asked for.
    #[inline]
    pub(crate) fn failed_sync(&self) -> Option<io::Error> {
        if !self.has_failed.load(Ordering::Acquire) {
            return None;
        }
        self.failed.lock().as_ref().map(copy_io_error)
    }

    /// Syncs the data. After one failure it fails for ever, without asking the disk again.
    pub(crate) fn sync_data(&self) -> io::Result<()> {
        if let Some(error) = self.failed_sync() {
            return Err(error);
        }
        let writes = self.writes.load(Ordering::Acquire);
        let synced = match self.with(|file| file.sync_data()) {
            Err(_) if is(Bug::SyncRetried) => self.with(|file| file.sync_data()),
            synced => synced,
        };
        match synced {
            Ok(()) => {
                self.synced_writes.fetch_max(writes, Ordering::AcqRel);
                Ok(())
            }
            Err(error) => {
                let copy = copy_io_error(&error);
                self.failed.lock().get_or_insert(error);
                self.has_failed.store(true, Ordering::Release);
                Err(copy)
            }
        }
    }

    /// Closes the file if nobody is using it; syncs it first if it has unsynced writes. False if it stays open.
    fn try_close(&self) -> bool {
        if self.is_unsynced() && self.sync_data().is_err() {
            return false;
        }
        let Some(mut handle) = self.handle.try_write() else { return false };
        if self.is_unsynced() {
            return false;
        }
        if handle.take().is_some() {
            self.pool.open.fetch_sub(1, Ordering::Relaxed);
        }
        true
    }
}

impl Drop for PooledFile {
    fn drop(&mut self) {
        if self.handle.write().take().is_some() {
            self.pool.open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::io::{Fault, FaultPlan, FaultVfs, OpKind, SyncFailure, errno};

    fn pool(open_files_max: usize) -> (FaultVfs, Arc<FilePool>) {
        let vfs = FaultVfs::new();
        (vfs.clone(), FilePool::new(Arc::new(vfs), open_files_max))
    }

    fn created(pool: &Arc<FilePool>, name: &str) -> Arc<PooledFile> {
        let file = pool.file(name.into(), OpenMode::CreateNew);
        file.create().unwrap();
        file
    }

    #[test]
    fn no_more_files_are_open_than_allowed() {
        let (vfs, pool) = pool(4);
        let files: Vec<_> = (0..20).map(|nth| created(&pool, &format!("/{nth}"))).collect();
        assert!(pool.open_files() <= 4, "{} are open", pool.open_files());
        for (nth, file) in files.iter().enumerate() {
            file.write_with(|file| file.write_at(&[nth as u8], 0)).unwrap().unwrap();
        }
        for (nth, file) in files.iter().enumerate() {
            let mut byte = [0];
            assert_eq!(file.with(|file| file.read_at(&mut byte, 0)).unwrap(), 1);
            assert_eq!(byte, [nth as u8], "it is opened again where it was closed");
        }
        assert!(pool.open_files() <= 4 && vfs.descriptors() <= 4);
        drop(files);
        assert_eq!((pool.open_files(), vfs.descriptors()), (0, 0));
    }

    /// A descriptor that is opened later may never hear of a write-back that failed.
    #[test]
    fn a_file_is_not_closed_before_it_is_synced() {
        let (vfs, pool) = pool(4);
        let first = created(&pool, "/first");
        first.write_with(|file| file.write_at(b"x", 0)).unwrap().unwrap();
        assert!(first.is_unsynced());
        vfs.sync_dir("/".as_ref()).unwrap();
        let others: Vec<_> = (0..8).map(|nth| created(&pool, &format!("/{nth}"))).collect();
        assert!(!first.is_unsynced());
        assert_eq!(vfs.durable_image().read("/first"), Some(b"x".to_vec()));
        drop(others);
    }

    #[test]
    fn a_failed_sync_is_never_tried_again() {
        let (vfs, pool) = pool(4);
        let file = created(&pool, "/f");
        file.write_with(|file| file.write_at(b"x", 0)).unwrap().unwrap();
        vfs.inject(FaultPlan::new(Fault::Sync(errno::EIO, SyncFailure::LostAtDrop)).on(OpKind::SyncData));
        for _ in 0..3 {
            assert_eq!(file.sync_data().unwrap_err().raw_os_error(), Some(errno::EIO));
        }
        assert_eq!(vfs.faults_hit(), 1, "the disk was asked once");
        assert!(file.is_unsynced());
    }

    #[test]
    fn what_was_written_after_a_sync_began_is_not_covered_by_it() {
        let (_, pool) = pool(4);
        let file = created(&pool, "/f");
        assert!(!file.is_unsynced(), "nothing was written yet");
        file.write_with(|file| file.write_at(b"x", 0)).unwrap().unwrap();
        file.sync_data().unwrap();
        assert!(!file.is_unsynced());
        file.write_with(|file| file.write_at(b"y", 1)).unwrap().unwrap();
        assert!(file.is_unsynced());
    }

    #[test]
    fn a_file_is_created_once() {
        let (_, pool) = pool(4);
        drop(created(&pool, "/f"));
        let again = pool.file("/f".into(), OpenMode::CreateNew);
        assert_eq!(again.create().unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert!(again.with(|file| file.len()).is_ok(), "to use it is no creation");
    }
}
