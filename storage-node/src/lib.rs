//! The storage node: extents on disk, an index that can be rebuilt, and the server in front of them.

pub mod audit;
pub mod disk;
pub mod disks;
pub mod metric;
pub mod node;
mod server;
pub mod store;

pub use node::{
    Admission, LeasePolicy, LeaseReport, Misbehaviour, Node, NodeConfig, NodeLimits, OpenNodeError,
};
