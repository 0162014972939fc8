//! What a real agent leaves in the kernel at each turn of its life: start, clash, stop, death, return.

// Real time is the subject here.
#![allow(clippy::disallowed_methods)]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use netns_tests::agent::{Agent, AgentSettings, Cli, http_get};
use netns_tests::cluster::{Cluster, serve_through_tokyo, wait_for_route, wait_for_table};
use netns_tests::lab::{Capture, Host, Lab, contains};
use netns_tests::probe::{Feature, require};
use netns_tests::service::{TcpService, seen_from};
use netns_tests::topology::{self, API_PORT, Profile, SERVER, SERVER_NET, SERVER_NET_V6, SERVER_V6, TwoSites, at};
use netns_tests::vendor::Grant;

const PRODUCT: [Feature; 5] = [Feature::Root, Feature::Veth, Feature::Tun, Feature::NftTproxy, Feature::NftSocket];
const MIRROR_PORT: u16 = 7000;
const ECHO_PORT: u16 = 7;
const DATA_PORT: u16 = 61000;
/// dataplane.md §10.
const FALL_BACK_WITHIN: Duration = Duration::from_secs(10);
const TRY_TIMEOUT: Duration = Duration::from_millis(200);
/// A flow whose ground is gone is reset within this time.
const RESET_WITHIN: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(30);
/// Engines that cannot start are tried again after a pause that doubles up to this.
const TRIED_AGAIN_WITHIN: Duration = Duration::from_secs(61);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Two sites with agents and servers; the service comes with `serve`.
struct World {
    cluster: Cluster,
    _servers: [TcpService; 2],
    sites: TwoSites,
}

impl World {
    fn new(name: &str) -> World {
        let sites = TwoSites::build(Lab::new(name).unwrap(), Profile::CLEAN, 1).unwrap();
        let cluster = Cluster::form(&sites, &Grant::default()).unwrap();
        let any = |port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let servers = [
            TcpService::mirror(&sites.server, any(MIRROR_PORT)).unwrap(),
            TcpService::echo(&sites.server, any(ECHO_PORT)).unwrap(),
        ];
        World { cluster, _servers: servers, sites }
    }

    fn serving(name: &str) -> World {
        let world = World::new(name);
        serve_through_tokyo(&world.cluster.operator, &[SERVER_NET, SERVER_NET_V6]).unwrap();
        stands(&world.sites.london);
        world
    }
}

/// Everything there is about the routes is in the kernel.
fn stands(london: &Host) {
    for net in [SERVER_NET, SERVER_NET_V6] {
        wait_for_route(london, net).unwrap();
    }
}

/// The policy is `rules` again: no rule twice, none missing.
#[track_caller]
fn has_policy(london: &Host, rules: &str) {
    within(PATIENCE, "the same policy", || {
        let found = policy(london);
        ensure!(found == rules, "{found}\nis not\n{rules}");
        Ok(())
    });
}

#[track_caller]
fn within<T>(limit: Duration, what: &str, mut attempt: impl FnMut() -> Result<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        match attempt() {
            Ok(found) => return found,
            Err(error) if Instant::now() >= deadline => panic!("never in {limit:?}: {what}: {error:#}"),
            Err(_) => std::thread::sleep(POLL_INTERVAL),
        }
    }
}

fn settings(sites: &TwoSites, name: &str, environment: &[(&str, &str)]) -> AgentSettings {
    let mut settings = AgentSettings::new(sites.lab.scratch(), name);
    settings.environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    settings
}

fn tables(host: &Host) -> String {
    host.sh("nft list table inet arctic; nft list table inet arctic_iptun").unwrap()
}

fn policy(host: &Host) -> String {
    host.sh("ip -4 rule; ip -6 rule; ip -4 route show table 610; ip -6 route show table 610").unwrap()
}

/// Flows from the client and from london itself, in both families.
fn flows(sites: &TwoSites) -> Vec<TcpStream> {
    let open = |host: &Host, server: IpAddr| {
        let mut flow = host.run(|| TcpStream::connect_timeout(&at(server, ECHO_PORT), PATIENCE)).unwrap();
        flow.set_read_timeout(Some(PATIENCE)).unwrap();
        echo(&mut flow).unwrap();
        flow
    };
    [&sites.client, &sites.london].into_iter().flat_map(|host| [SERVER, SERVER_V6].map(|s| open(host, s))).collect()
}

fn echo(flow: &mut TcpStream) -> std::io::Result<()> {
    flow.write_all(b"x")?;
    flow.read_exact(&mut [0])
}

/// The flow is reset, not ended as if it were complete.
fn assert_reset(flow: &mut TcpStream, since: Instant) {
    let end = flow.read(&mut [0]);
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    assert!(since.elapsed() < RESET_WITHIN, "it took {:?}", since.elapsed());
}

#[test]
fn an_agent_that_is_not_bootstrapped_keeps_base_tables() {
    if !require(&PRODUCT) {
        return;
    }
    let mut lab = Lab::new("base").unwrap();
    let host = lab.host("london").unwrap();
    let agent = Agent::start(&host, AgentSettings::new(lab.scratch(), "london")).unwrap();
    let found = wait_for_table(&host, "chain prerouting").unwrap();
    for text in ["hook prerouting priority mangle", "hook output priority mangle", "chain input", "fib daddr type"] {
        assert!(found.contains(text), "{text}: {found}");
    }
    assert!(!tables(&host).contains("tproxy"), "base chains and exclusions only");
    assert!(tables(&host).contains("table inet arctic_iptun"));
    let log = agent.log().unwrap();
    for line in ["component=fwmgr reconciler=firewall started", "component=tproxymgr reconciler=tproxy started"] {
        assert!(log.contains(line), "{line}: {log}");
    }
    assert!(agent.stop().unwrap().success());
    assert!(!host.kernel_state().unwrap().contains("arctic"));
}

#[test]
fn a_taken_data_port_leaves_base_tables_and_names_port_and_setting_until_it_is_free() {
    if !require(&PRODUCT) {
        return;
    }
    let World { cluster: Cluster { london, tokyo: _tokyo, operator }, sites, _servers } = World::serving("port");
    assert!(london.stop().unwrap().success());
    let thief = sites.london.run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, DATA_PORT))).unwrap();
    let agent = Agent::start(&sites.london, settings(&sites, "london", &[])).unwrap();
    wait_for_table(&sites.london, "chain prerouting").unwrap();
    let ready = |host: &Host| http_get(host, SocketAddr::from(([127, 0, 0, 1], API_PORT)), "/readyz?verbose=true");
    within(PATIENCE, "the failure shows", || {
        let (status, body) = ready(&sites.london)?;
        let named = ["61000/tcp", "TPROXY_PORT", "in use"].iter().all(|text| body.contains(text));
        ensure!(status == 503 && named, "{status} {body}");
        Ok(())
    });
    assert!(!tables(&sites.london).contains("tproxy"), "base chains and exclusions only");
    let services: Vec<serde_json::Value> = operator.json(&["services", "list"]).unwrap();
    assert!(services[0].to_string().contains("ENGINE_UNAVAILABLE"), "{services:?}");
    assert_eq!(seen_from(&sites.client, at(SERVER, MIRROR_PORT)).unwrap(), topology::CLIENT);
    drop(thief);
    within(TRIED_AGAIN_WITHIN, "it recovers", || {
        let seen = seen_from(&sites.client, at(SERVER, MIRROR_PORT))?;
        ensure!(seen == topology::TOKYO_LAN, "{seen}");
        Ok(())
    });
    within(PATIENCE, "it is ready", || {
        let (status, body) = ready(&sites.london)?;
        ensure!(status == 200, "{status} {body}");
        Ok(())
    });
    drop(agent);
}

#[test]
fn a_second_agent_on_a_host_ends_at_once_and_takes_nothing_from_the_first() {
    if !require(&PRODUCT) {
        return;
    }
    let world = World::serving("second");
    let (before, rules) = (tables(&world.sites.london), policy(&world.sites.london));
    let token = std::fs::read(world.cluster.london.settings().recovery_token()).unwrap();
    let mut second = settings(&world.sites, "second", &[("TPROXY_PORT", "61001")]);
    second.api_port = 9090;
    let error = Agent::start(&world.sites.london, second).err().expect("it does not start");
    assert!(format!("{error:#}").contains("another arctic agent runs on this host"), "{error:#}");
    let stable = |text: String| text.lines().filter(|l| !l.contains("expires")).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(stable(tables(&world.sites.london)), stable(before));
    assert_eq!(policy(&world.sites.london), rules);
    assert_eq!(std::fs::read(world.cluster.london.settings().recovery_token()).unwrap(), token);
    assert_eq!(seen_from(&world.sites.client, at(SERVER, MIRROR_PORT)).unwrap(), topology::TOKYO_LAN);
}

#[test]
fn a_stop_resets_captured_flows_and_is_quick() {
    if !require(&PRODUCT) {
        return;
    }
    let World { cluster: Cluster { london, tokyo, .. }, sites, _servers } = World::serving("flows");
    let mut captured = flows(&sites);
    let stopped = Instant::now();
    assert!(london.stop().unwrap().success());
    assert!(stopped.elapsed() < RESET_WITHIN, "it took {:?}", stopped.elapsed());
    captured.iter_mut().for_each(|flow| assert_reset(flow, stopped));
    assert!(!sites.london.kernel_state().unwrap().contains("arctic"));
    assert!(tokyo.stop().unwrap().success());
}

#[test]
fn a_stop_that_keeps_the_kernel_state_is_taken_over_by_the_next_start() {
    if !require(&PRODUCT) {
        return;
    }
    let World { cluster: Cluster { london, tokyo: _tokyo, .. }, sites, _servers } = World::serving("keep");
    assert!(london.stop().unwrap().success());
    let keeping = Agent::start(&sites.london, settings(&sites, "london", &[("ON_STOP", "keep")])).unwrap();
    stands(&sites.london);
    let rules = policy(&sites.london);
    assert!(keeping.stop().unwrap().success());
    assert!(tables(&sites.london).contains("tproxy"), "kept");
    assert_eq!(policy(&sites.london), rules);
    // Without a listener the kept rules capture nothing.
    assert_eq!(seen_from(&sites.client, at(SERVER, MIRROR_PORT)).unwrap(), topology::CLIENT);
    let agent = Agent::start(&sites.london, settings(&sites, "london", &[])).unwrap();
    within(PATIENCE, "captured again", || {
        let seen = seen_from(&sites.client, at(SERVER, MIRROR_PORT))?;
        ensure!(seen == topology::TOKYO_LAN, "{seen}");
        Ok(())
    });
    has_policy(&sites.london, &rules);
    assert!(agent.stop().unwrap().success());
    assert!(!sites.london.kernel_state().unwrap().contains("arctic"));
}

// accepts: 001-72, 001-78
#[test]
fn local_traffic_of_a_killed_agent_falls_back_and_a_restart_rebuilds_everything() {
    if !require(&PRODUCT) {
        return;
    }
    let World { cluster: Cluster { london, tokyo: _tokyo, .. }, sites, _servers } = World::serving("back");
    let rules = policy(&sites.london);
    let mut captured = flows(&sites);
    london.kill().unwrap();
    let killed = Instant::now();
    captured.iter_mut().for_each(|flow| assert_reset(flow, killed));
    let plain = [(SERVER, topology::LONDON_WAN), (SERVER_V6, "fd71::1".parse().unwrap())];
    for (server, source) in plain {
        let left = FALL_BACK_WITHIN.saturating_sub(killed.elapsed());
        within(left, "plain routing", || {
            let stream = sites.london.run(|| {
                let stream = TcpStream::connect_timeout(&at(server, MIRROR_PORT), TRY_TIMEOUT)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                Ok::<_, std::io::Error>(stream)
            });
            let mut line = String::new();
            stream?.read_to_string(&mut line)?;
            ensure!(line.trim() == source.to_string(), "{line}");
            Ok(())
        });
    }
    sites.london.sh("nft delete rule inet arctic prerouting handle $(nft -a list chain inet arctic prerouting | sed -n 's/.*tproxy ip to.*handle //p')").unwrap();
    let agent = Agent::start(&sites.london, settings(&sites, "london", &[])).unwrap();
    within(PATIENCE, "captured again", || {
        let seen = seen_from(&sites.client, at(SERVER, MIRROR_PORT))?;
        ensure!(seen == topology::TOKYO_LAN, "{seen}");
        Ok(())
    });
    flows(&sites);
    has_policy(&sites.london, &rules);
    assert!(agent.stop().unwrap().success());
    assert!(!sites.london.kernel_state().unwrap().contains("arctic"));
}

#[test]
fn a_host_with_ipv6_switched_off_still_captures_ipv4() {
    if !require(&PRODUCT) {
        return;
    }
    let sites = TwoSites::build(Lab::new("v4only").unwrap(), Profile::CLEAN, 1).unwrap();
    for device in ["all", "default", "lo"] {
        sites.london.sysctl(&format!("net/ipv6/conf/{device}/disable_ipv6"), "1").unwrap();
    }
    let cluster = Cluster::form(&sites, &Grant::default()).unwrap();
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, MIRROR_PORT));
    let _mirror = TcpService::mirror(&sites.server, any).unwrap();
    serve_through_tokyo(&cluster.operator, &[SERVER_NET]).unwrap();
    wait_for_route(&sites.london, SERVER_NET).unwrap();
    assert_eq!(seen_from(&sites.client, at(SERVER, MIRROR_PORT)).unwrap(), topology::TOKYO_LAN);
    assert_eq!(seen_from(&sites.london, at(SERVER, MIRROR_PORT)).unwrap(), topology::TOKYO_LAN);
}

#[test]
fn deleting_a_peer_closes_its_flows_at_once_at_both_ends() {
    if !require(&PRODUCT) {
        return;
    }
    // The source removes its target, then the target its source.
    for remover in ["london", "tokyo"] {
        let world = World::serving(&format!("revoke-{remover}"));
        let mut captured = flows(&world.sites);
        let (host, other) = match remover {
            "london" => (&world.sites.london, "tokyo"),
            _ => (&world.sites.tokyo, "london"),
        };
        let operator = Cli::new(host, &world.sites.lab.scratch().join("operator")).unwrap();
        let url = format!("http://127.0.0.1:{API_PORT}");
        let peers: Vec<serde_json::Value> = operator.json(&["peers", "list", "--url", &url]).unwrap();
        let id = peers.iter().find(|p| p["is_local"] == false).and_then(|p| p["id"].as_str()).expect(other).to_owned();
        operator.ok(&["peers", "delete", &id, "--yes", "--url", &url]).unwrap();
        let deleted = Instant::now();
        captured.iter_mut().for_each(|flow| assert_reset(flow, deleted));
    }
}

// accepts: 001-86
#[test]
fn an_operators_session_survives_a_route_that_covers_it() {
    if !require(&PRODUCT) {
        return;
    }
    let world = World::new("session");
    let shell = TcpService::echo(&world.sites.tokyo, SocketAddr::from((Ipv6Addr::UNSPECIFIED, 22))).unwrap();
    // From london to tokyo, from the client to london, and from the client past both to a server.
    let london_shell = TcpService::echo(&world.sites.london, SocketAddr::from((Ipv6Addr::UNSPECIFIED, 22))).unwrap();
    let open = |host: &Host, to| host.run(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap();
    let mut sessions = [
        open(&world.sites.london, at(topology::TOKYO_WAN, 22)),
        open(&world.sites.client, at(topology::LONDON_LAN, 22)),
        open(&world.sites.client, at(SERVER, ECHO_PORT)),
        open(&world.sites.london, at(SERVER_V6, ECHO_PORT)),
    ];
    sessions.iter_mut().for_each(|s| echo(s).unwrap());
    serve_through_tokyo(&world.cluster.operator, &["0.0.0.0/0", "::/0"]).unwrap();
    for net in ["0.0.0.0/0", "::/0"] {
        wait_for_route(&world.sites.london, &format!("daddr {net}")).unwrap();
    }
    assert_eq!(seen_from(&world.sites.client, at(SERVER, MIRROR_PORT)).unwrap(), topology::TOKYO_LAN);
    sessions.iter_mut().for_each(|s| echo(s).unwrap());
    let livez = |host: &Host, to| http_get(host, at(to, API_PORT), "/livez").unwrap().0;
    assert_eq!(livez(&world.sites.london, topology::TOKYO_WAN), 200);
    assert_eq!(livez(&world.sites.tokyo, topology::LONDON_WAN), 200);
    drop((shell, london_shell));
}

#[test]
fn bytes_of_a_captured_flow_do_not_go_on_in_clear_when_its_agent_is_killed() {
    if !require(&PRODUCT) {
        return;
    }
    const PATTERN: &[u8] = b"secret words of a captured flow ";
    let World { cluster: Cluster { london, tokyo: _tokyo, .. }, sites, _servers } = World::serving("clear");
    // The client is far away: what it sends meets a host that has already reset the flow.
    sites.client.sh("nft add table inet deaf").unwrap();
    sites.client.sh("nft 'add chain inet deaf input { type filter hook input priority 0; }'").unwrap();
    let capture = Capture::start(&sites.london, "to-tokyo", sites.lab.scratch()).unwrap();
    let mut flows = flows(&sites);
    sites.client.sh("nft 'add rule inet deaf input tcp flags rst drop'").unwrap();
    london.kill().unwrap();
    // Those of the host itself are told.
    let killed = Instant::now();
    flows[2..].iter_mut().for_each(|flow| assert_reset(flow, killed));
    let told = flows.iter_mut().map(|flow| flow.write_all(PATTERN).is_ok()).collect::<Vec<_>>();
    assert_eq!(told, [true, true, false, false]);
    // Nothing is awaited: this is how long a leak would have had to show.
    std::thread::sleep(Duration::from_millis(500));
    assert!(!contains(&capture.stop().unwrap(), PATTERN));
}

// accepts: 000-56, 000-57, 000-59, 000-60, 000-63, 000-64
#[test]
fn an_agent_that_leaves_its_cluster_cleans_its_host_and_comes_back_as_nobody() {
    if !require(&PRODUCT) {
        return;
    }
    let World { cluster: Cluster { london, tokyo, operator }, sites, _servers } = World::serving("leave");
    assert!(london.stop().unwrap().success());
    let keeping = || settings(&sites, "london", &[("ON_STOP", "keep")]);
    let mut london = Agent::start(&sites.london, keeping()).unwrap();
    stands(&sites.london);
    let key = std::fs::read(london.settings().data_dir().join("peer.key")).unwrap();

    let unasked = operator.run(&["peers", "remove-self"]).unwrap();
    assert!(unasked.exit == 2 && unasked.stderr.contains("--yes"), "{unasked:?}");
    let said: serde_json::Value = operator.json(&["remove-self", "--yes"]).unwrap();
    let fields = ["action", "peer_id", "public_key", "cluster_id", "version", "deactivated_at", "signature"];
    assert!(said["action"] == "deactivated" && fields.iter().all(|field| !said[field].is_null()), "{said}");
    let status = london.process().wait(PATIENCE).unwrap().expect("it ends by itself");
    assert!(status.success(), "{status}: systemd does not start it again");
    assert!(!sites.london.kernel_state().unwrap().contains("arctic"), "also with ON_STOP=keep");
    assert_eq!(std::fs::read(london.settings().data_dir().join("peer.key")).unwrap(), key);
    assert_eq!(seen_from(&sites.client, at(SERVER, MIRROR_PORT)).unwrap(), topology::CLIENT);

    // London's credentials went with it; tokyo's host has the recovery token.
    let url = format!("http://{}:{API_PORT}", topology::TOKYO_WAN);
    let token = tokyo.settings().recovery_token();
    let at_tokyo = |arguments: &[&str]| {
        let how = ["--url", &url, "--recovery-token-file", token.to_str().unwrap(), "-j"];
        let answer = operator.ok(&[arguments, &how].concat()).unwrap();
        serde_json::from_str::<serde_json::Value>(&answer).unwrap()
    };
    let listed = within(PATIENCE, "tokyo knows that london left", || {
        let (peers, listed) = (at_tokyo(&["peers", "list"]), at_tokyo(&["services", "list"]));
        ensure!(peers.as_array().is_some_and(|all| all.len() == 1), "{peers}");
        ensure!(listed.as_array().is_some_and(|all| all.len() == 1 && all[0]["state"] == "inactive"), "{listed}");
        Ok(listed)
    });
    at_tokyo(&["services", "delete", listed[0]["id"].as_str().unwrap(), "--yes"]);
    assert_eq!(at_tokyo(&["services", "list"]), serde_json::json!([]));

    let london = Agent::start(&sites.london, keeping()).unwrap();
    let api = SocketAddr::from(([127, 0, 0, 1], API_PORT));
    let (_, nobody) = http_get(&sites.london, api, "/v1/cluster/identity").unwrap();
    assert!(nobody.contains(r#""peer_id":"""#) && nobody.contains(r#""cluster_id":"""#), "{nobody}");
    let license = sites.lab.scratch().join("license.json");
    let here = format!("http://{}:{API_PORT}", topology::LONDON_WAN);
    operator.ok(&["bootstrap", "--url", &here, "--license-file", license.to_str().unwrap()]).unwrap();
    let back = at_tokyo(&["peers", "add", &format!("{}:{API_PORT}", topology::LONDON_WAN)]);
    assert_eq!(back["id"], said["peer_id"]);
    within(PATIENCE, "london is a member again", || {
        let peers = at_tokyo(&["peers", "list", "--status", "healthy"]);
        ensure!(peers.as_array().is_some_and(|all| all.len() == 2), "{peers}");
        Ok(())
    });
    drop(london);
}
