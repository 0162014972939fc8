//! Who changed what (api.md §8): the last entries in memory, all of them in the log.

use super::{
    Api,
    admission::Request,
    answer::{Answer, Outcome, clip, invalid},
    caller::Caller,
    endpoints::Endpoint,
};
use crate::model::{Refused, RequestId, UnixTime};
use serde::Serialize;
use serde_json::json;
use std::{collections::VecDeque, net::IpAddr};

/// Entries of the last requests.
const ENTRIES_MAX: usize = 10_000;
const SHOWN_DEFAULT: usize = 1000;

/// One write that somebody asked for.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Entry {
    time: UnixTime,
    /// Client id, `recovery`, or `anonymous` for the first bootstrap.
    actor: String,
    source: IpAddr,
    verb: &'static str,
    object: String,
    /// `ok`, or the code of the refusal.
    result: String,
    request_id: RequestId,
}

#[derive(Debug, Default)]
pub(super) struct AuditLog(VecDeque<Entry>);

impl AuditLog {
    fn record(&mut self, entry: Entry) {
        if self.0.len() >= ENTRIES_MAX {
            self.0.pop_front();
        }
        self.0.push_back(entry);
    }

    fn newest(&self, count: usize) -> Vec<Entry> {
        self.0.iter().rev().take(count).cloned().collect()
    }
}

/// What is known of a request before it is served.
pub(super) struct Asked {
    pub(super) source: IpAddr,
    pub(super) request_id: RequestId,
    /// Without the query.
    pub(super) path: String,
    pub(super) is_dry_run: bool,
}

/// Keeps what became of a request, if it was to change something.
pub(super) fn note(api: &Api, endpoint: &Endpoint, asked: Asked, caller: &Caller, outcome: &Outcome) {
    let first = endpoint.is_first() && outcome.is_ok();
    if asked.is_dry_run || !(first || (endpoint.is_write() && caller.is_authenticated())) {
        return;
    }
    let made = outcome.as_ref().ok().and_then(Answer::object);
    let path = clip_path(&asked.path);
    let result = match outcome {
        Ok(answer) => answer.refused_code().unwrap_or_else(|| "ok".to_owned()),
        Err(Refused { code, .. }) => code.text().to_owned(),
    };
    let entry = Entry {
        time: api.node.env().clock.unix(),
        actor: caller.to_string(),
        source: asked.source,
        verb: endpoint.operation().map_or("", |operation| operation.id),
        object: made.map_or_else(|| path.clone(), |id| format!("{path}/{id}")),
        result,
        request_id: asked.request_id,
    };
    tracing::info!(
        actor = entry.actor, source = %entry.source, verb = entry.verb, object = entry.object, result = entry.result,
        request_id = %entry.request_id, "audit"
    );
    super::lock(&api.audit).record(entry);
}

/// As it may be kept: bounded, without control characters.
fn clip_path(path: &str) -> String {
    const PATH_MAX_CHARS: usize = 256;
    path.chars().filter(|c| !c.is_control()).take(PATH_MAX_CHARS).collect()
}

pub(super) async fn list(r: Request) -> Outcome {
    r.query.only(&["limit"])?;
    let limit = r.query.get("limit").map_or(Ok(SHOWN_DEFAULT), str::parse);
    let limit = limit.ok().filter(|n| (1..=ENTRIES_MAX).contains(n));
    let limit = limit.ok_or_else(|| {
        let text = clip(r.query.get("limit").unwrap_or(""));
        invalid(format!("parameter `limit` is not a number from 1 to {ENTRIES_MAX}: `{text}`"))
    })?;
    Answer::ok(&json!({ "entries": super::lock(&r.api.audit).newest(limit) }))
}
