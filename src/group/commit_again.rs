//! The short way of a commit: of a group where it has committed before. Most often no topic was made or deleted since, so that
//! nothing has to be looked up for it, and no memory is asked for.

use super::commit::{CommitOptions, check_offset, key, value};
use super::offset_store::Groups;
use super::schema::{Key, OffsetCommitValue, partition_for_group};
use super::shards::{Shard, ShardState};
use crate::client::{GroupMetadata, OffsetAndMetadata};
use crate::clock::Timestamp;
use crate::error::Result;
use crate::ids::TopicPartition;
use crate::partition::Durability;
use crate::partition::held_tombstone::HeldTombstone;
use crate::partition::sync_window::Awaited;
use crate::partition::writer::Placed;
use crate::record::RecordRef;

/// What was found of the topic of a partition.
#[derive(Clone, Debug)]
pub(super) struct Located {
    /// It holds as long as this is the version of the store's topics.
    pub(super) topics_version: u64,
    pub(super) held_tombstone: HeldTombstone,
}

/// The records of one commit, in room that is kept for the next.
#[derive(Debug, Default)]
pub(super) struct CommitRecords {
    bytes: Vec<u8>,
    /// Where key and value of each end.
    ends: Vec<(usize, usize)>,
}

/// Room that grew larger is not kept.
const KEPT_BYTES: usize = 64 << 10;

impl CommitRecords {
    fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_BYTES);
        self.ends.clear();
        self.ends.shrink_to(KEPT_BYTES / size_of::<(usize, usize)>());
    }

    #[inline]
    fn push(&mut self, key: &Key<'_>, value: &OffsetCommitValue) {
        let bytes = key.encode_behind(std::mem::take(&mut self.bytes));
        let key_end = bytes.len();
        self.bytes = value.encode_behind(bytes);
        self.ends.push((key_end, self.bytes.len()));
    }

    #[inline]
    fn iter(&self) -> impl Iterator<Item = RecordRef<'_>> {
        let mut from = 0;
        self.ends.iter().map(move |&(key_end, end)| {
            let key = self.bytes.get(std::mem::replace(&mut from, end)..key_end);
            RecordRef::new(key, self.bytes.get(key_end..end))
        })
    }
}

/// Offsets of one group.
struct Again<'a> {
    group: &'a str,
    offsets: &'a [(TopicPartition, OffsetAndMetadata)],
    topics_version: u64,
    now_ms: Timestamp,
}

/// What became of them.
struct Committed<'a> {
    placed: Placed,
    awaited: Awaited,
    /// Where the group passed a tombstone that is kept for readers.
    passed: Vec<&'a TopicPartition>,
}

impl Groups {
    /// Commits offsets that do not wait for a sync, where the group has committed before. False if there is anything to be looked
    /// up, or anything wrong: nothing was done then.
    pub(super) fn commit_again(
        &self,
        group: &str,
        offsets: &[(TopicPartition, OffsetAndMetadata)],
        options: &CommitOptions,
        member: Option<&GroupMetadata>,
    ) -> Result<bool> {
        // Looked at before anything that it tells of.
        let topics_version = self.store().topics_version();
        let Some(shards) = self.shards()? else { return Ok(false) };
        let Ok(shard) = shards.at(partition_for_group(group, shards.count)) else { return Ok(false) };
        let durability = options.durability.unwrap_or_else(|| shard.partition.log.settings().durability);
        let is_wrong = |(_, offset): &(_, OffsetAndMetadata)| check_offset(offset).is_err();
        let waits = matches!(durability, Durability::Sync | Durability::Interval { bytes: 0, .. });
        if waits || !self.store().holds_for_groups() || offsets.is_empty() || offsets.iter().any(is_wrong) {
            return Ok(false);
        }
        let options = options.durability(durability);
        let again = Again { group, offsets, topics_version, now_ms: self.store().clock().now_ms() };
        let committed = match member {
            None => shard.append_again(&again, &options, || !self.shared.in_use.has(group))?,
            Some(member) => {
                let live = self.live(group);
                let Ok(_locked) = self.lock_for_commit(&live, member) else { return Ok(false) };
                shard.append_again(&again, &options, || true)?
            }
        };
        let Some(Committed { placed, awaited, passed }) = committed else { return Ok(false) };
        shard.partition.log.acknowledge(awaited, &placed)?;
        let located = passed.into_iter().filter_map(|place| self.store().locate(place).ok());
        self.tell_of_commit(located.map(|(_, partition)| partition));
        Ok(true)
    }
}

impl Shard {
    /// Appends commits if nothing has to be looked up for them, and if they are allowed when nothing else can be appended any more.
    fn append_again<'a>(
        &self,
        again: &Again<'a>,
        options: &CommitOptions,
        is_allowed: impl FnOnce() -> bool,
    ) -> Result<Option<Committed<'a>>> {
        let mut state = self.state.lock();
        let ShardState { table: Some(table), records, .. } = &mut *state else { return Ok(None) };
        let Some(group) = table.group_mut(again.group).filter(|_| is_allowed()) else { return Ok(None) };
        records.clear();
        for (place, offset) in again.offsets {
            let Some(found) = group.offsets.get(place) else { return Ok(None) };
            let topic_id = found.located_for(again.topics_version, offset).and(found.committed.topic_id);
            let Some(topic_id) = topic_id else { return Ok(None) };
            records.push(&key(again.group, place), &value(offset, topic_id, again.now_ms));
        }
        let mut each = records.iter();
        let (placed, awaited) = match (each.next(), again.offsets) {
            (Some(one), [_]) => self.append(&[one], options, Some(again.now_ms))?,
            (first, _) => {
                let all: Vec<RecordRef<'_>> = first.into_iter().chain(each).collect();
                self.append(&all, options, Some(again.now_ms))?
            }
        };
        let mut passed = Vec::new();
        for ((place, offset), record_offset) in again.offsets.iter().zip(placed.offset..) {
            let Some(found) = group.offsets.get_mut(place) else { continue };
            if found.go_on(record_offset, offset, again.now_ms) {
                passed.push(place);
            }
        }
        Ok(Some(Committed { placed, awaited, passed }))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::clock::ManualClock;
    use crate::error::Error;
    use crate::ids::Uuid;
    use crate::io::MemoryVfs;
    use crate::partition::{ReadLevel, ReadOptions};
    use crate::store::brokers_topics::OFFSETS_TOPIC;
    use crate::store::{Store, Upkeep};
    use crate::topic::TopicConfig;

    fn groups(vfs: MemoryVfs) -> (Groups, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::new(1000));
        let builder = Store::builder().vfs(Arc::new(vfs)).clock(Arc::clone(&clock) as _).id_seed(7);
        let store = builder.upkeep(Upkeep::Manual).open("/s").unwrap();
        store.create_topic("a", TopicConfig::default().partitions(3)).unwrap();
        store.create_topic("b", TopicConfig::default()).unwrap();
        let groups = Groups::open(&store).unwrap();
        // From here on there is the topic for them.
        groups.commit("another", &[(place("b", 0), OffsetAndMetadata::new(0))]).unwrap();
        (groups, clock)
    }

    fn place(topic: &str, partition: u32) -> TopicPartition {
        TopicPartition::new(crate::ids::TopicName::new(topic).unwrap(), partition)
    }

    const OS: CommitOptions = CommitOptions { durability: Some(Durability::Os) };

    /// Whether a second commit goes the short way, after a first one was made and something was done.
    fn check(act: impl FnOnce(&Groups, &TopicPartition), second: OffsetAndMetadata, is_short: bool) {
        let (groups, _) = groups(MemoryVfs::new());
        let place = place("a", 1);
        let first = OffsetAndMetadata::new(5).metadata("note");
        groups.commit_all(&[("g", &[(place.clone(), first)])], &OS).unwrap();
        act(&groups, &place);
        let found = groups.commit_again("g", &[(place, second)], &OS, None).unwrap();
        assert_eq!(found, is_short);
    }

    #[test]
    fn a_commit_that_differs_in_its_offset_alone_goes_the_short_way() {
        let next = || OffsetAndMetadata::new(6).metadata("note");
        check(|_, _| {}, next(), true);
        check(|_, _| {}, next().leader_epoch(3), true);
        check(|_, _| {}, OffsetAndMetadata::new(4).metadata("note"), true);
        check(|_, _| {}, OffsetAndMetadata::new(6), false);
        check(|_, _| {}, OffsetAndMetadata::new(6).metadata("other"), false);
        check(|_, _| {}, OffsetAndMetadata::new(-1).metadata("note"), false);
        check(|_, _| {}, next().topic_id(Uuid::from_bytes([1; 16])), false);
        check(|groups, place| groups.delete_offsets("g", std::slice::from_ref(place)).unwrap(), next(), false);
        check(|groups, _| groups.shared.in_use.note("g", true), next(), false);
        let is_made = |groups: &Groups, _: &TopicPartition| {
            groups.store().create_topic("c", TopicConfig::default()).unwrap();
        };
        check(is_made, next(), false);
        check(|groups, _| groups.store().delete_topic("b").unwrap(), next(), false);
    }

    /// It was seen before it was synced.
    #[test]
    fn a_commit_that_waits_for_its_sync_goes_the_long_way() {
        let (groups, _) = groups(MemoryVfs::new());
        let offsets = [(place("a", 1), OffsetAndMetadata::new(5))];
        groups.commit_all(&[("g", &offsets)], &OS).unwrap();
        let is_short = |durability: Option<Durability>| {
            groups.commit_again("g", &offsets, &CommitOptions { durability }, None).unwrap()
        };
        // By itself the topic is `Sync`.
        for durability in [None, Some(Durability::Sync), Some(Durability::Interval { bytes: 0, ms: 50 })] {
            assert!(!is_short(durability), "{durability:?}");
        }
        assert!(is_short(Some(Durability::INTERVAL)));
    }

    #[test]
    fn a_topic_that_is_gone_or_another_by_now_gets_no_commit_of_the_one_before() {
        let (groups, _) = groups(MemoryVfs::new());
        let offsets = [(place("a", 1), OffsetAndMetadata::new(5))];
        let commit = || groups.commit_all(&[("g", &offsets)], &OS);
        let id = || groups.committed("g", &offsets[0].0).unwrap().unwrap().topic_id;
        commit().unwrap();
        commit().unwrap();
        let first = id();
        groups.store().delete_topic("a").unwrap();
        assert!(matches!(commit(), Err(Error::UnknownTopic { .. })));
        groups.store().create_topic("a", TopicConfig::default().partitions(2)).unwrap();
        for _ in 0..2 {
            commit().unwrap();
            assert_eq!(id(), Some(groups.store().topic("a").unwrap().id()));
            assert_ne!(id(), first);
        }
    }

    #[test]
    fn a_reader_that_passes_a_tombstone_kept_for_it_is_noticed() {
        let (groups, _) = groups(MemoryVfs::new());
        let places = [place("a", 0), place("a", 1)];
        let commit = |offset: i64| {
            let offsets = places.clone().map(|place| (place, OffsetAndMetadata::new(offset)));
            assert!(groups.commit_again("g", &offsets, &OS, None).unwrap());
        };
        groups.commit_all(&[("g", &places.clone().map(|place| (place, OffsetAndMetadata::new(0))))], &OS).unwrap();
        let log = &groups.store().topic("a").unwrap().partition(1).unwrap().log;
        log.held_tombstone.set(Some(7));
        let is_due = || {
            log.look_at_readers(|| 8);
            log.next_horizon_ms() == i64::MIN
        };
        // What it was opened with.
        log.look_at_readers(|| 0);
        for (offset, expected) in [(7, false), (7, false), (8, true)] {
            commit(offset);
            assert_eq!(is_due(), expected, "{offset}");
        }
    }

    #[test]
    fn a_member_that_is_fenced_is_so_on_the_short_way() {
        let (groups, _) = groups(MemoryVfs::new());
        let joined = groups.only_member_of("g");
        let commit = |generation: i32, offset: i64| {
            let member = GroupMetadata::new("g", generation, &joined.member_id, None);
            let offsets = [(place("a", 1), OffsetAndMetadata::new(offset))];
            let is_short = groups.commit_again("g", &offsets, &OS, Some(&member)).unwrap();
            (is_short, is_short || groups.commit_as(&member, &offsets, &OS).is_ok())
        };
        assert_eq!(commit(joined.generation, 1), (false, true), "the first");
        assert_eq!(commit(joined.generation, 2), (true, true));
        for generation in [joined.generation - 1, joined.generation + 1] {
            assert_eq!(commit(generation, 3), (false, false));
        }
        assert_eq!(groups.committed("g", &place("a", 1)).unwrap().map(|found| found.offset), Some(2));
    }

    /// What is in the log and what is answered after the same random steps, and how many of them went the short way.
    fn run(seed: u64, takes_short_way: bool) -> (Vec<String>, usize) {
        let mut state = seed;
        let mut below = |end: usize| {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            (state >> 33) as usize % end
        };
        let (groups, clock) = groups(MemoryVfs::new());
        let (mut told, mut short) = (Vec::new(), 0);
        for _ in 0..60 {
            clock.advance_ms(1 + below(3) as u32);
            let group = ["g", "h"][below(2)];
            let topic = ["a", "a", "a", "b", "c"][below(5)];
            match below(20) {
                0 => drop(groups.store().delete_topic(topic)),
                1 => drop(groups.store().create_topic(topic, TopicConfig::default().partitions(2))),
                2 => told.push(format!("{:?}", groups.delete_offsets(group, &[place(topic, below(3) as u32)]))),
                3 => told.push(format!("{:?}", groups.expire(20))),
                _ => {
                    let count = 1 + below(3) as u32;
                    let mut offset = || {
                        let offset = OffsetAndMetadata::new(below(12) as i64 - i64::from(below(40) == 0) * 12);
                        let offset = if below(4) == 0 { offset.leader_epoch(below(3) as i32) } else { offset };
                        let offset = if below(6) == 0 { offset.metadata("note") } else { offset };
                        let known = groups.store().topic(["a", "b"][below(2)]).ok().map(|topic| topic.id());
                        match known.filter(|_| below(4) == 0) {
                            Some(id) => offset.topic_id(id),
                            None => offset,
                        }
                    };
                    let offsets: Vec<_> = (0..count).map(|nth| (place(topic, nth), offset())).collect();
                    let durability = [None, Some(Durability::Os), Some(Durability::Os), Some(Durability::INTERVAL)];
                    let options = CommitOptions { durability: durability[below(4)] };
                    let short_way = || groups.commit_again(group, &offsets, &options, None);
                    let done = match if takes_short_way { short_way() } else { Ok(false) } {
                        Ok(true) => {
                            short += 1;
                            Ok(())
                        }
                        Ok(false) => groups.commit_the_long_way(&[(group, &offsets)], &options, None),
                        Err(error) => Err(error),
                    };
                    told.push(format!("{done:?}"));
                }
            }
            for group in ["g", "h"] {
                told.push(format!("{:?}", groups.offsets(group).unwrap()));
            }
        }
        let topic = groups.store().topic(OFFSETS_TOPIC);
        for partition in topic.iter().flat_map(|topic| topic.partitions()) {
            let latest = ReadOptions::new().level(ReadLevel::Latest);
            told.extend(partition.reader(0, &latest).unwrap().map(|record| format!("{:?}", record.unwrap())));
        }
        (told, short)
    }

    #[test]
    fn both_ways_come_to_the_same() {
        let mut short_ways = 0;
        for seed in 0..200 {
            let (told, short) = run(seed, true);
            assert_eq!(told, run(seed, false).0, "seed {seed}");
            short_ways += short;
        }
        assert!(short_ways > 500, "{short_ways} went the short way");
    }
}
