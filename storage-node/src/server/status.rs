//! Status: the node's counters, which add up.

use holdfast_protocol::message::NodeStatus;

use crate::node::{Node, SOFTWARE};

/// What a peer without a delegation learns: no more than the node's record tells everybody. The counters add up too.
pub(crate) fn for_strangers(node: &Node) -> NodeStatus {
    let NodeStatus { capacity_bytes, free_bytes, refusing_writes, software, .. } = of(node);
    NodeStatus {
        capacity_bytes,
        used_bytes: capacity_bytes.saturating_sub(free_bytes),
        free_bytes,
        refusing_writes: if refusing_writes.is_empty() { refusing_writes } else { "closed".to_owned() },
        software,
        ..NodeStatus::default()
    }
}

/// The counters now.
pub(crate) fn of(node: &Node) -> NodeStatus {
    let accounts = node.accounts();
    let now_ms = node.now_ms();
    let refusing_writes = if node.is_stopping() {
        "the node is stopping".to_owned()
    } else if let Some(why) = node.mode().refusal() {
        why.to_owned()
    } else {
        node.store.failure().map(|text| text.chars().take(200).collect()).unwrap_or_default()
    };
    NodeStatus {
        capacity_bytes: accounts.capacity_bytes,
        used_bytes: accounts.used_bytes,
        trash_bytes: accounts.trash_bytes,
        garbage_bytes: accounts.garbage_bytes,
        free_bytes: accounts.free_bytes,
        paid_bytes: accounts.paid_bytes,
        blocks: accounts.blocks,
        agreements: node.ledger.running(now_ms),
        uptime_s: now_ms.saturating_sub(node.started_ms) / 1000,
        refusing_writes,
        software: SOFTWARE.to_owned(),
    }
}
