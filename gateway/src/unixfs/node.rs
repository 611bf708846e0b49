//! One inner node of a file: dag-pb around UnixFS, encoded by hand.
//!
//! dag-pb (canonical order: links first, then data, as every implementation writes it):
//!
//! ```text
//! PBNode  2: PBLink*   1: Data
//! PBLink  1: CID bytes  2: name ("" is written)  3: tree size
//! Data    1: type (2 = file)  3: file size  4: block size, once per link, not packed
//! ```

use cid::Cid;

use super::node_cid;

/// A child of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The child.
    pub cid: Cid,
    /// Bytes of all blocks and nodes beneath, the child's own included.
    pub tree_size: u64,
    /// Bytes of the file beneath.
    pub file_size: u64,
}

/// A node over consecutive children.
#[derive(Clone, Debug)]
pub struct FileNode {
    bytes: Vec<u8>,
    tree_size: u64,
    file_size: u64,
}

pub(super) const WIRE_VARINT: u8 = 0;
pub(super) const WIRE_BYTES: u8 = 2;
const TYPE_FILE: u64 = 2;

impl FileNode {
    /// Encodes the node over `links`.
    pub fn new(links: Vec<Link>) -> Self {
        let file_size = links.iter().map(|link| link.file_size).sum();
        let mut data = Vec::with_capacity(16 + links.len() * 4);
        field(&mut data, 1, WIRE_VARINT);
        varint(&mut data, TYPE_FILE);
        field(&mut data, 3, WIRE_VARINT);
        varint(&mut data, file_size);
        for link in &links {
            field(&mut data, 4, WIRE_VARINT);
            varint(&mut data, link.file_size);
        }

        let mut bytes = Vec::with_capacity(data.len() + links.len() * 56);
        let mut inner = Vec::with_capacity(64);
        for link in &links {
            inner.clear();
            field(&mut inner, 1, WIRE_BYTES);
            delimited(&mut inner, &link.cid.to_bytes());
            field(&mut inner, 2, WIRE_BYTES);
            delimited(&mut inner, &[]);
            field(&mut inner, 3, WIRE_VARINT);
            varint(&mut inner, link.tree_size);
            field(&mut bytes, 2, WIRE_BYTES);
            delimited(&mut bytes, &inner);
        }
        field(&mut bytes, 1, WIRE_BYTES);
        delimited(&mut bytes, &data);
        let beneath: u64 = links.iter().map(|link| link.tree_size).sum();
        let tree_size = beneath + bytes.len() as u64;
        Self { bytes, tree_size, file_size }
    }

    /// The node's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The node's CID.
    pub fn cid(&self) -> Cid {
        node_cid(&self.bytes)
    }

    /// The node as a child of another.
    pub fn link(&self) -> Link {
        Link { cid: self.cid(), tree_size: self.tree_size, file_size: self.file_size }
    }
}

pub(super) fn field(out: &mut Vec<u8>, number: u8, wire: u8) {
    out.push(number << 3 | wire);
}

pub(super) fn varint(out: &mut Vec<u8>, mut value: u64) {
    loop {
        let low = u8::try_from(value & 0x7f).unwrap_or_default();
        value >>= 7;
        if value == 0 {
            out.push(low);
            return;
        }
        out.push(low | 0x80);
    }
}

pub(super) fn delimited(out: &mut Vec<u8>, bytes: &[u8]) {
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}
