//! What a client must know of an object to read it straight from the nodes: its blocks, where their stripes lie,
//! and the keys of its parts, page by page.

use std::collections::HashMap;
use std::sync::Arc;

use holdfast_protocol::record::StripeId;
use holdfast_retrieval::direct::{PartKey, READ_TICKET_VERSION, ReadTicket, TICKET_BLOCKS_MAX, TicketPart};
use serde_bytes::ByteBuf;

use super::Meta;
use super::error::MetaError;
use super::model::{Bucket, Object};

impl Meta {
    /// The page of the object's ticket that covers byte `offset`, still without nodes and grant. The caller has
    /// seen that whoever gets it may read the plaintext.
    pub(crate) async fn ticket_page(
        self: &Arc<Self>,
        bucket: &Bucket,
        object: &Object,
        offset: u64,
    ) -> Result<ReadTicket, MetaError> {
        let mut ticket = ReadTicket {
            v: READ_TICKET_VERSION,
            size: object.size,
            root_cid: object.root_cid.to_bytes(),
            version: object.version.0.to_vec(),
            kind: ByteBuf::from(bucket.id.0.to_vec()),
            offset: 0,
            blocks: Vec::new(),
            parts: Vec::new(),
            places: Vec::new(),
            stripes: Vec::new(),
            nodes: Vec::new(),
            grant: None,
        };
        let mut reader = self.read(object, offset..object.size);
        while ticket.blocks.len() < TICKET_BLOCKS_MAX {
            let Some((part, page)) = reader.next_page().await? else { break };
            if ticket.blocks.len() + page.entries.len() > TICKET_BLOCKS_MAX {
                break;
            }
            if ticket.blocks.is_empty() {
                ticket.offset = part.offset + page.start;
            }
            if ticket.parts.last().is_none_or(|last| last.offset != part.offset) {
                let key = self.part_secret(object, &part)?;
                let key = key.map(|secret| PartKey { key: *secret.expose(), nonce: secret.nonce() });
                ticket.parts.push(TicketPart { offset: part.offset, len: part.len, key });
            }
            ticket.blocks.extend(page.entries.iter().map(|entry| (entry.digest, entry.len)));
        }
        self.place(&mut ticket).await?;
        Ok(ticket)
    }

    /// Enters the stripes of the ticket's blocks.
    async fn place(&self, ticket: &mut ReadTicket) -> Result<(), MetaError> {
        let mut known: HashMap<StripeId, u32> = HashMap::new();
        for (digest, _) in &ticket.blocks {
            let located = self.locate(digest).await?.ok_or(MetaError::Corrupt { what: "block" })?;
            let next = u32::try_from(ticket.stripes.len()).unwrap_or(u32::MAX);
            let index = *known.entry(located.stripe.id).or_insert(next);
            if index == next {
                ticket.stripes.push(Arc::unwrap_or_clone(located.stripe));
            }
            let slot = u8::try_from(located.slot).map_err(|_| MetaError::Corrupt { what: "block" })?;
            ticket.places.push((index, slot));
        }
        Ok(())
    }
}
