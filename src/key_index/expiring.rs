//! Ends keys that have expired with tombstones, some at a time.

use super::{KeyIndex, LIMITS, Latest, STEP, expiry};
use crate::error::{Error, Result};
use crate::partition::{ReadLevel, ReadOptions, Reader, key_queue};
use crate::record::{RecordRef, StoredRecord};

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
        if expire_after_ms < 0 || self.log.env.read_only || self.log.is_closed() {
            return Ok((0, 0));
        }
        let Some(mut expiry) = self.expiry.try_lock() else { return Ok((0, 0)) };
        if expiry.expire_after_ms != expire_after_ms {
            *expiry = Expiry { expire_after_ms, ..Expiry::default() };
        }
        let (mut ended, mut looked_at) = (0, 0);
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
            match expiry::expires_at(&record, expire_after_ms) {
                Some(at) if at <= now_ms => {
                    if self.end_key(&record)? {
                        ended += 1;
                    } else {
                        // Something was appended meanwhile: the next pass looks again.
                        expiry.next_ms = i64::MIN;
                    }
                }
                Some(at) => expiry.next_ms = expiry.next_ms.min(at),
                None => {}
            }
        }
        Ok((ended, looked_at))
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

    /// Appends a tombstone for a key, unless the key has a newer record or gets one right now: then that one wins.
    fn end_key(&self, record: &StoredRecord) -> Result<bool> {
        let Some(key) = record.key() else { return Ok(true) };
        let end = self.log.end_offset();
        let newest = {
            let mut state = self.state.lock();
            let ready = self.ready(&mut state)?;
            let hash = key_queue::hash(&ready.secret, key);
            ready.table.places_of(hash)
        };
        let set = self.log.snapshot();
        for place in newest.into_iter().take_while(|place| place.offset > record.offset().get()) {
            let newer = self.log.record_near(&set, place.offset, None, (self.log.env.verify, &LIMITS))?;
            if newer.is_some_and(|newer| newer.record.key() == Some(key)) {
                return Ok(true);
            }
        }
        match self.log.append_at(end, &RecordRef::new(Some(key), None)) {
            Ok(_) => Ok(true),
            Err(Error::Invalid { .. }) if self.log.end_offset() != end => Ok(false),
            Err(error) => Err(error),
        }
    }
}
