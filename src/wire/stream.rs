//! The head of a stream between two engines and the exit's answer (dataplane.md §1.3). All numbers big-endian.
//!
//! Header: `length:u16 version:u8 flags:u8 service:16 source:addr dest:addr`, where `length` counts what follows it and
//! `addr` is `family:u8 (4|6) address:(4|16) port:u16`. Reply: `version:u8 code:u8`, code 0 = ok.

use crate::model::ServiceId;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub const STREAM_VERSION: u8 = 1;
/// The longest header, its length field included.
pub const HEADER_MAX_BYTES: usize = LENGTH_BYTES + 2 + 16 + 2 * (1 + 16 + 2);
pub const REPLY_BYTES: usize = 2;
const LENGTH_BYTES: usize = 2;
const FLAG_TRANSPARENT: u8 = 1;
const FLAG_LIMITED: u8 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    #[error("stream header is longer than {HEADER_MAX_BYTES} bytes")]
    TooLong,
    #[error("stream header or reply has version {0}, expected {STREAM_VERSION}")]
    Version(u8),
    #[error("stream header is malformed: {0}")]
    Malformed(&'static str),
    #[error("stream reply has the unknown code {0}")]
    UnknownCode(u8),
}

/// What the source tells the exit of a flow. Addresses are canonical: never 4-in-6, no scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamHeader {
    pub service: ServiceId,
    pub source: SocketAddr,
    pub dest: SocketAddr,
    /// The exit is to dial with the client's address (dataplane.md §4).
    pub transparent: bool,
    /// The source keeps the service to its limit, and the exit is to send no faster (dataplane.md §9).
    pub limited: bool,
}

impl StreamHeader {
    pub fn encode(&self) -> Vec<u8> {
        let flags = [(self.transparent, FLAG_TRANSPARENT), (self.limited, FLAG_LIMITED)];
        let flags = flags.into_iter().filter(|(is_set, _)| *is_set).map(|(_, flag)| flag).sum();
        let mut out = vec![0, 0, STREAM_VERSION, flags];
        out.extend(self.service.to_bytes());
        put_addr(&mut out, self.source);
        put_addr(&mut out, self.dest);
        let length = (out.len() - LENGTH_BYTES) as u16;
        out[..LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
        out
    }

    /// Reads a header from the front of `input`: it and its length in bytes, or `None` while `input` is too short.
    pub fn decode(input: &[u8]) -> Result<Option<(Self, usize)>, StreamError> {
        let Some((length, rest)) = input.split_first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes(*length));
        if length > HEADER_MAX_BYTES - LENGTH_BYTES {
            return Err(StreamError::TooLong);
        }
        match rest.first() {
            Some(&version) if version != STREAM_VERSION => return Err(StreamError::Version(version)),
            _ => {}
        }
        let Some(mut body) = rest.get(..length) else { return Ok(None) };
        let [_version, flags] = take(&mut body)?;
        if flags & !(FLAG_TRANSPARENT | FLAG_LIMITED) != 0 {
            return Err(StreamError::Malformed("unknown flag"));
        }
        let header = Self {
            service: ServiceId::from_bytes(take(&mut body)?),
            source: take_addr(&mut body)?,
            dest: take_addr(&mut body)?,
            transparent: flags & FLAG_TRANSPARENT != 0,
            limited: flags & FLAG_LIMITED != 0,
        };
        if body.is_empty() {
            Ok(Some((header, LENGTH_BYTES + length)))
        } else {
            Err(StreamError::Malformed("bytes after the last field"))
        }
    }
}

fn put_addr(out: &mut Vec<u8>, addr: SocketAddr) {
    match addr.ip().to_canonical() {
        IpAddr::V4(v4) => {
            out.push(4);
            out.extend(v4.octets());
        }
        IpAddr::V6(v6) => {
            out.push(6);
            out.extend(v6.octets());
        }
    }
    out.extend(addr.port().to_be_bytes());
}

fn take<const N: usize>(body: &mut &[u8]) -> Result<[u8; N], StreamError> {
    let (head, rest) = body.split_first_chunk::<N>().ok_or(StreamError::Malformed("too short"))?;
    *body = rest;
    Ok(*head)
}

fn take_addr(body: &mut &[u8]) -> Result<SocketAddr, StreamError> {
    let ip = match take::<1>(body)? {
        [4] => IpAddr::V4(Ipv4Addr::from(take::<4>(body)?)),
        [6] => IpAddr::V6(Ipv6Addr::from(take::<16>(body)?)),
        _ => return Err(StreamError::Malformed("address family is neither 4 nor 6")),
    };
    // One spelling for each address, so that every list is compared with the same one.
    if ip.to_canonical() != ip {
        return Err(StreamError::Malformed("IPv4 address written as IPv6"));
    }
    Ok(SocketAddr::new(ip, u16::from_be_bytes(take(body)?)))
}

/// Why an exit did not open a stream. The discriminant is its code on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[repr(u8)]
pub enum StreamRefusal {
    #[error("service is unknown at the exit or inactive")]
    UnknownService = 1,
    #[error("stream comes from a peer that is not the source of the service")]
    NotTheSource = 2,
    #[error("destination is outside the routes of the service")]
    OutsideRoutes = 3,
    #[error("destination may not be dialled")]
    ForbiddenDestination = 4,
    #[error("destination refused the connection")]
    ConnectionRefused = 5,
    #[error("destination did not answer in time")]
    ConnectionTimedOut = 6,
    #[error("destination is unreachable from the exit")]
    Unreachable = 7,
    #[error("exit does not offer transparent mode")]
    TransparentUnavailable = 8,
    #[error("exit is at its limit of flows")]
    Busy = 9,
    #[error("exit could not read the stream header")]
    BadHeader = 10,
    #[error("the client's address may not be dialled with")]
    ForbiddenSource = 11,
    #[error("exit has dialled this very connection itself: packets to its destination come back to the source peer")]
    Loop = 12,
}

impl StreamRefusal {
    pub const ALL: [Self; 12] = [
        Self::UnknownService,
        Self::NotTheSource,
        Self::OutsideRoutes,
        Self::ForbiddenDestination,
        Self::ConnectionRefused,
        Self::ConnectionTimedOut,
        Self::Unreachable,
        Self::TransparentUnavailable,
        Self::Busy,
        Self::BadHeader,
        Self::ForbiddenSource,
        Self::Loop,
    ];
}

/// The exit's answer; the bytes of the server follow an ok.
pub type StreamReply = Result<(), StreamRefusal>;

pub fn encode_reply(reply: StreamReply) -> [u8; REPLY_BYTES] {
    [STREAM_VERSION, reply.err().map_or(0, |refusal| refusal as u8)]
}

pub fn decode_reply(bytes: [u8; REPLY_BYTES]) -> Result<StreamReply, StreamError> {
    match bytes {
        [STREAM_VERSION, 0] => Ok(Ok(())),
        [STREAM_VERSION, code] => {
            let refusal = StreamRefusal::ALL.into_iter().find(|r| *r as u8 == code);
            refusal.map(Err).ok_or(StreamError::UnknownCode(code))
        }
        [version, _] => Err(StreamError::Version(version)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn addr() -> impl Strategy<Value = SocketAddr> {
        (any::<IpAddr>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip.to_canonical(), port))
    }

    fn header() -> impl Strategy<Value = StreamHeader> {
        let flags = any::<(bool, bool)>();
        (any::<[u8; 16]>(), addr(), addr(), flags).prop_map(|(id, source, dest, (transparent, limited))| StreamHeader {
            service: ServiceId::from_bytes(id),
            source,
            dest,
            transparent,
            limited,
        })
    }

    proptest! {
        #[test]
        fn a_header_survives_the_wire_with_anything_behind_it(h in header(), tail in any::<Vec<u8>>()) {
            let mut bytes = h.encode();
            let length = bytes.len();
            prop_assert!(length <= HEADER_MAX_BYTES);
            bytes.extend(tail);
            prop_assert_eq!(StreamHeader::decode(&bytes), Ok(Some((h, length))));
        }

        #[test]
        fn a_part_of_a_header_asks_for_more(h in header(), cut in any::<prop::sample::Index>()) {
            let bytes = h.encode();
            prop_assert_eq!(StreamHeader::decode(&bytes[..cut.index(bytes.len())]), Ok(None));
        }

        #[test]
        fn any_bytes_are_refused_or_read_as_what_encodes_to_them(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            if let Ok(Some((h, length))) = StreamHeader::decode(&bytes) {
                prop_assert_eq!(h.encode(), bytes[..length].to_vec());
            }
        }

        #[test]
        fn a_mutated_header_never_panics(h in header(), at in any::<prop::sample::Index>(), to in any::<u8>()) {
            let mut bytes = h.encode();
            let at = at.index(bytes.len());
            bytes[at] = to;
            let _ = StreamHeader::decode(&bytes);
        }

        #[test]
        fn any_reply_is_read_or_refused(bytes in any::<[u8; 2]>()) {
            if let Ok(reply) = decode_reply(bytes) {
                prop_assert_eq!(encode_reply(reply), bytes);
            }
        }
    }

    #[test]
    fn every_refusal_survives_the_wire() {
        for refusal in StreamRefusal::ALL {
            assert_eq!(decode_reply(encode_reply(Err(refusal))), Ok(Err(refusal)));
        }
        assert_eq!(decode_reply(encode_reply(Ok(()))), Ok(Ok(())));
        assert_eq!(decode_reply([2, 0]), Err(StreamError::Version(2)));
        assert_eq!(decode_reply([1, 200]), Err(StreamError::UnknownCode(200)));
    }

    #[test]
    fn long_foreign_and_mapped_headers_are_refused() {
        let header = StreamHeader {
            service: ServiceId::from_bytes([1; 16]),
            source: "10.0.0.1:1".parse().unwrap(),
            dest: "[fd00::1]:2".parse().unwrap(),
            transparent: false,
            limited: false,
        };
        let mut other_version = header.encode();
        other_version[2] = 9;
        assert_eq!(StreamHeader::decode(&other_version), Err(StreamError::Version(9)));
        assert_eq!(StreamHeader::decode(&[0xff, 0xff]), Err(StreamError::TooLong));
        let mut flagged = header.encode();
        flagged[3] = 0x80;
        assert!(matches!(StreamHeader::decode(&flagged), Err(StreamError::Malformed(_))));
        let mut mapped = header.encode();
        let v6 = mapped.len() - 18;
        mapped[v6..v6 + 16].copy_from_slice(&Ipv4Addr::LOCALHOST.to_ipv6_mapped().octets());
        assert!(matches!(StreamHeader::decode(&mapped), Err(StreamError::Malformed(_))));
    }
}
