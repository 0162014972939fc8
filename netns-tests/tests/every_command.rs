//! Every line that README, specification and `--help` show is typed here, into a live cluster of three agents.

// Real time is the subject here.
#![allow(clippy::disallowed_methods)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use netns_tests::agent::{Agent, AgentSettings, Cli, arctic_binary};
use netns_tests::lab::{Host, Lab};
use netns_tests::lines::{Line, of_document, of_help, with_word};
use netns_tests::probe::{Feature, require};
use netns_tests::topology::{API_PORT, ThreeSites};
use netns_tests::vendor::{Grant, Vendor};
use serde_json::Value;

const PRODUCT: [Feature; 5] = [Feature::Root, Feature::Veth, Feature::Tun, Feature::NftTproxy, Feature::NftSocket];
const LIMA: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 71, 14, 2));
const KNOWN_WITHIN: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// `timeout` ends a line with this status.
const CUT_OFF: i32 = 124;
const LINE_SECONDS: &str = "60";
/// An endless line has said something by then.
const ENDLESS_SECONDS: &str = "1.5";

/// What cannot be typed here, and why. A pattern that ends with ` *` is a beginning; `…` is anywhere in the line.
const EXEMPT: [(&str, &str); 30] = [
    ("arctic <noun> <verb> [ARG] [flags]", "the grammar of all lines"),
    ("…", "abbreviated; the whole line stands elsewhere"),
    ("arctic bootstrap --license-file", "names a flag; the whole line stands elsewhere"),
    ("arctic agent run", "every agent of this test was started by it"),
    ("arctic agent check", "comes with operations"),
    ("arctic agent install *", "comes with operations, and needs systemd"),
    ("arctic agent upgrade *", "comes with operations, and needs systemd"),
    ("arctic agent uninstall *", "comes with operations, and needs systemd"),
    ("arctic backup *", "comes with operations"),
    ("arctic support *", "comes with operations"),
    ("ping P", "`arctic ping` comes with operations"),
    ("systemctl *", "needs systemd"),
    ("journalctl *", "needs systemd's journal"),
    ("systemd-analyze *", "needs systemd"),
    ("ssh *", "needs an SSH server"),
    ("iptables *", "a tool of the host's own firewall that need not be installed"),
    ("firewall-cmd *", "a tool of the host's own firewall that need not be installed"),
    ("traceroute *", "need not be installed; ping stands for it"),
    ("mtr *", "need not be installed; ping stands for it"),
    ("nc *", "the port of the IP tunnel comes with the data planes"),
    ("ip link delete *", "interfaces of services come with the data planes"),
    ("nft list table", "the beginning of two lines that stand elsewhere"),
    ("jq *", "the end of a line that stands elsewhere"),
    ("rm *", "part of the last resort, which a test of its own walks"),
    ("cargo *", "tests of the sources, not of the product"),
    ("SIM_SEED=9113 *", "tests of the sources, not of the product"),
    ("scripts/demo *", "builds and runs a laboratory of its own"),
    ("scripts/test *", "would run this test again"),
    ("scripts/sweep *", "tests of the sources, not of the product"),
    ("source *", "bash reads it; what it reads is printed by the line of the same name"),
];

/// Lines that go on until somebody ends them.
const ENDLESS: [&str; 2] = ["arctic events -f", "ping PEER_IP"];

/// Commands that ask, and so need `--yes` where nobody can answer.
const ASKING: [&str; 7] = [
    "peers delete",
    "peers remove-self",
    "remove-self",
    "services delete",
    "routes delete",
    "credentials revoke",
    "config delete-cluster",
];

/// Words of lines that only read; they are typed a second time with `-j`.
const READING: [&str; 12] = [
    "list", "get", "status", "show", "explain", "help", "version", "health", "validate", "identity", "history", "view",
];

/// Words of lines that may change the cluster itself.
const CHANGING: [&str; 8] = ["create", "update", "delete", "add", "apply", "rollback", "PUT", "POST"];

/// Where a line is typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scene {
    /// By the operator in london.
    Member,
    /// The same, and lima runs an agent without a license.
    Blank,
    /// The same, and lima runs a cluster of one.
    Stranger,
    /// By the operator of lima, a cluster of one.
    Alone,
    /// By the operator of lima, a member of the cluster.
    Fourth,
}

const SCENES: [(&str, Scene); 5] = [
    ("bootstrap", Scene::Blank),
    ("peers add", Scene::Stranger),
    ("cluster init", Scene::Alone),
    ("peers remove-self", Scene::Fourth),
    ("arctic remove-self", Scene::Fourth),
];

fn scene(line: &str) -> Scene {
    SCENES.iter().find(|(words, _)| line.contains(words)).map_or(Scene::Member, |(_, scene)| *scene)
}

fn exemption(line: &str) -> Option<&'static str> {
    let fits = |pattern: &str| match pattern.strip_suffix('*') {
        Some(beginning) => line.starts_with(beginning) || line == beginning.trim_end(),
        None => line == pattern || (pattern == "…" && line.contains('…')),
    };
    EXEMPT.iter().map(|(pattern, _)| *pattern).find(|pattern| fits(pattern))
}

struct Newcomer {
    _agent: Agent,
    operator: Cli,
}

struct World {
    _agents: [Agent; 3],
    operator: Cli,
    license: PathBuf,
    lima: Host,
    newcomers: usize,
    // Last, so that left-over processes are looked for when all else is gone.
    sites: ThreeSites,
}

/// What a line did.
struct Outcome {
    exit: i32,
    stdout: String,
    stderr: String,
}

fn url(address: IpAddr) -> String {
    format!("http://{address}:{API_PORT}")
}

#[track_caller]
fn eventually(what: &str, good: impl Fn() -> bool) {
    let deadline = Instant::now() + KNOWN_WITHIN;
    while !good() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::sleep(POLL_INTERVAL);
    }
}

impl World {
    /// london and tokyo are made a cluster by `first`, the lines of the README; oslo joins them.
    fn made_by(first: &[Line]) -> World {
        let mut sites = ThreeSites::build(Lab::new("lines").unwrap()).unwrap();
        let lima = sites.lab.host("lima").unwrap();
        sites.lab.veth(&lima, &sites.exchange, &["10.71.14.2/24"], &["10.71.14.1/24"]).unwrap();
        lima.route("default", "10.71.14.1").unwrap();
        let scratch = sites.lab.scratch();
        let license = scratch.join("license.json");
        Vendor::find().unwrap().issue(&Grant::default(), &license).unwrap();
        let start = |host: &Host| Agent::start(host, AgentSettings::new(scratch, host.name())).unwrap();
        let agents = [start(&sites.london), start(&sites.tokyo), start(&sites.oslo)];
        let operator = Cli::new(&sites.london, &scratch.join("operator")).unwrap();
        let world = World { _agents: agents, operator, license, lima, newcomers: 0, sites };
        world.lay_out_files("");
        for line in first {
            world.typed_well(&world.operator, line, &world.filled(&line.text, Scene::Member));
        }
        let (oslo, license) = (url(ThreeSites::OSLO), world.license.to_str().unwrap());
        world.operator.ok(&["bootstrap", "--url", &oslo, "--license-file", license, "--name", "oslo"]).unwrap();
        world.add("oslo", ThreeSites::OSLO);
        for at in [ThreeSites::LONDON, ThreeSites::TOKYO, ThreeSites::OSLO] {
            eventually("all three are healthy everywhere", || world.healthy(at) == 3);
        }
        world.serve_from_oslo();
        world
    }

    fn work(&self) -> PathBuf {
        self.sites.lab.scratch().join("work")
    }

    fn config(&self) -> PathBuf {
        self.operator.environment()[1].1.join("arctic/config.yaml")
    }

    /// The working directory holds the license and a cluster file, nothing else.
    fn lay_out_files(&self, cluster_file: &str) {
        let work = self.work();
        let _ = fs::remove_dir_all(&work);
        fs::create_dir_all(&work).unwrap();
        fs::copy(&self.license, work.join("license.json")).unwrap();
        fs::write(work.join("cluster.yaml"), cluster_file).unwrap();
    }

    /// Types a line into a shell of `operator`.
    fn typed(&self, operator: &Cli, line: &str, seconds: &str) -> Outcome {
        let mut command = operator.command(&[]).unwrap();
        let environment: Vec<_> = command.get_envs().filter_map(|(k, v)| Some((k.to_owned(), v?.to_owned()))).collect();
        command = operator.host().command("timeout");
        let directory = arctic_binary().unwrap().parent().unwrap().to_owned();
        let path = format!("{}:{}", directory.display(), std::env::var("PATH").unwrap_or_default());
        let script = format!("curl() {{ command curl -sS --fail-with-body --max-time 20 \"$@\"; }}; {line}");
        command.args(["--kill-after=5", seconds, "bash", "-o", "pipefail", "-c", &script]);
        command.env_clear().envs(environment).env("PATH", path).current_dir(self.work());
        let output = command.stdin(std::process::Stdio::null()).output().unwrap();
        Outcome {
            exit: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Types a line and looks at how it ends; the complaint, if there is one.
    fn complaint(&self, operator: &Cli, written: &str, line: &str) -> Option<String> {
        let endless = ENDLESS.contains(&written);
        let outcome = self.typed(operator, line, if endless { ENDLESS_SECONDS } else { LINE_SECONDS });
        let asks = ASKING.iter().any(|words| written.starts_with(&format!("arctic {words}")))
            && !["--yes", "--dry-run"].iter().any(|flag| written.contains(flag));
        let good = match outcome.exit {
            CUT_OFF => endless,
            2 => asks && outcome.stderr.contains("--yes"),
            exit => exit == 0 && !asks && !endless,
        };
        let shown = || format!("`{line}`: exit {}\n{}{}", outcome.exit, outcome.stdout, outcome.stderr);
        if !good {
            return Some(shown());
        }
        let pipe = [" -j", "--json", " -o ", "|", ">"].iter().any(|sign| written.contains(sign));
        if endless || pipe || outcome.exit != 0 || !written.starts_with("arctic ") || !is_reading(written) {
            return None;
        }
        let document = self.typed(operator, &format!("{line} -j"), LINE_SECONDS);
        let parsed = serde_json::from_str::<Value>(&document.stdout);
        parsed.err().map(|e| format!("`{line} -j`: {e}: {}{}", document.stdout, document.stderr))
    }

    #[track_caller]
    fn typed_well(&self, operator: &Cli, line: &Line, filled: &str) {
        let complaint = self.complaint(operator, &line.text, filled);
        assert_eq!(complaint, None, "{}", line.place);
    }

    /// The line with values in place of its placeholders.
    fn filled(&self, line: &str, scene: Scene) -> String {
        let other = if scene == Scene::Member { ThreeSites::TOKYO } else { LIMA }.to_string();
        let sync = line.contains("/v1/cluster/sync");
        let mut line = line.replace("POST …/v1", "POST http://IP:8080/v1");
        if sync {
            // Both documents say beside the line that it needs a token.
            line = line.replace("curl ", "curl -H 'Authorization: Bearer TOKEN' ");
        }
        let hosts =
            [("london", ThreeSites::LONDON), ("tokyo", ThreeSites::TOKYO), ("oslo", ThreeSites::OSLO), ("lima", LIMA)];
        for (name, address) in hosts {
            line = with_word(&line, &format!("{name}:8080"), &format!("{address}:8080"));
        }
        let values: [(&str, &dyn Fn() -> String); 14] = [
            ("N", &|| other.clone()),
            ("IP", &|| other.clone()),
            ("HOST", &|| other.clone()),
            ("PEER_IP", &|| ThreeSites::TOKYO.to_string()),
            ("REMOTE_IP", &|| ThreeSites::TOKYO.to_string()),
            ("PEER_ID_OR_NAME", &|| "tokyo".to_owned()),
            ("PEER", &|| self.peer("tokyo")["id"].as_str().unwrap().to_owned()),
            ("SVC", &|| self.service()["id"].as_str().unwrap().to_owned()),
            ("ID", &|| self.service()["id"].as_str().unwrap().to_owned()),
            ("RID", &|| "1".to_owned()),
            ("LICENSE_JSON", &|| fs::read_to_string(&self.license).unwrap()),
            ("CLIENT_ID", &|| {
                let made: Value = self.operator.json(&["credentials", "create", "--scopes", "peers.read"]).unwrap();
                made["client_id"].as_str().unwrap().to_owned()
            }),
            ("CLUSTER_ID", &|| {
                let identity: Value = self.operator.json(&["cluster", "identity"]).unwrap();
                identity["cluster_id"].as_str().unwrap().to_owned()
            }),
            ("TOKEN", &|| self.token()),
        ];
        for (name, value) in values {
            if with_word(&line, name, "") != line {
                line = with_word(&line, name, &value());
            }
        }
        line
    }

    /// As the document says: from id and secret of the config file.
    fn token(&self) -> String {
        let config = fs::read_to_string(self.config()).unwrap();
        let value = |key: &str| {
            let found = config.lines().find_map(|line| line.trim().strip_prefix(key)).unwrap();
            found.trim_start_matches(':').trim().to_owned()
        };
        let form = format!(
            "grant_type=client_credentials&client_id={}&client_secret={}",
            value("client_id"),
            value("client_secret")
        );
        let line =
            format!("curl -X POST {}/v1/oauth/token -d '{form}' | jq -r '.access_token'", url(ThreeSites::LONDON));
        self.typed(&self.operator, &line, LINE_SECONDS).stdout.trim().to_owned()
    }

    fn peers(&self) -> Vec<Value> {
        self.operator.json(&["peers", "list"]).unwrap()
    }

    fn peer(&self, name: &str) -> Value {
        self.operator.json(&["peers", "get", name]).unwrap()
    }

    fn service(&self) -> Value {
        self.operator.json(&["services", "get", "lon-tyo"]).unwrap()
    }

    fn add(&self, name: &str, address: IpAddr) {
        self.operator.ok(&["peers", "add", &format!("{address}:{API_PORT}"), "--name", name]).unwrap();
        eventually("it is healthy", || self.peer(name)["status"] == "healthy");
    }

    fn healthy(&self, at: IpAddr) -> usize {
        let healthy = ["peers", "list", "--status", "healthy", "--url", &url(at)];
        self.operator.json::<Vec<Value>>(&healthy).map_or(0, |peers| peers.len())
    }

    /// What a line may have changed is as it was: config, peers, services, files.
    fn put_right(&self, config: &str, cluster_file: &str, is_changed: bool) {
        fs::write(self.config(), config).unwrap();
        self.lay_out_files(cluster_file);
        if !is_changed {
            return;
        }
        let peers = self.peers();
        for peer in peers.iter().filter(|p| !["london", "tokyo", "oslo"].iter().any(|n| p["self_name"] == *n)) {
            self.operator.ok(&["peers", "delete", peer["id"].as_str().unwrap(), "--yes"]).unwrap();
        }
        for (name, address) in [("tokyo", ThreeSites::TOKYO), ("oslo", ThreeSites::OSLO)] {
            match peers.iter().find(|p| p["self_name"] == name) {
                Some(peer) if peer["name"] == name && peer["qos_enabled"] == true => {}
                Some(peer) => {
                    let update = ["peers", "update", peer["id"].as_str().unwrap(), "--name", name, "--qos"];
                    self.operator.ok(&update).unwrap();
                }
                None => self.add(name, address),
            }
        }
        fs::write(self.config(), config).unwrap();
        if self.operator.ok(&["compose", "export"]).unwrap() != cluster_file {
            let services: Vec<Value> = self.operator.json(&["services", "list"]).unwrap();
            for service in &services {
                self.operator.ok(&["services", "delete", service["id"].as_str().unwrap(), "--yes"]).unwrap();
            }
            self.operator.ok(&["services", "create", "--target-peer", "tokyo", "--name", "lon-tyo"]).unwrap();
            self.operator.ok(&["routes", "add", "--service", "lon-tyo", "--dest-cidr", "10.71.2.0/24"]).unwrap();
            self.serve_from_oslo();
            assert_eq!(self.operator.ok(&["compose", "export"]).unwrap(), cluster_file, "all is as it was");
        }
    }

    /// So that no peer of the cluster file goes without a service.
    fn serve_from_oslo(&self) {
        let create = ["services", "create", "--source-peer", "oslo", "--target-peer", "london", "--name", "osl-lon"];
        self.operator.ok(&create).unwrap();
        self.operator.ok(&["routes", "add", "--service", "osl-lon", "--dest-cidr", "10.71.4.0/24"]).unwrap();
    }

    /// A fresh agent on lima, as far along as the scene wants it.
    fn newcomer(&mut self, scene: Scene) -> Newcomer {
        self.newcomers += 1;
        let scratch = self.sites.lab.scratch();
        let name = format!("lima-{}", self.newcomers);
        let agent = Agent::start(&self.lima, AgentSettings::new(scratch, &name)).unwrap();
        let operator = Cli::new(&self.lima, &scratch.join(format!("{name}-operator"))).unwrap();
        if scene != Scene::Blank {
            let license = self.license.to_str().unwrap();
            operator.ok(&["bootstrap", "--url", &url(LIMA), "--license-file", license, "--name", "lima"]).unwrap();
        }
        if scene == Scene::Fourth {
            self.operator.ok(&["peers", "add", &format!("{LIMA}:{API_PORT}"), "--name", "lima"]).unwrap();
        }
        Newcomer { _agent: agent, operator }
    }
}

fn is_reading(line: &str) -> bool {
    line.split(' ').take(3).any(|word| READING.contains(&word))
}

fn documents() -> Vec<Line> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut names = vec!["README.md".to_owned()];
    let spec = fs::read_dir(root.join("docs/spec")).unwrap();
    names.extend(spec.map(|entry| format!("docs/spec/{}", entry.unwrap().file_name().to_str().unwrap())));
    names.sort();
    names.iter().flat_map(|name| of_document(name, &fs::read_to_string(root.join(name)).unwrap())).collect()
}

#[test]
fn every_line_of_documents_and_help_works_as_written() {
    if !require(&PRODUCT) {
        return;
    }
    let mut lines = documents();
    let is_first = |line: &Line| line.place.starts_with("README.md") && exemption(&line.text).is_none();
    let (first, rest): (Vec<Line>, Vec<Line>) =
        lines.drain(..).partition(|line| is_first(line) && line.text.starts_with("arctic "));
    assert_eq!(first.len(), 5, "a cluster in five lines: {first:?}");
    let mut world = World::made_by(&first);
    lines = rest;
    lines.extend(of_help(&world.operator).unwrap());

    // The last ones: a member that is taken back is known to the third one only some heartbeats later.
    lines.sort_by_key(|line| line.text.contains("peers delete") && line.text.contains("--yes"));

    // A backup to go back to, and the file that the lines about files name.
    let add =
        "services:\n  - { name: more, source_peer: tokyo, target_peer: oslo, routes: [{ dest_cidr: 10.90.0.0/16 }] }\n";
    let exported = world.operator.ok(&["compose", "export"]).unwrap();
    let (peers, _) = exported.split_once("services:").unwrap();
    world.lay_out_files(&format!("{peers}{add}"));
    let apply = world.typed(&world.operator, "arctic compose apply --yes", LINE_SECONDS);
    assert_eq!(apply.exit, 0, "{}{}", apply.stdout, apply.stderr);
    let config = fs::read_to_string(world.config()).unwrap();
    world.put_right(&config, &exported, true);

    let mut seen = BTreeSet::new();
    let mut used = BTreeMap::<&str, usize>::new();
    let mut complaints = Vec::new();
    for line in lines {
        let is_sync = line.text.contains("…/v1/cluster/sync");
        if let Some(pattern) = exemption(&line.text).filter(|_| !is_sync) {
            *used.entry(pattern).or_default() += 1;
            continue;
        }
        if !seen.insert(line.text.clone()) {
            continue;
        }
        let scene = scene(&line.text);
        let newcomer = (scene != Scene::Member).then(|| world.newcomer(scene));
        let foreign = newcomer.as_ref().filter(|_| matches!(scene, Scene::Alone | Scene::Fourth));
        let operator = foreign.map_or_else(|| world.operator.clone(), |newcomer| newcomer.operator.clone());
        let filled = world.filled(&line.text, scene);
        let began = Instant::now();
        complaints
            .extend(world.complaint(&operator, &line.text, &filled).map(|text| format!("{}: {text}", line.place)));
        if std::env::var_os("LINES_SHOWN").is_some() {
            println!("{:>6} ms  {}: {}", began.elapsed().as_millis(), line.place, line.text);
        }
        let is_changed = line.text.split(' ').any(|word| CHANGING.contains(&word));
        world.put_right(&config, &exported, is_changed || newcomer.is_some());
    }
    println!("{} lines", seen.len());
    let idle: Vec<_> = EXEMPT.iter().filter(|(pattern, _)| !used.contains_key(pattern)).collect();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    assert!(idle.is_empty(), "exemptions that match nothing: {idle:?}");
}
