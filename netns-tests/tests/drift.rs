//! What others do to the agents' state in the kernel is repaired within 5 s, and told (dataplane.md §7).

// Real time is the subject here.
#![allow(clippy::disallowed_methods)]

use std::time::Duration;

use anyhow::ensure;
use netns_tests::agent::Agent;
use netns_tests::interfaces::{PRODUCT, link};
use netns_tests::lab::Host;
use netns_tests::probe::require;
use netns_tests::topology::Profile;
use netns_tests::world::{PATIENCE, World, is_carried, wait};

const REPAIRED_WITHIN: Duration = Duration::from_secs(5);

fn repairs(agent: &Agent) -> usize {
    agent.log().unwrap().lines().filter(|l| l.contains("\"event\":\"drift.repaired\"")).count()
}

/// Tables, policy and settings, without what changes by itself: times, indices, link-local addresses.
fn state(host: &Host, interface: &str) -> String {
    let settings = "ipv4/ip_forward ipv6/conf/all/forwarding ipv4/conf/to-client/arp_ignore";
    let settings: String = settings.split(' ').map(|key| format!("cat /proc/sys/net/{key} 2>/dev/null;")).collect();
    let links = format!("ip -o -d link show dev {interface} 2>/dev/null | sed 's/^[0-9]*: //; s/qdisc.*group/group/'");
    host.sh(&format!(
        "nft -s list ruleset | sed 's/ expires [0-9a-z]*//'
         for family in -4 -6; do ip $family rule; for table in 610 611; do ip $family route show table $table; done; done
         {settings} {links}; ip -o address show dev {interface} 2>/dev/null | sed 's/^[0-9]*: //' | grep -v fe80
         ip -o address show dev arctic-tun0 2>/dev/null | sed 's/^[0-9]*: //' | grep -v fe80; true"
    ))
    .unwrap()
}

/// Each with a word for what it is about.
const EDITS: [&str; 18] = [
    // Rules, by what they say.
    "nft delete rule inet arctic output handle $(nft -a list chain inet arctic output | sed -n '/daddr 10.71.2.0/s/.*handle //p')",
    "nft delete rule inet arctic prerouting handle $(nft -a list chain inet arctic prerouting | sed -n '/tproxy ip6 to/s/.*handle //p' | head -1)",
    "nft delete rule inet arctic prerouting handle $(nft -a list chain inet arctic prerouting | sed -n '/not TCP/s/.*handle //p')",
    "nft delete rule inet arctic_iptun postrouting handle $(nft -a list chain inet arctic_iptun postrouting | sed -n '/masquerade/s/.*handle //p' | head -1)",
    // Additions of others.
    "nft insert rule inet arctic prerouting accept",
    "nft add chain inet arctic more",
    "nft add set inet arctic_iptun more '{ type ipv4_addr; }'",
    "nft add element inet arctic peers4 '{ 192.0.2.1 . 6 . 80 }'",
    // What holds more than a rule.
    "nft flush set inet arctic not_forwarded",
    "nft flush set inet arctic_iptun dhcp",
    "nft chain inet arctic output '{ policy drop; }'",
    "nft flush chain inet arctic input && nft delete chain inet arctic input",
    "nft delete table inet arctic_iptun",
    "nft flush ruleset",
    // Policy and routes of both families.
    "ip -6 rule del pref 10002 && ip rule del pref 10099",
    "ip rule add pref 10050 fwmark 7 lookup 610 protocol 97",
    "ip -6 route flush table 611 && ip -6 route flush table 610",
    "ip route add unreachable 192.0.2.0/24 table 611 proto 97",
];
const OWN: &str = "10.71.1.50/24";
const FORWARDING: &str = "echo 0 > /proc/sys/net/ipv4/ip_forward; echo 0 > /proc/sys/net/ipv6/conf/all/forwarding";

// accepts: 002-44
#[test]
fn whatever_others_change_is_repaired_and_told() {
    if !require(&PRODUCT) {
        return;
    }
    let world = World::new("drift", Profile::CLEAN);
    let (client, london, tokyo) = (&world.sites.client, &world.sites.london, &world.sites.tokyo);
    let create =
        ["services", "create", "--target-peer", "tokyo", "--requires-interface", "--desired-ipv4", OWN, "--wait"];
    let made: serde_json::Value = world.cluster.operator.json(&create).unwrap();
    let name = made["interface_name"].as_str().unwrap().to_owned();
    assert!(link(london, &name).is_some_and(|l| l.contains(OWN)), "it is applied");
    world.wait_until_carried(PATIENCE);

    let of_interface = [
        format!("ip link set {name} down"),
        format!("ip address del {OWN} dev {name} && ip address add 10.71.1.77/24 dev {name}"),
        format!("ip link set {name} address 02:00:00:00:00:77 && ip link set {name} mtu 1300"),
        format!("ip link del {name}"),
        "ip link del arctic-tun0".to_owned(),
        "ip address del 251.97.0.0/32 dev arctic-tun0".to_owned(),
        format!("{FORWARDING}; echo 0 > /proc/sys/net/ipv4/conf/to-client/arp_ignore"),
    ];
    let edits = EDITS.into_iter().map(str::to_owned).chain(of_interface);
    let at_london = edits.map(|edit| (london, &world.cluster.london, edit));
    let at_tokyo = [(tokyo, &world.cluster.tokyo, FORWARDING.to_owned())];
    for (host, agent, edit) in at_london.chain(at_tokyo) {
        let (before, told) = (state(host, &name), repairs(agent));
        host.sh(&edit).unwrap();
        let took = wait(&edit, REPAIRED_WITHIN, || {
            let now = state(host, &name);
            ensure!(now == before, "{}", difference(&before, &now));
            ensure!(repairs(agent) > told, "it was not told");
            is_carried(client)
        });
        println!("{host}: {edit}: repaired in {took:?}");
    }
    // Without its sign of life the rules capture nothing, until the next one.
    london.sh("nft flush set inet arctic liveness").unwrap();
    wait("the sign of life", REPAIRED_WITHIN, || is_carried(client));
}

fn difference(before: &str, now: &str) -> String {
    let missing = before.lines().filter(|line| !now.contains(line)).map(|line| format!("- {line}\n"));
    let more = now.lines().filter(|line| !before.contains(line)).map(|line| format!("+ {line}\n"));
    missing.chain(more).collect()
}
