//! A UDP relay that stands between a client and a node and makes the network between them worse: delay, loss,
//! stalls, silence. For tests and benchmarks; every condition can be changed while packets fly.
//!
//! A stall holds packets and delivers them when it ends, as a frozen process does; a dead relay swallows them.
//! Loss is drawn from a seed, so that a run can be repeated.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Packets on their way through one relay; more are dropped, as a router does.
const PACKETS_MAX: usize = 16_384;
/// Socket buffers: bursts wait in the relay's own queue, which is what decides of loss. The system's default holds four
/// of the large packets of a loopback path.
const SOCKET_BUFFER_LEN: usize = 8 * 1024 * 1024;
/// The largest UDP payload on loopback.
const PACKET_LEN_MAX: usize = 65_536;

/// What the network is like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    /// Added to each packet, each way.
    pub delay: Duration,
    /// Up to this much more, drawn for each packet: packets then overtake each other.
    pub jitter: Duration,
    /// Packets lost, of 10,000.
    pub loss: u32,
    /// Holds everything until this is false again.
    pub stalled: bool,
    /// Swallows everything.
    pub dead: bool,
}

/// A relay in front of one address. Stops when dropped.
pub struct UdpRelay {
    address: SocketAddr,
    conditions: watch::Sender<Conditions>,
    counts: Arc<Counts>,
    _tasks: JoinSet<()>,
}

/// What became of packets.
#[derive(Default)]
struct Counts {
    taken: AtomicU64,
    dropped: AtomicU64,
}

struct Packet {
    bytes: Bytes,
    out: Arc<UdpSocket>,
    /// `None` on a connected socket.
    to: Option<SocketAddr>,
}

impl UdpRelay {
    /// A relay to `target` on a loopback port of its own; `seed` decides which packets are lost.
    pub async fn start(target: SocketAddr, seed: u64) -> io::Result<Self> {
        let front = Arc::new(socket().await?);
        let address = front.local_addr()?;
        let conditions = watch::Sender::new(Conditions::default());
        let (packets, queue) = mpsc::channel(PACKETS_MAX);
        let mut tasks = JoinSet::new();
        let counts = Arc::<Counts>::default();
        tasks.spawn(deliver(queue, conditions.subscribe(), seed, Arc::clone(&counts)));
        tasks.spawn(receive(front, target, packets));
        Ok(Self { address, conditions, counts, _tasks: tasks })
    }

    /// Where the target is reached through the relay.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Makes the network like this from now on.
    pub fn set(&self, conditions: Conditions) {
        self.conditions.send_replace(conditions);
    }

    /// Packets that came in, and those of them that were lost on purpose.
    pub fn counts(&self) -> (u64, u64) {
        (self.counts.taken.load(Ordering::Acquire), self.counts.dropped.load(Ordering::Acquire))
    }

    /// Changes a part of the conditions.
    pub fn change(&self, change: impl FnOnce(&mut Conditions)) {
        self.conditions.send_modify(change);
    }
}

async fn socket() -> io::Result<UdpSocket> {
    use rustix::net::sockopt;
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    // Past the system's limit where we may, else up to it.
    if sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BUFFER_LEN).is_err() {
        sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER_LEN)?;
    }
    Ok(socket)
}

/// From clients to the target, a socket for each client; what comes back on it goes to that client.
async fn receive(front: Arc<UdpSocket>, target: SocketAddr, packets: mpsc::Sender<Packet>) {
    let backs: Mutex<HashMap<SocketAddr, Arc<UdpSocket>>> = Mutex::default();
    let mut answers = JoinSet::new();
    let mut buffer = vec![0; PACKET_LEN_MAX];
    // A refused port shows as an error on the next receive; the relay goes on.
    loop {
        let Ok((len, client)) = front.recv_from(&mut buffer).await else { continue };
        let known = backs.lock().get(&client).cloned();
        let back = match known {
            Some(back) => back,
            None => {
                let Ok(back) = socket().await else { continue };
                if back.connect(target).await.is_err() {
                    continue;
                }
                let back = Arc::new(back);
                backs.lock().insert(client, Arc::clone(&back));
                answers.spawn(answer(Arc::clone(&back), Arc::clone(&front), client, packets.clone()));
                back
            }
        };
        // A full queue drops the packet.
        let _ =
            packets.try_send(Packet { bytes: Bytes::copy_from_slice(&buffer[..len]), out: back, to: None });
    }
}

async fn answer(
    back: Arc<UdpSocket>,
    front: Arc<UdpSocket>,
    client: SocketAddr,
    packets: mpsc::Sender<Packet>,
) {
    let mut buffer = vec![0; PACKET_LEN_MAX];
    loop {
        let Ok(len) = back.recv(&mut buffer).await else { continue };
        let bytes = Bytes::copy_from_slice(&buffer[..len]);
        let _ = packets.try_send(Packet { bytes, out: Arc::clone(&front), to: Some(client) });
    }
}

/// Sends each packet when its time has come.
async fn deliver(
    mut queue: mpsc::Receiver<Packet>,
    mut conditions: watch::Receiver<Conditions>,
    seed: u64,
    counts: Arc<Counts>,
) {
    let mut waiting: BTreeMap<(Instant, u64), Packet> = BTreeMap::new();
    let (mut dice, mut turn) = (seed | 1, 0u64);
    loop {
        let stalled = conditions.borrow_and_update().stalled;
        let next = waiting.first_key_value().map(|((due, _), _)| *due);
        tokio::select! {
            changed = conditions.changed() => if changed.is_err() { return },
            packet = queue.recv() => {
                let Some(packet) = packet else { return };
                turn += 1;
                let now = *conditions.borrow();
                let lost = now.dead || draw(&mut dice) % 10_000 < u64::from(now.loss);
                if lost || waiting.len() >= PACKETS_MAX {
                    counts.dropped.fetch_add(1, Ordering::AcqRel);
                    counts.taken.fetch_add(1, Ordering::AcqRel);
                    continue;
                }
                let jitter = now.jitter.mul_f64(fraction(draw(&mut dice)));
                waiting.insert((Instant::now() + now.delay + jitter, turn), packet);
                counts.taken.fetch_add(1, Ordering::AcqRel);
            }
            () = until(next), if !stalled && next.is_some() => {
                let due = Instant::now();
                while let Some(entry) = waiting.first_entry()
                    && entry.key().0 <= due
                {
                    send(entry.remove()).await;
                }
            }
        }
    }
}

async fn until(at: Option<Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at).await;
    }
}

/// A packet that cannot be sent is a packet lost.
async fn send(packet: Packet) {
    let _ = match packet.to {
        Some(client) => packet.out.send_to(&packet.bytes, client).await,
        None => packet.out.send(&packet.bytes).await,
    };
}

/// Xorshift: good enough to lose packets by.
fn draw(dice: &mut u64) -> u64 {
    *dice ^= *dice << 13;
    *dice ^= *dice >> 7;
    *dice ^= *dice << 17;
    *dice >> 16
}

fn fraction(drawn: u64) -> f64 {
    f64::from(u32::try_from(drawn % 1_000).unwrap_or(0)) / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn echo() -> (SocketAddr, tokio::task::JoinHandle<()>) {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = socket.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut buffer = [0; 2048];
            while let Ok((len, from)) = socket.recv_from(&mut buffer).await {
                socket.send_to(&buffer[..len], from).await.unwrap();
            }
        });
        (address, task)
    }

    async fn client(relay: &UdpRelay) -> UdpSocket {
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        client.connect(relay.address()).await.unwrap();
        client
    }

    /// Waits until the relay has taken so many packets.
    async fn taken(relay: &UdpRelay, count: u64) {
        while relay.counts().0 < count {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn packets_pass_both_ways_and_wait_while_stalled() {
        let (target, _echo) = echo().await;
        let relay = UdpRelay::start(target, 1).await.unwrap();
        let client = client(&relay).await;
        let mut buffer = [0; 16];
        client.send(b"one").await.unwrap();
        assert_eq!(client.recv(&mut buffer).await.unwrap(), 3);
        relay.change(|conditions| conditions.stalled = true);
        client.send(b"second").await.unwrap();
        taken(&relay, 3).await;
        assert!(client.try_recv(&mut buffer).is_err(), "nothing passes a stalled relay");
        relay.change(|conditions| conditions.stalled = false);
        assert_eq!(client.recv(&mut buffer).await.unwrap(), 6, "and what was held arrives");
    }

    #[tokio::test]
    async fn lost_packets_are_lost_and_a_dead_relay_swallows_all() {
        let (target, _echo) = echo().await;
        let relay = UdpRelay::start(target, 7).await.unwrap();
        let client = client(&relay).await;
        let half = Conditions { loss: 5_000, ..Conditions::default() };
        let mut buffer = [0; 16];
        let mut sent = 0;
        for conditions in [Conditions { dead: true, ..Conditions::default() }, half] {
            relay.set(conditions);
            for _ in 0..20 {
                client.send(b"lost").await.unwrap();
                sent += 1;
            }
            taken(&relay, sent).await;
            let dropped = relay.counts().1;
            assert!(if conditions.dead { dropped == 20 } else { (21..40).contains(&dropped) }, "{dropped}");
        }
        relay.set(Conditions::default());
        client.send(b"back").await.unwrap();
        while client.recv(&mut buffer).await.unwrap() != 4 || buffer[..4] != *b"back" {}
    }
}
