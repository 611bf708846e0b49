//! Metric names, units and labels of the storage node's server, defined once.
//!
//! Nothing here counts; the places that do name their metric by these constants.

/// Requests answered. Labels: `request` (message name), `outcome` (`ok`, or the refusal's reason).
pub const REQUESTS: &str = "holdfast_node_requests_total";
/// Seconds from a request's header to the end of its answer. Label: `request`.
pub const REQUEST_SECONDS: &str = "holdfast_node_request_seconds";
/// Block bytes received and kept.
pub const RECEIVED_BYTES: &str = "holdfast_node_received_bytes_total";
/// Block bytes served. Label: `part` (`whole`, `leaves`).
pub const SERVED_BYTES: &str = "holdfast_node_served_bytes_total";
/// Receipts signed.
pub const RECEIPTS: &str = "holdfast_node_receipts_total";
/// Blocks listed in those receipts; divided by the receipts it is the size of a commit group.
pub const RECEIPT_BLOCKS: &str = "holdfast_node_receipt_blocks_total";
/// Connections open now.
pub const CONNECTIONS: &str = "holdfast_node_connections";
/// Connections closed by us for breaking a rule. Label: `why` (`handshake`, `full`, `garbage`).
pub const CONNECTIONS_CUT: &str = "holdfast_node_connections_cut_total";
/// Streams cut because the peer was too slow. Label: `side` (`send`, `receive`).
pub const STREAMS_CUT: &str = "holdfast_node_streams_cut_total";
/// Block bytes in memory for peers now.
pub const BYTES_IN_FLIGHT: &str = "holdfast_node_in_flight_bytes";
/// Expired leases settled. Label: `outcome` (`committed`, `extended`, `dropped`, `silent`).
pub const LEASES: &str = "holdfast_node_leases_total";
/// Agreements in force.
pub const AGREEMENTS: &str = "holdfast_node_agreements";
/// Bytes of blocks that the scrub read and hashed.
pub const SCRUBBED_BYTES: &str = "holdfast_node_scrubbed_bytes_total";
/// Blocks that the scrub declared lost.
pub const LOST_BLOCKS: &str = "holdfast_node_lost_blocks_total";
