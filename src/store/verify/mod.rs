//! A look at every byte of a directory that changes nothing: [`verify`].
//!
//! It takes no lock and repairs nothing; of a store it checks all that its manifests promise, of a plain Kafka directory
//! all that Kafka's formats let one check. Here are the walk over the directory and the report: what a partition has to
//! hold is known to `partition_check`, and what a log has to hold to `log_check`.

mod log_check;
mod partition_check;

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use self::partition_check::PartitionCheck;
use super::catalog::{self, Catalog};
use super::checkpoints::{self, TopicIds};
use super::open::partition_directories;
use crate::error::{Error, Result};
use crate::ids::{Offset, TopicPartition};
use crate::io::{DiskVfs, EntryKind, Vfs};
use crate::partition::manifest;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Severity {
    /// Bytes are not what was written, or something is missing.
    Damage,
    /// Worth knowing, and no damage: a torn tail that the next open cuts, a file of others, a codec that is not built in.
    Notice,
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The file.
    pub path: PathBuf,
    /// The byte position in it, where there is one.
    pub position: Option<u64>,
    /// The offset from which on records are concerned, where known.
    pub offset: Option<Offset>,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = if self.severity == Severity::Damage { "damage" } else { "notice" };
        write!(f, "{severity}: {}", self.path.display())?;
        if let Some(position) = self.position {
            write!(f, " at position {position}")?;
        }
        if let Some(offset) = self.offset {
            write!(f, ", offset {offset}")?;
        }
        write!(f, ": {}", self.what)
    }
}

/// What [`verify`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Everything, in the order in which it was found.
    pub findings: Vec<Finding>,
    /// Partitions that were looked at.
    pub partitions: usize,
    /// Segments that were looked at.
    pub segments: usize,
    /// Good batches, and entries of the old formats.
    pub batches: u64,
    /// Records in them, as their headers say.
    pub records: u64,
    /// Bytes of good batches.
    pub bytes: u64,
}

impl VerifyReport {
    /// The findings that are damage.
    pub fn damages(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.severity == Severity::Damage)
    }

    fn add(&mut self, severity: Severity, path: &Path, position: Option<u64>, what: impl Into<String>) {
        let what = what.into();
        self.findings.push(Finding { severity, path: path.to_owned(), position, offset: None, what });
    }

    fn damage(&mut self, path: &Path, position: Option<u64>, what: impl Into<String>) {
        self.add(Severity::Damage, path, position, what);
    }

    fn notice(&mut self, path: &Path, position: Option<u64>, what: impl Into<String>) {
        self.add(Severity::Notice, path, position, what);
    }
}

/// Checks a store, or a plain Kafka log directory, on the disk. Changes nothing and takes no lock: beside a live writer
/// the tail of an active segment may look torn, which is a notice.
///
/// # Errors
/// [`Error::Io`] if the directory cannot be read at all, [`Error::Unsupported`] if a newer version wrote it. What is
/// wrong *in* it is in the report.
///
/// ```
/// use topiclog::{Record, Store, TopicConfig, verify};
/// # let directory = tempfile::tempdir().unwrap();
/// # let path = directory.path().join("data");
/// let store = Store::open(&path)?;
/// store.create_topic("t", TopicConfig::default())?.append(Record::of_value("v"))?;
/// store.close()?;
/// let report = verify(&path)?;
/// assert_eq!((report.records, report.damages().count()), (1, 0));
/// # Ok::<(), topiclog::Error>(())
/// ```
pub fn verify(path: impl AsRef<Path>) -> Result<VerifyReport> {
    verify_on(&DiskVfs::new(), path.as_ref())
}

/// [`verify`] on another file system than the disk.
///
/// # Errors
/// As [`verify`].
pub fn verify_on(vfs: &dyn Vfs, root: &Path) -> Result<VerifyReport> {
    let mut report = VerifyReport::default();
    let listed = vfs.list(root).map_err(|error| Error::io("list", root, error))?;
    let (stated, _) = checkpoints::read_stated(vfs, root)?;
    for name in [checkpoints::RECOVERY_POINT, checkpoints::LOG_START, checkpoints::HIGH_WATERMARK, checkpoints::CLEANER]
    {
        if let Err(why) = checkpoints::read(vfs, root, name)? {
            report.damage(&root.join(name), None, why);
        }
    }
    let read = catalog::read(vfs, root)?;
    for (path, why) in &read.damaged {
        report.damage(path, None, why.clone());
    }
    let catalog = read.newest.map(|(_, catalog)| catalog);
    if catalog.is_none() && !read.damaged.is_empty() {
        report.damage(root, None, "neither copy of the store manifest can be read");
    }
    let mut is_told = catalog.is_some() || !read.damaged.is_empty();
    let mut expected: BTreeSet<TopicPartition> = BTreeSet::new();
    for entry in catalog.iter().flat_map(|catalog| &catalog.topics) {
        let ids = entry.partitions.iter().map(|&partition| TopicPartition::new(entry.name.clone(), partition));
        expected.extend(ids);
    }
    for entry in listed.iter().filter(|entry| entry.kind == EntryKind::Other) {
        if TopicPartition::from_directory_name(&entry.name).is_some() {
            report.notice(
                &root.join(&entry.name),
                None,
                "named like a partition, but no directory; it is not followed",
            );
        }
    }
    for entry in listed.iter().filter(|entry| entry.kind == EntryKind::Directory) {
        let path = root.join(&entry.name);
        match TopicPartition::from_directory_name(&entry.name) {
            Some(id) if id.topic.as_str() == "__cluster_metadata" => {}
            Some(id) => {
                let is_listed = expected.remove(&id);
                if catalog.is_some() && !is_listed {
                    report.notice(&path, None, "no topic of the store lists this partition");
                    continue;
                }
                report.partitions += 1;
                if !is_told && has_manifest(vfs, &path)? {
                    let what = "a partition here has a manifest of this library, and the store has none: it was lost, or an \
                                adoption was interrupted";
                    report.damage(root, None, what);
                    is_told = true;
                }
                let (hints, was_clean) = (stated.of(&id), stated.was_clean);
                let mut partition = PartitionCheck { vfs, directory: &path, report: &mut report, hints, was_clean };
                partition.run(catalog.as_ref(), &id)?;
            }
            None => report.notice(&path, None, "not a partition; left alone"),
        }
    }
    check_topic_ids(vfs, root, &partition_directories(&listed), catalog.as_ref(), &mut report);
    for id in expected {
        report.damage(&root.join(id.directory_name()), None, "the store lists this partition, but it is missing");
    }
    Ok(report)
}

/// Partitions of one topic have one topic id. A file of it that cannot be read is told of elsewhere.
fn check_topic_ids(
    vfs: &dyn Vfs,
    root: &Path,
    ids: &[TopicPartition],
    catalog: Option<&Catalog>,
    report: &mut VerifyReport,
) {
    let mut topic_ids = TopicIds::default();
    for id in ids.iter().filter(|id| catalog.is_none_or(|catalog| catalog.lists(id))) {
        let directory = root.join(id.directory_name());
        if let Ok(Some(topic_id)) = checkpoints::read_topic_id(vfs, &directory)
            && let Err(Error::Corrupt { path, what, .. }) = topic_ids.note(&id.topic, &directory, topic_id)
        {
            report.damage(&path, None, what);
        }
    }
}

fn has_manifest(vfs: &dyn Vfs, directory: &Path) -> Result<bool> {
    let listed = vfs.list(directory).map_err(|error| Error::io("list", directory, error))?;
    Ok(listed
        .iter()
        .any(|entry| entry.name.strip_prefix(manifest::NAME).is_some_and(|slot| matches!(slot, ".0" | ".1"))))
}
