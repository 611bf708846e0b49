//! Soundness: simulated nodes, honest and not, against the audit as it ships.
//!
//! First every strategy plays whole epochs with real inventories, proofs and signatures against the auditor's own
//! code: which outcome does it end in? Then thousands of days are drawn for each, with the real draw, to measure how
//! soon it is found and what it earns; the formula stands beside the measurement. Last, honest nodes on bad networks
//! play against the same auditor: none may lose data score.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use clap::Args;
use holdfast_proofs::auditor::{Ask, Auditor, MissKind};
use holdfast_proofs::beacon::{Beacon, BeaconSpec, Onion, OnionSecret};
use holdfast_proofs::draw::Draw;
use holdfast_proofs::policy::AuditPolicy;
use holdfast_proofs::score::{Scores, pay};
use holdfast_proofs::testing::{SimBlock, SimInventory, SimNode, Strategy};
use holdfast_protocol::record::{AuditOutcome, Epoch, StandingState, Verdict};
use holdfast_protocol::{NodeId, PublicKey, SigningKey};
use serde::Serialize;

/// Blocks of a simulated node, all of one length: a block that is missing is then exactly 1 % of its bytes.
const BLOCKS: usize = 100;
/// Their length.
const BLOCK_LEN: usize = 64 * 1024;
/// Epochs of a day, and chunks of an epoch.
const EPOCHS_A_DAY: u64 = 24;
const CHUNKS: u32 = 20;
const HOUR_MS: u64 = 3_600_000;
/// Attempts to ask a node within one window: the auditor makes many more, so networks here are worse than they seem.
const ATTEMPTS: u32 = 3;
/// Rounds of the beacon that are prepared.
const ROUNDS: u64 = 1000;
/// The first epoch that is played.
const FIRST: Epoch = 490_000;

/// Options of `soundness`.
#[derive(Debug, Args)]
pub(crate) struct SoundnessArgs {
    /// Days that are drawn for each strategy
    #[arg(long, default_value_t = 4000)]
    trials: u64,
    /// Epochs that each strategy plays with real proofs against the auditor
    #[arg(long, default_value_t = 60)]
    epochs: u64,
    /// One JSON value instead of tables
    #[arg(long)]
    json: bool,
}

/// A way to cheat, or not to.
struct Cheat {
    name: &'static str,
    /// What it does in the simulation.
    strategy: Strategy,
    /// Blocks of a hundred that it lacks.
    lacks: usize,
    /// What comes of a draw that hits what it lacks, in the end.
    ends_in: AuditOutcome,
    /// Whether every draw ends so, not only those that hit what it lacks.
    always: bool,
    /// For people.
    note: &'static str,
}

const CHEATS: [Cheat; 16] = [
    Cheat {
        name: "honest",
        strategy: Strategy::Honest,
        lacks: 0,
        ends_in: AuditOutcome::Passed,
        always: false,
        note: "",
    },
    Cheat {
        name: "loses 1 %, declares in time",
        strategy: Strategy::DeclaresInTime,
        lacks: 1,
        ends_in: AuditOutcome::Declared,
        always: false,
        note: "loses the pay of what it lost",
    },
    Cheat {
        name: "keeps 99 %",
        strategy: Strategy::Admits,
        lacks: 1,
        ends_in: AuditOutcome::Absent,
        always: false,
        note: "",
    },
    Cheat {
        name: "keeps 90 %",
        strategy: Strategy::Admits,
        lacks: 10,
        ends_in: AuditOutcome::Absent,
        always: false,
        note: "",
    },
    Cheat {
        name: "keeps 50 %",
        strategy: Strategy::Admits,
        lacks: 50,
        ends_in: AuditOutcome::Absent,
        always: false,
        note: "",
    },
    Cheat {
        name: "keeps headers only",
        strategy: Strategy::HeadersOnly,
        lacks: 100,
        ends_in: AuditOutcome::Wrong,
        always: false,
        note: "",
    },
    Cheat {
        name: "keeps 99 %, declares after the draw",
        strategy: Strategy::DeclaresLate,
        lacks: 1,
        ends_in: AuditOutcome::Absent,
        always: false,
        note: "due for 72 h, pay withheld",
    },
    Cheat {
        name: "keeps 99 %, silent on the rest",
        strategy: Strategy::Silent,
        lacks: 1,
        ends_in: AuditOutcome::Absent,
        always: false,
        note: "due for 72 h, pay withheld",
    },
    Cheat {
        name: "replays old answers",
        strategy: Strategy::Replays,
        lacks: 100,
        ends_in: AuditOutcome::Wrong,
        always: true,
        note: "",
    },
    Cheat {
        name: "forges paths",
        strategy: Strategy::ForgesPath,
        lacks: 100,
        ends_in: AuditOutcome::Wrong,
        always: true,
        note: "",
    },
    Cheat {
        name: "forges sums (claims twice)",
        strategy: Strategy::ForgesSums,
        lacks: 0,
        ends_in: AuditOutcome::Wrong,
        always: true,
        note: "",
    },
    Cheat {
        name: "lies about one length (+15 % bytes)",
        strategy: Strategy::ForgesLength,
        lacks: 0,
        ends_in: AuditOutcome::Wrong,
        always: false,
        note: "",
    },
    Cheat {
        name: "equivocates",
        strategy: Strategy::Equivocates,
        lacks: 0,
        ends_in: AuditOutcome::Wrong,
        always: true,
        note: "two signed commitments",
    },
    Cheat {
        name: "presents another's data",
        strategy: Strategy::ShowsOther,
        lacks: 100,
        ends_in: AuditOutcome::Wrong,
        always: true,
        note: "",
    },
    Cheat {
        name: "fetches on demand",
        strategy: Strategy::Honest,
        lacks: 0,
        ends_in: AuditOutcome::Passed,
        always: false,
        note: "NOT detected: pays for every fetch instead",
    },
    Cheat {
        name: "answers audits only",
        strategy: Strategy::Honest,
        lacks: 0,
        ends_in: AuditOutcome::Passed,
        always: false,
        note: "NOT detected here: surprise audits",
    },
];

/// One strategy's results.
#[derive(Debug, Serialize)]
struct Row {
    strategy: &'static str,
    note: &'static str,
    /// Outcomes of its draws with real proofs, with their counts.
    played: BTreeMap<String, u64>,
    /// Where it stands after the epochs that it played.
    standing: String,
    /// Fraction of days on which it is found, measured.
    found_a_day: f64,
    /// The same by the formula 1 - kept^480.
    formula: f64,
    /// Mean share of an hour's pay.
    earns: f64,
    /// What declaring the same loss in time would earn.
    honesty_earns: f64,
    /// Hours until the standing falls, median over trials; none within 30 days.
    falls_after_hours: Option<u64>,
}

/// An honest node on a bad network.
#[derive(Debug, Serialize)]
struct Network {
    network: &'static str,
    nodes: usize,
    epochs: u64,
    data_lowest: f64,
    online_mean: f64,
    chunks_absent_or_wrong: u64,
    void_epochs: u64,
}

/// Everything.
#[derive(Debug, Serialize)]
struct Results {
    trials: u64,
    epochs: u64,
    strategies: Vec<Row>,
    networks: Vec<Network>,
}

/// `holdfast-bench soundness`.
pub(crate) fn run(args: &SoundnessArgs) -> Result<()> {
    let mut strategies = Vec::new();
    for cheat in &CHEATS {
        strategies.push(measure(cheat, args)?);
    }
    let networks = vec![
        on_network("5 % of requests lost", args.epochs, |random| random < 0.05, |_| false)?,
        on_network("2 s stalls in every fifth answer", args.epochs, |random| random < 0.2, |_| false)?,
        on_network("an hour offline every day", args.epochs, |_| false, |epoch| epoch % EPOCHS_A_DAY == 7)?,
    ];
    let results = Results { trials: args.trials, epochs: args.epochs, strategies, networks };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&results)?);
    } else {
        show(&results);
    }
    judge(&results)
}

/// What must hold, whatever the numbers are.
fn judge(results: &Results) -> Result<()> {
    for row in &results.strategies {
        // Four standard deviations of a binomial proportion, and a little for tiny samples.
        let trials = f64::from(u32::try_from(results.trials)?);
        let spread = 4.0 * (row.formula * (1.0 - row.formula) / trials).sqrt() + 2.0 / trials;
        let off = (row.found_a_day - row.formula).abs();
        ensure!(
            off <= spread,
            "{}: found {} against {} by the formula",
            row.strategy,
            row.found_a_day,
            row.formula
        );
        // What is declared costs its own pay and no more: equal, but for sampling.
        let pays = row.earns > row.honesty_earns + 0.002;
        ensure!(!pays, "{} earns {} and honesty {}", row.strategy, row.earns, row.honesty_earns);
    }
    for network in &results.networks {
        ensure!(network.data_lowest >= 1.0, "{}: an honest node lost data score", network.network);
        ensure!(network.chunks_absent_or_wrong == 0, "{}: an honest node missed a chunk", network.network);
    }
    Ok(())
}

/// Plays one strategy, then draws its days.
fn measure(cheat: &Cheat, args: &SoundnessArgs) -> Result<Row> {
    let mut world = World::new(&[(cheat.strategy, cheat.lacks)])?;
    let mut played: BTreeMap<String, u64> = BTreeMap::new();
    let mut missed = false;
    for epoch in FIRST..FIRST + args.epochs {
        for verdict in world.epoch(epoch, &mut |_| false, |_| false)? {
            for draw in verdict.draws.iter().filter(|_| verdict.settled || verdict.epoch == epoch) {
                *played.entry(format!("{:?}", draw.outcome).to_lowercase()).or_default() += 1;
                missed |= draw.outcome == cheat.ends_in || draw.outcome == AuditOutcome::Pending;
            }
        }
    }
    let account = world.auditor.book().account(world.nodes[0].0.id()).context("the node was judged")?;
    let standing = format!("{:?}", account.scores.state()).to_lowercase();
    ensure!(
        missed || cheat.strategy == Strategy::Equivocates,
        "{}: no draw ever ended in {:?}",
        cheat.name,
        cheat.ends_in
    );
    let mut row = days(cheat, args.trials);
    (row.played, row.standing) = (played, standing);
    Ok(row)
}

/// Draws `trials` days: which chunks are hit, when it is found, what it earns.
fn days(cheat: &Cheat, trials: u64) -> Row {
    let missing = match (cheat.always, cheat.strategy) {
        (true, _) => 1.0,
        // One block claims 1 MiB and has 64 KiB: every draw in it fails, for its last chunk does.
        (false, Strategy::ForgesLength) => 1024.0 / (99.0 * 64.0 + 1024.0),
        (false, _) => f64::from(u32::try_from(cheat.lacks).unwrap_or(0)) / 100.0,
    };
    let (mut found, mut earned) = (0u64, 0.0);
    let mut falls = Vec::new();
    let random = randomness(1);
    for trial in 0..trials {
        let node = NodeId(PublicKey(blake3_of(&format!("{} {trial}", cheat.name))));
        let mut hit_today = false;
        for hour in 0..EPOCHS_A_DAY {
            let outcomes = drawn(&random, node, trial * EPOCHS_A_DAY + hour, missing, cheat.ends_in);
            hit_today |= outcomes.iter().any(|outcome| *outcome > AuditOutcome::Pending);
            earned += pay(&outcomes).unwrap_or(0.0);
        }
        found += u64::from(hit_today);
        if trial < 100 {
            falls.push(falls_after(&random, node, missing, cheat.ends_in));
        }
    }
    falls.sort_unstable();
    let hours = as_f64(trials * EPOCHS_A_DAY);
    let counted = cheat.ends_in > AuditOutcome::Pending;
    let formula = if counted { 1.0 - (1.0 - missing).powi(480) } else { 0.0 };
    let equivocates = cheat.strategy == Strategy::Equivocates;
    Row {
        strategy: cheat.name,
        note: cheat.note,
        played: BTreeMap::new(),
        standing: String::new(),
        found_a_day: as_f64(found) / as_f64(trials),
        formula,
        earns: if equivocates { 0.0 } else { earned / hours },
        honesty_earns: if cheat.ends_in == AuditOutcome::Passed { 1.0 } else { honest_share(cheat) },
        falls_after_hours: falls.get(falls.len() / 2).copied().flatten(),
    }
}

/// What a node with the same disk earns by declaring what it lacks.
fn honest_share(cheat: &Cheat) -> f64 {
    1.0 - f64::from(u32::try_from(cheat.lacks).unwrap_or(0)) / 100.0
}

/// The outcomes of one epoch: a draw that falls into the missing part ends as it must.
fn drawn(
    random: &[u8; 32],
    node: NodeId,
    epoch: Epoch,
    missing: f64,
    ends_in: AuditOutcome,
) -> Vec<AuditOutcome> {
    const BYTES: u64 = 1 << 40;
    let draw = Draw::new(random, node, epoch, BYTES);
    let outcome = |index| {
        let position = draw.position(index).unwrap_or(0);
        if as_f64(position) < missing * as_f64(BYTES) { ends_in } else { AuditOutcome::Passed }
    };
    (0..CHUNKS).map(outcome).collect()
}

/// Hours until the standing is no longer good, at most 30 days. What is found late is late here, too: 72 hours.
fn falls_after(random: &[u8; 32], node: NodeId, missing: f64, ends_in: AuditOutcome) -> Option<u64> {
    let mut scores = Scores::new();
    for hour in 0..30 * EPOCHS_A_DAY {
        let epoch = 1_000_000 + hour;
        scores.draws(epoch * HOUR_MS, drawn(random, node, epoch, missing, ends_in));
        scores.epoch(epoch * HOUR_MS, true);
        if matches!(scores.state(), StandingState::Suspended | StandingState::Disqualified) {
            return Some(hour + 1);
        }
    }
    None
}

/// An auditor and its nodes, in memory.
struct World {
    auditor: Auditor,
    beacon: Arc<dyn Beacon>,
    /// The beacon's layers, by round.
    layers: Vec<[u8; 32]>,
    nodes: Vec<(SimNode, SimInventory)>,
}

impl World {
    fn new(strategies: &[(Strategy, usize)]) -> Result<Self> {
        let secret = OnionSecret::new([9; 32]);
        let genesis_ms = FIRST * HOUR_MS + HOUR_MS / 6;
        let members = vec![secret.anchor()];
        let spec = BeaconSpec::Onion { members, genesis_ms, period_ms: HOUR_MS };
        let policy = AuditPolicy::every(HOUR_MS, spec);
        let beacon: Arc<dyn Beacon> = Arc::from(policy.beacon.open()?);
        let key = Arc::new(SigningKey::from_seed(&[1; 32])?);
        let now_ms = policy.start_of(FIRST);
        let mut auditor = Auditor::new(key, "bench/soundness".into(), policy, Arc::clone(&beacon), now_ms);
        let pool: Vec<Arc<SimBlock>> =
            (0..BLOCKS).map(|seed| Arc::new(SimBlock::new(seed as u64, BLOCK_LEN))).collect();
        let mut nodes = Vec::new();
        for (index, (strategy, lacks)) in strategies.iter().enumerate() {
            let seed = u8::try_from(index + 10).context("few nodes")?;
            let key = Arc::new(SigningKey::from_seed(&[seed; 32])?);
            let blocks = pool.iter().enumerate().map(|(at, block)| (Arc::clone(block), at >= *lacks));
            let node = SimNode::new(key, *strategy, blocks);
            auditor.follow(node.id());
            let inventory = node.inventory();
            nodes.push((node, inventory));
        }
        let mut layers = vec![secret.layer(ROUNDS).context("the beacon has rounds")?];
        for _ in 0..ROUNDS {
            let above = layers.last().copied().unwrap_or_default();
            layers.push(*holdfast_protocol::Digest::of(&above).as_bytes());
        }
        layers.reverse();
        Ok(Self { auditor, beacon, layers, nodes })
    }

    /// One epoch: `fails` says whether an attempt to ask is lost, `offline` whether a node is away.
    fn epoch(
        &mut self,
        epoch: Epoch,
        fails: &mut dyn FnMut(usize) -> bool,
        offline: impl Fn(usize) -> bool,
    ) -> Result<Vec<Verdict>> {
        let policy = self.auditor.policy().clone();
        let (start, draw_ms) = (policy.start_of(epoch), policy.draw_of(epoch));
        let number = self.beacon.round_at(draw_ms);
        let layer = *self.layers.get(usize::try_from(number)?).context("the beacon has rounds")?;
        let round = Onion::round(number, &[layer]);
        for (index, (node, inventory)) in self.nodes.iter().enumerate() {
            // Asked again and again within the window: it fails only when every attempt does.
            if offline(index) || (0..ATTEMPTS).all(|_| fails(index)) {
                self.auditor.missed(node.id(), MissKind::Offline);
                continue;
            }
            self.auditor.take_commitment(node.id(), epoch, &node.shown(inventory, epoch, start), start)?;
            if node.strategy() == Strategy::Equivocates {
                let second = node.second(inventory, epoch, start);
                let _ = self.auditor.take_commitment(node.id(), epoch, &second, start);
            }
        }
        self.auditor.take_round(epoch, round)?;
        let mut verdicts = Vec::new();
        for (index, (node, inventory)) in self.nodes.iter().enumerate() {
            for ask in self.auditor.asks(node.id(), draw_ms) {
                let Ask::Answer(due, draws) = ask else { continue };
                if offline(index) || (0..ATTEMPTS).all(|_| fails(index)) {
                    self.auditor.missed(node.id(), MissKind::Timeout);
                    continue;
                }
                let round = self.auditor.round(due).cloned().context("the epoch is drawn")?;
                let randomness = self.beacon.verify(&round)?;
                let drawn = (round.round, &randomness);
                let (answer, body) = node.answer(inventory, due, drawn, &draws, draw_ms);
                let taken = self.auditor.take_answer(node.id(), due, &answer, &body, draw_ms)?;
                verdicts.extend(taken.verdict.map(holdfast_protocol::record::Signed::into_record));
            }
        }
        let end = policy.answer_by(epoch);
        let closed = self.auditor.close(epoch, end);
        let over = self.auditor.expire(end);
        verdicts.extend(closed.into_iter().chain(over).map(holdfast_protocol::record::Signed::into_record));
        Ok(verdicts)
    }
}

/// Twelve honest nodes, of which every second one is behind a bad network.
fn on_network(
    network: &'static str,
    epochs: u64,
    lost: impl Fn(f64) -> bool,
    away: impl Fn(u64) -> bool,
) -> Result<Network> {
    const NODES: usize = 12;
    let mut world = World::new(&[(Strategy::Honest, 0); NODES])?;
    let mut draws = 0u64;
    let mut bad = 0;
    for epoch in FIRST..FIRST + epochs.max(2 * EPOCHS_A_DAY) {
        let mut fails = |index: usize| {
            draws += 1;
            let random = randomness(draws);
            let random =
                f64::from(u32::from_le_bytes(*random.first_chunk().unwrap_or(&[0; 4]))) / f64::from(u32::MAX);
            index.is_multiple_of(2) && lost(random)
        };
        // Each is away at its own hour.
        let offline = |index: usize| index.is_multiple_of(2) && away(epoch + index as u64);
        for verdict in world.epoch(epoch, &mut fails, offline)? {
            let missed = verdict.count(AuditOutcome::Absent) + verdict.count(AuditOutcome::Wrong);
            bad += u64::try_from(missed)?;
        }
    }
    let accounts: Vec<_> = world.auditor.book().accounts().map(|(_, account)| account.scores).collect();
    let entries = world.auditor.take_entries();
    let void =
        entries.iter().filter(|entry| matches!(entry, holdfast_proofs::log::LogEntry::Void(_))).count();
    Ok(Network {
        network,
        nodes: NODES,
        epochs: epochs.max(2 * EPOCHS_A_DAY),
        data_lowest: accounts.iter().map(Scores::data).fold(1.0, f64::min),
        online_mean: accounts.iter().map(Scores::online).sum::<f64>() / as_f64(accounts.len() as u64),
        chunks_absent_or_wrong: bad,
        void_epochs: void as u64,
    })
}

fn show(results: &Results) {
    println!(
        "{} days drawn and {} epochs played with real proofs for each strategy; 20 chunks an hour\n",
        results.trials, results.epochs
    );
    println!(
        "{:37} {:>11} {:>9} {:>8} {:>8} {:>10}  standing, note",
        "strategy", "found a day", "formula", "earns", "honest", "falls (h)"
    );
    for row in &results.strategies {
        let falls = row.falls_after_hours.map_or_else(|| "never".to_owned(), |hours| hours.to_string());
        println!(
            "{:37} {:>9.2} % {:>7.2} % {:>6.1} % {:>6.1} % {falls:>10}  {} {}",
            row.strategy,
            row.found_a_day * 100.0,
            row.formula * 100.0,
            row.earns * 100.0,
            row.honesty_earns * 100.0,
            row.standing,
            row.note
        );
        let played: Vec<String> =
            row.played.iter().map(|(outcome, count)| format!("{count} {outcome}")).collect();
        println!("{:37}   played: {}", "", played.join(", "));
    }
    println!("\nhonest nodes on bad networks (every second of twelve)");
    for network in &results.networks {
        println!(
            "{:37} data score at worst {:.4}, online on average {:.4}, {} chunks absent or wrong, {} void epochs of {}",
            network.network,
            network.data_lowest,
            network.online_mean,
            network.chunks_absent_or_wrong,
            network.void_epochs,
            network.epochs
        );
    }
}

fn randomness(seed: u64) -> [u8; 32] {
    *holdfast_protocol::Digest::of(&seed.to_le_bytes()).as_bytes()
}

fn blake3_of(text: &str) -> [u8; 32] {
    *holdfast_protocol::Digest::of(text.as_bytes()).as_bytes()
}

#[allow(clippy::cast_precision_loss)]
fn as_f64(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small run holds to the formula, finds what it must, and spares the honest.
    #[test]
    fn a_small_run_holds() -> Result<()> {
        run(&SoundnessArgs { trials: 150, epochs: 30, json: true })
    }
}
