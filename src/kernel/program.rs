//! Tables, chains and rules as values: what `os::nft` encodes and `classify` interprets.

use super::{Family, PeerSocket};
use ipnet::IpNet;
use std::net::SocketAddr;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    pub name: &'static str,
    pub sets: Vec<Set>,
    pub chains: Vec<Chain>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    pub name: String,
    pub elements: Elements,
}

impl Set {
    pub(crate) fn new(name: &str, elements: Elements) -> Self {
        Self { name: name.to_owned(), elements }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Elements {
    /// Both address families, each expiring `LIVENESS_TIMEOUT` after it was fed.
    Liveness,
    /// Kinds of destination that are never forwarded: local, broadcast, multicast.
    NotForwarded,
    PeersV4(Vec<PeerSocket>),
    PeersV6(Vec<PeerSocket>),
    Ports(Vec<u16>),
    /// A map to chains of the same table. No two jumps cover one packet.
    Jumps {
        key: Key,
        jumps: Vec<Jump>,
    },
}

/// What of a packet a map is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// The link by which it entered.
    Interface,
    /// So many leading bits of the address; the networks of the map have that length.
    Source(Family, u8),
    Dest(Family, u8),
    SourceAndDest(Family),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Jump {
    pub covers: Covers,
    pub chain: String,
    /// Of the route that the jump stands for, if it is one.
    pub comment: Option<String>,
}

/// The packets of a jump, in terms of its map's key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Covers {
    Interface(String),
    Net(IpNet),
    Nets(IpNet, IpNet),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainKind {
    Filter,
    /// A changed mark routes the packet again.
    Route,
    Nat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    Prerouting,
    Input,
    Output,
    Postrouting,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    pub name: String,
    /// None: packets come by jumps only.
    pub base: Option<Base>,
    pub rules: Vec<Rule>,
}

/// Where a chain sees packets by itself; its policy is to accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base {
    pub kind: ChainKind,
    pub hook: Hook,
    pub priority: i32,
}

impl Chain {
    pub(crate) fn base(name: &str, kind: ChainKind, hook: Hook, priority: i32, rules: Vec<Rule>) -> Self {
        Self { name: name.to_owned(), base: Some(Base { kind, hook, priority }), rules }
    }
}

/// Applies its action when all matches hold, tried in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub matches: Vec<Match>,
    pub action: Action,
    pub comment: String,
}

impl Rule {
    pub(crate) fn new<const N: usize>(matches: [Match; N], action: Action, comment: &str) -> Self {
        Self { matches: matches.into(), action, comment: comment.to_owned() }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    Family(Family),
    Protocol(u8),
    ProtocolIsNot(u8),
    /// `mark & mask == value`
    Mark {
        value: u32,
        mask: u32,
    },
    Source(IpNet),
    Dest(IpNet),
    DestPort(u16),
    /// The destination port is in a set of this table.
    DestPortIn(&'static str),
    /// The destination is local to the host, broadcast or multicast.
    DestNotForwarded,
    /// Destination, protocol and port are in the peer set of this family.
    PeerSocket(Family),
    EnteredBy(String),
    /// ICMPv6 by which neighbours on a link find each other and their routers (RFC 4861).
    NeighbourDiscovery,
    /// In reply direction of its connection.
    Reply,
    /// Not the packet that opens a TCP connection: SYN without ACK, RST, FIN.
    NotOpening,
    /// Of a connection whose mark has none of these bits: it was not captured when it was opened.
    NotCaptured {
        mask: u32,
    },
    /// Of a connection that was captured when it was opened.
    Captured {
        mask: u32,
    },
    /// Belongs to an established transparent socket.
    TransparentSocket,
    /// The liveness element has expired.
    NotAlive,
}

/// Each action but a jump ends the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Accept,
    Drop,
    /// `mark = mark & !mask | value`
    SetMark {
        value: u32,
        mask: u32,
    },
    /// The same for packet and connection, so that later packets of the connection are told from uncaptured ones.
    Capture {
        value: u32,
        mask: u32,
    },
    /// Gives the packet to the transparent listener, then does as `Capture`. Without a listener the rule ends before the
    /// mark and the next rule is tried.
    Intercept {
        to: SocketAddr,
        value: u32,
        mask: u32,
    },
    Masquerade,
    /// Runs the chain that the map has for the packet. Where there is none, or it comes to its end, the next rule is tried.
    JumpBy {
        map: String,
        key: Key,
    },
}
