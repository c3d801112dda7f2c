//! The simulated disk as a [`Vfs`]: each call is counted, may fail, changes what is visible, and is put on the list of
//! what is not durable yet.

use std::fmt;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::{Arc, Weak};

use bytes::Bytes;

use super::machine::{Change, File, InodeState, Machine, Operation};
use super::plan::{Fault, OpKind, SyncFailure, errno, file_class};
use super::{FaultVfs, Shared};
use crate::clock::Timestamp;
use crate::io::content::{Content, Snapshot, mix};
use crate::io::tree::Entry;
use crate::io::{DirEntry, EntryKind, LockKind, OpenMode, Vfs, VfsFile, VfsLock, VfsMap, VfsTail, VfsWindow};
use crate::sync::MutexGuard;
use crate::sync::atomic::{AtomicU64, Ordering};

impl Machine {
    pub(super) fn has_stopped(&self) -> bool {
        self.stop_after.is_some_and(|stop_after| self.operations.len() as u64 >= stop_after)
    }

    /// Every call of the seam begins here. Fails if it is to fail, or says what else goes wrong with it.
    fn call(&mut self, op: OpKind, class: &Arc<str>) -> io::Result<Option<Fault>> {
        if self.has_stopped() {
            return Err(io::Error::other("the simulated machine has lost its power"));
        }
        self.faults.call(op, class)
    }

    /// Records that an operation was done.
    fn done(&mut self, op: OpKind, path: &Arc<str>, position: u64, bytes: &[u8]) {
        let data = u64::from(crc32fast::hash(bytes)) << 32 | u64::from(crc32fast::hash(path.as_bytes()));
        self.trace_hash = mix(self.trace_hash ^ mix(data ^ (op as u64) << 56 ^ mix(position)));
        self.operations.push(Operation { op, path: Arc::clone(path), position, bytes: bytes.len() as u64 });
    }

    fn check_descriptors(&self, used: usize) -> io::Result<()> {
        match self.descriptors_max {
            Some(max) if used >= max => Err(io::Error::from_raw_os_error(errno::EMFILE)),
            _ => Ok(()),
        }
    }

    /// How many more bytes the disk takes.
    fn room(&self) -> u64 {
        self.bytes_max.map_or(u64::MAX, |max| max.saturating_sub(self.bytes_used()))
    }

    pub(super) fn sync_everything(&mut self) {
        while let Some(pending) = self.pending.iter().find(|pending| !pending.limbo) {
            match pending.change.clone() {
                Change::Write { file, .. } | Change::Length { file, .. } => self.sync_file(&file),
                Change::Name { place, .. } => self.sync_directory(place.0),
                Change::Rename { source, target, .. } => {
                    self.sync_directory(target.0);
                    self.sync_directory(source.0);
                }
            }
        }
    }

    /// Finds the file, or makes it and says so.
    fn find_or_create(&mut self, path: &Path, name: &Arc<str>, mode: OpenMode) -> io::Result<File> {
        let exists = || ErrorKind::AlreadyExists.into();
        match self.tree.file(path) {
            Ok(_) if mode == OpenMode::CreateNew => Err(exists()),
            Err(error) if error.kind() == ErrorKind::IsADirectory && mode == OpenMode::CreateNew => Err(exists()),
            Err(error)
                if error.kind() == ErrorKind::NotFound && matches!(mode, OpenMode::CreateNew | OpenMode::Create) =>
            {
                let place = self.tree.place(path)?;
                let file = self.new_inode(Content::default(), self.now_ms());
                self.tree.add_file(&place, Arc::clone(&file));
                self.push(Change::Name { place, entry: Some(Entry::File(Arc::clone(&file))) });
                self.done(OpKind::Create, name, 0, &[]);
                Ok(file)
            }
            result => result,
        }
    }
}

impl FaultVfs {
    /// Begins a call on a directory or a name.
    fn enter(&self, op: OpKind, class: &str) -> io::Result<MutexGuard<'_, Machine>> {
        let mut machine = self.shared.machine.lock();
        machine.call(op, &class.into())?;
        Ok(machine)
    }
}

fn text(path: &Path) -> Arc<str> {
    path.to_string_lossy().into()
}

impl Vfs for FaultVfs {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn VfsFile>> {
        let (class, name) = (file_class(path), text(path));
        let op = match mode {
            OpenMode::Read | OpenMode::Write => OpKind::Open,
            OpenMode::CreateNew | OpenMode::Create => OpKind::Create,
        };
        let mut machine = self.enter(op, &class)?;
        machine.check_descriptors(self.descriptors())?;
        let file = machine.find_or_create(path, &name, mode)?;
        let process = machine.process;
        let seen_failures = AtomicU64::new(file.state.lock().failed_syncs.0);
        drop(machine);
        let descriptor = Descriptor::new(&self.shared, process);
        let writable = mode != OpenMode::Read;
        Ok(Arc::new(Handle { descriptor, file, name, class: class.into(), writable, seen_failures }))
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<DirEntry>> {
        let machine = self.enter(OpKind::List, "directory")?;
        machine.check_descriptors(self.descriptors())?;
        let names = machine.tree.names(machine.tree.directory(directory)?).ok_or(ErrorKind::NotFound)?;
        let entry = |(name, entry): (&String, &Entry<File>)| {
            let name = name.clone();
            match entry {
                Entry::File(file) => {
                    let state = file.state.lock();
                    let (bytes, modified_ms) = (state.visible.bytes(), state.modified_ms);
                    DirEntry { name, kind: EntryKind::File, bytes, modified_ms }
                }
                Entry::Directory(_) => DirEntry { name, kind: EntryKind::Directory, bytes: 0, modified_ms: 0 },
            }
        };
        Ok(names.iter().map(entry).collect())
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut machine = self.enter(OpKind::CreateDir, "directory")?;
        let (place, id) = machine.tree.create_directory(path)?;
        machine.durable.insert(id, Arc::default());
        machine.push(Change::Name { place, entry: Some(Entry::Directory(id)) });
        machine.done(OpKind::CreateDir, &text(path), 0, &[]);
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let is_directory = {
            let machine = self.shared.machine.lock();
            machine.tree.directory(from).is_ok()
        };
        let class = if is_directory { "directory".to_owned() } else { file_class(from) };
        let mut machine = self.enter(OpKind::Rename, &class)?;
        if let Some((source, target, entry)) = machine.tree.rename(from, to)? {
            machine.push(Change::Rename { source, target, entry, source_synced: false });
            machine.done(OpKind::Rename, &text(from), 0, text(to).as_bytes());
        }
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut machine = self.enter(OpKind::RemoveFile, &file_class(path))?;
        let (place, _) = machine.tree.remove_file(path)?;
        machine.push(Change::Name { place, entry: None });
        machine.done(OpKind::RemoveFile, &text(path), 0, &[]);
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let mut machine = self.enter(OpKind::RemoveDir, "directory")?;
        let place = machine.tree.remove_directory(path)?;
        machine.push(Change::Name { place, entry: None });
        machine.done(OpKind::RemoveDir, &text(path), 0, &[]);
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut machine = self.enter(OpKind::SyncDir, "directory")?;
        machine.check_descriptors(self.descriptors())?;
        let directory = machine.tree.directory(path)?;
        machine.sync_directory(directory);
        machine.done(OpKind::SyncDir, &text(path), 0, &[]);
        Ok(())
    }

    fn lock(&self, path: &Path, kind: LockKind) -> io::Result<Box<dyn VfsLock>> {
        let mut machine = self.enter(OpKind::Lock, &file_class(path))?;
        machine.check_descriptors(self.descriptors())?;
        let file = machine.find_or_create(path, &text(path), OpenMode::Create)?;
        let lock = machine.locks.lock(file.number, kind)?;
        let process = machine.process;
        drop(machine);
        Ok(Box::new(HeldLock { _lock: lock, _descriptor: Descriptor::new(&self.shared, process) }))
    }
}

/// One of the descriptors in use.
struct Descriptor {
    shared: Arc<Shared>,
    process: u64,
}

impl Descriptor {
    fn new(shared: &Arc<Shared>, process: u64) -> Self {
        shared.descriptors.fetch_add(1, Ordering::SeqCst);
        Self { shared: Arc::clone(shared), process }
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // Those of a killed process were all taken back then.
        if self.shared.machine.lock().process == self.process {
            self.shared.descriptors.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

struct HeldLock {
    _lock: Box<dyn VfsLock>,
    _descriptor: Descriptor,
}

impl VfsLock for HeldLock {}

impl fmt::Debug for HeldLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FaultLock")
    }
}

/// An open file.
struct Handle {
    descriptor: Descriptor,
    file: File,
    name: Arc<str>,
    class: Arc<str>,
    writable: bool,
    /// Of the syncs that failed for all handles, how many this one has heard of.
    seen_failures: AtomicU64,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultFile").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Handle {
    fn enter(&self, op: OpKind) -> io::Result<(MutexGuard<'_, Machine>, Option<Fault>)> {
        let mut machine = self.descriptor.shared.machine.lock();
        if machine.process != self.descriptor.process {
            return Err(io::Error::other("the process that had this file open was killed"));
        }
        let fault = machine.call(op, &self.class)?;
        Ok((machine, fault))
    }

    fn check_writable(&self) -> io::Result<()> {
        if self.writable { Ok(()) } else { Err(ErrorKind::PermissionDenied.into()) }
    }

    fn set_length(&self, op: OpKind, bytes: u64, only_longer: bool) -> io::Result<()> {
        let (mut machine, fault) = self.enter(op)?;
        self.check_writable()?;
        Content::check_end(0, bytes)?;
        let mut state = self.file.state.lock();
        let before = state.visible.bytes();
        if only_longer && bytes <= before {
            return Ok(());
        }
        let asked = bytes;
        let bytes = match fault {
            Some(Fault::Short(most)) if only_longer => bytes.min(before + most as u64),
            _ => bytes,
        };
        drop(state);
        if bytes > before && bytes - before > machine.room() {
            return Err(io::Error::from_raw_os_error(errno::ENOSPC));
        }
        state = self.file.state.lock();
        if state.mapped_bytes(machine.process) > bytes {
            drop(state);
            fail(machine, &self.name, format_args!("cut below the end of a live map, to {bytes} bytes"));
        }
        if bytes < before && reach(&mut state.windows, machine.process) > bytes {
            drop(state);
            fail(machine, &self.name, format_args!("cut below the end of a live window, to {bytes} bytes"));
        }
        state.visible.set_bytes(bytes);
        state.modified_ms = machine.now_ms();
        drop(state);
        machine.push(Change::Length { file: Arc::clone(&self.file), bytes });
        machine.done(op, &self.name, bytes, &[]);
        if bytes < asked { Err(io::Error::from_raw_os_error(errno::ENOSPC)) } else { Ok(()) }
    }

    fn sync(&self, op: OpKind) -> io::Result<()> {
        let (mut machine, fault) = self.enter(op)?;
        if let Some(Fault::Sync(number, failure)) = fault {
            match failure {
                SyncFailure::LostAtDrop => machine.give_up(&self.file),
                SyncFailure::Reverted => machine.revert(&self.file),
                SyncFailure::OpenHandles => {
                    machine.give_up(&self.file);
                    let mut state = self.file.state.lock();
                    state.failed_syncs = (state.failed_syncs.0 + 1, number);
                    self.seen_failures.store(state.failed_syncs.0, Ordering::SeqCst);
                }
            }
            return Err(io::Error::from_raw_os_error(number));
        }
        let (failures, number) = self.file.state.lock().failed_syncs;
        if self.seen_failures.swap(failures, Ordering::SeqCst) < failures {
            return Err(io::Error::from_raw_os_error(number));
        }
        machine.sync_file(&self.file);
        machine.done(op, &self.name, 0, &[]);
        Ok(())
    }
}

/// The test has failed: what a reader may hold a slice of was touched, or a real machine would have sent a signal.
fn fail(machine: MutexGuard<'_, Machine>, name: &str, what: fmt::Arguments<'_>) -> ! {
    // Not under the lock: what unwinds closes files, which takes it.
    drop(machine);
    panic!("{name} was {what}");
}

/// Changes what is in a file and puts it on the list. Returns how many bytes that were.
fn put(
    mut machine: MutexGuard<'_, Machine>,
    file: &File,
    name: &Arc<str>,
    op: OpKind,
    bytes: &[u8],
    position: u64,
) -> usize {
    let mut state = file.state.lock();
    let below = state.mapped_bytes(machine.process).saturating_sub(position).min(bytes.len() as u64);
    if below > 0 && state.visible.range(position, below) != bytes[..below as usize] {
        drop(state);
        let what = format_args!("changed below the end of a live map: {} bytes written at {position}", bytes.len());
        fail(machine, name, what);
    }
    state.visible.write(bytes, position);
    state.modified_ms = machine.now_ms();
    drop(state);
    machine.push(Change::Write { file: Arc::clone(file), position, bytes: bytes.into() });
    machine.done(op, name, position, bytes);
    bytes.len()
}

impl InodeState {
    /// How far the live maps of this process reach.
    fn mapped_bytes(&mut self, process: u64) -> u64 {
        reach(&mut self.maps, process)
    }
}

/// Forgets what is not alive, or of another process. How far the rest reaches.
fn reach(alive: &mut Vec<(Weak<()>, u64, u64)>, process: u64) -> u64 {
    alive.retain(|(alive, by, _)| *by == process && alive.strong_count() > 0);
    alive.iter().map(|(_, _, bytes)| *bytes).max().unwrap_or(0)
}

impl VfsFile for Handle {
    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        let (_machine, fault) = self.enter(OpKind::Read)?;
        let wanted = match fault {
            Some(Fault::Short(bytes)) => buffer.len().min(bytes.max(1)),
            _ => buffer.len(),
        };
        let read = self.file.state.lock().visible.read(&mut buffer[..wanted], position);
        if let Some(Fault::FlipBit(bit)) = fault {
            flip(&mut buffer[..read], bit);
        }
        Ok(read)
    }

    fn write_at(&self, bytes: &[u8], position: u64) -> io::Result<usize> {
        let (machine, fault) = self.enter(OpKind::Write)?;
        self.check_writable()?;
        let mut bytes = bytes;
        if let Some(Fault::Short(most)) = fault {
            bytes = &bytes[..most.min(bytes.len())];
        }
        let end = Content::check_end(position, bytes.len() as u64)?;
        if bytes.is_empty() {
            return Ok(0);
        }
        let before = self.file.state.lock().visible.bytes();
        if end > before && machine.bytes_max.is_some() {
            let fits = before.saturating_add(machine.room()).saturating_sub(position);
            if fits == 0 {
                return Err(io::Error::from_raw_os_error(errno::ENOSPC));
            }
            bytes = &bytes[..bytes.len().min(usize::try_from(fits).unwrap_or(usize::MAX))];
        }
        Ok(put(machine, &self.file, &self.name, OpKind::Write, bytes, position))
    }

    fn len(&self) -> io::Result<u64> {
        let (_machine, _) = self.enter(OpKind::Len)?;
        Ok(self.file.state.lock().visible.bytes())
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.set_length(OpKind::SetLen, bytes, false)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync(OpKind::SyncData)
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync(OpKind::SyncAll)
    }

    fn allocate(&self, position: u64, bytes: u64) -> io::Result<()> {
        let end = Content::check_end(position, bytes)?;
        self.set_length(OpKind::Allocate, if bytes == 0 { 0 } else { end }, true)
    }

    fn map(&self, bytes: u64) -> io::Result<Option<Box<dyn VfsMap>>> {
        let (machine, fault) = self.enter(OpKind::Map)?;
        if machine.without_maps {
            return Ok(None);
        }
        let mut state = self.file.state.lock();
        if bytes > state.visible.bytes() {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let mut snapshot = state.visible.snapshot(bytes);
        if let Some(Fault::FlipBit(bit)) = fault {
            let mut copy = snapshot.as_ref().to_vec();
            flip(&mut copy, bit);
            snapshot = Snapshot::Copied(copy);
        }
        let alive = Arc::new(());
        if bytes > 0 {
            state.mapped_bytes(machine.process);
            state.maps.push((Arc::downgrade(&alive), machine.process, bytes));
        }
        Ok(Some(Box::new(Map {
            bytes: Bytes::from_owner(Mapped { snapshot, _alive: alive }),
            shared: Arc::downgrade(&self.descriptor.shared),
            class: Arc::clone(&self.class),
        })))
    }

    fn map_tail(&self, position: u64, bytes: u64) -> io::Result<Option<Box<dyn VfsTail>>> {
        let (machine, _) = self.enter(OpKind::MapTail)?;
        let end = Content::check_end(position, bytes)?;
        if bytes == 0 {
            return Err(ErrorKind::InvalidInput.into());
        }
        if machine.without_maps {
            return Ok(None);
        }
        Ok(Some(Box::new(Tail {
            shared: Arc::downgrade(&self.descriptor.shared),
            process: self.descriptor.process,
            file: Arc::clone(&self.file),
            class: Arc::clone(&self.class),
            start: position,
            end,
        })))
    }

    fn window(&self, position: u64, bytes: u64) -> io::Result<Option<Box<dyn VfsWindow>>> {
        let (machine, _) = self.enter(OpKind::Window)?;
        self.check_writable()?;
        if bytes == 0 {
            return Err(ErrorKind::InvalidInput.into());
        }
        let end = Content::check_end(position, bytes)?;
        let mut state = self.file.state.lock();
        if end > state.visible.bytes() {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        if machine.without_maps {
            return Ok(None);
        }
        let alive = Arc::new(());
        reach(&mut state.windows, machine.process);
        state.windows.push((Arc::downgrade(&alive), machine.process, end));
        drop(state);
        let mut window = Window {
            _alive: alive,
            shared: Arc::clone(&self.descriptor.shared),
            process: self.descriptor.process,
            file: Arc::clone(&self.file),
            name: Arc::clone(&self.name),
            class: Arc::clone(&self.class),
            start: position,
            ready_to: position,
            end,
        };
        window.make_ready(machine, OpKind::Window, position + 1);
        Ok(Some(Box::new(window)))
    }

    fn set_modified(&self, modified_ms: Timestamp) -> io::Result<()> {
        let (_machine, _) = self.enter(OpKind::SetModified)?;
        self.file.state.lock().modified_ms = modified_ms;
        Ok(())
    }
}

/// A part of a file that is mapped for writing. Needs no descriptor, as a map needs none.
struct Window {
    _alive: Arc<()>,
    shared: Arc<Shared>,
    process: u64,
    file: File,
    name: Arc<str>,
    class: Arc<str>,
    start: u64,
    /// Below this position nothing is filled with zeros any more.
    ready_to: u64,
    end: u64,
}

/// How much of a window is made ready at once; see [`VfsFile::window`]. Far less than a real one makes ready, so that short
/// scripts write past it.
const READY_BYTES: u64 = 256;

impl fmt::Debug for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultWindow").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Window {
    /// Fills with zeros what is not ready yet, up to the end of the piece that `to` lies in: an operation of its own, which a
    /// crash may keep without what is written next.
    fn make_ready(&mut self, machine: MutexGuard<'_, Machine>, op: OpKind, to: u64) {
        let to = to.next_multiple_of(READY_BYTES).min(self.end);
        let zeros = vec![0; (to - self.ready_to) as usize];
        put(machine, &self.file, &self.name, op, &zeros, self.ready_to);
        self.ready_to = to;
    }
}

impl VfsWindow for Window {
    fn write(&mut self, bytes: &[u8], position: u64) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let mut machine = shared.machine.lock();
        if machine.process != self.process {
            return Err(io::Error::other("the process that had this window was killed"));
        }
        // A write that is to be short is whole here: only making the pages ready can fail.
        machine.call(OpKind::WindowWrite, &self.class)?;
        let end = Content::check_end(position, bytes.len() as u64)?;
        if position < self.start || end > self.end {
            return Err(ErrorKind::InvalidInput.into());
        }
        if end > self.ready_to {
            // What lies before this write may have been written positionally since.
            self.ready_to = self.ready_to.max(position);
            self.make_ready(machine, OpKind::WindowWrite, end);
            machine = shared.machine.lock();
            if machine.has_stopped() || machine.process != self.process {
                return Err(io::Error::other("the simulated machine has lost its power, or the process was killed"));
            }
        }
        put(machine, &self.file, &self.name, OpKind::WindowWrite, bytes, position);
        Ok(())
    }
}

/// A part of a file that is mapped for reading while it grows. What is handed out is a copy that the file has to match as long as
/// it lives.
struct Tail {
    /// A map does not keep the machine.
    shared: Weak<Shared>,
    process: u64,
    file: File,
    class: Arc<str>,
    start: u64,
    end: u64,
}

impl fmt::Debug for Tail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultTail").field("start", &self.start).finish_non_exhaustive()
    }
}

impl VfsTail for Tail {
    fn bytes(&self, position: u64, end: u64) -> io::Result<Bytes> {
        let gone = || io::Error::other("the process that had this mapping was killed");
        let shared = self.shared.upgrade().ok_or_else(gone)?;
        let mut machine = shared.machine.lock();
        if machine.process != self.process {
            return Err(gone());
        }
        let fault = machine.call(OpKind::ReadTail, &self.class)?;
        let mut state = self.file.state.lock();
        if position < self.start || end < position || end > self.end || end > state.visible.bytes() {
            return Err(ErrorKind::InvalidInput.into());
        }
        let mut copy = state.visible.range(position, end - position);
        if let Some(Fault::FlipBit(bit)) = fault {
            flip(&mut copy, bit);
        }
        let alive = Arc::new(());
        if end > position {
            state.mapped_bytes(machine.process);
            state.maps.push((Arc::downgrade(&alive), machine.process, end));
        }
        drop(state);
        drop(machine);
        Ok(Bytes::from_owner(Mapped { snapshot: Snapshot::Copied(copy), _alive: alive }))
    }
}

fn flip(bytes: &mut [u8], bit: u64) {
    let bits = bytes.len() as u64 * 8;
    if let Some(bit) = bit.checked_rem(bits)
        && let Some(byte) = bytes.get_mut((bit / 8) as usize)
    {
        *byte ^= 1 << (bit % 8);
    }
}

/// What keeps a map alive: as long as it is there, the file must not change below its end.
struct Mapped {
    snapshot: Snapshot,
    _alive: Arc<()>,
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        self.snapshot.as_ref()
    }
}

struct Map {
    bytes: Bytes,
    /// A map does not keep the machine.
    shared: Weak<Shared>,
    class: Arc<str>,
}

impl fmt::Debug for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultMap").field("bytes", &self.bytes.len()).finish_non_exhaustive()
    }
}

impl VfsMap for Map {
    fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    fn populate(&self, position: u64, bytes: u64) -> io::Result<bool> {
        if position.checked_add(bytes).is_none_or(|end| end > self.bytes.len() as u64) {
            return Err(ErrorKind::InvalidInput.into());
        }
        let Some(shared) = self.shared.upgrade() else { return Ok(true) };
        let mut machine = shared.machine.lock();
        machine.call(OpKind::Populate, &self.class)?;
        Ok(!machine.without_populate)
    }
}
