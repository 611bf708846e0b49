//! Declared page: a node's signed list of blocks that it has lost, or that its operator refuses, by digest.
//!
//! Between epochs and for its namespaces; what counts in an audit is a [`super::Declaration`].

use serde::{Deserialize, Serialize};

use super::{DeclaredAs, Record, within};
use crate::cbor::DecodeError;
use crate::digest::Digest;
use crate::key::NodeId;
use crate::limits::DECLARED_DIGESTS_MAX;

/// All blocks declared as `kind` whose digest lies above `after`, up to the last listed one, or to the end when `last`
/// says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeclaredPage {
    /// Version.
    pub v: u16,
    /// Who; also the signer.
    pub node: NodeId,
    /// Lost or refused.
    pub kind: DeclaredAs,
    /// The digest asked from, exclusive; none for the beginning.
    pub after: Option<Digest>,
    /// The blocks, ascending.
    pub digests: Vec<Digest>,
    /// Whether nothing follows.
    pub last: bool,
    /// When it was said.
    pub issued_ms: u64,
}

impl Record for DeclaredPage {
    const NAME: &'static str = "declared page";
    const DOMAIN: &'static str = "holdfast declared page v1";
    fn version(&self) -> u16 {
        self.v
    }
    fn check_bounds(&self) -> Result<(), DecodeError> {
        within(self.digests.len() <= DECLARED_DIGESTS_MAX, "digests")?;
        within(self.last || !self.digests.is_empty(), "digests")?;
        let first = self.digests.first();
        within(first.is_none_or(|first| self.after.is_none_or(|after| *first > after)), "digests")?;
        within(self.digests.is_sorted_by(|one, next| one < next), "digests")
    }
}
