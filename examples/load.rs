//! Appends JSON lines from standard input to a topic: `load DIR TOPIC < lines`.
//!
//! Lines are those that `dump --full` prints; a first line of start and end is passed over. A record goes to the
//! `"partition"` of its line, else by its key; timestamps and headers are as given. A line that is none ends the load:
//! those before it are appended, and it is named.
//!
//! `--batch N` is how many records of a partition are appended together; a batch that is longer than the topic allows is
//! appended in parts. `--compression none|gzip|snappy|lz4|zstd` and `--durability os|interval|sync` hold for this run. The
//! topic is created if it is not there, with these two and `--partitions N --segment-bytes N --index-interval-bytes N` and
//! `--config key=value` with Kafka's names, as often as wanted; an existing one keeps its configuration, and standard error
//! says which of these were not taken.
//!
//! Codecs need their features: `cargo run --release --all-features --example load -- ..`.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{BufRead, Read, Write};
use std::process::ExitCode;

use topiclog::{AppendOptions, Durability, Partition, Record, Store, Topic, TopicConfig};

#[path = "support/args.rs"]
#[allow(dead_code, reason = "other tools use the rest")]
mod args;
#[path = "support/jsonl.rs"]
#[allow(dead_code, reason = "other tools use the rest")]
mod jsonl;

const USAGE: &str = "usage: load DIR TOPIC [--partitions N] [--batch N] [--compression CODEC] [--durability LEVEL] \
                     [--segment-bytes N] [--index-interval-bytes N] [--config key=value].. < lines";
/// What only a topic that is created takes.
const OF_TOPIC: [&str; 4] = ["partitions", "segment-bytes", "index-interval-bytes", "config"];
/// A line is refused before more than this is held of it.
const LINE_BYTES_MAX: u64 = 256 << 20;

fn main() -> ExitCode {
    args::run("load", USAGE, || run().map(|()| ExitCode::SUCCESS))
}

fn run() -> Result<(), Box<dyn Error>> {
    let options =
        ["partitions", "batch", "compression", "durability", "segment-bytes", "index-interval-bytes", "config"];
    let args = args::Args::read(&[], &options, USAGE)?;
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
    let how = append_options(&args, &config)?;
    let store = Store::open(directory)?;
    if store.topic(topic).is_ok() {
        for option in OF_TOPIC.iter().filter(|option| args.all(option).next().is_some()) {
            writeln!(
                std::io::stderr(),
                "load: the topic {topic} exists and keeps its configuration: --{option} is not taken"
            )?;
        }
    }
    let loaded = store.ensure_topic(topic, config).map_err(Into::into).and_then(|topic| load(&topic, batch, &how));
    let closed = store.close();
    let count = loaded?;
    closed?;
    writeln!(std::io::stdout(), "{count} records")?;
    Ok(())
}

/// What was asked for, whatever the topic says. The configuration was made of the same options, so that it knows them.
fn append_options(args: &args::Args, config: &TopicConfig) -> Result<AppendOptions, Box<dyn Error>> {
    let mut options = AppendOptions::new();
    if let Some(codec) = args.all("compression").last() {
        options = options.compression(codec.parse()?);
    }
    if args.all("durability").last().is_some() {
        let level = config.get("topiclog.durability").unwrap_or_default();
        options = options.durability(match level.split(':').collect::<Vec<_>>()[..] {
            ["interval", bytes, ms] => Durability::Interval { bytes: bytes.parse()?, ms: ms.parse()? },
            ["os"] => Durability::Os,
            _ => Durability::Sync,
        });
    }
    Ok(options)
}

/// Appends every line. Of a line that cannot be, the good ones before it are appended all the same.
fn load(topic: &Topic, batch: usize, how: &AppendOptions) -> Result<u64, Box<dyn Error>> {
    let mut load = Load { topic, batch, how, waiting: BTreeMap::new(), count: 0, number: 0 };
    match load.lines().and_then(|()| Ok(load.flush()?)) {
        Ok(()) => Ok(load.count),
        Err(error) => {
            let rest = load.flush();
            let Load { count, number, .. } = load;
            let rest = rest.map_or_else(|why| format!(", and then: {why}"), |()| String::new());
            Err(format!("line {number}: {error}; {count} records before it were appended{rest}").into())
        }
    }
}

struct Load<'a> {
    topic: &'a Topic,
    batch: usize,
    how: &'a AppendOptions,
    waiting: BTreeMap<u32, Vec<Record>>,
    /// Records that were appended.
    count: u64,
    /// The line that is looked at.
    number: u64,
}

impl Load<'_> {
    fn lines(&mut self) -> Result<(), Box<dyn Error>> {
        let mut input = std::io::stdin().lock();
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = input.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
            if read == 0 {
                return Ok(());
            }
            self.number += 1;
            if read as u64 == LINE_BYTES_MAX {
                return Err(format!("longer than {LINE_BYTES_MAX} bytes").into());
            }
            let text = std::str::from_utf8(&line)?.trim();
            if text.is_empty() {
                continue;
            }
            let Some(record) = jsonl::parse(text)? else { continue };
            let partition = self.topic.partition_for(&record).get();
            // Asked here, so that the line that names it is told of.
            self.topic.partition(partition)?;
            let records = self.waiting.entry(partition).or_default();
            records.push(record);
            if records.len() >= self.batch {
                self.append(partition)?;
            }
        }
    }

    fn flush(&mut self) -> topiclog::Result<()> {
        while let Some(&partition) = self.waiting.keys().next() {
            self.append(partition)?;
        }
        Ok(())
    }

    /// Appends what waits for a partition. If that fails it does not wait any longer.
    fn append(&mut self, partition: u32) -> topiclog::Result<()> {
        let records = self.waiting.remove(&partition).unwrap_or_default();
        let partition = self.topic.partition(partition)?;
        self.append_parts(&partition, &records)
    }

    /// As one batch, if it may be that long; otherwise in halves, down to a record that is refused by itself.
    fn append_parts(&mut self, partition: &Partition, records: &[Record]) -> topiclog::Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        match partition.append_batch_with(records, self.how) {
            Err(topiclog::Error::Invalid { .. }) if records.len() > 1 => {
                let (first, rest) = records.split_at(records.len() / 2);
                self.append_parts(partition, first)?;
                self.append_parts(partition, rest)
            }
            appended => {
                appended?;
                self.count += records.len() as u64;
                Ok(())
            }
        }
    }
}
