use super::state::{State, state_at};
use crate::model::{Mono, UnixTime};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How often the driver ticks (licensing.md §3).
pub const TICK_INTERVAL: Duration = Duration::from_secs(60);
/// How often the driver persists the snapshot, besides at stop and when `is_suspect` changes (licensing.md §4).
pub const MARK_PERSIST_INTERVAL: Duration = Duration::from_secs(60 * 60);
/// How far the wall clock may run ahead of monotonic time before it is doubted.
const LEAD_ALLOWED: Duration = Duration::from_secs(24 * 60 * 60);
/// How long, in uptime, a larger lead must last to be believed without peers.
const LEAD_BELIEVED_AFTER: Duration = Duration::from_secs(24 * 60 * 60);
const PEERS_AGREE_WITHIN: Duration = Duration::from_secs(5 * 60);

/// The time that licensing goes by: max(wall clock, high-water mark), where the mark believes no sudden jump ahead
/// (licensing.md §4).
///
/// The anchor is the last confirmed pair of wall and monotonic time: the start, an agreement with the peers, or a lead
/// that lasted. Between confirmations the wall clock may gain `LEAD_ALLOWED` in all, not per tick.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EffectiveClock {
    wall: UnixTime,
    mono: Mono,
    mark: UnixTime,
    anchor: UnixTime,
    anchor_mono: Mono,
    lead: Option<Lead>,
}

/// What survives a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockSnapshot {
    pub mark: UnixTime,
    pub lead: Option<Lead>,
}

/// A wall clock that is further ahead than time has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lead {
    uptime_ms: u64,
    /// The smallest lead seen, carried along with the uptime: only this much has really lasted.
    lasting: UnixTime,
}

impl EffectiveClock {
    /// The clock of an agent that has no snapshot yet: bootstrap takes the wall clock as it is.
    pub fn start(now: UnixTime, mono: Mono) -> Self {
        Self { wall: now, mono, mark: now, anchor: now, anchor_mono: mono, lead: None }
    }

    /// The clock after a restart. Nobody knows how long the agent was away, so the mark is the last confirmed time.
    pub fn resume(snapshot: &ClockSnapshot, now: UnixTime, mono: Mono) -> Self {
        let ClockSnapshot { mark, lead } = *snapshot;
        let mut clock = Self { wall: now, mono, mark, anchor: mark, anchor_mono: mono, lead };
        clock.handle_tick(now, mono, None);
        clock
    }

    pub fn snapshot(&self) -> ClockSnapshot {
        ClockSnapshot { mark: self.mark, lead: self.lead }
    }

    /// Takes the present time of both clocks and, where healthy peers are known, the median of theirs.
    pub fn handle_tick(&mut self, now: UnixTime, mono: Mono, peers_median: Option<UnixTime>) {
        let elapsed = mono - self.mono;
        (self.wall, self.mono) = (now, self.mono.max(mono));
        if peers_median.is_some_and(|median| differ_by(median, now) <= PEERS_AGREE_WITHIN) {
            return self.confirm(now);
        }
        if now <= self.believable().max(self.mark) {
            self.lead = None;
            self.mark = self.mark.max(now);
            return;
        }
        let lead = match self.lead {
            None => Lead { uptime_ms: 0, lasting: now },
            Some(Lead { uptime_ms, lasting }) => {
                let elapsed_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
                Lead { uptime_ms: uptime_ms.saturating_add(elapsed_ms), lasting: lasting.plus(elapsed).min(now) }
            }
        };
        self.lead = Some(lead);
        if Duration::from_millis(lead.uptime_ms) >= LEAD_BELIEVED_AFTER {
            self.confirm(lead.lasting);
            // What came on top of the lasting lead starts its own day.
            if now > self.believable() {
                self.lead = Some(Lead { uptime_ms: 0, lasting: now });
            } else {
                self.mark = self.mark.max(now);
            }
        }
    }

    /// The time T of licensing.md §4.
    pub fn effective_time(&self) -> UnixTime {
        self.wall.max(self.mark)
    }

    /// The time that is sure to have come: T, or the mark while the wall clock is in doubt. A renewal is measured
    /// against it, so that a clock gone wrong cannot make every license look expired.
    pub fn trusted_time(&self) -> UnixTime {
        if self.is_suspect() { self.mark } else { self.effective_time() }
    }

    pub fn is_suspect(&self) -> bool {
        self.lead.is_some()
    }

    /// The high-water mark; never falls.
    pub fn mark(&self) -> UnixTime {
        self.mark
    }

    /// The state of a license at the effective time; a clock in doubt makes nothing worse than `read_only`.
    pub fn state(&self, expires_at: UnixTime) -> State {
        let state = state_at(expires_at, self.effective_time());
        if self.is_suspect() { state.min(state_at(expires_at, self.mark).max(State::ReadOnly)) } else { state }
    }

    fn believable(&self) -> UnixTime {
        self.anchor.plus(self.mono - self.anchor_mono).plus(LEAD_ALLOWED)
    }

    fn confirm(&mut self, at: UnixTime) {
        (self.anchor, self.anchor_mono) = (at, self.mono);
        self.mark = self.mark.max(at);
        self.lead = None;
    }
}

/// The middle one of what the healthy peers say the time is; of two in the middle the earlier, so that no single peer
/// can vouch for a jump ahead.
pub fn median_time(mut times: Vec<UnixTime>) -> Option<UnixTime> {
    times.sort_unstable();
    times.get(times.len().saturating_sub(1) / 2).copied()
}

fn differ_by(a: UnixTime, b: UnixTime) -> Duration {
    a.saturating_since(b).max(b.saturating_since(a))
}
