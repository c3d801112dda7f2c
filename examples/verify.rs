//! Checks a store, or a plain Kafka log directory, and changes nothing: `verify DIR`.
//!
//! Prints one line for each finding and a summary; exits with 1 if something is damaged. Notices (a torn tail that the
//! next open cuts, files of others) are printed and are no damage.
//!
//! Records in compressed batches are looked into where the codec's feature is enabled:
//! `cargo run --release --all-features --example verify -- DIR`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "printing is what this tool is for")]

use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(directory) = std::env::args().nth(1) else {
        eprintln!("usage: verify DIR");
        return ExitCode::FAILURE;
    };
    let report = match topiclog::verify(&directory) {
        Ok(report) => report,
        Err(error) => {
            eprintln!("verify: {error}");
            return ExitCode::FAILURE;
        }
    };
    for finding in &report.findings {
        println!("{finding}");
    }
    println!(
        "{} partitions, {} segments, {} batches, {} records, {} bytes: {} damaged, {} notices",
        report.partitions,
        report.segments,
        report.batches,
        report.records,
        report.bytes,
        report.damages().count(),
        report.findings.len() - report.damages().count(),
    );
    if report.damages().next().is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
