//! Every key of the metadata, in one place. `docs/METADATA.md` says the same for people.
//!
//! | key | value |
//! |---|---|
//! | `f` | format number, namespace check |
//! | `s` name | setting: opaque bytes, sealed by whoever keeps them |
//! | `b` name | bucket |
//! | `c` bucket | counters: objects, bytes, bytes of upload parts |
//! | `o` bucket key | object head |
//! | `m` version end | part of an object of many parts, by the object offset of its end |
//! | `p` run end | page of up to 1,024 blocks of a run, by the run offset of its end |
//! | `u` bucket key 00 upload | unfinished upload |
//! | `v` upload number | finished part of an upload |
//! | `w` upload | counter: changes to the upload's parts |
//! | `l` run | run whose object is gone and whose references are still to be dropped |
//! | `k` digest | block: stripe, slot, references |
//! | `t` stripe | stripe: version, policy, shards |
//! | `x` stripe | tombstone of a released stripe: when |
//! | `g` stripe | completion queue: a stripe with shards that wait for a node |
//! | `q` node stripe | commit queue: blocks that a node shall keep |
//! | `r` node stripe | release queue: blocks that a node may let go |
//! | `n` number | node |
//! | `i` node id | number of the node |
//! | `i` | the next number |
//! | `Rp` stripe | packing queue: since when a stripe is short or has dead blocks |
//! | `Ri` stripe | claims that the packer made ahead of its transaction |
//! | `Rd` node digest | a shard that its node was found not to hold: when, and of which stripe |
//! | `Ro` node | since when a node is silent |
//! | `Rs` node | its retrieval score |
//! | `Ra` node agreement | an agreement that was followed by another: until when it runs |
//! | `y` name 00 | lease: who owns it, and by which fence |
//! | `y` name 01 | lease: until when |
//! | `z` key 00 day | counters: requests, refusals, bytes in, bytes out of an access key on a day |
//! | `Se` bucket setting | what a bucket is told beyond its row: CORS, policy, lifecycle, tags |
//! | `Sh` bucket key 00 age version | version that is not the current one, or a delete marker |
//! | `Sg` version | grave: a deleted version that is still read |
//! | `Sc` upload | completed upload, so that completing again finds what it made |
//! | `Sr` run | how many more objects than one share a run |
//! | `Sq` node stripe | retention queue: until when a node must keep which blocks |
//! | `Su` stripe | until when the stripe's blocks are retained |
//! | `Si` version | a locked version whose blocks are still to be put into the retention queue |
//!
//! bucket is 8 bytes, version, upload and run 16, stripe 16, digest 32, node id 32; end is a big-endian `u64`,
//! node and number a big-endian `u32`, the number of a part a big-endian `u16`. Pages and parts are keyed by
//! where they *end*, so that the one that holds offset `x` is the first row from `x + 1` on: seeking is one
//! forward scan of one row, whatever the lengths of blocks and parts.

use holdfast_protocol::Digest;
use holdfast_protocol::record::StripeId;

use super::model::{BucketId, VersionId};

/// The format this release writes, and the newest it reads.
pub const FORMAT: u64 = 1;
/// Lines of a listing page.
pub const LIST_MAX: usize = 1000;
/// Parts of an upload.
pub const PART_NUMBER_MAX: u16 = 10_000;
/// Least bytes of every part but the last.
pub const PART_LEN_MIN: u64 = 5 * 1024 * 1024;
/// A single part whose blocks are at most this many is listed in the object head itself. Eight blocks of
/// 1 MiB take 256 bytes, so that the head of a small object stays one small row.
pub const INLINE_BLOCKS_MAX: usize = 8;
/// Runs of more blocks than this are not unlinked in the transaction that drops their object, but page by page
/// afterwards, so that one DELETE never makes a transaction of gigabytes.
pub const UNLINK_AT_ONCE_MAX: u64 = 8192;
/// Bytes of names and values of headers and user metadata together. S3 allows 8 KiB of headers.
pub const ATTRIBUTES_LEN_MAX: usize = 16 * 1024;
/// Bytes of an object's key, as in S3.
pub const OBJECT_KEY_LEN_MAX: usize = 1024;
/// A tombstone of a released stripe outlives every upload that may still bring the stripe along: leases of its
/// blocks end after an hour, so after a week nobody does.
pub const TOMBSTONE_MS: u64 = 7 * 24 * 3600 * 1000;

// An object's row key is a tag, the bucket and the key; an upload's adds a separator and its id.
const _: () = assert!(1 + 8 + OBJECT_KEY_LEN_MAX + 1 + 16 <= super::store::KEY_LEN_MAX);

fn join(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + parts.iter().map(|part| part.len()).sum::<usize>());
    key.push(tag);
    for part in parts {
        key.extend_from_slice(part);
    }
    key
}

pub(super) fn format() -> Vec<u8> {
    join(b'f', &[])
}

pub(super) fn setting(name: &str) -> Vec<u8> {
    join(b's', &[name.as_bytes()])
}

pub(super) fn bucket(name: &str) -> Vec<u8> {
    join(b'b', &[name.as_bytes()])
}

pub(super) fn buckets() -> Vec<u8> {
    join(b'b', &[])
}

pub(super) fn usage(bucket: BucketId) -> Vec<u8> {
    join(b'c', &[&bucket.0])
}

pub(super) fn object(bucket: BucketId, key: &str) -> Vec<u8> {
    join(b'o', &[&bucket.0, key.as_bytes()])
}

pub(super) fn objects(bucket: BucketId) -> Vec<u8> {
    join(b'o', &[&bucket.0])
}

pub(super) const UPLOAD_PARTS: u8 = b'v';
pub(super) const UNLINKED: u8 = b'l';
pub(super) const BLOCKS: u8 = b'k';
pub(super) const STRIPES: u8 = b't';
pub(super) const TOMBSTONES: u8 = b'x';
pub(super) const COMPLETIONS: u8 = b'g';
pub(super) const COMMITS: u8 = b'q';
pub(super) const RELEASES: u8 = b'r';
pub(super) const NODES: u8 = b'n';
pub(super) const PARTS: u8 = b'm';
pub(super) const PAGES: u8 = b'p';
pub(super) const KEY_DAYS: u8 = b'z';

/// Bytes in front of an object key in an object's row key.
pub(super) const OBJECT_PREFIX_LEN: usize = 9;

pub(super) fn part(version: VersionId, end: u64) -> Vec<u8> {
    join(b'm', &[&version.0, &end.to_be_bytes()])
}

pub(super) fn parts(version: VersionId) -> Vec<u8> {
    join(b'm', &[&version.0])
}

pub(super) fn page(run: VersionId, end: u64) -> Vec<u8> {
    join(b'p', &[&run.0, &end.to_be_bytes()])
}

pub(super) fn pages(run: VersionId) -> Vec<u8> {
    join(b'p', &[&run.0])
}

pub(super) fn upload(bucket: BucketId, key: &str, upload: VersionId) -> Vec<u8> {
    join(b'u', &[&bucket.0, key.as_bytes(), &[0], &upload.0])
}

pub(super) fn uploads(bucket: BucketId) -> Vec<u8> {
    join(b'u', &[&bucket.0])
}

pub(super) fn upload_part(upload: VersionId, number: u16) -> Vec<u8> {
    join(b'v', &[&upload.0, &number.to_be_bytes()])
}

pub(super) fn upload_parts(upload: VersionId) -> Vec<u8> {
    join(b'v', &[&upload.0])
}

pub(super) fn unlinked(run: VersionId) -> Vec<u8> {
    join(b'l', &[&run.0])
}

pub(super) fn block(digest: &Digest) -> Vec<u8> {
    join(b'k', &[&digest.0])
}

pub(super) fn stripe(stripe: StripeId) -> Vec<u8> {
    join(b't', &[&stripe.0])
}

pub(super) fn tombstone(stripe: StripeId) -> Vec<u8> {
    join(b'x', &[&stripe.0])
}

pub(super) fn completion(stripe: StripeId) -> Vec<u8> {
    join(b'g', &[&stripe.0])
}

pub(super) fn queued(queue: u8, node: u32, stripe: StripeId) -> Vec<u8> {
    join(queue, &[&node.to_be_bytes(), &stripe.0])
}

pub(super) fn queue_of(queue: u8, node: u32) -> Vec<u8> {
    join(queue, &[&node.to_be_bytes()])
}

pub(super) fn node(number: u32) -> Vec<u8> {
    join(b'n', &[&number.to_be_bytes()])
}

pub(super) fn node_number(id: &holdfast_protocol::NodeId) -> Vec<u8> {
    join(b'i', &[id.as_bytes()])
}

/// Sorts before every node's own row of the same table.
pub(super) fn next_node_number() -> Vec<u8> {
    join(b'i', &[])
}

/// Changes to an upload's parts, counted so that completing it can rely on none having come between.
pub(super) fn upload_changes(upload: VersionId) -> Vec<u8> {
    join(b'w', &[&upload.0])
}

/// The tables of background work share one tag; the second byte tells them apart.
pub(super) const PACKING: [u8; 2] = *b"Rp";
pub(super) const PACK_INTENTS: [u8; 2] = *b"Ri";
pub(super) const DAMAGE: [u8; 2] = *b"Rd";
pub(super) const OUTAGES: [u8; 2] = *b"Ro";
pub(super) const FORMER_AGREEMENTS: [u8; 2] = *b"Ra";
pub(super) const INVITES: [u8; 2] = *b"Rv";

pub(super) fn invite(id: [u8; 16]) -> Vec<u8> {
    join(b'R', &[b"v", &id])
}

pub(super) const RETRIEVAL_SCORES: [u8; 2] = *b"Rs";

pub(super) fn retrieval_score(node: &holdfast_protocol::NodeId) -> Vec<u8> {
    join(b'R', &[b"s", node.as_bytes()])
}

pub(super) fn packing(stripe: StripeId) -> Vec<u8> {
    join(b'R', &[b"p", &stripe.0])
}

pub(super) fn pack_intent(stripe: StripeId) -> Vec<u8> {
    join(b'R', &[b"i", &stripe.0])
}

pub(super) fn damage(node: &holdfast_protocol::NodeId, digest: &Digest) -> Vec<u8> {
    join(b'R', &[b"d", node.as_bytes(), &digest.0])
}

pub(super) fn outage(node: &holdfast_protocol::NodeId) -> Vec<u8> {
    join(b'R', &[b"o", node.as_bytes()])
}

pub(super) fn former_agreement(
    node: &holdfast_protocol::NodeId,
    agreement: &holdfast_protocol::record::AgreementId,
) -> Vec<u8> {
    join(b'R', &[b"a", node.as_bytes(), &agreement.0])
}

/// Sub-tables of what S3 has beyond objects and uploads.
pub(super) const SETTINGS: [u8; 2] = *b"Se";
pub(super) const HISTORY: [u8; 2] = *b"Sh";
pub(super) const GRAVES: [u8; 2] = *b"Sg";
pub(super) const COMPLETED: [u8; 2] = *b"Sc";
pub(super) const SHARES: [u8; 2] = *b"Sr";
pub(super) const RETENTIONS: [u8; 2] = *b"Sq";
pub(super) const RETAINED: [u8; 2] = *b"Su";
pub(super) const LOCKED: [u8; 2] = *b"Si";

/// Bytes in front of an object key in a version's row key, and behind it: a separator, the age and the version.
pub(super) const HISTORY_PREFIX_LEN: usize = 10;
pub(super) const HISTORY_SUFFIX_LEN: usize = 1 + 8 + 16;
/// How long a completed upload is remembered for clients that complete it again.
pub const COMPLETED_MS: u64 = 7 * 24 * 3600 * 1000;

const _: () =
    assert!(HISTORY_PREFIX_LEN + OBJECT_KEY_LEN_MAX + HISTORY_SUFFIX_LEN <= super::store::KEY_LEN_MAX);

fn join_sub(table: [u8; 2], parts: &[&[u8]]) -> Vec<u8> {
    join(table[0], &[&[&table[1..]], parts].concat())
}

pub(super) fn sub_table(table: [u8; 2]) -> Vec<u8> {
    table.to_vec()
}

pub(super) fn bucket_setting(bucket: BucketId, setting: u8) -> Vec<u8> {
    join_sub(SETTINGS, &[&bucket.0, &[setting]])
}

pub(super) fn history(bucket: BucketId) -> Vec<u8> {
    join_sub(HISTORY, &[&bucket.0])
}

/// All older versions of a key, the newest first.
pub(super) fn history_of(bucket: BucketId, key: &str) -> Vec<u8> {
    join_sub(HISTORY, &[&bucket.0, key.as_bytes(), &[0]])
}

/// One older version. Newer ones sort before older ones.
pub(super) fn history_row(bucket: BucketId, key: &str, modified_ms: u64, version: VersionId) -> Vec<u8> {
    join_sub(HISTORY, &[&bucket.0, key.as_bytes(), &[0], &(u64::MAX - modified_ms).to_be_bytes(), &version.0])
}

pub(super) fn grave(version: VersionId) -> Vec<u8> {
    join_sub(GRAVES, &[&version.0])
}

pub(super) fn completed(upload: VersionId) -> Vec<u8> {
    join_sub(COMPLETED, &[&upload.0])
}

pub(super) fn share(run: VersionId) -> Vec<u8> {
    join_sub(SHARES, &[&run.0])
}

pub(super) fn retention(node: u32, stripe: StripeId) -> Vec<u8> {
    join_sub(RETENTIONS, &[&node.to_be_bytes(), &stripe.0])
}

pub(super) fn retentions_of(node: u32) -> Vec<u8> {
    join_sub(RETENTIONS, &[&node.to_be_bytes()])
}

pub(super) fn locked(version: VersionId) -> Vec<u8> {
    join_sub(LOCKED, &[&version.0])
}

pub(super) fn retained(stripe: StripeId) -> Vec<u8> {
    join_sub(RETAINED, &[&stripe.0])
}

/// The whole table behind `tag`.
pub(super) fn table(tag: u8) -> Vec<u8> {
    vec![tag]
}

/// Who owns a lease, and by which fence. Changes only when the owner does.
pub(super) fn lease_owner(name: &str) -> Vec<u8> {
    join(b'y', &[name.as_bytes(), &[0]])
}

/// Until when a lease runs. Changes with every renewal.
pub(super) fn lease_end(name: &str) -> Vec<u8> {
    join(b'y', &[name.as_bytes(), &[1]])
}

/// Counts of an access key on a day.
pub(super) fn key_day(key: &str, day: u32) -> Vec<u8> {
    join(KEY_DAYS, &[key.as_bytes(), &[0], &day.to_be_bytes()])
}

/// Counts of an access key.
pub(super) fn key_days(key: &str) -> Vec<u8> {
    join(KEY_DAYS, &[key.as_bytes(), &[0]])
}
