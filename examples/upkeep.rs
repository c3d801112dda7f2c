//! Does what time asks of a store until nothing is left to do: `upkeep DIR`.
//!
//! Idle segments are closed for their age, closed ones sealed, old records deleted, compacted topics compacted and keys
//! expired, as each topic's configuration says. Prints one JSON line per partition: what it held before and after.
//! Options: `--now MS` takes this for the time (milliseconds since 1970-01-01 UTC), `--topic T` leaves the other topics
//! alone, `--config key=value` changes a setting of that topic first.
//!
//! Compressed batches need the features of their codecs: `cargo run --release --all-features --example upkeep -- ..`.

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use topiclog::clock::ManualClock;
use topiclog::group::Groups;
use topiclog::record::DecodeLimits;
use topiclog::{Partition, ReadLevel, ReadOptions, Store, TickReport, Upkeep};

#[path = "support/args.rs"]
#[allow(dead_code, reason = "other tools use the rest")]
mod args;

const USAGE: &str = "usage: upkeep DIR [--now MS] [--topic T [--config key=value]..]";

fn main() -> ExitCode {
    args::run("upkeep", USAGE, || run().map(|()| ExitCode::SUCCESS))
}

/// What a partition holds.
struct Held {
    segments: usize,
    bytes: u64,
    records: u64,
}

fn run() -> Result<(), Box<dyn Error>> {
    let args = args::Args::read(&[], &["now", "topic", "config"], USAGE)?;
    let [directory] = args.words() else { return Err(USAGE.into()) };
    let mut builder = Store::builder().create(false).upkeep(Upkeep::Manual);
    if let Some(now) = args.number::<i64>("now")? {
        builder = builder.clock(Arc::new(ManualClock::new(now)));
    }
    let store = builder.open(directory)?;
    // Tombstones wait for groups of this store where they are, not for what nobody has looked at.
    if store.holds().iter().any(|(name, ..)| name == "topiclog-groups") {
        Groups::open(&store)?;
    }
    let only = args.all("topic").last();
    configure(&store, only, &args)?;
    let names: Vec<String> = match only {
        Some(name) => vec![store.topic(name)?.name().to_string()],
        None => store.topics().iter().map(ToString::to_string).collect(),
    };
    let mut partitions = Vec::new();
    for name in &names {
        for partition in store.topic(name)?.partitions() {
            partitions.push((partition.clone(), hold(partition)?));
        }
    }
    loop {
        let done: TickReport = match only {
            Some(name) => store.tick_topic(name)?,
            None => store.tick()?,
        };
        if done.is_idle() {
            break;
        }
    }
    let mut out = std::io::stdout().lock();
    for (partition, before) in &partitions {
        let after = hold(partition)?;
        let stats = partition.stats();
        writeln!(
            out,
            "{{\"topic\":\"{}\",\"partition\":{},\"segments_before\":{},\"segments_after\":{},\"bytes_before\":{},\
             \"bytes_after\":{},\"records_before\":{},\"records_after\":{},\"tombstones_dropped\":{},\"log_start\":{},\
             \"log_end\":{}}}",
            partition.id().topic,
            partition.id().partition,
            before.segments,
            after.segments,
            before.bytes,
            after.bytes,
            before.records,
            after.records,
            stats.tombstones_dropped,
            partition.start(),
            partition.end(),
        )?;
    }
    out.flush()?;
    drop(partitions);
    store.close()?;
    Ok(())
}

fn configure(store: &Store, topic: Option<&str>, args: &args::Args) -> Result<(), Box<dyn Error>> {
    let settings: Vec<&str> = args.all("config").collect();
    if settings.is_empty() {
        return Ok(());
    }
    let topic = topic.ok_or("--config needs --topic")?;
    let mut config = store.topic(topic)?.config();
    for setting in settings {
        let (key, value) = setting.split_once('=').ok_or_else(|| format!("--config {setting:?} is not key=value"))?;
        config.set(key, value)?;
    }
    store.alter_topic(topic, config)?;
    Ok(())
}

fn hold(partition: &Partition) -> Result<Held, Box<dyn Error>> {
    let stats = partition.stats();
    let limits = DecodeLimits { decompressed_bytes_max: 1 << 30 };
    let options = ReadOptions::new().level(ReadLevel::Latest).limits(limits);
    let mut reader = partition.reader(partition.start(), &options)?;
    let mut records = 0;
    while let Some(batch) = reader.next_batch()? {
        for record in batch.records() {
            record?;
            records += 1;
        }
    }
    Ok(Held { segments: stats.segments, bytes: stats.bytes, records })
}
