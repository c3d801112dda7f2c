//! A process in which several groups read and commit is killed, again and again: what was acknowledged holds, and nothing
//! that was not delivered is taken for read.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use topiclog::client::Reset;
use topiclog::group::Groups;
use topiclog::{Consumer, Durability, Record, Store, TopicConfig, Upkeep};

use crate::processes::{child, lines, tell as say};
use crate::support::simulate::{Random, seed};

/// Two groups of members, the second with two of them, and one that is assigned its partitions.
const READERS: [(&str, bool); 4] = [("alone", true), ("shared", true), ("shared", true), ("assigned", false)];
const PARTITIONS: u32 = 3;
const KILLS: usize = 40;

/// What the killed process does: appends, and lets the groups read and commit. It says what it polled before it commits it,
/// and what it committed once that was acknowledged.
pub(crate) fn read_and_commit_for_ever(root: &Path) {
    let store = Store::open(root).unwrap();
    let config = TopicConfig::default().partitions(PARTITIONS).durability(Durability::Os).segment_bytes(64 << 10);
    let topic = store.ensure_topic("t", config).unwrap();
    for (number, reader) in READERS.into_iter().enumerate() {
        let store = store.clone();
        std::thread::spawn(move || {
            let reading = std::panic::AssertUnwindSafe(|| read_and_commit(&store, reader, number));
            if std::panic::catch_unwind(reading).is_err() {
                say(&format!("broken {}", reader.0));
            }
        });
    }
    for number in 0_usize.. {
        topic.append(Record::of_value(format!("{number} {:.<500}", ""))).unwrap();
    }
}

fn read_and_commit(store: &Store, (group, is_member): (&str, bool), number: usize) {
    let builder = Consumer::builder(store).group(group).reset(Reset::Earliest).records_max(20);
    let builder = if is_member {
        builder.topic("t")
    } else {
        let topic = store.topic("t").unwrap();
        topic.partitions().fold(builder, |builder, partition| builder.partition(partition.id().clone()))
    };
    let mut consumer = builder.open().unwrap();
    loop {
        let records = consumer.poll(Duration::from_secs(1)).unwrap();
        for (partition, records) in records.by_partition() {
            let (first, last) = (records.first().unwrap(), records.last().unwrap());
            let next = last.offset().get() + 1;
            say(&format!("polled {group} {} {} {next} {number}", partition.partition, first.offset()));
        }
        match consumer.commit() {
            Ok(()) => {}
            // A rebalance: what was polled is another's by now.
            Err(topiclog::Error::Fenced { .. }) => continue,
            Err(error) => panic!("{error}"),
        }
        for (partition, records) in records.by_partition() {
            let next = records.last().unwrap().offset().get() + 1;
            say(&format!("committed {group} {} {next}", partition.partition));
        }
    }
}

type Place = (String, u32);

/// The lines that begin with a word: of which group and partition, and the numbers behind.
fn told(output: &str, word: &str) -> Vec<(Place, Vec<i64>)> {
    let parse = |line: &String| {
        let mut words = line.split(' ');
        let place = (words.next().unwrap().to_owned(), words.next().unwrap().parse().unwrap());
        (place, words.map(|word| word.parse().unwrap()).collect())
    };
    lines(output, word).iter().map(parse).collect()
}

#[test]
fn commits_of_several_groups_survive_kills_and_are_never_ahead_of_what_was_delivered() {
    let started = Instant::now();
    let mut random = Random(seed("kills of groups", 12));
    let directory = tempfile::tempdir().unwrap();
    let (mut known, mut commits): (BTreeMap<Place, i64>, usize) = (BTreeMap::new(), 0);
    for round in 0..KILLS {
        let mut process = child("groups", directory.path()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(20) + Duration::from_micros(random.below(60_000) as u64));
        process.kill().unwrap();
        let output = String::from_utf8_lossy(&process.wait_with_output().unwrap().stdout).into_owned();
        assert_eq!(lines(&output, "broken"), [""; 0], "round {round}: a reader stopped at an error");
        let (mut acknowledged, mut delivered) = (known.clone(), known.clone());
        let mut begun = BTreeMap::new();
        for (place, numbers) in told(&output, "polled") {
            begun.entry(place.clone()).or_insert(numbers[0]);
            let most = delivered.entry(place).or_default();
            *most = numbers[1].max(*most);
        }
        for (place, numbers) in told(&output, "committed") {
            commits += 1;
            let most = acknowledged.entry(place).or_default();
            *most = numbers[0].max(*most);
        }
        for (place, first) in begun {
            assert_eq!(first, known.get(&place).copied().unwrap_or(0), "round {round}: where {place:?} went on");
        }
        let store = Store::builder().upkeep(Upkeep::Manual).open(directory.path()).unwrap();
        let groups = Groups::open(&store).unwrap();
        for (group, _) in READERS {
            for (id, found) in groups.offsets(group).unwrap() {
                let place = (group.to_owned(), id.partition.get());
                let most = delivered.get(&place).copied().unwrap_or(0);
                assert!(found.offset <= most, "round {round}: {place:?} is at {} of {most} delivered", found.offset);
                known.insert(place, found.offset);
            }
        }
        for (place, offset) in acknowledged {
            let found = known.get(&place).copied();
            assert!(found >= Some(offset), "round {round}: {place:?} is at {found:?}, {offset} was acknowledged");
        }
        store.close().unwrap();
    }
    let seconds = started.elapsed().as_secs_f64();
    tell!("kills of groups: {KILLS} kills, {commits} acknowledged commits, 0 lost, {seconds:.1} s");
    assert!(commits >= 1000, "only {commits} commits were acknowledged");
    assert!(known.len() == 9 && known.values().all(|&offset| offset > 0), "every group read everything: {known:?}");
}
