//! Which disks a power cut can leave: every rule is a way of choosing, among the changes that were not synced, those that
//! reached the disk.
//!
//! The choices are listed first and are small; `moment.rs` makes an image from one when it is asked for.

use std::collections::{BTreeSet, HashSet};
use std::fmt;

use super::image::Image;
use super::machine::{Change, Machine};
use super::moment::Moment;
use crate::io::content::mix;
use crate::io::tree::Entry;

/// By which rule a crash state came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CrashRule {
    /// Nothing was kept that was not synced.
    Nothing,
    /// Everything was kept, as after a kill.
    Everything,
    /// The first so many changes were kept, over all files and directories.
    Prefix,
    /// As `Prefix`, and the last write was kept in part.
    Torn,
    /// Blocks of the files were kept in any combination.
    Reorder,
    /// Names were kept in any combination; a rename may also leave both.
    Names,
    /// Files became longer, and what they became longer by is not what was written.
    Length,
    /// Some files were kept as they are now, the others as they were when last synced.
    AcrossFiles,
}

/// Which crash states are listed, and how many where there are too many.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CrashProfile {
    /// The rules that are used.
    pub rules: BTreeSet<CrashRule>,
    /// What the choices are drawn from where not all are listed.
    pub seed: u64,
    /// How many are drawn there.
    pub random: usize,
    /// Up to so many prefixes are listed, else the first, the last and some between.
    pub prefixes_max: usize,
    /// Of the last so many prefixes, the last write is torn as well.
    pub torn_prefixes: usize,
    /// At so many sectors a write is torn at most.
    pub cuts_max: usize,
    /// Of up to so many blocks all subsets are listed, else all but one, one alone, the halves and some drawn ones. The same
    /// for files, of which all subsets are listed up to six.
    pub subsets_of_blocks_max: usize,
    /// The same for names.
    pub subsets_of_names_max: usize,
}

impl CrashProfile {
    /// All that POSIX allows.
    pub fn strict() -> Self {
        use CrashRule::*;
        Self {
            rules: BTreeSet::from([Nothing, Everything, Prefix, Torn, Reorder, Names, Length, AcrossFiles]),
            seed: 0,
            random: 32,
            prefixes_max: 256,
            torn_prefixes: 4,
            cuts_max: 32,
            subsets_of_blocks_max: 10,
            subsets_of_names_max: 8,
        }
    }

    /// A file system that keeps changes in their order, as ext4 nearly does: prefixes and torn writes only.
    pub fn ordered() -> Self {
        use CrashRule::*;
        Self { rules: BTreeSet::from([Nothing, Everything, Prefix, Torn]), ..Self::strict() }
    }

    /// The process dies and the machine does not.
    pub fn kill_only() -> Self {
        Self { rules: BTreeSet::from([CrashRule::Everything]), ..Self::strict() }
    }
}

/// One disk that a power cut could leave.
#[derive(Clone, Debug)]
pub struct CrashState {
    /// By which rule.
    pub rule: CrashRule,
    /// What the disk holds.
    pub image: Image,
    /// The hash of the image.
    pub hash: u64,
    choice: Choice,
}

impl fmt::Display for CrashState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?}", self.rule, self.choice)
    }
}

/// The crash states of one moment; each image comes once.
#[derive(Debug)]
pub struct CrashStates {
    moment: Moment,
    choices: std::vec::IntoIter<(CrashRule, Choice)>,
    seen: HashSet<u64>,
}

impl CrashStates {
    pub(super) fn new(machine: &Machine, profile: &CrashProfile) -> Self {
        let moment = Moment::of(machine);
        let choices = moment.choices(profile).into_iter();
        Self { moment, choices, seen: HashSet::new() }
    }
}

impl Iterator for CrashStates {
    type Item = CrashState;

    fn next(&mut self) -> Option<CrashState> {
        loop {
            let (rule, choice) = self.choices.next()?;
            let image = self.moment.image(&choice);
            let hash = image.hash();
            if self.seen.insert(hash) {
                return Some(CrashState { rule, image, hash, choice });
            }
        }
    }
}

/// What is certain to be on the disk.
pub(super) fn durable_image(machine: &Machine) -> Image {
    Moment::of(machine).image(&Choice::Prefix { kept: 0, tear: None })
}

/// What was kept of the changes that were not synced.
#[derive(Clone, Debug)]
pub(super) enum Choice {
    /// The first so many; of the last one, a write, only a part.
    Prefix { kept: usize, tear: Option<Tear> },
    /// These blocks, all lengths, all names.
    Blocks { kept: Vec<bool>, lost: Filler },
    /// These names, and all data or none.
    Names { fates: Vec<Fate>, data: bool },
    /// All, but one file (or each) only became longer.
    Length { file: Option<u64>, filler: Filler },
    /// These files, and all names.
    Files { kept: BTreeSet<u64> },
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Tear {
    /// So many bytes of the write arrived.
    pub(super) bytes: usize,
    pub(super) rest: Filler,
}

/// What stands where data did not arrive and the length did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filler {
    /// Nothing: the file is not longer than what arrived.
    Absent,
    /// What was there before, and zeros where nothing was.
    Zero,
    /// What was there before, and older data of the same file where nothing was.
    Stale,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Old,
    New,
    /// Of a rename: the new name is there and the old one too.
    Both,
}

/// Blocks of this size reach the disk whole.
pub(super) const SECTOR_BYTES: u64 = 512;
pub(super) const PAGE_BYTES: u64 = 4096;
/// Files up to this length are looked at by sector.
pub(super) const SMALL_FILE_BYTES: u64 = 8192;

impl Moment {
    fn choices(&self, profile: &CrashProfile) -> Vec<(CrashRule, Choice)> {
        let mut choices = Vec::new();
        for rule in &profile.rules {
            let of_rule = match rule {
                CrashRule::Nothing => vec![Choice::Prefix { kept: 0, tear: None }],
                CrashRule::Everything => vec![Choice::Prefix { kept: self.pending.len(), tear: None }],
                CrashRule::Prefix => self.prefixes(profile),
                CrashRule::Torn => self.torn(profile),
                CrashRule::Reorder => self.reordered(profile),
                CrashRule::Names => self.names(profile),
                CrashRule::Length => self.lengths(),
                CrashRule::AcrossFiles => self.across_files(profile),
            };
            choices.extend(of_rule.into_iter().map(|choice| (*rule, choice)));
        }
        choices
    }

    fn prefixes(&self, profile: &CrashProfile) -> Vec<Choice> {
        let count = self.pending.len();
        let step = count.div_ceil(profile.prefixes_max.max(1)).max(1);
        // Where some are left out, the last ones are not: there is what was done just now.
        let last = count.saturating_sub(16);
        (1..count)
            .filter(|kept| *kept >= last || kept % step == 0)
            .map(|kept| Choice::Prefix { kept, tear: None })
            .collect()
    }

    fn torn(&self, profile: &CrashProfile) -> Vec<Choice> {
        let mut choices = Vec::new();
        let writes = (1..=self.pending.len()).rev().filter_map(|kept| match &self.pending.get(kept - 1)?.change {
            Change::Write { position, bytes, .. } => Some((kept, *position, bytes.len())),
            _ => None,
        });
        for (kept, position, length) in writes.take(profile.torn_prefixes) {
            for bytes in cuts(position, length, profile.cuts_max) {
                for rest in [Filler::Absent, Filler::Zero, Filler::Stale] {
                    choices.push(Choice::Prefix { kept, tear: Some(Tear { bytes, rest }) });
                }
            }
        }
        choices
    }

    fn reordered(&self, profile: &CrashProfile) -> Vec<Choice> {
        let subsets = subsets(self.blocks.len(), profile.subsets_of_blocks_max, profile);
        let mut choices = Vec::new();
        for kept in subsets {
            choices.push(Choice::Blocks { kept: kept.clone(), lost: Filler::Zero });
            // Where all subsets are many already, the variants of each are left to the other rules.
            if self.blocks.len() <= 6 {
                choices.push(Choice::Blocks { kept: kept.clone(), lost: Filler::Stale });
                choices.push(Choice::Blocks { kept, lost: Filler::Absent });
            }
        }
        choices
    }

    fn names(&self, profile: &CrashProfile) -> Vec<Choice> {
        let changes: Vec<_> = self.pending.iter().filter(|pending| pending.change.file().is_none()).collect();
        let mut fates: Vec<Vec<Fate>> = vec![Vec::new()];
        if changes.len() <= profile.subsets_of_names_max {
            for pending in &changes {
                let of_this: &[Fate] = match pending.change {
                    // A directory with two names is no disk that anybody has seen.
                    Change::Rename { entry: Entry::File(_), .. } => &[Fate::Old, Fate::New, Fate::Both],
                    _ => &[Fate::Old, Fate::New],
                };
                let extend = |before: Vec<Fate>| of_this.iter().map(move |fate| [&before[..], &[*fate]].concat());
                fates = fates.into_iter().flat_map(extend).collect();
            }
        } else {
            let fate = |kept: bool| if kept { Fate::New } else { Fate::Old };
            let some = subsets(changes.len(), 0, profile);
            fates = some.into_iter().map(|kept| kept.into_iter().map(fate).collect()).collect();
        }
        let with_data = |fates: Vec<Fate>| [true, false].map(|data| Choice::Names { fates: fates.clone(), data });
        fates.into_iter().flat_map(with_data).collect()
    }

    fn lengths(&self) -> Vec<Choice> {
        let files = self.changed.iter().map(|file| Some(*file)).chain([None]);
        files.flat_map(|file| [Filler::Zero, Filler::Stale].map(|filler| Choice::Length { file, filler })).collect()
    }

    fn across_files(&self, profile: &CrashProfile) -> Vec<Choice> {
        let most = profile.subsets_of_blocks_max.min(6);
        let kept = |kept: Vec<bool>| {
            let kept = self.changed.iter().zip(kept).filter(|(_, kept)| *kept).map(|(file, _)| *file).collect();
            Choice::Files { kept }
        };
        let mut choices: Vec<_> = subsets(self.changed.len(), most, profile).into_iter().map(kept).collect();
        if self.changed.len() > most {
            // All pairs: the newest of one with the oldest of another, the rest in between.
            let half = |number: usize| mix(profile.seed ^ number as u64).is_multiple_of(2);
            for newest in 0..self.changed.len().min(32) {
                for oldest in (0..self.changed.len().min(32)).filter(|oldest| *oldest != newest) {
                    let which = |file| file == newest || (file != oldest && half(file));
                    choices.push(kept((0..self.changed.len()).map(which).collect()));
                }
            }
        }
        choices
    }
}

/// Where a write can be torn: at sectors, and if there are too many of those, at the first and last of them and at pages.
fn cuts(position: u64, length: usize, cuts_max: usize) -> Vec<usize> {
    let boundaries = |size: u64| {
        let first = size - position % size;
        (first..length as u64).step_by(size as usize).map(|cut| cut as usize)
    };
    let sectors: Vec<usize> = boundaries(SECTOR_BYTES).collect();
    if sectors.len() <= cuts_max {
        return sectors;
    }
    let half = cuts_max / 2;
    let mut cuts: BTreeSet<usize> = sectors.iter().take(half).chain(sectors.iter().rev().take(half)).copied().collect();
    let pages: Vec<usize> = boundaries(PAGE_BYTES).collect();
    cuts.extend(pages.iter().step_by(pages.len().div_ceil(cuts_max.max(1)).max(1)));
    cuts.into_iter().collect()
}

/// All subsets of a few; else all but one, only one, the halves and some drawn by the seed.
fn subsets(count: usize, all_up_to: usize, profile: &CrashProfile) -> Vec<Vec<bool>> {
    if count <= all_up_to.min(20) {
        return (0..1_u32 << count).map(|set| (0..count).map(|n| set >> n & 1 == 1).collect()).collect();
    }
    let mut random = profile.seed;
    let mut draw = move || {
        random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(random)
    };
    let singles: Vec<usize> = if count <= 64 {
        (0..count).collect()
    } else {
        (0..profile.random).map(|_| (draw() % count as u64) as usize).chain([0, count - 1]).collect()
    };
    let mut subsets = Vec::new();
    for single in singles {
        subsets.push((0..count).map(|n| n != single).collect());
        subsets.push((0..count).map(|n| n == single).collect());
    }
    subsets.push((0..count).map(|n| n < count / 2).collect());
    subsets.push((0..count).map(|n| n >= count / 2).collect());
    subsets.extend((0..profile.random).map(|_| (0..count).map(|_| draw().is_multiple_of(2)).collect()));
    subsets
}
