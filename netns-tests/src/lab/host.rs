//! A host of the laboratory: run code, commands and services inside it, and configure its network.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::process::CommandExt;
use std::panic::resume_unwind;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result, bail};
use rustix::process::{Signal, set_parent_process_death_signal};

use super::netns::{self, NetNs};
use super::process::Process;

/// A cheap handle: clones name the same host.
#[derive(Clone)]
pub struct Host(Arc<Inner>);

struct Inner {
    name: String,
    namespace: NetNs,
}

impl Host {
    /// A host over any namespace, also one that another process made.
    pub fn new(name: &str, namespace: NetNs) -> Host {
        Host(Arc::new(Inner { name: name.to_owned(), namespace }))
    }

    pub fn name(&self) -> &str {
        &self.0.name
    }

    pub fn namespace(&self) -> &NetNs {
        &self.0.namespace
    }

    /// Runs `work` on a thread of its own inside this host and waits for it; a panic is passed on.
    /// Sockets opened there stay in the host's namespace wherever they are used later.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.0.namespace.enter().expect("entering a namespace we hold");
                work()
            });
            inside.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Runs `work` inside this host on a thread that is joined by the caller.
    pub fn thread<R: Send + 'static>(
        &self,
        work: impl FnOnce() -> R + Send + 'static,
    ) -> std::io::Result<thread::JoinHandle<R>> {
        let host = self.clone();
        thread::Builder::new().name(self.name().to_owned()).spawn(move || {
            host.0.namespace.enter().expect("entering a namespace we hold");
            work()
        })
    }

    /// A command that will run inside this host: in its namespace, in a process group of its own, killed by the kernel
    /// when the thread that spawned it ends. Use [`Host::spawn`] for anything that outlives the current statement.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.process_group(0);
        let host = self.clone();
        let parent = std::process::id();
        // SAFETY: between fork and exec only system calls run: no allocation, no lock.
        unsafe {
            command.pre_exec(move || {
                set_parent_process_death_signal(Some(Signal::KILL))?;
                if std::os::unix::process::parent_id() != parent {
                    return Err(std::io::ErrorKind::BrokenPipe.into()); // the parent died before the request above
                }
                netns::enter(host.namespace().fd())
            });
        }
        command
    }

    /// Starts a command made by [`Host::command`]; it ends with the returned value, or with this process.
    pub fn spawn(&self, command: Command) -> Result<Process> {
        Process::spawn(command).with_context(|| format!("on {self}"))
    }

    /// Runs a shell line inside this host and returns its stdout; a failure carries its stderr.
    pub fn sh(&self, line: &str) -> Result<String> {
        let mut command = self.command("sh");
        command.args(["-c", line]);
        checked_output(command).with_context(|| format!("on {self}: {line}"))
    }

    /// `ip <arguments>` inside this host.
    pub fn ip(&self, arguments: &str) -> Result<String> {
        let mut command = self.command("ip");
        command.args(arguments.split_whitespace());
        checked_output(command).with_context(|| format!("on {self}: ip {arguments}"))
    }

    /// Writes a sysctl of this namespace, for example `net/ipv4/ip_forward`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{key}");
        self.run(|| std::fs::write(&path, value)).with_context(|| format!("on {self}: writing {value} to {path}"))
    }

    /// Makes this host a router for both families.
    pub fn forward(&self) -> Result<()> {
        self.sysctl("net/ipv4/ip_forward", "1")?;
        self.sysctl("net/ipv6/conf/all/forwarding", "1")
    }

    /// Routes `destination` (CIDR or `default`) through the neighbour `gateway`.
    pub fn route(&self, destination: &str, gateway: &str) -> Result<()> {
        let family = if gateway.contains(':') { "-6" } else { "-4" };
        self.ip(&format!("{family} route add {destination} via {gateway}")).map(drop)
    }

    /// Gives a device its addresses and sets it up.
    pub(crate) fn configure_device(&self, device: &str, addresses: &[&str]) -> Result<()> {
        // The same for its link-local address, whose state would change under tests that compare.
        self.sysctl(&format!("net/ipv6/conf/{device}/accept_dad"), "0")?;
        for address in addresses {
            // Duplicate address detection would leave an IPv6 address unusable for a second.
            let nodad = if address.contains(':') { " nodad" } else { "" };
            self.ip(&format!("address add {address} dev {device}{nodad}"))?;
        }
        self.ip(&format!("link set {device} up")).map(drop)
    }

    /// Everything that an agent may change in the kernel, as text to compare: rules, policy, routes, links, addresses.
    pub fn kernel_state(&self) -> Result<String> {
        self.sh("set -e; nft list ruleset
             for family in -4 -6; do
                 ip $family rule; ip $family route show table all | sed 's/ expires [^ ]*//'; ip $family -o address
             done
             ip -o link | sed 's/ state [^ ]*//'")
    }

    /// The shell words that enter this host from outside, while this process lives.
    pub fn enter_hint(&self) -> String {
        format!("nsenter --net={}", self.namespace().path().display())
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

fn checked_output(mut command: Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output()?;
    if !output.status.success() {
        bail!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
