//! Agents of ledgers in memory, whose handshakes are function calls and whose gossip is a copy of what one would take
//! from another.

mod accept;
mod contest;
mod departure;
mod merge;
mod removal;

use super::*;
use crate::{
    handshake::{
        self, DialFailure, Event, Initiator, PendingReverse, Purpose, Reason, Refusal, Reply, Request, Responder,
        ReverseAnswer, Target,
    },
    license::{EffectiveClock, Entitlement, Features, LicenseDocument, Terms, TrustRoots},
    model::{
        ApiAccess, ClusterId, CustomerId, DataPorts, Endpoint, LicenseId, Mono, PeerId, Refused, Rng, Secret,
        SigningKey, UnixTime,
    },
    wire::{
        handshake::Identity,
        record::{Record, Voucher, kind},
    },
};
use std::{cell::RefCell, sync::Arc, time::Duration};

const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);
const MONO: Mono = Mono::from_ms(1_000_000);
const MAX_NODES: u32 = 10;

struct Agent {
    author: Author,
    entitlement: Entitlement,
    roots: TrustRoots,
    ledger: MemoryLedger,
    responder: RefCell<Responder>,
    rng: RefCell<Rng>,
    endpoints_are_set: bool,
}

impl Agent {
    fn own(&self) -> Own<'_> {
        Own {
            author: &self.author,
            entitlement: &self.entitlement,
            licenses: &self.roots,
            api_port: 8080.try_into().unwrap(),
            endpoints_are_set: self.endpoints_are_set,
        }
    }

    fn id(&self) -> PeerId {
        self.author.peer_id
    }

    fn side(&self) -> Side {
        side(&self.ledger, self.own()).unwrap().unwrap()
    }

    fn cluster(&self) -> ClusterFacts {
        self.ledger.cluster().unwrap().unwrap()
    }

    fn trusts(&self, other: &Agent) -> bool {
        self.ledger.peer(other.id()).unwrap().is_some_and(|row| row.trusted)
    }

    fn identity(&self) -> Identity {
        let local = self.side().local;
        Identity {
            peer_id: Some(local.peer_id),
            public_key: Some(local.key.public()),
            license_id: Some(local.license_id),
            cluster_id: Some(local.cluster_id),
            version: "v1.0.0".into(),
        }
    }

    fn accept(&self, accepted: crate::handshake::Accepted, we_answered: bool) -> Result<Vec<Record>, Refused> {
        let acceptance = Acceptance { accepted, local_name: None, we_answered, now: NOW };
        accept(&self.ledger, self.own(), &acceptance)
    }
}

struct World {
    vendor: SigningKey,
    customer: CustomerId,
    agents: Vec<Agent>,
}

impl World {
    /// Clusters of one, n0, n1, …, one customer's; the cluster ids ascend with the numbers.
    fn of(count: usize) -> Self {
        let mut rng = Rng::from_seed([7; 32]);
        let customer = CustomerId::mint(NOW, &mut rng);
        let mut world = Self { vendor: SigningKey::from_seed([9; 32]), customer, agents: Vec::new() };
        for n in 0..count {
            let agent = world.agent(n, MAX_NODES, &mut rng);
            world.agents.push(agent);
        }
        world
    }

    fn license(&self, max_nodes: u32, rng: &mut Rng) -> Arc<LicenseDocument> {
        let terms = Terms {
            license_id: LicenseId::mint(NOW, rng),
            customer_id: self.customer,
            customer_name: None,
            issued_at: NOW,
            expires_at: NOW.plus(Duration::from_secs(30 * 24 * 3600)),
            max_nodes,
            max_services: 10,
            features: Features::every(),
        };
        Arc::new(LicenseDocument::issue(&self.vendor, terms).unwrap())
    }

    fn agent(&self, n: usize, max_nodes: u32, rng: &mut Rng) -> Agent {
        let born_at = NOW.plus(Duration::from_secs(n as u64));
        let author = Author { peer_id: PeerId::mint(born_at, rng), key: SigningKey::from_seed(rng.bytes()) };
        let license = self.license(max_nodes, rng);
        let settings = OwnSettings {
            endpoints: vec![format!("n{n}").parse().unwrap()],
            data_ports: DataPorts::default(),
            api_access: ApiAccess::Public,
        };
        let words = FirstWords { name: format!("n{n}"), description: String::new() };
        let secret = Secret::mint(rng);
        let ledger = MemoryLedger::default();
        Birth::new(&author, words, settings, &license, &secret, born_at, rng).write(&ledger, &author).unwrap();
        Agent {
            author,
            entitlement: Entitlement::new(license, &EffectiveClock::start(NOW, MONO)),
            roots: TrustRoots::from_keys([self.vendor.public()]),
            ledger,
            responder: RefCell::new(Responder::new()),
            rng: RefCell::new(rng.fork()),
            endpoints_are_set: false,
        }
    }

    /// Gives an agent a license for so many nodes.
    fn relicense(&mut self, n: usize, max_nodes: u32) {
        let license = self.license(max_nodes, &mut Rng::from_seed([n as u8; 32]));
        self.agents[n].entitlement = Entitlement::new(license, &EffectiveClock::start(NOW, MONO));
    }

    fn at(&self, endpoint: &Endpoint) -> &Agent {
        &self.agents[endpoint.host().trim_start_matches('n').parse::<usize>().unwrap()]
    }

    /// A handshake that proves both sides; nothing is stored.
    fn prove(&self, from: usize, to: usize, purpose: Purpose) -> Result<Proven, Reason> {
        let agent = &self.agents[from];
        let target = Target {
            endpoints: vec![format!("n{to}").parse().unwrap()],
            pinned_key: None,
            expected_peer: None,
            purpose,
        };
        let mut machine = Initiator::new(target, MONO);
        let mut answered = None;
        loop {
            match machine.poll_event() {
                Some(Event::Done(initiated)) => {
                    return Ok(Proven { initiated: *initiated, answered: answered.expect("the other side is proven") });
                }
                Some(Event::Failed(failure)) => return Err(failure.reason),
                None => {}
            }
            let call = machine.poll_transmit().expect("no agent is busy");
            let reply = match self.serve(&call.endpoint, &call.request, &mut answered) {
                Ok(reply) => reply,
                Err(refusal) => Reply::Refused(refusal.to_body()),
            };
            machine.handle_reply(agent.side().here(agent.own()), Ok(reply), MONO, &mut agent.rng.borrow_mut());
        }
    }

    fn serve(
        &self,
        at: &Endpoint,
        request: &Request,
        answered: &mut Option<crate::handshake::Accepted>,
    ) -> Result<Reply, Refusal> {
        let agent = self.at(at);
        let side = agent.side();
        let (here, mut rng) = (side.here(agent.own()), agent.rng.borrow_mut());
        let mut responder = agent.responder.borrow_mut();
        match request {
            Request::Identity => Ok(Reply::Identity(agent.identity())),
            Request::Init(init) => {
                let source = std::net::Ipv4Addr::new(192, 0, 2, 1).into();
                responder.handle_init(here, source, init, MONO, &mut rng).map(Reply::Init)
            }
            Request::Finish(finish) => {
                let PendingReverse { session, endpoints, .. } = responder.handle_finish(here, finish, MONO)?;
                let result: Result<_, DialFailure> = Ok(self.at(&endpoints[0]).identity());
                let answer = ReverseAnswer { endpoint: endpoints[0].clone(), result };
                let (response, accepted) = responder.confirm_reverse(here, &session, &answer, MONO, NOW, &mut rng)?;
                *answered = Some(accepted);
                Ok(Reply::Finish(response))
            }
        }
    }

    /// `peers add`, up to the stores of both.
    fn add(&self, from: usize, to: usize) -> Result<(), Reason> {
        let Proven { initiated, answered } = self.prove(from, to, Purpose::Add)?;
        self.agents[to].accept(answered, true).unwrap();
        self.agents[from].accept(initiated, false).unwrap();
        Ok(())
    }

    /// Brings to each agent the records of whom it trusts, and lets it handshake with whom they vouch for, until nothing
    /// is new.
    fn gossip(&self) {
        for _ in 0..=self.agents.len() {
            for (n, agent) in self.agents.iter().enumerate() {
                for other in self.agents.iter().filter(|other| agent.trusts(other)) {
                    self.take(agent, other);
                }
                for (m, other) in self.agents.iter().enumerate() {
                    let vouched = agent
                        .ledger
                        .records_of(kind::VOUCHER)
                        .unwrap()
                        .iter()
                        .any(|r| !r.deleted && r.key.id == other.id().to_string());
                    if n != m && vouched && !agent.trusts(other) {
                        // The other one may not have heard yet who vouches for this one.
                        let Ok(Proven { initiated, answered }) = self.prove(n, m, Purpose::Join) else { continue };
                        other.accept(answered, true).unwrap();
                        agent.accept(initiated, false).unwrap();
                    }
                }
            }
        }
    }

    fn take(&self, agent: &Agent, other: &Agent) {
        let mut records = other.ledger.all_records();
        records.retain(|r| {
            agent.ledger.peer(r.key.owner).unwrap().is_some_and(|row| row.trusted && row.peer_id != agent.id())
        });
        merge_records(&agent.ledger, &agent.author, &records).unwrap();
    }

    fn cluster_ids(&self) -> Vec<ClusterId> {
        self.agents.iter().map(|agent| agent.cluster().cluster_id).collect()
    }
}

/// What each side of a handshake would store.
struct Proven {
    initiated: crate::handshake::Accepted,
    answered: crate::handshake::Accepted,
}
