//! What every transport promises; each test runs for all of them.

use bytes::Bytes;
use holdfast_protocol::framing::ByteQueue;
use holdfast_protocol::limits::STREAMS_PER_CONNECTION_MAX;
use holdfast_protocol::transport::{BiStream, DialError, RecvHalf, SendHalf, TransportError};

use crate::world::{Kind, World, id, is_held_back, read_to_end, soon};

/// Runs one promise for every kind of transport.
macro_rules! promises {
    ($($name:ident),+ $(,)?) => {
        mod memory { $( #[tokio::test(flavor = "multi_thread")] async fn $name() {
            super::soon(super::$name(super::Kind::Memory)).await;
        } )+ }
        mod quic { $( #[tokio::test(flavor = "multi_thread")] async fn $name() {
            super::soon(super::$name(super::Kind::Quic)).await;
        } )+ }
        mod quic_shared { $( #[tokio::test(flavor = "multi_thread")] async fn $name() {
            super::soon(super::$name(super::Kind::QuicShared)).await;
        } )+ }
        mod first_of { $( #[tokio::test(flavor = "multi_thread")] async fn $name() {
            super::soon(super::$name(super::Kind::FirstOf)).await;
        } )+ }
    };
}

promises!(
    both_ends_know_each_other,
    bytes_arrive_in_order_in_both_directions,
    either_end_opens_streams,
    streams_do_not_wait_for_each_other,
    a_dropped_half_never_passes_for_the_whole,
    a_reset_reaches_the_reader,
    a_stop_reaches_the_writer,
    a_finished_half_writes_no_more,
    a_stopped_half_reads_no_more,
    a_closed_connection_fails_its_streams_at_both_ends,
    a_dropped_connection_ends,
    a_closed_transport_refuses_and_ends_its_connections,
    an_absent_peer_is_not_reached,
    a_slow_reader_holds_the_writer_back,
    the_stream_limit_holds_the_opener_back,
    a_hundred_mebibytes_arrive_whole,
    many_pieces_are_taken_at_once,
);

async fn both_ends_know_each_other(kind: Kind) {
    let world = World::new(kind);
    assert_eq!(world.alice.local_id(), id(1));
    let (alice, bob) = world.connect().await;
    assert_eq!(alice.peer(), id(2));
    assert_eq!(bob.peer(), id(1));
    assert!(!alice.is_closed() && !bob.is_closed());
    assert_eq!(alice.remote_addr().is_some(), bob.remote_addr().is_some());
}

async fn bytes_arrive_in_order_in_both_directions(kind: Kind) {
    let mut ends = World::new(kind).stream().await;
    let mut chunks = [Bytes::from_static(b"one "), Bytes::new(), Bytes::from_static(b"two ")];
    ends.opened.send.write_all(&mut chunks).await.unwrap();
    assert!(chunks.iter().all(Bytes::is_empty), "what was written is let go");
    ends.opened.send.write(Bytes::from_static(b"three")).await.unwrap();
    ends.opened.send.finish().unwrap();
    assert_eq!(read_to_end(ends.accepted.recv.as_mut()).await.unwrap(), b"one two three");
    ends.accepted.send.write(Bytes::from_static(b"answer")).await.unwrap();
    ends.accepted.send.finish().unwrap();
    assert_eq!(read_to_end(ends.opened.recv.as_mut()).await.unwrap(), b"answer");
    // The end stays the end.
    assert_eq!(ends.opened.recv.read(1).await.unwrap(), None);
}

async fn either_end_opens_streams(kind: Kind) {
    let world = World::new(kind);
    let (alice, bob) = world.connect().await;
    for (opener, acceptor) in [(&alice, &bob), (&bob, &alice)] {
        let mut opened = opener.open().await.unwrap();
        opened.send.write(Bytes::from_static(b"hi")).await.unwrap();
        opened.send.finish().unwrap();
        let mut accepted = acceptor.accept().await.unwrap();
        assert_eq!(read_to_end(accepted.recv.as_mut()).await.unwrap(), b"hi");
    }
}

async fn streams_do_not_wait_for_each_other(kind: Kind) {
    let world = World::new(kind);
    let (alice, bob) = world.connect().await;
    let mut first = alice.open().await.unwrap();
    first.send.write(Bytes::from_static(b"1")).await.unwrap();
    let mut second = alice.open().await.unwrap();
    second.send.write(Bytes::from_static(b"2")).await.unwrap();
    second.send.finish().unwrap();
    let mut one = bob.accept().await.unwrap();
    let mut two = bob.accept().await.unwrap();
    assert_eq!(read_to_end(two.recv.as_mut()).await.unwrap(), b"2");
    assert_eq!(one.recv.read(9).await.unwrap().unwrap(), "1");
    assert!(is_held_back(one.recv.read(9)).await);
    // A cancelled read lost nothing.
    first.send.write(Bytes::from_static(b"more")).await.unwrap();
    assert_eq!(one.recv.read(9).await.unwrap().unwrap(), "more");
}

async fn a_dropped_half_never_passes_for_the_whole(kind: Kind) {
    let mut ends = World::new(kind).stream().await;
    ends.opened.send.write(Bytes::from_static(b"half of it")).await.unwrap();
    drop(ends.opened.send);
    let read = read_to_end(ends.accepted.recv.as_mut()).await;
    assert!(matches!(read, Err(TransportError::Reset { .. })), "{read:?}");
}

async fn a_reset_reaches_the_reader(kind: Kind) {
    let mut ends = World::new(kind).stream().await;
    ends.opened.send.reset();
    let read = read_to_end(ends.accepted.recv.as_mut()).await;
    assert!(matches!(read, Err(TransportError::Reset { peer }) if peer == id(1)), "{read:?}");
    // The other direction lives on.
    ends.accepted.send.write(Bytes::from_static(b"still here")).await.unwrap();
    ends.accepted.send.finish().unwrap();
    assert_eq!(read_to_end(ends.opened.recv.as_mut()).await.unwrap(), b"still here");
}

async fn a_stop_reaches_the_writer(kind: Kind) {
    let mut ends = World::new(kind).stream().await;
    ends.accepted.recv.stop();
    let chunk = Bytes::from(vec![0u8; 65_536]);
    let error = loop {
        if let Err(error) = ends.opened.send.write(chunk.clone()).await {
            break error;
        }
    };
    assert!(matches!(error, TransportError::Reset { peer } if peer == id(2)), "{error}");
    assert!(error.is_retryable());
}

async fn a_finished_half_writes_no_more(kind: Kind) {
    let mut ends = World::new(kind).stream().await;
    ends.opened.send.finish().unwrap();
    let again = ends.opened.send.finish();
    assert!(matches!(again, Err(TransportError::Finished { .. })), "{again:?}");
    let write = ends.opened.send.write(Bytes::from_static(b"x")).await;
    assert!(matches!(write, Err(TransportError::Finished { .. })), "{write:?}");
}

async fn a_stopped_half_reads_no_more(kind: Kind) {
    let mut ends = World::new(kind).stream().await;
    ends.accepted.recv.stop();
    let read = ends.accepted.recv.read(1).await;
    assert!(matches!(read, Err(TransportError::Finished { .. })), "{read:?}");
}

async fn a_closed_connection_fails_its_streams_at_both_ends(kind: Kind) {
    let mut ends = World::new(kind).stream().await;
    ends.bob.close("enough");
    ends.alice.closed().await;
    ends.bob.closed().await;
    assert!(ends.alice.is_closed() && ends.bob.is_closed());
    let closed = |outcome: &TransportError| matches!(outcome, TransportError::Closed { .. });
    let read = ends.opened.recv.read(1).await.unwrap_err();
    assert!(closed(&read), "{read}");
    assert!(read.to_string().contains("enough"), "{read}");
    assert!(closed(&ends.opened.send.write(Bytes::from_static(b"x")).await.unwrap_err()));
    assert!(closed(&ends.accepted.recv.read(1).await.unwrap_err()));
    assert!(closed(&ends.alice.open().await.err().unwrap()));
    assert!(closed(&ends.alice.accept().await.err().unwrap()));
    assert!(closed(&ends.bob.accept().await.err().unwrap()));
}

async fn a_dropped_connection_ends(kind: Kind) {
    let ends = World::new(kind).stream().await;
    drop(ends.alice);
    // Its streams hold it open, as they do in QUIC.
    assert!(is_held_back(ends.bob.closed()).await);
    drop(ends.opened);
    ends.bob.closed().await;
}

async fn a_closed_transport_refuses_and_ends_its_connections(kind: Kind) {
    let world = World::new(kind);
    let (alice, _bob) = world.connect().await;
    world.bob.close().await;
    alice.closed().await;
    assert!(world.bob.accept().await.is_none());
    let dial = world.bob.dial(id(1), &[]).await;
    assert!(matches!(dial.err().unwrap(), DialError::Closing | DialError::NoAddress { .. }));
    world.bob.close().await;
}

async fn an_absent_peer_is_not_reached(kind: Kind) {
    let world = World::new(kind);
    let dial = world.alice.dial(id(9), &[]).await;
    let error = dial.err().unwrap();
    assert!(matches!(error, DialError::NoAddress { peer } if peer == id(9)), "{error}");
    assert!(!error.is_retryable());
}

/// The windows of both transports lie between these.
const WINDOW_MIN: usize = 1024 * 1024;
const WINDOW_MAX: usize = 64 * 1024 * 1024;

async fn a_slow_reader_holds_the_writer_back(kind: Kind) {
    let mut ends = World::new(kind).stream().await;
    let piece_len = 256 * 1024;
    let mut written = 0;
    loop {
        let write = ends.opened.send.write(Bytes::from(vec![1u8; piece_len]));
        if is_held_back(write).await {
            break;
        }
        written += piece_len;
        assert!(written <= WINDOW_MAX, "{written} bytes wait unread");
    }
    assert!(written >= WINDOW_MIN, "only {written} bytes are let through");
    // A cancelled write may have sent a part, which is why the half is dropped: the reader must see a reset.
    drop(ends.opened.send);
    assert!(read_to_end(ends.accepted.recv.as_mut()).await.is_err());
}

async fn the_stream_limit_holds_the_opener_back(kind: Kind) {
    let world = World::new(kind);
    let (alice, bob) = world.connect().await;
    let mut opened = Vec::new();
    let mut accepted = Vec::new();
    for _ in 0..STREAMS_PER_CONNECTION_MAX {
        let mut stream = alice.open().await.unwrap();
        stream.send.write(Bytes::from_static(b"!")).await.unwrap();
        opened.push(stream);
        accepted.push(bob.accept().await.unwrap());
    }
    assert!(is_held_back(alice.open()).await);
    // Some end at both ends: more may be opened. QUIC renews credit an eighth of the limit at a time.
    for _ in 0..STREAMS_PER_CONNECTION_MAX / 4 {
        let (mut ours, mut theirs) = (opened.remove(0), accepted.remove(0));
        ours.send.finish().unwrap();
        read_to_end(theirs.recv.as_mut()).await.unwrap();
        theirs.send.finish().unwrap();
        drop(theirs);
        read_to_end(ours.recv.as_mut()).await.unwrap();
    }
    alice.open().await.unwrap();
}

const BLOCK_LEN: usize = 1 << 20;

async fn send_blocks(mut send: Box<dyn SendHalf>, seed: u8, count: usize) {
    for at in 0..count {
        let byte = seed.wrapping_add(u8::try_from(at % 251).unwrap());
        send.write(Bytes::from(vec![byte; BLOCK_LEN])).await.unwrap();
    }
    send.finish().unwrap();
}

async fn check_blocks(mut recv: Box<dyn RecvHalf>, seed: u8, count: usize) {
    let mut buffered = ByteQueue::new();
    for at in 0..count {
        let byte = seed.wrapping_add(u8::try_from(at % 251).unwrap());
        let block = buffered.read_exact(recv.as_mut(), BLOCK_LEN).await.unwrap();
        assert!(block.iter().all(|found| *found == byte), "block {at} of {seed}");
    }
    assert!(buffered.next(recv.as_mut(), 1).await.unwrap().is_none());
}

async fn a_hundred_mebibytes_arrive_whole(kind: Kind) {
    let world = World::new(kind);
    let (alice, bob) = world.connect().await;
    let mut tasks = tokio::task::JoinSet::new();
    // Four streams up and down at once, 100 MiB altogether.
    for seed in 0..4u8 {
        let BiStream { mut send, recv } = alice.open().await.unwrap();
        send.write(Bytes::from(vec![seed])).await.unwrap();
        tasks.spawn(send_blocks(send, seed, 15));
        tasks.spawn(check_blocks(recv, seed + 100, 10));
        let mut theirs = bob.accept().await.unwrap();
        let seed = theirs.recv.read(1).await.unwrap().unwrap()[0];
        tasks.spawn(check_blocks(theirs.recv, seed, 15));
        tasks.spawn(send_blocks(theirs.send, seed + 100, 10));
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
}

async fn many_pieces_are_taken_at_once(kind: Kind) {
    let mut ends = World::new(kind).stream().await;
    for _ in 0..10 {
        ends.opened.send.write(Bytes::from(vec![3u8; 100])).await.unwrap();
    }
    ends.opened.send.finish().unwrap();
    let mut pieces = vec![Bytes::new(); 4];
    let mut total = 0;
    while let Some(count) = ends.accepted.recv.read_many(&mut pieces).await.unwrap() {
        assert!(count >= 1 && count <= pieces.len());
        total += pieces[..count].iter().map(Bytes::len).sum::<usize>();
    }
    assert_eq!(total, 1000);
}
