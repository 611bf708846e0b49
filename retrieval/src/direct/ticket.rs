//! The ticket: what a client must know of an object to read it from the nodes. One page covers up to 1,024
//! blocks. Canonical DAG-CBOR; not signed, since it travels over the authenticated call that asked for it and
//! proves nothing: a false ticket yields blocks that do not exist, or bytes of another root CID.
//!
//! It may hold keys of plaintext: it is handed only to whoever may read that plaintext, and never printed.

use std::fmt;
use std::net::SocketAddr;

use holdfast_protocol::cbor::{self, DecodeError};
use holdfast_protocol::limits::{MANIFEST_PAGE_ENTRIES, NODE_ADDRESSES_MAX};
use holdfast_protocol::record::{PresentedGrant, Record, Stripe};
use holdfast_protocol::{BlockLen, Digest, NodeId};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use zeroize::Zeroize;

/// The version that this release writes.
pub const READ_TICKET_VERSION: u16 = 1;
/// Blocks of one page.
pub const TICKET_BLOCKS_MAX: usize = MANIFEST_PAGE_ENTRIES;
/// Nodes of one page: each block of it may lie on a stripe of its own.
pub const TICKET_NODES_MAX: usize = 16_384;
/// Parts that one page may touch: one a block.
const TICKET_PARTS_MAX: usize = TICKET_BLOCKS_MAX;

/// One page of an object's ticket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReadTicket {
    /// Version of the format.
    pub v: u16,
    /// Bytes of the object.
    pub size: u64,
    /// Its root CID in binary.
    #[serde(with = "serde_bytes")]
    pub root_cid: Vec<u8>,
    /// Names this version of the object to the gateway; opaque.
    #[serde(with = "serde_bytes")]
    pub version: Vec<u8>,
    /// The namespace, and with it the scope of the grant: tickets of one kind share a connection and a grant.
    pub kind: ByteBuf,
    /// Where this page's first block begins in the object.
    pub offset: u64,
    /// The page's blocks in order.
    pub blocks: Vec<(Digest, BlockLen)>,
    /// The parts that those blocks belong to, in order, without gaps.
    pub parts: Vec<TicketPart>,
    /// For each block the index of its stripe and its slot.
    pub places: Vec<(u32, u8)>,
    /// The stripes.
    pub stripes: Vec<Stripe>,
    /// Where the stripes' nodes are.
    pub nodes: Vec<NodeAddress>,
    /// Permission to read; absent for public objects.
    pub grant: Option<PresentedGrant>,
}

/// A part of the object, and how to decipher it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TicketPart {
    /// Where it starts in the object.
    pub offset: u64,
    /// Its bytes.
    pub len: u64,
    /// Its key; absent when plain.
    pub key: Option<PartKey>,
}

/// Key and nonce of a part. Wiped when dropped, never printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartKey {
    /// The AES-256 key.
    #[serde(with = "serde_bytes")]
    pub key: [u8; 32],
    /// The nonce half of the counter block.
    pub nonce: u64,
}

impl fmt::Debug for PartKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PartKey(redacted)")
    }
}

impl Drop for PartKey {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

/// Where a node is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeAddress {
    /// Which node.
    pub id: NodeId,
    /// Its addresses, best first.
    pub addresses: Vec<SocketAddr>,
}

/// Why a ticket cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TicketError {
    /// It is no ticket of a version that we know.
    #[error("it cannot be read")]
    Decode(#[from] DecodeError),
    /// It contradicts itself.
    #[error("its {field} contradict the rest of it")]
    Contradiction {
        /// What.
        field: &'static str,
    },
    /// It leaves out what was asked for.
    #[error("it does not cover byte {offset}")]
    Gap {
        /// The byte.
        offset: u64,
    },
}

impl TicketError {
    /// Whether the same call may succeed later: no.
    pub fn is_retryable(&self) -> bool {
        false
    }
}

impl ReadTicket {
    /// The canonical bytes.
    pub fn encode(&self) -> Vec<u8> {
        cbor::encode(self)
    }

    /// Reads and checks a page.
    pub fn decode(bytes: &[u8]) -> Result<Self, TicketError> {
        let ticket: Self = cbor::decode(bytes)?;
        if ticket.v == 0 || ticket.v > READ_TICKET_VERSION {
            let (found, newest) = (ticket.v, READ_TICKET_VERSION);
            return Err(DecodeError::Version { record: "read ticket", found, newest }.into());
        }
        ticket.check()?;
        Ok(ticket)
    }

    /// Where the page ends in the object.
    pub fn end(&self) -> u64 {
        let bytes: u64 = self.blocks.iter().map(|(_, len)| u64::from(len.bytes())).sum();
        self.offset.saturating_add(bytes)
    }

    fn check(&self) -> Result<(), TicketError> {
        let holds =
            |holds: bool, field| if holds { Ok(()) } else { Err(TicketError::Contradiction { field }) };
        holds(self.blocks.len() <= TICKET_BLOCKS_MAX, "blocks")?;
        holds(self.offset <= self.size && self.end() <= self.size, "blocks")?;
        holds(self.size == 0 || !self.blocks.is_empty(), "blocks")?;
        holds(self.places.len() == self.blocks.len(), "places")?;
        holds(self.parts.len() <= TICKET_PARTS_MAX, "parts")?;
        let mut at = self.parts.first().map_or(0, |part| part.offset);
        holds(at <= self.offset, "parts")?;
        for part in &self.parts {
            holds(part.offset == at && part.len <= self.size, "parts")?;
            at = at.checked_add(part.len).ok_or(TicketError::Contradiction { field: "parts" })?;
        }
        holds(at >= self.end(), "parts")?;
        holds(self.stripes.len() <= self.blocks.len(), "stripes")?;
        for stripe in &self.stripes {
            stripe.check_bounds()?;
        }
        for ((digest, len), (stripe, slot)) in self.blocks.iter().zip(&self.places) {
            let stripe = self.stripes.get(*stripe as usize);
            let shard = stripe.and_then(|stripe| stripe.shards.get(usize::from(*slot)).copied().flatten());
            holds(shard.is_some_and(|shard| shard.digest == *digest && shard.len == *len), "places")?;
        }
        holds(self.nodes.len() <= TICKET_NODES_MAX, "nodes")?;
        holds(self.nodes.iter().all(|node| node.addresses.len() <= NODE_ADDRESSES_MAX), "nodes")?;
        holds(self.root_cid.len() <= 64 && self.version.len() <= 64 && self.kind.len() <= 64, "ids")
    }
}
