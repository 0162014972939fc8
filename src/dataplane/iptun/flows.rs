//! Flows that were let through, so that their replies are, and the addresses under which the exit keeps clients apart.

use crate::{
    kernel::{Family, alias_network},
    model::{Mono, PeerId, ServiceId},
};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

/// Flows are forgotten after one to two times this without a packet, as conntrack does with
/// protocols that it does not know.
pub(super) const FLOW_IDLE: Duration = Duration::from_secs(600);
/// Flows of the clients here, and of each peer's at its exit; beyond that the less used half is forgotten.
pub(super) const MAX_FLOWS: usize = 65_536;
/// Client addresses of one peer at the exit; beyond that the one that was used least recently makes room.
pub(super) const MAX_ALIASES_PER_PEER: usize = 4096;
/// Of all peers: the first and the last address of the IPv4 network stay free.
pub(super) const MAX_ALIASES: u32 = 65_534;

/// Packets between two ends, as the one who opened the flow sent them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FlowKey {
    pub client: IpAddr,
    pub server: IpAddr,
    pub protocol: u8,
    /// Numbers of client and server. None for the flow's later fragments.
    pub numbers: Option<(u16, u16)>,
}

impl FlowKey {
    pub fn fragments(self) -> Self {
        Self { numbers: None, ..self }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flow {
    /// At the other end.
    pub peer: PeerId,
    pub service: ServiceId,
    /// The client's own address; the key has its alias at the exit.
    pub client: IpAddr,
    /// The snapshot by which it was let through.
    pub revision: u64,
}

/// A bounded memory of flows in two generations: what is not met during one of them is forgotten with the next.
#[derive(Debug, Default)]
pub(super) struct Flows {
    young: BTreeMap<FlowKey, Flow>,
    old: BTreeMap<FlowKey, Flow>,
    since: Option<Mono>,
}

impl Flows {
    pub fn get(&mut self, key: &FlowKey, now: Mono) -> Option<Flow> {
        self.turn(now);
        if let Some(flow) = self.young.get(key) {
            return Some(*flow);
        }
        let flow = self.old.remove(key)?;
        self.insert(*key, flow, now);
        Some(flow)
    }

    pub fn insert(&mut self, key: FlowKey, flow: Flow, now: Mono) {
        self.turn(now);
        if self.young.len() >= MAX_FLOWS / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, flow);
    }

    fn turn(&mut self, now: Mono) {
        let since = *self.since.get_or_insert(now);
        if now - since >= FLOW_IDLE {
            self.old = if now - since < 2 * FLOW_IDLE { std::mem::take(&mut self.young) } else { BTreeMap::new() };
            self.young.clear();
            self.since = Some(now);
        }
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

#[derive(Debug, Clone, Copy)]
struct Alias {
    number: u32,
    used: Mono,
}

/// Client addresses at the exit, each with a number of its own among those of its family.
#[derive(Debug, Default)]
pub(super) struct Aliases {
    by_client: BTreeMap<(PeerId, IpAddr), Alias>,
    by_number: BTreeMap<(bool, u32), (PeerId, IpAddr)>,
    next: u32,
}

impl Aliases {
    /// The address that stands for a client of a peer; none while all are taken.
    pub fn of(&mut self, peer: PeerId, client: IpAddr, now: Mono) -> Option<IpAddr> {
        if let Some(alias) = self.by_client.get_mut(&(peer, client)) {
            alias.used = now;
            return Some(address(client.is_ipv4(), alias.number));
        }
        let taken = self.of_peer(peer).count();
        if taken >= MAX_ALIASES_PER_PEER {
            let oldest = self.of_peer(peer).min_by_key(|(_, alias)| alias.used).map(|(key, _)| *key)?;
            self.forget(oldest);
        }
        let v4 = client.is_ipv4();
        let number = self.free(v4)?;
        self.by_client.insert((peer, client), Alias { number, used: now });
        self.by_number.insert((v4, number), (peer, client));
        Some(address(v4, number))
    }

    /// The address of a client that has one already.
    pub fn existing(&self, peer: PeerId, client: IpAddr) -> Option<IpAddr> {
        self.by_client.get(&(peer, client)).map(|alias| address(client.is_ipv4(), alias.number))
    }

    /// Whom an address stands for.
    pub fn client(&self, alias: IpAddr) -> Option<(PeerId, IpAddr)> {
        self.by_number.get(&(alias.is_ipv4(), number(alias)?)).copied()
    }

    pub fn forget_peer(&mut self, peer: PeerId) {
        let all: Vec<_> = self.of_peer(peer).map(|(key, _)| *key).collect();
        all.into_iter().for_each(|key| self.forget(key));
    }

    fn of_peer(&self, peer: PeerId) -> impl Iterator<Item = (&(PeerId, IpAddr), &Alias)> {
        let first = (peer, IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let last = (peer, IpAddr::V6(Ipv6Addr::from(u128::MAX)));
        self.by_client.range(first..=last)
    }

    fn forget(&mut self, key: (PeerId, IpAddr)) {
        if let Some(alias) = self.by_client.remove(&key) {
            self.by_number.remove(&(key.1.is_ipv4(), alias.number));
        }
    }

    /// Numbers go round, so that one that was given back rests before it is given again.
    fn free(&mut self, v4: bool) -> Option<u32> {
        for _ in 0..MAX_ALIASES {
            self.next = self.next % MAX_ALIASES + 1;
            if !self.by_number.contains_key(&(v4, self.next)) {
                return Some(self.next);
            }
        }
        None
    }
}

/// Whether an address stands for a client.
pub(super) fn is_alias(ip: IpAddr) -> bool {
    alias_network(Family::of(ip)).contains(&ip)
}

fn address(v4: bool, number: u32) -> IpAddr {
    match alias_network(if v4 { Family::V4 } else { Family::V6 }).network() {
        IpAddr::V4(net) => Ipv4Addr::from(net.to_bits() | number).into(),
        IpAddr::V6(net) => Ipv6Addr::from(net.to_bits() | u128::from(number)).into(),
    }
}

fn number(alias: IpAddr) -> Option<u32> {
    let net = alias_network(Family::of(alias)).network();
    match (alias, net) {
        (IpAddr::V4(ip), IpAddr::V4(net)) => Some(ip.to_bits() ^ net.to_bits()),
        (IpAddr::V6(ip), IpAddr::V6(net)) => u32::try_from(ip.to_bits() ^ net.to_bits()).ok(),
        _ => None,
    }
}
