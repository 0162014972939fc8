use crate::model::{Mono, UnixTime};
use std::time::{Instant, SystemTime};

/// The two clocks of a node. Only drivers and the API read them; machines take times as arguments.
pub trait Clock: Send + Sync + 'static {
    fn mono(&self) -> Mono;
    fn unix(&self) -> UnixTime;
}

/// The clocks of the operating system.
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    #[allow(clippy::disallowed_methods, reason = "the one place that reads the real clock")]
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn mono(&self) -> Mono {
        Mono::from_duration(self.start.elapsed())
    }
    #[allow(clippy::disallowed_methods, reason = "the one place that reads the real clock")]
    fn unix(&self) -> UnixTime {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        UnixTime::from_ms(u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX))
    }
}
