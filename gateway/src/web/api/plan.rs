//! `GET /api/v1/plan`: how long data lasts here, and what it takes.

use serde::{Deserialize, Serialize};

/// Durability and cost of what this gateway stores.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The policy of new objects.
    pub policy: String,
    /// What durability is computed from.
    pub conditions: PlanConditions,
    /// Every policy under these conditions, smallest first.
    pub policies: Vec<PolicyPlan>,
    /// Bytes stored now; absent until all stripes were looked through once after a start.
    pub stored: Option<StoredBytes>,
    /// What nodes ask; nothing is settled yet.
    pub prices: Option<PlanPrices>,
}

/// What durability is computed from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PlanConditions {
    /// Nodes that answer.
    pub nodes_up: usize,
    /// Nodes known.
    pub nodes: usize,
    /// Operators of them.
    pub operators: usize,
    /// Losses of a node in a year: what was seen of these nodes, with one prior year each at the usual rate.
    pub losses_per_node_year: f64,
    /// Years that the nodes were watched, together.
    pub node_years: f64,
    /// Losses seen in them.
    pub losses: u64,
    /// Hours that a silent node is waited for while half of a stripe's margin is left.
    pub silent_hours: f64,
    /// Bytes on the average node.
    pub node_bytes: u64,
    /// Bytes that repair moves a second: the limit set, or what was measured if that is less.
    pub repair_bytes_per_second: u64,
    /// Whether it was measured.
    pub repair_measured: bool,
    /// Stripes; at least one.
    pub stripes: u64,
}

/// One policy under the conditions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PolicyPlan {
    /// Its name.
    pub name: String,
    /// Data shards.
    pub k: usize,
    /// Parity shards.
    pub m: usize,
    /// Bytes stored per byte in full stripes.
    pub expansion: f64,
    /// What it survives, in words.
    pub survives: String,
    /// Whether the known nodes can carry it.
    pub possible: bool,
    /// Hours that rebuilding a lost node takes.
    pub rebuild_hours: f64,
    /// The chance that a stripe is lost within a year.
    pub stripe_loss_per_year: f64,
    /// The same as nines.
    pub stripe_nines: f64,
    /// The chance that any stripe is lost within a year: an upper bound.
    pub dataset_loss_per_year: f64,
    /// The same as nines.
    pub dataset_nines: f64,
    /// The chance of loss when several nodes vanish at once: what the figures above leave out.
    pub at_once: Vec<AtOnce>,
}

/// Several nodes at once.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AtOnce {
    /// Which, in words.
    pub what: String,
    /// How many nodes.
    pub nodes: usize,
    /// The chance that one given stripe is lost.
    pub stripe_loss: f64,
}

/// Bytes stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StoredBytes {
    /// Live bytes of blocks.
    pub live_bytes: u64,
    /// Bytes of all shards.
    pub stored_bytes: u64,
    /// Bytes of all shards once everything queued is packed.
    pub packed_bytes: u64,
    /// Stored over live, now.
    pub expansion_now: f64,
    /// Stored over live, after packing.
    pub expansion_packed: f64,
}

/// What nodes ask, over all agreed nodes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PlanPrices {
    /// Average price of a terabyte a month, in millionths of the currency.
    pub storage_micro_per_tb_month: u64,
    /// Average price of a terabyte read.
    pub egress_micro_per_tb: u64,
    /// The currency; nodes with others are left out.
    pub currency: String,
}
