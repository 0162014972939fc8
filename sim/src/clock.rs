use arctic::{
    env::Clock,
    model::{Mono, UnixTime},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

/// Wall-clock time at which every simulation starts: 2026-01-01T00:00:00Z.
pub const EPOCH: UnixTime = UnixTime::from_secs(1_767_225_600);

/// How far a host's wall clock is ahead, in milliseconds; it may be set at any time. Clones are one clock.
#[derive(Debug, Clone, Default)]
pub struct Skew(Arc<AtomicI64>);

impl Skew {
    pub fn set_ms(&self, ahead: i64) {
        self.0.store(ahead, Ordering::Relaxed);
    }
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
        let true_time = EPOCH.plus(turmoil::sim_elapsed().unwrap_or_default());
        let ahead = self.skew.0.load(Ordering::Relaxed);
        let by = Duration::from_millis(ahead.unsigned_abs());
        if ahead < 0 { true_time.minus(by) } else { true_time.plus(by) }
    }
}
