//! Ends keys that have expired with tombstones, some at a time.
//!
//! The keys of one step are ended by one batch, and so by one sync. A tombstone is appended only if the record is still the newest
//! of its key: keys are asked for at a log end, and the batch goes there or nowhere.

use super::{KeyIndex, LIMITS, Latest, Looked, STEP, expiry};
use crate::error::{Error, Result};
use crate::partition::{ReadLevel, ReadOptions, Reader, key_queue};
use crate::record::RecordRef;

/// What failed is tried again after so long.
const AGAIN_AFTER_MS: i64 = 10_000;
/// Where more keys than one step looks at are there, a pass begins no sooner after the last one than this part of the time for
/// which keys live, and never waits longer than this: a tombstone comes so much later, and what has expired is not found meanwhile.
const PASS_PART: i64 = 100;
const PASS_WAIT_MAX_MS: i64 = 60_000;
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
    /// When the last pass began, and over how many keys.
    pass_begun_ms: i64,
    pass_keys: usize,
    /// The setting that all of this was found under.
    expire_after_ms: i64,
    /// Something failed in this pass, and was told of since the last pass in which nothing did.
    pass_failed: bool,
    is_told: bool,
}

/// What became of keys that were to be ended.
#[derive(Debug)]
struct Ended {
    tombstones: usize,
    /// Of each it could be told whether it has a newer record.
    is_whole: bool,
    failed: Option<Error>,
}

impl Default for Expiry {
    fn default() -> Self {
        Self {
            seen: 0,
            next_ms: i64::MIN,
            pass: None,
            pass_begun_ms: i64::MIN,
            pass_keys: 0,
            expire_after_ms: -1,
            pass_failed: false,
            is_told: false,
        }
    }
}

impl Expiry {
    /// Whether a pass over all keys may begin: among many keys there is always one that has just expired.
    fn may_begin(&self, now_ms: i64) -> bool {
        let wait = (self.expire_after_ms / PASS_PART).min(PASS_WAIT_MAX_MS);
        let is_soon = (self.pass_begun_ms..self.pass_begun_ms.saturating_add(wait)).contains(&now_ms);
        self.pass_keys <= STEP || !is_soon
    }
}

impl KeyIndex {
    /// Ends keys that have expired with a tombstone, some at a time. What cannot be read is passed by. A failure that comes again
    /// and again is told once, until a pass over all keys meets none.
    pub(crate) fn expire(&self, expire_after_ms: i64, now_ms: i64) -> Looked {
        let Some(mut expiry) = self.expiry.try_lock() else { return Looked::default() };
        let expiry = &mut *expiry;
        if expire_after_ms < 0 || self.log.env.read_only || self.log.is_closed() || self.log.poison_error().is_some() {
            // It would keep the files of segments that are gone. What it had not come to is looked at by the next one.
            if expiry.pass.take().is_some() {
                expiry.next_ms = i64::MIN;
            }
            return Looked::default();
        }
        if expiry.expire_after_ms != expire_after_ms {
            *expiry = Expiry { expire_after_ms, ..Expiry::default() };
        }
        let mut looked = Looked::default();
        match self.begin_pass(expiry, now_ms, &mut looked) {
            Ok(true) => self.go_on_with_pass(expiry, now_ms, &mut looked),
            Ok(false) => {}
            Err(error) => looked.failed = Some(error),
        }
        if looked.failed.is_some() {
            expiry.pass_failed = true;
            expiry.next_ms = expiry.next_ms.min(now_ms.saturating_add(AGAIN_AFTER_MS));
            // Of an append that may have been made everybody hears.
            let is_certain = !matches!(looked.failed, Some(Error::OutcomeUnknown { .. }));
            if std::mem::replace(&mut expiry.is_told, true) && is_certain {
                looked.failed = None;
            }
        }
        if expiry.pass.is_none() && looked.at > 0 && !expiry.pass_failed {
            expiry.is_told = false;
        }
        looked
    }

    /// Whether there is a pass to go on with; one is begun if it is time.
    fn begin_pass(&self, expiry: &mut Expiry, now_ms: i64, looked: &mut Looked) -> Result<bool> {
        if expiry.pass.is_some() {
            let is_caught_up = self.is_caught_up();
            let keeps_files = expiry.pass.as_ref().is_some_and(Latest::keeps_files);
            if is_caught_up != Some(false) || !keeps_files {
                return Ok(is_caught_up == Some(true));
            }
            // Nobody knows how long it would wait. The next one begins as soon as it can.
            (expiry.pass, expiry.pass_keys, expiry.next_ms) = (None, 0, i64::MIN);
        }
        looked.at = self.look_at_new(expiry, now_ms);
        // Upkeep makes the index in steps, and has it catch up; what has expired is not found meanwhile either.
        if now_ms < expiry.next_ms || !expiry.may_begin(now_ms) || self.is_caught_up() != Some(true) {
            return Ok(false);
        }
        expiry.next_ms = i64::MAX;
        let mut pass = self.latest_in_part()?;
        pass.with_expired = true;
        (expiry.pass_begun_ms, expiry.pass_keys) = (now_ms, pass.keys_left());
        (expiry.seen, expiry.pass, expiry.pass_failed) = (pass.position, Some(pass), false);
        Ok(true)
    }

    fn go_on_with_pass(&self, expiry: &mut Expiry, now_ms: i64, looked: &mut Looked) {
        let (mut expired, mut bytes) = (Vec::new(), 0);
        for _ in 0..STEP {
            let Some(pass) = &mut expiry.pass else { break };
            let record = match pass.next() {
                Some(Ok(record)) => record,
                Some(Err(error)) => {
                    pass.pass_by();
                    looked.at += 1;
                    looked.failed.get_or_insert(error);
                    continue;
                }
                None => {
                    expiry.pass = None;
                    break;
                }
            };
            looked.at += 1;
            bytes += record.key().map_or(0, <[u8]>::len) + record.value().map_or(0, <[u8]>::len);
            match (expiry::expires_at(&record, expiry.expire_after_ms), record.key()) {
                (Some(at), Some(key)) if at <= now_ms => expired.push((record.offset().get(), key.to_vec())),
                (Some(at), _) => expiry.next_ms = expiry.next_ms.min(at),
                (None, _) => {}
            }
            if bytes >= STEP_BYTES {
                break;
            }
        }
        let ended = self.end_keys(&expired);
        looked.ended = ended.tombstones;
        if !ended.is_whole {
            // Something was appended meanwhile: the next pass looks again.
            expiry.next_ms = i64::MIN;
        }
        if let Some(error) = ended.failed {
            looked.failed.get_or_insert(error);
        }
    }

    /// Looks at some of what is new in the log: when does the first of it expire? Where it cannot be read a pass goes by the
    /// index, which leads past that.
    fn look_at_new(&self, expiry: &mut Expiry, now_ms: i64) -> usize {
        if now_ms >= expiry.next_ms {
            return 0;
        }
        let from = expiry.seen.max(self.log.log_start());
        let options = ReadOptions::new().level(ReadLevel::Latest).limits(LIMITS);
        let mut looked_at = 0;
        for record in Reader::begin(&self.log, from, options).take(STEP) {
            let Ok(record) = record else {
                expiry.next_ms = i64::MIN;
                break;
            };
            looked_at += 1;
            expiry.seen = record.offset().get() + 1;
            if let Some(at) = expiry::expires_at(&record, expiry.expire_after_ms) {
                expiry.next_ms = expiry.next_ms.min(at);
            }
        }
        looked_at
    }

    /// Appends tombstones for keys that had their newest records at these offsets, but for those that have newer ones, or get
    /// one right now: then that one wins.
    fn end_keys(&self, expired: &[(i64, Vec<u8>)]) -> Ended {
        let batch_bytes_max = usize::try_from(self.log.settings().batch_bytes_max).unwrap_or(usize::MAX);
        let bytes_max = (batch_bytes_max / 2).min(BATCH_BYTES);
        let (mut rest, mut most) = (expired, STEP);
        let mut ended = Ended { tombstones: 0, is_whole: true, failed: None };
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = rest.iter().take(most).take_while(|(_, key)| {
                bytes += key.len() + TOMBSTONE_BYTES;
                bytes <= bytes_max
            });
            let count = fits.count().max(1);
            let (now, later) = rest.split_at(count);
            match self.end_at_once(now, &mut ended.failed) {
                Ok(Some(tombstones)) => (rest, ended.tombstones) = (later, ended.tombstones + tombstones),
                // Appends are ahead of it: fewer keys take less time to ask for.
                Ok(None) if count > 1 => most = count / 2,
                Ok(None) => (rest, ended.is_whole) = (later, false),
                // One that cannot be appended keeps none of the others.
                Err(Error::Invalid { .. }) if count > 1 => most = count / 2,
                Err(error @ Error::Invalid { .. }) => {
                    ended.failed.get_or_insert(error);
                    (rest, most) = (later, STEP);
                }
                Err(error) => {
                    ended.failed.get_or_insert(error);
                    break;
                }
            }
        }
        ended
    }

    /// One batch of tombstones for those of the keys that have no newer record; `None`, and nothing is appended, if something
    /// else was meanwhile. A key of which that cannot be told, as a record that may be newer cannot be read, is not ended.
    fn end_at_once(&self, expired: &[(i64, Vec<u8>)], failed: &mut Option<Error>) -> Result<Option<usize>> {
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
                match self.log.record_near(&set, place.offset, None, (self.log.env.verify, &LIMITS)) {
                    Ok(newer) => is_superseded |= newer.is_some_and(|newer| newer.record.key() == Some(key)),
                    Err(error) => {
                        failed.get_or_insert(error);
                        is_superseded = true;
                    }
                }
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
            Err(Error::Conflict { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
