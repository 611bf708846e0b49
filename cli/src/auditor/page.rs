//! What an auditor shows: nodes, scores, evidence, and a picture of results over time.

use std::fmt::Write as _;

use holdfast_proofs::score::{Account, EpochResult};
use holdfast_protocol::NodeId;
use holdfast_protocol::record::{AuditOutcome, StandingState};
use serde::Serialize;

use super::verify::Checked;

/// Everything, for programs.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Summary {
    /// Whose word this is.
    pub(crate) auditor: String,
    /// Where its log is.
    pub(crate) log: String,
    /// Who draws.
    pub(crate) beacon: String,
    /// Whether nobody in the network could know or bias it.
    pub(crate) beacon_independent: bool,
    /// Entries of the log.
    pub(crate) entries: u64,
    /// Findings against the log.
    pub(crate) failed: u64,
    /// How long an epoch is.
    pub(crate) epoch_ms: u64,
    /// The nodes.
    pub(crate) nodes: Vec<NodeSummary>,
}

/// One node.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct NodeSummary {
    /// Its id.
    pub(crate) node: String,
    /// New, good, suspended or disqualified.
    pub(crate) state: &'static str,
    /// Data score.
    pub(crate) data: f64,
    /// Online score.
    pub(crate) online: f64,
    /// Data score in a week, if everything passes.
    pub(crate) forecast_data: f64,
    /// Online score in a week, if everything is answered.
    pub(crate) forecast_online: f64,
    /// Share of the last epoch's pay; none while withheld.
    pub(crate) pay: Option<f64>,
    /// Epochs judged.
    pub(crate) epochs: u64,
    /// Of these answered in time.
    pub(crate) answered: u64,
    /// The last epoch.
    pub(crate) epoch: u64,
    /// What came of it.
    pub(crate) outcome: &'static str,
    /// Chunks proved in it.
    pub(crate) passed: u32,
    /// Chunks drawn in it.
    pub(crate) draws: u32,
    /// The verdict that changed a score last.
    pub(crate) evidence: Option<String>,
    /// The newest miss.
    pub(crate) last_miss: Option<String>,
    /// The command that replays the evidence.
    pub(crate) replay: String,
    /// One character an epoch, oldest first.
    pub(crate) picture: String,
    #[serde(skip)]
    history: Vec<EpochResult>,
}

/// Everything that a checked log says.
pub(crate) fn summary(checked: &Checked, log: &str) -> Summary {
    Summary {
        auditor: checked.report.auditor.clone(),
        log: log.to_owned(),
        beacon: checked.report.beacon.clone(),
        beacon_independent: checked.report.beacon_independent,
        entries: checked.report.entries,
        failed: checked.report.failed,
        epoch_ms: checked.epoch_ms,
        nodes: nodes(checked.book.accounts(), checked.epoch_ms, log),
    }
}

/// Every account as a row.
pub(crate) fn nodes<'a>(
    accounts: impl Iterator<Item = (NodeId, &'a Account)>,
    epoch_ms: u64,
    log: &str,
) -> Vec<NodeSummary> {
    accounts.map(|(node, account)| row(node, account, epoch_ms, log)).collect()
}

fn row(node: NodeId, account: &Account, epoch_ms: u64, log: &str) -> NodeSummary {
    /// Chunks an epoch that the forecast takes for granted.
    const CHUNKS: u32 = 20;
    let last = account.history.last();
    let (forecast_data, forecast_online) = account.scores.forecast(epoch_ms, CHUNKS);
    let told = account.last_miss.map(|(_, epoch, _)| epoch).or(account.evidence.map(|(_, epoch)| epoch));
    NodeSummary {
        node: node.to_string(),
        state: state_name(account.scores.state()),
        data: account.scores.data(),
        online: account.scores.online(),
        forecast_data,
        forecast_online,
        pay: last.and_then(|last| last.pay),
        epochs: account.epochs,
        answered: account.answered,
        epoch: last.map_or(0, |last| last.epoch),
        outcome: last.map_or("none", |last| outcome_name(last.outcome)),
        passed: last.map_or(0, |last| last.passed),
        draws: last.map_or(0, |last| last.draws),
        evidence: account.evidence.map(|(id, _)| id.to_string()),
        last_miss: account
            .last_miss
            .map(|(id, epoch, outcome)| format!("{} in epoch {epoch}, verdict {id}", outcome_name(outcome))),
        replay: format!("holdfast auditor verify {log} --node {node} --epoch {}", told.unwrap_or_default()),
        picture: account.history.iter().map(|result| mark(result.outcome)).collect(),
        history: account.history.clone(),
    }
}

const fn state_name(state: StandingState) -> &'static str {
    match state {
        StandingState::New => "new",
        StandingState::Good => "good",
        StandingState::Suspended => "suspended",
        StandingState::Disqualified => "disqualified",
    }
}

const fn outcome_name(outcome: AuditOutcome) -> &'static str {
    match outcome {
        AuditOutcome::Passed => "passed",
        AuditOutcome::Declared => "declared",
        AuditOutcome::Refused => "refused",
        AuditOutcome::Unknown => "unknown",
        AuditOutcome::Pending => "pending",
        AuditOutcome::Offline => "offline",
        AuditOutcome::Timeout => "timeout",
        AuditOutcome::Absent => "absent",
        AuditOutcome::Wrong => "wrong",
    }
}

const fn mark(outcome: AuditOutcome) -> char {
    match outcome {
        AuditOutcome::Passed => '\u{2588}',
        AuditOutcome::Declared | AuditOutcome::Refused => 'd',
        AuditOutcome::Unknown => '?',
        AuditOutcome::Pending => '\u{2591}',
        AuditOutcome::Offline => 'o',
        AuditOutcome::Timeout => 't',
        AuditOutcome::Absent => 'A',
        AuditOutcome::Wrong => 'X',
    }
}

const fn color(outcome: AuditOutcome) -> &'static str {
    match outcome {
        AuditOutcome::Passed => "#2f9e6b",
        AuditOutcome::Declared | AuditOutcome::Refused => "#5b8def",
        AuditOutcome::Unknown => "#9aa5b1",
        AuditOutcome::Pending => "#c9b458",
        AuditOutcome::Offline | AuditOutcome::Timeout => "#e08a3c",
        AuditOutcome::Absent => "#d1495b",
        AuditOutcome::Wrong => "#8b0000",
    }
}

const STYLE: &str = "
:root{color-scheme:light dark;--fg:#16202a;--bg:#f6f7f9;--card:#fff;--dim:#5b6875;--line:#dde2e8;--ok:#0a7d4b;--bad:#b3261e}
@media(prefers-color-scheme:dark){:root{--fg:#e6eaef;--bg:#10151a;--card:#182028;--dim:#93a1af;--line:#2a3540;--ok:#4cc38a;--bad:#ff8a80}}
*{box-sizing:border-box}body{margin:0;font:16px/1.5 system-ui,sans-serif;color:var(--fg);background:var(--bg)}
main{max-width:70rem;margin:0 auto;padding:1rem}h1{font-size:1.4rem;margin:.5rem 0}h2{font-size:1.05rem;margin:1.5rem 0 .5rem}
.dim{color:var(--dim);font-size:.85rem}.good{color:var(--ok)}.suspended,.disqualified{color:var(--bad)}
.table{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:.5rem}
table{border-collapse:collapse;width:100%;font-size:.9rem}th,td{text-align:left;padding:.4rem .7rem;border-bottom:1px solid var(--line);white-space:nowrap}
tr:last-child td{border-bottom:0}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}code{font-size:.85em;word-break:break-all}
.warn{border-left:4px solid #e08a3c;padding:.3rem .8rem;background:var(--card)}.key span{display:inline-block;width:.8rem;height:.8rem;margin:0 .3rem 0 .8rem;vertical-align:-.1rem}
svg{display:block}details{margin:.3rem 0}
";

/// The page: no scripts, readable on a phone.
pub(crate) fn html(summary: &Summary) -> String {
    let mut html = String::with_capacity(16 * 1024);
    let _ = write!(
        html,
        "<!doctype html><html lang=en><head><meta charset=utf-8><meta http-equiv=refresh content=10>\
         <meta name=viewport content=\"width=device-width,initial-scale=1\"><title>Holdfast auditor</title>\
         <style>{STYLE}</style></head><body><main><h1>Holdfast auditor</h1>\
         <p class=dim>Auditor <code>{}</code> · {} log entries · epochs of {} s · <a href=log/checkpoint>checkpoint</a> · \
         <a href=api/v1/report>JSON</a></p>",
        summary.auditor,
        summary.entries,
        summary.epoch_ms / 1000
    );
    if summary.beacon_independent {
        let _ = write!(html, "<p>Beacon: {}.</p>", summary.beacon);
    } else {
        let _ = write!(
            html,
            "<p class=warn><b>Beacon: not independent.</b> It is {}; whoever runs it could know the draws \
             beforehand. Enough for one machine and for trying things out, not for paying strangers.</p>",
            summary.beacon
        );
    }
    table(&mut html, summary);
    key(&mut html);
    html.push_str("<h2>Evidence</h2>");
    for node in &summary.nodes {
        let miss = node.last_miss.as_deref().unwrap_or("no miss so far");
        let _ = write!(
            html,
            "<details><summary><code>{}</code>: {miss}</summary><p class=dim>Last change of a score: verdict <code>{}</code>. \
             Check it yourself:</p><code>{}</code></details>",
            short(&node.node),
            node.evidence.as_deref().unwrap_or("none"),
            node.replay
        );
    }
    html.push_str("</main></body></html>");
    html
}

fn table(html: &mut String, summary: &Summary) {
    html.push_str(
        "<div class=table><table><tr><th>Node<th>Standing<th class=n>Data<th class=n>Online<th class=n>In a week\
         <th class=n>Pay<th class=n>Last epoch<th>Results over time</tr>",
    );
    for node in &summary.nodes {
        let pay = node.pay.map_or_else(|| "withheld".to_owned(), |pay| format!("{:.0} %", pay * 100.0));
        let _ = write!(
            html,
            "<tr><td title=\"{}\"><code>{}</code><td class={}>{}<td class=n>{:.4}<td class=n>{:.4}\
             <td class=n>{:.3} / {:.3}<td class=n>{pay}<td class=n>{} of {}<td>",
            node.node,
            short(&node.node),
            node.state,
            node.state,
            node.data,
            node.online,
            node.forecast_data,
            node.forecast_online,
            node.passed,
            node.draws
        );
        picture(html, &node.history);
        html.push_str("</tr>");
    }
    if summary.nodes.is_empty() {
        html.push_str("<tr><td colspan=8 class=dim>No epoch has been judged yet.</tr>");
    }
    html.push_str("</table></div>");
}

/// One bar an epoch, as high as the share of chunks proved, coloured by the worst outcome.
fn picture(html: &mut String, history: &[EpochResult]) {
    const WIDTH: usize = 7;
    const HEIGHT: u32 = 24;
    let _ = write!(
        html,
        "<svg width={} height={HEIGHT} role=img aria-label=\"{} epochs\">",
        history.len().max(1) * WIDTH,
        history.len()
    );
    for (index, result) in history.iter().enumerate() {
        let share = (HEIGHT * result.passed).checked_div(result.draws).unwrap_or(HEIGHT);
        let height = share.clamp(4, HEIGHT);
        let _ = write!(
            html,
            "<rect x={} y={} width={} height={height} fill=\"{}\"><title>epoch {}: {}, {} of {} chunks</title></rect>",
            index * WIDTH,
            HEIGHT - height,
            WIDTH - 1,
            color(result.outcome),
            result.epoch,
            outcome_name(result.outcome),
            result.passed,
            result.draws
        );
    }
    html.push_str("</svg>");
}

fn key(html: &mut String) {
    html.push_str("<p class=\"dim key\">");
    let kinds = [
        AuditOutcome::Passed,
        AuditOutcome::Pending,
        AuditOutcome::Declared,
        AuditOutcome::Offline,
        AuditOutcome::Absent,
        AuditOutcome::Wrong,
        AuditOutcome::Unknown,
    ];
    for outcome in kinds {
        let name = if outcome == AuditOutcome::Offline { "offline or late" } else { outcome_name(outcome) };
        let _ = write!(html, "<span style=\"background:{}\"></span>{name}", color(outcome));
    }
    html.push_str("</p>");
}

fn short(id: &str) -> String {
    id.chars().skip(5).take(8).collect()
}
