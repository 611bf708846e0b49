//! One suite of promises for every transport, and what QUIC promises beside them.

mod conformance;
mod quic;
mod rpc;
mod world;
