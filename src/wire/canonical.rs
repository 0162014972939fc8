//! Canonical JSON (RFC 8785), the form that is hashed and signed. Numbers are integers within ±(2^53 − 1); anything
//! else is refused, so that no two parsers can disagree about a signed value.

use serde_json::Value;
use sha2::{Digest, Sha256};

/// Largest integer that every JSON implementation reads exactly (RFC 7493 §2.2).
const MAX_SAFE_INTEGER: u64 = (1 << 53) - 1;
/// Deepest nesting of a signed value.
const MAX_DEPTH_LEVELS: usize = 32;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CanonicalError {
    #[error("number {0} has no canonical form: only integers of up to 53 bits have")]
    Number(String),
    #[error("nested deeper than {MAX_DEPTH_LEVELS} levels")]
    Depth,
}

/// RFC 8785 bytes of `value`.
pub fn to_canonical(value: &Value) -> Result<Vec<u8>, CanonicalError> {
    let mut out = Vec::new();
    write(value, 0, &mut out)?;
    Ok(out)
}

/// SHA-256 of the canonical bytes.
pub fn digest(value: &Value) -> Result<[u8; 32], CanonicalError> {
    Ok(Sha256::digest(to_canonical(value)?).into())
}

fn write(value: &Value, depth: usize, out: &mut Vec<u8>) -> Result<(), CanonicalError> {
    if depth > MAX_DEPTH_LEVELS {
        return Err(CanonicalError::Depth);
    }
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Number(n) => {
            let safe = n.as_u64().is_some_and(|u| u <= MAX_SAFE_INTEGER)
                || n.as_i64().is_some_and(|i| i.unsigned_abs() <= MAX_SAFE_INTEGER);
            if !safe {
                return Err(CanonicalError::Number(n.to_string()));
            }
            out.extend_from_slice(n.to_string().as_bytes());
        }
        Value::String(s) => write_string(s, out),
        Value::Array(items) => {
            out.push(b'[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write(item, depth + 1, out)?;
            }
            out.push(b']');
        }
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by(|a, b| a.0.encode_utf16().cmp(b.0.encode_utf16()));
            out.push(b'{');
            for (i, (key, item)) in entries.into_iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write_string(key, out);
                out.push(b':');
                write(item, depth + 1, out)?;
            }
            out.push(b'}');
        }
    }
    Ok(())
}

fn write_string(s: &str, out: &mut Vec<u8>) {
    // serde_json escapes exactly what RFC 8785 §3.2.2.2 asks for: the two-letter forms and \u00xx in lower case.
    serde_json::to_writer(out, s).expect("writing a string into memory cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn text(v: Value) -> String {
        String::from_utf8(to_canonical(&v).unwrap()).unwrap()
    }

    #[test]
    fn keys_sort_by_utf16_and_strings_keep_the_rfc_8785_escapes() {
        let v = json!({"\u{20ac}": 1, "\r": 2, "1": 3, "\u{1f600}": 4, "\u{80}": 5, "\u{fb33}": 6});
        assert_eq!(text(v), "{\"\\r\":2,\"1\":3,\"\u{80}\":5,\"\u{20ac}\":1,\"\u{1f600}\":4,\"\u{fb33}\":6}");
        assert_eq!(text(json!("\u{0008}\t\n\u{000f}\"\\/\u{7f}")), "\"\\b\\t\\n\\u000f\\\"\\\\/\u{7f}\"");
    }

    #[test]
    fn numbers_without_one_reading_are_refused() {
        assert_eq!(text(json!([0, -1, 9007199254740991u64])), "[0,-1,9007199254740991]");
        assert!(to_canonical(&json!(1.5)).is_err());
        assert!(to_canonical(&json!(9007199254740992u64)).is_err());
        let mut deep = json!(1);
        for _ in 0..40 {
            deep = json!([deep]);
        }
        assert_eq!(to_canonical(&deep), Err(CanonicalError::Depth));
    }
}
