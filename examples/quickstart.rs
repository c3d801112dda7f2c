//! Publishes the lines of a file into a partitioned topic on the disk and reads them back: `quickstart [FILE] [--dir DIR]`.
//!
//! Without a file it takes the releases of Rust. A line's key is its first comma-separated field that is no date; its
//! time is the first field of the form YYYY-MM-DD, else the time of the append. Run again, it resumes: a line that is in
//! the topic already is not published twice, even if the process was killed in between. A directory is for one file, which
//! may have grown; another one is refused. Needs no feature.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::ExitCode;
use std::time::Instant;

use topiclog::{AppendOptions, Record, Store, Topic, TopicConfig};

#[path = "support/args.rs"]
#[allow(dead_code, reason = "other tools use the rest")]
mod args;

const USAGE: &str = "usage: quickstart [FILE] [--dir DIR]";
const TOPIC: &str = "lines";
const RELEASES: &str = include_str!("data/rust-releases.csv");
const BATCH: usize = 1000;
const LINE_BYTES_MAX: u64 = 512 << 10;

fn main() -> ExitCode {
    args::run("quickstart", USAGE, || run().map(|()| ExitCode::SUCCESS))
}

fn run() -> Result<(), Box<dyn Error>> {
    let args = args::Args::read(&[], &["dir"], USAGE)?;
    let directory = args.all("dir").last().unwrap_or("quickstart-data");
    let file = match args.words() {
        [] => None,
        [file] => Some(file.as_str()),
        _ => return Err(USAGE.into()),
    };
    let input = open_input(file)?;
    let store = Store::open(directory)?;
    let done = show(&store, directory, input);
    let closed = store.close();
    done?;
    closed?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "closed; a Kafka broker, or `--example dump -- {directory} {TOPIC} 0`, can read the files")?;
    Ok(())
}

#[allow(clippy::disallowed_methods, reason = "an example reads the user's file")]
fn open_input(file: Option<&str>) -> Result<Box<dyn BufRead>, Box<dyn Error>> {
    Ok(match file {
        None => Box::new(RELEASES.as_bytes()),
        Some(file) => Box::new(BufReader::new(std::fs::File::open(file).map_err(|error| format!("{file}: {error}"))?)),
    })
}

#[allow(clippy::disallowed_methods, reason = "an example times itself")]
fn show(store: &Store, directory: &str, input: Box<dyn BufRead>) -> Result<(), Box<dyn Error>> {
    let mut out = std::io::stdout().lock();
    let repairs = store.recovery_report().repairs().count();
    writeln!(out, "store {} in {directory} ({repairs} repairs at open)", store.id())?;
    let topic = store.ensure_topic(TOPIC, TopicConfig::default().partitions(4))?;

    let started = Instant::now();
    let published = publish(&topic, input)?;
    let seconds = started.elapsed().as_secs_f64();
    writeln!(
        out,
        "published {} lines in {:.1} ms ({:.0} a second, each batch synced); {} were there already",
        published.new,
        seconds * 1e3,
        published.new as f64 / seconds,
        published.old
    )?;

    let started = Instant::now();
    let (mut records, mut bytes) = (0u64, 0usize);
    for partition in topic.partitions() {
        let (mut first, mut last) = (None, None);
        for record in partition.read_from(partition.start()) {
            let record = record?;
            records += 1;
            bytes += record.value().map_or(0, <[u8]>::len);
            first.get_or_insert(record.offset());
            last = Some(record.offset());
        }
        if let (Some(first), Some(last)) = (first, last) {
            writeln!(out, "partition {}: offsets {first} to {last}", partition.id())?;
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    writeln!(
        out,
        "read {records} records, {bytes} bytes of values, by offset: {:.0} a second",
        records as f64 / seconds
    )?;
    by_time(&mut out, &topic)
}

/// Looks the middle of the topic's time up, and reads on from there.
fn by_time(out: &mut impl Write, topic: &Topic) -> Result<(), Box<dyn Error>> {
    for partition in topic.partitions() {
        let Some(latest) = partition.max_timestamp()? else { continue };
        let Some(earliest) = partition.offset_for_timestamp(0)? else { continue };
        let middle = earliest.timestamp_ms + (latest.timestamp_ms - earliest.timestamp_ms) / 2;
        let Some(found) = partition.offset_for_timestamp(middle)? else { continue };
        let record = partition.record(found.offset)?;
        let line = record.as_ref().and_then(|record| record.value()).unwrap_or_default();
        writeln!(
            out,
            "partition {}: first at or after time {middle} is offset {}: {}",
            partition.id(),
            found.offset,
            String::from_utf8_lossy(line)
        )?;
    }
    Ok(())
}

struct Published {
    new: u64,
    old: u64,
}

/// The last line of a partition.
struct Reached {
    number: u64,
    line: Vec<u8>,
}

/// How far each partition got. A line always goes to the partition of its key, and each partition has its lines in order: so
/// its last record says it.
fn reached(topic: &Topic) -> Result<BTreeMap<u32, Reached>, Box<dyn Error>> {
    let mut reached = BTreeMap::new();
    for partition in topic.partitions() {
        if partition.end() > partition.start() {
            let last = partition.record(partition.end().get() - 1)?;
            let last =
                last.as_ref().and_then(|last| Some(Reached { number: line_number(last)?, line: last.value()?.into() }));
            let last = last.ok_or("the topic holds records of another program")?;
            reached.insert(partition.id().partition.get(), last);
        }
    }
    Ok(reached)
}

/// Publishes the lines that are not there yet. Nothing is published before the last line of each partition was found in the
/// file as it is in the topic: those of another file would be taken for old ones.
fn publish(topic: &Topic, mut input: Box<dyn BufRead>) -> Result<Published, Box<dyn Error>> {
    const OTHER: &str = "the topic holds the lines of another file; give each file a --dir of its own";
    let reached = reached(topic)?;
    let farthest = reached.values().map(|last| last.number).max().unwrap_or(0);
    let mut published = Published { new: 0, old: 0 };
    let (mut number, mut line, mut batch) = (0u64, Vec::new(), Vec::new());
    loop {
        let is_line = next_line(&mut *input, number, &mut line)?;
        if is_line {
            number += 1;
            if reached.values().any(|last| last.number == number && last.line != line) {
                return Err(OTHER.into());
            }
            let record = to_record(&line, number);
            let partition = topic.partition_for(&record).get();
            if reached.get(&partition).is_some_and(|last| number <= last.number) {
                published.old += 1;
            } else {
                batch.push(record);
            }
        }
        let is_batch = batch.len() >= BATCH || !is_line;
        if is_batch && number < farthest {
            // Less than a batch is missing among the lines that are there.
            return Err(OTHER.into());
        }
        if is_batch && !batch.is_empty() {
            topic.append_all(&batch, &AppendOptions::new())?;
            published.new += batch.len() as u64;
            batch.clear();
        }
        if !is_line {
            return Ok(published);
        }
    }
}

/// Reads a line without its line feed. False at the end.
fn next_line(input: &mut dyn BufRead, number: u64, line: &mut Vec<u8>) -> Result<bool, Box<dyn Error>> {
    line.clear();
    let read = input.take(LINE_BYTES_MAX).read_until(b'\n', line)?;
    if read as u64 == LINE_BYTES_MAX {
        return Err(format!("line {} is longer than {LINE_BYTES_MAX} bytes", number + 1).into());
    }
    line.pop_if(|last| *last == b'\n');
    Ok(read > 0)
}

fn to_record(line: &[u8], number: u64) -> Record {
    let mut fields = line.split(|&byte| byte == b',');
    let key = fields.clone().find(|field| date_ms(field).is_none()).unwrap_or_default();
    let key = &key[..key.len().min(1000)];
    let record = Record::keyed(key.to_vec(), line.to_vec()).header("line", number.to_string());
    match fields.find_map(date_ms) {
        Some(time) => record.timestamp_ms(time),
        None => record,
    }
}

fn line_number(record: &topiclog::StoredRecord) -> Option<u64> {
    std::str::from_utf8(record.headers().last("line")?.value()?).ok()?.parse().ok()
}

/// `YYYY-MM-DD`, from 1970 on, as milliseconds.
fn date_ms(field: &[u8]) -> Option<i64> {
    let mut parts = std::str::from_utf8(field).ok()?.trim().splitn(3, '-');
    let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
    if (year.len(), month.len(), day.len()) != (4, 2, 2) {
        return None;
    }
    let (year, month, day): (i64, i64, i64) = (year.parse().ok()?, month.parse().ok()?, day.parse().ok()?);
    if year < 1970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Days since 1970 of the proleptic Gregorian calendar, counted in years that begin in March.
    let shifted = if month > 2 { year } else { year - 1 };
    let day_of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    let days = shifted * 365 + shifted / 4 - shifted / 100 + shifted / 400 + day_of_year - 719_468;
    Some(days * 86_400_000)
}
