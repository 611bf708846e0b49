//! Receipt: a node's signed word that it holds blocks durably.

use serde::{Deserialize, Serialize};

use super::{AgreementId, Record, within};
use crate::cbor::DecodeError;
use crate::digest::{BlockLen, Digest};
use crate::key::NodeId;
use crate::limits::RECEIPT_BLOCKS_MAX;

/// One block of a receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiptBlock(pub Digest, pub BlockLen);

/// "I hold these blocks of these lengths, synced": once per commit group of the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Version.
    pub v: u16,
    /// Who holds; also the signer.
    pub node: NodeId,
    /// Under which agreement.
    pub agreement: AgreementId,
    /// What.
    pub blocks: Vec<ReceiptBlock>,
    /// Until when they are kept without a CommitBlocks.
    pub lease_until_ms: u64,
    /// When it was said.
    pub issued_ms: u64,
    /// Until when the node answers for them: the agreement's end.
    pub term_until_ms: u64,
}

impl Receipt {
    /// Whether the receipt lists this block with this length.
    pub fn covers(&self, digest: &Digest, len: BlockLen) -> bool {
        self.blocks.iter().any(|block| block.0 == *digest && block.1 == len)
    }
}

impl Record for Receipt {
    const NAME: &'static str = "receipt";
    const DOMAIN: &'static str = "holdfast receipt v1";
    fn version(&self) -> u16 {
        self.v
    }
    fn check_bounds(&self) -> Result<(), DecodeError> {
        within(!self.blocks.is_empty() && self.blocks.len() <= RECEIPT_BLOCKS_MAX, "blocks")?;
        within(self.issued_ms <= self.term_until_ms, "term_until_ms")
    }
}
