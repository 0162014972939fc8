//! Two live copies of one identity (cluster.md §7).

use super::network::{Faults, Identity, Network, facts, machine};
use crate::{
    gossip::{Event, Facts, Gossip, Reject, SILENCE_LIMIT},
    model::{Mono, UnixTime},
    wire::gossip::{Heartbeat, Op, PushRequest, Reply, Request, life::Lives},
};
use std::time::Duration;

fn copy(instance: &str, starts: u64) -> Facts {
    Facts { instance: instance.into(), starts, ..facts() }
}

/// What a copy of `who` sends to `to`.
fn beat(who: &Identity, facts: Facts, to: &Gossip, peer: &Identity) -> Heartbeat {
    let mut sender = machine(who, vec![], &[peer]);
    sender.handle_facts(facts, Mono::default());
    Heartbeat { digests: to.digests(), ..sender.heartbeat(peer.id, Lives::default()) }
}

struct Scene {
    local: Identity,
    peer: Identity,
    gossip: Gossip,
    now: Mono,
}

impl Scene {
    /// The local peer has heard the first copy of the other one.
    fn new() -> Self {
        let [local, peer] = [1, 2].map(Identity::numbered);
        let gossip = machine(&local, vec![], &[&peer]);
        let mut scene = Self { local, peer, gossip, now: Mono::from_ms(2_000) };
        scene.say("old", 3).unwrap();
        scene.answer("old", 3);
        scene
    }

    fn pass(&mut self, secs: u64) {
        self.now = self.now + Duration::from_secs(secs);
        self.gossip.handle_timeout(self.now);
    }

    fn say(&mut self, instance: &str, starts: u64) -> Result<Reply, Reject> {
        let heartbeat = beat(&self.peer, copy(instance, starts), &self.gossip, &self.local);
        self.gossip.handle_request(self.peer.id, &Request::Heartbeat(heartbeat), self.now)
    }

    /// The call that waits is answered by this copy; false if there is none.
    fn answer(&mut self, instance: &str, starts: u64) -> bool {
        let calls: Vec<_> = std::iter::from_fn(|| self.gossip.poll_transmit()).collect();
        let is_out = calls.iter().any(|t| t.request.op() == Op::Heartbeat);
        if is_out {
            let reply = Reply::Heartbeat(beat(&self.peer, copy(instance, starts), &self.gossip, &self.local));
            self.gossip.handle_reply(self.peer.id, Ok(&reply), self.now).unwrap();
        }
        is_out
    }

    fn reports(&mut self) -> usize {
        std::iter::from_fn(|| self.gossip.poll_event()).filter(|e| matches!(e, Event::TwoCopies(_))).count()
    }
}

#[test]
fn a_restart_is_believed_after_one_call() {
    let mut scene = Scene::new();
    scene.pass(3);
    assert_eq!(scene.say("new", 4), Err(Reject::Unsettled));
    assert!(scene.answer("new", 4), "the peer is called at once");
    assert!(scene.say("new", 4).is_ok());
    assert_eq!(scene.reports(), 0);
    assert!(!scene.gossip.peer_view(scene.peer.id).unwrap().has_two_copies);
}

/// C4, scenario 18.
#[test]
fn a_second_live_copy_is_refused_and_reported_and_the_first_stays() {
    let mut scene = Scene::new();
    scene.pass(3);
    assert_eq!(scene.say("clone", 9), Err(Reject::Unsettled));
    scene.pass(1);
    assert!(scene.answer("old", 3));
    assert_eq!(scene.reports(), 1);
    for _ in 0..20 {
        scene.pass(5);
        assert_eq!(scene.say("clone", 9), Err(Reject::IdentityConflict));
        let records = vec![scene.peer.service("s", 50)].into();
        let push = PushRequest { instance: "clone".into(), records, hops: 0, digests: scene.gossip.digests() };
        let refused = scene.gossip.handle_request(scene.peer.id, &Request::Push(push), scene.now);
        assert_eq!(refused, Err(Reject::IdentityConflict));
        scene.say("old", 3).unwrap();
        scene.answer("old", 3);
    }
    assert!(scene.gossip.peer_view(scene.peer.id).unwrap().has_two_copies);
    assert_eq!(scene.reports(), 0, "once");
    // The first one goes: a higher counter follows it after 30 s.
    scene.pass(SILENCE_LIMIT.as_secs() - 1);
    assert_eq!(scene.say("clone", 9), Err(Reject::IdentityConflict));
    scene.pass(1);
    assert!(scene.say("clone", 9).is_ok());
    scene.pass(61);
    assert!(!scene.gossip.peer_view(scene.peer.id).unwrap().has_two_copies);
}

#[test]
fn an_older_state_waits_longer_unless_it_answers_at_the_endpoint() {
    let mut scene = Scene::new();
    scene.pass(SILENCE_LIMIT.as_secs());
    assert_eq!(scene.say("restored", 2), Err(Reject::Unsettled));
    scene.pass(270);
    assert!(scene.say("restored", 2).is_ok());
    let mut scene = Scene::new();
    scene.pass(1);
    assert_eq!(scene.say("restored", 2), Err(Reject::Unsettled));
    assert!(scene.answer("restored", 2));
    assert!(scene.say("restored", 2).is_ok());
}

#[test]
fn a_copy_that_most_peers_refuse_for_a_while_is_contested_until_it_is_taken_again() {
    let peers: Vec<_> = (2..5).map(Identity::numbered).collect();
    let local = Identity::numbered(1);
    let mut gossip = machine(&local, vec![], &peers.iter().collect::<Vec<_>>());
    let contested = |gossip: &mut Gossip| {
        std::iter::from_fn(|| gossip.poll_event())
            .filter_map(|e| if let Event::Contested(is) = e { Some(is) } else { None })
            .collect::<Vec<_>>()
    };
    let at = Mono::from_ms;
    let accept = |gossip: &mut Gossip, by: &Identity, now| {
        gossip.handle_sync(now);
        while gossip.poll_transmit().is_some() {}
        let reply = Reply::Heartbeat(beat(by, copy("x", 1), gossip, &local));
        gossip.handle_reply(by.id, Ok(&reply), now).unwrap();
    };
    accept(&mut gossip, &peers[1], at(1_000));
    // One refusal may be a restart, and one peer alone may be hostile.
    for ms in [1_000, 12_000] {
        gossip.handle_identity_refusal(peers[0].id, at(ms));
    }
    gossip.handle_identity_refusal(peers[2].id, at(12_000));
    assert!(contested(&mut gossip).is_empty());
    gossip.handle_identity_refusal(peers[2].id, at(22_000));
    assert_eq!(contested(&mut gossip), [true]);
    accept(&mut gossip, &peers[0], at(80_000));
    assert_eq!(contested(&mut gossip), [false]);
}

/// Scenario 8: the time in a heartbeat is for the license's median, and for nothing else.
#[test]
fn a_clock_years_ahead_changes_nothing_else() {
    let run = |secs: u64| {
        let mut scene = Scene::new();
        let far = Facts { unix: UnixTime::from_secs(secs), ..copy("old", 3) };
        let heartbeat = beat(&scene.peer, far, &scene.gossip, &scene.local);
        scene.gossip.handle_request(scene.peer.id, &Request::Heartbeat(heartbeat), scene.now).unwrap();
        scene.pass(12);
        let time = scene.gossip.peer_view(scene.peer.id).unwrap().heard.unwrap().time;
        format!("{:?}", scene.gossip).replace(&format!("{time:?}"), "T")
    };
    assert_eq!(run(1_789_999_000), run(3_500_000_000));
}

#[test]
fn restarts_in_a_running_cluster_are_no_conflicts() {
    let mut network = Network::new(4, 3, Faults { loss_percent: 5, latency_max_ms: 200, repeat_percent: 0 });
    network.run_for(Duration::from_secs(30));
    for round in 0..12 {
        network.restart(round % 4);
        network.write(round % 4, "s", false);
        network.run_for(Duration::from_secs(7));
        assert!(network.nodes.iter().all(|n| !n.contested));
    }
    network.faults = Faults::NONE;
    network.run_for(Duration::from_secs(60));
    assert!(network.is_equal());
    for node in &network.nodes {
        for other in &network.nodes {
            let view = node.gossip.peer_view(other.who.id);
            assert!(view.is_none_or(|v| !v.has_two_copies && v.heard.unwrap().instance == other.facts.instance));
        }
    }
}
