//! Checking receipts. A node signs one receipt per commit group, so the shards of several stripes are often
//! answered with the same one: the signatures of the last few are remembered, and only listed blocks checked.

use std::collections::VecDeque;

use holdfast_protocol::record::{AgreementId, Receipt, SignatureError, Signed, Unverified};
use holdfast_protocol::{BlockLen, Digest, NodeId};
use parking_lot::Mutex;

/// Verified receipts remembered, of all nodes. A receipt is asked about again within milliseconds or never.
const REMEMBERED_MAX: usize = 64;

/// Why a receipt does not prove that a node holds a block.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReceiptError {
    #[error("the receipt is not signed by the node: {0}")]
    Signature(#[from] SignatureError),
    #[error("the receipt is about another {0}")]
    Other(&'static str),
    #[error("the receipt's lease has already ended")]
    Ended,
}

/// Verifies receipts, remembering the latest.
#[derive(Default)]
pub(super) struct ReceiptChecker {
    recent: Mutex<VecDeque<(Unverified<Receipt>, Signed<Receipt>)>>,
}

impl ReceiptChecker {
    /// The receipt proves that `node` holds the block under the agreement, from now on.
    pub(super) fn check(
        &self,
        receipt: &Unverified<Receipt>,
        node: NodeId,
        agreement: AgreementId,
        block: (Digest, BlockLen),
        now_ms: u64,
    ) -> Result<Signed<Receipt>, ReceiptError> {
        let signed = self.signature(receipt, node)?;
        let record = signed.record();
        if record.node != node {
            return Err(ReceiptError::Other("node"));
        }
        if record.agreement != agreement {
            return Err(ReceiptError::Other("agreement"));
        }
        if !record.covers(&block.0, block.1) {
            return Err(ReceiptError::Other("block"));
        }
        if record.lease_until_ms <= now_ms {
            return Err(ReceiptError::Ended);
        }
        Ok(signed)
    }

    fn signature(
        &self,
        receipt: &Unverified<Receipt>,
        node: NodeId,
    ) -> Result<Signed<Receipt>, SignatureError> {
        let known = self.recent.lock().iter().rev().find(|known| known.0 == *receipt).map(|k| k.1.clone());
        if let Some(known) = known {
            return Ok(known);
        }
        let signed = receipt.verify_by(node.key())?;
        let mut recent = self.recent.lock();
        if recent.len() >= REMEMBERED_MAX {
            recent.pop_front();
        }
        recent.push_back((receipt.clone(), signed.clone()));
        Ok(signed)
    }
}
