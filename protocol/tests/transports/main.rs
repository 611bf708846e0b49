//! One suite of promises for every transport, and what QUIC promises beside them.

#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]

mod conformance;
mod quic;
mod rpc;
mod world;
