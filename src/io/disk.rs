//! The real disk: [`DiskVfs`] over `std::fs`, the only module of the crate that touches it.
//!
//! It opens regular files only, never through a link, makes files 0600 and directories 0700, and never waits for a lock.
//! It knows nothing of what is in the files.
#![expect(clippy::disallowed_methods, reason = "this is the back end that the rule sends everybody to")]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::map::map_file;
use super::{DirEntry, EntryKind, LockKind, OpenMode, Vfs, VfsFile, VfsLock, VfsMap};
#[cfg(target_os = "linux")]
use super::{VfsTail, VfsWindow};
use crate::clock::Timestamp;

/// The file system of the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct DiskVfs;

impl DiskVfs {
    /// The file system of the operating system; paths are taken as they are.
    pub fn new() -> Self {
        Self
    }
}

impl Vfs for DiskVfs {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn VfsFile>> {
        Ok(Arc::new(DiskFile { file: Arc::new(open_regular(path, mode)?) }))
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<DirEntry>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            // Does not follow a link. A file that was removed since the directory was read is simply not there.
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let kind = match metadata.file_type() {
                kind if kind.is_file() => EntryKind::File,
                kind if kind.is_dir() => EntryKind::Directory,
                _ => EntryKind::Other,
            };
            entries.push(DirEntry {
                name: entry.file_name().to_string_lossy().into_owned(),
                kind,
                bytes: if kind == EntryKind::File { metadata.len() } else { 0 },
                modified_ms: metadata.modified().map_or(0, to_ms),
            });
        }
        Ok(entries)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        #[cfg_attr(not(unix), expect(unused_mut, reason = "only the mode changes it"))]
        let mut builder = fs::DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }

    #[cfg(unix)]
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let directory = OpenOptions::new().read(true).custom_flags(nix::fcntl::OFlag::O_DIRECTORY.bits()).open(path)?;
        directory.sync_all()
    }

    /// Directories cannot be synced here; the file system's journal is what there is.
    #[cfg(not(unix))]
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        fs::metadata(path).map(drop)
    }

    fn lock(&self, path: &Path, kind: LockKind) -> io::Result<Box<dyn VfsLock>> {
        // Somebody may delete or replace the lock file between our open and our lock; then we would hold a lock on a file
        // that nobody else looks at. A few tries settle an innocent race, more than that is no accident.
        for _ in 0..8 {
            let file = open_regular(path, OpenMode::Create)?;
            let lock = lock_file(file, kind)?;
            if lock.is_still_at(path)? {
                return Ok(Box::new(lock));
            }
        }
        Err(io::Error::other("the lock file is replaced again and again while it is being locked"))
    }
}

/// Opens without following a link and without waiting for the other end of a pipe, then refuses all but regular files.
fn open_regular(path: &Path, mode: OpenMode) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    match mode {
        OpenMode::Read => {}
        OpenMode::Write => _ = options.write(true),
        OpenMode::CreateNew => _ = options.write(true).create_new(true),
        OpenMode::Create => _ = options.write(true).create(true).truncate(false),
    }
    #[cfg(unix)]
    {
        use nix::fcntl::OFlag;
        use std::os::unix::fs::OpenOptionsExt as _;
        // `O_CLOEXEC` is std's own default; it is named because a lock must not leak into a child that is executed.
        options.mode(0o600).custom_flags((OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).bits());
    }
    let file = options.open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))
    }
}

/// Whether space that was taken ahead is there when it is written. Where every write goes to a new place (btrfs, zfs), where
/// a copy of the file may share its blocks (xfs), or over a network, it may not be, and a write through a map would end in a
/// signal.
#[cfg(target_os = "linux")]
fn keeps_what_it_allocated(file: &File) -> bool {
    use nix::sys::statfs::{EXT4_SUPER_MAGIC, TMPFS_MAGIC, fstatfs};
    let kind = fstatfs(file).map(|status| status.filesystem_type());
    matches!(kind, Ok(EXT4_SUPER_MAGIC | TMPFS_MAGIC))
}

fn to_ms(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Timestamp::try_from(after.as_millis()).unwrap_or(Timestamp::MAX),
        Err(before) => Timestamp::try_from(before.duration().as_millis()).map_or(Timestamp::MIN, |ms| -ms),
    }
}

fn from_ms(ms: Timestamp) -> Option<SystemTime> {
    let distance = Duration::from_millis(ms.unsigned_abs());
    if ms < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) }
}

/// An open file. Positional calls only, so that any number of threads can share it.
#[derive(Debug)]
struct DiskFile {
    /// Shared with nobody but windows, which do not keep it open.
    file: Arc<File>,
}

impl VfsFile for DiskFile {
    #[cfg(unix)]
    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(&*self.file, buffer, position)
    }

    #[cfg(windows)]
    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        std::os::windows::fs::FileExt::seek_read(&*self.file, buffer, position)
    }

    #[cfg(unix)]
    fn write_at(&self, bytes: &[u8], position: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::write_at(&*self.file, bytes, position)
    }

    #[cfg(windows)]
    fn write_at(&self, bytes: &[u8], position: u64) -> io::Result<usize> {
        std::os::windows::fs::FileExt::seek_write(&*self.file, bytes, position)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    /// What Linux does first when it is told that a range is not needed: it starts to write what is dirty in it. Pages that
    /// are being written stay in the cache.
    #[cfg(target_os = "linux")]
    fn begin_sync(&self, position: u64, bytes: u64) {
        use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
        // A length of 0 would mean all up to the end of the file.
        if let (Ok(position), Ok(bytes @ 1..)) = (i64::try_from(position), i64::try_from(bytes)) {
            _ = posix_fadvise(&self.file, position, bytes, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        }
    }

    #[cfg(target_os = "linux")]
    fn allocate(&self, position: u64, bytes: u64) -> io::Result<()> {
        use nix::errno::Errno;
        use nix::fcntl::{FallocateFlags, fallocate};
        if bytes == 0 {
            return Ok(());
        }
        let too_big = |_| io::Error::from_raw_os_error(nix::libc::EFBIG);
        let position = i64::try_from(position).map_err(too_big)?;
        let bytes = i64::try_from(bytes).map_err(too_big)?;
        loop {
            match fallocate(&self.file, FallocateFlags::empty(), position, bytes) {
                Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn allocate(&self, _position: u64, _bytes: u64) -> io::Result<()> {
        Ok(())
    }

    fn map(&self, bytes: u64) -> io::Result<Option<Box<dyn VfsMap>>> {
        Ok(Some(Box::new(map_file(&self.file, bytes)?)))
    }

    #[cfg(target_os = "linux")]
    fn map_tail(&self, position: u64, bytes: u64) -> io::Result<Option<Box<dyn VfsTail>>> {
        let tail = super::map::map_tail(&self.file, position, bytes)?;
        Ok(tail.map(|tail| Box::new(tail) as Box<dyn VfsTail>))
    }

    #[cfg(target_os = "linux")]
    fn window(&self, position: u64, bytes: u64) -> io::Result<Option<Box<dyn VfsWindow>>> {
        if !keeps_what_it_allocated(&self.file) {
            return Ok(None);
        }
        let window = super::map::map_window(&self.file, position, bytes)?;
        Ok(window.map(|window| Box::new(window) as Box<dyn VfsWindow>))
    }

    fn set_modified(&self, modified_ms: Timestamp) -> io::Result<()> {
        let time = from_ms(modified_ms).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        self.file.set_modified(time)
    }
}

/// A held lock; the operating system lets go of it when the file is closed.
#[derive(Debug)]
struct DiskLock {
    file: File,
    /// Set for an exclusive lock: what to take out of the table of this process again.
    #[cfg(unix)]
    registered: Option<process_table::Key>,
}

impl VfsLock for DiskLock {}

impl DiskLock {
    /// Whether the path still leads to the file that is locked.
    #[cfg(unix)]
    fn is_still_at(&self, path: &Path) -> io::Result<bool> {
        match fs::symlink_metadata(path) {
            Ok(there) => Ok(process_table::key(&there) == process_table::key(&self.file.metadata()?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// An open file cannot be replaced here.
    #[cfg(not(unix))]
    fn is_still_at(&self, _path: &Path) -> io::Result<bool> {
        self.file.metadata().map(|_| true)
    }
}

#[cfg(unix)]
impl Drop for DiskLock {
    fn drop(&mut self) {
        if let Some(key) = self.registered {
            process_table::remove(key);
        }
    }
}

fn lock_file(file: File, kind: LockKind) -> io::Result<DiskLock> {
    #[cfg(unix)]
    let registered = if kind == LockKind::Exclusive { Some(process_table::add(&file.metadata()?)?) } else { None };
    // Made before the lock is tried, so that a refusal takes the entry out of the table again.
    let lock = DiskLock {
        file,
        #[cfg(unix)]
        registered,
    };
    match kind {
        LockKind::Exclusive => lock.file.try_lock().map_err(lock_error)?,
        LockKind::Shared => lock.file.try_lock_shared().map_err(lock_error)?,
        LockKind::Broker => lock_as_broker(&lock.file)?,
    }
    Ok(lock)
}

fn lock_error(error: fs::TryLockError) -> io::Error {
    match error {
        fs::TryLockError::WouldBlock => io::ErrorKind::WouldBlock.into(),
        fs::TryLockError::Error(error) => without_locks(error),
    }
}

/// File systems say in several ways that they have no locks.
fn without_locks(error: io::Error) -> io::Error {
    #[cfg(unix)]
    {
        use nix::libc::{EINVAL, ENOLCK, ENOSYS, EOPNOTSUPP};
        if matches!(error.raw_os_error(), Some(ENOLCK | ENOSYS | EOPNOTSUPP | EINVAL)) {
            return io::Error::new(io::ErrorKind::Unsupported, error);
        }
    }
    error
}

#[cfg(target_os = "linux")]
fn lock_as_broker(file: &File) -> io::Result<()> {
    use nix::errno::Errno;
    use nix::fcntl::{FcntlArg, fcntl};
    use nix::libc;
    let whole_file = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    match fcntl(file, FcntlArg::F_OFD_SETLK(&whole_file)) {
        Ok(_) => Ok(()),
        Err(Errno::EAGAIN | Errno::EACCES) => Err(io::ErrorKind::WouldBlock.into()),
        Err(errno) => Err(without_locks(errno.into())),
    }
}

/// There is no such lock here; the exclusive one keeps two stores of this crate apart.
#[cfg(not(target_os = "linux"))]
fn lock_as_broker(_file: &File) -> io::Result<()> {
    Ok(())
}

/// Which lock files this process holds exclusively. Some network file systems carry `flock` out as a lock of the whole
/// process, which does not keep two stores of one process apart.
#[cfg(unix)]
mod process_table {
    use std::collections::BTreeSet;
    use std::fs::Metadata;
    use std::io;
    use std::os::unix::fs::MetadataExt as _;
    use std::sync::OnceLock;

    use crate::sync::ProcessMutex;

    /// Device and inode.
    pub(super) type Key = (u64, u64);

    fn table() -> &'static ProcessMutex<BTreeSet<Key>> {
        static TABLE: OnceLock<ProcessMutex<BTreeSet<Key>>> = OnceLock::new();
        TABLE.get_or_init(ProcessMutex::default)
    }

    pub(super) fn key(metadata: &Metadata) -> Key {
        (metadata.dev(), metadata.ino())
    }

    pub(super) fn add(metadata: &Metadata) -> io::Result<Key> {
        let key = key(metadata);
        if table().lock().insert(key) { Ok(key) } else { Err(io::ErrorKind::WouldBlock.into()) }
    }

    pub(super) fn remove(key: Key) {
        table().lock().remove(&key);
    }
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn only_regular_files_are_opened() {
        let root = tempfile::tempdir().unwrap();
        let (fifo, link, target) = (root.path().join("fifo"), root.path().join("link"), root.path().join("target"));
        make_fifo(&fifo);
        fs::write(&target, "x").unwrap();
        symlink(&target, &link).unwrap();
        for mode in [OpenMode::Read, OpenMode::Write, OpenMode::CreateNew, OpenMode::Create] {
            assert!(DiskVfs.open(&fifo, mode).is_err(), "{mode:?}");
            assert!(DiskVfs.open(&link, mode).is_err(), "{mode:?}");
            assert!(DiskVfs.open(root.path(), mode).is_err(), "{mode:?}");
        }
        let kinds = DiskVfs.list(root.path()).unwrap();
        let kind_of = |name: &str| kinds.iter().find(|entry| entry.name == name).unwrap().kind;
        assert_eq!(kind_of("fifo"), EntryKind::Other);
        assert_eq!(kind_of("link"), EntryKind::Other);
        assert_eq!(kind_of("target"), EntryKind::File);
    }

    #[test]
    fn files_and_directories_are_private() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("d");
        DiskVfs.create_dir(&directory).unwrap();
        DiskVfs.open(&directory.join("f"), OpenMode::CreateNew).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o077;
        assert_eq!((mode(&directory), mode(&directory.join("f"))), (0, 0));
    }

    #[test]
    fn flock_alone_refuses_a_second_open_file_of_this_process() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("lock");
        let first = open_regular(&path, OpenMode::Create).unwrap();
        first.try_lock().unwrap();
        let second = open_regular(&path, OpenMode::Create).unwrap();
        assert!(matches!(second.try_lock(), Err(fs::TryLockError::WouldBlock)));
        // The refusal leaves nothing behind in the table.
        assert_eq!(DiskVfs.lock(&path, LockKind::Exclusive).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop((first, second));
        DiskVfs.lock(&path, LockKind::Exclusive).unwrap();
    }

    #[test]
    fn a_replaced_lock_file_is_noticed() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("lock");
        let file = open_regular(&path, OpenMode::Create).unwrap();
        let lock = lock_file(file, LockKind::Exclusive).unwrap();
        assert!(lock.is_still_at(&path).unwrap());
        fs::remove_file(&path).unwrap();
        assert!(!lock.is_still_at(&path).unwrap());
        fs::write(&path, "").unwrap();
        assert!(!lock.is_still_at(&path).unwrap());
    }

    #[test]
    fn times_before_1970_survive() {
        for ms in [0, 1, -1, 1_700_000_000_123, -1_500] {
            assert_eq!(to_ms(from_ms(ms).unwrap()), ms);
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn allocated_space_is_real() {
        use std::os::unix::fs::MetadataExt as _;
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("f");
        let file = DiskVfs.open(&path, OpenMode::CreateNew).unwrap();
        file.allocate(0, 1 << 20).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        // A file system without preallocation leaves the file as it is.
        assert!(metadata.len() == 0 || metadata.blocks() * 512 >= 1 << 20);
    }

    /// By the tool, because the call would need another feature of a dependency.
    fn make_fifo(path: &Path) {
        assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
    }
}
