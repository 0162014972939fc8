//! Two sites with agents, and two services from london to tokyo: `tcp` for the server's first networks, `kcp` for its
//! second ones. What is not TCP goes by the tunnel. Servers say from where they see a client.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::agent::http_get;
use crate::bulk;
use crate::cluster::{Cluster, serve_with, wait_for_route};
use crate::datagram::{DatagramService, ask_udp};
use crate::lab::{Host, Lab};
use crate::probe::Feature;
use crate::service::{TcpService, seen_from, seen_from_within};
use crate::topology::{
    API_PORT, CLIENT, CLIENT_V6, Profile, SERVER, SERVER_DIRECT, SERVER_DIRECT_V6, SERVER_NET, SERVER_NET_V6,
    SERVER_V6, TwoSites, at,
};
use crate::vendor::Grant;

pub const PRODUCT: [Feature; 5] = [Feature::Root, Feature::Veth, Feature::Tun, Feature::NftTproxy, Feature::NftSocket];
/// The destinations of the service by kcp.
pub const DIRECT_NET: &str = "10.71.3.0/24";
pub const DIRECT_NET_V6: &str = "fd71:3::/64";
/// The servers: who asks, echo, bulk; and who asks by UDP.
pub const MIRROR_PORT: u16 = 7000;
pub const ECHO_PORT: u16 = 7;
pub const BULK_PORT: u16 = 5001;
pub const DNS: u16 = 53;
/// With room for a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// For an answer that has to come.
pub const ANSWERED: Duration = Duration::from_secs(10);
/// For one that is not to come, or is asked for again.
pub const SHORT: Duration = Duration::from_millis(500);
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// The server's addresses; those of the service by tcp come first.
const SERVERS: [IpAddr; 4] = [SERVER, SERVER_V6, SERVER_DIRECT, SERVER_DIRECT_V6];

pub struct World {
    pub cluster: Cluster,
    pub tcp: String,
    pub kcp: String,
    _servers: [TcpService; 3],
    _mirrors: [DatagramService; 4],
    pub sites: TwoSites,
}

impl World {
    pub fn new(name: &str, profile: Profile) -> World {
        World::prepared(name, profile, |_| ())
    }

    /// `prepare` runs before the agents.
    pub fn prepared(name: &str, profile: Profile, prepare: impl FnOnce(&TwoSites)) -> World {
        let sites = TwoSites::build(Lab::new(name).unwrap(), profile, 1).unwrap();
        prepare(&sites);
        World::on(sites)
    }

    pub fn on(sites: TwoSites) -> World {
        let cluster = Cluster::form(&sites, &Grant::default()).unwrap();
        let any = |port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let servers = [
            TcpService::mirror(&sites.server, any(MIRROR_PORT)).unwrap(),
            TcpService::echo(&sites.server, any(ECHO_PORT)).unwrap(),
            bulk::server(&sites.server, any(BULK_PORT)).unwrap(),
        ];
        let mirrors = SERVERS.map(|ip| DatagramService::udp_mirror(&sites.server, at(ip, DNS)).unwrap());
        let serve = |transport, nets: [&str; 2]| {
            let id = serve_with(&cluster.operator, &["--transport", transport], &nets).unwrap();
            for net in nets {
                wait_for_route(&sites.london, net).unwrap();
            }
            id
        };
        let (tcp, kcp) = (serve("tcp", [SERVER_NET, SERVER_NET_V6]), serve("kcp", [DIRECT_NET, DIRECT_NET_V6]));
        World { cluster, tcp, kcp, _servers: servers, _mirrors: mirrors, sites }
    }

    /// A route of the service by tcp, once both ends have it.
    pub fn route(&self, destination: &str) {
        let add = ["routes", "add", "--service", &self.tcp, "--dest-cidr", destination, "--wait"];
        self.cluster.operator.ok(&add).unwrap();
        wait_for_route(&self.sites.london, &format!("daddr {destination}")).unwrap();
    }

    /// Waits until everything of the client and of london itself is carried.
    pub fn wait_until_carried(&self, within: Duration) -> Duration {
        wait("everything is carried", within, || {
            is_carried(&self.sites.client)?;
            is_carried(&self.sites.london)
        })
    }
}

/// Asks each server once, by TCP and UDP, from a host; the first one that is not reached by way of tokyo is an error.
pub fn is_carried(from: &Host) -> Result<()> {
    SERVERS.into_iter().try_for_each(|ip| {
        let seen = seen_from(from, at(ip, MIRROR_PORT))?;
        ensure!(seen == exit_towards(ip), "{ip} was reached from {seen}");
        let seen = ask_udp(from, at(ip, DNS), b"who asks", SHORT)?;
        ensure!(seen == exit_towards(ip), "{ip} was reached by UDP from {seen}");
        Ok(())
    })
}

/// The same for plain routing of the client's packets; each answer comes within the time.
pub fn is_plain(client: &Host, within: Duration) -> Result<()> {
    SERVERS.into_iter().try_for_each(|ip| {
        let own = if ip.is_ipv4() { CLIENT } else { CLIENT_V6 };
        let seen = seen_from_within(client, at(ip, MIRROR_PORT), within)?;
        ensure!(seen == own, "{ip} was reached from {seen}");
        let seen = ask_udp(client, at(ip, DNS), b"who asks", within)?;
        ensure!(seen == own, "{ip} was reached by UDP from {seen}");
        Ok(())
    })
}

/// The address under which tokyo reaches a server's address: its neighbour.
pub fn exit_towards(server: IpAddr) -> IpAddr {
    match server {
        IpAddr::V4(v4) => IpAddr::V4((v4.to_bits() - 1).into()),
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() - 1).into()),
    }
}

/// Waits until an attempt succeeds; how long that took.
#[track_caller]
pub fn wait(what: &str, within: Duration, mut attempt: impl FnMut() -> Result<()>) -> Duration {
    let started = Instant::now();
    while let Err(error) = attempt() {
        assert!(started.elapsed() < within, "never in {within:?}: {what}: {error:#}");
        thread::sleep(POLL_INTERVAL);
    }
    started.elapsed()
}

/// The sum of a metric of the agent on a host, over the lines that hold all of these texts.
pub fn metric(host: &Host, name: &str, texts: &[&str]) -> u64 {
    let api = SocketAddr::from(([127, 0, 0, 1], API_PORT));
    let (_, page) = http_get(host, api, "/metrics").unwrap();
    let lines = page.lines().filter(|l| l.starts_with(name) && texts.iter().all(|text| l.contains(text)));
    lines.filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
}

/// Connections of all services of an agent that ended so; `opened`, or why they were refused.
pub fn connections(host: &Host, result: &str) -> u64 {
    metric(host, "arctic_service_connections_total", &[&format!("result=\"{result}\"")])
}

/// Waits until a metric is so; it is written beside what it tells of, perhaps a moment later.
#[track_caller]
pub fn wait_for_metric(what: &str, expected: u64, look: impl Fn() -> u64) {
    wait(what, PATIENCE, || {
        let found = look();
        ensure!(found == expected, "{found} is not {expected}");
        Ok(())
    });
}

/// The addresses of a host, each with the name of its link.
pub fn addresses(host: &Host) -> Result<Vec<(IpAddr, String)>> {
    let links: Vec<Value> = serde_json::from_str(&host.sh("ip -j address")?)?;
    let mut found = vec![];
    for link in &links {
        let name = link["ifname"].as_str().context("a link without a name")?;
        for address in link["addr_info"].as_array().into_iter().flatten() {
            found.push((address["local"].as_str().context("an address")?.parse()?, name.to_owned()));
        }
    }
    Ok(found)
}
