//! Statements of the source documents about whole hosts: ports, firewalls, NAT, files, licenses, the last resort.

// Real time is the subject here.
#![allow(clippy::disallowed_methods)]

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use arctic::model::PublicKey;
use netns_tests::agent::{Agent, AgentSettings, Cli, CliOutput, arctic_binary, http_get, license_binary};
use netns_tests::cluster::{Cluster, bootstrap_and_join, wait_for_route};
use netns_tests::lab::{Host, Lab, contains};
use netns_tests::probe::{Feature, require};
use netns_tests::service::{TcpService, seen_from};
use netns_tests::topology::{API_PORT, LONDON_WAN, Profile, SERVER, SERVER_NET, TOKYO_LAN, ThreeSites, TwoSites, at};
use netns_tests::vendor::{Grant, Vendor};
use rusqlite::{Connection, OpenFlags};
use rustix::process::Signal;
use serde_json::{Value, json};

const PRODUCT: [Feature; 5] = [Feature::Root, Feature::Veth, Feature::Tun, Feature::NftTproxy, Feature::NftSocket];
const DATA_PORT: u16 = 61000;
const MIRROR_PORT: u16 = 7000;
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Three heartbeats, with room for a busy machine.
const KNOWN_WITHIN: Duration = Duration::from_secs(60);
/// "Seconds".
const ADDED_WITHIN: Duration = Duration::from_secs(5);
/// "Within one or two seconds".
const APPLIED_WITHIN: Duration = Duration::from_secs(2);
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

#[track_caller]
fn eventually(what: &str, good: impl Fn() -> bool) {
    let deadline = Instant::now() + KNOWN_WITHIN;
    while !good() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::sleep(POLL_INTERVAL);
    }
}

fn url(address: IpAddr) -> String {
    format!("http://{address}:{API_PORT}")
}

fn license(lab: &Lab, name: &str, customer: Option<&str>) -> PathBuf {
    let path = lab.scratch().join(name);
    let grant = Grant { customer_id: customer.map(str::to_owned), ..Grant::default() };
    Vendor::find().unwrap().issue(&grant, &path).unwrap();
    path
}

/// An agent that finds no program to run: what it does to the kernel, it does itself.
fn alone(lab: &Lab, host: &Host) -> Agent {
    let mut settings = AgentSettings::new(lab.scratch(), host.name());
    settings.environment.insert("PATH".to_owned(), "/nonexistent".to_owned());
    Agent::start(host, settings).unwrap()
}

fn bootstrap(operator: &Cli, address: IpAddr, license: &Path, name: &str) -> CliOutput {
    let (url, license) = (url(address), license.to_str().unwrap());
    operator.run(&["bootstrap", "--url", &url, "--license-file", license, "--name", name]).unwrap()
}

fn field(file: &Path, key: &str) -> String {
    let document: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    document[key].as_str().unwrap().to_owned()
}

/// A UDP probe as traceroute sends it, to a port that nobody has: the far end answers that it is closed.
fn probe(host: &Host, to: IpAddr) -> ErrorKind {
    host.run(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        socket.connect((to, 33434)).unwrap();
        socket.send(b"probe").unwrap();
        socket.recv(&mut [0; 8]).unwrap_err().kind()
    })
}

// accepts: 000-31, 001-15, 001-52, 001-55, 001-56, 003-01, 003-17
#[test]
fn peers_are_added_in_seconds_by_one_customer_over_a_port_that_is_open_both_ways() {
    if !require(&PRODUCT) {
        return;
    }
    let sites = ThreeSites::build(Lab::new("ports").unwrap()).unwrap();
    let ours = license(&sites.lab, "ours.json", None);
    let again = license(&sites.lab, "again.json", Some(&field(&ours, "customer_id")));
    let theirs = license(&sites.lab, "theirs.json", None);
    let hosts =
        [(&sites.london, ThreeSites::LONDON), (&sites.tokyo, ThreeSites::TOKYO), (&sites.oslo, ThreeSites::OSLO)];
    let agents = hosts.map(|(host, _)| alone(&sites.lab, host));
    let operators = hosts.map(|(host, _)| Cli::new(host, &sites.lab.scratch().join(host.name()).join("home")).unwrap());
    for ((host, address), (operator, license)) in hosts.iter().zip(operators.iter().zip([&ours, &again, &theirs])) {
        let (status, body) = http_get(host, at(LOOPBACK, API_PORT), "/v1/services").unwrap();
        assert!(status == 409 && body.contains("NOT_BOOTSTRAPPED"), "without a license: {status} {body}");
        bootstrap(operator, *address, license, host.name()).ok().unwrap();
        let shown: Value = operator.json(&["license", "show"]).unwrap();
        assert_eq!(shown["license_id"], field(license, "license_id").as_str());
    }
    assert_eq!(field(&ours, "customer_id"), field(&again, "customer_id"));
    assert_ne!(field(&ours, "license_id"), field(&again, "license_id"));
    let london = &operators[0];
    let add = |address: IpAddr| london.run(&["peers", "add", &format!("{address}:{API_PORT}")]).unwrap();

    let block = |address: IpAddr| {
        let rule = format!("ip daddr {address} tcp dport {API_PORT} reject with tcp reset");
        let chain = "add table ip wall; add chain ip wall forward { type filter hook forward priority 0; }; \
                     flush chain ip wall forward; add rule ip wall forward";
        sites.exchange.sh(&format!("nft '{chain} {rule}'")).unwrap();
    };
    block(ThreeSites::LONDON);
    let refused = add(ThreeSites::TOKYO);
    assert_eq!((refused.exit, refused.stderr.lines().next()), (1, Some("Error: handshake failed: connection refused")));
    assert!(
        refused.stderr.contains("reverse") && refused.stderr.contains(&ThreeSites::LONDON.to_string()),
        "{refused:?}"
    );
    block(ThreeSites::TOKYO);
    let refused = add(ThreeSites::TOKYO);
    assert_eq!((refused.exit, refused.stderr.lines().next()), (1, Some("Error: handshake failed: connection refused")));
    assert!(!refused.stderr.contains("reverse"), "{refused:?}");
    let api = london.run(&["cluster", "identity", "--url", &url(ThreeSites::TOKYO)]).unwrap();
    assert_eq!(api.exit, 4, "the operator's API needs the port too: {api:?}");
    sites.exchange.sh("nft delete table ip wall").unwrap();

    let began = Instant::now();
    add(ThreeSites::TOKYO).ok().unwrap();
    for (operator, other) in [(london, "tokyo"), (&operators[1], "london")] {
        eventually("each holds the other", || {
            let peer: Option<Value> = operator.json(&["peers", "get", other]).ok();
            peer.is_some_and(|p| p["status"] == "healthy")
        });
    }
    assert!(began.elapsed() < ADDED_WITHIN, "{:?}", began.elapsed());
    let mismatch = add(ThreeSites::OSLO);
    assert_eq!(mismatch.stderr.lines().next(), Some("Error: handshake failed: license mismatch"), "{mismatch:?}");

    let ids = [london, &operators[1]].map(|o| {
        let identity: Value = o.json(&["cluster", "identity"]).unwrap();
        identity["peer_id"].as_str().unwrap().to_owned()
    });
    for agent in &agents[..2] {
        let log = agent.log().unwrap();
        let told =
            |line: &&str| line.contains("handshake succeeded") && ids.iter().all(|id| line.contains(id.as_str()));
        assert!(log.lines().any(|line| told(&line)), "{log}");
    }

    let paths = || {
        [(&sites.london, ThreeSites::TOKYO), (&sites.tokyo, ThreeSites::LONDON)].map(|(host, to)| {
            let hop = host.sh(&format!("ping -n -c 1 -t 1 {to} || true")).unwrap();
            let hop = hop.lines().find(|l| l.contains("Time to live exceeded")).map(str::to_owned);
            (host.sh(&format!("ping -n -c 1 {to}")).is_ok(), hop, probe(host, to))
        })
    };
    let before = paths();
    assert!(before.iter().all(|(pong, hop, end)| *pong && hop.is_some() && *end == ErrorKind::ConnectionRefused));
    london.ok(&["services", "create", "--target-peer", "tokyo", "--name", "l2t"]).unwrap();
    london.ok(&["routes", "add", "--service", "l2t", "--dest-cidr", "10.91.0.0/16", "--wait"]).unwrap();
    assert_eq!(paths(), before, "with a service between them");
}

/// Everything below a directory, by path.
fn files(directory: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path).into_iter().map(|f| format!("{}/{f}", path.file_name().unwrap().display())));
        } else {
            found.insert(path.file_name().unwrap().to_str().unwrap().to_owned());
        }
    }
    found
}

/// Whether the agent's database holds a live service record with this text.
fn is_stored(agent: &Agent, text: &str) -> bool {
    let path = agent.settings().data_dir().join("arctic.db");
    let database = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let query = "SELECT count(*) FROM records WHERE kind = 'service' AND deleted = 0 AND instr(body, ?1) > 0";
    let count: i64 = database.query_row(query, [text], |row| row.get(0)).unwrap();
    count > 0
}

// accepts: 001-02, 001-04, 001-09, 001-62, 001-67, 001-79
#[test]
fn a_change_is_stored_and_then_applied_by_the_agent_alone_and_without_files() {
    if !require(&PRODUCT) {
        return;
    }
    let sites = TwoSites::build(Lab::new("applied").unwrap(), Profile::CLEAN, 1).unwrap();
    // The host's own firewall, where iptables-nft keeps it.
    let own = "add table ip filter; add chain ip filter INPUT { type filter hook input priority 0; policy accept; }; \
               add rule ip filter INPUT tcp dport 8080 counter accept";
    sites.london.sh(&format!("nft '{own}'")).unwrap();
    let firewall = || {
        let lines = sites.london.sh("nft list table ip filter").unwrap();
        lines.lines().map(|line| line.split(" counter ").next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let before = firewall();

    // Nobody can listen on the data port, so that nothing can be captured yet.
    let thief = sites.london.run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, DATA_PORT))).unwrap();
    let mut london = alone(&sites.lab, &sites.london);
    let _tokyo = alone(&sites.lab, &sites.tokyo);
    let license = license(&sites.lab, "license.json", None);
    // The operator sits on the client's host: no process but the agent is inside london.
    let home = sites.lab.scratch().join("operator");
    let operator = Cli::new(&sites.client, &home).unwrap();
    bootstrap_and_join(&operator, &Cli::new(&sites.tokyo, &home).unwrap(), &license).unwrap();
    let table = || sites.london.sh("nft list table inet arctic").unwrap();
    let rules_at_client = || sites.client.sh("nft list ruleset; ip rule; ip route show table all proto 97").unwrap();
    let client_before = rules_at_client();

    operator.ok(&["services", "create", "--target-peer", "tokyo", "--name", "l2t"]).unwrap();
    operator.ok(&["routes", "add", "--service", "l2t", "--dest-cidr", "10.91.0.0/16"]).unwrap();
    let file = sites.lab.scratch().join("cluster.yaml");
    let text = operator.ok(&["compose", "export"]).unwrap().replace("10.91.0.0/16", "10.92.0.0/16");
    fs::write(&file, text).unwrap();
    operator.ok(&["compose", "apply", file.to_str().unwrap(), "--yes"]).unwrap();
    for cidr in ["10.91.0.0/16", "10.92.0.0/16"] {
        assert!(is_stored(&london, cidr), "{cidr} by API or compose is in the database");
        assert!(!table().contains(cidr), "{cidr}: whoever stores it does not write to the kernel");
    }
    drop(thief);
    wait_for_route(&sites.london, "10.91.0.0/16").unwrap();

    let written = files(&london.settings().directory);
    for (cidr, present) in [("10.93.0.0/16", true), ("10.91.0.0/16", false)] {
        let routes: Vec<Value> = operator.json(&["routes", "list", "--service", "l2t"]).unwrap();
        match routes.iter().find(|r| r["dest_cidr"] == cidr) {
            Some(route) => {
                let id = route["id"].to_string();
                operator.ok(&["routes", "delete", "--service", "l2t", "--route", &id, "--yes"]).unwrap();
            }
            None => drop(operator.ok(&["routes", "add", "--service", "l2t", "--dest-cidr", cidr]).unwrap()),
        }
        let answered = Instant::now();
        eventually("it is applied", || table().contains(cidr) == present);
        assert!(answered.elapsed() < APPLIED_WITHIN, "{:?}", answered.elapsed());
    }
    assert_eq!(files(&london.settings().directory), written, "a change makes no file");
    let known =
        ["agent.log", "data/agent.lock", "data/arctic.db", "data/arctic.db-shm", "data/arctic.db-wal", "data/peer.key"];
    let known: BTreeSet<String> = known.into_iter().chain(["recovery.token"]).map(str::to_owned).collect();
    assert_eq!(written, known, "no configuration file, no rule file");
    let marker = london.settings().data_dir().join("peer.key");
    let places = "/etc /run /var/lib /opt /usr/local";
    let rules = format!("find {places} -xdev -name '*.nft' -newer {} 2>/dev/null || true", marker.display());
    assert_eq!(sites.london.sh(&rules).unwrap(), "");

    let pid = london.process().pid();
    assert_eq!(sites.london.namespace().processes(), [pid.cast_signed()], "and it is the process that was started");
    assert_eq!(rules_at_client(), client_before, "the command line writes none");
    assert_eq!(firewall(), before, "the host's own firewall");
    let hits = sites.london.sh("nft list ruleset | grep 8080").unwrap();
    let (own, ours): (Vec<&str>, Vec<&str>) = hits.lines().partition(|line| line.contains("tcp dport 8080 counter"));
    assert_eq!(own.len(), 1, "{hits}");
    assert!(ours.iter().all(|line| line.contains("8080,") || line.contains(". 8080")), "exclusions only: {hits}");
}

// accepts: 001-60, 001-61
#[test]
fn the_last_resort_keeps_the_identity_drops_what_only_this_node_knew_and_the_members_come_back() {
    if !require(&PRODUCT) {
        return;
    }
    let sites = TwoSites::build(Lab::new("resort").unwrap(), Profile::CLEAN, 1).unwrap();
    let Cluster { london, mut tokyo, operator } = Cluster::form(&sites, &Grant::default()).unwrap();
    operator.ok(&["services", "create", "--target-peer", "tokyo", "--name", "l2t"]).unwrap();
    operator.ok(&["peers", "update", "tokyo", "--name", "far-east", "--qos=false"]).unwrap();
    operator.ok(&["cluster", "sync"]).unwrap();
    let peers = |operator: &Cli| operator.json::<Vec<Value>>(&["peers", "list", "--url", "http://localhost:8080"]);
    let local = |peers: &[Value]| peers.iter().find(|p| p["is_local"] == true).unwrap()["id"].clone();
    let before = peers(&operator).unwrap();

    let settings = AgentSettings::new(sites.lab.scratch(), "london");
    assert!(london.stop().unwrap().success());
    // The members are silent until we have looked at what london has without them.
    tokyo.process().signal(Signal::STOP).unwrap();
    fs::remove_file(settings.data_dir().join("arctic.db")).unwrap();
    let _london = Agent::start(&sites.london, settings).unwrap();
    let fresh = Cli::new(&sites.london, &sites.lab.scratch().join("fresh")).unwrap();
    let license = sites.lab.scratch().join("license.json");
    let line = ["bootstrap", "--url", "http://localhost:8080", "--license-file", license.to_str().unwrap()];
    fresh.ok(&line).unwrap();
    assert_eq!(local(&peers(&fresh).unwrap()), local(&before), "the same peer");
    let old = operator.run(&["peers", "list", "--url", &url(LONDON_WAN)]).unwrap();
    assert_eq!(old.exit, 5, "credentials went with the database, until the members bring them back: {old:?}");
    tokyo.process().signal(Signal::CONT).unwrap();
    eventually("the members come back by themselves", || {
        let known = peers(&fresh).unwrap_or_default();
        known.iter().any(|p| p["status"] == "healthy" && p["self_name"] == "tokyo")
    });
    let known = peers(&fresh).unwrap();
    let tokyo_here = known.iter().find(|p| p["self_name"] == "tokyo").unwrap();
    assert_eq!((&tokyo_here["name"], &tokyo_here["qos_enabled"]), (&json!("tokyo"), &json!(true)), "no alias, no QoS");
    eventually("and bring its own services", || {
        fresh.json::<Vec<Value>>(&["services", "list"]).is_ok_and(|s| s.iter().any(|s| s["name"] == "l2t"))
    });
    drop(tokyo);
}

// accepts: 003-03, 003-04, 003-05
#[test]
fn a_license_is_judged_by_the_keys_in_the_binary_without_a_network_and_no_setting_adds_one() {
    if !require(&PRODUCT) {
        return;
    }
    let mut lab = Lab::new("roots").unwrap();
    let host = lab.host("london").unwrap();
    assert_eq!(host.sh("ip -o link | wc -l").unwrap().trim(), "1", "there is no network but loopback");
    let genuine = license(&lab, "license.json", None);
    let other = lab.scratch().join("other");
    let tool = |arguments: &[&str]| {
        let output = Command::new(license_binary().unwrap()).args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    tool(&["keygen", "--out", other.to_str().unwrap()]);
    let (key, forged) = (other.join("vendor.key"), other.join("license.json"));
    let issue = ["issue", "--max-nodes", "3", "--max-services", "3", "--features", "*", "--days", "9"];
    tool(&[&issue[..], &["--key", key.to_str().unwrap(), "--out", forged.to_str().unwrap()]].concat());
    let public =
        fs::read_dir(&other).unwrap().map(|e| e.unwrap().path()).find(|p| p.extension() == Some("pub".as_ref()));
    let public = public.unwrap();

    // Every place where a setting might be looked for.
    let mut settings = AgentSettings::new(lab.scratch(), "london");
    for directory in [settings.data_dir(), settings.directory.clone(), lab.scratch().to_owned()] {
        fs::create_dir_all(directory.join("license-keys")).unwrap();
        fs::copy(&public, directory.join("license-keys").join(public.file_name().unwrap())).unwrap();
    }
    for name in ["ARCTIC_LICENSE_KEYS", "ARCTIC_LICENSE_KEY", "LICENSE_KEYS", "LICENSE_KEY", "ARCTIC_TRUST_ROOTS"] {
        settings.environment.insert(name.to_owned(), public.display().to_string());
    }
    let operator = Cli::new(&host, &lab.scratch().join("operator")).unwrap();
    let state = || {
        let output = operator.run(&["status", "-j"]).unwrap();
        let shown: Value = serde_json::from_str(&output.stdout).unwrap();
        (shown["state"].as_str().unwrap().to_owned(), output.exit)
    };
    let is_agent_host = ["/etc/arctic", "/opt/tillered"].iter().any(|mark| Path::new(mark).exists());
    assert_eq!(state(), (if is_agent_host { "unreachable" } else { "not_installed" }.to_owned(), 4));
    let _agent = Agent::start(&host, settings).unwrap();
    assert_eq!(state(), ("unbootstrapped".to_owned(), 6));
    let refused = bootstrap(&operator, LOOPBACK, &forged, "london");
    assert_eq!(refused.exit, 8, "{refused:?}");
    assert!(refused.stderr.contains("LICENSE_INVALID"), "{refused:?}");
    bootstrap(&operator, LOOPBACK, &genuine, "london").ok().unwrap();
    let refused = operator.run(&["license", "update", "--license-file", forged.to_str().unwrap()]).unwrap();
    assert!(refused.exit == 8 && refused.stderr.contains("LICENSE_INVALID"), "{refused:?}");

    let shown = operator.ok(&["version", "-v"]).unwrap();
    assert!(shown.contains(&field(&genuine, "key_id")) && !shown.contains(&field(&forged, "key_id")), "{shown}");
    let binary = fs::read(arctic_binary().unwrap()).unwrap();
    let bytes = |path: &Path| *fs::read_to_string(path).unwrap().trim().parse::<PublicKey>().unwrap().as_bytes();
    let vendor = Vendor::find().unwrap().public_key(&field(&genuine, "key_id"));
    assert!(contains(&binary, &bytes(&vendor)), "the key is in the binary");
    assert!(!contains(&binary, &bytes(&public)));
}

/// london - nat - tokyo - server, where only the router's outer address is known to london.
struct BehindNat {
    london: Host,
    tokyo: Host,
    server: Host,
    _nat: Host,
    lab: Lab,
}

const NAT_OUTSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 71, 0, 2));

impl BehindNat {
    fn build() -> BehindNat {
        let mut lab = Lab::new("nat").unwrap();
        let [london, nat, tokyo, server] = ["london", "nat", "tokyo", "server"].map(|name| lab.host(name).unwrap());
        lab.veth(&london, &nat, &["10.71.0.1/30"], &["10.71.0.2/30"]).unwrap();
        lab.veth(&nat, &tokyo, &["192.168.50.1/24"], &["192.168.50.2/24"]).unwrap();
        lab.veth(&tokyo, &server, &["10.71.2.1/24"], &["10.71.2.2/24"]).unwrap();
        london.route("default", "10.71.0.2").unwrap();
        tokyo.route("default", "192.168.50.1").unwrap();
        server.route("default", "10.71.2.1").unwrap();
        nat.forward().unwrap();
        let forwarded = format!("iifname to-london tcp dport {{ {API_PORT}, {DATA_PORT} }} dnat to 192.168.50.2");
        let rules = format!(
            "add table ip nat; add chain ip nat pre {{ type nat hook prerouting priority dstnat; }}; \
             add chain ip nat post {{ type nat hook postrouting priority srcnat; }}; \
             add rule ip nat pre {forwarded}; add rule ip nat post oifname to-london masquerade; \
             add table ip wall; add chain ip wall forward {{ type filter hook forward priority 0; policy drop; }}; \
             add rule ip wall forward iifname to-tokyo accept; \
             add rule ip wall forward ct state established,related accept; \
             add rule ip wall forward ct status dnat accept"
        );
        nat.sh(&format!("nft '{rules}'")).unwrap();
        BehindNat { london, tokyo, server, _nat: nat, lab }
    }
}

// accepts: 001-58
#[test]
fn a_peer_behind_nat_is_added_by_the_public_address_and_carries_traffic_through_forwarded_ports() {
    if !require(&PRODUCT) {
        return;
    }
    let net = BehindNat::build();
    let _mirror = TcpService::mirror(&net.server, SocketAddr::from((Ipv4Addr::UNSPECIFIED, MIRROR_PORT))).unwrap();
    let _agents = [&net.london, &net.tokyo].map(|host| alone(&net.lab, host));
    let license = license(&net.lab, "license.json", None);
    let [operator, there] = [&net.london, &net.tokyo]
        .map(|host| Cli::new(host, &net.lab.scratch().join(host.name()).join("home")).unwrap());
    bootstrap(&operator, LONDON_WAN, &license, "london").ok().unwrap();
    // On its own host, where nothing tells it the public address.
    bootstrap(&there, LOOPBACK, &license, "tokyo").ok().unwrap();
    let added: Value =
        operator.json(&["peers", "add", &format!("{NAT_OUTSIDE}:{API_PORT}"), "--name", "tokyo"]).unwrap();
    assert_eq!(added["endpoints"][0], format!("{NAT_OUTSIDE}:{API_PORT}"));
    for (cli, other) in [(&operator, "tokyo"), (&there, "london")] {
        eventually("both are healthy", || {
            cli.json::<Value>(&["peers", "get", other]).is_ok_and(|peer| peer["status"] == "healthy")
        });
    }
    operator.ok(&["services", "create", "--target-peer", "tokyo", "--name", "l2t"]).unwrap();
    operator.ok(&["routes", "add", "--service", "l2t", "--dest-cidr", SERVER_NET, "--wait"]).unwrap();
    assert_eq!(seen_from(&net.london, at(SERVER, MIRROR_PORT)).unwrap(), TOKYO_LAN, "carried to the far end");
}
