//! Links and addresses of the host over rtnetlink.

use super::netlink::{Message, NLM_F_DUMP, NLM_F_REQUEST, Netlink, Writer, attribute, text};
use super::route::{dump, ne32};
use crate::kernel::{HostFacts, KernelError, Link, Mac};
use ipnet::IpNet;
use std::{collections::BTreeSet, net::IpAddr};

pub const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
pub const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const LINK_HEADER_BYTES: usize = 16;
const ADDRESS_HEADER_BYTES: usize = 8;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_INFO_KIND: u16 = 1;
/// `ARPHRD_ETHER`, the type of links with MAC addresses.
const ETHERNET: [u8; 2] = 1u16.to_ne_bytes();
const IFF_UP: u32 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;

/// Every link with its addresses.
pub fn read(netlink: &Netlink) -> Result<HostFacts, KernelError> {
    let mut facts = HostFacts::default();
    for message in list(netlink, RTM_GETLINK, LINK_HEADER_BYTES, "reading links")? {
        facts.links.extend(parse_link(&message));
    }
    for message in list(netlink, RTM_GETADDR, ADDRESS_HEADER_BYTES, "reading addresses")? {
        let Some((index, net)) = parse_address(&message) else { continue };
        if let Some(link) = facts.links.get_mut(&index) {
            link.addresses.insert(net);
        }
    }
    Ok(facts)
}

fn list(netlink: &Netlink, kind: u16, header: usize, attempted: &str) -> Result<Vec<Message>, KernelError> {
    let mut w = Writer::default();
    w.message(kind, NLM_F_REQUEST | NLM_F_DUMP, 0, |w| w.raw(&vec![0; header]));
    dump(netlink, &w.bytes, attempted)
}

fn parse_link(message: &Message) -> Option<(u32, Link)> {
    let header = message.payload.get(..LINK_HEADER_BYTES)?;
    let attributes = message.payload.get(LINK_HEADER_BYTES..)?;
    let text_of = |kind| attribute(attributes, kind).map(text);
    let mac = attribute(attributes, IFLA_ADDRESS).and_then(|mac| mac.try_into().ok().map(Mac));
    let elsewhere = attribute(attributes, IFLA_LINK_NETNSID).is_some();
    let link = Link {
        name: text_of(IFLA_IFNAME)?,
        alias: text_of(IFLA_IFALIAS),
        kind: attribute(attributes, IFLA_LINKINFO).and_then(|info| attribute(info, IFLA_INFO_KIND)).map(text),
        parent: attribute(attributes, IFLA_LINK).and_then(ne32).filter(|_| !elsewhere),
        mac: mac.filter(|_| header[2..4] == ETHERNET),
        up: ne32(&header[8..12])? & IFF_UP != 0,
        mtu: attribute(attributes, IFLA_MTU).and_then(ne32).unwrap_or(0),
        addresses: BTreeSet::new(),
    };
    (message.kind == RTM_NEWLINK).then_some((ne32(&header[4..8])?, link))
}

fn parse_address(message: &Message) -> Option<(u32, IpNet)> {
    let header = message.payload.get(..ADDRESS_HEADER_BYTES)?;
    let attributes = message.payload.get(ADDRESS_HEADER_BYTES..)?;
    // On a point-to-point link IFA_ADDRESS is the other end.
    let bytes = attribute(attributes, IFA_LOCAL).or_else(|| attribute(attributes, IFA_ADDRESS))?;
    let ip = match *bytes {
        [a, b, c, d] => IpAddr::from([a, b, c, d]),
        _ => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
    };
    (message.kind == RTM_NEWADDR).then_some((ne32(&header[4..8])?, IpNet::new(ip, header[1]).ok()?))
}
