//! The tools, run as programs: what `load` wrote is what `dump` prints.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use topiclog::client::OffsetAndMetadata;
use topiclog::group::Groups;
#[cfg(all(feature = "gzip", feature = "snappy", feature = "lz4", feature = "zstd"))]
use topiclog::{AdoptOptions, CleanupPolicy};
use topiclog::{Record, RecordRef, Store, TopicConfig, Upkeep};

#[cfg(all(feature = "gzip", feature = "snappy", feature = "lz4", feature = "zstd"))]
use crate::kafka_dirs::{copy_of, fixtures};
use crate::support::skipped;

/// An example that `cargo test` built beside this binary.
pub(crate) fn tool(name: &str) -> Option<PathBuf> {
    let here = std::env::current_exe().unwrap();
    let path = here.parent()?.parent()?.join("examples").join(name);
    if path.exists() {
        return Some(path);
    }
    skipped("tools", &format!("{name} was not built; run all tests with `cargo test --all-features`"));
    None
}

pub(crate) fn run(name: &Path, args: &[&str], input: &str) -> Output {
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

pub(crate) fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Timestamp, key, value and headers of each record line.
#[cfg(all(feature = "gzip", feature = "snappy", feature = "lz4", feature = "zstd"))]
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

/// The tool ends with 1 and a sentence that has these words.
fn check_refused(output: &Output, words: &[&str]) {
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    words.iter().for_each(|word| assert!(told.contains(word), "{word:?} is not in {told:?}"));
    assert!(!told.contains("panicked"), "{told}");
}

const TOOLS: [&str; 8] = ["dump", "groups", "load", "quickstart", "table", "tail", "upkeep", "verify"];

#[test]
fn every_tool_tells_its_usage_and_refuses_what_it_does_not_know() {
    for name in TOOLS {
        let Some(tool) = tool(name) else { return };
        let usage = format!("usage: {name}");
        assert!(text(&run(&tool, &["--help"], "")).starts_with(&usage));
        check_refused(&run(&tool, &["--bogus"], ""), &["no option --bogus", &usage]);
        check_refused(&run(&tool, &["a", "b", "c", "d"], ""), &[&usage]);
    }
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().to_str().unwrap();
    let Some(verify) = tool("verify") else { return };
    check_refused(&run(&verify, &[root, "extra"], ""), &["usage: verify"]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_tool_that_cannot_print_says_so_and_does_not_panic() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("q");
    let root = root.to_str().unwrap();
    let full = |name: &str, args: &[&str]| {
        let out = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let stdin = if name == "load" { "{\"value\":\"00\"}\n" } else { "" };
        let input = directory.path().join("input");
        std::fs::write(&input, stdin).unwrap();
        let command = Command::new(tool(name)?)
            .args(args)
            .stdin(std::fs::File::open(input).unwrap())
            .stdout(out)
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        check_refused(&command, &[name, "No space left"]);
        Some(())
    };
    let Some(()) = full("quickstart", &["--dir", root]) else { return };
    let quickstart = tool("quickstart").unwrap();
    let again = text(&run(&quickstart, &["--dir", root], ""));
    assert!(again.contains("(0 repairs at open)"), "the store was closed in order: {again}");
    full("upkeep", &[root]);
    full("verify", &[root]);
    full("load", &[root, "other"]);
    full("dump", &[root, "lines", "0"]);
    full("table", &[root, "lines"]);
    full("verify", &["--help"]);
    let all = [root, "lines", "--group", "g", "--idle", "10"];
    full("tail", &all);
    // So few that nothing is written before a flush: that of a commit in between, or the last one.
    full("tail", &[&all[..], &["--max", "5", "--commit-every", "2"]].concat());
    full("tail", &[&all[..], &["--max", "5"]].concat());
    let shown = text(&run(&tool("tail").unwrap(), &all, ""));
    assert_eq!(shown.lines().count(), 90, "what could not be shown was not committed");
    full("groups", &[root]);
}

#[test]
fn upkeep_makes_no_store_where_there_is_none() {
    let Some(upkeep) = tool("upkeep") else { return };
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().to_str().unwrap();
    check_refused(&run(&upkeep, &[root], ""), &["holds no store"]);
    assert_eq!(std::fs::read_dir(root).unwrap().count(), 0);
    let none = directory.path().join("none");
    check_refused(&run(&upkeep, &[none.to_str().unwrap()], ""), &["holds no store"]);
    assert!(!none.exists());
}

#[test]
fn load_names_the_line_that_it_cannot_take_and_keeps_those_before_it() {
    let (Some(dump), Some(load)) = (tool("dump"), tool("load")) else { return };
    let good = "{\"key\":\"6b\",\"value\":\"00\"}\n";
    for (number, (bad, why)) in [
        ("{\"value\":\"00\",\"headers\":{\"a\":\"00\"}}", "headers: not an array"),
        ("{\"value\":\"00\",\"headers\":7}", "headers: not an array"),
        ("{\"value\":\"00\",\"vaule\":\"00\"}", "vaule"),
        ("{\"start\":0,\"key\":\"6b\"}", "start"),
        ("{\"value\":\"00\",\"partition\":7}", "t-7"),
        ("nonsense", "expected"),
    ]
    .into_iter()
    .enumerate()
    {
        for batch in ["1", "2", "100"] {
            let directory = tempfile::tempdir().unwrap();
            let root = directory.path().to_str().unwrap();
            let lines = [&good.repeat(3), bad, "\n", good].concat();
            let refused = run(&load, &[root, "t", "--batch", batch], &lines);
            check_refused(&refused, &["line 4", why, "3 records before it were appended"]);
            let held = text(&run(&dump, &[root, "t", "0"], ""));
            assert_eq!(held.lines().count(), 4, "case {number}: {held}");
        }
    }
}

/// Lines of a second file were once passed over, as if they were there already.
#[test]
fn quickstart_refuses_another_file_and_takes_one_that_grew() {
    let Some(quickstart) = tool("quickstart") else { return };
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let lines = |from: u32, to: u32| (from..to).map(|n| format!("key{n},value {n}\n")).collect::<String>();
    let (file, root) = (path("file"), path("q"));
    let run = |file: &str| run(&quickstart, &[file, "--dir", &root], "");
    std::fs::write(&file, lines(0, 50)).unwrap();
    assert!(text(&run(&file)).contains("published 50 lines"));
    for other in [lines(50, 100), lines(0, 20), lines(50, 5000), String::new()] {
        std::fs::write(path("other"), other).unwrap();
        check_refused(&run(&path("other")), &["another file"]);
    }
    std::fs::write(&file, lines(0, 70)).unwrap();
    let grown = text(&run(&file));
    assert!(grown.contains("published 20 lines") && grown.contains("50 were there already"), "{grown}");
    assert!(grown.contains("read 70 records"), "nothing of the others was published: {grown}");
    for said in ["by offset: ", " a second", ": first at or after time ", &format!("in {root}")] {
        assert!(grown.contains(said), "{said:?} is not in {grown}");
    }
}

#[test]
fn verify_fails_where_something_is_damaged_and_says_where() {
    let Some(verify) = tool("verify") else { return };
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("s");
    let store = Store::builder().upkeep(Upkeep::Manual).open(&root).unwrap();
    let topic = store.create_topic("t", TopicConfig::default()).unwrap();
    (0..3).for_each(|_| drop(topic.append(Record::of_value("value")).unwrap()));
    store.close().unwrap();
    let verify = || run(&verify, &[root.to_str().unwrap()], "");
    assert!(text(&verify()).contains(": 0 damaged,"));
    let log = root.join("t-0/00000000000000000000.log");
    let mut bytes = std::fs::read(&log).unwrap();
    bytes[70] ^= 1;
    std::fs::write(&log, &bytes).unwrap();
    let found = verify();
    let said = String::from_utf8(found.stdout).unwrap();
    assert_eq!(found.status.code(), Some(1), "{said}");
    assert!(said.contains("t-0/00000000000000000000.log") && said.contains(": 1 damaged,"), "{said}");
    assert!(std::fs::read(&log).unwrap() == bytes, "it was changed");
}

#[test]
fn a_line_may_name_its_partition() {
    let (Some(dump), Some(load)) = (tool("dump"), tool("load")) else { return };
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().to_str().unwrap();
    let lines = "{\"value\":\"00\",\"partition\":2}\n{\"value\":\"01\",\"partition\":0}\n".repeat(2);
    let lines = lines + "{\"value\":\"00\",\"partition\":2}\n";
    text(&run(&load, &[root, "t", "--partitions", "3"], &lines));
    let values = |partition| {
        let held = text(&run(&dump, &[root, "t", partition], ""));
        ["\"value\":\"00\"", "\"value\":\"01\""].map(|value| held.matches(value).count())
    };
    assert_eq!(["0", "1", "2"].map(values), [[0, 2], [0, 0], [3, 0]]);
}

#[test]
fn upkeep_lets_go_what_is_too_old_and_says_what_that_was() {
    let Some(upkeep) = tool("upkeep") else { return };
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("s");
    let store = Store::builder().upkeep(Upkeep::Manual).open(&root).unwrap();
    let topic = store.create_topic("t", TopicConfig::default().retention_ms(1000).segment_bytes(256)).unwrap();
    for nth in 0..4 {
        let record = RecordRef::new(None, Some(&[b'v'; 150]));
        topic.append(record.at_ms(1_700_000_000_000 + nth * 600)).unwrap();
    }
    store.close().unwrap();
    let at = |now: &str| {
        let line = text(&run(&upkeep, &[root.to_str().unwrap(), "--now", now], ""));
        let json: serde_json::Value = serde_json::from_str(line.trim()).unwrap();
        [
            "segments_before",
            "segments_after",
            "records_before",
            "records_after",
            "bytes_before",
            "bytes_after",
            "log_start",
        ]
        .map(|field| json[field].as_i64().unwrap())
    };
    let [segments, _, 4, 4, bytes, _, 0] = at("1700000000900") else { panic!("nothing was too old") };
    assert_eq!((segments, bytes > 600), (4, true));
    assert_eq!(at("1700000001700"), [4, 2, 4, 2, bytes, bytes / 2, 2]);
    assert_eq!(at("1700000002900")[6], 4, "the active segment was rolled for its age");
}

/// The last value of each key that is not null, as hex, of lines that `dump` or `table` printed.
fn folded(lines: &str) -> std::collections::BTreeMap<String, String> {
    let mut table = std::collections::BTreeMap::new();
    for line in lines.lines() {
        let json: serde_json::Value = serde_json::from_str(line).unwrap();
        let (Some(key), value) = (json["key"].as_str(), &json["value"]) else { continue };
        match value.as_str() {
            Some(value) => table.insert(key.to_owned(), value.to_owned()),
            None => table.remove(key),
        };
    }
    table
}

#[test]
fn a_table_is_what_the_log_folds_to_before_and_after_upkeep() {
    let tools = (tool("load"), tool("dump"), tool("table"), tool("upkeep"), tool("verify"));
    let (Some(load), Some(dump), Some(table), Some(upkeep), Some(verify)) = tools else { return };
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("s");
    let root = root.to_str().unwrap();
    // Keys that are deleted early, and never come again.
    let early = (0..15).map(|n| format!("{{\"timestamp\":{n},\"key\":\"ee{n:02x}\",\"value\":null,\"headers\":[]}}\n"));
    let lines: String = early
        .chain((0..3000).map(|n| {
            let value = if n % 7 == 0 { "null".to_owned() } else { format!("\"{n:08x}\"") };
            let time = 1_700_000_000_000_u64 + n;
            format!("{{\"timestamp\":{time},\"key\":\"{:04x}\",\"value\":{value},\"headers\":[]}}\n", n * 7919 % 100)
        }))
        .collect();
    let options =
        ["--batch", "10", "--segment-bytes", "2000", "--durability", "os", "--config", "cleanup.policy=compact"];
    let never = ["--config", "min.cleanable.dirty.ratio=1", "--config", "delete.retention.ms=1000"];
    text(&run(&load, &[&[root, "t", "--partitions", "3"][..], &options, &never].concat(), &lines));
    let dumped = || (0..3).map(|p| text(&run(&dump, &[root, "t", &p.to_string()], ""))).collect::<String>();
    let expected = folded(&lines);
    assert_eq!(folded(&dumped()), expected);
    assert_eq!(folded(&text(&run(&table, &[root, "t"], ""))), expected);

    let ratio = ["--topic", "t", "--config", "min.cleanable.dirty.ratio=0"];
    let first = text(&run(&upkeep, &[&[root, "--now", "1700000100000"][..], &ratio].concat(), ""));
    assert_eq!(first.lines().count(), 3);
    for line in first.lines() {
        let json: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(json["records_after"].as_u64() < json["records_before"].as_u64(), "{line}");
        assert_eq!((&json["topic"], &json["log_start"]), (&"t".into(), &0.into()), "{line}");
    }
    assert_eq!(folded(&dumped()), expected);
    let printed = text(&run(&table, &[root, "t"], ""));
    assert_eq!(folded(&printed), expected);
    assert_eq!(printed.lines().count(), expected.len(), "each key once");
    let (key, value) = expected.first_key_value().unwrap();
    let one = text(&run(&table, &[root, "t", "--key", key], ""));
    assert!(one.lines().count() == 1 && one.contains(value) && one.contains("\"partition\":"), "{one}");
    assert_eq!(text(&run(&table, &[root, "t", "--key", "ffff"], "")), "");
    check_refused(&run(&table, &[root, "t", "--key", "xyz"], ""), &["not hex"]);

    // The tombstones' time is over: they go, and nothing else does.
    let second = text(&run(&upkeep, &[root, "--now", "1700000200000"], ""));
    let dropped = second.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    assert!(dropped.map(|json| json["tombstones_dropped"].as_u64().unwrap()).sum::<u64>() > 0, "{second}");
    assert_eq!(folded(&dumped()), expected);
    assert!(text(&run(&verify, &[root], "")).contains("0 damaged"));
}

/// What could not be read was once left out without a word.
#[test]
fn a_table_says_which_partition_it_could_not_read() {
    let Some(table) = tool("table") else { return };
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("s");
    let store = Store::builder().upkeep(Upkeep::Manual).open(&root).unwrap();
    let config = TopicConfig::default().partitions(2).cleanup_policy(topiclog::CleanupPolicy::Compact);
    let topic = store.create_topic("t", config).unwrap();
    for partition in topic.partitions() {
        partition.append(Record::keyed("k", "v")).unwrap();
    }
    store.close().unwrap();
    std::fs::remove_file(root.join("t-0/00000000000000000000.log")).unwrap();
    for more in [&[][..], &["--key", "6b"]] {
        let done = run(&table, &[&[root.to_str().unwrap(), "t"][..], more].concat(), "");
        assert_eq!(done.status.code(), Some(1));
        let (printed, told) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        assert!(printed.lines().count() == 1 && printed.contains("\"partition\":1"), "{printed}");
        assert!(told.contains("partition 0 is left out"), "{told}");
    }
}

/// The newest line of each key that is no tombstone, without its partition, of lines that `dump` or `table` printed.
#[cfg(all(feature = "gzip", feature = "snappy", feature = "lz4", feature = "zstd"))]
fn newest_lines(lines: &str) -> std::collections::BTreeMap<String, serde_json::Value> {
    let mut newest = std::collections::BTreeMap::new();
    for mut line in json(lines) {
        line.as_object_mut().unwrap().remove("partition");
        let Some(key) = line.get("key").and_then(|key| key.as_str()).map(str::to_owned) else { continue };
        if line["value"].is_null() {
            newest.remove(&key)
        } else {
            newest.insert(key, line)
        };
    }
    newest
}

/// What `table` prints of each partition, and what `dump` prints of it folds to, is what the committed lines of the fixture
/// fold to. Returns how many keys were compared, and how many have a newer record that does not count.
#[cfg(all(feature = "gzip", feature = "snappy", feature = "lz4", feature = "zstd"))]
fn check_tables((dump, table): (&Path, &Path), root: &Path, state: &str) -> (usize, usize) {
    let store = Store::builder().read_only(true).upkeep(Upkeep::Manual).open(root).unwrap();
    let text_of = |path: &Path| path.to_str().unwrap().to_owned();
    let (mut keys, mut passed_by) = (0, 0);
    for name in store.topics() {
        let (root, topic) = (text_of(root), name.as_str());
        let printed = text(&run(table, &[&root, topic, "--full"], ""));
        let partitions = store.topic(topic).unwrap().partition_count();
        assert!(json(&printed).iter().all(|line| line["partition"].as_u64() < Some(partitions.into())), "{topic}");
        for number in 0..partitions {
            let begin = format!("{{\"partition\":{number},");
            let own: Vec<&str> = printed.lines().filter(|line| line.starts_with(&begin)).collect();
            let lines = |directory: &str, options: &[&str]| {
                let number = number.to_string();
                text(&run(dump, &[&[directory, topic, &number, "--full"], options].concat(), ""))
            };
            let all = newest_lines(&lines(&root, &[]));
            // The broker that was killed left a transaction open, behind which committed records end. Of the one that was
            // closed later it is known how that went: the transaction was aborted.
            let ended = if topic == "open_transaction" { "clean" } else { state };
            let expected = newest_lines(&lines(&text_of(&fixtures().join(ended)), &["--committed"]));
            let dumped = newest_lines(&lines(&root, &["--committed"]));
            assert!(dumped == expected || ended != state, "{root} {topic}-{number}:\n{dumped:?}\n{expected:?}");
            let found = newest_lines(&own.join("\n"));
            assert!(found == expected, "{root} {topic}-{number}:\n{found:?}\n{expected:?}");
            assert_eq!(own.len(), expected.len(), "{root} {topic}-{number}: each key once");
            keys += expected.len();
            passed_by += all.iter().filter(|(key, line)| expected.get(*key) != Some(*line)).count();
        }
    }
    (keys, passed_by)
}

#[cfg(all(feature = "gzip", feature = "snappy", feature = "lz4", feature = "zstd"))]
#[test]
fn a_table_of_a_brokers_directory_has_no_record_of_an_aborted_transaction_before_and_after_upkeep() {
    let (Some(dump), Some(table), Some(upkeep)) = (tool("dump"), tool("table"), tool("upkeep")) else { return };
    for state in ["clean", "killed"] {
        let (_guard, root) = copy_of(state);
        let tools = (dump.as_path(), table.as_path());
        let (keys, passed_by) = check_tables(tools, &root, state);
        assert!(keys >= 500 && passed_by >= 16, "{state}: {keys} keys, {passed_by}");
        let config = TopicConfig::default().cleanup_policy(CleanupPolicy::Compact).segment_bytes(4000);
        let config = config.min_cleanable_dirty_ratio(0.0);
        let names: Vec<String> = {
            let store = Store::builder().read_only(true).upkeep(Upkeep::Manual).open(&root).unwrap();
            store.topics().iter().map(ToString::to_string).collect()
        };
        let options = AdoptOptions::new().broker_is_gone(true);
        let options = names.iter().fold(options, |options, name| options.config(name.clone(), config.clone()));
        Store::adopt(&root, &options).unwrap();
        let (mut before, mut after) = (0, 0);
        // Until the time of the tombstones is over.
        for now in ["1796000000000", "1796086400000"] {
            let done = json(&text(&run(&upkeep, &[root.to_str().unwrap(), "--now", now], "")));
            let sum = |field: &str| done.iter().map(|line| line[field].as_u64().unwrap()).sum::<u64>();
            (before, after) = (before + sum("records_before"), after + sum("records_after"));
            assert_eq!(check_tables(tools, &root, state).0, keys, "{state} at {now}");
        }
        assert!(after < before, "{state}: nothing was compacted");
        tell!("tables of kafka {state}: {keys} keys, {passed_by} passed by; records {before} to {after} in two rounds");
    }
}

fn json(lines: &str) -> Vec<serde_json::Value> {
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[cfg(all(feature = "gzip", feature = "snappy", feature = "lz4", feature = "zstd"))]
#[test]
fn groups_prints_what_kafka_says_and_the_lag() {
    let Some(groups) = tool("groups") else { return };
    for state in ["clean", "killed"] {
        let root = fixtures().join(state);
        let mut printed = json(&text(&run(&groups, &[root.to_str().unwrap()], "")));
        for line in &mut printed {
            let fields = line.as_object_mut().unwrap();
            let lag = fields.remove("lag").unwrap().as_u64().unwrap();
            let partition = fields["partition"].as_str().unwrap();
            let expected = fixtures().join(format!("{state}.expected"));
            let committed = expected.join(format!("{partition}.read_committed.jsonl"));
            let all = expected.join(format!("{partition}.jsonl"));
            let records = std::fs::read_to_string(if committed.exists() { committed } else { all }).unwrap();
            let offset = fields["offset"].as_i64().unwrap();
            let beyond =
                json(&records).iter().skip(1).filter(|record| record["offset"].as_i64() >= Some(offset)).count();
            assert_eq!(lag, beyond as u64, "{state} {partition} from {offset}");
        }
        let expected = std::fs::read_to_string(fixtures().join(format!("{state}.expected/groups.jsonl"))).unwrap();
        assert_eq!(printed, json(&expected), "{state}");
        check_refused(
            &run(&groups, &[root.to_str().unwrap(), "--reset", "g", "rolled", "latest"], ""),
            &["holds no store", "adopt"],
        );
    }
}

#[test]
fn of_a_topic_that_was_made_again_a_group_has_read_nothing() {
    let Some(groups) = tool("groups") else { return };
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("s");
    let store = Store::builder().upkeep(Upkeep::Manual).open(&root).unwrap();
    let fill = |records: usize| {
        let topic = store.create_topic("t", TopicConfig::default()).unwrap();
        (0..records).for_each(|_| drop(topic.append(Record::of_value("x")).unwrap()));
        topic.partition(0).unwrap()
    };
    let partition = fill(10);
    let at_end = [(partition.id().clone(), OffsetAndMetadata::new(10))];
    Groups::open(&store).unwrap().commit("g", &at_end).unwrap();
    store.delete_topic("t").unwrap();
    fill(3);
    store.close().unwrap();
    let printed = text(&run(&groups, &[root.to_str().unwrap()], ""));
    assert_eq!(place_of(&printed, "g"), [(10, 3)]);
}

/// Each group's line for the one partition: offset and lag.
fn place_of(lines: &str, group: &str) -> Vec<(i64, i64)> {
    let of = json(lines).into_iter().filter(|line| line["group"] == group);
    of.map(|line| (line["offset"].as_i64().unwrap(), line["lag"].as_i64().unwrap())).collect()
}

#[test]
fn tail_goes_on_where_its_group_was_and_groups_moves_it() {
    let (Some(tail), Some(load), Some(groups)) = (tool("tail"), tool("load"), tool("groups")) else { return };
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("s");
    let root = root.to_str().unwrap();
    let lines: String = (0..10).map(|n| format!("{{\"timestamp\":{},\"value\":\"0{n}\"}}\n", 1000 + n)).collect();
    text(&run(&load, &[root, "t"], &lines));
    let offsets = |printed: &str| json(printed).iter().map(|line| line["offset"].as_i64().unwrap()).collect::<Vec<_>>();
    let tail = |group: &str, args: &[&str]| {
        text(&run(&tail, &[&[root, "t", "--group", group, "--idle", "50"], args].concat(), ""))
    };
    let printed = tail("g", &["--max", "4", "--commit-every", "3"]);
    assert_eq!(offsets(&printed), [0, 1, 2, 3]);
    let first = &json(&printed)[0];
    assert_eq!((first["topic"].as_str(), first["partition"].as_u64()), (Some("t"), Some(0)));
    assert_eq!((first["value"].as_str(), first["timestamp"].as_i64()), (Some("00"), Some(1000)));
    assert_eq!(offsets(&tail("g", &[])), [4, 5, 6, 7, 8, 9]);
    assert_eq!(offsets(&tail("g", &[])), Vec::<i64>::new());
    assert_eq!(offsets(&tail("late", &["--from", "latest"])), Vec::<i64>::new());
    assert_eq!(place_of(&text(&run(&groups, &[root], "")), "g"), [(10, 0)]);
    for (to, expected) in
        [("earliest", (0, 10)), ("1006", (6, 4)), ("999999", (10, 0)), ("latest", (10, 0)), ("0", (0, 10))]
    {
        let moved = text(&run(&groups, &[root, "--reset", "g", "t", to], ""));
        assert_eq!(place_of(&moved, "g"), [expected], "{to}");
        assert_eq!(place_of(&text(&run(&groups, &[root], "")), "g"), [expected], "{to}, read again");
    }
    assert_eq!(offsets(&tail("g", &["--max", "2"])), [0, 1]);
    check_refused(&run(&groups, &[root, "--reset", "g", "t", "soon"], ""), &["soon", "earliest"]);
    check_refused(&run(&groups, &[root, "--reset", "g", "nothing", "latest"], ""), &["nothing"]);
}

/// Turns one bit of a topic's log round, in the record whose value is this.
fn damage(root: &str, topic: &str, value: &[u8]) {
    let path = Path::new(root).join(format!("{topic}-0/00000000000000000000.log"));
    let mut log = std::fs::read(&path).unwrap();
    let at = log.windows(value.len()).position(|window| window == value).unwrap();
    log[at] ^= 1;
    std::fs::write(path, log).unwrap();
}

/// The first such partition once ended the listing, and a tail that met it printed the same records each time.
#[test]
fn damage_hides_neither_what_was_committed_nor_what_was_printed() {
    let (Some(tail), Some(load), Some(groups)) = (tool("tail"), tool("load"), tool("groups")) else { return };
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("s");
    let root = root.to_str().unwrap();
    let lines: String = (0..10).map(|n| format!("{{\"value\":\"0{n}c0ffee\"}}\n")).collect();
    for topic in ["damaged", "good"] {
        text(&run(&load, &[root, topic, "--batch", "1"], &lines));
        text(&run(&tail, &[root, topic, "--group", "g", "--max", "2"], ""));
    }
    damage(root, "damaged", &[0x05, 0xc0, 0xff, 0xee]);

    let output = run(&groups, &[root], "");
    assert_eq!(output.status.code(), Some(1));
    let printed = json(&String::from_utf8(output.stdout.clone()).unwrap());
    let shown: Vec<_> = printed.iter().map(|line| (&line["partition"], &line["offset"], &line["lag"])).collect();
    assert_eq!(serde_json::json!(shown), serde_json::json!([["damaged-0", 2, null], ["good-0", 2, 8]]));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("damaged-0") && told.contains("lag"), "{told}");

    // Ended by the damage, not by `--idle`, and long before 1,000 records were printed.
    let args = [root, "damaged", "--group", "g", "--idle", "50"];
    let offsets = |output: &Output| -> Vec<i64> {
        let lines = json(std::str::from_utf8(&output.stdout).unwrap());
        lines.iter().map(|line| line["offset"].as_i64().unwrap()).collect()
    };
    for expected in [vec![2, 3, 4], vec![]] {
        let output = run(&tail, &args, "");
        assert!(!output.status.success());
        assert_eq!(offsets(&output), expected);
    }
}

/// A tail that waits may be killed at any time; what it showed is not to be shown again.
#[test]
fn a_tail_has_committed_what_it_printed_before_it_waits() {
    let (Some(tail), Some(load), Some(groups)) = (tool("tail"), tool("load"), tool("groups")) else { return };
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("s");
    let root = root.to_str().unwrap();
    text(&run(&load, &[root, "t"], "{\"value\":\"00\"}\n{\"value\":\"01\"}\n"));
    let mut waiting = Command::new(&tail)
        .args([root, "t", "--group", "g"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A read-only look beside it, until the commit is there; it would come only with the thousandth record otherwise.
    let committed = || place_of(&text(&run(&groups, &[root], "")), "g") == [(2, 0)];
    let is_there = (0..600).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(50));
        committed()
    });
    waiting.kill().unwrap();
    waiting.wait().unwrap();
    assert!(is_there);
}

/// What of the batches in a topic is compressed, and how.
fn codecs(root: &str) -> Vec<topiclog::Compression> {
    let store = Store::builder().read_only(true).upkeep(Upkeep::Manual).open(root).unwrap();
    let partition = store.topic("t").unwrap().partition(0).unwrap();
    let mut reader = partition.reader(0, &topiclog::ReadOptions::new()).unwrap();
    std::iter::from_fn(|| reader.next_batch().unwrap()).map(|batch| batch.header().compression()).collect()
}

/// An existing topic was written to as it is configured, without a word.
#[cfg(feature = "gzip")]
#[test]
fn load_takes_its_options_for_an_existing_topic_or_says_which_it_does_not() {
    use topiclog::Compression;

    let Some(load) = tool("load") else { return };
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().to_str().unwrap();
    let line = "{\"key\":\"6b\",\"value\":\"00\"}\n";
    let said = |options: &[&str]| {
        let output = run(&load, &[&[root, "t"], options].concat(), line);
        assert_eq!(text(&output), "1 records\n");
        String::from_utf8(output.stderr).unwrap()
    };
    assert_eq!(said(&["--segment-bytes", "100000", "--durability", "sync"]), "");
    assert_eq!(said(&["--compression", "gzip", "--durability", "interval"]), "");
    let told = said(&["--config", "segment.ms=5000", "--partitions", "2", "--durability", "os"]);
    assert!(told.contains("--config is not taken") && told.contains("--partitions is not taken"), "{told}");
    assert_eq!(told.lines().count(), 2, "{told}");
    assert_eq!(codecs(root), [Compression::None, Compression::Gzip, Compression::None]);
}

/// It was refused as a whole.
#[test]
fn load_splits_a_batch_that_is_longer_than_the_topic_allows() {
    let Some(load) = tool("load") else { return };
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().to_str().unwrap();
    let line = |bytes: usize| format!("{{\"key\":\"6b\",\"value\":\"{}\"}}\n", "00".repeat(bytes));
    let lines = line(2048).repeat(1500);
    assert_eq!(text(&run(&load, &[root, "t", "--batch", "1000"], &lines)), "1500 records\n");
    assert!(codecs(root).len() < 10, "in halves, not one by one: {}", codecs(root).len());
    // What is too long by itself is refused alone, and what comes before it is there.
    let lines = [line(9).repeat(3), line(2 << 20), line(9)].concat();
    let refused = run(&load, &[root, "t", "--batch", "1000"], &lines);
    check_refused(&refused, &["max.message.bytes", "3 records before it were appended"]);
    let store = Store::builder().read_only(true).upkeep(Upkeep::Manual).open(root).unwrap();
    assert_eq!(store.topic("t").unwrap().partition(0).unwrap().end().get(), 1503);
}
