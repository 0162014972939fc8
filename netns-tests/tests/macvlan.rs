//! Interfaces of services: made, told to neighbours, repaired, removed, and what stands in their way.

// Real time is the subject here.
#![allow(clippy::disallowed_methods)]

use std::time::{Duration, Instant};

use netns_tests::cluster::Cluster;
use netns_tests::lab::{Host, Lab};
use netns_tests::probe::{Feature, require};
use netns_tests::topology::{Profile, TwoSites};
use netns_tests::vendor::Grant;
use serde_json::Value;

const PRODUCT: [Feature; 5] = [Feature::Root, Feature::Veth, Feature::Macvlan, Feature::NftTproxy, Feature::NftSocket];
/// dataplane.md §7.
const REPAIRED_WITHIN: Duration = Duration::from_secs(5);
const SEEN_WITHIN: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

struct World {
    cluster: Cluster,
    sites: TwoSites,
}

impl World {
    fn new(name: &str) -> World {
        let sites = TwoSites::build(Lab::new(name).unwrap(), Profile::CLEAN, 1).unwrap();
        World { cluster: Cluster::form(&sites, &Grant::default()).unwrap(), sites }
    }

    /// A service from london to tokyo with an interface; its id and the name of that.
    fn serve(&self, more: &[&str]) -> (String, String) {
        let base = ["services", "create", "--target-peer", "tokyo", "--requires-interface"];
        let made: Value = self.cluster.operator.json(&[&base[..], more].concat()).unwrap();
        let id = made["id"].as_str().unwrap().to_owned();
        let name = id[..15].to_owned();
        assert_eq!(made["interface_name"], name);
        (id, name)
    }

    fn service(&self, id: &str) -> Value {
        self.cluster.operator.json(&["services", "get", id]).unwrap()
    }

    fn condition(&self, id: &str) -> Value {
        let service = self.service(id);
        let conditions = service["conditions"].as_array().unwrap().clone();
        conditions.into_iter().find(|c| c["reconciler"] == "network").unwrap_or(Value::Null)
    }

    /// Lines of the agent in london, as `journalctl -u arctic | grep <word>` shows them.
    fn journal(&self, word: &str) -> Vec<String> {
        self.cluster.london.log().unwrap().lines().filter(|l| l.contains(word)).map(str::to_owned).collect()
    }
}

/// Waits until `seen` answers something; how long that took.
fn wait<T>(what: &str, within: Duration, seen: impl Fn() -> Option<T>) -> (T, Duration) {
    let started = Instant::now();
    loop {
        if let Some(found) = seen() {
            return (found, started.elapsed());
        }
        assert!(started.elapsed() < within, "never: {what}");
        std::thread::sleep(POLL_INTERVAL);
    }
}

fn link(host: &Host, name: &str) -> Option<String> {
    host.ip(&format!("-d address show dev {name}")).ok()
}

fn mac_of_neighbour(host: &Host, address: &str) -> Option<String> {
    let shown = host.ip(&format!("neigh show {address}")).unwrap();
    let mut words = shown.split_whitespace().skip_while(|word| *word != "lladdr");
    words.nth(1).map(str::to_owned)
}

// accepts: 001-23, 001-24, 001-64, 002-59, 002-70
#[test]
fn an_interface_is_made_repaired_announced_and_removed_with_its_service() {
    if !require(&PRODUCT) {
        return;
    }
    let world = World::new("macvlan");
    let (london, client) = (&world.sites.london, &world.sites.client);
    let (id, name) = world.serve(&["--desired-ipv4", "10.71.1.50/24", "--desired-ipv6", "fd71:1::50/64"]);
    let complete = || link(london, &name).filter(|shown| shown.contains("fd71:1::50/64"));
    let (shown, took) = wait("the interface", SEEN_WITHIN, complete);
    println!("made in {took:?}:\n{shown}");
    assert!(shown.contains("macvlan mode bridge") && shown.contains(&format!("alias arctic:{id}")), "{shown}");
    assert!(shown.contains("10.71.1.50/24") && shown.contains(&format!("{name}@to-client")), "{shown}");
    assert!(london.ip("link show").unwrap().contains(&name) && london.ip("addr show").unwrap().contains("10.71.1.50"));
    let (mac, _) = wait("the facts", SEEN_WITHIN, || world.service(&id)["interface_mac"].as_str().map(str::to_owned));
    assert!(shown.contains(&format!("link/ether {mac}")), "{mac}");
    let service = world.service(&id);
    assert_eq!(
        (&service["interface_ipv4_cidr"], &service["interface_ipv6_cidr"]),
        (&"10.71.1.50/24".into(), &"fd71:1::50/64".into())
    );
    assert_eq!(world.condition(&id)["status"], "applied");
    client.sh("ping -c1 -W2 10.71.1.50 && ping -c1 -W2 fd71:1::50").unwrap();

    // Neighbours that knew another MAC learn ours.
    for (address, stale) in [("10.71.1.50", "02:00:00:00:00:99"), ("fd71:1::50", "02:00:00:00:00:98")] {
        client.ip(&format!("neigh replace {address} lladdr {stale} dev to-london nud stale")).unwrap();
    }
    london.ip(&format!("link delete {name}")).unwrap();
    let (_, took) = wait("the repair", REPAIRED_WITHIN, complete);
    println!("repaired in {took:?}");
    for address in ["10.71.1.50", "fd71:1::50"] {
        let learned = || mac_of_neighbour(client, address).filter(|found| *found == mac);
        let (_, took) = wait("the announcement", Duration::from_secs(1), learned);
        println!("{address} announced in {took:?}");
    }
    wait("the event", SEEN_WITHIN, || {
        world.journal("drift.repaired").into_iter().find(|l| l.contains("reconciler=network"))
    });

    // A left-over that bears our alias goes; so does an interface that is deleted by hand together with its service.
    london.ip("link add link to-client name leftover type macvlan mode bridge").unwrap();
    london.ip("link set leftover alias arctic:svc_01ARZ3NDEKTSV4RRFFQ69G5FAV").unwrap();
    wait("the left-over's end", SEEN_WITHIN, || link(london, "leftover").is_none().then_some(()));
    world.cluster.operator.ok(&["services", "delete", &id, "--yes"]).unwrap();
    let _ = london.ip(&format!("link delete {name}"));
    world.cluster.operator.ok(&["cluster", "sync"]).unwrap();
    let nothing = || {
        let state = london.kernel_state().unwrap();
        (!state.contains(&name) && !state.contains(&id) && !state.contains("10.71.1.50")).then_some(())
    };
    wait("nothing left", SEEN_WITHIN, nothing);
    std::thread::sleep(Duration::from_secs(1));
    assert!(nothing().is_some(), "it stays away");

    // A clean stop removes what is left of ours.
    let (_, name) = world.serve(&["--desired-ipv4", "10.71.1.51/24"]);
    wait("the interface", SEEN_WITHIN, || link(london, &name));
    let World { cluster: Cluster { london: agent, .. }, sites } = world;
    assert!(agent.stop().unwrap().success());
    assert!(link(&sites.london, &name).is_none());
}

// accepts: 001-25, 001-26, 001-28, 002-24
#[test]
fn what_stands_in_the_way_is_skipped_with_its_reason_until_it_is_gone() {
    if !require(&PRODUCT) {
        return;
    }
    let world = World::new("obstacles");
    let london = &world.sites.london;
    for family in ["-4", "-6"] {
        london.ip(&format!("{family} route del default")).unwrap();
    }
    let (id, name) = world.serve(&["--desired-ipv4", "172.31.7.1/24"]);
    let has = |reason: &'static str| {
        let (world, id) = (&world, &id);
        move || Some(world.condition(id)).filter(|c| c["reason"] == reason)
    };
    let (condition, _) = wait("no parent", SEEN_WITHIN, has("NO_PARENT"));
    assert_eq!(condition["status"], "failed");
    assert!(link(london, &name).is_none());
    assert_eq!(world.service(&id)["interface_ipv4_cidr"], Value::Null);
    let said = world.journal("reconciler=network");
    assert!(said.iter().any(|l| l.contains(&id) && l.contains("PARENT_INTERFACE")), "{said:?}");

    // A device of somebody else with the name.
    london.ip(&format!("link add {name} type bridge")).unwrap();
    let before = london.ip(&format!("-d link show {name}")).unwrap();
    london.route("default", "10.71.0.2").unwrap();
    wait("the name is taken", SEEN_WITHIN, has("NAME_TAKEN"));
    assert_eq!(london.ip(&format!("-d link show {name}")).unwrap(), before);
    let said = world.journal("netmgr");
    assert!(said.iter().any(|l| l.contains(&id) && l.contains("another device")), "{said:?}");
    london.ip(&format!("link delete {name}")).unwrap();
    let complete = || link(london, &name).filter(|shown| shown.contains("172.31.7.1/24"));
    let (shown, took) = wait("the interface", SEEN_WITHIN, complete);
    println!("made {took:?} after the other device went");
    assert!(shown.contains("@to-tokyo"), "the default route's: {shown}");

    // An address that the host has already, and one that another service has.
    for taken in ["10.71.1.1/24", "172.31.7.1/24"] {
        let (second, name) = world.serve(&["--desired-ipv4", taken]);
        let in_use = || Some(world.condition(&second)).filter(|c| c["reason"] == "ADDRESS_IN_USE");
        wait("the address is in use", SEEN_WITHIN, in_use);
        assert!(link(london, &name).is_none());
    }
}
