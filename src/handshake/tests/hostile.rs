//! Attackers: changed fields, replays, reflections, strangers with keys of their own, garbage.

use super::*;
use crate::model::{Rng, Signature, X25519Public};
use crate::wire::handshake::{Challenge, FinishResponse, InitResponse, Sealed, SessionId};
use crate::wire::record::RecordKey;
use proptest::prelude::*;
use std::{cell::RefCell, rc::Rc};

/// Runs 0 → 1 up to the finished step 2, not yet delivered.
pub fn exchange(world: &mut World) -> (Init, InitResponse, Finish, Initiator) {
    let mut machine = Initiator::new(world.target(1), world.now);
    let mut init = None;
    let response = Rc::new(RefCell::new(None));
    loop {
        let call = machine.poll_transmit().expect("an undisturbed exchange goes on");
        match &call.request {
            Request::Finish(finish) => {
                let response = response.borrow_mut().take().unwrap();
                return (init.unwrap(), response, (**finish).clone(), machine);
            }
            Request::Init(sent) => init = Some((**sent).clone()),
            Request::Identity => {}
        }
        let reply = world.deliver(0, &call);
        if let Ok(Reply::Init(given)) = &reply {
            *response.borrow_mut() = Some(given.clone());
        }
        let (now, agent) = (world.now, &mut world.agents[0]);
        let here = Here { local: &agent.local, held: &agent.held, licenses: &agent.vendor };
        machine.handle_reply(here, reply, now, &mut agent.rng);
    }
}

fn init_reason(world: &mut World, init: &Init) -> Result<InitResponse, Reason> {
    world.serve_init(0, 1, &serde_json::to_vec(init).unwrap()).map_err(|r| r.reason)
}

pub fn finish_reason(world: &mut World, finish: &Finish) -> Result<FinishResponse, Reason> {
    world.serve_finish(1, &serde_json::to_vec(finish).unwrap()).map_err(|r| r.reason)
}

/// Changes one field of a message in place. `how` selects the kind of change; `false` if it does not apply.
pub fn mutate(value: &mut Value, how: u32) -> bool {
    let before = value.clone();
    match &mut *value {
        Value::Number(n) => *value = json!(n.as_u64().unwrap_or(0) + u64::from(how) + 1),
        Value::Array(items) => match how % 3 {
            0 => items.push(json!("evil:1")),
            1 => items.clear(),
            _ => items.reverse(),
        },
        Value::String(text) if text.split('_').nth(1).is_some_and(|t| t.len() == 26) => {
            *value = match how % 2 {
                0 => json!(other_id(text)),
                _ => json!(""),
            }
        }
        Value::String(text) => match BASE64.decode(&*text) {
            Ok(mut bytes) if bytes.len() >= 16 => {
                match how % 4 {
                    0 => bytes.truncate(bytes.len() - 1),
                    1 => bytes.fill(0),
                    _ => {
                        let at = how as usize / 4 % (bytes.len() * 8);
                        bytes[at / 8] ^= 1 << (at % 8);
                    }
                }
                *value = json!(BASE64.encode(bytes));
            }
            _ => *value = json!(format!("{text}x")),
        },
        _ => *value = json!("evil"),
    }
    *value != before
}

const FIELDS: [(Leg, &[&str]); 6] = [
    (Leg::Identity, &["peer_id", "public_key", "license_id", "cluster_id"]),
    (
        Leg::Init,
        &[
            "protocol",
            "peer_id",
            "public_key",
            "challenge",
            "ephemeral",
            "license_id",
            "cluster_id",
            "endpoints",
            "target_endpoints",
            "api_port",
        ],
    ),
    (
        Leg::InitResponse,
        &["session", "peer_id", "public_key", "challenge2", "ephemeral", "license_id", "cluster_id", "signature"],
    ),
    (Leg::Finish, &["session", "signature", "sealed"]),
    (Leg::ReverseIdentity, &["peer_id", "public_key"]),
    (Leg::FinishResponse, &["sealed"]),
];

#[test]
fn the_table_of_fields_is_complete() {
    let mut world = World::of(2);
    world.tamper = Box::new(|leg, value| {
        let named: BTreeSet<&str> = FIELDS.iter().find(|(l, _)| *l == leg).unwrap().1.iter().copied().collect();
        let sent: BTreeSet<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
        // The version is information only; the call back needs only the id and the key.
        let unbound = match leg {
            Leg::Identity => BTreeSet::from(["version"]),
            Leg::ReverseIdentity => BTreeSet::from(["version", "license_id", "cluster_id"]),
            _ => BTreeSet::new(),
        };
        assert_eq!(sent, named.union(&unbound).copied().collect());
    });
    done(world.add(0, 1));
}

/// Runs with one field of one leg changed, wherever it occurs. Nobody may come to trust on it: only a change after the
/// responder's consent (2r) leaves the responder's side stored.
fn run_mutated(leg: Leg, field: &'static str, change: impl Fn(&mut Value) -> bool + 'static) -> Result<(), String> {
    let mut world = World::of(2);
    world.agents[0].local.endpoints.insert(0, endpoint("alias"));
    world.sites.insert(endpoint("alias"), Site::Agent(0));
    let changed = Rc::new(Cell::new(false));
    let seen = changed.clone();
    world.tamper = Box::new(move |at, value| {
        if at == leg && change(value) {
            seen.set(true);
        }
    });
    let target = Target { endpoints: vec![endpoint("n1"), endpoint("n1:9")], ..world.target(1) };
    let event = world.run(0, target);
    if !changed.get() {
        return Ok(());
    }
    if matches!(event, Event::Done(_)) {
        return Err(format!("{leg:?}.{field} changed, and the initiator trusts"));
    }
    let signed = match leg {
        Leg::Init => ["peer_id", "public_key", "challenge", "ephemeral"].contains(&field),
        Leg::InitResponse => field != "session",
        _ => false,
    };
    if signed && world.calls.iter().any(|(_, _, path)| *path == handshake::FINISH_PATH) {
        return Err(format!("{leg:?}.{field} changed, and the initiator shows its license"));
    }
    if leg != Leg::FinishResponse && !world.agents[1].stored.is_empty() {
        return Err(format!("{leg:?}.{field} changed, and the responder trusts"));
    }
    let now = world.now;
    if world.agents[1].open_sessions_after_expiry(now) != 0 {
        return Err("a session outlived its 30 s".into());
    }
    Ok(())
}

#[test]
fn every_missing_field_is_refused() {
    for (leg, fields) in FIELDS {
        for field in fields {
            run_mutated(leg, field, move |value| value.as_object_mut().unwrap().remove(*field).is_some()).unwrap();
        }
    }
}

#[test]
fn an_added_unknown_field_changes_nothing() {
    let mut world = World::of(2);
    world.tamper = Box::new(|_, value| value["later"] = json!({"a": [1]}));
    done(world.add(0, 1));
    world.assert_stored_both(0, 1);
}

/// Everything the responder keeps between calls, as far as it can be seen from outside.
fn responder_is_untouched_by(world: &mut World, open_before: usize) {
    assert_eq!(world.agents[1].responder.open_sessions(), open_before);
    assert!(world.agents[1].stored.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1200))]

    #[test]
    fn every_changed_field_is_refused(pick in 0usize..28, how in any::<u32>()) {
        let all: Vec<_> = FIELDS.iter().flat_map(|(leg, fields)| fields.iter().map(move |f| (*leg, *f))).collect();
        prop_assert_eq!(all.len(), 28);
        let (leg, field) = all[pick];
        run_mutated(leg, field, move |value| mutate(&mut value[field], how)).map_err(TestCaseError::fail)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    /// A changed step 2 does not use up the session: the genuine one still works.
    #[test]
    fn a_changed_finish_leaves_the_session_to_its_owner(pick in 0usize..3, how in any::<u32>()) {
        let mut world = World::of(2);
        let (_, _, finish, _) = exchange(&mut world);
        let open = world.agents[1].responder.open_sessions();
        let mut value = serde_json::to_value(&finish).unwrap();
        if mutate(&mut value[["session", "signature", "sealed"][pick]], how) {
            prop_assert!(world.serve_finish(1, &serde_json::to_vec(&value).unwrap()).is_err());
            responder_is_untouched_by(&mut world, open);
        }
        prop_assert!(finish_reason(&mut world, &finish).is_ok());
    }

    /// Bytes that were never a message, in every field that takes bytes, never panic and never lead to trust.
    #[test]
    fn garbage_never_panics(
        session in any::<[u8; 16]>(),
        ephemeral in any::<[u8; 32]>(),
        signature in prop::collection::vec(any::<u8>(), 64),
        sealed in prop::collection::vec(any::<u8>(), 0..200),
        genuine_session in any::<bool>(),
    ) {
        let mut world = World::of(2);
        let (mut init, response, _, mut machine) = exchange(&mut world);
        let signature = Signature::from_bytes(signature.try_into().unwrap());
        let session = if genuine_session { response.session } else { SessionId(session) };
        let finish = Finish { session, signature, sealed: Sealed(sealed.clone()) };
        prop_assert!(finish_reason(&mut world, &finish).is_err());
        init.ephemeral = X25519Public(ephemeral);
        prop_assert!(init_reason(&mut world, &init).is_err());
        init.challenge = Challenge(ephemeral);
        let _ = init_reason(&mut world, &init);
        let (now, agent) = (world.now, &mut world.agents[0]);
        let here = Here { local: &agent.local, held: &agent.held, licenses: &agent.vendor };
        machine.handle_reply(here, Ok(Reply::Finish(FinishResponse { sealed: Sealed(sealed) })), now, &mut agent.rng);
        prop_assert!(matches!(machine.poll_event(), Some(Event::Failed(f)) if f.reason == Reason::InvalidSignature));
        prop_assert!(world.agents[1].stored.is_empty());
    }

    #[test]
    fn any_reply_in_any_step_ends_or_goes_on(
        replies in prop::collection::vec((0u8..6, any::<u16>(), prop::collection::vec(any::<u8>(), 0..80)), 1..30),
    ) {
        let mut world = World::of(2);
        let mut machine = Initiator::new(world.target(1), world.now);
        for (kind, status, bytes) in replies {
            if let Some(call) = machine.poll_transmit() {
                let reply = match kind {
                    0 => Err(DialFailure::Failed),
                    1 => Ok(Reply::decode(&call.request, status, &bytes)),
                    2 => Ok(Reply::Identity(world.agents[1].identity())),
                    _ => world.deliver(0, &call),
                };
                let (now, agent) = (world.now, &mut world.agents[0]);
                let here = Here { local: &agent.local, held: &agent.held, licenses: &agent.vendor };
                machine.handle_reply(here, reply, now, &mut agent.rng);
            } else if let Some((due, _)) = machine.poll_timeout() {
                world.now = world.now.max(due);
                machine.handle_timeout(world.now);
                if let Some(event) = machine.poll_event() {
                    prop_assert!(machine.poll_timeout().is_none());
                    if let Event::Done(accepted) = event {
                        prop_assert_eq!(accepted.peer_id, world.id(1));
                    }
                    break;
                }
            }
        }
    }
}

#[test]
fn replays_open_nothing_and_prove_nothing() {
    let mut world = World::of(2);
    let (init, _, finish, _) = exchange(&mut world);
    assert_eq!(init_reason(&mut world, &init), Err(Reason::SessionExpired));
    assert_eq!(world.agents[1].responder.open_sessions(), 1);
    finish_reason(&mut world, &finish).unwrap();
    assert_eq!(finish_reason(&mut world, &finish), Err(Reason::SessionExpired));
    assert_eq!(init_reason(&mut world, &init), Err(Reason::SessionExpired));

    // Long after, a replayed step 1 opens a session that the replayed step 2 does not fit.
    world.now = world.now + SESSION_LIFETIME;
    let response = init_reason(&mut world, &init).unwrap();
    let replayed = Finish { session: response.session, ..finish };
    assert_eq!(finish_reason(&mut world, &replayed), Err(Reason::InvalidSignature));
}

#[test]
fn an_unknown_used_or_old_session_is_refused() {
    let mut world = World::of(2);
    let (_, _, finish, _) = exchange(&mut world);
    let unknown = Finish { session: SessionId([0; 16]), ..finish.clone() };
    assert_eq!(finish_reason(&mut world, &unknown), Err(Reason::SessionExpired));
    world.now = world.now + SESSION_LIFETIME;
    assert_eq!(finish_reason(&mut world, &finish), Err(Reason::SessionExpired));
    assert_eq!(world.agents[1].responder.open_sessions(), 0);
}

#[test]
fn a_session_that_expires_during_the_call_back_ends_without_trust() {
    let mut world = World::of(2);
    let (_, _, finish, _) = exchange(&mut world);
    let now = world.now;
    let Agent { local, held, vendor, responder, .. } = &mut world.agents[1];
    let pending = responder.handle_finish(Here { local, held, licenses: vendor }, &finish, now).unwrap();
    let answer = world.dial_back(&pending);
    let later = now + SESSION_LIFETIME;
    let Agent { local, held, vendor, responder, rng, .. } = &mut world.agents[1];
    let here = Here { local, held, licenses: vendor };
    let refused = responder.confirm_reverse(here, &pending.session, &answer, later, WALL, rng).unwrap_err();
    assert_eq!(refused.reason, Reason::SessionExpired);
}

#[test]
fn a_call_back_without_a_proven_session_gives_nothing_away() {
    let mut world = World::of(2);
    let (_, response, finish, _) = exchange(&mut world);
    let answer = ReverseAnswer { endpoint: endpoint("n0"), result: Ok(world.agents[0].identity()) };
    let now = world.now;
    let Agent { local, held, vendor, responder, rng, .. } = &mut world.agents[1];
    let here = Here { local, held, licenses: vendor };
    assert!(responder.confirm_reverse(here, &response.session, &answer, now, WALL, rng).is_err());
    assert!(responder.confirm_reverse(here, &SessionId([9; 16]), &answer, now, WALL, rng).is_err());
    finish_reason(&mut world, &finish).unwrap();
}

#[test]
fn another_peer_at_the_initiators_endpoint_fails_the_call_back() {
    let mut world = World::of(3);
    world.sites.insert(endpoint("n0"), Site::Agent(2));
    let failed = failure(world.add(0, 1));
    assert_eq!((failed.reason, failed.direction), (Reason::UnexpectedPeer, Direction::Reverse));
    world.assert_strangers(0, 1);
    // With the right peer behind a later endpoint it works.
    world.agents[0].local.endpoints.push(endpoint("late"));
    world.agents[0].sign_record();
    world.sites.insert(endpoint("late"), Site::Agent(0));
    done(world.add(0, 1));
}

#[test]
fn own_messages_sent_back_are_refused() {
    let mut world = World::of(2);
    let (init, response, finish, mut machine) = exchange(&mut world);
    // Step 1 to its own sender.
    let now = world.now;
    let Agent { local, held, vendor, responder, rng, address, .. } = &mut world.agents[0];
    let here = Here { local, held, licenses: vendor };
    let refused = responder.handle_init(here, *address, &init, now, rng).unwrap_err();
    assert_eq!(refused.reason, Reason::OwnId);
    assert!(responder.handle_finish(here, &finish, now).is_err());
    // Step 2's seal as step 2r.
    let reflected = FinishResponse { sealed: finish.sealed.clone() };
    machine.handle_reply(here, Ok(Reply::Finish(reflected)), now, rng);
    assert!(matches!(machine.poll_event(), Some(Event::Failed(f)) if f.reason == Reason::InvalidSignature));
    // The responder's signature as the initiator's: the seal is bound to the signature, so the attacker must own the
    // session; then the domain still differs.
    let swapped = Finish { signature: response.signature, ..finish };
    assert_eq!(finish_reason(&mut world, &swapped), Err(Reason::InvalidSignature));
}

#[test]
fn the_keys_depend_on_everything_said_in_steps_1_and_1r() {
    let mut world = World::of(2);
    let (init, response, ..) = exchange(&mut world);
    let pair = |n: u8| seal::Ephemeral::mint(&mut Rng::from_seed([n; 32]));
    let keys = |mine: u8, other: u8, init: &Init, response: &InitResponse| {
        pair(mine).agree(&pair(other).public(), init, response).unwrap()
    };
    let first = keys(1, 2, &init, &response);
    assert!(seal::keys_agree(&first, &keys(2, 1, &init, &response)));
    assert!(!seal::keys_agree(&first, &keys(3, 1, &init, &response)));
    let (sent, answered) = (serde_json::to_value(&init).unwrap(), serde_json::to_value(&response).unwrap());
    for (leg, fields) in [FIELDS[1], FIELDS[2]] {
        for field in fields.iter().filter(|f| **f != "protocol") {
            let (mut sent, mut answered) = (sent.clone(), answered.clone());
            let message = if leg == Leg::Init { &mut sent } else { &mut answered };
            let how = if message[field].is_array() { 0 } else { 2 };
            let how = if field.ends_with("_id") { 0 } else { how };
            assert!(mutate(&mut message[field], how));
            let (Ok(init), Ok(response)) = (serde_json::from_value(sent), serde_json::from_value(answered)) else {
                assert_eq!(*field, "public_key");
                continue;
            };
            assert!(!seal::keys_agree(&first, &keys(1, 2, &init, &response)), "{field}");
        }
    }
}

/// An attacker with a key and a session of its own.
struct Stranger {
    init: Init,
    response: InitResponse,
    keys: seal::SessionKeys,
}

fn stranger(world: &mut World, claim: impl Fn(&mut Init)) -> Stranger {
    let mut rng = Rng::from_seed([42; 32]);
    let ephemeral = seal::Ephemeral::mint(&mut rng);
    let mut init = Init {
        protocol: handshake::PROTOCOL,
        peer_id: PeerId::mint(WALL, &mut rng),
        public_key: SigningKey::from_seed([43; 32]).public(),
        challenge: Challenge(rng.bytes()),
        ephemeral: ephemeral.public(),
        license_id: world.agents[0].local.license_id,
        cluster_id: world.agents[0].local.cluster_id,
        endpoints: vec![endpoint("n0")],
        target_endpoints: Vec::new(),
        api_port: handshake::default_api_port(),
    };
    claim(&mut init);
    let response = init_reason(world, &init).unwrap();
    let keys = ephemeral.agree(&response.ephemeral, &init, &response).unwrap();
    Stranger { init, response, keys }
}

impl Stranger {
    fn finish(&self, signature: Signature, part: &handshake::InitiatorPart) -> Finish {
        let bound = responder::bound_to_finish(&self.response.session, &signature);
        let sealed = self.keys.to_responder.seal(part, &bound, &mut Rng::from_seed([44; 32])).unwrap();
        Finish { session: self.response.session, signature, sealed }
    }

    fn sign(&self, key: &SigningKey) -> Signature {
        handshake::initiator_transcript(&self.init, &self.response).sign(key)
    }
}

#[test]
fn who_claims_anothers_id_cannot_sign_for_it_and_has_one_try() {
    let mut world = World::of(2);
    let (id, key) = (world.id(0), world.agents[0].local.key.public());
    let part = world.agents[0].local.sealed_part();
    let attacker = stranger(&mut world, |init| (init.peer_id, init.public_key) = (id, key));
    let finish = attacker.finish(attacker.sign(&SigningKey::from_seed([43; 32])), &part);
    assert_eq!(finish_reason(&mut world, &finish), Err(Reason::InvalidSignature));
    assert_eq!(world.agents[1].responder.open_sessions(), 0);
    // The same seal under the genuine key would have been too late: the session is used.
    let genuine = attacker.finish(attacker.sign(&world.agents[0].local.key), &part);
    assert_eq!(finish_reason(&mut world, &genuine), Err(Reason::SessionExpired));
}

#[test]
fn a_signature_of_another_domain_or_by_the_responder_proves_nothing() {
    let key = SigningKey::from_seed([43; 32]);
    // Its license and record are in order, so that only the signature can fail.
    let part = |world: &World, attacker: &Stranger| {
        let mut part = world.agents[0].local.sealed_part();
        let id = attacker.init.peer_id;
        part.record.body["public_key"] = json!(key.public());
        part.record = Record::sign(&key, id, kind::PEER, &id.to_string(), 1, part.record.body).unwrap();
        part
    };
    let mut world = World::of(2);
    let attacker = stranger(&mut world, |_| {});
    let part_0 = part(&world, &attacker);
    let other_domain = handshake::responder_transcript(&attacker.init, &attacker.response).sign(&key);
    let finish = attacker.finish(other_domain, &part_0);
    assert_eq!(finish_reason(&mut world, &finish), Err(Reason::InvalidSignature));

    let mut world = World::of(2);
    let attacker = stranger(&mut world, |_| {});
    let finish = attacker.finish(attacker.response.signature, &part(&world, &attacker));
    assert_eq!(finish_reason(&mut world, &finish), Err(Reason::InvalidSignature));

    // With its own signature it gets as far as the call back, which finds another peer at its endpoint.
    let mut world = World::of(2);
    let attacker = stranger(&mut world, |_| {});
    let finish = attacker.finish(attacker.sign(&key), &part(&world, &attacker));
    assert_eq!(finish_reason(&mut world, &finish), Err(Reason::UnexpectedPeer));
}

#[test]
fn a_record_of_another_peer_or_key_is_refused() {
    let key = SigningKey::from_seed([43; 32]);
    let edits: [fn(&mut Record, &SigningKey, PeerId); 5] = [
        |_, _, _| {},
        |r, key, id| *r = Record::sign(key, id, kind::STATUS, &id.to_string(), 1, r.body.clone()).unwrap(),
        |r, key, id| *r = Record::sign(key, id, kind::PEER, &id.to_string(), 1, r.body.clone()).unwrap(),
        |r, key, id| *r = Record::sign(key, id, kind::PEER, &id.to_string(), 1, json!({})).unwrap(),
        |r, key, id| {
            let record = RecordKey { kind: kind::PEER.into(), id: id.to_string(), owner: id };
            *r = Record::sign_tombstone(key, record, 2).unwrap();
        },
    ];
    for edit in edits {
        let mut world = World::of(2);
        let attacker = stranger(&mut world, |_| {});
        // Starts from the record of agent 0, so its body names another key.
        let mut part = world.agents[0].local.sealed_part();
        edit(&mut part.record, &key, attacker.init.peer_id);
        let finish = attacker.finish(attacker.sign(&key), &part);
        assert_eq!(finish_reason(&mut world, &finish), Err(Reason::InvalidSignature));
        assert_eq!(world.agents[1].responder.open_sessions(), 0);
    }
}

#[test]
fn an_ephemeral_of_small_order_is_refused_by_both() {
    let mut world = World::of(2);
    let (mut init, ..) = exchange(&mut world);
    let open = world.agents[1].responder.open_sessions();
    for first in [0u8, 1] {
        let mut point = [0; 32];
        point[0] = first;
        init.challenge = Challenge([first + 1; 32]);
        init.ephemeral = X25519Public(point);
        assert_eq!(init_reason(&mut world, &init), Err(Reason::InvalidSignature));
    }
    responder_is_untouched_by(&mut world, open);

    // A responder that really signs such an ephemeral.
    let mut world = World::of(2);
    let machine = &mut Initiator::new(world.target(1), world.now);
    for _ in 0..2 {
        let call = machine.poll_transmit().unwrap();
        let mut reply = world.deliver(0, &call);
        if let (Ok(Reply::Init(response)), Request::Init(init)) = (&mut reply, &call.request) {
            response.ephemeral = X25519Public([0; 32]);
            response.signature = handshake::responder_transcript(init, response).sign(&world.agents[1].local.key);
        }
        let (now, agent) = (world.now, &mut world.agents[0]);
        let here = Here { local: &agent.local, held: &agent.held, licenses: &agent.vendor };
        machine.handle_reply(here, reply, now, &mut agent.rng);
    }
    assert!(matches!(machine.poll_event(), Some(Event::Failed(f)) if f.reason == Reason::InvalidSignature));
}
