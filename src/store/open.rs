//! Opens a store: locks, the newest good manifest, then each partition.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::brokers_topics::OFFSETS_TOPIC;
use super::builder::{Hears, StoreBuilder};
use super::catalog::{self, Catalog, CatalogRead, Deleting, TopicEntry};
use super::checkpoints::{self, Stated, TopicIds};
use super::events::Audience;
use super::reserve::Reserve;
use super::{Admin, RecoveryReport, Signal, Store, StoreInner, Upkeep, holds};
use crate::error::{Error, Result};
use crate::ids::{TopicName, TopicPartition, Uuid};
use crate::io::{EntryKind, LockKind, Vfs, VfsLock};
use crate::key_index::Budget;
use crate::partition::foreign;
use crate::partition::hints::Hints;
use crate::partition::open::Opening;
use crate::partition::repair::Repair;
use crate::partition::{Env, Partition, manifest, quarantine};
use crate::planted::{Bug, is};
use crate::segment::file_pool::FilePool;
use crate::segment::log_file::ReadPath;
use crate::segment::name;
use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Mutex, RwLock};
use crate::topic::{TopicConfig, TopicInner};

const LOCK: &str = "topiclog.lock";
/// What `topiclog.reserve` holds on a disk unless the builder says otherwise.
const RESERVE_BYTES: u64 = 1 << 20;
const FOLLOW: &str = "topiclog.follow";
/// Kafka's own lock file.
const BROKER_LOCK: &str = ".lock";

/// How a partition of this topic is opened.
pub(crate) fn opening<'a>(
    env: &'a Env,
    id: &'a TopicPartition,
    directory: PathBuf,
    topic_id: Uuid,
    config: &TopicConfig,
) -> Opening<'a> {
    Opening {
        env,
        id,
        directory,
        topic_id,
        settings: config.log_settings(),
        may_rewrite_in_place: false,
        ids_are_known: true,
        hints: Hints::default(),
    }
}

/// A random id, or one that follows from a seed.
pub(crate) fn new_id(seed: Option<u64>, count: u64) -> Result<Uuid> {
    let mut bytes = [0; 16];
    match seed {
        Some(seed) => {
            let mut state = seed ^ count.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            for byte in &mut bytes {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                *byte = (state >> 56) as u8;
            }
        }
        None => getrandom::fill(&mut bytes).map_err(|error| {
            Error::io("read random bytes for", Path::new("an id"), io::Error::other(error.to_string()))
        })?,
    }
    Ok(Uuid::from_random(bytes))
}

/// See [`StoreBuilder::open`].
pub(crate) fn open(mut options: StoreBuilder, root: PathBuf) -> Result<Store> {
    let vfs = Arc::clone(&options.vfs);
    if !options.creates && !options.read_only && !catalog::is_there(&*vfs, &root)? {
        return Err(Error::NoStore { path: root });
    }
    if !options.read_only {
        create_root(&*vfs, &root)?;
    }
    let listed = vfs.list(&root).map_err(|error| Error::io("list", &root, error))?;
    let locks = take_locks(&options, &*vfs, &root)?;
    let read = catalog::read(&*vfs, &root)?;
    let directories = partition_directories(&listed);
    let mut report = RecoveryReport::default();
    for (path, reason) in &read.damaged {
        report.store.push(Repair::ManifestSlotDamaged { path: path.clone(), reason: reason.clone() });
    }
    let is_fallback = !read.damaged.is_empty();
    let (generation, mut catalog, is_foreign) = choose_catalog(&options, &root, read, &directories)?;
    if !is_foreign {
        find_lost_topics(&options, &root, &mut catalog, &directories, is_fallback)?;
    }

    let signal = Arc::new(Signal::default());
    let was_marked = listed.iter().any(|entry| entry.name == checkpoints::CLEAN_SHUTDOWN);
    let wrote = Arc::new(AtomicBool::new(!was_marked));
    let reserve_bytes = options.reserve_bytes.unwrap_or(if options.is_on_disk { RESERVE_BYTES } else { 0 });
    let reserve = Arc::new(Reserve::new(&vfs, &root, reserve_bytes));
    let env = make_env(&options, &root, catalog.store_id, (&signal, &wrote, &reserve), locks.maps_are_safe);
    let key_budget = Arc::new(Budget::new(options.key_index_memory_bytes));
    let topics = if is_foreign {
        open_foreign(&env, &root, &catalog, &key_budget, &mut report)?
    } else {
        let may_rewrite_in_place = locks.follow.is_some() || is(Bug::RepairInPlaceUnderMaps);
        open_topics(&env, &root, &catalog, &key_budget, may_rewrite_in_place, &mut report)?
    };
    note_unlisted(&env, &root, &catalog, &directories, &mut report)?;
    drop(locks.follow);
    let (mut holds, damaged) = holds::Holds::read(&*env.vfs, &root)?;
    if !damaged.is_empty()
        && let Some(offsets) = topics.get(OFFSETS_TOPIC).and_then(|topic| topic.partitions.values().next())
    {
        holds.assume_groups(offsets.id().clone());
    }
    report.store.extend(damaged);

    let audience = Audience::new(options.listener.take().map(|Hears(listener)| listener));
    let inner = Arc::new(StoreInner {
        root,
        env,
        topics: RwLock::new(topics),
        admin: Mutex::new(Admin { generation, catalog, poisoned: false }),
        report,
        locks: Mutex::new(locks.held),
        closed: AtomicBool::new(false),
        wrote,
        was_marked,
        id_counter: AtomicU64::new(generation + 1),
        topics_version: AtomicU64::new(0),
        index_turn: AtomicUsize::new(0),
        signal,
        upkeep_thread: Mutex::new(None),
        upkeep_error: Mutex::new(None),
        cleaner: Mutex::default(),
        clocks: Mutex::default(),
        audience,
        reserve,
        holds_for_groups: AtomicBool::new(holds.has_groups()),
        holds: Mutex::new(holds),
        readers: std::sync::OnceLock::new(),
        key_budget,
        options,
    });
    if !inner.env.read_only {
        sweep_temporaries(&inner.env, &inner.root, &listed)?;
        let mut admin = inner.admin.lock();
        inner.finish_deletions(&mut admin)?;
        drop(admin);
        if inner.options.upkeep == Upkeep::Thread {
            inner.start_upkeep()?;
        }
    }
    Ok(Store { inner })
}

/// Creates the root, and the directories above it that are missing; durable when this returns.
fn create_root(vfs: &dyn Vfs, root: &Path) -> Result<()> {
    match vfs.create_dir(root) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let Some(parent) = root.parent().filter(|parent| !parent.as_os_str().is_empty()) else {
                return Err(Error::io("create", root, error));
            };
            create_root(vfs, parent)?;
            vfs.create_dir(root).map_err(|error| Error::io("create", root, error))?;
        }
        // The root of a file system exists, whatever it says.
        Err(error) => return vfs.list(root).map(drop).map_err(|_| Error::io("create", root, error)),
    }
    match root.parent().map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent }) {
        Some(parent) => vfs.sync_dir(parent).map_err(|error| Error::io("sync directory", parent, error)),
        None => Ok(()),
    }
}

pub(crate) struct Locks {
    pub(crate) held: Vec<Box<dyn VfsLock>>,
    /// The follow lock, held alone: no reader has a file mapped, and none that opens meanwhile will map one. Recovery may
    /// write in place while this is held, and lets go of it when it is done.
    follow: Option<Box<dyn VfsLock>>,
    /// Writers will not repair files in place under this reader.
    maps_are_safe: bool,
}

pub(crate) fn take_locks(options: &StoreBuilder, vfs: &dyn Vfs, root: &Path) -> Result<Locks> {
    let mut held = Vec::new();
    let follow = root.join(FOLLOW);
    if options.read_only {
        // On a read-only mount, or in a directory of Kafka's, there is no such file and none is made.
        let exists = vfs.list(root).is_ok_and(|entries| entries.iter().any(|entry| entry.name == FOLLOW));
        let shared = if exists { vfs.lock(&follow, LockKind::Shared).ok() } else { None };
        let maps_are_safe = shared.is_some();
        held.extend(shared);
        return Ok(Locks { held, follow: None, maps_are_safe });
    }
    for (name, kind) in [(LOCK, LockKind::Exclusive), (BROKER_LOCK, LockKind::Broker)] {
        if is(Bug::LockNotTaken) {
            continue;
        }
        let path = root.join(name);
        match lock_with_patience(vfs, &path, kind) {
            Ok(lock) => held.push(lock),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let holder = if kind == LockKind::Broker { "a Kafka broker" } else { "another writer" };
                return Err(Error::Locked { path, holder: holder.into() });
            }
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                if !options.without_locks {
                    return Err(Error::LockUnsupported { path, source: error });
                }
            }
            Err(error) => return Err(Error::io("lock", &path, error)),
        }
    }
    let follow = vfs.lock(&follow, LockKind::Exclusive).ok();
    Ok(Locks { held, follow, maps_are_safe: true })
}

/// Takes a lock, and tries again for a tenth of a second if another holds it: an upkeep thread may be about to let go of a
/// store whose last handle was just dropped.
fn lock_with_patience(vfs: &dyn Vfs, path: &Path, kind: LockKind) -> io::Result<Box<dyn VfsLock>> {
    let mut result = vfs.lock(path, kind);
    for _ in 0..10 {
        match &result {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            _ => break,
        }
        crate::sync::thread::park_timeout(std::time::Duration::from_millis(10));
        result = vfs.lock(path, kind);
    }
    result
}

/// Directories that are named like partitions, in order.
pub(crate) fn partition_directories(listed: &[crate::io::DirEntry]) -> Vec<TopicPartition> {
    let directories = listed.iter().filter(|entry| entry.kind == EntryKind::Directory);
    let mut found: Vec<_> = directories.filter_map(|entry| TopicPartition::from_directory_name(&entry.name)).collect();
    found.sort();
    found
}

/// The catalog to work with, its generation, and whether it was made up from a directory without one.
fn choose_catalog(
    options: &StoreBuilder,
    root: &Path,
    read: CatalogRead,
    directories: &[TopicPartition],
) -> Result<(u64, Catalog, bool)> {
    if let Some((generation, catalog)) = read.newest {
        return Ok((generation, catalog, false));
    }
    if options.read_only {
        return Ok((0, foreign_catalog(&*options.vfs, root, directories), true));
    }
    if let Some((path, reason)) = read.damaged.into_iter().next() {
        let what = format!("{reason}, and so is the other copy; open read-only to save the data");
        return Err(Error::corrupt(&path, 0, what));
    }
    if !directories.is_empty() {
        let why = "it holds partitions, but no manifest of this library".into();
        return Err(Error::NeedsAdopt { path: root.to_owned(), why });
    }
    let catalog = Catalog { store_id: new_id(options.id_seed, 0)?, topics: Vec::new(), deleting: Vec::new() };
    catalog::write(&*options.vfs, root, 1, &catalog)?;
    Ok((1, catalog, false))
}

/// A partition of this store that its manifest does not list, although there are records in it, or although a copy of the
/// manifest is damaged: the manifest is not the newest that was. A writer must not go on from it; a reader is shown them.
fn find_lost_topics(
    options: &StoreBuilder,
    root: &Path,
    catalog: &mut Catalog,
    directories: &[TopicPartition],
    is_fallback: bool,
) -> Result<()> {
    let vfs = &*options.vfs;
    for id in directories {
        let number = id.partition.get();
        if catalog.lists(id) || catalog.is_deleting(id) {
            continue;
        }
        let directory = root.join(id.directory_name());
        let slot = manifest::slots(&directory).read(vfs)?.newest;
        let Some(found) = slot.and_then(|slot| manifest::Manifest::decode(&slot.payload).ok()) else { continue };
        let is_ours = found.store_id == catalog.store_id && found.partition == number;
        if !is_ours || !(is_fallback || holds_records(vfs, &directory)?) {
            continue;
        }
        if !options.read_only {
            let what = "the newest copy of the store manifest is damaged or was exchanged: it does not list this partition; \
                        restore topiclog.manifest.0 or .1, or open read-only to save the data";
            return Err(Error::corrupt(&directory, 0, what));
        }
        match catalog.topics.iter_mut().find(|entry| entry.name == id.topic) {
            Some(entry) => entry.partitions.push(number),
            None => catalog.topics.push(TopicEntry {
                name: id.topic.clone(),
                topic_id: found.topic_id,
                partitions: vec![number],
                config: TopicConfig::default(),
            }),
        }
    }
    Ok(())
}

fn holds_records(vfs: &dyn Vfs, directory: &Path) -> Result<bool> {
    let entries = vfs.list(directory).map_err(|error| Error::io("list", directory, error))?;
    Ok(entries.iter().any(|entry| matches!(name::parse(&entry.name), Some((_, name::Suffix::Log))) && entry.bytes > 0))
}

/// Removes what an interrupted replacement of one of our own files, or of Kafka's checkpoints, left in the root.
fn sweep_temporaries(env: &Env, root: &Path, listed: &[crate::io::DirEntry]) -> Result<()> {
    let ours = [
        checkpoints::RECOVERY_POINT,
        checkpoints::LOG_START,
        checkpoints::HIGH_WATERMARK,
        checkpoints::CLEANER,
        checkpoints::CLEAN_SHUTDOWN,
    ];
    let mut swept = false;
    for entry in listed.iter().filter(|entry| entry.kind == EntryKind::File) {
        let Some(target) = entry.name.strip_suffix(".tmp") else { continue };
        if ours.contains(&target) || target.starts_with("topiclog.manifest.") || target.starts_with("topiclog.holds.") {
            let path = root.join(&entry.name);
            match env.vfs.remove_file(&path) {
                Ok(()) => swept = true,
                // Creating a topic or closing may have replaced it meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::io("remove", &path, error)),
            }
        }
    }
    // Synced, so that a power cut does not bring them back.
    if swept { env.vfs.sync_dir(root).map_err(|error| Error::io("sync directory", root, error)) } else { Ok(()) }
}

fn manifest_of(vfs: &dyn Vfs, directory: &Path) -> Option<manifest::Manifest> {
    let newest = manifest::slots(directory).read(vfs).ok()?.newest?;
    manifest::Manifest::decode(&newest.payload).ok()
}

/// Takes note of the topic id that a partition shows; one that cannot be read says nothing.
fn note_topic_id(vfs: &dyn Vfs, root: &Path, id: &TopicPartition, topic_ids: &mut TopicIds) -> Result<()> {
    let directory = root.join(id.directory_name());
    match checkpoints::read_topic_id(vfs, &directory) {
        Ok(Some(topic_id)) => topic_ids.note(&id.topic, &directory, topic_id),
        _ => Ok(()),
    }
}

/// Topics as the directory names show them.
fn foreign_catalog(vfs: &dyn Vfs, root: &Path, directories: &[TopicPartition]) -> Catalog {
    let (mut by_name, mut topic_ids): (BTreeMap<TopicName, Vec<u32>>, _) = (BTreeMap::new(), TopicIds::default());
    for id in directories.iter().filter(|id| id.topic.as_str() != "__cluster_metadata") {
        by_name.entry(id.topic.clone()).or_default().push(id.partition.get());
        // Of two ids the first holds; a partition with another one is not opened.
        note_topic_id(vfs, root, id, &mut topic_ids).ok();
    }
    let mut topics = Vec::new();
    for (name, partitions) in by_name {
        let first = TopicPartition::new(name.clone(), partitions.first().copied().unwrap_or(0));
        let topic_id = topic_ids.of(&name);
        let of_manifest = || manifest_of(vfs, &root.join(first.directory_name())).map(|manifest| manifest.topic_id);
        let topic_id = topic_id.or_else(of_manifest);
        let count = partitions.iter().max().map_or(1, |most| most.saturating_add(1));
        topics.push(TopicEntry {
            name,
            topic_id: topic_id.unwrap_or(Uuid::from_bytes([0; 16])),
            partitions,
            config: TopicConfig::default().partitions(count),
        });
    }
    Catalog { store_id: Uuid::from_bytes([0; 16]), topics, deleting: Vec::new() }
}

pub(super) fn make_env(
    options: &StoreBuilder,
    root: &Path,
    store_id: Uuid,
    (signal, wrote, reserve): (&Arc<Signal>, &Arc<AtomicBool>, &Arc<Reserve>),
    maps_are_safe: bool,
) -> Env {
    let vfs = Arc::clone(&options.vfs);
    let first_write = first_write(Arc::clone(&vfs), root.to_owned(), Arc::clone(wrote), Arc::clone(reserve));
    let (signal, reserve) = (Arc::clone(signal), Arc::clone(reserve));
    Env {
        pool: FilePool::new(Arc::clone(&vfs), options.open_files_max),
        vfs,
        clock: Arc::clone(&options.clock),
        store_id,
        read_path: if maps_are_safe { options.read_path } else { ReadPath::Positional },
        verify: options.verify,
        read_only: options.read_only,
        before_first_write: Arc::new(first_write),
        make_room: Arc::new(move || reserve.give_up()),
        wake_upkeep: Arc::new(move |ms| signal.wake_within(ms)),
        has_upkeep: options.upkeep == Upkeep::Thread,
        bell: Arc::default(),
    }
}

/// Before the first byte is written Kafka's marker goes, so that a broker never trusts a stale one.
fn first_write(
    vfs: Arc<dyn Vfs>,
    root: PathBuf,
    wrote: Arc<AtomicBool>,
    reserve: Arc<Reserve>,
) -> impl Fn() -> Result<()> {
    let done = Mutex::new(false);
    move || {
        let mut done = done.lock();
        if !*done {
            checkpoints::remove_clean_shutdown(&*vfs, &root)?;
            wrote.store(true, Ordering::Release);
            reserve.take();
            *done = true;
        }
        Ok(())
    }
}

fn open_topics(
    env: &Env,
    root: &Path,
    catalog: &Catalog,
    budget: &Arc<Budget>,
    may_rewrite_in_place: bool,
    report: &mut RecoveryReport,
) -> Result<BTreeMap<TopicName, Arc<TopicInner>>> {
    let mut topics = BTreeMap::new();
    for entry in &catalog.topics {
        let (mut partitions, mut unreadable) = (BTreeMap::new(), BTreeMap::new());
        for &partition in &entry.partitions {
            let id = TopicPartition::new(entry.name.clone(), partition);
            let directory = root.join(id.directory_name());
            let open = || {
                let opening = opening(env, &id, directory.clone(), entry.topic_id, &entry.config);
                Opening { may_rewrite_in_place, ..opening }.open()
            };
            let opened = match open() {
                // A store that died on a full disk must come up, or nothing in it could be deleted.
                Err(Error::NoSpace { .. }) if !env.read_only && (env.make_room)() => open(),
                opened => opened,
            };
            let opened = opened.map_err(|error| missing_directory(error, &directory));
            let (log, partition_report) = match opened {
                Ok(opened) => opened,
                Err(error) if env.read_only => {
                    report.store.push(Repair::Unreadable { path: directory, reason: error.to_string() });
                    unreadable.insert(partition, error);
                    continue;
                }
                Err(error) => return Err(error),
            };
            if partition_report.unclean && !env.read_only {
                // A repaired partition is closed in order again only by `close`.
                (env.before_first_write)()?;
            }
            report.partitions.push(partition_report);
            partitions.insert(partition, Partition::new(Arc::new(log)));
        }
        let topic = TopicInner::new(entry.name.clone(), entry.topic_id, entry.config.clone(), partitions, budget);
        topics.insert(entry.name.clone(), Arc::new(topic.with_unreadable(unreadable).that_was_there()));
    }
    Ok(topics)
}

/// A partition that the manifest lists and that is not there was lost, not never made.
fn missing_directory(error: Error, directory: &Path) -> Error {
    match error {
        Error::Io { source, path, .. } if source.kind() == io::ErrorKind::NotFound && path.starts_with(directory) => {
            Error::corrupt(&path, 0, "the manifest of the store lists it, but it is missing")
        }
        error => error,
    }
}

fn open_foreign(
    env: &Env,
    root: &Path,
    catalog: &Catalog,
    budget: &Arc<Budget>,
    report: &mut RecoveryReport,
) -> Result<BTreeMap<TopicName, Arc<TopicInner>>> {
    let stated = read_hints(&*env.vfs, root, report)?;
    let (mut topics, mut topic_ids) = (BTreeMap::new(), TopicIds::default());
    for entry in &catalog.topics {
        let (mut partitions, mut unreadable) = (BTreeMap::new(), BTreeMap::new());
        for &partition in &entry.partitions {
            let id = TopicPartition::new(entry.name.clone(), partition);
            let hints = stated.of(&id);
            let opening = || {
                let directory = root.join(id.directory_name());
                let ids_are_known = false;
                Opening { hints, ids_are_known, ..opening(env, &id, directory, entry.topic_id, &entry.config) }
            };
            // A broker that went on after an adoption was interrupted made the partition's manifest void.
            let opened = note_topic_id(&*env.vfs, root, &id, &mut topic_ids).and_then(|()| {
                opening().open().or_else(|error| match error {
                    Error::NeedsAdopt { .. } => foreign::open(opening()),
                    error => Err(error),
                })
            });
            let (log, partition_report) = match opened {
                Ok(opened) => opened,
                Err(error) => {
                    let path = root.join(id.directory_name());
                    report.store.push(Repair::Unreadable { path, reason: error.to_string() });
                    unreadable.insert(partition, error);
                    continue;
                }
            };
            report.partitions.push(partition_report);
            partitions.insert(partition, Partition::new(Arc::new(log)));
        }
        let topic = TopicInner::new(entry.name.clone(), entry.topic_id, entry.config.clone(), partitions, budget);
        topics.insert(entry.name.clone(), Arc::new(topic.with_unreadable(unreadable)));
    }
    Ok(topics)
}

/// What a broker's checkpoints say.
pub(crate) fn read_hints(vfs: &dyn Vfs, root: &Path, report: &mut RecoveryReport) -> Result<Stated> {
    let (stated, damaged) = checkpoints::read_stated(vfs, root)?;
    let told = damaged.into_iter().map(|(path, reason)| Repair::CheckpointIgnored { path, reason });
    report.store.extend(told);
    Ok(stated)
}

/// A partition directory that no topic lists: an empty one of ours is what a creation left that never took effect; any
/// other is left alone.
fn note_unlisted(
    env: &Env,
    root: &Path,
    catalog: &Catalog,
    directories: &[TopicPartition],
    report: &mut RecoveryReport,
) -> Result<()> {
    let mut swept = false;
    for id in directories {
        let path = root.join(id.directory_name());
        // A creation may have failed under the name of a topic whose deletion is not finished: that directory is not the
        // deleted one.
        let is_deleted = |entry: &Deleting| {
            entry.topic == id.topic
                && entry.partition == id.partition.get()
                && is_partition_of(&*env.vfs, &path, entry.topic_id).unwrap_or(true)
        };
        if catalog.lists(id) || catalog.deleting.iter().any(is_deleted) {
            continue;
        }
        if !env.read_only && remove_uncommitted(&*env.vfs, &path, env.store_id).is_ok() {
            report.store.push(Repair::Swept { path });
            swept = true;
        } else {
            report.store.push(Repair::Stranger { path });
        }
    }
    if swept { env.vfs.sync_dir(root).map_err(|error| Error::io("sync directory", root, error)) } else { Ok(()) }
}

/// Whether a partition directory that no topic lists is what a creation left that did not take effect. Ours has a manifest,
/// which is written first of all and goes last; one without may be a broker's, and then the name of a log without records says
/// where offsets go on.
pub(crate) fn is_of_creation(vfs: &dyn Vfs, directory: &Path, store_id: Uuid) -> Result<bool> {
    let entries = vfs.list(directory).map_err(|error| Error::io("list", directory, error))?;
    let newest = manifest::slots(directory).read(vfs)?.newest;
    let found = newest.and_then(|slot| manifest::Manifest::decode(&slot.payload).ok());
    let is_other = found.is_some_and(|manifest| manifest.store_id != store_id);
    Ok(!is_other && (entries.is_empty() || entries.iter().any(|entry| entry.name.starts_with(manifest::NAME))))
}

/// Removes a partition directory that a creation left before it took effect. Refuses if there is any record in it, or
/// anything that this library would not have made.
pub(crate) fn remove_uncommitted(vfs: &dyn Vfs, directory: &Path, store_id: Uuid) -> Result<()> {
    let refuse = |why: &str| Err(Error::NeedsAdopt { path: directory.to_owned(), why: why.to_owned() });
    if !is_of_creation(vfs, directory, store_id)? {
        return refuse("no topic lists it, and another store or program made it");
    }
    if holds_records(vfs, directory)? {
        return refuse("no topic lists it, and there are records in it");
    }
    let entries = vfs.list(directory).map_err(|error| Error::io("list", directory, error))?;
    if let Some(stranger) = entries.iter().find(|entry| !may_remove(&entry.name, entry.kind)) {
        return refuse(&format!("it holds {:?}, which is not ours", stranger.name));
    }
    let (manifests, others): (Vec<_>, Vec<_>) =
        entries.into_iter().partition(|entry| entry.name.starts_with(manifest::NAME));
    if !others.is_empty() {
        remove_files(vfs, directory, &others)?;
        vfs.sync_dir(directory).map_err(|error| Error::io("sync directory", directory, error))?;
    }
    remove_files(vfs, directory, &manifests)?;
    remove_directory(vfs, directory)
}

/// Removes the directory of a deleted partition, if it still is the one that was deleted. It is renamed first, to the
/// name that a broker takes for a deleted partition too.
pub(crate) fn remove_deleted(vfs: &dyn Vfs, root: &Path, deleting: &Deleting) -> Result<()> {
    let id = TopicPartition::new(deleting.topic.clone(), deleting.partition);
    let directory = root.join(id.directory_name());
    let gone = root.join(deleted_name(&id, deleting.topic_id));
    if is_partition_of(vfs, &directory, deleting.topic_id)? {
        vfs.rename(&directory, &gone).map_err(|error| Error::io("rename", &directory, error))?;
        vfs.sync_dir(root).map_err(|error| Error::io("sync directory", root, error))?;
    }
    let entries = match vfs.list(&gone) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io("list", &gone, error)),
    };
    let quarantined = gone.join(quarantine::DIRECTORY);
    if entries.iter().any(|entry| entry.name == quarantine::DIRECTORY && entry.kind == EntryKind::Directory) {
        let kept = vfs.list(&quarantined).map_err(|error| Error::io("list", &quarantined, error))?;
        remove_files(vfs, &quarantined, &kept)?;
        remove_directory(vfs, &quarantined)?;
    }
    let files: Vec<_> = entries.into_iter().filter(|entry| entry.kind == EntryKind::File).collect();
    remove_files(vfs, &gone, &files)?;
    remove_directory(vfs, &gone)
}

fn is_partition_of(vfs: &dyn Vfs, directory: &Path, topic_id: Uuid) -> Result<bool> {
    match vfs.list(directory) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(Error::io("list", directory, error)),
    }
    let read = manifest::slots(directory).read(vfs)?;
    let found = read.newest.and_then(|slot| manifest::Manifest::decode(&slot.payload).ok());
    Ok(found.is_some_and(|manifest| manifest.topic_id == topic_id))
}

/// Kafka's name of a deleted partition: the topic is cut so that the whole has at most 255 characters.
fn deleted_name(id: &TopicPartition, topic_id: Uuid) -> String {
    let hex: String = topic_id.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let suffix = format!("-{}.{hex}-delete", id.partition);
    let topic: String = id.topic.as_str().chars().take(255 - suffix.len()).collect();
    format!("{topic}{suffix}")
}

fn may_remove(name: &str, kind: EntryKind) -> bool {
    let known = name.starts_with("topiclog.")
        || name::parse(name).is_some()
        || matches!(name, "partition.metadata" | "leader-epoch-checkpoint" | "leader-epoch-checkpoint.tmp")
        || name.ends_with(".tmp");
    kind == EntryKind::File && known
}

fn remove_files(vfs: &dyn Vfs, directory: &Path, entries: &[crate::io::DirEntry]) -> Result<()> {
    for entry in entries {
        let path = directory.join(&entry.name);
        vfs.remove_file(&path).map_err(|error| Error::io("remove", &path, error))?;
    }
    Ok(())
}

fn remove_directory(vfs: &dyn Vfs, directory: &Path) -> Result<()> {
    vfs.remove_dir(directory).map_err(|error| Error::io("remove", directory, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::MemoryVfs;

    /// The lock was once taken and dropped at once, so that a reader could map a file while recovery wrote it.
    #[test]
    fn the_follow_lock_is_held_while_recovery_may_write_in_place() {
        let vfs = MemoryVfs::new();
        let root = Path::new("/");
        let locks = take_locks(&StoreBuilder::default(), &vfs, root).unwrap();
        assert!(locks.follow.is_some());
        let reader = StoreBuilder::default().read_only(true);
        assert!(!take_locks(&reader, &vfs, root).unwrap().maps_are_safe);
        drop(locks.follow);
        assert!(take_locks(&reader, &vfs, root).unwrap().maps_are_safe);
    }
}
