//! Reconciliation: does a node's own inventory list what we believe it keeps for us?
//!
//! A node commits to an inventory before every audit draw; what it leaves out is never drawn. So the namespace pages
//! through what the node says it keeps under their agreement, and compares. What is left out is asked for: often it is
//! simply lost. If the node serves it all the same, or takes it again and signs a receipt, and the next page still
//! passes over it, then receipt and page contradict each other, both signed by the node: an [`Omission`], which
//! anybody can check. Only a deletion order that the node can show would excuse it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_protocol::limits::{CLOCK_SKEW_MAX_MS, INVENTORY_PAGE_MAX};
use holdfast_protocol::message::{BlockOutcome, CommitBlocks, InventoryQuery, PutBlock};
use holdfast_protocol::record::{
    AgreementId, ClaimRef, ClaimTag, InventoryPage, Receipt, ScopeId, SignatureError, Signed, Unverified,
};
use holdfast_protocol::{Digest, NodeId};
use serde::{Deserialize, Serialize};

use crate::block::BlockRef;
use crate::pool::NodePool;

/// One page, or one put, ends after this time.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// How long the node keeps a block that was put for a proof, without its CommitBlocks.
const LEASE_MS: u64 = 3_600_000;

/// What a page and our rows say differently, within the part that the page speaks of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Ours, and not listed.
    pub missing: Vec<Digest>,
    /// Listed, and not ours.
    pub extra: Vec<Digest>,
}

/// Compares a page with what is expected, in ascending order.
pub fn differ(page: &InventoryPage, expected: &[Digest]) -> Difference {
    let from = page.after.map_or(0, |after| expected.partition_point(|digest| *digest <= after));
    let spoken = expected[from..].iter().take_while(|digest| page.speaks_of(digest));
    let missing: Vec<Digest> = spoken.filter(|digest| !page.lists(digest)).copied().collect();
    let is_ours = |digest: &Digest| expected.binary_search(digest).is_ok();
    let extra = page.entries.iter().map(|entry| entry.0).filter(|digest| !is_ours(digest)).collect();
    Difference { missing, extra }
}

/// A receipt for a block, and a later page of the same agreement that passes over it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Omission {
    /// "I hold this block."
    pub receipt: Unverified<Receipt>,
    /// "This is all I hold."
    pub page: Unverified<InventoryPage>,
    /// The block.
    pub digest: Digest,
}

/// Why receipt and page do not contradict each other.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotProven {
    /// A signature does not hold, or they are not the same node's.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// They are about different nodes or agreements.
    #[error("receipt and page are about different {0}")]
    Apart(&'static str),
    /// The receipt does not list the block.
    #[error("the receipt does not list the block")]
    NotCovered,
    /// The page lists it, or does not reach it.
    #[error("the page lists the block, or says nothing of it")]
    NotOmitted,
    /// The page was not said after the receipt and within its term.
    #[error("the page is not from the time that the receipt is about")]
    Time,
}

impl NotProven {
    /// Whether the same two records can prove more later.
    pub fn is_retryable(&self) -> bool {
        false
    }
}

impl Omission {
    /// Checks the contradiction from the two records alone. Gives back who said both, under which agreement.
    pub fn verify(&self) -> Result<(NodeId, AgreementId), NotProven> {
        let receipt = self.receipt.verify()?;
        let said = receipt.record();
        let page = self.page.verify_by(said.node.key())?;
        let listed = page.record();
        if receipt.signer() != said.node.key() || listed.node != said.node {
            return Err(NotProven::Apart("nodes"));
        }
        if listed.agreement != said.agreement {
            return Err(NotProven::Apart("agreements"));
        }
        if !said.blocks.iter().any(|block| block.0 == self.digest) {
            return Err(NotProven::NotCovered);
        }
        if !listed.speaks_of(&self.digest) || listed.lists(&self.digest) {
            return Err(NotProven::NotOmitted);
        }
        if listed.issued_ms < said.issued_ms || listed.issued_ms >= said.term_until_ms {
            return Err(NotProven::Time);
        }
        Ok((said.node, said.agreement))
    }
}

/// Pages through inventories.
pub struct Reconciler {
    pool: Arc<NodePool>,
}

impl Reconciler {
    /// Over the nodes of a pool whose sessions are the namespace's.
    pub fn new(pool: Arc<NodePool>) -> Self {
        Self { pool }
    }

    /// The page behind `after`, signed by the node and about what was asked. The error says in words what was wrong.
    pub async fn page(
        &self,
        node: NodeId,
        agreement: AgreementId,
        after: Option<Digest>,
    ) -> Result<Signed<InventoryPage>, String> {
        let max = u32::try_from(INVENTORY_PAGE_MAX).unwrap_or(u32::MAX);
        let ask = async {
            let peer = self.pool.peer(node).await.map_err(|error| error.to_string())?;
            let query = InventoryQuery { agreement, after, max };
            peer.inventory(query).await.map_err(|error| error.to_string())
        };
        let reply =
            tokio::time::timeout(ANSWER_WITHIN, ask).await.map_err(|_| "no page in time".to_owned())??;
        let page = reply.page.verify_by(node.key()).map_err(|error| error.to_string())?;
        let said = page.record();
        let now_ms = self.pool.clock().now_ms();
        if said.node != node || said.agreement != agreement || said.after != after {
            return Err("the page is not the one that was asked for".to_owned());
        }
        if said.issued_ms.abs_diff(now_ms) > CLOCK_SKEW_MAX_MS {
            return Err("the page is from another time".to_owned());
        }
        Ok(page)
    }

    /// Puts a block that the inventory leaves out once more, which makes the node sign for it, commits it, and asks
    /// for the page again. `Ok(None)` when the node lists it now.
    pub async fn prove(
        &self,
        node: NodeId,
        agreement: AgreementId,
        block: BlockRef,
        bytes: Bytes,
        (tag, scope): (ClaimTag, Option<ScopeId>),
    ) -> Result<Option<Omission>, String> {
        let lease_until_ms = self.pool.clock().now_ms().saturating_add(LEASE_MS);
        let BlockRef { digest, len } = block;
        let request = PutBlock { agreement, digest, len, tag, scope, lease_until_ms, retain_until_ms: 0 };
        let claims = vec![ClaimRef(digest, tag)];
        let put = async {
            let peer = self.pool.peer(node).await.map_err(|error| error.to_string())?;
            let reply = peer.put_block(request, bytes).await.map_err(|error| error.to_string())?;
            let commit = CommitBlocks { agreement, claims, retain_until_ms: 0 };
            let outcomes = peer.commit_blocks(commit).await.map_err(|error| error.to_string())?;
            match outcomes.as_slice() {
                [BlockOutcome::Done | BlockOutcome::Already] => Ok(reply.receipt),
                _ => Err("the node did not commit the block".to_owned()),
            }
        };
        let receipt: Unverified<Receipt> =
            tokio::time::timeout(ANSWER_WITHIN, put).await.map_err(|_| "no receipt in time".to_owned())??;
        let page = self.page(node, agreement, before(&digest)).await?;
        if page.record().lists(&digest) {
            return Ok(None);
        }
        let omission = Omission { receipt, page: page.to_wire(), digest };
        omission.verify().map_err(|error| error.to_string())?;
        Ok(Some(omission))
    }
}

/// The key right before `digest`: a page asked from there begins with it.
fn before(digest: &Digest) -> Option<Digest> {
    let mut key = digest.0;
    for byte in key.iter_mut().rev() {
        let (lower, borrowed) = byte.overflowing_sub(1);
        *byte = lower;
        if !borrowed {
            return Some(Digest(key));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use holdfast_protocol::record::{InventoryEntry, ReceiptBlock, Record};
    use holdfast_protocol::{BlockLen, SigningKey};

    use super::*;
    use crate::testing::key;

    fn digest(seed: u8) -> Digest {
        Digest([seed; 32])
    }

    fn page(signer: &SigningKey, after: Option<u8>, listed: &[u8], last: bool) -> Signed<InventoryPage> {
        let page = InventoryPage {
            v: InventoryPage::VERSION,
            node: NodeId(signer.public()),
            agreement: AgreementId([1; 32]),
            epoch: None,
            root: None,
            after: after.map(digest),
            entries: listed.iter().map(|seed| InventoryEntry(digest(*seed), BlockLen::MAX)).collect(),
            last,
            issued_ms: 2000,
        };
        Signed::sign(page, signer)
    }

    fn receipt(signer: &SigningKey, listed: &[u8], issued_ms: u64) -> Signed<Receipt> {
        let receipt = Receipt {
            v: Receipt::VERSION,
            node: NodeId(signer.public()),
            agreement: AgreementId([1; 32]),
            blocks: listed.iter().map(|seed| ReceiptBlock(digest(*seed), BlockLen::MAX)).collect(),
            lease_until_ms: issued_ms + 10,
            issued_ms,
            term_until_ms: 9000,
        };
        Signed::sign(receipt, signer)
    }

    #[test]
    fn only_the_part_that_a_page_speaks_of_is_compared() {
        let node = key(1);
        let expected: Vec<Digest> = [1, 3, 5, 7, 9].map(digest).to_vec();
        let whole = page(&node, None, &[1, 3, 5, 7, 9], true);
        assert_eq!(differ(whole.record(), &expected), Difference::default());
        let part = page(&node, Some(3), &[4, 7], false);
        let difference = differ(part.record(), &expected);
        assert_eq!((difference.missing, difference.extra), (vec![digest(5)], vec![digest(4)]));
        let end = page(&node, Some(5), &[], true);
        assert_eq!(differ(end.record(), &expected).missing, [digest(7), digest(9)]);
    }

    #[test]
    fn a_receipt_and_a_later_page_that_passes_over_it_prove_an_omission() {
        let (node, other) = (key(1), key(2));
        let omission = |receipt: &Signed<Receipt>, page: &Signed<InventoryPage>, seed: u8| Omission {
            receipt: receipt.to_wire(),
            page: page.to_wire(),
            digest: digest(seed),
        };
        let (said, left_out) = (receipt(&node, &[5, 6], 1000), page(&node, None, &[4, 7], true));
        let proof = omission(&said, &left_out, 5);
        assert_eq!(proof.verify().unwrap(), (NodeId(node.public()), AgreementId([1; 32])));
        // It goes to anybody as bytes.
        let copy: Omission =
            holdfast_protocol::cbor::decode(&holdfast_protocol::cbor::encode(&proof)).unwrap();
        assert!(copy.verify().is_ok());
        let listed = page(&node, None, &[5], true);
        let short = page(&node, None, &[4], false);
        assert!(matches!(omission(&said, &listed, 5).verify(), Err(NotProven::NotOmitted)));
        assert!(matches!(omission(&said, &short, 5).verify(), Err(NotProven::NotOmitted)), "not reached");
        assert!(matches!(omission(&said, &left_out, 4).verify(), Err(NotProven::NotCovered)));
        let later = receipt(&node, &[5], 3000);
        assert!(matches!(omission(&later, &left_out, 5).verify(), Err(NotProven::Time)));
        let theirs = page(&other, None, &[4, 7], true);
        assert!(matches!(omission(&said, &theirs, 5).verify(), Err(NotProven::Signature(_))));
    }

    #[test]
    fn the_key_before_a_digest_is_the_next_lower_one() {
        let mut one = [0; 32];
        one[31] = 1;
        assert_eq!(before(&Digest(one)), Some(Digest([0; 32])));
        assert_eq!(before(&Digest([0; 32])), None);
        let mut carried = [0; 32];
        carried[30] = 1;
        let mut expected = [0; 32];
        expected[31] = 255;
        assert_eq!(before(&Digest(carried)), Some(Digest(expected)));
    }
}
