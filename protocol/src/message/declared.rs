//! Declared: a namespace asks a node which blocks it has lost, or refuses by its operator's list.

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::record::{DeclaredAs, DeclaredPage, Unverified};

/// Asks for the next page of what is declared. Answered to namespaces that have an agreement with the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeclaredQuery {
    /// Lost or refused.
    pub kind: DeclaredAs,
    /// From which digest on, exclusive.
    pub after: Option<Digest>,
}

/// Answers a query for what is declared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeclaredReply {
    /// The page, signed by the node.
    pub page: Unverified<DeclaredPage>,
}
