//! What the operator sees over time: space every ten minutes, challenges as they come, how the node is reached, and
//! what is wrong with what to do about it. Memory is bounded; the space history is kept over restarts.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use holdfast_protocol::time::UnixMs;
use holdfast_protocol::{Digest, NodeId};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::durable;
use crate::store::Alarm;

/// One sample every this long.
pub(crate) const SAMPLE_EVERY_MS: u64 = 10 * 60 * 1000;
/// Thirty days of samples.
const SAMPLES_MAX: usize = 30 * 24 * 6;
/// Challenges remembered one by one.
const CHALLENGES_MAX: usize = 64;
const FILE: &str = "history.json";
/// A full history with long numbers.
const FILE_LEN_MAX: u64 = 1024 * 1024;

/// Space at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// When.
    pub at_ms: UnixMs,
    /// Bytes used.
    pub used_bytes: u64,
    /// Bytes in trash.
    pub trash_bytes: u64,
    /// Bytes offered.
    pub capacity_bytes: u64,
    /// Block bytes served since the start of the process.
    pub served_bytes: u64,
    /// Block bytes taken since the start of the process.
    pub taken_bytes: u64,
}

/// One challenge that was answered, or could not be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ChallengeSeen {
    /// When.
    pub at_ms: UnixMs,
    /// Who asked.
    pub peer: String,
    /// About which block.
    pub digest: String,
    /// How many chunks.
    pub chunks: usize,
    /// Why it was not answered; empty when it was.
    pub refused: String,
}

/// How peers get here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Reach {
    /// Not tried yet.
    #[default]
    Unknown,
    /// A gateway dialled us and got through.
    Direct {
        /// Where.
        address: String,
    },
    /// Nobody can dial us; we hold connections to gateways open.
    DialOut {
        /// Gateways to which a connection stands.
        gateways: usize,
    },
    /// Neither: nothing reaches us. This is an alarm.
    Unreachable {
        /// Why.
        why: String,
    },
}

impl Reach {
    /// The word for machines.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Direct { .. } => "direct",
            Self::DialOut { .. } => "dial_out",
            Self::Unreachable { .. } => "unreachable",
        }
    }
}

/// What is remembered.
pub struct Watch {
    path: PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    samples: VecDeque<Sample>,
    challenges: VecDeque<ChallengeSeen>,
    answered: u64,
    refused: u64,
    served_bytes: u64,
    taken_bytes: u64,
    reach: Reach,
    disk: Vec<Problem>,
}

impl Watch {
    /// Reads the history of the node in `dir`. A damaged one is begun anew: it is for the eye only.
    pub(crate) fn open(dir: &Path) -> Self {
        let path = dir.join(FILE);
        let samples = durable::read_bounded(&path, FILE_LEN_MAX)
            .ok()
            .and_then(|bytes| serde_json::from_slice::<VecDeque<Sample>>(&bytes).ok())
            .unwrap_or_default();
        let mut inner = Inner { samples, ..Inner::default() };
        inner.samples.truncate(SAMPLES_MAX);
        Self { path, inner: Mutex::new(inner) }
    }

    /// Adds a sample and keeps the history on disk. Blocks on the disk.
    pub(crate) fn sample(&self, sample: Sample) -> std::io::Result<()> {
        let json = {
            let mut inner = self.inner.lock();
            let sample =
                Sample { served_bytes: inner.served_bytes, taken_bytes: inner.taken_bytes, ..sample };
            while inner.samples.len() >= SAMPLES_MAX {
                inner.samples.pop_front();
            }
            inner.samples.push_back(sample);
            serde_json::to_vec(&inner.samples).map_err(std::io::Error::other)?
        };
        durable::write_whole(&self.path, &json)
    }

    pub(crate) fn served(&self, bytes: u64) {
        self.inner.lock().served_bytes += bytes;
    }

    pub(crate) fn taken(&self, bytes: u64) {
        self.inner.lock().taken_bytes += bytes;
    }

    pub(crate) fn challenged(
        &self,
        at_ms: UnixMs,
        peer: NodeId,
        digest: Digest,
        chunks: usize,
        refused: String,
    ) {
        let mut inner = self.inner.lock();
        if refused.is_empty() {
            inner.answered += 1;
        } else {
            inner.refused += 1;
        }
        if inner.challenges.len() >= CHALLENGES_MAX {
            inner.challenges.pop_back();
        }
        let seen =
            ChallengeSeen { at_ms, peer: peer.to_string(), digest: digest.to_string(), chunks, refused };
        inner.challenges.push_front(seen);
    }

    /// Says how peers get here.
    pub fn set_reach(&self, reach: Reach) {
        self.inner.lock().reach = reach;
    }

    /// Keeps what the disks' alarms say now.
    pub(crate) fn set_disk(&self, findings: Vec<Problem>) {
        self.inner.lock().disk = findings;
    }

    /// What the disks' alarms said last.
    pub(crate) fn disk(&self) -> Vec<Problem> {
        self.inner.lock().disk.clone()
    }

    /// How peers get here.
    pub fn reach(&self) -> Reach {
        self.inner.lock().reach.clone()
    }

    /// Space over time, oldest first.
    pub fn samples(&self) -> Vec<Sample> {
        self.inner.lock().samples.iter().copied().collect()
    }

    /// The latest challenges, newest first.
    pub fn challenges(&self) -> Vec<ChallengeSeen> {
        self.inner.lock().challenges.iter().cloned().collect()
    }

    /// Challenges answered and not answered since the start.
    pub fn challenge_counts(&self) -> (u64, u64) {
        let inner = self.inner.lock();
        (inner.answered, inner.refused)
    }

    /// Block bytes served and taken since the start.
    pub fn traffic(&self) -> (u64, u64) {
        let inner = self.inner.lock();
        (inner.served_bytes, inner.taken_bytes)
    }
}

/// How bad something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Worth knowing.
    Note,
    /// Somebody should look at it.
    Warning,
    /// Somebody must act.
    Alarm,
}

/// Something that is wrong now, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Names the kind, the same as long as it lasts.
    pub kind: String,
    /// How bad.
    pub severity: Severity,
    /// What, in a sentence.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

impl Problem {
    fn new(kind: &str, severity: Severity, what: impl Into<String>, remedy: &str) -> Self {
        Self { kind: kind.to_owned(), severity, what: what.into(), remedy: remedy.to_owned() }
    }
}

/// A disk's alarm as a problem.
pub(crate) fn of_alarm(alarm: &Alarm) -> Problem {
    let severity = match alarm {
        Alarm::Full { .. } | Alarm::Overcommitted { .. } | Alarm::Losses { .. } => Severity::Warning,
        _ => Severity::Alarm,
    };
    let (what, remedy) = (sentence(&alarm.to_string()), sentence(alarm.advice()));
    Problem::new(&format!("disk_{}", alarm.name()), severity, what, &remedy)
}

/// With a capital and a full stop.
fn sentence(text: &str) -> String {
    let mut characters = text.chars();
    let first = characters.next().map(|first| first.to_ascii_uppercase());
    let stop = if text.ends_with('.') { "" } else { "." };
    first.into_iter().chain(characters).chain(stop.chars()).collect()
}

/// The facts that problems are derived from.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Why the disk takes no writes, if it does not.
    pub disk_failure: Option<String>,
    /// What the disks' own alarms say.
    pub disk_findings: Vec<Problem>,
    /// Bytes offered.
    pub capacity_bytes: u64,
    /// Bytes free.
    pub free_bytes: u64,
    /// Bytes free on the file system; `None` when it cannot be asked.
    pub disk_free_bytes: Option<u64>,
    /// How peers get here.
    pub reach: Reach,
    /// Running agreements.
    pub agreements: u64,
    /// Seconds since the start.
    pub uptime_s: u64,
    /// Why new blocks are refused by the operator's own wish.
    pub paused: Option<&'static str>,
    /// Challenges not answered since the start.
    pub challenges_refused: u64,
}

/// A node that has been up this long without a gateway has been told nothing, or the wrong thing.
const LONELY_AFTER_S: u64 = 600;

/// What is wrong, worst first. Pure.
pub fn problems(facts: &Facts) -> Vec<Problem> {
    let mut found = Vec::new();
    of_disk(facts, &mut found);
    of_network(facts, &mut found);
    of_space(facts, &mut found);
    if let Some(paused) = facts.paused {
        found.push(Problem::new(
            "paused",
            Severity::Note,
            format!("New blocks are refused: {paused}."),
            "`holdfast node resume` takes blocks again.",
        ));
    }
    found.sort_by_key(|problem| std::cmp::Reverse(problem.severity));
    found
}

fn of_disk(facts: &Facts, found: &mut Vec<Problem>) {
    // What the disks' own alarms explain better is not said twice.
    let explained = facts.disk_findings.iter().any(|one| one.kind == "disk_read_only");
    if let Some(failure) = facts.disk_failure.as_ref().filter(|_| !explained) {
        found.push(Problem::new(
            "disk_failed",
            Severity::Alarm,
            format!("The disk failed and takes no writes: {failure}"),
            "Look at the disk (dmesg, smartctl). Blocks that can be read are still served. Replace the disk, or \
             restart the node once the cause is gone.",
        ));
    }
    found.extend(facts.disk_findings.iter().cloned());
}

fn of_network(facts: &Facts, found: &mut Vec<Problem>) {
    if let Reach::Unreachable { why } = &facts.reach {
        found.push(Problem::new(
            "unreachable",
            Severity::Alarm,
            format!("No gateway can reach this node: {why}"),
            "Check that the machine is online and that the gateway's address is right; `holdfast node doctor` says \
             more. Blocks stay safe, but others will be asked to take over after a while.",
        ));
    }
    if facts.agreements == 0 && facts.uptime_s > LONELY_AFTER_S {
        found.push(Problem::new(
            "no_agreement",
            Severity::Warning,
            "No namespace has an agreement with this node.",
            "Join a gateway: `holdfast node run --invite …`. If that was done, see the node's log for why it is not \
             taken in.",
        ));
    }
    if facts.challenges_refused > 0 {
        found.push(Problem::new(
            "challenge_refused",
            Severity::Warning,
            format!("{} challenges could not be answered since the start", facts.challenges_refused),
            "See the challenges below for the reason of each; blocks on the deny-list answer `denied`.",
        ));
    }
}

fn of_space(facts: &Facts, found: &mut Vec<Problem>) {
    if facts.capacity_bytes > 0 && facts.free_bytes < facts.capacity_bytes / 50 {
        found.push(Problem::new(
            "full",
            Severity::Note,
            "The offered space is used up; new blocks go elsewhere.",
            "Nothing is wrong. Offer more with `holdfast node resize` if the disk has room.",
        ));
    }
    if let Some(disk_free) = facts.disk_free_bytes
        && disk_free < facts.free_bytes
    {
        found.push(Problem::new(
            "overcommitted",
            Severity::Warning,
            format!(
                "The file system has {disk_free} bytes free, less than the {} that are still offered",
                facts.free_bytes
            ),
            "Something else fills the disk. Make room, or offer less with `holdfast node resize`.",
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_healthy_node_has_no_problems_and_a_failing_one_says_the_worst_first() {
        let healthy = Facts {
            capacity_bytes: 100,
            free_bytes: 50,
            disk_free_bytes: Some(60),
            reach: Reach::DialOut { gateways: 1 },
            agreements: 1,
            uptime_s: 10_000,
            ..Facts::default()
        };
        assert_eq!(problems(&healthy), vec![]);
        let failing = Facts {
            disk_failure: Some("EIO".to_owned()),
            paused: Some("paused"),
            disk_free_bytes: Some(10),
            reach: Reach::Unreachable { why: "no route".to_owned() },
            ..healthy
        };
        let kinds: Vec<_> = problems(&failing).into_iter().map(|problem| problem.kind).collect();
        assert_eq!(kinds, ["disk_failed", "unreachable", "overcommitted", "paused"]);
    }

    #[test]
    fn history_is_bounded_and_survives() {
        let dir = tempfile::tempdir().unwrap();
        let watch = Watch::open(dir.path());
        let sample = Sample {
            at_ms: 1,
            used_bytes: 2,
            trash_bytes: 3,
            capacity_bytes: 4,
            served_bytes: 0,
            taken_bytes: 0,
        };
        watch.served(11);
        watch.sample(sample).unwrap();
        assert_eq!(Watch::open(dir.path()).samples(), vec![Sample { served_bytes: 11, ..sample }]);
        for at_ms in 0..200 {
            let peer = NodeId(holdfast_protocol::PublicKey([1; 32]));
            watch.challenged(at_ms, peer, Digest::of(b"x"), 1, String::new());
        }
        assert_eq!(watch.challenges().len(), CHALLENGES_MAX);
        assert_eq!(watch.challenge_counts(), (200, 0));
        std::fs::write(dir.path().join(FILE), b"garbage").unwrap();
        assert!(Watch::open(dir.path()).samples().is_empty());
    }
}
