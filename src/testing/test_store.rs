//! [`TestStore`]: the event log of a service's own tests.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::client::{
    Capabilities, Connect, Consume, ConsumedRecord, ConsumerOptions, OffsetAndMetadata, Produce, ProducerOptions,
    TopicInfo,
};
use crate::clock::{Clock, ManualClock, Timestamp};
use crate::error::{Error, Result};
use crate::group::Groups;
use crate::ids::{TopicName, TopicPartition};
use crate::io::{CrashProfile, CrashRule, Fault, FaultPlan, FaultVfs, Image, OpKind, SyncFailure, errno};
use crate::partition::{Isolation, ReadLevel, ReadOptions};
use crate::record::StoredRecord;
use crate::store::{Store, StoreBuilder, TickReport, Upkeep};
use crate::sync::RwLock;
use crate::topic::TopicConfig;

/// Where the clock of a new [`TestStore`] stands: 2023-11-14 22:13:20 UTC.
const BEGIN_MS: Timestamp = 1_700_000_000_000;
/// After so many steps that all found something to do, upkeep is taken for endless.
const STEPS_MAX: usize = 100_000;

/// What goes wrong next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Failure {
    /// The next write to a log finds the disk full. The append fails with [`Error::NoSpace`], and the one after it works.
    Append,
    /// The next sync of a log fails. The append fails with [`Error::OutcomeUnknown`], and its partition refuses further ones with
    /// [`Error::Poisoned`] until the store is opened again: [`TestStore::crash`].
    Sync,
}

/// How the machine stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Crash {
    /// The process is killed, as by `kill -9`: everything that was written is still there.
    Kill,
    /// The power goes: what was not synced is gone.
    LoseUnsynced,
    /// The power goes in the midst of a write: of what was not synced a part is there, torn. Where nothing was unsynced it is
    /// [`LoseUnsynced`](Crash::LoseUnsynced).
    TornTail,
}

#[derive(Clone, Debug)]
struct Running {
    vfs: FaultVfs,
    store: Store,
}

/// A store for tests of a service: the real engine on a simulated disk in memory, with a clock that is moved by hand and no
/// threads. Nothing in it depends on time that passes or on chance, so that a test that fails fails again.
///
/// A service is written against [`Connect`] and gets a [`Store`] in production and a `TestStore` in its tests. What a test does
/// besides: let time pass ([`advance`](Self::advance), [`upkeep`](Self::upkeep)), hand records out twice
/// ([`redeliver`](Self::redeliver)), let calls fail ([`fail_next`](Self::fail_next)), pull the plug ([`crash`](Self::crash)), and
/// look at what was published ([`published`](Self::published), [`latest`](Self::latest)).
///
/// ```
/// use std::time::Duration;
/// use topiclog::client::Connect;
/// use topiclog::testing::{Crash, TestStore};
/// use topiclog::{Consumer, Record, Result, TopicConfig, TopicName};
///
/// /// The service: it confirms every order, and commits when it has.
/// fn confirm(at: &dyn Connect, orders: &mut Consumer) -> Result<usize> {
///     let records = orders.poll(Duration::from_secs(1))?;
///     let producer = at.produce(Default::default())?;
///     let to = topiclog::TopicPartition::new(TopicName::new("confirmations")?, 0);
///     for record in records.iter().map(|consumed| consumed.record) {
///         let order = record.value().unwrap_or_default().to_vec();
///         producer.send(&to, vec![Record::of_value(order)], &Default::default())?;
///     }
///     orders.commit()?;
///     Ok(records.len())
/// }
///
/// let at = TestStore::new()?;
/// for topic in ["orders", "confirmations"] {
///     at.create_topic(&TopicName::new(topic)?, &TopicConfig::default())?;
/// }
/// at.store().topic("orders")?.append(Record::of_value("order 7"))?;
/// let mut orders = Consumer::join(&at, "confirmer", ["orders"])?;
/// assert_eq!(confirm(&at, &mut orders)?, 1);
///
/// // Delivery is at least once: the same order again must do no harm.
/// at.redeliver("confirmer", 1)?;
/// assert_eq!(confirm(&at, &mut orders)?, 1);
/// assert_eq!(at.published("confirmations")?.len(), 2, "this service has something to learn");
///
/// // After a power cut it goes on where it was.
/// at.crash(Crash::LoseUnsynced)?;
/// let mut orders = Consumer::join(&at, "confirmer", ["orders"])?;
/// assert_eq!(confirm(&at, &mut orders)?, 0);
/// # Ok::<(), topiclog::Error>(())
/// ```
#[derive(Debug)]
pub struct TestStore {
    clock: Arc<ManualClock>,
    builder: StoreBuilder,
    running: RwLock<Running>,
}

impl TestStore {
    /// An empty store.
    ///
    /// # Errors
    /// None that a caller could provoke.
    pub fn new() -> Result<Self> {
        Self::with(Store::builder())
    }

    /// An empty store with limits of its own. Disk, clock and upkeep of the builder are replaced.
    ///
    /// # Errors
    /// As [`StoreBuilder::open`].
    pub fn with(builder: StoreBuilder) -> Result<Self> {
        let clock = Arc::new(ManualClock::new(BEGIN_MS));
        let running = RwLock::new(start(&builder, &clock, FaultVfs::new())?);
        Ok(Self { clock, builder, running })
    }

    fn running(&self) -> Running {
        self.running.read().clone()
    }

    /// The store that is open now. After a [`crash`](Self::crash) it is another one.
    pub fn store(&self) -> Store {
        self.running().store
    }

    /// The simulated disk that is in use now, for faults that [`fail_next`](Self::fail_next) does not name.
    pub fn disk(&self) -> FaultVfs {
        self.running().vfs
    }

    /// The clock, for jumps of the wall clock alone.
    pub fn manual_clock(&self) -> &Arc<ManualClock> {
        &self.clock
    }

    /// Lets time pass. Nothing is done by that: [`upkeep`](Self::upkeep) and polls find what is due.
    pub fn advance(&self, by: Duration) {
        let mut left_ms = by.as_millis();
        while left_ms > 0 {
            let step_ms = u32::try_from(left_ms).unwrap_or(u32::MAX);
            self.clock.advance_ms(step_ms);
            left_ms -= u128::from(step_ms);
        }
    }

    /// One bounded step of upkeep.
    ///
    /// # Errors
    /// As [`Store::tick`].
    pub fn tick(&self) -> Result<TickReport> {
        self.store().tick()
    }

    /// Upkeep until nothing is left to do at this time: syncs that are due, rolls, retention, compaction, expiry, and time-outs of
    /// members. Returns how many steps found something.
    ///
    /// # Errors
    /// As [`Store::tick`]; [`Error::Timeout`] if it never comes to an end.
    pub fn upkeep(&self) -> Result<usize> {
        let store = self.store();
        Groups::open(&store)?.tick()?;
        for steps in 0..STEPS_MAX {
            if store.tick()?.is_idle() {
                return Ok(steps);
            }
        }
        Err(Error::Timeout { what: format!("until upkeep is idle: {STEPS_MAX} steps found something to do") })
    }

    /// Delivers the last records that a group has committed once more: up to so many of each partition, as after a crash between
    /// the work and its commit. Members of the group lose their partitions, and get them again with their next polls. Returns how
    /// many records come again.
    ///
    /// # Errors
    /// As [`Groups::commit`].
    pub fn redeliver(&self, group: &str, records: usize) -> Result<usize> {
        let store = self.store();
        let groups = Groups::open(&store)?;
        groups.remove_members(group)?;
        let mut back = Vec::new();
        let mut count = 0;
        for (id, committed) in groups.offsets(group)? {
            let topic = match store.topic(id.topic.as_str()) {
                Ok(topic) if committed.topic_id.is_none_or(|of| of == topic.id()) => topic,
                // Of a topic that is gone, or was made again, there is nothing to deliver once more.
                Ok(_) | Err(Error::UnknownTopic { .. }) => continue,
                Err(error) => return Err(error),
            };
            let partition = topic.partition(id.partition)?;
            let options = ReadOptions::new().isolation(Isolation::Committed);
            let mut offsets = Vec::new();
            for record in partition.reader(partition.start(), &options)? {
                let offset = record?.offset();
                if offset.get() >= committed.offset {
                    break;
                }
                offsets.push(offset);
            }
            let again = &offsets[offsets.len().saturating_sub(records)..];
            count += again.len();
            back.extend(again.first().map(|&first| (id, OffsetAndMetadata::new(first))));
        }
        if !back.is_empty() {
            groups.commit(group, &back)?;
        }
        Ok(count)
    }

    /// Lets the next such call fail, once, in whichever log.
    pub fn fail_next(&self, failure: Failure) {
        let plan = match failure {
            Failure::Append => FaultPlan::new(Fault::Error(errno::ENOSPC)).on(OpKind::Write),
            Failure::Sync => FaultPlan::new(Fault::Sync(errno::EIO, SyncFailure::LostAtDrop)).on(OpKind::SyncData),
        };
        self.disk().inject(plan.in_class("log"));
    }

    /// Stops the machine at this moment and opens what is left. Handles of the store before, and what stands on them, fail from
    /// now on.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn crash(&self, crash: Crash) -> Result<()> {
        let mut running = self.running.write();
        let left = match crash {
            Crash::Kill => running.vfs.image(),
            Crash::LoseUnsynced => running.vfs.durable_image(),
            Crash::TornTail => torn(&running.vfs),
        };
        running.vfs.kill();
        *running = start(&self.builder, &self.clock, FaultVfs::from_image(&left))?;
        Ok(())
    }

    /// Closes the store and opens it again, as a service does that is restarted.
    ///
    /// # Errors
    /// As [`Store::close`] and [`Store::open`].
    pub fn reopen(&self) -> Result<()> {
        let mut running = self.running.write();
        running.store.close()?;
        *running = start(&self.builder, &self.clock, running.vfs.clone())?;
        Ok(())
    }

    /// Everything that is in a topic now, durable or not, by partition and offset.
    ///
    /// # Errors
    /// [`Error::UnknownTopic`]; those of a read.
    pub fn published(&self, topic: &str) -> Result<Vec<ConsumedRecord>> {
        let options = ReadOptions::new().level(ReadLevel::Latest).isolation(Isolation::Committed);
        let mut found = Vec::new();
        for partition in self.store().topic(topic)?.partitions() {
            for record in partition.reader(partition.start(), &options)? {
                found.push(ConsumedRecord::new(partition.id().clone(), record?));
            }
        }
        Ok(found)
    }

    /// The newest record of each key of a topic; keys whose newest record is a tombstone are not in it.
    ///
    /// # Errors
    /// As [`published`](Self::published).
    pub fn latest(&self, topic: &str) -> Result<BTreeMap<Bytes, StoredRecord>> {
        let mut found = BTreeMap::new();
        for ConsumedRecord { record, .. } in self.published(topic)? {
            let Some(key) = record.key() else { continue };
            let key = Bytes::copy_from_slice(key);
            match record.value() {
                Some(_) => drop(found.insert(key, record)),
                None => drop(found.remove(&key)),
            }
        }
        Ok(found)
    }
}

fn start(builder: &StoreBuilder, clock: &Arc<ManualClock>, vfs: FaultVfs) -> Result<Running> {
    vfs.set_clock(Arc::clone(clock) as Arc<dyn Clock>);
    let builder = builder.clone().vfs(Arc::new(vfs.clone())).clock(Arc::clone(clock) as Arc<dyn Clock>);
    Ok(Running { store: builder.upkeep(Upkeep::Manual).open("/")?, vfs })
}

/// A disk on which a write was torn, if one could be.
fn torn(vfs: &FaultVfs) -> Image {
    let durable = vfs.durable_image();
    let mut states = vfs.crash_states(&CrashProfile::ordered());
    states.find(|state| state.rule == CrashRule::Torn).map_or(durable, |state| state.image)
}

impl Connect for TestStore {
    fn describe_topic(&self, topic: &TopicName) -> Result<TopicInfo> {
        self.store().describe_topic(topic)
    }

    fn topics(&self) -> Result<Vec<TopicName>> {
        Connect::topics(&self.store())
    }

    fn create_topic(&self, topic: &TopicName, config: &TopicConfig) -> Result<TopicInfo> {
        Connect::create_topic(&self.store(), topic, config)
    }

    fn produce(&self, options: ProducerOptions) -> Result<Arc<dyn Produce>> {
        self.store().produce(options)
    }

    fn consume(&self, options: ConsumerOptions) -> Result<Box<dyn Consume>> {
        self.store().consume(options)
    }

    fn latest(&self, from: &TopicPartition, key: &[u8]) -> Result<Option<StoredRecord>> {
        Connect::latest(&self.store(), from, key)
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::of_store()
    }

    fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.clock) as Arc<dyn Clock>
    }
}
