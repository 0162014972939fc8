//! Runs without an attacker: lost messages, dead endpoints, renewals, both at once.

use super::*;
use crate::model::{Code, Refused, Rng};
use proptest::prelude::*;

// accepts: 000-25, 000-26, 000-28, 000-30, 001-33
#[test]
fn both_store_each_other_and_the_answer_carries_a_voucher() {
    let mut world = World::of(2);
    let seen = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
    let tape = seen.clone();
    world.tamper = Box::new(move |leg, value| tape.borrow_mut().push((leg, value.clone())));
    let accepted = done(world.add(0, 1));
    world.assert_stored_both(0, 1);

    let legs: Vec<Leg> = seen.borrow().iter().map(|(leg, _)| *leg).collect();
    use Leg::*;
    assert_eq!(legs, [Identity, Init, InitResponse, Finish, ReverseIdentity, FinishResponse]);
    let challenge = seen.borrow()[1].1["challenge"].as_str().unwrap().to_owned();
    assert_eq!(BASE64.decode(challenge).unwrap().len(), 32);
    assert_eq!(seen.borrow()[0].1["public_key"], json!(world.agents[1].local.key.public()));

    let voucher = &accepted.voucher;
    assert_eq!((voucher.subject_peer_id, voucher.issuer_peer_id), (world.id(0), world.id(1)));
    assert!(voucher.transcript().verify(&world.agents[1].local.key.public(), &voucher.signature));
    assert_eq!(voucher.expires_at, WALL.plus(VOUCHER_LIFETIME));
    assert_eq!(voucher, &world.agents[1].stored[&world.id(0)].voucher);
    let clusters = [0, 1].map(|n: usize| world.agents[n].local.cluster_id);
    assert_eq!(accepted.merged_cluster_id(clusters[0]), clusters.into_iter().min().unwrap());
}

#[test]
fn licenses_and_members_never_cross_in_clear() {
    let mut world = World::of(3);
    world.befriend(1, 2);
    let third = world.id(2).to_string();
    let license = world.agents[0].local.license["signature"].as_str().unwrap().to_owned();
    world.tamper = Box::new(move |_, value| {
        let text = value.to_string();
        assert!(!text.contains(&third) && !text.contains(&license));
    });
    let accepted = done(world.add(0, 1));
    assert!(accepted.members.contains(&world.id(2)));
}

#[test]
fn another_license_of_the_same_customer_is_accepted_with_a_warning() {
    let mut world = World::of(2);
    let customer = world.agents[0].local.customer_id;
    let renewed = LicenseId::mint(WALL, &mut Rng::from_seed([5; 32]));
    world.agents[1].license(renewed, customer, 10);
    assert!(done(world.add(0, 1)).license_differs);
    assert!(world.agents[1].stored[&world.id(0)].license_differs);
    world.assert_stored_both(0, 1);

    let mut same = World::of(2);
    assert!(!done(same.add(0, 1)).license_differs);
    assert_eq!(same.agents[0].vendor.verified.get(), 0);
}

#[test]
fn an_agent_that_knows_no_endpoint_learns_it_from_the_other_side() {
    let mut world = World::of(2);
    for agent in &mut world.agents {
        agent.local.endpoints.clear();
        agent.sign_record();
    }
    world.sites.insert(endpoint("10.0.0.1:9443"), Site::Agent(0));
    let accepted = done(world.add(0, 1));
    assert_eq!(accepted.own_endpoints, [endpoint("10.0.0.1:9443")]);
    assert_eq!(accepted.endpoints, [endpoint("n1")]);
    let other = &world.agents[1].stored[&world.id(0)];
    assert_eq!(
        (&other.own_endpoints[..], &other.endpoints[..]),
        (&[endpoint("n1")][..], &[endpoint("10.0.0.1:9443")][..])
    );
}

#[test]
fn trust_can_be_renewed_and_a_peer_that_lost_its_database_comes_back() {
    let mut world = World::of(2);
    done(world.add(0, 1));
    let target = world.target(1);
    done(world.run(0, target));
    world.agents[1].held = Held::default();
    world.agents[1].stored.clear();
    let target = world.target(1);
    done(world.run(0, target));
    world.assert_stored_both(0, 1);
}

#[test]
fn two_that_call_each_other_at_once_both_succeed() {
    let mut world = World::of(2);
    let mut machines = [Initiator::new(world.target(1), world.now), Initiator::new(world.target(0), world.now)];
    let mut ended = [None, None];
    while ended.iter().any(Option::is_none) {
        for n in 0..2 {
            if ended[n].is_none() {
                ended[n] = world.step(n, &mut machines[n]);
            }
        }
    }
    assert!(ended.iter().all(|e| matches!(e, Some(Event::Done(_)))));
    world.assert_stored_both(0, 1);
}

// accepts: 000-16, 000-17
#[test]
fn endpoints_are_tried_in_order_and_the_first_that_answers_serves() {
    let mut world = World::of(2);
    world.sites.insert(endpoint("a"), Site::Dead(DialFailure::Refused));
    world.sites.insert(endpoint("b"), Site::Dead(DialFailure::Timeout));
    let target = Target { endpoints: ["a", "b", "n1", "n0"].map(endpoint).to_vec(), ..world.target(1) };
    done(world.run(0, target));
    let called: Vec<String> = world.calls.iter().map(|(_, e, _)| e.host().to_owned()).collect();
    assert_eq!(called, ["a", "b", "n1", "n1", "n1"]);
}

#[test]
fn an_operators_endpoint_that_leads_back_is_refused_at_once_and_one_from_gossip_is_passed_over() {
    for purpose in [Purpose::Add, Purpose::Join] {
        let mut world = World::of(2);
        world.sites.insert(endpoint("here"), Site::Dead(DialFailure::NotAnotherHost));
        let endpoints = ["here", "n1"].map(endpoint).to_vec();
        let expected_peer = (purpose == Purpose::Join).then(|| world.agents[1].local.peer_id);
        let target = Target { endpoints, purpose, expected_peer, ..world.target(1) };
        match (purpose, world.run(0, target)) {
            (Purpose::Add, Event::Failed(failure)) => {
                assert_eq!((failure.reason, failure.attempts), (Reason::OwnId, 1));
                assert_eq!(Refused::from(&failure).code, Code::InvalidRequest);
            }
            (Purpose::Join, Event::Done(_)) => {}
            (_, event) => panic!("{purpose:?}: {event:?}"),
        }
    }
}

fn site() -> impl Strategy<Value = DialFailure> {
    prop_oneof![
        Just(DialFailure::Refused),
        Just(DialFailure::Timeout),
        Just(DialFailure::NameNotFound),
        Just(DialFailure::Failed)
    ]
}

fn loss() -> impl Strategy<Value = Option<Loss>> {
    prop_oneof![site().prop_map(|f| Some(Loss::Request(f))), Just(Some(Loss::Answer)), Just(None)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// With one live endpoint on each side, whatever stands before it and whichever two calls are lost, both end up
    /// storing each other.
    #[test]
    fn an_honest_run_always_ends_in_trust(
        dead_at_target in prop::collection::vec(site(), 0..4),
        dead_at_caller in prop::collection::vec(site(), 0..4),
        quiet_before in 0usize..4,
        lost in prop::collection::vec(loss(), 0..2),
        lost_later in loss(),
        wait_ms in 0u64..20_000,
        same_license in any::<bool>(),
        known in 0u8..3,
    ) {
        let mut world = World::of(2);
        world.now = world.now + Duration::from_millis(wait_ms);
        for (prefix, dead) in [("t", &dead_at_target), ("c", &dead_at_caller)] {
            for (n, failure) in dead.iter().enumerate() {
                world.sites.insert(endpoint(&format!("{prefix}{n}")), Site::Dead(*failure));
            }
        }
        let list = |prefix: &str, dead: usize, live: &str| {
            (0..dead).map(|n| endpoint(&format!("{prefix}{n}"))).chain([endpoint(live)]).collect::<Vec<_>>()
        };
        world.agents[0].local.endpoints = list("c", dead_at_caller.len(), "n0");
        world.agents[0].sign_record();
        if !same_license {
            let customer = world.agents[0].local.customer_id;
            world.agents[1].license(LicenseId::mint(WALL, &mut Rng::from_seed([5; 32])), customer, 10);
        }
        if known > 0 {
            let (id, key) = (world.id(1), world.agents[1].local.key.public());
            world.agents[0].held.hold(id, key);
        }
        if known > 1 {
            world.befriend(0, 1);
        }
        // Losses hit the calls to the one live endpoint: at most two, so that one of the three attempts is whole.
        let dead_calls = dead_at_target.len();
        let mut losses = vec![None; dead_calls + quiet_before.min(2)];
        losses.extend(lost);
        losses.push(lost_later);
        world.losses = losses;
        let target = Target { endpoints: list("t", dead_calls, "n1"), ..world.target(1) };
        let accepted = done(world.run(0, target));
        prop_assert_eq!(accepted.license_differs, !same_license);
        world.assert_stored_both(0, 1);
        let now = world.now;
        prop_assert_eq!(world.agents[1].open_sessions_after_expiry(now), 0);
    }
}
