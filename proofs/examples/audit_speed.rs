//! What audits cost: single chunks verified a second, whole draws judged a second, the bytes of an answer, and one
//! auditor that follows thousands of nodes.
//!
//! `cargo run --release -p holdfast-proofs --example audit_speed -- [NODES]`

use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_proofs::answer::{Question, decode_body, prove_chunk};
use holdfast_proofs::auditor::{Ask, Auditor};
use holdfast_proofs::beacon::{Beacon, BeaconSpec, Onion, OnionSecret};
use holdfast_proofs::draw::Draw;
use holdfast_proofs::log::LogTail;
use holdfast_proofs::policy::AuditPolicy;
use holdfast_proofs::testing::{SimBlock, SimNode, Strategy};
use holdfast_proofs::{LeafUnit, hash_block, verify_leaf};
use holdfast_protocol::SigningKey;

const HOUR_MS: u64 = 3_600_000;
const FIRST: u64 = 490_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let nodes: usize = std::env::args().nth(1).map_or(Ok(10_000), |text| text.parse())?;
    chunks()?;
    follow(nodes)
}

/// Single chunks of a block of 1 MiB, each with its path of ten.
fn chunks() -> Result<(), Box<dyn std::error::Error>> {
    let bytes: Vec<u8> = (0..1u32 << 20).map(|index| u8::try_from(index % 251).unwrap_or(0)).collect();
    let (digest, tree) = hash_block(&bytes);
    let proofs: Vec<_> = (0..1024u32)
        .map(|chunk| {
            let group =
                |chunk: u32| &bytes[(chunk / 16 * 16384) as usize..(chunk / 16 * 16384 + 16384) as usize];
            prove_chunk(&tree, chunk, group(chunk), group(1023))
        })
        .collect::<Result<_, _>>()?;
    let (rounds, mut best) = (100, Duration::MAX);
    for _ in 0..5 {
        let start = Instant::now();
        for _ in 0..rounds {
            for (chunk, proof) in (0u32..).zip(&proofs) {
                verify_leaf(&digest, tree.len(), LeafUnit::Chunk, chunk, &proof.chunk, &proof.path)?;
            }
        }
        best = best.min(start.elapsed());
    }
    let each = best.as_secs_f64() / f64::from(rounds * 1024);
    println!(
        "single chunk with path    {:>9.0} a second on one core ({:.2} us each)",
        1.0 / each,
        each * 1e6
    );
    Ok(())
}

/// One epoch of `count` nodes: everything that the auditor does, and nothing that the nodes do.
#[allow(clippy::too_many_lines, reason = "one epoch from its start to its end, as it happens")]
fn follow(count: usize) -> Result<(), Box<dyn std::error::Error>> {
    let secret = OnionSecret::new([9; 32]);
    let spec = BeaconSpec::Onion {
        members: vec![secret.anchor()],
        genesis_ms: FIRST * HOUR_MS + HOUR_MS / 6,
        period_ms: HOUR_MS,
    };
    let policy = AuditPolicy::every(HOUR_MS, spec);
    let beacon: Arc<dyn Beacon> = Arc::from(policy.beacon.open()?);
    let key = Arc::new(SigningKey::from_seed(&[1; 32])?);
    let mut auditor =
        Auditor::new(key, "speed/log".into(), policy.clone(), beacon.clone(), policy.start_of(FIRST));
    let pool: Vec<Arc<SimBlock>> = (0..64).map(|seed| Arc::new(SimBlock::new(seed, 1 << 20))).collect();
    let mut log = LogTail::new();
    let mut logged = 0usize;
    let mut spent = Duration::ZERO;
    let mut body_bytes = 0usize;
    let mut judging = Duration::ZERO;
    for epoch in FIRST..FIRST + 2 {
        let (start, draw_ms) = (policy.start_of(epoch), policy.draw_of(epoch));
        let number = beacon.round_at(draw_ms);
        let round = Onion::round(number, &[secret.layer(number).ok_or("no more rounds")?]);
        let randomness = beacon.verify(&round)?;
        let mut given = Vec::new();
        for index in 0..count {
            let mut seed = [0u8; 32];
            seed[..8].copy_from_slice(&(index as u64 + 2).to_le_bytes());
            let key = Arc::new(SigningKey::from_seed(&seed)?);
            let blocks = pool.iter().skip(index % 32).take(32).map(|block| (Arc::clone(block), true));
            let node = SimNode::new(key, Strategy::Honest, blocks);
            let inventory = node.inventory();
            let shown = node.shown(&inventory, epoch, start);
            let begun = Instant::now();
            auditor.follow(node.id());
            auditor.take_commitment(node.id(), epoch, &shown, start)?;
            spent += begun.elapsed();
            let draws: Vec<u32> = (0..policy.chunks).collect();
            let (answer, body) = node.answer(&inventory, epoch, (round.round, &randomness), &draws, draw_ms);
            given.push((node.id(), answer, body, inventory.claimed()));
        }
        let begun = Instant::now();
        auditor.take_round(epoch, round)?;
        for (node, answer, body, _) in &given {
            let asks = auditor.asks(*node, draw_ms);
            assert!(matches!(&asks[..], [Ask::Answer(due, _)] if *due == epoch));
            auditor.take_answer(*node, epoch, answer, body, draw_ms)?;
        }
        auditor.close(epoch, policy.answer_by(epoch));
        auditor.expire(policy.answer_by(epoch));
        for entry in auditor.take_entries() {
            let bytes = entry.encode();
            logged += bytes.len();
            log.append(&bytes)?;
        }
        log.files();
        spent += begun.elapsed();
        let begun = Instant::now();
        for (node, _, body, root) in &given {
            body_bytes += body.len();
            let draw = Draw::new(&randomness, *node, epoch, root.bytes);
            let question = Question { root: *root, draw, declared: &std::collections::BTreeMap::new() };
            decode_body(body)?.draws.iter().for_each(|proof| {
                assert!(question.judge(proof).error.is_none());
            });
        }
        judging += begun.elapsed();
    }
    let epochs = 2 * count;
    #[allow(clippy::cast_precision_loss)]
    let per = |total: f64| total / epochs as f64;
    println!("whole draws judged        {:>9.0} a second on one core", 20.0 / per(judging.as_secs_f64()));
    println!("an answer of 20 chunks    {:>9.1} KB", per(body_bytes as f64) / 1000.0);
    println!(
        "log                       {:>9.1} KB a node and epoch, without the proofs",
        per(logged as f64) / 1000.0
    );
    println!(
        "an auditor of {count} nodes  {:.2} CPU-s an epoch: {:.3} % of a core at one epoch an hour; {} MB resident",
        spent.as_secs_f64() / 2.0,
        spent.as_secs_f64() / 2.0 / 36.0,
        resident_mb()
    );
    Ok(())
}

/// The most memory that this process had, the simulated nodes' answers included.
fn resident_mb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap_or("0");
    line.split_whitespace().nth(1).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0) / 1024
}
