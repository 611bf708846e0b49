use std::collections::BTreeMap;

use super::*;
use crate::beacon::{BeaconSpec, Onion, OnionSecret};
use crate::log::check::Focus;
use crate::log::{LogChecker, LogReport, Severity};
use crate::testing::{SimBlock, SimInventory, SimNode, Strategy};
use holdfast_protocol::record::StandingState;

const EPOCH_MS: u64 = 60_000;
const FIRST: Epoch = 1_000;

fn key(seed: u8) -> Arc<SigningKey> {
    Arc::new(SigningKey::from_seed(&[seed; 32]).unwrap())
}

/// An auditor, its nodes, the beacon, and everything that it logged.
struct World {
    auditor: Auditor,
    secret: OnionSecret,
    nodes: Vec<(SimNode, SimInventory)>,
    log: Vec<LogEntry>,
    blobs: BTreeMap<Digest, Vec<u8>>,
}

fn policy() -> (AuditPolicy, OnionSecret) {
    let secret = OnionSecret::new([3; 32]);
    let beacon = BeaconSpec::Onion {
        members: vec![secret.anchor()],
        genesis_ms: FIRST * EPOCH_MS + EPOCH_MS / 6,
        period_ms: EPOCH_MS,
    };
    (AuditPolicy::every(EPOCH_MS, beacon), secret)
}

fn blocks(lacking: usize) -> Vec<(Arc<SimBlock>, bool)> {
    let lens = [1usize, 1024, 1025, 16_384, 16_385, 70_000, 262_144, 300_001];
    let block = |index: usize| {
        let len = lens[index % lens.len()];
        (Arc::new(SimBlock::new(index as u64, len)), index >= lacking)
    };
    (0..24).map(block).collect()
}

impl World {
    fn new(strategies: &[Strategy]) -> Self {
        let (policy, secret) = policy();
        let beacon: Arc<dyn Beacon> = Arc::from(policy.beacon.open().unwrap());
        let now_ms = policy.start_of(FIRST);
        let mut auditor = Auditor::new(key(1), "test.example/audit".into(), policy, beacon, now_ms);
        let nodes = strategies
            .iter()
            .enumerate()
            .map(|(index, strategy)| {
                let lacking = if *strategy == Strategy::Honest { 0 } else { 8 };
                let node = SimNode::new(key(u8::try_from(index).unwrap() + 10), *strategy, blocks(lacking));
                auditor.follow(node.id());
                let inventory = node.inventory();
                (node, inventory)
            })
            .collect();
        let mut world = Self { auditor, secret, nodes, log: Vec::new(), blobs: BTreeMap::new() };
        world.write();
        world
    }

    fn write(&mut self) {
        self.log.extend(self.auditor.take_entries());
    }

    fn round(&self, epoch: Epoch) -> (BeaconRound, Randomness) {
        let number = self.auditor.beacon.round_at(self.auditor.policy.draw_of(epoch));
        let round = Onion::round(number, &[self.secret.layer(number).unwrap()]);
        let randomness = self.auditor.beacon.verify(&round).unwrap();
        (round, randomness)
    }

    /// Commits all, draws, lets `asked` answer what is due, closes.
    fn epoch(&mut self, epoch: Epoch, asked: impl Fn(usize) -> bool) -> Vec<Verdict> {
        let start = self.auditor.policy.start_of(epoch);
        for (node, inventory) in &self.nodes {
            let shown = node.shown(inventory, epoch, start + 1);
            self.auditor.take_commitment(node.id(), epoch, &shown, start + 2).unwrap();
            if node.strategy() == Strategy::Equivocates {
                let second = node.second(inventory, epoch, start + 3);
                let refused = self.auditor.take_commitment(node.id(), epoch, &second, start + 3);
                assert!(matches!(refused, Err(CommitmentError::Equivocation { .. })));
            }
        }
        let draw_ms = self.auditor.policy.draw_of(epoch);
        assert_eq!(self.auditor.round_wanted(draw_ms - 1), None);
        let (round, randomness) = self.round(epoch);
        assert_eq!(self.auditor.round_wanted(draw_ms), Some((epoch, round.round)));
        self.auditor.take_round(epoch, round.clone()).unwrap();
        let mut verdicts = Vec::new();
        for index in 0..self.nodes.len() {
            let (node, inventory) = &self.nodes[index];
            if !asked(index) {
                self.auditor.missed(node.id(), MissKind::Offline);
                continue;
            }
            for ask in self.auditor.asks(node.id(), draw_ms + 5) {
                let Ask::Answer(epoch, due) = ask else { continue };
                let (round, randomness) = if epoch == self.auditor.policy.epoch_at(draw_ms) {
                    (round.clone(), randomness)
                } else {
                    self.round(epoch)
                };
                let (answer, body) =
                    node.answer(inventory, epoch, (round.round, &randomness), &due, draw_ms + 6);
                let taken = self.auditor.take_answer(node.id(), epoch, &answer, &body, draw_ms + 7).unwrap();
                self.blobs.insert(taken.body, body);
                verdicts.extend(taken.verdict.map(Signed::into_record));
            }
        }
        let end = self.auditor.policy.answer_by(epoch);
        verdicts.extend(self.auditor.close(epoch, end).into_iter().map(Signed::into_record));
        assert!(self.auditor.close(epoch, end).is_empty());
        verdicts.extend(self.auditor.expire(end).into_iter().map(Signed::into_record));
        self.write();
        verdicts
    }

    fn check(&self) -> LogReport {
        check(&self.log, &self.blobs)
    }

    fn state(&self, index: usize) -> StandingState {
        self.auditor.book.account(self.nodes[index].0.id()).unwrap().scores.state()
    }
}

fn check(log: &[LogEntry], blobs: &BTreeMap<Digest, Vec<u8>>) -> LogReport {
    let mut checker = LogChecker::new(Focus::default());
    for entry in log {
        checker.entry(&entry.encode(), &mut |digest| blobs.get(digest).cloned());
    }
    checker.finish().0
}

const ALL: [Strategy; 12] = [
    Strategy::Honest,
    Strategy::Admits,
    Strategy::Silent,
    Strategy::HeadersOnly,
    Strategy::DeclaresLate,
    Strategy::DeclaresInTime,
    Strategy::Replays,
    Strategy::ForgesPath,
    Strategy::ForgesSums,
    Strategy::ForgesLength,
    Strategy::Equivocates,
    Strategy::ShowsOther,
];

/// Every way of cheating ends in the outcome that it deserves, and the log proves each of them to a stranger.
#[test]
fn each_strategy_is_found_for_what_it_is() {
    let mut world = World::new(&ALL);
    let mut seen: BTreeMap<usize, Vec<AuditOutcome>> = BTreeMap::new();
    for epoch in FIRST..FIRST + 12 {
        for verdict in world.epoch(epoch, |_| true) {
            let index = world.nodes.iter().position(|(node, _)| node.id() == verdict.node).unwrap();
            seen.entry(index).or_default().extend(verdict.draws.iter().map(|draw| draw.outcome));
        }
    }
    let outcomes = |strategy: Strategy| {
        let index = ALL.iter().position(|other| *other == strategy).unwrap();
        let mut outcomes = seen[&index].clone();
        outcomes.sort();
        outcomes.dedup();
        (outcomes, world.state(index))
    };
    use AuditOutcome::{Absent, Declared, Passed, Pending, Wrong};
    assert_eq!(outcomes(Strategy::Honest), (vec![Passed], StandingState::Good));
    assert_eq!(outcomes(Strategy::Admits), (vec![Passed, Absent], StandingState::Suspended));
    assert_eq!(outcomes(Strategy::Silent).0, vec![Passed, Pending]);
    assert_eq!(outcomes(Strategy::HeadersOnly), (vec![Passed, Wrong], StandingState::Disqualified));
    assert_eq!(outcomes(Strategy::DeclaresLate).0, vec![Passed, Pending]);
    assert_eq!(outcomes(Strategy::DeclaresInTime), (vec![Passed, Declared], StandingState::Good));
    assert_eq!(outcomes(Strategy::Replays).1, StandingState::Disqualified);
    assert_eq!(outcomes(Strategy::ForgesPath), (vec![Wrong], StandingState::Disqualified));
    assert_eq!(outcomes(Strategy::ForgesSums), (vec![Wrong], StandingState::Disqualified));
    assert_eq!(outcomes(Strategy::ForgesLength).1, StandingState::Disqualified);
    assert_eq!(outcomes(Strategy::Equivocates).1, StandingState::Disqualified);
    assert_eq!(outcomes(Strategy::ShowsOther).1, StandingState::Disqualified);
    let report = world.check();
    assert_eq!(report.failed, 0, "{:?}", report.findings.iter().find(|f| f.severity == Severity::Log));
    assert!(report.findings.iter().all(|finding| finding.severity == Severity::Node));
    assert!(report.findings.iter().any(|finding| finding.what == "committed twice to one epoch"));
    assert!(!report.beacon_independent && report.draws > 1_000 && report.unverifiable == 0);
}

#[test]
fn what_was_drawn_stays_due_and_counts_absent_in_the_end() {
    let mut world = World::new(&[Strategy::Silent, Strategy::Honest]);
    let silent = world.nodes[0].0.id();
    let mut pending = 0;
    for epoch in FIRST..FIRST + 3 {
        pending += world
            .epoch(epoch, |_| true)
            .iter()
            .filter(|verdict| verdict.node == silent)
            .map(|verdict| verdict.count(AuditOutcome::Pending))
            .sum::<usize>();
    }
    assert!(pending > 0);
    let history = &world.auditor.book.account(silent).unwrap().history;
    assert!(history.iter().any(|result| result.pay.is_none()), "pay is withheld");
    let over = world.auditor.policy.absent_from(FIRST + 2);
    let verdicts = world.auditor.expire(over);
    world.write();
    assert!(verdicts.iter().all(|verdict| verdict.record().settled));
    assert!(verdicts.iter().map(|verdict| verdict.record().count(AuditOutcome::Absent)).sum::<usize>() > 0);
    assert_eq!(world.check().failed, 0);
    assert_eq!(world.auditor.asks(silent, over), world.auditor.asks(world.nodes[1].0.id(), over));
}

#[test]
fn a_node_that_was_away_answers_late_and_loses_no_data_score() {
    let mut world = World::new(&[Strategy::Honest; 3]);
    world.epoch(FIRST, |_| true);
    let away = world.epoch(FIRST + 1, |index| index != 0);
    let verdict = away.iter().find(|verdict| verdict.node == world.nodes[0].0.id()).unwrap();
    assert_eq!((verdict.outcome, verdict.settled), (AuditOutcome::Offline, false));
    let back = world.epoch(FIRST + 2, |_| true);
    assert_eq!(back.iter().filter(|verdict| verdict.epoch == FIRST + 1).count(), 1);
    let account = world.auditor.book.account(world.nodes[0].0.id()).unwrap();
    assert_eq!(account.scores.data(), 1.0);
    assert!(account.scores.online() < 1.0);
    assert_eq!((account.epochs, account.answered), (3, 2));
    assert_eq!(world.check().failed, 0);
}

#[test]
fn when_all_are_gone_the_epoch_is_void() {
    let mut world = World::new(&[Strategy::Honest; 6]);
    world.epoch(FIRST, |_| true);
    let verdicts = world.epoch(FIRST + 1, |_| false);
    assert!(verdicts.iter().all(|verdict| verdict.outcome == AuditOutcome::Unknown));
    assert!(world.log.iter().any(|entry| matches!(entry, LogEntry::Void(_))));
    let lost = |world: &World| {
        world.auditor.book.accounts().filter(|(_, account)| account.scores.online() < 1.0).count()
    };
    assert_eq!(lost(&world), 0);
    world.epoch(FIRST + 2, |index| index > 1);
    assert_eq!(lost(&world), 2, "two of six are no cut cable");
}

#[test]
fn late_early_and_foreign_words_are_not_taken() {
    let mut world = World::new(&[Strategy::Honest, Strategy::Honest]);
    let policy = world.auditor.policy.clone();
    let (node, inventory) = &world.nodes[0];
    let shown = node.shown(inventory, FIRST, 0);
    let mut take = |of: NodeId, epoch, at_ms| world.auditor.take_commitment(of, epoch, &shown, at_ms);
    assert!(matches!(take(node.id(), FIRST, policy.draw_of(FIRST)), Err(CommitmentError::Late { .. })));
    assert!(matches!(take(node.id(), FIRST, policy.start_of(FIRST) - 1), Err(CommitmentError::Early { .. })));
    assert!(matches!(take(node.id(), FIRST + 1, policy.start_of(FIRST)), Err(CommitmentError::Other { .. })));
    let other = world.nodes[1].0.id();
    assert!(matches!(take(other, FIRST, policy.start_of(FIRST)), Err(CommitmentError::Signature(_))));
    let first = take(node.id(), FIRST, policy.start_of(FIRST)).unwrap();
    assert_eq!(take(node.id(), FIRST, policy.start_of(FIRST) + 1).unwrap(), first, "asked twice, said once");
    let (round, randomness) = world.round(FIRST);
    let wrong = BeaconRound { round: round.round + 1, ..round.clone() };
    assert!(matches!(world.auditor.take_round(FIRST, wrong), Err(RoundError::Round { .. })));
    let (answer, body) = node.answer(inventory, FIRST, (round.round, &randomness), &[0, 1], 0);
    let take = |world: &mut Auditor, body: &[u8]| world.take_answer(node.id(), FIRST, &answer, body, 0);
    assert!(matches!(take(&mut world.auditor, &body), Err(AnswerError::Undrawn { .. })));
    world.auditor.take_round(FIRST, round).unwrap();
    assert!(matches!(take(&mut world.auditor, &body[1..]), Err(AnswerError::Body)));
    assert!(take(&mut world.auditor, &body).unwrap().verdict.is_none(), "18 draws are still due");
}

/// A signed answer of garbage is the node's own word, and as wrong as can be.
#[test]
fn signed_garbage_is_evidence() {
    let mut world = World::new(&[Strategy::Honest]);
    let (node, inventory) = &world.nodes[0];
    let start = world.auditor.policy.start_of(FIRST);
    world.auditor.take_commitment(node.id(), FIRST, &node.shown(inventory, FIRST, start), start).unwrap();
    let (round, _) = world.round(FIRST);
    world.auditor.take_round(FIRST, round.clone()).unwrap();
    let (answer, body) = node.signed(FIRST, round.round, vec![0xff; 100], start);
    let at_ms = world.auditor.policy.draw_of(FIRST);
    let taken = world.auditor.take_answer(node.id(), FIRST, &answer, &body, at_ms).unwrap();
    let verdict = taken.verdict.unwrap().into_record();
    assert_eq!((verdict.outcome, verdict.count(AuditOutcome::Wrong)), (AuditOutcome::Wrong, 20));
    world.blobs.insert(taken.body, body);
    world.write();
    let report = world.check();
    assert_eq!((report.failed, report.findings.len()), (0, 1));
}

/// Every entry of a log, left out, moved or changed, is missed by a stranger: nothing in it stands by itself.
#[test]
fn a_log_that_was_tampered_with_fails() {
    let mut world = World::new(&[Strategy::Honest, Strategy::Admits]);
    world.epoch(FIRST, |_| true);
    world.epoch(FIRST + 1, |_| true);
    assert_eq!(world.check().failed, 0);
    for index in 0..world.log.len() {
        let mut left_out = world.log.clone();
        let gone = left_out.remove(index);
        // A verdict that is left out leaves no trace but in the checkpoint's root, which is checked elsewhere.
        if !matches!(gone, LogEntry::Found(_)) {
            assert!(check(&left_out, &world.blobs).failed > 0, "without entry {index}: {gone:?}");
        }
        let mut bytes = world.log[index].encode();
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
        let mut checker = LogChecker::new(Focus::default());
        for (at, entry) in world.log.iter().enumerate() {
            let bytes = if at == index { bytes.clone() } else { entry.encode() };
            checker.entry(&bytes, &mut |digest| world.blobs.get(digest).cloned());
        }
        assert!(checker.finish().0.failed > 0, "entry {index} with a flipped bit");
    }
}

/// An auditor that passes what is wrong, or fails what is right, is convicted by its own log.
#[test]
fn a_lying_auditor_is_convicted_by_its_log() {
    let mut world = World::new(&[Strategy::Honest, Strategy::HeadersOnly]);
    for epoch in FIRST..FIRST + 4 {
        world.epoch(epoch, |_| true);
    }
    for (from, to) in [
        (AuditOutcome::Wrong, AuditOutcome::Passed),
        (AuditOutcome::Passed, AuditOutcome::Absent),
        (AuditOutcome::Passed, AuditOutcome::Wrong),
        (AuditOutcome::Passed, AuditOutcome::Pending),
    ] {
        let lies = world.log.iter().map(|entry| match entry {
            LogEntry::Found(verdict) => {
                let mut verdict = verdict.verify().unwrap().into_record();
                for draw in verdict.draws.iter_mut().filter(|draw| draw.outcome == from) {
                    draw.outcome = to;
                }
                verdict.outcome = verdict.draws.iter().map(|draw| draw.outcome).max().unwrap();
                LogEntry::Found(Signed::sign(verdict, &key(1)).to_wire())
            }
            other => other.clone(),
        });
        let report = check(&lies.collect::<Vec<_>>(), &world.blobs);
        assert!(report.failed > 0, "{from:?} told as {to:?}");
    }
    // Without the proofs, what it says of draws is only counted as unverifiable.
    let report = check(&world.log, &BTreeMap::new());
    assert_eq!((report.failed, report.draws), (0, 0));
    assert!(report.unverifiable > 0);
}

#[test]
fn an_auditor_that_starts_again_goes_on_where_it_was() {
    let mut world = World::new(&[Strategy::Honest, Strategy::Silent, Strategy::HeadersOnly]);
    for epoch in FIRST..FIRST + 3 {
        world.epoch(epoch, |index| index != 0 || epoch != FIRST + 1);
    }
    let (policy, _) = policy();
    let beacon: Arc<dyn Beacon> = Arc::from(policy.beacon.open().unwrap());
    let replay = |policy: AuditPolicy, log: Vec<LogEntry>| {
        Auditor::replay(key(1), "test.example/audit".into(), policy, beacon.clone(), log)
    };
    let again = replay(policy.clone(), world.log.clone()).unwrap();
    let now_ms = policy.start_of(FIRST + 3);
    for (node, inventory) in &world.nodes {
        let (ours, theirs) = (world.auditor.book.account(node.id()), again.book.account(node.id()));
        assert_eq!(ours.unwrap().scores, theirs.unwrap().scores);
        assert_eq!(world.auditor.asks(node.id(), now_ms), again.asks(node.id(), now_ms));
        // It does not countersign another commitment to an epoch that it has countersigned.
        let mut again = replay(policy.clone(), world.log.clone()).unwrap();
        let second = node.second(inventory, FIRST + 2, now_ms);
        let refused = again.take_commitment(node.id(), FIRST + 2, &second, now_ms);
        assert!(matches!(refused, Err(CommitmentError::Equivocation { .. })), "{refused:?}");
    }
    let mut other = policy;
    other.chunks = 3;
    assert!(matches!(replay(other.clone(), world.log.clone()), Err(ReplayError::Rules)));
    assert!(matches!(replay(other, Vec::new()), Err(ReplayError::Opening)));
}
