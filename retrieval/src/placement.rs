//! Placement: which nodes a stripe's shards go to.

pub mod domain;

pub use domain::{FailureDomain, Network};
