//! A session onto stripes: which ranges of which blocks, and the reads.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use holdfast_protocol::message::{ByteRange, LeafUnit};
use holdfast_protocol::record::{PresentedGrant, Stripe};
use holdfast_protocol::{Digest, NodeId};
use tokio::time::Instant;

use super::{Chance, Session};
use crate::block::BlockRef;
use crate::fetch::gather::block_of;
use crate::fetch::{ReadFault, VerifiedReader, reads_whole};

/// Requests of one step under way at the same time: what a reader's window allows.
const AHEAD: usize = 16;

/// A stripe to read from, and the right to.
#[derive(Clone, Debug)]
pub struct SurpriseTarget {
    /// The stripe.
    pub stripe: Stripe,
    /// Permission, unless the session has it or the blocks are public.
    pub grant: Option<Box<PresentedGrant>>,
}

/// One request to one node.
#[derive(Clone, Debug)]
pub struct Planned {
    /// Who.
    pub node: NodeId,
    /// Which block.
    pub block: BlockRef,
    /// Which bytes of it.
    pub range: ByteRange,
    /// Permission.
    pub grant: Option<Box<PresentedGrant>>,
}

/// What one request showed.
#[derive(Clone, Debug)]
pub struct SurpriseAnswer {
    /// Who was asked.
    pub node: NodeId,
    /// About which block.
    pub digest: Digest,
    /// Which bytes of it.
    pub range: ByteRange,
    /// From asking to the verdict.
    pub took: Duration,
    /// Why not; `None` for verified bytes.
    pub fault: Option<ReadFault>,
}

/// The requests of a session, one list per step: each step begins at a data block by chance, and goes on through
/// the blocks behind it, then through those of another stripe.
pub fn plan_reads(session: &Session, targets: &[SurpriseTarget], chance: &mut Chance) -> Vec<Vec<Planned>> {
    session.steps.iter().map(|step| plan_step(step.offset, step.len, targets, chance)).collect()
}

fn plan_step(offset: u32, len: u64, targets: &[SurpriseTarget], chance: &mut Chance) -> Vec<Planned> {
    let mut planned = Vec::new();
    let (mut left, mut offset) = (len, offset);
    // A step over many short blocks ends when as many stripes as there are were read.
    for _ in 0..targets.len() {
        let target = &targets[chance.below(targets.len())];
        let k = usize::from(target.stripe.k);
        let data: Vec<_> = target.stripe.shards.iter().take(k).flatten().collect();
        if data.is_empty() {
            continue;
        }
        let first = if planned.is_empty() && left < u64::from(target.stripe.block_len.bytes()) {
            chance.below(data.len())
        } else {
            0
        };
        for shard in &data[first..] {
            let Some(node) = shard.node else { continue };
            // A read of a short block begins where there is something to read.
            let start = if offset < shard.len.bytes() { offset } else { 0 };
            let there = u64::from(shard.len.bytes() - start).min(left);
            offset = 0;
            left -= there;
            let range = ByteRange { start, len: u32::try_from(there).unwrap_or(u32::MAX) };
            planned.push(Planned { node, block: block_of(shard), range, grant: target.grant.clone() });
            if left == 0 {
                return planned;
            }
        }
    }
    planned
}

/// Reads as readers do.
pub struct SurpriseReader {
    reader: VerifiedReader,
}

impl SurpriseReader {
    /// A reader over the connections of a pool: the gateway's, or those of a key made for this session.
    pub fn new(reader: VerifiedReader) -> Self {
        Self { reader }
    }

    /// Carries out a session; `on_answer` hears every answer as it comes.
    ///
    /// # Cancel safety
    /// Cancel safe: reads under way are dropped and count for nothing.
    pub async fn run(
        &self,
        session: &Session,
        reads: Vec<Vec<Planned>>,
        mut on_answer: impl FnMut(SurpriseAnswer),
    ) {
        for (step, planned) in session.steps.iter().zip(reads) {
            tokio::time::sleep(step.pause).await;
            let mut waiting = planned.into_iter();
            let mut under_way = FuturesUnordered::new();
            loop {
                while under_way.len() < AHEAD
                    && let Some(read) = waiting.next()
                {
                    under_way.push(self.one(read));
                }
                match under_way.next().await {
                    Some(answer) => on_answer(answer),
                    None => break,
                }
            }
        }
    }

    async fn one(&self, read: Planned) -> SurpriseAnswer {
        let Planned { node, block, range, grant } = read;
        let started = Instant::now();
        let outcome = if reads_whole(block, range) {
            self.reader.whole(node, block, grant).await.map(drop)
        } else {
            self.reader.leaves(node, block, LeafUnit::Group, &[range], grant).await.map(drop)
        };
        SurpriseAnswer { node, digest: block.digest, range, took: started.elapsed(), fault: outcome.err() }
    }
}

/// Makes a reader of its own for a session: never shared, so that a fresh key is fresh.
impl From<Arc<crate::pool::NodePool>> for SurpriseReader {
    fn from(pool: Arc<crate::pool::NodePool>) -> Self {
        Self::new(VerifiedReader::new(pool, Duration::from_secs(10)))
    }
}
