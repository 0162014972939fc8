use super::*;
use crate::{gossip::Discovery, model::Code, wire::record::RecordKey};

#[test]
fn a_revocation_that_came_between_keeps_the_proven_peer_out() {
    let world = World::of(3);
    world.add(0, 2).unwrap();
    let Proven { answered, .. } = world.prove(1, 0, Purpose::Add).unwrap();
    let [zero, one, two] = &world.agents[..] else { unreachable!() };
    // n2 removes n1, and n0 hears of it while n1's handshake is under way.
    world.add(1, 2).unwrap();
    let revocation = remove_peer(&two.ledger, &two.author, one.id(), NOW).unwrap().unwrap();
    merge_records(&zero.ledger, &zero.author, &[revocation]).unwrap();
    let before = zero.ledger.all_records();
    assert_eq!(zero.accept(answered, true).unwrap_err().code, Code::HandshakeFailed);
    assert!(!zero.trusts(one));
    assert_eq!(zero.ledger.all_records(), before, "a refused change has changed nothing");
}

#[test]
fn two_handshakes_at_once_do_not_pass_the_node_limit() {
    let mut world = World::of(3);
    world.relicense(0, 2);
    let first = world.prove(1, 0, Purpose::Add).unwrap();
    let second = world.prove(2, 0, Purpose::Add).unwrap();
    let zero = &world.agents[0];
    zero.accept(first.answered, true).unwrap();
    assert_eq!(zero.accept(second.answered, true).unwrap_err().code, Code::NodeLimitExceeded);
    assert_eq!(zero.ledger.trusted_peers().unwrap().len(), 2);
}

#[test]
fn peers_taken_in_at_the_same_moment_become_members_everywhere_and_nobody_after_them() {
    let mut world = World::of(5);
    (0..5).for_each(|n| world.relicense(n, 3));
    world.add(0, 1).unwrap();
    // Each of the two members has room for one more, and takes in another one.
    world.add(0, 2).unwrap();
    world.add(1, 3).unwrap();
    world.gossip();
    for (n, m) in [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)] {
        let (one, other) = (&world.agents[n], &world.agents[m]);
        assert!(one.trusts(other) && other.trusts(one), "n{n} and n{m}");
    }
    assert_eq!(world.add(0, 4), Err(Reason::NodeLimitExceeded));
    assert_eq!(world.add(4, 3), Err(Reason::NodeLimitExceeded));
}

#[test]
fn a_word_that_is_not_half_over_is_not_given_again() {
    let world = World::of(2);
    world.add(0, 1).unwrap();
    let [zero, one] = &world.agents[..] else { unreachable!() };
    let versions = |agent: &Agent| agent.ledger.own_version().unwrap();
    let before = (versions(zero), versions(one));
    let renewal = world.prove(0, 1, Purpose::Join).unwrap();
    one.accept(renewal.answered, true).unwrap();
    zero.accept(renewal.initiated.clone(), false).unwrap();
    assert_eq!((versions(zero), versions(one)), before);
    let late = NOW.plus(crate::handshake::VOUCHER_LIFETIME / 2);
    let acceptance = Acceptance { accepted: renewal.initiated, local_name: None, we_answered: false, now: late };
    accept(&zero.ledger, zero.own(), &acceptance).unwrap();
    assert_eq!(versions(zero), before.0 + 1);
}

#[test]
fn words_are_given_anew_when_half_over_while_trust_lasts() {
    let world = World::of(3);
    world.add(0, 1).unwrap();
    world.add(0, 2).unwrap();
    let [zero, one, two] = &world.agents[..] else { unreachable!() };
    let late = NOW.plus(crate::handshake::VOUCHER_LIFETIME / 2);
    let renew = |now| renew_vouchers(&zero.ledger, zero.own(), now).unwrap();
    assert_eq!(renew(late.minus(Duration::from_secs(1))), 0, "neither is half over");
    assert_eq!(renew(late), 2);
    assert_eq!(renew(late), 0, "both are new");
    // The clock was ahead when they were given.
    assert_eq!(renew(NOW), 2);
    withdraw_trust(&zero.ledger, &zero.author, one.id()).unwrap();
    assert_eq!(renew(late), 1, "of a peer that is not trusted nothing is said");
    let words = zero.ledger.records_of(kind::VOUCHER).unwrap();
    let live: Vec<_> = words.iter().filter(|r| r.key.owner == zero.id() && !r.deleted).collect();
    assert_eq!(live.len(), 1);
    let word: Voucher = live[0].body_as().unwrap();
    assert_eq!((word.subject_peer_id, word.expires_at), (two.id(), late.plus(crate::handshake::VOUCHER_LIFETIME)));
    let held = one.side().held;
    assert!(handshake::accept_voucher(&word, &held, word.customer_id, late).is_ok(), "and it is a good one");
}

#[test]
fn a_license_that_shrank_keeps_its_members_and_takes_no_other() {
    let mut world = World::of(4);
    world.add(0, 1).unwrap();
    world.add(0, 2).unwrap();
    let renewal = world.prove(0, 1, Purpose::Join).unwrap();
    let newcomer = world.prove(0, 3, Purpose::Join).unwrap();
    world.relicense(0, 2);
    let zero = &world.agents[0];
    zero.accept(renewal.initiated, false).unwrap();
    assert_eq!(zero.accept(newcomer.initiated, false).unwrap_err().code, Code::NodeLimitExceeded);
}

#[test]
fn a_member_that_removed_another_takes_it_back_only_by_its_operator() {
    let world = World::of(2);
    world.add(0, 1).unwrap();
    let [zero, one] = &world.agents[..] else { unreachable!() };
    remove_peer(&zero.ledger, &zero.author, one.id(), NOW).unwrap().unwrap();
    assert!(!zero.trusts(one));
    assert_eq!(world.prove(1, 0, Purpose::Join).err(), Some(Reason::Revoked));
    let Proven { initiated, answered } = world.prove(0, 1, Purpose::Add).unwrap();
    one.accept(answered, true).unwrap();
    let brought = zero.accept(initiated, false).unwrap();
    assert!(brought.iter().any(|r| r.key.kind == kind::READMISSION));
    assert!(zero.trusts(one) && zero.ledger.revoked_identities().unwrap().is_empty());
}

#[test]
fn the_list_of_peers_add_comes_before_the_host_of_the_bootstrap_and_never_before_what_is_configured() {
    let hosts = |agent: &Agent| agent.side().local.endpoints.iter().map(Endpoint::to_string).collect::<Vec<_>>();
    let mut world = World::of(2);
    for (endpoints_are_set, expected) in [(true, vec!["n1:8080"]), (false, vec!["wan-1:8080", "wan-2:8080", "n1:8080"])]
    {
        world.agents[1].endpoints_are_set = endpoints_are_set;
        let Proven { initiated, mut answered } = world.prove(0, 1, Purpose::Join).unwrap();
        answered.own_endpoints = ["wan-1", "n1", "wan-2", "wan-1"].map(|e| e.parse().unwrap()).to_vec();
        let [zero, one] = &world.agents[..] else { unreachable!() };
        one.accept(answered.clone(), true).unwrap();
        assert_eq!(hosts(one), expected);
        let own = one.ledger.peer(one.id()).unwrap().unwrap().body.unwrap();
        assert_eq!(own.endpoints.iter().map(Endpoint::to_string).collect::<Vec<_>>(), expected, "it is published");
        // Told again, or too much for one list: nothing changes. Nor does what a called peer saw.
        one.accept(answered.clone(), true).unwrap();
        answered.own_endpoints = (0..16).map(|n| format!("junk-{n}").parse().unwrap()).collect();
        one.accept(answered, true).unwrap();
        assert_eq!(hosts(one), expected);
        let seen = vec!["192.0.2.7:8080".parse().unwrap()];
        zero.accept(crate::handshake::Accepted { own_endpoints: seen, ..initiated }, false).unwrap();
        assert_eq!(hosts(zero), ["n0:8080"]);
    }
}

#[test]
fn a_candidate_lives_as_long_as_a_trusted_peer_vouches_for_it_and_others_count_once_its_issuer_is_gone() {
    let world = World::of(4);
    for other in [1, 2] {
        world.add(0, other).unwrap();
    }
    world.add(2, 3).unwrap();
    let [zero, liar, honest, subject] = &world.agents[..] else { unreachable!() };
    let wrong = SigningKey::from_seed([77; 32]).public();
    let lie = handshake::issue_voucher(&liar.side().local, subject.id(), wrong, vec!["nowhere".parse().unwrap()], NOW);
    liar.ledger.put_own(&liar.author, kind::VOUCHER, &subject.id().to_string(), &lie).unwrap();
    world.take(zero, liar);
    world.take(zero, honest);
    let told = |by: &Agent| {
        let key = RecordKey { kind: kind::VOUCHER.into(), id: subject.id().to_string(), owner: by.id() };
        let voucher: Voucher = by.ledger.record(&key).unwrap().unwrap().body_as().unwrap();
        let found = Discovery { peer: subject.id(), name: None, endpoints: Vec::new(), voucher: Some(voucher) };
        discovered(&zero.ledger, zero.own(), &found, NOW).unwrap()
    };
    let key = || zero.ledger.peer(subject.id()).unwrap().map(|row| row.public_key);
    let forget = |now| forget_unvouched(&zero.ledger, zero.own(), now).unwrap();
    assert!(told(liar).is_some() && told(honest).is_none(), "the key that is held conflicts");
    assert_eq!((forget(NOW), key()), (vec![], Some(wrong)));
    remove_peer(&zero.ledger, &zero.author, liar.id(), NOW).unwrap().unwrap();
    assert_eq!(forget(NOW), [(subject.id(), vec!["n3".parse().unwrap()])]);
    assert_eq!(key(), Some(subject.author.key.public()));
    assert_eq!((forget(NOW.plus(handshake::VOUCHER_LIFETIME)), key()), (vec![], None), "the word has expired");
}

#[test]
fn a_key_that_was_proven_here_is_held_though_nobody_vouches_for_it() {
    let world = World::of(2);
    world.add(0, 1).unwrap();
    let [zero, one] = &world.agents[..] else { unreachable!() };
    withdraw_trust(&zero.ledger, &zero.author, one.id()).unwrap();
    assert_eq!(forget_unvouched(&zero.ledger, zero.own(), NOW).unwrap(), []);
    assert!(zero.ledger.peer(one.id()).unwrap().is_some());
}
