//! Every bound of the node's server, with its reason, and the table of those that an operator may set.

use holdfast_protocol::limits::{BLOCK_LEN_MAX, HEADER_LEN_MAX, HEADS_MAX, TEXT_LEN_MAX};

/// A connection must have said Hello within this time, or it is closed: a stranger may not sit on a session.
pub const HANDSHAKE_DEADLINE_MS: u64 = 10_000;
/// A request's header must be complete within this time.
pub const HEADER_DEADLINE_MS: u64 = 10_000;
/// The next piece of a body must come within this time; a paused sender is cut and its memory freed.
pub const BODY_IDLE_DEADLINE_MS: u64 = 10_000;
/// A whole body must come within this time: 1 MiB at 140 kbit/s, slower than any uplink worth keeping.
pub const BODY_DEADLINE_MS: u64 = 60_000;
/// Reading a block's bytes from disk must succeed within this time. It takes that long only when every read buffer is
/// held by readers who do not let go; then others are told to come back instead of waiting with them.
pub const READ_DEADLINE_MS: u64 = 20_000;
/// A whole answer must be taken within this time, else the reader is cut and its memory freed.
pub const ANSWER_DEADLINE_MS: u64 = 60_000;
/// How long a stopping node lets running requests end.
pub const STOP_DEADLINE_MS: u64 = 20_000;
/// How long a namespace may think about an end-of-lease question.
pub const LEASE_ANSWER_DEADLINE_MS: u64 = 10_000;

/// Control requests (Hello, Status, Agree, heads) a peer may send at once: a burst at start-up.
pub const CONTROL_BURST: u32 = 100;
/// Control requests a second after that. Some write a file and sync it, so they are dearer than reads.
pub const CONTROL_PER_SECOND: u32 = 50;

/// Requests for chunks, which is what challenges are, that a peer may send at once: a whole round of a public audit.
pub const CHALLENGE_BURST: u32 = 2000;
/// Requests for chunks a second after that. Each costs a disk read of a whole group.
pub const CHALLENGES_PER_SECOND: u32 = 200;
/// Connections that one peer may have as a stranger.
pub const CONNECTIONS_PER_STRANGER: usize = 4;
/// A stranger's connection that asked for something within this time is not given up for a newcomer's.
pub const STRANGER_BUSY_MS: u64 = 2_000;

/// Agreements a node keeps. Each is about 1 KiB in memory; all are read at start.
pub const AGREEMENTS_MAX: usize = 4096;
/// Agreements one namespace may have at a node: the running one, renewals, and room for mistakes.
pub const AGREEMENTS_PER_NAMESPACE_MAX: usize = 16;
/// The longest encoded head with its delegation, so that [`HEADS_MAX`] of them fit one answer.
pub const HEAD_LEN_MAX: usize = 720 + TEXT_LEN_MAX;
/// How long the signatures of a grant are believed once they held. A delegation that was taken back meanwhile would end
/// with its own time, not earlier, in any case.
pub const GRANT_CHECKED_MS: u64 = 60_000;
/// Grants whose signatures are remembered, a kilobyte each; searched from front to back.
pub const GRANTS_CHECKED_MAX: usize = 64;
/// Grants whose spent bytes are remembered; 64 bytes each.
pub const GRANTS_TRACKED_MAX: usize = 65_536;
/// Delegates' request headers that may be half read at once, each up to 64 KiB in memory. A complete header arrives in
/// one piece, so honest peers hold a place for microseconds.
pub const HEADERS_AT_ONCE_MAX: usize = 1024;
/// The same of readers, whose requests are 64 KiB at most and 1 KiB in truth.
pub const READER_HEADERS_AT_ONCE_MAX: usize = 256;
/// Connections of one peer that are served as a reader's: one is enough, and a newer one may come before the older has
/// ended.
pub const CONNECTIONS_PER_READER: usize = 2;
/// Puts that wait for a receipt's signature at once; more wait for a place.
pub const RECEIPT_QUEUE_MAX: usize = 1024;
/// Leases that one round of the lease keeper settles: bounds its memory and the length of a round.
pub const LEASES_PER_ROUND_MAX: usize = 8192;
/// Peers whose budgets are remembered between connections.
pub const PEERS_MAX: usize = 4096;

// A full GetHeads answer must fit one header beside its fixed fields.
const _: () = assert!(HEADS_MAX * (HEAD_LEN_MAX + 16) + 64 <= HEADER_LEN_MAX);

/// Bounds that depend on the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeLimits {
    /// Connections of peers that showed a delegation of a namespace with an agreement here.
    pub delegate_connections: usize,
    /// Connections of peers that showed a grant of a namespace with an agreement here. When all are taken, further
    /// readers are served as strangers.
    pub reader_connections: usize,
    /// Connections of everybody else.
    pub stranger_connections: usize,
    /// Streams that a delegate's connection may have running; further ones wait unread.
    pub streams_per_delegate: usize,
    /// Streams that a reader's connection may have running; further ones wait unread.
    pub streams_per_reader: usize,
    /// Streams that any other connection may have running. Times the connections and a header's length,
    /// this bounds what strangers can make a node hold before it has understood a word: 64 MiB by default.
    pub streams_per_stranger: usize,
    /// Block bytes in memory on behalf of one peer, both directions, over all of its connections.
    pub peer_bytes: usize,
    /// Block bytes in memory for all delegates.
    pub delegate_bytes: usize,
    /// Block bytes in memory for all readers.
    pub reader_bytes: usize,
    /// Block bytes in memory for all strangers: they cannot starve those who pay.
    pub stranger_bytes: usize,
}

impl Default for NodeLimits {
    fn default() -> Self {
        const MIB: usize = BLOCK_LEN_MAX as usize;
        Self {
            delegate_connections: 512,
            // Times their send windows of 2 MiB: 128 MiB at most.
            reader_connections: 64,
            stranger_connections: 256,
            streams_per_delegate: 256,
            streams_per_reader: 32,
            streams_per_stranger: 4,
            peer_bytes: 48 * MIB,
            delegate_bytes: 96 * MIB,
            reader_bytes: 64 * MIB,
            stranger_bytes: 16 * MIB,
        }
    }
}
