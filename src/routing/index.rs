//! The route of a packet among many, found by the tiers of the order (dataplane.md §6): of the routes that name the same
//! CIDRs of the same lengths, at most one network holds a given address, so each tier is one look-up.

use super::CompiledRoute;
use ipnet::IpNet;
use std::{collections::BTreeMap, net::IpAddr};

/// Places in a list of routes that is sorted most preferred first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct RouteIndex(Vec<Tier>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Tier {
    kind: Kind,
    /// The first route of each place; in a tier of interfaces also under no interface, the first of any.
    places: BTreeMap<Place, usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kind {
    of_interface: bool,
    source: Option<u8>,
    dest: Option<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    source: Option<IpNet>,
    dest: Option<IpNet>,
    interface: Option<String>,
}

/// By which interfaces a packet may have entered.
pub(super) enum Entered<'a> {
    By(Option<&'a str>),
    /// Any of a service.
    Unknown,
}

impl RouteIndex {
    pub fn new(routes: &[CompiledRoute]) -> Self {
        let mut tiers: Vec<Tier> = Vec::new();
        for (at, route) in routes.iter().enumerate() {
            let kind = Kind {
                of_interface: route.interface.is_some(),
                source: route.source.map(|n| n.prefix_len()),
                dest: route.dest.map(|n| n.prefix_len()),
            };
            if tiers.last().is_none_or(|tier| tier.kind != kind) {
                tiers.push(Tier { kind, places: BTreeMap::new() });
            }
            let Some(tier) = tiers.last_mut() else { continue };
            let (source, dest) = (route.source.map(|n| n.trunc()), route.dest.map(|n| n.trunc()));
            let place = Place { source, dest, interface: route.interface.clone() };
            if kind.of_interface {
                tier.places.entry(Place { interface: None, ..place.clone() }).or_insert(at);
            }
            tier.places.entry(place).or_insert(at);
        }
        Self(tiers)
    }

    /// The first route that takes a packet.
    pub fn first(&self, source: IpAddr, dest: IpAddr, entered: Entered<'_>) -> Option<usize> {
        self.0.iter().find_map(|tier| {
            let interface = match entered {
                Entered::By(None) if tier.kind.of_interface => return None,
                Entered::By(Some(name)) if tier.kind.of_interface => Some(name.to_owned()),
                Entered::By(_) => None,
                Entered::Unknown if tier.kind.of_interface => None,
                Entered::Unknown => return None,
            };
            let place = Place { source: net(source, tier.kind.source)?, dest: net(dest, tier.kind.dest)?, interface };
            tier.places.get(&place).copied()
        })
    }
}

/// The network of an address in which a tier looks; nothing where its family has no such length.
fn net(ip: IpAddr, length: Option<u8>) -> Option<Option<IpNet>> {
    match length {
        Some(length) => IpNet::new(ip, length).ok().map(|net| Some(net.trunc())),
        None => Some(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{PeerId, Rng, ServiceId, UnixTime},
        routing::sort_routes,
    };
    use proptest::prelude::*;

    fn address(rng: &mut Rng, v4: bool) -> IpAddr {
        let [a, b] = [rng.below(3) as u8, rng.below(3) as u8];
        if v4 { IpAddr::from([10, a, b, 1]) } else { IpAddr::from([0xfd00, a.into(), b.into(), 0, 0, 0, 0, 1]) }
    }

    fn route(rng: &mut Rng, id: u32, target: PeerId, services: &[ServiceId]) -> CompiledRoute {
        let v4 = rng.below(3) > 0;
        let mut net = || {
            let length = if v4 { [0, 8, 16, 24, 32] } else { [0, 16, 32, 48, 128] }[rng.below(5) as usize];
            (rng.below(3) > 0).then(|| IpNet::new(address(rng, v4), length).unwrap().trunc())
        };
        let (source, dest) = (net(), net());
        let interface = (rng.below(3) == 0).then(|| format!("svc_{}", rng.below(2)));
        let dest = if source.is_none() && dest.is_none() && interface.is_none() {
            Some("10.0.0.0/8".parse().unwrap())
        } else {
            dest
        };
        let service = services[rng.below(services.len() as u64) as usize];
        CompiledRoute { service, target, route: Some(id), interface, source, dest, priority: rng.below(2) as u16 }
    }

    proptest! {
        #[test]
        fn the_index_finds_the_first_that_matches(seed in any::<[u8; 32]>()) {
            let mut rng = Rng::from_seed(seed);
            let target = PeerId::mint(UnixTime::from_ms(1), &mut rng);
            let services: Vec<ServiceId> = (0..3).map(|n| ServiceId::mint(UnixTime::from_ms(n), &mut rng)).collect();
            let mut routes: Vec<_> = (0..rng.below(40)).map(|n| route(&mut rng, n as u32, target, &services)).collect();
            sort_routes(&mut routes);
            let index = RouteIndex::new(&routes);
            for _ in 0..20 {
                let v4 = rng.below(3) > 0;
                let (source, dest) = (address(&mut rng, v4), address(&mut rng, v4));
                let interface = [None, Some("svc_0"), Some("svc_1"), Some("eth0")][rng.below(4) as usize];
                let first = routes.iter().position(|r| r.matches(source, dest, interface));
                prop_assert_eq!(index.first(source, dest, Entered::By(interface)), first);
                let of_any = |r: &CompiledRoute| {
                    r.interface.is_some() && r.matches(source, dest, r.interface.as_deref())
                };
                prop_assert_eq!(index.first(source, dest, Entered::Unknown), routes.iter().position(of_any));
            }
        }
    }
}
