//! What all objects that a process reads directly share: nodes, connections, cache, placement and grants.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_protocol::OperatorId;
use parking_lot::Mutex;

use super::DirectError;
use super::table::TicketTable;
use super::ticket::ReadTicket;
use crate::cache::BlockCache;
use crate::fetch::{Beside, FetchConfig, Fetcher, GrantHolder, Placement, ReadObserver, Slot};
use crate::placement::FailureDomain;
use crate::pool::{KnownNode, NodePool};

/// Kinds of tickets (a namespace's bucket each) that one client tells apart; the least use for more is to open
/// another client.
const KINDS_MAX: usize = 1024;

/// What stands beside a client's reads.
#[derive(Clone)]
pub struct DirectConfig {
    /// Times and bounds.
    pub fetch: FetchConfig,
    /// When a block that cannot be had is given up, whatever is still tried.
    pub deadline: Duration,
    /// Verified blocks kept close.
    pub cache: Option<Arc<BlockCache>>,
    /// Who is told what was served.
    pub observer: Option<Arc<dyn ReadObserver>>,
}

impl Default for DirectConfig {
    fn default() -> Self {
        Self { fetch: FetchConfig::default(), deadline: Duration::from_secs(30), cache: None, observer: None }
    }
}

/// Reads directly from nodes, under grants made out to the pool's own key.
pub struct DirectClient {
    pool: Arc<NodePool>,
    table: Arc<TicketTable>,
    config: DirectConfig,
    kinds: Mutex<HashMap<Vec<u8>, Kind>>,
}

struct Kind {
    fetcher: Fetcher,
    grants: Arc<GrantHolder>,
}

impl DirectClient {
    /// A client over `pool`, which needs to know no node yet.
    pub fn new(pool: Arc<NodePool>, config: DirectConfig) -> Arc<Self> {
        let table = Arc::new(TicketTable::new());
        Arc::new(Self { pool, table, config, kinds: Mutex::default() })
    }

    /// The nodes.
    pub fn pool(&self) -> &Arc<NodePool> {
        &self.pool
    }

    /// When a block that cannot be had is given up.
    pub(super) fn deadline(&self) -> Duration {
        self.config.deadline
    }

    /// The cache, if there is one.
    pub fn cache(&self) -> Option<&Arc<BlockCache>> {
        self.config.cache.as_ref()
    }

    /// The fetcher of all tickets of this kind; its grant is renewed by this one's.
    pub(super) fn fetcher_for(&self, ticket: &ReadTicket) -> Result<Fetcher, DirectError> {
        let mut kinds = self.kinds.lock();
        if kinds.len() >= KINDS_MAX {
            kinds.clear();
        }
        let kind = kinds.entry(ticket.kind.to_vec()).or_insert_with(|| {
            let grants = Arc::new(GrantHolder::default());
            let beside = Beside {
                cache: self.config.cache.clone(),
                grants: Some(Arc::clone(&grants)),
                observer: self.config.observer.clone(),
            };
            let placement = Arc::clone(&self.table) as Arc<dyn Placement>;
            let fetcher = Fetcher::with(Arc::clone(&self.pool), placement, self.config.fetch.clone(), beside);
            Kind { fetcher, grants }
        });
        if let Some(grant) = &ticket.grant {
            kind.grants.set(grant.clone());
        }
        Ok(kind.fetcher.clone())
    }

    /// Presents the grant of a newer ticket.
    pub(super) fn renew(&self, ticket: &ReadTicket) {
        if let (Some(grant), Some(kind)) = (&ticket.grant, self.kinds.lock().get(&ticket.kind[..])) {
            kind.grants.set(grant.clone());
        }
    }

    /// Takes in where blocks and nodes are.
    pub(super) fn learn(&self, ticket: &ReadTicket) -> Result<(), DirectError> {
        for node in &ticket.nodes {
            let known = KnownNode {
                id: node.id,
                addresses: node.addresses.clone(),
                agreement: None,
                domain: FailureDomain::new(OperatorId(node.id.key()), &node.addresses, 0),
                capacity_bytes: 0,
                free_bytes: 0,
                accepts_writes: false,
            };
            self.pool.upsert(known).map_err(|error| DirectError::Node(Arc::new(error)))?;
        }
        let stripes: Vec<_> = ticket.stripes.iter().cloned().map(Arc::new).collect();
        for ((digest, _), (stripe, slot)) in ticket.blocks.iter().zip(&ticket.places) {
            // The ticket was checked when it was decoded.
            let Some(stripe) = stripes.get(*stripe as usize) else { continue };
            self.table.enter(*digest, Slot { stripe: Arc::clone(stripe), slot: usize::from(*slot) });
        }
        Ok(())
    }
}
