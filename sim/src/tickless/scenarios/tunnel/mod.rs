//! Scenario 20, `tunnel_replay_and_roaming`: three peers with production's tunnel, and a thief who has every datagram
//! that was ever on the way. Hosts move, NATs forget, processes restart, keys are renewed as time goes by; 100,000
//! datagrams are played again in each run, in any order, to anyone, from anywhere. No packet comes out twice.

mod packet;
mod peer;
mod witness;

use super::{super::world::World, stage::Casting, stage::Stage};
use arctic::{dataplane::iptun::Outgoing, model::Mono, os::datagram::Way};
use packet::{ASKED, client, server};
use peer::{EXIT, PEERS, PORT, Peer, STORY_MAX, Taken, home, peer_id, set_clock};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use witness::{Came, Kind, Sent, Witness};

/// Datagrams played again in a run.
const REPLAYED: usize = 100_000;
/// Of them, while everything else goes on; the rest comes when all is over.
const REPLAYED_MEANWHILE: usize = 70_000;
const STORM: usize = 1400;
/// Production's.
const TICK: Duration = Duration::from_millis(250);
/// Nothing is lost or late from here on; the thief begins his last.
const CALM: Mono = Mono::from_ms(440_000);
const END: Mono = Mono::from_ms(520_000);
/// A peer that knows no more of a session than the other begins one after 15 s, and once more after 5 s; an address that
/// was true before comes first.
const RECOVERED_WITHIN: Duration = Duration::from_secs(60);
const THIEF: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 66));
/// Questions of one burst that goes beyond every window.
const FLOOD: u64 = 3000;
const _: () = assert!(END.since_start().as_millis() < STORY_MAX.as_millis());

/// A datagram that was sent.
struct Record {
    sender: usize,
    from: SocketAddr,
    to: SocketAddr,
    datagram: Vec<u8>,
}

enum Event {
    Tick(usize),
    Arrive {
        record: usize,
        from: SocketAddr,
        to: SocketAddr,
    },
    /// Clients of a peer ask so many questions.
    Ask(usize, u64),
    /// A peer sends what its own gate would not let through.
    Intrude(usize),
    Storm(usize),
    Move(usize),
    Rebind(usize),
    /// Others learn where a peer is.
    Tell(usize),
    Stop(usize),
    Start(usize),
}

struct Wire {
    stage: Stage,
    seed: u64,
    peers: Vec<Peer>,
    queue: BTreeMap<(Mono, u64), Event>,
    scheduled: u64,
    records: Vec<Record>,
    witness: Witness,
    loss_percent: u64,
    repeat_percent: u64,
    late_percent: u64,
    /// What everyone is told of each peer.
    addresses: Vec<Vec<IpAddr>>,
    moved: u8,
    numbers: u64,
    /// Numbers that no gate may let through.
    forbidden: BTreeSet<u64>,
    delivered: BTreeSet<u64>,
    /// By peer: when its clients last had an answer.
    answered: BTreeMap<usize, Mono>,
    replayed: usize,
}

pub fn tunnel_replay_and_roaming(casting: Casting) -> World {
    let mut wire = Wire::new(casting);
    wire.plan();
    wire.play(END);
    wire.conclude();
    wire.stage.world
}

impl Wire {
    fn new(casting: Casting) -> Self {
        let stage = Stage::empty(casting, 0, |_| {});
        let seed = casting.seed;
        let mut wire = Self {
            stage,
            seed,
            peers: (0..PEERS).map(|index| Peer::new(seed, index)).collect(),
            queue: BTreeMap::new(),
            scheduled: 0,
            records: Vec::new(),
            witness: Witness::default(),
            loss_percent: 0,
            repeat_percent: 0,
            late_percent: 0,
            addresses: (0..PEERS).map(|index| vec![home(index)]).collect(),
            moved: 0,
            numbers: 0,
            forbidden: BTreeSet::new(),
            delivered: BTreeSet::new(),
            answered: BTreeMap::new(),
            replayed: 0,
        };
        wire.loss_percent = wire.stage.rng.below(20);
        wire.repeat_percent = wire.stage.rng.below(30);
        wire.late_percent = wire.stage.rng.below(30);
        wire
    }

    fn at(&mut self, when: Mono, event: Event) {
        self.scheduled += 1;
        self.queue.insert((when, self.scheduled), event);
    }

    fn sometime(&mut self) -> Mono {
        Mono::from_ms(5_000 + self.stage.rng.below(CALM.since_start().as_millis() as u64 - 10_000))
    }

    fn plan(&mut self) {
        for index in 0..PEERS {
            self.witness.owner.insert(home(index), index);
            let phase = self.stage.rng.below(250);
            self.at(Mono::from_ms(phase), Event::Tick(index));
            self.at(Mono::from_ms(phase), Event::Start(index));
        }
        for second in 1..END.since_start().as_secs() {
            for source in (0..PEERS).filter(|n| *n != EXIT) {
                let count = if self.stage.rng.below(60) == 0 { FLOOD } else { 1 + self.stage.rng.below(30) };
                let count = if Mono::from_ms(second * 1000) < CALM { count } else { 2 };
                let ms = second * 1000 + self.stage.rng.below(1000);
                self.at(Mono::from_ms(ms), Event::Ask(source, count));
            }
        }
        for _ in 0..100 {
            let (when, who) = (self.sometime(), self.stage.rng.below(PEERS as u64) as usize);
            self.at(when, Event::Intrude(who));
        }
        for _ in 0..3 + self.stage.rng.below(4) {
            let (when, who) = (self.sometime(), self.stage.rng.below(PEERS as u64) as usize);
            self.at(when, Event::Stop(who));
        }
        for _ in 0..4 + self.stage.rng.below(5) {
            let (when, who) = (self.sometime(), self.stage.rng.below(PEERS as u64) as usize);
            let event = if self.stage.rng.below(3) == 0 { Event::Rebind(who) } else { Event::Move(who) };
            self.at(when, event);
        }
        for _ in 0..REPLAYED_MEANWHILE / STORM {
            let when = self.sometime();
            self.at(when, Event::Storm(STORM));
        }
        self.at(CALM, Event::Storm(REPLAYED - REPLAYED_MEANWHILE));
    }

    fn play(&mut self, end: Mono) {
        while self.stage.world.failure.is_none() {
            let Some((&(now, _), _)) = self.queue.first_key_value() else { return };
            if now >= end {
                return;
            }
            let Some((_, event)) = self.queue.pop_first() else { return };
            self.stage.world.now = now;
            self.stage.world.steps += 1;
            set_clock(now);
            self.handle(event, now);
        }
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        self.stage.world.trace.line(self.stage.world.now, line);
    }

    fn judge(&mut self, verdict: Result<(), (&'static str, String)>) {
        if let Err((invariant, what)) = verdict {
            self.stage.world.violate(invariant, what);
        }
    }

    fn handle(&mut self, event: Event, now: Mono) {
        let mut out = Vec::new();
        match event {
            Event::Tick(n) => {
                self.at(now + TICK, Event::Tick(n));
                if self.peers[n].up {
                    self.peers[n].tick(&mut out);
                    self.send(n, out, None);
                }
            }
            Event::Arrive { record, from, to } => self.arrive(record, from, to, None),
            Event::Ask(n, count) => self.ask(n, count, now),
            Event::Intrude(n) => self.intrude(n),
            Event::Storm(count) => self.storm(count),
            Event::Move(n) => {
                self.moved += 1;
                let host = IpAddr::from([198, 51, 100, self.moved]);
                self.peers[n].host = host;
                self.peers[n].nat_port = PORT;
                self.witness.owner.insert(host, n);
                self.line(format_args!("n{} moves to {host}", n + 1));
                let later = now + Duration::from_millis(1000 + self.stage.rng.below(39_000));
                self.at(later, Event::Tell(n));
            }
            Event::Rebind(n) => {
                self.peers[n].nat_port = 20_000 + self.stage.rng.below(20_000) as u16;
                let port = self.peers[n].nat_port;
                self.line(format_args!("n{} is seen at port {port}", n + 1));
            }
            Event::Tell(n) => {
                let host = self.peers[n].host;
                self.addresses[n] = vec![host, home(n)];
                let (id, addresses) = (peer_id(self.seed, n), self.addresses[n].clone());
                self.line(format_args!("others learn that n{} is at {host}", n + 1));
                for other in (0..PEERS).filter(|other| *other != n) {
                    self.peers[other].learn(id, addresses.clone());
                    self.witness.told.insert((other, n), addresses.clone());
                }
            }
            Event::Stop(n) => {
                self.peers[n].up = false;
                self.line(format_args!("n{} stops", n + 1));
                let later = now + Duration::from_millis(self.stage.rng.below(4000));
                self.at(later, Event::Start(n));
            }
            Event::Start(n) => {
                self.line(format_args!("n{} starts", n + 1));
                self.witness.restarted(n);
                for other in (0..PEERS).filter(|other| *other != n) {
                    self.witness.told.insert((n, other), self.addresses[other].clone());
                }
                self.peers[n].start(self.seed, &self.addresses, now, &mut out);
                self.send(n, out, None);
            }
        }
    }

    /// Puts what a peer sends on its way. `answers`: whose datagram it is the answer to.
    fn send(&mut self, n: usize, out: Vec<Outgoing>, answers: Option<SocketAddr>) {
        for Outgoing { way, datagram, .. } in out {
            let way = match way.local {
                Some(local) if local != self.peers[n].host => self.peers[n].cannot_send(way),
                _ => way,
            };
            let kind = Kind::of(&datagram);
            let verdict =
                self.witness.sent(n, Sent { to: way.remote, kind, bytes: datagram.len() }, &datagram, answers);
            self.judge(verdict);
            let from = self.peers[n].address();
            let record = self.records.len();
            self.records.push(Record { sender: n, from, to: way.remote, datagram });
            let copies = 1 + u64::from(self.happens(self.repeat_percent)) - u64::from(self.happens(self.loss_percent));
            for _ in 0..copies {
                let base = 5 + self.stage.rng.below(40);
                let late = if self.happens(self.late_percent) { self.stage.rng.below(3000) } else { 0 };
                let when = self.stage.world.now + Duration::from_millis(base + late);
                self.at(when, Event::Arrive { record, from, to: way.remote });
            }
        }
    }

    fn happens(&mut self, percent: u64) -> bool {
        self.stage.world.now < CALM && self.stage.rng.below(100) < percent
    }

    /// A datagram comes to an address; `change`: a byte of it, and which of its bits are turned.
    fn arrive(&mut self, record: usize, from: SocketAddr, to: SocketAddr, change: Option<(usize, u8)>) {
        let open = |peer: &Peer| peer.up && peer.host == to.ip() && [peer.nat_port, PORT].contains(&to.port());
        let Some(n) = self.peers.iter().position(open) else { return };
        let Record { sender, datagram, .. } = &self.records[record];
        let (sender, mut datagram) = (*sender, datagram.clone());
        if let Some((at, bits)) = change {
            datagram[at] ^= bits;
        }
        let (now, way) = (self.stage.world.now, Way { remote: from, local: Some(to.ip()) });
        let mut out = Vec::new();
        let taken = self.peers[n].receive(way, &datagram, now, &mut out);
        let was_refused = matches!(taken, Taken::Refused);
        // What a changed datagram says of itself, it says of another.
        let kind = Kind::of(&self.records[record].datagram);
        let is_changed = change.is_some();
        let came = Came { at: n, from, record, sender, kind, bytes: datagram.len(), is_changed, was_refused };
        let sent: Vec<_> = out
            .iter()
            .map(|o| Sent { to: o.way.remote, kind: Kind::of(&o.datagram), bytes: o.datagram.len() })
            .collect();
        let word = kind.word();
        let verdict = if was_refused { "refused" } else { "taken" };
        self.line(format_args!("n{} {word} #{record} of n{} from {from}: {verdict}", n + 1, sender + 1));
        let verdict = self.witness.came(came, &sent);
        self.judge(verdict);
        self.send(n, out, Some(from));
        if let Taken::Packet(peer, packet, verdict) = taken {
            let foreign = peer != peer_id(self.seed, sender);
            self.stage.demand("T3", !foreign, || format!("n{} took a packet for another peer's", n + 1));
            self.deliver(n, &packet, verdict.is_ok_and(|passed| passed.peer == peer));
        }
    }

    /// What the kernel of a peer is given, or would be.
    fn deliver(&mut self, n: usize, packet: &[u8], passes: bool) {
        let Some((number, source, dest, ports)) = packet::read(packet) else {
            return self.stage.demand("T3", false, || format!("n{} opened something that nobody sent", n + 1));
        };
        let forbidden = self.forbidden.contains(&number);
        self.stage.demand("T3", !(passes && forbidden), || format!("n{} let packet {number} through", n + 1));
        if !passes {
            let covered = n == EXIT && !forbidden;
            return self.stage.demand("K8", !covered, || format!("n{} refused packet {number}", n + 1));
        }
        let is_first = self.delivered.insert(number);
        self.stage.demand("T1", is_first, || format!("n{} delivers packet {number} a second time", n + 1));
        if n != EXIT {
            self.answered.insert(n, self.stage.world.now);
            return;
        }
        self.numbers += 1;
        let mut answer = packet::packet(dest, source, (ports.1, ports.0), self.numbers, 8);
        let mut out = Vec::new();
        let sent = self.peers[n].send(&mut answer, self.stage.world.now, &mut out);
        self.stage.demand("K8", sent.is_some(), || format!("the answer to packet {number} finds no way back"));
        self.send(n, out, None);
    }

    fn ask(&mut self, n: usize, count: u64, now: Mono) {
        if !self.peers[n].up {
            return;
        }
        let mut out = Vec::new();
        for _ in 0..count {
            self.numbers += 1;
            let (v6, host) = (self.stage.rng.below(2) == 0, 2 + self.stage.rng.below(50) as u8);
            let size = if count == FLOOD { 8 } else { self.stage.rng.below(1300) as usize };
            let mut packet = packet::packet(client(n, v6, host), server(v6), ASKED, self.numbers, size);
            let sent = self.peers[n].send(&mut packet, now, &mut out);
            let rightly = sent == Some(peer_id(self.seed, EXIT));
            self.stage.demand("K8", rightly, || format!("n{} sends a client's packet to {sent:?}", n + 1));
        }
        self.send(n, out, None);
    }

    /// Addresses of no service, or of somebody else's, from a peer that is trusted.
    fn intrude(&mut self, n: usize) {
        if !self.peers[n].up {
            return;
        }
        self.numbers += 1;
        self.forbidden.insert(self.numbers);
        let other = (n + 1 + self.stage.rng.below(PEERS as u64 - 1) as usize) % PEERS;
        let stranger = IpAddr::from([10, 200, 0, 1]);
        let (source, dest) = match self.stage.rng.below(4) {
            0 => (stranger, server(false)),
            1 => (client(n, false, 2), stranger),
            2 => (client((n + 2) % PEERS, false, 2), server(false)),
            _ => (server(true), client(other, true, 2)),
        };
        // The other source's clients are none of the exit's either.
        let packet = packet::packet(source, dest, (4000, 4001), self.numbers, 8);
        let mut out = Vec::new();
        self.peers[n].force(peer_id(self.seed, other), &packet, &mut out);
        self.send(n, out, None);
    }

    /// The thief plays datagrams again that he has.
    fn storm(&mut self, count: usize) {
        let (order, held) = (self.stage.rng.below(4), self.records.len());
        if held == 0 {
            return;
        }
        self.line(format_args!("the thief plays {count} of {held} datagrams"));
        let first = self.stage.rng.below(held as u64) as usize;
        for i in 0..count {
            let record = match order {
                0 => (first + i) % held,
                1 => held - 1 - (first + i) % held,
                2 => first.saturating_sub(i % 8),
                _ => self.stage.rng.below(held as u64) as usize,
            };
            self.play_again(record);
            if self.stage.world.failure.is_some() {
                return;
            }
        }
    }

    fn play_again(&mut self, record: usize) {
        let Record { sender, from, to, ref datagram } = self.records[record];
        let receiver = self.witness.owner.get(&to.ip()).copied();
        // Whoever brings a datagram first brings it, wherever its sender is: from his own address the thief shows only
        // what its receiver has met. An initiation moves nobody.
        let is_met = self.witness.taken.contains(&record) || Kind::of(datagram) == Kind::Initiation;
        let own = SocketAddr::new(THIEF, 1024 + self.stage.rng.below(60_000) as u16);
        let from = match self.stage.rng.below(4) {
            0 | 1 if is_met => own,
            2 => self.peers[sender].address(),
            _ => from,
        };
        let to = match (self.stage.rng.below(8), receiver) {
            (0, _) => self.peers[sender].address(),
            (1, _) => self.peers[self.stage.rng.below(PEERS as u64) as usize].address(),
            (_, Some(receiver)) => self.peers[receiver].address(),
            (_, None) => to,
        };
        let bits = 1 << self.stage.rng.below(8);
        // But for the three bytes behind the kind, which say nothing and which nobody seals.
        let at = match self.stage.rng.below(1500) as usize % datagram.len().max(1) {
            1..4 => 0,
            at => at,
        };
        let change = (self.stage.rng.below(16) == 0).then_some((at, bits));
        self.replayed += 1;
        self.arrive(record, from, to, change);
    }

    fn conclude(&mut self) {
        let (replayed, delivered) = (self.replayed, self.delivered.len());
        let Witness { handshakes, refused, moves, .. } = self.witness;
        let held = self.records.len();
        self.line(format_args!(
            "{held} datagrams, {replayed} of them played again, {refused} refused, {handshakes} handshakes, {moves} \
             moves, {delivered} packets"
        ));
        for n in (0..PEERS).filter(|n| *n != EXIT) {
            let last = self.answered.get(&n).copied().unwrap_or_default();
            let lives = last + Duration::from_secs(5) > END;
            let after = CALM + RECOVERED_WITHIN;
            self.stage.demand("T3", lives && last > after, || {
                format!("clients of n{} had their last answer at {:?}", n + 1, last.since_start())
            });
        }
        let told = replayed == REPLAYED && handshakes > 8 && moves > 0 && delivered > 1000;
        self.stage.demand("story", told || self.stage.world.failure.is_some(), || {
            format!("{replayed} replayed, {handshakes} handshakes, {moves} moves, {delivered} packets")
        });
    }
}
