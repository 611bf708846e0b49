//! Reading from networks in which something is wrong.

use std::time::Duration;

use bytes::Bytes;
use holdfast_protocol::message::RefusalReason;
use holdfast_protocol::record::Shard;
use holdfast_protocol::{BlockLen, NodeId};
use tokio::time::Instant;

use super::run::node_at;
use super::*;
use crate::pool::Outcome;
use crate::testing::{Behaviour, FakeNode};

mod relayed;
mod world;

use world::{World, noise};

const MIB: usize = 1024 * 1024;

fn range(start: usize, len: usize) -> ByteRange {
    ByteRange { start: u32::try_from(start).unwrap(), len: u32::try_from(len).unwrap() }
}

/// One full stripe of 4+2, the node of its slot 1, and the block there.
async fn one_stripe() -> (World, Arc<FakeNode>, Bytes, BlockRef) {
    let mut world = World::start(6).await;
    let blocks: Vec<Bytes> = (0..4).map(|salt| noise(MIB - salt, salt)).collect();
    let stripe = world.put(4, 2, &blocks);
    let node = world.holder(&stripe, 1);
    (world, node, blocks[1].clone(), world::name(&blocks[1]))
}

#[tokio::test(start_paused = true)]
async fn a_healthy_read_is_one_request_to_one_node() {
    let (world, node, bytes, block) = one_stripe().await;
    let fetcher = world.fetcher();
    assert_eq!(fetcher.block(block).await.unwrap(), bytes);
    assert_eq!((world.reads(), node.reads()), (1, 1));
    let part = fetcher.range(block, range(100_001, 70_000)).await.unwrap();
    assert_eq!(part, bytes.slice(100_001..170_001));
    assert_eq!((world.reads(), node.reads()), (2, 2));
    let node_bytes = bytes.len() as u64 + 70_000;
    assert_eq!(fetcher.counts(), FetchCounts { direct: 2, node_bytes, ..FetchCounts::default() });
}

#[tokio::test(start_paused = true)]
async fn whatever_the_node_does_the_bytes_are_right_and_liars_are_named() {
    let lies = [
        Behaviour::FlipBit,
        Behaviour::Truncate,
        Behaviour::OtherBytes,
        Behaviour::OtherLeaf,
        Behaviour::WrongLength,
        Behaviour::Garbage,
    ];
    let refusals =
        [RefusalReason::NotFound, RefusalReason::Busy, RefusalReason::Forbidden, RefusalReason::Lost];
    let failures = refusals.map(Behaviour::RefuseReads);
    for behaviour in lies.iter().chain(&failures) {
        for part in [range(0, MIB - 1), range(MIB / 2 - 3, 40_000)] {
            // A whole block has no leaves to confuse.
            if *behaviour == Behaviour::OtherLeaf && part.start == 0 {
                continue;
            }
            let (world, node, bytes, block) = one_stripe().await;
            node.behave(*behaviour);
            let read = world.fetcher().range(block, part).await.unwrap();
            let expected = bytes.slice(part.start as usize..part.end() as usize);
            assert!(read == expected, "{behaviour:?} {part:?}: other bytes");
            let culprits = world.network.pool.culprits();
            let named: Vec<NodeId> = culprits.iter().map(|culprit| culprit.node).collect();
            if lies.contains(behaviour) {
                assert_eq!(named, [node.id()], "{behaviour:?} {part:?}");
                assert_eq!(culprits[0].digest, Some(block.digest), "{behaviour:?}");
            } else {
                assert_eq!(named, [], "{behaviour:?}: refusing is not lying");
            }
            // Garbage comes before the fake node counts its request.
            let asked = if *behaviour == Behaviour::Garbage { 4 } else { 1 + 4 };
            assert_eq!(world.reads(), asked, "{behaviour:?}: exactly k others are read");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn many_ranges_of_a_block_are_few_requests() {
    let (world, node, bytes, block) = one_stripe().await;
    let fetcher = world.fetcher();
    let parts: Vec<_> = [5, 300_000, 20_000, 5, 310_000, 900_000].map(|start| range(start, 1000)).into();
    let wanted: Vec<_> = parts.iter().map(|part| (block, *part)).collect();
    let found = fetcher.many(&wanted).await.unwrap();
    for (part, found) in parts.iter().zip(found) {
        assert!(found == bytes.slice(part.start as usize..part.end() as usize));
    }
    assert_eq!(node.reads(), 3);
    assert!(fetcher.many(&[(block, range(MIB, 1))]).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_stalled_node_costs_one_patience() {
    let (world, node, bytes, block) = one_stripe().await;
    node.behave(Behaviour::Stall);
    let fetcher = world.fetcher();
    let started = Instant::now();
    assert_eq!(fetcher.block(block).await.unwrap(), bytes);
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    assert_eq!(fetcher.counts().hedged, 1);
    assert_eq!(world.reads(), 4, "the stalled node has not taken its request, k others have");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_keeps_stalling_is_named_and_no_longer_waited_for() {
    let mut world = World::start(6).await;
    let blocks: Vec<Bytes> = (0..8).map(|salt| noise(50_000, salt)).collect();
    let stripes: Vec<_> = blocks.iter().map(|block| world.put(4, 2, std::slice::from_ref(block))).collect();
    let node = world.holder(&stripes[0], 0);
    node.behave(Behaviour::Stall);
    // Each stripe begins one node further: blocks 0 and 6 lie on the stalled node.
    let fetcher = world.fetcher_with(FetchConfig { rebuilt_bytes: 0, ..FetchConfig::default() });
    for index in [0, 6, 0] {
        assert_eq!(fetcher.block(world::name(&blocks[index])).await.unwrap(), blocks[index]);
    }
    let named: Vec<NodeId> = world.network.pool.culprits().iter().map(|culprit| culprit.node).collect();
    assert_eq!(named, [node.id()]);
    let started = Instant::now();
    assert_eq!(fetcher.block(world::name(&blocks[6])).await.unwrap(), blocks[6]);
    assert_eq!(started.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn two_stalled_nodes_cost_two_patiences_not_a_timeout() {
    let (world, node, bytes, block) = one_stripe().await;
    let fetcher = world.fetcher();
    for other in &world.network.nodes {
        fetcher.reader().pool().report(other.id(), Outcome::Ok { latency: Duration::ZERO, bytes: MIB });
    }
    node.behave(Behaviour::Stall);
    // Slot 0 is the first that a rebuild asks: equally quick, and a data shard.
    let row = world.table.row(&block.digest);
    world.holder(&row.stripe, 0).behave(Behaviour::Stall);
    let started = Instant::now();
    assert_eq!(fetcher.block(block).await.unwrap(), bytes);
    assert_eq!(started.elapsed().as_millis() / 1000, 2, "{:?}", started.elapsed());
}

/// Every node has answered eight times, each after so many milliseconds.
fn know_all(world: &World, ms: impl Fn(usize) -> u64) {
    for (at, node) in world.network.nodes.iter().enumerate() {
        for _ in 0..8 {
            let latency = Duration::from_millis(ms(at));
            world.network.pool.report(node.id(), Outcome::Ok { latency, bytes: MIB });
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_under_way_from_a_node_makes_its_next_read_late_later() {
    let (world, node, _, _) = one_stripe().await;
    let (pool, fetcher) = (&world.network.pool, world.fetcher());
    know_all(&world, |_| 100);
    let patience = || fetcher.inner.patience(node.id(), MIB).as_millis();
    assert_eq!(patience(), 200);
    // A line of 10 MiB/s.
    let mut read = pool.under_way(node.id(), MIB);
    tokio::time::advance(Duration::from_millis(100)).await;
    read.delivered(MIB);
    drop(read);
    assert_eq!(patience(), 200);
    let queued: Vec<_> = (0..3).map(|_| pool.under_way(node.id(), MIB)).collect();
    assert_eq!(patience(), 800, "four blocks take 400 ms there");
    drop(queued);
    assert_eq!(patience(), 200);
}

#[tokio::test(start_paused = true)]
async fn where_every_node_is_slow_none_is_late_before_the_others_would_be() {
    let (world, node, _, _) = one_stripe().await;
    let fetcher = world.fetcher();
    know_all(&world, |_| 1500);
    assert_eq!(fetcher.inner.patience(node.id(), MIB).as_millis(), 3000);
    let (world, node, _, _) = one_stripe().await;
    let fetcher = world.fetcher();
    let slow = world.network.nodes.iter().position(|other| other.id() == node.id());
    know_all(&world, |at| if Some(at) == slow { 1500 } else { 50 });
    assert_eq!(fetcher.inner.patience(node.id(), MIB).as_millis(), 1000, "the ceiling, among quick ones");
}

#[tokio::test(start_paused = true)]
async fn a_slow_line_is_not_taken_for_a_dead_node() {
    let (world, node, _, _) = one_stripe().await;
    let (pool, fetcher) = (&world.network.pool, world.fetcher());
    let timeout = || fetcher.reader().timeout_for(node.id(), MIB).as_secs();
    assert_eq!(timeout(), 10);
    // A line of 1 MiB/s, of which eight more blocks are asked.
    let mut read = pool.under_way(node.id(), MIB);
    tokio::time::advance(Duration::from_secs(1)).await;
    read.delivered(MIB);
    drop(read);
    let queued: Vec<_> = (0..8).map(|_| pool.under_way(node.id(), MIB)).collect();
    assert_eq!(timeout(), 36);
    let more: Vec<_> = (0..100).map(|_| pool.under_way(node.id(), MIB)).collect();
    assert_eq!(timeout(), 60, "and there is an end to it");
    drop((queued, more));
}

#[tokio::test(start_paused = true)]
async fn a_slow_node_may_still_win() {
    let (world, node, bytes, block) = one_stripe().await;
    for other in &world.network.nodes {
        other.behave(Behaviour::Slow(Duration::from_secs(5)));
    }
    node.behave(Behaviour::Slow(Duration::from_secs(3)));
    let fetcher = world.fetcher();
    assert_eq!(fetcher.block(block).await.unwrap(), bytes);
    assert_eq!((fetcher.counts().hedged, fetcher.counts().direct), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn known_latencies_shorten_the_patience_to_the_floor() {
    let (world, node, bytes, block) = one_stripe().await;
    let fetcher = world.fetcher();
    for _ in 0..10 {
        fetcher.block(block).await.unwrap();
    }
    node.behave(Behaviour::Stall);
    let started = Instant::now();
    assert_eq!(fetcher.block(block).await.unwrap(), bytes);
    assert!(started.elapsed() < Duration::from_millis(60), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn two_of_six_nodes_dead_and_every_byte_is_right() {
    let mut world = World::start(6).await;
    let lens = [MIB, 1, 16 * 1024, 300_000, 5, 70_001, MIB - 1, 16 * 1024 + 1, 999];
    let blocks: Vec<Bytes> = lens.iter().enumerate().map(|(salt, len)| noise(*len, salt)).collect();
    for stripe in blocks.chunks(4) {
        world.put(4, 2, stripe);
    }
    world.network.nodes[0].vanish().await;
    world.network.nodes[3].vanish().await;
    let fetcher = world.fetcher();
    for bytes in &blocks {
        let block = world::name(bytes);
        let (start, end) = (bytes.len() / 3, bytes.len().div_ceil(2).max(bytes.len() / 3 + 1));
        let part = fetcher.range(block, range(start, end - start)).await.unwrap();
        assert!(part == bytes.slice(start..end));
        assert!(fetcher.block(block).await.unwrap() == *bytes);
    }
}

#[tokio::test(start_paused = true)]
async fn fewer_than_k_shards_is_an_error_that_says_who_failed_how() {
    let (world, node, _, block) = one_stripe().await;
    let others: Vec<_> = world.network.nodes.iter().filter(|other| other.id() != node.id()).collect();
    node.vanish().await;
    others[0].behave(Behaviour::FlipBit);
    others[1].behave(Behaviour::RefuseReads(RefusalReason::Forbidden));
    let error = world.fetcher().block(block).await.unwrap_err();
    let FetchError::Unrecoverable { have, need, reasons, .. } = &error else { panic!("{error}") };
    assert_eq!((*have, *need), (3, 4));
    let who: Vec<NodeId> = reasons.0.iter().filter_map(|reason| reason.node).collect();
    for failed in [&node, others[0], others[1]] {
        assert!(who.contains(&failed.id()), "{error}");
    }
    assert!(error.is_retryable(), "the node that is offline may come back: {error}");
}

#[tokio::test(start_paused = true)]
async fn neighbouring_ranges_of_a_lost_block_share_one_rebuild() {
    let (world, node, bytes, block) = one_stripe().await;
    node.lose(&block.digest);
    let fetcher = world.fetcher();
    let parts = (0..16).map(|index| range(index * 65_536, 65_535)).map(|part| fetcher.range(block, part));
    for (index, part) in futures::future::join_all(parts).await.into_iter().enumerate() {
        assert!(part.unwrap() == bytes.slice(index * 65_536..index * 65_536 + 65_535));
    }
    fetcher.range(block, range(9, 9)).await.unwrap();
    assert_eq!((fetcher.counts().rebuilt, fetcher.counts().cached), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_row_that_mixes_two_codings_gives_an_error_not_bytes() {
    let mut world = World::start(6).await;
    let blocks: Vec<Bytes> = (0..4).map(|salt| noise(50_000, salt)).collect();
    let other: Vec<Bytes> = (10..14).map(|salt| noise(50_000, salt)).collect();
    let (stripe, foreign) = (world.put(4, 2, &blocks), world.put(4, 2, &other));
    let mut mixed = (*stripe).clone();
    mixed.shards[4] = foreign.shards[4];
    mixed.shards[5] = foreign.shards[5];
    world.table.enter(Arc::new(mixed));
    let block = world::name(&blocks[0]);
    world.holder(&stripe, 0).lose(&block.digest);
    let error = world.fetcher().block(block).await.unwrap_err();
    assert!(matches!(error, FetchError::Inconsistent { .. }), "{error}");
    assert_eq!(world.network.pool.culprits().len(), 0, "no node lied");
}

#[tokio::test(start_paused = true)]
async fn replicas_are_read_before_anything_is_decoded() {
    let mut world = World::start(3).await;
    let bytes = noise(100_000, 1);
    let stripe = world.put(1, 2, std::slice::from_ref(&bytes));
    world.holder(&stripe, 0).behave(Behaviour::FlipBit);
    let fetcher = world.fetcher();
    assert_eq!(fetcher.block(world::name(&bytes)).await.unwrap(), bytes);
    assert_eq!((fetcher.counts().direct, fetcher.counts().rebuilt), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_row_that_repair_has_changed_is_read_again() {
    let (mut world, node, bytes, block) = one_stripe().await;
    let newcomer = world.network.add_node().await;
    newcomer.place(bytes.clone());
    let old = world.table.row(&block.digest);
    for other in &world.network.nodes {
        if other.id() != newcomer.id() {
            other.vanish().await;
        }
    }
    let mut moved = (*old.stripe).clone();
    moved.version += 1;
    moved.shards[1] = moved.shards[1].map(|shard| Shard { node: Some(newcomer.id()), ..shard });
    world.table.enter_after_reads(Arc::new(moved), 1);
    assert_eq!(world.fetcher().block(block).await.unwrap(), bytes);
    assert_eq!(node.reads(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_there_is_said_so() {
    let (world, _, bytes, block) = one_stripe().await;
    let fetcher = world.fetcher();
    let unknown = world::name(&noise(10, 77));
    assert!(matches!(fetcher.block(unknown).await, Err(FetchError::NotPlaced { .. })));
    for bad in [range(bytes.len(), 1), range(0, bytes.len() + 1), range(5, 0)] {
        assert!(matches!(fetcher.range(block, bad).await, Err(FetchError::Range { .. })), "{bad:?}");
    }
    let longer = BlockRef { len: BlockLen::MAX, ..block };
    let error = fetcher.block(longer).await.unwrap_err();
    assert!(matches!(error, FetchError::Placement { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_in_order_and_stays_within_its_window() {
    let mut world = World::start(6).await;
    let blocks: Vec<Bytes> = (0..40).map(|salt| noise(100_000, salt)).collect();
    for stripe in blocks.chunks(4) {
        world.put(4, 2, stripe);
    }
    let config = FetchConfig { window_start_bytes: 200_000, window_bytes: 800_000, ..FetchConfig::default() };
    let fetcher = world.fetcher_with(config);
    let wanted: Vec<_> = blocks.iter().map(|bytes| (world::name(bytes), range(0, bytes.len()))).collect();
    let mut stream = fetcher.stream(wanted);
    let mut seen = Vec::new();
    for expected in &blocks {
        let bytes = stream.next().await.unwrap().unwrap();
        assert!(bytes == *expected);
        assert!(stream.bytes_in_flight() <= 800_000);
        seen.push(stream.bytes_in_flight());
    }
    assert!(seen[0] <= 200_000, "starts small: {seen:?}");
    assert!(*seen.iter().max().unwrap() >= 600_000, "grows: {seen:?}");
    assert!(stream.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_stream_survives_two_dead_nodes_and_ends_at_the_first_error() {
    let mut world = World::start(6).await;
    let blocks: Vec<Bytes> = (0..12).map(|salt| noise(60_000 + salt, salt)).collect();
    for stripe in blocks.chunks(4) {
        world.put(4, 2, stripe);
    }
    world.network.nodes[1].vanish().await;
    world.network.nodes[2].vanish().await;
    let fetcher = world.fetcher();
    let mut wanted: Vec<_> =
        blocks.iter().map(|bytes| (world::name(bytes), range(7, bytes.len() - 9))).collect();
    wanted.insert(8, (world::name(&noise(9, 99)), range(0, 9)));
    let results: Vec<_> = fetcher.stream(wanted).collect().await;
    assert_eq!(results.len(), 9, "eight blocks and one error");
    for (result, bytes) in results.iter().zip(&blocks).take(8) {
        assert!(*result.as_ref().unwrap() == bytes.slice(7..bytes.len() - 2));
    }
    assert!(matches!(results[8], Err(FetchError::NotPlaced { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_consumer_that_stops_taking_does_not_stop_others() {
    let mut world = World::start(6).await;
    let blocks: Vec<Bytes> = (0..16).map(|salt| noise(100_000, salt)).collect();
    for stripe in blocks.chunks(4) {
        world.put(4, 2, stripe);
    }
    let config = FetchConfig { ahead_bytes: 300_000, ..FetchConfig::default() };
    let fetcher = world.fetcher_with(config);
    let wanted =
        || -> Vec<_> { blocks.iter().map(|bytes| (world::name(bytes), range(0, bytes.len()))).collect() };
    let mut idle = fetcher.stream(wanted());
    idle.next().await.unwrap().unwrap();
    assert!(idle.bytes_in_flight() <= 400_000, "{}", idle.bytes_in_flight());
    let others = (0..3).map(|_| fetcher.stream(wanted()).collect::<Vec<_>>());
    for all in futures::future::join_all(others).await {
        assert_eq!(all.iter().filter(|result| result.is_ok()).count(), 16);
    }
}

#[tokio::test(start_paused = true)]
async fn dropping_a_stream_stops_its_reads() {
    let (world, node, bytes, block) = one_stripe().await;
    node.behave(Behaviour::Stall);
    let fetcher = world.fetcher();
    let mut stream = fetcher.stream(vec![(block, range(0, bytes.len())); 4]);
    let first = futures::poll!(stream.next());
    assert!(first.is_pending());
    tokio::task::yield_now().await;
    assert!(Arc::strong_count(&fetcher.inner) > 2, "reads are under way");
    drop(stream);
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert_eq!(Arc::strong_count(&fetcher.inner), 1);
}
