//! Tombstones go by acknowledgement, and nothing that was collected comes back (cluster.md §7).

use super::network::{Faults, Identity, Network, machine};
use crate::{
    gossip::{Event, FLOOR_INTERVAL, Gossip, LAGGARD_AFTER},
    model::Mono,
    wire::{
        gossip::{PushReply, PushRequest, Records, Reply, Request, whole::Backing},
        record::{FloorBody, Record, RecordKey, RevocationReason, kind},
    },
};
use serde_json::json;
use std::{sync::Arc, time::Duration};

/// Acknowledgements travel with heartbeats, the floor by push.
const COLLECTED_WITHIN: Duration = Duration::from_secs(2 * FLOOR_INTERVAL.as_secs() + 30);
const DAY: Duration = Duration::from_secs(86_400);

fn settled(size: u8, seed: u64) -> Network {
    let mut network = Network::new(size, seed, Faults::NONE);
    network.run_for(Duration::from_secs(30));
    assert!(network.is_equal());
    network
}

fn service_key(owner: usize, id: &str) -> RecordKey {
    RecordKey { kind: kind::SERVICE.into(), id: id.into(), owner: Identity::numbered(owner as u8).id }
}

impl Network {
    fn tombstones(&self, node: usize) -> usize {
        self.nodes[node].store.values().filter(|r| r.deleted).count()
    }

    fn lives(&self, node: usize, key: &RecordKey) -> bool {
        self.nodes[node].store.get(key).is_some_and(|r| !r.deleted)
    }

    fn is_caught_up(&self) -> bool {
        self.is_equal() && self.nodes.iter().all(|n| n.catching_up.is_empty())
    }

    fn assert_settles(&mut self, within: Duration) {
        let end = self.now + within;
        assert!(self.run_until(end, Network::is_caught_up), "not settled");
        self.assert_stores_match();
    }
}

#[test]
fn a_tombstone_goes_once_everyone_has_acknowledged_it() {
    for size in 1..=4 {
        let mut network = settled(size, 3);
        for round in 0..3 {
            network.write(0, "kept", false);
            network.write(0, &format!("s{round}"), false);
            network.run_for(Duration::from_secs(5));
            network.write(0, &format!("s{round}"), true);
            let end = network.now + COLLECTED_WITHIN;
            let all_gone = |n: &Network| (0..n.nodes.len()).all(|node| n.tombstones(node) == 0) && n.is_equal();
            if size > 1 {
                assert!(network.run_until(end, all_gone), "size {size} round {round}");
            }
        }
        assert!((0..usize::from(size)).all(|node| network.lives(node, &service_key(0, "kept"))));
        network.assert_stores_match();
    }
}

/// R2.
#[test]
fn time_alone_never_collects() {
    let mut network = settled(3, 4);
    network.write(0, "s", false);
    network.run_for(Duration::from_secs(5));
    network.isolate(2, true);
    network.write(0, "s", true);
    network.run_for(Duration::from_secs(600));
    network.sleep(LAGGARD_AFTER - 2 * DAY);
    network.run_for(Duration::from_secs(600));
    assert_eq!((network.tombstones(0), network.tombstones(1)), (1, 1), "one peer has not acknowledged it");
    network.isolate(2, false);
    let end = network.now + COLLECTED_WITHIN;
    assert!(network.run_until(end, |n| (0..3).all(|node| n.tombstones(node) == 0)));
    assert!(!network.lives(2, &service_key(0, "s")));
}

/// R1, R2, scenario 3: who missed a collected tombstone is reset.
#[test]
fn a_peer_that_was_away_for_longer_than_thirty_days_is_reset() {
    for seed in 0..4 {
        let mut network = settled(4, seed);
        for id in ["kept", "deleted"] {
            network.write(0, id, false);
        }
        network.run_for(Duration::from_secs(5));
        network.isolate(3, true);
        network.write(3, "written-apart", false);
        network.write(0, "deleted", true);
        network.run_for(Duration::from_secs(60));
        network.sleep(LAGGARD_AFTER + DAY);
        network.run_for(COLLECTED_WITHIN);
        assert_eq!(network.tombstones(0) + network.tombstones(1) + network.tombstones(2), 0);
        assert!(network.lives(3, &service_key(0, "deleted")));
        network.isolate(3, false);
        let (gone, end) = (service_key(0, "deleted"), network.now + Duration::from_secs(90));
        network.run_until(end, |n| {
            assert!((0..3).all(|node| !n.lives(node, &gone)), "nothing comes back on a peer that knew better");
            false
        });
        network.assert_settles(Duration::from_secs(60));
        for node in 0..4 {
            assert!(!network.lives(node, &service_key(0, "deleted")));
            assert!(network.lives(node, &service_key(0, "kept")));
            assert!(network.lives(node, &service_key(3, "written-apart")));
        }
    }
}

#[test]
fn half_a_cluster_never_collects() {
    let mut network = settled(4, 5);
    network.write(0, "s", false);
    network.run_for(Duration::from_secs(5));
    for a in [0, 1] {
        for b in [2, 3] {
            network.cut.extend([(a, b), (b, a)]);
        }
    }
    network.write(0, "s", true);
    network.run_for(Duration::from_secs(60));
    network.sleep(LAGGARD_AFTER + DAY);
    network.run_for(COLLECTED_WITHIN);
    assert_eq!((network.tombstones(0), network.tombstones(1)), (1, 1));
}

/// Scenario 1.
#[test]
fn revoked_peer_never_returns_after_collection() {
    for seed in 0..4 {
        let mut network = settled(5, seed);
        let (p, x) = (3, 4);
        network.write(p, "of-p", false);
        network.write(0, "to-p", false);
        network.run_for(Duration::from_secs(10));
        network.isolate(x, true);
        network.revoke(0, p);
        network.write(0, "to-p", true);
        network.run_for(Duration::from_secs(120));
        network.sleep(40 * DAY);
        network.run_for(COLLECTED_WITHIN);
        assert!((0..3).all(|node| network.tombstones(node) == 0));
        assert!(network.lives(x, &service_key(p, "of-p")));
        network.isolate(x, false);
        network.isolate(p, true);
        let gone = network.nodes[p].who.id;
        let end = network.now + Duration::from_secs(150);
        network.run_until(end, |n| {
            for node in &n.nodes[..3] {
                assert!(!node.trusted.contains_key(&gone));
                assert!(node.store.values().all(|r| r.key.owner != gone));
                assert!(node.store.get(&service_key(0, "to-p")).is_none_or(|r| r.deleted));
            }
            false
        });
        let rest: Vec<_> = [0, 1, 2, x].map(|node| network.nodes[node].gossip.digests()).into();
        assert!(rest.windows(2).all(|pair| pair[0] == pair[1]), "seed {seed}");
        assert!(!network.lives(x, &service_key(0, "to-p")) && !network.lives(x, &service_key(p, "of-p")));
        assert!(!network.nodes[x].trusted.contains_key(&gone));
        assert!(network.nodes[x].catching_up.is_empty());
    }
}

/// Fault 23.
#[test]
fn an_owner_that_lost_its_database_gets_back_what_it_had_and_not_what_it_deleted() {
    for seed in 0..4 {
        let mut network = settled(3, seed);
        for id in ["kept", "deleted"] {
            network.write(0, id, false);
        }
        network.run_for(Duration::from_secs(10));
        network.write(0, "deleted", true);
        network.run_for(COLLECTED_WITHIN);
        assert_eq!(network.tombstones(1), 0);
        network.wipe(0);
        network.write(0, "written-after-the-loss", false);
        network.assert_settles(Duration::from_secs(120));
        network.write(0, "later", false);
        network.run_for(Duration::from_secs(30));
        for node in 0..3 {
            for id in ["kept", "written-after-the-loss", "later"] {
                assert!(network.lives(node, &service_key(0, id)), "seed {seed}: {id} on {node}");
            }
            assert!(!network.lives(node, &service_key(0, "deleted")));
        }
        // And collection goes on.
        network.write(0, "later", true);
        network.run_for(COLLECTED_WITHIN);
        assert!((0..3).all(|node| network.tombstones(node) == 0), "seed {seed}");
        network.assert_settles(Duration::from_secs(60));
    }
}

/// Fault 22.
#[test]
fn an_owner_on_an_old_snapshot_brings_nothing_back() {
    for seed in 0..4 {
        let mut network = settled(3, seed);
        for id in ["kept", "deleted"] {
            network.write(0, id, false);
        }
        network.run_for(Duration::from_secs(10));
        let old = network.snapshot(0);
        network.write(0, "deleted", true);
        network.write(0, "newer", false);
        network.run_for(COLLECTED_WITHIN);
        assert_eq!(network.tombstones(1), 0);
        network.restore(0, old);
        network.write(0, "after-the-restore", false);
        let gone = service_key(0, "deleted");
        let end = network.now + Duration::from_secs(120);
        network.run_until(end, |n| {
            assert!(!n.lives(1, &gone) && !n.lives(2, &gone));
            false
        });
        network.assert_settles(Duration::from_secs(60));
        for node in 0..3 {
            for id in ["kept", "newer", "after-the-restore"] {
                assert!(network.lives(node, &service_key(0, id)), "seed {seed}: {id} on {node}");
            }
            assert!(!network.lives(node, &gone));
        }
    }
}

/// Fault 23: only what the new database wrote is new; the rest may have been deleted since.
#[test]
fn what_a_late_peer_gives_back_to_an_owner_that_lost_its_database_stays_deleted() {
    for is_restarted in [false, true] {
        let mut network = settled(4, 13);
        network.write(0, "deleted", false);
        network.run_for(Duration::from_secs(10));
        network.isolate(3, true);
        network.write(0, "deleted", true);
        network.run_for(Duration::from_secs(60));
        network.sleep(LAGGARD_AFTER + DAY);
        network.run_for(COLLECTED_WITHIN);
        assert_eq!(network.tombstones(0) + network.tombstones(1) + network.tombstones(2), 0);
        network.isolate(0, true);
        network.wipe(0);
        network.write(0, "written-after-the-loss", false);
        network.cut.retain(|pair| ![(0, 3), (3, 0)].contains(pair));
        network.run_for(Duration::from_secs(30));
        let gone = service_key(0, "deleted");
        assert!(network.lives(0, &gone), "it came back");
        if is_restarted {
            network.restart(0);
            network.write(0, "written-after-the-loss", false);
        }
        network.cut.clear();
        let end = network.now + Duration::from_secs(120);
        network.run_until(end, |n| {
            assert!(!n.lives(1, &gone) && !n.lives(2, &gone));
            false
        });
        network.assert_settles(Duration::from_secs(60));
        assert!((0..4).all(|node| !network.lives(node, &gone)));
        assert!((0..4).all(|node| network.lives(node, &service_key(0, "written-after-the-loss"))));
    }
}

/// The owner gave a version twice, and this peer was told of all up to there: by the start before.
#[test]
fn who_was_complete_with_another_start_is_reset_by_a_floor() {
    let mut network = settled(3, 14);
    network.write(0, "s", false);
    network.run_for(Duration::from_secs(10));
    let old = network.snapshot(0);
    network.isolate(1, true);
    network.write(0, "s", false);
    network.run_for(Duration::from_secs(20));
    network.isolate(2, true);
    network.restore(0, old);
    network.write(0, "s", true);
    network.sleep(LAGGARD_AFTER + DAY);
    network.isolate(0, false);
    network.isolate(2, true);
    network.run_for(COLLECTED_WITHIN);
    assert_eq!(network.tombstones(0) + network.tombstones(1), 0, "collected without 2");
    assert!(network.lives(2, &service_key(0, "s")));
    // 2 hears of the floor before it hears its owner.
    network.cut.retain(|pair| ![(1, 2), (2, 1)].contains(pair));
    network.run_for(Duration::from_secs(30));
    network.cut.clear();
    network.assert_settles(Duration::from_secs(120));
    assert!(!network.lives(2, &service_key(0, "s")));
}

/// On an old snapshot the owner does not know its own floor: that a peer is complete up to there acknowledges nothing of
/// what this start wrote.
#[test]
fn a_floor_that_the_owner_lost_acknowledges_nothing() {
    for seed in 0..8 {
        let mut network = settled(4, seed);
        network.write(0, "gone", false);
        network.write(0, "gone", true);
        let old = network.snapshot(0);
        network.write(0, "kept", false);
        network.run_for(COLLECTED_WITHIN);
        assert_eq!(network.tombstones(1), 0);
        network.restore(0, old);
        // Its versions come up to the floor again, and the one that is left is to agree.
        [2, 3].into_iter().for_each(|subject| network.revoke(0, subject));
        network.run_for(COLLECTED_WITHIN);
        assert!((0..2).all(|node| network.lives(node, &service_key(0, "kept"))), "seed {seed}");
        assert_eq!(network.nodes[0].gossip.digests(), network.nodes[1].gossip.digests());
    }
}

/// A peer agreed with the owner about all up to a version; then it hears of a record below, from before the owner lost its
/// database.
#[test]
fn who_hears_of_an_earlier_history_no_longer_counts_as_complete() {
    let mut network = settled(5, 16);
    network.isolate(1, true);
    network.write(3, "lost", false);
    network.run_for(Duration::from_secs(10));
    (0..5).for_each(|node| network.isolate(node, true));
    network.wipe(3);
    network.sleep(LAGGARD_AFTER + DAY);
    network.wipe(0);
    network.write(3, "new", false);
    network.write(3, "new", true);
    for (a, b, seconds) in [(1, 3, 20), (0, 3, 90), (1, 4, 20)] {
        network.cut.retain(|pair| ![(a, b), (b, a)].contains(pair));
        network.run_for(Duration::from_secs(seconds));
        network.cut.extend([(a, b), (b, a)]);
    }
    assert_eq!((network.tombstones(3), network.tombstones(1)), (0, 1), "collected by 0, 1 and 3");
    assert!(network.lives(1, &service_key(3, "lost")));
    network.cut.clear();
    network.assert_settles(Duration::from_secs(180));
}

/// What the new database wrote and what came back from the old one are told apart by the next start, too.
#[test]
fn a_restart_in_the_middle_of_a_recovery_loses_nothing_that_was_written_since_the_loss() {
    let mut network = settled(3, 17);
    for id in ["kept", "deleted", "deleted-later"] {
        network.write(0, id, false);
    }
    network.write(0, "deleted", true);
    network.run_for(COLLECTED_WITHIN);
    network.isolate(2, true);
    network.write(0, "deleted-later", true);
    network.run_for(Duration::from_secs(10));
    network.isolate(0, true);
    network.wipe(0);
    network.write(0, "new", false);
    // 2 gives back what was deleted since, and 0 stops before it knows better.
    network.cut.retain(|pair| ![(0, 2), (2, 0)].contains(pair));
    let end = network.now + Duration::from_secs(30);
    assert!(network.run_until(end, |n| n.lives(0, &service_key(0, "deleted-later"))));
    network.restart(0);
    network.cut.clear();
    network.assert_settles(Duration::from_secs(180));
    for node in 0..3 {
        assert!(["kept", "new"].iter().all(|id| network.lives(node, &service_key(0, id))), "{node}");
        assert!(["deleted", "deleted-later"].iter().all(|id| !network.lives(node, &service_key(0, id))), "{node}");
    }
}

/// A new database begins with records of its own, before anything comes back.
#[test]
fn what_a_start_made_the_database_with_is_later_than_what_comes_back() {
    let mut network = settled(3, 18);
    let (id, mut earlier) = (network.nodes[0].who.id.to_string(), network.nodes[0].who.peer_record(1).body);
    earlier["name"] = json!("before the loss");
    network.put_own(0, kind::PEER, &id, earlier);
    network.run_for(Duration::from_secs(10));
    network.isolate(0, true);
    network.wipe(0);
    network.isolate(0, false);
    network.assert_settles(Duration::from_secs(180));
    let anew = network.nodes[0].who.peer_record(1).body;
    assert!(
        network.nodes.iter().all(|n| n.gossip.record(&network.nodes[0].who.peer_record(1).key).unwrap().body == anew)
    );
}

/// What is written on an old snapshot takes versions that were given before.
#[test]
fn records_whose_versions_fell_below_a_floor_are_written_anew() {
    for writes in 1..6 {
        let mut network = settled(3, 12);
        network.write(0, "first", false);
        network.write(0, "first", true);
        let old = network.snapshot(0);
        network.write(0, "second", false);
        network.run_for(COLLECTED_WITHIN);
        assert_eq!(network.tombstones(1), 0);
        network.isolate(0, true);
        network.restore(0, old);
        for i in 0..writes {
            network.write(0, &format!("new{i}"), false);
        }
        network.isolate(0, false);
        network.assert_settles(Duration::from_secs(120));
        for node in 0..3 {
            assert!(network.lives(node, &service_key(0, "second")));
            assert!(
                (0..writes).all(|i| network.lives(node, &service_key(0, &format!("new{i}")))),
                "{writes} on {node}"
            );
        }
    }
}

/// Fault 22: the last that the owner wrote holds, though its versions were given before.
#[test]
fn what_is_changed_and_deleted_on_an_old_snapshot_stays_so() {
    for seed in 0..4 {
        for (past_writes, collected) in [(0, false), (0, true), (3, false), (3, true)] {
            let mut network = settled(3, seed);
            for id in ["gone", "changed", "deleted"] {
                network.write(0, id, false);
            }
            let old = network.snapshot(0);
            for _ in 0..past_writes {
                network.write(0, "changed", false);
                network.write(0, "deleted", false);
            }
            network.run_for(Duration::from_secs(10));
            if collected {
                network.write(0, "gone", true);
                network.run_for(COLLECTED_WITHIN);
                assert_eq!(network.tombstones(1), 0);
            }
            network.restore(0, old);
            network.put_own(0, kind::SERVICE, "changed", json!({ "n": "after" }));
            network.write(0, "deleted", true);
            network.assert_settles(Duration::from_secs(120));
            network.run_for(COLLECTED_WITHIN);
            let owner = network.nodes[0].who.id;
            for node in &network.nodes {
                let of = |id: &str| node.store.get(&RecordKey { kind: kind::SERVICE.into(), id: id.into(), owner });
                let case = format!("seed {seed}, {past_writes} later versions, floor {collected}");
                assert_eq!(of("changed").map(|r| &r.body), Some(&json!({ "n": "after" })), "{case}");
                assert_eq!(of("deleted"), None, "{case}: deleted, and collected everywhere");
            }
            network.assert_settles(Duration::from_secs(60));
        }
    }
}

#[test]
fn a_foreign_snapshot_is_reset_by_what_was_collected_since() {
    let mut network = settled(3, 8);
    network.write(0, "s", false);
    network.run_for(Duration::from_secs(10));
    let old = network.snapshot(2);
    network.write(0, "s", true);
    network.run_for(COLLECTED_WITHIN);
    assert_eq!(network.tombstones(0), 0);
    network.restore(2, old);
    assert!(network.lives(2, &service_key(0, "s")));
    network.assert_settles(Duration::from_secs(60));
    assert!((0..3).all(|node| !network.lives(node, &service_key(0, "s"))));
}

#[test]
fn a_newcomer_learns_old_records_also_from_others_and_is_waited_for() {
    let mut network = settled(4, 9);
    for node in 1..4 {
        network.untrust(0, node);
        network.untrust(node, 0);
    }
    network.wipe(0);
    network.nodes[0].trusted.clear();
    network.restart(0);
    for owner in 1..4 {
        network.write(owner, "kept", false);
        network.write(owner, "deleted", false);
        network.write(owner, "deleted", true);
    }
    network.run_for(COLLECTED_WITHIN);
    assert_eq!(network.tombstones(1), 0);
    // It reaches the owner 3 through 2 only.
    network.cut.extend([(0, 3), (3, 0)]);
    for node in 1..4 {
        network.trust(node, 0);
        network.trust(0, node);
    }
    network.run_for(Duration::from_secs(120));
    assert!((1..4).all(|owner| network.lives(0, &service_key(owner, "kept"))));
    assert!(network.is_caught_up(), "{:?}", network.nodes[0].catching_up);
    network.write(3, "kept", true);
    network.run_for(COLLECTED_WITHIN);
    assert_eq!(network.tombstones(1), 1, "the newcomer cannot acknowledge to 3");
    network.cut.clear();
    network.run_for(COLLECTED_WITHIN);
    assert!((0..4).all(|node| network.tombstones(node) == 0));
}

/// What others sign for a departed owner has a version below its floor, which collects only what the owner deleted.
#[test]
fn what_is_deleted_by_hand_of_a_departed_peer_stays_deleted_with_those_that_restart() {
    let mut network = settled(3, 19);
    network.write(0, "left", false);
    network.write(0, "deleted", false);
    network.write(0, "deleted", true);
    network.run_for(COLLECTED_WITHIN);
    assert!((0..3).all(|node| network.tombstones(node) == 0));
    let zero = Identity::numbered(0);
    let word = zero.revocation(&zero, network.nodes[0].version + 1, RevocationReason::Deactivated);
    network.isolate(0, true);
    let digests = network.nodes[1].gossip.digests();
    let push = PushRequest { instance: String::new(), records: vec![word].into(), hops: 2, digests };
    let now = network.now;
    network.nodes[1].gossip.handle_request(zero.id, &Request::Push(push), now).unwrap();
    network.flush_all();
    network.run_for(Duration::from_secs(30));
    let one = Identity::numbered(1);
    let live = network.nodes[1].gossip.record(&service_key(0, "left")).unwrap().clone();
    let by_hand = Record::sign_tombstone_of_another(&one.key, one.id, live.key, live.version + 1).unwrap();
    network.commit_local(1, by_hand.clone());
    network.run_for(Duration::from_secs(30));
    network.restart(2);
    network.run_for(Duration::from_secs(60));
    for node in [1, 2] {
        assert_eq!(network.nodes[node].gossip.record(&by_hand.key), Some(&by_hand), "{node}");
    }
}

fn floor(of: &Identity, through: u64, version: u64) -> Record {
    let body = FloorBody { through, lineage: "first".into(), instance: "1".into() };
    of.record(kind::FLOOR, &of.id.to_string(), version, serde_json::to_value(body).unwrap())
}

fn give(gossip: &mut Gossip, from: &Identity, records: Records) -> (u32, Vec<Event>) {
    let digests = gossip.digests();
    let push = Request::Push(PushRequest { instance: String::new(), records, hops: 0, digests });
    let push = Request::decode(push.op(), &push.encode()).unwrap();
    let Ok(Reply::Push(PushReply { dropped, .. })) = gossip.handle_request(from.id, &push, Mono::from_ms(5)) else {
        panic!("a push is answered")
    };
    (dropped, std::iter::from_fn(|| gossip.poll_event()).collect())
}

#[test]
fn below_a_floor_only_a_complete_peer_gives_records_and_only_to_one_that_catches_up() {
    let [local, a, b] = [1, 2, 3].map(Identity::numbered);
    let mut gossip = machine(&local, vec![], &[&a, &b]);
    let (old, newer) = (a.service("old", 3), a.service("newer", 12));
    let (_, events) = give(&mut gossip, &b, vec![floor(&a, 10, 11)].into());
    assert_eq!(events[1], Event::CatchingUp { owner: a.id, complete: 0 }, "before the floor itself: {events:?}");
    assert!(matches!(&events[2], Event::Merge(_)));
    let backed = |through| Records {
        backings: vec![Backing { floor: Arc::new(floor(&a, 10, 11)), through }],
        ..vec![old.clone()].into()
    };
    for refused in [vec![old.clone()].into(), backed(9)] {
        assert_eq!(give(&mut gossip, &b, refused).0, 1);
    }
    assert_eq!(gossip.drops().stale, 2);
    assert_eq!(give(&mut gossip, &b, backed(10)).0, 0);
    assert!(gossip.record(&old.key).is_some());
    assert_eq!(give(&mut gossip, &b, vec![newer.clone()].into()).0, 0);

    // Whoever does not know the floor yet may hold tombstones that it lets go.
    let deleted = a.tombstone(kind::SERVICE, "gone", 9);
    let behind =
        Records { backings: vec![Backing { floor: Arc::new(floor(&a, 6, 7)), through: 12 }], ..vec![deleted].into() };
    assert_eq!(give(&mut gossip, &b, behind).0, 1);

    // One that is complete takes nothing below, whoever gives it.
    let mut gossip = machine(&local, vec![floor(&a, 10, 11)], &[&a, &b]);
    assert_eq!(give(&mut gossip, &a, backed(11)).0, 1);
    assert_eq!(gossip.record(&old.key), None);
}

#[test]
fn a_floor_is_about_its_owner_and_below_its_own_version_and_is_never_deleted() {
    let [local, a, b] = [1, 2, 3].map(Identity::numbered);
    let mut gossip = machine(&local, vec![], &[&a, &b]);
    let body = serde_json::to_value(FloorBody { through: 3, lineage: "x".into(), instance: "y".into() }).unwrap();
    let elsewhere = a.record(kind::FLOOR, &b.id.to_string(), 5, body);
    let long = json!({"through": 3, "lineage": "x".repeat(65), "instance": "y"});
    let long = a.record(kind::FLOOR, &a.id.to_string(), 6, long);
    let bad = vec![floor(&a, 11, 11), elsewhere, long, a.tombstone(kind::FLOOR, &a.id.to_string(), 20)];
    assert_eq!(give(&mut gossip, &a, bad.into()).0, 4);
    assert_eq!(gossip.drops().malformed, 4);
}

#[test]
fn what_is_in_doubt_of_an_owner_is_void_once_it_leaves_or_is_removed() {
    let [local, a, b] = [1, 2, 3].map(Identity::numbered);
    let (peer, service) = (a.peer_record(1), a.service("s", 2));
    let mut gossip = machine(&local, vec![local.peer_record(1), peer.clone(), service.clone()], &[&a, &b]);
    let (_, events) = give(&mut gossip, &b, vec![floor(&a, 10, 11)].into());
    assert!(events.contains(&Event::CatchingUp { owner: a.id, complete: 0 }), "{events:?}");
    let void_of = |events: &[Event]| {
        events.iter().find_map(|event| match event {
            Event::Revoked { peer, void } => (*peer == a.id).then(|| void.clone()),
            _ => None,
        })
    };

    // The services of one that left stay listed, so they are still asked for.
    let left = a.revocation(&a, 12, RevocationReason::Deactivated);
    let (_, events) = give(&mut gossip, &b, vec![left].into());
    assert_eq!(void_of(&events), Some(vec![peer.key.clone()]));
    let removed = b.revocation(&a, 9, RevocationReason::Deleted);
    let (_, events) = give(&mut gossip, &b, vec![removed].into());
    let void = void_of(&events).unwrap_or_default();
    assert!(void.contains(&service.key), "{void:?}");
    assert!(events.contains(&Event::CaughtUp(a.id)), "{events:?}");
}

#[test]
fn a_crash_before_the_reset_ended_continues_it() {
    let mut network = settled(3, 10);
    network.write(0, "s", false);
    network.run_for(Duration::from_secs(10));
    let old = network.snapshot(2);
    network.write(0, "s", true);
    network.run_for(COLLECTED_WITHIN);
    network.restore(2, old);
    let end = network.now + Duration::from_secs(60);
    assert!(network.run_until(end, |n| !n.nodes[2].catching_up.is_empty()), "it learned the floor");
    assert!(network.lives(2, &service_key(0, "s")), "and nobody confirmed anything yet");
    network.restart(2);
    network.assert_settles(Duration::from_secs(60));
    assert!(!network.lives(2, &service_key(0, "s")));
}

/// An owner on an old copy of its database gives versions again.
#[test]
fn a_tombstone_in_the_place_of_a_record_of_its_own_version_waits_for_its_floor() {
    let [local, a] = [1, 2].map(Identity::numbered);
    let tombstone = a.tombstone(kind::SERVICE, "s", 3);
    let of_that_version = |n: u32| a.record(kind::SERVICE, "s", 3, json!({ "n": n }));
    let live = (0..).map(of_that_version).find(|r| r.head().unwrap() < tombstone.head().unwrap()).unwrap();
    let mut gossip = machine(&local, vec![], &[&a]);
    for (record, waiting) in [(live, 0), (tombstone, 1), (a.service("s", 4), 0)] {
        give(&mut gossip, &a, vec![record].into());
        assert_eq!(gossip.index.tombstones(a.id).count(), waiting);
    }
}
