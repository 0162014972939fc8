//! Routes in our tables over rtnetlink (`linux/rtnetlink.h`), and what rules, routes and links share.

use super::netlink::{
    Message, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, Netlink, Writer, attribute,
};
use crate::kernel::{Family, KernelError, POLICY_PROTOCOL, POLICY_TABLES, PolicyItem};

pub const RTM_NEWROUTE: u16 = 24;
pub const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const HEADER_BYTES: usize = 12;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_MULTIPATH: u16 = 9;
const TABLE_MAIN: u32 = 254;
const RTA_TABLE: u16 = 15;
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;
const SCOPE_LINK: u8 = 253;
const SCOPE_HOST: u8 = 254;
/// In every namespace.
const LOOPBACK_INDEX: u32 = 1;

/// An object of ours as the kernel listed it; its payload names it exactly.
#[derive(Debug, Clone)]
pub struct Found {
    pub item: PolicyItem,
    pub payload: Vec<u8>,
}

/// Our routes of one family in all our tables.
pub fn read(netlink: &Netlink, family: Family) -> Result<Vec<Found>, KernelError> {
    let mut found = vec![];
    // A table at a time: the kernel filters, so a host with a million foreign routes costs nothing.
    for table in POLICY_TABLES {
        let mut w = Writer::default();
        w.message(RTM_GETROUTE, NLM_F_REQUEST | NLM_F_DUMP, 0, |w| {
            w.raw(&[address_family(family), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            w.bytes(RTA_TABLE, &table.to_ne_bytes());
        });
        found.extend(dump(netlink, &w.bytes, "reading routes")?.iter().filter_map(parse));
    }
    Ok(found)
}

/// `local default dev lo table <table>`
pub fn add_local_default(netlink: &Netlink, family: Family, table: u32) -> Result<(), KernelError> {
    let mut w = Writer::default();
    w.message(RTM_NEWROUTE, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, 0, |w| {
        w.raw(&[address_family(family), 0, 0, 0, 0, POLICY_PROTOCOL, SCOPE_HOST, RTN_LOCAL, 0, 0, 0, 0]);
        w.bytes(RTA_TABLE, &table.to_ne_bytes());
        w.bytes(RTA_OIF, &LOOPBACK_INDEX.to_ne_bytes());
    });
    answer(netlink, &w.bytes, || format!("adding the local default route of {family:?} to table {table}"))
}

/// Index of the link of the preferred default route in the main table.
pub fn default_link(netlink: &Netlink, family: Family) -> Result<Option<u32>, KernelError> {
    let mut w = Writer::default();
    w.message(RTM_GETROUTE, NLM_F_REQUEST | NLM_F_DUMP, 0, |w| {
        w.raw(&[address_family(family), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        w.bytes(RTA_TABLE, &TABLE_MAIN.to_ne_bytes());
    });
    let routes = dump(netlink, &w.bytes, "reading the default route")?;
    let of_family = routes.iter().filter(|m| m.payload.first() == Some(&address_family(family)));
    Ok(of_family.filter_map(parse_default).min().map(|(_, index)| index))
}

/// Metric and link of a default route in the main table.
fn parse_default(message: &Message) -> Option<(u32, u32)> {
    let header = message.payload.get(..HEADER_BYTES)?;
    let attributes = message.payload.get(HEADER_BYTES..)?;
    let everywhere = header[1] == 0 && header[7] == RTN_UNICAST && table_of(message) == Some(TABLE_MAIN);
    // The first next hop of several: length, flags, weight, index.
    let first_hop = || ne32(attribute(attributes, RTA_MULTIPATH)?.get(4..8)?);
    let index = attribute(attributes, RTA_OIF).and_then(ne32).or_else(first_hop)?;
    let metric = attribute(attributes, RTA_PRIORITY).and_then(ne32).unwrap_or(0);
    (message.kind == RTM_NEWROUTE && everywhere).then_some((metric, index))
}

/// `default dev <device> table <table>`
pub fn add_device_default(netlink: &Netlink, family: Family, table: u32, device: u32) -> Result<(), KernelError> {
    let mut w = Writer::default();
    w.message(RTM_NEWROUTE, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, 0, |w| {
        w.raw(&[address_family(family), 0, 0, 0, 0, POLICY_PROTOCOL, SCOPE_LINK, RTN_UNICAST, 0, 0, 0, 0]);
        w.bytes(RTA_TABLE, &table.to_ne_bytes());
        w.bytes(RTA_OIF, &device.to_ne_bytes());
    });
    answer(netlink, &w.bytes, || format!("adding the default route of {family:?} by device {device} to table {table}"))
}

/// Deletes exactly the route that was read.
pub fn delete(netlink: &Netlink, found: &Found) -> Result<(), KernelError> {
    let mut w = Writer::default();
    w.message(RTM_DELROUTE, NLM_F_REQUEST | NLM_F_ACK, 0, |w| w.raw(&found.payload));
    answer(netlink, &w.bytes, || format!("deleting route {:?}", found.item))
}

/// None for a foreign route.
fn parse(message: &Message) -> Option<Found> {
    let table = table_of(message)?;
    let header = message.payload.get(..HEADER_BYTES)?;
    if message.kind != RTM_NEWROUTE || header[5] != POLICY_PROTOCOL || !POLICY_TABLES.contains(&table) {
        return None;
    }
    let family = family_of(header[0])?;
    let leaves_by = attribute(message.payload.get(HEADER_BYTES..)?, RTA_OIF).and_then(ne32);
    let plain = header[1..4] == [0; 3];
    let gateway = attribute(message.payload.get(HEADER_BYTES..)?, RTA_GATEWAY);
    let item = match (header[7], leaves_by) {
        (RTN_LOCAL, Some(LOOPBACK_INDEX)) if plain => PolicyItem::LocalDefault { family, table },
        (RTN_UNICAST, Some(device)) if plain && gateway.is_none() => {
            PolicyItem::DeviceDefault { family, table, device }
        }
        _ => PolicyItem::UnknownRoute { family, table },
    };
    Some(Found { item, payload: message.payload.clone() })
}

/// The table of a route message.
pub fn table_of(message: &Message) -> Option<u32> {
    attribute(message.payload.get(HEADER_BYTES..)?, RTA_TABLE).and_then(ne32)
}

pub fn address_family(family: Family) -> u8 {
    match family {
        Family::V4 => libc::AF_INET as u8,
        Family::V6 => libc::AF_INET6 as u8,
    }
}

pub fn family_of(number: u8) -> Option<Family> {
    Family::BOTH.into_iter().find(|f| address_family(*f) == number)
}

pub fn ne32(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

/// Sends one request that asks for an acknowledgement.
pub fn answer(netlink: &Netlink, bytes: &[u8], attempted: impl Fn() -> String) -> Result<(), KernelError> {
    match netlink.request(bytes) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(refusal)) => {
            let mut error = KernelError::from_errno(attempted(), refusal.errno);
            error.reason.extend(refusal.detail.map(|d| format!(": {d}")));
            Err(error)
        }
        Err(e) => Err(KernelError { attempted: attempted(), errno: e.raw_os_error(), reason: e.to_string() }),
    }
}

/// Sends one dump request; a table or an address family that does not exist is empty.
pub fn dump(netlink: &Netlink, bytes: &[u8], attempted: &str) -> Result<Vec<Message>, KernelError> {
    match netlink.dump(bytes) {
        Ok(Ok(messages)) => Ok(messages),
        Ok(Err(refusal)) if [libc::ENOENT, libc::EAFNOSUPPORT].contains(&refusal.errno) => Ok(vec![]),
        Ok(Err(refusal)) => Err(KernelError::from_errno(attempted, refusal.errno)),
        Err(e) => Err(KernelError { attempted: attempted.into(), errno: e.raw_os_error(), reason: e.to_string() }),
    }
}
