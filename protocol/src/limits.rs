//! Every bound that peers must agree on, in one place, with its reason.

/// One kibibyte-exponent step: BLAKE3's chunk, the smallest thing that can be proved.
pub const CHUNK_LEN: u32 = 1024;
/// A group of 16 chunks: the leaf of the tree that nodes keep. Smaller leaves make hashing slower
/// (4 KiB: 2.6 GB/s a core, 16 KiB: 7.2), larger ones make small reads dearer.
pub const GROUP_LEN: u32 = 16 * CHUNK_LEN;
/// The longest block. One IPFS UnixFS leaf as Kubo writes it, and small enough to hold in memory per request.
pub const BLOCK_LEN_MAX: u32 = 1024 * 1024;
/// Groups of the longest block.
pub const GROUPS_MAX: usize = (BLOCK_LEN_MAX / GROUP_LEN) as usize;
/// Entries of a manifest page, and links of a UnixFS node.
pub const MANIFEST_PAGE_ENTRIES: usize = 1024;

/// A message header may be this long; the length is checked before anything is allocated.
pub const HEADER_LEN_MAX: usize = 64 * 1024;
/// Ranges that one ReadBlock may ask for.
pub const READ_RANGES_MAX: usize = 32;
/// Leaves (groups or chunks) that one ReadBlock may be answered with, so that the proofs fit the header.
pub const READ_LEAVES_MAX: usize = 128;
/// Claims that one HasBlocks, CommitBlocks, DeleteBlocks or RestoreBlocks may name.
pub const CLAIMS_PER_REQUEST_MAX: usize = 512;
/// Blocks that one receipt may list.
pub const RECEIPT_BLOCKS_MAX: usize = 256;
/// Scopes that one grant may open.
pub const GRANT_SCOPES_MAX: usize = 64;
/// Addresses that one node record may list.
pub const NODE_ADDRESSES_MAX: usize = 16;
/// Bytes of any free text in a record or a refusal.
pub const TEXT_LEN_MAX: usize = 1024;
/// Gateways that one invite may name.
pub const INVITE_GATEWAYS_MAX: usize = 8;
/// The longest invite as text: eight gateways of a usual URL's length, in base64.
pub const INVITE_TEXT_MAX: usize = 16 * 1024;
/// Lines of a node's deny-list; about 100 B each, all in memory.
pub const DENIED_MAX: usize = 65_536;
/// Data and parity shards of any code.
pub const SHARDS_MAX: usize = 64;
/// Heads that one GetHeads may be answered with: one per gateway instance of a namespace.
pub const HEADS_MAX: usize = 32;
/// A peer's clock may differ by this much before its signed times are refused.
pub const CLOCK_SKEW_MAX_MS: u64 = 5 * 60 * 1000;

/// Streams that a peer may have open on one connection at a time. A read of 64 KiB ranges by 16 clients
/// needs tens; beyond this the opener waits, which is what bounds a node's work per peer.
pub const STREAMS_PER_CONNECTION_MAX: usize = 256;

/// Entries of one inventory page: as many as fit a header.
pub const INVENTORY_PAGE_MAX: usize = 1024;
/// Leaves of one bucket of an inventory: 65,536 of these are far more than a node can hold.
pub const INVENTORY_BUCKET_MAX: u32 = 1 << 20;
/// Siblings of an inventory leaf at most: 20 levels within the largest bucket, 16 above it.
pub const INVENTORY_PATH_MAX: usize = 36;
/// Chunks that one epoch may draw from one node.
pub const DRAWS_MAX: usize = 64;
/// Bytes of the proofs of one answer: 64 draws of two chunks with paths and an inventory path each.
pub const ANSWER_BODY_MAX: u32 = 320 * 1024;
/// Blocks that one declaration may name.
pub const DECLARED_DIGESTS_MAX: usize = 512;
/// Declarations beside one commitment: one of lost blocks, one of refused ones.
pub const DECLARATIONS_MAX: usize = 2;
/// Auditors' words that a node shows with its commitment.
pub const COUNTERSIGNATURES_MAX: usize = 16;
/// Bytes of a beacon round's proof: a drand signature has 48, an embedded beacon 32 a member.
pub const BEACON_PROOF_MAX: usize = 16 * 32;
/// Bytes of a verdict's reason, for each draw.
pub const VERDICT_WHY_MAX: usize = 120;

/// A leaf's path in the longest block never exceeds ten parents (2^10 chunks).
pub const PATH_LEN_MAX: usize = 10;

// A full answer (128 leaves, each with a whole path) must fit one header beside its fixed fields.
const _: () = assert!(READ_LEAVES_MAX * PATH_LEN_MAX * 32 + 8 * READ_LEAVES_MAX + 2048 <= HEADER_LEN_MAX);
const _: () = assert!(READ_LEAVES_MAX >= GROUPS_MAX);
// Each listed claim takes at most 53 bytes of CBOR, each listed block 41. A DeleteBlocks carries its list once,
// inside the signed order.
const _: () = assert!(CLAIMS_PER_REQUEST_MAX * 53 + 4096 <= HEADER_LEN_MAX);
const _: () = assert!(RECEIPT_BLOCKS_MAX * 41 + 4096 <= HEADER_LEN_MAX);
// A head takes at most 320 bytes with its signature, the delegation beside it 400 and its label.
const _: () = assert!(HEADS_MAX * (720 + TEXT_LEN_MAX) + 4096 <= HEADER_LEN_MAX);
// Each entry of an inventory page takes at most 41 bytes, each declared digest 34, each countersignature 330 with
// its signature and the ids of two declarations.
const _: () = assert!(INVENTORY_PAGE_MAX * 41 + 4096 <= HEADER_LEN_MAX);
const _: () = assert!(
    DECLARATIONS_MAX * (DECLARED_DIGESTS_MAX * 34 + 400) + COUNTERSIGNATURES_MAX * 480 + 1024
        <= HEADER_LEN_MAX
);
// A draw's proof: two chunks, two paths, the inventory path and 200 bytes of names and fields.
const _: () = assert!(
    DRAWS_MAX * (2 * (CHUNK_LEN as usize + PATH_LEN_MAX * 32) + INVENTORY_PATH_MAX * 40 + 200)
        <= ANSWER_BODY_MAX as usize
);
// A verdict with a reason for every draw must fit a header beside the standing.
const _: () = assert!(DRAWS_MAX * (VERDICT_WHY_MAX + 80) + 4096 <= HEADER_LEN_MAX);
