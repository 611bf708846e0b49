//! What the admin API says and takes, as types shared with the command line. Ids are text: keys as multibase,
//! digests as CIDs, records as base64 of their wire bytes.

mod plan;
mod repair;
mod retrieval;

use std::net::SocketAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::keys::Rules;
use crate::keys::trail::Entry;
use crate::meta::KeyCounts;
pub use plan::{AtOnce, Plan, PlanConditions, PlanPrices, PolicyPlan, StoredBytes};
pub use repair::{AutomaticRepair, Packing, ReportDamage, SilentNode};
pub use retrieval::{ReconciledRow, Retrieval, RetrievalEvidence, RetrievalRow};

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

/// Answers [`AddNode`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Joined {
    /// `direct`: we dial the node. `dial_out`: nothing answers at its addresses, and it has to dial us.
    pub reachability: String,
    /// The namespace.
    pub namespace: String,
    /// This gateway's key, to dial.
    pub gateway: String,
    /// Where this gateway listens by QUIC; an address of all zeros stands for the host of this web side.
    pub quic: Vec<SocketAddr>,
    /// How the gateway sees the node; absent until it has dialled in.
    pub node: Option<NodeRow>,
}

/// `POST /api/v1/dialback`: a node asks whether it can be dialled, before or while it is in.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DialBack {
    /// The node's id.
    pub node: String,
    /// Where it believes to listen.
    pub addresses: Vec<SocketAddr>,
}

/// Answers [`DialBack`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DialledBack {
    /// The address that answered with the node's key, if one did.
    pub reached: Option<SocketAddr>,
    /// Why none did.
    pub why: Option<String>,
    /// The gateway's clock.
    pub now_ms: u64,
}

/// `POST /api/v1/invites`: lets somebody bring in nodes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MakeInvite {
    /// How many nodes.
    pub nodes: u32,
    /// For how long, in seconds.
    pub valid_s: u64,
    /// For whom, for people.
    #[serde(default)]
    pub label: String,
    /// Web addresses at which to join.
    pub gateways: Vec<String>,
}

/// Answers [`MakeInvite`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Invited {
    /// Names the invite, to take it back by.
    #[serde(default)]
    pub id: String,
    /// The invite, one line of text.
    pub invite: String,
    /// Until when it can be used, in milliseconds since the epoch.
    pub expires_ms: u64,
}

/// `GET /api/v1/invites`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct InviteList {
    /// Every invite that is kept: those that ended less than 90 days ago.
    pub invites: Vec<InviteRow>,
}

/// One invite that was given.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InviteRow {
    /// Names it.
    pub id: String,
    /// For whom, for people.
    pub label: String,
    /// How many nodes may come by it.
    pub nodes: u32,
    /// How many came.
    pub came: usize,
    /// When it was given, in milliseconds since the epoch.
    pub issued_ms: u64,
    /// Until when it can be used.
    pub expires_ms: u64,
    /// When it was taken back, if it was.
    pub revoked_ms: Option<u64>,
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
    /// Whether it dials us because nobody can dial it.
    #[serde(default)]
    pub dials_in: bool,
    /// How far moving its blocks away is, when it leaves or shrinks.
    #[serde(default)]
    pub leaving: Option<LeavingRow>,
}

/// A node that leaves or shrinks.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LeavingRow {
    /// Shards that it still keeps.
    pub shards_left: u64,
    /// Their bytes.
    pub bytes_left: u64,
    /// Shards moved to others.
    pub shards_moved: u64,
    /// Whether all is moved and released.
    pub done: bool,
    /// What holds it up; empty when nothing does.
    pub note: String,
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
    /// Name parity too. The holder must then present the delegation of the answer: parity that mixes several
    /// buckets opens by nothing else.
    #[serde(default)]
    pub with_parity: bool,
}

/// Answers [`ChallengeAsk`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChallengeTargets {
    /// Blocks with the nodes that are said to hold them.
    pub targets: Vec<ChallengeTarget>,
    /// Where those nodes are.
    pub nodes: Vec<ChallengeNode>,
    /// Base64 of a delegation to the holder that lets it read, and nothing else, for an hour; presented in Hello.
    /// It opens every shard, also parity that mixes several buckets, which no grant opens.
    #[serde(default)]
    pub delegation: Option<String>,
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
    /// Repair without being told to.
    #[serde(default)]
    pub automatic: AutomaticRepair,
    /// The packer.
    #[serde(default)]
    pub packing: Packing,
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

/// `POST /api/v1/repair`; an empty object repairs whatever is down.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StartRepair {
    /// Nodes without an answer for this long count as lost; 0 repairs at once.
    pub down_for_ms: u64,
    /// Nodes that count as lost whether they answer or not.
    pub lost: Vec<String>,
    /// Bytes read and written a second; unlimited when absent.
    pub bytes_per_second: Option<u64>,
}

/// `POST /api/v1/snapshots`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateSnapshot {
    /// The snapshot's name.
    pub name: String,
    /// Of which bucket.
    pub bucket: String,
    /// Of what below it; empty is all of it.
    #[serde(default)]
    pub prefix: String,
}

/// `GET /api/v1/snapshots`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotList {
    /// By name.
    pub snapshots: Vec<SnapshotRow>,
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRow {
    /// Its name.
    pub name: String,
    /// The CID of its UnixFS directory.
    pub cid: String,
    /// Of which bucket it was made.
    pub bucket: String,
    /// Of what below it.
    pub prefix: String,
    /// The bucket under which S3 clients read it.
    pub read_bucket: String,
    /// Objects in it.
    pub objects: u64,
    /// Bytes of objects.
    pub bytes: u64,
    /// When it was made.
    pub created_ms: u64,
}

/// Any refusal or failure of the API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What happened, to which thing, and what to do.
    pub error: String,
}

/// `GET /healthz`: 200 when ready, else 503.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Whether reads and writes work.
    pub ready: bool,
    /// Why not, when not.
    pub problems: Vec<String>,
}

/// `GET /api/v1/status`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Software name and version.
    pub software: String,
    /// The namespace.
    pub namespace: String,
    /// This gateway on the network.
    pub gateway: String,
    /// Where nodes may dial it by QUIC.
    #[serde(default)]
    pub quic: Vec<SocketAddr>,
    /// The policy of new buckets.
    pub policy: String,
    /// Whether reads and writes work.
    pub ready: bool,
    /// Why not, when not.
    pub problems: Vec<String>,
    /// Nodes that answer.
    pub nodes_up: usize,
    /// Nodes known.
    pub nodes_known: usize,
    /// Nodes needed for a write.
    pub nodes_needed: usize,
    /// Bytes offered by all known nodes.
    pub capacity_bytes: u64,
    /// Bytes free on nodes that answer.
    pub free_bytes: u64,
    /// Buckets.
    pub buckets: u64,
    /// Objects.
    pub objects: u64,
    /// Bytes of objects.
    pub object_bytes: u64,
    /// Whether blocks wait to be committed or released at nodes.
    pub deliveries_waiting: bool,
    /// Stripes that wait for nodes to be whole, counted up to one page.
    pub stripes_incomplete: usize,
    /// Lines of evidence against nodes.
    pub culprits: usize,
    /// The repair.
    pub repair: RepairStatus,
    /// Whether this gateway, of all that share the metadata, does what only one may do.
    #[serde(default)]
    pub owns_upkeep: bool,
    /// Seconds since the start.
    pub uptime_s: u64,
}

/// `GET /api/v1/objects?bucket=&prefix=&token=&limit=`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectList {
    /// Objects in key order.
    pub objects: Vec<ObjectRow>,
    /// Pass as `token` for the next page; absent on the last.
    pub next: Option<String>,
}

/// An object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectRow {
    /// Its bucket.
    pub bucket: String,
    /// Its key.
    pub key: String,
    /// Its root CID.
    pub cid: String,
    /// Its bytes.
    pub size: u64,
    /// Its entity tag.
    pub etag: String,
    /// When it was committed.
    pub modified_ms: u64,
}

/// `POST /api/v1/keys`: an access key for a person or a program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewKey {
    /// Who will hold it.
    pub person: String,
    /// All rights, without limits; the rules are then ignored.
    #[serde(default)]
    pub owner: bool,
    /// What it may do.
    #[serde(default)]
    pub rules: Rules,
}

/// A key that was made; the one time that its secret is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyMade {
    /// The public half.
    pub access_key: String,
    /// The secret half.
    pub secret_key: String,
    /// A token to narrow and hand on.
    pub token: String,
    /// Who holds it.
    pub person: String,
    /// What it may do.
    pub rules: Rules,
}

/// `GET /api/v1/keys?after=&limit=`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyList {
    /// Keys by id.
    pub keys: Vec<KeyRow>,
    /// Pass as `after` for the next page; absent on the last.
    pub next: Option<String>,
}

/// A key without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRow {
    /// The public half.
    pub access_key: String,
    /// Who holds it.
    pub person: String,
    /// Whether it opens anything now.
    pub live: bool,
    /// What it may do.
    pub rules: Rules,
    /// When it was made.
    pub created_ms: u64,
    /// When it was revoked.
    pub revoked_ms: Option<u64>,
}

/// `POST /api/v1/keys/{id}/rotate`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RotateKey {
    /// How long the old key goes on beside the new one.
    pub grace_ms: u64,
}

/// `POST /api/v1/keys/{id}/token`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenMade {
    /// The token.
    pub token: String,
}

/// `GET /api/v1/usage?key=&days=`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageReport {
    /// By key and day.
    pub rows: Vec<UsageRow>,
}

/// What a key used on a day.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageRow {
    /// The key.
    pub access_key: String,
    /// The day, in UTC.
    pub day: String,
    /// Its counts.
    #[serde(flatten)]
    pub counts: KeyCounts,
}

/// `GET /api/v1/trail?key=&person=&limit=`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrailList {
    /// What happened at this gateway, oldest first.
    pub entries: Vec<Entry>,
    /// Whether the chain of the files that were read is unbroken.
    pub chain_holds: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_goes_through_json_unharmed() {
        let sent = AddNode::from_wire_bytes(&[0, 255, 7]);
        let read: AddNode = serde_json::from_str(&serde_json::to_string(&sent).unwrap()).unwrap();
        assert_eq!(read.wire_bytes().unwrap(), [0, 255, 7]);
    }

    #[test]
    fn an_empty_body_starts_a_repair_of_everything_that_is_down() {
        let start: StartRepair = serde_json::from_str("{}").unwrap();
        assert_eq!(start, StartRepair::default());
    }
}
