//! A laboratory: named hosts, each a network namespace, joined by veth pairs.

mod capture;
mod host;
mod netns;
mod process;

use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

pub use capture::{Capture, contains, ipv4_packets};
pub use host::Host;
pub use netns::NetNs;
pub use process::Process;

/// Longest host name: interfaces are named `to-<host>` and `wan-<host>`, and Linux allows 15 bytes.
pub const MAX_HOST_NAME_BYTES: usize = 11;
const LAST_BREATH: Duration = Duration::from_millis(200);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Owns the hosts of one test and its scratch directory.
///
/// On drop, every process still living in one of its namespaces is killed. The scratch directory is removed, or kept
/// and named on stderr when the test panics or `NETNS_KEEP=1` is set.
pub struct Lab {
    name: String,
    hosts: Vec<Host>,
    scratch: Option<TempDir>,
}

impl Lab {
    pub fn new(name: &str) -> Result<Lab> {
        Lab::in_directory(name, &std::env::temp_dir())
    }

    /// A laboratory whose scratch directory lies in `parent`.
    pub fn in_directory(name: &str, parent: &Path) -> Result<Lab> {
        let scratch = tempfile::Builder::new()
            .prefix(&format!("arctic-{name}-"))
            .tempdir_in(parent)
            .with_context(|| format!("making a scratch directory in {}", parent.display()))?;
        Ok(Lab { name: name.to_owned(), hosts: Vec::new(), scratch: Some(scratch) })
    }

    /// Where logs, captures and databases of this laboratory go.
    pub fn scratch(&self) -> &Path {
        self.scratch.as_ref().expect("present until drop").path()
    }

    /// Adds a host: a fresh namespace with `lo` up and nothing else.
    pub fn host(&mut self, name: &str) -> Result<Host> {
        ensure!(name.len() <= MAX_HOST_NAME_BYTES, "host name {name:?} is longer than {MAX_HOST_NAME_BYTES} bytes");
        ensure!(self.hosts.iter().all(|host| host.name() != name), "host {name:?} exists already");
        let namespace =
            NetNs::create().with_context(|| format!("making a network namespace for {name} (needs root)"))?;
        let host = Host::new(name, namespace);
        host.ip("link set lo up")?;
        self.hosts.push(host.clone());
        Ok(host)
    }

    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// Joins two hosts by a veth pair: device `to-<b>` in `a` with `addresses_a` (CIDR, IPv4 or IPv6), and the reverse.
    pub fn veth(&self, a: &Host, b: &Host, addresses_a: &[&str], addresses_b: &[&str]) -> Result<()> {
        let (device_a, device_b) = (format!("to-{b}"), format!("to-{a}"));
        let far = b.namespace().path();
        a.ip(&format!("link add {device_a} type veth peer name {device_b} netns {}", far.display()))?;
        a.configure_device(&device_a, addresses_a)?;
        b.configure_device(&device_b, addresses_b)
    }
}

impl Lab {
    /// What was killed a moment ago may need one more to be gone.
    fn wait_for_processes(&self) {
        let deadline = Instant::now() + LAST_BREATH;
        while Instant::now() < deadline && self.hosts.iter().any(|host| !host.namespace().processes().is_empty()) {
            thread::sleep(POLL_INTERVAL);
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.wait_for_processes();
        for host in &self.hosts {
            for pid in host.namespace().processes() {
                eprintln!("lab {}: process {pid} was left in {host}: killed", self.name);
                if let Some(pid) = Pid::from_raw(pid) {
                    // It may have ended meanwhile, which is what we want.
                    let _ = kill_process(pid, Signal::KILL);
                }
            }
        }
        assert!(
            std::thread::panicking() || null_is_a_device(),
            "lab {}: /dev/null of this machine is no device any more: a process removed it",
            self.name
        );
        let keep = std::thread::panicking() || std::env::var_os("NETNS_KEEP").is_some_and(|value| value == "1");
        if let Some(scratch) = self.scratch.take().filter(|_| keep) {
            eprintln!("lab {}: scratch directory kept: {}", self.name, scratch.keep().display());
        }
    }
}

/// A program that is told to write to `/dev/null` as root may unlink it first; everything later on the machine suffers.
fn null_is_a_device() -> bool {
    std::fs::metadata("/dev/null").is_ok_and(|null| null.file_type().is_char_device())
}
