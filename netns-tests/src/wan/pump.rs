//! The I/O of the emulator: one thread moves packets between two TUN devices as the two [`Path`]s decide.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::path::{Conditions, Counters, Path, Verdict};

/// Packets taken from or given to a device before the other direction has its turn.
const BATCH: usize = 64;
/// Packets in flight in one direction; 600 ms at 1.3 Gbit/s. Their memory is touched only when used.
const MAX_IN_FLIGHT: usize = 65_536;
const SLOT_BYTES: usize = 1536;
const NS_PER_S: u64 = 1_000_000_000;

/// What the owner and the pump tell each other.
#[derive(Default)]
pub(super) struct Board {
    pub conditions: [Conditions; 2],
    pub conditions_changed: bool,
    pub stop: bool,
    pub counters: [Counters; 2],
}

pub(super) struct Pump {
    devices: [File; 2],
    lanes: [Lane; 2],
    board: Arc<Mutex<Board>>,
    wake: Arc<OwnedFd>,
    start: Instant,
}

impl Pump {
    pub fn new(devices: [File; 2], seed: u64, board: Arc<Mutex<Board>>, wake: Arc<OwnedFd>) -> Pump {
        let lanes =
            [Lane::new(Path::new(Conditions::default(), seed)), Lane::new(Path::new(Conditions::default(), !seed))];
        Pump { devices, lanes, board, wake, start: Instant::now() }
    }

    /// Moves packets until told to stop.
    pub fn run(mut self) -> io::Result<()> {
        loop {
            let readable = self.sleep()?;
            let now_ns = self.now_ns();
            // After the sleep, so that a change made before a packet was sent meets that packet.
            if !self.read_board(now_ns) {
                return Ok(());
            }
            let ([a, b], [ab, ba]) = (&self.devices, &mut self.lanes);
            for (lane, from, to, readable) in [(ab, a, b, readable[0]), (ba, b, a, readable[1])] {
                lane.deliver(to, now_ns);
                if readable {
                    lane.collect(from, now_ns)?;
                }
            }
            self.board.lock().expect("no holder panics").counters =
                [self.lanes[0].path.counters(), self.lanes[1].path.counters()];
        }
    }

    fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// Sleeps until a packet is due, a device has one, or the owner calls; says which devices have one.
    fn sleep(&self) -> io::Result<[bool; 2]> {
        let due_ns = self.lanes.iter().filter_map(Lane::due_ns).min();
        let timeout = due_ns.map(|due_ns| timespec(due_ns.saturating_sub(self.now_ns())));
        let [a, b] = &self.devices;
        let mut ready =
            [PollFd::new(a, PollFlags::IN), PollFd::new(b, PollFlags::IN), PollFd::new(&*self.wake, PollFlags::IN)];
        match poll(&mut ready, timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok([false; 2]),
            Err(error) => return Err(error.into()),
        }
        if !ready[2].revents().is_empty() {
            rustix::io::read(&*self.wake, &mut [0; 8])?;
        }
        Ok([!ready[0].revents().is_empty(), !ready[1].revents().is_empty()])
    }

    /// Takes over changed conditions; false when told to stop.
    fn read_board(&mut self, now_ns: u64) -> bool {
        let mut board = self.board.lock().expect("no holder panics");
        if std::mem::take(&mut board.conditions_changed) {
            for (lane, conditions) in self.lanes.iter_mut().zip(board.conditions) {
                lane.path.set(now_ns, conditions);
            }
        }
        !board.stop
    }
}

/// One direction: its path, and the packets on their way.
struct Lane {
    path: Path,
    in_flight: BinaryHeap<Reverse<InFlight>>,
    slots: Slots,
    sequence: u64,
}

/// Ordered by delivery, then by arrival.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct InFlight {
    at_ns: u64,
    sequence: u64,
    slot: usize,
    len: usize,
}

impl Lane {
    fn new(path: Path) -> Lane {
        let in_flight = BinaryHeap::with_capacity(MAX_IN_FLIGHT);
        Lane { path, in_flight, slots: Slots::new(), sequence: 0 }
    }

    fn due_ns(&self) -> Option<u64> {
        self.in_flight.peek().map(|Reverse(packet)| packet.at_ns)
    }

    fn deliver(&mut self, mut to: &File, now_ns: u64) {
        for _ in 0..BATCH {
            if self.due_ns().is_none_or(|due_ns| due_ns > now_ns) {
                return;
            }
            let Some(Reverse(packet)) = self.in_flight.pop() else { return };
            let written = to.write(&self.slots.bytes(packet.slot)[..packet.len]);
            self.slots.give_back(packet.slot);
            let counters = self.path.counters_mut();
            match written {
                Ok(_) => {
                    counters.delivered += 1;
                    counters.delivered_bytes += packet.len as u64;
                }
                Err(_) => counters.dropped_emulator += 1, // the device is down or out of memory
            }
        }
    }

    fn collect(&mut self, mut from: &File, now_ns: u64) -> io::Result<()> {
        for _ in 0..BATCH {
            let slot = self.slots.take();
            let len = match from.read(self.slots.bytes(slot)) {
                Ok(len) => len,
                Err(error) => {
                    self.slots.give_back(slot);
                    return match error.kind() {
                        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(()),
                        _ => Err(error),
                    };
                }
            };
            match self.path.offer(now_ns, len) {
                Verdict::Drop(_) => self.slots.give_back(slot),
                Verdict::Deliver { .. } if self.slots.is_exhausted() => {
                    self.path.counters_mut().dropped_emulator += 1;
                    self.slots.give_back(slot);
                }
                Verdict::Deliver { at_ns } => {
                    self.send(at_ns, slot, len);
                    if let Some(at_ns) = self.path.again(at_ns)
                        && let Some(copy) = self.slots.copy(slot, len)
                    {
                        self.send(at_ns, copy, len);
                    }
                }
            }
        }
        Ok(())
    }

    fn send(&mut self, at_ns: u64, slot: usize, len: usize) {
        self.sequence += 1;
        self.in_flight.push(Reverse(InFlight { at_ns, sequence: self.sequence, slot, len }));
    }
}

/// Packet buffers, used from the lowest so that few pages are touched. One is always left for the packet being read.
struct Slots {
    memory: Vec<u8>,
    free: Vec<usize>,
}

impl Slots {
    fn new() -> Slots {
        Slots { memory: vec![0; (MAX_IN_FLIGHT + 1) * SLOT_BYTES], free: (0..=MAX_IN_FLIGHT).rev().collect() }
    }

    fn take(&mut self) -> usize {
        self.free.pop().expect("the last slot is never kept")
    }

    /// A slot with the same bytes; none if the one that it leaves would be the last.
    fn copy(&mut self, slot: usize, len: usize) -> Option<usize> {
        let copy = (self.free.len() > 1).then(|| self.take())?;
        self.memory.copy_within(slot * SLOT_BYTES..slot * SLOT_BYTES + len, copy * SLOT_BYTES);
        Some(copy)
    }

    fn is_exhausted(&self) -> bool {
        self.free.is_empty()
    }

    fn give_back(&mut self, slot: usize) {
        self.free.push(slot);
    }

    fn bytes(&mut self, slot: usize) -> &mut [u8] {
        &mut self.memory[slot * SLOT_BYTES..][..SLOT_BYTES]
    }
}

fn timespec(ns: u64) -> Timespec {
    Timespec { tv_sec: (ns / NS_PER_S) as i64, tv_nsec: (ns % NS_PER_S) as i64 }
}
