//! Runs the buckets' lifecycle rules.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::gateway::Core;
use crate::s3::lifecycle;

/// Runs them at the interval of the configuration, until stopped.
pub(super) async fn run(core: Arc<Core>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(core.config.timing.lifecycle_interval) => {}
        }
        let ran = tokio::select! {
            () = stop.cancelled() => return,
            ran = lifecycle::run(&core, core.config.clock.now_ms()) => ran,
        };
        match ran {
            Ok(done) if done == lifecycle::Expired::default() => {}
            Ok(done) => {
                tracing::info!(versions = done.versions, uploads = done.uploads, "lifecycle rules deleted");
            }
            Err(error) => {
                tracing::warn!(%error, "a run of the lifecycle rules stopped early; the next goes on")
            }
        }
    }
}
