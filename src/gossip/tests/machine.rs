//! Random histories against a model of who knew what: G2-G5, R1, R2, R4 after each step, convergence at the end.
//! G4 and R2 are asserted where the network commits.

use super::network::{Faults, Network, Node, Snapshot};
use crate::{
    gossip::{FLOOR_INTERVAL, HEARTBEAT_INTERVAL, LAGGARD_AFTER, Revocations, Standing},
    model::PeerId,
    wire::record::{Record, RecordHead, RecordKey, kind},
};
use proptest::prelude::*;
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

#[derive(Debug, Clone)]
enum Step {
    /// Creates a service, or changes the one of that rank.
    Write {
        node: usize,
        rank: usize,
    },
    Delete {
        node: usize,
        rank: usize,
    },
    Revoke {
        node: usize,
        subject: usize,
    },
    Readmit {
        node: usize,
        subject: usize,
    },
    /// These two reach each other for a few seconds.
    Exchange {
        a: usize,
        b: usize,
    },
    /// Everyone but one does, for long enough to collect.
    Gather {
        without: usize,
    },
    Restart {
        node: usize,
    },
    Wipe {
        node: usize,
    },
    Keep {
        node: usize,
    },
    Restore {
        node: usize,
    },
    Sleep,
}

fn step() -> impl Strategy<Value = Step> {
    let (node, rank) = (0..5usize, 0..4usize);
    prop_oneof![
        8 => (node.clone(), rank.clone()).prop_map(|(node, rank)| Step::Write { node, rank }),
        6 => (node.clone(), rank).prop_map(|(node, rank)| Step::Delete { node, rank }),
        10 => (node.clone(), node.clone()).prop_map(|(a, b)| Step::Exchange { a, b }),
        6 => (0..6usize).prop_map(|without| Step::Gather { without }),
        2 => node.clone().prop_map(|node| Step::Restart { node }),
        1 => node.clone().prop_map(|node| Step::Wipe { node }),
        2 => node.clone().prop_map(|node| Step::Keep { node }),
        2 => node.clone().prop_map(|node| Step::Restore { node }),
        1 => (node.clone(), node.clone()).prop_map(|(node, subject)| Step::Revoke { node, subject }),
        1 => (node.clone(), node).prop_map(|(node, subject)| Step::Readmit { node, subject }),
        1 => Just(Step::Sleep),
    ]
}

/// What a node knew to be deleted: it must never be seen there again, unless its disk was lost.
type Known = BTreeSet<RecordKey>;

/// Removals and readmissions, each with its version.
type Trials = BTreeSet<(RecordKey, u64)>;

fn trials_at(node: &Node) -> Trials {
    let is_trial = |key: &RecordKey| [kind::REVOCATION, kind::READMISSION].contains(&&*key.kind);
    node.store.values().filter(|r| is_trial(&r.key)).map(|r| (r.key.clone(), r.version)).collect()
}

struct World {
    network: Network,
    known: Vec<Known>,
    /// What each node had heard of at the last look.
    trials: Vec<Trials>,
    kept: BTreeMap<usize, (Snapshot, Known)>,
    written: usize,
    /// They may be there again: written on an old disk after they had been deleted, or on one that is older than another
    /// loss, where they count as written since.
    recreated: Known,
}

impl World {
    fn new(size: u8, seed: u64) -> Self {
        let mut network = Network::new(size, seed, Faults::NONE);
        network.run_for(Duration::from_secs(25));
        let known = vec![Known::new(); usize::from(size)];
        let trials = vec![Trials::new(); usize::from(size)];
        let mut world = Self { network, known, trials, kept: BTreeMap::new(), written: 0, recreated: Known::new() };
        world.cut_all();
        world
    }

    fn size(&self) -> usize {
        self.network.nodes.len()
    }

    fn cut_all(&mut self) {
        (0..self.size()).for_each(|node| self.network.isolate(node, true));
    }

    fn own_service(&self, node: usize, rank: usize) -> Option<String> {
        let n = &self.network.nodes[node];
        let own = n.store.values().filter(|r| r.key.owner == n.who.id && r.key.kind == kind::SERVICE && !r.deleted);
        own.map(|r| r.key.id.clone()).nth(rank)
    }

    fn apply(&mut self, step: &Step) {
        let size = self.size();
        let second = Duration::from_secs(1);
        match *step {
            Step::Write { node, rank } => {
                let node = node % size;
                self.written += 1;
                let id = self.own_service(node, rank).unwrap_or_else(|| format!("s{:03}", self.written));
                let key = RecordKey { kind: kind::SERVICE.into(), id, owner: self.network.nodes[node].who.id };
                self.network.put_own(node, kind::SERVICE, &key.id, json!({ "n": self.written }));
                if self.known.iter().any(|known| known.contains(&key)) {
                    self.recreated.insert(key);
                }
            }
            Step::Delete { node, rank } => {
                if let Some(id) = self.own_service(node % size, rank) {
                    self.network.write(node % size, &id, true);
                }
            }
            Step::Revoke { node, subject } if node % size != subject % size => {
                self.network.revoke(node % size, subject % size);
            }
            Step::Readmit { node, subject } if node % size != subject % size => {
                self.network.readmit(node % size, subject % size);
            }
            Step::Exchange { a, b } if a % size != b % size => {
                let (a, b) = (a % size, b % size);
                self.network.cut.remove(&(a, b));
                self.network.cut.remove(&(b, a));
                let now = self.network.now;
                [a, b].iter().for_each(|n| self.network.nodes[*n].gossip.handle_sync(now));
                self.network.flush_all();
                self.network.run_for(14 * second);
                self.cut_all();
            }
            Step::Gather { without } => {
                self.network.cut.clear();
                if without < size {
                    self.network.isolate(without, true);
                }
                self.network.run_for(2 * FLOOR_INTERVAL);
                self.cut_all();
            }
            Step::Restart { node } => self.network.restart(node % size),
            Step::Wipe { node } => {
                self.network.wipe(node % size);
                self.known[node % size].clear();
            }
            Step::Keep { node } => {
                let node = node % size;
                self.kept.insert(node, (self.network.snapshot(node), self.known[node].clone()));
            }
            Step::Restore { node } => {
                let node = node % size;
                if let Some((disk, known)) = self.kept.get(&node).cloned() {
                    let now = &self.network.nodes[node];
                    if disk.facts.lineage != now.facts.lineage {
                        self.recreated.extend(disk.live_services_of(now.who.id));
                    }
                    self.network.restore(node, disk);
                    self.known[node] = known;
                    self.trials[node] = trials_at(&self.network.nodes[node]);
                }
            }
            Step::Sleep => self.network.sleep(LAGGARD_AFTER),
            Step::Revoke { .. } | Step::Readmit { .. } | Step::Exchange { .. } => {}
        }
    }

    /// A readmitted owner starts over, and so does what is known of it: its tombstones went with it.
    fn look_for_trials(&mut self) {
        for ((node, known), trials) in self.network.nodes.iter().zip(&mut self.known).zip(&mut self.trials) {
            let heard = trials_at(node);
            for (about, _) in
                heard.symmetric_difference(trials).filter(|(about, _)| about.id != node.who.id.to_string())
            {
                known.retain(|key| key.owner.to_string() != about.id);
            }
            *trials = heard;
        }
    }

    fn check(&mut self) {
        self.look_for_trials();
        for (node, known) in self.network.nodes.iter().zip(&mut self.known) {
            for record in node.store.values() {
                if record.deleted {
                    known.insert(record.key.clone());
                }
                let may_live = !known.contains(&record.key) || self.recreated.contains(&record.key);
                assert!(record.deleted || may_live, "R1: {:?} is back", record.key);
            }
            assert_eq!(Revocations::of(node.store.values()), node.gossip.revocations, "R4: who is revoked");
            for other in self.network.nodes.iter().filter(|other| other.who.id != node.who.id) {
                let (id, key) = (other.who.id, other.who.key.public());
                if node.gossip.revocations.standing(id, Some(&key)) == Standing::Revoked {
                    assert!(!node.trusted.contains_key(&id) && node.gossip.peer_view(id).is_none(), "R4");
                    let is_void = |k: &RecordKey| k.owner == id && k.kind != kind::REVOCATION;
                    assert!(!node.store.keys().any(is_void), "R4: records of a removed owner");
                }
            }
        }
    }

    /// Those that nobody removed.
    fn core(&self) -> Vec<&Node> {
        let nodes = &self.network.nodes;
        let is_core = |of: &&Node| {
            let (id, key) = (of.who.id, of.who.key.public());
            nodes.iter().all(|n| n.gossip.revocations.standing(id, Some(&key)) == Standing::Clear)
        };
        nodes.iter().filter(is_core).collect()
    }

    /// A peer that alone takes itself for removed shakes no hands: only those that never lost trust in it hold its records.
    fn hermits(&self) -> Vec<PeerId> {
        let core = self.core();
        let is_hermit = |n: &&Node| {
            let (id, key) = (n.who.id, n.who.key.public());
            let standing = |at: &Node| at.gossip.revocations.standing(id, Some(&key));
            standing(n) != Standing::Clear && core.iter().all(|of| standing(of) == Standing::Clear)
        };
        self.network.nodes.iter().filter(is_hermit).map(|n| n.who.id).collect()
    }

    /// What the core holds alike in the end, by peer. What is in doubt stays where it is.
    fn shared(&self) -> Vec<(PeerId, BTreeMap<RecordKey, RecordHead>)> {
        let mut apart: BTreeSet<PeerId> = self.hermits().into_iter().collect();
        apart.extend(self.in_doubt());
        let of = |node: &Node| {
            let of_others = node.store.values().filter(|r| !apart.contains(&r.key.owner));
            of_others.map(|r| (r.key.clone(), r.head().unwrap())).collect()
        };
        self.core().into_iter().map(|node| (node.who.id, of(node))).collect()
    }

    fn in_doubt(&self) -> BTreeSet<PeerId> {
        self.core().iter().flat_map(|node| node.catching_up.keys().copied()).collect()
    }

    /// Once a disk was lost, nobody may be left who is complete with an owner: another disk was lost as well, or the
    /// one who was is removed. A silent hermit is waited for.
    fn is_doubt_due(&self) -> bool {
        let core = self.core();
        let is_unknown = |owner: &PeerId| core.iter().all(|node| node.catching_up.contains_key(owner));
        let is_somebody_missing = self.network.lossy.len() > 1 || core.len() < self.size();
        let is_lost = !self.network.lossy.is_empty() && is_somebody_missing;
        self.in_doubt().iter().all(|owner| is_lost && (is_unknown(owner) || !self.hermits().is_empty()))
    }

    /// Heals everything; those that nobody removed end up equal.
    fn settle(&mut self) {
        self.network.cut.clear();
        for _ in 0..4 {
            for a in 0..self.size() {
                (0..a).for_each(|b| self.network.meet(a, b));
            }
            self.network.run_for(6 * HEARTBEAT_INTERVAL);
            self.check();
        }
        // A floor may just have been published, and what it resets takes some heartbeats.
        for _ in 0..12 {
            if self.is_doubt_due() && self.shared().windows(2).all(|pair| pair[0].1 == pair[1].1) {
                break;
            }
            self.network.run_for(HEARTBEAT_INTERVAL);
            self.check();
        }
        for pair in self.shared().windows(2) {
            assert_eq!(pair[0].1, pair[1].1, "G1: {:?}", [pair[0].0, pair[1].0]);
        }
        let (nodes, core) = (&self.network.nodes, self.core());
        assert!(self.is_doubt_due(), "catching up: {:?}", core.iter().map(|n| &n.catching_up).collect::<Vec<_>>());
        let is_settled = self.hermits().is_empty() && self.in_doubt().is_empty();
        for pair in core.windows(2).filter(|_| is_settled) {
            assert_eq!(pair[0].gossip.digests(), pair[1].gossip.digests(), "G1");
        }
        // What only a peer knew that was removed, and a database that was lost, nobody knows.
        let is_core = |node: &Node| core.iter().any(|of| of.who.id == node.who.id);
        let known = nodes.iter().zip(&self.known).filter(|(node, _)| is_core(node)).map(|(_, known)| known);
        let gone: Known = known.flatten().filter(|key| !self.recreated.contains(key)).cloned().collect();
        for node in &core {
            // What is in doubt stays where it is.
            let is_settled = |r: &&Record| !r.deleted && !node.catching_up.contains_key(&r.key.owner);
            let live = node.store.values().filter(is_settled).map(|r| &r.key);
            assert!(live.clone().all(|key| !gone.contains(key)), "R1 at the end");
            for record in node.store.values() {
                let owner = nodes.iter().find(|n| n.who.id == record.key.owner).unwrap();
                assert!(record.verify(&owner.who.key.public()).is_ok(), "G4");
            }
        }
        self.network.assert_stores_match();
    }
}

fn config() -> ProptestConfig {
    if std::env::var_os("PROPTEST_CASES").is_some() {
        ProptestConfig::default()
    } else {
        ProptestConfig::with_cases(12)
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn machine_histories_keep_the_invariants(
        size in 3u8..6,
        seed in any::<u64>(),
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let mut world = World::new(size, seed);
        for step in &steps {
            world.apply(step);
            world.check();
        }
        world.settle();
    }
}
