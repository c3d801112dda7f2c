//! Compares batches with their CRCs while their bytes pass by, in the memory of one header.

use crate::record::{BATCH_HEADER_BYTES, BatchError, BatchHeader, CRC_FROM, Crc32c};

/// What is wrong with the bytes of a log, and where the batch begins that they belong to.
#[derive(Debug)]
pub(super) struct Damage {
    pub(super) position: u64,
    pub(super) what: String,
    /// It is no damage: an entry that this version cannot read.
    pub(super) is_unsupported: bool,
}

/// See the module.
pub(super) struct BatchChecker {
    /// Where the batch begins whose bytes come next.
    position: u64,
    /// Where the log ends.
    end: u64,
    /// Its first bytes, until they are a whole header.
    head: Vec<u8>,
    /// Its header, what its bytes add up to so far, and how many are to come.
    begun: Option<(BatchHeader, Crc32c, usize)>,
}

impl BatchChecker {
    /// For a log of this many bytes.
    pub(super) fn new(end: u64) -> Self {
        Self { position: 0, end, head: Vec::with_capacity(BATCH_HEADER_BYTES), begun: None }
    }

    /// Checks the batches that end in these bytes.
    pub(super) fn update(&mut self, mut bytes: &[u8]) -> Result<(), Damage> {
        while !bytes.is_empty() {
            bytes = match self.begun.take() {
                Some(begun) => self.go_on(begun, bytes)?,
                None => self.begin(bytes)?,
            };
        }
        Ok(())
    }

    fn begin<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], Damage> {
        let missing = BATCH_HEADER_BYTES.saturating_sub(self.head.len()).min(bytes.len());
        let (head, rest) = bytes.split_at_checked(missing).unwrap_or((bytes, &[]));
        self.head.extend_from_slice(head);
        let header = match BatchHeader::decode(&self.head) {
            Ok(header) => header,
            Err(BatchError::Truncated { .. }) if self.head.len() < BATCH_HEADER_BYTES => return Ok(rest),
            Err(error) => return Err(self.damage(error.to_string(), error.is_unsupported())),
        };
        // A length is not covered by the CRC: a wrong one is not to make the whole log wait for a batch that never ends.
        let size = header.size_bytes();
        if size as u64 > self.end.saturating_sub(self.position) {
            return Err(self.damage("the log ends inside a batch".into(), false));
        }
        let mut crc = Crc32c::new();
        crc.update(self.head.get(CRC_FROM..).unwrap_or_default());
        self.begun = Some((header, crc, size.saturating_sub(BATCH_HEADER_BYTES)));
        if size == BATCH_HEADER_BYTES {
            self.end_batch()?;
        }
        Ok(rest)
    }

    fn go_on<'a>(&mut self, begun: (BatchHeader, Crc32c, usize), bytes: &'a [u8]) -> Result<&'a [u8], Damage> {
        let (header, mut crc, missing) = begun;
        let (body, rest) = bytes.split_at_checked(missing).unwrap_or((bytes, &[]));
        crc.update(body);
        self.begun = Some((header, crc, missing - body.len()));
        if missing == body.len() {
            self.end_batch()?;
        }
        Ok(rest)
    }

    fn end_batch(&mut self) -> Result<(), Damage> {
        let Some((header, crc, _)) = self.begun.take() else { return Ok(()) };
        let computed = crc.finish();
        if computed != header.crc {
            let error = BatchError::Crc { stored: header.crc, computed };
            return Err(self.damage(error.to_string(), false));
        }
        self.position += header.size_bytes() as u64;
        self.head.clear();
        Ok(())
    }

    /// At the end of the log: whether the last batch ends there too.
    pub(super) fn finish(self) -> Result<(), Damage> {
        let is_whole = self.head.is_empty();
        if is_whole { Ok(()) } else { Err(self.damage("the log ends inside a batch".into(), false)) }
    }

    fn damage(&self, what: String, is_unsupported: bool) -> Damage {
        Damage { position: self.position, what, is_unsupported }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::record::{BatchBuilder, BatchSpec, RecordRef};

    fn batch(base_offset: i64, value: &[u8]) -> Vec<u8> {
        let mut builder = BatchBuilder::new(BatchSpec::new(base_offset));
        builder.push(RecordRef::new(None, Some(value))).unwrap();
        builder.finish().unwrap().to_vec()
    }

    /// Three batches, the second of which is changed; where the damage is seen, whatever pieces the bytes come in.
    fn check(change: impl Fn(&mut Vec<u8>), expected: Option<usize>) {
        let (first, mut second, third) = (batch(0, b"one"), batch(1, &[7; 300]), batch(2, b"three"));
        change(&mut second);
        let log = [&first[..], &second, &third].concat();
        for piece in [1, 7, 60, 61, 62, 100, log.len()] {
            let mut checker = BatchChecker::new(log.len() as u64);
            let seen = log.chunks(piece).try_for_each(|bytes| checker.update(bytes));
            let seen = seen.and_then(|()| checker.finish()).err().map(|damage| damage.position);
            assert_eq!(seen, expected.map(|behind| (first.len() + behind) as u64), "in pieces of {piece}");
        }
    }

    #[test]
    fn a_batch_is_checked_in_whatever_pieces_it_comes() {
        let size = batch(1, &[7; 300]).len();
        check(|_| {}, None);
        check(|second| second[200] ^= 1, Some(0));
        check(|second| second[20] ^= 1, Some(0));
        check(|second| second[size - 1] ^= 1, Some(0));
        check(|second| second[16] = 9, Some(0));
    }

    #[test]
    fn a_batch_that_says_it_is_longer_than_the_log_is_not_waited_for() {
        check(|second| second[8] = 0x40, Some(0));
        let mut long = batch(0, b"one");
        long[8] = 0x40;
        let mut checker = BatchChecker::new(1 << 20);
        let damage = checker.update(&long).unwrap_err();
        assert_eq!((damage.position, damage.what.as_str()), (0, "the log ends inside a batch"));
    }

    #[test]
    fn a_log_that_ends_in_a_batch_is_damaged() {
        let log = batch(0, b"one");
        for kept in [1, 17, 61, log.len() - 1] {
            let mut checker = BatchChecker::new(kept as u64);
            let seen = checker.update(&log[..kept]).and_then(|()| checker.finish());
            assert!(seen.is_err(), "{kept}");
        }
    }
}
