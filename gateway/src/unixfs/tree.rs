//! A tree of directories out of keys that come in the order of a listing.
//!
//! A directory is closed when the first key behind it comes, so memory holds one path of open directories with their
//! children: about 120 bytes a child of the widest.

use super::directory::{Child, DirectoryError, directory};
use super::node::Link;

/// Why keys make no tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TreeError {
    /// `a` and `a/b`, or `a//b`: no directory can hold both, or have a child without a name.
    #[error("the key {key} cannot be a file of a directory: {why}")]
    Key {
        /// Which.
        key: String,
        /// Why.
        why: &'static str,
    },
    /// A directory.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

/// Builds the tree.
#[derive(Debug)]
pub struct TreeBuilder {
    /// The root, and below it the directories that are open.
    open: Vec<Open>,
}

#[derive(Debug, Default)]
struct Open {
    name: String,
    children: Vec<Child>,
}

impl Default for TreeBuilder {
    fn default() -> Self {
        Self { open: vec![Open::default()] }
    }
}

impl TreeBuilder {
    /// An empty root.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next key, a file.
    pub fn file(&mut self, key: &str, link: &Link) -> Result<(), TreeError> {
        let (directories, name) = key.rsplit_once('/').map_or((None, key), |(path, name)| (Some(path), name));
        self.enter(key, directories)?;
        check_name(key, name)?;
        if let Some(open) = self.open.last_mut() {
            let child = Child { name: name.to_owned(), cid: link.cid, tree_size: link.tree_size };
            open.children.push(child);
        }
        Ok(())
    }

    /// Takes the next key, a directory's marker: it ends in `/`.
    pub fn directory(&mut self, key: &str) -> Result<(), TreeError> {
        self.enter(key, Some(key.trim_end_matches('/')))
    }

    /// Makes the directories of `path` the open ones.
    fn enter(&mut self, key: &str, path: Option<&str>) -> Result<(), TreeError> {
        let wanted: Vec<&str> = path.map(|path| path.split('/').collect()).unwrap_or_default();
        let open = self.open.iter().skip(1).map(|open| open.name.as_str());
        let same = open.zip(&wanted).take_while(|(open, wanted)| open == *wanted).count();
        while self.open.len() > same + 1 {
            self.close(key)?;
        }
        for name in &wanted[same..] {
            check_name(key, name)?;
            self.open.push(Open { name: (*name).to_owned(), children: Vec::new() });
        }
        Ok(())
    }

    fn close(&mut self, key: &str) -> Result<(), TreeError> {
        let Some(Open { name, children }) = self.open.pop() else { return Ok(()) };
        let Link { cid, tree_size, .. } = build(key, children)?;
        if let Some(parent) = self.open.last_mut() {
            parent.children.push(Child { name, cid, tree_size });
        }
        Ok(())
    }

    /// The root of the tree.
    pub fn finish(mut self) -> Result<Link, TreeError> {
        while self.open.len() > 1 {
            self.close("")?;
        }
        build("", self.open.pop().map(|root| root.children).unwrap_or_default())
    }
}

fn check_name(key: &str, name: &str) -> Result<(), TreeError> {
    if name.is_empty() {
        return Err(TreeError::Key { key: key.to_owned(), why: "a part of its path has no name" });
    }
    Ok(())
}

/// A directory, unless two children have one name: an object `a` beside objects below `a/`.
fn build(near: &str, mut children: Vec<Child>) -> Result<Link, TreeError> {
    children.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(pair) = children.windows(2).find(|pair| pair[0].name == pair[1].name) {
        let key = format!("{} (before {near})", pair[0].name);
        return Err(TreeError::Key { key, why: "an object and a directory have the same name" });
    }
    Ok(directory(children)?)
}

#[cfg(test)]
mod tests {
    use holdfast_protocol::Digest;

    use super::*;

    fn leaf() -> Link {
        Link { cid: Digest::of(b"x").raw_cid(), tree_size: 1, file_size: 1 }
    }

    #[test]
    fn what_no_directory_can_hold_is_refused_by_name() {
        let mut tree = TreeBuilder::new();
        assert!(matches!(tree.file("a//b", &leaf()), Err(TreeError::Key { .. })));
        let mut tree = TreeBuilder::new();
        tree.file("a", &leaf()).unwrap();
        tree.file("a.txt", &leaf()).unwrap();
        tree.file("a/b", &leaf()).unwrap();
        assert!(tree.finish().unwrap_err().to_string().contains("the same name"));
    }

    #[test]
    fn a_marker_adds_nothing_to_a_directory_that_has_files() {
        let build = |marker: bool| {
            let mut tree = TreeBuilder::new();
            if marker {
                tree.directory("d/").unwrap();
            }
            tree.file("d/f", &leaf()).unwrap();
            tree.finish().unwrap()
        };
        assert_eq!(build(true), build(false));
    }
}
