//! The cipher of an object's part: AES-256-CTR, seekable to any byte.
//!
//! Whoever holds a part's key and nonce reads any range of it: the gateway, and a client that reads straight
//! from the nodes. Integrity is none of its business; the digests over the ciphertext give that.

use std::fmt;

use aws_lc_rs::cipher::{AES_256, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::iv::FixedLength;
use zeroize::Zeroizing;

/// Bytes of an AES block, and of one step of the counter.
const AES_BLOCK: usize = 16;

/// The crypto library refused. With keys of the right length it has no reason to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the cipher cannot be used")]
pub struct CipherError;

impl CipherError {
    /// Whether the same call may succeed later: no.
    pub fn is_retryable(&self) -> bool {
        false
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
    /// The cipher under this key and nonce.
    pub fn new(key: &[u8; 32], nonce: u64) -> Result<Self, CipherError> {
        let key = UnboundCipherKey::new(&AES_256, key).map_err(|_| CipherError)?;
        let key = EncryptingKey::ctr(key).map_err(|_| CipherError)?;
        Ok(Self { key, nonce })
    }

    /// Enciphers or deciphers `bytes`, which start at byte `offset` of the part.
    pub fn apply(&self, offset: u64, bytes: &mut [u8]) -> Result<(), CipherError> {
        let into = usize::try_from(offset % AES_BLOCK as u64).unwrap_or_default();
        let first = offset / AES_BLOCK as u64;
        if into == 0 {
            return self.apply_from_block(first, bytes);
        }
        // The first AES block is entered midway: its keystream is made over zeros and taken from there.
        let (head, rest) = bytes.split_at_mut(bytes.len().min(AES_BLOCK - into));
        let mut keystream = Zeroizing::new([0u8; AES_BLOCK]);
        self.apply_from_block(first, keystream.as_mut())?;
        for (byte, key) in head.iter_mut().zip(&keystream[into..]) {
            *byte ^= key;
        }
        self.apply_from_block(first + 1, rest)
    }

    /// Enciphers or deciphers `bytes`, which start with the part's 16-byte block number `block`.
    pub fn apply_from_block(&self, block: u64, bytes: &mut [u8]) -> Result<(), CipherError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let mut counter = [0u8; AES_BLOCK];
        counter[..8].copy_from_slice(&self.nonce.to_be_bytes());
        counter[8..].copy_from_slice(&block.to_be_bytes());
        let context = EncryptionContext::Iv128(FixedLength::from(counter));
        self.key.less_safe_encrypt(bytes, context).map(|_| ()).map_err(|_| CipherError)
    }
}

impl fmt::Debug for PartCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PartCipher(redacted)")
    }
}
