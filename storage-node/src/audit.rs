//! The node's side of audits: commits to what it holds before each draw, opens what was drawn, and proves it.
//!
//! [`ledger`] keeps the committed inventory on disk; [`NodeAudit`] ties it to the store and the clock. A draw is
//! *opened* as soon as its round is known: the leaves and their paths go into the epoch's file, so the next epoch may
//! commit while old draws are still due, and only the chunks are read when they are asked for. What is proved is
//! verified here first: an honest node never signs a wrong proof, whatever its disk does.
//!
//! ```text
//! DIR/audit/inventory/   RocksDB: the inventory as last committed to (see ledger.rs); can be made anew
//! DIR/audit/epochs/      one file per epoch of which something may be due
//! ```

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use holdfast_proofs::beacon::{Beacon, BeaconError};
use holdfast_proofs::inventory::InventoryError;
use holdfast_proofs::policy::{AuditPolicy, PolicyError};
use holdfast_protocol::limits::{COUNTERSIGNATURES_MAX, DECLARED_DIGESTS_MAX, INVENTORY_PAGE_MAX};
use holdfast_protocol::record::{
    AgreementId, AuditAnswer, BeaconRound, Commitment, Countersignature, Declaration, DeclaredAs, Epoch,
    InventoryPage, RecordId, Signed, Standing, Unverified, Verdict,
};
use holdfast_protocol::rpc::ShownCommitment;
use holdfast_protocol::{Digest, NodeId, SigningKey};
use parking_lot::Mutex as SyncMutex;
use tokio::sync::Mutex;

use crate::store::{ReadError, StoreError};

mod answer;
pub(crate) mod chores;
mod epochs;
mod ledger;
pub mod source;
mod store;

use answer::Answered;
use epochs::{EpochFile, Epochs};
use ledger::Ledger;
pub use source::{InventorySource, SourceEntry};

/// How a node is audited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAuditConfig {
    /// The network's rules.
    pub policy: AuditPolicy,
    /// Commits by itself at the start of each epoch; tests do it themselves.
    pub commits: bool,
    /// Auditors that the node dials, so that they can ask it through its own connection.
    pub auditors: Vec<(NodeId, Vec<std::net::SocketAddr>)>,
}

/// Auditors whose words about this node are remembered.
const STANDINGS_MAX: usize = 16;
/// Answers kept ready: each is about 75 KB, and several auditors ask for the same.
const ANSWERS_KEPT: usize = 4;

/// Audits of one node.
pub struct NodeAudit {
    key: Arc<SigningKey>,
    policy: AuditPolicy,
    beacon: Box<dyn Beacon>,
    source: Arc<dyn InventorySource>,
    /// One at a time: committing and answering read the same inventory, and strangers may ask.
    state: Mutex<State>,
    standings: SyncMutex<BTreeMap<NodeId, Standing>>,
    /// Spoils answers after they were verified, in tests of auditors.
    misbehave: bool,
}

struct State {
    ledger: Ledger,
    epochs: Epochs,
    answers: Vec<Answered>,
}

impl NodeAudit {
    /// Opens what is kept in `dir`, making it when absent. Blocks.
    ///
    /// # Errors
    /// [`AuditError`] when the rules make no sense or the disk fails.
    pub fn open(
        dir: &Path,
        key: Arc<SigningKey>,
        policy: AuditPolicy,
        source: Arc<dyn InventorySource>,
    ) -> Result<Self, AuditError> {
        policy.check()?;
        let beacon = policy.beacon.open()?;
        // Blinds owners in leaves: derived, so that a lost directory does not change the inventory.
        let secret = blake3::derive_key("holdfast inventory owner secret v1", key.seed());
        let ledger = Ledger::open(&dir.join("inventory"), secret)?;
        let epochs = Epochs::open(&dir.join("epochs"))?;
        Ok(Self {
            key,
            policy,
            beacon,
            source,
            state: Mutex::new(State { ledger, epochs, answers: Vec::new() }),
            standings: SyncMutex::new(BTreeMap::new()),
            misbehave: false,
        })
    }

    /// Makes every proof wrong after it was verified.
    pub fn misbehaving(mut self) -> Self {
        self.misbehave = true;
        self
    }

    /// The rules.
    pub const fn policy(&self) -> &AuditPolicy {
        &self.policy
    }

    fn me(&self) -> NodeId {
        NodeId(self.key.public())
    }

    /// Commits to what is held now, for the epoch of `now_ms`. Says nothing new when that is done already, or when
    /// the draw is over: a late commitment would be countersigned by nobody.
    ///
    /// # Errors
    /// [`AuditError`] when the store or the disk fails; the epoch may be tried again before its draw.
    pub async fn commit(&self, now_ms: u64) -> Result<Option<CommitReport>, AuditError> {
        let epoch = self.policy.epoch_at(now_ms);
        let mut state = self.state.lock().await;
        if now_ms >= self.policy.draw_of(epoch) || state.epochs.get(epoch).is_some() {
            return Ok(None);
        }
        let hashed = state.ledger.refresh(&*self.source).await?;
        let root = state.ledger.root();
        let commitment = Commitment {
            v: 1,
            node: self.me(),
            epoch,
            count: state.ledger.count(),
            bytes: root.bytes,
            root: root.hash,
            issued_ms: now_ms,
        };
        let signed = Signed::sign(commitment, &self.key);
        let oldest = epoch.saturating_sub(self.policy.epochs_due());
        state.epochs.insert(EpochFile::new(&signed), oldest)?;
        state.ledger.committed(epoch)?;
        Ok(Some(CommitReport { epoch, buckets: hashed, blocks: state.ledger.count(), bytes: root.bytes }))
    }

    /// What the node says for `epoch`: its commitment, what it has lost since, who countersigned.
    ///
    /// # Errors
    /// [`AuditError::NoCommitment`] when it has not committed.
    pub async fn shown(&self, epoch: Epoch, now_ms: u64) -> Result<ShownCommitment, AuditError> {
        let mut state = self.state.lock().await;
        let file = state.epochs.get(epoch).ok_or(AuditError::NoCommitment { epoch })?;
        if file.declarations.is_empty() && now_ms < self.policy.draw_of(epoch) {
            let issued_ms = file.commitment.verify().map_or(0, |signed| signed.record().issued_ms);
            let declarations = self.declare(epoch, issued_ms, now_ms).await?;
            if let Some(file) = state.epochs.get_mut(epoch).filter(|_| !declarations.is_empty()) {
                file.declarations = declarations;
                state.epochs.save(epoch)?;
            }
        }
        let file = state.epochs.get(epoch).ok_or(AuditError::NoCommitment { epoch })?;
        Ok(ShownCommitment {
            commitment: file.commitment.clone(),
            declarations: file.declarations.clone(),
            countersignatures: file.countersignatures.clone(),
        })
    }

    /// Blocks that were committed to and lost since, declared before the draw.
    async fn declare(
        &self,
        epoch: Epoch,
        since_ms: u64,
        now_ms: u64,
    ) -> Result<Vec<Unverified<Declaration>>, AuditError> {
        let mut digests = self.source.lost_since(since_ms, DECLARED_DIGESTS_MAX).await?;
        if digests.is_empty() {
            return Ok(Vec::new());
        }
        digests.sort_unstable();
        digests.dedup();
        let declaration =
            Declaration { v: 1, node: self.me(), epoch, kind: DeclaredAs::Lost, digests, issued_ms: now_ms };
        Ok(vec![Signed::sign(declaration, &self.key).to_wire()])
    }

    /// Keeps an auditor's word that it saw our commitment in time.
    ///
    /// # Errors
    /// [`AuditError::Foreign`] when it is about something else.
    pub async fn countersigned(
        &self,
        peer: NodeId,
        word: &Unverified<Countersignature>,
    ) -> Result<(), AuditError> {
        let signed = word.verify_by(peer.key()).map_err(|_| AuditError::Foreign)?;
        let record = signed.record();
        let mut state = self.state.lock().await;
        let file =
            state.epochs.get_mut(record.epoch).ok_or(AuditError::NoCommitment { epoch: record.epoch })?;
        let ours = file.commitment.verify().map(|signed| RecordId(signed.id()));
        if record.node != self.me() || !ours.is_ok_and(|ours| ours == record.commitment) {
            return Err(AuditError::Foreign);
        }
        let known = file.countersignatures.iter().any(|known| known.claimed_signer() == peer.key());
        if !known && file.countersignatures.len() < COUNTERSIGNATURES_MAX {
            file.countersignatures.push(word.clone());
            state.epochs.save(record.epoch)?;
        }
        Ok(())
    }

    /// Answers the draw of `epoch` by `round`: the signed head and the proofs of `draws`, or of all.
    ///
    /// # Errors
    /// [`AuditError`] when the round is not that epoch's, or nothing was committed to.
    pub async fn answer(
        &self,
        epoch: Epoch,
        round: &BeaconRound,
        draws: &[u32],
        now_ms: u64,
    ) -> Result<(Unverified<AuditAnswer>, Bytes), AuditError> {
        let mut state = self.state.lock().await;
        let state = &mut *state;
        if let Some(ready) = state.answers.iter().find(|ready| ready.is_for(epoch, round.round, draws)) {
            return Ok(ready.parts());
        }
        self.open_draw(state, epoch, round)?;
        let file = state.epochs.get(epoch).ok_or(AuditError::NoCommitment { epoch })?;
        let proofs = answer::prove(&*self.source, file, draws, self.misbehave).await?;
        let answered = Answered::sign(&self.key, epoch, round.round, draws, &proofs, now_ms);
        if answered.is_complete(&proofs) {
            if state.answers.len() == ANSWERS_KEPT {
                state.answers.remove(0);
            }
            state.answers.push(answered.clone());
        }
        Ok(answered.parts())
    }

    /// Finds out what a round draws and opens it, once; afterwards the inventory may change.
    fn open_draw(&self, state: &mut State, epoch: Epoch, round: &BeaconRound) -> Result<(), AuditError> {
        let expected = self.beacon.round_at(self.policy.draw_of(epoch));
        if round.round != expected {
            return Err(AuditError::Round { epoch, expected, found: round.round });
        }
        let file = state.epochs.get(epoch).ok_or(AuditError::NoCommitment { epoch })?;
        if file.opened.is_some() {
            return Ok(());
        }
        let randomness = self.beacon.verify(round)?;
        if state.ledger.epoch() != Some(epoch) {
            return Err(AuditError::Passed { epoch });
        }
        let opened = state.ledger.open_draw(&randomness, self.me(), epoch, self.policy.chunks)?;
        let file = state.epochs.get_mut(epoch).ok_or(AuditError::NoCommitment { epoch })?;
        (file.opened, file.randomness) = (Some(opened), Some(randomness));
        state.epochs.save(epoch)
    }

    /// The next page of what an agreement keeps, as committed to. The caller has checked who asks.
    ///
    /// # Errors
    /// [`AuditError::Uncommitted`] before the first commitment.
    pub async fn page(
        &self,
        agreement: AgreementId,
        after: Option<Digest>,
        max: u32,
        now_ms: u64,
    ) -> Result<Signed<InventoryPage>, AuditError> {
        let state = self.state.lock().await;
        let epoch = state.ledger.epoch().ok_or(AuditError::Uncommitted)?;
        let max = (max as usize).min(INVENTORY_PAGE_MAX);
        let (entries, last) = state.ledger.page(&agreement, after.as_ref(), max)?;
        let page = InventoryPage {
            v: 1,
            node: self.me(),
            agreement,
            epoch: Some(epoch),
            root: Some(state.ledger.root().hash),
            after,
            entries,
            last,
            issued_ms: now_ms,
        };
        Ok(Signed::sign(page, &self.key))
    }

    /// Keeps what an auditor found, for the operator to see.
    ///
    /// # Errors
    /// [`AuditError::Foreign`] when it is not the peer's word about this node.
    pub fn found(
        &self,
        peer: NodeId,
        verdict: &Unverified<Verdict>,
        standing: &Unverified<Standing>,
    ) -> Result<(), AuditError> {
        let verdict = verdict.verify_by(peer.key()).map_err(|_| AuditError::Foreign)?.into_record();
        let standing = standing.verify_by(peer.key()).map_err(|_| AuditError::Foreign)?.into_record();
        if verdict.node != self.me() || standing.node != self.me() {
            return Err(AuditError::Foreign);
        }
        let mut standings = self.standings.lock();
        if standings.len() < STANDINGS_MAX || standings.contains_key(&peer) {
            standings.insert(peer, standing);
        }
        Ok(())
    }

    /// What auditors say of this node: scores, forecast, evidence, and the command that replays it.
    pub fn standings(&self) -> Vec<Standing> {
        self.standings.lock().values().cloned().collect()
    }
}

impl std::fmt::Debug for NodeAudit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeAudit").field("node", &self.me()).finish_non_exhaustive()
    }
}

/// What a commitment took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitReport {
    /// For which epoch.
    pub epoch: Epoch,
    /// Buckets hashed again.
    pub buckets: usize,
    /// Blocks committed to.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Why a node cannot commit or answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    /// The rules make no sense.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The beacon makes no sense, or a round of it does not hold.
    #[error(transparent)]
    Beacon(#[from] BeaconError),
    /// The store failed.
    #[error("the store failed: {0}")]
    Read(#[from] ReadError),
    /// The store failed.
    #[error("the store failed: {0}")]
    Store(#[from] StoreError),
    /// The store's index is damaged.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// The committed inventory cannot be read or written.
    #[error("the audit's files failed: {detail}")]
    Files {
        /// What failed.
        detail: String,
    },
    /// Nothing was committed to yet.
    #[error("no inventory has been committed to yet")]
    Uncommitted,
    /// No commitment for that epoch.
    #[error("there is no commitment for epoch {epoch}")]
    NoCommitment {
        /// The epoch.
        epoch: Epoch,
    },
    /// The draw was not known before the next commitment was made.
    #[error("the inventory of epoch {epoch} has passed before its round was shown")]
    Passed {
        /// The epoch.
        epoch: Epoch,
    },
    /// Another round draws that epoch.
    #[error("epoch {epoch} is drawn by round {expected}, not {found}")]
    Round {
        /// The epoch.
        epoch: Epoch,
        /// Its round.
        expected: u64,
        /// The round shown.
        found: u64,
    },
    /// A record that is not about this node, or not by this peer.
    #[error("this is not the peer's word about this node")]
    Foreign,
}

impl AuditError {
    /// Whether trying again later makes sense.
    pub const fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::Uncommitted
                | Self::NoCommitment { .. }
                | Self::Read(_)
                | Self::Store(_)
                | Self::Files { .. }
        )
    }
}

#[cfg(test)]
mod tests;
