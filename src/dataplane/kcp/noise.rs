//! Noise IK (revision 34) over X25519, ChaCha20-Poly1305 and SHA-256: handshakes and the keys they give.
//!
//! `initiation: kind:4 sender:u32 noise:113 mac:16`, `response: kind:4 sender:u32 receiver:u32 noise:49 mac:16`; the mac
//! is keyed with the receiver's static key, so that who does not know it costs no Diffie-Hellman. The sealed parts say
//! whether a processor has AES instructions: where both have, packets are under AES-256-GCM with the same keys.

use super::TAG_BYTES;
use crate::model::Rng;
use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey},
    hmac,
};
use sha2::{Digest, Sha256};
use snow::{
    Builder, Error, HandshakeState,
    params::{CipherChoice, DHChoice, HashChoice},
    resolvers::CryptoResolver,
    types::{Cipher, Dh, Hash, Random},
};
use subtle::ConstantTimeEq;
use x25519_dalek::{PublicKey, StaticSecret};

pub(super) const KEY_BYTES: usize = 32;
pub(super) type StaticKey = [u8; KEY_BYTES];
/// A session's name, chosen by its initiator; handshakes of one session renew its keys.
pub(super) type SessionId = [u8; 16];

const PATTERN: &str = "Noise_IK_25519_ChaChaPoly_SHA256";
const PROLOGUE: &[u8] = b"arctic/kcp/v1";
const MAC_LABEL: &[u8] = b"arctic/kcp/mac/v1";
const MAC_BYTES: usize = 16;
/// Sealed in an initiation: the session's name, and flags.
const SAID_BYTES: usize = size_of::<SessionId>() + 1;
const NOISE_INITIATION_BYTES: usize = KEY_BYTES + (KEY_BYTES + TAG_BYTES) + (SAID_BYTES + TAG_BYTES);
const NOISE_RESPONSE_BYTES: usize = KEY_BYTES + 1 + TAG_BYTES;
pub(super) const INITIATION_BYTES: usize = 8 + NOISE_INITIATION_BYTES + MAC_BYTES;
pub(super) const RESPONSE_BYTES: usize = 12 + NOISE_RESPONSE_BYTES + MAC_BYTES;
pub(super) const INITIATION: u8 = 1;
pub(super) const RESPONSE: u8 = 2;
pub(super) const DATA: u8 = 4;

/// Flags of a response; the second one alone is that of an initiation.
const KNOWN: u8 = 1;
const AES: u8 = 2;

/// Keys of one handshake.
pub(super) struct Keys {
    sealing: LessSafeKey,
    opening: LessSafeKey,
    nonce: fn(u64) -> Nonce,
}

impl Keys {
    fn new(mut finished: HandshakeState, aes: bool) -> Option<Self> {
        if !finished.is_handshake_finished() {
            return None;
        }
        let is_initiator = finished.is_initiator();
        let (first, second) = finished.dangerously_get_raw_split();
        let (sealing, opening) = if is_initiator { (first, second) } else { (second, first) };
        let (algorithm, nonce): (_, fn(u64) -> Nonce) =
            if aes { (&AES_256_GCM, nonce_of_aes) } else { (&CHACHA20_POLY1305, nonce) };
        let key = |bytes: [u8; KEY_BYTES]| UnboundKey::new(algorithm, &bytes).ok().map(LessSafeKey::new);
        Some(Self { sealing: key(sealing)?, opening: key(opening)?, nonce })
    }

    /// Appends the sealed payload.
    pub fn seal(&self, number: u64, payload: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(payload);
        let nonce = (self.nonce)(number);
        let tag = self.sealing.seal_in_place_separate_tag(nonce, Aad::empty(), &mut out[start..]);
        out.extend_from_slice(tag.expect("a packet is far below the cipher's limit").as_ref());
    }

    /// The payload in `out`; `None` if it was not sealed with these keys and this number.
    pub fn open(&self, number: u64, sealed: &[u8], out: &mut Vec<u8>) -> Option<()> {
        let (text, tag) = sealed.split_last_chunk::<TAG_BYTES>()?;
        out.resize(text.len(), 0);
        self.opening.open_separate_gather((self.nonce)(number), Aad::empty(), text, tag, out).ok()
    }
}

/// A handshake that waits for its response.
pub(super) struct Initiated {
    state: HandshakeState,
    offers_aes: bool,
    aes: bool,
}

/// This peer's static key.
pub(super) struct Identity {
    secret: StaticSecret,
    pub public: StaticKey,
    /// Whether the processor is quick at AES.
    aes: bool,
}

/// What an initiation said, and the response to it.
pub(super) struct Answered {
    pub peer: StaticKey,
    pub session: SessionId,
    pub keys: Keys,
}

impl Identity {
    pub fn new(secret: StaticSecret, aes: bool) -> Self {
        let public = PublicKey::from(&secret).to_bytes();
        Self { secret, public, aes }
    }

    fn builder(&self, rng: &mut Rng) -> Builder<'_> {
        let params = PATTERN.parse().expect("the name of a Noise pattern");
        Builder::with_resolver(params, Box::new(Primitives(rng.bytes())))
            .prologue(PROLOGUE)
            .and_then(|builder| builder.local_private_key(self.secret.as_bytes()))
            .expect("each is set once")
    }

    /// A handshake to the peer with this key, and its first datagram. `None` for a key that no honest peer has.
    pub fn initiate(
        &self,
        peer: &StaticKey,
        index: u32,
        session: &SessionId,
        rng: &mut Rng,
    ) -> Option<(Initiated, Vec<u8>)> {
        let mut state = self.builder(rng).remote_public_key(peer).ok()?.build_initiator().ok()?;
        let mut out = vec![INITIATION, 0, 0, 0];
        out.extend(index.to_be_bytes());
        let mut said = [0; SAID_BYTES];
        said[..session.len()].copy_from_slice(session);
        said[session.len()] = if self.aes { AES } else { 0 };
        append(&mut out, NOISE_INITIATION_BYTES, |noise| state.write_message(&said, noise))?;
        seal_mac(peer, &mut out);
        Some((Initiated { state, offers_aes: self.aes, aes: false }, out))
    }

    /// Whether the mac is for us: checked before any Diffie-Hellman.
    pub fn is_for_us(&self, datagram: &[u8]) -> bool {
        datagram.split_last_chunk::<MAC_BYTES>().is_some_and(|(said, tag)| mac(&self.public, said).ct_eq(tag).into())
    }

    /// Reads an initiation whose mac is good; `answer` decides over the response: the own index and whether the
    /// session is known, or `None` for silence.
    pub fn respond(
        &self,
        initiation: &[u8],
        rng: &mut Rng,
        answer: impl FnOnce(&StaticKey, &SessionId) -> Option<(u32, bool)>,
    ) -> Option<(Answered, Vec<u8>)> {
        let mut state = self.builder(rng).build_responder().ok()?;
        let mut said = [0; SAID_BYTES];
        let noise = initiation.get(8..8 + NOISE_INITIATION_BYTES)?;
        if state.read_message(noise, &mut said).ok()? != said.len() {
            return None;
        }
        let (session, flags) = (*said.first_chunk()?, said[SAID_BYTES - 1]);
        let aes = self.aes && flags & AES != 0;
        let peer = StaticKey::try_from(state.get_remote_static()?).ok()?;
        let (index, known) = answer(&peer, &session)?;
        let mut out = vec![RESPONSE, 0, 0, 0];
        out.extend(index.to_be_bytes());
        out.extend_from_slice(&initiation[4..8]);
        let flags = (if known { KNOWN } else { 0 }) | (if aes { AES } else { 0 });
        append(&mut out, NOISE_RESPONSE_BYTES, |noise| state.write_message(&[flags], noise))?;
        seal_mac(&peer, &mut out);
        let keys = Keys::new(state, aes)?;
        Some((Answered { peer, session, keys }, out))
    }
}

impl Initiated {
    /// Reads a response: the keys, and whether the peer knows the session. A wrong one changes nothing.
    pub fn finish(&mut self, response: &[u8]) -> Option<bool> {
        let mut flags = [0];
        let read = self.state.read_message(response.get(12..12 + NOISE_RESPONSE_BYTES)?, &mut flags).ok()?;
        let [flags] = flags;
        self.aes = flags & AES != 0;
        (read == 1 && (self.offers_aes || !self.aes)).then_some(flags & KNOWN != 0)
    }

    /// After [`Initiated::finish`].
    pub fn into_keys(self) -> Option<Keys> {
        Keys::new(self.state, self.aes)
    }
}

fn append(out: &mut Vec<u8>, length: usize, write: impl FnOnce(&mut [u8]) -> Result<usize, Error>) -> Option<()> {
    let start = out.len();
    out.resize(start + length, 0);
    (write(&mut out[start..]).ok()? == length).then_some(())
}

fn mac(receiver: &StaticKey, said: &[u8]) -> [u8; MAC_BYTES] {
    let key: [u8; 32] = Sha256::new().chain_update(MAC_LABEL).chain_update(receiver).finalize().into();
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), said);
    tag.as_ref()[..MAC_BYTES].try_into().expect("SHA-256 is longer than the mac")
}

fn seal_mac(receiver: &StaticKey, out: &mut Vec<u8>) {
    let tag = mac(receiver, out);
    out.extend_from_slice(&tag);
}

/// The primitives of this process, and randomness from a seed that is used for one handshake.
struct Primitives([u8; 32]);

impl CryptoResolver for Primitives {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Seeded(Rng::from_seed(self.0))))
    }
    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        matches!(choice, DHChoice::Curve25519).then(|| Box::new(X25519::default()) as _)
    }
    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        matches!(choice, HashChoice::SHA256).then(|| Box::new(Sha(Sha256::new())) as _)
    }
    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        matches!(choice, CipherChoice::ChaChaPoly).then(|| Box::new(ChaCha(key(&[0; 32]))) as _)
    }
}

struct Seeded(Rng);

impl Random for Seeded {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), Error> {
        dest.chunks_mut(32).for_each(|part| part.copy_from_slice(&self.0.bytes::<32>()[..part.len()]));
        Ok(())
    }
}

struct X25519 {
    secret: StaticSecret,
    public: StaticKey,
}

impl Default for X25519 {
    fn default() -> Self {
        Self { secret: StaticSecret::from([0; 32]), public: [0; 32] }
    }
}

impl Dh for X25519 {
    fn name(&self) -> &'static str {
        "25519"
    }
    fn pub_len(&self) -> usize {
        KEY_BYTES
    }
    fn priv_len(&self) -> usize {
        KEY_BYTES
    }
    fn set(&mut self, secret: &[u8]) {
        let mut bytes = [0; KEY_BYTES];
        bytes.copy_from_slice(secret);
        self.secret = StaticSecret::from(bytes);
        self.public = PublicKey::from(&self.secret).to_bytes();
    }
    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), Error> {
        let mut bytes = [0; KEY_BYTES];
        rng.try_fill_bytes(&mut bytes)?;
        self.set(&bytes);
        Ok(())
    }
    fn pubkey(&self) -> &[u8] {
        &self.public
    }
    fn privkey(&self) -> &[u8] {
        self.secret.as_bytes()
    }
    fn dh(&self, public: &[u8], out: &mut [u8]) -> Result<(), Error> {
        let public = StaticKey::try_from(public.get(..KEY_BYTES).ok_or(Error::Dh)?).map_err(|_| Error::Dh)?;
        let shared = self.secret.diffie_hellman(&PublicKey::from(public));
        // A public key of small order would give a secret that everyone knows.
        if !shared.was_contributory() {
            return Err(Error::Dh);
        }
        out[..KEY_BYTES].copy_from_slice(shared.as_bytes());
        Ok(())
    }
}

struct Sha(Sha256);

impl Hash for Sha {
    fn name(&self) -> &'static str {
        "SHA256"
    }
    fn block_len(&self) -> usize {
        64
    }
    fn hash_len(&self) -> usize {
        32
    }
    fn reset(&mut self) {
        self.0 = Sha256::new();
    }
    fn input(&mut self, data: &[u8]) {
        self.0.update(data);
    }
    fn result(&mut self, out: &mut [u8]) {
        out[..32].copy_from_slice(&std::mem::take(&mut self.0).finalize());
    }
}

struct ChaCha(LessSafeKey);

fn key(bytes: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, bytes).expect("32 bytes are a key of ChaCha20"))
}

/// Noise revision 34 §12.3: 32 zero bits, then the number, little-endian.
fn nonce(number: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&number.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// Noise revision 34 §12.4: the same, big-endian.
fn nonce_of_aes(number: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&number.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

impl Cipher for ChaCha {
    fn name(&self) -> &'static str {
        "ChaChaPoly"
    }
    fn set(&mut self, bytes: &[u8; 32]) {
        self.0 = key(bytes);
    }
    fn encrypt(&self, number: u64, authtext: &[u8], plaintext: &[u8], out: &mut [u8]) -> usize {
        let length = plaintext.len();
        out[..length].copy_from_slice(plaintext);
        let tag = self.0.seal_in_place_separate_tag(nonce(number), Aad::from(authtext), &mut out[..length]);
        out[length..length + TAG_BYTES]
            .copy_from_slice(tag.expect("a packet is far below the cipher's limit").as_ref());
        length + TAG_BYTES
    }
    fn decrypt(&self, number: u64, authtext: &[u8], sealed: &[u8], out: &mut [u8]) -> Result<usize, Error> {
        let (text, tag) = sealed.split_last_chunk::<TAG_BYTES>().ok_or(Error::Decrypt)?;
        let out = out.get_mut(..text.len()).ok_or(Error::Decrypt)?;
        self.0.open_separate_gather(nonce(number), Aad::from(authtext), text, tag, out).map_err(|_| Error::Decrypt)?;
        Ok(text.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Identity, Identity, Rng) {
        pair_with(true, true)
    }

    fn pair_with(a: bool, b: bool) -> (Identity, Identity, Rng) {
        let of = |seed, aes| Identity::new(StaticSecret::from([seed; 32]), aes);
        (of(1, a), of(2, b), Rng::from_seed([3; 32]))
    }

    #[test]
    fn a_handshake_gives_both_ends_the_same_keys() {
        for (a, b) in [(true, true), (true, false), (false, true), (false, false)] {
            gives_both_ends_the_same_keys(pair_with(a, b), a && b);
        }
    }

    fn gives_both_ends_the_same_keys((a, b, mut rng): (Identity, Identity, Rng), aes: bool) {
        let (mut initiated, first) = a.initiate(&b.public, 7, &[9; 16], &mut rng).unwrap();
        assert_eq!(first.len(), INITIATION_BYTES);
        assert!(b.is_for_us(&first) && !a.is_for_us(&first));
        let (answered, second) = b.respond(&first, &mut rng, |_, _| Some((8, true))).unwrap();
        assert_eq!((answered.peer, answered.session, second.len()), (a.public, [9; 16], RESPONSE_BYTES));
        assert!(a.is_for_us(&second));
        let mut forged = second.clone();
        forged[20] ^= 1;
        assert_eq!(initiated.finish(&forged), None, "a forged response changes nothing");
        assert_eq!(initiated.finish(&second), Some(true));
        let keys = initiated.into_keys().unwrap();
        let algorithm = if aes { &AES_256_GCM } else { &CHACHA20_POLY1305 };
        assert_eq!([&keys.sealing, &keys.opening].map(LessSafeKey::algorithm), [algorithm; 2]);
        let (mut sealed, mut opened) = (vec![], vec![]);
        keys.seal(5, b"hello", &mut sealed);
        assert_eq!(answered.keys.open(6, &sealed, &mut opened), None);
        assert_eq!(keys.open(5, &sealed, &mut opened), None, "directions have keys of their own");
        assert_eq!(answered.keys.open(5, &sealed, &mut opened), Some(()));
        assert_eq!(opened, b"hello");
    }

    #[test]
    fn a_key_of_small_order_is_refused() {
        let (a, _, mut rng) = pair();
        assert!(a.initiate(&[0; 32], 1, &[0; 16], &mut rng).is_none());
    }

    #[test]
    fn every_flipped_bit_of_an_initiation_is_refused() {
        let (a, b, mut rng) = pair();
        let (_, first) = a.initiate(&b.public, 7, &[9; 16], &mut rng).unwrap();
        for bit in 0..first.len() * 8 {
            let mut flipped = first.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(!b.is_for_us(&flipped), "bit {bit}");
        }
    }
}
