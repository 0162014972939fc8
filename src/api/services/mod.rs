//! Services (api.md §5). Reads come from the local copy; writes go to the owner, the source peer.

mod names;
mod view;
mod wish;

use super::{
    admission::{Request, Wait},
    answer::{Answer, Outcome, clip, invalid, not_found},
    applied::{Left, settled},
    forward, transaction,
};
use crate::{
    membership,
    model::{Code, PeerId, Refused, Scope, Service, ServiceBody, ServiceId, UnixTime},
    store::{PeerRow, Tx, View},
    wire::{record::kind, request::Written},
};
use hyper::{Method, header::IF_MATCH};
use names::{default_name, mint_id};
use serde_json::Value;
use std::collections::BTreeMap;
use view::{Shown, Surroundings};
use wish::{Patch, Wish, asked_anew};

pub(super) async fn list(r: Request) -> Outcome {
    r.query.only(&["source_peer_id", "target_peer_id", "requires_interface"])?;
    let peer = |name: &str| -> Result<Option<PeerId>, Refused> {
        r.query.get(name).map(|t| t.parse().map_err(|e: crate::model::IdError| invalid(e.to_string()))).transpose()
    };
    let (source, target) = (peer("source_peer_id")?, peer("target_peer_id")?);
    let interface = r.query.flag("requires_interface")?;
    let services = r.node().store().read(|v| v.services())?;
    let surroundings = Surroundings::of(&r, None)?;
    let wanted = |s: &&Service| {
        source.is_none_or(|p| p == s.body.source_peer_id)
            && target.is_none_or(|p| p == s.body.target_peer_id)
            && interface.is_none_or(|i| i == s.body.requires_interface)
    };
    let services: Vec<Shown<'_>> = services.iter().filter(wanted).map(|s| surroundings.show_in_list(s)).collect();
    Answer::ok(&BTreeMap::from([("services", services)]))
}

pub(super) async fn get(r: Request) -> Outcome {
    r.query.only(&[])?;
    Answer::ok(&whole(&r, &find(&r)?)?)
}

/// A service with its routes.
fn whole(r: &Request, service: &Service) -> Result<Value, Refused> {
    let surroundings = Surroundings::of(r, Some(service.id))?;
    serde_json::to_value(surroundings.show_whole(service)).map_err(Refused::internal)
}

pub(super) async fn create(r: Request) -> Outcome {
    let (dry_run, wait) = r.dry_run_or_wait()?;
    let wish = Wish::read(&r.body)?;
    let author = r.identity()?;
    if let Some(text) = &wish.source {
        let source = r.node().store().read(|v| trusted(v, text, "source"))?.peer_id;
        if source != author.peer_id {
            let target = r.node().store().read(|v| trusted(v, &wish.target, "target"))?.peer_id;
            let (answer, written) = forward::to_owner_of(&r, source).await?;
            let answer = match &written {
                Some(made) => answer.about(&made.id),
                None => answer,
            };
            return forwarded(&r, answer, wait, (source, target), written).await;
        }
    }
    let (entitlement, now, mut rng) = (r.entitlement()?, r.now(), r.api.fork_rng());
    let made = transaction::write(r.node(), dry_run, move |tx| {
        let body = body_of(tx, &wish, author.peer_id, now)?;
        let services = tx.services()?;
        check_name_is_free(&services, &body.name)?;
        entitlement.document.check_features_of(&body).map_err(Refused::from)?;
        entitlement.document.check_services(services.len() + 1).map_err(Refused::from)?;
        let id = mint_id(&services, now, &mut rng)?;
        Ok(tx.put_service(&author, id, &body)?)
    });
    let made = made.await?;
    let answer = Answer::created(&whole(&r, &made)?)?.about(made.id);
    finish(&r, answer, wait, &made).await
}

fn check_name_is_free<'a>(others: impl IntoIterator<Item = &'a Service>, name: &str) -> Result<(), Refused> {
    if others.into_iter().any(|s| s.body.name.eq_ignore_ascii_case(name)) {
        return Err(Refused::new(Code::AlreadyExists, format!("a service named `{name}` already exists")));
    }
    Ok(())
}

pub(super) async fn update(r: Request) -> Outcome {
    let (dry_run, wait) = r.dry_run_or_wait()?;
    let if_match = if_match(&r)?;
    let patch = Patch::read(&r.body)?;
    let (service, author, entitlement, now) = (find(&r)?, r.identity()?, r.entitlement()?, r.now());
    if service.body.source_peer_id != author.peer_id {
        return to_source(&r, &service, wait).await;
    }
    let updated = transaction::write(r.node(), dry_run, move |tx| {
        let current = tx.service(service.id)?.ok_or_else(|| unknown(&service.id.to_string()))?;
        check_version(if_match, current.version)?;
        let mut body = patch.apply(&current.body)?;
        if body == current.body {
            return Ok(current);
        }
        if body.name != current.body.name {
            check_name_is_free(tx.services()?.iter().filter(|s| s.id != current.id), &body.name)?;
        }
        entitlement.document.check_features_of(&asked_anew(&current.body, &body)).map_err(Refused::from)?;
        body.updated_at = now;
        Ok(tx.put_service(&author, current.id, &body)?)
    });
    let updated = updated.await?;
    finish(&r, Answer::ok(&whole(&r, &updated)?)?, wait, &updated).await
}

/// The answer to a write that has left an own service so.
pub(super) async fn finish(r: &Request, answer: Answer, wait: Wait, service: &Service) -> Outcome {
    let (source, target) = (service.body.source_peer_id, service.body.target_peer_id);
    let left = Left { service: service.id, version: Some(service.version), source, target };
    let answer = settled(r, answer, wait, left).await?;
    forward::name_written(r, answer, kind::SERVICE, &service.id.to_string())
}

/// The owner's answer to a write of what a service holds.
pub(super) async fn to_source(r: &Request, service: &Service, wait: Wait) -> Outcome {
    let (source, target) = (service.body.source_peer_id, service.body.target_peer_id);
    if !r.node().store().read(|v| v.peer(source))?.is_some_and(|p| p.trusted) {
        let text = format!("the source of service {} has left the cluster: it can only be deleted", service.id);
        return Err(Refused::new(Code::Conflict, text));
    }
    let (answer, written) = forward::to_owner_of(r, source).await?;
    forwarded(r, answer, wait, (source, target), written).await
}

async fn forwarded(
    r: &Request,
    answer: Answer,
    wait: Wait,
    (source, target): (PeerId, PeerId),
    written: Option<Written>,
) -> Outcome {
    let id = written.as_ref().and_then(|w| w.id.parse().ok());
    let (Some(written), Some(service)) = (written, id) else { return Ok(answer) };
    let deletes = r.method == Method::DELETE && r.param("rid").is_empty();
    let left = Left { service, version: (!deletes).then_some(written.version), source, target };
    settled(r, answer, wait, left).await
}

fn body_of(tx: &Tx<'_>, wish: &Wish, source: PeerId, now: UnixTime) -> Result<ServiceBody, Refused> {
    let target = trusted(tx, &wish.target, "target")?;
    if target.peer_id == source {
        return Err(invalid("target_peer_id is the source peer itself"));
    }
    let name = match &wish.name {
        Some(name) => name.clone(),
        None => default_name(tx, source, &target)?,
    };
    Ok(ServiceBody {
        name,
        source_peer_id: source,
        target_peer_id: target.peer_id,
        transport_type: wish.transport,
        requires_interface: wish.requires_interface,
        desired_ipv4_cidr: wish.ipv4,
        desired_ipv6_cidr: wish.ipv6,
        bandwidth_limit_mbps: wish.bandwidth_limit_mbps,
        fully_transparent: wish.fully_transparent,
        routes: Vec::new(),
        next_route_id: 1,
        created_at: now,
        updated_at: now,
    })
}

/// A peer that may be the `end` of a service: trusted, not merely discovered.
fn trusted(view: &View<'_>, text: &str, end: &str) -> Result<PeerRow, Refused> {
    let unknown = || not_found(format!("{end} peer not found: `{}`", clip(text)));
    let id: PeerId = text.parse().map_err(|_| unknown())?;
    let row = view.peer(id)?.ok_or_else(unknown)?;
    if row.trusted {
        return Ok(row);
    }
    let hint = format!("peer {id} is discovered but not trusted yet; add it with `arctic peers add`");
    Err(unknown().with_hint(hint))
}

pub(super) async fn delete(r: Request) -> Outcome {
    let (dry_run, wait) = r.dry_run_or_wait()?;
    let if_match = if_match(&r)?;
    let service = find(&r)?;
    let author = r.identity()?;
    let (id, source, target) = (service.id, service.body.source_peer_id, service.body.target_peer_id);
    if source == author.peer_id {
        transaction::write(r.node(), dry_run, move |tx| {
            let current = tx.service(service.id)?.ok_or_else(|| unknown(&service.id.to_string()))?;
            check_version(if_match, current.version)?;
            Ok(tx.delete_service(&author, service.id)?)
        })
        .await?;
    } else if r.node().store().read(|v| v.peer(source))?.is_some_and(|p| p.trusted) {
        return to_source(&r, &service, wait).await;
    } else {
        delete_of_departed(&r, dry_run, if_match, service).await?;
    }
    let left = Left { service: id, version: None, source, target };
    let answer = settled(&r, Answer::no_content(), wait, left).await?;
    forward::name_written(&r, answer, kind::SERVICE, &id.to_string())
}

/// The owner has left the cluster, so any peer deletes for it, on the word of an administrator (cluster.md §5).
async fn delete_of_departed(r: &Request, dry_run: bool, wanted: Option<u64>, service: Service) -> Result<(), Refused> {
    if !r.caller.scopes().grants(Scope::Admin) {
        let text =
            format!("the source of service {} has left the cluster: deleting it needs the scope admin", service.id);
        return Err(Refused::new(Code::Forbidden, text));
    }
    check_version(wanted, service.version)?;
    let author = r.identity()?;
    let tombstone = transaction::write(r.node(), dry_run, move |tx| {
        let owner = service.body.source_peer_id;
        let tombstone = membership::delete_service_of_departed(tx, &author, owner, service.id)?;
        tombstone.ok_or_else(|| unknown(&service.id.to_string()))
    });
    let tombstone = tombstone.await?;
    if dry_run { Ok(()) } else { r.node().tell_of_tombstone(&tombstone) }
}

/// The version in `If-Match`, plain or quoted.
pub(super) fn if_match(r: &Request) -> Result<Option<u64>, Refused> {
    let Some(value) = r.headers.get(IF_MATCH) else { return Ok(None) };
    let version = value.to_str().ok().and_then(|t| t.trim().trim_matches('"').parse().ok());
    version.map(Some).ok_or_else(|| invalid("the header If-Match is not a version number"))
}

pub(super) fn check_version(wanted: Option<u64>, current: u64) -> Result<(), Refused> {
    match wanted {
        Some(wanted) if wanted != current => {
            Err(Refused::new(Code::Conflict, format!("version {wanted} is stale: the current one is {current}")))
        }
        _ => Ok(()),
    }
}

fn unknown(text: &str) -> Refused {
    not_found(format!("service `{}` not found", clip(text)))
}

/// The service that the path names.
pub(super) fn find(r: &Request) -> Result<Service, Refused> {
    let text = r.param("sid");
    let id: ServiceId = text.parse().map_err(|_| unknown(text))?;
    r.node().store().read(|v| v.service(id))?.ok_or_else(|| unknown(text))
}
