//! Which disks a power cut can leave: every rule is a way of choosing, among the changes that were not synced, those that
//! reached the disk.
//!
//! The choices are listed first and are small; an image is made from one when it is asked for.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use super::image::Image;
use super::machine::{Change, File, Machine, Pending, fill, remove_name_of, set_name};
use crate::clock::Timestamp;
use crate::io::content::{Content, mix};
use crate::io::tree::{DirectoryId, Entry, Names, ROOT};

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
    /// Up to so many blocks, files or names, all subsets are listed.
    pub subsets_of_blocks_max: usize,
    /// As before, for names.
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
enum Choice {
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
struct Tear {
    /// So many bytes of the write arrived.
    bytes: usize,
    rest: Filler,
}

/// What stands where data did not arrive and the length did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Filler {
    /// Nothing: the file is not longer than what arrived.
    Absent,
    /// What was there before, and zeros where nothing was.
    Zero,
    /// What was there before, and older data of the same file where nothing was.
    Stale,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Old,
    New,
    /// Of a rename: the new name is there and the old one too.
    Both,
}

/// Blocks of this size reach the disk whole.
const SECTOR_BYTES: u64 = 512;
const PAGE_BYTES: u64 = 4096;
/// Files up to this length are looked at by sector.
const SMALL_FILE_BYTES: u64 = 8192;

/// The state of the machine when the power was cut.
struct Moment {
    names: HashMap<DirectoryId, Arc<Names<File>>>,
    pending: Vec<Pending>,
    files: HashMap<u64, Frozen>,
    /// The blocks that were written and not synced: the file, where, how long.
    blocks: Vec<(u64, u64, u64)>,
    /// The files with data that was not synced, in the order of their first change.
    changed: Vec<u64>,
}

/// A file at that moment.
struct Frozen {
    durable: Content,
    /// With all changes made, also those that a failed sync gave up.
    newest: Content,
    modified_ms: Timestamp,
}

impl fmt::Debug for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Moment").field("pending", &self.pending.len()).finish_non_exhaustive()
    }
}

impl Moment {
    fn of(machine: &Machine) -> Self {
        let mut moment = Self {
            names: machine.durable.clone(),
            pending: machine.pending.clone(),
            files: HashMap::new(),
            blocks: Vec::new(),
            changed: Vec::new(),
        };
        let named = machine.durable.values().flat_map(|names| names.values());
        for entry in named {
            if let Entry::File(file) = entry {
                moment.freeze(file);
            }
        }
        for pending in &machine.pending {
            match &pending.change {
                Change::Write { file, .. } | Change::Length { file, .. } => {
                    let frozen = moment.freeze(file);
                    pending.change.apply(&mut frozen.newest);
                    if !moment.changed.contains(&file.number) {
                        moment.changed.push(file.number);
                    }
                }
                Change::Name { entry: Some(Entry::File(file)), .. }
                | Change::Rename { entry: Entry::File(file), .. } => _ = moment.freeze(file),
                Change::Name { .. } | Change::Rename { .. } => {}
            }
        }
        moment.blocks = moment.changed_blocks();
        moment
    }

    fn freeze(&mut self, file: &File) -> &mut Frozen {
        self.files.entry(file.number).or_insert_with(|| {
            let state = file.state.lock();
            let (durable, modified_ms) = (state.durable.clone(), state.modified_ms);
            Frozen { newest: durable.clone(), durable, modified_ms }
        })
    }

    fn changed_blocks(&self) -> Vec<(u64, u64, u64)> {
        let mut blocks = BTreeSet::new();
        for pending in &self.pending {
            if let Change::Write { file, position, bytes } = &pending.change
                && let Some(frozen) = self.files.get(&file.number)
            {
                let size = if frozen.newest.bytes() <= SMALL_FILE_BYTES { SECTOR_BYTES } else { PAGE_BYTES };
                let end = (position + bytes.len() as u64).min(frozen.newest.bytes());
                for block in position / size..end.div_ceil(size) {
                    blocks.insert((file.number, block * size, size));
                }
            }
        }
        blocks.into_iter().collect()
    }

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
            let half = |number: usize| mix(profile.seed ^ number as u64) % 2 == 0;
            for newest in 0..self.changed.len().min(32) {
                for oldest in (0..self.changed.len().min(32)).filter(|oldest| *oldest != newest) {
                    let which = |file| file == newest || (file != oldest && half(file));
                    choices.push(kept((0..self.changed.len()).map(which).collect()));
                }
            }
        }
        choices
    }

    fn image(&self, choice: &Choice) -> Image {
        let mut names: HashMap<DirectoryId, Arc<Names<File>>> = HashMap::new();
        let mut data: HashMap<u64, Content> = HashMap::new();
        match choice {
            Choice::Prefix { kept, tear } => {
                names.clone_from(&self.names);
                let kept = self.pending.get(..*kept).unwrap_or(&self.pending);
                let (whole, torn) = match (tear, kept.split_last()) {
                    (Some(tear), Some((last, whole))) => (whole, Some((tear, last))),
                    _ => (kept, None),
                };
                for pending in whole {
                    self.keep(&pending.change, Fate::New, &mut names, &mut data);
                }
                if let Some((tear, last)) = torn {
                    self.tear(&last.change, tear, &mut data);
                }
            }
            Choice::Blocks { kept, lost } => {
                self.all_names(&mut names);
                self.keep_blocks(kept, *lost, &mut data);
            }
            Choice::Names { fates, data: with_data } => {
                names.clone_from(&self.names);
                let mut fates = fates.iter();
                for pending in &self.pending {
                    let fate = match pending.change.file() {
                        Some(_) if *with_data => Fate::New,
                        Some(_) => Fate::Old,
                        None => fates.next().copied().unwrap_or(Fate::Old),
                    };
                    self.keep(&pending.change, fate, &mut names, &mut data);
                }
            }
            Choice::Length { file, filler } => {
                self.all_names(&mut names);
                for number in &self.changed {
                    let Some(frozen) = self.files.get(number) else { continue };
                    let longer_only = file.is_none_or(|file| file == *number);
                    let content = if longer_only {
                        let mut content = frozen.durable.clone();
                        lengthen(&mut content, frozen.newest.bytes(), *filler, &frozen.newest);
                        content
                    } else {
                        frozen.newest.clone()
                    };
                    data.insert(*number, content);
                }
            }
            Choice::Files { kept } => {
                self.all_names(&mut names);
                for number in kept {
                    if let Some(frozen) = self.files.get(number) {
                        data.insert(*number, frozen.newest.clone());
                    }
                }
            }
        }
        let mut image = Image::new();
        let names_in = |directory| names.get(&directory).map(|names| &**names);
        let content = |file: &File| match self.files.get(&file.number) {
            Some(frozen) => (data.get(&file.number).unwrap_or(&frozen.durable).clone(), frozen.modified_ms),
            None => (Content::default(), 0),
        };
        fill(&mut image, "", ROOT, &names_in, &content);
        image
    }

    fn all_names(&self, names: &mut HashMap<DirectoryId, Arc<Names<File>>>) {
        names.clone_from(&self.names);
        let mut no_data = HashMap::new();
        for pending in self.pending.iter().filter(|pending| pending.change.file().is_none()) {
            self.keep(&pending.change, Fate::New, names, &mut no_data);
        }
    }

    fn content<'a>(&self, file: u64, data: &'a mut HashMap<u64, Content>) -> &'a mut Content {
        data.entry(file).or_insert_with(|| self.files.get(&file).map(|file| file.durable.clone()).unwrap_or_default())
    }

    fn keep(
        &self,
        change: &Change,
        fate: Fate,
        names: &mut HashMap<DirectoryId, Arc<Names<File>>>,
        data: &mut HashMap<u64, Content>,
    ) {
        if fate == Fate::Old {
            return;
        }
        match change {
            Change::Write { file, .. } | Change::Length { file, .. } => change.apply(self.content(file.number, data)),
            Change::Name { place, entry } => set_name(names, place, entry.as_ref()),
            Change::Rename { source, target, entry, source_synced } => {
                set_name(names, target, Some(entry));
                if fate == Fate::New && *source_synced {
                    // A later file of that name may be durable already.
                    remove_name_of(names, source, entry);
                } else if fate == Fate::New {
                    set_name(names, source, None);
                }
            }
        }
    }

    fn tear(&self, change: &Change, tear: &Tear, data: &mut HashMap<u64, Content>) {
        let Change::Write { file, position, bytes } = change else { return };
        let content = self.content(file.number, data);
        let before = content.clone();
        content.write(bytes.get(..tear.bytes).unwrap_or(bytes), *position);
        if tear.rest != Filler::Absent {
            lengthen(content, content.bytes().max(position + bytes.len() as u64), tear.rest, &before);
        }
    }

    fn keep_blocks(&self, kept: &[bool], lost: Filler, data: &mut HashMap<u64, Content>) {
        let mut arrived: BTreeMap<u64, Vec<(u64, u64)>> = BTreeMap::new();
        for ((file, position, bytes), _) in self.blocks.iter().zip(kept).filter(|(_, kept)| **kept) {
            arrived.entry(*file).or_default().push((*position, *bytes));
        }
        for number in &self.changed {
            let Some(frozen) = self.files.get(number) else { continue };
            let mut content = frozen.durable.clone();
            if lost == Filler::Absent {
                content.set_bytes(content.bytes().min(frozen.newest.bytes()));
            } else {
                lengthen(&mut content, frozen.newest.bytes(), lost, &frozen.durable);
            }
            for (position, bytes) in arrived.get(number).into_iter().flatten() {
                content.write(&frozen.newest.range(*position, *bytes), *position);
            }
            data.insert(*number, content);
        }
    }
}

/// Gives a file its new length; what it is longer by is zero, or older data of the file from its beginning, over and over,
/// so that sound pieces stand in wrong places.
fn lengthen(content: &mut Content, bytes: u64, filler: Filler, older: &Content) {
    let before = content.bytes();
    content.set_bytes(bytes);
    if filler != Filler::Stale || bytes <= before {
        return;
    }
    let mut pattern = older.range(0, 64 * 1024);
    if pattern.is_empty() {
        pattern = vec![0xa5; 64];
    }
    // What a file became longer by without data is never gigabytes in a test that means it.
    let longer = usize::try_from((bytes - before).min(16 << 20)).unwrap_or(0);
    let stale: Vec<u8> = pattern.into_iter().cycle().take(longer).collect();
    content.write(&stale, before);
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
    subsets.extend((0..profile.random).map(|_| (0..count).map(|_| draw() % 2 == 0).collect()));
    subsets
}
