//! The list of nodes caught lying: bounded, one line per node and kind of lie.

use holdfast_protocol::time::UnixMs;
use holdfast_protocol::{Digest, NodeId};

/// Lines kept. A liar that varies its lies pushes out its own oldest lines, not those of others, until every
/// line is its own.
const CULPRITS_MAX: usize = 256;
/// Bytes of evidence text kept per line.
const EVIDENCE_MAX: usize = 512;

/// A node that was caught lying.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Culprit {
    /// Who.
    pub node: NodeId,
    /// The evidence, in words.
    pub what: String,
    /// The latest block that it was about.
    pub digest: Option<Digest>,
    /// The latest time.
    pub at_ms: UnixMs,
    /// How often this very lie was caught.
    pub count: u64,
}

#[derive(Default)]
pub(super) struct Culprits {
    /// Latest last.
    lines: Vec<Culprit>,
}

impl Culprits {
    pub(super) fn add(&mut self, node: NodeId, mut what: String, digest: Option<Digest>, at_ms: UnixMs) {
        if what.len() > EVIDENCE_MAX {
            what = what.chars().take(EVIDENCE_MAX / 4).collect();
        }
        let known = self.lines.iter().position(|line| line.node == node && line.what == what);
        let count = known.map_or(0, |at| self.lines.remove(at).count);
        if self.lines.len() >= CULPRITS_MAX {
            let own = self.lines.iter().position(|line| line.node == node);
            self.lines.remove(own.unwrap_or(0));
        }
        self.lines.push(Culprit { node, what, digest, at_ms, count: count + 1 });
    }

    pub(super) fn list(&self) -> Vec<Culprit> {
        self.lines.iter().rev().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_protocol::PublicKey;

    fn node(seed: u8) -> NodeId {
        NodeId(PublicKey([seed; 32]))
    }

    #[test]
    fn the_same_lie_is_counted_on_one_line() {
        let mut culprits = Culprits::default();
        culprits.add(node(1), "wrong bytes".into(), None, 1);
        culprits.add(node(2), "wrong bytes".into(), None, 2);
        culprits.add(node(1), "wrong bytes".into(), Some(Digest([3; 32])), 3);
        let list = culprits.list();
        assert_eq!(list.len(), 2);
        assert_eq!((list[0].node, list[0].count, list[0].at_ms), (node(1), 2, 3));
        assert_eq!(list[0].digest, Some(Digest([3; 32])));
    }

    #[test]
    fn an_inventive_liar_cannot_push_others_off_the_list_nor_grow_it() {
        let mut culprits = Culprits::default();
        culprits.add(node(1), "wrong bytes".into(), None, 1);
        for lie in 0..10_000 {
            culprits.add(node(2), format!("lie {lie}"), None, 2);
        }
        assert_eq!(culprits.list().len(), CULPRITS_MAX);
        assert!(culprits.list().iter().any(|line| line.node == node(1)));
    }
}
