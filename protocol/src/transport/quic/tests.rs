//! Handshakes that no honest peer makes.

use std::sync::Arc;

use rustls::SignatureScheme;
use rustls::client::{AlwaysResolvesClientRawPublicKeys, ResolvesClientCert};
use rustls::sign::CertifiedKey;

use super::*;

/// A peer that shows no key.
#[derive(Debug)]
struct Nobody;

impl ResolvesClientCert for Nobody {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn only_raw_public_keys(&self) -> bool {
        true
    }

    fn has_certs(&self) -> bool {
        false
    }
}

fn key(seed: u8) -> Arc<SigningKey> {
    Arc::new(SigningKey::from_seed(&[seed; 32]).unwrap())
}

fn bind(seed: u8) -> Arc<QuicTransport> {
    QuicTransport::bind(QuicConfig::new(SocketAddr::from(([127, 0, 0, 1], 0)), key(seed))).unwrap()
}

/// What becomes of a connection from `alice` to `bob`: why it ended. With TLS 1.3 a client may learn only
/// after its own handshake that the server refused it.
async fn refusal(alice: &QuicTransport, config: quinn::ClientConfig, bob: &QuicTransport) -> String {
    let attempt = async {
        match alice.endpoint.connect_with(config, bob.local_addr, "holdfast").unwrap().await {
            Err(error) => error,
            Ok(connection) => connection.closed().await,
        }
    };
    let refused = tokio::select! {
        error = attempt => error.to_string(),
        accepted = bob.accept() => panic!("accepted {:?}", accepted.map(|connection| connection.peer())),
    };
    // And nothing is handed out afterwards.
    assert!(tokio::time::timeout(Duration::from_millis(200), bob.accept()).await.is_err());
    refused
}

#[tokio::test(flavor = "multi_thread")]
async fn another_protocol_is_refused() {
    let (alice, bob) = (bind(1), bind(2));
    let certified = alice.identity.certified();
    let resolver = Arc::new(AlwaysResolvesClientRawPublicKeys::new(certified));
    let (config, _) =
        alice.identity.dial_config_with(bob.id, bob.local_addr, b"holdfast/0", resolver).unwrap();
    let why = refusal(&alice, config, &bob).await;
    assert!(why.contains("protocol"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_without_a_key_is_refused() {
    let (alice, bob) = (bind(1), bind(2));
    let (config, _) =
        alice.identity.dial_config_with(bob.id, bob.local_addr, ALPN, Arc::new(Nobody)).unwrap();
    refusal(&alice, config, &bob).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_shows_anothers_key_is_refused() {
    let (alice, bob) = (bind(1), bind(2));
    // Carol's public key with Alice's private one.
    let carol = bind(3).identity.certified();
    let stolen = CertifiedKey::new(carol.cert.clone(), alice.identity.certified().key.clone());
    let resolver = Arc::new(AlwaysResolvesClientRawPublicKeys::new(Arc::new(stolen)));
    let (config, _) = alice.identity.dial_config_with(bob.id, bob.local_addr, ALPN, resolver).unwrap();
    refusal(&alice, config, &bob).await;
}

/// Carries packets between whoever sends to the first address and the present target.
async fn relay(front: tokio::net::UdpSocket, mut targets: tokio::sync::watch::Receiver<SocketAddr>) {
    let back = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (mut there, mut here) = (vec![0; 65_536], vec![0; 65_536]);
    let mut client = None;
    loop {
        tokio::select! {
            sent = front.recv_from(&mut there) => {
                let (len, from) = sent.unwrap();
                client = Some(from);
                let target = *targets.borrow_and_update();
                back.send_to(&there[..len], target).await.unwrap();
            }
            answered = back.recv_from(&mut here) => {
                let (len, from) = answered.unwrap();
                // Whoever was killed says nothing more.
                if let Some(client) = client.filter(|_| from == *targets.borrow()) {
                    front.send_to(&here[..len], client).await.unwrap();
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_was_killed_and_started_again_is_noticed_at_the_next_packet() {
    let (alice, bob) = (bind(1), bind(2));
    let front = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = front.local_addr().unwrap();
    let (switch, targets) = tokio::sync::watch::channel(bob.local_addr);
    let relaying = tokio::spawn(relay(front, targets));
    let connection = alice.dial(bob.local_id(), &[address]).await.unwrap();
    let accepted = bob.accept().await.unwrap();
    // As `kill -9` does it: nothing is said, and another process with the same key takes the place.
    let again = bind(2);
    switch.send_replace(again.local_addr);
    let gone = tokio::time::timeout(Duration::from_secs(20), async {
        // Without this a keep-alive does it, a few seconds later.
        if let Ok(mut stream) = connection.open().await {
            let _lost = stream.send.write(bytes::Bytes::from_static(b"are you there?")).await;
        }
        connection.closed().await;
    });
    gone.await.expect("far sooner than the idle timeout of 30 s");
    relaying.abort();
    drop((accepted, bob));
}
