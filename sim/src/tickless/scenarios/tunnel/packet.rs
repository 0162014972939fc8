//! Packets of clients and servers, each with a number that occurs once.

use std::net::IpAddr;

const UDP: u8 = 17;
const PORT: u16 = 53;
const V4_HEADER_BYTES: usize = 20;
const V6_HEADER_BYTES: usize = 40;
const UDP_HEADER_BYTES: usize = 8;

/// A datagram of `size` bytes of payload, at least 8, that begins with the number; without checksums of its own.
pub fn packet(source: IpAddr, dest: IpAddr, ports: (u16, u16), number: u64, size: usize) -> Vec<u8> {
    let size = size.max(8);
    let udp = [ports.0, ports.1, (UDP_HEADER_BYTES + size) as u16, 0].map(u16::to_be_bytes).concat();
    let mut packet = match (source, dest) {
        (IpAddr::V4(s), IpAddr::V4(d)) => {
            let mut head = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, UDP, 0, 0];
            head[2..4].copy_from_slice(&((V4_HEADER_BYTES + udp.len() + size) as u16).to_be_bytes());
            head.extend(s.octets());
            head.extend(d.octets());
            head
        }
        (s, d) => {
            let wide = |ip: IpAddr| match ip {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                IpAddr::V6(v6) => v6.octets(),
            };
            let mut head = vec![0x60, 0, 0, 0, 0, 0, UDP, 64];
            head[4..6].copy_from_slice(&((udp.len() + size) as u16).to_be_bytes());
            head.extend(wide(s));
            head.extend(wide(d));
            head
        }
    };
    packet.extend(udp);
    packet.extend(number.to_be_bytes());
    packet.resize(packet.len() + size - 8, 7);
    packet
}

/// The number of a packet, with its source, destination and ports.
pub fn read(packet: &[u8]) -> Option<(u64, IpAddr, IpAddr, (u16, u16))> {
    let v4 = packet.first()? >> 4 == 4;
    let ip = |at: usize| -> Option<IpAddr> {
        if v4 {
            Some(IpAddr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?))
        } else {
            Some(IpAddr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?))
        }
    };
    let (source, dest, udp) = if v4 { (ip(12)?, ip(16)?, V4_HEADER_BYTES) } else { (ip(8)?, ip(24)?, V6_HEADER_BYTES) };
    let port = |at: usize| Some(u16::from_be_bytes(packet.get(at..at + 2)?.try_into().ok()?));
    let number = packet.get(udp + UDP_HEADER_BYTES..udp + UDP_HEADER_BYTES + 8)?;
    Some((u64::from_be_bytes(number.try_into().ok()?), source, dest, (port(udp)?, port(udp + 2)?)))
}

/// The address of a client of a peer; of a server behind the exit.
pub fn client(peer: usize, v6: bool, host: u8) -> IpAddr {
    let net = 1 + peer as u8;
    if v6 {
        IpAddr::from([0xfd00 + u16::from(net), 0, 0, 0, 0, 0, 0, u16::from(host)])
    } else {
        [10, net, 0, host].into()
    }
}

pub fn server(v6: bool) -> IpAddr {
    if v6 { IpAddr::from([0xfd09, 0, 0, 0, 0, 0, 0, 2]) } else { [10, 9, 0, 2].into() }
}

/// Ports of a question; an answer has them the other way round.
pub const ASKED: (u16, u16) = (5000, PORT);
