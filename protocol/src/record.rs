//! Signed and content-addressed records: canonical DAG-CBOR under a domain-separated Ed25519 signature.
//!
//! A signature covers `BLAKE3.derive_key("holdfast <record> v1", bytes)`, so one kind of signature can
//! never stand for another. On the wire a signed record is `{b: bytes, k: key, s: signature}`.

use std::fmt;
use std::marker::PhantomData;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::cbor::{self, DecodeError};
use crate::key::{PublicKey, Signature, SigningKey};

pub mod agreement;
pub mod audit;
pub mod claim;
pub mod commitment;
pub mod declared_page;
pub mod delegation;
pub mod deny_list;
pub mod disclaimer;
pub mod grant;
pub mod head;
pub mod inventory_page;
pub mod invite;
pub mod manifest;
pub mod node_record;
pub mod receipt;
pub mod stripe;
pub mod transcript;

pub use agreement::{Agreement, AgreementId, SignedAgreement, UnverifiedAgreement};
pub use audit::{
    AnswerBody, AuditAnswer, AuditOutcome, BeaconRound, ChunkProof, DrawProof, DrawVerdict, OpenedLeaf,
    Standing, StandingState, Verdict,
};
pub use claim::{Claim, ClaimRef, ClaimState, ClaimTag};
pub use commitment::{
    Commitment, Countersignature, Declaration, DeclaredAs, Epoch, InventoryHash, OwnerHash, RecordId,
};
pub use declared_page::DeclaredPage;
pub use delegation::{Authority, Delegation, Rights};
pub use deny_list::{Denied, DeniedLine, DenyList};
pub use disclaimer::Disclaimer;
pub use grant::{Grant, GrantOps, PresentedGrant, ScopeId};
pub use head::{Head, InstanceId, PresentedHead};
pub use inventory_page::{InventoryEntry, InventoryPage};
pub use invite::{Invite, InviteText, InviteTextError};
pub use manifest::{Encryption, Manifest, ManifestPage, ManifestPart, WrappedKey};
pub use node_record::{NodeRecord, Prices, Reachability};
pub use receipt::{Receipt, ReceiptBlock};
pub use stripe::{Policy, PolicyName, Shard, Stripe, StripeId};
pub use transcript::{ReadTranscript, RunId, TranscriptRead, TranscriptSource};

/// A kind of record: its name, its version, and the bounds of its fields.
pub trait Record: Serialize + DeserializeOwned {
    /// The record's name, as in `holdfast <name> v<version>`.
    const NAME: &'static str;
    /// The signature domain of the newest version.
    const DOMAIN: &'static str;
    /// The newest version, which this release writes.
    const VERSION: u16 = 1;

    /// The `v` field.
    fn version(&self) -> u16;

    /// Checks the bounds that CBOR cannot express: counts, text lengths, orders.
    fn check_bounds(&self) -> Result<(), DecodeError>;

    /// Decodes one record from bytes that must be canonical, of a readable version and within bounds.
    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let record: Self = cbor::decode(bytes)?;
        if record.version() == 0 || record.version() > Self::VERSION {
            return Err(DecodeError::Version {
                record: Self::NAME,
                found: record.version(),
                newest: Self::VERSION,
            });
        }
        record.check_bounds()?;
        Ok(record)
    }

    /// The canonical bytes.
    fn encode(&self) -> Vec<u8> {
        cbor::encode(self)
    }
}

/// What is signed for a record of kind `R` with these bytes.
pub fn signing_hash<R: Record>(bytes: &[u8]) -> [u8; 32] {
    blake3::derive_key(R::DOMAIN, bytes)
}

/// A signed record as it arrives: nothing about it is known yet.
#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
pub struct Unverified<R> {
    /// The record's canonical bytes.
    #[serde(rename = "b")]
    bytes: ByteBuf,
    /// Who claims to have signed.
    #[serde(rename = "k")]
    signer: PublicKey,
    #[serde(rename = "s")]
    signature: Signature,
    #[serde(skip)]
    kind: PhantomData<fn() -> R>,
}

impl<R> Clone for Unverified<R> {
    fn clone(&self) -> Self {
        Self { bytes: self.bytes.clone(), signer: self.signer, signature: self.signature, kind: PhantomData }
    }
}

impl<R> PartialEq for Unverified<R> {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes && self.signer == other.signer && self.signature == other.signature
    }
}

impl<R> fmt::Debug for Unverified<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Unverified({} bytes by {})", self.bytes.len(), self.signer)
    }
}

impl<R: Record> Unverified<R> {
    /// Who claims to have signed; true only after [`Unverified::verify`].
    pub fn claimed_signer(&self) -> PublicKey {
        self.signer
    }

    /// Checks the signature, then decodes. The caller still decides whether this signer may say this.
    pub fn verify(&self) -> Result<Signed<R>, SignatureError> {
        if !self.signer.verify(&signing_hash::<R>(&self.bytes), &self.signature) {
            return Err(SignatureError::Forged { record: R::NAME });
        }
        let record =
            R::decode(&self.bytes).map_err(|source| SignatureError::Decode { record: R::NAME, source })?;
        Ok(Signed { record, wire: self.clone() })
    }

    /// [`Unverified::verify`], and the signer must be `expected`.
    pub fn verify_by(&self, expected: PublicKey) -> Result<Signed<R>, SignatureError> {
        if self.signer != expected {
            return Err(SignatureError::Signer { record: R::NAME, expected, found: self.signer });
        }
        self.verify()
    }
}

/// A record whose signature holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Signed<R> {
    record: R,
    wire: Unverified<R>,
}

impl<R: Record> Signed<R> {
    /// Signs `record`.
    pub fn sign(record: R, key: &SigningKey) -> Self {
        let bytes = record.encode();
        let signature = key.sign(&signing_hash::<R>(&bytes));
        let wire =
            Unverified { bytes: ByteBuf::from(bytes), signer: key.public(), signature, kind: PhantomData };
        Self { record, wire }
    }

    /// The record.
    pub fn record(&self) -> &R {
        &self.record
    }

    /// Who signed.
    pub fn signer(&self) -> PublicKey {
        self.wire.signer
    }

    /// BLAKE3 of the record's canonical bytes: its id where it has one.
    pub fn id(&self) -> [u8; 32] {
        *blake3::hash(&self.wire.bytes).as_bytes()
    }

    /// The form that travels.
    pub fn to_wire(&self) -> Unverified<R> {
        self.wire.clone()
    }

    /// The record alone.
    pub fn into_record(self) -> R {
        self.record
    }
}

/// Why a signed record is not accepted.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum SignatureError {
    /// The signature does not fit the bytes and the key.
    #[error("the signature of this {record} does not hold")]
    Forged {
        /// The record.
        record: &'static str,
    },
    /// Somebody else signed.
    #[error("this {record} is signed by {found}, expected {expected}")]
    Signer {
        /// The record.
        record: &'static str,
        /// Who should have.
        expected: PublicKey,
        /// Who did.
        found: PublicKey,
    },
    /// The signature holds over bytes that are no such record.
    #[error("this signed {record} cannot be read")]
    Decode {
        /// The record.
        record: &'static str,
        /// What is wrong with the bytes.
        source: DecodeError,
    },
    /// Its time has not come, or has passed.
    #[error("this {record} is not valid at this time (valid from {from_ms} to {until_ms}, now {now_ms})")]
    Expired {
        /// The record.
        record: &'static str,
        /// Valid from.
        from_ms: u64,
        /// Valid until.
        until_ms: u64,
        /// The verifier's clock.
        now_ms: u64,
    },
    /// The signer may not say this.
    #[error("this {record} exceeds the signer's rights: {detail}")]
    Rights {
        /// The record.
        record: &'static str,
        /// What is missing.
        detail: &'static str,
    },
}

/// Bounds check of a text field.
pub(crate) fn text_within(text: &str, field: &'static str) -> Result<(), DecodeError> {
    within(text.len() <= crate::limits::TEXT_LEN_MAX, field)
}

/// Bounds check of any field.
pub(crate) fn within(holds: bool, field: &'static str) -> Result<(), DecodeError> {
    if holds { Ok(()) } else { Err(DecodeError::OutOfBounds { field }) }
}

/// Declares a random id of 16 bytes, printed in hexadecimal.
macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 16]);
        $crate::key::serde_bytes_array!($name, 16);
        impl $name {
            /// A fresh random id.
            pub fn random() -> Result<Self, $crate::key::KeyError> {
                let mut bytes = [0u8; 16];
                getrandom::fill(&mut bytes).map_err(|_| $crate::key::KeyError::Random)?;
                Ok(Self(bytes))
            }
        }
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }
        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), hex::encode(self.0))
            }
        }
        impl std::str::FromStr for $name {
            type Err = hex::FromHexError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let mut bytes = [0u8; 16];
                hex::decode_to_slice(text, &mut bytes)?;
                Ok(Self(bytes))
            }
        }
    };
}
pub(crate) use random_id;
