//! The admin API without a network: who may ask, and what is answered.

use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::http::{Method, Request, StatusCode, header};
use holdfast_protocol::time::{Clock, SystemClock};
use holdfast_protocol::transport::memory::MemoryNetwork;
use tower::ServiceExt;

use super::*;
use crate::config::GatewayConfig;
use crate::crypt::NamespaceKeys;
use crate::keys::trail::Trail;
use crate::keys::{AccessKeys, GatewayKeys};
use crate::meta::{Meta, NewBucket, RocksConfig, RocksStore};

struct World {
    core: Arc<Core>,
    _dir: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let keys = GatewayKeys::load_or_create(dir.path(), "test", SystemClock.now_ms()).unwrap();
        let transport = MemoryNetwork::new().join(keys.node_id());
        let store = RocksStore::open(&RocksConfig::new(dir.path().join("meta"))).unwrap();
        let namespace = NamespaceKeys::new(keys.root().clone(), keys.namespace_id());
        let meta = Meta::open(store, namespace, Arc::new(SystemClock)).await.unwrap();
        let root = keys.root().clone();
        let config = GatewayConfig::new(dir.path().to_owned(), keys, transport);
        let access = AccessKeys::single_beside("HOLDTESTKEY", "secret", Arc::clone(&meta), root.expose());
        let trail = Trail::open(dir.path(), &root).unwrap();
        let (core, _) = Core::over_network(config, meta, access, Some(trail), None);
        Self { core, _dir: dir }
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: &str,
    ) -> (StatusCode, String) {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body.to_owned()))
            .unwrap();
        let response = router(Arc::clone(&self.core)).oneshot(request).await.unwrap();
        let status = response.status();
        let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    fn token(&self) -> String {
        self.core.config.keys.admin_token().expose().to_owned()
    }
}

#[tokio::test]
async fn admin_calls_take_the_token_and_nothing_else() {
    let world = World::new().await;
    let admin = ["/api/v1/nodes", "/api/v1/culprits", "/api/v1/repair", "/api/v1/objects?bucket=x"];
    for path in admin {
        for token in [None, Some("wrong"), Some("")] {
            let (status, body) = world.call(Method::GET, path, token, "").await;
            assert_eq!(status, StatusCode::UNAUTHORIZED, "{path}");
            assert!(body.contains("admin-token"), "{body}");
        }
        let (status, _) = world.call(Method::GET, path, Some(&world.token()), "").await;
        assert_ne!(status, StatusCode::UNAUTHORIZED, "{path}");
    }
    let (status, body) = world.call(Method::GET, "/admin", None, "").await;
    assert_eq!(status, StatusCode::UNAUTHORIZED, "{body}");
    let (status, body) = world.call(Method::GET, "/admin", Some(&world.token()), "").await;
    assert!(status == StatusCode::OK && body.contains("<h2>Nodes</h2>"), "{body}");
    assert!(!world.call(Method::GET, "/", None, "").await.1.contains("<h2>Nodes</h2>"));
    for path in ["/", "/api/v1/status", "/api/v1/openapi.json"] {
        assert_eq!(world.call(Method::GET, path, None, "").await.0, StatusCode::OK, "{path}");
    }
}

#[tokio::test]
async fn health_says_what_is_missing() {
    let world = World::new().await;
    let (status, body) = world.call(Method::GET, "/healthz", None, "").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    let health: api::Health = serde_json::from_str(&body).unwrap();
    assert!(!health.ready && health.problems[0].contains("needs 5 nodes"), "{body}");
}

#[tokio::test]
async fn records_that_are_none_are_refused_with_a_reason() {
    let world = World::new().await;
    for (body, reason) in [("{\"record\":\"***\"}", "base64"), ("{\"record\":\"AAAA\"}", "node record")] {
        let (status, answer) = world.call(Method::POST, "/api/v1/nodes", Some(&world.token()), body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(answer.contains(reason), "{answer}");
    }
    let (status, _) = world.call(Method::DELETE, "/api/v1/nodes/nobody", Some(&world.token()), "").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_challenge_without_objects_names_nothing_and_still_gives_rights() {
    let world = World::new().await;
    let bucket = NewBucket {
        name: "b".repeat(3),
        public: false,
        policy: holdfast_protocol::record::PolicyName::Local,
        features: crate::meta::Features::default(),
    };
    world.core.meta.create_bucket(bucket).await.unwrap();
    let holder = world.core.config.keys.node_id().to_string();
    let ask = format!("{{\"holder\":\"{holder}\",\"blocks_per_node\":5}}");
    let (status, body) = world.call(Method::POST, "/api/v1/challenge", Some(&world.token()), &ask).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let answer: api::ChallengeTargets = serde_json::from_str(&body).unwrap();
    assert!(answer.targets.is_empty() && answer.delegation.is_some());
    let bad = "{\"holder\":\"me\",\"blocks_per_node\":5}";
    let (status, _) = world.call(Method::POST, "/api/v1/challenge", Some(&world.token()), bad).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn the_document_describes_every_route() {
    let world = World::new().await;
    let document: serde_json::Value = serde_json::from_str(openapi::DOCUMENT).unwrap();
    let token = world.token();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            let method: Method = method.to_uppercase().parse().unwrap();
            let path = path.replace("{id}", "nobody");
            let (status, _) = world.call(method.clone(), &path, Some(&token), "{}").await;
            assert!(
                status != StatusCode::METHOD_NOT_ALLOWED
                    && (status != StatusCode::NOT_FOUND
                        || path.contains("objects")
                        || path.contains("snapshots/")),
                "{method} {path} is described and not served"
            );
        }
    }
}

#[tokio::test]
async fn access_keys_are_made_listed_rotated_and_revoked_and_the_trail_says_so() {
    let world = World::new().await;
    let token = world.token();
    let rules = r#"{"grants":[{"bucket":"data","prefix":"v1/","operations":["read","list"]}],"requests_per_second":50}"#;
    let body = format!(r#"{{"person":"alice","rules":{rules}}}"#);
    let (status, _) = world.call(Method::POST, "/api/v1/keys", None, &body).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    let (status, made) = world.call(Method::POST, "/api/v1/keys", Some(&token), &body).await;
    assert_eq!(status, StatusCode::OK, "{made}");
    let made: api::KeyMade = serde_json::from_str(&made).unwrap();
    assert_eq!(made.rules.requests_per_second, Some(50));
    let (status, _) = world
        .call(Method::POST, "/api/v1/keys", Some(&token), r#"{"person":"bob","rules":{"grants":[]}}"#)
        .await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let path = format!("/api/v1/keys/{}/rotate", made.access_key);
    let (status, fresh) = world.call(Method::POST, &path, Some(&token), "{}").await;
    assert_eq!(status, StatusCode::OK, "{fresh}");
    let fresh: api::KeyMade = serde_json::from_str(&fresh).unwrap();
    let path = format!("/api/v1/keys/{}", fresh.access_key);
    assert_eq!(world.call(Method::DELETE, &path, Some(&token), "").await.0, StatusCode::OK);
    let (_, list) = world.call(Method::GET, "/api/v1/keys", Some(&token), "").await;
    assert!(!list.contains(&made.secret_key) && !list.contains(&fresh.secret_key));
    let list: api::KeyList = serde_json::from_str(&list).unwrap();
    assert_eq!(list.keys.len(), 2);
    assert!(list.keys.iter().all(|key| !key.live && key.person == "alice"));
    world.core.trail.as_ref().unwrap().close();
    let (_, trail) = world.call(Method::GET, "/api/v1/trail?person=admin", Some(&token), "").await;
    let trail: api::TrailList = serde_json::from_str(&trail).unwrap();
    let deeds: Vec<_> = trail.entries.iter().map(|entry| &entry.operation[..]).collect();
    assert_eq!(deeds, ["CreateAccessKey", "RotateAccessKey", "RevokeAccessKey"]);
    assert!(trail.chain_holds);
}

/// A node's signed record; nothing listens at its address.
fn record(seed: u8, now_ms: u64, seq: u64) -> String {
    use holdfast_protocol::record::{NodeRecord, Prices, Reachability, Record, Signed};
    let key = holdfast_protocol::SigningKey::from_seed(&[seed; 32]).unwrap();
    let id = holdfast_protocol::NodeId(key.public());
    let record = NodeRecord {
        v: NodeRecord::VERSION,
        node: id,
        operator: holdfast_protocol::OperatorId(id.key()),
        addresses: vec!["192.0.2.1:7400".to_owned()],
        capacity_bytes: 1 << 30,
        free_bytes: 1 << 30,
        prices: Prices::default(),
        reachability: Reachability::Unknown,
        asn: 0,
        software: "test".to_owned(),
        seq,
        issued_ms: now_ms,
        expires_ms: now_ms + 3_600_000,
    };
    let wire = Signed::sign(record, &key).to_wire();
    serde_json::to_string(&api::AddNode::from_wire_bytes(&holdfast_protocol::cbor::encode(&wire))).unwrap()
}

async fn invite(world: &World, nodes: u32) -> String {
    let ask = format!(r#"{{"nodes":{nodes},"valid_s":60,"gateways":["http://192.0.2.9:8080"]}}"#);
    let (status, body) = world.call(Method::POST, "/api/v1/invites", Some(&world.token()), &ask).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    serde_json::from_str::<api::Invited>(&body).unwrap().invite
}

#[tokio::test]
async fn an_invite_lets_in_as_many_nodes_as_it_says_and_nothing_else() {
    let world = World::new().await;
    let now_ms = SystemClock.now_ms();
    let invite = invite(&world, 1).await;
    for path in ["/api/v1/nodes", "/api/v1/repair", "/api/v1/culprits"] {
        let (status, _) = world.call(Method::GET, path, Some(&invite), "").await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{path}");
    }
    let (status, _) = world.call(Method::POST, "/api/v1/invites", Some(&invite), "{}").await;
    assert_eq!(status, StatusCode::UNAUTHORIZED, "invites breed no invites");
    // Nothing listens there, so the node is told to dial in, and is expected.
    let (status, body) =
        world.call(Method::POST, "/api/v1/nodes", Some(&invite), &record(1, now_ms, 1)).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let joined: api::Joined = serde_json::from_str(&body).unwrap();
    assert_eq!(joined.reachability, "dial_out");
    // The same node may ask again; another one finds the invite used.
    let again = world.call(Method::POST, "/api/v1/nodes", Some(&invite), &record(1, now_ms, 2)).await;
    assert_eq!(again.0, StatusCode::OK, "{}", again.1);
    let (status, body) =
        world.call(Method::POST, "/api/v1/nodes", Some(&invite), &record(2, now_ms, 1)).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert!(body.contains("for 1 nodes"), "{body}");
}

#[tokio::test]
async fn nobody_comes_without_a_pass_or_with_a_forged_one() {
    let world = World::new().await;
    let now_ms = SystemClock.now_ms();
    let other = World::new().await;
    let foreign = invite(&other, 5).await;
    let mut forged = invite(&world, 5).await;
    let last = forged.pop().unwrap();
    forged.push(if last == 'A' { 'B' } else { 'A' });
    for token in [None, Some("wrong"), Some(foreign.as_str()), Some(forged.as_str())] {
        let (status, body) = world.call(Method::POST, "/api/v1/nodes", token, &record(1, now_ms, 1)).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{body}");
        let ask = r#"{"node":"z6MkjchhfUsD6mmvni8mCdXHw216Xrm9bQe2mBH1P5RDjVJG","addresses":[]}"#;
        let (status, body) = world.call(Method::POST, "/api/v1/dialback", token, ask).await;
        assert_ne!(status, StatusCode::OK, "{body}");
    }
    let over = record(1, now_ms - 7_200_000, 1);
    let (status, body) = world.call(Method::POST, "/api/v1/nodes", Some(&world.token()), &over).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(body.contains("clock"), "{body}");
}
