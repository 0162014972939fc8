//! The process that owns the world.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use netns_tests::agent::{Agent, AgentSettings};
use netns_tests::lab::Lab;
use netns_tests::service::TcpService;
use netns_tests::topology::{API_PORT, Profile, TwoSites};
use netns_tests::{bulk, content};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use serde::{Deserialize, Serialize};

/// The file that the demo fetches.
pub const FILE_NAME: &str = "report.bin";
pub const FILE_BYTES: usize = 4 * 1024 * 1024;
pub const FILE_SEED: u64 = 71;
pub const HTTP_PORT: u16 = 80;
pub const BULK_PORT: u16 = 5001;

/// What a visitor is told, as one line of JSON.
#[derive(Serialize, Deserialize)]
pub struct Deed {
    pub pid: u32,
    pub wan: String,
    /// Below the holder's private `/run`.
    pub scratch: PathBuf,
    pub hosts: BTreeMap<String, Door>,
    pub logs: Vec<PathBuf>,
}

#[derive(Serialize, Deserialize)]
pub struct Door {
    pub path: PathBuf,
    pub inode: u64,
}

/// Where the holder answers: an abstract name, gone with the process.
pub fn address() -> Result<SocketAddr> {
    Ok(SocketAddr::from_abstract_name("arctic-demo")?)
}

/// The name is free only when no holder lives.
pub fn is_up() -> Result<bool> {
    Ok(UnixStream::connect_addr(&address()?).is_ok())
}

struct Holding {
    agents: Vec<Agent>,
    _services: Vec<TcpService>,
    sites: TwoSites,
}

enum Call {
    End,
    Stay,
}

/// Makes the world, prints its deed on stdout, and keeps it until stdin closes without a `stay` or a visitor says `down`.
pub fn run(profile: Profile, seed: u64) -> Result<()> {
    rustix::process::setsid().context("leaving the session of the terminal")?;
    let Ok(listener) = UnixListener::bind_addr(&address()?) else { bail!("a demo is up already: scripts/demo down") };
    make_private_run()?;

    let (calls, inbox) = channel();
    // From here on the maker's end closes the world, also half-made.
    let lease = calls.clone();
    thread::spawn(move || read_lease(&lease));
    let holding = build(profile, seed)?;
    let deed = serde_json::to_string(&deed(&holding))?;
    writeln!(std::io::stdout(), "{deed}").context("telling the maker")?;
    thread::spawn(move || receive(&listener, &deed, &calls));

    loop {
        match inbox.recv()? {
            Call::End => break,
            Call::Stay => leave_terminal(holding.sites.lab.scratch())?,
        }
    }
    for agent in holding.agents {
        agent.stop()?;
    }
    Ok(())
}

fn build(profile: Profile, seed: u64) -> Result<Holding> {
    let sites = TwoSites::build(Lab::in_directory("demo", Path::new("/run"))?, profile, seed)?;
    let files = BTreeMap::from([(FILE_NAME.to_owned(), content::Content::bytes(FILE_SEED, FILE_BYTES))]);
    let anywhere = |port| std::net::SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port));
    let services = vec![
        TcpService::files(&sites.server, anywhere(HTTP_PORT), files)?,
        bulk::server(&sites.server, anywhere(BULK_PORT))?,
    ];
    let mut agents = Vec::new();
    for host in [&sites.london, &sites.tokyo] {
        let mut settings = AgentSettings::new(sites.lab.scratch(), host.name());
        settings.api_port = API_PORT;
        agents.push(Agent::start(host, settings)?);
    }
    Ok(Holding { agents, _services: services, sites })
}

fn deed(holding: &Holding) -> Deed {
    let door = |host: &netns_tests::lab::Host| Door { path: host.namespace().path(), inode: host.namespace().inode() };
    Deed {
        pid: std::process::id(),
        wan: holding.sites.profile.to_string(),
        scratch: holding.sites.lab.scratch().to_owned(),
        hosts: holding.sites.hosts().map(|host| (host.name().to_owned(), door(host))).into(),
        logs: holding.agents.iter().map(|agent| agent.settings().log()).collect(),
    }
}

/// An empty `/run` of our own: it goes with the last process of the demo, whatever ends it.
fn make_private_run() -> Result<()> {
    // SAFETY: changes the mounts that this thread and those it starts later see; no descriptor table is split.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.context("making a mount namespace (needs root)")?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).context("making mounts private")?;
    mount("tmpfs", "/run", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, c"mode=0755").context("mounting /run")?;
    Ok(())
}

/// The maker holds the other end of stdin: when it goes without having said `stay`, so do we.
fn read_lease(calls: &Sender<Call>) {
    let stays = std::io::stdin().lines().map_while(Result::ok).any(|line| line == "stay");
    if calls.send(if stays { Call::Stay } else { Call::End }).is_err() {
        return;
    }
    if !stays {
        // The world may be stuck half-made, or in a slow stop.
        thread::sleep(Duration::from_secs(30));
        std::process::exit(1);
    }
}

fn receive(listener: &UnixListener, deed: &str, calls: &Sender<Call>) {
    for visitor in listener.incoming().map_while(Result::ok) {
        let (deed, calls) = (deed.to_owned(), calls.clone());
        thread::spawn(move || -> std::io::Result<()> {
            writeln!(&visitor, "{deed}")?;
            let mut word = String::new();
            BufReader::new(&visitor).read_line(&mut word)?;
            if word.trim() == "down" && calls.send(Call::End).is_ok() {
                // Holds the visitor's connection until this process ends: its end is the answer.
                loop {
                    thread::park();
                }
            }
            Ok(())
        });
    }
}

/// What is said from now on would surprise whoever sits there by then.
fn leave_terminal(scratch: &Path) -> Result<()> {
    let log = File::create(scratch.join("holder.log"))?;
    rustix::stdio::dup2_stderr(&log)?;
    rustix::stdio::dup2_stdout(&log)?;
    Ok(())
}
