//! Commit-confirm (compose.md §5): an owner keeps the state of its services before they are changed, and puts it back
//! unless the change is confirmed in time.

use super::{Author, Ledger, LedgerView};
use crate::{
    model::{ClientId, Code, Refused, Service, ServiceBody, ServiceId, UnixTime},
    wire::record::kind,
};
use serde::{Deserialize, Serialize};

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
    let found = services.iter().find(|s| Some(s.id) == id || s.body.name.eq_ignore_ascii_case(named));
    if let Some(foreign) = found.filter(|s| s.body.source_peer_id != author.peer_id) {
        let text = format!("service `{}` is of another peer, which keeps its state itself", foreign.body.name);
        return Err(Refused::new(Code::Conflict, text).with_hint("ask its source peer (X-Arctic-Target-Peer)"));
    }
    if found.is_none() && id.is_some() {
        return Err(Refused::new(Code::NotFound, format!("service `{named}` not found")));
    }
    let was = found.map(|s| KeptService { id: s.id, body: s.body.clone() });
    Ok(Kept { named: named.to_owned(), was })
}

/// Puts back what was kept: services that were changed or deleted become what they were, those that were made since
/// under a name that was free go. Ids of routes are not used twice, whatever happened.
pub fn restore_services<L: Ledger>(
    ledger: &L,
    author: &Author,
    pending: &PendingConfirm,
    now: UnixTime,
) -> Result<Restored, L::Error> {
    let mut restored = Restored::default();
    for was in pending.kept.iter().filter_map(|kept| kept.was.as_ref()) {
        let current = ledger.service(was.id)?;
        if current.as_ref().is_some_and(|current| current.body == was.body) {
            continue;
        }
        let used = current.map_or(0, |current| current.body.next_route_id);
        let next_route_id = was.body.next_route_id.max(used);
        let body = ServiceBody { next_route_id, updated_at: now, ..was.body.clone() };
        ledger.put_own(author, kind::SERVICE, &was.id.to_string(), &body)?;
        restored.put_back += 1;
    }
    for free in pending.kept.iter().filter(|kept| kept.was.is_none()) {
        let made_since = |s: &Service| {
            s.body.source_peer_id == author.peer_id
                && s.body.name.eq_ignore_ascii_case(&free.named)
                && s.body.created_at >= pending.created_at
        };
        for service in ledger.services()?.into_iter().filter(made_since) {
            ledger.delete_own(author, kind::SERVICE, &service.id.to_string())?;
            restored.deleted += 1;
        }
    }
    Ok(restored)
}
