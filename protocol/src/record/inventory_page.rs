//! Inventory page: a node's signed list of what it keeps under one agreement, in the order of the digests.
//!
//! A page says everything between its first and its last key. A block for which the namespace holds a receipt
//! and gave no deletion order, and which a page passes over, is a proven omission: both signatures are the node's.

use serde::{Deserialize, Serialize};

use super::{AgreementId, InventoryHash, Record, within};
use crate::cbor::DecodeError;
use crate::digest::{BlockLen, Digest};
use crate::key::NodeId;
use crate::limits::INVENTORY_PAGE_MAX;

/// One block of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InventoryEntry(pub Digest, pub BlockLen);

/// All blocks with a live claim of `agreement` whose digest lies above `after`, up to the last listed one, or to
/// the end when `last` says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InventoryPage {
    /// Version.
    pub v: u16,
    /// Who; also the signer.
    pub node: NodeId,
    /// Under which agreement.
    pub agreement: AgreementId,
    /// The epoch of the newest commitment when this was said, if there is one.
    pub epoch: Option<u64>,
    /// Its root.
    pub root: Option<InventoryHash>,
    /// The key asked from, exclusive; none for the beginning.
    pub after: Option<Digest>,
    /// The blocks, ascending.
    pub entries: Vec<InventoryEntry>,
    /// Whether nothing follows.
    pub last: bool,
    /// When it was said.
    pub issued_ms: u64,
}

impl InventoryPage {
    /// Whether the page says anything about `digest` at all.
    pub fn speaks_of(&self, digest: &Digest) -> bool {
        let above = self.after.is_none_or(|after| *digest > after);
        let below = self.last || self.entries.last().is_some_and(|entry| *digest <= entry.0);
        above && below
    }

    /// Whether the page lists `digest`.
    pub fn lists(&self, digest: &Digest) -> bool {
        self.entries.binary_search_by_key(digest, |entry| entry.0).is_ok()
    }
}

impl Record for InventoryPage {
    const NAME: &'static str = "inventory page";
    const DOMAIN: &'static str = "holdfast inventory page v1";
    fn version(&self) -> u16 {
        self.v
    }
    fn check_bounds(&self) -> Result<(), DecodeError> {
        within(self.entries.len() <= INVENTORY_PAGE_MAX, "entries")?;
        within(self.last || !self.entries.is_empty(), "entries")?;
        within(self.epoch.is_some() == self.root.is_some(), "root")?;
        let first = self.entries.first().map(|entry| entry.0);
        within(first.is_none_or(|first| self.after.is_none_or(|after| first > after)), "entries")?;
        within(self.entries.is_sorted_by(|one, next| one.0 < next.0), "entries")
    }
}
