//! Commit groups: small objects written at about the same time share a stripe.
//!
//! A group closes when it has k blocks, 3 ms after its first block, or *at once* when waiting could gain
//! nothing: no other group of the policy is being written, and no announced PUT is still on its way. So a
//! lone PUT never waits, while under load the next group fills as long as the previous one is being
//! written (which is how group commit batches anywhere).
//!
//! One task per policy owns the open group and the writes in flight. Participants only wait for an answer:
//! one that is cancelled before its group closes takes its blocks with it; after that they stay in the
//! stripe as dead data, and the others never notice. A group that fails, fails for all of its participants,
//! each of which may try again.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use holdfast_protocol::record::{Policy, PolicyName};
use holdfast_protocol::{BlockLen, Digest};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{DraftBlock, StripeDraft, StripeWriter, WriteError, WrittenStripe};

/// How long a group waits for more blocks.
pub const GATHER_MAX: Duration = Duration::from_millis(3);
/// Groups of one policy being written at the same time. With 6 shards of at most 1 MiB each they hold at
/// most 384 MiB, and usually (100 KiB objects) a tenth of that.
const IN_FLIGHT_MAX: usize = 64;
/// PUTs that wait to join a group of one policy; more wait for the queue.
const QUEUE_MAX: usize = 256;

type Outcome = Result<Arc<WrittenStripe>, WriteError>;

/// Gathers small writes into stripes. Cheap to clone. Its tasks end when the last clone is dropped.
#[derive(Clone)]
pub struct CommitGroups {
    shared: Arc<Shared>,
}

struct Shared {
    writer: StripeWriter,
    /// At most one per code and name, of which there are a handful.
    lanes: Mutex<HashMap<LaneKey, Lane>>,
}

/// A policy as a key: two with one name and different codes (journals) do not share stripes.
type LaneKey = (PolicyName, usize, usize, usize);

fn lane_key(policy: &Policy) -> LaneKey {
    (policy.name, policy.k, policy.m, policy.w)
}

#[derive(Clone)]
struct Lane {
    joins: mpsc::Sender<Join>,
    expected: Arc<AtomicUsize>,
}

/// Says that a small PUT of a policy is on its way, so that groups wait for it (3 ms at most). Dropping it
/// takes the word back.
pub struct Announcement {
    expected: Arc<AtomicUsize>,
}

impl Announcement {
    fn new(expected: Arc<AtomicUsize>) -> Self {
        expected.fetch_add(1, Ordering::Relaxed);
        Self { expected }
    }
}

impl Drop for Announcement {
    fn drop(&mut self) {
        self.expected.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A participant.
struct Join {
    blocks: Vec<DraftBlock>,
    answer: oneshot::Sender<Outcome>,
    /// Dropped when the participant is in a group: from then on nobody waits for it.
    _announcement: Announcement,
}

impl CommitGroups {
    /// Groups that are written by `writer`.
    pub fn new(writer: StripeWriter) -> Self {
        Self { shared: Arc::new(Shared { writer, lanes: Mutex::default() }) }
    }

    /// The writer of the groups.
    pub fn writer(&self) -> &StripeWriter {
        &self.shared.writer
    }

    /// Says that a small PUT is on its way. Pass the result to [`CommitGroups::put`].
    pub fn announce(&self, policy: &Policy) -> Announcement {
        Announcement::new(self.lane(policy).expected)
    }

    /// Writes 1 to k blocks in a stripe that others may share, and answers when it is durable.
    ///
    /// # Errors
    /// Those of [`StripeWriter::write`]; all participants of a group get the same.
    ///
    /// # Cancel safety
    /// Cancel safe: the blocks may be written anyway, and nobody refers to them then.
    pub async fn put(
        &self,
        policy: &Policy,
        blocks: Vec<DraftBlock>,
        announced: Option<Announcement>,
    ) -> Outcome {
        let distinct: HashSet<Digest> = blocks.iter().map(|draft| draft.block.digest()).collect();
        if distinct.is_empty() || distinct.len() > policy.k {
            return Err(WriteError::Draft { detail: "a participant of a group brings 1 to k blocks" });
        }
        let lane = self.lane(policy);
        let _announcement = announced.unwrap_or_else(|| Announcement::new(Arc::clone(&lane.expected)));
        let (answer, outcome) = oneshot::channel();
        let join = Join { blocks, answer, _announcement };
        lane.joins.send(join).await.map_err(|_| WriteError::Stopping)?;
        outcome.await.map_err(|_| WriteError::Stopping)?
    }

    /// The policy's lane, its task started if need be.
    fn lane(&self, policy: &Policy) -> Lane {
        let mut lanes = self.shared.lanes.lock();
        if let Some(lane) = lanes.get(&lane_key(policy))
            && !lane.joins.is_closed()
        {
            return lane.clone();
        }
        let (joins, arrivals) = mpsc::channel(QUEUE_MAX);
        let expected = Arc::new(AtomicUsize::new(0));
        let gatherer = Gatherer {
            writer: self.shared.writer.clone(),
            policy: *policy,
            expected: Arc::clone(&expected),
            open: None,
            flights: JoinSet::new(),
        };
        tokio::spawn(gatherer.run(arrivals));
        let lane = Lane { joins, expected };
        lanes.insert(lane_key(policy), lane.clone());
        lane
    }
}

/// The open group.
struct Open {
    /// Participants with their blocks.
    members: Vec<Join>,
    /// The terms of every distinct block in it.
    blocks: HashMap<Digest, DraftTerms>,
    closes_at: Instant,
}

/// What must be alike for two participants to share one slot.
type DraftTerms = (BlockLen, Option<holdfast_protocol::record::ScopeId>, u64);

fn terms(draft: &DraftBlock) -> DraftTerms {
    (draft.block.len(), draft.scope, draft.retain_until_ms)
}

impl Open {
    fn new() -> Self {
        let closes_at = Instant::now() + GATHER_MAX;
        Self { members: Vec::new(), blocks: HashMap::new(), closes_at }
    }

    /// Whether these blocks fit beside those that are there. The same bytes under other terms do not: they
    /// need a claim of their own, hence a stripe of their own.
    fn admits(&self, blocks: &[DraftBlock], k: usize) -> bool {
        let mut fresh = HashSet::new();
        for draft in blocks {
            match self.blocks.get(&draft.block.digest()) {
                Some(known) if *known != terms(draft) => return false,
                Some(_) => {}
                None => {
                    fresh.insert(draft.block.digest());
                }
            }
        }
        self.blocks.len() + fresh.len() <= k
    }

    fn add(&mut self, join: Join) {
        self.blocks.extend(join.blocks.iter().map(|draft| (draft.block.digest(), terms(draft))));
        self.members.push(join);
    }
}

/// The task of one policy.
struct Gatherer {
    writer: StripeWriter,
    policy: Policy,
    expected: Arc<AtomicUsize>,
    open: Option<Open>,
    flights: JoinSet<()>,
}

impl Gatherer {
    async fn run(mut self, mut arrivals: mpsc::Receiver<Join>) {
        loop {
            let closes_at = self.open.as_ref().map(|open| open.closes_at);
            tokio::select! {
                biased;
                join = arrivals.recv(), if self.flights.len() < IN_FLIGHT_MAX => {
                    let Some(join) = join else { break };
                    self.joined(join);
                    // Those who are waiting already join before anything is decided.
                    while self.flights.len() < IN_FLIGHT_MAX && let Ok(join) = arrivals.try_recv() {
                        self.joined(join);
                    }
                    self.close_if_alone();
                }
                Some(_) = self.flights.join_next() => self.close_if_alone(),
                () = tokio::time::sleep_until(closes_at.unwrap_or_else(Instant::now)),
                    if closes_at.is_some() => self.close(),
            }
        }
        self.close();
        // The participants of writes in flight are answered even though nobody can join any more.
        while self.flights.join_next().await.is_some() {}
    }

    fn joined(&mut self, join: Join) {
        if self.open.as_ref().is_some_and(|open| !open.admits(&join.blocks, self.policy.k)) {
            self.close();
        }
        let open = self.open.get_or_insert_with(Open::new);
        open.add(join);
        if open.blocks.len() >= self.policy.k {
            self.close();
        }
    }

    /// Closes the open group when nothing is in flight and all announced PUTs have joined it.
    fn close_if_alone(&mut self) {
        let Some(open) = &self.open else { return };
        // Members hold their announcements until the group closes.
        if self.flights.is_empty() && self.expected.load(Ordering::Relaxed) <= open.members.len() {
            self.close();
        }
    }

    /// Sends the open group on its way.
    fn close(&mut self) {
        let Some(open) = self.open.take() else { return };
        let members = open.members.into_iter().filter(|join| !join.answer.is_closed());
        let (mut blocks, mut answers) = (Vec::new(), Vec::new());
        for join in members {
            blocks.extend(join.blocks);
            answers.push(join.answer);
        }
        if blocks.is_empty() {
            return;
        }
        let writer = self.writer.clone();
        let draft = StripeDraft { policy: self.policy, blocks };
        self.flights.spawn(async move {
            let outcome = writer.write(draft).await.map(Arc::new);
            for answer in answers {
                // A participant that is gone has no use for it.
                let _ = answer.send(outcome.clone());
            }
        });
    }
}

#[cfg(test)]
mod tests;
