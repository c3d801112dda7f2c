//! What recovery cuts off is kept for people, in `quarantine/` inside the partition.
//!
//! Files are named by what is in them, so that a recovery that is interrupted and run again writes the same files.

use std::io;
use std::path::Path;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::io::replace::replace_file;
use crate::io::{OpenMode, Vfs, read_full_at, write_all_at};
use crate::planted::{Bug, is};
use crate::segment::name::{Suffix, file_name};

pub(crate) const DIRECTORY: &str = "quarantine";

#[derive(Serialize)]
struct Reason<'a> {
    segment_base: i64,
    position: u64,
    bytes: u64,
    first_offset: i64,
    reason: &'a str,
}

/// Makes the directory, durably. One that is there already may have been made by a process that was killed before its entry
/// was on the disk, so that it is synced all the same.
pub(crate) fn ensure(vfs: &dyn Vfs, partition: &Path) -> Result<()> {
    let directory = partition.join(DIRECTORY);
    match vfs.create_dir(&directory) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && !is(Bug::RecoveryNotIdempotent) => {}
        Err(error) => return Err(Error::io("create", &directory, error)),
    }
    vfs.sync_dir(partition).map_err(|error| Error::io("sync", partition, error))
}

/// Copies `[position, end)` of a log file, however long; durable when this returns. The log itself stays as it is, so that
/// whatever interrupts a recovery, the next one finds what this one found.
pub(crate) fn copy_tail(
    vfs: &dyn Vfs,
    partition: &Path,
    segment_base: i64,
    position: u64,
    end: u64,
    first_offset: i64,
    reason: &str,
) -> Result<()> {
    ensure(vfs, partition)?;
    let directory = partition.join(DIRECTORY);
    let source_path = partition.join(file_name(segment_base, Suffix::Log));
    let source = vfs.open(&source_path, OpenMode::Read).map_err(|error| Error::io("open", &source_path, error))?;
    let copying = directory.join("copying.tmp");
    let target = vfs.open(&copying, OpenMode::Create).map_err(|error| Error::io("create", &copying, error))?;
    target.set_len(0).map_err(|error| Error::io("cut", &copying, error))?;
    let mut crc = crc32fast::Hasher::new();
    let mut at = position;
    let mut buffer = vec![0; 1 << 20];
    while at < end {
        let wanted = buffer.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
        let part = buffer.get_mut(..wanted).unwrap_or_default();
        let read = read_full_at(&*source, part, at).map_err(|error| Error::io("read", &source_path, error))?;
        if read == 0 {
            break;
        }
        let part = part.get(..read).unwrap_or_default();
        crc.update(part);
        write_all_at(&*target, part, at - position).map_err(|(_, error)| Error::io("write", &copying, error))?;
        at += read as u64;
    }
    target.sync_all().map_err(|error| Error::io("sync", &copying, error))?;
    let name = format!("{segment_base:020}-{position}-{:08x}", crc.finalize());
    let path = directory.join(format!("{name}.bin"));
    vfs.rename(&copying, &path).map_err(|error| Error::io("rename", &path, error))?;
    let reason = Reason { segment_base, position, bytes: at - position, first_offset, reason };
    let json = serde_json::to_vec_pretty(&reason).map_err(|error| Error::invalid("reason", error.to_string()))?;
    replace_file(vfs, &directory, &format!("{name}.json"), &json, true)
}

/// Moves all files of a segment here by rename; durable when this returns. What an earlier recovery put here under the same
/// name stays: the new file then gets a number.
pub(crate) fn move_segment(vfs: &dyn Vfs, partition: &Path, segment_base: i64) -> Result<()> {
    ensure(vfs, partition)?;
    let directory = partition.join(DIRECTORY);
    let listed = vfs.list(&directory).map_err(|error| Error::io("list", &directory, error))?;
    let is_taken = |name: &str| listed.iter().any(|entry| entry.name == name);
    let free_name = |name: String| {
        let numbered = (2..=listed.len() + 2).map(|nth| format!("{name}.{nth}"));
        std::iter::once(name.clone()).chain(numbered).find(|name| !is_taken(name)).unwrap_or(name)
    };
    for suffix in Suffix::ALL {
        let name = file_name(segment_base, suffix);
        let moved = if is(Bug::LaterSegmentsDeleted) {
            vfs.remove_file(&partition.join(&name))
        } else {
            vfs.rename(&partition.join(&name), &directory.join(free_name(name.clone())))
        };
        match moved {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("rename", &partition.join(&name), error)),
        }
    }
    vfs.sync_dir(&directory).map_err(|error| Error::io("sync", &directory, error))?;
    vfs.sync_dir(partition).map_err(|error| Error::io("sync", partition, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::io::FaultVfs;

    fn disk() -> FaultVfs {
        let vfs = FaultVfs::new();
        let log = vfs.open(Path::new("/00000000000000000007.log"), OpenMode::Create).unwrap();
        write_all_at(&*log, b"good part, and what was cut", 0).unwrap();
        vfs
    }

    #[test]
    fn a_tail_is_kept_once_under_the_name_of_what_is_in_it() {
        let vfs = disk();
        for _ in 0..3 {
            copy_tail(&vfs, Path::new("/"), 7, 11, 27, 9, "torn").unwrap();
        }
        let image = vfs.durable_image();
        let kept: Vec<_> = image.files().map(|(path, _)| path.to_owned()).filter(|path| path.contains('/')).collect();
        assert_eq!(kept.len(), 2, "{kept:?}");
        let crc = crc32fast::hash(b"and what was cut");
        let name = format!("quarantine/00000000000000000007-11-{crc:08x}");
        assert_eq!(image.read(format!("{name}.bin")).unwrap(), b"and what was cut");
        let why: serde_json::Value = serde_json::from_slice(&image.read(format!("{name}.json")).unwrap()).unwrap();
        assert_eq!((why["bytes"].as_u64(), why["first_offset"].as_i64()), (Some(16), Some(9)));
        assert_eq!(why["reason"].as_str(), Some("torn"));
    }

    #[test]
    fn a_segment_moves_with_all_its_files_and_may_be_moved_again() {
        let vfs = disk();
        for suffix in [Suffix::Index, Suffix::Seal] {
            vfs.open(&Path::new("/").join(file_name(7, suffix)), OpenMode::Create).unwrap();
        }
        vfs.open(Path::new("/00000000000000000008.log"), OpenMode::Create).unwrap();
        for _ in 0..2 {
            move_segment(&vfs, Path::new("/"), 7).unwrap();
        }
        vfs.sync_dir(Path::new("/")).unwrap();
        let image = vfs.durable_image();
        let files: Vec<_> = image.files().map(|(path, _)| path.to_owned()).collect();
        let expected = [
            "00000000000000000008.log",
            "quarantine/00000000000000000007.index",
            "quarantine/00000000000000000007.log",
            "quarantine/00000000000000000007.seal",
        ];
        assert_eq!(files, expected);
    }

    /// A recovery was killed after it had made the directory and before the directory's entry was synced; the next one took
    /// the entry for durable, and a power cut behind its cut took all that was kept.
    #[test]
    fn a_directory_that_was_made_and_not_synced_is_synced_by_whoever_finds_it() {
        let vfs = disk();
        vfs.create_dir(Path::new("/quarantine")).unwrap();
        copy_tail(&vfs, Path::new("/"), 7, 11, 27, 9, "torn").unwrap();
        let image = vfs.durable_image();
        assert_eq!(image.files().filter(|(path, _)| path.starts_with("quarantine/")).count(), 2);
    }

    /// A second recovery of the same segment once put its file over the one that the first had kept.
    #[test]
    fn what_an_earlier_recovery_kept_is_not_replaced() {
        let vfs = disk();
        move_segment(&vfs, Path::new("/"), 7).unwrap();
        for nth in 2..5 {
            let log = vfs.open(Path::new("/00000000000000000007.log"), OpenMode::Create).unwrap();
            write_all_at(&*log, format!("another, {nth}").as_bytes(), 0).unwrap();
            move_segment(&vfs, Path::new("/"), 7).unwrap();
            let kept = vfs.image().read(format!("quarantine/00000000000000000007.log.{nth}"));
            assert_eq!(kept.unwrap(), format!("another, {nth}").as_bytes());
        }
        let first = vfs.image().read("quarantine/00000000000000000007.log").unwrap();
        assert_eq!(first, b"good part, and what was cut");
    }
}
