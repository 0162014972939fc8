//! What a node does with the requests of others, as `api` and `node` do.

use super::{
    calls::{self, CONNECT_TIMEOUT, Outcome},
    faults::Kind,
    invariants::proofs::verifications,
    ledger::NoResult,
    member::{here, not_bootstrapped, own},
    message::{Answer, Body, Message, Path, unreadable},
    node::{Hostility, Purpose, ReplyTo, Reverse},
    world::World,
};
use crate::sometimes;
use arctic::{
    gossip::Reject,
    handshake::{DialFailure, Failure, REVERSE_BUDGET, Reason, Refusal, ReverseAnswer},
    membership,
    model::{Code, Endpoint, PeerId, Refused, Signature},
    wire::{
        gossip::{Op, Request},
        handshake::{Finish, Identity, Sealed, SessionId},
        nonces::NonceRefusal,
        request::{REVOCATIONS, check_clock},
    },
};
use serde_json::json;
use std::net::IpAddr;

impl World {
    /// A request has arrived at node `n`.
    pub(super) fn serve(&mut self, n: usize, source: IpAddr, reply_to: ReplyTo, message: &Message) {
        let now = self.now;
        if !self.nodes[n].is_up() {
            // The connection dies with the process.
            return;
        }
        self.trace.line(now, format_args!("n{} <= n{} {}", n + 1, reply_to.node + 1, message.path.name()));
        let percent = self.nodes[n].queue_full_percent;
        if percent > 0 && self.rng.below(100) < percent {
            self.fire(Kind::FullQueue);
            let busy = Refused::new(Code::RateLimited, "too many requests wait");
            return calls::reply(self, n, reply_to, Answer::refused(&busy));
        }
        let answer = match message.path {
            Path::Identity => Some(Ok(Answer::Identity(self.identity_of(n)))),
            Path::Init => Some(self.serve_init(n, source, message)),
            Path::Finish => self.serve_finish(n, reply_to, message),
            Path::Gossip(op) => {
                let was_trusted = self.nodes[n].disk.trusted_key(self.nodes[reply_to.node].id()).is_some();
                let answer = self.serve_gossip(n, op, message);
                if let Some(Ok(_)) = answer {
                    self.witness_gossiped(n, reply_to.node, was_trusted);
                }
                answer
            }
        };
        let Some(answer) = answer else { return };
        let answer = answer.unwrap_or_else(|refused| {
            self.trace.line(now, format_args!("n{} refuses n{}: {}", n + 1, reply_to.node + 1, refused.text));
            Answer::refused(&refused)
        });
        calls::reply(self, n, reply_to, answer);
    }

    /// `GET /v1/cluster/identity`.
    fn identity_of(&self, n: usize) -> Identity {
        let node = &self.nodes[n];
        let cluster = node.disk.read(|s| s.facts.cluster.clone()).filter(|_| node.member().is_some());
        let is_member = cluster.is_some();
        Identity {
            peer_id: is_member.then(|| node.id()),
            public_key: is_member.then(|| node.author.key.public()),
            license_id: node.member().map(|m| m.license.license_id()),
            cluster_id: cluster.map(|c| c.cluster_id),
            version: node.other_version.clone().unwrap_or_else(|| arctic::model::VERSION.to_owned()),
        }
    }

    pub(super) fn serve_init(&mut self, n: usize, source: IpAddr, message: &Message) -> Result<Answer, Refused> {
        let init = message.as_init()?;
        let now = self.now;
        let node = &mut self.nodes[n];
        let mono = node.clock.mono(now);
        let member = node.process.as_ref().and_then(|p| p.member.as_ref()).ok_or_else(not_bootstrapped)?;
        let side = membership::side(&node.disk, own(&node.author, member, &self.roots)).map_err(Refused::internal)?;
        let side = side.ok_or_else(not_bootstrapped)?;
        let Some(process) = node.process.as_mut() else { return Err(not_bootstrapped()) };
        let mut rng = process.rng.fork();
        let before = verifications();
        let response = process.responder.handle_init(here(&side, &self.roots), source, &init, mono, &mut rng);
        self.witness_session(n, &init, response.as_ref().ok(), verifications() - before);
        self.schedule_wake(n);
        Ok(Answer::Init(Box::new(response?)))
    }

    /// Begins the call back; the answer follows when it is over.
    pub(super) fn serve_finish(
        &mut self,
        n: usize,
        reply_to: ReplyTo,
        message: &Message,
    ) -> Option<Result<Answer, Refused>> {
        let finish = match message.as_finish() {
            Ok(finish) => finish,
            Err(refused) => return Some(Err(refused)),
        };
        let now = self.now;
        let node = &mut self.nodes[n];
        let mono = node.clock.mono(now);
        let member = node.process.as_ref().and_then(|p| p.member.as_ref())?;
        let side = membership::side(&node.disk, own(&node.author, member, &self.roots)).ok().flatten()?;
        let process = node.process.as_mut()?;
        let before = verifications();
        let outcome = process.responder.handle_finish(here(&side, &self.roots), &finish, mono);
        self.witness_finish(n, reply_to.call, &finish, outcome.as_ref(), verifications() - before);
        let pending = match outcome {
            Ok(pending) => pending,
            Err(refusal) => return Some(Err(self.refusal(refusal))),
        };
        let first = pending.endpoints.first().cloned()?;
        let answer = ReverseAnswer { endpoint: first, result: Err(DialFailure::Timeout) };
        let id = self.next_call;
        self.next_call += 1;
        let reverse = Reverse { pending, next: 0, answer, reply_to, ends: now + REVERSE_BUDGET };
        self.nodes[n].process.as_mut()?.reverses.insert(id, reverse);
        self.call_back(n, id);
        None
    }

    fn refusal(&mut self, refusal: Refusal) -> Refused {
        sometimes!(refusal.reason == Reason::SessionExpired, "a responder knows the session no more");
        refusal.into()
    }

    pub(super) fn mark_failure(&mut self, failure: &Failure) {
        match failure.reason {
            Reason::LicenseMismatch => sometimes!("a foreign customer is refused"),
            Reason::NodeLimitExceeded => sometimes!("a node limit refuses a peer"),
            Reason::Revoked => sometimes!("a revoked peer is refused"),
            Reason::AlreadyExists => sometimes!("a trusted peer is not added again"),
            Reason::InvalidSignature => sometimes!("a handshake fails on a signature"),
            Reason::UnexpectedPeer => sometimes!("another peer answers at an endpoint"),
            Reason::NotBootstrapped => sometimes!("an agent without a cluster is no peer"),
            Reason::Busy => sometimes!("a responder is busy"),
            _ => {}
        }
    }

    /// The next endpoint of the initiator, or the end.
    fn call_back(&mut self, n: usize, id: u64) {
        let now = self.now;
        let Some(reverse) = self.nodes[n].process.as_mut().and_then(|p| p.reverses.get_mut(&id)) else { return };
        let Some(endpoint) = reverse.pending.endpoints.get(reverse.next).cloned().filter(|_| now < reverse.ends) else {
            return self.end_call_back(n, id);
        };
        reverse.next += 1;
        let budget = (reverse.ends - now).min(CONNECT_TIMEOUT);
        let message = Message { path: Path::Identity, auth: None, body: Body::None };
        calls::begin(self, n, Purpose::Reverse { id }, vec![endpoint], message, budget);
    }

    pub(super) fn take_reverse_reply(&mut self, n: usize, id: u64, endpoint: &Endpoint, outcome: Outcome) {
        let Some(reverse) = self.nodes[n].process.as_mut().and_then(|p| p.reverses.get_mut(&id)) else { return };
        let result = match outcome {
            Outcome::Answered(answer) => answer.to_identity().ok_or(DialFailure::Failed),
            Outcome::Unsent(failure) => Err(failure),
            Outcome::Unanswered => Err(DialFailure::Timeout),
        };
        let is_right = result.as_ref().is_ok_and(|identity| reverse.pending.is_answered_by(identity));
        reverse.answer = ReverseAnswer { endpoint: endpoint.clone(), result: result.clone() };
        let session = reverse.pending.session;
        self.witness_called_back(n, &session, result.as_ref().ok());
        if is_right { self.end_call_back(n, id) } else { self.call_back(n, id) }
    }

    fn end_call_back(&mut self, n: usize, id: u64) {
        let Some(reverse) = self.nodes[n].process.as_mut().and_then(|p| p.reverses.remove(&id)) else { return };
        let answer = self.confirm(n, &reverse).unwrap_or_else(|refused| Answer::refused(&refused));
        if self.nodes[n].is_up() {
            calls::reply(self, n, reverse.reply_to, answer);
            self.settle(n);
        }
    }

    fn confirm(&mut self, n: usize, reverse: &Reverse) -> Result<Answer, Refused> {
        let now = self.now;
        let node = &mut self.nodes[n];
        let (mono, wall) = (node.clock.mono(now), node.clock.unix(now));
        let member = node.process.as_ref().and_then(|p| p.member.as_ref()).ok_or_else(not_bootstrapped)?;
        let side = membership::side(&node.disk, own(&node.author, member, &self.roots)).map_err(Refused::internal)?;
        let side = side.ok_or_else(not_bootstrapped)?;
        let Some(process) = node.process.as_mut() else { return Err(not_bootstrapped()) };
        let mut rng = process.rng.fork();
        let session = reverse.pending.session;
        let confirmed = process.responder.confirm_reverse(
            here(&side, &self.roots),
            &session,
            &reverse.answer,
            mono,
            wall,
            &mut rng,
        );
        let replayed = process.responder.handle_finish(here(&side, &self.roots), &replay_of(session), mono).err();
        self.witness_over(n, &session, replayed.map(|refusal| refusal.reason));
        sometimes!(confirmed.is_err(), "the call back of a handshake fails");
        let (response, accepted) = confirmed?;
        self.witness_confirmed(n, &session, reverse.pending.peer_id);
        match self.accept(n, accepted, None, true, false) {
            Ok(()) => Ok(Answer::Finish(response)),
            Err(NoResult::Refused(refused)) => Err(refused),
            Err(_) => Err(Refused::new(Code::Internal, "not stored")),
        }
    }

    /// A peer-signed gossip request; no answer from a node that died over it.
    fn serve_gossip(&mut self, n: usize, op: Op, message: &Message) -> Option<Result<Answer, Refused>> {
        let from = match self.authenticate(n, op, message) {
            Ok(from) => from,
            Err(refused) => return Some(Err(refused)),
        };
        let decoded;
        let request = match &message.body {
            Body::Gossip(request) => &**request,
            Body::Bytes(bytes) => match Request::decode(op, bytes) {
                Ok(request) => {
                    decoded = request;
                    &decoded
                }
                Err(_) => return Some(Err(unreadable())),
            },
            _ => return Some(Err(unreadable())),
        };
        let now = self.now;
        let mono = self.nodes[n].clock.mono(now);
        if self.is_silent(n) {
            return Some(Err(Refused::new(Code::LicenseSuspended, "license is suspended")));
        }
        if self.nodes[n].hostile == Some(Hostility::Withholds) && op == Op::Reconcile {
            sometimes!("a member withholds its records");
            return None;
        }
        let Some(member) = self.nodes[n].member_mut() else { return Some(Err(not_bootstrapped())) };
        let reply = match member.gossip.handle_request(from, request, mono) {
            Ok(reply) => reply,
            Err(reject) => return Some(Err(rejected(reject))),
        };
        let is_committed = self.commit_events(n);
        if !self.nodes[n].is_up() {
            return None;
        }
        self.settle(n);
        Some(if is_committed { Ok(Answer::Gossip(Box::new(reply))) } else { Err(Refused::new(Code::Internal, "disk")) })
    }

    /// A trusted peer, a clock near ours, a nonce not seen, a signature made for us.
    fn authenticate(&mut self, n: usize, op: Op, message: &Message) -> Result<PeerId, Refused> {
        let unauthorized = |text: &str| Refused::new(Code::Unauthorized, text);
        let now = self.now;
        let checks = self.options.authenticates;
        let node = &mut self.nodes[n];
        let (mono, unix, id) = (node.clock.mono(now), node.clock.unix(now), node.id());
        let auth = message.auth.as_ref().ok_or_else(|| unauthorized("not signed"))?;
        if node.member().is_none() {
            return Err(not_bootstrapped());
        }
        let Some(key) = node.disk.trusted_key(auth.sender) else {
            let grounds = membership::grounds(&node.disk, auth.sender).unwrap_or_default();
            return Err(unauthorized("not trusted").with_details(json!({ REVOCATIONS: grounds })));
        };
        if !checks {
            return Ok(auth.sender);
        }
        if let Err(apart) = check_clock(auth.sender, auth.timestamp, unix) {
            sometimes!("two clocks are too far apart");
            return Err(unauthorized(&apart.to_string()));
        }
        if !auth.verify(&key, id, op.path(), message.body_bytes()) {
            sometimes!("a damaged request fails its signature");
            return Err(unauthorized("signature"));
        }
        let Some(process) = node.process.as_mut() else { return Err(not_bootstrapped()) };
        if let Err(refusal) = process.nonces.take(auth.sender, auth.nonce, mono) {
            sometimes!(refusal == NonceRefusal::Seen, "a request that comes twice is served once");
            return Err(unauthorized(&refusal.to_string()));
        }
        self.witness_nonce(n, auth.sender, auth.nonce);
        Ok(auth.sender)
    }
}

/// Step 2 of a session by someone who has none of its keys.
fn replay_of(session: SessionId) -> Finish {
    Finish { session, signature: Signature::from_bytes([0; 64]), sealed: Sealed(vec![0; 64]) }
}

fn rejected(reject: Reject) -> Refused {
    let code = match reject {
        Reject::NotTrusted => Code::Unauthorized,
        Reject::Busy | Reject::OverQuota | Reject::Unsettled => Code::RateLimited,
        Reject::IdentityConflict => Code::IdentityConflict,
        Reject::Malformed(_) | Reject::Unexpected => Code::InvalidRequest,
    };
    Refused::new(code, reject.to_string())
}
