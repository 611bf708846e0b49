//! Why a stripe cannot be placed, with what is missing.

use std::collections::BTreeSet;
use std::fmt;

use holdfast_protocol::record::{Policy, PolicyName};

use super::{Candidate, Rules, durability, smaller};

/// Distinct failure domains of a set of nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DomainCount {
    /// Nodes.
    pub nodes: usize,
    /// Operators.
    pub operators: usize,
    /// /24 and /48 networks; all unknown ones count as one.
    pub networks: usize,
    /// Autonomous systems; all unknown ones count as one.
    pub asns: usize,
}

impl DomainCount {
    /// Counts the domains of these nodes.
    pub fn of(nodes: &[Candidate]) -> Self {
        let operators: BTreeSet<_> = nodes.iter().map(|node| node.domain.operator).collect();
        let networks: BTreeSet<_> = nodes.iter().flat_map(|node| node.domain.networks.iter()).collect();
        let unknown = nodes.iter().any(|node| node.domain.networks.is_empty());
        let asns: BTreeSet<_> = nodes.iter().map(|node| node.domain.asn).collect();
        Self {
            nodes: nodes.len(),
            operators: operators.len(),
            networks: networks.len() + usize::from(unknown),
            asns: asns.len(),
        }
    }
}

/// Why a stripe cannot be placed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlacementError {
    /// The network is too small for the policy, even with every node up.
    #[error("{}", Lack(.policy, .needed, .known, .fits, .rules, .offer))]
    Lacks {
        /// The policy.
        policy: PolicyName,
        /// Its rules.
        rules: Rules,
        /// Distinct domains needed: the shards of a stripe.
        needed: usize,
        /// Shards that could be placed.
        fits: usize,
        /// What is known.
        known: DomainCount,
        /// A smaller policy that fits.
        offer: Option<PolicyName>,
    },
    /// Enough nodes are known, too few of them answer.
    #[error("policy {policy} needs {needed} live failure domains to write, {live} answer; try again later")]
    Down {
        /// The policy.
        policy: PolicyName,
        /// Domains that are live.
        live: usize,
        /// Its write quorum.
        needed: usize,
    },
}

impl PlacementError {
    /// Whether trying again later can help without anyone adding nodes.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Down { .. })
    }
}

pub(super) fn lacks(nodes: &[Candidate], policy: &Policy, rules: Rules, fits: usize) -> PlacementError {
    let mut offer = smaller(policy.name);
    while let Some(candidate) = offer {
        let (all, rules) = (nodes.iter().collect::<Vec<_>>(), Rules::of(&candidate));
        if super::Chooser::new(0).reach(&all, rules, &candidate) >= candidate.n() {
            break;
        }
        offer = smaller(candidate.name);
    }
    PlacementError::Lacks {
        policy: policy.name,
        rules,
        needed: policy.n(),
        fits,
        known: DomainCount::of(nodes),
        offer: offer.map(|policy| policy.name),
    }
}

struct Lack<'a>(&'a PolicyName, &'a usize, &'a DomainCount, &'a usize, &'a Rules, &'a Option<PolicyName>);

impl fmt::Display for Lack<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(policy, needed, known, fits, rules, offer) = self;
        let n = **needed;
        if !rules.operators_differ {
            write!(f, "policy {policy} needs {n} nodes, {} are known", known.nodes)?;
        } else if known.operators < n {
            write!(f, "policy {policy} needs {n} operators, {} are known", known.operators)?;
        } else if known.networks < n {
            write!(
                f,
                "policy {policy} needs {n} different /24 or /48 networks, {} are known",
                known.networks
            )?;
        } else if let Some(cap) = rules.per_asn_max
            && known.asns * cap < n
        {
            let asns = n.div_ceil(cap);
            write!(f, "policy {policy} needs {asns} autonomous systems, {} are known", known.asns)?;
        } else {
            write!(
                f,
                "policy {policy} needs {n} nodes of different operators and networks, \
                 the {} known ones allow {fits}",
                known.nodes
            )?;
        }
        match offer {
            Some(offer) => write!(f, "; policy `{offer}` fits ({})", durability(*offer)),
            None => write!(f, "; no smaller policy fits either, add nodes"),
        }
    }
}
