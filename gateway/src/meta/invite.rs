//! Invites that were given: for the list, and so that one can be taken back.
//!
//! An invite is good by its signature alone; a row is what takes it back, at every gateway that shares the metadata.

use holdfast_protocol::cbor;
use holdfast_protocol::time::UnixMs;
use serde::{Deserialize, Serialize};

use super::error::{Attempt, MetaError};
use super::store::{PAGE_ROWS_MAX, Transaction, prefix_end};
use super::{Meta, next_key, schema};

/// Invites that are kept; those that ended long ago make room.
const KEPT_MAX: usize = 10_000;
/// How long after its end an invite is still listed.
const LISTED_MS: u64 = 90 * 24 * 3600 * 1000;

/// What is kept of an invite. The invite itself, which opens the door, is not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenInvite {
    /// For whom, for people.
    pub label: String,
    /// Nodes that may come by it.
    pub nodes: u32,
    /// When it was given.
    pub issued_ms: UnixMs,
    /// Until when it can be used.
    pub expires_ms: UnixMs,
    /// When it was taken back; 0 when it was not.
    pub revoked_ms: UnixMs,
}

impl Meta {
    /// All invites that are kept, by id. Those that ended long ago are forgotten on the way.
    pub async fn invites(&self) -> Result<Vec<([u8; 16], GivenInvite)>, MetaError> {
        let (mut found, mut over) = (Vec::new(), Transaction::default());
        let end = prefix_end(&schema::INVITES);
        let mut start = schema::INVITES.to_vec();
        loop {
            let page = self.store.page(&start, &end, PAGE_ROWS_MAX).await?;
            let Some(last) = page.last() else { break };
            start = next_key(last.key.clone());
            for row in &page {
                let corrupt = MetaError::Corrupt { what: "invite" };
                let id: [u8; 16] =
                    row.key[schema::INVITES.len()..].try_into().map_err(|_| corrupt.clone())?;
                let invite: GivenInvite = cbor::decode(&row.value).map_err(|_| corrupt)?;
                if invite.expires_ms.saturating_add(LISTED_MS) <= self.now_ms() {
                    over.delete(row.key.clone());
                } else {
                    found.push((id, invite));
                }
            }
        }
        if !over.writes.is_empty() {
            self.retry(|| async { Ok::<(), Attempt<MetaError>>(self.store.transact(over.clone()).await?) })
                .await?;
        }
        Ok(found)
    }

    /// Keeps an invite that is about to be handed out. False when too many are kept already.
    pub async fn keep_invite(&self, id: [u8; 16], invite: &GivenInvite) -> Result<bool, MetaError> {
        if self.invites().await?.len() >= KEPT_MAX {
            return Ok(false);
        }
        self.put_invite(id, invite).await?;
        Ok(true)
    }

    /// Takes an invite back. One that no row is kept of, as an earlier release gave it, is taken back as well.
    pub async fn revoke_invite(&self, id: [u8; 16], expires_ms: UnixMs) -> Result<GivenInvite, MetaError> {
        let kept = self.store.get(&schema::invite(id)).await?;
        let corrupt = |_| MetaError::Corrupt { what: "invite" };
        let mut invite: GivenInvite = kept
            .map(|value| cbor::decode(&value).map_err(corrupt))
            .transpose()?
            .unwrap_or(GivenInvite { expires_ms, ..GivenInvite::default() });
        if invite.revoked_ms == 0 {
            invite.revoked_ms = self.now_ms();
            self.put_invite(id, &invite).await?;
        }
        Ok(invite)
    }

    /// Whether an invite was taken back.
    pub async fn is_invite_revoked(&self, id: [u8; 16]) -> Result<bool, MetaError> {
        let Some(value) = self.store.get(&schema::invite(id)).await? else { return Ok(false) };
        let invite: GivenInvite = cbor::decode(&value).map_err(|_| MetaError::Corrupt { what: "invite" })?;
        Ok(invite.revoked_ms != 0)
    }

    async fn put_invite(&self, id: [u8; 16], invite: &GivenInvite) -> Result<(), MetaError> {
        self.retry(|| async {
            let mut transaction = Transaction::default();
            transaction.put(schema::invite(id), cbor::encode(invite));
            Ok::<(), Attempt<MetaError>>(self.store.transact(transaction).await?)
        })
        .await
    }
}
