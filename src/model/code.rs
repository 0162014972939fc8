//! Error codes of the API (api.md §1) and the HTTP status each goes with.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! codes {
    ($($variant:ident = $text:literal, $status:literal;)*) => {
        /// What went wrong, for programs.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum Code { $(#[serde(rename = $text)] $variant,)* }

        impl Code {
            pub const ALL: &[Code] = &[$(Code::$variant),*];

            pub fn text(self) -> &'static str {
                match self { $(Code::$variant => $text,)* }
            }
            pub fn http_status(self) -> u16 {
                match self { $(Code::$variant => $status,)* }
            }
        }
    };
}

codes! {
    InvalidRequest = "INVALID_REQUEST", 400;
    MissingField = "MISSING_FIELD", 400;
    InvalidCidr = "INVALID_CIDR", 400;
    InvalidTransport = "INVALID_TRANSPORT", 400;
    Unauthorized = "UNAUTHORIZED", 401;
    TokenExpired = "TOKEN_EXPIRED", 401;
    Forbidden = "FORBIDDEN", 403;
    LicenseReadOnly = "LICENSE_READ_ONLY", 403;
    LicenseSuspended = "LICENSE_SUSPENDED", 403;
    ApiAccessInternal = "API_ACCESS_INTERNAL", 403;
    NotFound = "NOT_FOUND", 404;
    MethodNotAllowed = "METHOD_NOT_ALLOWED", 405;
    AlreadyExists = "ALREADY_EXISTS", 409;
    AlreadyBootstrapped = "ALREADY_BOOTSTRAPPED", 409;
    NotBootstrapped = "NOT_BOOTSTRAPPED", 409;
    ClusterLocked = "CLUSTER_LOCKED", 409;
    Conflict = "CONFLICT", 409;
    IdentityConflict = "IDENTITY_CONFLICT", 409;
    PayloadTooLarge = "PAYLOAD_TOO_LARGE", 413;
    UnsupportedMediaType = "UNSUPPORTED_MEDIA_TYPE", 415;
    NodeLimitExceeded = "NODE_LIMIT_EXCEEDED", 422;
    ServiceLimitExceeded = "SERVICE_LIMIT_EXCEEDED", 422;
    LicenseExpired = "LICENSE_EXPIRED", 422;
    LicenseInvalid = "LICENSE_INVALID", 422;
    LicenseMismatch = "LICENSE_MISMATCH", 422;
    LicenseFeatureDisabled = "LICENSE_FEATURE_DISABLED", 422;
    HandshakeFailed = "HANDSHAKE_FAILED", 422;
    PeerUnreachable = "PEER_UNREACHABLE", 422;
    CannotRevokeCurrent = "CANNOT_REVOKE_CURRENT", 422;
    RateLimited = "RATE_LIMITED", 429;
    Internal = "INTERNAL", 500;
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// A refusal that a caller sees: api.md §1 as a value. Every room that refuses maps its own error into this one.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{text}")]
pub struct Refused {
    pub code: Code,
    pub text: String,
    pub hint: Option<String>,
    pub details: Option<serde_json::Value>,
}

impl Refused {
    pub fn new(code: Code, text: impl Into<String>) -> Self {
        Self { code, text: text.into(), hint: None, details: None }
    }
    /// An error of our own: logged whole, told to the caller only as INTERNAL.
    pub fn internal(e: impl std::error::Error) -> Self {
        tracing::error!(error = %with_causes(&e), "request failed inside the agent");
        Self::new(Code::Internal, "internal error; the agent's log has the reason")
    }
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
    pub fn with_details(mut self, details: serde_json::Value) -> Self {
        self.details = Some(details);
        self
    }
}

/// An error with its causes, outermost first.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |e| e.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
