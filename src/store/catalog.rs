//! The store manifest (`topiclog.manifest.{0,1}`): the authority on which topics exist.
//!
//! JSON in the checksummed frame of [`crate::io::frame`]; generation g lies in slot g mod 2. It changes when a topic is
//! created, altered or deleted, and when a broker's directory is taken over.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::ids::{TopicName, TopicPartition, Uuid};
use crate::io::Vfs;
use crate::io::replace::TwoSlots;
use crate::topic::TopicConfig;

const NAME: &str = "topiclog.manifest";
const KIND: u16 = 1;
const VERSION: u16 = 2;
const PAYLOAD_BYTES_MAX: usize = 16 << 20;

/// What the manifest says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Catalog {
    pub(crate) store_id: Uuid,
    pub(crate) topics: Vec<TopicEntry>,
    /// Directories of deleted topics that are still to be removed.
    #[serde(default)]
    pub(crate) deleting: Vec<Deleting>,
}

impl Catalog {
    /// Whether a partition is one of a topic that exists.
    pub(crate) fn lists(&self, id: &TopicPartition) -> bool {
        self.topics.iter().any(|entry| entry.name == id.topic && entry.partitions.contains(&id.partition.get()))
    }

    /// Whether a partition is one of a topic that was deleted, and whose directory may still be there.
    pub(crate) fn is_deleting(&self, id: &TopicPartition) -> bool {
        self.deleting.iter().any(|entry| entry.topic == id.topic && entry.partition == id.partition.get())
    }
}

/// One topic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TopicEntry {
    pub(crate) name: TopicName,
    pub(crate) topic_id: Uuid,
    /// Numbers of the partitions that are here.
    pub(crate) partitions: Vec<u32>,
    pub(crate) config: TopicConfig,
}

/// A partition directory of a deleted topic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Deleting {
    pub(crate) topic: TopicName,
    pub(crate) topic_id: Uuid,
    pub(crate) partition: u32,
}

/// What was found of the manifest.
#[derive(Debug)]
pub(crate) struct CatalogRead {
    pub(crate) newest: Option<(u64, Catalog)>,
    /// Copies that are damaged, with the reason.
    pub(crate) damaged: Vec<(std::path::PathBuf, String)>,
}

fn slots(root: &Path) -> TwoSlots<'_> {
    TwoSlots { directory: root, name: NAME, kind: KIND, version: VERSION, payload_bytes_max: PAYLOAD_BYTES_MAX }
}

/// Whether there is a copy of a manifest in a directory, good or not.
pub(crate) fn is_there(vfs: &dyn Vfs, root: &Path) -> Result<bool> {
    Ok(slots(root).read(vfs)?.missing.len() < 2)
}

/// Reads the newest good copy.
pub(crate) fn read(vfs: &dyn Vfs, root: &Path) -> Result<CatalogRead> {
    let slots = slots(root);
    let read = slots.read(vfs)?;
    if let Some((found, max)) = read.newer {
        return Err(Error::unsupported(format!(
            "the manifest of {} has version {found}, this version of topiclog reads up to {max}",
            root.display()
        )));
    }
    let Some(slot) = read.newest else { return Ok(CatalogRead { newest: None, damaged: read.damaged }) };
    let mut damaged = read.damaged;
    // The first generation stands alone; each later one has the one before it beside it.
    damaged.extend(read.missing.into_iter().filter(|_| slot.generation > 1).map(|path| (path, "missing".to_owned())));
    let path = root.join(slots.slot_name(slot.generation));
    let mut catalog: Catalog =
        serde_json::from_slice(&slot.payload).map_err(|error| Error::corrupt(&path, 32, error.to_string()))?;
    for topic in &mut catalog.topics {
        topic.config.settle_level();
        topic.config.check()?;
    }
    Ok(CatalogRead { newest: Some((slot.generation, catalog)), damaged })
}

/// Replaces the manifest; durable when this returns.
pub(crate) fn write(vfs: &dyn Vfs, root: &Path, generation: u64, catalog: &Catalog) -> Result<()> {
    let payload = serde_json::to_vec(catalog).expect("a catalog has string keys only, so JSON can hold it");
    slots(root).write(vfs, generation, &payload, true)
}

/// Whether a slot holds this generation, or cannot be read: asked after a replacement failed.
pub(crate) fn may_hold(vfs: &dyn Vfs, root: &Path, generation: u64) -> bool {
    slots(root).read(vfs).map_or(true, |read| read.newest.is_some_and(|slot| slot.generation >= generation))
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::io::{MemoryVfs, OpenMode, frame, write_all_at};

    const ROOT: &str = "/";

    fn sample(topics: &[&str]) -> Catalog {
        let entry = |name: &&str| TopicEntry {
            name: TopicName::new(name).unwrap(),
            topic_id: Uuid::from_bytes([1; 16]),
            partitions: vec![0, 2],
            config: TopicConfig::default().partitions(3),
        };
        let gone =
            Deleting { topic: TopicName::new("old").unwrap(), topic_id: Uuid::from_bytes([2; 16]), partition: 4 };
        Catalog {
            store_id: Uuid::from_bytes([3; 16]),
            topics: topics.iter().map(entry).collect(),
            deleting: vec![gone],
        }
    }

    fn put(vfs: &MemoryVfs, name: &str, bytes: &[u8]) {
        let file = vfs.open(&Path::new(ROOT).join(name), OpenMode::Create).unwrap();
        file.set_len(0).unwrap();
        write_all_at(&*file, bytes, 0).unwrap();
    }

    #[test]
    fn the_newest_list_of_topics_is_read_back() {
        let vfs = MemoryVfs::new();
        let root = Path::new(ROOT);
        assert!(read(&vfs, root).unwrap().newest.is_none());
        write(&vfs, root, 1, &sample(&[])).unwrap();
        assert!(read(&vfs, root).unwrap().damaged.is_empty(), "the first stands alone");
        write(&vfs, root, 2, &sample(&["a", "b"])).unwrap();
        let found = read(&vfs, root).unwrap();
        assert_eq!((found.newest, found.damaged), (Some((2, sample(&["a", "b"]))), vec![]));
        assert!(may_hold(&vfs, root, 2) && may_hold(&vfs, root, 1) && !may_hold(&vfs, root, 3));
    }

    #[test]
    fn a_lost_copy_is_told_of() {
        let vfs = MemoryVfs::new();
        let root = Path::new(ROOT);
        (1..=3).for_each(|generation| write(&vfs, root, generation, &sample(&["a"])).unwrap());
        put(&vfs, "topiclog.manifest.0", b"x");
        let found = read(&vfs, root).unwrap();
        assert_eq!((found.newest.unwrap().0, found.damaged.len()), (3, 1));
        vfs.remove_file(&root.join("topiclog.manifest.0")).unwrap();
        assert_eq!(read(&vfs, root).unwrap().damaged[0].1, "missing");
    }

    #[test]
    fn a_newer_version_an_unknown_field_and_an_impossible_setting_are_refused() {
        let vfs = MemoryVfs::new();
        let root = Path::new(ROOT);
        let refused = |payload: &[u8], version: u16| {
            put(&vfs, "topiclog.manifest.1", &frame::encode(KIND, version, 1, payload));
            read(&vfs, root).unwrap_err()
        };
        let text = serde_json::to_string(&sample(&["a"])).unwrap();
        assert!(matches!(refused(text.as_bytes(), VERSION + 1), Error::Unsupported { .. }));
        let unknown = text.replacen('{', "{\"quota\":1,", 1);
        assert!(matches!(refused(unknown.as_bytes(), VERSION), Error::Corrupt { .. }));
        let illegal = text.replacen("\"name\":\"a\"", "\"name\":\"../a\"", 1);
        assert!(matches!(refused(illegal.as_bytes(), VERSION), Error::Corrupt { .. }));
        let impossible = text.replacen("\"segment_bytes\":1073741824", "\"segment_bytes\":1", 1);
        assert!(matches!(refused(impossible.as_bytes(), VERSION), Error::Config { .. }));
    }
}
