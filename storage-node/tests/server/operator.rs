//! What the operator decides: pausing, leaving, shrinking, refusing; and agreements that follow one another.

use holdfast_protocol::framing::ByteQueue;
use holdfast_protocol::message::{
    BlockOutcome, Drain, DrainProgress, DrainWish, HasBlocksReply, Held, RefusalReason, Reply, Request,
};
use holdfast_protocol::record::{AgreementId, ClaimRef, Denied, Rights, Signed};
use holdfast_protocol::rpc::{Peer, read_request, write_reply};
use holdfast_protocol::{BlockLen, Digest, NamespaceId, NodeId};
use holdfast_storage_node::Mode;
use tokio::sync::mpsc;

use crate::world::{DAY_MS, HOUR_MS, MIB, World, bytes, commit, has, key, refused, tag};

/// A gateway that answers every wish with `progress` and passes the wishes on.
fn answer_drains(peer: &Peer, progress: DrainProgress) -> mpsc::UnboundedReceiver<Drain> {
    let connection = peer.connection().clone();
    let (heard, wishes) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok(mut stream) = connection.accept().await {
            let request = read_request(stream.recv.as_mut(), &mut ByteQueue::new()).await.unwrap();
            let Some(Request::Drain(drain)) = request else { panic!("{request:?}") };
            let _ = heard.send(drain);
            write_reply(stream.send.as_mut(), &Reply::Drain(progress.clone())).await.unwrap();
        }
    });
    wishes
}

#[tokio::test]
async fn a_paused_node_takes_nothing_and_serves_what_it_has() {
    let mut world = World::new().await;
    let (peer, agreement) = world.gateway().await;
    let (old, new) = (bytes(5000, 1), bytes(5000, 2));
    world.keep(&peer, agreement, &old, 1).await;
    world.node.set_mode(Mode::Paused).unwrap();
    let put = world.put(&peer, agreement, &new, tag(1)).await;
    assert_eq!(refused(put), RefusalReason::Stopping);
    assert!(peer.status().await.unwrap().refusing_writes.contains("paused"));
    let len = BlockLen::of(&old).unwrap();
    assert_eq!(peer.read_whole(Digest::of(&old), len, None).await.unwrap(), old);
    // A restart does not forget it.
    world.restart().await;
    assert_eq!(world.node.mode(), Mode::Paused);
    world.node.set_mode(Mode::Serving).unwrap();
    let peer = world.delegate(&world.gateway, Rights::GATEWAY).await;
    world.put(&peer, agreement, &new, tag(1)).await.unwrap();
}

#[tokio::test]
async fn a_leaving_node_tells_its_namespace_until_all_is_moved_and_then_goes() {
    let world = World::new().await;
    let (peer, agreement) = world.gateway().await;
    world.keep(&peer, agreement, &bytes(5000, 1), 1).await;
    let done = DrainProgress { shards_moved: 1, done: true, ..DrainProgress::default() };
    let mut wishes = answer_drains(&peer, done);
    world.node.set_mode(Mode::Exiting).unwrap();
    let mut heard = Vec::new();
    while let Some(drain) = wishes.recv().await {
        assert_eq!(drain.agreement, agreement);
        heard.push(drain.wish);
        if drain.wish == DrainWish::Gone {
            break;
        }
    }
    assert!(heard.contains(&DrainWish::Leave), "{heard:?}");
    world.node.has_left().await;
    assert_eq!(world.node.mode(), Mode::Left);
}

#[tokio::test]
async fn a_node_is_emptied_only_when_every_namespace_says_so() {
    let world = World::new().await;
    let (peer, agreement) = world.gateway().await;
    let (other_namespace, other_gateway) = (key(60), key(61));
    let delegation = world.delegation_by(&other_namespace, &other_gateway, Rights::GATEWAY);
    let (other, _) = world.connect(&other_gateway, Some(&delegation)).await.unwrap();
    let mut terms = world.terms(1 << 20, 9);
    terms.namespace = NamespaceId(other_namespace.public());
    other.agree(&Signed::sign(terms, &other_namespace)).await.unwrap();
    let mut wishes = answer_drains(&peer, DrainProgress { done: true, ..DrainProgress::default() });
    let waiting = DrainProgress { shards_left: 3, note: "no room".to_owned(), ..DrainProgress::default() };
    let mut other_wishes = answer_drains(&other, waiting);
    world.node.set_mode(Mode::Draining).unwrap();
    while wishes.recv().await.unwrap().wish != DrainWish::Leave {}
    while other_wishes.recv().await.unwrap().wish != DrainWish::Leave {}
    // Both answers are in when the next round begins.
    other_wishes.recv().await.unwrap();
    assert!(!world.node.is_emptied());
    let report = world.node.leave_report();
    assert_eq!(report.len(), 2);
    assert!(report.iter().any(|row| row.note == "no room" && row.shards_left == 3));
    let _ = agreement;
    // Taken back, both hear that we stay.
    world.node.set_mode(Mode::Serving).unwrap();
    while wishes.recv().await.unwrap().wish != DrainWish::Stay {}
    while other_wishes.recv().await.unwrap().wish != DrainWish::Stay {}
}

#[tokio::test]
async fn a_smaller_capacity_counts_at_once_and_adds_up() {
    let world = World::new().await;
    let (peer, agreement) = world.gateway().await;
    for seed in 0..4 {
        world.keep(&peer, agreement, &bytes(MIB, seed), 1).await;
    }
    let before = world.node.accounts();
    assert!(before.add_up());
    world.node.set_capacity(before.used_bytes / 2).unwrap();
    let after = world.node.accounts();
    assert!(after.add_up(), "{after:?}");
    assert_eq!((after.used_bytes, after.free_bytes), (before.used_bytes, 0));
    assert_eq!(refused(world.put(&peer, agreement, &bytes(MIB, 9), tag(1)).await), RefusalReason::DiskFull);
    let mut wishes = answer_drains(&peer, DrainProgress::default());
    loop {
        let DrainWish::Shrink { keep_bytes } = wishes.recv().await.unwrap().wish else { continue };
        assert!(keep_bytes > MIB as u64 && keep_bytes <= 2 * MIB as u64, "{keep_bytes}");
        break;
    }
}

#[tokio::test]
async fn what_the_deny_list_names_is_refused_and_never_lost() {
    let world = World::new().await;
    let (peer, agreement) = world.gateway().await;
    let block = bytes(20_000, 1);
    let (digest, len) = (Digest::of(&block), BlockLen::of(&block).unwrap());
    let claim = world.keep(&peer, agreement, &block, 1).await;
    let now_ms = crate::world::BEGIN_MS;
    world.node.deny_list().deny(Denied::Block(digest), "court order", now_ms).unwrap();
    assert_eq!(refused(peer.read_whole(digest, len, None).await), RefusalReason::Denied);
    let again = world.put(&peer, agreement, &block, tag(2)).await;
    assert_eq!(refused(again), RefusalReason::Denied);
    assert_eq!(has(&peer, agreement, &[claim]).await, vec![Held::Live], "it is here, and said to be");
    // A stranger without a right learns nothing from the list.
    let stranger = world.stranger(50).await;
    assert_eq!(refused(stranger.read_whole(digest, len, None).await), RefusalReason::Forbidden);
    assert!(world.node.deny_list().allow(Denied::Block(digest), now_ms).unwrap());
    assert_eq!(peer.read_whole(digest, len, None).await.unwrap(), block);
    let gateway = NodeId(world.gateway.public());
    world.node.deny_list().deny(Denied::Peer(gateway), "does not pay", now_ms).unwrap();
    let delegation = world.delegation(&world.gateway, Rights::GATEWAY);
    let hello = world.connect(&world.gateway, Some(&delegation)).await.map(|_| ());
    assert_eq!(refused(hello), RefusalReason::Denied);
}

#[tokio::test]
async fn nobody_rents_before_the_operator_admits_them() {
    let world = World::with(|config| config.admit = holdfast_storage_node::Admission::default()).await;
    let peer = world.delegate(&world.gateway, Rights::GATEWAY).await;
    assert_eq!(refused(world.agree(&peer, MIB as u64).await), RefusalReason::Forbidden);
    world.node.admit(world.namespace_id());
    world.agree(&peer, MIB as u64).await.unwrap();
}

async fn successor(world: &World, peer: &Peer, capacity_bytes: u64) -> AgreementId {
    let mut terms = world.terms(capacity_bytes, 2);
    terms.start_ms += 90 * DAY_MS;
    terms.end_ms += 90 * DAY_MS;
    let terms = Signed::sign(terms, &world.namespace);
    peer.agree(&terms).await.unwrap().verify().unwrap().id()
}

#[tokio::test]
async fn claims_live_on_under_the_agreement_that_follows() {
    let world = World::new().await;
    let peer = world.delegate(&world.gateway, Rights::GATEWAY).await;
    // All that the node offers: the successor takes nothing, because it begins when the first one ends.
    let all = 512 * MIB as u64;
    let first = world.agree(&peer, all).await.unwrap();
    let second = successor(&world, &peer, all).await;
    let kept = world.keep(&peer, first, &bytes(5000, 1), 1).await;
    let provisional = bytes(5000, 2);
    world.put(&peer, first, &provisional, tag(1)).await.unwrap();
    let early = world.put(&peer, second, &bytes(10, 3), tag(1)).await;
    assert_eq!(refused(early), RefusalReason::NoAgreement);
    world.clock.advance(91 * DAY_MS);
    let peer = world.delegate(&world.gateway, Rights::GATEWAY).await;
    let provisional = ClaimRef(Digest::of(&provisional), tag(1));
    assert_eq!(has(&peer, second, &[kept, provisional]).await, vec![Held::Live, Held::Provisional]);
    assert_eq!(commit(&peer, second, &[provisional]).await.unwrap(), vec![BlockOutcome::Done]);
    let order = world.order(second, &[kept], &world.gateway);
    assert_eq!(peer.delete_blocks(&order).await.unwrap(), vec![BlockOutcome::Done]);
    assert_eq!(has(&peer, second, &[kept, provisional]).await, vec![Held::Trash, Held::Live]);
    world.keep(&peer, second, &bytes(10, 4), 1).await;
}

#[tokio::test]
async fn what_an_ended_agreement_keeps_counts_under_its_successor() {
    let world = World::new().await;
    let peer = world.delegate(&world.gateway, Rights::GATEWAY).await;
    // Two blocks of 1 MiB, each with its header page.
    let room = 2 * (MIB as u64 + 4096);
    let first = world.agree(&peer, room).await.unwrap();
    let second = successor(&world, &peer, room).await;
    world.keep(&peer, first, &bytes(MIB, 1), 1).await;
    world.clock.advance(91 * DAY_MS);
    let peer = world.delegate(&world.gateway, Rights::GATEWAY).await;
    world.keep(&peer, second, &bytes(MIB, 2), 1).await;
    assert_eq!(refused(world.put(&peer, second, &bytes(10, 3), tag(1)).await), RefusalReason::AgreementFull);
}

#[tokio::test]
async fn a_silent_namespace_does_not_hold_up_the_leases_of_others() {
    let world = World::new().await;
    let (peer, agreement) = world.gateway().await;
    // The silent one has a connection open and never answers on it; its lease ended first.
    let (silent_namespace, silent_gateway) = (key(60), key(61));
    let delegation = world.delegation_by(&silent_namespace, &silent_gateway, Rights::GATEWAY);
    let (silent, _) = world.connect(&silent_gateway, Some(&delegation)).await.unwrap();
    let mut terms = world.terms(16 << 20, 9);
    terms.namespace = NamespaceId(silent_namespace.public());
    let silent_agreement =
        silent.agree(&Signed::sign(terms, &silent_namespace)).await.unwrap().verify().unwrap().id();
    for seed in 0..3 {
        world.put(&silent, silent_agreement, &bytes(100, seed), tag(1)).await.unwrap();
    }
    world.clock.advance(HOUR_MS);
    world.put(&peer, agreement, &bytes(100, 9), tag(1)).await.unwrap();
    world.clock.advance(2 * HOUR_MS);
    let connection = peer.connection().clone();
    let (answered, mut was_answered) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut stream = connection.accept().await.unwrap();
        let request = read_request(stream.recv.as_mut(), &mut ByteQueue::new()).await.unwrap();
        let Some(Request::HasBlocks(question)) = request else { panic!("{request:?}") };
        let held = vec![Held::Live; question.claims.len()];
        let reply = Reply::HasBlocks(HasBlocksReply { held, disclaimer: None });
        write_reply(stream.send.as_mut(), &reply).await.unwrap();
        let _ = answered.send(());
    });
    use holdfast_protocol::time::Clock;
    let now_ms = world.clock.now_ms();
    // The answer comes while the other one is still being waited for.
    let round = world.node.keep_leases(now_ms);
    tokio::pin!(round);
    tokio::select! {
        _ = &mut round => panic!("the silent namespace was not waited for"),
        heard = was_answered.recv() => heard.unwrap(),
    }
    tokio::time::pause();
    let report = round.await;
    assert_eq!((report.committed, report.silent), (1, 3));
    // The next round leaves it alone for a while, so that others come first.
    assert_eq!(world.node.keep_leases(now_ms + 1000).await.silent, 0);
    assert_eq!(world.node.keep_leases(now_ms + HOUR_MS).await.silent, 3);
}

#[tokio::test]
async fn requests_for_chunks_have_a_rate_and_are_shown_to_the_operator() {
    use holdfast_protocol::message::{ByteRange, LeafUnit};
    use holdfast_storage_node::node::limits::CHALLENGE_BURST;
    let world = World::new().await;
    let (peer, agreement) = world.gateway().await;
    let block = bytes(20_000, 1);
    world.keep(&peer, agreement, &block, 1).await;
    let (digest, len) = (Digest::of(&block), BlockLen::of(&block).unwrap());
    let ask = || peer.read_leaves(digest, len, LeafUnit::Chunk, vec![ByteRange { start: 0, len: 1 }], None);
    let mut busy = 0;
    for _ in 0..CHALLENGE_BURST + 50 {
        busy += u32::from(ask().await.is_err_and(|error| error.is_retryable()));
    }
    assert_eq!(busy, 50);
    assert_eq!(world.node.watch().challenge_counts(), (u64::from(CHALLENGE_BURST), 0));
    assert_eq!(peer.read_whole(digest, len, None).await.unwrap(), block, "reads have no such rate");
    world.clock.advance(1000);
    ask().await.unwrap();
    let gone = peer
        .read_leaves(Digest::of(b"no"), len, LeafUnit::Chunk, vec![ByteRange { start: 0, len: 1 }], None)
        .await;
    assert_eq!(refused(gone.map(|_| ())), RefusalReason::NotFound);
    assert_eq!(world.node.watch().challenge_counts().1, 1);
}

#[tokio::test]
async fn a_bandwidth_limit_spreads_answers_over_time() {
    let world = World::with(|config| {
        config.bandwidth.send = "1MB/s".parse().unwrap();
    })
    .await;
    let (peer, agreement) = world.gateway().await;
    let block = bytes(200_000, 1);
    world.keep(&peer, agreement, &block, 1).await;
    let (digest, len) = (Digest::of(&block), BlockLen::of(&block).unwrap());
    let began = std::time::Instant::now();
    for _ in 0..4 {
        assert_eq!(peer.read_whole(digest, len, None).await.unwrap(), block);
    }
    // The first goes at once and pays for itself; the following three wait a fifth of a second each, never less.
    assert!(began.elapsed() >= std::time::Duration::from_millis(600), "{:?}", began.elapsed());
}
