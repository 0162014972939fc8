use crate::model::UnixTime;
use serde::{Deserialize, Serialize};
use std::{fmt, time::Duration};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const WARNING_BEFORE: Duration = Duration::from_secs(30 * DAY.as_secs());
const GRACE_AFTER: Duration = Duration::from_secs(14 * DAY.as_secs());
const READ_ONLY_UNTIL_AFTER: Duration = Duration::from_secs(44 * DAY.as_secs());

/// The state of a license, from best to worst (licensing.md §3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Valid,
    Warning,
    GracePeriod,
    ReadOnly,
    Suspended,
}

impl State {
    pub const ALL: [State; 5] = [State::Valid, State::Warning, State::GracePeriod, State::ReadOnly, State::Suspended];

    /// The word of the API and the CLI.
    pub fn text(self) -> &'static str {
        match self {
            State::Valid => "valid",
            State::Warning => "warning",
            State::GracePeriod => "grace_period",
            State::ReadOnly => "read_only",
            State::Suspended => "suspended",
        }
    }
    /// The word of sentences: `license read-only`.
    pub fn spoken(self) -> &'static str {
        match self {
            State::GracePeriod => "in its grace period",
            State::ReadOnly => "read-only",
            other => other.text(),
        }
    }
    /// Whether the engines carry traffic.
    pub fn data_plane_runs(self) -> bool {
        self < State::Suspended
    }
    /// Whether the operator should be told to renew.
    pub fn warns(self) -> bool {
        self > State::Valid
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// The state at the effective time `at` of a license that expires at `expires_at`.
pub fn state_at(expires_at: UnixTime, at: UnixTime) -> State {
    if at < warning_begins_at(expires_at) {
        State::Valid
    } else if at < expires_at {
        State::Warning
    } else if at < grace_ends_at(expires_at) {
        State::GracePeriod
    } else if at < read_only_ends_at(expires_at) {
        State::ReadOnly
    } else {
        State::Suspended
    }
}

/// When a license issued at `issued_at` enters `state`.
pub fn state_since(issued_at: UnixTime, expires_at: UnixTime, state: State) -> UnixTime {
    match state {
        State::Valid => issued_at,
        State::Warning => warning_begins_at(expires_at).max(issued_at),
        State::GracePeriod => expires_at,
        State::ReadOnly => grace_ends_at(expires_at),
        State::Suspended => read_only_ends_at(expires_at),
    }
}

pub fn warning_begins_at(expires_at: UnixTime) -> UnixTime {
    expires_at.minus(WARNING_BEFORE)
}
pub fn grace_ends_at(expires_at: UnixTime) -> UnixTime {
    expires_at.plus(GRACE_AFTER)
}
pub fn read_only_ends_at(expires_at: UnixTime) -> UnixTime {
    expires_at.plus(READ_ONLY_UNTIL_AFTER)
}

/// Whole days until expiry, rounded down; negative from the moment of expiry's passing.
pub fn days_left(expires_at: UnixTime, at: UnixTime) -> i64 {
    let day_ms = DAY.as_millis() as i64;
    (expires_at.as_ms() as i64 - at.as_ms() as i64).div_euclid(day_ms)
}
