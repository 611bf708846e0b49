//! The life of a claim, over the wire: provisional, live, trash and back, by the right people only.

use holdfast_protocol::message::{BlockOutcome, CommitBlocks, Held, RefusalReason, RestoreBlocks};
use holdfast_protocol::record::{ClaimRef, Rights};
use holdfast_protocol::{BlockLen, Digest};

use crate::world::{HOUR_MS, World, bytes, commit, has, key, refused, tag};

#[tokio::test]
async fn a_block_lives_dies_and_comes_back() {
    let mut world = World::new().await;
    let (peer, agreement) = world.gateway().await;
    let block = bytes(50_000, 1);
    world.put(&peer, agreement, &block, tag(1)).await.unwrap();
    let claim = ClaimRef(Digest::of(&block), tag(1));
    let absent = ClaimRef(Digest::of(&block), tag(2));
    assert_eq!(has(&peer, agreement, &[claim, absent]).await, vec![Held::Provisional, Held::Absent]);
    assert_eq!(commit(&peer, agreement, &[claim]).await.unwrap(), vec![BlockOutcome::Done]);
    assert_eq!(commit(&peer, agreement, &[claim]).await.unwrap(), vec![BlockOutcome::Already]);
    assert_eq!(has(&peer, agreement, &[claim]).await, vec![Held::Live]);

    let order = world.order(agreement, &[claim, absent], &world.gateway);
    assert_eq!(peer.delete_blocks(&order).await.unwrap(), vec![BlockOutcome::Done, BlockOutcome::Absent]);
    assert_eq!(has(&peer, agreement, &[claim]).await, vec![Held::Trash]);
    let kept = world.node.store().orders(agreement, 10).await.unwrap();
    assert_eq!(kept.len(), 1);
    assert_eq!(kept[0].bytes, holdfast_protocol::cbor::encode(&order.to_wire()));

    world.restart().await;
    let peer = world.delegate(&world.gateway, Rights::GATEWAY).await;
    assert_eq!(has(&peer, agreement, &[claim]).await, vec![Held::Trash]);
    let restore = RestoreBlocks { agreement, claims: vec![claim] };
    assert_eq!(peer.restore_blocks(restore).await.unwrap(), vec![BlockOutcome::Done]);
    assert_eq!(has(&peer, agreement, &[claim]).await, vec![Held::Live]);
    let len = BlockLen::of(&block).unwrap();
    assert_eq!(peer.read_whole(claim.0, len, None).await.unwrap(), block);
}

#[tokio::test]
async fn a_commit_makes_another_claim_on_a_held_block() {
    let world = World::new().await;
    let (peer, agreement) = world.gateway().await;
    let block = bytes(10, 1);
    world.keep(&peer, agreement, &block, 1).await;
    let second = ClaimRef(Digest::of(&block), tag(2));
    assert_eq!(commit(&peer, agreement, &[second]).await.unwrap(), vec![BlockOutcome::Done]);
    let unheld = ClaimRef(Digest::of(b"unheld"), tag(2));
    assert_eq!(commit(&peer, agreement, &[unheld]).await.unwrap(), vec![BlockOutcome::Absent]);
}

#[tokio::test]
async fn deletion_orders_need_the_right_signer() {
    let world = World::new().await;
    let (peer, agreement) = world.gateway().await;
    let claim = world.keep(&peer, agreement, &bytes(10, 1), 1).await;
    let forged = world.order(agreement, &[claim], &key(77));
    assert_eq!(refused(peer.delete_blocks(&forged).await), RefusalReason::Forbidden);
    let writer = world.delegate(&key(3), Rights { write: true, ..Rights::default() }).await;
    let unauthorised = world.order(agreement, &[claim], &key(3));
    assert_eq!(refused(writer.delete_blocks(&unauthorised).await), RefusalReason::Forbidden);
    let mut future = world.order(agreement, &[claim], &world.gateway).into_record();
    future.issued_ms += HOUR_MS;
    let future = holdfast_protocol::record::Signed::sign(future, &world.gateway);
    assert_eq!(refused(peer.delete_blocks(&future).await), RefusalReason::Expired);
    assert_eq!(has(&peer, agreement, &[claim]).await, vec![Held::Live]);
    let namespaces_own = world.order(agreement, &[claim], &world.namespace);
    assert_eq!(peer.delete_blocks(&namespaces_own).await.unwrap(), vec![BlockOutcome::Done]);
}

#[tokio::test]
async fn retained_blocks_outlive_their_deletion() {
    let world = World::new().await;
    let (peer, agreement) = world.gateway().await;
    let block = bytes(10, 1);
    world.put(&peer, agreement, &block, tag(1)).await.unwrap();
    let claim = ClaimRef(Digest::of(&block), tag(1));
    let retain_until_ms = world.announce(agreement, &block, tag(1)).lease_until_ms + HOUR_MS;
    let request = CommitBlocks { agreement, claims: vec![claim], retain_until_ms };
    peer.commit_blocks(request).await.unwrap();
    let order = world.order(agreement, &[claim], &world.gateway);
    assert_eq!(peer.delete_blocks(&order).await.unwrap(), vec![BlockOutcome::Retained]);
    world.clock.advance(3 * HOUR_MS);
    let order = world.order(agreement, &[claim], &world.gateway);
    assert_eq!(peer.delete_blocks(&order).await.unwrap(), vec![BlockOutcome::Done]);
}
