//! What the tables hold, to be compared with what was sent.

use super::{
    FAMILY_ALL, FAMILY_INET, GETCHAIN, GETRULE, GETSET, GETSETELEM, GETTABLE, NF_ACCEPT, NFGENMSG_BYTES, SUBSYSTEM,
    SetShape, chain_type, element_keys,
    expression::{comment, expressions},
    hook_number,
};
use crate::{
    kernel::{Elements, Fingerprint, KernelError, TABLE_TCP, TABLE_TUNNEL, Table, sets},
    os::netlink::{Message, NLM_F_DUMP, NLM_F_REQUEST, Netlink, Writer, attribute, attributes, text},
};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

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
            if name != sets::LIVENESS {
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
