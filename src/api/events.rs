//! `GET /v1/events` (api.md §8): what happens, as server-sent events.

use super::{
    Api,
    admission::{self, Request},
    answer::{Answer, Outcome, clip, invalid},
    caller::Caller,
    fields::suggestion,
};
use crate::{
    license::EndpointGroup,
    model::{Code, Refused},
    node::{EVENT_TYPES, Event},
};
use bytes::Bytes;
use hyper::header::{CACHE_CONTROL, HeaderName, HeaderValue};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::{Instant, sleep_until, timeout},
};

pub(super) const HEADER_LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Open at one time.
pub(super) const STREAMS_MAX: usize = 64;
/// A stream without events shows that it lives.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// That of a token.
const LIFETIME: Duration = Duration::from_secs(3600);
/// A listener that takes nothing for so long is gone.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
const CHUNKS_MAX: usize = 16;

/// Where a stream begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct From {
    /// The last event that its listener has.
    number: u64,
    /// The listener has missed events that are not kept.
    is_torn: bool,
}

/// Which types a listener wants; none: all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Wanted(Vec<String>);

impl Wanted {
    /// Types, or beginnings as `peer.*`, between commas.
    fn read(text: &str) -> Result<Self, Refused> {
        let patterns: Vec<String> = text.split(',').map(str::to_owned).collect();
        let known = |p: &&String| !EVENT_TYPES.iter().any(|kind| matches(p, kind));
        match patterns.iter().find(known) {
            Some(unknown) => {
                let refused = invalid(format!("parameter `type`: there are no events `{}`", clip(unknown)));
                Err(suggestion(refused, unknown, &EVENT_TYPES))
            }
            None => Ok(Self(patterns)),
        }
    }

    fn takes(&self, event: &Event) -> bool {
        self.0.is_empty() || self.0.iter().any(|pattern| matches(pattern, event.kind))
    }
}

fn matches(pattern: &str, kind: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => kind.starts_with(prefix) && (prefix.is_empty() || prefix.ends_with('.')),
        None => pattern == kind,
    }
}

pub(super) async fn listen(r: Request) -> Outcome {
    r.query.only(&["type", "since"])?;
    let wanted = r.query.get("type").map(Wanted::read).transpose()?.unwrap_or_default();
    let last = r.headers.get(&HEADER_LAST_EVENT_ID).map(|v| v.to_str().unwrap_or(""));
    let from = begin(&r.api, last.or(r.query.get("since")))?;
    let place = r.api.streams.clone().try_acquire_owned().map_err(|_| {
        Refused::new(Code::RateLimited, format!("{STREAMS_MAX} streams of events are open"))
            .with_details(serde_json::json!({ super::answer::RETRY_AFTER_S: 5 }))
    })?;
    let (chunks, received) = mpsc::channel(CHUNKS_MAX);
    let listener = Listener { api: r.api.clone(), caller: r.caller.clone(), wanted, chunks, _place: place };
    tokio::spawn(listener.run(from));
    let answer = Answer::stream("text/event-stream", received);
    Ok(answer.with(CACHE_CONTROL, HeaderValue::from_static("no-store")))
}

/// `last`: the id of the last event that the listener has.
fn begin(api: &Api, last: Option<&str>) -> Result<From, Refused> {
    let newest = *api.node.events().newest().borrow();
    let Some(last) = last.map(str::trim) else { return Ok(From { number: newest, is_torn: false }) };
    if last == "0" {
        return Ok(From { number: 0, is_torn: false });
    }
    let parsed = last.split_once('-').and_then(|(start, number)| Some((start, number.parse::<u64>().ok()?)));
    let Some((start, number)) = parsed else {
        return Err(invalid(format!("`{}` is not the id of an event", clip(last))));
    };
    let known = start == api.node.start_id() && number <= newest && !api.node.events().after(number).is_torn;
    Ok(if known { From { number, is_torn: false } } else { From { number: 0, is_torn: true } })
}

struct Listener {
    api: Arc<Api>,
    caller: Caller,
    wanted: Wanted,
    chunks: mpsc::Sender<Bytes>,
    _place: OwnedSemaphorePermit,
}

impl Listener {
    async fn run(self, from: From) {
        let node = self.api.node.clone();
        let mut newest = node.events().newest();
        let mut revision = node.store().revision();
        let mut entitlement = node.entitlement_watch();
        let ends = Instant::now() + LIFETIME;
        let mut told = from.number;
        let opening = if from.is_torn { "event: events.lost\ndata: {\"type\":\"events.lost\"}\n\n" } else { ":\n\n" };
        if !self.send(opening.to_owned()).await {
            return;
        }
        loop {
            newest.borrow_and_update();
            let backlog = node.events().after(told);
            for event in &backlog.events {
                told = event.number;
                if self.wanted.takes(event) && !self.send(frame(node.start_id(), event)).await {
                    return;
                }
            }
            if self.api.stopping.is_cancelled() || !self.may_go_on() {
                return;
            }
            let quiet = Instant::now() + KEEPALIVE;
            tokio::select! {
                biased;
                () = self.chunks.closed() => return,
                () = self.api.stopping.cancelled() => {}
                _ = newest.changed() => {}
                _ = revision.changed() => {}
                _ = entitlement.changed() => {}
                () = sleep_until(ends) => return,
                () = sleep_until(quiet) => if !self.send(":\n\n".to_owned()).await {
                    return;
                },
            }
        }
    }

    /// Whether credential and license still permit what they did when the stream was opened.
    fn may_go_on(&self) -> bool {
        let licensed =
            self.api.node.entitlement().is_some_and(|entitlement| {
                entitlement.check(EndpointGroup::Read, self.caller == Caller::Recovery).is_ok()
            });
        let proven = self
            .caller
            .client_id()
            .is_none_or(|client| admission::check_credential(&self.api, client, &self.caller.scopes()).is_ok());
        licensed && proven
    }

    async fn send(&self, text: String) -> bool {
        match timeout(SEND_TIMEOUT, self.chunks.send(text.into())).await {
            Ok(sent) => sent.is_ok(),
            Err(_) => {
                super::lock(&self.api.counts).event_dropped();
                false
            }
        }
    }
}

fn frame(start: &str, event: &Event) -> String {
    let id = format!("{start}-{}", event.number);
    format!("id: {id}\nevent: {}\ndata: {}\n\n", event.kind, event.shown(&id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_chosen_by_name_or_family() {
        for (text, kind, taken) in [
            ("peer.*", "peer.added", true),
            ("peer.*", "service.created", false),
            ("*", "service.created", true),
            ("service.created,peer.*", "peer.removed", true),
            ("peer.added", "peer.removed", false),
        ] {
            let wanted = Wanted::read(text).unwrap();
            assert_eq!(wanted.0.iter().any(|p| matches(p, kind)), taken, "{text} {kind}");
        }
        for bad in ["", "peer", "peer.", "pee*", "peer.gone", "peer.*,x", "**"] {
            assert!(Wanted::read(bad).is_err(), "{bad}");
        }
        let typo = Wanted::read("peer.aded").unwrap_err();
        assert!(typo.text.contains("did you mean `peer.added`"), "{}", typo.text);
    }
}
