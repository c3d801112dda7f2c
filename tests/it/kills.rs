//! Processes that are killed while they make and delete topics, while a table is compacted, and at each call to the disk: what
//! was acknowledged is so after the next open, and nothing half-made keeps a store from opening.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::path::Path;
use std::process::{ExitStatus, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use topiclog::client::OffsetAndMetadata;
use topiclog::group::Groups;
use topiclog::io::{DirEntry, DiskVfs, LockKind, OpenMode, Vfs, VfsFile, VfsLock, VfsMap};
use topiclog::{
    CleanupPolicy, Durability, Partition, ReadLevel, ReadOptions, Record, Store, TopicConfig, Upkeep, verify,
};

use crate::processes::{child, lines, open_once_it_is_free, quick_directory, ready, tell as say};
use crate::support::simulate::{Random, seed};

const KILLS_OF_TOPICS: usize = 50;
const KILLS_OF_TABLES: usize = 50;
/// So many calls of the load are picked, evenly.
const CALLS: u64 = 300;

/// Runs a child until it is killed, a time that the generator picks after it has opened its store.
fn killed(role: &str, root: &Path, random: &mut Random) -> String {
    let mut process = ready(child(role, root));
    std::thread::sleep(Duration::from_micros(random.below(60_000) as u64));
    process.kill().unwrap();
    let Output { status, stdout, .. } = process.wait_with_output().unwrap();
    assert_eq!(status.code(), None, "the child of {role} ended by itself");
    String::from_utf8_lossy(&stdout).into_owned()
}

/// What a child said of a topic last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    Creating,
    Created,
    /// Each partition has a record.
    Filled,
    Deleting,
    Deleted,
}

const SAID: [(&str, Said); 5] = [
    ("creating", Said::Creating),
    ("created", Said::Created),
    ("filled", Said::Filled),
    ("deleting", Said::Deleting),
    ("deleted", Said::Deleted),
];

fn note_topics(output: &str, known: &mut BTreeMap<String, Said>) {
    for line in output.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
        let Some((word, name)) = line.split_once(' ') else { continue };
        if let Some((_, said)) = SAID.iter().find(|(known, _)| *known == word) {
            known.insert(name.to_owned(), *said);
        }
    }
}

fn make_topic(store: &Store, name: &str) {
    say(&format!("creating {name}"));
    let config = TopicConfig::default().partitions(2).durability(Durability::Os).preallocate_bytes(0);
    let topic = store.create_topic(name, config).unwrap();
    say(&format!("created {name}"));
    topic.partitions().for_each(|partition| drop(partition.append(Record::of_value(name.to_owned())).unwrap()));
    say(&format!("filled {name}"));
}

fn delete_topic(store: &Store, name: &str) {
    say(&format!("deleting {name}"));
    store.delete_topic(name).unwrap();
    say(&format!("deleted {name}"));
}

/// In a child.
pub(crate) fn make_and_delete_topics_for_ever(root: &Path) {
    let store = Mortal::immortal(Upkeep::Manual, root);
    say("ready now");
    let mut live: VecDeque<String> = store.topics().iter().map(ToString::to_string).collect();
    for number in 0_usize.. {
        let name = format!("t.{}.{number}", std::process::id());
        make_topic(&store, &name);
        live.push_back(name);
        while live.len() > 3 {
            delete_topic(&store, &live.pop_front().unwrap());
        }
    }
}

/// Holds the topics of a store to what was said of them. What was begun may be done or not, but not in part. Returns what is
/// known of them from now on.
fn check_topics(store: &Store, known: &BTreeMap<String, Said>) -> BTreeMap<String, Said> {
    let mut left = BTreeMap::new();
    for (name, said) in known {
        let topic = match (store.topic(name), said) {
            (Ok(_), Said::Deleted) => panic!("{name} was deleted, and is there"),
            (Err(error), Said::Created | Said::Filled) => panic!("{name} was created, and is not there: {error}"),
            (Err(_), _) => continue,
            (Ok(topic), _) => topic,
        };
        assert_eq!(topic.partitions().count(), 2, "{name} is there in part");
        let mut counts = Vec::new();
        for partition in topic.partitions() {
            let values: Vec<_> =
                partition.read_from(0).map(|record| record.unwrap().value().unwrap().to_vec()).collect();
            assert!(values.iter().all(|value| value == name.as_bytes()) && values.len() < 2, "{name}: {values:?}");
            counts.push(values.len());
        }
        let is_filled = counts == [1, 1];
        assert!(is_filled || *said != Said::Filled, "{name}: a record that was acknowledged is not there");
        left.insert(name.clone(), if is_filled { Said::Filled } else { Said::Created });
    }
    left
}

/// Every directory is that of a partition that is there.
fn check_directories(store: &Store, root: &Path) {
    let mut expected: Vec<String> = Vec::new();
    for name in store.topics() {
        let topic = store.topic(name.as_str()).unwrap();
        expected.extend(topic.partitions().map(|partition| partition.id().to_string()));
    }
    let entries = std::fs::read_dir(root).unwrap().map(Result::unwrap);
    let directories = entries.filter(|entry| entry.file_type().unwrap().is_dir());
    let mut found: Vec<String> = directories.map(|entry| entry.file_name().into_string().unwrap()).collect();
    expected.sort();
    found.sort();
    assert_eq!(found, expected, "directories of partitions that are not there");
}

#[test]
fn a_topic_is_there_or_gone_as_a_killed_process_was_told() {
    let started = Instant::now();
    let mut random = Random(seed("kills of topics", 13));
    let directory = quick_directory();
    let (mut known, mut created, mut deleted) = (BTreeMap::new(), 0, 0);
    for _ in 0..KILLS_OF_TOPICS {
        let output = killed("topics", directory.path(), &mut random);
        created += lines(&output, "created").len();
        deleted += lines(&output, "deleted").len();
        note_topics(&output, &mut known);
        let store = Mortal::immortal(Upkeep::Manual, directory.path());
        let known_before = std::mem::take(&mut known);
        known = check_topics(&store, &known_before);
        let unknown: Vec<_> = store.topics().into_iter().filter(|name| !known.contains_key(name.as_str())).collect();
        assert!(unknown.is_empty(), "nobody made {unknown:?}");
        check_directories(&store, directory.path());
        store.close().unwrap();
    }
    let seconds = started.elapsed().as_secs_f64();
    tell!("kills of topics: {KILLS_OF_TOPICS}, 0 failures, {seconds:.1} s, {created} created, {deleted} deleted");
    assert!(created >= 200 && deleted >= 100, "{created} created, {deleted} deleted");
}

/// Where the last value of a key was acknowledged, and its hash.
type Acked = BTreeMap<String, (i64, u32)>;

fn append_and_say(partition: &Partition, key: &str, value: &str) {
    let placed = partition.append(Record::keyed(key.to_owned(), value.to_owned())).unwrap();
    say(&format!("ack {key} {} {}", placed.offset, crc32fast::hash(value.as_bytes())));
}

/// In a child, with its upkeep thread beside it.
pub(crate) fn append_to_a_table_for_ever(root: &Path) {
    let store = Mortal::immortal(Upkeep::Thread, root);
    say("ready now");
    // A short window has the thread look around all the time.
    let durability = Durability::Interval { bytes: 1 << 20, ms: 2 };
    let config = TopicConfig::default().durability(durability).cleanup_policy(CleanupPolicy::Compact);
    let config = config.segment_bytes(16 << 10).preallocate_bytes(0).min_cleanable_dirty_ratio(0.0);
    let topic = store.ensure_topic("table", config).unwrap();
    let partition = topic.partition(0).unwrap();
    let mut random = Random(u64::from(std::process::id()));
    let mut compactions = 0;
    loop {
        let key = format!("key-{}", random.below(40));
        let value = format!("{key} {}", "z".repeat(random.below(200)));
        append_and_say(&partition, &key, &value);
        // Not faster than segments are sealed, which compaction waits for.
        std::thread::sleep(Duration::from_micros(50));
        let now = topic.upkeep_stats().compactions;
        (compactions..now).for_each(|nth| say(&format!("compacted {nth}")));
        compactions = now;
    }
}

fn note_acks(output: &str, acked: &mut Acked) -> usize {
    let told = lines(output, "ack");
    for line in &told {
        let words: Vec<&str> = line.split(' ').collect();
        let [key, offset, hash] = words[..] else { panic!("{line}") };
        acked.insert(key.to_owned(), (offset.parse().unwrap(), hash.parse().unwrap()));
    }
    told.len()
}

/// Each key has the value that was acknowledged last, or one that was appended after it.
fn check_table(partition: &Partition, acked: &Acked) {
    let reader = partition.reader(partition.start(), &ReadOptions::new().level(ReadLevel::Latest)).unwrap();
    let mut found = Acked::new();
    for record in reader {
        let record = record.unwrap();
        let key = String::from_utf8(record.key().unwrap().to_vec()).unwrap();
        let value = record.value().unwrap();
        assert!(value.starts_with(format!("{key} ").as_bytes()), "offset {}: another key's value", record.offset());
        found.insert(key, (record.offset().get(), crc32fast::hash(value)));
    }
    for (key, last) in acked {
        let now = found.get(key).unwrap_or_else(|| panic!("{key} is lost: it was acknowledged at {}", last.0));
        assert!(now == last || now.0 > last.0, "{key} is at {now:?}, {last:?} was acknowledged");
    }
}

#[test]
fn a_table_that_is_compacted_has_the_last_value_of_each_key_after_a_kill() {
    let started = Instant::now();
    let mut random = Random(seed("kills of compaction", 14));
    let directory = quick_directory();
    let (mut acked, mut appends, mut compactions) = (Acked::new(), 0, 0);
    let (mut clean_end, mut cleaned) = (0, 0);
    for _ in 0..KILLS_OF_TABLES {
        let output = killed("compaction", directory.path(), &mut random);
        appends += note_acks(&output, &mut acked);
        compactions += lines(&output, "compacted").len();
        let store = Mortal::immortal(Upkeep::Manual, directory.path());
        if let Ok(topic) = store.topic("table") {
            let partition = topic.partition(0).unwrap();
            check_table(&partition, &acked);
            cleaned += usize::from(partition.clean_end().get() > clean_end);
            clean_end = partition.clean_end().get();
        }
        store.close().unwrap();
    }
    let seconds = started.elapsed().as_secs_f64();
    let counts = format!("{appends} appends, {compactions} compactions, {cleaned} kills behind one");
    tell!("kills of compaction: {KILLS_OF_TABLES}, 0 failures, {seconds:.1} s, {counts}");
    assert!(appends >= 1000 && compactions >= 20 && cleaned >= 15, "{counts}");
}

/// What the process that dies says as its last word.
const DEAD: i32 = 86;

/// The disk, under a process that ends at one of its calls: before it, or in a write after half of it. A kill leaves to the
/// next process what was written whether it was synced or not, so syncs are counted and not done.
#[derive(Clone, Debug)]
struct Mortal {
    disk: Arc<DiskVfs>,
    calls: Arc<AtomicU64>,
    last_call: u64,
}

impl Mortal {
    fn new(last_call: u64) -> Self {
        Self { disk: Arc::new(DiskVfs::new()), calls: Arc::default(), last_call }
    }

    fn is_last(&self) -> bool {
        self.calls.fetch_add(1, Ordering::SeqCst) + 1 == self.last_call
    }

    fn call(&self) {
        if self.is_last() {
            std::process::exit(DEAD);
        }
    }

    fn open(&self, upkeep: Upkeep, root: &Path) -> Store {
        let builder = Store::builder().vfs(Arc::new(self.clone())).upkeep(upkeep);
        open_once_it_is_free(&builder, root).unwrap()
    }

    /// A store over a disk on which nobody dies at a call.
    fn immortal(upkeep: Upkeep, root: &Path) -> Store {
        Self::new(0).open(upkeep, root)
    }
}

impl Vfs for Mortal {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn VfsFile>> {
        if matches!(mode, OpenMode::Create | OpenMode::CreateNew) {
            self.call();
        }
        Ok(Arc::new(MortalFile(self.disk.open(path, mode)?, self.clone())))
    }
    fn list(&self, directory: &Path) -> io::Result<Vec<DirEntry>> {
        self.disk.list(directory)
    }
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.call();
        self.disk.create_dir(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call();
        self.disk.rename(from, to)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.call();
        self.disk.remove_file(path)
    }
    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.call();
        self.disk.remove_dir(path)
    }
    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        self.call();
        Ok(())
    }
    fn lock(&self, path: &Path, kind: LockKind) -> io::Result<Box<dyn VfsLock>> {
        self.disk.lock(path, kind)
    }
}

struct MortalFile(Arc<dyn VfsFile>, Mortal);

impl fmt::Debug for MortalFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl VfsFile for MortalFile {
    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        self.0.read_at(buffer, position)
    }
    fn write_at(&self, bytes: &[u8], position: u64) -> io::Result<usize> {
        if self.1.is_last() {
            self.0.write_at(&bytes[..bytes.len() / 2], position)?;
            std::process::exit(DEAD);
        }
        self.0.write_at(bytes, position)
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.1.call();
        self.0.set_len(bytes)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.1.call();
        Ok(())
    }
    fn sync_all(&self) -> io::Result<()> {
        self.1.call();
        Ok(())
    }
    fn allocate(&self, position: u64, bytes: u64) -> io::Result<()> {
        self.1.call();
        self.0.allocate(position, bytes)
    }
    fn map(&self, bytes: u64) -> io::Result<Option<Box<dyn VfsMap>>> {
        self.0.map(bytes)
    }
    fn set_modified(&self, modified_ms: i64) -> io::Result<()> {
        self.1.call();
        self.0.set_modified(modified_ms)
    }
}

/// In a child: a little of everything that writes. It says how many calls that took, if it lives so long.
pub(crate) fn die_at_a_call(root: &Path, last_call: u64) {
    let disk = Mortal::new(last_call);
    let store = disk.open(Upkeep::Manual, root);
    let config = TopicConfig::default().durability(Durability::Sync).cleanup_policy(CleanupPolicy::Compact);
    let config = config.segment_bytes(700).index_interval_bytes(100).preallocate_bytes(512);
    let table = store.ensure_topic("table", config.min_cleanable_dirty_ratio(0.0)).unwrap();
    let partition = table.partition(0).unwrap();
    let groups = Groups::open(&store).unwrap();
    for number in 0..24 {
        let key = format!("key-{}", number % 5);
        append_and_say(&partition, &key, &format!("{key} {}", "w".repeat(number * 3)));
        if number % 8 == 7 {
            store.tick().unwrap();
            let next = partition.end().get();
            groups.commit("g", &[(partition.id().clone(), OffsetAndMetadata::new(next))]).unwrap();
            say(&format!("committed {next}"));
        }
    }
    let [kept, gone] = ["kept", "gone"].map(|name| format!("{name}.{}", std::process::id()));
    make_topic(&store, &kept);
    make_topic(&store, &gone);
    delete_topic(&store, &gone);
    store.tick().unwrap();
    store.close().unwrap();
    say(&format!("calls {}", disk.calls.load(Ordering::SeqCst)));
}

/// What processes that died one after the other in one directory were told, all in all.
#[derive(Default)]
struct Told {
    acked: Acked,
    topics: BTreeMap<String, Said>,
    committed: i64,
}

impl Told {
    fn run(&mut self, root: &Path, last_call: u64) -> (ExitStatus, Option<u64>) {
        let mut command = child(&format!("dies at call {last_call}"), root);
        let Output { status, stdout, .. } = command.stdin(std::process::Stdio::null()).output().unwrap();
        let output = String::from_utf8_lossy(&stdout).into_owned();
        note_acks(&output, &mut self.acked);
        note_topics(&output, &mut self.topics);
        for line in lines(&output, "committed") {
            self.committed = line.parse().unwrap();
        }
        (status, lines(&output, "calls").first().map(|calls| calls.parse().unwrap()))
    }

    fn check(&self, root: &Path) {
        let open = || Mortal::immortal(Upkeep::Manual, root);
        let store = open();
        check_topics(&store, &self.topics);
        check_directories(&store, root);
        if let Ok(topic) = store.topic("table") {
            let partition = topic.partition(0).unwrap();
            check_table(&partition, &self.acked);
            let found = Groups::open(&store).unwrap().committed("g", partition.id()).unwrap();
            let found = found.map_or(0, |found| found.offset);
            assert!(found >= self.committed, "committed at {found}, {} was acknowledged", self.committed);
            partition.append(Record::keyed("key-0", "key-0 and on")).unwrap();
        } else {
            assert!(self.acked.is_empty(), "the table is gone");
        }
        store.close().unwrap();
        let store = open();
        assert!(!store.recovery_report().is_unclean(), "{:?}", store.recovery_report());
        store.close().unwrap();
        let report = verify(root).unwrap();
        assert_eq!(report.damages().count(), 0, "{report:?}");
    }
}

/// Every third process is followed by one that dies while it opens what the first has left.
#[test]
fn a_process_that_dies_at_any_call_to_the_disk_loses_nothing_that_it_was_told() {
    let started = Instant::now();
    let directory = quick_directory();
    let mut told = Told::default();
    let (_, calls) = told.run(directory.path(), 0);
    let calls = calls.expect("the load ends if nothing ends it");
    told.check(directory.path());
    let (mut kills, mut kills_of_recovery) = (0, 0);
    for nth in 0..CALLS {
        let last_call = 1 + nth * calls / CALLS;
        let directory = quick_directory();
        let mut told = Told::default();
        let (status, _) = told.run(directory.path(), last_call);
        assert_eq!(status.code(), Some(DEAD), "call {last_call} of {calls}");
        kills += 1;
        if nth % 3 == 0 {
            let (status, _) = told.run(directory.path(), 1 + nth / 3 % 20);
            assert_eq!(status.code(), Some(DEAD), "call {last_call} of {calls}, and again");
            kills_of_recovery += 1;
        }
        let checked = std::panic::catch_unwind(|| told.check(directory.path()));
        assert!(checked.is_ok(), "after call {last_call} of {calls}");
    }
    let seconds = started.elapsed().as_secs_f64();
    let said = format!("{kills} of {calls} calls, {kills_of_recovery} of them twice, 0 failures, {seconds:.1} s");
    tell!("kills at a call: {said}");
    assert!(calls >= 300 && kills >= 300 && kills_of_recovery >= 100, "{said}");
}
