//! The metadata's placement tables as the fetcher, the repairer and the packer see them.

use std::sync::Arc;

use async_trait::async_trait;
use holdfast_protocol::record::{ScopeId, Stripe, StripeId};
use holdfast_protocol::{Digest, NodeId};
use holdfast_retrieval::fetch::{Placement, PlacementError, Slot};
use holdfast_retrieval::pack::{PackCandidate, PackChange, PackStore};
use holdfast_retrieval::repair::{RepairStore, RepairStoreError, Replaced, ShardTerms};

use crate::meta::{Meta, MetaError, Origins, PlacementError as RowError};

/// Placement rows.
pub(crate) struct MetaPlacement {
    pub(crate) meta: Arc<Meta>,
    pub(crate) repair_scope: ScopeId,
}

#[async_trait]
impl Placement for MetaPlacement {
    async fn locate(&self, digest: &Digest) -> Result<Option<Slot>, PlacementError> {
        let located = self.meta.locate_to_read(digest).await.map_err(PlacementError::store)?;
        Ok(located.map(|located| Slot { stripe: located.stripe, slot: located.slot }))
    }
}

#[async_trait]
impl RepairStore for MetaPlacement {
    async fn stripes(&self, after: Option<StripeId>, limit: usize) -> Result<Vec<Stripe>, RepairStoreError> {
        self.meta.stripes(after, limit).await.map_err(failed)
    }

    async fn stripe(&self, id: StripeId) -> Result<Option<Stripe>, RepairStoreError> {
        self.meta.stripe(id).await.map_err(failed)
    }

    /// A rebuilt block opens to whom its bucket opens; one whose bucket is not known any more, because nothing
    /// refers to it or its row is of an older form, opens to the namespace's delegates alone. Parity mixes the
    /// bytes of all blocks, so it opens by a scope only if all of them do.
    async fn terms(&self, stripe: &Stripe) -> Result<Vec<ShardTerms>, RepairStoreError> {
        let sources = std::slice::from_ref(stripe);
        let origins = self.meta.origins(sources).await.map_err(failed)?;
        let parity = self.parity_of(&origins, data(sources));
        let k = usize::from(stripe.k);
        // A rebuilt shard of a locked object is locked as long as the lost one was.
        let retain_until_ms = self.meta.stripe_retained_until(stripe.id).await.map_err(failed)?;
        Ok(stripe
            .shards
            .iter()
            .enumerate()
            .map(|(slot, shard)| match shard {
                Some(shard) if slot < k => self.open_to(self.scope_of(&origins, &shard.digest)),
                _ => parity,
            })
            .map(|terms| ShardTerms { retain_until_ms, ..terms })
            .collect())
    }

    async fn is_barred(&self, stripe: StripeId, node: NodeId) -> Result<bool, RepairStoreError> {
        self.meta.is_releasing(node, stripe).await.map_err(failed)
    }

    async fn replace(&self, stripe: &Stripe, expected_version: u64) -> Result<Replaced, RepairStoreError> {
        replaced(self.meta.put_stripe(stripe, expected_version).await)
    }

    async fn committed(
        &self,
        _node: NodeId,
        _stripe: StripeId,
        _digests: &[Digest],
    ) -> Result<(), RepairStoreError> {
        // The queue delivers them once more, which changes nothing, and then forgets them.
        Ok(())
    }
}

#[async_trait]
impl PackStore for MetaPlacement {
    async fn pack_candidates(
        &self,
        after: Option<StripeId>,
        limit: usize,
    ) -> Result<(Vec<PackCandidate>, Option<StripeId>), RepairStoreError> {
        self.meta.pack_candidates(after, limit).await.map_err(failed)
    }

    async fn parity_terms(&self, sources: &[Stripe]) -> Result<ShardTerms, RepairStoreError> {
        let origins = self.meta.origins(sources).await.map_err(failed)?;
        // Dead blocks stay behind: only those that live are in the new parity. The survivor's stay whatever they
        // are, but a survivor has no dead ones.
        let living = data(sources).filter(|digest| origins.live.contains_key(digest));
        Ok(self.parity_of(&origins, living))
    }

    async fn intend(&self, packed: StripeId, claims: &[(NodeId, Digest)]) -> Result<bool, RepairStoreError> {
        self.meta.intend_packing(packed, claims).await.map_err(failed)
    }

    async fn pack(&self, change: &PackChange) -> Result<Replaced, RepairStoreError> {
        replaced(self.meta.pack(change).await)
    }

    async fn abandon(&self, packed: StripeId) -> Result<(), RepairStoreError> {
        self.meta.abandon_packing(packed).await.map_err(failed)
    }

    async fn intents(&self, limit: usize) -> Result<Vec<StripeId>, RepairStoreError> {
        self.meta.pack_intents(limit).await.map_err(failed)
    }
}

/// Whom a shard opens to, besides the namespace's delegates.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Opens {
    Everybody,
    Scope(ScopeId),
    /// Not known.
    Nobody,
}

impl MetaPlacement {
    fn scope_of(&self, origins: &Origins, digest: &Digest) -> Opens {
        match origins.live.get(digest) {
            Some(Some(bucket)) if bucket.public => Opens::Everybody,
            Some(Some(bucket)) => Opens::Scope(bucket.scope),
            Some(None) | None => Opens::Nobody,
        }
    }

    fn parity_of(&self, origins: &Origins, data: impl Iterator<Item = Digest>) -> ShardTerms {
        let mut opens = data.map(|digest| self.scope_of(origins, &digest));
        let first = opens.next().unwrap_or(Opens::Nobody);
        self.open_to(if opens.all(|other| other == first) { first } else { Opens::Nobody })
    }

    fn open_to(&self, opens: Opens) -> ShardTerms {
        let scope = match opens {
            Opens::Everybody => None,
            Opens::Scope(scope) => Some(scope),
            Opens::Nobody => Some(self.repair_scope),
        };
        ShardTerms { scope, retain_until_ms: 0 }
    }
}

fn data(stripes: &[Stripe]) -> impl Iterator<Item = Digest> {
    stripes
        .iter()
        .flat_map(|stripe| stripe.shards.iter().take(usize::from(stripe.k)).flatten())
        .map(|shard| shard.digest)
}

fn replaced(outcome: Result<(), RowError>) -> Result<Replaced, RepairStoreError> {
    match outcome {
        Ok(()) => Ok(Replaced::Done),
        Err(RowError::Version { .. } | RowError::Releasing { .. }) => Ok(Replaced::Conflict),
        Err(RowError::Gone { .. }) => Ok(Replaced::Gone),
        Err(error) => {
            let retryable = error.is_retryable();
            Err(RepairStoreError::new(error, retryable))
        }
    }
}

fn failed(error: MetaError) -> RepairStoreError {
    let retryable = error.is_retryable();
    RepairStoreError::new(error, retryable)
}
