//! Joins a consumer group, reads topics as its member and prints each record as a JSON line: `tail DIR TOPIC.. --group G`.
//!
//! DIR is a store; it is opened for writing, because the group commits what was printed. A line is that of `dump` with topic
//! and partition added. A group without offsets begins at the log start, or where `--from earliest|latest` says. Options:
//! `--commit-every N` commits each time that N records were printed (1,000 by default), when no more are at hand, and at the
//! end; `--max N` ends after N records, `--idle MS` after so many milliseconds without a new one; `--full` shows byte strings of any length.
//!
//! Compressed batches need the features of their codecs: `cargo run --release --all-features --example tail -- ..`.

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use topiclog::client::{ConsumerBuilder, OffsetAndMetadata, Offsets, Records, Reset};
use topiclog::{Consumer, Store, Upkeep};

#[path = "support/args.rs"]
#[allow(dead_code, reason = "other tools use the rest")]
mod args;
#[path = "support/jsonl.rs"]
#[allow(dead_code, reason = "other tools use the rest")]
mod jsonl;

const USAGE: &str = "usage: tail DIR TOPIC.. --group G [--commit-every N] [--max N] [--idle MS] [--from earliest|latest] \
                     [--full]";

fn main() -> ExitCode {
    args::run("tail", USAGE, || run().map(|()| ExitCode::SUCCESS))
}

fn run() -> Result<(), Box<dyn Error>> {
    let args = args::Args::read(&["full"], &["group", "commit-every", "max", "idle", "from"], USAGE)?;
    let (Some((directory, topics)), Some(group)) = (args.words().split_first(), args.all("group").last()) else {
        return Err(USAGE.into());
    };
    if topics.is_empty() {
        return Err(USAGE.into());
    }
    let commit_every = args.number::<u64>("commit-every")?.unwrap_or(1000);
    if commit_every == 0 {
        return Err("--commit-every needs a number above 0".into());
    }
    let max = args.number::<u64>("max")?.unwrap_or(u64::MAX);
    let idle = args.number::<u64>("idle")?.map(Duration::from_millis);
    let reset = match args.all("from").last() {
        None | Some("earliest") => Reset::Earliest,
        Some("latest") => Reset::Latest,
        Some(other) => return Err(format!("--from needs earliest or latest, not {other:?}").into()),
    };
    let store = Store::builder().create(false).upkeep(Upkeep::Manual).open(directory)?;
    let mut builder = Consumer::builder(&store).group(group).reset(reset);
    for topic in topics {
        builder = builder.topic(topic);
    }
    let printed = tail(builder, commit_every, max, idle, args.flag("full"));
    let closed = store.close();
    printed?;
    Ok(closed?)
}

/// Commits what was printed, and never more than that.
fn tail(
    builder: ConsumerBuilder<'_>,
    commit_every: u64,
    max: u64,
    idle: Option<Duration>,
    full: bool,
) -> Result<(), Box<dyn Error>> {
    let mut consumer = builder.open()?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut passed = Offsets::new();
    let mut printed = 0;
    while printed < max {
        let mut records = consumer.poll(Duration::ZERO);
        if records.as_ref().is_ok_and(Records::is_empty) {
            // Nothing is at hand: what was printed is committed before the wait.
            commit(&mut out, &mut consumer, &mut passed)?;
            records = consumer.poll(idle.unwrap_or(Duration::from_secs(3600)));
        }
        if records.is_err() {
            // What was printed before the damage is not to be printed again.
            commit(&mut out, &mut consumer, &mut passed)?;
        }
        let records = records?;
        if records.is_empty() && idle.is_some() {
            break;
        }
        let left = usize::try_from(max - printed).unwrap_or(usize::MAX);
        for consumed in records.into_iter().take(left) {
            let record = &consumed.record;
            let (topic, partition) = (&consumed.partition.topic, consumed.partition.partition);
            let line = jsonl::record_line(record, full);
            writeln!(out, "{{\"topic\":\"{topic}\",\"partition\":{partition},{}", line.trim_start_matches('{'))?;
            let next = OffsetAndMetadata::new(record.offset().get() + 1);
            let next = if record.leader_epoch() < 0 { next } else { next.leader_epoch(record.leader_epoch()) };
            passed.insert(consumed.partition, next);
            printed += 1;
            if printed % commit_every == 0 {
                commit(&mut out, &mut consumer, &mut passed)?;
            }
        }
        out.flush()?;
    }
    commit(&mut out, &mut consumer, &mut passed)?;
    Ok(consumer.close()?)
}

/// What could not be shown is not committed.
fn commit(out: &mut impl Write, consumer: &mut Consumer, passed: &mut Offsets) -> Result<(), Box<dyn Error>> {
    out.flush()?;
    let offsets = std::mem::take(passed);
    if offsets.is_empty() { Ok(()) } else { Ok(consumer.commit_offsets(&offsets)?) }
}
