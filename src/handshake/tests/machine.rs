//! Many handshakes at once over a network that loses, repeats, delays, reorders and changes what it carries, while
//! operators revoke, trust and renew: transition, apply, check. The letters H1 to H6 are the invariants of the design's
//! simulation plan. `PROPTEST_CASES` scales it.

use super::*;
use crate::model::Rng;
use crate::wire::handshake::{Finish, FinishResponse, InitResponse, initiator_transcript, responder_transcript};
use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};

/// Three of one customer; one of another; one that has the first one's id under its own key; one whose license nobody
/// issued.
const AGENTS: usize = 6;
const OTHER_CUSTOMER: usize = 3;
const IMPOSTOR: usize = 4;
const FORGER: usize = 5;
const STEPS_MAX: usize = 90;

/// What may happen next. Numbers pick among what there is.
#[derive(Debug, Clone)]
enum Step {
    Dial {
        from: usize,
        to: usize,
        purpose: Purpose,
        pinned: Option<usize>,
        expected: Option<usize>,
    },
    Deliver(usize),
    Lose(usize),
    Duplicate(usize),
    /// A request of long ago comes again, at any agent.
    Replay(usize, usize),
    Damage(usize, u32),
    Pass {
        seconds: u64,
    },
    Revoke {
        at: usize,
        whom: usize,
    },
    /// A voucher told the key.
    Hold {
        at: usize,
        whom: usize,
    },
    Gate {
        at: usize,
        gate: LicenseGate,
    },
    Renew {
        at: usize,
        max_nodes: u32,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let agent = || prop_oneof![3 => 0..OTHER_CUSTOMER, 1 => 0..AGENTS];
    let some_agent = || prop::option::weighted(0.15, 0..AGENTS);
    let purpose = prop_oneof![Just(Purpose::Add), Just(Purpose::Join)];
    let gate =
        prop_oneof![5 => Just(LicenseGate::Open), 1 => Just(LicenseGate::ReadOnly), 1 => Just(LicenseGate::Suspended)];
    prop_oneof![
        6 => (agent(), agent(), purpose, some_agent(), some_agent())
            .prop_map(|(from, to, purpose, pinned, expected)| Step::Dial { from, to, purpose, pinned, expected }),
        40 => any::<usize>().prop_map(Step::Deliver),
        2 => any::<usize>().prop_map(Step::Lose),
        3 => any::<usize>().prop_map(Step::Duplicate),
        3 => (any::<usize>(), agent()).prop_map(|(pick, to)| Step::Replay(pick, to)),
        2 => (any::<usize>(), any::<u32>()).prop_map(|(pick, how)| Step::Damage(pick, how)),
        2 => prop_oneof![0u64..4, Just(15), Just(30), Just(31)].prop_map(|seconds| Step::Pass { seconds }),
        2 => (agent(), agent()).prop_map(|(at, whom)| Step::Revoke { at, whom }),
        1 => (agent(), agent()).prop_map(|(at, whom)| Step::Hold { at, whom }),
        1 => (agent(), gate).prop_map(|(at, gate)| Step::Gate { at, gate }),
        1 => (agent(), prop_oneof![4 => Just(10u32), 1 => 1u32..4]).prop_map(|(at, max_nodes)| Step::Renew { at, max_nodes }),
    ]
}

/// What is under way.
#[derive(Debug, Clone)]
enum Flight {
    /// `dial` is `None` where nobody waits for the answer.
    Request {
        dial: Option<usize>,
        to: usize,
        request: Request,
    },
    Answer {
        dial: usize,
        status: u16,
        body: Vec<u8>,
    },
    /// Responder `at` calls back.
    Reverse {
        at: usize,
        dial: Option<usize>,
        pending: PendingReverse,
    },
}

struct Dial {
    from: usize,
    machine: Initiator,
    target: Target,
    /// The call that is out.
    request: Option<Request>,
}

/// What an agent knows, in the terms of the operator; the machines see it as [`Held`].
#[derive(Debug, Clone, Default)]
struct Book {
    keys: BTreeMap<PeerId, PublicKey>,
    trusted: BTreeSet<PeerId>,
    revoked: BTreeSet<(PeerId, PublicKey)>,
}

impl Book {
    fn held(&self) -> Held {
        let mut held = Held::default();
        for (peer, key) in &self.keys {
            held.hold(*peer, *key);
        }
        for peer in &self.trusted {
            held.trust(*peer, self.keys[peer]);
        }
        for (peer, key) in &self.revoked {
            held.revoke(*peer, *key);
        }
        held
    }

    fn is_revoked(&self, peer: PeerId, key: PublicKey) -> bool {
        self.revoked.iter().any(|(p, k)| *p == peer || *k == key)
    }
}

/// A session as the responder opened it.
struct Opened {
    at: Mono,
    responder: usize,
    init: Init,
    response: InitResponse,
}

/// How often the interesting things happened.
#[derive(Debug, Default)]
struct Seen {
    done: usize,
    accepted: usize,
    readmitted: usize,
    refused: BTreeMap<Reason, usize>,
}

struct Network {
    world: World,
    books: Vec<Book>,
    dials: Vec<Dial>,
    flights: Vec<Flight>,
    sent: Vec<Request>,
    opened: BTreeMap<handshake::SessionId, Opened>,
    /// Sessions in which an honest machine of this agent made step 2.
    finished: BTreeMap<handshake::SessionId, (usize, Finish)>,
    /// Sessions that led the responder to trust.
    consented: BTreeSet<handshake::SessionId>,
    served: BTreeSet<handshake::Challenge>,
    seen: Seen,
}

impl Network {
    fn new() -> Self {
        let mut world = World::of(AGENTS);
        let mut rng = Rng::from_seed([8; 32]);
        let Local { license_id, customer_id, .. } = world.agents[0].local;
        let elsewhere = CustomerId::mint(WALL, &mut rng);
        world.agents[OTHER_CUSTOMER].license(LicenseId::mint(WALL, &mut rng), elsewhere, 10);
        world.agents[IMPOSTOR].local.peer_id = world.id(0);
        world.agents[IMPOSTOR].local.members = BTreeSet::from([world.id(0)]);
        let forged = Vendor::new("forger").issue(license_id, customer_id, 1_000);
        world.agents[FORGER].local.license = forged;
        world.agents.iter_mut().for_each(Agent::sign_record);
        Self {
            world,
            books: vec![Book::default(); AGENTS],
            dials: Vec::new(),
            flights: Vec::new(),
            sent: Vec::new(),
            opened: BTreeMap::new(),
            finished: BTreeMap::new(),
            consented: BTreeSet::new(),
            served: BTreeSet::new(),
            seen: Seen::default(),
        }
    }

    fn identity_of(&self, n: usize) -> (PeerId, PublicKey) {
        let local = &self.world.agents[n].local;
        (local.peer_id, local.key.public())
    }

    fn apply(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Dial { from, to, purpose, pinned, expected } => {
                let target = Target {
                    pinned_key: pinned.map(|n| self.identity_of(n).1),
                    expected_peer: expected.map(|n| self.identity_of(n).0),
                    purpose,
                    ..self.world.target(to)
                };
                let machine = Initiator::new(target.clone(), self.world.now);
                self.dials.push(Dial { from, machine, target, request: None });
                self.drive(self.dials.len() - 1)?;
            }
            Step::Deliver(pick) => {
                if let Some(flight) = self.pick(pick) {
                    self.arrive(flight)?;
                }
            }
            Step::Lose(pick) => match self.pick(pick) {
                Some(Flight::Request { dial: Some(dial), .. } | Flight::Answer { dial, .. }) => {
                    self.answer(dial, Err(DialFailure::Timeout))?;
                }
                Some(Flight::Reverse { at, dial, pending }) => {
                    let nothing =
                        ReverseAnswer { endpoint: pending.endpoints[0].clone(), result: Err(DialFailure::Timeout) };
                    self.confirm(at, dial, &pending, &nothing)?;
                }
                Some(Flight::Request { dial: None, .. }) | None => {}
            },
            Step::Duplicate(pick) => {
                if let Some(flight) = self.flights.get(pick % self.flights.len().max(1)).cloned() {
                    self.flights.push(match flight {
                        Flight::Request { to, request, .. } => Flight::Request { dial: None, to, request },
                        Flight::Reverse { at, pending, .. } => Flight::Reverse { at, dial: None, pending },
                        answer => answer,
                    });
                }
            }
            Step::Replay(pick, to) => {
                if let Some(request) = self.sent.get(pick % self.sent.len().max(1)).cloned() {
                    self.flights.push(Flight::Request { dial: None, to, request });
                }
            }
            Step::Damage(pick, how) => self.damage(pick, how),
            Step::Pass { seconds } => {
                self.world.now = self.world.now + secs(seconds);
                for n in 0..AGENTS {
                    self.world.agents[n].responder.handle_timeout(self.world.now);
                }
                for dial in 0..self.dials.len() {
                    self.dials[dial].machine.handle_timeout(self.world.now);
                    self.drive(dial)?;
                }
            }
            Step::Revoke { at, whom } => {
                let (peer, key) = self.identity_of(whom);
                if peer != self.world.id(at) {
                    self.books[at].trusted.remove(&peer);
                    self.books[at].revoked.insert((peer, key));
                    self.world.agents[at].local.members.remove(&peer);
                }
            }
            Step::Hold { at, whom } => {
                let (peer, key) = self.identity_of(whom);
                let book = &mut self.books[at];
                if !book.keys.contains_key(&peer) && !book.keys.values().any(|k| *k == key) {
                    book.keys.insert(peer, key);
                }
            }
            Step::Gate { at, gate } => self.world.agents[at].local.gate = gate,
            Step::Renew { at, max_nodes } => {
                if at != FORGER {
                    let agent = &mut self.world.agents[at];
                    let license = LicenseId::mint(WALL, &mut agent.rng);
                    agent.license(license, agent.local.customer_id, max_nodes);
                    agent.sign_record();
                }
            }
        }
        self.check()
    }

    fn pick(&mut self, pick: usize) -> Option<Flight> {
        let count = self.flights.len();
        (count > 0).then(|| self.flights.remove(pick % count))
    }

    /// Changes one field of something under way; what is no message any more stays as it was.
    fn damage(&mut self, pick: usize, how: u32) {
        let count = self.flights.len().max(1);
        match self.flights.get_mut(pick % count) {
            Some(Flight::Request { request, .. }) => {
                let Ok(mut value) = serde_json::from_slice::<Value>(&request.body()) else { return };
                change_one(&mut value, how);
                let changed = match &*request {
                    Request::Identity => None,
                    Request::Init(_) => serde_json::from_value(value).ok().map(Request::Init),
                    Request::Finish(_) => serde_json::from_value(value).ok().map(Request::Finish),
                };
                *request = changed.unwrap_or_else(|| request.clone());
            }
            Some(Flight::Answer { body, .. }) => {
                let Ok(mut value) = serde_json::from_slice::<Value>(body) else { return };
                change_one(&mut value, how);
                *body = value.to_string().into_bytes();
            }
            Some(Flight::Reverse { .. }) | None => {}
        }
    }

    fn arrive(&mut self, flight: Flight) -> Result<(), TestCaseError> {
        match flight {
            Flight::Request { dial, to, request } => self.serve(dial, to, request),
            Flight::Answer { dial, status, body } => {
                let Some(request) = self.dials[dial].request.clone() else { return Ok(()) };
                self.answer(dial, Ok(Reply::decode(&request, status, &body)))
            }
            Flight::Reverse { at, dial, pending } => {
                let Some(Site::Agent(n)) = self.world.sites.get(&pending.endpoints[0]).copied() else {
                    return Err(TestCaseError::fail("called back where nobody is"));
                };
                let result = Ok(self.world.agents[n].identity());
                let answer = ReverseAnswer { endpoint: pending.endpoints[0].clone(), result };
                self.confirm(at, dial, &pending, &answer)
            }
        }
    }

    /// Hands a reply to a machine. H6: at most one license is verified for it.
    fn answer(&mut self, dial: usize, reply: Result<Reply, DialFailure>) -> Result<(), TestCaseError> {
        let Dial { from, machine, request, .. } = &mut self.dials[dial];
        if request.take().is_none() {
            return Ok(());
        }
        let held = self.books[*from].held();
        let Agent { local, vendor, rng, .. } = &mut self.world.agents[*from];
        let before = vendor.verified.get();
        machine.handle_reply(Here { local, held: &held, licenses: vendor }, reply, self.world.now, rng);
        prop_assert!(vendor.verified.get() <= before + 1, "H6: one reply, several verifications");
        self.drive(dial)
    }

    /// Takes what a machine wants done.
    fn drive(&mut self, n: usize) -> Result<(), TestCaseError> {
        let Dial { from, machine, target, request } = &mut self.dials[n];
        let from = *from;
        if let Some(call) = machine.poll_transmit() {
            if let Request::Finish(finish) = &call.request {
                self.finished.insert(finish.session, (from, (**finish).clone()));
            }
            *request = Some(call.request.clone());
            self.sent.push(call.request.clone());
            let Some(Site::Agent(to)) = self.world.sites.get(&call.endpoint).copied() else {
                return Err(TestCaseError::fail("called where nobody is"));
            };
            self.flights.push(Flight::Request { dial: Some(n), to, request: call.request });
        }
        match machine.poll_event() {
            Some(Event::Done(accepted)) => {
                let purpose = target.purpose;
                prop_assert!(
                    target.pinned_key.is_none_or(|key| key == accepted.public_key),
                    "H1: another key than pinned"
                );
                prop_assert!(target.expected_peer.is_none_or(|peer| peer == accepted.peer_id), "H1: another peer");
                prop_assert!(!accepted.readmitted || purpose == Purpose::Add, "R4: readmitted without an operator");
                let both = self.consented.iter().any(|session| {
                    let (maker, _) = &self.finished[session];
                    let opened = &self.opened[session];
                    *maker == from && self.identity_of(opened.responder) == (accepted.peer_id, accepted.public_key)
                });
                prop_assert!(both, "H1: the initiator trusts a responder that has not consented");
                self.seen.done += 1;
                self.trust(from, &accepted)?;
            }
            Some(Event::Failed(failure)) => *self.seen.refused.entry(failure.reason).or_default() += 1,
            None => {}
        }
        Ok(())
    }

    fn serve(&mut self, dial: Option<usize>, to: usize, request: Request) -> Result<(), TestCaseError> {
        let refused = |r: Refusal| (r.reason.code().http_status(), serde_json::to_vec(&r.to_body()).unwrap());
        let (status, body) = match request {
            Request::Identity => (200, serde_json::to_vec(&self.world.agents[to].identity()).unwrap()),
            Request::Init(init) => match self.serve_init(to, &init)? {
                Ok(response) => (200, serde_json::to_vec(&response).unwrap()),
                Err(refusal) => refused(refusal),
            },
            Request::Finish(finish) => {
                let held = self.books[to].held();
                let Agent { local, vendor, responder, .. } = &mut self.world.agents[to];
                let before = vendor.verified.get();
                let here = Here { local, held: &held, licenses: vendor };
                let judged = responder.handle_finish(here, &finish, self.world.now);
                prop_assert!(vendor.verified.get() <= before + 1, "H6: one step 2, several verifications");
                match judged {
                    Ok(pending) => {
                        self.flights.push(Flight::Reverse { at: to, dial, pending });
                        return Ok(());
                    }
                    Err(refusal) => refused(refusal),
                }
            }
        };
        self.reply(to, dial, status, body)
    }

    fn serve_init(&mut self, to: usize, init: &Init) -> Result<Result<InitResponse, Refusal>, TestCaseError> {
        let held = self.books[to].held();
        let source = self.world.agents[init_source(&self.world, init)].address;
        let Agent { local, vendor, responder, rng, .. } = &mut self.world.agents[to];
        let before = vendor.verified.get();
        let here = Here { local, held: &held, licenses: vendor };
        let answer = responder.handle_init(here, source, init, self.world.now, rng);
        prop_assert_eq!(vendor.verified.get(), before, "H6: step 1 verified a license");
        if let Ok(response) = &answer {
            prop_assert!(responder::kept_bytes(init) <= 4096, "H6: a session of more than 4 KiB");
            let opened = Opened { at: self.world.now, responder: to, init: init.clone(), response: response.clone() };
            prop_assert!(self.opened.insert(response.session, opened).is_none(), "H2: a session id came twice");
        }
        Ok(answer)
    }

    /// H4: before step 2r nothing but ids and keys leaves the responder.
    fn reply(&mut self, at: usize, dial: Option<usize>, status: u16, body: Vec<u8>) -> Result<(), TestCaseError> {
        let text = String::from_utf8_lossy(&body);
        let local = &self.world.agents[at].local;
        let secret = local.license["signature"].as_str().unwrap_or("license");
        let members = local.members.iter().filter(|m| **m != local.peer_id).map(PeerId::to_string);
        let told = members.chain([secret.to_owned(), local.record.signature.to_string()]).find(|s| text.contains(s));
        prop_assert!(told.is_none() || status != 200, "H4: {told:?} left before the initiator was proven");
        if let Some(dial) = dial {
            self.flights.push(Flight::Answer { dial, status, body });
        }
        Ok(())
    }

    /// Step 2r. H2: a session serves once and for 30 s, a challenge once. H1, H4: only after the call back succeeded.
    fn confirm(
        &mut self,
        at: usize,
        dial: Option<usize>,
        pending: &PendingReverse,
        answer: &ReverseAnswer,
    ) -> Result<(), TestCaseError> {
        let (now, held) = (self.world.now, self.books[at].held());
        let Agent { local, vendor, responder, rng, .. } = &mut self.world.agents[at];
        let here = Here { local, held: &held, licenses: vendor };
        let (status, body) = match responder.confirm_reverse(here, &pending.session, answer, now, WALL, rng) {
            Err(refusal) => (refusal.reason.code().http_status(), serde_json::to_vec(&refusal.to_body()).unwrap()),
            Ok((response, accepted)) => {
                self.check_consent(at, pending, answer, &accepted)?;
                self.seen.accepted += 1;
                self.trust(at, &accepted)?;
                let FinishResponse { sealed } = &response;
                prop_assert!(!sealed.0.is_empty());
                (200, serde_json::to_vec(&response).unwrap())
            }
        };
        if let Some(dial) = dial {
            self.flights.push(Flight::Answer { dial, status, body });
        }
        Ok(())
    }

    fn check_consent(
        &mut self,
        at: usize,
        pending: &PendingReverse,
        answer: &ReverseAnswer,
        accepted: &Accepted,
    ) -> Result<(), TestCaseError> {
        let opened = &self.opened[&pending.session];
        prop_assert_eq!(opened.responder, at, "H2: a session of another responder");
        prop_assert!(
            self.world.now.saturating_since(opened.at) < SESSION_LIFETIME,
            "H2: a session of over 30 s served"
        );
        prop_assert!(self.consented.insert(pending.session), "H2: a session served twice");
        prop_assert!(self.served.insert(opened.init.challenge), "H2: a challenge served twice");
        let called_back = answer.result.as_ref().is_ok_and(|identity| pending.is_answered_by(identity));
        prop_assert!(called_back, "H4: accepted without a call back");
        let Some((maker, finish)) = self.finished.get(&pending.session) else {
            return Err(TestCaseError::fail("H1: accepted an initiator that never made step 2"));
        };
        prop_assert_eq!(self.identity_of(*maker), (accepted.peer_id, accepted.public_key), "H1: another key signed");
        let (init, response) = (&opened.init, &opened.response);
        let (mine, theirs) = (initiator_transcript(init, response), responder_transcript(init, response));
        prop_assert!(mine.verify(&accepted.public_key, &finish.signature), "H3");
        prop_assert!(!theirs.verify(&accepted.public_key, &finish.signature), "H3: passes as the responder's");
        prop_assert!(!mine.verify(&response.public_key, &response.signature), "H3: passes as the initiator's");
        Ok(())
    }

    /// H1 at the moment of trust, then stores it.
    fn trust(&mut self, at: usize, accepted: &Accepted) -> Result<(), TestCaseError> {
        let Accepted { peer_id: peer, public_key: key, .. } = *accepted;
        let local = &self.world.agents[at].local;
        let book = &mut self.books[at];
        let was_trusted = book.trusted.contains(&peer);
        prop_assert!(at != OTHER_CUSTOMER, "H1: nobody shares its customer");
        for stranger in [OTHER_CUSTOMER, FORGER] {
            prop_assert!(peer != self.world.agents[stranger].local.peer_id, "H1: no common genuine license");
        }
        match local.gate {
            LicenseGate::Open => {}
            LicenseGate::ReadOnly => prop_assert!(was_trusted, "H1: a new peer past grace"),
            LicenseGate::Suspended => return Err(TestCaseError::fail("H1: a handshake while suspended")),
        }
        let revoked = book.is_revoked(peer, key);
        prop_assert_eq!(revoked, accepted.readmitted, "R4: a revoked identity came back by itself");
        prop_assert!(!revoked || book.revoked.contains(&(peer, key)), "R4: old id with new key, or the reverse");
        prop_assert!(book.keys.get(&peer).is_none_or(|k| *k == key), "H1: the key of an id changed");
        prop_assert!(!book.keys.iter().any(|(p, k)| *k == key && *p != peer), "H1: a key under a second id");
        // One that counts this agent already adds nobody (cluster.md §3).
        if !was_trusted && !accepted.members.contains(&local.peer_id) {
            let union: BTreeSet<_> =
                local.members.iter().chain(&accepted.members).chain([&peer, &local.peer_id]).collect();
            prop_assert!(union.len() <= local.max_nodes as usize, "H1: more nodes than the license allows");
        }
        self.seen.readmitted += usize::from(revoked);
        book.revoked.remove(&(peer, key));
        book.keys.insert(peer, key);
        book.trusted.insert(peer);
        self.world.agents[at].local.members.insert(peer);
        Ok(())
    }

    /// What holds after every step.
    fn check(&self) -> Result<(), TestCaseError> {
        for agent in &self.world.agents {
            prop_assert!(agent.responder.open_sessions() <= SESSIONS_MAX, "H2: more than 64 sessions");
        }
        Ok(())
    }

    /// H5: when all is over no session is left, and no step 2 of any session proves anything.
    fn finish(mut self) -> Result<Seen, TestCaseError> {
        self.world.now = self.world.now + SESSION_LIFETIME;
        for n in 0..AGENTS {
            let now = self.world.now;
            prop_assert_eq!(self.world.agents[n].open_sessions_after_expiry(now), 0, "H5: a session stays");
        }
        for (session, (_, finish)) in &self.finished {
            let Some(opened) = self.opened.get(session) else { continue };
            let held = self.books[opened.responder].held();
            let Agent { local, vendor, responder, .. } = &mut self.world.agents[opened.responder];
            let here = Here { local, held: &held, licenses: vendor };
            let again = responder.handle_finish(here, finish, self.world.now);
            prop_assert_eq!(again.unwrap_err().reason, Reason::SessionExpired, "H5: keys outlive their session");
        }
        Ok(self.seen)
    }
}

/// The agent whose endpoint the message names: where it is sent from.
fn init_source(world: &World, init: &Init) -> usize {
    match init.endpoints.first().and_then(|e| world.sites.get(e)) {
        Some(Site::Agent(n)) => *n,
        _ => 0,
    }
}

fn change_one(value: &mut Value, how: u32) {
    if let Some(fields) = value.as_object_mut() {
        let count = fields.len().max(1);
        if let Some((_, field)) = fields.iter_mut().nth(how as usize % count) {
            hostile::mutate(field, how / 16);
        }
    }
}

fn run(steps: Vec<Step>) -> Result<Seen, TestCaseError> {
    let mut network = Network::new();
    for step in steps {
        network.apply(step)?;
    }
    network.finish()
}

proptest! {
    #![proptest_config(ProptestConfig::default())]

    #[test]
    fn machine_keeps_h1_to_h6_whatever_the_network_and_the_operators_do(
        steps in prop::collection::vec(step(), 1..STEPS_MAX),
    ) {
        run(steps)?;
    }
}

#[test]
fn machine_reaches_trust_readmission_and_the_refusals_that_it_is_about() {
    let mut runner = TestRunner::deterministic();
    let steps = prop::collection::vec(step(), STEPS_MAX * 3);
    let mut all = Seen::default();
    for _ in 0..40 {
        let seen = run(steps.new_tree(&mut runner).unwrap().current()).unwrap();
        all.done += seen.done;
        all.accepted += seen.accepted;
        all.readmitted += seen.readmitted;
        for (reason, count) in seen.refused {
            *all.refused.entry(reason).or_default() += count;
        }
    }
    assert!(all.done > 20 && all.accepted > all.done && all.readmitted > 0, "{all:?}");
    let meant = [
        Reason::ConnectionTimeout,
        Reason::UnexpectedPeer,
        Reason::LicenseMismatch,
        Reason::LicenseInvalid,
        Reason::InvalidSignature,
        Reason::KeyChanged,
        Reason::NodeLimitExceeded,
        Reason::AlreadyExists,
        Reason::LicenseReadOnly,
        Reason::LicenseSuspended,
        Reason::OwnId,
        Reason::Revoked,
    ];
    let missing: Vec<_> = meant.into_iter().filter(|reason| !all.refused.contains_key(reason)).collect();
    assert_eq!(missing, [], "{:?}", all.refused);
}
