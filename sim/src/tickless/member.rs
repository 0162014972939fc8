//! A member's drivers, as `node` has them: commit what the machine decided, then send, then wait.

use super::{
    calls::{self, ANSWER_TIMEOUT, Outcome, in_preferred_order},
    faults::Kind,
    ledger::{DiskError, NoResult},
    lifecycle::facts_of,
    message::{Auth, Body, Encoding, Message, Path},
    node::{Handshake, Member, Pending, Purpose, Why},
    world::{Event, World},
};
use crate::sometimes;
use arctic::{
    gossip::{self, CallFailed, Transmit},
    handshake::{self, Here, Initiator, Target},
    license::{Entitlement, MARK_PERSIST_INTERVAL, State, TICK_INTERVAL, TrustRoots, median_time},
    membership::{self, Acceptance, Author, LedgerView, Own, Side, VOUCHER_CHECK_INTERVAL},
    model::{Code, Endpoint, PeerId, PeerStatus, Refused},
    wire::{handshake::default_api_port, nonces::mint_nonce, record::Record},
};
use std::time::Duration;

/// Handshakes of the agent's own accord at one time.
const JOINS_AT_ONCE_MAX: usize = 16;
/// Decisions committed at one moment; more are a loop.
const COMMITS_AT_ONCE_MAX: usize = 10_000;
const COMMIT_RETRY: Duration = Duration::from_secs(1);

/// This agent, as far as it is not on its disk.
pub(super) fn own<'a>(author: &'a Author, member: &'a Member, roots: &'a TrustRoots) -> Own<'a> {
    Own {
        author,
        entitlement: &member.entitlement,
        licenses: roots,
        api_port: default_api_port(),
        endpoints_are_set: false,
    }
}

pub(super) fn here<'a>(side: &'a Side, roots: &'a TrustRoots) -> Here<'a> {
    Here { local: &side.local, held: &side.held, licenses: roots }
}

impl World {
    /// After anything happened at a node: commits, calls, the next wake.
    pub(super) fn settle(&mut self, n: usize) {
        if !self.commit_events(n) {
            self.check_node(n);
            return self.schedule_wake(n);
        }
        self.push_local_changes(n);
        self.start_due_handshakes(n);
        while let Some(transmit) = self.nodes[n].member_mut().and_then(|member| member.gossip.poll_transmit()) {
            self.transmit(n, transmit);
        }
        // What was told to the machine above may have led to further events.
        if self.nodes[n].member_mut().is_none_or(|m| m.uncommitted.is_none()) {
            self.reconcile(n);
        }
        self.check_node(n);
        self.schedule_wake(n);
    }

    /// Brings what the machine decided onto the disk; false if something has to wait.
    pub(super) fn commit_events(&mut self, n: usize) -> bool {
        for _ in 0..COMMITS_AT_ONCE_MAX {
            let now = self.now;
            let Some(member) = self.nodes[n].member_mut() else { return true };
            let next = member.uncommitted.take().or_else(|| member.gossip.poll_event());
            let Some(event) = next else {
                member.retry_at = None;
                return true;
            };
            match self.commit_event(n, &event) {
                Ok(()) => {}
                // A node would try it again for ever, and do nothing else.
                Err(NoResult::Refused(why)) => {
                    self.violate("G6", format!("n{} cannot commit what it decided: {}", n + 1, why.text));
                    return false;
                }
                Err(NoResult::Disk(reason)) => {
                    sometimes!("a commit fails and is tried again");
                    self.trace.line(now, format_args!("n{} commit failed: {reason}", n + 1));
                    let local = self.nodes[n].clock.mono(now);
                    if let Some(member) = self.nodes[n].member_mut() {
                        member.uncommitted = Some(event);
                        member.retry_at = Some(local + COMMIT_RETRY);
                    }
                    return false;
                }
                Err(NoResult::Dead) => {
                    self.die(n);
                    return false;
                }
            }
        }
        self.violate("G6", format!("n{} decides and commits without an end", n + 1));
        false
    }

    fn commit_event(&mut self, n: usize, event: &gossip::Event) -> Result<(), NoResult> {
        let now = self.now;
        match event {
            gossip::Event::Merge(records) => {
                self.trace.line(now, format_args!("n{} merges {}", n + 1, records.len()));
                self.write(n, |tx, own| Ok(membership::merge_records(tx, own.author, records)?))?;
                self.tend_candidates(n)
            }
            gossip::Event::Revoked { peer, void } => {
                let name = self.peer_name(*peer);
                self.trace.line(now, format_args!("n{} revoked {name} void={}", n + 1, void.len()));
                let local = self.nodes[n].id() == *peer;
                sometimes!(local, "a node learns of its own revocation");
                sometimes!(!void.is_empty(), "a revocation voids records");
                self.write(n, |tx, own| Ok(membership::peer_was_revoked(tx, own.author, *peer, void)?))?;
                self.trust_changed(n, &[]);
                self.tend_candidates(n)
            }
            gossip::Event::PeerStatus { peer, status, .. } => {
                sometimes!(*status == PeerStatus::Unhealthy, "a peer turns unhealthy");
                sometimes!(*status == PeerStatus::Healthy, "a peer turns healthy");
                let name = self.peer_name(*peer);
                self.trace.line(now, format_args!("n{} sees {name} {status:?}", n + 1));
                Ok(())
            }
            gossip::Event::AdoptOwnVersion { version, told } => {
                sometimes!("a node adopts a version of its own that it had lost");
                self.trace.line(now, format_args!("n{} adopts version {version}", n + 1));
                let taken = self.nodes[n].disk.read(|s| s.taken_of(self.nodes[n].id()));
                let later = |r: &Record| r.version > *told && !taken.contains(&r.key);
                self.write(n, |tx, own| Ok(membership::adopt_own_version(tx, own.author, *version, later)?))
            }
            gossip::Event::Discovered(discovery) => {
                sometimes!(discovery.voucher.is_some(), "a voucher introduces a peer");
                sometimes!(discovery.voucher.is_none(), "a record introduces a stranger");
                let wall = self.nodes[n].clock.unix(now);
                let found = self.write(n, |tx, own| Ok(membership::discovered(tx, own, discovery, wall)?))?;
                let row = self.nodes[n].disk.peer(discovery.peer).ok().flatten();
                let Some(member) = self.nodes[n].member_mut() else { return Ok(()) };
                if let Some((peer, endpoints)) = found {
                    member.attempts.handle_voucher(peer, endpoints);
                } else if let Some(row) = row.filter(|_| discovery.voucher.is_none()) {
                    let is_due = member.attempts.handle_endpoints(&row, &discovery.endpoints);
                    sometimes!(is_due, "a peer out of reach tells of other endpoints");
                }
                Ok(())
            }
            gossip::Event::CatchingUp { owner, complete } => {
                sometimes!("a node catches up with an owner");
                self.edit_facts(n, |f| _ = f.catching_up.insert(*owner, *complete))
            }
            gossip::Event::CaughtUp(owner) => {
                sometimes!("a node has caught up with an owner");
                self.edit_facts(n, |f| _ = f.catching_up.remove(owner))
            }
            gossip::Event::Forgotten(gone) => {
                sometimes!("tombstones are collected, or a reset drops what is not confirmed");
                self.trace.line(now, format_args!("n{} forgets {}", n + 1, gone.len()));
                self.write(n, |tx, _| Ok(membership::forget(tx, gone)?))
            }
            gossip::Event::Republish(records) => {
                sometimes!("a node writes own records anew after a loss");
                self.write(n, |tx, own| Ok(membership::republish(tx, own.author, records)?))
            }
            gossip::Event::PublishFloor(floor) => {
                sometimes!("an owner publishes a floor");
                self.trace.line(now, format_args!("n{} floor {}", n + 1, floor.through));
                self.write(n, |tx, own| Ok(membership::publish_floor(tx, own.author, floor)?))
            }
            gossip::Event::Contested(contested) => {
                sometimes!(*contested, "a copy of an identity is refused by its peers");
                self.trace.line(now, format_args!("n{} contested={contested}", n + 1));
                self.write(n, |tx, own| {
                    tx.edit_facts(|f| f.contested = *contested);
                    if *contested {
                        return Ok(());
                    }
                    Ok(membership::resume_writing(tx, own.author)?)
                })
            }
            gossip::Event::TwoCopies(peer) => {
                sometimes!("two live copies of a peer are heard");
                let name = self.peer_name(*peer);
                self.trace.line(now, format_args!("n{} hears two copies of {name}", n + 1));
                Ok(())
            }
        }
    }

    fn edit_facts(&mut self, n: usize, edit: impl FnOnce(&mut super::ledger::Facts)) -> Result<(), NoResult> {
        self.write(n, |tx, _| {
            tx.edit_facts(edit);
            Ok(())
        })
    }

    /// One transaction of a member.
    pub(super) fn write<T>(
        &mut self,
        n: usize,
        f: impl FnOnce(&super::ledger::Disk, Own<'_>) -> Result<T, WriteError>,
    ) -> Result<T, NoResult> {
        let node = &mut self.nodes[n];
        let fate = node.next_fate();
        self.fire_fate(n, fate);
        let node = &self.nodes[n];
        let Some(member) = node.member() else { return Err(NoResult::Refused(not_bootstrapped())) };
        node.disk.transaction(fate, |tx| f(tx, own(&node.author, member, &self.roots)).map_err(|e| e.0))
    }

    /// Candidates that nobody vouches for any more are forgotten, and attempts at peers that are gone.
    pub(super) fn tend_candidates(&mut self, n: usize) -> Result<(), NoResult> {
        let wall = self.nodes[n].clock.unix(self.now);
        let met = self.write(n, |tx, own| Ok(membership::forget_unvouched(tx, own, wall)?))?;
        let known: std::collections::BTreeSet<PeerId> = self.nodes[n].disk.read(|s| s.peers.keys().copied().collect());
        if let Some(member) = self.nodes[n].member_mut() {
            met.into_iter().for_each(|(peer, endpoints)| member.attempts.handle_voucher(peer, endpoints));
            member.attempts.retain(|peer| known.contains(&peer));
        }
        Ok(())
    }

    /// Tells the machine what was just committed, and whom the disk trusts since.
    pub(super) fn trust_changed(&mut self, n: usize, brought: &[Record]) {
        let now = self.now;
        let node = &mut self.nodes[n];
        let (trusted, mono, own) = (node.disk.trusted_keys(), node.clock.mono(now), node.id());
        let told = node.member().map_or(0, |member| member.gossip.told_version());
        let mut records = node.disk.records_since(own, told);
        records.extend(brought.iter().filter(|r| r.key.owner != own).cloned());
        if let Some(member) = node.member_mut() {
            member.gossip.handle_local_change(&records, mono);
            member.gossip.handle_trust(&trusted, mono);
        }
    }

    /// Own records that were written since the machine was told last; and what heartbeats say.
    fn push_local_changes(&mut self, n: usize) {
        let now = self.now;
        let node = &mut self.nodes[n];
        let (revision, own, mono, unix) = (node.disk.revision(), node.id(), node.clock.mono(now), node.clock.unix(now));
        let version = node.other_version.clone();
        let Some(process) = node.process.as_mut() else { return };
        let Some(member) = process.member.as_mut().filter(|m| m.revision != revision) else { return };
        member.revision = revision;
        if version.is_some() {
            self.network.fire(Kind::Minor);
        }
        if node.disk.read(|s| s.facts.own_version) > member.gossip.told_version() {
            let records = node.disk.records_since(own, member.gossip.told_version());
            if !records.is_empty() {
                member.gossip.handle_local_change(&records, mono);
            }
        }
        let facts =
            facts_of(&node.disk, &process.instance, &node.author, &member.entitlement, unix, version.as_deref());
        member.gossip.handle_facts(facts, mono);
        self.commit_events(n);
    }

    fn transmit(&mut self, n: usize, Transmit { to, request }: Transmit) {
        let now = self.now;
        let op = request.op();
        if self.is_silent(n) {
            sometimes!("a suspended agent keeps silent");
            let mono = self.nodes[n].clock.mono(now);
            if let Some(member) = self.nodes[n].member_mut() {
                let _was_awaited = member.gossip.handle_reply(to, Err(CallFailed { op }), mono);
            }
            return;
        }
        let endpoints = self.known_endpoints(n, to);
        let endpoints = in_preferred_order(self, n, to, endpoints);
        let body = match self.options.encoding {
            Encoding::Bytes => Body::Bytes(request.encode()),
            Encoding::Values => Body::Gossip(Box::new(request)),
        };
        let node = &mut self.nodes[n];
        let Some(process) = node.process.as_mut() else { return };
        let auth = self.options.authenticates.then(|| {
            let bytes: &[u8] = if let Body::Bytes(bytes) = &body { bytes } else { &[] };
            let nonce = mint_nonce(&mut process.rng);
            Auth::sign(&node.author.key, node.author.peer_id, to, op.path(), bytes, node.clock.unix(now), nonce)
        });
        let auth = auth.or_else(|| {
            let signature = arctic::model::Signature::from_bytes([0; 64]);
            Some(Auth { sender: node.author.peer_id, timestamp: Default::default(), nonce: [0; 16], signature })
        });
        if let Some(auth) = auth.as_ref().filter(|_| self.options.authenticates) {
            self.witness_minted(n, auth.nonce);
        }
        let message = Message { path: Path::Gossip(op), auth, body };
        let size = message.size();
        let name = self.peer_name(to);
        self.trace.line(now, format_args!("n{} -> {name} {} {size}", n + 1, op.name()));
        self.check_frame(n, size);
        calls::begin(self, n, Purpose::Gossip { to, op }, endpoints, message, ANSWER_TIMEOUT);
    }

    /// Where a peer is said to be; of one that was removed, where it answered last.
    fn known_endpoints(&mut self, n: usize, peer: PeerId) -> Vec<Endpoint> {
        let node = &mut self.nodes[n];
        let revision = node.disk.revision();
        let Some(process) = node.process.as_mut() else { return Vec::new() };
        if process.known_at != revision {
            process.known_at = revision;
            process.known.clear();
        }
        if let Some(endpoints) = process.known.get(&peer) {
            return endpoints.clone();
        }
        let endpoints = match node.disk.peer(peer).ok().flatten() {
            Some(row) => row.all_endpoints(),
            None => {
                sometimes!("a removed peer is told where it answered last");
                process.reached.get(&peer).map(|(endpoint, _)| endpoint.clone()).into_iter().collect()
            }
        };
        process.known.insert(peer, endpoints.clone());
        endpoints
    }

    /// A suspended agent neither gossips nor is gossiped with (licensing.md §3).
    pub(super) fn is_silent(&self, n: usize) -> bool {
        self.nodes[n].member().is_some_and(|m| m.entitlement.state == State::Suspended)
    }

    /// A call of this node is over.
    pub(super) fn conclude(&mut self, n: usize, pending: Pending, outcome: Outcome) {
        match pending.purpose {
            Purpose::Gossip { to, op } => self.take_gossip_reply(n, to, op, outcome),
            Purpose::Handshake { id } => self.take_handshake_reply(n, id, outcome),
            Purpose::Reverse { id } => self.take_reverse_reply(n, id, &pending.current, outcome),
            Purpose::Farewell => {}
        }
    }

    fn take_gossip_reply(&mut self, n: usize, to: PeerId, op: arctic::wire::gossip::Op, outcome: Outcome) {
        let now = self.now;
        let (mut unauthorized, mut is_contested_there) = (None, false);
        let reply = match outcome {
            Outcome::Answered(answer) => {
                unauthorized = answer.revocations().filter(|_| answer.status() == 401);
                is_contested_there = answer.has_code(Code::IdentityConflict);
                if let Some(text) = answer.refusal_text() {
                    self.nodes[n].last_refusal = Some(text);
                }
                answer.into_gossip(op)
            }
            _ => None,
        };
        let name = self.peer_name(to);
        let word = if reply.is_some() { "ok" } else { "failed" };
        self.trace.line(now, format_args!("n{} <- {name} {} {word}", n + 1, op.name()));
        if let Some(revocations) = unauthorized {
            self.take_unauthorized(n, to, &revocations);
        }
        let mono = self.nodes[n].clock.mono(now);
        let Some(member) = self.nodes[n].member_mut() else { return };
        if is_contested_there {
            member.gossip.handle_identity_refusal(to, mono);
        }
        let failed = CallFailed { op };
        let taken = member.gossip.handle_reply(to, reply.as_ref().ok_or(failed), mono);
        sometimes!(taken.is_err(), "an answer is rejected");
        self.settle(n);
    }

    /// A trusted peer does not trust this one: it has removed it, or lost its database.
    fn take_unauthorized(&mut self, n: usize, peer: PeerId, revocations: &[Record]) {
        let told = self.write(n, |tx, own| Ok(membership::take_grounds(tx, own.author, revocations)?));
        match told {
            Ok(told) if !told.is_empty() => {
                sometimes!("a removed peer learns of it when it calls");
                self.trust_changed(n, &told);
            }
            Ok(_) => {
                let Some(row) = self.nodes[n].disk.peer(peer).ok().flatten() else { return };
                let mono = self.nodes[n].clock.mono(self.now);
                let Some(member) = self.nodes[n].member_mut() else { return };
                let due = member.attempts.handle_unknown_there(&row, mono);
                sometimes!(due, "a peer that knows us no more is handshaken again");
            }
            Err(NoResult::Dead) => self.die(n),
            Err(_) => {}
        }
    }

    /// A handshake of this node.
    pub(super) fn begin_handshake(&mut self, n: usize, target: Target, why: Why) {
        let now = self.now;
        let node = &mut self.nodes[n];
        let mono = node.clock.mono(now);
        let Some(process) = node.process.as_mut() else { return };
        let id = self.next_call;
        self.next_call += 1;
        let rng = process.rng.fork();
        process.handshakes.insert(id, Handshake { machine: Initiator::new(target, mono), rng, why, request: None });
        self.drive_handshake(n, id);
    }

    fn start_due_handshakes(&mut self, n: usize) {
        let now = self.now;
        let node = &mut self.nodes[n];
        let Some(process) = node.process.as_mut() else { return };
        let mono = node.clock.mono(now);
        let running = process.handshakes.values().filter(|h| matches!(h.why, Why::Join(_))).count();
        let room = JOINS_AT_ONCE_MAX.saturating_sub(running);
        let Some(member) = process.member.as_mut() else { return };
        for (peer, endpoints) in member.attempts.take_due(room, mono) {
            let target =
                Target { endpoints, pinned_key: None, expected_peer: Some(peer), purpose: handshake::Purpose::Join };
            self.begin_handshake(n, target, Why::Join(peer));
        }
    }

    fn drive_handshake(&mut self, n: usize, id: u64) {
        let Some(handshake) = self.nodes[n].process.as_mut().and_then(|p| p.handshakes.get_mut(&id)) else { return };
        if let Some(event) = handshake.machine.poll_event() {
            return self.end_handshake(n, id, event);
        }
        if let Some(call) = handshake.machine.poll_transmit() {
            handshake.request = Some(call.request.clone());
            let message = Message::handshake(&call.request, self.options.encoding);
            let purpose = Purpose::Handshake { id };
            calls::begin(self, n, purpose, vec![call.endpoint], message, call.answer_timeout);
        }
    }

    fn take_handshake_reply(&mut self, n: usize, id: u64, outcome: Outcome) {
        let now = self.now;
        let node = &mut self.nodes[n];
        let mono = node.clock.mono(now);
        let (Some(member), disk) = (node.process.as_ref().and_then(|p| p.member.as_ref()), &node.disk) else { return };
        let Ok(Some(side)) = membership::side(disk, own(&node.author, member, &self.roots)) else { return };
        let Some(handshake) = node.process.as_mut().and_then(|p| p.handshakes.get_mut(&id)) else { return };
        let reply = match (outcome, &handshake.request) {
            (Outcome::Answered(answer), Some(request)) => Ok(answer.to_handshake(request)),
            (Outcome::Unsent(failure), _) => Err(failure),
            _ => Err(handshake::DialFailure::Timeout),
        };
        handshake.machine.handle_reply(here(&side, &self.roots), reply, mono, &mut handshake.rng);
        self.drive_handshake(n, id);
        self.settle(n);
    }

    fn end_handshake(&mut self, n: usize, id: u64, event: handshake::Event) {
        let now = self.now;
        let Some(ended) = self.nodes[n].process.as_mut().and_then(|p| p.handshakes.remove(&id)) else { return };
        let failed = match event {
            handshake::Event::Done(accepted) => {
                let peer = accepted.peer_id;
                let name = match &ended.why {
                    Why::Add(_) => Some(self.peer_name(peer)),
                    Why::Join(_) => None,
                };
                sometimes!(accepted.readmitted, "an operator readmits a peer");
                sometimes!(matches!(ended.why, Why::Join(_)), "a node joins a peer of its own accord");
                let by_operator = matches!(ended.why, Why::Add(_));
                self.accept(n, *accepted, name, false, by_operator).is_err()
            }
            handshake::Event::Failed(failure) => {
                self.trace.line(now, format_args!("n{} handshake failed: {failure}", n + 1));
                sometimes!(failure.attempts >= 3, "three attempts at a handshake fail");
                self.mark_failure(&failure);
                if let Why::Join(peer) = ended.why {
                    self.end_unanswered_trust(n, peer, failure.reason);
                }
                true
            }
        };
        let mono = self.nodes[n].clock.mono(now);
        if let Why::Join(peer) = &ended.why
            && let is_trusted = self.nodes[n].disk.trusted_key(*peer).is_some()
            && let Some(member) = self.nodes[n].member_mut()
        {
            member.attempts.handle_end(*peer, failed && !is_trusted, mono);
        }
        if let Why::Add(work) = ended.why {
            self.work_done(n, &work, !failed);
        }
    }

    fn end_unanswered_trust(&mut self, n: usize, peer: PeerId, why: handshake::Reason) {
        let Some(member) = self.nodes[n].member() else { return };
        let was_heard = member.gossip.peer_view(peer).is_some_and(|view| view.heard.is_some());
        if !why.ends_trust(was_heard) {
            return;
        }
        match self.write(n, |tx, own| Ok(membership::withdraw_trust(tx, own.author, peer)?)) {
            Ok(ended) => sometimes!(ended, "trust ends that the other side does not return"),
            Err(NoResult::Dead) => return self.die(n),
            Err(_) => {}
        }
        self.trust_changed(n, &[]);
    }

    /// Stores a proven peer.
    pub(super) fn accept(
        &mut self,
        n: usize,
        accepted: handshake::Accepted,
        local_name: Option<String>,
        we_answered: bool,
        by_operator: bool,
    ) -> Result<(), NoResult> {
        let now = self.now;
        let wall = self.nodes[n].clock.unix(now);
        let (peer, readmitted) = (accepted.peer_id, accepted.readmitted);
        let acceptance = Acceptance { accepted, local_name, we_answered, now: wall };
        let merge = self.witness_merge(n, &acceptance.accepted);
        let stored = self.write(n, |tx, own| Ok(membership::accept(tx, own, &acceptance)?));
        self.check_merge(n, merge, stored.as_ref().map(drop));
        let name = self.peer_name(peer);
        self.trace
            .line(now, format_args!("n{} accepts {name} {}", n + 1, if stored.is_ok() { "ok" } else { "failed" }));
        match stored {
            Ok(brought) => {
                self.witness_accept(n, peer, readmitted, by_operator);
                let mono = self.nodes[n].clock.mono(now);
                if let Some(member) = self.nodes[n].member_mut() {
                    member.attempts.handle_trusted(peer, mono);
                }
                self.trust_changed(n, &brought);
                Ok(())
            }
            Err(NoResult::Dead) => {
                self.die(n);
                Err(NoResult::Dead)
            }
            Err(other) => Err(other),
        }
    }

    /// The node is awake at its deadline.
    pub(super) fn wake(&mut self, n: usize, boot: u64) {
        let now = self.now;
        let node = &mut self.nodes[n];
        let mono = node.clock.mono(now);
        let Some(process) = node.process.as_mut().filter(|p| p.boot == boot) else { return };
        // A paused process comes late, so the wake may be past.
        if process.wake_at.is_none_or(|at| at > now) {
            return;
        }
        process.wake_at = None;
        let due: Vec<u64> = process.handshakes.keys().copied().collect();
        process.responder.handle_timeout(mono);
        let Some(member) = process.member.as_mut() else { return };
        if member.retry_at.is_none_or(|at| mono >= at) {
            member.retry_at = None;
            member.gossip.handle_timeout(mono);
        }
        for id in due {
            if let Some(handshake) = self.nodes[n].process.as_mut().and_then(|p| p.handshakes.get_mut(&id)) {
                handshake.machine.handle_timeout(mono);
                self.drive_handshake(n, id);
            }
        }
        self.settle(n);
    }

    pub(super) fn schedule_wake(&mut self, n: usize) {
        let now = self.now;
        let node = &mut self.nodes[n];
        let clock = node.clock;
        let Some(process) = node.process.as_mut() else { return };
        let handshakes = process.handshakes.values().filter_map(|h| h.machine.poll_timeout());
        let handshakes = handshakes.chain(process.responder.poll_timeout());
        let machine = process.member.as_ref().and_then(|member| match member.retry_at {
            Some(at) => Some((at, "commit")),
            None => member.gossip.poll_timeout(),
        });
        let joins = process.handshakes.values().filter(|h| matches!(h.why, Why::Join(_))).count();
        let retry =
            process.member.as_ref().filter(|_| joins < JOINS_AT_ONCE_MAX).and_then(|m| m.attempts.poll_timeout());
        let retry = retry.map(|at| (at, "handshake"));
        let Some((due, _)) = handshakes.chain(machine).chain(retry).min() else { return };
        let at = clock.world(due).max(now + Duration::from_micros(1));
        if process.wake_at.is_none_or(|planned| at < planned || planned <= now) {
            process.wake_at = Some(at);
            let boot = process.boot;
            self.at(at, Event::Wake { node: n, boot });
        }
    }

    pub(super) fn tick_license(&mut self, n: usize, boot: u64) {
        let now = self.now;
        let node = &mut self.nodes[n];
        if node.process.as_ref().is_none_or(|p| p.boot != boot) {
            return;
        }
        self.after(TICK_INTERVAL, Event::LicenseTick { node: n, boot });
        let median = self.median_peer_time(n);
        let node = &mut self.nodes[n];
        let (unix, mono) = (node.clock.unix(now), node.clock.mono(now));
        let Some(member) = node.member_mut() else { return };
        let (was_suspect, was) = (member.license_clock.is_suspect(), member.entitlement.state);
        member.license_clock.handle_tick(unix, mono, median);
        member.entitlement = Entitlement::new(member.license.clone(), &member.license_clock);
        let state = member.entitlement.state;
        match state {
            State::Warning => sometimes!("a license warns"),
            State::GracePeriod => sometimes!("a license is in its grace period"),
            State::ReadOnly => sometimes!("a license is read-only"),
            State::Suspended => sometimes!("a license is suspended"),
            State::Valid => {}
        }
        let is_suspect = member.license_clock.is_suspect();
        sometimes!(is_suspect, "a clock is in doubt");
        let snapshot = member.license_clock.snapshot();
        let persists = is_suspect != was_suspect
            || mono.since_start().as_secs() % MARK_PERSIST_INTERVAL.as_secs() < TICK_INTERVAL.as_secs();
        if state != was {
            self.trace.line(now, format_args!("n{} license {was} -> {state}", n + 1));
            if let Some(member) = self.nodes[n].member_mut() {
                member.revision = u64::MAX;
            }
        }
        self.check_license(n);
        if persists {
            let written = self.write(n, |tx, _| {
                tx.edit_facts(|f| f.license_clock = Some(snapshot));
                Ok(())
            });
            if written == Err(NoResult::Dead) {
                return self.die(n);
            }
        }
        self.renew_vouchers(n);
        self.settle(n);
    }

    /// Once an hour, as the driver of the node does.
    fn renew_vouchers(&mut self, n: usize) {
        let now = self.now;
        let node = &mut self.nodes[n];
        let (unix, mono) = (node.clock.unix(now), node.clock.mono(now));
        let Some(member) = node.member_mut().filter(|m| mono >= m.vouchers_due) else { return };
        member.vouchers_due = mono + VOUCHER_CHECK_INTERVAL;
        match self.write(n, |tx, own| Ok(membership::renew_vouchers(tx, own, unix)?)) {
            Ok(renewed) => sometimes!(renewed > 0, "a node gives its word about peers anew"),
            Err(NoResult::Dead) => return self.die(n),
            Err(_) => {}
        }
        if self.tend_candidates(n) == Err(NoResult::Dead) {
            self.die(n);
        }
    }

    /// The middle one of what healthy peers say the time is.
    fn median_peer_time(&self, n: usize) -> Option<arctic::model::UnixTime> {
        let node = &self.nodes[n];
        let member = node.member()?;
        let mono = node.clock.mono(self.now);
        let views = node.disk.trusted_keys().into_keys().filter_map(|peer| member.gossip.peer_view(peer));
        let healthy = views.filter(|v| v.status == PeerStatus::Healthy);
        median_time(healthy.filter_map(|v| Some(v.heard?.time.plus(mono.saturating_since(v.last_seen?)))).collect())
    }

    /// Where a node can be reached, in its own words.
    pub fn endpoints_of(&self, n: usize) -> Vec<Endpoint> {
        self.nodes[n].endpoints.clone()
    }
}

/// Why the closure of a transaction refused.
#[derive(Debug)]
pub(super) struct WriteError(pub Refused);

impl From<DiskError> for WriteError {
    fn from(e: DiskError) -> Self {
        Self(e.into())
    }
}

impl From<Refused> for WriteError {
    fn from(e: Refused) -> Self {
        Self(e)
    }
}

pub(super) fn not_bootstrapped() -> Refused {
    Refused::new(arctic::model::Code::NotBootstrapped, "agent is not bootstrapped")
}
