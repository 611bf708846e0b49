//! The lease keeper, with a namespace that answers, disclaims, stays silent or lies.

use std::sync::Arc;

use holdfast_protocol::framing::ByteQueue;
use holdfast_protocol::message::{HasBlocksReply, Held, Reply, Request};
use holdfast_protocol::record::{AgreementId, ClaimRef, Disclaimer, Signed};
use holdfast_protocol::rpc::{Peer, read_request, write_reply};
use holdfast_protocol::{Digest, SigningKey};
use holdfast_storage_node::LeaseReport;

use crate::world::{DAY_MS, HOUR_MS, World, bytes, has, key, tag};

/// Answers one question of the node on the gateway's connection.
fn answer_once(peer: &Peer, answer: impl FnOnce(Vec<ClaimRef>) -> HasBlocksReply + Send + 'static) {
    let connection = peer.connection().clone();
    tokio::spawn(async move {
        let mut stream = connection.accept().await.unwrap();
        let request = read_request(stream.recv.as_mut(), &mut ByteQueue::new()).await.unwrap();
        let Some(Request::HasBlocks(question)) = request else { panic!("{request:?}") };
        let reply = Reply::HasBlocks(answer(question.claims));
        write_reply(stream.send.as_mut(), &reply).await.unwrap();
    });
}

fn disclaimer(
    agreement: AgreementId,
    claims: Vec<ClaimRef>,
    now_ms: u64,
    signer: &Arc<SigningKey>,
) -> Option<holdfast_protocol::record::Unverified<Disclaimer>> {
    Some(Signed::sign(Disclaimer { v: 1, agreement, claims, issued_ms: now_ms }, signer).to_wire())
}

async fn three_provisional(world: &World, peer: &Peer, agreement: AgreementId) -> Vec<ClaimRef> {
    let mut claims = Vec::new();
    for seed in 0..3 {
        let block = bytes(1000, seed);
        world.put(peer, agreement, &block, tag(1)).await.unwrap();
        claims.push(ClaimRef(Digest::of(&block), tag(1)));
    }
    claims
}

fn now(world: &World) -> u64 {
    use holdfast_protocol::time::Clock;
    world.clock.now_ms()
}

#[tokio::test]
async fn the_namespace_decides_what_becomes_of_ended_leases() {
    let world = World::new().await;
    let (peer, agreement) = world.gateway().await;
    let claims = three_provisional(&world, &peer, agreement).await;
    assert_eq!(world.node.keep_leases(now(&world)).await, LeaseReport::default(), "no lease has ended");
    world.clock.advance(2 * HOUR_MS);
    let (wanted, now_ms, signer) = (claims.clone(), now(&world), world.namespace.clone());
    answer_once(&peer, move |asked| {
        let held = asked.iter().map(|claim| match wanted.iter().position(|one| one == claim) {
            Some(0) => Held::Live,
            Some(1) => Held::Provisional,
            _ => Held::Absent,
        });
        let held = held.collect();
        HasBlocksReply { held, disclaimer: disclaimer(agreement, vec![wanted[2]], now_ms, &signer) }
    });
    let report = world.node.keep_leases(now_ms).await;
    assert_eq!(report, LeaseReport { committed: 1, extended: 1, dropped: 1, silent: 0 });
    assert_eq!(has(&peer, agreement, &claims).await, vec![Held::Live, Held::Provisional, Held::Trash]);
    // The extended one is asked about again, after its extension.
    assert_eq!(world.node.keep_leases(now_ms + 1).await, LeaseReport::default());
    answer_once(&peer, |asked| HasBlocksReply { held: vec![Held::Live; asked.len()], disclaimer: None });
    world.clock.advance(HOUR_MS + 1);
    assert_eq!(world.node.keep_leases(now(&world)).await.committed, 1);
}

#[tokio::test]
async fn silence_keeps_a_block_for_thirty_days() {
    let world = World::new().await;
    let (peer, agreement) = world.gateway().await;
    let claims = three_provisional(&world, &peer, agreement).await;
    peer.connection().close("gone");
    world.clock.advance(2 * HOUR_MS);
    assert_eq!(
        world.node.keep_leases(now(&world)).await,
        LeaseReport { silent: 3, ..LeaseReport::default() }
    );
    world.clock.advance(29 * DAY_MS);
    assert_eq!(world.node.keep_leases(now(&world)).await.silent, 3);
    world.clock.advance(DAY_MS);
    assert_eq!(world.node.keep_leases(now(&world)).await.dropped, 3);
    let (peer, _) = world
        .connect(
            &world.gateway,
            Some(&world.delegation(&world.gateway, holdfast_protocol::record::Rights::GATEWAY)),
        )
        .await
        .unwrap();
    assert_eq!(has(&peer, agreement, &claims).await, vec![Held::Trash; 3]);
}

#[tokio::test]
async fn an_unsigned_or_foreign_no_drops_nothing() {
    let world = World::new().await;
    let (peer, agreement) = world.gateway().await;
    let claims = three_provisional(&world, &peer, agreement).await;
    world.clock.advance(2 * HOUR_MS);
    let now_ms = now(&world);
    for signed in [
        None,
        disclaimer(agreement, claims.clone(), now_ms, &key(99)),
        disclaimer(AgreementId([9; 32]), claims.clone(), now_ms, &world.namespace),
        disclaimer(agreement, claims.clone(), now_ms - HOUR_MS, &world.namespace),
    ] {
        answer_once(&peer, move |asked| HasBlocksReply {
            held: vec![Held::Absent; asked.len()],
            disclaimer: signed,
        });
        let report = world.node.keep_leases(now_ms).await;
        assert_eq!(report, LeaseReport { silent: 3, ..LeaseReport::default() });
    }
    assert_eq!(has(&peer, agreement, &claims).await, vec![Held::Provisional; 3]);
}

#[tokio::test]
async fn another_namespaces_delegate_is_not_asked() {
    let world = World::new().await;
    let (peer, agreement) = world.gateway().await;
    let claims = three_provisional(&world, &peer, agreement).await;
    peer.connection().close("gone");
    peer.connection().closed().await;
    let delegation = world.delegation_by(&key(60), &key(61), holdfast_protocol::record::Rights::GATEWAY);
    let (_other, _) = world.connect(&key(61), Some(&delegation)).await.unwrap();
    world.clock.advance(2 * HOUR_MS);
    // The other one never accepts a stream: were it asked, the round would wait for it.
    let report = world.node.keep_leases(now(&world)).await;
    assert_eq!(report.silent, claims.len() as u64);
}
