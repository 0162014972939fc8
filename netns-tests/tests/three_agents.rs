//! Three real agents on the real kernel, run by the real command line: who joins, who is removed, who comes back.

// Real time is the subject here.
#![allow(clippy::disallowed_methods)]

use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use netns_tests::agent::{Agent, AgentSettings, Cli};
use netns_tests::cluster::wait_for_table;
use netns_tests::lab::{Host, Lab};
use netns_tests::probe::{Feature, require};
use netns_tests::topology::{API_PORT, ThreeSites};
use netns_tests::vendor::{Grant, Vendor};
use serde_json::Value;

const PRODUCT: [Feature; 5] = [Feature::Root, Feature::Veth, Feature::Tun, Feature::NftTproxy, Feature::NftSocket];
/// Two heartbeats and the pushes between them.
const KNOWN_EVERYWHERE_WITHIN: Duration = Duration::from_secs(40);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Three agents of one customer, each a cluster of one, and an operator on each host with one configuration for all.
struct Trio {
    london: (Agent, Cli),
    tokyo: (Agent, Cli),
    oslo: (Agent, Cli),
    sites: ThreeSites,
}

impl Trio {
    fn bootstrapped(name: &str) -> Trio {
        let sites = ThreeSites::build(Lab::new(name).unwrap()).unwrap();
        let scratch = sites.lab.scratch();
        let license = scratch.join("license.json");
        Vendor::find().unwrap().issue(&Grant::default(), &license).unwrap();
        let start = |host: &Host, address: IpAddr| {
            let agent = Agent::start(host, AgentSettings::new(scratch, host.name())).unwrap();
            let operator = Cli::new(host, &scratch.join("operator")).unwrap();
            let (url, license) = (format!("http://{address}:{API_PORT}"), license.to_str().unwrap());
            let bootstrap = ["bootstrap", "--url", &url, "--license-file", license, "--name", host.name()];
            operator.ok(&bootstrap).unwrap();
            (agent, operator)
        };
        Trio {
            london: start(&sites.london, ThreeSites::LONDON),
            tokyo: start(&sites.tokyo, ThreeSites::TOKYO),
            oslo: start(&sites.oslo, ThreeSites::OSLO),
            sites,
        }
    }
}

fn url(address: IpAddr) -> String {
    format!("http://{address}:{API_PORT}")
}

/// Names of the healthy peers that the agent at `address` lists, in order.
fn healthy(operator: &Cli, address: IpAddr) -> Vec<String> {
    let peers: Vec<Value> = operator.json(&["peers", "list", "--url", &url(address)]).unwrap_or_default();
    let names = peers.iter().filter(|peer| peer["status"] == "healthy").filter_map(|peer| peer["self_name"].as_str());
    let mut names: Vec<String> = names.map(str::to_owned).collect();
    names.sort();
    names
}

#[track_caller]
fn eventually<T: PartialEq + std::fmt::Debug>(what: &str, expected: T, look: impl Fn() -> T) {
    let deadline = Instant::now() + KNOWN_EVERYWHERE_WITHIN;
    loop {
        let seen = look();
        if seen == expected {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {seen:?} is not {expected:?}");
        thread::sleep(POLL_INTERVAL);
    }
}

// accepts: 000-05
#[test]
fn the_third_learns_the_others_by_voucher_is_deleted_and_comes_back_by_the_operator_alone() {
    if !require(&PRODUCT) {
        return;
    }
    let mut trio = Trio::bootstrapped("trio");
    let operator = &trio.london.1;
    let everyone = ["london", "oslo", "tokyo"].map(str::to_owned).to_vec();
    for (address, name) in [(ThreeSites::TOKYO, "tokyo"), (ThreeSites::OSLO, "oslo")] {
        operator.ok(&["peers", "add", &format!("{address}:{API_PORT}"), "--name", name]).unwrap();
    }
    for (host, address) in [(&trio.tokyo.1, ThreeSites::TOKYO), (&trio.oslo.1, ThreeSites::OSLO)] {
        eventually("nobody introduced tokyo and oslo but london", everyone.clone(), || healthy(host, address));
    }

    // Written in london, owned and carried by oslo.
    let create = ["services", "create", "--source-peer", "oslo", "--target-peer", "tokyo", "--name", "osl-tyo"];
    operator.ok(&create).unwrap();
    operator.ok(&["routes", "add", "--service", "osl-tyo", "--dest-cidr", "10.99.0.0/16"]).unwrap();
    wait_for_table(&trio.sites.oslo, "10.99.0.0/16").unwrap();

    let states = |operator: &Cli, address| {
        let all = operator.json::<Vec<Value>>(&["services", "list", "--url", &url(address)]).unwrap();
        all.iter().filter_map(|service| service["state"].as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    eventually("the service is carried", vec!["active".to_owned()], || states(&trio.tokyo.1, ThreeSites::TOKYO));
    operator.ok(&["peers", "delete", "oslo", "--yes"]).unwrap();
    let others = vec!["london".to_owned(), "tokyo".to_owned()];
    for (host, address) in [(operator, ThreeSites::LONDON), (&trio.tokyo.1, ThreeSites::TOKYO)] {
        eventually("oslo is gone", others.clone(), || healthy(host, address));
        eventually("and so is its service", Vec::<String>::new(), || states(host, address));
    }
    eventually("oslo captures nothing any more", false, || {
        trio.sites.oslo.sh("nft list ruleset").unwrap().contains("10.99.0.0/16")
    });

    operator.ok(&["peers", "add", &format!("{}:{API_PORT}", ThreeSites::OSLO), "--name", "oslo"]).unwrap();
    for (host, address) in [(operator, ThreeSites::LONDON), (&trio.tokyo.1, ThreeSites::TOKYO)] {
        eventually("the operator took oslo back", everyone.clone(), || healthy(host, address));
        eventually("with its service", vec!["active".to_owned()], || states(host, address));
    }

    trio.oslo.1.ok(&["remove-self", "--yes", "--url", &url(ThreeSites::OSLO)]).unwrap();
    let status = trio.oslo.0.process().wait(KNOWN_EVERYWHERE_WITHIN).unwrap().expect("oslo ends by itself");
    assert!(status.success(), "{status}");
    for (host, address) in [(&trio.london.1, ThreeSites::LONDON), (&trio.tokyo.1, ThreeSites::TOKYO)] {
        eventually("oslo left", others.clone(), || healthy(host, address));
        eventually("and its service stays listed", vec!["inactive".to_owned()], || states(host, address));
    }
    trio.london.1.ok(&["services", "delete", "osl-tyo", "--yes"]).unwrap();
    for (host, address) in [(&trio.london.1, ThreeSites::LONDON), (&trio.tokyo.1, ThreeSites::TOKYO)] {
        eventually("until it is deleted by hand", Vec::<String>::new(), || states(host, address));
    }
}
