//! Bad input, field by field, made from the schemas of the API document: a clear refusal, and nothing changes.

use super::{
    agent::{Agent, license, terms},
    objects::{know_peer, service},
};
use crate::{
    api::{endpoints::endpoints, openapi::document},
    license::{Features, Terms},
    store::StoreError,
};
use hyper::Method;
use serde_json::{Map, Value, json};
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

async fn agent() -> (Agent, Map<String, Value>) {
    let mut agent = Agent::new().await;
    agent.caller.bootstrap(license(Terms { features: Features::every(), max_services: 9, ..terms(1) })).await;
    let target = know_peer(&agent, 9, true).await;
    let made = service(&agent, json!({"target_peer_id": target, "name": "one"})).await.expect(201);
    let routes = format!("/v1/services/{}/routes", made["id"].as_str().unwrap());
    agent.caller.post(&routes, json!({"routes": [{"dest_cidr": "10.0.0.0/8"}]})).await.expect(201);
    // What a right body has, by field.
    let right = json!({
        "target_peer_id": target, "endpoints": ["127.0.0.1:1"], "routes": [{"dest_cidr": "10.1.0.0/16"}],
        "src": "10.0.0.1", "dst": "10.0.0.2", "proto": "tcp", "within_s": 5, "services": ["one"], "purpose": "test",
        "id": "cfm_x",
    });
    let mut right = right.as_object().unwrap().clone();
    right.insert("sid".into(), made["id"].clone());
    right.insert("peer".into(), json!(target));
    (agent, right)
}

/// Method, path and schema of the body of every write that operators make.
fn writes(right: &Map<String, Value>) -> Vec<(Method, String, Value)> {
    let document = document();
    let mut found = Vec::new();
    for endpoint in endpoints().into_iter().filter(|e| e.is_operators()) {
        let Some(name) = endpoint.operation().unwrap().request else { continue };
        let text = |key: &str| right[key].as_str().unwrap().to_owned();
        let path = endpoint.path.replace("{sid}", &text("sid")).replace("{rid}", "1").replace("{id}", &text("peer"));
        let dry = if endpoint.is_write() { "?dry_run=true" } else { "" };
        let schema = document["components"]["schemas"][name].clone();
        found.push((endpoint.method.clone(), format!("{path}{dry}"), schema));
    }
    found
}

fn right_body(schema: &Value, right: &Map<String, Value>) -> Value {
    let mut required: Vec<&Value> = schema["required"].as_array().into_iter().flatten().collect();
    required.extend(schema["anyOf"][0]["required"].as_array().into_iter().flatten());
    required.iter().map(|name| (name.as_str().unwrap().to_owned(), right[name.as_str().unwrap()].clone())).collect()
}

/// The JSON types that a schema takes.
fn types(schema: &Value) -> Vec<String> {
    if let Some(any) = schema["anyOf"].as_array() {
        return any.iter().flat_map(types).collect();
    }
    schema["type"].as_str().or(schema["const"].as_str().map(|_| "string")).map(str::to_owned).into_iter().collect()
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[tokio::test]
async fn wrong_types_unknown_fields_and_huge_numbers_are_refused_by_name() {
    let (agent, right) = agent().await;
    let state = || agent.node.store().read(|v| Ok::<_, StoreError>((v.all_records()?, v.peers()?))).unwrap();
    let before = state();
    let send = async |method: &Method, path: &str, body: &Value| {
        let bearer = format!("Bearer {}", agent.caller.token.as_deref().unwrap());
        let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
        agent.caller.send(method.clone(), path, &headers, body.to_string()).await
    };
    let corpus =
        [json!({"a": 1}), json!([[]]), json!(true), json!("x"), json!(1.5), json!(-1), json!(u64::MAX), json!(1e300)];
    for (method, path, schema) in writes(&right) {
        let Some(fields) = schema["properties"].as_object().filter(|_| schema["additionalProperties"] == false) else {
            continue;
        };
        let body = right_body(&schema, &right);
        // What stands beside `endpoints` in `address` does not count.
        for (field, described) in fields.iter().filter(|(field, _)| *field != "address") {
            for bad in corpus.iter().filter(|bad| !types(described).contains(&type_of(bad).to_owned())) {
                let mut body = body.clone();
                body[field] = bad.clone();
                let reply = send(&method, &path, &body).await;
                assert_eq!(reply.status, 400, "{method} {path} {body}: {}", reply.text);
                // The one field that counts only where another one is missing, or one of a list.
                let named = [field.as_str(), "endpoints", "routes"].iter().any(|name| reply.error().contains(name));
                assert!(named, "{method} {path} {body}: {}", reply.text);
            }
            for number in [json!(-1), json!(u64::MAX), json!(1u64 << 40)] {
                let mut body = body.clone();
                body[field] = number;
                assert_eq!(send(&method, &path, &body).await.status, 400, "{method} {path} {body}");
            }
            let mut typo = body.clone();
            typo.as_object_mut().unwrap().insert(format!("{field}x"), Value::Null);
            let reply = send(&method, &path, &typo).await;
            assert_eq!(reply.refusal(), (400, "INVALID_REQUEST"), "{method} {path}");
            assert!(reply.error().contains("unknown field"), "{}", reply.text);
        }
        for broken in ["", "{", "[]", "null", "\"x\"", "{\"a\":1,\"a\":2}", "\u{feff}{}", "{\"a\":\"\u{1}\"}", "nul"] {
            let bearer = format!("Bearer {}", agent.caller.token.as_deref().unwrap());
            let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
            let reply = agent.caller.send(method.clone(), &path, &headers, broken).await;
            assert_eq!(reply.refusal(), (400, "INVALID_REQUEST"), "{method} {path} {broken}: {}", reply.text);
        }
        let deep = format!("{{\"name\":{}", "[".repeat(500_000));
        let bearer = format!("Bearer {}", agent.caller.token.as_deref().unwrap());
        let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
        let reply = agent.caller.send(method.clone(), &path, &headers, deep).await;
        assert_eq!(reply.refusal(), (400, "INVALID_REQUEST"), "{method} {path}");
        let large = format!("{{\"name\":\"{}\"}}", "x".repeat(1024 * 1024));
        let reply = agent.caller.send(method.clone(), &path, &headers, large).await;
        assert_eq!(reply.refusal(), (413, "PAYLOAD_TOO_LARGE"), "{method} {path}");
    }
    assert_eq!(state(), before);
}

#[tokio::test]
async fn hostile_text_in_any_field_changes_nothing_but_data() {
    let (agent, right) = agent().await;
    let state = || agent.node.store().read(|v| Ok::<_, StoreError>((v.all_records()?, v.peers()?))).unwrap();
    let before = state();
    let hostile = [
        "'; DROP TABLE peers; --",
        "\" OR \"1\"=\"1",
        "$(reboot)",
        "`id`",
        "; flush ruleset",
        "../../etc/passwd",
        "a\nERROR forged line",
        "a\u{0}b",
        "\u{202e}desrever",
        "\u{200b}",
        "e\u{301}\u{301}\u{301}",
        "\u{1f4a9}",
        "%n%s%x",
        "{{7*7}}",
        "<script>alert(1)</script>",
        "Robert\\\"); --",
        "\u{feff}",
        "",
        "   ",
        "-rf",
    ];
    for (method, path, schema) in writes(&right) {
        for field in schema["properties"].as_object().into_iter().flatten().map(|(field, _)| field) {
            for text in hostile {
                let mut body = right_body(&schema, &right);
                body[field] = json!(text);
                let bearer = format!("Bearer {}", agent.caller.token.as_deref().unwrap());
                let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
                let reply = agent.caller.send(method.clone(), &path, &headers, body.to_string()).await;
                let clear = (200..300).contains(&reply.status) || (400..500).contains(&reply.status);
                assert!(clear, "{method} {path} {body}: {}", reply.text);
                if reply.status >= 400 {
                    let steers = |c: char| c.is_control() || c == '\u{202e}';
                    assert!(!reply.error().chars().any(steers), "{method} {path} {body}: {}", reply.text);
                }
            }
        }
        for text in hostile {
            let quoted: String = text.bytes().map(|b| format!("%{b:02x}")).collect();
            for path in ["/v1/peers/", "/v1/services/", "/v1/credentials/"] {
                let status = agent.caller.delete(&format!("{path}{quoted}")).await.status;
                assert!([404, 405].contains(&status), "{path}{text}: {status}");
            }
            let filtered = agent.caller.get(&format!("/v1/services?source_peer_id={quoted}")).await;
            assert_eq!(filtered.refusal(), (400, "INVALID_REQUEST"), "{text}");
        }
    }
    assert_eq!(state(), before);
}

/// security.md row 15: none of these holds memory or a connection for long.
#[tokio::test]
async fn floods_of_headers_and_slow_senders_are_cut_off() {
    let agent = Agent::bootstrapped().await;
    let mut stream = TcpStream::connect(agent.caller.addr).await.unwrap();
    let mut sent = b"GET /livez HTTP/1.1\r\nhost: x\r\n".to_vec();
    for n in 0..100_000 {
        sent.extend_from_slice(format!("h{n}: 1\r\n").as_bytes());
    }
    drop(stream.write_all(&sent).await);
    let mut answer = vec![0; 64];
    let read = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut answer)).await;
    let answer = String::from_utf8_lossy(&answer[..read.map_or(0, |r| r.unwrap_or(0))]).into_owned();
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");

    // A head that never ends is given up after ten seconds.
    let mut slow = TcpStream::connect(agent.caller.addr).await.unwrap();
    slow.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n").await.unwrap();
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(20), slow.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "the connection is still open");

    // A gigabyte that is announced is refused unread; one that is not, at the limit.
    let token = agent.caller.token.clone().unwrap();
    let head = format!(
        "POST /v1/services HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-type: application/json\r\n"
    );
    for length in ["content-length: 1073741824\r\n\r\n", "transfer-encoding: chunked\r\n\r\n"] {
        let mut stream = TcpStream::connect(agent.caller.addr).await.unwrap();
        stream.write_all(format!("{head}{length}").as_bytes()).await.unwrap();
        let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
        let mut written = 0;
        for _ in 0..16_384 {
            if stream.write_all(chunk.as_bytes()).await.is_err() {
                break;
            }
            written += chunk.len();
            if written > 2 * 1024 * 1024 {
                break;
            }
        }
        let mut answer = vec![0; 64];
        let read = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut answer)).await;
        let answer = String::from_utf8_lossy(&answer[..read.map_or(0, |r| r.unwrap_or(0))]).into_owned();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 413"), "{answer}");
    }
    agent.caller.get("/livez").await.expect(200);
}
