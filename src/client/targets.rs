//! Which partition a record goes to, by what is known of its topic.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::delivery::Part;
use super::{Produce, TopicInfo};
use crate::error::{Error, Result};
use crate::ids::{TopicName, TopicPartition, Uuid};
use crate::record::{AsRecord as _, Record, TimestampType};
use crate::sync::RwLock;
use crate::topic::partitioner::{Sticky, partition_for_key};

/// What is known of a topic.
pub(super) struct Target {
    id: Option<Uuid>,
    partitions: u32,
    /// Whether its records keep the times that they were sent with.
    pub(super) keeps_times: bool,
    sticky: Sticky,
}

impl Target {
    fn of(found: &TopicInfo) -> Self {
        let stamps = found.config.as_ref().is_some_and(|config| config.kind_of_times() == TimestampType::LogAppendTime);
        Self { id: found.id, partitions: found.partitions.max(1), keeps_times: !stamps, sticky: Sticky::new() }
    }
}

/// The topics that were sent to.
#[derive(Default)]
pub(super) struct Targets {
    known: RwLock<BTreeMap<TopicName, Arc<Target>>>,
}

impl Targets {
    pub(super) fn route(
        &self,
        place: &dyn Produce,
        topic: &str,
        record: &Record,
    ) -> Result<(TopicPartition, Arc<Target>)> {
        let known = self.known.read().get_key_value(topic).map(|(name, target)| (name.clone(), Arc::clone(target)));
        let (name, target) = match known {
            Some(known) => known,
            None => self.look_up(place, topic)?,
        };
        let record = record.as_record();
        let partition = match (record.partition, record.partitioning_key()) {
            (Some(partition), _) => partition.get(),
            (None, Some(key)) => partition_for_key(key, target.partitions),
            (None, None) => target.sticky.next(record.value.map_or(0, <[u8]>::len), target.partitions),
        };
        let to = TopicPartition::new(name, partition);
        if partition >= target.partitions {
            // It may be another topic of that name by now.
            self.known.write().remove(topic);
            return Err(Error::UnknownTopic { name: to.to_string() });
        }
        Ok((to, target))
    }

    fn look_up(&self, place: &dyn Produce, topic: &str) -> Result<(TopicName, Arc<Target>)> {
        let name = TopicName::new(topic)?;
        let target = Arc::new(Target::of(&place.describe_topic(&name)?));
        self.known.write().insert(name.clone(), Arc::clone(&target));
        Ok((name, target))
    }

    /// Forgets a topic that is gone, or was made again: another of its name may have other partitions.
    pub(super) fn learn(&self, topic: &TopicName, parts: &[Part]) {
        let Some(id) = self.known.read().get(topic).map(|target| target.id) else { return };
        let is_another = |part: &Part| match &part.outcome {
            Ok(placed) => id.is_some_and(|id| id != placed.topic_id),
            Err(Error::UnknownTopic { .. }) => true,
            Err(_) => false,
        };
        if parts.iter().any(is_another) {
            self.known.write().remove(topic);
        }
    }
}
