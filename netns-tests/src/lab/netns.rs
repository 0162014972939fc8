//! A network namespace held by a file descriptor: it lives as long as the descriptor or a process inside.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

#[derive(Debug)]
pub struct NetNs {
    fd: OwnedFd,
    inode: u64,
}

impl NetNs {
    /// Makes a new, empty namespace. Needs CAP_SYS_ADMIN. The calling thread stays where it is.
    pub fn create() -> io::Result<NetNs> {
        thread::scope(|scope| {
            let birth = scope.spawn(|| {
                // SAFETY: only the network namespace of this short-lived thread changes; no descriptor table is split.
                unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
                NetNs::open(Path::new("/proc/thread-self/ns/net"))
            });
            birth.join().expect("creating a namespace does not panic")
        })
    }

    /// Opens an existing namespace, such as `/proc/<pid>/ns/net` or `/proc/<pid>/fd/<n>`.
    pub fn open(path: &Path) -> io::Result<NetNs> {
        let file = File::open(path)?;
        let inode = file.metadata()?.ino();
        Ok(NetNs { fd: file.into(), inode })
    }

    /// Moves the calling thread, and no other, into the namespace.
    pub fn enter(&self) -> io::Result<()> {
        enter(self.fd.as_fd())
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// A path that names this namespace for other processes while this one lives.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd()))
    }

    /// The kernel's number of the namespace, unique among the living.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Process ids, other than our own, whose main thread lives in the namespace.
    pub fn processes(&self) -> Vec<i32> {
        let own = std::process::id() as i32;
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
            .filter(|pid| *pid != own)
            .filter(|pid| fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|found| found.ino() == self.inode))
            .collect()
    }
}

/// Moves the calling thread into the network namespace behind `fd`; one system call, fit for between fork and exec.
pub(super) fn enter(fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(move_into_link_name_space(fd, Some(LinkNameSpaceType::Network))?)
}
