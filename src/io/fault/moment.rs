//! The state of a simulated machine at the moment when the power is cut, and the disk that a choice among the changes
//! that were not synced leaves. It does not know which choices there are; `crash.rs` lists them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use super::crash::{Choice, Fate, Filler, PAGE_BYTES, SECTOR_BYTES, SMALL_FILE_BYTES, Tear};
use super::image::Image;
use super::machine::{Change, File, Machine, Pending, fill, remove_name_of, set_name};
use crate::clock::Timestamp;
use crate::io::content::Content;
use crate::io::tree::{DirectoryId, Entry, Names, ROOT};

/// The state of the machine when the power was cut.
pub(super) struct Moment {
    names: HashMap<DirectoryId, Arc<Names<File>>>,
    pub(super) pending: Vec<Pending>,
    files: HashMap<u64, Frozen>,
    /// The blocks that were written and not synced: the file, where, how long.
    pub(super) blocks: Vec<(u64, u64, u64)>,
    /// The files with data that was not synced, in the order of their first change.
    pub(super) changed: Vec<u64>,
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
    pub(super) fn of(machine: &Machine) -> Self {
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

    pub(super) fn image(&self, choice: &Choice) -> Image {
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
        fill(&mut image, &mut String::new(), ROOT, &names_in, &content);
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
