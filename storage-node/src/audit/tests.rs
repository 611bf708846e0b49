use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use holdfast_proofs::auditor::{Ask, Auditor, CommitmentError};
use holdfast_proofs::beacon::{BeaconSpec, Onion, OnionSecret};
use holdfast_protocol::record::{AuditOutcome, Verdict};
use holdfast_protocol::{BlockLen, SigningKey};
use proptest::prelude::*;
use tempfile::TempDir;

use super::source::MemorySource;
use super::*;

const EPOCH_MS: u64 = 60_000;
const FIRST: Epoch = 500;

fn policy() -> (AuditPolicy, OnionSecret) {
    let secret = OnionSecret::new([3; 32]);
    let beacon = BeaconSpec::Onion {
        members: vec![secret.anchor()],
        genesis_ms: FIRST * EPOCH_MS + EPOCH_MS / 6,
        period_ms: EPOCH_MS,
    };
    (AuditPolicy::every(EPOCH_MS, beacon), secret)
}

fn key(seed: u8) -> Arc<SigningKey> {
    Arc::new(SigningKey::from_seed(&[seed; 32]).unwrap())
}

fn agreement(seed: u8) -> AgreementId {
    AgreementId([seed; 32])
}

fn bytes(seed: u64, len: usize) -> Bytes {
    let mut data = vec![0u8; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut data);
    Bytes::from(data)
}

/// A node's audits over a store in memory, and an auditor that asks as one over the network would.
struct World {
    source: Arc<MemorySource>,
    audit: NodeAudit,
    auditor: Auditor,
    secret: OnionSecret,
    dir: TempDir,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let source = Arc::new(MemorySource::default());
        let (policy, secret) = policy();
        let audit = NodeAudit::open(dir.path(), key(7), policy.clone(), source.clone()).unwrap();
        let beacon = Arc::from(policy.beacon.open().unwrap());
        let start = policy.start_of(FIRST);
        let mut auditor = Auditor::new(key(1), "test/log".into(), policy, beacon, start);
        auditor.follow(audit.me());
        Self { source, audit, auditor, secret, dir }
    }

    fn fill(&self) -> Vec<Digest> {
        let lens = [1usize, 1024, 16_384, 16_385, 100_000, 262_144];
        (0..12u64)
            .map(|seed| {
                let len = lens[usize::try_from(seed).unwrap() % lens.len()];
                self.source.keep(bytes(seed, len), agreement(1))
            })
            .collect()
    }

    fn restart(&mut self) {
        let (policy, _) = policy();
        // The old one holds the database.
        let parked =
            NodeAudit::open(&self.dir.path().join("parked"), key(7), policy.clone(), self.source.clone());
        drop(std::mem::replace(&mut self.audit, parked.unwrap()));
        self.audit = NodeAudit::open(self.dir.path(), key(7), policy, self.source.clone()).unwrap();
    }

    async fn commit(&mut self, epoch: Epoch) -> CommitReport {
        let now_ms = self.audit.policy.start_of(epoch);
        self.audit.commit(now_ms).await.unwrap().unwrap()
    }

    async fn countersign(&mut self, epoch: Epoch) {
        let now_ms = self.audit.policy.start_of(epoch) + 1;
        let shown = self.audit.shown(epoch, now_ms).await.unwrap();
        let word = self.auditor.take_commitment(self.audit.me(), epoch, &shown, now_ms).unwrap();
        self.audit.countersigned(self.auditor.id(), &word.to_wire()).await.unwrap();
    }

    fn round(&self, epoch: Epoch) -> BeaconRound {
        let number = self.audit.beacon.round_at(self.audit.policy.draw_of(epoch));
        Onion::round(number, &[self.secret.layer(number).unwrap()])
    }

    /// Draws, asks what is due of all epochs, judges.
    async fn ask(&mut self, epoch: Epoch) -> Vec<Verdict> {
        let now_ms = self.audit.policy.draw_of(epoch);
        self.auditor.take_round(epoch, self.round(epoch)).unwrap();
        let mut verdicts = Vec::new();
        for ask in self.auditor.asks(self.audit.me(), now_ms) {
            let Ask::Answer(due, draws) = ask else { continue };
            let answered = self.audit.answer(due, &self.round(due), &draws, now_ms).await;
            let Ok((answer, body)) = answered else { continue };
            let taken = self.auditor.take_answer(self.audit.me(), due, &answer, &body, now_ms).unwrap();
            verdicts.extend(taken.verdict.map(Signed::into_record));
        }
        let closed = self.auditor.close(epoch, self.audit.policy.answer_by(epoch));
        verdicts.extend(closed.into_iter().map(Signed::into_record));
        verdicts
    }

    async fn epoch(&mut self, epoch: Epoch) -> Verdict {
        self.commit(epoch).await;
        self.countersign(epoch).await;
        self.ask(epoch).await.into_iter().find(|verdict| verdict.epoch == epoch).unwrap()
    }
}

#[tokio::test]
async fn what_is_held_is_proved_epoch_after_epoch() {
    let mut world = World::new();
    let digests = world.fill();
    for epoch in FIRST..FIRST + 4 {
        let verdict = world.epoch(epoch).await;
        assert_eq!((verdict.outcome, verdict.count(AuditOutcome::Passed)), (AuditOutcome::Passed, 20));
        world.source.remove(&digests[usize::try_from(epoch - FIRST).unwrap()]);
        world.source.keep(bytes(epoch, 50_000), agreement(2));
    }
    let shown = world.audit.shown(FIRST + 3, 0).await.unwrap();
    assert_eq!(shown.countersignatures.len(), 1);
}

#[tokio::test]
async fn an_empty_node_commits_to_nothing_and_owes_nothing() {
    let mut world = World::new();
    let verdict = world.epoch(FIRST).await;
    assert_eq!((verdict.outcome, verdict.draws.len()), (AuditOutcome::Passed, 0));
}

/// The draw opens the inventory as it was committed to, whatever came and went since, and across a restart.
#[tokio::test]
async fn answers_outlive_later_commitments_and_restarts() {
    let mut world = World::new();
    world.fill();
    world.commit(FIRST).await;
    world.countersign(FIRST).await;
    for seed in 100..140 {
        world.source.keep(bytes(seed, 30_000), agreement(2));
    }
    // Opened, and then the answer is lost on the way.
    world.audit.answer(FIRST, &world.round(FIRST), &[], 0).await.unwrap();
    world.commit(FIRST + 1).await;
    world.restart();
    world.countersign(FIRST + 1).await;
    world.auditor.take_round(FIRST, world.round(FIRST)).unwrap();
    let verdicts = world.ask(FIRST + 1).await;
    assert_eq!(verdicts.len(), 2);
    assert!(verdicts.iter().all(|verdict| verdict.count(AuditOutcome::Passed) == 20), "{verdicts:?}");
    // It never commits twice to one epoch, not even after a restart.
    let now_ms = world.audit.policy.start_of(FIRST + 1);
    assert_eq!(world.audit.commit(now_ms).await.unwrap(), None);
    let shown = world.audit.shown(FIRST + 1, now_ms).await.unwrap();
    let again = world.auditor.take_commitment(world.audit.me(), FIRST + 1, &shown, now_ms);
    assert!(!matches!(again, Err(CommitmentError::Equivocation { .. })));
}

#[tokio::test]
async fn a_draw_that_was_never_opened_is_refused_after_the_next_commitment() {
    let mut world = World::new();
    world.fill();
    world.commit(FIRST).await;
    world.source.keep(bytes(99, 10), agreement(1));
    world.commit(FIRST + 1).await;
    let answered = world.audit.answer(FIRST, &world.round(FIRST), &[], 0).await;
    assert!(matches!(answered, Err(AuditError::Passed { .. })));
}

/// A disk that changes bytes makes losses, never lies: the node checks before it signs.
#[tokio::test]
async fn damaged_bytes_are_shown_as_missing() {
    let mut world = World::new();
    for digest in world.fill() {
        world.source.rot(&digest);
    }
    let verdict = world.epoch(FIRST).await;
    assert_eq!((verdict.outcome, verdict.count(AuditOutcome::Absent)), (AuditOutcome::Absent, 20));
}

#[tokio::test]
async fn a_loss_declared_before_the_draw_is_told_apart() {
    let mut world = World::new();
    let digests = world.fill();
    world.commit(FIRST).await;
    let now_ms = world.audit.policy.start_of(FIRST) + 1;
    digests.iter().for_each(|digest| world.source.lose(digest, Some(now_ms)));
    world.countersign(FIRST).await;
    let verdict = world.ask(FIRST).await.remove(0);
    assert_eq!((verdict.outcome, verdict.count(AuditOutcome::Declared)), (AuditOutcome::Declared, 20));
}

#[tokio::test]
async fn a_lying_node_is_found_out() {
    let mut world = World::new();
    world.fill();
    world.audit.misbehave = true;
    let verdict = world.epoch(FIRST).await;
    assert_eq!((verdict.outcome, verdict.count(AuditOutcome::Wrong)), (AuditOutcome::Wrong, 20));
}

#[tokio::test]
async fn rounds_of_other_epochs_and_forged_ones_get_no_answer() {
    let mut world = World::new();
    world.fill();
    world.commit(FIRST).await;
    let other = world.audit.answer(FIRST, &world.round(FIRST + 1), &[], 0).await;
    assert!(matches!(other, Err(AuditError::Round { .. })));
    let mut forged = world.round(FIRST);
    forged.proof[0] ^= 1;
    assert!(matches!(world.audit.answer(FIRST, &forged, &[], 0).await, Err(AuditError::Beacon(_))));
    let none = world.audit.answer(FIRST + 7, &world.round(FIRST + 7), &[], 0).await;
    assert!(matches!(none, Err(AuditError::NoCommitment { .. })));
    assert!(matches!(
        world.audit.page(agreement(9), None, 10, 0).await.map(|page| page.record().last),
        Ok(true)
    ));
}

#[tokio::test]
async fn pages_list_an_agreement_and_nothing_else() {
    let mut world = World::new();
    assert!(matches!(world.audit.page(agreement(1), None, 10, 0).await, Err(AuditError::Uncommitted)));
    let mut ours: Vec<Digest> = world.fill();
    ours.sort_unstable();
    let theirs = world.source.keep(bytes(77, 5), agreement(2));
    world.commit(FIRST).await;
    let mut listed = Vec::new();
    let mut after = None;
    loop {
        let page = world.audit.page(agreement(1), after, 5, 0).await.unwrap();
        let page = page.record();
        assert!(page.entries.len() <= 5 && page.epoch == Some(FIRST));
        listed.extend(page.entries.iter().map(|entry| entry.0));
        after = page.entries.last().map(|entry| entry.0);
        if page.last {
            assert!(!page.lists(&theirs));
            break;
        }
    }
    assert_eq!(listed, ours);
}

/// What the auditors of a node say is shown to its operator, and words about others are not taken.
#[tokio::test]
async fn standings_are_kept_and_foreign_words_are_not() {
    let mut world = World::new();
    world.fill();
    world.epoch(FIRST).await;
    let standing = world.auditor.standing(world.audit.me(), "/log", 0).unwrap();
    let verdict = Signed::sign(
        world
            .auditor
            .take_entries()
            .iter()
            .rev()
            .find_map(|entry| match entry {
                holdfast_proofs::log::LogEntry::Found(verdict) => {
                    Some(verdict.verify().unwrap().into_record())
                }
                _ => None,
            })
            .unwrap(),
        &key(1),
    );
    let me = world.auditor.id();
    world.audit.found(me, &verdict.to_wire(), &standing.to_wire()).unwrap();
    assert_eq!(world.audit.standings()[0].data_ppm, 1_000_000);
    assert!(world.audit.standings()[0].replay.contains("auditor verify"));
    let stranger = NodeId(key(2).public());
    assert!(matches!(
        world.audit.found(stranger, &verdict.to_wire(), &standing.to_wire()),
        Err(AuditError::Foreign)
    ));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Hashing what changed, over restarts and rebuilt indexes, always gives what hashing everything anew gives.
    #[test]
    fn a_refreshed_copy_is_the_store(
        steps in prop::collection::vec((0u8..6, any::<u16>()), 1..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new();
            let mut model: BTreeMap<Digest, u8> = BTreeMap::new();
            for (step, number) in steps {
                match step {
                    0..=2 => {
                        let owner = u8::try_from(number % 3).unwrap();
                        let digest = Digest::of(&number.to_le_bytes());
                        let len = BlockLen::new(u32::from(number) + 1).unwrap();
                        world.source.list(SourceEntry { digest, len, agreement: agreement(owner) });
                        model.insert(digest, owner);
                    }
                    3 => {
                        let gone = model.keys().nth(usize::from(number) % model.len().max(1)).copied();
                        if let Some(digest) = gone {
                            model.remove(&digest);
                            world.source.remove(&digest);
                        }
                    }
                    4 => world.restart(),
                    _ => world.source.rebuilt(),
                }
                let mut state = world.audit.state.lock().await;
                state.ledger.refresh(&*world.source).await.unwrap();
                let fresh_dir = tempfile::tempdir().unwrap();
                let secret = blake3::derive_key("holdfast inventory owner secret v1", key(7).seed());
                let mut fresh = Ledger::open(fresh_dir.path(), secret).unwrap();
                fresh.refresh(&*world.source).await.unwrap();
                assert_eq!(state.ledger.root(), fresh.root());
                assert_eq!(state.ledger.count(), model.len() as u64);
                drop(state);
            }
        });
    }
}
