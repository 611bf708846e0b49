//! What QUIC promises beside the suite: keys, caps and a socket that strangers can write to.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use bytes::Bytes;
use holdfast_protocol::transport::quic::{BindError, QuicConfig, QuicTransport};
use holdfast_protocol::transport::{Connection, DialError, Transport};

use crate::world::{id, is_held_back, key, loopback, quic, read_to_end, soon};

fn config(seed: u8) -> QuicConfig {
    QuicConfig::new(loopback(), key(seed))
}

fn address(transport: &QuicTransport) -> SocketAddr {
    transport.local_addr().unwrap()
}

/// Sends a few bytes from end to end.
async fn works(dialled: &dyn Connection, accepted: &dyn Connection) {
    let mut ours = dialled.open().await.unwrap();
    ours.send.write(Bytes::from_static(b"works")).await.unwrap();
    ours.send.finish().unwrap();
    let mut theirs = accepted.accept().await.unwrap();
    assert_eq!(read_to_end(theirs.recv.as_mut()).await.unwrap(), b"works");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_key_at_the_address_is_refused() {
    let (alice, bob) = (quic(1), quic(2));
    let dial = soon(alice.dial(id(3), &[address(&bob)])).await;
    let error = dial.err().unwrap();
    assert!(matches!(error, DialError::WrongPeer { peer, .. } if peer == id(3)), "{error}");
    assert!(!error.is_retryable());
    assert!(is_held_back(bob.accept()).await, "the one who answered is not given a connection either");
}

#[tokio::test(flavor = "multi_thread")]
async fn later_addresses_are_tried() {
    let (alice, bob, carol) = (quic(1), quic(2), quic(3));
    let addresses = [address(&carol), address(&bob)];
    let (dialled, accepted) = tokio::join!(alice.dial(id(2), &addresses), bob.accept());
    works(dialled.unwrap().as_ref(), accepted.unwrap().as_ref()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_at_the_address_is_told_in_time() {
    // Bound, so that nobody else takes the port, and silent.
    let silent = UdpSocket::bind(loopback()).unwrap();
    let patient = QuicConfig { handshake_deadline: Duration::from_millis(200), ..config(1) };
    let alice = QuicTransport::bind(patient).unwrap();
    let dial = soon(alice.dial(id(2), &[silent.local_addr().unwrap()])).await;
    let error = dial.err().unwrap();
    assert!(matches!(error, DialError::Timeout { after_ms: 200, .. }), "{error}");
    assert!(error.is_retryable());
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_an_address_must_be_proved_and_that_works() {
    let bob = QuicTransport::bind(QuicConfig { retry_above: 0, ..config(2) }).unwrap();
    let alice = quic(1);
    let addresses = [address(&bob)];
    let (dialled, accepted) = soon(async { tokio::join!(alice.dial(id(2), &addresses), bob.accept()) }).await;
    works(dialled.unwrap().as_ref(), accepted.unwrap().as_ref()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_past_the_cap_are_refused() {
    let bob = QuicTransport::bind(QuicConfig { handshakes_max: 0, ..config(2) }).unwrap();
    let error = soon(quic(1).dial(id(2), &[address(&bob)])).await.err().unwrap();
    assert!(matches!(error, DialError::Unreachable { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_past_the_cap_are_refused() {
    let bob = QuicTransport::bind(QuicConfig { connections_max: 1, ..config(2) }).unwrap();
    let (alice, carol) = (quic(1), quic(3));
    let addresses = [address(&bob)];
    let (dialled, accepted) = soon(async { tokio::join!(alice.dial(id(2), &addresses), bob.accept()) }).await;
    let (dialled, accepted) = (dialled.unwrap(), accepted.unwrap());
    let error = soon(carol.dial(id(2), &addresses)).await.err().unwrap();
    assert!(matches!(error, DialError::Unreachable { .. }), "{error}");
    works(dialled.as_ref(), accepted.as_ref()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_a_clear_error() {
    let bob = quic(2);
    let taken = address(&bob);
    let error = QuicTransport::bind(QuicConfig::new(taken, key(1))).err().unwrap();
    assert!(matches!(error, BindError::Socket { address, .. } if address == taken), "{error}");
    assert!(error.is_retryable());
    assert!(error.to_string().contains(&taken.to_string()), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_port_is_free_again_after_closing() {
    let bob = quic(2);
    let at = address(&bob);
    soon(bob.close()).await;
    drop(bob);
    // The thread lets the socket go a moment after it has said goodbye.
    let again = soon(async {
        loop {
            match QuicTransport::bind(QuicConfig::new(at, key(2))) {
                Ok(bound) => break bound,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    })
    .await;
    let alice = quic(1);
    let addresses = [at];
    let (dialled, accepted) =
        soon(async { tokio::join!(alice.dial(id(2), &addresses), again.accept()) }).await;
    works(dialled.unwrap().as_ref(), accepted.unwrap().as_ref()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_datagrams_do_no_harm() {
    let (alice, bob) = (quic(1), quic(2));
    let addresses = [address(&bob)];
    let stranger = UdpSocket::bind(loopback()).unwrap();
    let (dialled, accepted) = soon(async { tokio::join!(alice.dial(id(2), &addresses), bob.accept()) }).await;
    let (dialled, accepted) = (dialled.unwrap(), accepted.unwrap());
    let mut state = 1u64;
    for len in 0..1500usize {
        let datagram: Vec<u8> = (0..len)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                state.to_be_bytes()[0]
            })
            .collect();
        stranger.send_to(&datagram, addresses[0]).unwrap();
    }
    works(dialled.as_ref(), accepted.as_ref()).await;
    let carol = quic(3);
    let (dialled, accepted) = soon(async { tokio::join!(carol.dial(id(2), &addresses), bob.accept()) }).await;
    works(dialled.unwrap().as_ref(), accepted.unwrap().as_ref()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wildcard_listener_takes_both_families() {
    let listen = SocketAddr::from(([0u16; 8], 0));
    let Ok(bob) = QuicTransport::bind(QuicConfig::new(listen, key(2))) else {
        // A machine without IPv6 has nothing to show here.
        return;
    };
    let port = address(&bob).port();
    let alice = quic(1);
    let four = [SocketAddr::from(([127, 0, 0, 1], port))];
    let (dialled, accepted) = soon(async { tokio::join!(alice.dial(id(2), &four), bob.accept()) }).await;
    works(dialled.unwrap().as_ref(), accepted.unwrap().as_ref()).await;
}
