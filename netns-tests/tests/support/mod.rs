//! A network namespace per test, on a thread of its own.

use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::{future::Future, process::Command};

/// Runs `test` on a new thread in a new network namespace with loopback up. Needs root.
pub fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        // SAFETY: only the network namespace is unshared, which no memory or descriptor of other threads depends on.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.expect("a network namespace can be made (root)");
        sh("ip link set lo up");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs a shell command in the namespace of this thread; its output.
pub fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().expect("sh runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    text
}
