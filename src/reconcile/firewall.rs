//! `firewall`: the two tables and the policy routing.

use crate::kernel::{Capture, Fingerprint, Kernel, KernelError, Owned, PolicyChange, PolicyRouting, Ruleset};
use crate::planted::{Bug, planted};
use std::collections::BTreeSet;

/// What is to be done, in order. Every prefix leaves the old policy, the new one, or what both have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FirewallStep {
    /// Before the engines learn the new state: stop capturing what the new state no longer captures.
    Shrink(Ruleset),
    /// Marked packets get their way before any packet is marked.
    Policy(PolicyRouting),
    Tables(Ruleset),
}

/// The steps from what was applied last, if anything, to `new`. A pass without a change rewrites the tables and asks
/// for the policy, which is then found complete.
pub fn plan(applied: Option<&Ruleset>, new: &Ruleset) -> Vec<FirewallStep> {
    let kept = applied.map(|old| common(old, new));
    let shrink = kept.filter(|kept| Some(kept) != applied).map(FirewallStep::Shrink);
    let mut tables = new.clone();
    if planted(Bug::HalfARulesetApplied) {
        tables.captures.truncate(tables.captures.len() / 2);
    }
    let rest = [FirewallStep::Policy(PolicyRouting::needed_by(new)), FirewallStep::Tables(tables)];
    shrink.into_iter().chain(rest).collect()
}

/// The old rules without captures that the new ones lack.
fn common(old: &Ruleset, new: &Ruleset) -> Ruleset {
    let key = |c: &Capture| (c.service, c.route, c.source, c.dest, c.interface.clone(), c.mark);
    let wanted: BTreeSet<_> = new.captures.iter().map(key).collect();
    let captures = old.captures.iter().filter(|c| wanted.contains(&key(c))).cloned().collect();
    Ruleset { captures, ..old.clone() }
}

/// What a pass did, for the log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Applied {
    pub policy: PolicyChange,
    pub transactions: u32,
}

/// What is known of the kernel.
#[derive(Debug, Default)]
pub struct Firewall {
    applied: Option<Ruleset>,
}

/// Our state in the kernel is not what was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drift {
    pub what: &'static str,
}

impl Firewall {
    pub fn applied(&self) -> Option<&Ruleset> {
        self.applied.as_ref()
    }

    /// Does one step; after an error the kernel holds what the steps before it made.
    pub async fn apply(
        &mut self,
        kernel: &dyn Kernel,
        step: FirewallStep,
        done: &mut Applied,
    ) -> Result<(), KernelError> {
        match step {
            FirewallStep::Policy(policy) => {
                let change = kernel.set_policy(&policy).await?;
                done.policy.added.extend(change.added);
                done.policy.deleted.extend(change.deleted);
            }
            FirewallStep::Shrink(ruleset) | FirewallStep::Tables(ruleset) => {
                kernel.replace_tables(&ruleset).await?;
                done.transactions += 1;
                self.applied = Some(ruleset);
            }
        }
        Ok(())
    }

    /// Compares the kernel with what was applied.
    pub async fn drift(&self, kernel: &dyn Kernel) -> Result<Option<Drift>, KernelError> {
        let Some(applied) = &self.applied else { return Ok(None) };
        let owned = kernel.read_owned().await?;
        Ok(compare(&owned, kernel.fingerprint(applied), &PolicyRouting::needed_by(applied)))
    }

    /// Removes everything (`ON_STOP=clear`): captures first, then the way of the marks.
    pub async fn clear(&mut self, kernel: &dyn Kernel) -> Result<(), KernelError> {
        self.applied = None;
        let tables = kernel.remove_tables().await;
        let policy = kernel.set_policy(&PolicyRouting::default()).await;
        tables.and(policy.map(drop))
    }
}

fn compare(owned: &Owned, tables: Fingerprint, policy: &PolicyRouting) -> Option<Drift> {
    match owned.tables {
        None => Some(Drift { what: "tables are gone" }),
        Some(found) if found != tables => Some(Drift { what: "tables were changed" }),
        Some(_) if owned.policy != policy.items => Some(Drift { what: "policy rules or routes were changed" }),
        Some(_) => None,
    }
}
