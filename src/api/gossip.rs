//! What agents say to each other: handshake and gossip (cluster.md §4, §6). The node understands the bodies.

use super::{
    admission::Request,
    answer::{Answer, Outcome, unauthorized},
    caller::Caller,
};
use crate::node::GossipVerb;

pub(super) async fn handshake_init(r: Request) -> Outcome {
    Answer::ok(&r.node().handshake_init(r.source, &r.body).await?)
}

pub(super) async fn handshake_finish(r: Request) -> Outcome {
    Answer::ok(&r.node().handshake_finish(r.source, &r.body).await?)
}

pub(super) async fn heartbeat(r: Request) -> Outcome {
    gossip(r, GossipVerb::Heartbeat).await
}

pub(super) async fn reconcile(r: Request) -> Outcome {
    gossip(r, GossipVerb::Reconcile).await
}

pub(super) async fn push(r: Request) -> Outcome {
    gossip(r, GossipVerb::Push).await
}

async fn gossip(r: Request, verb: GossipVerb) -> Outcome {
    let Caller::Peer(from) = r.caller else { return Err(unauthorized("gossip is between peers")) };
    Answer::ok(&r.node().gossip(from, verb, &r.body).await?)
}
