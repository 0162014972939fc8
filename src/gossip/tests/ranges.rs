//! Digest trees and comparison by ranges: what they agree on, and what that costs.

use super::network::{Identity, facts, machine};
use crate::{
    gossip::{
        Gossip,
        index::{Entry, Index},
        trie::Trie,
    },
    model::{Mono, PeerId, Rng},
    wire::{
        gossip::{Op, Reply, Request, range::Prefix},
        record::{Record, kind},
        request::SignedRequest,
    },
};
use proptest::prelude::*;
use serde_json::json;
use std::time::Duration;

/// What one exchange costs.
#[derive(Debug, Default, Clone, Copy)]
struct Tally {
    calls: usize,
    bytes: usize,
}

/// Lines of a request and its answer besides the bodies, as `node::peer_client` and `api` write them.
fn header_bytes(from: &Identity, to: PeerId, op: Op, body: &[u8]) -> usize {
    let time = facts().unix;
    let signed = SignedRequest {
        method: "POST",
        path: op.path(),
        body,
        timestamp: time,
        nonce: [0; 16],
        sender: from.id,
        target: to,
        on_behalf: None,
    };
    let lines: usize = signed.headers(&from.key).iter().map(|(name, value)| name.len() + value.len() + 4).sum();
    let request = format!(
        "POST {} HTTP/1.1\r\nhost: 203.0.113.10:8080\r\ncontent-type: application/json\r\ncontent-length: 12345\r\n\r\n",
        op.path()
    );
    let answer = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\
                  x-request-id: req_01JABCDEFGHJKMNPQRSTVWXYZ0\r\ndate: Sat, 01 Jan 2028 00:00:00 GMT\r\n\
                  content-length: 12345\r\n\r\n";
    lines + request.len() + answer.len()
}

struct Pair {
    who: [Identity; 2],
    gossip: [Gossip; 2],
    now: Mono,
}

impl Pair {
    /// Two machines that trust each other and the third, who owns what they hold.
    fn holding(records: [&[Record]; 2]) -> Self {
        let [a, b, owner] = [1, 2, 3].map(Identity::numbered);
        let gossip = [machine(&a, records[0].to_vec(), &[&b, &owner]), machine(&b, records[1].to_vec(), &[&a, &owner])];
        Self { who: [a, b], gossip, now: Mono::from_ms(2000) }
    }

    /// One heartbeat of `first` and all that follows from it.
    fn converse(&mut self, first: usize) -> Tally {
        let mut tally = Tally::default();
        self.now = self.now + Duration::from_secs(15);
        self.gossip[first].handle_timeout(self.now);
        for _ in 0..10_000 {
            let Some(transmit) =
                std::iter::from_fn(|| self.gossip[first].poll_transmit()).find(|t| t.to == self.who[1 - first].id)
            else {
                break;
            };
            self.now = self.now + Duration::from_millis(20);
            let op = transmit.request.op();
            let body = transmit.request.encode();
            let request = Request::decode(op, &body).unwrap();
            let reply = self.gossip[1 - first].handle_request(self.who[first].id, &request, self.now).unwrap();
            let answer = reply.encode();
            tally.calls += 1;
            tally.bytes += body.len() + answer.len() + header_bytes(&self.who[first], transmit.to, op, &body);
            let reply = Reply::decode(op, &answer).unwrap();
            self.gossip[first].handle_reply(self.who[1 - first].id, Ok(&reply), self.now).unwrap();
            self.gossip.iter_mut().for_each(|gossip| while gossip.poll_event().is_some() {});
        }
        tally
    }

    fn is_equal(&self) -> bool {
        self.gossip[0].digests() == self.gossip[1].digests()
    }
}

fn services(count: u64) -> Vec<Record> {
    let owner = Identity::numbered(3);
    // One signature for all: what is not verified here need not be genuine.
    let template = owner.service("template", 1);
    let record = |i: u64| {
        let mut record = template.clone();
        record.key.id = format!("svc_{i:026}");
        record.version = i + 2;
        record.body = json!({"name": format!("service {i}"), "at": i});
        record
    };
    (0..count).map(record).collect()
}

/// simulation.md N3.
#[test]
fn an_exchange_in_sync_costs_the_same_at_any_size_and_one_difference_little() {
    let news = Identity::numbered(3).service("news", 900_000);
    let mut costs = Vec::new();
    for count in [100, 10_000] {
        let all = services(count);
        let mut pair = Pair::holding([&all, &all]);
        let in_sync = pair.converse(0);
        assert_eq!(in_sync.calls, 1);
        assert!(in_sync.bytes <= 1600, "{in_sync:?}");
        costs.push(in_sync.bytes);
        for holder in 0..2 {
            let mut pair = Pair::holding([&all, &all]);
            pair.gossip[holder].index.offer(Entry::new(news.clone()).unwrap());
            let record_bytes = serde_json::to_vec(&news).unwrap().len();
            let one = pair.converse(0);
            assert!(pair.is_equal());
            let extra = one.bytes - in_sync.bytes - record_bytes;
            assert!(extra <= 2500, "{count} records, held by {holder}: {extra} B more in {} calls", one.calls);
        }
    }
    assert_eq!(costs[0], costs[1]);
}

/// simulation.md N4; a small share of it, since each record is verified.
#[test]
fn an_empty_peer_gets_everything_with_little_besides_the_records() {
    let owner = Identity::numbered(3);
    let all: Vec<_> = (0..1500).map(|i| owner.service(&format!("svc_{i:026}"), i + 1)).collect();
    let record_bytes: usize = all.iter().map(|r| serde_json::to_vec(r).unwrap().len() + 1).sum();
    for starter in 0..2 {
        let mut pair = Pair::holding([&[], &all]);
        let join = pair.converse(starter);
        assert!(pair.is_equal());
        assert!(join.bytes <= record_bytes + record_bytes / 20 + 8000, "{join:?}, records alone {record_bytes}");
        assert!(join.calls <= 8, "{join:?}");
    }
}

#[test]
fn refused_records_are_not_asked_for_again() {
    let stranger = Identity::numbered(9);
    let foreign: Vec<_> = (0..40).map(|i| stranger.service(&format!("s{i}"), i + 1)).collect();
    let mut pair = Pair::holding([&[], &foreign]);
    let first = pair.converse(0);
    let second = pair.converse(0);
    assert!(first.bytes > 8000 && second.bytes < 4000, "{first:?} {second:?}");
    assert_eq!(pair.gossip[0].drops().untrusted_owner, 40);
}

fn entry(owner: u8, id: u16, version: u64) -> Entry {
    Entry::new(Identity::numbered(owner).record(kind::SERVICE, &format!("s{id}"), version, json!({"at": version})))
        .unwrap()
}

fn shuffled<T: Clone>(list: &[T], seed: u8) -> Vec<T> {
    let mut list = list.to_vec();
    let mut rng = Rng::from_seed([seed; 32]);
    for i in (1..list.len()).rev() {
        list.swap(i, rng.below(i as u64 + 1) as usize);
    }
    list
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn equal_contents_and_only_they_give_equal_digests(
        ids in prop::collection::btree_set(0u16..500, 1..120),
        extra in prop::collection::btree_set(500u16..999, 1..60),
        seed in any::<u8>(),
    ) {
        let entries: Vec<_> = ids.iter().map(|id| entry(3, *id, 1)).collect();
        let passing: Vec<_> = extra.iter().map(|id| entry(3, *id, 1)).collect();
        let (mut straight, mut other) = (Trie::default(), Trie::default());
        entries.iter().for_each(|e| drop(straight.insert(e.clone())));
        // The same contents by way of others, settled now and then.
        for (i, e) in shuffled(&[entries.clone(), passing.clone()].concat(), seed).into_iter().enumerate() {
            other.insert(e);
            if i % 7 == 0 {
                other.settle();
            }
        }
        prop_assert_ne!(straight.digest(), other.digest());
        shuffled(&passing, seed).iter().for_each(|e| drop(other.remove(&e.record.key)));
        prop_assert_eq!(straight.digest(), other.settle());
        prop_assert_eq!(straight.settle(), other.digest());
        let keys = |trie: &Trie| trie.iter().map(|e| e.path).collect::<Vec<_>>();
        prop_assert_eq!(keys(&straight), keys(&other));
        prop_assert!(keys(&straight).is_sorted());
        let under: usize = (0..16).map(|d| straight.under(&Prefix::ROOT.child(d).unwrap()).count()).sum();
        prop_assert_eq!(under, entries.len());
        // One version more anywhere is another digest.
        straight.insert(entry(3, *ids.first().unwrap(), 2));
        prop_assert_ne!(straight.digest(), other.digest());
    }

    #[test]
    fn two_sets_converge_to_their_union_in_few_calls(
        common in prop::collection::btree_set(0u16..2000, 0..200),
        left in prop::collection::btree_map(0u16..400, 1u64..4, 0..60),
        right in prop::collection::btree_map(0u16..400, 1u64..4, 0..60),
        starter in 0usize..2,
    ) {
        let owner = Identity::numbered(3);
        let record = |id: u16, version: u64| owner.record(kind::SERVICE, &format!("s{id}"), version, json!({"at": version}));
        let common: Vec<_> = common.iter().map(|id| record(5000 + id, 1)).collect();
        let side = |own: &std::collections::BTreeMap<u16, u64>| {
            let own = own.iter().map(|(id, version)| record(*id, *version));
            common.iter().cloned().chain(own).collect::<Vec<_>>()
        };
        let (left, right) = (side(&left), side(&right));
        let mut union = Index::default();
        for record in left.iter().chain(&right) {
            union.offer(Entry::new(record.clone()).unwrap());
        }
        let mut pair = Pair::holding([&left, &right]);
        let differing = (left.len() - common.len()) + (right.len() - common.len());
        let tally = pair.converse(starter);
        prop_assert!(pair.is_equal());
        prop_assert_eq!(pair.gossip[0].digests().services, union.digests().services);
        prop_assert!(tally.calls <= 10, "{:?}", tally);
        prop_assert!(tally.bytes <= 12_000 + 500 * differing, "{:?} for {}", tally, differing);
    }
}
