//! Bytes arrive exactly, whatever the link does; and soon.

use super::*;
use proptest::prelude::*;

const LIMIT: Duration = Duration::from_secs(600);

fn link() -> impl Strategy<Value = Link> {
    let rate = prop_oneof![Just(None), (2.0..100.0f64).prop_map(Some)];
    (1..150u64, 0..60u64, 0.0..0.2f64, 0.0..0.1f64, rate).prop_map(|(delay, jitter, loss, duplicates, rate_mbps)| {
        Link { jitter: Duration::from_millis(jitter), loss, duplicates, rate_mbps, ..Link::new(delay) }
    })
}

fn size() -> impl Strategy<Value = usize> {
    prop_oneof![Just(0usize), 1..100usize, 1000..5000usize, 50_000..400_000usize]
}

/// Runs flows to their end; the world afterwards.
fn carry(link: Link, seed: u8, sizes: &[(usize, usize)]) -> World {
    let (mut world, handle) = World::connected(link, seed);
    for (n, (up, down)) in (0u64..).zip(sizes) {
        world.open(handle, pattern(*up, n), pattern(*down, n + 1000));
    }
    world.run_until(LIMIT, |w| w.all_done() && w.work[1].len() == sizes.len());
    for (n, (up, down)) in (0u64..).zip(sizes) {
        let [source, exit] = [0, 1].map(|side| world.work[side].iter().find(|((_, flow), _)| *flow == n).unwrap().1);
        assert_eq!(source.end, Some(Outcome::Ended(End::Finished)));
        assert_eq!(exit.end, Some(Outcome::Ended(End::Finished)));
        assert!(exit.got == pattern(*up, n), "{up} bytes up");
        assert!(source.got == pattern(*down, n + 1000), "{down} bytes down");
    }
    world
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn every_flow_arrives_exactly_whatever_the_link_does(
        link in link(), seed: u8, sizes in proptest::collection::vec((size(), size()), 1..12),
    ) {
        let mut world = carry(link, seed, &sizes);
        prop_assert!(world.rejected.iter().all(|r| !matches!(r, Reject::Violation(_) | Reject::Seal)), "{:?}", world.rejected);
        // Nothing is left of flows that are over, once the last acknowledgements are through.
        world.link = Link::new(5);
        world.run_for(Duration::from_secs(20));
        for side in 0..2 {
            let handle = world.established[side][0];
            prop_assert_eq!(world.ends[side].session(handle).unwrap().flow_count(), 0);
        }
    }
}

#[test]
fn twin_runs_have_equal_traces() {
    let run = || {
        let link = Link { jitter: Duration::from_millis(20), duplicates: 0.05, ..Link::lossy(40, 0.05) };
        carry(link, 7, &[(100_000, 3000), (10, 200_000), (0, 5)]).trace()
    };
    assert_eq!(run(), run());
}

#[test]
fn a_new_flow_is_answered_in_one_round_trip() {
    let (mut world, handle) = World::connected(Link::new(100), 1);
    world.run_for(Duration::from_secs(5));
    let start = world.now;
    world.open(handle, b"request".to_vec(), b"answer".to_vec());
    world.run_until(LIMIT, |w| w.work[0].values().all(|work| work.got == b"answer"));
    let took = world.now - start;
    assert!(took < Duration::from_millis(210), "{took:?}");
}

// The first packet of a lone request gets lost; its parity comes 10 ms behind.
#[test]
fn a_lone_lost_packet_costs_no_round_trip() {
    let (mut world, handle) = World::connected(Link::new(100), 1);
    world.run_for(Duration::from_secs(5));
    let start = world.now;
    world.lose_next = 1;
    world.open(handle, b"request".to_vec(), b"answer".to_vec());
    world.run_until(LIMIT, |w| w.work[0].values().all(|work| work.got == b"answer"));
    let took = world.now - start;
    assert!(took < Duration::from_millis(225), "{took:?}");
}

#[test]
fn a_slow_reader_stalls_nobody_else() {
    let (mut world, handle) = World::connected(Link::lossy(20, 0.01), 3);
    for n in 0..5 {
        world.open(handle, vec![], pattern(3_000_000, n));
        world.work[0].get_mut(&(handle, n)).unwrap().read_max = 1000;
    }
    let quick = world.open(handle, vec![], pattern(2_000_000, 9));
    world.run_until(Duration::from_secs(20), |w| w.work[0][&(handle, quick)].is_done());
    for n in 0..5 {
        assert_eq!(world.work[0][&(handle, n)].got.len(), 1000);
        world.work[0].get_mut(&(handle, n)).unwrap().read_max = usize::MAX;
    }
    world.run_until(Duration::from_secs(60), World::all_done_mut);
    assert!((0..5).all(|n| world.work[0][&(handle, n)].got == pattern(3_000_000, n)));
}

// 200 ms, 2 % loss each way, 100 Mbit/s; and what crosses the wire for it.
#[test]
fn a_lossy_link_is_filled() {
    let link = Link { rate_mbps: Some(100.0), ..Link::lossy(100, 0.02) };
    let (mut world, handle) = World::connected(link, 5);
    let (start, before) = (world.now, world.wire_bytes);
    let bytes = 30_000_000;
    world.open(handle, vec![], pattern(bytes, 1));
    world.run_until(LIMIT, World::all_done_mut);
    let mbps = bytes as f64 * 8.0 / 1e6 / (world.now - start).as_secs_f64();
    let cost = (world.wire_bytes - before) as f64 / bytes as f64;
    eprintln!("lossy: {mbps:.1} Mbit/s, {cost:.2} wire bytes a byte");
    assert!(mbps > 40.0, "{mbps:.1} Mbit/s");
    assert!(cost < 1.45, "{cost:.2} wire bytes a byte");
}

#[test]
fn flows_outlive_a_minute_without_a_path() {
    let (mut world, handle) = World::connected(Link::lossy(30, 0.01), 4);
    world.open(handle, pattern(3_000_000, 1), pattern(1000, 2));
    world.run_for(Duration::from_millis(300));
    world.link.cut = true;
    world.run_for(Duration::from_secs(60));
    world.link.cut = false;
    world.run_until(Duration::from_secs(30), World::all_done_mut);
    assert!(world.work[1].values().all(|work| work.got == pattern(3_000_000, 1)));
    assert!(world.lost.iter().all(Vec::is_empty));
}

#[test]
fn a_path_that_becomes_longer_is_filled_again() {
    let (mut world, handle) = World::connected(Link { rate_mbps: Some(50.0), ..Link::lossy(15, 0.005) }, 9);
    world.open(handle, vec![], pattern(30_000_000, 1));
    world.run_for(Duration::from_secs(1));
    world.link.delay = Duration::from_millis(50);
    let (start, left) = (world.now, 30_000_000 - world.work[0].values().map(|work| work.got.len()).sum::<usize>());
    world.run_until(LIMIT, World::all_done_mut);
    let mbps = left as f64 * 8.0 / 1e6 / (world.now - start).as_secs_f64();
    eprintln!("longer: {mbps:.1} of 50 Mbit/s");
    assert!(mbps > 20.0, "{mbps:.1} Mbit/s");
}

// From the start, and from some moment on.
#[test]
fn a_path_that_swallows_large_datagrams_carries_flows_too() {
    let narrow = Link { mtu_bytes: 1280, ..Link::lossy(20, 0.01) };
    carry(narrow.clone(), 8, &[(1_000_000, 1_000_000), (10, 10)]);
    let (mut world, handle) = World::connected(Link { rate_mbps: Some(50.0), ..Link::lossy(20, 0.01) }, 8);
    world.open(handle, pattern(4_000_000, 1), pattern(4_000_000, 2));
    world.run_for(Duration::from_millis(400));
    assert!(world.work[1].values().any(|work| work.got.len() > 100_000));
    world.link = narrow;
    world.run_until(Duration::from_secs(10), World::all_done_mut);
    assert!(world.work[1].values().all(|work| work.got == pattern(4_000_000, 1)));
    assert!(world.work[0].values().all(|work| work.got == pattern(4_000_000, 2)));
    assert!(world.lost.iter().all(Vec::is_empty));
}

#[test]
fn keys_are_renewed_under_running_flows() {
    let (mut world, handle) = World::connected(Link::lossy(20, 0.02), 6);
    for n in 0..40 {
        world.open(handle, pattern(20_000, n), pattern(20_000, n + 1000));
        world.run_for(Duration::from_secs(10));
    }
    world.run_until(LIMIT, World::all_done_mut);
    assert!(world.ends[1].handshakes >= 4, "{} handshakes in 400 s", world.ends[1].handshakes);
    assert!(world.lost.iter().all(Vec::is_empty), "none of them costs a flow");
    assert!((0..40).all(|n| world.work[0][&(handle, n)].got == pattern(20_000, n + 1000)));
}

#[test]
fn a_reset_reaches_the_other_side_and_ends_the_flow() {
    let (mut world, handle) = World::connected(Link::lossy(20, 0.3), 6);
    let flow = world.open(handle, pattern(5_000_000, 1), vec![]);
    world.run_for(Duration::from_millis(400));
    world.work[0].clear();
    world.ends[0].session(handle).unwrap().detach(flow);
    world.run_until(LIMIT, |w| w.work[1].values().all(|work| matches!(work.end, Some(Outcome::Reset { .. }))));
    world.run_for(Duration::from_secs(30));
    assert_eq!(world.ends[0].session(handle).unwrap().flow_count(), 0);
}

impl World {
    pub(super) fn all_done_mut(&mut self) -> bool {
        self.all_done()
    }
}
