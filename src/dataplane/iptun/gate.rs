//! Which packets pass, in both directions, and under which addresses (dataplane.md §3).
//!
//! ```text
//! source peer   device ──select route──> peer          a packet of a client, as it is
//! exit          peer ──route covers it──> device       its client under an alias; the kernel masquerades the alias
//! exit          device ──alias, its flow──> peer       the reply, to the client's own address
//! source peer   peer ──reply of its flow──> device     as it is
//! ```
//!
//! The service of a packet from the device is found again by the order that marked it (`Forwarding::select`): marks do
//! not cross a TUN device, and a device for each service would need a routing table each, of which there are ten.

use super::{
    flows::{Aliases, Flow, FlowKey, Flows, is_alias},
    packet::{End, Header, Malformed, Part, Role, TCP},
};
use crate::{
    model::{Mono, PeerId, ServiceId},
    routing::{CompiledRoute, ExitRefusal, Forwarding},
};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

/// Why a packet goes no further. Nobody is told but the counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TunnelRefusal {
    /// No packet that a tunnel carries.
    Malformed,
    /// TCP never enters the tunnel.
    Tcp,
    /// No route takes a packet of this host.
    NoRoute,
    /// The target is not a trusted peer.
    UnknownTarget,
    /// The sender has no service to this peer.
    UnknownService,
    /// No route of the sender's services covers source and destination.
    OutsideRoutes,
    /// Loopback, link-local, multicast, unspecified, or a port of the agent itself.
    ForbiddenDestination,
    /// An address that no client has.
    ForbiddenSource,
    /// No reply to anything that was let through.
    NoFlow,
    /// Too many clients of one peer.
    Busy,
    /// Larger than the path to the peer takes.
    TooBig,
    /// The peer could not be reached.
    Unreachable,
    /// More waits than the service's limit lets through.
    OverLimit,
    /// Not of a peer, not authentic, or seen before.
    NotAuthentic,
}

impl TunnelRefusal {
    pub(crate) const ALL: [Self; 14] = [
        Self::Malformed,
        Self::Tcp,
        Self::NoRoute,
        Self::UnknownTarget,
        Self::UnknownService,
        Self::OutsideRoutes,
        Self::ForbiddenDestination,
        Self::ForbiddenSource,
        Self::NoFlow,
        Self::Busy,
        Self::TooBig,
        Self::Unreachable,
        Self::OverLimit,
        Self::NotAuthentic,
    ];

    /// The word for metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Malformed => "tunnel_malformed",
            Self::Tcp => "tunnel_tcp",
            Self::NoRoute => "tunnel_no_route",
            Self::UnknownTarget => "tunnel_unknown_target",
            Self::UnknownService => "tunnel_unknown_service",
            Self::OutsideRoutes => "tunnel_outside_routes",
            Self::ForbiddenDestination => "tunnel_forbidden_destination",
            Self::ForbiddenSource => "tunnel_forbidden_source",
            Self::NoFlow => "tunnel_no_flow",
            Self::Busy => "tunnel_busy",
            Self::TooBig => "tunnel_too_big",
            Self::Unreachable => "tunnel_unreachable",
            Self::OverLimit => "tunnel_over_limit",
            Self::NotAuthentic => "tunnel_not_authentic",
        }
    }

    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Malformed => "not a packet that the tunnel carries",
            Self::Tcp => "TCP inside the tunnel",
            Self::NoRoute => "no route covers the packet",
            Self::UnknownTarget => "target is not a trusted peer",
            Self::UnknownService => "sender has no service to this peer",
            Self::OutsideRoutes => "packet is outside the routes of the sender's services",
            Self::ForbiddenDestination => "destination may not be reached through the tunnel",
            Self::ForbiddenSource => "source is no address of a client",
            Self::NoFlow => "packet is no reply to a flow",
            Self::Busy => "limit of clients of one peer reached",
            Self::TooBig => "packet is too big for the path to the peer",
            Self::Unreachable => "peer has no address that can be reached",
            Self::OverLimit => "more waits than the bandwidth limit of the service lets through",
            Self::NotAuthentic => "datagram is not authentic, or was seen before",
        }
    }
}

/// A packet that goes no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The kernel's own talk on the device.
    Ignored,
    Refused {
        reason: TunnelRefusal,
        service: Option<(ServiceId, PeerId)>,
    },
}

impl From<Malformed> for Stop {
    fn from(Malformed: Malformed) -> Self {
        TunnelRefusal::Malformed.into()
    }
}

impl From<TunnelRefusal> for Stop {
    fn from(reason: TunnelRefusal) -> Self {
        Self::Refused { reason, service: None }
    }
}

/// A packet that passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passed {
    pub peer: PeerId,
    pub service: ServiceId,
    pub to_target: bool,
    pub len: usize,
    /// The destination that it had before.
    pub was_for: IpAddr,
}

pub type Forbids = Box<dyn Fn(SocketAddr) -> bool + Send>;

/// The rules of one peer, for both directions. Sans-IO.
pub struct Gate {
    local: PeerId,
    /// Whether a destination is a port of the agent itself.
    forbids: Forbids,
    forwarding: Arc<Forwarding>,
    /// Of clients here.
    sent: Flows,
    /// Of clients of each peer of which this is the exit: none takes another's room.
    taken: BTreeMap<PeerId, Flows>,
    aliases: Aliases,
}

impl Gate {
    pub fn new(local: PeerId, forbids: Forbids) -> Self {
        Self {
            local,
            forbids,
            forwarding: Arc::default(),
            sent: Flows::default(),
            taken: BTreeMap::new(),
            aliases: Aliases::default(),
        }
    }

    /// Goes by a new snapshot. Flows of peers that are gone end at once.
    pub fn follow(&mut self, forwarding: Arc<Forwarding>) {
        let gone: Vec<_> = self.taken.keys().filter(|peer| !forwarding.peers.contains_key(peer)).copied().collect();
        for peer in gone {
            self.taken.remove(&peer);
            self.aliases.forget_peer(peer);
        }
        self.forwarding = forwarding;
    }

    pub fn snapshot(&self) -> &Arc<Forwarding> {
        &self.forwarding
    }

    /// A packet that the kernel gave to the device.
    pub fn take_from_device(&mut self, packet: &mut [u8], now: Mono) -> Result<Passed, Stop> {
        let header = Header::parse(packet)?;
        if header.dest.is_multicast() || header.source.is_unspecified() || is_link_local(header.source) {
            return Err(Stop::Ignored);
        }
        if header.protocol == TCP {
            return Err(TunnelRefusal::Tcp.into());
        }
        if is_alias(header.dest) {
            self.reply_of_server(packet, &header, now)
        } else {
            self.request(packet, &header, now)
        }
    }

    /// Source peer: a packet of a client.
    fn request(&mut self, packet: &[u8], header: &Header, now: Mono) -> Result<Passed, Stop> {
        let forwarding = self.forwarding.clone();
        let role = header.role(packet)?;
        let key = opening_key(header, header.source, role);
        let known = key.and_then(|key| self.sent.get(&key, now));
        let (peer, service) = match known.filter(|flow| flow.revision == forwarding.revision) {
            Some(flow) => (flow.peer, flow.service),
            None => {
                let route = select(&forwarding, header.source, header.dest).ok_or(TunnelRefusal::NoRoute)?;
                (route.target, route.service)
            }
        };
        if !forwarding.peers.contains_key(&peer) {
            let service = Some((service, peer));
            return Err(Stop::Refused { reason: TunnelRefusal::UnknownTarget, service });
        }
        if let Some(key) = key {
            let flow = Flow { peer, service, client: header.source, revision: forwarding.revision };
            remember(&mut self.sent, key, flow, header.part, now);
        }
        Ok(Passed { peer, service, to_target: true, len: header.len, was_for: header.dest })
    }

    /// Exit: a reply that the kernel has given back its client's alias as destination.
    fn reply_of_server(&mut self, packet: &mut [u8], header: &Header, now: Mono) -> Result<Passed, Stop> {
        let alias = header.dest;
        let (peer, client) = self.aliases.client(alias).ok_or(TunnelRefusal::NoFlow)?;
        let flows = self.taken.get_mut(&peer).ok_or(TunnelRefusal::NoFlow)?;
        let (key, quote) = reply_key(packet, header)?;
        let flow = flows.get(&key, now).filter(|flow| flow.client == client).ok_or(TunnelRefusal::NoFlow)?;
        let known = self.forwarding.services.get(&flow.service);
        if known.is_none_or(|s| s.source != peer || s.target != self.local) {
            return Err(TunnelRefusal::NoFlow.into());
        }
        if let Some((at, quoted)) = quote {
            quoted.set_address(&mut packet[at..], End::Source, client);
        }
        header.set_address(packet, End::Dest, client);
        if quote.is_some() {
            Header { dest: client, ..*header }.seal_icmp(packet);
        }
        Ok(Passed { peer, service: flow.service, to_target: false, len: header.len, was_for: header.dest })
    }

    /// A packet that a peer sent.
    pub fn take_from_peer(&mut self, peer: PeerId, packet: &mut [u8], now: Mono) -> Result<Passed, Stop> {
        let header = Header::parse(packet)?;
        if header.protocol == TCP {
            return Err(TunnelRefusal::Tcp.into());
        }
        if !is_host(header.source) || is_alias(header.source) {
            return Err(TunnelRefusal::ForbiddenSource.into());
        }
        let replied = reply_key(packet, &header).ok().and_then(|(key, _)| {
            let flow = self.sent.get(&key, now).filter(|flow| flow.peer == peer)?;
            let known = self.forwarding.services.get(&flow.service)?;
            (known.source == self.local && known.target == peer).then_some(flow.service)
        });
        match replied {
            Some(service) => Ok(Passed { peer, service, to_target: false, len: header.len, was_for: header.dest }),
            None => self.request_of_peer(peer, packet, &header, now),
        }
    }

    /// Exit: a packet of a client of a peer.
    fn request_of_peer(&mut self, peer: PeerId, packet: &mut [u8], header: &Header, now: Mono) -> Result<Passed, Stop> {
        let forwarding = self.forwarding.clone();
        let role = header.role(packet)?;
        let client = header.source;
        let known = self.aliases.existing(peer, client).and_then(|alias| {
            let key = opening_key(header, alias, role)?;
            self.taken.get_mut(&peer)?.get(&key, now).filter(|flow| flow.revision == forwarding.revision)
        });
        let service = match known {
            Some(flow) => flow.service,
            None => self.admit(&forwarding, peer, header, role)?,
        };
        let refused = |reason| Stop::Refused { reason, service: Some((service, peer)) };
        let quote = match role {
            Some(Role::ErrorAbout(at)) => Some(self.quoted_reply(peer, packet, header, at, now).map_err(refused)?),
            _ => None,
        };
        let alias = self.aliases.of(peer, client, now).ok_or(refused(TunnelRefusal::Busy))?;
        if let Some((at, quoted, for_client)) = quote {
            quoted.set_address(&mut packet[at..], End::Dest, for_client);
        }
        header.set_address(packet, End::Source, alias);
        if quote.is_some() {
            Header { source: alias, ..*header }.seal_icmp(packet);
        }
        if let Some(key) = opening_key(header, alias, role) {
            let flow = Flow { peer, service, client, revision: forwarding.revision };
            remember(self.taken.entry(peer).or_default(), key, flow, header.part, now);
        }
        Ok(Passed { peer, service, to_target: true, len: header.len, was_for: header.dest })
    }

    fn admit(
        &self,
        forwarding: &Forwarding,
        peer: PeerId,
        header: &Header,
        role: Option<Role>,
    ) -> Result<ServiceId, Stop> {
        let service = forwarding.tunnel_service(peer, self.local, header.source, header.dest).map_err(reason_of)?;
        let own_port = matches!(role, Some(Role::Data { to, .. }) if (self.forbids)((header.dest, to).into()));
        if is_alias(header.dest) || own_port {
            let service = Some((service, peer));
            return Err(Stop::Refused { reason: TunnelRefusal::ForbiddenDestination, service });
        }
        Ok(service)
    }

    /// Exit: an error of a client about a reply it got: what it quotes, and the alias of the client that is meant.
    fn quoted_reply(
        &mut self,
        peer: PeerId,
        packet: &[u8],
        header: &Header,
        at: usize,
        now: Mono,
    ) -> Result<(usize, Header, IpAddr), TunnelRefusal> {
        let quoted = header.quoted(packet, at).map_err(|Malformed| TunnelRefusal::Malformed)?;
        let alias = self.aliases.existing(peer, quoted.dest).ok_or(TunnelRefusal::NoFlow)?;
        let role = quoted.role(&packet[at..]).map_err(|Malformed| TunnelRefusal::Malformed)?;
        let key = answering_key(&quoted, alias, role).ok_or(TunnelRefusal::NoFlow)?;
        let flows = self.taken.get_mut(&peer).ok_or(TunnelRefusal::NoFlow)?;
        flows.get(&key, now).ok_or(TunnelRefusal::NoFlow)?;
        Ok((at, quoted, alias))
    }
}

fn reason_of(refusal: ExitRefusal) -> TunnelRefusal {
    match refusal {
        ExitRefusal::UnknownService | ExitRefusal::NotTheSource => TunnelRefusal::UnknownService,
        // Nothing that is tunnelled is dialled with the client's address.
        ExitRefusal::OutsideRoutes | ExitRefusal::NotTransparent | ExitRefusal::ForbiddenSource => {
            TunnelRefusal::OutsideRoutes
        }
        ExitRefusal::ForbiddenDestination => TunnelRefusal::ForbiddenDestination,
    }
}

/// The route of a packet whose interface is not known any more: one of an interface takes it only if no other does.
fn select(forwarding: &Forwarding, source: IpAddr, dest: IpAddr) -> Option<&CompiledRoute> {
    forwarding.select(source, dest, None).or_else(|| forwarding.select_of_interfaces(source, dest))
}

/// The flow of a packet that its client sent. None for ICMP errors, which open none.
fn opening_key(header: &Header, client: IpAddr, role: Option<Role>) -> Option<FlowKey> {
    let numbers = match role {
        Some(Role::Data { from, to }) => Some((from, to)),
        Some(Role::ErrorAbout(_)) => return None,
        None => None,
    };
    Some(FlowKey { client, server: header.dest, protocol: header.protocol, numbers })
}

/// The flow of a packet that its server sent.
fn answering_key(header: &Header, client: IpAddr, role: Option<Role>) -> Option<FlowKey> {
    let numbers = match role {
        Some(Role::Data { from, to }) => Some((to, from)),
        Some(Role::ErrorAbout(_)) => return None,
        None => None,
    };
    Some(FlowKey { client, server: header.source, protocol: header.protocol, numbers })
}

/// The flow to which a packet is the reply; for an ICMP error, the flow of the packet that it quotes, with the quote.
fn reply_key(packet: &[u8], header: &Header) -> Result<(FlowKey, Option<(usize, Header)>), TunnelRefusal> {
    let malformed = |Malformed| TunnelRefusal::Malformed;
    match header.role(packet).map_err(malformed)? {
        Some(Role::ErrorAbout(at)) => {
            let quoted = header.quoted(packet, at).map_err(malformed)?;
            let role = quoted.role(&packet[at..]).map_err(malformed)?;
            // An error reaches the one whose packet it is about.
            let key = opening_key(&quoted, quoted.source, role).filter(|_| quoted.source == header.dest);
            Ok((key.ok_or(TunnelRefusal::NoFlow)?, Some((at, quoted))))
        }
        role => Ok((answering_key(header, header.dest, role).ok_or(TunnelRefusal::NoFlow)?, None)),
    }
}

fn remember(flows: &mut Flows, key: FlowKey, flow: Flow, part: Part, now: Mono) {
    if flows.get(&key, now) != Some(flow) {
        flows.insert(key, flow, now);
    }
    // Replies may come in fragments whatever came in; only the first of them has the numbers.
    if part != Part::Later && flows.get(&key.fragments(), now) != Some(flow) {
        flows.insert(key.fragments(), flow, now);
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// Whether an address can be one host's, as seen from another network.
fn is_host(ip: IpAddr) -> bool {
    let none = ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || is_link_local(ip);
    !none && !matches!(ip, IpAddr::V4(v4) if v4.is_broadcast() || v4.octets()[0] == 0)
}
