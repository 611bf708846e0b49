//! Ownership: of all gateways that share one metadata store, one does what must not be done twice.
//!
//! Delivery, completion, repair, packing and sweeping ask [`Ownership::held`] before each round, and commit with the
//! fence they got. A gateway alone on its store owns the work a moment after its start.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::gateway::Core;
use crate::meta::{Fence, Lease};

/// The name of the lease.
const NAME: &str = "upkeep";
/// How long a lease runs: what a killed owner leaves undone waits this long. Far above a renewal's delay in a busy
/// database, so that ownership does not wander.
const TERM: Duration = Duration::from_secs(15);
/// How often it is renewed, or asked for.
const EVERY: Duration = Duration::from_secs(4);
/// An owner stops by itself this long before others may take over: rounds under way get to their end.
const MARGIN: Duration = Duration::from_secs(3);

const _: () = assert!(EVERY.as_secs() * 2 + MARGIN.as_secs() < TERM.as_secs());

/// Whether this gateway owns the shared work.
pub(crate) struct Ownership {
    held: RwLock<Option<Held>>,
    changed: watch::Sender<bool>,
}

#[derive(Clone)]
struct Held {
    lease: Lease,
    /// By our own clock, which nobody sets back.
    until: Instant,
}

impl Default for Ownership {
    fn default() -> Self {
        Self { held: RwLock::default(), changed: watch::Sender::new(false) }
    }
}

impl Ownership {
    /// What to guard the owner's transactions with; `None` when another gateway owns the work, or nobody does yet.
    pub(crate) fn held(&self) -> Option<Fence> {
        let held = self.held.read();
        held.as_ref().filter(|held| Instant::now() < held.until).map(|held| held.lease.fence().clone())
    }

    /// Whether this gateway owns the work now.
    pub(crate) fn is_owner(&self) -> bool {
        self.held().is_some()
    }

    /// Returns once this gateway owns the work; at once when it does.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn gained(&self) {
        let mut changed = self.changed.subscribe();
        while !self.is_owner() {
            // The sender lives as long as we do.
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// Returns once this gateway does not own the work, or not any more.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn lost(&self) {
        let mut changed = self.changed.subscribe();
        loop {
            let until = self.held.read().as_ref().map(|held| held.until);
            let Some(until) = until.filter(|until| Instant::now() < *until) else { return };
            tokio::select! {
                () = tokio::time::sleep_until(until.into()) => {}
                moved = changed.changed() => if moved.is_err() { return },
            }
        }
    }

    fn set(&self, lease: Option<(Lease, Instant)>) {
        let is_owner = lease.is_some();
        *self.held.write() = lease.map(|(lease, asked)| Held { lease, until: asked + TERM - MARGIN });
        self.changed.send_replace(is_owner);
    }

    fn lease(&self) -> Option<Lease> {
        self.held.read().as_ref().map(|held| held.lease.clone())
    }
}

/// Asks for the lease, renews it while it is ours, and gives it back at the end.
pub(super) async fn keep(core: Arc<Core>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = turn(&core) => {}
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(EVERY) => {}
        }
    }
    if let Some(lease) = core.ownership.lease() {
        core.ownership.set(None);
        if let Err(error) = core.meta.release_lease(&lease).await {
            tracing::debug!(%error, "the lease was not given back; it ends by itself");
        }
    }
}

/// Does `work` whenever this gateway owns it; its token fires when it does not any more.
pub(super) async fn while_owner<F>(
    core: Arc<Core>,
    stop: CancellationToken,
    work: impl Fn(Arc<Core>, CancellationToken) -> F,
) where
    F: Future<Output = ()>,
{
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = core.ownership.gained() => {}
        }
        let ours = stop.child_token();
        let mut work = std::pin::pin!(work(Arc::clone(&core), ours.clone()));
        tokio::select! {
            () = &mut work => return,
            () = core.ownership.lost() => ours.cancel(),
        }
        work.await;
    }
}

async fn turn(core: &Core) {
    let ours = core.ownership.lease();
    // Time runs from before the question: the answer may take long.
    let asked = Instant::now();
    let outcome = match &ours {
        Some(lease) => core.meta.renew_lease(lease, TERM).await,
        None => core.meta.acquire_lease(NAME, core.config.keys.node_id(), TERM).await,
    };
    match outcome {
        Ok(Some(lease)) => {
            if ours.is_none() {
                tracing::info!(fence = lease.fence().number(), "this gateway owns the shared work");
            }
            core.meta.own(lease.fence());
            core.ownership.set(Some((lease, asked)));
        }
        Ok(None) => {
            if ours.is_some() {
                tracing::warn!("another gateway took over the shared work");
            }
            core.ownership.set(None);
        }
        // What we hold runs out by itself if this goes on.
        Err(error) => {
            tracing::warn!(%error, "the lease of the shared work cannot be asked for; trying again")
        }
    }
}
