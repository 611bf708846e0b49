//! Commit groups: who shares a stripe with whom, and who does not wait.

use bytes::Bytes;
use holdfast_protocol::record::ScopeId;

use super::*;
use crate::block::Block;
use crate::tag::TagKey;
use crate::testing::{Behaviour, TestNetwork};
use crate::write::{CpuPool, WriteConfig};

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

fn block(seed: u64) -> DraftBlock {
    let block = Block::new(Bytes::from(seed.to_le_bytes().repeat(50))).unwrap();
    DraftBlock { block, scope: None, retain_until_ms: 0 }
}

const LOCAL: Policy = Policy::LOCAL;

#[tokio::test(start_paused = true)]
async fn a_lone_put_does_not_wait() {
    let test = TestNetwork::start(6).await;
    let groups = groups(&test);
    let begun = Instant::now();
    groups.put(&LOCAL, vec![block(1)], None).await.unwrap();
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn an_announced_put_is_waited_for_three_milliseconds_at_most() {
    let test = TestNetwork::start(6).await;
    let groups = groups(&test);
    let _never_comes = groups.announce(&LOCAL);
    let begun = Instant::now();
    groups.put(&LOCAL, vec![block(1)], None).await.unwrap();
    let waited = begun.elapsed();
    assert!(waited >= GATHER_MAX && waited < GATHER_MAX * 2, "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn announced_puts_share_a_stripe_as_soon_as_all_are_there() {
    let test = TestNetwork::start(6).await;
    let groups = groups(&test);
    let announced: Vec<Announcement> = (0..3).map(|_| groups.announce(&LOCAL)).collect();
    let begun = Instant::now();
    let puts = announced
        .into_iter()
        .zip(1..)
        .map(|(announced, seed)| groups.put(&LOCAL, vec![block(seed)], Some(announced)));
    let written = futures::future::try_join_all(puts).await.unwrap();
    assert_eq!(begun.elapsed(), Duration::ZERO);
    for (stripe, seed) in written.iter().zip(1..) {
        assert!(Arc::ptr_eq(stripe, &written[0]));
        assert!(stripe.slot_of(&block(seed).block.digest()).is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn puts_that_come_while_one_is_written_share_the_next_stripe() {
    let test = TestNetwork::start(6).await;
    for node in &test.nodes {
        node.behave(Behaviour::Slow(Duration::from_millis(2)));
    }
    let groups = groups(&test);
    let first = {
        let groups = groups.clone();
        tokio::spawn(async move { groups.put(&LOCAL, vec![block(1)], None).await })
    };
    // The first is on its way, alone.
    tokio::time::advance(Duration::from_millis(1)).await;
    let (second, third) =
        tokio::join!(groups.put(&LOCAL, vec![block(2)], None), groups.put(&LOCAL, vec![block(3)], None),);
    let (first, second, third) = (first.await.unwrap().unwrap(), second.unwrap(), third.unwrap());
    assert!(Arc::ptr_eq(&second, &third));
    assert!(!Arc::ptr_eq(&first, &second));
}

#[tokio::test(start_paused = true)]
async fn k_blocks_close_a_group_and_what_does_not_fit_opens_the_next() {
    let test = TestNetwork::start(6).await;
    let groups = groups(&test);
    let _more = groups.announce(&LOCAL);
    let (first, second, third) = tokio::join!(
        groups.put(&LOCAL, vec![block(1), block(2)], None),
        groups.put(&LOCAL, vec![block(3), block(4)], None),
        groups.put(&LOCAL, vec![block(5), block(6), block(7)], None),
    );
    let (first, second, third) = (first.unwrap(), second.unwrap(), third.unwrap());
    assert!(Arc::ptr_eq(&first, &second));
    assert_eq!(third.stripe.shards[..4].iter().flatten().count(), 3);
}

#[tokio::test(start_paused = true)]
async fn the_same_bytes_take_one_slot_under_like_terms_and_two_stripes_under_others() {
    let test = TestNetwork::start(6).await;
    let groups = groups(&test);
    let _more = groups.announce(&LOCAL);
    let scoped = DraftBlock { scope: Some(ScopeId([4; 16])), ..block(1) };
    let (first, again, other) = tokio::join!(
        groups.put(&LOCAL, vec![block(1)], None),
        groups.put(&LOCAL, vec![block(1)], None),
        groups.put(&LOCAL, vec![scoped], None),
    );
    let (first, again, other) = (first.unwrap(), again.unwrap(), other.unwrap());
    assert!(Arc::ptr_eq(&first, &again));
    assert_eq!(first.stripe.shards[..4].iter().flatten().count(), 1);
    assert!(!Arc::ptr_eq(&first, &other));
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_participant_does_not_harm_the_others() {
    let test = TestNetwork::start(6).await;
    let groups = groups(&test);
    let announced = groups.announce(&LOCAL);
    let cancelled = {
        let groups = groups.clone();
        tokio::spawn(async move { groups.put(&LOCAL, vec![block(1)], None).await })
    };
    let stays = {
        let groups = groups.clone();
        tokio::spawn(async move { groups.put(&LOCAL, vec![block(2)], None).await })
    };
    tokio::time::advance(Duration::from_millis(1)).await;
    cancelled.abort();
    assert!(cancelled.await.unwrap_err().is_cancelled());
    drop(announced);
    let written = stays.await.unwrap().unwrap();
    assert_eq!(written.slot_of(&block(1).block.digest()), None);
    assert!(written.slot_of(&block(2).block.digest()).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_group_that_fails_fails_for_all() {
    let test = TestNetwork::start(6).await;
    test.nodes[0].vanish().await;
    test.nodes[1].vanish().await;
    test.pool.check_all().await;
    let groups = groups(&test);
    let _more = groups.announce(&LOCAL);
    let (first, second) =
        tokio::join!(groups.put(&LOCAL, vec![block(1)], None), groups.put(&LOCAL, vec![block(2)], None),);
    assert!(first.unwrap_err().is_retryable());
    assert!(second.unwrap_err().is_retryable());
}

#[tokio::test]
async fn a_thousand_small_puts_all_land() {
    let test = TestNetwork::start(6).await;
    let groups = groups(&test);
    let puts = (0..1000).map(|seed| {
        let groups = groups.clone();
        async move {
            let written = groups.put(&LOCAL, vec![block(seed)], None).await.unwrap();
            assert!(written.slot_of(&block(seed).block.digest()).is_some());
            written.stripe.id
        }
    });
    let mut stripes = futures::future::join_all(puts).await;
    stripes.sort_unstable();
    stripes.dedup();
    assert!(stripes.len() <= 260, "{} stripes for 1000 blocks of 4 a stripe", stripes.len());
}
