//! The license: state, clock, data plane.

use super::super::world::World;
use crate::sometimes;
use arctic::{
    license::{EndpointGroup, State},
    model::{Code, UnixTime},
    reconcile::Compiled,
};

const DAY_MS: u64 = 24 * 3600 * 1000;

/// licensing.md §3, written a second time.
fn state_by_the_book(expires_at: UnixTime, at: UnixTime) -> State {
    let (e, t) = (expires_at.as_ms(), at.as_ms());
    if t + 30 * DAY_MS < e {
        State::Valid
    } else if t < e {
        State::Warning
    } else if t < e + 14 * DAY_MS {
        State::GracePeriod
    } else if t < e + 44 * DAY_MS {
        State::ReadOnly
    } else {
        State::Suspended
    }
}

/// The allow-lists of licensing.md §3, written a second time.
pub(super) fn is_served_by_the_book(state: State, group: EndpointGroup, has_recovery_token: bool) -> bool {
    use EndpointGroup::*;
    let writes = matches!(group, CreateOrUpdate | HandshakeNewPeer);
    let by_token = has_recovery_token && !writes && !matches!(group, Gossip | HandshakeKnownPeer);
    match state {
        State::Valid | State::Warning | State::GracePeriod => true,
        State::ReadOnly => by_token || !writes && !matches!(group, Administer | Unlisted),
        State::Suspended => by_token || matches!(group, Probe | Token | License | LeaveCluster),
    }
}

impl World {
    /// L5 after every tick: every group is asked for, with a recovery token and without.
    fn check_allow_list(&mut self, n: usize) {
        let Some(member) = self.nodes[n].member() else { return };
        let (entitlement, state) = (&member.entitlement, member.entitlement.state);
        let code = if state == State::Suspended { Code::LicenseSuspended } else { Code::LicenseReadOnly };
        let asked = EndpointGroup::ALL.into_iter().flat_map(|group| [(group, false), (group, true)]);
        let wrong = asked.into_iter().find(|(group, token)| match entitlement.check(*group, *token) {
            Ok(()) => !is_served_by_the_book(state, *group, *token),
            Err(refusal) => is_served_by_the_book(state, *group, *token) || refusal.code() != code,
        });
        if let Some((group, token)) = wrong {
            let what = format!("n{} is {state} and is wrong about {group:?}, recovery token: {token}", n + 1);
            self.violate("L5", what);
        }
    }

    /// L5 where an operator has had something done.
    pub(in super::super) fn witness_work(&mut self, n: usize, group: EndpointGroup, state: State, is_done: bool) {
        if is_done && !is_served_by_the_book(state, group, false) {
            self.violate("L5", format!("n{} does {group:?} for an operator while its license is {state}", n + 1));
        }
    }

    /// L1-L3 after every tick.
    pub(in super::super) fn check_license(&mut self, n: usize) {
        let now = self.now;
        let node = &self.nodes[n];
        let wall = node.clock.unix(now);
        let boot = node.boots;
        let Some(member) = node.member() else { return };
        let clock = &member.license_clock;
        let (state, mark, suspect) = (member.entitlement.state, clock.mark(), clock.is_suspect());
        let expires_at = member.license.expires_at();
        let time = wall.max(mark);
        let by_the_book = state_by_the_book(expires_at, time);
        let worst = state_by_the_book(expires_at, mark).max(State::ReadOnly);
        let expected = if suspect { by_the_book.min(worst) } else { by_the_book };
        let mut wrong = Vec::new();
        if member.entitlement.effective_time != time {
            wrong.push(("L2", format!("goes by {} at {time}", member.entitlement.effective_time)));
        }
        if state != expected {
            let invariant = if suspect { "L3" } else { "L1" };
            wrong.push((invariant, format!("is {state} at {time}, expires {expires_at}, expected {expected}")));
        }
        if let Some((at_boot, before)) = self.witness.marks.insert(n, (boot, mark))
            && at_boot == boot
            && mark < before
        {
            wrong.push(("L2", format!("moved its mark back from {before} to {mark}")));
        }
        for (invariant, what) in wrong {
            self.violate(invariant, format!("n{} {what}", n + 1));
        }
        self.check_allow_list(n);
    }

    /// L4 and K1 after every pass: a license that runs captures what its services say; a suspended one nothing.
    pub(in super::super) fn check_plan(&mut self, n: usize, compiled: &Compiled) {
        let node = &self.nodes[n];
        let Some(member) = node.member() else { return };
        let runs = member.entitlement.state < State::Suspended;
        let (applied, captures) = (node.applied.clone(), compiled.ruleset.captures.len());
        let tables = node.kernel.tables();
        sometimes!(captures > 0, "a service captures traffic");
        if !runs && captures > 0 {
            self.violate("L4", format!("n{} is suspended and captures {captures} routes", n + 1));
        }
        if runs && compiled.skipped.values().any(|s| s.reason == "LICENSE_SUSPENDED") {
            self.violate("L4", format!("n{} stops services that its license permits", n + 1));
        }
        if applied.as_ref() != Some(&compiled.ruleset) || tables != Some(compiled.ruleset.tables().to_vec()) {
            self.violate("K1", format!("n{} applied another ruleset than it compiled", n + 1));
        }
    }
}
