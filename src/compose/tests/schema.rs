//! The schema says the same as the reader, as far as a schema can: about keys, types, ranges and what is required.

use super::world::live_state;
use crate::compose::{Rules, export, parse, read, schema};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Whether `value` is valid by the keywords that our schema uses; patterns are left to editors.
fn is_valid(schema: &Value, value: &Value, root: &Value) -> bool {
    if let Some(reference) = schema["$ref"].as_str() {
        let target = root.pointer(reference.trim_start_matches('#')).expect("a definition");
        return is_valid(target, value, root);
    }
    let known = [
        "type",
        "additionalProperties",
        "properties",
        "required",
        "anyOf",
        "items",
        "const",
        "pattern",
        "minLength",
        "maxLength",
        "minItems",
        "maxItems",
        "minimum",
        "maximum",
        "description",
        "$schema",
        "$defs",
        "title",
    ];
    schema.as_object().unwrap().keys().all(|keyword| {
        assert!(known.contains(&keyword.as_str()), "{keyword} is not checked here");
        let wanted = &schema[keyword.as_str()];
        match keyword.as_str() {
            "type" => has_type(wanted.as_str().unwrap(), value),
            "const" => value == wanted,
            "minimum" => value.as_u64().is_none_or(|n| n >= wanted.as_u64().unwrap()),
            "maximum" => value.as_u64().is_none_or(|n| n <= wanted.as_u64().unwrap()),
            "minLength" => value.as_str().is_none_or(|t| t.chars().count() as u64 >= wanted.as_u64().unwrap()),
            "maxLength" => value.as_str().is_none_or(|t| t.chars().count() as u64 <= wanted.as_u64().unwrap()),
            "minItems" => value.as_array().is_none_or(|l| l.len() as u64 >= wanted.as_u64().unwrap()),
            "maxItems" => value.as_array().is_none_or(|l| l.len() as u64 <= wanted.as_u64().unwrap()),
            "required" => wanted.as_array().unwrap().iter().all(|k| value.get(k.as_str().unwrap()).is_some()),
            "anyOf" => wanted.as_array().unwrap().iter().any(|one| is_valid(one, value, root)),
            "items" => value.as_array().is_none_or(|l| l.iter().all(|item| is_valid(wanted, item, root))),
            "properties" => value.as_object().is_none_or(|o| {
                o.iter().all(|(key, inner)| wanted.get(key).is_none_or(|schema| is_valid(schema, inner, root)))
            }),
            "additionalProperties" => {
                value.as_object().is_none_or(|o| o.keys().all(|k| schema["properties"].get(k).is_some()))
            }
            _ => true,
        }
    })
}

fn has_type(name: &str, value: &Value) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64(),
        other => panic!("{other} is not checked here"),
    }
}

fn reader_takes(value: &Value) -> bool {
    let text = serde_json::to_string(value).unwrap();
    parse(&text).is_ok_and(|document| read(&document, Rules::Full, &|_| None).is_ok())
}

/// Paths of everything in a value.
fn pointers(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        Value::Object(map) => map.iter().for_each(|(key, inner)| pointers(inner, &format!("{at}/{key}"), found)),
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(i, inner)| pointers(inner, &format!("{at}/{i}"), found))
        }
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn both_take_a_good_file_and_refuse_it_with_a_wrong_type_or_key(live in live_state(), place: prop::sample::Index, wrong in 0usize..3) {
        let root = schema();
        let text = export(&live, &[], false).text;
        let mut file: Value = serde_saphyr::from_str(&text).unwrap();
        prop_assert!(is_valid(&root, &file, &root) && reader_takes(&file), "{text}");
        let mut all = Vec::new();
        pointers(&file, "", &mut all);
        let at = place.get(&all).clone();
        let target = file.pointer_mut(&at).unwrap();
        match (wrong, &mut *target) {
            (0, Value::Object(map)) => drop(map.insert("no_such_key".to_owned(), json!(1))),
            (1, Value::Array(list)) => list.push(json!(7)),
            _ => *target = if target.is_object() { json!([1]) } else { json!({"x": 1}) },
        }
        prop_assert!(!is_valid(&root, &file, &root), "the schema takes {at} of {file}");
        prop_assert!(!reader_takes(&file), "the reader takes {at} of {file}");
    }
}
