//! What is known of a broker's transactions in a log that was taken over: which were aborted, and which are still open.
//!
//! All of it follows from the batches. The files beside the log save reading them: they are believed as far as the manifest
//! has their checksums, and made anew from the batches otherwise.

use std::io;
use std::path::PathBuf;

use super::foreign::replay_file;
use super::kafka_state::Producers;
use super::listing::Listing;
use super::manifest::{Manifest, SegmentEntry};
use super::open::{Opening, SMALL_FILE_BYTES_MAX};
use super::repair::{PartitionReport, Repair};
use crate::error::{Error, Result};
use crate::io::replace::replace_file;
use crate::io::{OpenMode, read_small};
use crate::segment::FileCheck;
use crate::segment::name::{Suffix, file_name};
use crate::segment::txn_index::{self, AbortedTxn};

/// What was found out.
#[derive(Debug, Default)]
pub(super) struct Transactions {
    /// Rising by the offset of their markers.
    pub(super) aborted: Vec<AbortedTxn>,
    pub(super) producers: Producers,
    /// Whether the manifest has other checksums now than the one on the disk.
    pub(super) is_manifest_changed: bool,
}

/// An index of aborted transactions, or why it is not believed.
type Index = std::result::Result<Vec<AbortedTxn>, String>;

impl Opening<'_> {
    /// Reads what lies beside the log. What of it is missing or damaged is made anew, and is written again unless this is a
    /// read-only open.
    pub(super) fn load_transactions(
        &self,
        manifest: &mut Manifest,
        listing: &Listing,
        report: &mut PartitionReport,
    ) -> Result<Transactions> {
        let mut found = Transactions::default();
        let mut lost = Vec::new();
        for entry in manifest.segments.iter().filter(|entry| entry.foreign) {
            match self.read_txn_index(entry, listing)? {
                Ok(aborted) => found.aborted.extend(aborted),
                Err(reason) => lost.push((entry.base, reason)),
            }
        }
        let producers = self.read_producers(manifest, listing);
        if lost.is_empty()
            && let Some(producers) = producers
        {
            found.aborted.sort_by_key(|txn| txn.last_offset);
            return Ok(Transactions { producers, ..found });
        }
        let (aborted, replayed) = self.replay(manifest, listing)?;
        for (base, reason) in lost {
            let Some(entry) = manifest.segments.iter_mut().find(|entry| entry.base == base) else { continue };
            let here = aborted.iter().copied().filter(|txn| (entry.base..entry.next).contains(&txn.last_offset));
            let here: Vec<AbortedTxn> = here.collect();
            let bytes = txn_index::encode(&here);
            let name = file_name(base, Suffix::TxnIndex);
            if !self.env.read_only {
                replace_file(&*self.env.vfs, &self.directory, &name, &bytes, true)?;
            }
            // Where retention took the begin of a transaction, it is not what it was.
            let check = Some(FileCheck::of(&bytes));
            found.is_manifest_changed |= entry.txn_index != check;
            entry.txn_index = check;
            found.aborted.extend(here);
            report.repairs.push(Repair::SideFileRebuilt { path: self.directory.join(name), reason });
        }
        found.aborted.sort_by_key(|txn| txn.last_offset);
        found.producers = producers.unwrap_or_else(|| {
            // The close writes the file.
            found.is_manifest_changed = true;
            manifest.producers = Some(FileCheck::of(&replayed.encode_snapshot()));
            let end = manifest.active().map_or(0, |entry| entry.next);
            let path = self.directory.join(file_name(end, Suffix::Snapshot));
            let reason = "no snapshot of the producers is the one that the manifest means".into();
            report.repairs.push(Repair::SideFileRebuilt { path, reason });
            replayed
        });
        Ok(found)
    }

    fn read_txn_index(&self, entry: &SegmentEntry, listing: &Listing) -> Result<Index> {
        let is_there = listing.side_files.contains(&(entry.base, Suffix::TxnIndex));
        let check = match entry.txn_index {
            None if is_there => return Ok(Err("the manifest does not list it".into())),
            None => return Ok(Ok(Vec::new())),
            Some(_) if !is_there => return Ok(Err("missing".into())),
            Some(check) => check,
        };
        let path = self.directory.join(file_name(entry.base, Suffix::TxnIndex));
        let bytes = match read_small(&*self.env.vfs, &path, check.bytes.min(SMALL_FILE_BYTES_MAX)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return Ok(Err(error.to_string())),
            Err(error) => return Err(Error::io("read", &path, error)),
        };
        if FileCheck::of(&bytes) != check {
            return Ok(Err("it does not match its checksum in the manifest".into()));
        }
        Ok(txn_index::decode(&bytes, entry.base))
    }

    /// Producer state from the newest snapshot that holds. A store of ours changes the state only by taking a broker's
    /// directory over, and writes it at every roll and close; `None` if none of the snapshots is that one.
    fn read_producers(&self, manifest: &Manifest, listing: &Listing) -> Option<Producers> {
        let end = manifest.active().map_or(0, |entry| entry.next);
        let is_long_enough = |bytes: u64| manifest.producers.is_none_or(|check| check.bytes == bytes);
        for (&offset, &bytes) in listing.snapshots.range(..=end).rev().filter(|(_, bytes)| is_long_enough(**bytes)) {
            if manifest.producers.is_none() && bytes == Producers::EMPTY_SNAPSHOT_BYTES as u64 {
                return Some(Producers::default());
            }
            let path = self.directory.join(file_name(offset, Suffix::Snapshot));
            let Ok(read) = read_small(&*self.env.vfs, &path, SMALL_FILE_BYTES_MAX) else { continue };
            let is_meant = manifest.producers.is_none_or(|check| check == FileCheck::of(&read));
            if let Some(producers) = Producers::decode_snapshot(&read).ok().filter(|_| is_meant) {
                return Some(producers);
            }
        }
        manifest.producers.is_none().then(Producers::default)
    }

    /// Goes through all batches that a broker wrote. They were whole when the directory was taken over.
    fn replay(&self, manifest: &Manifest, listing: &Listing) -> Result<(Vec<AbortedTxn>, Producers)> {
        let (mut aborted, mut producers) = (Vec::new(), Producers::default());
        for entry in manifest.segments.iter().filter(|entry| entry.foreign) {
            let path = self.log_path(entry.base, manifest, listing);
            let file = self.env.vfs.open(&path, OpenMode::Read).map_err(|error| Error::io("open", &path, error))?;
            let scan = replay_file(&*file, entry.base, i64::MIN, &mut producers, &mut aborted)
                .map_err(|error| Error::io("read", &path, error))?;
            if scan.position < entry.bytes {
                return Err(Error::Corrupt {
                    path,
                    position: scan.position,
                    offsets: Some((scan.next_offset.into(), entry.next.max(scan.next_offset).into())),
                    what: "the batch is damaged, and so is what lies beside the log: which transactions were aborted \
                           cannot be told"
                        .into(),
                });
            }
        }
        Ok((aborted, producers))
    }

    /// Where a log is while an exchange of segments is seen through.
    fn log_path(&self, base: i64, manifest: &Manifest, listing: &Listing) -> PathBuf {
        let is_new = manifest.pending.as_ref().is_some_and(|pending| pending.by == Some(base));
        let in_transit = listing.in_transit.get(&base).filter(|_| is_new).map(|(name, _)| name.clone());
        self.directory.join(in_transit.unwrap_or_else(|| file_name(base, Suffix::Log)))
    }
}
