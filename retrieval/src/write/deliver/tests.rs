//! Commit, release and restore, repeated and out of order.

use bytes::Bytes;
use holdfast_protocol::record::{ClaimState, Policy};

use super::*;
use crate::block::Block;
use crate::testing::{Behaviour, TestNetwork};
use crate::write::{CpuPool, DraftBlock, StripeDraft, StripeWriter, WriteConfig, WrittenStripe};

struct Rig {
    test: TestNetwork,
    writer: StripeWriter,
    deliverer: Deliverer,
}

async fn rig() -> Rig {
    let test = TestNetwork::start(6).await;
    let (pool, tags) = (Arc::clone(&test.pool), TagKey::new([9; 32]));
    let writer =
        StripeWriter::new(Arc::clone(&pool), tags.clone(), CpuPool::new(2), 1, WriteConfig::default());
    let deliverer = Deliverer::new(pool, tags, Arc::clone(&test.gateway));
    Rig { test, writer, deliverer }
}

impl Rig {
    async fn write(&self, contents: &'static [&'static [u8]], retain_until_ms: u64) -> WrittenStripe {
        let blocks = contents
            .iter()
            .map(|bytes| Block::new(Bytes::from_static(bytes)).unwrap())
            .map(|block| DraftBlock { block, scope: None, retain_until_ms })
            .collect();
        self.writer.write(StripeDraft { policy: Policy::LOCAL, blocks }).await.unwrap()
    }

    fn states(&self, claims: &[ShardClaim]) -> Vec<ClaimState> {
        claims
            .iter()
            .map(|claim| {
                let tag = self.writer.tags().tag(claim.stripe, claim.node);
                self.test.node(claim.node).claim(claim.digest, tag).unwrap().state
            })
            .collect()
    }
}

fn all(delivered: &Delivered, outcome: BlockOutcome) -> bool {
    delivered.iter().all(|answer| matches!(answer, Ok(found) if *found == outcome))
}

#[tokio::test]
async fn shards_become_live_are_released_and_restored_each_as_often_as_told() {
    let rig = rig().await;
    let claims: Vec<ShardClaim> = rig.write(&[b"one", b"two"], 0).await.claims().collect();
    assert_eq!(claims.len(), 4);
    assert!(all(&rig.deliverer.commit_shards(&claims, 0).await, BlockOutcome::Done));
    assert!(all(&rig.deliverer.commit_shards(&claims, 0).await, BlockOutcome::Already));
    assert_eq!(rig.states(&claims), [ClaimState::Live; 4]);
    assert!(all(&rig.deliverer.delete_shards(&claims).await, BlockOutcome::Done));
    assert!(all(&rig.deliverer.delete_shards(&claims).await, BlockOutcome::Already));
    assert_eq!(rig.states(&claims), [ClaimState::Trash; 4]);
    assert!(all(&rig.deliverer.restore_shards(&claims).await, BlockOutcome::Done));
    assert_eq!(rig.states(&claims), [ClaimState::Live; 4]);
}

#[tokio::test]
async fn releasing_one_stripe_leaves_another_stripes_claim_on_the_same_bytes() {
    let rig = rig().await;
    let mut stripes = Vec::new();
    for _ in 0..12 {
        stripes.push(rig.write(&[b"the same bytes"], 0).await);
    }
    let released: Vec<ShardClaim> = stripes[0].claims().collect();
    let kept: Vec<ShardClaim> = stripes[1..].iter().flat_map(|stripe| stripe.claims()).collect();
    assert!(all(&rig.deliverer.commit_shards(&kept, 0).await, BlockOutcome::Done));
    assert!(all(&rig.deliverer.delete_shards(&released).await, BlockOutcome::Done));
    assert!(rig.states(&kept).iter().all(|state| *state == ClaimState::Live));
}

#[tokio::test]
async fn retained_shards_are_not_released() {
    let rig = rig().await;
    let claims: Vec<ShardClaim> =
        rig.write(&[b"held fast"], crate::testing::START_MS + 1000).await.claims().collect();
    assert!(all(&rig.deliverer.delete_shards(&claims).await, BlockOutcome::Retained));
    rig.test.clock.advance(2000);
    assert!(all(&rig.deliverer.delete_shards(&claims).await, BlockOutcome::Done));
}

#[tokio::test]
async fn a_node_that_is_gone_fails_its_own_claims_only_and_can_be_told_later() {
    let rig = rig().await;
    let claims: Vec<ShardClaim> = rig.write(&[b"one", b"two", b"three", b"four"], 0).await.claims().collect();
    let gone = rig.test.node(claims[2].node);
    gone.vanish().await;
    let delivered = rig.deliverer.commit_shards(&claims, 0).await;
    for (claim, answer) in claims.iter().zip(&delivered) {
        match answer {
            Ok(outcome) => assert!(claim.node != gone.id() && *outcome == BlockOutcome::Done),
            Err(error) => assert!(claim.node == gone.id() && error.is_retryable(), "{error}"),
        }
    }
    assert_eq!(delivered.iter().filter(|answer| answer.is_err()).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_stalled_node_is_given_up_on() {
    let rig = rig().await;
    let claims: Vec<ShardClaim> = rig.write(&[b"one"], 0).await.claims().collect();
    rig.test.node(claims[0].node).behave(Behaviour::Stall);
    let delivered = rig.deliverer.commit_shards(&claims, 0).await;
    assert!(matches!(delivered[0], Err(DeliverError::Timeout { .. })));
    assert!(delivered[1..].iter().all(Result::is_ok));
}

#[tokio::test]
async fn claims_beyond_a_message_are_told_in_several() {
    let rig = rig().await;
    let node = rig.test.nodes[0].id();
    let claims: Vec<ShardClaim> = (0..1200u64)
        .map(|seed| ShardClaim { stripe: StripeId([3; 16]), digest: Digest::of(&seed.to_le_bytes()), node })
        .collect();
    let delivered = rig.deliverer.commit_shards(&claims, 0).await;
    assert_eq!(delivered.len(), 1200);
    assert!(all(&delivered, BlockOutcome::Absent));
    assert_eq!(rig.test.nodes[0].orders(), 3);
}
