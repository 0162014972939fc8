//! Clocks that are wrong: scenarios 8 and 9.

use super::{
    super::{node::EPOCH, workload::Work, world::World},
    stage::{Casting, DAY, HOUR, Stage, id, services},
};
use arctic::{kernel::Ruleset, license::State, membership::LedgerView, model::UnixTime};
use std::time::Duration;

const TICKS: Duration = Duration::from_secs(150);
const SOON: Duration = Duration::from_secs(120);

fn skew_to(year: u64) -> i64 {
    // In its middle, whatever the leap years before.
    let at = UnixTime::from_secs((year - 1970) * 31_556_952 + 180 * DAY.as_secs());
    at.as_ms() as i64 - EPOCH.as_ms() as i64
}

/// A node whose clock says 2080 writes, others write after it, and it writes once more with its clock set right: the
/// order of versions decides, the year nothing.
pub fn future_clock_wins_nothing(casting: Casting) -> World {
    let mut stage = Stage::founded(casting, 4, |_| {});
    let ahead = stage.rng.below(4) as usize;
    let others: Vec<usize> = (0..4).filter(|n| *n != ahead).collect();
    let Some(service) = stage.serve(ahead, others[0]) else { return stage.world };
    stage.rest();
    stage.world.set_skew(ahead, skew_to(2080));
    for _ in 0..3 {
        stage.world.work_at(ahead, Work::Update);
        stage.busy(&others, 2, Duration::from_secs(5));
    }
    stage.world.run_for(TICKS);
    // Whoever differs by more than the window is told so, with both clocks.
    let text = stage.world.nodes[ahead].last_refusal.clone().unwrap_or_default();
    stage.demand("G8", text.contains("2080-") && text.contains("2030-"), || {
        format!("the refusal does not name both clocks: {text:?}")
    });
    stage.world.set_skew(ahead, 0);
    stage.world.work_at(ahead, Work::Update);
    let last = stage.world.nodes[ahead].disk.service(service).ok().flatten();
    let Some(last) = last else { return stage.world };
    stage.within(SOON, "G8", "the last write of the owner is everywhere, whatever year the one before had", |w| {
        others
            .iter()
            .all(|n| w.nodes[*n].disk.service(service).ok().flatten().is_some_and(|s| s.version == last.version))
    });
    // Others' later writes about their own objects stand as well.
    stage.rest();
    for n in &others {
        let same = services(&stage.world, *n) == services(&stage.world, ahead);
        stage.demand("G1", same, || format!("n{} and n{} see other services", n + 1, ahead + 1));
    }
    stage.world
}

fn state(world: &World, n: usize) -> Option<State> {
    world.nodes[n].member().map(|m| m.entitlement.state)
}

fn suspect(world: &World, n: usize) -> bool {
    world.nodes[n].member().is_some_and(|m| m.entitlement.clock_suspect)
}

fn captures(world: &World, n: usize) -> Option<Ruleset> {
    world.nodes[n].applied.clone()
}

/// A lone node in grace: its clock goes back, then it boots in 1970, then it jumps ten years: nothing is gained, nobody
/// locked out, and what it carries is untouched throughout.
pub fn license_survives_rollback_1970_and_jump(casting: Casting) -> World {
    let mut stage = Stage::founded(casting, 3, |o| o.license_lasts = 20 * DAY);
    let n = stage.rng.below(3) as usize;
    let others: Vec<usize> = (0..3).filter(|o| *o != n).collect();
    stage.serve(n, others[0]);
    stage.rest();
    let carried = captures(&stage.world, n);
    stage.demand("L4", carried.as_ref().is_some_and(|r| !r.captures.is_empty()), || "nothing is captured".to_owned());
    // Nobody tells it the time from here on.
    others.iter().for_each(|o| stage.world.crash(*o));
    for _ in 0..22 {
        stage.world.leap(DAY - HOUR / 30);
        stage.world.run_for(HOUR / 30);
    }
    let untouched = |stage: &mut Stage, when: &str| {
        let same = captures(&stage.world, n) == carried;
        stage.demand("L4", same, || format!("{when}: the data plane was touched"));
    };
    let expect = |stage: &mut Stage, states: &[State], when: &str| {
        stage.world.run_for(TICKS);
        let now = state(&stage.world, n);
        let fits = now.is_some_and(|s| states.contains(&s));
        stage.demand("L2", fits, || format!("{when}: the license is {now:?}, not {states:?}"));
    };
    expect(&mut stage, &[State::GracePeriod], "two days after expiry");
    untouched(&mut stage, "in grace");

    let back = 1 + stage.rng.below(30);
    stage.world.set_skew(n, -((back * DAY.as_secs() * 1000) as i64));
    expect(&mut stage, &[State::GracePeriod], "after the clock went back");
    untouched(&mut stage, "after the clock went back");

    stage.world.run_for(HOUR + TICKS);
    stage.world.crash(n);
    stage.world.set_skew(n, -(EPOCH.as_ms() as i64));
    stage.world.start(n);
    expect(&mut stage, &[State::GracePeriod], "after a boot in 1970");
    untouched(&mut stage, "after a boot in 1970");

    stage.world.set_skew(n, skew_to(2080 - stage.rng.below(40)));
    expect(&mut stage, &[State::ReadOnly], "after a jump ahead");
    untouched(&mut stage, "after a jump ahead");
    let doubted = suspect(&stage.world, n);
    stage.demand("L3", doubted, || "a jump of years is believed at once".to_owned());

    stage.world.set_skew(n, 0);
    expect(&mut stage, &[State::GracePeriod], "after the clock was set right");
    let believed = !suspect(&stage.world, n);
    stage.demand("L3", believed, || "a clock set right is still in doubt".to_owned());

    let renewed = stage.world.renew_license(n);
    stage.demand("L3", renewed.is_ok(), || format!("no renewal after all that: {renewed:?}"));
    // Twenty days are less than the thirty of the warning.
    expect(&mut stage, &[State::Warning], "after the renewal");
    untouched(&mut stage, "after the renewal");
    for o in others {
        stage.world.start(o);
        let renewed = stage.world.renew_license(o);
        stage.demand("L3", renewed.is_ok(), || format!("n{} cannot renew: {renewed:?}", o + 1));
    }
    stage.rest();
    let known = id(&stage.world, n);
    let kept = stage.world.nodes[n].disk.peer(known).ok().flatten().is_some();
    stage.demand("L4", kept, || "the node lost itself".to_owned());
    stage.world
}
