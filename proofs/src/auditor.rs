//! The auditor's mind: takes what nodes and the beacon say and the time, and gives records to sign, log and send. No
//! I/O, no clock: the process around it asks nodes, the simulation plays them.
//!
//! For each node and epoch: a commitment is countersigned before the draw ([`Auditor::take_commitment`]); once the
//! beacon's round is there ([`Auditor::take_round`]) the drawn chunks are due; an answer settles those that it proves
//! ([`Auditor::take_answer`]); at the end of the time for answering the epoch is closed ([`Auditor::close`]), which
//! judges who was silent, or calls the epoch void; what is still due stays due until [`Auditor::expire`].

use std::collections::BTreeMap;
use std::sync::Arc;

use holdfast_protocol::limits::VERDICT_WHY_MAX;
use holdfast_protocol::record::{
    AuditAnswer, AuditOutcome, BeaconRound, Countersignature, DeclaredAs, DrawVerdict, Epoch, RecordId,
    Signed, Standing, Unverified, Verdict,
};
use holdfast_protocol::rpc::ShownCommitment;
use holdfast_protocol::{Digest, NodeId, SigningKey};

use crate::answer::{Question, decode_body};
use crate::beacon::Beacon;
use crate::draw::{Draw, Randomness};
use crate::inventory::Sum;
use crate::log::{LogEntry, LogOpening, VoidEpoch};
use crate::policy::AuditPolicy;
use crate::score::{Account, ScoreBook, is_correlated, ppm};

mod epoch;
mod error;
mod replay;

pub use epoch::MissKind;
use epoch::{EpochFile, NodeFile};
pub use error::{AnswerError, CommitmentError, RoundError};
pub use replay::ReplayError;

/// Nodes that one auditor follows; further ones are not taken in.
pub const NODES_MAX: usize = 100_000;

/// What should be asked of a node now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Its commitment for this epoch.
    Commitment(Epoch),
    /// Its answer: these draws of this epoch are due.
    Answer(Epoch, Vec<u32>),
}

/// What came of an answer.
#[derive(Clone, Debug)]
pub struct Taken {
    /// The verdict, once it is worth saying: everything settled.
    pub verdict: Option<Signed<Verdict>>,
    /// Where to keep the proofs: under this hash.
    pub body: Digest,
}

/// The auditor's state over all nodes.
pub struct Auditor {
    key: Arc<SigningKey>,
    me: NodeId,
    origin: String,
    policy: AuditPolicy,
    beacon: Arc<dyn Beacon>,
    nodes: BTreeMap<NodeId, NodeFile>,
    /// The rounds of epochs that something may be due of.
    rounds: BTreeMap<Epoch, (BeaconRound, Randomness)>,
    closed: Option<Epoch>,
    book: ScoreBook,
    entries: Vec<LogEntry>,
    logged: u64,
}

impl Auditor {
    /// An auditor without a past. The first entry of its log says who it is, under which rules.
    pub fn new(
        key: Arc<SigningKey>,
        origin: String,
        policy: AuditPolicy,
        beacon: Arc<dyn Beacon>,
        now_ms: u64,
    ) -> Self {
        let mut auditor = Self::blank(key, origin, policy, beacon);
        let opening = LogOpening {
            v: 1,
            auditor: auditor.me,
            origin: auditor.origin.clone(),
            policy: auditor.policy.clone(),
            issued_ms: now_ms,
        };
        auditor.entries.push(LogEntry::Opened(Signed::sign(opening, &auditor.key).to_wire()));
        auditor
    }

    fn blank(key: Arc<SigningKey>, origin: String, policy: AuditPolicy, beacon: Arc<dyn Beacon>) -> Self {
        let book = ScoreBook::new(policy.epoch_ms, policy.epochs_due());
        Self {
            me: NodeId(key.public()),
            key,
            origin,
            policy,
            beacon,
            nodes: BTreeMap::new(),
            rounds: BTreeMap::new(),
            closed: None,
            book,
            entries: Vec::new(),
            logged: 0,
        }
    }

    /// The auditor's id.
    pub const fn id(&self) -> NodeId {
        self.me
    }

    /// The rules.
    pub const fn policy(&self) -> &AuditPolicy {
        &self.policy
    }

    /// Everybody's scores.
    pub const fn book(&self) -> &ScoreBook {
        &self.book
    }

    /// Follows `node` from now on; `false` when it is followed already or there is no room.
    pub fn follow(&mut self, node: NodeId) -> bool {
        if self.nodes.contains_key(&node) || self.nodes.len() >= NODES_MAX {
            return false;
        }
        self.nodes.insert(node, NodeFile::default());
        true
    }

    /// The nodes that are followed.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.nodes.keys().copied()
    }

    /// Who draws.
    pub fn beacon(&self) -> &dyn Beacon {
        &*self.beacon
    }

    /// Entries logged so far, those not taken yet included.
    pub const fn logged(&self) -> u64 {
        self.logged + self.entries.len() as u64
    }

    /// What must be logged, in order. Whoever takes it writes it down before anything that refers to it is sent.
    pub fn take_entries(&mut self) -> Vec<LogEntry> {
        self.logged += self.entries.len() as u64;
        std::mem::take(&mut self.entries)
    }

    /// The epoch whose round is needed now and not there yet, with the round's number.
    pub fn round_wanted(&self, now_ms: u64) -> Option<(Epoch, u64)> {
        let epoch = self.policy.epoch_at(now_ms);
        let round = self.beacon.round_at(self.policy.draw_of(epoch));
        let is_due = now_ms >= self.beacon.time_of(round) && !self.rounds.contains_key(&epoch);
        is_due.then_some((epoch, round))
    }

    /// Takes the beacon's round of an epoch.
    ///
    /// # Errors
    /// [`RoundError`] when it is another round or does not hold.
    pub fn take_round(&mut self, epoch: Epoch, round: BeaconRound) -> Result<(), RoundError> {
        if self.rounds.contains_key(&epoch) {
            return Ok(());
        }
        let expected = self.beacon.round_at(self.policy.draw_of(epoch));
        if round.round != expected {
            return Err(RoundError::Round { epoch, expected, found: round.round });
        }
        let randomness = self.beacon.verify(&round)?;
        self.entries.push(LogEntry::Round { epoch, round: round.clone() });
        self.keep_round(epoch, round, randomness);
        Ok(())
    }

    fn keep_round(&mut self, epoch: Epoch, round: BeaconRound, randomness: Randomness) {
        self.rounds.insert(epoch, (round, randomness));
        let oldest = epoch.saturating_sub(self.policy.epochs_due());
        self.rounds = self.rounds.split_off(&oldest);
    }

    /// The round of an epoch, to show to nodes.
    pub fn round(&self, epoch: Epoch) -> Option<&BeaconRound> {
        self.rounds.get(&epoch).map(|(round, _)| round)
    }

    /// What to ask `node` now, oldest first.
    pub fn asks(&self, node: NodeId, now_ms: u64) -> Vec<Ask> {
        let Some(file) = self.nodes.get(&node) else { return Vec::new() };
        let epoch = self.policy.epoch_at(now_ms);
        let mut asks = Vec::new();
        for (epoch, file) in &file.epochs {
            if self.rounds.contains_key(epoch) {
                let due = file.due();
                if !due.is_empty() {
                    asks.push(Ask::Answer(*epoch, due));
                }
            }
        }
        if now_ms < self.policy.draw_of(epoch) && !file.epochs.contains_key(&epoch) {
            asks.push(Ask::Commitment(epoch));
        }
        asks
    }

    /// Takes what a node shows before the draw, and countersigns it.
    ///
    /// # Errors
    /// [`CommitmentError`]; after [`CommitmentError::Equivocation`] the proof of the lie is logged.
    pub fn take_commitment(
        &mut self,
        node: NodeId,
        epoch: Epoch,
        shown: &ShownCommitment,
        now_ms: u64,
    ) -> Result<Signed<Countersignature>, CommitmentError> {
        let draw_ms = self.policy.draw_of(epoch);
        let signed = shown.commitment.verify_by(node.key())?;
        let commitment = signed.record();
        if commitment.epoch != epoch || commitment.node != node {
            return Err(CommitmentError::Other { epoch, found: commitment.epoch });
        }
        let file = self.nodes.get_mut(&node).ok_or(CommitmentError::Unfollowed { node })?;
        let id = RecordId(signed.id());
        if let Some(known) = file.epochs.get(&epoch) {
            if known.commitment == id {
                return Ok(known.countersignature.clone());
            }
            let (one, two) = (known.shown.clone(), shown.commitment.clone());
            self.entries.push(LogEntry::Equivocated { one, two });
            self.book.equivocated(node);
            return Err(CommitmentError::Equivocation { node, epoch });
        }
        if now_ms >= draw_ms {
            return Err(CommitmentError::Late { epoch, late_ms: now_ms - draw_ms });
        }
        if now_ms < self.policy.start_of(epoch) {
            return Err(CommitmentError::Early { epoch });
        }
        let (declared, declarations) = declared(node, epoch, shown)?;
        let countersignature =
            Countersignature { v: 1, node, epoch, commitment: id, declarations, seen_ms: now_ms };
        let countersignature = Signed::sign(countersignature, &self.key);
        self.entries.push(LogEntry::Committed {
            commitment: shown.commitment.clone(),
            declarations: shown.declarations.clone(),
            countersignature: countersignature.to_wire(),
        });
        let root = Sum { hash: commitment.root, bytes: commitment.bytes };
        let draws = if commitment.bytes == 0 { 0 } else { self.policy.chunks };
        let shown = shown.commitment.clone();
        file.epochs.insert(epoch, EpochFile::new(id, root, shown, countersignature.clone(), declared, draws));
        file.last_miss = None;
        Ok(countersignature)
    }

    /// Takes a node's answer. A proof that does not hold is judged wrong; an answer whose signature, length or hash
    /// does not fit is nobody's word, and refused without a verdict.
    ///
    /// # Errors
    /// [`AnswerError`].
    pub fn take_answer(
        &mut self,
        node: NodeId,
        epoch: Epoch,
        answer: &Unverified<AuditAnswer>,
        body: &[u8],
        now_ms: u64,
    ) -> Result<Taken, AnswerError> {
        let (round, randomness) = self.rounds.get(&epoch).ok_or(AnswerError::Undrawn { epoch })?;
        let file = self.nodes.get_mut(&node).and_then(|file| file.epochs.get_mut(&epoch));
        let file = file.ok_or(AnswerError::Uncommitted { epoch })?;
        let signed = answer.verify_by(node.key())?;
        let said = signed.record();
        if said.node != node || said.epoch != epoch || said.round != round.round {
            return Err(AnswerError::Other { epoch });
        }
        if said.body_len as usize != body.len() || Digest::of(body) != said.body {
            return Err(AnswerError::Body);
        }
        let draw = Draw::new(randomness, node, epoch, file.root.bytes);
        judge(file, draw, body);
        file.answer = Some(RecordId(signed.id()));
        file.answered = true;
        let body = said.body;
        let is_settled = file.is_settled();
        self.entries.push(LogEntry::Answered(answer.clone()));
        // Before the epoch is closed, a half answer waits for its other half.
        let is_closed = self.closed.is_some_and(|closed| epoch <= closed);
        let verdict = (is_settled || is_closed).then(|| self.find(node, epoch, None, now_ms)).flatten();
        Ok(Taken { verdict, body })
    }

    /// Remembers that an attempt to ask `node` failed, and how.
    pub fn missed(&mut self, node: NodeId, kind: MissKind) {
        if let Some(file) = self.nodes.get_mut(&node) {
            file.last_miss = Some(kind);
        }
    }

    /// Closes `epoch` once its time for answering is over: judges the silent, or calls the epoch void. Repeated calls
    /// do nothing.
    pub fn close(&mut self, epoch: Epoch, now_ms: u64) -> Vec<Signed<Verdict>> {
        if now_ms < self.policy.answer_by(epoch) || self.closed.is_some_and(|closed| epoch <= closed) {
            return Vec::new();
        }
        self.closed = Some(epoch);
        let drawn = self.rounds.contains_key(&epoch);
        let mut silent = Vec::new();
        let mut said = Vec::new();
        for (node, file) in &self.nodes {
            match file.epochs.get(&epoch) {
                Some(file) if file.found => {}
                Some(file) if file.answered => said.push((*node, None)),
                _ => silent.push((*node, file.last_miss.unwrap_or(MissKind::Unknown))),
            }
        }
        let missed = silent.iter().filter(|(_, kind)| *kind != MissKind::Unknown).count();
        let is_void = !drawn || is_correlated(missed, self.nodes.len());
        if is_void && missed > 0 {
            let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
            let void = VoidEpoch {
                v: 1,
                auditor: self.me,
                epoch,
                missed: count(missed),
                nodes: count(self.nodes.len()),
                issued_ms: now_ms,
            };
            self.entries.push(LogEntry::Void(Signed::sign(void, &self.key).to_wire()));
        }
        said.extend(
            silent.into_iter().map(|(node, kind)| {
                (node, Some(if is_void { AuditOutcome::Unknown } else { kind.outcome() }))
            }),
        );
        said.into_iter().filter_map(|(node, outcome)| self.find(node, epoch, outcome, now_ms)).collect()
    }

    /// Counts absent what was due for too long, and forgets epochs of which nothing is due.
    pub fn expire(&mut self, now_ms: u64) -> Vec<Signed<Verdict>> {
        let mut over = Vec::new();
        for (node, file) in &mut self.nodes {
            for (epoch, file) in &mut file.epochs {
                if now_ms >= self.policy.absent_from(*epoch) && !file.is_settled() {
                    file.give_up();
                    over.push((*node, *epoch));
                }
            }
        }
        let verdicts =
            over.into_iter().filter_map(|(node, epoch)| self.find(node, epoch, None, now_ms)).collect();
        let closed = self.closed;
        for file in self.nodes.values_mut() {
            file.epochs.retain(|epoch, file| {
                let may_equivocate = closed.is_none_or(|closed| *epoch >= closed);
                may_equivocate || !(file.is_settled() && file.found)
            });
        }
        verdicts
    }

    /// Signs and logs what is found of a node's epoch.
    fn find(
        &mut self,
        node: NodeId,
        epoch: Epoch,
        silence: Option<AuditOutcome>,
        now_ms: u64,
    ) -> Option<Signed<Verdict>> {
        let round = self.beacon.round_at(self.policy.draw_of(epoch));
        let file = self.nodes.get_mut(&node)?.epochs.get_mut(&epoch);
        let (commitment, answer, draws) = match &file {
            Some(file) => (Some(file.commitment), file.answer, file.draws.clone()),
            None => (None, None, Vec::new()),
        };
        let worst = draws.iter().map(|draw| draw.outcome).max();
        let outcome = silence.or(worst).unwrap_or(AuditOutcome::Passed);
        let settled = file.as_ref().is_none_or(|file| file.is_settled());
        if let Some(file) = file {
            file.found = true;
        }
        let verdict = Verdict {
            v: 1,
            auditor: self.me,
            node,
            epoch,
            round,
            commitment,
            answer,
            outcome,
            draws,
            settled,
            issued_ms: now_ms,
        };
        let verdict = Signed::sign(verdict, &self.key);
        self.book.apply(RecordId(verdict.id()), verdict.record());
        self.entries.push(LogEntry::Found(verdict.to_wire()));
        Some(verdict)
    }

    /// The scores of a node as a record for the node itself. `log` is where its log can be read.
    pub fn standing(&self, node: NodeId, log: &str, now_ms: u64) -> Option<Signed<Standing>> {
        let account = self.book.account(node)?;
        Some(Signed::sign(self.standing_of(node, account, log, now_ms)?, &self.key))
    }

    fn standing_of(&self, node: NodeId, account: &Account, log: &str, now_ms: u64) -> Option<Standing> {
        let (evidence, epoch) = account.evidence?;
        let (data, online) = account.scores.forecast(self.policy.epoch_ms, self.policy.chunks);
        let log: String = log.chars().take(200).collect();
        Some(Standing {
            v: 1,
            auditor: self.me,
            node,
            epoch,
            data_ppm: ppm(account.scores.data()),
            online_ppm: ppm(account.scores.online()),
            pay_ppm: account.history.last().and_then(|last| last.pay).map_or(0, ppm),
            state: account.scores.state(),
            forecast_data_ppm: ppm(data),
            forecast_online_ppm: ppm(online),
            evidence,
            replay: format!("holdfast auditor verify {log} --node {node} --epoch {epoch}"),
            issued_ms: now_ms,
        })
    }
}

impl std::fmt::Debug for Auditor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auditor")
            .field("me", &self.me)
            .field("nodes", &self.nodes.len())
            .finish_non_exhaustive()
    }
}

/// The declarations beside a commitment, checked: their blocks, and their ids in the order shown.
fn declared(
    node: NodeId,
    epoch: Epoch,
    shown: &ShownCommitment,
) -> Result<(BTreeMap<Digest, DeclaredAs>, Vec<RecordId>), CommitmentError> {
    let mut declared = BTreeMap::new();
    let mut ids = Vec::new();
    for declaration in &shown.declarations {
        let signed = declaration.verify_by(node.key())?;
        let record = signed.record();
        if record.node != node || record.epoch != epoch {
            return Err(CommitmentError::Other { epoch, found: record.epoch });
        }
        declared.extend(record.digests.iter().map(|digest| (*digest, record.kind)));
        ids.push(RecordId(signed.id()));
    }
    Ok((declared, ids))
}

/// Judges what an answer says of the draws that are due. Bytes that are no answer are as wrong as proofs that do not
/// hold: the node has signed their hash.
fn judge(file: &mut EpochFile, draw: Draw, body: &[u8]) {
    let decoded = match decode_body(body) {
        Ok(decoded) => decoded,
        Err(error) => {
            let why = clipped(&format!("the answer cannot be read: {error}"));
            for due in file.draws.iter_mut().filter(|due| due.outcome == AuditOutcome::Pending) {
                (due.outcome, due.why) = (AuditOutcome::Wrong, why.clone());
            }
            return;
        }
    };
    let question = Question { root: file.root, draw, declared: &file.declared };
    for proof in &decoded.draws {
        let due = file.draws.get_mut(proof.draw as usize);
        let Some(due) = due.filter(|due| due.outcome == AuditOutcome::Pending) else { continue };
        let judged = question.judge(proof);
        let why = judged.error.map(|error| clipped(&error.to_string())).unwrap_or_default();
        *due = DrawVerdict { draw: proof.draw, digest: judged.digest, outcome: judged.outcome, why };
    }
}

fn clipped(text: &str) -> String {
    let mut end = text.len().min(VERDICT_WHY_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests;
