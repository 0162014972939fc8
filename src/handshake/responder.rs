//! The side that is called.

use super::admission::{self, Claim, Licensed};
use super::failure::{DialFailure, Reason, Refusal, Rejection};
use super::seal::{self, DirectionKey, Ephemeral, SessionKeys};
use super::sessions::{Session, Sessions, SourcePrefix};
use super::{Accepted, Here, voucher};
use crate::model::{Endpoint, Mono, PeerId, PublicKey, Rng, Signature, UnixTime};
use crate::planted::{Bug, planted};
use crate::wire::handshake::{
    Challenge, Finish, FinishResponse, Identity, Init, InitResponse, InitiatorPart, Message, ResponderPart, SessionId,
    initiator_transcript, responder_transcript,
};
use crate::wire::sign::Transcript;
use std::{net::IpAddr, time::Duration};

/// Time for the whole call back, over all endpoints: the initiator waits 5 s for the answer to step 2.
pub const REVERSE_BUDGET: Duration = Duration::from_secs(4);

/// A proven initiator that must now be reached at its own endpoints: `GET /v1/cluster/identity`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingReverse {
    pub session: SessionId,
    pub peer_id: PeerId,
    pub public_key: PublicKey,
    /// To be dialled in order, all within [`REVERSE_BUDGET`]; never empty.
    pub endpoints: Vec<Endpoint>,
}

impl PendingReverse {
    /// Whether the right peer answered; if not, the next endpoint is worth a try.
    pub fn is_answered_by(&self, identity: &Identity) -> bool {
        identity.peer_id == Some(self.peer_id) && identity.public_key == Some(self.public_key)
    }
}

/// How the call back ended, at the endpoint that decided it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReverseAnswer {
    pub endpoint: Endpoint,
    pub result: Result<Identity, DialFailure>,
}

struct Content {
    init: Init,
    source: IpAddr,
    phase: Phase,
}

enum Phase {
    /// Step 1r is sent; step 2 is awaited.
    Opened { keys: SessionKeys, transcript: Transcript },
    /// The initiator is proven; the call back is under way.
    Reversing { reply_key: DirectionKey, initiator: Box<Licensed> },
}

/// All sessions that others have opened with this agent.
pub struct Responder {
    sessions: Sessions<Content>,
}

impl Default for Responder {
    fn default() -> Self {
        Self::new()
    }
}

impl Responder {
    pub fn new() -> Self {
        Self { sessions: Sessions::new() }
    }

    /// Sessions in use.
    pub fn open_sessions(&self) -> usize {
        self.sessions.len()
    }

    pub fn handle_timeout(&mut self, now: Mono) {
        self.sessions.expire(now);
    }

    pub fn poll_timeout(&self) -> Option<(Mono, &'static str)> {
        Some((self.sessions.next_expiry()?, "handshake session expires"))
    }

    /// Step 1. Opens a session; nothing but ids and keys is told.
    pub fn handle_init(
        &mut self,
        here: Here<'_>,
        source: IpAddr,
        init: &Init,
        now: Mono,
        rng: &mut Rng,
    ) -> Result<InitResponse, Refusal> {
        self.sessions.expire(now);
        init.check()?;
        let standing = admission::identity(here, &init.peer_id, &init.public_key, false).map_err(Refusal::forward)?;
        admission::room_for_one(here, init.peer_id, standing).map_err(Refusal::forward)?;
        if self.sessions.knows(&init.challenge) {
            return Err(Refusal::forward(Reason::SessionExpired));
        }

        let local = here.local;
        let ephemeral = Ephemeral::mint(rng);
        let mut response = InitResponse {
            session: SessionId(rng.bytes()),
            peer_id: local.peer_id,
            public_key: local.key.public(),
            challenge2: Challenge(rng.bytes()),
            ephemeral: ephemeral.public(),
            license_id: local.license_id,
            cluster_id: local.cluster_id,
            signature: Signature::from_bytes([0; 64]),
        };
        response.signature = responder_transcript(init, &response).sign(&local.key);
        let keys = ephemeral
            .agree(&init.ephemeral, init, &response)
            .ok_or_else(|| Refusal::forward(Reason::InvalidSignature))?;

        let source_prefix = SourcePrefix::from(source);
        if !self.sessions.make_room(source_prefix, standing.trusted) {
            return Err(Refusal::forward(Reason::Busy));
        }
        let phase = Phase::Opened { keys, transcript: initiator_transcript(init, &response) };
        let content = Content { init: init.clone(), source, phase };
        self.sessions.open(response.session, source_prefix, standing.trusted, init.challenge, content, now);
        Ok(response)
    }

    /// Step 2. Only who holds the session's keys can use the session up; everyone else leaves it as it was.
    pub fn handle_finish(&mut self, here: Here<'_>, finish: &Finish, now: Mono) -> Result<PendingReverse, Refusal> {
        self.sessions.expire(now);
        finish.check()?;
        let expired = || Refusal::forward(Reason::SessionExpired);
        let Some(Session { content: Content { phase: Phase::Opened { keys, .. }, .. }, .. }) =
            self.sessions.get(&finish.session)
        else {
            return Err(expired());
        };
        let plain = keys
            .to_responder
            .open(&finish.sealed, &bound_to_finish(&finish.session, &finish.signature))
            .ok_or_else(|| Refusal::forward(Reason::InvalidSignature))?;

        let mut session = self.sessions.take(&finish.session, now).ok_or_else(expired)?;
        let Phase::Opened { keys, transcript } = session.content.phase else { return Err(expired()) };
        let part: InitiatorPart = seal::read(&plain)?;
        let initiator = prove(here, &session.content.init, &transcript, &finish.signature, part)?;

        let init = &session.content.init;
        let pending = PendingReverse {
            session: finish.session,
            peer_id: init.peer_id,
            public_key: init.public_key,
            endpoints: dial_back(init, session.content.source)?,
        };
        session.content.phase = Phase::Reversing { reply_key: keys.to_initiator, initiator: Box::new(initiator) };
        session.proven = true;
        self.sessions.put_back(finish.session, session);
        Ok(pending)
    }

    /// Step 2r, after the call back. What could have changed meanwhile is judged again; the session ends either way.
    pub fn confirm_reverse(
        &mut self,
        here: Here<'_>,
        session: &SessionId,
        answer: &ReverseAnswer,
        now: Mono,
        wall: UnixTime,
        rng: &mut Rng,
    ) -> Result<(FinishResponse, Accepted), Refusal> {
        self.sessions.expire(now);
        let expired = || Refusal::forward(Reason::SessionExpired);
        if !self.sessions.get(session).is_some_and(|s| s.proven) {
            return Err(expired());
        }
        let Content { init, phase, source } = self.sessions.take(session, now).ok_or_else(expired)?.content;
        let Phase::Reversing { reply_key, initiator } = phase else { return Err(expired()) };

        let reached = check_answer(&init, answer).map_err(|reason| Refusal::reverse(reason, answer.endpoint.clone()));
        reached.or_else(|refusal| if planted(Bug::ToldBeforeCallBack) { Ok(()) } else { Err(refusal) })?;
        let standing = admission::identity(here, &init.peer_id, &init.public_key, false).map_err(Refusal::forward)?;
        initiator.node_limit(here, standing).map_err(Refusal::forward)?;

        let endpoints = dial_back(&init, source)?;
        let voucher = voucher::issue(here.local, init.peer_id, init.public_key, endpoints.clone(), wall);
        let part = ResponderPart { common: here.local.sealed_part(), voucher: voucher.clone() };
        let sealed = reply_key.seal(&part, &session.0, rng).map_err(Refusal::forward)?;
        let max_nodes = initiator.max_nodes();
        let InitiatorPart { members, record, .. } = initiator.into_part();
        let accepted = Accepted {
            peer_id: init.peer_id,
            public_key: init.public_key,
            endpoints,
            record,
            members,
            license_id: init.license_id,
            max_nodes,
            license_differs: init.license_id != here.local.license_id,
            cluster_id: init.cluster_id,
            voucher,
            own_endpoints: init.target_endpoints,
            readmitted: false,
        };
        Ok((FinishResponse { sealed }, accepted))
    }
}

/// License, limits, signature, record: in this order, so that a stranger costs one verification.
fn prove(
    here: Here<'_>,
    init: &Init,
    transcript: &Transcript,
    signature: &Signature,
    part: InitiatorPart,
) -> Result<Licensed, Rejection> {
    let standing = admission::identity(here, &init.peer_id, &init.public_key, false)?;
    if planted(Bug::StrangerCostsTwice) && !transcript.verify(&init.public_key, signature) {
        tracing::debug!(peer = %init.peer_id, "signature is wrong");
    }
    let claim = Claim { peer_id: init.peer_id, public_key: init.public_key, license_id: init.license_id };
    let initiator = admission::license(here, claim, part)?;
    initiator.node_limit(here, standing)?;
    if !transcript.verify(&init.public_key, signature) && !planted(Bug::HandshakeSignatureSkipped) {
        return Err(Reason::InvalidSignature.into());
    }
    initiator.record()?;
    Ok(initiator)
}

fn check_answer(init: &Init, answer: &ReverseAnswer) -> Result<(), Reason> {
    let identity = answer.result.as_ref().map_err(|failure| Reason::from(*failure))?;
    if identity.peer_id != Some(init.peer_id) {
        return Err(Reason::UnexpectedPeer);
    }
    if identity.public_key != Some(init.public_key) { Err(Reason::KeyChanged) } else { Ok(()) }
}

/// Where to call back: the initiator's own list without what cannot be a host, else the address it called from with
/// the port of its API (cluster.md §2).
fn dial_back(init: &Init, source: IpAddr) -> Result<Vec<Endpoint>, Refusal> {
    let is_host = |e: &&Endpoint| !e.ip().is_some_and(|ip| ip.is_unspecified() || ip.is_multicast());
    let named: Vec<Endpoint> = init.endpoints.iter().filter(is_host).cloned().collect();
    if !named.is_empty() {
        return Ok(named);
    }
    let seen = Endpoint::new(&source.to_canonical().to_string(), init.api_port.get());
    seen.map(|e| vec![e]).map_err(|_| Refusal::forward(Reason::MalformedMessage))
}

/// What the seal of step 2 is bound to: a seal does not fit another session or signature.
pub(super) fn bound_to_finish(session: &SessionId, signature: &Signature) -> Vec<u8> {
    [&session.0[..], signature.as_bytes()].concat()
}

/// Memory that an open session of `init` takes.
#[cfg(test)]
pub(super) fn kept_bytes(init: &Init) -> usize {
    const TRANSCRIPT_BYTES: usize = 512;
    let endpoints = init.endpoints.iter().chain(&init.target_endpoints);
    let heap: usize = endpoints.map(|e| size_of::<Endpoint>() + e.host().len()).sum();
    size_of::<Session<Content>>() + heap + TRANSCRIPT_BYTES
}
