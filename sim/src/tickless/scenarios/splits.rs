//! Networks that do not carry everything: scenarios 3 to 6.

use super::{
    super::{
        faults::Kind,
        ledger::NoResult,
        message::Encoding,
        network::{Nodes, Rule},
        scale::grown,
        workload::Work,
        world::{Options, World},
    },
    stage::{Casting, DAY, HOUR, Stage, agree, services},
};
use arctic::{
    membership::Ledger,
    model::{Mono, PeerStatus, Rng},
    wire::record::RECORD_MAX_BYTES,
};
use std::time::Duration;

/// N2 of simulation.md §7.
const HEALED_WITHIN: Duration = Duration::from_secs(60);
/// Bytes of a node in a second, both ways, in a small cluster that has little to say.
const QUIET_BYTES_PER_S: u64 = 16 * 1024;

/// Two halves, apart for a minute to 29 days, each with work and a newcomer of its own.
pub fn split_heals_without_seed_list(casting: Casting) -> World {
    let mut stage = Stage::founded_with_guests(casting, 6, 2, |_| {});
    stage.busy(&[0, 1, 2, 3, 4, 5], 8, Duration::from_secs(5));
    let size = 1 + stage.rng.below(3) as usize;
    let apart = [Duration::from_secs(60), HOUR, DAY, 7 * DAY, 29 * DAY][stage.rng.below(5) as usize];
    let (one, other): (Vec<usize>, Vec<usize>) = (0..6).partition(|n| *n < size);
    let mask = |of: &[usize]| Nodes::Mask(of.iter().fold(0, |m, n| m | 1 << n));
    let (with_six, with_seven) = ([&one[..], &[6]].concat(), [&other[..], &[7]].concat());
    stage.world.partition(mask(&with_six), mask(&with_seven));
    stage.busy(&one, 6, Duration::from_secs(20));
    stage.busy(&other, 6, Duration::from_secs(20));
    let days = (apart.as_secs() / DAY.as_secs()) as u32;
    // After nine days what was said of the members before the split has run out, and twenty days later what was said
    // of the newcomers.
    stage.days_pass(days / 3);
    for (newcomer, member) in [(6, 0), (7, 5)] {
        drop(stage.world.bootstrap(newcomer));
        stage.world.work_at(newcomer, Work::Add { other: member });
    }
    stage.world.run_for((apart / 2).min(HOUR / 6));
    stage.days_pass(days - days / 3);
    if days == 0 {
        stage.world.leap(apart.saturating_sub(HOUR / 6));
    }
    stage.busy(&one, 2, Duration::from_secs(10));
    stage.busy(&other, 2, Duration::from_secs(10));
    stage.world.heal();
    stage.world.come_to_rest(HEALED_WITHIN);
    stage.world
}

/// One of 100 is slow and loses most of what it sends and gets: nobody blames anybody else.
pub fn one_sick_peer_cannot_fail_the_fleet(casting: Casting) -> World {
    const FLEET: usize = 100;
    let Casting { seed, real_crypto, detail } = casting;
    let options = Options { real_crypto, detail, reconciles: false, ..Options::new(seed, FLEET) };
    let mut stage = Stage { world: grown(FLEET, options), rng: Rng::from_seed([seed as u8; 32]) };
    stage.world.run_for(Duration::from_secs(60));
    // A mask names the first 64.
    let sick = stage.rng.below(64) as usize;
    stage.world.nodes[sick].slow_factor = 100;
    let until = Mono::from_ms(u64::MAX / 4);
    for (from, to) in [(Nodes::one(sick), Nodes::All), (Nodes::All, Nodes::one(sick))] {
        for (kind, amount) in [(Kind::Loss, 60), (Kind::Latency, 2000)] {
            stage.world.network.rules.push(Rule { id: u64::MAX - 1, kind, from, to, amount, until });
        }
    }
    for _ in 0..24 {
        stage.world.run_for(Duration::from_secs(5));
        if let Some((by, blamed)) = blamed(&stage.world, sick) {
            stage.demand("N5", false, || format!("n{} takes the healthy n{} for unhealthy", by + 1, blamed + 1));
        }
    }
    // What a healthy peer writes reaches all healthy ones meanwhile.
    let writer = (sick + 1) % FLEET;
    let Some(service) = stage.serve(writer, (sick + 2) % FLEET) else { return stage.world };
    stage.within(Duration::from_secs(60), "N1", "a change reaches all healthy peers", |w| {
        (0..FLEET).filter(|n| *n != sick).all(|n| services(w, n).contains(&service))
    });
    stage.world
}

fn blamed(world: &World, sick: usize) -> Option<(usize, usize)> {
    let healthy = || (0..world.nodes.len()).filter(|n| *n != sick);
    healthy().find_map(|by| {
        let member = world.nodes[by].member()?;
        let wrong = |other: &usize| {
            let view = member.gossip.peer_view(world.nodes[*other].id());
            *other != by && view.is_some_and(|v| v.status == PeerStatus::Unhealthy)
        };
        Some((by, healthy().find(wrong)?))
    })
}

/// Two halves see each other through one node only, and one link works one way only: all is told, at bounded cost.
pub fn asymmetric_and_bridge_partition_stays_live(casting: Casting) -> World {
    let nodes = 7;
    let mut stage = Stage::founded(casting, nodes, |o| o.encoding = Encoding::Bytes);
    let bridge = stage.rng.below(nodes as u64) as usize;
    let others: Vec<usize> = (0..nodes).filter(|n| *n != bridge).collect();
    let (one, other) = others.split_at(3);
    let mask = |of: &[usize]| Nodes::Mask(of.iter().fold(0, |m, n| m | 1 << n));
    stage.world.partition(mask(one), mask(other));
    // Within a half one cannot be called by another.
    stage.world.wall(Nodes::one(one[0]), Nodes::one(one[1]));
    stage.world.run_for(HOUR / 12);
    let all: Vec<usize> = (0..nodes).collect();
    for round in 0..4 {
        stage.busy(one, 3, Duration::from_secs(5));
        stage.busy(other, 3, Duration::from_secs(5));
        let what = format!("both halves agree through the bridge n{}, round {round}", bridge + 1);
        stage.within(Duration::from_secs(120), "G1", &what, |w| agree(w, &all));
    }
    let (bytes, start) = (stage.world.network.carried_bytes, stage.world.now);
    stage.world.run_for(HOUR / 6);
    let per_node = (stage.world.network.carried_bytes - bytes) / ((stage.world.now - start).as_secs() * nodes as u64);
    stage.demand("G6", per_node <= QUIET_BYTES_PER_S, || format!("{per_node} B/s a node while nothing happens"));
    stage.world.heal();
    stage.rest();
    stage.world
}

/// More than fits into a message, and records that fit into none: the latter are refused at their source, the former
/// arrive in parts, and whatever comes behind them arrives too.
pub fn oversize_state_never_wedges_the_queue(casting: Casting) -> World {
    let mut stage = Stage::founded(casting, 4, |o| o.encoding = Encoding::Bytes);
    let writer = stage.rng.below(4) as usize;
    stage.world.work_at(writer, Work::Oversize);
    for n in 0..20 {
        let body = serde_json::json!("x".repeat(RECORD_MAX_BYTES - 100 - stage.rng.below(100_000) as usize));
        let id = format!("large-{n}");
        let written: Result<(), NoResult> = stage.world.write(writer, |tx, own| {
            tx.put_own(own.author, "status", &id, &body)?;
            Ok(())
        });
        stage.demand("G7", written.is_ok(), || format!("a record below the limit was not written: {written:?}"));
        if stage.rng.below(3) == 0 {
            stage.world.settle(writer);
        }
    }
    stage.world.settle(writer);
    stage.world.work_at(writer, Work::Oversize);
    let Some(behind) = stage.serve(writer, (writer + 1) % 4) else { return stage.world };
    stage.within(Duration::from_secs(60), "G7", "what was written behind the large records arrives", |w| {
        (0..4).all(|n| services(w, n).contains(&behind))
    });
    stage.rest();
    stage.world
}
