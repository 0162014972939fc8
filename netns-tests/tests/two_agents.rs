//! Two real agents with an ocean between them, run by the real command line.

// Real time is the subject here.
#![allow(clippy::disallowed_methods)]

use netns_tests::cluster::Cluster;
use netns_tests::lab::{Capture, Lab, contains};
use netns_tests::probe::{Feature, require};
use netns_tests::topology::{Profile, TwoSites};
use netns_tests::vendor::Grant;

const PRODUCT: [Feature; 5] = [Feature::Root, Feature::Veth, Feature::Tun, Feature::NftTproxy, Feature::NftSocket];

#[test]
fn agents_join_over_the_wan_and_no_secret_crosses_it_in_clear() {
    if !require(&PRODUCT) {
        return;
    }
    let sites = TwoSites::build(Lab::new("join").unwrap(), Profile::OCEAN, 1).unwrap();
    let capture = Capture::start(&sites.london, "wan-tokyo", sites.lab.scratch()).unwrap();
    let cluster = Cluster::form(&sites, &Grant::default()).unwrap();
    let peers: Vec<serde_json::Value> = cluster.operator.json(&["peers", "list"]).unwrap();
    let seen = capture.stop().unwrap();

    let names: Vec<&str> = peers.iter().filter_map(|peer| peer["name"].as_str()).collect();
    assert_eq!(names, ["london", "tokyo"]);
    assert!(contains(&seen, b"/v1/"), "the capture shows the handshake's HTTP");
    for secret in secrets(&sites, &cluster) {
        assert!(!contains(&seen, secret.as_bytes()), "{}... crossed the WAN in clear", &secret[..8]);
    }
}

/// Client secrets of the operator's configuration, and both recovery tokens.
fn secrets(sites: &TwoSites, cluster: &Cluster) -> Vec<String> {
    let read = |path| std::fs::read_to_string(path).unwrap();
    let config = read(sites.lab.scratch().join("operator/.config/arctic/config.yaml"));
    let mut secrets: Vec<String> = config
        .lines()
        .filter_map(|line| line.trim().strip_prefix("client_secret: "))
        .map(|secret| secret.trim_matches(['"', '\'']).to_owned())
        .collect();
    assert!(!secrets.is_empty(), "no client secret in {config}");
    for agent in [&cluster.london, &cluster.tokyo] {
        secrets.push(read(agent.settings().recovery_token()).trim().to_owned());
    }
    assert!(secrets.iter().all(|secret| secret.len() >= 32), "a secret is too short to look for");
    secrets
}
