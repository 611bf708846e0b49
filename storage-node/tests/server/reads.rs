//! ReadBlock: whole blocks, ranges and chunks come back and prove themselves.

use holdfast_proofs::{verify_reply, verify_whole};
use holdfast_protocol::framing::{ByteQueue, read_frame, write_frame};
use holdfast_protocol::message::{ByteRange, LeafUnit, ReadBlock, ReadPart, RefusalReason, Reply, Request};
use holdfast_protocol::record::Rights;
use holdfast_protocol::rpc::Peer;
use holdfast_protocol::transport::Transport;
use holdfast_protocol::transport::quic::{QuicConfig, QuicTransport};
use holdfast_protocol::{BlockLen, Digest};

use crate::world::{MIB, World, bytes, key, refused, tag};

const LENS: [usize; 9] = [1, 1024, 1025, 16_384, 16_385, 100_000, 524_288, MIB - 1, MIB];

async fn reads_verify(world: &World, peer: &Peer, agreement: holdfast_protocol::record::AgreementId) {
    for len in LENS {
        let block = bytes(len, len as u64);
        world.put(peer, agreement, &block, tag(1)).await.unwrap();
        let (digest, block_len) = (Digest::of(&block), BlockLen::of(&block).unwrap());
        let whole = peer.read_whole(digest, block_len, None).await.unwrap();
        verify_whole(&digest, block_len, &whole).unwrap();
        assert_eq!(whole, block);
        let len = block_len.bytes();
        let middle = ByteRange { start: len / 2, len: (len / 2).clamp(1, 30_000) };
        let mut wishes =
            vec![vec![ByteRange { start: 0, len: 1 }], vec![ByteRange { start: len - 1, len: 1 }]];
        if middle.end() <= len {
            wishes.push(vec![middle]);
        }
        if len > 200_000 {
            wishes.push(vec![
                ByteRange { start: 5, len: 10 },
                ByteRange { start: 70_000, len: 20_000 },
                ByteRange { start: len - 3_000, len: 3_000 },
            ]);
        }
        for ranges in wishes {
            for unit in [LeafUnit::Group, LeafUnit::Chunk] {
                let (reply, body) =
                    peer.read_leaves(digest, block_len, unit, ranges.clone(), None).await.unwrap();
                let verified = verify_reply(&digest, block_len, unit, &ranges, &reply.paths, body).unwrap();
                for (index, range) in ranges.iter().enumerate() {
                    let expected = block.slice(range.start as usize..range.end() as usize);
                    assert_eq!(verified.range(index), expected, "{unit:?} {range:?} of {len}");
                }
            }
        }
    }
}

#[tokio::test]
async fn reads_verify_in_memory() {
    let world = World::new().await;
    let (peer, agreement) = world.gateway().await;
    reads_verify(&world, &peer, agreement).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_verify_over_quic() {
    let world = World::new().await;
    let address = world.serve_quic();
    let config = QuicConfig::new("127.0.0.1:0".parse().unwrap(), world.gateway.clone());
    let transport = QuicTransport::bind(config).unwrap();
    let connection = transport.dial(world.node.id(), &[address]).await.unwrap();
    let delegation = world.delegation(&world.gateway, Rights::GATEWAY);
    let (peer, _) = Peer::hello(connection, world.hello(Some(&delegation))).await.unwrap();
    let agreement = world.agree(&peer, 64 * MIB as u64).await.unwrap();
    reads_verify(&world, &peer, agreement).await;
}

#[tokio::test]
async fn ranges_outside_and_unknown_blocks_are_refused() {
    let world = World::new().await;
    let (peer, agreement) = world.gateway().await;
    let block = bytes(20_000, 1);
    world.put(&peer, agreement, &block, tag(1)).await.unwrap();
    let digest = Digest::of(&block);
    for unit in [LeafUnit::Group, LeafUnit::Chunk] {
        // The reader believes that the block is longer than it is.
        let ranges = vec![ByteRange { start: 19_999, len: 2 }];
        let result = peer.read_leaves(digest, BlockLen::MAX, unit, ranges, None).await;
        assert_eq!(refused(result), RefusalReason::Range);
    }
    let absent = Digest::of(b"absent");
    let result = peer.read_whole(absent, BlockLen::MAX, None).await;
    assert_eq!(refused(result), RefusalReason::NotFound);
}

#[tokio::test]
async fn malformed_ranges_are_refused_before_anything_is_read() {
    let world = World::new().await;
    let (peer, agreement) = world.gateway().await;
    let block = bytes(100_000, 1);
    world.put(&peer, agreement, &block, tag(1)).await.unwrap();
    let range = |start, len| ByteRange { start, len };
    for ranges in [
        vec![],
        vec![range(0, 0)],
        vec![range(20_000, 10), range(0, 10)],
        vec![range(0, 10), range(5, 10)],
        vec![range(u32::MAX, 1)],
    ] {
        // Past our own framing, which would refuse to send it: as another implementation might.
        let part = ReadPart::Leaves { unit: LeafUnit::Group, ranges };
        let request = Request::ReadBlock(ReadBlock { digest: Digest::of(&block), part, grant: None });
        let encoded = holdfast_protocol::cbor::encode(&request);
        let mut frame = u32::try_from(encoded.len()).unwrap().to_le_bytes().to_vec();
        frame.extend_from_slice(&encoded);
        let mut stream = peer.connection().open().await.unwrap();
        stream.send.write(frame.into()).await.unwrap();
        stream.send.finish().unwrap();
        let reply = read_frame::<Reply>(stream.recv.as_mut(), &mut ByteQueue::new()).await.unwrap();
        assert!(matches!(reply, Some(Reply::Refused(_))), "{reply:?}");
    }
}

#[tokio::test]
async fn a_request_may_come_in_single_bytes() {
    let world = World::new().await;
    let (peer, agreement) = world.gateway().await;
    let block = bytes(20_000, 1);
    world.put(&peer, agreement, &block, tag(1)).await.unwrap();
    let request =
        Request::ReadBlock(ReadBlock { digest: Digest::of(&block), part: ReadPart::Whole, grant: None });
    let frame = holdfast_protocol::framing::encode_frame(&request).unwrap();
    let mut stream = peer.connection().open().await.unwrap();
    for byte in 0..frame.len() {
        stream.send.write(frame.slice(byte..=byte)).await.unwrap();
    }
    stream.send.finish().unwrap();
    let mut queue = ByteQueue::new();
    let reply = read_frame::<Reply>(stream.recv.as_mut(), &mut queue).await.unwrap();
    assert!(matches!(reply, Some(Reply::ReadBlock(reply)) if reply.body_len == 20_000));
    assert_eq!(queue.read_exact(stream.recv.as_mut(), 20_000).await.unwrap(), block);
}

/// Reads that one reader runs at once: as many as readers ahead, random readers and a stream together cause.
const READS_AT_ONCE: u64 = 64;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_with_a_grant_is_sent_much_at_once_whatever_strangers_hold() {
    let world = World::with(|config| config.limits.stranger_bytes = MIB).await;
    let address = world.serve_quic_to_strangers();
    let (peer, agreement) = world.gateway().await;
    let blocks: Vec<_> = (0..8).map(|seed| bytes(MIB, seed)).collect();
    for block in &blocks {
        world.put(&peer, agreement, block, tag(1)).await.unwrap();
    }
    let mut public = world.announce(agreement, &bytes(MIB, 99), tag(1));
    public.scope = None;
    let public_digest = public.digest;
    peer.put_block(public, bytes(MIB, 99)).await.unwrap();

    // A stranger takes all memory that there is for strangers, and reads nothing of it.
    let dial = |byte: u8| async move {
        let config = QuicConfig::new("127.0.0.1:0".parse().unwrap(), key(byte));
        QuicTransport::bind(config).unwrap()
    };
    let hostile = dial(51).await;
    let connection = hostile.dial(world.node.id(), &[address]).await.unwrap();
    let (hostile_peer, _) = Peer::hello(connection, world.hello(None)).await.unwrap();
    let mut unread = hostile_peer.connection().open().await.unwrap();
    let part = ReadPart::Whole;
    let request = Request::ReadBlock(ReadBlock { digest: public_digest, part, grant: None });
    write_frame(unread.send.as_mut(), &request, &mut Vec::new()).await.unwrap();
    unread.send.finish().unwrap();
    // Its answer has begun, so the memory is taken.
    assert!(unread.recv.read(1).await.unwrap().is_some());

    let transport = dial(50).await;
    let connection = transport.dial(world.node.id(), &[address]).await.unwrap();
    let (reader, _) = Peer::hello(connection, world.hello(None)).await.unwrap();
    let grant = world.sign_grant(world.grant(&key(50)));
    let reads = (0..READS_AT_ONCE).map(|at| {
        let (reader, grant) = (reader.clone(), grant.clone());
        let block = blocks[usize::try_from(at).unwrap() % blocks.len()].clone();
        tokio::spawn(async move {
            let read = reader.read_whole(Digest::of(&block), BlockLen::MAX, grant).await.unwrap();
            assert!(read == block);
        })
    });
    let reads: Vec<_> = reads.collect();
    let all = async {
        for read in reads {
            read.await.unwrap();
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), all).await.expect("every read ends");
    drop(unread);
}
