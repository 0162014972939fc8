//! Session limits while strangers open as many as they can (cluster.md §4, §6; security.md §2; simulation.md H2, H6).

use super::*;
use crate::model::{Rng, X25519Public};
use crate::wire::handshake::{Challenge, ENDPOINTS_MAX, InitResponse};
use proptest::prelude::*;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Step 1 of a stranger; nothing in it is expensive to make.
fn stranger_init(world: &World, rng: &mut Rng) -> Init {
    Init {
        protocol: handshake::PROTOCOL,
        peer_id: PeerId::mint(WALL, rng),
        public_key: SigningKey::from_seed(rng.bytes()).public(),
        challenge: Challenge(rng.bytes()),
        ephemeral: X25519Public(rng.bytes()),
        license_id: world.agents[0].local.license_id,
        cluster_id: world.agents[0].local.cluster_id,
        endpoints: Vec::new(),
        target_endpoints: Vec::new(),
        api_port: handshake::default_api_port(),
    }
}

fn call(world: &mut World, source: IpAddr, init: &Init) -> Result<InitResponse, Reason> {
    // A millisecond each, so that there is an oldest one.
    world.now = world.now + Duration::from_millis(1);
    let now = world.now;
    let Agent { local, held, vendor, responder, rng, .. } = &mut world.agents[1];
    let here = Here { local, held, licenses: vendor };
    responder.handle_init(here, source, init, now, rng).map_err(|r| r.reason)
}

fn v4(n: u32) -> IpAddr {
    Ipv4Addr::from(0x0b00_0000 + n).into()
}

fn flood(world: &mut World, rng: &mut Rng, calls: u32, sources: u32) {
    for n in 0..calls {
        let init = stranger_init(world, rng);
        let _ = call(world, v4(n % sources), &init);
    }
}

#[test]
fn strangers_never_get_the_reserve_and_no_source_more_than_four() {
    let mut world = World::of(2);
    let mut rng = Rng::from_seed([8; 32]);
    flood(&mut world, &mut rng, 40, 1);
    assert_eq!(world.agents[1].responder.open_sessions(), SESSIONS_PER_SOURCE_MAX);
    flood(&mut world, &mut rng, 400, 100);
    assert_eq!(world.agents[1].responder.open_sessions(), SESSIONS_MAX - RESERVED_SESSIONS);
    let now = world.now;
    let (due, _) = world.agents[1].responder.poll_timeout().unwrap();
    assert_eq!(due + Duration::from_millis(47), now + SESSION_LIFETIME);
    assert_eq!(world.agents[1].open_sessions_after_expiry(now), 0);
}

#[test]
fn one_ipv6_64_and_one_ipv4_in_either_form_are_one_source() {
    let prefix = |ip: &str| SourcePrefix::from(ip.parse::<IpAddr>().unwrap());
    assert_eq!(prefix("2001:db8::1"), prefix("2001:db8::ffff:2"));
    assert_ne!(prefix("2001:db8::1"), prefix("2001:db8:0:1::1"));
    assert_eq!(prefix("::ffff:10.0.0.1"), prefix("10.0.0.1"));
    assert_ne!(prefix("10.0.0.1"), prefix("10.0.0.2"));

    let mut world = World::of(2);
    let mut rng = Rng::from_seed([8; 32]);
    for n in 0..200u128 {
        let init = stranger_init(&world, &mut rng);
        let source = Ipv6Addr::from_bits((0x2001_0db8u128 << 96) | (n * 7919));
        call(&mut world, source.into(), &init).unwrap();
    }
    assert_eq!(world.agents[1].responder.open_sessions(), SESSIONS_PER_SOURCE_MAX);
}

#[test]
fn the_busiest_source_loses_its_oldest_first() {
    let mut world = World::of(2);
    let (_, _, honest, _) = hostile::exchange(&mut world);
    let mut rng = Rng::from_seed([8; 32]);
    // 47 more strangers, some of them four to a source; then a flood from sources of four.
    flood(&mut world, &mut rng, 400, 8);
    for n in 0..20 {
        let init = stranger_init(&world, &mut rng);
        call(&mut world, v4(1000 + n), &init).unwrap();
    }
    assert_eq!(world.agents[1].responder.open_sessions(), SESSIONS_MAX - RESERVED_SESSIONS);
    // The honest stranger has one session only, and is the oldest of all.
    assert!(world.serve_finish(1, &serde_json::to_vec(&honest).unwrap()).is_ok());
}

#[test]
fn a_proven_session_is_not_given_away() {
    let mut world = World::of(2);
    world.befriend(0, 1);
    let (_, _, finish, _) = hostile::exchange(&mut world);
    let now = world.now;
    let Agent { local, held, vendor, responder, .. } = &mut world.agents[1];
    let pending = responder.handle_finish(Here { local, held, licenses: vendor }, &finish, now).unwrap();
    let mut rng = Rng::from_seed([8; 32]);
    let claimed = (world.id(0), world.agents[0].local.key.public());
    for n in 0..1000 {
        let mut init = stranger_init(&world, &mut rng);
        (init.peer_id, init.public_key) = claimed;
        let _ = call(&mut world, v4(n), &init);
    }
    assert_eq!(world.agents[1].responder.open_sessions(), SESSIONS_MAX);
    let answer = world.dial_back(&pending);
    let Agent { local, held, vendor, responder, rng, .. } = &mut world.agents[1];
    let here = Here { local, held, licenses: vendor };
    responder.confirm_reverse(here, &pending.session, &answer, now, WALL, rng).unwrap();
}

#[test]
fn strangers_displace_no_session_of_a_trusted_id() {
    let mut world = World::of(5);
    for n in [0, 2, 3, 4] {
        world.befriend(n, 1);
    }
    // Four trusted peers behind one address make it the busiest source of all.
    let opened: Vec<_> = [0, 2, 3, 4]
        .into_iter()
        .map(|n| {
            let mut rng = Rng::from_seed([n as u8; 32]);
            let mut init = stranger_init(&world, &mut rng);
            (init.peer_id, init.public_key) = (world.id(n), world.agents[n].local.key.public());
            call(&mut world, v4(9999), &init).unwrap().session
        })
        .collect();
    let mut rng = Rng::from_seed([8; 32]);
    flood(&mut world, &mut rng, 300, 300);
    let init = stranger_init(&world, &mut rng);
    assert_eq!(call(&mut world, v4(9999), &init), Err(Reason::Busy));
    // Those sessions are still there: what fails is the seal, not the look-up.
    for session in opened {
        let signature = crate::model::Signature::from_bytes([0; 64]);
        let finish = Finish { session, signature, sealed: handshake::Sealed(vec![0; 64]) };
        let refused = world.serve_finish(1, &serde_json::to_vec(&finish).unwrap()).unwrap_err();
        assert_eq!(refused.reason, Reason::InvalidSignature);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever strangers do before and between its two calls, a trusted peer gets through at its first attempt.
    #[test]
    fn a_trusted_peer_gets_through_any_flood_of_strangers(
        seed in any::<[u8; 32]>(),
        before in 0u32..200,
        between in 0u32..200,
        sources in 1u32..200,
        same_source in any::<bool>(),
    ) {
        let mut world = World::of(2);
        world.befriend(0, 1);
        let mut rng = Rng::from_seed(seed);
        if same_source {
            world.agents[0].address = v4(0);
        }
        flood(&mut world, &mut rng, before, sources);
        let (_, _, finish, _) = hostile::exchange(&mut world);
        flood(&mut world, &mut rng, between, sources);
        prop_assert!(world.agents[1].responder.open_sessions() <= SESSIONS_MAX);
        let served = world.serve_finish(1, &serde_json::to_vec(&finish).unwrap());
        prop_assert!(served.is_ok());
    }
}

#[test]
fn what_a_stranger_can_make_the_responder_keep_is_at_most_4_kib() {
    let mut world = World::of(2);
    let mut rng = Rng::from_seed([8; 32]);
    let mut init = stranger_init(&world, &mut rng);
    let longest = |n: usize| endpoint(&format!("{}{n:02}:65535", "x".repeat(40)));
    init.endpoints = (0..ENDPOINTS_MAX).map(longest).collect();
    init.target_endpoints = init.endpoints.clone();
    handshake::Message::check(&init).unwrap();
    assert!(serde_json::to_vec(&init).unwrap().len() <= handshake::INIT_MAX_BYTES);
    call(&mut world, v4(0), &init).unwrap();
    let kept = responder::kept_bytes(&init);
    assert!(kept <= 4096, "{kept} bytes");
    // One more byte of endpoints per list is refused.
    init.endpoints.push(endpoint("a"));
    assert_eq!(call(&mut world, v4(1), &init), Err(Reason::MalformedMessage));
}
