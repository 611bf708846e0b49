//! One fake node: what it keeps, and how it behaves.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use holdfast_protocol::message::RefusalReason;
use holdfast_protocol::record::{AgreementId, ClaimRef, ClaimState, ClaimTag, ScopeId, SignedAgreement};
use holdfast_protocol::transport::Transport;
use holdfast_protocol::transport::memory::{MemoryNetwork, MemoryTransport};
use holdfast_protocol::{Digest, NodeId, SigningKey};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::TestClock;

/// How a fake node behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Behaviour {
    /// As it should.
    #[default]
    Honest,
    /// Refuses PutBlock.
    RefuseWrites(RefusalReason),
    /// Refuses ReadBlock.
    RefuseReads(RefusalReason),
    /// Takes requests (except Hello) and never answers while this lasts; then answers.
    Stall,
    /// Waits before each answer to PutBlock and ReadBlock.
    Slow(Duration),
    /// Flips one bit of every body that it serves.
    FlipBit,
    /// Ends every body that it serves one byte early.
    Truncate,
    /// Serves bytes of the right length and the wrong content, with the paths of the right ones.
    OtherBytes,
    /// Serves a valid reply about another leaf than asked for (only for ranges).
    OtherLeaf,
    /// Announces another body length than asked for, and sends that many bytes.
    WrongLength,
    /// Signs receipts with another key than its own.
    ForgeReceipts,
    /// Signs receipts for other blocks than it was given.
    EmptyReceipts,
    /// Answers with bytes that are no message.
    Garbage,
}

/// A claim that a fake node keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredClaim {
    /// Where it stands.
    pub state: ClaimState,
    /// Who may read.
    pub scope: Option<ScopeId>,
    /// When its lease ends.
    pub lease_until_ms: u64,
    /// Until when deletion is refused.
    pub retain_until_ms: u64,
}

/// A storage node in memory.
pub struct FakeNode {
    pub(super) key: SigningKey,
    pub(super) clock: Arc<TestClock>,
    behaviour: watch::Sender<Behaviour>,
    pub(super) blocks: Mutex<HashMap<Digest, Bytes>>,
    pub(super) claims: Mutex<HashMap<(AgreementId, ClaimRef), StoredClaim>>,
    pub(super) agreement: Mutex<Option<SignedAgreement>>,
    pub(super) puts: AtomicU64,
    pub(super) reads: AtomicU64,
    pub(super) orders: AtomicU64,
    network: MemoryNetwork,
    /// The transport while the node is there; `None` when it has vanished.
    transport: Mutex<Option<Arc<MemoryTransport>>>,
}

impl FakeNode {
    /// Starts an honest, empty node.
    pub fn start(network: &MemoryNetwork, key: SigningKey, clock: Arc<TestClock>) -> Arc<Self> {
        let node = Arc::new(Self {
            key,
            clock,
            behaviour: watch::channel(Behaviour::Honest).0,
            blocks: Mutex::default(),
            claims: Mutex::default(),
            agreement: Mutex::default(),
            puts: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            orders: AtomicU64::new(0),
            network: network.clone(),
            transport: Mutex::new(None),
        });
        node.come_back();
        node
    }

    /// Its id.
    pub fn id(&self) -> NodeId {
        NodeId(self.key.public())
    }

    /// Behaves like this from the next request on.
    pub fn behave(&self, behaviour: Behaviour) {
        self.behaviour.send_replace(behaviour);
    }

    /// Ends all connections and answers no dialling, keeping its blocks.
    pub async fn vanish(&self) {
        let transport = self.transport.lock().take();
        if let Some(transport) = transport {
            transport.close().await;
        }
    }

    /// Is there again after [`FakeNode::vanish`].
    pub fn come_back(self: &Arc<Self>) {
        let transport = self.network.join(self.id());
        *self.transport.lock() = Some(Arc::clone(&transport));
        let node = Arc::downgrade(self);
        tokio::spawn(async move {
            while let Some(connection) = transport.accept().await {
                let Some(node) = node.upgrade() else { return };
                tokio::spawn(node.serve(connection));
            }
        });
    }

    /// The bytes it keeps of a block.
    pub fn block(&self, digest: &Digest) -> Option<Bytes> {
        self.blocks.lock().get(digest).cloned()
    }

    /// Loses a block without noticing.
    pub fn lose(&self, digest: &Digest) {
        self.blocks.lock().remove(digest);
    }

    /// Puts a block there without a request.
    pub fn place(&self, bytes: Bytes) -> Digest {
        let digest = Digest::of(&bytes);
        self.blocks.lock().insert(digest, bytes);
        digest
    }

    /// How many blocks it keeps.
    pub fn block_count(&self) -> usize {
        self.blocks.lock().len()
    }

    /// A claim that it keeps, of any agreement.
    pub fn claim(&self, digest: Digest, tag: ClaimTag) -> Option<StoredClaim> {
        let wanted = ClaimRef(digest, tag);
        self.claims.lock().iter().find(|((_, claim), _)| *claim == wanted).map(|(_, stored)| *stored)
    }

    /// PutBlock requests that it has taken.
    pub fn puts(&self) -> u64 {
        self.puts.load(Ordering::Relaxed)
    }

    /// ReadBlock requests that it has taken.
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// Commit, delete and restore requests that it has taken.
    pub fn orders(&self) -> u64 {
        self.orders.load(Ordering::Relaxed)
    }

    /// How it behaves now; returns only when it does not stall.
    pub(super) async fn behaviour(&self) -> Behaviour {
        let mut watch = self.behaviour.subscribe();
        let behaviour = watch.wait_for(|behaviour| *behaviour != Behaviour::Stall).await;
        behaviour.map_or(Behaviour::Honest, |behaviour| *behaviour)
    }
}
