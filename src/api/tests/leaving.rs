//! `DELETE /v1/peers/self`: who may, what it answers, what is left.

use super::agent::{Agent, license, terms, token_form};
use crate::{membership, store::StoreError, wire::record::Deactivation};

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
