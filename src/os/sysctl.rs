//! Settings of the network namespace, by their paths below `/proc/sys`, and the values that they had before we came.

use crate::kernel::{HostSetting, KernelError, SettingsChange};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

const V6_LINKS: &str = "/proc/sys/net/ipv6/conf";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Writes one, as `net/ipv4/ip_forward`; `KernelError::is_missing` where the kernel has no such setting.
pub fn write(key: &str, value: &str) -> Result<(), KernelError> {
    fs::write(path(key), value).map_err(|e| failed(format!("setting {key} to {value}"), &e))
}

fn read(key: &str) -> Result<u32, KernelError> {
    let attempted = || format!("reading {key}");
    let text = fs::read_to_string(path(key)).map_err(|e| failed(attempted(), &e))?;
    text.trim().parse().map_err(|_| KernelError::new(attempted(), format!("it is {:?}, not a number", text.trim())))
}

fn path(key: &str) -> String {
    format!("/proc/sys/{key}")
}

fn failed(attempted: String, e: &io::Error) -> KernelError {
    KernelError { attempted, errno: e.raw_os_error(), reason: e.to_string() }
}

/// What needs settings; one does not end what the other needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NeededBy {
    Network,
    Tunnel,
}

/// A value that we changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Changed {
    was: u32,
    ours: u32,
}

/// What was changed, by key; kept in a file, so that an agent that was killed puts it back when it runs again.
#[derive(Debug, Default)]
pub struct Before {
    file: Option<PathBuf>,
    changed: BTreeMap<String, Changed>,
    needed: BTreeMap<NeededBy, BTreeSet<HostSetting>>,
}

#[derive(Serialize, Deserialize)]
struct Written {
    /// A boot forgets what was set.
    boot: String,
    changed: BTreeMap<String, Changed>,
}

impl Before {
    pub fn kept_in(file: PathBuf) -> Self {
        let changed = match read_file(&file) {
            Ok(changed) => changed,
            Err(e) if e.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(e) => {
                tracing::warn!(file = %file.display(), error = %e, "changed settings of the host are not known any more");
                BTreeMap::new()
            }
        };
        Self { file: Some(file), changed, needed: BTreeMap::new() }
    }

    /// `kernel::Kernel::set_host_settings`.
    pub fn set(&mut self, by: NeededBy, wanted: BTreeSet<HostSetting>) -> Result<SettingsChange, KernelError> {
        self.needed.insert(by, wanted);
        let wanted: BTreeSet<HostSetting> = self.needed.values().flatten().cloned().collect();
        let mut change = SettingsChange::default();
        let mut result = self.set_all(&wanted, &mut change.set);
        let wanted: BTreeSet<String> = wanted.iter().map(HostSetting::key).collect();
        let unwanted: Vec<String> = self.changed.keys().filter(|key| !wanted.contains(*key)).cloned().collect();
        for key in unwanted {
            match self.restore(&key) {
                Ok(restored) => change.restored.extend(restored),
                Err(e) if e.is_missing() => {}
                Err(e) => {
                    result = result.and(Err(e));
                    continue;
                }
            }
            self.changed.remove(&key);
            result = result.and(self.keep());
        }
        result.map(|()| change)
    }

    /// `kernel::Kernel::hold_host_settings`.
    pub fn hold(&mut self) -> Result<Vec<String>, KernelError> {
        let wanted: BTreeSet<HostSetting> = self.needed.values().flatten().cloned().collect();
        let mut set = vec![];
        self.set_all(&wanted, &mut set).map(|()| set)
    }

    fn set_all(&mut self, wanted: &BTreeSet<HostSetting>, done: &mut Vec<String>) -> Result<(), KernelError> {
        let mut result = Ok(());
        for setting in wanted {
            match self.set_one(setting) {
                Ok(set) => done.extend(set),
                // The link has gone.
                Err(e) if e.is_missing() => {}
                Err(e) => result = result.and(Err(e)),
            }
        }
        result
    }

    /// What lets the host forward packets of both families without losing the routes that it has from advertisements.
    pub fn forwarding_of_both(&self) -> BTreeSet<HostSetting> {
        let v6 = HostSetting::ForwardingV6;
        let mut needed = BTreeSet::from([HostSetting::Forwarding, v6.clone()]);
        if self.changed.contains_key(&v6.key()) || read(&v6.key()).is_ok_and(|value| value == 0) {
            let links = fs::read_dir(V6_LINKS).into_iter().flatten().flatten();
            let names = links.filter_map(|entry| entry.file_name().into_string().ok());
            needed.extend(names.map(|link| HostSetting::RouterAdvertisements { link }));
        }
        needed
    }

    fn set_one(&mut self, setting: &HostSetting) -> Result<Option<String>, KernelError> {
        let key = setting.key();
        let was = read(&key)?;
        let of_all = setting.key_of_all().map_or(Ok(0), |key| read(&key))?;
        if setting.is_served_by(was.max(of_all)) {
            return Ok(None);
        }
        let ours = setting.value();
        // Remembered first: what is not remembered is never put back.
        self.changed.insert(key.clone(), Changed { was, ours });
        self.keep()?;
        write(&key, &ours.to_string())?;
        Ok(Some(format!("{key} = {ours}")))
    }

    /// Someone who has set another value since keeps it.
    fn restore(&self, key: &str) -> Result<Option<String>, KernelError> {
        let Some(Changed { was, ours }) = self.changed.get(key).copied() else { return Ok(None) };
        if read(key)? != ours {
            return Ok(None);
        }
        write(key, &was.to_string())?;
        Ok(Some(format!("{key} = {was}")))
    }

    fn keep(&self) -> Result<(), KernelError> {
        let Some(file) = &self.file else { return Ok(()) };
        let written = Written { boot: boot_id(), changed: self.changed.clone() };
        write_file(file, &written).map_err(|e| failed(format!("writing {}", file.display()), &e))
    }
}

fn boot_id() -> String {
    fs::read_to_string(BOOT_ID).unwrap_or_default().trim().to_owned()
}

fn read_file(file: &Path) -> io::Result<BTreeMap<String, Changed>> {
    let written: Written = serde_json::from_slice(&fs::read(file)?)?;
    Ok(if written.boot == boot_id() { written.changed } else { BTreeMap::new() })
}

fn write_file(file: &Path, written: &Written) -> io::Result<()> {
    if written.changed.is_empty() {
        return match fs::remove_file(file) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        };
    }
    let fresh = file.with_extension("new");
    fs::write(&fresh, serde_json::to_vec(written)?)?;
    fs::rename(&fresh, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_changed_is_known_after_a_restart_and_forgotten_after_a_boot() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("host-settings.json");
        let mut before = Before::kept_in(file.clone());
        before.changed.insert("net/ipv4/ip_forward".into(), Changed { was: 0, ours: 1 });
        before.keep().unwrap();
        assert_eq!(Before::kept_in(file.clone()).changed, before.changed);
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text.replace(&boot_id(), "another boot")).unwrap();
        assert!(Before::kept_in(file.clone()).changed.is_empty());
        fs::write(&file, "{").unwrap();
        assert!(Before::kept_in(file.clone()).changed.is_empty());
        before.changed.clear();
        before.keep().unwrap();
        assert!(!file.exists());
    }
}
