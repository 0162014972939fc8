//! A small world of peers whose calls are function calls: every message crosses it as JSON bytes, and a test may
//! lose or change any of them.

mod answer;
mod flood;
mod honest;
mod hostile;
mod machine;
mod refusal;

use super::*;
use crate::model::{ApiAccess, CustomerId, DataPorts, Mono, Rng, SigningKey, UnixTime};
use crate::wire::canonical;
use crate::wire::handshake::{self, Finish, Identity, Init};
use crate::wire::record::{PeerBody, kind};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Value, json};
use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

const WALL: UnixTime = UnixTime::from_secs(1_800_000_000);

fn endpoint(s: &str) -> Endpoint {
    s.parse().unwrap()
}

/// Accepts what [`Vendor::issue`] made, and counts.
struct Vendor {
    secret: &'static str,
    verified: Cell<usize>,
}

impl Vendor {
    fn new(secret: &'static str) -> Self {
        Self { secret, verified: Cell::new(0) }
    }

    fn seal(&self, document: &Value) -> String {
        let mut unsigned = document.clone();
        unsigned.as_object_mut().unwrap().remove("signature");
        let digest = canonical::digest(&json!([self.secret, unsigned])).unwrap();
        BASE64.encode(digest)
    }

    fn issue(&self, license_id: LicenseId, customer_id: CustomerId, max_nodes: u32) -> Value {
        let mut document = json!({"license_id": license_id, "customer_id": customer_id, "max_nodes": max_nodes});
        document["signature"] = json!(self.seal(&document));
        document
    }
}

impl LicenseCheck for Vendor {
    fn verify(&self, document: &Value) -> Result<PeerLicense, String> {
        self.verified.set(self.verified.get() + 1);
        if document["signature"] != json!(self.seal(document)) {
            return Err("signature does not verify".into());
        }
        let text = |name: &str| document[name].as_str().ok_or("field missing");
        Ok(PeerLicense {
            license_id: text("license_id")?.parse().map_err(|_| "license id")?,
            customer_id: text("customer_id")?.parse().map_err(|_| "customer id")?,
            max_nodes: document["max_nodes"].as_u64().and_then(|n| n.try_into().ok()).ok_or("max_nodes")?,
        })
    }
}

struct Agent {
    local: Local,
    held: Held,
    vendor: Vendor,
    responder: Responder,
    rng: Rng,
    address: IpAddr,
    stored: BTreeMap<PeerId, Accepted>,
}

impl Agent {
    fn identity(&self) -> Identity {
        Identity {
            peer_id: Some(self.local.peer_id),
            public_key: Some(self.local.key.public()),
            license_id: Some(self.local.license_id),
            cluster_id: Some(self.local.cluster_id),
            version: "v1.4.0".into(),
        }
    }

    fn store(&mut self, accepted: Accepted) {
        self.held.trust(accepted.peer_id, accepted.public_key);
        self.local.members.insert(accepted.peer_id);
        self.stored.insert(accepted.peer_id, accepted);
    }

    /// Gives the agent another license and signs its record anew.
    fn license(&mut self, license_id: LicenseId, customer_id: CustomerId, max_nodes: u32) {
        self.local.license = self.vendor.issue(license_id, customer_id, max_nodes);
        self.local.license_id = license_id;
        self.local.customer_id = customer_id;
        self.local.max_nodes = max_nodes;
    }

    fn sign_record(&mut self) {
        let local = &self.local;
        let body = PeerBody {
            name: "n".into(),
            public_key: local.key.public(),
            x25519_key: local.key.x25519_public(),
            endpoints: local.endpoints.clone(),
            data_ports: DataPorts::default(),
            api_access: ApiAccess::Public,
            version: "v1.4.0".into(),
            license_id: local.license_id,
            created_at: WALL,
        };
        let body = serde_json::to_value(body).unwrap();
        let id = local.peer_id.to_string();
        self.local.record = Record::sign(&local.key, local.peer_id, kind::PEER, &id, 1, body).unwrap();
    }

    fn open_sessions_after_expiry(&mut self, now: Mono) -> usize {
        self.responder.handle_timeout(now + SESSION_LIFETIME);
        self.responder.open_sessions()
    }
}

/// What is at an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Site {
    Agent(usize),
    Dead(DialFailure),
}

/// A message on its way, as JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leg {
    Identity,
    Init,
    InitResponse,
    Finish,
    FinishResponse,
    ReverseIdentity,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    Request(DialFailure),
    Answer,
}

/// What a test may do to a message on its way.
type Tamper = Box<dyn FnMut(Leg, &mut Value)>;

struct World {
    agents: Vec<Agent>,
    sites: BTreeMap<Endpoint, Site>,
    now: Mono,
    /// One per forward call, first in front; `None` delivers.
    losses: Vec<Option<Loss>>,
    tamper: Tamper,
    /// Time and endpoint of each forward call.
    calls: Vec<(Mono, Endpoint, &'static str)>,
}

impl World {
    /// Agents n0, n1, … of one customer with one license.
    fn of(count: usize) -> Self {
        let mut rng = Rng::from_seed([7; 32]);
        let customer = CustomerId::mint(WALL, &mut rng);
        let license = LicenseId::mint(WALL, &mut rng);
        let mut sites = BTreeMap::new();
        let agents = (0..count).map(|n| {
            let name = endpoint(&format!("n{n}"));
            sites.insert(name.clone(), Site::Agent(n));
            agent(n, name, license, customer, &mut rng)
        });
        let agents = agents.collect();
        Self {
            agents,
            sites,
            now: Mono::from_ms(1_000_000),
            losses: Vec::new(),
            tamper: Box::new(|_, _| {}),
            calls: Vec::new(),
        }
    }

    fn id(&self, n: usize) -> PeerId {
        self.agents[n].local.peer_id
    }

    fn target(&self, n: usize) -> Target {
        Target {
            endpoints: vec![endpoint(&format!("n{n}"))],
            pinned_key: None,
            expected_peer: None,
            purpose: Purpose::Join,
        }
    }

    fn add(&mut self, from: usize, to: usize) -> Event {
        self.run(from, Target { purpose: Purpose::Add, ..self.target(to) })
    }

    fn reason_of_add(&mut self, from: usize, to: usize) -> Reason {
        failure(self.add(from, to)).reason
    }

    /// Both trust each other, as after an earlier handshake.
    fn befriend(&mut self, a: usize, b: usize) {
        for (x, y) in [(a, b), (b, a)] {
            let (id, key) = (self.id(y), self.agents[y].local.key.public());
            self.agents[x].held.trust(id, key);
            self.agents[x].local.members.insert(id);
        }
    }

    fn assert_strangers(&mut self, a: usize, b: usize) {
        for (x, y) in [(a, b), (b, a)] {
            let id = self.id(y);
            assert!(!self.agents[x].stored.contains_key(&id) && !self.agents[x].held.trusts(&id));
            let now = self.now;
            assert_eq!(self.agents[x].open_sessions_after_expiry(now), 0);
        }
    }

    fn assert_stored_both(&self, a: usize, b: usize) {
        for (x, y) in [(a, b), (b, a)] {
            let stored = &self.agents[x].stored[&self.id(y)];
            let other = &self.agents[y].local;
            assert_eq!((stored.peer_id, stored.public_key), (other.peer_id, other.key.public()));
            assert_eq!((&stored.record, stored.cluster_id), (&other.record, other.cluster_id));
            assert_eq!(stored.license_id, other.license_id);
        }
    }

    /// Drives one initiator to its end, storing what is accepted.
    fn run(&mut self, from: usize, target: Target) -> Event {
        let mut machine = Initiator::new(target, self.now);
        loop {
            if let Some(event) = self.step(from, &mut machine) {
                assert!(machine.poll_transmit().is_none() && machine.poll_event().is_none());
                return event;
            }
        }
    }

    /// One call or one wait.
    fn step(&mut self, from: usize, machine: &mut Initiator) -> Option<Event> {
        if let Some(call) = machine.poll_transmit() {
            let reply = self.deliver(from, &call);
            let (now, agent) = (self.now, &mut self.agents[from]);
            let here = Here { local: &agent.local, held: &agent.held, licenses: &agent.vendor };
            machine.handle_reply(here, reply, now, &mut agent.rng);
        } else if let Some(event) = machine.poll_event() {
            if let Event::Done(accepted) = &event {
                self.agents[from].store((**accepted).clone());
            }
            return Some(event);
        } else {
            let (due, _) = machine.poll_timeout().expect("a machine without an end waits for something");
            self.now = self.now.max(due);
            machine.handle_timeout(self.now);
        }
        None
    }

    fn deliver(&mut self, from: usize, call: &Call) -> Result<Reply, DialFailure> {
        self.calls.push((self.now, call.endpoint.clone(), call.request.path()));
        let loss = if self.losses.is_empty() { None } else { self.losses.remove(0) };
        if let Some(Loss::Request(failure)) = loss {
            return self.dead(call, failure);
        }
        let to = match self.sites.get(&call.endpoint) {
            Some(Site::Agent(to)) => *to,
            Some(Site::Dead(failure)) => return self.dead(call, *failure),
            None => return self.dead(call, DialFailure::NameNotFound),
        };
        let (status, body) = self.serve(from, to, &call.request);
        if loss == Some(Loss::Answer) {
            return self.dead(call, DialFailure::Timeout);
        }
        Ok(Reply::decode(&call.request, status, &body))
    }

    fn dead(&mut self, call: &Call, failure: DialFailure) -> Result<Reply, DialFailure> {
        if failure == DialFailure::Timeout {
            self.now = self.now + call.connect_timeout;
        }
        Err(failure)
    }

    /// The HTTP side of the agent `to`.
    fn serve(&mut self, from: usize, to: usize, request: &Request) -> (u16, Vec<u8>) {
        let refused = |r: Refusal| (r.reason.code().http_status(), serde_json::to_vec(&r.to_body()).unwrap());
        match request {
            Request::Identity => (200, self.carry(Leg::Identity, &self.agents[to].identity())),
            Request::Init(init) => {
                let body = self.carry(Leg::Init, init);
                match self.serve_init(from, to, &body) {
                    Ok(response) => (200, self.carry(Leg::InitResponse, &response)),
                    Err(refusal) => refused(refusal),
                }
            }
            Request::Finish(finish) => {
                let body = self.carry(Leg::Finish, finish);
                match self.serve_finish(to, &body) {
                    Ok(response) => (200, self.carry(Leg::FinishResponse, &response)),
                    Err(refusal) => refused(refusal),
                }
            }
        }
    }

    fn serve_init(&mut self, from: usize, to: usize, body: &[u8]) -> Result<handshake::InitResponse, Refusal> {
        let init: Init = handshake::decode(body).map_err(|_| Refusal::forward(Reason::MalformedMessage))?;
        let (source, now) = (self.agents[from].address, self.now);
        let Agent { local, held, vendor, responder, rng, .. } = &mut self.agents[to];
        responder.handle_init(Here { local, held, licenses: vendor }, source, &init, now, rng)
    }

    fn serve_finish(&mut self, to: usize, body: &[u8]) -> Result<handshake::FinishResponse, Refusal> {
        let finish: Finish = handshake::decode(body).map_err(|_| Refusal::forward(Reason::MalformedMessage))?;
        let now = self.now;
        let Agent { local, held, vendor, responder, .. } = &mut self.agents[to];
        let pending = responder.handle_finish(Here { local, held, licenses: vendor }, &finish, now)?;
        let answer = self.dial_back(&pending);
        let Agent { local, held, vendor, responder, rng, .. } = &mut self.agents[to];
        let here = Here { local, held, licenses: vendor };
        let (response, accepted) = responder.confirm_reverse(here, &pending.session, &answer, now, WALL, rng)?;
        self.agents[to].store(accepted);
        Ok(response)
    }

    /// Endpoints in order; the first right answer decides, else the first failure.
    fn dial_back(&mut self, pending: &PendingReverse) -> ReverseAnswer {
        let mut first_failure = None;
        for endpoint in &pending.endpoints {
            let result = match self.sites.get(endpoint) {
                Some(Site::Agent(n)) => {
                    let body = self.carry(Leg::ReverseIdentity, &self.agents[*n].identity());
                    handshake::decode::<Identity>(&body).map_err(|_| DialFailure::Failed)
                }
                Some(Site::Dead(failure)) => Err(*failure),
                None => Err(DialFailure::NameNotFound),
            };
            let right = result.as_ref().is_ok_and(|identity| pending.is_answered_by(identity));
            let answer = ReverseAnswer { endpoint: endpoint.clone(), result };
            if right {
                return answer;
            }
            first_failure.get_or_insert(answer);
        }
        first_failure.expect("there is always an endpoint to call back")
    }

    fn carry(&mut self, leg: Leg, message: &impl serde::Serialize) -> Vec<u8> {
        let mut value = serde_json::to_value(message).unwrap();
        (self.tamper)(leg, &mut value);
        serde_json::to_vec(&value).unwrap()
    }
}

fn agent(n: usize, name: Endpoint, license: LicenseId, customer: CustomerId, rng: &mut Rng) -> Agent {
    let vendor = Vendor::new("vendor");
    let key = SigningKey::from_seed(rng.bytes());
    let peer_id = PeerId::mint(WALL, rng);
    let record = Record::sign(&key, peer_id, "x", "x", 1, Value::Null).unwrap();
    let local = Local {
        peer_id,
        key,
        license: vendor.issue(license, customer, 10),
        license_id: license,
        customer_id: customer,
        max_nodes: 10,
        cluster_id: ClusterId::mint(WALL, rng),
        endpoints: vec![name],
        // Not the default, so that its absence shows.
        api_port: 9443.try_into().unwrap(),
        record,
        members: BTreeSet::from([peer_id]),
        gate: LicenseGate::Open,
    };
    let mut agent = Agent {
        local,
        held: Held::default(),
        vendor,
        responder: Responder::new(),
        rng: Rng::from_seed(rng.bytes()),
        address: format!("10.0.0.{}", n + 1).parse().unwrap(),
        stored: BTreeMap::new(),
    };
    agent.sign_record();
    agent
}

fn done(event: Event) -> Accepted {
    match event {
        Event::Done(accepted) => *accepted,
        Event::Failed(failure) => panic!("handshake failed: {failure:?}"),
    }
}

fn failure(event: Event) -> Failure {
    match event {
        Event::Failed(failure) => failure,
        Event::Done(_) => panic!("the handshake succeeded"),
    }
}

/// An id of the same kind, but another one.
fn other_id(text: &str) -> String {
    let mut rng = Rng::from_seed([99; 32]);
    let prefix = text.split('_').next().unwrap();
    let fresh = PeerId::mint(WALL, &mut rng).to_string();
    format!("{prefix}_{}", fresh.split_once('_').unwrap().1)
}

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}
