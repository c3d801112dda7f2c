//! What a log may hold after a crash, found without any code of the crate: a list of what was appended and what was
//! promised, and a reader of Kafka's batches of its own.

use std::collections::BTreeMap;
use std::sync::LazyLock;

/// One record as it was appended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rec {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
    pub(crate) timestamp: i64,
}

/// What the caller was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Claim {
    /// `OutcomeUnknown`: it may appear.
    Maybe,
    /// Acknowledged: it survives a kill.
    Acked,
    /// Durable: it survives everything.
    Synced,
}

/// One append.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) base: i64,
    pub(crate) records: Vec<Rec>,
    pub(crate) claim: Claim,
}

impl Entry {
    fn next(&self) -> i64 {
        self.base + self.records.len() as i64
    }
}

/// One partition.
#[derive(Clone, Debug, Default)]
pub(crate) struct LogModel {
    pub(crate) entries: Vec<Entry>,
}

impl LogModel {
    pub(crate) fn end(&self) -> i64 {
        self.entries.last().map_or(0, Entry::next)
    }

    /// One past the last record with at least this claim.
    pub(crate) fn end_of(&self, claim: Claim) -> i64 {
        self.entries.iter().filter(|entry| entry.claim >= claim).map(Entry::next).max().unwrap_or(0)
    }

    pub(crate) fn push(&mut self, records: Vec<Rec>, claim: Claim) {
        let base = self.end();
        self.entries.push(Entry { base, records, claim });
        if claim == Claim::Synced {
            self.synced_to(base + 1);
        }
    }

    /// The store says that everything below an offset is durable.
    pub(crate) fn synced_to(&mut self, end: i64) {
        for entry in self.entries.iter_mut().filter(|entry| entry.base < end) {
            entry.claim = Claim::Synced;
        }
    }

    /// Nothing of it is certain any more.
    pub(crate) fn doubt(&mut self) {
        self.entries.iter_mut().for_each(|entry| entry.claim = Claim::Maybe);
    }

    /// All records, by offset.
    pub(crate) fn records(&self) -> impl Iterator<Item = (i64, &Rec)> {
        self.entries.iter().flat_map(|entry| (entry.base..).zip(&entry.records))
    }

    /// A recovered log is a prefix of what was appended, batches are whole, and what was promised is there.
    pub(crate) fn check(&self, found: &[(i64, Rec)], survives: Claim) -> Result<(), String> {
        let mut expected = self.records();
        for (offset, record) in found {
            match expected.next() {
                Some((at, wanted)) if at == *offset && wanted == record => {}
                Some((at, _)) => return Err(format!("offset {offset}: not the record that was appended at {at}")),
                None => return Err(format!("offset {offset}: a record that was never appended, or that failed")),
            }
        }
        let end = found.last().map_or(0, |(offset, _)| offset + 1);
        if end < self.end_of(survives) {
            return Err(format!("ends at {end}, {:?} up to {}", survives, self.end_of(survives)));
        }
        if end > 0 && !self.entries.iter().any(|entry| entry.next() == end) {
            return Err(format!("ends at {end}, inside a batch"));
        }
        Ok(())
    }

    /// The log was recovered up to here: that is durable, the rest is gone.
    pub(crate) fn settle(&mut self, end: i64) {
        self.entries.retain(|entry| entry.next() <= end);
        self.synced_to(end);
    }

    /// The first record with at least this time, and the first with the largest.
    pub(crate) fn by_time(found: &[(i64, Rec)], timestamp: i64) -> Option<i64> {
        found.iter().find(|(_, record)| record.timestamp >= timestamp).map(|(offset, _)| *offset)
    }
}

/// Whether a topic must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Presence {
    Sure,
    /// It was being created, or deleted, when something failed.
    Maybe,
}

/// One topic of one partition.
#[derive(Clone, Debug)]
pub(crate) struct TopicModel {
    pub(crate) presence: Presence,
    pub(crate) log: LogModel,
}

/// All topics.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    pub(crate) topics: BTreeMap<String, TopicModel>,
}

impl Model {
    /// Equal models ask the same of a disk.
    pub(crate) fn fingerprint(&self) -> u64 {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        for (name, topic) in &self.topics {
            (name, topic.presence, topic.log.end()).hash(&mut hasher);
            topic.log.entries.iter().for_each(|entry| (entry.base, entry.claim).hash(&mut hasher));
        }
        hasher.finish()
    }
}

static CRC_TABLE: LazyLock<[u32; 256]> = LazyLock::new(|| {
    let mut table = [0_u32; 256];
    for (index, slot) in table.iter_mut().enumerate() {
        let mut crc = index as u32;
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
        *slot = crc;
    }
    table
});

pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| crc >> 8 ^ CRC_TABLE[(crc as u8 ^ byte) as usize])
}

fn varint(bytes: &mut &[u8]) -> Option<i64> {
    let mut value = 0_u64;
    for shift in (0..70).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value >> 1) as i64 ^ -((value & 1) as i64));
        }
    }
    None
}

fn blob(bytes: &mut &[u8]) -> Option<Vec<u8>> {
    let length = usize::try_from(varint(bytes)?).ok()?;
    let (blob, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(blob.to_vec())
}

/// The records of a whole, good batch at the start of the bytes that begins at this offset, and its length.
fn batch(bytes: &[u8], expected: i64) -> Option<(Vec<(i64, Rec)>, usize)> {
    let i32_at = |at: usize| Some(i32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let i64_at = |at: usize| Some(i64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let length = usize::try_from(i32_at(8)?).ok()? + 12;
    let whole = bytes.get(..length).filter(|whole| whole.len() >= 61)?;
    if i64_at(0)? != expected || whole[16] != 2 || i32_at(17)? as u32 != crc32c(&whole[21..]) {
        return None;
    }
    let base_timestamp = i64_at(27)?;
    let mut body = &whole[61..];
    let mut records = Vec::new();
    for index in 0..i32_at(57)? {
        varint(&mut body)?;
        body = &body[1..];
        let timestamp = base_timestamp + varint(&mut body)?;
        if varint(&mut body)? != i64::from(index) {
            return None;
        }
        let (key, value) = (blob(&mut body)?, blob(&mut body)?);
        varint(&mut body)?;
        records.push((expected + i64::from(index), Rec { key, value, timestamp }));
    }
    Some((records, length))
}

/// The good part of a partition's log files, given by base offset: batch after batch without a gap.
pub(crate) fn good_part(files: &[(i64, Vec<u8>)]) -> Vec<(i64, Rec)> {
    let mut found: Vec<(i64, Rec)> = Vec::new();
    for (base, bytes) in files {
        let mut next = found.last().map_or(0, |(offset, _)| offset + 1);
        if *base != next {
            break;
        }
        let mut at = 0;
        while let Some((records, length)) = batch(&bytes[at..], next) {
            next += records.len() as i64;
            at += length;
            found.extend(records);
        }
        if bytes[at..].iter().any(|byte| *byte != 0) {
            break;
        }
    }
    found
}
