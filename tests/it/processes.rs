//! What other processes do: they are killed, they hold locks, they read beside a writer.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use topiclog::{Durability, Error, ReadLevel, ReadOptions, ReadPath, Record, Store, StoreBuilder, TopicConfig, Upkeep};

use crate::kafka_dirs::tree;
use crate::support::simulate::{Random, seed};

const ROLE: &str = "TOPICLOG_TEST_CHILD";

/// Says why a test cannot run here; where everything must run, that is a failure.
pub(crate) fn skip(name: &str, reason: &str) {
    tell!("SKIP {name}: {reason}");
    assert!(std::env::var("TOPICLOG_REQUIRE_ROOT").as_deref() != Ok("1"), "{name} must not be skipped: {reason}");
}

/// This binary again, as something else.
pub(crate) fn child(role: &str, root: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "processes::a_child_does_what_it_is_told", "--nocapture"]);
    command.env(ROLE, format!("{role}:{}", root.display())).stdin(Stdio::piped());
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

fn say(line: &str) {
    std::io::stdout().write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// A directory for tests that no power cut is part of: in memory where the system has that, as syncs take most of the time
/// elsewhere and show nothing.
pub(crate) fn quick_directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// What a child said in lines that begin with `word`.
pub(crate) fn said(child: Command, word: &str) -> Vec<String> {
    let mut child = child;
    let output = child.stdin(Stdio::null()).output().unwrap();
    lines(&String::from_utf8_lossy(&output.stdout), word)
}

pub(crate) fn lines(text: &str, word: &str) -> Vec<String> {
    let whole = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
    whole.filter_map(|line| line.strip_prefix(word)?.strip_prefix(' ')).map(str::to_owned).collect()
}

#[test]
fn a_child_does_what_it_is_told() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let (role, root) = role.split_once(':').unwrap();
    let root = Path::new(root);
    match role {
        "sync" => append_for_ever(root, Durability::Sync),
        "os" => append_for_ever(root, Durability::Os),
        "interval" => append_for_ever(root, Durability::Interval { bytes: 16 << 10, ms: 5 }),
        "groups" => crate::group_kills::read_and_commit_for_ever(root),
        "topics" => crate::kills::make_and_delete_topics_for_ever(root),
        "compaction" => crate::kills::append_to_a_table_for_ever(root),
        "hold" => {
            let store = Store::open(root).unwrap();
            say("ready now");
            drop(std::io::stdin().read_to_end(&mut Vec::new()));
            drop(store);
        }
        "try" => say(&format!("result {}", outcome(Store::builder(), root))),
        "look" => say(&format!("result {}", outcome(Store::builder().read_only(true), root))),
        "descriptors" => crate::kernel::use_many_partitions(root),
        "shorten mapped" => crate::kernel::shorten_and_read(root, ReadPath::Mapped, [0, 100]),
        "shorten mapped, read backwards" => crate::kernel::shorten_and_read(root, ReadPath::Mapped, [120, 60]),
        "shorten positional" => crate::kernel::shorten_and_read(root, ReadPath::Positional, [0, 100]),
        "watch mapped" => crate::kernel::read_twice(root, ReadPath::Mapped),
        "watch positional" => crate::kernel::read_twice(root, ReadPath::Positional),
        other => match other.strip_prefix("dies at call ") {
            Some(nth) => crate::kills::die_at_a_call(root, nth.parse().unwrap()),
            None => panic!("no such role: {other}"),
        },
    }
}

pub(crate) fn tell(line: &str) {
    say(line);
}

fn append_for_ever(root: &Path, durability: Durability) {
    let store = Store::open(root).unwrap();
    let config = TopicConfig::default().durability(durability).segment_bytes(32 << 10).preallocate_bytes(16 << 10);
    let topic = store.ensure_topic("t", config.max_unsynced_bytes(2 << 20)).unwrap();
    for number in 0_usize.. {
        let value = format!("{} {number} {}", std::process::id(), "y".repeat(number * 31 % 400));
        let hash = crc32fast::hash(value.as_bytes());
        let placed = topic.append(Record::of_value(value)).unwrap();
        say(&format!("ack {} {hash}", placed.offset));
    }
}

/// A child that another test forks holds the locks of this process as well, until it calls `exec`.
pub(crate) fn open_once_it_is_free(builder: &StoreBuilder, root: &Path) -> topiclog::Result<Store> {
    let started = Instant::now();
    loop {
        let opened = builder.clone().open(root);
        if !is_locked(&opened) || started.elapsed() > Duration::from_secs(10) {
            return opened;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn check_acks(root: &Path, acks: &BTreeMap<i64, u32>) -> Result<(), String> {
    let builder = Store::builder().upkeep(Upkeep::Manual);
    let store = open_once_it_is_free(&builder, root).map_err(|error| error.to_string())?;
    let Some((&first, _)) = acks.first_key_value() else { return Ok(()) };
    let partition = store.topic("t").and_then(|topic| topic.partition(0)).map_err(|error| error.to_string())?;
    let options = ReadOptions::new().level(ReadLevel::Latest);
    let mut left = acks.clone();
    for record in partition.reader(first, &options).map_err(|error| error.to_string())? {
        let record = record.map_err(|error| error.to_string())?;
        let hash = crc32fast::hash(record.value().unwrap_or_default());
        if left.remove(&record.offset().get()).is_some_and(|acked| acked != hash) {
            return Err(format!("another record at {}", record.offset()));
        }
    }
    if left.is_empty() { Ok(()) } else { Err(format!("{} acknowledged records are lost", left.len())) }
}

#[test]
fn nothing_acknowledged_is_lost_by_kill() {
    let started = Instant::now();
    let mut random = Random(seed("kills", 11));
    let (mut kills, mut acked, mut failures) = (0, 0, Vec::new());
    for role in ["sync", "os", "interval"] {
        let directory = tempfile::tempdir().unwrap();
        for round in 0..100 {
            let mut process = child(role, directory.path()).spawn().unwrap();
            std::thread::sleep(Duration::from_micros(random.below(40_000) as u64));
            process.kill().unwrap();
            let output = process.wait_with_output().unwrap();
            let acks: BTreeMap<i64, u32> = lines(&String::from_utf8_lossy(&output.stdout), "ack")
                .iter()
                .map(|line| line.split_once(' ').unwrap())
                .map(|(offset, hash)| (offset.parse().unwrap(), hash.parse().unwrap()))
                .collect();
            (kills, acked) = (kills + 1, acked + acks.len());
            if let Err(problem) = check_acks(directory.path(), &acks) {
                failures.push(format!("{role} round {round}: {problem}"));
            }
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    tell!("kills: {kills}, {} failures, {seconds:.1} s, {acked} acknowledged", failures.len());
    assert!(failures.is_empty(), "{failures:#?}");
    assert!(kills >= 300 && acked > 1000, "{kills} kills, {acked} acknowledged");
}

fn is_locked(opened: &topiclog::Result<Store>) -> bool {
    matches!(opened, Err(Error::Locked { .. }))
}

/// Starts a child, and waits until it says that it is ready.
pub(crate) fn ready(mut command: Command) -> Child {
    let mut process = command.spawn().unwrap();
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(b"ready now\n") {
        assert_eq!(process.stdout.as_mut().unwrap().read(&mut byte).unwrap(), 1, "the child ended");
        text.push(byte[0]);
    }
    process
}

#[test]
pub(crate) fn a_second_writer_is_refused_in_this_process_and_in_another() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    assert!(is_locked(&Store::open(directory.path())));
    assert_eq!(said(child("try", directory.path()), "result"), ["locked"]);
    let other = tempfile::tempdir().unwrap();
    assert!(Store::open(other.path()).is_ok());
    let topic = store.create_topic("t", TopicConfig::default()).unwrap();
    // Handles that live on are closed, and hold no lock.
    store.close().unwrap();
    assert!(matches!(topic.append(Record::of_value("x")), Err(Error::Closed { .. })));
    assert_eq!(said(child("try", directory.path()), "result"), ["ok"]);
    assert!(Store::open(directory.path()).is_ok());
}

#[test]
fn a_writer_in_another_process_keeps_us_out_until_it_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let mut process = ready(child("hold", directory.path()));
    assert!(is_locked(&Store::open(directory.path())));
    // The lock that a broker would take still tells, if someone deletes ours.
    std::fs::remove_file(directory.path().join("topiclog.lock")).unwrap();
    assert!(is_locked(&Store::open(directory.path())));
    process.kill().unwrap();
    process.wait().unwrap();
    assert!(Store::open(directory.path()).is_ok());
}

/// How an open ends: with the code of its error, or well.
fn outcome(builder: StoreBuilder, root: &Path) -> &'static str {
    builder.upkeep(Upkeep::Manual).open(root).map_or_else(|error| error.code(), |_| "ok")
}

/// Every way to ask for a directory, beside every one who may hold it.
#[test]
fn who_holds_a_directory_keeps_every_writer_out_and_no_reader() {
    let directory = tempfile::tempdir().unwrap();
    let (root, link) = (directory.path().join("data"), directory.path().join("link"));
    let config = TopicConfig::default();
    Store::open(&root).unwrap().create_topic("t", config).unwrap().append(Record::of_value("v")).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(&root, &link).unwrap();
    let names = if cfg!(unix) { vec![&root, &link] } else { vec![&root] };
    let mut count = 0;
    let mut check = |holder: &str, writes: &str| {
        for name in &names {
            for (asker, expected) in [("try", writes), ("look", "ok")] {
                let here = || outcome(Store::builder().read_only(asker == "look"), name).to_owned();
                let elsewhere = || said(child(asker, name), "result").concat();
                for (place, ask) in [("here", &here as &dyn Fn() -> String), ("elsewhere", &elsewhere)] {
                    let started = Instant::now();
                    let mut found = ask();
                    // A child that another test forks holds the locks of this process for a moment.
                    while found == "locked" && expected == "ok" && started.elapsed() < Duration::from_secs(10) {
                        found = ask();
                    }
                    assert_eq!(found, expected, "{asker} {place} beside {holder}: {}", name.display());
                    count += 1;
                }
            }
        }
    };
    check("nobody", "ok");
    let reader = Store::builder().read_only(true).open(&root).unwrap();
    check("a reader here", "ok");
    drop(reader);
    let store = Store::open(&root).unwrap();
    check("a store here", "locked");
    drop(store);
    check("nobody any more", "ok");
    let mut process = ready(child("hold", &root));
    check("a store elsewhere", "locked");
    process.kill().unwrap();
    process.wait().unwrap();
    check("one who was killed", "ok");
    tell!("locks: {count}");
    assert!(count >= if cfg!(unix) { 48 } else { 24 }, "{count}");
}

const PYTHON_LOCK: &str = "import fcntl,sys\nf=open(sys.argv[1],'a')\ntry:\n fcntl.lockf(f,fcntl.LOCK_EX|fcntl.LOCK_NB)\n\
    except OSError:\n sys.exit(7)\nprint('ready now',flush=True)\nsys.stdin.read()\n";

#[test]
fn a_broker_and_a_store_keep_each_other_out() {
    if !Command::new("python3").arg("--version").output().is_ok_and(|output| output.status.success()) {
        return skip("a broker's lock", "no python3 to hold it with fcntl");
    }
    let directory = tempfile::tempdir().unwrap();
    Store::open(directory.path()).unwrap().close().unwrap();
    let python = || {
        let mut command = Command::new("python3");
        command.args(["-c", PYTHON_LOCK]).arg(directory.path().join(".lock"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        command
    };
    let mut broker = ready(python());
    assert!(is_locked(&Store::open(directory.path())));
    drop(broker.stdin.take());
    broker.wait().unwrap();
    let store = Store::open(directory.path()).unwrap();
    assert_eq!(python().stdin(Stdio::null()).status().unwrap().code(), Some(7));
    store.close().unwrap();
    assert_eq!(python().stdin(Stdio::null()).status().unwrap().code(), Some(0));
}

#[test]
fn a_reader_beside_a_live_writer_writes_no_byte() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::builder().upkeep(Upkeep::Manual).open(directory.path()).unwrap();
    let topic = store.create_topic("t", TopicConfig::default().segment_bytes(2000)).unwrap();
    for number in 0..100 {
        topic.append(Record::of_value(format!("value {number}"))).unwrap();
    }
    let before = tree(directory.path());
    let reader = Store::builder().read_only(true).upkeep(Upkeep::Manual).open(directory.path()).unwrap();
    let partition = reader.topic("t").unwrap().partition(0).unwrap();
    assert_eq!(partition.read_from(0).map(Result::unwrap).count(), 100);
    assert!(matches!(partition.append(Record::of_value("x")), Err(Error::ReadOnly { .. })));
    reader.close().unwrap();
    assert!(before == tree(directory.path()), "a reader changed something");
    topic.append(Record::of_value("the writer goes on")).unwrap();
}

/// The tail may be half written when it is looked at: that was once reported as a tail to be cut.
#[test]
fn a_read_only_open_beside_a_busy_writer_reports_no_damage() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::builder().upkeep(Upkeep::Manual).open(directory.path()).unwrap();
    let config = TopicConfig::default().durability(Durability::Os).preallocate_bytes(256 << 10);
    let topic = store.create_topic("t", config).unwrap();
    let is_over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // A bounded number, so that the log stays short enough to be opened many times.
            for nth in 0..200_000_u32 {
                if is_over.load(std::sync::atomic::Ordering::Relaxed) {
                    break;
                }
                topic.append(Record::of_value(vec![b'x'; 100 + nth as usize % 1000])).unwrap();
            }
        });
        for round in 0..100 {
            let reader = Store::builder().read_only(true).upkeep(Upkeep::Manual).open(directory.path()).unwrap();
            for partition in &reader.recovery_report().partitions {
                assert!(partition.repairs.is_empty(), "round {round}: {:?}", partition.repairs);
            }
        }
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}
