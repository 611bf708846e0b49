//! The checks of `node init` and `node doctor`, in plain words: what is good, what to mind, what to mend.
//!
//! Disk: file system, free space, O_DIRECT, io_uring, how fast it writes and syncs. Clock: against a gateway's.
//! Network: addresses, the router, dial-back. Each finding stands alone; none stops the others.

use std::fs::OpenOptions;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use holdfast_gateway::web::api::{DialBack, DialledBack, Status};
use holdfast_protocol::time::{Clock, SystemClock};
use holdfast_protocol::transport::Transport;
use holdfast_protocol::transport::quic::{QuicConfig, QuicTransport};
use holdfast_protocol::{NodeId, SigningKey};
use serde::Serialize;
use url::Url;

use super::join::Right;
use super::{free_bytes, portmap};
use crate::client::Admin;
use crate::output::Output;
use crate::sizes::ByteSize;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    Good,
    Mind,
    Mend,
}

/// One check's result.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Finding {
    pub(super) check: &'static str,
    pub(super) verdict: Verdict,
    pub(super) what: String,
}

impl Finding {
    fn new(check: &'static str, verdict: Verdict, what: impl Into<String>) -> Self {
        Self { check, verdict, what: what.into() }
    }
}

/// Says findings as they come, and remembers whether something must be mended.
pub(super) struct Findings {
    output: Output,
    pub(super) must_mend: usize,
}

impl Findings {
    pub(super) fn new(output: Output) -> Self {
        Self { output, must_mend: 0 }
    }

    pub(super) fn add(&mut self, finding: &Finding) {
        let word = match finding.verdict {
            Verdict::Good => "good",
            Verdict::Mind => "mind",
            Verdict::Mend => "MEND",
        };
        self.must_mend += usize::from(finding.verdict == Verdict::Mend);
        self.output.value(finding);
        self.output.say(format!("  {word}  {:11} {}", finding.check, finding.what));
    }
}

/// Bytes written to measure the disk.
const PROBE_BYTES: usize = 64 * 1024 * 1024;
const PROBE_CHUNK: usize = 1024 * 1024;
/// Syncs of one page, to measure what a small write costs.
const PROBE_SYNCS: u32 = 20;
const PAGE: usize = 4096;
/// Slower disks make their owner unhappy: an uplink of 100 Mbit/s takes 12.5 MB/s.
const WRITE_MIN: f64 = 15e6;
/// A sync that takes longer holds every writer up.
const SYNC_MAX: Duration = Duration::from_millis(50);
/// Clocks further apart than this make signed times fail.
const CLOCK_MIND_MS: u64 = 2_000;
const CLOCK_MEND_MS: u64 = holdfast_protocol::limits::CLOCK_SKEW_MAX_MS;

/// Everything about the disk under `dir`, which exists.
pub(super) fn disk(dir: &Path, capacity_bytes: u64, used_bytes: u64) -> Vec<Finding> {
    let mut found = vec![file_system(dir), space(dir, capacity_bytes, used_bytes)];
    found.push(direct_io(dir));
    found.extend(speed(dir));
    found
}

fn file_system(dir: &Path) -> Finding {
    // Magic numbers from the kernel's magic.h.
    const KINDS: [(u64, &str, Verdict, &str); 10] = [
        (0xEF53, "ext4", Verdict::Good, ""),
        (0x5846_5342, "XFS", Verdict::Good, ""),
        (
            0x9123_683E,
            "btrfs",
            Verdict::Mind,
            ": copy-on-write makes it slower; `chattr +C` on the directory helps",
        ),
        (
            0x2FC1_2FC1,
            "ZFS",
            Verdict::Mind,
            ": it caches and checks on its own; give it a record size of 1 MiB",
        ),
        (0xF2F5_2010, "F2FS", Verdict::Good, ""),
        (0x0102_1994, "tmpfs", Verdict::Mend, ": it is gone after a reboot; choose a directory on a disk"),
        (
            0x6969,
            "NFS",
            Verdict::Mend,
            ": syncs over a network file system promise too little; use a local disk",
        ),
        (
            0xFF53_4D42,
            "CIFS",
            Verdict::Mend,
            ": syncs over a network file system promise too little; use a local disk",
        ),
        (0x6573_5546, "FUSE", Verdict::Mend, ": what a sync means there nobody knows; use a local disk"),
        (
            0x794C_7630,
            "overlayfs",
            Verdict::Mind,
            ": a container's layer; mount a volume for the node instead",
        ),
    ];
    let magic = match rustix::fs::statfs(dir) {
        #[allow(clippy::cast_sign_loss, reason = "magic numbers are bit patterns")]
        Ok(stat) => stat.f_type as u64 & 0xFFFF_FFFF,
        Err(error) => return Finding::new("file system", Verdict::Mind, format!("cannot be asked: {error}")),
    };
    match KINDS.iter().find(|(known, ..)| *known == magic) {
        Some((_, name, verdict, why)) => Finding::new("file system", *verdict, format!("{name}{why}")),
        None => {
            Finding::new("file system", Verdict::Mind, format!("of a kind that we do not know ({magic:#x})"))
        }
    }
}

fn space(dir: &Path, capacity_bytes: u64, used_bytes: u64) -> Finding {
    let free = match free_bytes(dir) {
        Ok(free) => free.saturating_add(used_bytes),
        Err(error) => return Finding::new("space", Verdict::Mend, format!("{error:#}")),
    };
    let (free_text, offered) = (ByteSize(free), ByteSize(capacity_bytes));
    if free < capacity_bytes {
        let what =
            format!("{free_text} are free, {offered} are offered; offer less, or writes are refused early");
        return Finding::new("space", Verdict::Mend, what);
    }
    if free - capacity_bytes < capacity_bytes / 20 {
        let what =
            format!("{free_text} are free for {offered}; leave a twentieth for the index and the system");
        return Finding::new("space", Verdict::Mind, what);
    }
    Finding::new("space", Verdict::Good, format!("{free_text} are free for the {offered} offered"))
}

fn direct_io(dir: &Path) -> Finding {
    let path = dir.join(".probe-direct");
    let opened = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .custom_flags(rustix::fs::OFlags::DIRECT.bits().cast_signed())
        .open(&path);
    let _ = std::fs::remove_file(&path);
    match opened {
        Ok(_) => Finding::new("O_DIRECT", Verdict::Good, "works: blocks go to the disk past the page cache"),
        Err(error) => Finding::new(
            "O_DIRECT",
            Verdict::Mend,
            format!("the file system does not offer it ({error}); use ext4 or XFS"),
        ),
    }
}

/// Writes and syncs, as a node would.
fn speed(dir: &Path) -> Vec<Finding> {
    match measure(dir) {
        Ok((bytes_per_second, sync)) => {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate for people")]
            let rate = ByteSize(bytes_per_second as u64);
            let writes = if bytes_per_second < WRITE_MIN {
                Finding::new(
                    "write speed",
                    Verdict::Mind,
                    format!("{rate}/s: slow for a node; an SSD or a whole disk is faster"),
                )
            } else {
                Finding::new("write speed", Verdict::Good, format!("{rate}/s"))
            };
            let sync_ms = sync.as_secs_f64() * 1000.0;
            let syncs = if sync > SYNC_MAX {
                Finding::new(
                    "sync",
                    Verdict::Mind,
                    format!("{sync_ms:.1} ms each: every writer waits for one"),
                )
            } else {
                Finding::new("sync", Verdict::Good, format!("{sync_ms:.1} ms each"))
            };
            vec![writes, syncs]
        }
        Err(error) => vec![Finding::new("write speed", Verdict::Mend, format!("cannot write: {error}"))],
    }
}

fn measure(dir: &Path) -> std::io::Result<(f64, Duration)> {
    let path = dir.join(".probe-speed");
    let probe = || -> std::io::Result<(f64, Duration)> {
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).open(&path)?;
        // Bytes that no file system can compress away.
        let mut chunk = vec![0u8; PROBE_CHUNK];
        blake3::Hasher::new().finalize_xof().fill(&mut chunk);
        let began = Instant::now();
        for _ in 0..PROBE_BYTES / PROBE_CHUNK {
            file.write_all(&chunk)?;
        }
        file.sync_data()?;
        #[allow(clippy::cast_precision_loss, reason = "a rate for people")]
        let rate = PROBE_BYTES as f64 / began.elapsed().as_secs_f64().max(1e-6);
        let began = Instant::now();
        for _ in 0..PROBE_SYNCS {
            file.write_all(&chunk[..PAGE])?;
            file.sync_data()?;
        }
        Ok((rate, began.elapsed() / PROBE_SYNCS))
    };
    let measured = probe();
    let _ = std::fs::remove_file(&path);
    measured
}

/// What the open store said about how it drives the disk.
pub(super) fn io(name: &str) -> Finding {
    match name {
        "io_uring" => Finding::new("io_uring", Verdict::Good, "permitted"),
        _ => Finding::new(
            "io_uring",
            Verdict::Mind,
            "not permitted here (a container, or sysctl kernel.io_uring_disabled); threads are used, at more CPU",
        ),
    }
}

/// Everything about the network: with a socket bound where the node will listen, if nobody has it.
pub(super) async fn network(
    key: Arc<SigningKey>,
    listen: SocketAddr,
    gateways: &[String],
    right: &Right,
    findings: &mut Findings,
) {
    for finding in addresses() {
        findings.add(&finding);
    }
    let bound = QuicTransport::bind(QuicConfig::new(listen, Arc::clone(&key)));
    let quic = match bound {
        Ok(quic) => quic,
        Err(error) => {
            let what = format!(
                "cannot listen on {listen}: {error}. A running node has the port: stop it, or choose another"
            );
            findings.add(&Finding::new("listening", Verdict::Mend, what));
            return;
        }
    };
    let mut candidates = Vec::new();
    let port = quic.local_addr().map_or(listen.port(), |address| address.port());
    match portmap::open(port).await {
        Ok(mapped) => {
            findings.add(&Finding::new("router", Verdict::Good, format!("{mapped}")));
            candidates.push(mapped.external);
            mapped.release().await;
        }
        Err(why) => findings.add(&Finding::new(
            "router",
            Verdict::Mind,
            format!(
                "opens no port for us ({why}); a node works without, over connections that it opens itself"
            ),
        )),
    }
    if gateways.is_empty() {
        let what = "no gateway is known yet, so nobody can dial back; give --invite";
        findings.add(&Finding::new("dial-back", Verdict::Mind, what));
    }
    for gateway in gateways {
        for finding in ask_gateway(gateway, right, &key, port, &candidates).await {
            findings.add(&finding);
        }
    }
    quic.close().await;
}

/// Our addresses that others may dial.
fn addresses() -> Vec<Finding> {
    // Connecting a UDP socket sends nothing; it only asks the system which of our addresses leads there. The two are
    // reserved for documentation, so nothing is ever sent to them by mistake either.
    let way = |from: &str, to: &str| {
        let socket = std::net::UdpSocket::bind(from).ok()?;
        socket.connect(to).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    let mut found = Vec::new();
    match way("0.0.0.0:0", "192.0.2.1:9") {
        Some(std::net::IpAddr::V4(ip)) if ip.is_private() || is_shared(ip) => found.push(Finding::new(
            "IPv4",
            Verdict::Mind,
            format!(
                "{ip} is an address of a private network: others reach it only if a router forwards the port"
            ),
        )),
        Some(ip) => found.push(Finding::new("IPv4", Verdict::Good, ip.to_string())),
        None => found.push(Finding::new("IPv4", Verdict::Mind, "no way leads out")),
    }
    match way("[::]:0", "[2001:db8::1]:9") {
        Some(ip) => found.push(Finding::new("IPv6", Verdict::Good, ip.to_string())),
        None => found.push(Finding::new("IPv6", Verdict::Mind, "none; that is common and no harm")),
    }
    found
}

/// Carrier-grade NAT, 100.64.0.0/10.
fn is_shared(ip: std::net::Ipv4Addr) -> bool {
    let [a, b, ..] = ip.octets();
    a == 100 && (64..128).contains(&b)
}

async fn ask_gateway(
    gateway: &str,
    right: &Right,
    key: &SigningKey,
    port: u16,
    candidates: &[SocketAddr],
) -> Vec<Finding> {
    let asked = async {
        let base = Url::parse(gateway).with_context(|| format!("`{gateway}` is not a URL"))?;
        let admin = Admin::new(base, right.token()?);
        let status: Status = admin.get("api/v1/status").await?;
        let mut addresses = candidates.to_vec();
        addresses.extend(super::way_to(gateway).ok().map(|ip| SocketAddr::new(ip, port)));
        let ask = DialBack { node: NodeId(key.public()).to_string(), addresses };
        let asked_ms = SystemClock.now_ms();
        let answer: DialledBack = admin.post("api/v1/dialback", &ask).await?;
        anyhow::Ok((status, answer, asked_ms))
    };
    match asked.await {
        Err(error) => vec![Finding::new("gateway", Verdict::Mend, format!("{gateway}: {error:#}"))],
        Ok((status, answer, asked_ms)) => {
            let greeting = format!("{gateway} answers ({}, policy {})", status.software, status.policy);
            vec![
                Finding::new("gateway", Verdict::Good, greeting),
                clock(answer.now_ms, asked_ms, SystemClock.now_ms()),
                dialled_back(&answer, &status),
            ]
        }
    }
}

/// The gateway's time lies between our asking and its answer, if the clocks agree.
fn clock(theirs_ms: u64, asked_ms: u64, answered_ms: u64) -> Finding {
    let apart_ms = match theirs_ms {
        at if at < asked_ms => asked_ms - at,
        at if at > answered_ms => at - answered_ms,
        _ => 0,
    };
    let verdict = match apart_ms {
        0..CLOCK_MIND_MS => Verdict::Good,
        CLOCK_MIND_MS..CLOCK_MEND_MS => Verdict::Mind,
        _ => Verdict::Mend,
    };
    let what = match verdict {
        Verdict::Good => "agrees with the gateway's".to_owned(),
        _ => format!("is {} s from the gateway's; turn on NTP (`timedatectl set-ntp true`)", apart_ms / 1000),
    };
    Finding::new("clock", verdict, what)
}

fn dialled_back(answer: &DialledBack, status: &Status) -> Finding {
    match (&answer.reached, &answer.why) {
        (Some(address), _) => {
            Finding::new("dial-back", Verdict::Good, format!("the gateway reached us at {address}"))
        }
        (None, why) if !status.quic.is_empty() => Finding::new(
            "dial-back",
            Verdict::Mind,
            format!(
                "the gateway cannot dial us ({}); the node will dial the gateway and serve over that connection. \
                 Forward the UDP port on your router for the best speed",
                why.as_deref().unwrap_or("no reason given")
            ),
        ),
        (None, why) => Finding::new(
            "dial-back",
            Verdict::Mend,
            format!(
                "the gateway cannot dial us ({}) and takes no calls itself",
                why.as_deref().unwrap_or("?")
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Result;

    use super::*;

    #[test]
    fn a_real_directory_is_measured_and_left_clean() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let found = disk(dir.path(), 1, 0);
        assert!(found.iter().any(|finding| finding.check == "write speed" && finding.what.contains("/s")));
        assert_eq!(std::fs::read_dir(dir.path())?.count(), 0);
        Ok(())
    }

    #[test]
    fn more_than_is_free_must_be_mended() -> Result<()> {
        let dir = tempfile::tempdir()?;
        assert_eq!(space(dir.path(), u64::MAX / 2, 0).verdict, Verdict::Mend);
        assert_eq!(space(dir.path(), 1, 0).verdict, Verdict::Good);
        Ok(())
    }

    #[test]
    fn clocks_apart_are_noticed() {
        assert_eq!(clock(1_000, 900, 1_100).verdict, Verdict::Good);
        assert_eq!(clock(10_000, 900, 1_100).verdict, Verdict::Mind);
        assert_eq!(clock(0, 10_000_000, 10_000_001).verdict, Verdict::Mend);
    }
}
