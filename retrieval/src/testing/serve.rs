//! The fake node's server side.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use holdfast_proofs::{hash_block, leaf_extent, leaves_of};
use holdfast_protocol::Digest;
use holdfast_protocol::framing::ByteQueue;
use holdfast_protocol::message::{
    BlockOutcome, ByteRange, CommitBlocks, DeletionOrder, HasBlocks, HasBlocksReply, Held, HelloReply,
    LeafUnit, NodeStatus, Outcomes, PutBlock, PutBlockReply, ReadBlock, ReadBlockReply, ReadPart, Refusal,
    RefusalReason, Reply, Request,
};
use holdfast_protocol::record::{
    AgreementId, ClaimRef, ClaimState, Receipt, ReceiptBlock, Record, Signed, SignedAgreement, Unverified,
};
use holdfast_protocol::rpc::{answer_hello, read_request, write_reply_with_body};
use holdfast_protocol::time::Clock;
use holdfast_protocol::transport::{BiStream, Connection};

use super::node::{Behaviour, FakeNode, StoredClaim};
use super::{CAPACITY, key, node_record};

type Answer = (Reply, Bytes);

impl FakeNode {
    /// Serves the streams that the other end of `connection` opens.
    pub async fn serve(self: Arc<Self>, connection: Arc<dyn Connection>) {
        while let Ok(stream) = connection.accept().await {
            let node = Arc::clone(&self);
            tokio::spawn(async move {
                // A stream that fails is the client's to notice.
                let _ = node.answer(stream).await;
            });
        }
    }

    async fn answer(&self, mut stream: BiStream) -> Option<()> {
        let mut buffered = ByteQueue::new();
        let request = read_request(stream.recv.as_mut(), &mut buffered).await.ok()??;
        let behaviour =
            if matches!(request, Request::Hello(_)) { Behaviour::Honest } else { self.behaviour().await };
        let moves_bytes = matches!(request, Request::PutBlock(_) | Request::ReadBlock(_));
        if let Behaviour::Slow(delay) = behaviour
            && moves_bytes
        {
            tokio::time::sleep(delay).await;
        }
        if behaviour == Behaviour::Garbage {
            let noise = Bytes::from_static(&[9, 0, 0, 0, 0xff, 0xfe, 0xfd, 1, 2, 3, 4, 5, 6]);
            stream.send.write(noise).await.ok()?;
            return stream.send.finish().ok();
        }
        let (reply, body) = match request {
            Request::PutBlock(put) => {
                self.puts.fetch_add(1, Ordering::Relaxed);
                let body = buffered.read_exact(stream.recv.as_mut(), put.len.as_usize()).await.ok()?;
                bare(self.put(&put, body, behaviour))
            }
            Request::ReadBlock(read) => {
                self.reads.fetch_add(1, Ordering::Relaxed);
                self.read(&read, behaviour)
            }
            request => bare(self.other(request)),
        };
        if behaviour == Behaviour::Truncate && moves_bytes && !body.is_empty() {
            let cut = body.slice(..body.len() - 1);
            return write_reply_with_body(stream.send.as_mut(), &reply, vec![cut]).await.ok();
        }
        write_reply_with_body(stream.send.as_mut(), &reply, vec![body]).await.ok()
    }

    fn other(&self, request: Request) -> Reply {
        match request {
            Request::Hello(hello) => match answer_hello(&hello) {
                Err(refusal) => Reply::Refused(refusal),
                Ok(version) => Reply::Hello(HelloReply {
                    version,
                    node_record: Some(node_record(&self.key, self.clock.now_ms()).to_wire()),
                    agreement: self.agreement.lock().as_ref().map(SignedAgreement::to_wire),
                    now_ms: self.clock.now_ms(),
                    software: "fake node".into(),
                }),
            },
            Request::Agree(agree) => match agree.terms.verify() {
                Ok(terms) => match SignedAgreement::countersign(terms, &self.key) {
                    Ok(agreed) => {
                        *self.agreement.lock() = Some(agreed.clone());
                        Reply::Agree(agreed.to_wire())
                    }
                    Err(error) => refused(RefusalReason::Forbidden, &error.to_string()),
                },
                Err(error) => refused(RefusalReason::Forbidden, &error.to_string()),
            },
            Request::CommitBlocks(commit) => self.counted(|| self.commit(&commit)),
            Request::DeleteBlocks(delete) => self.counted(|| self.delete(&delete.order)),
            Request::RestoreBlocks(restore) => self.counted(|| {
                each(&restore.claims, |claim| self.turn(restore.agreement, claim, ClaimState::Live))
            }),
            Request::HasBlocks(has) => Reply::HasBlocks(HasBlocksReply {
                held: has.claims.iter().map(|claim| self.held(&has, *claim)).collect(),
                disclaimer: None,
            }),
            Request::Status(_) => Reply::Status(NodeStatus {
                capacity_bytes: CAPACITY,
                free_bytes: CAPACITY,
                blocks: self.block_count() as u64,
                ..NodeStatus::default()
            }),
            _ => refused(RefusalReason::Malformed, "a fake node does not do that"),
        }
    }

    fn counted(&self, work: impl FnOnce() -> Reply) -> Reply {
        self.orders.fetch_add(1, Ordering::Relaxed);
        work()
    }

    fn agreement_id(&self) -> Option<AgreementId> {
        self.agreement.lock().as_ref().map(SignedAgreement::id)
    }

    fn put(&self, put: &PutBlock, body: Bytes, behaviour: Behaviour) -> Reply {
        if let Behaviour::RefuseWrites(reason) = behaviour {
            return refused(reason, "told to refuse writes");
        }
        if self.agreement_id() != Some(put.agreement) {
            return refused(RefusalReason::NoAgreement, "not our agreement");
        }
        if Digest::of(&body) != put.digest {
            return refused(RefusalReason::DigestMismatch, "other bytes than announced");
        }
        let existed = self.blocks.lock().insert(put.digest, body).is_some();
        let claim = StoredClaim {
            state: ClaimState::Provisional,
            scope: put.scope,
            lease_until_ms: put.lease_until_ms,
            retain_until_ms: put.retain_until_ms,
        };
        self.claims.lock().entry((put.agreement, ClaimRef(put.digest, put.tag))).or_insert(claim);
        let now_ms = self.clock.now_ms();
        let digest = if behaviour == Behaviour::EmptyReceipts { Digest([0; 32]) } else { put.digest };
        let receipt = Receipt {
            v: Receipt::VERSION,
            node: self.id(),
            agreement: put.agreement,
            blocks: vec![ReceiptBlock(digest, put.len)],
            lease_until_ms: put.lease_until_ms,
            issued_ms: now_ms,
            term_until_ms: now_ms + 365 * 24 * 3_600_000,
        };
        let forged = key(u64::MAX);
        let signer = if behaviour == Behaviour::ForgeReceipts { &forged } else { &self.key };
        Reply::PutBlock(PutBlockReply { existed, receipt: Signed::sign(receipt, signer).to_wire() })
    }

    fn read(&self, read: &ReadBlock, behaviour: Behaviour) -> Answer {
        if let Behaviour::RefuseReads(reason) = behaviour {
            return (refused(reason, "told to refuse reads"), Bytes::new());
        }
        let Some(block) = self.block(&read.digest) else {
            return (refused(RefusalReason::NotFound, "no such block here"), Bytes::new());
        };
        let (mut reply, mut body) = match &read.part {
            ReadPart::Whole => (ReadBlockReply { body_len: 0, paths: Vec::new() }, block),
            ReadPart::Leaves { unit, ranges } => match leaves(&block, *unit, ranges, behaviour) {
                Some(found) => found,
                None => return (refused(RefusalReason::Range, "not in this block"), Bytes::new()),
            },
        };
        match behaviour {
            Behaviour::FlipBit => {
                let mut bytes = BytesMut::from(body.as_ref());
                let middle = bytes.len() / 2;
                bytes[middle] ^= 0x10;
                body = bytes.freeze();
            }
            Behaviour::OtherBytes => body = Bytes::from(vec![0xee; body.len()]),
            Behaviour::WrongLength => {
                body = if body.len() > 1 { body.slice(..body.len() - 1) } else { Bytes::from_static(b"xx") }
            }
            _ => {}
        }
        reply.body_len = u32::try_from(body.len()).unwrap_or(u32::MAX);
        (Reply::ReadBlock(reply), body)
    }

    fn commit(&self, commit: &CommitBlocks) -> Reply {
        each(&commit.claims, |claim| {
            let outcome = self.turn(commit.agreement, claim, ClaimState::Live);
            if outcome != BlockOutcome::Absent {
                return outcome;
            }
            // Another claim of the agreement on the same block lets a new one be made.
            let mut claims = self.claims.lock();
            let other = claims
                .iter()
                .find(|((agreement, other), _)| *agreement == commit.agreement && other.0 == claim.0)
                .map(|(_, stored)| *stored);
            let Some(other) = other else { return BlockOutcome::Absent };
            claims.insert((commit.agreement, claim), StoredClaim { state: ClaimState::Live, ..other });
            BlockOutcome::Done
        })
    }

    fn delete(&self, order: &Unverified<DeletionOrder>) -> Reply {
        let Ok(order) = order.verify() else {
            return refused(RefusalReason::Forbidden, "the order's signature does not hold");
        };
        let order = order.record();
        each(&order.claims, |claim| {
            let retained = self
                .claims
                .lock()
                .get(&(order.agreement, claim))
                .is_some_and(|stored| stored.retain_until_ms > self.clock.now_ms());
            if retained {
                return BlockOutcome::Retained;
            }
            self.turn(order.agreement, claim, ClaimState::Trash)
        })
    }

    fn turn(&self, agreement: AgreementId, claim: ClaimRef, state: ClaimState) -> BlockOutcome {
        match self.claims.lock().get_mut(&(agreement, claim)) {
            None => BlockOutcome::Absent,
            Some(stored) if stored.state == state => BlockOutcome::Already,
            Some(stored) => {
                stored.state = state;
                BlockOutcome::Done
            }
        }
    }

    fn held(&self, has: &HasBlocks, claim: ClaimRef) -> Held {
        match self.claims.lock().get(&(has.agreement, claim)).map(|stored| stored.state) {
            _ if self.block(&claim.0).is_none() => Held::Absent,
            None => Held::Absent,
            Some(ClaimState::Provisional) => Held::Provisional,
            Some(ClaimState::Live) => Held::Live,
            Some(ClaimState::Trash) => Held::Trash,
        }
    }
}

fn leaves(
    block: &Bytes,
    unit: LeafUnit,
    ranges: &[ByteRange],
    behaviour: Behaviour,
) -> Option<(ReadBlockReply, Bytes)> {
    let (_, tree) = hash_block(block);
    let len = tree.len();
    let mut body = BytesMut::new();
    let mut paths = Vec::new();
    for range in ranges {
        for index in leaves_of(unit, *range, len).ok()? {
            let index = if behaviour == Behaviour::OtherLeaf && index > 0 { index - 1 } else { index };
            let extent = leaf_extent(unit, index, len)?;
            body.extend_from_slice(&block[extent.start as usize..extent.end() as usize]);
            paths.push(match unit {
                LeafUnit::Group => tree.group_path(index).ok()?,
                LeafUnit::Chunk => {
                    let group = leaf_extent(LeafUnit::Group, index / 16, len)?;
                    tree.chunk_path(index, &block[group.start as usize..group.end() as usize]).ok()?
                }
            });
        }
    }
    Some((ReadBlockReply { body_len: 0, paths }, body.freeze()))
}

fn each(claims: &[ClaimRef], outcome: impl Fn(ClaimRef) -> BlockOutcome) -> Reply {
    Reply::Outcomes(Outcomes { outcomes: claims.iter().copied().map(outcome).collect() })
}

fn bare(reply: Reply) -> Answer {
    (reply, Bytes::new())
}

fn refused(reason: RefusalReason, message: &str) -> Reply {
    Reply::Refused(Refusal::new(reason, message))
}
