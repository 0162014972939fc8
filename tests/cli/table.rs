//! Every command of the tree, as a script calls it: one JSON document on stdout, whatever else there is to say.

use crate::fake::{CLUSTER, FakeAgent, LONDON, SVC, TOKYO, Workstation};
use arctic::cli::Cli;
use clap::CommandFactory;
use serde_json::{Value, json};
use std::collections::BTreeSet;

const CREDENTIAL: &str = "cli_01AAAAAAAAAAAAAAAAAAAAAAAA";

/// A line for each command that ends with exit 0, below `-j`; FILE, LICENSE, OUT, URL and the like are put in.
const LINES: &[&str] = &[
    "bootstrap --url URL --license-file LICENSE",
    "peers list",
    "peers get tokyo",
    "peers add 10.0.0.2",
    "peers update tokyo --name t --no-qos",
    "peers delete tokyo --yes",
    "peers remove-self --yes",
    "remove-self --yes",
    "services list",
    "services get l2t",
    "services create --target-peer tokyo",
    "services update l2t --bandwidth-limit 5",
    "services delete l2t --yes",
    "routes list",
    "routes add --service l2t --dest-cidr 10.0.0.0/8",
    "routes update --service l2t --route 2 --priority 7",
    "routes explain --src 10.0.0.1 --dst 10.0.0.2",
    "routes delete --service l2t --route 2 --yes",
    "credentials list",
    "credentials create --scopes peers.read",
    "credentials revoke CREDENTIAL --yes",
    "credentials rotate",
    "cluster identity",
    "cluster status",
    "cluster sync",
    "cluster init",
    "cluster lock status",
    "cluster lock clear",
    "license status",
    "license show",
    "license update --license-file LICENSE",
    "compose init --file OUT",
    "compose export",
    "compose fmt FILE",
    "compose validate FILE",
    "compose diff FILE",
    "compose apply FILE --yes",
    "compose schema",
    "compose graph FILE",
    "compose history",
    "compose rollback BACKUP --yes",
    "compose confirm",
    "config view",
    "config path",
    "config list",
    "config use-cluster CLUSTER",
    "config rename-cluster CLUSTER prod",
    "config add-peer URL",
    "config set timeout 12",
    "config delete-peer LONDON",
    "config delete-cluster CLUSTER --yes",
    "cache refresh",
    "cache status",
    "cache clear",
    "status",
    "events",
    "audit list",
    "explain bandwidth_limit_mbps",
    "api GET /v1/peers",
    "completion bash",
    "man",
    "help exit-codes",
    "health",
    "version",
];

fn lab() -> (FakeAgent, Workstation) {
    let agent = FakeAgent::start();
    let station = Workstation::with_cluster(&[(LONDON, agent.port)]);
    let peer = |id: &str, name: &str, local: bool| {
        json!({"id":id,"name":name,"self_name":name,"is_local":local,"endpoints":[format!("127.0.0.1:{}", agent.port)],
            "status":"healthy","qos_enabled":true,"api_access":"public"})
    };
    let (london, tokyo) = (peer(LONDON, "london", true), peer(TOKYO, "tokyo", false));
    let service = json!({"id":SVC,"name":"l2t","source_peer_id":LONDON,"target_peer_id":TOKYO,"version":3,"transport_type":"tcp",
        "bandwidth_limit_mbps":0,"state":"active","routes":[{"id":2,"version":3,"source_cidr":null,"dest_cidr":"10.0.0.0/8","priority":100}]});
    let document = json!({"license_id":"lic_1","customer_id":"cust_1"});
    let license = json!({"license":document,"state":"warning","warnings":["expires soon"],"days_left":3,
        "services":{"used":1,"max":9},"nodes":{"used":2,"max":3}});
    let lease = json!({"holder_name":"london","purpose":"x"});
    agent
        .on("GET /v1/peers", 200, json!({"peers":[london, tokyo]}))
        .on("GET /v1/services", 200, json!({"services":[service]}))
        .on(&format!("GET /v1/services/{SVC}"), 200, service.clone())
        .on(&format!("GET /v1/services/{SVC}/routes"), 200, json!({"routes":service["routes"]}))
        .on(&format!("PUT /v1/services/{SVC}"), 200, service.clone())
        .on(&format!("PUT /v1/services/{SVC}/routes/2"), 200, service["routes"][0].clone())
        .on(&format!("PUT /v1/peers/{TOKYO}"), 200, tokyo)
        .on(
            "POST /v1/routes/explain",
            200,
            json!({"result":"captured","message":"m","candidates":[{"outcome":"wins","reason":"WINS"}]}),
        )
        .on(
            "POST /v1/bootstrap",
            201,
            json!({"peer_id":LONDON,"cluster_id":CLUSTER,"client_id":"cli_2","client_secret":"sec_2"}),
        )
        .on("DELETE /v1/peers/self", 200, json!({"peer_id":LONDON}))
        .on("GET /v1/credentials", 200, json!({"credentials":[{"client_id":CREDENTIAL,"scopes":["admin"]}]}))
        .on(
            "POST /v1/credentials",
            201,
            json!({"client_id":CREDENTIAL,"client_secret":"sec_3","scopes":["peers.read"]}),
        )
        .on(&format!("DELETE /v1/credentials/{CREDENTIAL}"), 200, json!({"deleted":true}))
        .on(
            "POST /v1/cluster/credentials/rotate",
            200,
            json!({"client_id":"cli_1","client_secret":"sec_4","version":2}),
        )
        .on("GET /v1/cluster/status", 200, json!({"cluster_id":CLUSTER,"warnings":["one is away"],"converged":false}))
        .on("POST /v1/cluster/init", 200, json!({"cluster_id":CLUSTER,"was_created":false,"message":"exists"}))
        .on("GET /v1/cluster/lock", 200, json!({"lock":lease}))
        .on("DELETE /v1/cluster/lock", 200, json!({"cleared":lease}))
        .on("DELETE /v1/cluster/pending-confirm", 200, json!({"confirmed":[],"unreached":[]}))
        .on("GET /v1/license", 200, license.clone())
        .on("PUT /v1/license", 200, license)
        .on("GET /readyz", 200, json!({"status":"ok","checks":[]}))
        .on("GET /v1/audit?limit=1000", 200, json!({"entries":[{"time":"2026-01-01T00:00:00Z","verb":"peers_add"}]}))
        .on_text(
            "GET /v1/events",
            "id: 1-1\nevent: agent.started\ndata: {\"id\":\"1-1\",\"type\":\"agent.started\"}\n\n",
        );
    (agent, station)
}

fn line_of(line: &str, agent: &FakeAgent, station: &Workstation) -> Vec<String> {
    let file = format!("version: v1\npeers:\n  - {{ name: london, endpoints: [\"127.0.0.1:{}\"] }}\n", agent.port);
    let path = |name: &str, text: &str| station.file(name, text);
    line.split(' ')
        .map(|word| match word {
            "URL" => agent.url(),
            "LICENSE" => path("license.json", r#"{"customer_id":"cust_1"}"#),
            "FILE" => path("cluster.yaml", &file),
            "BACKUP" => path("backup.yaml", &format!("{file}  - {{ name: tokyo, endpoints: [b] }}\nservices:\n  - {{ name: l2t, source_peer: london, target_peer: tokyo, routes: [{{ dest_cidr: 10.0.0.0/8 }}] }}\n")),
            "OUT" => station.path("new.yaml").display().to_string(),
            "CLUSTER" => CLUSTER.to_owned(),
            "LONDON" => LONDON.to_owned(),
            "CREDENTIAL" => CREDENTIAL.to_owned(),
            other => other.to_owned(),
        })
        .collect()
}

fn leaves(command: &clap::Command, path: &str, found: &mut BTreeSet<String>) {
    let inner: Vec<&clap::Command> = command.get_subcommands().filter(|c| !c.is_hide_set()).collect();
    if inner.is_empty() {
        found.insert(path.to_owned());
    }
    for c in inner {
        leaves(c, format!("{path} {}", c.get_name()).trim(), found);
    }
}

#[test]
fn the_table_has_a_line_for_every_command() {
    let mut commands = BTreeSet::new();
    leaves(&Cli::command(), "", &mut commands);
    commands.remove("agent run");
    let begins = |command: &String| LINES.iter().any(|line| format!("{line} ").starts_with(&format!("{command} ")));
    let missing: Vec<&String> = commands.iter().filter(|c| !begins(c)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// Of a later issue.
const LATER: [&str; 4] = ["agent install", "agent upgrade", "agent uninstall", "agent check"];

/// `noun a|b C` of the specification as paths: `noun a`, `noun b`.
fn paths_of(cell: &str) -> Vec<String> {
    let cell = cell.replace("\\|", "|");
    // What is in brackets is about the command.
    let cell: String = cell.split('[').map(|part| part.rsplit(']').next().unwrap_or_default()).collect();
    let spans = cell.split('`').skip(1).step_by(2);
    spans
        .flat_map(|span| {
            let mut alternatives = span.split('|').map(|alternative| {
                let words = alternative.split(' ').filter(|w| w.starts_with(|c: char| c.is_ascii_lowercase()));
                words.collect::<Vec<_>>().join(" ")
            });
            let first = alternatives.next().unwrap_or_default();
            let noun = first.rsplit_once(' ').map(|(noun, _)| format!("{noun} ")).unwrap_or_default();
            std::iter::once(first).chain(alternatives.map(|rest| format!("{noun}{rest}")).collect::<Vec<_>>())
        })
        .collect()
}

#[test]
fn every_command_of_the_specification_is_there() {
    let spec = include_str!("../../docs/spec/cli.md");
    let table = spec.split("## 3. Commands").nth(1).unwrap().split("## 4.").next().unwrap();
    let mut checked = 0;
    for row in table.lines().filter(|l| l.starts_with("| `")) {
        for path in paths_of(row.replace("\\|", "\u{1}").split(" | ").next().unwrap().replace('\u{1}', "|").as_str()) {
            if LATER.contains(&path.as_str()) {
                continue;
            }
            let mut command = Cli::command();
            for word in path.split(' ') {
                match command.find_subcommand(word) {
                    Some(inner) => command = inner.clone(),
                    // The rest are values of a command without subcommands.
                    None => assert!(!command.has_subcommands(), "{path}: {word} is no command"),
                }
            }
            checked += 1;
        }
    }
    assert!(checked > 45, "{checked}");
}

#[test]
fn stdout_is_one_json_document_for_every_command_also_while_warnings_are_active() {
    for warned in [false, true] {
        for line in LINES {
            let (agent, station) = lab();
            if warned {
                agent.warn_of_license("grace_period");
            }
            let mut words = line_of(line, &agent, &station);
            words.push("-j".to_owned());
            let ran = station.args(&words.iter().map(String::as_str).collect::<Vec<_>>());
            assert_eq!(ran.code, 0, "{line}: {}{}", ran.out, ran.err);
            let parsed = serde_json::from_str::<Value>(&ran.out);
            assert!(parsed.is_ok(), "{line} printed {:?} and {}", ran.out, ran.err);
        }
    }
}

#[test]
fn an_unreachable_agent_is_one_error_object_and_no_output() {
    let port = crate::fake::closed_port();
    let local =
        ["bootstrap", "compose", "config", "cache", "explain", "completion", "man", "help", "version", "status"];
    for line in LINES.iter().filter(|l| !local.contains(&l.split(' ').next().unwrap())) {
        let agent = FakeAgent::start();
        let station = Workstation::with_cluster(&[(LONDON, port)]);
        let mut words = line_of(line, &agent, &station);
        words.push("-j".to_owned());
        let ran = station.args(&words.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!((ran.code, ran.out.as_str()), (4, ""), "{line}: {}", ran.err);
        let object: Value = serde_json::from_str(&ran.err).unwrap_or_else(|e| panic!("{line}: {e}: {}", ran.err));
        assert_eq!(object["code"], "AGENT_UNREACHABLE", "{line}");
    }
}

#[test]
fn every_verb_ends_without_a_terminal_and_names_the_flag_it_needs() {
    for line in LINES.iter().filter(|l| l.ends_with("--yes")) {
        let (agent, station) = lab();
        let words = line_of(line.trim_end_matches(" --yes"), &agent, &station);
        let ran = station.args(&words.iter().map(String::as_str).collect::<Vec<_>>());
        if line.starts_with("compose ") {
            assert_eq!(ran.code, 0, "{line}, where there is nothing to do: {}", ran.err);
            continue;
        }
        assert_eq!(ran.code, 2, "{line}: {}", ran.err);
        assert!(ran.err.contains("Error: confirmation needed: pass --yes"), "{line}: {}", ran.err);
        assert!(!agent.seen().iter().any(|s| s.line.starts_with("DELETE")), "{line}");
    }
}

#[test]
fn a_dry_run_says_so_to_the_agent_with_every_write() {
    let writes = LINES.iter().filter(|l| {
        let noun = l.split(' ').next().unwrap();
        ["peers", "remove-self", "services", "routes", "credentials", "license"].contains(&noun)
    });
    for line in writes {
        let (agent, station) = lab();
        let mut words = line_of(line, &agent, &station);
        words.push("--dry-run".to_owned());
        station.args(&words.iter().map(String::as_str).collect::<Vec<_>>());
        let wrote =
            |line: &str| !line.starts_with("GET ") && !line.contains("/oauth/") && !line.contains("/routes/explain");
        for seen in agent.seen().iter().filter(|s| wrote(&s.line)) {
            assert!(seen.line.ends_with("dry_run=true"), "{line}: {}", seen.line);
        }
    }
}

#[test]
fn typos_of_every_command_and_long_flag_are_understood() {
    fn check(command: &mut clap::Command, path: &[String], station: &Workstation) {
        let names: Vec<String> =
            command.get_subcommands().filter(|c| !c.is_hide_set()).map(|c| c.get_name().to_owned()).collect();
        for name in names.iter().filter(|n| n.len() > 4) {
            let typo = format!("{}x{}", &name[..2], &name[2..]);
            let words: Vec<&str> = path.iter().map(String::as_str).chain([typo.as_str()]).collect();
            let ran = station.args(&words);
            assert_eq!(ran.code, 2, "{words:?}");
            assert!(ran.err.contains("did you mean "), "{words:?}: {}", ran.err);
        }
        for name in names {
            let inner = command.find_subcommand_mut(&name).unwrap();
            if inner.has_subcommands() {
                check(inner, &[path, &[name]].concat(), station);
            }
        }
    }
    let station = Workstation::new();
    check(&mut Cli::command(), &[], &station);
    let flag = station.run("services create --bandwith-limit 5");
    assert!(flag.err.contains("did you mean --bandwidth-limit?"), "{}", flag.err);
}
