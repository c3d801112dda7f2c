//! Directories that live in memory: names, and what they lead to. It knows neither what is in a file nor what is durable.
//!
//! Every change is one call with the rules of POSIX, and says what it did, so that a simulated disk can keep a journal.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, ErrorKind};
use std::path::{Component, Path};

/// A directory, whatever its name is at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct DirectoryId(pub(crate) u64);

/// The directory that has no name.
pub(crate) const ROOT: DirectoryId = DirectoryId(0);

/// What a name leads to.
#[derive(Clone, Debug)]
pub(crate) enum Entry<F> {
    File(F),
    Directory(DirectoryId),
}

/// The names in one directory.
pub(crate) type Names<F> = BTreeMap<String, Entry<F>>;

/// A tree of directories. `F` is a handle of a file.
#[derive(Clone, Debug)]
pub(crate) struct Tree<F> {
    directories: HashMap<DirectoryId, Names<F>>,
    next: u64,
}

/// A directory, and a name in it that may or may not exist.
pub(crate) type Place = (DirectoryId, String);

impl<F> Default for Tree<F> {
    fn default() -> Self {
        Self { directories: HashMap::from([(ROOT, BTreeMap::new())]), next: 1 }
    }
}

impl<F: Clone> Tree<F> {
    /// The names in a directory.
    pub(crate) fn names(&self, directory: DirectoryId) -> Option<&Names<F>> {
        self.directories.get(&directory)
    }

    /// All directories, in no particular order.
    pub(crate) fn all(&self) -> impl Iterator<Item = (DirectoryId, &Names<F>)> {
        self.directories.iter().map(|(id, names)| (*id, names))
    }

    /// The directory at a path. Relative paths start at the root.
    pub(crate) fn directory(&self, path: &Path) -> io::Result<DirectoryId> {
        let mut directory = ROOT;
        for name in plain_names(path) {
            directory = self.directory_in(directory, name?)?;
        }
        Ok(directory)
    }

    fn directory_in(&self, directory: DirectoryId, name: &str) -> io::Result<DirectoryId> {
        match self.directories.get(&directory).and_then(|names| names.get(name)) {
            Some(Entry::Directory(id)) => Ok(*id),
            Some(Entry::File(_)) => Err(ErrorKind::NotADirectory.into()),
            None => Err(ErrorKind::NotFound.into()),
        }
    }

    /// The directory in which a path's last name is looked up, and that name.
    pub(crate) fn place(&self, path: &Path) -> io::Result<Place> {
        let mut names = plain_names(path);
        let (mut directory, mut last) = (ROOT, names.next().ok_or(ErrorKind::InvalidInput)??);
        for name in names {
            directory = self.directory_in(directory, last)?;
            last = name?;
        }
        Ok((directory, last.to_owned()))
    }

    /// What a place holds.
    pub(crate) fn entry(&self, place: &Place) -> Option<&Entry<F>> {
        self.directories.get(&place.0)?.get(&place.1)
    }

    /// The file at a path.
    pub(crate) fn file(&self, path: &Path) -> io::Result<F> {
        match self.entry(&self.place(path)?) {
            Some(Entry::File(file)) => Ok(file.clone()),
            Some(Entry::Directory(_)) => Err(ErrorKind::IsADirectory.into()),
            None => Err(ErrorKind::NotFound.into()),
        }
    }

    /// Puts a file at a place that is empty.
    pub(crate) fn add_file(&mut self, place: &Place, file: F) {
        self.set(place, Some(Entry::File(file)));
    }

    /// Makes an empty directory.
    pub(crate) fn create_directory(&mut self, path: &Path) -> io::Result<(Place, DirectoryId)> {
        if plain_names(path).next().is_none() {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let place = self.place(path)?;
        if self.entry(&place).is_some() {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let id = DirectoryId(self.next);
        self.next += 1;
        self.directories.insert(id, BTreeMap::new());
        self.set(&place, Some(Entry::Directory(id)));
        Ok((place, id))
    }

    /// Renames; returns from where to where, and what moved. `None` if both are the same place.
    pub(crate) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<Option<(Place, Place, Entry<F>)>> {
        let (source, target) = (self.place(from)?, self.place(to)?);
        let moved = self.entry(&source).ok_or(ErrorKind::NotFound)?.clone();
        if source == target {
            return Ok(None);
        }
        match (&moved, self.entry(&target)) {
            (_, None) | (Entry::File(_), Some(Entry::File(_))) => {}
            (Entry::File(_), Some(Entry::Directory(_))) => return Err(ErrorKind::IsADirectory.into()),
            (Entry::Directory(_), Some(Entry::File(_))) => return Err(ErrorKind::NotADirectory.into()),
            (Entry::Directory(_), Some(Entry::Directory(id))) => self.check_empty(*id)?,
        }
        if let Entry::Directory(id) = moved
            && self.is_within(target.0, id)
        {
            return Err(io::Error::new(ErrorKind::InvalidInput, "a directory cannot move into itself"));
        }
        self.set(&source, None);
        self.set(&target, Some(moved.clone()));
        Ok(Some((source, target, moved)))
    }

    /// Takes the name of a file away.
    pub(crate) fn remove_file(&mut self, path: &Path) -> io::Result<(Place, F)> {
        let file = self.file(path)?;
        let place = self.place(path)?;
        self.set(&place, None);
        Ok((place, file))
    }

    /// Removes an empty directory.
    pub(crate) fn remove_directory(&mut self, path: &Path) -> io::Result<Place> {
        let id = self.directory(path)?;
        if id == ROOT {
            return Err(ErrorKind::PermissionDenied.into());
        }
        self.check_empty(id)?;
        let place = self.place(path)?;
        self.set(&place, None);
        self.directories.remove(&id);
        Ok(place)
    }

    fn check_empty(&self, directory: DirectoryId) -> io::Result<()> {
        match self.directories.get(&directory) {
            Some(names) if !names.is_empty() => Err(ErrorKind::DirectoryNotEmpty.into()),
            _ => Ok(()),
        }
    }

    /// Whether `inner` is `outer` or below it.
    fn is_within(&self, inner: DirectoryId, outer: DirectoryId) -> bool {
        inner == outer
            || self.directories.get(&outer).is_some_and(|names| {
                names.values().any(|entry| matches!(entry, Entry::Directory(id) if self.is_within(inner, *id)))
            })
    }

    fn set(&mut self, place: &Place, entry: Option<Entry<F>>) {
        if let Some(names) = self.directories.get_mut(&place.0) {
            match entry {
                Some(entry) => names.insert(place.1.clone(), entry),
                None => names.remove(&place.1),
            };
        }
    }
}

/// The names that a path is made of. `..` is refused: the crate never makes such a path.
pub(crate) fn plain_names(path: &Path) -> impl Iterator<Item = io::Result<&str>> {
    path.components().filter_map(|component| match component {
        Component::RootDir | Component::CurDir => None,
        Component::Normal(name) => Some(name.to_str().ok_or_else(|| refused("a name that is not UTF-8"))),
        Component::Prefix(_) | Component::ParentDir => Some(Err(refused("a path with `..` or a prefix"))),
    })
}

fn refused(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidInput, what)
}
