//! Peer-signed requests, and calls between two whole agents.

use super::agent::{Agent, Caller, LiveAgent, Reply};
use crate::{
    api::forward::held_here,
    env::Clock,
    model::{ClientId, PeerId, Rng, ScopeSet, SigningKey, UnixTime},
    store::{PeerRow, StoreError},
    wire::{
        record::{Record, kind},
        request::{OnBehalf, SignedRequest, Written},
    },
};
use hyper::Method;
use serde_json::json;
use std::{task::Poll, time::Duration};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A peer that exists only as a key, trusted by `agent`.
pub(super) struct Peer {
    pub(super) id: PeerId,
    key: SigningKey,
    rng: Rng,
}

impl Peer {
    pub(super) async fn trusted_by(agent: &Agent) -> Self {
        let mut rng = Rng::from_seed([5; 32]);
        let (id, key) = (PeerId::mint(agent.clock.unix(), &mut rng), SigningKey::from_seed([6; 32]));
        let row = PeerRow::trusted(id, key.public(), Vec::new(), agent.clock.unix());
        agent.node.store().write(move |tx| tx.put_peer(&row)).await.map_err(|e: StoreError| e).unwrap();
        Self { id, key, rng }
    }

    pub(super) fn headers(
        &mut self,
        (path, body): (&str, &str),
        target: PeerId,
        at: UnixTime,
        who: Option<&OnBehalf>,
    ) -> Vec<(&'static str, String)> {
        let request = SignedRequest {
            method: "POST",
            path,
            body: body.as_bytes(),
            timestamp: at,
            nonce: self.rng.bytes(),
            sender: self.id,
            target,
            on_behalf: who,
        };
        request.headers(&self.key)
    }
}

pub(super) async fn post(caller: &Caller, path: &str, headers: &[(&'static str, String)], body: &'static str) -> Reply {
    let mut all: Vec<(&str, &str)> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
    all.push(("content-type", "application/json"));
    caller.send(Method::POST, path, &all, body).await
}

#[tokio::test]
async fn gossip_is_for_trusted_peers_with_a_fresh_signature_for_us() {
    let agent = Agent::bootstrapped().await;
    let mut peer = Peer::trusted_by(&agent).await;
    let own_id = agent.node.identity().unwrap().peer_id;
    let (path, body, now) = ("/v1/gossip/heartbeat", "{}", agent.clock.unix());
    let refused = async |headers: &[(&'static str, String)], path: &str| {
        let reply = post(&agent.caller, path, headers, body).await;
        assert_eq!(reply.refusal(), (401, "UNAUTHORIZED"), "{}", reply.text);
        reply.error().to_owned()
    };
    // Authentic: what is wrong with the message itself is found only later.
    let good = peer.headers((path, body), own_id, now, None);
    assert_ne!(post(&agent.caller, path, &good, body).await.status, 401);
    assert!(refused(&good, path).await.contains("seen before"));

    refused(&[], path).await;
    refused(&peer.headers((path, "{} "), own_id, now, None), path).await;
    refused(&peer.headers((path, body), own_id, now, None), "/v1/gossip/push").await;
    refused(&peer.headers((path, body), own_id, now, None), "/v1/gossip/heartbeat?x=1").await;
    let elsewhere = peer.id;
    refused(&peer.headers((path, body), elsewhere, now, None), path).await;
    let late = now.minus(Duration::from_millis(60_001));
    let text = refused(&peer.headers((path, body), own_id, late, None), path).await;
    assert!(text.contains(&late.to_string()) && text.contains(&now.to_string()), "{text}");
    let mut stranger = Peer { key: SigningKey::from_seed([66; 32]), id: peer.id, rng: peer.rng.clone() };
    refused(&stranger.headers((path, body), own_id, now, None), path).await;
    stranger.id = own_id;
    refused(&stranger.headers((path, body), own_id, now, None), path).await;
    let client = super::agent::client_of(agent.caller.token.as_deref().unwrap());
    let who = OnBehalf { client_id: client, scopes: ScopeSet::admin(), proxied: false };
    refused(&peer.headers((path, body), own_id, now, Some(&who)), path).await;
}

/// security.md row 15: ids of peers are public, so a claim to be one may not cost much memory.
#[tokio::test]
async fn large_bodies_of_unproven_senders_are_few() {
    let agent = Agent::bootstrapped().await;
    let mut peer = Peer::trusted_by(&agent).await;
    let own_id = agent.node.identity().unwrap().peer_id;
    let (path, now) = ("/v1/gossip/push", agent.clock.unix());
    let claim = peer.headers((path, "other"), own_id, now, None);
    let claim: String = claim.iter().map(|(k, v)| format!("{k}: {v}\r\n")).collect();
    let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 4000000\r\n{claim}\r\n");
    let addr = agent.caller.addr;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let head = head.clone();
        calls.spawn(async move {
            let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut answer = [0; 12];
            let read = tokio::time::timeout(Duration::from_secs(2), stream.read_exact(&mut answer)).await;
            read.is_ok().then(|| String::from_utf8_lossy(&answer).into_owned())
        });
    }
    let answers: Vec<String> = calls.join_all().await.into_iter().flatten().collect();
    assert_eq!(answers, ["HTTP/1.1 429"; 4]);
    let small = peer.headers((path, "{}"), own_id, now, None);
    assert_ne!(post(&agent.caller, path, &small, "{}").await.status, 429);
}

#[tokio::test]
async fn forwarded_calls_are_for_known_clients_and_never_for_more_than_they_may() {
    let agent = Agent::bootstrapped().await;
    let mut peer = Peer::trusted_by(&agent).await;
    let own_id = agent.node.identity().unwrap().peer_id;
    let (path, body, now) = ("/v1/services", r#"{"target_peer_id":"peer_x"}"#, agent.clock.unix());
    let known = super::agent::client_of(agent.caller.token.as_deref().unwrap());
    let mut call = async |client_id: ClientId, scopes: &str, path: &'static str| {
        let who = OnBehalf { client_id, scopes: scopes.parse().unwrap(), proxied: false };
        let headers = peer.headers((path, body), own_id, now, Some(&who));
        post(&agent.caller, path, &headers, body).await
    };
    assert_eq!(call(known, "services.write", path).await.refusal(), (404, "NOT_FOUND"));
    assert_eq!(call(known, "services.read", path).await.refusal(), (403, "FORBIDDEN"));
    let unknown = ClientId::mint(now, &mut Rng::from_seed([8; 32]));
    assert_eq!(call(unknown, "admin", path).await.refusal(), (401, "UNAUTHORIZED"));
    // Peers are added where the operator is.
    assert_eq!(call(known, "admin", "/v1/peers").await.refusal(), (401, "UNAUTHORIZED"));
}

// accepts: 000-03, 000-15, 000-32, 000-33
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_are_added_over_http_and_refused_with_the_fixed_texts() {
    let (a, b) = (LiveAgent::bootstrapped(1, 1).await, LiveAgent::bootstrapped(2, 1).await);
    let other = LiveAgent::bootstrapped(3, 2).await;
    let add = |addr: String| {
        let caller = a.caller.clone();
        async move { caller.post("/v1/peers", json!({"endpoints": [addr], "name": "new-agent"})).await }
    };
    let closed = tokio::spawn(add("127.0.0.1:1".into()));
    let talkative = tokio::spawn(add(talkative().await.to_string()));
    let added = add(b.caller.addr.to_string()).await.expect(201);
    assert_eq!((&added["name"], &added["is_local"]), (&json!("new-agent"), &json!(false)));
    assert_eq!(added["id"], b.node.identity().unwrap().peer_id.to_string());
    let again = add(b.caller.addr.to_string()).await;
    assert_eq!((again.refusal(), again.error()), ((409, "ALREADY_EXISTS"), "peer already exists in cluster"));
    let mismatch = add(other.caller.addr.to_string()).await;
    assert_eq!(
        (mismatch.refusal(), mismatch.error()),
        ((422, "LICENSE_MISMATCH"), "handshake failed: license mismatch")
    );
    assert_eq!(add(a.caller.addr.to_string()).await.refusal(), (400, "INVALID_REQUEST"));
    let talkative = talkative.await.unwrap();
    assert_eq!(talkative.error(), "handshake failed: connection failed", "no more than 64 KiB are read");
    let closed = closed.await.unwrap();
    assert_eq!((closed.refusal(), closed.error()), ((422, "HANDSHAKE_FAILED"), "handshake failed: connection refused"));
}

/// Answers every connection with a hundred KiB.
async fn talkative() -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 1024];
            drop(stream.read(&mut request).await);
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 102400\r\n\r\n{}", " ".repeat(102_400));
            drop(stream.write_all(answer.as_bytes()).await);
        }
    });
    addr
}

// accepts: 002-15
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_for_another_source_go_to_that_peer() {
    let (a, b) = (LiveAgent::bootstrapped(1, 1).await, LiveAgent::bootstrapped(2, 1).await);
    a.caller.post("/v1/peers", json!({"endpoints": [b.caller.addr.to_string()]})).await.expect(201);
    let (a_id, b_id) = (a.node.identity().unwrap().peer_id, b.node.identity().unwrap().peer_id);
    // b has to hear of a's credential first.
    let client = super::agent::client_of(a.caller.token.as_deref().unwrap());
    until(|| b.node.store().read(|v| v.credential(client)).unwrap().is_some()).await;

    let wish = json!({"target_peer_id": a_id, "source_peer_id": b_id, "name": "backwards"});
    let made = a.caller.post("/v1/services", wish.clone()).await.expect(201);
    assert_eq!((&made["source_peer_id"], &made["name"]), (&json!(b_id), &json!("backwards")));
    let id: crate::model::ServiceId = made["id"].as_str().unwrap().parse().unwrap();
    assert!(b.node.store().read(|v| v.service(id)).unwrap().is_some());
    assert_eq!(a.caller.post("/v1/services", wish).await.refusal(), (409, "ALREADY_EXISTS"));

    assert!(a.node.store().read(|v| v.service(id)).unwrap().is_some(), "its caller reads what it wrote");
    let routes = format!("/v1/services/{id}/routes");
    let added = a.caller.post(&routes, json!({"routes": [{"dest_cidr": "10.0.0.0/8"}]})).await.expect(201);
    assert_eq!(added, json!({"route_ids": [1], "count": 1}));
    let shown = a.caller.get(&routes).await.expect(200);
    assert_eq!(shown["routes"][0]["dest_cidr"], "10.0.0.0/8", "{shown}");
    let bearer = format!("Bearer {}", a.caller.token.clone().unwrap());
    let stale = [("if-match", "99999"), ("authorization", bearer.as_str())];
    let refused = a.caller.send(Method::DELETE, &format!("/v1/services/{id}"), &stale, "").await;
    assert_eq!(refused.refusal(), (409, "CONFLICT"), "the owner sees the condition");
    assert_eq!(a.caller.delete(&format!("{routes}/1")).await.status, 204);
    assert_eq!(a.caller.get(&routes).await.expect(200), json!({ "routes": [] }));

    let b_addr = b.caller.addr;
    drop(b);
    until(|| std::net::TcpStream::connect(b_addr).is_err()).await;
    let refused = a.caller.delete(&format!("/v1/services/{id}")).await;
    assert_eq!(refused.refusal(), (422, "PEER_UNREACHABLE"));
    assert_eq!(refused.body["details"]["sent"], false, "nothing has changed: {}", refused.text);
    a.caller.get(&format!("/v1/services/{id}")).await.expect(200);
}

/// Other records of the owner that come first are not what the caller wrote.
#[tokio::test]
async fn a_forwarded_write_waits_for_the_very_version_that_was_written() {
    let agent = Agent::bootstrapped().await;
    let owner = Peer::trusted_by(&agent).await;
    let record = |kind: &str, id: &str, version, body| {
        let record = Record::sign(&owner.key, owner.id, kind, id, version, body).unwrap();
        let store = agent.node.store().clone();
        async move { store.write(move |tx| tx.put_verified(&record).map(drop)).await.map_err(|e: StoreError| e).unwrap() }
    };
    let written = Written { kind: kind::SERVICE.into(), id: "svc_1".into(), version: 7 };
    let wait = held_here(&agent.node, owner.id, &written);
    tokio::pin!(wait);
    let mut is_over = async || std::future::poll_fn(|cx| Poll::Ready(wait.as_mut().poll(cx).is_ready())).await;
    assert!(!is_over().await, "nothing has come");
    record(kind::STATUS, "svc_1", 9, json!({})).await;
    record(kind::SERVICE, "svc_2", 8, json!({})).await;
    record(kind::SERVICE, "svc_1", 6, json!({})).await;
    assert!(!is_over().await, "newer records of the owner, but not this one");
    record(kind::SERVICE, "svc_1", 7, json!({})).await;
    assert!(is_over().await);
}

/// The machine holds what it was pushed; the store has to come to it too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_store_refused_is_committed_later() {
    let (a, b) = (LiveAgent::bootstrapped(1, 1).await, LiveAgent::bootstrapped(2, 1).await);
    a.caller.post("/v1/peers", json!({"endpoints": [b.caller.addr.to_string()]})).await.expect(201);
    let disk = rusqlite::Connection::open(a.node.config().data_dir.join("arctic.db")).unwrap();
    disk.busy_timeout(Duration::from_secs(5)).unwrap();
    let full = "CREATE TRIGGER full BEFORE INSERT ON records WHEN new.kind = 'service' \
                BEGIN SELECT RAISE(ABORT, 'disk full'); END";
    disk.execute_batch(full).unwrap();
    let target = a.node.identity().unwrap().peer_id;
    let made = b.caller.post("/v1/services", json!({ "target_peer_id": target })).await.expect(201);
    let id: crate::model::ServiceId = made["id"].as_str().unwrap().parse().unwrap();
    let services = || a.node.cluster_view().registries["services"].0;
    until(|| services() == 1).await;
    assert!(a.node.store().read(|v| v.service(id)).unwrap().is_none());
    disk.execute_batch("DROP TRIGGER full").unwrap();
    until(|| a.node.store().read(|v| v.service(id)).unwrap().is_some()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_forgot_us_is_called_again() {
    let (a, b) = (LiveAgent::bootstrapped(1, 1).await, LiveAgent::bootstrapped(2, 1).await);
    a.caller.post("/v1/peers", json!({"endpoints": [b.caller.addr.to_string()]})).await.expect(201);
    let a_id = a.node.identity().unwrap().peer_id;
    b.node.store().write(move |tx| tx.forget_peer(a_id)).await.map_err(|e: StoreError| e).unwrap();
    a.node.sync().await;
    until(|| b.node.store().read(|v| v.peer(a_id)).unwrap().is_some_and(|p| p.trusted)).await;
}

/// Polls for 20 s at most.
pub(super) async fn until(mut done: impl FnMut() -> bool) {
    let waited = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waited).await.expect("it never came true");
}
