//! `arctic compose` without a cluster: the file alone, and what is refused before anything is changed.

use crate::fake::{FakeAgent, Workstation, closed_port};
use serde_json::{Value, json};

const GOOD: &str = "version: v1\npeers:\n  - { name: syd, endpoints: [\"203.0.113.10:8080\"] }\n  - { name: fra, endpoints: [\"198.51.100.7:8080\"] }\n\nservices:\n  - name: s2f\n    source_peer: syd\n    target_peer: fra\n    routes:\n      - { dest_cidr: 10.0.0.0/8 }\n";

#[test]
fn a_valid_file_is_ok_and_findings_have_line_column_caret_and_suggestion() {
    let station = Workstation::new();
    let good = station.file("cluster.yaml", GOOD);
    let ran = station.args(&["compose", "validate", &good]).ok();
    assert_eq!(ran.out, format!("Validating {good}...\nOK - 2 peers, 1 services, 1 routes\n"));
    let bad = station.file("bad.yaml", &GOOD.replace("target_peer: fra", "target_per: fra"));
    let ran = station.args(&["compose", "validate", &bad]);
    assert_eq!(ran.code, 1);
    assert_eq!(
        ran.err.lines().take(4).collect::<Vec<_>>()[..],
        [
            format!("{bad}:7:5: error: `target_peer` of a service is missing").as_str(),
            "    7 |   - name: s2f",
            "      |     ^^^^",
            format!("{bad}:9:5: error: unknown key `target_per` of a service").as_str(),
        ]
    );
    assert!(
        ran.err.contains("    9 |     target_per: fra\n      |     ^^^^^^^^^^\n  did you mean target_peer?\n"),
        "{}",
        ran.err
    );
    assert!(ran.err.contains(&format!("Error: {bad} is not valid: 2 errors")), "{}", ran.err);
    let object = station.args(&["compose", "validate", &bad, "-j"]);
    let findings: Value = serde_json::from_str(&object.err).unwrap();
    assert_eq!(
        (object.out.as_str(), &findings["details"]["findings"][1]["suggestion"]),
        ("", &json!("did you mean target_peer?"))
    );
    let warned = station.file("warned.yaml", &GOOD.replace("203.0.113.10", "127.0.0.1"));
    assert!(station.args(&["compose", "validate", &warned]).ok().err.contains("warning: 127.0.0.1:8080"));
    assert_eq!(station.args(&["compose", "validate", &warned, "--strict"]).code, 1);
}

#[test]
fn fmt_prints_writes_or_checks() {
    let station = Workstation::new();
    let loose = station.file("loose.yaml", "peers: # all\n- {endpoints: [a], name: x}\nversion: v1\n");
    let canonical = "version: v1\n\npeers:  # all\n  - { name: x, endpoints: [a] }\n";
    assert_eq!(station.args(&["compose", "fmt", &loose]).ok().out, canonical);
    station.args(&["compose", "fmt", &loose, "--check"]).fails(1, &format!("Error: {loose} is laid out otherwise"));
    assert_eq!(station.args(&["compose", "fmt", &loose, "--write"]).ok().out, "");
    assert_eq!(std::fs::read_to_string(&loose).unwrap(), canonical);
    assert_eq!(station.args(&["compose", "fmt", &loose, "--check"]).ok().out, "");
}

#[test]
fn init_writes_a_valid_starter_once() {
    let station = Workstation::new();
    let path = station.path("new.yaml").display().to_string();
    station.args(&["compose", "init", "--file", &path]).ok();
    station.args(&["compose", "validate", &path, "--strict"]).ok();
    station.args(&["compose", "fmt", &path, "--check"]).ok();
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.starts_with("# yaml-language-server: $schema="), "{text}");
    station.args(&["compose", "init", "--file", &path]).fails(1, &format!("Error: {path} exists already"));
    station.args(&["compose", "init", "--file", &path, "--force"]).ok();
}

#[test]
fn schema_and_graph_need_no_agent() {
    let station = Workstation::new();
    let schema = station.run("compose schema").ok().json();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    let file = station.file("cluster.yaml", GOOD);
    assert!(station.args(&["compose", "graph", &file]).ok().out.starts_with("graph LR\n"));
    assert!(station.args(&["compose", "graph", &file, "-o", "dot"]).ok().out.starts_with("digraph cluster {\n"));
    station.run("peers list -o dot").fails(2, "Error: -o dot and -o mermaid are for `arctic compose graph`");
}

#[test]
fn variables_come_from_the_env_file_or_the_environment() {
    let station = Workstation::new();
    let file = station.file("cluster.yaml", &GOOD.replace("203.0.113.10:8080", "${SYD}"));
    let ran = station.args(&["compose", "validate", &file]);
    assert!(ran.err.contains(":3:30: error: ${SYD} is not set"), "{}", ran.err);
    let env = station.file("env", "SYD=203.0.113.10\n");
    station.args(&["compose", "validate", &file, "--env-file", &env]).ok();
    assert!(station.command(&["compose", "validate", &file]).env("SYD", "a").output().unwrap().status.success());
}

#[test]
fn nothing_is_asked_of_anyone_when_a_listed_peer_does_not_answer() {
    let agent = FakeAgent::start();
    let station = Workstation::new();
    let text = GOOD
        .replace("203.0.113.10:8080", &format!("127.0.0.1:{}", agent.port))
        .replace("198.51.100.7:8080", &format!("127.0.0.1:{}", closed_port()));
    let file = station.file("cluster.yaml", &text);
    let ran = station.args(&["compose", "apply", &file, "--yes"]);
    assert_eq!(ran.code, 4, "{}", ran.err);
    assert!(ran.err.contains("\nError: peer fra does not answer: cannot connect"), "{}", ran.err);
    assert_eq!(agent.seen().iter().map(|s| s.line.as_str()).collect::<Vec<_>>(), ["GET /v1/cluster/identity"]);
    let station = Workstation::with_cluster(&[]);
    station
        .args(&["compose", "diff", &file, "--peer", "x"])
        .fails(2, "Error: compose acts on every listed peer: leave --peer out");
    station.run("compose apply /no/such/file --yes").fails(1, "Error: cannot read /no/such/file");
}
