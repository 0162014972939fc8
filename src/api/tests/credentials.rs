//! Credentials: who makes, revokes and rotates them, and what dies with them.

use super::{
    agent::{Agent, Caller, DAY, LiveAgent, RECOVERY, client_of, license, terms, token_form},
    objects::know_peer,
    peers_only::until,
};
use crate::{
    api::credentials::rotate_own,
    env::Clock,
    membership,
    model::{ClientId, ClusterId, Code, Rng, ScopeSet, Secret, SigningKey, UnixTime},
    store::{Author, StoreError},
    wire::record::{ClusterBody, kind},
};
use hyper::Method;
use serde_json::{Value, json};
use std::time::Duration;

const JSON: (&str, &str) = ("content-type", "application/json");
const RESCUE: (&str, &str) = ("x-arctic-recovery", RECOVERY);
const ROTATE: &str = "/v1/cluster/credentials/rotate";

fn form_of(made: &Value) -> String {
    token_form(made["client_id"].as_str().unwrap(), made["client_secret"].as_str().unwrap())
}

/// The caller with a token of the credential that was just made.
async fn with(caller: &Caller, made: &Value) -> Caller {
    Caller { token: Some(caller.token_for(&form_of(made)).await), ..caller.clone() }
}

#[tokio::test]
async fn a_credential_lives_until_it_is_revoked_and_its_tokens_no_longer() {
    let agent = Agent::bootstrapped().await;
    let first = client_of(agent.caller.token.as_deref().unwrap());
    let wish = json!({"scopes": ["services.read", "urn:tillered:arctic:peers.write"], "description": "monitoring"});
    let made = agent.caller.post("/v1/credentials", wish).await;
    assert_eq!(made.headers["cache-control"], "no-store");
    let made = made.expect(201);
    assert_eq!(made["scopes"], json!(["urn:tillered:arctic:peers.write", "urn:tillered:arctic:services.read"]));
    let id = made["client_id"].as_str().unwrap();
    assert!(id.starts_with("cli_") && made["client_secret"].as_str().unwrap().starts_with("sec_"));
    let mut listed = agent.caller.get("/v1/credentials").await.expect(200);
    let find = |listed: &Value, id: &str| {
        listed["credentials"].as_array().unwrap().iter().find(|c| c["client_id"] == id).cloned()
    };
    let shown = find(&listed, id).unwrap();
    assert_eq!((&shown["scopes"], &shown["last_used_at"]), (&made["scopes"], &Value::Null));
    assert_eq!(shown["issuer_peer_id"], agent.node.identity().unwrap().peer_id.to_string());
    for secret in ["sec_", "secret", "sha256", made["client_secret"].as_str().unwrap()] {
        assert!(!listed.to_string().contains(secret), "{secret}: {listed}");
    }

    agent.clock.advance(Duration::from_secs(5));
    let client = with(&agent.caller, &made).await;
    client.get("/v1/services").await.expect(200);
    listed = agent.caller.get("/v1/credentials").await.expect(200);
    assert_eq!(find(&listed, id).unwrap()["last_used_at"], "2027-01-15T08:00:05Z");
    assert_eq!(client.get("/v1/credentials").await.refusal(), (403, "FORBIDDEN"));

    let itself = agent.caller.delete(&format!("/v1/credentials/{first}")).await;
    assert_eq!(itself.refusal(), (422, "CANNOT_REVOKE_CURRENT"));
    assert_eq!(itself.error(), "cannot revoke the credential currently in use");
    let path = format!("/v1/credentials/{id}");
    assert_eq!(agent.caller.delete(&format!("{path}?dry_run=true")).await.expect(200), json!({"deleted": true}));
    client.get("/v1/services").await.expect(200);
    assert_eq!(agent.caller.delete(&path).await.expect(200), json!({"deleted": true}));
    assert_eq!(client.get("/v1/services").await.refusal(), (401, "UNAUTHORIZED"), "its tokens die at once");
    let refused = agent.caller.form("/v1/oauth/token", &form_of(&made)).await;
    assert_eq!(refused.refusal(), (401, "UNAUTHORIZED"));
    assert!(find(&agent.caller.get("/v1/credentials").await.expect(200), id).is_none());
    for unknown in [id, "cli_x", "x", "' OR 1=1"] {
        let path = format!("/v1/credentials/{}", unknown.replace(' ', "%20"));
        assert_eq!(agent.caller.delete(&path).await.refusal(), (404, "NOT_FOUND"), "{unknown}");
    }
}

#[tokio::test]
async fn nobody_gives_more_scopes_than_they_have() {
    let agent = Agent::bootstrapped().await;
    let wish = json!({"scopes": ["credentials.write", "services.write"]});
    let made = agent.caller.post("/v1/credentials", wish).await.expect(201);
    let clerk = with(&agent.caller, &made).await;
    for more in [json!(["admin"]), json!(["peers.read"]), json!(["services.read", "peers.write"])] {
        let refused = clerk.post("/v1/credentials", json!({ "scopes": more })).await;
        assert_eq!(refused.refusal(), (403, "FORBIDDEN"), "{more}");
    }
    let same = clerk.post("/v1/credentials", json!({})).await.expect(201);
    assert_eq!(same["scopes"], made["scopes"], "by default it gets what its maker has");
    clerk.post("/v1/credentials", json!({"scopes": ["services.read"]})).await.expect(201);
    let narrowed = agent.caller.token_for(&format!("{}&scope=credentials.write", form_of(&made))).await;
    let narrow = Caller { token: Some(narrowed), ..agent.caller.clone() };
    let refused = narrow.post("/v1/credentials", json!({"scopes": ["services.read"]})).await;
    assert_eq!(refused.refusal(), (403, "FORBIDDEN"), "what the token was narrowed to counts");
    // The shared credential is an administrator's.
    let rotate = clerk
        .send(Method::POST, ROTATE, &[("authorization", &format!("Bearer {}", clerk.token.as_deref().unwrap()))], "")
        .await;
    assert_eq!(rotate.refusal(), (403, "FORBIDDEN"));
    for (bad, code) in [
        (json!({"scopes": []}), "INVALID_REQUEST"),
        (json!({"scopes": ["root"]}), "INVALID_REQUEST"),
        (json!({"scopes": "admin"}), "INVALID_REQUEST"),
        (json!({"scope": ["admin"]}), "INVALID_REQUEST"),
        (json!({"description": "x".repeat(1025)}), "INVALID_REQUEST"),
        (json!({"description": 1}), "INVALID_REQUEST"),
    ] {
        assert_eq!(agent.caller.post("/v1/credentials", bad.clone()).await.refusal(), (400, code), "{bad}");
    }
    let dry = agent.caller.post("/v1/credentials?dry_run=true", json!({})).await.expect(201);
    assert_eq!((&dry["client_id"], &dry["client_secret"]), (&Value::Null, &Value::Null));
}

#[tokio::test]
async fn a_rotation_leaves_the_old_secret_a_day() {
    let mut agent = Agent::new().await;
    let made = agent.caller.bootstrap(license(terms(1))).await;
    let before = agent.caller.get("/v1/cluster/credentials").await.expect(200);
    assert_eq!(
        (&before["client_id"], &before["rotated_by"], &before["rotated_at"]),
        (&made["client_id"], &Value::Null, &Value::Null)
    );
    agent.caller.post(&format!("{ROTATE}?dry_run=true"), json!({})).await.expect(200);
    assert_eq!(agent.caller.get("/v1/cluster/credentials").await.expect(200), before);
    let rotated = agent.caller.post(ROTATE, json!({})).await;
    assert_eq!(rotated.headers["cache-control"], "no-store");
    let rotated = rotated.expect(200);
    assert_eq!((&rotated["client_id"], &rotated["rotated_by"]), (&made["client_id"], &made["client_id"]));
    assert_eq!(
        (&rotated["rotated_at"], &rotated["old_valid_until"]),
        (&json!("2027-01-15T08:00:00Z"), &json!("2027-01-16T08:00:00Z"))
    );
    assert_ne!(rotated["client_secret"], made["client_secret"]);
    let token = async |made: &Value| agent.caller.form("/v1/oauth/token", &form_of(made)).await.status;
    agent.caller.get("/v1/services").await.expect(200);
    assert_eq!((token(&made).await, token(&rotated).await), (200, 200));
    agent.clock.advance(DAY);
    assert_eq!((token(&made).await, token(&rotated).await), (200, 200));
    agent.clock.advance(Duration::from_secs(1));
    assert_eq!((token(&made).await, token(&rotated).await), (401, 200));
    let shown = agent.caller.send(Method::GET, "/v1/cluster/credentials", &[RESCUE], "").await.expect(200);
    assert_eq!((&shown["version"], &shown["rotated_at"]), (&rotated["version"], &rotated["rotated_at"]));
    let again = agent.caller.send(Method::POST, ROTATE, &[RESCUE], "").await.expect(200);
    assert_eq!(again["rotated_by"], "recovery");
    assert_eq!((token(&made).await, token(&rotated).await, token(&again).await), (401, 200, 200));
}

#[tokio::test]
async fn the_recovery_token_mints_a_credential_where_none_is_left() {
    let suspended = Agent::expired_for(45).await;
    let mint = async |agent: &Agent| agent.caller.send(Method::POST, "/v1/credentials", &[RESCUE, JSON], "{}").await;
    let made = mint(&suspended).await.expect(201);
    assert_eq!(made["scopes"], json!(["urn:tillered:arctic:admin"]));
    with(&suspended.caller, &made).await.get("/v1/license").await.expect(200);

    let agent = Agent::bootstrapped().await;
    let only = client_of(agent.caller.token.as_deref().unwrap());
    let path = format!("/v1/credentials/{only}");
    agent.caller.send(Method::DELETE, &path, &[RESCUE], "").await.expect(200);
    assert_eq!(agent.caller.get("/v1/services").await.status, 401);
    assert_eq!(agent.caller.send(Method::GET, "/v1/cluster/credentials", &[RESCUE], "").await.status, 404);
    let made = mint(&agent).await.expect(201);
    with(&agent.caller, &made).await.get("/v1/services").await.expect(200);
}

async fn pair() -> (LiveAgent, LiveAgent) {
    let (a, b) = (LiveAgent::bootstrapped(1, 1).await, LiveAgent::bootstrapped(2, 1).await);
    a.caller.post("/v1/peers", json!({"endpoints": [b.caller.addr.to_string()]})).await.expect(201);
    for (node, other) in [(&a.node, &b), (&b.node, &a)] {
        let client = client_of(other.caller.token.as_deref().unwrap());
        until(|| node.store().read(|v| v.credential(client)).unwrap().is_some()).await;
    }
    (a, b)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_credential_is_revoked_and_rotated_from_any_agent() {
    let (a, b) = pair().await;
    let made = a.caller.post("/v1/credentials", json!({"scopes": ["services.read"]})).await.expect(201);
    let id: ClientId = made["client_id"].as_str().unwrap().parse().unwrap();
    until(|| b.node.store().read(|v| v.credential(id)).unwrap().is_some()).await;
    let client = with(&a.caller, &made).await;
    let elsewhere = Caller { addr: b.caller.addr, ..client.clone() };
    elsewhere.get("/v1/services").await.expect(200);
    b.caller.delete(&format!("/v1/credentials/{id}")).await.expect(200);
    for caller in [&client, &elsewhere] {
        assert_eq!(caller.get("/v1/services").await.refusal(), (401, "UNAUTHORIZED"));
    }

    let shared = a.caller.get("/v1/cluster/credentials").await.expect(200);
    until(|| b.node.cluster_view().converged && a.node.cluster_view().converged).await;
    assert_eq!(b.caller.get("/v1/cluster/credentials").await.expect(200), shared, "all members share one");
    let rotated = [&a.caller, &b.caller];
    for caller in rotated {
        let rotated = caller.post(ROTATE, json!({})).await.expect(200);
        assert_eq!(rotated["client_id"], shared["client_id"]);
        // Its caller reads what it wrote, also where another peer owns it.
        assert_eq!(caller.get("/v1/cluster/credentials").await.expect(200)["version"], rotated["version"]);
        caller.token_for(&form_of(&rotated)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_credential_of_an_agent_that_is_away_is_revoked_all_the_same() {
    let (a, b) = pair().await;
    let made = a.caller.post("/v1/credentials", json!({"scopes": ["services.read"]})).await.expect(201);
    let id: ClientId = made["client_id"].as_str().unwrap().parse().unwrap();
    until(|| b.node.store().read(|v| v.credential(id)).unwrap().is_some()).await;
    // As b writes it when it cannot reach a: a takes it over when it hears of it.
    let (author, issuer, now) = (b.node.identity().unwrap(), a.id(), b.node.env().clock.unix());
    let write = b.node.store().write(move |tx| membership::revoke_credential(tx, &author, issuer, id, now));
    write.await.map_err(|e: StoreError| e).unwrap();
    let key = crate::wire::record::RecordKey { kind: kind::CREDENTIAL.into(), id: id.to_string(), owner: a.id() };
    until(|| a.node.store().read(|v| v.record(&key)).unwrap().unwrap().deleted).await;

    let made = a.caller.post("/v1/credentials", json!({"scopes": ["services.read"]})).await.expect(201);
    let id: ClientId = made["client_id"].as_str().unwrap().parse().unwrap();
    until(|| b.node.store().read(|v| v.credential(id)).unwrap().is_some()).await;
    let token = b.caller.token_for(&form_of(&made)).await;
    let client = Caller { token: Some(token), ..b.caller.clone() };
    let a_addr = a.caller.addr;
    drop(a);
    until(|| std::net::TcpStream::connect(a_addr).is_err()).await;
    client.get("/v1/services").await.expect(200);
    b.caller.delete(&format!("/v1/credentials/{id}")).await.expect(200);
    assert_eq!(client.get("/v1/services").await.refusal(), (401, "UNAUTHORIZED"));
    assert_eq!(b.caller.form("/v1/oauth/token", &form_of(&made)).await.status, 401);
}

#[tokio::test]
async fn a_rotation_goes_by_whose_credential_it_is_and_what_it_grants_when_it_is_written() {
    let agent = Agent::bootstrapped().await;
    let (other, now, own) = (know_peer(&agent, 9, true).await, agent.clock.unix(), agent.node.identity().unwrap());
    let rotate = async |held: ScopeSet| {
        let own = own.clone();
        let secret = Secret::mint(&mut Rng::from_seed([3; 32]));
        agent.node.store().write(move |tx| rotate_own(tx, &own, &held, &secret, None, now)).await
    };
    let narrow = ScopeSet([crate::model::Scope::ServicesRead].into());
    assert_eq!(rotate(narrow).await.unwrap_err().code, Code::Forbidden);
    assert_eq!(rotate(ScopeSet::admin()).await.unwrap().issuer, own.peer_id);

    // What a merge commits between a caller's question and the write.
    let issuer = Author { peer_id: other, key: SigningKey::from_seed([9; 32]) };
    let at = UnixTime::from_secs(1);
    let mut rng = Rng::from_seed([4; 32]);
    let (cluster_id, client_id) = (ClusterId::mint(at, &mut rng), ClientId::mint(at, &mut rng));
    let born = ClusterBody { cluster_id, created_at: at, client_id, aliases: Vec::new() };
    let credential = agent.node.store().read::<_, StoreError>(|v| v.credentials()).unwrap().remove(0).1;
    let credential = crate::wire::record::CredentialBody { client_id, ..credential };
    let sign = |kind: &str, id: String, body: Value| {
        crate::wire::record::Record::sign(&issuer.key, other, kind, &id, 1, body).unwrap()
    };
    let records = [
        sign(kind::CLUSTER, cluster_id.to_string(), serde_json::to_value(&born).unwrap()),
        sign(kind::CREDENTIAL, client_id.to_string(), serde_json::to_value(&credential).unwrap()),
    ];
    let author = own.clone();
    let merge = agent.node.store().write(move |tx| membership::merge_records(tx, &author, &records));
    merge.await.map_err(|e: StoreError| e).unwrap();
    let refused = rotate(ScopeSet::admin()).await.unwrap_err();
    assert_eq!(refused.code, Code::Conflict, "{refused:?}");
}
