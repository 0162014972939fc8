//! The verbs of the command line against two real agents: what they change, what they show, what they leave alone.

// Real time is the subject here.
#![allow(clippy::disallowed_methods)]

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use netns_tests::agent::{Cli, CliOutput};
use netns_tests::cluster::{Cluster, serve_through_tokyo, wait_for_table};
use netns_tests::lab::Lab;
use netns_tests::probe::{Feature, require};
use netns_tests::topology::{API_PORT, LONDON_WAN, Profile, SERVER_NET, TOKYO_WAN, TwoSites};
use netns_tests::vendor::Grant;
use serde_json::{Value, json};

const PRODUCT: [Feature; 5] = [Feature::Root, Feature::Veth, Feature::Tun, Feature::NftTproxy, Feature::NftSocket];
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// Two heartbeats and a round of gossip, with room for a busy machine.
const KNOWN_WITHIN: Duration = Duration::from_secs(60);

fn cluster(name: &str) -> (Cluster, TwoSites) {
    let sites = TwoSites::build(Lab::new(name).unwrap(), Profile::CLEAN, 1).unwrap();
    (Cluster::form(&sites, &Grant::default()).unwrap(), sites)
}

fn object(operator: &Cli, arguments: &[&str]) -> Value {
    operator.json(arguments).unwrap()
}

#[track_caller]
fn eventually(what: &str, good: impl Fn() -> bool) {
    let deadline = Instant::now() + KNOWN_WITHIN;
    while !good() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::sleep(POLL_INTERVAL);
    }
}

fn first_error(output: &CliOutput) -> &str {
    output.stderr.lines().find(|l| l.starts_with("Error: ")).unwrap_or_default()
}

// accepts: 000-39, 000-40, 000-42, 000-43, 000-46, 000-47
#[test]
fn a_peers_name_and_qos_change_here_and_in_the_config_and_nowhere_else() {
    if !require(&PRODUCT) {
        return;
    }
    let (cluster, _sites) = cluster("rename");
    let operator = &cluster.operator;
    let tokyo = object(operator, &["peers", "get", "tokyo"]);
    let id = tokyo["id"].as_str().unwrap();
    operator.ok(&["peers", "update", id, "--name", "prod-svr-1"]).unwrap();
    operator.ok(&["peers", "update", "prod-svr-1", "--qos=false"]).unwrap();
    let seen = object(operator, &["peers", "get", id]);
    assert_eq!((&seen["name"], &seen["qos_enabled"]), (&json!("prod-svr-1"), &json!(false)));
    let unchanged = ["self_name", "public_key", "endpoints", "api_access", "created_at"];
    assert!(unchanged.iter().all(|key| seen[*key] == tokyo[*key]), "{seen} {tokyo}");
    let config = fs::read_to_string(operator.environment()[1].1.join("arctic/config.yaml")).unwrap();
    assert!(config.contains("name: prod-svr-1"), "{config}");
    let there = object(operator, &["peers", "get", id, "--url", &format!("http://{TOKYO_WAN}:{API_PORT}")]);
    assert_eq!((&there["name"], &there["qos_enabled"]), (&json!("tokyo"), &json!(true)));
}

// accepts: 001-30, 001-76, 001-77, 002-02, 002-26, 002-28, 002-29, 002-35, 002-36, 002-37, 002-38, 002-48, 002-49, 002-50, 002-51, 002-63, 002-68
#[test]
fn services_and_routes_change_field_by_field() {
    if !require(&PRODUCT) {
        return;
    }
    let (cluster, sites) = cluster("change");
    let operator = &cluster.operator;
    let id = operator.ok(&["services", "create", "--target-peer", "tokyo"]).unwrap().trim().to_owned();
    let route = [
        "routes",
        "add",
        "--service",
        &id,
        "--source-cidr",
        "10.0.0.0/8",
        "--dest-cidr",
        "192.168.100.0/24",
        "--priority",
        "100",
        "--wait",
    ];
    assert_eq!(operator.ok(&route).unwrap(), "Route added successfully: ID=1, Priority=100\n");
    operator.ok(&["routes", "add", "--service", &id, "--dest-cidr", SERVER_NET, "--wait"]).unwrap();
    operator.ok(&["routes", "add", "--service", &id, "--source-cidr", "10.71.1.0/24", "--wait"]).unwrap();
    let explain =
        |src: &str, dst: &str| object(operator, &["routes", "explain", "--src", src, "--dst", dst, "--dport", "80"]);
    for (src, dst) in [("10.9.9.9", "192.168.100.7"), ("172.31.0.1", "10.71.2.2"), ("10.71.1.2", "8.8.8.8")] {
        assert_eq!(explain(src, dst)["result"], "captured", "{src} to {dst}: any other side matches");
    }
    let whole = object(operator, &["services", "get", &id]);
    for mbps in ["100", "1000", "10000", "500"] {
        operator.ok(&["services", "update", &id, "--bandwidth-limit", mbps]).unwrap();
        let seen = object(operator, &["services", "get", &id]);
        assert_eq!(seen["bandwidth_limit_mbps"].to_string(), mbps);
    }
    operator.ok(&["services", "update", &id, "--bandwidth-limit", "0"]).unwrap();
    let mut seen = object(operator, &["services", "get", &id]);
    let mut before = whole.clone();
    for changing in ["version", "updated_at", "conditions", "state"] {
        seen[changing] = Value::Null;
        before[changing] = Value::Null;
    }
    assert_eq!(seen, before, "nothing else changed");

    operator.ok(&["routes", "update", "--service", &id, "--route", "1", "--priority", "200"]).unwrap();
    let update = [
        "routes",
        "update",
        "--service",
        &id,
        "--route",
        "1",
        "--source-cidr",
        "10.1.0.0/16",
        "--dest-cidr",
        "192.168.200.0/24",
    ];
    operator.ok(&update).unwrap();
    let routes: Vec<Value> = operator.json(&["routes", "list", "--service", &id]).unwrap();
    let changed = routes.iter().find(|r| r["id"] == 1).unwrap();
    assert_eq!(
        (&changed["priority"], &changed["source_cidr"], &changed["dest_cidr"]),
        (&json!(200), &json!("10.1.0.0/16"), &json!("192.168.200.0/24"))
    );
    wait_for_table(&sites.london, "192.168.200.0/24").unwrap();
    let again =
        operator.run(&["routes", "update", "--service", &id, "--route", "1", "--dest-cidr", "10.1.2.3/8"]).unwrap();
    assert_eq!(again.exit, 2, "{again:?}");

    let before = object(operator, &["services", "list"]);
    operator.ok(&["services", "update", &id, "--bandwidth-limit", "9", "--dry-run"]).unwrap();
    operator.ok(&["services", "delete", &id, "--dry-run"]).unwrap();
    operator.ok(&["peers", "delete", "tokyo", "--dry-run"]).unwrap();
    assert_eq!(
        object(operator, &["services", "list"])[0]["version"],
        before[0]["version"],
        "a dry run changes nothing"
    );

    operator.ok(&["services", "create", "--target-peer", "tokyo", "--name", "second"]).unwrap();
    let ids: Vec<Value> = operator.json(&["services", "list", "--target-peer", "tokyo"]).unwrap();
    for service in &ids {
        operator.ok(&["services", "delete", service["id"].as_str().unwrap(), "--yes"]).unwrap();
    }
    assert_eq!((ids.len(), object(operator, &["services", "list"])), (2, json!([])));
}

// accepts: 000-09
#[test]
fn credentials_live_and_die_at_once_and_a_rotated_secret_reaches_the_config() {
    if !require(&PRODUCT) {
        return;
    }
    let (cluster, sites) = cluster("credentials");
    let operator = &cluster.operator;
    let made = object(operator, &["credentials", "create", "--scopes", "peers.read", "--description", "watch"]);
    let listed = object(operator, &["credentials", "list"]);
    assert!(listed.as_array().unwrap().iter().any(|c| c["client_id"] == made["client_id"]), "{listed}");
    assert!(!listed.to_string().contains(made["client_secret"].as_str().unwrap()));
    for path in ["/v1/credentials", "/v1/cluster/credentials"] {
        let shown = object(operator, &["api", "GET", path]).to_string();
        assert!(!shown.contains("client_secret") && !shown.contains("sec_"), "{path}: {shown}");
    }
    let license = sites.lab.scratch().join("license.json");
    let url = format!("http://{LONDON_WAN}:{API_PORT}");
    let again = operator.run(&["bootstrap", "--url", &url, "--license-file", license.to_str().unwrap()]).unwrap();
    assert_eq!((again.exit, first_error(&again)), (1, "Error: agent is already bootstrapped"));
    let watcher = Cli::new(&sites.london, &sites.lab.scratch().join("watcher")).unwrap();
    let config = watcher.environment()[1].1.join("arctic/config.yaml");
    let own = fs::read_to_string(operator.environment()[1].1.join("arctic/config.yaml")).unwrap();
    let id_before = object(operator, &["config", "view"]);
    let entry = id_before["clusters"].as_object().unwrap().values().next().unwrap();
    let secret_line = own.lines().find(|l| l.contains("client_secret")).unwrap().trim().to_owned();
    let theirs = own.replace(entry["client_id"].as_str().unwrap(), made["client_id"].as_str().unwrap());
    let theirs = theirs.replace(&secret_line, &format!("client_secret: {}", made["client_secret"].as_str().unwrap()));
    fs::create_dir_all(config.parent().unwrap()).unwrap();
    fs::write(&config, theirs).unwrap();
    fs::set_permissions(&config, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    watcher.ok(&["peers", "list"]).unwrap();
    let refused = watcher.run(&["services", "create", "--target-peer", "tokyo"]).unwrap();
    assert_eq!(refused.exit, 5, "{refused:?}");
    operator.ok(&["credentials", "revoke", made["client_id"].as_str().unwrap(), "--yes"]).unwrap();
    assert_eq!(watcher.run(&["peers", "list"]).unwrap().exit, 5);

    let current = entry["client_id"].as_str().unwrap();
    let refused = operator.run(&["credentials", "revoke", current, "--yes"]).unwrap();
    assert_eq!((refused.exit, first_error(&refused)), (1, "Error: cannot revoke the credential currently in use"));
    let rotated = object(operator, &["credentials", "rotate", "--update-config"]);
    let own = fs::read_to_string(operator.environment()[1].1.join("arctic/config.yaml")).unwrap();
    assert!(own.contains(rotated["client_secret"].as_str().unwrap()));
    operator.ok(&["cache", "clear"]).unwrap();
    operator.ok(&["peers", "list"]).unwrap();
}

#[test]
fn what_happened_is_told_by_status_events_and_audit() {
    if !require(&PRODUCT) {
        return;
    }
    let (cluster, _sites) = cluster("told");
    let operator = &cluster.operator;
    serve_through_tokyo(operator, &[SERVER_NET]).unwrap();
    eventually("ready", || operator.run(&["status"]).unwrap().exit == 0);
    let status = operator.ok(&["status"]).unwrap();
    assert!(status.contains("State     ready") && status.contains("Services  1 of 1 active"), "{status}");
    for wanted in ["peer.added", "service.created", "route.changed"] {
        eventually(wanted, || {
            let events = object(operator, &["events"]);
            events.as_array().unwrap().iter().any(|event| event["type"] == wanted)
        });
    }
    let audit = object(operator, &["audit", "list"]);
    assert!(
        audit.as_array().unwrap().iter().any(|e| e["object"].as_str().is_some_and(|o| o.contains("/routes"))),
        "{audit}"
    );
    let document = object(operator, &["api", "GET", "/v1/openapi.json"]);
    assert_eq!(document["openapi"].as_str().map(|v| &v[..3]), Some("3.1"));
    operator.ok(&["cache", "refresh"]).unwrap();
    assert_eq!(operator.ok(&["__complete", "--", "peers", "get", "to"]).unwrap(), "tokyo\n");
}

#[test]
fn changes_that_nobody_confirms_are_undone_and_confirmed_ones_stay() {
    if !require(&PRODUCT) {
        return;
    }
    let (cluster, sites) = cluster("confirm");
    let operator = &cluster.operator;
    let file = |name: &str, dest: &str| {
        let path = sites.lab.scratch().join(name);
        let text = format!(
            "version: v1\npeers:\n  - {{ name: london, endpoints: [\"{LONDON_WAN}:8080\"] }}\n  - {{ name: tokyo, endpoints: [\"{TOKYO_WAN}:8080\"] }}\n\
             services:\n  - name: l2t\n    source_peer: london\n    target_peer: tokyo\n    routes: [{{ dest_cidr: {dest} }}]\n  - name: t2l\n    source_peer: tokyo\n    target_peer: london\n    routes: [{{ dest_cidr: {dest} }}]\n"
        );
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (first, second) = (file("first.yaml", "10.91.0.0/16"), file("second.yaml", "10.92.0.0/16"));
    operator.ok(&["compose", "apply", &first, "--yes", "--wait"]).unwrap();
    let is = |path: &str| operator.ok(&["compose", "diff", path, "--prune"]).unwrap().ends_with("No changes\n");
    assert!(is(&first));
    operator.ok(&["compose", "apply", &second, "--prune", "--yes", "--confirm-within", "10s"]).unwrap();
    assert!(is(&second));
    eventually("it is undone everywhere", || is(&first));
    operator.ok(&["compose", "apply", &second, "--prune", "--yes", "--confirm-within", "120s"]).unwrap();
    let confirmed = operator.ok(&["compose", "confirm"]).unwrap();
    assert_eq!(confirmed, "Confirmed: the changes of 2 peers stay\n");
    assert!(is(&second));
    assert_eq!(operator.ok(&["compose", "confirm"]).unwrap(), "Nothing waits for a confirmation\n");
}

// accepts: 000-12, 001-47, 001-50, 001-51
#[test]
fn a_peer_is_deleted_and_added_again_under_an_alias_and_every_step_can_be_watched() {
    if !require(&PRODUCT) {
        return;
    }
    let (cluster, _sites) = cluster("again");
    let operator = &cluster.operator;
    let address = format!("{TOKYO_WAN}:{API_PORT}");
    let names = || {
        let peers: Vec<Value> = operator.json(&["peers", "list", "--remote"]).unwrap();
        peers.iter().map(|p| (p["name"].clone(), p["self_name"].clone())).collect::<Vec<_>>()
    };
    for (flag, shown) in [("--debug", "debug: POST http://"), ("--trace", "> POST http://")] {
        operator.ok(&["peers", "delete", "tokyo", "--yes"]).unwrap();
        assert_eq!(names(), []);
        let added = operator.run(&["peers", "add", &address, "--name", "new-agent", flag]).unwrap();
        assert_eq!(added.exit, 0, "{added:?}");
        assert!(added.stderr.lines().any(|l| l.starts_with(shown) && l.ends_with("/v1/peers")), "{}", added.stderr);
        assert!(!added.stderr.contains("sec_") || added.stderr.contains("sec_***"), "{}", added.stderr);
        assert_eq!(names(), [(json!("new-agent"), json!("tokyo"))]);
        operator.ok(&["peers", "update", "new-agent", "--name", "tokyo"]).unwrap();
    }
}

// accepts: 002-05, 002-06, 002-07, 002-08, 002-09, 002-13, 002-41
#[test]
fn a_service_is_created_by_flags_as_by_json() {
    if !require(&PRODUCT) {
        return;
    }
    let (cluster, _sites) = cluster("flags");
    let operator = &cluster.operator;
    let tokyo = object(operator, &["peers", "get", "tokyo"])["id"].clone();
    let cases: [(&[&str], Value); 5] = [
        (&["--requires-interface"], json!({"requires_interface": true})),
        (
            &["--requires-interface", "--desired-ipv4", "192.168.100.10/24"],
            json!({"requires_interface": true, "desired_ipv4_cidr": "192.168.100.10/24"}),
        ),
        (&["--bandwidth-limit", "1000"], json!({"bandwidth_limit_mbps": 1000})),
        (
            &["--fully-transparent", "--requires-interface"],
            json!({"fully_transparent": true, "requires_interface": true}),
        ),
        (&["--transport", "kcp"], json!({"transport_type": "kcp"})),
    ];
    for (flags, fields) in cases {
        let by_flags = object(operator, &[&["services", "create", "--target-peer", "tokyo"], flags].concat());
        let mut body = fields.clone();
        body["target_peer_id"] = tokyo.clone();
        let by_json = object(operator, &["api", "POST", "/v1/services", "--data", &body.to_string()]);
        for (key, value) in fields.as_object().unwrap() {
            assert_eq!((&by_flags[key], &by_json[key]), (value, value), "{flags:?}");
        }
        operator.ok(&["services", "delete", "--all", "--target-peer", "tokyo", "--yes"]).unwrap();
    }
    // 1 Gbit/s in other words; 0 is no limit.
    let create =
        |limit: &str| object(operator, &["services", "create", "--target-peer", "tokyo", "--bandwidth-limit", limit]);
    assert_eq!(create("1G")["bandwidth_limit_mbps"], 1000);
    let unlimited = create("0");
    let listed = operator.ok(&["services", "list", "-o", "wide"]).unwrap();
    assert!(listed.contains("1000Mbit") && listed.contains("unlimited"), "{listed}");

    let id = unlimited["id"].as_str().unwrap();
    let all = ["routes", "add", "--service", id, "--source-cidr", "10.0.0.0/8", "--dest-cidr", "0.0.0.0/0", "--wait"];
    operator.ok(&all).unwrap();
    let result = |src: &str, dst: &str| {
        let answer = object(operator, &["routes", "explain", "--src", src, "--dst", dst, "--dport", "443"]);
        answer["result"].as_str().unwrap().to_owned()
    };
    for dst in ["1.1.1.1", "192.168.7.7", "172.31.9.9"] {
        assert_eq!(
            (result("10.200.1.1", dst).as_str(), result("172.30.1.1", dst).as_str()),
            ("captured", "not_captured")
        );
    }
}

// accepts: 001-21, 001-81, 002-62, 002-67
#[test]
fn a_sync_tells_the_others_at_once_and_a_deletion_gets_there_by_itself() {
    if !require(&PRODUCT) {
        return;
    }
    let (cluster, _sites) = cluster("sync");
    let operator = &cluster.operator;
    let there = format!("http://{TOKYO_WAN}:{API_PORT}");
    let listed = || object(operator, &["services", "list", "--url", &there]).as_array().unwrap().len();
    let peers = || {
        let peers: Vec<Value> = operator.json(&["peers", "list"]).unwrap();
        peers.iter().map(|p| (p["id"].clone(), p["status"].clone())).collect::<Vec<_>>()
    };
    eventually("both are healthy", || peers().iter().all(|(_, status)| status == "healthy"));
    let before = peers();
    let id = serve_through_tokyo(operator, &[SERVER_NET]).unwrap();
    assert_eq!(operator.ok(&["cluster", "sync"]).unwrap(), "Cluster sync triggered\n");
    assert_eq!(listed(), 1, "no heartbeat is waited for");
    for n in 0..3 {
        operator.ok(&["api", "POST", "/v1/cluster/lock", "--data", r#"{"purpose": "test"}"#]).unwrap();
        operator.ok(&["cluster", "lock", "clear"]).unwrap();
        let name = format!("unlocked-{n}");
        let create = ["services", "create", "--target-peer", "london", "--name", &name, "--url", &there];
        operator.ok(&create).unwrap();
        operator.ok(&["services", "delete", &name, "--yes", "--url", &there]).unwrap();
    }
    operator.ok(&["services", "delete", &id, "--yes"]).unwrap();
    let deleted = Instant::now();
    eventually("the deletion is known in tokyo", || listed() == 0);
    assert!(deleted.elapsed() < Duration::from_secs(5), "{:?}", deleted.elapsed());
    assert_eq!(peers(), before, "both peers are as they were");
}
