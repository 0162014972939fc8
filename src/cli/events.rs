//! `arctic events` and `arctic audit` (api.md §8).

use super::{
    args::{AuditCommand, EventsArgs, Format, Globals},
    client::Call,
    errors::{CliError, Exit},
    output::{self, Column, Noun, View, cell_plain, cell_time},
    session::{Session, list_of, print},
};
use crate::{
    env::{Clock, SystemClock},
    model::UnixTime,
};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::Value;
use std::time::Duration;
use tokio::time::timeout;

/// What is kept comes at once; after this silence it was all.
const BACKLOG_SILENCE: Duration = Duration::from_millis(500);
/// One event is far smaller.
const LINE_MAX_BYTES: usize = 1 << 20;

const AUDIT: Noun = Noun {
    keys: &["time", "actor", "source", "verb", "object", "result", "request_id"],
    columns: &[
        Column::new("TIME", "time", cell_time),
        Column::new("ACTOR", "actor", cell_plain),
        Column::new("SOURCE", "source", cell_plain),
        Column::new("VERB", "verb", cell_plain),
        Column::new("OBJECT", "object", cell_plain),
        Column::new("RESULT", "result", cell_plain),
        Column::wide("REQUEST", "request_id", cell_plain),
    ],
};

const EVENT: Noun = Noun {
    keys: &["id", "at", "type"],
    columns: &[
        Column::new("AT", "at", cell_time),
        Column::new("TYPE", "type", cell_plain),
        Column::new("ABOUT", "about", cell_about),
        Column::wide("ID", "id", cell_plain),
    ],
};

/// What is not in a column of its own.
fn cell_about(event: &Value, _: &'static str, _: &View) -> String {
    let Some(object) = event.as_object() else { return String::new() };
    let fields = object.iter().filter(|(key, v)| !["id", "at", "type"].contains(&key.as_str()) && !v.is_null());
    fields.map(|(key, value)| format!("{key}={}", output::plain(value))).collect::<Vec<_>>().join(" ")
}

pub async fn audit(globals: &Globals, command: &AuditCommand) -> Result<(), CliError> {
    let AuditCommand::List { limit } = command;
    let session = Session::open(globals).await?;
    let call = Call::get("/v1/audit").with_query(&[("limit", limit.to_string())]);
    let entries = list_of(session.call(call).await?, "entries");
    session.print_list(&AUDIT, entries, "No changes since the agent was started.")
}

pub async fn events(globals: &Globals, args: &EventsArgs) -> Result<(), CliError> {
    let session = Session::open(globals).await?;
    let from = match args.since {
        Some(since) => {
            let since_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
            Some(UnixTime::from_ms(SystemClock::new().unix().as_ms().saturating_sub(since_ms)))
        }
        None => None,
    };
    let wants_past = args.since.is_some() || !args.follow;
    if !args.follow {
        let mut stream = Stream::open(&session, args, wants_past.then(|| "0".to_owned())).await?;
        let mut all = Vec::new();
        while let Ok(Some(event)) = timeout(BACKLOG_SILENCE, stream.next()).await.unwrap_or(Ok(None)) {
            all.extend(Some(event).filter(|e| is_since(e, from)));
        }
        return session.print_list(&EVENT, all, "No events are kept.");
    }
    follow(&session, args, from, wants_past).await
}

/// Until the operator has enough: a stream that ends is taken up again where it was.
async fn follow(session: &Session, args: &EventsArgs, from: Option<UnixTime>, past: bool) -> Result<(), CliError> {
    let mut last = past.then(|| "0".to_owned());
    loop {
        let mut stream = Stream::open(session, args, last.clone()).await?;
        let mut any = false;
        while let Some(event) = stream.next().await? {
            any = true;
            if let Some(id) = event["id"].as_str().filter(|id| !id.is_empty()) {
                last = Some(id.to_owned());
            }
            if is_since(&event, from) {
                show(session, event)?;
            }
        }
        if !any {
            let text = "the agent ended the stream of events";
            return Err(CliError::new(Exit::Unreachable, "AGENT_UNREACHABLE", text));
        }
    }
}

fn is_since(event: &Value, from: Option<UnixTime>) -> bool {
    let at = event["at"].as_str().and_then(|t| UnixTime::parse_rfc3339(t).ok());
    from.is_none_or(|from| at.is_none_or(|at| at >= from))
}

/// A stream has no end, so that objects are one a line also where one document was asked for.
fn show(session: &Session, event: Value) -> Result<(), CliError> {
    let line = match session.view.format {
        Format::Json | Format::Jsonl => format!("{event}\n"),
        _ => {
            let view = View { headers: false, ..session.view.clone() };
            output::render_list(&EVENT, vec![event], &view)?
        }
    };
    print(&line);
    Ok(())
}

/// Server-sent events, as far as this API uses them.
struct Stream {
    body: Incoming,
    buffer: Vec<u8>,
}

impl Stream {
    async fn open(session: &Session, args: &EventsArgs, last_id: Option<String>) -> Result<Stream, CliError> {
        let mut call = Call::get("/v1/events");
        if let Some(kind) = &args.kind {
            call = call.with_query(&[("type", kind.clone())]);
        }
        let body = session.client.stream(&call, last_id.as_deref()).await.map_err(|e| session.explain_guess(e))?;
        Ok(Stream { body, buffer: Vec::new() })
    }

    /// The data of the next event; none at the end of the stream.
    async fn next(&mut self) -> Result<Option<Value>, CliError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                let text = String::from_utf8_lossy(&line);
                if let Some(data) = text.trim_end().strip_prefix("data:")
                    && let Ok(event @ Value::Object(_)) = serde_json::from_str(data.trim_start())
                {
                    return Ok(Some(event));
                }
                continue;
            }
            if self.buffer.len() > LINE_MAX_BYTES {
                return Err(CliError::new(Exit::General, "INTERNAL", "the stream has a line without end"));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => self.buffer.extend(frame.data_ref().into_iter().flatten()),
                Some(Err(_)) | None => return Ok(None),
            }
        }
    }
}
