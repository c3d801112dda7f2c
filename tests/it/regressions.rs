//! Every bug that was found, as the smallest test that tells its story.

use std::path::Path;
use std::sync::Arc;

use topiclog::clock::ManualClock;
use topiclog::io::{Fault, FaultPlan, FaultVfs, OpKind, Vfs, errno};
use topiclog::{Durability, Error, Record, Store, TopicConfig, Upkeep};

fn machine() -> FaultVfs {
    let vfs = FaultVfs::new();
    vfs.create_dir(Path::new("/s")).unwrap();
    vfs.sync_everything();
    vfs
}

fn open(vfs: &FaultVfs) -> Store {
    let clock = Arc::new(ManualClock::new(1_700_000_000_000));
    Store::builder().vfs(Arc::new(vfs.clone())).clock(clock).upkeep(Upkeep::Manual).id_seed(5).open("/s").unwrap()
}

/// A roll without a free descriptor is put off, and the old segment goes on. Once the manifest that closes the old segment
/// had been renamed, and only the sync of the directory found no descriptor, it went on all the same: what was acknowledged
/// then lay behind the end that the manifest stated, and the next open did not see it.
#[test]
fn a_roll_that_may_have_been_committed_is_not_put_off() {
    for call in 1..12 {
        let vfs = machine();
        let store = open(&vfs);
        let config = TopicConfig::default().segment_bytes(400).durability(Durability::Sync);
        let topic = store.create_topic("t", config).unwrap();
        for _ in 0..3 {
            topic.append(Record::of_value(vec![b'x'; 50])).unwrap();
        }
        vfs.inject(FaultPlan::new(Fault::Error(errno::EMFILE)).on(OpKind::SyncDir).at_call(call));
        let acknowledged = (0..4).filter(|_| topic.append(Record::of_value(vec![b'y'; 50])).is_ok()).count();
        drop((store, topic));
        vfs.clear_faults();
        vfs.kill();
        let partition = open(&vfs).topic("t").unwrap().partition(0).unwrap();
        assert!(partition.end().get() >= 3 + acknowledged as i64, "call {call}: {acknowledged} were acknowledged");
    }
}

/// A failed sync that reverted the file's length once hid what lay before it: a positional read asked for more than was
/// needed and found the file too short.
#[test]
fn what_is_durable_can_be_read_beside_what_was_lost() {
    let vfs = machine();
    let store = open(&vfs);
    let partition = store.create_topic("t", TopicConfig::default()).unwrap().partition(0).unwrap();
    partition.append(Record::of_value("kept")).unwrap();
    let lost = Fault::Sync(errno::EIO, topiclog::io::SyncFailure::Reverted);
    vfs.inject(FaultPlan::new(lost).on(OpKind::SyncData).in_class("log"));
    assert!(matches!(partition.append(Record::of_value("lost")), Err(Error::OutcomeUnknown { .. })));
    assert_eq!(partition.record(0).unwrap().unwrap().value(), Some(&b"kept"[..]));
}
