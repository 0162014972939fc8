//! Sets and maps: their shapes, and the keys and data of their elements, in the very bytes that the kernel gives back.

use super::{
    NFPROTO_IPV4, NFPROTO_IPV6,
    expression::{comment, jump_verdict, octets, padded_name},
};
use crate::{
    kernel::{Covers, Elements, Family, Jump, Key, LIVENESS_TIMEOUT, PeerSocket},
    os::netlink::Writer,
};
use ipnet::IpNet;

const SET_INTERVAL: u32 = 0x4;
const SET_MAP: u32 = 0x8;
const SET_TIMEOUT: u32 = 0x10;
const SET_CONCAT: u32 = 0x80;
const DATA_VERDICT: u32 = 0xffff_ff00;
/// Types as the `nft` command numbers them; a concatenation has 6 bits each.
const TYPE_NFPROTO: u32 = 2;
const TYPE_IPV4: u32 = 7;
const TYPE_IPV6: u32 = 8;
const TYPE_INET_PROTOCOL: u32 = 12;
const TYPE_INET_SERVICE: u32 = 13;
const TYPE_FIB_ADDRESS: u32 = 38;
const TYPE_INTERFACE_NAME: u32 = 41;
const INTERFACE_NAME_BYTES: u32 = 16;
const RTN_LOCAL: u32 = 2;
const RTN_BROADCAST: u32 = 3;
const RTN_MULTICAST: u32 = 5;
/// Tells `nft list` the byte order of the keys of a set: host order.
const USERDATA_HOST_ORDER: [u8; 6] = [0, 4, 1, 0, 0, 0];

pub struct SetShape {
    pub key_type: u32,
    pub key_bytes: u32,
    pub flags: u32,
    pub timeout_ms: u64,
    host_order: bool,
    /// Lengths of the fields of a key that are intervals each.
    fields: Vec<u32>,
}

impl SetShape {
    pub fn of(elements: &Elements) -> Self {
        let plain = |key_type, key_bytes| Self {
            key_type,
            key_bytes,
            flags: 0,
            timeout_ms: 0,
            host_order: false,
            fields: vec![],
        };
        let socket = |address| (((address << 6) | TYPE_INET_PROTOCOL) << 6) | TYPE_INET_SERVICE;
        match elements {
            Elements::Liveness => {
                Self { flags: SET_TIMEOUT, timeout_ms: LIVENESS_TIMEOUT.as_secs() * 1000, ..plain(TYPE_NFPROTO, 1) }
            }
            Elements::NotForwarded => Self { host_order: true, ..plain(TYPE_FIB_ADDRESS, 4) },
            Elements::PeersV4(_) => plain(socket(TYPE_IPV4), 12),
            Elements::PeersV6(_) => plain(socket(TYPE_IPV6), 24),
            Elements::Ports(_) => plain(TYPE_INET_SERVICE, 2),
            Elements::Jumps { key: Key::Interface, .. } => {
                Self { flags: SET_MAP, ..plain(TYPE_INTERFACE_NAME, INTERFACE_NAME_BYTES) }
            }
            Elements::Jumps { key: Key::Source(family, _) | Key::Dest(family, _), .. } => {
                let (key_type, bytes) = address_type(*family);
                Self { flags: SET_MAP, ..plain(key_type, bytes) }
            }
            Elements::Jumps { key: Key::SourceAndDest(family), jumps } => {
                let (key_type, bytes) = address_type(*family);
                let both = plain((key_type << 6) | key_type, 2 * bytes);
                if has_intervals(jumps) {
                    Self { flags: SET_MAP | SET_INTERVAL | SET_CONCAT, fields: vec![bytes; 2], ..both }
                } else {
                    Self { flags: SET_MAP, ..both }
                }
            }
        }
    }

    pub fn data_type(&self) -> u32 {
        if self.flags & SET_MAP != 0 { DATA_VERDICT } else { 0 }
    }

    /// The attributes of the message that makes the set.
    pub fn write(&self, w: &mut Writer, table: &str, name: &str, id: u32) {
        w.string(1, table);
        w.string(2, name);
        w.be32(3, self.flags);
        w.be32(4, self.key_type);
        w.be32(5, self.key_bytes);
        if self.data_type() != 0 {
            w.be32(6, self.data_type());
        }
        if !self.fields.is_empty() {
            w.nested(9, |w| {
                w.nested(2, |w| self.fields.iter().for_each(|bytes| w.nested(1, |w| w.be32(1, *bytes))));
            });
        }
        w.be32(10, id);
        if self.timeout_ms > 0 {
            w.be64(11, self.timeout_ms);
        }
        if self.host_order {
            w.bytes(13, &USERDATA_HOST_ORDER);
        }
    }
}

fn address_type(family: Family) -> (u32, u32) {
    match family {
        Family::V4 => (TYPE_IPV4, 4),
        Family::V6 => (TYPE_IPV6, 16),
    }
}

/// Whether some jump covers more than one pair of addresses; the map is a hash otherwise.
fn has_intervals(jumps: &[Jump]) -> bool {
    let wide = |net: &IpNet| net.prefix_len() < net.max_prefix_len();
    jumps.iter().any(|jump| matches!(&jump.covers, Covers::Nets(source, dest) if wide(source) || wide(dest)))
}

/// One element as the kernel holds it.
#[derive(Debug, Default, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Element {
    pub key: Vec<u8>,
    /// None on elements of ours.
    pub flags: u32,
    /// Of a concatenation of intervals.
    pub key_end: Vec<u8>,
    /// The chain to which it jumps; empty where it is of no map.
    pub chain: String,
    pub userdata: Vec<u8>,
}

impl Element {
    /// In the order in which they are sent.
    pub fn all_of(elements: &Elements) -> Vec<Self> {
        let keys = |keys: Vec<Vec<u8>>| keys.into_iter().map(|key| Self { key, ..Self::default() }).collect();
        match elements {
            Elements::Liveness => keys(vec![vec![NFPROTO_IPV4], vec![NFPROTO_IPV6]]),
            Elements::NotForwarded => {
                keys([RTN_LOCAL, RTN_BROADCAST, RTN_MULTICAST].map(|k| k.to_ne_bytes().to_vec()).into())
            }
            Elements::PeersV4(peers) | Elements::PeersV6(peers) => keys(peers.iter().map(socket_key).collect()),
            Elements::Ports(ports) => keys(ports.iter().map(|p| p.to_be_bytes().to_vec()).collect()),
            Elements::Jumps { jumps, .. } => {
                let intervals = has_intervals(jumps);
                jumps.iter().map(|jump| Self::of_jump(jump, intervals)).collect()
            }
        }
    }

    fn of_jump(jump: &Jump, intervals: bool) -> Self {
        let named = |key, text: Option<String>| {
            let userdata = text.as_deref().map(comment).unwrap_or_default();
            Self { key, chain: jump.chain.clone(), userdata, ..Self::default() }
        };
        match &jump.covers {
            Covers::Interface(name) => named(padded_name(name), jump.comment.clone()),
            // The key is the bare address: the length is in the rule.
            Covers::Net(net) => {
                named(octets(net.network()), jump.comment.as_ref().map(|route| format!("{net} {route}")))
            }
            Covers::Nets(source, dest) => {
                let key = [octets(source.network()), octets(dest.network())].concat();
                let last = [octets(source.broadcast()), octets(dest.broadcast())].concat();
                let key_end = if intervals { last } else { vec![] };
                Self { key_end, ..named(key, jump.comment.clone()) }
            }
        }
    }

    pub fn write(&self, w: &mut Writer) {
        w.nested(1, |w| w.bytes(1, &self.key));
        if !self.chain.is_empty() {
            w.nested(2, |w| jump_verdict(w, &self.chain));
        }
        if !self.userdata.is_empty() {
            w.bytes(6, &self.userdata);
        }
        if !self.key_end.is_empty() {
            w.nested(10, |w| w.bytes(1, &self.key_end));
        }
    }
}

/// Address, protocol and port, each padded to 4 bytes.
fn socket_key(peer: &PeerSocket) -> Vec<u8> {
    let mut key = octets(peer.ip);
    key.extend([peer.protocol, 0, 0, 0]);
    key.extend(peer.port.to_be_bytes());
    key.extend([0, 0]);
    key
}
