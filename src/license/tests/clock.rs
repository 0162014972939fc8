use super::*;
use crate::model::Mono;
use proptest::prelude::*;

const HOUR: Duration = Duration::from_secs(60 * 60);
const EXPIRES: UnixTime = UnixTime::from_secs(1_900_000_000);

/// A host: real time passes, its wall clock may be wrong.
struct Host {
    clock: EffectiveClock,
    wall: UnixTime,
    mono: Mono,
}

impl Host {
    fn at(wall: UnixTime) -> Self {
        let mono = Mono::from_ms(1000);
        Self { clock: EffectiveClock::start(wall, mono), wall, mono }
    }
    fn set(&mut self, wall: UnixTime) {
        self.wall = wall;
        self.clock.handle_tick(wall, self.mono, None);
    }
    /// Lets time pass with a tick every minute.
    fn run(&mut self, d: Duration) {
        let mut left = d;
        while !left.is_zero() {
            let step = left.min(TICK_INTERVAL);
            left -= step;
            (self.wall, self.mono) = (self.wall.plus(step), self.mono + step);
            self.clock.handle_tick(self.wall, self.mono, None);
        }
    }
    fn off(&mut self, d: Duration) {
        let kept = self.clock.snapshot();
        self.wall = self.wall.plus(d);
        self.mono = Mono::from_ms(5);
        let kept = serde_json::from_value(serde_json::to_value(kept).unwrap()).unwrap();
        self.clock = EffectiveClock::resume(&kept, self.wall, self.mono);
    }
    fn state(&self) -> State {
        self.clock.state(EXPIRES)
    }
}

#[test]
fn the_state_follows_from_expiry_and_time_to_the_millisecond() {
    let ms = Duration::from_millis(1);
    let borders = [
        (EXPIRES.minus(days(30)), State::Valid, State::Warning),
        (EXPIRES, State::Warning, State::GracePeriod),
        (EXPIRES.plus(days(14)), State::GracePeriod, State::ReadOnly),
        (EXPIRES.plus(days(44)), State::ReadOnly, State::Suspended),
    ];
    for (at, before, after) in borders {
        assert_eq!((state_at(EXPIRES, at.minus(ms)), state_at(EXPIRES, at)), (before, after));
        assert_eq!(state_since(ISSUED, EXPIRES, after), at);
    }
    assert_eq!(state_at(EXPIRES, UnixTime::from_ms(0)), State::Valid);
    assert_eq!(state_at(EXPIRES, UnixTime::MAX), State::Suspended);
    let left = |d: UnixTime| days_left(EXPIRES, d);
    assert_eq!((left(EXPIRES), left(EXPIRES.minus(days(3))), left(EXPIRES.minus(days(3)).plus(ms))), (0, 3, 2));
    assert_eq!((left(EXPIRES.plus(ms)), left(EXPIRES.plus(days(2)))), (-1, -2));
}

#[test]
fn states_are_written_in_snake_case() {
    let texts = ["valid", "warning", "grace_period", "read_only", "suspended"];
    for (state, text) in State::ALL.into_iter().zip(texts) {
        assert_eq!((state.to_string().as_str(), serde_json::to_value(state).unwrap()), (text, text.into()));
        assert_eq!(serde_json::from_value::<State>(text.into()).unwrap(), state);
    }
}

#[test]
fn a_license_runs_through_its_states_while_time_passes() {
    let mut host = Host::at(EXPIRES.minus(days(31)));
    let mut seen = vec![host.state()];
    for _ in 0..76 {
        host.run(DAY);
        seen.push(host.state());
        assert!(!host.clock.is_suspect());
    }
    seen.dedup();
    assert_eq!(seen, State::ALL);
}

#[test]
fn a_restart_resumes_in_the_state_that_was_reached() {
    let mut host = Host::at(EXPIRES.plus(days(13)));
    host.run(days(2));
    assert_eq!(host.state(), State::ReadOnly);
    host.wall = EXPIRES.minus(days(300));
    host.off(HOUR);
    assert_eq!(host.state(), State::ReadOnly);
}

#[test]
fn a_jump_within_a_day_is_followed_and_a_second_one_is_not() {
    let mut host = Host::at(ISSUED);
    host.set(ISSUED.plus(20 * HOUR));
    assert!(!host.clock.is_suspect());
    host.run(TICK_INTERVAL);
    host.set(host.wall.plus(20 * HOUR));
    assert!(host.clock.is_suspect());
    assert!(host.clock.mark() <= ISSUED.plus(21 * HOUR));
}

#[test]
fn a_wild_clock_is_doubted_until_a_day_of_uptime_has_passed() {
    let mut host = Host::at(EXPIRES.minus(days(100)));
    host.set(EXPIRES.plus(days(500)));
    let mark = host.clock.mark();
    host.run(DAY - TICK_INTERVAL);
    assert_eq!((host.state(), host.clock.mark()), (State::ReadOnly, mark));
    assert_eq!(host.clock.trusted_time(), mark);
    host.run(TICK_INTERVAL);
    assert_eq!((host.state(), host.clock.mark()), (State::Suspended, host.wall));
}

#[test]
fn only_the_part_of_a_lead_that_lasted_is_believed() {
    let mut host = Host::at(ISSUED);
    host.set(ISSUED.plus(days(3)));
    host.run(23 * HOUR);
    host.set(UnixTime::MAX.minus(days(30)));
    host.run(HOUR);
    assert!(host.clock.is_suspect());
    assert_eq!(host.clock.mark(), ISSUED.plus(days(4)));
}

#[test]
fn a_lead_keeps_its_uptime_across_restarts() {
    let mut host = Host::at(EXPIRES);
    host.off(days(60));
    for _ in 0..3 {
        host.run(7 * HOUR);
        assert_eq!((host.state(), host.clock.is_suspect()), (State::ReadOnly, true));
        host.off(HOUR);
    }
    host.run(3 * HOUR);
    assert_eq!((host.state(), host.clock.is_suspect()), (State::Suspended, false));
}

#[test]
fn peers_confirm_a_lead_only_within_five_minutes() {
    let minutes = |n: u64| Duration::from_secs(60 * n);
    let mut host = Host::at(EXPIRES);
    host.off(days(60));
    for median in [host.wall.minus(minutes(6)), host.wall.plus(minutes(6))] {
        host.clock.handle_tick(host.wall, host.mono, Some(median));
        assert_eq!((host.state(), host.clock.mark()), (State::ReadOnly, EXPIRES));
    }
    host.clock.handle_tick(host.wall, host.mono, Some(host.wall.minus(minutes(5))));
    assert_eq!((host.state(), host.clock.mark()), (State::Suspended, host.wall));
}

#[test]
fn a_jump_ahead_does_not_lift_a_suspension() {
    let mut host = Host::at(EXPIRES.plus(days(50)));
    host.set(host.wall.plus(days(400)));
    assert_eq!((host.state(), host.clock.is_suspect()), (State::Suspended, true));
}

#[derive(Debug, Clone)]
enum Step {
    Pass { secs: u64 },
    Set { secs: u64 },
    Off { secs: u64 },
    Peers { ahead_secs: i64 },
}

fn step() -> impl Strategy<Value = Step> {
    let day = DAY.as_secs();
    prop_oneof![
        4 => (0..2 * day).prop_map(|secs| Step::Pass { secs }),
        2 => (0..4_000_000_000u64).prop_map(|secs| Step::Set { secs }),
        2 => (-100 * day as i64..100 * day as i64)
            .prop_map(|d| Step::Set { secs: EXPIRES.as_secs().saturating_add_signed(d) }),
        1 => (0..100 * day).prop_map(|secs| Step::Off { secs }),
        1 => (-900..900i64).prop_map(|ahead_secs| Step::Peers { ahead_secs }),
    ]
}

fn apply(host: &mut Host, step: &Step) {
    match *step {
        Step::Pass { secs } => {
            let d = Duration::from_secs(secs);
            (host.wall, host.mono) = (host.wall.plus(d), host.mono + d);
            host.clock.handle_tick(host.wall, host.mono, None);
        }
        Step::Set { secs } => host.set(UnixTime::from_secs(secs)),
        Step::Off { secs } => host.off(Duration::from_secs(secs)),
        Step::Peers { ahead_secs } => {
            let median = UnixTime::from_secs(host.wall.as_secs().saturating_add_signed(ahead_secs));
            host.clock.handle_tick(host.wall, host.mono, Some(median));
        }
    }
}

proptest! {
    /// L2.
    #[test]
    fn a_clock_turned_back_gains_nothing(steps in prop::collection::vec(step(), 1..60)) {
        let mut host = Host::at(EXPIRES.minus(days(60)));
        let mut reached = host.clock.effective_time();
        for step in &steps {
            apply(&mut host, step);
            let (t, mark) = (host.clock.effective_time(), host.clock.mark());
            prop_assert_eq!(t, host.wall.max(mark));
            prop_assert!(t >= reached, "{:?}: {} after {}", step, t, reached);
            if !host.clock.is_suspect() {
                prop_assert_eq!(mark, t);
                reached = t;
            }
        }
    }

    /// L3: from a start before expiry.
    #[test]
    fn a_jump_ahead_alone_is_at_worst_read_only_and_passes(
        start_before_expiry_days in 0..400u32,
        jump_secs in DAY.as_secs() + 1..4_000_000_000,
        uptime_secs in 0..DAY.as_secs(),
        renewed_days in 31..4000u32,
    ) {
        let mut host = Host::at(EXPIRES.minus(days(start_before_expiry_days)));
        let (before, mark) = (host.state(), host.clock.mark());
        host.set(host.wall.plus(Duration::from_secs(jump_secs)));
        let uptime = Duration::from_secs(uptime_secs);
        apply(&mut host, &Step::Pass { secs: uptime_secs });
        prop_assert!(host.clock.is_suspect());
        prop_assert_eq!(host.clock.mark(), mark);
        prop_assert_eq!(host.state(), state_at(EXPIRES, host.wall).min(State::ReadOnly));

        let renewal = host.wall.plus(days(renewed_days));
        if renewal < UnixTime::MAX {
            prop_assert_eq!(host.clock.state(renewal), State::Valid);
        }
        host.set(mark.plus(uptime));
        prop_assert!(!host.clock.is_suspect());
        prop_assert!(before <= host.state());
        prop_assert_eq!(host.state(), state_at(EXPIRES, mark.plus(uptime)));
    }

    #[test]
    fn the_mark_never_falls(steps in prop::collection::vec(step(), 1..60)) {
        let mut host = Host::at(ISSUED);
        for step in &steps {
            let before = host.clock.mark();
            apply(&mut host, step);
            prop_assert!(host.clock.mark() >= before);
        }
    }
}

#[test]
fn of_two_peers_no_single_one_vouches_for_a_jump() {
    let (now, later) = (UnixTime::from_secs(1_900_000_000), UnixTime::from_secs(2_200_000_000));
    assert_eq!(median_time(vec![later, now]), Some(now));
    assert_eq!(median_time(vec![later, now, later]), Some(later));
    assert_eq!(median_time(vec![later]), Some(later));
    assert_eq!(median_time(vec![]), None);
}
