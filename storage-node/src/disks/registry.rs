//! Which disks belong to a node, in `HOME/disks.json`: without it a disk that is not mounted would look like one that
//! never was, and all its blocks like losses.
//!
//! ```text
//! {"format": 1, "disks": [{"store_id": "<32 hex digits>", "dir": "/mnt/disk2/holdfast", "capacity_bytes": ...}]}
//! ```
//! A directory below the home is kept relative to it, so that a home may be moved.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::DiskConfig;
use crate::node::durable;
use crate::store::identity;
use crate::store::{Expect, OpenError, StoreConfig};

const FORMAT: u32 = 1;
/// 64 disks with long paths are far below this.
const FILE_LEN_MAX: u64 = 1 << 20;

#[derive(Serialize, Deserialize)]
struct File {
    format: u32,
    disks: Vec<FileEntry>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct FileEntry {
    store_id: String,
    dir: PathBuf,
    capacity_bytes: u64,
}

/// A disk, and the store that belongs there if that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) dir: PathBuf,
    pub(super) id: Option<[u8; 16]>,
    pub(super) capacity_bytes: u64,
}

/// The file, in memory.
pub(super) struct Registry {
    home: PathBuf,
    path: PathBuf,
    entries: Vec<Entry>,
    changed: bool,
}

impl Registry {
    pub(super) fn load(home: &Path) -> Result<Self, OpenError> {
        let path = home.join("disks.json");
        let unusable = |detail: String| OpenError::Identity { dir: home.to_owned(), detail };
        let file = match durable::read_bounded(&path, FILE_LEN_MAX) {
            Ok(text) => serde_json::from_slice::<File>(&text)
                .map_err(|error| unusable(format!("disks.json cannot be read: {error}")))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                File { format: FORMAT, disks: Vec::new() }
            }
            Err(source) => return Err(identity::failed(&path, "reading", source)),
        };
        if file.format > FORMAT {
            return Err(OpenError::NewerFormat { dir: path, found: file.format, newest: FORMAT });
        }
        let mut entries = Vec::with_capacity(file.disks.len());
        for disk in file.disks {
            let mut id = [0; 16];
            hex::decode_to_slice(&disk.store_id, &mut id)
                .map_err(|_| unusable(format!("disks.json: `{}` is no store id", disk.store_id)))?;
            entries.push(Entry {
                dir: home.join(disk.dir),
                id: Some(id),
                capacity_bytes: disk.capacity_bytes,
            });
        }
        Ok(Self { home: home.to_owned(), path, entries, changed: false })
    }

    /// The disks to open: the node's own first, then those written down, then new ones. What is told now about
    /// capacities holds.
    pub(super) fn merge(&self, own: &DiskConfig, more: &[DiskConfig]) -> Vec<Entry> {
        let mut wanted = vec![self.known(own)];
        for disk in more {
            let entry = self.known(disk);
            if wanted.iter().all(|held| held.dir != entry.dir) {
                wanted.push(entry);
            }
        }
        for entry in &self.entries {
            if wanted.iter().all(|held| held.dir != entry.dir) {
                wanted.push(entry.clone());
            }
        }
        wanted
    }

    fn known(&self, disk: &DiskConfig) -> Entry {
        let id = self.entries.iter().find(|entry| entry.dir == disk.dir).and_then(|entry| entry.id);
        Entry { dir: disk.dir.clone(), id, capacity_bytes: disk.capacity_bytes }
    }

    /// How to open the entry: where its store is found, which is another directory when two disks changed places.
    pub(super) fn config(&self, pattern: &StoreConfig, entry: &Entry) -> StoreConfig {
        let holds = |dir: &Path, id: [u8; 16]| identity::look(dir).is_ok_and(|found| found == Some(id));
        let dir = match entry.id {
            Some(id) if !holds(&entry.dir, id) => self
                .entries
                .iter()
                .find(|other| holds(&other.dir, id))
                .map_or_else(|| entry.dir.clone(), |other| other.dir.clone()),
            _ => entry.dir.clone(),
        };
        let expect = entry.id.map_or(Expect::Any, Expect::Store);
        StoreConfig { dir, expect, capacity_bytes: entry.capacity_bytes, ..pattern.clone() }
    }

    /// A store was opened: it belongs to the node from now on.
    pub(super) fn found(&mut self, dir: &Path, id: [u8; 16], capacity_bytes: u64) {
        let entry = Entry { dir: dir.to_owned(), id: Some(id), capacity_bytes };
        match self.entries.iter_mut().find(|held| held.dir == dir) {
            Some(held) if *held == entry => return,
            Some(held) => *held = entry,
            None => self.entries.push(entry),
        }
        self.changed = true;
    }

    /// A disk offers this much from now on; the disks there are, when it is none of them.
    pub(super) fn resize(&mut self, dir: &Path, capacity_bytes: u64) -> Result<(), Vec<String>> {
        match self.entries.iter_mut().find(|held| held.dir == dir) {
            Some(held) => {
                self.changed |= held.capacity_bytes != capacity_bytes;
                held.capacity_bytes = capacity_bytes;
                Ok(())
            }
            None => Err(self.entries.iter().map(|held| held.dir.display().to_string()).collect()),
        }
    }

    /// Writes the file when anything changed.
    pub(super) fn save(&mut self) -> Result<(), OpenError> {
        if !self.changed {
            return Ok(());
        }
        let disks = self.entries.iter().map(|entry| FileEntry {
            store_id: identity::hex(&entry.id.unwrap_or_default()),
            dir: entry.dir.strip_prefix(&self.home).unwrap_or(&entry.dir).to_owned(),
            capacity_bytes: entry.capacity_bytes,
        });
        let file = File { format: FORMAT, disks: disks.collect() };
        let mut text = serde_json::to_vec_pretty(&file).unwrap_or_default();
        text.push(b'\n');
        durable::write_whole(&self.path, &text)
            .map_err(|source| identity::failed(&self.path, "writing", source))?;
        self.changed = false;
        Ok(())
    }
}
