//! `POST /v1/cluster/init` with `force`: nothing of the old cluster gets into the new one.

use super::{agent::Agent, objects::know_peer};
use crate::{
    env::Clock,
    model::{ClientId, ClusterId, PeerId, Rng, SigningKey, UnixTime},
    store::StoreError,
    wire::{
        gossip::{Digest, Digests, Op, PushRequest, Request},
        record::{ClusterBody, Record, kind},
        request::SignedRequest,
    },
};
use hyper::Method;
use serde_json::json;

/// A peer that the running gossip machine trusts, too.
async fn befriend(agent: &Agent, seed: u8) -> PeerId {
    let (friend, other) = (know_peer(agent, seed, true).await, know_peer(agent, seed + 100, true).await);
    agent.caller.delete(&format!("/v1/peers/{other}")).await.expect(204);
    friend
}

async fn begin_anew(agent: &mut Agent) -> ClusterId {
    agent.caller.post("/v1/cluster/init", json!({"force": true})).await.expect(200);
    agent.caller.token = Some(agent.admin_token());
    agent.node.store().read::<_, StoreError>(|v| v.cluster()).unwrap().unwrap().cluster_id
}

/// A push of the peer whose key has this seed; the status of its answer.
async fn push(agent: &Agent, (sender, seed): (PeerId, u8), records: Vec<Record>) -> u16 {
    let [peers, services, credentials, revocations, cluster] = [Digest([0; 32]); 5];
    let digests = Digests { peers, services, credentials, revocations, cluster };
    let push = PushRequest { instance: String::new(), records: records.into(), hops: 0, digests };
    let body = Request::Push(push).encode();
    let request = SignedRequest {
        method: "POST",
        path: Op::Push.path(),
        body: &body,
        timestamp: agent.clock.unix(),
        nonce: [seed; 16],
        sender,
        target: agent.node.identity().unwrap().peer_id,
        on_behalf: None,
    };
    let headers = request.headers(&SigningKey::from_seed([seed; 32]));
    let mut headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    headers.push(("content-type", "application/json"));
    agent.caller.send(Method::POST, Op::Push.path(), &headers, body.clone()).await.status
}

#[tokio::test]
async fn what_gossip_had_yet_to_commit_does_not_get_into_the_new_cluster() {
    let mut agent = Agent::bootstrapped().await;
    begin_anew(&mut agent).await;
    let (old, at, mut rng) = (befriend(&agent, 9).await, UnixTime::from_secs(1), Rng::from_seed([4; 32]));
    let (cluster_id, client_id) = (ClusterId::mint(at, &mut rng), ClientId::mint(at, &mut rng));
    let body = ClusterBody { cluster_id, created_at: at, client_id, aliases: Vec::new() };
    let body = serde_json::to_value(body).unwrap();
    let record =
        Record::sign(&SigningKey::from_seed([9; 32]), old, kind::CLUSTER, &cluster_id.to_string(), 1, body).unwrap();

    let raw = rusqlite::Connection::open(agent.data_dir().join("arctic.db")).unwrap();
    let refusing = "CREATE TRIGGER refused BEFORE INSERT ON records WHEN new.kind = 'cluster' \
                    BEGIN SELECT RAISE(ABORT, 'refused'); END";
    raw.execute_batch(refusing).unwrap();
    assert_eq!(push(&agent, (old, 9), vec![record]).await, 500, "the machine has it, the store has not");
    raw.execute_batch("DROP TRIGGER refused").unwrap();
    agent.caller.delete(&format!("/v1/peers/{old}")).await.expect(204);

    let new = begin_anew(&mut agent).await;
    let friend = befriend(&agent, 11).await;
    assert_eq!(push(&agent, (friend, 11), Vec::new()).await, 200);
    let (facts, records) =
        agent.node.store().read::<_, StoreError>(|v| Ok((v.cluster()?.unwrap(), v.all_records()?))).unwrap();
    assert_eq!(facts.cluster_id, new);
    assert!(records.iter().all(|r| r.key.owner != old), "{records:?}");
}

#[tokio::test]
async fn a_change_that_waits_for_its_confirmation_is_not_undone_in_a_new_cluster() {
    let mut agent = Agent::bootstrapped().await;
    let other = know_peer(&agent, 9, true).await;
    agent.caller.post("/v1/services", json!({"target_peer_id": other, "name": "kept"})).await.expect(201);
    let begin = json!({"within_s": 60, "services": ["kept"], "id": "cfm_1"});
    agent.caller.post("/v1/cluster/pending-confirm", begin).await.expect(201);
    begin_anew(&mut agent).await;
    assert_eq!(agent.node.store().read::<_, StoreError>(|v| v.pending_confirm()).unwrap(), None);
}
