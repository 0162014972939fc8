//! Errors: exact first lines, exit codes, what is shown and what is not.

use crate::fake::{CLUSTER, FakeAgent, LONDON, SECRET, SVC, TOKYO, Workstation, closed_port, ran};
use serde_json::{Value, json};
use std::process::Stdio;

fn lab() -> (FakeAgent, Workstation) {
    let agent = FakeAgent::start();
    let station = Workstation::with_cluster(&[(LONDON, agent.port)]);
    (agent, station)
}

#[test]
fn a_failed_peers_add_begins_with_the_exact_text() {
    let (agent, station) = lab();
    let cases = [
        ("handshake failed: connection refused", "HANDSHAKE_FAILED", 422, 1),
        ("handshake failed: connection timeout", "HANDSHAKE_FAILED", 422, 1),
        ("handshake failed: license mismatch", "LICENSE_MISMATCH", 422, 8),
        ("handshake failed: invalid signature", "HANDSHAKE_FAILED", 422, 1),
        ("handshake failed: node limit exceeded", "NODE_LIMIT_EXCEEDED", 422, 8),
        ("peer already exists in cluster", "ALREADY_EXISTS", 409, 1),
    ];
    for (text, code, status, exit) in cases {
        let body = json!({"error":text,"code":code,"details":{"endpoint":"10.0.0.2:8080","direction":"reverse"},
            "hint":"do this","request_id":"req_7"});
        agent.on("POST /v1/peers", status, body.clone());
        let failed = station.run("peers add 10.0.0.2").fails(exit, &format!("Error: {text}"));
        let rest: Vec<&str> = failed.err.lines().skip(1).collect();
        let code = format!("  code: {code}   request: req_7");
        assert_eq!(rest, ["  direction  reverse", "  endpoint   10.0.0.2:8080", "  hint: do this", code.as_str()]);
        let object = station.run("peers add 10.0.0.2 -j");
        assert_eq!((object.code, object.out.as_str()), (exit, ""));
        assert_eq!(serde_json::from_str::<Value>(&object.err).unwrap(), body);
    }
}

// accepts: 000-55
#[test]
fn deleting_the_local_peer_points_to_remove_self() {
    let (agent, station) = lab();
    let text = "cannot delete local peer (use 'arctic peers remove-self' instead)";
    agent.on(&format!("DELETE /v1/peers/{LONDON}"), 400, json!({"error":text,"code":"INVALID_REQUEST"}));
    station.run("peers delete london --yes").fails(1, &format!("Error: {text}"));
}

#[test]
fn routes_add_names_what_is_missing_wrong_or_unknown() {
    let (agent, station) = lab();
    station.run("routes add --dest-cidr 10.0.0.0/8").fails(2, "Error: --service is required");
    station.run("routes add --service l2t").fails(2, "Error: --source-cidr or --dest-cidr is required");
    let text = "Error: invalid CIDR notation: `10.1.2.3/8` has host bits set (did you mean 10.0.0.0/8?)";
    station.run("routes add --service l2t --dest-cidr 10.1.2.3/8").fails(2, text);
    let text = "Error: invalid CIDR notation: `10.0.0.0` has no prefix length (did you mean 10.0.0.0/32?)";
    station.run("routes add --service l2t --source-cidr 10.0.0.0").fails(2, text);
    assert_eq!(agent.seen().len(), 0, "nothing of this needs the agent");
    station.run("routes add --service nobody --dest-cidr 10.0.0.0/8").fails(1, "Error: service not found");
    let unknown = SVC.replace('C', "9");
    station.args(&["routes", "add", "--service", &unknown, "--dest-cidr", "::/0"]).fails(1, "Error: service not found");
    station.run("routes add --service l2t --dest-cidr 10.0.0.0/8 --priority 65536").says("65536");
    station.run("routes delete --route 2 --yes").fails(2, "Error: --service is required");
    station.run("routes delete --service l2t --yes").fails(2, "Error: --route is required");
}

#[test]
fn services_create_names_what_is_missing_or_unknown() {
    let (agent, station) = lab();
    station.run("services create").fails(2, "Error: --target-peer is required");
    station.run("services create --target-peer paris").fails(1, "Error: target peer not found");
    station.run("services create --target-peer tokyo --transport udp").says("tcp or kcp");
    assert_eq!(station.run("services create --target-peer tokyo --bandwidth-limit 1.5").code, 2);
    let full = json!({"error":"service limit exceeded","code":"SERVICE_LIMIT_EXCEEDED"});
    agent.on("POST /v1/services", 422, full);
    station.run("services create --target-peer tokyo").fails(8, "Error: service limit exceeded");
}

#[test]
fn bootstrap_names_what_is_missing_or_refused() {
    let agent = FakeAgent::start();
    let station = Workstation::new();
    let license = station.file("license.json", r#"{"customer_id":"cust_1"}"#);
    station.run("bootstrap").fails(2, "Error: --license-file is required");
    station.args(&["bootstrap", "--license-file", &license]).fails(2, "Error: --url is required for bootstrap");
    let url = agent.url();
    station
        .args(&["bootstrap", "--url", &url, "--license-file", "/no/file"])
        .fails(1, "Error: failed to read license file");
    let text = station.file("text", "hello");
    station.args(&["bootstrap", "--url", &url, "--license-file", &text]).fails(1, "Error: failed to read license file");
    let line = ["bootstrap", "--url", &url, "--license-file", &license];
    agent.on("POST /v1/bootstrap", 422, json!({"error":"expired on 2026-01-01","code":"LICENSE_EXPIRED"}));
    station.args(&line).fails(8, "Error: license has expired");
    agent.on("POST /v1/bootstrap", 409, json!({"error":"done before","code":"ALREADY_BOOTSTRAPPED"}));
    station.args(&line).fails(1, "Error: agent is already bootstrapped");
    assert!(!station.config().exists());
}

// accepts: 001-05
#[test]
fn an_agent_that_does_not_answer_is_named_with_host_and_port() {
    let port = closed_port();
    let station = Workstation::with_cluster(&[(LONDON, port)]);
    let text = format!("Error: cannot connect to agent at 127.0.0.1:{port}: connection refused");
    station.run("peers list").fails(4, &text);
    let object = station.run("services list -j");
    assert_eq!((object.code, object.out.as_str()), (4, ""));
    assert_eq!(serde_json::from_str::<Value>(&object.err).unwrap()["code"], "AGENT_UNREACHABLE");
    let station = Workstation::with_cluster(&[(LONDON, port), (TOKYO, closed_port())]);
    let all = station.run("peers list").fails(4, "Error: no agent of the cluster answers");
    assert_eq!(all.err.matches("connection refused").count(), 2);
}

#[test]
fn an_agent_that_accepts_but_never_answers_ends_in_a_timeout() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let station = Workstation::with_cluster(&[(LONDON, port)]);
    let text = format!("Error: no answer from agent at 127.0.0.1:{port}: timeout after 0.2 s");
    station.run("cluster identity --timeout 200ms").fails(4, &text);
}

#[test]
fn a_silent_agent_is_passed_over_for_the_next_one() {
    let agent = FakeAgent::start();
    let station = Workstation::with_cluster(&[(TOKYO, closed_port()), (LONDON, agent.port)]);
    assert_eq!(station.run("peers list -j").ok().json().as_array().unwrap().len(), 2);
    let default_first = station.config_text().replace("    peers:", &format!("    default_peer: {LONDON}\n    peers:"));
    station.write_config(&default_first, 0o600);
    assert!(!station.run("peers list --debug").ok().err.contains("cannot connect"));
}

#[test]
fn a_refused_credential_or_scope_is_exit_5() {
    let (agent, station) = lab();
    let wrong = station.config_text().replace(SECRET, "sec_wrong");
    station.write_config(&wrong, 0o600);
    station.run("peers list").fails(5, "Error: bad credentials");
    agent.on("GET /v1/peers", 403, json!({"error":"scope peers.read needed","code":"FORBIDDEN"}));
    station.run("peers list --token x").fails(5, "Error: scope peers.read needed");
    let nobody = Workstation::new();
    let refused =
        nobody.args(&["services", "list", "--url", &agent.url()]).fails(5, "Error: token missing or not valid");
    assert!(refused.err.contains("--recovery-token-file"), "{}", refused.err);
}

#[test]
fn a_typo_gets_a_suggestion_and_usage_errors_are_exit_2() {
    let station = Workstation::new();
    assert!(
        station.run("pers list").fails(2, "Error: unrecognized subcommand 'pers'").err.contains("did you mean peers?")
    );
    let flag = station.run("peers list --remot").fails(2, "Error: unexpected argument '--remot' found");
    assert!(flag.err.contains("did you mean --remote?"));
    let object = station.run("peers list --remot -j");
    assert_eq!(serde_json::from_str::<Value>(&object.err).unwrap()["code"], "USAGE");
    station.run("services delete").says("usage  arctic services delete");
    assert_eq!(station.run("").code, 2);
    assert_eq!(station.run("--help").ok().err, "");
    assert_eq!(station.run("--version").ok().out, format!("arctic {}\n", arctic::model::VERSION));
}

#[test]
fn without_config_the_missing_cluster_is_the_error() {
    let station = Workstation::new();
    station.write_config("clusters: {clu_1: {cluster_id: clu_1}}\n", 0o600);
    station.run("peers list").fails(3, "Error: no current cluster set");
    station.run("peers list --cluster clu_2").fails(3, "Error: cluster `clu_2` is not in the config file");
    station.run("peers list --config /no/such/file").fails(3, "Error: config file /no/such/file does not exist");
}

#[test]
fn trace_shows_the_exchange_and_debug_the_steps_without_secrets() {
    let (agent, station) = lab();
    let traced = station.run("peers add 10.0.0.2 --trace").ok();
    for line in [
        format!("> POST {}/v1/oauth/token", agent.url()),
        "> authorization: ***".to_owned(),
        "> {\"endpoints\":[\"10.0.0.2:8080\"]}".to_owned(),
        "< 201".to_owned(),
    ] {
        assert!(traced.err.lines().any(|l| l == line), "{line} in {}", traced.err);
    }
    let debugged = station.run("peers add 10.0.0.2 --debug").ok();
    assert!(debugged.err.contains("debug: using the cached token of cli_1"), "{}", debugged.err);
    let rescued = station.run("peers list --trace --recovery-token rescue").ok();
    agent.on("POST /v1/bootstrap", 201, json!({"client_secret":SECRET,"cluster_id":CLUSTER}));
    let license = station.file("l.json", r#"{"signature":"abcsignature","customer_id":"c"}"#);
    let url = agent.url();
    let born = station.args(&["bootstrap", "--url", &url, "--license-file", &license, "--trace", "--debug"]).ok();
    for text in [traced.err, debugged.err, rescued.err, born.err] {
        for secret in [SECRET, "token-1", "rescue", "abcsignature"] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
    }
}

#[test]
fn a_closed_pipe_ends_silently() {
    let (_agent, station) = lab();
    let mut child = station.command(&["peers", "list"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let end = ran(child.wait_with_output().unwrap());
    assert_eq!((end.code, end.err.as_str()), (0, ""));
}
