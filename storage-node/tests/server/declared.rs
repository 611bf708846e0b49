//! What a node says of blocks that it has lost or refuses, what it keeps as its defence and for how long, and what
//! strangers learn.

use holdfast_protocol::Digest;
use holdfast_protocol::message::{DeclaredQuery, Held, RefusalReason};
use holdfast_protocol::record::{DeclaredAs, DeclaredPage, Denied, Rights};
use holdfast_protocol::rpc::Peer;
use holdfast_storage_node::node::disk_upkeep::ORDERS_KEPT_MS;

use crate::world::{DAY_MS, World, bytes, has, key, refused};

async fn page(world: &World, peer: &Peer, kind: DeclaredAs, after: Option<Digest>) -> DeclaredPage {
    let page = peer.declared(DeclaredQuery { kind, after }).await.unwrap();
    let page = page.verify_by(world.node.id().key()).unwrap().into_record();
    assert_eq!((page.kind, page.after, page.node), (kind, after, world.node.id()));
    page
}

#[tokio::test]
async fn a_lost_block_is_declared_signed_until_it_is_put_again() {
    let world = World::new().await;
    let (peer, agreement) = world.gateway().await;
    let block = bytes(10_000, 1);
    let claim = world.keep(&peer, agreement, &block, 1).await;
    assert_eq!(page(&world, &peer, DeclaredAs::Lost, None).await.digests, vec![]);
    assert!(world.node.store().declare_lost(claim.0).await.unwrap());
    let declared = page(&world, &peer, DeclaredAs::Lost, None).await;
    assert_eq!((declared.digests, declared.last), (vec![claim.0], true));
    assert_eq!(has(&peer, agreement, &[claim]).await, vec![Held::Lost]);
    // What is refused is never called lost, and the other way round.
    assert_eq!(page(&world, &peer, DeclaredAs::Refused, None).await.digests, vec![]);
    world.keep(&peer, agreement, &block, 1).await;
    assert_eq!(page(&world, &peer, DeclaredAs::Lost, None).await.digests, vec![]);
}

#[tokio::test]
async fn refused_blocks_are_declared_page_by_page_and_other_lines_are_not() {
    let world = World::new().await;
    let (peer, _) = world.gateway().await;
    let deny = world.node.deny_list();
    let mut expected: Vec<Digest> = (0..3u64).map(|number| Digest::of(&number.to_le_bytes())).collect();
    for digest in &expected {
        deny.deny(Denied::Block(*digest), "by order", 1).unwrap();
    }
    deny.deny(Denied::Peer(holdfast_protocol::NodeId(key(9).public())), "spam", 1).unwrap();
    expected.sort_unstable();
    let first = page(&world, &peer, DeclaredAs::Refused, None).await;
    assert_eq!((first.digests, first.last), (expected.clone(), true));
    let rest = page(&world, &peer, DeclaredAs::Refused, Some(expected[0])).await;
    assert_eq!(rest.digests, expected[1..]);
    assert_eq!(deny.refused_after(Some(expected[0]), 1), expected[1..2]);
}

#[tokio::test]
async fn strangers_are_told_nothing_of_it_and_little_else() {
    let world = World::new().await;
    let (peer, agreement) = world.gateway().await;
    world.keep(&peer, agreement, &bytes(10_000, 1), 1).await;
    let query = DeclaredQuery { kind: DeclaredAs::Lost, after: None };
    let stranger = world.stranger(50).await;
    assert_eq!(refused(stranger.declared(query).await), RefusalReason::Forbidden);
    // A namespace that anybody may make up is none with an agreement.
    let other = world.delegation_by(&key(60), &key(61), Rights::GATEWAY);
    let (other, _) = world.connect(&key(61), Some(&other)).await.unwrap();
    assert_eq!(refused(other.declared(query).await), RefusalReason::NoAgreement);
    let told = stranger.status().await.unwrap();
    let known = peer.status().await.unwrap();
    assert_eq!((told.blocks, told.agreements, told.paid_bytes, told.uptime_s), (0, 0, 0, 0));
    assert_eq!((told.capacity_bytes, told.free_bytes), (known.capacity_bytes, known.free_bytes));
    assert_eq!(
        told.used_bytes + told.trash_bytes + told.garbage_bytes + told.free_bytes,
        told.capacity_bytes
    );
    assert_eq!(known.blocks, 1);
}

#[tokio::test]
async fn deletion_orders_are_kept_until_no_receipt_needs_them() {
    let world = World::new().await;
    let (peer, agreement) = world.gateway().await;
    for seed in 1..=3 {
        let claim = world.keep(&peer, agreement, &bytes(10_000, seed), 1).await;
        peer.delete_blocks(&world.order(agreement, &[claim], &world.gateway)).await.unwrap();
    }
    let kept = || async { world.node.store().orders(agreement, 10).await.unwrap().len() };
    assert_eq!(kept().await, 3);
    // The agreement runs 90 days; a dispute about its last day is possible for 30 more.
    let end_ms = world.node.agreements()[0].terms().end_ms;
    assert_eq!(world.node.drop_ended_orders(end_ms).await, 0);
    assert_eq!(world.node.drop_ended_orders(end_ms + ORDERS_KEPT_MS - 1).await, 0);
    assert_eq!(kept().await, 3);
    let garbage = world.node.accounts().garbage_bytes;
    assert_eq!(world.node.drop_ended_orders(end_ms + ORDERS_KEPT_MS).await, 3);
    assert_eq!(kept().await, 0);
    assert_eq!(world.node.drop_ended_orders(end_ms + ORDERS_KEPT_MS + DAY_MS).await, 0);
    // Their pages are given back by the next pass: three, less the one that says so.
    world.node.store().reclaim(1).await.unwrap();
    let accounts = world.node.accounts();
    assert!(accounts.garbage_bytes < garbage && accounts.add_up(), "{accounts:?}, {garbage} before");
}
