//! Hosts that restart, run out of disk, have several addresses or a twin: scenarios 10, 12, 17 and 18.

use super::{
    super::{
        faults::{Fault, Kind},
        ledger::NoResult,
        workload::Work,
        world::World,
    },
    stage::{Casting, HOUR, Stage, agree, all_trust, held_of, id, services, trusts},
};
use arctic::{
    handshake::{SESSIONS_PER_SOURCE_MAX, SourcePrefix},
    model::{Endpoint, PeerId},
};
use std::{collections::BTreeMap, net::IpAddr, time::Duration};

const SOON: Duration = Duration::from_secs(120);

/// A hundred restarts, orderly or not, under two versions: nobody is lost, nobody is new.
pub fn restart_never_changes_membership(casting: Casting) -> World {
    let mut stage = Stage::founded(casting, 5, |_| {});
    let all: Vec<usize> = (0..5).collect();
    let keys: BTreeMap<PeerId, _> = stage.world.nodes[0].disk.trusted_keys();
    for round in 0..100 {
        let n = stage.one_of(&all);
        stage.world.crash(n);
        stage.world.nodes[n].other_version = (stage.rng.below(2) == 0).then(|| "v0.2.0".to_owned());
        let down = Duration::from_millis(stage.rng.below(4000));
        stage.world.run_for(down);
        stage.world.start(n);
        if stage.rng.below(4) == 0 {
            let busy = stage.one_of(&all);
            stage.world.work_at(busy, Work::Update);
        }
        let up = Duration::from_millis(stage.rng.below(4000));
        stage.world.run_for(up);
        for n in &all {
            let same = stage.world.nodes[*n].disk.trusted_keys() == keys;
            stage.demand("R4", same, || format!("restart {round} changed whom n{} trusts", n + 1));
        }
    }
    all.iter().for_each(|n| stage.world.start(*n));
    stage.rest();
    stage.world
}

/// Disks refuse writes, fail reads of a page, or are full: what is carried goes on, and what was lost comes back.
pub fn bad_disk_degrades(casting: Casting) -> World {
    let mut stage = Stage::founded(casting, 4, |_| {});
    let bad = stage.rng.below(4) as usize;
    let others: Vec<usize> = (0..4).filter(|n| *n != bad).collect();
    let Some(carried) = stage.serve(bad, others[0]) else { return stage.world };
    stage.rest();
    let tables = stage.world.nodes[bad].applied.clone();
    for (full, eio) in [(100, 0), (0, 100), (50, 50)] {
        stage.world.nodes[bad].disk_fault.no_space_percent = full;
        stage.world.nodes[bad].disk_fault.eio_percent = eio;
        let written: Result<(), NoResult> = stage.world.write(bad, |tx, own| {
            arctic::membership::Ledger::put_own(tx, own.author, "status", "s", &serde_json::json!(1))?;
            Ok(())
        });
        stage.demand("D2", matches!(written, Err(NoResult::Disk(_))), || {
            format!("a full disk took a write: {written:?}")
        });
        stage.busy(&others, 3, Duration::from_secs(20));
        stage.world.run_for(SOON);
        let node = &stage.world.nodes[bad];
        let (up, same) = (node.is_up(), node.applied == tables);
        stage.demand("A5", up && same, || "a bad disk stopped what the node carries".to_owned());
        let listed = services(&stage.world, bad).contains(&carried);
        stage.demand("D1", listed, || "a bad disk lost what it had".to_owned());
    }
    stage.world.nodes[bad].disk_fault = Default::default();
    let Some(of_other) = stage.serve(others[0], bad) else { return stage.world };
    stage.rest();

    // A flipped page costs the database; the identity stays, and the peers have the rest.
    let at = stage.world.now + Duration::from_secs(1);
    let fault = Fault { at, lasts: Duration::from_secs(1), kind: Kind::FlippedPage, node: bad, amount: 0 };
    stage.world.plan_faults(vec![fault]);
    stage.world.run_for(Duration::from_secs(3));
    let set_aside = stage.world.witness.wiped.contains(&bad);
    stage.demand("D3", set_aside, || "a damaged database was served".to_owned());
    stage.within(2 * SOON, "D3", "a lost database is rebuilt from the peers", |w| {
        services(w, bad).contains(&of_other) && others.iter().all(|n| trusts(w, *n, bad) && trusts(w, bad, *n))
    });
    stage.rest();
    let own = services(&stage.world, bad).contains(&carried);
    stage.demand("D3", own, || "own records did not come back from the peers".to_owned());
    stage.world
}

/// One host with an IPv4 address, the same in IPv6, one of its own in IPv6, and a link-local one with a zone: one peer.
pub fn dual_stack_identity_is_one(casting: Casting) -> World {
    let mut stage = Stage::empty(casting, 3, |_| {});
    let dual = stage.rng.below(3) as usize;
    let v4 = stage.world.nodes[dual].address;
    let IpAddr::V4(plain) = v4 else { return stage.world };
    let spelled: Vec<String> = vec![
        v4.to_string(),
        format!("[{}]", plain.to_ipv6_mapped()),
        "[2001:db8::17]".to_owned(),
        "[2001:DB8:0:0::17]".to_owned(),
    ];
    let endpoints: Vec<Endpoint> = spelled.iter().filter_map(|host| format!("{host}:8080").parse().ok()).collect();
    stage.demand("H1", endpoints.len() == spelled.len(), || format!("an address is no endpoint: {spelled:?}"));
    for endpoint in &endpoints {
        stage.world.network.name_host(endpoint.host(), dual);
    }
    stage.world.nodes[dual].endpoints.clone_from(&endpoints);
    (0..3).for_each(|n| drop(stage.world.bootstrap(n)));
    for from in (0..3).filter(|n| *n != dual) {
        // All spellings at once, as an impatient operator would.
        let (one, other) = (stage.rng.below(4) as usize, stage.rng.below(4) as usize);
        stage.world.add_at(from, vec![endpoints[one].clone()]);
        stage.world.add_at(from, vec![endpoints[other].clone()]);
        stage.world.run_for(Duration::from_secs(3));
        stage.world.add_at(from, vec![endpoints[(one + 1) % 4].clone()]);
        stage.world.run_for(Duration::from_secs(3));
    }
    stage.rest();
    for n in 0..3 {
        let count = stage.world.nodes[n].disk.trusted_keys().len();
        stage.demand("H1", count == 3, || format!("n{} knows {count} peers of 3", n + 1));
    }
    // What is counted by source cannot be had once more by another spelling.
    let one = SourcePrefix::from(v4) == SourcePrefix::from(IpAddr::V6(plain.to_ipv6_mapped()));
    let near: IpAddr = "2001:db8::18".parse().expect("an address");
    let far: IpAddr = "2001:db8:0:1::17".parse().expect("an address");
    let v6: IpAddr = "2001:db8::17".parse().expect("an address");
    let grouped =
        SourcePrefix::from(v6) == SourcePrefix::from(near) && SourcePrefix::from(v6) != SourcePrefix::from(far);
    stage.demand("H2", one && grouped, || "one source has several budgets".to_owned());
    let sources = (0..20).map(|n| if n % 2 == 0 { v4 } else { IpAddr::V6(plain.to_ipv6_mapped()) });
    let opened = stage.world.open_sessions_from((dual + 1) % 3, sources);
    stage.demand("H2", opened <= SESSIONS_PER_SOURCE_MAX, || {
        format!("one host holds {opened} sessions by two spellings")
    });
    stage.world
}

/// A copy of a disk runs beside the original: both copies are reported, and no version races.
pub fn cloned_disk_is_reported(casting: Casting) -> World {
    let mut stage = Stage::founded(casting, 4, |_| {});
    let original = stage.rng.below(4) as usize;
    let others: Vec<usize> = (0..4).filter(|n| *n != original).collect();
    stage.serve(original, others[0]);
    stage.rest();
    let copy = stage.world.nodes.len();
    stage.world.clone_node(original);
    let twin = id(&stage.world, original);
    stage.within(SOON, "C4", "the others say that there are two", |w| {
        others.iter().all(|n| {
            let view = w.nodes[*n].member().and_then(|m| m.gossip.peer_view(twin));
            view.is_some_and(|v| v.has_two_copies)
        })
    });
    stage.within(SOON, "C4", "one of the copies says that it is refused", |w| {
        [original, copy].iter().any(|n| w.nodes[*n].disk.read(|s| s.facts.contested))
    });
    let start = stage.world.nodes[original].disk.read(|s| s.facts.own_version);
    for _ in 0..6 {
        stage.world.work_at(original, Work::Update);
        stage.world.work_at(copy, Work::Update);
        stage.world.run_for(Duration::from_secs(30));
    }
    for n in [original, copy] {
        let versions = stage.world.nodes[n].disk.read(|s| s.facts.own_version) - start;
        stage.demand("C4", versions < 100, || format!("the copies race: {versions} versions for six writes"));
    }
    stage.demand("G1", agree(&stage.world, &others), || "two copies keep the others from agreeing".to_owned());
    stage.world.crash(copy);
    stage.world.run_for(HOUR / 6);
    stage.rest();
    let kept = others.iter().all(|n| !held_of(&stage.world, *n, twin).is_empty());
    stage.demand("C4", kept && all_trust(&stage.world, &[0, 1, 2, 3]), || {
        "the original was lost with its copy".to_owned()
    });
    stage.world
}
