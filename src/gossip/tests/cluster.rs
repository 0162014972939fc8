//! Simulated clusters: what holds once faults stop, and how soon.

use super::network::{Faults, Identity, Network};
use crate::{
    gossip::{HEARTBEAT_INTERVAL, SILENCE_LIMIT},
    model::PeerStatus,
    wire::{
        gossip::{Op, Request},
        record::kind,
    },
};
use serde_json::json;
use std::time::Duration;

/// simulation.md S10: six heartbeat rounds and twice the silence limit.
const CONVERGENCE_BOUND: Duration = Duration::from_secs(6 * HEARTBEAT_INTERVAL.as_secs() + 2 * SILENCE_LIMIT.as_secs());

/// Writes and partitions at random for two minutes, then lets the cluster settle.
fn troubled_run(seed: u64) -> Network {
    let size = 3 + (seed % 4) as u8;
    let faults =
        Faults { loss_percent: seed * 7 % 31, latency_max_ms: 1 + seed * 311 % 2000, repeat_percent: seed * 11 % 50 };
    let mut network = Network::new(size, seed, faults);
    for _ in 0..40 {
        let node = network.below(u64::from(size)) as usize;
        let other = network.below(u64::from(size)) as usize;
        match network.below(6) {
            0 if node != other => {
                network.cut.insert((node, other));
            }
            1 => network.cut.clear(),
            2 => {
                let id = format!("svc{}", network.below(3));
                network.write(node, &id, true);
            }
            _ => {
                let id = format!("svc{}", network.below(3));
                network.write(node, &id, false);
            }
        }
        let pause = network.below(6000);
        network.run_for(Duration::from_millis(pause));
    }
    network.cut.clear();
    network.faults = Faults::NONE;
    network
}

#[test]
fn clusters_converge_in_bound_after_faults_stop() {
    for seed in 0..12 {
        let mut network = troubled_run(seed);
        let end = network.now + CONVERGENCE_BOUND;
        assert!(network.run_until(end, Network::is_equal), "seed {seed}: digests differ after the bound");
        network.run_for(3 * HEARTBEAT_INTERVAL);
        // A floor may be on its way at any time.
        let end = network.now + 2 * HEARTBEAT_INTERVAL;
        let converged = |n: &Network| n.is_equal() && n.nodes.iter().all(|n| n.gossip.converged());
        assert!(network.run_until(end, converged), "seed {seed}");
        network.assert_stores_match();
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in [3, 8] {
        let trace = || {
            let mut network = troubled_run(seed);
            network.run_for(Duration::from_secs(60));
            network.trace
        };
        assert_eq!(trace(), trace());
    }
}

#[test]
fn a_local_change_reaches_all_within_two_seconds() {
    for size in 2..=6 {
        let mut network = Network::new(size, 5, Faults { loss_percent: 0, latency_max_ms: 200, repeat_percent: 0 });
        network.run_for(Duration::from_secs(45));
        assert!(network.is_equal());
        for deleted in [false, true] {
            network.write(0, "svc", deleted);
            let written = network.nodes[0].gossip.digests();
            let end = network.now + Duration::from_secs(2);
            assert!(network.run_until(end, |n| n.digests().iter().all(|d| *d == written)), "size {size}");
        }
    }
}

#[test]
fn a_change_reaches_a_large_cluster_within_two_rounds() {
    let mut network = Network::new(20, 5, Faults::NONE);
    network.run_for(Duration::from_secs(15));
    assert!(network.is_equal());
    network.write(0, "svc", false);
    let end = network.now + 2 * HEARTBEAT_INTERVAL * 6 / 5;
    assert!(network.run_until(end, Network::is_equal));
}

#[test]
fn sync_does_not_wait_for_the_next_heartbeat() {
    let mut network = Network::new(3, 1, Faults::NONE);
    network.run_for(Duration::from_secs(15));
    network.cut.extend([(0, 1), (0, 2), (1, 0), (2, 0)]);
    network.write(1, "svc", false);
    // Both tries of the push to 0 have failed by then.
    network.run_for(Duration::from_secs(14));
    let end = network.now + Duration::from_secs(10);
    assert!(network.run_until(end, |n| n.nodes[0].gossip.is_idle()), "between two heartbeats");
    network.cut.clear();
    assert!(!network.is_equal());
    let now = network.now;
    network.nodes[0].gossip.handle_sync(now);
    network.flush_all();
    assert!(network.run_until(now + Duration::from_secs(1), |n| n.is_equal() && n.nodes[0].gossip.is_idle()));
}

#[test]
fn one_way_reachability_is_enough_to_converge() {
    let mut network = Network::new(2, 1, Faults::NONE);
    // 1 cannot call 0; its answers travel on the calls of 0.
    network.unreachable.insert((1, 0));
    network.run_for(Duration::from_secs(15));
    network.write(0, "from-0", false);
    network.write(1, "from-1", false);
    network.run_for(Duration::from_secs(15));
    assert!(network.is_equal());
}

#[test]
fn records_of_a_member_wait_for_the_handshake_with_it() {
    let mut network = Network::new(3, 6, Faults::NONE);
    // 0 and 2 know each other only through 1.
    network.untrust(0, 2);
    network.untrust(2, 0);
    network.write(2, "svc-of-2", false);
    network.run_for(CONVERGENCE_BOUND);
    let [first, last] = [0, 2].map(|n: usize| network.nodes[n].who.id);
    assert!(network.nodes[1].gossip.digests() != network.nodes[0].gossip.digests());
    assert!(network.nodes[0].store.values().all(|r| r.key.owner != last));
    assert_eq!(network.nodes[0].discovered, [last]);
    assert_eq!(network.nodes[2].discovered, [first]);
    network.trust(0, 2);
    network.trust(2, 0);
    let end = network.now + Duration::from_secs(2);
    assert!(network.run_until(end, Network::is_equal), "a handshake does not wait for the next heartbeat");
}

#[test]
fn a_removed_peer_vanishes_everywhere_and_a_stale_member_does_not_bring_it_back() {
    for seed in 0..4 {
        let mut network = Network::new(5, seed, Faults::NONE);
        network.write(4, "svc-of-4", false);
        network.run_for(Duration::from_secs(30));
        assert!(network.is_equal());
        // Node 3 sleeps through the removal, with everything that 4 ever wrote.
        network.cut.extend((0..5).flat_map(|n| [(n, 3), (3, n)]));
        network.revoke(0, 4);
        network.run_for(Duration::from_secs(5));
        let gone = network.nodes[4].who.id;
        for node in 0..3 {
            assert!(!network.nodes[node].trusted.contains_key(&gone), "trust ends within 5 s");
            assert!(network.nodes[node].store.values().all(|r| r.key.owner != gone));
        }
        assert!(network.nodes[4].trusted.is_empty(), "the removed peer learns of it");
        assert!(network.nodes[3].trusted.contains_key(&gone));
        network.run_for(Duration::from_secs(60));
        network.cut.clear();
        network.write(4, "written-after-removal", false);
        network.run_for(CONVERGENCE_BOUND);
        for node in 0..4 {
            assert!(!network.nodes[node].trusted.contains_key(&gone));
            assert!(network.nodes[node].store.values().all(|r| r.key.owner != gone));
            assert!(network.nodes[node].gossip.converged());
        }
        network.assert_stores_match();
    }
}

// accepts: 001-85
#[test]
fn a_silent_peer_becomes_unhealthy_and_is_called_until_it_answers() {
    let mut network = Network::new(3, 2, Faults::NONE);
    network.run_for(Duration::from_secs(15));
    let lost = network.nodes[2].who.id;
    let status = |n: &Network| n.nodes[0].gossip.peer_view(lost).unwrap().status;
    assert_eq!(status(&network), PeerStatus::Healthy);
    network.cut.extend([(0, 2), (2, 0), (1, 2), (2, 1)]);
    network.run_for(Duration::from_secs(17));
    assert_eq!(status(&network), PeerStatus::Healthy, "30 s have not passed");
    network.run_for(Duration::from_secs(14));
    assert_eq!(status(&network), PeerStatus::Unhealthy);
    network.run_for(Duration::from_secs(86_400));
    network.cut.clear();
    let end = network.now + Duration::from_secs(20);
    assert!(network.run_until(end, |n| status(n) == PeerStatus::Healthy), "never forgotten");
}

#[test]
fn registries_larger_than_an_answer_are_compared_in_parts() {
    let mut network = Network::new(2, 1, Faults::NONE);
    network.run_for(Duration::from_secs(15));
    network.cut.extend([(0, 1), (1, 0)]);
    let big = "x".repeat(200 * 1024);
    for node in 0..2 {
        let who = Identity::numbered(node as u8);
        let mut records: Vec<_> =
            (0..8).map(|i| who.record(kind::SERVICE, &format!("big{i}"), 10 + i, json!({ "text": big }))).collect();
        records.extend((0..1600).map(|i| who.service(&format!("s{i}"), 100 + i)));
        for record in &records {
            network.nodes[node].store.insert(record.key.clone(), record.clone());
        }
        let now = network.now;
        network.nodes[node].gossip.handle_local_change(&records, now);
    }
    network.flush_all();
    network.run_for(Duration::from_secs(10));
    assert!(!network.is_equal());
    network.cut.clear();
    let end = network.now + 3 * HEARTBEAT_INTERVAL;
    assert!(network.run_until(end, Network::is_equal));
    network.assert_stores_match();
}

#[test]
fn peers_in_sync_exchange_only_small_heartbeats() {
    let mut network = Network::new(3, 4, Faults::NONE);
    for i in 0..50 {
        network.write(i % 3, &format!("svc{i}"), false);
    }
    network.run_for(Duration::from_secs(60));
    assert!(network.is_equal());
    network.carried.clear();
    network.run_for(Duration::from_secs(60));
    assert_eq!(network.carried.keys().collect::<Vec<_>>(), [&Op::Heartbeat]);
    // Each of 6 directed pairs beats every 8 to 12 s.
    assert!((30..=48).contains(&network.carried[&Op::Heartbeat]), "{:?}", network.carried);
    let a = network.nodes[0].who.id;
    let now = network.now;
    network.nodes[1].gossip.handle_sync(now);
    let request = std::iter::from_fn(|| network.nodes[1].gossip.poll_transmit()).find(|t| t.to == a).unwrap().request;
    assert!(matches!(&request, Request::Heartbeat(h) if h.lives.is_empty()));
    let from = network.nodes[1].who.id;
    let reply = network.nodes[0].gossip.handle_request(from, &request, now).unwrap();
    assert!(request.encode().len() + reply.encode().len() <= 1600);
}
