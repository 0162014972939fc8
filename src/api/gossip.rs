//! What agents say to each other: handshake and gossip (cluster.md §4, §6). The node understands the bodies.

use super::{
    admission::Request,
    answer::{Answer, Outcome, unauthorized},
    caller::Caller,
};
use crate::wire::gossip::Op;

pub(super) async fn handshake_init(r: Request) -> Outcome {
    Answer::ok(&r.node().handshake_init(r.source, &r.body).await?)
}

pub(super) async fn handshake_finish(r: Request) -> Outcome {
    Answer::ok(&r.node().handshake_finish(r.source, &r.body).await?)
}

pub(super) async fn heartbeat(r: Request) -> Outcome {
    gossip(r, Op::Heartbeat).await
}

pub(super) async fn reconcile(r: Request) -> Outcome {
    gossip(r, Op::Reconcile).await
}

pub(super) async fn push(r: Request) -> Outcome {
    gossip(r, Op::Push).await
}

async fn gossip(r: Request, op: Op) -> Outcome {
    let Caller::Peer(from) = r.caller else { return Err(unauthorized("gossip is between peers")) };
    Ok(Answer::encoded(r.node().gossip_message(from, op, &r.body).await?))
}
