//! What a policy demands of the nodes of one stripe.

use holdfast_protocol::record::{Policy, PolicyName};

/// How the shards of one stripe must be spread. The node is always a domain: no two shards share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// No two shards with one operator.
    pub operators_differ: bool,
    /// No two shards in one /24 or /48.
    pub networks_differ: bool,
    /// At most this many shards in one autonomous system.
    pub per_asn_max: Option<usize>,
}

impl Rules {
    /// Survives disks, not operators.
    pub const NODE: Self = Self { operators_differ: false, networks_differ: false, per_asn_max: None };
    /// Survives operators and their networks.
    pub const OPERATOR: Self = Self { operators_differ: true, networks_differ: true, per_asn_max: None };
    /// Survives whole autonomous systems too: one of them holds at most half as many shards as `standard` has
    /// parity, so that two can go, and after the loss of one any six more shards.
    pub const WIDE: Self = Self { operators_differ: true, networks_differ: true, per_asn_max: Some(6) };

    /// The rules of a policy. A journal's replicas are spread like the policy with as many parity shards.
    pub fn of(policy: &Policy) -> Self {
        match policy.name {
            PolicyName::Local => Self::NODE,
            PolicyName::Small => Self::OPERATOR,
            PolicyName::Standard => Self::WIDE,
            PolicyName::Journal if policy.m <= Policy::LOCAL.m => Self::NODE,
            PolicyName::Journal if policy.m <= Policy::SMALL.m => Self::OPERATOR,
            PolicyName::Journal => Self::WIDE,
        }
    }
}

/// What losses a policy's stripes survive, in a sentence for people.
pub fn durability(policy: PolicyName) -> &'static str {
    match policy {
        PolicyName::Local => "survives any 2 disks or nodes, but not the loss of the operator who runs them",
        PolicyName::Small => "survives any 4 operators or /24 networks",
        PolicyName::Standard => "survives any 12 operators or /24 networks, and any 2 autonomous systems",
        PolicyName::Journal => "survives the loss of all replicas but one",
    }
}

/// The next smaller policy, to offer by name when the network is too small.
pub fn smaller(policy: PolicyName) -> Option<Policy> {
    match policy {
        PolicyName::Standard => Some(Policy::SMALL),
        PolicyName::Small => Some(Policy::LOCAL),
        PolicyName::Local | PolicyName::Journal => None,
    }
}
