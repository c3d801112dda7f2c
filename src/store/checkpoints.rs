//! Kafka's own text files in the root: written so that a broker can load the directory, read as hints only.
//!
//! ```text
//! <name>-checkpoint: "0\n" | number of entries "\n" | "<topic> <partition> <offset>\n" each     (Kafka: OffsetCheckpointFile)
//! .kafka_cleanshutdown: {"version":0,"brokerEpoch":-1}
//! ```

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::ids::{TopicName, TopicPartition, Uuid};
use crate::io::replace::{remove_if_there, replace_file};
use crate::io::{DirEntry, EntryKind, Vfs, read_small};
use crate::partition::hints::Hints;

pub(crate) const RECOVERY_POINT: &str = "recovery-point-offset-checkpoint";
pub(crate) const LOG_START: &str = "log-start-offset-checkpoint";
pub(crate) const HIGH_WATERMARK: &str = "replication-offset-checkpoint";
pub(crate) const CLEANER: &str = "cleaner-offset-checkpoint";
pub(crate) const CLEAN_SHUTDOWN: &str = ".kafka_cleanshutdown";
const CLEAN_SHUTDOWN_TEXT: &str = r#"{"version":0,"brokerEpoch":-1}"#;
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Offsets by partition.
pub(crate) type Offsets = BTreeMap<TopicPartition, i64>;

/// What the checkpoints of a broker say of all its partitions, and whether it shut down in order.
#[derive(Debug, Default)]
pub(crate) struct Stated {
    pub(crate) starts: Offsets,
    pub(crate) recovery_points: Offsets,
    pub(crate) was_clean: bool,
}

impl Stated {
    /// What they say of one.
    pub(crate) fn of(&self, id: &TopicPartition) -> Hints {
        let at = |offsets: &Offsets| offsets.get(id).copied();
        Hints { log_start: at(&self.starts), recovery_point: at(&self.recovery_points), was_clean: self.was_clean }
    }
}

/// Reads them; what of them cannot be read says nothing, and is told of with the reason.
pub(crate) fn read_stated(vfs: &dyn Vfs, root: &Path) -> Result<(Stated, Vec<(PathBuf, String)>)> {
    let mut damaged = Vec::new();
    let mut offsets = |name: &str| -> Result<Offsets> {
        let read = read(vfs, root, name)?;
        Ok(read.unwrap_or_else(|reason| {
            damaged.push((root.join(name), reason));
            Offsets::new()
        }))
    };
    let (starts, recovery_points) = (offsets(LOG_START)?, offsets(RECOVERY_POINT)?);
    let listed = vfs.list(root).map_err(|error| Error::io("list", root, error))?;
    let was_clean = listed.iter().any(|entry| entry.name == CLEAN_SHUTDOWN);
    Ok((Stated { starts, recovery_points, was_clean }, damaged))
}

pub(crate) fn encode(offsets: &Offsets) -> String {
    let mut text = format!("0\n{}\n", offsets.len());
    for (id, offset) in offsets {
        text.push_str(&format!("{} {} {offset}\n", id.topic, id.partition));
    }
    text
}

/// Reads a checkpoint back. The text says what is wrong. An empty file, or one with a version alone, has no entries.
pub(crate) fn decode(text: &str) -> std::result::Result<Offsets, String> {
    let mut lines = text.lines();
    match lines.next() {
        None => return Ok(Offsets::new()),
        Some(version) if version.trim() == "0" => {}
        Some(version) => return Err(format!("version {version:?}")),
    }
    let Some(count) = lines.next() else { return Ok(Offsets::new()) };
    let count: usize = count.trim().parse().map_err(|_| format!("count {count:?}"))?;
    let mut offsets = Offsets::new();
    let mut found = 0;
    for line in lines {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [topic, partition, offset] = words.as_slice() else { return Err(format!("line {line:?}")) };
        let name = TopicName::new(topic).map_err(|error| error.to_string())?;
        let partition: u32 = partition.parse().map_err(|_| format!("line {line:?}"))?;
        let offset: i64 = offset.parse().map_err(|_| format!("line {line:?}"))?;
        offsets.insert(TopicPartition::new(name, partition), offset);
        found += 1;
    }
    if found == count { Ok(offsets) } else { Err(format!("{count} entries announced, {found} found")) }
}

/// Reads a checkpoint of the root. A missing one has no entries; what cannot be parsed is returned as text.
pub(crate) fn read(vfs: &dyn Vfs, root: &Path, name: &str) -> Result<std::result::Result<Offsets, String>> {
    let path = root.join(name);
    match read_small(vfs, &path, FILE_BYTES_MAX) {
        Ok(bytes) => Ok(String::from_utf8(bytes).map_err(|_| "not text".to_owned()).and_then(|text| decode(&text))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Ok(Offsets::new())),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(Err(error.to_string())),
        Err(error) => Err(Error::io("read", &path, error)),
    }
}

/// What a store that is closed says of its partitions.
#[derive(Debug, Default)]
pub(crate) struct Said {
    /// Log ends: all below is synced.
    pub(crate) ends: Offsets,
    /// Log starts that lie inside a segment.
    pub(crate) starts: Offsets,
    /// How far compaction has been, where it has.
    pub(crate) cleaned: Offsets,
}

/// Logs in the root that are not the store's: a broker made them, and loads them by the same checkpoints and marker.
#[derive(Debug, Default)]
pub(crate) struct Others {
    /// Those that checkpoints can have entries of.
    pub(crate) partitions: Vec<TopicPartition>,
    /// Whether there is any, be it on its way from or to another directory.
    pub(crate) are_there: bool,
}

impl Others {
    /// Finds them by the names of directories. Kafka reads its own metadata log without checkpoints or marker.
    pub(crate) fn find(listed: &[DirEntry], is_ours: impl Fn(&TopicPartition) -> Result<bool>) -> Result<Self> {
        let mut found = Self::default();
        for entry in listed.iter().filter(|entry| entry.kind == EntryKind::Directory) {
            match TopicPartition::from_directory_name(&entry.name) {
                Some(id) if id.topic.as_str() == "__cluster_metadata" || is_ours(&id)? => continue,
                Some(id) => found.partitions.push(id),
                None if entry.name.ends_with("-future") || entry.name.ends_with("-stray") => {}
                None => continue,
            }
            found.are_there = true;
        }
        Ok(found)
    }
}

/// Writes all checkpoints, then, last of all and if `is_clean`, the marker that says they are true of every log in the root.
/// Durable when this returns. Entries of `others` stay as they are; where compaction never was, a broker's own file of it stays.
pub(crate) fn write_clean_shutdown(
    vfs: &dyn Vfs,
    root: &Path,
    said: &Said,
    others: &Others,
    is_clean: bool,
) -> Result<()> {
    let write = |name: &str, ours: &Offsets| {
        let mut entries =
            if others.partitions.is_empty() { Offsets::new() } else { read(vfs, root, name)?.unwrap_or_default() };
        entries.retain(|id, _| others.partitions.contains(id));
        entries.extend(ours.iter().map(|(id, &offset)| (id.clone(), offset)));
        replace_file(vfs, root, name, encode(&entries).as_bytes(), true)
    };
    if !said.cleaned.is_empty() {
        write(CLEANER, &said.cleaned)?;
    }
    write(RECOVERY_POINT, &said.ends)?;
    write(HIGH_WATERMARK, &said.ends)?;
    write(LOG_START, &said.starts)?;
    if is_clean { replace_file(vfs, root, CLEAN_SHUTDOWN, CLEAN_SHUTDOWN_TEXT.as_bytes(), true) } else { Ok(()) }
}

/// Removes the marker, durably: a broker must never trust a stale one.
pub(crate) fn remove_clean_shutdown(vfs: &dyn Vfs, root: &Path) -> Result<()> {
    if remove_if_there(vfs, &root.join(CLEAN_SHUTDOWN))? {
        vfs.sync_dir(root).map_err(|error| Error::io("sync directory", root, error))?;
    }
    Ok(())
}

/// Reads the topic id of a broker's partition directory; `None` if there is no such file.
pub(crate) fn read_topic_id(vfs: &dyn Vfs, directory: &Path) -> Result<Option<Uuid>> {
    let path = directory.join("partition.metadata");
    let bytes = match read_small(vfs, &path, 4096) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read", &path, error)),
    };
    let text = String::from_utf8_lossy(&bytes);
    let id = text.lines().find_map(|line| line.strip_prefix("topic_id:"));
    match id.map(|id| Uuid::parse(id.trim())) {
        Some(Ok(id)) if *id.as_bytes() != [0; 16] => Ok(Some(id)),
        _ => Err(Error::corrupt(&path, 0, "no topic id, or not a valid one")),
    }
}

/// The ids of topics, as their partitions show them one after the other.
#[derive(Debug, Default)]
pub(crate) struct TopicIds {
    /// With the directory of the partition that showed it first.
    by_name: BTreeMap<TopicName, (Uuid, PathBuf)>,
}

impl TopicIds {
    /// Takes note of what the directory of a partition shows. Fails if another partition of its topic shows another id.
    pub(crate) fn note(&mut self, topic: &TopicName, directory: &Path, topic_id: Uuid) -> Result<()> {
        let (known, first) = self.by_name.entry(topic.clone()).or_insert_with(|| (topic_id, directory.to_owned()));
        if *known == topic_id {
            return Ok(());
        }
        let what = format!(
            "the topic id is {topic_id}, and it is {known} in {}: partitions of two topics or of two copies were mixed; take away \
                 those that do not belong here",
            first.display()
        );
        Err(Error::corrupt(&directory.join("partition.metadata"), 0, what))
    }

    /// The id that a partition of the topic has shown.
    pub(crate) fn of(&self, topic: &TopicName) -> Option<Uuid> {
        self.by_name.get(topic).map(|(topic_id, _)| *topic_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_are_kafkas() {
        let id = |topic: &str, partition: u32| TopicPartition::new(TopicName::new(topic).unwrap(), partition);
        let offsets = Offsets::from([(id("orders", 0), 1234), (id("orders", 11), 98_765_432_109)]);
        assert_eq!(encode(&offsets), "0\n2\norders 0 1234\norders 11 98765432109\n");
        assert_eq!(decode(&encode(&offsets)), Ok(offsets));
        assert_eq!(decode(""), Ok(Offsets::new()));
        assert_eq!(decode("0\n"), Ok(Offsets::new()));
        for bad in ["1\n0\n", "0\n2\na 0 1\n", "0\n1\na 0\n", "0\n1\na/b 0 1\n", "0\n1\na -1 1\n", "0\nx\n"] {
            assert!(decode(bad).is_err(), "{bad:?}");
        }
    }

    fn put(vfs: &dyn Vfs, name: &str, bytes: &[u8]) {
        replace_file(vfs, Path::new("/"), name, bytes, true).unwrap();
    }

    #[test]
    fn a_checkpoint_that_is_not_there_is_empty_and_one_that_is_not_text_is_told_of() {
        let vfs = crate::io::MemoryVfs::new();
        let read = |vfs: &dyn Vfs| read(vfs, Path::new("/"), LOG_START).unwrap();
        assert_eq!(read(&vfs), Ok(Offsets::new()));
        put(&vfs, LOG_START, &[0xff, 0xfe]);
        assert_eq!(read(&vfs), Err("not text".to_owned()));
        put(&vfs, LOG_START, b"0\n1\nt 0 7\n");
        assert_eq!(read(&vfs).unwrap().into_values().collect::<Vec<_>>(), [7]);
    }

    #[test]
    fn the_marker_is_written_last_and_taken_away_once() {
        let vfs = crate::io::MemoryVfs::new();
        let root = Path::new("/");
        let id = TopicPartition::new(TopicName::new("t").unwrap(), 3);
        let said = Said { ends: Offsets::from([(id.clone(), 9)]), ..Said::default() };
        write_clean_shutdown(&vfs, root, &said, &Others::default(), true).unwrap();
        assert_eq!(read(&vfs, root, RECOVERY_POINT).unwrap(), Ok(Offsets::from([(id, 9)])));
        assert_eq!(read(&vfs, root, LOG_START).unwrap(), Ok(Offsets::new()));
        let marker = read_small(&vfs, &root.join(CLEAN_SHUTDOWN), 100).unwrap();
        assert_eq!(marker, br#"{"version":0,"brokerEpoch":-1}"#);
        remove_clean_shutdown(&vfs, root).unwrap();
        assert!(read_small(&vfs, &root.join(CLEAN_SHUTDOWN), 100).is_err());
        assert!(remove_clean_shutdown(&vfs, root).is_ok(), "a second time there is nothing to do");
    }

    #[test]
    fn logs_of_others_are_told_by_their_names() {
        let entry = |name: &str, kind| DirEntry { name: name.to_owned(), kind, bytes: 0, modified_ms: 0 };
        let check = |names: &[&str], partitions: &[&str], are_there| {
            let listed: Vec<_> = names.iter().map(|name| entry(name, EntryKind::Directory)).collect();
            let found = Others::find(&listed, |id| Ok(id.topic.as_str() == "ours")).unwrap();
            let names: Vec<String> = found.partitions.iter().map(TopicPartition::directory_name).collect();
            assert_eq!(
                (names.iter().map(String::as_str).collect::<Vec<_>>(), found.are_there),
                (partitions.to_vec(), are_there)
            );
        };
        check(&["ours-0", "ours-3", "__cluster_metadata-0", "lost+found"], &[], false);
        check(&["ours-0", "theirs-1"], &["theirs-1"], true);
        check(&["t-0.0123456789abcdef0123456789abcdef-stray"], &[], true);
        check(&["t-0.0123456789abcdef0123456789abcdef-delete"], &[], false);
        assert!(!Others::find(&[entry("theirs-1", EntryKind::File)], |_| Ok(false)).unwrap().are_there);
    }

    #[test]
    fn a_topic_id_is_read_or_refused() {
        let vfs = crate::io::MemoryVfs::new();
        let read = |text: &str| {
            put(&vfs, "partition.metadata", text.as_bytes());
            read_topic_id(&vfs, Path::new("/"))
        };
        assert!(matches!(read_topic_id(&vfs, Path::new("/")), Ok(None)));
        let id = Uuid::from_bytes([7; 16]);
        assert_eq!(read(&format!("version: 0\ntopic_id: {id}")).unwrap(), Some(id));
        assert_eq!(read(&format!("version: 0\ntopic_id: {id}\n")).unwrap(), Some(id));
        for bad in ["", "version: 0\n", "topic_id: x", "topic_id: AAAAAAAAAAAAAAAAAAAAAA"] {
            assert!(matches!(read(bad), Err(Error::Corrupt { .. })), "{bad:?}");
        }
    }
}
