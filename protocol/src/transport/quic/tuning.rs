//! Transport parameters and socket options: every value set, none left to a default that could change.
//!
//! QUIC is the dearest stage of the data path, and packets are what it costs: on loopback 32,000 bytes each,
//! elsewhere as large as the path carries.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::{AckFrequencyConfig, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use socket2::{Domain, Protocol, Socket, Type};

use crate::key::SigningKey;
use crate::limits::STREAMS_PER_CONNECTION_MAX;

/// Payload of a UDP packet on loopback, and the largest that an endpoint takes. Two of them fill what the kernel
/// sends at once; against 6,500 bytes a GiB costs a third less CPU at both ends (`protocol/examples/throughput.rs`),
/// and 65,000 bytes gain nothing more.
pub(super) const PACKET_LEN_MAX: u16 = 32_000;
const _: () = assert!(PACKET_LEN_MAX as usize * 2 <= super::socket::SEND_LEN_MAX);
/// Payload of a loopback packet until discovery has found more. Handshake packets are padded to this, and the
/// length of a long-header packet has 14 bits.
const LOOPBACK_PACKET_LEN_FIRST: u16 = 16_000;
const _: () = assert!(LOOPBACK_PACKET_LEN_FIRST < 1 << 14 && LOOPBACK_PACKET_LEN_FIRST < PACKET_LEN_MAX);
/// Payload of a UDP packet on a network, at most: a jumbo frame of 9,000 bytes less the headers of IPv6 and UDP.
const JUMBO_PACKET_LEN_MAX: u16 = 8_952;
/// The first congestion window on loopback. Quinn's own is 12,000 bytes: less than one packet, which then never leaves.
const LOOPBACK_FIRST_WINDOW: u64 = 1024 * 1024;
const _: () = assert!(LOOPBACK_FIRST_WINDOW > 10 * PACKET_LEN_MAX as u64);

/// Packets on loopback after which an acknowledgement is due at once. The answer to a small read is three packets, and
/// the next request carries their acknowledgement for nothing. Less than half of what the narrowest window holds, so
/// that no sender ever waits for one.
const LOOPBACK_PACKETS_PER_ACK: u32 = 4;
const _: () =
    assert!(LOOPBACK_PACKETS_PER_ACK as u64 * PACKET_LEN_MAX as u64 <= super::narrow::SEND_WINDOW / 2);

/// Bytes in flight on one stream: sixteen blocks, more than any path of 1 Gbit/s and 100 ms needs.
const STREAM_WINDOW: u32 = 16 * 1024 * 1024;
/// Bytes that may wait unread on one connection: what a peer can make us hold.
pub(super) const CONNECTION_WINDOW: u32 = 32 * 1024 * 1024;
/// Bytes that we hold unacknowledged for one connection.
pub(super) const SEND_WINDOW: u64 = 16 * 1024 * 1024;
const _: () = assert!(CONNECTION_WINDOW >= STREAM_WINDOW && SEND_WINDOW <= CONNECTION_WINDOW as u64);

/// A peer that says nothing for this long is gone.
const IDLE_TIMEOUT_MS: u32 = 30_000;
/// Whoever dials keeps the connection (and the NAT binding on its way) alive. It is also how soon the dialler notices
/// that the other side was started anew; thirty bytes cost nothing.
const KEEP_ALIVE: Duration = Duration::from_secs(4);
const _: () = assert!(KEEP_ALIVE.as_millis() * 2 < IDLE_TIMEOUT_MS as u128);

/// Socket buffers. The kernel's default of 208 KiB is three batches, and each overflow is a lost batch.
const SOCKET_BUFFER_LEN: usize = 8 * 1024 * 1024;

/// What lies between two peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// The same machine: packets of [`LOOPBACK_PACKET_LEN_FIRST`] from the first on, of [`PACKET_LEN_MAX`] soon.
    Loopback,
    /// A network: packet size is discovered, up to jumbo frames.
    Wide,
}

impl Way {
    /// The way to an address. An IPv4 address may come mapped into IPv6.
    pub(super) fn to(address: SocketAddr) -> Self {
        if address.ip().to_canonical().is_loopback() { Self::Loopback } else { Self::Wide }
    }
}

/// Transport parameters for one way; `dialled` connections keep themselves alive.
pub(super) fn transport_config(way: Way, dialled: bool) -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    let streams = u32::try_from(STREAMS_PER_CONNECTION_MAX).unwrap_or(u32::MAX);
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(streams))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(SEND_WINDOW)
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_TIMEOUT_MS))))
        .keep_alive_interval(dialled.then_some(KEEP_ALIVE))
        .enable_segmentation_offload(true)
        .allow_spin(false);
    match way {
        Way::Loopback => {
            let mut congestion = CubicConfig::default();
            congestion.initial_window(LOOPBACK_FIRST_WINDOW);
            let mut discovery = MtuDiscoveryConfig::default();
            discovery.upper_bound(PACKET_LEN_MAX);
            let mut acks = AckFrequencyConfig::default();
            acks.ack_eliciting_threshold(VarInt::from_u32(LOOPBACK_PACKETS_PER_ACK - 1));
            config
                .ack_frequency_config(Some(acks))
                .initial_mtu(LOOPBACK_PACKET_LEN_FIRST)
                .min_mtu(LOOPBACK_PACKET_LEN_FIRST)
                .mtu_discovery_config(Some(discovery))
                .congestion_controller_factory(Arc::new(congestion));
        }
        Way::Wide => {
            let mut discovery = MtuDiscoveryConfig::default();
            discovery.upper_bound(JUMBO_PACKET_LEN_MAX);
            config.mtu_discovery_config(Some(discovery));
        }
    }
    Arc::new(config)
}

/// What the endpoint tells every peer: the largest packet that it takes.
pub(super) fn endpoint_config(key: &SigningKey) -> EndpointConfig {
    let mut config = super::reset::endpoint_config(key);
    config.max_udp_payload_size(PACKET_LEN_MAX).expect("32,000 is a valid payload size (1,200 to 65,527)");
    config
}

/// A bound, non-blocking socket with large buffers. An IPv6 wildcard takes IPv4 as well.
pub(super) fn socket(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    widen(&socket);
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Asks for large buffers: past the system's limit where we may, else up to it.
fn widen(socket: &Socket) {
    use rustix::net::sockopt;
    let forced = sockopt::set_socket_recv_buffer_size_force(socket, SOCKET_BUFFER_LEN).is_ok()
        && sockopt::set_socket_send_buffer_size_force(socket, SOCKET_BUFFER_LEN).is_ok();
    if forced {
        return;
    }
    let asked = socket
        .set_recv_buffer_size(SOCKET_BUFFER_LEN)
        .and_then(|()| socket.set_send_buffer_size(SOCKET_BUFFER_LEN));
    let granted = socket.recv_buffer_size().unwrap_or(0);
    // Linux reports twice what it grants.
    if asked.is_err() || granted < SOCKET_BUFFER_LEN {
        tracing::info!(
            granted_bytes = granted,
            wanted_bytes = SOCKET_BUFFER_LEN,
            "the system limits UDP socket buffers; raise net.core.rmem_max and wmem_max for full speed"
        );
    }
}
