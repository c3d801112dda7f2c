//! Reads a partition of `__consumer_offsets` into a [`GroupTable`].

use super::offsets::GroupTable;
use super::wire::SchemaError;
use crate::error::{Error, Result};
use crate::partition::{Batch, Partition, ReadLevel, ReadOptions};
use crate::record::ControlRecord;

/// Folds everything from the log start to the log end.
///
/// # Errors
/// [`Error::Unsupported`] if a newer version wrote one of the records, [`Error::Corrupt`] if one is not what the schema says;
/// those of a read.
pub(crate) fn load(partition: &Partition) -> Result<GroupTable> {
    let mut table = GroupTable::default();
    let options = ReadOptions::new().level(ReadLevel::Latest).with_control();
    let mut reader = partition.reader(partition.start(), &options)?;
    while let Some(batch) = reader.next_batch()? {
        fold_batch(&mut table, partition, &batch)?;
    }
    table.settle_below(partition.last_stable_offset().get());
    Ok(table)
}

fn fold_batch(table: &mut GroupTable, partition: &Partition, batch: &Batch) -> Result<()> {
    let header = batch.header();
    let producer = (header.is_transactional() && header.producer_id >= 0).then_some(header.producer_id);
    for record in batch.records() {
        let record = record.map_err(|error| damaged(partition, header.base_offset, error.to_string()))?;
        if header.is_control() {
            // What else a control batch may hold ends no transaction.
            match ControlRecord::parse(&record) {
                Ok(ControlRecord::Commit { .. }) => table.end_transaction(header.producer_id, true),
                Ok(ControlRecord::Abort { .. }) => table.end_transaction(header.producer_id, false),
                _ => {}
            }
            break;
        }
        let offset = record.offset();
        let Some(key) = record.key() else {
            return Err(damaged(partition, offset, "a record of __consumer_offsets has no key".into()));
        };
        table.apply(offset, producer, key, record.value()).map_err(|error| match error {
            SchemaError::Version { .. } => Error::unsupported(format!(
                "{error} in {} at offset {offset}; a newer Kafka, or a newer topiclog, wrote it",
                partition.id()
            )),
            SchemaError::Malformed(_) => damaged(partition, offset, error.to_string()),
        })?;
    }
    Ok(())
}

fn damaged(partition: &Partition, offset: i64, what: String) -> Error {
    Error::Corrupt {
        path: partition.log.directory.clone(),
        position: 0,
        offsets: Some((offset.into(), offset.saturating_add(1).into())),
        what,
    }
}
