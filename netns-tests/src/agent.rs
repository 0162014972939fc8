//! The real program: `arctic agent run` as a process of a host, and the real command line beside it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::de::DeserializeOwned;

use crate::lab::{Host, Process};

/// An agent answers `/livez` within this time of its start, or its start has failed.
const LIVE_WITHIN: Duration = Duration::from_secs(20);
/// The unit's TimeoutStopSec (operations.md §5).
const STOP_WITHIN: Duration = Duration::from_secs(20);
const HTTP_TIMEOUT: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
const LOG_TAIL_LINES: usize = 20;

/// The `arctic` binary: `ARCTIC_BIN`, or the one that cargo built beside the running program.
pub fn arctic_binary() -> Result<PathBuf> {
    sibling_binary("ARCTIC_BIN", "arctic")
}

/// The `arctic-license` binary: `ARCTIC_LICENSE_BIN`, or the one beside the running program.
pub fn license_binary() -> Result<PathBuf> {
    sibling_binary("ARCTIC_LICENSE_BIN", "arctic-license")
}

fn sibling_binary(variable: &str, name: &str) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return fs::canonicalize(&path).with_context(|| format!("{variable}={}", path.display()));
    }
    let running = std::env::current_exe()?;
    // A test runs from target/<profile>/deps, the demo from target/<profile>.
    let found = running.ancestors().skip(1).take(2).map(|directory| directory.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("no {name} beside {}; build it or set {variable}", running.display()))
}

/// Settings of one agent (operations.md §1); everything it writes stays below `directory`.
pub struct AgentSettings {
    pub directory: PathBuf,
    pub api_port: u16,
    /// More variables, or other values for the ones set by default.
    pub environment: BTreeMap<String, String>,
    /// The data directory is copied to a disk of its own, of this size, that ends with the agent.
    pub disk_bytes: Option<u64>,
}

impl AgentSettings {
    /// Defaults on port 8080, files in `<scratch>/<name>`.
    pub fn new(scratch: &Path, name: &str) -> AgentSettings {
        AgentSettings { directory: scratch.join(name), api_port: 8080, environment: BTreeMap::new(), disk_bytes: None }
    }

    pub fn data_dir(&self) -> PathBuf {
        self.directory.join("data")
    }

    pub fn recovery_token(&self) -> PathBuf {
        self.directory.join("recovery.token")
    }

    pub fn log(&self) -> PathBuf {
        self.directory.join("agent.log")
    }
}

/// A running agent; killed and reaped on drop.
pub struct Agent {
    host: Host,
    settings: AgentSettings,
    process: Process,
}

impl Agent {
    /// Starts the agent and waits until it answers `/livez`. A log of an earlier run is continued.
    pub fn start(host: &Host, settings: AgentSettings) -> Result<Agent> {
        let data_dir = settings.data_dir();
        fs::create_dir_all(&data_dir).with_context(|| format!("making {}", data_dir.display()))?;
        let log = File::options().create(true).append(true).open(settings.log()).context("opening the agent's log")?;
        let mut command = agent_command(host, &settings)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command
            .env("API_PORT", settings.api_port.to_string())
            .env("DATA_DIR", data_dir)
            .env("RECOVERY_TOKEN_PATH", settings.recovery_token())
            .env("LOG_FORMAT", "json")
            .env("LOG_LEVEL", "info")
            .env("RUST_BACKTRACE", "1")
            .envs(&settings.environment);
        let process = host.spawn(command)?;
        let mut agent = Agent { host: host.clone(), settings, process };
        agent.wait_until_live()?;
        Ok(agent)
    }

    pub fn host(&self) -> &Host {
        &self.host
    }

    pub fn settings(&self) -> &AgentSettings {
        &self.settings
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Everything it has logged so far.
    pub fn log(&self) -> Result<String> {
        let path = self.settings.log();
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    }

    /// SIGTERM, as systemd stops it; an error when it needs longer than the unit allows.
    pub fn stop(mut self) -> Result<ExitStatus> {
        self.process.signal(rustix::process::Signal::TERM)?;
        match self.process.wait(STOP_WITHIN)? {
            Some(status) => Ok(status),
            None => bail!("agent on {} still ran {STOP_WITHIN:?} after SIGTERM\n{}", self.host, self.log_tail()),
        }
    }

    /// SIGKILL.
    pub fn kill(mut self) -> Result<ExitStatus> {
        self.process.kill()
    }

    fn wait_until_live(&mut self) -> Result<()> {
        let address = SocketAddr::from(([127, 0, 0, 1], self.settings.api_port));
        let deadline = Instant::now() + LIVE_WITHIN;
        loop {
            if let Some(status) = self.process.ended()? {
                bail!("agent on {} ended at start: {status}\n{}", self.host, self.log_tail());
            }
            match http_get(&self.host, address, "/livez") {
                Ok((200, _)) => return Ok(()),
                Ok((status, body)) if Instant::now() >= deadline => {
                    bail!("agent on {}: /livez answers {status} {body}\n{}", self.host, self.log_tail())
                }
                Err(error) if Instant::now() >= deadline => {
                    return Err(error.context(format!("agent on {} is not live\n{}", self.host, self.log_tail())));
                }
                Ok(_) | Err(_) => thread::sleep(POLL_INTERVAL),
            }
        }
    }

    fn log_tail(&self) -> String {
        let log = self.log().unwrap_or_else(|error| format!("{error:#}"));
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
    }
}

fn agent_command(host: &Host, settings: &AgentSettings) -> Result<Command> {
    let binary = arctic_binary()?;
    let Some(bytes) = settings.disk_bytes else {
        let mut command = host.command(binary);
        command.args(["agent", "run"]);
        return Ok(command);
    };
    // The mount belongs to a namespace of the process, and so ends with it.
    let mut command = host.command("unshare");
    let script = format!(
        "disk=\"$1.disk\" && mkdir -p \"$disk\" && mount -t tmpfs -o size={bytes} none \"$disk\" && \
         cp -a \"$1/.\" \"$disk\" && mount --bind \"$disk\" \"$1\" && exec \"$0\" agent run"
    );
    command.args(["--mount", "sh", "-c", &script]).arg(binary).arg(settings.data_dir());
    Ok(command)
}

/// A plain HTTP/1.1 GET from inside a host: status and body.
pub fn http_get(host: &Host, address: SocketAddr, path: &str) -> Result<(u16, String)> {
    host.run(|| {
        let mut stream = TcpStream::connect_timeout(&address, HTTP_TIMEOUT)?;
        stream.set_read_timeout(Some(HTTP_TIMEOUT))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
        status.zip(body).with_context(|| format!("{address}{path} answered {answer:?}"))
    })
    .with_context(|| format!("GET http://{address}{path} on {host}"))
}

/// The real CLI on a host, as one operator with a home of their own.
#[derive(Clone)]
pub struct Cli {
    host: Host,
    home: PathBuf,
    shown: bool,
}

/// What a command answered.
#[derive(Debug, Clone)]
pub struct CliOutput {
    pub command: String,
    /// 128 + signal when it was killed.
    pub exit: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Cli {
    /// `home` becomes HOME; configuration and cache lie below it.
    pub fn new(host: &Host, home: &Path) -> Result<Cli> {
        fs::create_dir_all(home).with_context(|| format!("making {}", home.display()))?;
        Ok(Cli { host: host.clone(), home: home.to_owned(), shown: false })
    }

    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The same operator, who lets us see each command before it runs.
    pub fn shown(self) -> Cli {
        Cli { shown: true, ..self }
    }

    /// The variables that make a shell on the host this operator's.
    pub fn environment(&self) -> [(&'static str, PathBuf); 3] {
        [
            ("HOME", self.home.clone()),
            ("XDG_CONFIG_HOME", self.home.join(".config")),
            ("XDG_CACHE_HOME", self.home.join(".cache")),
        ]
    }

    /// `arctic <arguments>` on the host, ready to be started.
    pub fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = self.host.command(arctic_binary()?);
        command.args(arguments).stdin(Stdio::null()).env_clear().envs(self.environment());
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("RUST_BACKTRACE", "1");
        Ok(command)
    }

    /// Runs `arctic <arguments>` to its end.
    pub fn run(&self, arguments: &[&str]) -> Result<CliOutput> {
        let mut command = self.command(arguments)?;
        let shown = format!("arctic {}", arguments.join(" "));
        if self.shown {
            println!("{} $ {shown}", self.host);
        }
        let output = command.output().with_context(|| format!("running arctic on {}", self.host))?;
        let exit = output.status.code().or(output.status.signal().map(|signal| 128 + signal)).unwrap_or(-1);
        Ok(CliOutput {
            command: shown,
            exit,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs a command that must succeed; its stdout.
    pub fn ok(&self, arguments: &[&str]) -> Result<String> {
        self.run(arguments)?.ok()
    }

    /// Runs a command with `-j` that must succeed; its document.
    pub fn json<T: DeserializeOwned>(&self, arguments: &[&str]) -> Result<T> {
        let output = self.run(&[arguments, &["-j"]].concat())?;
        let command = output.command.clone();
        let stdout = output.ok()?;
        serde_json::from_str(&stdout).with_context(|| format!("{command} printed {stdout}"))
    }
}

impl CliOutput {
    /// Stdout, or an error that shows all when the exit was not 0.
    pub fn ok(self) -> Result<String> {
        ensure!(self.exit == 0, "{}: exit {}\n{}{}", self.command, self.exit, self.stdout, self.stderr);
        Ok(self.stdout)
    }
}
