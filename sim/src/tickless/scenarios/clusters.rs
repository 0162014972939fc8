//! Clusters that meet, grow and contain something odd: scenarios 22, 23 and 25.

use super::{
    super::{ledger::NoResult, workload::Work, world::World},
    stage::{Casting, Stage, agree, all_trust, id, services, trusts},
};
use arctic::{
    membership::{Ledger, LedgerView},
    model::{ClusterId, PeerId, ServiceId},
    wire::record::kind,
};
use std::{collections::BTreeSet, time::Duration};

const SOON: Duration = Duration::from_secs(180);

fn cluster(world: &World, n: usize) -> Option<(ClusterId, BTreeSet<ClusterId>)> {
    world.nodes[n].disk.read(|s| s.facts.cluster.as_ref().map(|c| (c.cluster_id, c.aliases.iter().copied().collect())))
}

/// Seven and seven peers, each cluster with one that was removed and with services of the same names, meet in any order
/// while some of them crash.
pub fn merge_in_any_order_with_crashes(casting: Casting) -> World {
    let mut stage = Stage::empty(casting, 16, |_| {});
    let halves: [Vec<usize>; 2] = [(0..7).collect(), (7..14).collect()];
    let removed = [14, 15];
    (0..16).for_each(|n| drop(stage.world.bootstrap(n)));
    // Those of the peers that are removed later count too: their clusters were met (cluster.md §3).
    let ids: Vec<ClusterId> = (0..16).filter_map(|n| Some(cluster(&stage.world, n)?.0)).collect();
    for (half, gone) in halves.iter().zip(removed) {
        let mut guests = [&half[1..], &[gone]].concat();
        while !guests.is_empty() {
            let at = stage.rng.below(guests.len() as u64) as usize;
            let guest = guests.swap_remove(at);
            stage.world.work_at(half[0], Work::Add { other: guest });
            stage.world.run_for(Duration::from_millis(300));
        }
    }
    stage.rest();
    for (half, gone) in halves.iter().zip(removed) {
        for name in 0..3 {
            let source = stage.one_of(half);
            let target = if source == half[0] { half[1] } else { half[0] };
            stage.world.work_at(source, Work::Create { target, name });
        }
        stage.serve(gone, half[0]);
        stage.world.run_for(Duration::from_secs(15));
        stage.remove(half[1], gone);
    }
    stage.world.run_for(Duration::from_secs(30));
    let known: BTreeSet<ServiceId> = services(&stage.world, 0).union(&services(&stage.world, 7)).copied().collect();

    for _ in 0..4 {
        let (a, b) = (stage.one_of(&halves[0]), stage.one_of(&halves[1]));
        let (from, other) = if stage.rng.below(2) == 0 { (a, b) } else { (b, a) };
        stage.world.work_at(from, Work::Add { other });
        let pause = Duration::from_millis(stage.rng.below(800));
        stage.world.run_for(pause);
        let victim = stage.rng.below(14) as usize;
        if stage.rng.below(2) == 0 {
            stage.world.nodes[victim].disk_fault.die_at_next_write = true;
        } else {
            stage.world.crash(victim);
            stage.world.restart_after(victim, Duration::from_millis(700));
        }
        stage.world.run_for(Duration::from_secs(2));
    }
    stage.world.nodes.iter_mut().for_each(|node| node.disk_fault = Default::default());
    stage.world.run_for(Duration::from_secs(10));
    // Where every attempt met a crash, the operator tries again.
    if !trusts(&stage.world, 0, 7) && !trusts(&stage.world, 7, 0) {
        stage.world.work_at(0, Work::Add { other: 7 });
    }
    let all: Vec<usize> = (0..14).collect();
    stage.within(SOON, "C2", "14 peers of two clusters trust each other", |w| all_trust(w, &all) && agree(w, &all));
    let smallest = ids.iter().copied().min();
    for n in &all {
        let Some((winner, aliases)) = cluster(&stage.world, *n) else { continue };
        stage.demand("C2", Some(winner) == smallest, || {
            format!("n{} is in {winner}, the smallest is {smallest:?}", n + 1)
        });
        stage.demand("C2", !aliases.contains(&winner), || format!("n{} has its own cluster as an alias", n + 1));
        let seen = services(&stage.world, *n);
        stage.demand("C3", seen == known, || format!("n{} sees {} services of {}", n + 1, seen.len(), known.len()));
        for gone in removed {
            let back = trusts(&stage.world, *n, gone);
            stage.demand("R1", !back, || format!("n{} trusts n{}, removed before the merge", n + 1, gone + 1));
        }
    }
    stage.rest();
    stage.world
}

/// A member's service that nobody can read or apply: everything else is applied, and gossip goes on.
pub fn poison_record_is_contained(casting: Casting) -> World {
    let mut stage = Stage::founded(casting, 4, |_| {});
    let poisoner = stage.rng.below(4) as usize;
    let others: Vec<usize> = (0..4).filter(|n| *n != poisoner).collect();
    let Some(before) = stage.serve(others[0], others[1]) else { return stage.world };
    let wall = stage.world.nodes[poisoner].clock.unix(stage.world.now);
    let good = arctic::model::ServiceBody::plain("good", id(&stage.world, poisoner), id(&stage.world, others[0]), wall);
    let stranger = PeerId::mint(wall, &mut stage.rng);
    let poisons = [
        serde_json::json!({"name": 7, "routes": "none"}),
        serde_json::json!({}),
        serde_json::json!([[[[[]]]]]),
        serde_json::to_value(arctic::model::ServiceBody { target_peer_id: stranger, ..good.clone() })
            .unwrap_or_default(),
        serde_json::to_value(arctic::model::ServiceBody { source_peer_id: stranger, ..good }).unwrap_or_default(),
    ];
    for (n, body) in poisons.into_iter().enumerate() {
        let id = if n % 2 == 0 {
            ServiceId::mint(wall, &mut stage.rng).to_string()
        } else {
            "not-an-id".to_owned() + &n.to_string()
        };
        let written: Result<(), NoResult> = stage.world.write(poisoner, |tx, own| {
            tx.put_own(own.author, kind::SERVICE, &id, &body)?;
            Ok(())
        });
        stage.demand("K1", written.is_ok(), || format!("poison {n} was not written: {written:?}"));
        stage.world.settle(poisoner);
        stage.world.run_for(Duration::from_secs(1));
    }
    // Those who hold it start on it.
    let restarted = stage.one_of(&[0, 1, 2, 3]);
    stage.world.crash(restarted);
    stage.world.run_for(Duration::from_secs(1));
    stage.world.start(restarted);
    stage.rest();
    let Some(after) = stage.serve(others[0], others[2]) else { return stage.world };
    let Some(by_poisoner) = stage.serve(poisoner, others[0]) else { return stage.world };
    stage.rest();
    for n in 0..4 {
        let seen = services(&stage.world, n);
        let all = [before, after, by_poisoner].iter().all(|id| seen.contains(id));
        stage.demand("K1", all, || format!("n{} lost good services to a bad record", n + 1));
    }
    for (n, own) in [(others[0], vec![before, after]), (poisoner, vec![by_poisoner])] {
        let captured: BTreeSet<ServiceId> =
            stage.world.nodes[n].applied.iter().flat_map(|r| r.captures.iter().map(|c| c.service)).collect();
        let all = own.iter().all(|id| captured.contains(id));
        stage.demand("K1", all, || format!("n{} captures {captured:?}, not {own:?}", n + 1));
    }
    let trusted = all_trust(&stage.world, &[0, 1, 2, 3]);
    stage.demand("H1", trusted, || "a bad record cost trust".to_owned());
    let records = stage.world.nodes[others[0]].disk.records_of(kind::SERVICE).unwrap_or_default().len();
    stage
        .demand("G1", records >= 8, || format!("{records} service records: what nobody reads is relayed all the same"));
    stage.world
}

/// A hundred bootstrap calls at one agent, one wins; then everyone joins one node at once while strangers flood its
/// handshake.
pub fn bootstrap_and_join_stampede(casting: Casting) -> World {
    const GUESTS: usize = 24;
    let mut stage = Stage::empty(casting, GUESTS + 1, |_| {});
    let won = (0..100).filter(|_| stage.world.bootstrap(0).is_ok()).count();
    stage.demand("C2", won == 1, || format!("{won} of 100 bootstrap calls won"));
    (1..=GUESTS).for_each(|n| drop(stage.world.bootstrap(n)));
    let all: Vec<usize> = (0..=GUESTS).collect();
    (1..=GUESTS).for_each(|n| stage.world.work_at(n, Work::Add { other: 0 }));
    let start = stage.world.now;
    let bound = Duration::from_secs(60);
    let mut stranger = 0u32;
    while stage.world.failure.is_none() && stage.world.now - start < bound && !all_trust(&stage.world, &all) {
        for _ in 0..20 {
            stranger += 1;
            let source = std::net::IpAddr::from((0xc612_0000 + stranger * 7 % 4096).to_be_bytes());
            stage.world.open_sessions_from(0, [source]);
        }
        stage.world.run_for(Duration::from_millis(200));
        let waiting: Vec<usize> = (1..=GUESTS).filter(|n| !trusts(&stage.world, *n, 0)).collect();
        if (stage.world.now - start).as_millis() % 5000 < 200 {
            waiting.into_iter().for_each(|n| stage.world.work_at(n, Work::Add { other: 0 }));
        }
    }
    let joined = all_trust(&stage.world, &all);
    stage.demand("H2", joined, || format!("{GUESTS} joins were not over within {bound:?} of a flood"));
    stage.rest();
    super::stampede::thousand_join_one(&mut stage);
    stage.world
}
