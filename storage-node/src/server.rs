//! The server: connections in, sessions, requests answered. Every bound it keeps is named in `node/limits.rs`.
//!
//! A connection ([`link`]) says Hello ([`hello`]) and has a [`session`] from then on. Each request is a stream
//! ([`stream`]) with its own deadlines; its handler checks what the session may do and answers or refuses.
//! Nothing here touches the disk but through [`crate::store`] and the node's ledger.

pub(crate) mod agree;
pub(crate) mod audit;
pub(crate) mod budget;
pub(crate) mod claims;
mod declared;
pub(crate) mod heads;
pub(crate) mod hello;
pub(crate) mod lie;
pub(crate) mod link;
pub(crate) mod permit;
pub(crate) mod put;
pub(crate) mod read;
pub(crate) mod refusal;
pub(crate) mod session;
pub(crate) mod status;
pub(crate) mod strangers;
pub(crate) mod stream;
