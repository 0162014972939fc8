//! The IP tunnel on the real kernel: whatever is not TCP, between two agents (dataplane.md §3, §7, §10).

// Real time is the subject here.
#![allow(clippy::disallowed_methods)]

use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use netns_tests::agent::{Agent, AgentSettings, Cli};
use netns_tests::cluster::{APPLIED_WITHIN, Cluster, serve_through_tokyo};
use netns_tests::datagram::{DatagramService, ask_raw, ask_train, ask_udp};
use netns_tests::lab::{Capture, Host, Lab, contains};
use netns_tests::probe::{Feature, require};
use netns_tests::topology::{
    API_PORT, CLIENT, CLIENT_V6, LONDON_WAN, Profile, SERVER, SERVER_DIRECT, SERVER_DIRECT_V6, SERVER_NET,
    SERVER_NET_V6, SERVER_V6, TOKYO_LAN, TOKYO_WAN, TwoSites, at,
};
use netns_tests::vendor::Grant;

const PRODUCT: [Feature; 5] = [Feature::Root, Feature::Veth, Feature::Tun, Feature::NftTproxy, Feature::NftSocket];
const DNS: u16 = 53;
/// For experiments (RFC 3692).
const PROTOCOL: u8 = 253;
const TUNNEL_PORT: u16 = 51840;
const PATIENCE: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(300);
/// Whoever has no such port says so at once.
const TOLD_WITHIN: Duration = Duration::from_secs(1);
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Drift is repaired within this time, and a killed agent's traffic goes direct (dataplane.md §7, §10).
const REPAIRED_WITHIN: Duration = Duration::from_secs(5);
const REVOKED_WITHIN: Duration = Duration::from_secs(1);
const FALL_BACK_WITHIN: Duration = Duration::from_secs(10);
const SECRET: &[u8] = b"nobody on the way reads this line of text";

/// Two sites, a mirror at the server, and a service from london to tokyo.
struct World {
    cluster: Cluster,
    mirrors: Vec<DatagramService>,
    sites: TwoSites,
}

impl World {
    fn new(name: &str) -> World {
        let sites = TwoSites::build(Lab::new(name).unwrap(), Profile::CLEAN, 1).unwrap();
        Self::on(sites)
    }

    fn on(sites: TwoSites) -> World {
        let cluster = Cluster::form(&sites, &Grant::default()).unwrap();
        let addresses = [SERVER, SERVER_V6, SERVER_DIRECT, SERVER_DIRECT_V6];
        let mirror = |ip| DatagramService::udp_mirror(&sites.server, at(ip, DNS)).unwrap();
        let mirrors = addresses.map(mirror).into();
        serve_through_tokyo(&cluster.operator, &[SERVER_NET, SERVER_NET_V6]).unwrap();
        let world = World { cluster, mirrors, sites };
        world.wait_until_tunnelled();
        world
    }

    /// From where the server sees a datagram of the client.
    fn seen_from(&self, server: IpAddr, within: Duration) -> anyhow::Result<IpAddr> {
        ask_udp(&self.sites.client, at(server, DNS), SECRET, within)
    }

    fn wait_until_tunnelled(&self) {
        wait_until(APPLIED_WITHIN, "the tunnel carries both families", || {
            self.seen_from(SERVER, SHORT).is_ok_and(|ip| ip == TOKYO_LAN)
                && self.seen_from(SERVER_V6, SHORT).is_ok_and(|ip| ip == tokyo_lan_v6())
        });
    }
}

fn tokyo_lan_v6() -> IpAddr {
    "fd71:2::1".parse().unwrap()
}

fn wait_until(limit: Duration, what: &str, mut good: impl FnMut() -> bool) -> Duration {
    let started = Instant::now();
    while !good() {
        assert!(started.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(POLL_INTERVAL);
    }
    started.elapsed()
}

fn ping(host: &Host, server: IpAddr) {
    host.sh(&format!("ping -c 3 -i 0.2 -W 5 {server}")).unwrap();
}

/// Whether a datagram to a port meets no port-unreachable.
fn udp_port_is_open(from: &Host, to: IpAddr) -> bool {
    from.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect(at(to, TUNNEL_PORT)).unwrap();
        socket.set_read_timeout(Some(TOLD_WITHIN)).unwrap();
        socket.send(b"probe").unwrap();
        let heard = socket.recv(&mut [0; 64]).unwrap_err();
        heard.kind() != std::io::ErrorKind::ConnectionRefused
    })
}

// accepts: 001-13, 001-19, 001-57
#[test]
fn whatever_is_not_tcp_leaves_from_tokyo_and_crosses_the_wan_sealed_by_51840_alone() {
    if !require(&PRODUCT) {
        return;
    }
    let world = World::new("tunnel");
    let sites = &world.sites;
    let scratch = sites.lab.scratch();
    let _raw = DatagramService::raw_mirror(&sites.server, PROTOCOL).unwrap();
    let capture = Capture::start(&sites.london, "to-tokyo", scratch).unwrap();

    for (server, masqueraded) in [(SERVER, TOKYO_LAN), (SERVER_V6, tokyo_lan_v6())] {
        ping(&sites.client, server);
        assert_eq!(world.seen_from(server, PATIENCE).unwrap(), masqueraded);
        // In fragments both ways, inside the tunnel.
        let large: Vec<u8> = SECRET.iter().copied().cycle().take(9000).collect();
        // Both ends learn by losing one that an IPv6 router does not cut.
        let asked = || ask_udp(&sites.client, at(server, DNS), &large, SHORT).is_ok_and(|ip| ip == masqueraded);
        wait_until(PATIENCE, "a large datagram crosses", asked);
        // Given to the kernel as one, cut by the engine, joined again at the far end.
        let train: Vec<u8> = (0..20 * 900 + 77u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
        ask_train(&sites.client, at(server, DNS), &train, 900, PATIENCE).unwrap();
        // What starts on the source peer itself is carried too.
        assert_eq!(ask_udp(&sites.london, at(server, DNS), SECRET, PATIENCE).unwrap(), masqueraded);
        ping(&sites.london, server);
    }
    assert_eq!(ask_raw(&sites.client, SERVER, PROTOCOL, SECRET, PATIENCE).unwrap(), TOKYO_LAN);
    let seen = capture.stop().unwrap();
    assert!(!contains(&seen, SECRET), "the payload crossed the WAN in clear");
    let count = |filter: &str| -> usize {
        let file = scratch.join("london-to-tokyo.pcap");
        let command = format!("tcpdump -n -r {} '{filter}' 2>/dev/null | wc -l", file.display());
        sites.london.sh(&command).unwrap().trim().parse().unwrap()
    };
    // A train of datagrams counts as one here.
    assert!(count("udp port 51840") > 30);
    let plain = format!("ip proto {PROTOCOL} or icmp or icmp6 and icmp6[0] >= 128 and icmp6[0] < 130");
    assert_eq!(count(&format!("udp and not port 51840 or {plain}")), 0);

    // Both tables show the CIDRs; what no route covers goes its own way.
    for table in ["arctic", "arctic_iptun"] {
        let listed = sites.london.sh(&format!("nft list table inet {table}")).unwrap();
        assert!(listed.contains("ip daddr 10.71.2.0/24") && listed.contains("ip6 daddr fd71:2::/64"), "{listed}");
    }
    assert_eq!(world.seen_from(SERVER_DIRECT, PATIENCE).unwrap(), CLIENT);
    assert_eq!(world.seen_from(SERVER_DIRECT_V6, PATIENCE).unwrap(), CLIENT_V6);
    ping(&sites.client, SERVER_DIRECT);

    // Neither end forwards a packet that is larger than the tunnel takes and may not be cut.
    let too_big = sites.client.sh(&format!("ping -c 2 -i 0.2 -W 1 -M do -s 1450 {SERVER}; true")).unwrap();
    assert!(too_big.contains("mtu = 1420") || too_big.contains("mtu=1420"), "{too_big}");
    let whole = format!("ping -c 1 -W 5 -M do -s 1392 {SERVER}");
    sites.client.sh(&whole).unwrap();
    // A narrower WAN narrows the tunnel; what may be cut is.
    sites.london.ip("link set to-tokyo mtu 1400").unwrap();
    sites.tokyo.ip("link set to-london mtu 1400").unwrap();
    let narrowed = || sites.client.sh(&format!("{whole}; true")).unwrap().contains("1340");
    wait_until(PATIENCE, "the tunnel is as narrow as the WAN", narrowed);
    // Each end sees its own side of the WAN, once a second.
    let large = vec![7; 5000];
    let asked = || ask_udp(&sites.client, at(SERVER, DNS), &large, SHORT).is_ok_and(|ip| ip == TOKYO_LAN);
    wait_until(PATIENCE, "both ends are as narrow", asked);
}

// accepts: 001-12, 001-69, 001-74, 001-75, 002-61
#[test]
fn the_port_is_open_from_the_start_and_the_reconciler_tells_what_it_does() {
    if !require(&PRODUCT) {
        return;
    }
    let mut lab = Lab::new("port").unwrap();
    let (near, far) = (lab.host("near").unwrap(), lab.host("far").unwrap());
    lab.veth(&near, &far, &["10.71.0.1/30"], &["10.71.0.2/30"]).unwrap();
    let unbootstrapped = Agent::start(&far, AgentSettings::new(lab.scratch(), "far")).unwrap();
    assert!(udp_port_is_open(&near, TOKYO_WAN), "before there is a cluster");
    assert!(!udp_port_is_open(&far, LONDON_WAN), "a port without an agent");
    drop((unbootstrapped, lab));

    let sites = TwoSites::build(Lab::new("lines").unwrap(), Profile::CLEAN, 1).unwrap();
    // A host that does not forward begins to for its services, and ends it with them.
    sites.tokyo.sysctl("net/ipv4/ip_forward", "0").unwrap();
    sites.tokyo.sysctl("net/ipv6/conf/all/forwarding", "0").unwrap();
    // A host that is strict about where packets come from is served as well.
    for host in [&sites.london, &sites.tokyo] {
        host.sysctl("net/ipv4/conf/all/rp_filter", "1").unwrap();
    }
    let forwards = |host: &Host| {
        let read = |key: &str| host.sh(&format!("cat /proc/sys/net/{key}")).unwrap();
        (read("ipv4/ip_forward"), read("ipv6/conf/all/forwarding"))
    };
    let world = World::on(sites);
    assert!(udp_port_is_open(&world.sites.client, TOKYO_WAN) && udp_port_is_open(&world.sites.tokyo, LONDON_WAN));
    assert_eq!(forwards(&world.sites.tokyo), ("1\n".into(), "1\n".into()));
    let log = world.cluster.london.log().unwrap();
    let line = |part: &str| log.lines().any(|l| l.contains("component=iptunmgr reconciler=iptun") && l.contains(part));
    assert!(line("started") && line("applied tunnel config: 1 services, 1 peers, by arctic-tun0"), "{log}");

    let services: Vec<serde_json::Value> = world.cluster.operator.json(&["services", "list"]).unwrap();
    let id = services[0]["id"].as_str().unwrap().to_owned();
    world.cluster.operator.ok(&["services", "delete", &id, "--yes"]).unwrap();
    wait_until(APPLIED_WITHIN, "the service is gone from the tunnel", || {
        world.seen_from(SERVER, SHORT).is_err() && {
            let table = |host: &Host| host.sh("nft list table inet arctic_iptun").unwrap();
            let is_gone = !table(&world.sites.tokyo).contains("masquerade");
            is_gone
                && !table(&world.sites.london).contains("mark set")
                && forwards(&world.sites.tokyo) == ("0\n".into(), "0\n".into())
        }
    });
    // Nothing of the device needs to be looked at: no route in the main table, no address but its own.
    let own = "ip route show dev arctic-tun0; ip -o address show dev arctic-tun0 | grep -v ' 251.97.0.0/32 '; true";
    assert_eq!(world.sites.london.sh(own).unwrap(), "");
}

#[test]
fn the_tunnel_is_repaired_survives_a_restart_and_falls_back_when_killed() {
    if !require(&PRODUCT) {
        return;
    }
    let world = World::new("life");
    let tunnelled = || world.seen_from(SERVER, SHORT).is_ok_and(|ip| ip == TOKYO_LAN);
    for (n, edit) in (1..).zip([
        "ip link del arctic-tun0",
        "ip link set arctic-tun0 down",
        "ip route flush table 611",
        "ip rule del pref 10002",
        "nft delete table inet arctic_iptun",
    ]) {
        world.sites.london.sh(edit).unwrap();
        let repaired = || {
            let log = world.cluster.london.log().unwrap();
            log.lines().filter(|l| l.contains("drift.repaired")).count() >= n && tunnelled()
        };
        let took = wait_until(REPAIRED_WITHIN, edit, repaired);
        println!("{edit}: repaired in {took:?}");
    }

    let World { cluster: Cluster { london, tokyo, operator }, mirrors, sites } = world;
    let tokyo_settings = AgentSettings::new(sites.lab.scratch(), "tokyo");
    assert!(tokyo.stop().unwrap().success());
    let _tokyo = Agent::start(&sites.tokyo, tokyo_settings).unwrap();
    let seen = || ask_udp(&sites.client, at(SERVER, DNS), SECRET, SHORT);
    let took = wait_until(PATIENCE, "a restarted exit", || seen().is_ok_and(|ip| ip == TOKYO_LAN));
    println!("tunnelled again {took:?} after the exit's restart");

    london.kill().unwrap();
    let took = wait_until(FALL_BACK_WITHIN, "plain routing", || seen().is_ok_and(|ip| ip == CLIENT));
    println!("plain routing {took:?} after the kill");
    assert!(mirrors[0].asked() > 0);
    drop(operator);
}

#[test]
fn a_route_for_everything_cuts_no_link_and_a_deleted_peer_is_served_no_more() {
    if !require(&PRODUCT) {
        return;
    }
    let world = World::new("untrust");
    // A route that covers the links of the hosts cuts none of them: neighbours find each other as before.
    let services: Vec<serde_json::Value> = world.cluster.operator.json(&["services", "list"]).unwrap();
    let id = services[0]["id"].as_str().unwrap();
    world.cluster.operator.ok(&["routes", "add", "--service", id, "--dest-cidr", "::/0"]).unwrap();
    let covers = || world.sites.london.sh("nft list table inet arctic_iptun").unwrap().contains("ip6 daddr ::/0");
    wait_until(APPLIED_WITHIN, "the route is there", covers);
    for host in world.sites.hosts() {
        host.ip("-6 neigh flush all").unwrap();
    }
    ping(&world.sites.client, "fd71:1::1".parse().unwrap());
    assert_eq!(world.seen_from(SERVER_V6, PATIENCE).unwrap(), tokyo_lan_v6());

    let operator = Cli::new(&world.sites.tokyo, &world.sites.lab.scratch().join("operator")).unwrap();
    let url = format!("http://127.0.0.1:{API_PORT}");
    let peers: Vec<serde_json::Value> = operator.json(&["peers", "list", "--url", &url]).unwrap();
    let london = peers.iter().find(|p| p["is_local"] == false).and_then(|p| p["id"].as_str()).unwrap().to_owned();
    operator.ok(&["peers", "delete", &london, "--yes", "--url", &url]).unwrap();
    let tunnelled = || world.seen_from(SERVER, SHORT).is_ok_and(|ip| ip == TOKYO_LAN);
    wait_until(REVOKED_WITHIN, "no datagram of the client leaves from tokyo", || !tunnelled());
    assert!((0..5).all(|_| !tunnelled()));
}
