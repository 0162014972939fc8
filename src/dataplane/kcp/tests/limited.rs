//! Flows whose bytes come at a rate below that of the path, as under a bandwidth limit (dataplane.md §9).

use super::*;

const TURN: Duration = Duration::from_millis(2);
/// 20 Mbit/s.
const TURN_BYTES: usize = 5000;

/// Offers `flow` its turns for a time; what the exit got of it in each half second, in Mbit/s.
fn offer(world: &mut World, handle: Handle, flow: FlowId, time: Duration) -> Vec<f64> {
    const SPAN: Duration = Duration::from_millis(500);
    let mut rates = vec![];
    let got = |w: &World| w.work[1].iter().find(|((_, id), _)| *id == flow).map_or(0, |(_, work)| work.got.len());
    let (start, mut before) = (world.now, got(world));
    let mut turn = 0;
    while world.now - start < time {
        // No more is taken from the client than the flow takes.
        let work = world.work[0].get_mut(&(handle, flow)).unwrap();
        if work.sent == work.send.len() {
            work.send.extend([7; TURN_BYTES]);
        }
        turn += 1;
        let until = start + TURN * turn;
        world.run_for(until - world.now);
        if (TURN * turn).as_nanos().is_multiple_of(SPAN.as_nanos()) {
            rates.push((got(world) - before) as f64 * 8.0 / 1e6 / SPAN.as_secs_f64());
            before = got(world);
        }
    }
    rates
}

#[test]
fn a_limited_upload_has_its_rate_from_the_first_second() {
    for (delay, opening) in [(10, 0), (10, 256 << 10), (50, 0), (50, 256 << 10), (100, 1000)] {
        let link = Link { rate_mbps: Some(400.0), ..Link::new(delay) };
        let (mut world, handle) = World::connected(link, 3);
        world.run_for(Duration::from_secs(3));
        let flow = world.open(handle, pattern(opening, 1), vec![]);
        world.work[0].get_mut(&(handle, flow)).unwrap().open = true;
        let rates = offer(&mut world, handle, flow, Duration::from_secs(4));
        eprintln!("{delay} ms, {opening}: {rates:.1?}");
    }
}
