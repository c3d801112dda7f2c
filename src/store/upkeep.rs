//! Upkeep: the same bounded step, by hand or on one thread.

use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::events::UpkeepEvent;
use super::{Signal, Store, StoreInner};
use crate::cleaner::Now;
use crate::clock::{Clock, SystemClock};
use crate::error::{Error, Result};
use crate::ids::{TopicName, TopicPartition};
use crate::key_index::KeyIndex;
use crate::key_index::making::ReadBudget;
use crate::partition::upkeep::Sealed;
use crate::partition::{Durability, Log, Partition};
use crate::planted::{Bug, is};
use crate::retention::RetentionRule;
use crate::sync::atomic::Ordering;
use crate::topic::TopicInner;
use crate::topic::upkeep::{self, Retained};

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
    /// Bytes of files and logs that were read to make key indexes, or to have them catch up.
    pub key_index_read_bytes: u64,
}

impl TickReport {
    /// Whether there was nothing to do.
    pub fn is_idle(&self) -> bool {
        *self == Self::default()
    }
}

/// How long the thread sleeps when no window asks for less.
const IDLE_WAIT_MS: u64 = 1000;

impl Store {
    /// One bounded step of upkeep over every partition: windows of `Interval` that are over are synced, the recovery floor
    /// moves, one closed segment of each partition is sealed, preallocated space that was not used for a minute is given
    /// back; an idle active segment whose age asks for it is closed, retention deletes what is too old or too much, and the
    /// compaction of one partition, that with the most to gain, reads its next [8
    /// MiB](super::StoreBuilder::compaction_step_bytes). Key indexes of compacted topics, and those that were in use before
    /// the open, are made from as many bytes at a step, and catch up so where more was appended than their queues hold. With
    /// [`Upkeep::Manual`](super::Upkeep::Manual) call it as often as the windows ask; beside the thread it does no harm.
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
        self.inner.tick(None, true).into_result()
    }

    /// [`tick`](Self::tick) for one topic alone. One partition of the store is compacted at a time: if that of another topic has
    /// begun, and this one is to be compacted, a step of the other is done.
    ///
    /// # Errors
    /// As [`tick`](Self::tick); [`Error::UnknownTopic`].
    pub fn tick_topic(&self, name: &str) -> Result<TickReport> {
        let topic = self.topic(name)?;
        self.inner.tick(Some(topic.name()), true).into_result()
    }

    /// What the upkeep thread met since the last call, if anything. [`Store::close`] returns it as well.
    pub fn take_upkeep_error(&self) -> Option<Error> {
        self.inner.upkeep_error.lock().take()
    }
}

/// How the clocks stood at the last step.
#[derive(Debug, Default)]
pub(super) struct ClockWatch {
    last: Option<(i64, Duration)>,
    /// The same when the wall clock was trusted last.
    trusted: Option<(i64, Duration)>,
    /// The wall clock jumped; until the other one gets here it is not trusted with more than a segment at a time.
    distrusted_until: Duration,
    /// When a segment went by a clock that is not trusted.
    last_cut: Option<Duration>,
}

const JUMP_MS: i64 = 3_600_000;
const DISTRUST: Duration = Duration::from_secs(3600);
/// Between two segments that go by a clock that jumped.
const DISTRUSTED_CUT: Duration = Duration::from_secs(60);

/// What time it is in one step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    /// By the wall clock.
    wall_ms: i64,
    /// For tombstones and the like: what is dropped too early, or is to wait until a wrong time, is never put right.
    pub(super) sure: Now,
    /// How many segments of each partition may go by the wall clock.
    by_age_max: usize,
}

impl Times {
    /// Whether the wall clock has jumped lately.
    fn has_jumped(&self) -> bool {
        self.sure.distrusted_until_ms.is_some()
    }
}

impl ClockWatch {
    /// Takes note of both clocks.
    fn look(&mut self, wall_ms: i64, monotonic: Duration) -> Times {
        let ms = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        // What the wall clock would say if it had gone on as it stood then.
        let expected = |(wall, at): (i64, Duration)| wall.saturating_add(ms(monotonic.saturating_sub(at)));
        if let Some(last) = self.last
            && wall_ms.saturating_sub(expected(last)).saturating_abs() > JUMP_MS
            && !is(Bug::ClockJumpTrusted)
        {
            self.distrusted_until = monotonic + DISTRUST;
        }
        self.last = Some((wall_ms, monotonic));
        let left = self.distrusted_until.saturating_sub(monotonic);
        if left.is_zero() {
            self.trusted = self.last;
            let sure = Now { ms: wall_ms, distrusted_until_ms: None };
            return Times { wall_ms, sure, by_age_max: usize::MAX };
        }
        let earlier_ms = self.trusted.map_or(wall_ms, expected).min(wall_ms);
        let until_ms = earlier_ms.saturating_add(ms(left)).saturating_add(1);
        let is_due = self.last_cut.is_none_or(|last| monotonic.saturating_sub(last) >= DISTRUSTED_CUT);
        let sure = Now { ms: earlier_ms, distrusted_until_ms: Some(until_ms) };
        Times { wall_ms, sure, by_age_max: usize::from(is_due) }
    }
}

/// One step over all partitions: what it did so far, and what went wrong first.
pub(super) struct Step {
    pub(super) times: Times,
    pub(super) report: TickReport,
    first_error: Option<Error>,
    /// Whether compaction may read; it has its own bound.
    pub(super) may_compact: bool,
    /// For the making of key indexes, and their catching up.
    index_budget: ReadBudget,
    /// What nobody was told of yet; `None` if nobody listens.
    events: Option<Vec<UpkeepEvent>>,
}

impl Step {
    /// Has somebody told of it at the next moment at which no lock is held.
    pub(super) fn note(&mut self, event: impl FnOnce() -> UpkeepEvent) {
        if let Some(events) = &mut self.events {
            events.push(event());
        }
    }

    fn note_rolled(&mut self, log: &Log, rolled: Option<Range<i64>>) {
        if let Some(Range { start, end }) = rolled {
            let (from, to) = (start.into(), end.into());
            self.note(|| UpkeepEvent::SegmentRolled { partition: log.id.clone(), from, to });
        }
    }

    fn fail(&mut self, topic: &TopicInner, of: &TopicPartition, error: Error) {
        topic.upkept.note_failure(&error);
        self.note(|| UpkeepEvent::Failed { partition: of.clone(), error: Arc::new(error.duplicate()) });
        self.first_error.get_or_insert(error);
    }
}

/// What a step did, whatever went wrong.
#[derive(Debug)]
struct Ticked {
    report: TickReport,
    first_error: Option<Error>,
}

impl Ticked {
    fn into_result(self) -> Result<TickReport> {
        self.first_error.map_or(Ok(self.report), Err)
    }
}

impl StoreInner {
    /// One step over all topics, or over one. Compactions go on, and key indexes are made and catch up, only if they may read.
    fn tick(&self, only: Option<&TopicName>, may_read: bool) -> Ticked {
        let may_read = may_read && !self.env.read_only;
        let times = self.clocks.lock().look(self.env.clock.now_ms(), self.env.clock.monotonic());
        let events = self.audience.is_there().then(Vec::new);
        let report = TickReport::default();
        let index_budget = ReadBudget::of(if may_read { self.options.compaction_step_bytes } else { 0 });
        let may_compact = may_read;
        let mut step = Step { times, may_compact, report, first_error: None, index_budget, events };
        let mut topics: Vec<_> = self.topics.read().values().cloned().collect();
        topics.retain(|topic| only.is_none_or(|only| topic.name == *only));
        self.sync_what_is_due(&mut step);
        for topic in &topics {
            self.tick_logs(topic, &mut step);
        }
        // Each has the first turn at times: one that is appended to faster than it is read would leave nothing for the others.
        let turn = self.index_turn.fetch_add(usize::from(only.is_none()), Ordering::Relaxed);
        let in_turn = topics.iter().cycle().skip(turn.checked_rem(topics.len()).unwrap_or(0)).take(topics.len());
        for (nth, topic) in in_turn.enumerate() {
            // With the turns of the topics those of their indexes would always meet in the same pairs.
            topic.index_turn.fetch_add(usize::from(nth == 0), Ordering::Relaxed);
            self.tick_indexes(topic, &mut step);
        }
        if let Err((of, error)) = self.clean(&topics, &mut step) {
            let topic = self.topics.read().get(&of.topic).cloned();
            if let Some(topic) = topic {
                step.fail(&topic, &of, error);
            }
        }
        self.tell(&mut step);
        self.reserve.take_back();
        // Who waits without a timer of its own looks at its deadlines.
        self.env.bell.ring();
        Ticked { report: step.report, first_error: step.first_error }
    }

    /// Tells what has happened so far. No lock is held here.
    fn tell(&self, step: &mut Step) {
        let Some(events) = step.events.as_mut().filter(|events| !events.is_empty()) else { return };
        if let Err(error) = self.audience.tell(std::mem::take(events)) {
            step.first_error.get_or_insert(error);
        }
    }

    /// Syncs behind the appends that have waited as long as they may, of whatever topic.
    fn sync_what_is_due(&self, step: &mut Step) {
        let is_due = |partition: &&Partition| partition.log.sync_due_in() == Some(0);
        let mut due = Vec::new();
        for topic in self.topics.read().values() {
            let of_topic = topic.partitions.values().filter(is_due);
            due.extend(of_topic.map(|partition| (Arc::clone(topic), Arc::clone(&partition.log))));
        }
        for (topic, log) in due {
            match log.sync_if_due() {
                Ok(bytes) => step.report.synced_bytes += bytes,
                Err(error) => step.fail(&topic, &log.id, error),
            }
        }
    }

    fn tick_logs(&self, topic: &TopicInner, step: &mut Step) {
        let before = step.report;
        for partition in topic.partitions.values() {
            if let Err(error) = self.tick_log(&partition.log, step) {
                step.fail(topic, &partition.log.id, error);
            }
            self.tell(step);
        }
        let report = &step.report;
        topic.upkept.note(|stats| {
            stats.sealed_segments += (report.sealed_segments - before.sealed_segments) as u64;
            stats.rolled_segments += (report.rolled_segments - before.rolled_segments) as u64;
            stats.deleted_segments += (report.deleted_segments - before.deleted_segments) as u64;
            stats.deleted_bytes += report.deleted_bytes - before.deleted_bytes;
        });
    }

    /// Has the indexes of a topic take their steps, from another one on at each turn.
    fn tick_indexes(&self, topic: &TopicInner, step: &mut Step) {
        let expire_after_ms = topic.config.read().expiry_ms();
        // A clock that jumped ends no key: a tombstone cannot be taken back.
        let expire_after_ms = if step.times.has_jumped() { -1 } else { expire_after_ms };
        let mut indexes: Vec<&KeyIndex> = topic.indexes().collect();
        let turn = topic.index_turn.load(Ordering::Relaxed);
        if let Some(first) = turn.checked_rem(indexes.len()) {
            indexes.rotate_left(first);
        }
        for index in indexes {
            let of = index.partition();
            if expire_after_ms >= 0 {
                index.expect_expiry();
            }
            if let Err(error) = index.make_some(&mut step.index_budget) {
                step.fail(topic, of, error);
            }
            // First, so that keys expire where each step of it catches up.
            let compared = index.upkeep(&mut step.index_budget);
            step.report.key_index_read_bytes = step.index_budget.read();
            let expired = index.expire(expire_after_ms, step.times.wall_ms);
            let ended = expired.ended;
            if ended > 0 {
                step.report.expired_keys += ended;
                topic.upkept.note(|stats| stats.expired_keys += ended as u64);
                step.note(|| UpkeepEvent::KeysExpired { partition: of.clone(), keys: ended });
            }
            step.report.keys_looked_at += expired.at + compared.at;
            for error in expired.failed.into_iter().chain(compared.failed) {
                step.fail(topic, of, error);
            }
            let notices = index.take_notices();
            if let Some((entries, memory_bytes)) = notices.made {
                step.note(|| UpkeepEvent::KeyIndexMade { partition: of.clone(), entries, memory_bytes });
            }
            if notices.given_up {
                step.note(|| UpkeepEvent::KeyIndexDropped { partition: of.clone() });
            }
            self.tell(step);
        }
    }

    fn tick_log(&self, log: &Arc<Log>, step: &mut Step) -> Result<()> {
        let partition = || log.id.clone();
        let kept = log.upkeep(&mut || self.sync_what_is_due(step)).map(|done| {
            step.report.trimmed += usize::from(done.trimmed);
            if let Some(Sealed { base, next, bytes }) = done.sealed {
                step.report.sealed_segments += 1;
                let (from, to) = (base.into(), next.into());
                step.note(|| UpkeepEvent::SegmentSealed { partition: partition(), from, to, bytes });
            }
        });
        if self.env.read_only || log.is_closed() || log.poison_error().is_some() {
            return kept;
        }
        // Each whatever became of the others: on a full disk it is retention that makes room.
        let cut = upkeep::retain(log, step.times.wall_ms, step.times.by_age_max);
        let cut = cut.map(|Retained { removed, rule, offsets, rolled }| {
            step.note_rolled(log, rolled);
            step.report.deleted_segments += removed.segments;
            step.report.deleted_bytes += removed.bytes;
            let (segments, bytes, from, to) =
                (removed.segments, removed.bytes, offsets.start.into(), offsets.end.into());
            if segments > 0 {
                if rule == RetentionRule::Age && step.times.has_jumped() {
                    self.clocks.lock().last_cut = Some(self.env.clock.monotonic());
                }
                step.note(|| UpkeepEvent::SegmentsDeleted { partition: partition(), rule, from, to, segments, bytes });
            }
        });
        let rolled = upkeep::roll_if_idle(log, step.times.wall_ms).map(|rolled| {
            step.report.rolled_segments += usize::from(rolled.is_some());
            step.note_rolled(log, rolled);
        });
        if let Some(Range { start, end }) = log.take_log_start_move() {
            let (from, to) = (start.into(), end.into());
            step.note(|| UpkeepEvent::LogStartMoved { partition: partition(), from, to });
        }
        let unlinked = log.remove_retired().map(drop);
        kept.and(cut).and(rolled).and(unlinked)
    }

    /// How long the thread may sleep: half of the shortest window of a topic, and no longer than anything may wait for its sync.
    fn wait(&self) -> Duration {
        let topics = self.topics.read();
        let of_topic = |topic: &TopicInner| match topic.config.read().durability_level() {
            Durability::Interval { ms, .. } => (ms / 2).max(1),
            Durability::Sync | Durability::Os => IDLE_WAIT_MS,
        };
        let of_logs = |topic: &TopicInner| topic.partitions.values().filter_map(|one| one.log.sync_due_in()).min();
        let windows = topics.values().flat_map(|topic| [Some(of_topic(topic)), of_logs(topic)]).flatten();
        Duration::from_millis(windows.min().unwrap_or(IDLE_WAIT_MS).clamp(1, IDLE_WAIT_MS))
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

/// What the thread may read: so many bytes a second, whatever wakes it.
#[derive(Debug)]
struct Pace {
    bytes_per_second: u64,
    /// When all that was read has been paid for with time.
    paid_at: Duration,
}

impl Pace {
    /// What is still owed.
    fn owes(&self, now: Duration) -> Duration {
        self.paid_at.saturating_sub(now)
    }

    fn note(&mut self, read_bytes: u64, now: Duration) {
        let seconds = read_bytes as f64 / self.bytes_per_second as f64;
        // More than fits is as good as for ever.
        let takes = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        self.paid_at = self.paid_at.max(now).saturating_add(takes);
    }
}

/// Holds no handle of the store while it sleeps, so that the last one dropped ends it.
fn run(store: &Weak<StoreInner>, signal: &Signal) {
    let mut pace: Option<Pace> = None;
    loop {
        let Some(inner) = store.upgrade() else { return };
        if inner.closed.load(Ordering::Acquire) {
            return;
        }
        // It sleeps by the time of the machine, and so goes by that: a clock that stands still would never let it read on.
        let now = || SystemClock.monotonic();
        let bytes_per_second = inner.options.compaction_bytes_per_second;
        let pace = pace.get_or_insert(Pace { bytes_per_second, paid_at: Duration::ZERO });
        let Ticked { report, first_error } = inner.tick(None, pace.owes(now()).is_zero());
        let read_bytes = report.compacted_bytes + report.key_index_read_bytes;
        pace.note(read_bytes, now());
        // More of what is bounded in one step may be waiting, also if some of it failed.
        let reads_on = read_bytes > 0 || report.compactions > 0 || !pace.owes(now()).is_zero();
        let goes_on = report.sealed_segments > 0 || report.keys_looked_at > 0;
        if let Some(error) = first_error {
            inner.upkeep_error.lock().get_or_insert(error);
        }
        signal.falls_asleep();
        let wait = match (goes_on, reads_on) {
            (true, _) => Duration::ZERO,
            (false, true) => pace.owes(now()).min(inner.wait()),
            (false, false) => inner.wait(),
        };
        drop(inner);
        if signal.wait(wait) {
            return;
        }
    }
}

impl Signal {
    /// There is something to do within so many milliseconds: wakes the thread if it would sleep longer, and in any case for 0.
    pub(crate) fn wake_within(&self, ms: u64) {
        if ms == 0 || ms < self.sleeps_ms.load(Ordering::SeqCst) {
            self.wake();
        }
    }

    /// The thread is about to look how long it may sleep. Who wants it earlier from now on wakes it: either that look sees what
    /// they want, or they see that it may sleep.
    fn falls_asleep(&self) {
        self.sleeps_ms.store(u64::MAX, Ordering::SeqCst);
    }

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
        self.sleeps_ms.store(u64::try_from(time.as_millis()).unwrap_or(u64::MAX), Ordering::SeqCst);
        if !state.woken && !state.stop {
            self.changed.wait_for(&mut state, time);
        }
        self.sleeps_ms.store(0, Ordering::SeqCst);
        state.woken = false;
        state.stop
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thread_is_woken_for_what_is_due_before_it_would_wake_by_itself() {
        let is_woken = |signal: &Signal| std::mem::take(&mut signal.state.lock().woken);
        let signal = Signal::default();
        signal.wake_within(5);
        assert!(!is_woken(&signal), "it works, and looks before it sleeps");
        signal.wake_within(0);
        assert!(is_woken(&signal), "that is for now");
        signal.falls_asleep();
        signal.wake_within(5);
        assert!(is_woken(&signal), "it may have looked already");
        signal.sleeps_ms.store(1000, Ordering::SeqCst);
        for (ms, expected) in [(5, true), (999, true), (1000, false), (2000, false)] {
            signal.wake_within(ms);
            assert_eq!(is_woken(&signal), expected, "{ms}");
        }
    }
}
