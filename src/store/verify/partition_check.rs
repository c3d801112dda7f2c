//! The check of one partition's directory: its manifest and small files, and what they say is missing or too much.
//!
//! It knows which logs there are and where each begins and may end. What is in a log it does not look at.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use super::log_check::LogCheck;
use super::{Finding, Severity, VerifyReport};
use crate::error::{Error, Result};
use crate::ids::TopicPartition;
use crate::io::{Vfs, read_small};
use crate::partition::floor::{self, Kind};
use crate::partition::foreign::{Exchange, NO_FILE};
use crate::partition::hints::{self, Hints, Missing};
use crate::partition::kafka_state::{self, Producers};
use crate::partition::listing::{Listing, list};
use crate::partition::manifest::{self, EntryState, Manifest};
use crate::partition::quarantine;
use crate::segment::name::{self, Suffix, file_name};
use crate::segment::recover::Stop;
use crate::segment::txn_index;
use crate::store::catalog::Catalog;
use crate::store::checkpoints;

/// A longer file beside the logs is none of Kafka's.
const SMALL_FILE_BYTES_MAX: u64 = 64 << 20;

pub(super) struct PartitionCheck<'a> {
    pub(super) vfs: &'a dyn Vfs,
    pub(super) directory: &'a Path,
    pub(super) report: &'a mut VerifyReport,
    pub(super) hints: Hints,
    /// Whether the directory was left in order, so that nothing may be torn.
    pub(super) was_clean: bool,
}

impl PartitionCheck<'_> {
    pub(super) fn run(&mut self, catalog: Option<&Catalog>, id: &TopicPartition) -> Result<()> {
        let mut listing = list(self.vfs, self.directory)?;
        self.small_files(&listing)?;
        let Some(catalog) = catalog else {
            self.foreign(&mut listing)?;
            return Ok(());
        };
        let slots = manifest::slots(self.directory);
        let read = slots.read(self.vfs)?;
        if let Some((found, max)) = read.newer {
            let path = self.directory.display();
            return Err(Error::unsupported(format!("the manifest in {path} has version {found}, known is {max}")));
        }
        for (path, why) in &read.damaged {
            self.report.damage(path, None, why.clone());
        }
        let Some(slot) = read.newest else {
            self.report.damage(self.directory, None, "no copy of the partition manifest can be read");
            self.foreign(&mut listing)?;
            return Ok(());
        };
        for path in read.missing.iter().filter(|_| slot.generation > 1) {
            self.report.damage(path, None, "this copy of the manifest is missing");
        }
        let path = self.directory.join(slots.slot_name(slot.generation));
        match Manifest::decode(&slot.payload) {
            Ok(manifest) => {
                let topic = catalog.topics.iter().find(|entry| entry.name == id.topic);
                if manifest.store_id != catalog.store_id
                    || topic.is_some_and(|topic| topic.topic_id != manifest.topic_id)
                {
                    self.report.damage(&path, None, "it belongs to another store or topic");
                }
                self.ours(&manifest, slot.generation, &listing)
            }
            Err(why) => {
                self.report.damage(&path, None, why);
                Ok(())
            }
        }
    }

    fn foreign(&mut self, listing: &mut Listing) -> Result<()> {
        let exchange = match Exchange::find(self.vfs, self.directory) {
            Ok(exchange) => exchange,
            Err(Error::Corrupt { path, position, what, .. }) => {
                self.report.damage(&path, Some(position), what);
                Exchange::default()
            }
            Err(error) => return Err(error),
        };
        let of_log = exchange.finished.iter().find(|name| name.ends_with(".log.swap"));
        if let Some(name) = of_log.or(exchange.finished.first()) {
            let what = "an exchange of segments was interrupted: this file stands for those that it replaces";
            self.report.notice(&self.directory.join(name), None, what);
        }
        exchange.see_through(listing);
        let bases: Vec<i64> = listing.logs.keys().copied().collect();
        let mut ends = BTreeMap::new();
        for (index, &base) in bases.iter().enumerate() {
            let next_base = bases.get(index + 1).copied();
            let exchange = Some(&exchange);
            let found = self.log(&LogCheck { base, manifest: None, entry: None, next_base, floor: None, exchange })?;
            if !matches!(found.stop, Stop::Unsupported(_)) {
                ends.insert(base, found.next_offset);
            }
        }
        self.missing(listing, &ends);
        Ok(())
    }

    /// What a broker's checkpoints and index files prove to be missing, by where each log ends.
    fn missing(&mut self, listing: &Listing, ends: &BTreeMap<i64, i64>) {
        let last = listing.logs.keys().next_back();
        let end = last.map_or(Some(0), |last| ends.get(last).copied());
        if let Some(missing) = end.and_then(|end| self.hints.missing(end)) {
            self.missing_from(self.directory, missing);
        }
        if let Some(what) = end.and_then(|end| self.hints.surplus(end)) {
            self.report.notice(self.directory, None, what);
        }
        for orphan in hints::orphans(listing, ends) {
            let path = self.directory.join(file_name(orphan.base, orphan.suffix));
            match orphan.missing {
                Some(missing) => self.missing_from(&path, missing),
                None => self.report.notice(&path, None, "an index without a log"),
            }
        }
    }

    fn missing_from(&mut self, path: &Path, missing: Missing) {
        let (severity, offset) = (Severity::Damage, Some(missing.from.into()));
        self.report.findings.push(Finding {
            severity,
            path: path.to_owned(),
            position: None,
            offset,
            what: missing.what,
        });
    }

    fn ours(&mut self, manifest: &Manifest, generation: u64, listing: &Listing) -> Result<()> {
        let floor = floor::read(self.vfs, self.directory)?;
        let is_clean = floor.is_some_and(|floor| floor.kind == Kind::Clean && floor.generation == generation);
        self.was_clean = is_clean;
        if floor.is_none() {
            self.report.damage(&self.directory.join(floor::NAME), None, "no entry of the recovery floor can be read");
        }
        let in_transit = manifest.pending.as_ref().map_or(&[][..], |pending| pending.replace.as_slice());
        if let Some(base) = in_transit.iter().find(|base| listing.is_in_transit(**base)) {
            let path = self.directory.join(file_name(*base, Suffix::Log));
            self.report.notice(&path, None, "an exchange of segments was interrupted; the next open goes on with it");
        }
        for (index, entry) in manifest.segments.iter().enumerate() {
            let path = self.directory.join(file_name(entry.base, Suffix::Log));
            if in_transit.contains(&entry.base) && listing.is_in_transit(entry.base) {
                continue;
            }
            let Some(&bytes) = listing.logs.get(&entry.base) else {
                self.report.damage(&path, None, "the manifest lists this segment, but it is missing");
                continue;
            };
            let must_be = match entry.state {
                EntryState::Sealed => Some(entry.bytes),
                EntryState::Active if is_clean => Some(entry.bytes),
                _ => None,
            };
            if must_be.is_some_and(|must_be| must_be != bytes) {
                self.report.damage(&path, None, format!("{bytes} bytes long, the manifest says {}", entry.bytes));
            }
            let next_base = manifest.segments.get(index + 1).map(|next| next.base);
            let (base, manifest, entry) = (entry.base, Some(manifest), Some(entry));
            self.log(&LogCheck { base, manifest, entry, next_base, floor, exchange: None })?;
        }
        for (&base, &bytes) in &listing.logs {
            if bytes > 0 && manifest.segments.iter().all(|entry| entry.base != base) && !in_transit.contains(&base) {
                let path = self.directory.join(file_name(base, Suffix::Log));
                self.report.damage(&path, None, "records in a segment that the manifest does not list");
            }
        }
        Ok(())
    }

    /// Reads a file that others may have removed meanwhile. One that is too long is a finding.
    pub(super) fn read_small(&mut self, path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>> {
        match read_small(self.vfs, path, bytes_max) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                self.report.damage(path, None, error.to_string());
                Ok(None)
            }
            Err(error) => Err(Error::io("read", path, error)),
        }
    }

    /// Files whose contents can be judged by themselves.
    fn small_files(&mut self, listing: &Listing) -> Result<()> {
        for &offset in listing.snapshots.keys() {
            let path = self.directory.join(file_name(offset, Suffix::Snapshot));
            let Some(bytes) = self.read_small(&path, SMALL_FILE_BYTES_MAX)? else { continue };
            if let Err(why) = Producers::decode_snapshot(&bytes) {
                self.report.damage(&path, None, why);
            }
        }
        for &(base, _) in listing.side_files.iter().filter(|(_, suffix)| *suffix == Suffix::TxnIndex) {
            let path = self.directory.join(file_name(base, Suffix::TxnIndex));
            let Some(bytes) = self.read_small(&path, SMALL_FILE_BYTES_MAX)? else { continue };
            if let Err(why) = txn_index::decode(&bytes, base) {
                self.report.damage(&path, None, why);
            } else if bytes.len() % txn_index::ENTRY_BYTES != 0 {
                self.report.damage(&path, None, "the last entry is cut short");
            }
        }
        let path = self.directory.join(kafka_state::EPOCHS_NAME);
        match read_small(self.vfs, &path, SMALL_FILE_BYTES_MAX) {
            Ok(bytes) => {
                let text = String::from_utf8_lossy(&bytes).into_owned();
                if let Err(why) = kafka_state::decode_epochs(&text) {
                    self.report.damage(&path, None, why);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("read", &path, error)),
        }
        if let Err(error) = checkpoints::read_topic_id(self.vfs, self.directory) {
            self.report.damage(&self.directory.join("partition.metadata"), None, error.to_string());
        }
        let no_files: Vec<String> = listing.no_files().map(|base| file_name(base, Suffix::Log)).collect();
        for name in &no_files {
            self.report.damage(&self.directory.join(name), None, NO_FILE);
        }
        for name in listing.strangers().iter().filter(|name| !no_files.contains(name)) {
            let is_swap = name.strip_suffix(".swap").and_then(name::parse).is_some();
            let what =
                if is_swap { "part of an exchange of segments" } else { "not a file of Kafka or of this library" };
            self.report.notice(&self.directory.join(name), None, what);
        }
        let quarantined = self.directory.join(quarantine::DIRECTORY);
        match self.vfs.list(&quarantined) {
            Ok(kept) if !kept.is_empty() => {
                self.report.notice(&quarantined, None, format!("{} files that a recovery cut off", kept.len()));
            }
            _ => {}
        }
        Ok(())
    }
}
