//! Everything that an operator may want to know of the node, in one value: for the page, for `node status`, for alerts.

use holdfast_protocol::message::NodeStatus;
use holdfast_protocol::record::DeniedLine;
use holdfast_protocol::time::UnixMs;
use serde::{Deserialize, Serialize};

use super::leave::NamespaceLeave;
use super::mode::Mode;
use super::watch::{self, Facts, Problem, Reach};
use super::{Admission, Node, SOFTWARE};
use crate::server::status;

/// The node, now.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeReport {
    /// Its id.
    pub id: String,
    /// Who runs it.
    pub operator: String,
    /// Software name and version.
    pub software: String,
    /// Bytes offered. `capacity_bytes = used_bytes + trash_bytes + garbage_bytes + free_bytes`, always.
    pub capacity_bytes: u64,
    /// Whole pages, with headers, of blocks that a claim keeps.
    pub used_bytes: u64,
    /// Pages of blocks in trash.
    pub trash_bytes: u64,
    /// Pages that nothing refers to and that are not reclaimed yet.
    pub garbage_bytes: u64,
    /// The rest.
    pub free_bytes: u64,
    /// Lengths of the blocks that live claims keep: what is paid.
    pub paid_bytes: u64,
    /// Blocks held.
    pub blocks: u64,
    /// Running agreements.
    pub agreements: u64,
    /// Each agreement that runs or ended lately.
    pub agreement_rows: Vec<AgreementRow>,
    /// Seconds since the start.
    pub uptime_s: u64,
    /// Why new blocks are refused; empty when they are not.
    pub refusing_writes: String,
    /// What the operator wants of it.
    pub mode: Mode,
    /// How far leaving or shrinking is, per namespace.
    pub leaving: Vec<NamespaceLeave>,
    /// Whether everything lies elsewhere.
    pub emptied: bool,
    /// `unknown`, `direct`, `dial_out` or `unreachable`.
    pub reachability: String,
    /// The same with its details.
    pub reach: Reach,
    /// What others say of the node; empty as long as nobody does.
    pub scores: Vec<String>,
    /// How the disk is driven: `io_uring` or `threads`.
    pub io: String,
    /// Challenges answered since the start.
    pub challenges_answered: u64,
    /// Challenges not answered since the start.
    pub challenges_refused: u64,
    /// Block bytes served since the start.
    pub served_bytes: u64,
    /// Block bytes taken since the start.
    pub taken_bytes: u64,
    /// Lines of the deny-list.
    pub denied: usize,
    /// Who may rent: `any`, or namespaces.
    pub admitted: Vec<String>,
    /// What the line allows, sending.
    pub send_limit: String,
    /// What the line allows, taking.
    pub take_limit: String,
    /// What is wrong, worst first, with what to do.
    pub problems: Vec<Problem>,
}

/// An agreement as the operator sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AgreementRow {
    /// Its id.
    pub id: String,
    /// With whom.
    pub namespace: String,
    /// Bytes agreed.
    pub capacity_bytes: u64,
    /// Bytes of blocks kept under it.
    pub used_bytes: u64,
    /// Claims under it.
    pub claims: u64,
    /// From when.
    pub start_ms: UnixMs,
    /// Until when.
    pub end_ms: UnixMs,
    /// Asked per TB-month, in millionths of the currency.
    pub storage_micro_per_tb_month: u64,
    /// The currency; empty when free.
    pub currency: String,
}

/// Ended agreements are shown this long.
const ENDED_SHOWN_MS: u64 = 30 * 24 * 3600 * 1000;
/// Agreements shown, at most.
const AGREEMENTS_SHOWN: usize = 100;

impl Node {
    /// Everything about the node, now.
    pub async fn report(&self) -> NodeReport {
        let NodeStatus {
            capacity_bytes,
            used_bytes,
            trash_bytes,
            garbage_bytes,
            free_bytes,
            paid_bytes,
            blocks,
            agreements,
            uptime_s,
            refusing_writes,
            ..
        } = status::of(self);
        let (challenges_answered, challenges_refused) = self.watch.challenge_counts();
        let (served_bytes, taken_bytes) = self.watch.traffic();
        let reach = self.watch.reach();
        NodeReport {
            id: self.id().to_string(),
            operator: self.operator().to_string(),
            software: SOFTWARE.to_owned(),
            capacity_bytes,
            used_bytes,
            trash_bytes,
            garbage_bytes,
            free_bytes,
            paid_bytes,
            blocks,
            agreements,
            agreement_rows: self.agreement_rows().await,
            uptime_s,
            refusing_writes,
            mode: self.mode(),
            leaving: self.leave_report(),
            emptied: self.is_emptied(),
            reachability: reach.word().to_owned(),
            reach,
            scores: Vec::new(),
            io: self.store.io_name().to_owned(),
            challenges_answered,
            challenges_refused,
            served_bytes,
            taken_bytes,
            denied: self.deny.len(),
            admitted: match self.admission() {
                Admission::Any => vec!["any".to_owned()],
                Admission::Listed(listed) => listed.iter().map(ToString::to_string).collect(),
            },
            send_limit: self.config.bandwidth.send.to_string(),
            take_limit: self.config.bandwidth.take.to_string(),
            problems: self.problems(),
        }
    }

    /// What is wrong now.
    pub fn problems(&self) -> Vec<Problem> {
        let accounts = self.accounts();
        let now_ms = self.now_ms();
        watch::problems(&Facts {
            disk_failure: self.store.failure(),
            disk_findings: self.watch.disk(),
            capacity_bytes: accounts.capacity_bytes,
            free_bytes: accounts.free_bytes,
            disk_free_bytes: disk_free_bytes(&self.config.dir),
            reach: self.watch.reach(),
            agreements: self.ledger.running(now_ms),
            uptime_s: now_ms.saturating_sub(self.started_ms) / 1000,
            paused: self.mode().refusal(),
            challenges_refused: self.watch.challenge_counts().1,
        })
    }

    /// The lines of the deny-list.
    pub fn denied_lines(&self) -> Vec<DeniedLine> {
        self.deny.lines()
    }

    async fn agreement_rows(&self) -> Vec<AgreementRow> {
        let now_ms = self.now_ms();
        let mut agreements = self.ledger.agreements();
        agreements.retain(|held| held.terms().end_ms.saturating_add(ENDED_SHOWN_MS) > now_ms);
        agreements.sort_by_key(|held| std::cmp::Reverse(held.terms().end_ms));
        let mut rows = Vec::new();
        for held in agreements.iter().take(AGREEMENTS_SHOWN) {
            let usage = self.store.agreement_usage(held.id()).await.unwrap_or_default();
            let terms = held.terms();
            rows.push(AgreementRow {
                id: held.id().to_string(),
                namespace: terms.namespace.to_string(),
                capacity_bytes: terms.capacity_bytes,
                used_bytes: usage.bytes,
                claims: usage.claims,
                start_ms: terms.start_ms,
                end_ms: terms.end_ms,
                storage_micro_per_tb_month: terms.prices.storage_micro_per_tb_month,
                currency: terms.prices.currency.clone(),
            });
        }
        rows
    }
}

fn disk_free_bytes(dir: &std::path::Path) -> Option<u64> {
    rustix::fs::statvfs(dir).ok().map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize))
}
