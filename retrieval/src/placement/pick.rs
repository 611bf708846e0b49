//! Picking nodes one by one under the rules, and the search for when first come, first served falls short.

use std::collections::HashMap;

use holdfast_protocol::{NodeId, OperatorId};

use super::{Candidate, Network, Rules};

/// Orders tried before the best pick so far is taken. With one network per node (the usual case) the
/// scarcity order alone finds a full pick almost always; more orders cost 30 µs each for 100 nodes.
const ORDERS_MAX: u64 = 48;

/// Takes nodes while the rules hold.
pub(super) struct Picker {
    rules: Rules,
    nodes: Vec<NodeId>,
    operators: Vec<OperatorId>,
    networks: Vec<Network>,
    unknown_network: bool,
    per_asn: HashMap<u32, usize>,
}

impl Picker {
    pub(super) fn new(rules: Rules) -> Self {
        Self {
            rules,
            nodes: Vec::new(),
            operators: Vec::new(),
            networks: Vec::new(),
            unknown_network: false,
            per_asn: HashMap::new(),
        }
    }

    /// Takes `node` if no rule forbids it.
    pub(super) fn take(&mut self, node: &Candidate) -> bool {
        let domain = &node.domain;
        if self.nodes.contains(&node.id) {
            return false;
        }
        if self.rules.operators_differ && self.operators.contains(&domain.operator) {
            return false;
        }
        if self.rules.networks_differ {
            let taken = if domain.networks.is_empty() {
                self.unknown_network
            } else {
                domain.networks.iter().any(|network| self.networks.contains(network))
            };
            if taken {
                return false;
            }
        }
        let in_asn = self.per_asn.entry(domain.asn).or_default();
        if self.rules.per_asn_max.is_some_and(|max| *in_asn >= max) {
            return false;
        }
        *in_asn += 1;
        self.nodes.push(node.id);
        self.operators.push(domain.operator);
        self.unknown_network |= domain.networks.is_empty();
        self.networks.extend_from_slice(&domain.networks);
        true
    }

    /// Takes from `nodes` in order until `count` are taken in all.
    pub(super) fn fill(&mut self, nodes: &[&Candidate], count: usize) {
        for node in nodes {
            if self.nodes.len() >= count {
                return;
            }
            self.take(node);
        }
    }

    pub(super) fn into_nodes(self) -> Vec<NodeId> {
        self.nodes
    }
}

/// Looks for a pick of `shards` nodes in several orders; gives the longest found, `best` if none is longer.
pub(super) fn search(
    nodes: &[&Candidate],
    rules: Rules,
    shards: usize,
    seed: u64,
    mut best: Vec<NodeId>,
) -> Vec<NodeId> {
    let scarcity = scarcity(nodes);
    for round in 0..ORDERS_MAX {
        let mut order: Vec<(f64, &&Candidate)> = nodes
            .iter()
            .map(|node| {
                let chance = unit_interval(seed, node.id, round + 1);
                // Nodes whose domains few others share come first; chance decides more and more.
                let rank = scarcity.get(&node.id).copied().unwrap_or(0.0);
                #[allow(clippy::cast_precision_loss, reason = "a handful of rounds")]
                let weight = round as f64 / ORDERS_MAX as f64;
                (rank * (1.0 - weight) + chance * weight * 8.0, node)
            })
            .collect();
        order.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.id.cmp(&b.1.id)));
        let order: Vec<&Candidate> = order.into_iter().map(|(_, node)| *node).collect();
        let mut picker = Picker::new(rules);
        picker.fill(&order, shards);
        let picked = picker.into_nodes();
        if picked.len() > best.len() {
            best = picked;
        }
        if best.len() >= shards {
            break;
        }
    }
    best
}

/// How many other nodes each node excludes by its operator and networks.
fn scarcity(nodes: &[&Candidate]) -> HashMap<NodeId, f64> {
    let mut operators: HashMap<OperatorId, usize> = HashMap::new();
    let mut networks: HashMap<Network, usize> = HashMap::new();
    for node in nodes {
        *operators.entry(node.domain.operator).or_default() += 1;
        for network in &node.domain.networks {
            *networks.entry(*network).or_default() += 1;
        }
    }
    nodes
        .iter()
        .map(|node| {
            let by_operator = operators.get(&node.domain.operator).copied().unwrap_or(0);
            let by_network: usize =
                node.domain.networks.iter().map(|network| networks.get(network).copied().unwrap_or(0)).sum();
            #[allow(clippy::cast_precision_loss, reason = "node counts are small")]
            let rank = (by_operator + by_network) as f64;
            (node.id, rank)
        })
        .collect()
}

/// A number in 0..1 that follows from its arguments alone.
pub(super) fn unit_interval(seed: u64, node: NodeId, round: u64) -> f64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.update(&round.to_le_bytes());
    hasher.update(node.as_bytes());
    let mut bytes = [0u8; 4];
    hasher.finalize_xof().fill(&mut bytes);
    f64::from(u32::from_le_bytes(bytes)) / 4_294_967_296.0
}
