//! Tombstones for peers that have left, signed by others (cluster.md §5).

use super::network::{Identity, machine};
use crate::{
    gossip::{Event, Gossip},
    model::{Mono, UnixTime},
    wire::{
        gossip::{PushRequest, Reply, Request},
        record::{AnsweredRevocation, ReadmissionBody, Record, RevocationReason, kind},
    },
};

const T: Mono = Mono::from_ms(5);
/// The version of the word by which b left.
const LEFT_AT: u64 = 5;

fn give(gossip: &mut Gossip, from: &Identity, records: Vec<Record>) -> u32 {
    let push = PushRequest { instance: String::new(), records: records.into(), hops: 0, digests: gossip.digests() };
    let request = Request::decode(crate::wire::gossip::Op::Push, &Request::Push(push).encode()).unwrap();
    let reply = gossip.handle_request(from.id, &request, T).unwrap();
    while gossip.poll_event().is_some() {}
    let Reply::Push(reply) = reply else { panic!("a push is answered as a push") };
    reply.dropped
}

fn tombstone(of: &Record, by: &Identity, version: u64) -> Record {
    Record::sign_tombstone_of_another(&by.key, by.id, of.key.clone(), version).unwrap()
}

fn cast() -> [Identity; 4] {
    [1, 2, 3, 4].map(Identity::numbered)
}

#[test]
fn a_trusted_peer_deletes_what_a_departed_one_left_listed() {
    let [local, a, b, stranger] = cast();
    let service = b.service("s", 2);
    let left = b.revocation(&b, LEFT_AT, RevocationReason::Deactivated);
    let mut gossip = machine(&local, vec![local.peer_record(1), service.clone()], &[&a, &b]);
    let early = tombstone(&service, &a, 3);
    assert_eq!(give(&mut gossip, &a, vec![early.clone()]), 1, "it counts only beside the owner's word that it left");
    assert_eq!(give(&mut gossip, &b, vec![left.clone()]), 0);
    assert_eq!(give(&mut gossip, &a, vec![tombstone(&service, &stranger, 3)]), 1);
    let mut claimed = tombstone(&service, &stranger, 3);
    claimed.body["deleted_by"] = serde_json::json!(a.id);
    assert_eq!(give(&mut gossip, &a, vec![claimed]), 1, "signed by another than it names");
    assert_eq!(gossip.drops().bad_signature, 3);
    assert_eq!(gossip.record(&service.key), Some(&service));
    assert_eq!(give(&mut gossip, &a, vec![early.clone()]), 0);
    assert_eq!(gossip.record(&service.key), Some(&early));
    assert_eq!(give(&mut gossip, &a, vec![service.clone()]), 0);
    assert_eq!(gossip.record(&service.key), Some(&early), "what is deleted stays deleted");

    // A newcomer that never met the signer, which was removed since: the two registries still become equal.
    let mut newcomer = machine(&local, vec![local.peer_record(1)], &[&stranger]);
    let removed = stranger.revocation(&a, 9, RevocationReason::Deleted);
    assert_eq!(give(&mut newcomer, &stranger, vec![left, removed, early.clone()]), 0);
    assert_eq!(newcomer.record(&service.key), Some(&early));
}

/// More than would be taken of a peer that is met only after it left.
#[test]
fn however_much_a_departed_peer_left_listed_it_can_be_deleted() {
    let [local, a, b, _] = cast();
    let left = b.revocation(&b, 3_000, RevocationReason::Deactivated);
    let services: Vec<_> = (0..1_500).map(|i| b.service(&format!("s{i}"), 2 + i)).collect();
    let mut held = services.clone();
    held.extend([local.peer_record(1), left]);
    let mut gossip = machine(&local, held, &[&a]);
    let deleted = tombstone(&services[0], &a, 2_000);
    assert_eq!(give(&mut gossip, &a, vec![deleted.clone()]), 0);
    assert_eq!(gossip.record(&deleted.key), Some(&deleted));
}

#[test]
fn nobody_deletes_what_a_readmitted_peer_writes() {
    let [local, a, b, _] = cast();
    let left = b.revocation(&b, LEFT_AT, RevocationReason::Deactivated);
    let mut gossip = machine(&local, vec![local.peer_record(1), left, b.service("s", 2)], &[&a]);
    // Had it come back, this is what it would write; the word by which it left is below it.
    let after = b.service("s", LEFT_AT + 1);
    assert_eq!(give(&mut gossip, &a, vec![tombstone(&after, &a, LEFT_AT + 2)]), 1);
    assert_eq!(give(&mut gossip, &a, vec![tombstone(&b.peer_record(1), &a, 3)]), 1, "services only");
    assert_eq!(give(&mut gossip, &a, vec![tombstone(&after, &a, LEFT_AT)]), 0);
}

#[test]
fn the_owner_itself_takes_what_was_deleted_while_it_was_away() {
    let [local, a, _, _] = cast();
    let service = local.service("s", 2);
    let left = local.revocation(&local, LEFT_AT, RevocationReason::Deactivated);
    let readmission = ReadmissionBody {
        peer_id: local.id,
        public_key: local.key.public(),
        answers: vec![AnsweredRevocation { issuer: local.id, version: LEFT_AT }],
        readmitted_at: UnixTime::from_ms(1),
    };
    let readmission = serde_json::to_value(readmission).unwrap();
    let back = a.record(kind::READMISSION, &local.id.to_string(), 1, readmission);
    let mut gossip = machine(&local, vec![local.peer_record(7), left, back, service.clone()], &[&a]);
    let deleted = tombstone(&service, &a, 3);
    let push = PushRequest {
        instance: String::new(),
        records: vec![deleted.clone()].into(),
        hops: 0,
        digests: gossip.digests(),
    };
    gossip.handle_request(a.id, &Request::Push(push), T).unwrap();
    let merged = std::iter::from_fn(|| gossip.poll_event()).any(|e| e == Event::Merge(vec![deleted.clone()]));
    assert!(merged && gossip.record(&service.key) == Some(&deleted));
}
