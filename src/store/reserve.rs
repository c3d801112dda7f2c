//! Room for deletes on a full disk: a file that is given up when a change that frees space finds none for itself.
//!
//! `topiclog.reserve` in the store's root is zeros and nothing else. A log start, a deletion or a retention step needs a
//! block or two for its manifest; when the disk has none, the file is cut to nothing and the change is tried again. Upkeep
//! takes the room back once there is some. It knows files; it does not know what is deleted.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::io::{OpenMode, Vfs, write_all_at};
use crate::sync::Mutex;

const NAME: &str = "topiclog.reserve";

/// See the module.
#[derive(Debug)]
pub(super) struct Reserve {
    vfs: Arc<dyn Vfs>,
    path: PathBuf,
    /// 0 keeps none.
    bytes: u64,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing was written since the open, and nothing was asked.
    Unknown,
    Held,
    GivenUp,
}

impl Reserve {
    pub(super) fn new(vfs: &Arc<dyn Vfs>, root: &Path, bytes: u64) -> Self {
        Self { vfs: Arc::clone(vfs), path: root.join(NAME), bytes, state: Mutex::new(State::Unknown) }
    }

    /// Before the first write: takes the room if it is not there yet.
    pub(super) fn take(&self) {
        let mut state = self.state.lock();
        if *state == State::Unknown && self.bytes > 0 {
            *state = self.fill();
        }
    }

    /// Takes room back that was given up, if the disk has it by now.
    pub(super) fn take_back(&self) {
        let mut state = self.state.lock();
        if *state == State::GivenUp {
            *state = self.fill();
        }
    }

    /// Gives the room up. False if there was none to give.
    pub(super) fn give_up(&self) -> bool {
        let mut state = self.state.lock();
        if *state != State::Held {
            return false;
        }
        *state = State::GivenUp;
        self.vfs.open(&self.path, OpenMode::Write).and_then(|file| file.set_len(0)).is_ok()
    }

    /// Not to have the room is no error: it is for the time when there is none.
    fn fill(&self) -> State {
        let filled = self.vfs.open(&self.path, OpenMode::Create).and_then(|file| {
            if file.len()? >= self.bytes {
                return Ok(());
            }
            file.set_len(0)?;
            file.allocate(0, self.bytes)?;
            // Where space cannot be taken, zeros take it.
            let zeros = vec![0; 64 << 10];
            while file.len()? < self.bytes {
                let at = file.len()?;
                let most = usize::try_from(self.bytes - at).unwrap_or(usize::MAX).min(zeros.len());
                write_all_at(&*file, &zeros[..most], at).map_err(|(_, error)| error)?;
            }
            Ok(())
        });
        if filled.is_ok() {
            return State::Held;
        }
        // Half of it would keep others from the last blocks and be of no use.
        if let Ok(file) = self.vfs.open(&self.path, OpenMode::Write) {
            file.set_len(0).ok();
        }
        State::GivenUp
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::io::{FaultVfs, MemoryVfs};

    fn check(reserve: &Reserve, vfs: &FaultVfs, expected: Option<usize>) {
        assert_eq!(vfs.image().read("/topiclog.reserve").map(|bytes| bytes.len()), expected, "{reserve:?}");
    }

    #[test]
    fn the_room_is_taken_given_up_and_taken_back() {
        let vfs = FaultVfs::new();
        let shared: Arc<dyn Vfs> = Arc::new(vfs.clone());
        let reserve = Reserve::new(&shared, Path::new("/"), 100_000);
        assert!(!reserve.give_up(), "nothing was taken");
        check(&reserve, &vfs, None);
        reserve.take();
        check(&reserve, &vfs, Some(100_000));
        assert!(reserve.give_up() && !reserve.give_up(), "once");
        check(&reserve, &vfs, Some(0));
        reserve.take();
        check(&reserve, &vfs, Some(0));
        vfs.set_bytes_max(Some(99_999));
        reserve.take_back();
        check(&reserve, &vfs, Some(0));
        assert!(!reserve.give_up());
        vfs.set_bytes_max(None);
        reserve.take_back();
        check(&reserve, &vfs, Some(100_000));
    }

    #[test]
    fn who_wants_none_gets_no_file() {
        let vfs = FaultVfs::new();
        let shared: Arc<dyn Vfs> = Arc::new(vfs.clone());
        let reserve = Reserve::new(&shared, Path::new("/"), 0);
        reserve.take();
        reserve.take_back();
        assert!(!reserve.give_up());
        check(&reserve, &vfs, None);
    }

    /// A back end whose `allocate` does nothing must hold as much.
    #[test]
    fn zeros_are_written_where_space_cannot_be_taken() {
        let vfs: Arc<dyn Vfs> = Arc::new(MemoryVfs::new());
        let reserve = Reserve::new(&vfs, Path::new("/"), 200_001);
        reserve.take();
        let file = vfs.open(Path::new("/topiclog.reserve"), OpenMode::Read).unwrap();
        assert_eq!(file.len().unwrap(), 200_001);
    }
}
