//! Prints a partition as JSON lines: `dump DIR TOPIC PARTITION`.
//!
//! DIR is a store, or a plain Kafka log directory; it is opened read-only and not changed. The first line is
//! `{"start","end"}`, then each data record. Options: `--full` shows byte strings of any length, `--committed` leaves out
//! records of open and aborted transactions, `--from OFFSET` and `--max N` show a part, `--times T,..` answers look-ups by
//! time instead, and then the one for the largest timestamp. A batch that decompresses to more than 64 MiB ends the dump,
//! unless `--decompressed-bytes-max N` allows more.
//!
//! Compressed batches need the features of their codecs: `cargo run --release --all-features --example dump -- ..`.

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

use topiclog::record::DecodeLimits;
use topiclog::{Isolation, Partition, ReadLevel, ReadOptions, Store, Upkeep};

#[path = "support/args.rs"]
#[allow(dead_code, reason = "other tools use the rest")]
mod args;
#[path = "support/jsonl.rs"]
#[allow(dead_code, reason = "other tools use the rest")]
mod jsonl;

const USAGE: &str = "usage: dump DIR TOPIC PARTITION [--full] [--committed] [--times T,..] [--from OFFSET] [--max N] \
                     [--decompressed-bytes-max N]";
/// What a batch may become in memory unless it is said otherwise.
const DECOMPRESSED_BYTES_MAX: usize = 64 << 20;

fn main() -> ExitCode {
    args::run("dump", USAGE, || run().map(|()| ExitCode::SUCCESS))
}

fn run() -> Result<(), Box<dyn Error>> {
    let args = args::Args::read(&["full", "committed"], &["times", "from", "max", "decompressed-bytes-max"], USAGE)?;
    let [directory, topic, partition] = args.words() else { return Err(USAGE.into()) };
    let number: u32 = partition.parse().map_err(|_| format!("{partition:?} is not a partition number"))?;
    let store = Store::builder().read_only(true).upkeep(Upkeep::Manual).open(directory)?;
    let partition = store.topic(topic)?.partition(number)?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let times: Vec<&str> = args.all("times").collect();
    if times.is_empty() {
        records(&mut out, &partition, &args)?;
    } else {
        for time in times.iter().flat_map(|times| times.split(',')) {
            let time: i64 = time.parse().map_err(|_| format!("{time:?} is not a time in milliseconds"))?;
            let found = partition.offset_for_timestamp(time)?;
            let found = found.map(|found| (found.offset.get(), found.timestamp_ms));
            writeln!(out, "{}", jsonl::time_line(time, found))?;
        }
        let found = partition.max_timestamp()?.map(|found| (found.offset.get(), found.timestamp_ms));
        writeln!(out, "{}", jsonl::max_timestamp_line(found))?;
    }
    out.flush()?;
    Ok(())
}

fn records(out: &mut impl Write, partition: &Partition, args: &args::Args) -> Result<(), Box<dyn Error>> {
    let (full, committed) = (args.flag("full"), args.flag("committed"));
    let from = args.number("from")?.unwrap_or(partition.start().get());
    let max = args.number("max")?.unwrap_or(u64::MAX);
    let decompressed_bytes_max = args.number("decompressed-bytes-max")?.unwrap_or(DECOMPRESSED_BYTES_MAX);
    let end = if committed { partition.last_stable_offset() } else { partition.end() };
    writeln!(out, "{{\"start\":{},\"end\":{end}}}", partition.start())?;
    let isolation = if committed { Isolation::Committed } else { Isolation::Uncommitted };
    let limits = DecodeLimits { decompressed_bytes_max };
    let options = ReadOptions::new().level(ReadLevel::Latest).isolation(isolation).limits(limits);
    for record in partition.reader(from, &options)?.take(usize::try_from(max).unwrap_or(usize::MAX)) {
        writeln!(out, "{}", jsonl::record_line(&record?, full))?;
    }
    Ok(())
}
