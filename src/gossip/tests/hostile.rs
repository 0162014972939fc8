//! What a member can do to the others (simulation.md, fault 40): floods, forgeries, replays, equivocation.

use super::network::{Faults, Identity, Network, machine};
use crate::{
    gossip::{Gossip, Reject},
    model::Mono,
    wire::{
        gossip::{PushReply, PushRequest, Reply, Request},
        record::{Record, RevocationReason, kind},
    },
};
use serde_json::json;
use std::time::Duration;

/// As `quota.rs` has it.
const OWNER_BURST: u64 = 16_384;
const OWNER_PER_SECOND: usize = 100;
const FORGERIES_BURST: usize = 256;
const STRANGERS_BURST: usize = 16_384;

fn give(gossip: &mut Gossip, from: &Identity, records: Vec<Record>, now: Mono) -> u32 {
    let digests = gossip.digests();
    let push = Request::Push(PushRequest { instance: String::new(), records: records.into(), hops: 0, digests });
    let Ok(Reply::Push(PushReply { dropped, .. })) = gossip.handle_request(from.id, &push, now) else {
        panic!("a push is answered")
    };
    while gossip.poll_event().is_some() {}
    dropped
}

/// N8.
#[test]
fn a_flood_of_one_owner_is_cut_off_and_delays_nobody_else() {
    let [local, hostile, honest] = [1, 2, 3].map(Identity::numbered);
    let mut gossip = machine(&local, vec![], &[&hostile, &honest]);
    let start = Mono::from_ms(1_000);
    for _ in 0..OWNER_BURST {
        gossip.quotas.charge(hostile.id, 1_500, start);
    }
    for second in 0..3u64 {
        let now = start + Duration::from_secs(second);
        let flood = (0..300).map(|i| hostile.service(&format!("f{second}-{i}"), 1 + second * 1_000 + i));
        let mut records: Vec<_> = flood.collect();
        let good = honest.service(&format!("good{second}"), second + 1);
        records.push(good.clone());
        // Whoever carries it.
        let dropped = give(&mut gossip, if second == 1 { &honest } else { &hostile }, records, now) as usize;
        let taken = if second == 0 { 0 } else { OWNER_PER_SECOND };
        assert!((300 - taken..=300 - taken + 1).contains(&dropped), "{dropped} in second {second}");
        assert!(gossip.record(&good.key).is_some());
    }
    assert_eq!(gossip.drops().bad_signature, 0);
    assert!(gossip.drops().over_quota >= 600);
}

#[test]
fn forgeries_are_charged_to_their_sender_and_not_to_the_owner_they_name() {
    let [local, hostile, honest] = [1, 2, 3].map(Identity::numbered);
    let mut gossip = machine(&local, vec![], &[&hostile, &honest]);
    let forge =
        |i: usize| Record::sign(&hostile.key, honest.id, kind::SERVICE, &format!("x{i}"), 5, json!({})).unwrap();
    let now = Mono::from_ms(1_000);
    assert_eq!(give(&mut gossip, &hostile, (0..1_000).map(forge).collect(), now), 1_000);
    assert_eq!(gossip.drops().bad_signature as usize, FORGERIES_BURST, "beyond, no signature is looked at");
    let good = honest.service("good", 9);
    assert_eq!(give(&mut gossip, &honest, vec![good], now), 0);
}

/// A name and endpoints of a peer that nobody vouches for cost a signature check as well.
#[test]
fn forged_introductions_are_charged_to_their_sender() {
    let [local, hostile, honest] = [1, 2, 3].map(Identity::numbered);
    let mut gossip = machine(&local, vec![], &[&hostile, &honest]);
    let forge = |n: u8| {
        let mut record = Identity::numbered(n).peer_record(1);
        record.version = 2;
        record
    };
    let now = Mono::from_ms(1_000);
    for round in 0..4 {
        let all: Vec<_> = (10..=250).map(forge).collect();
        assert_eq!(give(&mut gossip, &hostile, all, now), 241, "round {round}");
    }
    assert_eq!(gossip.drops().bad_signature as usize, FORGERIES_BURST, "beyond, no signature is looked at");
    assert_eq!(give(&mut gossip, &honest, vec![Identity::numbered(10).peer_record(1)], now), 0);
}

/// Anybody can sign the last words of peers that never were.
#[test]
fn what_untrusted_owners_leave_behind_is_charged_to_who_brings_it() {
    let [local, hostile, honest] = [1, 2, 3].map(Identity::numbered);
    let mut gossip = machine(&local, vec![], &[&hostile, &honest]);
    let start = Mono::from_ms(1_000);
    for _ in 0..STRANGERS_BURST {
        assert!(gossip.quotas.charge_stranger(hostile.id, start));
    }
    let farewell = |n: u8| {
        let made_up = Identity::numbered(n);
        made_up.revocation(&made_up, 1, RevocationReason::Deactivated)
    };
    assert_eq!(give(&mut gossip, &hostile, (10..20).map(farewell).collect(), start), 10);
    assert_eq!(gossip.drops().over_quota, 10);
    assert_eq!(give(&mut gossip, &honest, (10..20).map(farewell).collect(), start), 0);
    let second = start + Duration::from_secs(1);
    assert_eq!(give(&mut gossip, &hostile, (20..150).map(farewell).collect(), second), 30);
    let removal = hostile.revocation(&Identity::numbered(200), 1, RevocationReason::Deleted);
    assert_eq!(give(&mut gossip, &hostile, vec![removal], second), 0, "what a member signs is charged to it");
}

#[test]
fn an_owner_that_lets_its_records_grow_is_cut_off_at_its_limit() {
    const LIMIT_BYTES: u32 = 64 * 1024 * 1024;
    let [local, hostile] = [1, 2].map(Identity::numbered);
    let mut gossip = machine(&local, vec![], &[&hostile]);
    let small = (0..300).map(|i| hostile.service(&format!("f{i}"), 1)).collect();
    assert_eq!(give(&mut gossip, &hostile, small, Mono::from_ms(1_000)), 0);
    for i in 0..300u64 {
        let body = json!({ "fill": "x".repeat(250_000) });
        let grown = hostile.record(kind::SERVICE, &format!("f{i}"), 2, body);
        give(&mut gossip, &hostile, vec![grown], Mono::from_ms(2_000 + i * 1_000));
    }
    assert!(gossip.drops().over_owner_limit > 0 && gossip.drops().over_quota == 0);
    assert!(gossip.index.owned(hostile.id).bytes <= LIMIT_BYTES);
    let deleted = hostile.tombstone(kind::SERVICE, "f0", 3);
    assert_eq!(give(&mut gossip, &hostile, vec![deleted], Mono::from_ms(400_000)), 0, "what makes room is taken");
}

#[test]
fn requests_are_charged_before_they_are_read() {
    let [local, hostile, honest] = [1, 2, 3].map(Identity::numbered);
    let mut gossip = machine(&local, vec![], &[&hostile, &honest]);
    let now = Mono::from_ms(1_000);
    let mib = 1024 * 1024;
    let taken = (0..100).filter(|_| gossip.handle_arrival(hostile.id, mib, now).is_ok()).count();
    assert_eq!(taken, 32);
    assert_eq!(gossip.handle_arrival(hostile.id, mib, now), Err(Reject::OverQuota));
    assert_eq!(gossip.handle_arrival(honest.id, mib, now), Ok(()));
    assert_eq!(gossip.handle_arrival(hostile.id, mib, now + Duration::from_secs(1)), Ok(()));
    assert_eq!(gossip.handle_arrival(Identity::numbered(9).id, 1, now), Err(Reject::NotTrusted));
}

/// G5: peers that heard different contents of one version end up with the same.
#[test]
fn an_equivocating_owner_is_counted_and_everyone_keeps_the_same() {
    let mut network = Network::new(4, 6, Faults::NONE);
    network.run_for(Duration::from_secs(30));
    let hostile = Identity::numbered(3);
    let now = network.now;
    for (node, n) in [(0, 1), (1, 2)] {
        let record = hostile.record(kind::SERVICE, "two-faced", 50, json!({ "n": n }));
        let digests = network.nodes[node].gossip.digests();
        let push =
            Request::Push(PushRequest { instance: String::new(), records: vec![record].into(), hops: 0, digests });
        network.nodes[node].gossip.handle_request(hostile.id, &push, now).unwrap();
    }
    network.flush_all();
    network.run_for(Duration::from_secs(60));
    let digests = network.digests();
    assert!(digests[..3].windows(2).all(|pair| pair[0] == pair[1]));
    assert!(network.nodes[..3].iter().any(|n| n.gossip.drops().equivocations > 0));
}

/// Old records, of removed peers and below a floor, change nothing, however often they come.
#[test]
fn replayed_records_change_nothing() {
    let mut network = Network::new(4, 7, Faults::NONE);
    network.run_for(Duration::from_secs(30));
    for owner in [1, 2] {
        network.write(owner, "s", false);
    }
    network.run_for(Duration::from_secs(5));
    let all: Vec<Record> = network.nodes[3].store.values().cloned().collect();
    network.write(1, "s", true);
    network.revoke(0, 2);
    network.run_for(Duration::from_secs(150));
    let replayer = Identity::numbered(3);
    let before = network.nodes[0].gossip.digests();
    for _ in 0..20 {
        let now = network.now;
        give(&mut network.nodes[0].gossip, &replayer, all.clone(), now);
        network.run_for(Duration::from_secs(1));
    }
    assert_eq!(network.nodes[0].gossip.digests(), before);
    assert!(network.nodes[0].gossip.drops().stale > 0 && network.nodes[0].gossip.drops().revoked_owner > 0);
}
