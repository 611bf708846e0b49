//! The disks of a node: one store on each, behind the calls of a single one.
//!
//! A block lies whole on one disk. Which disks belong to the node is written down ([`registry`]), so that a disk that is
//! not there is known to be missing: until it is back, what is not found elsewhere is neither absent nor lost, and calls
//! about it end with `Away`. The other disks go on.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use holdfast_protocol::digest::Digest;
use parking_lot::{Mutex, RwLock};

use crate::store::{
    Accounts, Expect, OpenError, Pools, ReclaimReport, Store, StoreConfig, StoreError, StoreHealth,
};

mod calls;
mod choose;
mod placing;
mod rebuild;
mod registry;
mod shrink;
mod upkeep;

pub use calls::DisksChanged;
pub use rebuild::{RebuildProgress, Rebuilt, rebuild_indexes};
pub use shrink::{ResizeError, resize_offline};

use placing::Placing;
use registry::Registry;

/// Disks of one node. Every look-up of a block that is not held asks each of them.
pub const DISKS_MAX: usize = 64;

/// A disk that a node is told to use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// The store's directory on it; made when it is new.
    pub dir: PathBuf,
    /// Bytes offered on it.
    pub capacity_bytes: u64,
}

/// All disks of a node.
pub struct Disks {
    home: PathBuf,
    slots: Vec<Slot>,
    placing: Placing,
    pools: Pools,
}

/// One disk, there or not.
struct Slot {
    config: StoreConfig,
    id: [u8; 16],
    state: RwLock<State>,
    /// As last seen; what is told of a disk that is away.
    last: Mutex<Accounts>,
    /// Bytes offered since the operator made it less; what the store was opened with until then.
    offered: AtomicU64,
}

enum State {
    Present(Arc<Store>),
    Away { why: String },
}

impl Slot {
    fn store(&self) -> Option<Arc<Store>> {
        match &*self.state.read() {
            State::Present(store) => Some(Arc::clone(store)),
            State::Away { .. } => None,
        }
    }
}

impl Disks {
    /// Opens the disks that `home` has written down, and those of `more`, which are written down from now on.
    /// `first` describes the node's own disk and is the pattern for all others.
    ///
    /// A disk that is missing, swapped or unreadable is left out and tried again by [`Disks::tend`], as long as one
    /// other opens. Blocks; call it from a thread that may.
    pub fn open(home: &Path, first: StoreConfig, more: &[DiskConfig]) -> Result<Arc<Self>, OpenError> {
        let pools = match &first.pools {
            Some(pools) => pools.clone(),
            None => Pools::new(first.write_buffer_bytes, first.read_buffer_bytes),
        };
        let pattern = StoreConfig { pools: Some(pools.clone()), ..first };
        let mut registry = Registry::load(home)?;
        let own = DiskConfig { dir: pattern.dir.clone(), capacity_bytes: pattern.capacity_bytes };
        let wanted = registry.merge(&own, more);
        if wanted.len() > DISKS_MAX {
            let detail = format!("at most {DISKS_MAX}");
            return Err(OpenError::Config { setting: "disks", detail });
        }
        let mut slots = Vec::with_capacity(wanted.len());
        let mut first_error = None;
        for entry in &wanted {
            let config = registry.config(&pattern, entry);
            match Store::open(config.clone()) {
                Ok(store) => {
                    registry.found(&entry.dir, store.id(), entry.capacity_bytes);
                    slots.push(Slot::present(config, store));
                }
                Err(error) => {
                    let Some(id) = entry.id.filter(|_| may_be_away(&error)) else { return Err(error) };
                    tracing::error!(dir = %entry.dir.display(), %error, "a disk is left out for now");
                    slots.push(Slot::away(config, id, error.to_string()));
                    first_error.get_or_insert(error);
                }
            }
        }
        if let Some(error) = first_error.filter(|_| slots.iter().all(|slot| slot.store().is_none())) {
            return Err(error);
        }
        registry.save()?;
        Ok(Arc::new(Self { home: home.to_owned(), slots, placing: Placing::default(), pools }))
    }

    /// One store as all the disks there are, without a registry: for tests and tools.
    pub fn of(store: Arc<Store>, config: StoreConfig) -> Arc<Self> {
        let pools = Pools::new(config.write_buffer_bytes, config.read_buffer_bytes);
        let home = config.dir.clone();
        Arc::new(Self { home, slots: vec![Slot::present(config, store)], placing: Placing::default(), pools })
    }

    /// How many disks belong to the node, those that are away too.
    pub fn count(&self) -> usize {
        self.slots.len()
    }

    /// The store of a disk, while it is there.
    pub fn store(&self, disk: usize) -> Option<Arc<Store>> {
        self.slots.get(disk).and_then(Slot::store)
    }

    /// How each disk does, in a fixed order. Asks the disks a little; call it from a thread that may wait.
    pub fn health(&self) -> Vec<StoreHealth> {
        self.slots.iter().map(Slot::health).collect()
    }

    /// Where every byte is, over all disks. A disk that is away counts as it was last seen.
    pub fn accounts(&self) -> Accounts {
        let mut sum = Accounts::default();
        for slot in &self.slots {
            let accounts = slot.accounts();
            sum.capacity_bytes += accounts.capacity_bytes;
            sum.used_bytes += accounts.used_bytes;
            sum.trash_bytes += accounts.trash_bytes;
            sum.garbage_bytes += accounts.garbage_bytes;
            sum.free_bytes += accounts.free_bytes;
            sum.paid_bytes += accounts.paid_bytes;
            sum.blocks += accounts.blocks;
            sum.claims += accounts.claims;
        }
        sum
    }

    /// Why no disk takes writes, if none does.
    pub fn failure(&self) -> Option<String> {
        let mut first = None;
        for slot in &self.slots {
            let failure = match &*slot.state.read() {
                State::Present(store) => store.failure(),
                State::Away { why } => Some(why.clone()),
            };
            first.get_or_insert(failure?);
        }
        first
    }

    /// The first disk that is away, by its directory.
    fn away(&self) -> Option<PathBuf> {
        self.slots.iter().find(|slot| slot.store().is_none()).map(|slot| slot.config.dir.clone())
    }

    /// How I/O is done on the first disk that is there.
    pub fn io_name(&self) -> &'static str {
        self.present().next().map_or("none", |(_, store)| store.io_name())
    }

    fn present(&self) -> impl Iterator<Item = (usize, Arc<Store>)> + '_ {
        self.slots.iter().enumerate().filter_map(|(disk, slot)| Some((disk, slot.store()?)))
    }

    /// Ends trash that is due, punches and unlinks, on every disk that is there.
    pub async fn reclaim(&self, now_ms: u64) -> Result<ReclaimReport, StoreError> {
        let mut sum = ReclaimReport::default();
        let mut first_error = None;
        for (_, store) in self.present().filter(|(_, store)| !store.is_read_only()) {
            match store.reclaim(now_ms).await {
                Ok(report) => {
                    sum.claims += report.claims;
                    sum.blocks += report.blocks;
                    sum.punched_bytes += report.punched_bytes;
                    sum.carried += report.carried;
                    sum.extents += report.extents;
                }
                // One disk's failure does not keep the others' room.
                Err(error) => drop(first_error.get_or_insert(error)),
            }
        }
        first_error.map_or(Ok(sum), Err)
    }

    /// Makes every index durable now.
    pub async fn flush(&self) -> Result<(), StoreError> {
        for (_, store) in self.present() {
            store.flush().await?;
        }
        Ok(())
    }

    /// Makes every index durable and stops the writers; later changes are refused, reads go on.
    pub async fn close(&self) -> Result<(), StoreError> {
        let mut first_error = None;
        for (_, store) in self.present() {
            if let Err(error) = store.close().await {
                first_error.get_or_insert(error);
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    /// Says that a block is lost, wherever it is held. `false` when it was not.
    pub async fn declare_lost(&self, digest: Digest) -> Result<bool, StoreError> {
        let mut lost = false;
        for (_, store) in self.present() {
            lost |= store.declare_lost(digest).await?;
        }
        Ok(lost)
    }
}

impl Slot {
    fn present(config: StoreConfig, store: Arc<Store>) -> Self {
        // From here on only this very store is taken up again.
        let config = StoreConfig { expect: Expect::Store(store.id()), ..config };
        let (id, last) = (store.id(), Mutex::new(store.accounts()));
        let offered = AtomicU64::new(config.capacity_bytes);
        Self { config, id, state: RwLock::new(State::Present(store)), last, offered }
    }

    fn away(config: StoreConfig, id: [u8; 16], why: String) -> Self {
        let accounts = Accounts::default();
        let offered = AtomicU64::new(config.capacity_bytes);
        Self { config, id, state: RwLock::new(State::Away { why }), last: Mutex::new(accounts), offered }
    }

    fn accounts(&self) -> Accounts {
        match self.store() {
            Some(store) => {
                let accounts = store.accounts();
                *self.last.lock() = accounts;
                accounts
            }
            None => *self.last.lock(),
        }
    }

    fn health(&self) -> StoreHealth {
        match self.store() {
            Some(store) => store.health(),
            None => {
                let why = match &*self.state.read() {
                    State::Away { why } => why.clone(),
                    State::Present(_) => "it is coming back".to_owned(),
                };
                StoreHealth::away(&self.id, self.config.dir.clone(), *self.last.lock(), why)
            }
        }
    }
}

/// Whether a store that does not open may be left out: its disk is not there, or cannot be read. A store that another
/// process holds, or that a newer release wrote, is somebody's mistake to mend at once.
fn may_be_away(error: &OpenError) -> bool {
    matches!(
        error,
        OpenError::Missing { .. }
            | OpenError::Swapped { .. }
            | OpenError::Io { .. }
            | OpenError::Index { .. }
    )
}

impl std::fmt::Debug for Disks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.slots.iter().map(|slot| slot.config.dir.display().to_string())).finish()
    }
}
