//! A node of BLAKE3's tree, in the form in which `rs_merkle` can build with it.
//!
//! BLAKE3 computes the topmost parent with a flag of its own, which `rs_merkle` cannot express: it does
//! not know which parent is the last. So a node carries both forms, the chaining value that its parent
//! would take in and the root form that it would have if it were the top. The root form of the top node
//! is the block's digest; every other root form is meaningless and is never computed. Only the chaining
//! value is serialised.

use blake3::hazmat::{Mode, merge_subtrees_non_root, merge_subtrees_root};
use holdfast_protocol::Digest;

/// What a parent takes in: the non-root hash of a chunk, group or subtree.
pub type ChainingValue = [u8; 32];

/// A node of the tree: a leaf, or a parent that remembers its two children.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    chaining_value: ChainingValue,
    children: Option<(ChainingValue, ChainingValue)>,
}

impl Node {
    /// A leaf, or any subtree known by its chaining value alone.
    pub const fn leaf(chaining_value: ChainingValue) -> Self {
        Self { chaining_value, children: None }
    }

    /// The parent of two subtrees. Costs one compression (about 70 ns).
    pub fn parent(left: &ChainingValue, right: &ChainingValue) -> Self {
        Self {
            chaining_value: merge_subtrees_non_root(left, right, Mode::Hash),
            children: Some((*left, *right)),
        }
    }

    /// What this node's parent takes in.
    pub const fn chaining_value(&self) -> &ChainingValue {
        &self.chaining_value
    }

    /// The root form: the digest of the whole input, if this node is its top. `None` for a leaf, whose
    /// root form only its bytes give. Costs one compression.
    pub fn root(&self) -> Option<Digest> {
        self.children.map(|(left, right)| root_of(&left, &right))
    }
}

/// The digest of an input whose tree has these two halves.
pub fn root_of(left: &ChainingValue, right: &ChainingValue) -> Digest {
    Digest::from(merge_subtrees_root(left, right, Mode::Hash))
}

impl From<Node> for Vec<u8> {
    fn from(node: Node) -> Self {
        node.chaining_value.to_vec()
    }
}

impl TryFrom<Vec<u8>> for Node {
    type Error = Vec<u8>;

    fn try_from(bytes: Vec<u8>) -> Result<Self, Vec<u8>> {
        ChainingValue::try_from(bytes).map(Self::leaf)
    }
}

/// How `rs_merkle` makes nodes: BLAKE3's parents, and an odd last node handed up unchanged.
#[derive(Clone, Copy, Debug)]
pub struct Blake3Parents;

impl rs_merkle::Hasher for Blake3Parents {
    type Hash = Node;

    /// The chaining value of `data` as the first subtree of an input. Our leaves are hashed at their
    /// offsets before they reach `rs_merkle`, which calls this only from code that we do not use.
    fn hash(data: &[u8]) -> Node {
        Node::leaf(crate::hash::subtree(0, data))
    }

    fn concat_and_hash(left: &Node, right: Option<&Node>) -> Node {
        match right {
            Some(right) => Node::parent(&left.chaining_value, &right.chaining_value),
            None => *left,
        }
    }

    fn hash_size() -> usize {
        size_of::<ChainingValue>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_serialises_as_its_chaining_value_alone() {
        let node = Node::parent(&[1; 32], &[2; 32]);
        let bytes: Vec<u8> = node.into();
        assert_eq!(bytes, node.chaining_value());
        assert_eq!(Node::try_from(bytes), Ok(Node::leaf(*node.chaining_value())));
        assert_eq!(Node::try_from(vec![0; 31]), Err(vec![0; 31]));
    }

    #[test]
    fn the_root_form_of_two_chunks_is_the_digest() {
        let bytes = [7u8; 1025];
        let top = Node::parent(
            &crate::hash::subtree(0, &bytes[..1024]),
            &crate::hash::subtree(1024, &bytes[1024..]),
        );
        assert_eq!(top.root(), Some(Digest::of(&bytes)));
        assert_eq!(Node::leaf(*top.chaining_value()).root(), None);
    }
}
