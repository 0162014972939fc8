//! What really went over a device: tcpdump into a file.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use super::{Host, Process};

const STARTED_WITHIN: Duration = Duration::from_secs(10);
const ENDED_WITHIN: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// A running capture of every packet of one device (not `lo`), both ways, in full.
pub struct Capture {
    tcpdump: Process,
    file: PathBuf,
}

impl Capture {
    /// Returns once the capture sees packets. `filter` is tcpdump's, empty for all; files go to `directory`.
    pub fn start(host: &Host, device: &str, filter: &str, directory: &Path) -> Result<Capture> {
        let file = directory.join(format!("{host}-{device}.pcap"));
        let log = file.with_extension("log");
        let mut command = host.command("tcpdump");
        // Packets are written as they come, and the privileges kept: the file is in a directory of root.
        command.args(["-i", device, "-n", "-U", "-s", "0", "-B", "65536", "-Z", "root", "-w"]).arg(&file).arg(filter);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log)?);
        let mut tcpdump = host.spawn(command)?;
        let deadline = Instant::now() + STARTED_WITHIN;
        loop {
            let said = fs::read_to_string(&log)?;
            if said.contains("listening on") {
                return Ok(Capture { tcpdump, file });
            }
            if tcpdump.ended()?.is_some() || Instant::now() >= deadline {
                bail!("tcpdump on {host} {device} did not start: {said}");
            }
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// Ends the capture and returns its bytes, packet headers included: all packets up to this call. Packets that the
    /// kernel had to leave out are an error, because then the capture proves nothing.
    pub fn stop(mut self) -> Result<Vec<u8>> {
        self.catch_up()?;
        self.tcpdump.signal(Signal::INT)?;
        if self.tcpdump.wait(ENDED_WITHIN)?.is_none() {
            bail!("{} did not end within {ENDED_WITHIN:?}", self.tcpdump);
        }
        let said = self.said()?;
        if !said.contains("\n0 packets dropped by kernel") {
            bail!("the capture is not complete: {said}");
        }
        fs::read(&self.file).with_context(|| format!("reading {}", self.file.display()))
    }

    /// tcpdump throws away on SIGINT what it has not read yet; SIGUSR1 makes it say how much that is.
    fn catch_up(&mut self) -> Result<()> {
        let deadline = Instant::now() + ENDED_WITHIN;
        loop {
            let before = self.said()?.len();
            self.tcpdump.signal(Signal::USR1)?;
            thread::sleep(POLL_INTERVAL);
            let said = self.said()?;
            // "591 packets captured, 685 packets received by filter, 0 packets dropped by kernel"
            let counts: Vec<u64> = said[before..].split_whitespace().filter_map(|word| word.parse().ok()).collect();
            if let [written, met, _dropped, ..] = counts[..]
                && written >= met
            {
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!("{} does not catch up: {said}", self.tcpdump);
            }
        }
    }

    fn said(&self) -> Result<String> {
        Ok(fs::read_to_string(self.file.with_extension("log"))?)
    }
}

/// Whether `needle` occurs in `haystack`; quick enough for many needles in a big capture, also in a debug build.
pub fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    // SAFETY: memmem only reads, within the two lengths, and both slices live across the call.
    let found = unsafe { libc::memmem(haystack.as_ptr().cast(), haystack.len(), needle.as_ptr().cast(), needle.len()) };
    !found.is_null()
}
