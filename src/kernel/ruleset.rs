//! What the two tables shall do, and the program of chains and rules that does it (dataplane.md §7, §8).

use super::{
    Family, MarkMask, alias_network,
    captures::{Captured, Shape, Take, compile},
    program::{Action, Chain, ChainKind, Elements, Hook, Match, Rule, Set, Table},
};
use crate::model::{RouteId, ServiceId};
use ipnet::IpNet;
use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, SocketAddrV4, SocketAddrV6},
};

/// TCP classification.
pub const TABLE_TCP: &str = "arctic";
/// Marking for the IP tunnel.
pub const TABLE_TUNNEL: &str = "arctic_iptun";

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMP_V6: u8 = 58;
/// ICMPv6 types: solicitations, advertisements, redirect.
pub(crate) const NEIGHBOUR_DISCOVERY: std::ops::RangeInclusive<u16> = 133..=137;
const PRIORITY_TCP: i32 = -150;
const PRIORITY_TUNNEL: i32 = -149;
const PRIORITY_SRCNAT: i32 = 100;
pub(crate) const DHCP_PORTS: [u16; 4] = [67, 68, 546, 547];

/// Names of the sets in the tables.
pub(crate) mod sets {
    pub const LIVENESS: &str = "liveness";
    pub const NOT_FORWARDED: &str = "not_forwarded";
    pub const PEERS_V4: &str = "peers4";
    pub const PEERS_V6: &str = "peers6";
    pub const DHCP: &str = "dhcp";
}

/// Where the engine listens with transparent sockets, on loopback. A family without a listener is not captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Intercept {
    pub v4: Option<SocketAddrV4>,
    pub v6: Option<SocketAddrV6>,
}

impl fmt::Display for Intercept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.v4, self.v6) {
            (Some(v4), Some(v6)) => write!(f, "{v4} and {v6}"),
            (Some(v4), None) => write!(f, "{v4}"),
            (None, Some(v6)) => write!(f, "{v6}"),
            (None, None) => f.write_str("none"),
        }
    }
}

/// A data or API port of a known peer; never captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PeerSocket {
    pub ip: IpAddr,
    /// 6 or 17.
    pub protocol: u8,
    pub port: u16,
}

/// One route of a service for which the local peer is the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capture {
    pub service: ServiceId,
    /// Absent for a service that takes everything that enters its interface.
    pub route: Option<RouteId>,
    /// Of one family, where both are set.
    pub source: Option<IpNet>,
    pub dest: Option<IpNet>,
    /// Only traffic that enters by this interface.
    pub interface: Option<String>,
    /// Mark of the service, inside `MarkMask::services`.
    pub mark: u32,
}

impl fmt::Display for Capture {
    /// The comment of its rules: `<service id>/<route id>`, or `<service id>` without a route.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.route {
            Some(route) => write!(f, "{}/{route}", self.service),
            None => write!(f, "{}", self.service),
        }
    }
}

/// The IP tunnel takes captured traffic that is not TCP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// Decapsulated traffic enters by it and is masqueraded.
    pub device: String,
    /// Of the interface; another one when the device was made again.
    pub index: u32,
}

/// What the two tables shall do. `Ruleset::default()` is the base state: chains and exclusions only.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ruleset {
    pub mask: MarkMask,
    pub intercept: Intercept,
    pub peers: BTreeSet<PeerSocket>,
    /// Most preferred first (dataplane.md §6).
    pub captures: Vec<Capture>,
    pub tunnel: Option<Tunnel>,
}

impl Ruleset {
    /// The program of both tables.
    pub fn tables(&self) -> [Table; 2] {
        self.tables_in(Shape::default())
    }

    /// The same in any shape: what packets meet is the same.
    pub fn tables_in(&self, shape: Shape) -> [Table; 2] {
        [self.tcp_table(shape), self.tunnel_table(shape)]
    }

    fn tcp_table(&self, shape: Shape) -> Table {
        let other = Rule::new([Match::ProtocolIsNot(TCP)], Action::Accept, "not TCP");
        let mut prerouting = vec![other.clone()];
        prerouting.extend(self.exclusions());
        prerouting.push(self.divert());
        // After the divert: replies to a transparent dial are in reply direction too, and belong to our socket.
        prerouting.push(reply());
        prerouting.push(self.open_before());
        let mut output = vec![other];
        output.extend(self.exclusions());
        output.push(reply());
        output.push(self.open_before());
        let elsewhere = self.captures.iter().filter(|c| c.interface.is_none());
        let entering = compile("intercept_", &self.captures, &|capture, family| self.intercept(capture, family), shape);
        let starting = compile("mark_", elsewhere, &|capture, family| self.mark_output(capture, family), shape);
        if !self.captures.is_empty() {
            prerouting.push(not_alive());
            output.push(not_alive());
            prerouting.extend(entering.by_interface);
            prerouting.extend(entering.rules);
            output.extend(starting.rules);
            prerouting.push(self.ended());
        }
        let mut chains = vec![
            Chain::base("prerouting", ChainKind::Filter, Hook::Prerouting, PRIORITY_TCP, prerouting),
            Chain::base("output", ChainKind::Route, Hook::Output, PRIORITY_TCP, output),
            Chain::base("input", ChainKind::Filter, Hook::Input, 0, self.direct_dials()),
        ];
        chains.extend(entering.chains.into_iter().chain(starting.chains));
        let mut sets = self.sets(TCP);
        sets.extend(entering.maps.into_iter().chain(starting.maps));
        Table { name: TABLE_TCP, sets, chains }
    }

    fn tunnel_table(&self, shape: Shape) -> Table {
        let mut marking = vec![Rule::new([Match::Protocol(TCP)], Action::Accept, "TCP")];
        marking.extend(self.exclusions());
        marking.push(Rule::new([Match::Protocol(UDP), Match::DestPortIn(sets::DHCP)], Action::Accept, "DHCP"));
        // A route that covers a link of this host must not cut it.
        marking.push(Rule::new([Match::NeighbourDiscovery], Action::Accept, "neighbour discovery"));
        marking.push(reply());
        let mut output = marking.clone();
        let mut postrouting = vec![];
        let mut marks = Captured::default();
        if let Some(tunnel) = &self.tunnel {
            let came_out = [Match::EnteredBy(tunnel.device.clone())];
            marking.insert(0, Rule::new(came_out, Action::Accept, "out of the tunnel"));
            marking.push(not_alive());
            output.push(not_alive());
            marks = compile("mark_", &self.captures, &|capture, family| self.mark_tunnel(capture, family), shape);
            // Both chains do the same, but that nothing enters where it starts.
            output.extend(marks.rules.clone());
            marking.append(&mut marks.by_interface);
            marking.append(&mut marks.rules);
            // Only what leaves under an address of the exit: replies that come out of the tunnel keep theirs.
            postrouting.extend(Family::BOTH.map(|family| {
                let matches = [Match::EnteredBy(tunnel.device.clone()), Match::Source(alias_network(family))];
                Rule::new(matches, Action::Masquerade, "tunnel exit")
            }));
        }
        let mut chains = vec![
            Chain::base("prerouting", ChainKind::Filter, Hook::Prerouting, PRIORITY_TUNNEL, marking),
            Chain::base("output", ChainKind::Route, Hook::Output, PRIORITY_TUNNEL, output),
            Chain::base("postrouting", ChainKind::Nat, Hook::Postrouting, PRIORITY_SRCNAT, postrouting),
        ];
        chains.extend(marks.chains);
        let mut sets = self.sets(UDP);
        sets.extend(marks.maps);
        Table { name: TABLE_TUNNEL, sets, chains }
    }

    fn sets(&self, protocol: u8) -> Vec<Set> {
        let of = |family| self.peers.iter().filter(move |p| p.protocol == protocol && Family::of(p.ip) == family);
        let mut sets = vec![
            Set::new(sets::LIVENESS, Elements::Liveness),
            Set::new(sets::NOT_FORWARDED, Elements::NotForwarded),
            Set::new(sets::PEERS_V4, Elements::PeersV4(of(Family::V4).copied().collect())),
            Set::new(sets::PEERS_V6, Elements::PeersV6(of(Family::V6).copied().collect())),
        ];
        if protocol == UDP {
            sets.push(Set::new(sets::DHCP, Elements::Ports(DHCP_PORTS.to_vec())));
        }
        sets
    }

    /// Never captured, whatever the routes say (dataplane.md §8).
    fn exclusions(&self) -> Vec<Rule> {
        let own = Match::Mark { value: self.mask.own(), mask: self.mask.bits() };
        let mut rules = vec![
            Rule::new([own], Action::Accept, "socket of the agent"),
            Rule::new([Match::DestNotForwarded], Action::Accept, "local, broadcast or multicast"),
        ];
        rules.extend(special_networks().map(|(net, what)| Rule::new([Match::Dest(net)], Action::Accept, what)));
        rules.extend(
            Family::BOTH.map(|family| Rule::new([Match::PeerSocket(family)], Action::Accept, "port of a peer")),
        );
        rules
    }

    /// A route that is new, or an agent that starts, cuts no connection that has gone its own way so far. Connections
    /// that conntrack meets in their middle, whose direction it may guess wrong, count as open before too.
    fn open_before(&self) -> Rule {
        let matches = [Match::Protocol(TCP), Match::NotOpening, Match::NotCaptured { mask: self.mask.bits() }];
        Rule::new(matches, Action::Accept, "connection that was not captured")
    }

    /// The engine that carried it is gone, without the client knowing yet: its bytes do not travel in clear instead.
    fn ended(&self) -> Rule {
        let matches = [Match::Protocol(TCP), Match::NotOpening, Match::Captured { mask: self.mask.bits() }];
        Rule::new(matches, Action::Drop, "captured connection without its engine")
    }

    fn divert(&self) -> Rule {
        let action = Action::SetMark { value: self.mask.established(), mask: self.mask.bits() };
        Rule::new([Match::TransparentSocket], action, "established")
    }

    /// Nothing in a family without a listener.
    fn intercept(&self, capture: &Capture, family: Family) -> Option<Take> {
        let to = match family {
            Family::V4 => self.intercept.v4.map(Into::into),
            Family::V6 => self.intercept.v6.map(Into::into),
        }?;
        let action = Action::Intercept { to, value: self.mask.service(capture.mark), mask: self.mask.bits() };
        Some(Take { matches: vec![Match::Protocol(TCP)], action })
    }

    fn mark_output(&self, capture: &Capture, family: Family) -> Option<Take> {
        let take = self.intercept(capture, family)?;
        let action = Action::Capture { value: self.mask.service(capture.mark), mask: self.mask.bits() };
        Some(Take { action, ..take })
    }

    fn mark_tunnel(&self, capture: &Capture, _: Family) -> Option<Take> {
        let action = Action::SetMark { value: self.mask.tunnel(capture.mark), mask: self.mask.bits() };
        Some(Take { matches: vec![], action })
    }

    /// A dial of the listener itself would be proxied to itself; captured packets keep their own destination.
    fn direct_dials(&self) -> Vec<Rule> {
        let listeners = self.intercept.v4.map(|a| a.into()).into_iter().chain(self.intercept.v6.map(|a| a.into()));
        listeners
            .map(|to: std::net::SocketAddr| {
                let address =
                    if to.ip().is_unspecified() { Match::DestNotForwarded } else { Match::Dest(IpNet::from(to.ip())) };
                let matches =
                    [Match::Family(Family::of(to.ip())), address, Match::Protocol(TCP), Match::DestPort(to.port())];
                Rule::new(matches, Action::Drop, "not captured")
            })
            .collect()
    }
}

pub(crate) fn special_networks() -> impl Iterator<Item = (IpNet, &'static str)> {
    let net = |ip: [u8; 4], len| IpNet::new_assert(IpAddr::from(ip), len);
    let net6 = |first: u16, last: u16, len| IpNet::new_assert(IpAddr::from([first, 0, 0, 0, 0, 0, 0, last]), len);
    [
        (net([127, 0, 0, 0], 8), "loopback"),
        (net([169, 254, 0, 0], 16), "link-local"),
        (net([224, 0, 0, 0], 4), "multicast"),
        (net([255, 255, 255, 255], 32), "broadcast"),
        (net6(0, 1, 128), "loopback"),
        (net6(0xfe80, 0, 10), "link-local"),
        (net6(0xff00, 0, 8), "multicast"),
    ]
    .into_iter()
}

fn reply() -> Rule {
    Rule::new([Match::Reply], Action::Accept, "reply of an uncaptured connection")
}

fn not_alive() -> Rule {
    Rule::new([Match::NotAlive], Action::Accept, "agent is gone")
}
