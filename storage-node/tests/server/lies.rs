//! A node told to misbehave deceives no reader that verifies, and stays honest in everything else.

use std::time::Duration;

use holdfast_proofs::{verify_reply, verify_whole};
use holdfast_protocol::message::{ByteRange, LeafUnit, RefusalReason};
use holdfast_protocol::rpc::CallError;
use holdfast_protocol::{BlockLen, Digest};
use holdfast_storage_node::Misbehaviour;

use crate::world::{World, bytes, refused, tag};

async fn lying(lie: Misbehaviour) -> World {
    World::with(|config| config.misbehave = Some(lie)).await
}

#[tokio::test]
async fn flipped_bits_and_other_blocks_do_not_verify() {
    for lie in [Misbehaviour::FlipBit, Misbehaviour::OtherBlock] {
        let world = lying(lie).await;
        let (peer, agreement) = world.gateway().await;
        let block = bytes(200_000, 1);
        world.keep(&peer, agreement, &block, 1).await;
        let (digest, len) = (Digest::of(&block), BlockLen::of(&block).unwrap());
        let whole = peer.read_whole(digest, len, None).await.unwrap();
        assert!(verify_whole(&digest, len, &whole).is_err(), "{lie:?}");
        let ranges = [ByteRange { start: 50_000, len: 40_000 }];
        for unit in [LeafUnit::Group, LeafUnit::Chunk] {
            let (reply, body) = peer.read_leaves(digest, len, unit, ranges.to_vec(), None).await.unwrap();
            assert!(verify_reply(&digest, len, unit, &ranges, &reply.paths, body).is_err(), "{lie:?}");
        }
    }
}

#[tokio::test]
async fn truncated_and_garbage_answers_are_errors() {
    for lie in [Misbehaviour::Truncate, Misbehaviour::Garbage] {
        let world = lying(lie).await;
        let (peer, agreement) = world.gateway().await;
        let block = bytes(200_000, 1);
        world.keep(&peer, agreement, &block, 1).await;
        let result = peer.read_whole(Digest::of(&block), BlockLen::of(&block).unwrap(), None).await;
        assert!(matches!(result, Err(CallError::Frame { .. })), "{lie:?}: {result:?}");
    }
}

#[tokio::test]
async fn a_stalling_node_stalls_reads_only() {
    let world = lying(Misbehaviour::Stall).await;
    let (peer, agreement) = world.gateway().await;
    let block = bytes(200_000, 1);
    world.keep(&peer, agreement, &block, 1).await;
    let read = peer.read_whole(Digest::of(&block), BlockLen::of(&block).unwrap(), None);
    assert!(tokio::time::timeout(Duration::from_millis(50), read).await.is_err());
    peer.status().await.unwrap();
    world.keep(&peer, agreement, &bytes(10, 2), 1).await;
    world.node.close().await.unwrap();
}

#[tokio::test]
async fn a_lying_node_still_checks_everything() {
    let world = lying(Misbehaviour::FlipBit).await;
    let (peer, agreement) = world.gateway().await;
    let block = bytes(5_000, 1);
    let mut announced = world.announce(agreement, &block, tag(1));
    announced.digest = Digest::of(b"another");
    assert_eq!(refused(peer.put_block(announced, block.clone()).await), RefusalReason::DigestMismatch);
    world.put(&peer, agreement, &block, tag(1)).await.unwrap();
    let stranger = world.stranger(50).await;
    let result = stranger.read_whole(Digest::of(&block), BlockLen::of(&block).unwrap(), None).await;
    assert_eq!(refused(result), RefusalReason::Forbidden);
}
