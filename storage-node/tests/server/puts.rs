//! PutBlock: exact bytes, durable, signed for, and never more than agreed.

use std::collections::HashSet;

use bytes::Bytes;
use futures::future::join_all;
use holdfast_protocol::framing::{ByteQueue, read_frame, write_frame};
use holdfast_protocol::message::{PutBlock, RefusalReason, Reply, Request};
use holdfast_protocol::record::AgreementId;
use holdfast_protocol::rpc::Peer;
use holdfast_protocol::{BlockLen, Digest};

use crate::world::{DAY_MS, HOUR_MS, MIB, World, bytes, refused, tag};

/// Sends a put whose body is not what it announces.
async fn put_raw(peer: &Peer, announced: PutBlock, body: Bytes) -> RefusalReason {
    let mut stream = peer.connection().open().await.unwrap();
    let request = Request::PutBlock(announced);
    write_frame(stream.send.as_mut(), &request, &mut vec![body]).await.unwrap();
    stream.send.finish().unwrap();
    match read_frame::<Reply>(stream.recv.as_mut(), &mut ByteQueue::new()).await.unwrap() {
        Some(Reply::Refused(refusal)) => refusal.reason,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[tokio::test]
async fn a_receipt_verifies_and_covers_the_block() {
    let world = World::new().await;
    let (peer, agreement) = world.gateway().await;
    for len in [1, 1023, 1024, 16_384, 16_385, 100_000, MIB] {
        let block = bytes(len, 1);
        let reply = world.put(&peer, agreement, &block, tag(1)).await.unwrap();
        assert!(!reply.existed);
        let receipt = reply.receipt.verify_by(world.node.id().key()).unwrap().into_record();
        assert!(receipt.covers(&Digest::of(&block), BlockLen::of(&block).unwrap()));
        assert_eq!((receipt.node, receipt.agreement), (world.node.id(), agreement));
        let asked_ms = world.announce(agreement, &block, tag(1)).lease_until_ms;
        assert!(receipt.lease_until_ms >= asked_ms && receipt.lease_until_ms < asked_ms + HOUR_MS);
        let again = world.put(&peer, agreement, &block, tag(2)).await.unwrap();
        assert!(again.existed);
    }
}

#[tokio::test]
async fn puts_of_one_sync_share_receipts() {
    let world = World::new().await;
    let (peer, agreement) = world.gateway().await;
    let blocks: Vec<Bytes> = (0..64).map(|seed| bytes(2_000, seed)).collect();
    let replies = join_all(blocks.iter().map(|block| world.put(&peer, agreement, block, tag(1)))).await;
    let mut receipts = HashSet::new();
    for (block, reply) in blocks.iter().zip(replies) {
        let receipt = reply.unwrap().receipt.verify_by(world.node.id().key()).unwrap();
        assert!(receipt.record().covers(&Digest::of(block), BlockLen::of(block).unwrap()));
        receipts.insert(receipt.id());
    }
    assert!(receipts.len() < blocks.len(), "{} receipts for {} puts", receipts.len(), blocks.len());
}

#[tokio::test]
async fn wrong_short_and_long_bodies_are_refused_and_leave_nothing() {
    let world = World::new().await;
    let (peer, agreement) = world.gateway().await;
    for len in [1usize, 5_000, 40_000, MIB - 1] {
        let block = bytes(len, 2);
        let announced = world.announce(agreement, &block, tag(1));
        let other = bytes(len, 3);
        assert_eq!(put_raw(&peer, announced.clone(), other).await, RefusalReason::DigestMismatch);
        let mut long = block.to_vec();
        long.push(0);
        assert_eq!(put_raw(&peer, announced.clone(), long.into()).await, RefusalReason::Malformed);
        let short = block.slice(..len - 1);
        assert_eq!(put_raw(&peer, announced, short).await, RefusalReason::Malformed);
    }
    assert_eq!(world.node.status().blocks, 0);
}

#[tokio::test]
async fn an_agreements_capacity_holds_for_puts_side_by_side() {
    let world = World::new().await;
    let peer = world.delegate(&world.gateway, holdfast_protocol::record::Rights::GATEWAY).await;
    let agreement = world.agree(&peer, 10 * (4096 + 102_400) + 8192).await.unwrap();
    let blocks: Vec<Bytes> = (0..20).map(|seed| bytes(100_000, seed)).collect();
    let results = join_all(blocks.iter().map(|block| world.put(&peer, agreement, block, tag(1)))).await;
    let (kept, full): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    assert_eq!(kept.len(), 10);
    assert!(full.into_iter().all(|result| refused(result) == RefusalReason::AgreementFull));
    // Charged are whole pages, with the header's.
    let small = bytes(4096, 99);
    assert!(world.put(&peer, agreement, &small, tag(1)).await.is_ok());
}

#[tokio::test]
async fn puts_need_a_running_agreement_and_a_lease_ahead() {
    let world = World::new().await;
    let (peer, agreement) = world.gateway().await;
    let block = bytes(10, 1);
    let unknown = AgreementId([9; 32]);
    assert_eq!(refused(world.put(&peer, unknown, &block, tag(1)).await), RefusalReason::NoAgreement);
    let mut late = world.announce(agreement, &block, tag(1));
    late.lease_until_ms = 1;
    assert_eq!(refused(peer.put_block(late, block.clone()).await), RefusalReason::Expired);
    world.clock.advance(91 * DAY_MS);
    let renewed = world.delegation(&world.gateway, holdfast_protocol::record::Rights::GATEWAY);
    let (peer, hello) = world.connect(&world.gateway, Some(&renewed)).await.unwrap();
    assert!(hello.agreement.is_none());
    assert_eq!(refused(world.put(&peer, agreement, &block, tag(1)).await), RefusalReason::NoAgreement);
}
