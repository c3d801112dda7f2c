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
    /// Upkeep has asked in vain so often, and passes so many steps before it asks again.
    GivenUp {
        tries: u32,
        pass: u32,
    },
}

const GIVEN_UP: State = State::GivenUp { tries: 0, pass: 0 };
/// Upkeep asks a full disk at the latest after so many steps again.
const PASS_MAX: u32 = 64;

impl Reserve {
    pub(super) fn new(vfs: &Arc<dyn Vfs>, root: &Path, bytes: u64) -> Self {
        Self { vfs: Arc::clone(vfs), path: root.join(NAME), bytes, state: Mutex::new(State::Unknown) }
    }

    /// Before the first write: takes the room if it is not there yet.
    pub(super) fn take(&self) {
        let mut state = self.state.lock();
        if *state == State::Unknown && self.bytes > 0 {
            *state = if self.fill() { State::Held } else { GIVEN_UP };
        }
    }

    /// Takes room back that was given up, if the disk has it by now. Each try takes the last blocks for a moment, so that a
    /// disk that stays full is asked less and less often.
    pub(super) fn take_back(&self) {
        let mut state = self.state.lock();
        *state = match *state {
            State::GivenUp { tries, pass } if pass > 0 => State::GivenUp { tries, pass: pass - 1 },
            State::GivenUp { tries, .. } if !self.fill() => {
                State::GivenUp { tries: tries + 1, pass: PASS_MAX.min(1 << tries.min(16)) }
            }
            State::GivenUp { .. } => State::Held,
            other => other,
        };
    }

    /// Gives the room up, also that which an earlier process took. False if there was none to give.
    pub(super) fn give_up(&self) -> bool {
        let mut state = self.state.lock();
        if self.bytes == 0 || matches!(*state, State::GivenUp { .. }) {
            return false;
        }
        let given_up = self.vfs.open(&self.path, OpenMode::Write).and_then(|file| {
            let bytes = file.len()?;
            file.set_len(0).map(|()| bytes > 0)
        });
        let given_up = given_up.unwrap_or(false);
        if given_up || *state == State::Held {
            *state = GIVEN_UP;
        }
        given_up
    }

    /// Not to have the room is no error: it is for the time when there is none.
    fn fill(&self) -> bool {
        let filled = self.vfs.open(&self.path, OpenMode::Create).and_then(|file| {
            // Also where the length is right: a copy of the directory may have made a hole of it.
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
            return true;
        }
        // Half of it would keep others from the last blocks and be of no use.
        if let Ok(file) = self.vfs.open(&self.path, OpenMode::Write) {
            file.set_len(0).ok();
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::io::{FaultVfs, MemoryVfs, OpKind};

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
        // One step was to be passed.
        reserve.take_back();
        reserve.take_back();
        check(&reserve, &vfs, Some(100_000));
    }

    #[test]
    fn a_disk_that_stays_full_is_asked_less_and_less_often() {
        let vfs = FaultVfs::new();
        let shared: Arc<dyn Vfs> = Arc::new(vfs.clone());
        vfs.set_bytes_max(Some(10));
        let reserve = Reserve::new(&shared, Path::new("/"), 100_000);
        reserve.take();
        (0..1000).for_each(|_| reserve.take_back());
        let asked: u64 =
            vfs.sites_seen().iter().filter(|((op, _), _)| *op == OpKind::Allocate).map(|(_, site)| site.calls).sum();
        assert!((10..40).contains(&asked), "{asked}");
    }

    /// A store that died on a full disk has to be opened before anything in it can be deleted.
    #[test]
    fn what_an_earlier_process_took_can_be_given_up_before_the_first_write() {
        let vfs = FaultVfs::new();
        let shared: Arc<dyn Vfs> = Arc::new(vfs.clone());
        Reserve::new(&shared, Path::new("/"), 1000).take();
        let reserve = Reserve::new(&shared, Path::new("/"), 1000);
        assert!(reserve.give_up());
        check(&reserve, &vfs, Some(0));
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
