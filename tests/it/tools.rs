//! The tools, run as programs: what `load` wrote is what `dump` prints.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::kafka_dirs::fixtures;

/// An example that `cargo test` built beside this binary.
fn tool(name: &str) -> Option<PathBuf> {
    let here = std::env::current_exe().unwrap();
    let path = here.parent()?.parent()?.join("examples").join(name);
    if path.exists() {
        return Some(path);
    }
    tell!("SKIP tools: {name} was not built; run all tests with `cargo test --all-features`");
    None
}

fn run(name: &Path, args: &[&str], input: &str) -> Output {
    let mut child = Command::new(name)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let feeder = std::thread::Builder::new().spawn(move || stdin.write_all(input.as_bytes()).ok()).unwrap();
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap();
    output
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Timestamp, key, value and headers of each record line.
fn contents(lines: &str) -> Vec<String> {
    let fields = |line: &str| {
        let json: serde_json::Value = serde_json::from_str(line).unwrap();
        format!("{} {} {} {}", json["timestamp"], json["key"], json["value"], json["headers"])
    };
    lines.lines().skip(1).map(fields).collect()
}

#[cfg(all(feature = "gzip", feature = "snappy", feature = "lz4", feature = "zstd"))]
#[test]
fn what_load_wrote_is_what_dump_prints() {
    let (Some(dump), Some(load), Some(verify)) = (tool("dump"), tool("load"), tool("verify")) else { return };
    let clean = fixtures().join("clean");
    let clean = clean.to_str().unwrap();
    for topic in ["codec.none", "large", "transactions"] {
        let original = text(&run(&dump, &[clean, topic, "0", "--full"], ""));
        for (number, codec) in ["none", "gzip", "snappy", "lz4", "zstd"].iter().enumerate() {
            let directory = tempfile::tempdir().unwrap();
            let root = directory.path().join("s");
            let root = root.to_str().unwrap();
            let batch = (1 + number * 7).to_string();
            let args = [
                root,
                topic,
                "--compression",
                codec,
                "--batch",
                &batch,
                "--durability",
                "os",
                "--segment-bytes",
                "200000",
                "--index-interval-bytes",
                "100",
                "--config",
                "segment.ms=99999999999",
            ];
            text(&run(&load, &args, &original));
            let copy = text(&run(&dump, &[root, topic, "0", "--full"], ""));
            assert!(contents(&copy) == contents(&original), "{topic} {codec}");
            text(&run(&verify, &[root], ""));
        }
    }
    let times = text(&run(&dump, &[clean, "codec.none", "0", "--times", "0,1700000003000"], ""));
    let expected = std::fs::read_to_string(fixtures().join("clean.expected/codec.none-0.times.jsonl")).unwrap();
    assert_eq!(times.lines().next(), expected.lines().next());
    assert_eq!(times.lines().last(), expected.lines().last());
    let part = text(&run(&dump, &[clean, "codec.none", "0", "--from", "100", "--max", "5"], ""));
    assert_eq!(part.lines().count(), 6);
    assert!(part.lines().nth(1).unwrap().starts_with("{\"offset\":100,"));
}

#[test]
fn the_tools_refuse_with_a_sentence() {
    let (Some(dump), Some(load)) = (tool("dump"), tool("load")) else { return };
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().to_str().unwrap();
    let refused = |output: Output| {
        assert!(!output.status.success());
        assert!(!output.stderr.is_empty());
    };
    refused(run(&dump, &[], ""));
    refused(run(&dump, &[root, "nothing", "0"], ""));
    refused(run(&load, &[root, "t", "--compresion", "none"], ""));
    refused(run(&load, &[root, "../t"], ""));
    refused(run(&load, &[root, "t"], "{\"value\":\"crc32c:00000000:99\"}\n"));
    refused(run(&load, &[root, "t"], "not json\n"));
}

#[test]
fn quickstart_resumes() {
    let Some(quickstart) = tool("quickstart") else { return };
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("q");
    let root = root.to_str().unwrap();
    assert!(text(&run(&quickstart, &["--dir", root], "")).contains("published 90 lines"));
    let again = text(&run(&quickstart, &["--dir", root], ""));
    assert!(again.contains("published 0 lines") && again.contains("90 were there already"), "{again}");
}
