//! Grant: a signed, holder-bound permission to read.

use serde::{Deserialize, Serialize};

use super::{Authority, Delegation, Record, SignatureError, Unverified, random_id, within};
use crate::cbor::DecodeError;
use crate::key::{NamespaceId, NodeId};
use crate::limits::{CLOCK_SKEW_MAX_MS, GRANT_SCOPES_MAX};

random_id! {
    /// A read scope: one per bucket or object, so that a grant can open exactly that.
    ScopeId
}

/// What a grant's holder may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantOps {
    /// Read blocks, whole or in part, with proofs.
    pub read: bool,
    /// Ask which blocks are there.
    pub list: bool,
}

/// Permission for one holder to read blocks of some scopes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Version.
    pub v: u16,
    /// Whose blocks.
    pub namespace: NamespaceId,
    /// The only TLS key that may use it.
    pub holder: NodeId,
    /// Which scopes it opens.
    pub scopes: Vec<ScopeId>,
    /// For what.
    pub ops: GrantOps,
    /// From when.
    pub not_before_ms: u64,
    /// Until when.
    pub expires_ms: u64,
    /// Bytes each node may serve under it.
    pub byte_budget: u64,
    /// Two grants of the same terms differ here; a node counts the budget under it.
    #[serde(with = "serde_bytes")]
    pub nonce: [u8; 16],
}

impl Record for Grant {
    const NAME: &'static str = "grant";
    const DOMAIN: &'static str = "holdfast grant v1";
    fn version(&self) -> u16 {
        self.v
    }
    fn check_bounds(&self) -> Result<(), DecodeError> {
        within(self.scopes.len() <= GRANT_SCOPES_MAX, "scopes")?;
        within(self.not_before_ms < self.expires_ms, "expires_ms")
    }
}

/// A grant as a reader presents it: with the delegation of whoever signed it, unless the namespace did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PresentedGrant {
    /// The grant.
    #[serde(rename = "g")]
    pub grant: Unverified<Grant>,
    /// The signer's delegation.
    #[serde(rename = "d")]
    pub delegation: Option<Unverified<Delegation>>,
}

impl PresentedGrant {
    /// Checks signatures, the chain to the namespace, the holder and the time.
    pub fn verify(&self, holder: NodeId, now_ms: u64) -> Result<Grant, SignatureError> {
        let signed = self.grant.verify()?;
        let grant = signed.record();
        if grant.holder != holder {
            return Err(SignatureError::Rights {
                record: Grant::NAME,
                detail: "it is bound to another holder",
            });
        }
        if now_ms.saturating_add(CLOCK_SKEW_MAX_MS) < grant.not_before_ms || now_ms >= grant.expires_ms {
            return Err(SignatureError::Expired {
                record: Grant::NAME,
                from_ms: grant.not_before_ms,
                until_ms: grant.expires_ms,
                now_ms,
            });
        }
        if signed.signer() != grant.namespace.key() {
            let Some(delegation) = &self.delegation else {
                return Err(SignatureError::Signer {
                    record: Grant::NAME,
                    expected: grant.namespace.key(),
                    found: signed.signer(),
                });
            };
            let authority = Authority::verify(delegation, NodeId(signed.signer()), now_ms)?;
            if authority.namespace != grant.namespace || !authority.rights.grant {
                return Err(SignatureError::Rights {
                    record: Grant::NAME,
                    detail: "its signer may not grant here",
                });
            }
        }
        Ok(signed.into_record())
    }
}
