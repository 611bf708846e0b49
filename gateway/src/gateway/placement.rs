//! The metadata's placement tables as the fetcher and the repairer see them.

use std::sync::Arc;

use async_trait::async_trait;
use holdfast_protocol::record::{ScopeId, Stripe, StripeId};
use holdfast_protocol::{Digest, NodeId};
use holdfast_retrieval::fetch::{Placement, PlacementError, Slot};
use holdfast_retrieval::repair::{RepairStore, RepairStoreError, Replaced, ShardTerms};

use crate::meta::{Meta, MetaError};

/// Placement rows.
pub(crate) struct MetaPlacement {
    pub(crate) meta: Arc<Meta>,
    pub(crate) repair_scope: ScopeId,
}

#[async_trait]
impl Placement for MetaPlacement {
    async fn locate(&self, digest: &Digest) -> Result<Option<Slot>, PlacementError> {
        let located = self.meta.locate(digest).await.map_err(PlacementError::store)?;
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

    /// Rows do not keep scopes: a rebuilt shard opens for the namespace's delegates, and for grants that name this
    /// scope. That is never more than its first claim allowed, but for a public block it is less.
    async fn terms(&self, stripe: &Stripe) -> Result<Vec<ShardTerms>, RepairStoreError> {
        let terms = ShardTerms { scope: Some(self.repair_scope), retain_until_ms: 0 };
        Ok(vec![terms; stripe.shards.len()])
    }

    async fn replace(&self, stripe: &Stripe, expected_version: u64) -> Result<Replaced, RepairStoreError> {
        use crate::meta::PlacementError;
        match self.meta.put_stripe(stripe, expected_version).await {
            Ok(()) => Ok(Replaced::Done),
            Err(PlacementError::Version { .. }) => Ok(Replaced::Conflict),
            Err(PlacementError::Gone { .. }) => Ok(Replaced::Gone),
            Err(error) => {
                let retryable = error.is_retryable();
                Err(RepairStoreError::new(error, retryable))
            }
        }
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

fn failed(error: MetaError) -> RepairStoreError {
    let retryable = error.is_retryable();
    RepairStoreError::new(error, retryable)
}
