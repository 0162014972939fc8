//! The whole path: client, capture at london, encrypted connection over the ocean, exit at tokyo, server.

// Real time is the subject here.
#![allow(clippy::disallowed_methods)]

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use netns_tests::bulk;
use netns_tests::cluster::{Cluster, serve_through_tokyo, wait_for_route};
use netns_tests::content::Content;
use netns_tests::lab::{Capture, Lab, contains};
use netns_tests::probe::{Feature, require};
use netns_tests::service::{TcpService, seen_from};
use netns_tests::topology::{self, Profile, SERVER_NET, SERVER_NET_V6, TwoSites, at};
use netns_tests::vendor::Grant;

const PRODUCT: [Feature; 5] = [Feature::Root, Feature::Veth, Feature::Tun, Feature::NftTproxy, Feature::NftSocket];
const MIRROR_PORT: u16 = 7000;
const BULK_PORT: u16 = 5001;
const TRANSFER_BYTES: u64 = 3_000_001;
/// Captured destinations fall back to plain routing within this time of the agent's death.
const FALL_BACK_WITHIN: Duration = Duration::from_secs(10);

/// Two sites with a service from london to tokyo that carries both of the server's routed networks.
struct World {
    cluster: Cluster,
    _mirror: TcpService,
    _bulk: TcpService,
    sites: TwoSites,
}

impl World {
    fn new(name: &str) -> World {
        let sites = TwoSites::build(Lab::new(name).unwrap(), Profile::OCEAN, 1).unwrap();
        let cluster = Cluster::form(&sites, &Grant::default()).unwrap();
        let any = |port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let mirror = TcpService::mirror(&sites.server, any(MIRROR_PORT)).unwrap();
        let bulk = bulk::server(&sites.server, any(BULK_PORT)).unwrap();
        World { cluster, _mirror: mirror, _bulk: bulk, sites }
    }

    fn serve(&self) {
        serve_through_tokyo(&self.cluster.operator, &[SERVER_NET, SERVER_NET_V6]).unwrap();
        for net in [SERVER_NET, SERVER_NET_V6] {
            wait_for_route(&self.sites.london, net).unwrap();
        }
    }

    fn seen_from(&self, server: IpAddr) -> anyhow::Result<IpAddr> {
        seen_from(&self.sites.client, at(server, MIRROR_PORT))
    }
}

#[test]
fn routed_destinations_leave_from_tokyo_and_others_go_direct() {
    if !require(&PRODUCT) {
        return;
    }
    let world = World::new("exit");
    world.serve();
    assert_eq!(world.seen_from(topology::SERVER).unwrap(), topology::TOKYO_LAN);
    assert_eq!(world.seen_from(topology::SERVER_V6).unwrap(), "fd71:2::1".parse::<IpAddr>().unwrap());
    assert_eq!(world.seen_from(topology::SERVER_DIRECT).unwrap(), topology::CLIENT);
    assert_eq!(world.seen_from(topology::SERVER_DIRECT_V6).unwrap(), topology::CLIENT_V6);
}

#[test]
fn bytes_arrive_exactly_both_ways_and_never_in_clear() {
    if !require(&PRODUCT) {
        return;
    }
    let world = World::new("exact");
    world.serve();
    let capture = Capture::start(&world.sites.london, "wan-tokyo", world.sites.lab.scratch()).unwrap();
    for server in [topology::SERVER, topology::SERVER_V6] {
        bulk::fetch_exactly(&world.sites.client, at(server, BULK_PORT), 21, TRANSFER_BYTES).unwrap();
        bulk::push_exactly(&world.sites.client, at(server, BULK_PORT), 22, TRANSFER_BYTES).unwrap();
    }
    let seen = capture.stop().unwrap();
    assert!(seen.len() as u64 > 4 * TRANSFER_BYTES, "the transfers did cross the WAN");
    for seed in [21, 22] {
        for piece in Content::bytes(seed, TRANSFER_BYTES as usize).chunks_exact(100_000) {
            assert!(!contains(&seen, &piece[..16]), "payload in clear");
        }
    }
}

#[test]
fn stopped_agent_leaves_the_kernel_as_it_found_it() {
    if !require(&PRODUCT) {
        return;
    }
    let world = World::new("stop");
    world.serve();
    assert!(world.sites.london.kernel_state().unwrap().contains("table inet arctic"));
    let World { cluster: Cluster { london, .. }, sites, _mirror, .. } = world;
    assert!(london.stop().unwrap().success());
    let after = sites.london.kernel_state().unwrap();
    assert!(!after.contains("arctic"), "{after}");
    // A host that never had an agent, with the same job, is what a clean one looks like.
    let policy = |host: &netns_tests::lab::Host| host.sh("ip -4 rule; ip -6 rule").unwrap();
    assert_eq!(policy(&sites.london), policy(&sites.client));
    assert_eq!(seen_from(&sites.client, at(topology::SERVER, MIRROR_PORT)).unwrap(), topology::CLIENT);
}

#[test]
fn killed_agent_lets_captured_destinations_fall_back_to_plain_routing() {
    if !require(&PRODUCT) {
        return;
    }
    let world = World::new("kill");
    world.serve();
    assert_eq!(world.seen_from(topology::SERVER).unwrap(), topology::TOKYO_LAN);
    let World { cluster: Cluster { london, .. }, sites, _mirror, .. } = world;
    london.kill().unwrap();
    let killed = Instant::now();
    loop {
        match seen_from(&sites.client, at(topology::SERVER, MIRROR_PORT)) {
            Ok(seen) => {
                assert_eq!(seen, topology::CLIENT);
                break;
            }
            Err(error) => assert!(killed.elapsed() < FALL_BACK_WITHIN, "no fall back: {error:#}"),
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(killed.elapsed() <= FALL_BACK_WITHIN, "it took {:?}", killed.elapsed());
}
