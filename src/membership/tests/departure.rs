use super::*;
use crate::{
    gossip::Standing,
    model::{ServiceBody, ServiceId},
    wire::record::DepartureBody,
};

/// n0 has left: its word reached n1, which had a service from it and one to it.
struct Left {
    world: World,
    departure: Departure,
    from_it: ServiceId,
    to_it: ServiceId,
}

fn service(source: &Agent, target: &Agent) -> ServiceId {
    let id = ServiceId::mint(NOW, &mut source.rng.borrow_mut());
    let body = ServiceBody::plain("db", source.id(), target.id(), NOW);
    source.ledger.put_own(&source.author, kind::SERVICE, &id.to_string(), &body).unwrap();
    id
}

fn left() -> Left {
    let world = World::of(3);
    world.add(0, 1).unwrap();
    let [zero, one, _] = &world.agents[..] else { unreachable!() };
    let (from_it, to_it) = (service(zero, one), service(one, zero));
    world.gossip();
    let departure = leave(&zero.ledger, &zero.author, NOW).unwrap().unwrap();
    merge_records(&one.ledger, &one.author, std::slice::from_ref(&departure.revocation)).unwrap();
    assert!(peer_was_revoked(&one.ledger, &one.author, zero.id(), &void(one, zero)).unwrap());
    Left { world, departure, from_it, to_it }
}

/// What the gossip machine calls void of a peer that has left.
fn void(here: &Agent, of: &Agent) -> Vec<crate::wire::record::RecordKey> {
    let records = here.ledger.all_records().into_iter().map(|r| r.key);
    records.filter(|key| key.owner == of.id() && !Standing::Left.keeps(&key.kind)).collect()
}

// accepts: 000-61
#[test]
fn the_announcement_is_signed_and_travels_in_the_revocation() {
    let Left { world, departure, .. } = left();
    let [zero, one, _] = &world.agents[..] else { unreachable!() };
    let held = one.ledger.record(&departure.revocation.key).unwrap().unwrap();
    let body: DepartureBody = held.body_as().unwrap();
    assert_eq!(body.announcement, departure.announcement);
    assert!(body.announcement.verify() && body.announcement.public_key == zero.author.key.public());
    assert_eq!((body.announcement.version, body.announcement.cluster_id), (held.version, zero.cluster().cluster_id));
}

// accepts: 000-62, 000-63, 000-64
#[test]
fn services_that_involve_a_departed_peer_stay_listed_until_they_are_deleted_by_hand() {
    let Left { world, from_it, to_it, .. } = left();
    let [zero, one, _] = &world.agents[..] else { unreachable!() };
    assert!(one.ledger.peer(zero.id()).unwrap().is_none());
    let listed = |agent: &Agent| agent.ledger.services().unwrap().iter().map(|s| s.id).collect::<Vec<_>>();
    let mut both = vec![from_it, to_it];
    both.sort();
    assert_eq!(listed(one), both);
    let tombstone = delete_service_of_departed(&one.ledger, &one.author, zero.id(), from_it).unwrap().unwrap();
    assert_eq!((tombstone.deleted_by(), listed(one)), (Some(one.id()), vec![to_it]));
    assert!(delete_service_of_departed(&one.ledger, &one.author, zero.id(), from_it).unwrap().is_none());
    assert!(
        delete_service_of_departed(&one.ledger, &one.author, one.id(), to_it).unwrap().is_none(),
        "its owner is here"
    );
}

#[test]
fn a_departed_peer_returns_only_by_an_operator_and_writes_above_all_it_wrote_before() {
    let Left { world, departure, .. } = left();
    let [zero, one, _] = &world.agents[..] else { unreachable!() };
    // As after clearing the database: a new birth, with the counter that stayed.
    for row in zero.ledger.peers().unwrap() {
        zero.ledger.forget_peer(row.peer_id).unwrap();
    }
    for record in zero.ledger.all_records() {
        zero.ledger.forget_record(&record.key).unwrap();
    }
    let mut rng = Rng::from_seed([42; 32]);
    let settings = OwnSettings {
        endpoints: vec!["n0".parse().unwrap()],
        data_ports: DataPorts::default(),
        api_access: ApiAccess::Public,
    };
    let words = FirstWords { name: "n0".into(), description: String::new() };
    let secret = Secret::mint(&mut rng);
    let birth = Birth::new(&zero.author, words, settings, &zero.entitlement.document, &secret, NOW, &mut rng);
    birth.write(&zero.ledger, &zero.author).unwrap();
    assert_eq!(world.prove(0, 1, Purpose::Add).err(), Some(Reason::Revoked));
    let Proven { initiated, answered } = world.prove(1, 0, Purpose::Add).unwrap();
    zero.accept(answered, true).unwrap();
    one.accept(initiated, false).unwrap();
    assert!(one.trusts(zero) && zero.trusts(one));
    assert_eq!(one.ledger.revocations().unwrap().standing(zero.id(), None), Standing::Clear);
    let again = leave(&zero.ledger, &zero.author, NOW).unwrap().unwrap();
    assert!(again.revocation.version > departure.revocation.version);
    merge_records(&one.ledger, &one.author, &[again.revocation]).unwrap();
    assert_eq!(one.ledger.revocations().unwrap().standing(zero.id(), None), Standing::Left);
}

#[test]
fn an_own_service_that_comes_back_after_its_target_was_removed_is_deleted() {
    let world = World::of(3);
    world.add(0, 1).unwrap();
    world.add(0, 2).unwrap();
    world.gossip();
    let [zero, one, two] = &world.agents[..] else { unreachable!() };
    let (to_removed, to_other) = (service(one, two), service(one, zero));
    let lost = one.ledger.all_records();
    for id in [to_removed, to_other] {
        let key = lost.iter().find(|r| r.key.id == id.to_string()).unwrap().key.clone();
        one.ledger.forget_record(&key).unwrap();
    }
    let revocation = remove_peer(&zero.ledger, &zero.author, two.id(), NOW).unwrap().unwrap();
    merge_records(&one.ledger, &one.author, std::slice::from_ref(&revocation)).unwrap();
    assert!(peer_was_revoked(&one.ledger, &one.author, two.id(), &[]).unwrap());
    let mut come_back = lost;
    come_back.retain(|r| r.key.kind == kind::SERVICE && r.key.owner == one.id());
    merge_records(&one.ledger, &one.author, &come_back).unwrap();
    let listed = || one.ledger.services().unwrap().iter().map(|s| s.id).collect::<Vec<_>>();
    assert_eq!(listed(), [to_other]);
    let tombstone = one.ledger.records_of(kind::SERVICE).unwrap().into_iter().find(|r| r.deleted).unwrap();
    assert!(come_back.iter().all(|record| record.version < tombstone.version), "it wins everywhere");
    republish(&one.ledger, &one.author, &come_back).unwrap();
    assert_eq!(listed(), [to_other]);
}
