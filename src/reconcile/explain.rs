//! `routes explain`: what kernel and engines do with a packet that opens a connection, told without asking them. The
//! rules that the kernel holds are another rendering of the same order; a property test keeps the two equal.

use super::status::Status;
use crate::{
    kernel::{DHCP_PORTS, Family, HostFacts, Ruleset, TCP, UDP, special_networks},
    model::{Service, ServiceId, interface_name},
    routing::{CompiledRoute, Criterion, Mismatch, sort_routes},
};
use ipnet::IpNet;
use std::{collections::BTreeSet, net::IpAddr};

/// A packet that opens a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    pub source: IpAddr,
    /// Of the same family.
    pub dest: IpAddr,
    pub protocol: u8,
    pub dest_port: Option<u16>,
    /// By which it enters; none: it starts on this host.
    pub interface: Option<String>,
}

/// What carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plane {
    Tproxy,
    Iptun,
}

/// Why a candidate stands where it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    Wins,
    Mismatch(Mismatch),
    /// Another one that matches comes first, by this.
    LessPreferred(CompiledRoute, Criterion),
    /// Its rules are not in the kernel, and why.
    Inactive(String),
    /// It would win, but the packet is never captured.
    Excluded,
    /// It would win, but nothing carries such packets.
    NotCarried,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub route: CompiledRoute,
    pub reason: Reason,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// By the candidate with [`Reason::Wins`]; the mark is shifted into the mask.
    Captured {
        plane: Plane,
        mark: u32,
    },
    /// Never captured, whatever the routes say; why.
    Excluded(String),
    NotCaptured(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    pub outcome: Outcome,
    /// In evaluation order.
    pub candidates: Vec<Candidate>,
}

impl Explanation {
    pub fn winner(&self) -> Option<&CompiledRoute> {
        self.candidates.iter().find(|c| c.reason == Reason::Wins).map(|c| &c.route)
    }
}

/// What becomes of `flow` on this host, whose outgoing services are `services`.
pub fn explain(services: &[Service], status: &Status, host: &HostFacts, flow: &Flow) -> Explanation {
    let counted = services.iter().flat_map(|s| CompiledRoute::of(s).into_iter().filter(|r| counts(r, s, flow)));
    let mut routes: Vec<CompiledRoute> = counted.collect();
    sort_routes(&mut routes);
    judge(routes, &status.ruleset, &not_forwarded(host), flow, |service| inactive(status, service))
}

/// A route of a service with an interface stands twice in the order. The one that decides is told.
fn counts(route: &CompiledRoute, service: &Service, flow: &Flow) -> bool {
    let entered = service.body.requires_interface && flow.interface == Some(interface_name(service.id));
    route.route.is_none() || route.interface.is_some() == entered
}

/// `routes`: most preferred first.
fn judge(
    routes: Vec<CompiledRoute>,
    ruleset: &Ruleset,
    not_forwarded: &BTreeSet<IpAddr>,
    flow: &Flow,
    why_inactive: impl Fn(ServiceId) -> String,
) -> Explanation {
    let carried = plane(ruleset, flow);
    let excluded = exclusion(ruleset, not_forwarded, flow);
    let marks: std::collections::BTreeMap<_, u32> =
        ruleset.captures.iter().map(|c| ((c.service, c.route), c.mark)).collect();
    let mut first: Option<CompiledRoute> = None;
    let reason = |route: &CompiledRoute, first: &mut Option<CompiledRoute>| {
        if let Some(mismatch) = route.mismatch(flow.source, flow.dest, flow.interface.as_deref()) {
            return Reason::Mismatch(mismatch);
        }
        if !marks.contains_key(&(route.service, route.route)) {
            return Reason::Inactive(why_inactive(route.service));
        }
        if let Some(first) = first {
            return Reason::LessPreferred(first.clone(), first.preferred_by(route));
        }
        *first = Some(route.clone());
        match (&excluded, &carried) {
            (Some(_), _) => Reason::Excluded,
            (None, Err(_)) => Reason::NotCarried,
            (None, Ok(_)) => Reason::Wins,
        }
    };
    let candidates: Vec<Candidate> =
        routes.into_iter().map(|route| Candidate { reason: reason(&route, &mut first), route }).collect();
    let mark = first.and_then(|route| marks.get(&(route.service, route.route)).copied());
    let outcome = match (excluded, mark, carried) {
        (Some(why), ..) => Outcome::Excluded(why),
        (None, None, _) => Outcome::NotCaptured("no route matches".to_owned()),
        (None, Some(_), Err(why)) => Outcome::NotCaptured(why),
        (None, Some(mark), Ok(plane)) => {
            let mask = ruleset.mask;
            let mark = if plane == Plane::Tproxy { mask.service(mark) } else { mask.tunnel(mark) };
            Outcome::Captured { plane, mark }
        }
    };
    Explanation { outcome, candidates }
}

fn plane(ruleset: &Ruleset, flow: &Flow) -> Result<Plane, String> {
    if flow.protocol != TCP {
        return match ruleset.tunnel {
            Some(_) => Ok(Plane::Iptun),
            None => Err("no IP tunnel runs on this host: only TCP is carried".to_owned()),
        };
    }
    let family = Family::of(flow.dest);
    let listens = match family {
        Family::V4 => ruleset.intercept.v4.is_some(),
        Family::V6 => ruleset.intercept.v6.is_some(),
    };
    if listens { Ok(Plane::Tproxy) } else { Err(format!("the engine has no listener for {}", family.name())) }
}

/// Why such a packet is never captured (dataplane.md §8).
fn exclusion(ruleset: &Ruleset, not_forwarded: &BTreeSet<IpAddr>, flow: &Flow) -> Option<String> {
    let dest = flow.dest;
    if not_forwarded.contains(&dest) {
        return Some(format!("{dest} is an address of this host, or a broadcast address of its networks"));
    }
    if let Some((net, what)) = special_networks().find(|(net, _)| net.contains(&dest)) {
        return Some(format!("{dest} is {what} ({net})"));
    }
    let port = flow.dest_port.unwrap_or(0);
    let set = if flow.protocol == TCP { TCP } else { UDP };
    let hits = |p: &crate::kernel::PeerSocket| p.ip == dest && p.protocol == flow.protocol && p.port == port;
    if ruleset.peers.iter().filter(|p| p.protocol == set).any(hits) {
        return Some(format!("{dest} port {port} is a port of a peer's agent"));
    }
    (flow.protocol == UDP && DHCP_PORTS.contains(&port)).then(|| "DHCP is never captured".to_owned())
}

/// Addresses at which the host itself is meant, and broadcast addresses of its networks.
fn not_forwarded(host: &HostFacts) -> BTreeSet<IpAddr> {
    let nets = host.links.values().flat_map(|link| link.addresses.iter());
    let broadcast = |net: &IpNet| match net {
        IpNet::V4(v4) if v4.prefix_len() < 31 => Some(IpAddr::V4(v4.broadcast())),
        _ => None,
    };
    nets.flat_map(|net| [Some(net.addr()), broadcast(net)]).flatten().collect()
}

/// What the conditions say of a service whose rules are not in the kernel.
fn inactive(status: &Status, service: ServiceId) -> String {
    let conditions = status.conditions.get(&service).map_or(&[][..], Vec::as_slice);
    let obstacle = conditions.iter().find(|c| c.status != super::ConditionStatus::Applied);
    obstacle.map_or_else(
        || "it has not been applied yet".to_owned(),
        |c| format!("{}: {} ({})", c.reconciler.name(), c.message, c.reason),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        kernel::{
            Arrival, Capture, HostView, Intercept, MarkMask, Packet, PeerSocket, Shape, Tunnel, Verdict, classify,
        },
        model::{PeerId, Rng, UnixTime},
    };
    use proptest::prelude::*;

    const INTERFACES: [&str; 3] = ["eth0", "svc_a", "svc_b"];

    fn net(rng: &mut Rng) -> IpNet {
        if rng.below(4) == 0 {
            return format!("fd00:{}::/{}", rng.below(2), [16, 32, 128][rng.below(3) as usize])
                .parse::<IpNet>()
                .unwrap()
                .trunc();
        }
        let first = [10, 10, 10, 127, 224][rng.below(5) as usize];
        let text = format!("{first}.{}.{}.0/{}", rng.below(2), rng.below(2), [0, 8, 16, 24][rng.below(4) as usize]);
        text.parse::<IpNet>().unwrap().trunc()
    }

    fn address(rng: &mut Rng, v4: bool) -> IpAddr {
        if v4 {
            let first = [10, 10, 10, 10, 127, 224, 169][rng.below(7) as usize];
            let second = if first == 169 { 254 } else { rng.below(2) };
            return format!("{first}.{second}.{}.{}", rng.below(2), rng.below(3)).parse().unwrap();
        }
        let first = ["fd00", "fd00", "fd00", "fe80", "ff02"][rng.below(5) as usize];
        format!("{first}:{}::{}", rng.below(2), rng.below(2)).parse().unwrap()
    }

    /// Routes that overlap much, of one family each.
    fn routes(rng: &mut Rng) -> Vec<CompiledRoute> {
        let services: Vec<ServiceId> = (0..4).map(|n| ServiceId::mint(UnixTime::from_ms(n), rng)).collect();
        let target = PeerId::mint(UnixTime::from_ms(1), rng);
        let count = 1 + rng.below(12);
        (0..count)
            .map(|n| {
                let (source, mut dest) = ((rng.below(2) == 0).then(|| net(rng)), (rng.below(3) > 0).then(|| net(rng)));
                if source.is_some_and(|s| dest.is_some_and(|d| s.addr().is_ipv4() != d.addr().is_ipv4())) {
                    dest = None;
                }
                let interface = (rng.below(4) == 0).then(|| INTERFACES[rng.below(3) as usize].to_owned());
                let service = services[rng.below(4) as usize];
                let priority = rng.below(3) as u16;
                CompiledRoute { service, target, route: Some(n as u32 + 1), interface, source, dest, priority }
            })
            .collect()
    }

    fn ruleset(routes: &[CompiledRoute], rng: &mut Rng) -> Ruleset {
        let mut sorted = routes.to_vec();
        sort_routes(&mut sorted);
        let mark = |r: &CompiledRoute| 1 + routes.iter().position(|o| o.service == r.service).unwrap() as u32;
        let captures = sorted.iter().filter(|_| rng.below(8) > 0).map(|r| Capture {
            service: r.service,
            route: r.route,
            source: r.source,
            dest: r.dest,
            interface: r.interface.clone(),
            mark: mark(r),
        });
        let captures = captures.collect();
        let listener = |rng: &mut Rng| rng.below(5) > 0;
        let peer = PeerSocket { ip: address(rng, true), protocol: [TCP, UDP][rng.below(2) as usize], port: 8080 };
        Ruleset {
            mask: MarkMask::default(),
            intercept: Intercept {
                v4: listener(rng).then(|| "127.0.0.1:61999".parse().unwrap()),
                v6: listener(rng).then(|| "[::1]:61999".parse().unwrap()),
            },
            peers: BTreeSet::from([peer]),
            captures,
            tunnel: listener(rng).then(|| Tunnel { device: "arctic-tun0".into(), index: 7 }),
        }
    }

    fn flow(rng: &mut Rng) -> Flow {
        let v4 = rng.below(4) > 0;
        Flow {
            source: address(rng, v4),
            dest: address(rng, v4),
            protocol: [TCP, TCP, UDP, 1][rng.below(4) as usize],
            dest_port: Some([443, 8080, 67][rng.below(3) as usize]),
            interface: (rng.below(2) == 0).then(|| INTERFACES[rng.below(3) as usize].to_owned()),
        }
    }

    /// What the compiled rules do.
    fn by_the_rules(ruleset: &Ruleset, shape: Shape, host: &BTreeSet<IpAddr>, flow: &Flow) -> Verdict {
        let packet = Packet {
            arrival: match flow.interface.clone() {
                Some(interface) => Arrival::Entered { interface },
                None => Arrival::Local,
            },
            source: flow.source,
            dest: flow.dest,
            protocol: flow.protocol,
            dest_port: flow.dest_port.unwrap_or(0),
            mark: 0,
            reply: false,
            opening: true,
            connection_mark: 0,
            transparent_socket: false,
        };
        let view = HostView { not_forwarded: host.clone(), listener_v4: true, listener_v6: true, alive: true };
        classify(&ruleset.tables_in(shape), &packet, &view)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn explain_and_the_compiled_rules_agree(seed in any::<[u8; 32]>(), maps in any::<bool>(), tier in 0usize..3) {
            let shape =
                if maps { Shape { list_max_rules: 0, tier_max_rules: tier } } else { Shape::default() };
            let mut rng = Rng::from_seed(seed);
            let mut routes = routes(&mut rng);
            let (ruleset, host) = (ruleset(&routes, &mut rng), BTreeSet::from([address(&mut rng, true)]));
            sort_routes(&mut routes);
            for _ in 0..5 {
                let flow = flow(&mut rng);
                let told = judge(routes.clone(), &ruleset, &host, &flow, |_| String::new());
                let done = by_the_rules(&ruleset, shape, &host, &flow);
                match (&told.outcome, &done) {
                    (Outcome::Captured { mark, .. }, Verdict::Captured { mark: set, comment }) => {
                        let winner = told.winner().unwrap();
                        prop_assert_eq!(mark, set);
                        prop_assert_eq!(&format!("{}/{}", winner.service, winner.route.unwrap()), comment);
                    }
                    (Outcome::Excluded(_), Verdict::Excluded(_)) => prop_assert!(told.winner().is_none()),
                    (Outcome::NotCaptured(_), Verdict::Plain) => prop_assert!(told.winner().is_none()),
                    _ => prop_assert!(false, "{:?} but {:?} for {:?} by {:?}", told.outcome, done, flow, ruleset),
                }
            }
        }
    }

    #[test]
    fn each_candidate_says_why_it_loses() {
        let mut rng = Rng::from_seed([3; 32]);
        let service = ServiceId::mint(UnixTime::from_ms(1), &mut rng);
        let target = PeerId::mint(UnixTime::from_ms(1), &mut rng);
        let route = |id, source: Option<&str>, dest: Option<&str>, priority| CompiledRoute {
            service,
            target,
            route: Some(id),
            interface: None,
            source: source.map(|s| s.parse().unwrap()),
            dest: dest.map(|s| s.parse().unwrap()),
            priority,
        };
        let mut routes = vec![
            route(1, Some("10.1.0.0/16"), Some("192.168.100.0/24"), 200),
            route(2, Some("10.0.0.0/8"), Some("192.168.100.0/24"), 100),
            route(3, Some("10.0.0.0/8"), Some("192.168.0.0/16"), 100),
            route(4, Some("10.2.0.0/16"), None, 100),
            route(5, None, Some("172.16.0.0/12"), 100),
            route(6, None, Some("fd00::/8"), 100),
            route(7, Some("10.0.0.0/8"), None, 100),
        ];
        sort_routes(&mut routes);
        let captures = routes.iter().filter(|r| r.route != Some(7)).map(|r| Capture {
            service,
            route: r.route,
            source: r.source,
            dest: r.dest,
            interface: None,
            mark: 1,
        });
        let intercept = Intercept { v4: Some("127.0.0.1:1".parse().unwrap()), v6: None };
        let ruleset = Ruleset { captures: captures.collect(), intercept, ..Ruleset::default() };
        let flow = Flow {
            source: "10.1.2.3".parse().unwrap(),
            dest: "192.168.100.9".parse().unwrap(),
            protocol: TCP,
            dest_port: Some(443),
            interface: None,
        };
        let told = judge(routes, &ruleset, &BTreeSet::new(), &flow, |_| "why".into());
        let reasons: Vec<(u32, &Reason)> =
            told.candidates.iter().map(|c| (c.route.route.unwrap(), &c.reason)).collect();
        let first = told.winner().unwrap().clone();
        let less = |criterion| Reason::LessPreferred(first.clone(), criterion);
        assert_eq!(
            reasons,
            [
                (1, &Reason::Wins),
                (2, &less(Criterion::SourceLength)),
                (3, &less(Criterion::SourceLength)),
                (4, &Reason::Mismatch(Mismatch::SourceOutside)),
                (7, &Reason::Inactive("why".into())),
                (5, &Reason::Mismatch(Mismatch::DestOutside)),
                (6, &Reason::Mismatch(Mismatch::OtherFamily)),
            ]
        );
        let udp = judge(vec![first], &ruleset, &BTreeSet::new(), &Flow { protocol: UDP, ..flow }, |_| String::new());
        assert_eq!(udp.candidates[0].reason, Reason::NotCarried);
        assert!(matches!(udp.outcome, Outcome::NotCaptured(why) if why.contains("only TCP")));
    }
}
