//! What can go wrong for the operator: exit codes and the error style of cli.md §2.

pub use crate::model::nearest;
use serde_json::{Map, Value, json};
use std::fmt::Write;

/// An error takes at most this many lines on the terminal (cli.md §2).
const LINES_MAX: usize = 8;
const FACT_MAX_CHARS: usize = 300;

/// Exit codes of cli.md §2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Done = 0,
    General = 1,
    Usage = 2,
    Config = 3,
    Unreachable = 4,
    Denied = 5,
    Degraded = 6,
    NotApplied = 7,
    Licensed = 8,
    Pending = 10,
    Interrupted = 130,
    Terminated = 143,
}

impl Exit {
    /// The exit code of an error code of the API (api.md §1).
    pub fn of_code(code: &str) -> Exit {
        match code {
            "UNAUTHORIZED" | "TOKEN_EXPIRED" | "FORBIDDEN" | "API_ACCESS_INTERNAL" => Exit::Denied,
            _ if code.starts_with("LICENSE_") || code.ends_with("_LIMIT_EXCEEDED") => Exit::Licensed,
            "MISSING_FIELD" | "INVALID_CIDR" | "INVALID_TRANSPORT" => Exit::Usage,
            "PEER_UNREACHABLE" => Exit::Unreachable,
            _ => Exit::General,
        }
    }
}

/// One failure, ready to be shown. Line 1 is the exact text of the specification behind `Error: `.
#[derive(Debug, Clone, PartialEq)]
pub struct CliError {
    pub exit: Exit,
    pub text: String,
    pub facts: Vec<(String, String)>,
    pub hint: Option<Box<str>>,
    pub code: String,
    pub request_id: Option<Box<str>>,
    /// The error object of the API as it came, for `-j`.
    pub answer: Option<Box<Value>>,
}

impl CliError {
    pub fn new(exit: Exit, code: &str, text: impl Into<String>) -> Self {
        Self {
            exit,
            text: text.into(),
            facts: Vec::new(),
            hint: None,
            code: code.to_owned(),
            request_id: None,
            answer: None,
        }
    }
    pub fn usage(text: impl Into<String>) -> Self {
        Self::new(Exit::Usage, "USAGE", text)
    }
    /// A required flag that was not given: `--service is required`.
    pub fn missing(flag: &str) -> Self {
        Self::new(Exit::Usage, "MISSING_FIELD", format!("{flag} is required"))
    }
    pub fn not_found(text: impl Into<String>) -> Self {
        Self::new(Exit::General, "NOT_FOUND", text)
    }
    pub fn config(text: impl Into<String>) -> Self {
        Self::new(Exit::Config, "CONFIG_INVALID", text)
    }
    pub fn with_fact(mut self, name: &str, value: impl Into<String>) -> Self {
        self.facts.push((name.to_owned(), value.into()));
        self
    }
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into().into_boxed_str());
        self
    }
    /// Another first line for the same failure, also in the object that `-j` prints.
    pub fn with_text(mut self, text: &str) -> Self {
        text.clone_into(&mut self.text);
        if let Some(answer) = self.answer.as_mut().and_then(|a| a.as_object_mut()) {
            answer.insert("error".to_owned(), Value::from(text));
        }
        self
    }

    /// The error of an HTTP answer. A body that is not an error object is named by its status.
    pub fn from_answer(status: u16, body: &[u8], request_id: Option<&str>) -> Self {
        let object = match serde_json::from_slice::<Value>(body) {
            Ok(Value::Object(o)) if o.get("error").is_some_and(Value::is_string) => o,
            _ => return Self::from_bare_status(status, request_id),
        };
        let text_of = |key: &str| object.get(key).and_then(Value::as_str).map(one_line);
        let code = text_of("code").unwrap_or_else(|| code_of_status(status).to_owned());
        let mut error = Self::new(Exit::of_code(&code), &code, text_of("error").unwrap_or_default());
        error.hint = text_of("hint").map(String::into_boxed_str);
        error.request_id = text_of("request_id").or_else(|| request_id.map(one_line)).map(String::into_boxed_str);
        error.facts = facts_of(object.get("details"));
        error.answer = Some(Box::new(Value::Object(object)));
        error
    }

    fn from_bare_status(status: u16, request_id: Option<&str>) -> Self {
        let code = code_of_status(status);
        let mut error = Self::new(Exit::of_code(code), code, format!("the agent answered HTTP {status}"));
        error.request_id = request_id.map(|id| one_line(id).into_boxed_str());
        error
    }

    /// The text for people, without a trailing newline.
    pub fn render_text(&self, color: bool) -> String {
        let (red, dim, plain) = if color { ("\x1b[31m", "\x1b[2m", "\x1b[0m") } else { ("", "", "") };
        let mut out = format!("{red}Error:{plain} {}", one_line(&self.text));
        let room = LINES_MAX - 2 - usize::from(self.hint.is_some());
        let width = self.facts.iter().take(room).map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        for (name, value) in self.facts.iter().take(room) {
            let _ = write!(out, "\n  {:width$}  {}", one_line(name), one_line(value));
        }
        if let Some(hint) = &self.hint {
            let _ = write!(out, "\n  {dim}hint:{plain} {}", one_line(hint));
        }
        let _ = write!(out, "\n  code: {}", self.code);
        if let Some(id) = &self.request_id {
            let _ = write!(out, "   request: {id}");
        }
        out
    }

    /// The API's error object, or one of the same shape for a failure on this side.
    pub fn render_object(&self) -> Value {
        if let Some(answer) = &self.answer {
            return Value::clone(answer);
        }
        let mut object = Map::new();
        object.insert("error".to_owned(), json!(self.text));
        object.insert("code".to_owned(), json!(self.code));
        if let Some(hint) = &self.hint {
            object.insert("hint".to_owned(), json!(hint));
        }
        if !self.facts.is_empty() {
            let details: Map<String, Value> = self.facts.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
            object.insert("details".to_owned(), Value::Object(details));
        }
        if let Some(id) = &self.request_id {
            object.insert("request_id".to_owned(), json!(id));
        }
        Value::Object(object)
    }
}

fn code_of_status(status: u16) -> &'static str {
    match status {
        400 => "INVALID_REQUEST",
        401 => "UNAUTHORIZED",
        403 => "FORBIDDEN",
        404 => "NOT_FOUND",
        409 => "CONFLICT",
        413 => "PAYLOAD_TOO_LARGE",
        415 => "UNSUPPORTED_MEDIA_TYPE",
        429 => "RATE_LIMITED",
        _ => "INTERNAL",
    }
}

fn facts_of(details: Option<&Value>) -> Vec<(String, String)> {
    match details {
        Some(Value::Object(map)) => {
            map.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), in_words(v))).collect()
        }
        Some(Value::Null) | None => Vec::new(),
        Some(other) => vec![("details".to_owned(), in_words(other))],
    }
}

/// A value for people: items apart by semicolons, the values of an object by commas.
fn in_words(value: &Value) -> String {
    match value {
        Value::String(s) => s.clone(),
        Value::Array(items) => items.iter().map(in_words).collect::<Vec<_>>().join("; "),
        Value::Object(map) => map.values().map(in_words).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

/// Text of another machine on one line of ours: control characters become spaces, length is bounded.
pub fn one_line(text: &str) -> String {
    text.chars().take(FACT_MAX_CHARS).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_are_told_in_words() {
        let tried = json!({"tried": [{"direction": "forward", "endpoint": "a:1", "error": "connection refused"},
            {"direction": "forward", "endpoint": "b:1", "error": "connection timeout"}], "attempts": 3, "none": null});
        let facts = facts_of(Some(&tried));
        let told = "forward, a:1, connection refused; forward, b:1, connection timeout";
        assert_eq!(facts, [("attempts".to_owned(), "3".to_owned()), ("tried".to_owned(), told.to_owned())]);
    }

    #[test]
    fn an_api_error_keeps_its_text_and_shows_facts_hint_code_and_request() {
        let body =
            br#"{"error":"handshake failed: license mismatch","code":"LICENSE_MISMATCH","hint":"arctic license status",
            "details":{"peer":"10.0.0.12:8080","expected":"cust_A","none":null},"request_id":"req_1"}"#;
        let error = CliError::from_answer(422, body, Some("req_2"));
        assert_eq!(error.exit, Exit::Licensed);
        assert_eq!(
            error.render_text(false),
            "Error: handshake failed: license mismatch\n  expected  cust_A\n  peer      10.0.0.12:8080\n  \
             hint: arctic license status\n  code: LICENSE_MISMATCH   request: req_1"
        );
        assert_eq!(error.render_object(), serde_json::from_slice::<Value>(body).unwrap());
    }

    #[test]
    fn an_error_never_takes_more_than_eight_lines_or_prints_control_characters() {
        let mut error = CliError::not_found("x\ny\x1b[2J").with_hint("h");
        for i in 0..20 {
            error = error.with_fact(&format!("f{i}"), "a\nb");
        }
        let text = error.render_text(false);
        assert_eq!(text.lines().count(), LINES_MAX);
        assert!(!text.contains('\x1b'));
    }

    #[test]
    fn an_answer_that_is_no_error_object_is_named_by_its_status() {
        let error = CliError::from_answer(502, b"<html>", None);
        assert_eq!((error.exit, error.text.as_str()), (Exit::General, "the agent answered HTTP 502"));
        assert_eq!(CliError::from_answer(401, b"", None).exit, Exit::Denied);
    }
}
