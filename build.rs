//! Compiles the license keys into the binary (docs/spec/licensing.md §2): the files named by `ARCTIC_LICENSE_KEYS`
//! (separated by colons or commas), else `license-keys/*.pub`. Each holds one line, the base64 of a 32-byte Ed25519 key.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

const KEYS_ENV: &str = "ARCTIC_LICENSE_KEYS";
const KEYS_DIR: &str = "license-keys";

fn main() -> ExitCode {
    println!("cargo::rerun-if-env-changed={KEYS_ENV}");
    println!("cargo::rerun-if-changed=build.rs");
    match embed() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            println!("cargo::error={message}");
            ExitCode::FAILURE
        }
    }
}

fn embed() -> Result<(), String> {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("CARGO_MANIFEST_DIR is not set")?);
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let mut keys = Vec::new();
    for file in key_files(&root)? {
        println!("cargo::rerun-if-changed={}", file.display());
        keys.push(read_key(&file)?);
    }
    keys.sort_unstable();
    keys.dedup();
    let source = format!("const EMBEDDED: &[[u8; 32]] = &{keys:?};\n");
    fs::write(out.join("license_keys.rs"), source).map_err(|e| format!("cannot write the license keys: {e}"))
}

fn key_files(root: &Path) -> Result<Vec<PathBuf>, String> {
    let named = env::var(KEYS_ENV).unwrap_or_default();
    let mut files: Vec<_> =
        named.split([':', ',']).map(str::trim).filter(|s| !s.is_empty()).map(|s| root.join(s)).collect();
    if !files.is_empty() {
        return Ok(files);
    }
    let dir = root.join(KEYS_DIR);
    println!("cargo::rerun-if-changed={}", dir.display());
    if !dir.exists() {
        return Ok(files);
    }
    let cannot = |e: std::io::Error| format!("cannot list {}: {e}", dir.display());
    for entry in fs::read_dir(&dir).map_err(cannot)? {
        let path = entry.map_err(cannot)?.path();
        if path.extension().is_some_and(|e| e == "pub") {
            files.push(path);
        }
    }
    Ok(files)
}

pub(crate) fn read_key(file: &Path) -> Result<[u8; 32], String> {
    let bad = |what: String| format!("license key {}: {what}", file.display());
    let text = fs::read_to_string(file).map_err(|e| bad(format!("cannot be read: {e}")))?;
    let decoded = BASE64.decode(text.trim_end()).map_err(|e| bad(format!("expected one line of base64: {e}")))?;
    let key: [u8; 32] =
        decoded.try_into().map_err(|d: Vec<u8>| bad(format!("expected 32 bytes, found {}", d.len())))?;
    match ed25519_dalek::VerifyingKey::from_bytes(&key) {
        Ok(point) if !point.is_weak() => Ok(key),
        _ => Err(bad("is not a usable Ed25519 public key".into())),
    }
}
