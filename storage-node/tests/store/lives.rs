//! The life of blocks and claims on a disk that behaves.

use std::sync::Arc;

use holdfast_proofs::hash_block;
use holdfast_protocol::digest::Digest;
use holdfast_protocol::message::{BlockOutcome, ByteRange};
use holdfast_protocol::record::{ClaimRef, ClaimState};
use holdfast_storage_node::store::{IoMode, OpenError, PutError, Store, StoreConfig};

use crate::support::*;

crate::in_both_modes!(
    puts_are_read_back_whole_and_in_part_and_after_reopening,
    trees_come_back_from_header_pages,
    a_second_put_adds_only_a_claim,
    claims_live_and_end,
    retained_claims_refuse_deletion,
    leases_expire_in_order_and_can_be_extended,
    a_commit_passes_a_block_to_another_tag,
    a_late_commit_brings_nothing_back_that_an_order_released,
    orders_about_nothing_are_not_kept,
    orders_are_kept_until_dropped,
    released_blocks_are_punched_and_dead_extents_unlinked,
    a_rebuild_after_a_carry_after_a_second_put_keeps_the_second,
    an_ended_claim_stays_ended_when_its_last_word_dies,
    a_full_store_refuses_puts_and_still_deletes,
    a_declared_loss_is_remembered,
    many_writers_share_syncs,
);

async fn puts_are_read_back_whole_and_in_part_and_after_reopening(io: IoMode) {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::at(100);
    let lens = [1, 1023, 1024, 4095, 4096, 4097, 16384, 16385, 100_000, 1 << 20];
    let blocks: Vec<_> = lens.iter().map(|len| bytes(*len as u64, *len)).collect();
    let store = Store::open(config(dir.path(), io, &clock)).unwrap();
    for block in &blocks {
        assert!(!put(&store, block).await.unwrap().existed);
        assert!(store.accounts().add_up());
    }
    for pass in 0..2 {
        for block in &blocks {
            assert_eq!(read(&store, Digest::of(block)).await.as_deref(), Some(&block[..]), "pass {pass}");
        }
        let last = blocks.last().unwrap();
        let located = store.locate(Digest::of(last)).await.unwrap().unwrap();
        for (start, len) in [(0, 1), (4095, 2), (5000, 70_000), ((1 << 20) - 1, 1)] {
            let part = store.read(&located, ByteRange { start, len }).await.unwrap();
            assert_eq!(part, &last[start as usize..(start + len) as usize]);
        }
        assert!(store.read(&located, ByteRange { start: 1 << 20, len: 1 }).await.is_err());
        assert!(store.read(&located, ByteRange { start: u32::MAX, len: u32::MAX }).await.is_err());
    }
    let before = store.accounts();
    store.close().await.unwrap();
    assert!(put(&store, b"late").await.is_err());
    drop(store);
    let store = Store::open(config(dir.path(), io, &clock)).unwrap();
    assert_eq!(store.accounts(), before);
    for block in &blocks {
        assert_eq!(read(&store, Digest::of(block)).await.as_deref(), Some(&block[..]));
    }
    assert!(store.locate(Digest::of(b"never put")).await.unwrap().is_none());
}

async fn trees_come_back_from_header_pages(io: IoMode) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path(), io, &TestClock::at(100))).unwrap();
    for len in [1usize, 16384, 16385, 1 << 20] {
        let block = bytes(7, len);
        put(&store, &block).await.unwrap();
        let (digest, tree) = hash_block(&block);
        let located = store.locate(digest).await.unwrap().unwrap();
        for _cached in [false, true] {
            let read = store.tree(&located).await.unwrap();
            assert_eq!(read.chaining_values(), tree.chaining_values());
            assert_eq!(read.len(), tree.len());
        }
    }
}

async fn a_second_put_adds_only_a_claim(io: IoMode) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path(), io, &TestClock::at(100))).unwrap();
    let block = bytes(1, 50_000);
    let digest = Digest::of(&block);
    put(&store, &block).await.unwrap();
    let used = store.accounts().used_bytes;
    assert_eq!(used, 4096 + 53_248);
    assert!(put(&store, &block).await.unwrap().existed);
    let other = put_claimed(&store, &block, claim(digest, agreement(2), tag(9))).await.unwrap();
    assert!(other.existed);
    assert_eq!(store.accounts().used_bytes, used);
    assert_eq!(store.locate(digest).await.unwrap().unwrap().claims.len(), 2);
    assert_eq!(store.agreement_usage(agreement(2)).await.unwrap().bytes, 50_000);
    // Two puts of one new block in flight at once: one record.
    let twin = bytes(2, 50_000);
    let claim_of = |number| claim(Digest::of(&twin), agreement(number), tag(1));
    let (a, b) =
        tokio::join!(put_claimed(&store, &twin, claim_of(1)), put_claimed(&store, &twin, claim_of(2)));
    assert!(a.unwrap().existed != b.unwrap().existed);
    assert_eq!(store.accounts().used_bytes, 2 * used);
}

async fn claims_live_and_end(io: IoMode) {
    use BlockOutcome::{Absent, Already, Done};
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::at(100);
    let store = Store::open(config(dir.path(), io, &clock)).unwrap();
    let block = bytes(1, 5000);
    let digest = Digest::of(&block);
    let (me, it) = (agreement(1), [first(digest)]);
    put(&store, &block).await.unwrap();
    let absent = [ClaimRef(Digest::of(b"no"), tag(1))];
    assert_eq!(store.commit(me, &absent, 0).await.unwrap(), [Absent]);
    assert_eq!(store.commit(agreement(2), &it, 0).await.unwrap(), [Absent]);
    assert_eq!(store.accounts().paid_bytes, 0);
    assert_eq!(store.commit(me, &it, 0).await.unwrap(), [Done]);
    assert_eq!(store.commit(me, &it, 0).await.unwrap(), [Already]);
    assert_eq!(store.accounts().paid_bytes, 5000);
    assert_eq!(store.drop_provisional(me, &it).await.unwrap(), [Already]);
    assert_eq!(store.delete(me, &it, None).await.unwrap(), [Done]);
    assert_eq!(store.delete(me, &it, None).await.unwrap(), [Already]);
    let accounts = store.accounts();
    assert_eq!((accounts.used_bytes, accounts.trash_bytes, accounts.blocks), (0, 3 * 4096, 0));
    assert_eq!(store.claim(me, it[0]).await.unwrap().unwrap().state, ClaimState::Trash);
    assert_eq!(store.restore(me, &it).await.unwrap(), [Done]);
    assert_eq!(store.restore(me, &it).await.unwrap(), [Already]);
    assert_eq!(store.claim(me, it[0]).await.unwrap().unwrap().state, ClaimState::Live);
    assert_eq!(store.delete(me, &it, None).await.unwrap(), [Done]);
    clock.set(100 + TRASH_MS);
    assert_eq!(store.reclaim(99 + TRASH_MS).await.unwrap().claims, 0);
    let report = store.reclaim(100 + TRASH_MS).await.unwrap();
    assert_eq!((report.claims, report.blocks, report.punched_bytes), (1, 1, 2 * 4096));
    assert!(store.locate(digest).await.unwrap().is_none());
    assert_eq!(store.restore(me, &it).await.unwrap(), [Absent]);
    assert!(store.accounts().add_up());
    // And it can come back as if new.
    assert!(!put(&store, &block).await.unwrap().existed);
    assert_eq!(read(&store, digest).await.as_deref(), Some(&block[..]));
}

async fn retained_claims_refuse_deletion(io: IoMode) {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::at(100);
    let store = Store::open(config(dir.path(), io, &clock)).unwrap();
    let block = bytes(1, 5000);
    let it = [first(Digest::of(&block))];
    put(&store, &block).await.unwrap();
    store.commit(agreement(1), &it, 500).await.unwrap();
    // Retention never shrinks.
    store.commit(agreement(1), &it, 200).await.unwrap();
    clock.set(499);
    assert_eq!(store.delete(agreement(1), &it, None).await.unwrap(), [BlockOutcome::Retained]);
    clock.set(500);
    assert_eq!(store.delete(agreement(1), &it, None).await.unwrap(), [BlockOutcome::Done]);
}

async fn leases_expire_in_order_and_can_be_extended(io: IoMode) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path(), io, &TestClock::at(100))).unwrap();
    let mut digests = Vec::new();
    for lease in [3_000u64, 1_000, 2_000] {
        let block = bytes(lease, 100);
        let digest = Digest::of(&block);
        let claim =
            holdfast_protocol::record::Claim { lease_until_ms: lease, ..claim(digest, agreement(1), tag(1)) };
        put_claimed(&store, &block, claim).await.unwrap();
        digests.push(digest);
    }
    let ended = |list: Vec<(_, ClaimRef)>| list.into_iter().map(|(_, it)| it.0).collect::<Vec<_>>();
    assert!(store.expired_leases(999, 10).await.unwrap().is_empty());
    assert_eq!(ended(store.expired_leases(2_000, 10).await.unwrap()), [digests[1], digests[2]]);
    assert_eq!(ended(store.expired_leases(9_000, 1).await.unwrap()), [digests[1]]);
    store.extend_lease(agreement(1), &[first(digests[1])], 8_000).await.unwrap();
    store.commit(agreement(1), &[first(digests[2])], 0).await.unwrap();
    assert_eq!(ended(store.expired_leases(8_000, 10).await.unwrap()), [digests[0], digests[1]]);
    store.drop_provisional(agreement(1), &[first(digests[0])]).await.unwrap();
    assert_eq!(ended(store.expired_leases(8_000, 10).await.unwrap()), [digests[1]]);
}

async fn a_commit_passes_a_block_to_another_tag(io: IoMode) {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::at(100);
    let store = Store::open(config(dir.path(), io, &clock)).unwrap();
    let block = bytes(1, 5000);
    let digest = Digest::of(&block);
    put(&store, &block).await.unwrap();
    let other = [ClaimRef(digest, tag(2))];
    assert_eq!(store.commit(agreement(1), &other, 0).await.unwrap(), [BlockOutcome::Done]);
    store.delete(agreement(1), &[first(digest)], None).await.unwrap();
    clock.set(100_000);
    store.reclaim(100_000).await.unwrap();
    assert_eq!(read(&store, digest).await.as_deref(), Some(&block[..]));
    let claims = store.locate(digest).await.unwrap().unwrap().claims;
    assert_eq!(claims.len(), 1);
    assert_eq!((claims[0].tag, claims[0].state), (tag(2), ClaimState::Live));
}

async fn a_late_commit_brings_nothing_back_that_an_order_released(io: IoMode) {
    use BlockOutcome::{Absent, Already, Done};
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path(), io, &TestClock::at(100))).unwrap();
    let block = bytes(1, 5000);
    let digest = Digest::of(&block);
    let (me, it, other) = (agreement(1), [first(digest)], [ClaimRef(digest, tag(2))]);
    let order = || Some(vec![7; 100]);
    put(&store, &block).await.unwrap();
    // A claim that only lost its lease may still be committed, but passes nothing on.
    assert_eq!(store.drop_provisional(me, &it).await.unwrap(), [Done]);
    assert_eq!(store.commit(me, &other, 0).await.unwrap(), [Absent]);
    assert_eq!(store.commit(me, &it, 0).await.unwrap(), [Done]);
    assert_eq!(store.delete(me, &it, order()).await.unwrap(), [Done]);
    assert_eq!(store.commit(me, &it, 9_000).await.unwrap(), [Absent]);
    assert_eq!(store.commit(me, &other, 0).await.unwrap(), [Absent]);
    let held = store.claim(me, it[0]).await.unwrap().unwrap();
    assert_eq!((held.state, held.retain_until_ms), (ClaimState::Trash, 0));
    assert_eq!(store.restore(me, &it).await.unwrap(), [Done]);
    assert_eq!(store.commit(me, &it, 0).await.unwrap(), [Already]);
    // An order about a claim that had lost its lease holds too.
    put_claimed(&store, &block, claim(digest, me, tag(3))).await.unwrap();
    let third = [ClaimRef(digest, tag(3))];
    assert_eq!(store.drop_provisional(me, &third).await.unwrap(), [Done]);
    assert_eq!(store.delete(me, &third, order()).await.unwrap(), [Already]);
    assert_eq!(store.commit(me, &third, 0).await.unwrap(), [Absent]);
}

async fn orders_about_nothing_are_not_kept(io: IoMode) {
    use BlockOutcome::{Absent, Already, Done};
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path(), io, &TestClock::at(100))).unwrap();
    let block = bytes(1, 5000);
    let (me, it) = (agreement(1), first(Digest::of(&block)));
    let absent = ClaimRef(Digest::of(b"no"), tag(1));
    put(&store, &block).await.unwrap();
    let before = store.accounts();
    assert_eq!(store.delete(me, &[absent, absent], Some(vec![7; 5000])).await.unwrap(), [Absent, Absent]);
    assert_eq!(store.accounts(), before);
    assert!(store.orders(me, 10).await.unwrap().is_empty());
    let mixed = [absent, it, it];
    assert_eq!(store.delete(me, &mixed, Some(vec![8; 5000])).await.unwrap(), [Absent, Done, Already]);
    assert_eq!(store.orders(me, 10).await.unwrap().len(), 1);
    let before = store.accounts();
    assert_eq!(store.delete(me, &[it], Some(vec![9; 5000])).await.unwrap(), [Already]);
    assert_eq!(store.accounts(), before);
    assert!(store.accounts().add_up());
}

async fn orders_are_kept_until_dropped(io: IoMode) {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::at(100);
    let store = Store::open(config(dir.path(), io, &clock)).unwrap();
    let block = bytes(1, 5000);
    let order = bytes(77, 6000);
    put(&store, &block).await.unwrap();
    store.delete(agreement(1), &[first(Digest::of(&block))], Some(order.clone())).await.unwrap();
    for _pass in 0..2 {
        let kept = store.orders(agreement(1), 10).await.unwrap();
        assert_eq!(kept.len(), 1);
        assert_eq!((&kept[0].bytes[..], kept[0].kept_ms), (&order[..], 100));
        clock.set(100_000);
        store.reclaim(100_000).await.unwrap();
    }
    assert!(store.orders(agreement(2), 10).await.unwrap().is_empty());
    assert_eq!(store.drop_orders(agreement(1)).await.unwrap(), 1);
    assert!(store.orders(agreement(1), 10).await.unwrap().is_empty());
    assert_eq!(store.reclaim(100_000).await.unwrap().punched_bytes, 8192);
    assert!(store.accounts().add_up());
}

fn extent_files(dir: &std::path::Path) -> usize {
    std::fs::read_dir(dir.join("extents")).unwrap().count()
}

async fn released_blocks_are_punched_and_dead_extents_unlinked(io: IoMode) {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::at(100);
    let store = Store::open(config(dir.path(), io, &clock)).unwrap();
    // A block that lives, whose commit lands in an extent that will die.
    let kept = bytes(999, 900_000);
    put(&store, &kept).await.unwrap();
    let blocks: Vec<_> = (0..12).map(|seed| bytes(seed, 600_000)).collect();
    for block in &blocks {
        put(&store, block).await.unwrap();
    }
    store.commit(agreement(1), &[first(Digest::of(&kept))], 0).await.unwrap();
    for seed in 100..104 {
        put(&store, &bytes(seed, 600_000)).await.unwrap();
    }
    let before = extent_files(dir.path());
    assert!(before >= 4);
    let mut gone: Vec<_> = blocks.iter().map(|block| first(Digest::of(block))).collect();
    gone.extend((100..104).map(|seed| first(Digest::of(&bytes(seed, 600_000)))));
    store.delete(agreement(1), &gone, None).await.unwrap();
    clock.set(100_000);
    let report = store.reclaim(100_000).await.unwrap();
    assert_eq!(report.blocks, 16);
    assert!(report.extents >= 2 && report.carried >= 1, "{report:?}");
    assert_eq!(extent_files(dir.path()) as u64, before as u64 - report.extents);
    let accounts = store.accounts();
    assert!(accounts.add_up());
    assert_eq!(accounts.used_bytes, 4096 + 901_120);
    assert!(accounts.garbage_bytes < 200_000, "{accounts:?}");
    store.close().await.unwrap();
    drop(store);
    // The carried commit survives a rebuild of the whole index from what extents are left.
    std::fs::remove_dir_all(dir.path().join("index")).unwrap();
    let store = Store::open(config(dir.path(), io, &clock)).unwrap();
    assert_eq!(store.accounts().used_bytes, accounts.used_bytes);
    assert_eq!(store.accounts().paid_bytes, 900_000);
    assert_eq!(store.accounts().trash_bytes, 0);
    assert_eq!(read(&store, Digest::of(&kept)).await.as_deref(), Some(&kept[..]));
    for block in &blocks {
        assert!(store.locate(Digest::of(block)).await.unwrap().is_none());
    }
}

/// The block's header page names its first claim for as long as the block lives: the claim's end must be told as long.
async fn an_ended_claim_stays_ended_when_its_last_word_dies(io: IoMode) {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::at(100);
    let store = Store::open(config(dir.path(), io, &clock)).unwrap();
    let (me, block) = (agreement(1), bytes(1, 900_000));
    let (digest, second) = (Digest::of(&block), ClaimRef(Digest::of(&block), tag(2)));
    put(&store, &block).await.unwrap();
    put_claimed(&store, &block, claim(digest, me, tag(2))).await.unwrap();
    store.commit(me, &[first(digest), second], 0).await.unwrap();
    put(&store, &bytes(2, 900_000)).await.unwrap();
    // The second extent: the claim's way to trash and its end, among blocks that will go.
    put(&store, &bytes(3, 900_000)).await.unwrap();
    store.delete(me, &[first(digest)], None).await.unwrap();
    clock.set(10_000);
    assert_eq!(store.reclaim(10_000).await.unwrap().claims, 1);
    put(&store, &bytes(4, 1_000_000)).await.unwrap();
    put(&store, &bytes(5, 900_000)).await.unwrap();
    let gone = [first(Digest::of(&bytes(3, 900_000))), first(Digest::of(&bytes(4, 1_000_000)))];
    store.delete(me, &gone, None).await.unwrap();
    clock.set(20_000);
    assert_eq!(store.reclaim(20_000).await.unwrap().extents, 1);
    let counts = |store: &Store| {
        let accounts = store.accounts();
        (accounts.used_bytes, accounts.trash_bytes, accounts.paid_bytes, accounts.claims)
    };
    let (before, usage) = (counts(&store), store.agreement_usage(me).await.unwrap());
    store.close().await.unwrap();
    drop(store);
    std::fs::remove_dir_all(dir.path().join("index")).unwrap();
    let store = Store::open(config(dir.path(), io, &clock)).unwrap();
    let claims = store.locate(digest).await.unwrap().unwrap().claims;
    assert_eq!(claims.iter().map(|claim| claim.tag).collect::<Vec<_>>(), [tag(2)]);
    assert_eq!(store.agreement_usage(me).await.unwrap(), usage);
    assert_eq!(counts(&store), before);
}

/// A carried tombstone comes to lie behind the second record of the digest whose first it ended.
async fn a_rebuild_after_a_carry_after_a_second_put_keeps_the_second(io: IoMode) {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::at(100);
    let store = Store::open(config(dir.path(), io, &clock)).unwrap();
    let (me, other) = (agreement(1), agreement(2));
    let twice = bytes(1, 500_000);
    let digest = Digest::of(&twice);
    // The first extent: a block that keeps it, and the first record.
    put(&store, &bytes(2, 900_000)).await.unwrap();
    put(&store, &twice).await.unwrap();
    store.commit(me, &[first(digest)], 0).await.unwrap();
    // The second extent: the end of the first record, between blocks that will go too.
    put(&store, &bytes(3, 900_000)).await.unwrap();
    store.delete(me, &[first(digest)], None).await.unwrap();
    clock.set(10_000);
    assert_eq!(store.reclaim(10_000).await.unwrap().blocks, 1);
    put(&store, &bytes(4, 1_000_000)).await.unwrap();
    // The third extent: the second record, then the carried end of the first.
    put_claimed(&store, &twice, claim(digest, other, tag(2))).await.unwrap();
    store.commit(other, &[ClaimRef(digest, tag(2))], 0).await.unwrap();
    let gone = [3, 4].map(|seed| bytes(seed, if seed == 3 { 900_000 } else { 1_000_000 }));
    let gone = gone.map(|block| first(Digest::of(&block)));
    store.delete(me, &gone, None).await.unwrap();
    clock.set(20_000);
    let report = store.reclaim(20_000).await.unwrap();
    assert_eq!((report.blocks, report.extents), (2, 1), "{report:?}");
    assert!(report.carried >= 1, "{report:?}");
    let before = store.accounts();
    let usage = store.agreement_usage(me).await.unwrap();
    store.close().await.unwrap();
    drop(store);
    std::fs::remove_dir_all(dir.path().join("index")).unwrap();
    let store = Store::open(config(dir.path(), io, &clock)).unwrap();
    for _pass in 0..2 {
        assert_eq!(read(&store, digest).await.as_deref(), Some(&twice[..]));
        let claims = store.locate(digest).await.unwrap().unwrap().claims;
        assert_eq!(claims.len(), 1);
        assert_eq!((claims[0].agreement, claims[0].state), (other, ClaimState::Live));
        assert!(store.accounts().add_up());
        store.reclaim(20_000).await.unwrap();
    }
    // Once the first record's data are punched again, nothing tells that the index was ever away.
    assert_eq!(store.accounts(), before);
    assert_eq!(store.agreement_usage(me).await.unwrap(), usage);
}

async fn a_full_store_refuses_puts_and_still_deletes(io: IoMode) {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::at(100);
    let small = StoreConfig { capacity_bytes: 3 << 20, ..config(dir.path(), io, &clock) };
    let store = Store::open(small).unwrap();
    let mut held = Vec::new();
    let refused = loop {
        let block = bytes(held.len() as u64, 500_000);
        match put(&store, &block).await {
            Ok(_) => held.push(first(Digest::of(&block))),
            Err(error) => break error,
        }
        assert!(store.accounts().add_up());
        assert!(held.len() < 10);
    };
    assert!(matches!(refused, PutError::DiskFull { .. }) && refused.is_retryable(), "{refused}");
    assert_eq!(held.len(), 6);
    store.delete(agreement(1), &held[..2], Some(vec![1; 9000])).await.unwrap();
    clock.set(100_000);
    store.reclaim(100_000).await.unwrap();
    put(&store, &bytes(50, 500_000)).await.unwrap();
    assert!(store.accounts().add_up());
}

async fn a_declared_loss_is_remembered(io: IoMode) {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::at(100);
    let store = Store::open(config(dir.path(), io, &clock)).unwrap();
    let block = bytes(1, 5000);
    let digest = Digest::of(&block);
    put(&store, &block).await.unwrap();
    assert!(!store.is_lost(digest).await.unwrap());
    assert!(store.declare_lost(digest).await.unwrap());
    assert!(!store.declare_lost(digest).await.unwrap());
    assert!(store.is_lost(digest).await.unwrap());
    assert!(store.locate(digest).await.unwrap().is_none());
    let accounts = store.accounts();
    assert_eq!((accounts.used_bytes, accounts.claims, accounts.blocks), (0, 0, 0));
    store.close().await.unwrap();
    drop(store);
    let store = Store::open(config(dir.path(), io, &clock)).unwrap();
    assert!(store.is_lost(digest).await.unwrap());
    put(&store, &block).await.unwrap();
    assert!(!store.is_lost(digest).await.unwrap());
}

async fn many_writers_share_syncs(io: IoMode) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path(), io, &TestClock::at(100))).unwrap();
    let tasks: Vec<_> = (0..64u64)
        .map(|seed| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { put(&store, &bytes(seed, 20_000)).await.unwrap().group })
        })
        .collect();
    let mut groups = std::collections::BTreeSet::new();
    for task in tasks {
        groups.insert(task.await.unwrap());
    }
    assert!(groups.len() < 64, "no two of 64 puts shared a sync");
    for seed in 0..64 {
        let block = bytes(seed, 20_000);
        assert_eq!(read(&store, Digest::of(&block)).await.as_deref(), Some(&block[..]));
    }
}

#[test]
fn a_newer_format_a_second_process_and_a_missing_identity_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::at(100);
    let open = || Store::open(config(dir.path(), IoMode::Threads, &clock));
    let store = open().unwrap();
    assert!(matches!(open(), Err(OpenError::Locked { .. })));
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
        put(&store, b"something").await.unwrap();
        store.close().await.unwrap();
    });
    drop(store);
    let secret = std::fs::metadata(dir.path().join("secret")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&secret.permissions()) & 0o777, 0o600);
    let path = dir.path().join("identity.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, r#"{"format": 2, "shape": "unknown"}"#).unwrap();
    let Err(error) = open() else { panic!("a newer format was opened") };
    assert!(matches!(error, OpenError::NewerFormat { found: 2, newest: 1, .. }), "{error}");
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(open(), Err(OpenError::Identity { .. })));
    std::fs::write(&path, text).unwrap();
    open().unwrap();
}
