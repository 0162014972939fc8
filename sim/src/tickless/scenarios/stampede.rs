//! A thousand agents join one, while strangers flood its handshake: the two machines of the handshake, without a world
//! around them, because a thousand members would go on to join each other.

use super::stage::Stage;
use arctic::{
    handshake::{
        Call, DialFailure, Event, Held, Here, Initiator, LicenseGate, Local, Purpose, Reply, Request, Responder,
        ReverseAnswer, SESSIONS_MAX, Target,
    },
    license::{LicenseDocument, TrustRoots},
    model::{ApiAccess, ClusterId, DataPorts, Endpoint, Mono, PeerId, Rng, SigningKey, UnixTime, X25519Public},
    wire::{
        handshake::{Challenge, Finish, Identity, Init, PROTOCOL, default_api_port},
        record::{PeerBody, Record, kind},
    },
};
use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

const GUESTS: usize = 1000;
const BOUND: Duration = Duration::from_secs(60);
/// Between two first steps of strangers.
const FLOOD_INTERVAL: Duration = Duration::from_millis(5);
const STRANGERS: u64 = 5000;
const LATENCY_MAX_MS: u64 = 40;
/// After a failure the operator tries again within so long.
const PATIENCE_MAX_MS: u64 = 8000;
const WALL: UnixTime = UnixTime::from_secs(1_900_000_000);

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Begin(usize),
    Send(usize),
    Arrive(usize),
    Flood,
}

struct Guest {
    local: Local,
    source: IpAddr,
    machine: Option<Initiator>,
    call: Option<Call>,
    joined: bool,
}

struct Host {
    local: Local,
    held: Held,
    responder: Responder,
}

/// All join within the bound, and the responder holds no more sessions than it may.
pub fn thousand_join_one(stage: &mut Stage) {
    let license = stage.world.license(0, WALL, Duration::from_secs(365 * 24 * 3600));
    let roots = stage.world.roots.clone();
    let rng = &mut stage.rng.fork();
    let mut host = Host { local: local(0, &license, rng), held: Held::default(), responder: Responder::new() };
    let mut guests: Vec<Guest> = (1..=GUESTS).map(|n| guest(n, &license, rng)).collect();
    let mut queue = BinaryHeap::new();
    guests.iter().enumerate().for_each(|(n, _)| queue.push(Reverse((Mono::from_ms(rng.below(2000)), Due::Begin(n)))));
    queue.push(Reverse((Mono::from_ms(0), Due::Flood)));
    let (mut now, mut joined, mut most) = (Mono::default(), 0, 0);
    while let Some(Reverse((at, due))) = queue.pop() {
        now = at;
        if joined == GUESTS || now - Mono::default() > BOUND {
            break;
        }
        let soon = |rng: &mut Rng| now + Duration::from_millis(1 + rng.below(LATENCY_MAX_MS));
        match due {
            Due::Flood => {
                flood(&mut host, &roots, now, rng);
                queue.push(Reverse((now + FLOOD_INTERVAL, Due::Flood)));
            }
            Due::Begin(n) => {
                guests[n].machine = Some(Initiator::new(target(), now));
                queue.push(Reverse((now, Due::Send(n))));
            }
            Due::Send(n) => {
                let Some(machine) = guests[n].machine.as_mut() else { continue };
                machine.handle_timeout(now);
                let call = machine.poll_transmit();
                queue.push(Reverse(match (&call, machine.poll_timeout()) {
                    (Some(_), _) => (soon(rng), Due::Arrive(n)),
                    (None, Some((at, _))) => (at.max(now), Due::Send(n)),
                    (None, None) => (now, Due::Begin(n)),
                }));
                guests[n].call = call;
            }
            Due::Arrive(n) => {
                let Some(call) = guests[n].call.take() else { continue };
                let reply = host.serve(&guests[n], &call.request, &roots, now, rng);
                let guest = &mut guests[n];
                let held = Held::default();
                let here = Here { local: &guest.local, held: &held, licenses: &roots };
                let Some(machine) = guest.machine.as_mut() else { continue };
                machine.handle_reply(here, reply, now, rng);
                let next = match machine.poll_event() {
                    Some(Event::Done(_)) => {
                        (guest.joined, guest.machine) = (true, None);
                        joined += 1;
                        continue;
                    }
                    Some(Event::Failed(_)) => (now + Duration::from_millis(rng.below(PATIENCE_MAX_MS)), Due::Begin(n)),
                    None => (soon(rng), Due::Send(n)),
                };
                queue.push(Reverse(next));
            }
        }
        most = most.max(host.responder.open_sessions());
    }
    stage.demand("H2", most <= SESSIONS_MAX, || format!("{most} sessions were open at once"));
    stage.demand("H2", joined == GUESTS, || format!("{joined} of {GUESTS} joined by {now:?}"));
    let line = format!("{joined} joined within {} ms, at most {most} sessions", (now - Mono::default()).as_millis());
    stage.world.trace.line(stage.world.now, format_args!("{line}"));
}

impl Host {
    /// One call of a guest, and the call back within it.
    fn serve(
        &mut self,
        guest: &Guest,
        request: &Request,
        roots: &TrustRoots,
        now: Mono,
        rng: &mut Rng,
    ) -> Result<Reply, DialFailure> {
        let Self { local, held, responder } = self;
        let here = Here { local, held, licenses: roots };
        let answered = match request {
            Request::Identity => Ok(Reply::Identity(identity(local))),
            Request::Init(init) => responder.handle_init(here, guest.source, init, now, rng).map(Reply::Init),
            Request::Finish(finish) => self.finish(guest, finish, roots, now, rng),
        };
        Ok(answered.unwrap_or_else(|refusal| Reply::Refused(refusal.to_body())))
    }

    fn finish(
        &mut self,
        guest: &Guest,
        finish: &Finish,
        roots: &TrustRoots,
        now: Mono,
        rng: &mut Rng,
    ) -> Result<Reply, arctic::handshake::Refusal> {
        let Self { local, held, responder } = self;
        let here = Here { local, held, licenses: roots };
        let pending = responder.handle_finish(here, finish, now)?;
        let answer = ReverseAnswer { endpoint: pending.endpoints[0].clone(), result: Ok(identity(&guest.local)) };
        let (response, accepted) = responder.confirm_reverse(here, &pending.session, &answer, now, WALL, rng)?;
        held.trust(accepted.peer_id, accepted.public_key);
        local.members.insert(accepted.peer_id);
        Ok(Reply::Finish(response))
    }
}

/// First steps of someone who never makes a second.
fn flood(host: &mut Host, roots: &TrustRoots, now: Mono, rng: &mut Rng) {
    let init = Init {
        protocol: PROTOCOL,
        peer_id: PeerId::mint(WALL, rng),
        public_key: SigningKey::from_seed(rng.bytes()).public(),
        challenge: Challenge(rng.bytes()),
        ephemeral: X25519Public(rng.bytes()),
        license_id: host.local.license_id,
        cluster_id: host.local.cluster_id,
        endpoints: Vec::new(),
        target_endpoints: Vec::new(),
        api_port: default_api_port(),
    };
    let source = IpAddr::V4(Ipv4Addr::from_bits(0xc612_0000 + rng.below(STRANGERS) as u32));
    let here = Here { local: &host.local, held: &host.held, licenses: roots };
    drop(host.responder.handle_init(here, source, &init, now, rng));
}

fn identity(local: &Local) -> Identity {
    Identity {
        peer_id: Some(local.peer_id),
        public_key: Some(local.key.public()),
        license_id: Some(local.license_id),
        cluster_id: Some(local.cluster_id),
        version: "v0.1.0".into(),
    }
}

fn target() -> Target {
    Target { endpoints: vec![named(0)], pinned_key: None, expected_peer: None, purpose: Purpose::Add }
}

fn named(n: usize) -> Endpoint {
    Endpoint::new(&format!("g{n}.example.net"), 8080).expect("a host name")
}

fn guest(n: usize, license: &Arc<LicenseDocument>, rng: &mut Rng) -> Guest {
    let source = IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + n as u32));
    Guest { local: local(n, license, rng), source, machine: None, call: None, joined: false }
}

fn local(n: usize, license: &Arc<LicenseDocument>, rng: &mut Rng) -> Local {
    let key = SigningKey::from_seed(rng.bytes());
    let peer_id = PeerId::mint(WALL, rng);
    let body = PeerBody {
        name: format!("g{n}"),
        public_key: key.public(),
        x25519_key: key.x25519_public(),
        endpoints: vec![named(n)],
        data_ports: DataPorts::default(),
        api_access: ApiAccess::Public,
        version: "v0.1.0".into(),
        license_id: license.license_id(),
        created_at: WALL,
    };
    let body = serde_json::to_value(body).expect("plain JSON");
    let record = Record::sign(&key, peer_id, kind::PEER, &peer_id.to_string(), 1, body).expect("a small record");
    Local {
        peer_id,
        key,
        license: license.as_value().clone(),
        license_id: license.license_id(),
        customer_id: license.customer_id(),
        max_nodes: license.max_nodes(),
        cluster_id: ClusterId::mint(WALL, rng),
        endpoints: vec![named(n)],
        api_port: default_api_port(),
        record,
        members: BTreeSet::from([peer_id]),
        gate: LicenseGate::Open,
    }
}
