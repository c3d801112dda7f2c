//! Prints a topic as a table: `table DIR TOPIC`, the newest record of each live key.
//!
//! DIR is a store, or a plain Kafka log directory; it is opened read-only and not changed. The records are found through the
//! key index, those of a partition at one position, and printed as JSON lines as `dump` prints them with `"partition"`
//! added, in the order of partitions and offsets. Records of open and aborted transactions are no part of the table.
//! Options: `--key HEX` prints the newest record of this key alone, `--full` shows byte strings of any length.
//!
//! Compressed batches need the features of their codecs: `cargo run --release --all-features --example table -- ..`.

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

use topiclog::{Store, StoredRecord, Upkeep};

#[path = "support/args.rs"]
#[allow(dead_code, reason = "other tools use the rest")]
mod args;
#[path = "support/jsonl.rs"]
#[allow(dead_code, reason = "other tools use the rest")]
mod jsonl;

const USAGE: &str = "usage: table DIR TOPIC [--key HEX] [--full]";

fn main() -> ExitCode {
    args::run("table", USAGE, || Ok(if run()? { ExitCode::SUCCESS } else { ExitCode::FAILURE }))
}

/// False if a partition could not be read: what the others have is printed all the same.
fn run() -> Result<bool, Box<dyn Error>> {
    let args = args::Args::read(&["full"], &["key"], USAGE)?;
    let [directory, topic] = args.words() else { return Err(USAGE.into()) };
    let full = args.flag("full");
    let builder = Store::builder().read_only(true).upkeep(Upkeep::Manual).key_index_memory_bytes(usize::MAX);
    let store = builder.open(directory)?;
    let topic = store.topic(topic)?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let key = args.all("key").last().map(|hex| jsonl::unhex_text(hex).map_err(|why| format!("--key {hex:?}: {why}")));
    let key = key.transpose()?;
    let mut is_whole = true;
    for number in 0..topic.partition_count() {
        match topic.partition(number) {
            Ok(_) => {}
            // A broker of a larger cluster has some of the partitions only.
            Err(topiclog::Error::UnknownTopic { .. }) => continue,
            Err(error) => {
                writeln!(std::io::stderr(), "table: partition {number} is left out: {error}").ok();
                is_whole = false;
                continue;
            }
        }
        match &key {
            // A producer may have sent it to another partition than Kafka's partitioner would.
            Some(key) => {
                if let Some(record) = topic.get_in(number, key)? {
                    print(&mut out, number, &record, full)?;
                }
            }
            None => {
                for record in topic.latest(number)? {
                    print(&mut out, number, &record?, full)?;
                }
            }
        }
    }
    out.flush()?;
    Ok(is_whole)
}

fn print(out: &mut impl Write, partition: u32, record: &StoredRecord, full: bool) -> std::io::Result<()> {
    let line = jsonl::record_line(record, full);
    let fields = line.strip_prefix('{').unwrap_or(&line);
    writeln!(out, "{{\"partition\":{partition},{fields}")
}
