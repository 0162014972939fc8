//! The identity of this host: `DATA_DIR/peer.key` (cluster.md §1).

use crate::{
    model::{PeerId, Rng, SigningKey, UnixTime},
    store::Author,
};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};
use zeroize::Zeroizing;

/// Who this host is, and how it signs.
pub type Identity = Author;

const FILE_NAME: &str = "peer.key";
const FILE_VERSION: u32 = 1;
const FILE_MAX_BYTES: u64 = 4096;
/// Permission bits of group and others.
const FOREIGN_BITS: u32 = 0o077;

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("{path} cannot be read: make it readable by the agent's user, or remove it to become a new peer")]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{path} is readable by group or others (mode {mode:o}): run chmod 600 {path}")]
    LooseMode { path: PathBuf, mode: u32 },
    #[error("{path} is malformed ({reason}): restore it from a backup, or remove it to become a new peer")]
    Malformed { path: PathBuf, reason: String },
    #[error("{path} cannot be written: check that the directory exists and has space")]
    Unwritable { path: PathBuf, source: io::Error },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    v: u32,
    peer_id: PeerId,
    seed: Zeroizing<String>,
}

/// The identity in `data_dir`, if there is one.
pub fn load(data_dir: &Path) -> Result<Option<Identity>, IdentityError> {
    let path = data_dir.join(FILE_NAME);
    let unreadable = |source| IdentityError::Unreadable { path: path.clone(), source };
    let malformed = |reason: String| IdentityError::Malformed { path: path.clone(), reason };
    let meta = match fs::metadata(&path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(unreadable(e)),
    };
    let mode = meta.permissions().mode() & 0o777;
    if mode & FOREIGN_BITS != 0 {
        return Err(IdentityError::LooseMode { path, mode });
    }
    if meta.len() > FILE_MAX_BYTES {
        return Err(malformed(format!("{} bytes long", meta.len())));
    }
    let text = Zeroizing::new(fs::read(&path).map_err(unreadable)?);
    let file: KeyFile = serde_json::from_slice(&text).map_err(|e| malformed(e.to_string()))?;
    if file.v != FILE_VERSION {
        return Err(malformed(format!("version {} is not {FILE_VERSION}", file.v)));
    }
    let seed = Zeroizing::new(BASE64.decode(file.seed.as_bytes()).map_err(|_| malformed("seed is not base64".into()))?);
    let seed = <[u8; 32]>::try_from(seed.as_slice()).map_err(|_| malformed("seed is not 32 bytes".into()))?;
    Ok(Some(Identity { peer_id: file.peer_id, key: SigningKey::from_seed(seed) }))
}

/// A new identity, written to `data_dir` with mode 0600 before it is returned.
pub fn mint(data_dir: &Path, now: UnixTime, rng: &mut Rng) -> Result<Identity, IdentityError> {
    let path = data_dir.join(FILE_NAME);
    let unwritable = |source| IdentityError::Unwritable { path: path.clone(), source };
    let identity = Identity { peer_id: PeerId::mint(now, rng), key: SigningKey::from_seed(rng.bytes()) };
    let seed = Zeroizing::new(BASE64.encode(identity.key.seed()));
    let file = KeyFile { v: FILE_VERSION, peer_id: identity.peer_id, seed };
    let text = Zeroizing::new(serde_json::to_vec(&file).map_err(|e| unwritable(e.into()))?);
    let partial = data_dir.join("peer.key.new");
    let write = || -> io::Result<()> {
        let mut out = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
        out.write_all(&text)?;
        out.sync_all()?;
        fs::rename(&partial, &path)?;
        fs::File::open(data_dir)?.sync_all()
    };
    write().map_err(unwritable)?;
    Ok(identity)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minted_identity_is_the_one_loaded() {
        let dir = tempfile::tempdir().unwrap();
        assert!(load(dir.path()).unwrap().is_none());
        let made = mint(dir.path(), UnixTime::from_ms(1), &mut Rng::from_seed([1; 32])).unwrap();
        let loaded = load(dir.path()).unwrap().unwrap();
        assert_eq!((loaded.peer_id, loaded.key.public()), (made.peer_id, made.key.public()));
        let mode = fs::metadata(dir.path().join(FILE_NAME)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn loose_or_malformed_key_files_stop_the_start_with_the_fix() {
        let dir = tempfile::tempdir().unwrap();
        mint(dir.path(), UnixTime::from_ms(1), &mut Rng::from_seed([1; 32])).unwrap();
        let path = dir.path().join(FILE_NAME);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let text = load(dir.path()).err().unwrap().to_string();
        assert!(text.contains("mode 640") && text.contains("chmod 600"), "{text}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "{}").unwrap();
        assert!(matches!(load(dir.path()), Err(IdentityError::Malformed { .. })));
    }
}
