//! Ends keys that have expired with tombstones, some at a time.
//!
//! The keys of one step are ended by one batch, and so by one sync. A tombstone is appended only if the record is still the newest
//! of its key: keys are asked for at a log end, and the batch goes there or nowhere.

use super::{KeyIndex, LIMITS, Latest, STEP, expiry};
use crate::error::{Error, Result};
use crate::partition::{ReadLevel, ReadOptions, Reader, key_queue};
use crate::record::RecordRef;

/// Bytes of records that one step looks at; the last of them may be more.
const STEP_BYTES: usize = 8 << 20;
/// Bytes of tombstones in one batch, as a rule.
const BATCH_BYTES: usize = 256 << 10;
/// What a tombstone takes beside its key, at most.
const TOMBSTONE_BYTES: usize = 40;

/// What is known of when keys expire.
#[derive(Debug)]
pub(super) struct Expiry {
    /// Records below this offset were looked at.
    seen: i64,
    /// Nothing that was looked at expires before this.
    next_ms: i64,
    /// The newest records that are still to be looked at, in a pass over all of them.
    pass: Option<Latest>,
    /// The setting that all of this was found under.
    expire_after_ms: i64,
}

impl Default for Expiry {
    fn default() -> Self {
        Self { seen: 0, next_ms: i64::MIN, pass: None, expire_after_ms: -1 }
    }
}

impl KeyIndex {
    /// Ends keys that have expired with a tombstone, some at a time. Returns how many, and how many records it looked at.
    pub(crate) fn expire(&self, expire_after_ms: i64, now_ms: i64) -> Result<(usize, usize)> {
        let Some(mut expiry) = self.expiry.try_lock() else { return Ok((0, 0)) };
        if expire_after_ms < 0 || self.log.env.read_only || self.log.is_closed() {
            // It would keep the files of segments that are gone. What it had not come to is looked at by the next one.
            if expiry.pass.take().is_some() {
                expiry.next_ms = i64::MIN;
            }
            return Ok((0, 0));
        }
        if expiry.expire_after_ms != expire_after_ms {
            *expiry = Expiry { expire_after_ms, ..Expiry::default() };
        }
        let mut looked_at = 0;
        if expiry.pass.is_none() {
            looked_at = self.look_at_new(&mut expiry, expire_after_ms, now_ms)?;
            if now_ms < expiry.next_ms {
                return Ok((0, looked_at));
            }
            // Upkeep makes it in steps; what has expired is not found meanwhile either.
            if self.is_unmade() {
                return Ok((0, looked_at));
            }
            let mut pass = self.latest()?;
            pass.with_expired = true;
            (expiry.seen, expiry.next_ms, expiry.pass) = (pass.position, i64::MAX, Some(pass));
        }
        let (mut expired, mut bytes) = (Vec::new(), 0);
        for _ in 0..STEP {
            let record = match expiry.pass.as_mut().and_then(Latest::next) {
                Some(Ok(record)) => record,
                // The next step begins anew: a pass that failed would go on failing, and hold its segments.
                Some(Err(error)) => {
                    (expiry.pass, expiry.next_ms) = (None, i64::MIN);
                    return Err(error);
                }
                None => {
                    expiry.pass = None;
                    break;
                }
            };
            looked_at += 1;
            bytes += record.key().map_or(0, <[u8]>::len) + record.value().map_or(0, <[u8]>::len);
            match (expiry::expires_at(&record, expire_after_ms), record.key()) {
                (Some(at), Some(key)) if at <= now_ms => expired.push((record.offset().get(), key.to_vec())),
                (Some(at), _) => expiry.next_ms = expiry.next_ms.min(at),
                (None, _) => {}
            }
            if bytes >= STEP_BYTES {
                break;
            }
        }
        let ended = self.end_keys(&expired);
        // Something was appended meanwhile, or could not be: the next pass looks again.
        if !matches!(ended, Ok((_, true))) {
            expiry.next_ms = i64::MIN;
        }
        Ok((ended?.0, looked_at))
    }

    /// Looks at some of what is new in the log: when does the first of it expire?
    fn look_at_new(&self, expiry: &mut Expiry, expire_after_ms: i64, now_ms: i64) -> Result<usize> {
        if now_ms >= expiry.next_ms {
            return Ok(0);
        }
        let from = expiry.seen.max(self.log.log_start());
        let options = ReadOptions::new().level(ReadLevel::Latest).limits(LIMITS);
        let mut looked_at = 0;
        for record in Reader::begin(&self.log, from, options).take(STEP) {
            let record = record?;
            looked_at += 1;
            expiry.seen = record.offset().get() + 1;
            if let Some(at) = expiry::expires_at(&record, expire_after_ms) {
                expiry.next_ms = expiry.next_ms.min(at);
            }
        }
        Ok(looked_at)
    }

    /// Appends tombstones for keys that had their newest records at these offsets, but for those that have newer ones, or get
    /// one right now: then that one wins. Returns how many, and whether none is left for which that could not be told.
    fn end_keys(&self, expired: &[(i64, Vec<u8>)]) -> Result<(usize, bool)> {
        let batch_bytes_max = usize::try_from(self.log.settings().batch_bytes_max).unwrap_or(usize::MAX);
        let bytes_max = (batch_bytes_max / 2).min(BATCH_BYTES);
        let (mut rest, mut most) = (expired, STEP);
        let (mut ended, mut is_whole) = (0, true);
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = rest.iter().take(most).take_while(|(_, key)| {
                bytes += key.len() + TOMBSTONE_BYTES;
                bytes <= bytes_max
            });
            let count = fits.count().max(1);
            let (now, later) = rest.split_at(count);
            match self.end_at_once(now)? {
                Some(tombstones) => (rest, ended) = (later, ended + tombstones),
                // Appends are ahead of it: fewer keys take less time to ask for.
                None if count > 1 => most = count / 2,
                None => (rest, is_whole) = (later, false),
            }
        }
        Ok((ended, is_whole))
    }

    /// One batch of tombstones for those of the keys that have no newer record; `None`, and nothing is appended, if something
    /// else was meanwhile.
    fn end_at_once(&self, expired: &[(i64, Vec<u8>)]) -> Result<Option<usize>> {
        let end = self.log.end_offset();
        let newest: Vec<_> = {
            let mut state = self.state.lock();
            let ready = self.ready(&mut state)?;
            let newest = |(_, key): &(i64, Vec<u8>)| ready.table.places_of(key_queue::hash(&ready.secret, key));
            expired.iter().map(newest).collect()
        };
        let set = self.log.snapshot();
        let mut tombstones = Vec::with_capacity(expired.len());
        for ((offset, key), newest) in expired.iter().zip(newest) {
            let mut is_superseded = false;
            for place in newest.into_iter().take_while(|place| place.offset > *offset) {
                let newer = self.log.record_near(&set, place.offset, None, (self.log.env.verify, &LIMITS))?;
                is_superseded |= newer.is_some_and(|newer| newer.record.key() == Some(key));
            }
            if !is_superseded {
                tombstones.push(RecordRef::new(Some(key), None));
            }
        }
        if tombstones.is_empty() {
            return Ok(Some(0));
        }
        match self.log.append_at(end, &tombstones) {
            Ok(_) => Ok(Some(tombstones.len())),
            Err(Error::Invalid { .. }) if self.log.end_offset() != end => Ok(None),
            Err(error) => Err(error),
        }
    }
}
