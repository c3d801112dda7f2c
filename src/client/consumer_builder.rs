//! How a consumer is to read.

use super::consumer::{Consumer, OnRebalance, Rebalance};
use super::{Connect, ConsumerOptions, OffsetSpec, TopicFilter};
use crate::error::{Error, Result};
use crate::ids::{TopicName, TopicPartition};
use crate::partition::Durability;
use crate::position::Position;

/// Where to begin if nothing was committed, or if what was committed is no longer in the log (Kafka's `auto.offset.reset`).
/// [`Consumer::take_resets`] tells where that was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reset {
    /// At the log start.
    Earliest,
    /// At the end of what can be read.
    Latest,
    /// Nowhere: it is an error, and the caller decides.
    #[default]
    Error,
}

/// How a consumer is to read. Made by [`Consumer::builder`].
#[must_use]
pub struct ConsumerBuilder<'a> {
    at: &'a dyn Connect,
    options: ConsumerOptions,
    topics: Vec<String>,
    pattern: Option<String>,
    partitions: Vec<TopicPartition>,
    start: Option<Position>,
    reset: Reset,
    commits_with_poll: bool,
    on_rebalance: Option<OnRebalance>,
}

impl std::fmt::Debug for ConsumerBuilder<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("ConsumerBuilder");
        debug.field("options", &self.options).field("topics", &self.topics).field("partitions", &self.partitions);
        debug.finish_non_exhaustive()
    }
}

impl<'a> ConsumerBuilder<'a> {
    pub(super) fn new(at: &'a dyn Connect) -> Self {
        Self {
            at,
            options: ConsumerOptions::default(),
            topics: Vec::new(),
            pattern: None,
            partitions: Vec::new(),
            start: None,
            reset: Reset::default(),
            commits_with_poll: false,
            on_rebalance: None,
        }
    }

    /// Begins where this group has come to, and commits in its name. With topics it joins the group.
    #[doc(alias = "group.id")]
    pub fn group(mut self, group: &str) -> Self {
        self.options.group = Some(group.to_owned());
        self
    }

    /// Reads a topic: with a group, the partitions that the group gives to this member; without one, all of them.
    pub fn topic(mut self, topic: &str) -> Self {
        self.topics.push(topic.to_owned());
        self
    }

    /// Reads every topic whose whole name this regular expression matches, also those that come later, as a member of the
    /// group. Topics that begin with `__` are left out. Instead of topics.
    pub fn pattern(mut self, pattern: &str) -> Self {
        self.pattern = Some(pattern.to_owned());
        self
    }

    /// Reads one partition, whoever else does. Instead of topics.
    pub fn partition(mut self, partition: TopicPartition) -> Self {
        self.partitions.push(partition);
        self
    }

    /// Reads the partitions of a position that was stored, from there on, whatever was committed. Instead of topics.
    pub fn start_at(mut self, position: &Position) -> Self {
        self.start = Some(position.clone());
        self
    }

    /// Where to begin without a committed offset. By default that is an error.
    #[doc(alias = "auto.offset.reset")]
    pub fn reset(mut self, reset: Reset) -> Self {
        self.reset = reset;
        self
    }

    /// Most records of one poll; 500 by default.
    #[doc(alias = "max.poll.records")]
    pub fn records_max(mut self, records: usize) -> Self {
        self.options.records_max = records;
        self
    }

    /// Once a poll has so many bytes of keys and values it takes no further record; 50 MiB by default. One record is always
    /// taken.
    #[doc(alias = "fetch.max.bytes")]
    pub fn bytes_max(mut self, bytes: usize) -> Self {
        self.options.bytes_max = bytes;
        self
    }

    /// The durability of commits; by default that of `__consumer_offsets`, which is `Sync` where this library made it.
    pub fn commit_durability(mut self, durability: Durability) -> Self {
        self.options.commit_durability = Some(durability);
        self
    }

    /// Each poll commits what the polls before it brought, and so does [`Consumer::close`]: whoever polls again has processed
    /// it. By default only [`Consumer::commit`] commits.
    #[doc(alias = "enable.auto.commit")]
    pub fn commit_with_poll(mut self) -> Self {
        self.commits_with_poll = true;
        self
    }

    /// A static member: the name under which it comes back after a restart without a rebalance.
    #[doc(alias = "group.instance.id")]
    pub fn group_instance_id(mut self, name: &str) -> Self {
        self.options.group_instance_id = Some(name.to_owned());
        self
    }

    /// What the group is told of this consumer; `topiclog` by default.
    #[doc(alias = "client.id")]
    pub fn client_id(mut self, name: &str) -> Self {
        self.options.client_id = name.to_owned();
        self
    }

    /// The assignors that this member knows, the best first: `range`, `roundrobin`, `cooperative-sticky`. By default `range`, then
    /// `cooperative-sticky`. With `cooperative-sticky` alone a member keeps what it has while the group joins again.
    #[doc(alias = "partition.assignment.strategy")]
    pub fn assignors<'b>(mut self, names: impl IntoIterator<Item = &'b str>) -> Self {
        self.options.assignors = names.into_iter().map(str::to_owned).collect();
        self
    }

    /// A member that has not polled for so long, or up to a third longer, is taken for dead, and its partitions go to others;
    /// 300,000 ms by default. It is also how long the group waits for a member to join again, and Kafka's session time-out, for a member that shares the
    /// process of its group needs none of its own.
    #[doc(alias = "max.poll.interval.ms")]
    #[doc(alias = "session.timeout.ms")]
    pub fn max_poll_interval_ms(mut self, interval_ms: u64) -> Self {
        self.options.max_poll_interval_ms = interval_ms;
        self
    }

    /// Called within a poll whenever partitions come or go. It may seek, pause, and commit; it must not poll. An error that it
    /// returns is the poll's.
    ///
    /// ```
    /// use std::time::Duration;
    /// use topiclog::client::{Rebalance, Reset};
    /// use topiclog::{Consumer, Store, TopicConfig};
    /// let store = Store::in_memory()?;
    /// store.create_topic("orders", TopicConfig::default().partitions(2))?;
    /// let builder = Consumer::builder(&store).group("billing").topic("orders").reset(Reset::Earliest);
    /// let mut billing = builder
    ///     .on_rebalance(|consumer, what| match what {
    ///         Rebalance::Revoked(_) => consumer.commit(),
    ///         _ => Ok(()),
    ///     })
    ///     .open()?;
    /// billing.poll(Duration::ZERO)?;
    /// assert_eq!(billing.assignment().len(), 2);
    /// # drop(billing);
    /// # store.close()?;
    /// # Ok::<(), topiclog::Error>(())
    /// ```
    pub fn on_rebalance(mut self, call: impl FnMut(&mut Consumer, &Rebalance) -> Result<()> + Send + 'static) -> Self {
        self.on_rebalance = Some(Box::new(call));
        self
    }

    /// Opens the consumer. A member joins its group at the first poll; for given partitions it is looked up here where to begin.
    ///
    /// # Errors
    /// [`Error::UnknownTopic`]; [`Error::Invalid`] if there is nothing to read, a limit is 0, the group has no name, or the
    /// pattern is none; [`Error::Config`] for settings that contradict each other. For given partitions, with
    /// [`Reset::Error`], [`Error::Invalid`] where nothing was committed and [`Error::OffsetOutOfRange`] or
    /// [`Error::PositionLost`] where the log no longer has it; those of reading the offsets.
    pub fn open(self) -> Result<Consumer> {
        let filter = self.filter()?;
        let has_group = self.options.group.is_some();
        if self.commits_with_poll && !has_group {
            return Err(Error::config(
                "group.id",
                "a consumer without a group commits nothing, also not with its polls",
            ));
        }
        let joins = has_group && filter.is_some();
        if !joins && self.on_rebalance.is_some() {
            return Err(Error::config("group.id", "there are no rebalances without a group and topics"));
        }
        let assigned = if joins { Vec::new() } else { self.assigned(filter.as_ref())? };
        let inner = self.at.consume(self.options)?;
        let clock = self.at.clock();
        let mut consumer = Consumer::of(inner, clock, has_group, self.reset, self.commits_with_poll, self.on_rebalance);
        match (filter, self.start) {
            (Some(filter), _) if joins => consumer.inner().subscribe(&filter)?,
            (_, Some(start)) => consumer.inner().assign(&start)?,
            _ => {
                let from = consumer.inner().offsets(&assigned, OffsetSpec::Earliest)?;
                consumer.inner().assign(&from)?;
                if has_group || self.reset == Reset::Latest {
                    consumer.begin_at_committed(&assigned)?;
                } else if self.reset == Reset::Error {
                    let limit = "without a group there is no position to begin at: choose a reset, or start at one";
                    return Err(Error::invalid("consumer", limit));
                }
            }
        }
        Ok(consumer)
    }

    /// The topics, if that is what is read.
    fn filter(&self) -> Result<Option<TopicFilter>> {
        let kinds =
            [!self.topics.is_empty(), self.pattern.is_some(), !self.partitions.is_empty(), self.start.is_some()];
        match kinds.into_iter().filter(|&is_there| is_there).count() {
            0 => return Err(Error::invalid("consumer", "must have a topic or a partition to read")),
            1 => {}
            _ => return Err(Error::config("topics", "give topics, a pattern, partitions or a position: one of them")),
        }
        if let Some(pattern) = &self.pattern {
            return Ok(Some(TopicFilter::Pattern(pattern.clone())));
        }
        let names = self.topics.iter().map(|name| TopicName::new(name)).collect::<Result<Vec<_>>>()?;
        Ok(Some(names).filter(|names| !names.is_empty()).map(TopicFilter::Names))
    }

    /// The partitions of a consumer that no group assigns any.
    fn assigned(&self, filter: Option<&TopicFilter>) -> Result<Vec<TopicPartition>> {
        let mut found = self.partitions.clone();
        match filter {
            Some(TopicFilter::Pattern(_)) => {
                return Err(Error::config("group.id", "a pattern is for members: give a group"));
            }
            Some(TopicFilter::Names(names)) => {
                for name in names {
                    let count = self.at.describe_topic(name)?.partitions;
                    found.extend((0..count).map(|partition| TopicPartition::new(name.clone(), partition)));
                }
            }
            None => {}
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }
}
