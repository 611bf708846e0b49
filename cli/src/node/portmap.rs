//! Asking the router to forward a port: PCP or NAT-PMP first, UPnP else. Kept alive while the node runs.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Duration;

use igd_next::PortMappingProtocol;
use igd_next::aio::Gateway;
use igd_next::aio::tokio::Tokio;
use tokio_util::sync::CancellationToken;

/// How long a mapping is asked for; renewed at half of it.
const LEASE: Duration = Duration::from_secs(2 * 3600);
/// How long the search for a router's UPnP may take.
const SEARCH: Duration = Duration::from_secs(3);
/// PCP and NAT-PMP repeat their question with doubled pauses; a router that speaks one answers the first.
const PCP_WITHIN: Duration = Duration::from_secs(3);

/// A port that the router forwards to us.
pub(super) struct Mapped {
    /// Where others dial.
    pub(super) external: SocketAddr,
    how: How,
    port: u16,
}

enum How {
    Pcp(Box<crab_nat::PortMapping>),
    Upnp(Box<Gateway<Tokio>>),
}

impl fmt::Display for Mapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = match self.how {
            How::Pcp(_) => "PCP or NAT-PMP",
            How::Upnp(_) => "UPnP",
        };
        write!(f, "forwards {} to us ({how})", self.external)
    }
}

impl Mapped {
    /// Asks for the same again, so that it does not lapse.
    async fn renew(&mut self) -> Result<(), String> {
        match &mut self.how {
            How::Pcp(mapping) => mapping.renew().await.map_err(|error| error.to_string()),
            How::Upnp(gateway) => add_upnp(gateway, self.port).await.map(|_| ()),
        }
    }

    /// Gives the port back.
    pub(super) async fn release(self) {
        match self.how {
            How::Pcp(mapping) => {
                if let Err((error, _)) = mapping.try_drop().await {
                    tracing::debug!(%error, "the router keeps the port until its lease ends");
                }
            }
            How::Upnp(gateway) => {
                if let Err(error) = gateway.remove_port(PortMappingProtocol::UDP, self.external.port()).await
                {
                    tracing::debug!(%error, "the router keeps the port until its lease ends");
                }
            }
        }
    }

    /// Renews until `stop`, then gives the port back.
    pub(super) async fn keep(mut self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(LEASE / 2) => {}
            }
            if let Err(error) = self.renew().await {
                tracing::warn!(error, "the router did not renew our port; trying again");
            }
        }
        self.release().await;
    }
}

/// Has the router forward a UDP port to `port` here. The error says in words what was tried.
pub(super) async fn open(port: u16) -> Result<Mapped, String> {
    let local = local_ip().ok_or("no way leads out")?;
    let router = default_router();
    let by_pcp = match router {
        Some(router) => pcp(router, local, port).await,
        None => Err("no default route".to_owned()),
    };
    match by_pcp {
        Ok(mapped) => Ok(mapped),
        Err(pcp) => upnp(port).await.map_err(|upnp| format!("PCP: {pcp}; UPnP: {upnp}")),
    }
}

async fn pcp(router: Ipv4Addr, local: IpAddr, port: u16) -> Result<Mapped, String> {
    let internal = NonZeroU16::new(port).ok_or("no port")?;
    let lease = u32::try_from(LEASE.as_secs()).unwrap_or(u32::MAX);
    let options = crab_nat::PortMappingOptions {
        external_port: Some(internal),
        lifetime_seconds: Some(lease),
        ..crab_nat::PortMappingOptions::default()
    };
    let asking =
        crab_nat::PortMapping::new(router.into(), local, crab_nat::InternetProtocol::Udp, internal, options);
    let mapping = tokio::time::timeout(PCP_WITHIN, asking)
        .await
        .map_err(|_| "the router does not answer".to_owned())?
        .map_err(|error| error.to_string())?;
    let ip = match mapping.mapping_type() {
        crab_nat::PortMappingType::Pcp { external_ip, .. } => external_ip,
        crab_nat::PortMappingType::NatPmp => {
            let asked = crab_nat::natpmp::external_address(router.into(), None);
            let asked = tokio::time::timeout(PCP_WITHIN, asked).await;
            asked
                .map_err(|_| "the router does not say its address".to_owned())?
                .map(IpAddr::from)
                .map_err(|error| error.to_string())?
        }
    };
    let external = SocketAddr::new(ip.to_canonical(), mapping.external_port().get());
    Ok(Mapped { external, how: How::Pcp(Box::new(mapping)), port })
}

async fn upnp(port: u16) -> Result<Mapped, String> {
    let mut options = igd_next::SearchOptions::default();
    options.timeout = Some(SEARCH);
    options.single_search_timeout = Some(SEARCH);
    let gateway = igd_next::aio::tokio::search_gateway(options).await.map_err(|error| error.to_string())?;
    let external_port = add_upnp(&gateway, port).await?;
    let ip = gateway.get_external_ip().await.map_err(|error| error.to_string())?;
    Ok(Mapped { external: SocketAddr::new(ip, external_port), how: How::Upnp(Box::new(gateway)), port })
}

async fn add_upnp(gateway: &Gateway<Tokio>, port: u16) -> Result<u16, String> {
    let local = local_ip().ok_or("no way leads out")?;
    let lease = u32::try_from(LEASE.as_secs()).unwrap_or(u32::MAX);
    let here = SocketAddr::new(local, port);
    let added = gateway.add_port(PortMappingProtocol::UDP, port, here, lease, "holdfast node").await;
    added.map(|()| port).map_err(|error| error.to_string())
}

/// Our own address on the way out. Connecting a UDP socket sends nothing.
fn local_ip() -> Option<IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// The next hop of the default route, as the kernel lists it.
fn default_router() -> Option<Ipv4Addr> {
    router_in(&std::fs::read_to_string("/proc/net/route").ok()?)
}

/// The gateway of the line whose destination is 0.0.0.0; addresses are hexadecimal in network order, as words of
/// this machine.
fn router_in(table: &str) -> Option<Ipv4Addr> {
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (destination, gateway) = (fields.next()?, fields.next()?);
        let router = u32::from_str_radix(gateway, 16).ok()?;
        (destination == "00000000" && router != 0).then(|| Ipv4Addr::from(router.to_ne_bytes()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_route_is_found_in_the_kernels_table() {
        let table = "Iface\tDestination\tGateway\tFlags\n\
                     eth0\t0001A8C0\t00000000\t0001\n\
                     eth0\t00000000\t0101A8C0\t0003\n";
        #[cfg(target_endian = "little")]
        assert_eq!(router_in(table), Some(Ipv4Addr::new(192, 168, 1, 1)));
        assert_eq!(router_in("Iface\tDestination\tGateway\n"), None);
    }
}
