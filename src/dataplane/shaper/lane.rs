//! One direction of one service: flows ask for turns, packets wait for theirs.

use super::fair::{Fair, FlowId, Place};
use crate::model::Mono;
use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};

/// Bytes a second of 1 Mbit/s.
pub(super) const EXACT: u64 = 125_000;
/// The same with some to spare, for what the other end has shaped: nothing that waits here stays for long.
pub(super) const SPARING: u64 = EXACT + EXACT / 200;
/// Packets that wait in a lane: 100 ms at its rate, and room for some large ones.
const WAITING_PER_S: u64 = 10;
const WAITING_MIN_BYTES: u64 = 128 << 10;

/// A packet that has waited for its turn goes on here.
type Release = Box<dyn FnOnce() + Send>;

enum Turn {
    Flow(Arc<Seat>, u64),
    Packet(Release),
}

impl Turn {
    fn give(self) {
        match self {
            Self::Flow(seat, bytes) => seat.grant(bytes),
            Self::Packet(release) => release(),
        }
    }
}

/// Where a waiting flow hears that its turn has come.
#[derive(Default)]
struct Seat {
    granted: AtomicU64,
    waker: Mutex<Option<Waker>>,
}

impl Seat {
    fn grant(&self, bytes: u64) {
        self.granted.store(bytes, Relaxed);
        if let Some(waker) = self.waker.lock().unwrap_or_else(PoisonError::into_inner).take() {
            waker.wake();
        }
    }
}

type Clock = Box<dyn Fn() -> Mono + Send + Sync>;

pub(in crate::dataplane) struct Lane {
    clock: Clock,
    bytes_per_mbit: u64,
    /// 0 = no limit; read without the lock.
    bytes_per_s: AtomicU64,
    fair: Mutex<Fair<Turn>>,
    changed: Notify,
    next_flow: AtomicU64,
}

impl Lane {
    pub(super) fn new(limit_mbps: u32, bytes_per_mbit: u64) -> Arc<Self> {
        let started = Instant::now();
        Self::with_clock(limit_mbps, bytes_per_mbit, Box::new(move || Mono::from_duration(started.elapsed())))
    }

    pub(super) fn with_clock(limit_mbps: u32, bytes_per_mbit: u64, clock: Clock) -> Arc<Self> {
        let bytes_per_s = u64::from(limit_mbps) * bytes_per_mbit;
        let now = clock();
        Arc::new(Self {
            clock,
            bytes_per_mbit,
            bytes_per_s: bytes_per_s.into(),
            fair: Mutex::new(Fair::new(bytes_per_s, now)),
            changed: Notify::new(),
            // The lower ones are those of packets.
            next_flow: AtomicU64::new(1 << 32),
        })
    }

    pub(super) fn set_limit(&self, limit_mbps: u32) {
        let bytes_per_s = u64::from(limit_mbps) * self.bytes_per_mbit;
        if self.bytes_per_s.swap(bytes_per_s, Relaxed) != bytes_per_s {
            self.fair().set_rate(bytes_per_s, self.now());
            self.changed.notify_one();
        }
    }

    pub fn is_limited(&self) -> bool {
        self.bytes_per_s.load(Relaxed) > 0
    }

    /// Gives turns for ever.
    pub(super) async fn drive(self: Arc<Self>) {
        loop {
            let changed = self.changed.notified();
            match self.give_turns() {
                None => changed.await,
                Some(wait) => tokio::select! {
                    biased;
                    () = changed => {}
                    () = sleep(wait) => {}
                },
            }
        }
    }

    /// Gives the turns that are due; how long until the next one, if any waits.
    pub(super) fn give_turns(&self) -> Option<Duration> {
        let now = self.now();
        let mut fair = self.fair();
        let mut turns = vec![];
        if self.is_limited() {
            turns.extend(std::iter::from_fn(|| fair.serve(now)));
        } else {
            turns = fair.drain();
        }
        let wait = fair.wait();
        drop(fair);
        turns.into_iter().for_each(Turn::give);
        wait
    }

    /// What was asked for is given at once if it is due, else by the driver.
    fn see_to_turns(&self) {
        if self.give_turns().is_some() {
            self.changed.notify_one();
        }
    }

    /// Lets a packet go on when its turn comes; false if it is dropped because too much waits, or another one in its
    /// place.
    pub fn pass(&self, flow: FlowId, bytes: usize, release: impl FnOnce() + Send + 'static) -> bool {
        let room = (self.bytes_per_s.load(Relaxed) / WAITING_PER_S).max(WAITING_MIN_BYTES);
        let mut fair = self.fair();
        fair.queue(flow, bytes as u64, Turn::Packet(Box::new(release)));
        let is_full = fair.queued_bytes() > room;
        let dropped = if is_full { fair.drop_of_greediest() } else { None };
        drop(fair);
        self.see_to_turns();
        dropped.is_none()
    }

    fn fair(&self) -> MutexGuard<'_, Fair<Turn>> {
        self.fair.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Mono {
        (self.clock)()
    }
}

/// A flow in a lane: how much of it may go now.
pub(in crate::dataplane) struct Turns {
    lane: Arc<Lane>,
    flow: FlowId,
    /// Bytes that may go.
    room: u64,
    asked: Option<(Place, Arc<Seat>)>,
}

impl Turns {
    pub fn new(lane: Arc<Lane>) -> Self {
        let flow = FlowId(lane.next_flow.fetch_add(1, Relaxed));
        Self { lane, flow, room: 0, asked: None }
    }

    /// Bytes a second of all flows; 0 = no limit.
    pub fn rate(&self) -> u64 {
        self.lane.bytes_per_s.load(Relaxed)
    }

    /// Ready with how many bytes may go now: at least one.
    pub fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        if !self.lane.is_limited() {
            self.asked = None;
            return Poll::Ready(usize::MAX);
        }
        if self.room > 0 {
            return Poll::Ready(usize::try_from(self.room).unwrap_or(usize::MAX));
        }
        let (_, seat) = self.asked.get_or_insert_with(|| {
            let seat = Arc::new(Seat::default());
            let mut fair = self.lane.fair();
            let bytes = fair.turn_bytes();
            (fair.ask(self.flow, bytes, Turn::Flow(seat.clone(), bytes)), seat)
        });
        // Before the look: a turn that comes between is not missed.
        *seat.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(cx.waker().clone());
        let seat = seat.clone();
        self.lane.see_to_turns();
        match seat.granted.swap(0, Relaxed) {
            0 => Poll::Pending,
            granted => {
                self.asked = None;
                self.room = granted;
                Poll::Ready(usize::try_from(granted).unwrap_or(usize::MAX))
            }
        }
    }

    /// So many bytes went, with or without a turn.
    pub fn went(&mut self, bytes: usize) {
        if !self.lane.is_limited() {
            return;
        }
        let owed = (bytes as u64).saturating_sub(self.room);
        self.room = self.room.saturating_sub(bytes as u64);
        if owed > 0 {
            self.lane.fair().charge(self.flow, owed);
        }
    }
}

impl Drop for Turns {
    fn drop(&mut self) {
        let mut fair = self.lane.fair();
        let granted = self.asked.take().map_or(0, |(place, seat)| {
            drop(fair.withdraw(place));
            seat.granted.swap(0, Relaxed)
        });
        fair.give_back(self.room + granted);
        fair.forget(self.flow);
    }
}
