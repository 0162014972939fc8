//! Settings of the network namespace, by their paths below `/proc/sys`.

use crate::kernel::KernelError;
use std::{fs, io};

/// Writes one, as `net/ipv4/ip_forward`; `KernelError::is_missing` where the kernel has no such setting.
pub fn write(key: &str, value: &str) -> Result<(), KernelError> {
    fs::write(format!("/proc/sys/{key}"), value).map_err(|e| failed(format!("setting {key} to {value}"), &e))
}

/// Reads one, without white space around it.
pub fn read(key: &str) -> Result<String, KernelError> {
    let value = fs::read_to_string(format!("/proc/sys/{key}")).map_err(|e| failed(format!("reading {key}"), &e))?;
    Ok(value.trim().to_owned())
}

fn failed(attempted: String, e: &io::Error) -> KernelError {
    KernelError { attempted, errno: e.raw_os_error(), reason: e.to_string() }
}
