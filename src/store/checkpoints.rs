//! Kafka's own text files in the root: written so that a broker can load the directory, read as hints only.
//!
//! ```text
//! <name>-checkpoint: "0\n" | number of entries "\n" | "<topic> <partition> <offset>\n" each     (Kafka: OffsetCheckpointFile)
//! .kafka_cleanshutdown: {"version":0,"brokerEpoch":-1}
//! ```

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use crate::error::{Error, Result};
use crate::ids::{TopicName, TopicPartition, Uuid};
use crate::io::replace::{remove_if_there, replace_file};
use crate::io::{Vfs, read_small};

pub(crate) const RECOVERY_POINT: &str = "recovery-point-offset-checkpoint";
pub(crate) const LOG_START: &str = "log-start-offset-checkpoint";
pub(crate) const HIGH_WATERMARK: &str = "replication-offset-checkpoint";
pub(crate) const CLEANER: &str = "cleaner-offset-checkpoint";
pub(crate) const CLEAN_SHUTDOWN: &str = ".kafka_cleanshutdown";
const CLEAN_SHUTDOWN_TEXT: &str = r#"{"version":0,"brokerEpoch":-1}"#;
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Offsets by partition.
pub(crate) type Offsets = BTreeMap<TopicPartition, i64>;

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

/// Writes all checkpoints, then, last of all, the marker that says they are true. Durable when this returns. `cleaned` says
/// how far compaction has been; where it never was, a broker's own file stays.
pub(crate) fn write_clean_shutdown(
    vfs: &dyn Vfs,
    root: &Path,
    ends: &Offsets,
    starts: &Offsets,
    cleaned: &Offsets,
) -> Result<()> {
    if !cleaned.is_empty() {
        replace_file(vfs, root, CLEANER, encode(cleaned).as_bytes(), true)?;
    }
    replace_file(vfs, root, RECOVERY_POINT, encode(ends).as_bytes(), true)?;
    replace_file(vfs, root, HIGH_WATERMARK, encode(ends).as_bytes(), true)?;
    replace_file(vfs, root, LOG_START, encode(starts).as_bytes(), true)?;
    replace_file(vfs, root, CLEAN_SHUTDOWN, CLEAN_SHUTDOWN_TEXT.as_bytes(), true)
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
        write_clean_shutdown(&vfs, root, &Offsets::from([(id.clone(), 9)]), &Offsets::new(), &Offsets::new()).unwrap();
        assert_eq!(read(&vfs, root, RECOVERY_POINT).unwrap(), Ok(Offsets::from([(id, 9)])));
        assert_eq!(read(&vfs, root, LOG_START).unwrap(), Ok(Offsets::new()));
        let marker = read_small(&vfs, &root.join(CLEAN_SHUTDOWN), 100).unwrap();
        assert_eq!(marker, br#"{"version":0,"brokerEpoch":-1}"#);
        remove_clean_shutdown(&vfs, root).unwrap();
        assert!(read_small(&vfs, &root.join(CLEAN_SHUTDOWN), 100).is_err());
        assert!(remove_clean_shutdown(&vfs, root).is_ok(), "a second time there is nothing to do");
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
