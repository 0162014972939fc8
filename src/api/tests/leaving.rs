//! `DELETE /v1/peers/self`: who may, what it answers, what is left.

use super::{
    agent::{Agent, RECOVERY, Reply, license, terms, token_form},
    objects::know_peer,
};
use crate::{
    membership,
    store::StoreError,
    wire::record::{Deactivation, Record},
};
use hyper::Method;
use serde_json::{Value, json};

// accepts: 000-58, 000-59
#[tokio::test]
async fn an_administrator_takes_the_agent_out_and_gets_its_signed_word() {
    let mut agent = Agent::new().await;
    let made = agent.caller.bootstrap(license(terms(1))).await;
    let form = token_form(made["client_id"].as_str().unwrap(), made["client_secret"].as_str().unwrap());
    let token = agent.caller.token_for(&format!("{form}&scope=peers.write")).await;
    let writer = super::agent::Caller { token: Some(token), ..agent.caller.clone() };
    let refused = writer.delete("/v1/peers/self").await;
    assert_eq!(refused.refusal(), (403, "FORBIDDEN"));
    assert!(refused.error().contains("admin"), "{}", refused.error());

    let key = std::fs::read(agent.data_dir().join("peer.key")).unwrap();
    let said = agent.caller.delete("/v1/peers/self").await.expect(200);
    let said: Deactivation = serde_json::from_value(said).unwrap();
    assert!(said.verify());
    assert_eq!(said.action, "deactivated");
    assert_eq!(said.peer_id.to_string(), made["peer_id"]);
    assert_eq!(said.public_key.to_string(), made["peer_public_key"]);
    assert_eq!(said.cluster_id.to_string(), made["cluster_id"]);

    assert_eq!(agent.caller.get("/v1/peers").await.refusal(), (409, "NOT_BOOTSTRAPPED"));
    assert_eq!(agent.caller.get("/v1/cluster/identity").await.expect(200)["peer_id"], "");
    let (records, version) =
        agent.node.store().read::<_, StoreError>(|v| Ok((v.all_records()?, v.own_version()?))).unwrap();
    assert_eq!((records, version), (vec![], said.version), "only what it counts is left");
    let mut agent = agent.restarted(|_| {}).await;
    assert_eq!(std::fs::read(agent.data_dir().join("peer.key")).unwrap(), key);
    let again = agent.caller.bootstrap(license(terms(1))).await;
    assert_eq!(again["peer_id"], made["peer_id"]);
}

#[tokio::test]
async fn an_agent_may_leave_in_every_state_of_its_license() {
    for days in [1, 15, 45] {
        let agent = Agent::expired_for(days).await;
        agent.caller.delete("/v1/peers/self").await.expect(200);
    }
}

#[tokio::test]
async fn an_agent_that_is_stopped_while_it_leaves_has_left() {
    let agent = Agent::bootstrapped().await;
    let (author, now) = (agent.node.identity().unwrap(), crate::env::Clock::unix(&*agent.clock));
    let write = agent.node.store().write(move |tx| -> Result<(), StoreError> {
        tx.set_leaving()?;
        membership::leave(tx, &author, now).map(drop)
    });
    write.await.unwrap();
    let agent = agent.restarted(|_| {}).await;
    assert!(agent.node.identity().is_none());
    assert_eq!(agent.caller.get("/v1/peers").await.refusal(), (409, "NOT_BOOTSTRAPPED"));
    let agent = agent.restarted(|_| {}).await;
    assert!(!agent.node.store().read(|v| v.is_leaving()).unwrap());
}

fn records(agent: &Agent) -> Vec<Record> {
    agent.node.store().read::<_, StoreError>(|v| v.all_records()).unwrap()
}

async fn write_with_recovery(agent: &Agent, (method, path, body): &(Method, String, Value)) -> Reply {
    let mut headers = vec![("x-arctic-recovery", RECOVERY)];
    if !body.is_null() {
        headers.push(("content-type", "application/json"));
    }
    let body = if body.is_null() { String::new() } else { body.to_string() };
    agent.caller.send(method.clone(), path, &headers, body).await
}

#[tokio::test]
async fn no_write_is_acknowledged_that_nobody_will_ever_hear_of() {
    let agent = Agent::bootstrapped().await;
    let other = know_peer(&agent, 9, true).await;
    let made = agent.caller.post("/v1/services", json!({"target_peer_id": other, "name": "kept"})).await.expect(201);
    let service = format!("/v1/services/{}", made["id"].as_str().unwrap());
    let routes = format!("{service}/routes");
    agent.caller.post(&routes, json!({"routes": [{"dest_cidr": "10.0.0.0/8"}]})).await.expect(201);
    let made = agent.caller.post("/v1/credentials", json!({"scopes": ["services.read"]})).await.expect(201);
    let credential = format!("/v1/credentials/{}", made["client_id"].as_str().unwrap());
    let (peer, confirm) = (format!("/v1/peers/{other}"), "/v1/cluster/pending-confirm");
    let begin = json!({"within_s": 60, "services": ["fresh"], "id": "cfm_1"});
    let anywhere = [
        (Method::POST, "/v1/credentials".to_owned(), json!({"scopes": ["services.read"]})),
        (Method::POST, confirm.to_owned(), begin),
        (Method::POST, "/v1/cluster/init".to_owned(), json!({"force": true})),
        (Method::PUT, "/v1/license".to_owned(), json!({"license": license(terms(1))})),
    ];
    let of_objects = [
        (Method::POST, "/v1/services".to_owned(), json!({"target_peer_id": other})),
        (Method::PUT, service.clone(), json!({"name": "renamed"})),
        (Method::POST, routes.clone(), json!({"routes": [{"dest_cidr": "10.1.0.0/16"}]})),
        (Method::PUT, format!("{routes}/1"), json!({"priority": 7})),
        (Method::DELETE, format!("{routes}/1"), Value::Null),
        (Method::DELETE, service, Value::Null),
        (Method::DELETE, credential, Value::Null),
        (Method::POST, "/v1/cluster/credentials/rotate".to_owned(), Value::Null),
        (Method::PUT, peer.clone(), json!({"name": "osaka"})),
        (Method::DELETE, peer, Value::Null),
        (Method::DELETE, format!("{confirm}?local=true"), Value::Null),
    ];
    let before = records(&agent);
    agent.node.store().write::<_, StoreError, _>(|tx| tx.set_leaving()).await.unwrap();
    let mut acknowledged = Vec::new();
    for write in of_objects.iter().chain(&anywhere) {
        let reply = write_with_recovery(&agent, write).await;
        if reply.refusal() != (409, "NOT_BOOTSTRAPPED") {
            acknowledged.push(format!("{} {}: {} {}", write.0, write.1, reply.status, reply.text));
        }
    }
    assert!(acknowledged.is_empty(), "while it leaves: {acknowledged:#?}");
    assert_eq!(records(&agent), before);

    agent.node.store().write::<_, StoreError, _>(|tx| tx.clear_membership()).await.unwrap();
    for write in &anywhere {
        let reply = write_with_recovery(&agent, write).await;
        assert_eq!(reply.refusal(), (409, "NOT_BOOTSTRAPPED"), "after: {} {}: {}", write.0, write.1, reply.text);
    }
    assert_eq!(records(&agent), []);
}
