//! The simulated disk: [`FaultVfs`], which shows a program what a disk may do to it.
//!
//! Everything that is written can be read at once, as on a real machine; what was not synced may be gone after a crash.
//! [`FaultVfs::crash_states`] lists the disks that a power cut at this moment could leave: each is an [`Image`] on which a
//! new `FaultVfs` can be started. [`FaultVfs::inject`] makes single calls fail, [`FaultVfs::stop_after`] stops the machine
//! between two operations, [`FaultVfs::kill`] ends the process and keeps the machine.
//!
//! The rules are the strictest that POSIX allows: syncing a file does not make its name durable; syncing a directory makes
//! its own names durable and nothing else; a rename is atomic, but may not have happened; length and data of a file reach
//! the disk separately, and in any order.
//!
//! It knows files, names and bytes, not what they mean. Nothing in it is random but what a seed decides.
//!
//! ```
//! use std::path::Path;
//! use topiclog::io::{CrashProfile, FaultVfs, OpenMode, Vfs};
//!
//! let disk = FaultVfs::new();
//! let file = disk.open(Path::new("/f"), OpenMode::CreateNew)?;
//! file.write_at(b"hello", 0)?;
//! file.sync_data()?;
//! // The data is synced, the name of the file is not.
//! assert!(disk.crash_states(&CrashProfile::strict()).any(|state| state.image.read("/f").is_none()));
//! disk.sync_dir(Path::new("/"))?;
//! assert!(disk.crash_states(&CrashProfile::strict()).all(|state| state.image.read("/f").unwrap() == b"hello"));
//! # Ok::<(), std::io::Error>(())
//! ```

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::clock::Clock;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicUsize, Ordering};

mod crash;
mod image;
mod machine;
mod moment;
mod plan;
mod seam;

pub use crash::{CrashProfile, CrashRule, CrashState, CrashStates};
pub use image::Image;
pub use machine::Operation;
pub use plan::{Fault, FaultPlan, OpKind, SiteCount, Sites, SyncFailure, errno, file_class};

use machine::Machine;

/// A simulated machine with one disk. A clone is another handle of the same machine.
#[derive(Clone, Default)]
pub struct FaultVfs {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    machine: Mutex<Machine>,
    /// Descriptors in use.
    descriptors: AtomicUsize,
}

impl fmt::Debug for FaultVfs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultVfs").field("operations", &self.operations()).finish_non_exhaustive()
    }
}

impl FaultVfs {
    /// A machine with an empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// A machine that was started on this disk; all of it is durable.
    pub fn from_image(image: &Image) -> Self {
        let machine = Mutex::new(Machine::from_image(image));
        Self { shared: Arc::new(Shared { machine, descriptors: AtomicUsize::new(0) }) }
    }

    /// What programs see now, and so what is left if the process is killed and the machine is not.
    pub fn image(&self) -> Image {
        self.shared.machine.lock().visible_image()
    }

    /// What is certain to be on the disk.
    pub fn durable_image(&self) -> Image {
        crash::durable_image(&self.shared.machine.lock())
    }

    /// The disks that a power cut at this moment could leave, without repetition, the most ordinary first. They are made
    /// as they are asked for, from the state at the time of this call.
    pub fn crash_states(&self, profile: &CrashProfile) -> CrashStates {
        CrashStates::new(&self.shared.machine.lock(), profile)
    }

    /// How many operations were done: calls that change what a crash can leave.
    pub fn operations(&self) -> u64 {
        self.shared.machine.lock().operations.len() as u64
    }

    /// All operations that were done, in order.
    pub fn trace(&self) -> Vec<Operation> {
        self.shared.machine.lock().operations.clone()
    }

    /// A hash of all operations and the bytes they wrote: two runs that did the same have the same one.
    pub fn trace_hash(&self) -> u64 {
        self.shared.machine.lock().trace_hash
    }

    /// How many calls of any kind were made.
    pub fn calls(&self) -> u64 {
        self.shared.machine.lock().faults.calls
    }

    /// After `operations` operations from the start of the machine every call fails, as if it had lost its power there.
    /// Look at it with [`FaultVfs::crash_states`] or [`FaultVfs::image`].
    pub fn stop_after(&self, operations: u64) {
        self.shared.machine.lock().stop_after = Some(operations);
    }

    /// Whether [`FaultVfs::stop_after`] has come into force.
    pub fn has_stopped(&self) -> bool {
        self.shared.machine.lock().has_stopped()
    }

    /// Ends the process, as `kill -9` does, and keeps the machine: locks and maps are gone and every open file fails, but
    /// what was written stays visible, and what was not synced can still be lost.
    pub fn kill(&self) {
        let mut machine = self.shared.machine.lock();
        machine.process += 1;
        machine.locks.release_all();
        self.shared.descriptors.store(0, Ordering::SeqCst);
    }

    /// Empties the page cache: what a failed sync gave up ([`SyncFailure::LostAtDrop`]) is no longer seen.
    pub fn drop_caches(&self) {
        self.shared.machine.lock().drop_caches();
    }

    /// Makes everything durable that no failed sync gave up, as a machine does that is left alone for a while.
    pub fn sync_everything(&self) {
        self.shared.machine.lock().sync_everything();
    }

    /// Lets something go wrong. Plans wait side by side; of two for the same call, the first one given is met, and the
    /// other at its next call.
    pub fn inject(&self, plan: FaultPlan) {
        self.shared.machine.lock().faults.add(plan);
    }

    /// Forgets all plans that wait.
    pub fn clear_faults(&self) {
        self.shared.machine.lock().faults.clear();
    }

    /// How many calls met a plan.
    pub fn faults_hit(&self) -> u64 {
        self.shared.machine.lock().faults.hits
    }

    /// Every place that was called, and what it was given: the proof that a test reached what it meant to reach.
    pub fn sites_seen(&self) -> Sites {
        self.shared.machine.lock().faults.sites()
    }

    /// Limits the sum of all file lengths. A write over it is first short and then fails with
    /// [`ENOSPC`](errno::ENOSPC), as on a full disk.
    pub fn set_bytes_max(&self, bytes_max: Option<u64>) {
        self.shared.machine.lock().bytes_max = bytes_max;
    }

    /// Limits how many files, locks included, are open at once; one more fails with [`EMFILE`](errno::EMFILE).
    pub fn set_descriptors_max(&self, descriptors_max: Option<usize>) {
        self.shared.machine.lock().descriptors_max = descriptors_max;
    }

    /// How many files are open, locks included.
    pub fn descriptors(&self) -> usize {
        self.shared.descriptors.load(Ordering::SeqCst)
    }

    /// Whether files can be mapped (they can), and whether maps can be populated (they can).
    pub fn set_maps(&self, maps: bool, populate: bool) {
        let mut machine = self.shared.machine.lock();
        machine.without_maps = !maps;
        machine.without_populate = !populate;
    }

    /// Takes modification times from a clock. Without one they are the numbers of the operations.
    pub fn set_clock(&self, clock: Arc<dyn Clock>) {
        self.shared.machine.lock().clock = Some(clock);
    }

    /// Overwrites bytes of a file behind everybody's back, on the disk and in the cache: rot, or another program. Maps that
    /// live keep what they have.
    ///
    /// # Errors
    /// If there is no such file.
    pub fn patch(&self, path: impl AsRef<Path>, position: u64, bytes: &[u8]) -> std::io::Result<()> {
        let machine = self.shared.machine.lock();
        let file = machine.tree.file(path.as_ref())?;
        let mut state = file.state.lock();
        state.durable.write(bytes, position);
        state.visible.write(bytes, position);
        Ok(())
    }
}
