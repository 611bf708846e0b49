//! Placement against its promises: rules never broken, turns taken, room respected, lacks named.

use std::collections::HashMap;

use holdfast_protocol::record::PolicyName;
use holdfast_protocol::{OperatorId, PublicKey};
use proptest::prelude::*;

use super::*;

fn id(seed: usize) -> NodeId {
    NodeId(PublicKey(*blake3::hash(&seed.to_le_bytes()).as_bytes()))
}

const FREE: u64 = 1 << 40;

fn candidate(seed: usize, operator: u8, network: [u8; 3], asn: u32) -> Candidate {
    Candidate {
        id: id(seed),
        domain: FailureDomain {
            operator: OperatorId(PublicKey([operator; 32])),
            networks: vec![Network::V4(network)],
            asn,
        },
        free_bytes: FREE,
        live: true,
    }
}

/// Nodes that share nothing.
fn strangers(count: usize) -> Vec<Candidate> {
    (0..count)
        .map(|seed| {
            let number = u8::try_from(seed).unwrap();
            candidate(seed, number, [10, 0, number], u32::from(number) + 1)
        })
        .collect()
}

fn keeps(rules: Rules, nodes: &[&Candidate]) -> Result<(), String> {
    let mut per_asn: HashMap<u32, usize> = HashMap::new();
    for (at, node) in nodes.iter().enumerate() {
        *per_asn.entry(node.domain.asn).or_default() += 1;
        for other in &nodes[..at] {
            if node.id == other.id {
                return Err("a node twice".into());
            }
            if rules.operators_differ && node.domain.operator == other.domain.operator {
                return Err("an operator twice".into());
            }
            if rules.networks_differ && node.domain.shares_network(&other.domain) {
                return Err("a network twice".into());
            }
        }
    }
    match rules.per_asn_max {
        Some(max) if per_asn.values().any(|count| *count > max) => Err("an ASN too often".into()),
        _ => Ok(()),
    }
}

fn chosen<'a>(plan: &Plan, nodes: &'a [Candidate]) -> Vec<&'a Candidate> {
    plan.nodes().map(|id| nodes.iter().find(|node| node.id == id).unwrap()).collect()
}

#[test]
fn a_full_stripe_takes_each_of_six_nodes_once() {
    let nodes = strangers(6);
    let plan = Chooser::new(1).choose(&nodes, &Policy::LOCAL, 4).unwrap();
    assert_eq!(plan.data.len(), 4);
    assert_eq!(plan.parity.len(), 2);
    assert_eq!(plan.quorum, 5);
    assert_eq!(keeps(Rules::NODE, &chosen(&plan, &nodes)), Ok(()));
    assert_eq!(plan.nodes().count(), 6);
}

#[test]
fn consecutive_small_stripes_put_their_data_on_different_nodes() {
    let nodes = strangers(6);
    let mut chooser = Chooser::new(1);
    for round in 0..5 {
        let data: Vec<NodeId> =
            (0..6).map(|_| chooser.choose(&nodes, &Policy::LOCAL, 1).unwrap().data[0].unwrap()).collect();
        let mut distinct = data.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), 6, "round {round}: {data:?}");
    }
}

#[test]
fn a_short_stripe_may_miss_as_many_shards_as_a_full_one() {
    let nodes = strangers(6);
    for blocks in 1..=4 {
        let plan = Chooser::new(1).choose(&nodes, &Policy::LOCAL, blocks).unwrap();
        assert_eq!(plan.data.len() + plan.parity.len() - plan.quorum, Policy::LOCAL.n() - Policy::LOCAL.w);
    }
}

#[test]
fn one_node_down_leaves_a_gap_and_two_stop_writing() {
    let mut nodes = strangers(6);
    nodes[3].live = false;
    let plan = Chooser::new(1).choose(&nodes, &Policy::LOCAL, 4).unwrap();
    assert_eq!(plan.nodes().count(), 5);
    assert!(plan.nodes().all(|id| id != nodes[3].id));
    nodes[5].live = false;
    for blocks in 1..=4 {
        let error = Chooser::new(1).choose(&nodes, &Policy::LOCAL, blocks).unwrap_err();
        assert_eq!(error, PlacementError::Down { policy: PolicyName::Local, live: 4, needed: 5 });
        assert!(error.is_retryable());
    }
}

#[test]
fn a_network_too_small_says_what_lacks_and_offers_what_fits() {
    let error = Chooser::new(1).choose(&strangers(6), &Policy::SMALL, 1).unwrap_err();
    assert!(!error.is_retryable());
    let text = error.to_string();
    assert!(text.contains("policy small needs 14 operators, 6 are known"), "{text}");
    assert!(text.contains("policy `local` fits"), "{text}");
    let text = Chooser::new(1).choose(&strangers(3), &Policy::LOCAL, 1).unwrap_err().to_string();
    assert!(text.contains("policy local needs 6 nodes, 3 are known; no smaller policy fits"), "{text}");
}

#[test]
fn the_missing_domain_is_named() {
    let same_network: Vec<Candidate> =
        (0..14).map(|seed| candidate(seed, u8::try_from(seed).unwrap(), [10, 0, 0], 1)).collect();
    let text = Chooser::new(1).choose(&same_network, &Policy::SMALL, 10).unwrap_err().to_string();
    assert!(text.contains("needs 14 different /24 or /48 networks, 1 are known"), "{text}");
    let mut one_asn = strangers(28);
    one_asn.iter_mut().for_each(|node| node.domain.asn = 7);
    let text = Chooser::new(1).choose(&one_asn, &Policy::STANDARD, 16).unwrap_err().to_string();
    assert!(text.contains("needs 5 autonomous systems, 1 are known"), "{text}");
    assert!(text.contains("policy `small` fits"), "{text}");
}

#[test]
fn nodes_are_used_in_proportion_to_their_room() {
    let mut nodes = strangers(12);
    nodes[..6].iter_mut().for_each(|node| node.free_bytes = FREE / 4);
    let mut chooser = Chooser::new(9);
    let mut used: HashMap<NodeId, usize> = HashMap::new();
    for _ in 0..1000 {
        for node in chooser.choose(&nodes, &Policy::LOCAL, 4).unwrap().nodes() {
            *used.entry(node).or_default() += 1;
        }
    }
    for (small, large) in nodes[..6].iter().zip(&nodes[6..]) {
        let (small, large) = (used[&small.id], used[&large.id]);
        assert!((180..220).contains(&small), "a quarter of the room got {small} shards of 6000");
        assert!((760..840).contains(&large), "all of the room got {large} shards of 6000");
    }
}

#[test]
fn a_newcomer_takes_its_share_and_not_everything() {
    let mut nodes = strangers(8);
    let mut chooser = Chooser::new(9);
    for _ in 0..1000 {
        chooser.choose(&nodes, &Policy::LOCAL, 4).unwrap();
    }
    nodes.push(candidate(8, 8, [10, 0, 8], 9));
    let newcomer = nodes[8].id;
    let hits = (0..90)
        .filter(|_| chooser.choose(&nodes, &Policy::LOCAL, 4).unwrap().nodes().any(|id| id == newcomer))
        .count();
    assert!((50..75).contains(&hits), "two thirds of 90 stripes expected, got {hits}");
}

#[test]
fn a_full_disk_is_not_chosen() {
    let mut nodes = strangers(7);
    nodes[2].free_bytes = 1000;
    let mut chooser = Chooser::new(3);
    for _ in 0..20 {
        let plan = chooser.choose(&nodes, &Policy::LOCAL, 4).unwrap();
        assert!(plan.nodes().all(|id| id != nodes[2].id));
    }
}

#[test]
fn the_same_seed_and_calls_choose_the_same_nodes() {
    let nodes = strangers(20);
    let run = |seed| {
        let mut chooser = Chooser::new(seed);
        (0..50).map(|_| chooser.choose(&nodes, &Policy::SMALL, 3).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5), run(6));
}

#[test]
fn a_replacement_lies_in_an_unused_domain_and_was_not_refused() {
    let mut nodes = strangers(15);
    // The sixteenth shares its operator with the first.
    nodes.push(candidate(15, 0, [10, 0, 15], 99));
    let mut chooser = Chooser::new(1);
    let taken: Vec<NodeId> = nodes[..13].iter().map(|node| node.id).collect();
    let replacement = chooser.replacement(&nodes, &Policy::SMALL, &taken, &[]);
    assert!(replacement == Some(nodes[13].id) || replacement == Some(nodes[14].id));
    let refused = [nodes[13].id, nodes[14].id];
    assert_eq!(chooser.replacement(&nodes, &Policy::SMALL, &taken, &refused), None);
}

#[derive(Clone, Debug)]
struct Town(Vec<Candidate>);

/// Nodes that share operators, networks and autonomous systems at random; some down, some without address.
fn towns() -> impl Strategy<Value = Town> {
    let node = (0u8..24, prop::collection::vec(0u8..40, 0..3), 0u32..8, prop::bool::weighted(0.85));
    prop::collection::vec(node, 1..70).prop_map(|nodes| {
        Town(
            nodes
                .into_iter()
                .enumerate()
                .map(|(seed, (operator, networks, asn, live))| Candidate {
                    id: id(seed),
                    domain: FailureDomain {
                        operator: OperatorId(PublicKey([operator; 32])),
                        networks: networks.into_iter().map(|n| Network::V4([10, 0, n])).collect(),
                        asn,
                    },
                    free_bytes: FREE,
                    live,
                })
                .collect(),
        )
    })
}

proptest! {
    #[test]
    fn no_plan_ever_breaks_a_rule(Town(nodes) in towns(), seed: u64, blocks in 1usize..16) {
        for policy in [Policy::LOCAL, Policy::SMALL, Policy::STANDARD] {
            let mut chooser = Chooser::new(seed);
            for _ in 0..3 {
                match chooser.choose(&nodes, &policy, blocks) {
                    Ok(plan) => {
                        let chosen = chosen(&plan, &nodes);
                        prop_assert_eq!(keeps(Rules::of(&policy), &chosen), Ok(()));
                        prop_assert!(chosen.iter().all(|node| node.live));
                        prop_assert_eq!(plan.data.len(), blocks.min(policy.k));
                        prop_assert_eq!(plan.parity.len(), policy.m);
                        prop_assert!(chosen.len() >= plan.quorum);
                    }
                    Err(PlacementError::Lacks { fits, needed, .. }) => prop_assert!(fits < needed),
                    Err(PlacementError::Down { live, needed, .. }) => prop_assert!(live < needed),
                }
            }
        }
    }

    /// Pairs (operator, network) are edges of a bipartite graph; the best pick is a maximum matching.
    #[test]
    fn the_search_finds_as_many_domains_as_there_are(
        edges in prop::collection::vec((0u8..20, 0u8..20), 10..60),
    ) {
        let nodes: Vec<Candidate> = edges
            .iter()
            .enumerate()
            .map(|(seed, (operator, network))| candidate(seed, *operator, [10, 0, *network], 1))
            .collect();
        let best = maximum_matching(&edges);
        let result = Chooser::new(7).choose(&nodes, &Policy::SMALL, 10);
        if best < Policy::SMALL.n() {
            prop_assert!(result.is_err());
        } else if best > Policy::SMALL.n() {
            // At exactly n the search may miss the one solution that there is; with one to spare it must not.
            prop_assert!(result.is_ok(), "{best} domains, yet {result:?}");
        }
    }
}

fn maximum_matching(edges: &[(u8, u8)]) -> usize {
    fn augment(operator: u8, edges: &[(u8, u8)], matched: &mut HashMap<u8, u8>, tried: &mut Vec<u8>) -> bool {
        for (_, network) in edges.iter().filter(|edge| edge.0 == operator) {
            if tried.contains(network) {
                continue;
            }
            tried.push(*network);
            let holder = matched.get(network).copied();
            if holder.is_none_or(|holder| augment(holder, edges, matched, tried)) {
                matched.insert(*network, operator);
                return true;
            }
        }
        false
    }
    let mut matched = HashMap::new();
    (0..20).filter(|operator| augment(*operator, edges, &mut matched, &mut Vec::new())).count()
}
