//! The two tables as nf_tables messages. Numbers are those of `linux/netfilter/nf_tables.h`.
//!
//! Expressions are written in the very bytes that the kernel gives back, so that what was sent can be compared with
//! what is there.

use super::netlink::{
    Message, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REQUEST, Netlink, Writer, attribute, attributes,
    text,
};
use crate::kernel::{
    Action, Chain, ChainKind, Elements, Family, Fingerprint, Hook, KernelError, LIVENESS_TIMEOUT, Match, PeerSocket,
    Rule, Set, TABLE_TCP, TABLE_TUNNEL, Table,
};
use ipnet::IpNet;
use sha2::{Digest, Sha256};
use std::{collections::BTreeMap, net::IpAddr};

pub const NFNLGRP_NFTABLES: u32 = 7;
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEWTABLE: u16 = 0;
const GETTABLE: u16 = 1;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const GETCHAIN: u16 = 4;
const NEWRULE: u16 = 6;
const GETRULE: u16 = 7;
const NEWSET: u16 = 9;
const GETSET: u16 = 10;
const NEWSETELEM: u16 = 12;
const GETSETELEM: u16 = 13;
const DELSETELEM: u16 = 14;

const FAMILY_ALL: u8 = 0;
const FAMILY_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const NFGENMSG_BYTES: usize = 4;

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
const CMP_EQ: u32 = 0;
const CMP_NEQ: u32 = 1;
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const IFNAME_BYTES: usize = 16;

const SET_TIMEOUT: u32 = 0x10;
/// Types as the `nft` command numbers them; a concatenation has 6 bits each.
const TYPE_NFPROTO: u32 = 2;
const TYPE_IPV4: u32 = 7;
const TYPE_IPV6: u32 = 8;
const TYPE_INET_PROTOCOL: u32 = 12;
const TYPE_INET_SERVICE: u32 = 13;
const TYPE_FIB_ADDRESS: u32 = 38;
const RTN_LOCAL: u32 = 2;
const RTN_BROADCAST: u32 = 3;
const RTN_MULTICAST: u32 = 5;
/// Tells `nft list` the byte order of the keys of a set: host order.
const SET_USERDATA_HOST_ORDER: [u8; 6] = [0, 4, 1, 0, 0, 0];
/// Comment of a rule in its user data.
const USERDATA_COMMENT: u8 = 0;
/// One list attribute stays far below 64 KiB.
const ELEMENTS_PER_MESSAGE: usize = 500;

/// Messages of one transaction, and what each is about.
struct Batch {
    writer: Writer,
    subjects: Vec<String>,
}

impl Batch {
    fn new() -> Self {
        let mut batch = Self { writer: Writer::default(), subjects: vec![] };
        batch.boundary(BATCH_BEGIN);
        batch
    }

    fn boundary(&mut self, kind: u16) {
        let sequence = self.next(String::new());
        let [high, low] = SUBSYSTEM.to_be_bytes();
        self.writer.message(kind, NLM_F_REQUEST, sequence, |w| w.raw(&[0, 0, high, low]));
    }

    fn next(&mut self, subject: String) -> u32 {
        self.subjects.push(subject);
        u32::try_from(self.subjects.len() - 1).expect("a batch has fewer than 2^32 messages")
    }

    /// Every message asks for nothing but the last, whose acknowledgement says that all were applied.
    fn add(&mut self, kind: u16, flags: u16, subject: impl Into<String>, body: impl FnOnce(&mut Writer)) {
        let sequence = self.next(subject.into());
        self.writer.message((SUBSYSTEM << 8) | kind, NLM_F_REQUEST | flags, sequence, |w| {
            w.raw(&[FAMILY_INET, 0, 0, 0]);
            body(w);
        });
    }

    fn commit(mut self, netlink: &Netlink, attempted: &str) -> Result<(), KernelError> {
        self.boundary(BATCH_END);
        let answer = netlink.request(&self.writer.bytes).map_err(|e| KernelError {
            attempted: attempted.to_owned(),
            errno: e.raw_os_error(),
            reason: e.to_string(),
        })?;
        answer.map_err(|refusal| {
            let subject = usize::try_from(refusal.message).ok().and_then(|i| self.subjects.get(i)).cloned();
            let at = subject.filter(|s| !s.is_empty()).map(|s| format!(", at {s}")).unwrap_or_default();
            let mut error = KernelError::from_errno(format!("{attempted}{at}"), refusal.errno);
            error.reason.extend(refusal.detail.map(|d| format!(": {d}")));
            error
        })
    }
}

/// Replaces both tables in one transaction.
pub fn replace(netlink: &Netlink, tables: &[Table]) -> Result<(), KernelError> {
    let mut batch = Batch::new();
    for table in tables {
        remove_table(&mut batch, table.name);
        add_table(&mut batch, table);
    }
    // The acknowledgement of a table that exists already: the last message of the batch.
    batch.add(NEWTABLE, NLM_F_CREATE | NLM_F_ACK, "the end", |w| w.string(1, TABLE_TCP));
    batch.commit(netlink, "replacing tables arctic and arctic_iptun")
}

/// Removes both tables, whether they exist or not.
pub fn remove(netlink: &Netlink) -> Result<(), KernelError> {
    let mut batch = Batch::new();
    remove_table(&mut batch, TABLE_TCP);
    batch.add(NEWTABLE, NLM_F_CREATE, TABLE_TUNNEL, |w| w.string(1, TABLE_TUNNEL));
    batch.add(DELTABLE, NLM_F_ACK, TABLE_TUNNEL, |w| w.string(1, TABLE_TUNNEL));
    batch.commit(netlink, "removing tables arctic and arctic_iptun")
}

/// Gives the liveness elements their full timeout again. An element that exists keeps its timer, so it is deleted and
/// added in one transaction; the first message makes it exist for the deletion.
pub fn feed_liveness(netlink: &Netlink, tables: &[Table]) -> Result<(), KernelError> {
    let mut batch = Batch::new();
    let live = tables.iter().flat_map(|t| t.sets.iter().map(|s| (t.name, s)));
    let live: Vec<_> = live.filter(|(_, s)| s.elements == Elements::Liveness).collect();
    for (n, (table, set)) in live.iter().enumerate() {
        let last = if n + 1 == live.len() { NLM_F_ACK } else { 0 };
        add_elements(&mut batch, NEWSETELEM, NLM_F_CREATE, table, set);
        add_elements(&mut batch, DELSETELEM, 0, table, set);
        add_elements(&mut batch, NEWSETELEM, NLM_F_CREATE | last, table, set);
    }
    batch.commit(netlink, "feeding the liveness element")
}

/// Deletes a table that may not exist.
fn remove_table(batch: &mut Batch, name: &str) {
    batch.add(NEWTABLE, NLM_F_CREATE, name, |w| w.string(1, name));
    batch.add(DELTABLE, 0, name, |w| w.string(1, name));
}

fn add_table(batch: &mut Batch, table: &Table) {
    let name = table.name;
    batch.add(NEWTABLE, NLM_F_CREATE, name, |w| w.string(1, name));
    for (id, set) in (1..).zip(&table.sets) {
        let shape = SetShape::of(&set.elements);
        batch.add(NEWSET, NLM_F_CREATE, format!("set {name} {}", set.name), |w| {
            w.string(1, name);
            w.string(2, set.name);
            w.be32(3, shape.flags);
            w.be32(4, shape.key_type);
            w.be32(5, shape.key_bytes);
            w.be32(10, id);
            if shape.timeout_ms > 0 {
                w.be64(11, shape.timeout_ms);
            }
            if shape.host_order {
                w.bytes(13, &SET_USERDATA_HOST_ORDER);
            }
        });
        add_elements(batch, NEWSETELEM, NLM_F_CREATE, name, set);
    }
    for chain in &table.chains {
        batch.add(NEWCHAIN, NLM_F_CREATE, format!("chain {name} {}", chain.name), |w| write_chain(w, name, chain));
        for (n, rule) in (1..).zip(&chain.rules) {
            let subject = format!("rule {n} of chain {name} {} ({})", chain.name, rule.comment);
            batch.add(NEWRULE, NLM_F_CREATE | NLM_F_APPEND, subject, |w| {
                w.string(1, name);
                w.string(2, chain.name);
                w.nested(4, |w| w.bytes.extend(expressions(rule)));
                w.bytes(7, &comment(rule));
            });
        }
    }
}

fn add_elements(batch: &mut Batch, kind: u16, flags: u16, table: &str, set: &Set) {
    for keys in element_keys(&set.elements).chunks(ELEMENTS_PER_MESSAGE) {
        batch.add(kind, flags, format!("elements of set {table} {}", set.name), |w| {
            w.string(1, table);
            w.string(2, set.name);
            w.nested(3, |w| {
                for key in keys {
                    w.nested(1, |w| w.nested(1, |w| w.bytes(1, key)));
                }
            });
        });
    }
}

fn write_chain(w: &mut Writer, table: &str, chain: &Chain) {
    w.string(1, table);
    w.string(3, chain.name);
    w.nested(4, |w| {
        w.be32(1, hook_number(chain.hook));
        w.be32(2, chain.priority.cast_unsigned());
    });
    w.be32(5, NF_ACCEPT);
    w.string(7, chain_type(chain.kind));
}

const fn hook_number(hook: Hook) -> u32 {
    match hook {
        Hook::Prerouting => 0,
        Hook::Input => 1,
        Hook::Output => 3,
        Hook::Postrouting => 4,
    }
}

const fn chain_type(kind: ChainKind) -> &'static str {
    match kind {
        ChainKind::Filter => "filter",
        ChainKind::Route => "route",
        ChainKind::Nat => "nat",
    }
}

struct SetShape {
    key_type: u32,
    key_bytes: u32,
    flags: u32,
    timeout_ms: u64,
    host_order: bool,
}

impl SetShape {
    fn of(elements: &Elements) -> Self {
        let plain = |key_type, key_bytes| Self { key_type, key_bytes, flags: 0, timeout_ms: 0, host_order: false };
        let socket = |address| (((address << 6) | TYPE_INET_PROTOCOL) << 6) | TYPE_INET_SERVICE;
        match elements {
            Elements::Liveness => {
                Self { flags: SET_TIMEOUT, timeout_ms: LIVENESS_TIMEOUT.as_secs() * 1000, ..plain(TYPE_NFPROTO, 1) }
            }
            Elements::NotForwarded => Self { host_order: true, ..plain(TYPE_FIB_ADDRESS, 4) },
            Elements::PeersV4(_) => plain(socket(TYPE_IPV4), 12),
            Elements::PeersV6(_) => plain(socket(TYPE_IPV6), 24),
            Elements::Ports(_) => plain(TYPE_INET_SERVICE, 2),
        }
    }
}

fn element_keys(elements: &Elements) -> Vec<Vec<u8>> {
    match elements {
        Elements::Liveness => vec![vec![NFPROTO_IPV4], vec![NFPROTO_IPV6]],
        Elements::NotForwarded => [RTN_LOCAL, RTN_BROADCAST, RTN_MULTICAST].map(|k| k.to_ne_bytes().to_vec()).into(),
        Elements::PeersV4(peers) | Elements::PeersV6(peers) => peers.iter().map(socket_key).collect(),
        Elements::Ports(ports) => ports.iter().map(|p| p.to_be_bytes().to_vec()).collect(),
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

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn comment(rule: &Rule) -> Vec<u8> {
    // The length is one byte; service and route ids take 42.
    let mut text: Vec<u8> = rule.comment.bytes().take(usize::from(u8::MAX) - 1).collect();
    text.push(0);
    let len = u8::try_from(text.len()).expect("cut to 255");
    [&[USERDATA_COMMENT, len], text.as_slice()].concat()
}

/// The expressions of one rule, being written.
#[derive(Default)]
struct Expressions {
    writer: Writer,
    family: Option<Family>,
}

/// The content of the expression list attribute of a rule.
fn expressions(rule: &Rule) -> Vec<u8> {
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

    fn network(&mut self, net: IpNet, v4_offset: u32, v6_offset: u32) {
        self.family(Family::of(net.addr()));
        let (offset, address) = match net {
            IpNet::V4(_) => (v4_offset, octets(net.network())),
            IpNet::V6(_) => (v6_offset, octets(net.network())),
        };
        self.payload(REG_1, NETWORK_HEADER, offset, u32::try_from(address.len()).expect("4 or 16"));
        if net.prefix_len() < net.max_prefix_len() {
            self.mask(&octets(net.netmask()), &vec![0; address.len()]);
        }
        self.compare(CMP_EQ, &address);
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
            Match::Source(net) => self.network(*net, 12, 8),
            Match::Dest(net) => self.network(*net, 16, 24),
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
                self.lookup(crate::kernel::sets::NOT_FORWARDED, false);
            }
            Match::PeerSocket(family) => self.peer_socket(*family),
            Match::EnteredBy(name) => {
                let mut padded = name.as_bytes().to_vec();
                padded.resize(IFNAME_BYTES, 0);
                self.meta(META_IIFNAME, REG_1);
                self.compare(CMP_EQ, &padded);
            }
            Match::Reply => {
                self.expression("ct", |w| {
                    w.be32(1, REG_1);
                    w.be32(2, 1 /* direction */);
                });
                self.compare(CMP_EQ, &[1]);
            }
            Match::TransparentSocket => {
                self.expression("socket", |w| {
                    w.be32(1, 0 /* transparent */);
                    w.be32(2, REG_1);
                });
                self.compare(CMP_EQ, &[1]);
            }
            Match::NotAlive => {
                self.meta(META_NFPROTO, REG_1);
                self.lookup(crate::kernel::sets::LIVENESS, true);
            }
        }
    }

    fn peer_socket(&mut self, family: Family) {
        use crate::kernel::sets::{PEERS_V4, PEERS_V6};
        self.family(family);
        let (offset, len, protocol, port, set) = match family {
            Family::V4 => (16, 4, REG32_01, REG32_02, PEERS_V4),
            Family::V6 => (24, 16, REG_2, REG32_05, PEERS_V6),
        };
        self.payload(REG_1, NETWORK_HEADER, offset, len);
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

    fn add_action(&mut self, action: &Action) {
        match action {
            Action::Accept => self.verdict(NF_ACCEPT),
            Action::Drop => self.verdict(NF_DROP),
            Action::SetMark { value, mask } => {
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
                self.set_mark(*value, *mask);
                self.verdict(NF_ACCEPT);
            }
            Action::Masquerade => self.expression("masq", |_| {}),
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

/// What the tables hold, in comparable form: by table, then by kind and name; rules in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Content(BTreeMap<String, TableContent>);

#[derive(Debug, Default, PartialEq, Eq)]
struct TableContent {
    flags: u32,
    /// Chain: its hook, priority, policy, type; then expressions and user data of its rules.
    chains: BTreeMap<String, ChainContent>,
    /// Set: its shape, then its elements in order of their keys.
    sets: BTreeMap<String, SetContent>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct ChainContent {
    hook: u32,
    priority: u32,
    policy: u32,
    kind: String,
    rules: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct SetContent {
    flags: u32,
    key_type: u32,
    key_bytes: u32,
    timeout_ms: u64,
    keys: Vec<Vec<u8>>,
}

impl Content {
    pub fn expected(tables: &[Table]) -> Self {
        Self(tables.iter().map(|t| (t.name.to_owned(), TableContent::expected(t))).collect())
    }

    /// Absent when neither table exists.
    pub fn read(netlink: &Netlink) -> Result<Option<Self>, KernelError> {
        let mut content = BTreeMap::new();
        for name in [TABLE_TCP, TABLE_TUNNEL] {
            if let Some(table) = TableContent::read(netlink, name)? {
                content.insert(name.to_owned(), table);
            }
        }
        Ok((!content.is_empty()).then_some(Self(content)))
    }

    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint(Sha256::digest(format!("{self:?}")).into())
    }
}

impl TableContent {
    fn expected(table: &Table) -> Self {
        let chains = table.chains.iter().map(|chain| {
            let rules = chain.rules.iter().map(|rule| (expressions(rule), comment(rule))).collect();
            let content = ChainContent {
                hook: hook_number(chain.hook),
                priority: chain.priority.cast_unsigned(),
                policy: NF_ACCEPT,
                kind: chain_type(chain.kind).to_owned(),
                rules,
            };
            (chain.name.to_owned(), content)
        });
        let sets = table.sets.iter().map(|set| {
            let shape = SetShape::of(&set.elements);
            let mut keys = element_keys(&set.elements);
            keys.sort();
            if set.elements == Elements::Liveness {
                keys.clear();
            }
            let content = SetContent {
                flags: shape.flags,
                key_type: shape.key_type,
                key_bytes: shape.key_bytes,
                timeout_ms: shape.timeout_ms,
                keys,
            };
            (set.name.to_owned(), content)
        });
        Self { flags: 0, chains: chains.collect(), sets: sets.collect() }
    }

    fn read(netlink: &Netlink, table: &str) -> Result<Option<Self>, KernelError> {
        let mut content = Self::default();
        let listed = dump(netlink, GETTABLE, FAMILY_INET, |_| {})?;
        let Some(found) = listed.iter().find(|m| belongs(m, table)) else { return Ok(None) };
        content.flags = number(found, 2);
        for message in dump(netlink, GETCHAIN, FAMILY_INET, |_| {})?.iter().filter(|m| belongs(m, table)) {
            let hook = field(message, 4).unwrap_or_default();
            let chain = ChainContent {
                hook: attribute(hook, 1).map_or(u32::MAX, be32),
                priority: attribute(hook, 2).map_or(0, be32),
                policy: number(message, 5),
                kind: field(message, 7).map(text).unwrap_or_default(),
                rules: vec![],
            };
            content.chains.insert(field(message, 3).map(text).unwrap_or_default(), chain);
        }
        for message in dump(netlink, GETRULE, FAMILY_INET, |w| w.string(1, table))? {
            let chain = content.chains.entry(field(&message, 2).map(text).unwrap_or_default()).or_default();
            let bytes = |kind| field(&message, kind).unwrap_or_default().to_vec();
            if belongs(&message, table) {
                chain.rules.push((bytes(4), bytes(7)));
            }
        }
        for message in dump(netlink, GETSET, FAMILY_INET, |w| w.string(1, table))?.iter().filter(|m| belongs(m, table))
        {
            let name = field(message, 2).map(text).unwrap_or_default();
            let mut set = SetContent {
                flags: number(message, 3),
                key_type: number(message, 4),
                key_bytes: number(message, 5),
                timeout_ms: field(message, 11).map_or(0, be64),
                keys: vec![],
            };
            if name != crate::kernel::sets::LIVENESS {
                set.keys = read_keys(netlink, table, &name)?;
            }
            content.sets.insert(name, set);
        }
        Ok(Some(content))
    }
}

fn read_keys(netlink: &Netlink, table: &str, set: &str) -> Result<Vec<Vec<u8>>, KernelError> {
    let messages = dump(netlink, GETSETELEM, FAMILY_INET, |w| {
        w.string(1, table);
        w.string(2, set);
    })?;
    let mut keys: Vec<_> = messages
        .iter()
        .flat_map(|m| attributes(field(m, 3).unwrap_or_default()))
        .filter_map(|(_, element)| attribute(attribute(element, 1)?, 1).map(<[u8]>::to_vec))
        .collect();
    keys.sort();
    Ok(keys)
}

fn dump(netlink: &Netlink, kind: u16, family: u8, body: impl FnOnce(&mut Writer)) -> Result<Vec<Message>, KernelError> {
    let mut w = Writer::default();
    w.message((SUBSYSTEM << 8) | kind, NLM_F_REQUEST | NLM_F_DUMP, 0, |w| {
        w.raw(&[family, 0, 0, 0]);
        body(w);
    });
    let attempted = "reading tables arctic and arctic_iptun";
    match netlink.dump(&w.bytes) {
        Ok(Ok(messages)) => Ok(messages),
        // The set or table went away since it was listed: as if it had never been there.
        Ok(Err(refusal)) if refusal.errno == libc::ENOENT => Ok(vec![]),
        Ok(Err(refusal)) => Err(KernelError::from_errno(attempted, refusal.errno)),
        Err(e) => Err(KernelError { attempted: attempted.into(), errno: e.raw_os_error(), reason: e.to_string() }),
    }
}

/// Whether a notification is about one of our tables.
pub fn concerns_us(message: &Message) -> bool {
    let ours = |name: &[u8]| [TABLE_TCP, TABLE_TUNNEL].contains(&text(name).as_str());
    message.kind >> 8 == SUBSYSTEM && field(message, 1).is_some_and(ours)
}

fn belongs(message: &Message, table: &str) -> bool {
    let family = message.payload.first().copied().unwrap_or(FAMILY_ALL);
    family == FAMILY_INET && field(message, 1).map(text).as_deref() == Some(table)
}

fn field(message: &Message, kind: u16) -> Option<&[u8]> {
    attribute(message.payload.get(NFGENMSG_BYTES..)?, kind)
}

fn number(message: &Message, kind: u16) -> u32 {
    field(message, kind).map_or(0, be32)
}

fn be32(bytes: &[u8]) -> u32 {
    bytes.try_into().map_or(0, u32::from_be_bytes)
}

fn be64(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(0, u64::from_be_bytes)
}
