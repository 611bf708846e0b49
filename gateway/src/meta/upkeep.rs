//! What repair remembers between rounds and restarts: how long nodes are silent and how often they were lost, shards
//! that their nodes were found not to hold, and agreements that were followed by others.

use holdfast_protocol::record::{AgreementId, StripeId};
use holdfast_protocol::time::UnixMs;
use holdfast_protocol::{Digest, NodeId, PublicKey, cbor};
use holdfast_retrieval::surprise::RetrievalScore;
use serde::{Deserialize, Serialize};

use super::error::MetaError;
use super::store::{PAGE_ROWS_MAX, Row, TransactError, Transaction, prefix_end};
use super::{Meta, next_key, schema};

/// Reported shards looked at in one round.
const DAMAGE_PAGE: usize = 1024;
/// Former agreements with one node: a year each, so a century of them.
const FORMER_MAX: usize = 100;

/// What is known of a node's presence.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodePresence {
    /// When it was first watched.
    pub watched_since_ms: UnixMs,
    /// Since when it does not answer; 0 while it does.
    pub silent_since_ms: UnixMs,
    /// Times that it fell silent.
    pub outages: u64,
    /// Milliseconds of outages that are over.
    pub silent_total_ms: u64,
    /// Times that it was silent for so long that it counted as lost.
    pub losses: u64,
    /// Whether the outage under way is counted among the losses.
    pub counted_lost: bool,
}

/// A shard that a node was found not to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DamageReport {
    /// Who.
    pub node: NodeId,
    /// Which shard.
    pub digest: Digest,
    /// Of which stripe, if whoever found it knew.
    pub stripe: Option<StripeId>,
    /// When.
    pub reported_ms: UnixMs,
}

impl Meta {
    /// The presence of every node that was ever watched.
    pub async fn presences(&self) -> Result<Vec<(NodeId, NodePresence)>, MetaError> {
        let rows = self.upkeep_rows(&schema::OUTAGES, usize::MAX).await?;
        rows.iter().map(|row| Ok((node_of(&row.key)?, decode_presence(&row.value)?))).collect()
    }

    /// Keeps what is known of a node's presence.
    pub async fn put_presence(&self, node: NodeId, presence: &NodePresence) -> Result<(), MetaError> {
        let mut transaction = Transaction::default();
        transaction.put(schema::outage(&node), cbor::encode(presence));
        self.commit_upkeep(transaction).await
    }

    /// Remembers that a node does not hold a shard. The first report stands.
    pub async fn report_damage(&self, reports: &[DamageReport]) -> Result<(), MetaError> {
        let mut transaction = Transaction::default();
        for report in reports {
            let mut value = report.reported_ms.to_le_bytes().to_vec();
            if let Some(stripe) = report.stripe {
                value.extend_from_slice(&stripe.0);
            }
            transaction.put_if_absent(schema::damage(&report.node, &report.digest), value);
        }
        self.commit_upkeep(transaction).await
    }

    /// Up to a thousand reported shards after `after`.
    pub async fn damage_reports(&self, after: Option<&DamageReport>) -> Result<Vec<DamageReport>, MetaError> {
        let start = after.map_or_else(
            || schema::DAMAGE.to_vec(),
            |report| next_key(schema::damage(&report.node, &report.digest)),
        );
        let rows = self.store.page(&start, &prefix_end(&schema::DAMAGE), DAMAGE_PAGE).await?;
        rows.iter().map(damage_of).collect()
    }

    /// Forgets reports that were settled.
    pub async fn settle_damage(&self, reports: &[DamageReport]) -> Result<(), MetaError> {
        let mut transaction = Transaction::default();
        for report in reports {
            transaction.delete(schema::damage(&report.node, &report.digest));
        }
        self.commit_upkeep(transaction).await
    }

    /// Retrieval scores of all nodes.
    pub async fn retrieval_scores(&self) -> Result<Vec<(NodeId, RetrievalScore)>, MetaError> {
        let rows = self.upkeep_rows(&schema::RETRIEVAL_SCORES, usize::MAX).await?;
        let score = |row: &Row| {
            let score =
                cbor::decode(&row.value).map_err(|_| MetaError::Corrupt { what: "retrieval score" })?;
            Ok((node_of(&row.key)?, score))
        };
        rows.iter().map(score).collect()
    }

    /// Keeps retrieval scores.
    pub async fn put_retrieval_scores(&self, scores: &[(NodeId, RetrievalScore)]) -> Result<(), MetaError> {
        for some in scores.chunks(PAGE_ROWS_MAX) {
            let mut transaction = Transaction::default();
            for (node, score) in some {
                transaction.put(schema::retrieval_score(node), cbor::encode(score));
            }
            self.commit_upkeep(transaction).await?;
        }
        Ok(())
    }

    /// Earlier agreements with a node. Those that have ended bind nobody and are forgotten on the way.
    pub async fn former_agreements(&self, node: NodeId) -> Result<Vec<AgreementId>, MetaError> {
        let prefix = [&schema::FORMER_AGREEMENTS[..], node.as_bytes()].concat();
        let rows = self.store.page(&prefix, &prefix_end(&prefix), FORMER_MAX).await?;
        let (mut found, mut transaction) = (Vec::new(), Transaction::default());
        for row in rows {
            let corrupt = MetaError::Corrupt { what: "former agreement" };
            let id: [u8; 32] = row.key[prefix.len()..].try_into().map_err(|_| corrupt.clone())?;
            let end_ms = row.value[..].try_into().map(u64::from_le_bytes).map_err(|_| corrupt)?;
            if end_ms <= self.now_ms() {
                transaction.delete(row.key);
            } else {
                found.push(AgreementId(id));
            }
        }
        self.commit_upkeep(transaction).await?;
        Ok(found)
    }

    /// Writes that rely on nothing, so that losing a race is impossible.
    async fn commit_upkeep(&self, transaction: Transaction) -> Result<(), MetaError> {
        if transaction.writes.is_empty() {
            return Ok(());
        }
        match self.store.transact(transaction).await {
            Ok(()) => Ok(()),
            Err(TransactError::Conflict) => Err(MetaError::Contended),
            Err(TransactError::Store(error)) => Err(error.into()),
        }
    }

    async fn upkeep_rows(&self, table: &[u8], most: usize) -> Result<Vec<Row>, MetaError> {
        let (mut rows, mut start) = (Vec::new(), table.to_vec());
        while rows.len() < most {
            let page =
                self.store.page(&start, &prefix_end(table), PAGE_ROWS_MAX.min(most - rows.len())).await?;
            let Some(last) = page.last() else { break };
            start = next_key(last.key.clone());
            rows.extend(page);
        }
        Ok(rows)
    }
}

fn node_of(key: &[u8]) -> Result<NodeId, MetaError> {
    let id = key.get(2..34).and_then(|id| <[u8; 32]>::try_from(id).ok());
    id.map(|id| NodeId(PublicKey(id))).ok_or(MetaError::Corrupt { what: "node presence" })
}

fn decode_presence(value: &[u8]) -> Result<NodePresence, MetaError> {
    cbor::decode(value).map_err(|_| MetaError::Corrupt { what: "node presence" })
}

fn damage_of(row: &Row) -> Result<DamageReport, MetaError> {
    let corrupt = || MetaError::Corrupt { what: "damage report" };
    let digest = row.key.get(34..).and_then(|digest| digest.try_into().ok()).ok_or_else(corrupt)?;
    let (reported, stripe) = row.value.split_at_checked(8).ok_or_else(corrupt)?;
    let stripe = match stripe {
        [] => None,
        id => Some(StripeId(id.try_into().map_err(|_| corrupt())?)),
    };
    let reported_ms = reported.try_into().map(u64::from_le_bytes).map_err(|_| corrupt())?;
    Ok(DamageReport { node: node_of(&row.key)?, digest: Digest(digest), stripe, reported_ms })
}
