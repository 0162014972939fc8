use super::*;
use serde_json::{Map, Value, json};

fn with(change: impl FnOnce(&mut Map<String, Value>)) -> Vec<u8> {
    let mut value = license().as_value().clone();
    change(value.as_object_mut().unwrap());
    serde_json::to_vec(&value).unwrap()
}

fn refused(change: impl FnOnce(&mut Map<String, Value>)) -> LicenseError {
    LicenseDocument::parse(&with(change)).unwrap_err()
}

/// The reason that `bytes` is not a license of ours, if it is none.
fn reject(bytes: &[u8]) -> Option<LicenseError> {
    LicenseDocument::parse(bytes).and_then(|l| l.verify(&roots())).err()
}

// accepts: 003-02
#[test]
fn a_license_is_accepted_only_with_the_signature_of_a_known_key() {
    let document = license();
    let text = serde_json::to_vec_pretty(document.as_value()).unwrap();
    assert_eq!(LicenseDocument::parse(&text).unwrap(), document);
    document.verify(&roots()).unwrap();

    let other = SigningKey::from_seed([43; 32]);
    let stranger = LicenseDocument::issue(&other, terms(2)).unwrap();
    let error = stranger.verify(&roots()).unwrap_err();
    assert!(
        matches!(&error, LicenseError::UnknownKey { key_id, .. } if *key_id == TrustRoots::key_id(&other.public()))
    );

    // The stranger claims our key id and signs again.
    let mut forged = stranger.as_value().clone();
    forged["key_id"] = json!(document.key_id());
    assert!(matches!(reject(&serde_json::to_vec(&forged).unwrap()), Some(LicenseError::BadSignature { .. })));
}

#[test]
fn a_build_without_keys_says_so() {
    let error = license().verify(&TrustRoots::default()).unwrap_err();
    assert_eq!(error.to_string(), "this build embeds no license keys");
}

#[test]
fn the_key_id_is_the_start_of_the_sha_256_of_the_key() {
    use sha2::{Digest, Sha256};
    let key = vendor().public();
    let digest: String = Sha256::digest(key.as_bytes()).iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(TrustRoots::key_id(&key), digest[..16]);
    assert_eq!(roots().key_ids(), [&digest[..16]]);
    assert_eq!(license().key_id(), &digest[..16]);
}

#[test]
fn the_signed_message_is_the_domain_a_zero_byte_and_the_canonical_rest() {
    let document = license();
    let mut rest = document.as_value().clone();
    let signature = rest.as_object_mut().unwrap().remove("signature").unwrap();
    let canonical = crate::wire::canonical::to_canonical(&rest).unwrap();
    let message = [b"arctic/license/v1\0".as_slice(), &canonical].concat();
    assert_eq!(signature, json!(vendor().sign(&message)));
}

#[test]
fn every_change_of_one_byte_in_any_field_is_rejected() {
    let mut extra = Map::new();
    extra.insert("support".into(), json!({"level": "gold", "hours": [8, 18]}));
    let document = LicenseDocument::issue_with_extra_fields(&vendor(), terms(2), extra).unwrap();
    document.verify(&roots()).unwrap();

    let (mut text, mut spans) = (Vec::from(b"{"), Vec::new());
    for (name, value) in document.as_value().as_object().unwrap() {
        let begin = text.len();
        text.extend_from_slice(format!("{}:{value}", json!(name)).as_bytes());
        spans.push((name.clone(), begin..text.len()));
        text.push(b',');
    }
    *text.last_mut().unwrap() = b'}';
    assert_eq!(reject(&text).map(|e| e.to_string()), None);

    let mut mutants = 0;
    for (field, span) in &spans {
        for at in span.clone() {
            for new in [text[at] ^ 1, text[at] ^ 0x20, b'0', b'9', b'Z', b' '] {
                if new == text[at] {
                    continue;
                }
                let mut mutant = text.clone();
                mutant[at] = new;
                assert!(reject(&mutant).is_some(), "{field}: byte {at} changed to {:?} passes", new as char);
                mutants += 1;
            }
        }
    }
    assert_eq!(spans.len(), 11);
    assert!(mutants >= 2000, "{mutants} mutants");
}

#[test]
fn a_field_less_or_more_is_rejected() {
    for name in license().as_value().as_object().unwrap().keys() {
        let error = reject(&with(|m| drop(m.remove(name)))).unwrap();
        let optional = name == "customer_name";
        assert!(optional || matches!(error, LicenseError::MissingField(f) if f == name), "{name}: {error}");
    }
    assert!(matches!(reject(&with(|m| drop(m.insert("x".into(), json!(1))))), Some(LicenseError::BadSignature { .. })));
}

#[test]
fn each_malformed_field_has_its_own_reason() {
    let wrong = |field: &'static str, value: Value| match refused(|m| drop(m.insert(field.into(), value))) {
        LicenseError::WrongType { field: named, .. } => assert_eq!(named, field),
        other => panic!("{field}: {other}"),
    };
    wrong("license_id", json!(7));
    wrong("license_id", json!("lic_x"));
    wrong("license_id", json!(license().license_id().to_string().to_lowercase()));
    wrong("license_id", json!(license().license_id().to_string()["lic_".len()..]));
    wrong("customer_id", json!(license().license_id().to_string()));
    wrong("customer_name", json!(null));
    wrong("issued_at", json!(1_800_000_000));
    wrong("expires_at", json!("2030-02-30T00:00:00Z"));
    wrong("max_nodes", json!("5"));
    wrong("max_services", json!(1u64 << 32));
    wrong("features", json!("kcp"));
    wrong("features", json!(["kcp", 1]));
    wrong("features", json!(["kcp", "*"]));
    wrong("key_id", json!("0123456789ABCDEF"));
    wrong("key_id", json!("0123"));
    wrong("signature", json!("AAAA"));
    for field in ["max_nodes", "max_services"] {
        for n in [0, -1] {
            let error = refused(|m| drop(m.insert(field.into(), json!(n))));
            assert!(matches!(error, LicenseError::LimitBelowOne(f) if f == field));
        }
    }
    let error = refused(|m| drop(m.insert("expires_at".into(), m["issued_at"].clone())));
    assert!(matches!(error, LicenseError::ExpiresBeforeIssue { .. }));
    assert!(matches!(LicenseDocument::parse(b"[]"), Err(LicenseError::NotAnObject)));
    assert!(matches!(LicenseDocument::parse(b"{"), Err(LicenseError::Json(_))));
}

#[test]
fn a_duplicate_key_is_refused_even_when_both_values_agree() {
    let text = String::from_utf8(with(|_| ())).unwrap();
    let twice = text.replacen('{', r#"{"max_nodes":5,"#, 1);
    assert!(
        matches!(LicenseDocument::parse(twice.as_bytes()), Err(LicenseError::DuplicateKey { key }) if key == "max_nodes")
    );
    let nested = text.replacen('{', r#"{"x":[{"a":1,"a":1}],"#, 1);
    assert!(matches!(LicenseDocument::parse(nested.as_bytes()), Err(LicenseError::DuplicateKey { key }) if key == "a"));
}

#[test]
fn numbers_in_any_but_their_canonical_form_are_refused() {
    let text = String::from_utf8(with(|_| ())).unwrap();
    for number in ["5.0", "5e0", "50e-1", "-0", "9007199254740992", "1e400", "05", "+5"] {
        let changed = text.replacen(r#""max_nodes":5"#, &format!(r#""max_nodes":{number}"#), 1);
        assert_ne!(changed, text);
        let error = LicenseDocument::parse(changed.as_bytes()).unwrap_err();
        assert!(matches!(error, LicenseError::NotCanonical(_) | LicenseError::Json(_)), "{number}: {error}");
        let elsewhere = text.replacen('{', &format!(r#"{{"x":[{number}],"#), 1);
        let error = LicenseDocument::parse(elsewhere.as_bytes()).unwrap_err();
        assert!(matches!(error, LicenseError::NotCanonical(_) | LicenseError::Json(_)), "{number}: {error}");
    }
}

#[test]
fn a_license_over_64_kib_is_refused_before_it_is_read() {
    let mut text = with(|_| ());
    text.resize(LICENSE_MAX_BYTES, b' ');
    assert!(LicenseDocument::parse(&text).is_ok());
    text.push(b' ');
    assert!(
        matches!(LicenseDocument::parse(&text), Err(LicenseError::TooLarge { bytes }) if bytes == LICENSE_MAX_BYTES + 1)
    );
    let big = json!({"x": "y".repeat(LICENSE_MAX_BYTES)});
    assert!(matches!(LicenseDocument::from_value(&big), Err(LicenseError::TooLarge { .. })));
}

#[test]
fn extra_fields_are_signed_and_kept() {
    let extra = Map::from_iter([("region".to_owned(), json!({"names": ["süd", "\u{1f600}"], "n": -3}))]);
    let document = LicenseDocument::issue_with_extra_fields(&vendor(), terms(2), extra).unwrap();
    let read = LicenseDocument::parse(document.as_value().to_string().as_bytes()).unwrap();
    read.verify(&roots()).unwrap();
    assert_eq!(read.as_value()["region"]["n"], json!(-3));
}

#[test]
fn features_are_names_or_everything() {
    let some = license().features().clone();
    assert!(some.allows("kcp") && some.allows("qos") && !some.allows("macvlan") && !some.allows("*"));
    assert!(KNOWN_FEATURES.iter().all(|f| Features::every().allows(f)));
    assert!(!Features::default().allows("kcp"));
    assert_eq!(serde_json::to_value(Features::every()).unwrap(), json!(["*"]));
}

#[test]
fn a_refused_license_tells_the_cause_in_one_line() {
    let refused: crate::model::Refused = LicenseDocument::parse(br#"{"max_nodes":1.5}"#).unwrap_err().into();
    assert!(refused.text.starts_with("license has no canonical form: number 1.5"), "{refused}");
    let refused: crate::model::Refused = LicenseDocument::parse(b"{").unwrap_err().into();
    assert!(refused.text.starts_with("license cannot be read as JSON: "), "{refused}");
}
