//! The plan: durability, expansion and prices, computed from what this gateway sees.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Json, Response};
use holdfast_protocol::record::Policy;
use holdfast_retrieval::placement::{self, Rules, durability as in_words};
use holdfast_retrieval::plan::{Conditions, durability, loss_at_once, rebuild_hours};
use holdfast_retrieval::pool::NodeView;
use holdfast_retrieval::write::stripe::candidates;

use super::api::{AtOnce, Plan, PlanConditions, PlanPrices, PolicyPlan, StoredBytes};
use super::meta_failed;
use crate::gateway::Core;
use crate::meta::MetaError;

/// The policies, smallest first.
const POLICIES: [Policy; 3] = [Policy::LOCAL, Policy::SMALL, Policy::STANDARD];
/// Shares of all nodes that vanish at once, in the report.
const SHARES: [(usize, &str); 3] =
    [(5, "5 % of all nodes"), (10, "10 % of all nodes"), (25, "25 % of all nodes")];
/// Assumed where nothing was measured and no limit is set: a tenth of what a gateway on two cores reaches.
const REPAIR_RATE_ASSUMED: u64 = 50_000_000;
/// Milliseconds of a year.
const YEAR_MS: f64 = 365.25 * 86_400_000.0;

pub(super) async fn show(State(core): State<Arc<Core>>) -> Response {
    match gather(&core).await {
        Ok(plan) => Json(plan).into_response(),
        Err(error) => meta_failed(&error),
    }
}

/// The figures.
pub(super) async fn gather(core: &Core) -> Result<Plan, MetaError> {
    let views = core.pool.nodes();
    let conditions = conditions(core, &views);
    let policies = POLICIES.iter().map(|policy| policy_plan(core, policy, &conditions, &views)).collect();
    Ok(Plan {
        policy: core.config.policy.name.to_string(),
        policies,
        stored: stored(core),
        prices: prices(core).await?,
        conditions,
    })
}

#[allow(clippy::cast_precision_loss, reason = "figures for people")]
fn conditions(core: &Core, views: &[NodeView]) -> PlanConditions {
    let now_ms = core.config.clock.now_ms();
    let auto = core.auto.state();
    let watched: f64 = auto
        .presence
        .values()
        .map(|presence| now_ms.saturating_sub(presence.watched_since_ms) as f64 / YEAR_MS)
        .sum();
    let losses: u64 = auto.presence.values().map(|presence| presence.losses).sum();
    let rates: HashMap<_, _> = core.auto.losses_per_year(now_ms);
    let average = rates.values().sum::<f64>() / rates.len().max(1) as f64;
    let operators: BTreeMap<_, usize> = views.iter().map(|view| (view.known.domain.operator, 1)).collect();
    let used: u64 =
        views.iter().map(|view| view.known.capacity_bytes.saturating_sub(view.known.free_bytes)).sum();
    let limit = core.config.repair.bytes_per_second;
    let measured = core.auto.measured_bytes_per_second();
    let rate = [limit, measured].into_iter().flatten().min().unwrap_or(REPAIR_RATE_ASSUMED);
    let expansion = core.pack.state().expansion;
    PlanConditions {
        nodes_up: views.iter().filter(|view| !view.state.is_down()).count(),
        nodes: views.len(),
        operators: operators.len(),
        losses_per_node_year: if rates.is_empty() {
            holdfast_retrieval::repair::LOSSES_PER_YEAR
        } else {
            average
        },
        // A sum of nothing is -0.
        node_years: watched.abs(),
        losses,
        silent_hours: core.config.repair.silent.as_secs_f64() / 3600.0,
        node_bytes: used / views.len().max(1) as u64,
        repair_bytes_per_second: rate,
        repair_measured: measured.is_some_and(|measured| measured == rate),
        stripes: expansion.map_or(1, |expansion| expansion.stripes.max(1)),
    }
}

fn policy_plan(core: &Core, policy: &Policy, conditions: &PlanConditions, views: &[NodeView]) -> PolicyPlan {
    let rebuild = rebuild_hours(policy, conditions.node_bytes, conditions.repair_bytes_per_second);
    let of = Conditions {
        losses_per_node_year: conditions.losses_per_node_year,
        silent_hours: conditions.silent_hours,
        rebuild_hours: rebuild,
    };
    let lasts = durability(policy, &of, conditions.stripes);
    PolicyPlan {
        name: policy.name.to_string(),
        k: policy.k,
        m: policy.m,
        expansion: policy.expansion(),
        survives: in_words(policy.name).to_owned(),
        possible: placement::Chooser::new(1).choose(&candidates(&core.pool), policy, policy.k).is_ok(),
        rebuild_hours: rebuild,
        stripe_loss_per_year: lasts.stripe_loss_per_year,
        stripe_nines: lasts.stripe_nines,
        dataset_loss_per_year: lasts.dataset_loss_per_year,
        dataset_nines: lasts.dataset_nines,
        at_once: at_once(policy, views),
    }
}

/// What is lost when nodes vanish together, for good, before anything is repaired.
fn at_once(policy: &Policy, views: &[NodeView]) -> Vec<AtOnce> {
    let nodes = views.len();
    let chance = |what: &str, lost: usize| AtOnce {
        what: what.to_owned(),
        nodes: lost,
        stripe_loss: loss_at_once(policy, nodes, lost),
    };
    let mut rows =
        vec![chance("as many nodes as there is parity", policy.m), chance("one node more", policy.m + 1)];
    rows.extend(SHARES.iter().map(|(percent, what)| chance(what, (nodes * percent).div_ceil(100))));
    let rules = Rules::of(policy);
    rows.push(group(policy, views, "the largest operator", rules.operators_differ.then_some(1), |view| {
        vec![format!("{:?}", view.known.domain.operator)]
    }));
    rows.push(group(policy, views, "the largest /24 or /48", rules.networks_differ.then_some(1), |view| {
        view.known.domain.networks.iter().map(ToString::to_string).collect()
    }));
    rows.push(group(policy, views, "the largest autonomous system", rules.per_asn_max, |view| {
        vec![view.known.domain.asn.to_string()]
    }));
    rows
}

/// The loss of the largest group of nodes that share something; a policy that keeps at most `most` shards of a stripe
/// in one group loses nothing by it unless that is more than its parity.
fn group(
    policy: &Policy,
    views: &[NodeView],
    what: &str,
    most: Option<usize>,
    groups: impl Fn(&NodeView) -> Vec<String>,
) -> AtOnce {
    let mut sizes: BTreeMap<String, usize> = BTreeMap::new();
    for name in views.iter().flat_map(groups) {
        *sizes.entry(name).or_default() += 1;
    }
    let largest = sizes.values().copied().max().unwrap_or(0);
    let kept_apart = most.is_some_and(|most| most <= policy.m);
    let stripe_loss = if kept_apart { 0.0 } else { loss_at_once(policy, views.len(), largest) };
    AtOnce { what: what.to_owned(), nodes: largest, stripe_loss }
}

#[allow(clippy::cast_precision_loss, reason = "a ratio for people")]
fn stored(core: &Core) -> Option<StoredBytes> {
    let seen = core.pack.state().expansion?;
    let over_live = |bytes: u64| bytes as f64 / seen.live_bytes.max(1) as f64;
    Some(StoredBytes {
        live_bytes: seen.live_bytes,
        stored_bytes: seen.stored_bytes,
        packed_bytes: seen.packed_bytes,
        expansion_now: over_live(seen.stored_bytes),
        expansion_packed: over_live(seen.packed_bytes),
    })
}

async fn prices(core: &Core) -> Result<Option<PlanPrices>, MetaError> {
    let mut by_currency: BTreeMap<String, (u64, u64, u64)> = BTreeMap::new();
    for entry in core.meta.nodes().await?.into_iter().filter(|entry| !entry.removed) {
        let Some(agreement) = entry.agreement.as_ref().and_then(|agreement| agreement.verify().ok()) else {
            continue;
        };
        let asked = &agreement.terms().prices;
        let sum = by_currency.entry(asked.currency.clone()).or_default();
        sum.0 += 1;
        sum.1 = sum.1.saturating_add(asked.storage_micro_per_tb_month);
        sum.2 = sum.2.saturating_add(asked.egress_micro_per_tb);
    }
    let commonest = by_currency.into_iter().max_by_key(|(_, (nodes, ..))| *nodes);
    Ok(commonest.map(|(currency, (nodes, storage, egress))| PlanPrices {
        storage_micro_per_tb_month: storage / nodes.max(1),
        egress_micro_per_tb: egress / nodes.max(1),
        currency,
    }))
}
