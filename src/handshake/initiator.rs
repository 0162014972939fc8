//! The side that calls: up to three attempts, each over all endpoints in order.

use super::admission::{self, Claim, Licensed, Standing};
use super::failure::{DialFailure, Failure, Reason, Rejection, Tried};
use super::responder::bound_to_finish;
use super::seal::{self, DirectionKey, Ephemeral};
use super::{Accepted, Here};
use crate::model::{ClusterId, Endpoint, LicenseId, Mono, PeerId, PublicKey, Rng};
use crate::wire::handshake::{
    Challenge, ErrorBody, FINISH_PATH, Finish, FinishResponse, IDENTITY_PATH, INIT_PATH, Identity, Init, InitResponse,
    PROTOCOL, ResponderPart, SessionId, bounded_endpoints, decode, initiator_transcript, responder_transcript,
};
use crate::wire::record::Voucher;
use std::time::Duration;

/// When the attempts begin, after the first; one that is still running delays the next.
pub const ATTEMPT_OFFSETS: [Duration; 3] = [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(3)];
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// No endpoint is called later than this after the start: with the last call, `peers add` stays below its 60 s (api.md §2).
const LAST_CALL_AFTER: Duration = Duration::from_secs(50);

/// Why the handshake is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// `peers add` by an operator: a revoked peer is taken back, a trusted one is an error.
    Add,
    /// By the agent itself, after discovery or to renew trust: a revoked peer is refused.
    Join,
}

/// Whom to call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// In order; those beyond what a message holds (16) are left out.
    pub endpoints: Vec<Endpoint>,
    /// `peers add --public-key`.
    pub pinned_key: Option<PublicKey>,
    /// The peer that should answer; `None` if whoever answers is meant.
    pub expected_peer: Option<PeerId>,
    pub purpose: Purpose,
}

/// One HTTP call that the driver makes; its outcome comes back by [`Initiator::handle_reply`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub endpoint: Endpoint,
    pub request: Request,
    pub connect_timeout: Duration,
    pub answer_timeout: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    Identity,
    Init(Box<Init>),
    Finish(Box<Finish>),
}

impl Request {
    pub fn method(&self) -> &'static str {
        if matches!(self, Request::Identity) { "GET" } else { "POST" }
    }

    pub fn path(&self) -> &'static str {
        match self {
            Request::Identity => IDENTITY_PATH,
            Request::Init(_) => INIT_PATH,
            Request::Finish(_) => FINISH_PATH,
        }
    }

    /// The JSON body; empty for a GET.
    pub fn body(&self) -> Vec<u8> {
        let json = match self {
            Request::Identity => return Vec::new(),
            Request::Init(init) => serde_json::to_vec(init),
            Request::Finish(finish) => serde_json::to_vec(finish),
        };
        json.expect("messages of strings and small integers serialize")
    }
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    Identity(Identity),
    Init(InitResponse),
    Finish(FinishResponse),
    Refused(ErrorBody),
    /// Not in any documented form.
    Unreadable,
}

impl Reply {
    /// Reads the answer to `request`.
    pub fn decode(request: &Request, http_status: u16, body: &[u8]) -> Reply {
        let read = if (200..300).contains(&http_status) {
            match request {
                Request::Identity => decode(body).map(Reply::Identity),
                Request::Init(_) => decode(body).map(Reply::Init),
                Request::Finish(_) => decode(body).map(Reply::Finish),
            }
        } else {
            decode(body).map(Reply::Refused)
        };
        read.unwrap_or(Reply::Unreadable)
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Both sides trust each other.
    Done(Box<Accepted>),
    Failed(Failure),
}

enum Step {
    /// Between attempts.
    Waiting {
        due: Mono,
    },
    Identity,
    Init(Box<Opening>),
    Finish(Box<Closing>),
    Over,
}

/// Step 1 is sent.
struct Opening {
    ephemeral: Ephemeral,
    identity: Known,
    init: Box<Init>,
}

/// Step 2 is sent.
struct Closing {
    key: DirectionKey,
    session: SessionId,
    response: InitResponse,
}

/// An identity without holes.
#[derive(Clone, Copy)]
struct Known {
    peer_id: PeerId,
    public_key: PublicKey,
    license_id: LicenseId,
    cluster_id: ClusterId,
}

impl Known {
    fn from(identity: &Identity) -> Option<Self> {
        Some(Self {
            peer_id: identity.peer_id?,
            public_key: identity.public_key?,
            license_id: identity.license_id?,
            cluster_id: identity.cluster_id?,
        })
    }
}

/// One handshake of this agent with one target.
pub struct Initiator {
    target: Target,
    started: Mono,
    attempt: usize,
    endpoint: usize,
    step: Step,
    tried: Vec<Tried>,
    outbox: Option<Call>,
    event: Option<Event>,
    last_now: Mono,
}

impl Initiator {
    /// Queues the first call at once.
    pub fn new(mut target: Target, now: Mono) -> Self {
        target.endpoints = bounded_endpoints(&target.endpoints);
        let mut initiator = Self {
            target,
            started: now,
            attempt: 0,
            endpoint: 0,
            step: Step::Over,
            tried: Vec::new(),
            outbox: None,
            event: None,
            last_now: now,
        };
        initiator.begin_endpoint();
        initiator
    }

    pub fn poll_transmit(&mut self) -> Option<Call> {
        self.outbox.take()
    }

    pub fn poll_event(&mut self) -> Option<Event> {
        self.event.take()
    }

    /// The next attempt, while one is due. While a call is out, its timeouts are the driver's.
    pub fn poll_timeout(&self) -> Option<(Mono, &'static str)> {
        if self.outbox.is_some() || self.event.is_some() {
            return Some((self.last_now, "output is queued"));
        }
        match self.step {
            Step::Waiting { due } => Some((due, "next handshake attempt")),
            _ => None,
        }
    }

    pub fn handle_timeout(&mut self, now: Mono) {
        self.last_now = now;
        if let Step::Waiting { due } = self.step
            && now >= due
        {
            self.begin_endpoint();
        }
    }

    /// The outcome of the call that is out; ignored if none is.
    pub fn handle_reply(&mut self, here: Here<'_>, reply: Result<Reply, DialFailure>, now: Mono, rng: &mut Rng) {
        self.last_now = now;
        if matches!(self.step, Step::Waiting { .. } | Step::Over) || self.outbox.is_some() {
            return;
        }
        let Some(endpoint) = self.target.endpoints.get(self.endpoint).cloned() else { return };
        let step = std::mem::replace(&mut self.step, Step::Over);
        let outcome = match (step, reply) {
            (_, Err(failure)) => Err(Rejection::from(self.dial_reason(failure))),
            (_, Ok(Reply::Refused(body))) => return self.fail(Tried::remote(endpoint, &body), now),
            (Step::Identity, Ok(Reply::Identity(identity))) => self.take_identity(here, &identity, rng),
            (Step::Init(opening), Ok(Reply::Init(response))) => self.take_init(here, *opening, response, rng),
            (Step::Finish(closing), Ok(Reply::Finish(response))) => self.take_finish(here, &closing, &response),
            _ => Err(Reason::UnexpectedAnswer.into()),
        };
        if let Err(rejection) = outcome {
            self.fail(Tried::forward(endpoint, rejection), now);
        }
    }

    fn begin_endpoint(&mut self) {
        match self.target.endpoints.get(self.endpoint) {
            Some(_) => self.call(Step::Identity, Request::Identity),
            None => self.event = Some(Event::Failed(Failure::of_attempt(self.attempt, Vec::new()))),
        }
    }

    fn call(&mut self, step: Step, request: Request) {
        let Some(endpoint) = self.target.endpoints.get(self.endpoint).cloned() else { return };
        self.step = step;
        self.outbox =
            Some(Call { endpoint, request, connect_timeout: CONNECT_TIMEOUT, answer_timeout: ANSWER_TIMEOUT });
    }

    /// Next endpoint, next attempt, or the end.
    fn fail(&mut self, tried: Tried, now: Mono) {
        let ends = tried.reason.is_definite() || now >= self.started + LAST_CALL_AFTER;
        self.tried.push(tried);
        self.endpoint += 1;
        if !ends && self.endpoint < self.target.endpoints.len() {
            return self.begin_endpoint();
        }
        self.attempt += 1;
        match ATTEMPT_OFFSETS.get(self.attempt) {
            Some(offset) if !ends => {
                self.endpoint = 0;
                self.tried.clear();
                self.step = Step::Waiting { due: self.started + *offset };
                self.handle_timeout(now);
            }
            _ => {
                self.step = Step::Over;
                let tried = std::mem::take(&mut self.tried);
                self.event = Some(Event::Failed(Failure::of_attempt(self.attempt, tried)));
            }
        }
    }

    /// An operator's endpoint that leads here is a mistake to be told at once; one from gossip may mean another host
    /// where it comes from.
    fn dial_reason(&self, failure: DialFailure) -> Reason {
        match failure {
            DialFailure::NotAnotherHost if self.target.purpose == Purpose::Add => Reason::OwnId,
            other => other.into(),
        }
    }

    fn readmits(&self) -> bool {
        self.target.purpose == Purpose::Add
    }

    /// Step 0 is answered: is this the peer that is meant, and may it become trusted?
    fn take_identity(&mut self, here: Here<'_>, identity: &Identity, rng: &mut Rng) -> Result<(), Rejection> {
        let known = Known::from(identity).ok_or(Reason::NotBootstrapped)?;
        let Known { peer_id, public_key, .. } = known;
        if self.target.expected_peer.is_some_and(|expected| expected != peer_id) {
            return Err(Reason::UnexpectedPeer.into());
        }
        if self.target.pinned_key.is_some_and(|pinned| pinned != public_key) {
            return Err(Reason::KeyChanged.into());
        }
        let standing = admission::identity(here, &peer_id, &public_key, self.readmits())?;
        if standing.trusted && self.target.purpose == Purpose::Add {
            return Err(Reason::AlreadyExists.into());
        }
        admission::room_for_one(here, peer_id, standing)?;

        let local = here.local;
        let ephemeral = Ephemeral::mint(rng);
        let init = Box::new(Init {
            protocol: PROTOCOL,
            peer_id: local.peer_id,
            public_key: local.key.public(),
            challenge: Challenge(rng.bytes()),
            ephemeral: ephemeral.public(),
            license_id: local.license_id,
            cluster_id: local.cluster_id,
            endpoints: bounded_endpoints(&local.endpoints),
            target_endpoints: self.target.endpoints.clone(),
            api_port: local.api_port,
        });
        let opening = Opening { ephemeral, identity: known, init: init.clone() };
        self.call(Step::Init(Box::new(opening)), Request::Init(init));
        Ok(())
    }

    /// Step 1r: the responder has proven its key; now this side proves its own and shows its license, under seal.
    fn take_init(
        &mut self,
        here: Here<'_>,
        opening: Opening,
        response: InitResponse,
        rng: &mut Rng,
    ) -> Result<(), Rejection> {
        let Opening { ephemeral, identity, init } = opening;
        if response.peer_id != identity.peer_id {
            return Err(Reason::UnexpectedPeer.into());
        }
        if response.public_key != identity.public_key {
            return Err(Reason::KeyChanged.into());
        }
        if (response.license_id, response.cluster_id) != (identity.license_id, identity.cluster_id) {
            return Err(Reason::UnexpectedAnswer.into());
        }
        if !responder_transcript(&init, &response).verify(&identity.public_key, &response.signature) {
            return Err(Reason::InvalidSignature.into());
        }
        let keys = ephemeral.agree(&response.ephemeral, &init, &response).ok_or(Reason::InvalidSignature)?;
        let signature = initiator_transcript(&init, &response).sign(&here.local.key);
        let bound = bound_to_finish(&response.session, &signature);
        let sealed = keys.to_responder.seal(&here.local.sealed_part(), &bound, rng)?;
        let finish = Box::new(Finish { session: response.session, signature, sealed });
        let closing = Closing { key: keys.to_initiator, session: response.session, response };
        self.call(Step::Finish(Box::new(closing)), Request::Finish(finish));
        Ok(())
    }

    /// Step 2r: the responder's license, members, record and voucher.
    fn take_finish(&mut self, here: Here<'_>, closing: &Closing, reply: &FinishResponse) -> Result<(), Rejection> {
        let Closing { key, session, response } = closing;
        let plain = key.open(&reply.sealed, &session.0).ok_or(Reason::InvalidSignature)?;
        let ResponderPart { common, voucher } = seal::read(&plain)?;
        let standing = admission::identity(here, &response.peer_id, &response.public_key, self.readmits())?;
        let claim =
            Claim { peer_id: response.peer_id, public_key: response.public_key, license_id: response.license_id };
        let responder = admission::license(here, claim, common)?;
        responder.node_limit(here, standing)?;
        let body = responder.record()?;
        let about_me = voucher.subject_peer_id == here.local.peer_id
            && voucher.subject_public_key == here.local.key.public()
            && voucher.customer_id == here.local.customer_id
            && voucher.issuer_peer_id == response.peer_id;
        if !about_me || !voucher.transcript().verify(&response.public_key, &voucher.signature) {
            return Err(Rejection { reason: Reason::InvalidSignature, cause: Some("the voucher is void".into()) });
        }
        self.step = Step::Over;
        let accepted = self.accepted(here, response, standing, responder, body.endpoints, voucher);
        self.event = Some(Event::Done(Box::new(accepted)));
        Ok(())
    }

    fn accepted(
        &self,
        here: Here<'_>,
        response: &InitResponse,
        standing: Standing,
        responder: Licensed,
        own_list: Vec<Endpoint>,
        voucher: Voucher,
    ) -> Accepted {
        let max_nodes = responder.max_nodes();
        let part = responder.into_part();
        Accepted {
            peer_id: response.peer_id,
            public_key: response.public_key,
            endpoints: if own_list.is_empty() { self.target.endpoints.clone() } else { own_list },
            record: part.record,
            members: part.members,
            license_id: response.license_id,
            max_nodes,
            license_differs: response.license_id != here.local.license_id,
            cluster_id: response.cluster_id,
            own_endpoints: voucher.subject_endpoints.clone(),
            voucher,
            readmitted: standing.readmitted,
        }
    }
}
