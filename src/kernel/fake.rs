//! A kernel in memory: the same verbs and the same meaning, with faults on demand.

use super::{
    BoxFuture, Fingerprint, Hints, HostFacts, HostView, Kernel, KernelError, Link, Owned, Packet, PolicyChange,
    PolicyItem, PolicyRouting, Ruleset, Table, Verdict, classify,
};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Mutex, MutexGuard},
};
use tokio::sync::watch;

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
            Fault::Exists => Some(17),
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
            alias: None,
            up: true,
            mtu: 65_536,
            addresses: ["127.0.0.1/8", "::1/128"].into_iter().filter_map(|net| net.parse().ok()).collect(),
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

    pub fn set_link(&self, index: u32, link: Option<Link>) {
        match link {
            Some(link) => self.state().host.links.insert(index, link),
            None => self.state().host.links.remove(&index),
        };
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

fn edit(state: &mut State) {
    if let Some(chain) = state.tables.iter_mut().flatten().flat_map(|t| &mut t.chains).find(|c| !c.rules.is_empty()) {
        chain.rules.pop();
    }
    state.policy.pop_first();
}

fn digest(tables: &[Table]) -> Fingerprint {
    Fingerprint(Sha256::digest(format!("{tables:?}")).into())
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
        super::super::contract::run(&FakeKernel::new()).await;
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
