//! Delegation: a namespace lets a gateway's TLS key act for it until a date.

use serde::{Deserialize, Serialize};

use super::{Record, SignatureError, Unverified, text_within, within};
use crate::cbor::DecodeError;
use crate::key::{NamespaceId, NodeId};
use crate::limits::CLOCK_SKEW_MAX_MS;

/// What a delegate may do in the namespace's name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rights {
    /// Read any block of the namespace.
    pub read: bool,
    /// Put, commit and list blocks.
    pub write: bool,
    /// Delete and restore blocks.
    pub delete: bool,
    /// Put heads.
    pub head: bool,
    /// Sign grants for readers.
    pub grant: bool,
}

impl Rights {
    /// What a gateway has.
    pub const GATEWAY: Self = Self { read: true, write: true, delete: true, head: true, grant: true };
}

/// A namespace's word that a key acts for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delegation {
    /// Version.
    pub v: u16,
    /// Who delegates; also the signer.
    pub namespace: NamespaceId,
    /// The TLS key that may act.
    pub delegate: NodeId,
    /// As what.
    pub rights: Rights,
    /// From when.
    pub not_before_ms: u64,
    /// Until when.
    pub expires_ms: u64,
    /// A name for people: which gateway this is.
    pub label: String,
}

impl Record for Delegation {
    const NAME: &'static str = "delegation";
    const DOMAIN: &'static str = "holdfast delegation v1";
    fn version(&self) -> u16 {
        self.v
    }
    fn check_bounds(&self) -> Result<(), DecodeError> {
        text_within(&self.label, "label")?;
        within(self.not_before_ms < self.expires_ms, "expires_ms")
    }
}

/// A checked delegation: this peer acts for this namespace with these rights until this time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Authority {
    /// For whom.
    pub namespace: NamespaceId,
    /// Who.
    pub delegate: NodeId,
    /// As what.
    pub rights: Rights,
    /// Until when.
    pub expires_ms: u64,
}

impl Authority {
    /// Checks signature, signer, holder and time of a presented delegation.
    pub fn verify(
        presented: &Unverified<Delegation>,
        holder: NodeId,
        now_ms: u64,
    ) -> Result<Self, SignatureError> {
        let signed = presented.verify()?;
        let delegation = signed.record();
        if signed.signer() != delegation.namespace.key() {
            return Err(SignatureError::Signer {
                record: Delegation::NAME,
                expected: delegation.namespace.key(),
                found: signed.signer(),
            });
        }
        if delegation.delegate != holder {
            return Err(SignatureError::Rights {
                record: Delegation::NAME,
                detail: "it names another delegate than the peer that presents it",
            });
        }
        let authority = Self {
            namespace: delegation.namespace,
            delegate: holder,
            rights: delegation.rights,
            expires_ms: delegation.expires_ms,
        };
        if now_ms.saturating_add(CLOCK_SKEW_MAX_MS) < delegation.not_before_ms
            || now_ms >= delegation.expires_ms
        {
            return Err(SignatureError::Expired {
                record: Delegation::NAME,
                from_ms: delegation.not_before_ms,
                until_ms: delegation.expires_ms,
                now_ms,
            });
        }
        Ok(authority)
    }

    /// Whether the delegation still runs.
    pub fn is_current(&self, now_ms: u64) -> bool {
        now_ms < self.expires_ms
    }
}
