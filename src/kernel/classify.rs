//! What the program of the tables does to one packet: the rules' meaning, written once more, for the fake and tests.

use super::ruleset::{ICMP_V6, NEIGHBOUR_DISCOVERY};
use super::{Action, Chain, Covers, Elements, Family, Jump, Key, Match, Rule, TABLE_TCP, TABLE_TUNNEL, Table};
use std::{collections::BTreeSet, net::IpAddr};

/// How a packet meets the tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Arrival {
    /// By a link, to be forwarded or delivered.
    Entered { interface: String },
    /// From a socket of this host.
    Local,
}

/// A packet as far as the rules look at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    pub arrival: Arrival,
    pub source: IpAddr,
    pub dest: IpAddr,
    pub protocol: u8,
    pub dest_port: u16,
    pub mark: u32,
    /// In reply direction of its connection.
    pub reply: bool,
    /// SYN without ACK, RST, FIN.
    pub opening: bool,
    /// The mark of its connection.
    pub connection_mark: u32,
    /// Belongs to an established transparent socket.
    pub transparent_socket: bool,
}

/// What the rules ask the host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostView {
    /// Local and broadcast addresses; multicast needs no listing.
    pub not_forwarded: BTreeSet<IpAddr>,
    pub listener_v4: bool,
    pub listener_v6: bool,
    /// The liveness element has not expired.
    pub alive: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Taken by a capture rule, which has this comment; the mark is the packet's new one.
    Captured {
        mark: u32,
        comment: String,
    },
    /// Goes to its transparent socket.
    Diverted,
    /// An exclusion ended it; its comment.
    Excluded(String),
    Dropped,
    /// No rule matched.
    Plain,
}

/// Runs a packet through the chain that sees it first. A local packet that is captured enters prerouting again by
/// loopback and is captured there by the same rule, so the output chain decides for it.
pub fn classify(tables: &[Table], packet: &Packet, host: &HostView) -> Verdict {
    let chain = match packet.arrival {
        Arrival::Entered { .. } => "prerouting",
        Arrival::Local => "output",
    };
    let run = |name| {
        let table = tables.iter().find(|t| t.name == name)?;
        Some(run_chain(table, table.chain(chain)?, packet, host, None).unwrap_or(Verdict::Plain))
    };
    match run(TABLE_TCP) {
        Some(Verdict::Captured { mark, comment }) => Verdict::Captured { mark, comment },
        first if packet.protocol == super::ruleset::TCP => first.unwrap_or(Verdict::Plain),
        _ => run(TABLE_TUNNEL).unwrap_or(Verdict::Plain),
    }
}

impl Table {
    fn chain(&self, name: &str) -> Option<&Chain> {
        self.chains.iter().find(|c| c.name == name)
    }

    /// The jump of a map that covers the packet.
    fn jump(&self, map: &str, packet: &Packet) -> Option<&Jump> {
        self.sets.iter().filter(|set| set.name == map).find_map(|set| match &set.elements {
            Elements::Jumps { key, jumps } => jumps.iter().find(|jump| covers(*key, &jump.covers, packet)),
            _ => None,
        })
    }
}

fn covers(key: Key, covers: &Covers, packet: &Packet) -> bool {
    match (key, covers) {
        (Key::Interface, Covers::Interface(name)) => {
            matches!(&packet.arrival, Arrival::Entered { interface } if interface == name)
        }
        (Key::Source(..), Covers::Net(net)) => net.contains(&packet.source),
        (Key::Dest(..), Covers::Net(net)) => net.contains(&packet.dest),
        (Key::SourceAndDest(_), Covers::Nets(source, dest)) => {
            source.contains(&packet.source) && dest.contains(&packet.dest)
        }
        _ => false,
    }
}

/// None: the packet comes to the end of the chain. `route`: the comment of the jump that led here.
fn run_chain(table: &Table, chain: &Chain, packet: &Packet, host: &HostView, route: Option<&str>) -> Option<Verdict> {
    chain.rules.iter().find_map(|rule| run_rule(table, rule, packet, host, route))
}

fn run_rule(table: &Table, rule: &Rule, packet: &Packet, host: &HostView, route: Option<&str>) -> Option<Verdict> {
    if !rule.matches.iter().all(|m| holds(table, m, packet, host)) {
        return None;
    }
    let comment = || route.unwrap_or(&rule.comment).to_owned();
    let captured = |value, mask: u32| Verdict::Captured { mark: packet.mark & !mask | value, comment: comment() };
    match &rule.action {
        Action::Accept | Action::Masquerade => Some(Verdict::Excluded(rule.comment.clone())),
        Action::Drop => Some(Verdict::Dropped),
        Action::SetMark { .. } if rule.matches.contains(&Match::TransparentSocket) => Some(Verdict::Diverted),
        Action::SetMark { value, mask } | Action::Capture { value, mask } => Some(captured(*value, *mask)),
        Action::Intercept { to, value, mask } => {
            let listening = if to.is_ipv4() { host.listener_v4 } else { host.listener_v6 };
            listening.then(|| captured(*value, *mask))
        }
        Action::JumpBy { map, .. } => {
            let jump = table.jump(map, packet)?;
            run_chain(table, table.chain(&jump.chain)?, packet, host, jump.comment.as_deref().or(route))
        }
    }
}

fn holds(table: &Table, m: &Match, packet: &Packet, host: &HostView) -> bool {
    use super::Elements::{PeersV4, PeersV6, Ports};
    match m {
        Match::Family(family) => Family::of(packet.dest) == *family,
        Match::Protocol(p) => packet.protocol == *p,
        Match::ProtocolIsNot(p) => packet.protocol != *p,
        Match::Mark { value, mask } => packet.mark & mask == *value,
        Match::Source(net) => net.contains(&packet.source),
        Match::Dest(net) => net.contains(&packet.dest),
        Match::DestPort(port) => packet.dest_port == *port,
        Match::DestPortIn(name) => table
            .sets
            .iter()
            .any(|set| set.name == *name && matches!(&set.elements, Ports(ports) if ports.contains(&packet.dest_port))),
        Match::DestNotForwarded => packet.dest.is_multicast() || host.not_forwarded.contains(&packet.dest),
        Match::PeerSocket(_) => table.sets.iter().any(|set| match &set.elements {
            PeersV4(peers) | PeersV6(peers) => {
                peers.iter().any(|p| p.ip == packet.dest && p.protocol == packet.protocol && p.port == packet.dest_port)
            }
            _ => false,
        }),
        Match::EnteredBy(name) => matches!(&packet.arrival, Arrival::Entered { interface } if interface == name),
        // The types stand where ports would.
        Match::NeighbourDiscovery => packet.protocol == ICMP_V6 && NEIGHBOUR_DISCOVERY.contains(&packet.dest_port),
        Match::Reply => packet.reply,
        Match::NotOpening => !packet.opening,
        Match::Captured { mask } => packet.connection_mark & mask != 0,
        Match::NotCaptured { mask } => packet.connection_mark & mask == 0,
        Match::TransparentSocket => packet.transparent_socket,
        Match::NotAlive => !host.alive,
    }
}
