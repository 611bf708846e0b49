//! The extent store, in both I/O modes, on disks that behave and disks that do not.

// The lint excepts test functions only, not what they share.
#![allow(clippy::unwrap_used)]

#[path = "store/crash.rs"]
mod crash;
#[path = "store/crowd.rs"]
mod crowd;
#[path = "store/damage.rs"]
mod damage;
#[path = "store/disks.rs"]
mod disks;
#[path = "store/faults.rs"]
mod faults;
#[path = "store/fixtures.rs"]
mod fixtures;
#[path = "store/inventory.rs"]
mod inventory;
#[path = "store/lives.rs"]
mod lives;
#[path = "store/model.rs"]
mod model;
#[path = "store/support.rs"]
mod support;
