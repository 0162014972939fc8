//! What each command sends and prints.

use crate::fake::{CLUSTER, FakeAgent, LONDON, Ran, SVC, SVC2, TOKYO, Workstation};
use serde_json::{Value, json};

fn lab() -> (FakeAgent, Workstation) {
    let agent = FakeAgent::start();
    let station = Workstation::with_cluster(&[(LONDON, agent.port)]);
    (agent, station)
}

fn ids(ran: &Ran) -> Vec<Value> {
    ran.json().as_array().unwrap().iter().map(|o| o["id"].clone()).collect()
}

// accepts: 000-22
#[test]
fn peers_are_listed_by_name_and_remote_leaves_out_the_local_one() {
    let (_agent, station) = lab();
    let table = station.run("peers list").ok();
    assert_eq!(
        table.out,
        format!(
            "ID                               NAME    ADDRESS        STATUS   RTT      VERSION  LAST-SEEN\n\
             {LONDON}  london  10.0.0.1:8080  healthy  local    v0.1.0   now\n\
             {TOKYO}  tokyo   10.0.0.2:8080  healthy  150.2ms  v0.1.0   2026-01-01T00:00:00Z\n"
        )
    );
    assert_eq!(ids(&station.run("peers list -j").ok()), [LONDON, TOKYO]);
    assert_eq!(ids(&station.run("peer ls --remote --json").ok()), [TOKYO]);
    assert_eq!(ids(&station.run("peers list --local -o json").ok()), [LONDON]);
    assert_eq!(ids(&station.run("peers list --status unreachable -j").ok()), Vec::<Value>::new());
}

#[test]
fn lists_have_every_key_of_the_api_and_keep_unknown_ones() {
    let (_agent, station) = lab();
    let peers = station.run("peers list -j").ok().json();
    assert_eq!(peers[0]["license_id"], Value::Null);
    assert_eq!(peers[1]["from_the_future"], 1);
    assert_eq!(station.run("peers list -o name").ok().out, "london\ntokyo\n");
    assert_eq!(station.run("peers list -o jsonl").ok().out.lines().count(), 2);
    assert_eq!(station.run("peers list -o csv --columns name,rtt_ms").ok().out, "name,rtt_ms\nlondon,\ntokyo,150.25\n");
    let yaml = station.run("peers list -o yaml").ok().out;
    assert!(yaml.contains("is_local: true"), "{yaml}");
    let sorted = station.run("peers list --columns name --sort-by rtt --no-headers --filter status=healthy").ok();
    assert_eq!(sorted.out.lines().count(), 2);
    assert_eq!(station.run("peers list --columns name --filter name=tokyo").ok().out, "NAME\ntokyo\n");
}

#[test]
fn an_empty_list_has_headings_and_a_hint_or_is_an_empty_array() {
    let (agent, station) = lab();
    agent.on("GET /v1/services", 200, json!({"services":[]}));
    let table = station.run("services list").ok();
    assert_eq!(table.out, "ID  NAME  SOURCE  TARGET  TRANSPORT  FLAGS  STATE\n");
    assert!(table.err.contains("arctic services create"), "{}", table.err);
    assert_eq!(station.run("services list -q").ok().err, "");
    assert_eq!(station.run("services list -j").ok().out, "[]\n");
    assert_eq!(station.run("routes list").ok().out.lines().count(), 1);
}

#[test]
fn a_peer_is_found_by_id_bare_ulid_prefix_and_name() {
    let (agent, station) = lab();
    let bare = &TOKYO["peer_".len()..];
    for argument in [TOKYO, bare, "TOKYO", "peer_01BB", "01bb"] {
        let peer = station.args(&["peers", "get", argument, "-j"]).ok().json();
        assert_eq!(peer["id"], TOKYO, "{argument}");
    }
    assert!(agent.seen().iter().all(|s| !s.headers.contains_key("x-arctic-target-peer")));
    let record = station.run("peers get tokyo").ok().out;
    assert!(record.lines().any(|l| l == "rtt_ms           150.25"), "{record}");
    station.run("peers get toyko").fails(1, "Error: peer not found").says("did you mean tokyo?");
    station.run("peers get 01").fails(2, "Error: peer `01` is ambiguous");
}

#[test]
fn peers_add_sends_ordered_endpoints_and_the_name() {
    let (agent, station) = lab();
    let peer = station.run("peers add 10.0.0.2 tokyo.example:81 --name tokyo -j").ok().json();
    assert_eq!(peer["id"], TOKYO);
    let sent = agent.one("POST /v1/peers");
    assert_eq!(sent.json(), json!({"endpoints":["10.0.0.2:8080","tokyo.example:81"],"name":"tokyo"}));
    assert_eq!(sent.headers["content-type"], "application/json");
    assert!(station.run("peers add 10.0.0.2").ok().out.contains(TOKYO));
}

#[test]
fn deletions_need_yes_where_nobody_can_be_asked() {
    let (agent, station) = lab();
    let lines = [
        ("peers delete tokyo".to_owned(), format!("DELETE /v1/peers/{TOKYO}")),
        ("services delete l2t".to_owned(), format!("DELETE /v1/services/{SVC}")),
        ("routes delete --service l2t --route 2".to_owned(), format!("DELETE /v1/services/{SVC}/routes/2")),
    ];
    for (line, request) in lines {
        let refused = station.run(&line).fails(2, "Error: confirmation needed: pass --yes");
        assert!(refused.err.contains("code: CONFIRMATION_REQUIRED"));
        assert_eq!(agent.count(&request), 0);
        assert!(station.run(&format!("{line} --yes")).ok().out.contains("deleted"));
        agent.one(&request);
    }
    assert_eq!(station.run("peers delete tokyo -y -j").ok().json(), json!({"id":TOKYO,"deleted":true}));
}

// accepts: 000-50, 002-64, 002-39
#[test]
fn deletions_ask_at_a_terminal_and_name_what_goes_and_yes_does_not_ask() {
    let (agent, station) = lab();
    let cases = [
        ("peers delete tokyo", format!("DELETE /v1/peers/{TOKYO}"), "service l2t"),
        ("services delete l2t", format!("DELETE /v1/services/{SVC}"), "service l2t"),
        ("routes delete --service l2t --route 2", format!("DELETE /v1/services/{SVC}/routes/2"), "any to 10.0.0.0/8"),
    ];
    for (line, request, goes) in cases {
        let refused = station.at_terminal(line, "n\n");
        assert!(refused.out.contains("[y/N]") && refused.out.contains(goes), "{}", refused.out);
        assert!(refused.out.contains("Error: aborted, nothing was changed"), "{}", refused.out);
        assert_eq!((refused.code, agent.count(&request)), (1, 0));
        let agreed = station.at_terminal(line, "y\n");
        assert_eq!((agreed.code, agent.count(&request)), (0, 1), "{}", agreed.out);
        let unasked = station.at_terminal(&format!("{line} --yes"), "");
        assert!(!unasked.out.contains("[y/N]"), "{}", unasked.out);
        assert_eq!((unasked.code, agent.count(&request)), (0, 2));
    }
}

// accepts: 000-56, 000-57
#[test]
fn leaving_asks_names_what_goes_and_has_two_spellings() {
    let (agent, station) = lab();
    let announcement = json!({"action":"deactivated","peer_id":LONDON,"version":7,"signature":"x"});
    agent.on("DELETE /v1/peers/self", 200, announcement.clone());
    let request = "DELETE /v1/peers/self";
    for (done, line) in ["peers remove-self", "remove-self"].into_iter().enumerate() {
        let sent = done * 2;
        station.run(line).fails(2, "Error: confirmation needed: pass --yes");
        let refused = station.at_terminal(line, "n\n");
        for part in [LONDON, "peer.key stays", "traffic of service l2t", "[y/N]"] {
            assert!(refused.out.contains(part), "{part}: {}", refused.out);
        }
        assert_eq!((refused.code, agent.count(request)), (1, sent));
        assert_eq!((station.at_terminal(line, "y\n").code, agent.count(request)), (0, sent + 1));
        let unasked = station.run(&format!("{line} --yes -j")).ok();
        assert_eq!((unasked.json(), agent.count(request)), (announcement.clone(), sent + 2));
    }
}

#[test]
fn warnings_of_an_added_peer_are_on_stderr() {
    let (agent, station) = lab();
    agent.on(
        "POST /v1/peers",
        201,
        json!({"id":TOKYO,"name":"tokyo","warnings":["the licenses differ: a here, b there"]}),
    );
    let ran = station.run("peers add 10.0.0.2 -j").ok();
    assert!(ran.err.contains("the licenses differ: a here, b there"), "{}", ran.err);
    assert_eq!(ran.json()["id"], TOKYO);
}

#[test]
fn deleting_several_services_reports_what_failed() {
    let (_agent, station) = lab();
    let ran = station.args(&["services", "delete", SVC, SVC2, "--yes", "-j"]);
    assert_eq!((ran.code, ran.json()), (6, json!([{"id":SVC,"deleted":true}])));
    assert!(ran.err.contains(SVC2), "{}", ran.err);
    station.args(&["services", "delete", SVC2, "--yes"]).fails(1, "Error: not found");
    assert_eq!(
        station.run("services delete --all --target-peer tokyo --yes").ok().out,
        format!("Service {SVC} deleted\n")
    );
}

#[test]
fn services_are_listed_and_filtered_by_peer() {
    let (_agent, station) = lab();
    let table = station.run("services list").ok();
    assert!(table.out.starts_with("ID                              NAME  SOURCE  TARGET  TRANSPORT  FLAGS  STATE\n"));
    assert!(table.out.contains(&format!("{SVC}  l2t   london  tokyo   tcp        Q      active\n")), "{}", table.out);
    assert!(table.err.contains("Flags: I own interface"));
    assert_eq!(ids(&station.run("services list --target-peer tokyo -j").ok()), [SVC]);
    assert_eq!(ids(&station.args(&["services", "list", "--source-peer", TOKYO, "-j"]).ok()), [SVC2]);
    assert_eq!(ids(&station.run("svc ls --requires-interface -j").ok()), Vec::<Value>::new());
    assert_eq!(ids(&station.run("svc ls --requires-interface=false -j").ok()), [SVC, SVC2]);
    assert_eq!(station.run("services get l2t -j").ok().json()["bandwidth_limit_mbps"], 1000);
    assert!(station.run("services get l2t").ok().out.lines().any(|l| l == "bandwidth_limit_mbps  1000"));
}

// accepts: 002-02
#[test]
fn services_create_needs_only_a_target_and_prints_the_id() {
    let (agent, station) = lab();
    let ran = station.run("services create --target-peer tokyo").ok();
    assert_eq!(ran.out, format!("{SVC}\n"));
    assert!(ran.err.contains(&format!("arctic routes add --service {SVC}")));
    assert_eq!(agent.one("POST /v1/services").json(), json!({"target_peer_id":TOKYO}));
}

// accepts: 002-16
#[test]
fn services_create_sends_every_flag_that_is_given() {
    let (agent, station) = lab();
    station
        .run("services create --target-peer tokyo --source-peer london --transport tcp --requires-interface --name x \
             --desired-ipv4 192.168.100.10/24 --desired-ipv6 fd00::1/64 --bandwidth-limit 1.5G --no-fully-transparent -j")
        .ok();
    assert_eq!(
        agent.one("POST /v1/services").json(),
        json!({"target_peer_id":TOKYO,"source_peer_id":LONDON,"transport_type":"tcp","requires_interface":true,"name":"x",
            "desired_ipv4_cidr":"192.168.100.10/24","desired_ipv6_cidr":"fd00::1/64","bandwidth_limit_mbps":1500,
            "fully_transparent":false})
    );
}

#[test]
fn routes_add_sends_the_route_and_prints_its_id() {
    let (agent, station) = lab();
    let text =
        station.run("routes add --service l2t --source-cidr 10.0.0.0/8 --dest-cidr 0.0.0.0/0 --priority 7").ok().out;
    assert_eq!(text, "Route added successfully: ID=6, Priority=7\n");
    let line = format!("POST /v1/services/{SVC}/routes");
    let route = json!({"source_cidr":"10.0.0.0/8","dest_cidr":"0.0.0.0/0","priority":7});
    assert_eq!(agent.one(&line).json(), json!({ "routes": [route] }));
    let object = station.run("routes add --service l2t --dest-cidr fd00::/8 -j").ok().json();
    assert_eq!(object, json!({"route_ids":[6],"count":1}));
    let destination_only = agent.seen().last().unwrap().json();
    assert_eq!(destination_only, json!({"routes":[{"dest_cidr":"fd00::/8","priority":100}]}));
    station.run("routes add --service l2t --source-cidr 10.0.0.0/8").ok();
    assert_eq!(agent.seen().last().unwrap().json()["routes"][0].get("dest_cidr"), None);
}

#[test]
fn routes_are_listed_in_evaluation_order() {
    let (_agent, station) = lab();
    let table = station.run("routes list --service l2t").ok().out;
    assert_eq!(
        table,
        "ID  PRIORITY  SOURCE-CIDR  DEST-CIDR\n2   200       any          10.0.0.0/8\n1   100       any          10.0.0.0/8\n"
    );
    assert_eq!(ids(&station.args(&["routes", "list", "--service", SVC, "--json"]).ok()), [2, 1]);
    let all = station.run("routes list -j").ok();
    assert_eq!(ids(&all), [2, 7, 1]);
    assert_eq!(all.json()[1]["service_id"], SVC2);
}

#[test]
fn cluster_commands_show_identity_and_trigger_a_sync() {
    let (agent, station) = lab();
    let identity = station.run("cluster identity -j").ok().json();
    assert_eq!(identity["cluster_id"], CLUSTER);
    assert_eq!(agent.count("POST /v1/oauth/token"), 0, "identity needs no credential");
    assert!(station.run("cluster identity").ok().out.contains("version     v9.9.9"));
    let sync = station.run("cluster sync").ok();
    assert_eq!(sync.out, "Cluster sync triggered\n");
    assert!(sync.err.contains("1 of 2 peers reached"));
    assert_eq!(station.run("cluster sync -j").ok().json(), json!({"triggered":true,"peers":2,"reached":1}));
    agent.on(
        "GET /v1/cluster/status",
        200,
        json!({"cluster_id":CLUSTER,"converged":false,"warnings":["half is away"],
        "registries":{"peers":{"count":1,"digest":"aa"}},"peers":[{"id":TOKYO,"name":"tokyo","status":"unhealthy"}]}),
    );
    let status = station.run("cluster status").ok();
    assert!(
        status.out.contains("converged      no") && status.out.contains("tokyo         unhealthy  unknown"),
        "{}",
        status.out
    );
    assert_eq!(status.err, "Warning: half is away\n");
    assert_eq!(station.run("cluster status -j").ok().json()["converged"], false);
}

#[test]
fn license_status_shows_state_expiry_and_use() {
    let (agent, station) = lab();
    agent.on(
        "GET /v1/license",
        200,
        json!({"license":{"license_id":"lic_1","customer_id":"cust_1","max_nodes":3,"signature":"s"},
        "state":"warning","expires_at":"2027-01-01T00:00:00Z","days_left":12,"nodes":{"used":2,"max":3},
        "services":{"used":1,"max":9},"features":["kcp","qos"],"warnings":["expires in 12 days"]}),
    );
    let status = station.run("license status").ok();
    for line in
        ["State        warning", "Expires      2027-01-01T00:00:00Z", "Nodes        2 of 3", "Features     kcp qos"]
    {
        assert!(status.out.lines().any(|l| l == line), "{line}: {}", status.out);
    }
    assert_eq!(station.run("license status -j").ok().json()["days_left"], 12);
    assert_eq!(station.run("license show -j").ok().json()["max_nodes"], 3);
    assert!(station.run("license show").ok().out.contains("max_nodes      3"));
}

#[test]
fn license_status_of_a_foreign_agent_falls_back_to_its_public_identity() {
    let (_agent, station) = lab();
    let foreign = FakeAgent::start();
    foreign.on("POST /v1/oauth/token", 401, json!({"error":"unknown client","code":"UNAUTHORIZED"}));
    let ran = station.args(&["license", "status", "--url", &foreign.url()]).ok();
    assert_eq!(ran.out, format!("License ID  lic_1\nCluster ID  {CLUSTER}\nState       unknown\n"));
    assert!(ran.err.contains("no credential for this agent"));
    let object = station.args(&["license", "status", "--url", &foreign.url(), "-j"]).ok().json();
    assert_eq!(object, json!({"license_id":"lic_1","cluster_id":CLUSTER,"state":"unknown"}));
}

fn licensed(state: &str, warnings: &[&str]) -> Value {
    json!({"license":{"license_id":"lic_2"},"state":state,"expires_at":"2028-01-01T00:00:00Z","warnings":warnings})
}

// accepts: 003-22
#[test]
fn license_update_sends_the_file_as_it_is_and_tells_what_counts_now() {
    let (agent, station) = lab();
    agent.on("PUT /v1/license", 200, licensed("grace_period", &["changes are blocked from tomorrow"]));
    let text = "{\"b\":1.0,\n \"signature\" : \"s\", \"a\":[1e2]}";
    let file = station.file("license.json", text);
    station.run("license update").fails(2, "Error: --license-file is required");
    station.args(&["license", "update", "--license-file", "/no/file"]).fails(1, "Error: failed to read license file");
    assert_eq!(agent.count("PUT /v1/license"), 0);
    let ran = station.args(&["license", "update", "--license-file", &file]).ok();
    assert_eq!(ran.out, "License lic_2 installed: grace_period, expires 2028-01-01T00:00:00Z\n");
    assert_eq!(ran.err, "Warning: changes are blocked from tomorrow\n");
    assert_eq!(agent.one("PUT /v1/license").body, text);
    let mismatch = json!({"error":"license mismatch: issued to another","code":"LICENSE_MISMATCH"});
    agent.on("PUT /v1/license", 422, mismatch);
    let refused = station.args(&["license", "update", "--license-file", &file, "--all"]);
    refused.fails(8, "Error: license mismatch: issued to another");
}

#[test]
fn license_update_all_goes_to_every_member_through_the_first() {
    let (agent, station) = lab();
    let stranger = json!({"id":SVC,"name":"stranger","self_name":null,"is_local":false,"status":"unreachable"});
    let member = |mut peer: Value| {
        peer["self_name"] = peer["name"].clone();
        peer
    };
    let oslo = json!({"id":"peer_01FFFFFFFFFFFFFFFFFFFFFFFF","name":"oslo","is_local":false,"status":"unreachable"});
    let peers = [stranger, member(oslo), member(crate::fake::tokyo()), member(crate::fake::london())];
    agent.on("GET /v1/peers", 200, json!({ "peers": peers }));
    agent.on("PUT /v1/license", 200, licensed("valid", &[]));
    let away = json!({"error":"peer oslo cannot be reached","code":"PEER_UNREACHABLE"});
    agent.on("PUT /v1/license @peer_01FFFFFFFFFFFFFFFFFFFFFFFF", 422, away);
    let file = station.file("license.json", "{\"signature\":\"s\"}");
    let ran = station.args(&["license", "update", "--license-file", &file, "--all", "-j"]);
    let rows = ran.json();
    let shown: Vec<_> = rows.as_array().unwrap().iter().map(|r| (&r["name"], &r["updated"])).collect();
    let [yes, no] = [Value::from(true), Value::from(false)];
    assert_eq!(shown, [(&"london".into(), &yes), (&"oslo".into(), &no), (&"tokyo".into(), &yes)]);
    assert_eq!(rows[1]["code"], "PEER_UNREACHABLE");
    assert_ne!(ran.code, 0);
    ran.says("the license was updated on 2 of 3 peers");
    ran.says("peer oslo cannot be reached");
    let puts: Vec<_> = agent.seen().into_iter().filter(|s| s.line == "PUT /v1/license").collect();
    let targets: Vec<_> = puts.iter().map(|s| s.headers.get("x-arctic-target-peer").map(String::as_str)).collect();
    assert_eq!(targets, [None, Some("peer_01FFFFFFFFFFFFFFFFFFFFFFFF"), Some(TOKYO)]);
    station
        .args(&["license", "update", "--license-file", &file, "--all", "--peer", TOKYO])
        .fails(2, "Error: --all is for every peer: it cannot be used with --peer");
}

#[test]
fn health_tells_live_ready_and_not_ready_apart() {
    let (agent, station) = lab();
    assert_eq!(station.run("health").ok().out, "ok\n");
    assert_eq!(station.run("health -j").ok().json()["status"], "ok");
    agent.on(
        "GET /readyz",
        503,
        json!({"status":"fail","checks":[{"name":"db","status":"ok","message":""},
        {"name":"tproxy","status":"fail","message":"port 61000 is taken"}]}),
    );
    let ran = station.run("health --readyz");
    assert_eq!((ran.code, ran.err.lines().next()), (6, Some("Error: agent is not ready")));
    assert!(ran.out.contains("tproxy  fail    port 61000 is taken"), "{}", ran.out);
    assert!(ran.err.contains("failing  tproxy"));
}

#[test]
fn version_lists_the_license_keys_that_the_build_embeds() {
    let keys = arctic::license::TrustRoots::embedded().key_ids();
    let listed = Workstation::new().run("version -v --url http://127.0.0.1:1").ok().out;
    assert!(keys.iter().all(|id| listed.contains(id)) && listed.contains("Keys "), "{listed}");
    let object = Workstation::new().run("version -v -j --url http://127.0.0.1:1").ok().json();
    assert_eq!(object["license_keys"], serde_json::json!(keys));
}

#[test]
fn version_is_known_with_and_without_an_agent() {
    let (_agent, station) = lab();
    let ran = station.run("version").ok();
    assert!(ran.out.starts_with(&format!("CLI    {}\nAgent  v9.9.9 (http://127.0.0.1:", arctic::model::VERSION)));
    assert!(ran.err.starts_with("Warning: the agent is v9.9.9"));
    assert_eq!(station.run("version -j").ok().json()["agent"], "v9.9.9");
    let alone = Workstation::new().run("version --url http://127.0.0.1:1").ok();
    assert!(alone.out.contains("Agent  not reachable (cannot connect to agent at 127.0.0.1:1: connection refused)"));
    let alone = Workstation::new().run("version --url http://127.0.0.1:1 -j").ok().json();
    assert_eq!((&alone["cli"], &alone["agent"]), (&json!(arctic::model::VERSION), &Value::Null));
}

#[test]
fn the_cluster_lock_is_shown_and_cleared() {
    let agent = FakeAgent::start();
    let station = Workstation::with_cluster(&[(LONDON, agent.port)]);
    agent.on("GET /v1/cluster/lock", 200, json!({"lock": null}));
    assert_eq!(station.run("cluster lock status").ok().out, "No lock is held\n");
    let lock = json!({"holder_peer":TOKYO,"holder_name":"tokyo","client_id":"cli_2","purpose":"compose apply",
        "acquired_at":"2026-01-01T00:00:00Z","ttl_s":60,"expires_at":"2026-01-01T00:01:00Z"});
    agent.on("GET /v1/cluster/lock", 200, json!({ "lock": lock }));
    let shown = station.run("cluster lock status").ok().out;
    assert!(shown.contains("tokyo") && shown.contains("compose apply") && shown.contains("2026-01-01T00:01:00Z"));
    assert_eq!(station.run("cluster lock status -j").ok().json()["lock"]["purpose"], "compose apply");
    let held = json!({"error":"the cluster lock is held by tokyo for `compose apply`","code":"CLUSTER_LOCKED",
        "hint":"only its holder releases it; to end it anyway: arctic cluster lock clear --force"});
    agent.on("DELETE /v1/cluster/lock", 409, held);
    station.run("cluster lock clear").fails(1, "Error: the cluster lock is held by tokyo for `compose apply`");
    agent.on("DELETE /v1/cluster/lock?force=true", 200, json!({ "cleared": lock }));
    station.run("cluster lock clear --force").fails(2, "Error: confirmation needed: pass --yes");
    let cleared = station.run("cluster lock clear --force --yes --recovery-token rescue").ok();
    assert!(cleared.out.starts_with("Cluster lock cleared: tokyo (compose apply)"), "{}", cleared.out);
    assert_eq!(agent.one("DELETE /v1/cluster/lock?force=true").headers["x-arctic-recovery"], "rescue");
}

#[test]
fn a_forced_init_lists_what_goes_and_asks() {
    let agent = FakeAgent::start();
    let station = Workstation::with_cluster(&[(LONDON, agent.port)]);
    let message = |text: &str| json!({"cluster_id":CLUSTER,"was_created":false,"message":text});
    agent.on("POST /v1/cluster/init", 200, message("Cluster clu_1 exists already"));
    agent.on("GET /v1/cluster/status", 200, json!({"cluster_id":CLUSTER}));
    assert_eq!(station.run("cluster init").ok().out, "Cluster clu_1 exists already\n");
    station.run("cluster init --force").fails(2, "Error: confirmation needed: pass --yes");
    let refused = station.at_terminal("cluster init --force", "n\n");
    for goes in [CLUSTER, "peer tokyo", "service l2t", "credentials that other peers issued"] {
        assert!(refused.out.contains(goes), "{goes}: {}", refused.out);
    }
    assert_eq!((refused.code, agent.count("POST /v1/cluster/init")), (1, 1));
    station.run("cluster init --force --yes").ok();
    assert_eq!(agent.seen().last().unwrap().json(), json!({"force": true}));
}
