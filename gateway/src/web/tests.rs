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
