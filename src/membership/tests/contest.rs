//! A copy of an identity that its peers refuse takes what gossip brings, and writes nothing until it is heard again: then
//! it draws the consequences.

use super::*;
use crate::{
    model::{ClientId, ServiceBody, ServiceId},
    wire::record::{ClusterBody, RecordKey},
};

#[test]
fn a_contested_copy_takes_a_smaller_cluster_id_and_publishes_it_when_it_is_heard_again() {
    let world = World::of(3);
    let ids = world.cluster_ids();
    world.add(1, 2).unwrap();
    world.gossip();
    world.add(2, 0).unwrap();
    let [_, one, two] = &world.agents[..] else { unreachable!() };
    let written = one.ledger.own_version().unwrap();
    one.ledger.set_contested(true);
    world.take(one, two);
    assert_eq!((one.cluster().cluster_id, one.ledger.own_version().unwrap()), (ids[0], written));
    heard_again(one);
    let own = RecordKey { kind: kind::CLUSTER.into(), id: ids[1].to_string(), owner: one.id() };
    let body: ClusterBody = one.ledger.record(&own).unwrap().unwrap().body_as().unwrap();
    assert_eq!(body.aliases, [ids[0]]);
    let written = one.ledger.own_version().unwrap();
    heard_again(one);
    assert_eq!(one.ledger.own_version().unwrap(), written, "once");
}

#[test]
fn a_contested_copy_takes_the_revocation_of_its_credential_and_retires_it_when_it_is_heard_again() {
    let world = World::of(2);
    world.add(0, 1).unwrap();
    let [zero, one] = &world.agents[..] else { unreachable!() };
    let (client, key) = credential(zero);
    revoke_credential(&one.ledger, &one.author, zero.id(), client, NOW).unwrap();
    zero.ledger.set_contested(true);
    world.take(zero, one);
    retire_revoked_credentials(&zero.ledger, &zero.author).unwrap();
    assert!(zero.ledger.record(&key).unwrap().is_some_and(|held| !held.deleted), "it writes nothing");
    assert!(revoked_clients(&zero.ledger).unwrap().contains(&client), "and knows of it");
    heard_again(zero);
    assert!(zero.ledger.record(&key).unwrap().is_some_and(|held| held.deleted));
}

#[test]
fn what_a_contested_copy_had_to_leave_of_removals_it_does_when_it_is_heard_again() {
    let world = World::of(3);
    world.add(0, 1).unwrap();
    world.add(0, 2).unwrap();
    world.gossip();
    let [zero, one, two] = &world.agents[..] else { unreachable!() };
    let body = ServiceBody::plain("db", zero.id(), two.id(), NOW);
    let id = ServiceId::mint(NOW, &mut zero.rng.borrow_mut()).to_string();
    let service = zero.ledger.put_own(&zero.author, kind::SERVICE, &id, &body).unwrap();
    let word = RecordKey { kind: kind::VOUCHER.into(), id: one.id().to_string(), owner: zero.id() };
    let removal = remove_peer(&one.ledger, &one.author, two.id(), NOW).unwrap().unwrap();
    zero.ledger.set_contested(true);
    merge_records(&zero.ledger, &zero.author, &[removal]).unwrap();
    assert!(peer_was_revoked(&zero.ledger, &zero.author, two.id(), &[]).unwrap());
    assert!(withdraw_trust(&zero.ledger, &zero.author, one.id()).unwrap());
    let is_deleted = |key: &RecordKey| zero.ledger.record(key).unwrap().unwrap().deleted;
    assert_eq!((is_deleted(&service.key), is_deleted(&word)), (false, false));
    heard_again(zero);
    // n1's removal of n2 stays when trust in n1 ends.
    assert_eq!((is_deleted(&service.key), is_deleted(&word)), (true, true));
}

fn heard_again(agent: &Agent) {
    agent.ledger.set_contested(false);
    resume_writing(&agent.ledger, &agent.author).unwrap();
}

/// The shared credential of an agent.
fn credential(of: &Agent) -> (ClientId, RecordKey) {
    let client = shared_credential(&of.ledger).unwrap().unwrap().body.client_id;
    (client, RecordKey { kind: kind::CREDENTIAL.into(), id: client.to_string(), owner: of.id() })
}
