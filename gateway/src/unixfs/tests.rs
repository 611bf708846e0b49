use aws_lc_rs::cipher::{AES_256, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::iv::FixedLength;
use serde::Deserialize;

use super::*;

const MIB: u64 = 1024 * 1024;

#[derive(Deserialize)]
struct Vectors {
    key: String,
    vectors: Vec<Whole>,
    odd: Vec<Odd>,
}

#[derive(Deserialize)]
struct Whole {
    size: u64,
    cid: String,
}

#[derive(Deserialize)]
struct Odd {
    blocks: u64,
    modulus: u64,
    cid: String,
}

fn vectors() -> Vectors {
    serde_json::from_str(include_str!("../../tests/vectors/unixfs.json")).unwrap()
}

/// The keystream that the vectors' JSON describes, from any offset.
struct Keystream {
    key: EncryptingKey,
}

impl Keystream {
    fn new(key: &str) -> Self {
        let key = UnboundCipherKey::new(&AES_256, &hex::decode(key).unwrap()).unwrap();
        Self { key: EncryptingKey::ctr(key).unwrap() }
    }

    /// `len` bytes from `offset`.
    fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let into = usize::try_from(offset % 16).unwrap();
        let mut bytes = vec![0; into + len];
        let counter = u128::from(offset / 16).to_be_bytes();
        self.key.less_safe_encrypt(&mut bytes, EncryptionContext::Iv128(FixedLength::from(counter))).unwrap();
        bytes.drain(..into);
        bytes
    }
}

fn root(keystream: &Keystream, lengths: impl Iterator<Item = u64>) -> String {
    let mut builder = RootBuilder::new();
    let mut offset = 0;
    for len in lengths {
        let block = keystream.read(offset, usize::try_from(len).unwrap());
        builder.push(Digest::of(&block), BlockLen::of(&block).unwrap());
        offset += len;
    }
    builder.finish().to_string()
}

#[test]
fn roots_equal_those_of_another_implementation() {
    let vectors = vectors();
    let keystream = Keystream::new(&vectors.key);
    assert!(vectors.vectors.iter().any(|vector| vector.size > 1024 * MIB));
    for Whole { size, cid } in vectors.vectors {
        let lengths = (0..size.div_ceil(MIB)).map(|block| MIB.min(size - block * MIB));
        assert_eq!(root(&keystream, lengths), cid, "{size} bytes");
    }
}

#[test]
fn roots_over_odd_blocks_equal_those_of_another_implementation() {
    let vectors = vectors();
    let keystream = Keystream::new(&vectors.key);
    for Odd { blocks, modulus, cid } in vectors.odd {
        let lengths = (0..blocks).map(|block| 1 + block * 7919 % modulus);
        assert_eq!(root(&keystream, lengths), cid, "{blocks} blocks");
    }
}

#[test]
fn one_block_is_its_own_root() {
    let mut builder = RootBuilder::new();
    builder.push(Digest::of(b"x"), BlockLen::new(1).unwrap());
    assert_eq!(builder.finish(), Digest::of(b"x").raw_cid());
    assert_eq!(RootBuilder::new().finish(), Digest::of(b"").raw_cid());
}
