//! Reconciliation: pages through what each node says it keeps for us, and looks after the difference.
//!
//! A shard that a node leaves out is reported like any other that is not there: a read settles whether it is lost. If the
//! node serves it all the same, it hides the shard from audits; it is then made to sign for it once more, and when its
//! next page still passes over it, receipt and page are kept as proof under `DIR/evidence`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_protocol::record::{AgreementId, Shard, StripeId};
use holdfast_protocol::{Digest, NodeId, cbor};
use holdfast_retrieval::block::BlockRef;
use holdfast_retrieval::fetch::VerifiedReader;
use holdfast_retrieval::reconcile::{Omission, Reconciler, differ};
use holdfast_retrieval::repair::RepairStore;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::gateway::Core;
use crate::meta::MetaError;

/// Shards that one node is expected to hold, at most: 160 MB of memory while it is looked at.
const EXPECTED_MAX: usize = 4_000_000;
/// Pages of one node: what that many shards take, twice.
const PAGES_MAX: usize = 8192;
/// Left-out shards of one node that are asked for in one round, and those for which proof is sought.
const REPORTED_MAX: usize = 1024;
const PROOFS_MAX: usize = 2;
/// Stripe rows read at a time.
const PAGE: usize = 1024;
/// How long one read may take.
const READ_WITHIN: Duration = Duration::from_secs(10);

/// What reconciliation found of each node.
#[derive(Default)]
pub(crate) struct Reconciled {
    nodes: Mutex<BTreeMap<NodeId, NodeReconciled>>,
}

/// The last look at one node.
#[derive(Clone, Debug, Default)]
pub(crate) struct NodeReconciled {
    /// When.
    pub(crate) at_ms: u64,
    /// Blocks that it lists.
    pub(crate) listed: u64,
    /// Shards that we expect there.
    pub(crate) expected: u64,
    /// Expected and not listed.
    pub(crate) missing: u64,
    /// Listed and not expected.
    pub(crate) extra: u64,
    /// Omissions proved since the start.
    pub(crate) proven: u64,
    /// Why it could not be looked at, if so.
    pub(crate) error: Option<String>,
}

impl Reconciled {
    pub(crate) fn nodes(&self) -> BTreeMap<NodeId, NodeReconciled> {
        self.nodes.lock().clone()
    }
}

/// Reconciles one node after the other until stopped.
pub(super) async fn run(core: Arc<Core>, stop: CancellationToken) {
    let work = async {
        loop {
            let nodes = core.pool.nodes();
            let turns = u32::try_from(nodes.len().max(1)).unwrap_or(u32::MAX);
            let pause = (core.config.timing.reconcile_interval / turns).max(Duration::from_millis(10));
            for view in nodes {
                tokio::time::sleep(pause).await;
                let (Some(agreement), false) = (view.known.agreement, view.state.is_down()) else { continue };
                reconcile(&core, view.known.id, agreement).await;
            }
            if turns == 1 {
                tokio::time::sleep(pause).await;
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}

async fn reconcile(core: &Core, node: NodeId, agreement: AgreementId) {
    let mut found = look(core, node, agreement).await.unwrap_or_else(|error| {
        tracing::debug!(%node, error, "a node's inventory cannot be reconciled now");
        NodeReconciled { error: Some(error), ..NodeReconciled::default() }
    });
    found.at_ms = core.config.clock.now_ms();
    let mut nodes = core.reconciled.nodes.lock();
    let before = nodes.get(&node).map_or(0, |before| before.proven);
    found.proven += before;
    nodes.insert(node, found);
}

async fn look(core: &Core, node: NodeId, agreement: AgreementId) -> Result<NodeReconciled, String> {
    let reconciler = Reconciler::new(Arc::clone(&core.pool));
    // The first page tells whether the node answers at all, before all stripes are walked through.
    let mut page = reconciler.page(node, agreement, None).await?;
    let expected = expected(core, node).await.map_err(|error| error.to_string())?;
    let digests: Vec<Digest> = expected.keys().copied().collect();
    let mut found = NodeReconciled { expected: digests.len() as u64, ..NodeReconciled::default() };
    let mut missing = Vec::new();
    for _ in 0..PAGES_MAX {
        let said = page.record();
        let difference = differ(said, &digests);
        found.listed += said.entries.len() as u64;
        found.extra += difference.extra.len() as u64;
        found.missing += difference.missing.len() as u64;
        let room = REPORTED_MAX.saturating_sub(missing.len());
        missing.extend(difference.missing.into_iter().take(room));
        let (true, Some(last)) = (!said.last, said.entries.last()) else { break };
        page = reconciler.page(node, agreement, Some(last.0)).await?;
    }
    for (index, digest) in missing.iter().enumerate() {
        core.healing.report(node, *digest);
        if index < PROOFS_MAX
            && let Some((stripe, shard)) = expected.get(digest)
            && let Some(proof) = prove(core, &reconciler, (node, agreement), *stripe, *shard).await
        {
            tracing::error!(%node, %digest, "a node hides a block that it signed for from its inventory");
            keep(core, node, &proof);
            found.proven += 1;
        }
    }
    Ok(found)
}

/// Shards that rows say are on the node, committed there for good as far as we know.
async fn expected(core: &Core, node: NodeId) -> Result<BTreeMap<Digest, (StripeId, Shard)>, MetaError> {
    let mut found = BTreeMap::new();
    let mut after = None;
    loop {
        let page = core.meta.stripes(after, PAGE).await?;
        let Some(last) = page.last() else { return Ok(found) };
        after = Some(last.id);
        for stripe in &page {
            for shard in stripe.shards.iter().flatten().filter(|shard| shard.node == Some(node)) {
                if found.len() < EXPECTED_MAX {
                    found.insert(shard.digest, (stripe.id, *shard));
                }
            }
        }
    }
}

/// A proof that the node hides the shard; `None` when it lost it, lists it after all, or was moved meanwhile.
async fn prove(
    core: &Core,
    reconciler: &Reconciler,
    (node, agreement): (NodeId, AgreementId),
    id: StripeId,
    shard: Shard,
) -> Option<Omission> {
    let stripe = core.meta.stripe(id).await.ok().flatten()?;
    let slot = stripe.shards.iter().position(|now| *now == Some(shard))?;
    let block = BlockRef { digest: shard.digest, len: shard.len };
    let reader = VerifiedReader::silent(Arc::clone(&core.pool), READ_WITHIN);
    let bytes = reader.whole(node, block, None).await.ok()?.into_bytes();
    let scope = core.placement.terms(&stripe).await.ok()?.get(slot)?.scope;
    let claim = (core.tags.tag(id, node), scope);
    match reconciler.prove(node, agreement, block, bytes, claim).await {
        Ok(proof) => proof,
        Err(error) => {
            tracing::debug!(%node, error, "no proof of an omission");
            None
        }
    }
}

/// Writes a proof down. It is worth nothing to us that others cannot check for themselves, so plain bytes will do.
fn keep(core: &Core, node: NodeId, proof: &Omission) {
    let folder = core.config.dir.join("evidence");
    let path = folder.join(format!("omission-{node}-{}.cbor", proof.digest));
    let written = std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(&path, cbor::encode(proof)));
    if let Err(error) = written {
        tracing::warn!(%error, path = %path.display(), "evidence cannot be kept");
    }
}
