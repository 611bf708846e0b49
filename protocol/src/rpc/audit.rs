//! The client's side of inventories and audits.

use bytes::Bytes;

use super::{CallError, Peer, unexpected};
use crate::limits::ANSWER_BODY_MAX;
use crate::message::{AuditQuery, AuditReply, InventoryQuery, InventoryReply, Reply, Request};
use crate::record::{
    AuditAnswer, BeaconRound, Commitment, Countersignature, Declaration, Epoch, Standing, Unverified, Verdict,
};

/// What a node shows before a draw. Nothing of it is verified yet.
#[derive(Clone, Debug)]
pub struct ShownCommitment {
    /// The commitment.
    pub commitment: Unverified<Commitment>,
    /// What is declared with it.
    pub declarations: Vec<Unverified<Declaration>>,
    /// Who countersigned it so far.
    pub countersignatures: Vec<Unverified<Countersignature>>,
}

impl Peer {
    /// The next page of what is kept under an agreement, *not* verified here.
    pub async fn inventory(&self, query: InventoryQuery) -> Result<InventoryReply, CallError> {
        let request = Request::Inventory(query);
        match self.exchange(&request).await? {
            Reply::Inventory(reply) => Ok(reply),
            reply => Err(unexpected(&request, &reply)),
        }
    }

    /// The node's commitment for an epoch.
    pub async fn audit_commitment(&self, epoch: Epoch) -> Result<ShownCommitment, CallError> {
        let request = Request::Audit(AuditQuery::Commitment { epoch });
        match self.exchange(&request).await? {
            Reply::Audit(AuditReply::Commitment { commitment, declarations, countersignatures }) => {
                Ok(ShownCommitment { commitment, declarations, countersignatures })
            }
            reply => Err(unexpected(&request, &reply)),
        }
    }

    /// Gives the node our word that we saw its commitment in time.
    pub async fn audit_countersigned(
        &self,
        countersignature: Unverified<Countersignature>,
    ) -> Result<(), CallError> {
        self.noted(Request::Audit(AuditQuery::Countersigned { countersignature })).await
    }

    /// The node's answer to an epoch's draw: its signed head, and the bytes of its proofs. The bytes are as many as
    /// the reply announces, which is within bounds; nothing else is verified here.
    pub async fn audit_answer(
        &self,
        epoch: Epoch,
        round: BeaconRound,
        draws: Vec<u32>,
    ) -> Result<(Unverified<AuditAnswer>, Bytes), CallError> {
        let request = Request::Audit(AuditQuery::Answer { epoch, round, draws });
        let (reply, mut stream, mut buffered) = self.start(&request, Vec::new()).await?;
        let Reply::Audit(AuditReply::Answer { answer, body_len }) = reply else {
            return Err(unexpected(&request, &reply));
        };
        debug_assert!(body_len <= ANSWER_BODY_MAX, "the reply's bounds are checked when it is read");
        let body = buffered
            .read_exact(stream.recv.as_mut(), body_len as usize)
            .await
            .map_err(|source| CallError::from_frame(&request, source))?;
        Ok((answer, body))
    }

    /// Tells the node what we found.
    pub async fn audit_found(
        &self,
        verdict: Unverified<Verdict>,
        standing: Unverified<Standing>,
    ) -> Result<(), CallError> {
        self.noted(Request::Audit(AuditQuery::Found { verdict, standing })).await
    }

    async fn noted(&self, request: Request) -> Result<(), CallError> {
        match self.exchange(&request).await? {
            Reply::Audit(AuditReply::Noted) => Ok(()),
            reply => Err(unexpected(&request, &reply)),
        }
    }
}
