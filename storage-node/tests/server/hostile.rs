//! Peers that break the rules get refusals or are cut; others do not notice, and memory stays bounded.

use std::time::Duration;

use bytes::Bytes;
use holdfast_protocol::framing::{ByteQueue, read_frame, write_frame};
use holdfast_protocol::message::{RefusalReason, Reply, Request, StatusQuery};
use holdfast_protocol::record::Rights;
use holdfast_protocol::rpc::Peer;
use holdfast_protocol::transport::Transport;
use holdfast_protocol::transport::quic::{QuicConfig, QuicTransport};
use holdfast_protocol::{BlockLen, Digest};
use holdfast_storage_node::node::limits::{BODY_IDLE_DEADLINE_MS, CONTROL_BURST, HANDSHAKE_DEADLINE_MS};

use crate::world::{MIB, World, bytes, key, refused, tag};

async fn send_raw(peer: &Peer, frame: Vec<u8>) -> Option<RefusalReason> {
    let mut stream = peer.connection().open().await.unwrap();
    stream.send.write(Bytes::from(frame)).await.unwrap();
    stream.send.finish().unwrap();
    match read_frame::<Reply>(stream.recv.as_mut(), &mut ByteQueue::new()).await {
        Ok(Some(Reply::Refused(refusal))) => Some(refusal.reason),
        Ok(None) | Err(_) => None,
        Ok(Some(reply)) => panic!("garbage was answered with {reply:?}"),
    }
}

#[tokio::test]
async fn garbage_and_huge_headers_are_refused() {
    let world = World::new().await;
    let (peer, _) = world.gateway().await;
    let framed = |body: &[u8]| {
        let mut frame = u32::try_from(body.len()).unwrap().to_le_bytes().to_vec();
        frame.extend_from_slice(body);
        frame
    };
    assert_eq!(send_raw(&peer, framed(&bytes(500, 1))).await, Some(RefusalReason::Malformed));
    assert_eq!(send_raw(&peer, framed(&[])).await, Some(RefusalReason::Malformed));
    assert_eq!(send_raw(&peer, u32::MAX.to_le_bytes().to_vec()).await, Some(RefusalReason::TooLarge));
    assert_eq!(send_raw(&peer, vec![200, 0, 0, 0, 1, 2, 3]).await, Some(RefusalReason::Malformed));
    assert_eq!(send_raw(&peer, vec![1, 0]).await, Some(RefusalReason::Malformed));
    for len in 1..200 {
        let reason = send_raw(&peer, framed(&bytes(len, 7))).await;
        assert!(reason.is_some(), "{len} bytes of garbage");
    }
    peer.status().await.unwrap();
}

#[tokio::test]
async fn control_requests_have_a_rate() {
    let world = World::new().await;
    let peer = world.stranger(50).await;
    let mut refusals = 0;
    for _ in 0..2 * CONTROL_BURST {
        if peer.status().await.is_err_and(|error| error.is_retryable()) {
            refusals += 1;
        }
    }
    assert!(refusals >= CONTROL_BURST, "{refusals}");
    // Another peer has a rate of its own, and this one earns its back.
    world.stranger(51).await.status().await.unwrap();
    world.clock.advance(1000);
    peer.status().await.unwrap();
}

#[tokio::test]
async fn a_peer_that_says_nothing_is_cut() {
    let world = World::new().await;
    let connection = world.dial(&key(50)).await;
    let (peer, _) = world.gateway().await;
    tokio::time::pause();
    tokio::time::advance(Duration::from_millis(HANDSHAKE_DEADLINE_MS - 1000)).await;
    assert!(!connection.is_closed());
    connection.closed().await;
    tokio::time::resume();
    peer.status().await.unwrap();
}

#[tokio::test]
async fn a_body_that_never_ends_is_cut_and_frees_its_memory() {
    // Room for two blocks in all, so that two stalled bodies hold everything.
    let world = World::with(|config| {
        config.limits.delegate_bytes = 2 * MIB;
        config.limits.peer_bytes = 2 * MIB;
    })
    .await;
    let (peer, agreement) = world.gateway().await;
    // Ask the store once, so that the puts below never wait for the disk.
    world.put(&peer, agreement, &bytes(10, 9), tag(9)).await.unwrap();
    let block = bytes(MIB, 1);
    let mut stalled = Vec::new();
    for _ in 0..2 {
        let mut stream = peer.connection().open().await.unwrap();
        let request = Request::PutBlock(world.announce(agreement, &block, tag(1)));
        let mut part = vec![block.slice(..1000)];
        write_frame(stream.send.as_mut(), &request, &mut part).await.unwrap();
        stalled.push(stream);
    }
    tokio::time::pause();
    tokio::time::advance(Duration::from_millis(BODY_IDLE_DEADLINE_MS / 2)).await;
    for mut stream in stalled {
        let reply = read_frame::<Reply>(stream.recv.as_mut(), &mut ByteQueue::new()).await.unwrap();
        let Some(Reply::Refused(refusal)) = reply else { panic!("{reply:?}") };
        assert_eq!((refusal.reason, refusal.message.contains("slowly")), (RefusalReason::Busy, true));
    }
    tokio::time::resume();
    world.put(&peer, agreement, &block, tag(1)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_take_nothing_do_not_starve_others() {
    let world = World::with(|config| config.limits.stranger_bytes = 2 * MIB).await;
    let address = world.serve_quic();
    let (peer, agreement) = world.gateway().await;
    let block = bytes(MIB, 1);
    let mut announced = world.announce(agreement, &block, tag(1));
    announced.scope = None;
    peer.put_block(announced, block.clone()).await.unwrap();
    let transport = QuicTransport::bind(QuicConfig::new("127.0.0.1:0".parse().unwrap(), key(50))).unwrap();
    let connection = transport.dial(world.node.id(), &[address]).await.unwrap();
    let (hostile, _) = Peer::hello(connection, world.hello(None)).await.unwrap();
    let mut unread = Vec::new();
    for _ in 0..100 {
        let mut stream = hostile.connection().open().await.unwrap();
        let request = Request::ReadBlock(holdfast_protocol::message::ReadBlock {
            digest: Digest::of(&block),
            part: holdfast_protocol::message::ReadPart::Whole,
            grant: None,
        });
        write_frame(stream.send.as_mut(), &request, &mut Vec::new()).await.unwrap();
        stream.send.finish().unwrap();
        unread.push(stream);
    }
    for _ in 0..20 {
        let read = peer.read_whole(Digest::of(&block), BlockLen::of(&block).unwrap(), None);
        let read = tokio::time::timeout(Duration::from_secs(5), read).await;
        assert_eq!(read.expect("the delegate is served").unwrap(), block);
    }
}

#[tokio::test]
async fn streams_opened_and_abandoned_do_not_hold_the_connection() {
    let world = World::new().await;
    let (peer, agreement) = world.gateway().await;
    for round in 0..600 {
        let mut stream = peer.connection().open().await.unwrap();
        match round % 3 {
            0 => drop(stream),
            1 => {
                stream.send.write(Bytes::from_static(&[40, 0, 0, 0, 1])).await.unwrap();
                drop(stream);
            }
            _ => {
                let request = Request::Status(StatusQuery {});
                write_frame(stream.send.as_mut(), &request, &mut Vec::new()).await.unwrap();
                stream.recv.stop();
            }
        }
    }
    world.keep(&peer, agreement, &bytes(10, 1), 1).await;
}

#[tokio::test]
async fn connections_beyond_the_bound_are_turned_away_and_delegates_keep_theirs() {
    let world = World::with(|config| config.limits.stranger_connections = 2).await;
    let (peer, agreement) = world.gateway().await;
    // The gateway moved to a delegate's place, so both of these fit.
    let _first = world.stranger(50).await;
    let _second = world.stranger(51).await;
    assert!(world.connect(&key(52), None).await.is_err());
    world.keep(&peer, agreement, &bytes(10, 1), 1).await;
}

#[tokio::test]
async fn a_wrong_digest_is_refused_for_every_length_class() {
    let world = World::new().await;
    let peer = world.delegate(&world.gateway, Rights::GATEWAY).await;
    let agreement = world.agree(&peer, 8 * MIB as u64).await.unwrap();
    for len in [1usize, 16_384, 16_385, 65_536, 65_537, MIB] {
        let mut announced = world.announce(agreement, &bytes(len, 1), tag(1));
        announced.digest = Digest::of(b"imitation");
        let result = peer.put_block(announced, bytes(len, 1)).await;
        assert_eq!(refused(result), RefusalReason::DigestMismatch);
    }
    // Refused puts gave their room back.
    world.put(&peer, agreement, &bytes(MIB, 2), tag(1)).await.unwrap();
}

#[tokio::test]
async fn half_headers_of_a_stranger_hold_few_streams_and_nobody_else() {
    let world = World::new().await;
    let (peer, agreement) = world.gateway().await;
    let stranger = world.stranger(50).await;
    let mut halves = Vec::new();
    for _ in 0..20 {
        let mut stream = stranger.connection().open().await.unwrap();
        stream.send.write(Bytes::from(vec![255, 255, 0, 0, 1, 2, 3])).await.unwrap();
        halves.push(stream);
    }
    // Its own next request waits behind them; everybody else's does not.
    let mut next = Box::pin(stranger.status());
    assert!(futures::poll!(&mut next).is_pending());
    world.keep(&peer, agreement, &bytes(10, 1), 1).await;
    world.stranger(51).await.status().await.unwrap();
    assert!(futures::poll!(&mut next).is_pending());
    // They are cut at the deadline, and then it is served.
    tokio::time::pause();
    next.await.unwrap();
}
