//! Interfaces of services: made, told to neighbours, repaired, removed, and what stands in their way.

// Real time is the subject here.
#![allow(clippy::disallowed_methods)]

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use netns_tests::agent::http_get;
use netns_tests::cluster::Cluster;
use netns_tests::interfaces::{PRODUCT, SEEN_WITHIN, World, link, sysctl, wait};
use netns_tests::lab::Host;
use netns_tests::probe::require;
use netns_tests::service::{TcpService, seen_from};
use netns_tests::topology::{self, SERVER_NET, at};
use serde_json::Value;

/// dataplane.md §7.
const REPAIRED_WITHIN: Duration = Duration::from_secs(5);
/// A neighbour would ask again by itself only after half a minute.
const ANNOUNCED_WITHIN: Duration = Duration::from_secs(5);
const MIRROR_PORT: u16 = 7000;
const PARENT_ARP: &str = "net/ipv4/conf/to-client/arp_ignore";

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
    wait("it is applied", SEEN_WITHIN, || (world.condition(&id)["status"] == "applied").then_some(()));
    let answers = || client.sh("ping -c1 -W2 10.71.1.50 && ping -c1 -W2 fd71:1::50").ok();
    wait("its addresses answer", SEEN_WITHIN, answers);

    // Neighbours that knew another MAC learn ours.
    for (address, stale) in [("10.71.1.50", "02:00:00:00:00:99"), ("fd71:1::50", "02:00:00:00:00:98")] {
        client.ip(&format!("neigh replace {address} lladdr {stale} dev to-london nud stale")).unwrap();
    }
    london.ip(&format!("link delete {name}")).unwrap();
    let (_, took) = wait("the repair", REPAIRED_WITHIN, complete);
    println!("repaired in {took:?}");
    for address in ["10.71.1.50", "fd71:1::50"] {
        let learned = || mac_of_neighbour(client, address).filter(|found| *found == mac);
        let (_, took) = wait("the announcement", ANNOUNCED_WITHIN, learned);
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

// accepts: 001-25, 001-26, 001-28, 001-69, 002-24
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
    for reconciler in ["network", "firewall", "tproxy", "iptun"] {
        assert!(!world.journal(&format!("reconciler={reconciler}")).is_empty(), "{reconciler}");
    }
    let (status, body) = http_get(london, at(topology::LONDON_WAN, topology::API_PORT), "/readyz").unwrap();
    assert_eq!(status, 200, "a service that is skipped does not make the agent unready: {body}");
    assert!(body.contains("{\"name\":\"network\",\"status\":\"ok\""), "{body}");

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

#[test]
fn what_enters_by_the_interface_is_of_its_service_before_any_other() {
    if !require(&PRODUCT) {
        return;
    }
    let world = World::new("tier1");
    let (london, client) = (&world.sites.london, &world.sites.client);
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, MIRROR_PORT));
    let _mirror = TcpService::mirror(&world.sites.server, any).unwrap();
    let (whole, name) = world.serve(&["--desired-ipv4", "10.71.1.50/24", "--desired-ipv6", "fd71:1::50/64", "--wait"]);
    let rules = || london.sh("nft list table inet arctic").ok().filter(|t| t.contains(&format!("iifname \"{name}\"")));
    wait("its rules", SEEN_WITHIN, rules);
    let (shown, _) = wait("the interface", SEEN_WITHIN, || link(london, &name).filter(|l| l.contains("fd71:1::50")));
    wait("the parent's setting", SEEN_WITHIN, || (sysctl(london, PARENT_ARP).unwrap() == "1").then_some(()));

    // The server's networks lie behind the interface, its other ones behind the host.
    client.route(SERVER_NET, "10.71.1.50").unwrap();
    client.route("fd71:2::/64", "fd71:1::50").unwrap();
    let seen = |server: IpAddr| seen_from(client, at(server, MIRROR_PORT)).unwrap();
    assert_eq!(seen(topology::SERVER), topology::TOKYO_LAN);
    assert_eq!(seen(topology::SERVER_V6), "fd71:2::1".parse::<IpAddr>().unwrap());
    assert_eq!(seen(topology::SERVER_DIRECT), topology::CLIENT);
    assert_eq!(seen(topology::SERVER_DIRECT_V6), topology::CLIENT_V6);
    assert_eq!(world.opened(&whole), 2);
    let neighbour = mac_of_neighbour(client, "10.71.1.50").unwrap();
    assert!(shown.contains(&neighbour), "the parent answered for the interface: {neighbour}");

    // Another service's route names the same destinations more exactly; a third has an interface and that route too.
    let operator = &world.cluster.operator;
    let plain: Value = operator.json(&["services", "create", "--target-peer", "tokyo"]).unwrap();
    let plain = plain["id"].as_str().unwrap();
    let exact = |service: &str| {
        let route = ["routes", "add", "--service", service, "--source-cidr", "10.71.1.2/32", "--wait", "--dest-cidr"];
        operator.ok(&[&route[..], &["10.71.2.2/32"]].concat()).unwrap();
        wait("the rule", SEEN_WITHIN, || rules().filter(|t| t.contains(service)));
    };
    exact(plain);
    seen(topology::SERVER);
    assert_eq!((world.opened(&whole), world.opened(plain)), (3, 0), "it enters by the interface");
    client.ip(&format!("route replace {SERVER_NET} via 10.71.1.1")).unwrap();
    seen(topology::SERVER);
    assert_eq!((world.opened(&whole), world.opened(plain)), (3, 1), "it enters by the host");
    let told: Value = operator
        .json(&["routes", "explain", "--src", "10.71.1.2", "--dst", "10.71.2.2", "--dport", "80", "--iface", &name])
        .unwrap();
    assert_eq!(told["service_id"], whole.as_str(), "{told}");

    operator.ok(&["services", "delete", &whole, "--yes"]).unwrap();
    let restored = || (sysctl(london, PARENT_ARP).unwrap() == "0").then_some(());
    wait("the parent's setting", SEEN_WITHIN, restored);
}

// accepts: 001-23
#[test]
fn an_address_is_leased_renewed_given_back_and_found_again_after_the_interface() {
    if !require(&PRODUCT) {
        return;
    }
    let world = World::new("dhcp");
    let (london, tokyo) = (&world.sites.london, &world.sites.tokyo);
    let (id, name) = world.serve(&[]);
    let waiting = || Some(world.condition(&id)).filter(|c| c["reason"] == "NO_ADDRESS" && c["status"] == "pending");
    wait("no address", SEEN_WITHIN, waiting);
    assert_eq!(world.service(&id)["interface_ipv4_cidr"], Value::Null);
    assert!(link(london, &name).unwrap().contains("@to-tokyo"), "the default route's");

    // A server on the parent's link, whose leases are renewed after 5 s (T1). An answer that is lost with a link is asked
    // for again after 12 s (T2), not after half of the usual time.
    tokyo.ip("address add 10.77.0.1/24 dev to-london").unwrap();
    let scratch = world.sites.lab.scratch();
    let log = scratch.join("dnsmasq.log");
    let mut server = tokyo.command("dnsmasq");
    server
        .args(["--conf-file=/dev/null", "--keep-in-foreground", "--port=0", "--interface=to-london", "--log-dhcp"])
        .args([
            "--bind-interfaces",
            "--dhcp-range=10.77.0.100,10.77.0.150,255.255.255.0,2m",
            "--dhcp-option=58,5",
            "--dhcp-option=59,12",
        ])
        .args(["--user=root", "--dhcp-authoritative"])
        // Never a device: dnsmasq removes the file of that name first.
        .arg(format!("--pid-file={}", scratch.join("dnsmasq.pid").display()))
        .arg(format!("--dhcp-leasefile={}", scratch.join("leases").display()))
        .arg(format!("--log-facility={}", log.display()));
    let _server = tokyo.spawn(server).unwrap();
    let times = |word: &str| std::fs::read_to_string(&log).unwrap_or_default().matches(word).count();
    let leased = || {
        let shown = link(london, &name)?;
        let at = shown.find("inet 10.77.0.1")?;
        Some(shown[at + 5..].split(' ').next()?.to_owned())
    };
    // The client has been asking for a while, and pauses for up to 17 s.
    let (address, took) = wait("the lease", Duration::from_secs(40), leased);
    println!("{address} leased in {took:?}");
    assert!(address.ends_with("/24"));
    wait("its report", SEEN_WITHIN, || (world.service(&id)["interface_ipv4_cidr"] == *address).then_some(()));
    wait("it is applied", SEEN_WITHIN, || (world.condition(&id)["status"] == "applied").then_some(()));
    let acks = times("DHCPACK");
    wait("the renewal", SEEN_WITHIN, || (times("DHCPACK") > acks).then_some(()));

    london.ip(&format!("link delete {name}")).unwrap();
    let (_, took) = wait("the repair", REPAIRED_WITHIN, || leased().filter(|again| *again == address));
    println!("back with its lease in {took:?}");
    let acks = times("DHCPACK");
    wait("a renewal by the new link", SEEN_WITHIN, || (times("DHCPACK") > acks).then_some(()));

    world.cluster.operator.ok(&["services", "delete", &id, "--yes"]).unwrap();
    wait("the release", SEEN_WITHIN, || (times("DHCPRELEASE") == 1).then_some(()));
    wait("the interface's end", SEEN_WITHIN, || link(london, &name).is_none().then_some(()));
}
