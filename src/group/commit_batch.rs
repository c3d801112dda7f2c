//! One batch of commits: checked, appended under the locks that keep it allowed, awaited without them, and then it holds.

use super::commit::{Commit, CommitOptions, check_group, check_offset, value};
use super::offset_store::Groups;
use super::schema::partition_for_group;
use super::shards::{Appended, Shard};
use crate::client::{GroupMetadata, OffsetAndMetadata};
use crate::error::{Error, Result};
use crate::ids::TopicPartition;
use crate::partition::Partition;
use crate::store::brokers_topics::OFFSETS_TOPIC;

/// Offsets that a group commits.
type OfGroup<'a> = (&'a str, &'a [(TopicPartition, OffsetAndMetadata)]);

impl Groups {
    /// One batch of commits: of a member, or of nobody for one or many groups.
    pub(super) fn commit_batch(
        &self,
        groups: &[OfGroup<'_>],
        options: &CommitOptions,
        member: Option<&GroupMetadata>,
    ) -> Result<()> {
        if let [(group, offsets)] = groups
            && self.commit_again(group, offsets, options, member)?
        {
            return Ok(());
        }
        self.commit_the_long_way(groups, options, member)
    }

    /// Commits for which topics have to be looked up, or that wait for their sync, or are the first of their kind.
    pub(super) fn commit_the_long_way(
        &self,
        groups: &[OfGroup<'_>],
        options: &CommitOptions,
        member: Option<&GroupMetadata>,
    ) -> Result<()> {
        let commits = self.checked(groups)?;
        let Some(first) = commits.first() else {
            return Err(Error::invalid("commit", "must have at least one offset"));
        };
        let shards = self.writable_shards()?;
        let number = partition_for_group(first.group, shards.count);
        let is_elsewhere = |group: &str| group != first.group && partition_for_group(group, shards.count) != number;
        if let Some((other, _)) = groups.iter().find(|(group, _)| is_elsewhere(group)) {
            let limit = format!("must share a partition of {OFFSETS_TOPIC}: {:?} and {other:?} do not", first.group);
            return Err(Error::invalid("groups of one commit", limit));
        }
        let shard = shards.at(number)?;
        self.store().hold_for_groups(&shard.partition)?;
        let appended = self.append_while_allowed(shard, groups, &commits, options, member);
        // They may be groups that nobody is in.
        if appended.is_err() {
            groups.iter().for_each(|(group, _)| self.forget_unused(group));
        }
        let appended = appended?;
        let passed = match appended {
            Appended::Settled(placed, awaited, passed) => {
                shard.partition.log.acknowledge(awaited, &placed)?;
                passed
            }
            Appended::InFlight(placed, awaited) => {
                if let Err(error) = shard.partition.log.acknowledge(awaited, &placed) {
                    shard.give_up(&placed);
                    return Err(error);
                }
                shard.settle(&placed, &commits)?
            }
        };
        self.tell_of_commit(passed);
        Ok(())
    }

    /// Tells who waits for the group, and upkeep of partitions where the group has passed a tombstone that is kept for readers.
    pub(super) fn tell_of_commit(&self, passed: impl IntoIterator<Item = Partition>) {
        self.store().ring();
        passed.into_iter().for_each(|partition| self.store().readers_moved(&partition));
    }

    fn checked<'a>(&self, groups: &[OfGroup<'a>]) -> Result<Vec<Commit<'a>>> {
        let now_ms = self.store().clock().now_ms();
        // Noted before the look, so that a change during it is noticed by the next commit.
        let topics_version = self.store().topics_version();
        let mut commits = Vec::with_capacity(groups.iter().map(|(_, offsets)| offsets.len()).sum());
        for &(group, offsets) in groups {
            check_group(group)?;
            for (place, offset) in offsets {
                check_offset(offset)?;
                let (topic_id, partition) = self.store().locate(place)?;
                if offset.known_topic_id().is_some_and(|known| known != topic_id) {
                    return Err(Error::topic_made_again(place));
                }
                commits.push(Commit::new(group, (topics_version, partition), value(offset, topic_id, now_ms)));
            }
        }
        Ok(commits)
    }

    /// What allows the commits holds until they are in the log.
    fn append_while_allowed(
        &self,
        shard: &Shard,
        groups: &[OfGroup<'_>],
        commits: &[Commit<'_>],
        options: &CommitOptions,
        member: Option<&GroupMetadata>,
    ) -> Result<Appended> {
        if let Some(member) = member {
            let live = self.live(&member.group);
            let _locked = self.lock_for_commit(&live, member)?;
            return shard.append_commits(commits, options, || Ok(()));
        }
        let nobody_is_in = || match groups.iter().find(|(group, _)| self.shared.in_use.has(group)) {
            Some((group, _)) => {
                Err(Error::Fenced { who: format!("a commit for {group:?} by none of its members, while it has some") })
            }
            None => Ok(()),
        };
        match shard.append_commits(commits, options, nobody_is_in) {
            // Those who are gone have no say.
            Err(Error::Fenced { .. }) => {
                for (group, _) in groups.iter().filter(|(group, _)| self.shared.in_use.has(group)) {
                    self.let_go(group)?;
                    self.forget_unused(group);
                }
                shard.append_commits(commits, options, nobody_is_in)
            }
            appended => appended,
        }
    }
}
