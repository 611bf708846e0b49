//! Seats for connections of strangers: bounded in number, few per peer, and given up for newcomers by those who sit
//! idle longest in the most crowded network. So idle strangers can fill the seats but not keep others out, and a
//! gateway, which is a stranger until its Hello, always finds one.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use holdfast_protocol::NodeId;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::node::limits::{CONNECTIONS_PER_STRANGER, STRANGER_BUSY_MS};

/// Where a connection comes from, as coarsely as addresses are handed out: a /24, or a /48 of IPv6.
type Network = [u8; 7];

/// The seats.
pub(crate) struct Strangers {
    max: usize,
    since: Instant,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    next: u64,
    seats: HashMap<u64, Seat>,
}

#[derive(Clone)]
struct Seat {
    peer: NodeId,
    network: Network,
    /// Milliseconds since `since` when it last asked for something.
    active: Arc<AtomicU64>,
    displaced: CancellationToken,
}

/// A taken seat; free again when dropped.
pub(crate) struct Seated {
    id: u64,
    strangers: Arc<Strangers>,
    active: Arc<AtomicU64>,
    /// Fires when the seat was given to somebody else.
    pub(crate) displaced: CancellationToken,
}

impl Strangers {
    pub(crate) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, since: Instant::now(), inner: Mutex::default() })
    }

    /// A seat for a new connection; `None` when everybody who has one is busy.
    pub(crate) fn seat(self: &Arc<Self>, peer: NodeId, remote: Option<IpAddr>) -> Option<Seated> {
        let network = network_of(remote);
        let now_ms = self.now_ms();
        let mut inner = self.inner.lock();
        let of_peer = inner.seats.values().filter(|seat| seat.peer == peer).count();
        // A peer with too many gives up one of its own, busy or not.
        let victim = if of_peer >= CONNECTIONS_PER_STRANGER {
            longest_idle(inner.seats.iter().filter(|(_, seat)| seat.peer == peer))
        } else if inner.seats.len() >= self.max {
            let crowded = most_crowded(&inner.seats)?;
            let idle = inner.seats.iter().filter(|(_, seat)| {
                seat.network == crowded
                    && now_ms.saturating_sub(seat.active.load(Ordering::Relaxed)) >= STRANGER_BUSY_MS
            });
            Some(longest_idle(idle)?)
        } else {
            None
        };
        if let Some(victim) = victim
            && let Some(seat) = inner.seats.remove(&victim)
        {
            seat.displaced.cancel();
        }
        if inner.seats.len() >= self.max {
            return None;
        }
        let id = inner.next;
        inner.next += 1;
        let seat = Seat {
            peer,
            network,
            active: Arc::new(AtomicU64::new(now_ms)),
            displaced: CancellationToken::new(),
        };
        inner.seats.insert(id, seat.clone());
        drop(inner);
        Some(Seated { id, strangers: Arc::clone(self), active: seat.active, displaced: seat.displaced })
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    #[cfg(test)]
    fn taken(&self) -> usize {
        self.inner.lock().seats.len()
    }
}

impl Seated {
    /// The peer asked for something.
    pub(crate) fn touch(&self) {
        self.active.store(self.strangers.now_ms(), Ordering::Relaxed);
    }
}

impl Drop for Seated {
    fn drop(&mut self) {
        self.strangers.inner.lock().seats.remove(&self.id);
    }
}

fn longest_idle<'a>(seats: impl Iterator<Item = (&'a u64, &'a Seat)>) -> Option<u64> {
    seats.min_by_key(|(id, seat)| (seat.active.load(Ordering::Relaxed), **id)).map(|(id, _)| *id)
}

/// The network with the most seats.
fn most_crowded(seats: &HashMap<u64, Seat>) -> Option<Network> {
    let mut counts: HashMap<Network, usize> = HashMap::new();
    for seat in seats.values() {
        *counts.entry(seat.network).or_default() += 1;
    }
    counts.into_iter().max_by_key(|(network, count)| (*count, *network)).map(|(network, _)| network)
}

/// Peers of the same process have no address and share one network.
fn network_of(remote: Option<IpAddr>) -> Network {
    let mut network = [0u8; 7];
    match remote.map(|remote| remote.to_canonical()) {
        None => {}
        Some(IpAddr::V4(address)) => {
            network[0] = 4;
            network[1..4].copy_from_slice(&address.octets()[..3]);
        }
        Some(IpAddr::V6(address)) => {
            network[0] = 6;
            network[1..].copy_from_slice(&address.octets()[..6]);
        }
    }
    network
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use holdfast_protocol::PublicKey;

    use super::*;

    const BUSY: Duration = Duration::from_millis(STRANGER_BUSY_MS);

    fn peer(byte: u8) -> NodeId {
        NodeId(PublicKey([byte; 32]))
    }

    fn from(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_newcomer_gets_the_seat_of_the_longest_idle_in_the_most_crowded_network() {
        let strangers = Strangers::new(4);
        let alone = strangers.seat(peer(1), from("198.51.100.1")).unwrap();
        let crowd: Vec<_> =
            (2..5).map(|byte| strangers.seat(peer(byte), from("203.0.113.9")).unwrap()).collect();
        assert!(strangers.seat(peer(9), from("192.0.2.1")).is_none(), "all were busy a moment ago");
        tokio::time::advance(BUSY).await;
        crowd[0].touch();
        let _newcomer = strangers.seat(peer(9), from("192.0.2.1")).unwrap();
        assert!(crowd[1].displaced.is_cancelled());
        assert!(!crowd[0].displaced.is_cancelled() && !crowd[2].displaced.is_cancelled());
        assert!(!alone.displaced.is_cancelled(), "whoever is alone in a network keeps its seat");
        drop(crowd);
        assert_eq!(strangers.taken(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn one_peer_has_a_few_seats_and_gives_up_its_own() {
        let strangers = Strangers::new(100);
        let seats: Vec<_> = (0..=CONNECTIONS_PER_STRANGER)
            .map(|_| strangers.seat(peer(1), from("192.0.2.1")).unwrap())
            .collect();
        assert!(seats[0].displaced.is_cancelled());
        assert_eq!(strangers.taken(), CONNECTIONS_PER_STRANGER);
    }

    #[tokio::test(start_paused = true)]
    async fn hundreds_of_idle_strangers_keep_nobody_out() {
        let strangers = Strangers::new(256);
        let mut idle = Vec::new();
        for index in 0..2000u16 {
            let [high, low] = index.to_be_bytes();
            let mut key = [0u8; 32];
            key[..2].copy_from_slice(&[high, low]);
            let seat = strangers.seat(NodeId(PublicKey(key)), from(&format!("10.{high}.{low}.1")));
            idle.extend(seat);
        }
        assert_eq!(strangers.taken(), 256);
        tokio::time::advance(BUSY).await;
        assert!(strangers.seat(peer(200), from("192.0.2.1")).is_some());
    }
}
