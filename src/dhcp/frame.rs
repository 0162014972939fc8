//! DHCP messages in UDP, IPv4 and Ethernet: before it has an address, a host has no UDP socket to send them by.

use std::net::Ipv4Addr;

const BROADCAST: [u8; 6] = [0xff; 6];
const ETHERTYPE_IPV4: [u8; 2] = [8, 0];
const ETHERNET_BYTES: usize = 14;
const IP_BYTES: usize = 20;
const UDP_BYTES: usize = 8;
const UDP: u8 = 17;
const CLIENT_PORT: u16 = 68;
const SERVER_PORT: u16 = 67;
const TIME_TO_LIVE: u8 = 64;
const FRAGMENT_BITS: u16 = 0x3fff;

/// To whom a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct To {
    pub mac: [u8; 6],
    pub address: Ipv4Addr,
}

impl To {
    pub const ALL: Self = Self { mac: BROADCAST, address: Ipv4Addr::BROADCAST };
}

/// A message of at most 1,400 bytes from a client.
pub fn wrap(to: To, mac: [u8; 6], from: Ipv4Addr, message: &[u8]) -> Vec<u8> {
    let length = |header: usize| u16::try_from(header + message.len()).unwrap_or(u16::MAX).to_be_bytes();
    let mut ip = vec![0x45, 0];
    ip.extend(length(IP_BYTES + UDP_BYTES));
    ip.extend([0, 0, 0, 0, TIME_TO_LIVE, UDP, 0, 0]);
    ip.extend(from.octets());
    ip.extend(to.address.octets());
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut frame = [&to.mac[..], &mac, &ETHERTYPE_IPV4, &ip].concat();
    frame.extend(CLIENT_PORT.to_be_bytes());
    frame.extend(SERVER_PORT.to_be_bytes());
    frame.extend(length(UDP_BYTES));
    // No checksum, as UDP over IPv4 allows.
    frame.extend([0, 0]);
    frame.extend(message);
    frame
}

/// The message of a server to a client, and the MAC that sent it; nothing if the frame holds none. The checksum of UDP is
/// not looked at: a packet of this machine has none yet when it is met here.
pub fn unwrap(frame: &[u8]) -> Option<([u8; 6], &[u8])> {
    let from = frame.get(6..12)?.try_into().ok()?;
    let packet = frame.get(ETHERNET_BYTES..).filter(|_| frame[12..14] == ETHERTYPE_IPV4)?;
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let word = |bytes: &[u8], at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let total = usize::from(word(packet, 2)?);
    let fits = packet[0] >> 4 == 4 && header >= IP_BYTES && word(packet, 6)? & FRAGMENT_BITS == 0;
    if !fits || *packet.get(9)? != UDP || checksum(packet.get(..header)?) != 0 {
        return None;
    }
    let datagram = packet.get(header..total)?;
    let length = usize::from(word(datagram, 4)?);
    let ports = (word(datagram, 0)?, word(datagram, 2)?);
    (ports == (SERVER_PORT, CLIENT_PORT)).then_some((from, datagram.get(UDP_BYTES..length)?))
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !(((folded & 0xffff) + (folded >> 16)) as u16)
}

#[cfg(test)]
pub(super) fn answered(server_mac: [u8; 6], message: &[u8]) -> Vec<u8> {
    let mut frame = wrap(To::ALL, server_mac, Ipv4Addr::new(10, 0, 0, 1), message);
    frame[34..36].copy_from_slice(&SERVER_PORT.to_be_bytes());
    frame[36..38].copy_from_slice(&CLIENT_PORT.to_be_bytes());
    frame
}
