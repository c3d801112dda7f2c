//! Upkeep: the same bounded step, by hand or on one thread.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::{Signal, Store, StoreInner};
use crate::cleaner::Cleaning;
use crate::error::{Error, Result};
use crate::ids::{TopicName, TopicPartition};
use crate::partition::swap::Removed;
use crate::partition::{Durability, Log};
use crate::planted::{Bug, is};
use crate::sync::atomic::Ordering;
use crate::topic::{TopicInner, upkeep};

/// What one [`Store::tick`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TickReport {
    /// Bytes that were synced because their window was over.
    pub synced_bytes: u64,
    /// Closed segments that got their seal.
    pub sealed_segments: usize,
    /// Partitions that gave preallocated space back.
    pub trimmed: usize,
    /// Idle active segments that were closed for their age.
    pub rolled_segments: usize,
    /// Segments that retention removed.
    pub deleted_segments: usize,
    /// Bytes of record batches in those.
    pub deleted_bytes: u64,
    /// Bytes that compaction read.
    pub compacted_bytes: u64,
    /// Compactions of a partition that came to their end.
    pub compactions: usize,
    /// Tombstones that those dropped.
    pub tombstones_dropped: u64,
    /// Keys that have expired and got a tombstone.
    pub expired_keys: usize,
    /// Keys that were compared with those of older records, asked whether they have expired, or read for the places of their
    /// records.
    pub keys_looked_at: usize,
}

impl TickReport {
    /// Whether there was nothing to do.
    pub fn is_idle(&self) -> bool {
        *self == Self::default()
    }
}

/// How long the thread sleeps when no window asks for less.
const IDLE_WAIT: Duration = Duration::from_secs(1);

impl Store {
    /// One bounded step of upkeep over every partition: windows of `Interval` that are over are synced, the recovery floor
    /// moves, one closed segment of each partition is sealed, preallocated space that was not used for a minute is given
    /// back; an idle active segment whose age asks for it is closed, retention deletes what is too old or too much, and
    /// the compaction of one partition, that with the most to gain, reads its next
    /// [8 MiB](super::StoreBuilder::compaction_step_bytes). With [`Upkeep::Manual`](super::Upkeep::Manual) call it as often as the windows ask; beside the thread it does
    /// no harm.
    ///
    /// # Errors
    /// The first that a partition met; the others had their step all the same.
    ///
    /// ```
    /// use topiclog::Store;
    /// let store = Store::in_memory()?;
    /// assert!(store.tick()?.is_idle());
    /// # store.close()?;
    /// # Ok::<(), topiclog::Error>(())
    /// ```
    pub fn tick(&self) -> Result<TickReport> {
        self.inner.check_open()?;
        self.inner.tick(None)
    }

    /// [`tick`](Self::tick) for one topic alone.
    ///
    /// # Errors
    /// As [`tick`](Self::tick); [`Error::UnknownTopic`].
    pub fn tick_topic(&self, name: &str) -> Result<TickReport> {
        let topic = self.topic(name)?;
        self.inner.tick(Some(topic.name()))
    }

    /// What the upkeep thread met since the last call, if anything. [`Store::close`] returns it as well.
    pub fn take_upkeep_error(&self) -> Option<Error> {
        self.inner.upkeep_error.lock().take()
    }
}

/// The compaction that is going on, and what is not to be tried again.
#[derive(Debug, Default)]
pub(super) struct CleanerState {
    current: Option<(Arc<Log>, Cleaning)>,
    /// Partitions whose compaction failed: until the store is reopened they are left alone.
    failed: BTreeSet<TopicPartition>,
}

impl CleanerState {
    pub(super) fn stop(&mut self) {
        self.current = None;
    }
}

/// How the clocks stood at the last step.
#[derive(Debug, Default)]
pub(super) struct ClockWatch {
    last: Option<(i64, Duration)>,
    /// The wall clock jumped; until the other one gets here it is not trusted with more than a segment at a time.
    distrusted_until: Duration,
    /// When a segment went by a clock that is not trusted.
    last_cut: Option<Duration>,
}

const JUMP_MS: i64 = 3_600_000;
const DISTRUST: Duration = Duration::from_secs(3600);
/// Between two segments that go by a clock that jumped.
const DISTRUSTED_CUT: Duration = Duration::from_secs(60);

impl ClockWatch {
    /// Takes note of both clocks; true if the wall clock has jumped lately.
    fn has_jumped(&mut self, wall_ms: i64, monotonic: Duration) -> bool {
        if let Some((last_wall, last_monotonic)) = self.last {
            let passed = i64::try_from(monotonic.saturating_sub(last_monotonic).as_millis()).unwrap_or(i64::MAX);
            let ahead = wall_ms.saturating_sub(last_wall).saturating_sub(passed);
            if ahead.saturating_abs() > JUMP_MS && !is(Bug::ClockJumpTrusted) {
                self.distrusted_until = monotonic + DISTRUST;
            }
        }
        self.last = Some((wall_ms, monotonic));
        monotonic < self.distrusted_until
    }
}

impl StoreInner {
    fn tick(&self, only: Option<&TopicName>) -> Result<TickReport> {
        let mut report = TickReport::default();
        let mut first_error = None;
        let mut note = |error| {
            first_error.get_or_insert(error);
        };
        let now_ms = self.env.clock.now_ms();
        let (has_jumped, may_cut) = self.look_at_clocks(now_ms);
        let mut topics: Vec<_> = self.topics.read().values().cloned().collect();
        topics.retain(|topic| only.is_none_or(|only| topic.name == *only));
        let logs: Vec<Arc<Log>> =
            topics.iter().flat_map(|topic| topic.partitions.values()).map(|found| Arc::clone(&found.log)).collect();
        for topic in &topics {
            let before = report;
            for partition in topic.partitions.values() {
                if let Err(error) = self.tick_log(&partition.log, now_ms, has_jumped, may_cut, &mut report) {
                    topic.upkept.note_failure(&error);
                    note(error);
                }
            }
            topic.upkept.note(|stats| {
                stats.sealed_segments += (report.sealed_segments - before.sealed_segments) as u64;
                stats.rolled_segments += (report.rolled_segments - before.rolled_segments) as u64;
                stats.deleted_segments += (report.deleted_segments - before.deleted_segments) as u64;
                stats.deleted_bytes += report.deleted_bytes - before.deleted_bytes;
            });
        }
        for topic in &topics {
            let expire_after_ms = topic.config.read().expiry_ms();
            for index in topic.indexes() {
                // A clock that jumped ends no key: a tombstone cannot be taken back.
                match index.expire(if has_jumped { -1 } else { expire_after_ms }, now_ms) {
                    Ok((ended, looked_at)) => {
                        report.expired_keys += ended;
                        report.keys_looked_at += looked_at;
                        topic.upkept.note(|stats| stats.expired_keys += ended as u64);
                    }
                    Err(error) => {
                        topic.upkept.note_failure(&error);
                        note(error);
                    }
                }
                match index.upkeep() {
                    Ok(looked_at) => report.keys_looked_at += looked_at,
                    Err(error) => {
                        topic.upkept.note_failure(&error);
                        note(error);
                    }
                }
            }
        }
        if let Err((of, error)) = self.clean(&topics, &logs, now_ms, &mut report) {
            if let Some(topic) = topics.iter().find(|topic| topic.name == of.topic) {
                topic.upkept.note_failure(&error);
            }
            note(error);
        }
        self.reserve.take_back();
        if has_jumped && report.deleted_segments > 0 {
            self.clocks.lock().last_cut = Some(self.env.clock.monotonic());
        }
        // Who waits without a timer of its own looks at its deadlines.
        self.env.bell.ring();
        first_error.map_or(Ok(report), Err)
    }

    /// Whether the wall clock has jumped lately, and whether segments may go by it in this step.
    fn look_at_clocks(&self, now_ms: i64) -> (bool, bool) {
        let monotonic = self.env.clock.monotonic();
        let mut clocks = self.clocks.lock();
        let has_jumped = clocks.has_jumped(now_ms, monotonic);
        let is_due = clocks.last_cut.is_none_or(|last| monotonic.saturating_sub(last) >= DISTRUSTED_CUT);
        (has_jumped, !has_jumped || is_due)
    }

    fn tick_log(
        &self,
        log: &Arc<Log>,
        now_ms: i64,
        has_jumped: bool,
        may_cut: bool,
        report: &mut TickReport,
    ) -> Result<()> {
        let kept = log.upkeep().map(|step| {
            report.synced_bytes += step.synced_bytes;
            report.sealed_segments += step.sealed;
            report.trimmed += usize::from(step.trimmed);
        });
        if self.env.read_only || log.is_closed() || log.poison_error().is_some() {
            return kept;
        }
        // Each whatever became of the others: on a full disk it is retention that makes room.
        let cut = if may_cut { upkeep::retain(log, now_ms, has_jumped) } else { Ok(Removed::default()) };
        let cut = cut.map(|removed| {
            report.deleted_segments += removed.segments;
            report.deleted_bytes += removed.bytes;
        });
        let rolled = upkeep::roll_if_idle(log, now_ms).map(|rolled| report.rolled_segments += usize::from(rolled));
        let unlinked = log.remove_retired().map(drop);
        kept.and(cut).and(rolled).and(unlinked)
    }

    /// The next step of the compaction that is going on, or the first of the one with the most to gain. An error comes with the
    /// partition that it is of.
    fn clean(
        &self,
        topics: &[Arc<TopicInner>],
        logs: &[Arc<Log>],
        now_ms: i64,
        report: &mut TickReport,
    ) -> std::result::Result<(), (TopicPartition, Error)> {
        if self.env.read_only {
            return Ok(());
        }
        // Somebody else is at it.
        let Some(mut state) = self.cleaner.try_lock() else { return Ok(()) };
        let state = &mut *state;
        if state.current.is_none() {
            let Some(log) = dirtiest(logs, &mut state.failed, now_ms)? else { return Ok(()) };
            let memory_bytes = self.options.compaction_memory_bytes;
            let hold = self.lowest_reader(&log.id);
            let begun = upkeep::begin_cleaning(&log, hold, now_ms, memory_bytes);
            let begun = begun.map_err(|error| (log.id.clone(), error))?;
            state.current = begun.map(|cleaning| (log, cleaning));
        }
        // A topic that is no longer to be compacted stays as it is.
        if state.current.as_ref().is_some_and(|(log, _)| log.is_closed() || !log.settings().needs_key) {
            state.current = None;
        }
        let Some((log, cleaning)) = &mut state.current else { return Ok(()) };
        if !logs.iter().any(|asked| Arc::ptr_eq(asked, log)) {
            return Ok(());
        }
        cleaning.hold_from(self.lowest_reader(&log.id));
        let before = cleaning.counts();
        let stepped = cleaning.step(self.options.compaction_step_bytes);
        let after = cleaning.counts();
        let done = stepped.as_ref().map_or((0, false), |step| (step.read_bytes, step.is_done));
        if let Some(topic) = topics.iter().find(|topic| topic.name == log.id.topic) {
            topic.upkept.note(|stats| {
                stats.compactions += u64::from(done.1);
                stats.compaction_read_bytes += done.0;
                stats.compaction_written_bytes += after.bytes_after - before.bytes_after;
                stats.records_compacted +=
                    (after.records_before - before.records_before) - (after.records_after - before.records_after);
                stats.tombstones_dropped += after.tombstones_dropped - before.tombstones_dropped;
            });
        }
        match stepped {
            Ok(step) => {
                report.compacted_bytes += step.read_bytes;
                if step.is_done {
                    report.compactions += 1;
                    report.tombstones_dropped += after.tombstones_dropped;
                    state.current = None;
                }
                Ok(())
            }
            Err(error) => {
                let of = log.id.clone();
                let is_over = log.is_closed();
                // Want of room passes; anything else would come again.
                let passes = matches!(error, Error::NoSpace { .. } | Error::TooManyFiles { .. });
                if !is_over && !passes {
                    state.failed.insert(of.clone());
                }
                state.current = None;
                // A topic that was deleted meanwhile needs no compaction.
                if is_over { Ok(()) } else { Err((of, error)) }
            }
        }
    }

    /// How long the thread may sleep: half of the shortest window.
    fn wait(&self) -> Duration {
        let topics = self.topics.read();
        let windows = topics.values().map(|topic| match topic.config.read().durability_level() {
            Durability::Interval { ms, .. } => Duration::from_millis((ms / 2).max(1)),
            Durability::Sync | Durability::Os => IDLE_WAIT,
        });
        windows.min().unwrap_or(IDLE_WAIT)
    }

    pub(super) fn start_upkeep(self: &std::sync::Arc<Self>) -> Result<()> {
        let weak = std::sync::Arc::downgrade(self);
        let signal = std::sync::Arc::clone(&self.signal);
        let spawned =
            crate::sync::thread::Builder::new().name("topiclog-upkeep".into()).spawn(move || run(&weak, &signal));
        let thread = spawned.map_err(|error| Error::io("start the upkeep thread of", &self.root, error))?;
        *self.upkeep_thread.lock() = Some(thread);
        Ok(())
    }
}

/// Holds no handle of the store while it sleeps, so that the last one dropped ends it.
fn run(store: &Weak<StoreInner>, signal: &Signal) {
    loop {
        let Some(inner) = store.upgrade() else { return };
        if inner.closed.load(Ordering::Acquire) {
            return;
        }
        let ticked = inner.tick(None);
        let compacted_bytes = ticked.as_ref().map_or(0, |report| report.compacted_bytes);
        // More of what is bounded in one step may be waiting.
        let goes_on = ticked.as_ref().is_ok_and(|report| {
            report.compacted_bytes > 0
                || report.compactions > 0
                || report.sealed_segments > 0
                || report.keys_looked_at > 0
        });
        if let Err(error) = ticked {
            inner.upkeep_error.lock().get_or_insert(error);
        }
        let pace = compacted_bytes as f64 / inner.options.compaction_bytes_per_second as f64;
        let wait = if goes_on { Duration::from_secs_f64(pace).min(inner.wait()) } else { inner.wait() };
        drop(inner);
        if signal.wait(wait) {
            return;
        }
    }
}

/// The partition that is worth most to compact now. One of which that cannot be told has failed: its error is returned
/// once, and the others have their turn at the next step.
fn dirtiest(
    logs: &[Arc<Log>],
    failed: &mut BTreeSet<TopicPartition>,
    now_ms: i64,
) -> std::result::Result<Option<Arc<Log>>, (TopicPartition, Error)> {
    let mut best: Option<(f64, &Arc<Log>)> = None;
    for log in logs.iter().filter(|log| !log.is_closed()) {
        if failed.contains(&log.id) {
            continue;
        }
        match upkeep::dirtiness(log, now_ms) {
            Ok(Some(dirtiness)) if best.is_none_or(|(most, _)| dirtiness > most) => best = Some((dirtiness, log)),
            Ok(_) => {}
            Err(_) if log.is_closed() => {}
            Err(error) => {
                failed.insert(log.id.clone());
                return Err((log.id.clone(), error));
            }
        }
    }
    Ok(best.map(|(_, log)| Arc::clone(log)))
}

impl Signal {
    /// There is something to do.
    pub(crate) fn wake(&self) {
        let mut state = self.state.lock();
        state.woken = true;
        self.changed.notify_one();
    }

    pub(super) fn stop(&self) {
        let mut state = self.state.lock();
        state.stop = true;
        self.changed.notify_all();
    }

    /// Sleeps until woken or until the time is over; true if the thread has to end.
    fn wait(&self, time: Duration) -> bool {
        let mut state = self.state.lock();
        if !state.woken && !state.stop {
            self.changed.wait_for(&mut state, time);
        }
        state.woken = false;
        state.stop
    }
}
