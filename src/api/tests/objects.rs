//! Peers, services, routes, cluster and license of one agent.

use super::agent::{Agent, Reply, license, terms};
use crate::{
    env::Clock,
    license::Features,
    model::{PeerId, Rng, SigningKey},
    store::{PeerRow, StoreError},
};
use hyper::Method;
use serde_json::{Value, json};

/// Another peer in the books of `agent`.
pub(super) async fn know_peer(agent: &Agent, seed: u8, trusted: bool) -> PeerId {
    let now = agent.clock.unix();
    let id = PeerId::mint(now, &mut Rng::from_seed([seed; 32]));
    let endpoint = format!("tokyo-{seed}").parse().unwrap();
    let mut row = PeerRow::trusted(id, SigningKey::from_seed([seed; 32]).public(), vec![endpoint], now);
    row.trusted = trusted;
    row.local_name = Some(format!("tokyo-{seed}"));
    agent.node.store().write(move |tx| tx.put_peer(&row)).await.map_err(|e: StoreError| e).unwrap();
    id
}

// accepts: 000-23, 000-24, 000-48
#[tokio::test]
async fn peers_are_listed_and_the_local_one_stays() {
    let agent = Agent::bootstrapped().await;
    let other = know_peer(&agent, 9, false).await;
    let own_id = agent.node.identity().unwrap().peer_id.to_string();
    let all = agent.caller.get("/v1/peers").await.expect(200);
    assert_eq!(all["peers"].as_array().unwrap().len(), 2);
    let local = agent.caller.get("/v1/peers?is_local=true").await.expect(200);
    let local = &local["peers"][0];
    assert_eq!((&local["id"], &local["is_local"], &local["status"]), (&json!(own_id), &json!(true), &json!("healthy")));
    assert_eq!((&local["name"], &local["qos_enabled"]), (&json!("london"), &json!(true)));
    let remote = agent.caller.get("/v1/peers?is_local=false&status=discovered").await.expect(200);
    assert_eq!(remote["peers"][0]["id"], other.to_string());
    assert_eq!(remote["peers"][0]["is_local"], false);
    assert_eq!(remote["peers"][0]["address"], remote["peers"][0]["endpoints"][0]);
    assert_eq!(agent.caller.get("/v1/peers?status=well").await.refusal(), (400, "INVALID_REQUEST"));

    agent.caller.get(&format!("/v1/peers/{own_id}")).await.expect(200);
    let bare = own_id.replace("peer_", "");
    agent.caller.get(&format!("/v1/peers/{bare}")).await.expect(200);
    for unknown in ["peer_01ARZ3NDEKTSV4RRFFQ69G5FAV", "x", "%00", "%ff", "self'--"] {
        assert_eq!(agent.caller.get(&format!("/v1/peers/{unknown}")).await.refusal(), (404, "NOT_FOUND"), "{unknown}");
        assert_eq!(agent.caller.delete(&format!("/v1/peers/{unknown}")).await.refusal(), (404, "NOT_FOUND"));
    }
    let refused = agent.caller.delete(&format!("/v1/peers/{own_id}")).await;
    assert_eq!(refused.refusal(), (400, "INVALID_REQUEST"));
    assert_eq!(refused.error(), "cannot delete local peer (use 'arctic peers remove-self' instead)");
}

#[tokio::test]
async fn peers_add_refuses_bad_input_and_itself() {
    let agent = Agent::with(|c| {
        c.advertise_endpoints = vec!["london.example:8080".parse().unwrap()];
        c.api_bind.set_port(8081);
    })
    .await;
    let mut agent = agent;
    agent.caller.bootstrap(license(terms(1))).await;
    let add = async |body: Value| agent.caller.post("/v1/peers", body).await;
    assert_eq!(add(json!({})).await.refusal(), (400, "MISSING_FIELD"));
    for own in ["london.example", "127.0.0.1:8081", "localhost:8081", "[::1]:8081"] {
        let refused = add(json!({"endpoints": ["other:1", own]})).await;
        assert_eq!(refused.refusal(), (400, "INVALID_REQUEST"), "{own}");
        assert!(refused.error().contains("this agent itself"), "{}", refused.error());
    }
    for bad in [json!(["a b"]), json!(["http://x"]), json!(["a:0"]), json!(["0.0.0.0:1"]), json!("x"), json!([])] {
        assert_eq!(add(json!({ "endpoints": bad })).await.refusal(), (400, "INVALID_REQUEST"), "{bad}");
    }
    assert_eq!(add(json!({"endpoints": ["a"], "public_key": "AA"})).await.refusal(), (400, "INVALID_REQUEST"));
    assert_eq!(add(json!({"endpoints": ["a"], "name": "peer_a"})).await.refusal(), (400, "INVALID_REQUEST"));
}

pub(super) async fn service(agent: &Agent, body: Value) -> Reply {
    agent.caller.post("/v1/services", body).await
}

// accepts: 002-03, 002-04, 002-18, 002-20, 002-21, 002-23, 002-65, 002-66, 002-69
#[tokio::test]
async fn services_live_and_die() {
    let agent = Agent::bootstrapped().await;
    let own_id = agent.node.identity().unwrap().peer_id.to_string();
    let (target, discovered) = (know_peer(&agent, 9, true).await, know_peer(&agent, 10, false).await);
    let made = service(&agent, json!({ "target_peer_id": target })).await.expect(201);
    let id = made["id"].as_str().unwrap().to_owned();
    for (field, value) in [
        ("name", json!("london-to-tokyo-9")),
        ("source_peer_id", json!(own_id)),
        ("source_peer_name", json!("london")),
        ("target_peer_name", json!("tokyo-9")),
        ("transport_type", json!("tcp")),
        ("effective_transport", json!("tcp")),
        ("state", json!("active")),
        ("requires_interface", json!(false)),
        ("bandwidth_limit_mbps", json!(0)),
        ("interface_name", json!(null)),
        ("routes", json!([])),
    ] {
        assert_eq!(made[field], value, "{field}");
    }
    assert_eq!(agent.caller.get(&format!("/v1/services/{id}")).await.expect(200), made);
    let bare = target.to_string().replace("peer_", "");
    let second = service(&agent, json!({"target_peer_id": bare, "requires_interface": true})).await.expect(201);
    assert_eq!(second["name"], "london-to-tokyo-9-2");
    assert_eq!(second["interface_name"], second["id"].as_str().unwrap()[..15]);

    let over = service(&agent, json!({ "target_peer_id": target })).await;
    assert_eq!(over.refusal(), (422, "SERVICE_LIMIT_EXCEEDED"), "{}", over.text);
    let list =
        agent.caller.get(&format!("/v1/services?target_peer_id={target}&requires_interface=true")).await.expect(200);
    assert_eq!((list["services"].as_array().unwrap().len(), &list["services"][0]["route_count"]), (1, &json!(0)));

    for unknown in ["peer_01ARZ3NDEKTSV4RRFFQ69G5FAV", "nobody", &discovered.to_string()] {
        let refused = service(&agent, json!({ "target_peer_id": unknown })).await;
        assert_eq!(refused.refusal(), (404, "NOT_FOUND"), "{unknown}");
        assert!(refused.error().starts_with("target peer not found"), "{}", refused.error());
        let refused = service(&agent, json!({"target_peer_id": target, "source_peer_id": unknown})).await;
        assert_eq!(refused.refusal(), (404, "NOT_FOUND"));
    }
    assert_eq!(service(&agent, json!({ "target_peer_id": own_id })).await.refusal(), (400, "INVALID_REQUEST"));
    let taken = json!({"target_peer_id": target, "name": "London-to-Tokyo-9"});
    assert_eq!(service(&agent, taken).await.refusal(), (409, "ALREADY_EXISTS"));

    let stale = [("if-match", "99999")];
    let bearer = format!("Bearer {}", agent.caller.token.clone().unwrap());
    let headers = [stale[0], ("authorization", bearer.as_str())];
    let path = format!("/v1/services/{id}");
    assert_eq!(agent.caller.send(Method::DELETE, &path, &headers, "").await.refusal(), (409, "CONFLICT"));
    assert_eq!(agent.caller.delete(&format!("{path}?dry_run=true")).await.status, 204);
    agent.caller.get(&path).await.expect(200);
    let gone = agent.caller.delete(&path).await;
    assert_eq!((gone.status, gone.text.as_str()), (204, ""));
    for reply in [agent.caller.get(&path).await, agent.caller.delete(&path).await] {
        assert_eq!(reply.refusal(), (404, "NOT_FOUND"));
    }
    let names = agent.caller.get("/v1/services").await.expect(200);
    assert!(!names.to_string().contains(&id));
    let dry = agent.caller.post("/v1/services?dry_run=true", json!({ "target_peer_id": target })).await;
    dry.expect(201);
    assert_eq!(agent.caller.get("/v1/services").await.expect(200)["services"].as_array().unwrap().len(), 1);
    service(&agent, json!({ "target_peer_id": target })).await.expect(201);
}

// accepts: 002-17
#[tokio::test]
async fn features_are_those_of_the_license() {
    let agent = Agent::bootstrapped().await;
    let target = know_peer(&agent, 9, true).await;
    for (field, value) in [("transport_type", json!("kcp")), ("bandwidth_limit_mbps", json!(5))] {
        let refused = service(&agent, json!({"target_peer_id": target, field: value})).await;
        assert_eq!(refused.refusal(), (422, "LICENSE_FEATURE_DISABLED"), "{field}");
    }
    let transparent = json!({"target_peer_id": target, "requires_interface": true, "fully_transparent": true});
    assert_eq!(service(&agent, transparent.clone()).await.refusal(), (422, "LICENSE_FEATURE_DISABLED"));

    let mut agent = Agent::new().await;
    let every = crate::license::Terms { features: Features::every(), ..terms(1) };
    agent.caller.bootstrap(license(every)).await;
    assert_eq!(know_peer(&agent, 9, true).await, target);
    let made = service(&agent, transparent).await.expect(201);
    assert_eq!(made["fully_transparent"], true);
    agent.caller.delete(&format!("/v1/services/{}", made["id"].as_str().unwrap())).await;
    let five = json!({"target_peer_id": target, "transport_type": "tcp", "requires_interface": true,
                      "desired_ipv4_cidr": "192.168.100.10/24", "bandwidth_limit_mbps": 1000});
    let made = service(&agent, five.clone()).await.expect(201);
    for (field, value) in five.as_object().unwrap() {
        assert_eq!(&made[field], value, "{field}");
    }
    let kcp = json!({"target_peer_id": target, "transport_type": "kcp", "bandwidth_limit_mbps": 1000});
    assert_eq!(service(&agent, kcp).await.expect(201)["bandwidth_limit_mbps"], 1000);
}

// accepts: 002-27, 002-40, 002-42, 002-45, 002-46, 002-47, 002-58
#[tokio::test]
async fn routes_are_added_all_or_none_and_deleted_one_by_one() {
    let agent = Agent::bootstrapped().await;
    let target = know_peer(&agent, 9, true).await;
    let made = service(&agent, json!({ "target_peer_id": target })).await.expect(201);
    let path = format!("/v1/services/{}/routes", made["id"].as_str().unwrap());
    let add = async |routes: Value| agent.caller.post(&path, json!({ "routes": routes })).await;
    let full = json!({"source_cidr": "10.0.0.0/8", "dest_cidr": "192.168.100.0/24", "priority": 100});
    let added = add(json!([full, {"dest_cidr": "10.9.0.0/16"}, {"source_cidr": "10.8.0.0/16"}])).await.expect(201);
    assert_eq!(added, json!({"route_ids": [1, 2, 3], "count": 3}));
    let listed = agent.caller.get(&path).await.expect(200);
    let ids: Vec<_> = listed["routes"].as_array().unwrap().iter().map(|r| r["id"].as_u64().unwrap()).collect();
    assert_eq!(ids, [1, 3, 2]);
    assert_eq!(listed["routes"][2]["source_cidr"], Value::Null);
    let whole = agent.caller.get(path.trim_end_matches("/routes")).await.expect(200);
    assert_eq!(whole["routes"], listed["routes"]);

    let bits = add(json!([{"dest_cidr": "10.1.2.3/8"}])).await;
    assert_eq!(bits.refusal(), (400, "INVALID_CIDR"));
    assert!(bits.error().contains("10.0.0.0/8"), "{}", bits.error());
    assert_eq!(add(json!([{"dest_cidr": "10.0.0.0"}])).await.refusal(), (400, "INVALID_CIDR"));
    let half = json!([{"dest_cidr": "172.16.0.0/12"}, {"dest_cidr": "10.9.0.0/16"}]);
    assert_eq!(add(half).await.refusal(), (409, "ALREADY_EXISTS"));
    let mixed = json!([{"source_cidr": "10.0.0.0/8", "dest_cidr": "fd00::/8"}]);
    assert_eq!(add(mixed).await.refusal(), (400, "INVALID_CIDR"));
    assert_eq!(agent.caller.get(&path).await.expect(200), listed);

    assert_eq!(agent.caller.delete(&format!("{path}/2")).await.status, 204);
    for unknown in ["2", "99", "x", "-1", "4294967296"] {
        assert_eq!(agent.caller.delete(&format!("{path}/{unknown}")).await.refusal(), (404, "NOT_FOUND"), "{unknown}");
    }
    assert_eq!(add(json!([{"dest_cidr": "10.9.0.0/16"}])).await.expect(201)["route_ids"], json!([4]));
    let nowhere = "/v1/services/svc_01ARZ3NDEKTSV4RRFFQ69G5FAV/routes";
    assert_eq!(agent.caller.get(nowhere).await.refusal(), (404, "NOT_FOUND"));

    assert_eq!(agent.caller.delete(path.trim_end_matches("/routes")).await.status, 204);
    assert_eq!(agent.caller.get(&path).await.refusal(), (404, "NOT_FOUND"));
}

// accepts: 001-68
#[tokio::test]
async fn status_sync_and_license_have_their_shapes() {
    let agent = Agent::bootstrapped().await;
    let status = agent.caller.get("/v1/cluster/status").await.expect(200);
    assert_eq!(status["local_peer_id"], agent.node.identity().unwrap().peer_id.to_string());
    assert_eq!(status["license_state"], "valid");
    assert_eq!(status["peers"].as_array().unwrap().len(), 1);
    assert!(status["cluster_id"].as_str().unwrap().starts_with("clu_") && status["converged"].is_boolean());
    let bearer = format!("Bearer {}", agent.caller.token.clone().unwrap());
    let sync = agent.caller.send(Method::POST, "/v1/cluster/sync", &[("authorization", &bearer)], "").await;
    assert_eq!(sync.expect(200), json!({"triggered": true, "peers": 0, "reached": 0}));
    let shown = agent.caller.get("/v1/license").await.expect(200);
    assert_eq!(shown["license"], license(terms(1)));
    assert_eq!((&shown["state"], &shown["days_left"]), (&json!("valid"), &json!(365)));
    assert_eq!(shown["nodes"], json!({"used": 1, "max": 3}));
    assert_eq!(shown["services"], json!({"used": 0, "max": 2}));
}

/// security.md row 21: none of these reaches SQL, a rule or a log line as anything but data.
#[tokio::test]
async fn hostile_strings_are_data() {
    let agent = Agent::bootstrapped().await;
    let target = know_peer(&agent, 9, true).await;
    let strings = [
        "'; DROP TABLE peers; --",
        "\" OR 1=1",
        "$(reboot)",
        "`id`",
        "../../etc",
        "a\nb",
        "a\u{0}b",
        "\u{202e}x",
        "%n%s",
        "{}",
    ];
    for text in strings {
        for field in ["name", "target_peer_id", "source_peer_id", "transport_type", "desired_ipv4_cidr"] {
            let mut body = json!({"target_peer_id": target, "requires_interface": true});
            body[field] = json!(text);
            let status = service(&agent, body).await.status;
            assert!(status == 400 || status == 404, "{field} {text:?}: {status}");
        }
    }
    assert_eq!(agent.caller.get("/v1/peers").await.expect(200)["peers"].as_array().unwrap().len(), 2);
}
