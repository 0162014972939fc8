//! One HTTP exchange with one agent, and how `--trace` shows it with its secrets masked.

use crate::model::Endpoint;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, Response, body::Incoming, client::conn::http1, header::HeaderMap};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::{fmt::Write, io, time::Duration};
use tokio::{net::TcpStream, time::timeout};

/// An agent that does not take the connection within this time is passed over.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A list of 10 000 services is about 8 MiB.
const ANSWER_MAX_BYTES: usize = 64 << 20;
const MASK: &str = "***";

/// What is sent. Headers are complete but for `Host`.
#[derive(Clone)]
pub struct Ask {
    pub method: Method,
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|v| v.to_str().ok())
    }
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// Nothing was sent: another agent may be asked.
    #[error("cannot connect to agent at {agent}: {reason}")]
    Connect { agent: Endpoint, reason: String },
    /// The request may have been carried out.
    #[error("no answer from agent at {agent}: {reason}")]
    Answer { agent: Endpoint, reason: String },
}

/// Sends `ask` to `agent` and waits at most `limit` for the whole answer.
pub async fn exchange(agent: &Endpoint, ask: &Ask, limit: Duration) -> Result<Answer, ExchangeError> {
    let stream = connect(agent, limit).await?;
    let failed = |reason: String| ExchangeError::Answer { agent: agent.clone(), reason };
    match timeout(limit, converse(stream, agent, ask)).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(reason)) => Err(failed(reason)),
        Err(_) => Err(failed(format!("timeout after {} s", limit.as_secs_f64()))),
    }
}

/// The beginning of an answer without end.
pub enum Opened {
    Stream(Incoming),
    Refused(Answer),
}

/// Sends `ask` and waits at most `limit` for the head of the answer; its body comes as it comes.
pub async fn open_stream(agent: &Endpoint, ask: &Ask, limit: Duration) -> Result<Opened, ExchangeError> {
    let stream = connect(agent, limit).await?;
    let failed = |reason: String| ExchangeError::Answer { agent: agent.clone(), reason };
    let broken = |e: hyper::Error| failed(format!("connection broken: {e}"));
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    tokio::spawn(connection);
    let request = request_of(agent, ask).map_err(failed)?;
    let response = match timeout(limit, sender.send_request(request)).await {
        Ok(response) => response.map_err(broken)?,
        Err(_) => return Err(failed(format!("timeout after {} s", limit.as_secs_f64()))),
    };
    let (head, body) = response.into_parts();
    if head.status.is_success() {
        return Ok(Opened::Stream(body));
    }
    let body =
        Limited::new(body, ANSWER_MAX_BYTES).collect().await.map_err(|e| failed(format!("answer broken off: {e}")))?;
    Ok(Opened::Refused(Answer { status: head.status.as_u16(), headers: head.headers, body: body.to_bytes() }))
}

fn request_of(agent: &Endpoint, ask: &Ask) -> Result<Request<Full<Bytes>>, String> {
    let mut request = Request::builder().method(&ask.method).uri(&ask.path).header("host", agent.to_string());
    for (name, value) in &ask.headers {
        request = request.header(name, value);
    }
    request.body(Full::new(ask.body.clone())).map_err(|e| format!("request not sent: {e}"))
}

async fn connect(agent: &Endpoint, limit: Duration) -> Result<TcpStream, ExchangeError> {
    match timeout(limit.min(CONNECT_TIMEOUT), TcpStream::connect((agent.host(), agent.port()))).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(e)) => Err(ExchangeError::Connect { agent: agent.clone(), reason: connect_reason(&e) }),
        Err(_) => Err(ExchangeError::Connect { agent: agent.clone(), reason: "connection timeout".to_owned() }),
    }
}

fn connect_reason(e: &io::Error) -> String {
    match e.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::TimedOut => "connection timeout".to_owned(),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => "no route to host".to_owned(),
        _ => e.to_string(),
    }
}

async fn converse(stream: TcpStream, agent: &Endpoint, ask: &Ask) -> Result<Answer, String> {
    let broken = |e: hyper::Error| format!("connection broken: {e}");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let request = request_of(agent, ask)?;
    let conversation = async {
        let response: Response<Incoming> = sender.send_request(request).await.map_err(broken)?;
        let (head, body) = response.into_parts();
        let body =
            Limited::new(body, ANSWER_MAX_BYTES).collect().await.map_err(|e| format!("answer broken off: {e}"))?;
        Ok(Answer { status: head.status.as_u16(), headers: head.headers, body: body.to_bytes() })
    };
    tokio::pin!(conversation);
    tokio::select! {
        biased;
        answer = &mut conversation => answer,
        ended = connection => match ended {
            // The last bytes may have arrived together with the end of the connection.
            Ok(()) => conversation.await,
            Err(e) => Err(broken(e)),
        },
    }
}

/// The request as `--trace` prints it.
pub fn trace_ask(agent: &Endpoint, ask: &Ask) -> String {
    let mut out = format!("> {} http://{agent}{}\n", ask.method, ask.path);
    trace_rest(&mut out, '>', &ask.headers, &ask.body);
    out
}

/// The answer as `--trace` prints it.
pub fn trace_answer(answer: &Answer) -> String {
    let mut out = format!("< {}\n", answer.status);
    trace_rest(&mut out, '<', &answer.headers, &answer.body);
    out
}

fn trace_rest(out: &mut String, mark: char, headers: &HeaderMap, body: &Bytes) {
    for (name, value) in headers {
        let secret = matches!(name.as_str(), "authorization" | "x-arctic-recovery" | "x-arctic-lock" | "cookie");
        let shown = if secret { MASK } else { value.to_str().unwrap_or("(not text)") };
        let _ = writeln!(out, "{mark} {name}: {shown}");
    }
    let _ = writeln!(out, "{mark}");
    if !body.is_empty() {
        let text = masked_body(body);
        for line in text.lines() {
            let _ = writeln!(out, "{mark} {line}");
        }
    }
}

fn masked_body(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    match serde_json::from_str::<Value>(&text) {
        Ok(mut value) => {
            mask_value(&mut value);
            value.to_string()
        }
        Err(_) => masked_form(&text),
    }
}

fn is_secret_key(key: &str) -> bool {
    matches!(key, "client_secret" | "access_token" | "token" | "signature" | "seed" | "recovery_token" | "private_key")
}

fn mask_value(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, inner) in map.iter_mut() {
                if is_secret_key(key) && !inner.is_null() {
                    *inner = Value::from(MASK);
                } else {
                    mask_value(inner);
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(mask_value),
        Value::String(text) => *text = mask_secrets(text),
        _ => {}
    }
}

fn masked_form(text: &str) -> String {
    let field = |pair: &str| match pair.split_once('=') {
        Some((key, _)) if is_secret_key(key) => format!("{key}={MASK}"),
        _ => mask_secrets(pair),
    };
    text.split('&').map(field).collect::<Vec<_>>().join("&")
}

/// Every `sec_…` in a text becomes `sec_***`.
pub fn mask_secrets(text: &str) -> String {
    let mut parts = text.split("sec_");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_');
        out.push_str("sec_***");
        out.push_str(rest);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    #[test]
    fn a_trace_shows_the_exchange_without_any_secret() {
        let mut headers = HeaderMap::new();
        headers.insert("authorization", HeaderValue::from_static("Bearer hidden1"));
        headers.insert("x-arctic-recovery", HeaderValue::from_static("hidden2"));
        headers.insert("content-type", HeaderValue::from_static("application/json"));
        let body = br#"{"license":{"signature":"hidden3","max_nodes":3},"client_secret":"hidden4",
            "list":[{"access_token":"hidden5"}],"error":"bad secret sec_hidden6!"}"#;
        let agent: Endpoint = "tokyo".parse().unwrap();
        let ask = |body: &'static [u8]| Ask {
            method: Method::POST,
            path: "/v1/bootstrap".to_owned(),
            headers: headers.clone(),
            body: Bytes::from_static(body),
        };
        let text = trace_ask(&agent, &ask(body));
        assert!(!text.contains("hidden"), "{text}");
        assert!(text.starts_with("> POST http://tokyo:8080/v1/bootstrap\n"));
        assert!(text.contains("content-type: application/json") && text.contains("\"max_nodes\":3"));
        let form = ask(b"grant_type=client_credentials&client_id=cli_1&client_secret=sec_hidden7");
        let text = trace_ask(&agent, &form);
        assert!(!text.contains("hidden") && text.contains("client_id=cli_1&client_secret=***"), "{text}");
        let answer = Answer { status: 200, headers, body: Bytes::from_static(body) };
        assert!(!trace_answer(&answer).contains("hidden"));
    }
}
