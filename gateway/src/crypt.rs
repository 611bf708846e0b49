//! Encryption of what leaves the gateway, and seals on what it keeps.
//!
//! - Object bytes: AES-256-CTR, length-preserving, so that any range is read alone. Every attempt at a part or a
//!   single PUT draws a fresh key and nonce ([`PartSecret`]): no (key, counter) pair ever serves two plaintexts.
//! - Keys: wrapped by the bucket's key with AES-256-GCM-SIV, bound to where they belong ([`WrapContext`]).
//! - Rows: a keyed BLAKE3 over key and value ([`BucketKeys::seal`]), so that a table which others can write
//!   cannot swap rows in silence.
//!
//! It never decides what is encrypted, and gives no integrity to block bytes: the CIDs over ciphertext do.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf;
use holdfast_protocol::NamespaceId;
use holdfast_protocol::record::WrappedKey;
use serde_bytes::ByteBuf;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::keys::RootKey;
use crate::meta::{BucketId, VersionId};

mod part;

pub use holdfast_retrieval::cipher::PartCipher;
pub use part::PartSecret;

/// Bytes of a row's seal. 128 bits: a forger gets one try per read, and no oracle to search with.
pub const SEAL_LEN: usize = 16;

/// Everything that derives from a namespace's root key.
#[derive(Clone)]
pub struct NamespaceKeys {
    root: RootKey,
    namespace: NamespaceId,
}

impl NamespaceKeys {
    /// The keys of `namespace` under `root`.
    pub fn new(root: RootKey, namespace: NamespaceId) -> Self {
        Self { root, namespace }
    }

    /// Whose keys.
    pub fn namespace(&self) -> NamespaceId {
        self.namespace
    }

    /// The keys of a bucket in an epoch.
    pub fn bucket(&self, bucket: BucketId, epoch: u32) -> Result<BucketKeys, CryptError> {
        let wrap = self.derive(b"wrap", &bucket.0, epoch)?;
        let seal = self.derive(b"seal", &bucket.0, epoch)?;
        let wrap = UnboundKey::new(&AES_256_GCM_SIV, wrap.as_ref()).map_err(|_| CryptError::Derive)?;
        Ok(BucketKeys { namespace: self.namespace, bucket, epoch, wrap: LessSafeKey::new(wrap), seal })
    }

    /// The seal of a row that belongs to no bucket: bucket rows themselves, and the mark of these keys.
    pub fn seal(&self, key: &[u8], value: &[u8]) -> Result<[u8; SEAL_LEN], CryptError> {
        Ok(seal(&*self.derive(b"rows", &[], 0)?, key, value))
    }

    /// Whether `found` is the row's seal; in constant time.
    pub fn check_seal(&self, key: &[u8], value: &[u8], found: &[u8]) -> Result<bool, CryptError> {
        Ok(self.seal(key, value)?.ct_eq(found).into())
    }

    /// HKDF-SHA-256 of the root key, with namespace, purpose, bucket and epoch as its info.
    fn derive(&self, purpose: &[u8], bucket: &[u8], epoch: u32) -> Result<Zeroizing<[u8; 32]>, CryptError> {
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"holdfast bucket key v1");
        let epoch = epoch.to_be_bytes();
        let info: [&[u8]; 4] = [self.namespace.as_bytes(), purpose, &epoch, bucket];
        let mut key = Zeroizing::new([0u8; 32]);
        salt.extract(self.root.expose())
            .expand(&info, hkdf::HKDF_SHA256)
            .and_then(|okm| okm.fill(key.as_mut()))
            .map_err(|_| CryptError::Derive)?;
        Ok(key)
    }
}

impl fmt::Debug for NamespaceKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NamespaceKeys(of {}, redacted)", self.namespace)
    }
}

/// Where a wrapped key belongs. A key unwraps only with all of it unchanged.
#[derive(Clone, Copy, Debug)]
pub struct WrapContext<'a> {
    /// The object's key.
    pub object: &'a str,
    /// Its version, or the upload of an unfinished part.
    pub version: VersionId,
    /// Where the part starts in the object; the part number of an unfinished part.
    pub offset: u64,
    /// Bytes of the object, or of the unfinished part.
    pub size: u64,
    /// The object's root CID in binary; empty for an unfinished part.
    pub root_cid: &'a [u8],
}

/// The keys of one bucket in one epoch.
pub struct BucketKeys {
    namespace: NamespaceId,
    bucket: BucketId,
    epoch: u32,
    wrap: LessSafeKey,
    seal: Zeroizing<[u8; 32]>,
}

impl BucketKeys {
    /// Wraps a part's key. The nonce half of the secret travels beside it in the clear.
    pub fn wrap(&self, secret: &PartSecret, context: &WrapContext<'_>) -> Result<WrappedKey, CryptError> {
        let mut nonce = [0u8; NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(|_| CryptError::Random)?;
        let mut sealed = secret.expose().to_vec();
        self.wrap
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(self.associated(context, secret.nonce())),
                &mut sealed,
            )
            .map_err(|_| CryptError::Derive)?;
        Ok(WrappedKey { epoch: self.epoch, nonce, sealed: ByteBuf::from(sealed) })
    }

    /// Unwraps a part's key.
    pub fn unwrap(
        &self,
        key: &WrappedKey,
        iv_nonce: u64,
        context: &WrapContext<'_>,
    ) -> Result<PartSecret, CryptError> {
        if key.epoch != self.epoch {
            return Err(CryptError::Epoch { found: key.epoch, held: self.epoch });
        }
        let mut sealed = Zeroizing::new(key.sealed.to_vec());
        let opened = self
            .wrap
            .open_in_place(
                Nonce::assume_unique_for_key(key.nonce),
                Aad::from(self.associated(context, iv_nonce)),
                &mut sealed,
            )
            .map_err(|_| CryptError::Unwrap)?;
        let bytes: [u8; 32] = (&*opened).try_into().map_err(|_| CryptError::Unwrap)?;
        Ok(PartSecret::from_parts(bytes, iv_nonce))
    }

    /// The seal of a row.
    pub fn seal(&self, key: &[u8], value: &[u8]) -> [u8; SEAL_LEN] {
        seal(&self.seal, key, value)
    }

    /// Whether `found` is the row's seal; in constant time.
    pub fn check_seal(&self, key: &[u8], value: &[u8], found: &[u8]) -> bool {
        self.seal(key, value).ct_eq(found).into()
    }

    /// What the wrapping binds: fixed-length fields first, then texts with their lengths, so that no two
    /// contexts have one encoding.
    fn associated(&self, context: &WrapContext<'_>, iv_nonce: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(128 + context.object.len());
        bytes.extend_from_slice(b"holdfast part key v1");
        bytes.extend_from_slice(self.namespace.as_bytes());
        bytes.extend_from_slice(&self.bucket.0);
        bytes.extend_from_slice(&context.version.0);
        for number in [context.offset, context.size, iv_nonce, context.object.len() as u64] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(context.object.as_bytes());
        bytes.extend_from_slice(context.root_cid);
        bytes
    }
}

impl fmt::Debug for BucketKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BucketKeys(of {:?}, epoch {}, redacted)", self.bucket, self.epoch)
    }
}

fn seal(with: &[u8; 32], key: &[u8], value: &[u8]) -> [u8; SEAL_LEN] {
    let mut hasher = blake3::Hasher::new_keyed(with);
    hasher.update(&(key.len() as u64).to_le_bytes()).update(key).update(value);
    let mut out = [0u8; SEAL_LEN];
    out.copy_from_slice(&hasher.finalize().as_bytes()[..SEAL_LEN]);
    out
}

/// Why something could not be enciphered or deciphered.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[non_exhaustive]
pub enum CryptError {
    /// The system gave no random bytes.
    #[error("the system's random source failed")]
    Random,
    /// A key could not be derived or used.
    #[error("a key could not be derived")]
    Derive,
    /// The wrapped key is not this object's, or was changed.
    #[error("a wrapped key does not open: it was changed, or belongs to another object or bucket")]
    Unwrap,
    /// Wrapped by a bucket key of another epoch.
    #[error("a key is wrapped by epoch {found} of the bucket key; epoch {held} is held")]
    Epoch {
        /// The epoch of the wrapping.
        found: u32,
        /// The epoch of the key.
        held: u32,
    },
}

impl From<holdfast_retrieval::cipher::CipherError> for CryptError {
    fn from(_: holdfast_retrieval::cipher::CipherError) -> Self {
        Self::Derive
    }
}

impl CryptError {
    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Random)
    }
}

#[cfg(test)]
mod tests;
