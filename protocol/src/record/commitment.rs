//! What a node says before each draw: the commitment to all that it claims to hold, what it declares lost or
//! refused, and the auditors' word that they saw both in time.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Record, within};
use crate::cbor::DecodeError;
use crate::digest::Digest;
use crate::key::{NodeId, serde_bytes_array};
use crate::limits::DECLARED_DIGESTS_MAX;

/// Declares a hash of 32 bytes, printed in hexadecimal.
macro_rules! hash_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 32]);
        serde_bytes_array!($name, 32);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({}…)"), hex::encode(&self.0[..6]))
            }
        }
        impl std::str::FromStr for $name {
            type Err = hex::FromHexError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let mut bytes = [0u8; 32];
                hex::decode_to_slice(text, &mut bytes)?;
                Ok(Self(bytes))
            }
        }
    };
}

hash_id! {
    /// BLAKE3 of a signed record's canonical bytes: how one record names another.
    RecordId
}
hash_id! {
    /// A node of an inventory's tree, its root included.
    InventoryHash
}
hash_id! {
    /// Who keeps a block, blinded: BLAKE3 of the agreements with a salt of the node's. Equal only to itself.
    OwnerHash
}

/// Which epoch: whole epoch lengths since 1970.
pub type Epoch = u64;

/// "At the start of this epoch I claim to hold exactly this": signed by the node, before the epoch's draw.
/// Two different ones for one epoch prove a lie.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commitment {
    /// Version.
    pub v: u16,
    /// Who; also the signer.
    pub node: NodeId,
    /// For which epoch.
    pub epoch: Epoch,
    /// How many blocks. Not proved by anything: bytes are what is paid and drawn from.
    pub count: u64,
    /// Sum of their lengths; the root commits to it.
    pub bytes: u64,
    /// The inventory's root.
    pub root: InventoryHash,
    /// When it was said.
    pub issued_ms: u64,
}

impl Record for Commitment {
    const NAME: &'static str = "commitment";
    const DOMAIN: &'static str = "holdfast commitment v1";
    fn version(&self) -> u16 {
        self.v
    }
    fn check_bounds(&self) -> Result<(), DecodeError> {
        within((self.count == 0) == (self.bytes == 0) && self.count <= self.bytes, "count")
    }
}

/// "I saw this before the draw": signed by an auditor, for one commitment of a node and epoch only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Countersignature {
    /// Version.
    pub v: u16,
    /// Whose commitment.
    pub node: NodeId,
    /// For which epoch.
    pub epoch: Epoch,
    /// The commitment.
    pub commitment: RecordId,
    /// The declarations that came with it, in the order in which they are shown.
    pub declarations: Vec<RecordId>,
    /// When the auditor saw them.
    pub seen_ms: u64,
}

impl Record for Countersignature {
    const NAME: &'static str = "countersignature";
    const DOMAIN: &'static str = "holdfast countersignature v1";
    fn version(&self) -> u16 {
        self.v
    }
    fn check_bounds(&self) -> Result<(), DecodeError> {
        within(self.declarations.len() <= crate::limits::DECLARATIONS_MAX, "declarations")
    }
}

/// Why a node will not show a block that its inventory lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeclaredAs {
    /// The disk lost it.
    Lost,
    /// The operator refuses it by a list of its own.
    Refused,
}

/// "Of what I commit to in this epoch, these blocks I cannot or will not show": counts only when an auditor
/// countersigned it before the draw.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Declaration {
    /// Version.
    pub v: u16,
    /// Who; also the signer.
    pub node: NodeId,
    /// In which epoch.
    pub epoch: Epoch,
    /// Lost or refused.
    pub kind: DeclaredAs,
    /// Which blocks, ascending.
    pub digests: Vec<Digest>,
    /// When it was said.
    pub issued_ms: u64,
}

impl Record for Declaration {
    const NAME: &'static str = "declaration";
    const DOMAIN: &'static str = "holdfast declaration v1";
    fn version(&self) -> u16 {
        self.v
    }
    fn check_bounds(&self) -> Result<(), DecodeError> {
        let digests = &self.digests;
        within(!digests.is_empty() && digests.len() <= DECLARED_DIGESTS_MAX, "digests")?;
        within(digests.is_sorted_by(|one, next| one < next), "digests")
    }
}
