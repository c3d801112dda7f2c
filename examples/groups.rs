//! Prints the committed offsets of every group as JSON lines: `groups DIR`.
//!
//! DIR is a store, or a plain Kafka log directory; it is opened read-only and not changed. A line has the group, the
//! partition, the next offset to read, the leader epoch and the metadata that were committed with it, and the lag: how many
//! records that still exist lie beyond it, as a reader of committed records sees them (`null` if the partition is not here,
//! or cannot be read: then the reason is told and the exit code is 1).
//!
//! `--reset GROUP TOPIC earliest|latest|TIME` first moves a group in every partition of a topic: to the log start, to the
//! log end, or to the first record that is at least as new as TIME (milliseconds since 1970-01-01 UTC; the log end if there
//! is none). It needs a store, and nobody else may have it open for writing.
//!
//! Compressed batches need the features of their codecs: `cargo run --release --all-features --example groups -- ..`.

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

use topiclog::client::OffsetAndMetadata;
use topiclog::group::{CommittedOffset, Groups};
use topiclog::{Store, TopicPartition, Upkeep};

#[path = "support/args.rs"]
#[allow(dead_code, reason = "other tools use the rest")]
mod args;

const USAGE: &str = "usage: groups DIR [--reset GROUP TOPIC earliest|latest|TIME]";

fn main() -> ExitCode {
    args::run("groups", USAGE, run)
}

fn run() -> Result<ExitCode, Box<dyn Error>> {
    let args = args::Args::read(&[], &["reset"], USAGE)?;
    let group = args.all("reset").last();
    let (directory, reset) = match (args.words(), group) {
        ([directory], None) => (directory, None),
        ([directory, topic, to], Some(group)) => (directory, Some((group, topic, to))),
        _ => return Err(USAGE.into()),
    };
    let store = match reset {
        None => Store::builder().read_only(true).upkeep(Upkeep::Manual).open(directory)?,
        Some(_) => Store::builder().create(false).upkeep(Upkeep::Manual).open(directory)?,
    };
    let shown = show(&store, reset);
    let closed = store.close();
    let all_lags_are_known = shown?;
    closed?;
    Ok(if all_lags_are_known { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Moves the group if that is asked for, and prints all of them. False if there are partitions whose lag cannot be counted.
fn show(store: &Store, reset: Option<(&str, &String, &String)>) -> Result<bool, Box<dyn Error>> {
    let groups = Groups::open(store)?;
    if let Some((group, topic, to)) = reset {
        move_group(&groups, group, topic, to)?;
    }
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let all_lags_are_known = print(&mut out, &groups)?;
    out.flush()?;
    Ok(all_lags_are_known)
}

fn move_group(groups: &Groups, group: &str, topic: &str, to: &str) -> Result<(), Box<dyn Error>> {
    let time: Option<i64> = match to {
        "earliest" | "latest" => None,
        time => Some(time.parse().map_err(|_| format!("{time:?} is neither earliest, latest nor milliseconds"))?),
    };
    let mut offsets = Vec::new();
    for partition in groups.store().topic(topic)?.partitions() {
        let offset = match (to, time) {
            ("earliest", _) => partition.start(),
            (_, Some(time)) => partition.offset_for_timestamp(time)?.map_or(partition.end(), |found| found.offset),
            _ => partition.end(),
        };
        offsets.push((partition.id().clone(), OffsetAndMetadata::new(offset)));
    }
    Ok(groups.commit(group, &offsets)?)
}

fn print(out: &mut impl Write, groups: &Groups) -> Result<bool, Box<dyn Error>> {
    let mut all_lags_are_known = true;
    for group in groups.list()? {
        for (partition, committed) in groups.offsets(&group)? {
            let lag = lag(groups, &partition, &committed).unwrap_or_else(|error| {
                // What was committed is known all the same.
                writeln!(std::io::stderr(), "groups: the lag of {group} in {partition}: {error}").ok();
                all_lags_are_known = false;
                "null".into()
            });
            let epoch = committed.leader_epoch.map_or("null".to_owned(), |epoch| epoch.to_string());
            writeln!(
                out,
                "{{\"group\":{},\"partition\":{},\"offset\":{},\"leader_epoch\":{epoch},\"metadata\":{},\"lag\":{lag}}}",
                quoted(&group),
                quoted(&partition.to_string()),
                committed.offset,
                quoted(&committed.metadata),
            )?;
        }
    }
    Ok(all_lags_are_known)
}

fn lag(groups: &Groups, partition: &TopicPartition, committed: &CommittedOffset) -> topiclog::Result<String> {
    let topic = match groups.store().topic(partition.topic.as_str()) {
        Err(topiclog::Error::UnknownTopic { .. }) => return Ok("null".into()),
        topic => topic?,
    };
    // Of another topic of the same name nothing of this one was read.
    let is_of_this = committed.topic_id.is_none_or(|of| of == topic.id());
    match groups.lag(partition, if is_of_this { committed.offset } else { 0 }) {
        Ok(lag) => Ok(lag.records.to_string()),
        Err(topiclog::Error::UnknownTopic { .. }) => Ok("null".into()),
        Err(error) => Err(error),
    }
}

fn quoted(text: &str) -> serde_json::Value {
    text.into()
}
