//! Nodes: known from the start, from the metadata, from their own records; agreed with before they are used.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use holdfast_protocol::record::{
    Agreement, NodeRecord, Prices, Record, SignatureError, Signed, SignedAgreement, Unverified,
};
use holdfast_protocol::transport::{Connection, DialError};
use holdfast_protocol::{NodeId, OperatorId};
use holdfast_retrieval::placement::FailureDomain;
use holdfast_retrieval::pool::{KnownNode, PoolError};
use tokio_util::sync::CancellationToken;

use crate::gateway::Core;
use crate::meta::{DomainFacts, MetaError, NodeEntry};

/// Agreements run this long; renewed long before by a later agreement.
const AGREEMENT_MS: u64 = 365 * 24 * 3600 * 1000;
/// Either side says this long before that it leaves.
const NOTICE_MS: u64 = 7 * 24 * 3600 * 1000;
/// How often agreements and the delegation are looked at for their ends.
const RENEWALS_EVERY: Duration = Duration::from_secs(600);
/// Nodes greeted at the same time.
const GREETED_AT_ONCE: usize = 16;
/// How long taking a node in may take: a dial, Hello, Status and Agree, each far below a second when all is well.
const ADMIT_WITHIN: Duration = Duration::from_secs(20);

/// Puts the nodes that the metadata remembers, and the seeds, into the pool.
pub(crate) async fn restore(core: &Core) -> Result<(), MetaError> {
    let now_ms = core.config.clock.now_ms();
    let entries = core.meta.nodes().await?;
    for entry in entries.iter().filter(|entry| !entry.removed) {
        tell_pool(core, known(core, entry, now_ms));
    }
    for seed in &core.config.seeds {
        let before = entries.iter().find(|entry| entry.id == seed.id && !entry.removed);
        let mut node = match before {
            Some(entry) => known(core, entry, now_ms),
            None => stranger(seed.id, Vec::new()),
        };
        if !seed.addresses.is_empty() {
            node.addresses.clone_from(&seed.addresses);
        }
        // Whoever names an address at the start knows better than the row: left as it is, membership would bring the
        // old address back, also to other gateways.
        if let Some(entry) =
            before.filter(|entry| !node.addresses.is_empty() && entry.addresses != node.addresses)
        {
            let moved = NodeEntry { addresses: node.addresses.clone(), ..entry.clone() };
            core.meta.upsert_node(&moved).await?;
        }
        tell_pool(core, node);
    }
    Ok(())
}

pub(super) fn tell_pool(core: &Core, node: KnownNode) {
    if let Err(error) = core.pool.upsert(node) {
        tracing::warn!(%error, "a node is left out");
    }
}

/// Greets nodes without an agreement, again and again, until stopped.
pub(super) async fn keep(core: Arc<Core>, stop: CancellationToken) {
    // States and free bytes are kept fresh by the pool's own upkeep.
    let _upkeep = core.pool.start_upkeep();
    let mut renew_at = tokio::time::Instant::now() + RENEWALS_EVERY;
    loop {
        if tokio::time::Instant::now() >= renew_at {
            renew_at = tokio::time::Instant::now() + RENEWALS_EVERY;
            tokio::select! {
                () = stop.cancelled() => return,
                () = super::renew::all(&core) => {}
            }
        }
        let strangers: Vec<KnownNode> = core
            .pool
            .nodes()
            .into_iter()
            .map(|view| view.known)
            .filter(|known| known.agreement.is_none() && !known.addresses.is_empty())
            .collect();
        let greetings = futures::stream::iter(strangers)
            .map(|node| greet(&core, node))
            .buffer_unordered(GREETED_AT_ONCE)
            .collect::<Vec<()>>();
        tokio::select! {
            () = stop.cancelled() => return,
            _ = greetings => {}
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(core.config.timing.probe_interval) => {}
        }
    }
}

async fn greet(core: &Core, node: KnownNode) {
    if let Err(error) = admit(core, node.id, node.addresses, None).await {
        tracing::debug!(node = %node.id, %error, "no agreement with a node yet; trying again");
    }
}

/// Takes a node in: reaches it, learns its record, agrees with it, remembers it. A node that says Hello and then nothing
/// holds up nobody else.
pub(crate) async fn admit(
    core: &Core,
    id: NodeId,
    addresses: Vec<SocketAddr>,
    record: Option<Unverified<NodeRecord>>,
) -> Result<NodeEntry, AdmitError> {
    within(id, take_in(core, Candidate { id, addresses, record, ..Candidate::of(id) })).await
}

/// As [`admit`], over a connection that stands: one that we dialled, with its `addresses`, or without any one that the
/// node dialled.
pub(crate) async fn admit_over(
    core: &Core,
    connection: Arc<dyn Connection>,
    addresses: Vec<SocketAddr>,
    record: Option<Unverified<NodeRecord>>,
    invite: Option<[u8; 16]>,
) -> Result<NodeEntry, AdmitError> {
    let id = connection.peer();
    let candidate = Candidate { id, addresses, record, connection: Some(connection), invite };
    within(id, take_in(core, candidate)).await
}

async fn within(
    node: NodeId,
    taking_in: impl Future<Output = Result<NodeEntry, AdmitError>>,
) -> Result<NodeEntry, AdmitError> {
    match tokio::time::timeout(ADMIT_WITHIN, taking_in).await {
        Ok(outcome) => outcome,
        Err(_) => Err(AdmitError::Timeout { node, within_s: ADMIT_WITHIN.as_secs() }),
    }
}

/// A node on its way in.
struct Candidate {
    id: NodeId,
    addresses: Vec<SocketAddr>,
    record: Option<Unverified<NodeRecord>>,
    connection: Option<Arc<dyn Connection>>,
    invite: Option<[u8; 16]>,
}

impl Candidate {
    fn of(id: NodeId) -> Self {
        Self { id, addresses: Vec::new(), record: None, connection: None, invite: None }
    }
}

async fn take_in(core: &Core, candidate: Candidate) -> Result<NodeEntry, AdmitError> {
    let Candidate { id, addresses, record, connection, invite } = candidate;
    let now_ms = core.config.clock.now_ms();
    let before = core.meta.node(id).await?;
    let mut node = match &before {
        Some(entry) if !entry.removed => known(core, entry, now_ms),
        _ => stranger(id, addresses.clone()),
    };
    if !addresses.is_empty() || connection.is_some() {
        node.addresses.clone_from(&addresses);
    }
    core.pool.upsert(node.clone())?;
    let remote = connection.as_ref().and_then(|connection| connection.remote_addr());
    let record = match (record, connection) {
        (record, Some(connection)) => {
            let shown = core.pool.adopt(connection).await?.node_record;
            record.or(shown).ok_or(AdmitError::NoRecord { node: id })?
        }
        (Some(record), None) => record,
        (None, None) => ask_record(core, &node).await?,
    };
    let facts = check_record(&record, id, now_ms)?;
    let record_facts = facts.record();
    // A node that nobody can dial shares its network with whoever comes from the same place.
    let seen: Vec<SocketAddr> =
        if node.addresses.is_empty() { remote.into_iter().collect() } else { node.addresses.clone() };
    let domain = domain_facts(record_facts, &seen);
    node.domain = FailureDomain::new(record_facts.operator, &seen, record_facts.asn);
    let status =
        core.pool.peer(id).await?.status().await.map_err(|source| PoolError::Call { node: id, source })?;
    node.capacity_bytes = status.capacity_bytes;
    node.free_bytes = status.free_bytes;
    core.pool.upsert(node.clone())?;
    let agreement = agree(core, id, record_facts, before.as_ref(), status.free_bytes).await?;
    let mut notes = before.as_ref().map(|entry| entry.notes.clone()).unwrap_or_default();
    notes.invite = invite.or(notes.invite);
    if before.as_ref().is_some_and(|entry| entry.removed) {
        notes = crate::meta::NodeNotes { invite, ..crate::meta::NodeNotes::default() };
    }
    let entry = NodeEntry {
        id,
        addresses: node.addresses.clone(),
        agreement_id: Some(agreement.id()),
        agreement: Some(agreement.to_wire()),
        record: Some(record),
        domain,
        capacity_bytes: agreement.terms().capacity_bytes,
        free_bytes: status.free_bytes,
        joined_ms: before.as_ref().map_or(now_ms, |entry| entry.joined_ms),
        removed: false,
        notes,
    };
    if before.as_ref() != Some(&entry) {
        core.meta.upsert_node(&entry).await?;
    }
    node.agreement = Some(agreement.id());
    core.pool.upsert(node)?;
    if before.is_none_or(|entry| entry.removed || entry.agreement_id != Some(agreement.id())) {
        let dials_in = entry.addresses.is_empty();
        tracing::info!(node = %id, capacity_bytes = entry.capacity_bytes, dials_in, "a node was taken in");
    }
    Ok(entry)
}

/// Keeps a newer record of a node that is in.
pub(super) async fn learn(
    core: &Core,
    before: &NodeEntry,
    record: Unverified<NodeRecord>,
) -> Result<NodeEntry, AdmitError> {
    let entry = NodeEntry { record: Some(record), ..before.clone() };
    core.meta.upsert_node(&entry).await?;
    Ok(entry)
}

/// Asks a node for its own record, on a connection made for that and then kept.
async fn ask_record(core: &Core, node: &KnownNode) -> Result<Unverified<NodeRecord>, AdmitError> {
    // Through the pool first: it backs off from nodes that fail, and we keep to that.
    core.pool.peer(node.id).await?;
    let connection = core.config.transport.dial(node.id, &node.addresses).await?;
    let reply = core.pool.adopt(connection).await?;
    reply.node_record.ok_or(AdmitError::NoRecord { node: node.id })
}

pub(super) fn check_record(
    record: &Unverified<NodeRecord>,
    id: NodeId,
    now_ms: u64,
) -> Result<Signed<NodeRecord>, AdmitError> {
    let signed = record.verify_by(id.key()).map_err(|source| AdmitError::Record { node: id, source })?;
    let facts = signed.record();
    if facts.node != id {
        return Err(AdmitError::Record {
            node: id,
            source: SignatureError::Signer {
                record: NodeRecord::NAME,
                expected: id.key(),
                found: facts.node.key(),
            },
        });
    }
    if now_ms >= facts.expires_ms {
        return Err(AdmitError::Record {
            node: id,
            source: SignatureError::Expired {
                record: NodeRecord::NAME,
                from_ms: facts.issued_ms,
                until_ms: facts.expires_ms,
                now_ms,
            },
        });
    }
    Ok(signed)
}

/// The agreement in force, or a new one over what the node has free.
async fn agree(
    core: &Core,
    id: NodeId,
    record: &NodeRecord,
    before: Option<&NodeEntry>,
    free_bytes: u64,
) -> Result<SignedAgreement, AdmitError> {
    let now_ms = core.config.clock.now_ms();
    let kept = before.and_then(|entry| super::renew::in_force(core, entry, now_ms));
    // An agreement in force is kept: asking for no more than it covers makes the pool find it in the Hello.
    let capacity_bytes = kept.as_ref().map_or(free_bytes, |agreement| agreement.terms().capacity_bytes);
    let signed = propose(core, id, record, capacity_bytes, now_ms)?;
    Ok(core.pool.ensure_agreement(id, signed).await?)
}

/// Terms for a year from `start_ms` on, signed by the namespace.
pub(super) fn propose(
    core: &Core,
    id: NodeId,
    record: &NodeRecord,
    capacity_bytes: u64,
    start_ms: u64,
) -> Result<Signed<Agreement>, AdmitError> {
    let mut nonce = [0u8; 16];
    getrandom::fill(&mut nonce).map_err(|_| AdmitError::Random)?;
    let terms = Agreement {
        v: Agreement::VERSION,
        namespace: core.config.keys.namespace_id(),
        node: id,
        operator: record.operator,
        capacity_bytes,
        prices: Prices::clone(&record.prices),
        start_ms,
        end_ms: start_ms.saturating_add(AGREEMENT_MS),
        notice_ms: NOTICE_MS,
        nonce,
    };
    Ok(Signed::sign(terms, core.config.keys.namespace()))
}

fn domain_facts(record: &NodeRecord, addresses: &[SocketAddr]) -> DomainFacts {
    DomainFacts {
        operator: Some(record.operator),
        network: addresses.first().map(SocketAddr::ip),
        asn: record.asn,
    }
}

pub(super) fn known(core: &Core, entry: &NodeEntry, now_ms: u64) -> KnownNode {
    let in_force = super::renew::in_force(core, entry, now_ms);
    let operator = entry.domain.operator.unwrap_or(OperatorId(entry.id.key()));
    // Of a node that dials in only the place is known from which it came.
    let seen: Vec<SocketAddr> = match entry.domain.network {
        Some(ip) if entry.addresses.is_empty() => vec![SocketAddr::new(ip, 0)],
        _ => entry.addresses.clone(),
    };
    KnownNode {
        id: entry.id,
        addresses: entry.addresses.clone(),
        agreement: in_force.map(|agreement| agreement.id()),
        domain: FailureDomain::new(operator, &seen, entry.domain.asn),
        capacity_bytes: entry.capacity_bytes,
        free_bytes: entry.free_bytes,
        accepts_writes: entry.notes.leaving.is_none(),
    }
}

/// A node of which nothing is known yet.
fn stranger(id: NodeId, addresses: Vec<SocketAddr>) -> KnownNode {
    KnownNode {
        id,
        domain: FailureDomain::new(OperatorId(id.key()), &addresses, 0),
        addresses,
        agreement: None,
        capacity_bytes: 0,
        free_bytes: 0,
        accepts_writes: true,
    }
}

/// Takes a node out: no new blocks, and the next repair gives its shards to others. False when it is not known.
pub(crate) async fn remove(core: &Core, id: NodeId) -> Result<bool, MetaError> {
    let Some(mut entry) = core.meta.node(id).await? else { return Ok(false) };
    entry.removed = true;
    entry.notes.leaving = None;
    core.meta.upsert_node(&entry).await?;
    core.pool.remove(id);
    // Nobody will deliver them any more.
    core.meta.forget_releases_of(id).await?;
    tracing::info!(node = %id, "a node was taken out");
    Ok(true)
}

/// Why a node was not taken in.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum AdmitError {
    /// It cannot be reached, or answers wrongly.
    #[error("{error}{}", reason(.error))]
    Pool {
        /// What the pool said.
        error: PoolError,
    },
    /// It cannot be dialled.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// It took too long over one of the steps.
    #[error("node {node} was not taken in within {within_s} s: it answers Hello, but not what follows")]
    Timeout {
        /// Which.
        node: NodeId,
        /// How long it had.
        within_s: u64,
    },
    /// It says nothing of itself.
    #[error("node {node} shows no record of its own")]
    NoRecord {
        /// Which.
        node: NodeId,
    },
    /// What it says of itself does not hold.
    #[error("the record of node {node} does not hold: {source}")]
    Record {
        /// Which.
        node: NodeId,
        /// What does not hold.
        source: SignatureError,
    },
    /// Metadata.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// No random bytes for a nonce.
    #[error("the system's random source failed")]
    Random,
}

impl From<PoolError> for AdmitError {
    fn from(error: PoolError) -> Self {
        Self::Pool { error }
    }
}

fn reason(error: &PoolError) -> String {
    std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default()
}

impl AdmitError {
    /// Whether trying again later can help.
    pub(crate) fn is_retryable(&self) -> bool {
        match self {
            Self::Pool { error } => error.is_retryable(),
            Self::Dial(_) | Self::Random | Self::Timeout { .. } => true,
            Self::NoRecord { .. } | Self::Record { .. } => false,
            Self::Meta(error) => error.is_retryable(),
        }
    }
}
