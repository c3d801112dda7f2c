//! What is in a partition's directory, by the names and lengths of its files.

use std::collections::BTreeMap;
use std::path::Path;

use super::manifest::Manifest;
use super::{kafka_state, key_queue, manifest, quarantine, swap};
use crate::error::{Error, Result};
use crate::io::{EntryKind, Vfs};
use crate::segment::name::{self, Suffix};

/// What is in the directory.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// Length of each `.log` file by base offset.
    pub(crate) logs: BTreeMap<i64, u64>,
    /// Length of each `.snapshot` file by offset.
    pub(crate) snapshots: BTreeMap<i64, u64>,
    pub(crate) side_files: Vec<(i64, Suffix)>,
    /// When each `.log` file was last written to, by base offset.
    pub(crate) written_ms: BTreeMap<i64, i64>,
    /// New logs that do not have their final name yet, by base offset, with their length.
    pub(super) in_transit: BTreeMap<i64, (String, u64)>,
    pub(super) temporary: Vec<String>,
    pub(super) strangers: Vec<String>,
}

impl Listing {
    /// Names that neither Kafka nor this library gives.
    pub(crate) fn strangers(&self) -> &[String] {
        &self.strangers
    }

    /// Base offsets of logs in whose place there is something that is no regular file.
    pub(crate) fn no_files(&self) -> impl Iterator<Item = i64> {
        self.strangers
            .iter()
            .filter_map(|name| name::parse(name))
            .filter(|(_, suffix)| *suffix == Suffix::Log)
            .map(|(base, _)| base)
    }

    /// Offsets of the snapshots that nobody needs, as Kafka has it: neither the base of a segment nor the newest at or below
    /// the log end.
    pub(super) fn stray_snapshots(&self, manifest: &Manifest, end: i64) -> Vec<i64> {
        let Some((&newest, _)) = self.snapshots.range(..=end).next_back() else { return Vec::new() };
        let is_base = |offset: i64| manifest.segments.iter().any(|entry| entry.base == offset);
        self.snapshots.keys().copied().filter(|&offset| offset != newest && !is_base(offset)).collect()
    }

    /// Whether the new log of a segment waits for its final name.
    pub(crate) fn is_in_transit(&self, base: i64) -> bool {
        self.in_transit.contains_key(&base)
    }
}

pub(crate) fn list(vfs: &dyn Vfs, directory: &Path) -> Result<Listing> {
    let mut listing = Listing::default();
    let entries = vfs.list(directory).map_err(|error| Error::io("list", directory, error))?;
    for entry in entries {
        match (name::parse(&entry.name), entry.kind) {
            (Some((base, Suffix::Log)), EntryKind::File) => {
                listing.logs.insert(base, entry.bytes);
                listing.written_ms.insert(base, entry.modified_ms);
            }
            (Some((base, Suffix::Snapshot)), EntryKind::File) => {
                listing.snapshots.insert(base, entry.bytes);
            }
            (Some((base, suffix)), EntryKind::File) => listing.side_files.push((base, suffix)),
            _ if swap::transit_base(&entry.name).is_some() && entry.kind == EntryKind::File => {
                let base = swap::transit_base(&entry.name).unwrap_or_default();
                if swap::is_trash(&entry.name) {
                    listing.temporary.push(entry.name.clone());
                }
                listing.in_transit.insert(base, (entry.name, entry.bytes));
            }
            _ if is_ours_in_transit(&entry.name) && entry.kind == EntryKind::File => listing.temporary.push(entry.name),
            _ if is_known(&entry.name) => {}
            _ => listing.strangers.push(entry.name),
        }
    }
    Ok(listing)
}

/// Files that an interrupted replacement of ours leaves.
fn is_ours_in_transit(name: &str) -> bool {
    if swap::is_trash(name) {
        return true;
    }
    let Some(target) = name.strip_suffix(".tmp") else { return false };
    target.starts_with(manifest::NAME)
        || target == key_queue::INDEX_NAME
        || name::parse(target).is_some()
        || target == kafka_state::EPOCHS_NAME
}

fn is_known(name: &str) -> bool {
    name.starts_with("topiclog.")
        || matches!(name, kafka_state::EPOCHS_NAME | "partition.metadata" | quarantine::DIRECTORY)
}
