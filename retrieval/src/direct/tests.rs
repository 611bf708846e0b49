//! Direct reads from nodes in memory, with a gateway that hands out tickets page by page and may lie.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use holdfast_protocol::message::ByteRange;
use holdfast_protocol::record::{PolicyName, Record, Shard, Stripe, StripeId};
use holdfast_protocol::time::Clock;
use holdfast_protocol::{BlockLen, Digest, NodeId};
use proptest::prelude::*;
use serde_bytes::ByteBuf;

use super::*;
use crate::cache::BlockCache;
use crate::code::Code;
use crate::fetch::ReadObserver;
use crate::pool::{NodePool, PoolConfig};
use crate::testing::{Behaviour, TestNetwork, key};

/// Blocks that one page of the test's gateway names.
const PAGE_BLOCKS: usize = 3;

/// A gateway that keeps one object of several enciphered parts.
struct Gateway {
    plain: Bytes,
    version: Mutex<Vec<u8>>,
    parts: Vec<TicketPart>,
    /// Where each block begins, its name, and its place.
    blocks: Vec<(u64, Digest, BlockLen, usize, u8)>,
    stripes: Vec<Stripe>,
    nodes: Vec<NodeAddress>,
    pages: AtomicU64,
    serves_plaintext: AtomicBool,
    lies: AtomicBool,
}

#[async_trait]
impl Tickets for Gateway {
    async fn page(&self, offset: u64, _version: Option<&[u8]>) -> Result<ReadTicket, TicketFailure> {
        self.pages.fetch_add(1, Ordering::Relaxed);
        let at = self.blocks.partition_point(|block| block.0 <= offset) - 1;
        let some = &self.blocks[at / PAGE_BLOCKS * PAGE_BLOCKS..];
        let some = &some[..some.len().min(PAGE_BLOCKS)];
        let mut stripes = Vec::new();
        let mut places = Vec::new();
        for (_, _, _, stripe, slot) in some {
            places.push((u32::try_from(stripes.len()).unwrap(), *slot));
            stripes.push(self.stripes[*stripe].clone());
        }
        let ticket = ReadTicket {
            v: READ_TICKET_VERSION,
            size: self.plain.len() as u64,
            root_cid: vec![1, 2, 3],
            version: self.version.lock().clone(),
            kind: ByteBuf::from(vec![7; 16]),
            offset: some[0].0,
            blocks: some.iter().map(|(_, digest, len, _, _)| (*digest, *len)).collect(),
            parts: self.parts.clone(),
            places,
            stripes,
            nodes: self.nodes.clone(),
            grant: None,
        };
        // As it travels.
        Ok(ReadTicket::decode(&ticket.encode()).unwrap())
    }

    async fn plaintext(&self, range: Range<u64>, _: &[u8]) -> Option<Result<Bytes, TicketFailure>> {
        if !self.serves_plaintext.load(Ordering::Relaxed) {
            return None;
        }
        let at = |offset: u64| usize::try_from(offset).unwrap();
        let mut bytes = self.plain[at(range.start)..at(range.end)].to_vec();
        if self.lies.load(Ordering::Relaxed) {
            bytes[0] ^= 1;
        }
        Some(Ok(Bytes::from(bytes)))
    }
}

struct World {
    network: TestNetwork,
    gateway: Arc<Gateway>,
    client: Arc<DirectClient>,
    cache: Arc<BlockCache>,
    served: Arc<Served>,
}

#[derive(Default)]
struct Served(Mutex<Vec<ServedBy>>);

impl ReadObserver for Served {
    fn served(&self, _: BlockRef, _: ByteRange, by: ServedBy) {
        self.0.lock().push(by);
    }
}

/// Parts of these lengths, in blocks of at most 100,000 bytes, in stripes of 4+2.
async fn world(part_lens: &[usize]) -> World {
    let network = TestNetwork::start(6).await;
    let mut plain = vec![0; part_lens.iter().sum()];
    blake3::Hasher::new_derive_key("holdfast direct test noise").finalize_xof().fill(&mut plain);
    let (mut parts, mut names, mut bytes_of) = (Vec::new(), Vec::new(), Vec::new());
    let mut offset = 0usize;
    for (number, len) in (1u64..).zip(part_lens) {
        let key = PartKey { key: [u8::try_from(number).unwrap(); 32], nonce: number << 40 };
        let cipher = PartCipher::new(&key.key, key.nonce).unwrap();
        let mut in_part = 0;
        while in_part < *len {
            let block_len = (len - in_part).min(100_000);
            let start = offset + in_part;
            let mut block = plain[start..start + block_len].to_vec();
            cipher.apply(in_part as u64, &mut block).unwrap();
            names.push((start as u64, Digest::of(&block), BlockLen::of(&block).unwrap()));
            bytes_of.push(Bytes::from(block));
            in_part += block_len;
        }
        parts.push(TicketPart { offset: offset as u64, len: *len as u64, key: Some(key) });
        offset += len;
    }
    let stripes: Vec<Stripe> =
        (0u8..).zip(bytes_of.chunks(4)).map(|(number, blocks)| place(&network, number, blocks)).collect();
    let blocks = names
        .iter()
        .enumerate()
        .map(|(at, (start, digest, len))| (*start, *digest, *len, at / 4, u8::try_from(at % 4).unwrap()));
    let nodes = network.nodes.iter().map(|node| NodeAddress {
        id: node.id(),
        addresses: network.pool.node(node.id()).unwrap().known.addresses,
    });
    let gateway = Arc::new(Gateway {
        plain: Bytes::from(plain),
        version: Mutex::new(vec![1; 16]),
        parts,
        blocks: blocks.collect(),
        nodes: nodes.collect(),
        stripes,
        pages: AtomicU64::new(0),
        serves_plaintext: AtomicBool::new(false),
        lies: AtomicBool::new(false),
    });
    let transport = network.network.join(NodeId(key(77).public()));
    let pool =
        NodePool::new(PoolConfig::new(transport, "client", Arc::clone(&network.clock) as Arc<dyn Clock>));
    let (cache, served) = (BlockCache::in_memory(8 << 20), Arc::<Served>::default());
    let config = DirectConfig {
        cache: Some(Arc::clone(&cache)),
        observer: Some(Arc::clone(&served) as Arc<dyn ReadObserver>),
        ..DirectConfig::default()
    };
    World { client: DirectClient::new(pool, config), network, gateway, cache, served }
}

fn place(network: &TestNetwork, number: u8, blocks: &[Bytes]) -> Stripe {
    let parity = Code::shared(4, 2).unwrap().encode(blocks).unwrap();
    let put = |slot: usize, bytes: &Bytes| {
        let node = &network.nodes[(slot + usize::from(number)) % network.nodes.len()];
        let digest = node.place(bytes.clone());
        Some(Shard { digest, len: BlockLen::of(bytes).unwrap(), node: Some(node.id()) })
    };
    let mut shards: Vec<_> = blocks.iter().enumerate().map(|(slot, bytes)| put(slot, bytes)).collect();
    shards.resize(4, None);
    shards.extend(parity.iter().enumerate().map(|(at, bytes)| put(4 + at, bytes)));
    Stripe {
        v: Stripe::VERSION,
        id: StripeId([number; 16]),
        version: 1,
        policy: PolicyName::Local,
        k: 4,
        m: 2,
        block_len: blocks.iter().map(|bytes| BlockLen::of(bytes).unwrap()).max().unwrap(),
        shards,
    }
}

impl World {
    async fn open(&self) -> DirectObject {
        DirectObject::open(Arc::clone(&self.client), Arc::clone(&self.gateway) as _).await.unwrap()
    }

    fn plain(&self, range: Range<u64>) -> Bytes {
        let at = |offset: u64| usize::try_from(offset).unwrap();
        self.gateway.plain.slice(at(range.start)..at(range.end))
    }
}

#[tokio::test(start_paused = true)]
async fn an_object_of_several_parts_is_read_and_deciphered_whole() {
    let world = world(&[250_000, 77, 300_001, 16]).await;
    let object = world.open().await;
    assert!(object.read(0..object.size()).await.unwrap() == world.gateway.plain);
    let blocks = object.blocks(0..object.size()).await.unwrap();
    assert_eq!(blocks.len(), world.gateway.blocks.len());
    assert_eq!(object.unit(250_050), 250_000..250_077);
    assert!(world.served.0.lock().iter().all(|by| matches!(by, ServedBy::Node(_))));
    // Again: from the cache, where what lies there is ciphertext.
    assert!(object.read(0..object.size()).await.unwrap() == world.gateway.plain);
    let cached = world.served.0.lock().iter().filter(|by| **by == ServedBy::Cache).count();
    assert_eq!(cached, blocks.len());
    let first = world.cache.get(&blocks[0], ByteRange { start: 0, len: 16 }).await.unwrap();
    assert_ne!(first, world.gateway.plain.slice(..16));
}

#[tokio::test(start_paused = true)]
async fn two_dead_nodes_go_unnoticed() {
    let world = world(&[900_000]).await;
    world.network.nodes[0].vanish().await;
    world.network.nodes[4].behave(Behaviour::FlipBit);
    let object = world.open().await;
    assert!(object.read(0..object.size()).await.unwrap() == world.gateway.plain);
    assert!(world.served.0.lock().contains(&ServedBy::Rebuilt));
}

#[tokio::test(start_paused = true)]
async fn what_no_node_gives_comes_through_the_gateway_and_is_verified_here() {
    let world = world(&[250_000, 50_000]).await;
    for node in &world.network.nodes {
        node.vanish().await;
    }
    let object = world.open().await;
    assert!(matches!(object.read(10..20).await, Err(ObjectError::Fetch(_))), "no such way");
    world.gateway.serves_plaintext.store(true, Ordering::Relaxed);
    let range = 249_000..251_000;
    assert!(object.read(range.clone()).await.unwrap() == world.plain(range));
    assert_eq!(world.served.0.lock().last(), Some(&ServedBy::Gateway));
    world.gateway.lies.store(true, Ordering::Relaxed);
    assert!(object.read(0..10).await.is_err(), "a gateway that changes one bit of the block is not believed");
    let cached = 249_500..249_600;
    assert!(object.read(cached.clone()).await.unwrap() == world.plain(cached), "what was verified is kept");
}

#[tokio::test(start_paused = true)]
async fn shards_that_repair_has_moved_are_found_by_a_newer_page() {
    let mut world = world(&[100_000]).await;
    let object = world.open().await;
    let newcomer = world.network.add_node().await;
    let (_, digest, _, stripe, slot) = world.gateway.blocks[0];
    newcomer.place(world.network.nodes.iter().find_map(|node| node.block(&digest)).unwrap());
    for node in &world.network.nodes {
        if node.id() != newcomer.id() {
            node.vanish().await;
        }
    }
    // What a gateway would say after a repair.
    let mut page = world.gateway.page(0, None).await.unwrap();
    let shard = page.stripes[0].shards[usize::from(slot)].as_mut().unwrap();
    shard.node = Some(newcomer.id());
    page.stripes[0].version += 1;
    page.nodes.push(NodeAddress {
        id: newcomer.id(),
        addresses: world.network.pool.node(newcomer.id()).unwrap().known.addresses,
    });
    assert_eq!(stripe, 0);
    world.client.learn(&page).unwrap();
    assert!(object.read(0..100_000).await.unwrap() == world.gateway.plain);
}

#[tokio::test(start_paused = true)]
async fn pages_are_asked_for_when_they_are_needed_and_only_then() {
    let world = world(&[2_000_000]).await;
    let object = world.open().await;
    assert_eq!(world.gateway.pages.load(Ordering::Relaxed), 1);
    object.read(1_950_000..1_950_010).await.unwrap();
    object.read(1_960_000..1_960_010).await.unwrap();
    assert_eq!(world.gateway.pages.load(Ordering::Relaxed), 2);
    assert_eq!(object.unit(1_000_000), 0..1 << 20, "a guess while the page is unknown");
}

#[tokio::test(start_paused = true)]
async fn an_object_that_is_replaced_meanwhile_is_an_error_and_no_mixture() {
    let world = world(&[2_000_000]).await;
    let object = world.open().await;
    *world.gateway.version.lock() = vec![2; 16];
    assert!(object.read(0..10).await.is_ok(), "the page at hand is still good");
    let error = object.read(1_950_000..1_950_010).await.unwrap_err();
    assert!(error.to_string().contains("cannot be read"), "{error}");
    assert!(!error.is_retryable());
}

#[tokio::test]
async fn a_ticket_that_contradicts_itself_is_refused() {
    let world = world(&[250_000, 77]).await;
    let good = world.gateway.page(0, None).await.unwrap();
    let bad = |change: &dyn Fn(&mut ReadTicket)| {
        let mut ticket = good.clone();
        change(&mut ticket);
        ReadTicket::decode(&ticket.encode()).is_err()
    };
    assert!(!bad(&|_| {}));
    assert!(bad(&|ticket| ticket.v = 2));
    assert!(bad(&|ticket| ticket.size = 10));
    assert!(bad(&|ticket| ticket.offset = u64::MAX));
    assert!(bad(&|ticket| ticket.places[0].1 = 1));
    assert!(bad(&|ticket| ticket.places[0].0 = 99));
    assert!(bad(&|ticket| ticket.places.truncate(1)));
    assert!(bad(&|ticket| ticket.parts[1].offset += 1));
    assert!(bad(&|ticket| ticket.parts.clear()));
    assert!(bad(&|ticket| ticket.parts[0].len = u64::MAX));
    assert!(bad(&|ticket| ticket.blocks.clear()));
    assert!(bad(&|ticket| ticket.stripes[0].shards.truncate(5)));
    let text = format!("{good:?}");
    assert!(text.contains("PartKey(redacted)") && !text.contains("[2, 2, 2, 2"), "keys are not printed");
    for cut in 0..200 {
        assert!(ReadTicket::decode(&good.encode()[..cut]).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_range_of_any_layout_is_the_objects(
        lens in prop::collection::vec(1usize..230_000, 1..5), from in 0.0f64..1.0, to in 0.0f64..1.0,
    ) {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let world = world(&lens).await;
            let object = world.open().await;
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
            let at = |part: f64| ((object.size() - 1) as f64 * part) as u64;
            let range = at(from).min(at(to))..at(from).max(at(to)) + 1;
            assert!(object.read(range.clone()).await.unwrap() == world.plain(range));
        });
    }
}
