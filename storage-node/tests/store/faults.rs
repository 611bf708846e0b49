//! A model of the store on a disk whose power may go with any single change: a write, a sync, a new or a lost name, a cut
//! or a hole. What was answered must be there, what failed may be either way, and never half.

use std::collections::BTreeMap;
use std::sync::Arc;

use holdfast_protocol::digest::Digest;
use holdfast_protocol::record::{ClaimRef, ClaimState};
use holdfast_storage_node::disk::{FaultDisk, FaultPlan};
use holdfast_storage_node::store::{Store, StoreConfig};
use proptest::prelude::*;

use crate::support::*;

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
    /// Bits of the block's data turn; the scrub finds out.
    Rot {
        block: u64,
    },
    Reclaim,
    Flush,
    Scrub,
    Full(bool),
    /// The power goes after so many changes; of what was not synced, `luck` decides.
    Fuse {
        changes: u64,
        luck: u64,
        rebuild: bool,
    },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let block = 0..BLOCKS;
    let tag = 1..3u8;
    let op = prop_oneof![
        8 => (block.clone(), tag.clone()).prop_map(|(block, tag)| Op::Put { block, tag }),
        4 => (block.clone(), tag.clone()).prop_map(|(block, tag)| Op::Commit { block, tag }),
        5 => (block.clone(), tag.clone(), any::<bool>())
            .prop_map(|(block, tag, order)| Op::Delete { block, tag, order }),
        1 => (block.clone(), tag).prop_map(|(block, tag)| Op::Restore { block, tag }),
        1 => block.clone().prop_map(|block| Op::Lose { block }),
        1 => block.prop_map(|block| Op::Rot { block }),
        3 => Just(Op::Reclaim),
        1 => Just(Op::Flush),
        1 => Just(Op::Scrub),
        1 => any::<bool>().prop_map(Op::Full),
        4 => (0..12u64, any::<u64>(), any::<bool>())
            .prop_map(|(changes, luck, rebuild)| Op::Fuse { changes, luck, rebuild }),
    ];
    prop::collection::vec(op, 1..70)
}

fn content(block: u64) -> Vec<u8> {
    let len = [1, 5000, 70_000, 300_000, 600_000, 900_000][usize::try_from(block % 6).unwrap()];
    bytes(block, len)
}

/// State, since when, and whether a deletion order put it there.
type State = (ClaimState, u64, bool);
type Model = BTreeMap<(u64, u8), State>;

/// What the model is after `op`, when it succeeds.
fn after(model: &Model, op: &Op, now: u64) -> Model {
    let mut next = model.clone();
    match *op {
        Op::Put { block, tag } => {
            let entry = next.entry((block, tag)).or_insert((ClaimState::Provisional, now, false));
            if entry.0 == ClaimState::Trash {
                *entry = (ClaimState::Provisional, now, false);
            }
        }
        Op::Commit { block, tag } => {
            let kept = model.iter().any(|(key, state)| key.0 == block && state.0 != ClaimState::Trash);
            match model.get(&(block, tag)) {
                Some((ClaimState::Live, ..) | (ClaimState::Trash, _, true)) => {}
                None if !kept => {}
                Some(_) | None => drop(next.insert((block, tag), (ClaimState::Live, now, false))),
            }
        }
        Op::Delete { block, tag, order } => {
            if let Some(state) = next.get_mut(&(block, tag))
                && (state.0 != ClaimState::Trash || (order && !state.2))
            {
                *state = (ClaimState::Trash, now, order);
            }
        }
        Op::Restore { block, tag } => {
            if let Some(state) = next.get_mut(&(block, tag))
                && state.0 == ClaimState::Trash
            {
                *state = (ClaimState::Live, now, false);
            }
        }
        Op::Lose { block } | Op::Rot { block } => next.retain(|key, _| key.0 != block),
        Op::Reclaim => next.retain(|_, state| state.0 != ClaimState::Trash || state.1 + TRASH_MS > now),
        Op::Flush | Op::Scrub | Op::Full(_) | Op::Fuse { .. } => {}
    }
    next
}

struct Run {
    dirs: Vec<tempfile::TempDir>,
    clock: Arc<TestClock>,
    disk: Arc<FaultDisk>,
    store: Arc<Store>,
    model: Model,
    now: u64,
    luck: u64,
    rebuild: bool,
}

impl Run {
    fn new() -> Self {
        let dirs = vec![tempfile::tempdir().unwrap()];
        let (clock, disk) = (TestClock::at(100), FaultDisk::new());
        let store = Store::open(Self::config(&dirs[0], &disk, &clock)).unwrap();
        Self { dirs, clock, disk, store, model: Model::new(), now: 100, luck: 0, rebuild: false }
    }

    fn config(dir: &tempfile::TempDir, disk: &Arc<FaultDisk>, clock: &Arc<TestClock>) -> StoreConfig {
        // Held copies are looked at by every put.
        StoreConfig { verified_fresh_ms: 0, ..faulty(dir.path(), disk, clock) }
    }

    async fn apply(&mut self, op: &Op) {
        self.now += if matches!(op, Op::Reclaim) { TRASH_MS / 2 } else { 10 };
        self.clock.set(self.now);
        let next = after(&self.model, op, self.now);
        let me = agreement(1);
        let done = match *op {
            Op::Put { block, tag: number } => {
                let data = content(block);
                let put = put_claimed(&self.store, &data, claim(Digest::of(&data), me, tag(number))).await;
                put.map(|_| ()).map_err(|error| error.to_string())
            }
            Op::Commit { block, tag } => told(self.store.commit(me, &reference(block, tag), 0).await),
            Op::Delete { block, tag, order } => {
                let order = order.then(|| vec![9; 5000]);
                told(self.store.delete(me, &reference(block, tag), order).await)
            }
            Op::Restore { block, tag } => told(self.store.restore(me, &reference(block, tag)).await),
            Op::Lose { block } => told(self.store.declare_lost(Digest::of(&content(block))).await),
            Op::Rot { block } => self.rot(block).await,
            Op::Reclaim => told(self.store.reclaim(self.now).await),
            Op::Flush => told(self.store.flush().await),
            Op::Scrub => self.scrub().await,
            Op::Full(full) => {
                self.disk.plan(FaultPlan { full, ..FaultPlan::default() });
                Ok(())
            }
            Op::Fuse { changes, luck, rebuild } => {
                (self.luck, self.rebuild) = (luck, rebuild);
                self.disk.blow_after(changes);
                Ok(())
            }
        };
        let blown = self.disk.is_blown();
        if blown {
            self.crash();
        }
        match done {
            Ok(()) => self.model = next,
            Err(_) if blown => self.settle(&next).await,
            // A full disk says so; half of a pass that gives room back is no harm.
            Err(error) => {
                assert!(error.contains("full") || error.contains("no room"), "{op:?}: {error}");
                self.settle(&next).await;
            }
        }
        self.check().await;
    }

    async fn rot(&mut self, block: u64) -> Result<(), String> {
        let data = content(block);
        let digest = Digest::of(&data);
        if !self.store.holds(digest).await.unwrap() {
            return Ok(());
        }
        // Damage to the last three groups looks like a tear, and is none of this test's business.
        self.disk.blow_after(u64::MAX);
        self.disk.plan(FaultPlan::default());
        let fillers = [self.now, self.now + 1, self.now + 2].map(|seed| bytes(1_000_000 + seed, 100));
        for filler in &fillers {
            told(put(&self.store, filler).await)?;
        }
        self.disk.rot(&data).unwrap();
        self.scrub().await?;
        // A pass that began in the middle has not seen all: the next one does.
        self.scrub().await?;
        for filler in &fillers {
            told(self.store.declare_lost(Digest::of(filler)).await)?;
        }
        Ok(())
    }

    async fn scrub(&self) -> Result<(), String> {
        for _ in 0..10_000 {
            match self.store.scrub_step(self.now).await {
                Ok(step) if step.ended => {
                    return self.store.failure().map_or(Ok(()), Err);
                }
                Ok(_) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        panic!("a pass never ended");
    }

    fn crash(&mut self) {
        let luck = self.luck;
        self.disk.crash(|_, offset| luck.rotate_right((offset / 4096 % 64) as u32) & 1 == 1).unwrap();
        let copy = tempfile::tempdir().unwrap();
        copy_dir(self.dirs.last().unwrap().path(), copy.path());
        if self.rebuild {
            std::fs::remove_dir_all(copy.path().join("index")).unwrap();
        }
        self.disk = FaultDisk::new();
        self.store = Store::open(Self::config(&copy, &self.disk, &self.clock)).unwrap();
        self.dirs.push(copy);
    }

    async fn found(&self) -> BTreeMap<(u64, u8), ClaimState> {
        let mut found = BTreeMap::new();
        for block in 0..BLOCKS {
            let located = self.store.locate(Digest::of(&content(block))).await.unwrap();
            for claim in located.iter().flat_map(|located| &located.claims) {
                found.insert((block, claim.tag.0[0]), claim.state);
            }
        }
        found
    }

    /// After a failure, every claim is as it was before or as it would be after.
    async fn settle(&mut self, next: &Model) {
        let found = self.found().await;
        let mut settled = Model::new();
        for block in 0..BLOCKS {
            for tag in 1..3u8 {
                let key = (block, tag);
                let state = found.get(&key).copied();
                let before = self.model.get(&key).copied();
                let after = next.get(&key).copied();
                let as_found = |one: &Option<State>| one.map(|one| one.0) == state;
                let chosen = [after, before].into_iter().find(as_found);
                let Some(chosen) = chosen else {
                    panic!("block {block} tag {tag} is {state:?}; it was {before:?} and became {after:?}");
                };
                if let Some(chosen) = chosen {
                    settled.insert(key, chosen);
                }
            }
        }
        self.model = settled;
    }

    async fn check(&self) {
        let accounts = self.store.accounts();
        assert!(accounts.add_up(), "{accounts:?}");
        let expected: BTreeMap<_, _> = self.model.iter().map(|(key, state)| (*key, state.0)).collect();
        assert_eq!(self.found().await, expected);
        let (mut used, mut trash, mut pages) = (0, 0, 0);
        for block in 0..BLOCKS {
            let data = content(block);
            let record = 4096 + (data.len() as u64).next_multiple_of(4096);
            let states: Vec<_> =
                self.model.iter().filter(|(key, _)| key.0 == block).map(|(_, state)| state.0).collect();
            let kept = states.iter().filter(|state| **state != ClaimState::Trash).count() as u64;
            pages += kept * record;
            match kept {
                0 if states.is_empty() => {}
                0 => trash += record,
                _ => used += record,
            }
            if !states.is_empty() {
                assert_eq!(read(&self.store, Digest::of(&data)).await.as_deref(), Some(&data[..]));
            }
        }
        assert_eq!((accounts.used_bytes, accounts.trash_bytes), (used, trash));
        assert_eq!(self.store.agreement_usage(agreement(1)).await.unwrap().page_bytes, pages);
    }
}

fn told<T, E: std::fmt::Display>(result: Result<T, E>) -> Result<(), String> {
    result.map(|_| ()).map_err(|error| error.to_string())
}

fn reference(block: u64, number: u8) -> [ClaimRef; 1] {
    [ClaimRef(Digest::of(&content(block)), tag(number))]
}

/// More cases with `HOLDFAST_CASES`, for a night.
fn cases() -> u32 {
    std::env::var("HOLDFAST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(24)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn whatever_change_the_power_goes_with_what_was_answered_is_there(ops in ops()) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        runtime.block_on(async {
            let mut run = Run::new();
            for op in &ops {
                run.apply(op).await;
            }
        });
    }
}
