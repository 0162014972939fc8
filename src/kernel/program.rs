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
    pub name: &'static str,
    pub elements: Elements,
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

/// A base chain with policy accept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    pub name: &'static str,
    pub kind: ChainKind,
    pub hook: Hook,
    pub priority: i32,
    pub rules: Vec<Rule>,
}

impl Chain {
    pub(crate) fn base(name: &'static str, kind: ChainKind, hook: Hook, priority: i32, rules: Vec<Rule>) -> Self {
        Self { name, kind, hook, priority, rules }
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

/// Each action ends the chain.
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
}
