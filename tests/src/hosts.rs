//! Three hosts in network namespaces of their own: one on the public side, a router, one at home behind it.
//!
//! ```text
//! pub  PUBLIC.1/24 ---- PUBLIC.2/24  nat  192.168.77.1/24 ---- 192.168.77.2/24  home
//! ```
//! `pub` has no way to 192.168.77.0/24. Needs root, `ip` and `nft`, which `scripts/setup.sh --tests` installs.

use std::os::fd::AsFd;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::succeeded;

/// A router that forwards nothing which `home` did not begin.
pub const CLOSED_ROUTER: &str = "table ip home {
    chain out { type nat hook postrouting priority srcnat; oifname \"wan0\" masquerade; }
    chain pass { type filter hook forward priority filter; policy drop;
        ct state established,related accept; iifname \"lan0\" accept; }
}";

/// The three namespaces; taken down when dropped.
pub struct Hosts {
    tag: String,
}

impl Hosts {
    /// Makes them: the public side has the addresses `public`.1 and `public`.2, the router has these rules.
    pub fn set_up(public: &str, rules: &str) -> Result<Self> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "this test makes network namespaces and must run as root, as `make test` does in CI"
        );
        let hosts = Self { tag: format!("hf{}", std::process::id()) };
        let (outside, router, home) = (hosts.name("pub"), hosts.name("nat"), hosts.name("home"));
        for name in [&outside, &router, &home] {
            run("ip", &["netns", "add", name])?;
            run("ip", &["-n", name, "link", "set", "lo", "up"])?;
        }
        let (theirs, ours) = (format!("{public}.1/24"), format!("{public}.2/24"));
        for (a, a_link, a_address, b_link, b_address) in [
            (&outside, "up0", &*theirs, "wan0", &*ours),
            (&home, "eth0", "192.168.77.2/24", "lan0", "192.168.77.1/24"),
        ] {
            let pair = ["type", "veth", "peer", "name", b_link, "netns", &router];
            run("ip", &[&["link", "add", a_link, "netns", a][..], &pair].concat())?;
            for (name, link, address) in [(a, a_link, a_address), (&router, b_link, b_address)] {
                run("ip", &["-n", name, "address", "add", address, "dev", link])?;
                run("ip", &["-n", name, "link", "set", link, "up"])?;
            }
        }
        run("ip", &["-n", &home, "route", "add", "default", "via", "192.168.77.1"])?;
        hosts.inside("nat", "sysctl", &["-q", "-w", "net.ipv4.ip_forward=1"])?;
        hosts.inside("nat", "nft", &[rules])?;
        Ok(hosts)
    }

    /// The namespace of `pub`, `nat` or `home`.
    pub fn name(&self, host: &str) -> String {
        format!("{}-{host}", self.tag)
    }

    /// A program on a host, ready to be started.
    pub fn command(&self, host: &str, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name(host), program]);
        command
    }

    /// Runs a program on a host; it must succeed. Its standard output.
    pub fn inside(&self, host: &str, program: &str, args: &[&str]) -> Result<String> {
        succeeded(self.command(host, program).args(args).output()?, program)
    }

    /// This thread, and whatever it starts, is on `host` from now on.
    pub fn enter(&self, host: &str) -> Result<()> {
        let file = std::fs::File::open(format!("/run/netns/{}", self.name(host)))?;
        let kind = Some(rustix::thread::LinkNameSpaceType::Network);
        rustix::thread::move_into_link_name_space(file.as_fd(), kind).context("setns")
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for host in ["pub", "nat", "home"] {
            let _ = Command::new("ip").args(["netns", "del", &self.name(host)]).status();
        }
    }
}

fn run(program: &str, args: &[&str]) -> Result<String> {
    succeeded(Command::new(program).args(args).output()?, &format!("{program} {}", args.join(" ")))
}
