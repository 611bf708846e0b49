//! What storing something costs and how long it lasts: expansion, nines, correlated losses. Pure arithmetic over a
//! policy, the churn of nodes and the time that repair takes; `docs/DURABILITY.md` derives it.
//!
//! A stripe is a chain of states: i of its n shards are lost. It goes from i to i + 1 when another of its n - i
//! nodes is lost, and back to 0 when repair has rebuilt all i at once. The state m + 1 is never left. Every sum
//! below has positive terms only, so nothing cancels however many nines there are.

use holdfast_protocol::record::Policy;
use serde::Serialize;

use crate::repair::Patience;

/// Hours of a year.
const YEAR_HOURS: f64 = 365.25 * 24.0;
/// Nines beyond which the model says nothing any more: software faults and operators are likelier causes.
pub const NINES_MAX: f64 = 16.0;

/// What threatens a stripe, and what works against that.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Conditions {
    /// Losses of one node in a year, on average.
    pub losses_per_node_year: f64,
    /// How long a silent node is waited for while at least half of a stripe's margin is left, in hours.
    pub silent_hours: f64,
    /// How long the rebuilding takes once it has begun, in hours.
    pub rebuild_hours: f64,
}

/// How long data lasts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Durability {
    /// Expected years until one stripe is lost.
    pub stripe_mttdl_years: f64,
    /// The chance that one stripe is lost within a year.
    pub stripe_loss_per_year: f64,
    /// The same as nines: 4.0 is 99.99 %.
    pub stripe_nines: f64,
    /// The chance that any of the stripes is lost within a year, as if they were lost independently: an upper
    /// bound, since stripes share nodes.
    pub dataset_loss_per_year: f64,
    /// The same as nines.
    pub dataset_nines: f64,
}

/// The durability of `stripes` stripes of a policy.
pub fn durability(policy: &Policy, conditions: &Conditions, stripes: u64) -> Durability {
    let years = mttdl_years(policy, conditions);
    // Losses are rare and the chain forgets its past at every repair, so the first one comes after an
    // exponential time.
    let within_a_year = |rate: f64| -f64::exp_m1(-rate);
    #[allow(clippy::cast_precision_loss, reason = "a factor of a probability")]
    let count = stripes as f64;
    let (stripe, dataset) = (within_a_year(1.0 / years), within_a_year(count / years));
    Durability {
        stripe_mttdl_years: years,
        stripe_loss_per_year: stripe,
        stripe_nines: nines(stripe),
        dataset_loss_per_year: dataset,
        dataset_nines: nines(dataset),
    }
}

/// Expected years until one stripe is lost.
///
/// From whole to whole is one round: a first loss after 1/λ0, then an excursion that ends with repair or with one
/// loss more than m. With p_i the chance that state i ends with a further loss, P = p_1 ... p_m is the chance that
/// the round ends badly, and 1/P rounds pass until one does.
fn mttdl_years(policy: &Policy, conditions: &Conditions) -> f64 {
    let rate = conditions.losses_per_node_year.max(1e-9) / YEAR_HOURS;
    let nodes = |state: usize| as_f64(policy.n() - state.min(policy.n()));
    let mut reached = 1.0;
    let mut hours = 1.0 / (nodes(0) * rate);
    for state in 1..=policy.m {
        let loss = nodes(state) * rate;
        let repair = 1.0 / repair_hours(policy, conditions, state);
        hours += reached / (loss + repair);
        reached *= loss / (loss + repair);
    }
    hours / reached / YEAR_HOURS
}

/// How long a stripe stays with `lost` shards lost: what repair waits for with the margin that is left, and the
/// rebuilding.
fn repair_hours(policy: &Policy, conditions: &Conditions, lost: usize) -> f64 {
    const MS_PER_HOUR: f64 = 3_600_000.0;
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "hours of patience are small and positive; a saturated value is a long patience"
    )]
    let patience = Patience::of((conditions.silent_hours.max(0.0) * MS_PER_HOUR) as u64);
    let spare = i64::try_from(policy.m - lost.min(policy.m)).unwrap_or(i64::MAX);
    let wait_ms = u32::try_from(patience.for_margin(spare, policy.m)).unwrap_or(u32::MAX);
    (f64::from(wait_ms) / MS_PER_HOUR + conditions.rebuild_hours).max(1e-6)
}

/// A chance as nines, up to [`NINES_MAX`].
pub fn nines(chance: f64) -> f64 {
    (-chance.log10()).clamp(0.0, NINES_MAX)
}

/// How long the shards of one lost node take to rebuild, in hours: k shards are read and one written for each.
pub fn rebuild_hours(policy: &Policy, node_bytes: u64, bytes_per_second: u64) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "a duration for people")]
    let (bytes, rate) = (node_bytes as f64, bytes_per_second.max(1) as f64);
    bytes * as_f64(policy.k + 1) / rate / 3600.0
}

/// The chance that a stripe is lost when `lost` of `nodes` nodes vanish in one moment and for good, its n shards being
/// on any n of them: more than m of the lost ones must be among its own (hypergeometric).
pub fn loss_at_once(policy: &Policy, nodes: usize, lost: usize) -> f64 {
    let (n, m) = (policy.n(), policy.m);
    if nodes < n || lost <= m {
        return 0.0;
    }
    let lost = lost.min(nodes);
    let ways = |of: usize, take: usize| ln_choose(of, take);
    let all = ways(nodes, n);
    let from = (m + 1).max((n + lost).saturating_sub(nodes));
    let bad: f64 = (from..=n.min(lost))
        .filter(|hit| n - hit <= nodes - lost)
        .map(|hit| (ways(lost, hit) + ways(nodes - lost, n - hit) - all).exp())
        .sum();
    bad.min(1.0)
}

/// ln of the binomial coefficient.
fn ln_choose(of: usize, take: usize) -> f64 {
    (0..take).map(|index| (as_f64(of - index) / as_f64(index + 1)).ln()).sum()
}

#[allow(clippy::cast_precision_loss, reason = "counts of nodes and shards")]
fn as_f64(count: usize) -> f64 {
    count as f64
}

/// What an upload takes, before a byte moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Footprint {
    /// Objects.
    pub objects: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Data blocks.
    pub blocks: u64,
    /// Stripes when nothing shares one: the most there can be right after the upload.
    pub stripes_at_first: u64,
    /// Bytes stored then.
    pub stored_at_first: u64,
    /// Stripes after packing.
    pub stripes_packed: u64,
    /// Bytes stored after packing.
    pub stored_packed: u64,
}

impl Footprint {
    /// Adds an object of `len` bytes, in blocks of `block` bytes.
    ///
    /// Parity is as long as its stripe's longest block. Full stripes have their parity at once; the blocks of the
    /// last, short one share a full stripe only after packing, with blocks of like length: then they carry their
    /// part of its parity.
    pub fn add(&mut self, policy: &Policy, len: u64, block: u64) {
        self.objects += 1;
        self.bytes += len;
        if len == 0 {
            return;
        }
        let (k, m) = (policy.k as u64, policy.m as u64);
        let blocks = len.div_ceil(block);
        let full = blocks / k;
        let left = blocks % k;
        self.blocks += blocks;
        let stripes = full + u64::from(left > 0);
        self.stripes_at_first += stripes;
        let tail_bytes = if left > 0 { len - full * k * block } else { 0 };
        let tail_longest = tail_bytes.min(block);
        self.stored_at_first += len + full * m * block.min(len) + if left > 0 { m * tail_longest } else { 0 };
        self.stored_packed += len + full * m * block.min(len) + (tail_bytes * m).div_ceil(k);
        // A short stripe's blocks fill left / k of a packed one.
        self.stripes_packed = (self.blocks).div_ceil(k);
    }

    /// Bytes stored for one byte of data, at first and after packing; 0 without data.
    #[allow(clippy::cast_precision_loss, reason = "a ratio for people")]
    pub fn expansion(&self) -> (f64, f64) {
        let of = |stored: u64| if self.bytes == 0 { 0.0 } else { stored as f64 / self.bytes as f64 };
        (of(self.stored_at_first), of(self.stored_packed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    fn conditions(losses: f64, silent: f64, rebuild: f64) -> Conditions {
        Conditions { losses_per_node_year: losses, silent_hours: silent, rebuild_hours: rebuild }
    }

    /// A generator of numbers in 0..1 from a seed.
    struct Chance(blake3::OutputReader);

    impl Chance {
        fn next(&mut self) -> f64 {
            let mut bytes = [0; 4];
            self.0.fill(&mut bytes);
            (f64::from(u32::from_le_bytes(bytes)) + 0.5) / 4_294_967_296.0
        }

        fn exponential(&mut self, rate: f64) -> f64 {
            -self.next().ln() / rate
        }
    }

    #[test]
    fn the_sum_agrees_with_a_simulation_of_the_chain() {
        // Rates so high that losses happen: the formula has no small parameter.
        for (policy, losses, rebuild) in
            [(Policy::LOCAL, 40.0, 20.0), (Policy::SMALL, 60.0, 12.0), (Policy::LOCAL, 10.0, 200.0)]
        {
            let conditions = conditions(losses, 24.0, rebuild);
            let seed = blake3::Hasher::new().update(&losses.to_le_bytes()).finalize_xof();
            let mut chance = Chance(seed);
            let rate = losses / YEAR_HOURS;
            let runs = 4000;
            let mut total = 0.0;
            for _ in 0..runs {
                let mut state = 0;
                while state <= policy.m {
                    let loss = as_f64(policy.n() - state) * rate;
                    if state == 0 {
                        total += chance.exponential(loss);
                        state = 1;
                        continue;
                    }
                    let repair = 1.0 / repair_hours(&policy, &conditions, state);
                    total += chance.exponential(loss + repair);
                    state = if chance.next() < loss / (loss + repair) { state + 1 } else { 0 };
                }
            }
            let simulated = total / f64::from(runs) / YEAR_HOURS;
            let computed = mttdl_years(&policy, &conditions);
            assert!((simulated / computed - 1.0).abs() < 0.08, "{simulated} against {computed}");
        }
    }

    #[test]
    fn one_spare_shard_without_patience_is_the_textbook_formula() {
        // A mirror of two with repair much faster than loss: MTTDL = 1 / (2 λ² T).
        let mirror = Policy { name: Policy::LOCAL.name, k: 1, m: 1, w: 2 };
        let years = mttdl_years(&mirror, &conditions(0.1, 0.0, 10.0));
        let rate: f64 = 0.1 / YEAR_HOURS;
        let expected = 1.0 / (2.0 * rate * rate * 10.0) / YEAR_HOURS;
        assert!((years / expected - 1.0).abs() < 1e-3, "{years} against {expected}");
    }

    #[test]
    fn more_parity_quicker_repair_and_steadier_nodes_last_longer() {
        let of = |policy: &Policy, conditions: Conditions| durability(policy, &conditions, 1).stripe_nines;
        let usual = conditions(0.5, 24.0, 12.0);
        assert!(of(&Policy::STANDARD, usual) > of(&Policy::SMALL, usual));
        assert!(of(&Policy::SMALL, usual) > of(&Policy::LOCAL, usual));
        assert!(of(&Policy::LOCAL, conditions(0.5, 24.0, 120.0)) < of(&Policy::LOCAL, usual));
        assert!(of(&Policy::LOCAL, conditions(5.0, 24.0, 12.0)) < of(&Policy::LOCAL, usual));
        let many = durability(&Policy::LOCAL, &usual, 1_000_000);
        assert!(many.dataset_nines < many.stripe_nines);
        assert!((many.dataset_loss_per_year / many.stripe_loss_per_year) <= 1_000_000.0);
        assert!(of(&Policy::STANDARD, conditions(1e-6, 1.0, 0.1)) <= NINES_MAX);
    }

    #[test]
    fn simultaneous_losses_are_counted_exactly_on_small_networks() {
        assert!(loss_at_once(&Policy::LOCAL, 6, 2) == 0.0);
        assert!((loss_at_once(&Policy::LOCAL, 6, 3) - 1.0).abs() < 1e-9, "all stripes are on all six");
        // 6 of 12 nodes, 3 lost: all three must be among the six: C(9,3) / C(12,6).
        assert!((loss_at_once(&Policy::LOCAL, 12, 3) - 84.0 / 924.0).abs() < 1e-9);
        assert!((loss_at_once(&Policy::LOCAL, 12, 12) - 1.0).abs() < 1e-9);
        let tenth = loss_at_once(&Policy::STANDARD, 1000, 100);
        assert!(tenth > 0.0 && tenth < 1e-5, "{tenth}");
    }

    #[test]
    fn a_footprint_counts_short_stripes_at_first_and_shares_after_packing() {
        let mut lone = Footprint::default();
        lone.add(&Policy::LOCAL, 100_000, MIB);
        assert_eq!((lone.stored_at_first, lone.stored_packed), (300_000, 150_000));
        let mut many = Footprint::default();
        (0..1000).for_each(|_| many.add(&Policy::LOCAL, 100_000, MIB));
        assert_eq!((many.stripes_at_first, many.stripes_packed), (1000, 250));
        assert_eq!(many.expansion(), (3.0, 1.5));
        let mut large = Footprint::default();
        large.add(&Policy::LOCAL, 40 * MIB, MIB);
        assert_eq!(large.expansion(), (1.5, 1.5));
        assert_eq!(large.stripes_at_first, 10);
        let mut empty = Footprint::default();
        empty.add(&Policy::LOCAL, 0, MIB);
        assert_eq!((empty.objects, empty.stored_at_first), (1, 0));
    }

    #[test]
    fn rebuilding_a_node_reads_k_bytes_for_each_that_it_writes() {
        let hours = rebuild_hours(&Policy::LOCAL, 360_000_000_000, 100_000_000);
        assert!((hours - 5.0).abs() < 1e-9, "{hours}");
    }
}
