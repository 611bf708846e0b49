//! The storage node: extents on disk, an index that can be rebuilt, and the server in front of them.

pub mod audit;
pub mod disk;
pub mod disks;
pub mod metric;
pub mod node;
mod server;
pub mod store;
pub mod web;

pub use node::{
    Admission, Bandwidth, LeasePolicy, LeaseReport, Misbehaviour, Mode, Node, NodeConfig, NodeLimits,
    NodeReport, OpenNodeError, Problem, Reach, Schedule, Severity,
};
