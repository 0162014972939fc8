//! Policy rules over rtnetlink (`linux/fib_rules.h`).

use super::netlink::{
    Message, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, Netlink, Writer, attribute,
};
use super::route::{Found, address_family, answer, dump, family_of, ne32};
use crate::kernel::{Family, KernelError, POLICY_PRIORITIES, POLICY_PROTOCOL, PolicyItem, PolicyRule};
use ipnet::IpNet;
use std::net::IpAddr;

pub const RTM_NEWRULE: u16 = 32;
pub const RTM_DELRULE: u16 = 33;
const RTM_GETRULE: u16 = 34;
const HEADER_BYTES: usize = 12;
const FRA_DST: u16 = 1;
const FRA_GOTO: u16 = 4;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FRA_PROTOCOL: u16 = 21;
const ACTION_TO_TABLE: u8 = 1;
const ACTION_GOTO: u8 = 2;
const ACTION_NOP: u8 = 3;
const FLAG_INVERT: u32 = 2;

/// Our rules of one family.
pub fn read(netlink: &Netlink, family: Family) -> Result<Vec<Found>, KernelError> {
    let mut w = Writer::default();
    w.message(RTM_GETRULE, NLM_F_REQUEST | NLM_F_DUMP, 0, |w| {
        w.raw(&[address_family(family), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    });
    Ok(dump(netlink, &w.bytes, "reading policy rules")?.iter().filter_map(parse).collect())
}

pub fn add(netlink: &Netlink, family: Family, priority: u32, rule: PolicyRule) -> Result<(), KernelError> {
    let mut w = Writer::default();
    let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    w.message(RTM_NEWRULE, flags, 0, |w| write(w, family, priority, rule));
    answer(netlink, &w.bytes, || format!("adding policy rule {priority} of {family:?}"))
}

/// Deletes exactly the rule that was read.
pub fn delete(netlink: &Netlink, found: &Found) -> Result<(), KernelError> {
    let mut w = Writer::default();
    w.message(RTM_DELRULE, NLM_F_REQUEST | NLM_F_ACK, 0, |w| w.raw(&found.payload));
    answer(netlink, &w.bytes, || format!("deleting policy rule {:?}", found.item))
}

fn write(w: &mut Writer, family: Family, priority: u32, rule: PolicyRule) {
    let (action, flags) = match rule {
        PolicyRule::SkipTo { .. } => (ACTION_GOTO, 0),
        PolicyRule::Lookup { .. } | PolicyRule::LookupDest { .. } => (ACTION_TO_TABLE, 0),
        PolicyRule::LookupUnless { .. } => (ACTION_TO_TABLE, FLAG_INVERT),
        PolicyRule::Label | PolicyRule::Unknown => (ACTION_NOP, 0u32),
    };
    let dest_len = if let PolicyRule::LookupDest { net, .. } = rule { net.prefix_len() } else { 0 };
    w.raw(&[address_family(family), dest_len, 0, 0, 0, 0, 0, action]);
    w.raw(&flags.to_ne_bytes());
    w.bytes(FRA_PRIORITY, &priority.to_ne_bytes());
    w.bytes(FRA_PROTOCOL, &[POLICY_PROTOCOL]);
    match rule {
        PolicyRule::SkipTo { value, mask, priority } => {
            write_mark(w, value, mask);
            w.bytes(FRA_GOTO, &priority.to_ne_bytes());
        }
        PolicyRule::Lookup { value, mask, table } | PolicyRule::LookupUnless { value, mask, table } => {
            write_mark(w, value, mask);
            w.bytes(FRA_TABLE, &table.to_ne_bytes());
        }
        PolicyRule::LookupDest { net, table } => {
            w.bytes(FRA_DST, &address(net.network()));
            w.bytes(FRA_TABLE, &table.to_ne_bytes());
        }
        PolicyRule::Label | PolicyRule::Unknown => {}
    }
}

fn address(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().into(),
        IpAddr::V6(ip) => ip.octets().into(),
    }
}

fn network(bytes: &[u8], len: u8) -> Option<IpNet> {
    let ip = match *bytes {
        [a, b, c, d] => IpAddr::from([a, b, c, d]),
        _ => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
    };
    IpNet::new(ip, len).ok()
}

fn write_mark(w: &mut Writer, value: u32, mask: u32) {
    w.bytes(FRA_FWMARK, &value.to_ne_bytes());
    w.bytes(FRA_FWMASK, &mask.to_ne_bytes());
}

/// None for a foreign rule.
fn parse(message: &Message) -> Option<Found> {
    let header = message.payload.get(..HEADER_BYTES)?;
    let attributes = message.payload.get(HEADER_BYTES..)?;
    let number = |kind| attribute(attributes, kind).and_then(ne32);
    let priority = number(FRA_PRIORITY).unwrap_or(0);
    let ours = attribute(attributes, FRA_PROTOCOL) == Some(&[POLICY_PROTOCOL]);
    if message.kind != RTM_NEWRULE || !ours || !POLICY_PRIORITIES.contains(&priority) {
        return None;
    }
    let mark = || Some((number(FRA_FWMARK).unwrap_or(0), number(FRA_FWMASK)?));
    let inverted = ne32(&header[8..12])? & FLAG_INVERT != 0;
    let rule = match (header[7], inverted) {
        (ACTION_GOTO, false) => {
            mark().zip(number(FRA_GOTO)).map(|((value, mask), priority)| PolicyRule::SkipTo { value, mask, priority })
        }
        (ACTION_TO_TABLE, false) if header[1] != 0 => {
            let net = attribute(attributes, FRA_DST).and_then(|bytes| network(bytes, header[1]));
            let alone = number(FRA_FWMARK).is_none();
            let table = number(FRA_TABLE).filter(|_| alone);
            net.zip(table).map(|(net, table)| PolicyRule::LookupDest { net, table })
        }
        (ACTION_TO_TABLE, inverted) => mark().zip(number(FRA_TABLE)).map(|((value, mask), table)| {
            if inverted {
                PolicyRule::LookupUnless { value, mask, table }
            } else {
                PolicyRule::Lookup { value, mask, table }
            }
        }),
        (ACTION_NOP, false) => Some(PolicyRule::Label),
        _ => None,
    };
    // A rule of ours that also looks at something else is not ours as we wrote it.
    let by_dest = matches!(rule, Some(PolicyRule::LookupDest { .. }));
    let narrowed = (header[1] != 0 && !by_dest) || header[2] != 0 || header[3] != 0;
    let rule = rule.filter(|_| !narrowed).unwrap_or(PolicyRule::Unknown);
    let item = PolicyItem::Rule { family: family_of(header[0])?, priority, rule };
    Some(Found { item, payload: message.payload.clone() })
}
