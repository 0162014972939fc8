//! Time as values. Neither type can read a clock: drivers pass `now` in.

use super::text::as_text;
use std::{
    fmt,
    ops::{Add, Sub},
    time::Duration,
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Monotonic time since an arbitrary start of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Mono(Duration);

impl Mono {
    pub const fn from_duration(since_start: Duration) -> Self {
        Self(since_start)
    }
    pub const fn from_ms(ms: u64) -> Self {
        Self(Duration::from_millis(ms))
    }
    pub const fn since_start(self) -> Duration {
        self.0
    }
    pub fn saturating_since(self, earlier: Mono) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Mono {
    type Output = Mono;
    fn add(self, d: Duration) -> Mono {
        Mono(self.0.saturating_add(d))
    }
}

impl Sub<Mono> for Mono {
    type Output = Duration;
    fn sub(self, earlier: Mono) -> Duration {
        self.saturating_since(earlier)
    }
}

/// Wall-clock time in milliseconds since 1970, UTC. JSON form: RFC 3339 with milliseconds where they are not zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct UnixTime(u64);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid time `{0}`: expected RFC 3339, for example 2026-01-31T00:00:00Z")]
pub struct TimeError(pub String);

impl UnixTime {
    /// 9999-12-31T23:59:59.999Z, the last time RFC 3339 can write.
    pub const MAX: UnixTime = UnixTime(253_402_300_799_999);

    pub const fn from_ms(ms: u64) -> Self {
        if ms > Self::MAX.0 { Self::MAX } else { Self(ms) }
    }
    pub const fn from_secs(secs: u64) -> Self {
        Self::from_ms(secs.saturating_mul(1000))
    }
    pub const fn as_ms(self) -> u64 {
        self.0
    }
    pub const fn as_secs(self) -> u64 {
        self.0 / 1000
    }
    pub fn plus(self, d: Duration) -> Self {
        Self::from_ms(self.0.saturating_add(u64::try_from(d.as_millis()).unwrap_or(u64::MAX)))
    }
    pub fn minus(self, d: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(d.as_millis()).unwrap_or(u64::MAX)))
    }
    pub fn saturating_since(self, earlier: UnixTime) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
    /// Parses RFC 3339 with any offset; times before 1970 or after 9999 are refused.
    pub fn parse_rfc3339(s: &str) -> Result<Self, TimeError> {
        let bad = || TimeError(s.chars().take(64).collect());
        let t = OffsetDateTime::parse(s, &Rfc3339).map_err(|_| bad())?;
        let ms = t.unix_timestamp_nanos().div_euclid(1_000_000);
        let ms = u64::try_from(ms).map_err(|_| bad())?;
        if ms > Self::MAX.0 { Err(bad()) } else { Ok(Self(ms)) }
    }
}

impl fmt::Display for UnixTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let t = OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1_000_000).map_err(|_| fmt::Error)?;
        f.write_str(&t.format(&Rfc3339).map_err(|_| fmt::Error)?)
    }
}

impl std::str::FromStr for UnixTime {
    type Err = TimeError;
    fn from_str(s: &str) -> Result<Self, TimeError> {
        Self::parse_rfc3339(s)
    }
}

as_text!(UnixTime);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn rfc3339_round_trips(ms in 0..=UnixTime::MAX.as_ms()) {
            let t = UnixTime::from_ms(ms);
            prop_assert_eq!(UnixTime::parse_rfc3339(&t.to_string()), Ok(t));
        }
    }

    #[test]
    fn offsets_are_folded_into_utc() {
        let t = UnixTime::parse_rfc3339("1970-01-01T01:00:01+01:00").unwrap();
        assert_eq!(t, UnixTime::from_secs(1));
        assert_eq!(t.to_string(), "1970-01-01T00:00:01Z");
        assert!(UnixTime::parse_rfc3339("1969-12-31T23:59:59Z").is_err());
    }
}
