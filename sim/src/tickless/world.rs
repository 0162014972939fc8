//! The world: nodes, links and one event queue in virtual time. Nothing happens between two events.

use super::{
    calls,
    faults::{Fault, Kind},
    invariants::{Violation, Witness},
    message::{Answer, Encoding, Message},
    network::Network,
    node::{Node, ReplyTo},
    trace::{Detail, Trace},
    workload::Op,
};
use arctic::{
    license::{Features, LicenseDocument, Terms, TrustRoots},
    model::{CustomerId, LicenseId, Mono, Rng, SigningKey, UnixTime},
};
use sha2::{Digest, Sha256};
use std::{
    cmp::{Ordering, Reverse as Least},
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

pub use super::workload::Work;

/// How a run is made.
#[derive(Debug, Clone)]
pub struct Options {
    pub seed: u64,
    pub nodes: usize,
    /// Ed25519 instead of keyed hashes. Has a meaning only in a build with the feature `simulation`.
    pub real_crypto: bool,
    pub encoding: Encoding,
    pub detail: Detail,
    /// Whether requests between peers are signed and checked.
    pub authenticates: bool,
    /// Whether each node keeps a ruleset.
    pub reconciles: bool,
    pub max_nodes: u32,
    pub max_services: u32,
    /// Until the licenses of the first issue expire.
    pub license_lasts: Duration,
    /// Nodes from this index on belong to another customer.
    pub foreigners_from: usize,
}

impl Options {
    pub fn new(seed: u64, nodes: usize) -> Self {
        Self {
            seed,
            nodes,
            real_crypto: false,
            encoding: Encoding::Values,
            detail: Detail::Recent,
            authenticates: true,
            reconciles: true,
            max_nodes: 20_000,
            max_services: 100_000,
            license_lasts: Duration::from_secs(365 * 24 * 3600),
            foreigners_from: usize::MAX,
        }
    }
}

/// What is going to happen.
pub enum Event {
    /// A machine of the node has something to do.
    Wake {
        node: usize,
        boot: u64,
    },
    Request {
        to: usize,
        source: IpAddr,
        reply_to: ReplyTo,
        message: Arc<Message>,
    },
    Answer {
        to: ReplyTo,
        answer: Box<Answer>,
    },
    /// A connection was not made.
    Unconnected {
        caller: ReplyTo,
        failure: arctic::handshake::DialFailure,
    },
    /// No answer in time.
    GiveUp {
        caller: ReplyTo,
    },
    LicenseTick {
        node: usize,
        boot: u64,
    },
    Begin(usize),
    End(usize),
    Operate(usize),
    Restart {
        node: usize,
    },
    /// A node that says good-bye has said it.
    Leave {
        node: usize,
    },
}

/// Events at one moment; more are a loop.
const STEPS_AT_ONCE_MAX: u64 = 1_000_000;

struct Slot {
    at: Mono,
    seq: u64,
    event: Event,
}

impl PartialEq for Slot {
    fn eq(&self, other: &Self) -> bool {
        self.seq == other.seq
    }
}
impl Eq for Slot {}
impl PartialOrd for Slot {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Slot {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.seq).cmp(&(other.at, other.seq))
    }
}

pub struct World {
    pub options: Options,
    pub now: Mono,
    pub steps: u64,
    steps_at_once: u64,
    seq: u64,
    queue: BinaryHeap<Least<Slot>>,
    pub nodes: Vec<Node>,
    pub network: Network,
    pub rng: Rng,
    pub trace: Trace,
    pub witness: Witness,
    pub failure: Option<Violation>,
    pub faults: Vec<Fault>,
    pub work: Vec<Op>,
    pub vendor: SigningKey,
    pub roots: TrustRoots,
    /// Nodes that a fault may go on to trouble while the others come to rest.
    pub outside: BTreeSet<usize>,
    /// How long the world took to come to rest, once it has.
    pub rested_after: Option<Duration>,
    pub(super) next_call: u64,
}

/// 32 bytes that depend on all three.
pub fn derive(seed: u64, label: &str, n: u64) -> [u8; 32] {
    Sha256::new().chain_update(seed.to_be_bytes()).chain_update(n.to_be_bytes()).chain_update(label).finalize().into()
}

impl World {
    /// Nodes with identities, processes and no cluster.
    pub fn new(options: Options) -> Self {
        crate::tickless::use_crypto(options.real_crypto);
        let vendor = SigningKey::from_seed(derive(options.seed, "vendor", 0));
        let mut world = Self {
            now: Mono::default(),
            steps: 0,
            steps_at_once: 0,
            seq: 0,
            queue: BinaryHeap::new(),
            nodes: Vec::new(),
            network: Network::default(),
            rng: Rng::from_seed(derive(options.seed, "world", 0)),
            trace: Trace::new(options.detail),
            witness: Witness::default(),
            failure: None,
            faults: Vec::new(),
            work: Vec::new(),
            roots: TrustRoots::from_keys([vendor.public()]),
            vendor,
            outside: BTreeSet::new(),
            rested_after: None,
            next_call: 0,
            options,
        };
        for index in 0..world.options.nodes {
            world.add_node(index);
        }
        world
    }

    /// A license of a customer, issued at `issued_at`.
    pub fn license(&mut self, customer: u8, issued_at: UnixTime, lasts: Duration) -> Arc<LicenseDocument> {
        let customer_id = CustomerId::mint(
            UnixTime::default(),
            &mut Rng::from_seed(derive(self.options.seed, "customer", customer.into())),
        );
        let terms = Terms {
            customer_id,
            license_id: LicenseId::mint(issued_at, &mut self.rng),
            customer_name: None,
            issued_at,
            expires_at: issued_at.plus(lasts),
            max_nodes: self.options.max_nodes,
            max_services: self.options.max_services,
            features: Features::every(),
        };
        Arc::new(LicenseDocument::issue(&self.vendor, terms).expect("well-formed terms"))
    }

    pub(super) fn at(&mut self, at: Mono, event: Event) {
        self.seq += 1;
        self.queue.push(Least(Slot { at: at.max(self.now), seq: self.seq, event }));
    }

    pub(super) fn after(&mut self, wait: Duration, event: Event) {
        self.at(self.now + wait, event);
    }

    /// Puts faults on the calendar.
    pub fn plan_faults(&mut self, faults: Vec<Fault>) {
        for fault in faults {
            let index = self.faults.len();
            let (begins, ends) = (fault.at, fault.at + fault.lasts);
            self.faults.push(fault);
            self.at(begins, Event::Begin(index));
            self.at(ends, Event::End(index));
        }
    }

    /// Puts work of the operators on the calendar.
    pub fn plan_work(&mut self, work: Vec<Op>) {
        for op in work {
            let index = self.work.len();
            let at = op.at;
            self.work.push(op);
            self.at(at, Event::Operate(index));
        }
    }

    pub fn run_for(&mut self, duration: Duration) {
        self.run_until(self.now + duration, |_| false);
    }

    /// Runs until `done`, which is asked after every event, or until `end`; says whether it was done. A violated
    /// invariant ends the run.
    pub fn run_until(&mut self, end: Mono, done: impl Fn(&World) -> bool) -> bool {
        while self.failure.is_none() {
            if done(self) {
                return true;
            }
            let Some(Least(next)) = self.queue.peek() else { break };
            if next.at > end {
                break;
            }
            let Some(Least(slot)) = self.queue.pop() else { break };
            self.steps_at_once = if slot.at > self.now { 0 } else { self.steps_at_once + 1 };
            self.now = slot.at;
            self.steps += 1;
            if self.steps_at_once > STEPS_AT_ONCE_MAX {
                self.violate("G6", "a moment that never ends".to_owned());
            }
            self.take(slot.event);
        }
        if self.failure.is_none() {
            self.now = self.now.max(end);
        }
        self.failure.is_none() && done(self)
    }

    /// Every host sleeps: the clocks go on, and what was due meanwhile happens at once afterwards.
    pub fn leap(&mut self, span: Duration) {
        self.trace.line(self.now, format_args!("all sleep for {span:?}"));
        self.now = self.now + span;
        let late: Vec<Least<Slot>> = std::mem::take(&mut self.queue).into_vec();
        let now = self.now;
        self.queue = late.into_iter().map(|Least(slot)| Least(Slot { at: slot.at.max(now), ..slot })).collect();
    }

    fn take(&mut self, event: Event) {
        if let Some(node) = node_of(&event)
            && self.nodes[node].paused_until > self.now
        {
            // A stopped process sees everything when it goes on.
            let until = self.nodes[node].paused_until;
            return self.at(until, event);
        }
        match event {
            Event::Wake { node, boot } => self.wake(node, boot),
            Event::Request { to, source, reply_to, message } => self.serve(to, source, reply_to, &message),
            Event::Answer { to, answer } => calls::answered(self, to, *answer),
            Event::Unconnected { caller, failure } => calls::unconnected(self, caller, failure),
            Event::GiveUp { caller } => calls::gave_up(self, caller),
            Event::LicenseTick { node, boot } => self.tick_license(node, boot),
            Event::Begin(index) => self.begin_fault(index),
            Event::End(index) => self.end_fault(index),
            Event::Operate(index) => self.operate(index),
            Event::Restart { node } => self.restart_if_due(node),
            Event::Leave { node } => self.end_membership(node),
        }
    }

    /// The run has shown something that must not be.
    pub fn violate(&mut self, invariant: &'static str, what: String) {
        if self.failure.is_none() {
            self.trace.line(self.now, format_args!("VIOLATED {invariant} {what}"));
            self.failure = Some(Violation { invariant, what, at: self.now, step: self.steps });
        }
    }

    pub fn fire(&mut self, kind: Kind) {
        self.network.fire(kind);
    }

    pub fn fired(&self) -> &BTreeMap<Kind, u64> {
        &self.network.fired
    }

    pub fn node_of_peer(&self, peer: arctic::model::PeerId) -> Option<usize> {
        self.witness.index_of.get(&peer).copied()
    }

    /// `n3`, or the id of a peer that is no node.
    pub fn peer_name(&self, peer: arctic::model::PeerId) -> String {
        self.node_of_peer(peer).map_or_else(|| peer.to_string(), |n| format!("n{}", n + 1))
    }
}

/// The node that has to be awake for an event.
fn node_of(event: &Event) -> Option<usize> {
    match event {
        Event::Wake { node, .. } | Event::LicenseTick { node, .. } => Some(*node),
        Event::Request { to, .. } => Some(*to),
        Event::Answer { to: caller, .. } | Event::Unconnected { caller, .. } | Event::GiveUp { caller } => {
            Some(caller.node)
        }
        Event::Begin(_) | Event::End(_) | Event::Operate(_) | Event::Restart { .. } | Event::Leave { .. } => None,
    }
}
