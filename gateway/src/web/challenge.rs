//! What a challenger needs: shards that nodes are said to hold, where the nodes are, and the right to read.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use holdfast_protocol::limits::GRANT_SCOPES_MAX;
use holdfast_protocol::record::{
    Delegation, Grant, GrantOps, PresentedGrant, Record, Rights, Shard, Signed, Stripe, StripeId,
};
use holdfast_protocol::{NodeId, cbor};

use super::api::{ChallengeAsk, ChallengeNode, ChallengeTarget, ChallengeTargets};
use super::{meta_failed, refuse};
use crate::gateway::Core;
use crate::meta::MetaError;

/// Blocks named per node, at most.
const BLOCKS_PER_NODE_MAX: usize = 4096;
/// Stripes looked through for a sample, at most: 64 pages.
const STRIPES_PER_PAGE: usize = 256;
const PAGES_MAX: usize = 64;
/// How long the rights run.
const RIGHTS_MS: u64 = 3600 * 1000;
/// Bytes that each node may serve under the grant: ten thousand chunks with their proofs, several times over.
const GRANT_BYTES: u64 = 256 * 1024 * 1024;

pub(super) async fn targets(State(core): State<Arc<Core>>, Json(ask): Json<ChallengeAsk>) -> Response {
    let Ok(holder) = ask.holder.parse::<NodeId>() else {
        return refuse(StatusCode::BAD_REQUEST, "`holder` is not a public key (z6Mk…)");
    };
    let per_node = usize::try_from(ask.blocks_per_node).unwrap_or(0).clamp(1, BLOCKS_PER_NODE_MAX);
    match answer(&core, holder, per_node, ask.with_parity).await {
        Ok(answer) => Json(answer).into_response(),
        Err(Failure::Meta(error)) => meta_failed(&error),
        Err(Failure::Random) => {
            refuse(StatusCode::INTERNAL_SERVER_ERROR, "the system's random source failed")
        }
    }
}

enum Failure {
    Meta(MetaError),
    Random,
}

impl From<MetaError> for Failure {
    fn from(error: MetaError) -> Self {
        Self::Meta(error)
    }
}

async fn answer(
    core: &Core,
    holder: NodeId,
    per_node: usize,
    with_parity: bool,
) -> Result<ChallengeTargets, Failure> {
    let sample = sample(core, per_node, with_parity).await?;
    let grant = STANDARD.encode(cbor::encode(&grant(core, holder).await?));
    let mut targets = Vec::new();
    let mut nodes = Vec::new();
    for (node, shards) in sample {
        let Some(view) = core.pool.node(node) else { continue };
        nodes.push(ChallengeNode { id: node.to_string(), addresses: view.known.addresses });
        targets.extend(shards.into_iter().map(|shard| ChallengeTarget {
            node: node.to_string(),
            digest: shard.digest.to_string(),
            len: shard.len.bytes(),
            grant: Some(grant.clone()),
        }));
    }
    let delegation = STANDARD.encode(cbor::encode(&delegation(core, holder).to_wire()));
    Ok(ChallengeTargets { targets, nodes, delegation: Some(delegation) })
}

/// Shards of stripes from a random place in the table on, all the way round unless enough are found before.
/// Stripe ids are random, so neighbours in the table have nothing else in common.
async fn sample(
    core: &Core,
    per_node: usize,
    with_parity: bool,
) -> Result<BTreeMap<NodeId, Vec<Shard>>, Failure> {
    let start = StripeId::random().map_err(|_| Failure::Random)?;
    let known = core.pool.nodes().len();
    let mut found: BTreeMap<NodeId, Vec<Shard>> = BTreeMap::new();
    let (mut after, mut wrapped) = (Some(start), false);
    for _ in 0..PAGES_MAX {
        let page = core.meta.stripes(after, STRIPES_PER_PAGE).await?;
        for stripe in &page {
            if wrapped && stripe.id > start {
                return Ok(found);
            }
            take(stripe, per_node, with_parity, &mut found);
        }
        let enough = found.len() >= known && found.values().all(|shards| shards.len() >= per_node);
        match page.last() {
            _ if enough => break,
            Some(last) => after = Some(last.id),
            None if wrapped => break,
            None => (after, wrapped) = (None, true),
        }
    }
    Ok(found)
}

fn take(stripe: &Stripe, per_node: usize, with_parity: bool, found: &mut BTreeMap<NodeId, Vec<Shard>>) {
    let slots = if with_parity { stripe.shards.len() } else { usize::from(stripe.k) };
    for shard in stripe.shards.iter().take(slots).flatten() {
        let Some(node) = shard.node else { continue };
        let shards = found.entry(node).or_default();
        if shards.len() < per_node {
            shards.push(*shard);
        }
    }
}

/// A grant over the scopes of all buckets, as many as one grant may open.
async fn grant(core: &Core, holder: NodeId) -> Result<PresentedGrant, Failure> {
    let mut scopes = vec![core.repair_scope()];
    scopes.extend(core.meta.buckets().await?.into_iter().map(|bucket| bucket.scope));
    scopes.truncate(GRANT_SCOPES_MAX);
    let mut nonce = [0u8; 16];
    getrandom::fill(&mut nonce).map_err(|_| Failure::Random)?;
    let now_ms = core.config.clock.now_ms();
    let grant = Grant {
        v: Grant::VERSION,
        namespace: core.config.keys.namespace_id(),
        holder,
        scopes,
        ops: GrantOps { read: true, list: false },
        not_before_ms: now_ms,
        expires_ms: now_ms + RIGHTS_MS,
        byte_budget: GRANT_BYTES,
        nonce,
    };
    let signed = Signed::sign(grant, core.config.keys.namespace());
    Ok(PresentedGrant { grant: signed.to_wire(), delegation: None })
}

fn delegation(core: &Core, holder: NodeId) -> Signed<Delegation> {
    let now_ms = core.config.clock.now_ms();
    let delegation = Delegation {
        v: Delegation::VERSION,
        namespace: core.config.keys.namespace_id(),
        delegate: holder,
        rights: Rights { read: true, ..Rights::default() },
        not_before_ms: now_ms,
        expires_ms: now_ms + RIGHTS_MS,
        label: "challenger".to_owned(),
    };
    Signed::sign(delegation, core.config.keys.namespace())
}
