//! Keys and the ids that are keys: Ed25519, by aws-lc.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use zeroize::Zeroizing;

/// Implements serde for a newtype over a byte array as a CBOR byte string of exactly that length.
macro_rules! serde_bytes_array {
    ($name:ident, $len:expr) => {
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_bytes(&self.0)
            }
        }
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let bytes: &serde_bytes::Bytes = serde::Deserialize::deserialize(deserializer)?;
                <[u8; $len]>::try_from(bytes.as_ref()).map(Self).map_err(|_| {
                    serde::de::Error::invalid_length(bytes.len(), &concat!(stringify!($len), " bytes"))
                })
            }
        }
    };
}
pub(crate) use serde_bytes_array;

/// Multicodec prefix of an Ed25519 public key, as in `did:key`.
const MULTICODEC_ED25519: [u8; 2] = [0xed, 0x01];

/// An Ed25519 public key. Printed as multibase base58btc with its multicodec (`z6Mk…`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

serde_bytes_array!(PublicKey, 32);

impl PublicKey {
    /// Whether `signature` is this key's over `message`.
    pub fn verify(&self, message: &[u8], signature: &Signature) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0).verify(message, &signature.0).is_ok()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = [0u8; 34];
        bytes[..2].copy_from_slice(&MULTICODEC_ED25519);
        bytes[2..].copy_from_slice(&self.0);
        f.write_str(&multibase::encode(multibase::Base::Base58Btc, bytes))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Self, KeyError> {
        let (_, bytes) = multibase::decode(text).map_err(|_| KeyError::Text)?;
        let key = bytes.strip_prefix(&MULTICODEC_ED25519).ok_or(KeyError::Text)?;
        Ok(Self(key.try_into().map_err(|_| KeyError::Text)?))
    }
}

/// Declares an id that is a public key, with conversions both ways.
macro_rules! key_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub PublicKey);
        impl From<PublicKey> for $name {
            fn from(key: PublicKey) -> Self { Self(key) }
        }
        impl $name {
            /// The key itself.
            pub fn key(&self) -> PublicKey { self.0 }
            /// The key's 32 bytes.
            pub fn as_bytes(&self) -> &[u8; 32] { &self.0.0 }
            /// The first characters, for logs and tables.
            pub fn short(&self) -> String { self.to_string().chars().skip(5).take(8).collect() }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { fmt::Display::fmt(&self.0, f) }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.short())
            }
        }
        impl FromStr for $name {
            type Err = KeyError;
            fn from_str(text: &str) -> Result<Self, KeyError> { text.parse().map(Self) }
        }
    };
}

key_id!(
    /// A peer on the network, named by its TLS key: a storage node, a gateway, an auditor or a client.
    NodeId
);
key_id!(
    /// The owner of buckets, agreements and heads.
    NamespaceId
);
key_id!(
    /// Whoever runs nodes; one key may run several.
    OperatorId
);

/// An Ed25519 signature.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature(pub [u8; 64]);

serde_bytes_array!(Signature, 64);

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({}…)", hex::encode(&self.0[..6]))
    }
}

/// A private key. Its bytes are wiped when dropped and never printed.
pub struct SigningKey {
    seed: Zeroizing<[u8; 32]>,
    pair: Ed25519KeyPair,
}

impl SigningKey {
    /// A fresh key from the system's random source.
    pub fn generate() -> Result<Self, KeyError> {
        let mut seed = Zeroizing::new([0u8; 32]);
        getrandom::fill(seed.as_mut()).map_err(|_| KeyError::Random)?;
        Self::from_seed(&seed)
    }

    /// The key whose RFC 8032 seed is `seed`.
    pub fn from_seed(seed: &[u8; 32]) -> Result<Self, KeyError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| KeyError::Seed)?;
        Ok(Self { seed: Zeroizing::new(*seed), pair })
    }

    /// The seed, for a key file of mode 0600.
    pub fn seed(&self) -> &[u8; 32] {
        &self.seed
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        let bytes = self.pair.public_key().as_ref();
        PublicKey(bytes.try_into().expect("an Ed25519 public key has 32 bytes"))
    }

    /// Signs `message` as it is. Records are signed through [`crate::record::Signed`], which adds their domain.
    pub fn sign(&self, message: &[u8]) -> Signature {
        let signature = self.pair.sign(message);
        Signature(signature.as_ref().try_into().expect("an Ed25519 signature has 64 bytes"))
    }

    /// PKCS#8 for the TLS library.
    pub fn pkcs8(&self) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let document = self.pair.to_pkcs8v1().map_err(|_| KeyError::Seed)?;
        Ok(Zeroizing::new(document.as_ref().to_vec()))
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey(of {})", self.public())
    }
}

/// Why a key could not be made or read.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The system gave no random bytes.
    #[error("the system's random source failed")]
    Random,
    /// The seed is not one of an Ed25519 key.
    #[error("the seed is not one of an Ed25519 key")]
    Seed,
    /// Not a multibase Ed25519 public key.
    #[error("not an Ed25519 public key in multibase (expected z6Mk…)")]
    Text,
}
