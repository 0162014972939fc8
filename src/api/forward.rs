//! Writes to objects of another peer: asked of their owner, in the name of the caller (cluster.md §5).

use super::{
    admission::{HEADER_LOCK, Request},
    answer::{Answer, Outcome},
};
use crate::{
    model::{PeerId, Refused},
    node::Call,
};
use hyper::header::{CONTENT_TYPE, HeaderName, IF_MATCH, RETRY_AFTER};
use std::time::Duration;
use tokio::time::timeout;

/// Below the deadline of our own answer.
const OWNER_TIMEOUT: Duration = Duration::from_secs(20);

/// How long an answer waits for gossip to bring the change here, so that its caller can read what it wrote.
const COPY_WAIT: Duration = Duration::from_secs(2);

/// The same request to another agent.
pub(super) fn call(r: &Request, answer_timeout: Duration) -> Call {
    let passed_on = [IF_MATCH, HEADER_LOCK].into_iter().filter_map(|name| {
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
/// changed then.
pub(super) async fn to_owner(r: &Request, owner: PeerId) -> Outcome {
    let before = r.node().store().read::<_, Refused>(|view| Ok(view.newest_version(owner)?))?;
    let client = r.caller.on_behalf(false)?;
    let answer = r.node().call_peer(owner, &call(r, OWNER_TIMEOUT), Some(&client)).await?;
    if (200..300).contains(&answer.status) && !r.query.flag("dry_run")?.unwrap_or(false) {
        drop(timeout(COPY_WAIT, newer_copy(r, owner, before)).await);
    }
    let answer = Answer::relayed(answer, |name: &HeaderName| *name == CONTENT_TYPE || *name == RETRY_AFTER)?;
    Ok(if answer.is_error() { answer.under(r.request_id) } else { answer })
}

/// Returns once a record of `owner` above `version` is held here.
async fn newer_copy(r: &Request, owner: PeerId, version: u64) -> Result<(), Refused> {
    let mut revision = r.node().store().revision();
    loop {
        revision.borrow_and_update();
        if r.node().store().read::<_, Refused>(|view| Ok(view.newest_version(owner)?))? > version {
            return Ok(());
        }
        if revision.changed().await.is_err() {
            return Ok(());
        }
    }
}
