//! Writes to objects of another peer: asked of their owner, in the name of the caller (cluster.md §5).

use super::{
    admission::Request,
    answer::{Answer, Outcome},
};
use crate::{model::PeerId, node::Call};
use hyper::header::IF_MATCH;
use std::time::Duration;

/// Below the deadline of our own answer.
const OWNER_TIMEOUT: Duration = Duration::from_secs(20);

/// The owner's answer, unchanged. PEER_UNREACHABLE when it gives none; nothing has changed then.
pub(super) async fn to_owner(r: &Request, owner: PeerId) -> Outcome {
    let client = r.caller.on_behalf()?;
    let call = Call {
        method: r.method.clone(),
        path: r.path_and_query.clone(),
        body: r.body.clone(),
        answer_timeout: OWNER_TIMEOUT,
        if_match: r.headers.get(IF_MATCH).cloned(),
    };
    let answer = r.node().call_peer(owner, &call, Some(&client)).await?;
    Answer::relayed(answer.status, answer.body)
}
