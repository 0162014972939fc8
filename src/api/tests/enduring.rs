//! What goes wrong under a running agent neither ends it nor outlasts its cause.

use super::{
    agent::{Agent, Caller, LiveAgent},
    objects::know_peer,
    peers_only::until,
};
use crate::{
    env::{Clock, SystemClock},
    handshake::SESSION_LIFETIME,
    model::{
        ApiAccess, CustomerId, DataPorts, Endpoint, LicenseId, Mono, PeerId, PeerStatus, PublicKey, Rng, Signature,
        SigningKey, UnixTime, X25519Public,
    },
    node::Node,
    store::{PeerRow, StoreError},
    wire::{
        gossip::{Digest, Digests, Op, PushRequest, Request},
        handshake::{self, Challenge, Init},
        lock::{LEASE_ID, Lease, LockBody},
        record::{PeerBody, Record, RecordKey, RevocationBody, RevocationReason, Voucher, kind},
        request::SignedRequest,
    },
};
use hyper::Method;
use serde_json::json;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::net::TcpListener;

fn lease(holder: PeerId, acquired_at: UnixTime) -> LockBody {
    let token = Digest([u8::try_from(acquired_at.as_ms() % 251).unwrap(); 32]);
    LockBody::Lease(Lease {
        holder_peer: holder,
        client_id: None,
        purpose: "compose apply".into(),
        token,
        acquired_at,
        ttl_s: 60,
    })
}

#[tokio::test]
async fn a_contested_copy_keeps_its_lost_lease_and_withdraws_it_when_it_is_heard_again() {
    let agent = LiveAgent::bootstrapped(1, 1).await;
    let (author, now) = (agent.node.identity().unwrap(), agent.node.env().clock.unix());
    let (other, key) = (PeerId::mint(now, &mut Rng::from_seed([8; 32])), SigningKey::from_seed([8; 32]));
    let earlier = serde_json::to_value(lease(other, now.minus(Duration::from_secs(1)))).unwrap();
    let theirs = Record::sign(&key, other, kind::LOCK, LEASE_ID, 1, earlier).unwrap();
    let own = RecordKey { kind: kind::LOCK.into(), id: LEASE_ID.into(), owner: author.peer_id };
    let write = agent.node.store().write(move |tx| {
        tx.put_own(&author, kind::LOCK, LEASE_ID, &lease(author.peer_id, now))?;
        tx.put_verified(&theirs)?;
        tx.set_contested(true)
    });
    write.await.map_err(|e: StoreError| e).unwrap();
    until(|| agent.node.lock_view().unwrap().is_some_and(|view| view.lease.holder_peer == other)).await;
    agent.caller.get("/livez").await.expect(200);
    let write = agent.node.store().write(|tx| tx.set_contested(false));
    write.await.map_err(|e: StoreError| e).unwrap();
    until(|| agent.node.store().read(|v| v.record(&own)).unwrap().is_none_or(|held| held.deleted)).await;
}

#[tokio::test]
async fn an_agent_that_cannot_read_its_store_goes_on_and_works_again_when_it_can() {
    let agent = LiveAgent::bootstrapped(1, 1).await;
    let own = agent.id().to_string();
    let raw = rusqlite::Connection::open(agent.node.config().data_dir.join("arctic.db")).unwrap();
    // Each of the drivers reads one of them.
    for (kind, version) in [(kind::LOCK, 1000), (kind::SERVICE, 1001)] {
        raw.execute(
            "INSERT INTO records (kind, id, owner, version, deleted, hash, body, signature) \
             VALUES (?1, 'unreadable', ?2, ?3, 0, zeroblob(32), 'x', 'x')",
            rusqlite::params![kind, own, version],
        )
        .unwrap();
    }
    raw.execute("INSERT INTO meta (key, value) VALUES ('pending_confirm', 'x')", []).unwrap();
    let change = async |n: u64| {
        let write = agent.node.store().write(move |tx| tx.set_license_clock(&json!({ "mark": n })));
        write.await.map_err(|e: StoreError| e).unwrap();
    };
    // For as long as a retry takes: each change and each retry makes the drivers read, and none of that ends the agent.
    for n in 0..10 {
        change(n).await;
        agent.caller.get("/livez").await.expect(200);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    raw.execute("DELETE FROM records WHERE id = 'unreadable'", []).unwrap();
    raw.execute("DELETE FROM meta WHERE key = 'pending_confirm'", []).unwrap();
    change(99).await;
    agent.caller.post("/v1/credentials", json!({"scopes": ["services.read"]})).await.expect(201);
    let told = |kind| agent.node.events().after(0).events.iter().any(|e| e.kind == kind);
    until(|| told("credential.created")).await;
    agent.caller.post("/v1/cluster/lock", json!({"purpose": "compose apply"})).await.expect(201);
    until(|| told("cluster.locked")).await;
}

/// The clock of the system, later by so many milliseconds.
struct LaterClock(SystemClock, Arc<AtomicU64>);

impl Clock for LaterClock {
    fn mono(&self) -> Mono {
        self.0.mono() + Duration::from_millis(self.1.load(Relaxed))
    }
    fn unix(&self) -> UnixTime {
        self.0.unix()
    }
}

#[tokio::test]
async fn the_keys_of_a_handshake_that_nobody_finished_are_wiped_though_nobody_calls() {
    let later = Arc::new(AtomicU64::new(0));
    let agent = LiveAgent::at(Arc::new(LaterClock(SystemClock::new(), later.clone()))).await;
    let mut rng = Rng::from_seed([9; 32]);
    let cluster_id = agent.node.store().read::<_, StoreError>(|v| v.cluster()).unwrap().unwrap().cluster_id;
    let init = Init {
        protocol: handshake::PROTOCOL,
        peer_id: PeerId::mint(UnixTime::from_secs(1), &mut rng),
        public_key: SigningKey::from_seed(rng.bytes()).public(),
        challenge: Challenge(rng.bytes()),
        ephemeral: X25519Public(rng.bytes()),
        license_id: LicenseId::mint(UnixTime::from_secs(1), &mut rng),
        cluster_id,
        endpoints: Vec::new(),
        target_endpoints: Vec::new(),
        api_port: handshake::default_api_port(),
    };
    agent.caller.post("/v1/handshake/init", serde_json::to_value(init).unwrap()).await.expect(200);
    assert_eq!(agent.node.open_handshakes(), 1);
    // The driver sets its alarm anew, which then goes off by itself.
    later.store((SESSION_LIFETIME - Duration::from_secs(3)).as_millis().try_into().unwrap(), Relaxed);
    agent.caller.post("/v1/cluster/sync", json!({})).await.expect(200);
    assert_eq!(agent.node.open_handshakes(), 1);
    until(|| agent.node.open_handshakes() == 0).await;
}

#[tokio::test]
async fn what_a_contested_copy_had_to_leave_it_does_at_the_next_start() {
    let agent = Agent::bootstrapped().await;
    let (own, now) = (agent.node.identity().unwrap().peer_id, agent.clock.unix());
    let client = agent.node.store().read::<_, StoreError>(|v| v.credentials()).unwrap()[0].1.client_id;
    let other = know_peer(&agent, 9, true).await;
    let body = RevocationBody {
        peer_id: None,
        public_key: None,
        client_id: Some(client),
        reason: RevocationReason::Revoked,
        revoked_at: now,
    };
    let body = serde_json::to_value(body).unwrap();
    let key = SigningKey::from_seed([9; 32]);
    let revocation = Record::sign(&key, other, kind::REVOCATION, &client.to_string(), 1, body).unwrap();
    let write = agent.node.store().write(move |tx| {
        tx.set_contested(true)?;
        tx.put_verified(&revocation).map(drop)
    });
    write.await.map_err(|e: StoreError| e).unwrap();
    let agent = agent.restarted(|_| {}).await;
    let credential = RecordKey { kind: kind::CREDENTIAL.into(), id: client.to_string(), owner: own };
    assert!(agent.node.store().read(|v| v.record(&credential)).unwrap().unwrap().deleted);
}

/// The word of a peer whose key has this seed.
fn voucher(by: PeerId, seed: u8, (about, subject_public_key): (PeerId, PublicKey), now: UnixTime) -> Record {
    let key = SigningKey::from_seed([seed; 32]);
    let mut voucher = Voucher {
        subject_peer_id: about,
        subject_public_key,
        subject_endpoints: vec!["osaka".parse().unwrap()],
        customer_id: CustomerId::mint(now, &mut Rng::from_seed([1; 32])),
        issuer_peer_id: by,
        issued_at: now,
        expires_at: now.plus(Duration::from_secs(3600)),
        signature: Signature::from_bytes([0; 64]),
    };
    voucher.signature = voucher.transcript().sign(&key);
    let body = serde_json::to_value(voucher).unwrap();
    Record::sign(&key, by, kind::VOUCHER, &about.to_string(), 1, body).unwrap()
}

#[tokio::test]
async fn whom_only_a_removed_peer_vouched_for_is_forgotten_with_it() {
    let agent = Agent::bootstrapped().await;
    let (issuer, other) = (know_peer(&agent, 9, true).await, know_peer(&agent, 10, true).await);
    let now = agent.clock.unix();
    let candidates: Vec<PeerId> = (0..2).map(|n| PeerId::mint(now, &mut Rng::from_seed([20 + n; 32]))).collect();
    let wrong = SigningKey::from_seed([77; 32]).public();
    let word = |by: PeerId, seed: u8, about: PeerId| voucher(by, seed, (about, wrong), now);
    let words = [word(issuer, 9, candidates[0]), word(issuer, 9, candidates[1]), word(other, 10, candidates[1])];
    let rows = candidates.clone();
    let write = agent.node.store().write(move |tx| {
        for peer in rows {
            tx.put_peer(&PeerRow { trusted: false, ..PeerRow::trusted(peer, wrong, Vec::new(), now) })?;
        }
        words.iter().try_for_each(|record| tx.put_verified(record).map(drop))
    });
    write.await.map_err(|e: StoreError| e).unwrap();
    agent.caller.delete(&format!("/v1/peers/{issuer}")).await.expect(204);
    assert_eq!(agent.caller.get(&format!("/v1/peers/{}", candidates[0])).await.refusal(), (404, "NOT_FOUND"));
    agent.caller.get(&format!("/v1/peers/{}", candidates[1])).await.expect(200);
}

/// Brings a record as a trusted peer does.
async fn push(node: &Node, caller: &Caller, (sender, key): (PeerId, &SigningKey), record: Record) {
    let [peers, services, credentials, revocations, cluster] = [Digest([0; 32]); 5];
    let digests = Digests { peers, services, credentials, revocations, cluster };
    let push = PushRequest { instance: String::new(), records: vec![record].into(), hops: 0, digests };
    let body = Request::Push(push).encode();
    let request = SignedRequest {
        method: "POST",
        path: Op::Push.path(),
        body: &body,
        timestamp: node.env().clock.unix(),
        nonce: [3; 16],
        sender,
        target: node.identity().unwrap().peer_id,
        on_behalf: None,
    };
    let headers = request.headers(key);
    let mut headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    headers.push(("content-type", "application/json"));
    let answer = caller.send(Method::POST, Op::Push.path(), &headers, body.clone()).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
}

/// The machine is told of own writes by its driver, which runs only now and then; this agent has none.
#[tokio::test]
async fn an_own_write_that_gossip_has_not_heard_of_outlives_what_comes_back_of_the_past() {
    let mut agent = Agent::bootstrapped().await;
    agent.caller.post("/v1/cluster/init", json!({"force": true})).await.expect(200);
    agent.caller.token = Some(agent.admin_token());
    let (friend, other) = (know_peer(&agent, 9, true).await, know_peer(&agent, 10, true).await);
    agent.caller.delete(&format!("/v1/peers/{other}")).await.expect(204);
    let made = agent.caller.post("/v1/services", json!({"target_peer_id": friend, "name": "old"})).await.expect(201);
    let author = agent.node.identity().unwrap();
    let key = RecordKey { kind: kind::SERVICE.into(), id: made["id"].as_str().unwrap().into(), owner: author.peer_id };
    let held = || agent.node.store().read(|v| v.record(&key)).unwrap().unwrap();
    let past = Record::sign(&author.key, author.peer_id, kind::SERVICE, &key.id, 100, held().body).unwrap();
    agent.caller.put(&format!("/v1/services/{}", key.id), json!({"name": "new"})).await.expect(200);
    push(&agent.node, &agent.caller, (friend, &SigningKey::from_seed([9; 32])), past).await;
    assert_eq!((&held().body["name"], held().version > 100), (&json!("new"), true));
}

#[tokio::test]
async fn an_unreachable_peer_is_tried_at_the_endpoint_that_gossip_tells_of() {
    let agent = LiveAgent::bootstrapped(1, 1).await;
    let now = agent.node.env().clock.unix();
    let peer = |seed: u8| (PeerId::mint(now, &mut Rng::from_seed([seed; 32])), SigningKey::from_seed([seed; 32]));
    let ((friend, friend_key), (away, away_key)) = (peer(9), peer(10));
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let endpoint = |addr: std::net::SocketAddr| -> Vec<Endpoint> { vec![addr.to_string().parse().unwrap()] };
    let rows = [
        PeerRow::trusted(friend, friend_key.public(), Vec::new(), now),
        PeerRow { trusted: false, ..PeerRow::trusted(away, away_key.public(), endpoint(closed), now) },
    ];
    let word = voucher(friend, 9, (away, away_key.public()), now);
    let write = agent.node.store().write(move |tx| {
        rows.iter().try_for_each(|row| tx.put_peer(row))?;
        tx.put_verified(&word).map(drop)
    });
    write.await.map_err(|e: StoreError| e).unwrap();
    let agent = agent.restarted_after(Duration::ZERO).await;
    let status = || agent.node.peer_health(away).status;
    until(|| status() == PeerStatus::Unreachable).await;

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let body = PeerBody {
        name: "osaka".into(),
        public_key: away_key.public(),
        x25519_key: away_key.x25519_public(),
        endpoints: endpoint(listener.local_addr().unwrap()),
        data_ports: DataPorts::default(),
        api_access: ApiAccess::Public,
        version: "v1.0.0".into(),
        license_id: LicenseId::mint(now, &mut Rng::from_seed([2; 32])),
        created_at: now,
    };
    let body = serde_json::to_value(body).unwrap();
    let record = Record::sign(&away_key, away, kind::PEER, &away.to_string(), 1, body).unwrap();
    push(&agent.node, &agent.caller, (friend, &friend_key), record).await;
    let called = tokio::time::timeout(Duration::from_secs(5), listener.accept()).await;
    called.expect("long before the next try at the old one").unwrap();
}
