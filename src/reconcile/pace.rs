//! When the reconcilers act, and how much of it.

use super::desired::Change;
use crate::kernel::LIVENESS_REFRESH;
use std::time::Duration;
use tokio::time::Instant;

/// Passes that follow upon changes take at most one part in four of the time.
const REST_FACTOR: u32 = 3;

/// When the loop acts (operations.md §2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// A burst of changes is one change.
    pub coalesce: Duration,
    /// After a pass, further changes wait [`REST_FACTOR`] times as long as it took, at most this: so a long burst of
    /// changes of many rules leaves the host its time, and a change that comes alone acts at once.
    pub rest_longest: Duration,
    /// Between two looks at the interfaces because links changed.
    pub links: Duration,
    /// A full pass without any change.
    pub resync: Duration,
    pub liveness: Duration,
    pub retry_first: Duration,
    pub retry_longest: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            coalesce: Duration::from_millis(50),
            rest_longest: Duration::from_secs(1),
            links: Duration::from_secs(1),
            resync: Duration::from_secs(60),
            liveness: LIVENESS_REFRESH,
            retry_first: Duration::from_secs(1),
            retry_longest: Duration::from_secs(60),
        }
    }
}

impl Pace {
    pub(super) fn retry(&self, failures: u32) -> Duration {
        let doubled = self.retry_first.saturating_mul(2u32.saturating_pow(failures.saturating_sub(1)));
        doubled.min(self.retry_longest)
    }
}

/// Whether a pass writes tables that are, as far as is known, in the kernel already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rewrite {
    Always,
    /// Only if the rules are others, or the kernel is known to differ.
    IfChanged,
}

/// Changes that are to be acted upon, and when.
#[derive(Default)]
pub(super) struct Changes {
    due: Option<(Instant, Change)>,
    resting_until: Option<Instant>,
}

impl Changes {
    pub fn note(&mut self, change: Change, coalesce: Duration, now: Instant) {
        let soonest = now + coalesce;
        let due = self.resting_until.map_or(soonest, |rested| rested.max(soonest));
        let (due, noted) = self.due.unwrap_or((due, change));
        self.due = Some((due, if change == Change::Asked { change } else { noted }));
    }
    pub fn due_at(&self) -> Option<Instant> {
        self.due.map(|(at, _)| at)
    }
    /// What is due, if anything.
    pub fn take(&mut self) -> Option<Change> {
        self.due.take().map(|(_, change)| change)
    }
    /// A pass that followed upon changes is over.
    pub fn passed(&mut self, took: Duration, longest: Duration, now: Instant) {
        self.resting_until = Some(now + took.saturating_mul(REST_FACTOR).min(longest));
    }
}

/// When to look at the interfaces because links changed: soon, but seldom, since our own work changes links too.
#[derive(Default)]
pub(super) struct Looks {
    last: Option<Instant>,
    pub due: Option<Instant>,
}

impl Looks {
    pub fn ask(&mut self, apart: Duration) {
        let soonest = self.last.map_or_else(Instant::now, |last| Instant::now().max(last + apart));
        self.due.get_or_insert(soonest);
    }
    pub fn done(&mut self) {
        *self = Self { last: Some(Instant::now()), due: None };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_alone_acts_at_once_and_a_burst_waits_for_what_the_last_pass_took() {
        let ms = Duration::from_millis;
        let (mut changes, mut now) = (Changes::default(), Instant::now());
        changes.note(Change::State, ms(50), now);
        assert_eq!(changes.due_at(), Some(now + ms(50)));
        for change in [Change::Asked, Change::State] {
            changes.note(change, ms(50), now + ms(20));
        }
        assert_eq!((changes.due_at(), changes.take()), (Some(now + ms(50)), Some(Change::Asked)), "one burst");
        assert_eq!(changes.due_at(), None);
        for (took, rest) in [(ms(100), ms(300)), (ms(900), ms(1000)), (ms(1), ms(50))] {
            now += ms(500);
            changes.passed(took, ms(1000), now);
            changes.note(Change::State, ms(50), now);
            assert_eq!(changes.due_at(), Some(now + rest), "after {took:?}");
            changes.take();
        }
        now += ms(5000);
        changes.note(Change::State, ms(50), now);
        assert_eq!(changes.due_at(), Some(now + ms(50)));
    }
}
