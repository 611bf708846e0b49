//! `kill -9` of a node under load, again and again: every receipt that it signed is true after the next start.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use holdfast_protocol::message::{CommitBlocks, DeletionOrder, HasBlocks, Held, PutBlock};
use holdfast_protocol::record::{
    Agreement, AgreementId, ClaimRef, ClaimTag, Delegation, Prices, Rights, Signed,
};
use holdfast_protocol::rpc::{HelloParams, Peer};
use holdfast_protocol::time::{Clock, SystemClock};
use holdfast_protocol::transport::Transport;
use holdfast_protocol::transport::quic::{QuicConfig, QuicTransport};
use holdfast_protocol::{BlockLen, Digest, NamespaceId, NodeId, OperatorId, SigningKey};
use holdfast_tests::Process;
use tokio::sync::{Mutex, mpsc};

/// Rounds without `HOLDFAST_ROUNDS`.
const ROUNDS: u64 = 10;
/// Acknowledged puts before each kill.
const PUTS_BEFORE_KILL: u64 = 40;
const WRITERS: u64 = 8;
const DAY_MS: u64 = 24 * 3600 * 1000;
/// Blocks that are read back after each start, besides all of the last round.
const SAMPLE: usize = 40;

/// Of each block that was answered, the states that it may be in.
type Told = Arc<Mutex<BTreeMap<u64, Vec<Held>>>>;

/// What the writers of one round share.
#[derive(Clone)]
struct Notes {
    next: Arc<AtomicU64>,
    told: Told,
    put_done: mpsc::Sender<()>,
}

impl Notes {
    async fn note(&self, number: u64, states: &[Held]) {
        self.told.lock().await.insert(number, states.to_vec());
    }
}

fn content(number: u64) -> Bytes {
    let len = [300, 5_000, 20_000, 100_000, 300_000][usize::try_from(number % 5).unwrap_or(0)];
    Bytes::from(holdfast_tests::bytes_of(&format!("killed {number}"), len))
}

struct Client {
    namespace: SigningKey,
    gateway: Arc<SigningKey>,
    transport: Arc<QuicTransport>,
}

impl Client {
    fn new() -> Result<Self> {
        let gateway = Arc::new(SigningKey::generate()?);
        let transport = QuicTransport::bind(QuicConfig::new("127.0.0.1:0".parse()?, gateway.clone()))?;
        Ok(Self { namespace: SigningKey::generate()?, gateway, transport })
    }

    async fn connect(&self, node: NodeId, address: SocketAddr) -> Result<Peer> {
        let now_ms = SystemClock.now_ms();
        let delegation = Delegation {
            v: 1,
            namespace: NamespaceId(self.namespace.public()),
            delegate: NodeId(self.gateway.public()),
            rights: Rights::GATEWAY,
            not_before_ms: now_ms - 60_000,
            expires_ms: now_ms + DAY_MS,
            label: "killed".to_owned(),
        };
        let hello = HelloParams {
            delegation: Some(Signed::sign(delegation, &self.namespace).to_wire()),
            node_record: None,
            software: "test/1".to_owned(),
            now_ms,
        };
        let connection = self.transport.dial(node, &[address]).await?;
        Ok(Peer::hello(connection, hello).await?.0)
    }

    async fn agree(&self, peer: &Peer, node: NodeId) -> Result<AgreementId> {
        let now_ms = SystemClock.now_ms();
        let terms = Agreement {
            v: 1,
            namespace: NamespaceId(self.namespace.public()),
            node,
            operator: OperatorId(node.0),
            capacity_bytes: 4 << 30,
            prices: Prices::default(),
            start_ms: now_ms - 60_000,
            end_ms: now_ms + 90 * DAY_MS,
            notice_ms: DAY_MS,
            nonce: [1; 16],
        };
        let terms = Signed::sign(terms, &self.namespace);
        let signed = peer.agree(&terms).await?.verify()?;
        Ok(signed.id())
    }

    fn order(&self, agreement: AgreementId, claim: ClaimRef) -> Signed<DeletionOrder> {
        let order = DeletionOrder { v: 1, agreement, claims: vec![claim], issued_ms: SystemClock.now_ms() };
        Signed::sign(order, &self.gateway)
    }
}

fn claim(number: u64) -> ClaimRef {
    ClaimRef(Digest::of(&content(number)), ClaimTag([1; 16]))
}

/// Puts, commits and deletes until the node is killed under it; notes what may be true after each question and answer.
async fn write(client: Arc<Client>, peer: Arc<Peer>, agreement: AgreementId, notes: Notes) {
    loop {
        let number = notes.next.fetch_add(1, Ordering::Relaxed);
        let block = content(number);
        let Ok(len) = BlockLen::of(&block) else { return };
        let put = PutBlock {
            agreement,
            digest: Digest::of(&block),
            len,
            tag: ClaimTag([1; 16]),
            scope: None,
            lease_until_ms: SystemClock.now_ms() + DAY_MS,
            retain_until_ms: 0,
        };
        if peer.put_block(put, block).await.is_err() {
            return;
        }
        notes.note(number, &[Held::Provisional]).await;
        // Nobody counts any longer once the node is killed.
        let _uncounted = notes.put_done.send(()).await;
        if number.is_multiple_of(3) {
            continue;
        }
        notes.note(number, &[Held::Provisional, Held::Live]).await;
        let commit = CommitBlocks { agreement, claims: vec![claim(number)], retain_until_ms: 0 };
        if peer.commit_blocks(commit).await.is_err() {
            return;
        }
        notes.note(number, &[Held::Live]).await;
        if number % 3 == 2 {
            notes.note(number, &[Held::Live, Held::Trash]).await;
            if peer.delete_blocks(&client.order(agreement, claim(number))).await.is_err() {
                return;
            }
            notes.note(number, &[Held::Trash]).await;
        }
    }
}

/// Everything that was answered is so, and the bytes are there.
async fn check(peer: &Peer, agreement: AgreementId, told: &BTreeMap<u64, Vec<Held>>) -> Result<()> {
    let all: Vec<_> = told.iter().collect();
    for page in all.chunks(500) {
        let claims = page.iter().map(|(number, _)| claim(**number)).collect();
        let found = peer.has_blocks(HasBlocks { agreement, claims }).await?.held;
        for ((number, expected), found) in page.iter().zip(found) {
            ensure!(expected.contains(&found), "block {number} was answered {expected:?} and is {found:?}");
        }
    }
    let step = (all.len() / SAMPLE).max(1);
    let last = all.len().saturating_sub(SAMPLE);
    for (index, (number, held)) in all.iter().enumerate() {
        if held.contains(&Held::Trash) || (index < last && index % step != 0) {
            continue;
        }
        let digest = Digest::of(&content(**number));
        let len = BlockLen::of(&content(**number))?;
        let body = peer.read_whole(digest, len, None).await?;
        ensure!(Digest::of(&body) == digest, "block {number} reads as other bytes");
    }
    let status = peer.status().await?;
    ensure!(
        status.capacity_bytes
            == status.used_bytes + status.trash_bytes + status.garbage_bytes + status.free_bytes,
        "the accounts do not add up: {status:?}"
    );
    Ok(())
}

fn start(dir: &Path, admitted: NamespaceId) -> Result<(Process, NodeId, SocketAddr)> {
    let admitted = admitted.to_string();
    if !dir.exists() {
        holdfast_tests::init_node(dir, "8GB")?;
    }
    let dir = dir.to_str().context("UTF-8")?;
    let arguments = ["node", "run", "--dir", dir, "--listen", "127.0.0.1:0", "--admit", &admitted];
    let process = Process::start(&arguments)?;
    let ready = process.wait_event("ready")?;
    let node = ready["id"].as_str().context("id")?.parse()?;
    let address = ready["address"].as_str().context("address")?.parse()?;
    Ok((process, node, address))
}

#[test]
fn a_node_killed_under_load_keeps_what_it_signed_for() -> Result<()> {
    let rounds = std::env::var("HOLDFAST_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS);
    let root = tempfile::tempdir()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let client = Arc::new(Client::new()?);
        let (told, next): (Told, Arc<AtomicU64>) = Default::default();
        let mut agreed = None;
        for round in 0..rounds {
            let (mut process, node, address) =
                start(&root.path().join("node"), NamespaceId(client.namespace.public()))?;
            let peer = Arc::new(client.connect(node, address).await?);
            let agreement = match agreed {
                Some(agreement) => agreement,
                None => *agreed.insert(client.agree(&peer, node).await?),
            };
            let so_far = told.lock().await.clone();
            check(&peer, agreement, &so_far).await.with_context(|| format!("round {round}"))?;
            let (put_done, mut puts) = mpsc::channel(1);
            let notes = Notes { next: next.clone(), told: told.clone(), put_done };
            let writers: Vec<_> = (0..WRITERS)
                .map(|_| tokio::spawn(write(client.clone(), peer.clone(), agreement, notes.clone())))
                .collect();
            for _ in 0..PUTS_BEFORE_KILL {
                puts.recv().await.context("the writers ended early")?;
            }
            process.kill()?;
            drop((puts, notes));
            // They would wait for answers until the connection is given up. What they had not noted yet is not counted.
            for writer in writers {
                writer.abort();
                let _ended = writer.await;
            }
        }
        let answered = told.lock().await.len();
        ensure!(answered as u64 >= rounds * PUTS_BEFORE_KILL / 4, "only {answered} blocks were answered");
        Ok(())
    })
}
