//! `application/x-www-form-urlencoded`: queries and the body of the token request.

use super::{answer::invalid, fields::suggestion};
use crate::model::Refused;

/// Key and value pairs as written, decoded; keys are unique.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn parse(text: &str) -> Result<Self, Refused> {
        let mut pairs: Vec<(String, String)> = Vec::new();
        for part in text.split('&').filter(|p| !p.is_empty()) {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            let decoded = |t| decode(t).ok_or_else(|| invalid("malformed percent-encoding or text that is not UTF-8"));
            let (key, value) = (decoded(key)?, decoded(value)?);
            if pairs.iter().any(|(k, _)| *k == key) {
                return Err(invalid(format!("parameter `{}` occurs twice", super::answer::clip(&key))));
            }
            pairs.push((key, value));
        }
        Ok(Self(pairs))
    }

    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// Refuses parameters that are not among `known`.
    pub(super) fn only(&self, known: &[&str]) -> Result<(), Refused> {
        match self.0.iter().find(|(k, _)| !known.contains(&k.as_str())) {
            Some((key, _)) => {
                Err(suggestion(invalid(format!("unknown parameter `{}`", super::answer::clip(key))), key, known))
            }
            None => Ok(()),
        }
    }

    /// A switch: absent, `true` or `false`; present without a value means true.
    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, Refused> {
        match self.get(key) {
            None => Ok(None),
            Some("" | "true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(_) => Err(invalid(format!("parameter `{key}` is neither true nor false"))),
        }
    }
}

fn decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        out.push(match b {
            b'+' => b' ',
            b'%' => {
                let digit = |b: u8| char::from(b).to_digit(16);
                let (high, low) = (digit(bytes.next()?)?, digit(bytes.next()?)?);
                u8::try_from(high * 16 + low).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn forms_are_decoded_and_ambiguity_is_refused() {
        let q = Query::parse("a=1%202+3&b=%C3%A9&c").unwrap();
        assert_eq!((q.get("a"), q.get("b"), q.flag("c")), (Some("1 2 3"), Some("é"), Ok(Some(true))));
        assert!(Query::parse("a=1&a=2").is_err() && Query::parse("a=%f").is_err() && Query::parse("a=%ff").is_err());
        let refused = q.only(&["a", "b", "d"]).unwrap_err();
        assert!(refused.text.contains("unknown parameter `c`"));
    }

    proptest! {
        #[test]
        fn any_text_parses_or_is_refused(text in ".{0,64}") {
            let _either = Query::parse(&text);
        }
    }
}
