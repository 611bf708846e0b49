//! Whole objects: their blocks in order, their stripes, and what repeats.

use super::*;
use crate::tag::TagKey;
use crate::testing::TestNetwork;
use crate::write::{CpuPool, StripeWriter, WriteConfig};

fn groups(test: &TestNetwork) -> CommitGroups {
    let pool = Arc::clone(&test.pool);
    CommitGroups::new(StripeWriter::new(
        pool,
        TagKey::new([9; 32]),
        CpuPool::new(2),
        1,
        WriteConfig::default(),
    ))
}

fn noise(seed: u64, len: usize) -> Bytes {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    Bytes::from(bytes)
}

fn object(groups: &CommitGroups, in_flight_bytes: u32) -> ObjectWriter {
    let options = ObjectOptions { in_flight_bytes, ..ObjectOptions::new(Policy::LOCAL, None) };
    ObjectWriter::new(groups.clone(), WriteBudget::new(1 << 20), options)
}

fn stored(test: &TestNetwork, written: &WrittenObject, digest: &Digest) -> Bytes {
    let (stripe, slot) =
        written.stripes.iter().find_map(|s| s.slot_of(digest).map(|slot| (s, slot))).expect("in a stripe");
    test.node(stripe.stripe.shards[slot].unwrap().node.unwrap()).block(digest).unwrap()
}

#[tokio::test]
async fn blocks_come_back_in_order_whatever_the_bounds() {
    let test = TestNetwork::start(6).await;
    let groups = groups(&test);
    for (count, in_flight) in [(1, 1), (3, 1), (4, 1), (5, 100), (23, 1), (40, 1 << 20)] {
        let mut writer = object(&groups, in_flight);
        let blocks: Vec<Bytes> = (0..count).map(|seed| noise(seed, 3_000)).collect();
        for block in &blocks {
            writer.push(block.clone()).await.unwrap();
        }
        let written = writer.finish().await.unwrap();
        assert_eq!(written.blocks.len(), blocks.len());
        assert_eq!(written.stripes.len(), blocks.len().div_ceil(4));
        for (named, bytes) in written.blocks.iter().zip(&blocks) {
            assert_eq!(stored(&test, &written, &named.digest), *bytes);
        }
    }
}

#[tokio::test]
async fn repeated_blocks_of_an_object_are_written_once() {
    let test = TestNetwork::start(6).await;
    let mut writer = object(&groups(&test), 1 << 20);
    for seed in [1, 1, 1, 2, 1, 2, 3, 4, 5, 5, 1] {
        writer.push(noise(seed, 500)).await.unwrap();
    }
    assert_eq!(writer.len(), 11 * 500);
    let written = writer.finish().await.unwrap();
    assert_eq!(written.blocks.len(), 11);
    let data: usize = written.stripes.iter().map(|s| s.stripe.shards[..4].iter().flatten().count()).sum();
    assert_eq!(data, 5);
    assert!(written.blocks.iter().all(|block| stored(&test, &written, &block.digest).len() == 500));
}

#[tokio::test]
async fn an_object_without_bytes_has_no_stripes() {
    let test = TestNetwork::start(6).await;
    let written = object(&groups(&test), 1 << 20).finish().await.unwrap();
    assert!(written.blocks.is_empty() && written.stripes.is_empty());
    let error = object(&groups(&test), 1).push(Bytes::new()).await.unwrap_err();
    assert!(matches!(error, WriteError::Draft { .. }));
}

#[tokio::test(start_paused = true)]
async fn small_objects_written_together_share_a_stripe() {
    let test = TestNetwork::start(6).await;
    let groups = groups(&test);
    let mut writers: Vec<ObjectWriter> = (0..4).map(|_| object(&groups, 1 << 20)).collect();
    for (writer, seed) in writers.iter_mut().zip(0..) {
        writer.push(noise(seed, 700)).await.unwrap();
    }
    let written = futures::future::try_join_all(writers.into_iter().map(ObjectWriter::finish)).await.unwrap();
    assert!(written.iter().all(|object| Arc::ptr_eq(&object.stripes[0], &written[0].stripes[0])));
}

#[tokio::test]
async fn an_object_fails_when_a_stripe_does() {
    let test = TestNetwork::start(6).await;
    let groups = groups(&test);
    let mut writer = object(&groups, 1);
    for seed in 0..8 {
        writer.push(noise(seed, 700)).await.unwrap();
    }
    for node in &test.nodes[..3] {
        node.vanish().await;
    }
    let mut failed = None;
    for seed in 8..100 {
        if let Err(error) = writer.push(noise(seed, 700)).await {
            failed = Some(error);
            break;
        }
    }
    assert!(failed.expect("some push fails").is_retryable());
}
