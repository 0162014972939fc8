//! `network`: the MACVLANs of services whose source is this peer (dataplane.md §5).

use super::{
    desired::{Desired, Skipped, has_transparent_exit},
    lease::Leases,
    status::InterfaceFacts,
};
use crate::{
    kernel::{HostFacts, HostSetting, Interface, InterfaceChange, Kernel, KernelError, Link, MACVLAN, Mac},
    model::{Service, ServiceId, interface_name},
};
use ipnet::IpNet;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

/// A service that is to have an interface here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceWish {
    pub service: ServiceId,
    /// While nothing may be carried it is kept, and down.
    pub up: bool,
    pub addresses: BTreeSet<IpNet>,
    /// Its address is to be leased.
    pub leases: bool,
}

impl InterfaceWish {
    /// What is missing of the interface though nothing is wrong.
    pub(super) fn shortfall(&self, worked: &Worked) -> Option<Skipped> {
        let facts = worked.facts.get(&self.service);
        match facts {
            None => Some(Skipped::pending("NOT_CREATED", "its interface is not there yet")),
            Some(_) if !self.up => {
                Some(Skipped::pending("NOT_CARRIED", "nothing may be carried: its interface is down"))
            }
            Some(facts) if facts.ipv4.is_none() && facts.ipv6.is_none() => {
                Some(Skipped::pending("NO_ADDRESS", "its interface has no address yet: no DHCP server has leased one"))
            }
            Some(_) => None,
        }
    }
}

/// What to do, in order; each step concerns one interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InterfaceStep {
    /// By name.
    Remove(String),
    Set(Interface),
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InterfacePlan {
    pub steps: Vec<InterfaceStep>,
    /// What the host shall hold when they are done.
    pub wanted: BTreeMap<ServiceId, Interface>,
    pub skipped: BTreeMap<ServiceId, Skipped>,
}

/// The interfaces that `desired` asks for, and those that it must not have.
pub fn interface_wishes(desired: &Desired) -> (Vec<InterfaceWish>, BTreeMap<ServiceId, Skipped>) {
    let here = |s: &&Service| s.body.requires_interface && Some(s.body.source_peer_id) == desired.local;
    let mut skipped = BTreeMap::new();
    let mut wishes = vec![];
    for service in desired.services.iter().filter(here) {
        match unlicensed(desired) {
            Some(reason) => drop(skipped.insert(service.id, reason)),
            None => {
                let addresses = [service.body.desired_ipv4_cidr, service.body.desired_ipv6_cidr];
                let addresses: BTreeSet<IpNet> = addresses.into_iter().flatten().collect();
                let up = desired.data_plane_runs && !desired.contested;
                wishes.push(InterfaceWish { service: service.id, up, leases: addresses.is_empty(), addresses });
            }
        }
    }
    (wishes, skipped)
}

/// While no license runs, interfaces are kept.
fn unlicensed(desired: &Desired) -> Option<Skipped> {
    let lacks = desired.data_plane_runs && !desired.features.allows(MACVLAN);
    lacks.then(|| Skipped::failed("LICENSE_FEATURE_DISABLED", "the license does not include the feature macvlan"))
}

/// The steps from what `host` has to what is wished. `parent`: `PARENT_INTERFACE`; `default_link`: see `Kernel`.
pub fn plan_interfaces(
    wishes: &[InterfaceWish],
    host: &HostFacts,
    default_link: Option<u32>,
    parent: Option<&str>,
) -> InterfacePlan {
    let mut plan = InterfacePlan::default();
    let mut taken: BTreeMap<IpNet, ServiceId> = BTreeMap::new();
    for wish in wishes {
        match wanted(wish, host, default_link, parent, &taken) {
            Ok(interface) => {
                taken.extend(interface.addresses.iter().map(|net| (host_net(net), wish.service)));
                plan.wanted.insert(wish.service, interface);
            }
            Err(reason) => drop(plan.skipped.insert(wish.service, reason)),
        }
    }
    let of_a_wish = |link: &Link| plan.wanted.keys().any(|service| link.is_of(*service));
    let stale = host.links.values().filter(|link| link.is_ours() && !of_a_wish(link));
    plan.steps.extend(stale.map(|link| InterfaceStep::Remove(link.name.clone())));
    let missing = plan.wanted.values().filter(|wanted| !host.links.values().any(|link| link.holds(wanted)));
    plan.steps.extend(missing.cloned().map(InterfaceStep::Set));
    plan
}

/// An address alone, as a network.
fn host_net(net: &IpNet) -> IpNet {
    IpNet::from(net.addr())
}

fn wanted(
    wish: &InterfaceWish,
    host: &HostFacts,
    default_link: Option<u32>,
    parent: Option<&str>,
    taken: &BTreeMap<IpNet, ServiceId>,
) -> Result<Interface, Skipped> {
    let name = interface_name(wish.service);
    let foreign = |link: &&Link| link.name == name && !link.is_of(wish.service);
    if let Some(link) = host.links.values().find(foreign).filter(|link| !link.is_ours()) {
        let kind = link.kind.as_deref().unwrap_or("a device");
        return Err(Skipped::failed(
            "NAME_TAKEN",
            format!("another device is named {name} already ({kind}): remove or rename it"),
        ));
    }
    for net in &wish.addresses {
        let own = |link: &Link| link.is_ours() || link.is_of(wish.service);
        let holds = |link: &&Link| !own(link) && link.addresses.iter().any(|held| held.addr() == net.addr());
        if let Some(link) = host.links.values().find(holds) {
            let message = format!("{} is an address of {} already", net.addr(), link.name);
            return Err(Skipped::failed("ADDRESS_IN_USE", message));
        }
        if let Some(other) = taken.get(&host_net(net)) {
            let message = format!("{} is the address of service {other} already", net.addr());
            return Err(Skipped::failed("ADDRESS_IN_USE", message));
        }
    }
    let (index, link) = choose_parent(wish, host, default_link, parent).map_err(|m| Skipped::failed("NO_PARENT", m))?;
    let (service, up) = (wish.service, wish.up);
    Ok(Interface { service, parent: index, mtu: link.mtu, up, addresses: wish.addresses.clone() })
}

fn choose_parent<'a>(
    wish: &InterfaceWish,
    host: &'a HostFacts,
    default_link: Option<u32>,
    parent: Option<&str>,
) -> Result<(u32, &'a Link), String> {
    let suitable = |link: &Link| link.mac.is_some() && !link.is_ours() && !link.is_of(wish.service);
    if let Some(name) = parent {
        let (index, link) = host
            .links
            .iter()
            .find(|(_, link)| link.name == name)
            .ok_or_else(|| format!("PARENT_INTERFACE={name} names no interface of this host"))?;
        return if suitable(link) {
            Ok((*index, link))
        } else {
            Err(format!("PARENT_INTERFACE={name} names an interface that cannot carry a MACVLAN"))
        };
    }
    let within = |link: &Link, net: &IpNet| {
        let length = |held: &IpNet| held.contains(&net.addr()).then(|| held.prefix_len());
        link.set_addresses().filter_map(|held| length(&held)).max()
    };
    for net in &wish.addresses {
        let holding = host
            .links
            .iter()
            .filter(|(_, link)| suitable(link))
            .filter_map(|(index, link)| Some((within(link, net)?, std::cmp::Reverse(*index), link)));
        if let Some((_, index, link)) = holding.max_by_key(|(length, index, _)| (*length, *index)) {
            return Ok((index.0, link));
        }
    }
    let default = default_link.and_then(|index| Some((index, host.links.get(&index)?)));
    match default {
        Some((index, link)) if suitable(link) => Ok((index, link)),
        Some((_, link)) => {
            Err(format!("{}, where the default route leads, cannot carry a MACVLAN: {SET_IT}", link.name))
        }
        None => Err(format!("no interface has a network of {}, and there is no default route: {SET_IT}", nets(wish))),
    }
}

const SET_IT: &str = "set PARENT_INTERFACE";

fn nets(wish: &InterfaceWish) -> String {
    let mut text = String::new();
    for (n, net) in wish.addresses.iter().enumerate() {
        let _ = write!(text, "{}{net}", if n > 0 { " or " } else { "" });
    }
    if text.is_empty() { "the service".to_owned() } else { text }
}

/// What one look at the interfaces did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Worked {
    /// For the log, one line each.
    pub lines: Vec<String>,
    /// Own state had been changed by someone else, and is put back.
    pub repaired: Vec<String>,
    pub skipped: BTreeMap<ServiceId, Skipped>,
    pub facts: BTreeMap<ServiceId, InterfaceFacts>,
    /// The first that the kernel refused.
    pub failure: Option<String>,
}

/// What is known of the interfaces.
#[derive(Debug, Default)]
pub struct Network {
    applied: BTreeMap<ServiceId, Interface>,
}

impl Network {
    /// Makes the interfaces what they should be. What the kernel refuses of one does not hold up the others.
    pub async fn work(
        &mut self,
        kernel: &dyn Kernel,
        leases: &mut Leases,
        desired: &Desired,
        parent: Option<&str>,
    ) -> Result<Worked, KernelError> {
        let (mut wishes, unlicensed) = interface_wishes(desired);
        for wish in wishes.iter_mut().filter(|wish| wish.leases) {
            wish.addresses.extend(leases.address_of(wish.service));
        }
        let host = kernel.read_host().await?;
        // Only where it may decide: a host can have very many routes.
        let default_link = match parent {
            None if !wishes.is_empty() => kernel.default_link().await?,
            _ => None,
        };
        let plan = plan_interfaces(&wishes, &host, default_link, parent);
        let mut worked = Worked { skipped: unlicensed, ..Worked::default() };
        worked.skipped.extend(plan.skipped);
        let leasing = |wish: &&InterfaceWish| wish.leases && wish.up && plan.wanted.contains_key(&wish.service);
        let leasing: BTreeSet<ServiceId> = wishes.iter().filter(leasing).map(|wish| wish.service).collect();
        leases.keep(&leasing).await;
        for step in &plan.steps {
            self.apply(kernel, step, &plan.wanted, &mut worked).await;
        }
        self.applied.retain(|service, _| plan.wanted.contains_key(service));
        leases.begin(&leasing);
        let settings = needed_settings(desired, &plan.wanted, &host);
        for (service, interface) in plan.wanted {
            if !worked.skipped.contains_key(&service) {
                self.applied.insert(service, interface);
            }
        }
        match kernel.set_host_settings(&settings).await {
            Ok(change) => {
                worked.lines.extend(change.set.into_iter().map(|text| format!("set {text}")));
                worked.lines.extend(change.restored.into_iter().map(|text| format!("put back {text}")));
            }
            Err(e) => worked.failure = worked.failure.take().or(Some(e.to_string())),
        }
        let host = if plan.steps.is_empty() { host } else { kernel.read_host().await? };
        worked.facts = self.applied.keys().filter_map(|id| Some((*id, facts(*id, &host)?))).collect();
        Ok(worked)
    }

    async fn apply(
        &mut self,
        kernel: &dyn Kernel,
        step: &InterfaceStep,
        wanted: &BTreeMap<ServiceId, Interface>,
        worked: &mut Worked,
    ) {
        match step {
            InterfaceStep::Remove(name) => match kernel.remove_interface(name).await {
                Ok(()) => worked.lines.push(format!("removed interface {name}")),
                Err(e) => worked.failure = worked.failure.take().or(Some(e.to_string())),
            },
            InterfaceStep::Set(interface) => match kernel.set_interface(interface).await {
                Ok(change) => {
                    let text = told(interface, change);
                    let before = self.applied.get(&interface.service);
                    if before.is_some() && before == wanted.get(&interface.service) {
                        worked.repaired.push(text.clone());
                    }
                    worked.lines.push(text);
                }
                Err(e) => {
                    worked.skipped.insert(interface.service, Skipped::failed("KERNEL_REFUSED", e.to_string()));
                    worked.failure = worked.failure.take().or(Some(e.to_string()));
                }
            },
        }
    }

    /// Removes every interface of ours (`ON_STOP=clear`).
    pub async fn clear(&mut self, kernel: &dyn Kernel, leases: &mut Leases) -> Result<(), KernelError> {
        self.applied.clear();
        leases.keep(&BTreeSet::new()).await;
        let removed = remove_interfaces(kernel).await;
        removed.and(kernel.set_host_settings(&BTreeSet::new()).await.map(drop))
    }
}

/// What the host must do, or not do, while there are these interfaces and while this peer dials with clients' addresses.
fn needed_settings(
    desired: &Desired,
    wanted: &BTreeMap<ServiceId, Interface>,
    host: &HostFacts,
) -> BTreeSet<HostSetting> {
    let parents = wanted.values().filter(|interface| interface.up).filter_map(|i| host.links.get(&i.parent));
    let mut needed: BTreeSet<_> = parents.map(|link| HostSetting::OwnArpOnly { link: link.name.clone() }).collect();
    if has_transparent_exit(desired) {
        let foreign = host.links.values().filter(|link| link.up && link.name != "lo" && !link.is_ours());
        needed.extend(foreign.map(|link| HostSetting::LooseReversePath { link: link.name.clone() }));
        needed.insert(HostSetting::Forwarding);
    }
    needed
}

/// Removes every interface of ours.
pub async fn remove_interfaces(kernel: &dyn Kernel) -> Result<(), KernelError> {
    let host = kernel.read_host().await?;
    let mut result = Ok(());
    for link in host.links.values().filter(|link| link.is_ours()) {
        result = result.and(kernel.remove_interface(&link.name).await);
    }
    result
}

fn told(interface: &Interface, change: InterfaceChange) -> String {
    let verb = match change {
        InterfaceChange::Created => "created",
        InterfaceChange::Changed | InterfaceChange::None => "changed",
    };
    let addresses: Vec<String> = interface.addresses.iter().map(IpNet::to_string).collect();
    let state = if interface.up { "up" } else { "down" };
    let with = if addresses.is_empty() { "no address".to_owned() } else { addresses.join(", ") };
    format!(
        "{verb} interface {} of service {}: {state}, {with}, MAC {}, on link {}",
        interface.name(),
        interface.service,
        interface.mac(),
        interface.parent,
    )
}

fn facts(service: ServiceId, host: &HostFacts) -> Option<InterfaceFacts> {
    let link = host.links.values().find(|link| link.is_of(service))?;
    let first = |v4: bool| link.set_addresses().find(|net| net.addr().is_ipv4() == v4);
    Some(InterfaceFacts { mac: Mac::of_service(service), up: link.up, ipv4: first(true), ipv6: first(false) })
}
