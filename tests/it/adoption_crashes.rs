//! Adoption on the simulated disk: after a crash or a fault anywhere in it the directory is a broker's still, and can be
//! adopted, or it is a store; and every record that Kafka's own consumer saw is there.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use topiclog::clock::ManualClock;
use topiclog::io::{Fault, FaultPlan, FaultVfs, Image, errno};
use topiclog::record::BatchView;
use topiclog::{AdoptOptions, Error, Isolation, Record, Store, StoreBuilder, Upkeep, verify_on};

use crate::damage_kafka::of_broker;
use crate::kafka_dirs::{check_lines, fixtures, lines};
use crate::support::simulate::{Random, Sweep, profile};

const ROOT: &str = "/s";

fn builder(disk: &FaultVfs) -> StoreBuilder {
    let builder = Store::builder().vfs(Arc::new(disk.clone())).clock(Arc::new(ManualClock::new(1_700_000_000_000)));
    builder.upkeep(Upkeep::Manual).id_seed(7).open_files_max(6)
}

fn adopt(disk: &FaultVfs) -> topiclog::Result<()> {
    let options = AdoptOptions::new().broker_is_gone(true).cut_torn_tails(true);
    builder(disk).adopt(ROOT, &options).map(drop)
}

/// What a reader sees of a partition.
struct Seen {
    topic: String,
    partition: u32,
    /// Of uncommitted and of committed records: log start and end, then each record.
    lines: [Vec<String>; 2],
}

const ISOLATIONS: [Isolation; 2] = [Isolation::Uncommitted, Isolation::Committed];

/// A directory that a broker left.
struct Directory {
    name: &'static str,
    image: Image,
    seen: Vec<Seen>,
}

impl Directory {
    fn new(name: &'static str, state: &str, partitions: &[&str], change: impl FnOnce(&mut Image)) -> Self {
        let mut image = of_broker(state, partitions);
        change(&mut image);
        let store = builder(&FaultVfs::from_image(&image)).read_only(true).open(ROOT).unwrap();
        let see = |id: &&str| {
            let (topic, number) = id.rsplit_once('-').unwrap();
            let (topic, partition) = (topic.to_owned(), number.parse().unwrap());
            let found = store.topic(&topic).unwrap().partition(partition).unwrap();
            let lines = ISOLATIONS.map(|isolation| lines(&found, isolation));
            let expected = fixtures().join(format!("{state}.expected/{id}.jsonl"));
            check_lines(id, &lines[0], &std::fs::read_to_string(expected).unwrap());
            Seen { topic, partition, lines }
        };
        let seen = partitions.iter().map(see).collect();
        Self { name, image, seen }
    }

    fn all() -> Vec<Self> {
        vec![
            Self::new("clean", "clean", &["compacted_tx-0", "partitioned-0", "partitioned-3"], |_| {}),
            Self::new("killed", "killed", &["open_transaction-0", "partitioned-0"], |_| {}),
            Self::new("torn", "killed", &["partitioned-1", "__consumer_offsets-0"], |image| {
                let log = "s/partitioned-1/00000000000000000000.log";
                let bytes = image.read(log).unwrap();
                image.write(log, &[&bytes[..], &[0x5a; 700]].concat()).unwrap();
            }),
            Self::new("exchanged", "clean", &["records_deleted-0"], |image| {
                merge_into_swap(image, "s/records_deleted-0")
            }),
            Self::new("unfinished", "killed", &["__consumer_offsets-0", "partitioned-2"], |image| {
                split_into_swap(image, "s/__consumer_offsets-0/00000000000000000000.log");
                image.write("s/__consumer_offsets-0/00000000000000000000.log.deleted", b"old").unwrap();
                image.write("s/partitioned-2/leader-epoch-checkpoint.tmp", b"0\n").unwrap();
            }),
            // Every partition was taken over, and the store's manifest did not come to be.
            Self::new("again", "killed", &["compacted_tx-0", "partitioned-4"], |image| {
                let disk = FaultVfs::from_image(image);
                adopt(&disk).unwrap();
                *image = disk.image();
                assert!(image.remove("s/topiclog.manifest.1"));
            }),
        ]
    }

    /// The directory, or the store, is whole. One that was adopted has to be a store.
    fn check(&self, image: &Image, is_adopted: bool) -> Result<(), String> {
        let disk = FaultVfs::from_image(image);
        match builder(&disk).open(ROOT) {
            Ok(_) => {}
            Err(Error::NeedsAdopt { .. }) if !is_adopted => {
                let reader =
                    builder(&disk).read_only(true).open(ROOT).map_err(|error| format!("read-only: {error}"))?;
                self.compare(&reader).map_err(|problem| format!("read-only: {problem}"))?;
                drop(reader);
                adopt(&disk).map_err(|error| format!("adopt again: {error}"))?;
            }
            Err(error) => return Err(format!("open: {error}")),
        }
        let store = builder(&disk).open(ROOT).map_err(|error| format!("open: {error}"))?;
        self.compare(&store)?;
        for seen in &self.seen {
            let partition = store.topic(&seen.topic).unwrap().partition(seen.partition).unwrap();
            let end = partition.end();
            let placed = partition.append(Record::keyed("k", "v")).map_err(|error| format!("append: {error}"))?;
            if placed.offset != end {
                return Err(format!("{} was assigned, the end was {end}", placed.offset));
            }
        }
        store.close().map_err(|error| format!("close: {error}"))?;
        drop(store);
        let report = verify_on(&disk, Path::new(ROOT)).map_err(|error| format!("verify: {error}"))?;
        let damage = report.damages().next().map(|finding| format!("verify: {finding}"));
        damage.map_or(Ok(()), Err)
    }

    fn compare(&self, store: &Store) -> Result<(), String> {
        for seen in &self.seen {
            let partition = store.topic(&seen.topic).and_then(|topic| topic.partition(seen.partition));
            let partition = partition.map_err(|error| format!("{}: {error}", seen.topic))?;
            for (isolation, expected) in ISOLATIONS.into_iter().zip(&seen.lines) {
                if lines(&partition, isolation) != *expected {
                    return Err(format!("{} {isolation:?}: other records than the broker's", seen.topic));
                }
            }
        }
        Ok(())
    }
}

/// Puts all segments of a partition but the last together in one, which waits for its final name.
fn merge_into_swap(image: &mut Image, directory: &str) {
    let mut logs: Vec<String> = image.files().map(|(path, _)| path.to_owned()).collect();
    logs.retain(|path| path.starts_with(directory) && path.ends_with(".log"));
    let closed = &logs[..logs.len() - 1];
    assert!(closed.len() > 1);
    let merged: Vec<u8> = closed.iter().flat_map(|log| image.read(log).unwrap()).collect();
    image.write(format!("{}.swap", closed[0]), &merged).unwrap();
    for suffix in [".index.swap", ".timeindex.swap"] {
        image.write(closed[0].replace(".log", suffix), b"").unwrap();
    }
}

/// Two segments were to take the place of one, and only the second has got its name.
fn split_into_swap(image: &mut Image, log: &str) {
    let bytes = image.read(log).unwrap();
    let mut at = 0;
    while at < bytes.len() / 2 {
        at += BatchView::parse(&bytes[at..]).unwrap().bytes().len();
    }
    let base = BatchView::parse(&bytes[at..]).unwrap().header().base_offset;
    let (directory, _) = log.rsplit_once('/').unwrap();
    image.write(format!("{directory}/{base:020}.log.swap"), &bytes[at..]).unwrap();
    image.write(format!("{log}.cleaned"), &bytes[..at - 7]).unwrap();
    image.write(log.replace(".log", ".index.cleaned"), b"").unwrap();
}

fn crash_sweep(states: u64) -> Sweep {
    let mut sweep = Sweep::new("crash states of adoptions", states);
    let directories = Directory::all();
    let mut stops = Vec::new();
    for directory in &directories {
        let disk = FaultVfs::from_image(&directory.image);
        adopt(&disk).unwrap();
        stops.extend((0..=disk.operations()).map(|stop| (directory, stop)));
    }
    // In an order of its own, so that however many states are asked for there are some of every kind.
    let mut random = Random(5);
    for at in (1..stops.len()).rev() {
        stops.swap(at, random.below(at + 1));
    }
    let mut seen = HashSet::new();
    let share = (2 * states).div_ceil(stops.len() as u64) as usize;
    for (directory, stop) in stops {
        let disk = FaultVfs::from_image(&directory.image);
        disk.stop_after(stop);
        let is_adopted = adopt(&disk).is_ok();
        let mut crashes: Vec<_> = disk.crash_states(&profile(stop)).collect();
        // All of them would take minutes.
        while crashes.len() > share {
            crashes.swap_remove(random.below(crashes.len()));
        }
        for state in crashes {
            if sweep.is_over() {
                return sweep;
            }
            if seen.insert((state.hash, is_adopted)) {
                sweep.count += 1;
                let what = format!("{} stopped after {stop}: {state}", directory.name);
                sweep.guard(&what, || directory.check(&state.image, is_adopted));
            }
        }
    }
    sweep
}

fn fault_sweep() -> Sweep {
    let mut sweep = Sweep::new("faults in adoptions", u64::MAX);
    for directory in Directory::all() {
        let disk = FaultVfs::from_image(&directory.image);
        adopt(&disk).unwrap();
        for call in 0..disk.calls() {
            let (number, sticky) = [(errno::EIO, false), (errno::ENOSPC, true), (errno::EIO, true)][call as usize % 3];
            let disk = FaultVfs::from_image(&directory.image);
            let plan = FaultPlan::new(Fault::Error(number)).at_call(call);
            disk.inject(if sticky { plan.sticky() } else { plan });
            let is_adopted = adopt(&disk).is_ok();
            disk.clear_faults();
            disk.kill();
            sweep.count += 1;
            let what = format!("{}: errno {number} at call {call}, sticky {sticky}", directory.name);
            sweep.guard(&what, || directory.check(&disk.image(), is_adopted));
            if sweep.is_over() {
                return sweep;
            }
        }
    }
    sweep
}

#[test]
fn every_crash_in_an_adoption_leaves_a_directory_that_adopts_or_a_store() {
    crash_sweep(4_000).finish(1_200);
}

#[test]
fn a_fault_in_an_adoption_leaves_a_directory_that_adopts_or_a_store() {
    fault_sweep().finish(1_000);
}
