//! Root CIDs: the balanced UnixFS tree over an object's blocks as they are.
//!
//! Raw leaves, 1,024 links a node, BLAKE3 all the way up: the layout of IPIP-0499's profile `unixfs-v1-2025`
//! with another hash. One block is its own root; no bytes at all are one empty raw block, as
//! `ipfs-unixfs-importer` makes it. Blocks may have any lengths; the CID equals Kubo's when every block but
//! the last has 1 MiB.
//!
//! The inner nodes are computed, never stored: they can be computed again from the manifest.

use cid::Cid;
use holdfast_protocol::digest::CODEC_DAG_PB;
use holdfast_protocol::limits::MANIFEST_PAGE_ENTRIES;
use holdfast_protocol::{BlockLen, Digest};

mod directory;
mod node;
mod tree;

pub use directory::{Child, DirectoryError, directory};
pub use node::{FileNode, Link};
pub use tree::{TreeBuilder, TreeError};

/// Links of a node.
pub const LINKS_MAX: usize = MANIFEST_PAGE_ENTRIES;

/// Computes a root CID while blocks pass by, in order.
///
/// Holds one open node per level: about 150 KiB for a file of up to a terabyte.
#[derive(Debug, Default)]
pub struct RootBuilder {
    /// Level 0 gathers blocks, level i nodes of level i - 1.
    levels: Vec<Vec<Link>>,
    blocks: u64,
}

impl RootBuilder {
    /// A builder that has seen no block.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next block.
    pub fn push(&mut self, digest: Digest, len: BlockLen) {
        self.blocks += 1;
        let len = u64::from(len.bytes());
        self.add(0, Link { cid: digest.raw_cid(), tree_size: len, file_size: len });
    }

    /// Blocks seen.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    fn add(&mut self, mut level: usize, mut link: Link) {
        loop {
            if level == self.levels.len() {
                self.levels.push(Vec::new());
            }
            // A full node is closed only when another link needs its place: the last one may be the root.
            if self.levels[level].len() < LINKS_MAX {
                self.levels[level].push(link);
                return;
            }
            let full = std::mem::replace(&mut self.levels[level], vec![link]);
            link = FileNode::new(full).link();
            level += 1;
        }
    }

    /// The root CID of all blocks taken.
    pub fn finish(self) -> Cid {
        self.finish_link().cid
    }

    /// The root of all blocks taken, as the child of a directory.
    pub fn finish_link(mut self) -> Link {
        if self.blocks == 0 {
            return Link { cid: Digest::of(&[]).raw_cid(), tree_size: 0, file_size: 0 };
        }
        let mut level = 0;
        loop {
            let mut links = std::mem::take(&mut self.levels[level]);
            let top = level + 1 == self.levels.len();
            // A single leaf is the file. Above the leaves a level of one link never tops the tree: a level
            // is made by a node that was full.
            if top && links.len() == 1 {
                return links.remove(0);
            }
            let link = FileNode::new(links).link();
            if top {
                return link;
            }
            self.add(level + 1, link);
            level += 1;
        }
    }
}

/// The CID of a dag-pb node's bytes.
fn node_cid(bytes: &[u8]) -> Cid {
    Digest::of(bytes).cid(CODEC_DAG_PB)
}

#[cfg(test)]
mod tests;
