//! Flows whose bytes come at a rate below that of the path, as under a bandwidth limit (dataplane.md §9).

use super::*;

const TURN: Duration = Duration::from_millis(2);
/// 20 Mbit/s.
const TURN_BYTES: usize = 5000;
const SPAN: Duration = Duration::from_millis(500);

fn got(world: &World, side: usize, flow: FlowId) -> usize {
    world.work[side].iter().find(|((_, id), _)| *id == flow).map_or(0, |(_, work)| work.got.len())
}

fn open(world: &mut World, handle: Handle, opening: usize) -> FlowId {
    let flow = world.open(handle, pattern(opening, 1), vec![]);
    world.work[0].get_mut(&(handle, flow)).unwrap().open = true;
    flow
}

/// Gives the flows turns for a time, each the next one that has nothing left to say; what the exit got in each span, in
/// Mbit/s.
fn give_turns(world: &mut World, handle: Handle, flows: &[FlowId], time: Duration) -> Vec<f64> {
    let sum = |world: &World| flows.iter().map(|flow| got(world, 1, *flow)).sum::<usize>();
    let (start, mut before, mut rates) = (world.now, sum(world), vec![]);
    let mut order = flows.iter().cycle();
    for turn in 1..=(time.as_nanos() / TURN.as_nanos()) as u32 {
        let is_idle = |flow: &&FlowId| {
            let work = &world.work[0][&(handle, **flow)];
            work.sent == work.send.len()
        };
        if let Some(flow) = order.by_ref().take(flows.len()).find(is_idle) {
            world.work[0].get_mut(&(handle, *flow)).unwrap().send.extend([7; TURN_BYTES]);
        }
        world.run_for(start + TURN * turn - world.now);
        if (TURN * turn).as_nanos().is_multiple_of(SPAN.as_nanos()) {
            let now = sum(world);
            rates.push((now - before) as f64 * 8.0 / 1e6 / SPAN.as_secs_f64());
            before = now;
        }
    }
    rates
}

#[test]
fn a_limited_upload_soon_has_its_rate_also_behind_small_requests() {
    // With the first half second that has the whole rate.
    let cases = [(10, 1, 0, 0), (10, 8, 400, 0), (50, 1, 0, 1), (50, 8, 400, 1), (100, 1, 100, 3)];
    for (delay, count, asks_before, first) in cases {
        let link = Link { rate_mbps: Some(400.0), ..Link::new(delay) };
        let (mut world, handle) = World::connected(link, 3);
        world.run_for(Duration::from_secs(3));
        let small = open(&mut world, handle, 0);
        for _ in 0..asks_before {
            world.work[0].get_mut(&(handle, small)).unwrap().send.extend([1; 100]);
            world.run_for(Duration::from_millis(2 * delay + 5));
        }
        let flows: Vec<FlowId> = (0..count).map(|_| open(&mut world, handle, 100)).collect();
        let rates = give_turns(&mut world, handle, &flows, Duration::from_secs(4));
        let kept = rates[first..].iter().all(|rate| *rate >= 19.0);
        assert!(kept, "{delay} ms, {count} flows, {asks_before} asks before: {rates:.1?}");
    }
}

#[test]
fn what_arrived_before_a_reset_is_read_before_it() {
    let (mut world, handle) = World::connected(Link::new(10), 3);
    let flow = world.open(handle, vec![1], pattern(1000, 2));
    let work = world.work[0].get_mut(&(handle, flow)).unwrap();
    (work.open, work.read_max) = (true, 0);
    world.run_for(Duration::from_secs(1));
    let exit = world.established[1][0];
    assert!(world.ends[1].session(exit).unwrap().is_delivered(flow));
    world.work[1].clear();
    world.ends[1].session(exit).unwrap().detach(flow);
    world.run_for(Duration::from_secs(1));
    world.work[0].get_mut(&(handle, flow)).unwrap().read_max = usize::MAX;
    world.run_for(Duration::from_secs(1));
    let work = &world.work[0][&(handle, flow)];
    assert!(work.got == pattern(1000, 2));
    assert_eq!(work.end, Some(Outcome::Ended(End::Finished)));
    assert_eq!(world.ends[0].session(handle).unwrap().write(flow, &[1]), Outcome::Reset { untouched: false });
}
