//! The node's server, over the memory transport and over QUIC: what it accepts, what it refuses, what it keeps.

#![allow(clippy::unwrap_used)]

#[path = "server/agreements.rs"]
mod agreements;
#[path = "server/claims.rs"]
mod claims;
#[path = "server/declared.rs"]
mod declared;
#[path = "server/hostile.rs"]
mod hostile;
#[path = "server/leases.rs"]
mod leases;
#[path = "server/lies.rs"]
mod lies;
#[path = "server/operator.rs"]
mod operator;
#[path = "server/permissions.rs"]
mod permissions;
#[path = "server/previous.rs"]
mod previous;
#[path = "server/puts.rs"]
mod puts;
#[path = "server/reads.rs"]
mod reads;
#[path = "server/stopping.rs"]
mod stopping;
#[path = "server/world.rs"]
mod world;
