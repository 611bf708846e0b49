//! Whoever wants to know what a reader was served: transcripts of training runs, statistics.

use holdfast_protocol::NodeId;
use holdfast_protocol::message::ByteRange;

use crate::block::BlockRef;

/// Where served bytes came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ServedBy {
    /// The node that holds the block.
    Node(NodeId),
    /// Other shards of its stripe.
    Rebuilt,
    /// The local cache.
    Cache,
    /// A gateway, whose answer hashed to the block's digest.
    Gateway,
}

/// Told of every range that a reader was served, after it was verified. Must not block.
pub trait ReadObserver: Send + Sync + 'static {
    /// A range was served.
    fn served(&self, block: BlockRef, range: ByteRange, by: ServedBy);
}
