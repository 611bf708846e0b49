//! The previous release's own bytes: a whole conversation between a gateway and a node of release 0.1.0, recorded.
//!
//! The file is never edited. One test plays the old gateway's bytes to the node of this release and compares the
//! answers; the other lets the client of this release talk to the old node's recorded answers. Keys, clock and blocks
//! are fixed, so both sides are the same byte for byte.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use holdfast_protocol::framing::{ByteQueue, encode_frame};
use holdfast_protocol::message::*;
use holdfast_protocol::record::{AgreementId, ClaimRef, Rights, Signed};
use holdfast_protocol::rpc::{Peer, read_request};
use holdfast_protocol::transport::memory::MemoryNetwork;
use holdfast_protocol::transport::{Connection, Transport};
use holdfast_protocol::{BlockLen, Digest, NodeId};

use crate::world::{World, bytes, key, tag};

/// One exchange: a request with its body, a reply with its body, each as it goes over the wire.
struct Exchange {
    request: Vec<u8>,
    reply: Vec<u8>,
}

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/previous/conversation-0.1.0.hex")
}

/// A node whose key does not come from chance.
async fn world() -> World {
    World::with(|config| {
        std::fs::create_dir_all(&config.dir).unwrap();
        std::fs::write(config.dir.join("key"), format!("{}\n", hex::encode([3u8; 32]))).unwrap();
    })
    .await
}

fn block() -> Bytes {
    bytes(100_000, 42)
}

/// What the gateway says, in order.
fn requests(world: &World, agreement: AgreementId) -> Vec<(Request, Bytes)> {
    let delegation = world.delegation(&world.gateway, Rights::GATEWAY);
    let hello = Hello {
        newest: 1,
        oldest: 1,
        delegation: Some(delegation.to_wire()),
        node_record: None,
        now_ms: crate::world::BEGIN_MS,
        software: "holdfast-gateway/0.1.0".to_owned(),
    };
    let terms = Signed::sign(world.terms(64 << 20, 1), &world.namespace).to_wire();
    let claim = ClaimRef(Digest::of(&block()), tag(1));
    let unknown = ClaimRef(Digest::of(b"never put"), tag(1));
    let claims = vec![claim, unknown];
    let digest = claim.0;
    let ranges = vec![ByteRange { start: 20_000, len: 30_000 }];
    let chunk = vec![ByteRange { start: 99_000, len: 100 }];
    let nothing = Bytes::new();
    vec![
        (Request::Hello(hello), nothing.clone()),
        (Request::Agree(Agree { terms }), nothing.clone()),
        (Request::PutBlock(world.announce(agreement, &block(), tag(1))), block()),
        (
            Request::CommitBlocks(CommitBlocks { agreement, claims: claims.clone(), retain_until_ms: 0 }),
            nothing.clone(),
        ),
        (Request::HasBlocks(HasBlocks { agreement, claims }), nothing.clone()),
        (Request::ReadBlock(ReadBlock { digest, part: ReadPart::Whole, grant: None }), nothing.clone()),
        (
            Request::ReadBlock(ReadBlock {
                digest,
                part: ReadPart::Leaves { unit: LeafUnit::Group, ranges },
                grant: None,
            }),
            nothing.clone(),
        ),
        (
            Request::ReadBlock(ReadBlock {
                digest,
                part: ReadPart::Leaves { unit: LeafUnit::Chunk, ranges: chunk },
                grant: None,
            }),
            nothing.clone(),
        ),
        (
            Request::ReadBlock(ReadBlock { digest: unknown.0, part: ReadPart::Whole, grant: None }),
            nothing.clone(),
        ),
        (
            Request::DeleteBlocks(DeleteBlocks {
                order: world.order(agreement, &[claim], &world.gateway).to_wire(),
            }),
            nothing.clone(),
        ),
        (Request::RestoreBlocks(RestoreBlocks { agreement, claims: vec![claim] }), nothing.clone()),
        (Request::Status(StatusQuery {}), nothing),
    ]
}

async fn exchange(connection: &Arc<dyn Connection>, request: &[u8]) -> Vec<u8> {
    let mut stream = connection.open().await.unwrap();
    stream.send.write(Bytes::copy_from_slice(request)).await.unwrap();
    stream.send.finish().unwrap();
    let mut reply = Vec::new();
    while let Some(more) = stream.recv.read(1 << 20).await.unwrap() {
        reply.extend_from_slice(&more);
    }
    reply
}

fn committed() -> Vec<Exchange> {
    let text = std::fs::read_to_string(path()).unwrap();
    let mut lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let mut exchanges = Vec::new();
    while let (Some(request), Some(reply)) = (lines.next(), lines.next()) {
        exchanges
            .push(Exchange { request: hex::decode(request).unwrap(), reply: hex::decode(reply).unwrap() });
    }
    exchanges
}

/// Writes the fixture of a release once, when it does not exist and the switch says so.
#[tokio::test]
async fn the_conversation_is_recorded_once() {
    if path().exists() || std::env::var_os("HOLDFAST_GOLDEN_WRITE").is_none() {
        assert_eq!(committed().len(), 12, "the recorded conversation is complete");
        return;
    }
    let world = world().await;
    let connection = world.dial(&world.gateway).await;
    let terms = Signed::sign(world.terms(64 << 20, 1), &world.namespace);
    let mut text =
        String::from("# Requests and replies in turns, as they went over the wire. Never edited.\n");
    for (request, body) in requests(&world, AgreementId(terms.id())) {
        let mut bytes = encode_frame(&request).unwrap().to_vec();
        bytes.extend_from_slice(&body);
        let reply = exchange(&connection, &bytes).await;
        writeln!(text, "# {}\n{}\n{}", request.name(), hex::encode(&bytes), hex::encode(&reply)).unwrap();
    }
    std::fs::create_dir_all(path().parent().unwrap()).unwrap();
    std::fs::write(path(), text).unwrap();
}

#[tokio::test]
async fn an_old_gateway_gets_from_this_node_what_it_got_from_the_old_one() {
    let world = world().await;
    let connection = world.dial(&world.gateway).await;
    for (at, recorded) in committed().into_iter().enumerate() {
        let reply = exchange(&connection, &recorded.request).await;
        match (header(&reply), header(&recorded.reply)) {
            // Free bytes and counters are the disk's business; what an old gateway reads of them is their form.
            (Reply::Hello(now), Reply::Hello(then)) => {
                assert_eq!((now.version, now.agreement), (then.version, then.agreement));
                let record = now.node_record.unwrap().verify().unwrap().into_record();
                assert_eq!(record.node, then.node_record.unwrap().verify().unwrap().record().node);
            }
            (Reply::Status(now), Reply::Status(then)) => {
                assert_eq!((now.capacity_bytes, now.paid_bytes), (then.capacity_bytes, then.paid_bytes));
                assert_eq!((now.blocks, now.agreements), (then.blocks, then.agreements));
            }
            _ => {
                let (came, did) = (reply.len(), recorded.reply.len());
                assert!(reply == recorded.reply, "exchange {at}: {came} bytes came, {did} did then");
            }
        }
    }
}

fn header(reply: &[u8]) -> Reply {
    let len = u32::from_le_bytes(reply[..4].try_into().unwrap()) as usize;
    holdfast_protocol::cbor::decode(&reply[4..4 + len]).unwrap()
}

/// An old node: it answers with what was recorded, provided that it is asked what was asked then.
fn old_node(network: &MemoryNetwork, exchanges: Vec<Exchange>) -> NodeId {
    let id = NodeId(key(3).public());
    let transport = network.join(id);
    tokio::spawn(async move {
        let connection = transport.accept().await.unwrap();
        for recorded in exchanges {
            let mut stream = connection.accept().await.unwrap();
            let mut asked = Vec::new();
            while let Some(more) = stream.recv.read(1 << 20).await.unwrap() {
                asked.extend_from_slice(&more);
            }
            // Hello carries our own software's name; everything else must be the very bytes.
            let hello = asked.len() != recorded.request.len() || asked != recorded.request;
            if hello {
                let mut queue = ByteQueue::new();
                queue.push(Bytes::from(asked));
                let mut nothing = Ended;
                let request = read_request(&mut nothing, &mut queue).await.unwrap();
                assert!(matches!(request, Some(Request::Hello(_))), "another request than then: {request:?}");
            }
            stream.send.write(Bytes::from(recorded.reply)).await.unwrap();
            stream.send.finish().unwrap();
        }
        connection.closed().await;
    });
    id
}

/// A stream that has ended.
struct Ended;

#[async_trait::async_trait]
impl holdfast_protocol::transport::RecvHalf for Ended {
    async fn read(
        &mut self,
        _: usize,
    ) -> Result<Option<Bytes>, holdfast_protocol::transport::TransportError> {
        Ok(None)
    }
    async fn read_many(
        &mut self,
        _: &mut [Bytes],
    ) -> Result<Option<usize>, holdfast_protocol::transport::TransportError> {
        Ok(None)
    }
    fn stop(&mut self) {}
}

#[tokio::test]
async fn this_gateway_understands_an_old_node() {
    // Only for its keys and clock; the node in it is not asked.
    let world = world().await;
    let network = MemoryNetwork::new();
    let id = old_node(&network, committed());
    let transport = network.join(NodeId(world.gateway.public()));
    let connection = transport.dial(id, &[]).await.unwrap();
    let delegation = world.delegation(&world.gateway, Rights::GATEWAY);
    let (peer, hello) = Peer::hello(connection, world.hello(Some(&delegation))).await.unwrap();
    assert_eq!(hello.version, 1);
    let terms = Signed::sign(world.terms(64 << 20, 1), &world.namespace);
    let agreed = peer.agree(&terms).await.unwrap().verify().unwrap();
    let agreement = agreed.id();
    let block = block();
    let put = peer.put_block(world.announce(agreement, &block, tag(1)), block.clone()).await.unwrap();
    let receipt = put.receipt.verify_by(id.key()).unwrap();
    assert!(receipt.record().covers(&Digest::of(&block), BlockLen::of(&block).unwrap()));
    let claim = ClaimRef(Digest::of(&block), tag(1));
    let claims = vec![claim, ClaimRef(Digest::of(b"never put"), tag(1))];
    let committed = CommitBlocks { agreement, claims: claims.clone(), retain_until_ms: 0 };
    assert_eq!(peer.commit_blocks(committed).await.unwrap(), vec![BlockOutcome::Done, BlockOutcome::Absent]);
    let held = peer.has_blocks(HasBlocks { agreement, claims }).await.unwrap().held;
    assert_eq!(held, vec![Held::Live, Held::Absent]);
    let len = BlockLen::of(&block).unwrap();
    assert_eq!(peer.read_whole(claim.0, len, None).await.unwrap(), block);
    let ranges = vec![ByteRange { start: 20_000, len: 30_000 }];
    let (reply, body) = peer.read_leaves(claim.0, len, LeafUnit::Group, ranges.clone(), None).await.unwrap();
    let leaves =
        holdfast_proofs::verify_reply(&claim.0, len, LeafUnit::Group, &ranges, &reply.paths, body).unwrap();
    assert_eq!(leaves.range(0), block.slice(20_000..50_000));
    let chunk = vec![ByteRange { start: 99_000, len: 100 }];
    let (reply, body) = peer.read_leaves(claim.0, len, LeafUnit::Chunk, chunk.clone(), None).await.unwrap();
    holdfast_proofs::verify_reply(&claim.0, len, LeafUnit::Chunk, &chunk, &reply.paths, body).unwrap();
    let gone = peer.read_whole(Digest::of(b"never put"), len, None).await;
    assert_eq!(crate::world::refused(gone), RefusalReason::NotFound);
    let order = world.order(agreement, &[claim], &world.gateway);
    assert_eq!(peer.delete_blocks(&order).await.unwrap(), vec![BlockOutcome::Done]);
    let restore = RestoreBlocks { agreement, claims: vec![claim] };
    assert_eq!(peer.restore_blocks(restore).await.unwrap(), vec![BlockOutcome::Done]);
    let status = peer.status().await.unwrap();
    assert_eq!(status.blocks, 1);
}

#[tokio::test]
async fn a_peer_that_never_heard_of_drain_says_so_and_nothing_breaks() {
    // What a gateway of 0.1.0 does with a request that it does not know: it cannot be read.
    let frame =
        encode_frame(&Request::Drain(Drain { agreement: AgreementId([1; 32]), wish: DrainWish::Leave }))
            .unwrap();
    let name = b"Drain";
    let mut unknown = frame.to_vec();
    let at = unknown.windows(name.len()).position(|part| part == name).unwrap();
    unknown[at..at + name.len()].copy_from_slice(b"Drxin");
    let world = World::new().await;
    let (peer, _) = world.gateway().await;
    let reply = exchange(peer.connection(), &unknown).await;
    let (_, header) = reply.split_at(4);
    let reply: Reply = holdfast_protocol::cbor::decode(header).unwrap();
    assert!(matches!(reply, Reply::Refused(refusal) if refusal.reason == RefusalReason::Malformed));
    peer.status().await.unwrap();
}
