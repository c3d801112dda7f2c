//! A store: a directory of topics, with one writer.
//!
//! It knows topics and Kafka's directory layout. It does not know groups, transactions or patterns.

pub(crate) mod adopt;
pub(crate) mod brokers_topics;
pub(crate) mod builder;
pub(crate) mod catalog;
pub(crate) mod checkpoints;
mod cleaning;
pub(crate) mod events;
pub(crate) mod holds;
pub(crate) mod open;
mod reserve;
pub(crate) mod upkeep;
pub(crate) mod verify;
pub(crate) mod waits;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use crate::error::{Error, Result};
use crate::ids::{TopicName, TopicPartition, Uuid};
use crate::io::{MemoryVfs, VfsLock};
use crate::key_index::Budget;
use crate::partition::repair::{PartitionReport, Repair};
use crate::partition::{Env, Partition};
use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Condvar, Mutex, RwLock};
use crate::topic::{KeepAlive, Topic, TopicConfig, TopicInner};

pub use builder::{StoreBuilder, Upkeep};
pub use events::UpkeepEvent;
pub use upkeep::TickReport;

use catalog::{Catalog, Deleting, TopicEntry};
use checkpoints::{Others, Said};

/// An open directory, or memory, of topics. Cheap to clone; every clone is the same store.
///
/// ```
/// use topiclog::{Record, Store, TopicConfig};
/// # let directory = tempfile::tempdir().unwrap();
/// # let path = directory.path().join("data");
/// let store = Store::open(&path)?;
/// let orders = store.ensure_topic("orders", TopicConfig::default().partitions(4))?;
/// // Returns once the record would survive a power cut.
/// let placed = orders.append(Record::keyed("order-7", "placed"))?;
/// for record in orders.partition(placed.partition)?.read_from(placed.offset) {
///     assert_eq!(record?.value(), Some(&b"placed"[..]));
/// }
/// store.close()?;
/// # Ok::<(), topiclog::Error>(())
/// ```
///
/// Dropping the last handle without [`close`](Store::close) loses nothing that was acknowledged; the next open then scans
/// the tail, as after a kill.
#[derive(Clone)]
pub struct Store {
    inner: Arc<StoreInner>,
}

pub(crate) struct StoreInner {
    root: PathBuf,
    env: Env,
    options: StoreBuilder,
    topics: RwLock<BTreeMap<TopicName, Arc<TopicInner>>>,
    admin: Mutex<Admin>,
    report: RecoveryReport,
    /// Released last, by `close` or when the last handle of store or topic is gone.
    locks: Mutex<Vec<Box<dyn VfsLock>>>,
    closed: AtomicBool,
    /// Kafka's marker is gone, or never was there: a clean close has to write it.
    wrote: Arc<AtomicBool>,
    /// Whether it stood in the root at the open.
    was_marked: bool,
    id_counter: AtomicU64,
    topics_version: AtomicU64,
    /// Whose key indexes upkeep looks at first.
    index_turn: AtomicUsize,
    signal: Arc<Signal>,
    upkeep_thread: Mutex<Option<crate::sync::thread::JoinHandle<()>>>,
    upkeep_error: Mutex<Option<Error>>,
    cleaner: Mutex<cleaning::CleanerState>,
    clocks: Mutex<upkeep::ClockWatch>,
    audience: events::Audience,
    reserve: Arc<reserve::Reserve>,
    holds: Mutex<holds::Holds>,
    /// Whether the holds say that groups commit in this store.
    holds_for_groups: AtomicBool,
    readers: OnceLock<Arc<dyn holds::Readers>>,
    key_budget: Arc<Budget>,
}

/// What wakes the upkeep thread.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    state: Mutex<SignalState>,
    changed: Condvar,
    /// How long the thread sleeps; 0 while it works.
    sleeps_ms: AtomicU64,
}

#[derive(Debug, Default)]
struct SignalState {
    woken: bool,
    stop: bool,
}

/// The store manifest and its generation.
#[derive(Debug)]
struct Admin {
    generation: u64,
    catalog: Catalog,
    /// A replacement failed and it cannot be told which copy holds.
    poisoned: bool,
}

impl KeepAlive for StoreInner {}

/// What opening a store found and repaired.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecoveryReport {
    /// What concerns the store as a whole.
    pub store: Vec<Repair>,
    /// Each partition, in order of topic and number.
    pub partitions: Vec<PartitionReport>,
}

impl RecoveryReport {
    /// Whether any partition was not closed in order.
    pub fn is_unclean(&self) -> bool {
        self.partitions.iter().any(|partition| partition.unclean)
    }

    /// Everything that the open changed.
    pub fn repairs(&self) -> impl Iterator<Item = &Repair> {
        let all = self.store.iter().chain(self.partitions.iter().flat_map(|partition| &partition.repairs));
        all.filter(|repair| repair.is_change())
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("root", &self.inner.root).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens a directory on the disk for writing; it is created if it is not there.
    ///
    /// # Errors
    /// [`Error::Locked`] if another writer or a Kafka broker has it; [`Error::NeedsAdopt`] if a broker wrote there;
    /// [`Error::Corrupt`] if something that was synced is damaged; [`Error::Unsupported`] if a newer version wrote it.
    /// No record is changed then. What a crash left of partitions before the refused one may have been repaired by then, and
    /// the lock files `topiclog.lock`, `topiclog.follow` and `.lock` may remain, also in a directory of Kafka's. An open
    /// for reading leaves nothing.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        StoreBuilder::default().open(root)
    }

    /// A store in memory, gone with its last handle: the same engine on another back end, without a thread.
    ///
    /// # Errors
    /// None that a caller could provoke.
    pub fn in_memory() -> Result<Self> {
        StoreBuilder::default().vfs(Arc::new(MemoryVfs::new())).upkeep(Upkeep::Manual).open("/")
    }

    /// Opens with other components or limits.
    pub fn builder() -> StoreBuilder {
        StoreBuilder::default()
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// The store's identity, made when it was created.
    pub fn id(&self) -> Uuid {
        self.inner.env.store_id
    }

    /// Where this store's time comes from.
    pub fn clock(&self) -> Arc<dyn crate::clock::Clock> {
        Arc::clone(&self.inner.env.clock)
    }

    pub(crate) fn clock_ref(&self) -> &dyn crate::clock::Clock {
        &*self.inner.env.clock
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        self.inner.check_open()
    }

    /// A new identity, never given before.
    pub(crate) fn new_id(&self) -> Result<Uuid> {
        self.inner.next_id()
    }

    /// Changes whenever a topic is created or deleted.
    pub(crate) fn topics_version(&self) -> u64 {
        self.inner.topics_version.load(Ordering::Acquire)
    }

    /// Tells whoever waits to look again.
    pub(crate) fn ring(&self) {
        self.inner.env.bell.ring();
    }

    /// Rings when something was appended, became durable, or comes to its end.
    pub(crate) fn bell(&self) -> Arc<crate::clock::notify::Bell> {
        Arc::clone(&self.inner.env.bell)
    }

    /// What the open found and repaired.
    pub fn recovery_report(&self) -> &RecoveryReport {
        &self.inner.report
    }

    /// The topics' names, in order.
    pub fn topics(&self) -> Vec<TopicName> {
        self.inner.topics.read().keys().cloned().collect()
    }

    /// A topic that exists.
    ///
    /// # Errors
    /// [`Error::UnknownTopic`]; [`Error::Invalid`] for an illegal name; [`Error::Closed`].
    pub fn topic(&self, name: &str) -> Result<Topic> {
        self.inner.check_open()?;
        match self.inner.topics.read().get(name) {
            Some(topic) => Ok(self.handle(Arc::clone(topic))),
            None => Err(Error::UnknownTopic { name: TopicName::new(name)?.to_string() }),
        }
    }

    /// A partition, and the identity of its topic.
    pub(crate) fn locate(&self, place: &TopicPartition) -> Result<(Uuid, Partition)> {
        self.inner.check_open()?;
        let topics = self.inner.topics.read();
        let topic = topics.get(&place.topic);
        if let Some((topic, found)) =
            topic.and_then(|topic| Some((topic, topic.partitions.get(&place.partition.get())?)))
        {
            return Ok((topic.id, found.clone()));
        }
        drop(topics);
        let topic = self.topic(place.topic.as_str())?;
        Ok((topic.id(), topic.partition(place.partition)?))
    }

    fn handle(&self, topic: Arc<TopicInner>) -> Topic {
        Topic::new(topic, Arc::clone(&self.inner) as Arc<dyn KeepAlive>)
    }

    /// Creates a topic.
    ///
    /// Durable when this returns: the topic, its configuration and its empty partitions.
    ///
    /// # Errors
    /// [`Error::TopicExists`]; [`Error::Invalid`] for an illegal name; [`Error::Config`] for an impossible setting;
    /// [`Error::ReadOnly`], [`Error::Closed`], [`Error::NoSpace`]. Nothing is left of it then.
    pub fn create_topic(&self, name: &str, config: TopicConfig) -> Result<Topic> {
        self.inner.check_writable("create a topic")?;
        let name = TopicName::new(name)?;
        config.check()?;
        config.check_codec()?;
        let mut admin = self.inner.lock_admin()?;
        self.inner.create_topic(&mut admin, name, config).map(|topic| self.handle(topic))
    }

    /// The topic of this name; created with this configuration if there is none. An existing one keeps its own
    /// configuration.
    ///
    /// # Errors
    /// As [`create_topic`](Self::create_topic), but for `TopicExists`.
    pub fn ensure_topic(&self, name: &str, config: TopicConfig) -> Result<Topic> {
        match self.topic(name) {
            Err(Error::UnknownTopic { .. }) => match self.create_topic(name, config) {
                Err(Error::TopicExists { .. }) => self.topic(name),
                result => result,
            },
            result => result,
        }
    }

    /// Changes the configuration of a topic. The number of partitions cannot be changed: keys would move. Settings of
    /// segments hold from the next segment on; where more or less may wait for a sync than before, the next append begins one.
    ///
    /// Durable when this returns.
    ///
    /// # Errors
    /// [`Error::UnknownTopic`], [`Error::Config`], [`Error::ReadOnly`], [`Error::Closed`].
    pub fn alter_topic(&self, name: &str, config: TopicConfig) -> Result<()> {
        self.inner.check_writable("alter a topic")?;
        config.check()?;
        config.check_codec()?;
        let topic = self.topic(name)?;
        if config.partition_count() != topic.partition_count() {
            return Err(Error::config("partitions", "cannot be changed: keys would move to other partitions"));
        }
        let mut admin = self.inner.lock_admin()?;
        let mut catalog = admin.catalog.clone();
        let entry = catalog.topics.iter_mut().find(|entry| entry.name == *topic.name());
        let entry = entry.ok_or_else(|| Error::UnknownTopic { name: name.to_owned() })?;
        entry.config = config.clone();
        self.inner.commit(&mut admin, catalog)?;
        self.inner.apply_config(topic.name(), &config);
        Ok(())
    }

    /// Deletes a topic with all its records. Bytes that readers still hold stay valid; its handles get
    /// [`Error::Closed`].
    ///
    /// Durable when this returns.
    ///
    /// # Errors
    /// [`Error::UnknownTopic`], [`Error::ReadOnly`], [`Error::Closed`]. If only the removal of files fails, the topic is
    /// gone and the next open removes them.
    pub fn delete_topic(&self, name: &str) -> Result<()> {
        self.inner.check_writable("delete a topic")?;
        let name = TopicName::new(name)?;
        let mut admin = self.inner.lock_admin()?;
        match self.inner.delete_topic(&mut admin, &name) {
            Err(Error::NoSpace { .. }) if !admin.poisoned && self.inner.reserve.give_up() => {
                // How far it came: the topic may be out of the manifest already.
                match self.inner.delete_topic(&mut admin, &name) {
                    Err(Error::UnknownTopic { .. }) => {
                        self.inner.forget_holds(&name)?;
                        self.inner.finish_deletions(&mut admin)
                    }
                    result => result,
                }
            }
            result => result,
        }
    }

    /// Syncs everything, writes what a quick open and a Kafka broker need, and releases the locks. Works while handles of
    /// topics are alive: they get [`Error::Closed`]. A second call does nothing.
    ///
    /// Durable when this returns Ok: every record of every topic.
    ///
    /// # Errors
    /// The first that any partition met; all others are closed all the same. The next open then scans what was not
    /// closed; a partition where all that is wrong is a damaged batch is closed, and the error is [`Error::Corrupt`]. If there
    /// was none, the first that the upkeep thread met and that nobody [took](Self::take_upkeep_error): everything is closed then.
    pub fn close(&self) -> Result<()> {
        self.inner.close()
    }

    /// Log files that are open now; at most `open_files_max` of the builder.
    pub fn open_files(&self) -> usize {
        self.inner.env.pool.open_files()
    }
}

impl StoreInner {
    fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::Closed { what: format!("store {}", self.root.display()) });
        }
        Ok(())
    }

    fn check_writable(&self, what: &str) -> Result<()> {
        self.check_open()?;
        if self.env.read_only { Err(Error::ReadOnly { what: what.to_owned() }) } else { Ok(()) }
    }

    fn lock_admin(&self) -> Result<crate::sync::MutexGuard<'_, Admin>> {
        let admin = self.admin.lock();
        self.check_open()?;
        if admin.poisoned {
            let why = "a replacement of the store manifest failed half-way; reopen the store";
            return Err(Error::Closed { what: why.to_owned() });
        }
        Ok(admin)
    }

    /// Tells whoever waits that there are other topics now.
    fn topics_changed(&self) {
        self.topics_version.fetch_add(1, Ordering::AcqRel);
        self.env.bell.ring();
    }

    /// Ids are random, or follow from the seed of a test.
    fn next_id(&self) -> Result<Uuid> {
        open::new_id(self.options.id_seed, self.id_counter.fetch_add(1, Ordering::Relaxed))
    }

    /// Replaces the store manifest: the commit point of every change of topics.
    fn commit(&self, admin: &mut Admin, catalog: Catalog) -> Result<()> {
        let generation = admin.generation + 1;
        if let Err(error) = catalog::write(&*self.env.vfs, &self.root, generation, &catalog) {
            admin.poisoned = catalog::may_hold(&*self.env.vfs, &self.root, generation);
            return Err(error);
        }
        (admin.generation, admin.catalog) = (generation, catalog);
        Ok(())
    }

    fn create_topic(&self, admin: &mut Admin, name: TopicName, config: TopicConfig) -> Result<Arc<TopicInner>> {
        let taken = admin.catalog.topics.iter().find(|entry| entry.name == name);
        if let Some(entry) = taken {
            return Err(Error::TopicExists { name: entry.name.to_string() });
        }
        if admin.catalog.topics.len() >= self.options.topics_max {
            return Err(Error::invalid("topics", format!("a store has at most {}", self.options.topics_max)));
        }
        let topic_id = self.next_id()?;
        (self.env.before_first_write)()?;
        let settings = config.log_settings();
        let ids: Vec<TopicPartition> =
            (0..config.partition_count()).map(|partition| TopicPartition::new(name.clone(), partition)).collect();
        let created = ids.iter().try_for_each(|id| {
            let directory = self.make_directory(id)?;
            crate::partition::open::create(&self.env, id, &directory, topic_id, &settings)
        });
        // Opened before the manifest lists it: behind that nothing may fail any more.
        let opened = created.and_then(|()| self.sync_root()).and_then(|()| {
            let open = |id: &TopicPartition| {
                let directory = self.root.join(id.directory_name());
                let (log, _) = open::opening(&self.env, id, directory, topic_id, &config).open()?;
                Ok((id.partition.get(), Partition::new(Arc::new(log))))
            };
            ids.iter().map(open).collect::<Result<BTreeMap<_, _>>>()
        });
        let logs = match opened {
            Ok(logs) => logs,
            Err(error) => {
                self.remove_directories(&ids);
                return Err(error);
            }
        };
        let mut catalog = admin.catalog.clone();
        let partitions = (0..config.partition_count()).collect();
        catalog.topics.push(TopicEntry { name: name.clone(), topic_id, partitions, config: config.clone() });
        if let Err(error) = self.commit(admin, catalog) {
            if !admin.poisoned {
                self.remove_directories(&ids);
            }
            return Err(error);
        }
        let topic = Arc::new(TopicInner::new(name.clone(), topic_id, config, logs, &self.key_budget));
        self.topics.write().insert(name, Arc::clone(&topic));
        self.topics_changed();
        self.signal.wake();
        Ok(topic)
    }

    /// Makes the directory of a new partition. One that is there is left over from a creation that never took effect, or
    /// it differs only in case from one that is in use.
    fn make_directory(&self, id: &TopicPartition) -> Result<PathBuf> {
        let directory = self.root.join(id.directory_name());
        let create = || self.env.vfs.create_dir(&directory);
        match create() {
            Ok(()) => Ok(directory),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let listed = self.env.vfs.list(&self.root).map_err(|error| Error::io("list", &self.root, error))?;
                let name = id.directory_name();
                if let Some(other) =
                    listed.iter().find(|entry| entry.name != name && entry.name.eq_ignore_ascii_case(&name))
                {
                    return Err(Error::TopicExists { name: other.name.clone() });
                }
                open::remove_uncommitted(&*self.env.vfs, &directory, self.env.store_id)?;
                create().map_err(|error| Error::io("create", &directory, error))?;
                Ok(directory)
            }
            Err(error) => Err(Error::io("create", &directory, error)),
        }
    }

    /// Takes back what a failed creation made; what cannot be removed is swept by the next open.
    fn remove_directories(&self, ids: &[TopicPartition]) {
        for id in ids {
            let directory = self.root.join(id.directory_name());
            open::remove_uncommitted(&*self.env.vfs, &directory, self.env.store_id).ok();
        }
    }

    fn sync_root(&self) -> Result<()> {
        self.env.vfs.sync_dir(&self.root).map_err(|error| Error::io("sync directory", &self.root, error))
    }

    fn apply_config(&self, name: &TopicName, config: &TopicConfig) {
        let Some(topic) = self.topics.read().get(name).cloned() else { return };
        *topic.config.write() = Arc::new(config.clone());
        for partition in topic.partitions.values() {
            partition.log.set_settings(config.log_settings());
        }
        topic.expect_index_of_table();
        self.signal.wake();
    }

    fn delete_topic(&self, admin: &mut Admin, name: &TopicName) -> Result<()> {
        let mut catalog = admin.catalog.clone();
        let Some(at) = catalog.topics.iter().position(|entry| entry.name == *name) else {
            return Err(Error::UnknownTopic { name: name.to_string() });
        };
        let entry = catalog.topics.remove(at);
        (self.env.before_first_write)()?;
        let gone = entry.partitions.iter().map(|&partition| Deleting {
            topic: name.clone(),
            topic_id: entry.topic_id,
            partition,
        });
        catalog.deleting.extend(gone);
        self.commit(admin, catalog)?;
        if let Some(topic) = self.topics.write().remove(name) {
            topic.partitions.values().for_each(|partition| partition.log.abandon());
        }
        self.topics_changed();
        self.forget_holds(name)?;
        self.finish_deletions(admin)
    }

    /// Removes the directories of deleted topics, then their mention in the manifest.
    fn finish_deletions(&self, admin: &mut Admin) -> Result<()> {
        if admin.catalog.deleting.is_empty() {
            return Ok(());
        }
        for deleting in &admin.catalog.deleting {
            open::remove_deleted(&*self.env.vfs, &self.root, deleting)?;
        }
        self.sync_root()?;
        let catalog = Catalog { deleting: Vec::new(), ..admin.catalog.clone() };
        self.commit(admin, catalog)
    }

    fn close(&self) -> Result<()> {
        if self.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        self.signal.stop();
        if let Some(thread) = self.upkeep_thread.lock().take()
            && thread.thread().id() != crate::sync::thread::current().id()
            && thread.join().is_err()
        {
            self.upkeep_error.lock().get_or_insert(Error::Closed { what: "the upkeep thread panicked".into() });
        }
        self.audience.leave();
        let admin = self.admin.lock();
        // An unfinished compaction has changed nothing; the next open sweeps its file.
        self.cleaner.lock().stop();
        let topics: Vec<Arc<TopicInner>> = self.topics.read().values().cloned().collect();
        let mut first_error = None;
        let mut said = Said::default();
        // Derived: without the file the next use reads the log, so that a failure costs no more than that.
        for index in topics.iter().flat_map(|topic| topic.indexes()) {
            index.write_snapshot().ok();
        }
        for partition in topics.iter().flat_map(|topic| topic.partitions.values()) {
            if let Err(error) = partition.log.close() {
                first_error.get_or_insert(error);
            }
            said.ends.insert(partition.id().clone(), partition.end().get());
            if partition.log.clean_end() > 0 {
                said.cleaned.insert(partition.id().clone(), partition.log.clean_end());
            }
            if partition.log.starts_inside_a_segment() {
                said.starts.insert(partition.id().clone(), partition.start().get());
            }
        }
        if first_error.is_none() && !self.env.read_only && self.wrote.load(Ordering::Acquire) {
            first_error = self.write_clean_shutdown(&admin.catalog, &said).err();
        }
        self.locks.lock().clear();
        self.env.bell.ring();
        // What upkeep met earlier says nothing of what is on the disk now.
        first_error.or_else(|| self.upkeep_error.lock().take()).map_or(Ok(()), Err)
    }

    /// Kafka's marker vouches for every log in the root. Nothing was written to those of others, so that it stands for them
    /// after this close if it did before the open, and not otherwise: without it a broker looks at all logs from their
    /// recovery points on.
    fn write_clean_shutdown(&self, catalog: &Catalog, said: &Said) -> Result<()> {
        let vfs = &*self.env.vfs;
        let listed = vfs.list(&self.root).map_err(|error| Error::io("list", &self.root, error))?;
        let others = Others::find(&listed, |id| {
            let is_known = catalog.lists(id) || catalog.is_deleting(id);
            Ok(is_known || open::is_of_creation(vfs, &self.root.join(id.directory_name()), self.env.store_id)?)
        })?;
        let is_clean = self.was_marked || !others.are_there;
        checkpoints::write_clean_shutdown(vfs, &self.root, said, &others, is_clean)
    }
}

impl Drop for StoreInner {
    fn drop(&mut self) {
        // No I/O here: what was not closed is found by the next open. The thread holds no handle, and ends by itself.
        self.signal.stop();
    }
}
