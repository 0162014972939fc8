//! Three real agents while the license of one grows old, runs out, and is renewed: by the real command line, with
//! licenses of past dates, and traffic throughout.

// Real time is the subject here.
#![allow(clippy::disallowed_methods)]

use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use arctic::env::{Clock, SystemClock};
use arctic::model::UnixTime;
use arctic::store::{Store, StoreError};
use netns_tests::agent::{Agent, AgentSettings, Cli, CliOutput, http_get};
use netns_tests::cluster::{Cluster, serve_through_tokyo, wait_for_route};
use netns_tests::lab::Lab;
use netns_tests::probe::{Feature, require};
use netns_tests::service::{TcpService, seen_from};
use netns_tests::topology::{
    API_PORT, CLIENT, LONDON_WAN, Profile, SERVER, SERVER_NET, TOKYO_LAN, TOKYO_WAN, TwoSites, at,
};
use netns_tests::vendor::{Grant, Vendor};
use serde_json::Value;

const PRODUCT: [Feature; 5] = [Feature::Root, Feature::Veth, Feature::Tun, Feature::NftTproxy, Feature::NftSocket];
const MIRROR_PORT: u16 = 7000;
const ECHO_PORT: u16 = 7001;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// How far ahead the next border of a license lies when it is installed.
const BORDER_AHEAD: Duration = Duration::from_secs(15);
/// A border, a tick, a pass of the reconcilers; 30 s of silence make a peer unhealthy.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(100);
const RENEWAL: &str = "arctic license update --license-file license.json";

/// London serves a client through tokyo; oslo, beside the server, is a cluster of its own for now.
struct World {
    london: Agent,
    _tokyo: Agent,
    _oslo: Agent,
    operator: Cli,
    in_oslo: Cli,
    customer: String,
    _servers: [TcpService; 2],
    sites: TwoSites,
}

fn now() -> UnixTime {
    SystemClock::new().unix()
}

fn url(address: std::net::IpAddr) -> String {
    format!("http://{address}:{API_PORT}")
}

impl World {
    /// All three with a license of which so much is left.
    fn licensed_for(name: &str, left: Duration) -> World {
        let sites = TwoSites::build(Lab::new(name).unwrap(), Profile::CLEAN, 1).unwrap();
        let grant = Grant { expires_at: Some(now().plus(left)), ..Grant::default() };
        let Cluster { london, tokyo, operator } = Cluster::form(&sites, &grant).unwrap();
        let scratch = sites.lab.scratch();
        let license = scratch.join("license.json");
        let document: Value = serde_json::from_str(&std::fs::read_to_string(&license).unwrap()).unwrap();
        let oslo = Agent::start(&sites.server, AgentSettings::new(scratch, "oslo")).unwrap();
        let in_oslo = Cli::new(&sites.server, &scratch.join("operator")).unwrap();
        let bootstrap = ["bootstrap", "--url", &url(SERVER), "--license-file", license.to_str().unwrap()];
        in_oslo.ok(&bootstrap).unwrap();
        let any = |port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        World {
            _servers: [
                TcpService::mirror(&sites.server, any(MIRROR_PORT)).unwrap(),
                TcpService::echo(&sites.server, any(ECHO_PORT)).unwrap(),
            ],
            customer: document["customer_id"].as_str().unwrap().to_owned(),
            london,
            _tokyo: tokyo,
            _oslo: oslo,
            operator,
            in_oslo,
            sites,
        }
    }

    /// A license of the same customer, issued long ago.
    fn issue(&self, name: &str, expires_at: UnixTime) -> PathBuf {
        self.issue_for(name, expires_at, Grant::default().max_nodes)
    }

    fn issue_for(&self, name: &str, expires_at: UnixTime, max_nodes: u32) -> PathBuf {
        let path = self.sites.lab.scratch().join(name);
        let grant = Grant {
            customer_id: Some(self.customer.clone()),
            issued_at: Some(now().minus(400 * DAY)),
            expires_at: Some(expires_at),
            max_nodes,
            ..Grant::default()
        };
        Vendor::find().unwrap().issue(&grant, &path).unwrap();
        path
    }

    fn state(&self) -> String {
        let status: Value = self.operator.json(&["license", "status"]).unwrap();
        status["state"].as_str().unwrap().to_owned()
    }

    /// `services list` of london, by name.
    fn service_names(&self) -> Vec<String> {
        let services: Vec<Value> = self.operator.json(&["services", "list"]).unwrap();
        services.iter().map(|s| s["name"].as_str().unwrap().to_owned()).collect()
    }

    /// What tokyo says of london.
    fn status_in_tokyo(&self) -> String {
        let peer: Value = self.operator.json(&["peers", "get", "london", "--url", &url(TOKYO_WAN)]).unwrap();
        peer["status"].as_str().unwrap().to_owned()
    }

    fn flow(&self) -> TcpStream {
        let server = at(SERVER, ECHO_PORT);
        let mut flow = self.sites.client.run(|| TcpStream::connect_timeout(&server, PATIENCE)).unwrap();
        flow.set_read_timeout(Some(PATIENCE)).unwrap();
        echo(&mut flow).unwrap();
        flow
    }

    fn seen_from(&self) -> std::net::IpAddr {
        seen_from(&self.sites.client, at(SERVER, MIRROR_PORT)).unwrap()
    }

    fn ready(&self) -> (u16, Value) {
        let (status, body) = http_get(&self.sites.london, at(LONDON_WAN, API_PORT), "/readyz").unwrap();
        (status, serde_json::from_str(&body).unwrap())
    }

    /// An honest old age: the signed license that a stopped agent has, only with dates that no update would take. In
    /// the last seconds of read-only.
    fn age_license(mut self) -> World {
        assert!(self.london.process().stop(PATIENCE).unwrap().success());
        let license = self.issue("aged.json", now().minus(44 * DAY).plus(BORDER_AHEAD));
        let settings = AgentSettings::new(self.sites.lab.scratch(), "london");
        let document: Value = serde_json::from_str(&std::fs::read_to_string(&license).unwrap()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let store = Store::open(&settings.data_dir().join("arctic.db")).unwrap();
            let written = store.write(move |tx| -> Result<(), StoreError> { tx.set_license(&document) });
            written.await.unwrap();
        });
        World { london: Agent::start(&self.sites.london, settings).unwrap(), ..self }
    }
}

fn echo(flow: &mut TcpStream) -> std::io::Result<()> {
    flow.write_all(b"x")?;
    flow.read_exact(&mut [0])
}

#[track_caller]
fn eventually(what: &str, good: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !good() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(POLL_INTERVAL);
    }
}

#[track_caller]
fn assert_refused(output: &CliOutput, texts: &[&str]) {
    assert!((1..=8).contains(&output.exit), "{output:?}");
    let missing: Vec<_> = ["Error: "].iter().chain(texts).filter(|text| !output.stderr.contains(**text)).collect();
    assert!(missing.is_empty(), "{missing:?} is not in {output:?}");
}

/// Exit code and words of a license that forbids.
#[track_caller]
fn assert_forbidden(output: &CliOutput, state: &str) {
    assert_eq!(output.exit, 8, "{output:?}");
    assert_refused(output, &[&format!("license {state} since 20"), RENEWAL]);
}

#[track_caller]
fn assert_forbids_more_nodes(output: &CliOutput) {
    assert_eq!(output.exit, 8, "{output:?}");
    assert_refused(output, &["Error: handshake failed: node limit exceeded"]);
}

// accepts: 000-34, 000-36, 001-43, 001-49, 003-06, 003-11, 003-13, 003-14, 003-15, 003-16, 003-21, 003-22, 003-23
#[test]
fn a_license_goes_from_warning_to_suspension_and_a_renewal_brings_all_back() {
    if !require(&PRODUCT) {
        return;
    }
    let mut world = World::licensed_for("license", 10 * DAY);
    shows_a_warning_and_works(&world);
    goes_read_only(&world);
    world = world.age_license();
    is_suspended(&world);
    is_renewed(&mut world);
}

fn shows_a_warning_and_works(world: &World) {
    let operator = &world.operator;
    let traced = operator.run(&["peers", "list", "--trace"]).unwrap();
    assert_eq!(traced.exit, 0, "{traced:?}");
    assert!(traced.stderr.contains("x-arctic-license-state: warning"), "{traced:?}");
    assert!(traced.stderr.contains("Warning: the license is in state warning"), "{traced:?}");
    let status = operator.run(&["license", "status"]).unwrap();
    assert!(status.stdout.lines().any(|l| l.starts_with("State ") && l.ends_with("warning")), "{status:?}");
    assert!(status.stderr.contains("Warning: license expires at") && status.stderr.contains(RENEWAL), "{status:?}");
    serve_through_tokyo(operator, &[SERVER_NET]).unwrap();
    wait_for_route(&world.sites.london, SERVER_NET).unwrap();
    assert_eq!(world.seen_from(), TOKYO_LAN);
    assert!(world.london.log().unwrap().contains("license expires at"), "the log warns too");
}

/// Installed in the last seconds of its grace.
fn goes_read_only(world: &World) {
    let operator = &world.operator;
    let mut flow = world.flow();
    let license = world.issue("read-only.json", now().minus(14 * DAY).plus(BORDER_AHEAD));
    let updated = operator.run(&["license", "update", "--license-file", license.to_str().unwrap()]).unwrap();
    assert_eq!(updated.exit, 0, "{updated:?}");
    assert!(updated.stdout.contains("grace_period") && updated.stderr.contains("changes are blocked"), "{updated:?}");
    // Two agents, two licenses.
    let id = |more: &[&str]| {
        let status: Value = operator.json(&[&["license", "status"], more].concat()).unwrap();
        status["license"]["license_id"].clone()
    };
    assert_ne!(id(&[]), id(&["--url", &url(TOKYO_WAN)]));
    echo(&mut flow).unwrap();
    eventually("the license is read-only", || world.state() == "read_only");

    for write in [
        &["services", "create", "--target-peer", "tokyo", "--name", "late"][..],
        &["services", "delete", "london-to-tokyo", "--yes"],
        &["routes", "add", "--service", "london-to-tokyo", "--dest-cidr", "10.99.0.0/16"],
        &["peers", "add", &format!("{SERVER}:{API_PORT}")],
        &["peers", "delete", "tokyo", "--yes"],
    ] {
        assert_forbidden(&operator.run(write).unwrap(), "read-only");
    }
    let late = world.in_oslo.run(&["peers", "add", &format!("{LONDON_WAN}:{API_PORT}"), "--url", &url(SERVER)]);
    assert_refused(&late.unwrap(), &["handshake failed: license read-only"]);
    let listed = operator.run(&["peers", "list"]).unwrap();
    assert!(listed.exit == 0 && listed.stderr.contains("Warning: the license is in state read_only"), "{listed:?}");
    assert_eq!(world.service_names(), ["london-to-tokyo"]);
    assert_eq!(world.ready().0, 200);
    echo(&mut flow).unwrap();
    assert_eq!(world.seen_from(), TOKYO_LAN, "new flows are carried too");

    let create = ["services", "create", "--target-peer", "london", "--name", "from-tokyo", "--url", &url(TOKYO_WAN)];
    operator.ok(&create).unwrap();
    eventually("what others change is applied", || world.service_names().len() == 2);
}

/// It starts in the last seconds of read-only.
fn is_suspended(world: &World) {
    let operator = &world.operator;
    wait_for_route(&world.sites.london, SERVER_NET).unwrap();
    assert_eq!(world.state(), "read_only");
    let mut flow = world.flow();
    eventually("the license is suspended", || world.state() == "suspended");
    let rules = || world.sites.london.sh("nft list ruleset").unwrap();
    eventually("no rule captures", || !rules().contains("tproxy"));
    assert!(!rules().contains(SERVER_NET), "{}", rules());
    assert_eq!(world.seen_from(), CLIENT, "plain routing");
    let cut = flow.read(&mut [0]);
    assert!(!matches!(cut, Ok(1..)), "{cut:?}");
    let (status, ready) = world.ready();
    let checks = ready["checks"].as_array().unwrap();
    let failed: Vec<&Value> = checks.iter().filter(|c| c["status"] == "fail").map(|c| &c["name"]).collect();
    assert_eq!((status, failed), (503, vec![&Value::from("license")]), "{ready}");

    for refused in [&["peers", "list"][..], &["services", "list"], &["cluster", "sync"], &["cluster", "status"]] {
        assert_forbidden(&operator.run(refused).unwrap(), "suspended");
    }
    let shown = operator.run(&["license", "status"]).unwrap();
    assert!(shown.exit == 0 && shown.stderr.contains("license is suspended since"), "{shown:?}");
    operator.ok(&["cluster", "identity"]).unwrap();
    let late = world.in_oslo.run(&["peers", "add", &format!("{LONDON_WAN}:{API_PORT}"), "--url", &url(SERVER)]);
    assert_refused(&late.unwrap(), &["handshake failed: license suspended"]);

    eventually("the others see it unhealthy", || world.status_in_tokyo() == "unhealthy");
    operator.ok(&["services", "delete", "from-tokyo", "--yes", "--url", &url(TOKYO_WAN)]).unwrap();
}

/// One command, for every peer, and no restart.
fn is_renewed(world: &mut World) {
    let pid = world.london.process().pid();
    let license = world.issue_for("renewed.json", now().plus(365 * DAY), 2);
    let file = license.to_str().unwrap();
    let updated: Vec<Value> = world.operator.json(&["license", "update", "--license-file", file, "--all"]).unwrap();
    let rows: Vec<_> = updated.iter().map(|row| (&row["name"], &row["updated"], &row["state"])).collect();
    let [yes, valid] = [Value::from(true), Value::from("valid")];
    assert_eq!(rows, [(&"london".into(), &yes, &valid), (&"tokyo".into(), &yes, &valid)]);

    wait_for_route(&world.sites.london, SERVER_NET).unwrap();
    eventually("both ends carry again", || {
        seen_from(&world.sites.client, at(SERVER, MIRROR_PORT)).is_ok_and(|seen| seen == TOKYO_LAN)
    });
    echo(&mut world.flow()).unwrap();
    eventually("ready and valid", || (world.ready().0, world.state()) == (200, "valid".to_owned()));
    eventually("it catches up with what it missed", || world.service_names() == ["london-to-tokyo"]);
    eventually("the others see it healthy", || world.status_in_tokyo() == "healthy");
    let quiet = world.operator.run(&["peers", "list"]).unwrap();
    assert!(quiet.exit == 0 && !quiet.stderr.contains("license"), "{quiet:?}");

    let oslo = format!("{SERVER}:{API_PORT}");
    let add = ["peers", "add", &oslo, "--name", "oslo"];
    assert_forbids_more_nodes(&world.operator.run(&add).unwrap());
    let status = world.operator.ok(&["license", "status"]).unwrap();
    assert!(status.lines().any(|l| l.starts_with("Nodes ") && l.ends_with("2 of 2")), "{status}");
    let bigger = world.issue("bigger.json", now().plus(365 * DAY));
    world.operator.ok(&["license", "update", "--license-file", bigger.to_str().unwrap()]).unwrap();
    world.operator.ok(&add).unwrap();
    assert_eq!(world.london.process().pid(), pid, "without a restart");
}
