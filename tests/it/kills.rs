//! Real processes: killed at any moment, and never two writers.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use topiclog::{Durability, Error, ReadLevel, ReadOptions, Record, Store, TopicConfig, Upkeep};

const CHILD: &str = "TOPICLOG_CHILD";

/// This test binary once more, as a child that runs one of the parts below.
fn child(part: &str, directory: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "kills::the_part_of_the_child", "--nocapture"])
        .env(CHILD, format!("{part} {}", directory.display()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn value(number: u64) -> String {
    format!("{number}-{}", "x".repeat(number as usize * 37 % 500))
}

/// Does nothing but in a child.
#[test]
fn the_part_of_the_child() {
    let Ok(part) = std::env::var(CHILD) else { return };
    let (part, directory) = part.split_once(' ').unwrap();
    if part == "hold" {
        let store = Store::open(directory).unwrap();
        println!("ack 0");
        std::io::stdin().read_line(&mut String::new()).unwrap();
        store.close().unwrap();
        return;
    }
    let durability = match part {
        "os" => Durability::Os,
        "interval" => Durability::INTERVAL,
        _ => Durability::Sync,
    };
    let store = Store::open(directory).unwrap();
    let config = TopicConfig::default().durability(durability).segment_bytes(20_000);
    let partition = store.ensure_topic("t", config).unwrap().partition(0).unwrap();
    let mut out = std::io::stdout().lock();
    loop {
        let number = partition.end().get() as u64;
        partition.append(Record::of_value(value(number))).unwrap();
        writeln!(out, "ack {number}").unwrap();
    }
}

/// The last number that the child acknowledged before it died.
fn last_ack(child: &mut Child) -> Option<u64> {
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // The last line may be cut short by the kill: then a smaller number is all that is known.
    let acks: Vec<String> = lines.map_while(Result::ok).filter(|line| line.starts_with("ack ")).collect();
    let whole = acks.len().checked_sub(2)?;
    acks[whole].strip_prefix("ack ")?.parse().ok()
}

#[test]
fn nothing_acknowledged_is_lost_to_a_kill() {
    let started = Instant::now();
    let directory = tempfile::tempdir().unwrap();
    let (mut kills, mut acknowledged, mut records) = (0, 0, 0);
    for round in 0..100_u64 {
        for part in ["os", "interval", "sync"] {
            let root = directory.path().join(part);
            let mut running = child(part, &root);
            std::thread::park_timeout(std::time::Duration::from_micros(5_000 + round * 397 % 40_000));
            running.kill().unwrap();
            let ack = last_ack(&mut running);
            running.wait().unwrap();
            kills += 1;
            let Ok(store) = Store::builder().upkeep(Upkeep::Manual).open(&root) else {
                panic!("round {round}, {part}")
            };
            let Ok(topic) = store.topic("t") else {
                assert_eq!(ack, None);
                continue;
            };
            let partition = topic.partition(0).unwrap();
            if let Some(ack) = ack {
                acknowledged += 1;
                assert!(partition.end().get() as u64 > ack, "round {round}, {part}: {ack} was acknowledged");
            }
            if round % 10 == 9 {
                let latest = ReadOptions::new().level(ReadLevel::Latest);
                for (number, record) in (0..).zip(partition.reader(0, &latest).unwrap()) {
                    assert_eq!(record.unwrap().value(), Some(value(number).as_bytes()));
                    records += 1;
                }
            }
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    eprintln!("kills: {kills}, 0 failures, {seconds:.1} s; {acknowledged} with acks, {records} records read");
    assert!(kills >= 300 && acknowledged >= 100, "{acknowledged} of {kills}");
}

#[test]
fn there_is_one_writer_and_any_number_of_readers() {
    let directory = tempfile::tempdir().unwrap();
    let mut other = child("hold", directory.path());
    let mut lines = BufReader::new(other.stdout.take().unwrap()).lines();
    assert!(lines.by_ref().any(|line| line.unwrap().starts_with("ack")));
    let refused = Store::open(directory.path()).unwrap_err();
    assert!(matches!(refused, Error::Locked { .. }), "{refused}");
    let before = crate::kafka_dirs::tree(directory.path());
    drop(Store::builder().read_only(true).open(directory.path()).unwrap());
    assert!(before == crate::kafka_dirs::tree(directory.path()), "a reader wrote");
    other.stdin.take().unwrap().write_all(b"go\n").unwrap();
    assert!(other.wait().unwrap().success());
    let store = Store::open(directory.path()).unwrap();
    assert!(matches!(Store::open(directory.path()), Err(Error::Locked { .. })), "a second handle in one process");
    store.close().unwrap();
    Store::open(directory.path()).unwrap().close().unwrap();
}

/// Kafka takes a POSIX record lock on `.lock`; Python's `lockf` takes the same.
#[test]
fn a_broker_and_we_exclude_each_other() {
    let directory = tempfile::tempdir().unwrap();
    let lock = directory.path().join(".lock");
    let script = "import fcntl, sys; f = open(sys.argv[1], 'a')\n\
                  try: fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)\n\
                  except OSError: print('refused', flush=True); sys.exit()\n\
                  print('held', flush=True); sys.stdin.readline()";
    let broker = || {
        let mut command = Command::new("python3");
        command.args(["-c", script]).arg(&lock).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()
    };
    let Ok(mut running) = broker() else {
        eprintln!("SKIP a_broker_and_we_exclude_each_other: no python3");
        return;
    };
    let mut answer = String::new();
    BufReader::new(running.stdout.take().unwrap()).read_line(&mut answer).unwrap();
    assert_eq!(answer.trim(), "held");
    let refused = Store::open(directory.path()).unwrap_err();
    assert!(matches!(&refused, Error::Locked { holder, .. } if holder.contains("broker")), "{refused}");
    drop(running.stdin.take());
    running.wait().unwrap();

    let store = Store::open(directory.path()).unwrap();
    let mut running = broker().unwrap();
    let mut answer = String::new();
    BufReader::new(running.stdout.take().unwrap()).read_line(&mut answer).unwrap();
    assert_eq!(answer.trim(), "refused");
    running.wait().unwrap();
    store.close().unwrap();
}
