//! BLAKE3's own tree as a proof of storage: one pass over a block gives its digest and the chaining
//! values of its 16 KiB groups, and from those any group or 1 KiB chunk is proved against the digest.
//!
//! This crate is pure: it reads no disk, no clock and no network, and it never trusts a number that
//! comes with an answer. Digest and length are the caller's, from a record it believes; everything else
//! is recomputed from the bytes.
//!
//! | file | owns |
//! |---|---|
//! | [`shape`] | which leaves a block has, how long each is, how long its path is |
//! | [`hash`] | the one pass: digest and group chaining values |
//! | [`node`] | a tree node and how two make a parent, for `rs_merkle` |
//! | [`tree`] | [`GroupTree`]: paths of groups and chunks |
//! | [`verify`] | one leaf, or one whole block, against a digest |
//! | [`reply`] | all leaves of an answer against the request that asked for them |
//! | [`inventory`] | the Merkle sum tree over everything that a node claims to hold |
//! | [`beacon`] | public randomness: drand's quicknet, and the embedded one |
//! | [`policy`] | a network's rules: epochs, draws, times |
//! | [`draw`] | which bytes an epoch asks for |
//! | [`answer`] | proving and judging what was drawn |
//! | [`score`] | scores and pay from verdicts, by published formulas |
//! | [`auditor`] | the auditor's mind: what to sign, log and ask |
//! | [`log`] | the audit log as static files, and checking a whole log again |
//! | [`consensus`] | what several auditors together say, and which of them lie |
//! | [`testing`] | nodes in memory, honest or not |

pub mod answer;
pub mod auditor;
pub mod beacon;
pub mod consensus;
pub mod draw;
pub mod hash;
pub mod inventory;
pub mod log;
pub mod node;
pub mod policy;
pub mod reply;
pub mod score;
pub mod shape;
pub mod testing;
pub mod tree;
pub mod verify;

pub use hash::{BlockHasher, hash_block};
pub use holdfast_protocol::message::{ByteRange, LeafPath, LeafUnit};
pub use reply::{VerifiedLeaves, verify_reply};
pub use shape::{RangeError, leaf_count, leaf_extent, leaves_of, path_len};
pub use tree::{GroupTree, ProveError, TreeError};
pub use verify::{VerifyError, verify_leaf, verify_whole};
