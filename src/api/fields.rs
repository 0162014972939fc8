//! JSON bodies, field by field, so that every refusal names the field (api.md: unknown fields are 400).

use super::answer::{clip, invalid};
use crate::{
    license::{JsonError, parse_strict_json},
    model::{Code, Refused},
};
use serde_json::{Map, Value};

const SUGGESTED_EDITS_MAX: usize = 2;

/// One JSON object of a request.
pub(super) struct Fields {
    map: Map<String, Value>,
    /// How errors name it: `` or `routes[3].`.
    path: String,
}

impl Fields {
    /// Reads a body that must be one JSON object; unknown fields are not yet refused.
    pub(super) fn parse(body: &[u8]) -> Result<Self, Refused> {
        if body.trim_ascii().is_empty() {
            return Err(invalid("the body is empty: expected a JSON object"));
        }
        let value = parse_strict_json(body).map_err(|e| invalid(syntax_text(&e)))?;
        Self::of(value, String::new())
    }

    fn of(value: Value, path: String) -> Result<Self, Refused> {
        match value {
            Value::Object(map) => Ok(Self { map, path }),
            other => {
                let place = if path.is_empty() { "the body" } else { path.trim_end_matches('.') };
                Err(invalid(format!("{place} is {}: expected a JSON object", kind_of(&other))))
            }
        }
    }

    pub(super) fn has(&self, field: &str) -> bool {
        self.map.contains_key(field)
    }

    /// The whole object.
    pub(super) fn into_value(self) -> Value {
        Value::Object(self.map)
    }

    pub(super) fn only(self, known: &[&str]) -> Result<Self, Refused> {
        match self.map.keys().find(|k| !known.contains(&k.as_str())) {
            Some(key) => {
                let refused = invalid(format!("unknown field `{}{}`", self.path, clip(key)));
                Err(suggestion(refused, key, known))
            }
            None => Ok(self),
        }
    }

    /// Refuses `null` where it has no meaning: to leave a field alone is to leave it out.
    pub(super) fn no_nulls_but(self, nullable: &[&str]) -> Result<Self, Refused> {
        match self.map.iter().find(|(k, v)| v.is_null() && !nullable.contains(&k.as_str())) {
            Some((key, _)) => {
                let text = format!("field `{}{}` is null: leave it out to keep its value", self.path, clip(key));
                Err(invalid(text))
            }
            None => Ok(self),
        }
    }

    pub(super) fn missing(&self, field: &str) -> Refused {
        Refused::new(Code::MissingField, format!("field `{}{field}` is missing", self.path))
    }

    pub(super) fn wrong(&self, field: &str, expected: &str) -> Refused {
        invalid(format!("field `{}{field}` is not {expected}", self.path))
    }

    /// The value of a field; `null` counts as absent.
    pub(super) fn value(&self, field: &str) -> Option<&Value> {
        self.map.get(field).filter(|v| !v.is_null())
    }

    pub(super) fn text(&self, field: &str) -> Result<Option<&str>, Refused> {
        self.value(field).map(|v| v.as_str().ok_or_else(|| self.wrong(field, "a string"))).transpose()
    }

    pub(super) fn required_text(&self, field: &str) -> Result<&str, Refused> {
        self.text(field)?.ok_or_else(|| self.missing(field))
    }

    pub(super) fn flag(&self, field: &str) -> Result<Option<bool>, Refused> {
        self.value(field).map(|v| v.as_bool().ok_or_else(|| self.wrong(field, "true or false"))).transpose()
    }

    /// An integer from 0 to `max`.
    pub(super) fn integer(&self, field: &str, max: u64) -> Result<Option<u64>, Refused> {
        let in_range = |v: &Value| v.as_u64().filter(|n| *n <= max);
        self.value(field)
            .map(|v| in_range(v).ok_or_else(|| self.wrong(field, &format!("an integer from 0 to {max}"))))
            .transpose()
    }

    /// A list of strings, of at most `max` entries.
    pub(super) fn texts(&self, field: &str, max: usize) -> Result<Option<Vec<&str>>, Refused> {
        let Some(value) = self.value(field) else { return Ok(None) };
        let texts: Option<Vec<&str>> = value.as_array().and_then(|a| a.iter().map(Value::as_str).collect());
        let texts = texts.ok_or_else(|| self.wrong(field, "a list of strings"))?;
        if texts.len() > max {
            return Err(self.wrong(field, &format!("a list of at most {max} entries")));
        }
        Ok(Some(texts))
    }

    /// A list of objects, of 1 to `max` entries.
    pub(super) fn objects(&self, field: &str, max: usize) -> Result<Vec<Fields>, Refused> {
        let value = self.value(field).ok_or_else(|| self.missing(field))?;
        let list = value.as_array().ok_or_else(|| self.wrong(field, "a list"))?;
        if list.is_empty() || list.len() > max {
            return Err(self.wrong(field, &format!("a list of 1 to {max} entries")));
        }
        let entry = |(i, v): (usize, &Value)| Self::of(v.clone(), format!("{}{field}[{i}].", self.path));
        list.iter().enumerate().map(entry).collect()
    }
}

fn syntax_text(e: &JsonError) -> String {
    match e {
        JsonError::Syntax(e) => {
            format!("malformed JSON at line {} column {}", e.line(), e.column())
        }
        JsonError::DuplicateKey(key) => format!("field `{}` occurs twice", clip(key)),
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Adds `did you mean …?` where one of `known` is close to `given`.
pub(super) fn suggestion(refused: Refused, given: &str, known: &[&str]) -> Refused {
    let given: String = clip(given).to_ascii_lowercase();
    let nearest = known.iter().map(|k| (edits(&given, k), *k)).min();
    match nearest {
        Some((distance, name)) if distance <= SUGGESTED_EDITS_MAX.min(name.len() / 2) => {
            let text = format!("{} (did you mean `{name}`?)", refused.text);
            Refused { text, ..refused }
        }
        _ if known.is_empty() => refused,
        _ => refused.with_hint(format!("known: {}", known.join(", "))),
    }
}

/// Levenshtein distance in characters.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(body: &str) -> String {
        Fields::parse(body.as_bytes()).and_then(|f| f.only(&["name", "endpoints"])).err().unwrap().text
    }

    #[test]
    fn refusals_name_field_and_position() {
        assert_eq!(text(r#"{"nmae":1}"#), "unknown field `nmae` (did you mean `name`?)");
        assert_eq!(text(r#"{"zzz":1}"#), "unknown field `zzz`");
        assert_eq!(text("{\n \"name\": }"), "malformed JSON at line 2 column 10");
        assert_eq!(text("[]"), "the body is a list: expected a JSON object");
        assert_eq!(text(r#"{"name":1,"name":2}"#), "field `name` occurs twice");
        assert_eq!(text(""), "the body is empty: expected a JSON object");
        assert!(text(&"[".repeat(1_000_000)).starts_with("malformed JSON"));
    }

    #[test]
    fn values_have_types_and_ranges() {
        let f = Fields::parse(br#"{"a":5,"b":"x","c":null,"d":[{"e":1}],"n":-1}"#).unwrap();
        assert_eq!(f.integer("a", 5), Ok(Some(5)));
        assert_eq!(f.integer("a", 4).unwrap_err().text, "field `a` is not an integer from 0 to 4");
        assert!(f.integer("n", 4).is_err() && f.text("a").is_err() && f.flag("b").is_err());
        assert_eq!(f.text("c"), Ok(None));
        assert_eq!(f.required_text("zz").unwrap_err().code, Code::MissingField);
        let inner = f.objects("d", 9).unwrap().remove(0);
        assert_eq!(inner.text("e").unwrap_err().text, "field `d[0].e` is not a string");
    }
}
