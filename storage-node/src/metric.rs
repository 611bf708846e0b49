//! Metric names, units and labels of the storage node's server, defined once.
//!
//! Counters are counted where things happen; what is looked up when somebody asks is set here.

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
/// Connections closed by us for breaking a rule. Label: `why` (`handshake`, `full`, `displaced`).
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

/// Bytes of the offered capacity. Label: `part` (`used`, `trash`, `garbage`, `free`).
pub const SPACE_BYTES: &str = "holdfast_node_space_bytes";
/// Bytes of the blocks that live claims keep.
pub const PAID_BYTES: &str = "holdfast_node_paid_bytes";
/// Blocks held.
pub const BLOCKS: &str = "holdfast_node_blocks";
/// 1 when peers can get here (directly or over connections that we opened), 0 when not. Label: `how`.
pub const REACHABLE: &str = "holdfast_node_reachable";
/// Requests for chunks since the start. Label: `outcome` (`answered`, `refused`).
pub const CHALLENGES: &str = "holdfast_node_challenges";
/// What is wrong now. Label: `severity` (`note`, `warning`, `alarm`).
pub const PROBLEMS: &str = "holdfast_node_problems";
/// Shards that namespaces have still to move away, while the node leaves or shrinks.
pub const SHARDS_TO_MOVE: &str = "holdfast_node_shards_to_move";
/// Alerts that could not be delivered.
pub const ALERTS_LOST: &str = "holdfast_node_alerts_lost_total";

/// Says what the metrics are.
pub(crate) fn describe() {
    use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
    describe_counter!(REQUESTS, Unit::Count, "Requests answered, by name and outcome");
    describe_histogram!(
        REQUEST_SECONDS,
        Unit::Seconds,
        "Seconds from a request's header to its answer's end"
    );
    describe_counter!(RECEIVED_BYTES, Unit::Bytes, "Block bytes received and kept");
    describe_counter!(SERVED_BYTES, Unit::Bytes, "Block bytes served");
    describe_gauge!(CONNECTIONS, Unit::Count, "Connections open now");
    describe_counter!(CONNECTIONS_CUT, Unit::Count, "Connections closed by us, by reason");
    describe_counter!(STREAMS_CUT, Unit::Count, "Streams cut because the peer was too slow");
    describe_gauge!(BYTES_IN_FLIGHT, Unit::Bytes, "Block bytes in memory for peers");
    describe_gauge!(
        SPACE_BYTES,
        Unit::Bytes,
        "The offered capacity by what it holds; the parts add up to it"
    );
    describe_gauge!(PAID_BYTES, Unit::Bytes, "Bytes of the blocks that live claims keep");
    describe_gauge!(BLOCKS, Unit::Count, "Blocks held");
    describe_gauge!(REACHABLE, Unit::Count, "Whether peers can get here");
    describe_gauge!(CHALLENGES, Unit::Count, "Requests for chunks since the start");
    describe_gauge!(PROBLEMS, Unit::Count, "What is wrong now, by severity");
    describe_gauge!(
        SHARDS_TO_MOVE,
        Unit::Count,
        "Shards still to move away while the node leaves or shrinks"
    );
    describe_counter!(ALERTS_LOST, Unit::Count, "Alerts that could not be delivered");
}

/// Sets the gauges that are looked up when somebody asks.
pub(crate) fn set_gauges(node: &crate::node::Node) {
    use metrics::gauge;
    #[allow(clippy::cast_precision_loss, reason = "Prometheus counts in doubles")]
    let number = |value: u64| value as f64;
    let accounts = node.accounts();
    for (part, bytes) in [
        ("used", accounts.used_bytes),
        ("trash", accounts.trash_bytes),
        ("garbage", accounts.garbage_bytes),
        ("free", accounts.free_bytes),
    ] {
        gauge!(SPACE_BYTES, "part" => part).set(number(bytes));
    }
    gauge!(PAID_BYTES).set(number(accounts.paid_bytes));
    gauge!(BLOCKS).set(number(accounts.blocks));
    let reach = node.watch().reach();
    for how in ["direct", "dial_out", "unknown", "unreachable"] {
        gauge!(REACHABLE, "how" => how).set(if reach.word() == how { 1.0 } else { 0.0 });
    }
    let (answered, refused) = node.watch().challenge_counts();
    gauge!(CHALLENGES, "outcome" => "answered").set(number(answered));
    gauge!(CHALLENGES, "outcome" => "refused").set(number(refused));
    let problems = node.problems();
    for (name, severity) in [
        ("note", crate::node::Severity::Note),
        ("warning", crate::node::Severity::Warning),
        ("alarm", crate::node::Severity::Alarm),
    ] {
        let count = problems.iter().filter(|problem| problem.severity == severity).count() as u64;
        gauge!(PROBLEMS, "severity" => name).set(number(count));
    }
    let left: u64 = node.leave_report().iter().map(|namespace| namespace.shards_left).sum();
    gauge!(SHARDS_TO_MOVE).set(number(left));
}
