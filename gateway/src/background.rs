//! What a gateway does between requests: keeps nodes known and agreed with, delivers what was queued, completes and
//! packs stripes, answers nodes that ask, repairs.
//!
//! Every task ends with one token; every queue is rows in the metadata, so a restart goes on where it stopped. Of the
//! gateways of one namespace one owns what must not be done twice ([`ownership`]); the others serve.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::gateway::Core;

mod auto;
mod complete;
mod counts;
mod declared;
mod deliver;
mod drain;
mod heal;
mod inbound;
mod join;
mod lifecycle;
mod membership;
mod nodes;
mod ownership;
mod pack;
mod reconcile;
mod renew;
mod repair;
mod retain;
mod surprise;

pub(crate) use auto::AutoRepair;
pub(crate) use drain::Drains;
pub(crate) use heal::Healing;
pub(crate) use inbound::Connections;
pub(crate) use join::{Came, JoinError, Joins, Pass, announce, check_invite, dial_back};
pub(crate) use nodes::{remove, restore as restore_nodes};
pub(crate) use ownership::Ownership;
pub(crate) use pack::{Expansion, PackRunner};
pub(crate) use reconcile::Reconciled;
pub(crate) use repair::{RepairRunner, RepairState};
pub(crate) use surprise::Surprise;

/// The running tasks.
pub(crate) struct Background {
    tasks: TaskTracker,
}

impl Background {
    /// Returns when all have ended; they do soon after their token fired.
    pub(crate) async fn stopped(self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Starts everything.
pub(crate) fn start(core: Arc<Core>, connections: Connections, stop: CancellationToken) -> Background {
    let tasks = TaskTracker::new();
    tasks.spawn(nodes::keep(Arc::clone(&core), stop.clone()));
    tasks.spawn(ownership::keep(Arc::clone(&core), stop.clone()));
    tasks.spawn(counts::keep(Arc::clone(&core), stop.clone()));
    tasks.spawn(membership::keep(Arc::clone(&core), stop.clone()));
    tasks.spawn(ownership::while_owner(Arc::clone(&core), stop.clone(), deliver::commits));
    tasks.spawn(ownership::while_owner(Arc::clone(&core), stop.clone(), deliver::releases));
    tasks.spawn(ownership::while_owner(Arc::clone(&core), stop.clone(), complete::run));
    tasks.spawn(ownership::while_owner(Arc::clone(&core), stop.clone(), complete::sweep));
    // Reports come from this gateway's reads; what two gateways settle of one report is settled once.
    tasks.spawn(heal::run(Arc::clone(&core), stop.clone()));
    tasks.spawn(ownership::while_owner(Arc::clone(&core), stop.clone(), auto::run));
    tasks.spawn(ownership::while_owner(Arc::clone(&core), stop.clone(), pack::run));
    tasks.spawn(ownership::while_owner(Arc::clone(&core), stop.clone(), surprise::run));
    tasks.spawn(ownership::while_owner(Arc::clone(&core), stop.clone(), retain::run));
    tasks.spawn(ownership::while_owner(Arc::clone(&core), stop.clone(), lifecycle::run));
    tasks.spawn(ownership::while_owner(Arc::clone(&core), stop.clone(), declared::run));
    tasks.spawn(drain::run(Arc::clone(&core), stop.clone()));
    tasks.spawn(ownership::while_owner(Arc::clone(&core), stop.clone(), reconcile::run));
    tasks.spawn(inbound::accept(Arc::clone(&core), stop.clone()));
    tasks.spawn(inbound::serve(Arc::clone(&core), connections, stop.clone()));
    tasks.spawn(repair::stop_with(core, stop));
    Background { tasks }
}

#[cfg(test)]
mod tests;
