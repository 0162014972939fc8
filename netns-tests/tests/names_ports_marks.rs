//! What else a user sees of the data planes: names, UDP beside transparent TCP, ports between sites, marks.

// Real time is the subject here.
#![allow(clippy::disallowed_methods)]

use std::cell::Cell;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use netns_tests::agent::Cli;
use netns_tests::cluster::{Cluster, serve_through_tokyo};
use netns_tests::datagram::{DatagramService, ask_udp};
use netns_tests::dns::{self, NameServer};
use netns_tests::interfaces::{self, PRODUCT, SEEN_WITHIN, wait};
use netns_tests::lab::{Host, Lab};
use netns_tests::probe::{Feature, require};
use netns_tests::service::{TcpService, seen_from};
use netns_tests::topology::{
    API_PORT, CLIENT, CLIENT_V6, LONDON_WAN, Profile, SERVER, SERVER_DIRECT, SERVER_DIRECT_V6, SERVER_NET,
    SERVER_NET_V6, SERVER_V6, TOKYO_LAN, TwoSites, at,
};
use netns_tests::vendor::Grant;

const DNS: u16 = 53;
const MIRROR_PORT: u16 = 7000;
const SHORT: Duration = Duration::from_millis(300);
const TOKYO_LAN_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd71, 2, 0, 0, 0, 0, 0, 1));

fn may_run() -> bool {
    require(&[&PRODUCT[..], &[Feature::Tun]].concat())
}

fn any(port: u16) -> SocketAddr {
    (Ipv6Addr::UNSPECIFIED, port).into()
}

/// Two sites on which `prepare` ran before the agents, and the id of a service for the server's networks.
fn serve(name: &str, prepare: impl FnOnce(&TwoSites)) -> (Cluster, String, TwoSites) {
    let sites = TwoSites::build(Lab::new(name).unwrap(), Profile::CLEAN, 1).unwrap();
    prepare(&sites);
    let cluster = Cluster::form(&sites, &Grant::default()).unwrap();
    let service = serve_through_tokyo(&cluster.operator, &[SERVER_NET, SERVER_NET_V6]).unwrap();
    (cluster, service, sites)
}

/// From where the server sees a datagram, if at all; for those who ask again.
fn seen_by_mirror(from: &Host, server: IpAddr) -> Option<IpAddr> {
    ask_udp(from, at(server, MIRROR_PORT), b"from where", SHORT).ok()
}

/// The same for an answer that has to come.
#[track_caller]
fn is_seen(from: &Host, server: IpAddr) -> IpAddr {
    ask_udp(from, at(server, MIRROR_PORT), b"from where", SEEN_WITHIN).unwrap()
}

// accepts: 001-29
#[test]
fn names_are_asked_through_the_service_only_where_a_route_covers_the_resolver() {
    if !may_run() {
        return;
    }
    let (_cluster, _service, sites) = serve("names", |_| ());
    let covered = [(SERVER, TOKYO_LAN), (SERVER_V6, TOKYO_LAN_V6)];
    let direct = [(SERVER_DIRECT, CLIENT), (SERVER_DIRECT_V6, CLIENT_V6)];
    let start = |(resolver, _): &(IpAddr, IpAddr)| NameServer::start(&sites.server, at(*resolver, DNS)).unwrap();
    let _servers: Vec<NameServer> = covered.iter().chain(&direct).map(start).collect();
    for (resolver, by_tokyo) in covered {
        let by = || dns::seen_from(&sites.client, at(resolver, DNS), false).ok().filter(|seen| *seen == by_tokyo);
        wait("a name asked through the tunnel", SEEN_WITHIN, by);
    }
    for (resolver, asker) in covered.into_iter().chain(direct) {
        for tcp in [false, true] {
            assert_eq!(dns::seen_from(&sites.client, at(resolver, DNS), tcp).unwrap(), asker, "{resolver}, TCP: {tcp}");
        }
        for seen in dns::seen_by_programs(&sites.client, resolver).unwrap() {
            assert_eq!(seen, asker, "{resolver}");
        }
    }
    // On the source peer itself as well.
    for (resolver, by_tokyo) in covered {
        assert_eq!(dns::seen_from(&sites.london, at(resolver, DNS), false).unwrap(), by_tokyo);
    }
    assert_eq!(dns::seen_from(&sites.london, at(SERVER_DIRECT, DNS), false).unwrap(), LONDON_WAN);
}

// accepts: 002-12
#[test]
fn of_a_transparent_service_only_tcp_keeps_the_address_of_the_client() {
    if !may_run() {
        return;
    }
    let world = interfaces::World::new("beside");
    let sites = &world.sites;
    let _tcp = TcpService::mirror(&sites.server, any(MIRROR_PORT)).unwrap();
    let mirror = |ip| DatagramService::udp_mirror(&sites.server, at(ip, MIRROR_PORT)).unwrap();
    let _udp = [SERVER, SERVER_V6].map(mirror);
    let (id, _) = world.serve(&["--fully-transparent", "--desired-ipv4", "10.71.1.50/24"]);
    for net in [SERVER_NET, SERVER_NET_V6] {
        world.cluster.operator.ok(&["routes", "add", "--service", &id, "--dest-cidr", net]).unwrap();
    }
    for (server, client, tokyo) in [(SERVER, CLIENT, TOKYO_LAN), (SERVER_V6, CLIENT_V6, TOKYO_LAN_V6)] {
        let tunnelled = || seen_by_mirror(&sites.client, server).filter(|seen| *seen == tokyo);
        wait("a datagram that leaves from tokyo", SEEN_WITHIN, tunnelled);
        let before = world.opened(&id);
        let transparent = || {
            let seen = seen_from(&sites.client, at(server, MIRROR_PORT)).ok()?;
            (world.opened(&id) > before).then_some(seen)
        };
        assert_eq!(wait("a connection of the service", SEEN_WITHIN, transparent).0, client);
        assert_eq!(is_seen(&sites.client, server), tokyo, "beside it");
    }
}

/// Lets nothing cross the WAN but what is for the two ports, or is their answer; and less, as `closed` says.
fn guard(host: &Host, device: &str) {
    let rules = format!(
        "table inet site {{
            set closed {{ type inet_proto . inet_service; }}
            chain input {{
                type filter hook input priority 0; policy accept;
                iifname != \"{device}\" accept
                meta l4proto {{ icmp, ipv6-icmp }} accept
                meta l4proto tcp meta l4proto . th dport @closed reject with tcp reset
                meta l4proto . th dport @closed drop
                tcp dport {API_PORT} accept
                tcp sport {API_PORT} accept
                udp dport 51840 accept
                drop
            }}
        }}"
    );
    host.sh(&format!("nft '{rules}'")).unwrap();
}

fn close(host: &Host, port: &str) {
    host.sh(&format!("nft 'add element inet site closed {{ {port} }}'")).unwrap();
}

fn open(host: &Host) {
    host.sh("nft flush set inet site closed").unwrap();
}

// accepts: 001-14
#[test]
fn two_ports_suffice_for_cluster_and_tunnel_and_each_is_needed_in_both_directions() {
    if !may_run() {
        return;
    }
    let (cluster, of_london, sites) = serve("ports", |sites| {
        guard(&sites.london, "to-tokyo");
        guard(&sites.tokyo, "to-london");
    });
    let _mirror = DatagramService::udp_mirror(&sites.server, at(SERVER, MIRROR_PORT)).unwrap();
    let tunnelled = || seen_by_mirror(&sites.client, SERVER) == Some(TOKYO_LAN);
    let in_tokyo = Cli::new(&sites.tokyo, &sites.lab.scratch().join("operator")).unwrap();
    let url = format!("http://127.0.0.1:{API_PORT}");
    let create = ["services", "create", "--source-peer", "tokyo", "--target-peer", "london", "--url", &url];
    let of_tokyo: serde_json::Value = in_tokyo.json(&create).unwrap();
    let of_tokyo = of_tokyo["id"].as_str().unwrap();
    let known = || cluster.operator.run(&["services", "get", of_tokyo]).unwrap().exit == 0;
    wait("the service of tokyo in london", SEEN_WITHIN, || known().then_some(()));
    // Whether each of the two agents reaches the other, which alone may change a service of its own.
    let limit = Cell::new(100);
    let reached = || {
        limit.set(limit.get() + 1);
        let limit = format!("{}Mbit", limit.get());
        let changes = |operator: &Cli, service: &str| {
            let update = ["services", "update", service, "--bandwidth-limit", &limit, "--url", &url];
            operator.run(&update).unwrap().exit == 0
        };
        (changes(&cluster.operator, of_tokyo), changes(&in_tokyo, &of_london))
    };
    wait("the tunnel", SEEN_WITHIN, || tunnelled().then_some(()));
    assert_eq!(reached(), (true, true));
    for (host, meets) in [(&sites.tokyo, (false, true)), (&sites.london, (true, false))] {
        close(host, "udp . 51840");
        assert!(!tunnelled() && !tunnelled(), "{host} hears nothing on 51840");
        assert_eq!(reached(), (true, true));
        open(host);
        wait("the tunnel again", SEEN_WITHIN, || tunnelled().then_some(()));
        close(host, &format!("tcp . {API_PORT}"));
        assert_eq!(reached(), meets, "{host} hears nothing on {API_PORT}");
        wait("the tunnel, which needs none of it", SEEN_WITHIN, || tunnelled().then_some(()));
        open(host);
        assert_eq!(reached(), (true, true));
    }
}

/// Packets that a rule of the operator has met.
fn met(host: &Host, counter: &str) -> u64 {
    let listed = host.sh(&format!("nft list counter inet watch {counter}")).unwrap();
    let mut words = listed.split_whitespace().skip_while(|word| *word != "packets");
    words.nth(1).unwrap().parse().unwrap()
}

// accepts: 002-52
#[test]
fn rules_of_the_operator_tell_the_packets_of_a_service_by_its_mark() {
    if !may_run() {
        return;
    }
    let (cluster, service, sites) = serve("marks", |_| ());
    let _tcp = TcpService::mirror(&sites.server, any(MIRROR_PORT)).unwrap();
    let _udp = DatagramService::udp_mirror(&sites.server, at(SERVER, MIRROR_PORT)).unwrap();
    wait("the tunnel", SEEN_WITHIN, || seen_by_mirror(&sites.client, SERVER).filter(|seen| *seen == TOKYO_LAN));
    let shown: serde_json::Value = cluster.operator.json(&["services", "get", &service]).unwrap();
    let mark = u32::try_from(shown["fwmark"].as_u64().unwrap()).unwrap();
    let (mask, top) = (0xfff0_0000u32, 0x8000_0000u32);
    assert!(mark != 0 && mark & !mask == 0 && mark & top == 0, "{mark:#x}");
    let tunnel = mark | top;
    // Behind the rules of the agent, in a table that is none of its own.
    let rules = format!(
        "table inet watch {{
            counter opening {{ }}
            counter there {{ }}
            counter back {{ }}
            counter datagram {{ }}
            chain entering {{
                type filter hook prerouting priority -100;
                iifname \"to-client\" tcp dport {MIRROR_PORT} meta mark & {mask:#x} == {mark:#x} counter name opening
                iifname \"to-client\" tcp dport {MIRROR_PORT} ct mark & {mask:#x} == {mark:#x} counter name there
                iifname \"to-client\" udp dport {MIRROR_PORT} meta mark & {mask:#x} == {tunnel:#x} counter name datagram
            }}
            chain leaving {{
                type filter hook postrouting priority 0;
                oifname \"to-client\" tcp sport {MIRROR_PORT} ct mark & {mask:#x} == {mark:#x} counter name back
            }}
        }}"
    );
    sites.london.sh(&format!("nft '{rules}'")).unwrap();
    const ROUNDS: u64 = 3;
    for _ in 0..ROUNDS {
        assert_eq!(seen_from(&sites.client, at(SERVER, MIRROR_PORT)).unwrap(), TOKYO_LAN);
        assert_eq!(is_seen(&sites.client, SERVER), TOKYO_LAN);
        // Outside the routes nothing is marked.
        assert_eq!(seen_from(&sites.client, at(SERVER_DIRECT, MIRROR_PORT)).unwrap(), CLIENT);
    }
    assert_eq!((met(&sites.london, "opening"), met(&sites.london, "datagram")), (ROUNDS, ROUNDS));
    // Opening, acknowledgements and end of each; what the server said and its end. The last ones are on their way still.
    wait("packets there", SEEN_WITHIN, || (met(&sites.london, "there") >= 3 * ROUNDS).then_some(()));
    wait("packets back", SEEN_WITHIN, || (met(&sites.london, "back") >= 2 * ROUNDS).then_some(()));

    // The agent's own sockets are told from all services.
    let established = || {
        let shown = sites.london.sh("ss -Htn -e state established '( sport = :61000 or dport = :61000 )'").unwrap();
        (!shown.is_empty()).then_some(shown)
    };
    let (sockets, _) = wait("connections of the agent", SEEN_WITHIN, established);
    assert!(sockets.lines().all(|line| line.contains("fwmark:0xfff00000")), "{sockets}");
}
