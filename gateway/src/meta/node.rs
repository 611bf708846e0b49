//! Nodes: what is known of each, and the short numbers that stripe rows name them by.
//!
//! A number is given once and never reused, so numbers may be cached for ever.

use std::collections::HashMap;

use holdfast_protocol::record::{AgreementId, Stripe};
use holdfast_protocol::time::UnixMs;
use holdfast_protocol::{NodeId, PublicKey, cbor};
use parking_lot::RwLock;

use super::error::{Attempt, MetaError};
use super::model::NodeEntry;
use super::store::{PAGE_ROWS_MAX, Row, Transaction, prefix_end};
use super::{Meta, next_key, schema};

/// Nodes that one namespace may ever have known.
const NODES_MAX: u32 = 1 << 20;

/// Numbers both ways.
#[derive(Default)]
pub(super) struct NodeTable(RwLock<Numbers>);

#[derive(Default)]
struct Numbers {
    by_id: HashMap<NodeId, u32>,
    by_number: HashMap<u32, NodeId>,
}

impl NodeTable {
    fn learn(&self, id: NodeId, number: u32) {
        let mut numbers = self.0.write();
        numbers.by_id.insert(id, number);
        numbers.by_number.insert(number, id);
    }

    /// The number of a node that was interned.
    pub(super) fn number(&self, id: &NodeId) -> Option<u32> {
        self.0.read().by_id.get(id).copied()
    }

    fn id(&self, number: u32) -> Option<NodeId> {
        self.0.read().by_number.get(&number).copied()
    }
}

impl Meta {
    /// Learns all numbers at the start.
    pub(super) async fn load_nodes(&self) -> Result<(), MetaError> {
        for row in self.node_rows().await? {
            let (number, id, _) = decode_node(&row)?;
            self.nodes.learn(id, number);
        }
        Ok(())
    }

    async fn node_rows(&self) -> Result<Vec<Row>, MetaError> {
        let mut rows = Vec::new();
        let end = prefix_end(&schema::table(schema::NODES));
        let mut start = schema::table(schema::NODES);
        loop {
            let page = self.store.page(&start, &end, PAGE_ROWS_MAX).await?;
            let Some(last) = page.last() else { return Ok(rows) };
            start = next_key(last.key.clone());
            rows.extend(page);
        }
    }

    /// Makes sure that every node of this stripe has a number.
    pub(super) async fn intern_nodes(&self, stripe: &Stripe) -> Result<(), MetaError> {
        for shard in stripe.shards.iter().flatten() {
            if let Some(node) = shard.node {
                self.intern(node).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn intern(&self, id: NodeId) -> Result<u32, MetaError> {
        if let Some(number) = self.nodes.number(&id) {
            return Ok(number);
        }
        let number = self.retry(|| self.try_intern(id)).await?;
        self.nodes.learn(id, number);
        Ok(number)
    }

    async fn try_intern(&self, id: NodeId) -> Result<u32, Attempt<MetaError>> {
        let corrupt = MetaError::Corrupt { what: "node number" };
        if let Some(value) = self.store.get(&schema::node_number(&id)).await? {
            let number = value[..].try_into().map(u32::from_le_bytes);
            return number.map_err(|_| corrupt.into());
        }
        let counter = schema::next_node_number();
        let row = self.store.get(&counter).await?;
        let number = match &row {
            None => 0,
            Some(value) => u32::from_le_bytes(value[..].try_into().map_err(|_| corrupt)?),
        };
        if number >= NODES_MAX {
            return Err(MetaError::Bounds { what: "nodes" }.into());
        }
        let mut transaction = Transaction::default();
        transaction.expect(counter.clone(), row);
        transaction.expect(schema::node_number(&id), None);
        transaction.put(counter, (number + 1).to_le_bytes().to_vec());
        transaction.put(schema::node_number(&id), number.to_le_bytes().to_vec());
        transaction.put(schema::node(number), id.as_bytes().to_vec());
        self.store.transact(transaction).await?;
        Ok(number)
    }

    /// The node of a number that a row names.
    pub(super) async fn node_id(&self, number: u32) -> Result<NodeId, MetaError> {
        if let Some(id) = self.nodes.id(number) {
            return Ok(id);
        }
        let key = schema::node(number);
        let value = self.store.get(&key).await?.ok_or(MetaError::Corrupt { what: "node" })?;
        let (_, id, _) = decode_node(&Row { key, value })?;
        self.nodes.learn(id, number);
        Ok(id)
    }

    /// Keeps what is known of a node.
    pub async fn upsert_node(&self, entry: &NodeEntry) -> Result<(), MetaError> {
        let number = self.intern(entry.id).await?;
        let before = self.node(entry.id).await?;
        let mut transaction = Transaction::default();
        if let Some((id, end_ms)) = before.as_ref().and_then(|before| followed(before, entry)) {
            // Blocks that were put under it are released under it.
            transaction.put(schema::former_agreement(&entry.id, &id), end_ms.to_le_bytes().to_vec());
        }
        transaction.put(schema::node(number), [entry.id.as_bytes(), &cbor::encode(entry)[..]].concat());
        match self.store.transact(transaction).await.map_err(Attempt::<MetaError>::from) {
            Ok(()) => Ok(()),
            Err(Attempt::Failed(error)) => Err(error),
            Err(Attempt::Conflict) => Err(MetaError::Contended),
        }
    }

    /// The number of a node that this gateway or another one interned; none when nobody did.
    pub(super) async fn find_number(&self, id: NodeId) -> Result<Option<u32>, MetaError> {
        if let Some(number) = self.nodes.number(&id) {
            return Ok(Some(number));
        }
        let Some(value) = self.store.get(&schema::node_number(&id)).await? else { return Ok(None) };
        let number = value[..].try_into().map(u32::from_le_bytes);
        let number = number.map_err(|_| MetaError::Corrupt { what: "node number" })?;
        self.nodes.learn(id, number);
        Ok(Some(number))
    }

    /// What is known of a node.
    pub async fn node(&self, id: NodeId) -> Result<Option<NodeEntry>, MetaError> {
        let Some(number) = self.store.get(&schema::node_number(&id)).await? else { return Ok(None) };
        let number = number[..]
            .try_into()
            .map(u32::from_le_bytes)
            .map_err(|_| MetaError::Corrupt { what: "node number" })?;
        let key = schema::node(number);
        match self.store.get(&key).await? {
            None => Ok(None),
            Some(value) => Ok(decode_node(&Row { key, value })?.2),
        }
    }

    /// All nodes of which something is known.
    pub async fn nodes(&self) -> Result<Vec<NodeEntry>, MetaError> {
        let rows = self.node_rows().await?;
        let entries = rows.iter().map(|row| Ok(decode_node(row)?.2));
        entries.filter_map(Result::transpose).collect()
    }
}

/// The agreement that another one follows with `entry`, and when it ends.
fn followed(before: &NodeEntry, entry: &NodeEntry) -> Option<(AgreementId, UnixMs)> {
    let id = before.agreement_id.filter(|id| entry.agreement_id.is_some_and(|next| next != *id))?;
    let agreement = before.agreement.as_ref()?.verify().ok()?;
    Some((id, agreement.terms().end_ms))
}

fn decode_node(row: &Row) -> Result<(u32, NodeId, Option<NodeEntry>), MetaError> {
    let corrupt = || MetaError::Corrupt { what: "node" };
    let number = row.key[1..].try_into().map(u32::from_be_bytes).map_err(|_| corrupt())?;
    let (id, entry) = row.value.split_at_checked(32).ok_or_else(corrupt)?;
    let id = NodeId(PublicKey(id.try_into().map_err(|_| corrupt())?));
    let entry = match entry {
        [] => None,
        bytes => Some(cbor::decode::<NodeEntry>(bytes).map_err(|_| corrupt())?),
    };
    Ok((number, id, entry))
}
