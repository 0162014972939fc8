//! Every endpoint in every state of the license, for every caller, against a table written by hand (licensing.md §3).

use super::{
    agent::{Agent, RECOVERY, Reply},
    peers_only::{Peer, post},
};
use crate::{
    api::endpoints::endpoints,
    env::Clock,
    license::{Entitlement, RENEWAL_COMMAND, State},
};
use hyper::Method;
use std::collections::BTreeSet;

/// A row of the allow-lists, as far as requests have one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Allowed {
    Always,
    /// And in suspended for the recovery token.
    UntilSuspended,
    /// Then for the recovery token.
    UntilReadOnly,
    /// Then for nobody: what makes or changes peers, services and routes.
    UntilReadOnlyForAll,
    /// For nobody in suspended, where the text is that of a handshake; messages between peers carry no token.
    PeersUntilSuspended,
    HandshakesUntilSuspended,
}

use Allowed::{
    Always, HandshakesUntilSuspended, PeersUntilSuspended, UntilReadOnly, UntilReadOnlyForAll, UntilSuspended,
};

/// What the license permits is answered so; the request is made to do no harm.
struct Row {
    method: &'static str,
    path: &'static str,
    allowed: Allowed,
    /// After the path.
    query: &'static str,
    body: &'static str,
    /// Without a token, with one of an admin, with the recovery token.
    answers: [u16; 3],
}

const fn row(method: &'static str, path: &'static str, allowed: Allowed, answers: [u16; 3]) -> Row {
    Row { method, path, allowed, query: "", body: "", answers }
}

const fn with_body(row: Row, body: &'static str) -> Row {
    Row { body, ..row }
}

const LOCK: &str = "/v1/cluster/lock";
const CONFIRM: &str = "/v1/cluster/pending-confirm";
const LICENSE: &str = "/v1/license";
const SERVICES: &str = "/v1/services";
const ROUTES: &str = "/v1/services/{sid}/routes";

/// A new endpoint needs a row here. Its column `allowed` is copied from licensing.md §3, not from `endpoints.rs`.
const ROWS: &[Row] = &[
    row("GET", "/livez", Always, [200; 3]),
    Row { query: "?exclude=license,network,firewall,tproxy,iptun", ..row("GET", "/readyz", Always, [200; 3]) },
    row("GET", "/v1/cluster/identity", Always, [200; 3]),
    row("GET", "/metrics", UntilSuspended, [200; 3]),
    row("GET", "/v1/openapi.json", UntilSuspended, [200; 3]),
    with_body(row("POST", "/v1/bootstrap", UntilReadOnly, [400; 3]), "{}"),
    row("POST", "/v1/oauth/token", Always, [400; 3]),
    row("GET", "/.well-known/openid-configuration", UntilSuspended, [200; 3]),
    row("GET", "/.well-known/jwks.json", UntilSuspended, [200; 3]),
    with_body(row("POST", "/v1/handshake/init", HandshakesUntilSuspended, [422; 3]), "{}"),
    with_body(row("POST", "/v1/handshake/finish", HandshakesUntilSuspended, [422; 3]), "{}"),
    row("POST", "/v1/gossip/heartbeat", PeersUntilSuspended, [401; 3]),
    row("POST", "/v1/gossip/reconcile", PeersUntilSuspended, [401; 3]),
    row("POST", "/v1/gossip/push", PeersUntilSuspended, [401; 3]),
    row("POST", "/v1/gossip/lock", PeersUntilSuspended, [401; 3]),
    row("POST", "/v1/gossip/applied", PeersUntilSuspended, [401; 3]),
    with_body(row("PUT", "/v1/peers/{id}", UntilReadOnlyForAll, [401, 404, 404]), "{}"),
    with_body(row("PUT", "/v1/services/{sid}", UntilReadOnlyForAll, [401, 404, 404]), "{}"),
    with_body(row("PUT", "/v1/services/{sid}/routes/{rid}", UntilReadOnlyForAll, [401, 404, 404]), "{}"),
    Row { query: "?harmless", ..row("DELETE", "/v1/peers/self", Always, [401, 400, 400]) },
    row("GET", "/v1/peers", UntilSuspended, [401, 200, 200]),
    with_body(row("POST", "/v1/peers", UntilReadOnlyForAll, [401, 400, 400]), "{}"),
    row("GET", "/v1/peers/{id}", UntilSuspended, [401, 404, 404]),
    row("DELETE", "/v1/peers/{id}", UntilReadOnly, [401, 404, 404]),
    row("GET", SERVICES, UntilSuspended, [401, 200, 200]),
    with_body(row("POST", SERVICES, UntilReadOnlyForAll, [401, 400, 400]), "{}"),
    row("GET", "/v1/services/{sid}", UntilSuspended, [401, 404, 404]),
    row("DELETE", "/v1/services/{sid}", UntilReadOnly, [401, 404, 404]),
    row("GET", ROUTES, UntilSuspended, [401, 404, 404]),
    with_body(row("POST", ROUTES, UntilReadOnlyForAll, [401, 400, 400]), "{}"),
    row("DELETE", "/v1/services/{sid}/routes/{rid}", UntilReadOnly, [401, 404, 404]),
    with_body(row("POST", "/v1/routes/explain", UntilSuspended, [401, 400, 400]), "{}"),
    row("GET", "/v1/cluster/status", UntilSuspended, [401, 200, 200]),
    row("POST", "/v1/cluster/sync", UntilSuspended, [401, 200, 200]),
    with_body(row("POST", "/v1/cluster/init", UntilReadOnly, [401, 200, 200]), "{}"),
    row("GET", LOCK, UntilSuspended, [401, 200, 200]),
    with_body(row("POST", LOCK, UntilSuspended, [401, 400, 400]), "{}"),
    row("DELETE", LOCK, UntilSuspended, [401, 200, 200]),
    row("GET", CONFIRM, UntilSuspended, [401, 200, 200]),
    with_body(row("POST", CONFIRM, UntilReadOnly, [401, 400, 400]), "{}"),
    row("DELETE", CONFIRM, UntilSuspended, [401, 200, 200]),
    Row { query: "?limit=x", ..row("GET", "/v1/events", UntilSuspended, [401, 400, 400]) },
    row("GET", "/v1/audit", UntilSuspended, [401, 200, 200]),
    row("GET", "/v1/credentials", UntilSuspended, [401, 200, 200]),
    Row { query: "?dry_run=true", ..with_body(row("POST", "/v1/credentials", UntilReadOnly, [401, 201, 201]), "{}") },
    row("DELETE", "/v1/credentials/{cid}", UntilReadOnly, [401, 404, 404]),
    row("GET", "/v1/cluster/credentials", UntilSuspended, [401, 200, 200]),
    Row { query: "?dry_run=true", ..row("POST", "/v1/cluster/credentials/rotate", UntilReadOnly, [401, 200, 200]) },
    row("GET", LICENSE, Always, [401, 200, 200]),
    with_body(row("PUT", LICENSE, Always, [401, 400, 400]), "{}"),
];

#[derive(Debug, Clone, Copy, PartialEq)]
enum Who {
    Anonymous,
    Admin,
    Recovery,
}

const EVERYONE: [Who; 3] = [Who::Anonymous, Who::Admin, Who::Recovery];

impl Allowed {
    pub(super) fn permits(self, state: State, recovery: bool) -> bool {
        match self {
            Always => true,
            UntilSuspended => state < State::Suspended || recovery,
            UntilReadOnly => state < State::ReadOnly || recovery,
            UntilReadOnlyForAll => state < State::ReadOnly,
            PeersUntilSuspended | HandshakesUntilSuspended => state < State::Suspended,
        }
    }
}

impl Row {
    async fn ask(&self, agent: &Agent, who: Who) -> Reply {
        let path = self.path.replace("{id}", "peer_x").replace("{sid}", "svc_x").replace("{rid}", "1");
        let bearer = format!("Bearer {}", agent.caller.token.as_deref().unwrap_or_default());
        let form = self.path == "/v1/oauth/token";
        let media = if form { "application/x-www-form-urlencoded" } else { "application/json" };
        let mut headers = vec![("content-type", media)];
        match who {
            Who::Anonymous => {}
            Who::Admin => headers.push(("authorization", &bearer)),
            Who::Recovery => headers.push(("x-arctic-recovery", RECOVERY)),
        }
        let method = Method::from_bytes(self.method.as_bytes()).unwrap();
        agent.caller.send(method, &format!("{path}{}", self.query), &headers, self.body).await
    }

    /// State, since when, and the way out.
    fn assert_refused(&self, reply: &Reply, license: &Entitlement, what: &str) {
        let (code, spoken) = match license.state {
            State::ReadOnly => ("LICENSE_READ_ONLY", "read-only"),
            State::Suspended => ("LICENSE_SUSPENDED", "suspended"),
            state => panic!("{what} was refused in {state}: {}", reply.text),
        };
        assert_eq!(reply.refusal(), (403, code), "{what}: {}", reply.text);
        let since = license.state_since;
        let text = match self.allowed {
            HandshakesUntilSuspended => format!("handshake failed: license {spoken}"),
            _ => format!("license {spoken} since {since}; renew it with `{RENEWAL_COMMAND}`"),
        };
        assert_eq!(reply.error(), text, "{what}");
        let hint = format!("the license is {spoken} since {since}; renew it: {RENEWAL_COMMAND}");
        assert_eq!(reply.body["hint"], hint, "{what}");
    }

    fn assert_permitted(&self, reply: &Reply, license: &Entitlement, who: Who, what: &str) {
        assert!(!reply.refusal().1.starts_with("LICENSE_"), "{what} was refused by the license: {}", reply.text);
        let expected = self.answers[EVERYONE.iter().position(|w| *w == who).unwrap()];
        assert_eq!(reply.status, expected, "{what}: {}", reply.text);
        let authenticated = self.answers[0] == 401 && reply.status != 401;
        let shown = reply.headers.get("x-arctic-license-state").map(|v| v.to_str().unwrap().to_owned());
        let told = authenticated && license.state != State::Valid;
        assert_eq!(shown, told.then(|| license.state.to_string()), "{what}");
    }
}

/// The row of an endpoint.
pub(super) fn allowed(method: &Method, path: &str) -> Allowed {
    let row = ROWS.iter().find(|r| r.method == method.as_str() && r.path == path);
    row.unwrap_or_else(|| panic!("{method} {path} has no row")).allowed
}

pub(super) fn moments() -> [(i32, State); 5] {
    [(-31, State::Valid), (-1, State::Warning), (1, State::GracePeriod), (15, State::ReadOnly), (45, State::Suspended)]
}

pub(super) async fn agent_in(days: i32, state: State) -> Agent {
    let agent = Agent::bootstrapped().await;
    let agent = agent.later(u32::try_from(365 + days).unwrap() * super::agent::DAY).await;
    assert_eq!(agent.node.entitlement().unwrap().state, state);
    agent
}

#[test]
fn every_endpoint_has_a_row_and_every_row_an_endpoint() {
    let served: BTreeSet<(String, String)> =
        endpoints().iter().map(|e| (e.method.to_string(), e.path.to_owned())).collect();
    let written: BTreeSet<(String, String)> = ROWS.iter().map(|r| (r.method.to_owned(), r.path.to_owned())).collect();
    assert_eq!(written.len(), ROWS.len(), "a row stands twice");
    let missing: Vec<String> = served
        .difference(&written)
        .map(|(method, path)| {
            format!(
                "{method} {path} has no row in ROWS of {}: add `row(\"{method}\", \"{path}\", …)` with its line of the \
                 allow-lists in licensing.md §3 and the status it answers without a token, with an admin's, and with \
                 the recovery token",
                file!()
            )
        })
        .collect();
    assert!(missing.is_empty(), "{}", missing.join("\n"));
    let unserved: Vec<_> = written.difference(&served).collect();
    assert!(unserved.is_empty(), "{unserved:?} have rows in ROWS of {} and are not served: take them out", file!());
}

// accepts: 003-10, 003-11, 003-12, 003-13, 003-14, 003-16
#[tokio::test]
async fn the_allow_lists_hold_for_every_endpoint_in_every_state_and_for_every_caller() {
    for (days, state) in moments() {
        let agent = agent_in(days, state).await;
        let license = agent.node.entitlement().unwrap();
        for row in ROWS {
            for who in EVERYONE {
                let what = format!("{} {} in {state} for {who:?}", row.method, row.path);
                let reply = row.ask(&agent, who).await;
                if row.allowed.permits(state, who == Who::Recovery) {
                    row.assert_permitted(&reply, &license, who, &what);
                } else {
                    row.assert_refused(&reply, &license, &what);
                }
            }
        }
    }
}

#[tokio::test]
async fn gossip_of_a_trusted_peer_is_taken_until_suspended() {
    for (days, state) in moments() {
        let agent = agent_in(days, state).await;
        let mut peer = Peer::trusted_by(&agent).await;
        let own_id = agent.node.identity().unwrap().peer_id;
        for path in ["/v1/gossip/heartbeat", "/v1/gossip/reconcile", "/v1/gossip/push", "/v1/gossip/lock"] {
            let headers = peer.headers((path, "{}"), own_id, agent.clock.unix(), None);
            let reply = post(&agent.caller, path, &headers, "{}").await;
            if state == State::Suspended {
                assert_eq!(reply.refusal(), (403, "LICENSE_SUSPENDED"));
            } else {
                // Authentic and licensed: the message itself is wrong, or no machine runs here that takes it.
                assert!([400, 409].contains(&reply.status), "{path} in {state}: {}", reply.text);
            }
        }
    }
}

/// `/readyz` fails for the license only when it is suspended.
#[tokio::test]
async fn readiness_fails_for_the_license_only_when_suspended() {
    for (days, state) in moments() {
        let agent = agent_in(days, state).await;
        let ready = agent.caller.get("/readyz?exclude=network,firewall,tproxy,iptun").await;
        let check = ready.body["checks"].as_array().unwrap().iter().find(|c| c["name"] == "license").unwrap().clone();
        let (status, word) = if state == State::Suspended { (503, "fail") } else { (200, "ok") };
        assert_eq!((ready.status, &check["status"]), (status, &word.into()), "{state}");
        assert!(check["message"].as_str().unwrap().contains(if status == 503 { "suspended" } else { state.text() }));
    }
}
