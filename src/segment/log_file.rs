//! The `.log` file of one segment: writes at a tracked position. How it is read is in [`log_reads`](super::log_reads).
//!
//! The file's length is never taken for the log's end: it may be preallocated, and a failed write may have left bytes.
//! The published position is where the last whole batch ends whose write completed; nobody reads beyond it, nobody
//! writes below it.
//!
//! There are two ways to write. A positional write gives its error to the append that caused it, and is the better one for
//! large batches. Small ones, where nobody waits for a sync, are copied into a window: a part of the space that was taken
//! ahead, mapped for writing. Nobody but this file knows which way was taken.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::file_pool::PooledFile;
use super::log_reads::Maps;
use crate::error::{Error, Result};
use crate::io::{VfsWindow, write_all_at};
use crate::planted::{Bug, is};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Mutex, OwnLines, RwLock};

/// How bytes are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub enum ReadPath {
    /// Through maps of published bytes, handed out without a copy. A page that cannot be read after it was checked
    /// kills the process with SIGBUS.
    #[default]
    Mapped,
    /// Each read copies and checks; a sector that cannot be read is an error.
    Positional,
}

/// Up to here a copy into a window costs less than a positional write, which has a call; beyond, the pages of the window do.
const WINDOW_WRITE_BYTES_MAX: usize = 64 << 10;
/// A window is no longer than this; the next one goes on where it ends.
const WINDOW_BYTES_MAX: u64 = 16 << 20;

/// The file of one segment's batches.
#[derive(Debug)]
pub(crate) struct LogFile {
    pub(super) file: Arc<PooledFile>,
    /// End of the last whole batch whose write completed. Only grows. Stored with `Release` after the write.
    published: OwnLines<AtomicU64>,
    written: OwnLines<Written>,
    /// Who appends does not look here.
    pub(super) maps: OwnLines<RwLock<Maps>>,
    pub(super) read_path: ReadPath,
    /// Set after a failed sync: mapped pages may no longer be what was written.
    pub(super) distrusts_maps: AtomicBool,
}

/// What each append changes, and no reader looks at.
#[derive(Debug)]
struct Written {
    /// The file has zeroed space up to here. Only the writer changes it.
    allocated_to: AtomicU64,
    /// Where small batches go. Only the writer asks for it; dropped before the file is cut.
    window: Mutex<Window>,
}

/// A part of a file that is mapped for writing.
#[derive(Debug)]
enum Window {
    /// None is open.
    Closed,
    /// It ends at this position.
    Open(Box<dyn VfsWindow>, u64),
    /// This file gets none.
    Never,
}

impl LogFile {
    pub(crate) fn new(file: Arc<PooledFile>, published: u64, read_path: ReadPath) -> Self {
        Self {
            file,
            published: OwnLines(AtomicU64::new(published)),
            written: OwnLines(Written {
                allocated_to: AtomicU64::new(0),
                // Who does not want signals for failed reads does not want them for failed writes.
                window: Mutex::new(if read_path == ReadPath::Mapped { Window::Closed } else { Window::Never }),
            }),
            maps: OwnLines::default(),
            read_path,
            distrusts_maps: AtomicBool::new(false),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.file.path()
    }

    pub(crate) fn file(&self) -> &Arc<PooledFile> {
        &self.file
    }

    #[inline]
    pub(crate) fn published(&self) -> u64 {
        self.published.load(Ordering::Acquire)
    }

    /// Writes whole batches behind the published position, without publishing them. On an error nothing of them counts;
    /// the second value says whether what was written in part was cut off again. Small ones may go through a window, if
    /// the caller wants that.
    #[inline]
    pub(crate) fn write(&self, bytes: &[u8], in_window: bool) -> std::result::Result<(), (io::Error, CutBack)> {
        let position = self.published.load(Ordering::Relaxed);
        if in_window && bytes.len() <= WINDOW_WRITE_BYTES_MAX && self.write_in_window(bytes, position) {
            return Ok(());
        }
        let written = self.file.write_with(|file| {
            write_all_at(file, bytes, position).map_err(|(done, error)| {
                // Even a failed write may have left bytes: the file is cut in any case, and with it what was taken ahead.
                self.close_window();
                let stays = is(Bug::FailedAppendStays);
                let cut = if stays || file.set_len(position).is_ok() { CutBack::Done } else { CutBack::Failed };
                if cut == CutBack::Done {
                    self.written.allocated_to.store(0, Ordering::Relaxed);
                }
                let cut = if done == 0 && cut == CutBack::Failed { CutBack::NothingWritten } else { cut };
                (error, cut)
            })
        });
        match written {
            Ok(outcome) => outcome,
            Err(error) => Err((error, CutBack::NothingWritten)),
        }
    }

    /// Writes through the window if there is or can be one. False if nothing was written.
    #[inline]
    fn write_in_window(&self, bytes: &[u8], position: u64) -> bool {
        let end = position + bytes.len() as u64;
        let allocated_to = self.written.allocated_to.load(Ordering::Relaxed);
        if end > allocated_to {
            return false;
        }
        let mut window = self.written.window.lock();
        // Through the file, so that it counts as not synced, and is open to hear of a write-back that fails.
        let written = self.file.write_with(|file| match &mut *window {
            Window::Open(open, to) if end <= *to => open.write(bytes, position).map(|()| true),
            Window::Never => Ok(false),
            _ => {
                let to = allocated_to.min(position + WINDOW_BYTES_MAX);
                *window = Window::Never;
                let Some(mut open) = file.window(position, to - position)? else { return Ok(false) };
                open.write(bytes, position)?;
                *window = Window::Open(open, to);
                Ok(true)
            }
        });
        match written {
            Ok(Ok(written)) => written,
            // The positional write that follows says what is wrong, if something is.
            Ok(Err(_)) | Err(_) => {
                *window = Window::Never;
                false
            }
        }
    }

    /// Zeroed space reaches up to here; 0 if none was taken.
    #[inline]
    pub(crate) fn allocated_to(&self) -> u64 {
        self.written.allocated_to.load(Ordering::Relaxed)
    }

    /// Takes zeroed space ahead of the log. It is a hint for speed: without space the append itself will say so.
    pub(crate) fn allocate(&self, to: u64) -> bool {
        let from = self.allocated_to().max(self.published());
        let taken = self.file.write_with(|file| {
            let taken = file.allocate(from, to - from);
            if taken.is_err() && file.len().is_ok_and(|length| length > from) {
                // A disk that fills up half way leaves the file longer; if it cannot be cut now, the next trim sees it.
                file.set_len(from).ok();
            }
            taken
        });
        let is_taken = matches!(taken, Ok(Ok(())));
        if is_taken {
            self.written.allocated_to.store(to, Ordering::Relaxed);
        }
        is_taken
    }

    /// Gives space behind the log back, whoever took it. Nobody reads beyond the published end, in maps that reach further either.
    pub(crate) fn trim(&self) -> Result<()> {
        self.close_window();
        let published = self.published();
        let length = self.file.with(|file| file.len()).map_err(|error| Error::io("measure", self.path(), error))?;
        if length > published {
            let cut = self.file.write_with(|file| file.set_len(published));
            cut.and_then(|cut| cut).map_err(|error| Error::io("cut", self.path(), error))?;
        }
        self.written.allocated_to.store(0, Ordering::Relaxed);
        Ok(())
    }

    fn close_window(&self) {
        let mut window = self.written.window.lock();
        if matches!(*window, Window::Open(..)) {
            *window = Window::Closed;
        }
    }

    /// Publishes what [`write`](Self::write) wrote.
    #[inline]
    pub(crate) fn publish(&self, bytes: u64) {
        // Only the writer changes it, so that a load and a store are enough.
        self.published.store(self.published.load(Ordering::Relaxed) + bytes, Ordering::Release);
    }
}

/// What became of the bytes of a failed write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CutBack {
    /// They were cut off: the append will never appear.
    Done,
    /// Nothing was written, so there was nothing to cut.
    NothingWritten,
    /// They may be in the file, and cutting them off failed as well.
    Failed,
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    use crate::io::{Fault, FaultPlan, FaultVfs, OpKind, OpenMode, Vfs as _, errno};
    use crate::segment::file_pool::FilePool;

    /// A log file with space taken ahead, on a simulated disk.
    pub(crate) fn log(read_path: ReadPath) -> (FaultVfs, LogFile) {
        let vfs = FaultVfs::new();
        let file = FilePool::new(Arc::new(vfs.clone()), 4).file("/1.log".into(), OpenMode::CreateNew);
        file.create().unwrap();
        vfs.sync_dir("/".as_ref()).unwrap();
        (vfs, LogFile::new(file, 0, read_path))
    }

    pub(crate) fn append(log: &LogFile, bytes: &[u8], in_window: bool) {
        log.write(bytes, in_window).unwrap();
        log.publish(bytes.len() as u64);
    }

    /// How many writes went which way: positional ones, and those into a window.
    fn ways(vfs: &FaultVfs) -> (u64, u64) {
        (calls(vfs, OpKind::Write), calls(vfs, OpKind::WindowWrite))
    }

    #[test]
    fn small_batches_go_through_a_window_into_space_that_was_taken() {
        let (vfs, log) = log(ReadPath::Mapped);
        append(&log, b"a", true);
        assert_eq!(ways(&vfs), (1, 0), "no space was taken");
        assert!(log.allocate(WINDOW_WRITE_BYTES_MAX as u64 * 2));
        append(&log, b"b", true);
        append(&log, b"c", false);
        append(&log, &[b'd'; WINDOW_WRITE_BYTES_MAX + 1], true);
        append(&log, b"e", true);
        assert_eq!(ways(&vfs), (3, 2));
        append(&log, &[b'f'; WINDOW_WRITE_BYTES_MAX], true);
        assert_eq!(ways(&vfs), (4, 2), "it would reach beyond the space");
        let bytes = log.chunk(0, log.published(), None).unwrap().bytes;
        let runs = [
            (b'a', 1),
            (b'b', 1),
            (b'c', 1),
            (b'd', WINDOW_WRITE_BYTES_MAX + 1),
            (b'e', 1),
            (b'f', WINDOW_WRITE_BYTES_MAX),
        ];
        let expected: Vec<u8> = runs.into_iter().flat_map(|(byte, count)| vec![byte; count]).collect();
        assert!(bytes[..] == expected, "what was written beside the window stays");
    }

    #[test]
    fn who_wants_errors_instead_of_signals_gets_no_window() {
        let (vfs, log) = log(ReadPath::Positional);
        assert!(log.allocate(3000));
        append(&log, b"a", true);
        assert_eq!(ways(&vfs), (1, 0));
    }

    pub(crate) fn calls(vfs: &FaultVfs, op: OpKind) -> u64 {
        vfs.sites_seen().iter().filter(|((seen, _), _)| *seen == op).map(|(_, site)| site.calls).sum()
    }

    /// A file that counts as synced may be closed, and would not hear of a write-back that fails.
    #[test]
    fn what_was_written_into_a_window_waits_for_a_sync_as_any_write() {
        let (vfs, log) = log(ReadPath::Mapped);
        assert!(log.allocate(3000));
        log.file().sync_data().unwrap();
        append(&log, b"abc", true);
        assert_eq!((ways(&vfs), log.file().is_unsynced()), ((0, 1), true));
        assert_ne!(vfs.durable_image().read("/1.log").unwrap()[..3], *b"abc");
        log.file().sync_data().unwrap();
        assert_eq!(vfs.durable_image().read("/1.log").unwrap()[..3], *b"abc");
        assert!(!log.file().is_unsynced());
    }

    #[test]
    fn a_window_that_fails_is_given_up_and_the_write_goes_the_other_way() {
        for op in [OpKind::Window, OpKind::WindowWrite] {
            let (vfs, log) = log(ReadPath::Mapped);
            assert!(log.allocate(3000));
            vfs.inject(FaultPlan::new(Fault::Error(errno::ENOMEM)).on(op));
            append(&log, b"abc", true);
            append(&log, b"def", true);
            assert_eq!(vfs.image().read("/1.log").unwrap()[..6], *b"abcdef", "{op:?}");
            assert_eq!((vfs.faults_hit(), ways(&vfs).0), (1, 2), "{op:?}");
        }
    }

    /// The simulated disk ends the test if a file is cut below a window that is still there.
    #[test]
    fn space_that_is_given_back_takes_its_window_along() {
        let (vfs, log) = log(ReadPath::Mapped);
        for round in 1..4 {
            assert!(log.allocate(3000 * round));
            append(&log, b"abc", true);
            log.trim().unwrap();
            assert_eq!(vfs.image().read("/1.log").unwrap().len() as u64, 3 * round);
            assert_eq!((log.allocated_to(), ways(&vfs)), (0, (0, round)));
        }
    }

    /// Otherwise the space would still be there at the close, and the file longer than its clean flag says.
    #[test]
    fn space_that_could_not_be_cut_off_after_a_failed_write_is_not_forgotten() {
        let (vfs, log) = log(ReadPath::Mapped);
        assert!(log.allocate(3000));
        vfs.inject(FaultPlan::new(Fault::Error(errno::EIO)).on(OpKind::Write));
        vfs.inject(FaultPlan::new(Fault::Error(errno::EIO)).on(OpKind::SetLen));
        assert!(matches!(log.write(b"abc", false), Err((_, CutBack::NothingWritten))));
        log.trim().unwrap();
        assert_eq!(vfs.image().read("/1.log").unwrap(), b"");
    }

    /// A store once refused to open because its closed log was longer than its manifest said.
    #[test]
    fn a_disk_that_fills_up_while_space_is_taken_leaves_no_longer_file() {
        for cut_fails in [false, true] {
            let (vfs, log) = log(ReadPath::Mapped);
            append(&log, b"abc", false);
            vfs.inject(FaultPlan::new(Fault::Short(1000)).on(OpKind::Allocate));
            if cut_fails {
                vfs.inject(FaultPlan::new(Fault::Error(errno::EIO)).on(OpKind::SetLen));
            }
            assert!(!log.allocate(3000));
            append(&log, b"def", true);
            assert_eq!(vfs.image().read("/1.log").unwrap().len(), if cut_fails { 1003 } else { 6 });
            log.trim().unwrap();
            assert_eq!(vfs.image().read("/1.log").unwrap(), b"abcdef");
        }
    }
}
