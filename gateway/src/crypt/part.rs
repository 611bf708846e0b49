//! The secret of one part attempt. Its cipher is the reader's too, and lives there.

use std::fmt;

use holdfast_retrieval::cipher::PartCipher;
use zeroize::Zeroizing;

use super::CryptError;

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

    /// The key itself, for whoever may read the plaintext.
    pub(crate) fn expose(&self) -> &[u8; 32] {
        &self.key
    }

    /// The cipher under this secret.
    pub fn cipher(&self) -> Result<PartCipher, CryptError> {
        Ok(PartCipher::new(&self.key, self.nonce)?)
    }
}

impl fmt::Debug for PartSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PartSecret(redacted)")
    }
}
