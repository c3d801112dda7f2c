//! Works done by hand, with the calls of the system alone: what the library is compared with.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use topiclog::record::BatchView;

/// The space that the raw limit takes ahead, as the topic does.
const PREALLOCATE: u64 = 4 << 20;

/// Takes space ahead.
pub(crate) fn preallocate(file: &File, position: u64) {
    nix::fcntl::fallocate(file, nix::fcntl::FallocateFlags::empty(), position as i64, PREALLOCATE as i64).unwrap();
}

/// Threads that each write and share each fdatasync: the least that a group commit has to do.
pub(crate) struct RawGroup {
    pub(crate) file: File,
    position: Mutex<u64>,
    written: AtomicU64,
    state: Mutex<(u64, bool)>,
    ended: Condvar,
}

impl RawGroup {
    pub(crate) fn new(file: File) -> Self {
        Self {
            file,
            position: Mutex::new(0),
            written: AtomicU64::new(0),
            state: Mutex::new((0, false)),
            ended: Condvar::new(),
        }
    }

    pub(crate) fn append(&self, value: &[u8]) {
        let end = {
            let mut position = self.position.lock().unwrap();
            self.file.write_all_at(value, *position).unwrap();
            *position += value.len() as u64;
            self.written.store(*position, Ordering::Release);
            *position
        };
        let mut state = self.state.lock().unwrap();
        while state.0 < end {
            if state.1 {
                state = self.ended.wait(state).unwrap();
                continue;
            }
            state.1 = true;
            drop(state);
            let covered = self.written.load(Ordering::Acquire);
            self.file.sync_data().unwrap();
            state = self.state.lock().unwrap();
            (state.0, state.1) = (state.0.max(covered), false);
            self.ended.notify_all();
        }
    }
}

/// Scans the bytes above the floor with their CRCs, copies them and syncs the copy.
pub(crate) fn raw_recovery(log: &Path, from: u64, to: u64) -> Duration {
    let copy = log.with_extension("copy");
    let start = Instant::now();
    {
        let source = File::open(log).unwrap();
        let target = File::create(&copy).unwrap();
        let mut buffer = vec![0; 4 << 20];
        let (mut at, mut kept) = (from, 0);
        while at < to {
            let wanted = (buffer.len() - kept).min((to - at) as usize);
            source.read_exact_at(&mut buffer[kept..kept + wanted], at).unwrap();
            target.write_all_at(&buffer[kept..kept + wanted], at - from).unwrap();
            at += wanted as u64;
            let filled = kept + wanted;
            let mut place = 0;
            while place + 61 <= filled {
                let size = 12 + u32::from_be_bytes(buffer[place + 8..place + 12].try_into().unwrap()) as usize;
                if place + size > filled {
                    break;
                }
                BatchView::parse(&buffer[place..place + size]).unwrap();
                place += size;
            }
            buffer.copy_within(place..filled, 0);
            kept = filled - place;
        }
        target.sync_data().unwrap();
    }
    let time = start.elapsed();
    fs::remove_file(copy).unwrap();
    time
}
