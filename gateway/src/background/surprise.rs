//! Surprise audits: now and then reads blocks as readers do, and keeps what that showed of each node.
//!
//! Sessions are drawn from what this gateway's readers did. Some go over the gateway's own connections, as the reads of
//! S3 clients do; the others come from a key made for that one session, with a connection and a grant of its own, as
//! those of clients that read from nodes directly. Nothing here decides about pay.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use holdfast_protocol::message::ByteRange;
use holdfast_protocol::record::{Grant, GrantOps, PresentedGrant, Record, ScopeId, Signed, Stripe, StripeId};
use holdfast_protocol::transport::quic::{QuicConfig, QuicTransport};
use holdfast_protocol::{Digest, NodeId, SigningKey};
use holdfast_retrieval::fetch::VerifiedReader;
use holdfast_retrieval::pool::{NodePool, PoolConfig};
use holdfast_retrieval::surprise::{
    Chance, RetrievalScore, ShapeRecorder, SurpriseAnswer, SurpriseReader, SurpriseTarget, draw_session,
    plan_reads,
};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::gateway::Core;
use crate::meta::MetaError;

/// Stripes that one session may read from.
const STRIPES: usize = 24;
/// How long one request may take.
const READ_WITHIN: Duration = Duration::from_secs(10);
/// A session that takes longer is cut off; what it saw until then counts.
const SESSION_WITHIN: Duration = Duration::from_secs(300);
/// A session's grant lasts this long and opens this many bytes at each node.
const GRANT_MS: u64 = 15 * 60 * 1000;
const GRANT_BYTES: u64 = 256 * 1024 * 1024;
/// Answers other than right ones that are kept as evidence.
const EVIDENCE_MAX: usize = 512;

/// What surprise audits showed.
pub(crate) struct Surprise {
    /// How readers read here.
    shapes: Arc<ShapeRecorder>,
    state: Mutex<SurpriseState>,
}

/// Scores and evidence.
#[derive(Clone, Debug, Default)]
pub(crate) struct SurpriseState {
    /// Sessions since the start, and those of them under a key of their own.
    pub(crate) sessions: u64,
    pub(crate) fresh: u64,
    /// Per node.
    pub(crate) scores: BTreeMap<NodeId, RetrievalScore>,
    /// Answers other than right ones, the latest last.
    pub(crate) evidence: VecDeque<Evidence>,
}

/// An answer other than a right one: enough to ask the same again.
#[derive(Clone, Debug)]
pub(crate) struct Evidence {
    pub(crate) node: NodeId,
    pub(crate) digest: Digest,
    pub(crate) range: ByteRange,
    pub(crate) at_ms: u64,
    pub(crate) what: String,
}

impl Surprise {
    /// Audits like the readers that `shapes` has seen.
    pub(crate) fn new(shapes: Arc<ShapeRecorder>) -> Self {
        Self { shapes, state: Mutex::default() }
    }

    pub(crate) fn state(&self) -> SurpriseState {
        self.state.lock().clone()
    }

    fn take_in(&self, answer: &SurpriseAnswer, at_ms: u64) {
        let mut state = self.state.lock();
        state.scores.entry(answer.node).or_default().add(answer, at_ms);
        if let Some(fault) = &answer.fault {
            if state.evidence.len() >= EVIDENCE_MAX {
                state.evidence.pop_front();
            }
            let (node, digest, range, what) = (answer.node, answer.digest, answer.range, fault.to_string());
            state.evidence.push_back(Evidence { node, digest, range, at_ms, what });
        }
    }
}

/// Audits until stopped.
pub(super) async fn run(core: Arc<Core>, stop: CancellationToken) {
    let work = async {
        match core.meta.retrieval_scores().await {
            Ok(scores) => core.surprise.state.lock().scores = scores.into_iter().collect(),
            Err(error) => tracing::warn!(%error, "retrieval scores cannot be read; they begin anew"),
        }
        loop {
            tokio::time::sleep(pause(core.config.timing.surprise_interval)).await;
            let session = tokio::time::timeout(SESSION_WITHIN, session(&core));
            match session.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "no surprise audit this time"),
                Err(_) => tracing::debug!("a surprise audit took too long and was cut off"),
            }
            if let Err(error) = keep(&core).await {
                tracing::warn!(%error, "retrieval scores cannot be kept now");
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}

/// An exponential time around the mean: the next session cannot be expected.
fn pause(mean: Duration) -> Duration {
    let mut random = [0u8; 4];
    // Without random bytes the pause is merely the mean.
    let drawn = getrandom::fill(&mut random).is_ok();
    let unit = (f64::from(u32::from_le_bytes(random)) + 1.0) / 4_294_967_297.0;
    if drawn { mean.mul_f64((-unit.ln()).min(8.0)) } else { mean }
}

async fn keep(core: &Core) -> Result<(), MetaError> {
    let scores: Vec<_> = core.surprise.state.lock().scores.iter().map(|(id, score)| (*id, *score)).collect();
    core.meta.put_retrieval_scores(&scores).await
}

/// Why there was no session.
#[derive(Debug, thiserror::Error)]
enum NoSession {
    #[error("the system's random source failed")]
    Random,
    #[error("there is nothing to read")]
    Nothing,
    #[error(transparent)]
    Meta(#[from] MetaError),
    #[error("no key or socket for a session of its own: {detail}")]
    Fresh { detail: String },
}

/// One session, from the draw to its last answer.
async fn session(core: &Arc<Core>) -> Result<(), NoSession> {
    let mut seed = [0u8; 32];
    getrandom::fill(&mut seed).map_err(|_| NoSession::Random)?;
    let mut chance = Chance::new(&seed);
    let stripes = sample(core).await?;
    let drawn = draw_session(&core.surprise.shapes.shapes(), &mut chance);
    let is_fresh = chance.below(100) < core.config.surprise_fresh_percent;
    let (reader, targets) = if is_fresh {
        fresh(core, &stripes).await?
    } else {
        let reader = VerifiedReader::new(Arc::clone(&core.pool), READ_WITHIN);
        let target = |stripe| SurpriseTarget { stripe, grant: None };
        (SurpriseReader::new(reader), stripes.into_iter().map(target).collect())
    };
    if targets.is_empty() {
        return Err(NoSession::Nothing);
    }
    let reads = plan_reads(&drawn, &targets, &mut chance);
    {
        let mut state = core.surprise.state.lock();
        state.sessions += 1;
        state.fresh += u64::from(is_fresh);
    }
    let on_answer = |answer| core.surprise.take_in(&answer, core.config.clock.now_ms());
    reader.run(&drawn, reads, on_answer).await;
    Ok(())
}

/// Stripes from anywhere in the table. Their ids are random, so each place is as likely as any.
async fn sample(core: &Core) -> Result<Vec<Stripe>, NoSession> {
    let mut found = Vec::with_capacity(STRIPES);
    for _ in 0..STRIPES {
        let place = StripeId::random().map_err(|_| NoSession::Random)?;
        let mut page = core.meta.stripes(Some(place), 1).await?;
        if page.is_empty() {
            page = core.meta.stripes(None, 1).await?;
        }
        found.extend(page);
    }
    if found.is_empty() { Err(NoSession::Nothing) } else { Ok(found) }
}

/// A reader under a key of its own, and those of the stripes that a grant of one bucket opens.
async fn fresh(core: &Core, stripes: &[Stripe]) -> Result<(SurpriseReader, Vec<SurpriseTarget>), NoSession> {
    let failed = |error: &dyn std::error::Error| NoSession::Fresh { detail: error.to_string() };
    let key = Arc::new(SigningKey::generate().map_err(|error| failed(&error))?);
    let holder = NodeId(key.public());
    let listen = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
    let bound = QuicTransport::bind(QuicConfig::new(listen, Arc::clone(&key)));
    // Hosts without IPv6 have IPv4.
    let transport = match bound {
        Ok(transport) => transport,
        Err(_) => QuicTransport::bind(QuicConfig::new(SocketAddr::from(([0, 0, 0, 0], 0)), key))
            .map_err(|error| failed(&error))?,
    };
    let mut config = PoolConfig::new(transport, core.config.software.clone(), Arc::clone(&core.config.clock));
    config.on_gone = Some(core.healing.on_gone());
    let pool = NodePool::new(config);
    for view in core.pool.nodes() {
        let mut known = view.known;
        known.agreement = None;
        if !known.addresses.is_empty() {
            // A pool without room for a node merely does not read from it.
            let _full = pool.upsert(known);
        }
    }
    let origins = core.meta.origins(stripes).await?;
    let mut targets = Vec::new();
    for stripe in stripes {
        let k = usize::from(stripe.k);
        let mut scopes = Vec::new();
        let mut opens = true;
        for shard in stripe.shards.iter().take(k).flatten() {
            let reachable = shard.node.is_some_and(|node| pool.node(node).is_some());
            match origins.live.get(&shard.digest) {
                Some(Some(bucket)) if reachable => {
                    if !bucket.public && !scopes.contains(&bucket.scope) {
                        scopes.push(bucket.scope);
                    }
                }
                _ => opens = false,
            }
        }
        if opens && scopes.len() <= 1 {
            let grant = scopes.first().map(|scope| grant(core, holder, *scope)).transpose()?;
            targets.push(SurpriseTarget { stripe: stripe.clone(), grant: grant.map(Box::new) });
        }
    }
    Ok((SurpriseReader::new(VerifiedReader::new(pool, READ_WITHIN)), targets))
}

/// A grant over one bucket, like any client's.
fn grant(core: &Core, holder: NodeId, scope: ScopeId) -> Result<PresentedGrant, NoSession> {
    let mut nonce = [0u8; 16];
    getrandom::fill(&mut nonce).map_err(|_| NoSession::Random)?;
    let now_ms = core.config.clock.now_ms();
    let grant = Grant {
        v: Grant::VERSION,
        namespace: core.config.keys.namespace_id(),
        holder,
        scopes: vec![scope],
        ops: GrantOps { read: true, list: false },
        not_before_ms: now_ms,
        expires_ms: now_ms.saturating_add(GRANT_MS),
        byte_budget: GRANT_BYTES,
        nonce,
    };
    let signed = Signed::sign(grant, core.config.keys.namespace());
    Ok(PresentedGrant { grant: signed.to_wire(), delegation: None })
}
