//! Writes to objects of another peer: asked of their owner, in the name of the caller (cluster.md §5).

use super::{
    admission::{HEADER_LOCK, Request},
    answer::{Answer, Outcome},
    caller::Caller,
    events::HEADER_LAST_EVENT_ID,
};
use crate::{
    model::{PeerId, Refused},
    node::{Call, Node},
    wire::{
        record::RecordKey,
        request::{HEADER_WRITTEN, Written},
    },
};
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, IF_MATCH, RETRY_AFTER};
use std::time::Duration;
use tokio::time::timeout;

/// Below the deadline of our own answer.
const OWNER_TIMEOUT: Duration = Duration::from_secs(20);

/// How long an answer waits for gossip to bring the change here, so that its caller can read what it wrote.
const COPY_WAIT: Duration = Duration::from_secs(2);

/// The same request to another agent.
pub(super) fn call(r: &Request, answer_timeout: Duration) -> Call {
    let passed_on = [IF_MATCH, HEADER_LOCK, HEADER_LAST_EVENT_ID].into_iter().filter_map(|name| {
        let value = r.headers.get(&name)?.clone();
        Some((name, value))
    });
    Call {
        method: r.method.clone(),
        path: r.path_and_query.clone(),
        body: r.body.clone(),
        answer_timeout,
        passed_on: passed_on.collect(),
    }
}

/// The owner's answer; an error carries the id of our own answer. PEER_UNREACHABLE when it gives none; nothing has
/// changed then, unless `details.sent`.
pub(super) async fn to_owner(r: &Request, owner: PeerId) -> Outcome {
    to_owner_of(r, owner).await.map(|(answer, _)| answer)
}

/// The same, and what the write left there.
pub(super) async fn to_owner_of(r: &Request, owner: PeerId) -> Result<(Answer, Option<Written>), Refused> {
    let client = r.caller.on_behalf(false)?;
    let answer = r.node().call_peer(owner, &call(r, OWNER_TIMEOUT), Some(&client)).await?;
    let written = answer.headers.get(HEADER_WRITTEN).and_then(|value| Written::parse(value.to_str().ok()?));
    if let Some(written) = &written
        && timeout(COPY_WAIT, held_here(r.node(), owner, written)).await.is_err()
    {
        tracing::debug!(%owner, kind = written.kind, id = written.id, "answered before the change was here");
    }
    let answer = Answer::relayed(answer, |name: &HeaderName| *name == CONTENT_TYPE || *name == RETRY_AFTER)?;
    Ok((if answer.is_error() { answer.under(r.request_id) } else { answer }, written))
}

/// Names the own record that a write has left, for the agent that forwarded it.
pub(super) fn name_written(r: &Request, answer: Answer, kind: &str, id: &str) -> Outcome {
    let for_its_client = matches!(&r.caller, Caller::Forwarded { client, .. } if !client.proxied);
    if !for_its_client || r.query.flag("dry_run")?.unwrap_or(false) {
        return Ok(answer);
    }
    let key = RecordKey { kind: kind.into(), id: id.into(), owner: r.identity()?.peer_id };
    let Some(record) = r.node().store().read(|view| view.record(&key))? else { return Ok(answer) };
    let written = Written { kind: key.kind, id: key.id, version: record.version };
    let value = HeaderValue::try_from(written.header()).map_err(Refused::internal)?;
    Ok(answer.with(HeaderName::from_static(HEADER_WRITTEN), value))
}

/// Returns once what `owner` has written, or what it wrote over it, is held here.
pub(super) async fn held_here(node: &Node, owner: PeerId, written: &Written) -> Result<(), Refused> {
    let key = RecordKey { kind: written.kind.clone(), id: written.id.clone(), owner };
    let mut revision = node.store().revision();
    loop {
        revision.borrow_and_update();
        let held = node.store().read(|view| view.record(&key))?;
        if held.is_some_and(|record| record.version >= written.version) || revision.changed().await.is_err() {
            return Ok(());
        }
    }
}
