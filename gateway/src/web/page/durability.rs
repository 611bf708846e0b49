//! The part of the status page about durability: nines, expansion, what is silent, what repair and packing do.

use std::fmt::Write as _;

use super::super::api::{Plan, RepairStatus};
use super::{bytes, escaped};

/// Silent nodes shown.
const SILENT_SHOWN: usize = 20;

/// Writes the section.
pub(super) fn section(html: &mut String, plan: &Plan, repair: &RepairStatus, now_ms: u64) {
    html.push_str("<h2>Durability</h2><div class=cards>");
    let card = |html: &mut String, name: &str, value: String, note: String| {
        let _ = write!(
            html,
            "<div class=card><span class=dim>{name}</span><b>{value}</b><span class=dim>{note}</span></div>"
        );
    };
    if let Some(policy) = plan.policies.iter().find(|policy| policy.name == plan.policy) {
        let stripe = format!("{:.1} nines", policy.stripe_nines);
        card(html, "One stripe, a year", stripe, format!("{}+{}", policy.k, policy.m));
        let all = format!("{:.1} nines", policy.dataset_nines);
        card(html, "All stripes, a year", all, format!("{} stripes", plan.conditions.stripes));
        let operator = policy.at_once.iter().find(|row| row.what == "the largest operator");
        if let Some(row) = operator {
            let chance =
                if row.stripe_loss > 0.0 { format!("{:.1e}", row.stripe_loss) } else { "none".to_owned() };
            card(html, "Loss if the largest operator vanishes", chance, format!("{} nodes", row.nodes));
        }
    }
    if let Some(stored) = &plan.stored {
        let value = format!("{:.2}×", stored.expansion_now);
        card(html, "Stored per byte", value, format!("{:.2}× after packing", stored.expansion_packed));
    }
    let lost = plan.conditions.losses_per_node_year;
    card(html, "Losses per node-year", format!("{lost:.2}"), format!("{} seen", plan.conditions.losses));
    html.push_str("</div>");
    automatic(html, repair, now_ms);
}

fn automatic(html: &mut String, repair: &RepairStatus, now_ms: u64) {
    let auto = &repair.automatic;
    let _ = write!(
        html,
        "<p>Automatic repair rebuilt {} shards ({} written); {} stripes wait for their turn, {} for nodes. \
         {} shards were found lost on nodes that answer. Packing merged {} stripes away and let {} go; {} wait.</p>",
        auto.shards_rebuilt,
        bytes(auto.bytes_written),
        auto.remaining,
        auto.waiting,
        auto.shards_found_lost,
        repair.packing.absorbed,
        bytes(repair.packing.bytes_released),
        repair.packing.waiting,
    );
    if auto.silent.is_empty() {
        return;
    }
    html.push_str(
        "<div class=table><table><tr><th>Silent node<th class=n>For<th class=n>Counts as lost</tr>",
    );
    for node in auto.silent.iter().take(SILENT_SHOWN) {
        let silent_ms = now_ms.saturating_sub(node.since_ms);
        let left_ms = node.lost_at_ms.saturating_sub(now_ms);
        let lost = if node.lost { "yes".to_owned() } else { format!("in {}", period(left_ms)) };
        let _ = write!(
            html,
            "<tr><td><code>{}</code><td class=n>{}<td class=n>{lost}</tr>",
            escaped(&node.node.chars().skip(5).take(8).collect::<String>()),
            period(silent_ms),
        );
    }
    html.push_str("</table></div>");
}

/// A time for people: the two largest units.
fn period(ms: u64) -> String {
    let (minutes, seconds) = (ms / 60_000, ms / 1000 % 60);
    match minutes {
        0 => format!("{seconds} s"),
        1..60 => format!("{minutes} min {seconds} s"),
        _ => format!("{} h {} min", minutes / 60, minutes % 60),
    }
}
