//! Calls from node to node: connect, request, answer, and what goes wrong with each.

use super::{
    faults::Kind,
    message::{Answer, Message},
    network::{Leg, Rule},
    node::{Pending, Purpose, ReplyTo},
    world::{Event, World},
};
use crate::sometimes;
use arctic::{
    handshake::DialFailure,
    model::{Endpoint, Mono, PeerId},
};
use std::{collections::VecDeque, sync::Arc, time::Duration};

pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// After this long on a fallback endpoint the first one is tried again (cluster.md §6).
const RETURN_TO_FIRST: Duration = Duration::from_secs(300);
/// Work of a fast host for one request.
const SERVE_TIME: Duration = Duration::from_micros(500);

/// A call is over.
pub enum Outcome {
    Answered(Answer),
    /// Nothing was sent.
    Unsent(DialFailure),
    /// It may have been acted upon.
    Unanswered,
}

/// Begins a call; endpoints are tried in order while nothing was sent.
pub fn begin(
    world: &mut World,
    node: usize,
    purpose: Purpose,
    endpoints: Vec<Endpoint>,
    message: Message,
    answer_timeout: Duration,
) {
    let call = world.next_call;
    world.next_call += 1;
    world.witness_request(node, call, purpose, &message);
    let mut rest: VecDeque<Endpoint> = endpoints.into();
    let now = world.now;
    let Some(process) = world.nodes[node].process.as_mut() else { return };
    let caller = ReplyTo { call, node, boot: process.boot };
    let Some(current) = rest.pop_front() else {
        // No endpoint is known: told from the queue, as everything else.
        let nowhere = Endpoint::new("nowhere.invalid", 1).expect("a host name");
        let pending = Pending { purpose, current: nowhere, rest, message: Arc::new(message), answer_timeout };
        process.calls.insert(call, pending);
        return world.at(now, Event::Unconnected { caller, failure: DialFailure::Failed });
    };
    process.calls.insert(call, Pending { purpose, current, rest, message: Arc::new(message), answer_timeout });
    dial(world, caller);
}

fn dial(world: &mut World, caller: ReplyTo) {
    let from = caller.node;
    let Some(process) = world.nodes[from].process.as_ref().filter(|p| p.boot == caller.boot) else { return };
    let Some(pending) = process.calls.get(&caller.call) else { return };
    let (endpoint, message) = (pending.current.clone(), pending.message.clone());
    let answer_timeout = pending.answer_timeout;
    let Some(to) = world.network.resolve(&endpoint) else {
        let failure = if endpoint.ip().is_some() { DialFailure::Timeout } else { DialFailure::NameNotFound };
        let wait = if endpoint.ip().is_some() { CONNECT_TIMEOUT } else { Duration::from_millis(5) };
        return world.after(wait, Event::Unconnected { caller, failure });
    };
    if world.network.is_cut(from, to) {
        sometimes!("a connect times out at a partition");
        return world.after(CONNECT_TIMEOUT, Event::Unconnected { caller, failure: DialFailure::Timeout });
    }
    if !world.nodes[to].is_up() {
        sometimes!("a connect is refused by a host without agent");
        let wait = Duration::from_micros(200 + world.rng.below(20_000));
        return world.after(wait, Event::Unconnected { caller, failure: DialFailure::Refused });
    }
    let source = world.nodes[from].hidden_source.unwrap_or(world.nodes[from].address);
    if world.nodes[from].hidden_source.is_some() {
        world.fire(Kind::NatRebind);
    }
    world.after(answer_timeout, Event::GiveUp { caller });
    let copies = world.network.carry(&mut world.rng, world.now, (from, to), Leg::Request, message.size());
    for copy in copies.into_iter().flatten() {
        let message = match copy.damage {
            None => message.clone(),
            Some(damage) => match message.damaged(damage) {
                Some(damaged) => Arc::new(damaged),
                None => continue,
            },
        };
        let delay = copy.delay + serve_time(world, to);
        world.after(delay, Event::Request { to, source, reply_to: caller, message });
    }
}

fn serve_time(world: &mut World, node: usize) -> Duration {
    let factor = world.nodes[node].slow_factor;
    if factor > 1 {
        world.fire(Kind::SlowCpu);
    }
    SERVE_TIME * u32::try_from(factor).unwrap_or(1)
}

/// Sends an answer on its way.
pub fn reply(world: &mut World, from: usize, to: ReplyTo, answer: Answer) {
    world.witness_answer(from, to, &answer);
    let answer = answer.encoded(world.options.encoding);
    let copies = world.network.carry(&mut world.rng, world.now, (from, to.node), Leg::Answer, answer.size());
    // A stream gives its bytes once.
    let Some(copy) = copies.into_iter().flatten().next() else { return };
    match copy.damage {
        None => world.after(copy.delay, Event::Answer { to, answer: Box::new(answer) }),
        Some(damage) => {
            if let Some(damaged) = answer.damaged(damage) {
                world.after(copy.delay, Event::Answer { to, answer: Box::new(damaged) });
            }
        }
    }
}

fn take_pending(world: &mut World, caller: ReplyTo) -> Option<Pending> {
    let process = world.nodes[caller.node].process.as_mut().filter(|p| p.boot == caller.boot)?;
    process.calls.remove(&caller.call)
}

pub fn answered(world: &mut World, caller: ReplyTo, answer: Answer) {
    if let Some(pending) = take_pending(world, caller) {
        let percent = world.nodes[caller.node].panic_percent;
        if percent > 0 && world.rng.below(100) < percent {
            sometimes!("the task of a call dies with its answer");
            world.fire(Kind::Panic);
            return world.conclude(caller.node, pending, Outcome::Unanswered);
        }
        if let Purpose::Gossip { to, .. } = pending.purpose {
            remember_reached(world, caller.node, to, &pending.current);
        }
        world.conclude(caller.node, pending, Outcome::Answered(answer));
    }
}

pub fn gave_up(world: &mut World, caller: ReplyTo) {
    if let Some(pending) = take_pending(world, caller) {
        sometimes!("a call gives up waiting");
        world.conclude(caller.node, pending, Outcome::Unanswered);
    }
}

pub fn unconnected(world: &mut World, caller: ReplyTo, failure: DialFailure) {
    let Some(process) = world.nodes[caller.node].process.as_mut().filter(|p| p.boot == caller.boot) else { return };
    let Some(pending) = process.calls.get_mut(&caller.call) else { return };
    if let Some(next) = pending.rest.pop_front() {
        sometimes!("a call fails over to the next endpoint");
        pending.current = next;
        return dial(world, caller);
    }
    if let Some(pending) = take_pending(world, caller) {
        world.conclude(caller.node, pending, Outcome::Unsent(failure));
    }
}

/// The endpoints of a peer, the one that answered last first.
pub fn in_preferred_order(world: &World, node: usize, peer: PeerId, mut endpoints: Vec<Endpoint>) -> Vec<Endpoint> {
    let now = world.now;
    let reached = world.nodes[node].process.as_ref().and_then(|p| p.reached.get(&peer));
    if let Some((endpoint, since)) = reached
        && now - *since < RETURN_TO_FIRST
        && let Some(at) = endpoints.iter().position(|e| e == endpoint)
    {
        endpoints[..=at].rotate_right(1);
    }
    endpoints
}

fn remember_reached(world: &mut World, node: usize, peer: PeerId, endpoint: &Endpoint) {
    let now = world.now;
    let Some(process) = world.nodes[node].process.as_mut() else { return };
    let standing = process.reached.get(&peer).filter(|(e, since)| e == endpoint && now - *since < RETURN_TO_FIRST);
    let since: Mono = standing.map_or(now, |(_, since)| *since);
    process.reached.insert(peer, (endpoint.clone(), since));
}

/// A rule made by hand, for scenarios; ends with [`World::heal`].
pub const BY_HAND: u64 = u64::MAX;

impl World {
    /// Nothing passes between the two sets, either way.
    pub fn partition(&mut self, one: super::network::Nodes, other: super::network::Nodes) {
        self.trace.line(self.now, format_args!("partition {one:?} | {other:?}"));
        for (from, to) in [(one, other), (other, one)] {
            self.wall(from, to);
        }
    }

    /// Nothing passes from the one set to the other.
    pub fn wall(&mut self, from: super::network::Nodes, to: super::network::Nodes) {
        let until = Mono::from_ms(u64::MAX);
        self.network.rules.push(Rule { id: BY_HAND, kind: Kind::Partition, from, to, amount: 0, until });
    }

    /// Ends what was done by hand to the network.
    pub fn heal(&mut self) {
        self.trace.line(self.now, format_args!("heal"));
        self.network.end(BY_HAND);
    }
}
