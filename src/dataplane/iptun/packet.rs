//! One IP packet, read and rewritten in place. Addresses change with every checksum that covers them (RFC 1624).

use std::net::IpAddr;

pub(super) const ICMP: u8 = 1;
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
const DCCP: u8 = 33;
pub(super) const ICMP_V6: u8 = 58;
const SCTP: u8 = 132;
const UDP_LITE: u8 = 136;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DEST_OPTIONS: u8 = 60;
const MAX_EXTENSION_HEADERS: usize = 8;
const V4_HEADER_BYTES: usize = 20;
const V6_HEADER_BYTES: usize = 40;
const ICMP_HEADER_BYTES: usize = 8;
/// Loose and strict source route.
const SOURCE_ROUTE_OPTIONS: [u8; 2] = [131, 137];

/// Not a packet that a tunnel carries: cut short, of no known version, or with a route of its own inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Whole,
    First,
    /// Without the header of its transport.
    Later,
}

/// What the headers of a packet say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub source: IpAddr,
    pub dest: IpAddr,
    /// Of the transport, behind all extension headers.
    pub protocol: u8,
    pub part: Part,
    pub may_be_fragmented: bool,
    /// Where the transport begins.
    pub transport: usize,
    /// The whole packet, without padding behind it.
    pub len: usize,
}

/// What a packet is to its flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Sent by either side. The numbers of its source and its destination: ports, or 0.
    Data { from: u16, to: u16 },
    /// An ICMP error about the packet that begins at this place.
    ErrorAbout(usize),
}

impl Header {
    pub fn parse(packet: &[u8]) -> Result<Self, Malformed> {
        let header = Self::parse_part(packet)?;
        if header.len > packet.len() { Err(Malformed) } else { Ok(header) }
    }

    /// The same for the beginning of a packet, as ICMP errors quote it.
    fn parse_part(packet: &[u8]) -> Result<Self, Malformed> {
        match packet.first().map(|b| b >> 4) {
            Some(4) => Self::parse_v4(packet),
            Some(6) => Self::parse_v6(packet),
            _ => Err(Malformed),
        }
    }

    fn parse_v4(p: &[u8]) -> Result<Self, Malformed> {
        let fixed: &[u8; V4_HEADER_BYTES] = p.first_chunk().ok_or(Malformed)?;
        let transport = usize::from(fixed[0] & 0x0f) * 4;
        let len = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
        if transport < V4_HEADER_BYTES || len < transport || p.len() < transport || has_source_route(&p[20..transport])
        {
            return Err(Malformed);
        }
        let flags = u16::from_be_bytes([fixed[6], fixed[7]]);
        let part = match (flags & 0x1fff, flags & 0x2000 != 0) {
            (0, false) => Part::Whole,
            (0, true) => Part::First,
            _ => Part::Later,
        };
        Ok(Self {
            source: address(&fixed[12..16])?,
            dest: address(&fixed[16..20])?,
            protocol: fixed[9],
            part,
            may_be_fragmented: flags & 0x4000 == 0,
            transport,
            len,
        })
    }

    fn parse_v6(p: &[u8]) -> Result<Self, Malformed> {
        let fixed: &[u8; V6_HEADER_BYTES] = p.first_chunk().ok_or(Malformed)?;
        let len = V6_HEADER_BYTES + usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
        let (mut protocol, mut at, mut part) = (fixed[6], V6_HEADER_BYTES, Part::Whole);
        for _ in 0..MAX_EXTENSION_HEADERS {
            let size = match protocol {
                HOP_BY_HOP | DEST_OPTIONS | ROUTING => 8 + usize::from(*p.get(at + 1).ok_or(Malformed)?) * 8,
                FRAGMENT => 8,
                _ => break,
            };
            let extension = p.get(at..at + size).filter(|_| at + size <= len).ok_or(Malformed)?;
            // Segments left: the packet would go on to somewhere else than its destination.
            if protocol == ROUTING && extension[3] != 0 {
                return Err(Malformed);
            }
            if protocol == FRAGMENT {
                let offset = u16::from_be_bytes([extension[2], extension[3]]);
                part = match (offset >> 3, offset & 1) {
                    (0, 0) => Part::Whole,
                    (0, _) => Part::First,
                    _ => Part::Later,
                };
            }
            (protocol, at) = (extension[0], at + size);
            if part == Part::Later {
                break;
            }
        }
        // Behind a later fragment's header, the next header is that of the whole packet's first one: of no use here.
        if part != Part::Later && [HOP_BY_HOP, DEST_OPTIONS, ROUTING, FRAGMENT].contains(&protocol) {
            return Err(Malformed);
        }
        Ok(Self {
            source: address(&fixed[8..24])?,
            dest: address(&fixed[24..40])?,
            protocol,
            part,
            may_be_fragmented: false,
            transport: at,
            len,
        })
    }

    /// What the packet is to its flow; none for a later fragment, whose ports are elsewhere.
    pub fn role(&self, packet: &[u8]) -> Result<Option<Role>, Malformed> {
        if self.part == Part::Later {
            return Ok(None);
        }
        let transport = packet.get(self.transport..).ok_or(Malformed)?;
        let number = |at: usize| transport.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]])).ok_or(Malformed);
        let role = match self.protocol {
            UDP | TCP | DCCP | SCTP | UDP_LITE => Role::Data { from: number(0)?, to: number(2)? },
            ICMP | ICMP_V6 => {
                let kind = *transport.first().ok_or(Malformed)?;
                match icmp_kind(self.protocol, kind) {
                    IcmpKind::Error => Role::ErrorAbout(self.transport + ICMP_HEADER_BYTES),
                    IcmpKind::Request => Role::Data { from: number(4)?, to: 0 },
                    IcmpKind::Reply => Role::Data { from: 0, to: number(4)? },
                    IcmpKind::Other => Role::Data { from: 0, to: 0 },
                }
            }
            _ => Role::Data { from: 0, to: 0 },
        };
        Ok(Some(role))
    }

    /// The packet that an ICMP error quotes from `at` on.
    pub fn quoted(&self, packet: &[u8], at: usize) -> Result<Self, Malformed> {
        let quote = packet.get(at..self.len).ok_or(Malformed)?;
        let quoted = Self::parse_part(quote)?;
        if quoted.source.is_ipv4() == self.source.is_ipv4() { Ok(quoted) } else { Err(Malformed) }
    }

    /// Which end of a packet an address is.
    pub fn set_address(&self, packet: &mut [u8], end: End, new: IpAddr) {
        let (at, old) = match (self.source.is_ipv4(), end) {
            (true, End::Source) => (12, self.source),
            (true, End::Dest) => (16, self.dest),
            (false, End::Source) => (8, self.source),
            (false, End::Dest) => (24, self.dest),
        };
        let (old, new) = (octets(old), octets(new));
        debug_assert_eq!(old.1, new.1, "an address of the same family");
        packet[at..at + new.1].copy_from_slice(&new.0[..new.1]);
        if self.source.is_ipv4() {
            adjust(packet, 10, &old.0[..old.1], &new.0[..new.1]);
        }
        if self.part != Part::Later
            && let Some(checksum) = self.transport_checksum(packet)
        {
            adjust(packet, checksum, &old.0[..old.1], &new.0[..new.1]);
        }
    }

    /// Where the checksum is that covers the addresses, if it is there.
    fn transport_checksum(&self, packet: &[u8]) -> Option<usize> {
        let at = self.transport
            + match self.protocol {
                UDP | DCCP | UDP_LITE => 6,
                TCP => 16,
                ICMP_V6 => 2,
                _ => return None,
            };
        let checksum = packet.get(at..at + 2)?;
        // UDP without a checksum.
        (self.protocol != UDP || checksum != [0, 0]).then_some(at)
    }

    /// Computes the checksum of a whole ICMP message anew.
    pub fn seal_icmp(&self, packet: &mut [u8]) {
        let at = self.transport + 2;
        if packet.len() < self.len || self.len < at + 2 {
            return;
        }
        packet[at..at + 2].fill(0);
        let mut sum = sum_of(&packet[self.transport..self.len], 0);
        if self.protocol == ICMP_V6 {
            let (source, dest) = (octets(self.source), octets(self.dest));
            let length = (self.len - self.transport) as u32;
            sum = sum_of(&source.0, sum_of(&dest.0, sum_of(&length.to_be_bytes(), sum + u32::from(ICMP_V6))));
        }
        packet[at..at + 2].copy_from_slice(&(!fold(sum)).to_be_bytes());
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Source,
    Dest,
}

enum IcmpKind {
    Request,
    Reply,
    Error,
    Other,
}

fn icmp_kind(protocol: u8, kind: u8) -> IcmpKind {
    match (protocol, kind) {
        (ICMP, 8 | 13 | 15 | 17) | (ICMP_V6, 128) => IcmpKind::Request,
        (ICMP, 0 | 14 | 16 | 18) | (ICMP_V6, 129) => IcmpKind::Reply,
        (ICMP, 3 | 4 | 5 | 11 | 12) | (ICMP_V6, 1..=4) => IcmpKind::Error,
        _ => IcmpKind::Other,
    }
}

fn has_source_route(mut options: &[u8]) -> bool {
    while let Some(&kind) = options.first() {
        if SOURCE_ROUTE_OPTIONS.contains(&kind) {
            return true;
        }
        let size = match kind {
            0 => return false,
            1 => 1,
            _ => usize::from(options.get(1).copied().unwrap_or(0)).max(2),
        };
        options = options.get(size..).unwrap_or_default();
    }
    false
}

fn address(bytes: &[u8]) -> Result<IpAddr, Malformed> {
    match *bytes {
        [a, b, c, d] => Ok([a, b, c, d].into()),
        _ => <[u8; 16]>::try_from(bytes).map(IpAddr::from).map_err(|_| Malformed),
    }
}

fn octets(ip: IpAddr) -> ([u8; 16], usize) {
    match ip {
        IpAddr::V4(ip) => {
            let mut padded = [0; 16];
            padded[..4].copy_from_slice(&ip.octets());
            (padded, 4)
        }
        IpAddr::V6(ip) => (ip.octets(), 16),
    }
}

/// Adds 16-bit words, the last one padded with 0.
pub(super) fn sum_of(bytes: &[u8], start: u32) -> u32 {
    let (words, rest) = bytes.as_chunks::<2>();
    let last = rest.first().map_or(0, |byte| u32::from(*byte) << 8);
    words.iter().fold(start + last, |sum, word| sum + u32::from(u16::from_be_bytes(*word)))
}

pub(super) fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Changes the checksum at `at` for words that changed.
fn adjust(packet: &mut [u8], at: usize, old: &[u8], new: &[u8]) {
    let Some(place) = packet.get_mut(at..at + 2) else { return };
    let before = u16::from_be_bytes([place[0], place[1]]);
    let removed = old.chunks(2).fold(u32::from(!before), |sum, w| sum + u32::from(!u16::from_be_bytes([w[0], w[1]])));
    let after = !fold(sum_of(new, removed));
    // Never 0, which in UDP says that there is none; elsewhere both zeros mean the same.
    place.copy_from_slice(&if after == 0 { 0xffff } else { after }.to_be_bytes());
}

/// The ICMP error that says that `packet` is larger than `mtu`, from its destination to its source. None for a packet
/// about which no error is sent: an error itself, or a later fragment.
pub(super) fn too_big(packet: &[u8], header: &Header, mtu: u16) -> Option<Vec<u8>> {
    if !matches!(header.role(packet), Ok(Some(Role::Data { .. }))) {
        return None;
    }
    let v4 = header.source.is_ipv4();
    // RFC 1812 §4.3.2.3, RFC 4443 §2.4: as much as fits the smallest packets that everyone takes.
    let (head, max) = if v4 { (V4_HEADER_BYTES, 576) } else { (V6_HEADER_BYTES, 1280) };
    let quote = &packet[..header.len.min(max - head - ICMP_HEADER_BYTES)];
    let len = head + ICMP_HEADER_BYTES + quote.len();
    let mut error = vec![0; len];
    let (source, dest) = (octets(header.dest), octets(header.source));
    if v4 {
        error[0] = 0x45;
        error[2..4].copy_from_slice(&(len as u16).to_be_bytes());
        error[8..10].copy_from_slice(&[64, ICMP]);
        error[12..16].copy_from_slice(&source.0[..4]);
        error[16..20].copy_from_slice(&dest.0[..4]);
        let sum = !fold(sum_of(&error[..V4_HEADER_BYTES], 0));
        error[10..12].copy_from_slice(&sum.to_be_bytes());
        error[head..head + 2].copy_from_slice(&[3, 4]);
        error[head + 6..head + 8].copy_from_slice(&mtu.to_be_bytes());
    } else {
        error[0] = 0x60;
        error[4..6].copy_from_slice(&((len - head) as u16).to_be_bytes());
        error[6..8].copy_from_slice(&[ICMP_V6, 64]);
        error[8..24].copy_from_slice(&source.0);
        error[24..40].copy_from_slice(&dest.0);
        error[head] = 2;
        error[head + 4..head + 8].copy_from_slice(&u32::from(mtu).to_be_bytes());
    }
    error[head + ICMP_HEADER_BYTES..].copy_from_slice(quote);
    Header::parse(&error).ok()?.seal_icmp(&mut error);
    Some(error)
}
