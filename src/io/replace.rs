//! How a small file is replaced so that a crash leaves the old or the new one, and the two slots in which both
//! manifests live: generation `g` goes into slot `g mod 2`, so the one before it stays until the next.
//!
//! It knows frames, not what is in them.

use std::io;
use std::path::{Path, PathBuf};

use super::frame::{self, FrameError, OVERHEAD_BYTES};
use super::{OpenMode, Vfs, read_small, write_all_at};
use crate::error::{Error, Result};
use crate::planted::{Bug, is};

/// Puts a file in place of another, or of none: a temporary in the same directory is written, synced, renamed, and the
/// directory synced. With `sync` false both syncs are left out, for files that only serve others and are rebuilt.
///
/// On an error the old file is untouched, except if only the last sync failed: then either may be there after a crash.
pub(crate) fn replace_file(vfs: &dyn Vfs, directory: &Path, name: &str, bytes: &[u8], sync: bool) -> Result<()> {
    replace_file_in_parts(vfs, directory, name, sync, |put| put(bytes))
}

/// Takes the next part of a file.
pub(crate) type Put<'a> = dyn FnMut(&[u8]) -> Result<()> + 'a;

/// [`replace_file`] for one that is never in memory as a whole: the parts are written as they come.
pub(crate) fn replace_file_in_parts(
    vfs: &dyn Vfs,
    directory: &Path,
    name: &str,
    sync: bool,
    parts: impl FnOnce(&mut Put<'_>) -> Result<()>,
) -> Result<()> {
    let target = directory.join(name);
    let temporary = if is(Bug::ReplacedInPlace) { target.clone() } else { directory.join(format!("{name}.tmp")) };
    if let Err(error) = write_temporary(vfs, &temporary, parts, sync && !is(Bug::RenameBeforeSync)) {
        // On a full disk the half-written file would keep the space. If this fails too, the next replacement sweeps it.
        vfs.remove_file(&temporary).ok();
        return Err(error);
    }
    vfs.rename(&temporary, &target).map_err(|error| Error::io("rename", &temporary, error))?;
    if sync && is(Bug::RenameBeforeSync) {
        let renamed = vfs.open(&target, OpenMode::Write).and_then(|file| file.sync_all());
        renamed.map_err(|error| Error::io("sync", &target, error))?;
    }
    if sync {
        vfs.sync_dir(directory).map_err(|error| Error::io("sync directory", directory, error))?;
    }
    Ok(())
}

/// Removes a file, if there is one; says whether there was.
pub(crate) fn remove_if_there(vfs: &dyn Vfs, path: &Path) -> Result<bool> {
    match vfs.remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("remove", path, error)),
    }
}

fn write_temporary(
    vfs: &dyn Vfs,
    path: &Path,
    parts: impl FnOnce(&mut Put<'_>) -> Result<()>,
    sync: bool,
) -> Result<()> {
    let create = || vfs.open(path, OpenMode::CreateNew);
    let file = match create() {
        // Left over from a crash.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            vfs.remove_file(path).map_err(|error| Error::io("remove", path, error))?;
            create()
        }
        result => result,
    };
    let file = file.map_err(|error| Error::io("create", path, error))?;
    let mut position = 0;
    parts(&mut |bytes| {
        write_all_at(&*file, bytes, position).map_err(|(_, error)| Error::io("write", path, error))?;
        position += bytes.len() as u64;
        Ok(())
    })?;
    if sync {
        file.sync_all().map_err(|error| Error::io("sync", path, error))?;
    }
    Ok(())
}

/// What a pair of slots holds, and how they read it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TwoSlots<'a> {
    /// Where both are.
    pub(crate) directory: &'a Path,
    /// Their name without `.0` and `.1`.
    pub(crate) name: &'a str,
    /// The kind in the frame.
    pub(crate) kind: u16,
    /// The version that is written, and the newest that is read.
    pub(crate) version: u16,
    /// A longer payload is refused before anything is allocated for it.
    pub(crate) payload_bytes_max: usize,
}

/// What was found in two slots.
#[derive(Debug, Default)]
pub(crate) struct SlotsRead {
    /// The good one of the highest generation.
    pub(crate) newest: Option<Slot>,
    /// Slots that are not what was written, and why. Next to a good one this is what a crash during a write leaves.
    pub(crate) damaged: Vec<(PathBuf, String)>,
    /// A slot that a newer version of this crate wrote: found, and the newest that is known. Nothing may be decided
    /// without it.
    pub(crate) newer: Option<(u16, u16)>,
    /// Slots that are not there.
    pub(crate) missing: Vec<PathBuf>,
}

/// A good slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    /// Its generation.
    pub(crate) generation: u64,
    /// The version of its payload.
    pub(crate) version: u16,
    /// What is in it.
    pub(crate) payload: Vec<u8>,
}

impl TwoSlots<'_> {
    /// The file name of the slot of a generation.
    pub(crate) fn slot_name(&self, generation: u64) -> String {
        format!("{}.{}", self.name, generation % 2)
    }

    /// Reads both slots. Fails only if the operating system does: what is wrong with the files is in the result.
    pub(crate) fn read(&self, vfs: &dyn Vfs) -> Result<SlotsRead> {
        let mut read = SlotsRead::default();
        for slot in 0..2 {
            let path = self.directory.join(self.slot_name(slot));
            let bytes = match read_small(vfs, &path, (self.payload_bytes_max + OVERHEAD_BYTES) as u64) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    read.missing.push(path);
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    read.damaged.push((path, error.to_string()));
                    continue;
                }
                Err(error) => return Err(Error::io("read", &path, error)),
            };
            match frame::decode(&bytes, self.kind, self.version, self.payload_bytes_max) {
                // One slot copied over the other must not pass for both.
                Ok(frame) if frame.generation % 2 != slot => {
                    read.damaged.push((path, format!("generation {} does not belong there", frame.generation)));
                }
                Ok(frame) if read.newest.as_ref().is_none_or(|newest| newest.generation < frame.generation) => {
                    let payload = frame.payload.to_vec();
                    read.newest = Some(Slot { generation: frame.generation, version: frame.version, payload });
                }
                Ok(_) => {}
                Err(FrameError::Damaged { what }) => read.damaged.push((path, what)),
                Err(FrameError::NewerVersion { found, max }) => {
                    let found = read.newer.map_or(found, |(other, _)| other.max(found));
                    read.newer = Some((found, max));
                }
            }
        }
        Ok(read)
    }

    /// Writes a generation into its slot, durably if `sync`.
    pub(crate) fn write(&self, vfs: &dyn Vfs, generation: u64, payload: &[u8], sync: bool) -> Result<()> {
        if payload.len() > self.payload_bytes_max {
            let limit = format!("{} bytes, of which at most {} fit", payload.len(), self.payload_bytes_max);
            return Err(Error::invalid(self.name, limit));
        }
        let bytes = frame::encode(self.kind, self.version, generation, payload);
        replace_file(vfs, self.directory, &self.slot_name(generation), &bytes, sync)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::MemoryVfs;

    fn slots(directory: &Path) -> TwoSlots<'_> {
        TwoSlots { directory, name: "m", kind: 1, version: 2, payload_bytes_max: 1000 }
    }

    fn put(vfs: &dyn Vfs, path: &Path, bytes: &[u8]) {
        let file = vfs.open(path, OpenMode::Create).unwrap();
        file.set_len(0).unwrap();
        write_all_at(&*file, bytes, 0).unwrap();
    }

    #[test]
    fn replaces_and_sweeps_the_left_over() {
        let vfs = MemoryVfs::new();
        let root = Path::new("/");
        put(&vfs, Path::new("/f.tmp"), &[9; 100]);
        for bytes in [&b"first"[..], b"second", b""] {
            replace_file(&vfs, root, "f", bytes, true).unwrap();
            assert_eq!(read_small(&vfs, Path::new("/f"), 100).unwrap(), bytes);
            assert_eq!(vfs.list(root).unwrap().len(), 1);
        }
        let error = replace_file(&vfs, Path::new("/none"), "f", b"", true).unwrap_err();
        assert!(matches!(error, Error::Io { op: "create", .. }), "{error}");
    }

    #[test]
    fn the_newest_good_generation_wins() {
        let vfs = MemoryVfs::new();
        let slots = slots(Path::new("/"));
        let read = slots.read(&vfs).unwrap();
        assert!(read.newest.is_none() && read.missing.len() == 2);
        for generation in 1..=5 {
            slots.write(&vfs, generation, &generation.to_be_bytes(), true).unwrap();
            let newest = slots.read(&vfs).unwrap().newest.unwrap();
            assert_eq!((newest.generation, newest.payload), (generation, generation.to_be_bytes().to_vec()));
        }
        put(&vfs, Path::new("/m.1"), b"garbage");
        let read = slots.read(&vfs).unwrap();
        assert_eq!(read.newest.unwrap().generation, 4);
        assert_eq!(read.damaged[0].0, Path::new("/m.1"));
        put(&vfs, Path::new("/m.1"), &[0; 2000]);
        assert_eq!(slots.read(&vfs).unwrap().damaged.len(), 1, "over the limit");
        put(&vfs, Path::new("/m.1"), &frame::encode(1, 2, 6, b"copied"));
        assert_eq!(slots.read(&vfs).unwrap().damaged.len(), 1, "in the wrong slot");
        put(&vfs, Path::new("/m.1"), &frame::encode(1, 3, 7, b"newer"));
        let read = slots.read(&vfs).unwrap();
        assert_eq!((read.newer, read.newest.unwrap().generation), (Some((3, 2)), 4));
        assert!(matches!(slots.write(&vfs, 6, &[0; 1001], true), Err(Error::Invalid { .. })));
    }

    /// Whatever the power cut leaves, the newest generation is the one before or the one being written, and once the
    /// call has returned it is the new one.
    #[test]
    fn a_crash_leaves_the_old_or_the_new_generation() {
        use crate::io::{CrashProfile, FaultVfs};

        let slots = slots(Path::new("/"));
        let payload = |generation: u64| vec![generation as u8 + 1; 900];
        let mut states = 0;
        for stop in 0.. {
            let disk = FaultVfs::new();
            (1..=3).for_each(|generation| slots.write(&disk, generation, &payload(generation), true).unwrap());
            disk.stop_after(disk.operations() + stop);
            let written = slots.write(&disk, 4, &payload(4), true);
            for state in disk.crash_states(&CrashProfile::strict()) {
                states += 1;
                let read = slots.read(&FaultVfs::from_image(&state.image)).unwrap();
                let newest = read.newest.unwrap();
                let expected = if written.is_ok() { 4..=4 } else { 3..=4 };
                assert!(expected.contains(&newest.generation), "after {stop}: {state}");
                assert_eq!(newest.payload, payload(newest.generation), "after {stop}: {state}");
                assert!(read.damaged.is_empty() && read.missing.is_empty(), "after {stop}: {state}");
            }
            if written.is_ok() {
                break;
            }
        }
        assert!(states >= 20, "{states} states");
    }

    /// Every call of a replacement fails once with every error; the old file stays whole, or the new one is there.
    #[test]
    fn any_call_may_fail() {
        use crate::io::{Fault, FaultPlan, FaultVfs, errno};

        for number in [errno::EIO, errno::ENOSPC, errno::EMFILE, errno::EACCES] {
            for call in 1.. {
                let disk = FaultVfs::new();
                replace_file(&disk, Path::new("/"), "f", b"old", true).unwrap();
                disk.inject(FaultPlan::new(Fault::Error(number)).at_call(call));
                let result = replace_file(&disk, Path::new("/"), "f", b"newer", true);
                let is_hit = disk.faults_hit() == 1;
                assert_eq!(result.is_err(), is_hit, "call {call}");
                disk.clear_faults();
                let found = read_small(&disk, Path::new("/f"), 100).unwrap();
                assert!(found == b"newer" || (is_hit && found == b"old"), "call {call}");
                replace_file(&disk, Path::new("/"), "f", b"newest", true).unwrap();
                assert_eq!(disk.image().files().collect::<Vec<_>>(), [("f", 6)], "nothing is left over");
                if !is_hit {
                    break;
                }
            }
        }
    }

    #[test]
    fn a_payload_over_the_limit_changes_nothing() {
        let vfs = MemoryVfs::new();
        let slots = slots(Path::new("/"));
        slots.write(&vfs, 1, b"kept", true).unwrap();
        assert!(slots.write(&vfs, 3, &[0; 1001], true).is_err());
        let read = slots.read(&vfs).unwrap();
        assert_eq!(read.newest.unwrap().payload, b"kept");
        assert_eq!((read.damaged.len(), read.missing.len()), (0, 1));
    }

    #[test]
    fn generations_take_turns_and_two_lost_slots_are_told_of() {
        let slots = slots(Path::new("/"));
        assert_eq!((slots.slot_name(0), slots.slot_name(1)), ("m.0".to_owned(), "m.1".to_owned()));
        assert_eq!(slots.slot_name(u64::MAX), "m.1");
        let vfs = MemoryVfs::new();
        put(&vfs, Path::new("/m.0"), b"");
        put(&vfs, Path::new("/m.1"), &[0; 36]);
        let read = slots.read(&vfs).unwrap();
        assert!(read.newest.is_none());
        assert_eq!((read.damaged.len(), read.missing.len()), (2, 0));
    }
}
