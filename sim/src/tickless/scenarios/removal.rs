//! Removed peers stay removed: scenarios 1 and 2.

use super::{
    super::{network::Nodes, world::World},
    stage::{Casting, DAY, HOUR, Stage, agree, all_trust, held_of, id, services, trusts},
};
use arctic::{
    membership::LedgerView,
    wire::record::{RecordKey, kind},
};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(180);

/// X goes away with P's records and those of services deleted later, and returns after 40 days: X is reset, what was
/// deleted stays deleted, P stays gone.
pub fn revoked_peer_never_returns_after_collection(casting: Casting) -> World {
    let mut stage = Stage::founded(casting, 6, |_| {});
    let (core, p, x): (&[usize], usize, usize) = (&[0, 1, 2, 3], 4, 5);
    let owner = stage.one_of(core);
    let doomed = stage.serve(owner, x);
    let kept = stage.serve(owner, (owner + 1) % 4);
    stage.serve(p, owner);
    stage.serve(owner, p);
    stage.serve(x, owner);
    stage.rest();
    let (Some(doomed), Some(kept)) = (doomed, kept) else { return stage.world };

    if stage.rng.below(2) == 0 {
        stage.world.crash(x);
    } else {
        stage.world.partition(Nodes::one(x), Nodes::Not(1 << x));
    }
    let remover = stage.one_of(core);
    stage.remove(remover, p);
    stage.delete_own(owner, kind::SERVICE, &doomed.to_string());
    stage.world.run_for(SOON);
    let p_id = id(&stage.world, p);
    for n in core {
        let gone = !trusts(&stage.world, *n, p) && held_of(&stage.world, *n, p_id).is_empty();
        stage.demand("R1", gone, || format!("n{} still has something of the removed peer", n + 1));
    }
    stage.days_pass(40);
    let tombstone = RecordKey { kind: kind::SERVICE.into(), id: doomed.to_string(), owner: id(&stage.world, owner) };
    for n in core {
        let collected = stage.world.nodes[*n].disk.read(|s| !s.records.contains_key(&tombstone));
        stage.demand("R2", collected, || format!("n{} keeps a tombstone for 40 days because of one laggard", n + 1));
    }
    // Those who stayed may have forgotten what they knew by heart.
    let restarted = stage.one_of(core);
    stage.world.crash(restarted);
    stage.world.start(restarted);

    stage.world.heal();
    stage.world.start(x);
    stage.world.run_for(SOON);
    let everyone = [0, 1, 2, 3, x];
    stage.within(SOON, "G1", "the returned peer agrees with the others", |w| {
        agree(w, &everyone) && all_trust(w, &everyone)
    });
    for n in everyone {
        let world = &stage.world;
        let back = trusts(world, n, p) || !held_of(world, n, p_id).is_empty();
        let (undeleted, lost) = (services(world, n).contains(&doomed), !services(world, n).contains(&kept));
        stage.demand("R1", !back, || format!("n{} has the removed peer again", n + 1));
        stage.demand("R1", !undeleted, || format!("n{} has a deleted service again", n + 1));
        stage.demand("G3", !lost, || format!("n{} lost a service that nobody deleted", n + 1));
    }
    stage.world
}

/// C and P, cut off, go on talking of each other after A has removed P; Q is heard through B alone for a month.
pub fn mentions_do_not_readmit_and_quiet_peers_are_not_reaped(casting: Casting) -> World {
    let mut stage = Stage::founded(casting, 6, |_| {});
    let (a, b, c, d, p, q) = (0, 1, 2, 3, 4, 5);
    let of_q = stage.serve(q, a);
    stage.serve(p, a);
    stage.rest();

    let to_q = Nodes::one(q);
    stage.world.partition(to_q, Nodes::Not(1 << q | 1 << b));
    let talkers = 1 << c | 1 << p;
    stage.world.partition(Nodes::Mask(talkers), Nodes::Not(talkers));
    stage.remove(a, p);
    stage.world.run_for(SOON);
    for n in [a, b, d] {
        let gone = !trusts(&stage.world, n, p);
        stage.demand("R3", gone, || format!("n{} trusts the removed peer", n + 1));
    }
    let still = trusts(&stage.world, c, p);
    stage.demand("R3", still, || "the cut off peer cannot know of the removal".to_owned());
    // What C and P say of each other is new and genuine, and void.
    stage.serve(c, p);
    stage.serve(p, c);
    stage.world.run_for(HOUR / 4);
    stage.world.heal();
    stage.world.partition(to_q, Nodes::Not(1 << q | 1 << b));
    stage.world.run_for(SOON);
    let p_id = id(&stage.world, p);
    for n in [a, b, c, d, q] {
        let world = &stage.world;
        let back = trusts(world, n, p) || !held_of(world, n, p_id).is_empty();
        stage.demand("R4", !back, || format!("n{} took the removed peer back on hearsay", n + 1));
    }
    let readmissions = stage.world.nodes[a].disk.records_of(kind::READMISSION).unwrap_or_default().len();
    stage.demand("R4", readmissions == 0, || format!("{readmissions} readmissions that no operator wrote"));

    for _ in 0..35 {
        stage.world.leap(DAY);
        stage.world.run_for(Duration::from_secs(90));
    }
    let news = stage.serve(q, b);
    stage.within(SOON, "G1", "what the quiet peer writes arrives through the bridge", |w| {
        [a, b, c, d].iter().all(|n| news.is_some_and(|id| services(w, *n).contains(&id)))
    });
    for n in [a, b, c, d] {
        let world = &stage.world;
        let kept = trusts(world, n, q) && of_q.is_some_and(|id| services(world, n).contains(&id));
        stage.demand("R4", kept, || format!("n{} reaped a quiet peer that nobody removed", n + 1));
    }
    stage.world.heal();
    stage.within(SOON, "G1", "all agree", |w| agree(w, &[a, b, c, d, q]));
    stage.world
}
