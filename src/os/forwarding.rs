//! Whether this host forwards packets, set on demand and put back (dataplane.md §3).

use super::sysctl::{read, write};
use crate::kernel::KernelError;
use std::fs;

const V4: &str = "net/ipv4/ip_forward";
const V6: &str = "net/ipv6/conf/all/forwarding";
const V6_DEVICES: &str = "/proc/sys/net/ipv6/conf";
/// Router advertisements are heeded even by a host that forwards.
const ACCEPT_ALWAYS: &str = "2";

/// What was changed, to be put back.
#[derive(Debug, Default)]
pub struct Forwarding {
    /// Settings and their values of before, in the order in which they were changed.
    before: Vec<(String, String)>,
}

impl Forwarding {
    /// On, or as it was before; whether something changed.
    pub fn set(&mut self, on: bool) -> Result<bool, KernelError> {
        if on { self.begin() } else { self.end() }
    }

    fn begin(&mut self) -> Result<bool, KernelError> {
        let mut changed = false;
        if read(V4)? == "0" {
            self.change(V4, "1")?;
            changed = true;
        }
        // Absent where IPv6 is off.
        if read(V6).is_ok_and(|value| value == "0") {
            // A host that begins to forward would let the routes expire which it has from advertisements.
            for key in devices().map(|device| format!("net/ipv6/conf/{device}/accept_ra")) {
                if read(&key).is_ok_and(|value| value == "1") {
                    self.change(&key, ACCEPT_ALWAYS)?;
                }
            }
            self.change(V6, "1")?;
            changed = true;
        }
        Ok(changed)
    }

    fn end(&mut self) -> Result<bool, KernelError> {
        let changed = !self.before.is_empty();
        while let Some((key, value)) = self.before.pop() {
            match write(&key, &value) {
                // The device is gone, and its settings with it.
                Err(e) if e.is_missing() => {}
                other => other?,
            }
        }
        Ok(changed)
    }

    fn change(&mut self, key: &str, value: &str) -> Result<(), KernelError> {
        let before = read(key)?;
        write(key, value)?;
        self.before.push((key.to_owned(), before));
        Ok(())
    }
}

fn devices() -> impl Iterator<Item = String> {
    let entries = fs::read_dir(V6_DEVICES).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}
