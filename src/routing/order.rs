//! The total order of routes, used by firewall, engines and `routes explain`; first match wins.

use crate::model::{PeerId, Route, RouteId, Service, ServiceId, interface_name};
use ipnet::IpNet;
use std::{cmp::Reverse, net::IpAddr};

/// One route of a service, ready to be matched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompiledRoute {
    pub service: ServiceId,
    pub target: PeerId,
    /// Absent for a service that takes everything entering its interface.
    pub route: Option<RouteId>,
    /// Only traffic that enters by this interface matches.
    pub interface: Option<String>,
    pub source: Option<IpNet>,
    pub dest: Option<IpNet>,
    pub priority: u16,
}

impl CompiledRoute {
    pub fn new(service: &Service, route: &Route) -> Self {
        Self {
            service: service.id,
            target: service.body.target_peer_id,
            route: Some(route.id),
            interface: None,
            source: route.source_cidr,
            dest: route.dest_cidr,
            priority: route.priority,
        }
    }

    /// What takes packets for a service, in no order: each route, once more for what enters by the interface of the
    /// service, and all that enters by it if there is no route.
    pub fn of(service: &Service) -> Vec<Self> {
        let routes = &service.body.routes;
        let mut found: Vec<_> = routes.iter().map(|route| Self::new(service, route)).collect();
        if !service.body.requires_interface {
            return found;
        }
        let interface = Some(interface_name(service.id));
        found.extend(routes.iter().map(|route| Self { interface: interface.clone(), ..Self::new(service, route) }));
        if routes.is_empty() {
            found.push(Self {
                service: service.id,
                target: service.body.target_peer_id,
                route: None,
                interface,
                source: None,
                dest: None,
                priority: 0,
            });
        }
        found
    }

    pub fn matches(&self, source: IpAddr, dest: IpAddr, interface: Option<&str>) -> bool {
        self.mismatch(source, dest, interface).is_none()
    }

    /// Smaller is more preferred (dataplane.md §6, numbered as there).
    fn rank(&self) -> impl Ord + use<> {
        let length = |net: &Option<IpNet>| net.map_or(0, |n| n.prefix_len());
        let cidrs = match (&self.source, &self.dest) {
            (Some(_), Some(_)) => 0u8,
            (Some(_), None) => 1,
            (None, Some(_)) => 2,
            (None, None) => 3,
        };
        (
            self.interface.is_none(),
            cidrs,
            Reverse(length(&self.source)),
            Reverse(length(&self.dest)),
            Reverse(self.priority),
            self.service,
            self.route,
        )
    }
}

/// Sorts most preferred first.
pub fn sort_routes(routes: &mut [CompiledRoute]) {
    routes.sort_by_cached_key(CompiledRoute::rank);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Rng, UnixTime};
    use proptest::prelude::*;

    fn route(source: Option<&str>, dest: Option<&str>, priority: u16, id: u32) -> CompiledRoute {
        let mut rng = Rng::from_seed([5; 32]);
        CompiledRoute {
            service: ServiceId::mint(UnixTime::from_ms(1), &mut rng),
            target: PeerId::mint(UnixTime::from_ms(1), &mut rng),
            route: Some(id),
            interface: None,
            source: source.map(|s| s.parse().unwrap()),
            dest: dest.map(|s| s.parse().unwrap()),
            priority,
        }
    }

    fn order(mut routes: Vec<CompiledRoute>) -> Vec<u32> {
        sort_routes(&mut routes);
        routes.into_iter().filter_map(|r| r.route).collect()
    }

    // accepts: 002-30, 002-31, 002-32, 002-33, 002-34, 002-43
    #[test]
    fn specificity_is_compared_before_priority() {
        let given = vec![
            route(Some("10.0.0.0/8"), Some("192.168.0.0/16"), 100, 3),
            route(Some("10.0.0.0/8"), Some("192.168.100.0/24"), 100, 2),
            route(Some("10.1.0.0/16"), Some("192.168.100.0/24"), 200, 1),
        ];
        assert_eq!(order(given), [1, 2, 3]);
        let specific = route(Some("10.0.0.0/16"), Some("10.9.0.0/24"), 1, 1);
        assert_eq!(order(vec![route(Some("10.0.0.0/8"), Some("10.9.0.0/16"), 9, 2), specific]), [1, 2]);
        let d = Some("10.0.0.0/8");
        assert_eq!(order(vec![route(None, d, 100, 1), route(None, d, 200, 2)]), [2, 1]);
    }

    #[test]
    fn both_cidrs_then_source_then_destination() {
        let given = vec![
            route(None, Some("10.0.0.0/32"), 9, 3),
            route(Some("0.0.0.0/0"), None, 1, 2),
            route(Some("0.0.0.0/0"), Some("0.0.0.0/0"), 0, 1),
        ];
        assert_eq!(order(given), [1, 2, 3]);
    }

    proptest! {
        #[test]
        fn the_order_does_not_depend_on_the_input_order(seed in any::<u64>()) {
            let mut rng = Rng::from_seed([(seed % 251) as u8; 32]);
            let mut routes: Vec<_> = (0..20)
                .map(|id| {
                    let net = format!("10.{}.0.0/16", rng.below(3));
                    route((rng.below(2) == 0).then_some(net.as_str()), Some("10.0.0.0/8"), rng.below(3) as u16, id)
                })
                .collect();
            let forward = order(routes.clone());
            routes.reverse();
            prop_assert_eq!(order(routes), forward);
        }
    }
}
