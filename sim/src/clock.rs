use arctic::{
    env::Clock,
    model::{Mono, UnixTime},
};
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

/// Wall-clock time at which every simulation starts: 2026-01-01T00:00:00Z.
pub const EPOCH: UnixTime = UnixTime::from_secs(1_767_225_600);

/// How far a host's wall clock is ahead, in milliseconds; it may be set at any time. Clones are one clock.
#[derive(Debug, Clone, Default)]
pub struct Skew {
    ahead_ms: Arc<AtomicI64>,
    /// Millionths by which it is too fast, and since when.
    drift: Arc<Mutex<Option<(i64, Duration)>>>,
}

impl Skew {
    pub fn set_ms(&self, ahead: i64) {
        self.ahead_ms.store(ahead, Ordering::Relaxed);
    }

    /// From `since` on, a time since the start, the clock is too fast by so many millionths.
    pub fn drift(&self, ppm: i64, since: Duration) {
        *self.drift.lock().unwrap_or_else(PoisonError::into_inner) = Some((ppm, since));
    }

    /// The clock goes right again, and shows the right time.
    pub fn end_drift(&self) {
        *self.drift.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn ahead_ms(&self, now: Duration) -> i64 {
        let drift = *self.drift.lock().unwrap_or_else(PoisonError::into_inner);
        self.ahead_ms.load(Ordering::Relaxed)
            + drift.map_or(0, |(ppm, since)| drifted_ms(ppm, now.saturating_sub(since)))
    }
}

/// How far a clock is off after a while.
pub(crate) fn drifted_ms(ppm: i64, after: Duration) -> i64 {
    i64::try_from(after.as_millis()).unwrap_or(i64::MAX).saturating_mul(ppm) / 1_000_000
}

/// Virtual time of the host that asks. A wall clock before 1970 shows 1970.
#[derive(Default)]
pub struct SimClock {
    pub skew: Skew,
}

impl Clock for SimClock {
    fn mono(&self) -> Mono {
        Mono::from_duration(turmoil::elapsed())
    }
    fn unix(&self) -> UnixTime {
        let now = turmoil::sim_elapsed().unwrap_or_default();
        let (true_time, ahead) = (EPOCH.plus(now), self.skew.ahead_ms(now));
        let by = Duration::from_millis(ahead.unsigned_abs());
        if ahead < 0 { true_time.minus(by) } else { true_time.plus(by) }
    }
}
