//! Answers and errors as HTTP (api.md §1).

use crate::{
    model::{Code, Refused, RequestId},
    node::PeerAnswer,
};
use axum::{body::Body, response::Response};
use bytes::Bytes;
use hyper::{
    StatusCode,
    body::Frame,
    header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE},
};
use serde::Serialize;
use serde_json::json;
use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::sync::mpsc;

/// The key in `details` that becomes the `Retry-After` header.
pub(super) const RETRY_AFTER_S: &str = "retry_after_s";

pub(super) type Outcome = Result<Answer, Refused>;

/// A successful answer.
#[derive(Debug)]
pub(super) struct Answer {
    status: StatusCode,
    headers: Vec<(HeaderName, HeaderValue)>,
    content: Content,
    /// The id of what a write has made, for the audit.
    object: Option<String>,
}

#[derive(Debug)]
enum Content {
    Whole(Bytes),
    /// As it comes.
    Stream(mpsc::Receiver<Bytes>),
}

impl Content {
    fn whole(&self) -> &[u8] {
        match self {
            Self::Whole(bytes) => bytes,
            Self::Stream(_) => &[],
        }
    }
}

/// The body of an answer that is sent as it comes, until its sender is gone.
struct Streamed(mpsc::Receiver<Bytes>);

impl hyper::body::Body for Streamed {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

impl Answer {
    pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Outcome {
        Ok(Self { status, ..Self::encoded(serde_json::to_vec(value).map_err(Refused::internal)?) })
    }
    pub(super) fn ok(value: &impl Serialize) -> Outcome {
        Self::json(StatusCode::OK, value)
    }
    pub(super) fn created(value: &impl Serialize) -> Outcome {
        Self::json(StatusCode::CREATED, value)
    }
    pub(super) fn no_content() -> Self {
        Self {
            status: StatusCode::NO_CONTENT,
            headers: Vec::new(),
            content: Content::Whole(Bytes::new()),
            object: None,
        }
    }
    /// 200 with JSON that is encoded already.
    pub(super) fn encoded(body: Vec<u8>) -> Self {
        let headers = vec![(CONTENT_TYPE, HeaderValue::from_static("application/json"))];
        Self { status: StatusCode::OK, headers, content: Content::Whole(body.into()), object: None }
    }
    /// 200 with another form than JSON.
    pub(super) fn of_type(media_type: &'static str, body: impl Into<Bytes>) -> Self {
        let headers = vec![(CONTENT_TYPE, HeaderValue::from_static(media_type))];
        Self { status: StatusCode::OK, headers, content: Content::Whole(body.into()), object: None }
    }
    /// 200 with a body that is sent as it comes.
    pub(super) fn stream(media_type: &'static str, chunks: mpsc::Receiver<Bytes>) -> Self {
        Self { content: Content::Stream(chunks), ..Self::of_type(media_type, Bytes::new()) }
    }
    /// The answer of another agent that is sent on as it comes.
    pub(super) fn relayed_stream(
        head: PeerAnswer,
        chunks: mpsc::Receiver<Bytes>,
        is_kept: impl Fn(&HeaderName) -> bool,
    ) -> Outcome {
        Ok(Self { content: Content::Stream(chunks), ..Self::relayed(head, is_kept)? })
    }
    /// The answer of another agent: its status and body, and those of its headers that `is_kept` names.
    pub(super) fn relayed(answer: PeerAnswer, is_kept: impl Fn(&HeaderName) -> bool) -> Outcome {
        let status = StatusCode::from_u16(answer.status).map_err(Refused::internal)?;
        let headers = answer.headers.iter().filter(|(name, _)| is_kept(name));
        Ok(Self {
            status,
            headers: headers.map(|(k, v)| (k.clone(), v.clone())).collect(),
            content: Content::Whole(answer.body),
            object: None,
        })
    }
    pub(super) fn is_error(&self) -> bool {
        self.status.is_client_error() || self.status.is_server_error()
    }
    /// An error of another agent under the id of our own answer.
    pub(super) fn under(mut self, request_id: RequestId) -> Self {
        if let Ok(serde_json::Value::Object(mut error)) = serde_json::from_slice(self.content.whole())
            && error.insert("request_id".into(), json!(request_id)).is_some()
        {
            self.content = Content::Whole(serde_json::Value::Object(error).to_string().into());
        }
        self
    }
    /// Names what was made.
    pub(super) fn about(self, id: impl ToString) -> Self {
        Self { object: Some(id.to_string()), ..self }
    }
    /// The code of an error that came from another agent.
    pub(super) fn refused_code(&self) -> Option<String> {
        let body = || serde_json::from_slice::<serde_json::Value>(self.content.whole()).ok();
        let code = |v: serde_json::Value| v["code"].as_str().map(str::to_owned);
        self.is_error().then(|| body().and_then(code).unwrap_or_else(|| self.status.as_str().to_owned()))
    }
    pub(super) fn object(&self) -> Option<&str> {
        self.object.as_deref()
    }
    /// Marks an answer that holds a secret.
    pub(super) fn uncached(self) -> Self {
        self.with(CACHE_CONTROL, HeaderValue::from_static("no-store"))
    }
    /// Adds fields to the object; where there was none, and nothing went wrong, there still is none.
    pub(super) fn with_fields(mut self, fields: serde_json::Value) -> Self {
        let nothing = self.status == StatusCode::NO_CONTENT;
        if self.is_error() || (nothing && fields["applied"] == true) {
            return self;
        }
        let object = if nothing { Ok(json!({})) } else { serde_json::from_slice(self.content.whole()) };
        if let (Ok(serde_json::Value::Object(mut object)), serde_json::Value::Object(fields)) = (object, fields) {
            object.extend(fields);
            let status = if nothing { StatusCode::OK } else { self.status };
            let shown = Self::encoded(serde_json::Value::Object(object).to_string().into());
            self.headers.retain(|(name, _)| *name != CONTENT_TYPE);
            self.headers.extend(shown.headers);
            (self.status, self.content) = (status, shown.content);
        }
        self
    }
    pub(super) fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }
    pub(super) fn into_response(self) -> Response {
        let body = match self.content {
            Content::Whole(bytes) => Body::from(bytes),
            Content::Stream(chunks) => Body::new(Streamed(chunks)),
        };
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        response.headers_mut().extend(self.headers);
        response
    }
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    error: &'a str,
    code: Code,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<&'a serde_json::Value>,
    request_id: RequestId,
}

pub(super) fn refusal(refused: &Refused, request_id: RequestId) -> Response {
    let (text, hint) = (plain(&refused.text), refused.hint.as_deref().map(plain));
    let body = ErrorBody {
        error: &text,
        code: refused.code,
        hint: hint.as_deref(),
        details: refused.details.as_ref(),
        request_id,
    };
    let status = StatusCode::from_u16(refused.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let text = serde_json::to_vec(&body).unwrap_or_else(|_| br#"{"error":"internal error","code":"INTERNAL"}"#.into());
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if let Some(seconds) = refused.details.as_ref().and_then(|d| d.get(RETRY_AFTER_S)?.as_u64()) {
        headers.insert(RETRY_AFTER, seconds.into());
    }
    response
}

pub(super) fn rate_limited(what: &str, retry_after_s: u64) -> Refused {
    Refused::new(Code::RateLimited, format!("too many {what} from this address; try again in {retry_after_s} s"))
        .with_details(json!({ RETRY_AFTER_S: retry_after_s }))
}

pub(super) fn not_found(text: impl Into<String>) -> Refused {
    Refused::new(Code::NotFound, text)
}

pub(super) fn invalid(text: impl Into<String>) -> Refused {
    Refused::new(Code::InvalidRequest, text)
}

pub(super) fn unauthorized(text: impl Into<String>) -> Refused {
    Refused::new(Code::Unauthorized, text)
}

/// Text for a terminal: what was given may be quoted in it, and must neither steer nor reorder what is shown.
fn plain(text: &str) -> String {
    let invisible =
        |c: char| matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}');
    text.chars().map(|c| if c.is_control() || invisible(c) { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// Input as it may be shown in an error: bounded, without control characters.
pub(super) fn clip(input: &str) -> String {
    const SHOWN_MAX_CHARS: usize = 64;
    input.chars().filter(|c| !c.is_control()).take(SHOWN_MAX_CHARS).collect()
}
