//! What the responder says of itself, its word about the initiator, and words about third peers.

use super::*;
use crate::model::Signature;
use crate::wire::handshake::{Challenge, FinishResponse, InitResponse, SessionId};
use hostile::{exchange, finish_reason};

#[test]
fn a_void_voucher_about_the_initiator_is_refused() {
    let mut world = World::of(2);
    let (init, response, finish, mut machine) = exchange(&mut world);
    let reply = finish_reason(&mut world, &finish).unwrap();
    let stored = world.agents[1].stored[&init.peer_id].clone();
    // The attacker is the responder itself; it seals a voucher that says something else.
    let key = world.agents[1].local.key.clone();
    let edits: [fn(&mut Voucher, &World); 4] = [
        |v, w| v.subject_peer_id = w.id(1),
        |v, w| v.issuer_peer_id = w.id(0),
        |v, w| v.subject_public_key = w.agents[1].local.key.public(),
        |v, _| v.customer_id = CustomerId::mint(WALL, &mut Rng::from_seed([1; 32])),
    ];
    for edit in edits {
        let mut voucher = stored.voucher.clone();
        edit(&mut voucher, &world);
        voucher.signature = voucher.transcript().sign(&key);
        let mut agent_world = World::of(2);
        let part = |local: &Local| handshake::ResponderPart { common: local.sealed_part(), voucher: voucher.clone() };
        let failed = answered_by_hand(&mut agent_world, part);
        assert_eq!(failed.reason, Reason::InvalidSignature);
    }
    let (now, agent) = (world.now, &mut world.agents[0]);
    let here = Here { local: &agent.local, held: &agent.held, licenses: &agent.vendor };
    machine.handle_reply(here, Ok(Reply::Finish(reply)), now, &mut agent.rng);
    assert_eq!(done(machine.poll_event().unwrap()).peer_id, response.peer_id);
}

/// A responder made by hand, so that it can seal whatever it likes.
fn answered_by_hand(world: &mut World, part: impl Fn(&Local) -> handshake::ResponderPart) -> Failure {
    let mut machine = Initiator::new(world.target(1), world.now);
    let mut rng = Rng::from_seed([45; 32]);
    let mut session = None;
    loop {
        let call = match machine.poll_transmit() {
            Some(call) => call,
            None => return failure(machine.poll_event().unwrap()),
        };
        let local = &world.agents[1].local;
        let reply = match &call.request {
            Request::Identity => Reply::Identity(world.agents[1].identity()),
            Request::Init(init) => {
                let ephemeral = seal::Ephemeral::mint(&mut rng);
                let mut response = InitResponse {
                    session: SessionId(rng.bytes()),
                    peer_id: local.peer_id,
                    public_key: local.key.public(),
                    challenge2: Challenge(rng.bytes()),
                    ephemeral: ephemeral.public(),
                    license_id: local.license_id,
                    cluster_id: local.cluster_id,
                    signature: Signature::from_bytes([0; 64]),
                };
                response.signature = handshake::responder_transcript(init, &response).sign(&local.key);
                session = ephemeral.agree(&init.ephemeral, init, &response);
                Reply::Init(response)
            }
            Request::Finish(finish) => {
                let key = &session.as_ref().unwrap().to_initiator;
                Reply::Finish(FinishResponse { sealed: key.seal(&part(local), &finish.session.0, &mut rng).unwrap() })
            }
        };
        let (now, agent) = (world.now, &mut world.agents[0]);
        let here = Here { local: &agent.local, held: &agent.held, licenses: &agent.vendor };
        machine.handle_reply(here, Ok(reply), now, &mut agent.rng);
    }
}

#[test]
fn the_initiator_judges_what_a_lenient_responder_says_of_itself() {
    let mut world = World::of(2);
    let initiator = world.agents[0].local.clone();
    let honest = move |local: &Local| {
        let key = initiator.key.public();
        let voucher = voucher::issue(local, initiator.peer_id, key, initiator.endpoints.clone(), WALL);
        handshake::ResponderPart { common: local.sealed_part(), voucher }
    };
    let full = |local: &Local| {
        let mut part = honest(local);
        part.common.members.extend((0..9).map(|n| PeerId::mint(WALL, &mut Rng::from_seed([n; 32]))));
        part
    };
    assert_eq!(answered_by_hand(&mut world, full).reason, Reason::NodeLimitExceeded);
    let foreign_record = |local: &Local| {
        let mut part = honest(local);
        let other = SigningKey::from_seed([1; 32]);
        let id = local.peer_id;
        part.common.record = Record::sign(&other, id, kind::PEER, &id.to_string(), 9, part.common.record.body).unwrap();
        part
    };
    assert_eq!(answered_by_hand(&mut world, foreign_record).reason, Reason::InvalidSignature);
}

#[test]
fn a_voucher_is_void_when_it_says_more_than_its_issuer_may() {
    let mut world = World::of(3);
    let subject = world.agents[2].local.clone();
    let issuer = world.agents[1].local.clone();
    let customer = issuer.customer_id;
    let good = voucher::issue(&issuer, subject.peer_id, subject.key.public(), vec![endpoint("n2")], WALL);
    let held_before = world.agents[0].held.clone();
    assert_eq!(accept_voucher(&good, &held_before, customer, WALL), Err(VoidVoucher::UntrustedIssuer));

    world.agents[0].held.trust(issuer.peer_id, issuer.key.public());
    let held = world.agents[0].held.clone();
    assert_eq!(accept_voucher(&good, &held, customer, WALL), Ok((subject.peer_id, subject.key.public())));

    let void = |edit: &dyn Fn(&mut Voucher), held: &Held, now: UnixTime| {
        let mut voucher = good.clone();
        edit(&mut voucher);
        voucher.signature = voucher.transcript().sign(&issuer.key);
        accept_voucher(&voucher, held, customer, now).unwrap_err()
    };
    let none = |_: &mut Voucher| {};
    assert_eq!(void(&none, &held, WALL.plus(VOUCHER_LIFETIME)), VoidVoucher::Expired);
    let long = |v: &mut Voucher| v.expires_at = v.expires_at.plus(secs(1));
    assert_eq!(void(&long, &held, WALL), VoidVoucher::Lifetime);
    let other = |v: &mut Voucher| v.customer_id = CustomerId::mint(WALL, &mut Rng::from_seed([1; 32]));
    assert_eq!(void(&other, &held, WALL), VoidVoucher::OtherCustomer);

    let mut conflicting = held.clone();
    conflicting.hold(subject.peer_id, SigningKey::from_seed([1; 32]).public());
    assert_eq!(void(&none, &conflicting, WALL), VoidVoucher::Conflict);
    let mut revoked = held.clone();
    revoked.revoke(subject.peer_id, subject.key.public());
    assert_eq!(void(&none, &revoked, WALL), VoidVoucher::Revoked);
    let mut revoked = held.clone();
    revoked.revoke(issuer.peer_id, issuer.key.public());
    assert_eq!(void(&none, &revoked, WALL), VoidVoucher::UntrustedIssuer);

    let mut forged = good.clone();
    forged.subject_endpoints = vec![endpoint("evil")];
    assert_eq!(accept_voucher(&forged, &held, customer, WALL), Err(VoidVoucher::BadSignature));
}

#[test]
fn a_key_held_from_a_voucher_still_needs_its_own_handshake() {
    let mut world = World::of(2);
    let (id, key) = (world.id(1), world.agents[1].local.key.public());
    world.agents[0].held.hold(id, key);
    assert!(!world.agents[0].held.trusts(&id));
    done(world.add(0, 1));
    assert!(world.agents[0].held.trusts(&id));
}
