//! Connections of peers of which nothing is known yet: small windows and few streams, until our own program says
//! that the peer is known and widens them.
//!
//! What a stranger can make us hold is its connection's receive window (bytes that it sends and we have not read)
//! and our send window (bytes that we sent and it does not acknowledge). A whole window each, times every place for
//! strangers, would be gigabytes.

use std::sync::Arc;

use quinn::{TransportConfig, VarInt};

use super::tuning::{self, Way};
use crate::limits::STREAMS_PER_CONNECTION_MAX;

/// Unread bytes on a stranger's connection: two of the longest headers. Strangers never send bodies.
const RECEIVE_WINDOW: u32 = 128 * 1024;
/// Unacknowledged bytes towards a stranger; enough for 20 Mbit/s over 100 ms.
pub(super) const SEND_WINDOW: u64 = 256 * 1024;
/// Streams that a stranger may have open.
const STREAMS: u32 = 16;
const _: () = assert!(RECEIVE_WINDOW as usize >= crate::limits::HEADER_LEN_MAX + 4);

/// Transport parameters of an accepted connection before its peer is known.
pub(super) fn transport_config(way: Way) -> Arc<TransportConfig> {
    let wide = tuning::transport_config(way, false);
    let mut config = Arc::into_inner(wide).expect("it was made in the line above and nobody else has it");
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS))
        .receive_window(VarInt::from_u32(RECEIVE_WINDOW))
        .send_window(SEND_WINDOW);
    Arc::new(config)
}

/// Unacknowledged bytes towards a peer that reads under a grant: two blocks, or 800 Mbit/s over 20 ms from each node.
const READER_SEND_WINDOW: u64 = 2 * 1024 * 1024;
/// Streams that such a peer may have open; what a node serves at once is less.
const READER_STREAMS: u32 = 128;

/// Gives the peer what reading takes.
pub(super) fn widen_for_reading(connection: &quinn::Connection) {
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(READER_STREAMS));
    connection.set_send_window(READER_SEND_WINDOW);
}

/// Gives the peer what known peers have.
pub(super) fn widen(connection: &quinn::Connection) {
    let streams = u32::try_from(STREAMS_PER_CONNECTION_MAX).unwrap_or(u32::MAX);
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(streams));
    connection.set_receive_window(VarInt::from_u32(tuning::CONNECTION_WINDOW));
    connection.set_send_window(tuning::SEND_WINDOW);
}
