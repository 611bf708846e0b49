//! What the admin API says and takes, as types shared with the command line. Ids are text: keys as multibase,
//! digests as CIDs, records as base64 of their wire bytes.

use std::net::SocketAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// `POST /api/v1/nodes`: a node introduces itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AddNode {
    /// Base64 of the signed node record's wire bytes.
    pub record: String,
}

impl AddNode {
    /// From the wire bytes of a signed node record.
    pub fn from_wire_bytes(record: &[u8]) -> Self {
        Self { record: STANDARD.encode(record) }
    }

    /// The wire bytes, if the text is base64.
    pub fn wire_bytes(&self) -> Option<Vec<u8>> {
        STANDARD.decode(&self.record).ok()
    }
}

/// `GET /api/v1/nodes`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct NodeList {
    /// Every node that the gateway knows.
    pub nodes: Vec<NodeRow>,
}

/// One node as the gateway sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeRow {
    /// Its id.
    pub id: String,
    /// `up`, `down` or `unknown`.
    pub state: String,
    /// Where it is dialled.
    pub addresses: Vec<SocketAddr>,
    /// Whether an agreement with it is in force.
    pub agreed: bool,
    /// Bytes offered.
    pub capacity_bytes: u64,
    /// Bytes used, headers included.
    pub used_bytes: u64,
    /// Bytes free.
    pub free_bytes: u64,
    /// Blocks held.
    pub blocks: u64,
    /// Median time of its answers, in microseconds; 0 when unknown.
    pub latency_us: u64,
    /// How often it answered with something wrong.
    pub culprit_count: u64,
}

/// `GET /api/v1/culprits`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct CulpritList {
    /// Nodes that answered with something wrong, newest first.
    pub culprits: Vec<CulpritRow>,
}

/// One node's wrong answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CulpritRow {
    /// Who.
    pub node: String,
    /// What was wrong, in words.
    pub what: String,
    /// About which block.
    pub digest: String,
    /// When last, in milliseconds since the epoch.
    pub at_ms: u64,
    /// How often.
    pub count: u64,
}

/// `POST /api/v1/challenge`: asks for targets and the right to read them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChallengeAsk {
    /// The key that will read.
    pub holder: String,
    /// At most this many blocks per node are named, drawn at random.
    pub blocks_per_node: u32,
}

/// Answers [`ChallengeAsk`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChallengeTargets {
    /// Blocks with the nodes that are said to hold them.
    pub targets: Vec<ChallengeTarget>,
    /// Where those nodes are.
    pub nodes: Vec<ChallengeNode>,
}

/// A block that a node is said to hold.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChallengeTarget {
    /// The node.
    pub node: String,
    /// The block.
    pub digest: String,
    /// Its length in bytes.
    pub len: u32,
    /// Base64 of the presented grant's wire bytes; absent for public blocks.
    pub grant: Option<String>,
}

/// Where a node is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChallengeNode {
    /// The node.
    pub id: String,
    /// Its addresses, best first.
    pub addresses: Vec<SocketAddr>,
}

/// `POST` and `GET /api/v1/repair`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RepairStatus {
    /// Whether a run is under way.
    pub running: bool,
    /// Counts up the runs since start; 0 when there was none.
    pub run: u64,
    /// Of the run under way, or of the last one.
    pub progress: RepairCounts,
    /// Why the last run failed, if it did.
    pub error: Option<String>,
}

/// What a repair has done so far.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RepairCounts {
    /// Stripes looked at.
    pub stripes_scanned: u64,
    /// Stripes with missing shards.
    pub stripes_damaged: u64,
    /// Stripes that are whole again.
    pub stripes_repaired: u64,
    /// Shards rebuilt and placed.
    pub shards_rebuilt: u64,
    /// Bytes read from healthy shards.
    pub bytes_read: u64,
    /// Bytes written to new nodes.
    pub bytes_written: u64,
    /// Damaged stripes still to do.
    pub remaining: u64,
    /// Stripes that wait for more nodes.
    pub waiting: u64,
    /// How many more nodes would end the waiting.
    pub waiting_for_nodes: u64,
    /// Stripes with fewer than k readable shards.
    pub stripes_unreadable: u64,
    /// Stripes whose repair failed for another reason.
    pub stripes_failed: u64,
    /// Reasons, a few of them.
    pub troubles: Vec<String>,
}
