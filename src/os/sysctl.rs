//! Settings of the network namespace, by their paths below `/proc/sys`.

use crate::kernel::KernelError;
use std::{fs, io};

/// Writes one, as `net/ipv4/ip_forward`; `KernelError::is_missing` where the kernel has no such setting.
pub fn write(key: &str, value: &str) -> Result<(), KernelError> {
    fs::write(format!("/proc/sys/{key}"), value).map_err(|e| failed(format!("setting {key} to {value}"), &e))
}

fn failed(attempted: String, e: &io::Error) -> KernelError {
    KernelError { attempted, errno: e.raw_os_error(), reason: e.to_string() }
}
