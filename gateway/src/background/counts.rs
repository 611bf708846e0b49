//! Counts of access keys, written down every few seconds.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::gateway::Core;

/// A report is this much behind.
const EVERY: Duration = Duration::from_secs(5);

/// Writes counts down until stopped; what is left at the end is the gateway's to write.
pub(super) async fn keep(core: Arc<Core>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
        if let Err(error) = core.key_usage.flush(&core.meta, core.config.clock.now_ms()).await {
            tracing::warn!(%error, "counts of access keys were not written down");
        }
    }
}
