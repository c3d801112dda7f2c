//! The one error type. A variant is one thing for the caller to do; the table in [`crate::manual::recovery`] says which.
//!
//! Imports `ids` only: everything else may import this.

use std::io;
use std::path::{Path, PathBuf};

use crate::ids::{Offset, TopicPartition};

/// What every fallible call of this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, by what the caller has to do about it.
///
/// An append that fails will never appear in the log, except after [`Error::OutcomeUnknown`].
///
/// ```
/// use topiclog::{Error, TopicName};
/// let error = TopicName::new("a/b").unwrap_err();
/// assert!(matches!(error, Error::Invalid { .. }));
/// assert_eq!(error.code(), "invalid");
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Fix the call: an argument, a record or a batch is over a limit or malformed. Nothing was written.
    #[error("invalid {field}: {limit}")]
    Invalid {
        /// Which argument or field.
        field: String,
        /// The rule that it breaks.
        limit: String,
    },
    /// Fix the configuration: a setting has an impossible value, or contradicts another.
    #[error("configuration {key}: {why}")]
    Config {
        /// Kafka's name of the setting.
        key: String,
        /// What is wrong with it.
        why: String,
    },
    /// This build, or this format, cannot do it: a codec not compiled in, a newer file version, record format 0 or 1.
    #[error("unsupported: {what}")]
    Unsupported {
        /// What was asked for, and what would provide it.
        what: String,
    },
    /// The topic, or the partition of it, does not exist.
    #[error("unknown topic or partition: {name}")]
    UnknownTopic {
        /// What was asked for.
        name: String,
    },
    /// The topic exists already, or another differs only in case where the disk cannot tell them apart.
    #[error("topic exists already: {name}")]
    TopicExists {
        /// The topic that is there.
        name: String,
    },
    /// Another writer has the directory: another store of this process, another process, or a Kafka broker.
    #[error("{path} is locked by {holder}; close it there, or open read-only")]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// Who holds it, as far as is known (a process id is a hint).
        holder: String,
    },
    /// The file system has no locks, so two writers could not be told apart.
    #[error("{path}: this file system has no file locks; use one that has, or opt out with `without_locks`")]
    LockUnsupported {
        /// The lock file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The store was opened read-only.
    #[error("the store is open read-only: {what}")]
    ReadOnly {
        /// What was refused.
        what: String,
    },
    /// The store, or the topic, was closed or deleted.
    #[error("closed: {what}")]
    Closed {
        /// What is closed.
        what: String,
    },
    /// Stop: another has taken over. A member is no longer of its group's generation, or its name was taken.
    #[error("fenced: {who}")]
    Fenced {
        /// Who was fenced, and by what.
        who: String,
    },
    /// Not yet: what was waited for has not come in the time that was given. Ask again.
    #[error("timed out: {what}")]
    Timeout {
        /// What was waited for.
        what: String,
    },
    /// There is no store in the directory, and none was to be made: see
    /// [`StoreBuilder::create`](crate::StoreBuilder::create). Nothing was written.
    #[error(
        "{path} holds no store; name another directory, let one be made here, or take a broker's over by `Store::adopt`"
    )]
    NoStore {
        /// The directory.
        path: PathBuf,
    },
    /// Read again and decide: the log no longer ends where the append expected it to. Nothing was appended.
    #[error(
        "{partition} ends at offset {end}, and the append expected {expected}: read what came meanwhile, and decide again"
    )]
    Conflict {
        /// The partition.
        partition: TopicPartition,
        /// The log end offset that the append expected.
        expected: Offset,
        /// The log end offset as it was.
        end: Offset,
    },
    /// Reload: the topic was made again, or the log was cut, since this position was taken. What lies below it now is not what
    /// was read.
    #[error("the position in {partition} is lost: {why}; read again from a position that is known to be good")]
    PositionLost {
        /// The partition.
        partition: TopicPartition,
        /// How that is known.
        why: String,
    },
    /// The offset is not in the log; the valid range comes with it.
    #[error("offset {asked} of {partition} is out of range: valid are {start} to {end}")]
    OffsetOutOfRange {
        /// The partition.
        partition: TopicPartition,
        /// The offset that was asked for.
        asked: Offset,
        /// The log start offset: the first that can be read.
        start: Offset,
        /// The bound of this read: one past the last that can be read.
        end: Offset,
    },
    /// Reload: drop the state that was made from this partition and read it again from the start. Compaction dropped a
    /// tombstone that this reader had not come to, so that its copy may keep a key that was deleted.
    #[error(
        "{partition}: tombstones below {tombstone_floor} are gone, and the reader stands at {position}: read again from the start"
    )]
    SnapshotRequired {
        /// The partition.
        partition: TopicPartition,
        /// The next offset that the reader would have looked at.
        position: Offset,
        /// Past the highest tombstone that was dropped.
        tombstone_floor: Offset,
    },
    /// The only failed append that may yet appear: read back before sending again.
    #[error("{partition}: the outcome of the append at offset {offset} is unknown; reopen and read back: {source}")]
    OutcomeUnknown {
        /// The partition.
        partition: TopicPartition,
        /// The offset that the first record would have.
        offset: Offset,
        /// Why.
        source: io::Error,
    },
    /// Reopen: a sync failed, so what lies between the two offsets may not be on the disk.
    #[error("{partition}: a sync failed; records from {durable_end} to {end} may be lost; reopen the store: {source}")]
    SyncFailed {
        /// The partition.
        partition: TopicPartition,
        /// Everything below is durable.
        durable_end: Offset,
        /// The log end offset.
        end: Offset,
        /// What the sync said.
        source: io::Error,
    },
    /// Reopen: an earlier failure stopped the writer of this partition.
    #[error("{partition} refuses to write after an earlier failure ({why}); reopen the store")]
    Poisoned {
        /// The partition.
        partition: TopicPartition,
        /// The earlier failure.
        why: String,
    },
    /// Make room: the disk or the quota is full. Appends go on as soon as there is space.
    #[error("no space left while {op} {path}: {source}")]
    NoSpace {
        /// The operation.
        op: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Raise the limit, or lower `open_files_max`: no file descriptor, or no map, was to be had.
    #[error("too many open files while {op} {path}: {source}")]
    TooManyFiles {
        /// The operation.
        op: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Restore from a copy, or repair: bytes on the disk are not what was written. Nothing was changed.
    #[error("{path} is corrupt at position {position}: {what}")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// The byte position in it.
        position: u64,
        /// The offsets concerned, first and one past the last, where known.
        offsets: Option<(Offset, Offset)>,
        /// What is wrong.
        what: String,
    },
    /// Another program wrote here, or never had a manifest: run `adopt` first, or open read-only.
    #[error("{path} must be adopted by `Store::adopt` before it can be written: {why}")]
    NeedsAdopt {
        /// The directory.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// Look at the machine: the operating system refused.
    #[error("{op} {path}: {source}")]
    Io {
        /// The operation.
        op: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

impl Error {
    /// A stable, lower-case name of the variant, for logs and metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Error::Invalid { .. } => "invalid",
            Error::Config { .. } => "config",
            Error::Unsupported { .. } => "unsupported",
            Error::UnknownTopic { .. } => "unknown_topic",
            Error::TopicExists { .. } => "topic_exists",
            Error::Locked { .. } => "locked",
            Error::LockUnsupported { .. } => "lock_unsupported",
            Error::ReadOnly { .. } => "read_only",
            Error::Closed { .. } => "closed",
            Error::Fenced { .. } => "fenced",
            Error::Timeout { .. } => "timeout",
            Error::NoStore { .. } => "no_store",
            Error::Conflict { .. } => "conflict",
            Error::PositionLost { .. } => "position_lost",
            Error::OffsetOutOfRange { .. } => "offset_out_of_range",
            Error::SnapshotRequired { .. } => "snapshot_required",
            Error::OutcomeUnknown { .. } => "outcome_unknown",
            Error::SyncFailed { .. } => "sync_failed",
            Error::Poisoned { .. } => "poisoned",
            Error::NoSpace { .. } => "no_space",
            Error::TooManyFiles { .. } => "too_many_files",
            Error::Corrupt { .. } => "corrupt",
            Error::NeedsAdopt { .. } => "needs_adopt",
            Error::Io { .. } => "io",
        }
    }

    pub(crate) fn invalid(field: impl Into<String>, limit: impl Into<String>) -> Self {
        Error::Invalid { field: field.into(), limit: limit.into() }
    }

    pub(crate) fn config(key: impl Into<String>, why: impl Into<String>) -> Self {
        Error::Config { key: key.into(), why: why.into() }
    }

    pub(crate) fn unsupported(what: impl Into<String>) -> Self {
        Error::Unsupported { what: what.into() }
    }

    pub(crate) fn topic_made_again(partition: &TopicPartition) -> Self {
        Error::PositionLost { partition: partition.clone(), why: "the topic was deleted and made again".to_owned() }
    }

    pub(crate) fn corrupt(path: &Path, position: u64, what: impl Into<String>) -> Self {
        Error::Corrupt { path: path.to_owned(), position, offsets: None, what: what.into() }
    }

    /// The same error once more, for an iterator that keeps failing.
    pub(crate) fn duplicate(&self) -> Self {
        match self {
            Error::Invalid { field, limit } => Error::Invalid { field: field.clone(), limit: limit.clone() },
            Error::Config { key, why } => Error::Config { key: key.clone(), why: why.clone() },
            Error::Unsupported { what } => Error::Unsupported { what: what.clone() },
            Error::UnknownTopic { name } => Error::UnknownTopic { name: name.clone() },
            Error::TopicExists { name } => Error::TopicExists { name: name.clone() },
            Error::Locked { path, holder } => Error::Locked { path: path.clone(), holder: holder.clone() },
            Error::LockUnsupported { path, source } => {
                Error::LockUnsupported { path: path.clone(), source: copy_io_error(source) }
            }
            Error::ReadOnly { what } => Error::ReadOnly { what: what.clone() },
            Error::Closed { what } => Error::Closed { what: what.clone() },
            Error::Fenced { who } => Error::Fenced { who: who.clone() },
            Error::Timeout { what } => Error::Timeout { what: what.clone() },
            Error::NoStore { path } => Error::NoStore { path: path.clone() },
            Error::Conflict { partition, expected, end } => {
                Error::Conflict { partition: partition.clone(), expected: *expected, end: *end }
            }
            Error::PositionLost { partition, why } => {
                Error::PositionLost { partition: partition.clone(), why: why.clone() }
            }
            Error::OffsetOutOfRange { partition, asked, start, end } => {
                Error::OffsetOutOfRange { partition: partition.clone(), asked: *asked, start: *start, end: *end }
            }
            Error::SnapshotRequired { partition, position, tombstone_floor } => Error::SnapshotRequired {
                partition: partition.clone(),
                position: *position,
                tombstone_floor: *tombstone_floor,
            },
            Error::OutcomeUnknown { partition, offset, source } => {
                Error::OutcomeUnknown { partition: partition.clone(), offset: *offset, source: copy_io_error(source) }
            }
            Error::SyncFailed { partition, durable_end, end, source } => Error::SyncFailed {
                partition: partition.clone(),
                durable_end: *durable_end,
                end: *end,
                source: copy_io_error(source),
            },
            Error::Poisoned { partition, why } => Error::Poisoned { partition: partition.clone(), why: why.clone() },
            Error::NoSpace { op, path, source } => {
                Error::NoSpace { op, path: path.clone(), source: copy_io_error(source) }
            }
            Error::TooManyFiles { op, path, source } => {
                Error::TooManyFiles { op, path: path.clone(), source: copy_io_error(source) }
            }
            Error::Corrupt { path, position, offsets, what } => {
                Error::Corrupt { path: path.clone(), position: *position, offsets: *offsets, what: what.clone() }
            }
            Error::NeedsAdopt { path, why } => Error::NeedsAdopt { path: path.clone(), why: why.clone() },
            Error::Io { op, path, source } => Error::Io { op, path: path.clone(), source: copy_io_error(source) },
        }
    }

    /// Sorts an operating-system error by what the caller has to do.
    pub(crate) fn io(op: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::NoSpace { op, path, source },
            // EMFILE, ENFILE and ENOMEM have no stable kind of their own.
            _ if matches!(source.raw_os_error(), Some(24 | 23 | 12)) => Error::TooManyFiles { op, path, source },
            _ => Error::Io { op, path, source },
        }
    }
}

/// An [`io::Error`] of the same kind and number, for the many waiters that one failure concerns.
pub(crate) fn copy_io_error(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(number) => io::Error::from_raw_os_error(number),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}
