//! Where the CLI keeps its files, and how it writes them: 0600, atomically (cli.md §4).

use std::{
    env, fs,
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// No file that the CLI reads is larger (a license is at most 64 KiB, a config file far below).
const FILE_MAX_BYTES: u64 = 1 << 20;

fn base(xdg: &str, below_home: &str) -> Option<PathBuf> {
    let absolute = |name: &str| env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    absolute(xdg).or_else(|| absolute("HOME").map(|home| home.join(below_home)))
}

/// `$XDG_CONFIG_HOME/arctic/config.yaml`, else `~/.config/arctic/config.yaml`.
pub fn default_config() -> Option<PathBuf> {
    base("XDG_CONFIG_HOME", ".config").map(|dir| dir.join("arctic/config.yaml"))
}

/// `$XDG_CACHE_HOME/arctic`, else `~/.cache/arctic`.
pub fn cache_dir() -> Option<PathBuf> {
    base("XDG_CACHE_HOME", ".cache").map(|dir| dir.join("arctic"))
}

/// `$XDG_STATE_HOME/arctic`, else `~/.local/state/arctic`.
pub fn state_dir() -> Option<PathBuf> {
    base("XDG_STATE_HOME", ".local/state").map(|dir| dir.join("arctic"))
}

/// Reads a file, or stdin for `-`.
pub fn read_input(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let read = if path.as_os_str() == "-" {
        io::stdin().lock().take(FILE_MAX_BYTES + 1).read_to_string(&mut text)?
    } else {
        fs::File::open(path)?.take(FILE_MAX_BYTES + 1).read_to_string(&mut text)?
    };
    if read as u64 > FILE_MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 1 MiB"));
    }
    Ok(text)
}

/// Whether anyone but the owner may read the file.
pub fn is_shared(path: &Path) -> io::Result<bool> {
    Ok(fs::metadata(path)?.permissions().mode() & 0o077 != 0)
}

/// Replaces the file as a whole: readers see the old or the new content, and it survives a crash.
/// A symbolic link stays one; missing directories are made for the owner only.
pub fn write_private(path: &Path, content: &str) -> io::Result<()> {
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let dir = directory_of(&target);
    make_private_dir(dir)?;
    let mut name = target.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.new", std::process::id()));
    let temporary = dir.join(name);
    let written = write_new(&temporary, content).and_then(|()| fs::rename(&temporary, &target));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written?;
    fs::File::open(dir)?.sync_all()
}

/// A bare name lies in the working directory.
fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Replaces a file that is no secret; its permissions stay.
pub fn replace(path: &Path, content: &str) -> io::Result<()> {
    let permissions = fs::metadata(path).map(|m| m.permissions()).ok();
    write_private(path, content)?;
    fs::set_permissions(path, permissions.unwrap_or_else(|| fs::Permissions::from_mode(0o644)))
}

fn write_new(path: &Path, content: &str) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content.as_bytes())?;
    file.sync_all()
}

pub fn make_private_dir(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Holds off other processes that change the same file; released when dropped.
pub struct FileLock(#[expect(dead_code, reason = "held for its lock")] fs::File);

impl FileLock {
    pub fn acquire(path: &Path) -> io::Result<Self> {
        let file = Self::open(path)?;
        file.lock()?;
        Ok(Self(file))
    }

    /// None while another process holds it.
    pub fn try_acquire(path: &Path) -> io::Result<Option<Self>> {
        let file = Self::open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self(file))),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(e)) => Err(e),
        }
    }

    fn open(path: &Path) -> io::Result<fs::File> {
        let mut name = path.as_os_str().to_os_string();
        name.push(".lock");
        make_private_dir(directory_of(path))?;
        fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_private_and_replaced_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/er/file");
        write_private(&path, "one").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(is_shared(&path).unwrap());
        write_private(&path, "two").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "two");
        assert!(!is_shared(&path).unwrap());
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_bare_name_lies_in_the_working_directory() {
        assert_eq!(directory_of(Path::new("plan.json")), Path::new("."));
        assert_eq!(directory_of(Path::new("deep/plan.json")), Path::new("deep"));
    }

    #[test]
    fn a_symbolic_link_stays_one() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        write_private(&real, "one").unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        write_private(&link, "two").unwrap();
        assert_eq!(fs::read_to_string(&real).unwrap(), "two");
        assert!(fs::symlink_metadata(&link).unwrap().file_type().is_symlink());
    }
}
