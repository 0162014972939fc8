//! The JSON Schema of a cluster file, for editors: JSON Schema 2020-12, from the same table that the reader uses.

use super::{
    fields::{Field, Kind, Table},
    read::number_max,
};
use serde_json::{Map, Value, json};

const VARIABLE: &str = r"\$\{[A-Za-z_][A-Za-z0-9_]*\}";

pub fn schema() -> Value {
    let definitions: Map<String, Value> =
        Table::ALL.into_iter().filter(|t| *t != Table::Root).map(|t| (key(t).to_owned(), object(t))).collect();
    let mut root = object(Table::Root);
    root["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    root["title"] = json!("Arctic cluster file");
    root["$defs"] = Value::Object(definitions);
    root
}

fn key(table: Table) -> &'static str {
    match table {
        Table::Root => "file",
        Table::Peer => "peer",
        Table::Service => "service",
        Table::Interface => "interface",
        Table::Qos => "qos",
        Table::Route => "route",
    }
}

fn object(table: Table) -> Value {
    let properties: Map<String, Value> = table.fields().iter().map(|f| (f.name.to_owned(), property(f))).collect();
    let required: Vec<&str> = table.fields().iter().filter(|f| f.required).map(|f| f.name).collect();
    let mut object = json!({"type": "object", "additionalProperties": false, "properties": properties});
    if !required.is_empty() {
        object["required"] = json!(required);
    }
    match table {
        Table::Peer => object["anyOf"] = json!([{"required": ["endpoints"]}, {"required": ["address"]}]),
        Table::Route => object["anyOf"] = json!([{"required": ["source_cidr"]}, {"required": ["dest_cidr"]}]),
        _ => {}
    }
    object
}

fn property(field: &Field) -> Value {
    let mut property = of_kind(field);
    property["description"] = json!(field.about);
    property
}

fn of_kind(field: &Field) -> Value {
    let text = |pattern: &str| json!({"type": "string", "pattern": format!("^({pattern})$|{VARIABLE}")});
    match field.kind {
        Kind::Version => json!({"const": "v1"}),
        Kind::Path => json!({"type": "string", "minLength": 1}),
        Kind::Name => json!({"type": "string", "minLength": 1, "maxLength": 63}),
        Kind::Endpoint => json!({"type": "string", "minLength": 1}),
        Kind::Endpoints => json!({"type": "array", "minItems": 1, "maxItems": 16,
            "items": {"type": "string", "minLength": 1}}),
        Kind::Flag => json!({"type": "boolean"}),
        Kind::Access => text("public|internal"),
        Kind::Transport => text("tcp|kcp"),
        Kind::HostCidr4 => text(r"[0-9.]+/[0-9]{1,2}"),
        Kind::HostCidr6 => text(r"[0-9A-Fa-f:.]+/[0-9]{1,3}"),
        Kind::RouteCidr => text(r"[0-9A-Fa-f:.]+/[0-9]{1,3}"),
        Kind::Rate | Kind::Priority => {
            json!({"type": "integer", "minimum": 0, "maximum": number_max(field.kind)})
        }
        Kind::One(table) => json!({"$ref": format!("#/$defs/{}", key(table))}),
        Kind::Many(Table::Peer) => json!({"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/peer"}}),
        Kind::Many(table) => json!({"type": "array", "items": {"$ref": format!("#/$defs/{}", key(table))}}),
    }
}
