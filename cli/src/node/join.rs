//! Membership: a node introduces itself to its gateways, is dialled back by them, and dials out to those that cannot
//! reach it. One task a gateway, for as long as the node runs.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use holdfast_gateway::web::api::{AddNode, Joined, Status};
use holdfast_protocol::NodeId;
use holdfast_protocol::time::{Clock, SystemClock};
use holdfast_protocol::transport::{Connection, Transport};
use holdfast_storage_node::{Node, Reach};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::client::Admin;
use crate::output::Output;

/// How often a gateway is told where we are while all is well.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(3600);
/// The longest pause between attempts to reach a gateway that does not answer: it may be started again at any moment,
/// and its blocks here wait for it.
const RETRY_MAX: Duration = Duration::from_secs(10);
/// The pause before a lost connection is made again, at first and at most.
const REDIAL_FIRST: Duration = Duration::from_millis(250);
const REDIAL_MAX: Duration = Duration::from_secs(3);
/// How long one attempt to dial may take; a gateway that starts meanwhile is met by the next.
const DIAL_WITHIN: Duration = Duration::from_secs(4);
/// Attempts to dial in a row that fail before the gateway is asked anew where it is.
const DIALS_BEFORE_ASKING: u32 = 5;

/// By what right we join: an invite or an admin token, from the command line, the directory, or a file that is read
/// each time, so that a new token needs no restart.
#[derive(Clone, Debug, Default)]
pub(super) struct Right {
    pub(super) invite: Option<String>,
    pub(super) token_file: Option<PathBuf>,
}

impl Right {
    pub(super) fn token(&self) -> Result<String> {
        match (&self.token_file, &self.invite) {
            (Some(path), _) => {
                let text = std::fs::read_to_string(path);
                Ok(text.with_context(|| format!("cannot read {}", path.display()))?.trim().to_owned())
            }
            (None, Some(invite)) => Ok(invite.clone()),
            (None, None) => Ok(String::new()),
        }
    }
}

/// What all gateways' tasks share: how each of them reaches us.
pub(super) struct Membership {
    node: Arc<Node>,
    quic: Arc<dyn Transport>,
    right: Right,
    output: Output,
    reached: Mutex<Vec<(String, Reached)>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Reached {
    NotYet(String),
    Direct(String),
    DialOut,
}

impl Membership {
    pub(super) fn new(node: Arc<Node>, quic: Arc<dyn Transport>, right: Right, output: Output) -> Arc<Self> {
        Arc::new(Self { node, quic, right, output, reached: Mutex::default() })
    }

    /// Keeps up the membership with one gateway until `stop`.
    pub(super) async fn keep(self: Arc<Self>, gateway: String, stop: CancellationToken) {
        let mut pause = Duration::from_secs(1);
        let mut announced = false;
        while !stop.is_cancelled() {
            let outcome = tokio::select! {
                () = stop.cancelled() => return,
                outcome = self.announce(&gateway) => outcome,
            };
            match outcome {
                Ok(joined) => {
                    pause = Duration::from_secs(1);
                    let first = !std::mem::replace(&mut announced, true);
                    if joined.reachability == "dial_out" {
                        self.dial_out(&gateway, &joined, first, &stop).await;
                        continue;
                    }
                    let address =
                        joined.node.as_ref().and_then(|node| node.addresses.first()).map(ToString::to_string);
                    self.set(&gateway, Reached::Direct(address.unwrap_or_default()));
                    if first {
                        self.say_joined(&gateway, "direct");
                    }
                    wait(ANNOUNCE_EVERY, &stop).await;
                }
                Err(error) => {
                    let why = format!("{error:#}");
                    tracing::warn!(gateway, error = why, "cannot join the gateway; trying again");
                    self.set(&gateway, Reached::NotYet(why));
                    wait(jittered(pause), &stop).await;
                    pause = (pause * 2).min(RETRY_MAX);
                }
            }
        }
    }

    fn say_joined(&self, gateway: &str, how: &str) {
        self.output.say(match how {
            "direct" => format!("joined {gateway}, which can dial us"),
            _ => format!("joined {gateway} over a connection that we keep open: nobody can dial us"),
        });
        self.output.value(&serde_json::json!({ "event": "joined", "gateway": gateway, "reachability": how }));
    }

    /// Learns whose gateway it is, lets that namespace rent, and introduces ourselves.
    async fn announce(&self, gateway: &str) -> Result<Joined> {
        let base = Url::parse(gateway).with_context(|| format!("`{gateway}` is not a URL"))?;
        let admin = Admin::new(base, self.right.token()?);
        let status: Status = admin.get("api/v1/status").await?;
        let namespace = status.namespace.parse().context("the gateway names no namespace")?;
        // Our operator named this gateway: its namespace may rent.
        self.node.admit(namespace);
        let record = holdfast_protocol::cbor::encode(&self.node.record(SystemClock.now_ms()).to_wire());
        admin.post("api/v1/nodes", &AddNode::from_wire_bytes(&record)).await
    }

    /// Dials the gateway and serves it over that connection; returns when another announcement is due.
    async fn dial_out(&self, gateway: &str, joined: &Joined, mut first: bool, stop: &CancellationToken) {
        let began = tokio::time::Instant::now();
        let (mut pause, mut failed) = (REDIAL_FIRST, 0);
        while !stop.is_cancelled() && began.elapsed() < ANNOUNCE_EVERY {
            match self.dial(gateway, joined).await {
                Ok(connection) => {
                    (pause, failed) = (REDIAL_FIRST, 0);
                    self.set(gateway, Reached::DialOut);
                    if std::mem::replace(&mut first, false) {
                        self.say_joined(gateway, "dial_out");
                    }
                    self.node.serve_dialled(connection, stop.clone()).await;
                    if stop.is_cancelled() {
                        return;
                    }
                    self.set(gateway, Reached::NotYet("the connection to it was lost".to_owned()));
                    tracing::info!(gateway, "the connection to the gateway ended; dialling again");
                    wait(jittered(pause), stop).await;
                }
                Err(error) => {
                    let why = format!("{error:#}");
                    tracing::warn!(gateway, error = why, "cannot dial the gateway");
                    self.set(gateway, Reached::NotYet(why));
                    wait(jittered(pause), stop).await;
                    pause = (pause * 2).min(REDIAL_MAX);
                    failed += 1;
                    if failed >= DIALS_BEFORE_ASKING {
                        // It may have moved, or have forgotten that it expects us.
                        return;
                    }
                }
            }
        }
    }

    async fn dial(&self, gateway: &str, joined: &Joined) -> Result<Arc<dyn Connection>> {
        let id: NodeId = joined.gateway.parse().context("the gateway names no key of its own")?;
        let addresses = concrete(gateway, &joined.quic)?;
        if addresses.is_empty() {
            bail!(
                "the gateway does not say where it can be dialled by QUIC; its operator sets --quic-listen"
            );
        }
        let dialled = tokio::time::timeout(DIAL_WITHIN, self.quic.dial(id, &addresses)).await;
        Ok(dialled.context("the gateway does not answer by QUIC")??)
    }

    fn set(&self, gateway: &str, reached: Reached) {
        let mut all = self.reached.lock();
        match all.iter_mut().find(|(known, _)| known == gateway) {
            Some((_, before)) => *before = reached,
            None => all.push((gateway.to_owned(), reached)),
        }
        self.node.watch().set_reach(reach_of(&all));
    }
}

/// One word for all gateways: direct if any dials us, else dialled out if any stands, else unreachable.
fn reach_of(all: &[(String, Reached)]) -> Reach {
    let dialled_out = all.iter().filter(|(_, reached)| *reached == Reached::DialOut).count();
    for (_, reached) in all {
        if let Reached::Direct(address) = reached {
            return Reach::Direct { address: address.clone() };
        }
    }
    if dialled_out > 0 {
        return Reach::DialOut { gateways: dialled_out };
    }
    let why = all.iter().find_map(|(gateway, reached)| match reached {
        Reached::NotYet(why) => Some(format!("{gateway}: {why}")),
        Reached::Direct(_) | Reached::DialOut => None,
    });
    Reach::Unreachable { why: why.unwrap_or_else(|| "no gateway is known".to_owned()) }
}

/// A gateway's QUIC addresses as we can dial them: all zeros stand for the host of its web side.
pub(super) fn concrete(gateway: &str, quic: &[SocketAddr]) -> Result<Vec<SocketAddr>> {
    let url = Url::parse(gateway).with_context(|| format!("`{gateway}` is not a URL"))?;
    let mut addresses = Vec::new();
    for address in quic {
        if !address.ip().is_unspecified() {
            addresses.push(*address);
            continue;
        }
        let hosts =
            url.socket_addrs(|| None).with_context(|| format!("cannot find the address of {gateway}"))?;
        addresses.extend(hosts.iter().map(|host| SocketAddr::new(host.ip(), address.port())));
    }
    Ok(addresses)
}

/// Between a half and all of `time`: nodes that lost a gateway at the same moment do not come back at the same moment.
fn jittered(time: Duration) -> Duration {
    let mut drawn = [0; 2];
    // Without random bytes all of it: late is better than never.
    let part = getrandom::fill(&mut drawn).map_or(u16::MAX, |()| u16::from_le_bytes(drawn));
    time / 2 + time / 2 * u32::from(part) / u32::from(u16::MAX)
}

/// Waits; ends early with `stop`.
async fn wait(time: Duration, stop: &CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = tokio::time::sleep(time) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_zeros_stand_for_the_gateways_host() -> Result<()> {
        let quic = ["0.0.0.0:7401".parse()?, "203.0.113.5:9".parse()?];
        let concrete = concrete("http://127.0.0.1:8080/", &quic)?;
        assert_eq!(concrete, ["127.0.0.1:7401".parse::<SocketAddr>()?, "203.0.113.5:9".parse()?]);
        Ok(())
    }

    #[test]
    fn one_way_in_is_enough() {
        let lost = ("a".to_owned(), Reached::NotYet("down".to_owned()));
        let out = ("b".to_owned(), Reached::DialOut);
        let direct = ("c".to_owned(), Reached::Direct("x".to_owned()));
        assert_eq!(reach_of(&[lost.clone(), out.clone(), direct]), Reach::Direct { address: "x".to_owned() });
        assert_eq!(reach_of(&[lost.clone(), out]), Reach::DialOut { gateways: 1 });
        assert!(matches!(reach_of(&[lost]), Reach::Unreachable { why } if why.contains("down")));
    }
}
