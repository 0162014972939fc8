//! Which records and messages are taken, one rule a test.

use super::network::{Identity, keys, machine};
use crate::{
    gossip::{CallFailed, Drops, Event, Gossip, HEARTBEAT_INTERVAL, Reject, TRUST_GRACE},
    model::{CustomerId, Endpoint, Mono, Rng, UnixTime},
    wire::{
        gossip::{
            ASKED_MAX_BRANCHES, ASKED_MAX_PARTS, Digest, Op, PushReply, PushRequest, ReconcileReply, ReconcileRequest,
            Records, Registry, Reply, Request, VERSION_MAX,
            life::{LIVES_MAX, Life, Lives, Tail},
            range::{FANOUT, LEAF_MAX_RECORDS, Part, Path, Prefix, Salt, Short, ShortHead},
        },
        record::{AnsweredRevocation, RECORD_MAX_BYTES, ReadmissionBody, Record, RevocationReason, Voucher, kind},
    },
};
use proptest::prelude::*;
use serde_json::json;

const T: Mono = Mono::from_ms(5);

struct Cast {
    local: Identity,
    a: Identity,
    b: Identity,
    stranger: Identity,
}

fn cast() -> Cast {
    let [local, a, b, stranger] = [1, 2, 3, 4].map(Identity::numbered);
    Cast { local, a, b, stranger }
}

impl Cast {
    fn machine(&self) -> Gossip {
        machine(&self.local, vec![self.local.peer_record(1)], &[&self.a, &self.b])
    }
}

fn push(gossip: &Gossip, records: impl Into<Records>) -> Request {
    Request::Push(PushRequest { instance: String::new(), records: records.into(), hops: 0, digests: gossip.digests() })
}

/// Pushes over the wire form; gives the number refused and the events.
fn give(gossip: &mut Gossip, from: &Identity, records: Vec<Record>) -> (u32, Vec<Event>) {
    let request = Request::decode(Op::Push, &push(gossip, records).encode()).unwrap();
    let Reply::Push(PushReply { dropped, digests }) = gossip.handle_request(from.id, &request, T).unwrap() else {
        panic!("a push is answered as a push")
    };
    assert_eq!(digests, gossip.digests());
    let events = std::iter::from_fn(|| gossip.poll_event()).filter(|e| !matches!(e, Event::PeerStatus { .. }));
    (dropped, events.collect())
}

fn merged(events: &[Event]) -> Vec<&Record> {
    let merges = events.iter().filter_map(|e| if let Event::Merge(records) = e { Some(records) } else { None });
    merges.flatten().collect()
}

#[test]
fn a_bad_record_is_dropped_and_counted_and_the_others_stay() {
    let c = cast();
    let mut gossip = c.machine();
    let good = c.a.service("good", 2);
    let mut forged = c.a.service("forged", 2);
    forged.body = json!({"name": "other"});
    let mut renamed = c.a.service("of-a", 3);
    renamed.key.owner = c.b.id;
    let mut huge = c.a.service("huge", 4);
    huge.body = json!("x".repeat(RECORD_MAX_BYTES));
    let mut far = c.a.service("far", 5);
    far.version = VERSION_MAX + 1;
    let mut fraction = c.a.service("fraction", 6);
    fraction.body = json!(1.5);
    let bodyless = c.a.record(kind::SERVICE, "bodyless", 7, json!(null));
    let foreign = c.stranger.service("x", 2);
    let records = vec![forged, renamed, good.clone(), huge, far, fraction, bodyless, foreign];
    let (dropped, events) = give(&mut gossip, &c.b, records);
    assert_eq!((dropped, merged(&events)), (7, vec![&good]));
    let expected = Drops { malformed: 3, oversize: 1, bad_signature: 2, untrusted_owner: 1, ..Drops::default() };
    assert_eq!(gossip.drops(), expected);
    assert!(gossip.record(&good.key).is_some());
}

#[test]
fn an_unreadable_record_does_not_spoil_its_message() {
    let c = cast();
    let mut gossip = c.machine();
    let good = c.a.service("good", 2);
    let mut text = serde_json::to_value([&good, &good]).unwrap();
    text[0]["owner"] = json!("peer_nonsense");
    let body = json!({"records": text, "digests": gossip.digests(), "field-of-tomorrow": 1});
    let request = Request::decode(Op::Push, body.to_string().as_bytes()).unwrap();
    let reply = gossip.handle_request(c.b.id, &request, T).unwrap();
    assert!(matches!(reply, Reply::Push(PushReply { dropped: 1, .. })));
    assert!(gossip.record(&good.key).is_some());
}

/// G3, G4.
#[test]
fn only_its_owner_raises_a_record_and_it_never_falls() {
    let c = cast();
    let mut gossip = c.machine();
    let held = c.a.service("s", 5);
    give(&mut gossip, &c.a, vec![held.clone()]);
    let mut raised_by_b = Record::sign(&c.b.key, c.a.id, kind::SERVICE, "s", 9, json!({"by": "b"})).unwrap();
    assert_eq!(give(&mut gossip, &c.b, vec![raised_by_b.clone()]).0, 1);
    raised_by_b = Record::sign_tombstone(&c.b.key, held.key.clone(), 10).unwrap();
    assert_eq!(give(&mut gossip, &c.b, vec![raised_by_b]).0, 1);
    assert_eq!(give(&mut gossip, &c.a, vec![c.a.service("s", 4)]), (0, vec![]));
    assert_eq!(gossip.record(&held.key), Some(&held));
    let newer = c.a.tombstone(kind::SERVICE, "s", 6);
    assert_eq!(merged(&give(&mut gossip, &c.b, vec![newer.clone()]).1), [&newer]);
    assert_eq!(give(&mut gossip, &c.a, vec![held]), (0, vec![]), "a tombstone is not undone");
}

/// G5.
#[test]
fn of_equal_versions_the_larger_hash_wins_and_is_counted() {
    let c = cast();
    let one = c.a.record(kind::SERVICE, "s", 5, json!({"n": 1}));
    let two = c.a.record(kind::SERVICE, "s", 5, json!({"n": 2}));
    let winner = if one.head().unwrap() > two.head().unwrap() { one.clone() } else { two.clone() };
    for order in [[one.clone(), two.clone()], [two, one]] {
        let mut gossip = c.machine();
        for record in order {
            give(&mut gossip, &c.b, vec![record]);
        }
        assert_eq!(gossip.record(&winner.key), Some(&winner));
        assert_eq!(gossip.drops().equivocations, 1);
    }
}

#[test]
fn an_own_record_above_our_counter_is_adopted_and_a_forged_one_is_not() {
    let c = cast();
    let mut gossip = c.machine();
    let forged = Record::sign(&c.a.key, c.local.id, kind::SERVICE, "s", 90, json!({"by": "a"})).unwrap();
    assert_eq!(give(&mut gossip, &c.a, vec![forged]), (1, vec![]));
    let lost = c.local.service("s", 70);
    let (_, events) = give(&mut gossip, &c.a, vec![lost.clone()]);
    assert!(events.iter().any(|event| matches!(event, Event::AdoptOwnVersion { version: 70, .. })));
    assert_eq!(merged(&events), [&lost]);
    let older = c.local.service("older", 60);
    let (_, events) = give(&mut gossip, &c.a, vec![older.clone()]);
    assert_eq!(events, [Event::Merge(vec![older])]);
}

// accepts: 001-36
#[test]
fn a_stranger_is_only_discovered_until_it_is_trusted() {
    let c = cast();
    let mut gossip = c.machine();
    let before = gossip.digests();
    let record = c.stranger.peer_record(1);
    let (_, events) = give(&mut gossip, &c.a, vec![record.clone(), c.stranger.service("s", 2)]);
    let [Event::Discovered(discovery)] = &events[..] else { panic!("{events:?}") };
    assert_eq!((discovery.peer, discovery.endpoints.len()), (c.stranger.id, 1));
    assert_eq!(gossip.digests(), before);
    assert_eq!(give(&mut gossip, &c.a, vec![record.clone()]).1, [], "announced once");
    gossip.handle_trust(&keys(&[&c.a, &c.b, &c.stranger]), T);
    assert_eq!(merged(&give(&mut gossip, &c.a, vec![record.clone()]).1), [&record]);
}

#[test]
fn a_genuine_voucher_of_a_trusted_issuer_is_a_discovery() {
    let c = cast();
    let mut gossip = c.machine();
    let mut voucher = Voucher {
        subject_peer_id: c.stranger.id,
        subject_public_key: c.stranger.key.public(),
        subject_endpoints: vec![Endpoint::new("tokyo", 8080).unwrap()],
        customer_id: CustomerId::mint(UnixTime::from_ms(1), &mut Rng::from_seed([1; 32])),
        issuer_peer_id: c.a.id,
        issued_at: UnixTime::from_ms(1),
        expires_at: UnixTime::from_ms(2),
        signature: c.b.key.sign(b"x"),
    };
    let id = c.stranger.id.to_string();
    let wrong = c.a.record(kind::VOUCHER, &id, 2, serde_json::to_value(&voucher).unwrap());
    assert_eq!(give(&mut gossip, &c.a, vec![wrong.clone()]).1, [Event::Merge(vec![wrong])]);
    voucher.signature = voucher.transcript().sign(&c.a.key);
    let right = c.a.record(kind::VOUCHER, &id, 3, serde_json::to_value(&voucher).unwrap());
    let (_, events) = give(&mut gossip, &c.b, vec![right]);
    assert!(matches!(&events[1], Event::Discovered(d) if d.voucher.as_ref() == Some(&voucher)));
}

#[test]
fn unknown_kinds_are_kept_and_relayed() {
    let c = cast();
    let mut gossip = c.machine();
    let record = c.a.record("kind-of-tomorrow", "x", 3, json!({"y": [1, 2]}));
    assert_eq!(merged(&give(&mut gossip, &c.a, vec![record.clone()]).1), [&record]);
    let request = asking(Registry::Cluster, vec![Part::Leaf(Prefix::ROOT, vec![])]);
    let reply = gossip.handle_request(c.b.id, &Request::Reconcile(request), T).unwrap();
    let Reply::Reconcile(ReconcileReply { records, .. }) = reply else { panic!() };
    assert_eq!(records, vec![record].into());
}

/// R4.
#[test]
fn a_revocation_ends_trust_voids_records_and_only_a_readmission_answers_it() {
    let c = cast();
    let mut gossip = c.machine();
    let owned = c.b.service("s", 2);
    give(&mut gossip, &c.b, vec![owned.clone()]);
    let revocation = c.a.revocation(&c.b, 3, RevocationReason::Deleted);
    let (_, events) = give(&mut gossip, &c.a, vec![owned.clone(), revocation.clone()]);
    assert!(events.contains(&Event::Revoked { peer: c.b.id, void: vec![owned.key.clone()] }));
    assert!(gossip.peer_view(c.b.id).is_none() && gossip.record(&owned.key).is_none());
    let request = push(&gossip, vec![]);
    assert_eq!(gossip.handle_request(c.b.id, &request, T), Err(Reject::NotTrusted));

    // Neither a tombstone, nor a newer text that says nothing, nor trust given by mistake lifts it.
    let tombstone = c.a.tombstone(kind::REVOCATION, &c.b.id.to_string(), 8);
    let vague = c.a.record(kind::REVOCATION, &c.b.id.to_string(), 9, json!({"reason": "none"}));
    assert_eq!(give(&mut gossip, &c.a, vec![tombstone, vague]).0, 2);
    gossip.handle_trust(&keys(&[&c.a, &c.b]), T);
    assert!(gossip.peer_view(c.b.id).is_none());
    assert_eq!(give(&mut gossip, &c.a, vec![owned.clone()]).0, 1);
    assert_eq!(gossip.drops().revoked_owner, 2);

    // Nor does its own word, nor an answer to another revocation.
    let readmission = |by: &Identity, revocation_version| {
        let answers = vec![AnsweredRevocation { issuer: c.a.id, version: revocation_version }];
        let body = ReadmissionBody {
            peer_id: c.b.id,
            public_key: c.b.key.public(),
            answers,
            readmitted_at: UnixTime::from_ms(1),
        };
        by.record(kind::READMISSION, &c.b.id.to_string(), 10 + revocation_version, serde_json::to_value(body).unwrap())
    };
    assert_eq!(give(&mut gossip, &c.a, vec![readmission(&c.b, 3)]).0, 1);
    give(&mut gossip, &c.a, vec![readmission(&c.a, 2)]);
    gossip.handle_trust(&keys(&[&c.a, &c.b]), T);
    assert!(gossip.peer_view(c.b.id).is_none());

    // The trust that comes with a readmission may be told first.
    gossip.handle_trust(&keys(&[&c.a, &c.b]), T);
    give(&mut gossip, &c.a, vec![readmission(&c.a, 3)]);
    assert!(gossip.peer_view(c.b.id).is_some());
    assert_eq!(merged(&give(&mut gossip, &c.a, vec![owned.clone()]).1), [&owned]);

    // A second removal is a new version, which the old answer does not answer.
    give(&mut gossip, &c.a, vec![c.a.revocation(&c.b, 20, RevocationReason::Deleted)]);
    assert!(gossip.peer_view(c.b.id).is_none());
}

#[test]
fn trust_that_a_revocation_overtook_is_reported_as_void() {
    let c = cast();
    let mut gossip = c.machine();
    give(&mut gossip, &c.a, vec![c.a.revocation(&c.stranger, 3, RevocationReason::Deleted)]);
    gossip.handle_trust(&keys(&[&c.a, &c.b, &c.stranger]), T);
    assert_eq!(gossip.poll_event(), None);
    gossip.handle_timeout(T + TRUST_GRACE);
    assert_eq!(gossip.poll_event(), Some(Event::Revoked { peer: c.stranger.id, void: vec![] }));
}

#[test]
fn a_removed_peer_is_told_even_when_trust_was_dropped_first() {
    let c = cast();
    let mut gossip = c.machine();
    gossip.handle_trust(&keys(&[&c.a]), T);
    let revocation = c.local.revocation(&c.b, 2, RevocationReason::Deleted);
    gossip.handle_local_change(std::slice::from_ref(&revocation), T);
    let farewell = std::iter::from_fn(|| gossip.poll_transmit()).find(|t| t.to == c.b.id).unwrap();
    assert!(matches!(farewell.request, Request::Push(p) if p.records == vec![revocation].into()));
}

/// cluster.md §8: by id and by key.
#[test]
fn neither_the_old_id_under_a_new_key_nor_the_key_under_a_new_id_returns() {
    let c = cast();
    let mut gossip = c.machine();
    give(&mut gossip, &c.a, vec![c.a.revocation(&c.stranger, 3, RevocationReason::Deleted)]);
    let new_key = Identity { id: c.stranger.id, key: Identity::numbered(9).key };
    let new_id = Identity { id: Identity::numbered(9).id, key: c.stranger.key.clone() };
    for returning in [&new_key, &new_id] {
        gossip.handle_trust(&keys(&[&c.a, &c.b, returning]), T);
        assert!(gossip.peer_view(returning.id).is_none());
        let (dropped, _) = give(&mut gossip, &c.a, vec![returning.peer_record(1)]);
        assert_eq!(dropped, 1);
    }
}

#[test]
fn two_peers_revoking_each_other_are_both_out() {
    let c = cast();
    let d = Identity::numbered(7);
    let one = c.a.revocation(&c.b, 3, RevocationReason::Deleted);
    let other = c.b.revocation(&c.a, 3, RevocationReason::Deleted);
    for order in [[one.clone(), other.clone()], [other, one]] {
        let mut gossip = machine(&c.local, vec![], &[&c.a, &c.b, &d]);
        for record in order {
            give(&mut gossip, &d, vec![record]);
        }
        assert!(gossip.peer_view(c.a.id).is_none() && gossip.peer_view(c.b.id).is_none());
    }
}

#[test]
fn services_of_a_peer_that_left_by_itself_stay_listed() {
    let c = cast();
    let mut gossip = c.machine();
    let service = c.b.service("s", 2);
    let left = c.b.revocation(&c.b, 3, RevocationReason::Deactivated);
    let (_, events) = give(&mut gossip, &c.b, vec![service.clone(), c.b.peer_record(1), left.clone()]);
    assert!(events.iter().any(|e| matches!(e, Event::Revoked { peer, .. } if *peer == c.b.id)));
    assert!(gossip.peer_view(c.b.id).is_none());
    give(&mut gossip, &c.a, vec![service.clone(), c.b.peer_record(1)]);
    assert_eq!(gossip.record(&service.key), Some(&service));
    assert!(gossip.record(&c.b.peer_record(1).key).is_none());
    // A member that never met it learns the same.
    let mut newcomer = machine(&c.local, vec![], &[&c.a]);
    give(&mut newcomer, &c.a, vec![left]);
    give(&mut newcomer, &c.a, vec![service.clone()]);
    assert_eq!(newcomer.record(&service.key), Some(&service));
}

#[test]
fn a_peer_that_learns_of_its_own_revocation_trusts_nobody() {
    let c = cast();
    let mut gossip = c.machine();
    let (_, events) = give(&mut gossip, &c.a, vec![c.a.revocation(&c.local, 3, RevocationReason::Deleted)]);
    assert!(events.contains(&Event::Revoked { peer: c.local.id, void: vec![] }));
    assert!(gossip.peer_view(c.a.id).is_none() && gossip.peer_view(c.b.id).is_none());
    assert_eq!(gossip.poll_timeout(), None);
}

/// R1: what the store holds against a peer counts from the first moment after a restart.
#[test]
fn a_restart_forgets_no_revocation() {
    let c = cast();
    let revocation = c.a.revocation(&c.b, 3, RevocationReason::Deleted);
    let mut gossip = machine(&c.local, vec![revocation, c.b.service("s", 2)], &[&c.a, &c.b]);
    let void = vec![c.b.service("s", 2).key];
    assert_eq!(gossip.poll_event(), Some(Event::Revoked { peer: c.b.id, void }));
    assert!(gossip.peer_view(c.b.id).is_none());
}

#[test]
fn an_answer_is_taken_only_to_a_request_that_was_made() {
    let c = cast();
    let mut gossip = c.machine();
    let digests = gossip.digests();
    let reply = Reply::Push(PushReply { dropped: 0, digests });
    assert_eq!(gossip.handle_reply(c.a.id, Ok(&reply), T), Err(Reject::Unexpected));
    assert_eq!(gossip.handle_reply(c.a.id, Err(CallFailed { op: Op::Heartbeat }), T), Err(Reject::Unexpected));
    assert_eq!(gossip.handle_reply(c.stranger.id, Ok(&reply), T), Err(Reject::NotTrusted));
    gossip.handle_timeout(Mono::from_ms(1000));
    assert_eq!(gossip.handle_reply(c.a.id, Err(CallFailed { op: Op::Heartbeat }), Mono::from_ms(1001)), Ok(()));
}

#[test]
fn one_call_of_a_kind_is_out_at_a_time_and_a_lost_one_is_given_up() {
    let c = cast();
    let mut gossip = c.machine();
    let mut sent_at = Vec::new();
    for ms in (0..200_000).step_by(500) {
        gossip.handle_timeout(Mono::from_ms(ms));
        sent_at.extend(std::iter::from_fn(|| gossip.poll_transmit()).filter(|t| t.to == c.a.id).map(|_| ms));
    }
    // None is ever answered: each waits for a minute.
    assert!(sent_at.len() <= 4 && sent_at.windows(2).all(|pair| pair[1] - pair[0] >= 60_000), "{sent_at:?}");
    assert!(HEARTBEAT_INTERVAL.as_secs() < 60);
}

fn asking(registry: Registry, parts: Vec<Part>) -> ReconcileRequest {
    ReconcileRequest { registry, salt: Salt([7; 8]), parts, records: Records::default() }
}

/// The range of these digits.
fn range(digits: &[usize]) -> Prefix {
    digits.iter().fold(Prefix::ROOT, |prefix, digit| prefix.child(*digit).unwrap())
}

fn branch(digits: &[usize]) -> Part {
    Part::Branch(range(digits), Box::new([Short([1; 6]); FANOUT]))
}

fn leaf(digits: &[usize]) -> Part {
    Part::Leaf(range(digits), vec![])
}

fn hostile_request() -> impl Strategy<Value = (bool, Request)> {
    let c = cast();
    let digests = c.machine().digests();
    let services = |parts| Request::Reconcile(asking(Registry::Services, parts));
    let head = |version| ShortHead { id: Short([2; 6]), version, tag: [0; 3] };
    let heartbeat = {
        let mut gossip = c.machine();
        gossip.handle_timeout(Mono::from_ms(1000));
        let transmit = gossip.poll_transmit().unwrap();
        if let Request::Heartbeat(h) = transmit.request { h } else { panic!("first comes a heartbeat") }
    };
    let life = |hops| Life { of: Tail::of(c.b.id), age: std::time::Duration::ZERO, hops };
    let mut lively = heartbeat.clone();
    lively.lives = Lives(vec![life(1); LIVES_MAX + 1]);
    let mut own_word = heartbeat.clone();
    own_word.lives = Lives(vec![life(0)]);
    let mut long = heartbeat.clone();
    long.license_state = "x".repeat(65);
    let mut crowded = heartbeat.clone();
    crowded.endpoints = vec![Endpoint::new("a", 1).unwrap(); 17];
    let many = |count: usize, part: fn(&[usize]) -> Part| {
        (0..count).map(|i| part(&[i / 256, i / 16 % 16, i % 16])).collect::<Vec<_>>()
    };
    let bad = vec![
        Request::Heartbeat(lively),
        Request::Heartbeat(own_word),
        Request::Heartbeat(long),
        Request::Heartbeat(crowded),
        services(vec![leaf(&[2]), leaf(&[1])]),
        services(vec![leaf(&[1]), leaf(&[1])]),
        services(vec![leaf(&[1]), branch(&[1, 2])]),
        services(vec![Part::Open(Prefix::ROOT)]),
        services(vec![Part::Leaf(Prefix::ROOT, vec![head(1); LEAF_MAX_RECORDS + 1])]),
        services(vec![Part::Leaf(Prefix::ROOT, vec![head(VERSION_MAX + 1)])]),
        services(vec![Part::Wants(Prefix::ROOT, vec![Short([1; 6]); LEAF_MAX_RECORDS + 1])]),
        services(many(ASKED_MAX_PARTS + 1, leaf)),
        services(many(ASKED_MAX_BRANCHES + 1, branch)),
    ];
    let fair = vec![
        Request::Heartbeat(heartbeat),
        Request::Push(PushRequest {
            instance: String::new(),
            records: vec![c.a.service("s", 2)].into(),
            hops: 1,
            digests,
        }),
        services(vec![leaf(&[1]), branch(&[2, 2])]),
    ];
    prop_oneof![
        4 => prop::sample::select(bad).prop_map(|request| (true, request)),
        1 => prop::sample::select(fair).prop_map(|request| (false, request)),
    ]
}

/// A machine whose comparison of services with `a` is out: it told `a` of its own few.
fn comparing(c: &Cast) -> Gossip {
    let mut gossip = c.machine();
    gossip.handle_timeout(Mono::from_ms(1000));
    let theirs = gossip.heartbeat(c.a.id, Lives::default());
    let request = Request::Heartbeat(theirs);
    let Reply::Heartbeat(mut answer) = c.machine().handle_request(c.a.id, &request, T).unwrap() else { panic!() };
    answer.digests.services = Digest([1; 32]);
    gossip.handle_reply(c.a.id, Ok(&Reply::Heartbeat(answer)), Mono::from_ms(1001)).unwrap();
    let asked = std::iter::from_fn(|| gossip.poll_transmit()).find_map(|t| match t.request {
        Request::Reconcile(request) => Some(request.parts),
        _ => None,
    });
    assert!(matches!(&asked.unwrap()[..], [Part::Leaf(..)]));
    gossip
}

#[test]
fn an_answer_about_other_ranges_is_refused_and_changes_nothing() {
    let c = cast();
    let mut gossip = comparing(&c);
    let service = c.a.service("s", 2);
    let answer =
        |parts, records: Vec<Record>| Reply::Reconcile(ReconcileReply { parts, records: records.into(), digest: None });
    let before = format!("{gossip:?}");
    let strange = [
        answer(vec![branch(&[])], vec![]),
        answer(vec![branch(&[1])], vec![]),
        answer(vec![leaf(&[1])], vec![]),
        answer(vec![Part::Wants(range(&[1]), vec![])], vec![]),
        answer(vec![], vec![service.clone(), c.a.peer_record(1)]),
    ];
    for reply in &strange {
        assert!(matches!(gossip.handle_reply(c.a.id, Ok(reply), T), Err(Reject::Malformed(_))));
        assert_eq!(format!("{gossip:?}"), before);
    }
    let digit = Path::of(&service.key).digit(0);
    let fair = answer(vec![Part::Open(range(&[digit]))], vec![service.clone()]);
    gossip.handle_reply(c.a.id, Ok(&fair), Mono::from_ms(1002)).unwrap();
    assert!(gossip.record(&service.key).is_some());
}

/// Whatever the other side answers, a comparison ends.
#[test]
fn a_descent_without_end_is_given_up() {
    let c = cast();
    let mut gossip = comparing(&c);
    let mut steps = 1;
    loop {
        let again = ReconcileReply { parts: vec![Part::Open(Prefix::ROOT)], records: Records::default(), digest: None };
        gossip.handle_reply(c.a.id, Ok(&Reply::Reconcile(again)), Mono::from_ms(1002)).unwrap();
        let next = std::iter::from_fn(|| gossip.poll_transmit()).find(|t| t.request.op() == Op::Reconcile);
        if next.is_none() {
            break;
        }
        steps += 1;
        assert!(steps < 100);
    }
    assert!(gossip.is_idle() || gossip.links.get(&c.a.id).is_some_and(|link| link.is_idle()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_rejected_message_leaves_the_state_as_it_was((is_bad, request) in hostile_request(), at in 0u64..100_000) {
        let c = cast();
        let mut gossip = c.machine();
        let before = format!("{gossip:?}");
        let now = Mono::from_ms(at);
        let from = if is_bad { c.a.id } else { c.stranger.id };
        prop_assert!(gossip.handle_request(from, &request, now).is_err());
        prop_assert!(Request::decode(request.op(), &request.encode()).is_err() == is_bad);
        prop_assert_eq!(format!("{gossip:?}"), before);
    }

    #[test]
    fn reading_never_panics_and_writing_round_trips(bytes in prop::collection::vec(any::<u8>(), 0..200), op in 0usize..3) {
        let _ = Request::decode(Op::ALL[op], &bytes);
        let _ = Reply::decode(Op::ALL[op], &bytes);
        let c = cast();
        let mut gossip = c.machine();
        gossip.handle_timeout(Mono::from_ms(1000));
        while let Some(transmit) = gossip.poll_transmit() {
            let text = transmit.request.encode();
            prop_assert_eq!(&Request::decode(transmit.request.op(), &text).unwrap(), &transmit.request);
            let reply = gossip.handle_request(c.a.id, &transmit.request, T).unwrap();
            prop_assert_eq!(&Reply::decode(reply.op(), &reply.encode()).unwrap(), &reply);
        }
    }
}
