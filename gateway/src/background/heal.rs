//! Healing: a node that answers may still have lost single shards. Reads that had to go another way say so, and so do
//! auditors; each report is checked by reading the shard once more, and what is really gone is taken off the node in
//! its stripe's row. Completion then gives it a new one.
//!
//! Reports are rows, so they outlive a restart. A report that turns out wrong is forgotten: a node that answers
//! rightly now is not made to lose a shard by a rumour.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use holdfast_protocol::record::{Shard, Stripe, StripeId};
use holdfast_protocol::{Digest, NodeId};
use holdfast_retrieval::block::BlockRef;
use holdfast_retrieval::fetch::VerifiedReader;
use holdfast_retrieval::pool::OnGone;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::gateway::{Core, telemetry};
use crate::meta::{DamageReport, MetaError, PlacementError};

/// Reports that may wait to be written down. A reader that finds more will find them again.
const WAITING_MAX: usize = 4096;
/// Reports written down together.
const BATCH: usize = 256;
/// How long one shard's check may take, dialling included.
const CHECK_WITHIN: Duration = Duration::from_secs(10);
/// How often reports that could not be settled are looked at again.
const AGAIN_EVERY: Duration = Duration::from_secs(30);
/// Stripe rows read at a time when a shard must be searched for: parity is in no index.
const PAGE: usize = 1024;
/// Attempts to change a row that others change too.
const MARK_ATTEMPTS: usize = 4;

/// The queue of reports, and what became of them.
pub(crate) struct Healing {
    waiting: mpsc::Sender<(NodeId, Digest)>,
    arrivals: Mutex<Option<mpsc::Receiver<(NodeId, Digest)>>>,
    reported: AtomicU64,
    marked: AtomicU64,
    unfounded: AtomicU64,
}

/// Counts since the start.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct HealCounts {
    /// Shards reported as gone.
    pub(crate) reported: u64,
    /// Found gone, and taken off their node.
    pub(crate) marked: u64,
    /// Found where they should be, or no longer expected there.
    pub(crate) unfounded: u64,
}

impl Healing {
    pub(crate) fn new() -> Arc<Self> {
        let (waiting, arrivals) = mpsc::channel(WAITING_MAX);
        let arrivals = Mutex::new(Some(arrivals));
        let zero = || AtomicU64::new(0);
        Arc::new(Self { waiting, arrivals, reported: zero(), marked: zero(), unfounded: zero() })
    }

    /// What the pool calls.
    pub(crate) fn on_gone(self: &Arc<Self>) -> OnGone {
        let healing = Arc::clone(self);
        Arc::new(move |node, digest| healing.report(node, digest))
    }

    /// A node was found not to hold a shard. Never waits; what does not fit is found again by the next read.
    pub(crate) fn report(&self, node: NodeId, digest: Digest) {
        if self.waiting.try_send((node, digest)).is_ok() {
            self.reported.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn counts(&self) -> HealCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        HealCounts {
            reported: read(&self.reported),
            marked: read(&self.marked),
            unfounded: read(&self.unfounded),
        }
    }
}

/// Writes reports down and settles them until stopped.
pub(super) async fn run(core: Arc<Core>, stop: CancellationToken) {
    let Some(mut arrivals) = core.healing.arrivals.lock().take() else { return };
    let work = async {
        loop {
            let mut batch = Vec::with_capacity(BATCH);
            // Also without news: reports of a node that did not answer are looked at again.
            let _ = tokio::time::timeout(AGAIN_EVERY, arrivals.recv_many(&mut batch, BATCH)).await;
            if let Err(error) = write_down(&core, batch).await {
                tracing::warn!(%error, "reports of lost shards cannot be kept; the next reads report them again");
            }
            if let Err(error) = settle(&core).await {
                tracing::warn!(%error, "reports of lost shards cannot be settled now");
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}

async fn write_down(core: &Core, batch: Vec<(NodeId, Digest)>) -> Result<(), MetaError> {
    let reported_ms = core.config.clock.now_ms();
    let report = |(node, digest)| DamageReport { node, digest, stripe: None, reported_ms };
    core.meta.report_damage(&batch.into_iter().map(report).collect::<Vec<_>>()).await
}

/// One pass over all reports.
async fn settle(core: &Core) -> Result<(), MetaError> {
    let mut after = None;
    loop {
        let page = core.meta.damage_reports(after.as_ref()).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = Some(*last);
        let answering =
            |report: &&DamageReport| core.pool.node(report.node).is_some_and(|view| !view.state.is_down());
        let page: Vec<DamageReport> = page.iter().filter(answering).copied().collect();
        let found = find(core, &page).await?;
        let mut settled = Vec::new();
        for report in page {
            let place = found.get(&(report.node, report.digest)).copied();
            if settle_one(core, &report, place).await? {
                settled.push(report);
            }
        }
        core.meta.settle_damage(&settled).await?;
    }
}

type Places = HashMap<(NodeId, Digest), (StripeId, Shard)>;

/// In which stripes the reported shards are, as rows say now. Data by the index; what is not there by a walk through
/// all stripes, once for the whole page.
async fn find(core: &Core, reports: &[DamageReport]) -> Result<Places, MetaError> {
    let mut places = Places::new();
    let mut searched: HashMap<(NodeId, Digest), ()> = HashMap::new();
    for report in reports {
        let located = core.meta.locate(&report.digest).await?;
        let here = located.and_then(|located| shard_of(&located.stripe, report));
        match here {
            Some(place) => drop(places.insert((report.node, report.digest), place)),
            None => drop(searched.insert((report.node, report.digest), ())),
        }
    }
    let mut after = None;
    while !searched.is_empty() {
        let page = core.meta.stripes(after, PAGE).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        for stripe in &page {
            for shard in stripe.shards.iter().flatten() {
                let Some(node) = shard.node else { continue };
                if searched.remove(&(node, shard.digest)).is_some() {
                    places.insert((node, shard.digest), (stripe.id, *shard));
                }
            }
        }
    }
    Ok(places)
}

fn shard_of(stripe: &Stripe, report: &DamageReport) -> Option<(StripeId, Shard)> {
    let is_it = |shard: &&Shard| shard.digest == report.digest && shard.node == Some(report.node);
    stripe.shards.iter().flatten().find(is_it).map(|shard| (stripe.id, *shard))
}

/// Whether nothing more is to be done about the report.
async fn settle_one(
    core: &Core,
    report: &DamageReport,
    place: Option<(StripeId, Shard)>,
) -> Result<bool, MetaError> {
    let Some((stripe, shard)) = place else {
        // The shard was moved or released before the read that missed it.
        core.healing.unfounded.fetch_add(1, Ordering::Relaxed);
        return Ok(true);
    };
    // Not through the pool's reports: this very read must not report itself.
    let reader = VerifiedReader::silent(Arc::clone(&core.pool), CHECK_WITHIN);
    let block = BlockRef { digest: shard.digest, len: shard.len };
    match reader.whole(report.node, block, None).await {
        Ok(_) => {
            core.healing.unfounded.fetch_add(1, Ordering::Relaxed);
            Ok(true)
        }
        Err(fault) if fault.shard_is_gone() => {
            tracing::warn!(node = %report.node, digest = %report.digest, %stripe, %fault, "a node has lost a shard");
            let marked = take_off(core, stripe, report.node, &report.digest).await?;
            if marked {
                core.healing.marked.fetch_add(1, Ordering::Relaxed);
                telemetry::shard_lost();
                core.wake_deliveries();
            }
            Ok(marked)
        }
        // Whether it is there is not known; the node's silence is repair's matter.
        Err(_) => Ok(false),
    }
}

/// Takes a shard off its node in the stripe's row, so that completion finds it another. False when others were always
/// faster, or the row cannot be changed.
pub(super) async fn take_off(
    core: &Core,
    id: StripeId,
    node: NodeId,
    digest: &Digest,
) -> Result<bool, MetaError> {
    for _ in 0..MARK_ATTEMPTS {
        let Some(mut stripe) = core.meta.stripe(id).await? else { return Ok(true) };
        let lost = stripe
            .shards
            .iter_mut()
            .flatten()
            .find(|shard| shard.digest == *digest && shard.node == Some(node));
        let Some(lost) = lost else { return Ok(true) };
        lost.node = None;
        let version = stripe.version;
        stripe.version += 1;
        match core.meta.put_stripe(&stripe, version).await {
            Ok(()) | Err(PlacementError::Gone { .. }) => return Ok(true),
            Err(PlacementError::Version { .. }) => {}
            Err(PlacementError::Meta(error)) => return Err(error),
            Err(error) => {
                tracing::error!(%error, stripe = %id, "a lost shard cannot be marked");
                return Ok(false);
            }
        }
    }
    Ok(false)
}
