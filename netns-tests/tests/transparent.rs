//! Transparent mode: the server sees the client's own address, and the host is afterwards as it was.

// Real time is the subject here.
#![allow(clippy::disallowed_methods)]

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use netns_tests::agent::Agent;
use netns_tests::cluster::{Cluster, wait_for_route};
use netns_tests::interfaces::{PRODUCT, SEEN_WITHIN, World, link, sysctl, wait};
use netns_tests::lab::Host;
use netns_tests::probe::require;
use netns_tests::service::{TcpService, seen_from};
use netns_tests::topology::{self, SERVER_NET, SERVER_NET_V6, TwoSites, at};

const MIRROR_PORT: u16 = 7000;
const FORWARDING: &str = "net/ipv4/ip_forward";
const STRICT: &str = "net/ipv4/conf/to-server/rp_filter";

/// The exit forwards nothing and checks strictly where packets come from, until it must do otherwise.
fn strict(sites: &TwoSites) {
    sites.tokyo.sysctl(FORWARDING, "0").unwrap();
    sites.tokyo.sysctl(STRICT, "1").unwrap();
}

fn settings(tokyo: &Host) -> (String, String) {
    (sysctl(tokyo, FORWARDING).unwrap(), sysctl(tokyo, STRICT).unwrap())
}

fn are(forwarding: &str, strict: &str) -> (String, String) {
    (forwarding.to_owned(), strict.to_owned())
}

/// A transparent service for both of the server's networks; its id.
fn serve(world: &World) -> String {
    let (id, name) = world.serve(&["--fully-transparent", "--desired-ipv4", "10.71.1.50/24"]);
    for net in [SERVER_NET, SERVER_NET_V6] {
        world.cluster.operator.ok(&["routes", "add", "--service", &id, "--dest-cidr", net, "--wait"]).unwrap();
        wait_for_route(&world.sites.london, net).unwrap();
    }
    wait("the interface", SEEN_WITHIN, || link(&world.sites.london, &name).filter(|l| l.contains("10.71.1.50")));
    wait("the settings", SEEN_WITHIN, || (settings(&world.sites.tokyo) == are("1", "2")).then_some(()));
    id
}

// accepts: 002-10
#[test]
fn the_server_sees_the_client_and_the_exit_is_put_back_as_it_was() {
    if !require(&PRODUCT) {
        return;
    }
    let world = World::prepared("transparent", strict);
    let (client, tokyo) = (&world.sites.client, &world.sites.tokyo);
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, MIRROR_PORT));
    let _mirror = TcpService::mirror(&world.sites.server, any).unwrap();
    let seen = |server: IpAddr| seen_from(client, at(server, MIRROR_PORT)).unwrap();
    let id = serve(&world);
    // Several flows at once would need several ports of the client; here they follow each other.
    for (n, (server, own)) in [(topology::SERVER, topology::CLIENT), (topology::SERVER_V6, topology::CLIENT_V6)]
        .repeat(2)
        .into_iter()
        .enumerate()
    {
        assert_eq!(seen(server), own);
        assert_eq!(world.opened(&id), n as u64 + 1, "it went by the service");
    }
    // By the interface too.
    client.route(SERVER_NET, "10.71.1.50").unwrap();
    assert_eq!(seen(topology::SERVER), topology::CLIENT);
    assert_eq!(world.opened(&id), 5);

    world.cluster.operator.ok(&["services", "delete", &id, "--yes"]).unwrap();
    let back = || (settings(tokyo) == are("0", "1")).then_some(());
    wait("the settings as they were", SEEN_WITHIN, back);

    // An agent that was killed knows what was before it; one that stops puts it back.
    serve(&world);
    let World { cluster: Cluster { tokyo: agent, london: _london, .. }, sites } = world;
    let files = netns_tests::agent::AgentSettings::new(sites.lab.scratch(), "tokyo");
    agent.kill().unwrap();
    assert_eq!(settings(&sites.tokyo), are("1", "2"));
    let agent = Agent::start(&sites.tokyo, files).unwrap();
    assert!(agent.stop().unwrap().success());
    assert_eq!(settings(&sites.tokyo), are("0", "1"));
}
