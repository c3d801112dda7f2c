//! The state of a simulated machine: what programs see, what the disk holds, and the changes in between in the order in
//! which they were made. It does not know which of them a crash keeps; `crash.rs` does.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use super::image::{Image, Node};
use super::plan::{Faults, OpKind};
use crate::clock::{Clock, Timestamp};
use crate::io::content::Content;
use crate::io::locks::LockTable;
use crate::io::tree::{DirectoryId, Entry, Names, Place, ROOT, Tree};
use crate::sync::Mutex;

/// A file, whatever its name is at the moment.
#[derive(Debug)]
pub(super) struct Inode {
    pub(super) number: u64,
    pub(super) state: Mutex<InodeState>,
}

pub(super) type File = Arc<Inode>;

#[derive(Debug, Default)]
pub(super) struct InodeState {
    /// What the disk holds.
    pub(super) durable: Content,
    /// What a read gives.
    pub(super) visible: Content,
    pub(super) modified_ms: Timestamp,
    /// Changes of this file whose sync failed: visible, perhaps on the disk, and never to be synced again.
    pub(super) in_limbo: usize,
    /// Live maps: from which process, and how far they reach.
    pub(super) maps: Vec<(Weak<()>, u64, u64)>,
    /// Live windows, in the same way.
    pub(super) windows: Vec<(Weak<()>, u64, u64)>,
    /// How many syncs failed for all handles open then, and the number of the last such error.
    pub(super) failed_syncs: (u64, i32),
}

/// A change that is visible and not yet durable.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    /// A sync of it failed.
    pub(super) limbo: bool,
    pub(super) change: Change,
}

#[derive(Clone, Debug)]
pub(super) enum Change {
    Write {
        file: File,
        position: u64,
        bytes: Arc<[u8]>,
    },
    Length {
        file: File,
        bytes: u64,
    },
    /// A name was given or, with `None`, taken away.
    Name {
        place: Place,
        entry: Option<Entry<File>>,
    },
    /// `source_synced`: only the directory that it left was synced, which alone changes nothing.
    Rename {
        source: Place,
        target: Place,
        entry: Entry<File>,
        source_synced: bool,
    },
}

impl Change {
    /// The file whose data it changes.
    pub(super) fn file(&self) -> Option<&File> {
        match self {
            Change::Write { file, .. } | Change::Length { file, .. } => Some(file),
            Change::Name { .. } | Change::Rename { .. } => None,
        }
    }

    pub(super) fn apply(&self, content: &mut Content) {
        match self {
            Change::Write { position, bytes, .. } => content.write(bytes, *position),
            Change::Length { bytes, .. } => content.set_bytes(*bytes),
            Change::Name { .. } | Change::Rename { .. } => {}
        }
    }
}

/// One operation, as recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// What was done.
    pub op: OpKind,
    /// To which path, by the name under which it was opened.
    pub path: Arc<str>,
    /// Where in the file, or how long it became.
    pub position: u64,
    /// How many bytes.
    pub bytes: u64,
}

#[derive(Debug, Default)]
pub(super) struct Machine {
    pub(super) tree: Tree<File>,
    /// What the disk holds of each directory, also of those that have no name there yet.
    pub(super) durable: HashMap<DirectoryId, Arc<Names<File>>>,
    /// In the order in which they were made.
    pub(super) pending: Vec<Pending>,
    pub(super) operations: Vec<Operation>,
    /// Over all operations with their bytes.
    pub(super) trace_hash: u64,
    pub(super) stop_after: Option<u64>,
    pub(super) faults: Faults,
    pub(super) locks: LockTable,
    /// Grows when the process is killed; handles of an earlier one are dead.
    pub(super) process: u64,
    pub(super) bytes_max: Option<u64>,
    pub(super) descriptors_max: Option<usize>,
    pub(super) without_maps: bool,
    pub(super) without_populate: bool,
    /// Without one, a change has the number of the operation as its time.
    pub(super) clock: Option<Arc<dyn Clock>>,
    next_inode: u64,
}

impl Machine {
    pub(super) fn from_image(image: &Image) -> Self {
        let mut machine = Self::default();
        for (path, node) in &image.nodes {
            let path: &std::path::Path = str::as_ref(path);
            match node {
                Node::Directory => _ = machine.tree.create_directory(path),
                Node::File { content, modified_ms } => {
                    let file = machine.new_inode(content.clone(), *modified_ms);
                    if let Ok(place) = machine.tree.place(path) {
                        machine.tree.add_file(&place, file);
                    }
                }
            }
        }
        machine.durable = machine.tree.all().map(|(id, names)| (id, Arc::new(names.clone()))).collect();
        machine
    }

    pub(super) fn new_inode(&mut self, content: Content, modified_ms: Timestamp) -> File {
        self.next_inode += 1;
        let state = InodeState { durable: content.clone(), visible: content, modified_ms, ..InodeState::default() };
        Arc::new(Inode { number: self.next_inode, state: Mutex::new(state) })
    }

    pub(super) fn push(&mut self, change: Change) {
        self.pending.push(Pending { limbo: false, change });
    }

    /// The time of the next change.
    pub(super) fn now_ms(&self) -> Timestamp {
        self.clock.as_ref().map_or(self.operations.len() as Timestamp, |clock| clock.now_ms())
    }

    /// What a new process would see: everything that was written.
    pub(super) fn visible_image(&self) -> Image {
        let mut image = Image::new();
        let names = |id| self.tree.names(id);
        let content = |file: &File| {
            let state = file.state.lock();
            (state.visible.clone(), state.modified_ms)
        };
        fill(&mut image, &mut String::new(), ROOT, &names, &content);
        image
    }

    /// The sum of the lengths of all files that have a name.
    pub(super) fn bytes_used(&self) -> u64 {
        let lengths = self.tree.all().flat_map(|(_, names)| names.values()).map(|entry| match entry {
            Entry::File(file) => file.state.lock().visible.bytes(),
            Entry::Directory(_) => 0,
        });
        lengths.fold(0, u64::saturating_add)
    }

    /// Makes the data of a file durable, except for what a failed sync gave up.
    pub(super) fn sync_file(&mut self, file: &File) {
        let mut state = file.state.lock();
        if state.in_limbo == 0 {
            state.durable = state.visible.clone();
        }
        let in_limbo = state.in_limbo > 0;
        self.pending.retain(|pending| {
            if pending.limbo || !pending.change.file().is_some_and(|other| Arc::ptr_eq(other, file)) {
                return true;
            }
            if in_limbo {
                pending.change.apply(&mut state.durable);
            }
            false
        });
    }

    /// Gives up what a failed sync did not write: it stays visible, and no later sync writes it.
    pub(super) fn give_up(&mut self, file: &File) {
        let mut state = file.state.lock();
        for pending in &mut self.pending {
            if !pending.limbo && pending.change.file().is_some_and(|other| Arc::ptr_eq(other, file)) {
                pending.limbo = true;
                state.in_limbo += 1;
            }
        }
    }

    /// The file reads as it is on the disk, and what was to be written is forgotten.
    pub(super) fn revert(&mut self, file: &File) {
        let mut state = file.state.lock();
        state.visible = state.durable.clone();
        state.in_limbo = 0;
        self.pending.retain(|pending| !pending.change.file().is_some_and(|other| Arc::ptr_eq(other, file)));
    }

    /// Reads everything from the disk anew: what a failed sync gave up is no longer seen.
    pub(super) fn drop_caches(&mut self) {
        let mut lost: Vec<File> = Vec::new();
        self.pending.retain(|pending| {
            if let Some(file) = pending.change.file().filter(|_| pending.limbo)
                && !lost.iter().any(|other| Arc::ptr_eq(other, file))
            {
                lost.push(Arc::clone(file));
            }
            !pending.limbo
        });
        for file in lost {
            let mut state = file.state.lock();
            state.visible = state.durable.clone();
            state.in_limbo = 0;
            for pending in &self.pending {
                if pending.change.file().is_some_and(|other| Arc::ptr_eq(other, &file)) {
                    pending.change.apply(&mut state.visible);
                }
            }
        }
    }

    /// Makes the names in a directory durable, and nothing else.
    pub(super) fn sync_directory(&mut self, directory: DirectoryId) {
        let durable = &mut self.durable;
        self.pending.retain_mut(|pending| match &mut pending.change {
            Change::Name { place, entry } if place.0 == directory => {
                set_name(durable, place, entry.as_ref());
                false
            }
            Change::Rename { source, target, entry, source_synced } => {
                if target.0 == directory {
                    set_name(durable, target, Some(entry));
                    if *source_synced || source.0 == directory {
                        remove_name_of(durable, source, entry);
                        return false;
                    }
                    pending.change = Change::Name { place: source.clone(), entry: None };
                } else if source.0 == directory {
                    *source_synced = true;
                }
                true
            }
            _ => true,
        });
    }
}

/// Changes a name in a copy of what the disk holds.
pub(super) fn set_name(
    directories: &mut HashMap<DirectoryId, Arc<Names<File>>>,
    place: &Place,
    entry: Option<&Entry<File>>,
) {
    let names = Arc::make_mut(directories.entry(place.0).or_default());
    match entry {
        Some(entry) => names.insert(place.1.clone(), entry.clone()),
        None => names.remove(&place.1),
    };
}

/// Takes a name away if it still leads to this entry.
pub(super) fn remove_name_of(
    directories: &mut HashMap<DirectoryId, Arc<Names<File>>>,
    place: &Place,
    entry: &Entry<File>,
) {
    let there = directories.get(&place.0).and_then(|names| names.get(&place.1));
    let same = match (there, entry) {
        (Some(Entry::File(one)), Entry::File(other)) => Arc::ptr_eq(one, other),
        (Some(Entry::Directory(one)), Entry::Directory(other)) => one == other,
        _ => false,
    };
    if same {
        set_name(directories, place, None);
    }
}

/// Adds a directory and all below it to an image.
pub(super) fn fill<'a>(
    image: &mut Image,
    prefix: &mut String,
    directory: DirectoryId,
    names: &impl Fn(DirectoryId) -> Option<&'a Names<File>>,
    content: &impl Fn(&File) -> (Content, Timestamp),
) {
    let before = prefix.len();
    for (name, entry) in names(directory).into_iter().flatten() {
        prefix.push_str(name);
        match entry {
            Entry::File(file) => {
                let (content, modified_ms) = content(file);
                image.nodes.insert(prefix.as_str().into(), Node::File { content, modified_ms });
            }
            Entry::Directory(id) => {
                image.nodes.insert(prefix.as_str().into(), Node::Directory);
                prefix.push('/');
                fill(image, prefix, *id, names, content);
            }
        }
        prefix.truncate(before);
    }
}
