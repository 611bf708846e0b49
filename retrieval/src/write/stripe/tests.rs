//! One stripe against nodes that refuse, stall, lie and vanish.

use holdfast_protocol::message::RefusalReason;
use holdfast_protocol::record::ClaimState;

use super::*;
use crate::pool::NodeState;
use crate::testing::{Behaviour, TestNetwork};
use crate::write::FailureKind;

fn writer(test: &TestNetwork) -> StripeWriter {
    let cpu = CpuPool::new(2);
    StripeWriter::new(Arc::clone(&test.pool), TagKey::new([9; 32]), cpu, 1, WriteConfig::default())
}

fn noise(seed: u64, len: usize) -> Bytes {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    Bytes::from(bytes)
}

fn draft(policy: Policy, lens: &[usize]) -> StripeDraft {
    let blocks = lens.iter().enumerate().map(|(seed, len)| DraftBlock {
        block: Block::new(noise(seed as u64, *len)).unwrap(),
        scope: None,
        retain_until_ms: 0,
    });
    StripeDraft { policy, blocks: blocks.collect() }
}

/// Every placed shard is on its node with its bytes, under a provisional claim with the stripe's tag.
fn assert_stored(test: &TestNetwork, writer: &StripeWriter, written: &WrittenStripe) {
    let stripe = &written.stripe;
    for shard in stripe.shards.iter().flatten() {
        let Some(id) = shard.node else { continue };
        let node = test.node(id);
        let bytes = node.block(&shard.digest).unwrap();
        assert_eq!(bytes.len(), shard.len.as_usize());
        let claim = node.claim(shard.digest, writer.tags().tag(stripe.id, id)).unwrap();
        assert_eq!(claim.state, ClaimState::Provisional);
        assert!(
            written
                .receipts
                .iter()
                .any(|r| r.record().node == id && r.record().covers(&shard.digest, shard.len))
        );
    }
    assert!(stripe.check_bounds().is_ok());
}

#[tokio::test]
async fn a_full_stripe_lies_on_six_nodes_and_decodes() {
    let test = TestNetwork::start(6).await;
    let writer = writer(&test);
    let draft = draft(Policy::LOCAL, &[300_000, 70_000, 1, 1024 * 1024]);
    let data: Vec<Bytes> = draft.blocks.iter().map(|draft| draft.block.bytes().clone()).collect();
    let written = writer.write(draft).await.unwrap();
    assert!(written.is_complete());
    assert_stored(&test, &writer, &written);
    assert_eq!(test.nodes.iter().filter(|node| node.block_count() == 1).count(), 6);
    let parity = Code::shared(4, 2).unwrap().encode(&data).unwrap();
    for (index, bytes) in parity.iter().enumerate() {
        let shard = written.stripe.shards[4 + index].unwrap();
        assert_eq!(test.node(shard.node.unwrap()).block(&shard.digest).unwrap(), *bytes);
    }
}

#[tokio::test]
async fn a_short_stripe_stores_its_blocks_and_the_parity_and_nothing_else() {
    let test = TestNetwork::start(6).await;
    let written = writer(&test).write(draft(Policy::LOCAL, &[5_000])).await.unwrap();
    assert_eq!(written.stripe.shards.iter().flatten().count(), 3);
    assert!(written.stripe.shards[1..4].iter().all(Option::is_none));
    assert_eq!(test.nodes.iter().map(|node| node.block_count()).sum::<usize>(), 3);
}

#[tokio::test]
async fn repeated_blocks_take_one_slot() {
    let test = TestNetwork::start(6).await;
    let mut draft = draft(Policy::LOCAL, &[5_000, 6_000]);
    let (first, second) = (draft.blocks[0].clone(), draft.blocks[1].clone());
    draft.blocks = vec![first.clone(), second.clone(), first.clone(), second.clone(), first.clone()];
    let written = writer(&test).write(draft).await.unwrap();
    assert_eq!(written.slot_of(&first.block.digest()), Some(0));
    assert_eq!(written.slot_of(&second.block.digest()), Some(1));
    assert_eq!(written.stripe.shards.iter().flatten().count(), 4);
}

#[tokio::test]
async fn drafts_of_nothing_or_too_much_are_refused() {
    let test = TestNetwork::start(6).await;
    let writer = writer(&test);
    for lens in [&[][..], &[1, 2, 3, 4, 5][..]] {
        let error = writer.write(draft(Policy::LOCAL, lens)).await.unwrap_err();
        assert!(matches!(error, WriteError::Draft { .. }) && !error.is_retryable());
    }
}

#[tokio::test]
async fn one_node_gone_leaves_its_shard_for_completion() {
    let test = TestNetwork::start(6).await;
    test.nodes[2].vanish().await;
    let writer = writer(&test);
    let written = writer.write(draft(Policy::LOCAL, &[9_000; 4].map(|len| len))).await;
    let written = match written {
        Err(WriteError::Quorum { .. }) => panic!("five of six nodes are enough"),
        other => other.unwrap(),
    };
    assert_stored(&test, &writer, &written);
    // Four equal lengths, four different blocks, one shard without a node.
    let missing = written.stripe.shards.iter().flatten().filter(|shard| shard.node.is_none()).count();
    assert_eq!(missing, 1);
    assert_eq!(written.receipts.len(), 5);
    assert!(test.pool.node(test.nodes[2].id()).unwrap().state.is_down());
}

#[tokio::test]
async fn two_nodes_gone_is_no_quorum_and_worth_trying_again() {
    let test = TestNetwork::start(6).await;
    test.nodes[0].vanish().await;
    test.nodes[5].vanish().await;
    let writer = writer(&test);
    let error = writer.write(draft(Policy::LOCAL, &[9_000, 8_000, 7_000, 6_000])).await.unwrap_err();
    assert!(error.is_retryable());
    let WriteError::Quorum { needed, got, given_up, failures } = error else { panic!("{error}") };
    assert_eq!((needed, got + given_up, failures.len()), (5, 4, 2));
    assert!(failures.iter().all(|failure| failure.kind == FailureKind::Unreachable));
    // From now on it is known before any byte is sent, even for a stripe of one block.
    let puts: u64 = test.nodes.iter().map(|node| node.puts()).sum();
    let error = writer.write(draft(Policy::LOCAL, &[100])).await.unwrap_err();
    assert!(matches!(error, WriteError::Placement(_)) && error.is_retryable(), "{error}");
    assert_eq!(test.nodes.iter().map(|node| node.puts()).sum::<u64>(), puts);
}

#[tokio::test]
async fn a_node_that_refuses_is_replaced_by_a_spare() {
    let test = TestNetwork::start(8).await;
    for node in &test.nodes[..2] {
        node.behave(Behaviour::RefuseWrites(RefusalReason::DiskFull));
    }
    let writer = writer(&test);
    for round in 0..6 {
        let written = writer.write(draft(Policy::LOCAL, &[9_000 + round, 80, 70, 60])).await.unwrap();
        assert!(written.is_complete());
        assert_stored(&test, &writer, &written);
        let refusing = [test.nodes[0].id(), test.nodes[1].id()];
        assert!(written.claims().all(|claim| !refusing.contains(&claim.node)));
    }
    // Saying no is not being down.
    assert_eq!(test.pool.node(test.nodes[0].id()).unwrap().state, NodeState::Up);
}

#[tokio::test(start_paused = true)]
async fn a_stalled_node_is_waited_for_no_longer_than_the_grace() {
    let test = TestNetwork::start(6).await;
    test.nodes[4].behave(Behaviour::Stall);
    let begun = tokio::time::Instant::now();
    let written = writer(&test).write(draft(Policy::LOCAL, &[9_000, 80, 70, 60])).await.unwrap();
    assert!(begun.elapsed() <= WriteConfig::default().grace_max, "{:?}", begun.elapsed());
    assert_eq!(written.receipts.len(), 5);
    assert!(written.claims().all(|claim| claim.node != test.nodes[4].id()));
}

#[tokio::test(start_paused = true)]
async fn a_slow_node_still_counts_within_the_grace() {
    let test = TestNetwork::start(6).await;
    test.nodes[4].behave(Behaviour::Slow(Duration::from_millis(100)));
    let written = writer(&test).write(draft(Policy::LOCAL, &[9_000, 80, 70, 60])).await.unwrap();
    assert!(written.is_complete());
}

#[tokio::test(start_paused = true)]
async fn no_quorum_by_the_deadline_fails_and_names_the_late() {
    let test = TestNetwork::start(6).await;
    test.nodes[1].behave(Behaviour::Stall);
    test.nodes[4].behave(Behaviour::Stall);
    let begun = tokio::time::Instant::now();
    let error = writer(&test).write(draft(Policy::LOCAL, &[9_000, 80, 70, 60])).await.unwrap_err();
    assert_eq!(begun.elapsed().as_secs(), WriteConfig::default().deadline.as_secs());
    let WriteError::Quorum { failures, .. } = error else { panic!("{error}") };
    let mut late: Vec<NodeId> = failures.iter().map(|failure| failure.node).collect();
    let mut stalled = vec![test.nodes[1].id(), test.nodes[4].id()];
    late.sort_unstable();
    stalled.sort_unstable();
    assert_eq!(late, stalled);
    assert!(failures.iter().all(|failure| failure.kind == FailureKind::Late));
}

#[tokio::test]
async fn a_receipt_that_does_not_hold_is_a_lie_and_counts_for_nothing() {
    for lie in [Behaviour::ForgeReceipts, Behaviour::EmptyReceipts, Behaviour::Garbage] {
        let test = TestNetwork::start(6).await;
        test.nodes[3].behave(lie);
        let written = writer(&test).write(draft(Policy::LOCAL, &[9_000, 80, 70, 60])).await.unwrap();
        assert_eq!(written.receipts.len(), 5, "{lie:?}");
        assert!(written.claims().all(|claim| claim.node != test.nodes[3].id()), "{lie:?}");
        let culprits = test.pool.culprits();
        assert_eq!(culprits.len(), 1, "{lie:?}");
        assert_eq!(culprits[0].node, test.nodes[3].id());
    }
}

#[tokio::test]
async fn parity_of_mixed_scopes_is_under_a_scope_of_its_own() {
    let test = TestNetwork::start(6).await;
    let writer = writer(&test);
    let (ours, theirs) = (ScopeId([1; 16]), ScopeId([2; 16]));
    let scope_of_parity = async |scopes: [Option<ScopeId>; 2]| {
        let mut draft = draft(Policy::LOCAL, &[500, 600]);
        for (block, scope) in draft.blocks.iter_mut().zip(scopes) {
            block.scope = scope;
            block.retain_until_ms = if scope.is_some() { 77 } else { 0 };
        }
        let written = writer.write(draft).await.unwrap();
        let shard = written.stripe.shards[4].unwrap();
        let node = shard.node.unwrap();
        let claim = test.node(node).claim(shard.digest, writer.tags().tag(written.stripe.id, node)).unwrap();
        (claim.scope, claim.retain_until_ms)
    };
    assert_eq!(scope_of_parity([None, None]).await, (None, 0));
    assert_eq!(scope_of_parity([Some(ours), Some(ours)]).await, (Some(ours), 77));
    for mixed in [[Some(ours), Some(theirs)], [Some(ours), None]] {
        let (scope, retain_until_ms) = scope_of_parity(mixed).await;
        assert!(scope.is_some_and(|scope| scope != ours && scope != theirs));
        assert_eq!(retain_until_ms, 77);
    }
}

#[tokio::test]
async fn a_network_too_small_for_the_policy_is_told_so() {
    let test = TestNetwork::start(6).await;
    let error = writer(&test).write(draft(Policy::SMALL, &[500])).await.unwrap_err();
    assert!(!error.is_retryable());
    assert!(error.to_string().contains("policy `local` fits"), "{error}");
}

#[tokio::test]
async fn a_wide_stripe_keeps_to_operators() {
    let test = TestNetwork::start(16).await;
    let writer = writer(&test);
    let written = writer.write(draft(Policy::SMALL, &[500, 600, 700])).await.unwrap();
    assert!(written.is_complete());
    assert_eq!(written.receipts.len(), 7);
    assert_stored(&test, &writer, &written);
}
