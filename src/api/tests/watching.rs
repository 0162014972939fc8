//! What an operator watches: events, the audit, figures, and the document of the API.

use super::{
    agent::{Agent, Caller, LiveAgent, RECOVERY, client_of},
    objects::{know_peer, service},
    peers_only::until,
};
use hyper::Method;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

/// A stream of events, event by event.
struct Listener {
    lines: tokio::io::Lines<BufReader<TcpStream>>,
}

impl Listener {
    async fn open(caller: &Caller, query: &str, headers: &[(&str, &str)]) -> Self {
        let mut stream = TcpStream::connect(caller.addr).await.unwrap();
        let token = caller.token.as_deref().unwrap();
        let more: String = headers.iter().map(|(k, v)| format!("{k}: {v}\r\n")).collect();
        let head = format!("GET /v1/events{query} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n{more}\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut listener = Self { lines: BufReader::new(stream).lines() };
        let status = listener.line().await.unwrap();
        assert!(status.starts_with("HTTP/1.1 200"), "{status}");
        while listener.line().await.is_some_and(|line| !line.starts_with(':') && !line.starts_with("event:")) {}
        listener
    }

    async fn line(&mut self) -> Option<String> {
        let next = tokio::time::timeout(Duration::from_secs(20), self.lines.next_line());
        next.await.expect("nothing came").ok().flatten()
    }

    /// The next event; none at the end of the stream.
    async fn next(&mut self) -> Option<Value> {
        loop {
            let line = self.line().await?;
            if let Some(data) = line.strip_prefix("data: ") {
                return Some(serde_json::from_str(data).unwrap());
            }
        }
    }

    /// Reads until an event of this type.
    async fn until(&mut self, kind: &str) -> Value {
        loop {
            let event = self.next().await.unwrap_or_else(|| panic!("the stream ended before {kind}"));
            if event["type"] == kind {
                return event;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happens_is_told_at_every_agent_and_a_stream_resumes_without_a_gap() {
    let (a, b) = (LiveAgent::bootstrapped(1, 1).await, LiveAgent::bootstrapped(2, 1).await);
    let mut there = Listener::open(&b.caller, "", &[]).await;
    let mut here = Listener::open(&a.caller, "?since=0", &[]).await;
    assert!(here.until("agent.started").await["version"].is_string());
    a.caller.post("/v1/peers", json!({"endpoints": [b.caller.addr.to_string()], "name": "tokyo"})).await.expect(201);
    let added = here.until("peer.added").await;
    assert_eq!((&added["peer_id"], &added["name"]), (&json!(b.id()), &json!("tokyo")));
    assert_eq!(here.until("peer.healthy").await["peer_id"], json!(b.id()));
    assert_eq!(there.until("cluster.merged").await["alias"].as_str().unwrap().len(), 30);
    assert_eq!(there.until("peer.added").await["peer_id"], json!(a.id()));
    let client = client_of(a.caller.token.as_deref().unwrap());
    until(|| b.node.store().read(|v| v.credential(client)).unwrap().is_some()).await;

    let made = a.caller.post("/v1/services", json!({"target_peer_id": b.id(), "name": "one"})).await.expect(201);
    let path = format!("/v1/services/{}", made["id"].as_str().unwrap());
    for listener in [&mut here, &mut there] {
        let created = listener.until("service.created").await;
        assert_eq!((&created["service_id"], &created["name"]), (&made["id"], &json!("one")));
        assert_eq!(listener.until("service.applied").await["version"], made["version"]);
    }
    a.caller.put(&path, json!({"name": "uno"})).await.expect(200);
    let updated = here.until("service.updated").await;
    assert_eq!(updated["name"], "uno");
    a.caller.post(&format!("{path}/routes"), json!({"routes": [{"dest_cidr": "fd00::/8"}]})).await.expect(201);
    assert_eq!(here.until("route.changed").await["routes"], 1);
    assert_eq!(here.until("service.failed").await["reason"], "ENGINE_UNAVAILABLE", "no listener for IPv6");
    let made = a.caller.post("/v1/credentials", json!({})).await.expect(201);
    assert_eq!(here.until("credential.created").await["client_id"], made["client_id"]);
    a.caller.post("/v1/cluster/credentials/rotate", json!({})).await.expect(200);
    here.until("credential.rotated").await;
    a.caller.delete(&format!("/v1/credentials/{}", made["client_id"].as_str().unwrap())).await.expect(200);
    assert_eq!(here.until("credential.revoked").await["client_id"], made["client_id"]);
    let lock = a.caller.post("/v1/cluster/lock", json!({"purpose": "test"})).await.expect(201);
    let locked = there.until("cluster.locked").await;
    assert_eq!((&locked["lock"]["purpose"], &locked["lock"]["token"]), (&json!("test"), &Value::Null));
    let bearer = format!("Bearer {}", a.caller.token.as_deref().unwrap());
    let token = lock["lock"]["token"].as_str().unwrap();
    let headers = [("authorization", bearer.as_str()), ("x-arctic-lock", token)];
    a.caller.send(Method::DELETE, "/v1/cluster/lock", &headers, "").await.expect(200);
    there.until("cluster.unlocked").await;
    a.caller.delete(&path).await;
    assert_eq!(there.until("service.deleted").await["name"], "uno");

    // Resumed after an event, all that came after it comes, once and in order.
    let id = updated["id"].as_str().unwrap();
    let number = |event: &Value| event["id"].as_str().unwrap().split_once('-').unwrap().1.parse::<u64>().unwrap();
    let mut resumed = Listener::open(&a.caller, "", &[("Last-Event-ID", id)]).await;
    for expected in number(&updated) + 1..number(&updated) + 5 {
        assert_eq!(number(&resumed.next().await.unwrap()), expected);
    }
    let mut lost = Listener::open(&a.caller, "?type=agent.*", &[("Last-Event-ID", "00000000-7")]).await;
    assert_eq!(lost.next().await.unwrap()["type"], "events.lost", "of another start");
    assert_eq!(lost.next().await.unwrap()["type"], "agent.started");
    let mut peers = Listener::open(&a.caller, "?type=peer.*&since=0", &[]).await;
    assert_eq!(peers.next().await.unwrap()["type"], "peer.added");

    // Through another agent, and to the end.
    let target = b.id().to_string();
    let mut proxied = Listener::open(&a.caller, "?since=0", &[("X-Arctic-Target-Peer", &target)]).await;
    assert_eq!(proxied.until("peer.added").await["peer_id"], json!(a.id()));
    a.caller.delete(&format!("/v1/peers/{target}")).await;
    assert_eq!(peers.until("peer.removed").await["name"], "tokyo");
    drop(a);
    here.until("agent.stopping").await;
    assert_eq!(here.next().await, None, "the stream ends with the agent");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_ends_with_its_credential_and_takes_no_wrong_question() {
    let agent = LiveAgent::bootstrapped(1, 1).await;
    let made = agent.caller.post("/v1/credentials", json!({"scopes": ["peers.read"]})).await.expect(201);
    let form = super::agent::token_form(made["client_id"].as_str().unwrap(), made["client_secret"].as_str().unwrap());
    let reader = Caller { token: Some(agent.caller.token_for(&form).await), ..agent.caller.clone() };
    let mut stream = Listener::open(&reader, "", &[]).await;
    agent.caller.delete(&format!("/v1/credentials/{}", made["client_id"].as_str().unwrap())).await.expect(200);
    while stream.next().await.is_some_and(|event| event["type"] != "agent.stopping") {}
    for bad in ["?type=peers.*", "?type=", "?since=x", "?since=1", "?tpye=peer.*"] {
        assert_eq!(agent.caller.get(&format!("/v1/events{bad}")).await.refusal(), (400, "INVALID_REQUEST"), "{bad}");
    }
}

#[tokio::test]
async fn every_write_leaves_one_entry_in_the_audit() {
    let agent = Agent::bootstrapped().await;
    let target = know_peer(&agent, 9, true).await;
    let me = client_of(agent.caller.token.as_deref().unwrap()).to_string();
    let made = service(&agent, json!({ "target_peer_id": target })).await;
    let id = made.body["id"].as_str().unwrap().to_owned();
    service(&agent, json!({})).await.expect(400);
    agent.caller.post("/v1/services?dry_run=true", json!({ "target_peer_id": target })).await.expect(201);
    agent.caller.get("/v1/services").await.expect(200);
    let anonymous = Caller { token: None, ..agent.caller.clone() };
    assert_eq!(anonymous.delete(&format!("/v1/services/{id}")).await.status, 401);
    let rescue = [("x-arctic-recovery", RECOVERY)];
    let deleted = agent.caller.send(Method::DELETE, &format!("/v1/services/{id}"), &rescue, "").await;
    assert_eq!(deleted.status, 204);
    let audit = agent.caller.get("/v1/audit").await.expect(200);
    let entries = audit["entries"].as_array().unwrap();
    let told: Vec<[&str; 4]> =
        entries.iter().map(|e| ["actor", "verb", "object", "result"].map(|field| e[field].as_str().unwrap())).collect();
    let object = format!("/v1/services/{id}");
    assert_eq!(
        told,
        [
            ["recovery", "deleteService", &object, "ok"],
            [&me, "createService", "/v1/services", "MISSING_FIELD"],
            [&me, "createService", &object, "ok"],
            ["anonymous", "bootstrap", "/v1/bootstrap", "ok"],
        ]
    );
    assert_eq!(entries[2]["request_id"], made.headers["x-request-id"].to_str().unwrap());
    assert_eq!((&entries[0]["source"], &entries[0]["time"]), (&json!("127.0.0.1"), &json!("2027-01-15T08:00:00Z")));
    assert_eq!(agent.caller.get("/v1/audit?limit=1").await.expect(200)["entries"].as_array().unwrap().len(), 1);
    for bad in ["0", "10001", "x", "-1"] {
        assert_eq!(agent.caller.get(&format!("/v1/audit?limit={bad}")).await.refusal(), (400, "INVALID_REQUEST"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn figures_have_the_names_of_the_specification() {
    let (a, b) = (LiveAgent::bootstrapped(1, 1).await, LiveAgent::bootstrapped(2, 1).await);
    a.caller.post("/v1/peers", json!({"endpoints": [b.caller.addr.to_string()], "name": "to\"kyo"})).await.expect(201);
    let made = a.caller.post("/v1/services?wait=applied", json!({ "target_peer_id": b.id() })).await.expect(201);
    let anonymous = Caller { token: None, ..a.caller.clone() };
    assert_eq!(anonymous.get("/v1/services").await.status, 401);
    let page = anonymous.get("/metrics").await;
    assert_eq!(page.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let value = |name: &str| {
        let line = page.text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name}"));
        line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()
    };
    let id = made["id"].as_str().unwrap();
    assert_eq!(value("arctic_build_info{version="), 1.0);
    assert_eq!(value(&format!("arctic_peer_up{{peer=\"{}\",name=\"to\\\"kyo\"}}", b.id())), 1.0);
    assert!(value("arctic_up_seconds") >= 0.0 && value("arctic_license_expires_seconds") > 0.0);
    assert_eq!(value("arctic_license_state{state=\"valid\"}"), 1.0);
    assert_eq!(value("arctic_license_state{state=\"suspended\"}"), 0.0);
    assert_eq!(value(&format!("arctic_service_connections{{service=\"{id}\"")), 0.0);
    assert!(value("arctic_reconcile_total{reconciler=\"firewall\",result=\"success\"}") >= 1.0);
    assert!(value("arctic_auth_failures_total") >= 1.0);
    assert_eq!(value("arctic_api_requests_total{code=\"201\"}"), 3.0);
    for name in [
        "arctic_peer_last_seen_timestamp_seconds",
        "arctic_peer_rtt_seconds",
        "arctic_gossip_converged",
        "arctic_service_bytes_total",
        "arctic_service_connections_total",
        "arctic_service_limit_bps",
        "arctic_service_effective_transport",
        "arctic_reconcile_seconds",
        "arctic_reconcile_last_success_timestamp_seconds",
        "arctic_drift_repairs_total",
        "arctic_events_dropped_total",
    ] {
        assert!(
            page.text.contains(&format!("# TYPE {name} ")) && page.text.contains(&format!("# HELP {name} ")),
            "{name}"
        );
    }
}

#[tokio::test]
async fn metrics_and_document_are_there_before_bootstrap_and_an_internal_agent_wants_a_token() {
    let agent = Agent::new().await;
    assert!(agent.caller.get("/metrics").await.text.contains("arctic_build_info"));
    let document = agent.caller.get("/v1/openapi.json").await.expect(200);
    assert_eq!(document["openapi"], "3.1.0");
    let mut agent = agent;
    agent.caller.bootstrap(super::agent::license(super::agent::terms(1))).await;
    let token = agent.caller.token.clone();
    let agent = agent.restarted(|c| c.api_access = crate::model::ApiAccess::Internal).await;
    assert_eq!(agent.caller.get("/metrics").await.refusal(), (401, "UNAUTHORIZED"));
    let with_token = Caller { token, ..agent.caller.clone() };
    assert_eq!(with_token.get("/metrics").await.status, 200);
    assert_eq!(with_token.get("/v1/services").await.refusal(), (403, "API_ACCESS_INTERNAL"));
    agent.caller.get("/v1/openapi.json").await.expect(200);
}
