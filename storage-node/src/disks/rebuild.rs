//! Making every index of a node anew from its extents, while the node does not run.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::DiskConfig;
use super::registry::Registry;
use crate::store::{Accounts, Expect, OpenError, Replayed, Store, StoreConfig};

/// A disk whose index was made anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rebuilt {
    /// The store's directory.
    pub dir: PathBuf,
    /// What was read.
    pub replayed: Replayed,
    /// Where every byte is now.
    pub accounts: Accounts,
}

/// Told about each disk, and how far it is.
pub type RebuildProgress = Arc<dyn Fn(&Path, Replayed) + Send + Sync>;

/// Sets the index of every disk of the node in `home` aside and makes it anew from the extents. An interrupted rebuild
/// goes on with the next start, or can be run again. Blocks.
pub fn rebuild_indexes(
    home: &Path,
    first: &StoreConfig,
    progress: &RebuildProgress,
) -> Result<Vec<Rebuilt>, OpenError> {
    let registry = Registry::load(home)?;
    let own = DiskConfig { dir: first.dir.clone(), capacity_bytes: first.capacity_bytes };
    let mut rebuilt = Vec::new();
    for entry in registry.merge(&own, &[]) {
        let config = registry.config(first, &entry);
        rebuilt.push(rebuild(config, progress)?);
    }
    Ok(rebuilt)
}

fn rebuild(config: StoreConfig, progress: &RebuildProgress) -> Result<Rebuilt, OpenError> {
    let dir = config.dir.clone();
    let last = Arc::new(parking_lot::Mutex::new(Replayed::default()));
    let tell = {
        let (dir, last, progress) = (dir.clone(), Arc::clone(&last), Arc::clone(progress));
        Arc::new(move |replayed: Replayed| {
            *last.lock() = replayed;
            progress(&dir, replayed);
        })
    };
    let id = Store::set_index_aside(&dir)?;
    let store = Store::open(StoreConfig { expect: Expect::Store(id), progress: Some(tell), ..config })?;
    let accounts = store.accounts();
    drop(store);
    let replayed = *last.lock();
    Ok(Rebuilt { dir, replayed, accounts })
}
