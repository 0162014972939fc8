//! A long link between two hosts, emulated in user space between two TUN devices, because build machines lack netem.

pub mod path;
mod pump;
pub mod tun;

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use rustix::event::{EventfdFlags, eventfd};

use crate::lab::Host;
use path::{Conditions, Counters};
use pump::{Board, Pump};

/// Packets that the kernel keeps for the emulator to read: a whole window may arrive in one burst.
const DEVICE_QUEUE_PACKETS: u32 = 10_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    AToB,
    BToA,
}

/// The link lives as long as this value; its devices are `wan-<b>` in host a and `wan-<a>` in host b, MTU 1500.
pub struct Wan {
    board: Arc<Mutex<Board>>,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<std::io::Result<()>>>,
}

impl Wan {
    /// Joins two hosts; both directions start with `conditions`. The decisions of the link follow from `seed`.
    pub fn connect(a: (&Host, &[&str]), b: (&Host, &[&str]), conditions: Conditions, seed: u64) -> Result<Wan> {
        let devices = [device(a.0, b.0, a.1)?, device(b.0, a.0, b.1)?];
        let board = Board { conditions: [conditions; 2], conditions_changed: true, ..Board::default() };
        let board = Arc::new(Mutex::new(board));
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let pump = Pump::new(devices, seed, board.clone(), wake.clone());
        let name = format!("wan {}-{}", a.0, b.0);
        let thread = thread::Builder::new().name(name).spawn(move || pump.run())?;
        Ok(Wan { board, wake, thread: Some(thread) })
    }

    /// Changes one direction; packets in flight keep their fate.
    pub fn set(&self, direction: Direction, conditions: Conditions) {
        self.tell(|board| board.conditions[direction as usize] = conditions);
    }

    /// Changes both directions.
    pub fn change(&self, change: impl Fn(&mut Conditions)) {
        self.tell(|board| board.conditions.iter_mut().for_each(&change));
    }

    /// A black hole in both directions.
    pub fn cut(&self) {
        self.change(|conditions| conditions.cut = true);
    }

    pub fn heal(&self) {
        self.change(|conditions| conditions.cut = false);
    }

    pub fn conditions(&self, direction: Direction) -> Conditions {
        self.board.lock().expect("no holder panics").conditions[direction as usize]
    }

    /// Up to the last wake-up of the link.
    pub fn counters(&self, direction: Direction) -> Counters {
        self.board.lock().expect("no holder panics").counters[direction as usize]
    }

    fn tell(&self, change: impl FnOnce(&mut Board)) {
        let mut board = self.board.lock().expect("no holder panics");
        change(&mut board);
        board.conditions_changed = true;
        drop(board);
        // Fails only when a wake-up is pending already.
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
    }
}

impl Drop for Wan {
    fn drop(&mut self) {
        self.tell(|board| board.stop = true);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(Ok(()))) | None => {}
            Some(Ok(Err(error))) => eprintln!("{self:?}: stopped early: {error}"),
            Some(Err(_)) => eprintln!("{self:?}: panicked"),
        }
    }
}

impl fmt::Debug for Wan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let thread = self.thread.as_ref().map(|thread| thread.thread().name().unwrap_or_default().to_owned());
        f.debug_tuple("Wan").field(&thread).finish()
    }
}

fn device(host: &Host, peer: &Host, addresses: &[&str]) -> Result<std::fs::File> {
    let name = format!("wan-{peer}");
    let file = host.run(|| tun::open(&name)).with_context(|| format!("making device {name} in {host}"))?;
    // No link-local address: the link carries nothing but what the hosts send.
    host.ip(&format!("link set {name} addrgenmode none txqueuelen {DEVICE_QUEUE_PACKETS} mtu 1500"))?;
    host.configure_device(&name, addresses)?;
    Ok(file)
}
