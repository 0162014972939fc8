//! The HTTP client of the CLI: which agent answers, with which credential (cli.md §5, api.md §2).

use super::{
    errors::{CliError, Exit},
    exchange::{Answer, Ask, ExchangeError, Opened, exchange, open_stream, trace_answer, trace_ask},
    log::Log,
    tokens::TokenCache,
    values::agent_url,
};
use crate::{
    env::Clock,
    model::{Endpoint, PeerId, Secret, VERSION},
};
use bytes::Bytes;
use hyper::{
    Method,
    body::Incoming,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, IF_MATCH, USER_AGENT},
};
use serde_json::Value;
use std::{
    cell::{Cell, RefCell},
    time::Duration,
};

const FORM: &str = "application/x-www-form-urlencoded";
const RECOVERY_HEADER: &str = "x-arctic-recovery";
const TARGET_HEADER: &str = "x-arctic-target-peer";
const LOCK_HEADER: &str = "x-arctic-lock";
const LICENSE_HEADER: &str = "x-arctic-license-state";
/// RFC 6749 only recommends `expires_in`; without it a token is good for this command alone.
const LIFETIME_UNKNOWN: Duration = Duration::ZERO;

/// What proves who is calling. Holds secrets, hence no `Debug`.
pub enum Auth {
    Nobody,
    Token(String),
    Recovery(String),
    Credential { client_id: String, client_secret: Secret },
}

/// One request to the API.
pub struct Call {
    method: Method,
    path: String,
    body: Option<String>,
    public: bool,
    /// The peer that handles this call, if not that of the client.
    at: Option<PeerId>,
    if_match: Option<u64>,
    /// Whether `--wait` has a meaning for it (api.md §2).
    pub waits: bool,
    /// How long the agent may take by api.md §2, if longer than the default.
    patience: Option<Duration>,
}

impl Call {
    fn new(method: Method, path: impl Into<String>, body: Option<String>) -> Self {
        let path = path.into();
        Self { method, path, body, public: false, at: None, if_match: None, waits: false, patience: None }
    }
    pub fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path, None)
    }
    pub fn post(path: impl Into<String>, body: &Value) -> Self {
        Self::new(Method::POST, path, Some(body.to_string()))
    }
    /// A body that must reach the agent byte by byte, such as a license.
    pub fn post_text(path: impl Into<String>, body: String) -> Self {
        Self::new(Method::POST, path, Some(body))
    }
    /// As `post_text`.
    pub fn put_text(path: impl Into<String>, body: String) -> Self {
        Self::new(Method::PUT, path, Some(body))
    }
    pub fn put(path: impl Into<String>, body: &Value) -> Self {
        Self::new(Method::PUT, path, Some(body.to_string()))
    }
    /// Any request, as `arctic api` makes it.
    pub fn any(method: Method, path: impl Into<String>, body: Option<String>) -> Self {
        Self::new(method, path, body)
    }
    pub fn post_empty(path: impl Into<String>) -> Self {
        Self::new(Method::POST, path, None)
    }
    pub fn delete(path: impl Into<String>) -> Self {
        Self::new(Method::DELETE, path, None)
    }
    /// Needs no credential.
    pub fn public(mut self) -> Self {
        self.public = true;
        self
    }
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = Some(patience);
        self
    }
    /// Handled by this peer, through the called agent.
    pub fn at(mut self, peer: PeerId) -> Self {
        self.at = Some(peer);
        self
    }
    /// Refused when the object has another version by now.
    pub fn if_match(mut self, version: u64) -> Self {
        self.if_match = Some(version);
        self
    }
    /// A write that reconcilers apply, so that one can wait for it.
    pub fn applied(mut self) -> Self {
        self.waits = true;
        self
    }
    pub fn with_query(mut self, pairs: &[(&str, String)]) -> Self {
        for (key, value) in pairs {
            let mark = if self.path.contains('?') { '&' } else { '?' };
            self.path = format!("{}{mark}{key}={}", self.path, percent_encoded(value));
        }
        self
    }
    pub fn is_get(&self) -> bool {
        self.method == Method::GET
    }
}

pub struct Client {
    /// In the order they are tried.
    pub agents: Vec<Endpoint>,
    /// Index of the agent that answered last: it is asked first from then on.
    answered: Cell<usize>,
    pub auth: Auth,
    fresh_token: RefCell<Option<String>>,
    pub tokens: TokenCache,
    /// The peer that handles the calls, if not the called one.
    pub target: Option<PeerId>,
    /// Token of the cluster lock that this command holds.
    pub lock: RefCell<Option<Secret>>,
    pub timeout: Duration,
    /// Whether the operator chose the timeout, so that no call may extend it.
    pub timeout_is_chosen: bool,
    pub clock: Box<dyn Clock>,
    pub log: Log,
    warned: Cell<bool>,
}

impl Client {
    pub fn new(agents: Vec<Endpoint>, auth: Auth, tokens: TokenCache, clock: Box<dyn Clock>, log: Log) -> Self {
        Self {
            agents,
            answered: Cell::new(0),
            auth,
            fresh_token: RefCell::new(None),
            tokens,
            target: None,
            lock: RefCell::new(None),
            timeout: Duration::from_secs(30),
            timeout_is_chosen: false,
            clock,
            log,
            warned: Cell::new(false),
        }
    }

    /// The agent that answered last, else the first one.
    pub fn agent(&self) -> Option<&Endpoint> {
        self.agents.get(self.answered.get())
    }

    /// Forgets which agent answered, and its token.
    pub fn restart(&mut self) {
        self.answered.set(0);
        self.fresh_token.take();
    }

    /// The JSON of a successful answer; null for an empty one.
    pub async fn json(&self, call: Call) -> Result<Value, CliError> {
        let answer = self.send(&call).await?;
        if !answer.is_success() {
            return Err(self.refusal(&answer));
        }
        if answer.body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&answer.body).map_err(|e| {
            CliError::new(
                Exit::General,
                "INTERNAL",
                format!("the answer to {} {} is not JSON: {e}", call.method, call.path),
            )
        })
    }

    /// The answer as it is, whatever its status. A cached token that is refused is replaced once.
    pub async fn send(&self, call: &Call) -> Result<Answer, CliError> {
        let (token, was_cached) = self.token_for(call).await?;
        let answer = self.reach(&self.ask(call, token.as_deref())?, call.patience).await?;
        if answer.status != 401 || !was_cached {
            return Ok(answer);
        }
        self.log.debug("the cached token was refused; fetching a new one");
        let token = self.fetch_token().await?;
        self.reach(&self.ask(call, Some(&token))?, call.patience).await
    }

    pub fn refusal(&self, answer: &Answer) -> CliError {
        let mut error = CliError::from_answer(answer.status, &answer.body, answer.header("x-request-id"));
        if answer.status == 401 && error.hint.is_none() && matches!(self.auth, Auth::Nobody) {
            error = error.with_hint("pass --token or --recovery-token-file, or bootstrap the agent from here");
        }
        if let (true, 429, Some(seconds)) = (error.facts.is_empty(), answer.status, answer.header("retry-after")) {
            error = error.with_fact("retry after", format!("{seconds} s"));
        }
        error
    }

    /// A bearer token, and whether it comes from the cache.
    async fn token_for(&self, call: &Call) -> Result<(Option<String>, bool), CliError> {
        if call.public && self.target_of(call).is_none() {
            return Ok((None, false));
        }
        let client_id = match &self.auth {
            Auth::Nobody | Auth::Recovery(_) => return Ok((None, false)),
            Auth::Token(token) => return Ok((Some(token.clone()), false)),
            Auth::Credential { client_id, .. } => client_id,
        };
        if let Some(token) = self.fresh_token.borrow().clone() {
            return Ok((Some(token), false));
        }
        if let Some(token) = self.tokens.get(client_id, self.clock.unix().as_ms()) {
            self.log.debug(&format!("using the cached token of {client_id}"));
            return Ok((Some(token), true));
        }
        self.fetch_token().await.map(|token| (Some(token), false))
    }

    async fn fetch_token(&self) -> Result<String, CliError> {
        let Auth::Credential { client_id, client_secret } = &self.auth else {
            return Err(CliError::new(Exit::Denied, "UNAUTHORIZED", "no credential to fetch a token with"));
        };
        self.log.debug(&format!("fetching a token for {client_id}"));
        let form =
            [("grant_type", "client_credentials"), ("client_id", client_id), ("client_secret", client_secret.reveal())];
        let body = form.map(|(key, value)| format!("{key}={}", percent_encoded(value))).join("&");
        let mut headers = plain_headers();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(FORM));
        let ask = Ask { method: Method::POST, path: "/v1/oauth/token".to_owned(), headers, body: Bytes::from(body) };
        let answer = self.reach(&ask, None).await?;
        if !answer.is_success() {
            return Err(self.refusal(&answer).with_fact("credential", client_id.as_str()));
        }
        let parsed: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let Some(token) = parsed["access_token"].as_str() else {
            return Err(CliError::new(Exit::General, "INTERNAL", "the token answer has no access_token"));
        };
        let lifetime = parsed["expires_in"].as_u64().map_or(LIFETIME_UNKNOWN, Duration::from_secs);
        self.tokens.put(client_id, token, lifetime, self.clock.unix().as_ms());
        *self.fresh_token.borrow_mut() = Some(token.to_owned());
        Ok(token.to_owned())
    }

    /// Whether a credential is accepted by the agent that answers; nothing is stored.
    pub async fn accepts(&self, client_id: &str, client_secret: &str) -> bool {
        let auth =
            Auth::Credential { client_id: client_id.to_owned(), client_secret: Secret::from_input(client_secret) };
        let agents = self.agent().cloned().into_iter().collect();
        let clock = Box::new(crate::env::SystemClock::new());
        let mut probe = Client::new(agents, auth, TokenCache::new(None, self.log), clock, self.log);
        probe.timeout = self.timeout;
        probe.fetch_token().await.is_ok()
    }

    /// The body of a successful answer as it comes, from the first agent that answers.
    pub async fn stream(&self, call: &Call, last_event_id: Option<&str>) -> Result<Incoming, CliError> {
        let (token, was_cached) = self.token_for(call).await?;
        let mut ask = self.ask(call, token.as_deref())?;
        ask.headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
        if let Some(id) = last_event_id.and_then(|id| HeaderValue::from_str(id).ok()) {
            ask.headers.insert(HeaderName::from_static("last-event-id"), id);
        }
        let first = self.answered.get();
        let mut failures = Vec::new();
        for index in (first..self.agents.len()).chain(0..first) {
            match open_stream(&self.agents[index], &ask, self.timeout).await {
                Ok(Opened::Stream(body)) => {
                    self.answered.set(index);
                    return Ok(body);
                }
                Ok(Opened::Refused(answer)) if answer.status == 401 && was_cached => {
                    self.answered.set(index);
                    self.fetch_token().await?;
                    return Box::pin(self.stream(call, last_event_id)).await;
                }
                Ok(Opened::Refused(answer)) => return Err(self.refusal(&answer)),
                Err(e) => failures.push(e),
            }
        }
        Err(unreachable(&failures))
    }

    fn target_of(&self, call: &Call) -> Option<PeerId> {
        call.at.or(self.target)
    }

    fn ask(&self, call: &Call, token: Option<&str>) -> Result<Ask, CliError> {
        let secret = |text: String, what: &str| {
            let value = HeaderValue::from_str(&text);
            let mut value = value.map_err(|_| CliError::usage(format!("{what} holds characters a header cannot")))?;
            value.set_sensitive(true);
            Ok::<_, CliError>(value)
        };
        let mut headers = plain_headers();
        if let Some(token) = token {
            headers.insert(AUTHORIZATION, secret(format!("Bearer {token}"), "the token")?);
        }
        let target = self.target_of(call);
        if let (Auth::Recovery(token), false) = (&self.auth, call.public && target.is_none()) {
            headers.insert(HeaderName::from_static(RECOVERY_HEADER), secret(token.clone(), "the recovery token")?);
        }
        if let Some(peer) = target {
            headers.insert(HeaderName::from_static(TARGET_HEADER), secret(peer.to_string(), "the peer id")?);
        }
        if let Some(version) = call.if_match {
            headers.insert(IF_MATCH, HeaderValue::from(version));
        }
        if let (Some(token), false) = (&*self.lock.borrow(), call.is_get()) {
            headers.insert(HeaderName::from_static(LOCK_HEADER), secret(token.reveal().to_owned(), "the lock token")?);
        }
        if call.body.is_some() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        let body = Bytes::from(call.body.clone().unwrap_or_default());
        Ok(Ask { method: call.method.clone(), path: call.path.clone(), headers, body })
    }

    /// Asks the agents in turn until one answers. A request that may have been carried out is repeated only if it
    /// changes nothing.
    async fn reach(&self, ask: &Ask, patience: Option<Duration>) -> Result<Answer, CliError> {
        let limit = if self.timeout_is_chosen { self.timeout } else { self.timeout.max(patience.unwrap_or_default()) };
        let first = self.answered.get();
        let order = (first..self.agents.len()).chain(0..first);
        let mut failures = Vec::new();
        for index in order {
            let agent = &self.agents[index];
            self.log.debug(&format!("{} {}{}", ask.method, agent_url(agent), ask.path));
            self.log.trace(|| trace_ask(agent, ask));
            let started = self.clock.mono();
            match exchange(agent, ask, limit).await {
                Ok(answer) => {
                    self.answered.set(index);
                    let took = (self.clock.mono() - started).as_millis();
                    self.log.verbose(&format!(
                        "{} {}{}: {} in {took} ms",
                        ask.method,
                        agent_url(agent),
                        ask.path,
                        answer.status
                    ));
                    self.log.trace(|| trace_answer(&answer));
                    self.warn_of_license(&answer);
                    return Ok(answer);
                }
                Err(e) => {
                    self.log.debug(&e.to_string());
                    let may_repeat = matches!(e, ExchangeError::Connect { .. }) || ask.method == Method::GET;
                    failures.push(e);
                    if !may_repeat {
                        break;
                    }
                }
            }
        }
        Err(unreachable(&failures))
    }

    /// The command itself tells the state of the license.
    pub fn without_license_warning(&self) {
        self.warned.set(true);
    }

    fn warn_of_license(&self, answer: &Answer) {
        if let (Some(state), false) = (answer.header(LICENSE_HEADER), self.warned.replace(true)) {
            self.log.warn(&format!("the license is in state {state}; see `arctic license status`"));
        }
    }
}

fn plain_headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    if let Ok(agent) = HeaderValue::from_str(&format!("arctic-cli/{VERSION}")) {
        headers.insert(USER_AGENT, agent);
    }
    headers
}

fn unreachable(failures: &[ExchangeError]) -> CliError {
    let error = |text: String| CliError::new(Exit::Unreachable, "AGENT_UNREACHABLE", text);
    let agent = |e: &ExchangeError| match e {
        ExchangeError::Connect { agent, .. } | ExchangeError::Answer { agent, .. } => agent.clone(),
    };
    match failures {
        [] => error("no agent address is known for this cluster".to_owned()).with_hint("pass --url http://HOST:8080"),
        [one] => error(one.to_string()).with_hint(format!("curl {}/livez", agent_url(&agent(one)))),
        many => {
            let mut all = error("no agent of the cluster answers".to_owned());
            for e in many {
                all = all.with_fact("tried", e.to_string());
            }
            all.with_hint("systemctl status arctic, on one of these hosts")
        }
    }
}

/// RFC 3986 unreserved characters stay, everything else is escaped.
pub fn percent_encoded(text: &str) -> String {
    let encode = |b: u8| match b {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(b).to_string(),
        _ => format!("%{b:02X}"),
    };
    text.bytes().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn form_values_are_escaped() {
        assert_eq!(percent_encoded("sec_aZ-9~."), "sec_aZ-9~.");
        assert_eq!(percent_encoded("a b&c=ä"), "a%20b%26c%3D%C3%A4");
    }
}
