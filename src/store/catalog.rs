//! The store manifest (`topiclog.manifest.{0,1}`): the authority on which topics exist.
//!
//! JSON in the checksummed frame of [`crate::io::frame`]; generation g lies in slot g mod 2. It changes when a topic is
//! created, altered or deleted, and when a broker's directory is taken over.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::ids::{TopicName, Uuid};
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
    let catalog: Catalog =
        serde_json::from_slice(&slot.payload).map_err(|error| Error::corrupt(&path, 32, error.to_string()))?;
    for topic in &catalog.topics {
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
