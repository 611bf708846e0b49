//! What all parts of a running gateway share.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use holdfast_protocol::record::{Delegation, ScopeId, Signed};
use holdfast_retrieval::cache::BlockCache;
use holdfast_retrieval::fetch::{Beside, FetchConfig, Fetcher};
use holdfast_retrieval::pack::Packer;
use holdfast_retrieval::pool::{NodePool, NodeState, PoolConfig};
use holdfast_retrieval::repair::Repairer;
use holdfast_retrieval::surprise::ShapeRecorder;
use holdfast_retrieval::tag::TagKey;
use holdfast_retrieval::write::{
    CommitGroups, CpuPool, Deliverer, ObjectOptions, StripeWriter, WriteBudget, WriteConfig,
};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::buffers::UploadMemory;
use super::network::NetworkPlane;
use super::placement::MetaPlacement;
use super::plane::Plane;
use crate::background::{
    AutoRepair, Connections, Drains, Healing, Joins, Ownership, PackRunner, Reconciled, RepairRunner,
    Surprise,
};
use crate::config::GatewayConfig;
use crate::keys::token::TokenRoot;
use crate::keys::trail::Trail;
use crate::keys::{AccessKeys, KeyUsage, Limits, Tokens};
use crate::meta::Meta;
use crate::s3::fair::Fair;
use crate::s3::get::AnswerMemory;
use crate::s3::host::Domains;
use crate::s3::post::FormMemory;
use crate::s3::rechunk::ChunkMemory;
use crate::s3::snapshots::SnapshotSources;

const TAG_CONTEXT: &str = "holdfast claim tag secret v1";
const REPAIR_SCOPE_CONTEXT: &str = "holdfast repair scope v1";

/// The gateway's shared state.
pub(crate) struct Core {
    pub(crate) config: GatewayConfig,
    pub(crate) meta: Arc<Meta>,
    pub(crate) access_keys: AccessKeys,
    pub(crate) key_limits: Limits,
    pub(crate) key_usage: KeyUsage,
    pub(crate) tokens: Tokens,
    /// Who did what; tests may have none.
    pub(crate) trail: Option<Trail>,
    pub(crate) plane: Arc<dyn Plane>,
    pub(crate) uploads: UploadMemory,
    /// Whole blocks on their way to clients.
    pub(crate) answers: AnswerMemory,
    pub(crate) pool: Arc<NodePool>,
    pub(crate) tags: TagKey,
    pub(crate) deliverer: Deliverer,
    pub(crate) repair: RepairRunner,
    pub(crate) pack: PackRunner,
    pub(crate) auto: AutoRepair,
    pub(crate) healing: Arc<Healing>,
    /// Reads verified bytes; its counters are shown.
    pub(crate) fetcher: Fetcher,
    /// Whether this gateway does what only one of a namespace's gateways may do.
    pub(crate) ownership: Ownership,
    pub(crate) surprise: Surprise,
    /// Shares requests among access keys.
    pub(crate) fair: Fair,
    /// Below which host names are buckets.
    pub(crate) domains: Domains,
    /// Holds long signed chunks.
    pub(crate) chunks: ChunkMemory,
    /// Holds forms.
    pub(crate) forms: FormMemory,
    pub(crate) joins: Joins,
    pub(crate) drains: Drains,
    /// The one shown to nodes now; renewed before it ends.
    pub(crate) delegation: Mutex<Signed<Delegation>>,
    pub(crate) reconciled: Reconciled,
    /// Placement rows, with the terms of new claims.
    pub(crate) placement: Arc<MetaPlacement>,
    pub(crate) snapshot_sources: SnapshotSources,
    pub(crate) s3_requests: AtomicU64,
    pub(crate) started: Instant,
    deliveries: Notify,
}

/// How this gateway meets its nodes.
fn pool_config(config: &GatewayConfig) -> PoolConfig {
    let mut pool =
        PoolConfig::new(Arc::clone(&config.transport), config.software.clone(), Arc::clone(&config.clock));
    pool.delegation = Some(config.keys.delegation().to_wire());
    pool
}

impl Core {
    /// The state of a gateway whose blocks lie on the nodes of its network.
    pub(crate) fn over_network(
        config: GatewayConfig,
        meta: Arc<Meta>,
        access_keys: AccessKeys,
        trail: Option<Trail>,
        cache: Option<Arc<BlockCache>>,
    ) -> (Arc<Self>, Connections) {
        let (connections, on_connected) = Connections::new();
        let healing = Healing::new();
        let pool = NodePool::new(PoolConfig {
            on_connected: Some(on_connected),
            on_gone: Some(healing.on_gone()),
            ..pool_config(&config)
        });
        let tags = TagKey::new(blake3::derive_key(TAG_CONTEXT, config.keys.root().expose()));
        let write = WriteConfig { lease: config.timing.lease, ..WriteConfig::default() };
        let seed = u64::from_le_bytes(config.keys.node_id().as_bytes()[..8].try_into().unwrap_or_default());
        let writer = StripeWriter::new(Arc::clone(&pool), tags.clone(), CpuPool::per_core(), seed, write);
        let placement =
            Arc::new(MetaPlacement { meta: Arc::clone(&meta), repair_scope: repair_scope(&config) });
        let fetcher = fetcher(&config, &pool, &placement, cache);
        let upload_bytes = u32::try_from(config.memory.upload_bytes).unwrap_or(u32::MAX);
        let shapes = Arc::new(ShapeRecorder::default());
        let plane = NetworkPlane {
            pool: Arc::clone(&pool),
            groups: CommitGroups::new(writer),
            budget: WriteBudget::new(upload_bytes),
            in_flight_bytes: ObjectOptions::IN_FLIGHT_BYTES,
            fetcher: fetcher.clone(),
            shapes: Arc::clone(&shapes),
            started: Instant::now(),
        };
        let pack = PackRunner::new(Packer::new(Arc::clone(&pool), Arc::clone(&placement) as _, tags.clone()));
        let repair =
            RepairRunner::new(Repairer::new(Arc::clone(&pool), Arc::clone(&placement) as _, tags.clone()));
        let deliverer = Deliverer::new(Arc::clone(&pool), tags.clone(), Arc::clone(config.keys.transport()));
        let tokens = Tokens::new(TokenRoot::of(config.keys.root()));
        let delegation = Mutex::new(config.keys.delegation().clone());
        let core = Self {
            key_limits: Limits::default(),
            key_usage: KeyUsage::default(),
            tokens,
            trail,
            uploads: UploadMemory::new(config.memory.upload_bytes),
            answers: AnswerMemory::new(config.memory.answer_bytes),
            fair: Fair::new(config.http.requests_per_key),
            domains: Domains::new(&config.s3_domains),
            chunks: ChunkMemory::new(),
            forms: FormMemory::new(),
            config,
            meta,
            access_keys,
            plane: Arc::new(plane),
            pool,
            tags,
            deliverer,
            repair,
            pack,
            auto: AutoRepair::default(),
            healing,
            fetcher,
            ownership: Ownership::default(),
            surprise: Surprise::new(shapes),
            joins: Joins::default(),
            drains: Drains::default(),
            delegation,
            reconciled: Reconciled::default(),
            placement: Arc::clone(&placement),
            snapshot_sources: SnapshotSources::default(),
            s3_requests: AtomicU64::new(0),
            started: Instant::now(),
            deliveries: Notify::new(),
        };
        (Arc::new(core), connections)
    }

    /// The state of a gateway whose blocks lie wherever `plane` says, for tests.
    #[cfg(test)]
    pub(crate) fn for_tests(
        config: GatewayConfig,
        meta: Arc<Meta>,
        access_keys: AccessKeys,
        plane: Arc<dyn Plane>,
    ) -> Arc<Self> {
        let (core, _) = Self::over_network(config, meta, access_keys, None, None);
        let core = Arc::into_inner(core).expect("nobody else holds it yet");
        Arc::new(Self { plane, ..core })
    }

    /// Something was queued for delivery to nodes.
    pub(crate) fn wake_deliveries(&self) {
        self.deliveries.notify_one();
    }

    /// Returns when something was queued since the last call.
    pub(crate) async fn deliveries_woken(&self) {
        self.deliveries.notified().await;
    }

    /// What stands between this gateway and reads and writes; nothing when it is ready.
    pub(crate) fn problems(&self) -> Vec<String> {
        let views = self.pool.nodes();
        let up =
            views.iter().filter(|view| view.state == NodeState::Up && view.known.agreement.is_some()).count();
        let policy = &self.config.policy;
        let mut problems = Vec::new();
        if up < policy.w {
            problems.push(format!(
                "policy {} needs {} nodes that answer and have an agreement; {up} of {} known nodes do",
                policy.name,
                policy.w,
                views.len()
            ));
        } else if let Err(error) = self.plane.writable(policy) {
            problems.push(error.to_string());
        }
        problems
    }

    /// The scope of shards that a repair puts: readable by the namespace's delegates.
    pub(crate) fn repair_scope(&self) -> ScopeId {
        repair_scope(&self.config)
    }
}

fn repair_scope(config: &GatewayConfig) -> ScopeId {
    let derived = blake3::derive_key(REPAIR_SCOPE_CONTEXT, config.keys.root().expose());
    let mut scope = [0u8; 16];
    scope.copy_from_slice(&derived[..16]);
    ScopeId(scope)
}

/// Reads verified bytes through the cache, within the gateway's memory bounds.
fn fetcher(
    config: &GatewayConfig,
    pool: &Arc<NodePool>,
    placement: &Arc<MetaPlacement>,
    cache: Option<Arc<BlockCache>>,
) -> Fetcher {
    let fetch = FetchConfig {
        ahead_bytes: config.memory.download_bytes,
        window_bytes: config.memory.download_ahead_bytes as u64,
        ..FetchConfig::default()
    };
    let beside = Beside { cache, ..Beside::default() };
    Fetcher::with(Arc::clone(pool), Arc::clone(placement) as _, fetch, beside)
}
