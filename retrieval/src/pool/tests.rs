//! The pool against nodes that come and go.

use tokio::time::advance;

use super::*;
use crate::testing::{Behaviour, TestNetwork};

#[tokio::test]
async fn one_connection_serves_all_callers() {
    let test = TestNetwork::start(1).await;
    let id = test.nodes[0].id();
    let peers = futures::future::join_all((0..20).map(|_| test.pool.peer(id))).await;
    let first = Arc::clone(peers[0].as_ref().unwrap().connection());
    assert!(peers.iter().all(|peer| Arc::ptr_eq(peer.as_ref().unwrap().connection(), &first)));
}

#[tokio::test]
async fn strangers_are_not_dialled() {
    let test = TestNetwork::start(1).await;
    let stranger = NodeId(crate::testing::key(77).public());
    assert!(matches!(test.pool.peer(stranger).await, Err(PoolError::Unknown { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_gone_is_left_alone_until_the_back_off_ends() {
    let test = TestNetwork::start(1).await;
    let node = &test.nodes[0];
    node.vanish().await;
    assert!(matches!(test.pool.peer(node.id()).await, Err(PoolError::Dial { .. })));
    assert!(test.pool.node(node.id()).unwrap().state.is_down());
    let error = test.pool.peer(node.id()).await.unwrap_err();
    assert!(matches!(error, PoolError::BackingOff { failures: 1, .. }) && error.is_retryable());
    node.come_back();
    advance(Duration::from_millis(251)).await;
    test.pool.peer(node.id()).await.unwrap();
    // Hello alone does not make up for having been gone; the first answer does.
    assert!(test.pool.node(node.id()).unwrap().state.is_down());
    test.pool.check_all().await;
    assert_eq!(test.pool.node(node.id()).unwrap().state, NodeState::Up);
}

#[tokio::test(start_paused = true)]
async fn upkeep_notices_who_left_and_who_came_back() {
    let test = TestNetwork::start(3).await;
    let _upkeep = test.pool.start_upkeep();
    let node = &test.nodes[1];
    let state = || test.pool.node(node.id()).unwrap().state;
    node.vanish().await;
    advance(Duration::from_secs(5)).await;
    until(|| state().is_down()).await;
    node.come_back();
    until(|| !state().is_down()).await;
    assert_eq!(test.pool.node(test.nodes[0].id()).unwrap().state, NodeState::Up);
}

#[tokio::test(start_paused = true)]
async fn upkeep_takes_a_node_that_answers_nothing_for_down() {
    let test = TestNetwork::start(2).await;
    let _upkeep = test.pool.start_upkeep();
    test.nodes[0].behave(Behaviour::Stall);
    let state = || test.pool.node(test.nodes[0].id()).unwrap().state;
    until(|| state().is_down()).await;
    test.nodes[0].behave(Behaviour::Honest);
    until(|| !state().is_down()).await;
}

/// Lets paused time pass until it is so; a minute at most.
async fn until(holds: impl Fn() -> bool) {
    for _ in 0..600 {
        if holds() {
            return;
        }
        advance(Duration::from_millis(100)).await;
        tokio::task::yield_now().await;
    }
    panic!("a minute passed and it still does not hold");
}

#[tokio::test]
async fn an_agreement_named_in_hello_is_taken_up_again() {
    let mut test = TestNetwork::start(1).await;
    let node = Arc::clone(&test.nodes[0]);
    let first = test.pool.agreement(node.id()).unwrap();
    // A gateway that restarts knows the node, not the agreement.
    test.pool.remove(node.id());
    let known = test.known(&node, 0);
    test.pool.upsert(known).unwrap();
    assert_eq!(test.pool.agreement(node.id()), None);
    test.clock.advance(1000);
    assert_eq!(test.agree(&node).await.id(), first);
    assert_eq!(test.add_node().await.block_count(), 0);
}

#[tokio::test]
async fn a_node_that_cannot_be_dialled_is_reached_by_its_own_connection() {
    use holdfast_protocol::transport::Transport;
    let test = TestNetwork::start(1).await;
    let id = test.nodes[0].id();
    test.nodes[0].vanish().await;
    // The node's process joins anew and dials the gateway's transport itself.
    let home = test.network.join(id);
    let gateway = test.network.join(test.pool.local_id());
    let dialled = home.dial(test.pool.local_id(), &[]).await.unwrap();
    tokio::spawn(Arc::clone(&test.nodes[0]).serve(dialled));
    let connection = gateway.accept().await.unwrap();
    let reply = test.pool.adopt(connection).await.unwrap();
    assert_eq!(reply.software, "fake node");
    assert_eq!(test.pool.peer(id).await.unwrap().id(), id);
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_on_a_replaced_connection_is_answered() {
    let test = TestNetwork::start(1).await;
    let id = test.nodes[0].id();
    test.pool.upsert(test.known(&test.nodes[0], 0)).unwrap();
    let gateway = test.network.join(test.pool.local_id());
    let home = test.network.join(id);
    let mut peers = Vec::new();
    for _ in 0..3 {
        let dialled = home.dial(test.pool.local_id(), &[]).await.unwrap();
        tokio::spawn(Arc::clone(&test.nodes[0]).serve(dialled));
        test.pool.adopt(gateway.accept().await.unwrap()).await.unwrap();
        peers.push(test.pool.peer(id).await.unwrap());
    }
    assert!(peers[0].connection().is_closed(), "one replaced connection is kept, no more");
    peers[1].status().await.unwrap();
    assert!(!test.pool.is_down(id));
    advance(Duration::from_secs(11)).await;
    tokio::task::yield_now().await;
    assert!(peers[1].connection().is_closed() && !peers[2].connection().is_closed());
}

#[tokio::test]
async fn new_connections_are_handed_to_the_owner() {
    let seen: Arc<Mutex<Vec<NodeId>>> = Arc::default();
    let test = TestNetwork::start(2).await;
    let mut config = PoolConfig::new(
        test.network.join(NodeId(crate::testing::key(3).public())),
        "another gateway",
        Arc::clone(&test.clock) as Arc<dyn Clock>,
    );
    let list = Arc::clone(&seen);
    config.on_connected = Some(Arc::new(move |id, _| list.lock().push(id)));
    let pool = NodePool::new(config);
    for (node, index) in test.nodes.iter().zip(0..) {
        pool.upsert(test.known(node, index)).unwrap();
        pool.peer(node.id()).await.unwrap();
        pool.peer(node.id()).await.unwrap();
    }
    assert_eq!(*seen.lock(), test.nodes.iter().map(|node| node.id()).collect::<Vec<_>>());
}

#[tokio::test]
async fn reports_move_state_figures_and_the_list_of_culprits() {
    let test = TestNetwork::start(1).await;
    let id = test.nodes[0].id();
    for ms in 1..=20u64 {
        test.pool.report(id, Outcome::Ok { latency: Duration::from_millis(ms), bytes: 100 });
    }
    let view = test.pool.node(id).unwrap();
    assert_eq!((view.small.p95, view.small.samples), (Duration::from_millis(19), 20));
    assert_eq!(view.large.samples, 0);
    test.pool.report(id, Outcome::Failed);
    assert!(test.pool.node(id).unwrap().state.is_down());
    test.pool.report(id, Outcome::Lied { what: "wrong bytes".into(), digest: None });
    assert_eq!(test.pool.culprits()[0].what, "wrong bytes");
    assert_eq!(test.pool.node(id).unwrap().lies, 1);
}

#[tokio::test]
async fn news_of_a_node_do_not_take_its_agreement_away() {
    let test = TestNetwork::start(1).await;
    let node = &test.nodes[0];
    let agreement = test.pool.agreement(node.id());
    assert!(agreement.is_some());
    let news = KnownNode { free_bytes: 5, ..test.known(node, 0) };
    test.pool.upsert(news).unwrap();
    assert_eq!(test.pool.agreement(node.id()), agreement);
    assert_eq!(test.pool.node(node.id()).unwrap().known.free_bytes, 5);
}
