//! Commit-confirm: a change that nobody confirms is undone by its owner.

use super::{
    agent::{LiveAgent, client_of},
    peers_only::until,
};
use crate::model::ServiceId;
use hyper::Method;
use serde_json::{Value, json};

const PATH: &str = "/v1/cluster/pending-confirm";

async fn pair() -> (LiveAgent, LiveAgent) {
    let (a, b) = (LiveAgent::bootstrapped(1, 1).await, LiveAgent::bootstrapped(2, 1).await);
    a.caller.post("/v1/peers", json!({"endpoints": [b.caller.addr.to_string()]})).await.expect(201);
    let client = client_of(a.caller.token.as_deref().unwrap());
    until(|| b.node.store().read(|v| v.credential(client)).unwrap().is_some()).await;
    (a, b)
}

async fn at(a: &LiveAgent, target: &LiveAgent, body: Value) -> super::agent::Reply {
    let (bearer, target) = (format!("Bearer {}", a.caller.token.as_deref().unwrap()), target.id().to_string());
    let headers = [
        ("authorization", bearer.as_str()),
        ("content-type", "application/json"),
        ("x-arctic-target-peer", target.as_str()),
    ];
    a.caller.send(Method::POST, PATH, &headers, body.to_string()).await
}

fn services(agent: &LiveAgent) -> Vec<(ServiceId, crate::model::ServiceBody)> {
    agent.node.store().read(|v| v.services()).unwrap().into_iter().map(|s| (s.id, s.body)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_confirms_becomes_what_it_was() {
    let (a, b) = pair().await;
    let make = async |name: &str| a.caller.post("/v1/services", json!({"target_peer_id": b.id(), "name": name})).await;
    let changed = make("changed").await.expect(201);
    let path = format!("/v1/services/{}", changed["id"].as_str().unwrap());
    a.caller.post(&format!("{path}/routes"), json!({"routes": [{"dest_cidr": "10.0.0.0/8"}]})).await.expect(201);
    let before = services(&a);

    let begun = a.caller.post(PATH, json!({"within_s": 5, "services": ["changed", "fresh"]})).await.expect(201);
    let id = begun["pending"]["id"].as_str().unwrap().to_owned();
    assert_eq!(begun["pending"]["services"], json!(["changed", "fresh"]));
    let shown = b.caller.get(PATH).await.expect(200);
    assert_eq!(shown, json!({"pending": [begun["pending"]], "unreached": []}), "every agent shows it");
    let other = a.caller.post(PATH, json!({"within_s": 5, "services": ["x"]})).await;
    assert_eq!(other.refusal(), (409, "CONFLICT"));
    let elsewhere = at(&a, &b, json!({"within_s": 5, "services": ["x"]})).await;
    assert_eq!(elsewhere.refusal(), (409, "CONFLICT"), "one for the cluster: {}", elsewhere.text);
    at(&a, &b, json!({"within_s": 60, "services": ["x"], "id": id})).await.expect(201);

    a.caller.delete(&format!("{path}/routes/1")).await;
    a.caller.put(&path, json!({"name": "renamed", "requires_interface": true})).await.expect(200);
    make("fresh").await.expect(201);
    assert_ne!(services(&a), before);
    let same = || {
        let now = services(&a);
        now.len() == before.len()
            && now.iter().zip(&before).all(|(new, old)| {
                let same_time = crate::model::ServiceBody { updated_at: old.1.updated_at, ..new.1.clone() };
                (new.0, &same_time) == (old.0, &old.1)
            })
    };
    until(same).await;
    let left = a.caller.get(PATH).await.expect(200);
    assert_eq!(left["pending"].as_array().unwrap().len(), 1, "that of the other owner still runs: {left}");
    until(|| services(&b).iter().any(|(_, body)| body.name == "changed")).await;
    let added = json!({"routes": [{"dest_cidr": "10.1.0.0/16"}]});
    let ids = a.caller.post(&format!("{path}/routes"), added).await.expect(201);
    assert_eq!(ids["route_ids"], json!([2]), "ids are not used twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_that_passes_while_the_agent_is_stopped_is_kept_at_its_start() {
    let (a, b) = pair().await;
    let make = json!({"target_peer_id": b.id(), "name": "kept"});
    let made = a.caller.post("/v1/services", make).await.expect(201);
    a.caller.post(PATH, json!({"within_s": 5, "services": ["kept", "fresh"]})).await.expect(201);
    a.caller.post("/v1/services", json!({"target_peer_id": b.id(), "name": "fresh"})).await.expect(201);
    assert_eq!(a.caller.delete(&format!("/v1/services/{}", made["id"].as_str().unwrap())).await.status, 204);
    let a = a.restarted_after(std::time::Duration::from_secs(6)).await;
    let names = || services(&a).into_iter().map(|(id, body)| (id.to_string(), body.name)).collect::<Vec<_>>();
    let kept = (made["id"].as_str().unwrap().to_owned(), "kept".to_owned());
    until(|| names() == [kept.clone()]).await;
    assert_eq!(a.node.store().read(|v| v.pending_confirm()).unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_confirmed_stays_at_every_owner() {
    let (a, b) = pair().await;
    let begun = a.caller.post(PATH, json!({"within_s": 5, "services": ["fresh"]})).await.expect(201);
    let id = begun["pending"]["id"].clone();
    at(&a, &b, json!({"within_s": 5, "services": ["fresh2"], "id": id})).await.expect(201);
    a.caller.post("/v1/services", json!({"target_peer_id": b.id(), "name": "fresh"})).await.expect(201);
    let dry = b.caller.delete(&format!("{PATH}?dry_run=true")).await.expect(200);
    assert_eq!(dry["confirmed"].as_array().unwrap().len(), 2);
    let other = b.caller.delete(&format!("{PATH}?id=cfm_other")).await.expect(200);
    assert_eq!(other, json!({"confirmed": [], "unreached": []}));
    let confirmed = b.caller.delete(PATH).await.expect(200);
    assert_eq!(confirmed["confirmed"].as_array().unwrap().len(), 2);
    assert!(confirmed["confirmed"].as_array().unwrap().iter().all(|c| c["id"] == id));
    assert_eq!(a.caller.get(PATH).await.expect(200), json!({"pending": [], "unreached": []}));
    assert_eq!(b.caller.delete(PATH).await.expect(200), json!({"confirmed": [], "unreached": []}));
    for node in [&a.node, &b.node] {
        assert_eq!(node.store().read(|v| v.pending_confirm()).unwrap(), None);
    }
    assert_eq!(services(&a).len(), 1);

    // Not of another owner, not without a deadline, not by a stranger.
    let id = services(&a)[0].0;
    until(|| !services(&b).is_empty()).await;
    let foreign = at(&a, &b, json!({"within_s": 5, "services": [id]})).await;
    assert_eq!(foreign.refusal(), (409, "CONFLICT"), "{}", foreign.text);
    for (bad, code) in [
        (json!({"services": ["x"]}), (400, "MISSING_FIELD")),
        (json!({"within_s": 5}), (400, "MISSING_FIELD")),
        (json!({"within_s": 4, "services": ["x"]}), (400, "INVALID_REQUEST")),
        (json!({"within_s": 3601, "services": ["x"]}), (400, "INVALID_REQUEST")),
        (json!({"within_s": 5, "services": []}), (400, "INVALID_REQUEST")),
        (json!({"within_s": 5, "services": ["svc_01ARZ3NDEKTSV4RRFFQ69G5FAV"], "id": "x"}), (404, "NOT_FOUND")),
    ] {
        assert_eq!(a.caller.post(PATH, bad.clone()).await.refusal(), code, "{bad}");
    }
}
