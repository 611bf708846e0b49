//! Blocks as a writer or reader holds them: bytes that were hashed here, and names of bytes to fetch.
//!
//! A [`Block`] can only be made by hashing its bytes (or from bytes that were verified to be it), so wherever one appears its digest is known to be true.

use bytes::Bytes;
use holdfast_protocol::digest::BlockLenError;
use holdfast_protocol::{BlockLen, Digest};

use crate::fetch::VerifiedBytes;

/// Bytes and their own digest. Cloning shares the bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Block {
    digest: Digest,
    len: BlockLen,
    bytes: Bytes,
}

impl Block {
    /// Hashes `bytes`, which must be 1 byte to 1 MiB.
    pub fn new(bytes: Bytes) -> Result<Self, BlockLenError> {
        let len = BlockLen::of(&bytes)?;
        Ok(Self { digest: Digest::of(&bytes), len, bytes })
    }

    /// The block that `bytes` were found to be when they were verified against `block`.
    pub(crate) fn of_verified(block: BlockRef, bytes: &VerifiedBytes) -> Self {
        debug_assert_eq!(block.len.as_usize(), bytes.len());
        Self { digest: block.digest, len: block.len, bytes: bytes.clone().into_bytes() }
    }

    /// The digest of the bytes.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// How many bytes.
    pub fn len(&self) -> BlockLen {
        self.len
    }

    /// Never: a block has at least one byte.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The bytes, without the digest.
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }

    /// What a manifest keeps of it.
    pub fn to_ref(&self) -> BlockRef {
        BlockRef { digest: self.digest, len: self.len }
    }
}

impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Block({:?}, {} bytes)", self.digest, self.len)
    }
}

/// A block's name and length, from a record that is trusted (a manifest or a stripe row), never from an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockRef {
    /// Its digest.
    pub digest: Digest,
    /// Its length.
    pub len: BlockLen,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_knows_the_digest_and_length_of_its_bytes() {
        let block = Block::new(Bytes::from_static(b"held fast")).unwrap();
        assert_eq!(block.digest(), Digest::of(b"held fast"));
        assert_eq!(block.to_ref(), BlockRef { digest: block.digest(), len: BlockLen::new(9).unwrap() });
    }

    #[test]
    fn nothing_and_more_than_a_mebibyte_are_no_blocks() {
        assert!(Block::new(Bytes::new()).is_err());
        assert!(Block::new(Bytes::from(vec![0; 1024 * 1024 + 1])).is_err());
        assert!(Block::new(Bytes::from(vec![0; 1024 * 1024])).is_ok());
    }
}
