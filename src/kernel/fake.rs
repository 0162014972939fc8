//! A kernel in memory: the same verbs and the same meaning, with faults on demand.

use super::{
    BoxFuture, Fingerprint, FramePort, Hints, HostFacts, HostSetting, HostView, Interface, InterfaceChange, Kernel,
    KernelError, Link, MACVLAN, Owned, Packet, PolicyChange, PolicyItem, PolicyRouting, Ruleset, SettingsChange, Table,
    Verdict, classify,
};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Mutex, MutexGuard},
};
use tokio::sync::watch;

const EXISTS: i32 = 17;
const NO_DEVICE: i32 = 19;

/// What happens to the next write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Refused, nothing changes (of a policy: half of it changes).
    Exists,
    Busy,
    NoBuffers,
    Interrupted,
    /// Someone deletes a rule and a policy item just before; it is announced.
    ForeignEdit,
    /// As `ForeignEdit`, and nobody is told.
    LostNotification,
    /// Both tables are gone just before.
    Vanished,
}

impl Fault {
    const fn errno(self) -> Option<i32> {
        match self {
            Fault::Exists => Some(EXISTS),
            Fault::Busy => Some(16),
            Fault::NoBuffers => Some(105),
            Fault::Interrupted => Some(4),
            Fault::ForeignEdit | Fault::LostNotification | Fault::Vanished => None,
        }
    }
}

/// A write that took effect, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    ReplaceTables,
    FeedLiveness,
    RemoveTables,
    AddPolicy(PolicyItem),
    DeletePolicy(PolicyItem),
    /// By name.
    SetInterface(String),
    RemoveInterface(String),
    SetHostSettings,
    SetForwarding(bool),
}

#[derive(Default)]
struct State {
    tables: Option<Vec<Table>>,
    alive: bool,
    policy: BTreeSet<PolicyItem>,
    forwards: bool,
    faults: VecDeque<Fault>,
    operations: Vec<Operation>,
    host: HostFacts,
    default_link: Option<u32>,
    settings: BTreeSet<HostSetting>,
}

/// The kernel of a simulated host. Time does not pass in it: `expire_liveness` lets the liveness element expire.
pub struct FakeKernel {
    state: Mutex<State>,
    hints: watch::Sender<Hints>,
}

impl Default for FakeKernel {
    fn default() -> Self {
        let lo = Link {
            name: "lo".into(),
            up: true,
            mtu: 65_536,
            addresses: ["127.0.0.1/8", "::1/128"].into_iter().filter_map(|net| net.parse().ok()).collect(),
            ..Link::default()
        };
        let host = HostFacts { links: BTreeMap::from([(1, lo)]) };
        Self { state: Mutex::new(State { host, ..State::default() }), hints: watch::Sender::default() }
    }
}

impl FakeKernel {
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Faults meet writes in this order, one each.
    pub fn push_fault(&self, fault: Fault) {
        self.state().faults.push_back(fault);
    }

    /// Takes back the faults that have met no write yet.
    pub fn take_faults(&self) -> Vec<Fault> {
        self.state().faults.drain(..).collect()
    }

    /// The program of the tables, if they exist.
    pub fn tables(&self) -> Option<Vec<Table>> {
        self.state().tables.clone()
    }

    /// Takes the writes since the last call.
    pub fn take_operations(&self) -> Vec<Operation> {
        std::mem::take(&mut self.state().operations)
    }

    pub fn alive(&self) -> bool {
        self.state().alive
    }

    /// `LIVENESS_TIMEOUT` has passed without a feed.
    pub fn expire_liveness(&self) {
        self.state().alive = false;
    }

    pub fn links(&self) -> Vec<Link> {
        self.state().host.links.values().cloned().collect()
    }

    pub fn set_link(&self, index: u32, link: Option<Link>) {
        match link {
            Some(link) => self.state().host.links.insert(index, link),
            None => self.state().remove_link(index),
        };
        self.hints.send_modify(|h| h.links += 1);
    }

    /// The settings that hold because we need them.
    pub fn settings(&self) -> BTreeSet<HostSetting> {
        self.state().settings.clone()
    }

    /// The link of the default route.
    pub fn set_default_link(&self, index: Option<u32>) {
        self.state().default_link = index;
        self.hints.send_modify(|h| h.links += 1);
    }

    /// `ip link delete` by someone else.
    pub fn foreign_link_delete(&self, name: &str) {
        let mut state = self.state();
        if let Some(index) = state.index_of(name) {
            state.remove_link(index);
        }
        drop(state);
        self.hints.send_modify(|h| h.links += 1);
    }

    /// Someone deletes the last rule of ours and the first policy item.
    pub fn foreign_edit(&self) {
        edit(&mut self.state());
        self.announce();
    }

    /// `nft flush ruleset` by someone else.
    pub fn foreign_flush(&self) {
        let mut state = self.state();
        state.tables = None;
        state.alive = false;
        drop(state);
        self.announce();
    }

    /// Someone deletes our policy rules and routes.
    pub fn foreign_policy_flush(&self) {
        self.state().policy.clear();
        self.announce();
    }

    /// What the rules do to a packet now. Listeners are as in `view`; addresses and liveness are the kernel's own.
    pub fn classify(&self, packet: &Packet, view: &HostView) -> Verdict {
        let state = self.state();
        let mut view = view.clone();
        view.alive = state.alive;
        view.not_forwarded.extend(state.host.addresses());
        classify(state.tables.as_deref().unwrap_or_default(), packet, &view)
    }

    /// The table that a packet with `mark` is looked up in before the main one.
    pub fn table_for(&self, family: super::Family, mark: u32) -> Option<u32> {
        PolicyRouting { items: self.state().policy.clone() }.table_for(family, mark)
    }

    fn announce(&self) {
        self.hints.send_modify(|h| {
            h.tables += 1;
            h.policy += 1;
        });
    }

    /// Takes the next fault; an edit happens here, an error is returned.
    fn fault(&self, attempted: &str) -> Result<(), KernelError> {
        let mut state = self.state();
        let Some(fault) = state.faults.pop_front() else { return Ok(()) };
        if let Some(errno) = fault.errno() {
            return Err(KernelError::from_errno(attempted, errno));
        }
        match fault {
            Fault::Vanished => {
                state.tables = None;
                state.alive = false;
            }
            _ => edit(&mut state),
        }
        drop(state);
        if fault != Fault::LostNotification {
            self.announce();
        }
        Ok(())
    }
}

impl State {
    fn index_of(&self, name: &str) -> Option<u32> {
        self.host.links.iter().find(|(_, link)| link.name == name).map(|(index, _)| *index)
    }

    /// With what stands on it.
    fn remove_link(&mut self, index: u32) -> Option<Link> {
        self.host.links.retain(|_, link| link.parent != Some(index));
        self.host.links.remove(&index)
    }

    fn set_interface(&mut self, interface: &Interface, attempted: &str) -> Result<InterfaceChange, KernelError> {
        let refused = |errno| Err(KernelError::from_errno(attempted, errno));
        if !self.host.links.contains_key(&interface.parent) {
            return refused(NO_DEVICE);
        }
        let there = self.index_of(&interface.name());
        let old = there.and_then(|index| self.host.links.get(&index));
        if old.is_some_and(|link| !link.is_of(interface.service)) {
            return refused(EXISTS);
        }
        if old.is_some_and(|link| link.holds(interface)) {
            return Ok(InterfaceChange::None);
        }
        let created = old.is_none_or(|link| link.parent != Some(interface.parent));
        let link = Link {
            name: interface.name(),
            alias: Some(interface.alias()),
            kind: Some(MACVLAN.to_owned()),
            parent: Some(interface.parent),
            mac: Some(interface.mac()),
            up: interface.up,
            mtu: interface.mtu,
            addresses: if interface.up { interface.addresses.clone() } else { BTreeSet::new() },
        };
        let next = self.host.links.last_key_value().map_or(1, |(last, _)| last + 1);
        self.host.links.insert(there.unwrap_or(next), link);
        self.operations.push(Operation::SetInterface(interface.name()));
        Ok(if created { InterfaceChange::Created } else { InterfaceChange::Changed })
    }
}

fn edit(state: &mut State) {
    if let Some(chain) = state.tables.iter_mut().flatten().flat_map(|t| &mut t.chains).find(|c| !c.rules.is_empty()) {
        chain.rules.pop();
    }
    state.policy.pop_first();
}

fn digest(tables: &[Table]) -> Fingerprint {
    Fingerprint(Sha256::digest(format!("{tables:?}")).into())
}

struct Silence;

impl FramePort for Silence {
    fn send(&self, _: &[u8]) -> std::io::Result<()> {
        Ok(())
    }
    fn receive(&mut self) -> BoxFuture<'_, std::io::Result<Vec<u8>>> {
        Box::pin(std::future::pending())
    }
}

impl Kernel for FakeKernel {
    fn replace_tables<'a>(&'a self, ruleset: &'a Ruleset) -> BoxFuture<'a, Result<(), KernelError>> {
        Box::pin(async move {
            self.fault("replacing tables")?;
            let mut state = self.state();
            state.tables = Some(ruleset.tables().into());
            state.alive = true;
            state.operations.push(Operation::ReplaceTables);
            Ok(())
        })
    }

    fn feed_liveness(&self) -> BoxFuture<'_, Result<(), KernelError>> {
        Box::pin(async move {
            let attempted = "feeding the liveness element";
            self.fault(attempted)?;
            let mut state = self.state();
            if state.tables.is_none() {
                return Err(KernelError::from_errno(attempted, super::ENOENT));
            }
            state.alive = true;
            state.operations.push(Operation::FeedLiveness);
            Ok(())
        })
    }

    fn remove_tables(&self) -> BoxFuture<'_, Result<(), KernelError>> {
        Box::pin(async move {
            self.fault("removing tables")?;
            let mut state = self.state();
            state.alive = false;
            if state.tables.take().is_some() {
                state.operations.push(Operation::RemoveTables);
            }
            Ok(())
        })
    }

    fn set_policy<'a>(&'a self, policy: &'a PolicyRouting) -> BoxFuture<'a, Result<PolicyChange, KernelError>> {
        Box::pin(async move {
            let refused = self.fault("setting policy routing").err();
            let mut state = self.state();
            let change = PolicyChange::between(&state.policy, &policy.items);
            let steps: Vec<_> = change
                .added
                .iter()
                .map(|&item| Operation::AddPolicy(item))
                .chain(change.deleted.iter().map(|&item| Operation::DeletePolicy(item)))
                .collect();
            let done = if refused.is_some() { steps.len() / 2 } else { steps.len() };
            for step in steps.into_iter().take(done) {
                match &step {
                    Operation::AddPolicy(item) => state.policy.insert(*item),
                    Operation::DeletePolicy(item) => state.policy.remove(item),
                    _ => false,
                };
                state.operations.push(step);
            }
            refused.map_or(Ok(change), Err)
        })
    }

    fn set_interface<'a>(&'a self, interface: &'a Interface) -> BoxFuture<'a, Result<InterfaceChange, KernelError>> {
        Box::pin(async move {
            let attempted = format!("setting interface {}", interface.name());
            self.fault(&attempted)?;
            self.state().set_interface(interface, &attempted)
        })
    }

    fn remove_interface<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), KernelError>> {
        Box::pin(async move {
            self.fault("removing an interface")?;
            let mut state = self.state();
            let found = state.index_of(name).filter(|index| state.host.links[index].is_ours());
            if let Some(index) = found {
                state.remove_link(index);
                state.operations.push(Operation::RemoveInterface(name.to_owned()));
            }
            Ok(())
        })
    }

    fn set_host_settings<'a>(
        &'a self,
        wanted: &'a BTreeSet<HostSetting>,
    ) -> BoxFuture<'a, Result<SettingsChange, KernelError>> {
        Box::pin(async move {
            let old = self.state().settings.clone();
            if old == *wanted {
                return Ok(SettingsChange::default());
            }
            self.fault("setting what the host needs")?;
            let told = |of: &BTreeSet<HostSetting>, others| of.difference(others).map(HostSetting::key).collect();
            let change = SettingsChange { set: told(wanted, &old), restored: told(&old, wanted) };
            let mut state = self.state();
            state.settings.clone_from(wanted);
            state.operations.push(Operation::SetHostSettings);
            Ok(change)
        })
    }

    /// Nobody else changes them in a simulated host.
    fn hold_host_settings(&self) -> BoxFuture<'_, Result<Vec<String>, KernelError>> {
        Box::pin(async { Ok(vec![]) })
    }

    /// Nobody leases addresses in a simulated network.
    fn frame_port<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Box<dyn FramePort>, KernelError>> {
        Box::pin(async { Ok(Box::new(Silence) as Box<dyn FramePort>) })
    }

    fn default_link(&self) -> BoxFuture<'_, Result<Option<u32>, KernelError>> {
        let found = self.state().default_link;
        Box::pin(async move { Ok(found) })
    }

    fn set_forwarding(&self, on: bool) -> BoxFuture<'_, Result<bool, KernelError>> {
        let mut state = self.state();
        let changed = std::mem::replace(&mut state.forwards, on) != on;
        if changed {
            state.operations.push(Operation::SetForwarding(on));
        }
        Box::pin(async move { Ok(changed) })
    }

    fn read_owned(&self) -> BoxFuture<'_, Result<Owned, KernelError>> {
        let state = self.state();
        let owned = Owned { tables: state.tables.as_deref().map(digest), policy: state.policy.clone() };
        Box::pin(async move { Ok(owned) })
    }

    fn read_host(&self) -> BoxFuture<'_, Result<HostFacts, KernelError>> {
        let host = self.state().host.clone();
        Box::pin(async move { Ok(host) })
    }

    fn fingerprint(&self, ruleset: &Ruleset) -> Fingerprint {
        digest(&ruleset.tables())
    }

    fn changes(&self) -> watch::Receiver<Hints> {
        self.hints.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_fake_keeps_the_contract() {
        let kernel = FakeKernel::new();
        super::super::contract::run(&kernel).await;
        let parent = Link { name: "lan0".into(), up: true, mtu: 1500, ..Link::default() };
        kernel.set_link(7, Some(parent));
        super::super::contract::run_interfaces(&kernel, "lan0").await;
    }

    #[tokio::test]
    async fn a_refused_write_changes_nothing_and_the_next_one_succeeds() {
        let kernel = FakeKernel::new();
        for fault in [Fault::Exists, Fault::Busy, Fault::NoBuffers, Fault::Interrupted] {
            kernel.push_fault(fault);
            assert!(kernel.replace_tables(&Ruleset::default()).await.is_err());
            assert_eq!(kernel.tables(), None);
        }
        kernel.replace_tables(&Ruleset::default()).await.unwrap();
        kernel.push_fault(Fault::Vanished);
        assert!(kernel.feed_liveness().await.unwrap_err().is_missing());
    }
}
