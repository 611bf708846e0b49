//! Upload: blocks become stripes, stripes become signed receipts of enough nodes.
//!
//! | file | owns |
//! |---|---|
//! | [`stripe`] | [`StripeWriter`]: one stripe, from draft to receipts |
//! | [`object`] | [`ObjectWriter`]: the blocks of one object, in order, through stripes in flight |
//! | [`group`] | [`CommitGroups`]: small objects written at about the same time share a stripe |
//! | [`deliver`] | [`Deliverer`]: makes shards live, releases them, restores them |
//!
//! What is written is *provisional*: the nodes keep it for the lease, and drop it unless the caller commits
//! its metadata and delivers CommitBlocks. So a failed or cancelled write leaves nothing to clean up.

use holdfast_protocol::record::{Policy, Receipt, ScopeId, Signed, Stripe};
use holdfast_protocol::time::UnixMs;
use holdfast_protocol::{Digest, NodeId};

use crate::block::Block;

mod cpu;
pub mod deliver;
mod error;
pub mod group;
pub mod object;
mod receipt;
pub mod stripe;

pub use cpu::CpuPool;
pub use deliver::{DeliverError, Deliverer, ShardClaim};
pub use error::{FailureKind, ShardFailure, WriteError};
pub use group::{Announcement, CommitGroups};
pub use object::{ObjectOptions, ObjectWriter, WriteBudget, WrittenObject};
pub use stripe::{StripeWriter, WriteConfig};

/// A block on its way into a stripe, with the terms of its claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DraftBlock {
    /// The block.
    pub block: Block,
    /// Who may read it; `None` is public.
    pub scope: Option<ScopeId>,
    /// Nodes refuse its deletion until then; 0 for never.
    pub retain_until_ms: UnixMs,
}

/// A stripe to write.
#[derive(Clone, Debug)]
pub struct StripeDraft {
    /// Code, quorum and spreading rules.
    pub policy: Policy,
    /// 1 to k blocks, for the data slots in order. A block that occurs twice takes one slot: the second
    /// occurrence is a reference to the first, and is dropped from the stripe.
    pub blocks: Vec<DraftBlock>,
}

/// A stripe of which enough shards are durable on their nodes.
#[derive(Clone, Debug)]
pub struct WrittenStripe {
    /// The record for the caller's tables. Shards whose node did not answer in time have no node; they wait
    /// for completion. Data slots past the blocks are `None`.
    pub stripe: Stripe,
    /// The nodes' signed word, one per shard that has a node, in slot order.
    pub receipts: Vec<Signed<Receipt>>,
}

impl WrittenStripe {
    /// The data slot of a block.
    pub fn slot_of(&self, digest: &Digest) -> Option<usize> {
        let data = &self.stripe.shards[..usize::from(self.stripe.k).min(self.stripe.shards.len())];
        data.iter().position(|shard| shard.is_some_and(|shard| shard.digest == *digest))
    }

    /// Whether every shard has a node.
    pub fn is_complete(&self) -> bool {
        self.stripe.shards.iter().flatten().all(|shard| shard.node.is_some())
    }

    /// Every shard that a node holds, as a claim to commit or release.
    pub fn claims(&self) -> impl Iterator<Item = ShardClaim> + '_ {
        let placed = |node: Option<NodeId>, digest| node.map(|node| (node, digest));
        self.stripe
            .shards
            .iter()
            .flatten()
            .filter_map(move |shard| placed(shard.node, shard.digest))
            .map(|(node, digest)| ShardClaim { stripe: self.stripe.id, digest, node })
    }
}
