//! Two endpoints over a simulated link, in virtual time: `a` opens sessions, `b` is the exit.

mod carrying;
mod limited;
mod security;

use super::{
    endpoint::{Endpoint, Event, Handle, Reject},
    frame::{End, FlowId},
    noise::StaticKey,
    session::{Notice, Outcome},
};
use crate::model::{Mono, PeerId, Rng, UnixTime};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use x25519_dalek::StaticSecret;

#[derive(Debug, Clone)]
pub(super) struct Link {
    pub delay: Duration,
    /// Each datagram is late by a part of this, and so overtaken.
    pub jitter: Duration,
    pub loss: f64,
    pub duplicates: f64,
    pub rate_mbps: Option<f64>,
    pub cut: bool,
    /// Larger datagrams get lost, and nobody tells.
    pub mtu_bytes: usize,
}

impl Link {
    pub fn new(delay_ms: u64) -> Self {
        let delay = Duration::from_millis(delay_ms);
        Self {
            delay,
            jitter: Duration::ZERO,
            loss: 0.0,
            duplicates: 0.0,
            rate_mbps: None,
            cut: false,
            mtu_bytes: usize::MAX,
        }
    }
    pub fn lossy(delay_ms: u64, loss: f64) -> Self {
        Self { loss, ..Self::new(delay_ms) }
    }
}

pub(super) struct Datagram {
    pub to: usize,
    pub from: SocketAddr,
    pub bytes: Vec<u8>,
}

/// What one end does with a flow: sends all of `send`, then ends; keeps what it reads.
#[derive(Default)]
pub(super) struct Work {
    pub send: Vec<u8>,
    sent: usize,
    ended: bool,
    pub got: Vec<u8>,
    pub end: Option<Outcome>,
    /// Reads at most this much in all, until raised.
    pub read_max: usize,
    /// More is still to come behind `send`.
    pub open: bool,
}

impl Work {
    pub fn new(send: Vec<u8>) -> Self {
        Self { send, read_max: usize::MAX, ..Self::default() }
    }
    pub fn is_done(&self) -> bool {
        self.ended && self.end.is_some()
    }
}

pub(super) struct World {
    pub now: Mono,
    pub ends: [Endpoint; 2],
    pub keys: [StaticKey; 2],
    pub peers: [PeerId; 2],
    pub link: Link,
    pub rng: Rng,
    queue: BTreeMap<(Mono, u64), Datagram>,
    sequence: u64,
    free_at: [Mono; 2],
    pub work: [BTreeMap<(Handle, FlowId), Work>; 2],
    /// What `b` answers on each flow.
    pub answers: BTreeMap<FlowId, Vec<u8>>,
    pub established: [Vec<Handle>; 2],
    pub lost: [Vec<Handle>; 2],
    pub recorded: Option<Vec<Datagram>>,
    pub rejected: Vec<Reject>,
    pub wire_bytes: u64,
    /// How many of the next datagrams from `a` get lost, whatever the link says.
    pub lose_next: usize,
    trace: Sha256,
}

pub(super) const ADDRESSES: [&str; 2] = ["192.0.2.1:61000", "198.51.100.2:61000"];

pub(super) fn address(end: usize) -> SocketAddr {
    ADDRESSES[end].parse().unwrap()
}

pub(super) fn pattern(length: usize, salt: u64) -> Vec<u8> {
    (0..length as u64).map(|i| ((i ^ salt).wrapping_mul(0x9e37_79b9) >> 11) as u8).collect()
}

impl World {
    pub fn new(link: Link, seed: u8) -> Self {
        let mut rng = Rng::from_seed([seed; 32]);
        let secrets = [1u8, 2].map(|n| StaticSecret::from([n; 32]));
        let keys = [0, 1].map(|i| x25519_dalek::PublicKey::from(&secrets[i]).to_bytes());
        let peers = [1, 2].map(|n| PeerId::mint(UnixTime::from_ms(n), &mut rng));
        let ends = secrets.map(|secret| Endpoint::new(secret, seed.is_multiple_of(2), rng.fork()));
        let mut world = Self {
            now: Mono::from_ms(1000),
            ends,
            keys,
            peers,
            link,
            rng,
            queue: BTreeMap::new(),
            sequence: 0,
            free_at: [Mono::default(); 2],
            work: Default::default(),
            answers: BTreeMap::new(),
            established: Default::default(),
            lost: Default::default(),
            recorded: None,
            rejected: vec![],
            wire_bytes: 0,
            lose_next: 0,
            trace: Sha256::new(),
        };
        for end in 0..2 {
            world.ends[end].trust([(keys[1 - end], peers[1 - end])].into());
        }
        world
    }

    /// A world whose session is established.
    pub fn connected(link: Link, seed: u8) -> (Self, Handle) {
        let mut world = Self::new(link, seed);
        let handle = world.connect();
        world.run_until(Duration::from_secs(60), |w| w.ends[0].is_established(handle) && !w.established[1].is_empty());
        (world, handle)
    }

    pub fn connect(&mut self) -> Handle {
        self.ends[0].connect(self.now, self.keys[1], &[address(1)]).unwrap()
    }

    /// Begins a process of `b` anew: it knows nothing.
    pub fn restart_b(&mut self) {
        let rng = self.rng.fork();
        self.ends[1] = Endpoint::new(StaticSecret::from([2; 32]), true, rng);
        self.ends[1].trust([(self.keys[0], self.peers[0])].into());
        self.work[1].clear();
        self.established[1].clear();
    }

    pub fn open(&mut self, handle: Handle, send: Vec<u8>, answer: Vec<u8>) -> FlowId {
        let now = self.now;
        let flow = self.ends[0].session(handle).unwrap().open(now).unwrap();
        self.work[0].insert((handle, flow), Work::new(send));
        self.answers.insert(flow, answer);
        flow
    }

    pub fn trace(&self) -> [u8; 32] {
        self.trace.clone().finalize().into()
    }

    pub fn run_until(&mut self, limit: Duration, mut holds: impl FnMut(&mut Self) -> bool) {
        let end = self.now + limit;
        while !holds(self) {
            assert!(self.now < end, "did not happen in {limit:?} of virtual time");
            self.step(end);
        }
    }

    pub fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.step(end);
        }
    }

    fn step(&mut self, end: Mono) {
        for side in 0..2 {
            self.pump(side);
            self.transmit(side);
        }
        let arrival = self.queue.first_key_value().map(|((at, _), _)| *at);
        let timers = self.ends.iter().filter_map(Endpoint::poll_timeout).min();
        let next = [arrival, timers].into_iter().flatten().min().unwrap_or(end).min(end);
        // Time goes on even if a timer stays due: a machine that spins is found by the limit of its test.
        self.now = self.now.max(next);
        if arrival.is_some_and(|at| at <= self.now) {
            let (_, datagram) = self.queue.pop_first().unwrap();
            self.deliver(&datagram);
        }
        for side in 0..2 {
            if self.ends[side].poll_timeout().is_some_and(|at| at <= self.now) {
                let now = self.now;
                self.ends[side].handle_timeout(now);
                self.trace.update([side as u8]);
            }
        }
        if next <= self.now && timers.is_some_and(|t| t + Duration::from_millis(1) < self.now) {
            self.now = self.now + Duration::from_micros(50);
        }
    }

    pub fn deliver(&mut self, datagram: &Datagram) {
        self.trace.update(self.now.since_start().as_nanos().to_be_bytes());
        self.trace.update(&datagram.bytes);
        let to: IpAddr = address(datagram.to).ip();
        let now = self.now;
        if let Err(reject) = self.ends[datagram.to].handle_datagram(now, datagram.from, Some(to), &datagram.bytes) {
            self.rejected.push(reject);
        }
    }

    fn transmit(&mut self, side: usize) {
        let now = self.now;
        let mut out = vec![];
        while let Some(way) = self.ends[side].poll_transmit(now, &mut out) {
            assert_eq!(way.to, address(1 - side));
            assert!(out.len() <= super::MTU_BYTES);
            self.wire_bytes += out.len() as u64 + 28;
            let bytes = std::mem::take(&mut out);
            self.offer(side, bytes);
        }
    }

    fn chance(&mut self, part: f64) -> bool {
        (self.rng.below(1 << 30) as f64) < part * (1u64 << 30) as f64
    }

    fn offer(&mut self, side: usize, bytes: Vec<u8>) {
        if let Some(recorded) = &mut self.recorded {
            recorded.push(Datagram { to: 1 - side, from: address(side), bytes: bytes.clone() });
        }
        let mut at = self.now;
        if let Some(rate) = self.link.rate_mbps {
            let free = self.free_at[side].max(self.now);
            // One bandwidth-delay product waits; more is lost.
            if free - self.now > self.link.delay * 2 + Duration::from_millis(10) {
                return;
            }
            at = free + Duration::from_secs_f64((bytes.len() + 28) as f64 * 8.0 / (rate * 1e6));
            self.free_at[side] = at;
        }
        let lost = self.chance(self.link.loss) || self.link.cut || bytes.len() + 48 > self.link.mtu_bytes;
        let forced = side == 0 && self.lose_next > 0;
        self.lose_next -= usize::from(forced);
        let copies = if lost || forced { 0 } else { 1 + usize::from(self.chance(self.link.duplicates)) };
        for _ in 0..copies {
            let late = Duration::from_nanos(self.rng.below(self.link.jitter.as_nanos() as u64 + 1));
            self.sequence += 1;
            let datagram = Datagram { to: 1 - side, from: address(side), bytes: bytes.clone() };
            self.queue.insert((at + self.link.delay + late, self.sequence), datagram);
        }
    }

    fn pump(&mut self, side: usize) {
        while let Some(event) = self.ends[side].poll_event() {
            match event {
                Event::Established(handle) => self.established[side].push(handle),
                Event::Lost(handle) => self.lost[side].push(handle),
                Event::Flow(handle, Notice::Opened(flow)) => {
                    let answer = self.answers.get(&flow).cloned().unwrap_or_default();
                    self.work[side].insert((handle, flow), Work::new(answer));
                }
                Event::Flow(..) => {}
            }
        }
        let now = self.now;
        for ((handle, flow), work) in &mut self.work[side] {
            if work.is_done() {
                continue;
            }
            let Some(session) = self.ends[side].session(*handle) else {
                work.end.get_or_insert(Outcome::Reset { untouched: false });
                work.ended = true;
                continue;
            };
            while work.sent < work.send.len() {
                match session.write(*flow, &work.send[work.sent..]) {
                    Outcome::Moved(n) => work.sent += n,
                    _ => break,
                }
            }
            if work.sent == work.send.len() && !work.ended && !work.open {
                session.end(*flow, End::Finished);
                work.ended = true;
            }
            while work.end.is_none() && work.got.len() < work.read_max {
                let max = (work.read_max - work.got.len()).min(64 << 10);
                match session.read(now, *flow, max, &mut work.got) {
                    Outcome::Moved(_) => {}
                    Outcome::Blocked => break,
                    ended => {
                        work.ended |= matches!(ended, Outcome::Reset { .. });
                        work.end = Some(ended);
                    }
                }
            }
            if work.is_done() {
                session.detach(*flow);
            }
        }
    }

    pub fn all_done(&self) -> bool {
        self.work.iter().all(|side| side.values().all(Work::is_done))
    }
}
