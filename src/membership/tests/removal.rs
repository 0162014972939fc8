use super::*;
use crate::wire::record::{RecordKey, RevocationBody, RevocationReason};

fn voucher(of: &Agent, about: &Agent) -> RecordKey {
    RecordKey { kind: kind::VOUCHER.into(), id: about.id().to_string(), owner: of.id() }
}

#[test]
fn trust_that_is_not_returned_takes_the_own_word_and_what_the_peer_owns_along_but_no_revocation() {
    let world = World::of(3);
    world.add(0, 1).unwrap();
    world.add(1, 2).unwrap();
    world.gossip();
    let [zero, one, two] = &world.agents[..] else { unreachable!() };
    let revocation = remove_peer(&one.ledger, &one.author, two.id(), NOW).unwrap().unwrap();
    world.take(zero, one);
    assert!(withdraw_trust(&zero.ledger, &zero.author, one.id()).unwrap());
    assert!(!zero.trusts(one));
    assert!(zero.ledger.record(&voucher(zero, one)).unwrap().is_some_and(|word| word.deleted));
    let left: Vec<_> = zero.ledger.records_since(one.id(), 0).into_iter().map(|record| record.key).collect();
    assert_eq!(left, [revocation.key]);
    assert!(!withdraw_trust(&zero.ledger, &zero.author, one.id()).unwrap());
}

#[test]
fn the_own_word_for_a_removed_peer_ends_with_every_member() {
    let world = World::of(3);
    world.add(0, 1).unwrap();
    world.add(0, 2).unwrap();
    world.gossip();
    let [zero, one, two] = &world.agents[..] else { unreachable!() };
    let is_withdrawn =
        |agent: &Agent| agent.ledger.record(&voucher(agent, one)).unwrap().is_some_and(|word| word.deleted);
    let earlier = zero.ledger.record(&voucher(zero, one)).unwrap().unwrap();
    let removal = remove_peer(&two.ledger, &two.author, one.id(), NOW).unwrap().unwrap();
    assert!(is_withdrawn(two));
    merge_records(&zero.ledger, &zero.author, &[removal]).unwrap();
    peer_was_revoked(&zero.ledger, &zero.author, one.id(), &[]).unwrap();
    assert!(is_withdrawn(zero));
    // A lost database held it, and it comes back.
    zero.ledger.forget_record(&earlier.key).unwrap();
    merge_records(&zero.ledger, &zero.author, &[earlier]).unwrap();
    assert!(is_withdrawn(zero));
}

#[test]
fn a_removed_agent_keeps_what_it_holds_of_peers_that_do_not_take_it_back() {
    let world = World::of(3);
    world.add(0, 1).unwrap();
    world.add(0, 2).unwrap();
    world.gossip();
    let [zero, one, two] = &world.agents[..] else { unreachable!() };
    let removal = remove_peer(&two.ledger, &two.author, one.id(), NOW).unwrap().unwrap();
    merge_records(&one.ledger, &one.author, &[removal]).unwrap();
    let held = one.ledger.records_since(zero.id(), 0);
    assert!(withdraw_trust(&one.ledger, &one.author, zero.id()).unwrap());
    assert_eq!(one.ledger.records_since(zero.id(), 0), held);
}

#[test]
fn a_peer_whose_readmission_is_void_learns_why_it_is_not_trusted() {
    // n0 removes n1, n2 takes it back, n0 removes n2: n2's word is void, and n1 is out again.
    let world = World::of(3);
    world.add(0, 1).unwrap();
    world.add(0, 2).unwrap();
    world.gossip();
    let [zero, one, two] = &world.agents[..] else { unreachable!() };
    let first = remove_peer(&zero.ledger, &zero.author, one.id(), NOW).unwrap().unwrap();
    merge_records(&two.ledger, &two.author, std::slice::from_ref(&first)).unwrap();
    world.add(2, 1).unwrap();
    world.gossip();
    assert!(one.trusts(zero) && zero.trusts(one));
    let second = remove_peer(&zero.ledger, &zero.author, two.id(), NOW).unwrap().unwrap();
    let told = grounds(&zero.ledger, one.id()).unwrap();
    assert_eq!(told, [first, second.clone()]);
    assert_eq!(take_grounds(&one.ledger, &one.author, &told).unwrap().last(), Some(&second));
    assert!(one.ledger.revoked_identities().unwrap().contains(&(one.id(), one.author.key.public())));
    assert_eq!(take_grounds(&one.ledger, &one.author, &told).unwrap(), [], "told twice it is no news");
}

#[test]
fn grounds_count_only_from_peers_that_are_trusted_and_only_if_they_are_genuine() {
    let world = World::of(3);
    world.add(0, 1).unwrap();
    let [zero, one, stranger] = &world.agents[..] else { unreachable!() };
    let body = RevocationBody {
        peer_id: Some(one.id()),
        public_key: Some(one.author.key.public()),
        client_id: None,
        reason: RevocationReason::Deleted,
        revoked_at: NOW,
    };
    let id = one.id().to_string();
    let of_stranger = stranger.ledger.put_own(&stranger.author, kind::REVOCATION, &id, &body).unwrap();
    let mut forged = zero.ledger.put_own(&zero.author, kind::REVOCATION, &id, &body).unwrap();
    forged.version += 1;
    let other_subject = zero.ledger.put_own(&zero.author, kind::REVOCATION, &stranger.id().to_string(), &body).unwrap();
    let before = one.ledger.all_records();
    assert_eq!(take_grounds(&one.ledger, &one.author, &[of_stranger, forged, other_subject]).unwrap(), []);
    assert_eq!(one.ledger.all_records(), before);
}

#[test]
fn a_peer_that_was_only_vouched_for_is_forgotten_when_its_removal_is_heard_of() {
    let world = World::of(3);
    world.add(0, 1).unwrap();
    world.add(1, 2).unwrap();
    let [zero, one, two] = &world.agents[..] else { unreachable!() };
    let met = PeerRow { trusted: false, ..PeerRow::trusted(two.id(), two.author.key.public(), Vec::new(), NOW) };
    zero.ledger.put_peer(&met).unwrap();
    let revocation = remove_peer(&one.ledger, &one.author, two.id(), NOW).unwrap().unwrap();
    merge_records(&zero.ledger, &zero.author, &[revocation]).unwrap();
    assert_eq!(zero.ledger.peer(two.id()).unwrap(), None);
}
