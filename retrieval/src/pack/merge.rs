//! One merge, from its intent to its row.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use holdfast_protocol::message::{BlockOutcome, CommitBlocks, RestoreBlocks};
use holdfast_protocol::record::{ClaimRef, Record, Shard, Stripe, StripeId};
use holdfast_protocol::{Digest, NodeId};

use super::{Merge, PackChange, PackReport, Packer};
use crate::block::Block;
use crate::code::{Code, ShardPiece, WantedShard};
use crate::fetch::gather::block_of;
use crate::repair::{Pace, Putter, RepairStoreError, Replaced, ShardPut, candidates, policy_of};

/// Ends early with a reason in words; the merge is tried again later.
type Given<T> = Result<T, String>;

impl Packer {
    /// Carries a merge out, or says why not. Only the store's failures are errors.
    pub(super) async fn carry_out(
        &self,
        merge: &Merge,
        pace: &Pace,
    ) -> Result<Given<PackReport>, RepairStoreError> {
        let Some(first) = merge.sources().next() else { return Ok(Err("there is nothing to merge".into())) };
        let id = match &merge.survivor {
            Some(survivor) => survivor.stripe.id,
            None => match StripeId::random() {
                Ok(id) => id,
                Err(_) => return Ok(Err("the system's random source failed".into())),
            },
        };
        let Some(parity_nodes) = self.parity_nodes(merge) else {
            return Ok(Err("too few nodes may hold its parity".into()));
        };
        let passing: Vec<(NodeId, Digest)> =
            merge.passing().filter_map(|shard| Some((shard.node?, shard.digest))).collect();
        if !self.store.intend(id, &passing).await? {
            return Ok(Err("a node has yet to let go an earlier claim of it".into()));
        }
        let shape = Shape { id, k: first.k, m: first.m };
        let change = match self.prepare(merge, &shape, &passing, &parity_nodes, pace).await? {
            Ok(change) => change,
            Err(why) => {
                self.store.abandon(id).await?;
                return Ok(Err(why));
            }
        };
        match self.store.pack(&change).await? {
            Replaced::Done => {}
            Replaced::Conflict | Replaced::Gone => {
                self.store.abandon(id).await?;
                return Ok(Err("its rows changed meanwhile".into()));
            }
        }
        self.commit_parity(&change.packed).await;
        Ok(Ok(report_on(merge, &change.packed)))
    }

    /// m nodes that may hold parity beside the blocks.
    fn parity_nodes(&self, merge: &Merge) -> Option<Vec<NodeId>> {
        let policy = policy_of(merge.sources().next()?);
        let nodes = candidates(&self.pool);
        let mut taken: Vec<NodeId> = merge.data().iter().flatten().filter_map(|shard| shard.node).collect();
        let mut chooser = self.chooser.lock();
        let mut chosen = Vec::with_capacity(policy.m);
        for _ in 0..policy.m {
            let node = chooser.replacement(&nodes, &policy, &taken, &[])?;
            taken.push(node);
            chosen.push(node);
        }
        Some(chosen)
    }

    /// Claims, reads, codes and puts; then the rows can change.
    async fn prepare(
        &self,
        merge: &Merge,
        shape: &Shape,
        passing: &[(NodeId, Digest)],
        parity_nodes: &[NodeId],
        pace: &Pace,
    ) -> Result<Given<PackChange>, RepairStoreError> {
        for (node, digest) in passing {
            if let Err(why) = self.claim(shape.id, *node, *digest).await {
                return Ok(Err(why));
            }
        }
        let data = merge.data();
        let pieces = match self.read(&data, pace).await {
            Ok(pieces) => pieces,
            Err(why) => return Ok(Err(why)),
        };
        let parity = match encode(shape, &data, &pieces) {
            Ok(parity) => parity,
            Err(why) => return Ok(Err(why)),
        };
        let sources: Vec<Stripe> = merge.sources().cloned().collect();
        let terms = self.store.parity_terms(&sources).await?;
        let putter = Putter { pool: Arc::clone(&self.pool) };
        let mut puts = FuturesUnordered::new();
        for (block, node) in parity.iter().zip(parity_nodes) {
            pace.wait(block.bytes().len()).await;
            let put = ShardPut {
                block: block.to_ref(),
                bytes: block.bytes().clone(),
                tag: self.tags.tag(shape.id, *node),
                terms,
            };
            let putter = &putter;
            puts.push(async move { putter.put(*node, &put).await });
        }
        while let Some(put) = puts.next().await {
            if let Err(why) = put {
                return Ok(Err(format!("parity was not taken: {why}")));
            }
        }
        drop(puts);
        Ok(Ok(change(merge, shape, data, &parity, parity_nodes)))
    }

    /// Makes the claim under the merged stripe's tag on a block that the node holds under another.
    async fn claim(&self, id: StripeId, node: NodeId, digest: Digest) -> Given<()> {
        let agreement = self.pool.agreement(node).ok_or("there is no agreement with a node")?;
        let claims = vec![ClaimRef(digest, self.tags.tag(id, node))];
        let ask = async {
            let peer = self.pool.peer(node).await.map_err(|error| error.to_string())?;
            let commit = CommitBlocks { agreement, claims: claims.clone(), retain_until_ms: 0 };
            let outcome = peer.commit_blocks(commit).await.map_err(|error| error.to_string())?;
            if !matches!(outcome.as_slice(), [BlockOutcome::Absent]) {
                return Ok(outcome);
            }
            // An earlier attempt was undone and its claim let go; within the trash period it comes back.
            peer.restore_blocks(RestoreBlocks { agreement, claims }).await.map_err(|error| error.to_string())
        };
        let outcome: Given<Vec<BlockOutcome>> = tokio::time::timeout(crate::repair::TIMEOUT, ask)
            .await
            .map_err(|_| "a node did not answer in time".to_owned())?;
        match outcome?.as_slice() {
            [BlockOutcome::Done | BlockOutcome::Already] => Ok(()),
            _ => Err(format!("node {} does not pass block {digest} on", node.short())),
        }
    }

    /// All blocks, each verified.
    async fn read(&self, data: &[Option<Shard>], pace: &Pace) -> Given<Vec<ShardPiece>> {
        let mut reads = FuturesUnordered::new();
        for (slot, shard) in data.iter().enumerate() {
            let Some(shard) = shard else { continue };
            let Some(node) = shard.node else { return Err("a block waits for a node".into()) };
            pace.wait(shard.len.as_usize()).await;
            let block = block_of(shard);
            reads.push(async move { (slot, self.reader.whole(node, block, None).await) });
        }
        let mut pieces = Vec::with_capacity(data.len());
        while let Some((slot, read)) = reads.next().await {
            let bytes = read.map_err(|fault| format!("block {slot} cannot be read: {fault}"))?.into_bytes();
            pieces.push(ShardPiece { slot, bytes });
        }
        Ok(pieces)
    }

    /// Commits the new parity. The queue holds the same orders, so a failure here costs only time.
    async fn commit_parity(&self, packed: &Stripe) {
        let putter = Putter { pool: Arc::clone(&self.pool) };
        for shard in packed.shards.iter().skip(usize::from(packed.k)).flatten() {
            let Some(node) = shard.node else { continue };
            putter.commit(node, ClaimRef(shard.digest, self.tags.tag(packed.id, node))).await;
        }
    }
}

/// What the merged stripe is, before its parity is known.
struct Shape {
    id: StripeId,
    k: u8,
    m: u8,
}

fn encode(shape: &Shape, data: &[Option<Shard>], pieces: &[ShardPiece]) -> Given<Vec<Block>> {
    let longest = data.iter().flatten().map(|shard| shard.len.as_usize()).max().unwrap_or(0);
    let mut pieces = pieces.to_vec();
    let gaps = data.iter().enumerate().filter(|(_, shard)| shard.is_none());
    pieces.extend(gaps.map(|(slot, _)| ShardPiece { slot, bytes: Bytes::new() }));
    let (k, m) = (usize::from(shape.k), usize::from(shape.m));
    let wanted: Vec<WantedShard> = (k..k + m).map(|slot| WantedShard { slot, len: longest }).collect();
    let code = Code::shared(k, m).map_err(|error| error.to_string())?;
    let parity = code.reconstruct(&pieces, &wanted).map_err(|error| error.to_string())?;
    parity.into_iter().map(|bytes| Block::new(bytes).map_err(|error| error.to_string())).collect()
}

fn change(
    merge: &Merge,
    shape: &Shape,
    mut shards: Vec<Option<Shard>>,
    parity: &[Block],
    nodes: &[NodeId],
) -> PackChange {
    let survivor = merge.survivor.as_ref().map(|candidate| candidate.stripe.clone());
    let absorbed: Vec<Stripe> = merge.absorbed.iter().map(|candidate| candidate.stripe.clone()).collect();
    let policy = merge.sources().next().map(|stripe| stripe.policy);
    for (block, node) in parity.iter().zip(nodes) {
        shards.push(Some(Shard { digest: block.digest(), len: block.len(), node: Some(*node) }));
    }
    let block_len = shards.iter().flatten().map(|shard| shard.len).max();
    let packed = Stripe {
        v: Stripe::VERSION,
        id: shape.id,
        version: survivor.as_ref().map_or(1, |stripe| stripe.version + 1),
        policy: policy.unwrap_or(holdfast_protocol::record::PolicyName::Local),
        k: shape.k,
        m: shape.m,
        block_len: block_len.unwrap_or(holdfast_protocol::BlockLen::MAX),
        shards,
    };
    PackChange { packed, survivor, absorbed }
}

fn report_on(merge: &Merge, packed: &Stripe) -> PackReport {
    let bytes = |stripe: &Stripe, from: usize| -> u64 {
        stripe.shards.iter().skip(from).flatten().map(|shard| u64::from(shard.len.bytes())).sum()
    };
    let k = usize::from(packed.k);
    let before: u64 = merge.sources().map(|stripe| bytes(stripe, 0)).sum();
    let parity = bytes(packed, k);
    let living = bytes(packed, 0) - parity;
    PackReport {
        candidates: 0,
        merges: 1,
        stripes_absorbed: merge.absorbed.len() as u64,
        bytes_read: living,
        bytes_written: parity,
        bytes_released: before.saturating_sub(living),
        failed: 0,
    }
}
