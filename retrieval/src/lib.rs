//! Everything a reader or writer of the network needs: coding, placement, upload with a write quorum,
//! verified fetch, reconstruction and repair.
//!
//! Nothing that a node says leaves this crate unverified: bytes are hashed or proved against a digest from a
//! trusted record, receipts are checked against the node's key. This crate keeps no metadata; where blocks
//! live is told by its caller and told back to it.

pub mod block;
pub mod cache;
pub mod challenge;
pub mod cipher;
pub mod code;
pub mod direct;
pub mod fetch;
pub mod mount;
pub mod object;
pub mod pack;
pub mod placement;
pub mod plan;
pub mod pool;
pub mod reconcile;
pub mod repair;
pub mod surprise;
pub mod tag;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod transcript;
pub mod write;
