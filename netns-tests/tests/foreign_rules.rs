//! Beside the rule sets that hosts have already: what is carried past them, what an operator must open for it, and that
//! nobody's tables are touched (dataplane.md §7).

// Real time is the subject here.
#![allow(clippy::disallowed_methods)]

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use netns_tests::datagram::ask_udp;
use netns_tests::lab::{Host, Lab};
use netns_tests::probe::require;
use netns_tests::service::{TcpService, seen_from, seen_from_within};
use netns_tests::topology::{
    CLIENT, LONDON_LAN, Profile, SERVER, SERVER_DIRECT, SERVER_DIRECT_V6, SERVER_V6, TwoSites, at,
};
use netns_tests::world::{ANSWERED, DNS, MIRROR_PORT, PATIENCE, PRODUCT, SHORT, World, exit_towards};

/// As container engines write them by iptables: published ports, masquerade, nothing forwarded but for containers. The
/// chain `DOCKER-USER` is the operator's.
const CONTAINERS: &str = r#"
table ip nat {
    chain DOCKER {
        iifname "docker0" counter return
        iifname != "docker0" tcp dport 8081 counter dnat to 172.17.0.2:7000
    }
    chain PREROUTING {
        type nat hook prerouting priority dstnat; policy accept;
        fib daddr type local counter jump DOCKER
    }
    chain OUTPUT {
        type nat hook output priority -100; policy accept;
        ip daddr != 127.0.0.0/8 fib daddr type local counter jump DOCKER
    }
    chain POSTROUTING {
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr 172.17.0.0/16 oifname != "docker0" counter masquerade
    }
}
table ip filter {
    chain DOCKER {
        iifname != "docker0" oifname "docker0" ip daddr 172.17.0.2 tcp dport 7000 counter accept
        iifname != "docker0" oifname "docker0" counter drop
    }
    chain DOCKER-ISOLATION {
        iifname "docker0" oifname != "docker0" counter return
        counter return
    }
    chain DOCKER-USER {
        iifname "arctic-tun*" counter accept
        oifname "arctic-tun*" counter accept
    }
    chain FORWARD {
        type filter hook forward priority filter; policy drop;
        counter jump DOCKER-USER
        counter jump DOCKER-ISOLATION
        oifname "docker0" ct state related,established counter accept
        oifname "docker0" counter jump DOCKER
        iifname "docker0" counter accept
    }
}
"#;

/// As a firewall with zones writes them; the chains `..._allow` are the operator's.
/// Where IPv6 packets come from is checked as by `IPv6_rpfilter=loose-forward`.
const ZONES: &str = r#"
table inet firewalld {
    chain mangle_PREROUTING {
        type filter hook prerouting priority mangle + 10; policy accept;
        jump mangle_PREROUTING_ZONES
    }
    chain mangle_PREROUTING_ZONES {
        iifname "to-client" return
        ct mark & 0x000000ff == 0x00000001 meta mark set meta mark & 0xffffff00 ^ 0x00000001
    }
    chain nat_PREROUTING {
        type nat hook prerouting priority dstnat + 10; policy accept;
        tcp dport 2222 redirect to :22
    }
    chain nat_POSTROUTING {
        type nat hook postrouting priority srcnat + 10; policy accept;
        ip saddr 192.168.50.0/24 oifname != "lo" masquerade
    }
    chain nat_OUTPUT {
        type nat hook output priority -90; policy accept;
    }
    chain filter_PREROUTING {
        type filter hook prerouting priority filter + 10; policy accept;
        icmpv6 type { nd-router-advert, nd-neighbor-solicit } accept
    }
    chain filter_INPUT {
        type filter hook input priority filter + 10; policy accept;
        ct state { established, related } accept
        ct status dnat accept
        iifname "lo" accept
        ct state invalid drop
        jump filter_INPUT_ZONES
        reject with icmpx admin-prohibited
    }
    chain filter_INPUT_ZONES {
        iifname "to-client" goto filter_IN_internal
        goto filter_IN_public
    }
    chain filter_IN_internal {
        jump filter_IN_internal_allow
        meta l4proto { icmp, ipv6-icmp } accept
        tcp dport 22 accept
    }
    chain filter_IN_internal_allow {
        meta mark & 0xfff00000 != 0x00000000 accept
    }
    chain filter_IN_public {
        meta l4proto { icmp, ipv6-icmp } accept
        tcp dport { 22, 8080, 61000 } accept
        udp dport { 51840, 61000 } accept
    }
    chain filter_FORWARD {
        type filter hook forward priority filter + 10; policy accept;
        ct state { established, related } accept
        ct status dnat accept
        iifname "lo" accept
        ct state invalid drop
        meta nfproto ipv6 fib saddr . mark oif missing drop
        jump filter_FORWARD_allow
        reject with icmpx admin-prohibited
    }
    chain filter_FORWARD_allow {
        iifname "arctic-tun*" accept
        oifname "arctic-tun*" accept
    }
    chain filter_OUTPUT {
        type filter hook output priority filter + 10; policy accept;
        ct state { established, related } accept
        oifname "lo" accept
    }
}
"#;

/// As a firewall with a default of drop writes them by iptables; the chains `ufw-user-...` are the operator's.
const DROPPING: &str = r#"
table ip filter {
    chain ufw-not-local {
        fib daddr type local counter return
        fib daddr type multicast counter return
        fib daddr type broadcast counter return
        counter drop
    }
    chain ufw-before-input {
        iifname "lo" counter accept
        ct state related,established counter accept
        ct state invalid counter drop
        meta l4proto icmp counter accept
        udp sport 67 udp dport 68 counter accept
        counter jump ufw-user-first
        counter jump ufw-not-local
        counter jump ufw-user-input
    }
    chain ufw-user-first {
        meta mark & 0xfff00000 != 0x00000000 counter accept
    }
    chain ufw-user-input {
        tcp dport { 22, 8080, 61000 } counter accept
        udp dport { 51840, 61000 } counter accept
    }
    chain ufw-user-forward {
        iifname "arctic-tun*" counter accept
        oifname "arctic-tun*" counter accept
    }
    chain INPUT {
        type filter hook input priority filter; policy drop;
        counter jump ufw-before-input
    }
    chain FORWARD {
        type filter hook forward priority filter; policy drop;
        ct state related,established counter accept
        counter jump ufw-user-forward
    }
    chain OUTPUT {
        type filter hook output priority filter; policy accept;
        oifname "lo" counter accept
        ct state related,established counter accept
    }
}
table ip6 filter {
    chain ufw6-before-input {
        iifname "lo" counter accept
        rt type 0 counter drop
        ct state related,established counter accept
        meta l4proto ipv6-icmp counter accept
        ct state invalid counter drop
        counter jump ufw6-user-input
    }
    chain ufw6-user-input {
        meta mark & 0xfff00000 != 0x00000000 counter accept
        tcp dport { 22, 8080, 61000 } counter accept
        udp dport { 51840, 61000 } counter accept
    }
    chain ufw6-user-forward {
        iifname "arctic-tun*" counter accept
        oifname "arctic-tun*" counter accept
    }
    chain INPUT {
        type filter hook input priority filter; policy drop;
        counter jump ufw6-before-input
    }
    chain FORWARD {
        type filter hook forward priority filter; policy drop;
        ct state related,established counter accept
        counter jump ufw6-user-forward
    }
    chain OUTPUT {
        type filter hook output priority filter; policy accept;
    }
}
"#;

/// Puts the rules into both agents' hosts, where there are no others.
fn load(sites: &TwoSites, rules: &str) {
    for host in [&sites.london, &sites.tokyo] {
        host.sh(&format!("nft -f - <<'RULES'\nflush ruleset\n{rules}\nRULES")).unwrap();
    }
}

/// All tables that are not the agent's.
fn foreign(host: &Host) -> String {
    host.sh("nft -s list ruleset | sed '/^table inet arctic {/,/^}/d; /^table inet arctic_iptun {/,/^}/d'").unwrap()
}

/// The rules in both agents' hosts, then the agents, and everything carried; `opened` is what the operator opened, and
/// `closed` looks at the world without that. The tables are the same all the time.
fn beside(
    name: &str,
    rules: &str,
    prepare: impl FnOnce(&mut Lab) -> Option<Host>,
    check: impl FnOnce(&World, Option<&Host>),
) {
    let mut lab = Lab::new(name).unwrap();
    let guest = prepare(&mut lab);
    let sites = TwoSites::build(lab, Profile::CLEAN, 1).unwrap();
    if let Some(guest) = &guest {
        sites.lab.veth(&sites.london, guest, &[], &["172.17.0.2/16"]).unwrap();
        let bridge = "ip link set to-guest down && ip link set to-guest name docker0 && \
                      ip address add 172.17.0.1/16 dev docker0 && ip link set docker0 up";
        sites.london.sh(bridge).unwrap();
        guest.route("default", "172.17.0.1").unwrap();
    }
    load(&sites, rules);
    let before = [&sites.london, &sites.tokyo].map(foreign);
    assert!(before[0].contains("hook prerouting") || before[0].contains("hook input"), "{}", before[0]);
    let world = World::on(sites);
    let took = world.wait_until_carried(PATIENCE);
    println!("{name}: everything was carried after {took:?}");
    assert_eq!([&world.sites.london, &world.sites.tokyo].map(foreign), before, "while they run");
    check(&world, guest.as_ref());
    let World { cluster, sites, .. } = world;
    load(&sites, rules);
    assert!(cluster.london.stop().unwrap().success() && cluster.tokyo.stop().unwrap().success());
    assert_eq!([&sites.london, &sites.tokyo].map(foreign), before, "after their stop");
    assert!(!sites.london.sh("nft list tables").unwrap().contains("arctic"));
}

/// It leaves from the service's exit.
#[track_caller]
fn carries_tcp(from: &Host, server: IpAddr) {
    assert_eq!(seen_from_within(from, at(server, MIRROR_PORT), ANSWERED).unwrap(), exit_towards(server));
}

#[track_caller]
fn carries_udp(from: &Host, server: IpAddr) {
    assert_eq!(ask_udp(from, at(server, DNS), b"who asks", ANSWERED).unwrap(), exit_towards(server));
}

#[track_caller]
fn refuses_tcp(from: &Host, server: IpAddr) {
    let seen = seen_from_within(from, at(server, MIRROR_PORT), SHORT);
    assert!(seen.is_err(), "{server} was reached: {seen:?}");
}

#[track_caller]
fn refuses_udp(from: &Host, server: IpAddr) {
    let seen = ask_udp(from, at(server, DNS), b"who asks", SHORT);
    assert!(seen.is_err(), "{server} was reached: {seen:?}");
}

#[test]
fn beside_the_rules_of_a_container_engine() {
    if !require(&PRODUCT) {
        return;
    }
    beside(
        "containers",
        CONTAINERS,
        |lab| Some(lab.host("guest").unwrap()),
        |world, guest| {
            let (client, london, guest) = (&world.sites.client, &world.sites.london, guest.unwrap());
            // Of a container too, and its published port is reached though a route covers everything.
            world.route("0.0.0.0/0");
            for server in [SERVER, SERVER_DIRECT] {
                carries_tcp(guest, server);
                carries_udp(guest, server);
            }
            let _web = TcpService::mirror(guest, SocketAddr::from((Ipv6Addr::UNSPECIFIED, MIRROR_PORT))).unwrap();
            assert_eq!(seen_from(client, at(LONDON_LAN, 8081)).unwrap(), CLIENT);

            // Forwarding is the operator's to allow: without it the tunnel has nothing of the client, and TCP needs none.
            london.sh("nft flush chain ip filter DOCKER-USER").unwrap();
            refuses_udp(client, SERVER);
            carries_udp(london, SERVER);
            carries_tcp(client, SERVER);
            carries_tcp(client, SERVER_DIRECT);
            let dropped = london.sh("nft list chain ip filter FORWARD").unwrap();
            assert!(dropped.contains("policy drop"));
        },
    );
}

#[test]
fn beside_the_rules_of_a_firewall_with_zones() {
    if !require(&PRODUCT) {
        return;
    }
    beside(
        "zones",
        ZONES,
        |_| None,
        |world, _| {
            let (client, london) = (&world.sites.client, &world.sites.london);
            // The strict check looks the way back up by the mark of the packet, which leads to this host or to the tunnel: it
            // forbids what enters from elsewhere by IPv6.
            let strict = "meta nfproto ipv6 fib saddr . mark . iif oif missing counter drop";
            london.sh(&format!("nft add rule inet firewalld filter_PREROUTING {strict}")).unwrap();
            for server in [SERVER_V6, SERVER_DIRECT_V6] {
                refuses_tcp(client, server);
                refuses_udp(client, server);
            }
            carries_tcp(client, SERVER);
            let counted = london.sh("nft list chain inet firewalld filter_PREROUTING").unwrap();
            assert!(!counted.contains("packets 0 "), "{counted}");
            london.sh("nft flush chain inet firewalld filter_PREROUTING").unwrap();

            // A captured connection is delivered here, with its own destination: the zone's input decides about it.
            london.sh("nft flush chain inet firewalld filter_IN_internal_allow").unwrap();
            for server in [SERVER, SERVER_V6, SERVER_DIRECT, SERVER_DIRECT_V6] {
                refuses_tcp(client, server);
                carries_tcp(london, server);
            }
            london.sh("nft flush chain inet firewalld filter_FORWARD_allow").unwrap();
            refuses_udp(client, SERVER);
            carries_udp(london, SERVER);
        },
    );
}

#[test]
fn beside_the_rules_of_a_firewall_that_drops_what_it_does_not_know() {
    if !require(&PRODUCT) {
        return;
    }
    beside(
        "dropping",
        DROPPING,
        |_| None,
        |world, _| {
            let (client, london) = (&world.sites.client, &world.sites.london);
            london.sh("nft flush chain ip filter ufw-user-first").unwrap();
            refuses_tcp(client, SERVER);
            carries_tcp(london, SERVER);
            // The tunnel is another way.
            carries_udp(client, SERVER);
            london.sh("nft flush chain ip filter ufw-user-forward").unwrap();
            refuses_udp(client, SERVER);
        },
    );
}
