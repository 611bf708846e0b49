//! The web side without a network: what is shown, and who may press the switches.

use axum::body::{Body, to_bytes};
use axum::http::Method;
use tower::ServiceExt;

use super::*;
use crate::node::watch::{ChallengeSeen, Sample};
use crate::node::{Mode, NodeConfig, Reach};

struct World {
    web: Web,
    dir: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let node = Node::open(NodeConfig::new(dir.path(), 256 << 20)).await.unwrap();
        let token = ControlToken::make(dir.path()).unwrap();
        let places = Arc::new(tokio::sync::Semaphore::new(2));
        Self { web: Web { node, token, metrics: None, places }, dir }
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: &str,
    ) -> (StatusCode, String) {
        let mut request =
            Request::builder().method(method).uri(path).header(header::CONTENT_TYPE, "application/json");
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Body::from(body.to_owned())).unwrap();
        let response = router(self.web.clone()).oneshot(request).await.unwrap();
        let status = response.status();
        let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    async fn close(self) {
        self.web.node.close().await.unwrap();
    }
}

#[tokio::test]
async fn reading_is_free_and_switches_take_the_token() {
    let world = World::new().await;
    for path in ["/", "/healthz", "/api/v1/status"] {
        assert_eq!(world.call(Method::GET, path, None, "").await.0, StatusCode::OK, "{path}");
    }
    let pause = r#"{"mode":"paused"}"#;
    for token in [None, Some("wrong"), Some("")] {
        assert_eq!(world.call(Method::POST, "/api/v1/mode", token, pause).await.0, StatusCode::UNAUTHORIZED);
    }
    assert_eq!(world.web.node.mode(), Mode::Serving);
    let token = ControlToken::read(world.dir.path()).unwrap();
    let (status, body) = world.call(Method::POST, "/api/v1/mode", Some(&token), pause).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    assert_eq!(world.web.node.mode(), Mode::Paused);
    let (_, status) = world.call(Method::GET, "/api/v1/status", None, "").await;
    let report: NodeReport = serde_json::from_str(&status).unwrap();
    assert_eq!(report.refusing_writes, "paused by its operator");
    assert_eq!(
        report.capacity_bytes,
        report.used_bytes + report.trash_bytes + report.garbage_bytes + report.free_bytes
    );
    let left = world.call(Method::POST, "/api/v1/mode", Some(&token), r#"{"mode":"left"}"#).await;
    assert_eq!(left.0, StatusCode::BAD_REQUEST);
    world.close().await;
}

#[tokio::test]
async fn the_deny_list_is_changed_line_by_line() {
    let world = World::new().await;
    let token = ControlToken::read(world.dir.path()).unwrap();
    let digest = holdfast_protocol::Digest::of(b"x");
    let line = format!(r#"{{"what":"{digest}","reason":"court order"}}"#);
    let deny = world.call(Method::POST, "/api/v1/deny", Some(&token), &line).await;
    assert_eq!(deny.0, StatusCode::OK, "{}", deny.1);
    let (_, lines) = world.call(Method::GET, "/api/v1/deny", Some(&token), "").await;
    assert!(lines.contains("court order") && lines.contains(&digest.to_string()), "{lines}");
    let nonsense =
        world.call(Method::POST, "/api/v1/deny", Some(&token), r#"{"what":"this and that"}"#).await;
    assert_eq!(nonsense.0, StatusCode::BAD_REQUEST);
    assert_eq!(world.call(Method::POST, "/api/v1/allow", Some(&token), &line).await.0, StatusCode::OK);
    assert_eq!(world.call(Method::POST, "/api/v1/allow", Some(&token), &line).await.0, StatusCode::NOT_FOUND);
    world.close().await;
}

#[tokio::test]
async fn an_alarm_is_unhealthy_and_is_shown_with_its_remedy() {
    let world = World::new().await;
    world.web.node.watch().set_reach(Reach::Unreachable { why: "<b>no route</b>".to_owned() });
    let (status, body) = world.call(Method::GET, "/healthz", None, "").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(body.contains("unreachable"), "{body}");
    let (_, page) = world.call(Method::GET, "/", None, "").await;
    assert!(
        page.contains("&lt;b&gt;no route") && !page.contains("<b>no route"),
        "what peers say is no markup"
    );
    assert!(page.contains("holdfast node doctor"), "every alarm comes with a remedy");
    world.close().await;
}

#[tokio::test]
async fn the_page_draws_a_month_of_samples_in_bounds() {
    let world = World::new().await;
    let samples: Vec<Sample> = (0..4320u64)
        .map(|at| Sample {
            at_ms: at * 600_000,
            used_bytes: at * 1_000_000,
            trash_bytes: 5_000_000,
            capacity_bytes: 5_000_000_000,
            served_bytes: 0,
            taken_bytes: 0,
        })
        .collect();
    let seen = ChallengeSeen {
        at_ms: 1,
        peer: "z6MkPeer".to_owned(),
        digest: "bafkr4idigest".to_owned(),
        chunks: 2,
        refused: "NotFound: gone".to_owned(),
    };
    let report = world.web.node.report().await;
    let page = page::render(&report, &samples, &vec![seen; 40], 4320 * 600_000);
    assert!(page.len() < 64 * 1024, "{} bytes", page.len());
    assert!(page.contains("<svg") && page.contains("NotFound: gone"));
    world.close().await;
}

#[tokio::test]
async fn alerts_are_posted_when_something_begins_and_ends() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let world = World::new().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let node = world.web.node.clone();
    node.watch().set_reach(Reach::Unreachable { why: "the cable".to_owned() });
    let stop = CancellationToken::new();
    let webhook = Webhook::new(&format!("http://{address}/hook?x=1")).unwrap();
    let alerts = Alerts::new(node.clone(), webhook).looking_every(std::time::Duration::from_millis(5));
    let running = tokio::spawn(alerts.run(stop.clone()));
    for expected in ["\"event\":\"raised\"", "\"event\":\"cleared\""] {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"}") {
            assert_ne!(stream.read_buf(&mut request).await.unwrap(), 0);
        }
        let request = String::from_utf8(request).unwrap();
        assert!(request.starts_with("POST /hook?x=1 HTTP/1.1"), "{request}");
        assert!(request.contains(expected) && request.contains("the cable"), "{request}");
        stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
        node.watch().set_reach(Reach::Direct { address: "192.0.2.1:7400".to_owned() });
    }
    stop.cancel();
    running.await.unwrap();
    world.close().await;
}

#[tokio::test]
async fn a_webhook_that_never_answers_holds_up_no_other_and_no_looking() {
    use tokio::io::AsyncReadExt;
    let world = World::new().await;
    let (silent, listening) = (
        tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap(),
        tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap(),
    );
    let node = world.web.node.clone();
    node.watch().set_reach(Reach::Unreachable { why: "the cable".to_owned() });
    let stop = CancellationToken::new();
    let running: Vec<_> = [&silent, &listening]
        .map(|listener| {
            let webhook = Webhook::new(&format!("http://{}/", listener.local_addr().unwrap())).unwrap();
            let alerts =
                Alerts::new(node.clone(), webhook).looking_every(std::time::Duration::from_millis(5));
            tokio::spawn(alerts.run(stop.clone()))
        })
        .into();
    let held = silent.accept().await.unwrap();
    let (mut told, _) = listening.accept().await.unwrap();
    let mut request = Vec::new();
    while !request.ends_with(b"}") {
        assert_ne!(told.read_buf(&mut request).await.unwrap(), 0);
    }
    assert!(String::from_utf8_lossy(&request).contains("the cable"));
    stop.cancel();
    for one in running {
        one.await.unwrap();
    }
    drop(held);
    world.close().await;
}

#[tokio::test]
async fn alerts_go_over_tls_to_whom_the_named_authority_vouches_for() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let authority_key = rcgen::KeyPair::generate().unwrap();
    let mut of_authority = rcgen::CertificateParams::default();
    of_authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = of_authority.self_signed(&authority_key).unwrap();
    let issuer = rcgen::Issuer::from_params(&of_authority, &authority_key);
    let server_key = rcgen::KeyPair::generate().unwrap();
    let of_server = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = of_server.signed_by(&server_key, &issuer).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            rustls::pki_types::PrivateKeyDer::try_from(server_key.serialize_der()).unwrap(),
        )
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}/hook", listener.local_addr().unwrap().port());
    let world = World::new().await;
    let node = world.web.node.clone();
    node.watch().set_reach(Reach::Unreachable { why: "the cable".to_owned() });
    assert!(matches!(
        Webhook::with_authority(&url, Some(b"no certificate")),
        Err(crate::web::WebhookError::Authority)
    ));
    let stop = CancellationToken::new();
    let webhook = Webhook::with_authority(&url, Some(authority.pem().as_bytes())).unwrap();
    let alerts = Alerts::new(node, webhook).looking_every(std::time::Duration::from_millis(5));
    let running = tokio::spawn(alerts.run(stop.clone()));
    let (tcp, _) = listener.accept().await.unwrap();
    let mut tls = acceptor.accept(tcp).await.unwrap();
    let mut request = Vec::new();
    while !request.ends_with(b"}") {
        assert_ne!(tls.read_buf(&mut request).await.unwrap(), 0);
    }
    assert!(String::from_utf8_lossy(&request).contains("the cable"));
    tls.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
    stop.cancel();
    running.await.unwrap();
    world.close().await;
}
