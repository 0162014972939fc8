//! Scenario 7, `crafted_signature_has_one_verdict`: 208 keys and signatures from the edges of the curve, each shown to
//! every place that verifies. All of them say the same, and it is what the strict rule says.

use super::{
    super::{
        book::{Signed, domain, exchange, seal},
        world::World,
    },
    edge_signatures::{Case, Torsion, cases},
    stage::{Casting, Stage},
};
use arctic::{
    handshake::{
        Held, Here, Initiator, LicenseCheck, LicenseGate, Local, PeerLicense, Purpose, Reply, Request, Responder,
        Target, accept_voucher,
    },
    license::{Features, LicenseDocument, Terms, TrustRoots},
    model::{
        ApiAccess, ClusterId, CustomerId, DataPorts, Endpoint, LicenseId, Mono, PeerId, PublicKey, Rng, Signature,
        SigningKey, UnixTime, X25519Public,
    },
    wire::{
        canonical,
        handshake::{Challenge, Finish, Identity, Init, InitResponse, InitiatorPart, PROTOCOL},
        record::{Deactivation, PeerBody, Record, RecordKey, Voucher, kind},
        request::SignedRequest,
    },
};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{collections::BTreeSet, time::Duration};
use x25519_dalek::{PublicKey as DhPublic, StaticSecret};

const NOW: UnixTime = UnixTime::from_secs(1_900_000_000);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// One verifier, and the identities that its messages need.
struct Bench {
    torsion: Torsion,
    rng: Rng,
    local: Local,
    document: LicenseDocument,
}

struct Genuine(LicenseDocument);

impl LicenseCheck for Genuine {
    fn verify(&self, document: &Value) -> Result<PeerLicense, String> {
        (document == self.0.as_value()).then_some(()).ok_or("another document")?;
        let (license_id, customer_id) = (self.0.license_id(), self.0.customer_id());
        Ok(PeerLicense { license_id, customer_id, max_nodes: self.0.max_nodes() })
    }
}

/// Signatures are always real here, whatever the sweep is about.
pub fn crafted_signature_has_one_verdict(casting: Casting) -> World {
    let mut stage = Stage::empty(Casting { real_crypto: true, ..casting }, 0, |_| {});
    match run(casting.seed) {
        Ok(verdicts) => stage.world.trace.line(stage.world.now, format_args!("{verdicts}")),
        Err(disagreement) => stage.world.violate("H3", disagreement),
    }
    stage.world
}

/// Runs the cases of `seed`; the first disagreement is an error that names case and place.
fn run(seed: u64) -> Result<String, String> {
    let mut rng = Rng::from_seed(Sha256::digest(seed.to_be_bytes()).into());
    let (torsion, cases) = cases(&mut rng);
    let mut bench = Bench::new(torsion, rng);
    let mut verdicts = String::new();
    for case in &cases {
        if !case.key_is_canonical && PublicKey::from_bytes(case.key).is_ok() {
            return Err(format!("a second encoding of a point is taken as a key: {}", case.name));
        }
        for (place, accepts) in bench.verdicts(case) {
            if accepts != case.valid {
                return Err(format!("{place} says {accepts}, the strict rule says {}: {}", case.valid, case.name));
            }
        }
        verdicts.push(if case.valid { '1' } else { '0' });
    }
    Ok(verdicts)
}

impl Bench {
    fn new(torsion: Torsion, mut rng: Rng) -> Self {
        let vendor = SigningKey::from_seed(rng.bytes());
        let terms = terms(&mut rng);
        let document = LicenseDocument::issue(&vendor, terms).expect("the terms are in order");
        let key = SigningKey::from_seed(rng.bytes());
        let peer_id = PeerId::mint(NOW, &mut rng);
        let record = Record::sign(&key, peer_id, kind::PEER, &peer_id.to_string(), 1, Value::Null);
        let local = Local {
            peer_id,
            key,
            license: document.as_value().clone(),
            license_id: document.license_id(),
            customer_id: document.customer_id(),
            max_nodes: document.max_nodes(),
            cluster_id: ClusterId::mint(NOW, &mut rng),
            endpoints: vec![endpoint("here")],
            api_port: 8080.try_into().expect("not 0"),
            record: record.expect("a small record"),
            members: BTreeSet::new(),
            gate: LicenseGate::Open,
        };
        Self { torsion, rng, local, document }
    }

    fn verdicts(&mut self, case: &Case) -> Vec<(&'static str, bool)> {
        // A key that no place takes cannot be asked about anything else.
        let Ok(key) = PublicKey::from_bytes(case.key) else {
            let text = BASE64.encode(case.key);
            let parsed = text.parse::<PublicKey>().is_ok();
            let read = serde_json::from_value::<PublicKey>(json!(text)).is_ok();
            return vec![("key as bytes", false), ("key as text", parsed), ("key in JSON", read)];
        };
        vec![
            ("record", self.record(case, key)),
            ("tombstone", self.tombstone(case, key)),
            ("voucher", self.voucher(case, key)),
            ("request", self.request(case, key)),
            ("license", self.license(case, key)),
            ("announcement", self.announcement(case, key)),
            ("handshake, initiator's side", self.as_initiator(case, key)),
            ("handshake, responder's side", self.as_responder(case, key)),
        ]
    }

    fn sign(&mut self, case: &Case, signed: Signed) -> Signature {
        Signature::from_bytes(case.sign(&self.torsion, &signed.0, &mut self.rng))
    }

    fn signed_record(&mut self, case: &Case, key: RecordKey, deleted: bool, body: Value) -> Record {
        let signed = Signed::new(domain::RECORD)
            .field(&key.kind)
            .field(&key.id)
            .field(key.owner.to_string())
            .integer(7)
            .integer(u64::from(deleted))
            .field(canonical::digest(&body).expect("plain JSON"));
        let signature = self.sign(case, signed);
        Record { key, version: 7, deleted, body, signature }
    }

    fn record(&mut self, case: &Case, key: PublicKey) -> bool {
        let of = RecordKey { kind: kind::STATUS.into(), id: "s".into(), owner: self.local.peer_id };
        self.signed_record(case, of, false, json!({"a": [1, "x"]})).verify(&key).is_ok()
    }

    fn tombstone(&mut self, case: &Case, key: PublicKey) -> bool {
        let of = RecordKey { kind: kind::SERVICE.into(), id: "s".into(), owner: self.local.peer_id };
        self.signed_record(case, of, true, Value::Null).verify(&key).is_ok()
    }

    fn voucher(&mut self, case: &Case, key: PublicKey) -> bool {
        let (issuer, subject) = (self.id(), self.id());
        let about = SigningKey::from_seed(self.rng.bytes()).public();
        let (customer, expires) = (self.local.customer_id, NOW.plus(Duration::from_secs(3600)));
        let signed = Signed::new(domain::VOUCHER)
            .field(subject.to_string())
            .field(about.as_bytes())
            .field("a:1,b:2")
            .field(customer.to_string())
            .field(issuer.to_string())
            .integer(NOW.as_ms())
            .integer(expires.as_ms());
        let voucher = Voucher {
            subject_peer_id: subject,
            subject_public_key: about,
            subject_endpoints: vec![endpoint("a:1"), endpoint("b:2")],
            customer_id: customer,
            issuer_peer_id: issuer,
            issued_at: NOW,
            expires_at: expires,
            signature: self.sign(case, signed),
        };
        let mut held = Held::default();
        held.trust(issuer, key);
        accept_voucher(&voucher, &held, customer, NOW).is_ok()
    }

    fn request(&mut self, case: &Case, key: PublicKey) -> bool {
        let (sender, target, nonce) = (self.id(), self.local.peer_id, self.rng.bytes());
        let signed = Signed::new(domain::REQUEST)
            .field("POST")
            .field("/v1/gossip/push")
            .field(Sha256::digest(b"{}"))
            .integer(NOW.as_ms())
            .field(nonce)
            .field(sender.to_string())
            .field(target.to_string());
        let signature = self.sign(case, signed);
        let request = SignedRequest {
            method: "POST",
            path: "/v1/gossip/push",
            body: b"{}",
            timestamp: NOW,
            nonce,
            sender,
            target,
            on_behalf: None,
        };
        request.verify(&key, &signature)
    }

    fn license(&mut self, case: &Case, key: PublicKey) -> bool {
        let mut document = self.document.as_value().clone();
        let fields = document.as_object_mut().expect("a license is an object");
        fields.remove("signature");
        fields.insert("key_id".into(), json!(TrustRoots::key_id(&key)));
        let bytes = canonical::to_canonical(&document).expect("plain JSON");
        let message = [domain::LICENSE.as_bytes(), &[0], &bytes].concat();
        let signature = self.sign(case, Signed(message));
        document["signature"] = json!(signature);
        let document = LicenseDocument::from_value(&document).expect("the form is in order");
        document.verify(&TrustRoots::from_keys([key])).is_ok()
    }

    fn announcement(&mut self, case: &Case, key: PublicKey) -> bool {
        let (peer_id, cluster_id, version) = (self.id(), self.local.cluster_id, 9);
        let signed = Signed::new(domain::DEACTIVATE)
            .field("deactivated")
            .field(peer_id.to_string())
            .field(key.as_bytes())
            .field(cluster_id.to_string())
            .integer(version)
            .integer(NOW.as_ms());
        let signature = self.sign(case, signed);
        let action = "deactivated".to_owned();
        let announcement =
            Deactivation { action, peer_id, public_key: key, cluster_id, version, deactivated_at: NOW, signature };
        announcement.verify()
    }

    /// A responder with the crafted key answers; the verdict is whether the initiator shows its license.
    fn as_initiator(&mut self, case: &Case, key: PublicKey) -> bool {
        let peer = self.id();
        let local = self.local.clone();
        let (held, licenses) = (Held::default(), Genuine(self.document.clone()));
        let here = Here { local: &local, held: &held, licenses: &licenses };
        let endpoints = vec![endpoint("there")];
        let target = Target { endpoints, pinned_key: Some(key), expected_peer: Some(peer), purpose: Purpose::Join };
        let now = Mono::from_ms(1);
        let mut machine = Initiator::new(target, now);
        let (license_id, cluster_id) = (local.license_id, ClusterId::mint(NOW, &mut self.rng));
        let identity = Identity {
            peer_id: Some(peer),
            public_key: Some(key),
            license_id: Some(license_id),
            cluster_id: Some(cluster_id),
            version: "v1.0.0".into(),
        };
        let mut rng = self.rng.fork();
        assert!(machine.poll_transmit().is_some_and(|call| call.request == Request::Identity));
        machine.handle_reply(here, Ok(Reply::Identity(identity)), now, &mut rng);
        let Some(Request::Init(init)) = machine.poll_transmit().map(|call| call.request) else { return false };
        let mut response = InitResponse {
            session: arctic::wire::handshake::SessionId(self.rng.bytes()),
            peer_id: peer,
            public_key: key,
            challenge2: Challenge(self.rng.bytes()),
            ephemeral: X25519Public(DhPublic::from(&StaticSecret::from(self.rng.bytes::<32>())).to_bytes()),
            license_id,
            cluster_id,
            signature: Signature::from_bytes([0; 64]),
        };
        response.signature = self.sign(case, exchange(domain::RESPONDER, license_id, &init, &response));
        machine.handle_reply(here, Ok(Reply::Init(response)), now, &mut rng);
        machine.poll_transmit().is_some_and(|call| matches!(call.request, Request::Finish(_)))
    }

    /// An initiator with the crafted key makes step 2; the verdict is whether the responder goes on to call back.
    fn as_responder(&mut self, case: &Case, key: PublicKey) -> bool {
        let peer = self.id();
        let local = self.local.clone();
        let (held, licenses) = (Held::default(), Genuine(self.document.clone()));
        let here = Here { local: &local, held: &held, licenses: &licenses };
        let now = Mono::from_ms(1);
        let secret = StaticSecret::from(self.rng.bytes::<32>());
        let init = Init {
            protocol: PROTOCOL,
            peer_id: peer,
            public_key: key,
            challenge: Challenge(self.rng.bytes()),
            ephemeral: X25519Public(DhPublic::from(&secret).to_bytes()),
            license_id: local.license_id,
            cluster_id: local.cluster_id,
            endpoints: vec![endpoint("there")],
            target_endpoints: Vec::new(),
            api_port: local.api_port,
        };
        let mut rng = self.rng.fork();
        let mut responder = Responder::new();
        let source = [10, 0, 0, 1].into();
        let Ok(response) = responder.handle_init(here, source, &init, now, &mut rng) else { return false };
        let signature = self.sign(case, exchange(domain::INITIATOR, init.license_id, &init, &response));
        let record = self.peer_record(case, peer, key);
        let part = InitiatorPart { license: local.license.clone(), members: vec![peer], record };
        let sealed = seal(&secret, &init, &response, &signature, &part, self.rng.bytes());
        let finish = Finish { session: response.session, signature, sealed };
        responder.handle_finish(here, &finish, now).is_ok()
    }

    fn peer_record(&mut self, case: &Case, peer: PeerId, key: PublicKey) -> Record {
        let body = PeerBody {
            name: "n".into(),
            public_key: key,
            x25519_key: X25519Public([9; 32]),
            endpoints: vec![endpoint("there")],
            data_ports: DataPorts::default(),
            api_access: ApiAccess::Public,
            version: "v1.0.0".into(),
            license_id: self.local.license_id,
            created_at: NOW,
        };
        let of = RecordKey { kind: kind::PEER.into(), id: peer.to_string(), owner: peer };
        let body = serde_json::to_value(body).expect("plain JSON");
        self.signed_record(case, of, false, body)
    }

    fn id(&mut self) -> PeerId {
        PeerId::mint(NOW, &mut self.rng)
    }
}

fn terms(rng: &mut Rng) -> Terms {
    Terms {
        license_id: LicenseId::mint(NOW, rng),
        customer_id: CustomerId::mint(NOW, rng),
        customer_name: None,
        issued_at: NOW,
        expires_at: NOW.plus(YEAR),
        max_nodes: 10,
        max_services: 10,
        features: Features::every(),
    }
}

fn endpoint(text: &str) -> Endpoint {
    text.parse().expect("an endpoint")
}
