//! A cluster in memory: random live states, and steps carried out on them as the API would.

use crate::{
    compose::*,
    model::{Endpoint, PeerId, Rng, ServiceId, Transport, UnixTime},
};
use ipnet::IpNet;
use proptest::prelude::*;
use serde_json::Value;

fn id<T>(seed: u64, mint: impl Fn(UnixTime, &mut Rng) -> T) -> T {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    mint(UnixTime::from_secs(1), &mut Rng::from_seed(bytes))
}

pub fn peer_id(n: u64) -> PeerId {
    id(n, PeerId::mint)
}

pub fn service_id(n: u64) -> ServiceId {
    id(1000 + n, ServiceId::mint)
}

fn net(n: u8) -> IpNet {
    format!("10.{n}.0.0/16").parse().unwrap()
}

pub fn live_peer(n: u64, name: &str, all: u64, qos_enabled: bool) -> LivePeer {
    let view = View { name: name.to_owned(), qos_enabled };
    let own = View { name: name.to_owned(), qos_enabled: true };
    let views = (0..all).map(|v| (peer_id(v), if v == n { own.clone() } else { view.clone() })).collect();
    let endpoints = vec![format!("192.0.2.{}:8080", n + 1).parse::<Endpoint>().unwrap()];
    LivePeer { id: peer_id(n), name: name.to_owned(), endpoints, qos_enabled, api_access: None, views }
}

fn route() -> impl Strategy<Value = (Option<u8>, Option<u8>, u16)> {
    (prop::option::of(0u8..4), prop::option::of(0u8..4), prop_oneof![Just(100u16), any::<u16>()])
        .prop_map(|(s, d, p)| if s.is_none() && d.is_none() { (s, Some(0), p) } else { (s, d, p) })
}

fn routes(wished: Vec<(Option<u8>, Option<u8>, u16)>) -> Vec<LiveRoute> {
    let mut routes: Vec<LiveRoute> = Vec::new();
    for (i, (source, dest, priority)) in wished.into_iter().enumerate() {
        let route = LiveRoute { id: i as u32 + 1, version: 1, source: source.map(net), dest: dest.map(net), priority };
        if !routes.iter().any(|r| (r.source, r.dest) == (route.source, route.dest)) {
            routes.push(route);
        }
    }
    routes
}

type WishedService = (u64, u64, bool, bool, bool, u32, Vec<(Option<u8>, Option<u8>, u16)>);

/// Live states that a cluster can be in: unique names, valid combinations, members that agree on names.
pub fn live_state() -> impl Strategy<Value = Live> {
    let service =
        (0u64..4, 1u64..4, any::<bool>(), any::<bool>(), any::<bool>(), 0u32..3, prop::collection::vec(route(), 0..4));
    (2u64..5, prop::collection::vec(any::<bool>(), 4), prop::collection::vec(service, 0..6), "[a-z]{1,3}").prop_map(
        |(count, qos, services, word)| {
            let odd = ["tokyo", "Berlin 2", "12", "no"];
            let peers = (0..count).map(|n| live_peer(n, odd[n as usize], count, qos[n as usize])).collect();
            let services =
                services.into_iter().enumerate().map(|(n, wished)| service_of(n, wished, count, &word)).collect();
            Live { cluster_id: Some("clu_1".to_owned()), peers, services }
        },
    )
}

fn service_of(n: usize, wished: WishedService, count: u64, word: &str) -> LiveService {
    let (source, offset, interface, transparent, kcp, limit, wished_routes) = wished;
    let source = source % count;
    let target = (source + 1 + offset % (count - 1)) % count;
    let routes = routes(wished_routes);
    let requires_interface = interface || routes.is_empty();
    let fully_transparent = transparent && requires_interface;
    LiveService {
        id: service_id(n as u64),
        version: 7,
        name: format!("{word}-{n}"),
        source: peer_id(source),
        target: peer_id(target),
        transport: if kcp && !fully_transparent { Transport::Kcp } else { Transport::Tcp },
        fully_transparent,
        requires_interface,
        ipv4: (requires_interface && limit > 0).then(|| "192.168.7.9/24".parse().unwrap()),
        ipv6: (requires_interface && limit > 1).then(|| "fd00::9/64".parse().unwrap()),
        bandwidth_limit_mbps: limit * 500,
        routes,
    }
}

pub fn file_of(text: &str) -> ClusterFile {
    let document = parse(text).unwrap_or_else(|e| panic!("{}", e.render("f", text)));
    match read(&document, Rules::Full, &|_| None) {
        Ok((file, _)) => file,
        Err(found) => panic!("{}\n{text}", found.iter().map(|d| d.render("f", text)).collect::<String>()),
    }
}

/// Every listed peer answers as the member of its name, or is new.
pub fn contacts(file: &ClusterFile, live: &Live) -> Vec<Contact> {
    let member = |p: &Peer| live.peers.iter().find(|l| l.endpoints == p.endpoints);
    file.peers.iter().map(|p| member(p).map_or(Contact::Unbootstrapped, |l| Contact::Bootstrapped(l.id))).collect()
}

/// Carries one step out as the agents would.
pub fn carry_out(live: &mut Live, file: &ClusterFile, step: &Step) {
    match &step.work {
        Work::Bootstrap { .. } => {}
        Work::Join { peer } => {
            let n = 50 + live.peers.len() as u64;
            let wanted = file.peers.iter().find(|p| p.name == *peer).unwrap();
            let ids: Vec<PeerId> = live.peers.iter().map(|p| p.id).chain([peer_id(n)]).collect();
            let fresh = View { name: "as it calls itself".to_owned(), qos_enabled: true };
            for known in &mut live.peers {
                known.views.insert(peer_id(n), fresh.clone());
            }
            let mut joined = live_peer(n, peer, 0, true);
            joined.endpoints.clone_from(&wanted.endpoints);
            joined.views = ids.into_iter().map(|id| (id, fresh.clone())).collect();
            live.peers.push(joined);
            live.cluster_id.get_or_insert("clu_1".to_owned());
        }
        Work::Views { viewer } => {
            let places: Vec<Vec<Endpoint>> = live.peers.iter().map(|l| l.endpoints.clone()).collect();
            let by_endpoint = |p: &Peer| places.iter().position(|e| *e == p.endpoints);
            let viewer = live.peers[by_endpoint(file.peers.iter().find(|p| p.name == *viewer).unwrap()).unwrap()].id;
            for peer in &file.peers {
                let Some(at) = by_endpoint(peer) else { continue };
                let own = live.peers[at].id == viewer;
                let view = View { name: peer.name.clone(), qos_enabled: own || peer.qos_enabled };
                live.peers[at].views.insert(viewer, view);
            }
        }
        work => service_work(live, file, work),
    }
}

fn service_work(live: &mut Live, file: &ClusterFile, work: &Work) {
    let unused = |id: &ServiceId| !live.services.iter().any(|s| s.id == *id);
    let next = (100..).map(service_id).find(unused).unwrap();
    let peer = |live: &Live, name: &str| {
        let endpoints = &file.peers.iter().find(|p| p.name == name).unwrap().endpoints;
        live.peers.iter().find(|l| l.endpoints == *endpoints).unwrap().id
    };
    match work {
        Work::CreateService { name, source, target, body } => {
            assert!(!live.services.iter().any(|s| s.name.eq_ignore_ascii_case(name)), "the name {name} is taken");
            let (source, target) = (peer(live, source), peer(live, target));
            let mut service = service_of(0, (0, 1, false, false, false, 0, vec![]), 2, "x");
            service.requires_interface = false;
            (service.id, service.source, service.target) = (next, source, target);
            write(&mut service, body);
            live.services.push(service);
        }
        Work::UpdateService { id, version, body } => {
            let service = live.services.iter_mut().find(|s| s.id == *id).unwrap();
            assert_eq!(service.version, *version);
            write(service, body);
            service.version += 1;
        }
        Work::DeleteService { id, .. } => live.services.retain(|s| s.id != *id),
        Work::AddRoutes { service, id, routes } => {
            let is_it = |s: &&mut LiveService| id.map_or(s.name == *service, |id| s.id == id);
            let service = live.services.iter_mut().find(is_it).unwrap();
            for route in routes {
                let cidr = |key: &str| route[key].as_str().map(|t| t.parse().unwrap());
                let id = service.routes.iter().map(|r| r.id).max().unwrap_or(0) + 1;
                let priority = u16::try_from(route["priority"].as_u64().unwrap()).unwrap();
                let (source, dest) = (cidr("source_cidr"), cidr("dest_cidr"));
                service.routes.push(LiveRoute { id, version: 1, source, dest, priority });
            }
        }
        Work::SetPriority { id, route, priority, .. } => {
            let service = live.services.iter_mut().find(|s| s.id == *id).unwrap();
            service.routes.iter_mut().find(|r| r.id == *route).unwrap().priority = *priority;
        }
        Work::DeleteRoute { id, route, .. } => {
            live.services.iter_mut().find(|s| s.id == *id).unwrap().routes.retain(|r| r.id != *route);
        }
        Work::Bootstrap { .. } | Work::Join { .. } | Work::Views { .. } => unreachable!("no work on services"),
    }
}

fn write(service: &mut LiveService, body: &serde_json::Map<String, Value>) {
    for (key, value) in body {
        let flag = || value.as_bool().unwrap();
        let cidr = || value.as_str().map(|t| t.parse().unwrap());
        match key.as_str() {
            "name" => value.as_str().unwrap().clone_into(&mut service.name),
            "transport_type" => service.transport = value.as_str().unwrap().parse().unwrap(),
            "requires_interface" => service.requires_interface = flag(),
            "fully_transparent" => service.fully_transparent = flag(),
            "desired_ipv4_cidr" => service.ipv4 = cidr(),
            "desired_ipv6_cidr" => service.ipv6 = cidr(),
            "bandwidth_limit_mbps" => service.bandwidth_limit_mbps = value.as_u64().unwrap() as u32,
            other => panic!("{other} is no field of a service"),
        }
    }
}
