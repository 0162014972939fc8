//! License and clock as one machine: random histories of a host against a plain reference, and L1-L3 of the simulation
//! after every step.

use super::*;
use crate::model::Mono;
use proptest::prelude::*;
use std::sync::Arc;

const SECOND_MS: u64 = 1000;
const HOUR_S: u64 = 60 * 60;
const DAY_S: u64 = 24 * HOUR_S;
/// When each history begins.
const BEGINS_S: u64 = 1_900_000_000;
/// From expiry to the borders between the five states.
const BORDERS_DAYS: [i64; 4] = [-30, 0, 14, 44];

#[derive(Debug, Clone)]
enum Step {
    /// Both clocks run, then a tick.
    Run {
        secs: u64,
    },
    /// Somebody sets the wall clock.
    Ahead {
        secs: u64,
    },
    Back {
        secs: u64,
    },
    /// To the time that it really is.
    Correct,
    Epoch,
    TenYearsAhead,
    /// Power off for a while. Without a stop, what was kept last is all that is left.
    Reboot {
        off_secs: u64,
        stopped: bool,
    },
    /// The healthy peers have this time, relative to our wall clock.
    Peers {
        ahead_secs: i64,
    },
    /// They have the right one.
    HonestPeers,
    /// A license until so many days after the trusted time, or after the wall clock.
    Renew {
        days: u32,
        after_wall: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..2 * HOUR_S).prop_map(|secs| Step::Run { secs }),
        3 => (0..40 * DAY_S).prop_map(|secs| Step::Run { secs }),
        2 => (0..3 * DAY_S).prop_map(|secs| Step::Ahead { secs }),
        1 => (0..500 * DAY_S).prop_map(|secs| Step::Ahead { secs }),
        2 => (0..500 * DAY_S).prop_map(|secs| Step::Back { secs }),
        3 => Just(Step::Correct),
        1 => Just(Step::Epoch),
        1 => Just(Step::TenYearsAhead),
        2 => (0..3 * DAY_S, any::<bool>()).prop_map(|(off_secs, stopped)| Step::Reboot { off_secs, stopped }),
        1 => (0..100 * DAY_S, any::<bool>()).prop_map(|(off_secs, stopped)| Step::Reboot { off_secs, stopped }),
        1 => (-900..900i64).prop_map(|ahead_secs| Step::Peers { ahead_secs }),
        1 => Just(Step::HonestPeers),
        1 => (0..800u32, any::<bool>()).prop_map(|(days, after_wall)| Step::Renew { days, after_wall }),
    ]
}

/// licensing.md §4 in whole milliseconds, as plainly as it can be said.
#[derive(Debug, Clone)]
struct Reference {
    wall: u64,
    mark: u64,
    /// The wall clock is followed up to here: the last confirmed time, the uptime since then, and 24 h.
    followed_to: u64,
    /// Uptime that a larger lead has lasted, and how much of it.
    doubt: Option<(u64, u64)>,
}

impl Reference {
    fn begin(wall: u64) -> Self {
        Self { wall, mark: wall, followed_to: wall + DAY_S * SECOND_MS, doubt: None }
    }

    fn confirm(&mut self, at: u64) {
        self.followed_to = at + DAY_S * SECOND_MS;
        self.mark = self.mark.max(at);
        self.doubt = None;
    }

    fn tick(&mut self, elapsed: u64, wall: u64, median: Option<u64>) {
        self.wall = wall;
        self.followed_to += elapsed;
        if median.is_some_and(|m| m.abs_diff(wall) <= 300 * SECOND_MS) {
            return self.confirm(wall);
        }
        if wall <= self.followed_to.max(self.mark) {
            self.doubt = None;
            self.mark = self.mark.max(wall);
            return;
        }
        let (lasted, lead) = self.doubt.map_or((0, wall), |(up, lead)| (up + elapsed, (lead + elapsed).min(wall)));
        self.doubt = Some((lasted, lead));
        if lasted >= DAY_S * SECOND_MS {
            self.confirm(lead);
            if wall > self.followed_to {
                self.doubt = Some((0, wall));
            } else {
                self.mark = self.mark.max(wall);
            }
        }
    }

    fn reboot(kept: &Self, wall: u64) -> Self {
        let mut woken = Self { followed_to: kept.mark + DAY_S * SECOND_MS, ..kept.clone() };
        woken.tick(0, wall, None);
        woken
    }

    fn time(&self) -> u64 {
        self.wall.max(self.mark)
    }

    /// 0 is `valid`, 4 is `suspended`.
    fn state(&self, expires: u64) -> usize {
        let by_clock = passed(expires, self.time());
        if self.doubt.is_some() { by_clock.min(passed(expires, self.mark).max(3)) } else { by_clock }
    }
}

/// How many borders have passed at a time.
fn passed(expires: u64, at: u64) -> usize {
    let border = |days: &i64| expires.saturating_add_signed(days * (DAY_S * SECOND_MS) as i64);
    BORDERS_DAYS.iter().filter(|days| at >= border(days)).count()
}

/// One host with the real machine, and its shadow.
struct World {
    real: u64,
    wall: u64,
    mono: u64,
    clock: EffectiveClock,
    license: Arc<LicenseDocument>,
    reference: Reference,
    /// What a crash leaves: persisted hourly, at stop, and when state or doubt change (licensing.md §4).
    kept: (ClockSnapshot, Reference),
    kept_at: u64,
    /// Nothing wrong was ever confirmed, so that the mark has not passed the real time.
    honest: bool,
}

fn renewed(issued: u64, expires: u64) -> Arc<LicenseDocument> {
    let (issued_at, expires_at) = (UnixTime::from_ms(issued), UnixTime::from_ms(expires));
    Arc::new(LicenseDocument::issue(&vendor(), Terms { issued_at, expires_at, ..terms(2) }).unwrap())
}

impl World {
    fn begin(days_before_expiry: i64) -> Self {
        let begins = BEGINS_S * SECOND_MS;
        let expires = begins.saturating_add_signed(days_before_expiry * (DAY_S * SECOND_MS) as i64);
        let clock = EffectiveClock::start(UnixTime::from_ms(begins), Mono::from_ms(7));
        let reference = Reference::begin(begins);
        Self {
            real: begins,
            wall: begins,
            mono: 7,
            kept: (clock.snapshot(), reference.clone()),
            kept_at: 7,
            clock,
            reference,
            license: renewed(begins - 400 * DAY_S * SECOND_MS, expires),
            honest: true,
        }
    }

    fn expires(&self) -> u64 {
        self.license.expires_at().as_ms()
    }
    fn state(&self) -> State {
        self.clock.state(self.license.expires_at())
    }

    fn tick(&mut self, elapsed: u64, median: Option<u64>) {
        let before = (self.state(), self.clock.is_suspect());
        let mark = self.clock.mark();
        self.mono += elapsed;
        let peers = median.map(UnixTime::from_ms);
        self.clock.handle_tick(UnixTime::from_ms(self.wall), Mono::from_ms(self.mono), peers);
        self.reference.tick(elapsed, self.wall, median);
        self.honest &= self.clock.mark() == mark || self.clock.mark().as_ms() <= self.real;
        if before != (self.state(), self.clock.is_suspect()) || self.mono - self.kept_at >= HOUR_S * SECOND_MS {
            self.keep();
        }
    }

    fn keep(&mut self) {
        self.kept = (self.clock.snapshot(), self.reference.clone());
        self.kept_at = self.mono;
    }

    fn set_wall(&mut self, to: u64) {
        self.wall = to;
        self.tick(0, None);
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Run { secs } => {
                let ms = secs * SECOND_MS;
                (self.real, self.wall) = (self.real + ms, self.wall + ms);
                self.tick(ms, None);
            }
            Step::Ahead { secs } => self.set_wall(self.wall + secs * SECOND_MS),
            Step::Back { secs } => self.set_wall(self.wall.saturating_sub(secs * SECOND_MS)),
            Step::Correct => self.set_wall(self.real),
            Step::Epoch => self.set_wall(0),
            Step::TenYearsAhead => self.set_wall(self.wall + 3652 * DAY_S * SECOND_MS),
            Step::Reboot { off_secs, stopped } => {
                if stopped {
                    self.keep();
                }
                let off = off_secs * SECOND_MS;
                (self.real, self.wall, self.mono) = (self.real + off, self.wall + off, 3);
                let json = serde_json::to_string(&self.kept.0).unwrap();
                let snapshot = serde_json::from_str(&json).unwrap();
                self.clock = EffectiveClock::resume(&snapshot, UnixTime::from_ms(self.wall), Mono::from_ms(self.mono));
                self.reference = Reference::reboot(&self.kept.1, self.wall);
                self.honest &= self.clock.mark().as_ms() <= self.real;
                self.keep();
            }
            Step::Peers { ahead_secs } => {
                let median = self.wall.saturating_add_signed(ahead_secs * SECOND_MS as i64);
                self.tick(0, Some(median));
            }
            Step::HonestPeers => self.tick(0, Some(self.real)),
            Step::Renew { days, after_wall } => self.renew(days, after_wall),
        }
    }

    fn renew(&mut self, days: u32, after_wall: bool) {
        let trusted = self.clock.trusted_time().as_ms();
        let from = if after_wall { self.clock.effective_time().as_ms() } else { trusted };
        let offered = renewed(from.saturating_sub(DAY_S * SECOND_MS), from + u64::from(days) * DAY_S * SECOND_MS);
        check_admission(&offered, &roots(), Some(self.license.customer_id()), &self.clock).unwrap();
        self.license = offered;
        self.keep();
    }
}

fn same_as_reference(world: &World) -> Result<(), TestCaseError> {
    let World { clock, reference, .. } = world;
    prop_assert_eq!(clock.mark().as_ms(), reference.mark);
    prop_assert_eq!(clock.is_suspect(), reference.doubt.is_some());
    prop_assert_eq!(clock.effective_time().as_ms(), reference.time());
    prop_assert_eq!(world.state(), State::ALL[reference.state(world.expires())]);
    Ok(())
}

/// L1: the state follows from expiry and effective time, and so does what is said about it.
fn state_follows_from_the_times(world: &World) -> Result<(), TestCaseError> {
    let entitlement = Entitlement::new(world.license.clone(), &world.clock);
    let (at, expires) = (entitlement.effective_time.as_ms(), world.expires());
    prop_assert_eq!(entitlement.state, world.state());
    if !world.clock.is_suspect() {
        prop_assert_eq!(entitlement.state, State::ALL[passed(expires, at)]);
        // No state begins in the future, but that of a license from the future.
        prop_assert!(entitlement.state_since.as_ms() <= at.max(world.license.issued_at().as_ms()));
    }
    match entitlement.until_next_state() {
        None => prop_assert_eq!(passed(expires, at), 4),
        Some(wait) => {
            let next = at + wait.as_millis() as u64;
            prop_assert_eq!(passed(expires, next - 1), passed(expires, at));
            prop_assert_eq!(passed(expires, next), passed(expires, at) + 1);
        }
    }
    Ok(())
}

/// L2: no step but a renewal makes a confirmed state better; a crash forgets an hour at most, and no state.
fn nothing_is_gained(before: &Past, world: &World, step: &Step) -> Result<(), TestCaseError> {
    let crashed = matches!(step, Step::Reboot { stopped: false, .. });
    if !crashed {
        prop_assert!(world.clock.mark() >= before.mark, "{:?}: the mark fell", step);
    }
    prop_assert!(world.clock.mark() >= before.kept_mark);
    prop_assert!(world.clock.effective_time() >= world.clock.mark());
    if !matches!(step, Step::Renew { .. }) && !before.suspect {
        prop_assert!(world.state() >= before.state, "{:?}: {} after {}", step, world.state(), before.state);
    }
    Ok(())
}

/// L3: a jump ahead alone is at worst read-only and moves no mark; the corrected clock restores; a renewal ends all.
fn no_jump_locks_out(before: &Past, world: &World, step: &Step) -> Result<(), TestCaseError> {
    let suspect = world.clock.is_suspect();
    if suspect {
        let confirmed = state_at(world.license.expires_at(), world.clock.mark());
        prop_assert!(world.state() <= confirmed.max(State::ReadOnly));
    }
    match step {
        Step::Ahead { .. } | Step::TenYearsAhead if suspect => prop_assert_eq!(world.clock.mark(), before.mark),
        // Within a day it is followed.
        Step::Ahead { .. } | Step::TenYearsAhead => {
            let moved = world.clock.mark().saturating_since(before.mark);
            prop_assert!(moved.as_millis() <= u128::from(before.room_ms), "{:?} of {} ms", moved, before.room_ms);
        }
        Step::Correct if world.honest => {
            if !suspect {
                prop_assert_eq!(world.state(), state_at(world.license.expires_at(), UnixTime::from_ms(world.real)));
            }
            prop_assert!(!suspect || world.real > world.reference.followed_to, "time that has really passed");
        }
        Step::Renew { days, after_wall } if *days > 30 && (*after_wall || !suspect) => {
            prop_assert_eq!(world.state(), State::Valid);
        }
        // The doubted clock is past the new license; once it is corrected, the renewal counts.
        Step::Renew { days, .. } if *days > 31 => {
            let mut corrected = world.clock.clone();
            corrected.handle_tick(world.clock.mark(), Mono::from_ms(world.mono), None);
            prop_assert_eq!(corrected.state(world.license.expires_at()), State::Valid);
        }
        _ => {}
    }
    Ok(())
}

struct Past {
    mark: UnixTime,
    kept_mark: UnixTime,
    state: State,
    suspect: bool,
    /// How far ahead of the mark the wall clock would be followed.
    room_ms: u64,
}

impl Past {
    fn of(world: &World) -> Self {
        Self {
            mark: world.clock.mark(),
            kept_mark: world.kept.0.mark,
            state: world.state(),
            suspect: world.clock.is_suspect(),
            room_ms: world.reference.followed_to.saturating_sub(world.reference.mark),
        }
    }
}

fn lives_through(days_before_expiry: i64, steps: &[Step]) -> Result<(), TestCaseError> {
    let mut world = World::begin(days_before_expiry);
    for step in steps {
        let before = Past::of(&world);
        world.apply(step);
        same_as_reference(&world)?;
        state_follows_from_the_times(&world)?;
        nothing_is_gained(&before, &world, step)?;
        no_jump_locks_out(&before, &world, step)?;
    }
    Ok(())
}

proptest! {
    #[test]
    fn machine_license_and_clock_keep_their_word_through_any_history(
        days_before_expiry in -60..400i64,
        steps in prop::collection::vec(step(), 1..60),
    ) {
        lives_through(days_before_expiry, &steps)?;
    }

    /// From a host that has only ever had the right time: the jump is undone as if it had never been.
    #[test]
    fn machine_a_jump_and_its_correction_leave_no_trace(
        days_before_expiry in -60..400i64,
        uptime_hours in 0..24u64,
        jump_days in 3..20_000u64,
    ) {
        let mut world = World::begin(days_before_expiry);
        world.apply(&Step::Run { secs: 3 * HOUR_S });
        let (state, mark) = (world.state(), world.clock.mark());
        world.apply(&Step::Ahead { secs: jump_days * DAY_S });
        prop_assert!(world.clock.is_suspect() && world.state() <= state.max(State::ReadOnly));
        for _ in 0..uptime_hours {
            world.apply(&Step::Run { secs: HOUR_S });
            world.apply(&Step::Reboot { off_secs: 60, stopped: false });
            prop_assert_eq!(world.clock.mark(), mark);
        }
        world.apply(&Step::Correct);
        let by_real_time = state_at(world.license.expires_at(), UnixTime::from_ms(world.real));
        if world.real <= world.reference.followed_to {
            prop_assert_eq!((world.state(), world.clock.is_suspect()), (by_real_time, false));
        }
    }
}
