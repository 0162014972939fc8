//! The picture of the product: `client - london =WAN= tokyo - server`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::Result;

use crate::lab::{Host, Lab};
use crate::wan::Wan;
use crate::wan::path::Conditions;

/// A kind of WAN, the same in both directions, queue one bandwidth-delay product.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Profile {
    pub name: &'static str,
    pub rtt: Duration,
    /// Loss each way.
    pub loss: f64,
    /// `None`: a veth pair instead of the emulator.
    pub rate_mbps: Option<u64>,
}

impl Profile {
    pub const CLEAN: Profile = Profile { name: "clean", rtt: Duration::ZERO, loss: 0.0, rate_mbps: None };
    pub const CONTINENT: Profile = Profile::new("continent", 60, 0.0, 500);
    pub const OCEAN: Profile = Profile::new("ocean", 150, 0.005, 200);
    pub const LOSSY: Profile = Profile::new("lossy", 200, 0.02, 100);
    pub const SATELLITE: Profile = Profile::new("satellite", 600, 0.01, 50);
    pub const ALL: [Profile; 5] =
        [Profile::CLEAN, Profile::CONTINENT, Profile::OCEAN, Profile::LOSSY, Profile::SATELLITE];

    const fn new(name: &'static str, rtt_ms: u64, loss: f64, rate_mbps: u64) -> Profile {
        Profile { name, rtt: Duration::from_millis(rtt_ms), loss, rate_mbps: Some(rate_mbps) }
    }

    pub fn named(name: &str) -> Option<Profile> {
        Profile::ALL.into_iter().find(|profile| profile.name == name)
    }

    pub fn conditions(&self) -> Conditions {
        Conditions {
            delay: self.rtt / 2,
            loss: self.loss,
            rate_bps: self.rate_mbps.map(|mbps| mbps * 1_000_000),
            ..Conditions::default()
        }
    }
}

impl std::fmt::Display for Profile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.rate_mbps {
            None => f.write_str("a plain veth pair"),
            Some(mbps) => {
                write!(f, "{} ms RTT, {} % loss each way, {mbps} Mbit/s", self.rtt.as_millis(), self.loss * 100.0)
            }
        }
    }
}

pub const CLIENT: IpAddr = v4(1, 2);
pub const LONDON_LAN: IpAddr = v4(1, 1);
pub const LONDON_WAN: IpAddr = v4(0, 1);
pub const TOKYO_WAN: IpAddr = v4(0, 2);
pub const TOKYO_LAN: IpAddr = v4(2, 1);
pub const SERVER: IpAddr = v4(2, 2);
/// The server's second address, in a subnet that stays out of services: direct traffic to compare with.
pub const SERVER_DIRECT: IpAddr = v4(3, 2);
pub const SERVER_NET: &str = "10.71.2.0/24";

pub const CLIENT_V6: IpAddr = v6(1, 2);
pub const SERVER_V6: IpAddr = v6(2, 2);
pub const SERVER_DIRECT_V6: IpAddr = v6(3, 2);
pub const SERVER_NET_V6: &str = "fd71:2::/64";

/// Port of the agents' API in both sites.
pub const API_PORT: u16 = 8080;

/// Two sites and the WAN between them; direct traffic flows end to end, in both families.
pub struct TwoSites {
    pub client: Host,
    pub london: Host,
    pub tokyo: Host,
    pub server: Host,
    /// `None` on a clean profile.
    pub wan: Option<Wan>,
    pub profile: Profile,
    // Last, so that the link is gone before left-over processes are looked for.
    pub lab: Lab,
}

impl TwoSites {
    pub fn build(mut lab: Lab, profile: Profile, seed: u64) -> Result<TwoSites> {
        let client = lab.host("client")?;
        let london = lab.host("london")?;
        let tokyo = lab.host("tokyo")?;
        let server = lab.host("server")?;

        lab.veth(&client, &london, &["10.71.1.2/24", "fd71:1::2/64"], &["10.71.1.1/24", "fd71:1::1/64"])?;
        lab.veth(
            &tokyo,
            &server,
            &["10.71.2.1/24", "fd71:2::1/64", "10.71.3.1/24", "fd71:3::1/64"],
            &["10.71.2.2/24", "fd71:2::2/64", "10.71.3.2/24", "fd71:3::2/64"],
        )?;
        let wan_london: &[&str] = &["10.71.0.1/30", "fd71:0::1/64"];
        let wan_tokyo: &[&str] = &["10.71.0.2/30", "fd71:0::2/64"];
        let wan = if profile.rate_mbps.is_some() {
            Some(Wan::connect((&london, wan_london), (&tokyo, wan_tokyo), profile.conditions(), seed)?)
        } else {
            lab.veth(&london, &tokyo, wan_london, wan_tokyo)?;
            None
        };

        for (host, gateway, gateway_v6) in [
            (&client, "10.71.1.1", "fd71:1::1"),
            (&london, "10.71.0.2", "fd71:0::2"),
            (&tokyo, "10.71.0.1", "fd71:0::1"),
            (&server, "10.71.2.1", "fd71:2::1"),
        ] {
            host.route("default", gateway)?;
            host.route("default", gateway_v6)?;
        }
        london.forward()?;
        tokyo.forward()?;
        Ok(TwoSites { client, london, tokyo, server, wan, profile, lab })
    }

    pub fn hosts(&self) -> [&Host; 4] {
        [&self.client, &self.london, &self.tokyo, &self.server]
    }
}

/// Three sites at one exchange; the agents' hosts only, each in a network of its own.
pub struct ThreeSites {
    pub london: Host,
    pub tokyo: Host,
    pub oslo: Host,
    pub exchange: Host,
    // Last, so that left-over processes are looked for when all else is gone.
    pub lab: Lab,
}

impl ThreeSites {
    pub const LONDON: IpAddr = v4(11, 2);
    pub const TOKYO: IpAddr = v4(12, 2);
    pub const OSLO: IpAddr = v4(13, 2);

    pub fn build(mut lab: Lab) -> Result<ThreeSites> {
        let exchange = lab.host("exchange")?;
        let mut site = |name: &str, net: u8| -> Result<Host> {
            let host = lab.host(name)?;
            lab.veth(&host, &exchange, &[&format!("10.71.{net}.2/24")], &[&format!("10.71.{net}.1/24")])?;
            host.route("default", &format!("10.71.{net}.1"))?;
            Ok(host)
        };
        let (london, tokyo, oslo) = (site("london", 11)?, site("tokyo", 12)?, site("oslo", 13)?);
        exchange.forward()?;
        Ok(ThreeSites { london, tokyo, oslo, exchange, lab })
    }
}

/// An address with a port.
pub const fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

const fn v4(net: u8, host: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 71, net, host))
}

const fn v6(net: u16, host: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0xfd71, net, 0, 0, 0, 0, 0, host))
}
