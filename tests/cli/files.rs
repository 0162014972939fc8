//! What the CLI keeps: config, credentials, tokens; and which of them a call uses.

use crate::fake::{CLUSTER, FakeAgent, LONDON, SECRET, TOKYO, Workstation, mode};
use serde_json::{Value, json};

const NEW_CLUSTER: &str = "clu_01FFFFFFFFFFFFFFFFFFFFFFFF";

fn bootstrapped(peer: &str, cluster: &str) -> Value {
    json!({"peer_id":peer,"peer_public_key":"AAAA","client_id":"cli_new","client_secret":"sec_new","cluster_id":cluster,
        "license_id":"lic_1","expires_at":"2027-01-01T00:00:00Z","max_nodes":3,"max_services":9})
}

#[test]
fn bootstrap_prints_the_credential_once_and_saves_it_for_the_owner_only() {
    let agent = FakeAgent::start();
    agent.on("POST /v1/bootstrap", 201, bootstrapped(LONDON, CLUSTER));
    let station = Workstation::new();
    let license = station.file("license.json", "{\"customer_id\": \"cust_1\",\n \"max_nodes\":3}\n");
    let ran =
        station.args(&["bootstrap", "--url", &agent.url(), "--license-file", &license, "--name", "new-agent"]).ok();
    let expected = format!(
        "Peer ID:        {LONDON}\nCluster ID:     {CLUSTER}\nClient ID:      cli_new\nClient Secret:  sec_new\n\
         License ID:     lic_1\nExpires:        2027-01-01T00:00:00Z\nMax Nodes:      3\nMax Services:   9\n\
         Configuration saved to {}\n",
        station.config().display()
    );
    assert_eq!(ran.out, expected);
    let sent = agent.one("POST /v1/bootstrap");
    assert_eq!(sent.body, "{\"license\":{\"customer_id\": \"cust_1\",\n \"max_nodes\":3},\"name\":\"new-agent\"}");
    assert_eq!(sent.headers.get("authorization"), None);
    assert_eq!((mode(&station.config()), mode(station.config().parent().unwrap())), (0o600, 0o700));
    let config: Value = serde_saphyr::from_str(&station.config_text()).unwrap();
    assert_eq!(config["current_cluster"], CLUSTER);
    let entry = &config["clusters"][CLUSTER];
    assert_eq!((&entry["customer_id"], &entry["client_secret"]), (&json!("cust_1"), &json!("sec_new")));
    let peer = json!({"peer_id":LONDON,"name":"new-agent","endpoints":[agent.url()]});
    assert_eq!(entry["peers"], json!([peer]));
}

#[test]
fn bootstrapping_a_newcomer_keeps_the_current_cluster_and_prints_how_to_join() {
    let (current, newcomer) = (FakeAgent::start(), FakeAgent::start());
    newcomer.on("POST /v1/bootstrap", 201, bootstrapped(TOKYO, NEW_CLUSTER));
    let station = Workstation::with_cluster(&[(LONDON, current.port)]);
    let license = station.file("license.json", r#"{"customer_id":"cust_1"}"#);
    let url = newcomer.url();
    let line = ["bootstrap", "--url", &url, "--license-file", &license, "--name", "tokyo"];
    let ran = station.args(&line).ok();
    let add = format!("arctic peers add 127.0.0.1:{} --name tokyo", newcomer.port);
    assert!(ran.err.lines().any(|l| l.trim() == add), "{}", ran.err);
    let text = station.config_text();
    assert!(text.starts_with("clusters:") || text.contains(&format!("current_cluster: {CLUSTER}")), "{text}");
    assert!(text.contains("yes-it-is"), "unknown keys are kept: {text}");
    let object = station.args(&[&line[..], &["--set-current", "-j"]].concat()).ok();
    assert_eq!(object.json()["client_secret"], "sec_new");
    assert!(station.config_text().contains(&format!("current_cluster: {NEW_CLUSTER}")));
}

#[test]
fn after_peers_add_both_peers_are_listed_under_the_surviving_cluster() {
    let (london, tokyo) = (FakeAgent::start(), FakeAgent::start());
    tokyo.on("POST /v1/bootstrap", 201, bootstrapped(TOKYO, NEW_CLUSTER));
    let station = Workstation::with_cluster(&[(LONDON, london.port)]);
    let license = station.file("license.json", r#"{"customer_id":"cust_1"}"#);
    station.args(&["bootstrap", "--url", &tokyo.url(), "--license-file", &license]).ok();
    station.run("peers add 10.0.0.2").ok();
    let config: Value = serde_saphyr::from_str(&station.config_text()).unwrap();
    assert_eq!(config["current_cluster"], CLUSTER);
    assert_eq!(config["clusters"].as_object().unwrap().len(), 1);
    let entry = &config["clusters"][CLUSTER];
    assert_eq!((&entry["client_secret"], entry["peers"].as_array().unwrap().len()), (&json!(SECRET), 2));
    assert_eq!(mode(&station.config()), 0o600);
}

#[test]
fn the_newcomers_credential_is_taken_when_its_cluster_wins_and_it_already_works() {
    let (london, tokyo) = (FakeAgent::start(), FakeAgent::start());
    let station = Workstation::with_cluster(&[(LONDON, london.port)]);
    let winner = "clu_01AAAAAAAAAAAAAAAAAAAAAAAA";
    let identity =
        json!({"peer_id":LONDON,"public_key":"AAAA","license_id":"lic_1","cluster_id":winner,"version":"v0.1.0"});
    let fold = |secret: &str| {
        let mut answer = bootstrapped(TOKYO, winner);
        answer["client_secret"] = json!(secret);
        tokyo.on("POST /v1/bootstrap", 201, answer);
        let license = station.file("license.json", r#"{"customer_id":"cust_1"}"#);
        station.args(&["bootstrap", "--url", &tokyo.url(), "--license-file", &license]).ok();
        london.on("GET /v1/cluster/identity", 200, identity.clone());
        station.run("peers add 10.0.0.2").ok();
        let config: Value = serde_saphyr::from_str(&station.config_text()).unwrap();
        assert_eq!(config["current_cluster"], winner);
        config["clusters"][winner]["client_id"].as_str().unwrap().to_owned()
    };
    let original = station.config_text();
    assert_eq!(fold("sec_not_yet_known_to_london"), "cli_1");
    station.write_config(&original, 0o600);
    assert_eq!(fold(SECRET), "cli_new");
}

#[test]
fn a_config_readable_by_others_is_refused() {
    let agent = FakeAgent::start();
    let station = Workstation::with_cluster(&[(LONDON, agent.port)]);
    station.write_config(&station.config_text(), 0o644);
    let refused = station.run("peers list").fails(3, "Error: config file with secrets is readable by others");
    assert!(refused.err.contains(&format!("hint: chmod 600 {}", station.config().display())));
    assert_eq!(agent.seen().len(), 0);
}

#[test]
fn tokens_are_cached_privately_and_a_refused_one_is_replaced_once() {
    let agent = FakeAgent::start();
    let station = Workstation::with_cluster(&[(LONDON, agent.port)]);
    let fetched = || agent.count("POST /v1/oauth/token");
    station.run("peers list").ok();
    station.run("peers list").ok();
    assert_eq!(fetched(), 1);
    assert_eq!(mode(&station.path(".cache/arctic/tokens.json")), 0o600);
    agent.forget_tokens();
    station.run("peers list").ok();
    assert_eq!(fetched(), 2);
    agent.on("GET /v1/peers", 401, json!({"error":"never","code":"UNAUTHORIZED"}));
    station.run("peers list").fails(5, "Error: never");
    assert_eq!(fetched(), 3, "once, not for ever");
}

#[test]
fn a_given_token_or_recovery_token_replaces_the_credential() {
    let agent = FakeAgent::start();
    let station = Workstation::with_cluster(&[(LONDON, agent.port)]);
    let token = station.file("token", "from-file\n");
    agent.on("GET /v1/peers", 200, json!({"peers":[]}));
    let header = |ran: crate::fake::Ran, name: &str| {
        ran.ok();
        agent.seen().last().unwrap().headers.get(name).cloned()
    };
    assert_eq!(header(station.run("peers list --token t1"), "authorization").as_deref(), Some("Bearer t1"));
    let from_file = station.args(&["peers", "list", "--token-file", &token]);
    assert_eq!(header(from_file, "authorization").as_deref(), Some("Bearer from-file"));
    let from_env = station.command(&["peers", "list"]).env("ARCTIC_TOKEN", "t2").output().unwrap();
    assert_eq!(header(crate::fake::ran(from_env), "authorization").as_deref(), Some("Bearer t2"));
    let flag_wins = station.command(&["peers", "list", "--token", "t3"]).env("ARCTIC_TOKEN", "t2").output().unwrap();
    assert_eq!(header(crate::fake::ran(flag_wins), "authorization").as_deref(), Some("Bearer t3"));

    let recovery = |args: &[&str], env: &str| {
        let output = station.command(&[&["peers", "list"], args].concat()).env("ARCTIC_RECOVERY_TOKEN", env).output();
        let value = header(crate::fake::ran(output.unwrap()), "x-arctic-recovery");
        assert_eq!(agent.seen().last().unwrap().headers.get("authorization"), None);
        value.unwrap_or_default()
    };
    assert_eq!(recovery(&["--recovery-token", "r1", "--recovery-token-file", &token], "r2"), "r1");
    assert_eq!(recovery(&["--recovery-token-file", &token], "r2"), "r2");
    assert_eq!(recovery(&["--recovery-token-file", &token], ""), "from-file");
    assert_eq!(agent.count("POST /v1/oauth/token"), 0);
}

#[test]
fn url_uses_the_credential_of_the_cluster_that_lists_it() {
    let (london, other) = (FakeAgent::start(), FakeAgent::start());
    let station = Workstation::with_cluster(&[(LONDON, london.port)]);
    let text = format!(
        "{}  clu_other:\n    cluster_id: clu_other\n    client_id: cli_other\n    client_secret: {SECRET}\n    peers: \
         [{{peer_id: {TOKYO}, url: '{}'}}]\n",
        station.config_text(),
        other.url()
    );
    station.write_config(&text, 0o600);
    station.args(&["peers", "list", "--url", &other.url()]).ok();
    assert!(other.one("POST /v1/oauth/token").body.contains("client_id=cli_other&"));
    let by_env = station.command(&["peers", "list"]).env("ARCTIC_CLUSTER", "clu_other").output().unwrap();
    crate::fake::ran(by_env).ok();
    assert_eq!(london.seen().len(), 0);
}

#[test]
fn peer_names_the_agent_that_handles_the_call() {
    let agent = FakeAgent::start();
    let station = Workstation::with_cluster(&[(LONDON, agent.port)]);
    station.run("services list --peer tokyo").ok();
    assert_eq!(agent.one("GET /v1/services").headers["x-arctic-target-peer"], TOKYO);
    assert_eq!(agent.one("GET /v1/peers").headers.get("x-arctic-target-peer"), None);
    assert_eq!(agent.one("POST /v1/oauth/token").headers.get("x-arctic-target-peer"), None);
}

#[test]
fn what_the_named_peer_refuses_is_the_error_of_the_command() {
    let agent = FakeAgent::start();
    let station = Workstation::with_cluster(&[(LONDON, agent.port)]);
    station.run("health --peer tokyo").ok();
    assert_eq!(agent.one("GET /livez").headers["x-arctic-target-peer"], TOKYO);
    assert!(agent.one("GET /livez").headers.contains_key("authorization"), "it is the operator who asks for it");
    for (status, code, exit) in
        [(422, "PEER_UNREACHABLE", 4), (403, "API_ACCESS_INTERNAL", 5), (404, "NOT_FOUND", 1), (409, "CONFLICT", 1)]
    {
        agent.on("GET /v1/services", status, serde_json::json!({"error": "no", "code": code}));
        station.run("services list --peer tokyo").fails(exit, "Error: no");
    }
    station.run("services list --peer nobody").fails(1, "Error: peer not found");
    let license = station.file("license.json", "{}");
    let bootstrap = format!("bootstrap --url {} --license-file {license} --peer tokyo", agent.url());
    station.run(&bootstrap).fails(2, "Error: bootstrap acts on the called agent: leave --peer out");
}

#[test]
fn preferences_are_defaults_and_environment_and_flags_win() {
    let agent = FakeAgent::start();
    let station = Workstation::with_cluster(&[(LONDON, agent.port)]);
    station.write_config(&format!("{}preferences: {{output_format: json}}\n", station.config_text()), 0o600);
    assert!(station.run("peers list").ok().json().is_array());
    let by_env = station.command(&["peers", "list"]).env("ARCTIC_OUTPUT", "name").output().unwrap();
    assert_eq!(crate::fake::ran(by_env).ok().out, "london\ntokyo\n");
    assert!(station.run("peers list -o table").ok().out.starts_with("ID "));
}
