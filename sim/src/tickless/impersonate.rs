//! A host that says it is another peer. It knows everything about that peer but its key; where it shows a signature of it,
//! the signature was made for something else.

use super::{
    book::{Signed, domain, exchange, seal},
    message::{Answer, Body, Message, Path},
    node::ReplyTo,
    world::{World, derive},
};
use crate::sometimes;
use arctic::{
    membership::LedgerView,
    model::{PeerId, Rng, Signature, SigningKey, UnixTime, X25519Public},
    wire::{
        handshake::{Challenge, ENDPOINTS_MAX, Finish, Init, InitResponse, InitiatorPart, PROTOCOL, default_api_port},
        record::{RecordKey, kind},
    },
};
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr};
use x25519_dalek::{PublicKey as DhPublic, StaticSecret};

/// Fields that an initiator signs.
const SIGNED_FIELDS: u8 = 9;
const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 66));

/// What is wrong with a handshake in the name of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    /// Another key signs.
    Key,
    /// The key signs for another purpose.
    Domain(&'static str),
    /// The key signs something else in one field, by its place.
    Field(u8),
    /// Nobody signs, and the license is of another customer,
    ForeignLicense,
    /// or was changed after the vendor signed it.
    ChangedLicense,
    /// More endpoints than a message holds.
    Length,
}

fn flaws() -> impl Iterator<Item = Flaw> {
    let domains = [domain::RESPONDER, domain::VOUCHER, domain::RECORD, domain::REQUEST, domain::DEACTIVATE];
    let others = [Flaw::Key, Flaw::ForeignLicense, Flaw::ChangedLicense, Flaw::Length];
    others.into_iter().chain(domains.map(Flaw::Domain)).chain((0..SIGNED_FIELDS).map(Flaw::Field))
}

impl World {
    /// Handshakes of someone beside node `n` in the names of others: none is taken (H1, H3), and none costs much (H6).
    pub(super) fn impersonate(&mut self, n: usize) {
        let nodes = self.options.nodes;
        let mut rng = Rng::from_seed(derive(self.options.seed, "impersonator", self.steps));
        for (at, flaw) in flaws().enumerate() {
            let (target, victim) = ((n + 1 + at) % nodes, (n + 2 + at + at / nodes) % nodes);
            let is_there = |world: &World| {
                let node = &world.nodes[target];
                node.member().is_some() && node.paused_until <= world.now
            };
            if target == victim || victim == n || !is_there(self) {
                continue;
            }
            sometimes!("someone shakes hands in the name of another");
            self.shake_hands_as(victim, target, n, flaw, &mut rng);
            if self.failure.is_some() {
                return;
            }
        }
    }

    fn shake_hands_as(&mut self, victim: usize, target: usize, n: usize, flaw: Flaw, rng: &mut Rng) {
        let Some((init, secret)) = self.init_as(victim, target, flaw, rng) else { return };
        let body = Body::Init(Box::new(init.clone()));
        let opened = self.serve_init(target, ADDRESS, &Message { path: Path::Init, auth: None, body });
        let Ok(Answer::Init(response)) = opened else { return };
        let Some(license) = self.license_shown(target, flaw) else { return };
        let own = &self.nodes[victim].author;
        let key = RecordKey { kind: kind::PEER.into(), id: own.peer_id.to_string(), owner: own.peer_id };
        let Some(record) = self.nodes[victim].disk.record(&key).ok().flatten() else { return };
        let signature = self.signature(victim, n, flaw, &init, &response, rng);
        let part = InitiatorPart { license, members: vec![init.peer_id], record };
        let sealed = seal(&secret, &init, &response, &signature, &part, rng.bytes());
        let body = Body::Finish(Box::new(Finish { session: response.session, signature, sealed }));
        let reply_to = ReplyTo { call: self.next_call, node: n, boot: self.nodes[n].boots };
        self.next_call += 1;
        let _refused = self.serve_finish(target, reply_to, &Message { path: Path::Finish, auth: None, body });
    }

    fn init_as(&self, victim: usize, target: usize, flaw: Flaw, rng: &mut Rng) -> Option<(Init, StaticSecret)> {
        let (victim, target) = (&self.nodes[victim], self.nodes[target].member()?);
        let secret = StaticSecret::from(rng.bytes::<32>());
        let long = || format!("{}.example.net", "x".repeat(60)).parse().ok();
        let endpoints = match flaw {
            Flaw::Length => std::iter::repeat_with(long).take(8 * ENDPOINTS_MAX).flatten().collect(),
            _ => victim.endpoints.clone(),
        };
        let init = Init {
            protocol: PROTOCOL,
            peer_id: victim.id(),
            public_key: victim.author.key.public(),
            challenge: Challenge(rng.bytes()),
            ephemeral: X25519Public(DhPublic::from(&secret).to_bytes()),
            license_id: target.license.license_id(),
            cluster_id: victim.disk.cluster().ok().flatten()?.cluster_id,
            endpoints,
            target_endpoints: Vec::new(),
            api_port: default_api_port(),
        };
        Some((init, secret))
    }

    /// The license document of the target, which its members have as well, or one that is worth nothing.
    fn license_shown(&mut self, target: usize, flaw: Flaw) -> Option<Value> {
        let own = self.nodes[target].member()?.license.clone();
        Some(match flaw {
            Flaw::ForeignLicense => {
                let mut foreign = own.as_value().clone();
                let customer =
                    self.nodes.iter().map(|node| &node.license).find(|l| l.customer_id() != own.customer_id());
                foreign["customer_id"] = customer.map_or(json!(""), |license| json!(license.customer_id()));
                foreign
            }
            Flaw::ChangedLicense => {
                let mut changed = own.as_value().clone();
                changed["max_nodes"] = json!(own.max_nodes() + 1);
                changed
            }
            _ => own.as_value().clone(),
        })
    }

    fn signature(
        &self,
        victim: usize,
        n: usize,
        flaw: Flaw,
        init: &Init,
        response: &InitResponse,
        rng: &mut Rng,
    ) -> Signature {
        let key = &self.nodes[victim].author.key;
        let signed = |domain: &str, init: &Init, response: &InitResponse| -> Signed {
            exchange(domain, init.license_id, init, response)
        };
        match flaw {
            Flaw::Key => self.nodes[n].author.key.sign(&signed(domain::INITIATOR, init, response).0),
            Flaw::Domain(other) => key.sign(&signed(other, init, response).0),
            Flaw::Field(field) => {
                let (mut init, mut response) = (init.clone(), response.clone());
                alter(field, &mut init, &mut response, rng);
                key.sign(&signed(domain::INITIATOR, &init, &response).0)
            }
            Flaw::ForeignLicense | Flaw::ChangedLicense | Flaw::Length => Signature::from_bytes(rng.bytes()),
        }
    }
}

/// Another value in one of the fields that are signed.
fn alter(field: u8, init: &mut Init, response: &mut InitResponse, rng: &mut Rng) {
    let wall = UnixTime::from_secs(1);
    match field {
        0 => init.challenge = Challenge(rng.bytes()),
        1 => response.challenge2 = Challenge(rng.bytes()),
        2 => init.peer_id = PeerId::mint(wall, rng),
        3 => response.peer_id = PeerId::mint(wall, rng),
        4 => init.license_id = arctic::model::LicenseId::mint(wall, rng),
        5 => init.public_key = SigningKey::from_seed(rng.bytes()).public(),
        6 => response.public_key = SigningKey::from_seed(rng.bytes()).public(),
        7 => init.ephemeral = X25519Public(rng.bytes()),
        _ => response.ephemeral = X25519Public(rng.bytes()),
    }
}
