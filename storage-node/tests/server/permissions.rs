//! Who may do what: every kind of peer against every kind of request.

use holdfast_protocol::framing::{ByteQueue, read_frame, write_frame};
use holdfast_protocol::limits::CLOCK_SKEW_MAX_MS;
use holdfast_protocol::message::{
    CommitBlocks, HasBlocks, RefusalReason, Reply, Request, RestoreBlocks, StatusQuery,
};
use holdfast_protocol::record::{
    AgreementId, ClaimRef, Delegation, Grant, GrantOps, PresentedGrant, Rights, Signed,
};
use holdfast_protocol::rpc::{CallError, Peer};
use holdfast_protocol::{BlockLen, Digest, NodeId, SigningKey};

use crate::world::{DAY_MS, HOUR_MS, World, bytes, commit, key, refused, scope, tag};

const NONE: Rights = Rights { read: false, write: false, delete: false, head: false, grant: false };

/// What each kind of change is refused with, in the order put, commit, has, delete, restore.
async fn changes(world: &World, peer: &Peer, who: &SigningKey, agreement: AgreementId) -> Vec<RefusalReason> {
    let block = bytes(10, 1);
    let claim = ClaimRef(Digest::of(&block), tag(1));
    let claims = vec![claim];
    let order = world.order(agreement, &claims, who);
    vec![
        refused(world.put(peer, agreement, &block, tag(1)).await),
        refused(commit(peer, agreement, &[claim]).await),
        refused(peer.has_blocks(HasBlocks { agreement, claims: claims.clone() }).await),
        refused(peer.delete_blocks(&order).await),
        refused(peer.restore_blocks(RestoreBlocks { agreement, claims }).await),
    ]
}

async fn read(peer: &Peer, digest: Digest, grant: Option<Box<PresentedGrant>>) -> Result<usize, CallError> {
    peer.read_whole(digest, BlockLen::new(10).unwrap(), grant).await.map(|bytes| bytes.len())
}

#[tokio::test]
async fn hello_comes_first() {
    let world = World::new().await;
    let connection = world.dial(&key(50)).await;
    let mut stream = connection.open().await.unwrap();
    let request = Request::Status(StatusQuery {});
    write_frame(stream.send.as_mut(), &request, &mut Vec::new()).await.unwrap();
    stream.send.finish().unwrap();
    let reply = read_frame::<Reply>(stream.recv.as_mut(), &mut ByteQueue::new()).await.unwrap();
    assert!(matches!(reply, Some(Reply::Refused(refusal)) if refusal.reason == RefusalReason::HelloFirst));
    let (peer, _) = Peer::hello(connection, world.hello(None)).await.unwrap();
    peer.status().await.unwrap();
}

#[tokio::test]
async fn a_stranger_may_change_nothing() {
    let world = World::new().await;
    let (_, agreement) = world.gateway().await;
    let peer = world.stranger(50).await;
    assert_eq!(changes(&world, &peer, &key(50), agreement).await, [RefusalReason::Forbidden; 5]);
    let terms = Signed::sign(world.terms(1, 9), &world.namespace);
    assert_eq!(refused(peer.agree(&terms).await), RefusalReason::Forbidden);
    assert_eq!(refused(peer.get_heads(world.namespace_id()).await), RefusalReason::Forbidden);
}

#[tokio::test]
async fn a_delegate_of_another_namespace_finds_no_agreement() {
    let world = World::new().await;
    let (owner, agreement) = world.gateway().await;
    let claim = world.keep(&owner, agreement, &bytes(10, 1), 1).await;
    let delegation = world.delegation_by(&key(60), &key(61), Rights::GATEWAY);
    let (peer, hello) = world.connect(&key(61), Some(&delegation)).await.unwrap();
    assert!(hello.agreement.is_none());
    assert_eq!(changes(&world, &peer, &key(61), agreement).await, [RefusalReason::NoAgreement; 5]);
    assert_eq!(refused(read(&peer, claim.0, None).await), RefusalReason::NotFound);
    assert_eq!(refused(peer.get_heads(world.namespace_id()).await), RefusalReason::Forbidden);
    let terms = Signed::sign(world.terms(1, 9), &world.namespace);
    assert_eq!(refused(peer.agree(&terms).await), RefusalReason::Forbidden);
}

#[tokio::test]
async fn every_right_is_needed_for_its_request() {
    let world = World::new().await;
    let (owner, agreement) = world.gateway().await;
    let claim = world.keep(&owner, agreement, &bytes(10, 1), 1).await;
    let nobody = world.delegate(&key(70), NONE).await;
    assert_eq!(changes(&world, &nobody, &key(70), agreement).await, [RefusalReason::Forbidden; 5]);
    assert_eq!(refused(read(&nobody, claim.0, None).await), RefusalReason::Forbidden);
    let reader = world.delegate(&key(71), Rights { read: true, ..NONE }).await;
    assert_eq!(read(&reader, claim.0, None).await.unwrap(), 10);
    assert_eq!(refused(world.put(&reader, agreement, &bytes(1, 5), tag(1)).await), RefusalReason::Forbidden);
    let writer = world.delegate(&key(72), Rights { write: true, ..NONE }).await;
    assert!(world.put(&writer, agreement, &bytes(1, 5), tag(1)).await.is_ok());
    assert_eq!(refused(read(&writer, claim.0, None).await), RefusalReason::Forbidden);
}

#[tokio::test]
async fn a_delegation_that_ends_ends_its_session_until_it_is_renewed() {
    let world = World::new().await;
    let (peer, agreement) = world.gateway().await;
    world.put(&peer, agreement, &bytes(10, 1), tag(1)).await.unwrap();
    world.clock.advance(41 * DAY_MS);
    let reasons = changes(&world, &peer, &world.gateway, agreement).await;
    assert_eq!(reasons, [RefusalReason::Expired; 5]);
    assert_eq!(refused(read(&peer, Digest::of(&bytes(10, 1)), None).await), RefusalReason::Expired);
    let renewed = world.delegation(&world.gateway, Rights::GATEWAY);
    let (peer, _) = Peer::hello(peer.connection().clone(), world.hello(Some(&renewed))).await.unwrap();
    world.put(&peer, agreement, &bytes(10, 1), tag(1)).await.unwrap();
}

#[tokio::test]
async fn bad_delegations_are_refused_at_hello() {
    let world = World::new().await;
    let good = world.delegation(&world.gateway, Rights::GATEWAY).into_record();
    let cases = [
        // Stolen: it names another delegate.
        (Signed::sign(good.clone(), &world.namespace), key(50), RefusalReason::Forbidden),
        // Signed by somebody else.
        (Signed::sign(good.clone(), &key(51)), world.gateway.clone(), RefusalReason::Forbidden),
        // Ended.
        (
            Signed::sign(Delegation { not_before_ms: 1, expires_ms: 2, ..good.clone() }, &world.namespace),
            world.gateway.clone(),
            RefusalReason::Expired,
        ),
    ];
    for (delegation, who, expected) in cases {
        assert_eq!(refused(world.connect(&who, Some(&delegation)).await), expected);
    }
    let mut skewed = world.hello(Some(&Signed::sign(good, &world.namespace)));
    skewed.now_ms += CLOCK_SKEW_MAX_MS + 60_000;
    let result = Peer::hello(world.dial(&world.gateway).await, skewed).await;
    let Err(CallError::Refused(refusal)) = result else { panic!("a wrong clock was accepted") };
    assert_eq!(refusal.reason, RefusalReason::Expired);
    assert!(refusal.message.contains("clock skew"), "{}", refusal.message);
}

#[tokio::test]
async fn public_blocks_are_for_everybody_and_private_ones_look_absent() {
    let world = World::new().await;
    let (peer, agreement) = world.gateway().await;
    let (public, private) = (bytes(10, 1), bytes(10, 2));
    let mut announced = world.announce(agreement, &public, tag(1));
    announced.scope = None;
    peer.put_block(announced, public.clone()).await.unwrap();
    world.put(&peer, agreement, &private, tag(1)).await.unwrap();
    let stranger = world.stranger(50).await;
    assert_eq!(read(&stranger, Digest::of(&public), None).await.unwrap(), 10);
    let here = refused(read(&stranger, Digest::of(&private), None).await);
    let absent = refused(read(&stranger, Digest::of(b"absent"), None).await);
    assert_eq!((here, absent), (RefusalReason::Forbidden, RefusalReason::Forbidden));
    // In trash it is nobody's but its namespace's.
    let order = world.order(agreement, &[ClaimRef(Digest::of(&public), tag(1))], &world.gateway);
    peer.delete_blocks(&order).await.unwrap();
    assert_eq!(refused(read(&stranger, Digest::of(&public), None).await), RefusalReason::Forbidden);
    assert_eq!(read(&peer, Digest::of(&public), None).await.unwrap(), 10);
}

#[tokio::test]
async fn a_grant_opens_its_scopes_to_its_holder() {
    let world = World::new().await;
    let (peer, agreement) = world.gateway().await;
    let claim = world.keep(&peer, agreement, &bytes(10, 1), 1).await;
    let reader = world.stranger(50).await;
    let good = world.grant(&key(50));
    assert_eq!(read(&reader, claim.0, world.sign_grant(good.clone())).await.unwrap(), 10);
    let now_ms = good.not_before_ms;
    let cases = [
        (Grant { holder: NodeId(key(51).public()), ..good.clone() }, RefusalReason::Forbidden),
        (Grant { scopes: vec![scope(8).unwrap()], ..good.clone() }, RefusalReason::Forbidden),
        (Grant { scopes: vec![], ..good.clone() }, RefusalReason::Forbidden),
        (Grant { ops: GrantOps { read: false, list: true }, ..good.clone() }, RefusalReason::Forbidden),
        (Grant { not_before_ms: 1, expires_ms: now_ms, ..good.clone() }, RefusalReason::Expired),
        (
            Grant { not_before_ms: now_ms + HOUR_MS, expires_ms: now_ms + DAY_MS, ..good.clone() },
            RefusalReason::Expired,
        ),
    ];
    for (grant, expected) in cases {
        assert_eq!(
            refused(read(&reader, claim.0, world.sign_grant(grant.clone())).await),
            expected,
            "{grant:?}"
        );
    }
    // A grant of another namespace's making says nothing about this one's block.
    let other = Grant { namespace: holdfast_protocol::NamespaceId(key(60).public()), ..good.clone() };
    let presented = PresentedGrant { grant: Signed::sign(other, &key(60)).to_wire(), delegation: None };
    assert_eq!(refused(read(&reader, claim.0, Some(Box::new(presented))).await), RefusalReason::NotFound);
    // Forged: names the namespace, signed by the reader.
    let presented = PresentedGrant { grant: Signed::sign(good, &key(50)).to_wire(), delegation: None };
    assert_eq!(refused(read(&reader, claim.0, Some(Box::new(presented))).await), RefusalReason::Forbidden);
}

#[tokio::test]
async fn a_gateway_may_grant_if_its_delegation_says_so() {
    let world = World::new().await;
    let (peer, agreement) = world.gateway().await;
    let claim = world.keep(&peer, agreement, &bytes(10, 1), 1).await;
    let reader = world.stranger(50).await;
    for (rights, allowed) in [(Rights::GATEWAY, true), (Rights { grant: false, ..Rights::GATEWAY }, false)] {
        let presented = PresentedGrant {
            grant: Signed::sign(world.grant(&key(50)), &world.gateway).to_wire(),
            delegation: Some(world.delegation(&world.gateway, rights).to_wire()),
        };
        let result = read(&reader, claim.0, Some(Box::new(presented))).await;
        assert_eq!(result.is_ok(), allowed, "{rights:?}: {result:?}");
    }
}

#[tokio::test]
async fn a_grants_byte_budget_is_spent_by_reading() {
    let world = World::new().await;
    let (peer, agreement) = world.gateway().await;
    let claim = world.keep(&peer, agreement, &bytes(10, 1), 1).await;
    let reader = world.stranger(50).await;
    let grant = world.sign_grant(Grant { byte_budget: 25, ..world.grant(&key(50)) });
    assert!(read(&reader, claim.0, grant.clone()).await.is_ok());
    assert!(read(&reader, claim.0, grant.clone()).await.is_ok());
    assert_eq!(refused(read(&reader, claim.0, grant).await), RefusalReason::BudgetSpent);
}

#[tokio::test]
async fn claims_under_one_agreement_are_out_of_reach_of_another() {
    let world = World::new().await;
    let (owner, agreement) = world.gateway().await;
    let claim = world.keep(&owner, agreement, &bytes(10, 1), 1).await;
    // The other namespace has an agreement of its own, so it is a delegate in good standing.
    let delegation = world.delegation_by(&key(60), &key(61), Rights::GATEWAY);
    let (other, _) = world.connect(&key(61), Some(&delegation)).await.unwrap();
    let mut terms = world.terms(1_000_000, 2);
    terms.namespace = holdfast_protocol::NamespaceId(key(60).public());
    let theirs = other.agree(&Signed::sign(terms, &key(60))).await.unwrap().verify().unwrap().id();
    assert_eq!(changes(&world, &other, &key(61), agreement).await, [RefusalReason::NoAgreement; 5]);
    // Under its own agreement the claim is not there, and its commit cannot adopt a block that it never had.
    let request = CommitBlocks { agreement: theirs, claims: vec![claim], retain_until_ms: 0 };
    let outcomes = other.commit_blocks(request).await.unwrap();
    assert_eq!(outcomes, vec![holdfast_protocol::message::BlockOutcome::Absent]);
    assert_eq!(refused(read(&other, claim.0, None).await), RefusalReason::NotFound);
}
