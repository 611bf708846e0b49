//! Agree, heads, node record and status.

use holdfast_protocol::message::RefusalReason;
use holdfast_protocol::record::{
    Agreement, Head, InstanceId, NodeRecord, PresentedHead, Rights, Signed, Unverified,
};
use holdfast_protocol::{Digest, NodeId, OperatorId};
use holdfast_storage_node::{Admission, Node, NodeConfig};

use crate::world::{DAY_MS, MIB, World, bytes, key, refused};

#[tokio::test]
async fn the_same_terms_get_the_same_agreement_also_after_a_restart() {
    let mut world = World::new().await;
    let (peer, agreement) = world.gateway().await;
    assert_eq!(world.agree(&peer, 64 * MIB as u64).await.unwrap(), agreement);
    assert_eq!(world.node.agreements().len(), 1);
    world.restart().await;
    let delegation = world.delegation(&world.gateway, Rights::GATEWAY);
    let (peer, hello) = world.connect(&world.gateway, Some(&delegation)).await.unwrap();
    assert_eq!(hello.agreement.unwrap().verify().unwrap().id(), agreement);
    assert_eq!(world.agree(&peer, 64 * MIB as u64).await.unwrap(), agreement);
    assert_eq!(peer.status().await.unwrap().agreements, 1);
}

#[tokio::test]
async fn a_node_promises_no_more_than_it_offers() {
    let world = World::new().await;
    let (peer, _) = world.gateway().await;
    let rest = 448 * MIB as u64;
    let propose = |terms: Agreement| Signed::sign(terms, &world.namespace);
    assert_eq!(refused(peer.agree(&propose(world.terms(rest + 1, 2))).await), RefusalReason::AgreementFull);
    // A renewal begins where its predecessor ends, and so finds the same room.
    let mut renewal = world.terms(64 * MIB as u64, 3);
    renewal.start_ms = world.terms(1, 1).end_ms;
    renewal.end_ms = renewal.start_ms + 90 * DAY_MS;
    peer.agree(&propose(renewal)).await.unwrap().verify().unwrap();
    peer.agree(&propose(world.terms(rest, 4))).await.unwrap();
    assert_eq!(refused(peer.agree(&propose(world.terms(1, 5))).await), RefusalReason::AgreementFull);
}

#[tokio::test]
async fn terms_must_name_this_node_its_operator_and_a_time_ahead() {
    let world = World::new().await;
    let (peer, _) = world.gateway().await;
    let good = world.terms(1, 2);
    let cases = [
        (Agreement { node: NodeId(key(9).public()), ..good.clone() }, RefusalReason::Forbidden),
        (Agreement { operator: OperatorId(key(9).public()), ..good.clone() }, RefusalReason::Forbidden),
        (Agreement { start_ms: 1, end_ms: 2, notice_ms: 0, ..good.clone() }, RefusalReason::Expired),
    ];
    for (terms, expected) in cases {
        assert_eq!(refused(peer.agree(&Signed::sign(terms, &world.namespace)).await), expected);
    }
    assert_eq!(refused(peer.agree(&Signed::sign(good, &key(9))).await), RefusalReason::Forbidden);
}

#[tokio::test]
async fn only_admitted_namespaces_rent() {
    let world = World::with(|config| config.admit = Admission::Listed(vec![])).await;
    let peer = world.delegate(&world.gateway, Rights::GATEWAY).await;
    assert_eq!(refused(world.agree(&peer, 1).await), RefusalReason::Forbidden);
}

fn head(world: &World, instance: u8, seq: u64) -> PresentedHead {
    let head = Head {
        v: 1,
        namespace: world.namespace_id(),
        instance: InstanceId([instance; 16]),
        seq,
        journal_tip: Some(Digest::of(b"tip")),
        checkpoint: None,
        issued_ms: world.terms(1, 1).start_ms,
    };
    PresentedHead {
        head: Signed::sign(head, &world.gateway).to_wire(),
        delegation: world.delegation(&world.gateway, Rights::GATEWAY).to_wire(),
    }
}

#[tokio::test]
async fn the_highest_head_of_each_instance_is_kept() {
    let mut world = World::new().await;
    let (peer, _) = world.gateway().await;
    for (instance, seq, kept) in [(1, 5, 5), (1, 4, 5), (1, 8, 8), (2, 1, 1)] {
        assert_eq!(peer.put_head(head(&world, instance, seq)).await.unwrap(), kept);
    }
    world.restart().await;
    world.clock.advance(50 * DAY_MS);
    let peer = world.delegate(&world.gateway, Rights::GATEWAY).await;
    let heads = peer.get_heads(world.namespace_id()).await.unwrap();
    let mut seqs: Vec<u64> = heads.iter().map(|head| head.head.verify().unwrap().record().seq).collect();
    seqs.sort_unstable();
    assert_eq!(seqs, vec![1, 8]);
}

#[tokio::test]
async fn heads_need_the_right_and_an_agreement() {
    let world = World::new().await;
    let peer = world.delegate(&world.gateway, Rights::GATEWAY).await;
    assert_eq!(refused(peer.put_head(head(&world, 1, 1)).await), RefusalReason::NoAgreement);
    world.agree(&peer, 1).await.unwrap();
    let weak = world.delegate(&key(3), Rights { head: false, ..Rights::GATEWAY }).await;
    assert_eq!(refused(weak.put_head(head(&world, 1, 1)).await), RefusalReason::Forbidden);
    let mut forged = head(&world, 1, 1);
    forged.head = Signed::sign(forged.head.verify().unwrap().into_record(), &key(9)).to_wire();
    assert_eq!(refused(peer.put_head(forged).await), RefusalReason::Forbidden);
}

#[tokio::test]
async fn a_node_record_is_signed_and_its_sequence_rises() {
    let world = World::new().await;
    world.node.advertise(vec!["127.0.0.1:7400".parse().unwrap()]);
    let delegation = world.delegation(&world.gateway, Rights::GATEWAY);
    let (_, hello) = world.connect(&world.gateway, Some(&delegation)).await.unwrap();
    let wire: Unverified<NodeRecord> = hello.node_record.unwrap();
    let first = wire.verify_by(world.node.id().key()).unwrap().into_record();
    assert_eq!(first.addresses, vec!["127.0.0.1:7400".to_owned()]);
    assert_eq!(first.capacity_bytes, 512 * MIB as u64);
    assert!(world.node.record(first.issued_ms).record().seq > first.seq);
}

#[tokio::test]
async fn every_byte_is_accounted_for() {
    let world = World::new().await;
    let (peer, agreement) = world.gateway().await;
    let claim = world.keep(&peer, agreement, &bytes(100_000, 1), 1).await;
    world.keep(&peer, agreement, &bytes(50_000, 2), 1).await;
    peer.delete_blocks(&world.order(agreement, &[claim], &world.gateway)).await.unwrap();
    let status = peer.status().await.unwrap();
    let occupied = status.used_bytes + status.trash_bytes + status.garbage_bytes;
    assert_eq!(status.capacity_bytes, occupied + status.free_bytes);
    assert_eq!((status.blocks, status.paid_bytes), (1, 50_000));
    assert!(status.trash_bytes >= 100_000 && status.refusing_writes.is_empty());
}

#[tokio::test]
async fn a_directory_has_one_node_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let config = NodeConfig::new(dir.path(), 64 * MIB as u64);
    let node = Node::open(config.clone()).await.unwrap();
    let second = Node::open(config).await;
    assert!(matches!(second, Err(holdfast_storage_node::OpenNodeError::Locked { .. })));
    node.close().await.unwrap();
}
