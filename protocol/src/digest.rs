//! Content addresses: the BLAKE3 digest that names a block, and its CID.

use std::fmt;
use std::str::FromStr;

use cid::Cid;
use multihash::Multihash;
use serde::{Deserialize, Serialize};

use crate::limits::BLOCK_LEN_MAX;

/// Multicodec of raw bytes.
pub const CODEC_RAW: u64 = 0x55;
/// Multicodec of a UnixFS node.
pub const CODEC_DAG_PB: u64 = 0x70;
/// Multihash code of BLAKE3 (256 bits here, always).
pub const MULTIHASH_BLAKE3: u64 = 0x1e;

/// The BLAKE3-256 digest of a block's bytes: what nodes know a block by.
///
/// Serialised as a CBOR byte string of 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Hashes `bytes` whole.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// The digest's 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The CIDv1 of a raw block with this digest.
    pub fn raw_cid(&self) -> Cid {
        self.cid(CODEC_RAW)
    }

    /// The CIDv1 with `codec` and this digest.
    pub fn cid(&self, codec: u64) -> Cid {
        let hash =
            Multihash::<64>::wrap(MULTIHASH_BLAKE3, &self.0).expect("32 bytes fit a 64-byte multihash");
        Cid::new_v1(codec, hash)
    }

    /// Takes the digest out of a CID. Any codec is accepted; the hash must be BLAKE3 of 32 bytes.
    pub fn from_cid(cid: &Cid) -> Result<Self, CidError> {
        if cid.hash().code() != MULTIHASH_BLAKE3 {
            return Err(CidError::NotBlake3 { code: cid.hash().code() });
        }
        let bytes: [u8; 32] = cid
            .hash()
            .digest()
            .try_into()
            .map_err(|_| CidError::Length { len: cid.hash().digest().len() })?;
        Ok(Self(bytes))
    }
}

impl From<blake3::Hash> for Digest {
    fn from(hash: blake3::Hash) -> Self {
        Self(*hash.as_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.raw_cid(), f)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({})", hex::encode(&self.0[..8]))
    }
}

impl FromStr for Digest {
    type Err = CidError;

    /// Parses a CID, or 64 hexadecimal digits.
    fn from_str(text: &str) -> Result<Self, CidError> {
        if text.len() == 64
            && let Ok(bytes) = hex::decode(text)
            && let Ok(bytes) = bytes.try_into()
        {
            return Ok(Self(bytes));
        }
        let cid = Cid::try_from(text).map_err(|source| CidError::Parse { text: clip(text), source })?;
        Self::from_cid(&cid)
    }
}

fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}

crate::key::serde_bytes_array!(Digest, 32);

/// Why a text or a CID does not name a Holdfast block.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CidError {
    /// The text is not a CID at all.
    #[error("`{text}` is not a CID: {source}")]
    Parse {
        /// The text, at most 80 characters of it.
        text: String,
        /// What the CID parser said.
        source: cid::Error,
    },
    /// Another hash function.
    #[error("the CID uses multihash code {code:#x}; Holdfast names blocks by BLAKE3 (0x1e)")]
    NotBlake3 {
        /// The multihash code found.
        code: u64,
    },
    /// A BLAKE3 digest of another length.
    #[error("the CID's digest has {len} bytes instead of 32")]
    Length {
        /// Bytes found.
        len: usize,
    },
}

/// The length of a block in bytes: 1 to 1 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct BlockLen(u32);

impl BlockLen {
    /// The longest block.
    pub const MAX: Self = Self(BLOCK_LEN_MAX);

    /// Takes a length that some peer or table claims.
    pub fn new(len: u32) -> Result<Self, BlockLenError> {
        if len == 0 || len > BLOCK_LEN_MAX {
            Err(BlockLenError { len: u64::from(len) })
        } else {
            Ok(Self(len))
        }
    }

    /// The length of `bytes` as a block.
    pub fn of(bytes: &[u8]) -> Result<Self, BlockLenError> {
        let len = u32::try_from(bytes.len()).map_err(|_| BlockLenError { len: bytes.len() as u64 })?;
        Self::new(len)
    }

    /// The length in bytes.
    pub const fn bytes(self) -> u32 {
        self.0
    }

    /// The length in bytes, for indexing.
    pub const fn as_usize(self) -> usize {
        self.0 as usize
    }
}

impl TryFrom<u32> for BlockLen {
    type Error = BlockLenError;
    fn try_from(len: u32) -> Result<Self, BlockLenError> {
        Self::new(len)
    }
}

impl From<BlockLen> for u32 {
    fn from(len: BlockLen) -> Self {
        len.0
    }
}

impl fmt::Display for BlockLen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A length that no block can have.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("a block has 1 to 1048576 bytes, not {len}")]
pub struct BlockLenError {
    /// The length that was claimed.
    pub len: u64,
}
