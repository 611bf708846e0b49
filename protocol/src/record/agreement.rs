//! Agreement: a namespace rents capacity on a node. Both sign the same bytes.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Record, SignatureError, Signed, Unverified, within};
use crate::cbor::DecodeError;
use crate::key::{NamespaceId, NodeId, OperatorId, SigningKey};
use crate::record::node_record::Prices;

/// BLAKE3 of an agreement's canonical bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AgreementId(pub [u8; 32]);

crate::key::serde_bytes_array!(AgreementId, 32);

impl fmt::Display for AgreementId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for AgreementId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AgreementId({})", hex::encode(&self.0[..8]))
    }
}

/// The terms under which a node keeps a namespace's blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agreement {
    /// Version.
    pub v: u16,
    /// Who stores.
    pub namespace: NamespaceId,
    /// Where.
    pub node: NodeId,
    /// Who runs the node.
    pub operator: OperatorId,
    /// Bytes that its blocks may take on the node's disk: whole pages with headers, not block lengths.
    pub capacity_bytes: u64,
    /// What it costs.
    pub prices: Prices,
    /// From when.
    pub start_ms: u64,
    /// Until when; the node keeps blocks and defences until then.
    pub end_ms: u64,
    /// How long before the end either side must say that it leaves.
    pub notice_ms: u64,
    /// Two agreements of the same terms differ here.
    #[serde(with = "serde_bytes")]
    pub nonce: [u8; 16],
}

impl Record for Agreement {
    const NAME: &'static str = "agreement";
    const DOMAIN: &'static str = "holdfast agreement v1";
    fn version(&self) -> u16 {
        self.v
    }
    fn check_bounds(&self) -> Result<(), DecodeError> {
        within(self.start_ms < self.end_ms, "end_ms")?;
        within(self.notice_ms <= self.end_ms - self.start_ms, "notice_ms")
    }
}

/// An agreement as it arrives: two signatures over the same record, unchecked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UnverifiedAgreement {
    /// The namespace's signature.
    #[serde(rename = "n")]
    pub by_namespace: Unverified<Agreement>,
    /// The node's.
    #[serde(rename = "o")]
    pub by_node: Unverified<Agreement>,
}

impl UnverifiedAgreement {
    /// Both signatures hold, over the same bytes, by the two parties that the record names.
    pub fn verify(&self) -> Result<SignedAgreement, SignatureError> {
        let by_namespace = self.by_namespace.verify()?;
        let terms = by_namespace.record();
        if by_namespace.signer() != terms.namespace.key() {
            return Err(SignatureError::Signer {
                record: Agreement::NAME,
                expected: terms.namespace.key(),
                found: by_namespace.signer(),
            });
        }
        let by_node = self.by_node.verify_by(terms.node.key())?;
        if by_node.id() != by_namespace.id() {
            return Err(SignatureError::Rights {
                record: Agreement::NAME,
                detail: "the two sides signed different terms",
            });
        }
        Ok(SignedAgreement { by_namespace, by_node })
    }
}

/// An agreement that both sides signed.
#[derive(Clone, Debug, PartialEq)]
pub struct SignedAgreement {
    by_namespace: Signed<Agreement>,
    by_node: Signed<Agreement>,
}

impl SignedAgreement {
    /// The node's answer to terms that a namespace signed.
    pub fn countersign(by_namespace: Signed<Agreement>, node: &SigningKey) -> Result<Self, SignatureError> {
        let by_node = Signed::sign(by_namespace.record().clone(), node);
        UnverifiedAgreement { by_namespace: by_namespace.to_wire(), by_node: by_node.to_wire() }.verify()
    }

    /// The terms.
    pub fn terms(&self) -> &Agreement {
        self.by_namespace.record()
    }

    /// The agreement's id.
    pub fn id(&self) -> AgreementId {
        AgreementId(self.by_namespace.id())
    }

    /// The form that travels.
    pub fn to_wire(&self) -> UnverifiedAgreement {
        UnverifiedAgreement { by_namespace: self.by_namespace.to_wire(), by_node: self.by_node.to_wire() }
    }
}
