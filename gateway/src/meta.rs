//! Metadata: buckets, objects, uploads, placements, nodes and the queues of background work, over one
//! ordered key-value schema.
//!
//! [`Meta`] owns every rule about rows: what is committed together, which reference counts what, which
//! rows are sealed under which key. It never touches block bytes and never talks to a node.

use std::sync::Arc;

use holdfast_protocol::time::Clock;

use crate::crypt::NamespaceKeys;

mod bucket;
mod check;
mod codec;
pub mod conformance;
mod error;
mod list;
mod model;
mod node;
mod object;
mod placement;
mod queue;
mod refs;
pub mod rocks;
mod row;
pub mod schema;
pub mod store;
mod upload;

pub use check::{CheckReport, Finding};
pub use error::{BucketError, MetaError, PlacementError, PutError, UploadError};
pub use model::*;
pub use rocks::{RocksConfig, RocksStore};
pub use store::{MetaStore, Precondition, StoreError, Transaction, TransactError, Write};

/// Typed access to one namespace's metadata. Cheap to share behind an `Arc`.
pub struct Meta {
    store: Arc<dyn MetaStore>,
    keys: NamespaceKeys,
    clock: Arc<dyn Clock>,
    nodes: node::NodeTable,
    /// Held by a writer that lost a race, so that losers retry one at a time instead of against each other.
    retry_turn: tokio::sync::Mutex<()>,
}
