//! Inodes: what the kernel or an open file refers to, by number and by name.
//!
//! A file's inode stands for one version of its object. While it is open, a version that appears elsewhere gets an
//! inode of its own (the old one loses its name and keeps its readers); local writes stay on the inode.
//! Pure: no call here waits or does I/O.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::backend::Stat;
use super::content::Content;
use super::error::FsError;
use super::names;

/// The root's number, given by the kernel.
pub(super) const ROOT: u64 = 1;

/// A version of an object.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Version {
    /// Ours: never given twice.
    pub(super) id: u64,
    pub(super) etag: Box<str>,
    pub(super) size: u64,
}

/// What an inode is.
#[derive(Debug)]
pub(super) enum Body {
    Directory(Directory),
    File(File),
}

/// A directory: real as long as keys lie below it, or as long as we made it or emptied it.
#[derive(Debug)]
pub(super) struct Directory {
    /// Stays although no key lies below: it was made, or emptied, here.
    pub(super) sticky: bool,
    /// When its existence was last seen.
    pub(super) checked: Option<Instant>,
}

/// A file.
#[derive(Debug)]
pub(super) struct File {
    /// What is at the key, as far as known; `None` when nothing was uploaded yet.
    pub(super) version: Option<Arc<Version>>,
    /// Bytes, local writes included.
    pub(super) size: u64,
    pub(super) modified_ms: u64,
    /// When the backend last said so.
    pub(super) checked: Option<Instant>,
    /// Open handles, and those that may write.
    pub(super) opens: u32,
    pub(super) writers: u32,
    /// There from the first open to the last close, and while something waits to be uploaded.
    pub(super) content: Option<Arc<Content>>,
    /// The version whose pages the kernel may keep.
    pub(super) paged: u64,
}

/// An inode.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) parent: u64,
    pub(super) name: Box<str>,
    /// Whether the name still leads here.
    pub(super) linked: bool,
    /// Look-ups that the kernel has not forgotten.
    pub(super) lookups: u64,
    pub(super) body: Body,
}

impl Node {
    pub(super) fn file(&self) -> Result<&File, FsError> {
        match &self.body {
            Body::File(file) => Ok(file),
            Body::Directory(_) => Err(FsError::IsDirectory),
        }
    }

    pub(super) fn file_mut(&mut self) -> Result<&mut File, FsError> {
        match &mut self.body {
            Body::File(file) => Ok(file),
            Body::Directory(_) => Err(FsError::IsDirectory),
        }
    }

    pub(super) fn is_directory(&self) -> bool {
        matches!(self.body, Body::Directory(_))
    }
}

impl File {
    /// Whether what is here is newer than what is at the key.
    pub(super) fn is_local(&self) -> bool {
        self.writers > 0 || self.content.as_ref().is_some_and(|content| content.is_staged())
    }
}

/// All inodes.
#[derive(Debug)]
pub(super) struct Tree {
    nodes: HashMap<u64, Node>,
    names: HashMap<(u64, Box<str>), u64>,
    /// What every key begins with.
    prefix: Box<str>,
    next_ino: u64,
    next_version: u64,
    /// How long a look-up is believed; `None` is for ever.
    ttl: Option<Duration>,
}

impl Tree {
    pub(super) fn new(prefix: &str, ttl: Option<Duration>) -> Self {
        let root = Node {
            parent: ROOT,
            name: "".into(),
            linked: true,
            lookups: 1,
            body: Body::Directory(Directory { sticky: true, checked: None }),
        };
        Self {
            nodes: HashMap::from([(ROOT, root)]),
            names: HashMap::new(),
            prefix: prefix.into(),
            next_ino: ROOT + 1,
            next_version: 1,
            ttl,
        }
    }

    pub(super) fn node(&self, ino: u64) -> Result<&Node, FsError> {
        self.nodes.get(&ino).ok_or(FsError::Stale)
    }

    pub(super) fn node_mut(&mut self, ino: u64) -> Result<&mut Node, FsError> {
        self.nodes.get_mut(&ino).ok_or(FsError::Stale)
    }

    pub(super) fn file_mut(&mut self, ino: u64) -> Result<&mut File, FsError> {
        self.node_mut(ino)?.file_mut()
    }

    pub(super) fn child(&self, parent: u64, name: &str) -> Option<u64> {
        self.names.get(&(parent, name.into())).copied()
    }

    /// Whether what was checked then may be believed now.
    pub(super) fn is_fresh(&self, checked: Option<Instant>, now: Instant) -> bool {
        match (checked, self.ttl) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(at), Some(ttl)) => now.saturating_duration_since(at) < ttl,
        }
    }

    /// What the keys below a directory begin with.
    pub(super) fn prefix_of(&self, ino: u64) -> Result<String, FsError> {
        if !self.node(ino)?.is_directory() {
            return Err(FsError::NotDirectory);
        }
        let mut path = self.path(ino)?;
        if ino != ROOT {
            path.push('/');
        }
        Ok(path)
    }

    /// A file's key; a directory's without its slash.
    pub(super) fn path(&self, ino: u64) -> Result<String, FsError> {
        let mut names = Vec::new();
        let mut at = ino;
        while at != ROOT {
            let node = self.node(at)?;
            names.push(&*node.name);
            at = node.parent;
        }
        let mut path = String::from(&*self.prefix);
        for (index, name) in names.iter().rev().enumerate() {
            if index > 0 {
                path.push('/');
            }
            path.push_str(name);
        }
        Ok(path)
    }

    /// The key that `name` in `parent` has.
    pub(super) fn key_in(&self, parent: u64, name: &str) -> Result<String, FsError> {
        if !self.node(parent)?.linked {
            return Err(FsError::NotFound);
        }
        names::join(&self.prefix_of(parent)?, name)
    }

    fn insert(&mut self, parent: u64, name: &str, body: Body) -> u64 {
        let ino = self.next_ino;
        self.next_ino += 1;
        self.nodes.insert(ino, Node { parent, name: name.into(), linked: true, lookups: 0, body });
        self.names.insert((parent, name.into()), ino);
        ino
    }

    /// A new version number for what `stat` shows.
    pub(super) fn version(&mut self, stat: &Stat) -> Arc<Version> {
        let id = self.next_version;
        self.next_version += 1;
        Arc::new(Version { id, etag: stat.etag.clone(), size: stat.size })
    }

    /// Takes in that a directory is at `name`.
    pub(super) fn see_directory(&mut self, parent: u64, name: &str, now: Instant) -> u64 {
        if let Some(ino) = self.child(parent, name) {
            if let Some(Node { body: Body::Directory(directory), .. }) = self.nodes.get_mut(&ino) {
                directory.checked = Some(now);
                return ino;
            }
            // What is being written here is not thrown away because somebody made keys below its name.
            if self.nodes.get(&ino).is_some_and(|node| node.file().is_ok_and(File::is_local)) {
                return ino;
            }
            self.unlink(parent, name);
        }
        self.insert(parent, name, Body::Directory(Directory { sticky: false, checked: Some(now) }))
    }

    /// Takes in that an object is at `name`. What is newer here stays.
    pub(super) fn see_file(&mut self, parent: u64, name: &str, stat: &Stat, now: Instant) -> u64 {
        if let Some(ino) = self.child(parent, name) {
            if self.refresh(ino, stat, now) {
                return ino;
            }
            self.unlink(parent, name);
        }
        let version = self.version(stat);
        self.insert(
            parent,
            name,
            Body::File(File {
                version: Some(version),
                size: stat.size,
                modified_ms: stat.modified_ms,
                checked: Some(now),
                opens: 0,
                writers: 0,
                content: None,
                paged: 0,
            }),
        )
    }

    /// Brings a file's inode up to date with `stat`; `false` when it stands for another version that is open.
    pub(super) fn refresh(&mut self, ino: u64, stat: &Stat, now: Instant) -> bool {
        let Ok(node) = self.node(ino) else { return false };
        let Ok(file) = node.file() else { return false };
        if file.is_local() {
            return true;
        }
        let is_same = file.version.as_ref().is_some_and(|version| version.etag == stat.etag);
        if !is_same && file.opens > 0 {
            return false;
        }
        let version = if is_same { None } else { Some(self.version(stat)) };
        if let Ok(file) = self.file_mut(ino) {
            file.checked = Some(now);
            file.modified_ms = stat.modified_ms;
            if version.is_some() {
                file.version = version;
                file.size = stat.size;
            }
        }
        true
    }

    /// A file that exists only here so far.
    pub(super) fn create_file(&mut self, parent: u64, name: &str, now_ms: u64) -> u64 {
        self.unlink(parent, name);
        self.insert(
            parent,
            name,
            Body::File(File {
                version: None,
                size: 0,
                modified_ms: now_ms,
                checked: None,
                opens: 0,
                writers: 0,
                content: None,
                paged: 0,
            }),
        )
    }

    /// Takes the name away; the inode stays as long as somebody refers to it.
    pub(super) fn unlink(&mut self, parent: u64, name: &str) {
        if let Some(ino) = self.names.remove(&(parent, name.into())) {
            if let Some(node) = self.nodes.get_mut(&ino) {
                node.linked = false;
            }
            self.drop_unused(ino);
        }
    }

    /// A directory that we made, or emptied, stays until it is removed.
    pub(super) fn keep_directory(&mut self, ino: u64) {
        if let Some(Node { body: Body::Directory(directory), .. }) = self.nodes.get_mut(&ino) {
            directory.sticky = true;
        }
    }

    /// Gives an inode another name, over whatever had it.
    pub(super) fn rename(&mut self, ino: u64, parent: u64, name: &str) -> Result<(), FsError> {
        let node = self.node(ino)?;
        let old = (node.parent, node.name.clone());
        if self.names.get(&old) == Some(&ino) {
            self.names.remove(&old);
        }
        self.unlink(parent, name);
        let node = self.node_mut(ino)?;
        node.parent = parent;
        node.name = name.into();
        node.linked = true;
        self.names.insert((parent, name.into()), ino);
        Ok(())
    }

    /// Whether `ino` is `above`, or lies below it.
    pub(super) fn is_below(&self, ino: u64, above: u64) -> bool {
        let mut at = ino;
        loop {
            if at == above {
                return true;
            }
            match self.nodes.get(&at) {
                Some(node) if at != ROOT => at = node.parent,
                _ => return false,
            }
        }
    }

    /// Linked inodes below a directory that have something to upload.
    pub(super) fn local_below(&self, above: u64) -> Vec<u64> {
        let local = |node: &Node| node.linked && node.file().is_ok_and(File::is_local);
        self.nodes
            .iter()
            .filter(|(ino, node)| local(node) && self.is_below(**ino, above))
            .map(|(ino, _)| *ino)
            .collect()
    }

    /// Names in a directory that only we know, in order: files not uploaded yet, and directories that we keep.
    pub(super) fn local_names(&self, parent: u64) -> Vec<(Box<str>, u64)> {
        let is_ours = |node: &Node| match &node.body {
            Body::File(file) => file.version.is_none(),
            Body::Directory(directory) => directory.sticky,
        };
        let mut names: Vec<_> = self
            .nodes
            .iter()
            .filter(|(ino, node)| **ino != ROOT && node.parent == parent && node.linked && is_ours(node))
            .map(|(ino, node)| (node.name.clone(), *ino))
            .collect();
        names.sort();
        names
    }

    /// Counts a look-up that the kernel was told of.
    pub(super) fn looked_up(&mut self, ino: u64) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.lookups += 1;
        }
    }

    /// The kernel forgets look-ups.
    pub(super) fn forget(&mut self, ino: u64, lookups: u64) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.lookups = node.lookups.saturating_sub(lookups);
            self.drop_unused(ino);
        }
    }

    /// Removes an inode that nobody refers to. A kept directory is remembered as long as its name leads to it.
    pub(super) fn drop_unused(&mut self, ino: u64) {
        let Some(node) = self.nodes.get(&ino) else { return };
        let is_needed = match &node.body {
            Body::Directory(directory) => directory.sticky && node.linked,
            Body::File(file) => {
                file.opens > 0 || file.content.as_ref().is_some_and(|content| content.is_staged())
            }
        };
        if ino == ROOT || node.lookups > 0 || is_needed {
            return;
        }
        let name = (node.parent, node.name.clone());
        if self.names.get(&name) == Some(&ino) {
            self.names.remove(&name);
        }
        self.nodes.remove(&ino);
    }

    /// How many inodes there are.
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Every file that has something to upload.
    pub(super) fn all_local(&self) -> Vec<u64> {
        self.nodes
            .iter()
            .filter(|(_, node)| {
                node.file().is_ok_and(|file| file.content.as_ref().is_some_and(|content| content.is_staged()))
            })
            .map(|(ino, _)| *ino)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(etag: &str, size: u64) -> Stat {
        Stat { size, etag: etag.into(), modified_ms: 1, cid: None }
    }

    #[test]
    fn a_version_that_appears_while_the_file_is_open_gets_an_inode_of_its_own() {
        let mut tree = Tree::new("p/", None);
        let now = Instant::now();
        let first = tree.see_file(ROOT, "a", &stat("1", 10), now);
        tree.looked_up(first);
        assert_eq!(tree.see_file(ROOT, "a", &stat("2", 20), now), first, "closed: brought up to date");
        tree.file_mut(first).expect("file").opens = 1;
        let second = tree.see_file(ROOT, "a", &stat("3", 30), now);
        assert_ne!(second, first);
        assert_eq!(tree.node(first).expect("kept").file().expect("file").size, 20);
        assert_eq!(tree.child(ROOT, "a"), Some(second));
        assert_eq!(tree.path(second).expect("path"), "p/a");
    }

    #[test]
    fn what_nobody_refers_to_is_forgotten() {
        let mut tree = Tree::new("", None);
        let now = Instant::now();
        for index in 0..1000 {
            let ino = tree.see_file(ROOT, &index.to_string(), &stat("1", 1), now);
            tree.looked_up(ino);
            tree.looked_up(ino);
            tree.forget(ino, 1);
            assert!(tree.node(ino).is_ok());
            tree.forget(ino, 1);
        }
        assert_eq!((tree.len(), tree.names.len()), (1, 0));
    }

    #[test]
    fn paths_follow_a_renamed_directory() {
        let mut tree = Tree::new("", None);
        let now = Instant::now();
        let directory = tree.see_directory(ROOT, "d", now);
        tree.looked_up(directory);
        let file = tree.see_file(directory, "f", &stat("1", 1), now);
        tree.rename(directory, ROOT, "e").expect("rename");
        assert_eq!(tree.path(file).expect("path"), "e/f");
        assert_eq!(tree.prefix_of(directory).expect("prefix"), "e/");
        assert!(tree.is_below(file, directory) && !tree.is_below(directory, file));
    }
}
