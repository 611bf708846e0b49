//! The S3 service over real sockets and real metadata, with blocks in a map in memory.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use holdfast_protocol::message::ByteRange;
use holdfast_protocol::record::{Policy, ScopeId, Shard, Stripe, StripeId};
use holdfast_protocol::time::{Clock, SystemClock};
use holdfast_protocol::transport::memory::MemoryNetwork;
use holdfast_protocol::{BlockLen, Digest, NodeId, PublicKey};
use holdfast_retrieval::block::BlockRef;
use holdfast_retrieval::fetch::FetchError;
use holdfast_retrieval::write::WriteError;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::config::GatewayConfig;
use crate::crypt::NamespaceKeys;
use crate::gateway::Core;
use crate::gateway::listen;
use crate::gateway::plane::{NotWritable, Plane, PlaneWriter, Written};
use crate::keys::{AccessKeys, GatewayKeys};
use crate::meta::{Meta, MetaStore, RocksConfig, RocksStore};

mod browser;
mod client;
mod copies;
mod guards;
mod links;
mod load;
mod objects;
mod outage;
mod refusals;
mod rules;
mod snapshots;
mod tenants;
mod tickets;
mod tokens;
mod uploads;
mod versions;

use client::{Answer, Client};

/// Blocks in a map; can be told to refuse writes.
#[derive(Default)]
struct MemoryPlane {
    blocks: Arc<Mutex<HashMap<Digest, Bytes>>>,
    unwritable: AtomicBool,
    fails_midway: AtomicBool,
    /// Reads take a permit each before they find anything.
    gate: Mutex<Option<Arc<Semaphore>>>,
}

impl Plane for MemoryPlane {
    fn writable(&self, policy: &Policy) -> Result<(), NotWritable> {
        if self.unwritable.load(Ordering::Relaxed) {
            return Err(NotWritable { policy: "local", needed: policy.w, up: 4, known: 6 });
        }
        Ok(())
    }

    fn begin(&self, policy: Policy, _: Option<ScopeId>, _: u64) -> Box<dyn PlaneWriter> {
        let fails = self.fails_midway.load(Ordering::Relaxed);
        Box::new(MemoryWriter { policy, blocks: Arc::clone(&self.blocks), refs: Vec::new(), fails })
    }

    fn read(&self, wanted: Vec<(BlockRef, ByteRange)>) -> BoxStream<'static, Result<Bytes, FetchError>> {
        let blocks = Arc::clone(&self.blocks);
        let gate = self.gate.lock().clone();
        let passed = futures::stream::once(async move {
            if let Some(gate) = gate {
                gate.acquire().await.unwrap().forget();
            }
        });
        let read = futures::stream::iter(wanted.into_iter().map(move |(block, range)| {
            let bytes = blocks.lock().get(&block.digest).cloned();
            let bytes = bytes.ok_or(FetchError::NotPlaced { digest: block.digest })?;
            Ok(bytes.slice(range.start as usize..range.end() as usize))
        }));
        passed.map(|()| None).chain(read.map(Some)).filter_map(std::future::ready).boxed()
    }
}

struct MemoryWriter {
    policy: Policy,
    blocks: Arc<Mutex<HashMap<Digest, Bytes>>>,
    refs: Vec<BlockRef>,
    fails: bool,
}

#[async_trait]
impl PlaneWriter for MemoryWriter {
    async fn push(&mut self, bytes: Bytes) -> Result<(), WriteError> {
        let block = BlockRef { digest: Digest::of(&bytes), len: BlockLen::of(&bytes).unwrap() };
        self.refs.push(block);
        self.blocks.lock().insert(block.digest, Bytes::copy_from_slice(&bytes));
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<Written, WriteError> {
        if self.fails {
            return Err(WriteError::Quorum {
                needed: self.policy.w,
                got: 4,
                given_up: 0,
                failures: Vec::new(),
            });
        }
        let stripes =
            self.refs.chunks(self.policy.k).map(|data| Arc::new(stripe(&self.policy, data))).collect();
        Ok(Written { blocks: self.refs, stripes })
    }
}

fn stripe(policy: &Policy, data: &[BlockRef]) -> Stripe {
    let longest = data.iter().map(|block| block.len).max().unwrap();
    let id = StripeId::random().unwrap();
    let node = |slot: usize| Some(NodeId(PublicKey([u8::try_from(slot).unwrap() + 1; 32])));
    let mut shards: Vec<Option<Shard>> = data
        .iter()
        .enumerate()
        .map(|(slot, block)| Some(Shard { digest: block.digest, len: block.len, node: node(slot) }))
        .collect();
    shards.resize(policy.k, None);
    for slot in policy.k..policy.n() {
        let digest = Digest::of(&[&id.0[..], &[u8::try_from(slot).unwrap()]].concat());
        shards.push(Some(Shard { digest, len: longest, node: node(slot) }));
    }
    let (k, m) = (u8::try_from(policy.k).unwrap(), u8::try_from(policy.m).unwrap());
    Stripe { v: 1, id, version: 1, policy: policy.name, k, m, block_len: longest, shards }
}

/// A served gateway; ends with the test.
struct World {
    client: Client,
    plane: Arc<MemoryPlane>,
    core: Arc<Core>,
    stop: CancellationToken,
    _dir: tempfile::TempDir,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl World {
    async fn new() -> Self {
        Self::configured(|_| {}).await
    }

    async fn configured(configure: impl FnOnce(&mut GatewayConfig)) -> Self {
        Self::over(configure, |store| store).await
    }

    /// A gateway over whatever `wrap` makes of its metadata store.
    async fn over(
        configure: impl FnOnce(&mut GatewayConfig),
        wrap: impl FnOnce(Arc<dyn MetaStore>) -> Arc<dyn MetaStore>,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let keys = GatewayKeys::load_or_create(dir.path(), "test", SystemClock.now_ms()).unwrap();
        let transport = MemoryNetwork::new().join(keys.node_id());
        let mut config = GatewayConfig::new(dir.path().to_owned(), keys.clone(), transport);
        configure(&mut config);
        let store = wrap(RocksStore::open(&RocksConfig::new(dir.path().join("meta"))).unwrap());
        let namespace = NamespaceKeys::new(keys.root().clone(), keys.namespace_id());
        let meta = Meta::open(store, namespace, Arc::new(SystemClock)).await.unwrap();
        let plane = Arc::new(MemoryPlane::default());
        let access = AccessKeys::single_beside(
            "HOLDTESTKEY",
            "secret-of-the-test",
            Arc::clone(&meta),
            keys.root().expose(),
        );
        let core = Core::for_tests(config, meta, access, Arc::clone(&plane) as _);
        let listener = listen::bind("S3", "127.0.0.1:0".parse().unwrap(), "--s3-listen").await.unwrap();
        let client = Client::new(listener.local_addr().unwrap(), "HOLDTESTKEY", "secret-of-the-test");
        let stop = CancellationToken::new();
        let (http, drain) = (core.config.http, std::time::Duration::from_secs(1));
        tokio::spawn(listen::serve(
            listen::Listener::plain(listener),
            super::handler(Arc::clone(&core)),
            http,
            stop.clone(),
            drain,
        ));
        Self { client, plane, core, stop, _dir: dir }
    }

    async fn with_bucket(name: &str) -> Self {
        let world = Self::new().await;
        world.client.put(&format!("/{name}"), b"").await.expect_status(200);
        world
    }
}

/// Bytes that differ from block to block.
fn body_of(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&len.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}
