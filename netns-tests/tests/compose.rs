//! A cluster from one file, on three real agents: made, made again, changed by two at once, and broken off at every
//! step.

// Real time is the subject here.
#![allow(clippy::disallowed_methods)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use netns_tests::agent::{Agent, AgentSettings, Cli, CliOutput};
use netns_tests::cluster::wait_for_table;
use netns_tests::lab::{Host, Lab};
use netns_tests::probe::{Feature, require};
use netns_tests::topology::ThreeSites;
use netns_tests::vendor::{Grant, Vendor};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const PRODUCT: [Feature; 5] = [Feature::Root, Feature::Veth, Feature::Tun, Feature::NftTproxy, Feature::NftSocket];

/// Heartbeats of 10 s, three of which are missed.
const FORGOTTEN_WITHIN: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Three agents without a license, and an operator in london who reaches all of them.
struct Trio {
    operator: Cli,
    directory: PathBuf,
    /// London, tokyo, oslo.
    agents: Vec<Agent>,
    sites: ThreeSites,
}

impl Trio {
    fn start(name: &str) -> Trio {
        let sites = ThreeSites::build(Lab::new(name).unwrap()).unwrap();
        let directory = sites.lab.scratch().to_owned();
        Vendor::find().unwrap().issue(&Grant::default(), &directory.join("license.json")).unwrap();
        let start = |host: &Host| Agent::start(host, AgentSettings::new(&directory, host.name())).unwrap();
        let agents = vec![start(&sites.london), start(&sites.tokyo), start(&sites.oslo)];
        let operator = Cli::new(&sites.london, &directory.join("operator")).unwrap();
        Trio { operator, directory, agents, sites }
    }

    /// Writes a cluster file with these services; its path.
    fn file(&self, name: &str, services: &str) -> String {
        let peer = |name: &str, address: IpAddr| format!("  - {{ name: {name}, endpoints: [\"{address}:8080\"] }}\n");
        let peers = [("london", ThreeSites::LONDON), ("tokyo", ThreeSites::TOKYO), ("oslo", ThreeSites::OSLO)];
        let peers: String = peers.into_iter().map(|(name, address)| peer(name, address)).collect();
        let path = self.directory.join(name);
        fs::write(&path, format!("version: v1\nlicense: license.json\npeers:\n{peers}services:\n{services}")).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn run(&self, arguments: &[&str]) -> CliOutput {
        self.operator.run(&[&["compose"], arguments].concat()).unwrap()
    }

    fn ok(&self, arguments: &[&str]) -> String {
        self.run(arguments).ok().unwrap()
    }

    #[track_caller]
    fn apply(&self, file: &str) {
        self.ok(&["apply", file, "--prune", "--yes"]);
    }

    #[track_caller]
    fn is_done(&self, file: &str) {
        let again = self.ok(&["apply", file, "--prune", "--yes"]);
        assert!(again.ends_with("No changes\n"), "{again}");
    }

    /// Services with their versions, as london knows them.
    fn services(&self) -> Vec<(String, u64, usize)> {
        let services: Vec<Value> = self.operator.json(&["services", "list"]).unwrap();
        let row = |s: &Value| {
            let name = s["name"].as_str().unwrap().to_owned();
            (name, s["version"].as_u64().unwrap(), s["route_count"].as_u64().unwrap() as usize)
        };
        services.iter().map(row).collect()
    }

    /// Starts an apply and sends `signal` as soon as it says that step `number` begins; its exit and the line.
    fn apply_broken_off(&self, file: &str, number: usize, signal: Signal) -> Option<i32> {
        let arguments = ["compose", "apply", file, "--prune", "--yes"];
        let mut command = self.operator.command(&arguments).unwrap();
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let begins = format!("[{number}/");
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let reached = lines.any(|line| line.starts_with(&begins));
        if reached {
            kill_process(Pid::from_child(&child), signal).unwrap();
        }
        lines.for_each(drop);
        let status = child.wait().unwrap();
        reached.then(|| status.code().or(status.signal().map(|s| 128 + s)).unwrap())
    }
}

fn service(name: &str, source: &str, target: &str, routes: &[&str]) -> String {
    let routes: String = routes.iter().map(|cidr| format!("      - {{ dest_cidr: {cidr} }}\n")).collect();
    format!("  - name: {name}\n    source_peer: {source}\n    target_peer: {target}\n    routes:\n{routes}")
}

// accepts: 000-01, 000-02
#[test]
fn one_file_makes_a_cluster_of_three_and_applied_again_changes_nothing() {
    if !require(&PRODUCT) {
        return;
    }
    let trio = Trio::start("compose");
    let services =
        service("l2t", "london", "tokyo", &["10.91.0.0/16"]) + &service("o2t", "oslo", "tokyo", &["10.92.0.0/16"]);
    let file = trio.file("cluster.yaml", &services);
    assert_eq!(trio.run(&["diff", &file, "--exit-code"]).exit, 10);
    let refused = trio.run(&["apply", &file]);
    assert_eq!((refused.exit, refused.stderr.lines().next()), (2, Some("Error: confirmation needed: pass --yes")));
    let first = trio.ok(&["apply", &file, "--yes"]);
    assert!(first.contains("Plan: 5 to add, 0 to change, 0 to delete"), "{first}");
    wait_for_table(&trio.sites.oslo, "10.92.0.0/16").unwrap();
    let peers: Vec<Value> = trio.operator.json(&["peers", "list"]).unwrap();
    assert_eq!(peers.len(), 3);

    let before = trio.services();
    assert_eq!(trio.ok(&["apply", &file, "--yes"]), "No changes\n");
    trio.is_done(&file);
    assert_eq!(trio.run(&["diff", &file, "--exit-code"]).exit, 0);
    let exported = trio.directory.join("exported.yaml");
    trio.ok(&["export", "--file", exported.to_str().unwrap()]);
    trio.is_done(exported.to_str().unwrap());
    assert_eq!(trio.services(), before, "nothing was written");
    trio.ok(&["fmt", exported.to_str().unwrap(), "--check"]);

    // Omission keeps, prune deletes, a rollback brings back.
    let fewer = trio.file("fewer.yaml", &service("l2t", "london", "tokyo", &["10.93.0.0/16"]));
    let kept = trio.ok(&["apply", &fewer, "--yes"]);
    assert!(kept.contains("=   service o2t:"), "{kept}");
    assert_eq!(trio.services().len(), 2);
    let plan = trio.directory.join("plan.json");
    trio.ok(&["diff", &fewer, "--prune", "--out", plan.to_str().unwrap()]);
    let stale = plan.with_extension("old");
    fs::copy(&plan, &stale).unwrap();
    trio.ok(&["apply", plan.to_str().unwrap(), "--yes"]);
    assert_eq!(
        trio.services().iter().map(|(name, _, routes)| (name.as_str(), *routes)).collect::<Vec<_>>(),
        [("l2t", 1)]
    );
    let refused = trio.run(&["apply", stale.to_str().unwrap(), "--yes"]);
    assert_eq!((refused.exit, refused.stderr.lines().next()), (1, Some("Error: plan is stale")));
    let history: Vec<Value> = trio.operator.json(&["compose", "history"]).unwrap();
    assert_eq!(history.len(), 2, "a backup for each change but the first, which found no cluster: {history:?}");
    trio.ok(&["rollback", "2", "--yes"]);
    let names: Vec<(String, usize)> = trio.services().into_iter().map(|(name, _, routes)| (name, routes)).collect();
    assert_eq!(names, [("l2t".to_owned(), 1), ("o2t".to_owned(), 1)]);
    trio.is_done(&file);

    // No file removes a peer, not even with --prune; a command does.
    let text = fs::read_to_string(&fewer).unwrap();
    let without: String = text.lines().filter(|l| !l.contains("name: oslo")).map(|l| format!("{l}\n")).collect();
    fs::write(&fewer, without).unwrap();
    let kept = trio.ok(&["apply", &fewer, "--prune", "--yes"]);
    assert!(
        kept.contains("=   peer oslo: not in the file, kept\n      to remove it: arctic peers delete oslo\n"),
        "{kept}"
    );
    let peers = || trio.operator.json::<Vec<Value>>(&["peers", "list"]).unwrap().len();
    assert_eq!(peers(), 3);
    trio.operator.ok(&["peers", "delete", "oslo", "--yes"]).unwrap();
    assert_eq!(peers(), 2);
}

#[test]
fn of_two_applies_at_once_one_wins_and_the_other_names_the_holder() {
    if !require(&PRODUCT) {
        return;
    }
    let trio = Trio::start("applies");
    let many: String =
        (0..8).map(|i| service(&format!("s{i}"), "london", "tokyo", &[&format!("10.9{i}.0.0/16")])).collect();
    let (empty, full) =
        (trio.file("empty.yaml", &service("s0", "london", "tokyo", &["10.90.0.0/16"])), trio.file("full.yaml", &many));
    trio.apply(&empty);
    let mut command = trio.operator.command(&["compose", "apply", &full, "--yes"]).unwrap();
    let mut winner = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(winner.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.starts_with("[1/")), "the first one holds the lock now");
    // It keeps the lock while the other one runs.
    let pid = Pid::from_child(&winner);
    kill_process(pid, Signal::STOP).unwrap();
    let loser = trio.run(&["apply", &full, "--yes"]);
    kill_process(pid, Signal::CONT).unwrap();
    lines.for_each(drop);
    assert!(winner.wait().unwrap().success());
    assert_eq!(loser.exit, 1, "{loser:?}");
    for part in ["london", "compose apply full.yaml", "code: CLUSTER_LOCKED"] {
        assert!(loser.stderr.contains(part), "{part}: {}", loser.stderr);
    }
    trio.is_done(&full);
}

#[test]
fn an_apply_that_was_killed_or_interrupted_at_any_step_is_completed_by_the_next() {
    if !require(&PRODUCT) {
        return;
    }
    let trio = Trio::start("killed");
    let one = trio.file(
        "one.yaml",
        &(service("a", "london", "tokyo", &["10.91.0.0/16", "10.92.0.0/16"])
            + &service("b", "oslo", "tokyo", &["10.93.0.0/16"])),
    );
    let other = trio.file(
        "other.yaml",
        &(service("a", "tokyo", "london", &["10.91.0.0/16"])
            + &service("c", "oslo", "london", &["10.93.0.0/16", "10.94.0.0/16"])),
    );
    // Every peer joins by the run after the one that was killed while it joined. But for the first step: a credential that
    // was given out to a process which is no more is known to nobody.
    for number in 2..=5 {
        trio.apply_broken_off(&one, number, Signal::KILL);
    }
    trio.apply(&one);
    trio.is_done(&one);
    let mut files = [(&other, &one), (&one, &other)].into_iter().cycle();
    let mut left_locked = 0;
    for signal in [Signal::KILL, Signal::INT] {
        for number in 1.. {
            let (file, _) = files.next().unwrap();
            let Some(exit) = trio.apply_broken_off(file, number, signal) else {
                trio.is_done(file);
                break;
            };
            assert!(exit == if signal == Signal::KILL { 137 } else { 130 } || exit == 0, "step {number}: exit {exit}");
            let lock: Value = trio.operator.json(&["cluster", "lock", "status"]).unwrap();
            // The last step may be over when the signal comes.
            let is_locked = !lock["lock"].is_null();
            assert!(!is_locked || exit == 137, "step {number}: exit {exit}: {lock}");
            left_locked += usize::from(is_locked);
            trio.apply(file);
            trio.is_done(file);
        }
    }
    assert!(left_locked > 1, "{left_locked} runs that were killed held the lock");

    // One that was killed between its question for the lock and the answer.
    let identity: Value = trio.operator.json(&["cluster", "identity"]).unwrap();
    let home = &trio.operator.environment()[0].1;
    let note = home.join(".local/state/arctic").join(format!("lock-{}", identity["cluster_id"].as_str().unwrap()));
    let (file, _) = files.next().unwrap();
    let purpose = format!("compose apply {}", Path::new(file).file_name().unwrap().display());
    let wish = serde_json::json!({ "purpose": purpose }).to_string();
    trio.operator.ok(&["api", "POST", "/v1/cluster/lock", "--data", &wish]).unwrap();
    let refused = trio.run(&["apply", file, "--prune", "--yes"]);
    assert!(refused.exit == 1 && refused.stderr.contains("code: CLUSTER_LOCKED"), "{refused:?}");
    fs::write(&note, format!("asked for: {purpose}")).unwrap();
    trio.apply(file);
    trio.is_done(file);
}

#[test]
fn a_peer_that_does_not_answer_stops_an_apply_before_it_begins() {
    if !require(&PRODUCT) {
        return;
    }
    let mut trio = Trio::start("away");
    let file = trio.file("cluster.yaml", &service("l2t", "london", "tokyo", &["10.91.0.0/16"]));
    trio.apply(&file);
    drop(trio.agents.pop());
    let more = trio.file("more.yaml", &service("l2t", "london", "tokyo", &["10.91.0.0/16", "10.92.0.0/16"]));
    let refused = trio.run(&["apply", &more, "--yes"]);
    assert_eq!(refused.exit, 4, "{refused:?}");
    assert!(refused.stderr.contains("\nError: peer oslo does not answer: "), "{}", refused.stderr);
    assert_eq!(trio.services()[0].2, 1);
    // A peer counts for the lock until it has not been heard for a while.
    let deadline = Instant::now() + FORGOTTEN_WITHIN;
    let oslo_counts = || {
        let peers: Vec<Value> = trio.operator.json(&["peers", "list"]).unwrap();
        peers.iter().any(|p| p["name"] == "oslo" && p["status"] == "healthy")
    };
    while oslo_counts() {
        assert!(Instant::now() < deadline, "oslo is still healthy");
        thread::sleep(POLL_INTERVAL);
    }
    let without = trio.run(&["apply", &more, "--yes", "--ignore-unreachable"]);
    assert_eq!((without.exit, trio.services()[0].2), (6, 2), "{without:?}");
}

// accepts: 000-04, 000-18
#[test]
fn a_peer_bootstrapped_elsewhere_is_added_and_gets_name_and_qos_of_the_file_on_every_member() {
    if !require(&PRODUCT) {
        return;
    }
    let trio = Trio::start("elsewhere");
    let license = trio.directory.join("license.json");
    let stranger = Cli::new(&trio.sites.tokyo, &trio.directory.join("stranger")).unwrap();
    let url = format!("http://{}:8080", ThreeSites::TOKYO);
    stranger
        .ok(&["bootstrap", "--url", &url, "--license-file", license.to_str().unwrap(), "--name", "odd one"])
        .unwrap();
    let file = trio.file("cluster.yaml", &service("o2t", "oslo", "tokyo", &["10.91.0.0/16"]));
    let text = fs::read_to_string(&file).unwrap().replace("name: tokyo, ", "name: tokyo, qos_enabled: false, ");
    let text = text.replace(
        &format!("\"{}:8080\"", ThreeSites::OSLO),
        &format!("\"{}:8080\", \"oslo.example:8081\"", ThreeSites::OSLO),
    );
    fs::write(&file, text).unwrap();
    trio.apply(&file);
    trio.is_done(&file);
    for address in [ThreeSites::LONDON, ThreeSites::OSLO, ThreeSites::TOKYO] {
        let endpoints = serde_json::json!([format!("{}:8080", ThreeSites::OSLO), "oslo.example:8081"]);
        let listed = || -> Vec<Value> {
            trio.operator.json(&["peers", "list", "--url", &format!("http://{address}:8080")]).unwrap()
        };
        let deadline = Instant::now() + FORGOTTEN_WITHIN;
        while !listed().iter().any(|peer| peer["name"] == "oslo" && peer["endpoints"] == endpoints) {
            assert!(Instant::now() < deadline, "{address} does not know oslo's addresses: {:?}", listed());
            thread::sleep(POLL_INTERVAL);
        }
        let peers = listed();
        let tokyo = peers.iter().find(|p| p["self_name"] == "odd one").unwrap();
        let expected = address == ThreeSites::TOKYO;
        assert_eq!(
            (&tokyo["name"], &tokyo["qos_enabled"]),
            (&Value::from("tokyo"), &Value::from(expected)),
            "{address}"
        );
        assert_eq!(peers.len(), 3);
    }
}

// accepts: 000-11
#[test]
fn any_member_adds_a_peer() {
    if !require(&PRODUCT) {
        return;
    }
    let trio = Trio::start("any");
    let file = trio.file("cluster.yaml", &service("l2t", "london", "tokyo", &["10.91.0.0/16"]));
    let text = fs::read_to_string(&file).unwrap();
    let two: String = text.lines().filter(|l| !l.contains("name: oslo")).map(|l| format!("{l}\n")).collect();
    fs::write(&file, two).unwrap();
    trio.apply(&file);
    let license = trio.directory.join("license.json");
    let url = |address: IpAddr| format!("http://{address}:8080");
    let bootstrap = ["bootstrap", "--url", &url(ThreeSites::OSLO), "--license-file", license.to_str().unwrap()];
    trio.operator.ok(&bootstrap).unwrap();
    let add = ["peers", "add", &format!("{}:8080", ThreeSites::OSLO), "--url", &url(ThreeSites::TOKYO)];
    trio.operator.ok(&add).unwrap();
    let deadline = Instant::now() + FORGOTTEN_WITHIN;
    let healthy = || {
        let peers: Vec<Value> = trio.operator.json(&["peers", "list", "--url", &url(ThreeSites::LONDON)]).unwrap();
        peers.iter().filter(|p| p["status"] == "healthy").count()
    };
    while healthy() < 3 {
        assert!(Instant::now() < deadline, "london does not know oslo");
        thread::sleep(POLL_INTERVAL);
    }
}

#[test]
fn a_credential_from_a_file_is_enough_and_is_kept_with_the_cluster() {
    if !require(&PRODUCT) {
        return;
    }
    let trio = Trio::start("given");
    let file = trio.file("cluster.yaml", &service("l2t", "london", "tokyo", &["10.91.0.0/16"]));
    trio.apply(&file);
    let made: Value = trio.operator.json(&["credentials", "create"]).unwrap();
    trio.operator.ok(&["cluster", "sync"]).unwrap();
    let path = trio.directory.join("credentials.json");
    let given = serde_json::json!({"london": {"client_id": made["client_id"], "client_secret": made["client_secret"]}});
    fs::write(&path, given.to_string()).unwrap();
    let newcomer = Cli::new(&trio.sites.oslo, &trio.directory.join("newcomer")).unwrap();
    let refused = newcomer.run(&["compose", "diff", &file]).unwrap();
    assert_eq!(refused.exit, 5, "{refused:?}");
    assert!(refused.stderr.contains("hint: --credentials-file FILE"), "{}", refused.stderr);
    let with = ["compose", "apply", &file, "--yes", "--credentials-file", path.to_str().unwrap()];
    let shared = newcomer.run(&with).unwrap();
    assert!(shared.exit == 3 && shared.stderr.contains("hint: chmod 600"), "{shared:?}");
    fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    assert_eq!(newcomer.ok(&with).unwrap(), "No changes\n");
    assert_eq!(newcomer.run(&["config", "list", "-j"]).unwrap().stdout, "[]\n", "nothing was done, nothing is kept");
    trio.file("cluster.yaml", &service("l2t", "london", "tokyo", &["10.92.0.0/16"]));
    newcomer.ok(&with).unwrap();
    let peers: Vec<Value> = newcomer.json(&["peers", "list"]).unwrap();
    assert_eq!(peers.len(), 3, "the config knows the cluster now");
}
