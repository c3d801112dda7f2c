//! How a store is opened: components are trait objects, settings are plain values.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use super::Store;
use super::events::{Listener, UpkeepEvent};
use crate::clock::{Clock, SystemClock};
use crate::error::Result;
use crate::io::{DiskVfs, Vfs};
use crate::segment::cursor::Verify;
use crate::segment::log_file::ReadPath;

/// Who keeps the windows of `Interval`, seals closed segments and gives unused space back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Upkeep {
    /// One thread of the store's own, `topiclog-upkeep`.
    #[default]
    Thread,
    /// Nobody: call [`Store::tick`] by hand. Appends keep the windows of `Interval` by their size.
    Manual,
}

/// Opens a store with other components or limits than [`Store::open`].
///
/// ```
/// use std::sync::Arc;
/// use topiclog::{Store, TopicConfig, Upkeep, clock::ManualClock, io::MemoryVfs};
/// let clock = Arc::new(ManualClock::new(0));
/// let store = Store::builder().vfs(Arc::new(MemoryVfs::new())).clock(clock).upkeep(Upkeep::Manual).open("/data")?;
/// store.create_topic("events", TopicConfig::default())?;
/// store.close()?;
/// # Ok::<(), topiclog::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct StoreBuilder {
    pub(crate) vfs: Arc<dyn Vfs>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) upkeep: Upkeep,
    pub(crate) read_only: bool,
    pub(crate) creates: bool,
    pub(crate) read_path: ReadPath,
    pub(crate) verify: Verify,
    pub(crate) open_files_max: usize,
    pub(crate) topics_max: usize,
    pub(crate) without_locks: bool,
    pub(crate) id_seed: Option<u64>,
    pub(crate) key_index_memory_bytes: usize,
    pub(crate) compaction_memory_bytes: usize,
    pub(crate) compaction_step_bytes: u64,
    pub(crate) compaction_bytes_per_second: u64,
    /// `None`: as the file system asks for.
    pub(crate) reserve_bytes: Option<u64>,
    pub(crate) is_on_disk: bool,
    pub(crate) listener: Option<Hears>,
}

/// A listener that can be printed.
#[derive(Clone)]
pub(crate) struct Hears(pub(crate) Listener);

impl fmt::Debug for Hears {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("listener")
    }
}

impl Default for StoreBuilder {
    fn default() -> Self {
        Self {
            vfs: Arc::new(DiskVfs::new()),
            clock: Arc::new(SystemClock),
            upkeep: Upkeep::Thread,
            read_only: false,
            creates: true,
            read_path: ReadPath::Mapped,
            verify: Verify::Once,
            open_files_max: 512,
            topics_max: 10_000,
            without_locks: false,
            id_seed: None,
            key_index_memory_bytes: 256 << 20,
            compaction_memory_bytes: 32 << 20,
            compaction_step_bytes: 8 << 20,
            compaction_bytes_per_second: u64::MAX,
            reserve_bytes: None,
            is_on_disk: true,
            listener: None,
        }
    }
}

impl StoreBuilder {
    /// The file system: the disk, memory, or one that fails on purpose.
    #[must_use]
    pub fn vfs(mut self, vfs: Arc<dyn Vfs>) -> Self {
        self.vfs = vfs;
        self.is_on_disk = false;
        self
    }

    /// Where time comes from.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Who does the upkeep.
    #[must_use]
    pub fn upkeep(mut self, upkeep: Upkeep) -> Self {
        self.upkeep = upkeep;
        self
    }

    /// Opens what is there for reading, and writes no byte: beside a live writer, on a read-only mount, or a directory of
    /// Kafka's. It shows the log as of the open, up to the last whole batch, whatever the writer compacts or deletes
    /// meanwhile: the log files are held open, up to [`open_files_max`](Self::open_files_max) of them. Beyond that a segment
    /// that is gone is an error when it is read; then open again.
    #[must_use]
    pub fn read_only(mut self, read_only: bool) -> Self {
        self.read_only = read_only;
        self
    }

    /// Whether a store is made in a directory that has none, as it is by default. Otherwise opening one that is not there is
    /// [`Error::NoStore`](crate::Error::NoStore), and nothing is written.
    ///
    /// ```
    /// use topiclog::{Error, Store};
    /// let refused = Store::builder().create(false).open("/not/there");
    /// assert!(matches!(refused, Err(Error::NoStore { .. })));
    /// ```
    #[must_use]
    pub fn create(mut self, create: bool) -> Self {
        self.creates = create;
        self
    }

    /// Through maps, or by positional reads.
    #[must_use]
    pub fn reads(mut self, read_path: ReadPath) -> Self {
        self.read_path = read_path;
        self
    }

    /// When batches are compared with their checksums, unless a reader says otherwise.
    #[must_use]
    pub fn verify(mut self, verify: Verify) -> Self {
        self.verify = verify;
        self
    }

    /// Most log files that are open at once; others are opened again when they are used. At least 4, 512 by default.
    #[must_use]
    pub fn open_files_max(mut self, files: usize) -> Self {
        self.open_files_max = files;
        self
    }

    /// Most topics of this store; 10,000 by default.
    #[must_use]
    pub fn topics_max(mut self, topics: usize) -> Self {
        self.topics_max = topics;
        self
    }

    /// Opens without locks where the file system has none. Whoever asks for this sees to it that there is one writer.
    #[must_use]
    pub fn without_locks(mut self) -> Self {
        self.without_locks = true;
        self
    }

    /// Makes the ids of the store and its topics follow from a seed, so that a test can be repeated byte by byte.
    #[must_use]
    pub fn id_seed(mut self, seed: u64) -> Self {
        self.id_seed = Some(seed);
        self
    }

    /// Memory for the key indexes of all topics together, in bytes; 256 MiB by default, which is enough for about 12 million
    /// keys. An index that would take more is given up: [`Topic::get`](crate::Topic::get) then answers
    /// [`Error::Unsupported`](crate::Error::Unsupported). An index is made by upkeep if
    /// its topic is compacted, or if it was used before the open; at its first use otherwise. With 0 there are none, and compaction
    /// reads what is new in a log twice.
    #[must_use]
    pub fn key_index_memory_bytes(mut self, bytes: usize) -> Self {
        self.key_index_memory_bytes = bytes;
        self
    }

    /// Memory for the keys of one compaction and for their places in the log, in bytes; 32 MiB by default (Kafka's
    /// `log.cleaner.dedupe.buffer.size`). More keys than fit are compacted in several rounds.
    #[must_use]
    pub fn compaction_memory_bytes(mut self, bytes: usize) -> Self {
        self.compaction_memory_bytes = bytes;
        self
    }

    /// About how many bytes one [`Store::tick`] compacts, and how many it reads for key indexes: to make them, and to have
    /// them catch up; 8 MiB by default. At least one batch.
    #[must_use]
    pub fn compaction_step_bytes(mut self, bytes: u64) -> Self {
        self.compaction_step_bytes = bytes.max(1);
        self
    }

    /// How fast the upkeep thread compacts and reads for key indexes at most, in bytes per second; as fast as it can by
    /// default (Kafka's `log.cleaner.io.max.bytes.per.second`). An index that is behind an append that is faster than this
    /// stays behind. Whoever calls [`Store::tick`] sets the pace by that.
    #[must_use]
    pub fn compaction_bytes_per_second(mut self, bytes: u64) -> Self {
        self.compaction_bytes_per_second = bytes.max(1);
        self
    }

    /// Room that is kept in the file `topiclog.reserve`, so that retention, [`delete_records`](crate::Partition::delete_records)
    /// and [`delete_topic`](Store::delete_topic) work on a full disk: they then use it, and upkeep takes it back later. 1 MiB by
    /// default, and none with another [`vfs`](Self::vfs) than the disk. 0 keeps none. The file is made before the first write.
    #[must_use]
    pub fn reserve_bytes(mut self, bytes: u64) -> Self {
        self.reserve_bytes = Some(bytes);
        self
    }

    /// Tells a listener what upkeep does and what goes wrong, as it happens: [`UpkeepEvent`] says what there is to hear. One
    /// listener; a second call replaces the first.
    ///
    /// It is called by the thread that does the upkeep, or that calls [`Store::tick`], for one partition's events at a time, in
    /// their order, and while no lock is held: it may append, read, and ask for statistics of this very store. What it takes
    /// its time for, upkeep waits for. If it calls [`Store::tick`], it is called again from there. If it panics, the panic is
    /// caught, the rest is told all the same, and the step returns [`Error::Invalid`](crate::Error::Invalid), which the upkeep
    /// thread keeps for [`Store::take_upkeep_error`].
    ///
    /// A listener is let go of by [`Store::close`]. Until then one that holds a handle of the store keeps it open.
    ///
    /// ```
    /// use std::sync::{Arc, Mutex};
    /// use topiclog::{Store, TopicConfig, Upkeep, UpkeepEvent, io::MemoryVfs};
    /// let failures = Arc::new(Mutex::new(Vec::new()));
    /// let heard = Arc::clone(&failures);
    /// let builder = Store::builder().vfs(Arc::new(MemoryVfs::new())).upkeep(Upkeep::Manual);
    /// let store = builder
    ///     .on_upkeep(move |event| {
    ///         if let UpkeepEvent::Failed { partition, error, .. } = event {
    ///             heard.lock().unwrap().push(format!("{partition}: {error}"));
    ///         }
    ///     })
    ///     .open("/data")?;
    /// store.tick()?;
    /// assert!(failures.lock().unwrap().is_empty());
    /// # store.close()?;
    /// # Ok::<(), topiclog::Error>(())
    /// ```
    #[must_use]
    pub fn on_upkeep(mut self, listener: impl Fn(&UpkeepEvent) + Send + Sync + 'static) -> Self {
        self.listener = Some(Hears(Arc::new(listener)));
        self
    }

    /// Opens the store in a directory; it is created if it is not there, unless [`create`](Self::create) says otherwise.
    ///
    /// Durable when this returns: the directory and the store's identity, if they are new.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open(self, root: impl Into<PathBuf>) -> Result<Store> {
        super::open::open(self, root.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::error::Error;
    use crate::io::MemoryVfs;
    use crate::record::Record;
    use crate::topic::TopicConfig;

    fn builder(vfs: &Arc<MemoryVfs>) -> StoreBuilder {
        StoreBuilder::default().vfs(Arc::clone(vfs) as Arc<dyn Vfs>).upkeep(Upkeep::Manual)
    }

    #[test]
    fn the_number_of_topics_has_a_limit_and_a_deleted_one_makes_room() {
        let store = builder(&Arc::new(MemoryVfs::new())).topics_max(2).open("/s").unwrap();
        store.create_topic("a", TopicConfig::default()).unwrap();
        store.create_topic("b", TopicConfig::default()).unwrap();
        assert!(matches!(store.create_topic("c", TopicConfig::default()), Err(Error::Invalid { .. })));
        store.delete_topic("a").unwrap();
        assert!(store.create_topic("c", TopicConfig::default()).is_ok());
        assert!(matches!(store.create_topic("c", TopicConfig::default()), Err(Error::TopicExists { .. })));
    }

    #[test]
    fn ids_follow_from_a_seed() {
        let id = |seed: Option<u64>| {
            let builder = builder(&Arc::new(MemoryVfs::new()));
            let builder = seed.map_or(builder.clone(), |seed| builder.id_seed(seed));
            builder.open("/s").unwrap().id()
        };
        assert_eq!(id(Some(1)), id(Some(1)));
        assert_ne!(id(Some(1)), id(Some(2)));
        assert_ne!(id(None), id(None), "without a seed they are random");
    }

    #[test]
    fn a_store_that_is_opened_for_reading_refuses_to_change() {
        let vfs = Arc::new(MemoryVfs::new());
        let store = builder(&vfs).open("/s").unwrap();
        store.create_topic("t", TopicConfig::default()).unwrap().append(Record::of_value("v")).unwrap();
        store.close().unwrap();
        let store = builder(&vfs).read_only(true).open("/s").unwrap();
        let topic = store.topic("t").unwrap();
        let is_refused = |error: Error| matches!(error, Error::ReadOnly { .. });
        assert!(is_refused(topic.append(Record::of_value("w")).unwrap_err()));
        assert!(is_refused(store.create_topic("u", TopicConfig::default()).unwrap_err()));
        assert!(is_refused(store.alter_topic("t", TopicConfig::default()).unwrap_err()));
        assert!(is_refused(store.delete_topic("t").unwrap_err()));
        assert_eq!(topic.partition(0).unwrap().end().get(), 1);
        assert!(builder(&vfs).read_only(true).open("/none").is_err(), "and makes no directory");
    }
}
