//! Receipts: one signature for all puts of a commit group under an agreement.
//!
//! One task owns the queue. Puts that one sync made durable wake at about the same time and meet here;
//! whatever waits when the task looks is signed together. A straggler of the same group gets a receipt of its
//! own, which is as good.

use std::collections::BTreeMap;
use std::sync::Arc;

use holdfast_protocol::limits::RECEIPT_BLOCKS_MAX;
use holdfast_protocol::message::{Refusal, RefusalReason};
use holdfast_protocol::record::{AgreementId, Receipt, ReceiptBlock, Signed, Unverified};
use holdfast_protocol::time::Clock;
use holdfast_protocol::{BlockLen, Digest, NodeId, SigningKey};
use tokio::sync::{mpsc, oneshot};

use super::limits::RECEIPT_QUEUE_MAX;
use crate::metric;
use crate::store::CommitGroupId;

/// A receipt that several puts share.
pub(crate) type SharedReceipt = Arc<Unverified<Receipt>>;

/// A block that is durable and wants a receipt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    pub(crate) agreement: AgreementId,
    pub(crate) group: CommitGroupId,
    pub(crate) lease_until_ms: u64,
    pub(crate) term_until_ms: u64,
    pub(crate) digest: Digest,
    pub(crate) len: BlockLen,
}

/// Where puts come for their receipts.
pub(crate) struct Receipts {
    queue: mpsc::Sender<(Held, oneshot::Sender<SharedReceipt>)>,
}

impl Receipts {
    /// Starts the signing task; it ends when this is dropped, after what was queued.
    pub(crate) fn start(key: Arc<SigningKey>, clock: Arc<dyn Clock>) -> Self {
        let (queue, waiting) = mpsc::channel(RECEIPT_QUEUE_MAX);
        tokio::spawn(sign_all(key, clock, waiting));
        Self { queue }
    }

    /// A receipt that lists `held`.
    pub(crate) async fn sign(&self, held: Held) -> Result<SharedReceipt, Refusal> {
        let (reply, receipt) = oneshot::channel();
        let gone = || Refusal::new(RefusalReason::Stopping, "the node is stopping");
        self.queue.send((held, reply)).await.map_err(|_| gone())?;
        receipt.await.map_err(|_| gone())
    }
}

async fn sign_all(
    key: Arc<SigningKey>,
    clock: Arc<dyn Clock>,
    mut waiting: mpsc::Receiver<(Held, oneshot::Sender<SharedReceipt>)>,
) {
    let mut batch = Vec::with_capacity(RECEIPT_BLOCKS_MAX);
    while waiting.recv_many(&mut batch, RECEIPT_BLOCKS_MAX).await > 0 {
        // Those that the same sync woke are on their way: let them run before the pen is taken up.
        tokio::task::yield_now().await;
        while batch.len() < RECEIPT_BLOCKS_MAX
            && let Ok(next) = waiting.try_recv()
        {
            batch.push(next);
        }
        let (held, replies): (Vec<_>, Vec<_>) = batch.drain(..).unzip();
        let receipts = sign(&key, &held, clock.now_ms());
        for (reply, receipt) in replies.into_iter().zip(receipts) {
            // A put whose peer has gone does not wait any longer; its block is durable all the same.
            let _ = reply.send(receipt);
        }
    }
}

/// Signs one receipt per agreement, group and lease; answers in the order of `held`, which has at most
/// [`RECEIPT_BLOCKS_MAX`] entries.
fn sign(key: &SigningKey, held: &[Held], now_ms: u64) -> Vec<SharedReceipt> {
    let name = |held: &Held| (held.agreement, held.group, held.lease_until_ms, held.term_until_ms);
    let mut drafts: BTreeMap<_, Vec<ReceiptBlock>> = BTreeMap::new();
    for one in held {
        let blocks = drafts.entry(name(one)).or_default();
        let block = ReceiptBlock(one.digest, one.len);
        if !blocks.contains(&block) {
            blocks.push(block);
        }
    }
    let mut signed = BTreeMap::new();
    for (draft, blocks) in drafts {
        metrics::counter!(metric::RECEIPTS).increment(1);
        metrics::counter!(metric::RECEIPT_BLOCKS).increment(blocks.len() as u64);
        let (agreement, _, lease_until_ms, term_until_ms) = draft;
        let receipt = Receipt {
            v: 1,
            node: NodeId(key.public()),
            agreement,
            blocks,
            lease_until_ms,
            // A put that ends with the agreement's last moment is still within it.
            issued_ms: now_ms.min(term_until_ms),
            term_until_ms,
        };
        signed.insert(draft, Arc::new(Signed::sign(receipt, key).to_wire()));
    }
    held.iter().map(|one| signed[&name(one)].clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(agreement: u8, group: u64, block: u8) -> Held {
        Held {
            agreement: AgreementId([agreement; 32]),
            group: CommitGroupId(group),
            lease_until_ms: 500,
            term_until_ms: 1_000,
            digest: Digest::of(&[block]),
            len: BlockLen::new(1).unwrap(),
        }
    }

    #[test]
    fn a_groups_puts_share_one_receipt_per_agreement() {
        let key = SigningKey::from_seed(&[1; 32]).unwrap();
        let puts = [held(1, 7, 1), held(2, 7, 2), held(1, 7, 3), held(1, 8, 4), held(1, 7, 1)];
        let receipts = sign(&key, &puts, 400);
        assert!(Arc::ptr_eq(&receipts[0], &receipts[2]));
        assert!(Arc::ptr_eq(&receipts[0], &receipts[4]));
        assert!(!Arc::ptr_eq(&receipts[0], &receipts[1]));
        assert!(!Arc::ptr_eq(&receipts[0], &receipts[3]));
        let first = receipts[0].verify_by(key.public()).unwrap();
        assert_eq!(first.record().blocks.len(), 2);
        for (put, receipt) in puts.iter().zip(&receipts) {
            assert!(receipt.verify().unwrap().record().covers(&put.digest, put.len));
        }
    }

    #[tokio::test]
    async fn puts_that_wait_together_are_signed_together() {
        let key = Arc::new(SigningKey::from_seed(&[1; 32]).unwrap());
        let clock = Arc::new(holdfast_protocol::time::SystemClock);
        let receipts = Receipts::start(key, clock);
        let all = (0..20u8).map(|block| receipts.sign(held(1, 1, block)));
        let signed = futures::future::try_join_all(all).await.unwrap();
        assert!(signed.windows(2).all(|pair| Arc::ptr_eq(&pair[0], &pair[1])));
    }
}
