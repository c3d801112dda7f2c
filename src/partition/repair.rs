//! What recovery found and did, for people and programs to read. Nothing is repaired in silence.

use std::path::PathBuf;

use crate::ids::{Offset, TopicPartition};

/// What opening one partition found and repaired.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PartitionReport {
    /// The partition.
    pub partition: TopicPartition,
    /// Whether it was not closed in order, so that its tail was scanned.
    pub unclean: bool,
    /// Everything below this offset was known to be synced, and was not looked at.
    pub floor: Offset,
    /// The log end offset after the open.
    pub end: Offset,
    /// Bytes that were scanned.
    pub scanned_bytes: u64,
    /// What was changed, or, in a read-only open, what a writer would change.
    pub repairs: Vec<Repair>,
}

/// One thing that an open changed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Repair {
    /// Bytes behind the last whole batch were cut off and put into quarantine.
    TailCut {
        /// The log file.
        path: PathBuf,
        /// Where it was cut.
        position: u64,
        /// How many bytes were cut.
        bytes: u64,
        /// The offset that will be assigned next.
        next_offset: Offset,
        /// What was wrong with them.
        reason: String,
    },
    /// The part above the floor was written again and synced, as the disk may never have got it.
    TailRewritten {
        /// The log file.
        path: PathBuf,
        /// From where on.
        position: u64,
        /// How many bytes.
        bytes: u64,
    },
    /// A segment behind a cut was moved into quarantine.
    SegmentQuarantined {
        /// The log file.
        path: PathBuf,
    },
    /// A file without a meaning any more was removed: left over from an operation that never took effect.
    Swept {
        /// The file.
        path: PathBuf,
    },
    /// One of the two copies of a manifest is damaged; the other one holds.
    ManifestSlotDamaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A broker's checkpoint is no such file, and what it would say is taken from the log instead, as far as that tells.
    CheckpointIgnored {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// One of the two copies of the file of holds is damaged or gone. What the other one says counts, which may be older; without
    /// it nobody holds tombstones but groups.
    HoldsDamaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file that follows from the log, and does not change what the log holds, is missing or damaged: it was made anew from
    /// the batches.
    SideFileRebuilt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// What a broker's checkpoint says is not what its log holds, and proves nothing: the log holds.
    CheckpointDiffers {
        /// The partition's directory.
        path: PathBuf,
        /// What the checkpoint says, and what the log holds.
        reason: String,
    },
    /// Damage that had been synced before: a writer refuses to open, a reader sees what lies before it.
    Rot {
        /// The log file.
        path: PathBuf,
        /// Where the damage begins.
        position: u64,
        /// What is wrong.
        reason: String,
    },
    /// A partition that a read-only open could not open; asking for it gives the error.
    Unreadable {
        /// The directory.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A file or directory that is not ours and was left alone.
    Stranger {
        /// The file.
        path: PathBuf,
    },
}

impl Repair {
    /// Whether the open changed, or would change, anything of the log because of this.
    pub fn is_change(&self) -> bool {
        !matches!(
            self,
            Repair::Stranger { .. }
                | Repair::ManifestSlotDamaged { .. }
                | Repair::CheckpointIgnored { .. }
                | Repair::HoldsDamaged { .. }
                | Repair::SideFileRebuilt { .. }
                | Repair::CheckpointDiffers { .. }
                | Repair::Unreadable { .. }
        )
    }
}
