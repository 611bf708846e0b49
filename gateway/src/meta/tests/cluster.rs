//! A metadata store in a temporary directory, and uploads as the write path would hand them over.

use super::*;

/// A clock that a test moves.
#[derive(Default)]
pub(super) struct TestClock(pub(super) AtomicU64);

impl Clock for TestClock {
    fn now_ms(&self) -> UnixMs {
        self.0.load(Ordering::Relaxed)
    }
}

pub(super) struct Cluster {
    pub(super) meta: Arc<Meta>,
    pub(super) clock: Arc<TestClock>,
    directory: tempfile::TempDir,
}

pub(super) fn node(number: u8) -> NodeId {
    NodeId(PublicKey([number; 32]))
}

pub(super) fn keys(root: u8) -> NamespaceKeys {
    NamespaceKeys::new(RootKey::from_bytes([root; 32]), NamespaceId(PublicKey([9; 32])))
}

pub(super) fn new_bucket(name: &str, public: bool) -> NewBucket {
    NewBucket { name: name.to_owned(), public, policy: PolicyName::Local, features: Features::default() }
}

/// A block that is told apart from others by `seed`.
pub(super) fn entry(seed: u64, len: u32) -> Entry {
    Entry { digest: Digest::of(&seed.to_le_bytes()), len: BlockLen::new(len).unwrap() }
}

/// A stripe of 4+2 over these blocks, on nodes 1 to 6.
pub(super) fn stripe(blocks: &[Entry]) -> Arc<Stripe> {
    let id = StripeId::random().unwrap();
    let block_len = blocks.iter().map(|block| block.len).max().unwrap();
    let parity = |slot: u8| Entry { digest: Digest::of(&[&id.0[..], &[slot]].concat()), len: block_len };
    let shards = (0u8..6)
        .map(|slot| {
            let block = if slot < 4 { blocks.get(usize::from(slot)).copied() } else { Some(parity(slot)) };
            block.map(|block| Shard { digest: block.digest, len: block.len, node: Some(node(slot + 1)) })
        })
        .collect();
    Arc::new(Stripe { v: 1, id, version: 1, policy: PolicyName::Local, k: 4, m: 2, block_len, shards })
}

/// What the write path hands over for these blocks in stripes of their own.
pub(super) fn stored(blocks: Vec<Entry>, private: bool) -> Stored {
    let stripes = blocks.chunks(4).map(stripe).collect();
    stored_in(blocks, stripes, private)
}

pub(super) fn stored_in(blocks: Vec<Entry>, stripes: Vec<Arc<Stripe>>, private: bool) -> Stored {
    let secret = private.then(|| PartSecret::fresh().unwrap());
    Stored { size: total_len(&blocks), blocks, secret, stripes }
}

pub(super) fn object(key: &str, stored: Stored) -> NewObject {
    let mut root = crate::unixfs::RootBuilder::new();
    stored.blocks.iter().for_each(|block| root.push(block.digest, block.len));
    NewObject {
        key: key.to_owned(),
        attributes: Attributes { etag: format!("etag of {key}"), ..Attributes::default() },
        root_cid: root.finish(),
        stored,
        condition: PutCondition::Any,
    }
}

impl Cluster {
    pub(super) async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let clock = Arc::new(TestClock::default());
        let store = RocksStore::open(&RocksConfig::new(directory.path().join("meta"))).unwrap();
        let meta = Meta::open(store, keys(1), clock.clone()).await.unwrap();
        Self { meta, clock, directory }
    }

    pub(super) async fn bucket(&self, name: &str, public: bool) -> Bucket {
        self.meta.create_bucket(new_bucket(name, public)).await.unwrap()
    }

    /// Closes and opens again.
    pub(super) async fn reopen(self) -> Self {
        self.reopen_with(keys(1)).await.unwrap()
    }

    /// Closes, and opens with other keys.
    pub(super) async fn reopen_with(self, keys: NamespaceKeys) -> Result<Self, MetaError> {
        let Self { meta, clock, directory } = self;
        meta.close().await.unwrap();
        // The database stays locked until its last handle is gone.
        drop(Arc::into_inner(meta).expect("nobody else holds it"));
        let store = RocksStore::open(&RocksConfig::new(directory.path().join("meta"))).unwrap();
        let meta = Meta::open(store, keys, clock.clone()).await?;
        Ok(Self { meta, clock, directory })
    }

    /// The self-check finds nothing.
    pub(super) async fn assert_sound(&self) -> CheckReport {
        let report = self.meta.check().await.unwrap();
        let findings: Vec<_> = report.findings.iter().map(ToString::to_string).collect();
        assert!(findings.is_empty(), "{findings:#?}");
        report
    }

    /// Reads a range back as (digest, bytes of the block).
    pub(super) async fn read(&self, object: &Object, range: std::ops::Range<u64>) -> Vec<(Digest, u32, u32)> {
        let mut reader = self.meta.read(object, range);
        let mut out = Vec::new();
        while let Some(pieces) = reader.next().await.unwrap() {
            for piece in pieces {
                assert_eq!(
                    piece.cipher.is_some(),
                    object.encryption != holdfast_protocol::record::Encryption::None
                );
                out.push((piece.digest, piece.range.start, piece.range.len));
            }
        }
        out
    }

    /// Everything queued for release, by node.
    pub(super) async fn releases(&self) -> Vec<QueueItem> {
        self.meta.release_queue(None, 1000).await.unwrap()
    }
}

pub(super) const MIB: u32 = BLOCK_LEN_MAX;
