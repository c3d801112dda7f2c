//! The seam of [`client`](crate::client) on an open store.
//!
//! It knows groups, topics and partitions. It does not know files, nor how a commit is stored.

mod consumer;
mod member;
mod producer;
mod slot;

use std::sync::Arc;

use crate::client::{Capabilities, Connect, Consume, ConsumerOptions, Produce, ProducerOptions, TopicInfo};
use crate::clock::Clock;
use crate::error::Result;
use crate::ids::{TopicName, TopicPartition};
use crate::record::StoredRecord;
use crate::store::Store;
use crate::topic::{Topic, TopicConfig};

use consumer::LocalConsumer;
use producer::LocalProducer;

fn info(topic: &Topic) -> TopicInfo {
    TopicInfo::new(Some(topic.id()), topic.partition_count(), Some(topic.config()))
}

impl Connect for Store {
    fn describe_topic(&self, topic: &TopicName) -> Result<TopicInfo> {
        self.topic(topic.as_str()).map(|topic| info(&topic))
    }

    fn topics(&self) -> Result<Vec<TopicName>> {
        self.check_open()?;
        Ok(Store::topics(self))
    }

    fn create_topic(&self, topic: &TopicName, config: &TopicConfig) -> Result<TopicInfo> {
        Store::create_topic(self, topic.as_str(), config.clone()).map(|topic| info(&topic))
    }

    fn produce(&self, options: ProducerOptions) -> Result<Arc<dyn Produce>> {
        self.check_open()?;
        Ok(Arc::new(LocalProducer::open(self, &options)?))
    }

    fn consume(&self, options: ConsumerOptions) -> Result<Box<dyn Consume>> {
        Ok(Box::new(LocalConsumer::open(self, options)?))
    }

    fn latest(&self, from: &TopicPartition, key: &[u8]) -> Result<Option<StoredRecord>> {
        self.topic(from.topic.as_str())?.get_in(from.partition, key)
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::of_store()
    }

    fn clock(&self) -> Arc<dyn Clock> {
        Store::clock(self)
    }
}
