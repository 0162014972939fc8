//! Every endpoint for every kind of caller in every state of the license, made from the table of endpoints.

use super::{
    agent::{Agent, RECOVERY, client_of},
    license_table::{agent_in, allowed, moments},
    proxying::path_of,
};
use crate::{
    api::{
        endpoints::{Access, Endpoint, Input, endpoints},
        token::{self, tests::Forge},
    },
    env::Clock,
    model::{Rng, Scope, ScopeSet, Secret},
    store::StoreError,
};
use std::{collections::BTreeSet, time::Duration};

/// Who calls, and what they may be taken for.
struct Caller {
    name: String,
    headers: Vec<(&'static str, String)>,
    /// None: their proof is none.
    scopes: Option<ScopeSet>,
    recovery: bool,
}

async fn callers(agent: &Agent) -> Vec<Caller> {
    let author = agent.node.identity().unwrap();
    let cluster = agent.node.store().read(|v| v.cluster()).unwrap().unwrap().cluster_id;
    let client = client_of(agent.caller.token.as_deref().unwrap());
    let now = agent.clock.unix();
    let mut rng = Rng::from_seed([8; 32]);
    let bearer = |token: &str| vec![("authorization", format!("Bearer {token}"))];
    let bad = |name: &str, token: &str| Caller {
        name: name.to_owned(),
        headers: bearer(token),
        scopes: None,
        recovery: false,
    };
    let mut all = vec![Caller { name: "nobody".into(), headers: vec![], scopes: None, recovery: false }];
    for scope in Scope::ALL {
        let scopes = ScopeSet(BTreeSet::from([scope]));
        let token = token::issue(&author, cluster, client, &scopes, now, &mut rng).unwrap();
        let name = scope.short_name().to_owned();
        all.push(Caller { name, headers: bearer(&token), scopes: Some(scopes), recovery: false });
    }
    let long_ago = now.minus(Duration::from_secs(2 * 3600));
    let expired = token::issue(&author, cluster, client, &ScopeSet::admin(), long_ago, &mut rng).unwrap();
    all.push(bad("expired", &expired));
    let forge = Forge { author: (*author).clone(), cluster, client, now };
    let kinds = ["alg none", "HS256 with the public key", "iss other", "aud other", "other signer"];
    all.extend(forge.corpus().iter().filter(|(name, _)| kinds.contains(name)).map(|(name, token)| bad(name, token)));
    let revoked = crate::model::ClientId::mint(now, &mut rng);
    let dead = token::issue(&author, cluster, revoked, &ScopeSet::admin(), now, &mut rng).unwrap();
    let new = crate::membership::NewCredential {
        client_id: revoked,
        scopes: ScopeSet::admin(),
        description: String::new(),
        license_id: agent.node.entitlement().unwrap().document.license_id(),
    };
    let secret = Secret::mint(&mut rng);
    let write = agent.node.store().write(move |tx| {
        crate::membership::issue_credential(tx, &author, new, &secret, now)?;
        crate::membership::revoke_credential(tx, &author, author.peer_id, revoked, now)
    });
    write.await.map_err(|e: StoreError| e).unwrap();
    all.push(bad("revoked", &dead));
    let recovery = vec![("x-arctic-recovery", RECOVERY.to_owned())];
    all.push(Caller { name: "recovery".into(), headers: recovery, scopes: Some(ScopeSet::admin()), recovery: true });
    all
}

/// 401, 403 FORBIDDEN, or let through.
#[derive(Debug, PartialEq)]
enum Verdict {
    Unproven,
    Forbidden,
    Through,
}

fn expected(endpoint: &Endpoint, caller: &Caller) -> Verdict {
    let wanted: &[Scope] = match endpoint.access {
        Access::Public | Access::PublicUnlessInternal | Access::Login => return Verdict::Through,
        Access::Peer => return Verdict::Unproven,
        Access::Client => &[],
        Access::Scoped(ref scope) | Access::ScopedOrForwarded(ref scope) => std::slice::from_ref(scope),
        Access::WriterOrForwarded => &[Scope::PeersWrite, Scope::ServicesWrite, Scope::CredentialsWrite],
    };
    match &caller.scopes {
        None => Verdict::Unproven,
        Some(held) if wanted.is_empty() || wanted.iter().any(|scope| held.grants(*scope)) => Verdict::Through,
        Some(_) => Verdict::Forbidden,
    }
}

// accepts: 000-37
#[tokio::test]
async fn every_endpoint_judges_every_caller_in_every_state_of_the_license() {
    for (days, state) in moments() {
        let agent = agent_in(days, state).await;
        for caller in callers(&agent).await {
            for endpoint in endpoints() {
                let what = format!("{} {} for {} in {state}", endpoint.method, endpoint.path, caller.name);
                let media = match endpoint.input {
                    Input::Form => "application/x-www-form-urlencoded",
                    Input::Json | Input::Nothing => "application/json",
                };
                let mut headers: Vec<(&str, &str)> = caller.headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
                headers.push(("content-type", media));
                // A parameter that no write knows, so that nothing happens.
                let path = format!("{}?harmless=1", path_of(&endpoint));
                let reply = agent.caller.send(endpoint.method.clone(), &path, &headers, "{}").await;
                let (status, code) = reply.refusal();
                let licensed = allowed(&endpoint.method, endpoint.path).permits(state, caller.recovery);
                assert_eq!(code.starts_with("LICENSE_"), !licensed, "{what}: {}", reply.text);
                if !licensed {
                    continue;
                }
                let verdict = match (status, code) {
                    (401, _) => Verdict::Unproven,
                    (403, "FORBIDDEN") => Verdict::Forbidden,
                    (200..=299 | 400..=499, _) => Verdict::Through,
                    _ => panic!("{what}: {}", reply.text),
                };
                assert_eq!(verdict, expected(&endpoint, &caller), "{what}: {}", reply.text);
            }
            // Handshakes and bootstraps of one address are counted.
            agent.clock.advance(Duration::from_secs(1));
        }
    }
}
