//! The vendor's tool, run as a vendor runs it.

use serde_json::Value;
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};
use tempfile::TempDir;

fn run(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_arctic-license")).current_dir(dir).args(args).output().unwrap()
}

fn ok(dir: &Path, args: &[&str]) -> String {
    let output = run(dir, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The reason on standard error; nothing may stand on standard output.
fn fails(dir: &Path, args: &[&str]) -> String {
    let output = run(dir, args);
    assert_eq!(output.status.code(), Some(1), "{args:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    String::from_utf8(output.stderr).unwrap()
}

fn mode(file: &Path) -> u32 {
    fs::metadata(file).unwrap().permissions().mode() & 0o777
}

/// A scratch directory with a vendor key in `keys/`, and the name of its public key file.
fn vendor() -> (TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    ok(dir.path(), &["keygen", "--out", "keys"]);
    let public = public_keys(&dir.path().join("keys")).remove(0);
    (dir, public.to_str().unwrap().to_owned())
}

fn public_keys(dir: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    files.filter(|p| p.extension().is_some_and(|e| e == "pub")).collect()
}

const ISSUE: [&str; 11] = [
    "issue",
    "--key",
    "keys/vendor.key",
    "--max-nodes",
    "3",
    "--max-services",
    "9",
    "--features",
    "kcp,qos",
    "--days",
    "90",
];

fn git(dir: &Path, args: &[&str]) {
    let status = Command::new("git").arg("-C").arg(dir).args(args).output().unwrap().status;
    assert!(status.success(), "git {args:?}");
}

#[test]
fn keygen_writes_a_private_key_for_its_owner_only_and_a_public_key_named_by_its_id() {
    let (dir, public) = vendor();
    let secret_file = dir.path().join("keys/vendor.key");
    assert_eq!((mode(&secret_file), mode(Path::new(&public))), (0o600, 0o644));
    let key: arctic::model::PublicKey = fs::read_to_string(&public).unwrap().trim_end().parse().unwrap();
    let id = arctic::license::TrustRoots::key_id(&key);
    assert!(public.ends_with(&format!("/{id}.pub")));
    assert_eq!(fs::read_to_string(&public).unwrap().lines().count(), 1);
}

#[test]
fn keygen_keeps_an_existing_key_unless_forced() {
    let (dir, _) = vendor();
    let secret_file = dir.path().join("keys/vendor.key");
    let before = fs::read(&secret_file).unwrap();
    assert!(fails(dir.path(), &["keygen", "--out", "keys"]).contains("exists"));
    assert_eq!(fs::read(&secret_file).unwrap(), before);
    assert_eq!(public_keys(&dir.path().join("keys")).len(), 1);
    fs::set_permissions(&secret_file, fs::Permissions::from_mode(0o644)).unwrap();
    ok(dir.path(), &["keygen", "--out", "keys", "--force"]);
    assert_ne!(fs::read(&secret_file).unwrap(), before);
    assert_eq!(mode(&secret_file), 0o600);
}

#[test]
fn keygen_writes_into_a_git_work_tree_only_where_git_ignores_it() {
    let dir = tempfile::tempdir().unwrap();
    git(dir.path(), &["init", "--quiet"]);
    fs::write(dir.path().join(".gitignore"), "/.vendor\n").unwrap();
    for tracked in ["keys", "a/b/keys", "."] {
        assert!(fails(dir.path(), &["keygen", "--out", tracked]).contains("git work tree"), "{tracked}");
    }
    assert!(!dir.path().join("keys").exists() && !dir.path().join("vendor.key").exists());
    ok(dir.path(), &["keygen", "--out", ".vendor"]);
    ok(dir.path(), &["keygen", "--out", ".vendor/demo/deep"]);
    ok(dir.path(), &["keygen", "--out", "keys", "--force"]);
    assert!(fails(dir.path(), &["keygen", "--out", ".vendor/../other"]).contains("git work tree"));
}

// accepts: 003-02
#[test]
fn an_issued_license_verifies_under_its_key_and_under_no_other() {
    let (dir, public) = vendor();
    let text = ok(dir.path(), &ISSUE);
    fs::write(dir.path().join("license.json"), &text).unwrap();
    let license: Value = serde_json::from_str(&text).unwrap();
    let out = ok(dir.path(), &["verify", "license.json", "--pub", &public]);
    assert!(out.contains(license["license_id"].as_str().unwrap()));

    let (_other_dir, other) = vendor();
    assert!(fails(dir.path(), &["verify", "license.json", "--pub", &other]).contains("does not know"));

    fs::write(dir.path().join("changed.json"), text.replace("\"max_nodes\": 3", "\"max_nodes\": 4")).unwrap();
    let reason = fails(dir.path(), &["verify", "changed.json", "--pub", &public]);
    assert!(reason.contains("signature"), "{reason}");

    fs::write(dir.path().join("twice.json"), text.replace("\"max_nodes\": 3", "\"max_nodes\": 3, \"max_nodes\": 3"))
        .unwrap();
    let reason = fails(dir.path(), &["verify", "twice.json", "--pub", &public]);
    assert!(reason.contains("`max_nodes` twice"), "{reason}");
    assert!(fails(dir.path(), &["verify", "missing.json", "--pub", &public]).contains("missing.json"));
    assert!(fails(dir.path(), &["verify", "license.json", "--pub", "license.json"]).contains("no public key file"));
}

#[test]
fn issue_takes_every_field_and_mints_the_ids_that_are_missing() {
    let (dir, _) = vendor();
    let first: Value = serde_json::from_str(&ok(dir.path(), &ISSUE)).unwrap();
    let second: Value = serde_json::from_str(&ok(dir.path(), &ISSUE)).unwrap();
    assert_ne!(first["license_id"], second["license_id"]);
    assert_ne!(first["customer_id"], second["customer_id"]);

    let customer = first["customer_id"].as_str().unwrap();
    let id = second["license_id"].as_str().unwrap();
    let fixed = ["--customer-id", customer, "--license-id", id, "--customer-name", "Nordwind", "--out", "l.json"];
    let when = ["--issued-at", "2026-01-31T12:00:00+01:00"];
    assert_eq!(ok(dir.path(), &[&ISSUE[..], &fixed, &when].concat()), "");
    let license: Value = serde_json::from_slice(&fs::read(dir.path().join("l.json")).unwrap()).unwrap();
    assert_eq!(license["customer_id"], customer);
    assert_eq!(license["license_id"], id);
    assert_eq!(license["customer_name"], "Nordwind");
    assert_eq!(license["issued_at"], "2026-01-31T11:00:00Z");
    assert_eq!(license["expires_at"], "2026-05-01T11:00:00Z");
    assert_eq!(license["features"], serde_json::json!(["kcp", "qos"]));

    let dated = [&ISSUE[..9], &when, &["--expires-at", "2026-01-31T11:00:01Z"]].concat();
    let license: Value = serde_json::from_str(&ok(dir.path(), &dated)).unwrap();
    assert_eq!(license["expires_at"], "2026-01-31T11:00:01Z");
    let past = [&ISSUE[..9], &when, &["--expires-at", "2026-01-31T11:00:00Z"]].concat();
    assert!(fails(dir.path(), &past).contains("expires_at"));
}

#[test]
fn issue_refuses_nonsense_as_usage() {
    let (dir, _) = vendor();
    for (at, value) in [(4, "0"), (6, "-1"), (10, "0")] {
        let mut args = ISSUE;
        args[at] = value;
        assert_eq!(run(dir.path(), &args).status.code(), Some(2), "{args:?}");
    }
    assert_eq!(run(dir.path(), &ISSUE[..9]).status.code(), Some(2));
    let both = [&ISSUE[..], &["--expires-at", "2030-01-01T00:00:00Z"]].concat();
    assert_eq!(run(dir.path(), &both).status.code(), Some(2));
    let mut mixed = ISSUE;
    mixed[8] = "kcp,*";
    assert!(fails(dir.path(), &mixed).contains("`*`"));
}

#[test]
fn a_misspelt_feature_is_signed_with_a_warning() {
    let (dir, _) = vendor();
    let mut args = ISSUE;
    args[8] = "kpc";
    let output = run(dir.path(), &args);
    assert!(output.status.success());
    assert!(String::from_utf8(output.stderr).unwrap().contains("\"kpc\""));
}

#[test]
fn issue_names_a_broken_key_file_without_quoting_it() {
    let (dir, public) = vendor();
    fs::write(dir.path().join("bad.key"), "c2VjcmV0*").unwrap();
    for file in ["bad.key", "keys"] {
        let mut args = ISSUE;
        args[2] = file;
        let reason = fails(dir.path(), &args);
        assert!(reason.contains(file) && !reason.contains('*'), "{reason}");
    }
    // A public key has the size of a seed: what it signs is not trusted by anyone who trusts that key.
    let mut args = ISSUE;
    args[2] = &public;
    fs::write(dir.path().join("l.json"), ok(dir.path(), &args)).unwrap();
    fails(dir.path(), &["verify", "l.json", "--pub", &public]);
}

#[test]
fn inspect_prints_the_fields_and_the_date_of_each_state_without_verifying() {
    let (dir, _) = vendor();
    let name = ["--customer-name", "Nord\u{1b}[31mwind", "--issued-at", "2026-01-01T00:00:00Z"];
    let text = ok(dir.path(), &[&ISSUE[..], &name].concat()).replace("\"max_nodes\": 3", "\"max_nodes\": 4");
    fs::write(dir.path().join("l.json"), text).unwrap();
    let out = ok(dir.path(), &["inspect", "l.json"]);
    for line in [
        "Max Nodes:     4",
        "Max Services:  9",
        "Features:      kcp, qos",
        "Issued:        2026-01-01T00:00:00Z",
        "Expires:       2026-04-01T00:00:00Z",
        "Signature:     not verified",
        "valid:         until 2026-03-02T00:00:00Z",
        "warning:       from 2026-03-02T00:00:00Z",
        "grace_period:  from 2026-04-01T00:00:00Z",
        "read_only:     from 2026-04-15T00:00:00Z",
        "suspended:     from 2026-05-15T00:00:00Z",
    ] {
        assert!(out.lines().any(|l| l == line), "no line {line:?} in\n{out}");
    }
    assert!(!out.contains('\u{1b}'));
    assert!(fails(dir.path(), &["inspect", "keys/vendor.key"]).contains("is no license"));
}
