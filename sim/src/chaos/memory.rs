//! What the operator was told, and so what may and must be there at the end.

use super::{calm::destinations, errands::Errand};
use arctic::wire::record::{RecordKey, kind};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// What the acknowledgements say of one object. A call without an answer may take effect at any later time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    Must,
    MustNot,
    /// Its addition had no answer: once it was seen it stays.
    Adding,
    /// Its deletion had no answer: once it was gone it stays away.
    Deleting,
    /// Nobody can know: it was lost with the only database that held it, or both of the above.
    Maybe,
}

/// How a write ended, as far as the operator can know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    Acknowledged,
    Refused,
    Unknown,
}

#[derive(Debug, Clone)]
pub(super) struct RouteMemory {
    pub presence: Presence,
    pub id: Option<u64>,
}

#[derive(Debug, Clone)]
pub(super) struct ServiceMemory {
    /// Absent while no answer named it.
    pub id: Option<String>,
    /// Names of hosts.
    pub source: String,
    pub target: String,
    pub presence: Presence,
    /// By destination.
    pub routes: BTreeMap<String, RouteMemory>,
}

#[derive(Debug, Default)]
pub(super) struct Memory {
    /// By name.
    pub services: BTreeMap<String, ServiceMemory>,
    /// The host that the operator removed and perhaps took back, and whether it is a member.
    pub removed: Option<(String, Presence)>,
    /// What began or ended at that host, as it was before.
    taken_along: BTreeMap<String, Presence>,
    /// The host that a write is on its way to.
    pub in_flight: Option<String>,
    /// How often a host lost what it wrote last.
    pub losses: u32,
    /// Hosts that lost their database and wait for a bootstrap.
    pub to_bootstrap: BTreeSet<String>,
    /// Hosts that fell back in time and have not caught up yet: nobody writes to them.
    pub recovering: BTreeSet<String>,
    pub acknowledged: u64,
    /// What somebody is to do at a host.
    pub errands: VecDeque<(String, Errand)>,
    /// Errands that had an effect, by knob.
    pub turned: BTreeMap<&'static str, u64>,
    /// Tokens of credentials that were deleted.
    pub dead_tokens: Vec<String>,
    /// What no state may show, seen on the way.
    pub seen: Vec<String>,
    next: u32,
}

impl Presence {
    fn after_addition(ending: Ending) -> Self {
        match ending {
            Ending::Acknowledged => Self::Must,
            Ending::Refused => Self::MustNot,
            Ending::Unknown => Self::Adding,
        }
    }

    fn after_deletion(self, ending: Ending) -> Self {
        match (ending, self) {
            (Ending::Refused, before) | (_, before @ Self::MustNot) => before,
            (_, Self::Adding | Self::Maybe) => Self::Maybe,
            (Ending::Unknown, _) => Self::Deleting,
            (Ending::Acknowledged, _) => Self::MustNot,
        }
    }

    /// After its owner showed whether it is there.
    fn after_look(self, present: bool) -> Self {
        match (self, present) {
            (Self::Adding, true) => Self::Must,
            (Self::Deleting, false) => Self::MustNot,
            (before, _) => before,
        }
    }

    /// Whether `present` contradicts it.
    pub fn denies(self, present: bool) -> bool {
        matches!((self, present), (Self::Must, false) | (Self::MustNot, true))
    }
}

impl Memory {
    pub fn next_number(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    pub fn created(&mut self, name: String, source: String, target: String, id: Option<String>, ending: Ending) {
        self.count(ending);
        let presence = Presence::after_addition(ending);
        let service = ServiceMemory { id, source, target, presence, routes: BTreeMap::new() };
        self.services.insert(name, service);
    }

    pub fn deleted(&mut self, name: &str, ending: Ending) {
        self.count(ending);
        self.change(name, |s| s.presence = s.presence.after_deletion(ending));
    }

    pub fn route_added(&mut self, name: &str, dest: String, id: Option<u64>, ending: Ending) {
        self.count(ending);
        let presence = Presence::after_addition(ending);
        self.change(name, |s| {
            s.routes.insert(dest, RouteMemory { presence, id });
        });
    }

    pub fn route_deleted(&mut self, name: &str, dest: &str, ending: Ending) {
        self.count(ending);
        self.change(name, |s| {
            if let Some(route) = s.routes.get_mut(dest) {
                route.presence = route.presence.after_deletion(ending);
            }
        });
    }

    /// A removal takes every service with it that begins or ends at the host.
    pub fn peer_removed(&mut self, host: &str, ending: Ending) {
        self.count(ending);
        let presence = Presence::Must.after_deletion(ending);
        if ending != Ending::Refused {
            self.removed = Some((host.to_owned(), presence));
            let involved = self.services.iter().filter(|(_, s)| s.source == host || s.target == host);
            self.taken_along = involved.map(|(name, s)| (name.clone(), s.presence)).collect();
            self.involving(host, |s| s.presence = s.presence.after_deletion(ending));
        }
    }

    /// It brings along what begins at it. What others had leading to it is deleted, if its owner heard of the removal before
    /// it heard of the re-admission (cluster.md §8).
    pub fn peer_readmitted(&mut self, host: &str, ending: Ending) {
        self.count(ending);
        let Some((_, member)) = self.removed.as_mut().filter(|(removed, _)| removed == host) else { return };
        *member = match (ending, *member) {
            (Ending::Refused, _) => return,
            (Ending::Acknowledged, Presence::MustNot) => Presence::Must,
            (Ending::Unknown, Presence::MustNot) => Presence::Adding,
            // The removal may still be on its way.
            _ => Presence::Maybe,
        };
        let member = *member;
        for (name, before) in std::mem::take(&mut self.taken_along) {
            self.change(&name, |s| {
                s.presence = match (before, member) {
                    (Presence::MustNot, _) => before,
                    (Presence::Must | Presence::Deleting, _) if s.target == host => Presence::Deleting,
                    (_, Presence::Must) if s.source == host => before,
                    (Presence::Must, Presence::Adding) => Presence::Adding,
                    _ => Presence::Maybe,
                }
            });
        }
    }

    /// What its owner lists, each service by name. A removed one lists what only it holds.
    pub fn seen_at(&mut self, owner: &str, listed: &BTreeMap<String, Value>) {
        if self.is_member(owner) != Some(true) {
            return;
        }
        for (name, service) in self.services.iter_mut().filter(|(_, service)| service.source == owner) {
            let found = listed.get(name);
            service.presence = service.presence.after_look(found.is_some());
            let Some(found) = found else { continue };
            let dests: BTreeSet<&str> = destinations(found).collect();
            for (dest, route) in &mut service.routes {
                route.presence = route.presence.after_look(dests.contains(dest.as_str()));
            }
        }
    }

    /// Nobody but the host had what it lost: either state will do.
    pub fn lost(&mut self, record: &RecordKey) {
        if let Some((_, presence)) = self.removed.as_mut().filter(|_| is_about_membership(&record.kind)) {
            *presence = Presence::Maybe;
        }
        let of_id = |s: &&mut ServiceMemory| s.id.as_ref() == Some(&record.id);
        for service in self.services.values_mut().filter(of_id) {
            service.presence = Presence::Maybe;
            service.routes.values_mut().for_each(|r| r.presence = Presence::Maybe);
        }
    }

    /// Whether the host counts as a member: `None` when the operator cannot know.
    pub fn is_member(&self, host: &str) -> Option<bool> {
        match &self.removed {
            Some((removed, presence)) if removed == host => match presence {
                Presence::MustNot => Some(false),
                Presence::Must => Some(true),
                Presence::Adding | Presence::Deleting | Presence::Maybe => None,
            },
            _ => Some(true),
        }
    }

    fn involving(&mut self, host: &str, f: impl Fn(&mut ServiceMemory)) {
        self.services.values_mut().filter(|s| s.source == host || s.target == host).for_each(f);
    }

    fn change(&mut self, name: &str, f: impl FnOnce(&mut ServiceMemory)) {
        if let Some(service) = self.services.get_mut(name) {
            f(service);
        }
    }

    fn count(&mut self, ending: Ending) {
        self.acknowledged += u64::from(ending == Ending::Acknowledged);
    }
}

fn is_about_membership(record_kind: &str) -> bool {
    matches!(record_kind, kind::REVOCATION | kind::READMISSION)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> Memory {
        let mut memory = Memory::default();
        for (name, source, target) in [("from", "n3", "n1"), ("to", "n1", "n3"), ("gone", "n3", "n2")] {
            memory.created(name.into(), source.into(), target.into(), None, Ending::Acknowledged);
        }
        memory.deleted("gone", Ending::Acknowledged);
        memory
    }

    fn presences(memory: &Memory) -> [Presence; 3] {
        ["from", "gone", "to"].map(|name| memory.services[name].presence)
    }

    #[test]
    fn a_removal_takes_all_that_involves_the_host_and_a_readmission_gives_back_what_begins_at_it() {
        use Presence::{Deleting, Must, MustNot};
        let mut memory = memory();
        memory.peer_removed("n3", Ending::Acknowledged);
        assert_eq!((presences(&memory), memory.is_member("n3")), ([MustNot; 3], Some(false)));
        memory.peer_readmitted("n3", Ending::Refused);
        assert_eq!((presences(&memory), memory.is_member("n3")), ([MustNot; 3], Some(false)));
        memory.peer_readmitted("n3", Ending::Acknowledged);
        assert_eq!((presences(&memory), memory.is_member("n3")), ([Must, MustNot, Deleting], Some(true)));
        memory.seen_at("n1", &BTreeMap::new());
        assert_eq!(presences(&memory), [Must, MustNot, MustNot]);
    }

    #[test]
    fn without_an_answer_nobody_knows_until_the_owner_shows_it() {
        use Presence::{Adding, Deleting, Maybe, Must, MustNot};
        let mut memory = memory();
        memory.peer_removed("n3", Ending::Unknown);
        assert_eq!((presences(&memory), memory.is_member("n3")), ([Deleting, MustNot, Deleting], None));
        memory.peer_readmitted("n3", Ending::Acknowledged);
        assert_eq!((presences(&memory), memory.is_member("n3")), ([Maybe, MustNot, Deleting], None));
        memory.seen_at("n1", &BTreeMap::new());
        assert_eq!(presences(&memory), [Maybe, MustNot, MustNot]);
        memory.created("new".into(), "n1".into(), "n2".into(), None, Ending::Unknown);
        memory.seen_at("n2", &BTreeMap::from([("new".to_owned(), Value::Null)]));
        assert_eq!(memory.services["new"].presence, Adding, "only its owner knows");
        memory.seen_at("n1", &BTreeMap::from([("new".to_owned(), Value::Null)]));
        assert_eq!(memory.services["new"].presence, Must);
    }
}
