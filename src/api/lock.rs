//! The cluster lock (api.md §8, cluster.md §9), and the question that peers ask each other before one of them holds it.

use super::{
    admission::{HEADER_LOCK, Request, missing_scope},
    answer::{Answer, Outcome, invalid, unauthorized},
    caller::Caller,
    fields::Fields,
    forward,
};
use crate::{
    model::{Code, Refused, Scope, Secret},
    node::{LockView, LockWish},
    wire::{
        gossip::Digest,
        lock::{LEASE_ID, PURPOSE_MAX_CHARS, TTL_DEFAULT_S, TTL_MAX_S, TTL_MIN_S, is_purpose},
        record::kind,
    },
};
use hyper::HeaderMap;
use serde_json::{Value, json};
use std::time::Duration;

/// The token that a request carries, if any.
pub(super) fn token_of(headers: &HeaderMap) -> Result<Option<Secret>, Refused> {
    let Some(value) = headers.get(HEADER_LOCK) else { return Ok(None) };
    let text = value.to_str().map_err(|_| invalid("the header X-Arctic-Lock is not text"))?;
    Ok(Some(Secret::from_input(text.trim())))
}

/// The lock for an answer; the token only for its holder.
pub(super) fn shown(view: &LockView, token: Option<&Secret>) -> Value {
    let lease = &view.lease;
    let mut shown = json!({
        "holder_peer": lease.holder_peer,
        "holder_name": view.holder_name,
        "client_id": lease.client_id,
        "purpose": lease.purpose,
        "acquired_at": lease.acquired_at,
        "ttl_s": lease.ttl_s,
        "expires_at": view.expires_at,
    });
    if let Some(token) = token {
        shown["token"] = json!(token.reveal());
    }
    shown
}

pub(super) async fn get(r: Request) -> Outcome {
    r.query.only(&[])?;
    let lock = r.node().lock_view()?.map(|view| shown(&view, None));
    Answer::ok(&json!({ "lock": lock }))
}

pub(super) async fn take(r: Request) -> Outcome {
    let dry_run = r.dry_run()?;
    let fields = Fields::parse(&r.body)?.only(&["purpose", "ttl_s", "token"])?;
    let ttl_s = match fields.integer("ttl_s", TTL_MAX_S.into())?.map(u32::try_from).transpose() {
        Ok(Some(ttl)) if ttl < TTL_MIN_S => {
            return Err(fields.wrong("ttl_s", &format!("a number of seconds from {TTL_MIN_S} to {TTL_MAX_S}")));
        }
        Ok(ttl) => ttl,
        Err(e) => return Err(Refused::internal(e)),
    };
    if let Some(token) = fields.text("token")? {
        return renew(&r, &Secret::from_input(token), ttl_s, dry_run).await;
    }
    let purpose = fields.required_text("purpose")?;
    if !is_purpose(purpose) {
        return Err(fields.wrong("purpose", &format!("a text of 1 to {PURPOSE_MAX_CHARS} characters")));
    }
    let wish = LockWish {
        client_id: r.caller.client_id(),
        purpose: purpose.to_owned(),
        ttl_s: ttl_s.unwrap_or(TTL_DEFAULT_S),
    };
    if dry_run {
        return Answer::created(&json!({ "lock": would_be(&r, &wish)? }));
    }
    let (view, token) = r.node().take_lock(wish).await?;
    Ok(Answer::created(&json!({ "lock": shown(&view, Some(&token)) }))?.uncached())
}

/// The lock as this agent would hold it, if nobody else does.
fn would_be(r: &Request, wish: &LockWish) -> Result<Value, Refused> {
    r.node().check_lock(None)?;
    let own_id = r.identity()?.peer_id;
    let own = r.node().store().read(|v| v.peer(own_id))?;
    let now = r.now();
    Ok(json!({
        "holder_peer": own_id,
        "holder_name": own.map(|row| row.display_name()),
        "client_id": wish.client_id,
        "purpose": wish.purpose,
        "acquired_at": now,
        "ttl_s": wish.ttl_s,
        "expires_at": now.plus(Duration::from_secs(wish.ttl_s.into())),
        "token": null,
    }))
}

/// By the agent that took the lock: its record is renewed.
async fn renew(r: &Request, token: &Secret, ttl_s: Option<u32>, dry_run: bool) -> Outcome {
    let own_id = r.identity()?.peer_id;
    let standing = r.node().lock_view()?.filter(|view| view.lease.token == Digest(token.digest()));
    if dry_run && let Some(view) = &standing {
        return Answer::ok(&json!({ "lock": shown(view, None) }));
    }
    if let Some(holder) = standing.map(|view| view.lease.holder_peer).filter(|holder| *holder != own_id) {
        return forward::to_owner(r, holder).await;
    }
    let view = r.node().renew_lock(token, ttl_s).await?;
    let answer = Answer::ok(&json!({ "lock": shown(&view, Some(token)) }))?.uncached();
    forward::name_written(r, answer, kind::LOCK, LEASE_ID)
}

pub(super) async fn clear(r: Request) -> Outcome {
    r.query.only(&["force", "dry_run"])?;
    let (force, dry_run) = (r.query.flag("force")?.unwrap_or(false), r.query.flag("dry_run")?.unwrap_or(false));
    if force && !r.caller.scopes().grants(Scope::Admin) {
        return Err(missing_scope(Scope::Admin));
    }
    let Some(view) = r.node().lock_view()? else { return Answer::ok(&json!({ "cleared": null })) };
    let own_id = r.identity()?.peer_id;
    if !force {
        if !is_holder(&r, &view)? {
            let text = format!("the cluster lock is held by {} for `{}`", view.holder_name, view.lease.purpose);
            return Err(Refused::new(Code::ClusterLocked, text)
                .with_details(shown(&view, None))
                .with_hint("only its holder releases it; to end it anyway: arctic cluster lock clear --force"));
        }
        if view.lease.holder_peer != own_id {
            return forward::to_owner(&r, view.lease.holder_peer).await;
        }
    }
    if !dry_run {
        if force {
            let (caller, source) = (&r.caller, r.source);
            tracing::warn!(%caller, %source, holder = %view.lease.holder_peer, purpose = view.lease.purpose, "cluster lock cleared by force");
        }
        r.node().clear_lock(&view).await?;
        r.node().tell_cleared(&view).await?;
    }
    let answer = Answer::ok(&json!({ "cleared": shown(&view, None) }))?;
    forward::name_written(&r, answer, kind::LOCK, LEASE_ID)
}

/// The client that took the lock, or whoever has its token.
fn is_holder(r: &Request, view: &LockView) -> Result<bool, Refused> {
    let by_token = token_of(&r.headers)?.is_some_and(|token| token.matches(&view.lease.token.0));
    let same_client = match (r.caller.client_id(), view.lease.client_id) {
        (Some(caller), Some(holder)) => caller == holder,
        (None, None) => view.lease.holder_peer == r.identity()?.peer_id,
        _ => false,
    };
    Ok(by_token || same_client)
}

/// `POST /v1/gossip/lock`.
pub(super) async fn question(r: Request) -> Outcome {
    let Caller::Peer(from) = r.caller else { return Err(unauthorized("the question for the lock is between peers")) };
    Answer::ok(&r.node().lock_message(from, &r.body)?)
}
