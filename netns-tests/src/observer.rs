//! What the kernel marks: an observer behind the agent's chains that notes each packet which opens a connection.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};

use crate::api::Client;
use crate::cluster::Cluster;
use crate::lab::{Host, Lab};
use crate::topology::{LONDON_WAN, Profile, TwoSites};
use crate::vendor::Grant;

const SEEN_WITHIN: Duration = Duration::from_secs(20);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// In prerouting and output behind the agent's chains: address pair, port and mark of what opens a connection. Not of
/// what is sent again, to the socket that the first packet made: that carries the mark of established ones.
const OBSERVER: &str = "add table inet observer; \
    add set inet observer seen { type ipv4_addr . ipv4_addr . inet_service . mark; flags dynamic; size 65535; }; \
    add chain inet observer pre { type filter hook prerouting priority -100; }; \
    add chain inet observer out { type filter hook output priority -100; }; \
    add rule inet observer pre iifname to-client meta mark & 0xfff00000 != 0xffe00000 tcp flags & (syn | ack) == syn \
        update @seen { ip saddr . ip daddr . tcp dport . meta mark }; \
    add rule inet observer out meta mark & 0xfff00000 != 0xfff00000 tcp flags & (syn | ack) == syn \
        update @seen { ip saddr . ip daddr . tcp dport . meta mark }";

/// Source, destination and destination port of a flow of IPv4.
pub type FlowKey = (IpAddr, IpAddr, u16);

/// Two sites with agents, of which london's is watched.
pub struct Watched {
    /// At london's agent.
    pub api: Client,
    /// Id of the other peer.
    pub tokyo: String,
    pub cluster: Cluster,
    pub sites: TwoSites,
}

impl Watched {
    /// The client sends from these addresses too, and no check of theirs is in the way.
    pub fn new(name: &str, of_client: &[IpAddr]) -> Result<Watched> {
        let sites = TwoSites::build(Lab::new(name)?, Profile::CLEAN, 1)?;
        let cluster = Cluster::form(&sites, &Grant::default())?;
        for address in of_client {
            sites.client.ip(&format!("address add {address}/32 dev lo"))?;
        }
        sites.london.sh("for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $f; done")?;
        watch(&sites.london)?;
        let api = Client::log_in(&sites.london, LONDON_WAN, &cluster.operator)?;
        let tokyo: Value = cluster.operator.json(&["peers", "get", "tokyo"])?;
        let tokyo = tokyo["id"].as_str().context("an id")?.to_owned();
        Ok(Watched { api, tokyo, cluster, sites })
    }
}

/// Watches what comes over the link `to-client` and what starts on the host.
fn watch(host: &Host) -> Result<()> {
    host.sh(&format!("nft '{OBSERVER}'")).map(drop)
}

/// Forgets what was seen.
pub fn forget(host: &Host) -> Result<()> {
    host.sh("nft flush set inet observer seen").map(drop)
}

/// Marks by flow, once a packet of each of these was seen.
pub fn wait_for(host: &Host, flows: &[FlowKey]) -> Result<BTreeMap<FlowKey, BTreeSet<u64>>> {
    let deadline = Instant::now() + SEEN_WITHIN;
    loop {
        let marks = seen(host)?;
        if flows.iter().all(|flow| marks.contains_key(flow)) {
            return Ok(marks);
        }
        ensure!(Instant::now() < deadline, "some packets of {flows:?} were not seen: {marks:?}");
        thread::sleep(POLL_INTERVAL);
    }
}

/// Marks by flow.
fn seen(host: &Host) -> Result<BTreeMap<FlowKey, BTreeSet<u64>>> {
    let listed: Value = serde_json::from_str(&host.sh("nft -j list set inet observer seen")?)?;
    let set = listed["nftables"].as_array().and_then(|all| all.iter().find_map(|o| o.get("set"))).context("the set")?;
    let mut marks = BTreeMap::<_, BTreeSet<u64>>::new();
    for element in set["elem"].as_array().into_iter().flatten() {
        let parts = element.get("elem").map_or(element, |inner| &inner["val"]);
        let parts = parts["concat"].as_array().context("an element of four parts")?;
        let address = |n: usize| parts[n].as_str().context("an address")?.parse::<IpAddr>().context("an address");
        let dport = u16::try_from(parts[2].as_u64().context("a port")?)?;
        marks.entry((address(0)?, address(1)?, dport)).or_default().insert(parts[3].as_u64().context("a mark")?);
    }
    Ok(marks)
}

/// Sends the first packet of a flow. What becomes of the connection does not matter.
pub fn open(host: &Host, (source, dest, dport): FlowKey) -> Result<Socket> {
    host.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
        drop(socket.connect(&SocketAddr::new(dest, dport).into()));
        Ok(socket)
    })
}
