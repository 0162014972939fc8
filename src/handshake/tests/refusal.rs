//! Every documented refusal: its text, whether it is retried, and that nobody is trusted afterwards.

use super::*;

fn other_customer(world: &mut World, n: usize) {
    let mut rng = Rng::from_seed([6; 32]);
    let (license, customer) = (LicenseId::mint(WALL, &mut rng), CustomerId::mint(WALL, &mut rng));
    world.agents[n].license(license, customer, 10);
}

/// Runs `peers add` from 0 to 1: refused with `reason`, at the first attempt, without trust on either side.
fn refused_at_once(mut world: World, reason: Reason) -> World {
    let failed = failure(world.add(0, 1));
    assert_eq!((failed.reason, failed.attempts), (reason, 1), "{failed:?}");
    assert!(reason.is_definite());
    assert!(world.agents.iter().all(|a| a.stored.is_empty()));
    world
}

// accepts: 000-32, 001-37, 001-39
#[test]
fn a_closed_port_is_tried_three_times_at_0_1_and_3_seconds() {
    let mut world = World::of(2);
    world.sites.insert(endpoint("n1"), Site::Dead(DialFailure::Refused));
    let start = world.now;
    let failed = failure(world.add(0, 1));
    assert_eq!(failed.to_string(), "handshake failed: connection refused");
    assert_eq!(failed.details()["endpoint"], "n1:8080");
    assert_eq!(failed.details()["direction"], "forward");
    let at: Vec<Duration> = world.calls.iter().map(|(t, _, _)| *t - start).collect();
    assert_eq!(at, [secs(0), secs(1), secs(3)]);
    world.assert_strangers(0, 1);
}

// accepts: 001-40
#[test]
fn silence_is_a_timeout_and_delays_the_next_attempt() {
    let mut world = World::of(2);
    world.sites.insert(endpoint("n1"), Site::Dead(DialFailure::Timeout));
    let start = world.now;
    let failed = failure(world.add(0, 1));
    assert_eq!(failed.to_string(), "handshake failed: connection timeout");
    let at: Vec<Duration> = world.calls.iter().map(|(t, _, _)| *t - start).collect();
    assert_eq!(at, [secs(0), secs(3), secs(6)]);
}

#[test]
fn many_silent_endpoints_end_within_the_minute_that_peers_add_may_take() {
    let mut world = World::of(2);
    let silent: Vec<Endpoint> = (0..16).map(|n| endpoint(&format!("s{n}"))).collect();
    for endpoint in &silent {
        world.sites.insert(endpoint.clone(), Site::Dead(DialFailure::Timeout));
    }
    let start = world.now;
    let target = Target { endpoints: silent, purpose: Purpose::Add, ..world.target(1) };
    let failed = failure(world.run(0, target));
    assert_eq!(failed.to_string(), "handshake failed: connection timeout");
    let called: BTreeSet<&Endpoint> = world.calls.iter().map(|(_, e, _)| e).collect();
    assert_eq!(called.len(), 16, "each is tried at least once");
    assert!(world.now - start < secs(60));
}

#[test]
fn a_failed_call_back_names_the_direction_and_the_endpoint() {
    for (dead, text) in [
        (DialFailure::Refused, "handshake failed: connection refused"),
        (DialFailure::Timeout, "handshake failed: connection timeout"),
    ] {
        let mut world = World::of(2);
        world.sites.insert(endpoint("n0"), Site::Dead(dead));
        let failed = failure(world.add(0, 1));
        assert_eq!((failed.to_string().as_str(), failed.attempts), (text, 3));
        assert_eq!(failed.details()["direction"], "reverse");
        assert_eq!(failed.details()["endpoint"], "n0:8080");
        world.assert_strangers(0, 1);
    }
}

// accepts: 000-27, 000-33, 001-41, 001-42
#[test]
fn another_customer_is_a_mismatch_and_costs_no_verification() {
    let mut world = World::of(2);
    other_customer(&mut world, 0);
    let world = refused_at_once(world, Reason::LicenseMismatch);
    assert_eq!(world.agents[1].vendor.verified.get(), 0);
}

#[test]
fn a_license_by_an_unknown_signer_is_invalid_and_costs_one_verification() {
    let mut world = World::of(2);
    world.agents[0].vendor = Vendor::new("someone else");
    let (customer, mut rng) = (world.agents[0].local.customer_id, Rng::from_seed([6; 32]));
    world.agents[0].license(LicenseId::mint(WALL, &mut rng), customer, 10);
    let world = refused_at_once(world, Reason::LicenseInvalid);
    assert_eq!(world.agents[1].vendor.verified.get(), 1);
}

#[test]
fn a_license_id_that_is_not_the_documents_is_refused() {
    for n in 0..2 {
        let mut world = World::of(2);
        let genuine = world.agents[n].local.license.clone();
        let customer = world.agents[n].local.customer_id;
        world.agents[n].license(LicenseId::mint(WALL, &mut Rng::from_seed([6; 32])), customer, 10);
        world.agents[n].local.license = genuine;
        let failed = failure(world.add(0, 1));
        assert_eq!(failed.reason, Reason::LicenseInvalid);
        assert!(world.agents[0].stored.is_empty());
    }
}

#[test]
fn the_initiator_refuses_a_responder_of_another_customer_by_itself() {
    let mut world = World::of(2);
    let customer = world.agents[0].local.customer_id;
    other_customer(&mut world, 1);
    // A responder that lets everyone in.
    world.agents[1].local.customer_id = customer;
    assert_eq!(world.reason_of_add(0, 1), Reason::LicenseMismatch);
    assert!(world.agents[0].stored.is_empty());
}

// accepts: 001-35, 001-45
#[test]
fn a_corrupted_or_replaced_key_is_an_invalid_signature() {
    let (held, pinned) = (SigningKey::from_seed([1; 32]).public(), SigningKey::from_seed([2; 32]).public());

    let mut world = World::of(2);
    let id = world.id(1);
    world.agents[0].held.hold(id, held);
    let world = refused_at_once(world, Reason::KeyChanged);
    assert_eq!(world.calls.len(), 1);

    let mut world = World::of(2);
    let id = world.id(0);
    world.agents[1].held.hold(id, held);
    let failed = failure(world.add(0, 1));
    assert_eq!(failed.to_string(), "handshake failed: invalid signature");
    assert_eq!(failed.attempts, 1);
    world.assert_strangers(0, 1);

    let mut world = World::of(2);
    let failed = failure(world.run(0, Target { pinned_key: Some(pinned), ..world.target(1) }));
    assert_eq!(failed.to_string(), "handshake failed: invalid signature");
    assert_eq!(world.calls.len(), 1);
    let right = world.agents[1].local.key.public();
    done(world.run(0, Target { pinned_key: Some(right), ..world.target(1) }));

    // Either side signs with a key that is not the one it shows.
    for n in 0..2 {
        let mut world = World::of(2);
        let genuine = world.agents[n].local.key.public();
        world.agents[n].local.key = SigningKey::from_seed([3; 32]);
        world.tamper = Box::new(move |leg, value| {
            let shown = if n == 0 { leg == Leg::Init } else { matches!(leg, Leg::Identity | Leg::InitResponse) };
            if shown {
                value["public_key"] = json!(genuine);
            }
        });
        let failed = failure(world.add(0, 1));
        assert_eq!(failed.to_string(), "handshake failed: invalid signature");
        assert_eq!(failed.attempts, 1);
        // Whoever cannot sign for the responder is not shown the license.
        assert!(n == 0 || world.calls.iter().all(|(_, _, path)| *path != handshake::FINISH_PATH));
        world.assert_strangers(0, 1);
    }
}

#[test]
fn a_held_key_under_another_id_is_refused() {
    let mut world = World::of(3);
    let (id, key) = (world.id(2), world.agents[1].local.key.public());
    world.agents[0].held.hold(id, key);
    refused_at_once(world, Reason::KeyChanged);
}

// accepts: 001-48
#[test]
fn the_node_limit_of_either_side_refuses_the_union() {
    // (members of 0, of 1, limit of 0, of 1): 0 and 1 themselves count.
    for (of_0, of_1, limit_0, limit_1, fits) in [
        (0, 0, 2, 2, true),
        (0, 0, 1, 9, false),
        (0, 0, 9, 1, false),
        (2, 2, 6, 6, true),
        (2, 2, 6, 5, false),
        (2, 2, 5, 6, false),
    ] {
        let mut world = World::of(2);
        let mut rng = Rng::from_seed([4; 32]);
        let customer = world.agents[0].local.customer_id;
        for (n, members, limit) in [(0, of_0, limit_0), (1, of_1, limit_1)] {
            let license = LicenseId::mint(WALL, &mut rng);
            world.agents[n].license(license, customer, limit);
            for _ in 0..members {
                let member = PeerId::mint(WALL, &mut rng);
                world.agents[n].local.members.insert(member);
            }
        }
        let case = (of_0, of_1, limit_0, limit_1);
        match world.add(0, 1) {
            Event::Done(_) => assert!(fits, "{case:?}"),
            Event::Failed(failed) => {
                assert_eq!((failed.reason, failed.attempts), (Reason::NodeLimitExceeded, 1), "{case:?}");
                assert_eq!(failed.to_string(), "handshake failed: node limit exceeded");
                assert!(!fits, "{case:?}");
                world.assert_strangers(0, 1);
            }
        }
    }
}

#[test]
fn shared_members_count_once_and_a_renewal_adds_nobody() {
    let mut world = World::of(3);
    let customer = world.agents[0].local.customer_id;
    for agent in &mut world.agents {
        agent.license(agent.local.license_id, customer, 3);
    }
    world.befriend(0, 2);
    world.befriend(1, 2);
    done(world.add(0, 1));
    for agent in &mut world.agents {
        agent.license(agent.local.license_id, customer, 1);
    }
    let target = world.target(1);
    done(world.run(0, target));
}

#[test]
fn the_limit_is_judged_again_after_the_call_back() {
    let mut world = World::of(2);
    let (init, response, finish, _) = hostile::exchange(&mut world);
    assert_eq!(init.peer_id, world.id(0));
    let now = world.now;
    let Agent { local, held, vendor, responder, rng, .. } = &mut world.agents[1];
    let pending = responder.handle_finish(Here { local, held, licenses: vendor }, &finish, now).unwrap();
    assert_eq!(pending.session, response.session);
    local.members.extend((0..9).map(|_| PeerId::mint(WALL, rng)));
    let answer = world.dial_back(&pending);
    let Agent { local, held, vendor, responder, rng, .. } = &mut world.agents[1];
    let here = Here { local, held, licenses: vendor };
    let refused = responder.confirm_reverse(here, &pending.session, &answer, now, WALL, rng).unwrap_err();
    assert_eq!(refused.reason, Reason::NodeLimitExceeded);
    let again = responder.confirm_reverse(here, &pending.session, &answer, now, WALL, rng).unwrap_err();
    assert_eq!(again.reason, Reason::SessionExpired);
}

// accepts: 001-46
#[test]
fn adding_a_trusted_peer_says_that_it_exists() {
    let mut world = World::of(2);
    done(world.add(0, 1));
    let failed = failure(world.add(0, 1));
    assert_eq!(
        (failed.to_string().as_str(), failed.reason.code().text()),
        ("peer already exists in cluster", "ALREADY_EXISTS")
    );
    assert_eq!(failed.attempts, 1);
}

#[test]
fn the_own_endpoint_is_refused_at_once() {
    let mut world = World::of(2);
    world.sites.insert(endpoint("n1"), Site::Agent(0));
    let failed = failure(world.add(0, 1));
    assert_eq!((failed.reason.code().text(), failed.attempts), ("INVALID_REQUEST", 1));
    // Where another peer is expected, the own answer only means that the endpoint is a wrong one.
    let expected = Some(world.id(1));
    world.sites.insert(endpoint("right"), Site::Agent(1));
    let endpoints = vec![endpoint("n1"), endpoint("right")];
    done(world.run(0, Target { endpoints, expected_peer: expected, ..world.target(1) }));
}

#[test]
fn a_revoked_peer_is_refused_everywhere_unless_the_operator_takes_it_back() {
    // Whoever revoked does not answer either.
    let mut world = World::of(2);
    let (id, key) = (world.id(0), world.agents[0].local.key.public());
    world.agents[1].held.revoke(id, key);
    let world = refused_at_once(world, Reason::Revoked);
    assert_eq!(world.agents[1].responder.open_sessions(), 0);

    let revoker = |id_of: usize, key_of: usize| {
        let mut world = World::of(3);
        let (id, key) = (world.id(id_of), world.agents[key_of].local.key.public());
        world.agents[0].held.revoke(id, key);
        world
    };
    let mut world = revoker(1, 1);
    let target = world.target(1);
    assert_eq!(failure(world.run(0, target)).reason, Reason::Revoked);
    assert!(done(world.add(0, 1)).readmitted);
    // One that is removed itself readmits nobody: the word of it would be void.
    let mut world = revoker(1, 1);
    let (own, own_key) = (world.id(0), world.agents[0].local.key.public());
    world.agents[0].held.revoke(own, own_key);
    assert_eq!(failure(world.add(0, 1)).reason, Reason::Revoked);
    // Neither the id under a new key nor the key under a new id comes back, not even for the operator.
    refused_at_once(revoker(1, 2), Reason::Revoked);
    refused_at_once(revoker(2, 1), Reason::Revoked);
}

#[test]
fn a_license_past_grace_lets_no_new_peer_in_on_either_side() {
    for n in 0..2 {
        let mut world = World::of(2);
        world.agents[n].local.gate = LicenseGate::ReadOnly;
        let failed = failure(world.add(0, 1));
        assert_eq!((failed.to_string().as_str(), failed.attempts), ("handshake failed: license read-only", 1));
        world.assert_strangers(0, 1);

        world.befriend(0, 1);
        let target = world.target(1);
        done(world.run(0, target));

        world.agents[n].local.gate = LicenseGate::Suspended;
        let target = world.target(1);
        let failed = failure(world.run(0, target));
        assert_eq!(failed.to_string(), "handshake failed: license suspended");
    }
}

#[test]
fn an_agent_without_a_cluster_is_asked_again() {
    let mut world = World::of(2);
    let mut asked = 0;
    world.tamper = Box::new(move |leg, value| {
        if leg == Leg::Identity {
            asked += 1;
            if asked < 3 {
                *value = json!({"peer_id": "", "public_key": "", "license_id": "", "cluster_id": "", "version": "v1"});
            }
        }
    });
    done(world.add(0, 1));
    assert_eq!(world.calls.len(), 5);
}

#[test]
fn an_unreadable_answer_is_retried_and_never_shown() {
    let mut world = World::of(2);
    world.tamper = Box::new(|leg, value| {
        if leg == Leg::Identity {
            *value = json!({"html": "<script>"});
        }
    });
    let failed = failure(world.add(0, 1));
    assert_eq!((failed.reason, failed.attempts), (Reason::UnexpectedAnswer, 3));
    assert!(!failed.details().to_string().contains("script"));
}

#[test]
fn a_part_over_the_size_of_a_message_is_refused_before_it_is_sent() {
    let mut world = World::of(2);
    let mut rng = Rng::from_seed([4; 32]);
    let Local { license_id, customer_id, .. } = world.agents[0].local;
    world.agents[0].license(license_id, customer_id, u32::MAX);
    world.agents[0].local.members.extend((0..handshake::MEMBERS_MAX).map(|_| PeerId::mint(WALL, &mut rng)));
    assert_eq!(world.reason_of_add(0, 1), Reason::TooLarge);
}
