//! Commit-confirm (compose.md §5): an owner keeps the state of its services before they are changed, and puts it back
//! unless the change is confirmed in time.

use super::{Author, Ledger, LedgerView};
use crate::{
    gossip::Standing,
    model::{ClientId, Code, Refused, Service, ServiceBody, ServiceId, UnixTime},
    wire::record::kind,
};
use serde::{Deserialize, Serialize};

/// How many ids of routes a service skips that was deleted and comes back: nobody remembers which it gave before it went.
const ROUTE_IDS_SKIPPED: u32 = 1000;

/// What is undone at the deadline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingConfirm {
    /// One for all owners of one change.
    pub id: String,
    /// None: the recovery token.
    pub client_id: Option<ClientId>,
    pub created_at: UnixTime,
    pub deadline: UnixTime,
    pub kept: Vec<Kept>,
}

/// The state of one service before the change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// As it was named: by id or name.
    pub named: String,
    /// None: there was no service of this name.
    pub was: Option<KeptService>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptService {
    pub id: ServiceId,
    pub body: ServiceBody,
}

/// How much was put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Restored {
    pub put_back: usize,
    pub deleted: usize,
}

impl PendingConfirm {
    /// Adds the present state of what is not kept yet.
    pub fn add(&mut self, more: Vec<Kept>) {
        let id_of = |kept: &Kept| kept.was.as_ref().map(|was| was.id);
        for new in more {
            let same = |old: &Kept| old.named == new.named || (new.was.is_some() && id_of(old) == id_of(&new));
            if !self.kept.iter().any(same) {
                self.kept.push(new);
            }
        }
    }
}

/// The present state of own services, by id or name. A name that is free is kept as such.
pub fn keep_services<L: LedgerView>(ledger: &L, author: &Author, named: &[String]) -> Result<Vec<Kept>, Refused> {
    let services = ledger.services().map_err(Into::into)?;
    named.iter().map(|name| keep(&services, author, name)).collect()
}

fn keep(services: &[Service], author: &Author, named: &str) -> Result<Kept, Refused> {
    let id: Option<ServiceId> = named.parse().ok();
    let own = |s: &&Service| s.body.source_peer_id == author.peer_id;
    let found = match id {
        Some(id) => {
            let service = services.iter().find(|s| s.id == id);
            let service =
                service.ok_or_else(|| Refused::new(Code::NotFound, format!("service `{named}` not found")))?;
            if !own(&service) {
                let text = format!("service `{named}` is of another peer, which keeps its state itself");
                return Err(Refused::new(Code::Conflict, text).with_hint("ask its source peer (X-Arctic-Target-Peer)"));
            }
            Some(service)
        }
        // One of this name at another owner may be about to move here.
        None => services.iter().filter(own).find(|s| s.body.name.eq_ignore_ascii_case(named)),
    };
    let was = found.map(|s| KeptService { id: s.id, body: s.body.clone() });
    Ok(Kept { named: named.to_owned(), was })
}

/// Puts back what was kept: services that were changed or deleted become what they were, those that were made since
/// under a name that was given go, whether it was free or its service was replaced. What leads to a peer that was removed
/// meanwhile stays as it is: it went with that peer. Ids of routes are not used twice, whatever happened.
pub fn restore_services<L: Ledger>(
    ledger: &L,
    author: &Author,
    pending: &PendingConfirm,
    now: UnixTime,
) -> Result<Restored, L::Error> {
    let mut restored = Restored::default();
    let revocations = ledger.revocations()?;
    let has_target = |was: &&KeptService| revocations.standing(was.body.target_peer_id, None) != Standing::Revoked;
    for was in pending.kept.iter().filter_map(|kept| kept.was.as_ref()).filter(has_target) {
        let current = ledger.service(was.id)?;
        if current.as_ref().is_some_and(|current| current.body == was.body) {
            continue;
        }
        let used = match current {
            Some(current) => current.body.next_route_id,
            None => was.body.next_route_id.saturating_add(ROUTE_IDS_SKIPPED),
        };
        let next_route_id = was.body.next_route_id.max(used);
        let body = ServiceBody { next_route_id, updated_at: now, ..was.body.clone() };
        ledger.put_own(author, kind::SERVICE, &was.id.to_string(), &body)?;
        restored.put_back += 1;
    }
    let took_a_name = |s: &Service| {
        let has_name = |kept: &Kept| {
            let own_name = kept.was.as_ref().map_or(&kept.named, |was| &was.body.name);
            s.body.name.eq_ignore_ascii_case(own_name)
        };
        s.body.source_peer_id == author.peer_id
            && s.body.created_at >= pending.created_at
            && pending.kept.iter().any(has_name)
            && !pending.kept.iter().any(|kept| kept.was.as_ref().is_some_and(|was| was.id == s.id))
    };
    for service in ledger.services()?.into_iter().filter(took_a_name) {
        ledger.delete_own(author, kind::SERVICE, &service.id.to_string())?;
        restored.deleted += 1;
    }
    Ok(restored)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        membership::{self, MemoryLedger, PeerRow},
        model::{PeerId, Rng, Route, SigningKey},
    };
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const BEFORE: UnixTime = UnixTime::from_secs(1_000);
    const NOW: UnixTime = UnixTime::from_secs(2_000);
    const LATER: UnixTime = UnixTime::from_secs(3_000);

    fn owner() -> (MemoryLedger, Author, Rng) {
        let mut rng = Rng::from_seed([1; 32]);
        let author = Author { peer_id: PeerId::mint(BEFORE, &mut rng), key: SigningKey::from_seed([1; 32]) };
        let ledger = MemoryLedger::default();
        ledger.put_peer(&PeerRow::trusted(author.peer_id, author.key.public(), vec![], BEFORE)).unwrap();
        (ledger, author, rng)
    }

    fn put(ledger: &MemoryLedger, author: &Author, id: ServiceId, body: &ServiceBody) {
        ledger.put_own(author, kind::SERVICE, &id.to_string(), body).unwrap();
    }

    fn begin(ledger: &MemoryLedger, author: &Author, named: &[&str]) -> PendingConfirm {
        let named: Vec<String> = named.iter().map(|name| (*name).to_owned()).collect();
        let kept = keep_services(ledger, author, &named).unwrap();
        PendingConfirm { id: "cfm_1".into(), client_id: None, created_at: NOW, deadline: LATER, kept }
    }

    /// By id, without what a restoration may move.
    fn state(ledger: &MemoryLedger) -> BTreeMap<ServiceId, ServiceBody> {
        let plain = |body: ServiceBody| ServiceBody { next_route_id: 0, updated_at: BEFORE, ..body };
        ledger.services().unwrap().into_iter().map(|s| (s.id, plain(s.body))).collect()
    }

    proptest! {
        /// Whatever was done to the named services, they become what they were, and a second time changes nothing.
        #[test]
        fn what_was_named_comes_back_whatever_was_done_to_it(seed in any::<[u8; 32]>()) {
            let (ledger, author, _) = owner();
            let mut rng = Rng::from_seed(seed);
            let names = ["a", "b", "c"];
            for name in names.iter().take(rng.below(4) as usize) {
                let id = ServiceId::mint(BEFORE, &mut rng);
                put(&ledger, &author, id, &ServiceBody::plain(name, author.peer_id, author.peer_id, BEFORE));
            }
            let before = state(&ledger);
            let pending = begin(&ledger, &author, &names);
            for _ in 0..rng.below(8) {
                let services = ledger.services().unwrap();
                let at = rng.below(4) as usize;
                match (services.get(at), rng.below(4)) {
                    (None, _) => {
                        let name = names[rng.below(3) as usize];
                        let body = ServiceBody::plain(name, author.peer_id, author.peer_id, NOW);
                        if !services.iter().any(|s| s.body.name == name) {
                            put(&ledger, &author, ServiceId::mint(NOW, &mut rng), &body);
                        }
                    }
                    (Some(s), 0) => drop(ledger.delete_own(&author, kind::SERVICE, &s.id.to_string()).unwrap()),
                    (Some(s), 1) => {
                        let name = names[rng.below(3) as usize];
                        if !services.iter().any(|s| s.body.name == name) {
                            put(&ledger, &author, s.id, &ServiceBody { name: name.into(), ..s.body.clone() });
                        }
                    }
                    (Some(s), _) => {
                        let mut body = s.body.clone();
                        let id = body.next_route_id;
                        let dest_cidr = format!("10.{id}.0.0/16").parse().ok();
                        let priority = 100;
                        body.routes.push(Route { id, source_cidr: None, dest_cidr, priority, version: 1, created_at: NOW });
                        body.next_route_id += 1;
                        put(&ledger, &author, s.id, &body);
                    }
                }
            }
            let used: BTreeMap<_, _> =
                ledger.services().unwrap().into_iter().map(|s| (s.id, s.body.next_route_id)).collect();
            restore_services(&ledger, &author, &pending, LATER).unwrap();
            prop_assert_eq!(&state(&ledger), &before);
            for service in ledger.services().unwrap() {
                let highest = used.get(&service.id).copied().unwrap_or(0);
                prop_assert!(service.body.next_route_id >= highest, "no id of a route is used twice");
            }
            restore_services(&ledger, &author, &pending, LATER).unwrap();
            prop_assert_eq!(state(&ledger), before);
        }
    }

    #[test]
    fn the_first_state_counts_and_others_are_left_alone() {
        let (ledger, author, mut rng) = owner();
        let (a, other) = (ServiceId::mint(BEFORE, &mut rng), ServiceId::mint(BEFORE, &mut rng));
        let plain = |name: &str, at| ServiceBody::plain(name, author.peer_id, author.peer_id, at);
        put(&ledger, &author, a, &plain("a", BEFORE));
        put(&ledger, &author, other, &plain("other", BEFORE));
        let mut pending = begin(&ledger, &author, &["A", "fresh"]);
        put(&ledger, &author, a, &ServiceBody { bandwidth_limit_mbps: 5, ..plain("a", BEFORE) });
        pending.add(begin(&ledger, &author, &[&a.to_string(), "other"]).kept);
        assert_eq!(pending.kept.len(), 3, "one state of each service, the first");
        put(&ledger, &author, other, &plain("fresh", BEFORE));
        put(&ledger, &author, ServiceId::mint(NOW, &mut rng), &plain("unnamed", NOW));
        restore_services(&ledger, &author, &pending, LATER).unwrap();
        let names: Vec<(String, u32)> =
            ledger.services().unwrap().into_iter().map(|s| (s.body.name, s.body.bandwidth_limit_mbps)).collect();
        let mut names = names;
        names.sort();
        assert_eq!(names, [("a".into(), 0), ("other".into(), 0), ("unnamed".into(), 0)]);
        let unknown = "svc_01ARZ3NDEKTSV4RRFFQ69G5FAV".to_owned();
        assert_eq!(keep_services(&ledger, &author, &[unknown]).unwrap_err().code, Code::NotFound);
    }

    #[test]
    fn a_service_whose_target_was_removed_meanwhile_does_not_come_back() {
        let (ledger, author, mut rng) = owner();
        let mut target = |name: &str, seed: u8| {
            let (peer, id) = (PeerId::mint(BEFORE, &mut rng), ServiceId::mint(BEFORE, &mut rng));
            let key = SigningKey::from_seed([seed; 32]).public();
            ledger.put_peer(&PeerRow::trusted(peer, key, vec![], BEFORE)).unwrap();
            put(&ledger, &author, id, &ServiceBody::plain(name, author.peer_id, peer, BEFORE));
            peer
        };
        let removed = target("to-removed", 2);
        target("to-member", 3);
        let pending = begin(&ledger, &author, &["to-removed", "to-member"]);
        for service in ledger.services().unwrap() {
            let body = ServiceBody { bandwidth_limit_mbps: 5, ..service.body };
            put(&ledger, &author, service.id, &body);
        }
        membership::remove_peer(&ledger, &author, removed, NOW).unwrap();
        let restored = restore_services(&ledger, &author, &pending, LATER).unwrap();
        let left: Vec<(String, u32)> =
            ledger.services().unwrap().into_iter().map(|s| (s.body.name, s.body.bandwidth_limit_mbps)).collect();
        assert_eq!((left, restored), (vec![("to-member".into(), 0)], Restored { put_back: 1, deleted: 0 }));
    }
}
