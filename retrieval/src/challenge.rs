//! Challenges: asks nodes for chunks drawn by chance, with proofs, and says who could answer.
//!
//! Chunks are drawn uniformly over the *bytes* a node is said to hold, so a node that lost one per cent of
//! them fails one draw in a hundred whatever its blocks' lengths. Each chunk comes together with the last
//! chunk of its block: only the proof of the last chunk binds the block's length. On the wire a challenge is
//! an ordinary read of one or two leaves under an ordinary grant; a node cannot tell it from a customer.
//!
//! This is the surprise kind of challenge. It decides nothing about pay and keeps no log.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use holdfast_proofs::path_len;
use holdfast_protocol::limits::CHUNK_LEN;
use holdfast_protocol::message::{ByteRange, LeafUnit};
use holdfast_protocol::record::PresentedGrant;
use holdfast_protocol::{Digest, NodeId};
use serde::{Serialize, Serializer};
use tokio::time::Instant;

use crate::block::BlockRef;
use crate::fetch::{ReadFault, VerifiedReader};
use crate::pool::NodePool;

/// Chunks that one node may be asked for in one run.
pub const CHUNKS_PER_NODE_MAX: usize = 10_000;

/// A block that a node is said to hold.
#[derive(Clone, Debug)]
pub struct Target {
    /// Who holds it.
    pub node: NodeId,
    /// Its name and length, from a record that is trusted.
    pub block: BlockRef,
    /// Permission to read, unless the pool's session has it or the block is public.
    pub grant: Option<Box<PresentedGrant>>,
}

/// How a run goes.
#[derive(Clone, Debug)]
pub struct ChallengeOptions {
    /// Chunks asked of each node.
    pub chunks_per_node: usize,
    /// Chunks under way at the same time, over all nodes.
    pub concurrency: usize,
    /// One request ends after this time.
    pub timeout: Duration,
    /// What the draw comes from: the same seed and targets give the same chunks. Random when absent.
    pub seed: Option<[u8; 32]>,
}

impl Default for ChallengeOptions {
    fn default() -> Self {
        Self { chunks_per_node: 20, concurrency: 16, timeout: Duration::from_secs(10), seed: None }
    }
}

/// How one chunk's challenge ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum Verdict {
    /// Chunk and last chunk are proved.
    Ok,
    /// The answer does not prove them.
    WrongProof {
        /// What is wrong with it.
        what: String,
    },
    /// The node says that it does not hold the block.
    Absent,
    /// The node refused.
    Refused {
        /// Its words.
        why: String,
    },
    /// No complete answer in time.
    Timeout,
    /// The node could not be reached, or the connection broke.
    Offline {
        /// What the transport said.
        why: String,
    },
}

impl Verdict {
    fn of(fault: ReadFault) -> Self {
        match fault {
            ReadFault::Lied { what } => Self::WrongProof { what },
            ReadFault::Absent(_) => Self::Absent,
            ReadFault::Refused(refusal) => Self::Refused { why: refusal.to_string() },
            ReadFault::Timeout { .. } => Self::Timeout,
            ReadFault::Offline { detail } | ReadFault::Broken { detail } => Self::Offline { why: detail },
        }
    }

    /// Whether the chunk is proved to be there.
    pub fn passed(&self) -> bool {
        matches!(self, Self::Ok)
    }

    /// Whether the node itself showed that it does not have the chunk, or will not show it.
    pub fn failed(&self) -> bool {
        matches!(self, Self::WrongProof { .. } | Self::Absent | Self::Refused { .. })
    }

    /// Whether nothing was heard: neither for nor against the node.
    pub fn unreachable(&self) -> bool {
        matches!(self, Self::Timeout | Self::Offline { .. })
    }
}

/// One chunk's challenge.
#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    /// Who was asked.
    #[serde(serialize_with = "as_text")]
    pub node: NodeId,
    /// About which block.
    #[serde(serialize_with = "as_text")]
    pub digest: Digest,
    /// Which chunk of it, counted from 0.
    pub chunk: u32,
    /// From asking to the verdict, dialling included.
    pub micros: u64,
    /// Bytes of leaves and paths that were moved and verified.
    pub bytes: u64,
    /// How it ended.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// What one node's challenges showed.
#[derive(Clone, Debug, Serialize)]
pub struct NodeReport {
    /// The node.
    #[serde(serialize_with = "as_text")]
    pub node: NodeId,
    /// Bytes it is said to hold, from which the chunks were drawn.
    pub claimed_bytes: u64,
    /// Chunks asked for.
    pub asked: usize,
    /// Proved.
    pub passed: usize,
    /// Not proved: wrong answer, absent or refused.
    pub failed: usize,
    /// Not heard of.
    pub unreachable: usize,
    /// Bytes of leaves and paths moved.
    pub bytes: u64,
    /// Middle time of the answers that passed.
    pub micros_p50: u64,
    /// Longest time of the answers that passed.
    pub micros_max: u64,
    /// Every answer that did not pass.
    pub misses: Vec<Answer>,
}

/// What a run showed.
#[derive(Clone, Debug, Serialize)]
pub struct ChallengeReport {
    /// What the draw came from, in hexadecimal: enough to repeat it over the same targets.
    pub seed: String,
    /// One entry per node, in the order of their ids.
    pub nodes: Vec<NodeReport>,
}

impl ChallengeReport {
    /// Whether every chunk asked for was proved.
    pub fn all_passed(&self) -> bool {
        self.nodes.iter().all(|node| node.passed == node.asked)
    }
}

/// Why a run could not begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChallengeError {
    /// The system gave no random bytes for the seed.
    #[error("the system's random source failed")]
    Random,
    /// Too many chunks at once.
    #[error("at most {CHUNKS_PER_NODE_MAX} chunks can be asked of a node in one run, not {asked}")]
    TooMany {
        /// Chunks asked.
        asked: usize,
    },
}

impl ChallengeError {
    /// Whether trying again can help.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Random)
    }
}

/// Asks for chunks and judges the answers.
pub struct Challenger {
    reader: VerifiedReader,
    options: ChallengeOptions,
}

impl Challenger {
    /// A challenger that reaches nodes through `pool`.
    pub fn new(pool: Arc<NodePool>, options: ChallengeOptions) -> Self {
        Self { reader: VerifiedReader::new(pool, options.timeout), options }
    }

    /// Challenges every node that `targets` names; `on_answer` hears every answer as it comes.
    ///
    /// # Cancel safety
    /// Cancel safe: challenges under way are dropped and count for nothing.
    pub async fn run(
        &self,
        targets: &[Target],
        on_answer: impl Fn(&Answer),
    ) -> Result<ChallengeReport, ChallengeError> {
        let asked = self.options.chunks_per_node;
        if asked > CHUNKS_PER_NODE_MAX {
            return Err(ChallengeError::TooMany { asked });
        }
        let mut seed = [0u8; 32];
        match self.options.seed {
            Some(given) => seed = given,
            None => getrandom::fill(&mut seed).map_err(|_| ChallengeError::Random)?,
        }
        let mut draws: Vec<Draw<'_>> =
            by_node(targets).iter().flat_map(|(node, targets)| draw(&seed, *node, targets, asked)).collect();
        // Round robin over the nodes, so that one slow node does not hold up the others' chunks.
        draws.sort_by_key(|draw| draw.round);
        let mut answers: BTreeMap<NodeId, Vec<Answer>> = BTreeMap::new();
        let mut under_way = futures::stream::iter(draws)
            .map(|draw| self.ask(draw))
            .buffer_unordered(self.options.concurrency.max(1));
        while let Some(answer) = under_way.next().await {
            on_answer(&answer);
            answers.entry(answer.node).or_default().push(answer);
        }
        let nodes = by_node(targets)
            .into_iter()
            .map(|(node, targets)| report_on(node, &targets, answers.remove(&node).unwrap_or_default()))
            .collect();
        Ok(ChallengeReport { seed: blake3::Hash::from(seed).to_hex().to_string(), nodes })
    }

    async fn ask(&self, draw: Draw<'_>) -> Answer {
        let Target { node, block, grant } = draw.target;
        let ranges = ranges_of(*block, draw.chunk);
        let started = Instant::now();
        let read = self.reader.leaves(*node, *block, LeafUnit::Chunk, &ranges, grant.clone()).await;
        let micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        let (verdict, bytes) = match read {
            Ok(leaves) => (Verdict::Ok, leaves.into_leaves().len() as u64 + path_bytes(*block, &ranges)),
            Err(fault) => (Verdict::of(fault), 0),
        };
        Answer { node: *node, digest: block.digest, chunk: draw.chunk, micros, bytes, verdict }
    }
}

/// One chunk to ask for.
struct Draw<'a> {
    target: &'a Target,
    chunk: u32,
    round: usize,
}

fn by_node(targets: &[Target]) -> BTreeMap<NodeId, Vec<&Target>> {
    let mut nodes: BTreeMap<NodeId, Vec<&Target>> = BTreeMap::new();
    for target in targets {
        nodes.entry(target.node).or_default().push(target);
    }
    nodes
}

/// Draws `count` chunks uniformly over the bytes of a node's blocks, with repetition.
///
/// The stream of numbers is BLAKE3's output keyed by the seed over the node's id: a node's draw does not
/// depend on which other nodes are challenged.
fn draw<'a>(seed: &[u8; 32], node: NodeId, targets: &[&'a Target], count: usize) -> Vec<Draw<'a>> {
    let mut ends = Vec::with_capacity(targets.len());
    let mut total = 0u64;
    for target in targets {
        total += u64::from(target.block.len.bytes());
        ends.push(total);
    }
    if total == 0 {
        return Vec::new();
    }
    let mut numbers = blake3::Hasher::new_keyed(seed).update(node.as_bytes()).finalize_xof();
    (0..count)
        .map(|round| {
            let position = below(&mut numbers, total);
            let index = ends.partition_point(|end| *end <= position);
            let target = targets[index];
            let offset = position - (ends[index] - u64::from(target.block.len.bytes()));
            let chunk = u32::try_from(offset / u64::from(CHUNK_LEN)).unwrap_or(0);
            Draw { target, chunk, round }
        })
        .collect()
}

/// A number below `bound`, each alike: numbers of the last, incomplete round of `bound` are drawn again.
fn below(numbers: &mut blake3::OutputReader, bound: u64) -> u64 {
    let usable = u64::MAX - u64::MAX % bound;
    loop {
        let mut bytes = [0u8; 8];
        numbers.fill(&mut bytes);
        let number = u64::from_le_bytes(bytes);
        if number < usable {
            return number % bound;
        }
    }
}

/// The chunk, and the last chunk of the block unless it is the same.
fn ranges_of(block: BlockRef, chunk: u32) -> Vec<ByteRange> {
    let len = block.len.bytes();
    let last = (len - 1) / CHUNK_LEN;
    let range = |chunk: u32| {
        let start = chunk * CHUNK_LEN;
        ByteRange { start, len: CHUNK_LEN.min(len - start) }
    };
    if chunk >= last { vec![range(last)] } else { vec![range(chunk), range(last)] }
}

fn path_bytes(block: BlockRef, ranges: &[ByteRange]) -> u64 {
    let parents: usize =
        ranges.iter().filter_map(|range| path_len(LeafUnit::Chunk, range.start / CHUNK_LEN, block.len)).sum();
    32 * parents as u64
}

fn report_on(node: NodeId, targets: &[&Target], answers: Vec<Answer>) -> NodeReport {
    let count = |is: fn(&Verdict) -> bool| answers.iter().filter(|answer| is(&answer.verdict)).count();
    let mut times: Vec<u64> =
        answers.iter().filter(|answer| answer.verdict.passed()).map(|answer| answer.micros).collect();
    times.sort_unstable();
    NodeReport {
        node,
        claimed_bytes: targets.iter().map(|target| u64::from(target.block.len.bytes())).sum(),
        asked: answers.len(),
        passed: count(Verdict::passed),
        failed: count(Verdict::failed),
        unreachable: count(Verdict::unreachable),
        bytes: answers.iter().map(|answer| answer.bytes).sum(),
        micros_p50: times.get(times.len() / 2).copied().unwrap_or(0),
        micros_max: times.last().copied().unwrap_or(0),
        misses: answers.into_iter().filter(|answer| !answer.verdict.passed()).collect(),
    }
}

fn as_text<S: Serializer>(value: &impl std::fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

#[cfg(test)]
mod tests;
