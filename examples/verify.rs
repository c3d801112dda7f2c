//! Checks a store, or a plain Kafka log directory, and changes nothing: `verify DIR`.
//!
//! Prints one line for each finding and a summary; exits with 1 if something is damaged. Notices (a torn tail that the
//! next open cuts, files of others) are printed and are no damage.
//!
//! Records in compressed batches are looked into where the codec's feature is enabled:
//! `cargo run --release --all-features --example verify -- DIR`.

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

#[path = "support/args.rs"]
#[allow(dead_code, reason = "other tools use the rest")]
mod args;

const USAGE: &str = "usage: verify DIR";

fn main() -> ExitCode {
    args::run("verify", USAGE, run)
}

fn run() -> Result<ExitCode, Box<dyn Error>> {
    let args = args::Args::read(&[], &[], USAGE)?;
    let [directory] = args.words() else { return Err(USAGE.into()) };
    let report = topiclog::verify(directory)?;
    let damaged = report.damages().count();
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for finding in &report.findings {
        writeln!(out, "{finding}")?;
    }
    writeln!(
        out,
        "{} partitions, {} segments, {} batches, {} records, {} bytes: {damaged} damaged, {} notices",
        report.partitions,
        report.segments,
        report.batches,
        report.records,
        report.bytes,
        report.findings.len() - damaged,
    )?;
    out.flush()?;
    Ok(if damaged == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
