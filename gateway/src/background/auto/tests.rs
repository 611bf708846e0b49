//! A node's history, look by look.

use holdfast_protocol::{OperatorId, PublicKey};
use holdfast_retrieval::placement::FailureDomain;
use holdfast_retrieval::pool::{KnownNode, LatencyView};

use super::*;

const DAY: u64 = 86_400_000;

fn view(state: NodeState) -> NodeView {
    let id = NodeId(PublicKey([1; 32]));
    let known = KnownNode {
        id,
        addresses: Vec::new(),
        agreement: None,
        domain: FailureDomain::new(OperatorId(id.key()), &[], 0),
        capacity_bytes: 0,
        free_bytes: 0,
        accepts_writes: true,
    };
    let (small, large) = (LatencyView::default(), LatencyView::default());
    NodeView { known, state, small, large, bytes_per_second: None, lies: 0 }
}

#[test]
fn a_silence_is_counted_once_and_as_a_loss_only_when_it_lasts() {
    let down = |since_ms| view(NodeState::Down { since_ms });
    let first = observed(None, &view(NodeState::Up), 1000, DAY);
    assert_eq!(first, NodePresence { watched_since_ms: 1000, ..NodePresence::default() });
    let silent = observed(Some(first), &down(2000), 3000, DAY);
    assert_eq!((silent.silent_since_ms, silent.outages, silent.losses), (2000, 1, 0));
    // After a restart the pool believes that the silence began with its own first attempt.
    let later = observed(Some(silent), &down(50_000), 2000 + DAY - 1, DAY);
    assert_eq!((later.silent_since_ms, later.outages, later.losses), (2000, 1, 0));
    let lost = observed(Some(later), &down(50_000), 2000 + DAY, DAY);
    assert_eq!(lost.losses, 1);
    let still = observed(Some(lost), &down(50_000), 2000 + 3 * DAY, DAY);
    assert_eq!((still.losses, still.outages), (1, 1));
    let back = observed(Some(still.clone()), &view(NodeState::Up), 2000 + 4 * DAY, DAY);
    assert_eq!((back.silent_since_ms, back.silent_total_ms, back.losses), (0, 4 * DAY, 1));
    assert!(!back.counted_lost);
    assert_eq!(observed(Some(still.clone()), &view(NodeState::Unknown), 9 * DAY, DAY), still);
}

#[test]
fn losses_a_year_start_at_the_prior_and_follow_what_is_seen() {
    let year = 365 * DAY + DAY / 4;
    let fresh = NodePresence { watched_since_ms: year, ..NodePresence::default() };
    assert!((losses(&fresh, year) - LOSSES_PER_YEAR).abs() < 1e-9);
    let steady = NodePresence { watched_since_ms: 0, ..NodePresence::default() };
    assert!((losses(&steady, 4 * year) - 0.1).abs() < 1e-9, "four good years");
    let flighty = NodePresence { losses: 8, ..steady };
    assert!(losses(&flighty, 4 * year) > 1.6);
}
