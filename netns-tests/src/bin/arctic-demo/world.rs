//! The world as its visitors see it: hosts opened through the holder's descriptors.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use netns_tests::agent::{Cli, arctic_binary};
use netns_tests::lab::{Host, NetNs};
use netns_tests::topology::Profile;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use crate::holder::{self, Deed};
use crate::say;

/// Both agents get 20 s to stop, one after the other, and the rest is quick.
const DOWN_WITHIN: Duration = Duration::from_secs(50);
const LOG_TAIL_LINES: usize = 15;

pub struct World {
    deed: Deed,
    hosts: BTreeMap<String, Host>,
    /// Set in the command that made the world: the world ends with it.
    holder: Option<Child>,
}

impl World {
    /// Starts a holder and waits until its world stands.
    pub fn make(profile: Profile, seed: u64) -> Result<World> {
        let start = Instant::now();
        let mut holder = Command::new(std::env::current_exe()?)
            .args(["hold", "--profile", profile.name, "--seed", &seed.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(holder.stdout.take().context("stdout of the holder")?).read_line(&mut line)?;
        if line.is_empty() {
            bail!("the demo did not come up ({})", holder.wait()?);
        }
        let world = World::enter(serde_json::from_str(&line)?, Some(holder))?;
        say("namespaces", &world.hosts.keys().map(String::as_str).collect::<Vec<_>>().join(" "));
        say("WAN", &format!("london-tokyo {}", world.deed.wan));
        say("agents", &format!("{}, live after {:.1} s", world.deed.logs.len(), start.elapsed().as_secs_f64()));
        Ok(world)
    }

    pub fn find() -> Result<World> {
        World::find_if_up()?.context("no demo is up: scripts/demo up")
    }

    pub fn find_if_up() -> Result<Option<World>> {
        let Ok(connection) = UnixStream::connect_addr(&holder::address()?) else { return Ok(None) };
        let mut line = String::new();
        BufReader::new(&connection).read_line(&mut line)?;
        World::enter(serde_json::from_str(&line)?, None).map(Some)
    }

    pub fn host(&self, name: &str) -> Result<&Host> {
        let names = || self.hosts.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        self.hosts.get(name).with_context(|| format!("no host {name}; there are {}", names()))
    }

    /// A path in the world's private scratch directory.
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.deed.scratch.join(name)
    }

    /// The operator, sitting on `host`; the configuration is the same everywhere.
    pub fn operator(&self, host: &str) -> Result<Cli> {
        Cli::new(self.host(host)?, &self.scratch("operator"))
    }

    /// Lets the world outlive this command.
    pub fn stay(&mut self) -> Result<()> {
        let holder = self.holder.as_mut().context("only its maker can let a world stay")?;
        writeln!(holder.stdin.as_ref().context("stdin of the holder")?, "stay")?;
        Ok(())
    }

    /// Ends the world and makes sure of it.
    pub fn down(&mut self) -> Result<()> {
        let connection = UnixStream::connect_addr(&holder::address()?).context("calling the holder")?;
        connection.set_read_timeout(Some(DOWN_WITHIN))?;
        writeln!(&connection, "down")?;
        connection.shutdown(Shutdown::Write)?;
        let ended = BufReader::new(&connection).lines().all(|line| line.is_ok());
        if let Some(holder) = &mut self.holder {
            if !ended {
                holder.kill()?;
            }
            holder.wait()?;
        }
        ensure!(ended || self.holder.is_some(), "the holder, pid {}, did not end in {DOWN_WITHIN:?}", self.deed.pid);
        self.verify_gone()?;
        say("down", "agents, namespaces, WAN and files are gone");
        Ok(())
    }

    /// Replaces this process by a shell, or by `command`, on a host.
    pub fn shell(&self, host: &str, command: &[String]) -> Result<()> {
        self.host(host)?.namespace().enter()?;
        let shell = std::env::var("SHELL").unwrap_or_else(|_| "/bin/sh".to_owned());
        let (program, arguments) = match command {
            [] => (shell.as_str(), &[][..]),
            [program, arguments @ ..] => (program.as_str(), arguments),
        };
        let binaries = arctic_binary()?.parent().context("directory of the binaries")?.to_owned();
        let path = std::env::join_paths(
            [binaries].into_iter().chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
        )?;
        let error = Command::new(program)
            .args(arguments)
            .envs(self.operator(host)?.environment())
            .env("PATH", path)
            .env("PS1", format!("[{host}] \\w # "))
            .exec();
        Err(error).with_context(|| format!("running {program}"))
    }

    /// The ends of the agents' logs, on stderr.
    pub fn print_log_tails(&self) {
        for path in &self.deed.logs {
            let log = fs::read_to_string(path).unwrap_or_else(|error| error.to_string());
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("--- {}", path.display());
            for line in &lines[lines.len().saturating_sub(LOG_TAIL_LINES)..] {
                eprintln!("{line}");
            }
        }
    }

    /// Opens every host and moves this process to the holder's mounts, where its files are.
    fn enter(deed: Deed, holder: Option<Child>) -> Result<World> {
        let mut hosts = BTreeMap::new();
        for (name, door) in &deed.hosts {
            let namespace = NetNs::open(&door.path).with_context(|| format!("opening {name}"))?;
            hosts.insert(name.clone(), Host::new(name, namespace));
        }
        let working = std::env::current_dir()?;
        let mounts = File::open(format!("/proc/{}/ns/mnt", deed.pid)).context("opening the holder's mounts")?;
        // SAFETY: splits only the working directory from threads that are ending; the call below demands it.
        unsafe { unshare_unsafe(UnshareFlags::FS) }?;
        move_into_link_name_space(mounts.as_fd(), Some(LinkNameSpaceType::Mount)).context("entering the mounts")?;
        if std::env::set_current_dir(&working).is_err() {
            eprintln!("{} is not visible in the demo; working in /", working.display());
        }
        Ok(World { deed, hosts, holder })
    }

    fn verify_gone(&mut self) -> Result<()> {
        let inodes: Vec<u64> = self.deed.hosts.values().map(|door| door.inode).collect();
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let left: Vec<i32> = self.hosts.values().flat_map(|host| host.namespace().processes()).collect();
            if left.is_empty() && !holder::is_up()? {
                self.hosts.clear();
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "processes {left:?} still live in namespaces {inodes:?}");
            thread::sleep(Duration::from_millis(20));
        }
    }
}
