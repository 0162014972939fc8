//! First-peer proxying (api.md §2) and what an internal agent takes (cluster.md §10).

use super::{
    agent::{LiveAgent, RECOVERY, Reply, client_of},
    peers_only::until,
};
use crate::api::endpoints::{Access, Endpoint, endpoints};
use hyper::Method;
use serde_json::{Value, json};

const JSON: (&str, &str) = ("content-type", "application/json");
const RESCUE: (&str, &str) = ("x-arctic-recovery", RECOVERY);

/// Two agents of one cluster that know each other's credentials.
async fn joined(a: LiveAgent, b: LiveAgent) -> (LiveAgent, LiveAgent) {
    a.caller.post("/v1/peers", json!({"endpoints": [b.caller.addr.to_string()]})).await.expect(201);
    let client = client_of(a.caller.token.as_deref().unwrap());
    until(|| b.node.store().read(|v| v.credential(client)).unwrap().is_some()).await;
    (a, b)
}

async fn public_pair() -> (LiveAgent, LiveAgent) {
    joined(LiveAgent::bootstrapped(1, 1).await, LiveAgent::bootstrapped(2, 1).await).await
}

/// Asks `first` for what `target` is to do, with the token of `first`.
async fn through(first: &LiveAgent, target: &str, method: Method, path: &str, body: Value) -> Reply {
    through_with(first, target, (method, path), &[], body).await
}

async fn through_with(
    first: &LiveAgent,
    target: &str,
    (method, path): (Method, &str),
    more: &[(&str, &str)],
    body: Value,
) -> Reply {
    let bearer = format!("Bearer {}", first.caller.token.as_deref().unwrap());
    let mut headers = vec![("authorization", bearer.as_str()), ("x-arctic-target-peer", target), JSON];
    headers.extend(more);
    let body = if body.is_null() { String::new() } else { body.to_string() };
    first.caller.send(method, path, &headers, body).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_peer_brings_the_answer_of_the_named_one_unchanged() {
    let (a, b) = public_pair().await;
    let (a_id, b_id) = (a.id().to_string(), b.id().to_string());
    let status = through(&a, &b_id, Method::GET, "/v1/cluster/status", Value::Null).await;
    assert_eq!(status.headers["x-arctic-via"], a_id.as_str());
    assert_eq!(status.headers["x-arctic-peer"], b_id.as_str());
    assert_eq!(status.expect(200)["local_peer_id"], b_id);
    for path in ["/v1/cluster/identity", "/livez"] {
        let probe = through(&a, &b_id, Method::GET, path, Value::Null).await;
        assert_eq!((probe.status, &probe.headers["x-arctic-peer"]), (200, &b_id.parse().unwrap()), "{path}");
    }

    // The called agent is the source by default, and here that is the target.
    let made = through(&a, &b_id, Method::POST, "/v1/services", json!({ "target_peer_id": a_id })).await.expect(201);
    assert_eq!(made["source_peer_id"], b_id);
    let path = format!("/v1/services/{}", made["id"].as_str().unwrap());
    let of_b = format!("{path}?dry_run=true");
    let stale = through_with(&a, &b_id, (Method::DELETE, &of_b), &[("if-match", "99999")], Value::Null).await;
    assert_eq!(stale.refusal(), (409, "CONFLICT"), "query and condition travel");
    let refused = through(&a, &b_id, Method::POST, "/v1/services", json!({})).await;
    assert_eq!(refused.refusal(), (400, "MISSING_FIELD"));
    assert_eq!(refused.body["request_id"], refused.headers["x-request-id"].to_str().unwrap());
    assert_eq!(through(&a, &b_id, Method::DELETE, &path, Value::Null).await.status, 204);

    let own = through(&a, &a_id, Method::GET, "/v1/cluster/status", Value::Null).await;
    assert!(!own.headers.contains_key("x-arctic-via"));
    assert_eq!(own.expect(200)["local_peer_id"], a_id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_travels_one_hop_and_only_where_it_may() {
    let (a, b) = public_pair().await;
    let (a_id, b_id) = (a.id().to_string(), b.id().to_string());
    let get = async |target: &str, more: &[(&str, &str)]| {
        through_with(&a, target, (Method::GET, "/v1/services"), more, Value::Null).await
    };
    assert_eq!(get("peer_01ARZ3NDEKTSV4RRFFQ69G5FAV", &[]).await.refusal(), (404, "NOT_FOUND"));
    assert_eq!(get("tokyo", &[]).await.refusal(), (400, "INVALID_REQUEST"));
    let rescue = get(&b_id, &[RESCUE]).await;
    assert_eq!(rescue.refusal(), (403, "FORBIDDEN"));
    assert!(rescue.error().contains("own agent"), "{}", rescue.text);
    assert_eq!(get(&a_id, &[RESCUE]).await.status, 200);
    let headers = [("x-arctic-target-peer", b_id.as_str())];
    for path in ["/v1/services", "/livez"] {
        let anonymous = a.caller.send(Method::GET, path, &headers, "").await;
        assert_eq!(anonymous.refusal(), (401, "UNAUTHORIZED"), "{path}");
    }
    let bearer = format!("Bearer {}", a.caller.token.as_deref().unwrap());
    let plain = [("authorization", bearer.as_str()), headers[0], ("content-type", "text/plain")];
    let plain = a.caller.send(Method::POST, "/v1/services", &plain, "{}").await;
    assert_eq!(plain.status, 415, "web pages cannot post through an agent either: {}", plain.text);

    // An object of the first peer, asked of the second: a second hop would lead back.
    let made = a.caller.post("/v1/services", json!({ "target_peer_id": b_id })).await.expect(201);
    let id: crate::model::ServiceId = made["id"].as_str().unwrap().parse().unwrap();
    until(|| b.node.store().read(|v| v.service(id)).unwrap().is_some()).await;
    let again = through(&a, &b_id, Method::DELETE, &format!("/v1/services/{id}"), Value::Null).await;
    assert_eq!(again.refusal(), (409, "CONFLICT"));
    assert!(again.body["hint"].as_str().unwrap().contains("--peer"), "{}", again.text);

    let b_addr = b.caller.addr;
    drop(b);
    until(|| std::net::TcpStream::connect(b_addr).is_err()).await;
    assert_eq!(get(&b_id, &[]).await.refusal(), (422, "PEER_UNREACHABLE"));
}

/// An endpoint with ids that look right, and a body that is wrong.
pub(super) fn path_of(endpoint: &Endpoint) -> String {
    endpoint.path.replace("{id}", "peer_x").replace("{sid}", "svc_x").replace("{rid}", "1").replace("{cid}", "cli_x")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_operator_endpoint_is_proxied_and_nothing_else() {
    let (a, b) = public_pair().await;
    let b_id = b.id().to_string();
    for endpoint in endpoints() {
        let name = format!("{} {}", endpoint.method, endpoint.path);
        if ["/v1/peers/self", "/v1/cluster/init"].contains(&endpoint.path) {
            continue; // These end the pair.
        }
        let reply = through(&a, &b_id, endpoint.method.clone(), &path_of(&endpoint), json!({"no": 1})).await;
        let operators = endpoint.is_operators();
        let probes = ["/livez", "/readyz", "/v1/cluster/identity"].contains(&endpoint.path);
        assert_eq!(reply.headers.contains_key("x-arctic-via"), operators || probes, "{name}: {}", reply.text);
        if !operators && !probes {
            assert_eq!(reply.status, 400, "{name}: {}", reply.text);
            assert!(reply.error().contains("not proxied"), "{name}: {}", reply.text);
        }
    }
}

/// cluster.md §10, for every endpoint of the table and every way to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_internal_agent_serves_peers_and_refuses_operators_by_every_way() {
    let (a, b) = joined(LiveAgent::bootstrapped(1, 1).await, LiveAgent::internal(2, 1).await).await;
    let b_id = b.id().to_string();
    let token_of_a = format!("Bearer {}", a.caller.token.as_deref().unwrap());
    for endpoint in endpoints() {
        let name = format!("{} {}", endpoint.method, endpoint.path);
        let path = path_of(&endpoint);
        let direct = b
            .caller
            .send(endpoint.method.clone(), &path, &[("authorization", token_of_a.as_str()), JSON], "{\"no\": 1}")
            .await;
        let operators = !matches!(endpoint.access, Access::Public | Access::PublicUnlessInternal | Access::Peer);
        assert_eq!(direct.refusal().1 == "API_ACCESS_INTERNAL", operators, "direct {name}: {}", direct.text);
        assert_eq!(operators, direct.status == 403, "direct {name}: {}", direct.text);
        if !operators || endpoint.access == Access::Login {
            continue;
        }
        let proxied = through(&a, &b_id, endpoint.method.clone(), &path, json!({"no": 1})).await;
        assert_eq!(proxied.refusal(), (403, "API_ACCESS_INTERNAL"), "proxied {name}: {}", proxied.text);
        assert_eq!(proxied.headers["x-arctic-via"], a.id().to_string().as_str());
        if endpoint.method == Method::GET {
            let rescued = b.caller.send(Method::GET, &path, &[RESCUE], "").await;
            assert!(rescued.status == 200 || rescued.status == 404, "recovery {name}: {}", rescued.text);
        }
    }
    // The recovery token opens writes as well.
    let rescued = b.caller.send(Method::POST, "/v1/services", &[RESCUE, JSON], "{}").await;
    assert_eq!(rescued.refusal(), (400, "MISSING_FIELD"));

    // What peers need of it works: the write of an object that it owns, and gossip, which brings the copy back.
    let wish = json!({"target_peer_id": a.id(), "source_peer_id": b.id()});
    let made = a.caller.post("/v1/services", wish).await.expect(201);
    let id = made["id"].as_str().unwrap();
    let copied = id.parse().unwrap();
    until(|| a.node.store().read(|v| v.service(copied)).unwrap().is_some()).await;
    assert_eq!(a.caller.delete(&format!("/v1/services/{id}")).await.status, 204);
    until(|| a.node.cluster_view().converged && b.node.cluster_view().converged).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_of_the_owner_carries_the_id_of_the_answer_that_brings_it() {
    let (a, b) = public_pair().await;
    let wish = json!({"target_peer_id": b.id(), "source_peer_id": b.id()});
    let refused = a.caller.post("/v1/services", wish).await;
    assert_eq!(refused.refusal(), (400, "INVALID_REQUEST"));
    assert_eq!(refused.body["request_id"], refused.headers["x-request-id"].to_str().unwrap());
    assert_eq!(refused.headers["x-arctic-peer"], a.id().to_string().as_str());
}
