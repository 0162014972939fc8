//! Listens for changes that others make. It only says that something changed; what, is read again.

use super::{
    link::{RTM_NEWADDR, RTM_NEWLINK},
    netlink::{Message, Netlink, messages},
    nft::{self, NFNLGRP_NFTABLES},
    route::{RTM_DELROUTE, RTM_NEWROUTE, table_of},
    rule::{RTM_DELRULE, RTM_NEWRULE},
};
use crate::kernel::{Hints, POLICY_TABLES};
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use std::io;
use tokio::{io::unix::AsyncFd, sync::watch, task::JoinHandle};

const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV4_ROUTE: u32 = 7;
const RTNLGRP_IPV4_RULE: u32 = 8;
const RTNLGRP_IPV6_IFADDR: u32 = 9;
const RTNLGRP_IPV6_ROUTE: u32 = 11;
const RTNLGRP_IPV6_RULE: u32 = 19;

/// Dropping it ends the listening.
pub struct Monitor {
    hints: watch::Sender<Hints>,
    tasks: [JoinHandle<()>; 2],
}

impl Monitor {
    /// Notifications caused by the sockets with these port numbers are our own and are ignored.
    pub fn start(netfilter_port: u32, route_port: u32) -> io::Result<Self> {
        let hints = watch::Sender::new(Hints::default());
        let netfilter = register(Netlink::open_listening(NETLINK_NETFILTER, &[NFNLGRP_NFTABLES])?)?;
        let groups = [
            RTNLGRP_LINK,
            RTNLGRP_IPV4_IFADDR,
            RTNLGRP_IPV4_ROUTE,
            RTNLGRP_IPV4_RULE,
            RTNLGRP_IPV6_IFADDR,
            RTNLGRP_IPV6_ROUTE,
            RTNLGRP_IPV6_RULE,
        ];
        let route = register(Netlink::open_listening(NETLINK_ROUTE, &groups)?)?;
        let tasks = [
            tokio::spawn(listen(netfilter, netfilter_port, hints.clone(), note_table)),
            tokio::spawn(listen(route, route_port, hints.clone(), note_routing)),
        ];
        Ok(Self { hints, tasks })
    }

    pub fn hints(&self) -> watch::Receiver<Hints> {
        self.hints.subscribe()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

fn register(netlink: Netlink) -> io::Result<AsyncFd<Netlink>> {
    // SAFETY: a `Netlink` keeps one descriptor open from its opening until it is dropped, and always returns it.
    Ok(unsafe { AsyncFd::register(netlink) }?)
}

/// Whether the message is a hint; counts it if so.
type Note = fn(&Message, &mut Hints) -> bool;

async fn listen(netlink: AsyncFd<Netlink>, own_port: u32, hints: watch::Sender<Hints>, note: Note) {
    loop {
        let Ok(mut ready) = netlink.readable().await else { return };
        match netlink.get_ref().receive() {
            Ok(Some(datagram)) => {
                hints.send_if_modified(|h| {
                    let foreign = messages(&datagram).filter(|m| m.port != own_port);
                    foreign.fold(false, |noted, m| note(&m, h) | noted)
                });
            }
            Ok(None) => ready.clear_ready(),
            // ENOBUFS: notifications were lost, so anything may have changed.
            Err(_) => hints.send_modify(|h| {
                h.tables += 1;
                h.policy += 1;
                h.links += 1;
            }),
        }
    }
}

fn note_table(message: &Message, hints: &mut Hints) -> bool {
    let noted = nft::concerns_us(message);
    hints.tables += u64::from(noted);
    noted
}

fn note_routing(message: &Message, hints: &mut Hints) -> bool {
    match message.kind {
        RTM_NEWRULE | RTM_DELRULE => hints.policy += 1,
        RTM_NEWROUTE | RTM_DELROUTE if table_of(message).is_some_and(|t| POLICY_TABLES.contains(&t)) => {
            hints.policy += 1;
        }
        // New and deleted ones.
        kind if [RTM_NEWLINK, RTM_NEWADDR].contains(&(kind & !1)) => hints.links += 1,
        _ => return false,
    }
    true
}
