//! What the rest of the gateway sees of metadata: buckets, objects, uploads, pages of listings, queue items.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use cid::Cid;
use holdfast_protocol::record::{
    AgreementId, Encryption, NodeRecord, PolicyName, ScopeId, Stripe, StripeId, Unverified,
    UnverifiedAgreement,
};
use holdfast_protocol::time::UnixMs;
use holdfast_protocol::{NodeId, OperatorId};
use serde::{Deserialize, Serialize};

use super::features::{Features, Lock};
use super::reads::ReadPin;
use crate::crypt::PartSecret;
use crate::layout::{Entry, Layout};

/// The internal name of a bucket; a bucket created again under its old name gets another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BucketId(pub [u8; 8]);

/// One version of an object, or one upload: random, never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VersionId(pub [u8; 16]);

impl fmt::Display for VersionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for VersionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VersionId({self})")
    }
}

impl FromStr for VersionId {
    type Err = hex::FromHexError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0u8; 16];
        hex::decode_to_slice(text, &mut bytes)?;
        Ok(Self(bytes))
    }
}

/// A bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Its name.
    pub name: String,
    /// Its internal name.
    pub id: BucketId,
    /// When it was created.
    pub created_ms: UnixMs,
    /// Whether anybody may read it; then its blocks hold the bytes themselves.
    pub public: bool,
    /// How its objects are enciphered.
    pub encryption: Encryption,
    /// The read scope of its blocks.
    pub scope: ScopeId,
    /// The policy of its stripes.
    pub policy: PolicyName,
    /// The epoch of its key.
    pub key_epoch: u32,
    /// Versions, locks and settings.
    pub features: Features,
}

/// What [`super::Meta::create_bucket`] needs.
#[derive(Clone, Debug)]
pub struct NewBucket {
    /// Its name; checked against S3's rules by the caller.
    pub name: String,
    /// Public buckets are not enciphered.
    pub public: bool,
    /// The policy of its stripes.
    pub policy: PolicyName,
    /// Versions and locks from its start.
    pub features: Features,
}

/// What a bucket holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Objects.
    pub objects: u64,
    /// Bytes of objects.
    pub bytes: u64,
    /// Bytes of parts of unfinished uploads.
    pub upload_bytes: u64,
}

/// What S3 keeps beside an object's bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// The entity tag, without quotes.
    pub etag: String,
    /// Content headers in lower case (`content-type`, `cache-control`, …) and their values.
    pub headers: Vec<(String, String)>,
    /// `x-amz-meta-*`, without the prefix, in lower case.
    pub user: Vec<(String, String)>,
    /// Checksums that the client asked to keep: lower-case algorithm name (`crc64nvme`) and base64 value.
    pub checksums: Vec<(String, String)>,
    /// Tags, sorted by name.
    pub tags: Vec<(String, String)>,
    /// What keeps it from being deleted.
    pub lock: Lock,
}

/// A condition on what is there before a PUT.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PutCondition {
    /// None.
    #[default]
    Any,
    /// `If-None-Match: *`.
    Absent,
    /// `If-Match: "etag"`.
    Etag(String),
}

/// Bytes that were stored and are to be committed: the whole of a PUT, or one part.
#[derive(Debug, Default)]
pub struct Stored {
    /// Bytes.
    pub size: u64,
    /// Blocks in order; empty exactly when `size` is 0.
    pub blocks: Vec<Entry>,
    /// The key of these bytes; `None` in a public bucket.
    pub secret: Option<PartSecret>,
    /// Every stripe that holds one of the blocks, as written. Stripes shared with other PUTs of the same
    /// commit group come with each of them.
    pub stripes: Vec<Arc<Stripe>>,
}

/// A PUT to commit.
#[derive(Debug)]
pub struct NewObject {
    /// The key.
    pub key: String,
    /// ETag, headers, user metadata.
    pub attributes: Attributes,
    /// Over the blocks as they are (ciphertext when private).
    pub root_cid: Cid,
    /// The bytes.
    pub stored: Stored,
    /// What must be there before.
    pub condition: PutCondition,
}

/// A committed object, with what is needed to read it.
#[derive(Clone, Debug)]
pub struct Object {
    /// The key.
    pub key: String,
    /// Which version.
    pub version: VersionId,
    /// Whether it was written while its bucket kept no versions.
    pub is_null: bool,
    /// Bytes.
    pub size: u64,
    /// Blocks.
    pub block_count: u64,
    /// When it was committed.
    pub modified_ms: UnixMs,
    /// The root CID.
    pub root_cid: Cid,
    /// How it is enciphered.
    pub encryption: Encryption,
    /// ETag, headers, user metadata.
    pub attributes: Attributes,
    /// How many parts it was uploaded in; 0 for a single PUT.
    pub part_count: u32,
    /// Where its blocks are listed.
    pub(crate) layout: Layout,
    pub(crate) bucket: BucketId,
    /// Keeps the version whole while this or a clone of it lives; none right after it was committed.
    #[expect(dead_code, reason = "held for its end")]
    pub(crate) pin: Option<ReadPin>,
}

/// One line of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectSummary {
    /// The key.
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// The entity tag, without quotes.
    pub etag: String,
    /// Its checksums, as [`Attributes`] has them.
    pub checksums: Vec<(String, String)>,
    /// When it was committed.
    pub modified_ms: UnixMs,
    /// The root CID.
    pub root_cid: Cid,
}

/// ListObjectsV2.
#[derive(Clone, Debug)]
pub struct ListQuery {
    /// Only keys that begin with this.
    pub prefix: String,
    /// Keys that hold it behind the prefix are rolled up; empty is none.
    pub delimiter: String,
    /// Only keys behind this one.
    pub start_after: String,
    /// `next` of the page before; wins over `start_after`.
    pub token: Option<String>,
    /// Objects and common prefixes together; at most [`super::schema::LIST_MAX`].
    pub max_keys: usize,
}

/// A page of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListPage {
    /// Objects in key order.
    pub objects: Vec<ObjectSummary>,
    /// Common prefixes in order.
    pub common_prefixes: Vec<String>,
    /// The continuation token; `None` on the last page.
    pub next: Option<String>,
}

/// An unfinished upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upload {
    /// The key it is for.
    pub key: String,
    /// Its id.
    pub id: VersionId,
    /// When it was started.
    pub created_ms: UnixMs,
    /// Headers and user metadata of the object to be; the ETag is empty.
    pub attributes: Attributes,
}

/// A part to commit.
#[derive(Debug)]
pub struct NewPart {
    /// The key of the upload.
    pub key: String,
    /// The upload.
    pub upload: VersionId,
    /// 1 to 10,000.
    pub number: u16,
    /// Its ETag and checksums; nothing else is kept.
    pub attributes: Attributes,
    /// The bytes.
    pub stored: Stored,
}

/// A finished part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// 1 to 10,000.
    pub number: u16,
    /// Bytes.
    pub size: u64,
    /// The entity tag, without quotes.
    pub etag: String,
    /// When it was committed.
    pub modified_ms: UnixMs,
    /// Checksums that the client asked to keep.
    pub checksums: Vec<(String, String)>,
}

/// CompleteMultipartUpload.
#[derive(Clone, Debug)]
pub struct Completion {
    /// The key of the upload.
    pub key: String,
    /// The upload.
    pub upload: VersionId,
    /// Part numbers, ascending, with the ETags that the client got for them.
    pub parts: Vec<(u16, String)>,
    /// The ETag of the object.
    pub etag: String,
    /// Checksums of the object.
    pub checksums: Vec<(String, String)>,
    /// What must be there before.
    pub condition: PutCondition,
}

/// A page of unfinished uploads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UploadPage {
    /// Uploads by key, then id.
    pub uploads: Vec<Upload>,
    /// Common prefixes in order.
    pub common_prefixes: Vec<String>,
    /// Key marker and upload id marker of the next page.
    pub next: Option<(String, Option<VersionId>)>,
}

/// Where a block is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// The stripe, with node ids.
    pub stripe: Arc<Stripe>,
    /// Which of its shards.
    pub slot: usize,
}

/// A queued change at one node for one stripe: claims to commit, or claims to release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueItem {
    /// The node.
    pub node: NodeId,
    /// The stripe; with the node it gives the claims' tag.
    pub stripe: StripeId,
    /// The blocks.
    pub digests: Vec<holdfast_protocol::Digest>,
    /// When it was queued.
    pub queued_ms: UnixMs,
    pub(crate) row_key: Vec<u8>,
    pub(crate) row_value: Vec<u8>,
}

/// What the gateway knows of a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeEntry {
    /// Which node.
    pub id: NodeId,
    /// Where to dial it, best first; empty when it dials in.
    pub addresses: Vec<SocketAddr>,
    /// The agreement, as both sides signed it.
    pub agreement: Option<UnverifiedAgreement>,
    /// The agreement's id.
    pub agreement_id: Option<AgreementId>,
    /// Its own record, as it signed it.
    pub record: Option<Unverified<NodeRecord>>,
    /// Facts that keep shards apart.
    pub domain: DomainFacts,
    /// Bytes agreed.
    pub capacity_bytes: u64,
    /// Bytes free when last asked.
    pub free_bytes: u64,
    /// When it was first known.
    pub joined_ms: UnixMs,
    /// Taken out by the administrator: no new blocks, and repair moves the old ones away.
    pub removed: bool,
    /// What only some nodes have.
    #[serde(default, skip_serializing_if = "NodeNotes::is_empty")]
    pub notes: NodeNotes,
}

/// What only some nodes have; rows of earlier releases have none of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeNotes {
    /// The invite by which it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invite: Option<[u8; 16]>,
    /// The agreement that follows the one in force, and begins when that ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<UnverifiedAgreement>,
    /// What it asked to be rid of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaving: Option<Leaving>,
}

impl NodeNotes {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A node that wants blocks moved off it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaving {
    /// Block bytes that may stay; 0 when it leaves altogether.
    pub keep_bytes: u64,
    /// When it first asked.
    pub since_ms: UnixMs,
    /// Shards moved since.
    pub shards_moved: u64,
    /// Their bytes.
    pub bytes_moved: u64,
}

/// Facts by which failure domains are told apart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainFacts {
    /// Who runs the node.
    pub operator: Option<OperatorId>,
    /// An address in its network.
    pub network: Option<IpAddr>,
    /// Its autonomous system, 0 when unknown.
    pub asn: u32,
}
