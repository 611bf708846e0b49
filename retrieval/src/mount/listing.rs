//! Directory streams: a page of the listing at a time, merged with the names that only we know yet.
//!
//! Memory is one page, however many files the directory has. Going back means listing again from the beginning.

use std::collections::VecDeque;

use tokio::time::Instant;

use super::backend::{ListRequest, Stat};
use super::error::FsError;
use super::files::{DirEntry, FileSystem, Kind};
use super::names;

/// Lines of a page: S3's own limit.
const PAGE: usize = 1000;
/// Offsets 0 and 1 are `.` and `..`.
const DOTS: u64 = 2;

#[derive(Debug)]
enum What {
    File(Stat),
    Directory,
    /// Not at any key yet.
    Here(u64),
}

/// A stream over one directory.
#[derive(Debug)]
pub(super) struct Lister {
    ino: u64,
    prefix: String,
    /// Names that only we know, with what they sort by, still to come.
    here: VecDeque<(String, u64)>,
    page: Vec<(Box<str>, What)>,
    /// The number of the page's first entry in the stream.
    first: u64,
    next: Option<String>,
    is_last: bool,
    /// File names that may still come again as directories: each begins the last key seen.
    open_names: Vec<String>,
}

impl Lister {
    /// Begins the stream again.
    fn rewind(&mut self, files: &FileSystem) -> Result<(), FsError> {
        let tree = files.tree();
        let here = tree.local_names(self.ino);
        let key = |(name, ino): (Box<str>, u64)| {
            let is_directory = tree.node(ino).is_ok_and(|node| node.is_directory());
            (if is_directory { format!("{name}/") } else { name.into() }, ino)
        };
        let mut here: Vec<_> = here.into_iter().map(key).collect();
        here.sort();
        *self = Self {
            ino: self.ino,
            prefix: tree.prefix_of(self.ino)?,
            here: here.into(),
            page: Vec::new(),
            first: 0,
            next: None,
            is_last: false,
            open_names: Vec::new(),
        };
        Ok(())
    }

    async fn turn_page(&mut self, files: &FileSystem) -> Result<(), FsError> {
        let (prefix, after) = (self.prefix.as_str(), self.next.as_deref());
        let page = files
            .patience
            .run(|_| files.backend.list(ListRequest { prefix, one_level: true, after, max: PAGE }))
            .await?;
        let mut lines: Vec<(String, What)> = Vec::with_capacity(page.objects.len() + page.prefixes.len());
        for object in page.objects {
            let name = object.key[self.prefix.len().min(object.key.len())..].to_owned();
            if names::is_visible(&name) {
                lines.push((name, What::File(object.stat)));
            }
        }
        for below in page.prefixes {
            let name = below[self.prefix.len().min(below.len())..].to_owned();
            if names::is_visible(name.trim_end_matches('/')) && name.matches('/').count() == 1 {
                lines.push((name, What::Directory));
            }
        }
        self.first += self.page.len() as u64;
        self.is_last = page.next.is_none();
        let until = if self.is_last { None } else { lines.iter().map(|(key, _)| key.clone()).max() };
        while let Some((key, _)) = self.here.front() {
            if until.as_ref().is_some_and(|until| key > until) || (!self.is_last && until.is_none()) {
                break;
            }
            if let Some((key, ino)) = self.here.pop_front()
                && !lines.iter().any(|(there, _)| *there == key)
            {
                lines.push((key, What::Here(ino)));
            }
        }
        lines.sort_by(|a, b| a.0.cmp(&b.0));
        self.page = Vec::with_capacity(lines.len());
        for (key, what) in lines {
            self.open_names.retain(|name| key.starts_with(name.as_str()));
            let name = key.trim_end_matches('/');
            if name.len() < key.len() {
                // An object of the same name came before: it is hidden by the directory, and listed once.
                if self.open_names.iter().any(|open| open == name) {
                    continue;
                }
            } else {
                self.open_names.push(key.clone());
            }
            self.page.push((name.into(), what));
        }
        self.next = page.next;
        Ok(())
    }

    /// Makes entry `index` the one at hand, if there is one.
    async fn seek(&mut self, files: &FileSystem, index: u64) -> Result<Option<usize>, FsError> {
        if index < self.first || (self.first == 0 && self.page.is_empty() && !self.is_last) {
            self.rewind(files)?;
        }
        loop {
            if index < self.first + self.page.len() as u64 {
                return Ok(usize::try_from(index - self.first).ok());
            }
            if self.is_last {
                return Ok(None);
            }
            self.turn_page(files).await?;
        }
    }
}

impl FileSystem {
    /// Opens a directory.
    pub fn open_directory(&self, ino: u64) -> Result<u64, FsError> {
        let prefix = self.tree().prefix_of(ino)?;
        self.insert_directory(Lister {
            ino,
            prefix,
            here: VecDeque::new(),
            page: Vec::new(),
            first: 0,
            next: None,
            is_last: false,
            open_names: Vec::new(),
        })
    }

    /// Gives entries from `offset` on to `sink` until it answers that it is full. With `plus`, each entry that fits
    /// counts as a look-up.
    pub async fn read_directory(
        &self,
        handle: u64,
        offset: u64,
        plus: bool,
        mut sink: impl FnMut(DirEntry) -> bool + Send,
    ) -> Result<(), FsError> {
        let lister = self.directory(handle)?;
        let mut lister = lister.lock().await;
        if offset == 0 {
            lister.rewind(self)?;
        }
        let (ino, parent) = {
            let tree = self.tree();
            (lister.ino, tree.node(lister.ino)?.parent)
        };
        let mut at = offset;
        for (name, ino) in
            [(".", ino), ("..", parent)].into_iter().skip(usize::try_from(at).unwrap_or(2).min(2))
        {
            at += 1;
            let attr = if plus { Some(self.attr_in(&self.tree(), ino)?) } else { None };
            if sink(DirEntry { name: name.into(), kind: Kind::Directory, ino: Some(ino), attr, next: at }) {
                return Ok(());
            }
        }
        while let Some(index) = lister.seek(self, at - DOTS).await? {
            let (name, what) = &lister.page[index];
            at += 1;
            let entry = self.entry(ino, name, what, plus, at);
            // Renamed or removed while we list.
            let Ok(entry) = entry else { continue };
            let counted = entry.attr.map(|attr| attr.ino);
            if sink(entry) {
                if let Some(ino) = counted {
                    self.forget(ino, 1);
                }
                return Ok(());
            }
        }
        Ok(())
    }

    fn entry(
        &self,
        parent: u64,
        name: &str,
        what: &What,
        plus: bool,
        next: u64,
    ) -> Result<DirEntry, FsError> {
        let now = Instant::now();
        let mut tree = self.tree();
        if !plus {
            let kind = match what {
                What::File(_) => Kind::File,
                What::Directory => Kind::Directory,
                What::Here(ino) => self.attr_in(&tree, *ino)?.kind,
            };
            let ino = tree.child(parent, name);
            return Ok(DirEntry { name: name.into(), kind, ino, attr: None, next });
        }
        let ino = match what {
            What::File(stat) => tree.see_file(parent, name, stat, now),
            What::Directory => tree.see_directory(parent, name, now),
            What::Here(ino) => *ino,
        };
        tree.looked_up(ino);
        let attr = self.attr_in(&tree, ino)?;
        Ok(DirEntry { name: name.into(), kind: attr.kind, ino: Some(ino), attr: Some(attr), next })
    }
}
