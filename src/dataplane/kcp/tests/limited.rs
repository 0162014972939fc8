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
fn a_limited_upload_has_its_rate_from_the_first_second() {
    for (delay, count, asks_before) in [(10, 1, 0), (10, 8, 0), (10, 8, 400), (50, 1, 0), (50, 8, 400), (100, 1, 400)] {
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
        eprintln!("{delay} ms, {count} flows, {asks_before} asks before: {rates:.1?}");
    }
}
