//! What a gateway does between requests: keeps nodes known and agreed with, delivers what was queued, completes and
//! packs stripes, answers nodes that ask, repairs.
//!
//! Every task ends with one token; every queue is rows in the metadata, so a restart goes on where it stopped.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::gateway::Core;

mod auto;
mod complete;
mod deliver;
mod heal;
mod inbound;
mod nodes;
mod pack;
mod repair;

pub(crate) use auto::AutoRepair;
pub(crate) use heal::Healing;
pub(crate) use inbound::Connections;
pub(crate) use nodes::{AdmitError, admit, remove, restore as restore_nodes};
pub(crate) use pack::{Expansion, PackRunner};
pub(crate) use repair::{RepairRunner, RepairState};

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
    tasks.spawn(deliver::commits(Arc::clone(&core), stop.clone()));
    tasks.spawn(deliver::releases(Arc::clone(&core), stop.clone()));
    tasks.spawn(complete::run(Arc::clone(&core), stop.clone()));
    tasks.spawn(complete::sweep(Arc::clone(&core), stop.clone()));
    tasks.spawn(heal::run(Arc::clone(&core), stop.clone()));
    tasks.spawn(auto::run(Arc::clone(&core), stop.clone()));
    tasks.spawn(pack::run(Arc::clone(&core), stop.clone()));
    tasks.spawn(inbound::accept(Arc::clone(&core), stop.clone()));
    tasks.spawn(inbound::serve(Arc::clone(&core), connections, stop.clone()));
    tasks.spawn(repair::stop_with(core, stop));
    Background { tasks }
}
