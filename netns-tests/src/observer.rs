//! What the kernel marks: an observer behind the agent's chains that notes each packet which opens a connection.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};

use crate::lab::Host;

/// In prerouting and output behind the agent's chains: address pair, port and mark of what opens a connection.
const OBSERVER: &str = "add table inet observer; \
    add set inet observer seen { type ipv4_addr . ipv4_addr . inet_service . mark; flags dynamic; size 65535; }; \
    add chain inet observer pre { type filter hook prerouting priority -100; }; \
    add chain inet observer out { type filter hook output priority -100; }; \
    add rule inet observer pre iifname to-client tcp flags & (syn | ack) == syn \
        update @seen { ip saddr . ip daddr . tcp dport . meta mark }; \
    add rule inet observer out meta mark & 0xfff00000 != 0xfff00000 tcp flags & (syn | ack) == syn \
        update @seen { ip saddr . ip daddr . tcp dport . meta mark }";

/// Source, destination and destination port of a flow of IPv4.
pub type FlowKey = (IpAddr, IpAddr, u16);

/// Watches what comes over the link `to-client` and what starts on the host.
pub fn watch(host: &Host) -> Result<()> {
    host.sh(&format!("nft '{OBSERVER}'")).map(drop)
}

/// Forgets what was seen.
pub fn forget(host: &Host) -> Result<()> {
    host.sh("nft flush set inet observer seen").map(drop)
}

/// Marks by flow.
pub fn seen(host: &Host) -> Result<BTreeMap<FlowKey, BTreeSet<u64>>> {
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
