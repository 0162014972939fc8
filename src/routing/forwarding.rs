//! The immutable snapshot that the `tproxy` reconciler publishes and the engines read.

use super::{
    CompiledRoute,
    index::{Entered, RouteIndex},
    sort_routes,
};
use crate::model::{DataPorts, Endpoint, PeerId, PublicKey, Service, ServiceId, Transport, X25519Public};
use ipnet::IpNet;
use std::{
    cmp::Reverse,
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

/// A trusted peer and where its data ports are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerPath {
    pub public_key: PublicKey,
    pub x25519_key: X25519Public,
    /// In order; the ports of the data planes are in `data_ports`.
    pub endpoints: Vec<Endpoint>,
    pub data_ports: DataPorts,
}

/// An active service of which the local peer is source or target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardedService {
    pub source: PeerId,
    pub target: PeerId,
    pub transport: Transport,
    pub transparent: bool,
    /// Mbit/s each direction; 0 = unlimited.
    pub limit_mbps: u32,
    /// Index of the fwmark inside the mask, 1…max−2; only set on the source peer.
    pub mark: Option<u32>,
    /// Source and destination of each route.
    pub routes: Vec<(Option<IpNet>, Option<IpNet>)>,
    /// Whether traffic entering an interface without routes belongs to the service.
    pub whole_interface: bool,
}

/// Why an exit refuses a stream. The number is its code on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ExitRefusal {
    #[error("service is unknown here or inactive")]
    UnknownService,
    #[error("stream comes from a peer that is not the source of the service")]
    NotTheSource,
    #[error("destination is outside the routes of the service")]
    OutsideRoutes,
    #[error(
        "destination may not be dialled: loopback, link-local, multicast, unspecified, or a port of the agent itself"
    )]
    ForbiddenDestination,
    #[error("service is not transparent")]
    NotTransparent,
    #[error("the client's address may not be dialled with: outside the routes, special, or of the other family")]
    ForbiddenSource,
}

/// Everything the engines need to know, as of one revision of the store.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Forwarding {
    pub revision: u64,
    /// Trusted, not revoked peers; a stream or datagram of anyone else is refused.
    pub peers: BTreeMap<PeerId, PeerPath>,
    pub services: BTreeMap<ServiceId, ForwardedService>,
    /// Whether what is not TCP is carried too, by the IP tunnel.
    pub ip_tunnel: bool,
    /// Routes of services whose source is the local peer, most preferred first.
    routes: Vec<CompiledRoute>,
    index: RouteIndex,
}

impl Forwarding {
    /// `outgoing` are the active services of which the local peer is the source.
    pub fn new<'a>(
        revision: u64,
        peers: BTreeMap<PeerId, PeerPath>,
        services: BTreeMap<ServiceId, ForwardedService>,
        outgoing: impl IntoIterator<Item = &'a Service>,
    ) -> Self {
        let mut routes: Vec<_> = outgoing.into_iter().flat_map(CompiledRoute::of).collect();
        sort_routes(&mut routes);
        let index = RouteIndex::new(&routes);
        Self { revision, peers, services, ip_tunnel: true, routes, index }
    }

    /// Routes of outgoing services, most preferred first.
    pub fn routes(&self) -> &[CompiledRoute] {
        &self.routes
    }

    /// Whether it matters by which interface a packet enters.
    pub fn has_interfaces(&self) -> bool {
        // Routes of interfaces come first.
        self.routes.first().is_some_and(|route| route.interface.is_some())
    }

    /// The route that takes a packet, by the total order of dataplane.md §6.
    pub fn select(&self, source: IpAddr, dest: IpAddr, interface: Option<&str>) -> Option<&CompiledRoute> {
        let at = self.index.first(source.to_canonical(), dest.to_canonical(), Entered::By(interface))?;
        self.routes.get(at)
    }

    /// The first route of any interface that takes a packet which has entered by one of them, unknown which.
    pub fn select_of_interfaces(&self, source: IpAddr, dest: IpAddr) -> Option<&CompiledRoute> {
        let at = self.index.first(source.to_canonical(), dest.to_canonical(), Entered::Unknown)?;
        self.routes.get(at)
    }

    /// Whether a stream of `service` sent by `from` may be dialled to `dest` (dataplane.md §1).
    pub fn check_exit(&self, from: PeerId, service: ServiceId, dest: SocketAddr) -> Result<(), ExitRefusal> {
        let dest = dest.ip().to_canonical();
        let known = self.services.get(&service).ok_or(ExitRefusal::UnknownService)?;
        if known.source != from {
            return Err(ExitRefusal::NotTheSource);
        }
        if !dialable(dest) {
            return Err(ExitRefusal::ForbiddenDestination);
        }
        let covers = |net: &Option<IpNet>| net.is_none_or(|n| n.contains(&dest));
        if known.whole_interface || known.routes.iter().any(|(_, d)| covers(d)) {
            Ok(())
        } else {
            Err(ExitRefusal::OutsideRoutes)
        }
    }

    /// Whether the destination may be dialled with the client's address `source` (dataplane.md §4); anything goes for a
    /// service that does not keep it.
    pub fn check_source(
        &self,
        service: ServiceId,
        transparent: bool,
        source: IpAddr,
        dest: IpAddr,
    ) -> Result<(), ExitRefusal> {
        let known = self.services.get(&service).ok_or(ExitRefusal::UnknownService)?;
        if transparent && !known.transparent {
            return Err(ExitRefusal::NotTransparent);
        }
        let (source, dest) = (source.to_canonical(), dest.to_canonical());
        let covers = |net: &Option<IpNet>, ip| net.is_none_or(|n| n.contains(&ip));
        let routed = known.whole_interface || known.routes.iter().any(|(s, d)| covers(s, source) && covers(d, dest));
        let fit = source.is_ipv4() == dest.is_ipv4() && dialable(source) && routed;
        if !known.transparent || fit { Ok(()) } else { Err(ExitRefusal::ForbiddenSource) }
    }
    /// The service of which a packet is that `from` sent through the tunnel to `local` as its exit: one with a route that
    /// covers source and destination, the most specific one (dataplane.md §3).
    pub fn tunnel_service(
        &self,
        from: PeerId,
        local: PeerId,
        source: IpAddr,
        dest: IpAddr,
    ) -> Result<ServiceId, ExitRefusal> {
        let between = || self.services.iter().filter(|(_, s)| s.source == from && s.target == local);
        if between().next().is_none() {
            return Err(ExitRefusal::UnknownService);
        }
        if !dialable(dest) {
            return Err(ExitRefusal::ForbiddenDestination);
        }
        let covers = |(s, d): &&(Option<IpNet>, Option<IpNet>)| {
            s.is_none_or(|n| n.contains(&source)) && d.is_none_or(|n| n.contains(&dest))
        };
        // A route without a CIDR is of an interface.
        let best = |s: &ForwardedService| s.routes.iter().filter(covers).map(specificity).max();
        let covering = between().filter_map(|(id, s)| Some((best(s)?, Reverse(*id)))).max();
        let whole = || between().find(|(_, s)| s.whole_interface).map(|(id, _)| *id);
        covering.map(|(_, Reverse(id))| id).or_else(whole).ok_or(ExitRefusal::OutsideRoutes)
    }
}

/// How much a route names, as far as routes of several services can be told apart here (dataplane.md §6, 2 to 4).
fn specificity((source, dest): &(Option<IpNet>, Option<IpNet>)) -> impl Ord + use<> {
    let length = |net: &Option<IpNet>| net.map(|n| n.prefix_len());
    (source.is_some() && dest.is_some(), source.is_some(), length(source), length(dest))
}

fn dialable(ip: IpAddr) -> bool {
    let special = match ip {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast() || v4.octets()[0] == 0,
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !(special || ip.is_loopback() || ip.is_multicast() || ip.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Rng, UnixTime};

    fn forwarding(transparent: bool) -> (Forwarding, ServiceId) {
        let (at, mut rng) = (UnixTime::from_secs(1), Rng::from_seed([1; 32]));
        let (source, target, id) =
            (PeerId::mint(at, &mut rng), PeerId::mint(at, &mut rng), ServiceId::mint(at, &mut rng));
        let net = |s: &str| Some(s.parse().unwrap());
        let service = ForwardedService {
            source,
            target,
            transport: Transport::Tcp,
            transparent,
            limit_mbps: 0,
            mark: None,
            routes: vec![(net("10.1.0.0/16"), net("10.2.0.0/16")), (None, net("fd02::/16"))],
            whole_interface: false,
        };
        (Forwarding::new(1, BTreeMap::new(), BTreeMap::from([(id, service)]), []), id)
    }

    #[test]
    fn only_clients_of_a_transparent_service_are_dialled_for_by_their_address() {
        let check = |transparent, asked, source: &str, dest: &str| {
            let (forwarding, id) = forwarding(transparent);
            forwarding.check_source(id, asked, source.parse().unwrap(), dest.parse().unwrap())
        };
        assert_eq!(check(true, true, "10.1.0.9", "10.2.0.1"), Ok(()));
        assert_eq!(check(true, true, "fd01::9", "fd02::1"), Ok(()));
        assert_eq!(check(false, false, "127.0.0.1", "10.2.0.1"), Ok(()), "the exit's own address is used");
        assert_eq!(check(false, true, "10.1.0.9", "10.2.0.1"), Err(ExitRefusal::NotTransparent));
        for (source, dest) in [
            ("10.9.0.9", "10.2.0.1"),
            ("fd01::9", "10.2.0.1"),
            ("::1", "fd02::1"),
            ("fe80::1", "fd02::1"),
            ("ff02::1", "fd02::1"),
            ("::", "fd02::1"),
        ] {
            for asked in [true, false] {
                assert_eq!(check(true, asked, source, dest), Err(ExitRefusal::ForbiddenSource), "{source}");
            }
        }
    }
}
