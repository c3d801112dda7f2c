//! Committed offsets: those of directories by a real Kafka, and our own.

use std::fs;
use std::path::Path;

use topiclog::group::Groups;
use topiclog::{Store, Upkeep};

use crate::kafka_dirs::{copy_of, fixtures, tree};

/// Every group's offsets as `groups.jsonl` spells them.
fn lines(store: &Store) -> Vec<serde_json::Value> {
    let groups = Groups::open(store).unwrap();
    let mut lines = Vec::new();
    for group in groups.list().unwrap() {
        for (partition, committed) in groups.offsets(&group).unwrap() {
            lines.push(serde_json::json!({
                "group": group,
                "partition": partition.to_string(),
                "offset": committed.offset,
                "leader_epoch": committed.leader_epoch,
                "metadata": &*committed.metadata,
            }));
        }
    }
    lines
}

fn expected(state: &str) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(fixtures().join(format!("{state}.expected/groups.jsonl"))).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn read_only(root: &Path) -> Store {
    Store::builder().read_only(true).upkeep(Upkeep::Manual).open(root).unwrap()
}

#[test]
fn a_brokers_groups_are_shown_as_kafka_shows_them() {
    for state in ["clean", "killed"] {
        let root = fixtures().join(state);
        let before = tree(&root);
        let store = read_only(&root);
        assert_eq!(lines(&store), expected(state), "{state}");
        store.close().unwrap();
        assert!(before == tree(&root), "{state}: reading changed the directory");
    }
}

#[test]
fn adopted_groups_are_the_same_and_go_on() {
    use topiclog::group::NewOffset;
    use topiclog::{AdoptOptions, Offset, PartitionId, TopicName, TopicPartition};
    for state in ["clean", "killed"] {
        let (_guard, root) = copy_of(state);
        Store::adopt(&root, &AdoptOptions::new().broker_is_gone(true)).unwrap();
        let store = Store::builder().upkeep(Upkeep::Manual).open(&root).unwrap();
        assert_eq!(lines(&store), expected(state), "{state}");
        let place = TopicPartition::new(TopicName::new("rolled").unwrap(), PartitionId::new(0));
        let groups = Groups::open(&store).unwrap();
        groups.commit("group-classic", &[(place.clone(), NewOffset::new(Offset::new(9)).metadata("ours"))]).unwrap();
        groups.delete("group-manual").unwrap();
        let mut after = expected(state);
        after.retain(|line| line["group"] != "group-manual");
        let at = after.iter().position(|line| line["group"] == "group-consumer").unwrap();
        after.insert(
            at,
            serde_json::json!({
                "group": "group-classic", "partition": "rolled-0", "offset": 9, "leader_epoch": null, "metadata": "ours",
            }),
        );
        assert_eq!(lines(&store), after, "{state}: at once");
        store.close().unwrap();
        drop((store, groups));
        let store = read_only(&root);
        assert_eq!(lines(&store), after, "{state}: reopened");
        store.close().unwrap();
    }
}
