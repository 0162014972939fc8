//! The machines of the tunnel against each other, without a kernel.

mod wire;

use super::{
    INNER_MTU,
    flows::{Aliases, Flow, FlowKey, Flows, MAX_ALIASES_PER_PEER, MAX_FLOWS, is_alias},
    gate::{Gate, Stop, TunnelRefusal},
    packet::{End, Header, ICMP, ICMP_V6, too_big},
    sessions::{MAX_INITIATIONS_PER_TICK, Outgoing, Received, Sessions},
};
use crate::{
    model::{
        DataPorts, Endpoint, Mono, PeerId, Rng, Route, Service, ServiceBody, ServiceId, SigningKey, Transport, UnixTime,
    },
    os::datagram::Way,
    routing::{ForwardedService, Forwarding, PeerPath},
};
use proptest::prelude::*;
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

const UDP: u8 = 17;
const GRE: u8 = 47;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn id(n: u8) -> PeerId {
    PeerId::mint(UnixTime::from_ms(1), &mut Rng::from_seed([n; 32]))
}

fn key(n: u8) -> SigningKey {
    SigningKey::from_seed([n; 32])
}

fn path(n: u8) -> PeerPath {
    PeerPath {
        public_key: key(n).public(),
        x25519_key: key(n).x25519_public(),
        endpoints: vec![Endpoint::new(&format!("192.0.2.{n}"), 8080).unwrap()],
        data_ports: DataPorts::default(),
    }
}

/// Snapshot of peer `local`: all of `peers` know each other, services go from each of `sources` to `target`.
fn snapshot(
    local: u8,
    peers: &[u8],
    sources: &[u8],
    target: u8,
    routes: &[(Option<&str>, Option<&str>)],
) -> Forwarding {
    let now = UnixTime::from_ms(1);
    let net = |text: &Option<&str>| text.map(|t| t.parse().unwrap());
    let (mut services, mut own) = (BTreeMap::new(), vec![]);
    for source in sources {
        let made = (1..).zip(routes).map(|(id, (source, dest))| Route {
            id,
            source_cidr: net(source),
            dest_cidr: net(dest),
            priority: 100,
            version: 1,
            created_at: now,
        });
        let body = ServiceBody { routes: made.collect(), ..ServiceBody::plain("s", id(*source), id(target), now) };
        let service = Service { id: service_of(*source), version: 1, body };
        let forwarded = ForwardedService {
            source: id(*source),
            target: id(target),
            transport: Transport::Tcp,
            transparent: false,
            limit_mbps: 0,
            mark: Some(1),
            routes: routes.iter().map(|(s, d)| (net(s), net(d))).collect(),
            whole_interface: false,
        };
        services.insert(service.id, forwarded);
        if *source == local {
            own.push(service);
        }
    }
    let others = peers.iter().filter(|n| **n != local).map(|n| (id(*n), path(*n))).collect();
    Forwarding::new(1, others, services, &own)
}

fn service_of(source: u8) -> ServiceId {
    ServiceId::mint(UnixTime::from_ms(1), &mut Rng::from_seed([source; 32]))
}

fn gate(local: u8, forwarding: Forwarding) -> Gate {
    let forbids = |dest: SocketAddr| dest.ip() == ip("10.9.0.1") && dest.port() == 51840;
    let mut gate = Gate::new(id(local), Box::new(forbids));
    gate.follow(Arc::new(forwarding));
    gate
}

/// Sources 1 and 2, exit 3.
struct Three {
    one: Gate,
    two: Gate,
    exit: Gate,
    now: Mono,
}

impl Three {
    fn new(routes: &[(Option<&str>, Option<&str>)]) -> Self {
        let of = |local| gate(local, snapshot(local, &[1, 2, 3], &[1, 2], 3, routes));
        Self { one: of(1), two: of(2), exit: of(3), now: Mono::default() }
    }

    /// What the exit gives its kernel of a packet that a client of peer 1 sent.
    fn there(&mut self, packet: &[u8]) -> Result<Vec<u8>, Stop> {
        let mut packet = packet.to_vec();
        self.one.take_from_device(&mut packet, self.now)?;
        let passed = self.exit.take_from_peer(id(1), &mut packet, self.now)?;
        assert!(passed.to_target);
        Ok(packet)
    }

    /// What the kernel of peer 1 is given of a packet that the kernel of the exit gave.
    fn back(&mut self, packet: &[u8]) -> Result<Vec<u8>, Stop> {
        let mut packet = packet.to_vec();
        let passed = self.exit.take_from_device(&mut packet, self.now)?;
        assert_eq!((passed.peer, passed.to_target), (id(1), false));
        self.one.take_from_peer(id(3), &mut packet, self.now)?;
        Ok(packet)
    }
}

fn refused(reason: TunnelRefusal) -> impl Fn(&Stop) -> bool {
    move |stop| matches!(stop, Stop::Refused { reason: found, .. } if *found == reason)
}

/// A packet with correct checksums; ports stand at the beginning of `payload`.
fn packet(protocol: u8, source: IpAddr, dest: IpAddr, payload: &[u8]) -> Vec<u8> {
    let mut packet = match (source, dest) {
        (IpAddr::V4(s), IpAddr::V4(d)) => {
            let len = (20 + payload.len()) as u16;
            let mut p = vec![0x45, 0, 0, 0, 0x12, 0x34, 0, 0, 64, protocol, 0, 0];
            p[2..4].copy_from_slice(&len.to_be_bytes());
            p.extend(s.octets());
            p.extend(d.octets());
            let sum = !ones(&p, 0);
            p[10..12].copy_from_slice(&sum.to_be_bytes());
            p
        }
        (IpAddr::V6(s), IpAddr::V6(d)) => {
            let mut p = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
            p[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
            p.extend(s.octets());
            p.extend(d.octets());
            p
        }
        _ => panic!("one family"),
    };
    let at = packet.len();
    packet.extend(payload);
    let checksum = match protocol {
        UDP => at + 6,
        ICMP | ICMP_V6 => at + 2,
        _ => return packet,
    };
    packet[checksum..checksum + 2].fill(0);
    let sum = !transport_sum(&packet);
    packet[checksum..checksum + 2].copy_from_slice(&sum.to_be_bytes());
    packet
}

fn ones(bytes: &[u8], start: u32) -> u16 {
    let mut sum = start;
    for word in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([word[0], *word.get(1).unwrap_or(&0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// All ones if the checksum of the transport is right.
fn transport_sum(packet: &[u8]) -> u16 {
    let (protocol, head, addresses) =
        if packet[0] >> 4 == 4 { (packet[9], 20, &packet[12..20]) } else { (packet[6], 40, &packet[8..40]) };
    let payload = &packet[head..];
    let pseudo = u32::from(ones(addresses, 0)) + u32::from(protocol) + payload.len() as u32;
    ones(payload, if protocol == ICMP { 0 } else { pseudo })
}

fn checksums_hold(packet: &[u8]) -> bool {
    let head = packet[0] >> 4 != 4 || ones(&packet[..20], 0) == 0xffff;
    let protocol = if packet[0] >> 4 == 4 { packet[9] } else { packet[6] };
    head && (![UDP, ICMP, ICMP_V6].contains(&protocol) || transport_sum(packet) == 0xffff)
}

fn udp(source: &str, dest: &str, from: u16, to: u16, text: &[u8]) -> Vec<u8> {
    let mut payload = [from.to_be_bytes(), to.to_be_bytes(), (8 + text.len() as u16).to_be_bytes(), [0, 0]].concat();
    payload.extend(text);
    packet(UDP, ip(source), ip(dest), &payload)
}

fn ends(packet: &[u8]) -> (IpAddr, IpAddr) {
    let header = Header::parse(packet).unwrap();
    (header.source, header.dest)
}

/// The packet with its ends exchanged, as a server answers.
fn answer(packet: &[u8], text: &[u8]) -> Vec<u8> {
    let (source, dest) = ends(packet);
    let at = Header::parse(packet).unwrap().transport;
    let port = |i: usize| u16::from_be_bytes([packet[at + i], packet[at + i + 1]]);
    udp(&dest.to_string(), &source.to_string(), port(2), port(0), text)
}

const V4: (Option<&str>, Option<&str>) = (Some("10.1.0.0/16"), Some("10.9.0.0/16"));
const V6: (Option<&str>, Option<&str>) = (None, Some("fd09::/16"));

#[test]
fn a_packet_crosses_under_an_alias_and_its_reply_comes_back_as_if_sent_directly() {
    for (client, server) in [("10.1.0.2", "10.9.0.2"), ("fd01::2", "fd09::2")] {
        let mut three = Three::new(&[V4, V6]);
        let there = three.there(&udp(client, server, 5000, 53, b"question")).unwrap();
        let (alias, dest) = ends(&there);
        assert!(is_alias(alias) && dest == ip(server), "{alias} {dest}");
        assert!(checksums_hold(&there));
        assert_eq!(there[there.len() - 8..], *b"question");
        let back = three.back(&answer(&there, b"answer")).unwrap();
        assert_eq!(back, udp(server, client, 53, 5000, b"answer"));
    }
}

#[test]
fn clients_of_two_peers_with_one_address_are_kept_apart() {
    let mut three = Three::new(&[V4]);
    let sent = udp("10.1.0.2", "10.9.0.2", 5000, 53, b"x");
    let (mut first, mut second) = (sent.clone(), sent.clone());
    three.exit.take_from_peer(id(1), &mut first, three.now).unwrap();
    three.exit.take_from_peer(id(2), &mut second, three.now).unwrap();
    assert_ne!(ends(&first), ends(&second));
    for (n, there) in [(1, first), (2, second)] {
        let mut back = answer(&there, b"y");
        assert_eq!(three.exit.take_from_device(&mut back, three.now).unwrap().peer, id(n));
        assert_eq!(ends(&back).1, ip("10.1.0.2"));
    }
    // Neither knows the other's flow.
    let mut stray = answer(&sent, b"y");
    assert!(three.two.take_from_peer(id(3), &mut stray, three.now).is_err());
}

#[test]
fn the_exit_takes_only_what_a_route_of_the_sender_covers() {
    use TunnelRefusal::*;
    let sent = |source: &str, dest: &str, port| udp(source, dest, 5000, port, b"x");
    let cases = [
        (1, sent("10.2.0.2", "10.9.0.2", 53), OutsideRoutes),
        (1, sent("10.1.0.2", "10.8.0.2", 53), OutsideRoutes),
        (1, sent("10.1.0.2", "127.0.0.1", 53), ForbiddenDestination),
        (1, sent("10.1.0.2", "224.0.0.5", 53), ForbiddenDestination),
        (1, sent("10.1.0.2", "169.254.169.254", 80), ForbiddenDestination),
        (1, sent("10.1.0.2", "10.9.0.1", 51840), ForbiddenDestination),
        (1, sent("127.0.0.1", "10.9.0.2", 53), ForbiddenSource),
        (1, sent("0.0.0.0", "10.9.0.2", 53), ForbiddenSource),
        (1, sent("251.97.0.1", "10.9.0.2", 53), ForbiddenSource),
        (3, sent("10.1.0.2", "10.9.0.2", 53), UnknownService),
        (1, packet(6, ip("10.1.0.2"), ip("10.9.0.2"), &[0; 20]), Tcp),
        (1, vec![], Malformed),
        (1, vec![0x45; 12], Malformed),
        (1, vec![0; 64], Malformed),
    ];
    for (n, (from, mut packet, reason)) in cases.into_iter().enumerate() {
        let mut exit = gate(3, snapshot(3, &[1, 2, 3], &[1], 3, &[V4]));
        let stop = exit.take_from_peer(id(from), &mut packet, Mono::default()).unwrap_err();
        assert!(refused(reason)(&stop), "case {n}: {stop:?}");
    }
}

#[test]
fn a_route_for_everything_does_not_lead_to_another_peers_clients() {
    let mut three = Three::new(&[(None, Some("0.0.0.0/0"))]);
    let there = three.there(&udp("10.1.0.2", "10.9.0.2", 5000, 53, b"x")).unwrap();
    let alias = ends(&there).0.to_string();
    let mut attack = udp("10.1.0.3", &alias, 53, 5000, b"x");
    let stop = three.exit.take_from_peer(id(2), &mut attack, three.now).unwrap_err();
    assert!(refused(TunnelRefusal::ForbiddenDestination)(&stop), "{stop:?}");
}

#[test]
fn only_replies_to_what_was_sent_come_back() {
    let mut three = Three::new(&[V4]);
    let there = three.there(&udp("10.1.0.2", "10.9.0.2", 5000, 53, b"x")).unwrap();
    let alias = ends(&there).0.to_string();
    for stray in [udp("10.9.0.2", &alias, 54, 5000, b"x"), udp("10.9.0.3", &alias, 53, 5000, b"x")] {
        let stop = three.exit.take_from_device(&mut stray.clone(), three.now).unwrap_err();
        assert!(refused(TunnelRefusal::NoFlow)(&stop), "{stop:?}");
    }
    // A target that makes up replies is no better: it has no service of its own to the source.
    let mut made_up = udp("10.9.0.3", "10.1.0.2", 53, 5000, b"x");
    let stop = three.one.take_from_peer(id(3), &mut made_up, three.now).unwrap_err();
    assert!(refused(TunnelRefusal::UnknownService)(&stop), "{stop:?}");
}

#[test]
fn a_ping_and_protocols_without_ports_cross_too() {
    let mut three = Three::new(&[V4, V6]);
    for (client, server, protocol, request, reply) in
        [("10.1.0.2", "10.9.0.2", ICMP, 8, 0), ("fd01::2", "fd09::2", ICMP_V6, 128, 129)]
    {
        let echo = |kind: u8, s: IpAddr, d: IpAddr| packet(protocol, s, d, &[kind, 0, 0, 0, 0x12, 0x34, 0, 1, 9, 9]);
        let there = three.there(&echo(request, ip(client), ip(server))).unwrap();
        assert!(checksums_hold(&there));
        let alias = ends(&there).0;
        let back = three.back(&echo(reply, ip(server), alias)).unwrap();
        assert_eq!(back, echo(reply, ip(server), ip(client)));
        let other = [reply, 0, 0, 0, 0x12, 0x35, 0, 1];
        assert!(three.back(&packet(protocol, ip(server), alias, &other)).is_err(), "of another ping");
    }
    let there = three.there(&packet(GRE, ip("10.1.0.2"), ip("10.9.0.2"), b"anything")).unwrap();
    let back = three.back(&packet(GRE, ip("10.9.0.2"), ends(&there).0, b"something")).unwrap();
    assert_eq!(back, packet(GRE, ip("10.9.0.2"), ip("10.1.0.2"), b"something"));
}

#[test]
fn an_error_about_a_packet_reaches_its_sender_with_the_packet_as_sent() {
    for (client, server, router) in [("10.1.0.2", "10.9.0.2", "10.9.9.1"), ("fd01::2", "fd09::2", "fd0a::1")] {
        let mut three = Three::new(&[V4, V6]);
        let sent = udp(client, server, 5000, 53, b"question");
        let there = three.there(&sent).unwrap();
        let (protocol, kind) = if ip(client).is_ipv4() { (ICMP, 3) } else { (ICMP_V6, 1) };
        let error = |to: IpAddr, about: &[u8]| {
            packet(protocol, ip(router), to, &[&[kind, 3, 0, 0, 0, 0, 0, 0], about].concat())
        };
        let back = three.back(&error(ends(&there).0, &there)).unwrap();
        assert_eq!(back, error(ip(client), &sent));
        let other = three.back(&error(ends(&there).0, &udp(server, client, 1, 2, b"")));
        assert!(other.is_err(), "about a packet that was not sent");
    }
}

#[test]
fn a_clients_error_about_a_reply_reaches_the_server_about_the_reply_it_sent() {
    for (client, server) in [("10.1.0.2", "10.9.0.2"), ("fd01::2", "fd09::2")] {
        let mut three = Three::new(&[V4, V6]);
        let there = three.there(&udp(client, server, 5000, 53, b"question")).unwrap();
        let reply = answer(&there, b"answer");
        let back = three.back(&reply).unwrap();
        let (protocol, kind) = if ip(client).is_ipv4() { (ICMP, 3) } else { (ICMP_V6, 1) };
        let error = |from: IpAddr, about: &[u8]| {
            packet(protocol, from, ip(server), &[&[kind, 3, 0, 0, 0, 0, 0, 0], about].concat())
        };
        let there = three.there(&error(ip(client), &back)).unwrap();
        assert_eq!(there, error(ends(&reply).1, &reply));
    }
}

#[test]
fn fragments_follow_their_first_one() {
    let mut three = Three::new(&[V4]);
    let whole = udp("10.1.0.2", "10.9.0.2", 5000, 53, &[7; 64]);
    let part = |whole: &[u8], from: usize, to: usize, last: bool| {
        let mut p = whole[..20].to_vec();
        p.extend(&whole[20 + from..20 + to]);
        p[2..4].copy_from_slice(&((20 + to - from) as u16).to_be_bytes());
        p[6..8].copy_from_slice(&((from / 8) as u16 | if last { 0 } else { 0x2000 }).to_be_bytes());
        p[10..12].fill(0);
        let sum = !ones(&p[..20], 0);
        p[10..12].copy_from_slice(&sum.to_be_bytes());
        p
    };
    let first = three.there(&part(&whole, 0, 40, false)).unwrap();
    let later = three.there(&part(&whole, 40, 72, true)).unwrap();
    assert_eq!(ends(&first), ends(&later));
    // Put together they have the checksum of the whole.
    let mut together = first.clone();
    together.extend(&later[20..]);
    assert_eq!(transport_sum(&together), 0xffff);
    let reply = answer(&first, &[8; 64]);
    assert_eq!(three.back(&part(&reply, 0, 40, false)).unwrap()[20..], answer(&whole, &[8; 64])[20..60]);
    three.back(&part(&reply, 40, 72, true)).unwrap();
    let stray = part(&udp("10.9.0.3", &ends(&first).0.to_string(), 1, 2, &[0; 64]), 40, 72, true);
    assert!(three.back(&stray).is_err());
}

#[test]
fn packets_with_a_route_of_their_own_are_refused() {
    let mut options = udp("10.1.0.2", "10.9.0.2", 5000, 53, b"x");
    options[0] = 0x47;
    options.splice(20..20, [131, 7, 4, 10, 9, 0, 9, 0]);
    let len = options.len() as u16;
    options[2..4].copy_from_slice(&len.to_be_bytes());
    assert!(Header::parse(&options).is_err());
    let mut routed = packet(43, ip("fd01::2"), ip("fd09::2"), &[UDP, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 2, 0, 8, 0, 0]);
    assert!(Header::parse(&routed).is_err());
    routed[43] = 0;
    assert_eq!(Header::parse(&routed).unwrap().protocol, UDP, "no segments are left");
}

#[test]
fn flows_and_aliases_are_bounded_and_the_idle_ones_go_first() {
    let (mut flows, now) = (Flows::default(), Mono::default());
    let flow = Flow { peer: id(1), service: service_of(1), client: ip("10.1.0.2"), revision: 1 };
    let key = |n: u32| FlowKey {
        client: ip("10.1.0.2"),
        server: IpAddr::from((n + 1).to_be_bytes()),
        protocol: UDP,
        numbers: Some((1, 2)),
    };
    for n in 0..3 * MAX_FLOWS as u32 {
        flows.insert(key(n), flow, now);
        assert_eq!(flows.get(&key(0), now), Some(flow), "one in use stays, at {n}");
    }
    assert!(flows.len() <= MAX_FLOWS);
    assert_eq!(flows.get(&key(1), now), None);
    assert_eq!(flows.get(&key(0), now + Duration::from_secs(4000)), None);

    let mut aliases = Aliases::default();
    let client = |n: u32| IpAddr::from((0x0a01_0000 + n).to_be_bytes());
    for n in 0..MAX_ALIASES_PER_PEER as u32 + 10 {
        let alias = aliases.of(id(1), client(n), now + Duration::from_secs(u64::from(n))).unwrap();
        assert_eq!(aliases.client(alias), Some((id(1), client(n))));
    }
    assert_eq!((aliases.existing(id(1), client(9)), aliases.existing(id(1), client(10)).is_some()), (None, true));
    assert!(aliases.of(id(2), client(0), now).is_some(), "another peer has room of its own");
    aliases.forget_peer(id(1));
    assert_eq!(aliases.existing(id(1), client(100)), None);
    assert!(aliases.existing(id(2), client(0)).is_some());
}

#[test]
fn a_peer_that_is_gone_has_no_flows_left() {
    let mut three = Three::new(&[V4]);
    let there = three.there(&udp("10.1.0.2", "10.9.0.2", 5000, 53, b"x")).unwrap();
    three.exit.follow(Arc::new(snapshot(3, &[2, 3], &[2], 3, &[V4])));
    let mut back = answer(&there, b"y");
    assert!(three.exit.take_from_device(&mut back, three.now).is_err());
}

proptest! {
    #[test]
    fn rewritten_addresses_keep_every_checksum(seed in any::<[u8; 32]>(), len in 0usize..200, v4 in any::<bool>()) {
        let mut rng = Rng::from_seed(seed);
        let mut address = || if v4 { IpAddr::from(rng.bytes::<4>()) } else { IpAddr::from(rng.bytes::<16>()) };
        let (source, dest, other) = (address(), address(), address());
        let text = vec![rng.bytes::<1>()[0]; len];
        let mut sent = udp(&source.to_string(), &dest.to_string(), 1, 2, &text);
        for end in [End::Source, End::Dest] {
            Header::parse(&sent).unwrap().set_address(&mut sent, end, other);
            prop_assert!(checksums_hold(&sent));
        }
        prop_assert_eq!(ends(&sent), (other, other));
    }

    #[test]
    fn no_bytes_break_the_gate(bytes in proptest::collection::vec(any::<u8>(), 0..120), v6 in any::<bool>()) {
        let mut three = Three::new(&[(None, Some("0.0.0.0/0")), (None, Some("::/0"))]);
        let mut bytes = bytes;
        if let Some(first) = bytes.first_mut() {
            *first = if v6 { 0x60 } else { 0x45 + (*first & 1) };
        }
        let _ = three.exit.take_from_peer(id(1), &mut bytes.clone(), three.now);
        let _ = three.one.take_from_device(&mut bytes, three.now);
    }
}

#[test]
fn too_big_packets_are_answered_as_by_a_router() {
    for (client, server) in [("10.1.0.2", "10.9.0.2"), ("fd01::2", "fd09::2")] {
        let sent = udp(client, server, 5000, 53, &[1; 1380]);
        let header = Header::parse(&sent).unwrap();
        let error = too_big(&sent, &header, 1300).unwrap();
        assert!(checksums_hold(&error));
        assert_eq!(ends(&error), (ip(server), ip(client)));
        let (at, quote, mtu) = if ip(client).is_ipv4() { (20, 28, 26) } else { (40, 48, 46) };
        assert_eq!(error[at..at + 2], if at == 20 { [3, 4] } else { [2, 0] });
        assert_eq!(error[mtu..mtu + 2], 1300u16.to_be_bytes());
        assert!(sent.starts_with(&error[quote..]));
        assert!(too_big(&error, &Header::parse(&error).unwrap(), 1300).is_none(), "no error about an error");
    }
}
