//! A valid member that does what no honest one does. It signs with its own key: what it cannot do is sign for others.

use super::{
    calls::{self, ANSWER_TIMEOUT, in_preferred_order},
    faults::Kind,
    message::{Auth, Body, Encoding, Message, Path},
    node::{Hostility, Purpose},
    world::World,
};
use crate::sometimes;
use arctic::{
    handshake::VOUCHER_LIFETIME,
    membership::LedgerView,
    model::{CustomerId, PeerId, Signature, SigningKey},
    wire::{
        gossip::{Op, PushRequest, Request},
        record::{RECORD_MAX_BYTES, Record, RecordKey, Voucher, kind},
    },
};
use serde_json::json;

/// Messages of one attack.
const SHOTS: u64 = 6;

impl World {
    /// Crafted messages of node `n` to peers that trust it.
    pub(super) fn attack(&mut self, n: usize, how: Hostility, round: u64) {
        let own = self.nodes[n].id();
        let Some(member) = self.nodes[n].member() else { return };
        let digests = member.gossip.digests();
        let peers: Vec<PeerId> = self.nodes[n].disk.trusted_keys().into_keys().filter(|peer| *peer != own).collect();
        if peers.is_empty() {
            return;
        }
        let instance = self.nodes[n].instance();
        self.fire(Kind::Hostile);
        self.witness.hostile.insert(own);
        if how == Hostility::Forges {
            self.impersonate(n);
        }
        for shot in 0..SHOTS {
            let to = peers[(shot % peers.len() as u64) as usize];
            let records = self.crafted(n, how, to, round * SHOTS + shot);
            if records.is_empty() {
                continue;
            }
            let request = Request::Push(PushRequest {
                instance: instance.clone(),
                records: records.into(),
                hops: u8::from(shot % 2 == 0),
                digests,
            });
            self.shoot(n, to, request, Purpose::Farewell);
        }
    }

    fn crafted(&mut self, n: usize, how: Hostility, to: PeerId, shot: u64) -> Vec<Record> {
        let wall = self.nodes[n].clock.unix(self.now);
        let (own, key) = (self.nodes[n].id(), self.nodes[n].author.key.clone());
        let high = 1_000_000 + shot / SHOTS;
        match how {
            Hostility::Equivocates => {
                sometimes!("a member equivocates");
                let body = json!({ "shot": shot });
                Record::sign(&key, own, kind::STATUS, "equivocation", high, body).into_iter().collect()
            }
            Hostility::Withholds => Vec::new(),
            Hostility::Replays => {
                sometimes!("a member replays records of others");
                let held =
                    self.nodes[n].disk.read(|s| s.records.values().map(|h| h.record.clone()).collect::<Vec<_>>());
                held.iter().skip(shot as usize).step_by(3).take(20).map(|r| (**r).clone()).collect()
            }
            Hostility::Oversizes => {
                sometimes!("a member sends an oversize record");
                let id = format!("big-{shot}");
                let small = Record::sign(&key, own, kind::STATUS, &id, high, json!("x"));
                let big = small.map(|r| Record { body: json!("x".repeat(RECORD_MAX_BYTES + 10)), ..r });
                big.into_iter().collect()
            }
            Hostility::Forges => self.forged(n, to, shot),
            Hostility::ForeignCustomer => {
                sometimes!("a voucher of another customer");
                let stranger = SigningKey::from_seed(self.rng.bytes());
                let subject = PeerId::mint(wall, &mut self.rng);
                let mut voucher = Voucher {
                    subject_peer_id: subject,
                    subject_public_key: stranger.public(),
                    subject_endpoints: self.nodes[n].endpoints.clone(),
                    customer_id: CustomerId::mint(wall, &mut self.rng),
                    issuer_peer_id: own,
                    issued_at: wall,
                    expires_at: wall.plus(VOUCHER_LIFETIME),
                    signature: Signature::from_bytes([0; 64]),
                };
                voucher.signature = voucher.transcript().sign(&key);
                let body = serde_json::to_value(voucher).unwrap_or_default();
                Record::sign(&key, own, kind::VOUCHER, &subject.to_string(), high + shot, body).into_iter().collect()
            }
        }
    }

    /// Records and tombstones in the name of others.
    fn forged(&mut self, n: usize, to: PeerId, shot: u64) -> Vec<Record> {
        sometimes!("a member signs for another");
        let key = self.nodes[n].author.key.clone();
        let own = self.nodes[n].id();
        let held = self.nodes[n].disk.read(|s| s.records.values().map(|h| h.record.clone()).collect::<Vec<_>>());
        let foreign: Vec<_> = held.iter().filter(|r| r.key.owner != own && !r.deleted).collect();
        let mut records = Vec::new();
        if let Some(victim) = foreign.get((shot as usize * 7) % foreign.len().max(1)) {
            let version = victim.version + 1 + shot;
            records.extend(Record::sign_tombstone(&key, victim.key.clone(), version));
            let changed = RecordKey { ..victim.key.clone() };
            let body = json!({ "forged": shot });
            records.extend(Record::sign(&key, changed.owner, &changed.kind, &changed.id, version, body));
            let mut stretched = (***victim).clone();
            stretched.version = version;
            records.push(stretched);
        }
        records.extend(Record::sign(&key, to, kind::SERVICE, &format!("svc-forged-{shot}"), 5_000_000, json!({})));
        records
    }

    /// A signed request that no machine asked for.
    pub(super) fn shoot(&mut self, n: usize, to: PeerId, request: Request, purpose: Purpose) {
        let now = self.now;
        let endpoints = self.nodes[n].disk.peer(to).ok().flatten().map(|row| row.all_endpoints()).unwrap_or_default();
        let endpoints = in_preferred_order(self, n, to, endpoints);
        let body = match self.options.encoding {
            Encoding::Bytes => Body::Bytes(request.encode()),
            Encoding::Values => Body::Gossip(Box::new(request)),
        };
        let node = &mut self.nodes[n];
        let bytes: &[u8] = if let Body::Bytes(bytes) = &body { bytes } else { &[] };
        let nonce = node.rng.bytes();
        let auth =
            Auth::sign(&node.author.key, node.author.peer_id, to, Op::Push.path(), bytes, node.clock.unix(now), nonce);
        let message = Message { path: Path::Gossip(Op::Push), auth: Some(auth), body };
        calls::begin(self, n, purpose, endpoints, message, ANSWER_TIMEOUT);
    }
}
