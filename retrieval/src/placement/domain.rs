//! Failure domains: what nodes share that can take several of them away at once.

use std::net::{IpAddr, SocketAddr};

use holdfast_protocol::OperatorId;
use holdfast_protocol::limits::NODE_ADDRESSES_MAX;

/// A network that tends to fail, and to be owned, as one: a /24 of IPv4 or a /48 of IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Network {
    /// The first 24 bits of IPv4 addresses.
    V4([u8; 3]),
    /// The first 48 bits of IPv6 addresses.
    V6([u8; 6]),
}

impl Network {
    /// The network of an address. IPv4 written as IPv6 (`::ffff:a.b.c.d`) counts as the IPv4 that it is.
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => {
                let [a, b, c, _] = address.octets();
                Self::V4([a, b, c])
            }
            IpAddr::V6(address) => {
                let [a, b, c, d, e, f, ..] = address.octets();
                Self::V6([a, b, c, d, e, f])
            }
        }
    }
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::V4([a, b, c]) => write!(f, "{a}.{b}.{c}.0/24"),
            Self::V6([a, b, c, d, e, g]) => {
                let word = |high: u8, low: u8| u16::from_be_bytes([high, low]);
                write!(f, "{:x}:{:x}:{:x}::/48", word(*a, *b), word(*c, *d), word(*e, *g))
            }
        }
    }
}

/// The facts about one node that placement rules look at. The node itself is a domain too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailureDomain {
    /// Who runs it.
    pub operator: OperatorId,
    /// The networks of all its addresses; two nodes that share any of them share a network. A node without
    /// a known address shares one unknown network with all such nodes: what is not known to differ does not.
    pub networks: Vec<Network>,
    /// Autonomous system; 0 when unknown, which again counts as one and the same.
    pub asn: u32,
}

impl FailureDomain {
    /// The facts of a node with these addresses.
    pub fn new(operator: OperatorId, addresses: &[SocketAddr], asn: u32) -> Self {
        let mut networks: Vec<Network> =
            addresses.iter().take(NODE_ADDRESSES_MAX).map(|address| Network::of(address.ip())).collect();
        networks.sort_unstable();
        networks.dedup();
        Self { operator, networks, asn }
    }

    /// Whether both lie in one network.
    pub fn shares_network(&self, other: &Self) -> bool {
        if self.networks.is_empty() || other.networks.is_empty() {
            return self.networks.is_empty() && other.networks.is_empty();
        }
        self.networks.iter().any(|network| other.networks.contains(network))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_protocol::PublicKey;

    fn domain(addresses: &[&str]) -> FailureDomain {
        let addresses: Vec<SocketAddr> = addresses.iter().map(|text| text.parse().unwrap()).collect();
        FailureDomain::new(OperatorId(PublicKey([1; 32])), &addresses, 0)
    }

    #[test]
    fn neighbours_in_a_24_or_a_48_share_a_network() {
        assert!(domain(&["203.0.113.7:1"]).shares_network(&domain(&["203.0.113.250:9"])));
        assert!(!domain(&["203.0.113.7:1"]).shares_network(&domain(&["203.0.114.7:1"])));
        assert!(domain(&["[2001:db8:1:2::1]:1"]).shares_network(&domain(&["[2001:db8:1:ffff::9]:1"])));
        assert!(!domain(&["[2001:db8:1::1]:1"]).shares_network(&domain(&["[2001:db8:2::1]:1"])));
    }

    #[test]
    fn one_common_address_block_among_several_is_enough_to_share() {
        let both = domain(&["203.0.113.7:1", "[2001:db8:1::1]:1"]);
        assert!(both.shares_network(&domain(&["198.51.100.1:1", "[2001:db8:1::7]:1"])));
    }

    #[test]
    fn mapped_ipv4_is_ipv4_and_unknown_networks_are_one() {
        assert!(domain(&["[::ffff:203.0.113.7]:1"]).shares_network(&domain(&["203.0.113.9:1"])));
        assert!(domain(&[]).shares_network(&domain(&[])));
        assert!(!domain(&[]).shares_network(&domain(&["203.0.113.9:1"])));
    }

    #[test]
    fn networks_print_as_prefixes() {
        assert_eq!(Network::of("203.0.113.7".parse().unwrap()).to_string(), "203.0.113.0/24");
        assert_eq!(Network::of("2001:db8:1:2::1".parse().unwrap()).to_string(), "2001:db8:1::/48");
    }
}
