//! Checking a whole log again, from nothing but the log and the beacon: signatures, order in time, rounds, drawn
//! positions, inclusion, sums, paths, verdicts, and from these the scores. The auditor is not believed in anything
//! that can be computed; what cannot (that a node was offline) is counted as its word alone.

use std::collections::BTreeMap;

use holdfast_protocol::record::{
    AnswerBody, AuditAnswer, AuditOutcome, BeaconRound, Commitment, Countersignature, Declaration,
    DeclaredAs, Epoch, RecordId, SignatureError, Signed, Unverified, Verdict,
};
use holdfast_protocol::{Digest, NodeId};
use serde::Serialize;

use super::entry::LogOpening;
use super::{LogEntry, VoidEpoch};
use crate::answer::{Judged, Question, decode_body};
use crate::beacon::Beacon;
use crate::draw::{Draw, Randomness};
use crate::inventory::Sum;
use crate::policy::AuditPolicy;
use crate::score::ScoreBook;

/// Findings that are kept; further ones are only counted.
pub const FINDINGS_MAX: usize = 1000;

/// Whose fault a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The auditor's: its log does not hold.
    Log,
    /// A node's: the log proves it.
    Node,
}

/// Something that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Whose fault.
    pub severity: Severity,
    /// In which entry, from 0.
    pub entry: u64,
    /// Of which node.
    pub node: Option<String>,
    /// In which epoch.
    pub epoch: Option<Epoch>,
    /// What.
    pub what: String,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LogReport {
    /// Whose log.
    pub auditor: String,
    /// The log's name.
    pub origin: String,
    /// Which beacon drew.
    pub beacon: String,
    /// Whether nobody in the network could know or bias it.
    pub beacon_independent: bool,
    /// Entries.
    pub entries: u64,
    /// Things checked: signatures, rounds, draws and verdicts.
    pub checked: u64,
    /// Draws whose proofs were verified again.
    pub draws: u64,
    /// Draws whose proofs are not kept beside the log any more: their outcomes are the auditor's word.
    pub unverifiable: u64,
    /// Verdicts that a node was offline or late: the auditor's word, too.
    pub by_word: u64,
    /// Findings against the log: it holds only when there are none.
    pub failed: u64,
    /// The first findings, against log and nodes.
    pub findings: Vec<Finding>,
    /// What was asked about, step by step.
    pub trace: Vec<String>,
}

/// What to tell step by step.
#[derive(Clone, Copy, Debug, Default)]
pub struct Focus {
    /// This node.
    pub node: Option<NodeId>,
    /// In this epoch; all when none is named.
    pub epoch: Option<Epoch>,
}

struct Open {
    commitment: RecordId,
    root: Sum,
    declared: BTreeMap<Digest, DeclaredAs>,
    outcomes: Vec<AuditOutcome>,
    answers: Vec<RecordId>,
    /// Where each opened block stands: an inventory has each only once.
    places: BTreeMap<Digest, (u32, u32)>,
    /// An answer's proofs are gone: nothing can be said against what the auditor says of its draws.
    blind: bool,
}

/// Reads a log entry by entry.
pub struct LogChecker {
    report: LogReport,
    focus: Focus,
    rules: Option<Rules>,
    rounds: BTreeMap<Epoch, (BeaconRound, Randomness)>,
    open: BTreeMap<(Epoch, NodeId), Open>,
    book: ScoreBook,
    newest_ms: u64,
}

struct Rules {
    auditor: NodeId,
    policy: AuditPolicy,
    beacon: Box<dyn Beacon>,
}

impl LogChecker {
    /// Before the first entry.
    pub fn new(focus: Focus) -> Self {
        Self {
            report: LogReport::default(),
            focus,
            rules: None,
            rounds: BTreeMap::new(),
            open: BTreeMap::new(),
            book: ScoreBook::new(1, 1),
            newest_ms: 0,
        }
    }

    /// The log's key, once its opening was read: its checkpoint must be signed by it.
    pub fn auditor(&self) -> Option<NodeId> {
        self.rules.as_ref().map(|rules| rules.auditor)
    }

    /// The rules of the log, once its opening was read.
    pub fn policy(&self) -> Option<&AuditPolicy> {
        self.rules.as_ref().map(|rules| &rules.policy)
    }

    /// The scores, as computed from the log.
    pub const fn book(&self) -> &ScoreBook {
        &self.book
    }

    /// Adds a finding against the log that lies outside its entries: its files or its checkpoint.
    pub fn fail(&mut self, what: impl Into<String>) {
        self.finding(Severity::Log, None, None, what.into());
    }

    /// Checks the next entry. `blob` gives the proofs of an answer by their hash.
    pub fn entry(&mut self, bytes: &[u8], blob: &mut dyn FnMut(&Digest) -> Option<Vec<u8>>) {
        let entry = match LogEntry::decode(bytes) {
            Ok(entry) => entry,
            Err(error) => {
                self.finding(Severity::Log, None, None, format!("the entry cannot be read: {error}"));
                self.report.entries += 1;
                return;
            }
        };
        match (entry, self.rules.is_some()) {
            (LogEntry::Opened(opening), false) => self.opened(&opening),
            (LogEntry::Opened(_), true) => self.fail("the log is opened a second time"),
            (_, false) => self.fail("the log does not begin with its opening"),
            (LogEntry::Committed { commitment, declarations, countersignature }, true) => {
                self.committed(&commitment, &declarations, &countersignature);
            }
            (LogEntry::Round { epoch, round }, true) => self.round(epoch, round),
            (LogEntry::Answered(answer), true) => self.answered(&answer, blob),
            (LogEntry::Found(verdict), true) => self.found(&verdict),
            (LogEntry::Equivocated { one, two }, true) => self.equivocated(&one, &two),
            (LogEntry::Void(void), true) => self.void(&void),
        }
        self.report.entries += 1;
    }

    /// The report, after the last entry.
    pub fn finish(mut self) -> (LogReport, ScoreBook) {
        if self.rules.is_none() {
            self.fail("the log has no opening");
        }
        (self.report, self.book)
    }

    fn opened(&mut self, opening: &Unverified<LogOpening>) {
        let Some(signed) = self.verified(opening.verify(), None) else { return };
        let record = signed.record();
        if record.auditor.key() != signed.signer() {
            return self.fail("the opening is not signed by the auditor that it names");
        }
        match record.policy.beacon.open() {
            Ok(beacon) => {
                self.report.auditor = record.auditor.to_string();
                self.report.origin.clone_from(&record.origin);
                self.report.beacon = beacon.name();
                self.report.beacon_independent = beacon.is_independent();
                self.book = ScoreBook::new(record.policy.epoch_ms, record.policy.epochs_due());
                let policy = record.policy.clone();
                self.rules = Some(Rules { auditor: record.auditor, policy, beacon });
                self.in_order(record.issued_ms);
            }
            Err(error) => self.fail(error.to_string()),
        }
    }

    fn committed(
        &mut self,
        commitment: &Unverified<Commitment>,
        declarations: &[Unverified<Declaration>],
        countersignature: &Unverified<Countersignature>,
    ) {
        let Some(rules) = &self.rules else { return };
        let (auditor, policy) = (rules.auditor, rules.policy.clone());
        let Some(commitment) = self.verified(commitment.verify(), None) else { return };
        let (id, signer, commitment) =
            (RecordId(commitment.id()), commitment.signer(), commitment.into_record());
        let (node, epoch) = (commitment.node, commitment.epoch);
        let at = Some((node, epoch));
        let Some(word) = self.verified(countersignature.verify_by(auditor.key()), at) else { return };
        let word = word.into_record();
        self.expect(signer == node.key(), at, "the commitment is not signed by its node");
        self.expect(
            word.commitment == id && word.node == node && word.epoch == epoch,
            at,
            "the countersignature is for another commitment",
        );
        self.expect(word.seen_ms < policy.draw_of(epoch), at, "the countersignature was made after the draw");
        self.expect(
            word.seen_ms >= policy.start_of(epoch),
            at,
            "the countersignature was made before the epoch",
        );
        self.in_order(word.seen_ms);
        let mut declared = BTreeMap::new();
        let mut ids = Vec::new();
        for declaration in declarations {
            let Some(signed) = self.verified(declaration.verify_by(node.key()), at) else { continue };
            ids.push(RecordId(signed.id()));
            let record = signed.into_record();
            self.expect(
                record.epoch == epoch && record.node == node,
                at,
                "a declaration is for another epoch",
            );
            declared.extend(record.digests.iter().map(|digest| (*digest, record.kind)));
        }
        self.expect(ids == word.declarations, at, "the countersignature does not cover these declarations");
        let draws = if commitment.bytes == 0 { 0 } else { policy.chunks as usize };
        let open = Open {
            commitment: id,
            root: Sum { hash: commitment.root, bytes: commitment.bytes },
            declared,
            outcomes: vec![AuditOutcome::Pending; draws],
            answers: Vec::new(),
            places: BTreeMap::new(),
            blind: false,
        };
        let was = self.open.insert((epoch, node), open);
        self.expect(was.is_none(), at, "two commitments to one epoch were countersigned");
        self.tell(at, || {
            format!(
                "committed to {} blocks, {} bytes; seen at {} ms",
                commitment.count, commitment.bytes, word.seen_ms
            )
        });
        let oldest = epoch.saturating_sub(policy.epochs_due() + 2);
        let newer = self.open.split_off(&(oldest, NodeId(holdfast_protocol::PublicKey([0; 32]))));
        self.open = newer;
        self.rounds = self.rounds.split_off(&oldest);
    }

    fn round(&mut self, epoch: Epoch, round: BeaconRound) {
        let Some(rules) = &self.rules else { return };
        let expected = rules.beacon.round_at(rules.policy.draw_of(epoch));
        let verified = rules.beacon.verify(&round);
        self.expect(round.round == expected, None, "the epoch is drawn by another round");
        match verified {
            Ok(randomness) => {
                self.report.checked += 1;
                if self.rounds.insert(epoch, (round, randomness)).is_some() {
                    self.fail(format!("epoch {epoch} is drawn twice"));
                }
            }
            Err(error) => self.fail(error.to_string()),
        }
    }

    fn answered(
        &mut self,
        answer: &Unverified<AuditAnswer>,
        blob: &mut dyn FnMut(&Digest) -> Option<Vec<u8>>,
    ) {
        let Some(signed) = self.verified(answer.verify(), None) else { return };
        let (id, signer, answer) = (RecordId(signed.id()), signed.signer(), signed.into_record());
        let (node, epoch) = (answer.node, answer.epoch);
        let at = Some((node, epoch));
        self.expect(signer == node.key(), at, "the answer is not signed by its node");
        let Some((round, randomness)) = self.rounds.get(&epoch) else {
            return self.finding(Severity::Log, Some(node), Some(epoch), "answered before the draw".into());
        };
        let (number, randomness) = (round.round, *randomness);
        self.expect(answer.round == number, at, "the answer is to another round");
        let Some(mut open) = self.open.remove(&(epoch, node)) else {
            return self.finding(
                Severity::Log,
                Some(node),
                Some(epoch),
                "answered without a commitment".into(),
            );
        };
        open.answers.push(id);
        match blob(&answer.body).filter(|body| Digest::of(body) == answer.body) {
            None => open.blind = true,
            Some(body) => {
                let draw = Draw::new(&randomness, node, epoch, open.root.bytes);
                self.judged(&mut open, draw, &body, node, epoch);
            }
        }
        self.open.insert((epoch, node), open);
    }

    fn judged(&mut self, open: &mut Open, draw: Draw, body: &[u8], node: NodeId, epoch: Epoch) {
        let at = Some((node, epoch));
        let body: AnswerBody = match decode_body(body) {
            Ok(body) => body,
            Err(error) => {
                for outcome in open.outcomes.iter_mut().filter(|outcome| **outcome == AuditOutcome::Pending) {
                    *outcome = AuditOutcome::Wrong;
                }
                let what = format!("signed an answer that cannot be read: {error}");
                return self.finding(Severity::Node, Some(node), Some(epoch), what);
            }
        };
        for proof in &body.draws {
            let index = proof.draw as usize;
            if open.outcomes.get(index) != Some(&AuditOutcome::Pending) {
                continue;
            }
            let judged = Question { root: open.root, draw, declared: &open.declared }.judge(proof);
            open.outcomes[index] = judged.outcome;
            self.report.checked += 1;
            self.report.draws += 1;
            self.tell(at, || told(proof.draw, draw.position(proof.draw), &judged));
            let place = (proof.leaf.index, proof.leaf.count);
            if judged.digest.is_some() && *open.places.entry(proof.leaf.digest).or_insert(place) != place {
                let what = format!("claims {} more than once", proof.leaf.digest);
                self.finding(Severity::Node, Some(node), Some(epoch), what);
            }
            match (judged.outcome, judged.error) {
                (AuditOutcome::Wrong, Some(error)) => {
                    let what = format!("signed a wrong proof of draw {}: {error}", proof.draw);
                    self.finding(Severity::Node, Some(node), Some(epoch), what);
                }
                (AuditOutcome::Absent, _) => {
                    let what = format!("could not show draw {} of {}", proof.draw, proof.leaf.digest);
                    self.finding(Severity::Node, Some(node), Some(epoch), what);
                }
                _ => {}
            }
        }
    }

    fn found(&mut self, verdict: &Unverified<Verdict>) {
        let Some(rules) = &self.rules else { return };
        let auditor = rules.auditor;
        let policy = rules.policy.clone();
        let Some(signed) = self.verified(verdict.verify_by(auditor.key()), None) else { return };
        let (id, verdict) = (RecordId(signed.id()), signed.into_record());
        let (node, epoch) = (verdict.node, verdict.epoch);
        let at = Some((node, epoch));
        self.expect(verdict.auditor == auditor, at, "the verdict names another auditor");
        self.expect(verdict.issued_ms >= policy.draw_of(epoch), at, "the verdict was said before the draw");
        self.in_order(verdict.issued_ms);
        match self.open.remove(&(epoch, node)) {
            Some(open) => {
                self.compare(&open, &verdict, &policy);
                self.open.insert((epoch, node), open);
            }
            None => self.expect(
                verdict.draws.is_empty() && verdict.commitment.is_none(),
                at,
                "the verdict speaks of a commitment that is not in the log",
            ),
        }
        let silent =
            matches!(verdict.outcome, AuditOutcome::Offline | AuditOutcome::Timeout | AuditOutcome::Unknown);
        self.report.by_word += u64::from(silent);
        let worst = verdict.draws.iter().map(|draw| draw.outcome).max().unwrap_or(AuditOutcome::Passed);
        self.expect(silent || verdict.outcome == worst, at, "the verdict's outcome is not that of its draws");
        self.tell(at, || format!("found {:?}, settled {}", verdict.outcome, verdict.settled));
        self.book.apply(id, &verdict);
    }

    fn compare(&mut self, open: &Open, verdict: &Verdict, policy: &AuditPolicy) {
        let at = Some((verdict.node, verdict.epoch));
        self.expect(verdict.commitment == Some(open.commitment), at, "the verdict is on another commitment");
        self.expect(
            verdict.answer.is_none_or(|answer| open.answers.contains(&answer)),
            at,
            "the verdict names an answer that is not in the log",
        );
        let numbers = verdict.draws.iter().map(|draw| draw.draw as usize);
        if !numbers.eq(0..open.outcomes.len()) {
            return self.expect(false, at, "the verdict does not speak of every draw");
        }
        for (draw, ours) in verdict.draws.iter().zip(&open.outcomes) {
            self.report.checked += 1;
            let is_over = verdict.issued_ms >= policy.absent_from(verdict.epoch);
            let holds = match (draw.outcome, *ours) {
                (theirs, ours) if theirs == ours => true,
                (AuditOutcome::Absent, AuditOutcome::Pending) => is_over || open.blind,
                (_, AuditOutcome::Pending) => open.blind,
                _ => false,
            };
            self.report.unverifiable += u64::from(open.blind && *ours == AuditOutcome::Pending);
            if !holds {
                let what = format!("draw {} is {ours:?}, and the verdict says {:?}", draw.draw, draw.outcome);
                self.finding(Severity::Log, Some(verdict.node), Some(verdict.epoch), what);
            }
        }
    }

    fn equivocated(&mut self, one: &Unverified<Commitment>, two: &Unverified<Commitment>) {
        let (Some(one), Some(two)) = (self.verified(one.verify(), None), self.verified(two.verify(), None))
        else {
            return;
        };
        let (node, epoch) = (one.record().node, one.record().epoch);
        let is_proof = one.signer() == node.key()
            && two.signer() == node.key()
            && two.record().epoch == epoch
            && two.record().node == node
            && one.id() != two.id();
        self.expect(is_proof, Some((node, epoch)), "what is called two commitments proves nothing");
        if is_proof {
            self.finding(Severity::Node, Some(node), Some(epoch), "committed twice to one epoch".into());
            self.book.equivocated(node);
        }
    }

    fn void(&mut self, void: &Unverified<VoidEpoch>) {
        let Some(auditor) = self.auditor() else { return };
        if let Some(signed) = self.verified(void.verify_by(auditor.key()), None) {
            self.in_order(signed.record().issued_ms);
        }
    }

    fn in_order(&mut self, at_ms: u64) {
        self.expect(at_ms >= self.newest_ms, None, "the entry is dated before the one in front of it");
        self.newest_ms = self.newest_ms.max(at_ms);
    }

    fn verified<R>(
        &mut self,
        result: Result<Signed<R>, SignatureError>,
        at: Option<(NodeId, Epoch)>,
    ) -> Option<Signed<R>> {
        match result {
            Ok(signed) => {
                self.report.checked += 1;
                Some(signed)
            }
            Err(error) => {
                let (node, epoch) = at.unzip();
                self.finding(Severity::Log, node, epoch, error.to_string());
                None
            }
        }
    }

    fn expect(&mut self, holds: bool, at: Option<(NodeId, Epoch)>, what: &str) {
        if !holds {
            let (node, epoch) = at.unzip();
            self.finding(Severity::Log, node, epoch, what.to_owned());
        }
    }

    fn finding(&mut self, severity: Severity, node: Option<NodeId>, epoch: Option<Epoch>, what: String) {
        self.report.failed += u64::from(severity == Severity::Log);
        if self.report.findings.len() < FINDINGS_MAX {
            let node = node.map(|node| node.to_string());
            let entry = self.report.entries;
            self.report.findings.push(Finding { severity, entry, node, epoch, what });
        }
    }

    fn tell(&mut self, at: Option<(NodeId, Epoch)>, what: impl FnOnce() -> String) {
        let Some((node, epoch)) = at else { return };
        let wanted = self.focus.node == Some(node) && self.focus.epoch.is_none_or(|wanted| wanted == epoch);
        if wanted && self.report.trace.len() < FINDINGS_MAX {
            self.report.trace.push(format!("entry {}, epoch {epoch}: {}", self.report.entries, what()));
        }
    }
}

fn told(draw: u32, position: Option<u64>, judged: &Judged) -> String {
    let block = judged.digest.map_or_else(|| "an unproved leaf".to_owned(), |digest| digest.to_string());
    let why = judged.error.map(|error| format!(": {error}")).unwrap_or_default();
    format!("draw {draw}, byte {}, in {block}: {:?}{why}", position.unwrap_or_default(), judged.outcome)
}
