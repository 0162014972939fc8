//! Sessions: two ends, and the sealed datagrams between them.

use super::*;

/// Sessions of two peers, and what is on the way between them.
struct Wire {
    ends: [Sessions; 2],
    ways: [Way; 2],
    /// Everything that was ever on the way: to whom, from where, what.
    seen: Vec<(usize, Way, Vec<u8>)>,
}

impl Wire {
    fn new() -> Self {
        let sessions = |own: u8, other: u8| {
            let mut sessions = Sessions::new(&key(own), INNER_MTU, Rng::from_seed([own; 32]));
            sessions.follow(&BTreeMap::from([(id(other), path(other))]));
            sessions.set_addresses(id(other), vec![ip(&format!("192.0.2.{other}"))]);
            sessions
        };
        let way = |n: u8| Way::to(SocketAddr::new(ip(&format!("192.0.2.{n}")), 51840));
        Self { ends: [sessions(1, 2), sessions(2, 1)], ways: [way(1), way(2)], seen: vec![] }
    }

    fn peer_of(end: usize) -> PeerId {
        id([2, 1][end])
    }

    /// Delivers until nothing is on the way; the packets that came out, with their receiver.
    fn settle(&mut self, from: usize, out: Vec<Outgoing>) -> Vec<(usize, Vec<u8>)> {
        let mut packets = vec![];
        let mut going: Vec<_> = out.into_iter().map(|o| (1 - from, o)).collect();
        while let Some((to, sent)) = going.pop() {
            assert_eq!(sent.way.remote, self.ways[to].remote);
            let from = self.ways[1 - to];
            self.seen.push((to, from, sent.datagram.clone()));
            let mut out = vec![];
            if let Received::Packet(_, packet) = self.ends[to].receive(from, &sent.datagram, &mut out) {
                packets.push((to, packet.to_vec()));
            }
            going.extend(out.into_iter().map(|o| (1 - to, o)));
        }
        packets
    }

    fn send(&mut self, from: usize, packet: &[u8]) -> Vec<(usize, Vec<u8>)> {
        let mut out = vec![];
        assert!(self.ends[from].send(Self::peer_of(from), packet, &mut out));
        self.settle(from, out)
    }

    fn rekey(&mut self, from: usize) {
        let mut out = vec![];
        self.ends[from].rekey(Self::peer_of(from), &mut out);
        self.settle(from, out);
    }
}

fn numbered(n: u32) -> Vec<u8> {
    udp("10.1.0.2", "10.9.0.2", 5000, 53, &n.to_be_bytes())
}

/// Packets are padded; their own length says where they end.
fn cut(packet: &[u8]) -> &[u8] {
    &packet[..Header::parse(packet).unwrap().len]
}

#[test]
fn the_first_packet_waits_for_the_handshake_and_none_travels_in_clear() {
    let mut wire = Wire::new();
    for (from, n) in [(0, 1), (1, 2), (0, 3)] {
        let got = wire.send(from, &numbered(n));
        assert_eq!(got.len(), 1);
        assert_eq!((got[0].0, cut(&got[0].1)), (1 - from, numbered(n).as_slice()));
        let text = &numbered(n)[20..];
        assert!(wire.seen.iter().all(|(_, _, d)| !d.windows(text.len()).any(|w| w == text)));
    }
}

// accepts: 001-13
#[test]
fn recorded_datagrams_are_never_delivered_twice_in_whatever_order_across_rekey_and_restart() {
    const EACH_ROUND: u32 = 33_334;
    let mut wire = Wire::new();
    let mut delivered = 0;
    for round in 0..3 {
        for n in 0..EACH_ROUND {
            delivered += wire.send((n % 2) as usize, &numbered(round * EACH_ROUND + n)).len() as u32;
        }
        wire.rekey((round % 2) as usize);
    }
    assert_eq!(delivered, 3 * EACH_ROUND);
    let seen = wire.seen.clone();
    let mut rng = Rng::from_seed([8; 32]);
    for order in 0..5 {
        let mut again: Vec<_> = seen.clone();
        match order {
            0 => {}
            1 => again.reverse(),
            _ => (1..again.len()).for_each(|i| again.swap(i, rng.below(i as u64 + 1) as usize)),
        }
        if order == 4 {
            // A restart forgets everything but the keys.
            wire.ends = Wire::new().ends;
        }
        for (to, from, datagram) in &again {
            let received = wire.ends[*to].receive(*from, datagram, &mut vec![]);
            assert!(!matches!(received, Received::Packet(..)), "order {order}");
        }
    }
    let mut out = vec![];
    wire.ends[0].greet([id(2)].into_iter(), &mut out);
    wire.settle(0, out);
    assert_eq!((wire.send(0, &numbered(1)).len(), wire.send(1, &numbered(2)).len()), (1, 1));
}

#[test]
fn strangers_and_changed_datagrams_get_no_answer() {
    let mut wire = Wire::new();
    wire.send(0, &numbered(1));
    let mut stranger = Sessions::new(&key(9), INNER_MTU, Rng::from_seed([9; 32]));
    stranger.follow(&BTreeMap::from([(id(2), path(2))]));
    stranger.set_addresses(id(2), vec![ip("192.0.2.2")]);
    let mut sent = vec![];
    stranger.send(id(2), &numbered(1), &mut sent);
    let from = Way::to("198.51.100.9:9".parse().unwrap());
    let recorded = wire.seen.iter().filter(|(to, ..)| *to == 1).map(|(.., d)| d.clone());
    let changed = recorded.map(|mut d| {
        *d.last_mut().unwrap() ^= 1;
        d
    });
    let noise = [vec![], vec![0; 4], vec![4; 32], vec![1; 148]];
    for datagram in sent.into_iter().map(|o| o.datagram).chain(noise).chain(changed.collect::<Vec<_>>()) {
        let mut out = vec![];
        let received = wire.ends[1].receive(from, &datagram, &mut out);
        assert!(matches!(received, Received::Refused) && out.is_empty(), "{received:?}");
    }
}

#[test]
fn a_flood_of_handshakes_costs_no_more_than_so_many_a_second() {
    let mut wire = Wire::new();
    let mut initiations = vec![];
    for _ in 0..40 {
        wire.ends[0].rekey(id(2), &mut initiations);
    }
    let from = |n: u32| Way::to(SocketAddr::new(IpAddr::from((0xc633_0000 + n).to_be_bytes()), 1));
    let mut answered = 0;
    for n in 0..20 * MAX_INITIATIONS_PER_TICK {
        let mut out = vec![];
        let copy = &initiations[n as usize % initiations.len()].datagram;
        wire.ends[1].receive(from(n), copy, &mut out);
        answered += out.len();
    }
    assert!(answered <= MAX_INITIATIONS_PER_TICK as usize, "{answered}");
    wire.ends[1].tick(&mut vec![]);
    wire.rekey(0);
    assert_eq!(wire.send(0, &numbered(1)).len(), 1, "the next tick serves again");
}

#[test]
fn a_peer_that_moved_is_answered_there_but_only_after_an_authentic_packet() {
    let mut wire = Wire::new();
    wire.send(0, &numbered(1));
    let moved = Way { remote: "203.0.113.5:1234".parse().unwrap(), local: Some(ip("192.0.2.2")) };
    let next = |wire: &mut Wire| {
        let mut out = vec![];
        wire.ends[1].send(id(1), &numbered(9), &mut out);
        out[0].way
    };
    let mut out = vec![];
    wire.ends[0].send(id(2), &numbered(2), &mut out);
    let authentic = out[0].datagram.clone();
    let mut changed = authentic.clone();
    changed[20] ^= 1;
    assert!(matches!(wire.ends[1].receive(moved, &changed, &mut out), Received::Refused));
    assert_eq!(next(&mut wire), wire.ways[0]);
    assert!(matches!(wire.ends[1].receive(moved, &authentic, &mut out), Received::Packet(..)));
    assert_eq!(next(&mut wire), moved);
    // Neither a recorded packet nor a recorded initiation moves it back.
    let recorded = wire.seen.clone();
    for (_, _, datagram) in recorded.iter().filter(|(to, ..)| *to == 1) {
        wire.ends[1].receive(wire.ways[0], datagram, &mut vec![]);
    }
    assert_eq!(next(&mut wire), moved);
}

#[test]
fn an_address_that_this_host_lost_is_the_source_of_nothing_more() {
    let mut wire = Wire::new();
    let contacted = Way { local: Some(ip("192.0.2.2")), ..wire.ways[0] };
    let mut out = vec![];
    wire.send(0, &numbered(1));
    wire.ends[0].send(id(2), &numbered(2), &mut out);
    wire.ends[1].receive(contacted, &out[0].datagram, &mut vec![]);
    let next = |wire: &mut Wire| {
        let mut out = vec![];
        wire.ends[1].send(id(1), &numbered(9), &mut out);
        out[0].way
    };
    assert_eq!(next(&mut wire), contacted);
    assert_eq!(wire.ends[1].leave(Way::to(contacted.remote)), wire.ways[0], "a way that is nobody's");
    assert_eq!(next(&mut wire), contacted);
    assert_eq!(wire.ends[1].leave(contacted), wire.ways[0]);
    assert_eq!(next(&mut wire), wire.ways[0]);
}

#[test]
fn a_peer_that_is_no_longer_trusted_is_heard_no_more() {
    let mut wire = Wire::new();
    wire.send(0, &numbered(1));
    let mut out = vec![];
    wire.ends[0].send(id(2), &numbered(2), &mut out);
    wire.ends[1].follow(&BTreeMap::new());
    assert!(matches!(wire.ends[1].receive(wire.ways[0], &out[0].datagram, &mut vec![]), Received::Refused));
    assert!(!wire.ends[1].send(id(1), &numbered(3), &mut vec![]));
}

#[test]
fn an_initiation_without_an_answer_goes_to_the_next_address() {
    let mut sessions = Sessions::new(&key(1), INNER_MTU, Rng::from_seed([1; 32]));
    sessions.follow(&BTreeMap::from([(id(2), path(2))]));
    sessions.set_addresses(id(2), vec![ip("192.0.2.2"), ip("192.0.2.3")]);
    let mut out = vec![];
    for _ in 0..3 {
        sessions.rekey(id(2), &mut out);
    }
    let tried: Vec<_> = out.iter().map(|o| o.way.remote.ip()).collect();
    assert_eq!(tried, ["192.0.2.2", "192.0.2.3", "192.0.2.2"].map(ip));
}
