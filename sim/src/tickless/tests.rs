//! A fixed list of seeds; the sweep runs thousands.

use super::{
    CONVERGENCE_BOUND, Options, World,
    ledger::{Disk, DiskError, Fate, NoResult},
    run,
    trace::Detail,
    workload::{Op, Work, found_cluster},
};
use arctic::{
    membership::{ClusterFacts, Ledger, LedgerView, Origin, PeerRow},
    model::{Mono, Rng},
    wire::record::{Record, RecordKey, kind},
};
use serde_json::json;
use std::time::Duration;

const SEEDS: std::ops::Range<u64> = 1..13;

#[test]
fn chaos_leaves_no_invariant_violated_and_two_runs_of_a_seed_are_equal() {
    for seed in crate::chosen_seeds(SEEDS) {
        let first = run(seed, Detail::Full).world;
        let lines = first.node_lines().join("\n");
        assert!(first.failure.is_none(), "scripts/sweep --seed {seed}\n{:?}\n{lines}", first.failure);
        let second = run(seed, Detail::Full).world;
        let differing = first.trace.lines().zip(second.trace.lines()).find(|(a, b)| a != b);
        assert_eq!(differing, None, "seed {seed}");
        assert_eq!((first.trace.len(), first.trace.hash()), (second.trace.len(), second.trace.hash()), "seed {seed}");
    }
}

#[test]
fn a_run_is_the_same_on_whatever_thread() {
    let hash = |seed| run(seed, Detail::Recent).world.trace.hash();
    let here: Vec<u64> = crate::chosen_seeds(SEEDS).take(4).map(hash).collect();
    let there = std::thread::spawn(move || crate::chosen_seeds(SEEDS).take(4).map(hash).collect::<Vec<u64>>()).join();
    assert_eq!(Some(here), there.ok());
}

/// Three members at rest, the first of which has a service that leads to the second.
fn at_rest() -> (World, RecordKey) {
    let mut world = World::new(Options::new(7, 3));
    world.plan_work(found_cluster(&mut Rng::from_seed([7; 32]), 3));
    world.run_for(Duration::from_secs(5));
    world.work_at(0, Work::Create { target: 1, name: 1 });
    world.come_to_rest(CONVERGENCE_BOUND);
    assert_eq!(world.failure, None);
    let service = world.nodes[0].disk.read(|s| s.records.keys().find(|key| key.kind == kind::SERVICE).cloned());
    (world, service.expect("a service"))
}

fn edited<T>(world: &World, n: usize, edit: impl FnOnce(&Disk) -> Result<T, DiskError>) -> T {
    world.nodes[n].disk.transaction(Fate::Synced, |tx| Ok(edit(tx)?)).expect("a disk without faults")
}

fn found_at_rest(world: &World) -> Option<&'static str> {
    world.unquiet().map(|(invariant, _)| invariant)
}

fn found_by_event(world: &mut World) -> Option<&'static str> {
    world.run_for(Duration::from_secs(15));
    world.failure.as_ref().map(|failure| failure.invariant)
}

#[test]
fn an_acknowledged_write_that_its_owner_drops_is_missed_at_once_and_at_rest_also_after_another_write() {
    let (mut world, service) = at_rest();
    edited(&world, 0, |disk| disk.forget_record(&service));
    assert_eq!(found_at_rest(&world), Some("D1"));
    world.witness_ack(0);
    assert_eq!(found_at_rest(&world), Some("D1"), "a later acknowledgement hides nothing");
    assert_eq!(found_by_event(&mut world), Some("D1"));
}

#[test]
fn a_deleted_service_that_returns_everywhere_after_its_collection_is_found_at_once_and_at_rest() {
    let (mut world, service) = at_rest();
    let record = edited(&world, 0, |disk| disk.record(&service)).expect("it is held");
    world.work_at(0, Work::Delete);
    world.run_for(Duration::from_secs(180));
    assert_eq!(world.failure, None);
    assert!(world.nodes.iter().all(|n| n.disk.read(|s| !s.records.contains_key(&service))), "it was collected");
    (0..3).for_each(|n| edited(&world, n, |disk| disk.put_record(&record, Origin::Written)));
    assert_eq!(found_at_rest(&world), Some("R1"));
    assert_eq!(found_by_event(&mut world), Some("R1"));
}

#[test]
fn two_members_that_silently_end_their_trust_are_found_at_rest() {
    let (world, _) = at_rest();
    for (a, b) in [(0, 1), (1, 0)] {
        let other = world.nodes[b].id();
        let row = edited(&world, a, |disk| disk.peer(other)).expect("it is known");
        edited(&world, a, |disk| disk.put_peer(&PeerRow { trusted: false, ..row }));
    }
    assert_eq!(found_at_rest(&world), Some("R4"));
}

#[test]
fn a_state_that_is_not_what_all_updates_come_to_is_found_by_merging_them_once_more() {
    let (mut world, service) = at_rest();
    let first = edited(&world, 0, |disk| disk.record(&service)).expect("it is held");
    world.work_at(0, Work::Update);
    world.run_for(Duration::from_secs(5));
    world.check_merge_order(1);
    assert_eq!(world.failure, None);
    edited(&world, 1, |disk| disk.put_record(&first, Origin::Taken));
    world.check_merge_order(1);
    assert_eq!(world.failure.map(|failure| failure.invariant), Some("G2"));
}

#[test]
fn a_smaller_hash_that_wins_is_found_at_once() {
    let (mut world, _) = at_rest();
    let author = world.nodes[0].author.clone();
    // Only a hostile owner writes one version twice.
    world.witness.hostile.insert(author.peer_id);
    let content = |text| Record::sign(&author.key, author.peer_id, kind::STATUS, "x", 900, text).expect("small");
    let mut both = [content(json!("one")), content(json!("other"))];
    both.sort_by_key(|record| record.head().map(|head| head.hash).ok());
    edited(&world, 1, |disk| disk.put_record(&both[1], Origin::Taken));
    world.check_node(1);
    assert_eq!(world.failure, None);
    edited(&world, 1, |disk| disk.put_record(&both[0], Origin::Taken));
    world.check_node(1);
    assert_eq!(world.failure.map(|failure| failure.invariant), Some("G5"));
}

#[test]
fn a_cluster_id_that_a_member_forgets_is_found_at_rest() {
    let (world, _) = at_rest();
    let facts = world.nodes[1].disk.read(|s| s.facts.cluster.clone()).expect("a member");
    edited(&world, 1, |disk| disk.set_cluster(&ClusterFacts { aliases: Vec::new(), ..facts }));
    assert_eq!(found_at_rest(&world), Some("C2"));
}

#[test]
fn a_version_that_a_clock_has_given_is_found_at_once() {
    let (mut world, service) = at_rest();
    let author = world.nodes[0].author.clone();
    let by_clock = Record::sign(&author.key, author.peer_id, &service.kind, &service.id, 1_900_000_000_000, json!({}));
    edited(&world, 0, |disk| disk.put_record(&by_clock?, Origin::Written));
    world.check_node(0);
    assert_eq!(world.failure.map(|failure| failure.invariant), Some("G8"));
}

#[test]
fn half_a_transaction_after_a_crash_is_found() {
    let (mut world, service) = at_rest();
    let died = world.nodes[0].disk.transaction(Fate::DiesAfter, |tx| Ok(tx.set_own_version(900)?));
    assert_eq!(died, Err(NoResult::Dead));
    world.nodes[0].disk.damage(&service, |record| Record { body: json!({}), ..record.clone() });
    world.crash(0);
    assert_eq!(world.failure.map(|failure| failure.invariant), Some("D2"));
}

#[test]
fn a_panic_of_a_machine_is_a_violation_of_its_seed() {
    // A plan for fewer nodes than it works on.
    let mut plan = super::plan(1);
    plan.work.push(Op { at: Mono::from_ms(2000), node: 99, work: Work::Sync });
    let failure = super::run_plan(&plan, Detail::Off).world.failure.expect("it failed");
    assert_eq!(failure.invariant, "panic");
}
