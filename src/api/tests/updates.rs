//! Updates: what is left out stays; conditions, dry runs, and waiting until both ends have applied a change.

use super::{
    agent::{Agent, LiveAgent, Reply, client_of, license, terms},
    objects::{know_peer, service},
    peers_only::until,
};
use crate::license::{Features, Terms};
use hyper::Method;
use serde_json::{Value, json};

async fn conditional(agent: &Agent, method: Method, path: &str, version: &str, body: Value) -> Reply {
    let bearer = format!("Bearer {}", agent.caller.token.as_deref().unwrap());
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json"), ("if-match", version)];
    agent.caller.send(method, path, &headers, body.to_string()).await
}

async fn licensed(features: Features) -> Agent {
    let mut agent = Agent::new().await;
    agent.caller.bootstrap(license(Terms { features, ..terms(1) })).await;
    agent
}

// accepts: 002-51
#[tokio::test]
async fn an_update_of_a_service_changes_what_it_names() {
    let agent = licensed(Features::every()).await;
    let target = know_peer(&agent, 9, true).await;
    let made = service(&agent, json!({ "target_peer_id": target })).await.expect(201);
    let path = format!("/v1/services/{}", made["id"].as_str().unwrap());
    for limit in [100, 1000, 10_000, 500, 0] {
        let updated = agent.caller.put(&path, json!({ "bandwidth_limit_mbps": limit })).await.expect(200);
        assert_eq!(updated["bandwidth_limit_mbps"], limit);
        assert_eq!(agent.caller.get(&path).await.expect(200)["bandwidth_limit_mbps"], limit);
        for (field, value) in made.as_object().unwrap() {
            if !["bandwidth_limit_mbps", "version", "updated_at"].contains(&field.as_str()) {
                assert_eq!(&updated[field], value, "{field}");
            }
        }
        assert!(updated["version"].as_u64() > made["version"].as_u64());
    }
    let before = agent.caller.get(&path).await.expect(200);
    assert_eq!(agent.caller.put(&path, json!({})).await.expect(200), before, "nothing is written for nothing");
    let same = json!({"name": before["name"], "bandwidth_limit_mbps": 0});
    assert_eq!(agent.caller.put(&path, same).await.expect(200), before);

    let other = service(&agent, json!({"target_peer_id": target, "name": "other"})).await.expect(201);
    assert_eq!(agent.caller.put(&path, json!({"name": "Other"})).await.refusal(), (409, "ALREADY_EXISTS"));
    let itself = format!("/v1/services/{}", other["id"].as_str().unwrap());
    assert_eq!(agent.caller.put(&itself, json!({"name": "OTHER"})).await.expect(200)["name"], "OTHER");
    for (bad, code) in [
        (json!({"target_peer_id": target}), "INVALID_REQUEST"),
        (json!({"transport_type": "udp"}), "INVALID_TRANSPORT"),
        (json!({"desired_ipv4_cidr": "10.0.0.0/8", "requires_interface": true}), "INVALID_CIDR"),
        (json!({"nmae": "x"}), "INVALID_REQUEST"),
        (json!({"fwmark": 1}), "INVALID_REQUEST"),
    ] {
        assert_eq!(agent.caller.put(&path, bad.clone()).await.refusal(), (400, code), "{bad}");
    }
    assert_eq!(agent.caller.get(&path).await.expect(200), before);
    assert_eq!(agent.caller.put("/v1/services/svc_x", json!({})).await.refusal(), (404, "NOT_FOUND"));
}

#[tokio::test]
async fn a_stale_version_changes_nothing_and_neither_does_a_dry_run() {
    let agent = licensed(Features::every()).await;
    let target = know_peer(&agent, 9, true).await;
    let made = service(&agent, json!({ "target_peer_id": target })).await.expect(201);
    let path = format!("/v1/services/{}", made["id"].as_str().unwrap());
    let version = made["version"].to_string();
    let limit = json!({"bandwidth_limit_mbps": 5});
    let stale = conditional(&agent, Method::PUT, &path, "99999", limit.clone()).await;
    assert_eq!(stale.refusal(), (409, "CONFLICT"));
    assert!(stale.error().contains(&version), "{}", stale.text);
    assert_eq!(conditional(&agent, Method::PUT, &path, "x", limit.clone()).await.refusal(), (400, "INVALID_REQUEST"));
    let dry = agent.caller.put(&format!("{path}?dry_run=true"), limit.clone()).await.expect(200);
    assert_eq!(dry["bandwidth_limit_mbps"], 5);
    assert_eq!(agent.caller.get(&path).await.expect(200), made);
    conditional(&agent, Method::PUT, &path, &format!("\"{version}\""), limit.clone()).await.expect(200);
    assert_eq!(conditional(&agent, Method::PUT, &path, &version, limit).await.refusal(), (409, "CONFLICT"));

    let routes = format!("{path}/routes");
    agent.caller.post(&routes, json!({"routes": [{"dest_cidr": "10.0.0.0/8"}]})).await.expect(201);
    let listed = agent.caller.get(&routes).await.expect(200);
    let (route, version) = (format!("{routes}/1"), listed["routes"][0]["version"].to_string());
    let patch = json!({"priority": 200});
    assert_eq!(conditional(&agent, Method::PUT, &route, "1", patch.clone()).await.refusal(), (409, "CONFLICT"));
    agent.caller.put(&format!("{route}?dry_run=true"), patch.clone()).await.expect(200);
    for path in [format!("{routes}?dry_run=true"), format!("{route}?dry_run=true")] {
        let method = if path.starts_with(&route) { Method::DELETE } else { Method::POST };
        let body = json!({"routes": [{"dest_cidr": "10.1.0.0/16"}]});
        let bearer = format!("Bearer {}", agent.caller.token.as_deref().unwrap());
        let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
        let dry = agent.caller.send(method, &path, &headers, body.to_string()).await;
        assert!([201, 204].contains(&dry.status), "{path}: {}", dry.text);
    }
    assert_eq!(agent.caller.get(&routes).await.expect(200), listed);
    conditional(&agent, Method::PUT, &route, &version, patch).await.expect(200);

    // What has no version takes no condition.
    let peer = format!("/v1/peers/{target}");
    assert_eq!(conditional(&agent, Method::PUT, &peer, "1", json!({})).await.refusal(), (400, "INVALID_REQUEST"));
    assert_eq!(conditional(&agent, Method::DELETE, &peer, "1", json!({})).await.refusal(), (400, "INVALID_REQUEST"));
}

// accepts: 002-37
#[tokio::test]
async fn an_update_of_a_route_changes_what_it_names() {
    let agent = Agent::bootstrapped().await;
    let target = know_peer(&agent, 9, true).await;
    let made = service(&agent, json!({ "target_peer_id": target })).await.expect(201);
    let routes = format!("/v1/services/{}/routes", made["id"].as_str().unwrap());
    let two = json!([{"source_cidr": "10.0.0.0/8", "dest_cidr": "192.168.100.0/24"}, {"dest_cidr": "10.9.0.0/16"}]);
    agent.caller.post(&routes, json!({ "routes": two })).await.expect(201);
    let path = format!("{routes}/1");
    let updated = agent.caller.put(&path, json!({"priority": 200})).await.expect(200);
    for (field, value) in [
        ("id", json!(1)),
        ("priority", json!(200)),
        ("source_cidr", json!("10.0.0.0/8")),
        ("dest_cidr", json!("192.168.100.0/24")),
    ] {
        assert_eq!(updated[field], value, "{field}");
    }
    let moved = json!({"source_cidr": "10.1.0.0/16", "dest_cidr": "192.168.200.0/24"});
    let moved = agent.caller.put(&path, moved).await.expect(200);
    assert_eq!((&moved["source_cidr"], &moved["priority"]), (&json!("10.1.0.0/16"), &json!(200)));
    assert!(moved["version"].as_u64() > updated["version"].as_u64());
    let open = agent.caller.put(&path, json!({"source_cidr": null})).await.expect(200);
    assert_eq!((&open["source_cidr"], &open["dest_cidr"]), (&Value::Null, &json!("192.168.200.0/24")));
    assert_eq!(agent.caller.get(&routes).await.expect(200)["routes"][0], open);
    assert_eq!(agent.caller.put(&path, json!({"dest_cidr": null})).await.refusal(), (400, "MISSING_FIELD"));
    assert_eq!(agent.caller.put(&path, json!({"dest_cidr": "10.9.0.0/16"})).await.refusal(), (409, "ALREADY_EXISTS"));
    assert_eq!(agent.caller.put(&path, json!({"dest_cidr": "10.9.0.1/16"})).await.refusal(), (400, "INVALID_CIDR"));
    for unknown in ["9", "x", "-1"] {
        let refused = agent.caller.put(&format!("{routes}/{unknown}"), json!({"priority": 1})).await;
        assert_eq!(refused.refusal(), (404, "NOT_FOUND"), "{unknown}");
    }
}

// accepts: 000-41, 000-42, 000-45
#[tokio::test]
async fn an_update_of_a_peer_is_of_name_and_qos_only() {
    let agent = Agent::bootstrapped().await;
    let peer = know_peer(&agent, 9, true).await;
    let path = format!("/v1/peers/{peer}");
    let before = agent.caller.get(&path).await.expect(200);
    let both = json!({"name": "prod-svr-1", "qos_enabled": false});
    let dry = agent.caller.put(&format!("{path}?dry_run=true"), both.clone()).await.expect(200);
    assert_eq!((&dry["name"], &dry["qos_enabled"]), (&json!("prod-svr-1"), &json!(false)));
    assert_eq!(agent.caller.get(&path).await.expect(200), before);
    assert_eq!(agent.caller.put(&path, both).await.expect(200), dry);
    assert_eq!(agent.caller.get(&path).await.expect(200), dry);
    let named = agent.caller.put(&path, json!({"name": "prod"})).await.expect(200);
    assert_eq!((&named["name"], &named["qos_enabled"]), (&json!("prod"), &json!(false)), "what is left out stays");
    let shaped = agent.caller.put(&path, json!({"qos_enabled": true})).await.expect(200);
    assert_eq!((&shaped["name"], &shaped["qos_enabled"]), (&json!("prod"), &json!(true)));
    for field in before.as_object().unwrap().keys().filter(|f| !["name", "qos_enabled"].contains(&f.as_str())) {
        let refused = agent.caller.put(&path, json!({"name": "x", field: before[field]})).await;
        assert_eq!(refused.refusal(), (400, "INVALID_REQUEST"), "{field}");
        assert!(refused.error().contains(field.as_str()), "{}", refused.text);
    }
    for bad in [json!({"name": null}), json!({"name": ""}), json!({"qos_enabled": "no"}), json!({"qos": false})] {
        assert_eq!(agent.caller.put(&path, bad.clone()).await.refusal(), (400, "INVALID_REQUEST"), "{bad}");
    }
    assert_eq!(agent.caller.get(&path).await.expect(200), shaped);
    assert_eq!(agent.caller.put("/v1/peers/peer_x", json!({})).await.refusal(), (404, "NOT_FOUND"));
    let own = format!("/v1/peers/{}", agent.node.identity().unwrap().peer_id);
    assert_eq!(agent.caller.put(&own, json!({"name": "here"})).await.expect(200)["name"], "here");
}

#[tokio::test]
async fn dry_runs_of_every_other_write_change_nothing() {
    let agent = Agent::new().await;
    let bootstrap = json!({ "license": license(terms(1)) });
    let checked = agent.caller.post("/v1/bootstrap?dry_run=true", bootstrap).await.expect(200);
    assert_eq!((&checked["client_secret"], &checked["max_nodes"]), (&Value::Null, &json!(3)));
    assert!(agent.node.identity().is_none());
    let mut agent = agent;
    agent.caller.bootstrap(license(terms(1))).await;
    let peer = know_peer(&agent, 9, true).await;
    let state =
        || agent.node.store().read(|v| Ok::<_, crate::store::StoreError>((v.all_records()?, v.peers()?))).unwrap();
    let before = state();
    assert_eq!(agent.caller.delete(&format!("/v1/peers/{peer}?dry_run=true")).await.status, 204);
    let left = agent.caller.delete("/v1/peers/self?dry_run=true").await.expect(200);
    assert_eq!((&left["action"], &left["signature"]), (&json!("deactivated"), &Value::Null));
    let init = agent.caller.post("/v1/cluster/init?dry_run=true", json!({"force": true})).await.expect(200);
    assert_eq!(init["was_created"], true);
    let lock = agent.caller.post("/v1/cluster/lock?dry_run=true", json!({"purpose": "test"})).await.expect(201);
    assert_eq!((&lock["lock"]["purpose"], &lock["lock"]["token"]), (&json!("test"), &Value::Null));
    assert_eq!(agent.caller.get("/v1/cluster/lock").await.expect(200), json!({"lock": null}));
    let closed = agent.caller.post("/v1/peers?dry_run=true", json!({"endpoints": ["127.0.0.1:1"]})).await;
    assert_eq!((closed.refusal(), closed.error()), ((422, "HANDSHAKE_FAILED"), "handshake failed: connection refused"));
    assert_eq!(state(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_of_peers_add_asks_the_endpoint_who_it_is() {
    let (a, b) = (LiveAgent::bootstrapped(1, 1).await, LiveAgent::bootstrapped(2, 1).await);
    let wish = json!({"endpoints": [b.caller.addr.to_string()], "name": "b"});
    let would_be = a.caller.post("/v1/peers?dry_run=true", wish.clone()).await.expect(201);
    assert_eq!((&would_be["id"], &would_be["name"]), (&json!(b.id()), &json!("b")));
    assert_eq!(a.caller.get("/v1/peers").await.expect(200)["peers"].as_array().unwrap().len(), 1);
    a.caller.post("/v1/peers", wish.clone()).await.expect(201);
    assert_eq!(a.caller.post("/v1/peers?dry_run=true", wish).await.refusal(), (409, "ALREADY_EXISTS"));
}

// accepts: 000-47
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_is_waited_for_at_both_ends_also_when_another_peer_owns_it() {
    let (a, b) = (LiveAgent::bootstrapped(1, 1).await, LiveAgent::bootstrapped(2, 1).await);
    a.caller.post("/v1/peers", json!({"endpoints": [b.caller.addr.to_string()]})).await.expect(201);
    let client = client_of(a.caller.token.as_deref().unwrap());
    until(|| b.node.store().read(|v| v.credential(client)).unwrap().is_some()).await;
    let applied = |answer: &Value| {
        assert_eq!((&answer["applied"], &answer["waiting_for"]), (&json!(true), &json!([])), "{answer}")
    };
    let wait = "?wait=applied&timeout_s=20";

    // The owner is the other peer.
    let wish = json!({"target_peer_id": a.id(), "source_peer_id": b.id(), "name": "backwards"});
    let made = a.caller.post(&format!("/v1/services{wait}"), wish).await.expect(201);
    applied(&made);
    let id: crate::model::ServiceId = made["id"].as_str().unwrap().parse().unwrap();
    for node in [&a.node, &b.node] {
        let conditions = node.reconcile_status().conditions;
        assert!(conditions[&id].iter().all(|c| c.observed_version >= made["version"].as_u64().unwrap()));
    }
    let path = format!("/v1/services/{id}");
    let renamed = a.caller.put(&format!("{path}{wait}"), json!({"name": "renamed"})).await.expect(200);
    applied(&renamed);
    assert_eq!(renamed["name"], "renamed");
    let routes = json!({"routes": [{"dest_cidr": "10.0.0.0/8"}]});
    applied(&a.caller.post(&format!("{path}/routes{wait}"), routes).await.expect(201));
    applied(&a.caller.put(&format!("{path}/routes/1{wait}"), json!({"priority": 7})).await.expect(200));
    assert_eq!(a.caller.get(&path).await.expect(200)["routes"][0]["priority"], 7);
    assert_eq!(a.caller.delete(&format!("{path}/routes/1{wait}")).await.status, 204);
    assert_eq!(a.caller.delete(&format!("{path}{wait}")).await.status, 204);
    for node in [&a.node, &b.node] {
        assert!(node.reconcile_status().conditions.is_empty());
    }

    let peer = format!("/v1/peers/{}", b.id());
    applied(&a.caller.put(&format!("{peer}{wait}"), json!({"name": "mine", "qos_enabled": false})).await.expect(200));
    let other_view = b.caller.get(&peer).await.expect(200);
    assert_eq!((&other_view["name"], &other_view["qos_enabled"]), (&json!("host-2"), &json!(true)));

    // A target that is away is named.
    let made = a.caller.post("/v1/services", json!({ "target_peer_id": b.id() })).await.expect(201);
    let path = format!("/v1/services/{}", made["id"].as_str().unwrap());
    let (b_id, b_addr) = (b.id(), b.caller.addr);
    drop(b);
    until(|| std::net::TcpStream::connect(b_addr).is_err()).await;
    let late = a.caller.put(&format!("{path}?wait=applied&timeout_s=1"), json!({"name": "late"})).await.expect(200);
    assert_eq!((&late["applied"], &late["name"]), (&json!(false), &json!("late")));
    let silent = late["waiting_for"].as_array().unwrap().iter().find(|w| w["peer_id"] == json!(b_id)).unwrap();
    assert_eq!((&silent["reason"], &silent["reconciler"]), (&json!("PEER_UNREACHABLE"), &Value::Null));
    for bad in ["?wait=now", "?wait=applied&timeout_s=0", "?wait=applied&timeout_s=121", "?timeout_s=5"] {
        assert_eq!(a.caller.put(&format!("{path}{bad}"), json!({})).await.refusal(), (400, "INVALID_REQUEST"), "{bad}");
    }
}
