//! `/v1/cluster/pending-confirm` (api.md §8): a change that undoes itself unless it is confirmed.

use super::{
    admission::Request,
    answer::{Answer, Outcome, invalid},
    caller::Caller,
    fields::Fields,
    transaction,
};
use crate::{
    membership::{self, PendingConfirm},
    model::{Code, PeerId, Refused},
    node::{CONFIRM_MAX, Call},
    wire::request::OnBehalf,
};
use hyper::Method;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::task::JoinSet;

const PATH: &str = "/v1/cluster/pending-confirm";
const WITHIN_MIN_S: u64 = 5;
const SERVICES_MAX: usize = 1000;
const ID_MAX_BYTES: usize = 64;

fn shown(owner: PeerId, pending: &PendingConfirm) -> Value {
    json!({
        "id": pending.id,
        "peer_id": owner,
        "client_id": pending.client_id,
        "services": pending.kept.iter().map(|kept| &kept.named).collect::<Vec<_>>(),
        "created_at": pending.created_at,
        "deadline": pending.deadline,
    })
}

pub(super) async fn get(r: Request) -> Outcome {
    r.query.only(&["local"])?;
    let (pending, unreached) = everywhere(&r).await?;
    Answer::ok(&json!({"pending": pending, "unreached": unreached}))
}

/// What is pending here and, unless the caller asks for this agent alone, at the other peers; and those that gave no
/// answer.
async fn everywhere(r: &Request) -> Result<(Vec<Value>, Vec<PeerId>), Refused> {
    let own_id = r.identity()?.peer_id;
    let here = r.node().store().read(|v| v.pending_confirm())?;
    let mut pending: Vec<Value> = here.iter().map(|here| shown(own_id, here)).collect();
    let mut unreached = Vec::new();
    if !is_local(r)? {
        let (answers, silent) = ask_others(r, Method::GET, "").await?;
        pending.extend(answers.iter().filter_map(|answer| answer["pending"].as_array()).flatten().cloned());
        unreached = silent;
    }
    Ok((pending, unreached))
}

/// A peer that asks for its client asks for this agent alone.
fn is_local(r: &Request) -> Result<bool, Refused> {
    let for_its_client = matches!(&r.caller, Caller::Forwarded { client, .. } if !client.proxied);
    Ok(for_its_client || r.query.flag("local")?.unwrap_or(false))
}

/// The same of every other trusted peer; those that gave no answer. With `local`, so that it goes no further.
async fn ask_others(r: &Request, method: Method, more: &str) -> Result<(Vec<Value>, Vec<PeerId>), Refused> {
    let own_id = r.identity()?.peer_id;
    let peers = r.node().store().read(|v| v.trusted_peers())?;
    let others = peers.into_iter().map(|p| p.peer_id).filter(|id| *id != own_id);
    let Some(client_id) = r.caller.client_id() else { return Ok((Vec::new(), others.collect())) };
    let client = OnBehalf { client_id, scopes: r.caller.scopes(), proxied: false };
    let mut calls = JoinSet::new();
    for peer in others {
        let call = Call { method: method.clone(), ..Call::get(format!("{PATH}?local=true{more}")) };
        let (node, client) = (r.node().clone(), client.clone());
        calls.spawn(async move { (peer, node.call_peer(peer, &call, Some(&client)).await) });
    }
    let (mut answers, mut silent) = (Vec::new(), Vec::new());
    for (peer, answer) in calls.join_all().await {
        let good = answer.ok().filter(|answer| answer.status == 200);
        match good.and_then(|answer| serde_json::from_slice(&answer.body).ok()) {
            Some(body) => answers.push(body),
            None => silent.push(peer),
        }
    }
    silent.sort();
    Ok((answers, silent))
}

pub(super) async fn begin(r: Request) -> Outcome {
    let dry_run = r.dry_run()?;
    let fields = Fields::parse(&r.body)?.only(&["within_s", "services", "id"])?;
    let within_s = fields.integer("within_s", CONFIRM_MAX.as_secs())?.ok_or_else(|| fields.missing("within_s"))?;
    if within_s < WITHIN_MIN_S {
        let range = format!("a number of seconds from {WITHIN_MIN_S} to {}", CONFIRM_MAX.as_secs());
        return Err(fields.wrong("within_s", &range));
    }
    let services = fields.texts("services", SERVICES_MAX)?.ok_or_else(|| fields.missing("services"))?;
    let services: Vec<String> = services.into_iter().map(str::to_owned).collect();
    if services.is_empty() || services.iter().any(|s| s.is_empty() || s.len() > ID_MAX_BYTES) {
        return Err(fields.wrong("services", "a list of ids or names of services"));
    }
    let id = fields.text("id")?.map(str::to_owned);
    if id.as_ref().is_some_and(|id| id.is_empty() || id.len() > ID_MAX_BYTES) {
        return Err(fields.wrong("id", "the id of the confirm that other owners gave"));
    }
    if id.is_none()
        && let Some(other) = everywhere(&r).await?.0.first()
    {
        return Err(already_pending(other));
    }
    let (author, now, client_id) = (r.identity()?, r.now(), r.caller.client_id());
    let own_id = author.peer_id;
    let id = id.unwrap_or_else(|| format!("cfm_{:032x}", r.api.fork_rng().u128()));
    let deadline = now.plus(Duration::from_secs(within_s));
    let pending = transaction::write(r.node(), dry_run, move |tx| {
        let kept = membership::keep_services(tx, &author, &services)?;
        let mut pending = match tx.pending_confirm()? {
            Some(other) if other.id != id => return Err(already_pending(&shown(own_id, &other))),
            Some(same) => same,
            None => PendingConfirm { id, client_id, created_at: now, deadline, kept: Vec::new() },
        };
        pending.deadline = deadline;
        pending.add(kept);
        tx.set_pending_confirm(Some(&pending))?;
        Ok(pending)
    });
    let pending = pending.await?;
    Ok(Answer::created(&json!({ "pending": shown(own_id, &pending) }))?.about(&pending.id))
}

fn already_pending(other: &Value) -> Refused {
    let (id, peer) = (other["id"].as_str().unwrap_or(""), other["peer_id"].as_str().unwrap_or(""));
    let text = format!("another change waits for its confirmation: {id} at {peer}");
    Refused::new(Code::Conflict, text)
        .with_details(other.clone())
        .with_hint("confirm it (arctic compose confirm), or wait until it is undone")
}

/// `DELETE`: what was changed stays.
pub(super) async fn confirm(r: Request) -> Outcome {
    r.query.only(&["dry_run", "local", "id"])?;
    let dry_run = r.query.flag("dry_run")?.unwrap_or(false);
    let wanted = r.query.get("id").map(str::to_owned);
    let plain = |id: &String| id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if wanted.as_ref().is_some_and(|id| id.len() > ID_MAX_BYTES || !plain(id)) {
        return Err(invalid("parameter `id` is not the id of a pending confirm"));
    }
    let more = wanted.as_ref().map_or(String::new(), |id| format!("&id={id}"));
    let (own_id, wanted) = (r.identity()?.peer_id, wanted);
    let here = transaction::write(r.node(), dry_run, move |tx| {
        let pending = tx.pending_confirm()?.filter(|p| wanted.as_ref().is_none_or(|id| *id == p.id));
        if pending.is_some() {
            tx.set_pending_confirm(None)?;
        }
        Ok(pending)
    });
    let mut confirmed: Vec<Value> = here.await?.iter().map(|pending| shown(own_id, pending)).collect();
    let mut unreached = Vec::new();
    if !is_local(&r)? {
        let dry = if dry_run { "&dry_run=true" } else { "" };
        let (answers, silent) = ask_others(&r, Method::DELETE, &format!("{more}{dry}")).await?;
        confirmed.extend(answers.iter().filter_map(|answer| answer["confirmed"].as_array()).flatten().cloned());
        unreached = silent;
    }
    Answer::ok(&json!({"confirmed": confirmed, "unreached": unreached}))
}
