//! Drain: a node asks its namespace to take blocks off it, and is told how far that has come.

use serde::{Deserialize, Serialize};

use crate::cbor::DecodeError;
use crate::limits::TEXT_LEN_MAX;
use crate::record::AgreementId;

/// What a node wants of its namespace. Asked again and again while it lasts; the last word counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DrainWish {
    /// Stay as we are: whatever was asked before is taken back.
    Stay,
    /// Keep at most this many bytes of blocks here and move the rest: a smaller disk.
    Shrink {
        /// Block bytes that may stay.
        keep_bytes: u64,
    },
    /// Move everything; the node leaves.
    Leave,
    /// The node has nothing of the namespace any more and goes now.
    Gone,
}

/// A node says what it wants moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// An agreement between the two.
    pub agreement: AgreementId,
    /// What it wants.
    pub wish: DrainWish,
}

/// How far the namespace has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainProgress {
    /// Shards that the node still has to keep.
    pub shards_left: u64,
    /// Their bytes.
    pub bytes_left: u64,
    /// Shards moved to other nodes since the wish was heard.
    pub shards_moved: u64,
    /// Their bytes.
    pub bytes_moved: u64,
    /// Deletions still on their way to the node.
    pub releases_left: u64,
    /// Further nodes without which what is left cannot move under the placement rules.
    pub waiting_for_nodes: u64,
    /// Whether the wish is fulfilled.
    pub done: bool,
    /// What holds it up, for people; empty when nothing does.
    pub note: String,
}

impl DrainProgress {
    pub(super) fn check_bounds(&self) -> Result<(), DecodeError> {
        crate::record::within(self.note.len() <= TEXT_LEN_MAX, "note")
    }
}
