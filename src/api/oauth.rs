//! `POST /v1/oauth/token` (RFC 6749 §4.4) and what OpenID clients discover (api.md §2).

use super::{
    admission::Request,
    answer::{Answer, Outcome, clip, invalid, unauthorized},
    query::Query,
    token::{self, TOKEN_LIFETIME},
};
use crate::{
    model::{ClientId, Code, Refused, Scope, ScopeSet, Secret, UnixTime},
    wire::record::{CredentialBody, SecretDigest},
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use hyper::{
    HeaderMap,
    header::{AUTHORIZATION, HOST},
};
use serde_json::json;

const GRANT: &str = "client_credentials";

pub(super) async fn token(r: Request) -> Outcome {
    let text = std::str::from_utf8(&r.body).map_err(|_| invalid("the form is not UTF-8"))?;
    let form = Query::parse(text)?;
    match form.get("grant_type") {
        None => return Err(missing("grant_type")),
        Some(GRANT) => {}
        Some(other) => return Err(invalid(format!("unsupported grant_type `{}`: expected {GRANT}", clip(other)))),
    }
    let (client_id, secret) = offered(&r.headers, &form)?;
    let credential = authenticate(&r, &client_id, &secret)?;
    let scopes = granted(&credential.scopes, form.get("scope"))?;
    super::lock(&r.api.used).note(credential.client_id, r.now());
    let (identity, cluster) = (r.identity()?, r.cluster()?);
    let mut rng = r.api.fork_rng();
    let token = token::issue(&identity, cluster.cluster_id, credential.client_id, &scopes, r.now(), &mut rng)?;
    let body = json!({
        "access_token": token,
        "token_type": "Bearer",
        "expires_in": TOKEN_LIFETIME.as_secs(),
        "scope": scopes.to_string(),
    });
    Ok(Answer::ok(&body)?.uncached())
}

fn missing(field: &str) -> Refused {
    Refused::new(Code::MissingField, format!("field `{field}` is missing"))
}

/// Client id and secret from HTTP Basic or from the form, not from both.
fn offered(headers: &HeaderMap, form: &Query) -> Result<(String, Secret), Refused> {
    let in_form = form.get("client_id").is_some() || form.get("client_secret").is_some();
    let Some(header) = headers.get(AUTHORIZATION) else {
        let id = form.get("client_id").ok_or_else(|| missing("client_id"))?;
        let secret = form.get("client_secret").ok_or_else(|| missing("client_secret"))?;
        return Ok((id.to_owned(), Secret::from_input(secret)));
    };
    if form.get("client_secret").is_some() {
        return Err(invalid("the client authenticates twice: in the form and in the Authorization header"));
    }
    let (id, secret) =
        header.to_str().ok().and_then(basic).ok_or_else(|| unauthorized("malformed Basic credentials"))?;
    if in_form && form.get("client_id") != Some(id.as_str()) {
        return Err(invalid("client_id of the form and of the Authorization header differ"));
    }
    Ok((id, secret))
}

/// RFC 6749 §2.3.1: both parts are form-encoded inside the base64; our ids and secrets have nothing to encode.
fn basic(header: &str) -> Option<(String, Secret)> {
    let (scheme, rest) = header.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = zeroize::Zeroizing::new(String::from_utf8(STANDARD.decode(rest.trim()).ok()?).ok()?);
    let (id, secret) = text.split_once(':')?;
    Some((id.to_owned(), Secret::from_input(secret)))
}

/// Takes as long for an unknown client as for a wrong secret, and says the same.
fn authenticate(r: &Request, client_id: &str, secret: &Secret) -> Result<CredentialBody, Refused> {
    let found = match client_id.parse::<ClientId>() {
        Ok(id) => r.node().store().read(|v| v.credential(id))?.map(|(_, body)| body),
        Err(_) => None,
    };
    let nothing = [SecretDigest { sha256: "00".repeat(32), not_after: None }];
    let digests = found.as_ref().map_or(&nothing[..], |c| &c.secrets);
    let right = matches_any(secret, digests, r.now());
    found.filter(|_| right).ok_or_else(|| unauthorized("unknown client_id or wrong client_secret"))
}

fn matches_any(secret: &Secret, digests: &[SecretDigest], now: UnixTime) -> bool {
    digests.iter().fold(false, |found, digest| {
        let in_time = digest.not_after.is_none_or(|end| now <= end);
        let same = from_hex(&digest.sha256).is_some_and(|bytes| secret.matches(&bytes));
        found | (same && in_time)
    })
}

fn from_hex(hex: &str) -> Option<[u8; 32]> {
    let pairs = hex.as_bytes().chunks_exact(2).map(|p| u8::from_str_radix(std::str::from_utf8(p).ok()?, 16).ok());
    pairs.collect::<Option<Vec<u8>>>()?.try_into().ok().filter(|_| hex.len() == 64)
}

/// What the credential grants, narrowed to what is asked for.
fn granted(held: &ScopeSet, asked: Option<&str>) -> Result<ScopeSet, Refused> {
    let Some(asked) = asked.filter(|s| !s.trim().is_empty()) else { return Ok(held.clone()) };
    let asked: ScopeSet = asked.parse().map_err(|e: crate::model::UnknownScope| invalid(e.to_string()))?;
    if held.covers(&asked) {
        Ok(asked)
    } else {
        Err(invalid(format!("scope {asked} is more than the credential grants ({held})")))
    }
}

pub(super) async fn configuration(r: Request) -> Outcome {
    let host = r.headers.get(HOST).and_then(|h| h.to_str().ok()?.parse::<crate::model::Endpoint>().ok());
    let host = host.ok_or_else(|| invalid("the header Host is missing or malformed"))?;
    Answer::ok(&json!({
        "issuer": r.identity()?.peer_id,
        "token_endpoint": format!("http://{host}/v1/oauth/token"),
        "jwks_uri": format!("http://{host}/.well-known/jwks.json"),
        "grant_types_supported": [GRANT],
        "scopes_supported": Scope::ALL,
        "id_token_signing_alg_values_supported": ["EdDSA"],
        "token_endpoint_auth_methods_supported": ["client_secret_post", "client_secret_basic"],
    }))
}

/// One key per trusted peer.
pub(super) async fn keys(r: Request) -> Outcome {
    let peers = r.node().store().read(|v| v.trusted_peers())?;
    let keys: Vec<_> = peers
        .iter()
        .map(|p| {
            let x = URL_SAFE_NO_PAD.encode(p.public_key.as_bytes());
            json!({"kty": "OKP", "crv": "Ed25519", "x": x, "kid": p.peer_id, "use": "sig", "alg": "EdDSA"})
        })
        .collect();
    Answer::ok(&json!({ "keys": keys }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Rng;

    #[test]
    fn a_secret_counts_until_its_end_and_only_whole() {
        let (secret, now) = (Secret::mint(&mut Rng::from_seed([1; 32])), UnixTime::from_secs(100));
        let hex: String = secret.digest().iter().map(|b| format!("{b:02x}")).collect();
        let digest = |sha256: &str, not_after| SecretDigest { sha256: sha256.to_owned(), not_after };
        assert!(matches_any(&secret, &[digest(&"00".repeat(32), None), digest(&hex, Some(now))], now));
        assert!(!matches_any(&secret, &[digest(&hex, Some(UnixTime::from_secs(99)))], now));
        assert!(!matches_any(&secret, &[digest(&hex[..62], None), digest("zz", None)], now));
        assert!(!matches_any(&secret, &[], now));
    }

    #[test]
    fn scopes_narrow_and_never_widen() {
        let held: ScopeSet = "services.write".parse().unwrap();
        assert_eq!(granted(&held, None), Ok(held.clone()));
        assert_eq!(granted(&held, Some("services.read")).unwrap().to_string(), Scope::ServicesRead.to_string());
        assert!(granted(&held, Some("admin")).is_err() && granted(&held, Some("root")).is_err());
    }

    #[test]
    fn the_client_authenticates_once_by_form_or_basic() {
        let form = |s: &str| Query::parse(s).unwrap();
        let basic_header: HeaderMap =
            [(AUTHORIZATION, format!("Basic {}", STANDARD.encode("cli_a:sec_b")).parse().unwrap())]
                .into_iter()
                .collect();
        let ok = |h: &HeaderMap, s: &str| offered(h, &form(s)).map(|(id, secret)| (id, secret.reveal().to_owned()));
        let pair = Ok(("cli_a".to_owned(), "sec_b".to_owned()));
        assert_eq!(ok(&HeaderMap::new(), "client_id=cli_a&client_secret=sec_b"), pair);
        assert_eq!(ok(&basic_header, ""), pair);
        assert_eq!(ok(&basic_header, "client_id=cli_a"), pair);
        assert!(ok(&basic_header, "client_id=cli_x").is_err());
        assert!(ok(&basic_header, "client_secret=sec_b").is_err());
        assert_eq!(ok(&HeaderMap::new(), "client_id=cli_a").unwrap_err().code, Code::MissingField);
    }
}
