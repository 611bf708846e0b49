//! Requests and replies over both transports, with a server that can be told to misbehave.

use std::sync::Arc;

use bytes::Bytes;
use holdfast_protocol::framing::{ByteQueue, FrameError, encode_frame};
use holdfast_protocol::message::*;
use holdfast_protocol::record::*;
use holdfast_protocol::rpc::{self, CallError, HelloParams, Peer};
use holdfast_protocol::transport::{BiStream, Connection};
use holdfast_protocol::{BlockLen, Digest};

use crate::world::{Kind, World, id, key, soon};

/// What the server does with each stream.
type Answer = fn(BiStream, Request, ByteQueue) -> futures_like::Boxed;

/// A boxed future without another crate.
mod futures_like {
    use std::future::Future;
    use std::pin::Pin;

    pub(super) type Boxed = Pin<Box<dyn Future<Output = ()> + Send>>;

    pub(super) fn boxed(future: impl Future<Output = ()> + Send + 'static) -> Boxed {
        Box::pin(future)
    }
}
use futures_like::{Boxed, boxed};

/// Serves Hello honestly and everything else with `answer`. Keeps the world alive.
async fn served(kind: Kind, answer: Answer) -> (World, Peer) {
    let world = World::new(kind);
    let (alice, bob) = world.connect().await;
    tokio::spawn(serve(bob, answer));
    let (peer, reply) = Peer::hello(alice, hello()).await.unwrap();
    assert_eq!(peer.version(), MESSAGE_VERSION);
    assert_eq!(reply.software, "server");
    assert_eq!(peer.id(), id(2));
    (world, peer)
}

fn hello() -> HelloParams {
    HelloParams { delegation: None, node_record: None, software: "test".into(), now_ms: 5 }
}

async fn serve(connection: Arc<dyn Connection>, answer: Answer) {
    while let Ok(mut stream) = connection.accept().await {
        tokio::spawn(async move {
            let mut buffered = ByteQueue::new();
            match rpc::read_request(stream.recv.as_mut(), &mut buffered).await.unwrap() {
                Some(Request::Hello(hello)) => {
                    let reply = match rpc::answer_hello(&hello) {
                        Ok(version) => Reply::Hello(hello_reply(version)),
                        Err(refusal) => Reply::Refused(refusal),
                    };
                    rpc::write_reply(stream.send.as_mut(), &reply).await.unwrap();
                }
                Some(request) => answer(stream, request, buffered).await,
                None => {}
            }
        });
    }
}

fn hello_reply(version: u16) -> HelloReply {
    HelloReply { version, node_record: None, agreement: None, now_ms: 6, software: "server".into() }
}

fn reply_with(mut stream: BiStream, reply: Reply, body: Vec<Bytes>) -> Boxed {
    boxed(async move {
        // A client that has seen enough may be gone.
        let _ = rpc::write_reply_with_body(stream.send.as_mut(), &reply, body).await;
    })
}

fn put_block(bytes: &[u8]) -> PutBlock {
    PutBlock {
        agreement: AgreementId([1; 32]),
        digest: Digest::of(bytes),
        len: BlockLen::of(bytes).unwrap(),
        tag: ClaimTag([2; 16]),
        scope: None,
        lease_until_ms: 9,
        retain_until_ms: 0,
    }
}

fn receipt(digest: Digest, len: BlockLen) -> Unverified<Receipt> {
    let receipt = Receipt {
        v: 1,
        node: id(2),
        agreement: AgreementId([1; 32]),
        blocks: vec![ReceiptBlock(digest, len)],
        lease_until_ms: 9,
        issued_ms: 1,
        term_until_ms: 10,
    };
    Signed::sign(receipt, &key(2)).to_wire()
}

/// Takes the body of a put and answers with a receipt for what came, hashed.
fn honest_put(mut stream: BiStream, request: Request, mut buffered: ByteQueue) -> Boxed {
    let Request::PutBlock(put) = request else { panic!("{}", request.name()) };
    boxed(async move {
        let body = buffered.read_exact(stream.recv.as_mut(), put.len.as_usize()).await.unwrap();
        let reply = PutBlockReply { existed: false, receipt: receipt(Digest::of(&body), put.len) };
        rpc::write_reply(stream.send.as_mut(), &Reply::PutBlock(reply)).await.unwrap();
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_is_put_and_its_receipt_comes_back() {
    for kind in [Kind::Memory, Kind::Quic] {
        let (_world, peer) = soon(served(kind, honest_put)).await;
        for len in [1, 1000, 16_384, 1 << 20] {
            let bytes = Bytes::from(vec![0xabu8; len]);
            let request = put_block(&bytes);
            let reply = soon(peer.put_block(request.clone(), bytes)).await.unwrap();
            let receipt = reply.receipt.verify_by(id(2).key()).unwrap();
            assert!(receipt.record().covers(&request.digest, request.len));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_that_is_refused_before_its_body_is_told_why() {
    fn refuse(mut stream: BiStream, _: Request, _: ByteQueue) -> Boxed {
        stream.recv.stop();
        reply_with(stream, Reply::Refused(Refusal::new(RefusalReason::DiskFull, "full")), Vec::new())
    }
    for kind in [Kind::Memory, Kind::Quic] {
        let (_world, peer) = soon(served(kind, refuse)).await;
        for _ in 0..20 {
            let bytes = Bytes::from(vec![1u8; 1 << 20]);
            let error = soon(peer.put_block(put_block(&bytes), bytes)).await.unwrap_err();
            assert!(
                matches!(&error, CallError::Refused(no) if no.reason == RefusalReason::DiskFull),
                "{error}"
            );
            assert!(error.is_retryable() && !error.is_peer_fault());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn our_own_mistake_is_noticed_before_a_byte_is_sent() {
    let (_world, peer) = soon(served(Kind::Memory, honest_put)).await;
    let error = soon(peer.put_block(put_block(b"four"), Bytes::from_static(b"five!"))).await.unwrap_err();
    assert!(matches!(error, CallError::Frame { source: FrameError::Unsendable { .. }, .. }), "{error}");
    assert!(!error.is_peer_fault());
    let past = vec![ByteRange { start: 0, len: 20_000 }];
    let len = BlockLen::new(10_000).unwrap();
    let error = soon(peer.read_leaves(Digest([1; 32]), len, LeafUnit::Group, past, None)).await.unwrap_err();
    assert!(matches!(error, CallError::Frame { source: FrameError::Unsendable { .. }, .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_block_is_one_contiguous_buffer_and_in_memory_the_senders_own() {
    fn whole(stream: BiStream, _: Request, _: ByteQueue) -> Boxed {
        static BLOCK: [u8; 1 << 20] = [5; 1 << 20];
        let reply = ReadBlockReply { body_len: 1 << 20, paths: Vec::new() };
        reply_with(stream, Reply::ReadBlock(reply), vec![Bytes::from_static(&BLOCK)])
    }
    let mut addresses = Vec::new();
    for kind in [Kind::Memory, Kind::Memory, Kind::Quic] {
        let (_world, peer) = soon(served(kind, whole)).await;
        let block = soon(peer.read_whole(Digest([1; 32]), BlockLen::MAX, None)).await.unwrap();
        assert!(block.len() == 1 << 20 && block.iter().all(|byte| *byte == 5));
        addresses.push(block.as_ptr() as usize);
    }
    assert_eq!(addresses[0], addresses[1], "the memory transport copies nothing");
}

fn leaf(index: u32) -> LeafPath {
    LeafPath { index, siblings: vec![0u8; 64].into() }
}

#[tokio::test(flavor = "multi_thread")]
async fn leaves_come_with_the_count_and_length_that_was_asked_for() {
    fn leaves(stream: BiStream, request: Request, _: ByteQueue) -> Boxed {
        let Request::ReadBlock(ReadBlock { part: ReadPart::Leaves { ranges, .. }, .. }) = request else {
            panic!("not leaves")
        };
        assert_eq!(ranges.len(), 2);
        // Groups 0 and 2; the block ends within the third group.
        let body = vec![Bytes::from(vec![0u8; 16_384]), Bytes::from(vec![2u8; 7_232])];
        let reply = ReadBlockReply { body_len: 23_616, paths: vec![leaf(0), leaf(2)] };
        reply_with(stream, Reply::ReadBlock(reply), body)
    }
    let (_world, peer) = soon(served(Kind::Quic, leaves)).await;
    let ranges = vec![ByteRange { start: 5, len: 1 }, ByteRange { start: 39_999, len: 1 }];
    let len = BlockLen::new(40_000).unwrap();
    let (reply, body) =
        soon(peer.read_leaves(Digest([1; 32]), len, LeafUnit::Group, ranges, None)).await.unwrap();
    assert_eq!(reply.paths.len(), 2);
    assert_eq!(body.len(), 23_616);
}

async fn read_from(answer: Answer) -> CallError {
    let (_world, peer) = soon(served(Kind::Memory, answer)).await;
    soon(peer.read_whole(Digest([1; 32]), BlockLen::new(1000).unwrap(), None)).await.unwrap_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_of_another_size_are_refused_before_their_bytes() {
    fn long(stream: BiStream, _: Request, _: ByteQueue) -> Boxed {
        let reply = ReadBlockReply { body_len: 1 << 20, paths: Vec::new() };
        reply_with(stream, Reply::ReadBlock(reply), Vec::new())
    }
    fn paths(stream: BiStream, _: Request, _: ByteQueue) -> Boxed {
        let reply = ReadBlockReply { body_len: 1000, paths: vec![leaf(0)] };
        reply_with(stream, Reply::ReadBlock(reply), vec![Bytes::from(vec![0; 1000])])
    }
    let error = read_from(long).await;
    assert!(matches!(error, CallError::Short { found: 1_048_576, expected: 1000, .. }), "{error}");
    assert!(error.is_peer_fault() && !error.is_retryable());
    let error = read_from(paths).await;
    assert!(matches!(error, CallError::Short { found: 1, expected: 0, .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_cut_short_is_not_a_block() {
    fn short(stream: BiStream, _: Request, _: ByteQueue) -> Boxed {
        let reply = ReadBlockReply { body_len: 1000, paths: Vec::new() };
        reply_with(stream, Reply::ReadBlock(reply), vec![Bytes::from(vec![0; 999])])
    }
    let error = read_from(short).await;
    let missing_one = matches!(error, CallError::Frame { source: FrameError::Truncated { missing: 1 }, .. });
    assert!(missing_one, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_speaks_garbage_is_at_fault() {
    fn garbage(mut stream: BiStream, _: Request, _: ByteQueue) -> Boxed {
        boxed(async move {
            stream.send.write(Bytes::from_static(b"HTTP/1.1 200 OK\r\n\r\n")).await.unwrap();
            let _ = stream.send.finish();
        })
    }
    fn mute(_: BiStream, _: Request, _: ByteQueue) -> Boxed {
        boxed(async {})
    }
    fn other_question(stream: BiStream, _: Request, _: ByteQueue) -> Boxed {
        reply_with(stream, Reply::PutHead(HeadSeq { seq: 1 }), Vec::new())
    }
    let error = read_from(garbage).await;
    assert!(matches!(error, CallError::Frame { source: FrameError::TooLong { .. }, .. }), "{error}");
    assert!(error.is_peer_fault());
    let error = read_from(mute).await;
    assert!(matches!(error, CallError::Transport { .. }) && error.is_retryable(), "{error}");
    let error = read_from(other_question).await;
    assert!(matches!(error, CallError::Unexpected { reply: "PutHead", .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn outcomes_are_counted() {
    fn two(stream: BiStream, _: Request, _: ByteQueue) -> Boxed {
        let outcomes = vec![BlockOutcome::Done, BlockOutcome::Absent];
        reply_with(stream, Reply::Outcomes(Outcomes { outcomes }), Vec::new())
    }
    let (_world, peer) = soon(served(Kind::Quic, two)).await;
    let request = |count: u8| CommitBlocks {
        agreement: AgreementId([1; 32]),
        claims: (0..count).map(|n| ClaimRef(Digest([n; 32]), ClaimTag([n; 16]))).collect(),
        retain_until_ms: 0,
    };
    let outcomes = soon(peer.commit_blocks(request(2))).await.unwrap();
    assert_eq!(outcomes, [BlockOutcome::Done, BlockOutcome::Absent]);
    let error = soon(peer.commit_blocks(request(3))).await.unwrap_err();
    assert!(matches!(error, CallError::Short { found: 2, expected: 3, .. }), "{error}");
    let request = |_| RestoreBlocks { agreement: AgreementId([1; 32]), claims: Vec::new() };
    assert!(soon(peer.restore_blocks(request(()))).await.is_err());
    let order = DeletionOrder { v: 1, agreement: AgreementId([1; 32]), claims: Vec::new(), issued_ms: 1 };
    assert!(soon(peer.delete_blocks(&Signed::sign(order, &key(1)))).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_was_not_offered_is_refused() {
    let world = World::new(Kind::Memory);
    let (alice, bob) = world.connect().await;
    tokio::spawn(async move {
        let mut stream = bob.accept().await.unwrap();
        rpc::read_request(stream.recv.as_mut(), &mut ByteQueue::new()).await.unwrap();
        let reply = Reply::Hello(hello_reply(MESSAGE_VERSION + 1));
        rpc::write_reply(stream.send.as_mut(), &reply).await.unwrap();
        bob.closed().await;
    });
    let error = soon(Peer::hello(alice, hello())).await.unwrap_err();
    assert!(matches!(error, CallError::Version { version } if version == MESSAGE_VERSION + 1), "{error}");
    assert!(error.is_peer_fault());
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_flow_against_the_direction_of_the_dial() {
    let world = World::new(Kind::Quic);
    let (alice, bob) = world.connect().await;
    fn status(stream: BiStream, _: Request, _: ByteQueue) -> Boxed {
        reply_with(stream, Reply::Status(NodeStatus { blocks: 3, ..NodeStatus::default() }), Vec::new())
    }
    tokio::spawn(serve(alice, status));
    let peer = Peer::answered(bob, MESSAGE_VERSION);
    assert_eq!(soon(peer.status()).await.unwrap().blocks, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_request_has_a_refusal() {
    let refusal = |bytes: &'static [u8]| async move {
        let world = World::new(Kind::Memory);
        let (alice, bob) = world.connect().await;
        let mut ours = alice.open().await.unwrap();
        ours.send.write(Bytes::from_static(bytes)).await.unwrap();
        ours.send.finish().unwrap();
        let mut theirs = bob.accept().await.unwrap();
        let error = rpc::read_request(theirs.recv.as_mut(), &mut ByteQueue::new()).await.unwrap_err();
        rpc::refusal_of(&error).unwrap().reason
    };
    assert_eq!(soon(refusal(b"\xff\xff\xff\xff")).await, RefusalReason::TooLarge);
    assert_eq!(soon(refusal(b"\x01\0\0\0\xf6")).await, RefusalReason::Malformed);
    assert_eq!(soon(refusal(b"\x05\0\0\0\xf6")).await, RefusalReason::Malformed);
    assert!(encode_frame(&Request::Status(StatusQuery {})).is_ok());
}
