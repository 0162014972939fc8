//! Who may do what: tokens, scopes, license states, `api_access`, the recovery token, and the order of the checks.

use super::agent::{Agent, RECOVERY, license, terms, token_form};
use crate::{
    api::{
        endpoints::{Access, endpoints},
        token::tests::Forge,
    },
    model::ApiAccess,
};
use hyper::Method;
use serde_json::json;
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const JSON: (&str, &str) = ("content-type", "application/json");

#[tokio::test]
async fn errors_have_one_shape_and_every_answer_has_an_id() {
    let agent = Agent::bootstrapped().await;
    let caller = &agent.caller;
    let big = "x".repeat(70_000);
    let replies = [
        (caller.get("/v1/nothing").await, (404, "NOT_FOUND")),
        (caller.get("/v2").await, (404, "NOT_FOUND")),
        (caller.delete("/v1/bootstrap").await, (405, "METHOD_NOT_ALLOWED")),
        (caller.post_text("/v1/services", "{\"target_peer_id\": }").await, (400, "INVALID_REQUEST")),
        (caller.post("/v1/services", json!({"target": 1})).await, (400, "INVALID_REQUEST")),
        (caller.post("/v1/services", json!({})).await, (400, "MISSING_FIELD")),
        (caller.post_text("/v1/bootstrap", &big).await, (413, "PAYLOAD_TOO_LARGE")),
        (caller.get("/v1/peers?is_locla=true").await, (400, "INVALID_REQUEST")),
    ];
    for (reply, expected) in replies {
        assert_eq!(reply.refusal(), expected, "{}", reply.text);
        let id = reply.headers["x-request-id"].to_str().unwrap();
        assert!(id.starts_with("req_"));
        assert_eq!(reply.body["request_id"], id);
        assert_eq!(reply.headers["date"], "Fri, 15 Jan 2027 08:00:00 GMT");
        assert!(!reply.error().is_empty());
    }
    let malformed = caller.post_text("/v1/services", "{\"target_peer_id\": }").await;
    assert!(malformed.error().contains("line 1 column 20"), "{}", malformed.error());
    let typo = caller.post("/v1/services", json!({"target_peer": "x"})).await;
    assert!(typo.body["hint"].as_str().is_some(), "{}", typo.text);
    let typo = caller.post("/v1/services", json!({"target_per_id": "x"})).await;
    assert!(typo.error().contains("did you mean `target_peer_id`"), "{}", typo.text);
    let live = caller.get("/livez").await;
    assert!(live.headers.contains_key("x-request-id"));
}

/// security.md row 15: what is too large is refused before it is held.
#[tokio::test]
async fn heads_and_bodies_are_bounded() {
    let agent = Agent::new().await;
    let head = format!("GET /livez HTTP/1.1\r\nhost: x\r\nx-filler: {}\r\n\r\n", "a".repeat(20_000));
    assert!(raw(&agent, head.as_bytes()).await.starts_with("HTTP/1.1 431"));
    let many = (0..2_000).map(|n| format!("h{n}: 1\r\n")).collect::<String>();
    assert!(raw(&agent, format!("GET /livez HTTP/1.1\r\n{many}\r\n").as_bytes()).await.starts_with("HTTP/1.1 431"));
    // No length is declared; the limit still holds.
    let chunk = format!("{:x}\r\n{}\r\n", 60_000, "x".repeat(60_000));
    let head = "POST /v1/bootstrap HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    let answer = raw(&agent, format!("{head}{chunk}{chunk}").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("PAYLOAD_TOO_LARGE"), "{answer}");
    let declared = "POST /v1/bootstrap HTTP/1.1\r\nhost: x\r\ncontent-length: 1073741824\r\n\r\n";
    assert!(raw(&agent, declared.as_bytes()).await.starts_with("HTTP/1.1 413"));
    for garbage in ["GET\r\n\r\n", "\u{0}\u{1}\u{2}\r\n\r\n", "GET / HTTP/9.9\r\n\r\n"] {
        drop(raw(&agent, garbage.as_bytes()).await);
    }
    let nested = format!("{{\"license\":{}", "[".repeat(50_000));
    assert_eq!(agent.caller.post_text("/v1/bootstrap", &nested).await.refusal(), (400, "INVALID_REQUEST"));
    agent.caller.get("/livez").await.expect(200);
}

/// Sends bytes, then reads what comes within five seconds or until the end.
async fn raw(agent: &Agent, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(agent.caller.addr).await.unwrap();
    // An agent that has refused reads no further.
    drop(stream.write_all(bytes).await);
    let mut answer = vec![0; 4096];
    let read = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut answer)).await;
    let length = read.map_or(0, |r| r.unwrap_or(0));
    String::from_utf8_lossy(&answer[..length]).into_owned()
}

/// security.md row 16: a page in the operator's browser can send none of these without a preflight, which nothing answers.
#[tokio::test]
async fn web_pages_cannot_post() {
    let agent = Agent::bootstrapped().await;
    let bearer = format!("Bearer {}", agent.caller.token.clone().unwrap());
    let origin = ("origin", "http://evil.example");
    for media in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""] {
        for path in ["/v1/services", "/v1/peers", "/v1/bootstrap"] {
            let headers = [("content-type", media), ("authorization", bearer.as_str()), origin];
            let reply = agent.caller.send(Method::POST, path, &headers, "{}").await;
            assert_eq!(reply.refusal(), (415, "UNSUPPORTED_MEDIA_TYPE"), "{media} {path}");
            assert!(!reply.headers.keys().any(|k| k.as_str().starts_with("access-control")));
        }
    }
    let preflight = [origin, ("access-control-request-method", "POST")];
    let reply = agent.caller.send(Method::OPTIONS, "/v1/services", &preflight, "").await;
    assert_eq!(reply.status, 405);
    assert!(!reply.headers.keys().any(|k| k.as_str().starts_with("access-control")));
}

#[tokio::test]
async fn every_endpoint_asks_for_its_proof() {
    let agent = Agent::bootstrapped().await;
    for endpoint in endpoints() {
        let path = endpoint.path.replace("{id}", "peer_x").replace("{sid}", "svc_x").replace("{rid}", "1");
        let reply = agent.caller.send(endpoint.method.clone(), &path, &[JSON], "{}").await;
        let open = matches!(endpoint.access, Access::Public | Access::PublicUnlessInternal | Access::Login);
        assert_eq!(reply.status == 401, !open, "{} {path}: {}", endpoint.method, reply.text);
        if !open {
            assert_eq!(reply.headers["www-authenticate"], "Bearer");
        }
    }
}

// accepts: 000-49, 002-01
#[tokio::test]
async fn a_token_does_what_its_scopes_allow() {
    let mut agent = Agent::new().await;
    let made = agent.caller.bootstrap(license(terms(1))).await;
    let form = token_form(made["client_id"].as_str().unwrap(), made["client_secret"].as_str().unwrap());
    let scoped = async |scope: &str| {
        let token = agent.caller.token_for(&format!("{form}&scope={scope}")).await;
        super::agent::Caller { token: Some(token), ..agent.caller.clone() }
    };
    let reader = scoped("services.read+peers.read").await;
    reader.get("/v1/services").await.expect(200);
    reader.get("/v1/peers").await.expect(200);
    reader.get("/v1/license").await.expect(200);
    let refused = reader.post("/v1/services", json!({"target_peer_id": "x"})).await;
    assert_eq!(refused.refusal(), (403, "FORBIDDEN"));
    assert!(refused.error().contains("urn:tillered:arctic:services.write"), "{}", refused.error());
    assert_eq!(reader.delete("/v1/peers/peer_x").await.refusal(), (403, "FORBIDDEN"));
    assert_eq!(reader.post("/v1/cluster/sync", json!({})).await.refusal(), (403, "FORBIDDEN"));
    let writer = scoped("services.write").await;
    writer.get("/v1/services").await.expect(200);
    assert_eq!(writer.post("/v1/services", json!({})).await.refusal(), (400, "MISSING_FIELD"));
    assert_eq!(writer.get("/v1/peers").await.refusal(), (403, "FORBIDDEN"));
}

// accepts: 000-49
#[tokio::test]
async fn forged_and_expired_tokens_are_401() {
    let agent = Agent::bootstrapped().await;
    let token = agent.caller.token.clone().unwrap();
    let forge = Forge {
        author: (*agent.node.identity().unwrap()).clone(),
        cluster: agent.node.store().read(|v| v.cluster()).unwrap().unwrap().cluster_id,
        client: super::agent::client_of(&token),
        now: crate::env::Clock::unix(&*agent.clock),
    };
    let get = async |authorization: &str| {
        let headers = [("authorization", authorization)];
        agent.caller.send(Method::GET, "/v1/services", &headers, "").await
    };
    assert_eq!(get(&format!("Bearer {token}")).await.status, 200);
    for (name, forged) in forge.corpus() {
        assert_eq!(get(&format!("Bearer {forged}")).await.status, 401, "{name}");
    }
    for header in ["Bearer", "Basic abc", &token, &format!("Bearer {token} x"), &format!("Token {token}")] {
        assert_eq!(get(header).await.status, 401, "{header}");
    }
    agent.clock.advance(Duration::from_secs(3629));
    assert_eq!(get(&format!("Bearer {token}")).await.status, 200);
    agent.clock.advance(Duration::from_secs(1));
    assert_eq!(get(&format!("Bearer {token}")).await.refusal(), (401, "TOKEN_EXPIRED"));
}

#[tokio::test]
async fn tokens_die_with_their_credential() {
    let agent = Agent::bootstrapped().await;
    let client = super::agent::client_of(agent.caller.token.as_deref().unwrap());
    let author = agent.node.identity().unwrap();
    agent.caller.get("/v1/services").await.expect(200);
    let delete = agent
        .node
        .store()
        .write(move |tx| tx.delete_own(&author, crate::wire::record::kind::CREDENTIAL, &client.to_string()));
    delete.await.map_err(|e: crate::store::StoreError| e).unwrap();
    assert_eq!(agent.caller.get("/v1/services").await.refusal(), (401, "UNAUTHORIZED"));
}

// accepts: 003-14, 003-16
#[tokio::test]
async fn license_states_open_and_close_endpoints() {
    let wish = || json!({"target_peer_id": "peer_x"});
    let grace = Agent::expired_for(1).await;
    assert_eq!(grace.caller.post("/v1/services", wish()).await.refusal(), (404, "NOT_FOUND"));
    let reply = grace.caller.get("/v1/services").await;
    assert_eq!((reply.status, &reply.headers["x-arctic-license-state"]), (200, &"grace_period".parse().unwrap()));

    let read_only = Agent::expired_for(15).await;
    let refused = read_only.caller.post("/v1/services", wish()).await;
    assert_eq!(refused.refusal(), (403, "LICENSE_READ_ONLY"));
    assert!(refused.body["hint"].as_str().unwrap().contains("arctic license update"));
    for path in ["/v1/peers", "/v1/services/svc_x/routes"] {
        assert_eq!(read_only.caller.post(path, json!({})).await.refusal(), (403, "LICENSE_READ_ONLY"), "{path}");
    }
    for path in ["/v1/peers/peer_x", "/v1/services/svc_x", "/v1/services/svc_x/routes/1"] {
        assert_eq!(read_only.caller.delete(path).await.refusal(), (403, "LICENSE_READ_ONLY"), "{path}");
    }
    read_only.caller.get("/v1/peers").await.expect(200);

    let suspended = Agent::expired_for(45).await;
    for path in ["/v1/services", "/v1/peers", "/v1/cluster/status", "/.well-known/jwks.json"] {
        assert_eq!(suspended.caller.get(path).await.refusal(), (403, "LICENSE_SUSPENDED"), "{path}");
    }
    assert_eq!(suspended.caller.get("/v1/license").await.expect(200)["state"], "suspended");
    suspended.caller.get("/livez").await.expect(200);
    suspended.caller.get("/v1/cluster/identity").await.expect(200);
    assert_eq!(suspended.caller.get("/readyz?exclude=network,firewall,tproxy,iptun").await.status, 503);
    let init = suspended.caller.post("/v1/handshake/init", json!({})).await;
    assert_eq!((init.refusal(), init.error()), ((403, "LICENSE_SUSPENDED"), "handshake failed: license suspended"));
    // The recovery token opens everything but making and changing.
    let recovery = [("x-arctic-recovery", RECOVERY), JSON];
    let send = async |method, path, body: &'static str| suspended.caller.send(method, path, &recovery, body).await;
    send(Method::GET, "/v1/services", "").await.expect(200);
    assert_eq!(send(Method::POST, "/v1/services", "{}").await.refusal(), (403, "LICENSE_SUSPENDED"));
}

/// One request that everything is wrong with, mended step by step, meets the checks in the order of api.md §1.
#[tokio::test]
async fn checks_come_in_order() {
    let suspended = Agent::expired_for(45).await;
    let path = "/v1/handshake/init";
    let (huge, form) = ("x".repeat(65_537), ("content-type", "text/plain"));
    for _ in 0..30 {
        suspended.caller.send(Method::POST, path, &[form], "").await;
    }
    let size = suspended.caller.send(Method::POST, path, &[form], huge).await;
    assert_eq!(size.refusal(), (413, "PAYLOAD_TOO_LARGE"));
    let rate = suspended.caller.send(Method::POST, path, &[form], "").await;
    assert_eq!(rate.refusal(), (429, "RATE_LIMITED"));
    suspended.clock.advance(Duration::from_secs(1));
    let licensed = suspended.caller.send(Method::POST, path, &[form], "").await;
    assert_eq!(licensed.refusal(), (403, "LICENSE_SUSPENDED"));
    let unproven = suspended.caller.send(Method::POST, "/v1/services", &[form], "").await;
    assert_eq!(unproven.refusal(), (403, "LICENSE_SUSPENDED"));

    let mut agent = Agent::new().await;
    let made = agent.caller.bootstrap(license(terms(1))).await;
    let credentials = token_form(made["client_id"].as_str().unwrap(), made["client_secret"].as_str().unwrap());
    let reader = agent.caller.token_for(&format!("{credentials}&scope=services.read")).await;
    let admin = agent.caller.token.clone().unwrap();
    let mut agent = agent.restarted(|c| c.api_access = ApiAccess::Internal).await;
    let post = async |agent: &Agent, token: &str, body: &'static str| {
        let bearer = format!("Bearer {token}");
        let headers = [("authorization", bearer.as_str()), JSON];
        agent.caller.send(Method::POST, "/v1/services", &headers, body).await
    };
    assert_eq!(post(&agent, "forged", "{").await.refusal(), (401, "UNAUTHORIZED"));
    assert_eq!(post(&agent, &reader, "{").await.refusal(), (403, "API_ACCESS_INTERNAL"));
    agent = agent.restarted(|_| {}).await;
    assert_eq!(post(&agent, &reader, "{").await.refusal(), (403, "FORBIDDEN"));
    assert_eq!(post(&agent, &admin, "{").await.refusal(), (400, "INVALID_REQUEST"));
    let without_feature = r#"{"target_peer_id":"peer_x","transport_type":"kcp"}"#;
    assert_eq!(post(&agent, &admin, without_feature).await.refusal(), (404, "NOT_FOUND"));
}

#[tokio::test]
async fn an_internal_agent_takes_only_the_recovery_token() {
    let agent = Agent::with(|c| c.api_access = ApiAccess::Internal).await;
    let made = agent.caller.post("/v1/bootstrap", json!({"license": license(terms(1))})).await.expect(201);
    let form = token_form(made["client_id"].as_str().unwrap(), made["client_secret"].as_str().unwrap());
    assert_eq!(agent.caller.form("/v1/oauth/token", &form).await.refusal(), (403, "API_ACCESS_INTERNAL"));
    agent.caller.get("/readyz?exclude=network,firewall,tproxy,iptun").await.expect(200);
    agent.caller.get("/v1/cluster/identity").await.expect(200);
    let get =
        async |token: &str| agent.caller.send(Method::GET, "/v1/peers", &[("x-arctic-recovery", token)], "").await;
    get(RECOVERY).await.expect(200);
    for _ in 0..5 {
        assert_eq!(get("wrong").await.refusal(), (401, "UNAUTHORIZED"));
    }
    assert_eq!(get("wrong").await.refusal(), (429, "RATE_LIMITED"));
    assert_eq!(get(RECOVERY).await.refusal(), (429, "RATE_LIMITED"));
    agent.clock.advance(Duration::from_secs(12));
    get(RECOVERY).await.expect(200);
}
