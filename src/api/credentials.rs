//! Credentials of API clients, and the one that the cluster shares (api.md §7).

use super::{
    admission::Request,
    answer::{Answer, Outcome, clip, invalid, not_found},
    fields::Fields,
    forward, transaction,
};
use crate::{
    membership::{self, Credential, NewCredential, ROTATION_OVERLAP},
    model::{ClientId, Code, PeerId, Refused, Scope, ScopeSet, Secret, UnixTime},
    store::{Author, Tx, View},
    wire::record::{CredentialBody, kind},
};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const DESCRIPTION_MAX_BYTES: usize = 1024;
/// Live credentials that one peer issues.
const ISSUED_MAX: usize = 1000;
/// Credentials whose last use is remembered.
const USES_MAX: usize = 4096;

/// When each credential was used last, since the start of the agent.
#[derive(Debug, Default)]
pub(super) struct LastUses(BTreeMap<ClientId, UnixTime>);

impl LastUses {
    pub(super) fn note(&mut self, client: ClientId, now: UnixTime) {
        if !self.0.contains_key(&client) && self.0.len() >= USES_MAX {
            let oldest = self.0.iter().min_by_key(|(_, at)| **at).map(|(id, _)| *id);
            oldest.map(|id| self.0.remove(&id));
        }
        self.0.insert(client, now);
    }
}

pub(super) async fn list(r: Request) -> Outcome {
    r.query.only(&[])?;
    let credentials = r.node().store().read(|v| v.credentials())?;
    let uses = super::lock(&r.api.used);
    let shown = |(issuer, body): &(PeerId, CredentialBody)| {
        json!({
            "client_id": body.client_id,
            "scopes": body.scopes,
            "description": body.description,
            "issuer_peer_id": issuer,
            "license_id": body.license_id,
            "created_at": body.created_at,
            "last_used_at": uses.0.get(&body.client_id),
        })
    };
    Answer::ok(&json!({ "credentials": credentials.iter().map(shown).collect::<Vec<_>>() }))
}

pub(super) async fn create(r: Request) -> Outcome {
    let dry_run = r.dry_run()?;
    let fields = Fields::parse(&r.body)?.only(&["scopes", "description"])?;
    let scopes = wished_scopes(&fields)?.unwrap_or_else(|| r.caller.scopes());
    let description = fields.text("description")?.unwrap_or_default().to_owned();
    if description.len() > DESCRIPTION_MAX_BYTES {
        return Err(fields.wrong("description", &format!("a text of at most {DESCRIPTION_MAX_BYTES} bytes")));
    }
    if !r.caller.scopes().covers(&scopes) {
        return Err(more_than_held(&scopes, &r.caller.scopes()));
    }
    let (author, license_id, now) = (r.identity()?, r.entitlement()?.document.license_id(), r.now());
    let mut rng = r.api.fork_rng();
    let (client_id, secret) = (ClientId::mint(now, &mut rng), Secret::mint(&mut rng));
    let new = NewCredential { client_id, scopes: scopes.clone(), description, license_id };
    let secret = transaction::write(r.node(), dry_run, move |tx| {
        let issued = tx.credentials()?.into_iter().filter(|(issuer, _)| *issuer == author.peer_id).count();
        if issued >= ISSUED_MAX {
            let text = format!("this agent has issued {ISSUED_MAX} credentials: revoke some first");
            return Err(invalid(text).with_hint("arctic credentials list"));
        }
        membership::issue_credential(tx, &author, new, &secret, now)?;
        Ok(secret)
    });
    let secret = secret.await?;
    let body = json!({
        "client_id": (!dry_run).then_some(client_id),
        "client_secret": (!dry_run).then(|| secret.reveal()),
        "scopes": scopes,
    });
    Ok(Answer::created(&body)?.uncached().about(client_id))
}

fn wished_scopes(fields: &Fields) -> Result<Option<ScopeSet>, Refused> {
    let Some(names) = fields.texts("scopes", Scope::ALL.len())? else { return Ok(None) };
    if names.is_empty() {
        return Err(fields.wrong("scopes", "a list of at least 1 scope"));
    }
    let scopes = names.into_iter().map(str::parse).collect::<Result<_, _>>();
    let known = || Scope::ALL.map(Scope::short_name).join(", ");
    scopes.map(|set| Some(ScopeSet(set))).map_err(|e: crate::model::UnknownScope| {
        invalid(format!("field `scopes`: {e}")).with_hint(format!("known: {}", known()))
    })
}

fn more_than_held(wanted: &ScopeSet, held: &ScopeSet) -> Refused {
    let text = format!("nobody gives more than they have: {wanted} is more than the caller's {held}");
    Refused::new(Code::Forbidden, text)
}

pub(super) async fn revoke(r: Request) -> Outcome {
    let dry_run = r.dry_run()?;
    let text = r.param("cid");
    let unknown = || not_found(format!("credential `{}` not found", clip(text)));
    let client_id: ClientId = text.parse().map_err(|_| unknown())?;
    if r.caller.client_id() == Some(client_id) {
        let text = "cannot revoke the credential currently in use";
        return Err(Refused::new(Code::CannotRevokeCurrent, text)
            .with_hint("revoke it with another credential, or with the recovery token on the agent's host"));
    }
    let (issuer, _) = r.node().store().read(|v| v.credential(client_id))?.ok_or_else(unknown)?;
    let (author, now) = (r.identity()?, r.now());
    if issuer != author.peer_id && !matches!(r.caller, super::caller::Caller::Recovery) {
        match forward::to_owner(&r, issuer).await {
            Err(e) if e.code == Code::PeerUnreachable => {}
            answered => return answered,
        }
    }
    transaction::write(r.node(), dry_run, move |tx| {
        Ok(membership::revoke_credential(tx, &author, issuer, client_id, now)?)
    })
    .await?;
    let answer = Answer::ok(&json!({"deleted": true}))?;
    forward::name_written(&r, answer, kind::CREDENTIAL, &client_id.to_string())
}

pub(super) async fn shared(r: Request) -> Outcome {
    r.query.only(&[])?;
    let shared = r.node().store().read(find_shared)?;
    Answer::ok(&shown(&shared))
}

fn find_shared(view: &View<'_>) -> Result<Credential, Refused> {
    let none = || {
        not_found("the cluster shares no credential: its issuer has left, or it was revoked")
            .with_hint("make one for each client: arctic credentials create")
    };
    membership::shared_credential(view)?.ok_or_else(none)
}

fn shown(shared: &Credential) -> Value {
    let body = &shared.body;
    let by = body.rotated_at.map(|_| body.rotated_by.map_or("recovery".to_owned(), |id| id.to_string()));
    json!({
        "client_id": body.client_id,
        "version": shared.version,
        "rotated_by": by,
        "rotated_at": body.rotated_at,
    })
}

pub(super) async fn rotate(r: Request) -> Outcome {
    let dry_run = r.dry_run()?;
    let (author, now) = (r.identity()?, r.now());
    let held = r.caller.scopes();
    let current = r.node().store().read(find_shared)?;
    check_covers(&held, &current)?;
    if current.issuer != author.peer_id {
        return forward::to_owner(&r, current.issuer).await.map(Answer::uncached);
    }
    let (secret, by) = (Secret::mint(&mut r.api.fork_rng()), r.caller.client_id());
    let (rotated, secret) = transaction::write(r.node(), dry_run, move |tx| {
        Ok((rotate_own(tx, &author, &held, &secret, by, now)?, secret))
    })
    .await?;
    let mut body = shown(&rotated);
    body["client_secret"] = json!((!dry_run).then(|| secret.reveal()));
    body["old_valid_until"] = json!(now.plus(ROTATION_OVERLAP));
    let id = rotated.body.client_id;
    let answer = Answer::ok(&body)?.uncached().about(id);
    forward::name_written(&r, answer, kind::CREDENTIAL, &id.to_string())
}

/// Rotates the shared credential for a caller who holds these scopes, as it is by now.
pub(super) fn rotate_own(
    tx: &Tx<'_>,
    author: &Author,
    held: &ScopeSet,
    secret: &Secret,
    by: Option<ClientId>,
    now: UnixTime,
) -> Result<Credential, Refused> {
    let current = find_shared(tx)?;
    check_covers(held, &current)?;
    if current.issuer != author.peer_id {
        let text = format!("the credential that the cluster shares has become another one, of {}", current.issuer);
        return Err(Refused::new(Code::Conflict, text).with_hint("nothing was rotated; do it again to rotate that one"));
    }
    Ok(membership::rotate_credential(tx, author, &current.body, secret, by, now)?)
}

fn check_covers(held: &ScopeSet, shared: &Credential) -> Result<(), Refused> {
    let scopes = &shared.body.scopes;
    if held.covers(scopes) { Ok(()) } else { Err(more_than_held(scopes, held)) }
}
