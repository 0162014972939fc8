//! The expressions of rules, in the very bytes that the kernel gives back.

use super::{NF_ACCEPT, NFPROTO_IPV4, NFPROTO_IPV6};
use crate::{
    kernel::{Action, Family, ICMP_V6, Key, Match, NEIGHBOUR_DISCOVERY, Rule, sets},
    os::netlink::Writer,
};
use ipnet::IpNet;
use std::net::IpAddr;

/// Register 1 is the first 16 bytes, 8 + n the n-th 4 bytes.
const REG_VERDICT: u32 = 0;
const REG_1: u32 = 1;
const REG_2: u32 = 2;
const REG32_01: u32 = 9;
const REG32_02: u32 = 10;
const REG32_05: u32 = 13;
const META_MARK: u32 = 3;
const META_IIFNAME: u32 = 6;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const CT_DIRECTION: u32 = 1;
const CT_MARK: u32 = 3;
const TCP_FLAGS_OFFSET: u32 = 13;
const TCP_SYN: u8 = 0x02;
const TCP_FIN_SYN_RST_ACK: u8 = 0x17;
const CMP_EQ: u32 = 0;
const CMP_NEQ: u32 = 1;
const CMP_LTE: u32 = 3;
const CMP_GTE: u32 = 5;
const NF_DROP: u32 = 0;
pub const NFT_JUMP: u32 = (-3i32).cast_unsigned();
const SOURCE: Offsets = Offsets { v4: 12, v6: 8 };
const DEST: Offsets = Offsets { v4: 16, v6: 24 };
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const IFNAME_BYTES: usize = 16;
/// Comment of a rule or element in its user data.
const USERDATA_COMMENT: u8 = 0;

pub fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// The user data of a rule or element: its comment.
pub fn comment(text: &str) -> Vec<u8> {
    // The length is one byte; service and route ids take 53, a network in front of them at most 44.
    let mut text: Vec<u8> = text.bytes().take(usize::from(u8::MAX) - 1).collect();
    text.push(0);
    let len = u8::try_from(text.len()).expect("cut to 255");
    [&[USERDATA_COMMENT, len], text.as_slice()].concat()
}

/// The name of a link, as the kernel compares it.
pub fn padded_name(name: &str) -> Vec<u8> {
    let mut padded = name.as_bytes().to_vec();
    padded.resize(IFNAME_BYTES, 0);
    padded
}

/// The data of an element that jumps to a chain.
pub fn jump_verdict(w: &mut Writer, chain: &str) {
    w.nested(2, |w| {
        w.be32(1, NFT_JUMP);
        w.string(2, chain);
    });
}

/// Where an address stands in the headers of both families.
#[derive(Clone, Copy)]
struct Offsets {
    v4: u32,
    v6: u32,
}

/// The expressions of one rule, being written.
#[derive(Default)]
struct Expressions {
    writer: Writer,
    family: Option<Family>,
}

/// The content of the expression list attribute of a rule.
pub fn expressions(rule: &Rule) -> Vec<u8> {
    let mut e = Expressions::default();
    for m in &rule.matches {
        e.add_match(m);
    }
    e.add_action(&rule.action);
    e.writer.bytes
}

impl Expressions {
    // Without the nested flag, which the kernel leaves out when it lists rules.
    fn expression(&mut self, name: &str, body: impl FnOnce(&mut Writer)) {
        let mut data = Writer::default();
        body(&mut data);
        let mut whole = Writer::default();
        whole.string(1, name);
        whole.bytes(2, &data.bytes);
        self.writer.bytes(1, &whole.bytes);
    }

    fn meta(&mut self, key: u32, register: u32) {
        self.expression("meta", |w| {
            w.be32(2, key);
            w.be32(1, register);
        });
    }

    fn connection(&mut self, key: u32) {
        self.expression("ct", |w| {
            w.be32(1, REG_1);
            w.be32(2, key);
        });
    }

    /// Compares our bits of the mark of the connection with none.
    fn connection_bits(&mut self, op: u32, mask: u32) {
        self.connection(CT_MARK);
        self.mask(&mask.to_ne_bytes(), &[0; 4]);
        self.compare(op, &[0; 4]);
    }

    fn compare(&mut self, op: u32, value: &[u8]) {
        self.expression("cmp", |w| {
            w.be32(1, REG_1);
            w.be32(2, op);
            w.bytes(3, &data_value(value));
        });
    }

    fn mask(&mut self, mask: &[u8], xor: &[u8]) {
        self.expression("bitwise", |w| {
            w.be32(1, REG_1);
            w.be32(2, REG_1);
            w.be32(3, u32::try_from(mask.len()).expect("at most 16 bytes"));
            w.be32(6, 0);
            w.bytes(4, &data_value(mask));
            w.bytes(5, &data_value(xor));
        });
    }

    fn payload(&mut self, register: u32, base: u32, offset: u32, len: u32) {
        self.expression("payload", |w| {
            w.be32(1, register);
            w.be32(2, base);
            w.be32(3, offset);
            w.be32(4, len);
        });
    }

    fn lookup(&mut self, set: &str, inverted: bool) {
        self.expression("lookup", |w| {
            w.string(1, set);
            w.be32(2, REG_1);
            w.be32(5, u32::from(inverted));
        });
    }

    fn immediate(&mut self, register: u32, value: &[u8]) {
        self.expression("immediate", |w| {
            w.be32(1, register);
            w.bytes(2, &data_value(value));
        });
    }

    fn verdict(&mut self, code: u32) {
        self.expression("immediate", |w| {
            w.be32(1, REG_VERDICT);
            let mut number = Writer::default();
            number.be32(1, code);
            let mut verdict = Writer::default();
            verdict.bytes(2, &number.bytes);
            w.bytes(2, &verdict.bytes);
        });
    }

    fn family(&mut self, family: Family) {
        if self.family.replace(family) != Some(family) {
            self.meta(META_NFPROTO, REG_1);
            self.compare(CMP_EQ, &[nfproto(family)]);
        }
    }

    fn address(&mut self, register: u32, family: Family, of: Offsets) {
        let (offset, bytes) = match family {
            Family::V4 => (of.v4, 4),
            Family::V6 => (of.v6, 16),
        };
        self.payload(register, NETWORK_HEADER, offset, bytes);
    }

    fn network(&mut self, net: IpNet, of: Offsets) {
        let family = Family::of(net.addr());
        self.family(family);
        self.leading_bits(family, of, net.prefix_len());
        self.compare(CMP_EQ, &octets(net.network()));
    }

    /// Of an address in register 1; the rest of it is zero.
    fn leading_bits(&mut self, family: Family, of: Offsets, count: u8) {
        self.address(REG_1, family, of);
        let mask = match family {
            Family::V4 => u32::MAX.checked_shl(u32::BITS - u32::from(count)).unwrap_or(0).to_be_bytes().to_vec(),
            Family::V6 => u128::MAX.checked_shl(u128::BITS - u32::from(count)).unwrap_or(0).to_be_bytes().to_vec(),
        };
        if mask.last() != Some(&u8::MAX) {
            self.mask(&mask, &vec![0; mask.len()]);
        }
    }

    fn add_match(&mut self, m: &Match) {
        match m {
            Match::Family(family) => self.family(*family),
            Match::Protocol(protocol) => {
                self.meta(META_L4PROTO, REG_1);
                self.compare(CMP_EQ, &[*protocol]);
            }
            Match::ProtocolIsNot(protocol) => {
                self.meta(META_L4PROTO, REG_1);
                self.compare(CMP_NEQ, &[*protocol]);
            }
            Match::Mark { value, mask } => {
                self.meta(META_MARK, REG_1);
                self.mask(&mask.to_ne_bytes(), &[0; 4]);
                self.compare(CMP_EQ, &value.to_ne_bytes());
            }
            Match::Source(net) => self.network(*net, SOURCE),
            Match::Dest(net) => self.network(*net, DEST),
            Match::DestPort(port) => {
                self.payload(REG_1, TRANSPORT_HEADER, 2, 2);
                self.compare(CMP_EQ, &port.to_be_bytes());
            }
            Match::DestPortIn(set) => {
                self.payload(REG_1, TRANSPORT_HEADER, 2, 2);
                self.lookup(set, false);
            }
            Match::DestNotForwarded => {
                self.expression("fib", |w| {
                    w.be32(1, REG_1);
                    w.be32(2, 3 /* address type */);
                    w.be32(3, 2 /* destination */);
                });
                self.lookup(sets::NOT_FORWARDED, false);
            }
            Match::PeerSocket(family) => self.peer_socket(*family),
            Match::EnteredBy(name) => {
                self.meta(META_IIFNAME, REG_1);
                self.compare(CMP_EQ, &padded_name(name));
            }
            Match::NeighbourDiscovery => {
                self.family(Family::V6);
                self.meta(META_L4PROTO, REG_1);
                self.compare(CMP_EQ, &[ICMP_V6]);
                self.payload(REG_1, TRANSPORT_HEADER, 0, 1);
                let types = [NEIGHBOUR_DISCOVERY.start(), NEIGHBOUR_DISCOVERY.end()].map(|t| t.to_be_bytes()[1]);
                self.compare(CMP_GTE, &types[..1]);
                self.compare(CMP_LTE, &types[1..]);
            }
            Match::Reply => {
                self.connection(CT_DIRECTION);
                self.compare(CMP_EQ, &[1]);
            }
            Match::NotOpening => {
                self.payload(REG_1, TRANSPORT_HEADER, TCP_FLAGS_OFFSET, 1);
                self.mask(&[TCP_FIN_SYN_RST_ACK], &[0]);
                self.compare(CMP_NEQ, &[TCP_SYN]);
            }
            Match::Captured { mask } => self.connection_bits(CMP_NEQ, *mask),
            Match::NotCaptured { mask } => self.connection_bits(CMP_EQ, *mask),
            Match::TransparentSocket => {
                self.expression("socket", |w| {
                    w.be32(1, 0 /* transparent */);
                    w.be32(2, REG_1);
                });
                self.compare(CMP_EQ, &[1]);
            }
            Match::NotAlive => {
                self.meta(META_NFPROTO, REG_1);
                self.lookup(sets::LIVENESS, true);
            }
        }
    }

    fn peer_socket(&mut self, family: Family) {
        self.family(family);
        let (protocol, port, set) = match family {
            Family::V4 => (REG32_01, REG32_02, sets::PEERS_V4),
            Family::V6 => (REG_2, REG32_05, sets::PEERS_V6),
        };
        self.address(REG_1, family, DEST);
        self.meta(META_L4PROTO, protocol);
        self.payload(port, TRANSPORT_HEADER, 2, 2);
        self.lookup(set, false);
    }

    fn set_mark(&mut self, value: u32, mask: u32) {
        self.meta(META_MARK, REG_1);
        self.mask(&(!mask).to_ne_bytes(), &value.to_ne_bytes());
        self.expression("meta", |w| {
            w.be32(2, META_MARK);
            w.be32(3, REG_1);
        });
    }

    /// Only our bits: the rest of the mark of a connection belongs to others.
    fn set_connection_mark(&mut self, value: u32, mask: u32) {
        self.connection(CT_MARK);
        self.mask(&(!mask).to_ne_bytes(), &value.to_ne_bytes());
        self.expression("ct", |w| {
            w.be32(4, REG_1);
            w.be32(2, CT_MARK);
        });
    }

    fn add_action(&mut self, action: &Action) {
        match action {
            Action::Accept => self.verdict(NF_ACCEPT),
            Action::Drop => self.verdict(NF_DROP),
            Action::SetMark { value, mask } => {
                self.set_mark(*value, *mask);
                self.verdict(NF_ACCEPT);
            }
            Action::Capture { value, mask } => {
                self.set_connection_mark(*value, *mask);
                self.set_mark(*value, *mask);
                self.verdict(NF_ACCEPT);
            }
            Action::Intercept { to, value, mask } => {
                let family = Family::of(to.ip());
                self.family(family);
                self.immediate(REG_1, &octets(to.ip()));
                self.immediate(REG_2, &to.port().to_be_bytes());
                self.expression("tproxy", |w| {
                    w.be32(1, u32::from(nfproto(family)));
                    w.be32(2, REG_1);
                    w.be32(3, REG_2);
                });
                self.set_connection_mark(*value, *mask);
                self.set_mark(*value, *mask);
                self.verdict(NF_ACCEPT);
            }
            Action::Masquerade => self.expression("masq", |_| {}),
            Action::JumpBy { map, key } => {
                match *key {
                    Key::Interface => self.meta(META_IIFNAME, REG_1),
                    Key::Source(family, bits) => self.leading_bits(family, SOURCE, bits),
                    Key::Dest(family, bits) => self.leading_bits(family, DEST, bits),
                    Key::SourceAndDest(family) => {
                        let second = match family {
                            Family::V4 => REG32_01,
                            Family::V6 => REG_2,
                        };
                        self.address(REG_1, family, SOURCE);
                        self.address(second, family, DEST);
                    }
                }
                self.expression("lookup", |w| {
                    w.string(1, map);
                    w.be32(2, REG_1);
                    w.be32(3, REG_VERDICT);
                    w.be32(5, 0);
                });
            }
        }
    }
}

const fn nfproto(family: Family) -> u8 {
    match family {
        Family::V4 => NFPROTO_IPV4,
        Family::V6 => NFPROTO_IPV6,
    }
}

fn data_value(value: &[u8]) -> Vec<u8> {
    let mut w = Writer::default();
    w.bytes(1, value);
    w.bytes
}
