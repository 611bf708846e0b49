//! Packing: goes through the queue of half-empty and mostly dead stripes again and again, looks at the whole stripe
//! table page by page for stripes that should be queued, and keeps the figures of what storage costs now and after.

use std::sync::Arc;

use holdfast_protocol::record::StripeId;
use holdfast_retrieval::pack::{PackOptions, PackReport, PackRules, Packer};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::gateway::{Core, telemetry};
use crate::meta::MetaError;

/// Stripes of the table looked at in one round: a terabyte of 1 MiB blocks is seen in half an hour.
const SURVEYED_PER_ROUND: usize = 4096;
/// Rows of it read at a time.
const PAGE: usize = 256;

/// The packer and what it did.
pub(crate) struct PackRunner {
    packer: Packer,
    state: Mutex<PackState>,
}

/// What packing did since the start, and what storage costs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PackState {
    /// All rounds together; `candidates` of the last one.
    pub(crate) total: PackReport,
    /// The last complete look through all stripes.
    pub(crate) expansion: Option<Expansion>,
}

/// Bytes stored for bytes of live blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Expansion {
    /// Stripes seen.
    pub(crate) stripes: u64,
    /// Bytes of live data blocks.
    pub(crate) live_bytes: u64,
    /// Bytes of all shards.
    pub(crate) stored_bytes: u64,
    /// Bytes of all shards once every queued stripe is packed full.
    pub(crate) packed_bytes: u64,
}

impl PackRunner {
    pub(crate) fn new(packer: Packer) -> Self {
        Self { packer, state: Mutex::default() }
    }

    pub(crate) fn state(&self) -> PackState {
        *self.state.lock()
    }
}

/// Packs until stopped.
pub(super) async fn run(core: Arc<Core>, stop: CancellationToken) {
    let work = async {
        match core.pack.packer.recover().await {
            Ok(0) => {}
            Ok(undone) => tracing::info!(undone, "merges that a crash had interrupted were undone"),
            Err(error) => tracing::warn!(%error, "interrupted merges cannot be undone now"),
        }
        let mut survey = Survey::default();
        loop {
            tokio::time::sleep(core.config.timing.packing_interval).await;
            survey.go_on(&core).await;
            round(&core).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}

async fn round(core: &Core) {
    let timing = &core.config.timing;
    let milliseconds = |period: std::time::Duration| u64::try_from(period.as_millis()).unwrap_or(u64::MAX);
    let options = PackOptions {
        rules: PackRules {
            settle_ms: milliseconds(timing.packing_settle),
            patience_ms: milliseconds(timing.packing_patience),
        },
        bytes_per_second: core.config.repair.bytes_per_second,
        ..PackOptions::default()
    };
    match core.pack.packer.run(&options).await {
        Ok(report) => {
            core.pack.state.lock().total.add(&report);
            telemetry::packed(&report);
            if report.merges > 0 {
                tracing::info!(
                    merges = report.merges,
                    absorbed = report.stripes_absorbed,
                    released_bytes = report.bytes_released,
                    "stripes were packed"
                );
                core.wake_deliveries();
            }
        }
        Err(error) => tracing::warn!(%error, "packing stopped early; trying again"),
    }
}

/// A look through the whole stripe table, some rows a round.
#[derive(Default)]
struct Survey {
    after: Option<StripeId>,
    so_far: Expansion,
}

impl Survey {
    async fn go_on(&mut self, core: &Core) {
        for _ in 0..SURVEYED_PER_ROUND / PAGE {
            match self.page(core).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    tracing::warn!(%error, "the stripes cannot be looked through now");
                    return;
                }
            }
        }
    }

    /// False at the end of the table.
    async fn page(&mut self, core: &Core) -> Result<bool, MetaError> {
        let stripes = core.meta.stripes(self.after, PAGE).await?;
        let Some(last) = stripes.last() else {
            let done = std::mem::take(self).so_far;
            core.pack.state.lock().expansion = Some(done);
            telemetry::expansion(done.stored_bytes, done.packed_bytes, done.live_bytes);
            return Ok(false);
        };
        self.after = Some(last.id);
        core.meta.queue_short(&stripes).await?;
        for stripe in &stripes {
            let (live, stored) = core.meta.stripe_bytes(stripe).await?;
            let (k, n) = (u64::from(stripe.k), u64::from(stripe.k) + u64::from(stripe.m));
            self.so_far.stripes += 1;
            self.so_far.live_bytes += live;
            self.so_far.stored_bytes += stored;
            self.so_far.packed_bytes += stored.min(live.saturating_mul(n).div_ceil(k.max(1)));
        }
        Ok(true)
    }
}
