//! The data directory: made where it is missing, and held by one agent at a time.

use std::{
    fs::{DirBuilder, File, TryLockError},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    #[error("data directory {path} cannot be used: create it for the agent's user, or set DATA_DIR")]
    Unusable { path: PathBuf, source: io::Error },
    #[error("data directory {path} is in use by another agent: stop it, or set DATA_DIR")]
    InUse { path: PathBuf },
}

/// Makes the directory, mode 0700, where it is missing.
pub(super) fn create(path: &Path) -> Result<(), DataDirError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| DataDirError::Unusable { path: path.to_owned(), source })
}

/// Keeps a second agent out of the same database and identity; the kernel gives the lock back when the process ends.
pub(super) fn lock(path: &Path) -> Result<File, DataDirError> {
    let unusable = |source| DataDirError::Unusable { path: path.to_owned(), source };
    let file = File::options().write(true).create(true).truncate(false).open(path.join("agent.lock"));
    let file = file.map_err(unusable)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(DataDirError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => Err(unusable(source)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_data_directory_serves_one_agent_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new");
        create(&path).unwrap();
        let held = lock(&path).unwrap();
        assert!(matches!(lock(&path), Err(DataDirError::InUse { .. })));
        drop(held);
        assert!(lock(&path).is_ok());
    }
}
