//! Head: where a gateway instance's journal ends. Nodes keep the highest `seq` of each.

use serde::{Deserialize, Serialize};

use super::{Authority, Delegation, Record, SignatureError, Unverified, random_id};
use crate::cbor::DecodeError;
use crate::digest::Digest;
use crate::key::{NamespaceId, NodeId};

random_id! {
    /// One gateway instance: each has a journal of its own.
    InstanceId
}

/// The newest journal block and checkpoint of a gateway instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Version.
    pub v: u16,
    /// Whose.
    pub namespace: NamespaceId,
    /// Which gateway instance's.
    pub instance: InstanceId,
    /// Highest wins.
    pub seq: u64,
    /// The newest journal block.
    pub journal_tip: Option<Digest>,
    /// The newest checkpoint.
    pub checkpoint: Option<Digest>,
    /// When it was said.
    pub issued_ms: u64,
}

impl Record for Head {
    const NAME: &'static str = "head";
    const DOMAIN: &'static str = "holdfast head v1";
    fn version(&self) -> u16 {
        self.v
    }
    fn check_bounds(&self) -> Result<(), DecodeError> {
        Ok(())
    }
}

/// A head with the delegation of the gateway that signed it, so that anyone can check it later.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PresentedHead {
    /// The head.
    #[serde(rename = "h")]
    pub head: Unverified<Head>,
    /// The signer's delegation, as it was when the head was put.
    #[serde(rename = "d")]
    pub delegation: Unverified<Delegation>,
}

impl PresentedHead {
    /// Checks both signatures and that the delegate had the right at `at_ms`.
    pub fn verify(&self, at_ms: u64) -> Result<Head, SignatureError> {
        let signed = self.head.verify()?;
        let authority = Authority::verify(&self.delegation, NodeId(signed.signer()), at_ms)?;
        if authority.namespace != signed.record().namespace || !authority.rights.head {
            return Err(SignatureError::Rights {
                record: Head::NAME,
                detail: "its signer may not put heads here",
            });
        }
        Ok(signed.into_record())
    }
}
