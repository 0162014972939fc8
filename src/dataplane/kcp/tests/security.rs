//! Strangers, replays, restarts, revocation.

use super::*;
use std::collections::BTreeMap;

fn transmits(world: &mut World, side: usize) -> Vec<Vec<u8>> {
    let now = world.now;
    std::iter::from_fn(|| {
        let mut out = vec![];
        world.ends[side].poll_transmit(now, &mut out).map(|_| out)
    })
    .collect()
}

#[test]
fn strangers_get_no_answer() {
    let mut world = World::new(Link::new(10), 1);
    let now = world.now;
    world.connect();
    let [initiation] = transmits(&mut world, 0).try_into().unwrap();
    let take = |world: &mut World, bytes: &[u8]| world.ends[1].handle_datagram(now, address(0), None, bytes);
    for bit in 0..initiation.len() * 8 {
        let mut forged = initiation.clone();
        forged[bit / 8] ^= 1 << (bit % 8);
        assert!(take(&mut world, &forged).is_err());
    }
    for length in 0..1400 {
        assert!(take(&mut world, &vec![length as u8; length]).is_err());
        assert!(take(&mut world, &[&[4, 0, 0, 0][..], &vec![length as u8; length]].concat()).is_err());
    }
    assert!(transmits(&mut world, 1).is_empty(), "silence");

    let unknown = StaticSecret::from([9; 32]);
    let mut stranger = Endpoint::new(unknown, true, Rng::from_seed([5; 32]));
    stranger.trust([(world.keys[1], world.peers[1])].into());
    stranger.connect(now, world.keys[1], &[address(1)]).unwrap();
    let mut hello = vec![];
    stranger.poll_transmit(now, &mut hello).unwrap();
    assert_eq!(take(&mut world, &hello), Err(Reject::Handshake), "a key that is not trusted ends in the handshake");
    assert!(transmits(&mut world, 1).is_empty());

    assert_eq!(take(&mut world, &initiation), Ok(()));
    let [response] = transmits(&mut world, 1).try_into().unwrap();
    assert!(response.len() <= initiation.len(), "no amplification");
    assert_eq!(take(&mut world, &initiation), Err(Reject::Repeated));
    assert!(transmits(&mut world, 1).is_empty());
}

#[test]
fn a_changed_packet_changes_nothing() {
    let (mut world, handle) = World::connected(Link::new(10), 2);
    world.recorded = Some(vec![]);
    world.open(handle, pattern(3000, 1), pattern(3000, 2));
    world.link.cut = true;
    world.run_for(Duration::from_millis(5));
    let sent: Vec<Datagram> = world.recorded.take().unwrap();
    let now = world.now;
    for datagram in sent.iter().filter(|d| d.to == 1) {
        for bit in 0..datagram.bytes.len() * 8 {
            let mut forged = datagram.bytes.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            assert!(world.ends[1].handle_datagram(now, address(0), None, &forged).is_err());
        }
    }
    assert!(world.work[1].is_empty());
    // Numbers and window are as before: the true packets are taken, once.
    for datagram in sent.iter().filter(|d| d.to == 1) {
        assert_eq!(world.ends[1].handle_datagram(now, address(0), None, &datagram.bytes), Ok(()));
        assert_eq!(world.ends[1].handle_datagram(now, address(0), None, &datagram.bytes), Err(Reject::Replay));
    }
}

/// Every datagram that was taken, and how often.
struct Taken(BTreeMap<[u8; 32], u32>);

impl Taken {
    fn deliver(&mut self, world: &mut World, datagram: &Datagram) {
        let now = world.now;
        let result = world.ends[datagram.to].handle_datagram(now, datagram.from, None, &datagram.bytes);
        if result.is_ok() {
            *self.0.entry(Sha256::digest(&datagram.bytes).into()).or_default() += 1;
        }
    }
}

// 100,000 datagrams, recorded across renewals of keys and a restart, again in five orders.
#[test]
fn no_recorded_datagram_is_taken_twice() {
    let (mut world, handle) = World::connected(Link { duplicates: 0.0, ..Link::lossy(5, 0.02) }, 3);
    world.recorded = Some(vec![]);
    let mut next = 0;
    let mut handle = handle;
    for round in 0..5 {
        for _ in 0..10 {
            world.open(handle, pattern(1_000_000, next), pattern(1_200_000, next + 7));
            next += 1;
        }
        world.run_until(Duration::from_secs(200), World::all_done_mut);
        world.work = Default::default();
        world.run_for(Duration::from_secs(115));
        if round == 2 {
            world.restart_b();
            world.open(handle, vec![1], vec![]);
            world.run_until(Duration::from_secs(60), |w| !w.established[1].is_empty());
            handle = *world.established[0].last().unwrap();
            next = 0;
            world.work = Default::default();
        }
    }
    assert!(world.ends[1].handshakes >= 2, "keys were renewed since the restart");
    let recorded = world.recorded.take().unwrap();
    assert!(recorded.len() >= 100_000, "{} datagrams", recorded.len());
    let lost_before = world.lost.clone();
    // What was lost on the way the first time may arrive now; nothing else may.
    let mut taken = Taken(BTreeMap::new());
    let count = recorded.len();
    let mut shuffled: Vec<usize> = (0..count).collect();
    for i in (1..count).rev() {
        shuffled.swap(i, world.rng.below(i as u64 + 1) as usize);
    }
    let orders: [Vec<usize>; 5] = [
        (0..count).collect(),
        (0..count).rev().collect(),
        shuffled,
        (0..count).step_by(2).chain((1..count).step_by(2)).collect(),
        (count / 2..count).chain(0..count / 2).collect(),
    ];
    for order in orders {
        order.into_iter().for_each(|i| taken.deliver(&mut world, &recorded[i]));
    }
    assert!(taken.0.values().all(|n| *n == 1), "taken twice");
    assert!(taken.0.len() < count / 100, "{} of {count} were news", taken.0.len());
    world.run_for(Duration::from_secs(1));
    assert_eq!(world.lost, lost_before, "no replay ends a session");
}

#[test]
fn a_restarted_exit_resets_the_flows_and_is_found_again() {
    let (mut world, handle) = World::connected(Link::new(20), 4);
    world.open(handle, pattern(100, 1), pattern(100, 2));
    world.run_until(Duration::from_secs(5), World::all_done_mut);
    world.restart_b();
    world.work = Default::default();
    world.open(handle, pattern(100, 1), pattern(100, 2));
    world.run_until(Duration::from_secs(10), |w| w.established[0].len() == 2);
    assert_eq!(world.lost[0], [handle]);
    world.run_until(Duration::from_secs(1), World::all_done_mut);
    let end = world.work[0].values().next().unwrap().end;
    assert_eq!(end, Some(Outcome::Reset { untouched: true }), "may be tried again");
    let again = world.established[0][1];
    world.work = Default::default();
    world.open(again, pattern(100, 1), pattern(100, 2));
    world.run_until(Duration::from_secs(5), World::all_done_mut);
    assert!(world.work[0].values().all(|work| work.got == pattern(100, 2)));
}

#[test]
fn revocation_ends_the_session_at_once_on_either_side() {
    for side in 0..2 {
        let (mut world, handle) = World::connected(Link::new(20), 4);
        world.open(handle, pattern(90_000_000, 1), pattern(90_000_000, 2));
        world.run_for(Duration::from_millis(300));
        world.ends[side].trust(BTreeMap::new());
        world.run_for(Duration::ZERO);
        world.pump(side);
        assert!(world.work[side].values().all(|work| matches!(work.end, Some(Outcome::Reset { .. }))));
        let got = world.work[1].values().next().unwrap().got.len();
        assert!(transmits(&mut world, side).is_empty(), "nothing is said any more");
        world.run_for(Duration::from_secs(10));
        if side == 1 {
            assert_eq!(world.work[1].values().next().unwrap().got.len(), got, "nothing is taken any more");
        }
    }
}

#[test]
fn a_clean_end_is_told() {
    let (mut world, handle) = World::connected(Link::new(20), 4);
    world.open(handle, pattern(9_000_000, 1), vec![]);
    world.run_for(Duration::from_millis(300));
    world.ends[0].close();
    world.run_until(Duration::from_millis(50), |w| !w.lost[1].is_empty());
    assert!(world.work[1].values().all(|work| matches!(work.end, Some(Outcome::Reset { .. }))));
}
