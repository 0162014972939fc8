//! What travels between simulated nodes: values in fast runs, the bytes of the real encoding in others, where damage
//! can be done to them.

use super::network::Damage;
use arctic::{
    handshake,
    model::{Code, PeerId, PublicKey, Refused, Signature, SigningKey, UnixTime},
    wire::{
        gossip::{self, Op},
        handshake::{ErrorBody, Finish, FinishResponse, Identity, Init, InitResponse, decode},
        record::Record,
        request::{HEADER_SIGNATURE, REVOCATIONS, SignedRequest},
    },
};

/// How messages travel in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Values,
    Bytes,
}

/// The headers of a peer-signed request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Auth {
    pub sender: PeerId,
    pub timestamp: UnixTime,
    pub nonce: [u8; 16],
    pub signature: Signature,
}

impl Auth {
    /// Signs a POST to `path`; in runs without bytes the body is taken as empty.
    pub fn sign(
        key: &SigningKey,
        sender: PeerId,
        target: PeerId,
        path: &str,
        body: &[u8],
        now: UnixTime,
        nonce: [u8; 16],
    ) -> Self {
        let request =
            SignedRequest { method: "POST", path, body, timestamp: now, nonce, sender, target, on_behalf: None };
        let headers = request.headers(key);
        let text = headers.iter().find(|(name, _)| *name == HEADER_SIGNATURE).map(|(_, value)| value.as_str());
        let signature = text.and_then(|t| t.parse().ok()).expect("a signed request has a signature");
        Self { sender, timestamp: now, nonce, signature }
    }

    pub fn verify(&self, key: &PublicKey, target: PeerId, path: &str, body: &[u8]) -> bool {
        let request = SignedRequest {
            method: "POST",
            path,
            body,
            timestamp: self.timestamp,
            nonce: self.nonce,
            sender: self.sender,
            target,
            on_behalf: None,
        };
        request.verify(key, &self.signature)
    }
}

/// Where a request is posted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    Identity,
    Init,
    Finish,
    Gossip(Op),
}

impl Path {
    pub fn name(self) -> &'static str {
        match self {
            Path::Identity => "identity",
            Path::Init => "init",
            Path::Finish => "finish",
            Path::Gossip(op) => op.name(),
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    None,
    Init(Box<Init>),
    Finish(Box<Finish>),
    Gossip(Box<gossip::Request>),
    Bytes(Vec<u8>),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    pub path: Path,
    pub auth: Option<Auth>,
    pub body: Body,
}

impl Message {
    /// A message as the run's encoding carries it.
    pub fn handshake(request: &handshake::Request, encoding: Encoding) -> Self {
        let (path, value) = match request {
            handshake::Request::Identity => return Self { path: Path::Identity, auth: None, body: Body::None },
            handshake::Request::Init(init) => (Path::Init, Body::Init(init.clone())),
            handshake::Request::Finish(finish) => (Path::Finish, Body::Finish(finish.clone())),
        };
        let body = if encoding == Encoding::Bytes { Body::Bytes(request.body()) } else { value };
        Self { path, auth: None, body }
    }

    /// Bytes of the body; 0 for values, whose size nobody knows.
    pub fn size(&self) -> usize {
        if let Body::Bytes(bytes) = &self.body { bytes.len() } else { 0 }
    }

    /// The message as it arrives; none if nothing of it can be read.
    pub fn damaged(&self, damage: Damage) -> Option<Self> {
        let mut message = self.clone();
        match &mut message.body {
            Body::Bytes(bytes) => damage.apply(bytes),
            _ if damage == Damage::Reset => {}
            _ => return None,
        }
        Some(message)
    }

    pub fn body_bytes(&self) -> &[u8] {
        if let Body::Bytes(bytes) = &self.body { bytes } else { &[] }
    }

    pub fn as_init(&self) -> Result<Init, Refused> {
        match &self.body {
            Body::Init(init) => Ok((**init).clone()),
            Body::Bytes(bytes) => decode(bytes).map_err(|e| handshake::Refusal::from(e).into()),
            _ => Err(unreadable()),
        }
    }

    pub fn as_finish(&self) -> Result<Finish, Refused> {
        match &self.body {
            Body::Finish(finish) => Ok((**finish).clone()),
            Body::Bytes(bytes) => decode(bytes).map_err(|e| handshake::Refusal::from(e).into()),
            _ => Err(unreadable()),
        }
    }
}

pub fn unreadable() -> Refused {
    Refused::new(Code::InvalidRequest, "unreadable")
}

/// What comes back.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    Identity(Identity),
    Init(Box<InitResponse>),
    Finish(FinishResponse),
    Gossip(Box<gossip::Reply>),
    Refused { status: u16, body: ErrorBody },
    Bytes { status: u16, body: Vec<u8> },
}

impl Answer {
    pub fn refused(refused: &Refused) -> Self {
        let body = ErrorBody {
            error: refused.text.clone(),
            code: refused.code.text().into(),
            details: refused.details.clone(),
        };
        Answer::Refused { status: refused.code.http_status(), body }
    }

    /// As the run's encoding carries it.
    pub fn encoded(self, encoding: Encoding) -> Self {
        if encoding == Encoding::Values {
            return self;
        }
        let (status, json) = match self {
            Answer::Identity(m) => (200, serde_json::to_vec(&m)),
            Answer::Init(m) => (200, serde_json::to_vec(&m)),
            Answer::Finish(m) => (200, serde_json::to_vec(&m)),
            Answer::Gossip(m) => (200, Ok(m.encode())),
            Answer::Refused { status, body } => (status, serde_json::to_vec(&body)),
            Answer::Bytes { status, body } => (status, Ok(body)),
        };
        Answer::Bytes { status, body: json.expect("messages have string keys and no fallible parts") }
    }

    pub fn size(&self) -> usize {
        if let Answer::Bytes { body, .. } = self { body.len() } else { 0 }
    }

    pub fn damaged(mut self, damage: Damage) -> Option<Self> {
        match &mut self {
            _ if damage == Damage::Reset => return None,
            Answer::Bytes { body, .. } => damage.apply(body),
            _ => return None,
        }
        Some(self)
    }

    pub fn status(&self) -> u16 {
        match self {
            Answer::Refused { status, .. } | Answer::Bytes { status, .. } => *status,
            _ => 200,
        }
    }

    /// What a refusal says.
    pub fn refusal_text(&self) -> Option<String> {
        match self {
            Answer::Refused { body, .. } => Some(body.error.clone()),
            Answer::Bytes { status, body } if *status != 200 => decode::<ErrorBody>(body).ok().map(|b| b.error),
            _ => None,
        }
    }

    /// A refusal with this code.
    pub fn has_code(&self, code: Code) -> bool {
        match self {
            Answer::Refused { body, .. } => body.code == code.text(),
            Answer::Bytes { body, .. } => decode::<ErrorBody>(body).is_ok_and(|body| body.code == code.text()),
            _ => false,
        }
    }

    /// As the answer to a handshake request.
    pub fn to_handshake(&self, request: &handshake::Request) -> handshake::Reply {
        match self {
            Answer::Identity(m) => handshake::Reply::Identity(m.clone()),
            Answer::Init(m) => handshake::Reply::Init((**m).clone()),
            Answer::Finish(m) => handshake::Reply::Finish(m.clone()),
            Answer::Refused { body, .. } => handshake::Reply::Refused(body.clone()),
            Answer::Bytes { status, body } => handshake::Reply::decode(request, *status, body),
            Answer::Gossip(_) => handshake::Reply::Unreadable,
        }
    }

    /// The records by which a refusal says that the caller is not trusted.
    pub fn revocations(&self) -> Option<Vec<Record>> {
        let parsed;
        let body = match self {
            Answer::Refused { body, .. } => Some(body),
            Answer::Bytes { body, .. } => {
                parsed = decode::<ErrorBody>(body).ok();
                parsed.as_ref()
            }
            _ => None,
        };
        let list = body.and_then(|b| b.details.as_ref()?.get(REVOCATIONS).cloned());
        list.and_then(|list| serde_json::from_value(list).ok())
    }

    pub fn to_identity(&self) -> Option<Identity> {
        match self {
            Answer::Identity(m) => Some(m.clone()),
            Answer::Bytes { status: 200, body } => decode(body).ok(),
            _ => None,
        }
    }

    pub fn into_gossip(self, op: Op) -> Option<gossip::Reply> {
        match self {
            Answer::Gossip(reply) => Some(*reply),
            Answer::Bytes { status: 200, body } => gossip::Reply::decode(op, &body).ok(),
            _ => None,
        }
    }
}
