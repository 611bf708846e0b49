//! Invite: a namespace lets the holder bring in nodes until a date, and nothing else.
//!
//! A gateway's operator hands it to a disk owner as one line of text; the namespace's gateways check it by its
//! signature alone, so there is nothing to look up and nothing to steal from a table of tokens.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Record, SignatureError, Signed, Unverified, text_within, within};
use crate::cbor::{self, DecodeError};
use crate::key::NamespaceId;
use crate::limits::{INVITE_GATEWAYS_MAX, INVITE_TEXT_MAX};

/// What every invite's text begins with.
const PREFIX: &str = "holdfast-invite-";

/// A namespace's word that whoever holds this may bring in nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invite {
    /// Version.
    pub v: u16,
    /// Who invites; also the signer.
    pub namespace: NamespaceId,
    /// Web addresses of its gateways, to join at (`http://gateway.example:8080`).
    pub gateways: Vec<String>,
    /// Tells invites apart; nodes that came by one are counted under it.
    pub id: [u8; 16],
    /// Nodes that may come by it.
    pub nodes: u32,
    /// When it was given.
    pub issued_ms: u64,
    /// Until when a node may come by it. Nodes that came stay.
    pub expires_ms: u64,
    /// A name for people: for whom it is.
    pub label: String,
}

impl Record for Invite {
    const NAME: &'static str = "invite";
    const DOMAIN: &'static str = "holdfast invite v1";
    fn version(&self) -> u16 {
        self.v
    }
    fn check_bounds(&self) -> Result<(), DecodeError> {
        within(self.gateways.len() <= INVITE_GATEWAYS_MAX, "gateways")?;
        for gateway in &self.gateways {
            text_within(gateway, "gateways")?;
        }
        text_within(&self.label, "label")?;
        within(self.nodes > 0, "nodes")?;
        within(self.issued_ms < self.expires_ms, "expires_ms")
    }
}

/// An invite as it is handed around: text, of which nothing is known yet.
#[derive(Clone, Debug, PartialEq)]
pub struct InviteText(Unverified<Invite>);

impl InviteText {
    /// The text of a signed invite.
    pub fn of(signed: &Signed<Invite>) -> Self {
        Self(signed.to_wire())
    }

    /// Checks that the namespace named inside signed it. Whether that namespace's invites count, and whether it
    /// still runs, is for the caller to decide.
    pub fn verify(&self) -> Result<Invite, SignatureError> {
        let signed = self.0.verify()?;
        let expected = signed.record().namespace.key();
        if signed.signer() != expected {
            return Err(SignatureError::Signer { record: Invite::NAME, expected, found: signed.signer() });
        }
        Ok(signed.into_record())
    }
}

impl std::fmt::Display for InviteText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{PREFIX}{}", multibase::encode(multibase::Base::Base64Url, cbor::encode(&self.0)))
    }
}

impl FromStr for InviteText {
    type Err = InviteTextError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        if text.len() > INVITE_TEXT_MAX {
            return Err(InviteTextError::NotOne);
        }
        let encoded = text.strip_prefix(PREFIX).ok_or(InviteTextError::NotOne)?;
        let (_, bytes) = multibase::decode(encoded).map_err(|_| InviteTextError::NotOne)?;
        Ok(Self(cbor::decode(&bytes).map_err(|source| InviteTextError::Damaged { source })?))
    }
}

/// Why a text is no invite.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InviteTextError {
    /// Something else.
    #[error("this is no invite; one begins with `{PREFIX}`")]
    NotOne,
    /// An invite with letters missing or changed.
    #[error("the invite is damaged; copy it again, whole")]
    Damaged {
        /// What the decoder said.
        source: DecodeError,
    },
}
