//! What the kernel does: no space, no descriptors, files that get shorter under a map.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use topiclog::{Durability, Error, Partition, ReadLevel, ReadOptions, ReadPath, Record, Store, TopicConfig, Upkeep};

use crate::processes::{child, quick_directory, ready, said, skip, tell};

/// How often each is done.
const FULL_DISKS: usize = 6;
const FEW_DESCRIPTORS: usize = 4;
const SHORTENED: usize = 18;
const GONE_PAGES: usize = 16;
const FAILING_SYNCS: usize = 20;
const _: () = assert!(FULL_DISKS + FEW_DESCRIPTORS + SHORTENED + GONE_PAGES + FAILING_SYNCS >= 60);

struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(self.0).status());
    }
}

fn holds(partition: &Partition, count: usize) {
    let mut read = 0;
    for record in partition.read_from(0) {
        assert_eq!(record.unwrap().value().unwrap(), vec![read as u8; 8000], "{read}");
        read += 1;
    }
    assert_eq!((read, partition.end().get()), (count, count as i64));
}

#[test]
fn a_full_disk_stops_appends_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(directory.path()).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        return skip("a full disk", "mounting a tmpfs needs root");
    }
    let _mounted = Mounted(directory.path());
    let (root, ballast) = (directory.path().join("store"), directory.path().join("ballast"));
    fs::write(&ballast, vec![1; 300 << 10]).unwrap();
    for durability in [Durability::Sync, Durability::Os].repeat(FULL_DISKS / 2) {
        let store = Store::builder().upkeep(Upkeep::Manual).open(&root).unwrap();
        let config = TopicConfig::default().durability(durability).segment_bytes(100_000).preallocate_bytes(0);
        let topic = store.create_topic("t", config).unwrap();
        let partition = topic.partition(0).unwrap();
        let mut count = 0;
        let append = |count: usize| partition.append(Record::of_value(vec![count as u8; 8000]));
        let mut early = 0;
        let error = loop {
            match append(count) {
                Ok(_) => count += 1,
                // A child that another test has just forked holds files that were deleted, until it is a program.
                Err(Error::NoSpace { .. }) if count <= 40 && early < 100 => {
                    early += 1;
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
                Err(error) => break error,
            }
        };
        assert!(matches!(error, Error::NoSpace { .. }), "{error}");
        assert!(count > 40, "{count}");
        assert!(matches!(append(count), Err(Error::NoSpace { .. })));
        holds(&partition, count);
        fs::remove_file(&ballast).unwrap();
        for _ in 0..5 {
            append(count).unwrap();
            count += 1;
        }
        drop((store, topic, partition));
        let store = Store::builder().upkeep(Upkeep::Manual).open(&root).unwrap();
        holds(&store.topic("t").unwrap().partition(0).unwrap(), count);
        store.close().unwrap();
        drop(store);
        fs::remove_dir_all(&root).unwrap();
        fs::write(&ballast, vec![1; 300 << 10]).unwrap();
    }
}

/// In a child with few descriptors, a third of which are for the files of the store.
pub(crate) fn use_many_partitions(root: &Path) {
    let builder = || Store::builder().upkeep(Upkeep::Manual).open_files_max(8);
    let store = builder().open(root).unwrap();
    let config = TopicConfig::default().partitions(200).durability(Durability::Os).preallocate_bytes(0);
    let topic = store.create_topic("t", config).unwrap();
    for round in 0..3 {
        for partition in topic.partitions() {
            partition.append(Record::of_value(format!("{round}"))).unwrap();
        }
    }
    let read = |topic: &topiclog::Topic| {
        topic.partitions().map(|partition| partition.read_from(0).map(Result::unwrap).count()).sum::<usize>()
    };
    assert_eq!(read(&topic), 600);
    store.close().unwrap();
    drop((store, topic));
    let store = builder().open(root).unwrap();
    tell(&format!("read {}", read(&store.topic("t").unwrap())));
}

#[test]
fn many_partitions_live_with_few_descriptors() {
    for _ in 0..FEW_DESCRIPTORS {
        let directory = quick_directory();
        let inner = child("descriptors", directory.path());
        let mut limited = Command::new("sh");
        limited.args(["-c", "ulimit -n 24; exec \"$0\" \"$@\""]).arg(inner.get_program()).args(inner.get_args());
        limited.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        assert_eq!(said(limited, "read"), ["600"]);
    }
    tell!("few descriptors: {FEW_DESCRIPTORS}");
}

/// In a child, as a map has no other way to complain than a signal: the file gets shorter between the reads of two records, both
/// in the first segment, the second far behind what is left of it.
pub(crate) fn shorten_and_read(root: &Path, reads: ReadPath, [first, second]: [i64; 2]) {
    let store = Store::builder().upkeep(Upkeep::Manual).reads(reads).open(root).unwrap();
    let partition = store.topic("t").unwrap().partition(0).unwrap();
    assert!(partition.record(first).unwrap().is_some());
    let log = root.join("t-0/00000000000000000000.log");
    fs::OpenOptions::new().write(true).open(log).unwrap().set_len(8192).unwrap();
    tell(&format!("code {}", partition.record(second).map_or_else(|error| error.code(), |_| "ok")));
    let again = partition.record(second).map_or_else(|error| error.code(), |_| "ok");
    tell(&format!("code {again}"));
}

/// Two segments of records, closed in order.
fn filled() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::builder().upkeep(Upkeep::Manual).open(directory.path()).unwrap();
    let config = TopicConfig::default().durability(Durability::Os).segment_bytes(1 << 20).preallocate_bytes(0);
    let partition = store.create_topic("t", config).unwrap().partition(0).unwrap();
    for number in 0..190 {
        partition.append(Record::of_value(vec![number; 8000])).unwrap();
    }
    store.close().unwrap();
    directory
}

#[test]
fn a_file_that_got_shorter_is_an_error_at_its_first_read() {
    let of_map = &["corrupt", "io"][..];
    // What was read near the end was once taken to have brought in all that lies before it.
    let backwards = ("shorten mapped, read backwards", of_map);
    let roles = [("shorten mapped", of_map), ("shorten positional", &["corrupt"]), backwards];
    for (role, expected) in roles.repeat(SHORTENED / 3) {
        let directory = filled();
        let codes = said(child(role, directory.path()), "code");
        assert!(codes.len() == 2 && codes.iter().all(|code| expected.contains(&code.as_str())), "{role}: {codes:?}");
    }
    tell!("shortened before it was read: {SHORTENED}");
}

/// In a child: reads a record, which checks it, and reads it again once the parent has had its way with the file.
pub(crate) fn read_twice(root: &Path, reads: ReadPath) {
    let store = Store::builder().upkeep(Upkeep::Manual).reads(reads).open(root).unwrap();
    let partition = store.topic("t").unwrap().partition(0).unwrap();
    let sum = || -> topiclog::Result<u64> {
        let record = partition.record(100)?.unwrap();
        Ok(record.value().unwrap().iter().map(|byte| u64::from(*byte)).sum())
    };
    assert_eq!(sum().unwrap(), 800_000);
    tell("ready now");
    std::io::stdin().read_exact(&mut [0]).unwrap();
    tell(&format!("code {}", sum().map_or_else(|error| error.code(), |_| "ok")));
}

/// A map has no error path: a page that was checked and is gone afterwards kills the process. Who cannot accept that reads
/// positionally, and gets an error. Both are promised, so both are tested.
#[cfg(unix)]
#[test]
fn a_checked_page_that_is_gone_kills_a_mapped_reader_and_is_an_error_to_a_positional_one() {
    use std::os::unix::process::ExitStatusExt as _;

    for (role, signal) in [("watch mapped", Some(nix::libc::SIGBUS)), ("watch positional", None)].repeat(GONE_PAGES / 2)
    {
        let directory = filled();
        let inner = child(role, directory.path());
        // A child that dies as it should leaves no core behind.
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -c 0; exec \"$0\" \"$@\""]).arg(inner.get_program()).args(inner.get_args());
        command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut process = ready(command);
        let log = directory.path().join("t-0/00000000000000000000.log");
        fs::OpenOptions::new().write(true).open(log).unwrap().set_len(8192).unwrap();
        process.stdin.take().unwrap().write_all(b"x").unwrap();
        let output = process.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.signal(), signal, "{role}: {}", output.status);
        if signal.is_none() {
            assert!(said.contains("code corrupt") || said.contains("code io"), "{said}");
        }
    }
    tell!("shortened after it was read: {GONE_PAGES}");
}

fn run(program: &str, words: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(words).output().map_err(|error| format!("{program}: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(format!("{program}: {}", text(&output.stderr))) }
}

/// An ext4 on a loop device, whose image is a sparse file on a small tmpfs: once that is full, the file system still has
/// room and takes every write, and only the write-back fails.
struct Thin {
    back: PathBuf,
    front: PathBuf,
    device: Option<String>,
    _directory: tempfile::TempDir,
}

impl Thin {
    fn new() -> Result<Self, String> {
        let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
        let (back, front) = (directory.path().join("back"), directory.path().join("front"));
        for path in [&back, &front] {
            fs::create_dir(path).map_err(|error| error.to_string())?;
        }
        let mut thin = Self { back, front, device: None, _directory: directory };
        run("mount", &["-t", "tmpfs", "-o", "size=24m", "tmpfs", &thin.back.to_string_lossy()])?;
        let image = thin.back.join("disk.img");
        fs::File::create(&image).and_then(|file| file.set_len(64 << 20)).map_err(|error| error.to_string())?;
        let image = image.to_string_lossy();
        run("mkfs.ext4", &["-q", "-F", "-J", "size=1", "-E", "lazy_itable_init=0,lazy_journal_init=0", &image])?;
        thin.device = Some(run("losetup", &["-f", "--show", &image])?);
        thin.mount()?;
        Ok(thin)
    }

    fn mount(&self) -> Result<(), String> {
        run("mount", &["-t", "ext4", self.device.as_deref().unwrap(), &self.front.to_string_lossy()]).map(drop)
    }

    /// Nothing of the file system is in the cache after that.
    fn remount(&self) {
        // A child that another test has just forked holds every open file, until it is a program.
        let mut unmounted = run("umount", &[&self.front.to_string_lossy()]);
        for _ in 0..100 {
            if unmounted.is_ok() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
            unmounted = run("umount", &[&self.front.to_string_lossy()]);
        }
        unmounted.unwrap();
        self.mount().unwrap();
    }

    fn fill(&self) {
        let mut ballast = fs::File::create(self.back.join("ballast")).unwrap();
        for bytes in [64 << 10, 4096, 1] {
            while ballast.write_all(&vec![7; bytes]).is_ok() {}
        }
    }

    fn make_room(&self) {
        fs::remove_file(self.back.join("ballast")).unwrap();
    }
}

impl Drop for Thin {
    fn drop(&mut self) {
        run("umount", &["-l", &self.front.to_string_lossy()]).ok();
        if let Some(device) = &self.device {
            run("losetup", &["-d", device]).ok();
        }
        run("umount", &["-l", &self.back.to_string_lossy()]).ok();
    }
}

/// The real thing that the simulated sync failures are made after: the kernel takes the write, fails to bring it to the
/// disk, says so once per descriptor, and shows the data until the cache is dropped.
#[test]
fn a_failing_fsync_is_told_of_and_loses_nothing_acknowledged() {
    let (mut acked, mut unknown) = (0, 0);
    for _ in 0..FAILING_SYNCS {
        let thin = match Thin::new() {
            Ok(thin) => thin,
            Err(why) => return skip("a failing fsync", &format!("it needs root and a loop device: {why}")),
        };
        let (kept, unsure) = fail_once(&thin);
        (acked, unknown) = (acked + kept, unknown + unsure);
    }
    tell!("failing fsync: {FAILING_SYNCS}, {acked} acknowledged, {unknown} of those that were not are there");
}

/// How many records were acknowledged before the sync failed, and how many are there besides.
fn fail_once(thin: &Thin) -> (i64, i64) {
    let root = thin.front.join("store");
    let open = || Store::builder().upkeep(Upkeep::Manual).open(&root).unwrap();
    let store = open();
    let config = TopicConfig::default().durability(Durability::Sync).preallocate_bytes(0);
    let topic = store.create_topic("t", config).unwrap();
    let partition = topic.partition(0).unwrap();
    // So many commits that the journal has gone round: its blocks are in the image from then on.
    for number in 0..600 {
        partition.append(Record::of_value(format!("kept {number}"))).unwrap();
    }
    let acked = partition.end().get();
    thin.fill();
    let errors: Vec<Error> = std::thread::scope(|scope| {
        let large = || partition.append(Record::of_value(vec![b'x'; 900_000])).unwrap_err();
        let waiters: Vec<_> = (0..3).map(|_| scope.spawn(large)).collect();
        waiters.into_iter().map(|waiter| waiter.join().unwrap()).collect()
    });
    assert!(errors.iter().any(|error| matches!(error, Error::OutcomeUnknown { .. })), "{errors:?}");
    let is_told = |error: &Error| matches!(error, Error::OutcomeUnknown { .. } | Error::Poisoned { .. });
    assert!(errors.iter().all(is_told), "{errors:?}");
    assert!(matches!(partition.append(Record::of_value("no")), Err(Error::Poisoned { .. })));
    assert!(matches!(partition.flush(), Err(Error::SyncFailed { .. })));
    assert_eq!((partition.durable_end().get(), count_kept(&partition)), (acked, acked));
    assert!(store.close().is_err());
    drop((store, topic, partition));
    thin.make_room();
    thin.remount();
    let store = open();
    let partition = store.topic("t").unwrap().partition(0).unwrap();
    assert_eq!(count_kept(&partition), acked);
    let unknown = partition.end().get() - acked;
    partition.append(Record::of_value("again")).unwrap();
    drop((store, partition));
    thin.remount();
    let partition = open().topic("t").unwrap().partition(0).unwrap();
    assert_eq!((count_kept(&partition), partition.end().get()), (acked, acked + unknown + 1));
    (acked, unknown)
}

/// How many of the records that were acknowledged before the failure are there and right; nothing else stands before them.
fn count_kept(partition: &Partition) -> i64 {
    let reader = partition.reader(0, &ReadOptions::new().level(ReadLevel::Durable)).unwrap();
    let is_kept =
        |record: &topiclog::StoredRecord| record.value() == Some(format!("kept {}", record.offset()).as_bytes());
    reader.map(Result::unwrap).take_while(is_kept).count() as i64
}
