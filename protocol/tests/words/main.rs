//! What travels and what is signed: golden bytes, round trips, and decoders under attack.

mod golden;
mod hostile;
mod negotiation;
mod round_trip;
mod samples;
