//! What really went over a device, as tcpdump would write it.

use std::fs;
use std::io::ErrorKind;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::net::{RecvFlags, netdevice, recv, sockopt};
use socket2::{Domain, SockAddr, Socket, Type};

use super::Host;

const ENDED_WITHIN: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// What waits for a reader that gets no processor.
const QUEUE_BYTES: usize = 256 << 20;
const FRAME_MAX_BYTES: usize = 256 << 10;
/// Magic, version, no zone, no snapshot length to speak of, Ethernet; numbers in this machine's order.
const FILE_HEADER: [u32; 6] = [0xa1b2_c3d4, 2 | 4 << 16, 0, 0, FRAME_MAX_BYTES as u32, 1];
const FILE_HEADER_BYTES: usize = 24;
const RECORD_HEADER_BYTES: usize = 16;

/// A running capture of every packet of one device (not `lo`), both ways, in full.
pub struct Capture {
    socket: Arc<Socket>,
    is_ending: Arc<AtomicBool>,
    reader: JoinHandle<Result<Vec<u8>>>,
    file: PathBuf,
}

impl Capture {
    /// The capture sees every packet from here on. The file goes to `directory`.
    pub fn start(host: &Host, device: &str, directory: &Path) -> Result<Capture> {
        let socket = host.run(|| listen(device)).with_context(|| format!("capturing on {host} {device}"))?;
        let (socket, is_ending) = (Arc::new(socket), Arc::new(AtomicBool::new(false)));
        let reader = thread::spawn({
            let (socket, is_ending) = (socket.clone(), is_ending.clone());
            move || read(&socket, &is_ending)
        });
        Ok(Capture { socket, is_ending, reader, file: directory.join(format!("{host}-{device}.pcap")) })
    }

    /// Ends the capture and returns its bytes, packet headers included: all packets up to this call, which are in the file
    /// as well. Packets that the kernel had to leave out are an error, because then the capture proves nothing.
    pub fn stop(self) -> Result<Vec<u8>> {
        self.is_ending.store(true, Ordering::Release);
        let seen = self.reader.join().map_err(|_| anyhow!("the reader of a capture panicked"))??;
        let lost = lost(&self.socket)?;
        ensure!(lost == 0, "the capture is not complete: the kernel left out {lost} packets");
        fs::write(&self.file, &seen).with_context(|| format!("writing {}", self.file.display()))?;
        Ok(seen)
    }
}

/// A socket that gets what crosses a device of this namespace.
fn listen(device: &str) -> Result<Socket> {
    // Without a protocol it gets nothing until it is bound.
    let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
    sockopt::set_socket_recv_buffer_size_force(&socket, QUEUE_BYTES)?;
    socket.set_read_timeout(Some(POLL_INTERVAL))?;
    let index = netdevice::name_to_index(&socket, device)?;
    // SAFETY: the storage is zeroed and larger than a `sockaddr_ll`, whose fields are plain numbers; its length is told.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, len| {
            let address = storage.cast::<libc::sockaddr_ll>();
            (*address).sll_family = libc::AF_PACKET as u16;
            (*address).sll_protocol = (libc::ETH_P_ALL as u16).to_be();
            (*address).sll_ifindex = index as i32;
            *len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })
    }?;
    socket.bind(&address)?;
    Ok(socket)
}

fn read(socket: &Socket, is_ending: &AtomicBool) -> Result<Vec<u8>> {
    let mut seen: Vec<u8> = FILE_HEADER.iter().flat_map(|n| n.to_ne_bytes()).collect();
    let mut frame = vec![0; FRAME_MAX_BYTES];
    let mut deadline = None;
    loop {
        // Looked at before the queue: what was sent until then is in it.
        if is_ending.load(Ordering::Acquire) {
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + ENDED_WITHIN);
            ensure!(Instant::now() < deadline, "the traffic does not end");
        }
        match recv(socket, &mut frame[..], RecvFlags::empty()) {
            Ok((len, _)) => {
                let len = len as u32;
                seen.extend([0, 0, len, len].iter().flat_map(|n| n.to_ne_bytes()));
                seen.extend_from_slice(&frame[..len as usize]);
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock && deadline.is_some() => return Ok(seen),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(e) => return Err(e).context("reading what crossed a device"),
        }
    }
}

/// Packets that found the queue full.
fn lost(socket: &Socket) -> Result<u32> {
    let mut stats = MaybeUninit::<[u32; 2]>::zeroed();
    let mut len = size_of_val(&stats) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, the size of the storage, which is valid whatever they are.
    let (done, [_met, lost]) = unsafe {
        let to = stats.as_mut_ptr().cast();
        let done = libc::getsockopt(socket.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_STATISTICS, to, &mut len);
        (done, stats.assume_init())
    };
    ensure!(done == 0, "asking what a capture lost: {}", std::io::Error::last_os_error());
    Ok(lost)
}

/// Whether `needle` occurs in `haystack`; quick enough for many needles in a big capture, also in a debug build.
pub fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    // SAFETY: memmem only reads, within the two lengths, and both slices live across the call.
    let found = unsafe { libc::memmem(haystack.as_ptr().cast(), haystack.len(), needle.as_ptr().cast(), needle.len()) };
    !found.is_null()
}

/// The IPv4 packets of a capture of an Ethernet device, in their order.
pub fn ipv4_packets(capture: &[u8]) -> Vec<&[u8]> {
    const ETHERNET_HEADER_BYTES: usize = 14;
    let mut rest = capture.get(FILE_HEADER_BYTES..).unwrap_or_default();
    let mut packets = vec![];
    while let Some(len) = rest.get(8..12).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes) {
        let end = RECORD_HEADER_BYTES + len as usize;
        let Some(frame) = rest.get(RECORD_HEADER_BYTES..end) else { break };
        if frame.get(12..14) == Some(&[8, 0]) {
            packets.push(&frame[ETHERNET_HEADER_BYTES..]);
        }
        rest = &rest[end..];
    }
    packets
}
