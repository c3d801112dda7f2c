//! What is to go wrong, and where: the faults of a [`FaultVfs`](super::FaultVfs), and the record of what each place saw.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// The error numbers that a disk gives, for [`Fault::Error`].
pub mod errno {
    #[cfg(doc)]
    use super::OpKind;

    macro_rules! numbers {
        ($($(#[$doc:meta])* $name:ident = $elsewhere:literal;)*) => {$(
            $(#[$doc])*
            #[cfg(unix)]
            pub const $name: i32 = nix::libc::$name;
            $(#[$doc])*
            #[cfg(not(unix))]
            pub const $name: i32 = $elsewhere;
        )*};
    }
    numbers! {
        /// The device failed.
        EIO = 5;
        /// The disk is full.
        ENOSPC = 28;
        /// The quota is used up.
        EDQUOT = 122;
        /// This process has no descriptor left.
        EMFILE = 24;
        /// The machine has no descriptor left.
        ENFILE = 23;
        /// No memory, or too many maps.
        ENOMEM = 12;
        /// Not allowed.
        EACCES = 13;
        /// The file system is mounted read-only.
        EROFS = 30;
        /// A signal came first; try again.
        EINTR = 4;
        /// Not now; try again. From [`OpKind::Lock`]: somebody else has it.
        EAGAIN = 11;
        /// There is no such call, as on a file system without locks.
        ENOSYS = 38;
    }
}

/// A call of the storage seam.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "each is the call of that name")]
pub enum OpKind {
    Open,
    Create,
    List,
    CreateDir,
    Rename,
    RemoveFile,
    RemoveDir,
    SyncDir,
    Lock,
    Read,
    Write,
    Len,
    SetLen,
    SyncData,
    SyncAll,
    Allocate,
    Map,
    Populate,
    MapTail,
    ReadTail,
    Window,
    WindowWrite,
    SetModified,
}

impl OpKind {
    /// Whether it changes what a crash can leave behind, and so counts as an operation.
    pub fn changes(self) -> bool {
        use OpKind::*;
        matches!(
            self,
            Create
                | CreateDir
                | Rename
                | RemoveFile
                | RemoveDir
                | SyncDir
                | Write
                | SetLen
                | SyncData
                | SyncAll
                | Allocate
                | Window
                | WindowWrite
        )
    }
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The call fails with this number ([`errno`]) and does nothing. A sync that fails so leaves everything to be synced.
    Error(i32),
    /// A read or write stops after so many bytes. A read gives at least one, as only the end of a file gives none. An
    /// allocation makes the file so much longer, and then finds the disk full.
    Short(usize),
    /// One bit of what is read or mapped is turned round, counted from its start and around its end; the file stays good.
    FlipBit(u64),
    /// A sync fails with this number, and the data is lost in one of the ways of real systems. On other calls it is
    /// [`Fault::Error`].
    Sync(i32, SyncFailure),
}

/// What a failed sync leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncFailure {
    /// The data stays readable, is taken for written, and is gone when the cache is
    /// ([`FaultVfs::drop_caches`](super::FaultVfs::drop_caches)). A second sync succeeds.
    LostAtDrop,
    /// The data is gone at once: the file reads as it is on the disk.
    Reverted,
    /// As `LostAtDrop`, and each handle that was open at the time gets the error once; a later one never hears of it.
    OpenHandles,
}

/// A fault and the calls that it waits for.
///
/// ```
/// use topiclog::io::{Fault, FaultPlan, OpKind, errno};
/// let third_write_of_an_index = FaultPlan::new(Fault::Error(errno::ENOSPC)).on(OpKind::Write).in_class("index").at_call(3);
/// # drop(third_write_of_an_index);
/// ```
#[derive(Clone, Debug)]
pub struct FaultPlan {
    fault: Fault,
    op: Option<OpKind>,
    class: Option<String>,
    call: u64,
    sticky: bool,
}

impl FaultPlan {
    /// At the next call, whatever it is, once.
    pub fn new(fault: Fault) -> Self {
        Self { fault, op: None, class: None, call: 1, sticky: false }
    }

    /// Counts only calls of this kind.
    #[must_use]
    pub fn on(mut self, op: OpKind) -> Self {
        self.op = Some(op);
        self
    }

    /// Counts only calls on files of this class ([`file_class`]).
    #[must_use]
    pub fn in_class(mut self, class: impl Into<String>) -> Self {
        self.class = Some(class.into());
        self
    }

    /// At the `call`-th of the counted calls from now on; the first is 1.
    #[must_use]
    pub fn at_call(mut self, call: u64) -> Self {
        self.call = call.max(1);
        self
    }

    /// At all counted calls after that as well.
    #[must_use]
    pub fn sticky(mut self) -> Self {
        self.sticky = true;
        self
    }
}

/// The class of a file, by which its calls are told apart: its extension; with a slot number, what stands before it; its
/// whole name if it has none. `topiclog.manifest.0` is a `manifest`, `00000000000000000000.log` a `log`. Calls on
/// directories are of the class `directory`.
pub fn file_class(path: &Path) -> String {
    let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    let (name, suffix) = match name.strip_suffix(".tmp") {
        Some(name) => (name, ".tmp"),
        None => (&*name, ""),
    };
    let is_number = |part: &&str| part.bytes().all(|byte| byte.is_ascii_digit());
    let class = name.rsplit('.').find(|part| !is_number(part)).unwrap_or(name);
    format!("{class}{suffix}")
}

/// What one place, a call on a class of files, has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SiteCount {
    /// How often it was called.
    pub calls: u64,
    /// How often it was given each error.
    pub errors: BTreeMap<i32, u64>,
    /// How often something went wrong without an error: a short or a flipped read, a short write.
    pub quiet_faults: u64,
}

/// Every place that was called: which call, on which class of files.
pub type Sites = BTreeMap<(OpKind, String), SiteCount>;

/// The plans that wait, and the places that were called.
#[derive(Debug, Default)]
pub(super) struct Faults {
    waiting: Vec<(FaultPlan, u64)>,
    sites: BTreeMap<(OpKind, Arc<str>), SiteCount>,
    pub(super) calls: u64,
    pub(super) hits: u64,
}

impl Faults {
    pub(super) fn add(&mut self, plan: FaultPlan) {
        self.waiting.push((plan, 0));
    }

    pub(super) fn clear(&mut self) {
        self.waiting.clear();
    }

    pub(super) fn sites(&self) -> Sites {
        self.sites.iter().map(|((op, class), count)| ((*op, class.to_string()), count.clone())).collect()
    }

    /// Counts a call. Fails if it is to fail; otherwise says what else goes wrong with it.
    pub(super) fn call(&mut self, op: OpKind, class: &Arc<str>) -> io::Result<Option<Fault>> {
        self.calls += 1;
        let mut fault = None;
        self.waiting.retain_mut(|(plan, seen)| {
            if plan.op.is_some_and(|wanted| wanted != op)
                || plan.class.as_ref().is_some_and(|wanted| **wanted != **class)
            {
                return true;
            }
            *seen += 1;
            if *seen < plan.call || fault.is_some() {
                return true;
            }
            fault = Some(plan.fault);
            plan.sticky
        });
        let site = self.sites.entry((op, Arc::clone(class))).or_default();
        site.calls += 1;
        self.hits += u64::from(fault.is_some());
        let is_sync = matches!(op, OpKind::SyncData | OpKind::SyncAll);
        match fault {
            Some(Fault::Sync(number, _)) if is_sync => *site.errors.entry(number).or_default() += 1,
            Some(Fault::Error(number) | Fault::Sync(number, _)) => {
                *site.errors.entry(number).or_default() += 1;
                return Err(io::Error::from_raw_os_error(number));
            }
            Some(Fault::Short(_) | Fault::FlipBit(_)) => site.quiet_faults += 1,
            None => {}
        }
        Ok(fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes() {
        for (name, class) in [
            ("/t-0/00000000000000000042.log", "log"),
            ("topiclog.manifest.1", "manifest"),
            ("topiclog.manifest.1.tmp", "manifest.tmp"),
            ("00000000000000000000.index.cleaned", "cleaned"),
            ("leader-epoch-checkpoint", "leader-epoch-checkpoint"),
            ("topiclog.lock", "lock"),
        ] {
            assert_eq!(file_class(Path::new(name)), class, "{name}");
        }
    }
}
