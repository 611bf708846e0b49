//! Membership: nodes that another gateway of the namespace took in or out become known here, and the other way round.
//!
//! What is shared lies in the metadata; the pool is this gateway's copy of it, at most one interval old. Nothing waits
//! for it: a read or a repair that meets an unknown node of a stripe is refused by the pool and tried elsewhere.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::nodes;
use crate::gateway::Core;
use crate::meta::MetaError;

/// Takes changes over until stopped.
pub(super) async fn keep(core: Arc<Core>, stop: CancellationToken) {
    loop {
        let taken = tokio::select! {
            () = stop.cancelled() => return,
            taken = take_over(&core) => taken,
        };
        if let Err(error) = taken {
            tracing::warn!(%error, "the nodes of the namespace cannot be read; trying again");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(core.config.timing.probe_interval) => {}
        }
    }
}

async fn take_over(core: &Core) -> Result<(), MetaError> {
    let now_ms = core.config.clock.now_ms();
    for entry in core.meta.nodes().await? {
        let here = core.pool.node(entry.id);
        match here {
            // Whoever names a node at the start wants it back, and greeting it will say so to the others.
            Some(_) if entry.removed && core.config.seeds.iter().any(|seed| seed.id == entry.id) => {}
            Some(_) if entry.removed => core.pool.remove(entry.id),
            // Another gateway agreed anew with the node, or learned a new address of it.
            Some(view)
                if entry.agreement_id.is_some()
                    && (view.known.agreement != entry.agreement_id
                        || (!entry.addresses.is_empty() && view.known.addresses != entry.addresses)) =>
            {
                nodes::tell_pool(core, nodes::known(core, &entry, now_ms));
            }
            None if !entry.removed => nodes::tell_pool(core, nodes::known(core, &entry, now_ms)),
            _ => {}
        }
    }
    Ok(())
}
