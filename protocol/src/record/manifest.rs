//! Manifest: the list of an object's blocks. It never names a stripe or a node.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::{Record, within};
use crate::cbor::DecodeError;
use crate::digest::{BlockLen, Digest};
use crate::limits::MANIFEST_PAGE_ENTRIES;

/// How an object's bytes are enciphered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Encryption {
    /// Public: blocks hold the bytes themselves.
    None,
    /// AES-256-CTR, one fresh key per part attempt.
    Aes256Ctr,
    /// Per block, key derived from the bucket's secret and the plaintext; counter 0 at the block's start.
    Dedup,
}

/// A part's key, wrapped by the bucket key with AES-256-GCM-SIV.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrappedKey {
    /// The epoch of the bucket key that wraps it.
    pub epoch: u32,
    /// 96-bit nonce of the wrapping.
    #[serde(with = "serde_bytes")]
    pub nonce: [u8; 12],
    /// The wrapped key with its tag: 48 bytes, for one 256-bit key.
    pub sealed: ByteBuf,
}

/// One upload part (or the whole of a single PUT) and how to decipher it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestPart {
    /// Where it starts in the object.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u64,
    /// Its key; `None` for public objects.
    pub key: Option<WrappedKey>,
    /// The random 64-bit half of the counter block.
    pub iv_nonce: u64,
}

/// The head of an object's manifest. Its pages are kept beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version.
    pub v: u16,
    /// Bytes of the object.
    pub size: u64,
    /// Blocks of the object.
    pub block_count: u64,
    /// The root CID in binary; of ciphertext when private.
    pub root_cid: ByteBuf,
    /// The cipher.
    pub encryption: Encryption,
    /// Parts in order, without gaps.
    pub parts: Vec<ManifestPart>,
}

impl Record for Manifest {
    const NAME: &'static str = "manifest";
    const DOMAIN: &'static str = "holdfast manifest v1";
    fn version(&self) -> u16 {
        self.v
    }
    fn check_bounds(&self) -> Result<(), DecodeError> {
        let mut at = 0u64;
        for part in &self.parts {
            within(part.offset == at, "parts")?;
            at = at.checked_add(part.len).ok_or(DecodeError::OutOfBounds { field: "parts" })?;
            within(part.key.as_ref().is_none_or(|key| key.sealed.len() == 48), "key")?;
        }
        within(at == self.size, "size")?;
        within(self.root_cid.len() <= 64, "root_cid")
    }
}

/// Up to 1,024 consecutive blocks of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestPage {
    /// Version.
    pub v: u16,
    /// Bytes of the object before this page.
    pub offset: u64,
    /// The blocks.
    pub blocks: Vec<(Digest, BlockLen)>,
}

impl Record for ManifestPage {
    const NAME: &'static str = "manifest page";
    const DOMAIN: &'static str = "holdfast manifest page v1";
    fn version(&self) -> u16 {
        self.v
    }
    fn check_bounds(&self) -> Result<(), DecodeError> {
        within(!self.blocks.is_empty() && self.blocks.len() <= MANIFEST_PAGE_ENTRIES, "blocks")
    }
}
