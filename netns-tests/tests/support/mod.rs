//! Network namespaces, each on a thread of its own, and shell commands inside them.
#![allow(dead_code, reason = "each test binary uses its part")]

use rustix::thread::{UnshareFlags, gettid, unshare_unsafe};
use std::{future::Future, process::Command, sync::mpsc, thread::JoinHandle};

type Job = Box<dyn FnOnce() + Send>;

/// A thread in a network namespace of its own, with loopback up. Dropping it ends both. Needs root.
pub struct Namespace {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    /// The id of the thread: `ip link set … netns <id>` moves a link here.
    pub id: i32,
}

impl Namespace {
    pub fn new() -> Self {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (ready, id) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            enter_new_namespace();
            ready.send(gettid().as_raw_nonzero().get()).expect("the creator waits");
            queue.iter().for_each(|job| job());
        });
        let id = id.recv().expect("a network namespace can be made (root)");
        Self { jobs: Some(jobs), thread: Some(thread), id }
    }

    /// Runs `job` in the namespace; panics where it panics.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (send, result) = mpsc::channel();
        let job = Box::new(move || {
            let _ = send.send(std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)));
        });
        self.jobs.as_ref().expect("set until drop").send(job).expect("the thread runs until drop");
        result.recv().expect("the job answers").unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Starts a thread in the namespace.
    pub fn spawn(&self, job: impl FnOnce() + Send + 'static) {
        self.run(move || drop(std::thread::spawn(job)));
    }

    pub fn sh(&self, command: &str) -> String {
        let command = command.to_owned();
        self.run(move || sh(&command))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.jobs.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Runs `test` on a new thread in a new network namespace with loopback up. Needs root.
pub fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        enter_new_namespace();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn enter_new_namespace() {
    // SAFETY: only the network namespace is unshared, which no memory or descriptor of other threads depends on.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.expect("a network namespace can be made (root)");
    // Without duplicate address detection a new link-local address can be used at once.
    sh("sysctl -qw net.ipv6.conf.default.accept_dad=0 && ip link set lo up");
}

/// Runs a shell command in the namespace of this thread; its output.
pub fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().expect("sh runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    text
}
