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
/// A longer tail is not copied: the damaged file itself moves here after its good part was copied out of it.
pub(crate) const COPY_BYTES_MAX: u64 = 64 << 20;

#[derive(Serialize)]
struct Reason<'a> {
    segment_base: i64,
    position: u64,
    bytes: u64,
    first_offset: i64,
    reason: &'a str,
}

/// Makes the directory, durably.
pub(crate) fn ensure(vfs: &dyn Vfs, partition: &Path) -> Result<()> {
    let directory = partition.join(DIRECTORY);
    match vfs.create_dir(&directory) {
        Ok(()) => vfs.sync_dir(partition).map_err(|error| Error::io("sync", partition, error)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && !is(Bug::RecoveryNotIdempotent) => Ok(()),
        Err(error) => Err(Error::io("create", &directory, error)),
    }
}

/// Copies `[position, end)` of a log file; durable when this returns.
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

/// Moves all files of a segment here by rename; durable when this returns.
pub(crate) fn move_segment(vfs: &dyn Vfs, partition: &Path, segment_base: i64) -> Result<()> {
    ensure(vfs, partition)?;
    let directory = partition.join(DIRECTORY);
    for suffix in Suffix::ALL {
        let name = file_name(segment_base, suffix);
        let moved = if is(Bug::LaterSegmentsDeleted) {
            vfs.remove_file(&partition.join(&name))
        } else {
            vfs.rename(&partition.join(&name), &directory.join(&name))
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
