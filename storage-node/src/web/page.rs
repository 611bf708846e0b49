//! The page: one document without scripts, readable on a phone, drawn from the report.

use std::fmt::Write;

use crate::node::watch::{ChallengeSeen, Sample};
use crate::node::{Mode, NodeReport, Reach, Severity};

/// Challenges shown.
const CHALLENGES_SHOWN: usize = 12;
/// Width and height of the chart in its own units.
const CHART: (f64, f64) = (640.0, 160.0);
/// Points drawn; more samples are thinned.
const POINTS_MAX: usize = 320;

const STYLE: &str = "
:root{color-scheme:light dark;--line:#8884;--dim:#777;--ok:#1a7f37;--bad:#c1121f;--warn:#9a6700;--used:#2b6cb0;--trash:#b7791f;--garbage:#a0aec0}
*{box-sizing:border-box}
body{font:16px/1.45 system-ui,sans-serif;margin:0 auto;padding:1rem;max-width:60rem}
h1{font-size:1.25rem;margin:0 0 .25rem}h2{font-size:1.05rem;margin:1.6rem 0 .5rem}
code{font-size:.85em;overflow-wrap:anywhere}
.dim{color:var(--dim);font-size:.9em}.ok{color:var(--ok)}.bad{color:var(--bad)}.warn{color:var(--warn)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.6rem;margin:1rem 0}
.card{border:1px solid var(--line);border-radius:.5rem;padding:.6rem .7rem}
.card b{display:block;font-size:1.2rem}
.problem{border-left:.3rem solid var(--warn);padding:.3rem .7rem;margin:.5rem 0}
.problem.alarm{border-color:var(--bad)}.problem.note{border-color:var(--line)}
.bar{display:flex;height:1.1rem;border-radius:.3rem;overflow:hidden;border:1px solid var(--line)}
.bar i{display:block}.used{background:var(--used)}.trash{background:var(--trash)}.garbage{background:var(--garbage)}
.key span{white-space:nowrap;margin-right:.9rem}.key i{display:inline-block;width:.7rem;height:.7rem;border-radius:.15rem;margin-right:.3rem}
.table{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.92rem}
th,td{text-align:left;padding:.3rem .5rem;border-bottom:1px solid var(--line);vertical-align:top}
td.n,th.n{text-align:right;white-space:nowrap}
svg{width:100%;height:auto;display:block;border:1px solid var(--line);border-radius:.3rem}
";

/// The page for this report.
pub(super) fn render(
    report: &NodeReport,
    samples: &[Sample],
    challenges: &[ChallengeSeen],
    now_ms: u64,
) -> String {
    let mut html = String::with_capacity(16 * 1024);
    let _ = write!(
        html,
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport \
         content=\"width=device-width,initial-scale=1\"><meta http-equiv=refresh content=30>\
         <title>Holdfast node</title><style>{STYLE}</style><body><h1>Holdfast node</h1>\
         <p class=dim><code>{}</code><br>{}, up {}</p>",
        escaped(&report.id),
        escaped(&report.software),
        duration(report.uptime_s)
    );
    state(&mut html, report);
    cards(&mut html, report);
    space(&mut html, report, samples, now_ms);
    leaving(&mut html, report, now_ms);
    agreements(&mut html, report, now_ms);
    challenge_table(&mut html, report, challenges, now_ms);
    limits(&mut html, report);
    html.push_str("</body></html>");
    html
}

fn state(html: &mut String, report: &NodeReport) {
    if report.problems.iter().all(|problem| problem.severity == Severity::Note) {
        html.push_str("<p class=ok>All is well.</p>");
    }
    for problem in &report.problems {
        let class = match problem.severity {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Alarm => "alarm",
        };
        let _ = write!(
            html,
            "<div class=\"problem {class}\"><b>{}</b><br><span class=dim>{}</span></div>",
            escaped(&problem.what),
            escaped(&problem.remedy)
        );
    }
}

fn cards(html: &mut String, report: &NodeReport) {
    html.push_str("<div class=cards>");
    let mut card = |name: &str, value: String, note: String| {
        let _ = write!(
            html,
            "<div class=card><span class=dim>{name}</span><b>{value}</b><span class=dim>{note}</span></div>"
        );
    };
    card("Paid", bytes(report.paid_bytes), format!("{} blocks", report.blocks));
    card("Free", bytes(report.free_bytes), format!("of {} offered", bytes(report.capacity_bytes)));
    card(
        "Served",
        bytes(report.served_bytes),
        format!("{} taken, since the start", bytes(report.taken_bytes)),
    );
    let (reach, note) = match &report.reach {
        Reach::Unknown => ("not tried".to_owned(), "join a gateway to know".to_owned()),
        Reach::Direct { address } => ("direct".to_owned(), escaped(address)),
        Reach::DialOut { gateways } => ("dials out".to_owned(), format!("{gateways} gateways connected")),
        Reach::Unreachable { .. } => ("unreachable".to_owned(), "see above".to_owned()),
    };
    card("Reachability", reach, note);
    card(
        "Challenges",
        format!("{} answered", report.challenges_answered),
        format!("{} not, since the start", report.challenges_refused),
    );
    let disk = if report.problems.iter().any(|problem| problem.kind.starts_with("disk_")) {
        "failing"
    } else {
        "healthy"
    };
    card("Disk", disk.to_owned(), format!("driven by {}", escaped(&report.io)));
    html.push_str("</div>");
}

fn space(html: &mut String, report: &NodeReport, samples: &[Sample], now_ms: u64) {
    html.push_str("<h2>Space</h2><div class=bar>");
    let parts =
        [("used", report.used_bytes), ("trash", report.trash_bytes), ("garbage", report.garbage_bytes)];
    for (class, value) in parts {
        let _ = write!(
            html,
            "<i class={class} style=\"width:{:.2}%\"></i>",
            100.0 * part(value, report.capacity_bytes)
        );
    }
    html.push_str("</div><p class=key>");
    for (class, value) in parts {
        let _ = write!(html, "<span><i class={class}></i>{class} {}</span>", bytes(value));
    }
    let _ = write!(html, "<span>free {}</span></p>", bytes(report.free_bytes));
    let _ = write!(
        html,
        "<p class=dim>{} + {} + {} + {} = {} bytes, exactly.</p>",
        report.used_bytes, report.trash_bytes, report.garbage_bytes, report.free_bytes, report.capacity_bytes
    );
    chart(html, samples, now_ms);
}

/// Used and trash over time, stacked.
fn chart(html: &mut String, samples: &[Sample], now_ms: u64) {
    let (Some(first), true) = (samples.first(), samples.len() > 1) else {
        html.push_str("<p class=dim>Space over time is drawn once there are some hours of it.</p>");
        return;
    };
    let step = samples.len().div_ceil(POINTS_MAX).max(1);
    let top = samples.iter().map(|sample| sample.capacity_bytes).max().unwrap_or(1);
    let span = now_ms.saturating_sub(first.at_ms).max(1);
    let line = |value: fn(&Sample) -> u64| {
        let mut points = String::from("0,160 ");
        let mut last = 0.0;
        for sample in samples.iter().step_by(step).chain(samples.last()) {
            let x = CHART.0 * part(sample.at_ms.saturating_sub(first.at_ms), span);
            let y = CHART.1 * (1.0 - part(value(sample), top));
            let _ = write!(points, "{x:.1},{y:.1} ");
            last = x;
        }
        let _ = write!(points, "{last:.1},160");
        points
    };
    let both = line(|sample| sample.used_bytes + sample.trash_bytes);
    let used = line(|sample| sample.used_bytes);
    let _ = write!(
        html,
        "<svg viewBox=\"0 0 640 160\" role=img aria-label=\"Space over time\"><polygon points=\"{both}\" \
         fill=\"#b7791f\"/><polygon points=\"{used}\" fill=\"#2b6cb0\"/></svg><p class=dim>Used and trash since {} \
         ago; the top is {}.</p>",
        duration(span / 1000),
        bytes(top)
    );
}

fn leaving(html: &mut String, report: &NodeReport, now_ms: u64) {
    if report.mode == Mode::Serving && report.leaving.is_empty() {
        return;
    }
    let words = match report.mode {
        Mode::Serving => "The node shrinks.",
        Mode::Paused => "The node is paused: it takes no new blocks and serves those that are here.",
        Mode::Draining if report.emptied => "The node is empty: all lies elsewhere.",
        Mode::Draining => "The node is drained: its blocks move to other nodes.",
        Mode::Exiting => "The node leaves as soon as all its blocks lie elsewhere.",
        Mode::Left => "The node has left. Its directory can be removed.",
    };
    let _ = write!(html, "<h2>Leaving</h2><p>{words}</p>");
    if report.leaving.is_empty() {
        return;
    }
    html.push_str(
        "<div class=table><table><tr><th>Namespace<th class=n>Left<th class=n>Moved<th>State<th class=n>Heard</tr>",
    );
    for row in &report.leaving {
        let state = match (row.done, row.note.as_str()) {
            (true, _) => "done".to_owned(),
            (false, "") => "moving".to_owned(),
            (false, note) => escaped(note),
        };
        let heard = if row.heard_ms == 0 { "never".to_owned() } else { ago(row.heard_ms, now_ms) };
        let _ = write!(
            html,
            "<tr><td><code>{}</code><td class=n>{} ({})<td class=n>{}<td>{state}<td class=n>{heard}</tr>",
            short(&row.namespace),
            row.shards_left,
            bytes(row.bytes_left),
            row.shards_moved
        );
    }
    html.push_str("</table></div>");
}

fn agreements(html: &mut String, report: &NodeReport, now_ms: u64) {
    html.push_str("<h2>Agreements</h2>");
    if report.agreement_rows.is_empty() {
        html.push_str("<p class=dim>None yet. A gateway that this node joins makes one.</p>");
        return;
    }
    html.push_str(
        "<div class=table><table><tr><th>Namespace<th class=n>Kept<th class=n>Agreed<th class=n>Blocks\
         <th class=n>Price<th class=n>Runs</tr>",
    );
    for row in &report.agreement_rows {
        let runs = if row.end_ms <= now_ms {
            format!("ended {}", ago(row.end_ms, now_ms))
        } else if row.start_ms > now_ms {
            format!("begins in {}", duration((row.start_ms - now_ms) / 1000))
        } else {
            format!("{} more", duration((row.end_ms - now_ms) / 1000))
        };
        let price = match row.storage_micro_per_tb_month {
            0 => "free".to_owned(),
            micro => format!(
                "{}.{:02} {}/TB·month",
                micro / 1_000_000,
                micro % 1_000_000 / 10_000,
                escaped(&row.currency)
            ),
        };
        let _ = write!(
            html,
            "<tr><td><code>{}</code><td class=n>{}<td class=n>{}<td class=n>{}<td class=n>{price}<td class=n>{runs}</tr>",
            short(&row.namespace),
            bytes(row.used_bytes),
            bytes(row.capacity_bytes),
            row.claims
        );
    }
    html.push_str("</table></div>");
}

fn challenge_table(html: &mut String, report: &NodeReport, challenges: &[ChallengeSeen], now_ms: u64) {
    html.push_str("<h2>Challenges</h2>");
    for score in &report.scores {
        let _ = write!(html, "<p>{}</p>", escaped(score));
    }
    if challenges.is_empty() {
        html.push_str("<p class=dim>Nobody has asked for a proof since the start.</p>");
        return;
    }
    html.push_str(
        "<div class=table><table><tr><th>When<th>Block<th class=n>Chunks<th>Asked by<th>Answer</tr>",
    );
    for seen in challenges.iter().take(CHALLENGES_SHOWN) {
        let answer = if seen.refused.is_empty() {
            "<span class=ok>proved</span>".to_owned()
        } else {
            format!("<span class=bad>{}</span>", escaped(&seen.refused))
        };
        let _ = write!(
            html,
            "<tr><td>{}<td><code>{}…</code><td class=n>{}<td><code>{}</code><td>{answer}</tr>",
            ago(seen.at_ms, now_ms),
            escaped(&seen.digest.chars().take(16).collect::<String>()),
            seen.chunks,
            short(&seen.peer)
        );
    }
    html.push_str("</table></div>");
}

fn limits(html: &mut String, report: &NodeReport) {
    let _ = write!(
        html,
        "<h2>Settings</h2><p>Sends {}; takes {}.<br>{} lines on the deny-list. Namespaces admitted: {}.</p>",
        escaped(&report.send_limit),
        escaped(&report.take_limit),
        report.denied,
        if report.admitted.is_empty() {
            "none".to_owned()
        } else {
            report.admitted.iter().map(|key| short(key)).collect::<Vec<_>>().join(", ")
        }
    );
}

fn part(value: u64, whole: u64) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "a share of a picture")]
    let part = value as f64 / whole.max(1) as f64;
    part.clamp(0.0, 1.0)
}

/// A key by its first letters.
fn short(key: &str) -> String {
    if key.len() <= 14 {
        escaped(key)
    } else {
        format!("{}…", escaped(&key.chars().take(14).collect::<String>()))
    }
}

fn ago(at_ms: u64, now_ms: u64) -> String {
    format!("{} ago", duration(now_ms.saturating_sub(at_ms) / 1000))
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

fn bytes(bytes: u64) -> String {
    const UNITS: [(&str, u64); 4] =
        [("TB", 1_000_000_000_000), ("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1000)];
    for (unit, size) in UNITS {
        if bytes >= size {
            return format!("{}.{} {unit}", bytes / size, bytes % size * 10 / size);
        }
    }
    format!("{bytes} B")
}

/// Text as HTML: nothing a peer says becomes markup.
fn escaped(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            other => html.push(other),
        }
    }
    html
}
