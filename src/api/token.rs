//! Access tokens: JWTs signed by the issuing peer, accepted by every peer that trusts it (api.md §2).

use super::answer::unauthorized;
use crate::{
    model::{ClientId, ClusterId, Code, PeerId, PublicKey, Refused, Rng, ScopeSet, UnixTime},
    store::Author,
    wire::request::CLOCK_WINDOW,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use std::time::Duration;

pub(super) const TOKEN_LIFETIME: Duration = Duration::from_secs(3600);
/// How far past its end a token is still taken, for clocks that differ.
const LEEWAY: Duration = Duration::from_secs(30);
const TOKEN_MAX_BYTES: usize = 4096;
const TOKEN_TYPE: &str = "JWT";

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: String,
    scope: String,
    iat: u64,
    exp: u64,
    jti: String,
}

/// Who a token says is asking. That the credential still exists is for the caller to check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bearer {
    pub(super) issuer: PeerId,
    pub(super) client_id: ClientId,
    pub(super) scopes: ScopeSet,
}

/// Signs a token for `client_id` that lives for `TOKEN_LIFETIME`.
pub(super) fn issue(
    author: &Author,
    cluster: ClusterId,
    client_id: ClientId,
    scopes: &ScopeSet,
    now: UnixTime,
    rng: &mut Rng,
) -> Result<String, Refused> {
    let claims = Claims {
        iss: author.peer_id.to_string(),
        sub: client_id.to_string(),
        aud: cluster.to_string(),
        scope: scopes.to_string(),
        iat: now.as_secs(),
        exp: now.plus(TOKEN_LIFETIME).as_secs(),
        jti: URL_SAFE_NO_PAD.encode(rng.bytes::<16>()),
    };
    let mut header = Header::new(Algorithm::EdDSA);
    header.kid = Some(claims.iss.clone());
    let key = EncodingKey::from_ed_der(&author.key.to_pkcs8_der());
    jsonwebtoken::encode(&header, &claims, &key).map_err(Refused::internal)
}

/// What a token is checked against.
pub(super) struct Verifier<'a, K> {
    /// The key held for a trusted peer; None for anyone else.
    pub(super) key_of: K,
    /// The cluster id and its aliases.
    pub(super) audiences: &'a [ClusterId],
    pub(super) now: UnixTime,
}

impl<K> Verifier<'_, K>
where
    K: Fn(PeerId) -> Result<Option<PublicKey>, Refused>,
{
    pub(super) fn verify(self, token: &str) -> Result<Bearer, Refused> {
        if token.len() > TOKEN_MAX_BYTES {
            return Err(forged());
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| forged())?;
        let issuer = issuer_of(&header).ok_or_else(forged)?;
        let key = (self.key_of)(issuer)?.ok_or_else(|| unauthorized("token was issued by a peer not trusted here"))?;
        let claims = self.signed_claims(token, issuer, &key)?;
        let expires_at = UnixTime::from_secs(claims.exp);
        if expires_at.plus(LEEWAY) <= self.now {
            return Err(Refused::new(Code::TokenExpired, format!("token expired at {expires_at}; ask for a new one")));
        }
        if expires_at > self.now.plus(TOKEN_LIFETIME + CLOCK_WINDOW) {
            return Err(unauthorized("token outlives what a peer may issue, or the clocks of the peers differ"));
        }
        Ok(Bearer {
            issuer,
            client_id: canonical(&claims.sub).ok_or_else(forged)?,
            scopes: claims.scope.parse().map_err(|_| forged())?,
        })
    }

    fn signed_claims(&self, token: &str, issuer: PeerId, key: &PublicKey) -> Result<Claims, Refused> {
        let mut rules = Validation::new(Algorithm::EdDSA);
        rules.validate_exp = false;
        rules.set_required_spec_claims(&["iss", "sub", "aud", "exp"]);
        rules.set_issuer(&[issuer]);
        rules.set_audience(self.audiences);
        let key = DecodingKey::from_ed_der(key.as_bytes());
        jsonwebtoken::decode::<Claims>(token, &key, &rules).map(|t| t.claims).map_err(|e| match e.kind() {
            jsonwebtoken::errors::ErrorKind::InvalidAudience => unauthorized("token is for another cluster"),
            _ => forged(),
        })
    }
}

/// The peer that the header names as signer. Headers that would choose another key or another rule are refused whole.
fn issuer_of(header: &Header) -> Option<PeerId> {
    let plain = header.alg == Algorithm::EdDSA
        && header.typ.as_deref() == Some(TOKEN_TYPE)
        && header.jku.is_none()
        && header.jwk.is_none()
        && header.x5u.is_none()
        && header.x5c.is_none()
        && header.crit.is_none()
        && header.enc.is_none()
        && header.zip.is_none();
    plain.then(|| canonical(header.kid.as_deref()?)).flatten()
}

/// An id in the one form in which we write it.
fn canonical<I: std::str::FromStr + ToString>(text: &str) -> Option<I> {
    text.parse().ok().filter(|id: &I| id.to_string() == text)
}

fn forged() -> Refused {
    unauthorized("token is not valid")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::model::SigningKey;
    use serde_json::{Value, json};

    pub(in crate::api) struct Forge {
        pub(in crate::api) author: Author,
        pub(in crate::api) cluster: ClusterId,
        pub(in crate::api) client: ClientId,
        pub(in crate::api) now: UnixTime,
    }

    impl Forge {
        fn new() -> Self {
            let (now, mut rng) = (UnixTime::from_secs(1_800_000_000), Rng::from_seed([1; 32]));
            Self {
                author: Author { peer_id: PeerId::mint(now, &mut rng), key: SigningKey::from_seed([2; 32]) },
                cluster: ClusterId::mint(now, &mut rng),
                client: ClientId::mint(now, &mut rng),
                now,
            }
        }

        fn header(&self) -> Value {
            json!({"typ": "JWT", "alg": "EdDSA", "kid": self.author.peer_id})
        }

        fn claims(&self) -> Value {
            json!({"iss": self.author.peer_id, "sub": self.client, "aud": self.cluster, "scope": "admin",
                   "iat": self.now.as_secs(), "exp": self.now.as_secs() + 3600, "jti": "x"})
        }

        /// Some 40 tokens that a forger might try; none may be taken.
        pub(in crate::api) fn corpus(&self) -> Vec<(&'static str, String)> {
            let set = |mut v: Value, k: &str, to: Value| {
                v[k] = to;
                v
            };
            let unset = |mut v: Value, k: &str| {
                v.as_object_mut().unwrap().remove(k);
                v
            };
            let own = |h: Value, c: Value| signed(&self.author.key, &h, &c);
            let (h, c) = (self.header(), self.claims());
            let stranger = SigningKey::from_seed([9; 32]);
            let mut rng = Rng::from_seed([77; 32]);
            let other_peer = PeerId::mint(self.now, &mut rng);
            let other_cluster = ClusterId::mint(self.now, &mut rng);
            let bare = self.author.peer_id.to_string().replace("peer_", "");
            let good = own(h.clone(), c.clone());
            let parts: Vec<&str> = good.split('.').collect();
            let part = |v: &Value| URL_SAFE_NO_PAD.encode(v.to_string());
            let mut corpus = vec![
                ("empty", String::new()),
                ("one part", parts[0].to_owned()),
                ("no signature", format!("{}.{}", parts[0], parts[1])),
                ("empty signature", format!("{}.{}.", parts[0], parts[1])),
                ("four parts", format!("{good}.x")),
                ("signature of 63 bytes", good[..good.len() - 2].to_owned()),
                ("padded signature", format!("{good}==")),
                ("garbage", "a.b.c".to_owned()),
                ("very long", format!("{good}{}", "A".repeat(8192))),
                ("alg none", format!("{}.{}.", part(&set(h.clone(), "alg", json!("none"))), parts[1])),
                (
                    "alg None kept signature",
                    format!("{}.{}.{}", part(&set(h.clone(), "alg", json!("None"))), parts[1], parts[2]),
                ),
                ("alg missing", own(unset(h.clone(), "alg"), c.clone())),
                ("alg Ed25519", own(set(h.clone(), "alg", json!("Ed25519")), c.clone())),
                ("alg lower case", own(set(h.clone(), "alg", json!("eddsa")), c.clone())),
                ("alg RS256", own(set(h.clone(), "alg", json!("RS256")), c.clone())),
                ("alg ES256", own(set(h.clone(), "alg", json!("ES256")), c.clone())),
                ("other signer", signed(&stranger, &h, &c)),
                ("kid missing", own(unset(h.clone(), "kid"), c.clone())),
                ("kid null", own(set(h.clone(), "kid", Value::Null), c.clone())),
                ("kid number", own(set(h.clone(), "kid", json!(1)), c.clone())),
                ("kid path", own(set(h.clone(), "kid", json!("../../dev/null")), c.clone())),
                ("kid sql", own(set(h.clone(), "kid", json!("x' OR '1'='1")), c.clone())),
                ("kid bare ulid", own(set(h.clone(), "kid", json!(bare)), c.clone())),
                (
                    "kid lower case",
                    own(set(h.clone(), "kid", json!(self.author.peer_id.to_string().to_lowercase())), c.clone()),
                ),
                ("kid unknown peer", own(set(h.clone(), "kid", json!(other_peer)), c.clone())),
                (
                    "embedded key",
                    signed(
                        &stranger,
                        &set(
                            h.clone(),
                            "jwk",
                            json!({"kty":"OKP","crv":"Ed25519","x":URL_SAFE_NO_PAD.encode(stranger.public().as_bytes())}),
                        ),
                        &c,
                    ),
                ),
                ("key by url", own(set(h.clone(), "jku", json!("http://example.com/jwks.json")), c.clone())),
                ("key by x5u", own(set(h.clone(), "x5u", json!("http://example.com/x")), c.clone())),
                ("critical extension", own(set(h.clone(), "crit", json!(["exp"])), c.clone())),
                ("compressed", own(set(h.clone(), "zip", json!("DEF")), c.clone())),
                ("typ other", own(set(h.clone(), "typ", json!("at+jwt")), c.clone())),
                ("iss other", own(h.clone(), set(c.clone(), "iss", json!(other_peer)))),
                ("iss missing", own(h.clone(), unset(c.clone(), "iss"))),
                ("aud other", own(h.clone(), set(c.clone(), "aud", json!(other_cluster)))),
                ("aud missing", own(h.clone(), unset(c.clone(), "aud"))),
                ("aud list", own(h.clone(), set(c.clone(), "aud", json!([self.cluster, other_cluster])))),
                ("sub missing", own(h.clone(), unset(c.clone(), "sub"))),
                ("sub of another kind", own(h.clone(), set(c.clone(), "sub", json!(self.author.peer_id)))),
                ("scope unknown", own(h.clone(), set(c.clone(), "scope", json!("admin root")))),
                ("scope missing", own(h.clone(), unset(c.clone(), "scope"))),
                ("exp missing", own(h.clone(), unset(c.clone(), "exp"))),
                ("exp text", own(h.clone(), set(c.clone(), "exp", json!("4000000000")))),
                ("exp negative", own(h.clone(), set(c.clone(), "exp", json!(-1)))),
                ("exp far away", own(h.clone(), set(c.clone(), "exp", json!(u64::MAX)))),
                ("expired", own(h.clone(), set(c.clone(), "exp", json!(self.now.as_secs() - 31)))),
                ("claims changed", format!("{}.{}.{}", parts[0], part(&set(c.clone(), "jti", json!("y"))), parts[2])),
                ("header changed", format!("{}.{}.{}", part(&set(h.clone(), "cty", json!("x"))), parts[1], parts[2])),
            ];
            for secret in [&self.author.key.public().as_bytes()[..], self.author.key.public().to_string().as_bytes()] {
                let header = Header { kid: Some(self.author.peer_id.to_string()), ..Header::new(Algorithm::HS256) };
                let token = jsonwebtoken::encode(&header, &c, &EncodingKey::from_secret(secret)).unwrap();
                corpus.push(("HS256 with the public key", token));
            }
            corpus
        }

        fn verify(&self, token: &str) -> Result<Bearer, Refused> {
            let key_of = |id| Ok((id == self.author.peer_id).then(|| self.author.key.public()));
            Verifier { key_of, audiences: &[self.cluster], now: self.now }.verify(token)
        }
    }

    fn signed(key: &SigningKey, header: &Value, claims: &Value) -> String {
        let part = |v: &Value| URL_SAFE_NO_PAD.encode(v.to_string());
        let message = format!("{}.{}", part(header), part(claims));
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(key.sign(message.as_bytes()).as_bytes()))
    }

    #[test]
    fn an_issued_token_says_who_asks() {
        let f = Forge::new();
        let mut rng = Rng::from_seed([3; 32]);
        let token = issue(&f.author, f.cluster, f.client, &ScopeSet::admin(), f.now, &mut rng).unwrap();
        let bearer = f.verify(&token).unwrap();
        assert_eq!(bearer, Bearer { issuer: f.author.peer_id, client_id: f.client, scopes: ScopeSet::admin() });
        assert!(
            f.verify(&signed(&f.author.key, &f.header(), &f.claims())).is_ok(),
            "the corpus starts from a good one"
        );
        let late = Forge { now: f.now.plus(TOKEN_LIFETIME + Duration::from_secs(29)), ..Forge::new() };
        assert!(late.verify(&token).is_ok());
        let later = Forge { now: f.now.plus(TOKEN_LIFETIME + Duration::from_secs(30)), ..Forge::new() };
        assert_eq!(later.verify(&token).unwrap_err().code, Code::TokenExpired);
    }

    #[test]
    fn forged_tokens_are_refused() {
        let f = Forge::new();
        let corpus = f.corpus();
        assert!(corpus.len() >= 40);
        for (name, token) in corpus {
            let refused = f.verify(&token).expect_err(name);
            assert_eq!(refused.code.http_status(), 401, "{name}");
            assert_eq!(refused.code == Code::TokenExpired, name == "expired", "{name}");
        }
    }
}
