//! The IP tunnel on the real kernel: whatever is not TCP, between two agents (dataplane.md §3, §7, §10).

// Real time is the subject here.
#![allow(clippy::disallowed_methods)]

use std::net::IpAddr;

use netns_tests::cluster::{Cluster, serve_through_tokyo, wait_for_table};
use netns_tests::lab::Lab;
use netns_tests::probe::{Feature, require};
use netns_tests::topology::{self, Profile, SERVER_NET, SERVER_NET_V6, TwoSites};
use netns_tests::vendor::Grant;

const PRODUCT: [Feature; 5] = [Feature::Root, Feature::Veth, Feature::Tun, Feature::NftTproxy, Feature::NftSocket];

struct World {
    cluster: Cluster,
    sites: TwoSites,
}

impl World {
    fn new(name: &str) -> World {
        let sites = TwoSites::build(Lab::new(name).unwrap(), Profile::CLEAN, 1).unwrap();
        let cluster = Cluster::form(&sites, &Grant::default()).unwrap();
        serve_through_tokyo(&cluster.operator, &[SERVER_NET, SERVER_NET_V6]).unwrap();
        wait_for_table(&sites.london, SERVER_NET_V6).unwrap();
        World { cluster, sites }
    }

    fn ping(&self, server: IpAddr) -> anyhow::Result<String> {
        self.sites.client.sh(&format!("ping -c 3 -i 0.2 -W 5 {server}"))
    }
}

#[test]
fn ping() {
    if !require(&PRODUCT) {
        return;
    }
    let world = World::new("tunping");
    std::thread::sleep(std::time::Duration::from_secs(3));
    println!(
        "{}",
        world
            .sites
            .london
            .sh("ip -d link show; ip rule; ip route show table 611; ip -6 rule; nft list table inet arctic_iptun")
            .unwrap()
    );
    println!("{}", world.sites.tokyo.sh("nft list table inet arctic_iptun; sysctl net.ipv4.ip_forward").unwrap());
    for server in [topology::SERVER, topology::SERVER_V6] {
        println!("{:?}", world.ping(server));
    }
    println!(
        "{}",
        world.cluster.london.log().unwrap().lines().filter(|l| l.contains("tun")).collect::<Vec<_>>().join("\n")
    );
    println!(
        "{}",
        world.cluster.tokyo.log().unwrap().lines().filter(|l| l.contains("tun")).collect::<Vec<_>>().join("\n")
    );
}
