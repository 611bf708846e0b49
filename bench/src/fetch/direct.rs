//! Reading straight from the nodes, inside this process: with a ticket from the gateway, verified by the library.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use async_trait::async_trait;
use bytes::Bytes;
use holdfast_protocol::time::SystemClock;
use holdfast_protocol::transport::Transport;
use holdfast_protocol::transport::quic::{QuicConfig, QuicTransport};
use holdfast_protocol::{NodeId, SigningKey};
use holdfast_retrieval::cache::BlockCache;
use holdfast_retrieval::direct::{
    DirectClient, DirectConfig, DirectObject, ReadTicket, TicketFailure, Tickets,
};
use holdfast_retrieval::fetch::FetchCounts;
use holdfast_retrieval::object::ObjectSource;
use holdfast_retrieval::pool::{NodePool, PoolConfig};
use holdfast_retrieval::testing::relay::{Conditions, UdpRelay};
use tokio::task::JoinSet;

use crate::measure::{Round, Work};
use crate::pattern::Dice;
use crate::s3::{Server, Session};

/// Data blocks of a stripe of policy `local`.
const K: f64 = 4.0;
/// Bytes moved may be this much more than the code makes unavoidable.
const BYTES_SHARE: f64 = 1.2;

/// A reader of one object.
pub(crate) struct Reader {
    object: Arc<DirectObject>,
    server: Arc<Server>,
    key: String,
}

struct GatewayTickets {
    server: Arc<Server>,
    key: String,
    holder: NodeId,
    /// What stands between us and each node, when that shall be worse than loopback.
    far: Option<Conditions>,
    relays: tokio::sync::Mutex<HashMap<NodeId, UdpRelay>>,
}

impl GatewayTickets {
    /// Puts a relay in front of every node of the ticket.
    async fn move_away(&self, ticket: &mut ReadTicket, conditions: Conditions) -> Result<()> {
        let mut relays = self.relays.lock().await;
        for (seed, node) in (1u64..).zip(&mut ticket.nodes) {
            let address = *node.addresses.first().context("a node without an address")?;
            let relay = match relays.entry(node.id) {
                Entry::Occupied(relay) => relay.into_mut(),
                Entry::Vacant(place) => {
                    let relay = UdpRelay::start(address, seed).await?;
                    relay.set(conditions);
                    place.insert(relay)
                }
            };
            node.addresses = vec![relay.address()];
        }
        Ok(())
    }
}

#[async_trait]
impl Tickets for GatewayTickets {
    async fn page(&self, offset: u64, version: Option<&[u8]>) -> Result<ReadTicket, TicketFailure> {
        let asked = async {
            let holder = self.holder.to_string();
            let offset = offset.to_string();
            let version = version.map(hex::encode);
            let mut query = vec![("holdfast-ticket", "1"), ("holder", &*holder), ("offset", &*offset)];
            query.extend(version.as_deref().map(|version| ("version", version)));
            let bytes = Session::new(&self.server).get_bytes(&self.key, &query).await?;
            let mut ticket = ReadTicket::decode(&bytes)?;
            if let Some(conditions) = self.far {
                self.move_away(&mut ticket, conditions).await?;
            }
            anyhow::Ok(ticket)
        };
        asked.await.map_err(|error| TicketFailure { message: format!("{error:#}"), retryable: true })
    }

    async fn plaintext(&self, _: Range<u64>, _: &[u8]) -> Option<Result<Bytes, TicketFailure>> {
        // Bytes that came through the gateway would spoil the figures.
        None
    }
}

impl Reader {
    /// Opens an object with a key of its own.
    pub(crate) async fn open(server: &Arc<Server>, key: &str) -> Result<Self> {
        Self::open_with(server, key, None, None).await
    }

    /// The same with every node behind a relay of these conditions.
    pub(crate) async fn open_through(
        server: &Arc<Server>,
        key: &str,
        far: Option<Conditions>,
    ) -> Result<Self> {
        Self::open_with(server, key, far, None).await
    }

    /// The same, and with a cache beside.
    pub(crate) async fn open_with(
        server: &Arc<Server>,
        key: &str,
        far: Option<Conditions>,
        cache: Option<Arc<BlockCache>>,
    ) -> Result<Self> {
        let signing = Arc::new(SigningKey::generate()?);
        let holder = NodeId(signing.public());
        let config = QuicConfig::new(SocketAddr::from(([127, 0, 0, 1], 0)), signing);
        let transport: Arc<dyn Transport> =
            QuicTransport::bind(config).context("cannot open a QUIC socket")?;
        let pool = NodePool::new(PoolConfig::new(transport, "holdfast-bench", Arc::new(SystemClock)));
        let client = DirectClient::new(pool, DirectConfig { cache, ..DirectConfig::default() });
        let (key_of, relays) = (key.to_owned(), tokio::sync::Mutex::default());
        let tickets = GatewayTickets { server: Arc::clone(server), key: key_of, holder, far, relays };
        let object = Arc::new(DirectObject::open(client, Arc::new(tickets)).await?);
        Ok(Self { object, server: Arc::clone(server), key: key.to_owned() })
    }

    /// The object.
    pub(crate) fn object(&self) -> &Arc<DirectObject> {
        &self.object
    }

    /// Compares bytes that were read at `offset`.
    pub(crate) fn check(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.server.pattern.check(&self.key, offset).next(bytes)
    }

    /// What was read how, so far.
    pub(crate) fn counts(&self) -> FetchCounts {
        self.object.fetcher().counts()
    }

    /// `width` readers of random ranges of `len` bytes, aligned to `len`, for `limit`; every byte is compared.
    pub(crate) async fn random(&self, len: u64, width: usize, limit: Duration) -> Result<Work> {
        let start = Instant::now();
        let mut readers = JoinSet::new();
        for reader in 0..width as u64 {
            let (object, server, key) =
                (Arc::clone(&self.object), Arc::clone(&self.server), self.key.clone());
            readers.spawn(async move {
                let mut dice = Dice(reader.wrapping_mul(0x9e37_79b9) ^ 0xfe7c);
                let mut latencies_us = Vec::new();
                while start.elapsed() < limit {
                    let offset = dice.below(object.size() / len) * len;
                    let begin = Instant::now();
                    let bytes = object.read(offset..offset + len).await?;
                    latencies_us.push(u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX));
                    server.pattern.check(&key, offset).next(&bytes)?;
                }
                anyhow::Ok(latencies_us)
            });
        }
        let mut latencies_us = Vec::new();
        while let Some(reader) = readers.join_next().await {
            latencies_us.extend(reader.context("a reader failed")??);
        }
        let operations = latencies_us.len() as u64;
        let round = Round { bytes: operations * len, operations, elapsed: start.elapsed() };
        Ok(Work::one(round, latencies_us, 0))
    }

    /// Bytes that nodes sent for each byte served since `before`, beside what the code makes unavoidable.
    pub(crate) fn amplification(&self, before: &FetchCounts, served: u64) -> String {
        let now = self.counts();
        let (direct, rebuilt) = (now.direct - before.direct, now.rebuilt - before.rebuilt);
        let cached = now.cached - before.cached;
        let moved = (now.node_bytes - before.node_bytes) as f64 / served.max(1) as f64;
        let lost = rebuilt as f64 / (direct + rebuilt + cached).max(1) as f64;
        let unavoidable = 1.0 - lost + lost * K;
        let verdict = if moved <= unavoidable * BYTES_SHARE { "ok" } else { "MISSED" };
        format!(
            "{verdict}: {moved:.3} bytes moved a byte, {:.3} times the unavoidable {unavoidable:.3} (goal <= {BYTES_SHARE}); \
             {direct} direct, {rebuilt} rebuilt, {cached} from those rebuilt before, {} hedged",
            moved / unavoidable,
            now.hedged - before.hedged
        )
    }
}
