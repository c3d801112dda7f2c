//! Imports point down, and what is rare stays in its place.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::skipped;

/// Modules with their layers; within layer 0 the order is as listed.
const LAYERS: [(&str, u32); 17] = [
    ("ids", 0),
    ("error", 0),
    ("position", 0),
    ("sync", 0),
    ("clock", 0),
    ("io", 1),
    ("record", 1),
    ("segment", 2),
    ("partition", 3),
    ("cleaner", 4),
    ("retention", 4),
    ("key_index", 4),
    ("topic", 5),
    ("store", 6),
    ("client", 6),
    ("group", 7),
    ("local", 8),
];
/// Stand above all, or beside the code.
const FREE: [&str; 6] = ["lib", "testing", "fuzzing", "manual", "planted", "main"];

fn sources() -> Vec<(PathBuf, String)> {
    let (mut found, mut waiting) = (Vec::new(), vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")]);
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                waiting.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                // Tests of a module may use what they like.
                let code = text.split("#[cfg(test)]\nmod tests").next().unwrap().to_owned();
                found.push((path, code));
            }
        }
    }
    found
}

fn module_of(path: &Path) -> String {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let first = path.strip_prefix(source).unwrap().iter().next().unwrap().to_str().unwrap();
    first.strip_suffix(".rs").unwrap_or(first).to_owned()
}

fn place(module: &str) -> Option<(usize, u32)> {
    LAYERS.iter().position(|(name, _)| *name == module).map(|index| (index, LAYERS[index].1))
}

#[test]
fn imports_point_down() {
    let mut checked = 0;
    for (path, code) in sources() {
        let module = module_of(&path);
        if FREE.contains(&module.as_str()) {
            continue;
        }
        let (index, layer) = place(&module).unwrap_or_else(|| panic!("{module} has no layer"));
        for line in code.lines().filter(|line| !line.trim_start().starts_with("//")) {
            for used in line.split("crate::").skip(1) {
                let used: String = used.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
                let Some((used_index, used_layer)) = place(&used) else { continue };
                let is_down = used == module || used_layer < layer || (layer == 0 && used_index < index);
                // `error` names `ids`, and `ids` makes errors: the two are one in this.
                let is_pair = module == "ids" && used == "error";
                assert!(is_down || is_pair, "{} imports {used}: {line}", path.display());
                checked += 1;
            }
        }
    }
    assert!(checked > 150, "only {checked} imports were looked at");
}

fn check_only_in(what: &str, allowed: &[&str]) {
    for (path, code) in sources() {
        let is_allowed = allowed.iter().any(|allowed| path.ends_with(allowed));
        let hit = code.lines().find(|line| line.contains(what) && !line.trim_start().starts_with("//"));
        assert!(is_allowed || hit.is_none(), "{what} in {}: {}", path.display(), hit.unwrap_or_default());
    }
}

#[test]
fn what_is_rare_stays_in_its_place() {
    check_only_in("unsafe {", &["io/map.rs"]);
    check_only_in("std::fs::", &["io/disk.rs", "io/map.rs"]);
    check_only_in("SystemTime::now", &["clock/mod.rs"]);
    check_only_in("Instant::now", &["clock/mod.rs"]);
    check_only_in("thread::Builder", &["store/upkeep.rs", "client/sender_thread.rs"]);
}

#[test]
fn what_threads_share_comes_from_one_place() {
    check_only_in("parking_lot", &["src/sync.rs"]);
    check_only_in("shuttle::", &["src/sync.rs"]);
    // The switch of the planted bugs belongs to the whole process, and is set while nothing else runs.
    check_only_in("std::sync::atomic", &["src/sync.rs", "src/planted.rs"]);
    // The suite for file systems of others is run by them, on real threads.
    check_only_in("std::thread::", &["testing/vfs_suite.rs"]);
    let elsewhere = ["Mutex", "RwLock", "Condvar", "Barrier", "LazyLock", "mpsc", "atomic"];
    let mut checked = 0;
    for (path, code) in sources().into_iter().filter(|(path, _)| !path.ends_with("src/sync.rs")) {
        for line in code.lines().filter(|line| line.starts_with("use std::sync::")) {
            let mut names = line.split(|c: char| !c.is_ascii_alphanumeric());
            let hit = names.find(|name| elsewhere.contains(name));
            assert!(hit.is_none(), "{} takes {} from std: {line}", path.display(), hit.unwrap_or_default());
            checked += 1;
        }
    }
    assert!(checked > 20, "only {checked} imports were looked at");
}

#[test]
fn the_default_build_links_few_crates() {
    let output = std::process::Command::new(env!("CARGO"))
        .args(["tree", "--edges", "normal", "--prefix", "none", "--no-default-features", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    if !output.status.success() {
        skipped("the_default_build_links_few_crates", &String::from_utf8_lossy(&output.stderr));
        return;
    }
    let text = String::from_utf8(output.stdout).unwrap();
    let mut crates: Vec<&str> =
        text.lines().map(|line| line.trim_end_matches(" (*)")).filter(|line| !line.is_empty()).collect();
    crates.sort_unstable();
    crates.dedup();
    tell!("default build: {} crates", crates.len());
    assert!((10..=40).contains(&crates.len()), "{crates:#?}");
}
