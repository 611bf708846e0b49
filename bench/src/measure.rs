//! One line of the report: what was done, how fast, and what it cost whom.

use std::time::Duration;

use serde::Serialize;

use crate::process::{Cpu, Watched};

const GIB: f64 = 1_073_741_824.0;

/// Percentiles are shown from this many samples on; fewer have no tail.
const SAMPLES_MIN: usize = 20;

/// From here on an operation counts as a stall: what TCP's delayed acknowledgement costs without TCP_NODELAY.
const STALL_US: u64 = 40_000;

/// What a piece of work did.
#[derive(Clone, Debug, Default)]
pub(crate) struct Work {
    /// Each round's bytes, operations and time.
    pub(crate) rounds: Vec<Round>,
    /// Duration of each operation, in microseconds.
    pub(crate) latencies_us: Vec<u64>,
    /// 503 answers that were tried again.
    pub(crate) retries: u64,
}

/// One round.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Round {
    pub(crate) bytes: u64,
    pub(crate) operations: u64,
    pub(crate) elapsed: Duration,
}

impl Work {
    /// One round with its samples.
    pub(crate) fn one(round: Round, latencies_us: Vec<u64>, retries: u64) -> Self {
        Self { rounds: vec![round], latencies_us, retries }
    }

    /// Adds another round.
    pub(crate) fn add(&mut self, other: Self) {
        self.rounds.extend(other.rounds);
        self.latencies_us.extend(other.latencies_us);
        self.retries += other.retries;
    }

    fn median(&self, rate: impl Fn(&Round) -> f64) -> f64 {
        let mut rates: Vec<f64> = self.rounds.iter().map(rate).collect();
        rates.sort_by(f64::total_cmp);
        match rates.len() {
            0 => 0.0,
            n if n % 2 == 1 => rates[n / 2],
            n => f64::midpoint(rates[n / 2 - 1], rates[n / 2]),
        }
    }
}

/// In which unit a line's speed is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Unit {
    /// Millions of bytes a second.
    MegabytesPerSecond,
    /// Operations a second.
    OperationsPerSecond,
    /// Seconds.
    Seconds,
}

impl Unit {
    /// As the table writes it.
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::MegabytesPerSecond => "MB/s",
            Self::OperationsPerSecond => "op/s",
            Self::Seconds => "s",
        }
    }
}

/// What a line must reach.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Goal {
    /// At least this speed.
    pub(crate) speed_min: Option<f64>,
    /// At most this many seconds.
    pub(crate) seconds_max: Option<f64>,
    /// 99 of 100 operations in less than this.
    pub(crate) p99_ms_max: Option<f64>,
    /// At most this many operations of 40 ms or more.
    pub(crate) stalls_max: Option<u64>,
    /// Less than this, gateway and nodes together.
    pub(crate) cpu_s_per_gib_max: Option<f64>,
    /// Less than this, the gateway alone.
    pub(crate) gateway_mib_max: Option<f64>,
}

impl Goal {
    fn text(&self, unit: Unit) -> String {
        let parts = [
            self.speed_min.map(|min| format!(">= {min:.0} {}", unit.text())),
            self.seconds_max.map(|max| format!("< {max} s")),
            self.p99_ms_max.map(|max| format!("p99 < {max} ms")),
            self.stalls_max.map(|max| format!("{max} over 40 ms")),
            self.cpu_s_per_gib_max.map(|max| format!("< {max} CPU-s/GiB")),
            self.gateway_mib_max.map(|max| format!("< {max} MiB")),
        ];
        parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }

    fn is_met_by(&self, line: &Line) -> bool {
        let server =
            line.gateway_cpu_s_per_gib.unwrap_or_default() + line.node_cpu_s_per_gib.unwrap_or_default();
        self.speed_min.is_none_or(|min| line.speed >= min)
            && self.seconds_max.is_none_or(|max| line.speed < max)
            && self.p99_ms_max.is_none_or(|max| line.p99_ms.is_some_and(|p99| p99 < max))
            && self.stalls_max.is_none_or(|max| line.stalls <= max)
            && self.cpu_s_per_gib_max.is_none_or(|max| server < max)
            && self.gateway_mib_max.is_none_or(|max| line.gateway_peak_mib < max)
    }
}

/// A line of the report.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Line {
    /// What was done.
    pub(crate) name: String,
    /// The median over the rounds.
    pub(crate) speed: f64,
    /// The best round.
    pub(crate) speed_best: f64,
    /// The unit of both.
    pub(crate) unit: Unit,
    /// Rounds.
    pub(crate) rounds: usize,
    /// Operations in all rounds.
    pub(crate) operations: u64,
    /// Bytes in all rounds.
    pub(crate) bytes: u64,
    /// Half of the operations took no longer.
    pub(crate) p50_ms: Option<f64>,
    /// 99 of 100 took no longer.
    pub(crate) p99_ms: Option<f64>,
    /// The longest of all.
    pub(crate) max_ms: Option<f64>,
    /// Operations of 40 ms or more.
    pub(crate) stalls: u64,
    /// CPU seconds of everybody, all rounds.
    pub(crate) cpu: Cpu,
    /// The gateway's, for 2^30 bytes of user data.
    pub(crate) gateway_cpu_s_per_gib: Option<f64>,
    /// All node processes'; `None` when they run inside the gateway.
    pub(crate) node_cpu_s_per_gib: Option<f64>,
    /// The load generator's.
    pub(crate) client_cpu_s_per_gib: Option<f64>,
    /// Most resident memory of the gateway during the line.
    pub(crate) gateway_peak_mib: f64,
    /// The same of all node processes together.
    pub(crate) nodes_peak_mib: f64,
    /// 503 answers that were tried again.
    pub(crate) retries: u64,
    /// The goal in words; empty without one.
    pub(crate) goal: String,
    /// Whether it is met.
    pub(crate) met: Option<bool>,
    /// What else to know.
    pub(crate) note: String,
}

impl Line {
    /// A line that could not be measured, and why.
    pub(crate) fn absent(name: &str, why: &str) -> Self {
        let line = Self::of(name, Unit::MegabytesPerSecond, &Work::default(), Cpu::default(), (0.0, 0.0));
        Self { note: why.to_owned(), ..line }
    }

    /// A line of one duration.
    pub(crate) fn seconds(name: &str, elapsed: Duration, goal: Goal) -> Self {
        let line = Self::of(name, Unit::Seconds, &Work::default(), Cpu::default(), (0.0, 0.0));
        let speed = elapsed.as_secs_f64();
        Self { speed, speed_best: speed, rounds: 1, ..line }.with_goal(goal)
    }

    fn of(name: &str, unit: Unit, work: &Work, cpu: Cpu, peaks: (f64, f64)) -> Self {
        let rate = |round: &Round| {
            let amount = if unit == Unit::OperationsPerSecond {
                round.operations as f64
            } else {
                round.bytes as f64 / 1e6
            };
            amount / round.elapsed.as_secs_f64()
        };
        let bytes: u64 = work.rounds.iter().map(|round| round.bytes).sum();
        let mut sorted = work.latencies_us.clone();
        sorted.sort_unstable();
        let per_gib = |seconds: f64| (bytes > 0).then(|| seconds / (bytes as f64 / GIB));
        Self {
            name: name.to_owned(),
            speed: work.median(rate),
            speed_best: work.rounds.iter().map(rate).fold(0.0, f64::max),
            unit,
            rounds: work.rounds.len(),
            operations: work.rounds.iter().map(|round| round.operations).sum(),
            bytes,
            p50_ms: percentile_ms(&sorted, 50),
            p99_ms: percentile_ms(&sorted, 99),
            max_ms: percentile_ms(&sorted, 100),
            stalls: sorted.iter().filter(|us| **us >= STALL_US).count() as u64,
            cpu,
            gateway_cpu_s_per_gib: per_gib(cpu.gateway),
            node_cpu_s_per_gib: per_gib(cpu.nodes).filter(|_| peaks.1 > 0.0),
            client_cpu_s_per_gib: per_gib(cpu.client),
            gateway_peak_mib: peaks.0,
            nodes_peak_mib: peaks.1,
            retries: work.retries,
            goal: String::new(),
            met: None,
            note: String::new(),
        }
    }

    fn with_goal(mut self, goal: Goal) -> Self {
        self.goal = goal.text(self.unit);
        self.met = (!self.goal.is_empty()).then(|| goal.is_met_by(&self));
        self
    }
}

/// The value below which `percent` of the sorted samples lie.
fn percentile_ms(sorted_us: &[u64], percent: usize) -> Option<f64> {
    if sorted_us.len() < SAMPLES_MIN {
        return None;
    }
    let at = (sorted_us.len() * percent).div_ceil(100).saturating_sub(1);
    sorted_us.get(at).map(|us| *us as f64 / 1000.0)
}

/// Measures `work` as line `name`. CPU is counted until `settle` after the last answer, so that work put
/// off is not free.
pub(crate) async fn measure<E>(
    watched: &Watched,
    settle: Duration,
    name: &str,
    unit: Unit,
    goal: Goal,
    work: impl Future<Output = Result<Work, E>>,
) -> Result<Line, E> {
    watched.reset_peaks();
    let before = watched.cpu();
    let work = work.await?;
    tokio::time::sleep(settle).await;
    let cpu = watched.cpu().since(before);
    Ok(Line::of(name, unit, &work, cpu, watched.peaks_mib()).with_goal(goal))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(mib: u64, millis: u64) -> Round {
        Round { bytes: mib << 20, operations: mib, elapsed: Duration::from_millis(millis) }
    }

    #[test]
    fn speed_is_the_median_round_and_cost_counts_all_bytes() {
        let rounds = vec![round(512, 1000), round(512, 500), round(1024, 4000)];
        let work = Work { rounds, ..Work::default() };
        let cpu = Cpu { gateway: 4.0, nodes: 2.0, client: 1.0 };
        let line = Line::of("x", Unit::MegabytesPerSecond, &work, cpu, (100.0, 50.0));
        assert!((line.speed - 536.870912).abs() < 1e-6);
        assert!((line.speed_best - 1073.741824).abs() < 1e-6);
        assert_eq!(line.gateway_cpu_s_per_gib, Some(2.0));
        assert_eq!(line.node_cpu_s_per_gib, Some(1.0));
        let goal = Goal { speed_min: Some(500.0), cpu_s_per_gib_max: Some(3.0), ..Goal::default() };
        let line = line.with_goal(goal);
        assert_eq!((line.met, &*line.goal), (Some(false), ">= 500 MB/s, < 3 CPU-s/GiB"));
        let share = Goal { speed_min: Some(607.157_516_715), ..Goal::default() };
        assert_eq!(line.with_goal(share).goal, ">= 607 MB/s", "no more digits than a measurement has");
    }

    #[test]
    fn percentiles_are_samples_and_few_samples_have_none() {
        let sorted: Vec<u64> = (1..=1000).map(|ms| ms * 1000).collect();
        assert_eq!(percentile_ms(&sorted, 50), Some(500.0));
        assert_eq!(percentile_ms(&sorted, 99), Some(990.0));
        assert_eq!(percentile_ms(&sorted[..19], 50), None);
    }

    #[test]
    fn one_stall_is_seen_where_the_percentiles_hide_it() {
        let latencies_us = [vec![2_000; 998], vec![39_999, 40_000]].concat();
        let work = Work::one(round(10, 1000), latencies_us, 0);
        let line = Line::of("x", Unit::OperationsPerSecond, &work, Cpu::default(), (0.0, 0.0));
        assert_eq!((line.p99_ms, line.max_ms, line.stalls), (Some(2.0), Some(40.0), 1));
        let none = Goal { p99_ms_max: Some(10.0), stalls_max: Some(0), ..Goal::default() };
        assert_eq!(line.clone().with_goal(none).met, Some(false));
        let few = Goal { stalls_max: Some(1), ..none };
        assert_eq!(line.with_goal(few).met, Some(true));
    }

    #[test]
    fn a_line_without_a_goal_is_neither_met_nor_missed() {
        assert_eq!(Line::absent("TLS", "not offered").met, None);
        let goal = Goal { seconds_max: Some(2.0), ..Goal::default() };
        assert_eq!(Line::seconds("ready", Duration::from_secs(1), goal).met, Some(true));
    }
}
