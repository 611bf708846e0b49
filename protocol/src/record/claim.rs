//! Claim: on the node, an agreement keeps a block.

use serde::{Deserialize, Serialize};

use super::{AgreementId, Record, ScopeId, random_id};
use crate::cbor::DecodeError;
use crate::digest::Digest;

random_id! {
    /// Tells one namespace's claims on one block apart: the same bytes may serve two stripes on one node.
    ///
    /// Opaque to nodes. The namespace derives it from stripe and node, so that a repeated or late
    /// CommitBlocks or DeleteBlocks hits exactly the claim that it means and no other, and colluding nodes
    /// cannot tell from it which blocks share a stripe.
    ClaimTag
}

/// One claim of an agreement: a block, and which of the claims on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClaimRef(pub Digest, pub ClaimTag);

/// Where a claim stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClaimState {
    /// Put, kept until its lease ends.
    Provisional,
    /// Committed by the namespace.
    Live,
    /// Released; its bytes can be restored until the trash period ends.
    Trash,
}

/// Who keeps a block, who may read it, until when. Unique by (agreement, digest, tag).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Version.
    pub v: u16,
    /// Under which agreement.
    pub agreement: AgreementId,
    /// Which block.
    pub digest: Digest,
    /// Which of the agreement's claims on it.
    pub tag: ClaimTag,
    /// A grant must hold this scope to read the block; `None` for public blocks, which anybody may read.
    pub scope: Option<ScopeId>,
    /// Where it stands.
    pub state: ClaimState,
    /// While provisional: kept until then, then asked about.
    pub lease_until_ms: u64,
    /// Deletion is refused before then; 0 for never.
    pub retain_until_ms: u64,
    /// When the claim was made.
    pub created_ms: u64,
}

impl Record for Claim {
    const NAME: &'static str = "claim";
    const DOMAIN: &'static str = "holdfast claim v1";
    fn version(&self) -> u16 {
        self.v
    }
    fn check_bounds(&self) -> Result<(), DecodeError> {
        Ok(())
    }
}
