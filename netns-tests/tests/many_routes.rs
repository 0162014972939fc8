//! Thousands of routes on the real kernel: what is captured, what `nft` shows, and that as many as 10,000 load at once.
//! `cargo bench -p netns-tests --bench routes` tells how long that takes.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use arctic::kernel::{Capture, Intercept, Kernel, Ruleset, Tunnel, contract};
use arctic::model::{Rng, ServiceId, UnixTime};
use arctic::os::LinuxKernel;
use netns_tests::observer::{self, FlowKey, Watched};
use netns_tests::probe::{Feature, require};
use serde_json::{Value, json};
use support::{in_namespace, sh};

const PRODUCT: [Feature; 5] = [Feature::Root, Feature::Veth, Feature::Tun, Feature::NftTproxy, Feature::NftSocket];
const SERVICES: u64 = 5;
const ROUTES_EACH: usize = 900;
const FLOWS: u64 = 120;
const LOAD_ROUTES: u32 = 10_000;
const FEW_ROUTES: u32 = 1000;
/// Addresses of the client; no source of a route is near the last.
const CLIENTS: [Ipv4Addr; 4] =
    [Ipv4Addr::new(10, 1, 1, 1), Ipv4Addr::new(10, 1, 2, 1), Ipv4Addr::new(10, 9, 9, 9), Ipv4Addr::new(10, 71, 1, 2)];

/// A network of some length that holds an address near one of the clients, or a server of 172.16.0.0/12.
fn network(rng: &mut Rng, of_clients: bool) -> String {
    let lengths: &[u8] = if of_clients { &[14, 16, 24, 32] } else { &[12, 16, 20, 24, 28, 32] };
    let length = lengths[usize::try_from(rng.below(lengths.len() as u64)).unwrap()];
    let address = if of_clients {
        let near = CLIENTS[usize::try_from(rng.below(3)).unwrap()].to_bits();
        near ^ u32::try_from(rng.below(4)).unwrap() << [0, 8][usize::try_from(rng.below(2)).unwrap()]
    } else {
        server(rng).to_bits()
    };
    let mask = u32::MAX << (32 - u32::from(length));
    format!("{}/{length}", Ipv4Addr::from_bits(address & mask))
}

/// Few enough that most lie in several networks.
fn server(rng: &mut Rng) -> Ipv4Addr {
    let part = |rng: &mut Rng, n| u8::try_from(rng.below(n)).unwrap();
    Ipv4Addr::new(172, 16 + part(rng, 3), part(rng, 40), part(rng, 64))
}

fn routes(rng: &mut Rng) -> Vec<Value> {
    let mut pairs = BTreeSet::new();
    while pairs.len() < ROUTES_EACH {
        let (source, dest) = match rng.below(8) {
            0 => (Some(network(rng, true)), None),
            1..3 => (Some(network(rng, true)), Some(network(rng, false))),
            3 => {
                let net = format!("fd00:{:x}::/32", rng.below(4096));
                (None, Some(net))
            }
            _ => (None, Some(network(rng, false))),
        };
        pairs.insert((source, dest));
    }
    let priority = |rng: &mut Rng| 100 * (1 + rng.below(2));
    pairs.into_iter().map(|(s, d)| json!({"source_cidr": s, "dest_cidr": d, "priority": priority(rng)})).collect()
}

// accepts: 002-44
#[test]
fn of_thousands_of_routes_the_kernel_takes_the_one_that_explain_names() {
    if !require(&PRODUCT) {
        return;
    }
    let of_client = CLIENTS[..3].iter().copied().map(IpAddr::V4).collect::<Vec<_>>();
    let Watched { sites, cluster: _cluster, mut api, tokyo } = Watched::new("many", &of_client).unwrap();
    let mut rng = Rng::from_seed([9; 32]);
    for n in 1..=SERVICES {
        let made = api.json("POST", "/v1/services", &json!({"target_peer_id": tokyo})).unwrap();
        let wait = if n == SERVICES { "?wait=applied" } else { "" };
        let path = format!("/v1/services/{}/routes{wait}", made["id"].as_str().unwrap());
        let added = api.json("POST", &path, &json!({ "routes": routes(&mut rng) })).unwrap();
        assert!(n < SERVICES || added["applied"] == true, "{}", added["waiting_for"]);
    }
    let mut flow = |n: u64| -> FlowKey {
        let source = CLIENTS[usize::try_from(rng.below(4)).unwrap()];
        // Some lie outside of all networks of servers.
        let dest = if rng.below(8) == 0 { Ipv4Addr::new(8, 8, 8, 8) } else { server(&mut rng) };
        (IpAddr::V4(source), IpAddr::V4(dest), 20_000 + u16::try_from(n).unwrap())
    };
    let flows: Vec<FlowKey> = (0..FLOWS).map(&mut flow).collect();
    let sockets: Vec<_> = flows.iter().map(|flow| observer::open(&sites.client, *flow).unwrap()).collect();
    let marks = observer::wait_for(&sites.london, &flows).unwrap();
    let mut kinds = BTreeMap::<(String, bool), u32>::new();
    for key @ (source, dest, dport) in &flows {
        let packet = json!({"src": source, "dst": dest, "proto": "tcp", "dport": dport, "iface": "to-client"});
        let told = api.json("POST", "/v1/routes/explain", &packet).unwrap();
        let captured = told["result"] == "captured";
        let mark = if captured { told["mark"].as_u64().unwrap() } else { 0 };
        let first = &told["candidates"][0];
        assert_eq!(marks[key], BTreeSet::from([mark]), "{key:?}: {} {first}", told["result"]);
        let of_both = captured && !first["source_cidr"].is_null() && !first["dest_cidr"].is_null();
        *kinds.entry((told["result"].as_str().unwrap().to_owned(), of_both)).or_default() += 1;
    }
    drop(sockets);
    println!("{kinds:?}");
    assert!(kinds.len() >= 3, "{kinds:?}");
}

// accepts: 001-17, 001-18
#[test]
fn maps_show_cidrs_literally_and_comments_with_the_route() {
    if !require(&[Feature::Root, Feature::NftTproxy]) {
        return;
    }
    in_namespace(|| async {
        let kernel = LinuxKernel::open().expect("netlink sockets open");
        let ruleset = contract::sample_rulesets().swap_remove(6);
        kernel.replace_tables(&ruleset).await.expect("the ruleset is accepted");
        for (table, maps) in [("arctic", "map intercept_both4_16_24"), ("arctic_iptun", "map mark_both4_16_24")] {
            let list = sh(&format!("nft list table inet {table}"));
            assert!(list.contains(maps), "{list}");
            for capture in &ruleset.captures {
                // nft leaves out the length of a full prefix.
                let both = capture.source.iter().chain(&capture.dest);
                let full = both.clone().map(|net| net.prefix_len() == net.max_prefix_len());
                let shown =
                    both.zip(full).map(|(net, full)| if full { net.addr().to_string() } else { net.to_string() });
                let nets: Vec<String> = shown.collect();
                let element = match (capture.source, capture.dest) {
                    (Some(net), None) | (None, Some(net)) => {
                        format!("{} comment \"{net} {capture}\"", net.network())
                    }
                    _ => format!("{} comment \"{capture}\"", nets.join(" . ")),
                };
                let is_rule = list.lines().any(|line| {
                    line.contains(&format!("comment \"{capture}\"")) && nets.iter().all(|net| line.contains(net))
                });
                assert!(list.contains(&element) || is_rule, "{element}\n{list}");
            }
        }
    });
}

#[test]
fn ten_thousand_routes_load_in_one_transaction() {
    if !require(&[Feature::Root, Feature::NftTproxy]) {
        return;
    }
    in_namespace(|| async {
        let kernel = LinuxKernel::open().expect("netlink sockets open");
        let mut rng = Rng::from_seed([2; 32]);
        let services: Vec<_> = (0..1000).map(|n| ServiceId::mint(UnixTime::from_secs(n), &mut rng)).collect();
        let capture = |n: u32| Capture {
            service: services[n as usize / 10],
            route: Some(n % 10 + 1),
            source: None,
            dest: Some(format!("10.{}.{}.0/24", n / 256, n % 256).parse().expect("a network")),
            interface: None,
            mark: n / 10 + 1,
        };
        let ruleset = Ruleset {
            intercept: Intercept { v4: Some("127.0.0.1:50123".parse().expect("an address")), v6: None },
            captures: (0..FEW_ROUTES).map(capture).collect(),
            tunnel: Some(Tunnel { device: "arctic-tun0".into(), index: 1 }),
            ..Ruleset::default()
        };
        kernel.replace_tables(&ruleset).await.expect("the ruleset is accepted");
        let ruleset = Ruleset { captures: (0..LOAD_ROUTES).map(capture).collect(), ..ruleset };
        // The second time as many old ones go in the same transaction.
        for _ in 0..2 {
            kernel.replace_tables(&ruleset).await.expect("the ruleset is accepted");
        }
        let owned = kernel.read_owned().await.expect("own state can be read");
        assert_eq!(owned.tables, Some(kernel.fingerprint(&ruleset)));
        assert_eq!(
            sh(r"nft list map inet arctic intercept_dest4_24 | grep -oE '[0-9.]+/24 [^ ]+' | wc -l").trim(),
            "10000"
        );
        sh("nft add element inet arctic intercept_dest4_24 '{ * : drop }'");
        let owned = kernel.read_owned().await.expect("own state can be read");
        assert_ne!(owned.tables, Some(kernel.fingerprint(&ruleset)), "an element that catches all is seen");
    });
}
