//! Interfaces of services: MACVLANs and their addresses over rtnetlink, and what the kernel does on them by itself.

use super::{
    announce, link,
    netlink::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, Netlink, Writer},
    route::{address_family, answer},
    sysctl,
};
use crate::kernel::{Family, Interface, InterfaceChange, KernelError, Link, MACVLAN};
use ipnet::IpNet;
use std::net::IpAddr;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_MACVLAN_MODE: u16 = 1;
const MODE_BRIDGE: u32 = 4;
const IFF_UP: u32 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_FLAGS: u16 = 8;
/// Usable at once: a second of duplicate address detection would hold back its announcement.
const IFA_F_NODAD: u32 = 2;
const ACK: u16 = NLM_F_REQUEST | NLM_F_ACK;
const CREATE: u16 = ACK | NLM_F_CREATE | NLM_F_EXCL;

/// `kernel::Kernel::set_interface`.
pub fn set(netlink: &Netlink, wanted: &Interface) -> Result<InterfaceChange, KernelError> {
    let name = wanted.name();
    let mut change = InterfaceChange::None;
    let mut found = find(netlink, &name)?;
    if let Some((index, link)) = &found {
        if !link.is_of(wanted.service) {
            return Err(KernelError::from_errno(format!("creating interface {name}"), libc::EEXIST));
        }
        if link.parent != Some(wanted.parent) {
            delete(netlink, *index, &name)?;
            found = None;
        }
    }
    if found.is_none() {
        create(netlink, wanted)?;
        found = find(netlink, &name)?;
        change = InterfaceChange::Created;
    }
    let Some((index, link)) = found else { return Err(vanished(&name)) };
    if adjust(netlink, index, &link, wanted)? && change == InterfaceChange::None {
        change = InterfaceChange::Changed;
    }
    if wanted.up {
        let added = set_addresses(netlink, index, &name, wanted)?;
        let fresh: Vec<IpAddr> = match change {
            InterfaceChange::Created => wanted.addresses.iter().map(IpNet::addr).collect(),
            _ => added,
        };
        announce::send(index, wanted.mac(), &fresh);
    }
    let addresses = |link: &Link| link.set_addresses().eq(wanted.addresses.iter().copied());
    if change == InterfaceChange::None && wanted.up && !addresses(&link) {
        change = InterfaceChange::Changed;
    }
    Ok(change)
}

/// `kernel::Kernel::remove_interface`.
pub fn remove(netlink: &Netlink, name: &str) -> Result<(), KernelError> {
    match find(netlink, name)?.filter(|(_, link)| link.is_ours()) {
        Some((index, _)) => delete(netlink, index, name),
        None => Ok(()),
    }
}

fn find(netlink: &Netlink, name: &str) -> Result<Option<(u32, Link)>, KernelError> {
    Ok(link::read(netlink)?.links.into_iter().find(|(_, link)| link.name == name))
}

fn vanished(name: &str) -> KernelError {
    KernelError::from_errno(format!("setting interface {name}"), libc::ENODEV)
}

fn create(netlink: &Netlink, wanted: &Interface) -> Result<(), KernelError> {
    let mut w = Writer::default();
    w.message(RTM_NEWLINK, CREATE, 0, |w| {
        link_header(w, 0, 0, 0);
        w.string(IFLA_IFNAME, &wanted.name());
        w.bytes(IFLA_ADDRESS, &wanted.mac().0);
        w.bytes(IFLA_LINK, &wanted.parent.to_ne_bytes());
        w.nested(IFLA_LINKINFO, |w| {
            w.string(IFLA_INFO_KIND, MACVLAN);
            w.nested(IFLA_INFO_DATA, |w| w.bytes(IFLA_MACVLAN_MODE, &MODE_BRIDGE.to_ne_bytes()));
        });
    });
    answer(netlink, &w.bytes, || format!("creating interface {}", wanted.name()))
}

/// Everything but addresses; whether something differed.
fn adjust(netlink: &Netlink, index: u32, link: &Link, wanted: &Interface) -> Result<bool, KernelError> {
    let (name, alias) = (wanted.name(), wanted.alias());
    let mut changed = false;
    if link.alias.as_ref() != Some(&alias) {
        change(netlink, index, &name, "naming", |w| w.bytes(IFLA_IFALIAS, alias.as_bytes()))?;
        changed = true;
    }
    if link.mac != Some(wanted.mac()) {
        change(netlink, index, &name, "giving its MAC to", |w| w.bytes(IFLA_ADDRESS, &wanted.mac().0))?;
        changed = true;
    }
    if link.mtu != wanted.mtu {
        change(netlink, index, &name, "giving its MTU to", |w| w.bytes(IFLA_MTU, &wanted.mtu.to_ne_bytes()))?;
        changed = true;
    }
    if link.up != wanted.up {
        if wanted.up {
            behave(&name)?;
        }
        let mut w = Writer::default();
        w.message(RTM_SETLINK, ACK, 0, |w| link_header(w, index, u32::from(wanted.up) * IFF_UP, IFF_UP));
        answer(netlink, &w.bytes, || format!("setting interface {name} {}", if wanted.up { "up" } else { "down" }))?;
        changed = true;
    }
    Ok(changed)
}

/// What the kernel would do by itself on a second interface in a network: answer for the addresses of the first one,
/// drop what the main table expects there, take router advertisements into the main table.
fn behave(name: &str) -> Result<(), KernelError> {
    for (key, value) in [("rp_filter", "2"), ("arp_ignore", "1"), ("arp_announce", "2")] {
        sysctl::write(&format!("net/ipv4/conf/{name}/{key}"), value)?;
    }
    for (key, value) in [("accept_ra", "0"), ("autoconf", "0")] {
        match sysctl::write(&format!("net/ipv6/conf/{name}/{key}"), value) {
            // IPv6 is off.
            Err(e) if e.is_missing() => {}
            other => other?,
        }
    }
    Ok(())
}

fn change(
    netlink: &Netlink,
    index: u32,
    name: &str,
    doing: &str,
    body: impl FnOnce(&mut Writer),
) -> Result<(), KernelError> {
    let mut w = Writer::default();
    w.message(RTM_SETLINK, ACK, 0, |w| {
        link_header(w, index, 0, 0);
        body(w);
    });
    answer(netlink, &w.bytes, || format!("{doing} interface {name}"))
}

fn delete(netlink: &Netlink, index: u32, name: &str) -> Result<(), KernelError> {
    let mut w = Writer::default();
    w.message(RTM_DELLINK, ACK, 0, |w| link_header(w, index, 0, 0));
    match answer(netlink, &w.bytes, || format!("removing interface {name}")) {
        Err(e) if e.errno == Some(libc::ENODEV) => Ok(()),
        other => other,
    }
}

fn link_header(w: &mut Writer, index: u32, flags: u32, changes: u32) {
    w.raw(&[0; 4]);
    w.raw(&index.to_ne_bytes());
    w.raw(&flags.to_ne_bytes());
    w.raw(&changes.to_ne_bytes());
}

/// Makes the addresses exactly the wanted ones; those that were added. Deletion comes first: with the first address of a
/// network the kernel deletes the others in it.
fn set_addresses(netlink: &Netlink, index: u32, name: &str, wanted: &Interface) -> Result<Vec<IpAddr>, KernelError> {
    let present = || Ok(find(netlink, name)?.ok_or_else(|| vanished(name))?.1);
    let link = present()?;
    let surplus: Vec<IpNet> = link.set_addresses().filter(|net| !wanted.addresses.contains(net)).collect();
    for net in &surplus {
        match write_address(netlink, RTM_DELADDR, ACK, index, *net) {
            Err(e) if e.errno == Some(libc::EADDRNOTAVAIL) => {}
            other => other?,
        }
    }
    let link = if surplus.is_empty() { link } else { present()? };
    let missing = wanted.addresses.iter().filter(|net| !link.addresses.contains(net));
    missing.map(|net| write_address(netlink, RTM_NEWADDR, CREATE, index, *net).map(|()| net.addr())).collect()
}

fn write_address(netlink: &Netlink, kind: u16, flags: u16, index: u32, net: IpNet) -> Result<(), KernelError> {
    let mut w = Writer::default();
    w.message(kind, flags, 0, |w| {
        w.raw(&[address_family(Family::of(net.addr())), net.prefix_len(), 0, 0]);
        w.raw(&index.to_ne_bytes());
        match net {
            IpNet::V4(v4) => {
                w.bytes(IFA_LOCAL, &v4.addr().octets());
                w.bytes(IFA_ADDRESS, &v4.addr().octets());
                if v4.prefix_len() < 31 {
                    w.bytes(IFA_BROADCAST, &v4.broadcast().octets());
                }
            }
            IpNet::V6(v6) => {
                w.bytes(IFA_LOCAL, &v6.addr().octets());
                w.bytes(IFA_ADDRESS, &v6.addr().octets());
                w.bytes(IFA_FLAGS, &IFA_F_NODAD.to_ne_bytes());
            }
        }
    });
    let doing = if kind == RTM_NEWADDR { "giving" } else { "taking" };
    answer(netlink, &w.bytes, || format!("{doing} address {net}"))
}
