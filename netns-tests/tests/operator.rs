//! A walk through the command line against real agents: what works, what is refused and how, what the host shows.

// Real time is the subject here.
#![allow(clippy::disallowed_methods)]

use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use netns_tests::agent::{Agent, AgentSettings, Cli, CliOutput, http_get};
use netns_tests::cluster::{APPLIED_WITHIN, Cluster, serve_through_tokyo, wait_for_route};
use netns_tests::lab::{Host, Lab};
use netns_tests::probe::{Feature, require};
use netns_tests::service::{TcpService, seen_from};
use netns_tests::topology::{self, API_PORT, LONDON_WAN, Profile, SERVER, SERVER_NET, TOKYO_WAN, TwoSites, at};
use netns_tests::vendor::{Grant, Vendor};
use serde_json::Value;

const PRODUCT: [Feature; 5] = [Feature::Root, Feature::Veth, Feature::Tun, Feature::NftTproxy, Feature::NftSocket];
const MIRROR_PORT: u16 = 7000;
const CLOSED_PORT: u16 = 8081;
const POLL_INTERVAL: Duration = Duration::from_millis(50);

fn sites(name: &str) -> TwoSites {
    TwoSites::build(Lab::new(name).unwrap(), Profile::CLEAN, 1).unwrap()
}

/// A license of a new customer.
fn license(sites: &TwoSites, name: &str) -> PathBuf {
    let path = sites.lab.scratch().join(name);
    Vendor::find().unwrap().issue(&Grant::default(), &path).unwrap();
    path
}

fn bootstrap(operator: &Cli, host: std::net::IpAddr, license: &Path, name: &str) -> CliOutput {
    let url = format!("http://{host}:{API_PORT}");
    operator.run(&["bootstrap", "--url", &url, "--license-file", license.to_str().unwrap(), "--name", name]).unwrap()
}

/// The command failed in words that an operator can act on, and not by a crash.
fn assert_refused(output: &CliOutput, texts: &[&str]) {
    assert!((1..=8).contains(&output.exit), "{output:?}");
    let missing: Vec<_> = ["Error: "].iter().chain(texts).filter(|text| !output.stderr.contains(**text)).collect();
    assert!(missing.is_empty(), "{missing:?} is not in {output:?}");
}

#[track_caller]
fn wait_until(what: &str, good: impl Fn() -> bool) {
    let deadline = Instant::now() + APPLIED_WITHIN;
    while !good() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(POLL_INTERVAL);
    }
}

// accepts: 000-32, 000-33, 001-39, 001-41, 001-42
#[test]
fn peers_that_cannot_be_added_are_named_with_the_reason() {
    if !require(&PRODUCT) {
        return;
    }
    let sites = sites("refused");
    let scratch = sites.lab.scratch();
    let start = |host: &Host, name| Agent::start(host, AgentSettings::new(scratch, name)).unwrap();
    let (_london, _tokyo) = (start(&sites.london, "london"), start(&sites.tokyo, "tokyo"));
    let home = scratch.join("operator");
    let london = Cli::new(&sites.london, &home).unwrap();
    let tokyo = Cli::new(&sites.tokyo, &scratch.join("stranger")).unwrap();
    let (ours, theirs) = (license(&sites, "ours.json"), license(&sites, "theirs.json"));

    // The agent on tokyo belongs to nobody yet.
    bootstrap(&london, LONDON_WAN, &ours, "london").ok().unwrap();
    assert_refused(&bootstrap(&london, LONDON_WAN, &ours, "london"), &["bootstrap"]);
    assert_refused(&london.run(&["peers", "add", &format!("{TOKYO_WAN}:{API_PORT}")]).unwrap(), &[]);
    assert_refused(
        &london.run(&["peers", "add", &format!("{TOKYO_WAN}:{CLOSED_PORT}")]).unwrap(),
        &["Error: handshake failed: connection refused"],
    );
    assert_refused(&london.run(&["peers", "add", &format!("{LONDON_WAN}:{API_PORT}")]).unwrap(), &[]);
    bootstrap(&tokyo, TOKYO_WAN, &theirs, "tokyo").ok().unwrap();
    assert_refused(
        &london.run(&["peers", "add", &format!("{TOKYO_WAN}:{API_PORT}")]).unwrap(),
        &["Error: handshake failed: license mismatch"],
    );
    let peers: Vec<Value> = london.json(&["peers", "list"]).unwrap();
    let trusted = peers.iter().filter(|p| p["is_local"] == false && p["status"] == "healthy").count();
    assert_eq!(trusted, 0, "{peers:?}");
}

// accepts: 000-21, 000-22, 000-35, 001-46, 000-53, 001-11, 001-16, 001-17, 001-18, 002-45, 002-46, 002-19, 002-20, 002-44, 002-58, 002-60, 002-66
#[test]
fn services_and_routes_from_creation_to_deletion() {
    if !require(&PRODUCT) {
        return;
    }
    let sites = sites("walk");
    let cluster = Cluster::form(&sites, &Grant::default()).unwrap();
    let mirror = SocketAddr::from((Ipv6Addr::UNSPECIFIED, MIRROR_PORT));
    let _mirror = TcpService::mirror(&sites.server, mirror).unwrap();
    let operator = &cluster.operator;
    let count = |arguments: &[&str]| operator.json::<Vec<Value>>(arguments).unwrap().len();
    assert_eq!((count(&["peers", "list"]), count(&["peers", "list", "--remote"])), (2, 1));
    let again = operator.run(&["peers", "add", &format!("{TOKYO_WAN}:{API_PORT}")]).unwrap();
    assert_refused(&again, &["Error: peer already exists in cluster"]);
    for (host, to) in [(&sites.london, TOKYO_WAN), (&sites.tokyo, LONDON_WAN)] {
        let (status, body) = http_get(host, at(to, API_PORT), "/livez").unwrap();
        assert!(status == 200 && body.contains(r#""status":"ok""#), "{status} {body}");
    }

    let stranger = operator.run(&["services", "create", "--target-peer", "peer_01HXYZDEF7890000000000000A"]).unwrap();
    assert_refused(&stranger, &["target peer", "not found"]);
    let service: Value = operator.json(&["services", "create", "--target-peer", "tokyo"]).unwrap();
    let id = service["id"].as_str().unwrap();
    assert_eq!((&service["transport_type"], count(&["services", "list"])), (&Value::from("tcp"), 1));
    assert_eq!(seen_from(&sites.client, at(SERVER, MIRROR_PORT)).unwrap(), topology::CLIENT, "no route, no capture");

    let add = |more: &[&str]| operator.run(&[&["routes", "add", "--service", id], more].concat()).unwrap();
    assert_refused(&add(&["--dest-cidr", "10.1.2.3/8"]), &["host bits"]);
    assert_refused(&add(&["--dest-cidr", "10.0.0.0"]), &["10.0.0.0"]);
    add(&["--source-cidr", "10.71.1.0/24", "--dest-cidr", SERVER_NET, "--priority", "100", "--wait"]).ok().unwrap();
    let table = wait_for_route(&sites.london, SERVER_NET).unwrap();
    let rule = table.lines().find(|line| line.contains("tproxy ip to")).expect("a rule");
    for part in ["ip saddr 10.71.1.0/24", "ip daddr 10.71.2.0/24", &format!("comment \"{id}/1\"")] {
        assert!(rule.contains(part), "{part}: {rule}");
    }
    assert!(sites.london.sh("nft list table inet arctic_iptun").unwrap().contains("chain postrouting"));
    assert!(!sites.tokyo.sh("nft list ruleset").unwrap().contains(id), "the target captures nothing");
    assert_eq!(seen_from(&sites.client, at(SERVER, MIRROR_PORT)).unwrap(), topology::TOKYO_LAN);
    let shown: Value = operator.json(&["services", "get", id]).unwrap();
    assert!(shown.to_string().contains(SERVER_NET), "{shown}");
    let routes: Vec<Value> = operator.json(&["routes", "list", "--service", id]).unwrap();
    assert_eq!((&routes[0]["source_cidr"], &routes[0]["priority"]), (&"10.71.1.0/24".into(), &100.into()));

    operator.ok(&["services", "delete", id, "--yes"]).unwrap();
    assert_eq!(count(&["services", "list"]), 0);
    wait_until("its rules are gone", || !sites.london.sh("nft list ruleset").unwrap().contains(id));
    assert_eq!(seen_from(&sites.client, at(SERVER, MIRROR_PORT)).unwrap(), topology::CLIENT);
    assert_refused(&operator.run(&["services", "get", id]).unwrap(), &["not found"]);
    assert_refused(&operator.run(&["routes", "list", "--service", id]).unwrap(), &["not found"]);

    serve_through_tokyo(operator, &[SERVER_NET]).unwrap();
    operator.ok(&["peers", "delete", "tokyo", "--yes"]).unwrap();
    assert_eq!((count(&["peers", "list"]), count(&["services", "list"])), (1, 0));
}

// accepts: 001-01, 001-03, 001-05, 001-08, 001-20, 001-73, 001-78
#[test]
fn the_host_shows_what_the_troubleshooting_contract_names() {
    if !require(&PRODUCT) {
        return;
    }
    let sites = sites("contract");
    let main_table = || sites.london.sh("ip -4 route show; ip -6 route show").unwrap();
    // The kernel makes the routes of a link when it has a carrier.
    wait_until("both links are up", || main_table().matches("fe80::/64").count() == 2);
    let before_agents = main_table();
    let mut cluster = Cluster::form(&sites, &Grant::default()).unwrap();
    serve_through_tokyo(&cluster.operator, &[SERVER_NET]).unwrap();
    wait_for_route(&sites.london, SERVER_NET).unwrap();
    let listeners = sites.london.sh("ss -tlnp | grep 8080").unwrap();
    let words: Vec<&str> = listeners.split_whitespace().collect();
    assert_eq!(words[..5], ["LISTEN", "0", "4096", "*:8080", "*:*"], "{listeners}");
    assert!(words[5].starts_with("users:((\"arctic\""), "{listeners}");
    let pid = cluster.london.process().pid();
    let all = sites.london.sh("ss -tlnp | grep -v State").unwrap();
    assert!(all.lines().all(|line| line.contains(&format!("pid={pid}"))), "only the agent: {all}");
    assert!(!sites.london.sh("ip -d link").unwrap().contains("wireguard"));

    assert_eq!(main_table(), before_agents, "ip route show");
    let hits = sites.london.sh("nft list ruleset | grep 8080").unwrap();
    assert!(hits.lines().all(|line| line.contains("8080,") || line.contains(". 8080")), "exclusions only: {hits}");
    let log = cluster.london.log().unwrap();
    for reconciler in ["component=fwmgr reconciler=firewall", "component=tproxymgr reconciler=tproxy"] {
        assert!(log.contains(&format!("{reconciler} started")), "{reconciler}: {log}");
        assert!(log.contains(&format!("{reconciler} applied")), "{reconciler}: {log}");
    }

    let before = comparable(&sites.london);
    assert!(cluster.london.stop().unwrap().success());
    let alone = cluster.operator.run(&["services", "list", "--url", "http://127.0.0.1:8080"]).unwrap();
    assert_eq!(alone.exit, 4, "{alone:?}");
    assert_refused(&alone, &["127.0.0.1:8080"]);
    let _london = Agent::start(&sites.london, AgentSettings::new(sites.lab.scratch(), "london")).unwrap();
    wait_for_route(&sites.london, SERVER_NET).unwrap();
    let deadline = Instant::now() + APPLIED_WITHIN;
    while comparable(&sites.london) != before {
        if Instant::now() >= deadline {
            assert_eq!(comparable(&sites.london), before, "a restart makes the same kernel state");
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// The kernel state without what differs from moment to moment, and without the ports of the intercept listeners, which
/// are others after each start.
fn comparable(host: &Host) -> String {
    let listeners = host.sh("ss -Htln").unwrap();
    let local = listeners.split_whitespace().filter_map(|word| {
        let port = word.strip_prefix("127.0.0.1:").or_else(|| word.strip_prefix("[::1]:"))?;
        port.parse::<u16>().ok()
    });
    let state = host.kernel_state().unwrap();
    let state = local.fold(state, |state, port| state.replace(&port.to_string(), "PORT"));
    // The device of the tunnel has another index after each start.
    let plain = |line: &str| match line.split_once(": ") {
        Some((_, device)) if device.starts_with("arctic-tun") => format!("{device}\n"),
        _ => format!("{line}\n"),
    };
    state.lines().filter(|line| !line.contains("expires")).map(plain).collect()
}
