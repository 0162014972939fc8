//! G2: merging is commutative, associative and idempotent.

use super::network::{Identity, machine};
use crate::{
    gossip::{
        Gossip,
        index::{Entry, Index},
    },
    model::Mono,
    wire::{
        gossip::{PushRequest, Request},
        record::{Record, RevocationReason, kind},
    },
};
use proptest::prelude::*;
use serde_json::json;

/// Records of three owners that compete for few keys, equal versions and tombstones among them.
fn any_record() -> impl Strategy<Value = Record> {
    (1u8..4, 0usize..3, 0u8..3, 1u64..4, 0u8..3).prop_map(|(owner, what, id, version, variant)| {
        let owner = Identity::numbered(owner);
        let record_kind = [kind::SERVICE, kind::CREDENTIAL, "kind-of-tomorrow"][what];
        match variant {
            0 => owner.tombstone(record_kind, &format!("x{id}"), version),
            _ => owner.record(record_kind, &format!("x{id}"), version, json!({ "variant": variant })),
        }
    })
}

/// The same, with members that remove each other.
fn any_record_or_revocation() -> impl Strategy<Value = Record> {
    let revocation = (1u8..4, 1u8..4, 1u64..3, any::<bool>()).prop_map(|(issuer, subject, version, left)| {
        let reason = if left { RevocationReason::Deactivated } else { RevocationReason::Deleted };
        Identity::numbered(issuer).revocation(&Identity::numbered(subject), version, reason)
    });
    prop_oneof![4 => any_record(), 1 => revocation]
}

fn index_of(records: &[Record]) -> Index {
    let mut index = Index::default();
    for record in records {
        index.offer(Entry::new(record.clone()).unwrap());
    }
    index
}

fn joined(mut into: Index, from: &Index) -> Index {
    for registry in crate::wire::gossip::Registry::ALL {
        for entry in from.of_registry(registry) {
            into.offer(entry.clone());
        }
    }
    into
}

fn push(gossip: &mut Gossip, from: &Identity, records: Vec<Record>) {
    let digests = gossip.digests();
    let push = Request::Push(PushRequest { instance: String::new(), records: records.into(), hops: 0, digests });
    gossip.handle_request(from.id, &push, Mono::from_ms(1)).unwrap();
    while gossip.poll_event().is_some() {}
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn joining_indexes_forms_a_semilattice(
        a in prop::collection::vec(any_record(), 0..8),
        b in prop::collection::vec(any_record(), 0..8),
        c in prop::collection::vec(any_record(), 0..8),
    ) {
        let (a, b, c) = (index_of(&a), index_of(&b), index_of(&c));
        let ab = joined(a.clone(), &b);
        prop_assert_eq!(ab.digests(), joined(b.clone(), &a).digests());
        prop_assert_eq!(joined(ab.clone(), &c).digests(), joined(a.clone(), &joined(b.clone(), &c)).digests());
        prop_assert_eq!(joined(ab.clone(), &b).digests(), ab.digests());
    }

    /// Also with removals: what a removed owner wrote is void whether it came before or after its revocation.
    #[test]
    fn the_order_of_records_does_not_matter_to_a_machine(
        records in prop::collection::vec(any_record_or_revocation(), 1..14),
        order in any::<u64>(),
        parts in 1usize..4,
    ) {
        let local = Identity::numbered(10);
        let carrier = Identity::numbered(11);
        let owners: Vec<_> = (1..4).map(Identity::numbered).collect();
        let mut peers: Vec<_> = owners.iter().collect();
        peers.push(&carrier);
        let mut straight = machine(&local, Vec::new(), &peers);
        push(&mut straight, &carrier, records.clone());
        let mut shuffled = records.clone();
        let mut rng = crate::model::Rng::from_seed([(order % 251) as u8; 32]);
        for i in (1..shuffled.len()).rev() {
            shuffled.swap(i, rng.below(i as u64 + 1) as usize);
        }
        let mut other = machine(&local, Vec::new(), &peers);
        for part in shuffled.chunks(shuffled.len().div_ceil(parts)) {
            push(&mut other, &carrier, part.to_vec());
            push(&mut other, &carrier, part.to_vec());
        }
        prop_assert_eq!(straight.digests(), other.digests());
        prop_assert_eq!(straight.links.keys().collect::<Vec<_>>(), other.links.keys().collect::<Vec<_>>());
    }
}
