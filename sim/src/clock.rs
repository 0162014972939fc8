use arctic::{
    env::Clock,
    model::{Mono, UnixTime},
};
use std::time::Duration;

/// Wall-clock time at which every simulation starts: 2026-01-01T00:00:00Z.
pub const EPOCH: UnixTime = UnixTime::from_secs(1_767_225_600);

/// Virtual time of the host that asks; `skew` is how far its wall clock is ahead.
pub struct SimClock {
    pub skew: Duration,
}

impl Clock for SimClock {
    fn mono(&self) -> Mono {
        Mono::from_duration(turmoil::elapsed())
    }
    fn unix(&self) -> UnixTime {
        EPOCH.plus(turmoil::sim_elapsed().unwrap_or_default()).plus(self.skew)
    }
}
