//! What the build takes for a license key.

#[allow(dead_code, reason = "the build script's entry point is not called here")]
#[path = "../build.rs"]
mod build;

use arctic::model::SigningKey;

fn read(content: &[u8]) -> Result<[u8; 32], String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), content).unwrap();
    build::read_key(file.path()).inspect_err(|e| assert!(e.contains(file.path().to_str().unwrap())))
}

#[test]
fn a_malformed_license_key_fails_the_build_with_the_name_of_its_file() {
    let key = SigningKey::from_seed([5; 32]).public();
    assert_eq!(read(format!("{key}\n").as_bytes()), Ok(*key.as_bytes()));
    assert_eq!(read(key.to_string().as_bytes()), Ok(*key.as_bytes()));
    let small_order = format!("{}=", "A".repeat(43));
    for bad in ["", "AAAA", "not base64", &format!("{key}{key}"), &format!("{key}\n{key}\n"), &small_order] {
        assert!(read(bad.as_bytes()).is_err(), "{bad:?}");
    }
    assert!(read(&[0xff; 44]).is_err());
}
