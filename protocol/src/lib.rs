//! The words that every part of Holdfast shares: ids, content addresses, signed records, messages,
//! framing, limits and the transport.
//!
//! This crate decides nothing and stores nothing. It owns what travels between peers and what is
//! signed, so that nodes, gateways, auditors and clients can disagree about policy but never about bytes.

pub mod cbor;
pub mod digest;
pub mod framing;
pub mod key;
pub mod limits;
pub mod message;
pub mod record;
pub mod rpc;
pub mod time;
pub mod transport;

pub use digest::{BlockLen, Digest};
pub use key::{NamespaceId, NodeId, OperatorId, PublicKey, Signature, SigningKey};
