//! Every answer that any test of the API gets is compared with the OpenAPI document: its status is documented, and its
//! body has the documented shape.

use crate::api::openapi::document;
use hyper::Method;
use serde_json::Value;
use std::sync::OnceLock;

/// Panics if an answer is not as documented. Paths that are not served are not looked at.
#[track_caller]
pub(super) fn check(method: &Method, path: &str, status: u16, media: &str, text: &str) {
    static DOCUMENT: OnceLock<Value> = OnceLock::new();
    let document = DOCUMENT.get_or_init(document);
    let path = path.split('?').next().unwrap_or(path);
    let Some(operation) = find(document, method, path) else { return };
    let response = &operation["responses"][status.to_string()];
    assert!(response.is_object(), "{method} {path}: status {status} is not documented: {text}");
    let Some(content) = response["content"].as_object() else {
        assert_eq!(text, "", "{method} {path}: {status} has no body");
        return;
    };
    let media = media.split(';').next().unwrap_or_default();
    let described = content.get(media).unwrap_or_else(|| panic!("{method} {path}: {status} is not {media}: {text}"));
    if media == "application/json" {
        let value: Value = serde_json::from_str(text).unwrap();
        if let Err(why) = conforms(document, &described["schema"], &value) {
            panic!("{method} {path}: {status} is not as documented: {why}\n{text}");
        }
    }
}

/// The operation whose path fits; literal segments before parameters.
fn find<'a>(document: &'a Value, method: &Method, path: &str) -> Option<&'a Value> {
    let segments: Vec<&str> = path.split('/').collect();
    let fits = |template: &str| {
        let parts: Vec<&str> = template.split('/').collect();
        parts.len() == segments.len() && parts.iter().zip(&segments).all(|(p, s)| p.starts_with('{') || p == s)
    };
    let method = method.as_str().to_ascii_lowercase();
    let mut fitting: Vec<(&String, &Value)> =
        document["paths"].as_object()?.iter().filter(|(template, _)| fits(template)).collect();
    fitting.sort_by_key(|(template, _)| template.matches('{').count());
    fitting.iter().find_map(|(_, operations)| operations.get(&method))
}

/// The part of JSON Schema that `schemas` uses.
fn conforms(document: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    if let Some(reference) = schema["$ref"].as_str() {
        let pointer = reference.trim_start_matches('#');
        return conforms(document, document.pointer(pointer).ok_or("a reference leads nowhere")?, value);
    }
    if let Some(any) = schema["anyOf"].as_array().filter(|_| schema["type"].is_null()) {
        let failures: Vec<String> = any.iter().filter_map(|s| conforms(document, s, value).err()).collect();
        return if failures.len() < any.len() { Ok(()) } else { Err(failures.join("; ")) };
    }
    let is_type = match schema["type"].as_str() {
        None => true,
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        Some("boolean") => value.is_boolean(),
        Some("null") => value.is_null(),
        Some(other) => return Err(format!("schema has type {other}")),
    };
    if !is_type {
        return Err(format!("{value} is no {}", schema["type"]));
    }
    if schema["enum"].as_array().is_some_and(|words| !words.contains(value)) {
        return Err(format!("{value} is none of {}", schema["enum"]));
    }
    if schema.get("const").is_some_and(|only| only != value) {
        return Err(format!("{value} is not {}", schema["const"]));
    }
    if schema["minimum"].as_i64().is_some_and(|min| value.as_i64().is_some_and(|v| v < min)) {
        return Err(format!("{value} is too small"));
    }
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        value.get(name).ok_or_else(|| format!("field {name} is missing"))?;
    }
    for (name, field) in value.as_object().into_iter().flatten() {
        match schema["properties"].get(name) {
            Some(known) => conforms(document, known, field).map_err(|e| format!("{name}: {e}"))?,
            None if schema["additionalProperties"].is_object() => {
                conforms(document, &schema["additionalProperties"], field).map_err(|e| format!("{name}: {e}"))?;
            }
            // What is answered is described, unless nothing of it is.
            None if schema["properties"].is_object() => return Err(format!("field {name} is not described")),
            None => {}
        }
    }
    if schema["items"].is_object() {
        for (i, item) in value.as_array().into_iter().flatten().enumerate() {
            conforms(document, &schema["items"], item).map_err(|e| format!("[{i}] {e}"))?;
        }
    }
    Ok(())
}
