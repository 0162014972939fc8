//! What a restart finds, and what it refuses to work with.

use super::agent::{Agent, license, terms, vendor};
use crate::{
    env::Clock,
    license::ClockSnapshot,
    model::{Endpoint, PeerId, Rng, SigningKey, UnixTime},
    store::StoreError,
};
use std::time::Duration;

// accepts: 003-07, 003-08
#[tokio::test]
async fn a_stored_license_that_is_not_genuine_stops_the_start() {
    let agent = Agent::bootstrapped().await;
    let stored = license(terms(1));
    let (id, key) = (stored["license_id"].as_str().unwrap(), stored["key_id"].as_str().unwrap());
    let unknown = agent.refused_restart(&SigningKey::from_seed([43; 32])).await.to_string();
    for part in [id, key, "does not know"] {
        assert_eq!(unknown.matches("does not know").count(), 1, "{unknown}");
        assert!(unknown.contains(part), "{unknown}");
    }
    let mut changed = stored.clone();
    changed["max_nodes"] = serde_json::json!(100);
    let write = agent.node.store().write(move |tx| tx.set_license(&changed));
    write.await.map_err(|e: StoreError| e).unwrap();
    let forged = agent.refused_restart(&vendor()).await.to_string();
    assert!(forged.contains(id) && forged.contains(key) && forged.contains("signature"), "{forged}");
}

#[tokio::test]
async fn a_key_that_is_not_that_of_the_database_stops_the_start() {
    let (agent, other) = (Agent::bootstrapped().await, Agent::new().await);
    crate::node::mint_identity(other.data_dir(), agent.clock.unix(), &mut Rng::from_seed([9; 32])).unwrap();
    std::fs::copy(other.data_dir().join("peer.key"), agent.data_dir().join("peer.key")).unwrap();
    let text = agent.refused_restart(&vendor()).await.to_string();
    assert!(text.contains("peer.key"), "{text}");
}

#[tokio::test]
async fn settings_of_a_start_are_published_in_the_peer_record() {
    let agent = Agent::bootstrapped().await;
    let own = |agent: &Agent| {
        let id: PeerId = agent.node.identity().unwrap().peer_id;
        let (row, version) =
            agent.node.store().read::<_, StoreError>(|v| Ok((v.peer(id)?.unwrap(), v.own_version()?))).unwrap();
        (row.body.clone().unwrap(), row.all_endpoints(), version)
    };
    let (before, _, version) = own(&agent);
    let agent = agent.restarted(|_| {}).await;
    assert_eq!(own(&agent).2, version, "nothing changed, nothing is published");
    let elsewhere: Endpoint = "198.51.100.7:8080".parse().unwrap();
    let advertised = elsewhere.clone();
    let agent = agent
        .restarted(|c| {
            c.data_ports.tproxy = 61_001;
            c.advertise_endpoints = vec![advertised];
        })
        .await;
    let (after, endpoints, later) = own(&agent);
    assert_eq!(
        (after.data_ports.tproxy, &after.endpoints, endpoints),
        (61_001, &vec![elsewhere.clone()], vec![elsewhere])
    );
    assert_eq!((after.name, after.created_at), (before.name, before.created_at));
    assert!(later > version);
}

#[tokio::test]
async fn a_clock_in_doubt_is_persisted_at_once() {
    let agent = Agent::bootstrapped().await;
    let kept = || {
        let snapshot: Option<ClockSnapshot> = agent.node.store().read::<_, StoreError>(|v| v.license_clock()).unwrap();
        snapshot.unwrap()
    };
    let marked = |at: UnixTime| (at, None);
    let start = agent.clock.unix();
    agent.clock.advance(Duration::from_secs(60));
    agent.node.tick_license().await;
    assert_eq!((kept().mark, kept().lead), marked(start), "a quiet hour writes nothing");
    agent.clock.jump(Duration::from_secs(3 * 86_400));
    agent.node.tick_license().await;
    assert!(kept().lead.is_some());
    assert!(agent.node.entitlement().unwrap().clock_suspect);
}
