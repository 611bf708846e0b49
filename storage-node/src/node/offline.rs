//! What an operator may change while the node does not run: its mode, its capacity, its deny-list. The directory's
//! lock is held meanwhile.

use std::path::Path;

use holdfast_protocol::NodeId;
use holdfast_protocol::time::UnixMs;

use super::deny::DenyBook;
use super::error::OpenNodeError;
use super::home::Home;
use super::mode::{self, Kept, Mode};

/// A node that does not run.
pub struct Offline {
    home: Home,
    deny: DenyBook,
}

impl Offline {
    /// Takes the directory; fails while a node runs on it.
    pub fn open(dir: &Path) -> Result<Self, OpenNodeError> {
        let home = Home::open(dir)?;
        let deny = DenyBook::open(home.dir(), home.key())?;
        Ok(Self { home, deny })
    }

    /// The node's id.
    pub fn id(&self) -> NodeId {
        NodeId(self.home.key().public())
    }

    /// The deny-list.
    pub fn deny_list(&self) -> &DenyBook {
        &self.deny
    }

    /// What is kept of the operator's wish.
    pub fn mode(&self) -> Result<Kept, OpenNodeError> {
        mode::read(self.home.dir())
    }

    /// Changes the mode, durably.
    pub fn set_mode(&self, mode: Mode, now_ms: UnixMs) -> Result<(), OpenNodeError> {
        let kept = Kept { mode, since_ms: now_ms, ..self.mode()? };
        self.write(kept)
    }

    /// Changes the capacity that counts from the next start, durably.
    pub fn set_capacity(&self, capacity_bytes: u64) -> Result<(), OpenNodeError> {
        let kept = Kept { capacity_bytes: Some(capacity_bytes), ..self.mode()? };
        self.write(kept)
    }

    fn write(&self, kept: Kept) -> Result<(), OpenNodeError> {
        mode::write(self.home.dir(), kept)
            .map_err(|source| OpenNodeError::Dir { dir: self.home.dir().to_owned(), source })
    }
}
