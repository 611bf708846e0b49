//! Challenges against honest and other nodes.

use std::time::Duration;

use bytes::Bytes;
use holdfast_protocol::BlockLen;
use holdfast_protocol::message::RefusalReason;

use super::*;
use crate::testing::{Behaviour, TestNetwork};

fn bytes(len: usize, salt: u8) -> Bytes {
    (0..len).map(|index| u8::try_from((index * 31 + usize::from(salt)) % 251).unwrap()).collect()
}

fn target(node: NodeId, bytes: &Bytes) -> Target {
    let block = BlockRef { digest: Digest::of(bytes), len: BlockLen::of(bytes).unwrap() };
    Target { node, block, grant: None }
}

fn options(chunks: usize) -> ChallengeOptions {
    ChallengeOptions { chunks_per_node: chunks, seed: Some([3; 32]), ..ChallengeOptions::default() }
}

#[test]
fn chunks_are_drawn_over_bytes_not_blocks() {
    let node = NodeId(holdfast_protocol::PublicKey([1; 32]));
    let (long, short) = (target(node, &bytes(900 * 1024, 1)), target(node, &bytes(100 * 1024, 2)));
    let draws = draw(&[7; 32], node, &[&short, &long], 10_000);
    let of_short = draws.iter().filter(|draw| draw.target.block == short.block).count();
    assert!((900..1100).contains(&of_short), "{of_short} of 10,000 draws fell on a tenth of the bytes");
    assert!(draws.iter().all(|draw| draw.chunk * CHUNK_LEN < draw.target.block.len.bytes()));
    let chunks: std::collections::HashSet<u32> =
        draws.iter().filter(|draw| draw.target.block == short.block).map(|draw| draw.chunk).collect();
    assert_eq!(chunks.len(), 100, "every chunk of the short block is drawn");
}

#[test]
fn the_same_seed_draws_the_same_chunks() {
    let node = NodeId(holdfast_protocol::PublicKey([1; 32]));
    let target = target(node, &bytes(500_000, 1));
    let chunks = |seed: u8| -> Vec<u32> {
        draw(&[seed; 32], node, &[&target], 50).iter().map(|draw| draw.chunk).collect()
    };
    assert_eq!(chunks(1), chunks(1));
    assert_ne!(chunks(1), chunks(2));
}

#[test]
fn every_challenge_binds_the_length_by_the_last_chunk() {
    let block = |len| BlockRef { digest: Digest([0; 32]), len: BlockLen::new(len).unwrap() };
    let range = |start, len| ByteRange { start, len };
    assert_eq!(ranges_of(block(1), 0), [range(0, 1)]);
    assert_eq!(ranges_of(block(1025), 0), [range(0, 1024), range(1024, 1)]);
    assert_eq!(ranges_of(block(1025), 1), [range(1024, 1)]);
    assert_eq!(ranges_of(block(4096), 1), [range(1024, 1024), range(3072, 1024)]);
}

#[tokio::test(start_paused = true)]
async fn every_kind_of_node_gets_its_own_verdict() {
    let network = TestNetwork::start(7).await;
    let data = bytes(200_000, 9);
    let mut targets = Vec::new();
    for node in &network.nodes {
        node.place(data.clone());
        targets.push(target(node.id(), &data));
    }
    network.nodes[1].behave(Behaviour::FlipBit);
    network.nodes[2].lose(&Digest::of(&data));
    network.nodes[3].behave(Behaviour::RefuseReads(RefusalReason::Forbidden));
    network.nodes[4].behave(Behaviour::Stall);
    network.nodes[5].vanish().await;
    network.nodes[6].behave(Behaviour::OtherLeaf);
    let challenger = Challenger::new(Arc::clone(&network.pool), options(5));
    let heard = parking_lot::Mutex::new(0);
    let report = challenger.run(&targets, |_| *heard.lock() += 1).await.unwrap();
    assert_eq!(*heard.lock(), 35);
    let of =
        |index: usize| report.nodes.iter().find(|report| report.node == network.nodes[index].id()).unwrap();
    assert_eq!((of(0).passed, of(0).failed, of(0).unreachable), (5, 0, 0));
    assert!(of(0).bytes >= 5 * 1024);
    let verdict = |index: usize| of(index).misses.iter().map(|miss| miss.verdict.clone()).next().unwrap();
    assert!(matches!(verdict(1), Verdict::WrongProof { .. }));
    assert_eq!(verdict(2), Verdict::Absent);
    assert!(matches!(verdict(3), Verdict::Refused { .. }));
    assert_eq!(verdict(4), Verdict::Timeout);
    assert!(matches!(verdict(5), Verdict::Offline { .. }));
    assert!(matches!(verdict(6), Verdict::WrongProof { .. }));
    assert_eq!((of(4).unreachable, of(5).unreachable), (5, 5));
    assert_eq!((of(1).failed, of(2).failed, of(3).failed, of(6).failed), (5, 5, 5, 5));
    assert!(!report.all_passed());
    let named: Vec<NodeId> = network.pool.culprits().iter().map(|culprit| culprit.node).collect();
    assert!(named.contains(&network.nodes[1].id()) && named.contains(&network.nodes[6].id()));
    assert!(!named.contains(&network.nodes[0].id()));
}

#[tokio::test(start_paused = true)]
async fn a_block_of_another_length_does_not_pass() {
    let network = TestNetwork::start(1).await;
    let (long, short) = (bytes(3000, 1), bytes(2000, 1));
    network.nodes[0].place(short.clone());
    // The record says 3,000 bytes; the node kept the first 2,000 under a name of its own.
    let mut wrong = target(network.nodes[0].id(), &long);
    wrong.block.digest = Digest::of(&short);
    let challenger = Challenger::new(Arc::clone(&network.pool), options(4));
    let report = challenger.run(&[wrong], |_| ()).await.unwrap();
    assert_eq!(report.nodes[0].passed, 0);
}

#[tokio::test]
async fn more_chunks_than_a_run_may_ask_are_refused() {
    let network = TestNetwork::start(1).await;
    let options = ChallengeOptions { timeout: Duration::from_secs(1), ..options(CHUNKS_PER_NODE_MAX + 1) };
    let challenger = Challenger::new(Arc::clone(&network.pool), options);
    assert!(matches!(challenger.run(&[], |_| ()).await, Err(ChallengeError::TooMany { .. })));
}
