//! `arctic api METHOD PATH`: any request, with the credential and the error style of the other commands.

use super::{
    args::{ApiArgs, Globals},
    client::Call,
    errors::{CliError, Exit},
    files, output,
    session::{Session, print},
};
use hyper::Method;
use serde_json::Value;
use std::path::Path;

pub async fn run(globals: &Globals, args: &ApiArgs) -> Result<(), CliError> {
    let method = match args.method.to_ascii_uppercase().as_str() {
        "GET" => Method::GET,
        "POST" => Method::POST,
        "PUT" => Method::PUT,
        "DELETE" => Method::DELETE,
        other => return Err(CliError::usage(format!("method `{other}` is not GET, POST, PUT or DELETE"))),
    };
    if !args.path.starts_with('/') || args.path.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(CliError::usage("a path begins with / and has no blanks").with_hint("arctic api GET /v1/peers"));
    }
    let body = args.data.as_deref().map(body_of).transpose()?;
    let session = Session::open(globals).await?;
    let is_get = method == Method::GET;
    let mut call = Call::any(method, args.path.as_str(), body).applied();
    if !is_get {
        call = session.writing.call(call);
    }
    let answer = session.client.send(&call).await.map_err(|e| session.explain_guess(e))?;
    if !answer.is_success() {
        return Err(session.client.refusal(&answer));
    }
    match serde_json::from_slice::<Value>(&answer.body) {
        Ok(value) if session.view.is_structured() => session.print_one(&output::OBJECT, value),
        Ok(value) => {
            print(&output::pretty(&value)?);
            Ok(())
        }
        Err(_) if session.view.is_structured() => {
            let text = String::from_utf8_lossy(&answer.body);
            let value = if text.is_empty() { Value::Null } else { Value::from(text) };
            session.print_one(&output::OBJECT, value)
        }
        Err(_) => {
            print(&String::from_utf8_lossy(&answer.body));
            Ok(())
        }
    }
}

/// The JSON itself, or that of a file for `@FILE`. It goes out as it was written.
fn body_of(data: &str) -> Result<String, CliError> {
    let text = match data.strip_prefix('@') {
        Some(path) => files::read_input(Path::new(path)).map_err(|e| {
            CliError::new(Exit::General, "INVALID_REQUEST", format!("cannot read {path}"))
                .with_fact("reason", e.to_string())
        })?,
        None => data.to_owned(),
    };
    match serde_json::from_str::<Value>(&text) {
        Ok(_) => Ok(text),
        Err(e) => Err(CliError::usage(format!("--data is not JSON: {e}"))),
    }
}
