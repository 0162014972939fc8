//! The cluster lock over HTTP (api.md §8): who takes it, what it keeps out, how it ends.

use super::{
    agent::{Agent, Caller, LiveAgent, RECOVERY, Reply, client_of, license, terms, token_form},
    peers_only::until,
};
use crate::{
    store::StoreError,
    wire::{
        lock::LEASE_ID,
        record::{RecordKey, kind},
    },
};
use hyper::Method;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::net::TcpStream;

const JSON: (&str, &str) = ("content-type", "application/json");
const PATH: &str = "/v1/cluster/lock";

async fn take(caller: &Caller) -> String {
    let taken = caller.post(PATH, json!({"purpose": "compose apply"})).await.expect(201);
    taken["lock"]["token"].as_str().unwrap().to_owned()
}

async fn with_token(caller: &Caller, method: Method, path: &str, token: &str, body: &'static str) -> Reply {
    let bearer = format!("Bearer {}", caller.token.as_deref().unwrap());
    caller.send(method, path, &[("authorization", bearer.as_str()), JSON, ("x-arctic-lock", token)], body).await
}

#[tokio::test]
async fn a_held_lock_keeps_writes_out_unless_they_carry_its_token() {
    let agent = Agent::bootstrapped().await;
    let caller = &agent.caller;
    assert_eq!(caller.get(PATH).await.expect(200), json!({"lock": null}));
    let taken = caller.post(PATH, json!({"purpose": "compose apply"})).await;
    assert_eq!(taken.headers["cache-control"], "no-store");
    let lock = taken.expect(201)["lock"].clone();
    let token = lock["token"].as_str().unwrap();
    assert_eq!((&lock["purpose"], &lock["ttl_s"]), (&json!("compose apply"), &json!(60)));
    assert_eq!(lock["client_id"], json!(client_of(caller.token.as_deref().unwrap())));
    let public = caller.get(PATH).await.expect(200)["lock"].clone();
    assert_eq!((&public["token"], &public["holder_name"]), (&Value::Null, &json!("london")));
    assert_eq!(caller.get("/v1/cluster/status").await.expect(200)["lock"], public);
    let stored = agent.node.store().read(|v| v.all_records()).unwrap();
    assert!(!stored.iter().any(|r| r.body.to_string().contains(token)), "only a digest of the token is kept");

    for (method, path) in [(Method::POST, "/v1/services"), (Method::POST, "/v1/peers"), (Method::DELETE, "/v1/peers/x")]
    {
        let refused = with_token(caller, method.clone(), path, "sec_other", "{").await;
        assert_eq!(refused.refusal(), (409, "CLUSTER_LOCKED"), "{method} {path}: lock comes before body");
        for part in ["london", "compose apply"] {
            assert!(refused.error().contains(part), "{}", refused.text);
        }
        for key in ["holder_peer", "purpose", "acquired_at", "expires_at"] {
            assert!(refused.body["details"][key].is_string(), "{}", refused.text);
        }
        assert!(refused.body["hint"].as_str().unwrap().contains("arctic cluster lock clear"), "{}", refused.text);
        let held = with_token(caller, method.clone(), path, token, "{}").await;
        assert_ne!(held.status, 409, "{method} {path}: {}", held.text);
    }
    caller.get("/v1/services").await.expect(200);
    assert_eq!(caller.post(PATH, json!({"purpose": "another"})).await.refusal(), (409, "CLUSTER_LOCKED"));
    let wrong = caller.post(PATH, json!({"token": "sec_other"})).await;
    assert_eq!(wrong.refusal(), (409, "CLUSTER_LOCKED"));

    agent.clock.advance(Duration::from_secs(50));
    caller.post(PATH, json!({ "token": token })).await.expect(200);
    agent.clock.advance(Duration::from_secs(50));
    assert_eq!(caller.post("/v1/services", json!({})).await.refusal(), (409, "CLUSTER_LOCKED"), "it was renewed");
    agent.clock.advance(Duration::from_secs(10));
    assert_eq!(caller.post("/v1/services", json!({})).await.refusal(), (400, "MISSING_FIELD"), "it expires by itself");
    assert_eq!(caller.post(PATH, json!({ "token": token })).await.refusal(), (409, "CONFLICT"));
    assert_eq!(caller.delete(PATH).await.expect(200), json!({"cleared": null}));

    let again = take(caller).await;
    assert_eq!(with_token(caller, Method::DELETE, PATH, &again, "").await.expect(200)["cleared"]["ttl_s"], 60);
    assert_eq!(caller.get(PATH).await.expect(200), json!({"lock": null}));
    for body in
        [json!({}), json!({"purpose": ""}), json!({"purpose": "x", "ttl_s": 4}), json!({"purpose": "x", "a": 1})]
    {
        assert_eq!(caller.post(PATH, body.clone()).await.status, 400, "{body}");
    }
}

#[tokio::test]
async fn any_write_scope_takes_the_lock_and_no_other_client_releases_it() {
    let mut agent = Agent::new().await;
    let made = agent.caller.bootstrap(license(terms(1))).await;
    let form = token_form(made["client_id"].as_str().unwrap(), made["client_secret"].as_str().unwrap());
    let scoped = async |scope: &str| {
        let token = agent.caller.token_for(&format!("{form}&scope={scope}")).await;
        Caller { token: Some(token), ..agent.caller.clone() }
    };
    let reader = scoped("services.read+peers.read+credentials.read").await;
    assert_eq!(reader.post(PATH, json!({"purpose": "x"})).await.refusal(), (403, "FORBIDDEN"));
    for scope in ["services.write", "peers.write", "credentials.write"] {
        let writer = scoped(scope).await;
        take(&writer).await;
        writer.delete(PATH).await.expect(200);
    }
    let writer = scoped("services.write").await;
    // An operator with the recovery token is another client.
    let rescue = [("x-arctic-recovery", RECOVERY), JSON];
    let taken = agent.caller.send(Method::POST, PATH, &rescue, r#"{"purpose": "repair"}"#).await.expect(201);
    assert_eq!(taken["lock"]["client_id"], Value::Null);
    let refused = writer.delete(PATH).await;
    assert_eq!(refused.refusal(), (409, "CLUSTER_LOCKED"));
    assert!(refused.body["hint"].as_str().unwrap().contains("--force"), "{}", refused.text);
    assert_eq!(writer.delete(&format!("{PATH}?force=true")).await.refusal(), (403, "FORBIDDEN"));
    agent.caller.delete(&format!("{PATH}?force=true&dry_run=true")).await.expect(200);
    assert!(!agent.caller.get(PATH).await.expect(200)["lock"].is_null(), "a dry run changes nothing");
    agent.caller.delete(&format!("{PATH}?force=true")).await.expect(200);
    assert!(agent.caller.get(PATH).await.expect(200)["lock"].is_null());
}

/// Break-glass: the client that took the lock is gone, no credential is at hand, and the recovery token of the host
/// both shows the lock and ends it; then writes work again.
// accepts: 001-83
#[tokio::test]
async fn a_stuck_lock_is_cleared_with_the_recovery_token_alone() {
    let agent = Agent::bootstrapped().await;
    let lost = take(&agent.caller).await;
    let rescue = [("x-arctic-recovery", RECOVERY), JSON];
    let send = async |method, path: &str, body: &'static str| agent.caller.send(method, path, &rescue, body).await;
    assert_eq!(send(Method::POST, "/v1/services", "{}").await.refusal(), (409, "CLUSTER_LOCKED"));
    assert_eq!(send(Method::GET, PATH, "").await.expect(200)["lock"]["purpose"], "compose apply");
    let cleared = send(Method::DELETE, "/v1/cluster/lock?force=true", "").await.expect(200);
    assert_eq!(cleared["cleared"]["purpose"], "compose apply");
    assert_eq!(send(Method::POST, "/v1/services", "{}").await.refusal(), (400, "MISSING_FIELD"));
    assert_eq!(agent.caller.post(PATH, json!({ "token": lost })).await.refusal(), (409, "CONFLICT"));
}

/// Of a copy that its peers refuse: it may write nothing, so nobody would ever hear of a lock.
#[tokio::test]
async fn a_lock_that_could_not_be_published_is_not_held() {
    let agent = Agent::bootstrapped().await;
    let write = agent.node.store().write(|tx| tx.set_contested(true));
    write.await.map_err(|e: StoreError| e).unwrap();
    let refused = agent.caller.post(PATH, json!({"purpose": "compose apply"})).await;
    assert_eq!(refused.refusal(), (409, "IDENTITY_CONFLICT"));
    assert_eq!(agent.caller.get(PATH).await.expect(200), json!({"lock": null}));
}

/// The machine of this agent, which has no driver, hears of neither change of the record.
#[tokio::test]
async fn a_lock_record_is_renewed_and_withdrawn_only_as_what_it_was_judged_to_be() {
    let agent = Agent::bootstrapped().await;
    let author = agent.node.identity().unwrap();
    let key = RecordKey { kind: kind::LOCK.into(), id: LEASE_ID.into(), owner: author.peer_id };
    let held = || agent.node.store().read(|v| v.record(&key)).unwrap().unwrap();
    let token = take(&agent.caller).await;
    let (lease, by) = (held().body, author.clone());
    let write = agent.node.store().write(move |tx| tx.delete_own(&by, kind::LOCK, LEASE_ID).map(drop));
    write.await.map_err(|e: StoreError| e).unwrap();
    let renewed = agent.caller.post(PATH, json!({ "token": token })).await;
    assert_eq!((renewed.refusal(), held().deleted), ((409, "CONFLICT"), true), "it was withdrawn");

    take(&agent.caller).await;
    let write = agent.node.store().write(move |tx| tx.put_own(&author, kind::LOCK, LEASE_ID, &lease).map(drop));
    write.await.map_err(|e: StoreError| e).unwrap();
    agent.caller.delete(PATH).await.expect(200);
    assert!(!held().deleted, "that is another lease");
}

/// Its peer has stopped a moment ago and counts as healthy still, so the claim waits for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_that_is_cleared_while_it_waits_is_over_at_once() {
    let (a, b) = (LiveAgent::bootstrapped(1, 1).await, LiveAgent::bootstrapped(2, 1).await);
    let other = b.caller.addr;
    a.caller.post("/v1/peers", json!({"endpoints": [other.to_string()]})).await.expect(201);
    drop(b);
    while TcpStream::connect(other).await.is_ok() {
        tokio::task::yield_now().await;
    }
    let caller = a.caller.clone();
    let claim = tokio::spawn(async move { caller.post(PATH, json!({"purpose": "compose apply"})).await });
    until(|| a.node.lock_view().unwrap().is_some()).await;
    a.caller.delete(PATH).await.expect(200);
    assert_eq!(claim.await.unwrap().refusal(), (409, "CONFLICT"));
    assert_eq!(a.caller.get(PATH).await.expect(200), json!({"lock": null}));
}

/// `cluster/init` beside the lock: both are about the whole cluster.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn init_names_the_cluster_and_makes_a_new_one_only_by_force_and_alone() {
    let (a, b) = (LiveAgent::bootstrapped(1, 1).await, LiveAgent::bootstrapped(2, 1).await);
    a.caller.post("/v1/peers", json!({"endpoints": [b.caller.addr.to_string()]})).await.expect(201);
    until(|| a.node.store().read(|v| v.credentials()).unwrap().len() == 2).await;
    a.caller.post("/v1/services", json!({ "target_peer_id": b.id() })).await.expect(201);
    let there = a.caller.post("/v1/cluster/init", json!({})).await.expect(200);
    let status = a.caller.get("/v1/cluster/status").await.expect(200);
    assert_eq!((&there["cluster_id"], &there["was_created"]), (&status["cluster_id"], &json!(false)));
    assert_eq!(there["oldest_peer_id"], json!(a.id().min(b.id())));
    let refused = a.caller.post("/v1/cluster/init", json!({"force": true})).await;
    assert_eq!(refused.refusal(), (409, "CONFLICT"));
    assert!(refused.body["hint"].as_str().unwrap().contains("arctic peers delete"), "{}", refused.text);

    // Taken out by the other one, it is alone and may begin anew.
    assert_eq!(b.caller.delete(&format!("/v1/peers/{}", a.id())).await.status, 204);
    until(|| a.node.store().read(|v| v.trusted_peers()).unwrap().len() == 1).await;
    let made = a.caller.post("/v1/cluster/init", json!({"force": true})).await.expect(200);
    assert_eq!((&made["created_by"], &made["was_created"]), (&json!(a.id()), &json!(true)));
    assert_ne!(made["cluster_id"], there["cluster_id"]);
    let own = a.id();
    let records = a.node.store().read(|v| v.all_records()).unwrap();
    assert!(records.iter().all(|r| r.key.owner == own), "nothing foreign is left");
    assert_eq!(a.node.store().read(|v| v.cluster()).unwrap().unwrap().cluster_id.to_string(), made["cluster_id"]);
    // A token of the old cluster is for another one; the credential is not.
    assert_eq!(a.caller.get("/v1/services").await.refusal(), (401, "UNAUTHORIZED"));
}

#[tokio::test]
async fn a_restart_of_the_holder_ends_its_lease() {
    let agent = Agent::bootstrapped().await;
    let token = take(&agent.caller).await;
    let bearer = agent.caller.token.clone();
    let mut agent = agent.restarted(|_| {}).await;
    agent.caller.token = bearer;
    assert_eq!(agent.caller.post(PATH, json!({ "token": token })).await.refusal(), (409, "CONFLICT"));
    assert_eq!(agent.caller.post("/v1/services", json!({})).await.refusal(), (400, "MISSING_FIELD"));
    take(&agent.caller).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lock_holds_at_every_peer_and_its_token_travels_with_forwarded_writes() {
    let (a, b) = (LiveAgent::bootstrapped(1, 1).await, LiveAgent::bootstrapped(2, 1).await);
    a.caller.post("/v1/peers", json!({"endpoints": [b.caller.addr.to_string()]})).await.expect(201);
    let clients = [&a, &b].map(|x| client_of(x.caller.token.as_deref().unwrap()));
    let known = |x: &LiveAgent| clients.iter().all(|c| x.node.store().read(|v| v.credential(*c)).unwrap().is_some());
    until(|| known(&a) && known(&b)).await;

    let token = take(&a.caller).await;
    // The answer comes when every peer has acknowledged: no waiting here.
    assert_eq!(b.caller.post("/v1/services", json!({})).await.refusal(), (409, "CLUSTER_LOCKED"));
    assert_eq!(b.caller.get(PATH).await.expect(200)["lock"]["holder_peer"], json!(a.id()));
    assert_eq!(b.caller.post(PATH, json!({"purpose": "x"})).await.refusal(), (409, "CLUSTER_LOCKED"));
    let wish = format!(r#"{{"target_peer_id":"{}","source_peer_id":"{}"}}"#, a.id(), b.id());
    let wish: &'static str = wish.leak();
    let refused = with_token(&a.caller, Method::POST, "/v1/services", "sec_other", wish).await;
    assert_eq!(refused.refusal(), (409, "CLUSTER_LOCKED"));
    let made = with_token(&a.caller, Method::POST, "/v1/services", &token, wish).await.expect(201);
    assert_eq!(made["source_peer_id"], json!(b.id()), "forwarded to its owner, which checked the token too");

    // Renewal and release through another agent go to the holder's.
    until(|| b.node.lock_view().unwrap().is_some()).await;
    let elsewhere = Caller { addr: b.caller.addr, token: a.caller.token.clone() };
    elsewhere.post(PATH, json!({ "token": token })).await.expect(200);
    elsewhere.delete(PATH).await.expect(200);
    until(|| a.node.lock_view().unwrap().is_none() && b.node.lock_view().unwrap().is_none()).await;

    // What only an operator can end is ended everywhere.
    take(&a.caller).await;
    b.caller.delete(&format!("{PATH}?force=true")).await.expect(200);
    until(|| a.node.lock_view().unwrap().is_none() && b.node.lock_view().unwrap().is_none()).await;
    take(&b.caller).await;
}
