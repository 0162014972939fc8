//! What the tables hold, to be compared with what was sent.

use super::{
    Element, FAMILY_ALL, FAMILY_INET, GETCHAIN, GETRULE, GETSET, GETSETELEM, GETTABLE, NF_ACCEPT, NFGENMSG_BYTES,
    SUBSYSTEM, SetShape, chain_type,
    expression::{NFT_JUMP, comment, expressions},
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
    chains: BTreeMap<String, ChainContent>,
    sets: BTreeMap<String, SetContent>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct ChainContent {
    base: Option<BaseContent>,
    /// Expressions and user data.
    rules: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct BaseContent {
    hook: u32,
    priority: u32,
    policy: u32,
    kind: String,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct SetContent {
    flags: u32,
    key_type: u32,
    key_bytes: u32,
    data_type: u32,
    timeout_ms: u64,
    /// In order.
    elements: Vec<Element>,
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
        let mut digest = Digester(Sha256::new());
        for (name, table) in &self.0 {
            digest.bytes(name.as_bytes());
            digest.table(table);
        }
        Fingerprint(digest.0.finalize().into())
    }
}

/// Every part with its length or a count before it, so that no two contents give the same bytes.
struct Digester(Sha256);

impl Digester {
    fn number(&mut self, number: u64) {
        self.0.update(number.to_be_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.update(bytes);
    }

    fn table(&mut self, table: &TableContent) {
        self.number(table.flags.into());
        self.number(table.chains.len() as u64);
        for (name, chain) in &table.chains {
            self.bytes(name.as_bytes());
            self.number(u64::from(chain.base.is_some()));
            if let Some(BaseContent { hook, priority, policy, kind }) = &chain.base {
                [hook, priority, policy].into_iter().for_each(|number| self.number((*number).into()));
                self.bytes(kind.as_bytes());
            }
            self.number(chain.rules.len() as u64);
            for (expressions, userdata) in &chain.rules {
                self.bytes(expressions);
                self.bytes(userdata);
            }
        }
        self.number(table.sets.len() as u64);
        for (name, set) in &table.sets {
            self.bytes(name.as_bytes());
            let SetContent { flags, key_type, key_bytes, data_type, timeout_ms, elements } = set;
            [flags, key_type, key_bytes, data_type].into_iter().for_each(|number| self.number((*number).into()));
            self.number(*timeout_ms);
            self.number(elements.len() as u64);
            for Element { key, flags, key_end, chain, userdata } in elements {
                self.number((*flags).into());
                [key, key_end, userdata].into_iter().for_each(|bytes| self.bytes(bytes));
                self.bytes(chain.as_bytes());
            }
        }
    }
}

impl TableContent {
    fn expected(table: &Table) -> Self {
        let chains = table.chains.iter().map(|chain| {
            let rules = chain.rules.iter().map(|rule| (expressions(rule), comment(&rule.comment))).collect();
            let base = chain.base.map(|base| BaseContent {
                hook: hook_number(base.hook),
                priority: base.priority.cast_unsigned(),
                policy: NF_ACCEPT,
                kind: chain_type(base.kind).to_owned(),
            });
            (chain.name.clone(), ChainContent { base, rules })
        });
        let sets = table.sets.iter().map(|set| {
            let shape = SetShape::of(&set.elements);
            let mut elements = Element::all_of(&set.elements);
            elements.sort();
            if set.elements == Elements::Liveness {
                elements.clear();
            }
            let content = SetContent {
                flags: shape.flags,
                key_type: shape.key_type,
                key_bytes: shape.key_bytes,
                data_type: shape.data_type(),
                timeout_ms: shape.timeout_ms,
                elements,
            };
            (set.name.clone(), content)
        });
        Self { flags: 0, chains: chains.collect(), sets: sets.collect() }
    }

    fn read(netlink: &Netlink, table: &str) -> Result<Option<Self>, KernelError> {
        let mut content = Self::default();
        let listed = dump(netlink, GETTABLE, FAMILY_INET, |_| {})?;
        let Some(found) = listed.iter().find(|m| belongs(m, table)) else { return Ok(None) };
        content.flags = number(found, 2);
        for message in dump(netlink, GETCHAIN, FAMILY_INET, |_| {})?.iter().filter(|m| belongs(m, table)) {
            let base = field(message, 4).map(|hook| BaseContent {
                hook: attribute(hook, 1).map_or(u32::MAX, be32),
                priority: attribute(hook, 2).map_or(0, be32),
                policy: number(message, 5),
                kind: field(message, 7).map(text).unwrap_or_default(),
            });
            let chain = ChainContent { base, rules: vec![] };
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
                data_type: number(message, 6),
                timeout_ms: field(message, 11).map_or(0, be64),
                elements: vec![],
            };
            if name != sets::LIVENESS {
                set.elements = read_elements(netlink, table, &name)?;
            }
            content.sets.insert(name, set);
        }
        Ok(Some(content))
    }
}

fn read_elements(netlink: &Netlink, table: &str, set: &str) -> Result<Vec<Element>, KernelError> {
    let messages = dump(netlink, GETSETELEM, FAMILY_INET, |w| {
        w.string(1, table);
        w.string(2, set);
    })?;
    let listed = messages.iter().flat_map(|m| attributes(field(m, 3).unwrap_or_default()));
    let mut elements: Vec<_> = listed.map(|(_, element)| read_element(element)).collect();
    elements.sort();
    Ok(elements)
}

/// One that catches all has no key.
fn read_element(bytes: &[u8]) -> Element {
    let verdict = attribute(bytes, 2).and_then(|data| attribute(data, 2));
    // Another verdict than a jump is nobody's chain, and so not what was sent.
    let jump = verdict.map(|verdict| match attribute(verdict, 2) {
        Some(chain) if attribute(verdict, 1).map(be32) == Some(NFT_JUMP) => text(chain),
        _ => "(another verdict)".to_owned(),
    });
    Element {
        key: attribute(bytes, 1).and_then(|key| attribute(key, 1)).unwrap_or_default().to_vec(),
        flags: attribute(bytes, 3).map_or(0, be32),
        key_end: attribute(bytes, 10).and_then(|end| attribute(end, 1)).unwrap_or_default().to_vec(),
        chain: jump.unwrap_or_default(),
        userdata: attribute(bytes, 6).unwrap_or_default().to_vec(),
    }
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
