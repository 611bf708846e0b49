//! The cipher of one part attempt: AES-256-CTR, seekable to any byte.

use std::fmt;

use aws_lc_rs::cipher::{AES_256, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::iv::FixedLength;
use zeroize::Zeroizing;

use super::CryptError;

/// Bytes of an AES block, and of one step of the counter.
const AES_BLOCK: usize = 16;

/// The key and nonce of one attempt at a part. Never reused: a retry draws another.
pub struct PartSecret {
    key: Zeroizing<[u8; 32]>,
    nonce: u64,
}

impl PartSecret {
    /// A fresh secret from the system's random source.
    pub fn fresh() -> Result<Self, CryptError> {
        let mut key = Zeroizing::new([0u8; 32]);
        let mut nonce = [0u8; 8];
        getrandom::fill(key.as_mut()).map_err(|_| CryptError::Random)?;
        getrandom::fill(&mut nonce).map_err(|_| CryptError::Random)?;
        Ok(Self { key, nonce: u64::from_be_bytes(nonce) })
    }

    pub(super) fn from_parts(key: [u8; 32], nonce: u64) -> Self {
        Self { key: Zeroizing::new(key), nonce }
    }

    /// The nonce half of the counter block; it may be known.
    pub fn nonce(&self) -> u64 {
        self.nonce
    }

    pub(super) fn expose(&self) -> &[u8; 32] {
        &self.key
    }

    /// The cipher under this secret.
    pub fn cipher(&self) -> Result<PartCipher, CryptError> {
        let key = UnboundCipherKey::new(&AES_256, self.key.as_ref()).map_err(|_| CryptError::Derive)?;
        let key = EncryptingKey::ctr(key).map_err(|_| CryptError::Derive)?;
        Ok(PartCipher { key, nonce: self.nonce })
    }
}

impl fmt::Debug for PartSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PartSecret(redacted)")
    }
}

/// Enciphers and deciphers (the same operation) any range of a part, in place.
///
/// The counter block is `nonce (8) | number of the 16-byte block (8)`, big-endian, so a part could have 2^68
/// bytes before the number wrapped.
pub struct PartCipher {
    key: EncryptingKey,
    nonce: u64,
}

impl PartCipher {
    /// Enciphers or deciphers `bytes`, which start at byte `offset` of the part.
    pub fn apply(&self, offset: u64, bytes: &mut [u8]) -> Result<(), CryptError> {
        let into = usize::try_from(offset % AES_BLOCK as u64).unwrap_or_default();
        let first = offset / AES_BLOCK as u64;
        if into == 0 {
            return self.run(first, bytes);
        }
        // The first AES block is entered midway: its keystream is made over zeros and taken from there.
        let (head, rest) = bytes.split_at_mut(bytes.len().min(AES_BLOCK - into));
        let mut keystream = Zeroizing::new([0u8; AES_BLOCK]);
        self.run(first, keystream.as_mut())?;
        for (byte, key) in head.iter_mut().zip(&keystream[into..]) {
            *byte ^= key;
        }
        self.run(first + 1, rest)
    }

    pub(super) fn run(&self, block: u64, bytes: &mut [u8]) -> Result<(), CryptError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let mut counter = [0u8; AES_BLOCK];
        counter[..8].copy_from_slice(&self.nonce.to_be_bytes());
        counter[8..].copy_from_slice(&block.to_be_bytes());
        let context = EncryptionContext::Iv128(FixedLength::from(counter));
        self.key.less_safe_encrypt(bytes, context).map(|_| ()).map_err(|_| CryptError::Derive)
    }
}

impl fmt::Debug for PartCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PartCipher(redacted)")
    }
}
