//! Appends JSON lines from standard input to a topic: `load DIR TOPIC < lines`.
//!
//! Lines are those that `dump --full` prints; a first line of start and end is passed over. A record goes to the
//! `"partition"` of its line, else by its key; timestamps and headers are as given. The topic is created if it is not
//! there; an existing one keeps its configuration. Options: `--partitions N --batch N --compression
//! none|gzip|snappy|lz4|zstd --durability os|interval|sync --segment-bytes N --index-interval-bytes N`, and `--config
//! key=value` with Kafka's names, as often as wanted.
//!
//! Codecs need their features: `cargo run --release --all-features --example load -- ..`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "printing is what this tool is for")]

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{BufRead, Read};
use std::process::ExitCode;

use topiclog::{AppendOptions, Record, Store, Topic, TopicConfig};

#[path = "support/args.rs"]
#[allow(dead_code, reason = "other tools use the rest")]
mod args;
#[path = "support/jsonl.rs"]
#[allow(dead_code, reason = "other tools use the rest")]
mod jsonl;

const USAGE: &str = "usage: load DIR TOPIC [--partitions N] [--batch N] [--compression CODEC] [--durability LEVEL] \
                     [--segment-bytes N] [--index-interval-bytes N] [--config key=value].. < lines";
/// A line is refused before more than this is held of it.
const LINE_BYTES_MAX: u64 = 256 << 20;

fn main() -> ExitCode {
    match run() {
        Ok(count) => {
            println!("{count} records");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("load: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<u64, Box<dyn Error>> {
    let args = args::Args::read(&[])?;
    let known = ["partitions", "batch", "compression", "durability", "segment-bytes", "index-interval-bytes", "config"];
    args.check(&known)?;
    let [directory, topic] = args.words() else { return Err(USAGE.into()) };
    let mut config = TopicConfig::default().partitions(args.number("partitions")?.unwrap_or(1));
    for (option, key) in [
        ("compression", "compression.type"),
        ("durability", "topiclog.durability"),
        ("segment-bytes", "segment.bytes"),
        ("index-interval-bytes", "index.interval.bytes"),
    ] {
        for value in args.all(option) {
            config.set(key, value)?;
        }
    }
    for setting in args.all("config") {
        let (key, value) = setting.split_once('=').ok_or_else(|| format!("--config {setting}: expected key=value"))?;
        config.set(key, value)?;
    }
    let batch = args.number("batch")?.unwrap_or(1usize).max(1);
    let store = Store::open(directory)?;
    let loaded = store.ensure_topic(topic, config).map_err(Into::into).and_then(|topic| load(&topic, batch));
    let closed = store.close();
    let count = loaded?;
    closed?;
    Ok(count)
}

fn load(topic: &Topic, batch: usize) -> Result<u64, Box<dyn Error>> {
    let mut input = std::io::stdin().lock();
    let mut waiting: BTreeMap<u32, Vec<Record>> = BTreeMap::new();
    let (mut count, mut number, mut line) = (0, 0u64, Vec::new());
    loop {
        line.clear();
        number += 1;
        let read = input.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
        if read == 0 {
            break;
        }
        if read as u64 == LINE_BYTES_MAX {
            return Err(format!("line {number} is longer than {LINE_BYTES_MAX} bytes").into());
        }
        let text = std::str::from_utf8(&line).map_err(|error| format!("line {number}: {error}"))?.trim();
        if text.is_empty() {
            continue;
        }
        let Some(record) = jsonl::parse(text).map_err(|why| format!("line {number}: {why}"))? else { continue };
        let partition = topic.partition_for(&record).get();
        let records = waiting.entry(partition).or_default();
        records.push(record);
        if records.len() >= batch {
            count += append(topic, partition, records).map_err(|error| format!("line {number}: {error}"))?;
        }
    }
    for (partition, records) in &mut waiting {
        count += append(topic, *partition, records)?;
    }
    Ok(count)
}

fn append(topic: &Topic, partition: u32, records: &mut Vec<Record>) -> topiclog::Result<u64> {
    if records.is_empty() {
        return Ok(0);
    }
    topic.partition(partition)?.append_batch_with(records, &AppendOptions::new())?;
    let count = records.len() as u64;
    records.clear();
    Ok(count)
}
