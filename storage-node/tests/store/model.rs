//! Random operations, crashes and reopenings against a model of what was acknowledged.

use std::collections::BTreeMap;

use holdfast_protocol::digest::Digest;
use holdfast_protocol::message::BlockOutcome;
use holdfast_protocol::record::{ClaimRef, ClaimState};
use holdfast_storage_node::disk::FaultDisk;
use holdfast_storage_node::store::{PutError, PutOutcome, Store};
use proptest::prelude::*;

use crate::support::*;

/// Distinct blocks and claims of the runs: few, so that they meet.
const BLOCKS: u64 = 6;

#[derive(Clone, Debug)]
enum Op {
    Put {
        block: u64,
        tag: u8,
    },
    Commit {
        block: u64,
        tag: u8,
    },
    Delete {
        block: u64,
        tag: u8,
        order: bool,
    },
    Restore {
        block: u64,
        tag: u8,
    },
    Lose {
        block: u64,
    },
    Reclaim,
    Flush,
    Reopen,
    /// The power goes in the middle of a put: pages survive by the bits of `luck`.
    Crash {
        block: u64,
        luck: u64,
        rebuild: bool,
    },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let block = 0..BLOCKS;
    let tag = 1..3u8;
    let op = prop_oneof![
        6 => (block.clone(), tag.clone()).prop_map(|(block, tag)| Op::Put { block, tag }),
        3 => (block.clone(), tag.clone()).prop_map(|(block, tag)| Op::Commit { block, tag }),
        4 => (block.clone(), tag.clone(), any::<bool>())
            .prop_map(|(block, tag, order)| Op::Delete { block, tag, order }),
        1 => (block.clone(), tag).prop_map(|(block, tag)| Op::Restore { block, tag }),
        1 => block.clone().prop_map(|block| Op::Lose { block }),
        2 => Just(Op::Reclaim),
        1 => Just(Op::Flush),
        1 => Just(Op::Reopen),
        2 => (block, any::<u64>(), any::<bool>())
            .prop_map(|(block, luck, rebuild)| Op::Crash { block: 100 + block, luck, rebuild }),
    ];
    prop::collection::vec(op, 1..60)
}

fn content(block: u64) -> Vec<u8> {
    let len = [1, 5000, 16_384, 70_000, 300_000, 900_000][usize::try_from(block % 6).unwrap()];
    bytes(block, len)
}

/// State, since when, and whether a deletion order put it there.
type Model = BTreeMap<(u64, u8), (ClaimState, u64, bool)>;

struct Run {
    dirs: Vec<tempfile::TempDir>,
    clock: std::sync::Arc<TestClock>,
    disk: std::sync::Arc<FaultDisk>,
    store: std::sync::Arc<Store>,
    model: Model,
    now: u64,
}

impl Run {
    fn new() -> Self {
        let dirs = vec![tempfile::tempdir().unwrap()];
        let (clock, disk) = (TestClock::at(100), FaultDisk::new());
        let store = Store::open(faulty(dirs[0].path(), &disk, &clock)).unwrap();
        Self { dirs, clock, disk, store, model: Model::new(), now: 100 }
    }

    fn open(&mut self) {
        self.disk = FaultDisk::new();
        let dir = self.dirs.last().unwrap().path();
        self.store = Store::open(faulty(dir, &self.disk, &self.clock)).unwrap();
    }

    async fn apply(&mut self, op: &Op) {
        self.now += 10;
        self.clock.set(self.now);
        match *op {
            Op::Put { block, tag: number } => {
                let data = content(block);
                let claim = claim(Digest::of(&data), agreement(1), tag(number));
                put_claimed(&self.store, &data, claim).await.unwrap();
                let entry =
                    self.model.entry((block, number)).or_insert((ClaimState::Provisional, self.now, false));
                if entry.0 == ClaimState::Trash {
                    *entry = (ClaimState::Provisional, self.now, false);
                }
            }
            Op::Commit { block, tag: number } => {
                let outcome = self.store.commit(agreement(1), &reference(block, number), 0).await.unwrap();
                let expected = match self.model.get(&(block, number)) {
                    Some((ClaimState::Live, ..)) => BlockOutcome::Already,
                    Some((ClaimState::Trash, _, true)) => BlockOutcome::Absent,
                    Some(_) => BlockOutcome::Done,
                    None => {
                        let keeps = |(key, state): (&(u64, u8), &(ClaimState, u64, bool))| {
                            key.0 == block && state.0 != ClaimState::Trash
                        };
                        if self.model.iter().any(keeps) { BlockOutcome::Done } else { BlockOutcome::Absent }
                    }
                };
                if expected == BlockOutcome::Done {
                    self.model.insert((block, number), (ClaimState::Live, self.now, false));
                }
                assert_eq!(outcome, [expected]);
            }
            Op::Delete { block, tag: number, order } => {
                let bytes = order.then(|| vec![9; 5000]);
                self.store.delete(agreement(1), &reference(block, number), bytes).await.unwrap();
                if let Some(state) = self.model.get_mut(&(block, number))
                    && (state.0 != ClaimState::Trash || (order && !state.2))
                {
                    *state = (ClaimState::Trash, self.now, order);
                }
            }
            Op::Restore { block, tag: number } => {
                self.store.restore(agreement(1), &reference(block, number)).await.unwrap();
                if let Some(state) = self.model.get_mut(&(block, number))
                    && state.0 == ClaimState::Trash
                {
                    *state = (ClaimState::Live, self.now, false);
                }
            }
            Op::Lose { block } => {
                let lost = self.store.declare_lost(Digest::of(&content(block))).await.unwrap();
                assert_eq!(lost, self.model.keys().any(|key| key.0 == block));
                self.model.retain(|key, _| key.0 != block);
            }
            Op::Reclaim => {
                self.now += TRASH_MS / 2;
                self.clock.set(self.now);
                self.store.reclaim(self.now).await.unwrap();
                let now = self.now;
                self.model.retain(|_, state| state.0 != ClaimState::Trash || state.1 + TRASH_MS > now);
            }
            Op::Flush => self.store.flush().await.unwrap(),
            Op::Reopen => {
                self.store.close().await.unwrap();
                self.reopen_in_place();
            }
            Op::Crash { block, luck, rebuild } => self.crash(block, luck, rebuild).await,
        }
    }

    fn reopen_in_place(&mut self) {
        // The lock goes with the last handle.
        let (clock, disk) = (TestClock::at(0), FaultDisk::new());
        let spare = tempfile::tempdir().unwrap();
        self.store = Store::open(faulty(spare.path(), &disk, &clock)).unwrap();
        self.open();
    }

    async fn crash(&mut self, block: u64, luck: u64, rebuild: bool) {
        // While one put's sync is held, others queue up; let through, they make one group of several records.
        self.disk.hold_syncs();
        let mut first = self.spawn_put(block);
        self.disk.held().await;
        let others: Vec<_> = (1..4).map(|next| self.spawn_put(block + 100 * next)).collect();
        // The puts run until they wait for the writer.
        for _turn in 0..64 {
            tokio::task::yield_now().await;
        }
        self.disk.release_held();
        // A new extent is synced before its first group: there may be several syncs to let through.
        let mut results = vec![loop {
            tokio::select! {
                biased;
                result = &mut first => break result.unwrap().is_ok(),
                () = self.disk.held() => self.disk.release_held(),
            }
        }];
        assert!(results[0]);
        // The next sync never comes back: the power goes.
        let mut others = futures::future::join_all(others);
        let answered = tokio::select! {
            biased;
            answered = &mut others => Some(answered),
            () = self.disk.held() => None,
        };
        self.disk.crash(|_, offset| luck.rotate_right((offset / 4096 % 64) as u32) & 1 == 1).unwrap();
        let answered = match answered {
            Some(answered) => answered,
            None => others.await,
        };
        results.extend(answered.into_iter().map(|result| result.unwrap().is_ok()));
        let copy = tempfile::tempdir().unwrap();
        copy_dir(self.dirs.last().unwrap().path(), copy.path());
        if rebuild {
            std::fs::remove_dir_all(copy.path().join("index")).unwrap();
        }
        self.dirs.push(copy);
        self.open();
        for (number, acknowledged) in (0..).zip(results) {
            let data = content(block + 100 * number);
            let found = read(&self.store, Digest::of(&data)).await;
            assert!(!acknowledged || found.is_some(), "an acknowledged put is gone");
            // Unacknowledged, either way is right; but what is there must be whole.
            if let Some(found) = found {
                assert_eq!(found, data);
                self.store.declare_lost(Digest::of(&data)).await.unwrap();
            }
        }
    }

    fn spawn_put(&self, block: u64) -> tokio::task::JoinHandle<Result<PutOutcome, PutError>> {
        let store = std::sync::Arc::clone(&self.store);
        tokio::spawn(async move { put(&store, &content(block)).await })
    }

    async fn check(&self) {
        let accounts = self.store.accounts();
        assert!(accounts.add_up(), "{accounts:?}");
        let (mut used, mut trash, mut claims_kept) = (0, 0, 0);
        for block in 0..BLOCKS {
            let data = content(block);
            let expected: Vec<_> = self
                .model
                .iter()
                .filter(|(key, _)| key.0 == block)
                .map(|(key, state)| (tag(key.1), state.0))
                .collect();
            let located = self.store.locate(Digest::of(&data)).await.unwrap();
            let found: Vec<_> = located
                .iter()
                .flat_map(|located| located.claims.iter().map(|claim| (claim.tag, claim.state)))
                .collect();
            assert_eq!(found, expected, "block {block}");
            let pages = 4096 + (data.len() as u64).next_multiple_of(4096);
            let kept = expected.iter().filter(|claim| claim.1 != ClaimState::Trash).count() as u64;
            claims_kept += kept;
            if kept > 0 {
                used += pages;
            } else if !expected.is_empty() {
                trash += pages;
            }
            if located.is_some() {
                assert_eq!(read(&self.store, Digest::of(&data)).await.as_deref(), Some(&data[..]));
            }
        }
        assert_eq!((accounts.used_bytes, accounts.trash_bytes), (used, trash));
        assert_eq!(accounts.claims, claims_kept);
    }
}

fn reference(block: u64, number: u8) -> [ClaimRef; 1] {
    [ClaimRef(Digest::of(&content(block)), tag(number))]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn what_was_acknowledged_is_what_is_there(ops in ops()) {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        runtime.block_on(async {
            let mut run = Run::new();
            for op in &ops {
                run.apply(op).await;
                run.check().await;
            }
        });
    }
}
