//! The extent store, in both I/O modes, on disks that behave and disks that do not.

#[path = "store/crash.rs"]
mod crash;
#[path = "store/lives.rs"]
mod lives;
#[path = "store/model.rs"]
mod model;
#[path = "store/support.rs"]
mod support;
