//! What Kafka keeps beside the log: producer state with its snapshots, open and aborted transactions, leader epochs.
//!
//! Pure: bytes and batches in, state out. Replay follows Kafka's rules for replication: sequences are not judged, and
//! epochs may go backwards.
//!
//! ```text
//! <offset>.snapshot: version int16 = 1 | crc uint32 (CRC-32C of what follows) | count int32 | entries of 46 bytes:
//! producerId int64 | producerEpoch int16 | lastSequence int32 | lastOffset int64 | offsetDelta int32
//! | timestamp int64 | coordinatorEpoch int32 | currentTxnFirstOffset int64        (Kafka: ProducerStateManager)
//! ```

use std::collections::BTreeMap;

use crate::record::{self, BatchHeader, ControlRecord};
use crate::segment::txn_index::AbortedTxn;

/// Kafka's name of the leader epoch file.
pub(crate) const EPOCHS_NAME: &str = "leader-epoch-checkpoint";

const SNAPSHOT_VERSION: i16 = 1;
const SNAPSHOT_HEAD_BYTES: usize = 10;
const SNAPSHOT_ENTRY_BYTES: usize = 46;

/// What is known of one producer id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Producer {
    pub(crate) epoch: i16,
    /// Of its last data batch; -1 if there is none.
    pub(crate) last_sequence: i32,
    pub(crate) last_offset: i64,
    pub(crate) offset_delta: i32,
    pub(crate) timestamp: i64,
    /// Of its last marker; -1 if there is none.
    pub(crate) coordinator_epoch: i32,
    /// First offset of its open transaction; -1 if there is none.
    pub(crate) txn_first_offset: i64,
}

impl Producer {
    fn unknown(epoch: i16) -> Self {
        Self {
            epoch,
            last_sequence: -1,
            last_offset: -1,
            offset_delta: 0,
            timestamp: -1,
            coordinator_epoch: -1,
            txn_first_offset: -1,
        }
    }
}

/// All producers of a partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Producers {
    by_id: BTreeMap<i64, Producer>,
}

impl Producers {
    /// First offset of the oldest open transaction.
    pub(crate) fn first_unstable(&self) -> Option<i64> {
        self.by_id.values().map(|producer| producer.txn_first_offset).filter(|&offset| offset >= 0).min()
    }

    /// Whether a batch belongs to a transaction that is still open.
    pub(crate) fn is_undecided(&self, header: &BatchHeader) -> bool {
        let open = |producer: &Producer| (0..=header.base_offset).contains(&producer.txn_first_offset);
        header.is_transactional() && !header.is_control() && self.by_id.get(&header.producer_id).is_some_and(open)
    }

    /// Takes note of a batch as replication does. The body is needed of control batches only. Returns the aborted
    /// transaction that an abort marker ends.
    pub(crate) fn replay(&mut self, header: &BatchHeader, marker: Option<ControlRecord>) -> Option<AbortedTxn> {
        if header.producer_id < 0 {
            return None;
        }
        let producer = self.by_id.entry(header.producer_id).or_insert_with(|| Producer::unknown(header.producer_epoch));
        if producer.epoch != header.producer_epoch {
            let txn_first_offset = producer.txn_first_offset;
            let coordinator_epoch = producer.coordinator_epoch;
            *producer = Producer { txn_first_offset, coordinator_epoch, ..Producer::unknown(header.producer_epoch) };
        }
        if header.is_control() {
            return self.end_transaction(header, marker);
        }
        producer.last_sequence = header.last_sequence();
        producer.last_offset = header.last_offset();
        producer.offset_delta = header.last_offset_delta;
        producer.timestamp = header.max_timestamp;
        if header.is_transactional() && producer.txn_first_offset < 0 {
            producer.txn_first_offset = header.base_offset;
        }
        None
    }

    fn end_transaction(&mut self, header: &BatchHeader, marker: Option<ControlRecord>) -> Option<AbortedTxn> {
        let (coordinator_epoch, is_abort) = match marker? {
            ControlRecord::Commit { coordinator_epoch } => (coordinator_epoch, false),
            ControlRecord::Abort { coordinator_epoch } => (coordinator_epoch, true),
            _ => return None,
        };
        let producer = self.by_id.get_mut(&header.producer_id)?;
        producer.coordinator_epoch = coordinator_epoch;
        producer.timestamp = header.max_timestamp;
        let first_offset = std::mem::replace(&mut producer.txn_first_offset, -1);
        if first_offset < 0 || !is_abort {
            return None;
        }
        let last_offset = header.last_offset();
        let last_stable_offset = self.first_unstable().unwrap_or(last_offset + 1);
        Some(AbortedTxn { producer_id: header.producer_id, first_offset, last_offset, last_stable_offset })
    }

    /// Whether this is the last batch of its producer: compaction keeps its header, so that what the producer may send next
    /// stays known. Of a producer without data that is the marker of its epoch.
    pub(crate) fn is_last_batch(&self, header: &BatchHeader) -> bool {
        let Some(producer) = self.by_id.get(&header.producer_id) else { return false };
        if producer.last_offset >= 0 {
            producer.last_offset == header.last_offset()
        } else {
            header.is_control() && producer.epoch == header.producer_epoch
        }
    }

    /// The bytes of a snapshot file.
    pub(crate) fn encode_snapshot(&self) -> Vec<u8> {
        let mut entries = Vec::with_capacity(4 + self.by_id.len() * SNAPSHOT_ENTRY_BYTES);
        entries.extend_from_slice(&i32::try_from(self.by_id.len()).unwrap_or(i32::MAX).to_be_bytes());
        for (id, producer) in &self.by_id {
            entries.extend_from_slice(&id.to_be_bytes());
            entries.extend_from_slice(&producer.epoch.to_be_bytes());
            entries.extend_from_slice(&producer.last_sequence.to_be_bytes());
            entries.extend_from_slice(&producer.last_offset.to_be_bytes());
            entries.extend_from_slice(&producer.offset_delta.to_be_bytes());
            entries.extend_from_slice(&producer.timestamp.to_be_bytes());
            entries.extend_from_slice(&producer.coordinator_epoch.to_be_bytes());
            entries.extend_from_slice(&producer.txn_first_offset.to_be_bytes());
        }
        let mut bytes = SNAPSHOT_VERSION.to_be_bytes().to_vec();
        bytes.extend_from_slice(&record::crc32c(&entries).to_be_bytes());
        bytes.extend_from_slice(&entries);
        bytes
    }

    /// Reads a snapshot file. The text says what is wrong with it.
    pub(crate) fn decode_snapshot(bytes: &[u8]) -> Result<Self, &'static str> {
        let (version, rest) = bytes.split_first_chunk::<2>().ok_or("shorter than a snapshot")?;
        let (crc, body) = rest.split_first_chunk::<4>().ok_or("shorter than a snapshot")?;
        if i16::from_be_bytes(*version) != SNAPSHOT_VERSION {
            return Err("a snapshot of another version");
        }
        if u32::from_be_bytes(*crc) != record::crc32c(body) {
            return Err("the CRC of the snapshot does not match");
        }
        let (count, entries) = body.split_first_chunk::<4>().ok_or("shorter than a snapshot")?;
        let count = usize::try_from(i32::from_be_bytes(*count)).map_err(|_| "a negative count")?;
        if entries.len() / SNAPSHOT_ENTRY_BYTES != count || entries.len() % SNAPSHOT_ENTRY_BYTES != 0 {
            return Err("the count does not match the length");
        }
        let mut by_id = BTreeMap::new();
        for entry in entries.chunks_exact(SNAPSHOT_ENTRY_BYTES) {
            let (id, producer) = decode_entry(entry).ok_or("an entry ends early")?;
            by_id.insert(id, producer);
        }
        Ok(Self { by_id })
    }

    /// Bytes of a snapshot without producers.
    pub(crate) const EMPTY_SNAPSHOT_BYTES: usize = SNAPSHOT_HEAD_BYTES;
}

fn decode_entry(entry: &[u8]) -> Option<(i64, Producer)> {
    let i16_at = |at: usize| Some(i16::from_be_bytes(entry.get(at..at + 2)?.try_into().ok()?));
    let i32_at = |at: usize| Some(i32::from_be_bytes(entry.get(at..at + 4)?.try_into().ok()?));
    let i64_at = |at: usize| Some(i64::from_be_bytes(entry.get(at..at + 8)?.try_into().ok()?));
    let producer = Producer {
        epoch: i16_at(8)?,
        last_sequence: i32_at(10)?,
        last_offset: i64_at(14)?,
        offset_delta: i32_at(22)?,
        timestamp: i64_at(26)?,
        coordinator_epoch: i32_at(34)?,
        txn_first_offset: i64_at(38)?,
    };
    Some((i64_at(0)?, producer))
}

/// Kafka's `leader-epoch-checkpoint`: version, count, then `epoch startOffset` a line.
pub(crate) fn encode_epochs(epochs: &[(i32, i64)]) -> String {
    let mut text = format!("0\n{}\n", epochs.len());
    for (epoch, start) in epochs {
        text.push_str(&format!("{epoch} {start}\n"));
    }
    text
}

/// Reads it back. An empty file has no entries.
pub(crate) fn decode_epochs(text: &str) -> Result<Vec<(i32, i64)>, String> {
    let mut lines = text.lines();
    match lines.next() {
        None => return Ok(Vec::new()),
        Some(version) if version.trim() == "0" => {}
        Some(version) => return Err(format!("version {version:?}")),
    }
    let Some(count) = lines.next() else { return Ok(Vec::new()) };
    let count: usize = count.trim().parse().map_err(|_| format!("count {count:?}"))?;
    let mut epochs: Vec<(i32, i64)> = Vec::new();
    for line in lines {
        let mut words = line.split_whitespace();
        let entry = match (words.next().map(str::parse), words.next().map(str::parse), words.next()) {
            (Some(Ok(epoch)), Some(Ok(start)), None) => (epoch, start),
            _ => return Err(format!("line {line:?}")),
        };
        if epochs.last().is_some_and(|last| entry.0 <= last.0 || entry.1 < last.1) {
            return Err("the epochs do not rise".into());
        }
        epochs.push(entry);
    }
    if epochs.len() == count { Ok(epochs) } else { Err(format!("{count} entries announced, {} found", epochs.len())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn check_snapshot(producer: Producer, expected: &str) {
        let producers = Producers { by_id: BTreeMap::from([(4242, producer)]) };
        let bytes = producers.encode_snapshot();
        assert_eq!(hex(&bytes), expected);
        assert_eq!(Producers::decode_snapshot(&bytes), Ok(producers));
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert!(Producers::decode_snapshot(&bad).is_err(), "byte {at}");
            assert!(Producers::decode_snapshot(&bytes[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn snapshots_are_kafkas() {
        let open = Producer {
            epoch: 3,
            last_sequence: 12,
            last_offset: 202,
            offset_delta: 2,
            timestamp: 1_700_000_000_102,
            coordinator_epoch: -1,
            txn_first_offset: 200,
        };
        check_snapshot(
            open,
            "00010d455cde00000001000000000000109200030000000c00000000000000ca000000020000018bcfe56866ffffffff00000000000000c8",
        );
        let committed = Producer { timestamp: 1_700_000_000_200, coordinator_epoch: 5, txn_first_offset: -1, ..open };
        check_snapshot(
            committed,
            "00014137715800000001000000000000109200030000000c00000000000000ca000000020000018bcfe568c800000005ffffffffffffffff",
        );
        assert_eq!(hex(&Producers::default().encode_snapshot()), "000148674bc700000000");
        assert_eq!(Producers::default().encode_snapshot().len(), Producers::EMPTY_SNAPSHOT_BYTES);
    }

    #[test]
    fn epoch_files_are_kafkas() {
        let epochs = vec![(0, 0), (2, 100), (5, 1024)];
        assert_eq!(hex(encode_epochs(&epochs).as_bytes()), "300a330a3020300a32203130300a3520313032340a");
        assert_eq!(decode_epochs(&encode_epochs(&epochs)), Ok(epochs));
        assert_eq!(decode_epochs(""), Ok(vec![]));
        for bad in ["1\n0\n", "0\n2\n0 0\n", "0\n1\n0\n", "0\n2\n3 0\n2 5\n", "0\nx\n"] {
            assert!(decode_epochs(bad).is_err(), "{bad:?}");
        }
    }

    fn header(producer_id: i64, base_offset: i64, bits: u16) -> BatchHeader {
        BatchHeader {
            base_offset,
            batch_length: 100,
            leader_epoch: 0,
            magic: 2,
            crc: 0,
            attributes: bits,
            last_offset_delta: 1,
            base_timestamp: 5,
            max_timestamp: 6,
            producer_id,
            producer_epoch: 0,
            base_sequence: 0,
            records_count: 2,
        }
    }

    const TRANSACTIONAL: u16 = 0x10;
    const CONTROL: u16 = 0x30;

    #[test]
    fn the_oldest_open_transaction_holds_readers_back() {
        let mut producers = Producers::default();
        assert_eq!(producers.replay(&header(-1, 0, 0), None), None);
        assert_eq!((producers.first_unstable(), producers.by_id.len()), (None, 0), "no producer, nothing to know");
        producers.replay(&header(1, 10, TRANSACTIONAL), None);
        producers.replay(&header(2, 12, TRANSACTIONAL), None);
        producers.replay(&header(1, 14, TRANSACTIONAL), None);
        producers.replay(&header(3, 16, 0), None);
        assert_eq!(producers.first_unstable(), Some(10));
        let commit = Some(ControlRecord::Commit { coordinator_epoch: 4 });
        assert_eq!(producers.replay(&header(1, 18, CONTROL), commit), None, "a commit aborts nothing");
        assert_eq!(producers.first_unstable(), Some(12));
        let abort = Some(ControlRecord::Abort { coordinator_epoch: 4 });
        let aborted = producers.replay(&header(2, 20, CONTROL), abort).unwrap();
        assert_eq!((aborted.producer_id, aborted.first_offset, aborted.last_offset), (2, 12, 21));
        assert_eq!((aborted.last_stable_offset, producers.first_unstable()), (22, None));
        assert_eq!(producers.replay(&header(2, 22, CONTROL), abort), None, "nothing was open");
    }

    #[test]
    fn a_new_epoch_of_a_producer_forgets_its_sequence_and_not_its_transaction() {
        let mut producers = Producers::default();
        producers.replay(&header(1, 10, TRANSACTIONAL), None);
        let fenced = BatchHeader { producer_epoch: 3, base_sequence: 7, ..header(1, 12, TRANSACTIONAL) };
        producers.replay(&fenced, None);
        let producer = producers.by_id[&1];
        assert_eq!((producer.epoch, producer.last_sequence, producer.txn_first_offset), (3, 8, 10));
        assert_eq!((producer.last_offset, producer.offset_delta, producer.timestamp), (13, 1, 6));
    }
}
