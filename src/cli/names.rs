//! What an argument names: an id, a bare ULID, an unambiguous id prefix, or a name (cli.md).

use super::errors::{CliError, Exit, nearest};
use serde_json::Value;
use std::{fmt::Display, str::FromStr};

/// An argument that is a whole id needs no look-up.
pub fn as_id<I: FromStr + Display>(argument: &str) -> Option<String> {
    argument.parse::<I>().ok().map(|id| id.to_string())
}

/// The id of the one object among `objects` that `argument` names. `kind` begins the error: `target peer not found`.
pub fn pick(kind: &str, prefix: &str, argument: &str, objects: &[Value]) -> Result<String, CliError> {
    let id_of = |o: &Value| o["id"].as_str().unwrap_or_default().to_owned();
    let name_of = |o: &Value| o["name"].as_str().unwrap_or_default().to_owned();
    let same_name = |o: &&Value| !argument.is_empty() && name_of(o).to_lowercase() == argument.to_lowercase();
    let mut found: Vec<&Value> = objects.iter().filter(same_name).collect();
    if found.is_empty() {
        found = objects.iter().filter(|o| is_id_prefix(argument, prefix, &id_of(o))).collect();
    }
    match found.as_slice() {
        [one] => Ok(id_of(one)),
        [] => {
            let names: Vec<String> = objects.iter().map(name_of).collect();
            let error = CliError::not_found(format!("{kind} not found")).with_fact("asked for", argument);
            Err(match nearest(argument, names.iter().map(String::as_str)) {
                Some(near) => error.with_hint(format!("did you mean {near}?")),
                None => error,
            })
        }
        many => {
            let mut error = CliError::new(Exit::Usage, "AMBIGUOUS", format!("{kind} `{argument}` is ambiguous"));
            for o in many {
                error = error.with_fact(&id_of(o), name_of(o));
            }
            Err(error.with_hint("give the whole id"))
        }
    }
}

/// Ids are compared without case; the prefix `peer_` may be left out.
fn is_id_prefix(argument: &str, prefix: &str, id: &str) -> bool {
    let (argument, id) = (argument.to_ascii_uppercase(), id.to_ascii_uppercase());
    let prefix = format!("{}_", prefix.to_ascii_uppercase());
    let bare = argument.strip_prefix(&prefix).unwrap_or(&argument);
    !bare.is_empty() && id.strip_prefix(&prefix).is_some_and(|ulid| ulid.starts_with(bare))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::PeerId;
    use serde_json::json;

    fn peers() -> Vec<Value> {
        vec![
            json!({"id":"peer_01AAAAAAAAAAAAAAAAAAAAAAAA","name":"london"}),
            json!({"id":"peer_01AABBBBBBBBBBBBBBBBBBBBBB","name":"Tokyo"}),
            json!({"id":"peer_01CCCCCCCCCCCCCCCCCCCCCCCC","name":"tokyo"}),
        ]
    }

    #[test]
    fn names_and_prefixes_pick_one_object() {
        let pick = |argument: &str| pick("peer", "peer", argument, &peers());
        assert_eq!(pick("LONDON").unwrap(), "peer_01AAAAAAAAAAAAAAAAAAAAAAAA");
        assert_eq!(pick("peer_01c").unwrap(), "peer_01CCCCCCCCCCCCCCCCCCCCCCCC");
        assert_eq!(pick("01aab").unwrap(), "peer_01AABBBBBBBBBBBBBBBBBBBBBB");
        let ambiguous = pick("tokyo").unwrap_err();
        assert_eq!((ambiguous.exit, ambiguous.facts.len()), (Exit::Usage, 2));
        assert_eq!(pick("01AA").unwrap_err().exit, Exit::Usage);
        let unknown = pick("lodnon").unwrap_err();
        assert_eq!((unknown.text.as_str(), unknown.hint.as_deref()), ("peer not found", Some("did you mean london?")));
        assert!(pick("peer_").is_err() && pick("").is_err());
    }

    #[test]
    fn bare_and_prefixed_ulids_need_no_look_up() {
        let whole = "peer_01AAAAAAAAAAAAAAAAAAAAAAAA";
        assert_eq!(as_id::<PeerId>(whole).as_deref(), Some(whole));
        assert_eq!(as_id::<PeerId>("01AAAAAAAAAAAAAAAAAAAAAAAA").as_deref(), Some(whole));
        assert_eq!(as_id::<PeerId>("london"), None);
    }
}
