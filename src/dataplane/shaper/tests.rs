use super::{
    fair::{Fair, FlowId},
    lane::{EXACT, Lane, Turns},
};
use crate::model::Mono;
use proptest::prelude::*;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

const MBIT: u64 = 125_000;

/// Flows that ask again as soon as they were served, for `span`; what each of them got.
fn serve_greedy(rate: u64, sizes: &[u64], span: Duration) -> Vec<u64> {
    let start = Mono::from_ms(1000);
    let mut fair = Fair::new(rate, start);
    let mut got = vec![0; sizes.len()];
    for (flow, size) in sizes.iter().enumerate() {
        fair.ask(FlowId(flow as u64), *size, flow);
    }
    let mut now = start;
    while now - start < span {
        while let Some(flow) = fair.serve(now) {
            got[flow] += sizes[flow];
            fair.ask(FlowId(flow as u64), sizes[flow], flow);
        }
        now = now + fair.wait().unwrap().max(Duration::from_micros(1));
    }
    got
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    // accepts: 002-53
    #[test]
    fn the_long_run_rate_is_the_limit_and_shares_are_equal_whatever_the_sizes(
        mbps in prop::sample::select(vec![1u64, 10, 100, 1000]),
        sizes in prop::collection::vec(100u64..=1500, 1..9),
    ) {
        let span = Duration::from_secs(if mbps == 1 { 60 } else { 10 });
        let got = serve_greedy(mbps * MBIT, &sizes, span);
        let allowed = mbps * MBIT * span.as_secs();
        let burst = (mbps * MBIT / 20).max(64 << 10);
        let sum: u64 = got.iter().sum();
        prop_assert!(sum as f64 >= 0.999 * allowed as f64 && sum <= allowed + burst + 1500, "{sum} of {allowed}");
        let fair = sum as f64 / sizes.len() as f64;
        for bytes in got {
            prop_assert!((bytes as f64 - fair).abs() <= 0.01 * fair + 3000.0, "{bytes} beside {fair}");
        }
    }

    #[test]
    fn no_history_gives_more_than_burst_and_rate(
        steps in prop::collection::vec((0u64..5, 1u64..3000, 0u64..500), 1..200),
    ) {
        let (rate, mut now) = (10 * MBIT, Mono::from_ms(5));
        let start = now;
        let mut fair = Fair::new(rate, now);
        let mut gone = 0;
        for (flow, bytes, micros) in steps {
            match bytes % 7 {
                0 => fair.queue(FlowId(flow), bytes, bytes),
                1 => fair.charge(FlowId(flow), bytes),
                2 => _ = fair.drop_of_greediest(),
                _ => _ = fair.ask(FlowId(flow), bytes, bytes),
            }
            now = now + Duration::from_micros(micros);
            while let Some(bytes) = fair.serve(now) {
                gone += bytes;
            }
            prop_assert!(fair.wait().is_none_or(|wait| wait > Duration::ZERO));
            let allowed = (now - start).as_secs_f64() * rate as f64 + (64 << 10) as f64;
            // The last one may go beyond.
            prop_assert!(gone as f64 <= allowed + 3000.0, "{gone} of {allowed}");
        }
    }
}

#[test]
fn a_flow_that_asks_seldom_is_served_next() {
    let (rate, start) = (10 * MBIT, Mono::from_ms(0));
    let mut fair = Fair::new(rate, start);
    let (bulk, turn) = (8, fair.turn_bytes());
    for flow in 0..bulk {
        fair.ask(FlowId(flow), turn, flow);
    }
    let (mut now, mut waits, mut asked) = (start, vec![], None);
    while now - start < Duration::from_secs(10) {
        while let Some(flow) = fair.serve(now) {
            if flow == bulk {
                waits.push(now - asked.take().unwrap());
            } else {
                fair.ask(FlowId(flow), turn, flow);
            }
        }
        if (now - start).as_millis() / 20 > waits.len() as u128 && asked.is_none() {
            asked = Some(now);
            fair.ask(FlowId(bulk), 100, bulk);
        }
        now = now + fair.wait().unwrap().max(Duration::from_micros(1));
    }
    waits.sort();
    let p99 = waits[waits.len() * 99 / 100];
    assert!(waits.len() > 400 && p99 <= Duration::from_millis(5), "{} waits, p99 {p99:?}", waits.len());
}

#[test]
fn what_is_queued_beyond_room_is_dropped_from_the_greediest() {
    let mut fair = Fair::new(MBIT, Mono::from_ms(0));
    (0..10).for_each(|n| fair.queue(FlowId(1), 1000, n));
    fair.queue(FlowId(2), 1000, 100);
    fair.ask(FlowId(3), 50_000, 200);
    assert_eq!((fair.queued_bytes(), fair.drop_of_greediest()), (11_000, Some(9)));
    assert_eq!((fair.queued_bytes(), fair.drop_of_greediest()), (10_000, Some(8)));
}

/// A lane under a clock that is moved by hand.
struct World {
    now_ms: Arc<AtomicU64>,
    lane: Arc<Lane>,
}

impl World {
    fn new(limit_mbps: u32) -> Self {
        let now_ms = Arc::new(AtomicU64::new(0));
        let read = now_ms.clone();
        Self { now_ms, lane: Lane::with_clock(limit_mbps, EXACT, Box::new(move || Mono::from_ms(read.load(Relaxed)))) }
    }

    /// What flows without a pause move until `ms`, each at most 64 KiB in a millisecond.
    fn move_until(&self, ms: u64, flows: &mut [Turns]) -> Vec<u64> {
        let mut gone = vec![0; flows.len()];
        while self.now_ms.load(Relaxed) < ms {
            self.now_ms.fetch_add(1, Relaxed);
            for (flow, gone) in flows.iter_mut().zip(&mut gone) {
                let mut left = 64 << 10;
                while left > 0
                    && let Poll::Ready(room) = flow.poll_room(&mut Context::from_waker(Waker::noop()))
                {
                    let bytes = room.min(left);
                    flow.went(bytes);
                    left -= bytes;
                    *gone += bytes as u64;
                }
            }
        }
        gone
    }
}

// accepts: 002-54
#[test]
fn flows_share_a_lane_and_a_change_of_the_limit_acts_on_them() {
    let world = World::new(8);
    let mut flows: Vec<Turns> = (0..4).map(|_| Turns::new(world.lane.clone())).collect();
    let gone = world.move_until(10_000, &mut flows);
    assert!(gone.iter().all(|bytes| (2_475_000..=2_570_000).contains(bytes)), "{gone:?}");
    let sum: u64 = gone.iter().sum();
    assert!((9_990_000..=10_080_000).contains(&sum), "{sum}");
    world.lane.set_limit(80);
    let sum: u64 = world.move_until(11_000, &mut flows).iter().sum();
    assert!((9_900_000..=10_600_000).contains(&sum), "{sum}");
    world.lane.set_limit(0);
    let sum: u64 = world.move_until(12_000, &mut flows).iter().sum();
    assert_eq!(sum, 4 * 1000 * (64 << 10), "without a limit nothing waits");
    world.lane.set_limit(8);
    let sum: u64 = world.move_until(22_000, &mut flows).iter().sum();
    assert!((9_900_000..=10_080_000).contains(&sum), "{sum}");
}

#[test]
fn bytes_that_go_without_a_turn_are_waited_for_afterwards_and_unused_turns_are_given_back() {
    let world = World::new(8);
    let mut greedy = Turns::new(world.lane.clone());
    greedy.went(1_000_000);
    drop(greedy);
    let mut flows = [Turns::new(world.lane.clone())];
    // One second at 8 Mbit/s, less the 64 KiB that the bucket held.
    assert_eq!(world.move_until(930, &mut flows), [0]);
    assert!(world.move_until(940, &mut flows)[0] > 0);
    let [mut waits] = flows;
    while waits.poll_room(&mut Context::from_waker(Waker::noop())).is_pending() {
        world.now_ms.fetch_add(1, Relaxed);
    }
    drop(waits);
    let mut third = Turns::new(world.lane.clone());
    let room = third.poll_room(&mut Context::from_waker(Waker::noop()));
    assert!(room.is_ready(), "the unused turn was given back");
}

#[test]
fn packets_wait_their_turn_and_too_many_are_dropped() {
    let world = World::new(1);
    let (sender, mut arrived) = tokio::sync::mpsc::unbounded_channel();
    let mut dropped = 0;
    for n in 0..1000 {
        let sender = sender.clone();
        dropped += usize::from(!world.lane.pass(FlowId(n % 3), 1250, move || _ = sender.send(n)));
    }
    let mut count = || std::iter::from_fn(|| arrived.try_recv().ok()).count();
    // The burst goes at once, and as much waits as there is room for.
    let at_once = count();
    assert!((52..=54).contains(&at_once), "{at_once}");
    for ms in 0..2000 {
        world.now_ms.store(ms, Relaxed);
        world.lane.give_turns();
    }
    let later = count();
    assert_eq!(at_once + later + dropped, 1000);
    assert!((103..=106).contains(&later), "{later}");
}
