//! Before and during bootstrap; tokens.

use super::agent::{Agent, START, license, terms, token_form};
use crate::{api::endpoints::endpoints, license::LicenseDocument, model::SigningKey};
use base64::{Engine, engine::general_purpose::STANDARD};
use hyper::Method;
use serde_json::json;
use std::time::Duration;

fn concrete(path: &str) -> String {
    path.replace("{id}", "peer_x").replace("{sid}", "svc_x").replace("{rid}", "1")
}

// accepts: 000-10, 001-53
#[tokio::test]
async fn before_bootstrap_only_the_listed_endpoints_answer() {
    let agent = Agent::new().await;
    let live = agent.caller.get("/livez").await;
    assert!(live.status == 200 && live.text.starts_with(r#"{"status":"ok","timestamp":"#), "{}", live.text);
    let ready = agent.caller.get("/readyz").await;
    assert_eq!(ready.status, 503);
    assert!(ready.text.contains("not bootstrapped"));
    let identity = agent.caller.get("/v1/cluster/identity").await.expect(200);
    let version = crate::model::VERSION;
    assert_eq!(
        identity,
        json!({"peer_id": "", "public_key": "", "license_id": "", "cluster_id": "", "version": version})
    );
    for endpoint in endpoints().iter().filter(|e| !e.before_bootstrap) {
        let reply = agent.caller.send(endpoint.method.clone(), &concrete(endpoint.path), &[], "").await;
        assert_eq!(reply.refusal(), (409, "NOT_BOOTSTRAPPED"), "{} {}", endpoint.method, endpoint.path);
    }
}

// accepts: 000-06, 000-08, 000-14, 000-38, 001-54
#[tokio::test]
async fn bootstrap_gives_the_secret_once_and_only_one_call_wins() {
    let agent = Agent::new().await;
    let body = json!({"license": license(terms(1)), "name": "new-agent"});
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (caller, body) = (agent.caller.clone(), body.clone());
        calls.spawn(async move { caller.post("/v1/bootstrap", body).await });
    }
    let replies = calls.join_all().await;
    let (won, lost): (Vec<_>, Vec<_>) = replies.iter().partition(|r| r.status == 201);
    assert_eq!(won.len(), 1);
    assert!(lost.iter().all(|r| r.refusal() == (409, "ALREADY_BOOTSTRAPPED")));
    let made = &won[0].body;
    assert_eq!(won[0].headers["cache-control"], "no-store");
    for (field, prefix) in
        [("peer_id", "peer_"), ("client_id", "cli_"), ("client_secret", "sec_"), ("cluster_id", "clu_")]
    {
        assert!(made[field].as_str().unwrap().starts_with(prefix), "{field}");
    }
    assert_eq!((made["max_nodes"].as_u64(), made["max_services"].as_u64()), (Some(3), Some(2)));
    let identity = agent.caller.get("/v1/cluster/identity").await.expect(200);
    assert_eq!(identity["peer_id"], made["peer_id"]);
    assert_eq!(identity["public_key"], made["peer_public_key"]);
    assert_eq!(identity["license_id"], made["license_id"]);
    assert_eq!(identity.as_object().unwrap().len(), 5);
    assert_eq!(agent.caller.get("/readyz").await.status, 503, "no reconciler runs in this test");
    agent.caller.get("/readyz?exclude=network,firewall,tproxy,iptun").await.expect(200);
}

#[tokio::test]
async fn bad_licenses_do_not_bootstrap() {
    let agent = Agent::new().await;
    let post = async |body| agent.caller.post("/v1/bootstrap", body).await;
    let mut changed = license(terms(1));
    changed["max_nodes"] = json!(4);
    assert_eq!(post(json!({ "license": changed })).await.refusal(), (422, "LICENSE_INVALID"));
    let stranger = LicenseDocument::issue(&SigningKey::from_seed([13; 32]), terms(1)).unwrap();
    assert_eq!(post(json!({ "license": stranger.as_value() })).await.refusal(), (422, "LICENSE_INVALID"));
    let mut old = terms(1);
    (old.issued_at, old.expires_at) =
        (START.minus(Duration::from_secs(9 << 20)), START.minus(Duration::from_secs(2 << 20)));
    assert_eq!(post(json!({ "license": license(old) })).await.refusal(), (422, "LICENSE_EXPIRED"));
    assert_eq!(post(json!({})).await.refusal(), (400, "MISSING_FIELD"));
    assert_eq!(post(json!({"license": license(terms(1)), "nmae": "x"})).await.refusal(), (400, "INVALID_REQUEST"));
    let twice = license(terms(1)).to_string().replacen("\"max_nodes\":3", "\"max_nodes\":9,\"max_nodes\":3", 1);
    let twice = agent.caller.post_text("/v1/bootstrap", &twice).await;
    assert_eq!(twice.refusal(), (400, "INVALID_REQUEST"));
    assert_eq!(agent.caller.form("/v1/bootstrap", "license=x").await.refusal(), (415, "UNSUPPORTED_MEDIA_TYPE"));
    assert_eq!(agent.caller.get("/v1/cluster/identity").await.expect(200)["peer_id"], "");
    post(license(terms(1))).await.expect(201);
}

// accepts: 000-13
#[tokio::test]
async fn a_token_comes_for_the_right_secret_only() {
    let mut agent = Agent::new().await;
    let made = agent.caller.bootstrap(license(terms(1))).await;
    let (id, secret) = (made["client_id"].as_str().unwrap(), made["client_secret"].as_str().unwrap());
    let form = |text: String| {
        let caller = agent.caller.clone();
        async move { caller.form("/v1/oauth/token", &text).await }
    };
    let granted = form(token_form(id, secret)).await;
    assert_eq!(granted.headers["cache-control"], "no-store");
    let granted = granted.expect(200);
    assert_eq!((&granted["token_type"], &granted["expires_in"]), (&json!("Bearer"), &json!(3600)));
    assert_eq!(granted["scope"], "urn:tillered:arctic:admin");
    let narrow = form(format!("{}&scope=peers.read", token_form(id, secret))).await.expect(200);
    assert_eq!(narrow["scope"], "urn:tillered:arctic:peers.read");

    let wrong = form(token_form(id, "sec_wrong")).await;
    let unknown = form(token_form("cli_01ARZ3NDEKTSV4RRFFQ69G5FAV", secret)).await;
    assert_eq!((wrong.refusal(), unknown.refusal()), ((401, "UNAUTHORIZED"), (401, "UNAUTHORIZED")));
    assert_eq!(wrong.error(), unknown.error());
    assert_eq!(form(token_form("", "")).await.refusal(), (401, "UNAUTHORIZED"));
    assert_eq!(form(format!("client_id={id}&client_secret={secret}")).await.refusal(), (400, "MISSING_FIELD"));
    let grant = form(token_form(id, secret).replace("client_credentials", "password")).await;
    assert_eq!(grant.refusal(), (400, "INVALID_REQUEST"));
    let json_body = agent.caller.post("/v1/oauth/token", json!({"grant_type": "client_credentials"})).await;
    assert_eq!(json_body.refusal(), (415, "UNSUPPORTED_MEDIA_TYPE"));

    let basic = format!("Basic {}", STANDARD.encode(format!("{id}:{secret}")));
    let headers = [("content-type", "application/x-www-form-urlencoded"), ("authorization", basic.as_str())];
    let by_basic = agent.caller.send(Method::POST, "/v1/oauth/token", &headers, "grant_type=client_credentials").await;
    by_basic.expect(200);
}

#[tokio::test]
async fn token_requests_are_counted_per_source() {
    let agent = Agent::bootstrapped().await;
    agent.clock.advance(Duration::from_secs(60));
    for _ in 0..30 {
        assert_eq!(agent.caller.form("/v1/oauth/token", &token_form("cli_x", "y")).await.status, 401);
    }
    let limited = agent.caller.form("/v1/oauth/token", &token_form("cli_x", "y")).await;
    assert_eq!((limited.refusal(), &limited.headers["retry-after"]), ((429, "RATE_LIMITED"), &"1".parse().unwrap()));
    agent.clock.advance(Duration::from_millis(100));
    assert_eq!(agent.caller.form("/v1/oauth/token", &token_form("cli_x", "y")).await.status, 401);
}

#[tokio::test]
async fn published_keys_are_those_of_trusted_peers() {
    let agent = Agent::bootstrapped().await;
    let keys = agent.caller.get("/.well-known/jwks.json").await.expect(200);
    let key = &keys["keys"][0];
    assert_eq!(
        (key["kty"].as_str(), key["crv"].as_str(), key["alg"].as_str()),
        (Some("OKP"), Some("Ed25519"), Some("EdDSA"))
    );
    assert_eq!(key["kid"], agent.node.identity().unwrap().peer_id.to_string());
    let found = agent.caller.get("/.well-known/openid-configuration").await.expect(200);
    assert_eq!(found["token_endpoint"], format!("http://{}/v1/oauth/token", agent.caller.addr));
}
