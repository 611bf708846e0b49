//! `plan`: what storing something takes and how long it lasts, before a byte moves.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use holdfast_gateway::web::api::{Plan, PolicyPlan};
use holdfast_protocol::limits::BLOCK_LEN_MAX;
use holdfast_protocol::record::{Policy, PolicyName};
use holdfast_retrieval::plan::{Conditions, Footprint, durability};
use serde::Serialize;

use crate::args::PlanArgs;
use crate::client::Admin;
use crate::network::Access;
use crate::objects;
use crate::output::Output;
use crate::sizes::ByteSize;

/// What the command found.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    policy: &'a PolicyPlan,
    upload: Option<Upload>,
    network: &'a Plan,
}

/// What an upload would take.
#[derive(Debug, Serialize)]
struct Upload {
    #[serde(flatten)]
    footprint: Footprint,
    expansion_at_first: f64,
    expansion_packed: f64,
    /// The chance that any of it is lost within a year, on its own.
    loss_per_year: f64,
    nines: f64,
    /// Price of a month once packed, in millionths of the currency.
    storage_micro_per_month: Option<u64>,
    currency: Option<String>,
}

/// `holdfast plan`.
pub(crate) async fn run(args: &PlanArgs, output: Output) -> Result<ExitCode> {
    let admin = Admin::of(&Access::resolve(&args.network)?)?;
    let plan: Plan = admin.get("api/v1/plan").await?;
    let name = args.policy.map_or_else(|| plan.policy.clone(), |name| name.to_string());
    let policy = plan.policies.iter().find(|policy| policy.name == name);
    let policy = policy.with_context(|| format!("the gateway knows no policy `{name}`"))?;
    let code = code_of(&name)?;
    let upload = match (&args.source, args.size) {
        (Some(_), Some(_)) => bail!("give a file or directory, or --size, not both"),
        (Some(source), None) => Some(of_files(source, &code)?),
        (None, Some(size)) => Some(of_size(size, args.objects, &code)),
        (None, None) => None,
    };
    let upload = upload.map(|footprint| price(footprint, &code, policy, &plan));
    show(&plan, policy, upload.as_ref(), output);
    output.value(&Answer { policy, upload, network: &plan });
    Ok(ExitCode::SUCCESS)
}

fn code_of(name: &str) -> Result<Policy> {
    let name: PolicyName = name.parse()?;
    Policy::by_name(name).with_context(|| format!("policy {name} is not for objects"))
}

fn of_files(source: &Path, policy: &Policy) -> Result<Footprint> {
    let mut footprint = Footprint::default();
    for (_, _, len) in objects::plan_upload(source, "")? {
        footprint.add(policy, len, u64::from(BLOCK_LEN_MAX));
    }
    Ok(footprint)
}

fn of_size(size: ByteSize, objects: u64, policy: &Policy) -> Footprint {
    let mut footprint = Footprint::default();
    let objects = objects.max(1);
    let (each, rest) = (size.0 / objects, size.0 % objects);
    for index in 0..objects {
        footprint.add(policy, each + u64::from(index < rest), u64::from(BLOCK_LEN_MAX));
    }
    footprint
}

fn price(footprint: Footprint, code: &Policy, policy: &PolicyPlan, plan: &Plan) -> Upload {
    let conditions = Conditions {
        losses_per_node_year: plan.conditions.losses_per_node_year,
        silent_hours: plan.conditions.silent_hours,
        rebuild_hours: policy.rebuild_hours,
    };
    let lasts = durability(code, &conditions, footprint.stripes_at_first.max(1));
    let (expansion_at_first, expansion_packed) = footprint.expansion();
    let prices = plan.prices.as_ref();
    let per_month = |micro_per_tb: u64| {
        let micro = u128::from(footprint.stored_packed) * u128::from(micro_per_tb) / 1_000_000_000_000;
        u64::try_from(micro).unwrap_or(u64::MAX)
    };
    Upload {
        expansion_at_first,
        expansion_packed,
        loss_per_year: lasts.dataset_loss_per_year,
        nines: lasts.dataset_nines,
        storage_micro_per_month: prices.map(|prices| per_month(prices.storage_micro_per_tb_month)),
        currency: prices.map(|prices| prices.currency.clone()),
        footprint,
    }
}

fn show(plan: &Plan, policy: &PolicyPlan, upload: Option<&Upload>, output: Output) {
    let conditions = &plan.conditions;
    output.say(format!(
        "policy {}: {}+{}, {:.2} bytes stored per byte; {}",
        policy.name, policy.k, policy.m, policy.expansion, policy.survives
    ));
    if !policy.possible {
        output.say("  this network cannot carry it now");
    }
    if let Some(upload) = upload {
        let footprint = &upload.footprint;
        output.say(format!(
            "upload: {} objects, {}, {} blocks\n  stored at first   up to {} ({:.2}x), in {} stripes\n  \
             stored when packed {} ({:.2}x)",
            footprint.objects,
            ByteSize(footprint.bytes),
            footprint.blocks,
            ByteSize(footprint.stored_at_first),
            upload.expansion_at_first,
            footprint.stripes_at_first,
            ByteSize(footprint.stored_packed),
            upload.expansion_packed,
        ));
        output.say(format!(
            "  any of it lost within a year: {:.1e} ({:.1} nines)",
            upload.loss_per_year, upload.nines
        ));
        if let (Some(micro), Some(currency)) = (upload.storage_micro_per_month, &upload.currency) {
            output.say(format!(
                "  price, shown and not yet settled: {}.{:06} {currency} a month",
                micro / 1_000_000,
                micro % 1_000_000
            ));
        }
    }
    output.say(format!(
        "one stripe lost within a year: {:.1e} ({:.1} nines); any of {} stripes: {:.1e} ({:.1} nines)",
        policy.stripe_loss_per_year,
        policy.stripe_nines,
        conditions.stripes,
        policy.dataset_loss_per_year,
        policy.dataset_nines
    ));
    output.say(format!(
        "  from {:.2} losses per node and year ({} seen in {:.2} node-years), a silence of {:.2} h, {:.2} h to \
         rebuild a node at {}/s{}",
        conditions.losses_per_node_year,
        conditions.losses,
        conditions.node_years,
        conditions.silent_hours,
        policy.rebuild_hours,
        ByteSize(conditions.repair_bytes_per_second),
        if conditions.repair_measured { " (measured)" } else { "" }
    ));
    output.say("if nodes vanish at once, for good, a given stripe is lost with chance");
    for row in &policy.at_once {
        output.say(format!("  {:34} {:>4} nodes  {}", row.what, row.nodes, chance(row.stripe_loss)));
    }
    if let Some(stored) = &plan.stored {
        output.say(format!(
            "stored now: {} for {} of live data ({:.2}x), {:.2}x after packing",
            ByteSize(stored.stored_bytes),
            ByteSize(stored.live_bytes),
            stored.expansion_now,
            stored.expansion_packed
        ));
    }
}

/// A chance for people.
fn chance(value: f64) -> String {
    if value > 0.0 { format!("{value:.1e}") } else { "none".to_owned() }
}
