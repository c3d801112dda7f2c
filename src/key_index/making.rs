//! The making of a key index: from its file and what was appended since, or from the whole log; at once, or in steps.
//!
//! A look-up that needs the index makes it at once. After an open upkeep makes it in steps of a bounded size, so that a look-up
//! finds it there: first the file is read, then the log up to its end, both as they are, while appends and compaction go on.
//! Only the last step has appends put their keys into the queue, and reads what came in until then. A look-up that comes before
//! that finishes what was begun.
//!
//! What is known at some point of it: each record below the offset that the reading has come to, and that is not superseded by
//! a newer one that is still to come, is in the table. Compaction takes superseded records away and moves none, so that this
//! holds whatever is exchanged in between; positions follow as they always do ([`places`](super::places)).

use std::collections::VecDeque;

use super::feed::{SomeRead, Taken};
use super::places::Places;
use super::snapshot::{self, Load, Loaded, Loader};
use super::table::Table;
use super::{KeyIndex, Ready, State};
use crate::error::{Error, Result};
use crate::partition::key_queue::HashKey;
use crate::sync::atomic::Ordering;

/// An index that is being made.
#[derive(Debug)]
pub(super) struct Making {
    stage: Stage,
    /// Somebody has used it before, as there was a file, or wants it now.
    is_used: bool,
}

#[derive(Debug)]
enum Stage {
    /// Reads the file; so many bytes of memory are counted for it.
    Load(Box<Loader>, usize),
    /// Reads the log from this offset on.
    Read(Box<Ready>, i64),
    /// Taken apart.
    Over,
}

/// What a step of the making came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Made {
    /// There is more to do.
    More,
    /// The index is there.
    Ready,
    /// It would take too much memory.
    NoRoom,
    /// More was appended meanwhile than it can follow: from the beginning.
    Outrun,
    /// Of this log there can be none, and nobody is known to want one.
    PutOff,
}

/// How many bytes may be read, and how many were. What is read is read whole, so that the last of it may be more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReadBudget {
    bytes_max: u64,
    read: u64,
}

impl ReadBudget {
    pub(crate) fn of(bytes_max: u64) -> Self {
        Self { bytes_max, read: 0 }
    }

    pub(super) fn unlimited() -> Self {
        Self::of(u64::MAX)
    }

    pub(super) fn take(&mut self, bytes: u64) {
        self.read = self.read.saturating_add(bytes);
    }

    pub(super) fn left(&self) -> u64 {
        self.bytes_max.saturating_sub(self.read)
    }

    pub(crate) fn is_spent(&self) -> bool {
        self.left() == 0
    }

    /// Bytes that were read.
    pub(crate) fn read(&self) -> u64 {
        self.read
    }
}

impl Making {
    /// Bytes that are counted in the budget.
    pub(super) fn counted(&self) -> usize {
        match &self.stage {
            Stage::Load(_, counted) => *counted,
            Stage::Read(ready, _) => ready.counted,
            Stage::Over => 0,
        }
    }
}

impl KeyIndex {
    /// Upkeep is to make the index, if it is not there.
    pub(crate) fn expect_use(&self) {
        self.is_expected.store(true, Ordering::Relaxed);
    }

    /// Upkeep is to make the index for expiry, unless it has failed to: it would fail at each step.
    pub(crate) fn expect_expiry(&self) {
        if !self.is_left.load(Ordering::Relaxed) {
            self.expect_use();
        }
    }

    /// Whether a look-up would not have to read the log first. `None` while one is under way: it may be reading.
    pub(super) fn is_caught_up(&self) -> Option<bool> {
        Some(match &*self.state.try_lock()? {
            State::Unused | State::Making(_) => false,
            State::Ready(ready) => !self.is_behind(ready),
            State::TooLarge => true,
        })
    }

    /// Makes some of the index, if its use is expected, as long as the budget lasts. An index that nobody is
    /// known to have used gets no more than half of the memory that there is for all.
    ///
    /// What fails is told once; from then on it is left to whoever looks a key up.
    pub(crate) fn make_some(&self, budget: &mut ReadBudget) -> Result<()> {
        if budget.is_spent() || !self.is_expected.load(Ordering::Relaxed) || self.log.is_closed() {
            return Ok(());
        }
        // A look-up is at it.
        let Some(mut state) = self.state.try_lock() else { return Ok(()) };
        let made = match &*state {
            State::Ready(_) | State::TooLarge => Ok(Made::Ready),
            State::Making(_) => self.make(&mut state, budget, false),
            State::Unused => match self.is_wanted() {
                Ok(true) => self.make(&mut state, budget, false),
                Ok(false) => Ok(Made::Ready),
                Err(error) => Err(error),
            },
        };
        if let State::Making(making) = &*state
            && !making.is_used
            && self.budget.taken() > self.budget.bytes_max / 2
        {
            self.budget.exchange(making.counted(), 0);
            *state = State::Unused;
            self.is_expected.store(false, Ordering::Relaxed);
        }
        let goes_on = match &made {
            Ok(made) => matches!(made, Made::More | Made::Outrun),
            // Retention has passed by, or there are no descriptors just now.
            Err(error) => matches!(error, Error::OffsetOutOfRange { .. } | Error::TooManyFiles { .. }),
        };
        if !goes_on {
            self.is_expected.store(false, Ordering::Relaxed);
            self.is_left.fetch_or(made.is_err(), Ordering::Relaxed);
        }
        match made {
            Err(Error::OffsetOutOfRange { .. }) => Ok(()),
            made => made.map(drop),
        }
    }

    /// There is a file, keys are to be ended for their age, or it is the log of a table. Topics with names like Kafka's own
    /// (`__consumer_offsets`) are read by whoever keeps them.
    fn is_wanted(&self) -> Result<bool> {
        if self.budget.bytes_max == 0 {
            return Ok(false);
        }
        let settings = self.log.settings();
        let is_table = settings.needs_key && !self.log.id.topic.as_str().starts_with("__");
        Ok(is_table || settings.compaction.expire_after_ms >= 0 || snapshot::exists(&self.log)?)
    }

    /// Goes on with the making of an index, from its begin if nobody has begun, as long as the budget lasts. If nobody has used
    /// it, nor asks for it now, and it has no room, it stays unmade until somebody does.
    pub(super) fn make(&self, state: &mut State, budget: &mut ReadBudget, is_asked: bool) -> Result<Made> {
        let mut making = match std::mem::take(state) {
            State::Making(making) => making,
            State::Unused => Box::new(self.begin()?),
            there => {
                *state = there;
                return Ok(Made::Ready);
            }
        };
        making.is_used |= is_asked;
        let is_used = making.is_used;
        let made = self.go_on(&mut making, budget);
        match (&made, &mut making.stage) {
            (Ok(Made::More), _) => *state = State::Making(making),
            (Ok(Made::Ready), stage) => {
                if let Stage::Read(ready, _) = std::mem::replace(stage, Stage::Over) {
                    self.notices.lock().made = Some((ready.table.len(), ready.counted));
                    *state = State::Ready(ready);
                }
            }
            (Ok(Made::NoRoom), _) if making.is_used => {
                *state = State::Making(making);
                self.give_up(state);
            }
            (Ok(_) | Err(_), _) => drop(self.budget.exchange(making.counted(), 0)),
        }
        match made {
            // A batch that becomes too large in memory, a codec that is not built in: whoever asks gets the error.
            Err(Error::Invalid { .. } | Error::Unsupported { .. }) if !is_used => Ok(Made::PutOff),
            made => made,
        }
    }

    fn begin(&self) -> Result<Making> {
        let fits = |bytes: usize| self.budget.taken().saturating_add(bytes) <= self.budget.bytes_max;
        let loader = Loader::begin(&self.log, fits)?;
        let expires = self.log.settings().compaction.expire_after_ms >= 0;
        let is_used = expires || loader.is_some() || snapshot::exists(&self.log)?;
        let counted = loader.as_ref().map_or(0, Loader::memory_bytes);
        let stage = match loader.filter(|_| self.budget.exchange(0, counted)) {
            Some(loader) => Stage::Load(Box::new(loader), counted),
            None => self.read_from_start()?,
        };
        Ok(Making { stage, is_used })
    }

    fn read_from_start(&self) -> Result<Stage> {
        // Before anything is read: what is exchanged from here on is noticed.
        let places = Places::of_log(&self.log.snapshot());
        let start = self.log.log_start();
        let ready = filling(snapshot::new_secret()?, Table::new(start), places, -1);
        Ok(Stage::Read(Box::new(ready), start))
    }

    fn go_on(&self, making: &mut Making, budget: &mut ReadBudget) -> Result<Made> {
        loop {
            match &mut making.stage {
                Stage::Load(loader, counted) => {
                    let next = match loader.step(&self.log, budget)? {
                        Load::More => return Ok(Made::More),
                        Load::Whole(loaded) => self.behind(loaded, *counted),
                        Load::Void => {
                            self.budget.exchange(std::mem::take(counted), 0);
                            self.read_from_start()?
                        }
                    };
                    making.stage = next;
                }
                Stage::Read(ready, next) => {
                    let end = self.log.end_offset();
                    if !self.count(ready, 0) {
                        return Ok(Made::NoRoom);
                    }
                    ready.places.follow(&mut ready.table, &self.log.snapshot(), self.log.log_start());
                    match self.read_some(ready, (*next, end), None, budget)? {
                        SomeRead::NoRoom => return Ok(Made::NoRoom),
                        SomeRead::UpTo(offset) => {
                            *next = offset;
                            return Ok(Made::More);
                        }
                        SomeRead::All => return self.catch_up(ready, (*next).max(end)),
                    }
                }
                Stage::Over => return Ok(Made::Ready),
            }
        }
    }

    /// From a file, and then from the log behind it.
    fn behind(&self, Loaded { secret, table, position, checks }: Loaded, counted: usize) -> Stage {
        let places = Places::of_file(&self.log.snapshot(), &checks);
        let ready = Ready { counted, ..filling(secret, table, places, position) };
        Stage::Read(Box::new(ready), position)
    }

    /// The last step: from here on appends put their keys into the queue, and what came in before is read.
    fn catch_up(&self, ready: &mut Ready, from: i64) -> Result<Made> {
        let end = self.log.start_key_queue(ready.secret, ready.table.base());
        let taken = match self.read_some(ready, (from, end), None, &mut ReadBudget::unlimited()) {
            Ok(SomeRead::NoRoom) => Ok(Taken::NoRoom),
            Ok(_) => self.take_over(ready, &mut ReadBudget::unlimited()),
            Err(error) => Err(error),
        };
        match taken {
            // What some of it was left for is noted in the queue.
            Ok(Taken::All(..) | Taken::Some) => return Ok(Made::Ready),
            Ok(Taken::Outrun) => return Ok(Made::Outrun),
            Ok(Taken::NoRoom) | Err(_) => self.log.key_queue.stop(),
        }
        taken.map(|_| Made::NoRoom)
    }
}

/// An index as far as its table goes.
fn filling(secret: HashKey, table: Table, places: Places, saved: i64) -> Ready {
    let unresolved = VecDeque::new();
    Ready {
        secret,
        table,
        unresolved,
        crowded: Vec::new(),
        left_until: None,
        places,
        undecided_from: None,
        counted: 0,
        saved,
        counts: None,
    }
}
