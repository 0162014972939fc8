//! `?wait=applied` (api.md §2), and the question by which peers wait for each other.

use super::{
    admission::{Request, Wait},
    answer::{Answer, Outcome, invalid, unauthorized},
    caller::Caller,
};
use crate::{
    model::{PeerId, ServiceId},
    wire::applied::{AppliedReply, AppliedRequest, Unapplied},
};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::task::JoinSet;

/// What a write has left, for whoever waits until it is applied.
#[derive(Debug, Clone, Copy)]
pub(super) struct Left {
    pub(super) service: ServiceId,
    /// None: it is deleted.
    pub(super) version: Option<u64>,
    pub(super) source: PeerId,
    pub(super) target: PeerId,
}

/// The answer to a write, held back until both ends have applied what it left.
pub(super) async fn settled(r: &Request, answer: Answer, wait: Wait, left: Left) -> Outcome {
    let Some(within) = wait.within(&r.caller) else { return Ok(answer) };
    let own_id = r.identity()?.peer_id;
    let wait_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
    let wish = AppliedRequest { service: left.service, version: left.version, wait_ms };
    let names = r.node().store().read(|v| v.trusted_peers())?;
    let mut asked = JoinSet::new();
    for end in names.iter().filter(|p| [left.source, left.target].contains(&p.peer_id)) {
        let (node, peer, name) = (r.node().clone(), end.peer_id, end.display_name());
        asked.spawn(async move {
            let reply =
                if peer == own_id { node.applied_here(&wish).await } else { node.applied_at(peer, &wish).await };
            (peer, name, reply)
        });
    }
    let mut waiting_for: Vec<Value> = Vec::new();
    for (peer, name, reply) in asked.join_all().await {
        waiting_for.extend(shown(peer, &name, reply));
    }
    Ok(answer.with_fields(outcome(waiting_for)))
}

/// The same for a change of the view that this agent alone has.
pub(super) async fn settled_here(r: &Request, answer: Answer, wait: Wait) -> Outcome {
    let Some(within) = wait.within(&r.caller) else { return Ok(answer) };
    let own_id = r.identity()?.peer_id;
    let reply = r.node().applied_all_here(within).await;
    let row = r.node().store().read(|v| v.peer(own_id))?;
    let name = row.map_or_else(|| own_id.to_string(), |row| row.display_name());
    Ok(answer.with_fields(outcome(shown(own_id, &name, reply).collect())))
}

fn shown(peer: PeerId, name: &str, reply: AppliedReply) -> impl Iterator<Item = Value> {
    reply.waiting_for.into_iter().map(move |Unapplied { reconciler, status, reason, message }| {
        json!({
            "peer_id": peer,
            "peer_name": name,
            "reconciler": reconciler,
            "status": status,
            "reason": reason,
            "message": message,
        })
    })
}

fn outcome(waiting_for: Vec<Value>) -> Value {
    json!({"applied": waiting_for.is_empty(), "waiting_for": waiting_for})
}

impl Wait {
    /// How long to wait, if at all. Who forwards a write waits for itself.
    fn within(self, caller: &Caller) -> Option<Duration> {
        let for_its_client = matches!(caller, Caller::Forwarded { client, .. } if !client.proxied);
        self.0.filter(|_| !for_its_client)
    }
}

/// `POST /v1/gossip/applied`.
pub(super) async fn question(r: Request) -> Outcome {
    let Caller::Peer(_) = r.caller else { return Err(unauthorized("peers ask this of each other")) };
    let wish: AppliedRequest =
        serde_json::from_slice(&r.body).map_err(|e| invalid(format!("malformed question: {e}")))?;
    Answer::ok(&r.node().applied_here(&wish).await)
}
