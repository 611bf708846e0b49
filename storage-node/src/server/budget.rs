//! What peers may take of this node: connections, bytes in memory, control requests, grant bytes.
//!
//! Delegates of namespaces with an agreement and strangers draw on separate pools, so that no number of
//! strangers can starve those who pay. Everything here has a bound named in `node/limits.rs`.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use holdfast_protocol::limits::BLOCK_LEN_MAX;
use holdfast_protocol::message::{Refusal, RefusalReason};
use holdfast_protocol::record::{Grant, PresentedGrant, SignatureError};
use holdfast_protocol::{NamespaceId, NodeId};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;

use super::strangers::{Seated, Strangers};
use crate::metric;
use crate::node::limits::{
    CHALLENGE_BURST, CHALLENGES_PER_SECOND, CONNECTIONS_PER_READER, CONTROL_BURST, CONTROL_PER_SECOND,
    GRANT_CHECKED_MS, GRANTS_CHECKED_MAX, GRANTS_TRACKED_MAX, HEADERS_AT_ONCE_MAX, NodeLimits, PEERS_MAX,
    READER_HEADERS_AT_ONCE_MAX,
};

/// How long a request may wait for memory before it is told to come back.
const MEMORY_DEADLINE: Duration = Duration::from_secs(10);

/// On whose account a connection runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// A peer that showed no delegation of a namespace with an agreement.
    Stranger,
    /// A peer that showed a grant of a namespace with an agreement: sent much, believed nothing.
    Reader,
    /// A delegate of a namespace with an agreement.
    Delegate,
}

/// The node's pools.
pub(crate) struct Budgets {
    strangers: Arc<Strangers>,
    reader_places: Arc<Semaphore>,
    delegate_places: Arc<Semaphore>,
    stranger_bytes: Arc<Semaphore>,
    reader_bytes: Arc<Semaphore>,
    delegate_bytes: Arc<Semaphore>,
    reader_headers: Semaphore,
    delegate_headers: Semaphore,
    peer_bytes: usize,
    peers: Mutex<HashMap<NodeId, Weak<PeerBudget>>>,
}

/// What one peer may take, over all of its connections.
pub(crate) struct PeerBudget {
    bytes: Arc<Semaphore>,
    reader_places: Arc<Semaphore>,
    control: Mutex<TokenBucket>,
    challenges: Mutex<TokenBucket>,
}

/// A connection's place; given back when dropped.
pub(crate) enum Place {
    /// A stranger's seat, which may be given to somebody else.
    Stranger(Seated),
    /// A reader's: one of its own few, and one of all.
    Reader { _own: OwnedSemaphorePermit, _place: OwnedSemaphorePermit },
    /// A delegate's, kept as long as the connection.
    Delegate { _permit: OwnedSemaphorePermit },
}

impl Place {
    pub(crate) fn standing(&self) -> Standing {
        match self {
            Self::Stranger(_) => Standing::Stranger,
            Self::Reader { .. } => Standing::Reader,
            Self::Delegate { .. } => Standing::Delegate,
        }
    }

    /// Fires when the place was given to somebody else; only a stranger's ever is.
    pub(crate) fn displaced(&self) -> CancellationToken {
        match self {
            Self::Stranger(seated) => seated.displaced.clone(),
            Self::Reader { .. } | Self::Delegate { .. } => CancellationToken::new(),
        }
    }

    /// The peer asked for something.
    pub(crate) fn touch(&self) {
        if let Self::Stranger(seated) = self {
            seated.touch();
        }
    }
}

/// Block bytes that may be in memory; given back when dropped.
pub(crate) struct Reservation {
    bytes: u32,
    _peer: OwnedSemaphorePermit,
    _pool: OwnedSemaphorePermit,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        metrics::gauge!(metric::BYTES_IN_FLIGHT).decrement(f64::from(self.bytes));
    }
}

impl Budgets {
    pub(crate) fn new(limits: &NodeLimits) -> Self {
        // A pool smaller than one block could never serve one.
        let pool = |bytes: usize| Arc::new(Semaphore::new(bytes.max(BLOCK_LEN_MAX as usize)));
        Self {
            strangers: Strangers::new(limits.stranger_connections),
            reader_places: Arc::new(Semaphore::new(limits.reader_connections)),
            delegate_places: Arc::new(Semaphore::new(limits.delegate_connections)),
            stranger_bytes: pool(limits.stranger_bytes),
            reader_bytes: pool(limits.reader_bytes),
            delegate_bytes: pool(limits.delegate_bytes),
            reader_headers: Semaphore::new(READER_HEADERS_AT_ONCE_MAX),
            delegate_headers: Semaphore::new(HEADERS_AT_ONCE_MAX),
            peer_bytes: limits.peer_bytes.max(BLOCK_LEN_MAX as usize),
            peers: Mutex::new(HashMap::new()),
        }
    }

    /// A place for a new connection, whose peer is a stranger until Hello shows otherwise; `None` when all are taken by
    /// others who are busy.
    pub(crate) fn admit(&self, peer: NodeId, remote: Option<IpAddr>) -> Option<Place> {
        self.strangers.seat(peer, remote).map(Place::Stranger)
    }

    /// A delegate's place, if one is left.
    pub(crate) fn promote(&self) -> Option<Place> {
        let permit = self.delegate_places.clone().try_acquire_owned().ok()?;
        Some(Place::Delegate { _permit: permit })
    }

    /// A reader's place, if one is left and `peer` has not several already.
    pub(crate) fn promote_reader(&self, peer: &PeerBudget) -> Option<Place> {
        let own = peer.reader_places.clone().try_acquire_owned().ok()?;
        let place = self.reader_places.clone().try_acquire_owned().ok()?;
        Some(Place::Reader { _own: own, _place: place })
    }

    /// Waits for a place to read a request's header. Strangers need none: their connections may run so few streams that
    /// those bound it already.
    pub(crate) async fn header(&self, standing: Standing) -> Option<SemaphorePermit<'_>> {
        match standing {
            Standing::Stranger => None,
            Standing::Reader => self.reader_headers.acquire().await.ok(),
            Standing::Delegate => self.delegate_headers.acquire().await.ok(),
        }
    }

    /// The budget that all connections of `peer` share.
    pub(crate) fn of_peer(&self, peer: NodeId, now_ms: u64) -> Arc<PeerBudget> {
        let mut peers = self.peers.lock();
        if let Some(budget) = peers.get(&peer).and_then(Weak::upgrade) {
            return budget;
        }
        if peers.len() >= PEERS_MAX {
            // Live ones are bounded by the places; what is left over belongs to closed connections.
            peers.retain(|_, budget| budget.strong_count() > 0);
        }
        let budget = Arc::new(PeerBudget {
            bytes: Arc::new(Semaphore::new(self.peer_bytes)),
            reader_places: Arc::new(Semaphore::new(CONNECTIONS_PER_READER)),
            control: Mutex::new(TokenBucket::full(CONTROL_BURST, CONTROL_PER_SECOND, now_ms)),
            challenges: Mutex::new(TokenBucket::full(CHALLENGE_BURST, CHALLENGES_PER_SECOND, now_ms)),
        });
        peers.insert(peer, Arc::downgrade(&budget));
        budget
    }

    /// Waits until `bytes` of block may be in memory for this peer.
    ///
    /// # Cancel safety
    /// Cancel safe: what was reserved is given back.
    pub(crate) async fn reserve(
        &self,
        peer: &PeerBudget,
        standing: Standing,
        bytes: u32,
    ) -> Result<Reservation, Refusal> {
        let pool = match standing {
            Standing::Stranger => &self.stranger_bytes,
            Standing::Reader => &self.reader_bytes,
            Standing::Delegate => &self.delegate_bytes,
        };
        let both = async {
            // The peer's own bound first: a greedy peer queues behind itself, not in the common pool.
            let peer = peer.bytes.clone().acquire_many_owned(bytes).await.ok()?;
            let pool = pool.clone().acquire_many_owned(bytes).await.ok()?;
            Some((peer, pool))
        };
        match tokio::time::timeout(MEMORY_DEADLINE, both).await {
            Ok(Some((peer, pool))) => {
                metrics::gauge!(metric::BYTES_IN_FLIGHT).increment(f64::from(bytes));
                Ok(Reservation { bytes, _peer: peer, _pool: pool })
            }
            Ok(None) | Err(_) => Err(Refusal::new(
                RefusalReason::Busy,
                "too many bytes are on their way already; finish or retry some requests first",
            )),
        }
    }
}

impl PeerBudget {
    /// Takes one control request from the peer's rate.
    pub(crate) fn control(&self, now_ms: u64) -> Result<(), Refusal> {
        if self.control.lock().take(now_ms) {
            return Ok(());
        }
        Err(Refusal::new(
            RefusalReason::Busy,
            format!("more than {CONTROL_PER_SECOND} control requests a second"),
        ))
    }
}

impl PeerBudget {
    /// Takes one request for chunks from the peer's rate.
    pub(crate) fn challenge(&self, now_ms: u64) -> Result<(), Refusal> {
        if self.challenges.lock().take(now_ms) {
            return Ok(());
        }
        Err(Refusal::new(
            RefusalReason::Busy,
            format!("more than {CHALLENGES_PER_SECOND} requests for chunks a second"),
        ))
    }
}

/// A rate with a burst, in whole tokens.
#[derive(Debug)]
struct TokenBucket {
    tokens: u32,
    burst: u32,
    per_second: u32,
    filled_ms: u64,
}

impl TokenBucket {
    fn full(burst: u32, per_second: u32, now_ms: u64) -> Self {
        Self { tokens: burst, burst, per_second, filled_ms: now_ms }
    }

    fn take(&mut self, now_ms: u64) -> bool {
        let elapsed_ms = now_ms.saturating_sub(self.filled_ms);
        let earned = elapsed_ms.saturating_mul(u64::from(self.per_second)) / 1000;
        if earned > 0 {
            let tokens = u64::from(self.tokens).saturating_add(earned).min(u64::from(self.burst));
            self.tokens = u32::try_from(tokens).unwrap_or(self.burst);
            self.filled_ms = now_ms;
        }
        if self.tokens == 0 {
            return false;
        }
        self.tokens -= 1;
        true
    }
}

/// Bytes served under each grant. Counted in memory: a restart forgets, so a grant opens at most its budget per
/// start of the node, and always ends at its expiry.
#[derive(Default)]
pub(crate) struct GrantLedger {
    spent: Mutex<HashMap<(NamespaceId, [u8; 16]), Spent>>,
    /// Grants whose signatures were checked a moment ago, oldest first. A reader presents the same one with every
    /// request, and two Ed25519 signatures cost as much as reading 64 KiB.
    checked: Mutex<VecDeque<Checked>>,
}

struct Checked {
    presented: PresentedGrant,
    holder: NodeId,
    grant: Grant,
    until_ms: u64,
}

struct Spent {
    bytes: u64,
    expires_ms: u64,
}

impl GrantLedger {
    /// The grant, if it holds for `holder` now. Signatures that held are believed for [`GRANT_CHECKED_MS`]; what ends
    /// is looked at each time.
    pub(crate) fn verify(
        &self,
        presented: &PresentedGrant,
        holder: NodeId,
        now_ms: u64,
    ) -> Result<Grant, SignatureError> {
        let mut checked = self.checked.lock();
        let known = checked.iter().find(|known| known.holder == holder && known.presented == *presented);
        if let Some(known) = known.filter(|known| now_ms < known.until_ms && now_ms < known.grant.expires_ms)
        {
            return Ok(known.grant.clone());
        }
        checked.retain(|known| now_ms < known.until_ms && known.presented != *presented);
        drop(checked);
        let grant = presented.verify(holder, now_ms)?;
        let mut checked = self.checked.lock();
        if checked.len() >= GRANTS_CHECKED_MAX {
            checked.pop_front();
        }
        let until_ms = now_ms.saturating_add(GRANT_CHECKED_MS);
        checked.push_back(Checked { presented: presented.clone(), holder, grant: grant.clone(), until_ms });
        Ok(grant)
    }

    /// Charges `bytes` to the grant, or refuses and charges nothing.
    pub(crate) fn charge(&self, grant: &Grant, bytes: u64, now_ms: u64) -> Result<(), Refusal> {
        let mut spent = self.spent.lock();
        let key = (grant.namespace, grant.nonce);
        if !spent.contains_key(&key) && spent.len() >= GRANTS_TRACKED_MAX {
            spent.retain(|_, entry| entry.expires_ms > now_ms);
            if spent.len() >= GRANTS_TRACKED_MAX {
                return Err(Refusal::new(RefusalReason::Busy, "too many grants are in use at this node"));
            }
        }
        let entry = spent.entry(key).or_insert(Spent { bytes: 0, expires_ms: grant.expires_ms });
        let after = entry.bytes.saturating_add(bytes);
        if after > grant.byte_budget {
            return Err(Refusal::new(
                RefusalReason::BudgetSpent,
                format!(
                    "the grant allows {} bytes from this node, {} are used and {bytes} more were asked for",
                    grant.byte_budget, entry.bytes
                ),
            ));
        }
        entry.bytes = after;
        entry.expires_ms = entry.expires_ms.max(grant.expires_ms);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use holdfast_protocol::SigningKey;
    use holdfast_protocol::record::GrantOps;

    use super::*;

    fn node(byte: u8) -> NodeId {
        NodeId(SigningKey::from_seed(&[byte; 32]).unwrap().public())
    }

    #[test]
    fn a_rate_allows_its_burst_and_then_its_pace() {
        let mut bucket = TokenBucket::full(3, 10, 0);
        assert_eq!((0..5).filter(|_| bucket.take(0)).count(), 3);
        assert_eq!((0..5).filter(|_| bucket.take(100)).count(), 1);
        assert_eq!((0..9).filter(|_| bucket.take(1_000_000)).count(), 3);
    }

    #[test]
    fn a_grant_that_was_checked_is_still_bound_to_its_holder_and_its_end() {
        let namespace = SigningKey::from_seed(&[1; 32]).unwrap();
        let grant = Grant {
            v: 1,
            namespace: NamespaceId(namespace.public()),
            holder: node(2),
            scopes: vec![],
            ops: GrantOps { read: true, list: false },
            not_before_ms: 1_000,
            expires_ms: 20_000,
            byte_budget: 1,
            nonce: [0; 16],
        };
        let signed = holdfast_protocol::record::Signed::sign(grant.clone(), &namespace);
        let presented = PresentedGrant { grant: signed.to_wire(), delegation: None };
        let ledger = GrantLedger::default();
        for now_ms in [2_000, 3_000, 19_999] {
            assert_eq!(ledger.verify(&presented, node(2), now_ms).unwrap(), grant);
            assert!(ledger.verify(&presented, node(3), now_ms).is_err(), "another peer cannot use it");
        }
        assert!(ledger.verify(&presented, node(2), 20_000).is_err(), "its end is its end");
        let forger = SigningKey::from_seed(&[9; 32]).unwrap();
        let forged = holdfast_protocol::record::Signed::sign(grant, &forger);
        let forged = PresentedGrant { grant: forged.to_wire(), delegation: None };
        assert!(ledger.verify(&forged, node(2), 2_000).is_err());
    }

    #[test]
    fn a_grants_budget_is_counted_and_not_overdrawn() {
        let grant = Grant {
            v: 1,
            namespace: NamespaceId(node(1).key()),
            holder: node(2),
            scopes: vec![],
            ops: GrantOps::default(),
            not_before_ms: 0,
            expires_ms: 1_000,
            byte_budget: 100,
            nonce: [1; 16],
        };
        let ledger = GrantLedger::default();
        ledger.charge(&grant, 60, 0).unwrap();
        assert_eq!(ledger.charge(&grant, 41, 0).unwrap_err().reason, RefusalReason::BudgetSpent);
        ledger.charge(&grant, 40, 0).unwrap();
        let another = Grant { nonce: [2; 16], ..grant };
        ledger.charge(&another, 100, 0).unwrap();
    }

    #[tokio::test]
    async fn one_peer_cannot_take_more_than_its_share() {
        let limits = NodeLimits { peer_bytes: 2 << 20, ..NodeLimits::default() };
        let budgets = Budgets::new(&limits);
        let greedy = budgets.of_peer(node(1), 0);
        let held = budgets.reserve(&greedy, Standing::Stranger, 2 << 20).await.unwrap();
        let mut more = Box::pin(budgets.reserve(&greedy, Standing::Stranger, 1));
        assert!(futures::poll!(&mut more).is_pending());
        let other = budgets.of_peer(node(2), 0);
        assert!(budgets.reserve(&other, Standing::Stranger, 1 << 20).await.is_ok());
        drop(held);
        assert!(more.await.is_ok());
    }

    #[tokio::test]
    async fn places_are_bounded_apart_for_strangers_and_delegates() {
        let limits = NodeLimits { stranger_connections: 1, delegate_connections: 1, ..NodeLimits::default() };
        let budgets = Budgets::new(&limits);
        let first = budgets.admit(node(1), None).unwrap();
        assert!(budgets.admit(node(2), None).is_none());
        let promoted = budgets.promote().unwrap();
        drop(first);
        assert!(budgets.admit(node(2), None).is_some());
        assert!(budgets.promote().is_none());
        drop(promoted);
        assert!(budgets.promote().is_some());
    }

    #[test]
    fn readers_have_places_of_their_own_and_one_peer_only_a_few() {
        let limits = NodeLimits { reader_connections: 3, ..NodeLimits::default() };
        let budgets = Budgets::new(&limits);
        let (first, second) = (budgets.of_peer(node(1), 0), budgets.of_peer(node(2), 0));
        let held: Vec<_> = (0..4).filter_map(|_| budgets.promote_reader(&first)).collect();
        assert_eq!(held.len(), CONNECTIONS_PER_READER);
        let another = budgets.promote_reader(&second).unwrap();
        assert_eq!(another.standing(), Standing::Reader);
        assert!(budgets.promote_reader(&second).is_none(), "all three are taken");
        drop(held);
        assert!(budgets.promote_reader(&second).is_some());
    }

    #[test]
    fn connections_of_one_peer_share_its_budget() {
        let budgets = Budgets::new(&NodeLimits::default());
        let first = budgets.of_peer(node(1), 0);
        assert!(Arc::ptr_eq(&first, &budgets.of_peer(node(1), 0)));
        assert!(!Arc::ptr_eq(&first, &budgets.of_peer(node(2), 0)));
    }
}
