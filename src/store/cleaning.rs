//! Whose turn it is to be compacted, and one step of that. One partition at a time.

use std::sync::Arc;

use super::StoreInner;
use super::events::UpkeepEvent;
use super::upkeep::Step;
use crate::cleaner::{self, Cleaning, CompactionCounts};
use crate::error::Error;
use crate::ids::TopicPartition;
use crate::partition::Log;
use crate::sync::atomic::Ordering;
use crate::topic::{TopicInner, upkeep};

/// The compaction that is going on.
#[derive(Debug, Default)]
pub(super) struct CleanerState {
    current: Option<(Arc<Log>, Cleaning)>,
}

impl CleanerState {
    pub(super) fn stop(&mut self) {
        self.current = None;
    }
}

/// An error comes with the partition that it is of.
type Cleaned<T> = std::result::Result<T, (TopicPartition, Error)>;

impl StoreInner {
    /// The next step of the compaction that is going on, or the first of the one with the most to gain.
    pub(super) fn clean(&self, topics: &[Arc<TopicInner>], step: &mut Step) -> Cleaned<()> {
        if !step.may_compact {
            return Ok(());
        }
        // Somebody else is at it.
        let Some(mut state) = self.cleaner.try_lock() else { return Ok(()) };
        let state = &mut *state;
        let logs: Vec<Arc<Log>> =
            topics.iter().flat_map(|topic| topic.partitions.values()).map(|found| Arc::clone(&found.log)).collect();
        if state.current.is_none() {
            self.begin_cleaning(state, topics, &logs, step)?;
        }
        // A topic that is no longer to be compacted stays as it is.
        if let Some((log, cleaning)) = &state.current
            && (log.is_closed() || !log.settings().needs_key)
        {
            note_stopped(step, log, cleaning.counts());
            state.current = None;
        }
        let is_asked = |log: &Arc<Log>| logs.iter().any(|asked| Arc::ptr_eq(asked, log));
        // One partition at a time: what is to be compacted here has its turn once the other one is done.
        if state.current.as_ref().is_some_and(|(log, _)| !is_asked(log))
            && self.dirtiest(&logs, step.times.sure.ms)?.is_none()
        {
            return Ok(());
        }
        let Some((log, cleaning)) = &mut state.current else { return Ok(()) };
        cleaning.hold_from(self.lowest_reader(&log.id));
        let before = cleaning.counts();
        let stepped = cleaning.step(self.options.compaction_step_bytes);
        let after = cleaning.counts();
        let done = stepped.as_ref().map_or((0, false), |done| (done.read_bytes, done.is_done));
        let topic = self.topics.read().get(&log.id.topic).cloned();
        if let Some(topic) = &topic {
            note_stats(topic, done, before, after);
        }
        note_dropped(step, log, before, after);
        match stepped {
            Ok(done) => {
                step.report.compacted_bytes += done.read_bytes;
                if let Some(offset) = done.unknown_key {
                    let of = log.id.clone();
                    note_stopped(step, log, after);
                    log.compacts_without_index.store(true, Ordering::Release);
                    state.current = None;
                    let index = topic.as_ref().and_then(|topic| topic.index_of(of.partition.get()));
                    return index.map_or(Ok(()), |index| Err((of, index.distrust(offset))));
                }
                note_step(step, log, cleaning, done);
                if done.is_done {
                    step.report.compactions += 1;
                    step.report.tombstones_dropped += after.tombstones_dropped;
                    state.current = None;
                }
                Ok(())
            }
            Err(error) => {
                let of = log.id.clone();
                let is_over = log.is_closed();
                leave_unless_it_passes(log, &error);
                note_stopped(step, log, after);
                state.current = None;
                // A topic that was deleted meanwhile needs no compaction.
                if is_over { Ok(()) } else { Err((of, error)) }
            }
        }
    }

    fn begin_cleaning(
        &self,
        state: &mut CleanerState,
        topics: &[Arc<TopicInner>],
        logs: &[Arc<Log>],
        step: &mut Step,
    ) -> Cleaned<()> {
        let Some(log) = self.dirtiest(logs, step.times.sure.ms)? else { return Ok(()) };
        let may_use_index = !log.compacts_without_index.load(Ordering::Acquire);
        let topic = topics.iter().find(|topic| topic.name == log.id.topic && may_use_index);
        let index = topic.and_then(|topic| topic.index_of(log.id.partition.get()));
        let begun = upkeep::begin_cleaning(&log, index, step.times.sure, self.options.compaction_memory_bytes);
        let Some(cleaning) = begun.map_err(|error| (log.id.clone(), error))? else { return Ok(()) };
        step.note(|| UpkeepEvent::CompactionBegun {
            partition: log.id.clone(),
            from: cleaning.range().first_dirty.into(),
            to: cleaning.range().first_uncleanable.into(),
            bytes: cleaning.source_bytes(),
        });
        state.current = Some((log, cleaning));
        Ok(())
    }

    /// The partition that is worth most to compact now. One of which that cannot be told has failed: its error is returned
    /// once, and the others have their turn at the next step.
    fn dirtiest(&self, logs: &[Arc<Log>], now_ms: i64) -> Cleaned<Option<Arc<Log>>> {
        let mut best: Option<(f64, &Arc<Log>)> = None;
        for log in logs.iter().filter(|log| !log.is_closed() && !log.is_left_dirty.load(Ordering::Acquire)) {
            log.look_at_readers(|| self.lowest_reader(&log.id));
            match upkeep::dirtiness(log, now_ms) {
                Ok(Some(dirtiness)) if best.is_none_or(|(most, _)| dirtiness > most) => best = Some((dirtiness, log)),
                Ok(_) => {}
                Err(_) if log.is_closed() => {}
                Err(error) => {
                    leave_unless_it_passes(log, &error);
                    return Err((log.id.clone(), error));
                }
            }
        }
        Ok(best.map(|(_, log)| Arc::clone(log)))
    }
}

/// Want of room or of descriptors passes; anything else would come again.
fn leave_unless_it_passes(log: &Log, error: &Error) {
    if !log.is_closed() && !matches!(error, Error::NoSpace { .. } | Error::TooManyFiles { .. }) {
        log.is_left_dirty.store(true, Ordering::Release);
    }
}

fn note_stats(topic: &TopicInner, done: (u64, bool), before: CompactionCounts, after: CompactionCounts) {
    topic.upkept.note(|stats| {
        stats.compactions += u64::from(done.1);
        stats.compaction_read_bytes += done.0;
        stats.compaction_written_bytes += after.bytes_after - before.bytes_after;
        stats.records_compacted +=
            (after.records_before - before.records_before) - (after.records_after - before.records_after);
        stats.tombstones_dropped += after.tombstones_dropped - before.tombstones_dropped;
    });
}

fn note_dropped(step: &mut Step, log: &Log, before: CompactionCounts, after: CompactionCounts) {
    let tombstones = after.tombstones_dropped - before.tombstones_dropped;
    if tombstones > 0 {
        let floor = log.tombstone_floor().into();
        step.note(|| UpkeepEvent::TombstonesDropped { partition: log.id.clone(), tombstones, floor });
    }
}

fn note_step(step: &mut Step, log: &Log, cleaning: &Cleaning, done: cleaner::Step) {
    let (counts, read_bytes) = (cleaning.counts(), cleaning.read_bytes());
    let partition = || log.id.clone();
    if done.is_done {
        let clean_end = log.clean_end().into();
        step.note(|| UpkeepEvent::CompactionFinished { partition: partition(), clean_end, read_bytes, counts });
    } else {
        step.note(|| UpkeepEvent::CompactionProgressed { partition: partition(), read_bytes, counts });
    }
}

fn note_stopped(step: &mut Step, log: &Log, counts: CompactionCounts) {
    step.note(|| UpkeepEvent::CompactionStopped { partition: log.id.clone(), counts });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Record;
    use crate::store::{Store, Upkeep};
    use crate::topic::{CleanupPolicy, TopicConfig};

    #[test]
    fn an_index_that_lost_a_key_is_made_anew_and_costs_no_record() {
        let store =
            Store::builder().vfs(Arc::new(crate::io::MemoryVfs::new())).upkeep(Upkeep::Manual).open("/s").unwrap();
        let config = TopicConfig::default().cleanup_policy(CleanupPolicy::Compact).segment_bytes(600);
        let topic = store.create_topic("t", config.min_cleanable_dirty_ratio(0.0)).unwrap();
        let append = |from: usize, to: usize| {
            (from..to).for_each(|n| drop(topic.append(Record::keyed(format!("k{}", n % 5), format!("v{n}"))).unwrap()));
        };
        append(0, 100);
        topic.get("k0").unwrap().unwrap();
        let inner = Arc::clone(&store.inner.topics.read()[topic.name()]);
        let index = inner.index_of(0).unwrap();
        index.lose(b"k3");
        let errors: Vec<Error> = (0..100).filter_map(|_| store.tick().err()).collect();
        let [Error::Corrupt { path, what, .. }] = &errors[..] else { panic!("told once: {errors:?}") };
        assert!(path.ends_with("t-0/topiclog.keys") && what.contains("nothing is lost"), "{}", errors[0]);
        for (key, value) in [("k0", "v95"), ("k1", "v96"), ("k2", "v97"), ("k3", "v98"), ("k4", "v99")] {
            assert_eq!(topic.get(key).unwrap().unwrap().value(), Some(value.as_bytes()), "{key}");
        }
        // The round was made by the log instead, and the next ones are.
        let partition = topic.partition(0).unwrap();
        let clean_end = partition.clean_end();
        assert!(clean_end.get() > 0 && partition.read_from(0).count() < 50);
        append(100, 200);
        index.lose(b"k2");
        for _ in 0..100 {
            store.tick().unwrap();
        }
        assert!(partition.clean_end() > clean_end);
    }

    #[test]
    fn an_index_that_is_being_made_of_a_wrong_file_is_forgotten_as_well() {
        let vfs = Arc::new(crate::io::MemoryVfs::new());
        let open = || {
            let builder = Store::builder().vfs(Arc::clone(&vfs) as _).upkeep(Upkeep::Manual);
            builder.compaction_step_bytes(1).open("/s").unwrap()
        };
        let store = open();
        let config = TopicConfig::default().cleanup_policy(CleanupPolicy::Compact);
        let topic = store.create_topic("t", config).unwrap();
        (0..20).for_each(|n| drop(topic.append(Record::keyed(format!("k{n}"), "v")).unwrap()));
        topic.get("k0").unwrap().unwrap();
        store.inner.topics.read()[topic.name()].index_of(0).unwrap().lose(b"k3");
        store.close().unwrap();
        let store = open();
        store.tick().unwrap();
        let topic = store.topic("t").unwrap();
        let inner = Arc::clone(&store.inner.topics.read()[topic.name()]);
        let told = inner.index_of(0).unwrap().distrust(3);
        assert!(matches!(told, Error::Corrupt { .. }), "{told}");
        for key in ["k2", "k3"] {
            assert!(topic.get(key).unwrap().is_some(), "{key}");
        }
    }
}
