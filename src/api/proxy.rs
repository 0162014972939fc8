//! First-peer proxying (api.md §2): a request that names another peer goes to that peer, once, and its answer comes back
//! as it is.

use super::{
    admission::{HEADER_TARGET_PEER, Request},
    answer::{Answer, Outcome, clip, invalid, not_found},
    forward,
};
use crate::{
    model::{Code, PeerId, Refused},
    node::MAYBE_DONE_HINT,
};
use hyper::{
    HeaderMap,
    header::{CONNECTION, CONTENT_LENGTH, DATE, HeaderName, HeaderValue, TRANSFER_ENCODING},
};
use serde_json::json;
use std::time::Duration;
use tokio::time::timeout;

pub(super) const HEADER_VIA: HeaderName = HeaderName::from_static("x-arctic-via");
/// Between the end of our patience with the target and the deadline of our own answer.
const MARGIN: Duration = Duration::from_secs(1);

/// The peer that a request is for, if it names one that is not `own_id`.
pub(super) fn target(headers: &HeaderMap, own_id: Option<PeerId>) -> Result<Option<PeerId>, Refused> {
    let mut values = headers.get_all(HEADER_TARGET_PEER).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let text = value.to_str().ok().filter(|_| values.next().is_none());
    let target = text.and_then(|t| t.trim().parse().ok()).ok_or_else(|| {
        invalid(format!("the header {HEADER_TARGET_PEER} is not one peer id: `{}`", clip(text.unwrap_or(""))))
    })?;
    Ok((Some(target) != own_id).then_some(target))
}

/// The target's answer, with `X-Arctic-Via`. `deadline`: of our own answer; `streams`: it is passed on as it comes.
pub(super) async fn to_target(r: &Request, target: PeerId, deadline: Duration, streams: bool) -> Outcome {
    let client = r.caller.on_behalf(true)?;
    let own_id = r.identity()?.peer_id;
    if r.node().store().read(|v| v.peer(target))?.is_none() {
        return Err(not_found(format!("peer `{target}` not found")).with_hint("arctic peers list"));
    }
    let patience = deadline.saturating_sub(MARGIN);
    let call = forward::call(r, patience);
    let via = HeaderValue::try_from(own_id.to_string()).map_err(Refused::internal)?;
    if streams {
        let (head, chunks) = r.node().open_stream(target, &call, &client).await?;
        return Ok(Answer::relayed_stream(head, chunks, is_end_to_end)?.with(HEADER_VIA, via));
    }
    let asked = r.node().call_peer(target, &call, Some(&client));
    let answer = timeout(patience, asked).await.map_err(|_| {
        let text = format!("peer {target} gave no answer within {} s", patience.as_secs());
        Refused::new(Code::PeerUnreachable, text).with_details(json!({ "sent": true })).with_hint(MAYBE_DONE_HINT)
    })??;
    Ok(Answer::relayed(answer, is_end_to_end)?.with(HEADER_VIA, via))
}

/// Whether a header speaks of the answer, not of the connection that it came by.
fn is_end_to_end(name: &HeaderName) -> bool {
    ![CONNECTION, TRANSFER_ENCODING, CONTENT_LENGTH, DATE].contains(name) && name.as_str() != "keep-alive"
}
