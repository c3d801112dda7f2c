//! What a disk holds at one moment: [`Image`], cheap to copy, to change and to compare.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::clock::Timestamp;
use crate::io::content::{Content, mix};
use crate::io::tree::plain_names;
use crate::io::{EntryKind, OpenMode, Vfs, read_full_at, write_all_at};

/// All files and directories of a disk at one moment. Copies share what is in the files.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// By path without a leading `/`, so that a directory comes before what is in it.
    pub(super) nodes: BTreeMap<Arc<str>, Node>,
}

#[derive(Clone, Debug)]
pub(super) enum Node {
    Directory,
    File { content: Content, modified_ms: Timestamp },
}

impl Image {
    /// A disk with nothing on it.
    pub fn new() -> Self {
        Self::default()
    }

    /// The paths of all files, sorted, with their lengths in bytes.
    pub fn files(&self) -> impl Iterator<Item = (&str, u64)> {
        self.nodes.iter().filter_map(|(path, node)| match node {
            Node::File { content, .. } => Some((&**path, content.bytes())),
            Node::Directory => None,
        })
    }

    /// The paths of all directories but the root, sorted.
    pub fn directories(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().filter(|(_, node)| matches!(node, Node::Directory)).map(|(path, _)| &**path)
    }

    /// What is in a file, or `None` if there is no such file.
    pub fn read(&self, path: impl AsRef<Path>) -> Option<Vec<u8>> {
        match self.nodes.get(&*key(path.as_ref()).ok()?)? {
            Node::File { content, .. } => Some(content.to_vec()),
            Node::Directory => None,
        }
    }

    /// Puts a file there with this content, in place of what there was; directories on the way are made.
    ///
    /// # Errors
    /// If the path has `..` in it, or a file where it needs a directory.
    pub fn write(&mut self, path: impl AsRef<Path>, bytes: &[u8]) -> io::Result<()> {
        let path = key(path.as_ref())?;
        for (end, _) in path.match_indices('/') {
            match self.nodes.entry(path[..end].into()).or_insert(Node::Directory) {
                Node::Directory => {}
                Node::File { .. } => return Err(io::ErrorKind::NotADirectory.into()),
            }
        }
        match self.nodes.get(&*path) {
            Some(Node::Directory) => return Err(io::ErrorKind::IsADirectory.into()),
            None if path.is_empty() => return Err(io::ErrorKind::IsADirectory.into()),
            _ => {}
        }
        self.nodes.insert(path.into(), Node::File { content: Content::from_bytes(bytes), modified_ms: 0 });
        Ok(())
    }

    /// Overwrites part of a file, extending it with zeros if it is shorter; the rest stays shared with other copies.
    ///
    /// # Errors
    /// If there is no such file.
    pub fn patch(&mut self, path: impl AsRef<Path>, position: u64, bytes: &[u8]) -> io::Result<()> {
        let content = self.content(path.as_ref())?;
        Content::check_end(position, bytes.len() as u64)?;
        content.write(bytes, position);
        Ok(())
    }

    /// Cuts a file, or extends it with zeros.
    ///
    /// # Errors
    /// If there is no such file.
    pub fn set_len(&mut self, path: impl AsRef<Path>, bytes: u64) -> io::Result<()> {
        let content = self.content(path.as_ref())?;
        Content::check_end(0, bytes)?;
        content.set_bytes(bytes);
        Ok(())
    }

    fn content(&mut self, path: &Path) -> io::Result<&mut Content> {
        match self.nodes.get_mut(&*key(path)?) {
            Some(Node::File { content, .. }) => Ok(content),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Removes a file, or a directory with all that is in it. Says whether it was there.
    pub fn remove(&mut self, path: impl AsRef<Path>) -> bool {
        let Ok(path) = key(path.as_ref()) else { return false };
        let before = self.nodes.len();
        let below = format!("{path}/");
        self.nodes.retain(|name, _| **name != *path && !name.starts_with(&below));
        self.nodes.len() != before
    }

    /// A hash of all names and contents, not of times: equal disks have equal ones.
    pub fn hash(&self) -> u64 {
        let mut hash = 0;
        for (path, node) in &self.nodes {
            let of_node = match node {
                Node::Directory => 1,
                Node::File { content, .. } => content.hash(),
            };
            hash = mix(hash ^ mix(of_node ^ u64::from(crc32fast::hash(path.as_bytes())) << 32 ^ path.len() as u64));
        }
        hash
    }

    /// Writes everything below a directory of another file system, which must exist: what a failing test leaves behind.
    ///
    /// # Errors
    /// If that file system refuses, or something is there already.
    pub fn copy_to(&self, vfs: &dyn Vfs, root: &Path) -> io::Result<()> {
        for (path, node) in &self.nodes {
            let path = root.join(&**path);
            match node {
                Node::Directory => vfs.create_dir(&path)?,
                Node::File { content, modified_ms } => {
                    let file = vfs.open(&path, OpenMode::CreateNew)?;
                    let mut position = 0;
                    // In pieces, because a file may be longer than memory where nothing was written.
                    while position < content.bytes() {
                        let piece = content.range(position, 1 << 20);
                        write_all_at(&*file, &piece, position).map_err(|(_, error)| error)?;
                        position += piece.len() as u64;
                    }
                    file.set_modified(*modified_ms)?;
                }
            }
        }
        Ok(())
    }

    /// Takes everything below a directory of another file system; links and devices are left out.
    ///
    /// # Errors
    /// If that file system refuses.
    pub fn copy_from(vfs: &dyn Vfs, root: &Path) -> io::Result<Self> {
        let mut image = Self::new();
        image.add_directory(vfs, root, "")?;
        Ok(image)
    }

    fn add_directory(&mut self, vfs: &dyn Vfs, directory: &Path, prefix: &str) -> io::Result<()> {
        for entry in vfs.list(directory)? {
            let (path, name) = (directory.join(&entry.name), format!("{prefix}{}", entry.name));
            match entry.kind {
                EntryKind::Directory => {
                    self.add_directory(vfs, &path, &format!("{name}/"))?;
                    self.nodes.insert(name.into(), Node::Directory);
                }
                EntryKind::File => {
                    let file = vfs.open(&path, OpenMode::Read)?;
                    let mut content = Content::default();
                    let mut piece = vec![0; 1 << 20];
                    loop {
                        let read = read_full_at(&*file, &mut piece, content.bytes())?;
                        if read == 0 {
                            break;
                        }
                        content.write(&piece[..read], content.bytes());
                    }
                    self.nodes.insert(name.into(), Node::File { content, modified_ms: entry.modified_ms });
                }
                EntryKind::Other => {}
            }
        }
        Ok(())
    }
}

/// The path without what does not matter.
fn key(path: &Path) -> io::Result<String> {
    Ok(plain_names(path).collect::<io::Result<Vec<_>>>()?.join("/"))
}
