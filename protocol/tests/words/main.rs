//! What travels and what is signed: golden bytes, round trips, and decoders under attack.

#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]

mod audit;
mod golden;
mod hostile;
mod negotiation;
mod round_trip;
mod samples;
