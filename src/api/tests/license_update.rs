//! A license is replaced while the agent runs, and each state is resumed after a restart (licensing.md §3-5).

use super::{
    agent::{Agent, DAY, LiveAgent, RECOVERY, START, license, terms, terms_at, token_form, vendor},
    peers_only::until,
};
use crate::{
    env::Clock,
    license::{ClockSnapshot, Features, LicenseDocument, State, Terms},
    model::{LicenseId, Rng, SigningKey},
    store::{PeerRow, StoreError},
};
use hyper::Method;
use serde_json::{Value, json};
use std::time::Duration;

/// Another issue for the customer of `terms`, for a year from the agent's now on.
fn renewal(agent: &Agent) -> Terms {
    let now = agent.clock.unix();
    Terms {
        license_id: LicenseId::mint(now, &mut Rng::from_seed([77; 32])),
        issued_at: now.minus(DAY),
        expires_at: now.plus(365 * DAY),
        ..terms(1)
    }
}

async fn target(agent: &Agent, seed: u8) -> String {
    let row = PeerRow::trusted(
        crate::model::PeerId::mint(agent.clock.unix(), &mut Rng::from_seed([seed; 32])),
        SigningKey::from_seed([seed; 32]).public(),
        Vec::new(),
        agent.clock.unix(),
    );
    let id = row.peer_id.to_string();
    agent.node.store().write(move |tx| tx.put_peer(&row)).await.map_err(|e: StoreError| e).unwrap();
    id
}

// accepts: 001-44, 003-22, 003-23, 003-24
#[tokio::test]
async fn a_renewal_counts_at_once_and_keeps_the_cluster() {
    for days in [0, 1, 15, 45] {
        let agent = Agent::expired_for(days).await;
        let identity = agent.caller.get("/v1/cluster/identity").await.expect(200);
        let before = agent.node.store().read(|v| v.own_version()).unwrap();
        let renewed = Terms { max_nodes: 9, max_services: 8, features: Features::every(), ..renewal(&agent) };
        let answer = agent.caller.put("/v1/license", license(renewed.clone())).await;
        assert!(!answer.headers.contains_key("x-arctic-license-state"), "{days}");
        let answer = answer.expect(200);
        assert_eq!((&answer["state"], &answer["warnings"]), (&json!("valid"), &json!([])), "{days}");
        assert_eq!((&answer["nodes"]["max"], &answer["services"]["max"]), (&json!(9), &json!(8)));
        assert_eq!((&answer["features"], &answer["license"]), (&json!(["*"]), &license(renewed.clone())));
        assert_eq!(agent.caller.get("/v1/license").await.expect(200), answer);

        let after = agent.caller.get("/v1/cluster/identity").await.expect(200);
        assert_eq!(after["license_id"], renewed.license_id.to_string());
        assert_eq!((&after["peer_id"], &after["cluster_id"]), (&identity["peer_id"], &identity["cluster_id"]));
        let own = agent.caller.get("/v1/peers?is_local=true").await.expect(200);
        assert_eq!(own["peers"][0]["license_id"], renewed.license_id.to_string());
        assert_eq!(own["peers"][0]["license_state"], "valid");
        assert_eq!(agent.node.store().read(|v| v.own_version()).unwrap(), before + 1, "the peer record, once");
        let wish = json!({"target_peer_id": target(&agent, 9).await});
        let made = agent.caller.post("/v1/services", wish).await.expect(201);
        assert_eq!(made["state"], "active");

        let agent = agent.restarted(|_| {}).await;
        assert_eq!(agent.node.entitlement().unwrap().document.license_id(), renewed.license_id);
        assert_eq!(agent.node.entitlement().unwrap().state, State::Valid);
    }
}

// accepts: 003-23
#[tokio::test]
async fn what_is_no_renewal_is_refused_and_changes_nothing() {
    let agent = Agent::bootstrapped().await;
    let before = agent.caller.get("/v1/license").await.expect(200);
    let now = agent.clock.unix();
    let genuine = license(renewal(&agent));
    let mut forged = genuine.clone();
    forged["max_nodes"] = json!(1000);
    let mut incomplete = genuine.clone();
    incomplete.as_object_mut().unwrap().remove("expires_at");
    let stranger = LicenseDocument::issue(&SigningKey::from_seed([43; 32]), renewal(&agent)).unwrap();
    let other = Terms { customer_id: terms(2).customer_id, ..renewal(&agent) };
    let past_grace = Terms { issued_at: now.minus(60 * DAY), expires_at: now.minus(14 * DAY), ..renewal(&agent) };
    let future = Terms { issued_at: now.plus(DAY + Duration::from_secs(1)), ..renewal(&agent) };
    for (name, offered, code) in [
        ("forged", forged, "LICENSE_INVALID"),
        ("incomplete", incomplete, "LICENSE_INVALID"),
        ("of another vendor", stranger.as_value().clone(), "LICENSE_INVALID"),
        ("of another customer", license(other), "LICENSE_MISMATCH"),
        ("past its grace", license(past_grace), "LICENSE_EXPIRED"),
        ("of the future", license(future), "LICENSE_INVALID"),
    ] {
        for body in [offered.clone(), json!({ "license": offered })] {
            let refused = agent.caller.put("/v1/license", body).await;
            assert_eq!(refused.refusal(), (422, code), "{name}: {}", refused.text);
        }
    }
    for (body, code) in [
        (json!({}), "MISSING_FIELD"),
        (json!({"license": null}), "MISSING_FIELD"),
        (json!({"license": "text"}), "INVALID_REQUEST"),
        (json!({"license": genuine, "force": true}), "INVALID_REQUEST"),
    ] {
        assert_eq!(agent.caller.put("/v1/license", body).await.refusal(), (400, code));
    }
    assert_eq!(agent.caller.get("/v1/license").await.expect(200), before);
    let in_grace = Terms { issued_at: now.minus(60 * DAY), expires_at: now.minus(13 * DAY), ..renewal(&agent) };
    let answer = agent.caller.put("/v1/license", license(in_grace)).await.expect(200);
    assert_eq!(answer["state"], "grace_period");
}

#[tokio::test]
async fn an_update_is_for_admins_and_for_the_recovery_token() {
    let mut agent = Agent::new().await;
    let made = agent.caller.bootstrap(license(terms(1))).await;
    let form = token_form(made["client_id"].as_str().unwrap(), made["client_secret"].as_str().unwrap());
    let offered = json!({"license": license(renewal(&agent))}).to_string();
    let put = async |header: (&str, &str)| {
        let headers = [header, ("content-type", "application/json")];
        agent.caller.send(Method::PUT, "/v1/license", &headers, offered.clone()).await
    };
    assert_eq!(put(("x-nothing", "")).await.refusal(), (401, "UNAUTHORIZED"));
    for scope in ["services.write", "peers.write", "credentials.write"] {
        let token = agent.caller.token_for(&format!("{form}&scope={scope}")).await;
        assert_eq!(put(("authorization", &format!("Bearer {token}"))).await.refusal(), (403, "FORBIDDEN"), "{scope}");
    }
    put(("x-arctic-recovery", RECOVERY)).await.expect(200);
}

#[tokio::test]
async fn a_dry_run_tells_what_would_be_and_changes_nothing() {
    let agent = Agent::expired_for(45).await;
    let before = agent.caller.get("/v1/license").await.expect(200);
    let version = agent.node.store().read(|v| v.own_version()).unwrap();
    let would = agent.caller.put("/v1/license?dry_run=true", license(renewal(&agent))).await.expect(200);
    assert_eq!(would["state"], "valid");
    let other = license(Terms { customer_id: terms(2).customer_id, ..renewal(&agent) });
    let refused = agent.caller.put("/v1/license?dry_run", other).await;
    assert_eq!(refused.refusal(), (422, "LICENSE_MISMATCH"));
    assert_eq!(agent.caller.get("/v1/license").await.expect(200), before);
    assert_eq!(agent.node.store().read(|v| v.own_version()).unwrap(), version);
    assert_eq!(agent.node.entitlement().unwrap().state, State::Suspended);
}

// accepts: 001-49, 002-22, 003-18, 003-19, 003-24
#[tokio::test]
async fn lower_limits_keep_what_exists_and_a_bigger_license_frees_a_slot() {
    let agent = Agent::bootstrapped().await;
    let (first, second) = (target(&agent, 9).await, target(&agent, 10).await);
    let create = async |to: &str| agent.caller.post("/v1/services", json!({ "target_peer_id": to })).await;
    create(&first).await.expect(201);
    create(&second).await.expect(201);
    assert_eq!(create(&first).await.refusal(), (422, "SERVICE_LIMIT_EXCEEDED"));

    let smaller = license(Terms { max_nodes: 1, max_services: 1, ..renewal(&agent) });
    let answer = agent.caller.put("/v1/license", smaller).await.expect(200);
    assert_eq!((&answer["nodes"], &answer["services"]), (&json!({"used":3,"max":1}), &json!({"used":2,"max":1})));
    let warnings: Vec<&str> = answer["warnings"].as_array().unwrap().iter().map(|w| w.as_str().unwrap()).collect();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    let services = agent.caller.get("/v1/services").await.expect(200);
    assert!(services["services"].as_array().unwrap().iter().all(|s| s["state"] == "active"), "{services}");
    assert_eq!(agent.caller.get("/v1/peers").await.expect(200)["peers"].as_array().unwrap().len(), 3);
    assert_eq!(create(&first).await.refusal(), (422, "SERVICE_LIMIT_EXCEEDED"));

    let bigger = license(Terms { max_nodes: 9, max_services: 3, ..renewal(&agent) });
    let answer = agent.caller.put("/v1/license", bigger).await.expect(200);
    assert_eq!(answer["warnings"], json!([]));
    create(&first).await.expect(201);
    assert_eq!(create(&first).await.refusal(), (422, "SERVICE_LIMIT_EXCEEDED"));
}

// accepts: 003-20
#[tokio::test]
async fn each_feature_is_asked_for_at_creation() {
    let agent = Agent::bootstrapped().await;
    let to = target(&agent, 9).await;
    let asking = [
        ("kcp", json!({"transport_type": "kcp"})),
        ("macvlan", json!({"requires_interface": true})),
        ("transparent_mode", json!({"requires_interface": true, "fully_transparent": true})),
        ("qos", json!({"bandwidth_limit_mbps": 1})),
    ];
    let all = ["kcp", "macvlan", "transparent_mode", "qos"];
    for (feature, fields) in asking {
        let mut body = json!({ "target_peer_id": to });
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        for licensed in [false, true] {
            let names = all.into_iter().filter(|f| licensed || *f != feature);
            let terms = Terms { features: Features::from_names(names).unwrap(), max_services: 20, ..renewal(&agent) };
            agent.caller.put("/v1/license", license(terms)).await.expect(200);
            let reply = agent.caller.post("/v1/services", body.clone()).await;
            if licensed {
                reply.expect(201);
            } else {
                assert_eq!(reply.refusal(), (422, "LICENSE_FEATURE_DISABLED"), "{feature}");
                assert!(reply.error().contains(feature), "{}", reply.error());
            }
        }
    }
}

/// Through reconcilers and gossip of two whole agents.
// accepts: 003-20, 003-24
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_is_gossiped_and_a_lost_feature_makes_its_services_inactive() {
    let (a, b) = (LiveAgent::bootstrapped(1, 1).await, LiveAgent::bootstrapped(2, 1).await);
    a.caller.post("/v1/peers", json!({"endpoints": [b.caller.addr.to_string()]})).await.expect(201);
    let (a_id, b_id) = (a.node.identity().unwrap().peer_id, b.node.identity().unwrap().peer_id);
    let update = async |features: &[&str], seed: u8| {
        let now = a.node.env().clock.unix();
        let license_id = LicenseId::mint(now, &mut Rng::from_seed([seed; 32]));
        let features = Features::from_names(features.iter().copied()).unwrap();
        let offered = license(Terms { license_id, features, ..terms_at(now, 1) });
        a.caller.put("/v1/license", offered).await.expect(200);
        license_id
    };
    update(&["qos", "ip_tunnel"], 78).await;
    let wish = json!({"target_peer_id": b_id, "bandwidth_limit_mbps": 10});
    let id = a.caller.post("/v1/services", wish).await.expect(201)["id"].as_str().unwrap().to_owned();
    a.caller
        .post(&format!("/v1/services/{id}/routes"), json!({"routes": [{"dest_cidr": "10.0.0.0/8"}]}))
        .await
        .expect(201);
    let shows = async |state: &str, reason: &str| {
        let shown = async || {
            let service = a.caller.get(&format!("/v1/services/{id}")).await.expect(200);
            let conditions = service["conditions"].as_array().unwrap().clone();
            let reasons: Vec<Value> = conditions.iter().map(|c| c["reason"].clone()).collect();
            (service["state"] == state && reasons == [reason, reason]).then_some(()).ok_or(service)
        };
        let mut last = shown().await;
        for _ in 0..200 {
            if last.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            last = shown().await;
        }
        last.unwrap();
    };
    shows("active", "APPLIED").await;
    let lowered = update(&["ip_tunnel"], 79).await;
    shows("inactive", "LICENSE_FEATURE_DISABLED").await;
    let known = |peer: &PeerRow| peer.body.as_ref().is_some_and(|body| body.license_id == lowered);
    until(|| b.node.store().read(|v| v.peer(a_id)).unwrap().is_some_and(|row| known(&row))).await;
    update(&["*"], 80).await;
    shows("active", "APPLIED").await;
}

// accepts: 001-49, 003-18
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bigger_license_lets_the_peer_in_that_was_one_too_many() {
    let (a, b) = (LiveAgent::bootstrapped(1, 1).await, LiveAgent::bootstrapped(2, 1).await);
    let c = LiveAgent::bootstrapped(3, 1).await;
    let allow = async |max_nodes: u32, seed: u8| {
        let now = a.node.env().clock.unix();
        let license_id = LicenseId::mint(now, &mut Rng::from_seed([seed; 32]));
        a.caller.put("/v1/license", license(Terms { license_id, max_nodes, ..terms_at(now, 1) })).await.expect(200);
    };
    allow(2, 78).await;
    b.caller.post("/v1/peers", json!({"endpoints": [a.caller.addr.to_string()]})).await.expect(201);
    let add = async || a.caller.post("/v1/peers", json!({"endpoints": [c.caller.addr.to_string()]})).await;
    assert_eq!(add().await.expect(422)["error"], "handshake failed: node limit exceeded");
    allow(3, 79).await;
    add().await.expect(201);
    until(|| b.node.store().read(|v| v.peer(c.id())).unwrap().is_some_and(|p| p.trusted)).await;
}

/// Each agent judges by its own license whom it takes in, and whom another member took in it does not refuse (cluster.md §3).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_a_member_took_in_is_a_member_everywhere_also_over_the_limit() {
    let (a, b) = (LiveAgent::bootstrapped(1, 1).await, LiveAgent::bootstrapped(2, 1).await);
    let c = LiveAgent::bootstrapped(3, 1).await;
    let now = a.node.env().clock.unix();
    let license_id = LicenseId::mint(now, &mut Rng::from_seed([78; 32]));
    a.caller.put("/v1/license", license(Terms { license_id, max_nodes: 2, ..terms_at(now, 1) })).await.expect(200);
    b.caller.post("/v1/peers", json!({"endpoints": [a.caller.addr.to_string()]})).await.expect(201);
    b.caller.post("/v1/peers", json!({"endpoints": [c.caller.addr.to_string()]})).await.expect(201);
    until(|| a.node.store().read(|v| v.peer(c.id())).unwrap().is_some_and(|p| p.trusted)).await;
    let license = a.caller.get("/v1/license").await.expect(200);
    assert_eq!(license["nodes"], json!({"used": 3, "max": 2}));
    assert!(license["warnings"].to_string().contains("nodes"), "{license}");
}

/// As `license update --all` does it (api.md §2).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_is_renewed_through_another() {
    let (a, b) = (LiveAgent::bootstrapped(1, 1).await, LiveAgent::bootstrapped(2, 1).await);
    a.caller.post("/v1/peers", json!({"endpoints": [b.caller.addr.to_string()]})).await.expect(201);
    let client = super::agent::client_of(a.caller.token.as_deref().unwrap());
    until(|| b.node.store().read(|v| v.credential(client)).unwrap().is_some()).await;
    let now = a.node.env().clock.unix();
    let renewed = Terms { license_id: LicenseId::mint(now, &mut Rng::from_seed([78; 32])), ..terms_at(now, 1) };
    let before = a.node.entitlement().unwrap().document.license_id();
    let (bearer, target) = (format!("Bearer {}", a.caller.token.clone().unwrap()), b.id().to_string());
    let headers =
        [("authorization", bearer.as_str()), ("x-arctic-target-peer", &target), ("content-type", "application/json")];
    let body = license(renewed.clone()).to_string();
    let answer = a.caller.send(Method::PUT, "/v1/license", &headers, body).await.expect(200);
    assert_eq!(answer["license"]["license_id"], renewed.license_id.to_string());
    assert_eq!(b.node.entitlement().unwrap().document.license_id(), renewed.license_id);
    assert_eq!(a.node.entitlement().unwrap().document.license_id(), before, "each agent is updated for itself");
}

// accepts: 003-09
#[tokio::test]
async fn every_state_is_resumed_after_a_restart_whatever_the_clock_says() {
    for (days, state) in [
        (-31, State::Valid),
        (-1, State::Warning),
        (1, State::GracePeriod),
        (15, State::ReadOnly),
        (45, State::Suspended),
    ] {
        let agent = Agent::bootstrapped().await;
        // Uptime, so that nothing is doubted; a state that was reached is kept at once.
        agent.clock.advance(u32::try_from(365 + days).unwrap() * DAY);
        agent.node.tick_license().await;
        assert_eq!(agent.node.entitlement().unwrap().state, state);
        agent.clock.set_unix(START.minus(20 * 365 * DAY));
        let agent = agent.restarted(|_| {}).await;
        assert_eq!(agent.node.entitlement().unwrap().state, state, "a clock turned back gains nothing");
        assert!(!agent.node.entitlement().unwrap().clock_suspect);
    }
}

#[tokio::test]
async fn a_restart_resets_neither_the_doubt_nor_the_mark_nor_the_day_of_the_warning() {
    let kept = |agent: &Agent| -> Value { agent.node.store().read(|v| v.license_clock()).unwrap().unwrap() };
    let agent = Agent::expired_for(1).await;
    agent.node.tick_license().await;
    let warned = kept(&agent)["warned_at"].clone();
    assert!(warned.is_string(), "{warned}");
    agent.clock.advance(DAY / 2);
    let agent = agent.restarted(|_| {}).await;
    agent.node.tick_license().await;
    agent.node.persist_license_clock().await;
    assert_eq!(kept(&agent)["warned_at"], warned, "not yet a day ago");
    agent.clock.advance(DAY / 2);
    agent.node.tick_license().await;
    assert_ne!(kept(&agent)["warned_at"], warned);

    let mark = kept(&agent)["mark"].clone();
    agent.clock.jump(100 * DAY);
    agent.node.tick_license().await;
    assert_eq!(agent.node.entitlement().unwrap().state, State::ReadOnly, "no worse while in doubt");
    let mut agent = agent;
    for hours in [0, 8, 8] {
        agent.clock.advance(hours * DAY / 24);
        agent.node.tick_license().await;
        agent.node.persist_license_clock().await;
        agent = agent.restarted(|_| {}).await;
        assert!(agent.node.entitlement().unwrap().clock_suspect, "after {hours} h more");
        assert_eq!(kept(&agent)["mark"], mark);
    }
    let lead = agent.node.store().read::<_, StoreError>(|v| v.license_clock::<ClockSnapshot>()).unwrap().unwrap().lead;
    assert!(lead.is_some());
    agent.clock.advance(8 * DAY / 24);
    agent.node.tick_license().await;
    assert_eq!(agent.node.entitlement().unwrap().state, State::Suspended, "24 h of uptime, over three starts");
    assert_ne!(kept(&agent)["mark"], mark);
}

#[tokio::test]
async fn a_corrected_clock_restores_the_state_and_its_warning() {
    let agent = Agent::bootstrapped().await;
    let before = agent.caller.get("/v1/license").await.expect(200);
    agent.clock.jump(3650 * DAY);
    agent.node.tick_license().await;
    // The token is long expired by this clock.
    let recovery = [("x-arctic-recovery", RECOVERY)];
    let shown = agent.caller.send(Method::GET, "/v1/license", &recovery, "").await.expect(200);
    assert_eq!((&shown["state"], &shown["clock_suspect"]), (&json!("read_only"), &json!(true)));
    assert!(shown["warnings"].as_array().unwrap().iter().any(|w| w.as_str().unwrap().contains("clock")), "{shown}");
    agent.clock.set_unix(START);
    agent.node.tick_license().await;
    assert_eq!(agent.caller.get("/v1/license").await.expect(200), before);
}

#[tokio::test]
async fn a_renewal_is_not_of_this_build_without_its_key() {
    let agent = Agent::bootstrapped().await;
    let mut unsigned = license(renewal(&agent));
    unsigned["key_id"] = json!(crate::license::key_id(&SigningKey::from_seed([9; 32]).public()));
    let refused = agent.caller.put("/v1/license", unsigned).await;
    assert_eq!(refused.refusal(), (422, "LICENSE_INVALID"));
    assert!(refused.error().contains("does not know"), "{}", refused.error());
    assert!(vendor().public() != SigningKey::from_seed([9; 32]).public());
}
