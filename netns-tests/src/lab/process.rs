//! Long-lived child processes that never outlive their owner.

use std::process::{Child, Command, ExitStatus};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};
use std::{fmt, io};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// A child with a process group of its own; on drop the group is killed and the child reaped.
pub struct Process {
    program: String,
    child: Child,
}

impl Process {
    pub(super) fn spawn(command: Command) -> Result<Process> {
        let program = command.get_program().to_string_lossy().into_owned();
        let child = spawn_on_lasting_thread(command).with_context(|| format!("starting {program}"))?;
        Ok(Process { program, child })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The pipes that the command asked for.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// `Some` once it has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("waiting for {}", self.program))
    }

    /// Waits until it ends, at most `limit`; `None` when it still runs.
    pub fn wait(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(Some(status));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// Sends a signal to the process (not its group). An ended process is no error.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.ended()?.is_none() {
            kill_process(self.raw_pid(), signal).with_context(|| format!("signalling {}", self.program))?;
        }
        Ok(())
    }

    /// SIGTERM, then SIGKILL when it still runs after `grace`.
    pub fn stop(&mut self, grace: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        match self.wait(grace)? {
            Some(status) => Ok(status),
            None => self.kill(),
        }
    }

    /// SIGKILL to the whole group.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.ended()? {
            return Ok(status);
        }
        kill_process_group(self.raw_pid(), Signal::KILL).with_context(|| format!("killing {}", self.program))?;
        self.child.wait().with_context(|| format!("reaping {}", self.program))
    }

    fn raw_pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("{self}: {error:#}");
        }
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {})", self.program, self.pid())
    }
}

type Order = (Command, Sender<io::Result<Child>>);

/// The kernel sends a parent-death signal when the *thread* that forked ends, so one thread that lasts as long as this
/// process does all the forking.
fn spawn_on_lasting_thread(command: Command) -> io::Result<Child> {
    static ORDERS: OnceLock<Sender<Order>> = OnceLock::new();
    let orders = ORDERS.get_or_init(|| {
        let (orders, inbox) = channel::<Order>();
        thread::spawn(move || {
            for (mut command, answer) in inbox {
                // A caller that no longer waits drops the child's handle; the death signal still bounds its life.
                let _ = answer.send(command.spawn());
            }
        });
        orders
    });
    let (answer, result) = channel();
    orders.send((command, answer)).map_err(|_| io::ErrorKind::BrokenPipe)?;
    result.recv().map_err(|_| io::ErrorKind::BrokenPipe)?
}
