//! `GET /v1/openapi.json`: made from the table of endpoints, what `operations` says of each, and `schemas`.

mod operations;
mod schemas;

use super::{
    admission::Request,
    answer::{Answer, Outcome},
    endpoints::{Access, Endpoint, Input, endpoints},
};
use crate::{
    license::EndpointGroup,
    model::{Code, VERSION},
};
use hyper::Method;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// What the code of an endpoint does not say by itself.
#[derive(Debug)]
pub(super) struct Operation {
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    /// Also the verb of the audit.
    pub(super) id: &'static str,
    pub(super) tag: &'static str,
    pub(super) summary: &'static str,
    /// Parameters of the query; `schemas::parameter` knows them.
    pub(super) query: &'static [&'static str],
    /// Schema of the body.
    pub(super) request: Option<&'static str>,
    pub(super) answers: &'static [(u16, Content)],
    /// Beside those that every endpoint of its kind has.
    pub(super) codes: &'static [Code],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    Nothing,
    /// JSON of a schema.
    Json(&'static str),
    Text(&'static str),
}

pub(super) fn operation(method: &Method, path: &str) -> Option<&'static Operation> {
    operations::OPERATIONS.iter().find(|o| o.method == method.as_str() && o.path == path)
}

pub(super) async fn serve(r: Request) -> Outcome {
    r.query.only(&[])?;
    Answer::ok(&document())
}

pub(super) fn document() -> Value {
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for endpoint in endpoints() {
        if let Some(operation) = endpoint.operation() {
            let method = operation.method.to_ascii_lowercase();
            paths.entry(operation.path).or_default().insert(method, described(&endpoint, operation));
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Arctic agent",
            "version": VERSION,
            "description": "Every agent of a cluster serves this API. v1 only grows.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": schemas::all(),
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT",
                          "description": "Access token of POST /v1/oauth/token."},
                "recovery": {"type": "apiKey", "in": "header", "name": "X-Arctic-Recovery",
                             "description": "Recovery token of the agent's host; admin for one request."},
                "peer": {"type": "apiKey", "in": "header", "name": "X-Arctic-Signature",
                         "description": "Signature of a trusted peer over the request."},
            },
        },
    })
}

fn described(endpoint: &Endpoint, operation: &Operation) -> Value {
    let mut described = json!({
        "operationId": operation.id,
        "tags": [operation.tag],
        "summary": operation.summary,
        "parameters": parameters(endpoint, operation),
        "responses": responses(endpoint, operation),
        "security": security(endpoint.access),
    });
    if let Access::Scoped(scope) | Access::ScopedOrForwarded(scope) = endpoint.access {
        described["description"] = json!(format!("Needs the scope {scope}."));
    }
    if let Some(schema) = operation.request {
        let media =
            if endpoint.input == Input::Form { "application/x-www-form-urlencoded" } else { "application/json" };
        described["requestBody"] = json!({"required": true, "content": {media: {"schema": reference(schema)}}});
    }
    described
}

fn reference(schema: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{schema}") })
}

fn parameters(endpoint: &Endpoint, operation: &Operation) -> Vec<Value> {
    let segments = endpoint.path.split('/').filter_map(|s| s.strip_prefix('{')?.strip_suffix('}'));
    let mut parameters: Vec<Value> = segments
        .map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string", "minLength": 1}}))
        .collect();
    for name in operation.query {
        let mut parameter = schemas::parameter(name);
        parameter["name"] = json!(name);
        parameter["in"] = json!("query");
        parameters.push(parameter);
    }
    let header = |name: &str, schema: Value, description: &str| json!({"name": name, "in": "header", "schema": schema, "description": description});
    if endpoint.is_versioned() {
        let text = "The version that is to be changed; refused with CONFLICT if there is a later one.";
        parameters.push(header("If-Match", json!({"type": "string", "pattern": "^\"?[0-9]{1,18}\"?$"}), text));
    }
    if endpoint.is_locked_out() {
        let text = "The token of the cluster lock, while it is held.";
        parameters.push(header("X-Arctic-Lock", json!({"type": "string"}), text));
    }
    if endpoint.is_proxied() {
        let text = "The peer that is to serve the request; the called one forwards it.";
        parameters.push(header("X-Arctic-Target-Peer", json!({"type": "string"}), text));
    }
    if endpoint.streams {
        parameters.push(header("Last-Event-ID", json!({"type": "string"}), "The last event that the listener has."));
    }
    parameters
}

fn security(access: Access) -> Value {
    match access {
        Access::Public | Access::Login => json!([]),
        Access::PublicUnlessInternal => json!([{}, {"token": []}, {"recovery": []}]),
        Access::Peer => json!([{"peer": []}]),
        Access::Client | Access::Scoped(_) => json!([{"token": []}, {"recovery": []}]),
        Access::ScopedOrForwarded(_) | Access::WriterOrForwarded => {
            json!([{"token": []}, {"recovery": []}, {"peer": []}])
        }
    }
}

fn responses(endpoint: &Endpoint, operation: &Operation) -> Value {
    let mut responses = Map::new();
    for (status, content) in operation.answers {
        let mut response = json!({"description": description(*status)});
        match content {
            Content::Nothing => {}
            Content::Json(schema) => {
                response["content"] = json!({"application/json": {"schema": reference(schema)}});
            }
            Content::Text(media) => response["content"] = json!({*media: {"schema": {"type": "string"}}}),
        }
        responses.insert(status.to_string(), response);
    }
    let mut by_status: BTreeMap<u16, Vec<&str>> = BTreeMap::new();
    for code in codes(endpoint, operation) {
        by_status.entry(code.http_status()).or_default().push(code.text());
    }
    for (status, codes) in by_status {
        let response = json!({
            "description": codes.join(", "),
            "content": {"application/json": {"schema": reference("Error")}},
        });
        responses.entry(status.to_string()).or_insert(response);
    }
    Value::Object(responses)
}

fn description(status: u16) -> &'static str {
    match status {
        201 => "Made.",
        204 => "Done; there is nothing to say.",
        503 => "Not well.",
        _ => "As asked.",
    }
}

/// The codes that an endpoint answers with.
fn codes(endpoint: &Endpoint, operation: &Operation) -> BTreeSet<Code> {
    // A wrong recovery token is refused wherever it is sent; what is too large, too.
    let mut codes = BTreeSet::from([
        Code::InvalidRequest,
        Code::PayloadTooLarge,
        Code::Unauthorized,
        Code::RateLimited,
        Code::Internal,
    ]);
    codes.extend(operation.codes);
    if endpoint.input != Input::Nothing {
        codes.insert(Code::UnsupportedMediaType);
    }
    if endpoint.group != EndpointGroup::Probe {
        codes.extend([Code::LicenseReadOnly, Code::LicenseSuspended]);
    }
    if !endpoint.before_bootstrap {
        codes.insert(Code::NotBootstrapped);
    }
    if endpoint.is_operators() {
        codes.extend([Code::TokenExpired, Code::Forbidden, Code::ApiAccessInternal]);
    }
    if endpoint.is_proxied() {
        codes.extend([Code::Forbidden, Code::NotFound, Code::Conflict, Code::PeerUnreachable, Code::TokenExpired]);
    }
    if endpoint.is_locked_out() {
        codes.extend([Code::ClusterLocked, Code::IdentityConflict]);
    }
    if operation.request.is_some() {
        codes.insert(Code::MissingField);
    }
    codes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_endpoint_is_described_and_nothing_else() {
        let served: BTreeSet<(String, &str)> = endpoints().iter().map(|e| (e.method.to_string(), e.path)).collect();
        let described: BTreeSet<(String, &str)> =
            operations::OPERATIONS.iter().map(|o| (o.method.to_owned(), o.path)).collect();
        assert_eq!(served, described);
        let ids: BTreeSet<&str> = operations::OPERATIONS.iter().map(|o| o.id).collect();
        assert_eq!(ids.len(), operations::OPERATIONS.len(), "an operation id stands twice");
        for endpoint in endpoints() {
            let operation = endpoint.operation().unwrap();
            let name = format!("{} {}", endpoint.method, endpoint.path);
            assert!(operation.summary.len() > 8 && operation.summary.ends_with('.'), "{name}");
            assert!(operation.answers.iter().any(|(status, _)| (200..300).contains(status)), "{name}");
            let takes = operation.query.contains(&"dry_run");
            assert_eq!(
                takes,
                (endpoint.is_write() && !endpoint.path.ends_with("/sync")) || endpoint.is_first(),
                "{name}"
            );
        }
    }

    #[test]
    fn every_reference_leads_somewhere_and_every_schema_is_used() {
        let document = document().to_string();
        let schemas = schemas::all();
        let references: BTreeSet<&str> = document
            .split("#/components/schemas/")
            .skip(1)
            .map(|after| after.split('"').next().unwrap_or_default())
            .collect();
        let known: BTreeSet<&str> = schemas.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(references, known);
    }
}
