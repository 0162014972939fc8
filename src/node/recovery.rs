//! The recovery token: a new one at every start, in a file that only the agent's user can read (operations.md §6).

use crate::model::Rng;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use std::{
    fs, io,
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

#[derive(Debug, thiserror::Error)]
#[error("recovery token file {path} cannot be written: set RECOVERY_TOKEN_PATH to a place that the agent can write")]
pub struct RecoveryError {
    path: PathBuf,
    source: io::Error,
}

/// Admin for one request, without any credential. No `Debug`, no `Serialize`; wiped on drop.
pub struct RecoveryToken(Zeroizing<String>);

impl RecoveryToken {
    #[cfg(test)]
    pub(crate) fn of(text: &str) -> Self {
        Self(Zeroizing::new(text.to_owned()))
    }

    /// Constant-time comparison.
    pub fn matches(&self, presented: &str) -> bool {
        self.0.as_bytes().ct_eq(presented.as_bytes()).into()
    }
}

/// Mints a token and writes it with mode 0600; the one before is dead from here on.
pub(super) fn write_token(path: &Path, rng: &mut Rng) -> Result<RecoveryToken, RecoveryError> {
    let token = Zeroizing::new(URL_SAFE_NO_PAD.encode(rng.bytes::<32>()));
    let write = || -> io::Result<()> {
        if let Some(parent) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
        }
        let partial = path.with_extension("new");
        // A file left by a killed agent may have any mode.
        if let Err(e) = fs::remove_file(&partial)
            && e.kind() != io::ErrorKind::NotFound
        {
            return Err(e);
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial)?;
        writeln!(file, "{}", *token)?;
        file.sync_all()?;
        fs::rename(&partial, path)
    };
    write().map_err(|source| RecoveryError { path: path.to_owned(), source })?;
    Ok(RecoveryToken(token))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn each_start_kills_the_token_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("etc/recovery.token");
        let mut rng = Rng::from_seed([1; 32]);
        let first = write_token(&path, &mut rng).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(first.matches(text.trim()) && text.trim().len() == 43);
        let second = write_token(&path, &mut rng).unwrap();
        assert!(!second.matches(text.trim()));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
