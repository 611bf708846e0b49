//! Deny-list: what a node's operator refuses to serve or whom, signed by the node and kept on it.
//!
//! A refusal by this list is said as `denied`, with the bytes still there: it is never taken for a loss. The
//! signature is for those who ask later who decided, and when.

use serde::{Deserialize, Serialize};

use super::{Record, text_within, within};
use crate::cbor::DecodeError;
use crate::digest::Digest;
use crate::key::{NamespaceId, NodeId};
use crate::limits::DENIED_MAX;

/// What is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Denied {
    /// A block: neither taken nor served.
    Block(Digest),
    /// A peer by its TLS key, a gateway for example: no session.
    Peer(NodeId),
    /// Whoever acts for this namespace: no session, no new agreement.
    Namespace(NamespaceId),
}

/// One line of the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeniedLine {
    /// What.
    pub what: Denied,
    /// Why, for people.
    pub reason: String,
    /// Since when.
    pub since_ms: u64,
}

/// The list of one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DenyList {
    /// Version.
    pub v: u16,
    /// Whose list; also the signer.
    pub node: NodeId,
    /// The lines, by what they refuse, each once.
    pub lines: Vec<DeniedLine>,
    /// Highest wins.
    pub seq: u64,
    /// When it was signed.
    pub issued_ms: u64,
}

impl Record for DenyList {
    const NAME: &'static str = "deny list";
    const DOMAIN: &'static str = "holdfast deny list v1";
    fn version(&self) -> u16 {
        self.v
    }
    fn check_bounds(&self) -> Result<(), DecodeError> {
        within(self.lines.len() <= DENIED_MAX, "lines")?;
        within(self.lines.windows(2).all(|pair| pair[0].what < pair[1].what), "lines")?;
        self.lines.iter().try_for_each(|line| text_within(&line.reason, "reason"))
    }
}
