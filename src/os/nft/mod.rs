//! The two tables as nf_tables messages. Numbers are those of `linux/netfilter/nf_tables.h`.
//!
//! Expressions are written in the very bytes that the kernel gives back, so that what was sent can be compared with
//! what is there.

mod content;
mod element;
mod expression;

pub use content::{Content, concerns_us};

use super::netlink::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST, Netlink, Writer};
use crate::kernel::{Base, Chain, ChainKind, Elements, Hook, KernelError, Set, TABLE_TCP, TABLE_TUNNEL, Table};
use element::{Element, SetShape};
use expression::{comment, expressions};

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

const NF_ACCEPT: u32 = 1;

/// One list attribute stays below 64 KiB: an element of a map takes up to 220 bytes.
const ELEMENTS_PER_MESSAGE: usize = 200;

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
        batch.add(NEWSET, NLM_F_CREATE, format!("set {name} {}", set.name), |w| {
            SetShape::of(&set.elements).write(w, name, &set.name, id);
        });
    }
    for chain in &table.chains {
        batch.add(NEWCHAIN, NLM_F_CREATE, format!("chain {name} {}", chain.name), |w| write_chain(w, name, chain));
    }
    // Elements of maps name chains, and rules name sets.
    for set in &table.sets {
        add_elements(batch, NEWSETELEM, NLM_F_CREATE, name, set);
    }
    for chain in &table.chains {
        for (n, rule) in (1..).zip(&chain.rules) {
            let subject = format!("rule {n} of chain {name} {} ({})", chain.name, rule.comment);
            batch.add(NEWRULE, NLM_F_CREATE | NLM_F_APPEND, subject, |w| {
                w.string(1, name);
                w.string(2, &chain.name);
                w.nested(4, |w| w.bytes.extend(expressions(rule)));
                w.bytes(7, &comment(&rule.comment));
            });
        }
    }
}

fn add_elements(batch: &mut Batch, kind: u16, flags: u16, table: &str, set: &Set) {
    for elements in Element::all_of(&set.elements).chunks(ELEMENTS_PER_MESSAGE) {
        batch.add(kind, flags, format!("elements of set {table} {}", set.name), |w| {
            w.string(1, table);
            w.string(2, &set.name);
            w.nested(3, |w| elements.iter().for_each(|element| w.nested(1, |w| element.write(w))));
        });
    }
}

fn write_chain(w: &mut Writer, table: &str, chain: &Chain) {
    w.string(1, table);
    w.string(3, &chain.name);
    let Some(Base { kind, hook, priority }) = chain.base else { return };
    w.nested(4, |w| {
        w.be32(1, hook_number(hook));
        w.be32(2, priority.cast_unsigned());
    });
    w.be32(5, NF_ACCEPT);
    w.string(7, chain_type(kind));
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
