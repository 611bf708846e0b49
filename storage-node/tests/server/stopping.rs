//! Stopping, at any moment, loses nothing that was acknowledged.

use std::sync::Arc;

use bytes::Bytes;
use holdfast_protocol::message::Held;
use holdfast_protocol::record::{ClaimRef, Rights};
use holdfast_protocol::{BlockLen, Digest};

use crate::world::{World, bytes, has, tag};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_while_stopping_is_there_afterwards() {
    let mut world = World::new().await;
    let (peer, agreement) = world.gateway().await;
    let acknowledged: Arc<parking_lot::Mutex<Vec<Bytes>>> = Arc::default();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..8u64 {
        let (peer, acknowledged) = (peer.clone(), acknowledged.clone());
        let announce = world.announce(agreement, &bytes(1, 0), tag(1));
        writers.spawn(async move {
            for round in 0..1000 {
                let block = bytes(30_000, writer * 1000 + round);
                let mut request = announce.clone();
                request.digest = Digest::of(&block);
                request.len = BlockLen::of(&block).unwrap();
                match peer.put_block(request, block.clone()).await {
                    Ok(_) => acknowledged.lock().push(block),
                    Err(_) => return,
                }
            }
        });
    }
    while acknowledged.lock().len() < 50 {
        tokio::task::yield_now().await;
    }
    world.restart().await;
    while writers.join_next().await.is_some() {}
    let peer = world.delegate(&world.gateway, Rights::GATEWAY).await;
    let kept = acknowledged.lock().clone();
    for some in kept.chunks(100) {
        let claims: Vec<ClaimRef> = some.iter().map(|block| ClaimRef(Digest::of(block), tag(1))).collect();
        assert_eq!(has(&peer, agreement, &claims).await, vec![Held::Provisional; some.len()]);
    }
    for block in kept.iter().step_by(7) {
        let read = peer.read_whole(Digest::of(block), BlockLen::of(block).unwrap(), None).await.unwrap();
        assert_eq!(read, block);
    }
}

#[tokio::test]
async fn a_stopped_node_closes_its_connections_and_opens_again() {
    let mut world = World::new().await;
    let (peer, agreement) = world.gateway().await;
    let claim = world.keep(&peer, agreement, &bytes(10, 1), 1).await;
    world.restart().await;
    peer.connection().closed().await;
    let peer = world.delegate(&world.gateway, Rights::GATEWAY).await;
    assert_eq!(has(&peer, agreement, &[claim]).await, vec![Held::Live]);
}

#[tokio::test]
async fn one_transport_can_stop_while_another_goes_on() {
    let world = World::new().await;
    let (peer, agreement) = world.gateway().await;
    let other = world.network.join(world.node.id());
    let stop = tokio_util::sync::CancellationToken::new();
    let serving = world.node.serve(other, stop.clone());
    stop.cancel();
    serving.await.unwrap();
    assert!(!world.node.is_stopping());
    drop((peer, agreement));
}
