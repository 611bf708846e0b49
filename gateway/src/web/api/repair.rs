//! What automatic repair, healing and packing report, beside the runs that a person started.

use serde::{Deserialize, Serialize};

/// Repair without being told to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AutomaticRepair {
    /// Whether a run is under way.
    pub running: bool,
    /// Runs that rebuilt something since the start.
    pub runs: u64,
    /// Shards rebuilt since the start.
    pub shards_rebuilt: u64,
    /// Bytes read for that.
    pub bytes_read: u64,
    /// Bytes written for that.
    pub bytes_written: u64,
    /// Bytes moved a second while it ran; 0 when nothing was.
    pub bytes_per_second: u64,
    /// The limit on that; absent when there is none.
    pub bytes_per_second_max: Option<u64>,
    /// Seconds after which a silent node counts as lost while half of a stripe's margin is left.
    pub silent_after_s: u64,
    /// Nodes that do not answer.
    pub silent: Vec<SilentNode>,
    /// Damaged stripes that wait for their turn, after the last run.
    pub remaining: u64,
    /// Damaged stripes that wait for further nodes.
    pub waiting: u64,
    /// How many more nodes would end the waiting.
    pub waiting_for_nodes: u64,
    /// Stripes of which too few shards could be read.
    pub unreadable: u64,
    /// Shards that answering nodes were reported not to hold.
    pub shards_reported: u64,
    /// Those of them that were found gone.
    pub shards_found_lost: u64,
    /// Those of them that were where they should be, or expected elsewhere by then.
    pub shards_found_well: u64,
}

/// A node that does not answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SilentNode {
    /// Which.
    pub node: String,
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
    /// When it counts as lost for stripes with at least half of their margin; sooner for others.
    pub lost_at_ms: u64,
    /// Whether it counts as lost already.
    pub lost: bool,
    /// Times that it fell silent since it is watched.
    pub outages: u64,
}

/// The packer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Packing {
    /// Stripes that are short or mostly dead.
    pub waiting: u64,
    /// Merges since the start.
    pub merges: u64,
    /// Stripes that became part of others.
    pub absorbed: u64,
    /// Bytes read for that.
    pub bytes_read: u64,
    /// Bytes of parity written.
    pub bytes_written: u64,
    /// Bytes of parity and dead blocks let go.
    pub bytes_released: u64,
    /// Merges given up for the moment.
    pub given_up: u64,
    /// Bytes stored per byte of live data; absent until all stripes were looked through once.
    pub expansion_now: Option<f64>,
    /// The same once everything that waits is packed.
    pub expansion_packed: Option<f64>,
}

/// `POST /api/v1/repair/damage`: somebody found that a node does not hold a shard. It is checked before anything is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportDamage {
    /// The node.
    pub node: String,
    /// The shard, as a CID.
    pub digest: String,
}
