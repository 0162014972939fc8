//! A lease from its first question to its end, and servers that mean no good.

use super::*;
use crate::model::Rng;
use proptest::prelude::*;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

struct World {
    client: Client,
    now: Mono,
    rng: Rng,
}

impl World {
    fn new() -> Self {
        let now = Mono::from_ms(5_000);
        Self { client: Client::new(MAC, now), now, rng: Rng::from_seed([1; 32]) }
    }

    /// Lets time pass until the client speaks; its messages.
    fn speak(&mut self) -> Vec<Said> {
        self.now = self.now.max(self.client.poll_timeout());
        self.client.handle_timeout(self.now, &mut self.rng);
        self.said()
    }

    fn said(&mut self) -> Vec<Said> {
        std::iter::from_fn(|| self.client.poll_frame()).map(|frame| Said::read(&frame)).collect()
    }

    fn hear(&mut self, answer: &Answer) -> Result<(), Reject> {
        let frame = frame::answered(SERVER_MAC, &message::encoded(answer));
        self.client.handle_frame(self.now, &frame, &mut self.rng)
    }

    fn answer(&self, kind: Answering) -> Answer {
        Answer {
            kind,
            transaction: self.client.transaction,
            mac: MAC,
            address: Ipv4Addr::new(10, 0, 0, 9),
            server: Ipv4Addr::new(10, 0, 0, 1),
            prefix: Some(24),
            lease_s: Some(3600),
            renewal_s: None,
            rebinding_s: None,
        }
    }

    fn bound() -> Self {
        let mut world = Self::new();
        world.speak();
        world.hear(&world.answer(Answering::Offer)).unwrap();
        world.said();
        world.hear(&world.answer(Answering::Ack)).unwrap();
        world
    }

    fn address(&self) -> Option<String> {
        self.client.lease().map(|lease| lease.address.to_string())
    }
}

/// What a frame of the client says.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    kind: u8,
    to: Ipv4Addr,
    from: Ipv4Addr,
    has_server: bool,
}

impl Said {
    fn read(frame: &[u8]) -> Self {
        let octets = |at: usize| Ipv4Addr::new(frame[at], frame[at + 1], frame[at + 2], frame[at + 3]);
        let message = &frame[42..];
        let options = &message[240..];
        let has_server = options.windows(6).any(|w| w[..2] == [54, 4] && w[2..] == [10, 0, 0, 1]);
        Self { kind: options[2], to: octets(30), from: octets(42 + 12), has_server }
    }
}

fn said(kind: u8, to: &str, from: &str, has_server: bool) -> Vec<Said> {
    vec![Said { kind, to: to.parse().unwrap(), from: from.parse().unwrap(), has_server }]
}

const ALL: &str = "255.255.255.255";
const NONE: &str = "0.0.0.0";

#[test]
fn an_address_is_found_renewed_rebound_and_lost() {
    let mut world = World::new();
    assert_eq!(world.speak(), said(1, ALL, NONE, false));
    assert_eq!(world.address(), None);
    world.hear(&world.answer(Answering::Offer)).unwrap();
    assert_eq!(world.said(), said(3, ALL, NONE, true));
    world.hear(&world.answer(Answering::Ack)).unwrap();
    assert_eq!(world.address().as_deref(), Some("10.0.0.9/24"));
    let bound = world.now;

    // Half the time is over: its server is asked, and answers.
    assert_eq!(world.speak(), said(3, "10.0.0.1", "10.0.0.9", false));
    assert_eq!(world.now.saturating_since(bound), Duration::from_secs(1800));
    world.hear(&world.answer(Answering::Ack)).unwrap();
    let renewed = world.now;

    // Its server is silent: then all are asked, then the address is gone.
    let mut all = Vec::new();
    while world.client.lease().is_some() {
        all.push((world.speak(), world.now.saturating_since(renewed).as_secs()));
        assert!(all.len() < 100);
    }
    let (last, at) = all.pop().unwrap();
    assert_eq!((last, at), (said(1, ALL, NONE, false), 3600));
    let (unicast, broadcast): (Vec<_>, Vec<_>) = all.iter().partition(|(_, at)| *at < 3150);
    assert!(unicast.iter().all(|(s, _)| *s == said(3, "10.0.0.1", "10.0.0.9", false)), "{unicast:?}");
    assert!(broadcast.iter().all(|(s, _)| *s == said(3, ALL, "10.0.0.9", false)) && !broadcast.is_empty());
}

#[test]
fn the_server_is_told_when_the_address_is_given_back() {
    let mut world = World::bound();
    world.client.handle_release(world.now, &mut world.rng);
    assert_eq!(world.said(), said(7, "10.0.0.1", "10.0.0.9", true));
    assert_eq!(world.address(), None);
    assert!(world.client.poll_timeout() > world.now + Duration::from_secs(1_000_000));
    let mut never = World::new();
    never.client.handle_release(never.now, &mut never.rng);
    assert!(never.said().is_empty(), "there was nothing to give back");
}

#[test]
fn silence_is_met_with_ever_longer_pauses_and_an_offer_that_is_not_kept_with_a_new_search() {
    let mut world = World::new();
    let mut times = Vec::new();
    for _ in 0..8 {
        assert_eq!(world.speak(), said(1, ALL, NONE, false));
        times.push(world.now);
    }
    let pauses: Vec<u64> = times.windows(2).map(|t| t[1].saturating_since(t[0]).as_secs()).collect();
    let fits = |(pause, wanted): (&u64, u64)| (wanted - 1..=wanted + 1).contains(pause);
    assert!(pauses.iter().zip([4, 8, 16, 32, 64, 64, 64]).all(fits), "{pauses:?}");
    world.hear(&world.answer(Answering::Offer)).unwrap();
    world.said();
    let kinds: Vec<u8> = (0..4).map(|_| world.speak()[0].kind).collect();
    assert_eq!(kinds, [3, 3, 3, 1]);
}

#[test]
fn a_refused_address_is_given_up_at_once() {
    let mut world = World::bound();
    world.speak();
    world.hear(&world.answer(Answering::Nak)).unwrap();
    assert_eq!(world.address(), None);
    assert_eq!(world.speak(), said(1, ALL, NONE, false));
}

#[test]
fn answers_to_something_else_change_nothing() {
    let mut world = World::new();
    world.speak();
    let good = world.answer(Answering::Offer);
    let bad_address = |text: &str| Answer { address: text.parse().unwrap(), ..good.clone() };
    for (bad, why) in [
        (Answer { transaction: good.transaction ^ 1, ..good.clone() }, Reject::Transaction),
        (Answer { mac: [2; 6], ..good.clone() }, Reject::Mac),
        (Answer { kind: Answering::Ack, ..good.clone() }, Reject::Unexpected),
        (Answer { kind: Answering::Nak, ..good.clone() }, Reject::Unexpected),
        (Answer { prefix: None, ..good.clone() }, Reject::Incomplete),
        (Answer { lease_s: None, ..good.clone() }, Reject::Incomplete),
        (bad_address("127.0.0.1"), Reject::Address("127.0.0.1".parse().unwrap())),
        (bad_address("224.0.0.1"), Reject::Address("224.0.0.1".parse().unwrap())),
        (bad_address("10.0.0.0"), Reject::Address("10.0.0.0".parse().unwrap())),
        (bad_address("10.0.0.255"), Reject::Address("10.0.0.255".parse().unwrap())),
        (bad_address("0.0.0.0"), Reject::Address("0.0.0.0".parse().unwrap())),
    ] {
        assert_eq!(world.hear(&bad), Err(why), "{bad:?}");
        assert!(world.said().is_empty() && world.address().is_none());
    }
    world.hear(&good).unwrap();
    world.said();
    let ack = world.answer(Answering::Ack);
    let other = Ipv4Addr::new(10, 0, 0, 2);
    assert_eq!(world.hear(&Answer { server: other, ..ack.clone() }), Err(Reject::Server));
    assert_eq!(world.hear(&Answer { server: other, kind: Answering::Nak, ..ack.clone() }), Err(Reject::Server));
    let moved = Ipv4Addr::new(10, 0, 0, 10);
    assert_eq!(world.hear(&Answer { address: moved, ..ack.clone() }), Err(Reject::Address(moved)));
    world.hear(&ack).unwrap();
    assert_eq!(world.hear(&ack), Err(Reject::Transaction), "nothing is asked now");
}

#[test]
fn what_was_not_sent_is_asked_again_soon() {
    let mut world = World::bound();
    world.client.handle_unsent(world.now);
    assert!(world.client.poll_timeout() > world.now + UNSENT_PAUSE, "nothing was asked");
    world.speak();
    let asked = world.now;
    world.client.handle_unsent(world.now);
    assert_eq!(world.speak(), said(3, "10.0.0.1", "10.0.0.9", false));
    assert_eq!(world.now.saturating_since(asked), UNSENT_PAUSE);
    world.hear(&world.answer(Answering::Ack)).unwrap();
}

#[test]
fn a_hasty_server_does_not_make_the_client_ask_all_the_time() {
    let mut world = World::new();
    world.speak();
    world.hear(&world.answer(Answering::Offer)).unwrap();
    world.said();
    let ack = Answer { lease_s: Some(0), renewal_s: Some(0), rebinding_s: Some(0), ..world.answer(Answering::Ack) };
    world.hear(&ack).unwrap();
    let bound = world.now;
    world.speak();
    assert!(world.now.saturating_since(bound) >= RENEWAL_MIN);
}

#[test]
fn every_cut_of_a_message_is_refused() {
    let mut world = World::new();
    world.speak();
    let frame = frame::answered(SERVER_MAC, &message::encoded(&world.answer(Answering::Offer)));
    for length in 0..frame.len() {
        assert!(world.client.handle_frame(world.now, &frame[..length], &mut world.rng).is_err(), "{length}");
    }
    let bytes = message::encoded(&world.answer(Answering::Offer));
    // The last byte only says that no option follows.
    for length in 0..bytes.len() - 1 {
        let whole = Answer::decode(&bytes[..length]);
        assert!(whole.as_ref() != Ok(&world.answer(Answering::Offer)), "{length}");
    }
    assert!(world.client.handle_frame(world.now, &frame, &mut world.rng).is_ok());
}

proptest! {
    #[test]
    fn no_frames_and_times_break_the_client(
        steps in proptest::collection::vec((any::<u8>(), proptest::collection::vec(any::<u8>(), 0..400), 0u64..4000), 0..60),
    ) {
        let mut world = World::new();
        let mut asked = 0u64;
        for (kind, noise, seconds) in steps {
            world.now = world.now + Duration::from_secs(seconds);
            world.client.handle_timeout(world.now, &mut world.rng);
            let answering = [Answering::Offer, Answering::Ack, Answering::Nak][usize::from(kind % 3)];
            let mut bytes = message::encoded(&world.answer(answering));
            if kind & 0x40 != 0 {
                bytes.truncate(COOKIE_END);
                bytes.extend(&noise);
            }
            let before = world.client.state;
            let frame = frame::answered(SERVER_MAC, &bytes);
            let rejected = world.client.handle_frame(world.now, &frame, &mut world.rng).is_err();
            prop_assert!(!rejected || world.client.state == before);
            let _ = world.client.handle_frame(world.now, &noise, &mut world.rng);
            asked += world.said().len() as u64;
            if let Some(lease) = world.client.lease() {
                prop_assert!(lease.until >= world.now && lease.address.prefix_len() > 0);
            }
        }
        prop_assert!(asked <= 200);
    }
}

const COOKIE_END: usize = 240;
