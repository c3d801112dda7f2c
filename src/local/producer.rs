//! The producing side of a store.

use std::time::Duration;

use crate::client::{
    Connect as _, GroupMetadata, Offsets, Produce, ProducerOptions, SendOptions, TopicInfo, TransactionResult,
};
use crate::error::{Error, Result};
use crate::ids::{TopicName, TopicPartition};
use crate::partition::append_options::AppendOptions;
use crate::partition::writer::RecordMetadata;
use crate::record::Record;
use crate::store::Store;

/// Appends to the partitions of a store. A send returns once its records are as durable as was asked, so that nothing is left
/// to flush.
#[derive(Debug)]
pub(crate) struct LocalProducer {
    store: Store,
}

fn no_transactions(what: &str) -> Error {
    Error::unsupported(format!("{what}: a store has no transactions of producers yet"))
}

impl LocalProducer {
    pub(crate) fn open(store: &Store, options: &ProducerOptions) -> Result<Self> {
        match &options.transactional_id {
            Some(id) => Err(no_transactions(&format!("the transactional id {id:?}"))),
            None => Ok(Self { store: store.clone() }),
        }
    }
}

impl Produce for LocalProducer {
    fn describe_topic(&self, topic: &TopicName) -> Result<TopicInfo> {
        self.store.describe_topic(topic)
    }

    fn send(&self, to: &TopicPartition, records: Vec<Record>, options: &SendOptions) -> Result<RecordMetadata> {
        let partition = self.store.topic(to.topic.as_str())?.partition(to.partition)?;
        let mut append = AppendOptions::default();
        if let Some(durability) = options.durability {
            append = append.durability(durability);
        }
        if let Some(compression) = options.compression {
            append = append.compression(compression);
        }
        if let Some(offset) = options.expected_offset {
            append = append.expected_offset(offset);
        }
        partition.append_batch_with(&records, &append)
    }

    fn flush(&self, _timeout: Duration) -> Result<()> {
        Ok(())
    }

    fn begin_transaction(&self) -> Result<()> {
        Err(no_transactions("to begin a transaction"))
    }

    fn send_offsets(&self, _offsets: &Offsets, _group: &GroupMetadata) -> Result<()> {
        Err(no_transactions("offsets in a transaction"))
    }

    fn end_transaction(&self, _result: TransactionResult) -> Result<()> {
        Err(no_transactions("to end a transaction"))
    }
}
