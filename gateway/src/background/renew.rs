//! Renewal while running: agreements and the gateway's own delegation are followed by new ones before they end.
//!
//! An agreement's successor begins when it ends, so it takes no room from anybody at the node; what is kept under the
//! one counts under the other. The delegation is signed anew at half of its life and shown on open connections.

use std::sync::Arc;

use holdfast_protocol::record::{Delegation, Record, Signed, SignedAgreement, UnverifiedAgreement};
use holdfast_protocol::time::UnixMs;
use holdfast_retrieval::pool::NodeState;

use super::nodes::{self, AdmitError};
use crate::gateway::Core;
use crate::meta::NodeEntry;

/// The successor of an agreement is made this long before its end.
const RENEW_BEFORE_MS: u64 = 30 * 24 * 3600 * 1000;

/// The agreement with a node that runs at `now_ms`: the one known, or its successor.
pub(super) fn in_force(core: &Core, entry: &NodeEntry, now_ms: UnixMs) -> Option<SignedAgreement> {
    let ours = |wire: &Option<UnverifiedAgreement>| {
        let agreement = wire.as_ref()?.verify().ok()?;
        let terms = agreement.terms();
        let runs = terms.start_ms <= now_ms && now_ms < terms.end_ms;
        (runs && terms.namespace == core.config.keys.namespace_id()).then_some(agreement)
    };
    ours(&entry.agreement).or_else(|| ours(&entry.notes.next))
}

/// One round over everything that ends.
pub(super) async fn all(core: &Arc<Core>) {
    let now_ms = core.config.clock.now_ms();
    delegation(core, now_ms).await;
    let entries = match core.meta.nodes().await {
        Ok(entries) => entries,
        Err(error) => {
            tracing::warn!(%error, "agreements are not looked at now; trying again");
            return;
        }
    };
    for entry in entries.into_iter().filter(|entry| !entry.removed) {
        let up = core.pool.node(entry.id).is_some_and(|view| view.state == NodeState::Up);
        let node = entry.id;
        if let Err(error) = agreement(core, entry, now_ms, up).await {
            tracing::warn!(%node, %error, "an agreement that ends soon was not renewed; trying again");
        }
    }
}

/// Signs the gateway's delegation anew once half of its time has passed.
async fn delegation(core: &Core, now_ms: UnixMs) {
    let current = core.delegation.lock().clone();
    let Some(next) = successor(current.record(), now_ms) else { return };
    let signed = Signed::sign(next, core.config.keys.namespace());
    tracing::info!(until_ms = signed.record().expires_ms, "the gateway's delegation is renewed");
    core.pool.set_delegation(signed.to_wire());
    *core.delegation.lock() = signed;
    core.pool.renew_sessions().await;
}

/// The same delegation over the same time from now on, if half of it is over.
fn successor(current: &Delegation, now_ms: UnixMs) -> Option<Delegation> {
    let life_ms = current.expires_ms.saturating_sub(current.not_before_ms);
    if current.expires_ms.saturating_sub(now_ms) > life_ms / 2 {
        return None;
    }
    Some(Delegation {
        v: Delegation::VERSION,
        not_before_ms: now_ms,
        expires_ms: now_ms.saturating_add(life_ms),
        ..current.clone()
    })
}

/// What an agreement needs at this time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    Nothing,
    /// A successor, to begin when it ends.
    Successor {
        start_ms: UnixMs,
    },
    /// The successor has begun and takes its place.
    Change,
}

fn need(current_end_ms: UnixMs, has_next: bool, now_ms: UnixMs) -> Need {
    match has_next {
        true if now_ms >= current_end_ms => Need::Change,
        true => Need::Nothing,
        false if current_end_ms.saturating_sub(RENEW_BEFORE_MS) <= now_ms => {
            Need::Successor { start_ms: current_end_ms.max(now_ms) }
        }
        false => Need::Nothing,
    }
}

async fn agreement(core: &Core, mut entry: NodeEntry, now_ms: UnixMs, up: bool) -> Result<(), AdmitError> {
    let Some(current) = entry.agreement.as_ref().and_then(|wire| wire.verify().ok()) else { return Ok(()) };
    match need(current.terms().end_ms, entry.notes.next.is_some(), now_ms) {
        Need::Nothing => return Ok(()),
        Need::Successor { .. } if !up || entry.notes.leaving.is_some() => return Ok(()),
        Need::Successor { start_ms } => {
            let record = entry.record.as_ref().and_then(|record| record.verify().ok());
            let Some(record) = record else { return Ok(()) };
            let capacity_bytes = current.terms().capacity_bytes;
            let terms = nodes::propose(core, entry.id, record.record(), capacity_bytes, start_ms)?;
            let next = core.pool.ensure_agreement(entry.id, terms).await?;
            tracing::info!(node = %entry.id, end_ms = next.terms().end_ms, "an agreement has its successor");
            entry.notes.next = Some(next.to_wire());
        }
        Need::Change => {
            let next = entry.notes.next.take().and_then(|wire| wire.verify().ok());
            let Some(next) = next else { return Ok(()) };
            entry.agreement_id = Some(next.id());
            entry.capacity_bytes = next.terms().capacity_bytes;
            entry.agreement = Some(next.to_wire());
        }
    }
    core.meta.upsert_node(&entry).await?;
    core.pool.upsert(nodes::known(core, &entry, now_ms))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use holdfast_protocol::record::Rights;
    use holdfast_protocol::{NamespaceId, NodeId, PublicKey};

    use super::*;

    const DAY_MS: u64 = 24 * 3600 * 1000;

    #[test]
    fn a_successor_is_made_in_time_and_takes_over_at_the_end() {
        let end = 400 * DAY_MS;
        assert_eq!(need(end, false, end - 31 * DAY_MS), Need::Nothing);
        assert_eq!(need(end, false, end - 30 * DAY_MS), Need::Successor { start_ms: end });
        assert_eq!(need(end, true, end - 1), Need::Nothing);
        assert_eq!(need(end, true, end), Need::Change);
        // A gateway that was away over the end begins anew at once.
        assert_eq!(need(end, false, end + 5), Need::Successor { start_ms: end + 5 });
    }

    #[test]
    fn a_delegation_is_followed_at_half_of_its_life() {
        let delegation = Delegation {
            v: 1,
            namespace: NamespaceId(PublicKey([1; 32])),
            delegate: NodeId(PublicKey([2; 32])),
            rights: Rights::GATEWAY,
            not_before_ms: 0,
            expires_ms: 100 * DAY_MS,
            label: "g".to_owned(),
        };
        assert_eq!(successor(&delegation, 49 * DAY_MS), None);
        let next = successor(&delegation, 50 * DAY_MS).expect("half is over");
        assert_eq!((next.not_before_ms, next.expires_ms), (50 * DAY_MS, 150 * DAY_MS));
        assert_eq!(next.label, "g");
    }
}
